//! Templates of our own for every trait the environment must have; real ones are run by the
//! integration test `shared_templates`.

use serde_json::json;

use super::*;

fn render(source: &str) -> String {
    let messages = [Message::new("user", "Hi"), Message::new("assistant", "Ja")];
    ChatTemplate::new(source, "<s>", "</s>")
        .unwrap()
        .render(&messages, false)
        .unwrap()
        .text
}

#[test]
fn whitespace_as_in_transformers() {
    assert_eq!(
        render(
            "{% for m in messages %}\n  {% if true %}\n{{ m.content }}\n  {% endif %}\n{% endfor %}\n"
        ),
        "Hi\nJa\n"
    );
    assert_eq!(render("a\n{%- if true -%}\n b\n{%- endif %}\nc\n"), "abc");
}

#[test]
fn python_ways() {
    assert_eq!(
        render("{{ true }} {{ none }} {{ tools }} {{ nope }} {{ ['a', 1.0] }}"),
        "True None None  ['a', 1.0]"
    );
    assert_eq!(
        render("{{ ' x '.strip() }}|{{ 'a,b'.split(',')[-1] }}|{{ 'abc'.startswith('ab') }}"),
        "x|b|True"
    );
    assert_eq!(
        render("{{ 'x' is iterable }} {{ 'x' is sequence }} {{ messages[0] is mapping }}"),
        "True True True"
    );
    assert_eq!(
        render("{{ messages[0].items() | list | length }} {{ messages[::-1][0].content }}"),
        "2 Ja"
    );
    assert_eq!(
        render(
            "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i > 2 %}{% break %}{% endif %}{{ i }}{% endfor %}"
        ),
        "02"
    );
    assert_eq!(
        render(
            "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}"
        ),
        "2"
    );
    assert_eq!(
        render("{{ {'a': 'ü<', 'b': [1]} | tojson }}"),
        "{\"a\": \"ü<\", \"b\": [1]}"
    );
    assert_eq!(
        render("{{ {'a': 1} | tojson(indent=2) }}"),
        "{\n  \"a\": 1\n}"
    );
    assert_eq!(
        render("{{ {'a': [1, 2]} | tojson(separators=(',', ':')) }}"),
        "{\"a\":[1,2]}"
    );
}

#[test]
fn clock_can_be_stopped() {
    let template = ChatTemplate::new("{{ strftime_now('%d %b %Y, %B') }}", "", "").unwrap();
    assert_eq!(
        template.with_clock(86_400).render(&[], false).unwrap().text,
        "02 Jan 1970, January"
    );
}

#[test]
fn generation_blocks_become_ranges() {
    let source = "{% for m in messages %}\n{{ m.role }}: {% generation %}{% if m.role == 'assistant' %}{{ m.content }}.{% endif %}{% endgeneration %}\n{% endfor %}";
    let template = ChatTemplate::new(source, "", "").unwrap();
    assert!(template.marks_assistant());
    let messages = [
        Message::new("user", "é"),
        Message::new("assistant", "öl"),
        Message::new("assistant", "x"),
    ];
    let Rendered { text, assistant } = template.render(&messages, false).unwrap();
    let said: Vec<&str> = assistant
        .unwrap()
        .into_iter()
        .map(|range| &text[range])
        .collect();
    assert_eq!(said, ["öl.", "x."]);
    assert_eq!(text, "user: assistant: öl.assistant: x.");
    let forged = [Message::new("user", "a\u{FDD0}")];
    assert!(matches!(
        template.render(&forged, false),
        Err(TemplateError::Noncharacter(0xFDD0))
    ));
}

