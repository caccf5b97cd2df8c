//! What the machine can do at most, measured like the kernels, and every kernel beside it.
//!
//! Three roofs: the microkernels on a tile whose operands stay in the nearest cache, in f32 and in bf16 (where there are two
//! ways, the faster), and a copy of an array of the kernels' size. Kernels whose work is given in operations are held against the first two, by whether
//! their name says bf16, those in bytes against the copy; it stays in the same caches as theirs, so that it is a
//! roof for them though faster than the memory.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput};
use rayon::prelude::*;
use serde_json::Value;
use sparsam_kernels::cpu::Level;
use sparsam_kernels::gemm::{Kernel, Pair, Piece, Product, Steps, Target, Tile};

/// Length of the tile's sums, in f32 or in pairs of bf16: both operands of it lie in the first cache.
const DEPTH: usize = 128;
/// Tiles of one measurement.
const TILES: usize = 10_000;
/// Group of the roofs.
const ROOF: &str = "roof";
/// The roofs of a second way, which only some processors have.
const BF16_IN_STEPS: &str = "bf16 in steps";
const F32_IN_PARTS: &str = "f32 in parts";

/// Where criterion keeps what it measured.
pub(crate) fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../target/criterion")
}

/// Measures the roofs; the copy is of `numbers` f32.
pub(crate) fn measure(criterion: &mut Criterion, numbers: usize) {
    let level = Level::detect();
    let threads = rayon::current_num_threads();
    let operations = |tile: Tile| 2 * tile.rows * tile.columns * DEPTH * TILES * threads;
    let mut group = criterion.benchmark_group(ROOF);
    let tile = f32::tile(level, 1024);
    group.throughput(Throughput::Elements(operations(tile) as u64));
    group.bench_function("f32", |bench| {
        bench.iter(|| {
            on_all(threads, tile, 1.0f32, |product, out| {
                f32::multiply(level, product, out);
            });
        });
    });
    let tile = f32::tile_of_pairs(level, 1024);
    group.throughput(Throughput::Elements(2 * operations(tile) as u64));
    group.bench_function("bf16", |bench| {
        bench.iter(|| {
            on_all(threads, tile, Pair::default(), |product, out| {
                f32::multiply_pairs(level, product, out);
            });
        });
    });
    if f32::steps_are_faster(level) {
        in_steps::<1>(&mut group, BF16_IN_STEPS, 8);
        in_steps::<3>(&mut group, F32_IN_PARTS, 3);
    }
    let from = vec![1f32; numbers];
    let mut to = vec![0f32; numbers];
    let share = numbers.div_ceil(threads);
    group.throughput(Throughput::Bytes((2 * size_of::<f32>() * numbers) as u64));
    group.bench_function("copy", |bench| {
        bench.iter(|| {
            let shares = to.par_chunks_mut(share).zip(from.par_chunks(share));
            shares.for_each(|(to, from)| to.copy_from_slice(from));
        });
    });
    group.finish();
}

/// The rate of products of so many steps, of rows that fill two registers.
fn in_steps<const PARTS: usize>(group: &mut BenchmarkGroup<WallTime>, name: &str, depth: usize) {
    /// Numbers of a step.
    const NUMBERS: usize = 32;
    const ROWS: usize = 32;
    let level = Level::detect();
    let threads = rayon::current_num_threads();
    let tile = f32::tile_of_pairs(level, 1024);
    let operations = 2 * ROWS * tile.columns * depth * NUMBERS * TILES * threads;
    group.throughput(Throughput::Elements(operations as u64));
    group.bench_function(name, |bench| {
        bench.iter(|| {
            (0..threads).into_par_iter().for_each(|_| {
                let left = vec![Steps::<PARTS>::default(); ROWS * depth];
                let right = vec![Steps::<PARTS>::default(); depth * tile.columns];
                let mut out = vec![0f32; ROWS * tile.columns];
                let piece = Piece {
                    left: &left,
                    stride: depth,
                    depth,
                };
                for _ in 0..TILES {
                    let target = Target::of_numbers(&mut out, tile.columns, true);
                    let pieces = std::iter::once(piece);
                    f32::multiply_steps(level, tile, ROWS, pieces, &right, target);
                }
            });
        });
    });
}

/// Values that begin with a line of the cache, as packed operands do.
struct Lined<T> {
    values: Vec<T>,
    length: usize,
}

impl<T: Copy> Lined<T> {
    const LINE: usize = 64;

