//! Causes: an error as one line of text, with what caused it.

use std::error::Error;

/// The error and its causes, the nearest first.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}
