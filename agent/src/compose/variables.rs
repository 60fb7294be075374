//! Variables that the host's owner gives to Compose, secret ones among them. They go to the program and nowhere else: what it says
//! is cleared of them before anybody sees it.

use std::{collections::BTreeMap, fs::File, io::Read as _, path::Path};

use sealift_common::variables::{InvalidVariable, Variables};

/// Largest file.
const FILE_BYTES: u64 = 256 * 1024;
/// Shorter values are no secrets, and clearing them away would make every message unreadable.
const SECRET_BYTES: usize = 4;

/// Why the file cannot be used. Never repeats a line: it may be a secret.
#[derive(Debug, thiserror::Error)]
pub enum HostVariablesError {
    /// It cannot be read.
    #[error("compose.env_file of the agent's settings cannot be read")]
    Read(#[source] std::io::Error),
    /// It is too large or no text.
    #[error("compose.env_file of the agent's settings is larger than 256 KiB or not UTF-8")]
    Text,
    /// A line is none.
    #[error("line {0} of compose.env_file of the agent's settings is not NAME=value")]
    Line(usize),
    /// A variable is none.
    #[error("compose.env_file of the agent's settings has a variable that cannot be used")]
    Variable(#[source] InvalidVariable),
}

/// The host's own variables. `Debug` shows names only.
#[derive(Clone, Default)]
pub struct HostVariables(Variables);

impl std::fmt::Debug for HostVariables {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set()
            .entries(self.0.iter().map(|(name, _)| name))
            .finish()
    }
}

impl HostVariables {
    /// Reads a file. Blocks.
    pub fn read(path: &Path) -> Result<Self, HostVariablesError> {
        let mut bytes = Vec::new();
        File::open(path)
            .and_then(|file| file.take(FILE_BYTES + 1).read_to_end(&mut bytes))
            .map_err(HostVariablesError::Read)?;
        let text = String::from_utf8(bytes).map_err(|_| HostVariablesError::Text)?;
        if text.len() as u64 > FILE_BYTES {
            return Err(HostVariablesError::Text);
        }
        Self::parse(&text)
    }

    fn parse(text: &str) -> Result<Self, HostVariablesError> {
        let mut variables = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, value) = line.split_once('=').ok_or(HostVariablesError::Line(number))?;
            variables.insert(name.trim().to_owned(), value.to_owned());
        }
        Variables::try_from(variables)
            .map(Self)
            .map_err(HostVariablesError::Variable)
    }

    /// One of them.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name)
    }

    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter()
    }

    /// `text` without the values.
    pub fn redact(&self, text: &str) -> String {
        let mut values: Vec<&str> = self
            .iter()
            .map(|(_, value)| value)
            .filter(|value| value.len() >= SECRET_BYTES)
            .collect();
        // A value that holds another goes first.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        values
            .into_iter()
            .fold(text.to_owned(), |text, value| text.replace(value, "[hidden]"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_taken_as_they_are_and_shown_to_nobody() {
        let variables =
            HostVariables::parse("# x\n\nA= quoted \"$x\"=1\n DB_PASSWORD=hunter22\nS=abc\n").unwrap();
        assert_eq!(variables.get("A"), Some(" quoted \"$x\"=1"));
        assert!(!format!("{variables:?}").contains("hunter"));
        assert_eq!(
            variables.redact("cannot use hunter22 as port (abc)"),
            "cannot use [hidden] as port (abc)"
        );
    }

    #[test]
    fn r11_what_is_wrong_is_said_without_the_line() {
        for text in ["hunter22", "PATH=hunter22", "1X=hunter22"] {
            let error = HostVariables::parse(text).unwrap_err();
            let source = std::error::Error::source(&error).map(ToString::to_string);
            assert!(!format!("{error} {source:?}").contains("hunter22"), "{error}");
        }
    }
}
