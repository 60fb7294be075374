//! Files out of images: a container that is never started, its archive, and the one entry of that.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::Duration,
};

use bollard::{models::ContainerCreateBody, query_parameters as query};
use bytes::Bytes;
use futures::StreamExt as _;
use sealift_common::{
    failure::{Failure, FailureCode},
    manifest::PinnedImage,
};
use tokio::{sync::mpsc, time::timeout};

use super::{CREATE, DockerHost, LOOK, errors, errors::Call, found};
use crate::{
    host::{
        Host as _, HostError,
        contents::{Contents, CopyOut},
    },
    labels::Labels,
};

/// Parts of an archive that wait to be written.
const PARTS: usize = 16;

/// The parts of a stream as a reader. The end of the stream before the end of the archive shows in the archive.
struct Parts {
    incoming: mpsc::Receiver<Bytes>,
    part: Bytes,
}

impl Read for Parts {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.part.is_empty() {
            match self.incoming.blocking_recv() {
                Some(part) => self.part = part,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.part.len());
        buffer[..count].copy_from_slice(&self.part.split_to(count));
        Ok(count)
    }
}

impl Contents for DockerHost {
    async fn copy_out(
        &self,
        image: &PinnedImage,
        files: &[CopyOut],
        name: &str,
        labels: &Labels,
        deadline: Duration,
    ) -> Result<(), HostError> {
        self.remove(name).await?;
        let options = query::CreateContainerOptions {
            name: Some(name.to_owned()),
            ..Default::default()
        };
        let body = ContainerCreateBody {
            image: Some(image.pull_reference()),
            // Images without a command are refused otherwise; it is never started.
            cmd: Some(vec!["none".to_owned()]),
            labels: Some(labels.clone().into_iter().collect()),
            network_disabled: Some(true),
            ..Default::default()
        };
        let create = self.docker.create_container(Some(options), body);
        let made = self.call(Call::Create, name, CREATE, create).await?;
        let copies = async {
            for file in files {
                self.copy(&made.id, file).await?;
            }
            Ok(())
        };
        let copied = timeout(deadline, copies).await.unwrap_or_else(|_| {
            Err(errors::timeout(
                Call::Other,
                "copy out of an image",
                deadline.as_secs(),
            ))
        });
        // What is left of it is removed before the next copy.
        let removed = self.remove(&made.id).await;
        copied.and(removed)
    }
}

impl DockerHost {
    async fn copy(&self, container: &str, file: &CopyOut) -> Result<(), HostError> {
        let subject = format!("copy {} out of the image", file.path);
        let options = query::DownloadFromContainerOptions {
            path: file.path.clone(),
        };
        let mut archive = self.docker.download_from_container(container, Some(options));
        // Without a first part there is no such file, and nobody has to write one.
        let first = async { found(archive.next().await.transpose()) };
        let Some(Some(first)) = self.call(Call::Other, &subject, LOOK, first).await? else {
            let summary = format!("the image has no file {}", file.path);
            return Err(HostError::new(FailureCode::ImageNotFound, summary));
        };
        let (sender, incoming) = mpsc::channel(PARTS);
        let wanted = file.clone();
        let writer = tokio::task::spawn_blocking(move || {
            let parts = Parts {
                incoming,
                part: first,
            };
            write(parts, &wanted)
        });
        let mut broken = None;
        while let Some(part) = archive.next().await {
            match part {
                Ok(part) => {
                    // A writer that has enough says itself what is wrong, if anything is.
                    if sender.send(part).await.is_err() {
                        break;
                    }
                }
                Err(error) => {
                    broken = Some(self.error(Call::Other, &subject, &error));
                    break;
                }
            }
        }
        drop(sender);
        let written = writer.await.unwrap_or_else(|panic| Err(io::Error::other(panic)));
        match (broken, written) {
            (Some(error), _) => Err(error),
            (None, Err(error)) => Err(refused(&subject, &error)),
            (None, Ok(())) => Ok(()),
        }
    }
}

fn refused(subject: &str, error: &io::Error) -> HostError {
    let code = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FailureCode::DiskFull,
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof | io::ErrorKind::FileTooLarge => {
            FailureCode::AgentUpdateRefused
        }
        _ => FailureCode::AgentState,
    };
    HostError(Failure::new(code, format!("{subject}: {error}")))
}

/// Writes the first entry of an archive, which must be a regular file.
fn write(parts: Parts, file: &CopyOut) -> io::Result<()> {
    let mut archive = tar::Archive::new(parts);
    let mut entries = archive.entries()?;
    let mut entry = entries
        .next()
        .ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "the archive is empty"))??;
    if !entry.header().entry_type().is_file() {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "it is no regular file",
        ));
    }
    let size = entry.size();
    if size > file.most_bytes {
        let message = format!("it has {size} bytes, at most {} are read", file.most_bytes);
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, message));
    }
    let copied = fill(&mut entry, size, &file.to);
    if copied.is_err() {
        // What is there is a part at most; why it is only that is what matters.
        let _ = fs::remove_file(&file.to);
    }
    copied
}

fn fill(entry: &mut impl Read, size: u64, path: &Path) -> io::Result<()> {
    let mut to: File = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    let copied = io::copy(entry, &mut to)?;
    if copied != size {
        let message = format!("it ends after {copied} of {size} bytes");
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, message));
    }
    to.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(kind: tar::EntryType, content: &[u8]) -> Vec<u8> {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(0o755);
        let mut builder = tar::Builder::new(Vec::new());
        builder
            .append_data(&mut header, "sealift-agent", content)
            .unwrap();
        builder.into_inner().unwrap()
    }

    fn read(bytes: &[u8], most_bytes: u64) -> io::Result<Vec<u8>> {
        let folder = tempfile::tempdir().unwrap();
        let (sender, incoming) = mpsc::channel(1_000);
        for part in bytes.chunks(700) {
            sender.try_send(Bytes::copy_from_slice(part)).unwrap();
        }
        drop(sender);
        let file = CopyOut {
            path: "/sealift-agent".into(),
            to: folder.path().join("out"),
            most_bytes,
        };
        let parts = Parts {
            incoming,
            part: Bytes::new(),
        };
        let written = write(parts, &file);
        if let Err(error) = written {
            assert!(!file.to.exists(), "a part stays: {error}");
            return Err(error);
        }
        fs::read(&file.to)
    }

    #[test]
    fn one_whole_regular_file_of_bounded_size_comes_out() {
        let content: Vec<u8> = (0..5_000_u32).map(|number| number as u8).collect();
        let good = archive(tar::EntryType::Regular, &content);
        assert_eq!(read(&good, 5_000).unwrap(), content);
        assert_eq!(
            read(&good, 4_999).unwrap_err().kind(),
            io::ErrorKind::FileTooLarge
        );
        for end in [0, 100, 512, 700, 3_000] {
            assert!(read(&good[..end], 5_000).is_err(), "cut after {end}");
        }
        let link = archive(tar::EntryType::Symlink, b"");
        assert_eq!(read(&link, 5_000).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
