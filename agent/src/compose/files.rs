//! Files of a project on a compose host, below the agent's state directory and for the agent alone:
//!
//! - `locks/<digest>.yaml`: every lock that is still needed, named by its content;
//! - `compose.sealift.lock.yaml`: the one that runs, for people;
//! - `render/`: what Compose reads while a lock is made;
//! - `busy`: locked for as long as a Compose works on the project, whoever started it.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read as _, Seek as _, Write as _},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use sealift_common::digest::Digest;

use crate::{files, kill};

/// Name of the file that people look at.
pub const LOCK_NAME: &str = "compose.sealift.lock.yaml";
/// Largest lock.
pub const LOCK_BYTES: usize = 4 * 1024 * 1024;

/// The folder of one project.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProjectFiles {
    folder: PathBuf,
}

impl ProjectFiles {
    /// In this folder, which need not exist.
    pub const fn new(folder: PathBuf) -> Self {
        Self { folder }
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where a lock is kept.
    pub fn lock(&self, digest: Digest) -> PathBuf {
        self.folder
            .join("locks")
            .join(format!("{}.yaml", digest.to_hex()))
    }

    /// The one that runs.
    pub fn current(&self) -> PathBuf {
        self.folder.join(LOCK_NAME)
    }

    /// Keeps a lock. Blocks, as everything here.
    pub fn keep(&self, lock: &[u8]) -> io::Result<Digest> {
        let digest = Digest::of(lock);
        let path = self.lock(digest);
        if Self::holds(&path, digest)? {
            return Ok(digest);
        }
        write_whole(&path, lock)?;
        kill::at("lock_kept");
        Ok(digest)
    }

    /// Whether a lock is kept, whole.
    pub fn has(&self, digest: Digest) -> io::Result<bool> {
        Self::holds(&self.lock(digest), digest)
    }

    /// The text of a kept lock; an error when it is not whole.
    pub fn text(&self, digest: Digest) -> io::Result<String> {
        let bytes = read(&self.lock(digest))?;
        if Digest::of(&bytes) != digest {
            return Err(io::Error::other("a lock was changed on the host"));
        }
        String::from_utf8(bytes).map_err(io::Error::other)
    }

    fn holds(path: &Path, digest: Digest) -> io::Result<bool> {
        match read(path) {
            Ok(bytes) => Ok(Digest::of(&bytes) == digest),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Makes a kept lock the one that people see, or takes that one away.
    pub fn show(&self, digest: Option<Digest>) -> io::Result<()> {
        match digest {
            Some(digest) => write_whole(&self.current(), &read(&self.lock(digest))?),
            None => match fs::remove_file(self.current()) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        }
    }

    /// Drops all locks but this one.
    pub fn tidy(&self, keep: Option<Digest>) -> io::Result<()> {
        let kept = keep.map(|digest| self.lock(digest));
        let entries = match fs::read_dir(self.folder.join("locks")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other?,
        };
        for entry in entries {
            let path = entry?.path();
            if Some(&path) != kept.as_ref() {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }

    /// Writes what Compose reads to make a lock and gives the folder.
    pub fn stage(&self, files: &[(&str, &[u8])]) -> io::Result<PathBuf> {
        let folder = self.folder.join("render");
        make_folder(&folder.join("empty"))?;
        for (name, bytes) in files {
            write_whole(&folder.join(name), bytes)?;
        }
        Ok(folder)
    }

    /// The open file that a Compose holds locked while it works on the project; `Err` is the process group of whoever does now, if
    /// it is known.
    pub fn claim(&self) -> io::Result<Result<File, Option<i32>>> {
        make_folder(&self.folder)?;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(self.folder.join("busy"))?;
        match file.try_lock() {
            Ok(()) => {
                file.set_len(0)?;
                Ok(Ok(file))
            }
            Err(fs::TryLockError::WouldBlock) => {
                let mut text = String::new();
                (&mut file).take(32).read_to_string(&mut text)?;
                Ok(Err(text.trim().parse().ok().filter(|group| *group > 1)))
            }
            Err(fs::TryLockError::Error(error)) => Err(error),
        }
    }
}

/// Writes into a claimed file who works.
pub fn sign(mut claimed: &File, group: u32) -> io::Result<()> {
    claimed.rewind()?;
    claimed.write_all(group.to_string().as_bytes())
}

fn make_folder(path: &Path) -> io::Result<()> {
    files::make_folder(path, 0o700)
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?
        .take(LOCK_BYTES as u64 + 1)
        .read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    make_folder(files::folder_of(path)?)?;
    let beside = path.with_extension("new");
    files::stage(&beside, bytes, 0o600)?;
    files::put(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r10_a_lock_is_kept_whole_or_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let files = ProjectFiles::new(dir.path().join("a/b"));
        let (old, new) = (files.keep(b"old").unwrap(), files.keep(b"new").unwrap());
        assert!(files.has(old).unwrap() && files.has(new).unwrap());
        files.show(Some(old)).unwrap();
        assert_eq!(fs::read(files.current()).unwrap(), b"old");
        fs::write(files.lock(new), b"nex").unwrap();
        assert!(!files.has(new).unwrap() && files.text(new).is_err());
        assert_eq!(files.keep(b"new").unwrap(), new);
        assert_eq!(files.text(new).unwrap(), "new");
        files.tidy(Some(new)).unwrap();
        assert!(!files.has(old).unwrap() && files.has(new).unwrap());
        files.show(None).unwrap();
        files.show(None).unwrap();
        assert!(!files.current().exists());
    }

    #[test]
    fn r1_only_one_compose_works_on_a_project_and_the_next_one_knows_which() {
        let dir = tempfile::tempdir().unwrap();
        let files = ProjectFiles::new(dir.path().to_owned());
        let claimed = files.claim().unwrap().unwrap();
        sign(&claimed, 4711).unwrap();
        assert_eq!(files.claim().unwrap().unwrap_err(), Some(4711));
        drop(claimed);
        assert!(files.claim().unwrap().is_ok());
    }
}
