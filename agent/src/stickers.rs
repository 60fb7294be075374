//! Sticker files: `stickers/<target>.<environment>/<project>.json` below the state directory, for people and for the drift
//! check. Always a whole file: written beside, synced, renamed, and the directory synced too.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    path::{Path, PathBuf},
};

use sealift_common::{
    digest::Digest,
    name::{Name, ProjectRef},
    observation::StickerObservation,
    order::TargetBinding,
    sticker::Sticker,
};

use crate::{files, kill, labels};

/// Largest file that is read.
const FILE_BYTES: u64 = 4 * 1024 * 1024;

fn beside(path: &Path) -> PathBuf {
    path.with_extension("json.new")
}

/// The sticker files of one agent.
#[derive(Debug, Clone)]
pub struct Stickers {
    root: PathBuf,
}

impl Stickers {
    /// The files below `state_dir`.
    pub fn new(state_dir: &Path) -> Self {
        Self {
            root: state_dir.join("stickers"),
        }
    }

    /// Folder of a target. The environment is in its name, because an agent may serve targets of one name in several.
    pub fn folder(&self, target: &Name, environment: &Name) -> PathBuf {
        self.root.join(format!("{target}.{environment}"))
    }

    /// File of a project on a target.
    pub fn path(&self, target: &Name, environment: &Name, project: &ProjectRef) -> PathBuf {
        self.folder(target, environment)
            .join(format!("{}.json", labels::project_slug(project)))
    }

    /// Reads a file; `None` when there is none. Blocks.
    pub fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
        let file = match File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut bytes = Vec::new();
        file.take(FILE_BYTES).read_to_end(&mut bytes)?;
        Ok(Some(bytes))
    }

    /// Replaces a file whole, readable for everybody who may enter the state directory. Blocks.
    pub fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
        Self::stage(path, bytes)?;
        Self::put(path)
    }

    /// The first half of [`Stickers::write`]: the new content beside the file, synced. Blocks.
    pub fn stage(path: &Path, bytes: &[u8]) -> io::Result<()> {
        files::make_folder(files::folder_of(path)?, 0o755)?;
        files::stage(&beside(path), bytes, 0o644)?;
        kill::at("sticker_temp_written");
        Ok(())
    }

    /// The second half: what was staged takes the file's place. Blocks.
    pub fn put(path: &Path) -> io::Result<()> {
        files::put(&beside(path), path)?;
        kill::at("sticker_renamed");
        Ok(())
    }

    /// Removes a file if it is there. Blocks.
    pub fn remove(path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(()) => files::sync_folder(files::folder_of(path)?),
        }
    }

    /// Digest of a file's content: that of the sticker's canonical bytes if it is one.
    pub fn digest(bytes: &[u8]) -> Digest {
        Digest::of(bytes.strip_suffix(b"\n").unwrap_or(bytes))
    }

    /// What a file says. Blocks.
    pub fn observe(path: &Path) -> StickerObservation {
        match Self::read(path) {
            Ok(None) => StickerObservation::Missing,
            Ok(Some(bytes)) => match Sticker::from_file(&bytes) {
                Ok(sticker) => StickerObservation::Present {
                    digest: Self::digest(&bytes),
                    release: sticker.release.content,
                    fence: sticker.fence,
                },
                Err(_) => StickerObservation::Unreadable {
                    digest: Self::digest(&bytes),
                },
            },
            Err(_) => StickerObservation::Unreadable {
                digest: Digest::of(b""),
            },
        }
    }

    /// The projects that have a readable sticker on a target. Blocks.
    pub fn projects(&self, binding: &TargetBinding) -> Vec<ProjectRef> {
        let Ok(entries) = fs::read_dir(self.folder(&binding.target, &binding.environment)) else {
            return Vec::new();
        };
        entries
            .filter_map(|entry| Self::read(&entry.ok()?.path()).ok()?)
            .filter_map(|bytes| Some(Sticker::from_file(&bytes).ok()?.release.project))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::samples;

    #[test]
    fn r8_a_sticker_is_whole_chained_and_read_strictly() {
        let dir = tempfile::tempdir().unwrap();
        let order = samples::order(1, &[("web", "v1")]);
        let stickers = Stickers::new(dir.path());
        let path = stickers.path(&order.target, &order.environment, &order.release.project);
        assert_eq!(Stickers::observe(&path), StickerObservation::Missing);
        let first = Sticker::of(&order, None, order.not_before, None).unwrap();
        Stickers::write(&path, &first.to_file().unwrap()).unwrap();
        assert!(
            matches!(Stickers::observe(&path), StickerObservation::Present { digest, .. } if digest == first.digest().unwrap())
        );
        let bytes = Stickers::read(&path).unwrap().unwrap();
        for position in 0..bytes.len() - 1 {
            let mut edited = bytes.clone();
            edited[position] ^= 1;
            fs::write(&path, &edited).unwrap();
            let seen = Stickers::observe(&path);
            assert!(
                !matches!(seen, StickerObservation::Present { digest, .. } if digest == first.digest().unwrap()),
                "{position}"
            );
        }
        Stickers::remove(&path).unwrap();
        Stickers::remove(&path).unwrap();
        assert_eq!(Stickers::observe(&path), StickerObservation::Missing);
    }
}
