//! Whether the host has what an order uses without making it. Asked before anything is changed: Compose and engines find out only
//! when the old set may be down already, or make an empty volume in place of the one that was meant.

use std::time::Duration;

use sealift_common::failure::{Failure, FailureCode};

use super::{Trouble, patiently};
use crate::{host::Host, policy::Borrowed};

/// Fails when something of it is not there.
pub(super) async fn are_there<H: Host>(
    host: &H,
    patience: Duration,
    borrowed: &Borrowed,
) -> Result<(), Trouble> {
    for name in &borrowed.networks {
        if !patiently(patience, || host.has_network(name)).await? {
            return Err(missing("network", name));
        }
    }
    for name in &borrowed.volumes {
        if !patiently(patience, || host.has_volume(name)).await? {
            return Err(missing("volume", name));
        }
    }
    Ok(())
}

fn missing(kind: &str, name: &str) -> Trouble {
    let summary = format!("the external {kind} {name} is not on this host");
    Failure::new(FailureCode::ContainerRejected, summary)
        .with_detail(format!(
            "make it on the host (docker {kind} create {name}), or let the release make its own"
        ))
        .into()
}
