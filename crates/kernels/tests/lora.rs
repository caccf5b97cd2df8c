//! Low-rank branches, plain and DoRA's, against composed candle operations and finite differences.

mod common;

use candle_core::{DType, Device, Result, Tensor, Var};
use common::{Generator, assert_close, assert_same, check_gradient, inner, on_threads, single};
use sparsam_kernels::Weight;
use sparsam_kernels::activation::{Activation, gated_backward, gated_to_bf16};
use sparsam_kernels::dora::{Dora, row_norms};
use sparsam_kernels::host;
use sparsam_kernels::int8::Int8;
use sparsam_kernels::lora::{
    BranchGrads, LowRank, Projection, lora_gated, lora_gated_backward, lora_linear,
    lora_linear_backward, takes_bf16,
};
use sparsam_kernels::nf4::Nf4;

const TOKENS: usize = 15;
const INPUT: usize = 24;
const RANK: usize = 3;
const SCALE: f64 = 1.75;
const OUT: [usize; 3] = [18, 7, 11];

/// A group of three projections: one with DoRA, one plain, one without a branch.
struct Problem {
    x: Tensor,
    dropped: Option<Tensor>,
    weights: Vec<Tensor>,
    branches: Vec<Option<LowRank>>,
    dys: Vec<Tensor>,
}

impl Problem {
    fn new(seed: u64, with_dropout: bool) -> Result<Self> {
        let mut generator = Generator(seed);
        let x = generator.tensor(&[TOKENS, INPUT])?;
        let dropped = if with_dropout {
            Some((&x * generator.tensor(&[TOKENS, INPUT])?)?)
        } else {
            None
        };
        let (mut weights, mut branches, mut dys) = (Vec::new(), Vec::new(), Vec::new());
        for (index, out) in OUT.into_iter().enumerate() {
            let weight = generator.tensor(&[out, INPUT])?;
            let a = generator.tensor(&[RANK, INPUT])?;
            let b = generator.tensor(&[out, RANK])?;
            let dora = if index == 0 {
                let dense = Weight::Dense(weight.clone());
                let norms = row_norms(&dense, &a, &b, SCALE)?;
                let magnitude = (&norms * 1.2)?.add(&generator.tensor(&[out])?)?;
                Some(Dora { magnitude, norms })
            } else {
                None
            };
            branches.push((index < 2).then_some(LowRank {
                a,
                b,
                scale: SCALE,
                dora,
                stacked: None,
            }));
            weights.push(weight);
            dys.push(generator.tensor(&[TOKENS, out])?);
        }
        Ok(Self {
            x,
            dropped,
            weights,
            branches,
            dys,
        })
    }

    fn weights(&self) -> Vec<Weight> {
        self.weights.iter().cloned().map(Weight::Dense).collect()
    }

    /// `Σ y ∘ dy` over all outputs.
    fn loss(&self) -> Result<f64> {
        let weights = self.weights();
        let group = group(&weights, &self.branches);
        let (ys, _) = lora_linear(&self.x, self.dropped.as_ref(), &group)?;
        ys.iter().zip(&self.dys).map(|(y, dy)| inner(y, dy)).sum()
    }

    fn gradients(&self) -> Result<Gradients> {
        let weights = self.weights();
        let group = group(&weights, &self.branches);
        let (_, kept) = lora_linear(&self.x, self.dropped.as_ref(), &group)?;
        let own: Vec<Option<[Tensor; 3]>> = self
            .branches
            .iter()
            .map(|branch| {
                let Some(branch) = branch else {
                    return Ok(None);
                };
                let out = branch.b.dims()[0];
                let magnitude = Tensor::zeros(out, branch.b.dtype(), branch.b.device())?;
                Ok(Some([
                    branch.a.zeros_like()?,
                    branch.b.zeros_like()?,
                    magnitude,
                ]))
            })
            .collect::<Result<_>>()?;
        let grads: Vec<_> = own
            .iter()
            .zip(&self.branches)
            .map(|(own, branch)| {
                let dora = branch.as_ref().is_some_and(|branch| branch.dora.is_some());
                own.as_ref().map(|[a, b, magnitude]| BranchGrads {
                    a,
                    b,
                    magnitude: dora.then_some(magnitude),
                })
            })
            .collect();
        let dx = lora_linear_backward(
            &self.dys,
            &self.x,
            self.dropped.as_ref(),
            &group,
            &kept,
            &grads,
        )?;
        Ok(Gradients {
            x: dx.x,
            dropped: dx.branch_x,
            own,
        })
    }
}

