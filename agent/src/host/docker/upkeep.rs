//! What the Docker engine is asked for the sake of the host.

use super::{DockerHost, LOOK, errors::Call};
use crate::host::{
    HostError,
    upkeep::{EngineDetails, Upkeep},
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
}
