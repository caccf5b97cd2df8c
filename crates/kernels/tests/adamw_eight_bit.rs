//! AdamW with moments in eight bits: against bitsandbytes on `tests/fixtures/adamw-8bit`, and against a rounding
//! and a step written out in f64.

mod common;

use std::path::Path;

use candle_core::{DType, Device, Result, Tensor};
use common::{Generator, on_threads, single, values};
use safetensors::SafeTensors;
use sparsam_kernels::adamw::eight_bit::{BLOCK, EightBit, Map, adamw_step_eight_bit};
use sparsam_kernels::adamw::{AdamW, adamw_step};

/// As `case.json` has them.
const SETTINGS: AdamW = AdamW {
    lr: 1e-2,
    beta1: 0.9,
    beta2: 0.99,
    eps: 1e-8,
    weight_decay: 0.1,
};

struct Fixture(Vec<u8>);

impl Fixture {
    fn read() -> Self {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("../../tests/fixtures/adamw-8bit/trajectories.safetensors");
        Self(std::fs::read(path).expect("a fixture"))
    }

    fn bytes(&self, name: &str) -> (Vec<u8>, Vec<usize>) {
        let tensors = SafeTensors::deserialize(&self.0).expect("safetensors");
        let view = tensors.tensor(name).expect(name);
        (view.data().to_vec(), view.shape().to_vec())
    }

    fn floats(&self, name: &str) -> Vec<f32> {
        let (bytes, _) = self.bytes(name);
        let (words, _) = bytes.as_chunks::<4>();
        words.iter().map(|word| f32::from_le_bytes(*word)).collect()
    }

    /// The rows of a table: one a step.
    fn rows(&self, name: &str) -> Vec<Vec<f32>> {
        let width = self.bytes(name).1[1];
        self.floats(name)
            .chunks(width)
            .map(<[f32]>::to_vec)
            .collect()
    }

    fn codes(&self, name: &str) -> Vec<Vec<u8>> {
        let (bytes, shape) = self.bytes(name);
        bytes.chunks(shape[1]).map(<[u8]>::to_vec).collect()
    }
}

fn vector(values: &[f32]) -> Result<Tensor> {
    Tensor::from_slice(values, values.len(), &Device::Cpu)
}

fn moment(map: Map, codes: &[u8], absmax: &[f32]) -> Result<EightBit> {
    let codes = Tensor::from_slice(codes, codes.len(), &Device::Cpu)?;
    EightBit::from_parts(map, codes, vector(absmax)?)
}

fn zeros(like: &Tensor) -> Result<(EightBit, EightBit)> {
    let first = EightBit::zeros(like, Map::Signed)?;
    Ok((first, EightBit::zeros(like, Map::Unsigned)?))
}

fn codes(moment: &EightBit) -> Result<Vec<u8>> {
    moment.codes().flatten_all()?.to_vec1()
}

/// The greatest distance over the greatest magnitude.
fn apart(found: &[f32], expected: &[f32]) -> f32 {
    assert_eq!(found.len(), expected.len());
    let greatest = expected.iter().fold(1e-30f32, |m, x| m.max(x.abs()));
    let pairs = found.iter().zip(expected);
    pairs.fold(0f32, |worst, (a, b)| worst.max((a - b).abs())) / greatest
}

#[test]
fn the_maps_are_those_of_bitsandbytes_to_the_bit() {
    let fixture = Fixture::read();
    for (map, name) in [(Map::Signed, "signed"), (Map::Unsigned, "unsigned")] {
        let bits = |levels: &[f32]| levels.iter().map(|l| l.to_bits()).collect::<Vec<_>>();
        let levels = map.levels();
        assert_eq!(bits(levels), bits(&fixture.floats(name)), "{name}");
        assert!(levels.windows(2).all(|pair| pair[0] < pair[1]), "{name}");
    }
}

