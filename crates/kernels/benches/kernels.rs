//! Throughput of the kernels on the shape of a 135M model: four documents of 256 tokens.
//!
//! `cargo bench -p sparsam-kernels`; `SPARSAM_CPU_LEVEL` lowers the instruction level and
//! `RAYON_NUM_THREADS` the number of threads. Products are given in operations, two for each
//! multiplication with its addition and only for the keys that are seen; the rest in bytes that have to be read and
//! written. At the end stands a table of all against the machine's roofs, also in `target/roofline.md`.

mod roofline;

use std::io::Write as _;
use std::time::SystemTime;

use candle_core::{DType, Device, Result, Tensor};
use criterion::{Criterion, Throughput, criterion_group};

use sparsam_kernels::activation::{Activation, gated, gated_backward};
use sparsam_kernels::adamw::eight_bit::{EightBit, Map, adamw_step_eight_bit};
use sparsam_kernels::adamw::{AdamW, adamw_step};
use sparsam_kernels::arena::Arena;
use sparsam_kernels::attention::{AttentionShape, attention, attention_backward, attention_cached};
use sparsam_kernels::cross_entropy::{Want, linear_cross_entropy};
use sparsam_kernels::dropout::{DropoutKey, dropout};
use sparsam_kernels::int8::Int8;
use sparsam_kernels::lora::{BranchGrads, LowRank, Projection, lora_linear, lora_linear_backward};
use sparsam_kernels::nf4::Nf4;
use sparsam_kernels::norm::{rms_norm, rms_norm_backward};
use sparsam_kernels::rope::{Positions, RopeTable, rope};
use sparsam_kernels::{Documents, Weight};

/// As in the program: with the system's allocator the large outputs would be mapped anew each time.
#[global_allocator]
static ALLOCATOR: Arena<mimalloc::MiMalloc> = Arena::around(mimalloc::MiMalloc);

const TOKENS: usize = 1024;
const HIDDEN: usize = 576;
const WIDE: usize = 1536;
/// Bytes of an array of hidden numbers.
const ARRAY: u64 = (TOKENS * HIDDEN * size_of::<f32>()) as u64;
const RANK: usize = 16;

fn numbers(rows: usize, columns: usize) -> Result<Tensor> {
    let values = (0..rows * columns)
        .map(|i| (i as f32 * 0.37).sin())
        .collect::<Vec<_>>();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu)
}

fn attentions(
    criterion: &mut Criterion,
    name: &str,
    lengths: &[usize],
    rounded: bool,
) -> Result<()> {
    let shape = AttentionShape {
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        scale: 0.125,
        window: None,
        softcap: None,
        rounded,
    };
    let documents = Documents::from_lengths(lengths);
    let tokens = documents.tokens();
    let (q, dout) = (numbers(tokens, 576)?, numbers(tokens, 576)?);
    let (k, v) = (numbers(tokens, 192)?, numbers(tokens, 192)?);
    let (output, log_sums) = attention(&q, &k, &v, &documents, &shape)?;
    let pairs: usize = lengths.iter().map(|length| length * (length + 1) / 2).sum();
    let product = (2 * pairs * shape.heads * shape.head_dim) as u64;
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(2 * product));
    group.bench_function("forward", |bench| {
        bench.iter(|| attention(&q, &k, &v, &documents, &shape));
    });
    group.throughput(Throughput::Elements(5 * product));
    group.bench_function("backward", |bench| {
        bench
            .iter(|| attention_backward(&dout, &q, &k, &v, &output, &log_sums, &documents, &shape));
    });
    group.finish();
    Ok(())
}

fn cached(criterion: &mut Criterion) -> Result<()> {
    let shape = AttentionShape {
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        scale: 0.125,
        window: None,
        softcap: None,
        rounded: false,
    };
    let keys: Vec<f32> = numbers(1024, 192)?.flatten_all()?.to_vec1()?;
    let q: Vec<f32> = numbers(1, 576)?.flatten_all()?.to_vec1()?;
    let mut group = criterion.benchmark_group("attention over a cache of 1024");
    // All keys and values are read.
    group.throughput(Throughput::Bytes(2 * 1024 * 192 * 4));
    group.bench_function("one token", |bench| {
        bench.iter(|| attention_cached(&q, &keys, &keys, &shape));
    });
    group.finish();
    Ok(())
}

