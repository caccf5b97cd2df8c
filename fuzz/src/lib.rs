//! What must hold of the tracker, and in [`files`] of what reads models, whatever they are given. Each function is a
//! fuzz target's whole body, so that the tests here can run the same claims over the seeds without a fuzzer.

use std::fs;
use std::path::Path;
use std::time::Duration;

use sparsam_tracker::card::edit::{Details, remove, update};
use sparsam_tracker::card::{TrainingKind, emissions_block, lint};
use sparsam_tracker::meter::powercap::{
    PLAUSIBLE_DRAM_WATTS, PLAUSIBLE_PACKAGE_WATTS, Powercap, delta, zones,
};
use sparsam_tracker::window::Ledger;
use sparsam_tracker::{EnergyMeter, EnergyRecord, Roots, journal, summary_lines};

pub mod files;

/// A journal of a short run, of which the record is made that is written into cards.
const RUN: &[u8] = include_bytes!("../seeds/journal/run.jsonl");

/// The words by which a card is known to have a block or a section already.
const OURS: [&str; 3] = ["co2_eq_emissions", "environmental impact", "sparsam:"];

/// Editing a card: refused, or done so that a second edit changes nothing and removing it gives every
/// byte back. Linting says something about any bytes.
///
/// # Panics
/// Where that does not hold.
pub fn front_matter(card: &[u8]) {
    let records = [record(RUN).expect("the seed is a run")];
    let _ = lint::render("README.md", &lint::lint(card));
    let _ = remove(card);
    let Ok(edited) = update(card, &records, &Details::default()) else {
        return;
    };
    let again =
        update(&edited, &records, &Details::default()).expect("an edited card can be edited");
    assert_eq!(again, edited, "a second update changes nothing");
    let text = String::from_utf8_lossy(card).to_lowercase();
    if OURS.iter().all(|word| !text.contains(word)) {
        let back = remove(&edited).expect("an edited card can be read");
        assert_eq!(back, card, "removing gives every byte back");
    }
}

/// Counters: the step between two readings is never more than the hardware can draw, and a meter over
/// any tree of files never counts backwards.
///
/// The first 25 bytes are two readings, a range and a time; the rest are the contents of files,
/// separated by zero bytes.
///
/// # Panics
/// Where that does not hold.
pub fn powercap(data: &[u8]) {
    let (head, rest) = data.split_at(data.len().min(25));
    let mut bytes = [0; 25];
    bytes[..head.len()].copy_from_slice(head);
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|i| bytes[at + i]));
    let (previous, current, range) = (number(0), number(8), number(16));
    let elapsed = Duration::from_millis(u64::from(bytes[24]) * 250);
    for max_range in [None, Some(range)] {
        let step = delta(
            previous,
            current,
            max_range,
            elapsed,
            PLAUSIBLE_PACKAGE_WATTS,
        );
        if let Ok(step) = step {
            let most = PLAUSIBLE_PACKAGE_WATTS * elapsed.as_secs_f64() * 1e6;
            assert!(step as f64 <= most, "{step} microjoules in {elapsed:?}");
        }
    }
    let files: Vec<&[u8]> = rest.split(|byte| *byte == 0).collect();
    if files.len() > 1 {
        tree(&files, elapsed);
    }
}

/// The first file of each five says what zone it is, the others are its name, its range, and two
/// readings.
fn tree(files: &[&[u8]], elapsed: Duration) {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |path: &Path, bytes: &[u8]| fs::write(path, bytes).expect("written");
    let roots = Roots {
        sysfs: folder.path().to_owned(),
        procfs: folder.path().to_owned(),
        nvml: None,
    };
    let mut second = Vec::new();
    for (index, zone) in files.chunks(5).take(6).enumerate() {
        let nested = zone[0].first().is_some_and(|byte| byte % 2 == 1);
        let name = if nested {
            format!("intel-rapl:{}:{index}", index.saturating_sub(1))
        } else {
            format!("intel-rapl:{index}")
        };
        let zone_folder = folder.path().join("class/powercap").join(name);
        fs::create_dir_all(&zone_folder).expect("made");
        for (file, bytes) in ["name", "max_energy_range_uj", "energy_uj"]
            .iter()
            .zip(&zone[1..])
        {
            write(&zone_folder.join(file), bytes);
        }
        if let Some(bytes) = zone.get(4) {
            second.push((zone_folder.join("energy_uj"), *bytes));
        }
    }
    for zone in zones(&roots) {
        let _ = zone.read();
    }
    let mut now = Duration::from_secs(1);
    let Some(mut meter) = Powercap::open(&roots, now) else {
        return;
    };
    let most = PLAUSIBLE_PACKAGE_WATTS.max(PLAUSIBLE_DRAM_WATTS) * elapsed.as_secs_f64();
    let mut before = vec![0.0; meter.domains().len()];
    for bytes in [None, Some(()), None] {
        if bytes.is_some() {
            for (path, bytes) in &second {
                write(path, bytes);
            }
        }
        now += elapsed;
        let Ok(reading) = meter.read(now) else {
            continue;
        };
        assert_eq!(reading.joules.len(), before.len());
        for (joules, before) in reading.joules.iter().zip(&mut before) {
            assert!(joules.low <= joules.central && joules.central <= joules.high);
            assert!(joules.central >= *before, "energy never goes back");
            // Several steps may be made good at once after failed readings.
            assert!(joules.central - *before <= 3.0 * most + 1e-6);
            *before = joules.central;
        }
        let _ = meter.notes();
    }
}

