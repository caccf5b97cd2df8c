//! The real path to NVML, through a library with its C interface that is built here: symbols, units,
//! order of devices, a GPU without a counter. Linux only, as the name of the library is.
#![cfg(target_os = "linux")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use sparsam_tracker::meter::EnergyMeter;
use sparsam_tracker::meter::nvml::{Library, visible};
use sparsam_tracker::{Roots, sensors};

/// The counter does not move for ten seconds while 300 W are drawn: power is integrated.
fn a_counter_that_stands_still_is_bridged(library: &Library, figures: &Path) {
    fs::write(figures, "5000000 300000\n- -\n").unwrap();
    let gpus = library.gpus().unwrap();
    let mut meter = library.meter(&gpus[..1], Duration::ZERO);
    let mut central = 0.0;
    for second in 1..=20 {
        central = meter.read(Duration::from_secs(second)).unwrap().joules[0].central;
    }
    assert_eq!(central, 6000.0);
    assert!(meter.notes()[0].contains("stood still"));
}

/// The counter says 100 W and the power 200 W: the counter is the figure, the range holds both.
fn a_counter_that_disagrees_widens_the_range(library: &Library, figures: &Path) {
    fs::write(figures, "0 200000\n- -\n").unwrap();
    let gpus = library.gpus().unwrap();
    let mut meter = library.meter(&gpus[..1], Duration::ZERO);
    let mut range = sparsam_tracker::Range::ZERO;
    for second in 1..=20u64 {
        fs::write(figures, format!("{} 200000\n- -\n", second * 100_000)).unwrap();
        range = meter.read(Duration::from_secs(second)).unwrap().joules[0];
    }
    assert_eq!((range.central, range.high), (2000.0, 4000.0));
    assert!(meter.notes()[0].contains("differ by more than 5 %"));
}

fn a_split_gpu_is_measured_whole_and_says_so(library: &Library, figures: &Path) {
    fs::write(figures, "0 200000 1\n0 100000 0\n").unwrap();
    let gpus = library.gpus().unwrap();
    assert_eq!((gpus[0].mig, gpus[1].mig), (true, false));
    let (kept, note) = visible(gpus, Some("MIG-1234"), false);
    assert_eq!(kept.len(), 1, "the GPU that is split");
    assert!(note.unwrap().contains("no sensor shows"));
    let meter = library.meter(&kept, Duration::ZERO);
    assert!(meter.domains()[0].source.contains("the whole GPU"));
    assert!(meter.notes()[0].contains("split by MIG"));
}

/// Compiles the stand-in with the compiler that compiled this test.
fn build(folder: &Path) -> PathBuf {
    let library = folder.join("libnvidia-ml.so.1");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/stand_in/nvml.rs");
    let output = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()))
        .args(["--edition", "2024", "-o"])
        .arg(&library)
        .arg(source)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    library
}

#[test]
fn a_library_with_nvmls_interface_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let figures = folder.path().join("figures");
    #[expect(
        unsafe_code,
        reason = "the stand-in library is told its file by the environment"
    )]
    // SAFETY: this is the only test of the program, and no thread of it reads the environment now.
    unsafe {
        std::env::set_var("STAND_IN_NVML", &figures);
    }
    fs::write(&figures, "1000000 300000\n- 100000\n").unwrap();
    let roots = Roots {
        nvml: Some(build(folder.path())),
        ..Roots::default()
    };

    let library = Library::load(&roots).unwrap_or_else(|error| panic!("{error}"));
    let gpus = library.gpus().unwrap();
    assert_eq!(gpus.len(), 2);
    assert_eq!(
        (gpus[1].index, gpus[1].uuid.as_str()),
        (1, "GPU-stand-in-1")
    );
    assert_eq!(
        (gpus[0].name.as_str(), gpus[0].mig),
        ("Stand-in GPU", false)
    );

    let mut meter = library.meter(&gpus, Duration::ZERO);
    assert!(
        meter.domains()[0]
            .source
            .contains("energy counter, compared")
    );
    assert!(meter.domains()[1].source.contains("no energy counter"));
    fs::write(&figures, "1600000 300000\n- 300000\n").unwrap();
    let joules = meter.read(Duration::from_secs(2)).unwrap().joules;
    assert_eq!((joules[0].central, joules[1].central), (600.0, 400.0));

    // The second GPU vanishes: a gap, and its last figure stays.
    fs::write(&figures, "1900000 300000\n").unwrap();
    let reading = meter.read(Duration::from_secs(3)).unwrap();
    assert_eq!(
        (reading.joules[0].central, reading.joules[1].central),
        (900.0, 400.0)
    );
    assert_eq!((reading.gaps.len(), reading.gaps[0].domain), (1, Some(1)));

    let (kept, note) = visible(gpus, Some("GPU-stand-in-1"), false);
    assert_eq!((kept.len(), kept[0].index, note), (1, 1, None));

    let by_address = visible(library.gpus().unwrap(), Some("0000:80:00.0"), false).0;
    assert_eq!((by_address.len(), by_address[0].index), (1, 1));

    a_counter_that_stands_still_is_bridged(&library, &figures);
    a_counter_that_disagrees_widens_the_range(&library, &figures);
    a_split_gpu_is_measured_whole_and_says_so(&library, &figures);

    let names: Vec<String> = sensors(&roots)
        .into_iter()
        .map(|report| report.sensor)
        .collect();
    assert!(
        names.contains(&"NVML GPU-stand-in-0".to_owned()),
        "{names:?}"
    );
}
