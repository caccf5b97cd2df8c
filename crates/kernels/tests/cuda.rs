//! Every operation on an NVIDIA GPU against its portable twin on the CPU: fresh random inputs of odd shapes, and
//! memory that held NaN before, so that a number which is not written shows.
//!
//! `SPARSAM_SEED` repeats a run. Where no GPU can be opened the tests say so and end, unless
//! `SPARSAM_CUDA=required`.
#![cfg(feature = "cuda")]

mod common;

use std::sync::{Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device, Result, Tensor};
use common::{Generator, assert_same, single, values};
use sparsam_kernels::activation::{
    Activation, gated, gated_backward, gated_backward_in_place, gated_to_bf16,
};
use sparsam_kernels::adamw::all::{Moments, Update, adamw_all};
use sparsam_kernels::adamw::eight_bit::{EightBit, Map, adamw_step_eight_bit};
use sparsam_kernels::adamw::{AdamW, adamw_step, grad_norm_squared};
use sparsam_kernels::attention::{
    AttentionShape, Bidirectional, Cache, attention, attention_backward, attention_next,
    bidirectional, bidirectional_backward, on_tensor_cores,
};
use sparsam_kernels::cross_entropy::{
    IGNORE, Want, begin_class_loss, linear_cross_entropy, linear_token_losses,
};
use sparsam_kernels::dora::{Dora, row_norms};
use sparsam_kernels::dropout::{DropoutKey, dropout};
use sparsam_kernels::embedding::add_rows;
use sparsam_kernels::gelu::{activate, activate_backward};
use sparsam_kernels::ggml::{Ggml, GgmlType};
use sparsam_kernels::host::{clear, copy_into};
use sparsam_kernels::int8::Int8;
use sparsam_kernels::layer_norm::{Into, layer_norm, layer_norm_backward};
use sparsam_kernels::linear::{
    add_bias, add_in_place, bias_grad, linear, linear_input_grad, linear_weight_grad,
};
use sparsam_kernels::lora::{
    BranchGrads, InputGrads, LowRank, Projection, Stacked, lora_gated, lora_gated_backward,
    lora_kept, lora_linear, lora_linear_backward, takes_bf16,
};
use sparsam_kernels::nf4::Nf4;
use sparsam_kernels::norm::{rms_norm, rms_norm_backward, rms_norm_to_bf16};
use sparsam_kernels::parked::Parked;
use sparsam_kernels::rope::{
    Positions, RopeTable, rope, rope_backward, rope_backward_to_bf16, rope_to_bf16,
};
use sparsam_kernels::{Documents, Weight};

/// One GPU for one test at a time.
struct Gpu {
    device: Device,
    generator: Generator,
    _turn: MutexGuard<'static, ()>,
}

impl Gpu {
    #[expect(
        clippy::print_stderr,
        reason = "the seed repeats a run, and a test that compares nothing says so"
    )]
    fn open() -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        static OPENED: std::sync::OnceLock<Option<Device>> = std::sync::OnceLock::new();
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let device = OPENED.get_or_init(|| match sparsam_kernels::cuda::open(0) {
            Ok(device) => Some(device),
            Err(error) => {
                assert!(
                    std::env::var("SPARSAM_CUDA").as_deref() != Ok("required"),
                    "no GPU: {error}"
                );
                eprintln!("no GPU can be opened, nothing is compared: {error}");
                None
            }
        });
        let seed = std::env::var("SPARSAM_SEED")
            .ok()
            .and_then(|seed| seed.parse().ok());
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        let seed = seed.unwrap_or_else(|| now.map_or(1, |now| now.subsec_nanos().into()));
        eprintln!("SPARSAM_SEED={seed}");
        device.clone().map(|device| Self {
            device,
            generator: Generator(seed),
            _turn: turn,
        })
    }

    /// f32 numbers here and the same there.
    fn pair(&mut self, dims: &[usize]) -> Result<(Tensor, Tensor)> {
        let here = single(&self.generator.tensor(dims)?)?;
        let there = here.to_device(&self.device)?;
        Ok((here, there))
    }

    /// Leaves NaN in the memory that the next operations get.
    fn poison(&self) -> Result<()> {
        for count in [1 << 22, 1 << 16, 1 << 12, 1 << 8] {
            let blocks: Vec<Tensor> = (0..8)
                .map(|_| Tensor::full(f32::NAN, count, &self.device))
                .collect::<Result<_>>()?;
            drop(blocks);
        }
        Ok(())
    }

    /// Attention and its adjoint here and there, of q, k, v and the gradient of the output, each here and there.
    /// `scored`: whether the scores have any say; where a query sees itself alone, their gradients are rounding alone.
    fn compare_attention(
        &self,
        [q, k, v, d]: [(Tensor, Tensor); 4],
        what: &str,
        tolerance: f64,
        scored: bool,
        forward: impl Fn(&Tensor, &Tensor, &Tensor) -> Result<(Tensor, Tensor)>,
        backward: impl Fn(
            &Tensor,
            &Tensor,
            &Tensor,
            &Tensor,
            &Tensor,
            &Tensor,
        ) -> Result<(Tensor, Tensor, Tensor)>,
    ) -> Result<()> {
        self.poison()?;
        let (y, sums) = forward(&q.0, &k.0, &v.0)?;
        let (gy, gsums) = forward(&q.1, &k.1, &v.1)?;
        near(&format!("attention {what}"), &gy, &y, tolerance);
        near(&format!("log-sums {what}"), &gsums, &sums, SUMS);
        let here = backward(&d.0, &q.0, &k.0, &v.0, &y, &sums)?;
        let there = backward(&d.1, &q.1, &k.1, &v.1, &gy, &gsums)?;
        if scored {
            near(&format!("dq {what}"), &there.0, &here.0, tolerance);
            near(&format!("dk {what}"), &there.1, &here.1, tolerance);
        }
        near(&format!("dv {what}"), &there.2, &here.2, tolerance);
        Ok(())
    }

    /// [`Gpu::compare_attention`] of decoders.
    fn compare_causal(
        &self,
        inputs: [(Tensor, Tensor); 4],
        documents: &Documents,
        shape: &AttentionShape,
        tolerance: f64,
    ) -> Result<()> {
        self.compare_attention(
            inputs,
            &format!("{shape:?} {:?}", documents.ranges().collect::<Vec<_>>()),
            tolerance,
            shape.window != Some(1),
            |q, k, v| attention(q, k, v, documents, shape),
            |d, q, k, v, y, sums| attention_backward(d, q, k, v, y, sums, documents, shape),
        )
    }

    fn lengths(&mut self, documents: usize, most: usize) -> Vec<usize> {
        (0..documents)
            .map(|_| self.generator.between(1, most))
            .collect()
    }
}

/// ‖found − expected‖ / ‖expected‖ is at most `tolerance`.
#[track_caller]
fn near(what: &str, found: &Tensor, expected: &Tensor, tolerance: f64) {
    assert_eq!(found.dims(), expected.dims(), "{what}: shapes differ");
    let found = values(&found.to_device(&Device::Cpu).unwrap()).unwrap();
    let expected = values(expected).unwrap();
    let apart: f64 = found
        .iter()
        .zip(&expected)
        .map(|(a, b)| (a - b).powi(2))
        .sum();
    let length: f64 = expected.iter().map(|b| b * b).sum();
    let error = (apart / length.max(1e-12)).sqrt();
    assert!(
        error <= tolerance,
        "{what}: relative error {error:e}, at most {tolerance:e}"
    );
}

