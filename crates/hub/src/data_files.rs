//! Which files of a data set hold a split, in the layouts the Hub knows.
//!
//! The card's front matter may say so (`configs`, with `data_files` as patterns); otherwise names do, in
//! the order in which Python's `datasets` looks: shards called `SPLIT-00000-of-00002.parquet`, folders and
//! files with the split's name in theirs, and, where no name tells of any split, everything for `train`.
//! See <https://huggingface.co/docs/hub/datasets-data-files-configuration>.

use serde_json::Value;

use crate::select::{CARD, Lack, lack};

/// A part of a data set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Split {
    /// Such as `train`.
    pub name: String,
    /// One of several subsets, which the Hub calls configurations.
    pub subset: Option<String>,
}

/// Endings of files that can be read, the best first where a set is there in several forms.
const KINDS: &[&[&str]] = &[
    &["parquet"],
    &["jsonl", "ndjson", "jsonlines"],
    &["json"],
    &["csv", "tsv"],
    &["txt"],
];

/// Words by which a split is known in names.
const WORDS: &[(&str, &[&str])] = &[
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "val", "dev"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// Files that are no data, whatever they end in.
const NO_DATA: &[&str] = &[
    "dataset_infos.json",
    "dataset_info.json",
    "config.json",
    "state.json",
    "requirements.txt",
    "license.txt",
    "readme.txt",
];

/// The files of a split in the order of their names, and the card. `card` reads the card.
pub(crate) fn select<E: From<Lack>>(
    there: &[String],
    split: &Split,
    card: impl FnOnce() -> Result<Vec<u8>, E>,
) -> Result<Vec<String>, E> {
    let has_card = there.iter().any(|path| path == CARD);
    let configs = if has_card {
        configs(&card()?)
    } else {
        Vec::new()
    };
    let mut files = if configs.is_empty() {
        by_names(there, split)?
    } else {
        by_card(there, split, &configs)?
    };
    files.sort();
    check_shards(&files)?;
    if has_card {
        files.push(CARD.to_owned());
    }
    Ok(files)
}

/// A subset as the card describes it.
#[derive(Debug, PartialEq, Eq)]
struct Config {
    name: String,
    is_default: bool,
    /// Splits with their patterns.
    splits: Vec<(String, Vec<String>)>,
}

/// The subsets that the front matter of a card describes; none where it does not.
fn configs(card: &[u8]) -> Vec<Config> {
    let text = String::from_utf8_lossy(card);
    let text = text.trim_start_matches('\u{feff}').replace("\r\n", "\n");
    let front = text
        .strip_prefix("---\n")
        .and_then(|rest| rest.split_once("\n---"));
    let Some((front, _)) = front else {
        return Vec::new();
    };
    let value: Value = serde_saphyr::from_str(front).unwrap_or_default();
    let configs = value["configs"].as_array().into_iter().flatten();
    let configs = configs.filter_map(|config| {
        let files = &config["data_files"];
        let folder = config["data_dir"].as_str();
        let within = |pattern: &str| {
            let pattern = pattern.trim_start_matches("./");
            match folder {
                Some(folder) => format!("{}/{pattern}", folder.trim_matches('/')),
                None => pattern.to_owned(),
            }
        };
        let patterns = |value: &Value| -> Vec<String> {
            match value {
                Value::String(pattern) => vec![within(pattern)],
                Value::Array(list) => list.iter().filter_map(Value::as_str).map(within).collect(),
                _ => Vec::new(),
            }
        };
        let splits: Vec<(String, Vec<String>)> = match files {
            Value::Array(list) if list.iter().any(Value::is_object) => list
                .iter()
                .filter_map(|one| Some((one["split"].as_str()?.to_owned(), patterns(&one["path"]))))
                .collect(),
            Value::Object(map) => map
                .iter()
                .map(|(split, paths)| (split.clone(), patterns(paths)))
                .collect(),
            Value::Null => return None,
            plain => vec![("train".to_owned(), patterns(plain))],
        };
        Some(Config {
            name: config["config_name"]
                .as_str()
                .unwrap_or("default")
                .to_owned(),
            is_default: config["default"].as_bool().unwrap_or(false),
            splits,
        })
    });
    configs.collect()
}

fn by_card(there: &[String], split: &Split, configs: &[Config]) -> Result<Vec<String>, Lack> {
    let names = || list(configs.iter().map(|config| config.name.as_str()));
    let config = match (&split.subset, configs) {
        (Some(name), _) => configs.iter().find(|config| config.name == *name),
        (None, [only]) => Some(only),
        (None, _) => configs
            .iter()
            .find(|config| config.is_default || config.name == "default"),
    };
    let Some(config) = config else {
        return match &split.subset {
            Some(name) => lack(
                format!("it has no subset `{name}`"),
                format!("its subsets are {}", names()),
            ),
            None => lack(
                "it has several subsets, and none is the default",
                format!("choose one with `data.subset`: {}", names()),
            ),
        };
    };
    let patterns = config.splits.iter().find(|(name, _)| *name == split.name);
    let Some((_, patterns)) = patterns else {
        let names = list(config.splits.iter().map(|(name, _)| name.as_str()));
        return no_split(split, &names);
    };
    let matched = there
        .iter()
        .filter(|path| patterns.iter().any(|pattern| matches(pattern, path)));
    let matched: Vec<&str> = matched.map(String::as_str).collect();
    best_kind(&matched, split)
}

fn by_names(there: &[String], split: &Split) -> Result<Vec<String>, Lack> {
    let inside = |path: &&str| match &split.subset {
        Some(subset) => path.split('/').any(|part| part == subset),
        None => true,
    };
    let data: Vec<&str> = there
        .iter()
        .map(String::as_str)
        .filter(|path| is_data(path) || compressed(path).is_some())
        .filter(inside)
        .collect();
    if let (true, Some(subset)) = (data.is_empty(), &split.subset) {
        return lack(
            format!("it has no subset `{subset}`"),
            "subsets are described in the card or are folders; leave `data.subset` out where there is \
             one alone",
        );
    }
    let shards: Vec<&str> = data
        .iter()
        .copied()
        .filter(|path| shard(path).is_some_and(|(name, _)| last(name) == split.name))
        .collect();
    if !shards.is_empty() {
        return best_kind(&shards, split);
    }
    let words = |name: &str| -> Vec<String> {
        let known = WORDS.iter().find(|(split, _)| *split == name);
        match known {
            Some((_, words)) => words.iter().map(|&word| word.to_owned()).collect(),
            None => vec![name.to_lowercase()],
        }
    };
    let wanted = words(&split.name);
    let named: Vec<&str> = data
        .iter()
        .copied()
        .filter(|path| wanted.iter().any(|word| tells(path, word)))
        .collect();
    if !named.is_empty() {
        return best_kind(&named, split);
    }
    let mut others: Vec<&str> = data
        .iter()
        .filter_map(|path| Some(last(shard(path)?.0)))
        .collect();
    let known = WORDS.iter().filter(|(name, words)| {
        let told = |word: &&str| data.iter().any(|path| tells(path, word));
        *name != split.name && words.iter().any(told)
    });
    others.extend(known.map(|(name, _)| *name));
    others.sort_unstable();
    others.dedup();
    if others.is_empty() && split.name == "train" {
        return best_kind(&data, split);
    }
    no_split(split, &list(others.into_iter()))
}

fn no_split(split: &Split, names: &str) -> Result<Vec<String>, Lack> {
    let hint = match names {
        "" => "it has no other splits; leave `data.split` out".to_owned(),
        names => format!("its splits are {names}"),
    };
    lack(format!("it has no split `{}`", split.name), hint)
}

/// Of files that hold the same in several forms, those of the best form.
fn best_kind(paths: &[&str], split: &Split) -> Result<Vec<String>, Lack> {
    for kind in KINDS {
        let of_kind = paths.iter().filter(|path| {
            let ending = path.rsplit_once('.').map_or("", |(_, ending)| ending);
            is_data(path) && kind.iter().any(|known| ending.eq_ignore_ascii_case(known))
        });
        let of_kind: Vec<String> = of_kind.map(|&path| path.to_owned()).collect();
        if !of_kind.is_empty() {
            return Ok(of_kind);
        }
    }
    if let Some(path) = paths.iter().find(|path| compressed(path).is_some()) {
        return lack(
            format!(
                "the split `{}` is in compressed files such as `{path}`",
                split.name
            ),
            "give `refs/convert/parquet` as `data.revision`, where the Hub keeps most data sets as Parquet",
        );
    }
    lack(
        format!("no file of the split `{}` can be read", split.name),
        "Parquet, JSON Lines, JSON, CSV and text files are; `refs/convert/parquet` as `data.revision` has \
         most data sets as Parquet",
    )
}

fn is_data(path: &str) -> bool {
    let name = last(path).to_lowercase();
    let hidden = path.split('/').any(|part| part.starts_with(['.', '_']));
    let ending = name.rsplit_once('.').map_or("", |(_, ending)| ending);
    !hidden && !NO_DATA.contains(&name.as_str()) && KINDS.iter().any(|kind| kind.contains(&ending))
}

/// The name without the ending of a compressed data file.
fn compressed(path: &str) -> Option<&str> {
    let (inner, ending) = path.rsplit_once('.')?;
    (["gz", "zst", "bz2", "xz", "zip"].contains(&ending) && is_data(inner)).then_some(inner)
}

fn last(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `data/train` and 2 of `data/train-00000-of-00002.parquet`.
fn shard(path: &str) -> Option<(&str, usize)> {
    let (stem, _) = path.rsplit_once('.')?;
    let (rest, count) = stem.rsplit_once("-of-")?;
    let (name, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() >= 5 && text.bytes().all(|b| b.is_ascii_digit());
    // Newer shards carry a hash behind their count.
    let count = count.split('-').next().unwrap_or(count);
    (digits(number) && digits(count)).then(|| Some((name, count.parse().ok()?)))?
}

/// Whether a folder's or the file's name has the word in it, set off from other letters.
fn tells(path: &str, word: &str) -> bool {
    let path = path
        .rsplit_once('.')
        .map_or(path, |(stem, _)| stem)
        .to_lowercase();
    path.split(|c: char| !c.is_alphabetic())
        .any(|part| part == word)
}

/// Refuses a split of which a shard is not there.
fn check_shards(files: &[String]) -> Result<(), Lack> {
    for path in files {
        let Some((name, count)) = shard(path) else {
            continue;
        };
        let found = files
            .iter()
            .filter(|file| shard(file) == Some((name, count)));
        let found = found.count();
        if found != count {
            return lack(
                format!("only {found} of the {count} parts of `{name}` are there"),
                "the data set was not uploaded, or not fetched, to its end",
            );
        }
    }
    Ok(())
}

/// Whether a path is one a pattern means: `*` and `?` within a folder, `**` across folders.
fn matches(pattern: &str, path: &str) -> bool {
    fn go(pattern: &[u8], path: &[u8]) -> bool {
        match pattern {
            [] => path.is_empty(),
            [b'*', b'*', b'/', rest @ ..] => {
                go(rest, path)
                    || path
                        .iter()
                        .enumerate()
                        .any(|(at, &byte)| byte == b'/' && go(rest, &path[at + 1..]))
            }
            [b'*', b'*', rest @ ..] => (0..=path.len()).any(|at| go(rest, &path[at..])),
            [b'*', rest @ ..] => {
                let end = path.iter().position(|&byte| byte == b'/');
                (0..=end.unwrap_or(path.len())).any(|at| go(rest, &path[at..]))
            }
            [b'?', rest @ ..] => {
                matches!(path, [byte, more @ ..] if *byte != b'/' && go(rest, more))
            }
            [b'[', rest @ ..] => {
                let Some(end) = rest.iter().position(|&byte| byte == b']') else {
                    return false;
                };
                matches!(path, [byte, more @ ..] if in_set(&rest[..end], *byte) && go(&rest[end + 1..], more))
            }
            [byte, rest @ ..] => {
                matches!(path, [first, more @ ..] if first == byte && go(rest, more))
            }
        }
    }
    // Patterns come from strangers: enough for any layout, and no time without end.
    if pattern.len() > 256 || pattern.matches('*').count() > 8 {
        return false;
    }
    go(pattern.as_bytes(), path.as_bytes())
}

/// Whether a byte is one of `a-z0`.
fn in_set(set: &[u8], byte: u8) -> bool {
    match set {
        [low, b'-', high, rest @ ..] => (*low..=*high).contains(&byte) || in_set(rest, byte),
        [one, rest @ ..] => *one == byte || in_set(rest, byte),
        [] => false,
    }
}

fn list<'a>(names: impl Iterator<Item = &'a str>) -> String {
    let names: Vec<String> = names.map(|name| format!("`{name}`")).collect();
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(
        there: &[&str],
        split: &str,
        subset: Option<&str>,
        card: &str,
    ) -> Result<Vec<String>, Lack> {
        let there: Vec<String> = there.iter().map(|&path| path.to_owned()).collect();
        let split = Split {
            name: split.to_owned(),
            subset: subset.map(str::to_owned),
        };
        select(&there, &split, || Ok(card.as_bytes().to_vec()))
    }

    #[test]
    fn names_tell_splits_as_they_do_in_python() {
        let shards = [
            "data/test-00000-of-00001.parquet",
            "data/train-00000-of-00002.parquet",
            "data/train-00001-of-00002.parquet",
            "README.md",
        ];
        assert_eq!(
            chosen(&shards, "train", None, "").unwrap(),
            [shards[1], shards[2], "README.md"]
        );
        assert_eq!(
            chosen(&shards, "test", None, "").unwrap(),
            [shards[0], "README.md"]
        );
        let error = chosen(&shards, "validation", None, "").unwrap_err();
        assert_eq!(error.hint, "its splits are `test`, `train`");
        let cut = chosen(&shards[..2], "train", None, "").unwrap_err();
        assert!(
            cut.what.starts_with("only 1 of the 2 parts"),
            "{}",
            cut.what
        );

        let files = [
            "trees_train.jsonl",
            "trees_dev.jsonl",
            "train.csv",
            "trained.jsonl",
        ];
        assert_eq!(
            chosen(&files, "train", None, "").unwrap(),
            ["trees_train.jsonl"]
        );
        assert_eq!(
            chosen(&files, "validation", None, "").unwrap(),
            ["trees_dev.jsonl"]
        );
        let folders = ["train/a.jsonl", "train/b.jsonl", "test/a.jsonl"];
        assert_eq!(chosen(&folders, "train", None, "").unwrap(), folders[..2]);
    }

    #[test]
    fn without_names_of_splits_all_is_for_training() {
        let files = ["a.jsonl", "dataset_infos.json", ".hidden.jsonl", "b.jsonl"];
        assert_eq!(
            chosen(&files, "train", None, "").unwrap(),
            ["a.jsonl", "b.jsonl"]
        );
        assert!(chosen(&files, "test", None, "").is_err());
        let packed = chosen(&["train.jsonl.gz"], "train", None, "").unwrap_err();
        assert!(packed.what.contains("compressed"), "{}", packed.what);
        assert!(chosen(&["model.onnx"], "train", None, "").is_err());
    }

    #[test]
    fn the_card_tells_subsets_and_patterns() {
        let card = "---\nconfigs:\n- config_name: city\n  data_files:\n  - split: train\n    path: city/*.jsonl\n  \
                    - split: held-out\n    path: [\"city/out/**/*.jsonl\"]\n- config_name: park\n  default: true\n  \
                    data_files: \"park/part-[0-9].csv\"\n---\n";
        let there = [
            "README.md",
            "city/a.jsonl",
            "city/out/x/b.jsonl",
            "city/out/c.jsonl",
            "park/part-1.csv",
            "park/part-x.csv",
        ];
        let of = |split, subset| chosen(&there, split, subset, card);
        assert_eq!(of("train", Some("city")).unwrap(), [there[1], "README.md"]);
        let held_out = of("held-out", Some("city")).unwrap();
        assert_eq!(held_out, [there[3], there[2], "README.md"]);
        assert_eq!(of("train", None).unwrap(), [there[4], "README.md"]);
        assert!(of("test", None).unwrap_err().hint.contains("`train`"));
        let wrong = of("train", Some("wood")).unwrap_err();
        assert_eq!(wrong.hint, "its subsets are `city`, `park`");
    }

    #[test]
    fn patterns_match_as_in_a_shell() {
        for (pattern, path, wanted) in [
            ("data/train-*", "data/train-0.parquet", true),
            ("data/*", "data/a/b", false),
            ("**/*.csv", "a.csv", true),
            ("**/*.csv", "x/y/a.csv", true),
            ("data/**", "data/x/y", true),
            ("a?c", "abc", true),
            ("a?c", "a/c", false),
            ("[a-c]x", "bx", true),
            ("[a-c", "b", false),
        ] {
            assert_eq!(matches(pattern, path), wanted, "{pattern} {path}");
        }
    }
}
