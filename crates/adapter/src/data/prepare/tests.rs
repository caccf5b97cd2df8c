//! Masks counted by hand: in the tokenizer of these tests every character is a token, `ab` is one
//! token, and the special tokens are `<s>`, `</s>`, `<|im_start|>`, `<|im_end|>`.

use std::path::PathBuf;

use serde_json::json;
use sparsam_base::chat_template::TemplateError;

use super::super::formats::Format;
use super::*;

fn tokenizer(template: Option<&str>, bos: bool) -> Tokenizer {
    tokenizer_with(&[], template, bos)
}

fn tokenizer_with(more: &[&str], template: Option<&str>, bos: bool) -> Tokenizer {
    let specials = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"];
    let specials: Vec<&str> = specials.iter().chain(more).copied().collect();
    let mut vocab = Map::new();
    for &token in &specials {
        vocab.insert(token.into(), vocab.len().into());
    }
    for byte in (32..127u8).chain([b'\n']) {
        vocab.insert(char::from(byte).to_string(), vocab.len().into());
    }
    vocab.insert("ab".into(), vocab.len().into());
    let added: Vec<Value> = (specials.iter().enumerate())
        .map(|(id, token)| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false,
                   "rstrip": false, "normalized": false, "special": true})
        })
        .collect();
    let json = json!({
        "version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": null, "pre_tokenizer": null, "post_processor": null, "decoder": {"type": "Fuse"},
        "model": {"type": "BPE", "dropout": null, "unk_token": "<unk>", "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "vocab": vocab, "merges": ["a b"]}
    });
    let config = json!({"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": bos, "chat_template": template});
    let bytes = |value: &Value| value.to_string().into_bytes();
    Tokenizer::from_parts(&bytes(&json), Some(&bytes(&config)), None, None).unwrap()
}

fn dataset(rows: Vec<Row>, container: Container) -> Dataset {
    let path = PathBuf::from("train.jsonl");
    let rows = rows
        .into_iter()
        .map(|row| (Place::whole(&path), row))
        .collect();
    Dataset {
        path: path.clone(),
        container,
        format: Format::Text,
        rows,
        hash: String::new(),
    }
}

fn run(
    rows: Vec<Row>,
    tokenizer: &Tokenizer,
    options: &PrepareOptions,
) -> Result<Examples, DataError> {
    let template = ChatTemplate::for_model(tokenizer, "llama").unwrap();
    prepare(
        &dataset(rows, Container::JsonLines),
        tokenizer,
        &template,
        options,
    )
}

/// The example as text with trained stretches in `⟦ ⟧`.
fn show(tokenizer: &Tokenizer, example: &Example) -> String {
    let mut out = String::new();
    let mut inside = false;
    for (&id, &trained) in example.ids.iter().zip(&example.trained) {
        if trained != inside {
            out.push(if trained { '⟦' } else { '⟧' });
            inside = trained;
        }
        out.push_str(&tokenizer.token(id).unwrap());
    }
    if inside {
        out.push('⟧');
    }
    out
}

fn masked(tokenizer: &Tokenizer, row: Row) -> String {
    let examples = run(vec![row], tokenizer, &PrepareOptions::new(1000)).unwrap();
    show(tokenizer, &examples.examples[0])
}

fn chat(turns: &[(&str, &str)]) -> Row {
    let messages = turns
        .iter()
        .map(|&(role, content)| Message::new(role, content))
        .collect();
    Row::Chat {
        messages,
        variables: Map::new(),
    }
}

fn completion(prompt: &str, completion: &str) -> Row {
    Row::Completion {
        prompt: prompt.into(),
        completion: completion.into(),
    }
}

const TWO_TURNS: [(&str, &str); 4] = [
    ("user", "Q"),
    ("assistant", "A1"),
    ("user", "R"),
    ("assistant", "A2"),
];

#[test]
fn marked_answers_with_their_end() {
    let plain = masked(&tokenizer(None, false), chat(&TWO_TURNS));
    // ChatML, as the vocabulary has its tokens.
    assert_eq!(
        plain,
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n⟦A1<|im_end|>⟧\n\
         <|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n⟦A2<|im_end|>⟧\n"
    );
    // A template that marks the text only: the token that ends the turn is trained all the same.
    let template = "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>' }}{% endfor %}";
    let text = masked(&tokenizer(Some(template), false), chat(&TWO_TURNS));
    assert_eq!(
        text,
        "user:Q<|im_end|>assistant:⟦A1<|im_end|>⟧user:R<|im_end|>assistant:⟦A2<|im_end|>⟧"
    );
}

