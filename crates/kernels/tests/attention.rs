//! Attention against composed candle operations, finite differences and itself.

mod common;

use candle_core::{D, Device, Result, Tensor};
use common::{
    Generator, assert_close, assert_same, autograd, check_gradient, inner, on_threads, single,
};
use sparsam_kernels::Documents;
use sparsam_kernels::attention::{AttentionShape, attention, attention_backward, attention_cached};

fn shape(heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> AttentionShape {
    let scale = 1.7 / (head_dim as f64).sqrt();
    AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale,
        window,
        softcap: None,
        rounded: false,
    }
}

struct Problem {
    documents: Documents,
    shape: AttentionShape,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dout: Tensor,
}

impl Problem {
    fn new(seed: u64, lengths: &[usize], shape: AttentionShape) -> Result<Self> {
        let mut generator = Generator(seed);
        let documents = Documents::from_lengths(lengths);
        let mut rows = |width| generator.tensor(&[documents.tokens(), width]);
        let (width, kv_width) = (
            shape.heads * shape.head_dim,
            shape.kv_heads * shape.head_dim,
        );
        Ok(Self {
            q: rows(width)?,
            k: rows(kv_width)?,
            v: rows(kv_width)?,
            dout: rows(width)?,
            shape,
            documents,
        })
    }

    fn single(&self) -> Result<Self> {
        Ok(Self {
            documents: self.documents.clone(),
            q: single(&self.q)?,
            k: single(&self.k)?,
            v: single(&self.v)?,
            dout: single(&self.dout)?,
            ..*self
        })
    }

    /// Output, log-sum-exp, and the gradients of q, k and v.
    fn run(&self) -> Result<[Tensor; 5]> {
        let (output, sums) = attention(&self.q, &self.k, &self.v, &self.documents, &self.shape)?;
        let (dq, dk, dv) = attention_backward(
            &self.dout,
            &self.q,
            &self.k,
            &self.v,
            &output,
            &sums,
            &self.documents,
            &self.shape,
        )?;
        Ok([output, sums, dq, dk, dv])
    }
}

/// 0 where a query sees a key of its document, −∞ elsewhere.
fn mask(length: usize, window: Option<usize>) -> Result<Tensor> {
    let values: Vec<f64> = (0..length * length)
        .map(|i| (i / length, i % length))
        .map(|(query, key)| {
            let seen = key <= query && window.is_none_or(|window| query - key < window);
            if seen { 0.0 } else { f64::NEG_INFINITY }
        })
        .collect();
    Tensor::from_vec(values, (length, length), &Device::Cpu)
}

fn composed(q: &Tensor, k: &Tensor, v: &Tensor, problem: &Problem) -> Result<Tensor> {
    let AttentionShape {
        heads,
        kv_heads,
        head_dim,
        scale,
        window,
        softcap,
        ..
    } = problem.shape;
    let mut documents = Vec::new();
    for range in problem.documents.ranges() {
        let mask = mask(range.len(), window)?;
        let cut = |x: &Tensor, head: usize| {
            x.narrow(0, range.start, range.len())?
                .narrow(1, head * head_dim, head_dim)?
                .contiguous()
        };
        let mut outputs = Vec::new();
        for head in 0..heads {
            let kv_head = head / (heads / kv_heads);
            let scores = cut(q, head)?.matmul(&cut(k, kv_head)?.t()?)?;
            let scores = (scores * scale)?;
            let scores = match softcap {
                Some(cap) => ((scores / cap)?.tanh()? * cap)?,
                None => scores,
            };
            let scores = (scores + &mask)?;
            outputs.push(candle_nn::ops::softmax(&scores, D::Minus1)?.matmul(&cut(v, kv_head)?)?);
        }
        documents.push(Tensor::cat(&outputs, 1)?);
    }
    Tensor::cat(&documents, 0)
}

const NAMES: [&str; 5] = ["output", "sums", "dq", "dk", "dv"];

fn check(problem: &Problem, what: &str) -> Result<()> {
    let found = problem.run()?;
    let (output, grads) = autograd(
        &[&problem.q, &problem.k, &problem.v],
        &problem.dout,
        |inputs| composed(&inputs[0], &inputs[1], &inputs[2], problem),
    )?;
    assert_close(&format!("{what}: output"), &found[0], &output, 1e-12);
    for ((name, found), expected) in NAMES[2..].iter().zip(&found[2..]).zip(&grads) {
        assert_close(&format!("{what}: {name}"), found, expected, 1e-11);
    }
    if problem.shape.window == Some(1) {
        // Nothing but rounding is left of gradients that vanish.
        return Ok(());
    }
    let narrow = problem.single()?.run()?;
    for ((name, narrow), found) in NAMES.iter().zip(&narrow).zip(&found) {
        assert_close(&format!("{what}: {name} in f32"), narrow, found, 2e-5);
    }
    Ok(())
}

