//! Packing keeps every value within half a step, and what is written out is what was built in.

use super::*;

const CONFIG: &str = r#"{"model_type": "llama", "hidden_size": 8, "intermediate_size": 12,
    "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 6,
    "max_position_embeddings": 16, "tie_word_embeddings": true}"#;

fn matrix(rows: usize, columns: usize) -> Tensor {
    let values: Vec<f32> = (0..rows * columns)
        .map(|i| (i as f32 * 0.7).sin() * (1.0 + (i / columns) as f32))
        .collect();
    Tensor::from_vec(values, (rows, columns), &Device::Cpu).expect("a matrix")
}

fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    for name in TEXT_FILES {
        fs::write(folder.path().join(name), "{}").expect("written");
    }
    fs::write(folder.path().join("config.json"), CONFIG).expect("written");
    fs::write(
        folder.path().join(TOKENIZER_FILE),
        "{\n  \"version\": \"1.0\"\n}\n",
    )
    .expect("written");
    let norm = matrix(1, 8).squeeze(0).expect("a vector");
    let stored = [
        Stored::f32("a.weight", &matrix(5, 8)).expect("stored"),
        Stored::f32("zero.weight", &matrix(3, 4).zeros_like().expect("zeros")).expect("stored"),
        Stored::f32("norm.weight", &norm).expect("stored"),
        Stored::f32(HEAD, &matrix(6, 8)).expect("stored"),
    ];
    let bytes = serialize(&stored).expect("serialised");
    fs::write(folder.path().join(WEIGHTS_FILE), bytes).expect("written");
    folder
}

#[test]
fn packed_values_are_within_half_a_step() {
    let (from, to) = (folder(), tempfile::tempdir().expect("a folder"));
    pack(from.path(), to.path()).expect("packed");
    let bytes = fs::read(to.path().join(WEIGHTS_FILE)).expect("read");
    let packed = Packed::new(Cow::Owned(bytes)).expect("opened");
    let names: Vec<&str> = packed.names().collect();
    assert_eq!(
        names,
        ["a.weight", "norm.weight", "zero.weight"],
        "the tied head is left out, and scales are not tensors of their own"
    );
    assert!(!packed.contains("a.weight.scale") && packed.tensor("a.weight.scale").is_err());

    let (before, after) = (matrix(5, 8), packed.tensor("a.weight").expect("there"));
    let rows = |tensor: &Tensor| tensor.to_vec2::<f32>().expect("rows");
    for (before, after) in rows(&before).iter().zip(rows(&after)) {
        let step = before.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
        for (before, after) in before.iter().zip(after) {
            assert!((before - after).abs() <= step * 0.5001, "{before} {after}");
        }
    }
    let zero = packed.tensor("zero.weight").expect("there");
    assert!(rows(&zero).iter().flatten().all(|value| *value == 0.0));
    let norm = packed.tensor("norm.weight").expect("there");
    assert_eq!(norm.to_vec1::<f32>().expect("values"), rows(&before)[0]);
    assert_eq!(
        fs::read_to_string(to.path().join(TOKENIZER_FILE)).expect("read"),
        r#"{"version":"1.0"}"#
    );
    assert_eq!(
        fs::read_dir(to.path()).expect("listed").count(),
        6,
        "nothing is left beside"
    );
}

#[test]
fn a_damaged_file_is_an_error_and_no_panic() {
    let (from, to) = (folder(), tempfile::tempdir().expect("a folder"));
    pack(from.path(), to.path()).expect("packed");
    let bytes = fs::read(to.path().join(WEIGHTS_FILE)).expect("read");
    for length in [0, 7, 40, bytes.len() - 1] {
        assert!(
            Packed::new(Cow::Borrowed(&bytes[..length])).is_err(),
            "{length}"
        );
    }
}

#[test]
fn an_unpacked_folder_is_the_built_in_model() {
    let parent = tempfile::tempdir().expect("a folder");
    let folder = parent.path().join("sprout");
    let builtin = find("builtin:sprout").expect("sprout is built in");
    builtin.unpack(&folder).expect("written");
    assert_eq!(
        fs::read_dir(parent.path()).expect("listed").count(),
        1,
        "nothing is left beside"
    );
    let files = SafetensorsFiles::in_folder(&folder).expect("opened");
    let packed = builtin.tensors().expect("opened");
    assert!(files.names().eq(packed.names()));
    for name in packed.names() {
        let values = |tensor: Tensor| {
            let tensor = tensor.flatten_all().expect("flat");
            tensor.to_vec1::<f32>().expect("values")
        };
        let (file, memory) = (files.tensor(name), packed.tensor(name));
        assert_eq!(
            values(file.expect("read")),
            values(memory.expect("read")),
            "{name}"
        );
    }
    let tokenizer = Tokenizer::from_dir(&folder).expect("a tokenizer");
    assert!(tokenizer.chat_template().is_some());
    assert!(
        matches!(builtin.unpack(&folder), Err(Error::Occupied { .. })),
        "a folder with files is not overwritten"
    );
}

#[test]
fn every_built_in_model_loads_with_its_tokenizer() {
    for name in names() {
        let builtin = find(name).expect("named");
        let options = LoadOptions {
            quantize: crate::model::Quantize::None,
            dtype: DType::F32,
            max_length: 16,
        };
        let model = builtin.load(options).expect("it loads");
        let tokenizer = builtin.tokenizer().expect("it has a tokenizer");
        tokenizer
            .check_fits(model.config.vocab_size)
            .expect("they fit");
        let bytes = builtin.weights.len() + builtin.tokenizer.len();
        assert!(bytes <= 4 << 20, "{name} takes {bytes} bytes");
    }
    assert!(find("builtin:oak").is_none());
}