fn elementwise(criterion: &mut Criterion) -> Result<()> {
    let (x, dy, weight) = (
        numbers(1024, 576)?,
        numbers(1024, 576)?,
        numbers(1, 576)?.flatten_all()?,
    );
    let (_, inv_rms) = rms_norm(&x, &weight, 1e-5)?;
    let mut group = criterion.benchmark_group("norm");
    group.throughput(Throughput::Bytes(2 * ARRAY));
    group.bench_function("forward", |bench| {
        bench.iter(|| rms_norm(&x, &weight, 1e-5));
    });
    group.throughput(Throughput::Bytes(4 * ARRAY));
    group.bench_function("backward", |bench| {
        bench.iter(|| rms_norm_backward(&dy, &x, &weight, &inv_rms, Some(&dy), None));
    });
    group.finish();

    let table = RopeTable::new(
        &(0..32).map(|i| 0.75f64.powi(i)).collect::<Vec<_>>(),
        1024,
        1.0,
    );
    let positions = Positions::new((0..1024).collect());
    let mut group = criterion.benchmark_group("rope");
    group.throughput(Throughput::Bytes(2 * ARRAY));
    group.bench_function("in place", |bench| {
        bench.iter(|| rope(&x, 9, &positions, &table));
    });
    group.finish();

    let key = DropoutKey {
        seed: 1,
        step: 2,
        site: 3,
    };
    let mut group = criterion.benchmark_group("dropout");
    group.throughput(Throughput::Bytes(2 * ARRAY));
    group.bench_function("forward", |bench| bench.iter(|| dropout(&dy, 0.1, key)));
    group.finish();

    let (gate, up, dy) = (
        numbers(1024, 1536)?,
        numbers(1024, 1536)?,
        numbers(1024, 1536)?,
    );
    let mut group = criterion.benchmark_group("gated");
    let wide = (TOKENS * WIDE * size_of::<f32>()) as u64;
    for activation in [Activation::Silu, Activation::GeluTanh] {
        group.throughput(Throughput::Bytes(3 * wide));
        group.bench_function(format!("{activation:?} forward"), |bench| {
            bench.iter(|| gated(activation, &gate, &up));
        });
        group.throughput(Throughput::Bytes(5 * wide));
        group.bench_function(format!("{activation:?} backward"), |bench| {
            bench.iter(|| gated_backward(activation, &dy, &gate, &up));
        });
    }
    group.finish();
    Ok(())
}

/// A step of the optimiser on a matrix of the feed-forward unit.
fn optimiser(criterion: &mut Criterion) -> Result<()> {
    let zeros = || Tensor::zeros((WIDE, HIDDEN), DType::F32, &Device::Cpu);
    let (value, grad) = (numbers(WIDE, HIDDEN)?, numbers(WIDE, HIDDEN)?);
    let (first, second) = (zeros()?, zeros()?);
    let mut group = criterion.benchmark_group("AdamW");
    // All four are read, all but the gradient written.
    group.throughput(Throughput::Bytes(
        (7 * WIDE * HIDDEN * size_of::<f32>()) as u64,
    ));
    group.bench_function("step", |bench| {
        bench.iter(|| adamw_step(&value, &grad, &first, &second, &AdamW::default(), 1, 1.0));
    });
    let first = EightBit::zeros(&value, Map::Signed)?;
    let second = EightBit::zeros(&value, Map::Unsigned)?;
    // Of the moments a byte each.
    group.throughput(Throughput::Bytes(
        ((3 * size_of::<f32>() + 4) * WIDE * HIDDEN) as u64,
    ));
    group.bench_function("step in eight bits", |bench| {
        bench.iter(|| {
            let settings = AdamW::default();
            adamw_step_eight_bit(&value, &grad, &first, &second, &settings, 1, 1.0)
        });
    });
    group.finish();
    Ok(())
}

