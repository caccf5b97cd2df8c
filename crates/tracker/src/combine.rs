//! Several runs as one: a model is the work of all its runs, the failed ones included. The sum is a
//! record of its own, printed by the same code as any other; the runs stay listed beside it.
//!
//! Energy, time and emissions are added. Where the runs differ in place or PUE, the sum carries the mean
//! weighted by energy, so that `energy × PUE × intensity` is still its emissions.

use std::path::Path;

use crate::comparison;
use crate::embodied::Embodied;
use crate::intensity::{self, CarbonIntensity, LiveReadings};
use crate::journal::{self, JournalError};
use crate::range::{Range, Span};
use crate::record::{EnergyRecord, Place, WindowEnergy};
use crate::tracker::{StartError, StatedIntensity};
use crate::water::Water;
use crate::{accounting, water};

/// The records of a run folder: the current journal, and with `earlier` also those of runs that were
/// started in the same folder before it, oldest first.
///
/// # Errors
/// The journal cannot be read. Earlier journals without a whole first line are left out.
pub fn read_folder(folder: &Path, earlier: bool) -> Result<Vec<EnergyRecord>, JournalError> {
    let mut records = Vec::new();
    if earlier {
        for number in 1u32.. {
            let path = folder.join(format!("energy.{number}.jsonl"));
            if !path.exists() {
                break;
            }
            match EnergyRecord::from_journal(&path) {
                Ok(record) => records.push(record),
                Err(JournalError::Empty { .. }) => {}
                Err(error) => return Err(error),
            }
        }
    }
    records.push(EnergyRecord::from_journal(
        &folder.join(journal::FILE_NAME),
    )?);
    Ok(records)
}

impl EnergyRecord {
    /// The same energy at another place, or with a stated intensity: for records whose place was not
    /// known when they were made.
    ///
    /// # Errors
    /// The country is unknown, or the intensity is out of range or without a source.
    pub fn at_place(
        mut self,
        country: Option<&str>,
        stated: Option<&StatedIntensity>,
    ) -> Result<Self, StartError> {
        if let Some(country) = country {
            let country = intensity::lookup(country)?;
            self.intensity = CarbonIntensity::of(country);
            self.place = Some(Place {
                name: country.name.to_owned(),
                alpha3: country.alpha3.to_owned(),
            });
            self.water = water::rates(Some(country.alpha3), None, None)
                .map(|rates| water::litres(self.energy_kwh, self.pue.value, &rates));
        }
        if let Some(stated) = stated {
            self.intensity = crate::tracker::stated_intensity(stated)?;
        }
        self.emissions_g =
            accounting::operational_g(self.energy_kwh, self.pue.value, self.intensity.g_per_kwh);
        self.comparisons = comparison::of(self.emissions_g);
        Ok(self)
    }
}

/// The sum of several records, in the order given; none for none. The name and the machine are those
/// of all.
pub fn sum(records: &[EnergyRecord]) -> Option<EnergyRecord> {
    let (first, rest) = records.split_first()?;
    if rest.is_empty() {
        return Some(first.clone());
    }
    let mut total = first.clone();
    for record in rest {
        add(&mut total, record);
    }
    total.measured_share = share_measured(&total);
    (total.pue, total.intensity) = mean_accounting(records);
    total.emissions_g = emissions(records);
    total.comparisons = comparison::of(total.emissions_g);
    if records.iter().any(|r| r.place != first.place) {
        let mut names: Vec<&str> = Vec::new();
        for place in records.iter().filter_map(|r| r.place.as_ref()) {
            if !names.contains(&place.name.as_str()) {
                names.push(&place.name);
            }
        }
        total.place = (!names.is_empty()).then(|| Place {
            name: names.join("; "),
            alpha3: String::new(),
        });
    }
    if records.iter().any(|r| r.stage != first.stage) {
        total.stage = None;
    }
    let early = records.iter().filter(|r| r.ended_early).count();
    total.ended_early = false;
    if early > 0 {
        push_new(
            &mut total.notes,
            &format!(
                "{early} of {} runs ended early and are included",
                records.len()
            ),
        );
    }
    Some(total)
}