    fn new(value: T, length: usize) -> Self {
        let values = vec![value; length + Self::LINE / size_of::<T>()];
        Self { values, length }
    }

    fn values(&self) -> &[T] {
        let first = self.values.as_ptr().align_offset(Self::LINE);
        &self.values[first..][..self.length]
    }
}

/// Multiplies tiles on all threads, each with operands of its own.
fn on_all<H: Copy + Sync>(
    threads: usize,
    tile: Tile,
    value: H,
    multiply: impl Fn(&Product<H>, Target<f32>) + Sync,
) {
    (0..threads).into_par_iter().for_each(|_| {
        let left = Lined::new(value, tile.rows * DEPTH);
        let right = Lined::new(value, DEPTH * tile.columns);
        let mut out = vec![0f32; tile.rows * tile.columns];
        let product = Product {
            tile,
            rows: tile.rows,
            depth: DEPTH,
            left: left.values(),
            left_stride: DEPTH,
            right: right.values(),
        };
        for _ in 0..TILES {
            multiply(&product, Target::of_numbers(&mut out, tile.columns, true));
        }
    });
}

/// A kernel as it was measured.
struct Measured {
    name: String,
    /// Operations or bytes a second.
    rate: f64,
    bytes: bool,
}

/// Every benchmark below a folder that was measured since.
fn measured(folder: &Path, since: SystemTime, all: &mut Vec<Measured>) {
    let Ok(entries) = fs::read_dir(folder) else {
        return;
    };
    let read = |name: &str| -> Option<Value> {
        serde_json::from_slice(&fs::read(folder.join(name)).ok()?).ok()
    };
    if folder.ends_with("new") {
        let time = fs::metadata(folder.join("estimates.json")).and_then(|file| file.modified());
        // File systems keep coarse times.
        let recent = time.is_ok_and(|time| time + Duration::from_secs(2) >= since);
        if let (true, Some(what), Some(estimates)) =
            (recent, read("benchmark.json"), read("estimates.json"))
        {
            let throughput = &what["throughput"];
            let bytes = throughput["Bytes"].as_f64();
            let work = bytes.or(throughput["Elements"].as_f64());
            let nanoseconds = estimates["median"]["point_estimate"].as_f64();
            if let (Some(work), Some(nanoseconds), Some(name)) =
                (work, nanoseconds, what["full_id"].as_str())
            {
                all.push(Measured {
                    name: name.to_owned(),
                    rate: work / nanoseconds * 1e9,
                    bytes: bytes.is_some(),
                });
            }
        }
        return;
    }
    for entry in entries.flatten() {
        measured(&entry.path(), since, all);
    }
}

/// The table of what was measured since, each kernel with its share of its roof. None before the roofs were measured.
pub(crate) fn table(since: SystemTime) -> Option<String> {
    let mut all = Vec::new();
    measured(&folder(), since, &mut all);
    all.sort_by(|a, b| a.name.cmp(&b.name));
    let roof = |name: &str| {
        let name = format!("{ROOF}/{name}");
        all.iter().find(|m| m.name == name).map(|m| m.rate)
    };
    let faster = |one: &str, other: &str| Some(roof(one)?.max(roof(other).unwrap_or(0.0)));
    let f32 = faster("f32", F32_IN_PARTS)?;
    let (bf16, copy) = (faster("bf16", BF16_IN_STEPS)?, roof("copy")?);
    let mut lines = vec![
        format!(
            "roofs: f32 {:.1} GFLOP/s, bf16 {:.1} GFLOP/s, copy {:.1} GB/s, on {} threads at {:?}",
            f32 / 1e9,
            bf16 / 1e9,
            copy / 1e9,
            rayon::current_num_threads(),
            Level::detect(),
        ),
        String::new(),
        "| Kernel | rate | of its roof |".to_owned(),
        "|---|--:|--:|".to_owned(),
    ];
    for kernel in all.iter().filter(|m| !m.name.starts_with(ROOF)) {
        let (unit, of) = match (kernel.bytes, kernel.name.contains("bf16")) {
            (true, _) => ("GB/s", copy),
            (false, true) => ("GFLOP/s", bf16),
            (false, false) => ("GFLOP/s", f32),
        };
        lines.push(format!(
            "| {} | {:.1} {unit} | {:.0} % |",
            kernel.name,
            kernel.rate / 1e9,
            100.0 * kernel.rate / of
        ));
    }
    Some(lines.join("\n"))
}