const EXACT: f64 = 3e-6;
const SUMS: f64 = 2e-5;
/// Of a product whose operands are rounded to bf16.
const ROUNDED: f64 = 8e-3;
/// Of one behind another such.
const TWICE_ROUNDED: f64 = 1.6e-2;

#[test]
fn norms() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    // One number alone is divided by itself, and its gradient is rounding alone.
    for (rows, width) in [(1, 3), (7, 33), (130, 192), (65, 2048), (33, 4099)] {
        let (x, gx) = gpu.pair(&[rows, width])?;
        let (w, gw) = gpu.pair(&[width])?;
        let (dy, gdy) = gpu.pair(&[rows, width])?;
        let (r, gr) = gpu.pair(&[rows, width])?;
        let (into, ginto) = gpu.pair(&[width])?;
        gpu.poison()?;
        let (y, roots) = rms_norm(&x, &w, 1e-5)?;
        let (gy, groots) = rms_norm(&gx, &gw, 1e-5)?;
        near("rms_norm", &gy, &y, EXACT);
        near("roots", &groots, &roots, EXACT);
        let (y_16, roots_16) = rms_norm_to_bf16(&gx, &gw, 1e-5)?;
        assert_same("in bf16", &y_16, &gy.to_dtype(DType::BF16)?);
        assert_same("its roots", &roots_16, &groots);
        for residual in [false, true] {
            let (r, gr) = (residual.then_some(&r), residual.then_some(&gr));
            let dx = rms_norm_backward(&dy, &x, &w, &roots, r, Some(&into))?;
            let gdx = rms_norm_backward(&gdy, &gx, &gw, &groots, gr, Some(&ginto))?;
            near("rms_norm_backward", &gdx, &dx, SUMS);
            near("weight of the norm", &ginto, &into, SUMS);
        }
    }
    Ok(())
}

#[test]
fn layer_norms() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    for (rows, width) in [(1, 5), (7, 33), (130, 192), (65, 2048), (33, 4099)] {
        let (x, gx) = gpu.pair(&[rows, width])?;
        let (w, gw) = gpu.pair(&[width])?;
        let (b, gb) = gpu.pair(&[width])?;
        let (dy, gdy) = gpu.pair(&[rows, width])?;
        let (r, gr) = gpu.pair(&[rows, width])?;
        let (into, ginto) = gpu.pair(&[width])?;
        let (bias_into, gbias_into) = gpu.pair(&[width])?;
        gpu.poison()?;
        for with in [false, true] {
            let (b, gb) = (with.then_some(&b), with.then_some(&gb));
            let (y, moments) = layer_norm(&x, &w, b, 1e-5)?;
            let (gy, gmoments) = layer_norm(&gx, &gw, gb, 1e-5)?;
            near("layer_norm", &gy, &y, EXACT);
            near("means", &gmoments.means, &moments.means, SUMS);
            let (r, gr) = (with.then_some(&r), with.then_some(&gr));
            let places = |weight, bias| Into {
                weight: Some(weight),
                bias: with.then_some(bias),
            };
            let here = places(&into, &bias_into);
            let there = places(&ginto, &gbias_into);
            let dx = layer_norm_backward(&dy, &x, &w, &moments, r, here)?;
            let gdx = layer_norm_backward(&gdy, &gx, &gw, &gmoments, gr, there)?;
            near("layer_norm_backward", &gdx, &dx, SUMS);
            near("weight of the norm", &ginto, &into, SUMS);
            near("bias of the norm", &gbias_into, &bias_into, SUMS);
        }
    }
    Ok(())
}

#[test]
fn rotations() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    for (tokens, heads, head, half) in [
        (5, 3, 8, 4),
        (70, 6, 32, 16),
        (33, 2, 80, 20),
        (129, 4, 128, 64),
    ] {
        let frequencies: Vec<f64> = (0..half).map(|i| 0.7f64.powi(i)).collect();
        let table = RopeTable::new(&frequencies, 600, 1.0);
        let positions = (0..tokens)
            .map(|_| gpu.generator.between(0, 600) as u32)
            .collect();
        let positions = Positions::new(positions);
        let (x, gx) = gpu.pair(&[tokens, heads * head])?;
        rope(&x, heads, &positions, &table)?;
        rope(&gx, heads, &positions, &table)?;
        near("rope", &gx, &x, EXACT);
        rope_backward(&x, heads, &positions, &table)?;
        rope_backward(&gx, heads, &positions, &table)?;
        near("rope_backward", &gx, &x, EXACT);
        gpu.poison()?;
        for to_bf16 in [rope_to_bf16, rope_backward_to_bf16] {
            let y = to_bf16(&x, heads, &positions, &table)?;
            let gy = to_bf16(&gx, heads, &positions, &table)?;
            assert_eq!(gy.dtype(), DType::BF16);
            // What lies midway between two numbers of bf16 may go to either.
            near("rope in bf16", &gy, &y, 1e-3);
        }
    }
    Ok(())
}

#[test]
fn gates_sums_and_copies() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    // The slope of one number alone may be all but zero, and is rounding alone then.
    for (rows, width) in [(1, 9), (17, 129), (300, 512)] {
        let (gate, ggate) = gpu.pair(&[rows, width])?;
        let (up, gup) = gpu.pair(&[rows, width])?;
        let (dy, gdy) = gpu.pair(&[rows, width])?;
        gpu.poison()?;
        for activation in [Activation::Silu, Activation::Gelu, Activation::GeluTanh] {
            near(
                "gated",
                &gated(activation, &ggate, &gup)?,
                &gated(activation, &gate, &up)?,
                EXACT,
            );
            let (dgate, dup) = gated_backward(activation, &dy, &gate, &up)?;
            let (gdgate, gdup) = gated_backward(activation, &gdy, &ggate, &gup)?;
            near("gradient of the gate", &gdgate, &dgate, EXACT);
            near("gradient of the rest", &gdup, &dup, EXACT);
            let (own, other) = (ggate.copy()?, gup.copy()?);
            let in_place = gated_backward_in_place(activation, &gdy, own, other)?;
            assert_same("gate's in place", &in_place.0, &gdgate);
            assert_same("the rest's in place", &in_place.1, &gdup);

            let here = gated_to_bf16(activation, &gate, &up)?;
            let there = gated_to_bf16(activation, &ggate, &gup)?;
            for (there, here) in there.iter().zip(&here) {
                near("in bf16", there, here, ROUNDED);
            }
            let [y, gate_16, up_16] = here;
            let [gy, ggate_16, gup_16] = there;
            near(
                "of bf16",
                &gated(activation, &ggate_16, &gup_16)?,
                &gated(activation, &gate_16, &up_16)?,
                ROUNDED,
            );
            assert_eq!((gy.dtype(), y.dtype()), (DType::BF16, DType::BF16));
            let (dgate, dup) = gated_backward(activation, &dy, &gate_16, &up_16)?;
            let (gdgate, gdup) = gated_backward(activation, &gdy, &ggate_16, &gup_16)?;
            near("gradient of a gate of bf16", &gdgate, &dgate, ROUNDED);
            near("gradient of the rest of bf16", &gdup, &dup, ROUNDED);
            let in_place =
                gated_backward_in_place(activation, &gdy, ggate_16.copy()?, gup_16.copy()?)?;
            assert_same("gate's of bf16 in place", &in_place.0, &gdgate);
            assert_same("the rest's of bf16 in place", &in_place.1, &gdup);
            let (y, gy) = (activate(activation, &gate)?, activate(activation, &ggate)?);
            near("activation", &gy, &y, EXACT);
            let dx = activate_backward(activation, &dy, &gate)?;
            let gdx = activate_backward(activation, &gdy, &ggate)?;
            near("gradient of the activation", &gdx, &dx, EXACT);
        }
        let (bias, gbias) = gpu.pair(&[width])?;
        add_bias(&up, &bias)?;
        add_bias(&gup, &gbias)?;
        add_in_place(&up, &dy)?;
        add_in_place(&gup, &gdy)?;
        near("sums in place", &gup, &up, EXACT);
        bias_grad(&dy, &bias)?;
        bias_grad(&gdy, &gbias)?;
        near("bias_grad", &gbias, &bias, SUMS);
        let narrow = Tensor::zeros((rows, width), DType::BF16, &Device::Cpu)?;
        let gnarrow = narrow.to_device(&gpu.device)?;
        copy_into(&up, &narrow)?;
        copy_into(&up, &gnarrow)?;
        assert_same("bf16", &gnarrow.to_device(&Device::Cpu)?, &narrow);
        clear(&gup)?;
        assert_eq!(
            values(&gup.to_device(&Device::Cpu)?)?,
            vec![0.0; rows * width]
        );
    }
    Ok(())
}

