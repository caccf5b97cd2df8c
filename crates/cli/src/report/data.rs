//! What a run left, as the report needs it: its records, its curve, and its power over time.

use std::path::Path;

use serde_json::Value;
use sparsam_tracker::journal::{self, Event, Totals};
use sparsam_tracker::{EnergyRecord, track};

use crate::cards;
use crate::error::Failure;
use crate::run_record::{self, RunRecord};

/// A run.
#[derive(Debug)]
pub(super) struct RunData {
    /// The name for people.
    pub(super) name: String,
    /// Of a run of `train`; `track` leaves none.
    pub(super) record: Option<RunRecord>,
    pub(super) energy: EnergyRecord,
    /// Step and training loss.
    pub(super) losses: Vec<(f64, f64)>,
    /// Step and evaluation loss.
    pub(super) evaluations: Vec<(f64, f64)>,
    pub(super) power: Power,
}

/// Power over time, from the journal.
#[derive(Debug, Default)]
pub(super) struct Power {
    /// The names of the components.
    pub(super) labels: Vec<String>,
    /// Stretches of time: begin and end in tracked seconds, and watts of each component.
    pub(super) stretches: Vec<(f64, f64, Vec<f64>)>,
    /// Tracked seconds at which a run was resumed.
    pub(super) resumed: Vec<f64>,
}

impl RunData {
    /// Reads the folder of a run of `train` or `track`.
    pub(super) fn read(name: &str, folder: &Path) -> anyhow::Result<Self> {
        let trained = folder.join(run_record::FILE_NAME).exists();
        let journal = folder.join(journal::FILE_NAME);
        let record = trained.then(|| RunRecord::read(folder)).transpose()?;
        let energy = match &record {
            Some(record) => cards::energy_of(folder, record)?,
            None if journal.exists() => EnergyRecord::from_journal(&journal)?,
            None => recorded(folder)?,
        };
        let (losses, evaluations) = curve(folder)?;
        Ok(Self {
            name: name.to_owned(),
            record,
            energy,
            losses,
            evaluations,
            power: if journal.exists() {
                power(&journal)?
            } else {
                Power::default()
            },
        })
    }
}