#[test]
fn answers_by_prefixes() {
    let template = "{{ bos_token }}{% for m in messages %}{{ m.role + ':' + m.content + eos_token + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    let text = masked(&tokenizer(Some(template), true), chat(&TWO_TURNS));
    assert_eq!(
        text,
        "<s>user:Q</s>\nassistant:⟦A1</s>⟧\nuser:R</s>\nassistant:⟦A2</s>⟧\n"
    );
}

#[test]
fn answers_by_exchange_where_the_last_turn_is_written_differently() {
    // Like Qwen3: thoughts only in the last turn, and a generation prompt without them.
    let template = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and loop.last %}{{ '<t></t>' }}{% endif %}{{ m.content + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    let text = masked(&tokenizer(Some(template), false), chat(&TWO_TURNS));
    assert_eq!(
        text,
        "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n⟦A1<|im_end|>⟧\n\
         <|im_start|>user\nR<|im_end|>\n<|im_start|>assistant\n⟦<t></t>A2<|im_end|>⟧\n"
    );
}

#[test]
fn eos_is_added_and_trained_where_a_template_has_none() {
    let template = "{% for m in messages %}{{ m.role + ':' + m.content + '\n' }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    let tokenizer = tokenizer(Some(template), false);
    assert_eq!(
        masked(&tokenizer, chat(&TWO_TURNS)),
        "user:Q\nassistant:⟦A1\n⟧user:R\nassistant:⟦A2\n</s>⟧"
    );
    let marked = "{% for m in messages %}{{ m.role + ':' }}{% generation %}{% if m.role == 'assistant' %}{{ m.content }}{% endif %}{% endgeneration %}{{ '\n' }}{% endfor %}";
    let tokenizer = self::tokenizer(Some(marked), false);
    assert_eq!(
        masked(&tokenizer, chat(&[("assistant", "A")])),
        "assistant:⟦A\n</s>⟧"
    );
}

#[test]
fn a_border_that_cannot_be_found_is_an_error() {
    // The template's beginning depends on what is answered.
    let template = "{{ messages | length }}{{ messages[-1].content | length }}{% for m in messages %}{{ m.content }}{% endfor %}";
    let tokenizer = tokenizer(Some(template), false);
    let error = run(vec![chat(&TWO_TURNS)], &tokenizer, &PrepareOptions::new(99)).unwrap_err();
    assert!(
        matches!(error, DataError::NoAnswerBorder { answer: 4, .. }),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("train_on: all"));
    let all = PrepareOptions {
        train_on: TrainOn::All,
        ..PrepareOptions::new(99)
    };
    assert!(run(vec![chat(&TWO_TURNS)], &tokenizer, &all).is_ok());
}

#[test]
fn only_the_completion_of_a_chat_completion() {
    let messages: Vec<Message> = TWO_TURNS
        .iter()
        .map(|&(role, text)| Message::new(role, text))
        .collect();
    let row = |answer| Row::ChatCompletion {
        messages: messages.clone(),
        answer,
        variables: Map::new(),
    };
    let expected = "user:Q</s>assistant:A1</s>user:R</s>assistant:⟦A2</s>⟧";
    let template = "{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    assert_eq!(masked(&tokenizer(Some(template), false), row(3)), expected);
    let marked = "{% for m in messages %}{{ m.role + ':' }}{% if m.role == 'assistant' %}{% generation %}{{ m.content + eos_token }}{% endgeneration %}{% else %}{{ m.content + eos_token }}{% endif %}{% endfor %}";
    assert_eq!(masked(&tokenizer(Some(marked), false), row(3)), expected);
}

#[test]
fn completions_are_plain_without_and_chats_with_a_template() {
    let plain = tokenizer(None, true);
    assert_eq!(masked(&plain, completion("x: ", "y")), "<s>x: ⟦y</s>⟧");
    // `ab` reaches over the border and holds a byte of the answer.
    assert_eq!(masked(&plain, completion("xa", "by")), "<s>x⟦aby</s>⟧");
    assert_eq!(plain.encode("xaby", true).unwrap().len() + 1, 5);

    let template = "{{ bos_token }}{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}";
    let own = tokenizer(Some(template), true);
    assert_eq!(
        masked(&own, completion("x", "y")),
        "<s>user:x</s>assistant:⟦y</s>⟧"
    );
    let forced = PrepareOptions {
        prompt_format: PromptFormat::Plain,
        ..PrepareOptions::new(99)
    };
    let examples = run(vec![completion("x", "y")], &own, &forced).unwrap();
    assert_eq!(show(&own, &examples.examples[0]), "<s>x⟦y</s>⟧");
}

#[test]
fn texts_are_trained_whole_but_for_their_first_token() {
    assert_eq!(
        masked(&tokenizer(None, true), Row::Text("xy".into())),
        "<s>⟦xy</s>⟧"
    );
    assert_eq!(
        masked(&tokenizer(None, false), Row::Text("xy".into())),
        "x⟦y</s>⟧"
    );
}

#[test]
fn training_on_all() {
    let options = PrepareOptions {
        train_on: TrainOn::All,
        ..PrepareOptions::new(99)
    };
    let tokenizer = tokenizer(None, true);
    let examples = run(
        vec![chat(&TWO_TURNS[..2]), completion("x", "y")],
        &tokenizer,
        &options,
    )
    .unwrap();
    assert_eq!(
        show(&tokenizer, &examples.examples[0]),
        "<|im_start|>⟦user\nQ<|im_end|>\n<|im_start|>assistant\nA1<|im_end|>\n⟧"
    );
    assert_eq!(show(&tokenizer, &examples.examples[1]), "<s>⟦xy</s>⟧");
}

#[test]
fn long_rows_are_cut_counted_and_dropped() {
    let tokenizer = tokenizer(None, true);
    let rows = vec![
        completion("xx", "y"),
        completion("x", "yyyyyy"),
        completion("xxxxxxx", "y"),
    ];
    let examples = run(rows, &tokenizer, &PrepareOptions::new(5)).unwrap();
    let shown: Vec<String> = examples
        .examples
        .iter()
        .map(|example| show(&tokenizer, example))
        .collect();
    assert_eq!(shown, ["<s>xx⟦y</s>⟧", "<s>x⟦yyy⟧"]);
    let expected = Statistics {
        rows: 3,
        examples: 2,
        tokens: 10,
        trained_tokens: 5,
        truncated: 2,
        split: 0,
        dropped: 1,
        longest: 10,
    };
    assert_eq!(examples.statistics, expected);
    assert_eq!(
        examples.statistics.to_string(),
        "3 rows, 2 examples, 10 tokens, 5 trained, longest 10, 2 cut at `max_length`, 1 dropped with nothing to train"
    );
    assert_eq!(examples.lengths(), [5, 5]);
}

#[test]
fn text_files_are_split_with_every_token_a_target_once() {
    let tokenizer = tokenizer(None, true);
    let template = ChatTemplate::for_model(&tokenizer, "llama").unwrap();
    let text = "abcdefghijk";
    for length in 2..16 {
        let file = dataset(vec![Row::Text(text.into())], Container::TextFile);
        let Examples {
            examples,
            statistics,
        } = prepare(&file, &tokenizer, &template, &PrepareOptions::new(length)).unwrap();
        let targets: Vec<u32> = (examples.iter())
            .flat_map(|example| example.ids.iter().zip(&example.trained))
            .filter_map(|(&id, &trained)| trained.then_some(id))
            .collect();
        let mut whole = tokenizer.encode(text, false).unwrap();
        whole.push(2);
        assert_eq!(targets, whole);
        assert!(examples.iter().all(|example| example.ids.len() <= length));
        assert_eq!(statistics.split, usize::from(length < 12));
        assert_eq!(statistics.truncated, 0);
    }
}

#[test]
fn a_data_set_without_a_target_is_refused_with_its_cause() {
    let tokenizer = tokenizer(None, true);
    let cause = |rows, length| {
        run(rows, &tokenizer, &PrepareOptions::new(length))
            .unwrap_err()
            .to_string()
    };
    let text = cause(vec![completion("xxxx", "y")], 4);
    assert!(
        text.contains("every answer begins after `max_length` tokens"),
        "{text}"
    );
    let text = cause(vec![chat(&[("user", "hello")])], 99);
    assert!(
        text.contains("no row has an answer that the mask can see"),
        "{text}"
    );
    assert!(
        text.starts_with("`train.jsonl`: nothing would be trained"),
        "{text}"
    );
    let error = run(
        vec![completion("x", "y")],
        &tokenizer,
        &PrepareOptions::new(1),
    )
    .unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("`max_length` must be at least 2"),
        "{error}"
    );
}

