//! Files of the fake engine's images.

use std::time::Duration;

use sealift_common::{digest::Digest, failure::FailureCode, manifest::PinnedImage};

use super::{Behaviour, FakeHost};
use crate::{
    host::{
        HostError,
        contents::{Contents, CopyOut},
    },
    labels::Labels,
};

impl FakeHost {
    /// Puts an image into the registry that holds a file.
    pub fn publish_file(&self, digest: Digest, path: &str, content: &[u8]) {
        self.publish(digest, Behaviour::Runs);
        self.lock()
            .files
            .insert((digest, path.to_owned()), content.to_vec());
    }
}

impl Contents for FakeHost {
    async fn copy_out(
        &self,
        image: &PinnedImage,
        files: &[CopyOut],
        _name: &str,
        _labels: &Labels,
        _deadline: Duration,
    ) -> Result<(), HostError> {
        self.effect("copy_out", |inner| {
            for file in files {
                let summary = format!("the image has no file {}", file.path);
                let content = inner
                    .files
                    .get(&(image.digest, file.path.clone()))
                    .ok_or_else(|| HostError::new(FailureCode::ImageNotFound, summary))?;
                if content.len() as u64 > file.most_bytes {
                    let summary = format!("{} is larger than {} bytes", file.path, file.most_bytes);
                    return Err(HostError::new(FailureCode::AgentUpdateRefused, summary));
                }
                std::fs::write(&file.to, content)
                    .map_err(|error| HostError::new(FailureCode::AgentState, error.to_string()))?;
            }
            Ok(())
        })
        .await
    }
}
