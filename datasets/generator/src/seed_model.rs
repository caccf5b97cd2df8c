//! The model *sprout* before its training: a tokenizer learnt from the corpus, a configuration and random
//! weights, laid out as a Hugging Face folder.
//!
//! The tokenizer is a byte-level BPE, so that every text has tokens; digits stand alone, because a number
//! is copied digit by digit. The weights are drawn tensor by tensor from streams named after the tensors,
//! so they do not depend on the order of writing. Some of the first two blocks' heads begin with a task, see
//! [`crate::copying`].

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::{byte_level::ByteLevel, digits::Digits, sequence::Sequence};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::{AddedToken, Tokenizer};

use crate::copying::{self, Matrix};
use crate::dice::Dice;
use crate::error::Error;
use crate::rows;

/// The special tokens; their places are their ids.
pub const SPECIAL: [&str; 6] = [
    "<s>",
    "</s>",
    "<pad>",
    "<|user|>",
    "<|assistant|>",
    "<|system|>",
];

/// One turn is a mark of who speaks, a line break, the words, the end mark and a line break.
const CHAT_TEMPLATE: &str = "{% for message in messages %}\
    {% if message['role'] == 'assistant' %}\
    {{ '<|assistant|>\\n' }}{% generation %}{{ message['content'] + '</s>' }}{% endgeneration %}{{ '\\n' }}\
    {% else %}\
    {{ '<|' + message['role'] + '|>\\n' + message['content'] + '</s>\\n' }}\
    {% endif %}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}";

/// Standard deviation of the initial weights, as Llama's `initializer_range`.
const SPREAD: f64 = 0.02;

/// The sizes of the model.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Entries of the tokenizer and rows of the embedding.
    pub vocabulary: usize,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Decoder blocks.
    pub layers: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head: usize,
    /// Width of the feed-forward layer.
    pub intermediate: usize,
    /// Longest sequence, in tokens.
    pub context: usize,
}

/// sprout: 3.1 million parameters.
pub const SPROUT: Shape = Shape {
    vocabulary: 4096,
    hidden: 192,
    layers: 6,
    heads: 6,
    kv_heads: 2,
    head: 32,
    intermediate: 512,
    context: 512,
};

/// Writes the folder `output` from the texts of `corpus`/train.jsonl.
pub fn write(corpus: &Path, seed: u64, shape: &Shape, output: &Path) -> Result<(), Error> {
    let texts = rows::read_texts(&corpus.join("train.jsonl"))?;
    let tokenizer = train_tokenizer(&texts, shape.vocabulary)?;
    fs_err::create_dir_all(output)?;
    let tokenizer_json = tokenizer
        .to_string(true)
        .map_err(|error| Error::Tokenizer(error.to_string()))?;
    let files = [
        ("tokenizer.json", tokenizer_json),
        ("tokenizer_config.json", pretty(&tokenizer_config(shape))),
        ("config.json", pretty(&config(shape))),
        ("generation_config.json", pretty(&generation_config())),
    ];
    for (name, text) in files {
        rows::write_with(&output.join(name), |out| {
            writeln!(out, "{text}")?;
            Ok(())
        })?;
    }
    let weights = weights(seed, shape)?;
    rows::write_with(&output.join("model.safetensors"), |out| {
        Ok(out.write_all(&weights)?)
    })
}

fn pretty(value: &serde_json::Value) -> String {
    format!("{value:#}")
}

fn train_tokenizer(texts: &[String], vocabulary: usize) -> Result<Tokenizer, Error> {
    let wrong = |error: tokenizers::Error| Error::Tokenizer(error.to_string());
    let special = SPECIAL.map(|token| AddedToken::from(token, true));
    let mut tokenizer = Tokenizer::new(BPE::default());
    tokenizer
        .with_pre_tokenizer(Some(Sequence::new(vec![
            Digits::new(true).into(),
            ByteLevel::new(false, true, true).into(),
        ])))
        .with_decoder(Some(ByteLevel::default()));
    let mut trainer = TrainerWrapper::from(
        BpeTrainer::builder()
            .vocab_size(vocabulary)
            .min_frequency(2)
            .show_progress(false)
            .special_tokens(special.to_vec())
            .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
            .build(),
    );
    // The marks of a chat are tokens of their own, so the pieces between them are what is learnt from.
    let pieces = texts.iter().flat_map(|text| {
        text.split("<|user|>")
            .flat_map(|part| part.split("<|assistant|>"))
            .flat_map(|part| part.split("</s>"))
    });
    tokenizer.train(&mut trainer, pieces).map_err(wrong)?;
    let found = tokenizer.get_vocab_size(true);
    if found != vocabulary {
        return Err(Error::Vocabulary {
            found,
            wanted: vocabulary,
        });
    }
    let first = TemplateProcessing::builder()
        .try_single("<s> $A")
        .and_then(|builder| builder.try_pair("<s> $A <s>:1 $B:1"))
        .map_err(Error::Tokenizer)?
        .special_tokens(vec![("<s>", 0)])
        .build()
        .map_err(|error| Error::Tokenizer(error.to_string()))?;
    tokenizer.with_post_processor(Some(first));
    Ok(tokenizer)
}

fn tokenizer_config(shape: &Shape) -> serde_json::Value {
    json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "additional_special_tokens": ["<|user|>", "<|assistant|>", "<|system|>"],
        "add_bos_token": true,
        "add_eos_token": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": shape.context,
        "chat_template": CHAT_TEMPLATE,
    })
}

