//! A document for programs that holds one list and is written part by part. One that is not written to its end is no JSON.

use serde::Serialize;
use serde_json::{Map, Value};

use super::{Format, REPORT, escaped, write_stdout, yaml};
use crate::error::CliError;

/// A document that is being written.
pub struct Document {
    format: Format,
    field: &'static str,
    /// Whether it is one of many: JSON in one line, or YAML behind a separator.
    record: bool,
    /// Items so far; `None` before the beginning.
    written: Option<usize>,
}

fn unwritable(error: serde_json::Error) -> CliError {
    CliError::local("the answer cannot be written", REPORT, error)
}

impl Document {
    /// The only result of a command; its list is in `field`.
    pub const fn new(format: Format, field: &'static str) -> Self {
        Self {
            format,
            field,
            record: false,
            written: None,
        }
    }

    /// One of many results.
    pub const fn record(format: Format, field: &'static str) -> Self {
        Self {
            record: true,
            ..Self::new(format, field)
        }
    }

    /// Writes more items.
    pub fn items<T: Serialize>(&mut self, items: &[T]) -> Result<(), CliError> {
        let mut text = String::new();
        for item in items {
            self.item(&mut text, item)?;
        }
        write_stdout(text.as_bytes())
    }

    fn item<T: Serialize>(&mut self, text: &mut String, item: &T) -> Result<(), CliError> {
        let first = self.written.is_none();
        if first && self.record && self.format == Format::Yaml {
            text.push_str("---\n");
        }
        match (self.format, self.record) {
            (Format::Yaml, _) => {
                if first {
                    text.extend([self.field, ":\n"]);
                }
                text.push_str(&yaml_item(&serde_json::to_value(item).map_err(unwritable)?)?);
            }
            (_, true) => {
                let before = if first { self.opening() } else { ",".to_owned() };
                let item = serde_json::to_string(item).map_err(unwritable)?;
                text.push_str(&(before + &escaped(&item)));
            }
            (_, false) => {
                let before = if first { self.opening() } else { ",".to_owned() };
                let item = serde_json::to_string_pretty(item).map_err(unwritable)?;
                // Line breaks within strings are escaped: those that are there lay it out.
                text.push_str(&(before + "\n    " + &escaped(&item).replace('\n', "\n    ")));
            }
        }
        self.written = Some(self.written.unwrap_or_default() + 1);
        Ok(())
    }

    fn opening(&self) -> String {
        if self.record {
            format!("{{\"{}\":[", self.field)
        } else {
            format!("{{\n  \"{}\": [", self.field)
        }
    }

    /// Ends it with what comes beside the items.
    pub fn end<M: Serialize>(self, rest: &M) -> Result<(), CliError> {
        write_stdout(self.ending(rest)?.as_bytes())
    }

    fn ending<M: Serialize>(&self, rest: &M) -> Result<String, CliError> {
        let rest = match serde_json::to_value(rest).map_err(unwritable)? {
            Value::Object(rest) => rest,
            _ => Map::new(),
        };
        if self.format == Format::Yaml {
            let mut text = String::new();
            if self.written.is_none() {
                text = if self.record { "---\n" } else { "" }.to_owned() + &format!("{}: []\n", self.field);
            }
            if !rest.is_empty() {
                text.push_str(&yaml(&Value::Object(rest))?);
            }
            return Ok(text);
        }
        let mut text = if self.written.is_none() {
            self.opening()
        } else {
            String::new()
        };
        text.push_str(if self.record || self.written.is_none() {
            "]"
        } else {
            "\n  ]"
        });
        let (before, after) = if self.record { (",", "") } else { (",\n  ", " ") };
        for (key, value) in &rest {
            let value = escaped(&value.to_string());
            text.extend([before, "\"", key.as_str(), "\":", after, value.as_str()]);
        }
        Ok(text + if self.record { "}\n" } else { "\n}\n" })
    }
}

/// An item of a sequence at the left margin.
fn yaml_item(item: &Value) -> Result<String, CliError> {
    let text = yaml(&Value::Array(vec![item.clone()]))?;
    // What is written in the JSON form is a sequence of its own.
    Ok(if text.starts_with('[') {
        format!("- {}\n", escaped(&item.to_string()))
    } else {
        text
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// What is written of these items and of what comes beside them.
    fn written(mut document: Document, items: &[Value], rest: &Value) -> String {
        let mut text = String::new();
        for item in items {
            document.item(&mut text, item).unwrap();
        }
        text + &document.ending(rest).unwrap()
    }

    #[test]
    fn a_document_in_parts_means_the_same_as_in_one() {
        let items = [
            json!({ "name": "a", "nested": { "list": [1, 2], "none": [] } }),
            json!({ "name": "line\nbreak \u{202e} \u{9b}31m", "empty": {} }),
            json!({}),
        ];
        for count in 0..=items.len() {
            for rest in [json!({}), json!({ "nextPageToken": "abc", "totalSize": 7 })] {
                let items = &items[..count];
                let mut whole = rest.clone();
                whole["agents"] = items.into();
                for document in [Document::new, Document::record] {
                    let text = written(document(Format::Json, "agents"), items, &rest);
                    let read: Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(read, whole, "{text}");
                    let text = written(document(Format::Yaml, "agents"), items, &rest);
                    let read: Value = serde_saphyr::from_str(text.trim_start_matches("---\n")).unwrap();
                    assert_eq!(read, whole, "{text}");
                    assert!(!text.contains('\u{202e}') && !text.contains('\u{9b}'), "{text}");
                }
            }
        }
    }

    #[test]
    fn json_looks_as_if_it_were_written_at_once_and_a_record_is_one_line() {
        let items = [json!({ "name": "a" }), json!({ "name": "b", "labels": [1] })];
        let text = written(Document::new(Format::Json, "agents"), &items, &json!({}));
        let whole = serde_json::to_string_pretty(&json!({ "agents": items })).unwrap();
        assert_eq!(text, whole + "\n");
        let text = written(Document::record(Format::Json, "agents"), &items, &json!({}));
        assert_eq!(text.lines().count(), 1, "{text}");
    }

    #[test]
    fn a_document_that_breaks_off_is_no_json() {
        let mut text = String::new();
        let mut document = Document::new(Format::Json, "agents");
        document.item(&mut text, &json!({ "name": "a" })).unwrap();
        assert!(serde_json::from_str::<Value>(&text).is_err());
    }
}