#[test]
fn equals_composed_operations_and_their_gradients() -> Result<()> {
    let cases: [(&[usize], AttentionShape); 9] = [
        (&[1], shape(1, 1, 1, None)),
        (&[5, 1, 3], shape(2, 1, 6, None)),
        (&[49, 130, 17], shape(4, 2, 20, None)),
        (&[200], shape(3, 1, 64, None)),
        (&[131], shape(2, 2, 40, Some(1))),
        (&[150, 33], shape(4, 2, 16, Some(37))),
        (&[300], shape(1, 1, 8, Some(100))),
        (&[70], shape(2, 1, 256, Some(1000))),
        (&[260, 1], shape(2, 1, 33, Some(64))),
    ];
    for (seed, (lengths, shape)) in cases.into_iter().enumerate() {
        check(
            &Problem::new(seed as u64, lengths, shape)?,
            &format!("{lengths:?} {shape:?}"),
        )?;
    }
    Ok(())
}

#[test]
fn equals_composed_operations_on_random_shapes() -> Result<()> {
    let mut generator = Generator(77);
    for seed in 0..12 {
        let lengths: Vec<usize> = (0..generator.between(1, 4))
            .map(|_| generator.between(1, 150))
            .collect();
        let (kv_heads, group) = (generator.between(1, 3), generator.between(1, 4));
        let window = (seed % 2 == 0).then(|| generator.between(1, 120));
        let shape = AttentionShape {
            softcap: (seed % 3 == 0).then_some(1.5),
            ..shape(kv_heads * group, kv_heads, generator.between(1, 50), window)
        };
        check(
            &Problem::new(seed, &lengths, shape)?,
            &format!("{lengths:?} {shape:?}"),
        )?;
    }
    Ok(())
}

#[test]
fn is_the_slope_of_its_forward_pass() -> Result<()> {
    for window in [None, Some(9)] {
        let problem = Problem::new(5, &[31, 20], shape(4, 2, 6, window))?;
        let Problem {
            documents,
            shape,
            q,
            k,
            v,
            dout,
        } = &problem;
        let [_, _, dq, dk, dv] = problem.run()?;
        let loss = |q: &Tensor, k: &Tensor, v: &Tensor| {
            inner(&attention(q, k, v, documents, shape)?.0, dout)
        };
        check_gradient("dq", q, &dq, |q| loss(q, k, v));
        check_gradient("dk", k, &dk, |k| loss(q, k, v));
        check_gradient("dv", v, &dv, |v| loss(q, k, v));
    }
    Ok(())
}

/// Documents packed into one batch are computed to the same bits as each alone.
#[test]
fn packed_documents_are_separate_ones() -> Result<()> {
    let lengths = [70, 1, 129, 48];
    let packed = Problem::new(6, &lengths, shape(6, 2, 24, None))?.single()?;
    let [output, sums, dq, dk, dv] = packed.run()?;
    for range in packed.documents.ranges() {
        let cut = |x: &Tensor| x.narrow(0, range.start, range.len())?.copy();
        let alone = Problem {
            documents: Documents::single(range.len()),
            shape: packed.shape,
            q: cut(&packed.q)?,
            k: cut(&packed.k)?,
            v: cut(&packed.v)?,
            dout: cut(&packed.dout)?,
        };
        let found = alone.run()?;
        assert_same("output", &found[0], &cut(&output)?);
        assert_same(
            "sums",
            &found[1],
            &sums.narrow(1, range.start, range.len())?.contiguous()?,
        );
        // How many runs a document's keys are cut into depends on the batch, and with it rounding.
        for (found, packed) in found[2..].iter().zip([&dq, &dk, &dv]) {
            assert_close("gradient", found, &cut(packed)?, 1e-5);
        }
    }
    Ok(())
}