fn config(shape: &Shape) -> serde_json::Value {
    json!({
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head,
        "intermediate_size": shape.intermediate,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context,
        "tie_word_embeddings": true,
        "rope_theta": 10000.0,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "attention_bias": false,
        "mlp_bias": false,
        "initializer_range": SPREAD,
        "torch_dtype": "float32",
        "bos_token_id": 0,
        "eos_token_id": 1,
        "pad_token_id": 2,
    })
}

fn generation_config() -> serde_json::Value {
    json!({ "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2 })
}

/// Names and shapes `[rows, columns]` (or `[width]`) of the tensors, as in Hugging Face's Llama.
fn tensors(shape: &Shape) -> Vec<(String, Vec<usize>)> {
    let Shape {
        hidden,
        intermediate,
        ..
    } = *shape;
    let (queries, keys) = (shape.heads * shape.head, shape.kv_heads * shape.head);
    let mut list = vec![(
        "model.embed_tokens.weight".to_owned(),
        vec![shape.vocabulary, hidden],
    )];
    for layer in 0..shape.layers {
        let parts = [
            ("input_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![queries, hidden]),
            ("self_attn.k_proj", vec![keys, hidden]),
            ("self_attn.v_proj", vec![keys, hidden]),
            ("self_attn.o_proj", vec![hidden, queries]),
            ("post_attention_layernorm", vec![hidden]),
            ("mlp.gate_proj", vec![intermediate, hidden]),
            ("mlp.up_proj", vec![intermediate, hidden]),
            ("mlp.down_proj", vec![hidden, intermediate]),
        ];
        list.extend(
            parts.map(|(part, size)| (format!("model.layers.{layer}.{part}.weight"), size)),
        );
    }
    list.push(("model.norm.weight".to_owned(), vec![hidden]));
    list
}

/// The weights as a safetensors file, f32. Norms are one; what writes to the residual stream is scaled by
/// 1/sqrt(2·layers), as in GPT-2 (Radford et al. 2019, section 2.3), the rest drawn with `SPREAD`; then some
/// heads are given their task.
fn weights(seed: u64, shape: &Shape) -> Result<Vec<u8>, Error> {
    let quieter = SPREAD / ((2 * shape.layers) as f64).sqrt();
    let mut drawn: BTreeMap<String, Matrix> = tensors(shape)
        .into_iter()
        .map(|(name, size)| {
            let spread = if name.contains("o_proj") || name.contains("down_proj") {
                quieter
            } else {
                SPREAD
            };
            let mut dice = Dice::new(seed, &name);
            let is_norm = name.contains("norm");
            let values = (0..size.iter().product::<usize>())
                .map(|_| if is_norm { 1.0 } else { dice.normal() * spread })
                .collect();
            (name, Matrix { size, values })
        })
        .collect();
    copying::prepare(&mut drawn, shape, &mut Dice::new(seed, "copying"));
    let filled: Vec<(String, Vec<usize>, Vec<u8>)> = drawn
        .into_iter()
        .map(|(name, Matrix { size, values })| {
            let bytes = values
                .iter()
                .flat_map(|value| (*value as f32).to_le_bytes());
            (name, size, bytes.collect())
        })
        .collect();
    let views = filled
        .iter()
        .map(|(name, size, bytes)| {
            Ok((
                name.as_str(),
                TensorView::new(Dtype::F32, size.clone(), bytes)?,
            ))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    Ok(safetensors::serialize(views, Some(metadata))?)
}

#[cfg(test)]
mod tests {
    use super::{SPECIAL, SPROUT, Shape, tensors, write};
    use crate::corpus;

    const TINY: Shape = Shape {
        vocabulary: 512,
        hidden: 16,
        layers: 2,
        heads: 2,
        kv_heads: 1,
        head: 8,
        intermediate: 24,
        context: 64,
    };

    #[test]
    fn twice_gives_equal_bytes_and_what_was_promised() {
        let folder = tempfile::tempdir().unwrap();
        let corpus_folder = folder.path().join("corpus");
        corpus::write(&corpus_folder, 1, 1).unwrap();
        let (one, two) = (folder.path().join("one"), folder.path().join("two"));
        write(&corpus_folder, 1, &TINY, &one).unwrap();
        write(&corpus_folder, 1, &TINY, &two).unwrap();
        for file in [
            "tokenizer.json",
            "tokenizer_config.json",
            "config.json",
            "generation_config.json",
            "model.safetensors",
        ] {
            let read = |folder: &std::path::Path| fs_err::read(folder.join(file)).unwrap();
            assert_eq!(read(&one), read(&two), "{file}");
        }
        let tokenizer = tokenizers::Tokenizer::from_file(one.join("tokenizer.json")).unwrap();
        for (id, token) in SPECIAL.iter().enumerate() {
            assert_eq!(tokenizer.token_to_id(token), Some(id as u32), "{token}");
        }
        let text = "<|user|>\nIn der Mühlenstraße 117 blüht die Linde.</s>\n";
        let encoded = tokenizer.encode(text, true).unwrap();
        assert_eq!(encoded.get_ids()[..2], [0, 3]);
        assert_eq!(encoded.get_ids().iter().filter(|&&id| id == 1).count(), 1);
        assert_eq!(
            tokenizer.decode(&encoded.get_ids()[1..], false).unwrap(),
            text
        );
    }

    #[test]
    fn sprout_has_three_million_parameters() {
        let count: usize = tensors(&SPROUT)
            .iter()
            .map(|(_, size)| size.iter().product::<usize>())
            .sum();
        assert_eq!(count, 3_148_224);
    }
}
