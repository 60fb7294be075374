//! Walking the tree: where we are, what was wrong so far, and the shapes that compose-spec's values take.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    EnvFiles,
    error::{ComposeError, ComposeErrors, MOST},
    keys,
    yaml::{self, Node, Place, Value},
};
use crate::{bounds, error::Reason, name::ServiceName};

/// A value and the path to it.
#[derive(Clone)]
pub struct At<'a> {
    /// The value.
    pub node: &'a Node,
    /// `services.web.ports[0]`.
    pub path: String,
}

impl<'a> At<'a> {
    pub fn root(node: &'a Node) -> Self {
        Self {
            node,
            path: String::new(),
        }
    }

    fn child(&self, key: &str, node: &'a Node) -> Self {
        let path = if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        };
        Self { node, path }
    }

    fn item(&self, index: usize, node: &'a Node) -> Self {
        Self {
            node,
            path: format!("{}[{index}]", self.path),
        }
    }

    pub fn is_null(&self) -> bool {
        matches!(self.node.value, Value::Null)
    }
    pub fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }
    /// The keys of a map; none when it is something else.
    pub fn keys(&self) -> Vec<&'a str> {
        match &self.node.value {
            Value::Map(items) => items.iter().map(|(key, _, _)| key.as_str()).collect(),
            _ => Vec::new(),
        }
    }
    pub fn is_list(&self) -> bool {
        matches!(self.node.value, Value::List(_))
    }

    // For files that are read only in part: whatever has another shape is not there.

    /// The value of a key of a map, unless it is null.
    pub fn get(&self, key: &str) -> Option<Self> {
        let Value::Map(items) = &self.node.value else {
            return None;
        };
        let (_, _, node) = items.iter().find(|(name, _, _)| name == key)?;
        Some(self.child(key, node)).filter(|child| !child.is_null())
    }

    /// The entries of a map.
    pub fn map(&self) -> Vec<(&'a str, Self)> {
        match &self.node.value {
            Value::Map(items) => items
                .iter()
                .map(|(key, _, node)| (key.as_str(), self.child(key, node)))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// The items of a list.
    pub fn list(&self) -> Vec<Self> {
        match &self.node.value {
            Value::List(items) => items
                .iter()
                .enumerate()
                .map(|(index, node)| self.item(index, node))
                .collect(),
            _ => Vec::new(),
        }
    }

    /// A text, number or truth value as it is written.
    pub fn plain_text(&self) -> Option<String> {
        match &self.node.value {
            Value::Text(text) => Some(text.clone()),
            Value::Number { text, source } if source.is_empty() => Some(text.clone()),
            Value::Number { source, .. } => Some(source.clone()),
            Value::Bool(value) => Some(value.to_string()),
            Value::Null | Value::List(_) | Value::Map(_) => None,
        }
    }
}

/// User text for a message: quoted, without control characters, of bounded length.
pub fn quoted(text: &str) -> String {
    let cut: String = text.chars().take(80).collect();
    let dots = if cut.len() < text.len() { "…" } else { "" };
    format!("{cut:?}{dots}")
}

/// What was found wrong so far, and what was given with the file.
pub struct Cx<'a> {
    variables: &'a EnvFiles,
    errors: Vec<ComposeError>,
    more: usize,
}

impl<'a> Cx<'a> {
    pub fn new(variables: &'a EnvFiles) -> Self {
        Self {
            variables,
            errors: Vec::new(),
            more: 0,
        }
    }

