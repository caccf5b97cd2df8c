//! A small text grammar: rules made of alternatives, with slots filled from a lexicon.
//!
//! A grammar file is read by people, so its syntax is slight:
//!
//! ```text
//! == greeting                  a rule; each line below it is one alternative
//! Hello [there|again], {kid1}! a choice in brackets, and a slot
//! *3 <weather> {kid1.He} ran.  weight 3, another rule, and the same child as before
//!   and did not stop.          two leading spaces continue the line above
//! # a comment
//! ```
//!
//! A slot names a category of the lexicon, may end in digits, and then names its forms after dots. A
//! slot with digits is bound: it means the same thing wherever it stands in one document, which is what
//! keeps a story about one person in one street. A slot without digits is drawn afresh. What a category
//! or a form is, only the lexicon knows; this file knows no language.
//!
//! `\n` in a template is a line break; `<user>`, `<assistant>` and `<end>` are the marks of a chat.

use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;

use crate::dice::Dice;
use crate::error::Error;

/// Words and how they bend.
pub trait Lexicon {
    /// A drawn thing: a noun, a person, a street.
    type Value;
    /// Draws a thing of `category`; `None` when there is no such category.
    fn draw(&self, category: &str, dice: &mut Dice) -> Option<Self::Value>;
    /// What tells two things of one category apart.
    fn key<'v>(&self, value: &'v Self::Value) -> &'v str;
    /// `value` in the form asked for; `None` when it has no such form.
    fn render(&self, value: &Self::Value, forms: &[String], dice: &mut Dice) -> Option<String>;
}

#[derive(Debug)]
enum Node {
    Text(String),
    Choice(Vec<Vec<Node>>),
    Rule(String),
    Slot {
        category: String,
        name: String,
        bound: bool,
        forms: Vec<String>,
    },
}

#[derive(Debug)]
struct Alternative {
    weight: usize,
    nodes: Vec<Node>,
}

/// A parsed grammar. Names of rules are checked when it is parsed; slots when they are expanded.
#[derive(Debug)]
pub struct Grammar {
    rules: HashMap<String, Vec<Alternative>>,
}

/// One expansion: the text and the template it came from.
#[derive(Debug)]
pub struct Expansion {
    /// The finished text.
    pub text: String,
    /// Which alternative of which rule was taken, in order; slots and bracketed choices are left out.
    pub path: String,
}

/// What is settled before an expansion.
#[derive(Debug)]
pub struct Given<V> {
    /// Bound slots by their names, digits included.
    pub bindings: HashMap<String, V>,
    /// Rules that stand for others: `cue` for `branch_high`.
    pub aliases: HashMap<String, String>,
}

impl Grammar {
    /// Parses grammar files, given as (name, text); later files may use the rules of earlier ones.
    pub fn parse(files: &[(&str, &str)]) -> Result<Self, Error> {
        let mut rules: HashMap<String, Vec<Alternative>> = HashMap::new();
        for (file, text) in files {
            let mut rule = String::new();
            for (number, line) in joined_lines(text) {
                let wrong = |what: String| Error::Grammar {
                    file: (*file).into(),
                    line: number,
                    what,
                };
                if let Some(name) = line.strip_prefix("== ") {
                    name.trim().clone_into(&mut rule);
                    if rules.insert(rule.clone(), Vec::new()).is_some() {
                        return Err(wrong(format!("rule `{rule}` is defined twice")));
                    }
                    continue;
                }
                let (weight, body) = weight_of(&line);
                let characters: Vec<char> = body.chars().collect();
                let mut at = 0;
                let nodes = parse_sequence(&characters, &mut at, 0).map_err(wrong)?;
                rules
                    .get_mut(&rule)
                    .ok_or_else(|| wrong("a line stands before the first rule".into()))?
                    .push(Alternative { weight, nodes });
            }
        }
        let grammar = Self { rules };
        grammar.check_rules()?;
        Ok(grammar)
    }

    fn check_rules(&self) -> Result<(), Error> {
        fn walk(nodes: &[Node], rules: &HashMap<String, Vec<Alternative>>) -> Result<(), Error> {
            for node in nodes {
                match node {
                    Node::Rule(name) if mark(name).is_none() && !rules.contains_key(name) => {
                        return Err(Error::UnknownRule { rule: name.clone() });
                    }
                    Node::Choice(sides) => sides.iter().try_for_each(|side| walk(side, rules))?,
                    _ => {}
                }
            }
            Ok(())
        }
        for (name, alternatives) in &self.rules {
            if alternatives.is_empty() {
                return Err(Error::EmptyRule { rule: name.clone() });
            }
            for alternative in alternatives {
                walk(&alternative.nodes, &self.rules)?;
            }
        }
        Ok(())
    }