#[test]
fn errors_name_the_line_or_the_reason() {
    let error = ChatTemplate::new("\n{% if %}", "", "").unwrap_err();
    assert!(
        matches!(error, TemplateError::Syntax { line: 2, .. }),
        "{error}"
    );
    let template = ChatTemplate::new("{{ raise_exception('no system role') }}", "", "").unwrap();
    let error = template.render(&[], false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the chat template refuses this conversation: no system role"
    );
    let template = ChatTemplate::new("a\nb {{ nope.deep }}", "", "").unwrap();
    let error = template.render(&[], false).unwrap_err();
    assert!(
        matches!(error, TemplateError::Failed { line: 2, .. }),
        "{error}"
    );
}

#[test]
fn variables_and_message_fields_reach_the_template() {
    let source = "{{ tools[0].name }} {{ enable_thinking }} {{ messages[0].tool_calls[0].id }} {{ bos_token }}{{ eos_token }}";
    let mut message = Message::new("assistant", "");
    message
        .extra
        .insert("tool_calls".into(), json!([{"id": 7}]));
    let variables = json!({"tools": [{"name": "f"}], "enable_thinking": false});
    let template = ChatTemplate::new(source, "<s>", "</s>").unwrap();
    let rendered = template
        .render_with(&[message], true, variables.as_object().unwrap())
        .unwrap();
    assert_eq!(rendered.text, "f False 7 <s></s>");
}

#[test]
fn defaults_mark_the_answer_with_its_end() {
    let messages = [
        Message::new("system", "Kurz."),
        Message::new("user", "Was ist das?"),
        Message::new("assistant", "Ein Baum."),
    ];
    for (family, text, answer) in [
        (
            "llama",
            "<s>### System\nKurz.\n\n### User\nWas ist das?\n\n### Assistant\nEin Baum.</s>\n\n",
            "Ein Baum.</s>",
        ),
        (
            "mistral",
            "<s>[INST] Kurz.\n\nWas ist das? [/INST] Ein Baum.</s>",
            " Ein Baum.</s>",
        ),
        (
            "qwen3",
            "<|im_start|>system\nKurz.<|im_end|>\n<|im_start|>user\nWas ist das?<|im_end|>\n<|im_start|>assistant\nEin Baum.<|im_end|>\n",
            "Ein Baum.<|im_end|>",
        ),
    ] {
        let template = ChatTemplate::default_for(family);
        assert!(matches!(template.origin(), TemplateSource::Default(_)));
        let rendered = template.render(&messages, false).unwrap();
        assert_eq!(rendered.text, text);
        let ranges = rendered.assistant.unwrap();
        assert_eq!(ranges.len(), 1);
        assert_eq!(&text[ranges[0].clone()], answer);
        // Generation begins where the answer begins in training.
        let prompt = template.render(&messages[..2], true).unwrap().text;
        assert_eq!(prompt, text[..ranges[0].start]);
    }
    assert_eq!(
        ChatTemplate::default_for("qwen2").after_answer().unwrap(),
        "<|im_end|>\n"
    );
}

#[test]
fn named_defaults_are_their_families_forms() {
    for name in DefaultTemplate::NAMES {
        let default = DefaultTemplate::named(name).unwrap();
        let template = ChatTemplate::new(default.source(), "<s>", "</s>").unwrap();
        assert!(template.marks_assistant(), "{name}");
    }
    assert_eq!(DefaultTemplate::named("chatML"), None);

    let llama3 = DefaultTemplate::named("llama3").unwrap();
    let template = ChatTemplate::new(llama3.source(), "<|begin_of_text|>", "").unwrap();
    let messages = [
        Message::new("user", "Hi "),
        Message::new("assistant", "Yes"),
    ];
    let text = "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>\
                <|start_header_id|>assistant<|end_header_id|>\n\nYes<|eot_id|>";
    let rendered = template.render(&messages, false).unwrap();
    assert_eq!(rendered.text, text);
    let answer = rendered.assistant.unwrap()[0].clone();
    assert_eq!(&text[answer.clone()], "Yes<|eot_id|>");
    let prompt = template.render(&messages[..1], true).unwrap().text;
    assert_eq!(prompt, text[..answer.start]);
}
