//! The data card of city-trees. Its numbers are counted from the rows it is written with.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use super::town::{SPECIES, STREETS};
use super::{Language, PROBLEMS, Row};

/// The text of `README.md`.
pub fn text(seed: u64, train: &[Row], eval: &[Row]) -> String {
    let known: HashSet<&str> = train.iter().map(|row| row.template.as_str()).collect();
    let fresh = eval
        .iter()
        .filter(|row| !known.contains(row.template.as_str()))
        .count();
    let words: Vec<usize> = train
        .iter()
        .map(|row| row.prompt.split_whitespace().count())
        .collect();
    let example = train
        .iter()
        .find(|row| row.urgency == "high" && row.language == Language::German);
    let example = example.map_or(String::new(), |row| {
        let (prompt, completion) = (&row.prompt, row.completion.replace('\n', "\n> "));
        format!("> {}\n>\n> {completion}\n", prompt.replace('\n', "\n> "))
    });
    let problems = PROBLEMS.iter().fold(String::new(), |mut table, problem| {
        let _ = writeln!(
            table,
            "| `{}` | {} | {} | {} |",
            problem.label,
            meaning(problem.label),
            problem.calm_urgency,
            share(train, eval, |row| row.problem == problem.label),
        );
        table
    });
    let species = SPECIES
        .iter()
        .map(|species| species.genus)
        .chain(["unknown"])
        .fold(String::new(), |mut table, genus| {
            let count = share(train, eval, |row| row.species == genus);
            let _ = writeln!(table, "| `{genus}` | {} | {count} |", called(genus));
            table
        });
    let urgency = ["low", "medium", "high"]
        .iter()
        .fold(String::new(), |mut table, urgency| {
            let _ = writeln!(
                table,
                "| `{urgency}` | {} |",
                share(train, eval, |row| row.urgency == *urgency)
            );
            table
        });
    let streets = STREETS
        .iter()
        .map(|street| street.name)
        .collect::<Vec<_>>()
        .join(", ");
    format!(
        "\
---
license: cc0-1.0
language:
- de
- en
pretty_name: city-trees
size_categories:
- 1K<n<10K
task_categories:
- text-generation
tags:
- synthetic
- information-extraction
configs:
- config_name: default
  data_files:
  - split: train
    path: train.jsonl
  - split: test
    path: eval.jsonl
---

<!-- Written by `sparsam-datasets city-trees`; edit `datasets/generator/src/city_trees/card.rs` instead. -->

# city-trees

Messages of residents to a town's parks department about street trees, in German and English, and the
record that a clerk would make of each: species, street, problem, urgency. {train_rows} rows to train on
(`train.jsonl`), {eval_rows} to evaluate with (`eval.jsonl`).

**Everything here is synthetic.** The messages were composed by a grammar; no person wrote them, the town
does not exist, and the names in them are drawn from lists of common first and last names.

{example}
## Fields

`prompt` is the message. `completion` is the record, four lines without a final line break, in this order:

- `Species`: the botanical genus of the tree, or `unknown` when the message only says *tree* or *Baum*. A
  street named after a tree says nothing about the species.
- `Street`: the street as on its sign, one of {street_count}, whatever the message makes of it (`goethestr.`,
  `Goethestrasse`, `Gotehestraße`). Every message names it.
- `Problem`: one of the ten labels below.
- `Urgency`: `high` when the message tells of danger to people, traffic or cables: something hangs over a
  path or a road, may fall at any moment, blocks the way, touches a cable, or somebody has been hurt or
  nearly so. Otherwise the urgency that belongs to the problem, in the third column. That a resident is not
  in a hurry changes nothing. `needs water` is always `low`.

| problem | the message says | without danger | train / eval |
|---|---|---|---|
{problems}
| species | called | train / eval |
|---|---|---|
{species}
| urgency | train / eval |
|---|---|
{urgency}
Languages (German / English): train {de_train} / {en_train}, eval {de_eval} / {en_eval}. Messages have
{shortest} to {longest} words, {mean} on average.

The streets: {streets}.

## How it was made

The record is drawn first, each field independently (problem, genus and street with even chances; 12 % of
the messages leave the species out; of nine problems 35 % come with danger). A grammar per language
(`datasets/generator/src/city_trees/de.txt`, `en.txt`) then says it: a frame sets the order of greeting,
place, problem, danger, remarks and farewell, and each of these is chosen from its own list. At last the
text is misspelt: `str.` for `straße`, umlauts spelt out or without dots, no capitals, missing punctuation,
and single letters swapped, lost or doubled in words of seven letters or more.

```sh
cargo run --release -p sparsam-datasets -- city-trees --seed {seed} -o datasets/city-trees
```

gives the same bytes again.

## Checks

`cargo test -p sparsam-datasets` checks that

- no template makes 1 % or more of a file. A template is the list of grammar rules and alternatives that a
  message is made of, recorded while it is made; names, numbers, streets, species, small variants in
  brackets and spelling are left out of it, so two messages that differ only in these count as one template.
  The commonest makes {most} of {train_rows} rows;
- no message occurs twice, within a file or across the two, even if case and punctuation are disregarded;
- at least a third of the evaluation messages have a template that training does not ({fresh} of {eval_rows});
- any two streets differ by at least four letters;
- these files are what the generator writes.

## Limits

It is a teaching set. The phrases of both files come from the same lists, so a high score says that a model
has learnt this grammar, not that it understands letters to a real town. Each message is about one tree with
one problem. The English is that of a town with German street names. Do not use it to decide which tree is
looked at first.

## Licence

CC0 1.0: to the extent possible, all rights are waived.
",
        train_rows = train.len(),
        eval_rows = eval.len(),
        street_count = STREETS.len(),
        de_train = count(train, |row| row.language == Language::German),
        en_train = count(train, |row| row.language == Language::English),
        de_eval = count(eval, |row| row.language == Language::German),
        en_eval = count(eval, |row| row.language == Language::English),
        shortest = words.iter().min().unwrap_or(&0),
        longest = words.iter().max().unwrap_or(&0),
        mean = words.iter().sum::<usize>() / words.len().max(1),
        most = commonest(train),
    )
}