#[test]
fn attention_of_documents() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    let shapes = [
        (4, 2, 8),
        (6, 2, 32),
        (9, 3, 64),
        (2, 1, 20),
        (4, 4, 80),
        (4, 1, 128),
        (2, 2, 200),
    ];
    for (heads, kv_heads, head_dim) in shapes {
        for (window, softcap) in [
            (None, None),
            (Some(1), None),
            (Some(37), None),
            (None, Some(1.5)),
            (Some(20), Some(3.0)),
        ] {
            let lengths = gpu.lengths(4, 150);
            let documents = Documents::from_lengths(&lengths);
            let tokens = documents.tokens();
            let scale = 1.0 / (head_dim as f64).sqrt();
            let shape = AttentionShape {
                heads,
                kv_heads,
                head_dim,
                scale,
                window,
                softcap,
                rounded: false,
            };
            let (q, gq) = gpu.pair(&[tokens, heads * head_dim])?;
            let (k, gk) = gpu.pair(&[tokens, kv_heads * head_dim])?;
            let (v, gv) = gpu.pair(&[tokens, kv_heads * head_dim])?;
            let (d, gd) = gpu.pair(&[tokens, heads * head_dim])?;
            let inputs = [(q, gq), (k, gk), (v, gv), (d, gd)];
            gpu.compare_causal(inputs, &documents, &shape, SUMS)?;
        }
    }
    Ok(())
}

#[test]
fn attention_in_both_directions() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    for (heads, head_dim) in [(4, 8), (6, 32), (3, 64), (2, 20), (2, 128)] {
        for window in [None, Some(0), Some(5), Some(64)] {
            let lengths = gpu.lengths(4, 150);
            let documents = Documents::from_lengths(&lengths);
            let tokens = documents.tokens();
            let shape = Bidirectional {
                heads,
                head_dim,
                scale: 1.0 / (head_dim as f64).sqrt(),
                window,
            };
            let (q, gq) = gpu.pair(&[tokens, heads * head_dim])?;
            let (k, gk) = gpu.pair(&[tokens, heads * head_dim])?;
            let (v, gv) = gpu.pair(&[tokens, heads * head_dim])?;
            let (d, gd) = gpu.pair(&[tokens, heads * head_dim])?;
            gpu.compare_attention(
                [(q, gq), (k, gk), (v, gv), (d, gd)],
                &format!("{shape:?} {lengths:?}"),
                SUMS,
                window != Some(0),
                |q, k, v| bidirectional(q, k, v, &documents, &shape),
                |d, q, k, v, y, sums| {
                    bidirectional_backward(d, q, k, v, y, sums, &documents, &shape)
                },
            )?;
        }
    }
    Ok(())
}

/// Prompts of several sequences, then token after token, past the room that a cache begins with.
#[test]
fn attention_over_caches() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    for (heads, kv_heads, head_dim, window, softcap, most, steps) in [
        (4, 2, 8, None, None, 70, 70),
        (9, 3, 64, Some(20), None, 70, 70),
        (2, 1, 200, None, Some(2.0), 70, 70),
        // So long that blocks share the keys of a head.
        (2, 1, 16, None, None, 1500, 3),
        (4, 4, 40, Some(600), Some(2.0), 900, 3),
    ] {
        let shape = AttentionShape {
            heads,
            kv_heads,
            head_dim,
            scale: 1.0 / (head_dim as f64).sqrt(),
            window,
            softcap,
            rounded: false,
        };
        let mut here = [(); 3].map(|()| Cache::default());
        let mut there = [(); 3].map(|()| Cache::default());
        for step in 0..steps {
            let lengths = match step {
                0 if most > 70 => vec![most, 1, 300],
                0 => gpu.lengths(3, most),
                5 => vec![2, 1, 3],
                _ => vec![1; 3],
            };
            let documents = Documents::from_lengths(&lengths);
            let tokens = documents.tokens();
            let (q, gq) = gpu.pair(&[tokens, heads * head_dim])?;
            let (k, gk) = gpu.pair(&[tokens, kv_heads * head_dim])?;
            let (v, gv) = gpu.pair(&[tokens, kv_heads * head_dim])?;
            gpu.poison()?;
            let mut caches: Vec<&mut Cache> = here.iter_mut().collect();
            let y = attention_next(&q, &k, &v, &mut caches, &documents, &shape)?;
            let mut caches: Vec<&mut Cache> = there.iter_mut().collect();
            let gy = attention_next(&gq, &gk, &gv, &mut caches, &documents, &shape)?;
            near(&format!("{shape:?}, step {step}"), &gy, &y, SUMS);
        }
    }
    Ok(())
}

/// On the tensor cores: the inputs are the same, what lies between them and the outputs is rounded to bf16.
#[test]
fn attention_in_bf16() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    for (heads, kv_heads, head_dim) in [(4, 2, 64), (3, 3, 8), (4, 1, 40), (2, 1, 128), (2, 2, 96)]
    {
        for (window, softcap) in [
            (None, None),
            (Some(1), None),
            (Some(37), None),
            (Some(100), Some(2.0)),
        ] {
            let mut lengths = gpu.lengths(4, 300);
            lengths.extend([64, 1, 65]);
            let documents = Documents::from_lengths(&lengths);
            let tokens = documents.tokens();
            let scale = 1.0 / (head_dim as f64).sqrt();
            let shape = AttentionShape {
                heads,
                kv_heads,
                head_dim,
                scale,
                window,
                softcap,
                rounded: false,
            };
            assert!(!shape.takes_bf16(&Device::Cpu));
            assert_eq!(on_tensor_cores(&gpu.device), Ok(()));
            assert!(shape.takes_bf16(&gpu.device));
            let mut input = |heads: usize| -> Result<(Tensor, Tensor)> {
                let (here, _) = gpu.pair(&[tokens, heads * head_dim])?;
                let narrow = here.to_dtype(DType::BF16)?;
                Ok((narrow.to_dtype(DType::F32)?, narrow.to_device(&gpu.device)?))
            };
            let (q, gq) = input(heads)?;
            let (k, gk) = input(kv_heads)?;
            let (v, gv) = input(kv_heads)?;
            let (d, gd) = gpu.pair(&[tokens, heads * head_dim])?;
            let inputs = [(q, gq), (k, gk), (v, gv), (d, gd)];
            gpu.compare_causal(inputs, &documents, &shape, ROUNDED)?;
        }
    }
    Ok(())
}

