use std::fs;
use std::sync::Arc;

use parquet::data_type::{ByteArray, ByteArrayType, Int32Type};
use parquet::file::properties::WriterProperties;
use parquet::file::writer::{SerializedFileWriter, SerializedRowGroupWriter};
use parquet::schema::parser::parse_message_type;
use serde_json::json;
use tempfile::TempDir;

use super::super::error::Spot;
use super::*;

fn load_with(name: &str, bytes: &[u8], columns: &Columns) -> Result<Dataset, DataError> {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    Dataset::load(&path, columns)
}

fn load(name: &str, text: &str) -> Result<Dataset, DataError> {
    load_with(name, text.as_bytes(), &Columns::default())
}

fn rows(name: &str, text: &str) -> Vec<Row> {
    load(name, text)
        .unwrap()
        .rows
        .into_iter()
        .map(|(_, row)| row)
        .collect()
}

fn error(name: &str, text: &str) -> (String, String) {
    let error = load(name, text).unwrap_err();
    let text = error.to_string();
    // Without the folder, which is another every time.
    let text = match (text.find('`'), text.find(name)) {
        (Some(open), Some(at)) if open < at => format!("{}{}", &text[..=open], &text[at..]),
        _ => text,
    };
    (text, error.hint().unwrap_or_default())
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

#[test]
fn every_form_of_json_lines() {
    let text = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}"#;
    assert_eq!(
        rows("a.jsonl", text),
        [chat(&[("user", "a"), ("assistant", "b")])]
    );

    let text = r#"{"system": "s", "conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#;
    assert_eq!(
        rows("a.jsonl", text),
        [chat(&[("system", "s"), ("user", "a"), ("assistant", "b")])]
    );

    let text = r#"{"instruction": "i", "input": "x", "output": "o"}
{"instruction": "i", "input": "", "output": "o"}"#;
    let expected = [
        chat(&[("user", "i\n\nx"), ("assistant", "o")]),
        chat(&[("user", "i"), ("assistant", "o")]),
    ];
    assert_eq!(rows("a.jsonl", text), expected);

    let text =
        "{\"prompt\": \"p\", \"completion\": \"c\"}\n\n{\"prompt\": \"\", \"completion\": \"\"}\n";
    let completion = |prompt: &str, completion: &str| Row::Completion {
        prompt: prompt.into(),
        completion: completion.into(),
    };
    assert_eq!(
        rows("a.ndjson", text),
        [completion("p", "c"), completion("", "")]
    );

    let text = r#"{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}"#;
    let messages = vec![Message::new("user", "a"), Message::new("assistant", "b")];
    assert_eq!(
        rows("a.jsonl", text),
        [Row::ChatCompletion {
            messages,
            answer: 1,
            variables: Map::new()
        }]
    );

    let dataset = load("a.jsonl", "\u{FEFF}{\"text\": \"ü\"}\r\n").unwrap();
    assert_eq!(dataset.rows[0].1, Row::Text("ü".into()));
    assert_eq!(
        dataset.describe(),
        "1 row of plain text (`text`) in JSON Lines"
    );
}

#[test]
fn messages_keep_what_templates_read() {
    let text = r#"{"tools": "[{\"name\": \"f\"}]", "chat_template_kwargs": {"enable_thinking": false},
        "messages": [{"role": "assistant", "content": null, "tool_calls": [{"id": 1}], "name": null},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}"#
        .replace('\n', " ");
    let Row::Chat {
        messages,
        variables,
    } = rows("a.jsonl", &text).remove(0)
    else {
        panic!("not a chat")
    };
    assert_eq!(messages[0].content, "");
    assert_eq!(
        Value::Object(messages[0].extra.clone()),
        json!({"tool_calls": [{"id": 1}]})
    );
    assert_eq!(messages[1].content, "ab");
    assert_eq!(
        Value::Object(variables),
        json!({"enable_thinking": false, "tools": [{"name": "f"}]})
    );
}

