//! Networks of containers at the engine: joining them, and changing the aliases on them, for which the engine has no call.

use bollard::{
    errors::Error,
    models::{NetworkConnectRequest, NetworkDisconnectRequest},
};

use super::{CHANGE, DockerHost, errors::Call, spec, tolerate};
use crate::host::{Host as _, HostError, NewContainer};

impl DockerHost {
    /// Connects a new container to the networks that the create call did not take.
    pub(super) async fn connect_networks(&self, container: &NewContainer, id: &str) -> Result<(), HostError> {
        for (network, aliases) in container.networks.iter().skip(1) {
            self.join(id, network, aliases).await?;
        }
        Ok(())
    }

    async fn join(&self, id: &str, network: &str, aliases: &[String]) -> Result<(), HostError> {
        let request = NetworkConnectRequest {
            container: id.to_owned(),
            endpoint_config: Some(spec::endpoint(aliases)),
        };
        let subject = format!("connect to network {network}");
        let connect = async {
            match self.docker.connect_network(network, request).await {
                Err(Error::DockerResponseServerError { message, .. })
                    if message.contains("already exists in network")
                        || message.contains("is already connected") =>
                {
                    Ok(())
                }
                other => other,
            }
        };
        self.call(Call::Create, &subject, CHANGE, connect).await
    }

    /// See [`crate::host::Host::join_network`].
    pub(super) async fn rejoin(&self, id: &str, network: &str, aliases: &[String]) -> Result<(), HostError> {
        let there = self
            .inspect(id)
            .await?
            .and_then(|mut seen| seen.aliases.remove(network));
        if let Some(mut there) = there {
            let mut wanted = aliases.to_vec();
            there.sort();
            wanted.sort();
            if there == wanted {
                return Ok(());
            }
            let request = NetworkDisconnectRequest {
                container: id.to_owned(),
                force: Some(false),
            };
            let leave = async { tolerate(self.docker.disconnect_network(network, request).await, &[404]) };
            self.call(Call::Other, &format!("leave network {network}"), CHANGE, leave)
                .await?;
        }
        self.join(id, network, aliases).await
    }
}