/// The forms a weight has, with the error its products may have.
fn forms(weight: &Tensor) -> Result<Vec<(&'static str, Weight, DType, f64)>> {
    let (out, input) = weight.dims2()?;
    let numbers: Vec<f32> = weight.flatten_all()?.to_vec1()?;
    let nf4 = |double| Nf4::quantize(&numbers, out, input, double).map(Weight::Nf4);
    let int8 = Weight::Int8(Int8::quantize(&numbers, out, input)?);
    // Sixteen levels of their own and blocks of 32, as a checkpoint may bring them.
    let packed = numbers
        .chunks(2)
        .map(|pair| (pair[0].to_bits() >> 13) as u8)
        .collect();
    let scales: Vec<f32> = numbers
        .chunks(32)
        .map(|block| block[0].abs() + 0.1)
        .collect();
    let levels = std::array::from_fn(|level| (level as f32 - 7.0) / 8.0);
    let fp4 = Weight::Nf4(Nf4::from_code(packed, scales, out, input, levels, 32)?);
    Ok(vec![
        ("f32", Weight::Dense(weight.clone()), DType::F32, SUMS),
        (
            "bf16",
            Weight::Dense(weight.to_dtype(DType::BF16)?),
            DType::F32,
            ROUNDED,
        ),
        ("nf4", nf4(false)?, DType::F32, SUMS),
        ("nf4-dq", nf4(true)?, DType::BF16, ROUNDED),
        ("fp4", fp4, DType::F32, SUMS),
        ("int8", int8.clone(), DType::F32, SUMS),
        ("int8 in bf16", int8, DType::BF16, ROUNDED),
    ])
}

#[test]
fn products() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    for (tokens, out, input) in [(1, 1, 1), (37, 45, 71), (200, 192, 512)] {
        let (x, gx) = gpu.pair(&[tokens, input])?;
        let (dy, gdy) = gpu.pair(&[tokens, out])?;
        let (weight, _) = gpu.pair(&[out, input])?;
        let (into, ginto) = gpu.pair(&[out, input])?;
        for (name, weight, compute, tolerance) in forms(&weight)? {
            let there = weight.to_device(&gpu.device, compute)?;
            gpu.poison()?;
            near(
                name,
                &linear(&gx, &there)?,
                &linear(&x, &weight)?,
                tolerance,
            );
            let (dx, gdx) = (
                linear_input_grad(&dy, &weight)?,
                linear_input_grad(&gdy, &there)?,
            );
            near(name, &gdx, &dx, tolerance);
            if matches!(name, "nf4" | "fp4" | "int8") {
                near(name, &there.dequantize()?, &weight.dequantize()?, 1e-7);
            }
        }
        linear_weight_grad(&dy, &x, &into)?;
        linear_weight_grad(&gdy, &gx, &ginto)?;
        near("weight gradient", &ginto, &into, SUMS);
    }
    Ok(())
}

/// Blocks of GGUF files: the same bits, whole and by rows, and products with them.
#[test]
fn blocks_of_ggml() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    let (tokens, out, input) = (37, 70, 512);
    for kind in GgmlType::ALL {
        // Any byte is a code; scales are f16 with exponents below 16, which are finite and small.
        let mut bytes = vec![0u8; out * input / kind.block_length() * kind.block_bytes()];
        for (at, byte) in bytes.iter_mut().enumerate() {
            let odd = at % 2 == 1;
            *byte = gpu.generator.word() as u8 & if odd { 0x3f } else { 0xff };
        }
        if kind == GgmlType::Q8K {
            for block in bytes.chunks_exact_mut(kind.block_bytes()) {
                block[..4].copy_from_slice(&0.37f32.to_le_bytes());
            }
        }
        let weight = Weight::Ggml(Ggml::from_bytes(kind, bytes, out, input)?);
        let (x, gx) = gpu.pair(&[tokens, input])?;
        let (dy, gdy) = gpu.pair(&[tokens, out])?;
        for (compute, tolerance) in [(DType::F32, SUMS), (DType::BF16, ROUNDED)] {
            let there = weight.to_device(&gpu.device, compute)?;
            assert_eq!(there.bytes(), weight.bytes());
            gpu.poison()?;
            let numbers = there.dequantize()?.to_device(&Device::Cpu)?;
            assert_same(kind.name(), &numbers, &weight.dequantize()?);
            let ids = [3, 0, 69, 3];
            let rows = there.select(&ids)?.to_device(&Device::Cpu)?;
            assert_same(kind.name(), &rows, &weight.select(&ids)?);
            let (y, gy) = (linear(&x, &weight)?, linear(&gx, &there)?);
            near(kind.name(), &gy, &y, tolerance);
            let dx = linear_input_grad(&dy, &weight)?;
            near(
                kind.name(),
                &linear_input_grad(&gdy, &there)?,
                &dx,
                tolerance,
            );
        }
    }
    Ok(())
}

/// DoRA: norms, outputs and all gradients, with and without an input of the branch's own.
#[test]
fn rescaled_branches() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    let (tokens, out, input, rank) = (75, 66, 96, 5);
    for own_input in [false, true] {
        let (x, gx) = gpu.pair(&[tokens, input])?;
        let (dropped, gdropped) = gpu.pair(&[tokens, input])?;
        let (a, ga) = gpu.pair(&[rank, input])?;
        let (b, gb) = gpu.pair(&[out, rank])?;
        let (magnitude, gmagnitude) = gpu.pair(&[out])?;
        let (dy, gdy) = gpu.pair(&[tokens, out])?;
        let (weight, _) = gpu.pair(&[out, input])?;
        for (name, weight, compute, tolerance) in forms(&weight)? {
            let there = weight.to_device(&gpu.device, compute)?;
            gpu.poison()?;
            let norms = row_norms(&weight, &a, &b, 1.75)?;
            let gnorms = row_norms(&there, &ga, &gb, 1.75)?;
            near(name, &gnorms, &norms, SUMS);
            let low = |a: &Tensor, b: &Tensor, magnitude: &Tensor, norms: Tensor| LowRank {
                a: a.clone(),
                b: b.clone(),
                scale: 1.75,
                dora: Some(Dora {
                    magnitude: magnitude.clone(),
                    norms,
                }),
                stacked: None,
            };
            let run = |x: &Tensor, own: &Tensor, weight: &Weight, low: &LowRank, dy: &Tensor| {
                let group = [Projection {
                    weight,
                    branch: Some(low),
                }];
                let own = own_input.then_some(own);
                let (ys, kept) = lora_linear(x, own, &group)?;
                let (a, b) = (low.a.zeros_like()?, low.b.zeros_like()?);
                let magnitude = Tensor::zeros(out, DType::F32, x.device())?;
                let grads = [Some(BranchGrads {
                    a: &a,
                    b: &b,
                    magnitude: Some(&magnitude),
                })];
                let dys = [dy.clone()];
                let dx = lora_linear_backward(&dys, x, own, &group, &kept, &grads)?;
                let mut all = vec![ys[0].clone(), dx.x, a, b, magnitude];
                all.extend(dx.branch_x);
                Ok::<_, candle_core::Error>(all)
            };
            let here = run(&x, &dropped, &weight, &low(&a, &b, &magnitude, norms), &dy)?;
            let low = low(&ga, &gb, &gmagnitude, gnorms);
            let on_gpu = run(&gx, &gdropped, &there, &low, &gdy)?;
            assert_eq!(here.len(), 5 + usize::from(own_input));
            for (which, (gpu, cpu)) in on_gpu.iter().zip(&here).enumerate() {
                near(&format!("{name} {which}"), gpu, cpu, tolerance);
            }
        }
    }
    Ok(())
}