#[test]
fn json_lists_objects_and_misnamed_lines() {
    let expected = [Row::Text("a".into()), Row::Text("b".into())];
    assert_eq!(
        rows("a.json", r#"[{"text": "a"}, {"text": "b"}]"#),
        expected
    );
    assert_eq!(
        rows(
            "a.json",
            r#"{"version": 1, "data": [{"text": "a"}, {"text": "b"}]}"#
        ),
        expected
    );
    assert_eq!(
        rows("a.json", "{\"text\": \"a\"}\n{\"text\": \"b\"}\n"),
        expected
    );
    let (text, _) = error("a.json", r#"{"a": [], "b": []}"#);
    assert!(text.contains("this object has several lists"), "{text}");
    let (text, _) = error("a.json", "[\n{\"text\": \"a\"},\n{\"text\" \"b\"}]");
    assert!(
        text.contains("not valid JSON") && text.contains("line 3"),
        "{text}"
    );
    let (text, _) = error("a.json", r#"[{"text": "a"}, 3]"#);
    assert_eq!(text, "`a.json`, row 2: the row is not a JSON object");
}

#[test]
fn csv_with_any_separator_and_mapped_columns() {
    let expected = [Row::Text("a,b".into()), Row::Text("c\nd".into())];
    assert_eq!(rows("a.csv", "id,text\n1,\"a,b\"\n2,\"c\nd\"\n"), expected);
    assert_eq!(
        rows("a.csv", "\u{FEFF}id;text\n1;a,b\n2;\"c\nd\"\n"),
        expected
    );
    assert_eq!(rows("a.tsv", "id\ttext\n1\ta,b\n2\t\"c\nd\"\n"), expected);

    let mapping = |pairs: &[(&str, &str)]| {
        Columns::new(pairs.iter().map(|&(a, b)| (a.into(), b.into())).collect())
    };
    let columns = mapping(&[("prompt", "Meldung"), ("completion", "Art")]).unwrap();
    let dataset = load_with("a.csv", b"Meldung;Art;text\nHallo;Linde;x\n", &columns).unwrap();
    let row = Row::Completion {
        prompt: "Hallo".into(),
        completion: "Linde".into(),
    };
    assert_eq!(dataset.rows[0].1, row);
    let error = load_with("a.csv", b"Meldung;text\nHallo;x\n", &columns).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("line 2: column `Art` is missing or empty"),
        "{error}"
    );
    let error = mapping(&[("promt", "x")]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`promt` is not a column that can be mapped"
    );
}

#[test]
fn csv_faults_name_the_line() {
    assert_eq!(
        error("a.csv", "text,b\nx,y\nz\n").0,
        "`a.csv`, line 3: the row has 1 columns, the header 2"
    );
    let error = load_with("a.csv", b"text\nok\n\xFF\n", &Columns::default()).unwrap_err();
    assert!(
        matches!(
            error,
            DataError::NotUtf8 {
                place: Place {
                    spot: Spot::Line(3),
                    ..
                }
            }
        ),
        "{error}"
    );
    assert!(matches!(
        load("a.csv", "text\n"),
        Err(DataError::Empty { .. })
    ));
}

type Group<'a> = SerializedRowGroupWriter<'a, Vec<u8>>;

fn parquet(schema: &str, write: impl FnOnce(&mut Group<'_>)) -> Vec<u8> {
    let schema = Arc::new(parse_message_type(schema).unwrap());
    let properties = Arc::new(WriterProperties::builder().build());
    let mut writer = SerializedFileWriter::new(Vec::new(), schema, properties).unwrap();
    let mut group = writer.next_row_group().unwrap();
    write(&mut group);
    group.close().unwrap();
    writer.into_inner().unwrap()
}

fn strings(
    group: &mut Group<'_>,
    values: &[&str],
    definition: Option<&[i16]>,
    repetition: Option<&[i16]>,
) {
    let values: Vec<ByteArray> = values.iter().map(|&value| ByteArray::from(value)).collect();
    let mut column = group.next_column().unwrap().unwrap();
    column
        .typed::<ByteArrayType>()
        .write_batch(&values, definition, repetition)
        .unwrap();
    column.close().unwrap();
}

#[test]
fn parquet_with_plain_and_nested_columns() {
    let schema = "message m { REQUIRED INT32 prompt; OPTIONAL BYTE_ARRAY completion (UTF8); }";
    let bytes = parquet(schema, |group| {
        let mut column = group.next_column().unwrap().unwrap();
        column
            .typed::<Int32Type>()
            .write_batch(&[7, 8], None, None)
            .unwrap();
        column.close().unwrap();
        strings(group, &["sieben"], Some(&[1, 0]), None);
    });
    let error = load_with("a.parquet", &bytes, &Columns::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("row 2: column `completion` is missing or empty"),
        "{error}"
    );

    let schema = "message m { REQUIRED GROUP messages (LIST) { REPEATED GROUP list {
        REQUIRED GROUP element { REQUIRED BYTE_ARRAY role (UTF8); REQUIRED BYTE_ARRAY content (UTF8); } } } }";
    let bytes = parquet(schema, |group| {
        let (definition, repetition) = ([1, 1, 1], [0, 1, 0]);
        strings(
            group,
            &["user", "assistant", "user"],
            Some(&definition),
            Some(&repetition),
        );
        strings(
            group,
            &["a", "ü", "c"],
            Some(&definition),
            Some(&repetition),
        );
    });
    let dataset = load_with("a.parquet", &bytes, &Columns::default()).unwrap();
    assert_eq!(dataset.rows.len(), 2);
    assert_eq!(
        dataset.rows[0].1,
        chat(&[("user", "a"), ("assistant", "ü")])
    );
    assert_eq!(dataset.hash, blake3::hash(&bytes).to_hex().to_string());

    let error = load_with("a.parquet", &bytes[..bytes.len() / 2], &Columns::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .contains("not a Parquet file that can be read"),
        "{error}"
    );
}