struct Gradients {
    x: Tensor,
    dropped: Option<Tensor>,
    own: Vec<Option<[Tensor; 3]>>,
}

fn group<'a>(weights: &'a [Weight], branches: &'a [Option<LowRank>]) -> Vec<Projection<'a>> {
    weights
        .iter()
        .zip(branches)
        .map(|(weight, branch)| Projection {
            weight,
            branch: branch.as_ref(),
        })
        .collect()
}

/// The outputs by composed operations: PEFT's formula, term by term.
fn composed(problem: &Problem) -> Result<Vec<Tensor>> {
    let dropped = problem.dropped.as_ref().unwrap_or(&problem.x);
    let outputs = problem
        .weights
        .iter()
        .zip(&problem.branches)
        .map(|(weight, branch)| {
            let base = problem.x.matmul(&weight.t()?)?;
            let Some(branch) = branch else {
                return Ok(base);
            };
            let low = (dropped.matmul(&branch.a.t()?)?.matmul(&branch.b.t()?)? * SCALE)?;
            let Some(dora) = &branch.dora else {
                return base + low;
            };
            let whole = (weight + (branch.b.matmul(&branch.a)? * SCALE)?)?;
            let norms = whole.sqr()?.sum(1)?.sqrt()?;
            let gain = (&dora.magnitude / norms)?;
            let frozen = dropped
                .matmul(&weight.t()?)?
                .broadcast_mul(&(&gain - 1.0)?)?;
            (base + frozen)? + low.broadcast_mul(&gain)?
        });
    outputs.collect()
}

#[test]
fn outputs_equal_the_composed_formula() -> Result<()> {
    for with_dropout in [false, true] {
        let problem = Problem::new(1, with_dropout)?;
        let weights = problem.weights();
        let group = group(&weights, &problem.branches);
        let (ys, _) = lora_linear(&problem.x, problem.dropped.as_ref(), &group)?;
        for (index, (y, expected)) in ys.iter().zip(composed(&problem)?).enumerate() {
            assert_close(&format!("output {index}"), y, &expected, 1e-13);
        }
    }
    Ok(())
}

/// Where the products round their operands, operands that are rounded already change no bit; elsewhere they are
/// refused.
#[test]
fn inputs_and_gradients_of_bf16_change_no_bit() -> Result<()> {
    let mut generator = Generator(31);
    let (tokens, input) = (53, 70);
    let outs = [48, 16, 34];
    let narrow = |x: &Tensor| x.to_dtype(DType::BF16);
    let mut random = |dims: &[usize]| single(&generator.tensor(dims)?);
    let x = random(&[tokens, input])?;
    let (mut weights, mut branches, mut dys) = (Vec::new(), Vec::new(), Vec::new());
    for (index, out) in outs.into_iter().enumerate() {
        weights.push(Weight::Dense(narrow(&random(&[out, input])?)?));
        branches.push((index != 1).then_some(LowRank {
            a: random(&[4 + index, input])?,
            b: random(&[out, 4 + index])?,
            scale: SCALE,
            dora: None,
            stacked: None,
        }));
        dys.push(random(&[tokens, out])?);
    }
    let group = group(&weights, &branches);
    let dys_16 = dys.iter().map(narrow).collect::<Result<Vec<_>>>()?;
    if !takes_bf16(&group, false) {
        assert!(lora_linear(&narrow(&x)?, None, &group).is_err());
        return Ok(());
    }
    let pass = |x: &Tensor, dys: &[Tensor]| -> Result<Vec<Tensor>> {
        let (mut all, kept) = lora_linear(x, None, &group)?;
        let zeros = |like: &Tensor| Tensor::zeros(like.dims(), DType::F32, &Device::Cpu);
        let mut grads: Vec<Option<(Tensor, Tensor)>> = Vec::new();
        for branch in &branches {
            grads.push(match branch {
                Some(branch) => Some((zeros(&branch.a)?, zeros(&branch.b)?)),
                None => None,
            });
        }
        let into: Vec<_> = grads
            .iter()
            .map(|grads| {
                let (a, b) = grads.as_ref()?;
                Some(BranchGrads {
                    a,
                    b,
                    magnitude: None,
                })
            })
            .collect();
        let dx = lora_linear_backward(dys, x, None, &group, &kept, &into)?;
        all.push(dx.x);
        all.extend(
            grads
                .iter()
                .flatten()
                .flat_map(|(a, b)| [a.clone(), b.clone()]),
        );
        Ok(all)
    };
    let expected = pass(&x, &dys)?;
    for found in [pass(&narrow(&x)?, &dys)?, pass(&narrow(&x)?, &dys_16)?] {
        for (found, expected) in found.iter().zip(&expected) {
            assert_same("of bf16", found, expected);
        }
    }
    Ok(())
}

