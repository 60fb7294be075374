//! Results go to standard output as a table for people or as the API's own JSON for programs; talk goes to standard error.

pub mod text;

use std::io::{IsTerminal as _, Write as _};

use clap::ValueEnum;
use comfy_table::{ContentArrangement, Table};
use serde::Serialize;

use crate::error::{CliError, Exit};

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
}

/// Writes a result: `message` for programs, `rows` for people.
pub fn write<M: Serialize>(format: Format, message: &M, rows: impl FnOnce() -> Rows) -> Result<(), CliError> {
    match format {
        Format::Table => write_rows(&rows()),
        Format::Json | Format::Yaml => write_message(format, message),
    }
}

/// Writes a result for programs.
pub fn write_message<M: Serialize>(format: Format, message: &M) -> Result<(), CliError> {
    let unwritable = |error| CliError::local("the answer cannot be written", "", error);
    let text = if format == Format::Yaml {
        let value = serde_json::to_value(message).map_err(unwritable)?;
        serde_saphyr::to_string(&value)
            .map_err(|error| CliError::local("the answer cannot be written", "", error))?
    } else {
        serde_json::to_string_pretty(message).map_err(unwritable)? + "\n"
    };
    write_stdout(text.as_bytes())
}

/// Writes raw bytes to standard output; a closed pipe ends the program quietly.
pub fn write_stdout(bytes: &[u8]) -> Result<(), CliError> {
    let mut stdout = std::io::stdout().lock();
    match stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {
            std::process::exit(i32::from(Exit::Done.code()));
        }
        other => other.map_err(|error| CliError::local("standard output cannot be written", "", error)),
    }
}

/// Writes one line of a result.
pub fn line(text: &str) -> Result<(), CliError> {
    write_stdout(format!("{text}\n").as_bytes())
}

fn write_rows(rows: &Rows) -> Result<(), CliError> {
    if rows.rows.is_empty() {
        anstream::eprintln!("nothing to show");
        return Ok(());
    }
    let mut table = Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(rows.header.clone());
    table.add_rows(rows.rows.clone());
    // Wrapping helps people; programs that read columns get one line per row.
    let arrangement = if std::io::stdout().is_terminal() {
        ContentArrangement::Dynamic
    } else {
        ContentArrangement::Disabled
    };
    table.set_content_arrangement(arrangement);
    let text: String = table
        .lines()
        .map(|line| line.trim_end().to_owned() + "\n")
        .collect();
    write_stdout(text.as_bytes())
}

/// The present, for ages.
pub fn now() -> chrono::DateTime<chrono::Utc> {
    use sealift_common::time::{Clock as _, SystemClock};
    SystemClock.now()
}