#[test]
fn branches() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    let (tokens, input, rank) = (75, 96, 5);
    for own_input in [false, true] {
        let (x, gx) = gpu.pair(&[tokens, input])?;
        let (dropped, gdropped) = gpu.pair(&[tokens, input])?;
        let (first, _) = gpu.pair(&[66, input])?;
        let (second, _) = gpu.pair(&[31, input])?;
        let (a, ga) = gpu.pair(&[rank, input])?;
        let (b, gb) = gpu.pair(&[66, rank])?;
        let (da, gda) = gpu.pair(&[rank, input])?;
        let (db, gdb) = gpu.pair(&[66, rank])?;
        let (dy1, gdy1) = gpu.pair(&[tokens, 66])?;
        let (dy2, gdy2) = gpu.pair(&[tokens, 31])?;
        for ((name, first, compute, tolerance), (_, second, ..)) in
            forms(&first)?.into_iter().zip(forms(&second)?)
        {
            // What one form adds differs from what the next may.
            for gradient in [&da, &db, &gda, &gdb] {
                clear(gradient)?;
            }
            let run = |x: &Tensor,
                       branch_x: Option<&Tensor>,
                       weights: [&Weight; 2],
                       low: &LowRank,
                       dys: &[Tensor],
                       grads: [&Tensor; 2]| {
                let group = [
                    Projection {
                        weight: weights[0],
                        branch: Some(low),
                    },
                    Projection {
                        weight: weights[1],
                        branch: None,
                    },
                ];
                let (ys, kept) = lora_linear(x, branch_x, &group)?;
                let grads = [
                    Some(BranchGrads {
                        a: grads[0],
                        b: grads[1],
                        magnitude: None,
                    }),
                    None,
                ];
                let dx = lora_linear_backward(dys, x, branch_x, &group, &kept, &grads)?;
                Ok::<_, candle_core::Error>((ys, dx))
            };
            let (g1, g2) = (
                first.to_device(&gpu.device, compute)?,
                second.to_device(&gpu.device, compute)?,
            );
            let low = LowRank {
                a: a.clone(),
                b: b.clone(),
                scale: 1.75,
                dora: None,
                stacked: None,
            };
            let glow = LowRank {
                a: ga.clone(),
                b: gb.clone(),
                scale: 1.75,
                dora: None,
                stacked: None,
            };
            gpu.poison()?;
            let (ys, dx) = run(
                &x,
                own_input.then_some(&dropped),
                [&first, &second],
                &low,
                &[dy1.clone(), dy2.clone()],
                [&da, &db],
            )?;
            let (gys, gdx) = run(
                &gx,
                own_input.then_some(&gdropped),
                [&g1, &g2],
                &glow,
                &[gdy1.clone(), gdy2.clone()],
                [&gda, &gdb],
            )?;
            for (gy, y) in gys.iter().zip(&ys) {
                near(name, gy, y, tolerance);
            }
            near(name, &gdx.x, &dx.x, tolerance);
            assert_eq!(gdx.branch_x.is_some(), own_input);
            if let (Some(gdx), Some(dx)) = (&gdx.branch_x, &dx.branch_x) {
                near(name, gdx, dx, tolerance);
            }
            // The branches of a weight that is multiplied in bf16 are rounded too.
            near("A", &gda, &da, tolerance);
            near("B", &gdb, &db, tolerance);
        }
    }
    Ok(())
}

/// A weight and its branch, and the gradients of a branch's `A` and `B`.
type Adapted = (Weight, Option<LowRank>);
type Added = Option<[Tensor; 2]>;

fn group(of: &[Adapted]) -> Vec<Projection<'_>> {
    of.iter()
        .map(|(weight, branch)| Projection {
            weight,
            branch: branch.as_ref(),
        })
        .collect()
}

fn nothing_added(of: &[Adapted]) -> Result<Vec<Added>> {
    let zeros = |low: &LowRank| Ok([low.a.zeros_like()?, low.b.zeros_like()?]);
    of.iter()
        .map(|(_, low)| low.as_ref().map(zeros).transpose())
        .collect()
}

fn grads(of: &[Added]) -> Vec<Option<BranchGrads<'_>>> {
    of.iter()
        .map(|added| {
            let [a, b] = added.as_ref()?;
            Some(BranchGrads {
                a,
                b,
                magnitude: None,
            })
        })
        .collect()
}

/// What a group makes on a GPU: outputs, the input's gradient and those of the branches.
fn through(
    of: &[Adapted],
    x: &Tensor,
    dys: &[Tensor],
    added: &[Added],
) -> Result<(Vec<Tensor>, Vec<Tensor>)> {
    let group = group(of);
    let (mut outputs, kept) = lora_linear(x, None, &group)?;
    let dx = lora_linear_backward(dys, x, None, &group, &kept, &grads(added))?;
    outputs.push(dx.x);
    let added = added.iter().flatten().flatten().cloned().collect();
    Ok((outputs, added))
}