/// Where the gradients of a plain branch go.
fn grads(of: Option<&[Tensor; 2]>) -> Option<BranchGrads<'_>> {
    of.map(|[a, b]| BranchGrads {
        a,
        b,
        magnitude: None,
    })
}

/// What is handed on in pieces is, bit for bit, what is stored whole first; on whatever shapes, with a branch or without.
#[test]
fn a_gated_product_in_pieces_is_the_same() -> Result<()> {
    let activation = Activation::Silu;
    for (seed, tokens, input, wide, out) in [
        (1, 53, 70, 34, 48),
        (2, 7, 64, 1600, 20),
        (3, 130, 2600, 96, 64),
    ] {
        let mut generator = Generator(seed);
        let narrow = |x: &Tensor| x.to_dtype(DType::BF16);
        let mut random = |dims: &[usize]| single(&generator.tensor(dims)?);
        let x = narrow(&random(&[tokens, input])?)?;
        let (mut weights, mut branches) = (Vec::new(), Vec::new());
        for (index, [to, from]) in [[wide, input], [wide, input], [out, wide]]
            .into_iter()
            .enumerate()
        {
            weights.push(Weight::Dense(narrow(&random(&[to, from])?)?));
            branches.push((index as u64 != seed % 3).then_some(LowRank {
                a: random(&[3 + index, from])?,
                b: random(&[to, 3 + index])?,
                scale: SCALE,
                dora: None,
                stacked: None,
            }));
        }
        let all = group(&weights, &branches);
        let [gate, up, down] = &all[..] else {
            unreachable!("there are three")
        };
        let one = std::slice::from_ref(down);
        if !takes_bf16(&all, false) {
            assert!(lora_gated(activation, &x, None, [gate, up]).is_err());
            continue;
        }
        let (outputs, kept) = lora_linear(&x, None, &all[..2])?;
        let expected = gated_to_bf16(activation, &outputs[0], &outputs[1])?;
        let (found, also_kept) = lora_gated(activation, &x, None, [gate, up])?;
        for (found, expected) in found.iter().zip(&expected) {
            assert_same("of the product", found, expected);
        }
        assert_eq!(format!("{kept:?}"), format!("{also_kept:?}"));

        let [product, gate, up] = &found;
        let (_, kept) = lora_linear(product, None, one)?;
        // Two tensors each to add the gradients of `down`'s branch to, where it has one.
        let zeros = || -> Result<Option<[Tensor; 2]>> {
            let of = |branch: &LowRank| Ok([branch.a.zeros_like()?, branch.b.zeros_like()?]);
            branches[2].as_ref().map(of).transpose()
        };
        let (whole, in_pieces) = (zeros()?, zeros()?);
        let dys = [random(&[tokens, out])?];
        let dx = lora_linear_backward(&dys, product, None, one, &kept, &[grads(whole.as_ref())])?.x;
        let (dgate, dup) = gated_backward(activation, &dx, gate, up)?;
        let of_unit = [gate.clone(), up.clone()];
        let found = lora_gated_backward(
            activation,
            &dys,
            product,
            None,
            one,
            &kept,
            &[grads(in_pieces.as_ref())],
            of_unit,
            |dx| Ok(dx.x),
        )?;
        assert_same("of gate's gradient", &found.0, &dgate);
        assert_same("of up's gradient", &found.1, &dup);
        for (found, expected) in in_pieces.iter().flatten().zip(whole.iter().flatten()) {
            assert_same("of a branch's gradient", found, expected);
        }
    }
    Ok(())
}