/// Each step begins with the reference's own state, so that nothing adds up.
#[test]
fn every_step_is_that_of_bitsandbytes() -> Result<()> {
    let fixture = Fixture::read();
    for case in ["even", "uneven"] {
        let of = |name: &str| format!("{case}.{name}");
        let parameters = fixture.rows(&of("parameters"));
        let states = [
            (
                Map::Signed,
                fixture.codes(&of("state1")),
                fixture.rows(&of("absmax1")),
            ),
            (
                Map::Unsigned,
                fixture.codes(&of("state2")),
                fixture.rows(&of("absmax2")),
            ),
        ];
        let mut before = fixture.floats("start");
        let (mut first, mut second) = zeros(&vector(&before)?)?;
        for (index, gradient) in fixture.rows(&of("gradients")).iter().enumerate() {
            let param = vector(&before)?;
            let grad = vector(gradient)?;
            adamw_step_eight_bit(&param, &grad, &first, &second, &SETTINGS, index + 1, 1.0)?;
            let worst = apart(&param.to_vec1()?, &parameters[index]);
            assert!(worst < 1e-6, "{case} {index}: parameters {worst:e}");
            for (found, (map, expected, absmax)) in [&first, &second].into_iter().zip(&states) {
                let mut greatest = found.absmax().to_vec1::<f32>()?;
                let found = codes(found)?;
                for (block, greatest) in greatest.iter_mut().enumerate() {
                    // Of a block of zeros bitsandbytes' reference says 1, which is of no effect.
                    if *greatest == 0.0 {
                        let zeros = &expected[index][block * BLOCK..][..BLOCK];
                        assert!(
                            zeros
                                .iter()
                                .all(|code| map.levels()[usize::from(*code)] == 0.0)
                        );
                        *greatest = 1.0;
                    }
                }
                let worst = apart(&greatest, &absmax[index]);
                assert!(worst < 1e-6, "{case} {index} {map:?}: magnitudes {worst:e}");
                // The order of a sum decides where a share lies midway between two levels.
                let pairs = || found.iter().zip(&expected[index]);
                let differing = pairs().filter(|(a, b)| a != b).count();
                assert!(differing <= 1, "{case} {index} {map:?}: {differing} codes");
                assert!(pairs().all(|(a, b)| a.abs_diff(*b) <= 1));
            }
            before.clone_from(&parameters[index]);
            let next = |at: usize| {
                let (map, codes, absmax) = &states[at];
                moment(*map, &codes[index], &absmax[index])
            };
            (first, second) = (next(0)?, next(1)?);
        }
    }
    Ok(())
}

/// Nothing is set back: what a run would do.
#[test]
fn several_steps_go_the_way_of_bitsandbytes() -> Result<()> {
    let fixture = Fixture::read();
    let start = fixture.floats("start");
    for (gradients, reference, within) in [
        ("even", "even", 1e-4),
        // A code that lies midway between two levels, and went to the other, is felt for a while.
        ("uneven", "uneven", 5e-3),
        // On a CPU bitsandbytes rounds shares to one of 65,536 even steps first.
        ("even", "cpu", 1e-2),
    ] {
        let param = vector(&start)?;
        let (first, second) = zeros(&param)?;
        let expected = fixture.rows(&format!("{reference}.parameters"));
        let gradients = fixture.rows(&format!("{gradients}.gradients"));
        for (index, (gradient, expected)) in gradients.iter().zip(&expected).enumerate() {
            let grad = vector(gradient)?;
            adamw_step_eight_bit(&param, &grad, &first, &second, &SETTINGS, index + 1, 1.0)?;
            // By how far the parameters have moved, not by how large they are.
            let moved = |values: &[f32]| -> Vec<f32> {
                values
                    .iter()
                    .zip(&start)
                    .map(|(x, start)| x - start)
                    .collect()
            };
            let worst = apart(&moved(&param.to_vec1()?), &moved(expected));
            assert!(worst < within, "{reference} {index}: {worst:e}");
        }
    }
    Ok(())
}