#[test]
fn branches_below_each_other() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    let (tokens, input, ranks) = (75, 96, [3, 0, 5, 2]);
    let depth = ranks.iter().sum();
    let (x, gx) = gpu.pair(&[tokens, input])?;
    for compute in [DType::F32, DType::BF16] {
        let tolerance = if compute == DType::F32 { SUMS } else { ROUNDED };
        let all = Tensor::zeros((depth, input), DType::F32, &gpu.device)?;
        let (narrow, a_grad) = (all.to_dtype(compute)?, all.zeros_like()?);
        let (mut here, mut apart, mut below) = (Vec::new(), Vec::new(), Vec::new());
        let (mut own, mut dys, mut gdys) = (Vec::new(), Vec::new(), Vec::new());
        let mut start = 0;
        for (place, rank) in ranks.into_iter().enumerate() {
            let out = 20 + 13 * place;
            let (weight, _) = gpu.pair(&[out, input])?;
            let weight = Weight::Dense(weight.to_dtype(compute)?);
            let there = weight.to_device(&gpu.device, compute)?;
            let (dy, gdy) = gpu.pair(&[tokens, out])?;
            dys.push(dy);
            gdys.push(gdy);
            if rank == 0 {
                here.push((weight, None));
                apart.push((there.clone(), None));
                below.push((there, None));
                own.push(None);
                continue;
            }
            let ((a, ga), (b, gb)) = (gpu.pair(&[rank, input])?, gpu.pair(&[out, rank])?);
            let low = |a: &Tensor, b: &Tensor, stacked| LowRank {
                a: a.clone(),
                b: b.clone(),
                scale: 0.75,
                dora: None,
                stacked,
            };
            copy_into(&a, &narrow.narrow(0, start, rank)?)?;
            let stacked = Stacked {
                a: narrow.clone(),
                b: gb.to_dtype(compute)?,
                a_grad: a_grad.clone(),
                start,
            };
            own.push(Some([a_grad.narrow(0, start, rank)?, gb.zeros_like()?]));
            below.push((there.clone(), Some(low(&ga, &gb, Some(stacked)))));
            apart.push((there, Some(low(&ga, &gb, None))));
            here.push((weight, Some(low(&a, &b, None))));
            start += rank;
        }
        gpu.poison()?;
        let expected = through(&here, &x, &dys, &nothing_added(&here)?)?;
        let found = through(&below, &gx, &gdys, &own)?;
        let one_by_one = through(&apart, &gx, &gdys, &nothing_added(&apart)?)?;
        for (found, one_by_one) in found.0.iter().zip(&one_by_one.0) {
            assert_same(
                "operands",
                &found.to_device(&Device::Cpu)?,
                &one_by_one.to_device(&Device::Cpu)?,
            );
        }
        for (what, found, expected) in [
            ("numbers", &found.0, &expected.0),
            ("gradients", &found.1, &expected.1),
        ] {
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                near(what, found, expected, tolerance);
            }
        }
        // A group that lacks one of them, or has another order, is put together as ever.
        for places in [[1, 2, 3], [3, 0, 1]] {
            let some = places.map(|place| below[place].clone());
            let other = places.map(|place| apart[place].clone());
            let dys = places.map(|place| gdys[place].clone());
            let found = through(&some, &gx, &dys, &nothing_added(&some)?)?;
            let expected = through(&other, &gx, &dys, &nothing_added(&other)?)?;
            for (found, expected) in found
                .0
                .iter()
                .chain(&found.1)
                .zip(expected.0.iter().chain(&expected.1))
            {
                assert_same(
                    "put together",
                    &found.to_device(&Device::Cpu)?,
                    &expected.to_device(&Device::Cpu)?,
                );
            }
        }
    }
    Ok(())
}

/// A gated unit and the projection behind it, all in bf16, against the same in f32.
#[test]
fn units_in_bf16() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    for (tokens, input, wide, out, adapted, own_input) in [
        (70, 64, 96, 48, [true, true, true], false),
        (33, 80, 44, 20, [false, true, false], false),
        (9, 24, 130, 66, [true, false, true], false),
        (40, 56, 98, 32, [true, true, true], true),
        (13, 32, 40, 24, [false, true, false], true),
    ] {
        let mut here = Vec::new();
        let mut there = Vec::new();
        for (place, ([to, from], adapted)) in [[wide, input], [wide, input], [out, wide]]
            .into_iter()
            .zip(adapted)
            .enumerate()
        {
            let rank = 3 + 2 * place;
            let (w, _) = gpu.pair(&[to, from])?;
            // As wide as its gradients need not be, but so that no sum is much greater than one.
            let w = (w.to_dtype(DType::BF16)? * (1.0 / (from as f64).sqrt()))?;
            let ((a, ga), (b, gb)) = (gpu.pair(&[rank, from])?, gpu.pair(&[to, rank])?);
            let low = |a, b| LowRank {
                a,
                b,
                scale: 0.375,
                dora: None,
                stacked: None,
            };
            let narrow = Weight::Dense(w.clone()).to_device(&gpu.device, DType::BF16)?;
            let wide = Weight::Dense(w.to_dtype(DType::F32)?);
            here.push((wide, adapted.then(|| low(a, b))));
            there.push((narrow, adapted.then(|| low(ga, gb))));
        }
        let (x, gx) = gpu.pair(&[tokens, input])?;
        let (dy, gdy) = gpu.pair(&[tokens, out])?;
        // What the branches read instead.
        let (dropped, gdropped) = gpu.pair(&[tokens, input])?;
        let (of_product, gof_product) = gpu.pair(&[tokens, wide])?;
        let narrow = |x: Tensor| x.to_dtype(DType::BF16);
        let (narrow, gdropped, gof_product) =
            (narrow(gx)?, narrow(gdropped)?, narrow(gof_product)?);
        let [own, of_product] = [&dropped, &of_product].map(|x| own_input.then_some(x));
        let [gown, gof_product] = [&gdropped, &gof_product].map(|x| own_input.then_some(x));
        let join = |dx: InputGrads| {
            if let Some(branch_x) = &dx.branch_x {
                add_in_place(&dx.x, branch_x)?;
            }
            Ok(dx.x)
        };
        gpu.poison()?;
        let activation = Activation::Silu;

        let (all, added) = (group(&here), nothing_added(&here)?);
        let (unit, down) = all.split_at(2);
        let (outputs, unit_kept) = lora_linear(&x, own, unit)?;
        let product = gated(activation, &outputs[0], &outputs[1])?;
        let (y, kept) = lora_linear(&product, of_product, down)?;
        let (dys, into) = ([dy], grads(&added));
        let dproduct = lora_linear_backward(&dys, &product, of_product, down, &kept, &into[2..])?;
        let dproduct = join(dproduct)?;
        let (dgate, dup) = gated_backward(activation, &dproduct, &outputs[0], &outputs[1])?;
        let dx = lora_linear_backward(&[dgate, dup], &x, own, unit, &unit_kept, &into[..2])?;
        let dx = join(dx)?;

        let (gall, gadded) = (group(&there), nothing_added(&there)?);
        assert!(takes_bf16(&gall, own_input));
        let (gunit, gdown) = gall.split_at(2);
        let ([gproduct, ggate, gup], gunit_kept) =
            lora_gated(activation, &narrow, gown, [&gunit[0], &gunit[1]])?;
        let (gy, _) = lora_linear(&gproduct, gof_product, gdown)?;
        let gkept = lora_kept(&gproduct, gof_product, gdown)?;
        let (gdys, ginto) = ([gdy], grads(&gadded));
        let (gdgate, gdup) = lora_gated_backward(
            activation,
            &gdys,
            &gproduct,
            gof_product,
            gdown,
            &gkept,
            &ginto[2..],
            [ggate, gup],
            join,
        )?;
        assert_eq!(gdgate.dtype(), DType::BF16);
        let dys = [gdgate, gdup];
        let gdx = lora_linear_backward(&dys, &narrow, gown, gunit, &gunit_kept, &ginto[..2])?;
        let gdx = join(gdx)?;

        let what = format!("{tokens} {input} {wide} {out} {adapted:?} {own_input}");
        near(&format!("{what}: product"), &gproduct, &product, ROUNDED);
        near(&format!("{what}: output"), &gy[0], &y[0], TWICE_ROUNDED);
        near(&format!("{what}: input"), &gdx, &dx, TWICE_ROUNDED);
        for (there, here) in gadded.iter().flatten().zip(added.iter().flatten()) {
            near(&format!("{what}: A"), &there[0], &here[0], TWICE_ROUNDED);
            near(&format!("{what}: B"), &there[1], &here[1], TWICE_ROUNDED);
        }
        // What stands in bf16 where something else looks at it is an error.
        let mut wide = there;
        wide[0].0 = Weight::Dense(gpu.pair(&[1, input])?.1);
        assert!(lora_linear(&narrow, None, &group(&wide)[..1]).is_err());
    }
    Ok(())
}

