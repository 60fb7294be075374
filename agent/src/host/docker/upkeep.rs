//! What the Docker engine is asked for the sake of the host.

use bollard::query_parameters::{ListNetworksOptions, RemoveImageOptions};

use super::{DockerHost, LOOK, REMOVE, errors::Call, found, status};
use crate::host::{
    HostError,
    upkeep::{EngineDetails, ImageNames, Upkeep},
};

impl Upkeep for DockerHost {
    async fn details(&self) -> Result<EngineDetails, HostError> {
        let info = self
            .call(Call::Other, "ask how it is set up", LOOK, self.docker.info())
            .await?;
        Ok(EngineDetails {
            root: info.docker_root_dir.unwrap_or_default().into(),
            storage_driver: info.driver.unwrap_or_default(),
            cgroup_version: info
                .cgroup_version
                .map(|version| version.to_string())
                .unwrap_or_default(),
        })
    }

    async fn image_names(&self, reference: &str) -> Result<Option<ImageNames>, HostError> {
        let inspect = async { found(self.docker.inspect_image(reference).await) };
        let image = self.call(Call::Other, "look at an image", LOOK, inspect).await?;
        Ok(image.map(|image| {
            let tags = image.repo_tags.into_iter().flatten();
            let digests = image.repo_digests.into_iter().flatten();
            ImageNames {
                id: image.id.unwrap_or_default(),
                // An image without names is listed under this one.
                names: tags
                    .chain(digests)
                    .filter(|name| !name.contains("<none>"))
                    .collect(),
                bytes: image.size.and_then(|size| size.try_into().ok()).unwrap_or(0),
            }
        }))
    }

    async fn remove_image(&self, reference: &str) -> Result<bool, HostError> {
        let options = RemoveImageOptions {
            force: false,
            noprune: false,
            ..Default::default()
        };
        let remove = async {
            match self.docker.remove_image(reference, Some(options), None).await {
                Ok(_) => Ok(true),
                // Gone, or used.
                Err(error) if status(&error) == Some(404) => Ok(true),
                Err(error) if status(&error) == Some(409) => Ok(false),
                Err(error) => Err(error),
            }
        };
        self.call(Call::Other, "take an image away", REMOVE, remove).await
    }

    async fn has_network(&self, name: &str) -> Result<bool, HostError> {
        let list = self.docker.list_networks(None::<ListNetworksOptions>);
        let networks = self.call(Call::Other, "list networks", LOOK, list).await?;
        Ok(networks
            .iter()
            .any(|network| network.name.as_deref() == Some(name)))
    }

    async fn has_volume(&self, name: &str) -> Result<bool, HostError> {
        let look = async { found(self.docker.inspect_volume(name).await) };
        let volume = self.call(Call::Other, "look at a volume", LOOK, look).await?;
        Ok(volume.is_some())
    }
}
