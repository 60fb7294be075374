//! Files of the agent's programs below its state directory: one folder for each, named by its digest, and the marker that says which
//! of them runs. Everything is written whole or not at all. Blocks.

use std::{
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use sealift_common::{digest::Digest, program::SERVICE};

use super::marker::Marker;
use crate::{files::sync_folder, identity::files::replace};

/// Folder of all programs, in the state directory.
pub const FOLDER: &str = "programs";
/// The marker in it.
const MARKER: &str = "marker.json";
/// A marker that could not be read, kept for people; at most one.
const UNREADABLE: &str = "marker.unreadable.json";
/// What whoever starts programs holds while one is on trial.
const LOCK: &str = "launch.lock";
/// A program on its way in, and its signature.
const INCOMING: &str = "incoming";
const INCOMING_SIGNATURE: &str = "incoming.dsse.json";
/// Largest marker.
const MARKER_BYTES: u64 = 64 * 1024;

/// The files.
#[derive(Debug, Clone)]
pub struct Files {
    folder: PathBuf,
}

impl Files {
    /// Those below a state directory.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            folder: state_dir.join(FOLDER),
        }
    }

    /// Makes the folder, which nobody else may enter.
    pub fn make(&self) -> io::Result<()> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.folder)?;
        self.folder.parent().map_or(Ok(()), sync_folder)
    }

    /// The marker; without a file it is the empty one.
    pub fn marker(&self) -> io::Result<Marker> {
        let file = match File::open(self.folder.join(MARKER)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Marker::default()),
            other => other?,
        };
        let mut bytes = Vec::new();
        file.take(MARKER_BYTES).read_to_end(&mut bytes)?;
        serde_json::from_slice(&bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    }

    /// Puts a marker that cannot be read out of the way, so that the empty one counts; gives where it is now. The one that was put
    /// there before is replaced.
    pub fn set_marker_aside(&self) -> io::Result<PathBuf> {
        let to = self.folder.join(UNREADABLE);
        match fs::rename(self.folder.join(MARKER), &to) {
            // Somebody has taken it away meanwhile.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other?,
        }
        sync_folder(&self.folder)?;
        Ok(to)
    }

    /// Replaces the marker. From then on it counts, whatever happens.
    pub fn set_marker(&self, marker: &Marker) -> io::Result<()> {
        self.make()?;
        let bytes = serde_json::to_vec_pretty(marker).map_err(io::Error::other)?;
        replace(&self.folder.join(MARKER), &bytes)
    }

    /// Whether there is a marker at all.
    pub fn has_marker(&self) -> bool {
        self.folder.join(MARKER).exists()
    }

    /// The right to start programs, held as long as the file lives; `None` while another process has it.
    pub fn claim(&self) -> io::Result<Option<File>> {
        self.make()?;
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.folder.join(LOCK))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(file)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Where a program lies.
    pub fn program(&self, digest: Digest) -> PathBuf {
        self.folder.join(digest.to_hex()).join(SERVICE)
    }

    /// Where a program is put before it is known to be good, and where its signature is.
    pub fn incoming(&self) -> (PathBuf, PathBuf) {
        (self.folder.join(INCOMING), self.folder.join(INCOMING_SIGNATURE))
    }

    /// Makes what came in a program that may be started: executable, synced, and only then under its name.
    pub fn install(&self, digest: Digest) -> io::Result<()> {
        let (from, signature) = self.incoming();
        let to = self.program(digest);
        let own = to.parent().unwrap_or(&self.folder);
        DirBuilder::new().recursive(true).mode(0o700).create(own)?;
        let file = File::open(&from)?;
        file.set_permissions(Permissions::from_mode(0o700))?;
        file.sync_all()?;
        drop(file);
        fs::rename(&from, &to)?;
        sync_folder(own)?;
        sync_folder(&self.folder)?;
        remove(&signature)
    }

    /// Drops what came in.
    pub fn drop_incoming(&self) -> io::Result<()> {
        let (program, signature) = self.incoming();
        remove(&program)?;
        remove(&signature)
    }

    /// Whether a program is there and is what its name says.
    pub fn is_whole(&self, digest: Digest) -> io::Result<bool> {
        match digest_of(&self.program(digest)) {
            Ok((found, _)) => Ok(found == digest),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Drops all programs but these.
    pub fn tidy(&self, keep: &[Digest]) -> io::Result<()> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let digest = name.to_str().and_then(|name| Digest::from_hex(name).ok());
            if digest.is_some_and(|digest| !keep.contains(&digest)) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        self.drop_incoming()
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Digest and size of a file.
pub fn digest_of(path: &Path) -> io::Result<(Digest, u64)> {
    Digest::read(File::open(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_is_installed_whole_and_tidied_away() {
        let state = tempfile::tempdir().unwrap();
        let files = Files::new(state.path());
        files.make().unwrap();
        assert_eq!(files.marker().unwrap(), Marker::default());
        let (program, signature) = files.incoming();
        for text in ["one", "two"] {
            fs::write(&program, text).unwrap();
            fs::write(&signature, "signature").unwrap();
            files.install(Digest::of(text.as_bytes())).unwrap();
        }
        let (one, two) = (Digest::of(b"one"), Digest::of(b"two"));
        assert!(files.is_whole(one).unwrap() && files.is_whole(two).unwrap());
        let mode = fs::metadata(files.program(one)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        assert!(!program.exists() && !signature.exists());
        fs::write(files.program(two), "2wo").unwrap();
        assert!(!files.is_whole(two).unwrap());
        files.tidy(&[one]).unwrap();
        assert!(files.is_whole(one).unwrap() && !files.is_whole(two).unwrap());
        assert!(!files.program(two).exists());
    }

    #[test]
    fn the_marker_is_read_back_and_a_broken_one_is_an_error() {
        let state = tempfile::tempdir().unwrap();
        let files = Files::new(state.path());
        let marker = Marker::default().try_out(super::super::marker::tests::installed(1, "1.0.0"), 5);
        files.set_marker(&marker).unwrap();
        assert_eq!(files.marker().unwrap(), marker);
        for text in ["{", "}"] {
            fs::write(state.path().join(FOLDER).join(MARKER), text).unwrap();
            let error = files.marker().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
            let aside = files.set_marker_aside().unwrap();
            assert_eq!(files.marker().unwrap(), Marker::default());
            assert_eq!(fs::read_to_string(aside).unwrap(), text, "the newest is kept");
        }
        assert_eq!(fs::read_dir(state.path().join(FOLDER)).unwrap().count(), 1);
    }
}