    /// Renders every slot of every alternative once, so that a misspelt category or form is found before
    /// anything is written.
    pub fn check_slots<L: Lexicon>(&self, lexicon: &L) -> Result<(), Error> {
        fn walk<L: Lexicon>(nodes: &[Node], lexicon: &L, dice: &mut Dice) -> Result<(), Error> {
            for node in nodes {
                match node {
                    Node::Slot {
                        category, forms, ..
                    } => drop(fresh(lexicon, category, forms, dice)?),
                    Node::Choice(sides) => {
                        sides
                            .iter()
                            .try_for_each(|side| walk(side, lexicon, dice))?;
                    }
                    Node::Text(_) | Node::Rule(_) => {}
                }
            }
            Ok(())
        }
        let mut dice = Dice::new(0, "check");
        self.rules
            .values()
            .flatten()
            .try_for_each(|alternative| walk(&alternative.nodes, lexicon, &mut dice))
    }

    /// Expands `rule` once.
    pub fn expand<L: Lexicon>(
        &self,
        rule: &str,
        lexicon: &L,
        dice: &mut Dice,
    ) -> Result<Expansion, Error> {
        let given = Given {
            bindings: HashMap::new(),
            aliases: HashMap::new(),
        };
        self.expand_with(rule, lexicon, given, dice)
    }

    /// Expands `rule` once, with some slots and rules settled beforehand.
    pub fn expand_with<L: Lexicon>(
        &self,
        rule: &str,
        lexicon: &L,
        given: Given<L::Value>,
        dice: &mut Dice,
    ) -> Result<Expansion, Error> {
        let mut run = Run {
            grammar: self,
            lexicon,
            dice,
            used: HashSet::new(),
            given,
            out: Expansion {
                text: String::new(),
                path: String::new(),
            },
        };
        run.rule(rule)?;
        Ok(run.out)
    }
}

/// The marks of a chat, written like rules.
fn mark(name: &str) -> Option<&'static str> {
    match name {
        "user" => Some("<|user|>\n"),
        "assistant" => Some("<|assistant|>\n"),
        "end" => Some("</s>\n"),
        _ => None,
    }
}

/// The state of one expansion.
struct Run<'a, L: Lexicon> {
    grammar: &'a Grammar,
    lexicon: &'a L,
    dice: &'a mut Dice,
    /// Alternatives already used: a document does not say the same sentence twice if it can help it.
    used: HashSet<(&'a str, usize)>,
    given: Given<L::Value>,
    out: Expansion,
}

impl<'a, L: Lexicon> Run<'a, L> {
    fn rule(&mut self, name: &str) -> Result<(), Error> {
        if let Some(mark) = mark(name) {
            self.out.text.push_str(mark);
            return Ok(());
        }
        let grammar = self.grammar;
        let name = self.given.aliases.get(name).map_or(name, String::as_str);
        let (name, alternatives) =
            grammar
                .rules
                .get_key_value(name)
                .ok_or_else(|| Error::UnknownRule {
                    rule: name.to_owned(),
                })?;
        let mut chosen = self.weighted(alternatives);
        for _ in 0..6 {
            if !self.used.contains(&(name.as_str(), chosen)) {
                break;
            }
            chosen = self.weighted(alternatives);
        }
        self.used.insert((name.as_str(), chosen));
        let _ = write!(self.out.path, "{name}:{chosen} ");
        self.sequence(&alternatives[chosen].nodes)
    }

    fn weighted(&mut self, alternatives: &[Alternative]) -> usize {
        let mut ticket = self.dice.below(alternatives.iter().map(|a| a.weight).sum());
        for (index, alternative) in alternatives.iter().enumerate() {
            if ticket < alternative.weight {
                return index;
            }
            ticket -= alternative.weight;
        }
        0
    }

    fn sequence(&mut self, nodes: &'a [Node]) -> Result<(), Error> {
        for node in nodes {
            match node {
                Node::Text(text) => self.out.text.push_str(text),
                Node::Choice(sides) => {
                    let side = self.dice.below(sides.len());
                    self.sequence(&sides[side])?;
                }
                Node::Rule(name) => self.rule(name)?,
                Node::Slot {
                    category,
                    name,
                    bound,
                    forms,
                } => {
                    let text = self.slot(category, name, *bound, forms)?;
                    self.out.text.push_str(&text);
                }
            }
        }
        Ok(())
    }

    fn slot(
        &mut self,
        category: &str,
        name: &str,
        bound: bool,
        forms: &[String],
    ) -> Result<String, Error> {
        if !bound {
            return fresh(self.lexicon, category, forms, self.dice);
        }
        if !self.given.bindings.contains_key(name) {
            let mut value = drawn(self.lexicon, category, self.dice)?;
            // Two people of one story bear two names.
            for _ in 0..20 {
                let key = self.lexicon.key(&value);
                if !self
                    .given
                    .bindings
                    .values()
                    .any(|other| self.lexicon.key(other) == key)
                {
                    break;
                }
                value = drawn(self.lexicon, category, self.dice)?;
            }
            self.given.bindings.insert(name.to_owned(), value);
        }
        rendered(
            self.lexicon,
            &self.given.bindings[name],
            category,
            forms,
            self.dice,
        )
    }
}