/// The code whose level is nearest to a share, and by how much the code found is further away.
fn further(map: Map, code: u8, share: f64) -> f64 {
    let distance = |level: f32| (f64::from(level) - share).abs();
    let least = map.levels().iter().map(|level| distance(*level));
    distance(map.levels()[usize::from(code)]) - least.fold(f64::INFINITY, f64::min)
}

/// Fails unless a moment is what f32 numbers are rounded to.
#[track_caller]
fn assert_nearest(map: Map, moment: &EightBit, numbers: &[f64]) -> Result<()> {
    let absmax = moment.absmax().to_vec1::<f32>()?;
    let codes = codes(moment)?;
    assert_eq!(absmax.len(), numbers.len().div_ceil(BLOCK));
    let stands_for = values(&moment.dequantize()?)?;
    for (at, (number, code)) in numbers.iter().zip(&codes).enumerate() {
        let block = &numbers[at / BLOCK * BLOCK..];
        let block = &block[..block.len().min(BLOCK)];
        let greatest = block.iter().fold(0f64, |m, x| m.max(x.abs()));
        let found = f64::from(absmax[at / BLOCK]);
        assert!(
            (found - greatest).abs() <= 1e-6 * greatest + 1e-45,
            "{at}: magnitude {found}, not {greatest}"
        );
        let share = if greatest > 0.0 {
            number / greatest
        } else {
            0.0
        };
        let worst = further(map, *code, share);
        assert!(
            worst < 1e-6,
            "{at}: share {share}, code {code} is {worst:e} further"
        );
        let level = f64::from(map.levels()[usize::from(*code)]);
        assert!(
            (stands_for[at] - level * found).abs() <= 1e-7 * found + 1e-45,
            "{at}: {}",
            stands_for[at]
        );
    }
    Ok(())
}

#[test]
fn every_number_goes_to_its_nearest_level() -> Result<()> {
    let mut generator = Generator(11);
    for round in 0..40 {
        let count =
            [1, 2, 255, 256, 257, 511, 512, 513, 4096][round % 9].max(generator.between(0, 900));
        // Sizes from denormal to nearly the greatest, with zeros, and some far below the rest of their block.
        let size = 10f64.powi(generator.between(0, 76) as i32 - 42);
        let numbers: Vec<f64> = values(&generator.tensor(&[count])?)?
            .into_iter()
            .map(|x| {
                let small = 10f64.powi(-(generator.between(0, 9) as i32));
                let zero = generator.between(0, 10) == 0;
                f64::from(if zero { 0.0 } else { (x * small * size) as f32 })
            })
            .collect();
        let tensor = Tensor::from_slice(&numbers, count, &Device::Cpu)?.to_dtype(DType::F32)?;
        assert_nearest(
            Map::Signed,
            &EightBit::quantize(&tensor, Map::Signed)?,
            &numbers,
        )?;
        let numbers: Vec<f64> = numbers.iter().map(|x| x.abs()).collect();
        let moment = EightBit::quantize(&tensor.abs()?, Map::Unsigned)?;
        assert_nearest(Map::Unsigned, &moment, &numbers)?;
    }
    Ok(())
}

#[test]
fn a_step_is_that_of_numbers_that_are_rounded_after_it() -> Result<()> {
    let mut generator = Generator(12);
    for dims in [
        &[1][..],
        &[255],
        &[256],
        &[257],
        &[3, 171],
        &[70, 300],
        &[2, 3, 50],
    ] {
        let param = single(&generator.tensor(dims)?)?;
        let (first, second) = zeros(&param)?;
        for step in 1..=4 {
            let size = 10f64.powi(generator.between(0, 12) as i32 - 8);
            let grad = single(&(generator.tensor(dims)? * size)?)?;
            let expected = param.to_dtype(DType::F64)?;
            let m = first.dequantize()?.to_dtype(DType::F64)?;
            let v = second.dequantize()?.to_dtype(DType::F64)?;
            let wide = grad.to_dtype(DType::F64)?;
            adamw_step(&expected, &wide, &m, &v, &SETTINGS, step, 0.25)?;
            adamw_step_eight_bit(&param, &grad, &first, &second, &SETTINGS, step, 0.25)?;
            common::assert_close("parameter", &param.to_dtype(DType::F64)?, &expected, 1e-5);
            assert_nearest(Map::Signed, &first, &values(&m)?)?;
            assert_nearest(Map::Unsigned, &second, &values(&v)?)?;
        }
    }
    Ok(())
}

