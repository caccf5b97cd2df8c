//! Values of keys that may be written in more than one form.

use std::borrow::Cow;
use std::fmt;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// How often something happens: `epoch`, `never`, or a number of optimiser steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cadence {
    /// At the end of each pass over the data.
    Epoch,
    /// Not while the run goes on.
    Never,
    /// Every so many optimiser steps.
    Steps(usize),
}

/// Which projections: `all-linear`, a list of names, or a regular expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TargetModules {
    /// Every linear projection of the blocks; not the output head.
    AllLinear,
    /// A projection is meant if its name is, or ends in `.` and, one of these.
    List(Vec<String>),
    /// A regular expression that matches the whole name.
    Regex(String),
}

/// One name or a list of names; none by default.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(transparent)]
pub(crate) struct Names(pub(crate) Vec<String>);

impl Serialize for Cadence {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Epoch => serializer.serialize_str("epoch"),
            Self::Never => serializer.serialize_str("never"),
            Self::Steps(steps) => serializer.serialize_u64(*steps as u64),
        }
    }
}

impl<'de> Deserialize<'de> for Cadence {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct CadenceVisitor;

        impl Visitor<'_> for CadenceVisitor {
            type Value = Cadence;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a number of steps, `epoch` or `never`")
            }

            fn visit_u64<E: de::Error>(self, steps: u64) -> Result<Cadence, E> {
                usize::try_from(steps)
                    .ok()
                    .filter(|&steps| steps > 0)
                    .map(Cadence::Steps)
                    .ok_or_else(|| E::invalid_value(de::Unexpected::Str(&steps.to_string()), &self))
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<Cadence, E> {
                match name {
                    "epoch" => Ok(Cadence::Epoch),
                    "never" => Ok(Cadence::Never),
                    _ => Err(E::invalid_value(de::Unexpected::Str(name), &self)),
                }
            }
        }

        deserializer.deserialize_any(CadenceVisitor)
    }
}

impl JsonSchema for Cadence {
    fn schema_name() -> Cow<'static, str> {
        "Cadence".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [{"enum": ["epoch", "never"]}, {"type": "integer", "minimum": 1}]
        })
    }
}

impl Serialize for TargetModules {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::AllLinear => serializer.serialize_str("all-linear"),
            Self::List(names) => names.serialize(serializer),
            Self::Regex(expression) => serializer.serialize_str(expression),
        }
    }
}

impl<'de> Deserialize<'de> for TargetModules {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(match OneOrMany::deserialize(deserializer)? {
            OneOrMany::One(name) if name == "all-linear" => Self::AllLinear,
            OneOrMany::One(expression) => Self::Regex(expression),
            OneOrMany::Many(names) => Self::List(names),
        })
    }
}

impl JsonSchema for TargetModules {
    fn schema_name() -> Cow<'static, str> {
        "TargetModules".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        one_or_many()
    }
}

impl<'de> Deserialize<'de> for Names {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Self(match OneOrMany::deserialize(deserializer)? {
            OneOrMany::One(name) => vec![name],
            OneOrMany::Many(names) => names,
        }))
    }
}

impl JsonSchema for Names {
    fn schema_name() -> Cow<'static, str> {
        "Names".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_generator: &mut SchemaGenerator) -> Schema {
        one_or_many()
    }
}

fn one_or_many() -> Schema {
    json_schema!({
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]
    })
}

/// A text, or a list of them.
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl<'de> Deserialize<'de> for OneOrMany {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct OneOrManyVisitor;

        impl<'de> Visitor<'de> for OneOrManyVisitor {
            type Value = OneOrMany;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a name or a list of names")
            }

            fn visit_str<E: de::Error>(self, name: &str) -> Result<OneOrMany, E> {
                Ok(OneOrMany::One(name.to_owned()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<OneOrMany, A::Error> {
                let mut names = Vec::new();
                while let Some(name) = items.next_element()? {
                    names.push(name);
                }
                Ok(OneOrMany::Many(names))
            }
        }

        deserializer.deserialize_any(OneOrManyVisitor)
    }
}
