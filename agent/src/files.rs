//! Files: written whole or not at all, and durable when they are. Everything here blocks.

use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
};

/// Makes what a folder writes down of its entries durable.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The folder that holds `path`.
pub fn folder_of(path: &Path) -> io::Result<&Path> {
    path.parent()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "not a file in a folder"))
}

/// Makes a folder and those that hold it, with this mode; each that is new is synced into the one that holds it.
pub fn make_folder(folder: &Path, mode: u32) -> io::Result<()> {
    if folder.is_dir() {
        return Ok(());
    }
    let above = folder_of(folder)?;
    make_folder(above, mode)?;
    match DirBuilder::new().mode(mode).create(folder) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => sync_folder(above),
    }
}

/// Writes a file beside the one that it is to replace, with this mode, and syncs it.
pub fn stage(beside: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    // One of a writer that was killed.
    match fs::remove_file(beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(beside)?;
    file.write_all(bytes)?;
    file.sync_all()
}

/// What was staged takes the file's place.
pub fn put(beside: &Path, path: &Path) -> io::Result<()> {
    fs::rename(beside, path)?;
    sync_folder(folder_of(path)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_with_its_mode_whatever_a_killed_writer_left() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("a/b");
        make_folder(&folder, 0o700).unwrap();
        make_folder(&folder, 0o700).unwrap();
        let (path, beside) = (folder.join("file"), folder.join("file.new"));
        fs::write(&beside, "half of something longer").unwrap();
        stage(&beside, b"whole", 0o600).unwrap();
        put(&beside, &path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!(
            (mode(&path), mode(&folder), mode(&dir.path().join("a"))),
            (0o600, 0o700, 0o700)
        );
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
    }
}
