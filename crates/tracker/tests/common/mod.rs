//! What several of these tests need: a record made by hand.

use sparsam_tracker::accounting::Pue;
use sparsam_tracker::intensity::{self, CarbonIntensity};
use sparsam_tracker::meter::{Component, Method};
use sparsam_tracker::record::{ComponentEnergy, Hardware, Place, WindowEnergy};
use sparsam_tracker::{EnergyRecord, Range};

/// A run of two and a half minutes on a small machine, in that country or nowhere.
pub(crate) fn record(country: Option<&str>) -> EnergyRecord {
    let country = country.map(|name| intensity::lookup(name).unwrap());
    let intensity = country.map_or_else(CarbonIntensity::unknown_place, CarbonIntensity::of);
    let cpu = Range::new(0.0006, 0.0010, 0.0018);
    let ram = Range::new(0.0001, 0.0002, 0.0003);
    let emissions_g =
        sparsam_tracker::accounting::operational_g(cpu + ram, 1.0, intensity.g_per_kwh);
    EnergyRecord {
        version: 1,
        name: "quickstart".into(),
        stage: None,
        started: "2026-01-15T10:00:00Z".into(),
        ended: "2026-01-15T10:02:30Z".into(),
        ended_early: false,
        sessions: 1,
        duration_seconds: 150.0,
        hardware: Hardware {
            cpu: Some("Example CPU 8-Core".into()),
            cpu_threads: Some((2, 16)),
            gpus: vec![],
            ram_bytes: Some(8_000_000_000),
        },
        components: vec![
            ComponentEnergy {
                component: Component::Cpu,
                domain: "rapl:package-0".into(),
                label: "CPU package 0".into(),
                energy_kwh: cpu,
                method: Method::Measured,
                source: "RAPL energy counter, through powercap".into(),
                gaps: 0,
                gap_seconds: 0.0,
            },
            ComponentEnergy {
                component: Component::Ram,
                domain: "model:ram".into(),
                label: "RAM".into(),
                energy_kwh: ram,
                method: Method::Modelled,
                source: "0.3725 W/GB x 8.0 GB".into(),
                gaps: 0,
                gap_seconds: 0.0,
            },
        ],
        energy_kwh: cpu + ram,
        measured_share: 0.0010 / 0.0012,
        windows: vec![WindowEnergy {
            path: "train".into(),
            count: 1,
            seconds: 140.0,
            energy_kwh: Range::new(0.0006, 0.0011, 0.002),
        }],
        gaps: 0,
        place: country.map(|country| Place {
            name: country.name.into(),
            alpha3: country.alpha3.into(),
        }),
        intensity,
        pue: Pue::default(),
        emissions_g,
        contains: vec![
            "electricity of CPU, RAM while the run was tracked, idle power included".into(),
        ],
        baseline: None,
        net_energy_kwh: None,
        embodied: None,
        water: None,
        comparisons: sparsam_tracker::comparison::of(emissions_g),
        not_included: vec!["the manufacture of the hardware".into(), "water".into()],
        notes: vec![],
    }
}
