//! Results go to standard output as a table for people or as the API's own JSON for programs; talk goes to standard error.

pub mod parts;
pub mod text;

use std::io::{IsTerminal as _, Write as _};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use crate::error::{CliError, Exit};

/// What to do about an answer that has no written form.
pub const REPORT: &str = "this is a fault of this program: please report it";

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Format {
    /// A table for people.
    #[default]
    Table,
    /// The API's JSON form.
    Json,
    /// The same as YAML.
    Yaml,
}

/// When to use colour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Color {
    /// On terminals, unless `NO_COLOR` is set.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl Color {
    /// Makes it so for the whole process.
    pub fn apply(self) {
        match self {
            Self::Auto => {}
            Self::Always => anstream::ColorChoice::Always.write_global(),
            Self::Never => anstream::ColorChoice::Never.write_global(),
        }
    }
}

/// A result that people see as rows.
pub struct Rows {
    header: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Rows {
    /// An empty table with these columns.
    pub fn new(header: &[&'static str]) -> Self {
        Self {
            header: header.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; every cell is already clean text.
    #[must_use]
    pub fn with(mut self, rows: impl IntoIterator<Item = Vec<String>>) -> Self {
        self.rows.extend(rows);
        self
    }

    /// Whether there is no row.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// The table as text, one line per row and a header.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(comfy_table::presets::NOTHING);
        table.set_header(self.header.clone());
        table.add_rows(self.rows.clone());
        // Wrapping helps people; programs that read columns get one line per row.
        let arrangement = if std::io::stdout().is_terminal() {
            ContentArrangement::Dynamic
        } else {
            ContentArrangement::Disabled
        };
        table.set_content_arrangement(arrangement);
        table
            .lines()
            .map(|line| line.trim_end().to_owned() + "\n")
            .collect()
    }
}

/// Writes a result: `message` for programs, `rows` for people.
pub fn write<M: Serialize>(format: Format, message: &M, rows: impl FnOnce() -> Rows) -> Result<(), CliError> {
    match format {
        Format::Table => write_rows(&rows()),
        Format::Json | Format::Yaml => write_message(format, message),
    }
}

/// Writes one of many results for programs: a JSON document in one line, or a YAML document.
pub fn write_record<M: Serialize>(format: Format, message: &M) -> Result<(), CliError> {
    if format == Format::Yaml {
        line("---")?;
        return write_message(format, message);
    }
    let text = serde_json::to_string(message)
        .map_err(|error| CliError::local("the answer cannot be written", REPORT, error))?;
    line(&escaped(&text))
}

/// Puts a picture in place of what a terminal shows.
pub fn redraw(picture: &str) -> Result<(), CliError> {
    // Home; each line with what is right of it cleared; then what is below. Nothing flickers, as nothing is cleared first.
    let mut frame = "\u{1b}[H".to_owned();
    for line in picture.lines() {
        frame.push_str(line);
        frame.push_str("\u{1b}[K\r\n");
    }
    frame.push_str("\u{1b}[J");
    write_stdout(frame.as_bytes())
}

/// Writes a result for programs.
pub fn write_message<M: Serialize>(format: Format, message: &M) -> Result<(), CliError> {
    let unwritable =
        |error: serde_json::Error| CliError::local("the answer cannot be written", REPORT, error);
    let text = if format == Format::Yaml {
        yaml(&serde_json::to_value(message).map_err(unwritable)?)?
    } else {
        escaped(&serde_json::to_string_pretty(message).map_err(unwritable)?) + "\n"
    };
    write_stdout(text.as_bytes())
}

/// YAML; what it would leave as it is although a terminal could obey it is written in the JSON form that is YAML too.
fn yaml(value: &serde_json::Value) -> Result<String, CliError> {
    let failed = |error| CliError::local("the answer cannot be written", REPORT, error);
    let text = serde_saphyr::to_string(value).map_err(failed)?;
    if text.chars().all(|c| c == '\n' || text::is_harmless(c)) {
        Ok(text)
    } else {
        Ok(escaped(&format!("{value:#}")) + "\n")
    }
}

/// JSON with every character escaped that a terminal could obey: such characters occur only inside its strings.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || text::is_harmless(c) {
            text.push(c);
        } else {
            let mut units = [0; 2];
            let units = c.encode_utf16(&mut units);
            text.extend(units.iter().map(|unit| format!("\\u{unit:04x}")));
        }
    }
    text
}

/// Writes raw bytes to standard output; a closed pipe ends the program quietly.
pub fn write_stdout(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            std::process::exit(i32::from(Exit::Done.code()));
        }
        other => other.map_err(|error| {
            CliError::local(
                "standard output cannot be written",
                "check where it leads to",
                error,
            )
        }),
    }
}

/// Writes one line of a result.
pub fn line(text: &str) -> Result<(), CliError> {
    write_stdout(format!("{text}\n").as_bytes())
}

/// Writes a table.
pub fn write_rows(rows: &Rows) -> Result<(), CliError> {
    if rows.is_empty() {
        anstream::eprintln!("nothing to show");
        return Ok(());
    }
    write_stdout(rows.table().as_bytes())
}

/// The present, for ages.
pub fn now() -> chrono::DateTime<chrono::Utc> {
    use sealift_common::time::{Clock as _, SystemClock};
    SystemClock.now()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOSTILE: &str =
        "a\u{1b}[31m\u{7f}\u{85}\u{9b}\u{200b}\u{200f}\u{2028}\u{202e}\u{2066}\u{feff}grüße 漢字\n";

    #[test]
    fn json_is_escaped_wherever_a_terminal_could_obey_it_and_means_the_same() {
        let json = escaped(&serde_json::to_string_pretty(&[HOSTILE]).unwrap());
        assert!(
            json.chars().all(|c| c == '\n' || text::is_harmless(c)),
            "{json:?}"
        );
        assert!(json.contains("grüße 漢字"));
        let back: Vec<String> = serde_json::from_str(&json).unwrap();
        assert_eq!(back, [HOSTILE]);
    }

    #[test]
    fn yaml_is_escaped_wherever_a_terminal_could_obey_it_and_means_the_same() {
        for text in [HOSTILE, "plain\u{202e}", "plain"] {
            let yaml = yaml(&serde_json::json!({ "key": [text] })).unwrap();
            assert!(
                yaml.chars().all(|c| c == '\n' || text::is_harmless(c)),
                "{yaml:?}"
            );
            let back: serde_json::Value = serde_saphyr::from_str(&yaml).unwrap();
            assert_eq!(back["key"][0], text);
        }
    }
}