/// The norms are held fixed, here as in the adjoint: `norms` is data of the problem.
#[test]
fn adjoints_equal_finite_differences() -> Result<()> {
    for with_dropout in [false, true] {
        let problem = Problem::new(2, with_dropout)?;
        let gradients = problem.gradients()?;
        let with = |change: &dyn Fn(&mut Problem)| {
            let mut problem = Problem::new(2, with_dropout)?;
            change(&mut problem);
            problem.loss()
        };
        check_gradient("x", &problem.x, &gradients.x, |x| {
            with(&|p| p.x = x.clone())
        });
        if let (Some(at), Some(gradient)) = (&problem.dropped, &gradients.dropped) {
            check_gradient("dropped x", at, gradient, |x| {
                with(&|p| p.dropped = Some(x.clone()))
            });
        } else {
            assert!(!with_dropout && gradients.dropped.is_none());
        }
        for (index, own) in gradients.own.iter().enumerate() {
            let (Some(branch), Some([a, b, magnitude])) = (&problem.branches[index], own) else {
                continue;
            };
            let set = |change: &dyn Fn(&mut LowRank)| {
                with(&|p| change(p.branches[index].as_mut().expect("a branch")))
            };
            check_gradient("A", &branch.a, a, |value| set(&|l| l.a = value.clone()));
            check_gradient("B", &branch.b, b, |value| set(&|l| l.b = value.clone()));
            if let Some(dora) = &branch.dora {
                check_gradient("magnitude", &dora.magnitude, magnitude, |value| {
                    set(&|l| l.dora.as_mut().expect("DoRA").magnitude = value.clone())
                });
            }
        }
    }
    Ok(())
}

/// Against autograd, with the norm taken out of the graph as PEFT takes it out.
#[test]
fn dora_adjoints_equal_autograd_with_the_norm_detached() -> Result<()> {
    let problem = Problem::new(3, false)?;
    let gradients = problem.gradients()?;
    let branch = problem.branches[0].as_ref().expect("a branch");
    let dora = branch.dora.as_ref().expect("DoRA");
    let (a, b) = (Var::from_tensor(&branch.a)?, Var::from_tensor(&branch.b)?);
    let m = Var::from_tensor(&dora.magnitude)?;
    let whole = (&problem.weights[0] + (b.matmul(&a)? * SCALE)?)?;
    let norms = whole.sqr()?.sum(1)?.sqrt()?.detach();
    let y = problem
        .x
        .matmul(&whole.t()?)?
        .broadcast_mul(&(m.as_tensor() / norms)?)?;
    let found = (y * &problem.dys[0])?.sum_all()?.backward()?;
    let own = gradients.own[0].as_ref().expect("gradients");
    for ((what, variable), own) in [("A", &a), ("B", &b), ("magnitude", &m)]
        .into_iter()
        .zip(own)
    {
        let expected = found.get(variable).expect("the graph reaches it");
        assert_close(what, own, expected, 1e-12);
    }
    Ok(())
}