fn drawn<L: Lexicon>(lexicon: &L, category: &str, dice: &mut Dice) -> Result<L::Value, Error> {
    lexicon
        .draw(category, dice)
        .ok_or_else(|| Error::UnknownCategory {
            category: category.to_owned(),
        })
}

fn rendered<L: Lexicon>(
    lexicon: &L,
    value: &L::Value,
    category: &str,
    forms: &[String],
    dice: &mut Dice,
) -> Result<String, Error> {
    lexicon
        .render(value, forms, dice)
        .ok_or_else(|| Error::UnknownForm {
            category: category.to_owned(),
            form: forms.join("."),
        })
}

/// A thing of `category` drawn for this place only.
fn fresh<L: Lexicon>(
    lexicon: &L,
    category: &str,
    forms: &[String],
    dice: &mut Dice,
) -> Result<String, Error> {
    let value = drawn(lexicon, category, dice)?;
    rendered(lexicon, &value, category, forms, dice)
}

/// Lines of a grammar file with comments and blanks dropped and continuations joined.
fn joined_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        if line.trim().is_empty() || line.starts_with('#') {
            continue;
        }
        match (line.strip_prefix("  "), lines.last_mut()) {
            (Some(rest), Some((_, last))) => {
                if !last.ends_with("\\n") {
                    last.push(' ');
                }
                last.push_str(rest.trim());
            }
            _ => lines.push((index + 1, line.trim_end().to_owned())),
        }
    }
    lines
}

fn weight_of(line: &str) -> (usize, &str) {
    line.strip_prefix('*')
        .and_then(|rest| rest.split_once(' '))
        .and_then(|(weight, body)| Some((weight.parse().ok()?, body)))
        .unwrap_or((1, line))
}

fn parse_sequence(text: &[char], at: &mut usize, depth: usize) -> Result<Vec<Node>, String> {
    let mut nodes = Vec::new();
    let mut plain = String::new();
    while let Some(&c) = text.get(*at) {
        if depth > 0 && (c == '|' || c == ']') {
            break;
        }
        *at += 1;
        match c {
            '[' | '<' | '{' => {
                if !plain.is_empty() {
                    nodes.push(Node::Text(std::mem::take(&mut plain)));
                }
                nodes.push(match c {
                    '[' => parse_choice(text, at, depth)?,
                    '<' => Node::Rule(parse_until(text, at, '>')?),
                    _ => parse_slot(&parse_until(text, at, '}')?),
                });
            }
            '\\' => {
                match text.get(*at) {
                    Some('n') => plain.push('\n'),
                    other => {
                        return Err(format!("`\\` stands before {other:?}, only `\\n` is known"));
                    }
                }
                *at += 1;
            }
            _ => plain.push(c),
        }
    }
    if !plain.is_empty() {
        nodes.push(Node::Text(plain));
    }
    Ok(nodes)
}

fn parse_choice(text: &[char], at: &mut usize, depth: usize) -> Result<Node, String> {
    let mut sides = Vec::new();
    loop {
        sides.push(parse_sequence(text, at, depth + 1)?);
        match text.get(*at) {
            Some('|') => *at += 1,
            Some(']') => {
                *at += 1;
                return Ok(Node::Choice(sides));
            }
            _ => return Err("a `[` is not closed".into()),
        }
    }
}

fn parse_until(text: &[char], at: &mut usize, close: char) -> Result<String, String> {
    let length = text[*at..]
        .iter()
        .position(|&c| c == close)
        .ok_or_else(|| format!("a `{close}` is missing"))?;
    let inner = text[*at..*at + length].iter().collect();
    *at += length + 1;
    Ok(inner)
}

fn parse_slot(inner: &str) -> Node {
    let mut parts = inner.split('.');
    let name = parts.next().unwrap_or_default().to_owned();
    let category = name
        .trim_end_matches(|c: char| c.is_ascii_digit())
        .to_owned();
    Node::Slot {
        bound: category.len() < name.len(),
        category,
        name,
        forms: parts.map(str::to_owned).collect(),
    }
}

/// Words that end in a full stop without ending a sentence.
const ABBREVIATIONS: [&str; 9] = ["Nr", "ca", "Str", "str", "Dr", "B", "a.m", "p.m", "St"];