#[test]
fn threads_do_not_matter() -> Result<()> {
    for (lengths, window) in [(vec![500], None), (vec![40, 200, 3], Some(50))] {
        let problem = Problem::new(8, &lengths, shape(6, 3, 32, window))?.single()?;
        let one = on_threads(1, || problem.run())?;
        for threads in [2, 5] {
            let more = on_threads(threads, || problem.run())?;
            for ((name, one), more) in NAMES.iter().zip(&one).zip(&more) {
                assert_same(name, one, more);
            }
        }
    }
    Ok(())
}

/// Scores far apart neither overflow nor lose the row's sum.
#[test]
fn great_scores_stay_finite() -> Result<()> {
    let mut problem = Problem::new(9, &[100], shape(2, 1, 16, None))?;
    problem.q = (&problem.q * 60.0)?;
    problem.k = (&problem.k * 60.0)?;
    let wide = problem.run()?;
    let narrow = problem.single()?.run()?;
    for (name, found) in NAMES.iter().zip(&narrow) {
        assert!(
            common::values(found)?.iter().all(|v| v.is_finite()),
            "{name} is not finite"
        );
    }
    assert_close("sums", &narrow[1], &wide[1], 1e-5);
    assert_close("output", &narrow[0], &wide[0], 2e-3);
    Ok(())
}

#[test]
fn a_cache_gives_what_the_whole_sequence_gives() -> Result<()> {
    for window in [None, Some(7)] {
        let problem = Problem::new(10, &[40], shape(6, 2, 20, window))?;
        let (output, _) = attention(
            &problem.q,
            &problem.k,
            &problem.v,
            &problem.documents,
            &problem.shape,
        )?;
        for (length, new) in [(1, 1), (17, 1), (40, 1), (40, 13), (25, 25)] {
            let slice = |x: &Tensor, from: usize| -> Result<Vec<f64>> {
                x.narrow(0, from, length - from)?.flatten_all()?.to_vec1()
            };
            let found = attention_cached(
                &slice(&problem.q, length - new)?,
                &slice(&problem.k, 0)?,
                &slice(&problem.v, 0)?,
                &problem.shape,
            )?;
            let found = Tensor::from_vec(found, (new, 120), &Device::Cpu)?;
            assert_close(
                "cached",
                &found,
                &output.narrow(0, length - new, new)?,
                1e-13,
            );
        }
    }
    Ok(())
}

#[test]
fn a_cache_in_f32_is_near() -> Result<()> {
    for softcap in [None, Some(1.5)] {
        let shape = AttentionShape {
            softcap,
            ..shape(9, 3, 64, None)
        };
        let problem = Problem::new(11, &[300], shape)?.single()?;
        let (output, _) = attention(
            &problem.q,
            &problem.k,
            &problem.v,
            &problem.documents,
            &problem.shape,
        )?;
        let all = |x: &Tensor| x.flatten_all()?.to_vec1::<f32>();
        let (q, k, v) = (all(&problem.q)?, all(&problem.k)?, all(&problem.v)?);
        let found = attention_cached(&q[299 * 576..], &k, &v, &problem.shape)?;
        let found = Tensor::from_vec(found, (1, 576), &Device::Cpu)?;
        assert_close("cached", &found, &output.narrow(0, 299, 1)?, 1e-5);
    }
    Ok(())
}

#[test]
fn refuses_what_does_not_fit() -> Result<()> {
    let problem = Problem::new(12, &[5], shape(4, 2, 4, None))?;
    let Problem {
        documents,
        q,
        k,
        v,
        dout,
        ..
    } = &problem;
    let with = |shape| attention(q, k, v, documents, &shape);
    assert!(with(problem.shape).is_ok());
    assert!(with(shape(4, 3, 4, None)).is_err());
    assert!(with(shape(4, 4, 4, None)).is_err());
    assert!(with(shape(4, 0, 4, None)).is_err());
    assert!(with(shape(4, 2, 4, Some(0))).is_err());
    let softcap = Some(0.0);
    assert!(
        with(AttentionShape {
            softcap,
            ..problem.shape
        })
        .is_err()
    );
    assert!(attention(q, k, v, &Documents::single(6), &problem.shape).is_err());
    let (output, sums) = with(problem.shape)?;
    let turned = sums.t()?.contiguous()?;
    assert!(
        attention_backward(dout, q, k, v, &output, &turned, documents, &problem.shape).is_err()
    );
    assert!(attention_cached(&[0f32; 16], &[0.0; 8], &[0.0; 7], &problem.shape).is_err());
    assert!(attention_cached(&[0f32; 32], &[0.0; 8], &[0.0; 8], &problem.shape).is_err());
    Ok(())
}