#[test]
fn head_and_loss() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    for (tokens, vocabulary, width) in [(1, 2, 3), (90, 517, 64), (40, 32_003, 48)] {
        let (x, gx) = gpu.pair(&[tokens, width])?;
        let (head, ghead) = gpu.pair(&[vocabulary, width])?;
        let targets: Vec<u32> = (0..tokens)
            .map(|at| {
                if at % 3 == 1 {
                    IGNORE
                } else {
                    gpu.generator.between(0, vocabulary) as u32
                }
            })
            .collect();
        let (into, ginto) = gpu.pair(&[vocabulary, width])?;
        gpu.poison()?;
        let (weight, gweight) = (Weight::Dense(head), Weight::Dense(ghead));
        for softcap in [None, Some(3.0)] {
            let want = |into| Want {
                grad_scale: Some(0.37),
                weight_grad: Some(into),
                softcap,
            };
            let here = linear_cross_entropy(&x, &weight, &targets, want(&into))?;
            let there = linear_cross_entropy(&gx, &gweight, &targets, want(&ginto))?;
            assert!(
                (here.sum - there.sum).abs() <= 2e-6 * here.sum,
                "{} {}",
                here.sum,
                there.sum
            );
            assert_eq!((here.targets, here.correct), (there.targets, there.correct));
            let (Some(d), Some(gd)) = (here.hidden_grad, there.hidden_grad) else {
                panic!("no gradient")
            };
            near("hidden states", &gd, &d, SUMS);
            near("head", &ginto, &into, SUMS);
        }
        let here = linear_token_losses(&x, &weight, &targets)?;
        let there = linear_token_losses(&gx, &gweight, &targets)?;
        for (here, there) in here.iter().zip(&there) {
            assert_eq!(here.is_some(), there.is_some());
            assert!((here.unwrap_or(0.0) - there.unwrap_or(0.0)).abs() < 1e-4);
        }
    }
    Ok(())
}

#[test]
fn masks_are_the_same_bits() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    for count in [1, 63, 64, 65, 8192, 20_001] {
        let (x, gx) = gpu.pair(&[count])?;
        let key = DropoutKey {
            seed: gpu.generator.word(),
            step: gpu.generator.word(),
            site: 7,
        };
        gpu.poison()?;
        let there = dropout(&gx, 0.3, key)?.to_device(&Device::Cpu)?;
        assert_same("dropout", &there, &dropout(&x, 0.3, key)?);
        let narrow = x.to_dtype(DType::BF16)?;
        let there = dropout(&narrow.to_device(&gpu.device)?, 0.3, key)?;
        let here = dropout(&narrow.to_dtype(DType::F32)?, 0.3, key)?;
        let there = there.to_device(&Device::Cpu)?;
        assert_same("dropout of bf16", &there, &here.to_dtype(DType::BF16)?);
    }
    Ok(())
}

/// What waits in the host's memory comes back the same, also where its place on the GPU was given out to others in the
/// meantime, and pinned memory is used again for tensors of other sizes.
#[test]
fn parked_tensors_come_back() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    for count in [1, 300_000, 77, 1 << 20] {
        let mut waiting = Vec::new();
        for place in 0..4 {
            let (x, gx) = gpu.pair(&[3, count])?;
            // What the copy has to wait for: the sum is made just before.
            let (y, gy) = gpu.pair(&[3, count])?;
            add_in_place(&gx, &gy)?;
            add_in_place(&x, &y)?;
            let narrow = place == 3;
            let (x, gx) = if narrow {
                (x.to_dtype(DType::BF16)?, gx.to_dtype(DType::BF16)?)
            } else {
                (x, gx)
            };
            let mut parked = Parked::new(gx)?;
            if place != 1 {
                parked.leave()?;
            }
            gpu.poison()?;
            waiting.push((x, parked));
        }
        // One that nobody takes, and one that nobody waits for.
        drop(Parked::new(gpu.pair(&[count])?.1)?);
        let mut fetched = Parked::new(gpu.pair(&[count])?.1)?;
        fetched.fetch()?;
        drop(fetched);
        while let Some((x, mut parked)) = waiting.pop() {
            if let Some((_, next)) = waiting.last_mut() {
                next.fetch()?;
            }
            parked.fetch()?;
            gpu.poison()?;
            let back = parked.into_tensor()?;
            assert!(back.device().is_cuda());
            assert_same("a parked tensor", &back.to_device(&Device::Cpu)?, &x);
        }
    }
    Ok(())
}

#[test]
fn rows_of_the_embedding() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    let (dx, gdx) = gpu.pair(&[300, 192])?;
    let (into, ginto) = gpu.pair(&[40, 192])?;
    let ids: Vec<u32> = (0..300)
        .map(|_| gpu.generator.between(0, 40) as u32)
        .collect();
    add_rows(&dx, &ids, &into)?;
    add_rows(&gdx, &ids, &ginto)?;
    assert_same("embedding", &ginto.to_device(&Device::Cpu)?, &into);
    Ok(())
}

#[test]
fn steps_of_the_optimiser() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    let (param, gparam) = gpu.pair(&[51, 77])?;
    let (m, v) = (param.zeros_like()?, param.zeros_like()?);
    let (gm, gv) = (gparam.zeros_like()?, gparam.zeros_like()?);
    let settings = AdamW {
        lr: 1e-2,
        weight_decay: 0.1,
        ..AdamW::default()
    };
    for step in 1..=5 {
        let (grad, ggrad) = gpu.pair(&[51, 77])?;
        let (here, there) = (
            grad_norm_squared(&[&grad, &param])?,
            grad_norm_squared(&[&ggrad, &gparam])?,
        );
        assert!((here - there).abs() <= 1e-5 * here, "{here} {there}");
        adamw_step(&param, &grad, &m, &v, &settings, step, 0.5)?;
        adamw_step(&gparam, &ggrad, &gm, &gv, &settings, step, 0.5)?;
    }
    near("parameters", &gparam, &param, EXACT);
    near("first moments", &gm, &m, EXACT);
    near("second moments", &gv, &v, EXACT);
    Ok(())
}

