//! What encoders have instead, against composed candle operations, finite differences and themselves: layer
//! norms, activations without a gate, attention in both directions.

mod common;

use candle_core::{D, DType, Device, Result, Tensor};
use common::{
    Generator, assert_close, assert_same, autograd, check_gradient, inner, on_threads, single,
};
use sparsam_kernels::Documents;
use sparsam_kernels::activation::Activation;
use sparsam_kernels::attention::{Bidirectional, bidirectional, bidirectional_backward};
use sparsam_kernels::gelu::{activate, activate_backward};
use sparsam_kernels::layer_norm::{Into, layer_norm, layer_norm_backward};

const EPS: f64 = 1e-5;

fn normed(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Result<Tensor> {
    let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
    let root = (centred.sqr()?.mean_keepdim(1)? + EPS)?.sqrt()?;
    let scaled = centred.broadcast_div(&root)?.broadcast_mul(weight)?;
    scaled.broadcast_add(bias)
}

#[test]
fn layer_norm_equals_composed_operations_and_their_gradients() -> Result<()> {
    let mut generator = Generator(1);
    for (rows, width) in [(1, 2), (3, 32), (65, 37), (33, 257), (2, 4096)] {
        let (x, dy) = (
            generator.tensor(&[rows, width])?,
            generator.tensor(&[rows, width])?,
        );
        let x = (x + 5.0)?;
        let (weight, bias) = (generator.tensor(&[width])?, generator.tensor(&[width])?);
        let residual = generator.tensor(&[rows, width])?;
        let (y, grads) = autograd(&[&x, &weight, &bias], &dy, |v| normed(&v[0], &v[1], &v[2]))?;
        let (found, moments) = layer_norm(&x, &weight, Some(&bias), EPS)?;
        assert_close("y", &found, &y, 1e-12);
        let (dw, db) = (generator.tensor(&[width])?, generator.tensor(&[width])?);
        let expected = [(&dw + &grads[1])?, (&db + &grads[2])?];
        let into = Into {
            weight: Some(&dw),
            bias: Some(&db),
        };
        let dx = layer_norm_backward(&dy, &x, &weight, &moments, Some(&residual), into)?;
        assert_close("dx", &dx, &(&grads[0] + &residual)?, 1e-10);
        assert_close("dw", &dw, &expected[0], 1e-12);
        assert_close("db", &db, &expected[1], 1e-12);
        let (without, _) = layer_norm(&x, &weight, None, EPS)?;
        assert_close("without a bias", &without.broadcast_add(&bias)?, &y, 1e-12);
    }
    Ok(())
}

#[test]
fn layer_norm_is_the_slope_of_its_forward_pass() -> Result<()> {
    let mut generator = Generator(2);
    let (x, dy) = (generator.tensor(&[5, 33])?, generator.tensor(&[5, 33])?);
    let (weight, bias) = (generator.tensor(&[33])?, generator.tensor(&[33])?);
    let (_, moments) = layer_norm(&x, &weight, Some(&bias), EPS)?;
    let zeros = || Tensor::zeros(33, DType::F64, &Device::Cpu);
    let (dw, db) = (zeros()?, zeros()?);
    let into = Into {
        weight: Some(&dw),
        bias: Some(&db),
    };
    let dx = layer_norm_backward(&dy, &x, &weight, &moments, None, into)?;
    let loss = |x: &Tensor, w: &Tensor, b: &Tensor| inner(&layer_norm(x, w, Some(b), EPS)?.0, &dy);
    check_gradient("dx", &x, &dx, |x| loss(x, &weight, &bias));
    check_gradient("dw", &weight, &dw, |w| loss(&x, w, &bias));
    check_gradient("db", &bias, &db, |b| loss(&x, &weight, b));
    Ok(())
}

#[test]
fn layer_norm_in_f32_is_near_and_the_same_on_any_number_of_threads() -> Result<()> {
    let mut generator = Generator(3);
    let (x, dy) = (
        generator.tensor(&[130, 384])?,
        generator.tensor(&[130, 384])?,
    );
    let (weight, bias) = (generator.tensor(&[384])?, generator.tensor(&[384])?);
    let run = |cast: fn(&Tensor) -> Result<Tensor>| -> Result<[Tensor; 4]> {
        let (x, dy, weight, bias) = (cast(&x)?, cast(&dy)?, cast(&weight)?, cast(&bias)?);
        let (dw, db) = (weight.zeros_like()?, weight.zeros_like()?);
        let (y, moments) = layer_norm(&x, &weight, Some(&bias), EPS)?;
        let into = Into {
            weight: Some(&dw),
            bias: Some(&db),
        };
        let dx = layer_norm_backward(&dy, &x, &weight, &moments, None, into)?;
        Ok([y, dx, dw, db])
    };
    let wide = run(|x| Ok(x.clone()))?;
    let (one, three) = (
        on_threads(1, || run(single))?,
        on_threads(3, || run(single))?,
    );
    for ((wide, one), three) in wide.iter().zip(&one).zip(&three) {
        assert_close("f32", one, wide, 2e-6);
        assert_same("threads", one, three);
    }
    Ok(())
}

const ALL: [Activation; 3] = [Activation::Silu, Activation::Gelu, Activation::GeluTanh];

fn activated(activation: Activation, x: &Tensor) -> Result<Tensor> {
    match activation {
        Activation::Silu => x.silu(),
        Activation::Gelu => x.gelu_erf(),
        Activation::GeluTanh => x.gelu(),
    }
}

#[test]
fn activations_equal_composed_operations_and_are_the_slope_of_their_forward_pass() -> Result<()> {
    let mut generator = Generator(4);
    for activation in ALL {
        for dims in [[3, 17], [70, 131]] {
            let x = (generator.tensor(&dims)? * 4.0)?;
            assert_close(
                "y",
                &activate(activation, &x)?,
                &activated(activation, &x)?,
                1e-13,
            );
        }
        let x = (generator.tensor(&[5, 13])? * 3.0)?;
        let dy = generator.tensor(&[5, 13])?;
        let dx = activate_backward(activation, &dy, &x)?;
        check_gradient("dx", &x, &dx, |x| inner(&activate(activation, x)?, &dy));
    }
    Ok(())
}

/// In f32 the normal distribution is an approximation of its own: within 1.5e-7 of the exact one everywhere.
#[test]
fn activations_in_f32_are_near_the_exact_ones() -> Result<()> {
    let values: Vec<f64> = (-60_000..60_000).map(|i| f64::from(i) * 2e-4).collect();
    let x = Tensor::from_vec(values, 120_000, &Device::Cpu)?;
    let x = single(&x)?.to_dtype(DType::F64)?;
    let ones = x.ones_like()?;
    for activation in ALL {
        let exact = common::values(&activate(activation, &x)?)?;
        let found = common::values(&activate(activation, &single(&x)?)?)?;
        let exact_slope = common::values(&activate_backward(activation, &ones, &x)?)?;
        let narrow = activate_backward(activation, &single(&ones)?, &single(&x)?)?;
        let slope = common::values(&narrow)?;
        let at = common::values(&x)?;
        for i in 0..at.len() {
            let size = at[i].abs().max(1.0);
            let off = (found[i] - exact[i]).abs();
            assert!(
                off <= 3e-7 * size,
                "{activation:?}({}) is off by {off:e}",
                at[i]
            );
            let off = (slope[i] - exact_slope[i]).abs();
            assert!(
                off <= 1e-6,
                "the slope of {activation:?} at {} is off by {off:e}",
                at[i]
            );
        }
    }
    Ok(())
}

fn shape(heads: usize, head_dim: usize, window: Option<usize>) -> Bidirectional {
    let scale = 1.7 / (head_dim as f64).sqrt();
    Bidirectional {
        heads,
        head_dim,
        scale,
        window,
    }
}

struct Problem {
    documents: Documents,
    shape: Bidirectional,
    /// q, k, v and the gradient of the output.
    rows: [Tensor; 4],
}

impl Problem {
    fn new(seed: u64, lengths: &[usize], shape: Bidirectional) -> Result<Self> {
        let mut generator = Generator(seed);
        let documents = Documents::from_lengths(lengths);
        let dims = [documents.tokens(), shape.heads * shape.head_dim];
        let mut rows = || generator.tensor(&dims);
        Ok(Self {
            rows: [rows()?, rows()?, rows()?, rows()?],
            documents,
            shape,
        })
    }

    fn single(&self) -> Result<Self> {
        let [q, k, v, dout] = &self.rows;
        Ok(Self {
            documents: self.documents.clone(),
            rows: [single(q)?, single(k)?, single(v)?, single(dout)?],
            shape: self.shape,
        })
    }

    /// Output, log-sum-exp, and the gradients of q, k and v.
    fn run(&self) -> Result<[Tensor; 5]> {
        let [q, k, v, dout] = &self.rows;
        let (output, sums) = bidirectional(q, k, v, &self.documents, &self.shape)?;
        let (dq, dk, dv) =
            bidirectional_backward(dout, q, k, v, &output, &sums, &self.documents, &self.shape)?;
        Ok([output, sums, dq, dk, dv])
    }

    fn composed(&self, q: &Tensor, k: &Tensor, v: &Tensor) -> Result<Tensor> {
        let Bidirectional {
            heads,
            head_dim,
            scale,
            window,
        } = self.shape;
        let mut documents = Vec::new();
        for range in self.documents.ranges() {
            let length = range.len();
            let mask: Vec<f64> = (0..length * length)
                .map(|i| (i / length).abs_diff(i % length))
                .map(|apart| match window {
                    Some(window) if apart > window => f64::NEG_INFINITY,
                    _ => 0.0,
                })
                .collect();
            let mask = Tensor::from_vec(mask, (length, length), &Device::Cpu)?;
            let mut outputs = Vec::new();
            for head in 0..heads {
                let cut = |x: &Tensor| {
                    let x = x.narrow(0, range.start, length)?;
                    x.narrow(1, head * head_dim, head_dim)?.contiguous()
                };
                let scores = (cut(q)?.matmul(&cut(k)?.t()?)? * scale)?;
                let p = candle_nn::ops::softmax(&(scores + &mask)?, D::Minus1)?;
                outputs.push(p.matmul(&cut(v)?)?);
            }
            documents.push(Tensor::cat(&outputs, 1)?);
        }
        Tensor::cat(&documents, 0)
    }
}

const NAMES: [&str; 5] = ["output", "sums", "dq", "dk", "dv"];

fn check(problem: &Problem, what: &str) -> Result<()> {
    let found = problem.run()?;
    let [q, k, v, dout] = &problem.rows;
    let (output, grads) = autograd(&[q, k, v], dout, |x| problem.composed(&x[0], &x[1], &x[2]))?;
    assert_close(&format!("{what}: output"), &found[0], &output, 1e-12);
    if problem.shape.window == Some(0) || problem.documents.longest() == 1 {
        // Nothing but rounding is left of the gradients of q and k, which vanish.
        return Ok(());
    }
    for ((name, found), expected) in NAMES[2..].iter().zip(&found[2..]).zip(&grads) {
        assert_close(&format!("{what}: {name}"), found, expected, 1e-11);
    }
    let narrow = problem.single()?.run()?;
    for ((name, narrow), found) in NAMES.iter().zip(&narrow).zip(&found) {
        assert_close(&format!("{what}: {name} in f32"), narrow, found, 2e-5);
    }
    Ok(())
}

#[test]
fn attention_equals_composed_operations_and_their_gradients() -> Result<()> {
    let cases: [(&[usize], Bidirectional); 9] = [
        (&[1], shape(1, 1, None)),
        (&[5, 1, 3], shape(2, 6, None)),
        (&[49, 130, 17], shape(4, 20, None)),
        (&[200], shape(3, 64, None)),
        (&[131], shape(2, 40, Some(0))),
        (&[131], shape(2, 40, Some(1))),
        (&[150, 33], shape(4, 16, Some(37))),
        (&[300], shape(1, 8, Some(64))),
        (&[70, 260, 1], shape(2, 33, Some(1000))),
    ];
    for (seed, (lengths, shape)) in cases.into_iter().enumerate() {
        let problem = Problem::new(seed as u64, lengths, shape)?;
        check(&problem, &format!("{lengths:?} {shape:?}"))?;
    }
    Ok(())
}

#[test]
fn attention_equals_composed_operations_on_random_shapes() -> Result<()> {
    let mut generator = Generator(77);
    for seed in 0..12 {
        let lengths: Vec<usize> = (0..generator.between(1, 4))
            .map(|_| generator.between(2, 150))
            .collect();
        let window = (seed % 2 == 0).then(|| generator.between(1, 90));
        let shape = shape(generator.between(1, 5), generator.between(1, 50), window);
        check(
            &Problem::new(seed, &lengths, shape)?,
            &format!("{lengths:?} {shape:?}"),
        )?;
    }
    Ok(())
}

#[test]
fn attention_is_the_slope_of_its_forward_pass() -> Result<()> {
    for window in [None, Some(9)] {
        let problem = Problem::new(5, &[31, 20], shape(4, 6, window))?;
        let [q, k, v, dout] = &problem.rows;
        let [_, _, dq, dk, dv] = problem.run()?;
        let loss = |q: &Tensor, k: &Tensor, v: &Tensor| {
            inner(
                &bidirectional(q, k, v, &problem.documents, &problem.shape)?.0,
                dout,
            )
        };
        check_gradient("dq", q, &dq, |q| loss(q, k, v));
        check_gradient("dk", k, &dk, |k| loss(q, k, v));
        check_gradient("dv", v, &dv, |v| loss(q, k, v));
    }
    Ok(())
}

/// Documents packed into one batch are computed to the same bits as each alone, on any number of threads.
#[test]
fn packed_documents_are_separate_ones_and_threads_do_not_matter() -> Result<()> {
    for window in [None, Some(20)] {
        let packed = Problem::new(6, &[70, 1, 129, 48], shape(6, 24, window))?.single()?;
        let all = on_threads(1, || packed.run())?;
        for (one, three) in all.iter().zip(&on_threads(3, || packed.run())?) {
            assert_same("threads", one, three);
        }
        for range in packed.documents.ranges() {
            let cut = |x: &Tensor| x.narrow(0, range.start, range.len())?.copy();
            let [q, k, v, dout] = &packed.rows;
            let alone = Problem {
                documents: Documents::single(range.len()),
                shape: packed.shape,
                rows: [cut(q)?, cut(k)?, cut(v)?, cut(dout)?],
            };
            let found = alone.run()?;
            for index in [0, 2, 3, 4] {
                assert_same(NAMES[index], &found[index], &cut(&all[index])?);
            }
        }
    }
    Ok(())
}

#[test]
fn refuses_what_does_not_fit() -> Result<()> {
    let problem = Problem::new(12, &[5], shape(4, 4, None))?;
    let [q, k, v, _] = &problem.rows;
    let with = |shape: &Bidirectional| bidirectional(q, k, v, &problem.documents, shape);
    assert!(with(&problem.shape).is_ok());
    assert!(with(&shape(4, 3, None)).is_err());
    assert!(with(&shape(0, 4, None)).is_err());
    assert!(bidirectional(q, k, v, &Documents::single(6), &problem.shape).is_err());
    let weight = Tensor::ones(16, DType::F64, &Device::Cpu)?;
    assert!(layer_norm(q, &weight, None, EPS).is_ok());
    assert!(layer_norm(q, &weight.narrow(0, 0, 15)?, None, EPS).is_err());
    assert!(activate_backward(Activation::Gelu, &weight, q).is_err());
    Ok(())
}