#[test]
fn text_files_and_folders() {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("b.txt"), "zwei").unwrap();
    fs::write(folder.path().join("a.TXT"), "eins").unwrap();
    fs::write(folder.path().join("leer.txt"), " \n").unwrap();
    fs::write(folder.path().join("notes.md"), "no").unwrap();
    let dataset = Dataset::load(folder.path(), &Columns::default()).unwrap();
    assert_eq!(dataset.container, Container::TextFolder);
    let texts: Vec<&Row> = dataset.rows.iter().map(|(_, row)| row).collect();
    assert_eq!(
        texts,
        [&Row::Text("eins".into()), &Row::Text("zwei".into())]
    );
    fs::write(folder.path().join("b.txt"), "drei").unwrap();
    assert_ne!(
        Dataset::load(folder.path(), &Columns::default())
            .unwrap()
            .hash,
        dataset.hash
    );

    assert_eq!(rows("a.txt", "x\ny"), [Row::Text("x\ny".into())]);
    let error = load_with("a.txt", b"ok\nSt\xE4dte\n", &Columns::default()).unwrap_err();
    assert!(
        error
            .to_string()
            .ends_with("`, line 2: the text is not UTF-8"),
        "{error}"
    );
    assert!(error.hint().unwrap().contains("iconv"));
}