/// A journal, whole or damaged: it reads, its record can be said, written and read again, and a torn last
/// line takes nothing from the lines before it.
///
/// # Panics
/// Where that does not hold.
pub fn journal(bytes: &[u8]) {
    let whole = journal::parse(bytes);
    let mut torn = bytes.to_vec();
    torn.extend_from_slice(b"\n{\"event\":\"sample\",\"t\":1.5,\"jou");
    assert_eq!(journal::parse(&torn).events, whole.events);
    let Some(record) = record(bytes) else {
        return;
    };
    let _ = summary_lines(&record);
    let _ = emissions_block(&record, TrainingKind::FineTuning, None, None);
    let _ = sparsam_tracker::export::csv_row(&record);
    let _ = sparsam_tracker::combine::sum(&[record.clone(), record.clone()]);
    let card = update(
        b"# Card\n",
        std::slice::from_ref(&record),
        &Details::default(),
    );
    if let Ok(card) = card {
        let _ = lint::lint(&card);
    }
    assert!(record.energy_kwh.central.is_finite(), "energy is a number");
    assert!(record.energy_kwh.central >= 0.0, "energy is not negative");
    assert!(record.duration_seconds.is_finite() && record.duration_seconds >= 0.0);
}

fn record(bytes: &[u8]) -> Option<EnergyRecord> {
    Ledger::replay(journal::parse(bytes)).record()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Knuth's generator for MMIX; any would do.
    struct Random(u64);

    impl Random {
        fn below(&mut self, bound: usize) -> usize {
            self.0 = self
                .0
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (self.0 >> 33) as usize % bound.max(1)
        }
    }

    /// Bytes changed, cut, doubled, moved in from another seed.
    fn mutated(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[random.below(seeds.len())].clone();
        for _ in 0..=random.below(4) {
            let at = random.below(bytes.len() + 1);
            match random.below(6) {
                0 if at < bytes.len() => bytes[at] = random.below(256) as u8,
                1 if at < bytes.len() => bytes[at] ^= 1 << random.below(8),
                2 => bytes.truncate(at),
                3 => {
                    let end = (at + random.below(40)).min(bytes.len());
                    let part = bytes[at..end].to_vec();
                    bytes.splice(at..at, part);
                }
                4 => {
                    let end = (at + random.below(20)).min(bytes.len());
                    bytes.drain(at..end);
                }
                _ => {
                    let other = &seeds[random.below(seeds.len())];
                    let start = random.below(other.len() + 1);
                    let end = (start + random.below(60)).min(other.len());
                    bytes.splice(at..at, other[start..end].iter().copied());
                }
            }
        }
        bytes
    }

    fn all(target: &str, claim: fn(&[u8]), mutations: usize) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("seeds")
            .join(target);
        let mut paths: Vec<_> = fs::read_dir(folder)
            .expect("there are seeds")
            .map(|entry| entry.expect("a file").path())
            .collect();
        paths.sort();
        let seeds: Vec<Vec<u8>> = paths
            .iter()
            .map(|path| fs::read(path).expect("it can be read"))
            .collect();
        assert!(seeds.len() > 3, "{target} has seeds");
        for seed in &seeds {
            claim(seed);
        }
        let mut random = Random(1);
        for _ in 0..mutations {
            let bytes = mutated(&mut random, &seeds);
            // On failure the input is what one needs.
            let outcome = std::panic::catch_unwind(|| claim(&bytes));
            assert!(outcome.is_ok(), "{:?}", String::from_utf8_lossy(&bytes));
        }
    }

    #[test]
    fn cards() {
        all("front_matter", front_matter, 20_000);
    }

    #[test]
    fn counters() {
        all("powercap", powercap, 5_000);
    }

    #[test]
    fn journals() {
        all("journal", journal, 20_000);
    }

    #[test]
    fn gguf_files() {
        all("gguf", files::gguf, 20_000);
    }

    #[test]
    fn safetensors_files() {
        all("safetensors", files::safetensors, 20_000);
    }

    #[test]
    fn adapter_settings() {
        all("adapter_config", files::adapter_config, 20_000);
    }
}
