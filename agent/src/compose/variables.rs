//! Variables that the host's owner gives to Compose, secret ones among them. They go to the program and nowhere else: what it says
//! is cleared of them before anybody sees it.

use std::{collections::BTreeMap, fs::File, io::Read as _, path::Path};

use sealift_common::{
    bounds,
    evidence::Allowance,
    failure::Failure,
    variables::{InvalidVariable, Variables},
};

/// Largest file.
const FILE_BYTES: u64 = 256 * 1024;
/// Shorter values are no secrets, and clearing them away would make every message unreadable.
const SECRET_BYTES: usize = 4;
/// A text this long may have been cut to a bound, in the middle of a value: the smallest bound, less a broken character.
const CUT_BYTES: usize = bounds::ALLOWANCE_BYTES - 3;
/// Stands for a value.
const HIDDEN: &str = "[hidden]";
/// Stands for a text that may repeat values of which nobody knows any more what they were.
pub const NOT_SHOWN: &str = "[not shown: it may repeat values of compose.env_file of the agent's settings, which was changed or cannot be read]";

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
        let is_cut = text.len() >= CUT_BYTES;
        let mut text = values
            .iter()
            .fold(text.to_owned(), |text, value| text.replace(value, HIDDEN));
        if is_cut {
            for value in values {
                text = without_pieces(text, value);
            }
        }
        text
    }

    /// A failure that does not repeat the values.
    pub fn clear(&self, failure: &Failure) -> Failure {
        Failure::new(failure.code, self.redact(&failure.summary)).with_detail(self.redact(&failure.detail))
    }

    /// Allowances that do not repeat the values.
    pub fn clear_allowances(&self, allowances: Vec<Allowance>) -> Vec<Allowance> {
        let cleared = allowances
            .into_iter()
            .map(|allowed| Allowance::new(&allowed.service, allowed.setting, &self.redact(&allowed.what)));
        cleared.collect()
    }
}

/// A failure that may repeat `filled`, the values that were filled in: without them, or with its code alone when they are not known.
pub fn cleared(filled: Option<&HostVariables>, failure: &Failure) -> Failure {
    match filled {
        Some(filled) => filled.clear(failure),
        None => Failure::new(failure.code, NOT_SHOWN),
    }
}

/// `text` without the piece of a value at either end where it was cut.
fn without_pieces(text: String, value: &str) -> String {
    let pieces = || {
        let inner = value.char_indices().map(|(at, _)| at).skip(1);
        inner.map(|at| value.split_at(at))
    };
    let begins = pieces().map(|(_, end)| end);
    let begins = begins.filter(|end| end.len() >= SECRET_BYTES && text.starts_with(end));
    let begun = begins.map(str::len).next();
    let ends = pieces().map(|(begin, _)| begin);
    let ends = ends.filter(|begin| begin.len() >= SECRET_BYTES && text.ends_with(begin));
    let ended = ends.map(str::len).last();
    match (begun, ended) {
        (None, None) => text,
        (begun, ended) => {
            let (from, to) = (begun.unwrap_or(0), text.len() - ended.unwrap_or(0));
            let hidden = |cut: Option<usize>| if cut.is_some() { HIDDEN } else { "" };
            let kept = text.get(from..to).unwrap_or_default();
            format!("{}{kept}{}", hidden(begun), hidden(ended))
        }
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
    fn t16_a_value_that_a_bound_has_cut_is_hidden_all_the_same() {
        let variables = HostVariables::parse("DB_PASSWORD=hunter22-of-production").unwrap();
        let long = "x".repeat(CUT_BYTES);
        assert_eq!(
            variables.redact(&format!("{long} hunter22-of")),
            format!("{long} [hidden]")
        );
        assert_eq!(
            variables.redact(&format!("production, {long}")),
            format!("[hidden], {long}")
        );
        assert_eq!(
            variables.redact("hunter22-of"),
            "hunter22-of",
            "nothing of a short text was cut"
        );
        let failure = Failure::new(
            sealift_common::failure::FailureCode::HostPolicy,
            format!("{long}{long}{long}{long}hunter22-of-production"),
        );
        assert!(!variables.clear(&failure).summary.contains("hunt"));
    }

    #[test]
    fn t16_what_may_repeat_values_that_nobody_knows_is_not_shown() {
        let failure = Failure::new(
            sealift_common::failure::FailureCode::HostPolicy,
            "mounts /srv/hunter22",
        )
        .with_detail("hunter22");
        let known = HostVariables::parse("DB_PASSWORD=hunter22").unwrap();
        assert_eq!(cleared(Some(&known), &failure).summary, "mounts /srv/[hidden]");
        let unknown = cleared(None, &failure);
        assert_eq!(
            (unknown.code, unknown.summary.as_str(), unknown.detail.as_str()),
            (failure.code, NOT_SHOWN, "")
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