fn add(total: &mut EnergyRecord, record: &EnergyRecord) {
    if record.started < total.started {
        total.started.clone_from(&record.started);
    }
    if record.ended > total.ended {
        total.ended.clone_from(&record.ended);
    }
    total.sessions += record.sessions;
    total.duration_seconds += record.duration_seconds;
    total.gaps += record.gaps;
    total.energy_kwh += record.energy_kwh;
    if total.hardware != record.hardware {
        // Every GPU that took part is listed once for each run's machine that differs.
        for gpu in &record.hardware.gpus {
            if !total.hardware.gpus.contains(gpu) {
                total.hardware.gpus.push(gpu.clone());
            }
        }
        push_new(
            &mut total.notes,
            "the runs were on different machines; the processor named is that of the first",
        );
    }
    for component in &record.components {
        let same = total.components.iter_mut().find(|c| {
            (&c.domain, &c.label, c.method, &c.source)
                == (
                    &component.domain,
                    &component.label,
                    component.method,
                    &component.source,
                )
        });
        match same {
            Some(c) => {
                c.energy_kwh += component.energy_kwh;
                c.gaps += component.gaps;
                c.gap_seconds += component.gap_seconds;
            }
            None => total.components.push(component.clone()),
        }
    }
    for window in &record.windows {
        match total.windows.iter_mut().find(|w| w.path == window.path) {
            Some(w) => {
                *w = WindowEnergy {
                    count: w.count + window.count,
                    seconds: w.seconds + window.seconds,
                    energy_kwh: w.energy_kwh + window.energy_kwh,
                    path: w.path.clone(),
                };
            }
            None => total.windows.push(window.clone()),
        }
    }
    // A baseline belongs to one run; the net of some and the gross of others would be neither.
    total.baseline = None;
    total.net_energy_kwh = match (total.net_energy_kwh, record.net_energy_kwh) {
        (Some(a), Some(b)) => Some(a + b),
        _ => None,
    };
    total.embodied = match (total.embodied.take(), &record.embodied) {
        (Some(mut a), Some(b)) => {
            a.lines.extend(b.lines.iter().cloned());
            for missing in &b.missing {
                push_new(&mut a.missing, missing);
            }
            Some(Embodied::sum(a.lines, a.missing))
        }
        (Some(one), None) => Some(partial(one)),
        (None, Some(one)) => Some(partial(one.clone())),
        (None, None) => None,
    };
    total.water = match (total.water.take(), &record.water) {
        (Some(a), Some(b)) => Some(Water {
            litres: a.litres + b.litres,
            rates: a.rates,
        }),
        _ => None, // Some runs' water alone would pass for all of it.
    };
    for (into, from) in [
        (&mut total.notes, &record.notes),
        (&mut total.not_included, &record.not_included),
        (&mut total.contains, &record.contains),
    ] {
        for text in from {
            push_new(into, text);
        }
    }
}

/// The making of the hardware of some runs, which says that others have no figure.
fn partial(mut embodied: Embodied) -> Embodied {
    push_new(
        &mut embodied.missing,
        "the hardware of the runs without a figure",
    );
    embodied
}

fn push_new(list: &mut Vec<String>, text: &str) {
    if !list.iter().any(|have| have == text) {
        list.push(text.to_owned());
    }
}

fn share_measured(record: &EnergyRecord) -> f64 {
    let measured: f64 = record
        .components
        .iter()
        .filter(|c| c.method == crate::meter::Method::Measured)
        .map(|c| c.energy_kwh.central)
        .sum();
    if record.energy_kwh.central > 0.0 {
        measured.max(0.0) / record.energy_kwh.central
    } else {
        0.0
    }
}

fn emissions(records: &[EnergyRecord]) -> Span {
    Span {
        low: records.iter().map(|r| r.emissions_g.low).sum(),
        central: records.iter().map(|r| r.emissions_g.central).sum(),
        high: records.iter().map(|r| r.emissions_g.high).sum(),
    }
}

/// All readings of the grid, where every run asked it.
fn readings(records: &[EnergyRecord]) -> Option<LiveReadings> {
    let mut all = records.iter().map(|record| record.intensity.live.clone());
    let first = all.next()??;
    all.try_fold(first, |mut sum, next| {
        sum.and(&next?);
        Some(sum)
    })
}

/// The common PUE and intensity, or the means that give the summed emissions.
fn mean_accounting(records: &[EnergyRecord]) -> (accounting::Pue, CarbonIntensity) {
    let first = &records[0];
    let energy: Range = records.iter().map(|r| r.energy_kwh).sum();
    let same_pue = records.iter().all(|r| r.pue.value == first.pue.value);
    let same_intensity = records
        .iter()
        .all(|r| r.intensity.g_per_kwh == first.intensity.g_per_kwh);
    if (same_pue && same_intensity) || energy.central <= 0.0 {
        return (first.pue.clone(), first.intensity.clone());
    }
    let drawn: f64 = records
        .iter()
        .map(|r| r.energy_kwh.central * r.pue.value)
        .sum();
    let pue = accounting::Pue {
        value: drawn / energy.central,
        source: if same_pue {
            first.pue.source.clone()
        } else {
            "mean over the runs, weighted by energy".to_owned()
        },
    };
    let weighted = |of: &dyn Fn(&EnergyRecord) -> f64| {
        records
            .iter()
            .map(|r| r.energy_kwh.central * r.pue.value * of(r))
            .sum::<f64>()
            / drawn
    };
    let central: Option<f64> = records
        .iter()
        .map(|r| {
            r.intensity
                .g_per_kwh
                .central
                .map(|g| r.energy_kwh.central * r.pue.value * g)
        })
        .sum::<Option<f64>>()
        .map(|grams| grams / drawn);
    let mut sources: Vec<String> = Vec::new();
    for record in records {
        push_new(&mut sources, &record.intensity.source);
    }
    let intensity = CarbonIntensity {
        g_per_kwh: Span {
            low: weighted(&|r| r.intensity.g_per_kwh.low),
            central,
            high: weighted(&|r| r.intensity.g_per_kwh.high),
        },
        year: first
            .intensity
            .year
            .filter(|year| records.iter().all(|r| r.intensity.year == Some(*year))),
        source: format!(
            "mean over the runs, weighted by energy; {}",
            sources.join("; ")
        ),
        live: readings(records),
    };
    (pue, intensity)
}
