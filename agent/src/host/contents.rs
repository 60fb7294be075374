//! Contents: files out of images. Nothing of the image is run for it.

use std::{future::Future, path::PathBuf, time::Duration};

use sealift_common::manifest::PinnedImage;

use super::HostError;
use crate::labels::Labels;

/// A file to copy out of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CopyOut {
    /// Where it is in the image.
    pub path: String,
    /// Where it goes; what is there is replaced, and nothing stays there when it cannot be copied. Only the agent may read it.
    pub to: PathBuf,
    /// A larger one is an error.
    pub most_bytes: u64,
}

/// What gives files of images.
pub trait Contents: Send + Sync {
    /// Copies regular files out of an image that the engine has. An engine shows contents of containers only, so one is made for it
    /// under this name and with these labels, never started, and removed again; one that a crash left is replaced.
    fn copy_out(
        &self,
        image: &PinnedImage,
        files: &[CopyOut],
        name: &str,
        labels: &Labels,
        deadline: Duration,
    ) -> impl Future<Output = Result<(), HostError>> + Send;
}
