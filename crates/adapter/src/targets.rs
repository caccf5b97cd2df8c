//! Which modules an adapter sits on, by PEFT's rules.
//!
//! A list entry matches the module of that name, or any whose path ends in `.entry`; a text is a
//! regular expression for the whole path; `all-linear` is every projection of the blocks.
//! `layers_to_transform` keeps the layers with those numbers. Keys of a pattern match the end of a
//! path, as `(.*\.)?(key)$`.

use regex::Regex;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A choice of modules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Targets {
    /// Names or ends of paths.
    List(Vec<String>),
    /// `all-linear`, or a regular expression for whole paths.
    Text(String),
}

/// The choice that means every projection.
pub const ALL_LINEAR: &str = "all-linear";

impl Targets {
    /// Whether `module`, a whole path, is chosen.
    ///
    /// # Errors
    /// A text that is no regular expression.
    pub fn matches(&self, module: &str) -> Result<bool> {
        match self {
            Self::List(names) => Ok(names.iter().any(|name| ends_in(module, name))),
            Self::Text(text) if text == ALL_LINEAR => Ok(true),
            Self::Text(pattern) => Ok(regex(&format!("^(?:{pattern})$"))?.is_match(module)),
        }
    }
}

/// Whether the path is the name or ends in it after a dot.
pub fn ends_in(module: &str, name: &str) -> bool {
    module
        .strip_suffix(name)
        .is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// The value of the first key of a pattern that matches the end of the path.
///
/// # Errors
/// A key that is no regular expression.
pub fn by_pattern<'a, V>(
    pattern: impl IntoIterator<Item = (&'a String, &'a V)>,
    module: &str,
) -> Result<Option<&'a V>> {
    for (key, value) in pattern {
        if regex(&format!(r"^(?:.*\.)?(?:{key})$"))?.is_match(module) {
            return Ok(Some(value));
        }
    }
    Ok(None)
}

/// Number of the layer a path names: the first number among its parts, behind one of `patterns` where
/// any is given.
pub fn layer_of(module: &str, patterns: &[String]) -> Option<usize> {
    let parts: Vec<&str> = module.split('.').collect();
    parts.windows(2).find_map(|pair| {
        let named = patterns.is_empty() || patterns.iter().any(|pattern| pattern == pair[0]);
        if named { pair[1].parse().ok() } else { None }
    })
}

fn regex(pattern: &str) -> Result<Regex> {
    Regex::new(pattern).map_err(|e| {
        let reason = e.to_string();
        let reason = reason
            .lines()
            .last()
            .unwrap_or_default()
            .trim_start_matches("error: ");
        Error::config(
            "target_modules",
            format!("`{pattern}` is no regular expression: {reason}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODULE: &str = "model.layers.12.self_attn.q_proj";

    #[test]
    fn names_match_whole_parts_of_the_path() {
        let list = |names: &[&str]| Targets::List(names.iter().map(|n| (*n).to_owned()).collect());
        assert!(list(&["q_proj"]).matches(MODULE).expect("matched"));
        assert!(
            list(&["k_proj", "self_attn.q_proj"])
                .matches(MODULE)
                .expect("matched")
        );
        assert!(list(&[MODULE]).matches(MODULE).expect("matched"));
        assert!(
            !list(&["proj", "_proj", "q"])
                .matches(MODULE)
                .expect("matched")
        );
    }

    #[test]
    fn a_text_is_an_expression_for_the_whole_path() {
        let text = |pattern: &str| Targets::Text(pattern.to_owned()).matches(MODULE);
        assert!(text(r".*\.(q|v)_proj").expect("matched"));
        assert!(!text("q_proj").expect("matched"));
        assert!(text(ALL_LINEAR).expect("matched"));
        assert!(text("(q_proj").is_err());
    }

    #[test]
    fn patterns_match_the_end_and_layers_are_found() {
        let ranks = std::collections::BTreeMap::from([
            (r"layers\.12\..*q_proj".to_owned(), 3),
            ("proj".to_owned(), 4),
        ]);
        assert_eq!(by_pattern(&ranks, MODULE).expect("matched"), Some(&3));
        assert_eq!(
            by_pattern(&ranks, "model.layers.1.self_attn.q_proj").expect("matched"),
            None
        );
        assert_eq!(layer_of(MODULE, &[]), Some(12));
        assert_eq!(layer_of(MODULE, &["blocks".to_owned()]), None);
    }
}