/// Norms of the stored numbers, whatever form they are stored in, over a block's edge.
#[test]
fn row_norms_are_those_of_the_stored_weight() -> Result<()> {
    let mut generator = Generator(4);
    let (out, input) = (300, 70);
    let dense = single(&generator.tensor(&[out, input])?)?;
    let a = single(&generator.tensor(&[RANK, input])?)?;
    let b = single(&generator.tensor(&[out, RANK])?)?;
    let values: Vec<f32> = dense.flatten_all()?.to_vec1()?;
    let weights = [
        Weight::Dense(dense.clone()),
        Weight::Dense(dense.to_dtype(candle_core::DType::BF16)?),
        Weight::Int8(Int8::quantize(&values, out, input)?),
        Weight::Nf4(Nf4::quantize(&values, out, input, false)?),
        Weight::Nf4(Nf4::quantize(&values, out, input, true)?),
    ];
    for weight in &weights {
        let norms = row_norms(weight, &a, &b, SCALE)?;
        let whole = (weight.dequantize()? + (b.matmul(&a)? * SCALE)?)?;
        let expected = whole
            .to_dtype(candle_core::DType::F64)?
            .sqr()?
            .sum(1)?
            .sqrt()?;
        assert_close("norms", &norms, &expected, 1e-6);
        let again = on_threads(3, || row_norms(weight, &a, &b, SCALE))?;
        common::assert_same("norms on three threads", &again, &norms);
    }
    Ok(())
}

/// A branch that all but cancels its weight: the expanded square would have no digit left.
#[test]
fn row_norms_survive_cancellation() -> Result<()> {
    let mut generator = Generator(5);
    let (a, b) = (
        generator.tensor(&[RANK, 64])?,
        generator.tensor(&[9, RANK])?,
    );
    let rest = (generator.tensor(&[9, 64])? * 1e-5)?;
    let weight = (&rest - (b.matmul(&a)? * SCALE)?)?;
    let weight = Weight::Dense(single(&weight)?);
    let norms = row_norms(&weight, &single(&a)?, &single(&b)?, SCALE)?;
    // Rounding of W and B A themselves, 6e-8 of numbers up to 12, is what is left.
    assert_close("norms", &norms, &rest.sqr()?.sum(1)?.sqrt()?, 0.1);
    Ok(())
}

/// A row of zeros, as pruned models have, gives zeros and no gradient instead of not-a-number.
#[test]
fn a_row_of_zeros_stays_zero() -> Result<()> {
    let mut problem = Problem::new(6, false)?;
    let zeros = host::zeros((1, INPUT), candle_core::DType::F64)?;
    problem.weights[0] = Tensor::cat(&[&zeros, &problem.weights[0].narrow(0, 1, OUT[0] - 1)?], 0)?;
    let branch = problem.branches[0].as_mut().expect("a branch");
    branch.b = branch.b.zeros_like()?;
    let norms = row_norms(
        &Weight::Dense(problem.weights[0].clone()),
        &branch.a,
        &branch.b,
        SCALE,
    )?;
    branch.dora = Some(Dora {
        magnitude: norms.copy()?,
        norms,
    });
    let gradients = problem.gradients()?;
    let weights = problem.weights();
    let (ys, _) = lora_linear(&problem.x, None, &group(&weights, &problem.branches))?;
    let [a, b, magnitude] = gradients.own[0].as_ref().expect("gradients");
    for tensor in [&ys[0], &gradients.x, a, b, magnitude] {
        assert!(
            common::values(tensor)?
                .iter()
                .all(|value| value.is_finite())
        );
    }
    // At the start the magnitude is the norm: the rescaled weight is the weight.
    assert_close(
        "output",
        &ys[0],
        &problem.x.matmul(&problem.weights[0].t()?)?,
        1e-13,
    );
    Ok(())
}

#[test]
fn shapes_that_do_not_fit_are_refused() -> Result<()> {
    let mut problem = Problem::new(7, false)?;
    let dora = problem.branches[0]
        .as_mut()
        .and_then(|branch| branch.dora.as_mut());
    dora.expect("DoRA").magnitude = host::zeros(5, candle_core::DType::F64)?;
    let error = problem.loss().expect_err("a magnitude of five rows");
    assert!(error.to_string().contains("magnitude of [5]"), "{error}");
    Ok(())
}
