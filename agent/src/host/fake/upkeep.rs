//! What the engine in memory answers for the sake of the host.

use sealift_common::digest::Digest;

use super::FakeHost;
use crate::{
    host::{
        Host as _, HostError,
        upkeep::{EngineDetails, ImageNames, Upkeep},
    },
    labels::Labels,
};

/// Whether labels are all that is wanted; an empty value means any.
pub(super) fn matches(own: &Labels, wanted: &Labels) -> bool {
    wanted
        .iter()
        .all(|(key, value)| own.get(key).is_some_and(|have| value.is_empty() || have == value))
}

impl FakeHost {
    /// Makes a network and a volume of this name by hand, as somebody on the host would.
    pub fn lend(&self, name: &str) {
        let mut inner = self.lock();
        inner.networks.insert(name.to_owned(), Labels::new());
        inner.volumes.insert(name.to_owned());
    }
}

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

    async fn has_network(&self, name: &str) -> Result<bool, HostError> {
        self.gate("has_network").await?;
        Ok(self.lock().networks.contains_key(name))
    }

    async fn has_volume(&self, name: &str) -> Result<bool, HostError> {
        self.gate("has_volume").await?;
        Ok(self.lock().volumes.contains(name))
    }
}