    pub fn env_file(&self, path: &str) -> Option<&'a BTreeMap<String, String>> {
        self.variables.get(path)
    }

    pub fn push(&mut self, error: ComposeError) {
        if self.errors.len() < MOST {
            self.errors.push(error);
        } else {
            self.more += 1;
        }
    }

    pub fn into_errors(mut self) -> ComposeErrors {
        self.errors.sort_by_key(|error| (error.line, error.column));
        ComposeErrors {
            errors: self.errors,
            more: self.more,
        }
    }

    /// Reads a whole file, if it is one.
    pub fn read(&mut self, text: &str) -> Option<Node> {
        if text.len() > bounds::MANIFEST_BYTES {
            let message = format!(
                "the file has {} bytes, at most {} are read",
                text.len(),
                bounds::MANIFEST_BYTES
            );
            self.wrong_file(message, "split the release into several projects");
            return None;
        }
        match yaml::read(text) {
            Ok(root) => Some(root),
            Err(error) => {
                self.push(error);
                None
            }
        }
    }

    pub fn finish<T>(self, file: T) -> Result<T, ComposeErrors> {
        if self.errors.is_empty() {
            Ok(file)
        } else {
            Err(self.into_errors())
        }
    }

    fn add(&mut self, path: &str, place: Place, reason: Reason, message: String, advice: &str) {
        self.push(ComposeError {
            path: path.chars().take(300).collect(),
            message,
            advice: advice.to_owned(),
            reason,
            line: place.map(|(line, _)| line),
            column: place.map(|(_, column)| column),
        });
    }

    /// Reports what is wrong with a value.
    pub fn wrong(&mut self, at: &At, message: impl Into<String>, advice: &str) {
        self.add(
            &at.path,
            at.node.place,
            Reason::InvalidManifest,
            message.into(),
            advice,
        );
    }

    /// Reports what is wrong with the whole file.
    pub fn wrong_file(&mut self, message: impl Into<String>, advice: &str) {
        self.add("", None, Reason::InvalidManifest, message.into(), advice);
    }

    /// Reports a value that compose-spec knows and `docker_host` does not.
    pub fn unsupported(&mut self, at: &At, message: impl Into<String>, advice: &str) {
        self.add(
            &at.path,
            at.node.place,
            Reason::UnsupportedManifestKey,
            message.into(),
            advice,
        );
    }

    /// The fields of a map that `schema` knows and that are not null. All others but `x-…` are refused.
    pub fn fields<'n>(&mut self, at: &At<'n>, schema: &str) -> BTreeMap<&'n str, At<'n>> {
        let Value::Map(items) = &at.node.value else {
            if !at.is_null() {
                self.wrong(at, "wanted a map", "see docs/compose-support.md");
            }
            return BTreeMap::new();
        };
        let mut fields = BTreeMap::new();
        for (key, place, node) in items {
            let child = at.child(key, node);
            if keys::is_supported(schema, key) {
                if !child.is_null() {
                    fields.insert(key.as_str(), child);
                }
            } else if !key.starts_with("x-") {
                let (message, advice) = keys::refusal(schema, key);
                self.add(
                    &child.path,
                    *place,
                    Reason::UnsupportedManifestKey,
                    message,
                    advice,
                );
            }
        }
        fields
    }

    /// The entries of a map whose keys people choose.
    pub fn entries<'n>(&mut self, at: &At<'n>, most: usize) -> Vec<(&'n str, At<'n>)> {
        let Value::Map(items) = &at.node.value else {
            if !at.is_null() {
                self.wrong(at, "wanted a map", "see docs/compose-support.md");
            }
            return Vec::new();
        };
        self.count(at, items.len(), most);
        items
            .iter()
            .take(most)
            .map(|(key, _, node)| (key.as_str(), at.child(key, node)))
            .collect()
    }

    /// The entries of a map by names of services, networks or volumes.
    pub fn named<'n>(&mut self, at: &At<'n>, most: usize) -> Vec<(ServiceName, At<'n>)> {
        let mut named = Vec::new();
        for (key, child) in self.entries(at, most) {
            match key.parse::<ServiceName>() {
                Ok(name) => named.push((name, child)),
                Err(_) if key.starts_with("x-") => {}
                Err(error) => self.wrong(&child, error.to_string(), "choose another name"),
            }
        }
        named
    }

    /// The items of a list.
    pub fn items<'n>(&mut self, at: &At<'n>) -> Vec<At<'n>> {
        let Value::List(items) = &at.node.value else {
            if !at.is_null() {
                self.wrong(at, "wanted a list", "see docs/compose-support.md");
            }
            return Vec::new();
        };
        self.count(at, items.len(), bounds::SERVICE_ENTRIES);
        items
            .iter()
            .take(bounds::SERVICE_ENTRIES)
            .enumerate()
            .map(|(index, node)| at.item(index, node))
            .collect()
    }

    fn count(&mut self, at: &At, number: usize, most: usize) {
        if number > most {
            self.wrong(
                at,
                format!("it has {number} entries, at most {most} are allowed"),
                "make it smaller",
            );
        }
    }

    /// A text. A number counts when it can only be read in one way; `$$` becomes `$`.
    pub fn text(&mut self, at: &At) -> Option<String> {
        match &at.node.value {
            Value::Text(text) => self.plain(at, text),
            Value::Number { text, source } if text == source => Some(text.clone()),
            Value::Number { text, source } => {
                let message = format!("{} could also be read as {}", quoted(source), quoted(text));
                self.wrong(at, message, "put it in quotes");
                None
            }
            Value::Bool(value) => Some(value.to_string()),
            _ => {
                self.wrong(at, "wanted a text", "see docs/compose-support.md");
                None
            }
        }
    }

    /// A number or a text that holds one, as written.
    pub fn number(&mut self, at: &At) -> Option<String> {
        match &at.node.value {
            Value::Number { text, source } if source.is_empty() => Some(text.clone()),
            Value::Number { source, .. } => Some(source.clone()),
            Value::Text(text) => self.plain(at, text),
            _ => {
                self.wrong(at, "wanted a number", "see docs/compose-support.md");
                None
            }
        }
    }

    /// Checks a text and takes `$$` for `$`.
    pub fn plain(&mut self, at: &At, text: &str) -> Option<String> {
        if text.contains('\0') {
            self.wrong(at, "it contains a NUL character", "remove it");
            return None;
        }
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some((before, after)) = rest.split_once('$') {
            out.push_str(before);
            let Some(after) = after.strip_prefix('$') else {
                self.wrong(
                    at,
                    "variables such as ${NAME} are not replaced here",
                    "render the file first with `docker compose config`, or write $$ for a dollar sign",
                );
                return None;
            };
            out.push('$');
            rest = after;
        }
        out.push_str(rest);
        Some(out)
    }

    /// `true` or `false`.
    pub fn flag(&mut self, at: &At) -> Option<bool> {
        match &at.node.value {
            Value::Bool(value) => Some(*value),
            Value::Text(text) if text == "true" => Some(true),
            Value::Text(text) if text == "false" => Some(false),
            _ => {
                self.wrong(at, "wanted true or false", "see docs/compose-support.md");
                None
            }
        }
    }

    /// A whole number from `low` to `high`.
    pub fn whole(&mut self, at: &At, low: i64, high: i64) -> Option<i64> {
        let text = self.number(at)?;
        let value = text
            .parse::<i64>()
            .ok()
            .filter(|value| (low..=high).contains(value));
        if value.is_none() {
            let message = format!("{} is not a whole number from {low} to {high}", quoted(&text));
            self.wrong(at, message, "correct the number");
        }
        value
    }

    /// A list of texts without duplicates.
    pub fn set(&mut self, at: &At) -> Vec<String> {
        let mut set: Vec<String> = Vec::new();
        for item in self.items(at) {
            if let Some(text) = self.text(&item) {
                if set.contains(&text) {
                    self.wrong(&item, format!("{} is there twice", quoted(&text)), "remove one");
                }
                set.push(text);
            }
        }
        set
    }

    /// A text or a list of texts.
    pub fn one_or_many(&mut self, at: &At) -> Vec<String> {
        if at.is_list() {
            self.set(at)
        } else {
            self.text(at).into_iter().collect()
        }
    }

    /// A map of texts, or a list of `key=value`; each key once.
    pub fn written_pairs<'n>(&mut self, at: &At<'n>) -> Vec<(String, Option<String>, At<'n>)> {
        let mut found: Vec<(String, Option<String>, At<'n>)> = Vec::new();
        if at.is_list() {
            for item in self.items(at) {
                if let Some(text) = self.text(&item) {
                    let (key, value) = match text.split_once('=') {
                        Some((key, value)) => (key.to_owned(), Some(value.to_owned())),
                        None => (text, None),
                    };
                    found.push((key, value, item));
                }
            }
        } else {
            for (key, child) in self.entries(at, bounds::SERVICE_ENTRIES) {
                let value = if child.is_null() { None } else { self.text(&child) };
                if value.is_some() || child.is_null() {
                    found.push((key.to_owned(), value, child));
                }
            }
        }
        let mut pairs: Vec<(String, Option<String>, At<'n>)> = Vec::new();
        let mut known = BTreeSet::new();
        for (key, value, at) in found {
            if key.is_empty() || key.contains(['=', '\0']) {
                let message = format!("{} is no name: empty, or with '=' or NUL in it", quoted(&key));
                self.wrong(&at, message, "choose another name");
                continue;
            }
            if !known.insert(key.clone()) {
                self.wrong(&at, format!("{} is there twice", quoted(&key)), "remove one");
            }
            pairs.push((key, value, at));
        }
        pairs
    }

    /// As [`Self::written_pairs`]. `missing` is what an entry without a value gets; `None` refuses it.
    pub fn pairs(&mut self, at: &At, missing: Option<&str>) -> BTreeMap<String, String> {
        let mut pairs = BTreeMap::new();
        for (key, value, at) in self.written_pairs(at) {
            let Some(value) = value.or_else(|| missing.map(str::to_owned)) else {
                let message = format!("{} has no value", quoted(&key));
                self.wrong(
                    &at,
                    message,
                    "write the value: nothing is taken from the caller's shell",
                );
                continue;
            };
            pairs.insert(key, value);
        }
        pairs
    }
}