/// The groups of a block's projections with their branches, forward and backward, on every form of weights.
fn projections(criterion: &mut Criterion) -> Result<()> {
    let groups: [(&str, usize, &[usize]); 4] = [
        ("qkv", HIDDEN, &[HIDDEN, 192, 192]),
        ("o", HIDDEN, &[HIDDEN]),
        ("gate and up", HIDDEN, &[WIDE, WIDE]),
        ("down", WIDE, &[HIDDEN]),
    ];
    let of = |form: &str, rows: usize, columns: usize| -> Result<Weight> {
        let weight = (numbers(rows, columns)? * 0.05)?;
        let values = || weight.flatten_all()?.to_vec1::<f32>();
        Ok(match form {
            "bf16" => Weight::Dense(weight.to_dtype(DType::BF16)?),
            "NF4 in bf16" => Weight::Nf4(Nf4::quantize(&values()?, rows, columns, false)?)
                .computed_in(DType::BF16),
            "int8" => Weight::Int8(Int8::quantize(&values()?, rows, columns)?),
            _ => Weight::Dense(weight),
        })
    };
    for form in ["f32", "bf16", "NF4 in bf16", "int8"] {
        let mut bench_group = criterion.benchmark_group(format!("projections, {form}"));
        for (name, input, outputs) in groups {
            let x = numbers(TOKENS, input)?;
            let (mut weights, mut branches, mut dys, mut grads) = (vec![], vec![], vec![], vec![]);
            for output in outputs {
                weights.push(of(form, *output, input)?);
                branches.push(LowRank {
                    a: numbers(RANK, input)?,
                    b: numbers(*output, RANK)?,
                    scale: 2.0,
                    dora: None,
                    stacked: None,
                });
                dys.push(numbers(TOKENS, *output)?);
                grads.push((numbers(RANK, input)?, numbers(*output, RANK)?));
            }
            let group: Vec<Projection> = weights
                .iter()
                .zip(&branches)
                .map(|(weight, branch)| Projection {
                    weight,
                    branch: Some(branch),
                })
                .collect();
            let (_, kept) = lora_linear(&x, None, &group)?;
            let dense: usize = outputs
                .iter()
                .map(|output| 2 * TOKENS * input * output)
                .sum();
            let branch: usize = outputs
                .iter()
                .map(|output| 2 * TOKENS * RANK * (input + output))
                .sum();
            bench_group.throughput(Throughput::Elements((dense + branch) as u64));
            bench_group.bench_function(format!("{name} forward"), |bench| {
                bench.iter(|| lora_linear(&x, None, &group));
            });
            // The gradient of the input, and through the branch twice: of what it read and of itself.
            bench_group.throughput(Throughput::Elements((dense + 2 * branch) as u64));
            bench_group.bench_function(format!("{name} backward"), |bench| {
                bench.iter(|| {
                    let into = grads.iter().map(|(a, b)| {
                        Some(BranchGrads {
                            a,
                            b,
                            magnitude: None,
                        })
                    });
                    let into: Vec<_> = into.collect();
                    lora_linear_backward(&dys, &x, None, &group, &kept, &into)
                });
            });
        }
        bench_group.finish();
    }
    Ok(())
}

fn head(criterion: &mut Criterion) -> Result<()> {
    const VOCABULARY: usize = 49152;
    let (hidden, head) = (numbers(256, 576)?, Weight::Dense(numbers(VOCABULARY, 576)?));
    let targets: Vec<u32> = (0..256).map(|i| i * 191).collect();
    let product = 2 * 256 * 576 * VOCABULARY as u64;
    let mut group = criterion.benchmark_group("cross entropy");
    group.sample_size(10);
    for (name, products, grad_scale) in [("loss", 1, None), ("loss and gradient", 2, Some(1.0))] {
        group.throughput(Throughput::Elements(products * product));
        group.bench_function(name, |bench| {
            let want = Want {
                grad_scale,
                ..Want::default()
            };
            bench.iter(|| linear_cross_entropy(&hidden, &head, &targets, want));
        });
    }
    group.finish();
    Ok(())
}

fn benches(criterion: &mut Criterion) {
    let run = |criterion: &mut Criterion| -> Result<()> {
        roofline::measure(criterion, TOKENS * HIDDEN);
        projections(criterion)?;
        optimiser(criterion)?;
        for (rounded, kind) in [(false, "f32"), (true, "rounded to bf16")] {
            let name = |shape| format!("attention {shape}, {kind}");
            attentions(criterion, &name("4 x 256"), &[256; 4], rounded)?;
            attentions(criterion, &name("1 x 1024"), &[1024], rounded)?;
        }
        cached(criterion)?;
        elementwise(criterion)?;
        head(criterion)
    };
    run(criterion).expect("the shapes of the benches fit");
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .output_directory(&roofline::folder())
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(2))
        .sample_size(20);
    targets = benches
}

fn main() {
    let begun = SystemTime::now();
    all();
    Criterion::default().configure_from_args().final_summary();
    if let Some(table) = roofline::table(begun) {
        let file = roofline::folder().with_file_name("roofline.md");
        let written = std::fs::write(file, format!("{table}\n"));
        written
            .and_then(|()| writeln!(std::io::stdout(), "\n{table}"))
            .expect("the table is written");
    }
}
