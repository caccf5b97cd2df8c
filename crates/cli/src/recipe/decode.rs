//! From the tree to the recipe's structures, strictly.
//!
//! A serde deserializer in which the type asked for decides how a scalar is read: `NO` is a text
//! where a text is wanted, `2e-4` a number where a number is wanted, and nothing is converted
//! behind the user's back. Faults carry the place and the whole dotted key.

use std::fmt;

use serde::de::{
    self, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess,
    Visitor,
};

use super::tree::{Entry, Node, Origin, Problem, Value};
use super::{Recipe, suggest};

/// Decodes a whole recipe.
pub(super) fn decode(tree: &Node) -> Result<Recipe, Problem> {
    decode_as(tree)
}

fn decode_as<'de, T: de::Deserialize<'de>>(tree: &'de Node) -> Result<T, Problem> {
    T::deserialize(tree).map_err(Fault::into_problem)
}

/// What is wrong, before it is known where.
#[derive(Debug)]
pub(super) struct Fault {
    path: Vec<String>,
    origin: Option<Origin>,
    kind: Kind,
}

#[derive(Debug)]
enum Kind {
    UnknownKey { key: String, known: Vec<String> },
    UnknownName { found: String, known: Vec<String> },
    Wrong { expected: String, found: String },
    Missing { key: String },
    Other(String),
}

impl Fault {
    fn new(kind: Kind) -> Self {
        Self {
            path: Vec::new(),
            origin: None,
            kind,
        }
    }

    fn wrong(node: &Node, expected: &str) -> Self {
        Self::new(Kind::Wrong {
            expected: expected.to_owned(),
            found: node.describe(),
        })
        .at(&node.origin)
    }

    fn at(mut self, origin: &Origin) -> Self {
        self.origin.get_or_insert_with(|| origin.clone());
        self
    }

    fn under(mut self, key: &str) -> Self {
        self.path.insert(0, key.to_owned());
        self
    }

    fn into_problem(self) -> Problem {
        let origin = self.origin.unwrap_or(Origin::Whole);
        let path = self.path.join(".");
        let full = |key: &str| match path.as_str() {
            "" => key.to_owned(),
            path => format!("{path}.{key}"),
        };
        match self.kind {
            Kind::UnknownKey { key, known } => {
                let problem = Problem::new(
                    origin,
                    match path.as_str() {
                        "" => format!("`{key}` is not a key of a recipe"),
                        path => format!("`{key}` is not a key of `{path}`"),
                    },
                );
                match suggest::key(&key, &path, &known) {
                    Some(hint) => problem.hint(hint),
                    None => problem.hint(format!("the keys here are {}", list(&known))),
                }
            }
            Kind::UnknownName { found, known } => {
                let problem = Problem::new(
                    origin,
                    format!("`{path}` is one of {}, not `{found}`", list(&known)),
                );
                match suggest::value(&found, &known) {
                    Some(hint) => problem.hint(hint),
                    None => problem.hint("`sparsam recipe` says what each of them does"),
                }
            }
            Kind::Wrong { expected, found } => {
                let problem = Problem::new(
                    origin,
                    format!("`{path}` expects {expected}, found {found}"),
                );
                if found.starts_with("the text") && !expected.contains("text") {
                    problem.hint("leave out the quotes")
                } else {
                    problem
                }
            }
            Kind::Missing { key } => Problem::new(origin, format!("`{}` is missing", full(&key))),
            Kind::Other(message) => Problem::new(
                origin,
                match path.as_str() {
                    "" => message,
                    path => format!("`{path}` {message}"),
                },
            ),
        }
    }
}

fn list(names: &[String]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("`{name}`")).collect();
    quoted.join(", ")
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:?}", self.kind)
    }
}

impl std::error::Error for Fault {}

impl de::Error for Fault {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(Kind::Other(message.to_string()))
    }

    fn invalid_type(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::new(Kind::Wrong {
            expected: expected.to_string(),
            found: match found {
                de::Unexpected::Str(text) => format!("`{text}`"),
                de::Unexpected::Seq => "a list".to_owned(),
                de::Unexpected::Map => "keys and values".to_owned(),
                de::Unexpected::Unit => "nothing".to_owned(),
                other => other.to_string(),
            },
        })
    }

    fn invalid_value(found: de::Unexpected<'_>, expected: &dyn de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_variant(found: &str, known: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownName {
            found: found.to_owned(),
            known: owned(known),
        })
    }

    fn unknown_field(key: &str, known: &'static [&'static str]) -> Self {
        Self::new(Kind::UnknownKey {
            key: key.to_owned(),
            known: owned(known),
        })
    }

    fn missing_field(key: &'static str) -> Self {
        Self::new(Kind::Missing {
            key: key.to_owned(),
        })
    }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

const WHOLE: &str = "a whole number of 0 or more";

/// Implements a whole-number method: the scalar must be plain and fit the type.
macro_rules! whole {
    ($($method:ident $visit:ident $type:ty;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
            match &self.value {
                Value::Scalar { text, plain: true } => match text.parse::<$type>() {
                    Ok(number) => visitor.$visit(number),
                    Err(_) => Err(Fault::wrong(self, WHOLE)),
                },
                _ => Err(Fault::wrong(self, WHOLE)),
            }
        }
    )*};
}

