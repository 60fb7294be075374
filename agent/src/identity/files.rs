//! Private files: mode 0600 in a directory of mode 0700, written whole or not at all.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt},
    path::Path,
};

use super::IdentityError;
use crate::files;

/// Largest file that is read.
const LIMIT: u64 = 64 * 1024;

/// Mode bits of everybody but the owner.
const OTHERS: u32 = 0o077;

fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, IdentityError> {
    result.map_err(|source| IdentityError::File {
        path: path.to_owned(),
        source,
    })
}

fn check_private(path: &Path, metadata: &fs::Metadata) -> Result<(), IdentityError> {
    if metadata.mode() & OTHERS == 0 {
        Ok(())
    } else {
        Err(IdentityError::Content {
            path: path.to_owned(),
            problem: "others than the owner have access; take it away with chmod go=",
        })
    }
}

/// Makes the directory if it is missing; refuses one that others may enter.
pub(super) fn private_directory(path: &Path) -> Result<(), IdentityError> {
    at(path, DirBuilder::new().recursive(true).mode(0o700).create(path))?;
    check_private(path, &at(path, fs::metadata(path))?)
}

/// Waits until no other process holds the lock, and holds it as long as the file lives.
pub(super) fn lock(path: &Path) -> Result<File, IdentityError> {
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    let file = at(path, file)?;
    at(path, file.lock())?;
    Ok(file)
}

/// Reads a private file; `None` when there is none.
pub(super) fn read(path: &Path) -> Result<Option<String>, IdentityError> {
    let file = match File::open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => at(path, other)?,
    };
    check_private(path, &at(path, file.metadata())?)?;
    let mut text = String::new();
    at(path, file.take(LIMIT).read_to_string(&mut text))?;
    Ok(Some(text))
}

/// Writes a private file: temporary file, fsync, rename, fsync of the directory.
pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), IdentityError> {
    at(path, replace(path, bytes))
}

/// As [`write`], for files that are none of the identity's.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "not a file in a directory",
        ));
    };
    let temporary = directory.join(format!(".{}.new", name.to_string_lossy()));
    files::stage(&temporary, bytes, 0o600)?;
    files::put(&temporary, path)
}

/// Replaces `to` by `from` in one step.
pub(super) fn rename(from: &Path, to: &Path) -> Result<(), IdentityError> {
    at(from, fs::rename(from, to))?;
    match to.parent() {
        Some(directory) => at(directory, files::sync_folder(directory)),
        None => Ok(()),
    }
}

/// Removes a file if it is there.
pub(super) fn remove(path: &Path) -> Result<(), IdentityError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => at(path, other),
    }
}
