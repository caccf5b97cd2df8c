//! Throughput of the kernels on the shape of a 135M model: four documents of 256 tokens.
//!
//! `cargo bench -p sparsam-kernels`; `SPARSAM_CPU_LEVEL` lowers the instruction level and
//! `RAYON_NUM_THREADS` the number of threads. Products are given in operations, two for each
//! multiplication with its addition and only for the keys that are seen; the rest in numbers.

use candle_core::{Device, Result, Tensor};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};

use sparsam_kernels::activation::{Activation, gated, gated_backward};
use sparsam_kernels::attention::{AttentionShape, attention, attention_backward, attention_cached};
use sparsam_kernels::cross_entropy::{Want, linear_cross_entropy};
use sparsam_kernels::dropout::{DropoutKey, dropout};
use sparsam_kernels::norm::{rms_norm, rms_norm_backward};
use sparsam_kernels::rope::{Positions, RopeTable, rope};
use sparsam_kernels::{Documents, Weight};

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
    group.throughput(Throughput::Elements(4 * 1024 * 576));
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
    group.throughput(Throughput::Elements(1024 * 576));
    group.bench_function("forward", |bench| {
        bench.iter(|| rms_norm(&x, &weight, 1e-5));
    });
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
    group.throughput(Throughput::Elements(1024 * 576));
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
    group.throughput(Throughput::Elements(1024 * 576));
    group.bench_function("forward", |bench| bench.iter(|| dropout(&dy, 0.1, key)));
    group.finish();

    let (gate, up, dy) = (
        numbers(1024, 1536)?,
        numbers(1024, 1536)?,
        numbers(1024, 1536)?,
    );
    let mut group = criterion.benchmark_group("gated");
    group.throughput(Throughput::Elements(1024 * 1536));
    for activation in [Activation::Silu, Activation::GeluTanh] {
        group.bench_function(format!("{activation:?} forward"), |bench| {
            bench.iter(|| gated(activation, &gate, &up));
        });
        group.bench_function(format!("{activation:?} backward"), |bench| {
            bench.iter(|| gated_backward(activation, &dy, &gate, &up));
        });
    }
    group.finish();
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
        .warm_up_time(std::time::Duration::from_millis(500))
        .measurement_time(std::time::Duration::from_secs(2))
        .sample_size(20);
    targets = benches
}
criterion_main!(all);
