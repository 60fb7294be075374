//! YAML into a small tree with places, under explicit budgets. Everything that could blow up (aliases, nesting, size) is
//! refused by the parser while it reads, before the tree exists.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error as _, MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{DuplicateKeyPolicy, Spanned};

use super::{error::ComposeError, strict};
use crate::{bounds, error::Reason};

/// Deepest nesting that is read; compose-spec needs seven.
const DEPTH: usize = 24;
/// Most nodes, those that aliases repeat included.
const NODES: usize = 50_000;
/// Most anchors and most aliases.
const ALIASES: usize = 2_000;
/// Longest key.
const KEY_BYTES: usize = 1_024;

/// A place in the file: line and column, both from 1.
pub type Place = Option<(u32, u32)>;

/// A value and its place.
#[derive(Debug)]
pub struct Node {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub value: Value,
}

impl Node {
    /// The same as JSON. Numbers that JSON cannot hold become texts.
    pub fn into_json(self) -> serde_json::Value {
        use serde_json::Value as Json;
        match self.value {
            Value::Null => Json::Null,
            Value::Bool(value) => Json::Bool(value),
            Value::Number { text, .. } => text
                .parse::<serde_json::Number>()
                .map_or(Json::String(text), Json::Number),
            Value::Text(text) => Json::String(text),
            Value::List(items) => items.into_iter().map(Self::into_json).collect(),
            Value::Map(items) => items
                .into_iter()
                .map(|(key, _, node)| (key, node.into_json()))
                .collect(),
        }
    }
}

/// A YAML value.
#[derive(Debug)]
pub enum Value {
    /// Nothing.
    Null,
    /// `true` or `false` (YAML 1.2; `yes` and `no` are texts).
    Bool(bool),
    /// A number with its spelling in the file, which is empty when unknown.
    Number {
        /// The number as people would write it in decimal.
        text: String,
        /// How the file spells it.
        source: String,
    },
    /// A text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A map in the order of the file, without duplicates.
    Map(Vec<(String, Place, Node)>),
}

/// What is deserialized first: the places come as wrappers.
enum Raw {
    Null,
    Bool(bool),
    Number(String),
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<Key>, Spanned<Raw>)>),
}

struct Key(String);

impl<'de> Deserialize<'de> for Key {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let key = String::deserialize(deserializer)?;
        if key.len() > KEY_BYTES {
            return Err(D::Error::custom(format_args!(
                "a key is longer than {KEY_BYTES} bytes"
            )));
        }
        Ok(Self(key))
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a YAML value")
    }
    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }
    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }
    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }
    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }
    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }
    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }
    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }
    fn visit_u128<E>(self, value: u128) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }
    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Number(value.to_string()))
    }
    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Raw, E> {
        if value.len() > bounds::MANIFEST_TEXT_BYTES {
            return Err(E::custom(format_args!(
                "a text is longer than {} bytes",
                bounds::MANIFEST_TEXT_BYTES
            )));
        }
        Ok(Raw::Text(value.to_owned()))
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            items.push(item);
        }
        Ok(Raw::List(items))
    }
    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = map.next_entry()? {
            items.push(item);
        }
        Ok(Raw::Map(items))
    }
}

fn place_of(location: serde_saphyr::Location) -> Place {
    let line = u32::try_from(location.line()).ok().filter(|line| *line > 0)?;
    let column = u32::try_from(location.column()).ok()?;
    Some((line, column))
}

fn node(text: &str, raw: Spanned<Raw>) -> Node {
    let value = match raw.value {
        Raw::Null => Value::Null,
        Raw::Bool(value) => Value::Bool(value),
        Raw::Number(number) => Value::Number {
            text: number,
            source: spelling(text, raw.defined).unwrap_or_default(),
        },
        Raw::Text(value) => Value::Text(value),
        Raw::List(items) => Value::List(items.into_iter().map(|item| node(text, item)).collect()),
        Raw::Map(items) => Value::Map(
            items
                .into_iter()
                .map(|(key, item)| (key.value.0, place_of(key.referenced), node(text, item)))
                .collect(),
        ),
    };
    Node {
        place: place_of(raw.referenced),
        value,
    }
}

fn spelling(text: &str, location: serde_saphyr::Location) -> Option<String> {
    let span = location.span();
    let start = usize::try_from(span.byte_offset()?).ok()?;
    let end = start.checked_add(usize::try_from(span.byte_len()?).ok()?)?;
    text.get(start..end).map(|source| source.trim().to_owned())
}

/// Reads one document. The caller has checked the size of `text`.
pub fn read(text: &str) -> Result<Node, ComposeError> {
    // Before the parser, whose words for it would name another place.
    strict::characters(text)?;
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: DEPTH,
            flow_nesting_limit: DEPTH,
            max_nodes: NODES,
            max_events: 4 * NODES,
            max_aliases: ALIASES,
            max_anchors: ALIASES,
            max_merge_keys: ALIASES,
            max_recorded_anchor_events: 4 * NODES,
            max_recorded_anchor_bytes: 4 * bounds::MANIFEST_BYTES,
            max_total_scalar_bytes: 4 * bounds::MANIFEST_BYTES,
            max_total_comment_bytes: bounds::MANIFEST_BYTES,
            max_documents: 1,
            // One anchor for the settings that all services share is good style, not an attack.
            enforce_alias_anchor_ratio: false,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 2 * NODES,
            max_replay_stack_depth: DEPTH,
        },
        duplicate_keys: DuplicateKeyPolicy::Error,
        strict_booleans: true,
        reject_unsupported_tags: true,
        with_snippet: false,
    };
    let raw: Spanned<Raw> =
        serde_saphyr::from_str_with_options(text, options).map_err(|error| refused(&error))?;
    strict::check(text)?;
    Ok(node(text, raw))
}

fn refused(error: &serde_saphyr::Error) -> ComposeError {
    let place = error.location().and_then(place_of);
    // One line without the parser's own position, which is reported beside it.
    let message: String = error
        .without_snippet()
        .to_string()
        .lines()
        .next()
        .unwrap_or_default()
        .chars()
        .filter(|c| !c.is_control())
        .take(300)
        .collect();
    ComposeError {
        path: String::new(),
        message: format!("the file is not YAML as compose files use it: {message}"),
        advice: "check it with `docker compose config`".to_owned(),
        reason: Reason::InvalidManifest,
        line: place.map(|(line, _)| line),
        column: place.map(|(_, column)| column),
    }
}