/// The name of a run after its folder.
pub(super) fn name(folder: &Path) -> String {
    let real = folder.canonicalize().ok();
    let named = real.as_deref().unwrap_or(folder).file_name();
    named.map_or_else(
        || folder.display().to_string(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn recorded(folder: &Path) -> anyhow::Result<EnergyRecord> {
    let path = folder.join(track::RECORD_FILE);
    let Ok(bytes) = fs_err::read(&path) else {
        return Err(run_record::no_run(folder).into());
    };
    serde_json::from_slice(&bytes).map_err(|error| {
        Failure::run(format!(
            "`{}` is not an energy record: {error}",
            path.display()
        ))
        .hint("it may have been written by another version of sparsam")
        .into()
    })
}

type Points = Vec<(f64, f64)>;

/// Training and evaluation losses of `metrics.jsonl`, where there is one.
fn curve(folder: &Path) -> anyhow::Result<(Points, Points)> {
    let path = folder.join("metrics.jsonl");
    let (mut losses, mut evaluations) = (Vec::new(), Vec::new());
    if !path.exists() {
        return Ok((losses, evaluations));
    }
    for line in fs_err::read_to_string(&path)?.lines() {
        // The last line of a killed run may be torn.
        let Ok(point) = serde_json::from_str::<Value>(line) else {
            continue;
        };
        let Some(step) = point["step"].as_f64() else {
            continue;
        };
        if let Some(loss) = point["loss"].as_f64().filter(|loss| loss.is_finite()) {
            losses.push((step, loss));
        }
        if let Some(loss) = point["eval_loss"].as_f64().filter(|loss| loss.is_finite()) {
            evaluations.push((step, loss));
        }
    }
    Ok((losses, evaluations))
}

/// Watts between each two lines of the journal.
fn power(path: &Path) -> anyhow::Result<Power> {
    let mut power = Power::default();
    let mut ids: Vec<String> = Vec::new();
    // Where the session's domains stand among all, and the line before.
    let mut columns: Vec<usize> = Vec::new();
    let mut before: Option<Totals> = None;
    let (mut offset, mut reached) = (0.0, 0.0);
    for event in journal::read(path)?.events {
        match event {
            Event::Start(start) => {
                offset += reached;
                reached = 0.0;
                if offset > 0.0 {
                    power.resumed.push(offset);
                }
                columns = start
                    .domains
                    .iter()
                    .map(|domain| {
                        ids.iter()
                            .position(|id| *id == domain.id)
                            .unwrap_or_else(|| {
                                ids.push(domain.id.clone());
                                power.labels.push(domain.label.clone());
                                ids.len() - 1
                            })
                    })
                    .collect();
                before = Some(Totals {
                    t: 0.0,
                    joules: vec![[0.0; 3]; columns.len()],
                    gaps: Vec::new(),
                });
            }
            Event::Sample(now)
            | Event::Enter { totals: now, .. }
            | Event::Leave { totals: now, .. }
            | Event::Intensity { totals: now, .. }
            | Event::End(now) => {
                let Some(last) = before
                    .as_ref()
                    .filter(|l| l.joules.len() == now.joules.len())
                else {
                    continue;
                };
                let seconds = now.t - last.t;
                // Counters move in steps: what is shorter says nothing about power.
                if !(0.05..1e9).contains(&seconds) {
                    continue;
                }
                let mut watts = vec![0.0; ids.len()];
                for (domain, column) in columns.iter().enumerate() {
                    watts[*column] = (now.joules[domain][1] - last.joules[domain][1]) / seconds;
                }
                power
                    .stretches
                    .push((offset + last.t, offset + now.t, watts));
                reached = now.t;
                before = Some(now);
            }
            Event::Note { .. } => {}
        }
    }
    Ok(power)
}

/// At most `most` points: the mean of each bucket at its middle. The first and the last stay.
pub(super) fn thinned(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    if points.len() <= most || most < 3 {
        return points.to_vec();
    }
    let inner = &points[1..points.len() - 1];
    let size = inner.len().div_ceil(most - 2);
    let means = inner.chunks(size).map(|bucket| {
        let count = bucket.len() as f64;
        let sum = bucket
            .iter()
            .fold((0.0, 0.0), |s, p| (s.0 + p.0, s.1 + p.1));
        (sum.0 / count, sum.1 / count)
    });
    let ends = [points[0], points[points.len() - 1]];
    std::iter::once(ends[0])
        .chain(means)
        .chain([ends[1]])
        .collect()
}

impl Power {
    /// At most `most` stretches; neighbours are joined with their energy kept.
    pub(super) fn thinned(&self, most: usize) -> Vec<(f64, f64, Vec<f64>)> {
        let size = self.stretches.len().div_ceil(most.max(1)).max(1);
        self.stretches
            .chunks(size)
            .filter_map(|bucket| {
                let (first, last) = (bucket.first()?, bucket.last()?);
                let width = self.labels.len();
                let mut joules = vec![0.0; width];
                let mut seconds = 0.0;
                for (from, to, watts) in bucket {
                    seconds += to - from;
                    for (joules, watts) in joules.iter_mut().zip(watts) {
                        *joules += watts * (to - from);
                    }
                }
                let watts = joules.into_iter().map(|joules| joules / seconds).collect();
                Some((first.0, last.1, watts))
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thinning_keeps_the_ends_and_the_mean() {
        let points: Vec<(f64, f64)> = (0..1000)
            .map(|i| (f64::from(i), f64::from(i % 2)))
            .collect();
        let thin = thinned(&points, 100);
        assert!(thin.len() <= 101 && thin[0] == points[0] && *thin.last().unwrap() == points[999]);
        assert!(
            thin[1..thin.len() - 1]
                .iter()
                .all(|(_, y)| (y - 0.5).abs() < 0.06)
        );
        assert_eq!(thinned(&points[..5], 100), points[..5]);
    }

    #[test]
    fn joined_stretches_keep_their_energy() {
        let power = Power {
            labels: vec!["CPU".into()],
            stretches: (0..10)
                .map(|i| (f64::from(i), f64::from(i) + 1.0, vec![f64::from(i)]))
                .collect(),
            resumed: Vec::new(),
        };
        let thin = power.thinned(3);
        assert_eq!(thin.len(), 3);
        let joules: f64 = thin
            .iter()
            .map(|(from, to, watts)| (to - from) * watts[0])
            .sum();
        assert!((joules - 45.0).abs() < 1e-9);
    }
}