impl<'de> de::Deserializer<'de> for &'de Node {
    type Error = Fault;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.value {
            _ if self.is_null() => visitor.visit_unit(),
            Value::Scalar { text, plain: true } => {
                if let Ok(number) = text.parse::<u64>() {
                    visitor.visit_u64(number)
                } else {
                    visitor.visit_borrowed_str(text)
                }
            }
            Value::Scalar { text, .. } => visitor.visit_borrowed_str(text),
            Value::Sequence(items) => visitor.visit_seq(Items {
                items: items.iter(),
                index: 0,
            }),
            Value::Mapping(entries) => visitor.visit_map(Entries {
                entries: entries.iter(),
                current: None,
            }),
        }
        .map_err(|fault| fault.at(&self.origin))
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.value {
            Value::Scalar { text, plain: true } => match text.as_str() {
                "true" | "True" | "TRUE" => visitor.visit_bool(true),
                "false" | "False" | "FALSE" => visitor.visit_bool(false),
                _ => Err(Fault::wrong(self, "`true` or `false`")),
            },
            _ => Err(Fault::wrong(self, "`true` or `false`")),
        }
    }

    whole! {
        deserialize_i8 visit_i8 i8;
        deserialize_i16 visit_i16 i16;
        deserialize_i32 visit_i32 i32;
        deserialize_i64 visit_i64 i64;
        deserialize_u8 visit_u8 u8;
        deserialize_u16 visit_u16 u16;
        deserialize_u32 visit_u32 u32;
        deserialize_u64 visit_u64 u64;
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.value {
            Value::Scalar { text, plain: true } => match text.parse::<f64>() {
                Ok(number) if number.is_finite() => visitor.visit_f64(number),
                _ => Err(Fault::wrong(self, "a number")),
            },
            _ => Err(Fault::wrong(self, "a number")),
        }
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_null() => visitor.visit_borrowed_str(text),
            _ => Err(Fault::wrong(self, "a text")),
        }
        .map_err(|fault| fault.at(&self.origin))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        if self.is_null() {
            visitor.visit_none()
        } else {
            visitor.visit_some(self)
        }
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_any(visitor)
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_any(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.value {
            Value::Sequence(_) => self.deserialize_any(visitor),
            _ => Err(Fault::wrong(self, "a list such as `[a, b]`")),
        }
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _len: usize,
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_seq(visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        match &self.value {
            Value::Mapping(_) => self.deserialize_any(visitor),
            // A section whose keys are all commented out.
            _ if self.is_null() => visitor.visit_map(Entries {
                entries: [].iter(),
                current: None,
            }),
            _ => Err(Fault::wrong(self, "keys and values of its own")),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        self.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Fault> {
        match &self.value {
            Value::Scalar { text, .. } if !self.is_null() => visitor
                .visit_enum(Name(text))
                .map_err(|fault| fault.at(&self.origin)),
            _ => Err(Fault::wrong(
                self,
                &format!("one of {}", list(&owned(variants))),
            )),
        }
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Fault> {
        visitor.visit_unit()
    }
}

struct Items<'de> {
    items: std::slice::Iter<'de, Node>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'de> {
    type Error = Fault;

    fn next_element_seed<T: DeserializeSeed<'de>>(
        &mut self,
        seed: T,
    ) -> Result<Option<T::Value>, Fault> {
        let Some(node) = self.items.next() else {
            return Ok(None);
        };
        let index = self.index;
        self.index += 1;
        seed.deserialize(node)
            .map(Some)
            .map_err(|fault| fault.at(&node.origin).under(&index.to_string()))
    }
}

struct Entries<'de> {
    entries: std::slice::Iter<'de, Entry>,
    current: Option<&'de Entry>,
}

impl<'de> MapAccess<'de> for Entries<'de> {
    type Error = Fault;

    fn next_key_seed<K: DeserializeSeed<'de>>(
        &mut self,
        seed: K,
    ) -> Result<Option<K::Value>, Fault> {
        self.current = self.entries.next();
        let Some(entry) = self.current else {
            return Ok(None);
        };
        let key: de::value::StrDeserializer<'_, Fault> = entry.key.as_str().into_deserializer();
        seed.deserialize(key)
            .map(Some)
            .map_err(|fault| fault.at(&entry.key_origin))
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, Fault> {
        let Some(entry) = self.current else {
            return Err(de::Error::custom("has no value"));
        };
        seed.deserialize(&entry.value)
            .map_err(|fault| fault.at(&entry.value.origin).under(&entry.key))
    }
}

struct Name<'de>(&'de str);

impl<'de> EnumAccess<'de> for Name<'de> {
    type Error = Fault;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), Fault> {
        let name: de::value::StrDeserializer<'_, Fault> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Name<'de> {
    type Error = Fault;

    fn unit_variant(self) -> Result<(), Fault> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, Fault> {
        Err(de::Error::custom("is a single word"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, Fault> {
        Err(de::Error::custom("is a single word"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, Fault> {
        Err(de::Error::custom("is a single word"))
    }
}