#[test]
fn faults_name_file_line_and_column() {
    let good = r#"{"prompt": "p", "completion": "c"}"#;
    let (text, hint) = error("a.jsonl", &format!("{good}\n{{\"prompt\": \"p\"}}\n"));
    assert_eq!(
        text,
        "`a.jsonl`, line 2: column `completion` is missing or empty"
    );
    assert_eq!(
        hint,
        "the row has `prompt`; every row needs the columns of the first one"
    );
    let (text, hint) = error("a.jsonl", r#"{"prompt": "p", "completion": {"a": 1}}"#);
    assert_eq!(
        text,
        "`a.jsonl`, line 1: column `completion` is an object, not a string"
    );
    assert_eq!(hint, "write structured answers as a string of JSON");
    let (text, hint) = error("a.jsonl", r#"{"question": "q", "answer": "a"}"#);
    assert_eq!(
        text,
        "`a.jsonl`, line 1: the columns `question`, `answer` are not those of a known form"
    );
    assert!(hint.starts_with("accepted are `messages`"), "{hint}");
    let (text, _) = error("a.jsonl", &format!("{good}\n\n{{\"prompt\": \n"));
    assert!(
        text.starts_with("`a.jsonl`, line 3: the line is not valid JSON: EOF"),
        "{text}"
    );
    assert_eq!(
        error("a.jsonl", "[1]\n").0,
        "`a.jsonl`, line 1: the line is not a JSON object"
    );
    assert_eq!(error("a.jsonl", "\n \n").0, "`a.jsonl` holds no data");
    assert_eq!(error("a.json", "").0, "`a.json` holds no data");
    assert_eq!(error("a.json", "[]").0, "`a.json` holds no data");
    let (text, hint) = error(
        "a.jsonl",
        r#"{"conversations": [{"from": "narrator", "value": "x"}]}"#,
    );
    assert_eq!(text, "`a.jsonl`, line 1: `narrator` is not a known speaker");
    assert!(hint.contains("`human`"), "{hint}");
    let (text, _) = error("a.jsonl", r#"{"messages": [{"role": "user"}]}"#);
    assert_eq!(
        text,
        "`a.jsonl`, line 1: column `messages[0].content` is missing or empty"
    );
    let (text, _) = error(
        "a.jsonl",
        r#"{"messages": [{"role": "user", "content": [{"type": "image"}]}]}"#,
    );
    assert_eq!(
        text,
        "`a.jsonl`, line 1: column `messages[0].content` is a list, not text or parts of text"
    );
    assert_eq!(
        error("a.jsonl.gz", "x").0,
        "`a.jsonl.gz` is not a kind of data file that can be read"
    );
    let missing = Dataset::load(Path::new("nowhere/train.jsonl"), &Columns::default()).unwrap_err();
    assert!(
        missing
            .to_string()
            .starts_with("cannot read `nowhere/train.jsonl`"),
        "{missing}"
    );
    assert!(missing.hint().is_some());
    let utf8 = load_with(
        "a.jsonl",
        b"{\"text\": \"a\"}\n{\"text\": \"\xE4\"}\n",
        &Columns::default(),
    );
    assert!(
        utf8.unwrap_err()
            .to_string()
            .ends_with("line 2: the text is not UTF-8")
    );
}

#[test]
fn the_hash_is_that_of_the_bytes() {
    let text = "{\"text\": \"a\"}\n";
    assert_eq!(
        load("a.jsonl", text).unwrap().hash,
        blake3::hash(text.as_bytes()).to_hex().to_string()
    );
    let csv = "text\na\n";
    assert_eq!(
        load("a.csv", csv).unwrap().hash,
        blake3::hash(csv.as_bytes()).to_hex().to_string()
    );
}

#[test]
fn shards_are_one_data_set_of_one_form() {
    let folder = TempDir::new().unwrap();
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        fs::write(&path, text).unwrap();
        path
    };
    let paths = [
        write("a.jsonl", "{\"text\": \"one\"}\n{\"text\": \"two\"}\n"),
        write("b.jsonl", "{\"text\": \"three\"}\n"),
    ];
    let load = |paths: &[PathBuf]| Dataset::load_all(paths, &Columns::default(), None);
    let all = load(&paths).unwrap();
    let texts: Vec<&Row> = all.rows.iter().map(|(_, row)| row).collect();
    let text = |text: &str| Row::Text(text.to_owned());
    assert_eq!(texts, [&text("one"), &text("two"), &text("three")]);
    assert_eq!(all.rows[2].0, Place::line(&paths[1], 1));
    let single = load(&paths[..1]).unwrap();
    assert_eq!(
        single.hash,
        Dataset::load(&paths[0], &Columns::default()).unwrap().hash
    );
    assert_ne!(single.hash, all.hash);
    let other = write("c.jsonl", "{\"prompt\": \"x\", \"completion\": \"y\"}\n");
    let error = load(&[paths[0].clone(), other.clone()]).unwrap_err();
    assert!(error.to_string().contains("c.jsonl"), "{error}");
    assert!(load(&[]).is_err());
}