fn count(rows: &[Row], which: impl Fn(&Row) -> bool) -> usize {
    rows.iter().filter(|row| which(row)).count()
}

fn share(train: &[Row], eval: &[Row], which: impl Fn(&Row) -> bool) -> String {
    format!("{} / {}", count(train, &which), count(eval, &which))
}

/// How many rows the commonest template makes.
fn commonest(rows: &[Row]) -> usize {
    let mut counts: HashMap<&str, usize> = HashMap::new();
    for row in rows {
        *counts.entry(row.template.as_str()).or_insert(0) += 1;
    }
    counts.into_values().max().unwrap_or(0)
}

fn meaning(label: &str) -> &'static str {
    match label {
        "broken branch" => "a branch is broken, snapped or hangs loose",
        "fallen tree" => "the whole tree has come down",
        "dead tree" => "the tree is dead, bare or has not come into leaf",
        "fungus" => "fungus or mushrooms on the trunk or at its foot",
        "lifted pavement" => "roots lift or break the paving",
        "damaged bark" => "the bark is torn, scraped or cut",
        "blocked view" => {
            "twigs hide a sign, a traffic light or a lamp, or take the light from a window"
        }
        "pests" => "insects, caterpillars, greenfly",
        "needs water" => "the tree is dry or has to be watered",
        _ => "the tree is gone: an empty pit or a stump",
    }
}

fn called(genus: &str) -> String {
    SPECIES
        .iter()
        .find(|species| species.genus == genus)
        .map_or("Baum, tree".to_owned(), |species| {
            let mut names: Vec<&str> = species.german.iter().map(|noun| noun.1).collect();
            names.extend(species.english);
            names.dedup();
            names.join(", ")
        })
}
