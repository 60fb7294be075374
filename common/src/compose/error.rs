//! What can be wrong with a compose file, in a form that names the place, the rule and the next step.

use std::fmt;

use crate::{error::Reason, name::ServiceName};

/// Most errors that one reading returns; the rest are only counted.
pub const MOST: usize = 50;

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeError {
    /// Where: `services.web.ports[0]`; empty when it is about the whole file.
    pub path: String,
    /// What is wrong.
    pub message: String,
    /// What to do next.
    pub advice: String,
    /// Stable reason.
    pub reason: Reason,
    /// Line, from 1, when known.
    pub line: Option<u32>,
    /// Column in characters, from 1, when known.
    pub column: Option<u32>,
}

impl fmt::Display for ComposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let (Some(line), Some(column)) = (self.line, self.column) {
            write!(f, "{line}:{column}: ")?;
        }
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        write!(f, "{} ({})", self.message, self.advice)
    }
}

/// Everything that is wrong with a compose file; at least one error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct ComposeErrors {
    /// The errors, in the order of the file as far as known.
    pub errors: Vec<ComposeError>,
    /// How many more there are.
    pub more: usize,
}

impl ComposeErrors {
    /// The reason that stands for all: "unsupported key" only when nothing else is wrong.
    pub fn reason(&self) -> Reason {
        self.errors
            .iter()
            .map(|error| error.reason)
            .find(|reason| *reason != Reason::UnsupportedManifestKey)
            .or_else(|| self.errors.first().map(|error| error.reason))
            .unwrap_or(Reason::InvalidManifest)
    }
}

impl fmt::Display for ComposeErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.errors.as_slice() {
            [] => f.write_str("the compose file cannot be read"),
            [only] if self.more == 0 => only.fmt(f),
            [first, rest @ ..] => write!(f, "{first} and {} more", rest.len() + self.more),
        }
    }
}

/// A service or hook whose image nobody resolved.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the image of {service} was not resolved to a digest")]
pub struct NotResolved {
    /// The service or hook.
    pub service: ServiceName,
}