#[test]
fn steps_with_moments_in_eight_bits() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    let settings = AdamW {
        lr: 1e-2,
        weight_decay: 0.1,
        ..AdamW::default()
    };
    for dims in [[51, 77], [1, 256], [1, 1]] {
        let (param, gparam) = gpu.pair(&dims)?;
        let zeros = |param: &Tensor| -> Result<(EightBit, EightBit)> {
            let first = EightBit::zeros(param, Map::Signed)?;
            Ok((first, EightBit::zeros(param, Map::Unsigned)?))
        };
        let ((m, v), (mut gm, mut gv)) = (zeros(&param)?, zeros(&gparam)?);
        for step in 1..=5 {
            let (grad, ggrad) = gpu.pair(&dims)?;
            adamw_step_eight_bit(&param, &grad, &m, &v, &settings, step, 0.5)?;
            adamw_step_eight_bit(&gparam, &ggrad, &gm, &gv, &settings, step, 0.5)?;
            near("parameters", &gparam, &param, SUMS);
            for (what, here, there) in [("first", &m, &gm), ("second", &v, &gv)] {
                let absmax = there.absmax().to_device(&Device::Cpu)?;
                near(what, &absmax, here.absmax(), EXACT);
                // The GPU fuses products with sums, so that a number midway between two levels may go to either.
                let (here, there) = (codes(here)?, codes(there)?);
                let pairs = || here.iter().zip(&there);
                assert!(
                    pairs().all(|(here, there)| here.abs_diff(*there) <= 1),
                    "{what}"
                );
                let apart = pairs().filter(|(here, there)| here != there).count();
                assert!(apart * 1000 <= here.len(), "{what}: {apart} codes differ");
            }
            // From the same state again.
            (gm, gv) = (m.to_device(&gpu.device)?, v.to_device(&gpu.device)?);
            copy_into(&param, &gparam)?;
        }
    }
    Ok(())
}

#[test]
fn losses_of_classes() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    for (texts, classes) in [(1, 2), (9, 3), (70, 41), (5, 1030)] {
        let (logits, there) = gpu.pair(&[texts, classes])?;
        let targets: Vec<u32> = (0..texts)
            .map(|text| match text % 4 {
                3 => IGNORE,
                _ => gpu.generator.between(0, classes) as u32,
            })
            .collect();
        gpu.poison()?;
        let (loss, gradient) = begin_class_loss(&logits, &targets, 0.25)?;
        let (gloss, ggradient) = begin_class_loss(&there, &targets, 0.25)?;
        assert_eq!(gloss.sum(), None, "nobody has waited for it");
        let (loss, gloss) = (loss.read()?, gloss.read()?);
        assert!((loss.sum - gloss.sum).abs() <= 1e-5 * loss.sum);
        assert_eq!((loss.targets, loss.correct), (gloss.targets, gloss.correct));
        near("gradient of logits", &ggradient, &gradient, SUMS);
        assert!(begin_class_loss(&there, &vec![classes as u32; texts], 1.0).is_err());
    }
    Ok(())
}

/// A tensor that is trained, with moments of both types, of which a step uses one.
struct Stepped {
    value: Tensor,
    grad: Tensor,
    wide: [Tensor; 2],
    eight: [EightBit; 2],
    mask: Option<Tensor>,
    narrow: Option<Tensor>,
}

impl Stepped {
    fn new(value: Tensor, mask: Option<Tensor>, narrow: bool) -> Result<Self> {
        Ok(Self {
            grad: value.zeros_like()?,
            wide: [value.zeros_like()?, value.zeros_like()?],
            eight: [
                EightBit::zeros(&value, Map::Signed)?,
                EightBit::zeros(&value, Map::Unsigned)?,
            ],
            mask,
            narrow: narrow.then(|| value.to_dtype(DType::BF16)).transpose()?,
            value,
        })
    }
}

/// Tensors of all kinds in one step, with clipping, against the same here; then gradients that are no numbers.
#[test]
fn steps_of_everything() -> Result<()> {
    let Some(mut gpu) = Gpu::open() else {
        return Ok(());
    };
    let settings = AdamW::default();
    // Dims, learning rate, decay, whether moments are of eight bits, whether there is a mask and a copy in bf16.
    let kinds = [
        ([51, 177], 1e-2, 0.1, false, false, true),
        ([1, 1], 2e-2, 0.0, false, false, false),
        ([33, 128], 1e-2, 0.2, true, false, false),
        ([64, 64], 3e-2, 0.1, false, true, false),
        ([70, 90], 1e-2, 0.1, true, true, true),
        ([1, 4097], 1e-2, 0.0, false, false, false),
    ];
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for (dims, .., masked, narrow) in kinds {
        let (value, gvalue) = gpu.pair(&dims)?;
        let mask = masked
            .then(|| value.ge(0f32)?.to_dtype(DType::F32))
            .transpose()?;
        let gmask = mask.as_ref().map(|mask| mask.to_device(&gpu.device));
        here.push(Stepped::new(value, mask, narrow)?);
        there.push(Stepped::new(gvalue, gmask.transpose()?, narrow)?);
    }
    let step = |all: &[Stepped], step, most| {
        let updates: Vec<Update> = all
            .iter()
            .zip(kinds)
            .map(|(of, (_, lr, weight_decay, eight_bit, ..))| Update {
                param: &of.value,
                grad: &of.grad,
                moments: if eight_bit {
                    Moments::EightBit(&of.eight[0], &of.eight[1])
                } else {
                    Moments::F32(&of.wide[0], &of.wide[1])
                },
                lr,
                weight_decay,
                mask: of.mask.as_ref(),
                narrow: of.narrow.as_ref(),
            })
            .collect();
        adamw_all(&updates, &settings, step, most)?.read()
    };
    for (number, most) in [(1, None), (2, Some(1.0)), (3, Some(1e4)), (4, Some(0.0))] {
        for (here, there) in here.iter().zip(&there) {
            let (grad, ggrad) = gpu.pair(here.value.dims())?;
            copy_into(&grad, &here.grad)?;
            copy_into(&ggrad, &there.grad)?;
        }
        gpu.poison()?;
        let (norm, gnorm) = (step(&here, number, most)?, step(&there, number, most)?);
        assert!((norm - gnorm).abs() <= 1e-5 * norm, "{norm} {gnorm}");
        for (which, (here, there)) in here.iter().zip(&there).enumerate() {
            near(
                &format!("parameters {which} of step {number}"),
                &there.value,
                &here.value,
                SUMS,
            );
            near("first moments", &there.wide[0], &here.wide[0], EXACT);
            near("second moments", &there.wide[1], &here.wide[1], EXACT);
            near("gradients", &there.grad, &here.grad, 0.0);
            if let Some(narrow) = &there.narrow {
                let value = there.value.to_device(&Device::Cpu)?.to_dtype(DType::BF16)?;
                assert_same("copies", &narrow.to_device(&Device::Cpu)?, &value);
            }
            for (of_gpu, of_cpu) in there.eight.iter().zip(&here.eight) {
                let absmax = of_gpu.absmax().to_device(&Device::Cpu)?;
                near("greatest of moments", &absmax, of_cpu.absmax(), EXACT);
            }
        }
        // From the same state again, as codes midway between two levels may go to either.
        for (here, there) in here.iter().zip(&mut there) {
            let same = |moment: &EightBit| moment.to_device(&gpu.device);
            there.eight = [same(&here.eight[0])?, same(&here.eight[1])?];
        }
    }
    let before: Vec<Vec<f64>> = there
        .iter()
        .map(|of| values(&of.value.to_device(&Device::Cpu)?))
        .collect::<Result<_>>()?;
    copy_into(
        &Tensor::full(f32::NAN, (1, 4097), &gpu.device)?,
        &there[5].grad,
    )?;
    assert!(step(&there, 5, Some(1.0))?.is_nan());
    for (of, before) in there.iter().zip(before) {
        assert_eq!(
            values(&of.value.to_device(&Device::Cpu)?)?,
            before,
            "a step by no number"
        );
    }
    Ok(())
}

fn codes(moment: &EightBit) -> Result<Vec<u8>> {
    let codes = moment.codes().to_device(&Device::Cpu)?;
    codes.flatten_all()?.to_vec1()
}
