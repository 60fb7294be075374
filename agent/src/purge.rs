//! Takes away what the agent made at the engine for its targets: containers and networks. Named volumes hold the workload's data
//! and stay. For hosts that leave Sealift, and for try-outs that clean up after themselves.

use std::time::Duration;

use sealift_common::order::TargetBinding;

use crate::{
    host::{Host, HostError},
    labels,
};

/// How long a workload may take to stop before the engine ends it.
const GRACE: Duration = Duration::from_secs(10);

/// What was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Purged {
    /// Containers.
    pub containers: usize,
    /// Networks.
    pub networks: usize,
}

/// Takes away all containers and networks that carry the label of one of these targets. May be repeated after an error.
pub async fn purge<H: Host>(host: &H, targets: &[TargetBinding]) -> Result<Purged, HostError> {
    let mut purged = Purged::default();
    for target in targets {
        let own = labels::Labels::from([(labels::TARGET_ID.to_owned(), target.target_id.to_string())]);
        for container in host.list(&own).await? {
            host.stop(&container.id, GRACE).await?;
            host.remove(&container.id).await?;
            purged.containers += 1;
        }
        for network in host.networks(&own).await? {
            host.remove_network(&network).await?;
            purged.networks += 1;
        }
    }
    Ok(purged)
}
