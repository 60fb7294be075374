//! Files that the user names.

use std::{
    fs::File,
    io::{self, Read as _},
    path::Path,
};

use crate::error::CliError;

/// The error of a file or folder to read that the user named.
pub fn unreadable(path: &Path, error: &io::Error) -> CliError {
    CliError::usage(
        format!("{} cannot be read: {error}", path.display()),
        "name a file that is there and that you may read",
    )
}

/// Reads a file of at most `most` bytes. That it is not there or too long is a wrong use of the command.
pub fn read_bounded(path: &Path, most: usize) -> Result<Vec<u8>, CliError> {
    // A size that was asked for before could be another one by now, and a pipe has none.
    let file = File::open(path).map_err(|error| unreadable(path, &error))?;
    let mut bytes = Vec::new();
    file.take(most as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| unreadable(path, &error))?;
    if bytes.len() > most {
        return Err(CliError::usage(
            format!("{} has more than {most} bytes", path.display()),
            "is this the right file?",
        ));
    }
    Ok(bytes)
}