#[test]
fn a_moment_beyond_f32_leaves_its_block_alone() -> Result<()> {
    let mut gradient = vec![1e-3f32; 600];
    gradient[300] = 1e30;
    let (param, grad) = (vector(&[0.0; 600])?, vector(&gradient)?);
    let (first, second) = zeros(&param)?;
    for step in 1..=3 {
        adamw_step_eight_bit(&param, &grad, &first, &second, &SETTINGS, step, 1.0)?;
    }
    for moment in [&first, &second] {
        assert!(values(&moment.dequantize()?)?.iter().all(|x| x.is_finite()));
    }
    let param = param.to_vec1::<f32>()?;
    assert!(
        param.iter().all(|x| x.is_finite()),
        "{:?}",
        &param[299..302]
    );
    assert!(param[0] < 0.0 && param[599] < 0.0);
    Ok(())
}

#[test]
fn a_gradient_of_zeros_moves_nothing() -> Result<()> {
    let param = vector(&[1.5; 700])?;
    let (first, second) = zeros(&param)?;
    let settings = AdamW {
        weight_decay: 0.0,
        ..SETTINGS
    };
    adamw_step_eight_bit(
        &param,
        &param.zeros_like()?,
        &first,
        &second,
        &settings,
        1,
        1.0,
    )?;
    assert!(param.to_vec1::<f32>()?.iter().all(|x| *x == 1.5));
    assert!(values(&first.dequantize()?)?.iter().all(|x| *x == 0.0));
    Ok(())
}

#[test]
fn threads_do_not_matter_and_bad_input_is_refused() -> Result<()> {
    let mut generator = Generator(13);
    let (start, grad) = (generator.tensor(&[50_001])?, generator.tensor(&[50_001])?);
    let (start, grad) = (single(&start)?, single(&grad)?);
    let run = || -> Result<(Tensor, EightBit, EightBit)> {
        let param = start.copy()?;
        let (first, second) = zeros(&param)?;
        for step in 1..=3 {
            adamw_step_eight_bit(&param, &grad, &first, &second, &SETTINGS, step, 1.0)?;
        }
        Ok((param, first, second))
    };
    let (one, three) = (on_threads(1, run)?, on_threads(3, run)?);
    common::assert_same("parameters", &one.0, &three.0);
    for (one, three) in [(&one.1, &three.1), (&one.2, &three.2)] {
        assert_eq!(codes(one)?, codes(three)?);
        common::assert_same("magnitudes", one.absmax(), three.absmax());
    }
    let (first, second) = zeros(&start)?;
    let step = |param: &Tensor, first: &EightBit, second: &EightBit, step: usize| {
        adamw_step_eight_bit(param, &grad, first, second, &SETTINGS, step, 1.0)
    };
    assert!(step(&start, &first, &second, 0).is_err());
    assert!(
        step(&start, &second, &first, 1).is_err(),
        "maps changed about"
    );
    assert!(step(&start.narrow(0, 0, 5)?, &first, &second, 1).is_err());
    assert!(step(&start.to_dtype(DType::F64)?, &first, &second, 1).is_err());
    assert!(moment(Map::Signed, &[0; 300], &[0.0]).is_err());
    assert!(
        EightBit::from_parts(Map::Signed, start.zeros_like()?, first.absmax().clone()).is_err()
    );
    step(&start, &first, &second, 1)
}