#[test]
fn a_refusing_template_names_the_row() {
    let template =
        "{% if messages | length > 1 %}{{ raise_exception('one turn only') }}{% endif %}x";
    let tokenizer = tokenizer(Some(template), false);
    let error = run(vec![chat(&TWO_TURNS)], &tokenizer, &PrepareOptions::new(9)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`train.jsonl`: the chat template refuses this conversation: one turn only"
    );
}

/// Answers must be found in every real template that takes the conversation, whole and closed by a
/// special token. `SPARSAM_SHARED` names a folder with real templates; without it nothing is checked.
#[test]
#[expect(clippy::print_stderr, reason = "a skipped check must be seen")]
fn answers_are_found_in_real_templates() {
    let Some(shared) = std::env::var_os("SPARSAM_SHARED") else {
        eprintln!("skipped: SPARSAM_SHARED is not set");
        return;
    };
    let folder = PathBuf::from(shared).join("data/chat_templates");
    let read = |path: PathBuf| std::fs::read_to_string(path).unwrap();
    let cases: Vec<Value> = serde_json::from_str(&read(folder.join("cases.json"))).unwrap();
    let mut templates: Vec<(String, String)> = cases
        .iter()
        .map(|case| {
            (
                case["name"].to_string(),
                case["template"].as_str().unwrap().to_owned(),
            )
        })
        .collect();
    for entry in folder.read_dir().unwrap() {
        let path = entry.unwrap().path();
        if path
            .extension()
            .is_some_and(|extension| extension == "jinja")
        {
            templates.push((
                path.file_name().unwrap().to_string_lossy().into(),
                read(path),
            ));
        }
    }
    // What looks like a special token is made one.
    let special =
        regex::Regex::new(r"<[|｜][^|｜<>{}]*[|｜]>|<(start|end)_of_turn>|\[/?INST\]").unwrap();
    let system = [("system", "Be kind.")];
    let turns = [
        ("user", "First?"),
        ("assistant", "Answer one."),
        ("user", "Second?"),
        ("assistant", "Answer two."),
    ];
    let mut failures = Vec::new();
    for (name, template) in &templates {
        let mut specials: Vec<&str> = special
            .find_iter(template)
            .map(|found| found.as_str())
            .collect();
        specials.sort_unstable();
        specials.dedup();
        specials.retain(|token| !["<|im_start|>", "<|im_end|>"].contains(token));
        let tokenizer = tokenizer_with(&specials, Some(template), false);
        for conversation in [
            [&system[..], &turns].concat(),
            turns.to_vec(),
            turns[..2].to_vec(),
        ] {
            let expected = conversation
                .iter()
                .filter(|(role, _)| *role == "assistant")
                .count();
            let shown = match run(
                vec![chat(&conversation)],
                &tokenizer,
                &PrepareOptions::new(100_000),
            ) {
                Ok(examples) => show(&tokenizer, &examples.examples[0]),
                Err(DataError::Template {
                    source: TemplateError::Refused(_),
                    ..
                }) => continue,
                // This one never writes a last answer.
                Err(DataError::NoAnswerBorder { .. }) if name.contains("YandexGPT") => continue,
                Err(error) => {
                    failures.push(format!("{name}: {error}"));
                    continue;
                }
            };
            let answers: Vec<&str> = shown
                .split('⟦')
                .skip(1)
                .map(|part| part.split('⟧').next().unwrap())
                .collect();
            let wholes = ["Answer one.", "Answer two."];
            let found = answers
                .iter()
                .zip(wholes)
                .filter(|(got, whole)| got.contains(whole))
                .count();
            let clean = answers
                .iter()
                .all(|answer| !answer.contains("Second?") && !answer.contains("First?"));
            let one_end = answers
                .iter()
                .all(|answer| answer.matches("|>").count() <= 3);
            if answers.len() != expected || found != expected || !clean || !one_end {
                failures.push(format!("{name}: {shown}"));
            }
        }
    }
    assert!(templates.len() > 20);
    assert!(failures.is_empty(), "{}", failures.join("\n\n"));
}
