//! Stored bytes and their values against bitsandbytes, on the matrices of `tests/fixtures/bnb`.

use std::path::Path;

use safetensors::{Dtype, SafeTensors};
use sparsam_kernels::Weight;
use sparsam_kernels::int8::Int8;
use sparsam_kernels::nf4::{Nf4, dynamic_map};

const NAMES: [&str; 8] = [
    "even_48x64",
    "large_range_24x80",
    "nested_132x128",
    "short_5x7",
    "ties_2x64",
    "uneven_96x33",
    "zero_rows_40x64",
    "zero_tail_3x30",
];

fn read(file: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../tests/fixtures/bnb")
        .join(file);
    std::fs::read(path).expect("a fixture")
}

fn bytes(tensors: &SafeTensors, name: &str) -> Vec<u8> {
    tensors.tensor(name).expect(name).data().to_vec()
}

fn floats(tensors: &SafeTensors, name: &str) -> Vec<f32> {
    let view = tensors.tensor(name).expect(name);
    let bytes = view.data();
    match view.dtype() {
        Dtype::F32 => bytes
            .chunks_exact(4)
            .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]))
            .collect(),
        Dtype::BF16 => bytes
            .chunks_exact(2)
            .map(|b| f32::from_le_bytes([0, 0, b[0], b[1]]))
            .collect(),
        other => panic!("{name} is {other:?}"),
    }
}

fn matrix(name: &str) -> (Vec<f32>, usize, usize) {
    let file = read("matrices.safetensors");
    let tensors = SafeTensors::deserialize(&file).expect("safetensors");
    let shape = tensors.tensor(name).expect(name).shape().to_vec();
    (floats(&tensors, name), shape[0], shape[1])
}

fn values(weight: &Weight) -> Vec<f32> {
    let tensor = weight.dequantize().expect("dequantised");
    tensor
        .flatten_all()
        .and_then(|t| t.to_vec1())
        .expect("numbers")
}

fn check_nf4(file: &str, double: bool) {
    let file = read(file);
    let tensors = SafeTensors::deserialize(&file).expect("safetensors");
    for name in NAMES {
        let (numbers, rows, columns) = matrix(name);
        let weight = Nf4::quantize(&numbers, rows, columns, double).expect(name);
        assert_eq!(
            weight.packed(),
            bytes(&tensors, &format!("{name}.weight")),
            "{name}: packed bytes"
        );
        if let Some(nested) = weight.nested() {
            assert_eq!(
                nested.codes,
                bytes(&tensors, &format!("{name}.weight.absmax")),
                "{name}: codes"
            );
            let absmax = floats(&tensors, &format!("{name}.weight.nested_absmax"));
            assert_eq!(nested.absmax, absmax, "{name}: nested scales");
            let map = floats(&tensors, &format!("{name}.weight.nested_quant_map"));
            assert_eq!(dynamic_map().to_vec(), map, "{name}: map");
        } else {
            let absmax = floats(&tensors, &format!("{name}.weight.absmax"));
            assert_eq!(weight.absmax(), absmax, "{name}: scales");
        }
        let expected = floats(&tensors, &format!("{name}.dequantised"));
        let in_bf16 = name.starts_with("nested");
        for (ours, theirs) in values(&Weight::Nf4(weight)).iter().zip(&expected) {
            let room = if in_bf16 {
                theirs.abs() / 200.0
            } else {
                theirs.abs() * 1e-6
            };
            assert!(
                (ours - theirs).abs() <= room + 1e-37,
                "{name}: {ours} and {theirs}"
            );
        }
    }
}

#[test]
fn nf4_bytes_equal_those_of_bitsandbytes() {
    check_nf4("nf4.safetensors", false);
}

#[test]
fn doubly_quantised_nf4_bytes_equal_those_of_bitsandbytes() {
    check_nf4("nf4-dq.safetensors", true);
}

#[test]
fn int8_codes_equal_those_of_bitsandbytes() {
    let file = read("int8.safetensors");
    let tensors = SafeTensors::deserialize(&file).expect("safetensors");
    for name in NAMES {
        let (numbers, rows, columns) = matrix(name);
        let weight = Int8::quantize(&numbers, rows, columns).expect(name);
        let codes: Vec<u8> = weight
            .codes()
            .iter()
            .map(|code| code.cast_unsigned())
            .collect();
        assert_eq!(
            weight.absmax(),
            floats(&tensors, &format!("{name}.SCB")),
            "{name}: row maxima"
        );
        let mut halves = 0;
        for (i, (ours, theirs)) in codes
            .iter()
            .zip(bytes(&tensors, &format!("{name}.weight")))
            .enumerate()
        {
            if *ours != theirs {
                // Exactly halfway between two codes: theirs fell to the other side in f32.
                let row_max = f64::from(weight.absmax()[i / columns]);
                let exact = f64::from(half::f16::from_f32(numbers[i]).to_f32()) * 127.0 / row_max;
                assert_eq!(exact.fract().abs(), 0.5, "{name}: code {i} of {exact}");
                assert_eq!(ours.abs_diff(theirs), 1, "{name}: code {i}");
                halves += 1;
            }
        }
        assert!(
            halves <= 1,
            "{name}: {halves} halves fell to the other side"
        );
        let expected = format!("{name}.dequantised");
        if halves == 0 && tensors.tensor(&expected).is_ok() {
            assert_eq!(
                values(&Weight::Int8(weight)),
                floats(&tensors, &expected),
                "{name}"
            );
        }
    }
}