/// Gives every sentence its capital: at the start, after a line break, after `.`, `!` or `?` and a space,
/// and after an opening quotation mark that follows one of these. A digit before the full stop is taken
/// for an ordinal, and a mark followed by a closing quotation mark for speech that goes on, unless it is
/// a full stop. Spaces that an empty choice left over are dropped.
pub fn capitalise(text: &str, open: char, close: char) -> String {
    let mut out = String::with_capacity(text.len());
    let mut due = true;
    let mut before_space = '\n';
    for c in text.chars() {
        let at_end = out.ends_with(' ') || out.is_empty() || out.ends_with('\n');
        if (c == ' ' && at_end) || (c == '.' && out.ends_with("m.")) {
            continue;
        }
        if matches!(c, ',' | '.') && out.ends_with(' ') {
            out.pop();
        }
        if due && c.is_lowercase() {
            out.extend(c.to_uppercase());
        } else {
            out.push(c);
        }
        due = match c {
            '\n' => true,
            ' ' => {
                let ends = |s: &str| s.ends_with(['.', '!', '?']);
                let body = &out[..out.len() - 1];
                let spoken = body.strip_suffix(close);
                match spoken {
                    Some(speech) => speech.ends_with('.'),
                    None => ends(body) && !is_abbreviation(body),
                }
            }
            c if c == open => matches!(before_space, '.' | '!' | '?' | ':' | ',' | '\n') || due,
            _ => false,
        };
        if c != ' ' {
            before_space = c;
        }
    }
    out
}

fn is_abbreviation(body: &str) -> bool {
    let Some(word) = body.strip_suffix('.') else {
        return false;
    };
    let word = word.rsplit([' ', '\n', '(']).next().unwrap_or_default();
    word.ends_with(|c: char| c.is_ascii_digit()) || ABBREVIATIONS.contains(&word)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::{Given, Grammar, capitalise};
    use crate::dice::Dice;
    use crate::error::Error;
    use crate::lexicon_de::German;

    fn expand(text: &str) -> String {
        let grammar = Grammar::parse(&[("test", text)]).unwrap();
        grammar
            .expand("doc", &German::new(), &mut Dice::new(1, "test"))
            .unwrap()
            .text
    }

    #[test]
    fn bound_slots_stay_and_free_ones_do_not() {
        let text = expand("== doc\n{p1} {p1} {p2} [{p1}|{p1}] <user>");
        let words: Vec<&str> = text.split_whitespace().collect();
        assert_eq!(words[0], words[1]);
        assert_eq!(words[0], words[3]);
        assert_ne!(words[0], words[2]);
        assert_eq!(words[4], "<|user|>");
    }

    #[test]
    fn a_path_names_the_alternatives_and_aliases_lead_elsewhere() {
        let grammar = Grammar::parse(&[(
            "test",
            "== doc\n<what>!\n== what\nno\n== other\nyes [a|a]\n",
        )])
        .unwrap();
        let aliases = HashMap::from([("what".to_owned(), "other".to_owned())]);
        let given = Given {
            bindings: HashMap::new(),
            aliases,
        };
        let mut dice = Dice::new(1, "test");
        let out = grammar
            .expand_with("doc", &German::new(), given, &mut dice)
            .unwrap();
        assert_eq!(
            (out.text.as_str(), out.path.as_str()),
            ("yes a!", "doc:0 other:0 ")
        );
    }

    #[test]
    fn mistakes_are_found() {
        let parse = |text| Grammar::parse(&[("test", text)]);
        assert!(matches!(
            parse("== doc\n[a|b"),
            Err(Error::Grammar { line: 2, .. })
        ));
        assert!(matches!(
            parse("== doc\n<gone>"),
            Err(Error::UnknownRule { .. })
        ));
        assert!(matches!(parse("== doc\n"), Err(Error::EmptyRule { .. })));
        assert!(matches!(
            parse("loose"),
            Err(Error::Grammar { line: 1, .. })
        ));
        let check = |text| parse(text).unwrap().check_slots(&German::new());
        assert!(matches!(
            check("== doc\n{nothing1}"),
            Err(Error::UnknownCategory { .. })
        ));
        assert!(matches!(
            check("== doc\n[a|{tree1.blue}]"),
            Err(Error::UnknownForm { .. })
        ));
        assert!(check("== doc\n{tree1.den.a}").is_ok());
    }

    #[test]
    fn sentences_get_capitals_and_spaces_are_tidied() {
        let tidy = |text| capitalise(text, '„', '“');
        assert_eq!(
            tidy("am 3. mai kam er. sie ging ."),
            "Am 3. mai kam er. Sie ging."
        );
        assert_eq!(
            tidy("er rief: „komm!“ und ging"),
            "Er rief: „Komm!“ und ging"
        );
        assert_eq!(
            tidy("gestern  kam sie , oder?  ja"),
            "Gestern kam sie, oder? Ja"
        );
        assert_eq!(tidy("eins\nzwei\n- drei"), "Eins\nZwei\n- drei");
    }
}
