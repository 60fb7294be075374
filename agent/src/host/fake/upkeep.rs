//! What the engine in memory answers for the sake of the host.

use sealift_common::digest::Digest;

use super::FakeHost;
use crate::host::{
    Host as _, HostError,
    upkeep::{EngineDetails, ImageNames, Upkeep},
};

impl Upkeep for FakeHost {
    async fn details(&self) -> Result<EngineDetails, HostError> {
        self.gate("details").await?;
        Ok(EngineDetails {
            storage_driver: "memory".to_owned(),
            ..EngineDetails::default()
        })
    }

    async fn image_names(&self, reference: &str) -> Result<Option<ImageNames>, HostError> {
        let image = self.image(reference).await?;
        Ok(image.map(|image| ImageNames {
            id: image.id,
            names: vec![reference.to_owned()],
            bytes: 1,
        }))
    }

    async fn remove_image(&self, reference: &str) -> Result<bool, HostError> {
        self.gate("remove_image").await?;
        let mut inner = self.lock();
        let named = |digest: &Digest| reference.ends_with(&digest.to_string());
        let used = inner
            .containers
            .values()
            .any(|container| named(&container.image.digest));
        if !used {
            inner.images.retain(|digest| !named(digest));
        }
        Ok(!used)
    }
}
