//! What a user may have meant: the nearest valid name, the right place of a key, and the words
//! other trainers use for it.

use super::manual;

/// Keys that exclude each other.
const EXCLUSIVE: [(&str, &str); 2] = [("epochs", "max_steps"), ("warmup_ratio", "warmup_steps")];

/// Words of PEFT, transformers, Axolotl, LLaMA-Factory, torchtune and mlx-lm, and our key for
/// each. Only those too far from ours in spelling to be found as the nearest name.
const ELSEWHERE: [(&str, &str); 28] = [
    ("base_model", "model"),
    ("model_name_or_path", "model"),
    ("finetuning_type", "method"),
    ("fine_tune_type", "method"),
    ("load_in_4bit", "quantize"),
    ("load_in_8bit", "quantize"),
    ("bf16", "dtype"),
    ("torch_dtype", "dtype"),
    ("rank", "lora.r"),
    ("lora_r", "lora.r"),
    ("lora_alpha", "lora.alpha"),
    ("lora_dropout", "lora.dropout"),
    ("lora_target_modules", "lora.target_modules"),
    ("dataset", "data.train"),
    ("datasets", "data.train"),
    ("test_datasets", "data.eval"),
    ("sequence_len", "max_length"),
    ("cutoff_len", "max_length"),
    ("max_seq_length", "max_length"),
    ("sample_packing", "packing"),
    ("num_train_epochs", "epochs"),
    ("num_epochs", "epochs"),
    ("iters", "max_steps"),
    ("per_device_train_batch_size", "batch_size"),
    ("micro_batch_size", "batch_size"),
    ("lr", "learning_rate"),
    ("grad_checkpoint", "gradient_checkpointing"),
    ("optimizer", "optim"),
];

/// Values in transformers' words, and ours for each; those of paged ones too, as nothing here is moved to make room.
const VALUES_ELSEWHERE: [(&str, &str); 8] = [
    ("adamw_torch", "adamw"),
    ("adamw_torch_fused", "adamw"),
    ("adamw_hf", "adamw"),
    ("paged_adamw", "adamw"),
    ("paged_adamw_32bit", "adamw"),
    ("adamw_bnb_8bit", "adamw_8bit"),
    ("adamw_torch_8bit", "adamw_8bit"),
    ("paged_adamw_8bit", "adamw_8bit"),
];

/// The key that setting `key` makes void.
pub(super) fn excluded_by(key: &str) -> Option<&'static str> {
    EXCLUSIVE.iter().find_map(|&(left, right)| match key {
        key if key == left => Some(right),
        key if key == right => Some(left),
        _ => None,
    })
}

/// A hint for an unknown key inside `path`, where `known` are the keys of that level.
pub(super) fn key(key: &str, path: &str, known: &[String]) -> Option<String> {
    let dotted = |name: &str| match path {
        "" => name.to_owned(),
        path => format!("{path}.{name}"),
    };
    if let Some(&(_, ours)) = ELSEWHERE.iter().find(|(theirs, _)| *theirs == key) {
        return Some(format!("here it is called `{ours}`"));
    }
    if let Some(near) = nearest(key, known.iter().map(String::as_str)) {
        return Some(format!("did you mean `{}`?", dotted(near)));
    }
    let all = manual::keys();
    let elsewhere = all
        .iter()
        .find(|candidate| candidate.rsplit('.').next() == Some(key))?;
    Some(format!("the key stands at `{elsewhere}`"))
}

/// A hint for a value that is none of `known`.
pub(super) fn value(word: &str, known: &[String]) -> Option<String> {
    let ours = VALUES_ELSEWHERE
        .iter()
        .find(|(theirs, ours)| *theirs == word && known.iter().any(|known| known == ours));
    if let Some((_, ours)) = ours {
        return Some(format!("here it is called `{ours}`"));
    }
    let near = nearest(word, known.iter().map(String::as_str))?;
    Some(format!("did you mean `{near}`?"))
}

/// The name nearest to `word`, if one is near enough to have been meant: at most a third of its
/// letters wrong, missing or swapped.
pub(super) fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase().replace(['-', ' '], "_");
    known
        .map(|name| {
            let distance = strsim::damerau_levenshtein(&word, &name.replace('-', "_"));
            (distance, name)
        })
        .filter(|&(distance, name)| distance * 3 <= name.chars().count().max(3))
        .min_by_key(|&(distance, _)| distance)
        .map(|(_, name)| name)
}
