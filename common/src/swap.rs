//! Swap: how the old set of a target gives way to the new one, and which manifests allow it.
//!
//! A service whose new container runs beside the old one must not need anything that only one container can have. The same
//! questions are asked for `deploy.update_config.order: start-first` and for whole sets ([`Swap::BlueGreen`]).

use serde::{Deserialize, Serialize};

use crate::{
    manifest::{Manifest, MountSpec, ServiceSpec},
    name::ServiceName,
};

/// Longest time that both sets may run side by side.
const MOST_BAKE_MS: u32 = 24 * 60 * 60 * 1000;

/// How a set is swapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Swap {
    /// Service by service in its place: the old set goes down, the new one comes up. Services that are started first overlap.
    #[default]
    InPlace,
    /// The whole new set (green) runs healthy beside the old one (blue) before it takes over the network aliases; both run until
    /// it has stayed healthy for the bake time, so that going back needs no start.
    BlueGreen {
        /// How long both run after the switch.
        bake_ms: u32,
    },
}

impl Swap {
    /// Whether it is the way that orders without this field mean.
    pub const fn is_in_place(&self) -> bool {
        matches!(self, Self::InPlace)
    }

    /// Everything that keeps `manifest` from being swapped this way ([`crate::error::Reason::SwapUnfit`]); nothing means that it
    /// fits. Pure: for gates, and for agents that check an order.
    pub fn unfit(&self, manifest: &Manifest) -> Vec<Unfit> {
        let Self::BlueGreen { bake_ms } = self else {
            return Vec::new();
        };
        let mut found = Vec::new();
        if *bake_ms > MOST_BAKE_MS {
            found.push(Unfit {
                service: None,
                message: "the bake time is above 24 hours".to_owned(),
                advice: "let both sets run side by side for a shorter time",
            });
        }
        for (name, spec) in &manifest.services {
            found.extend(beside(spec).map(|(message, advice)| Unfit {
                service: Some(name.clone()),
                message,
                advice,
            }));
        }
        if !manifest.services.values().any(|spec| is_called(manifest, spec)) {
            found.push(Unfit {
                service: None,
                message: "no service is on an external network, so there are no aliases that could move"
                    .to_owned(),
                advice: "put what is called from outside on an external network, or swap in place",
            });
        }
        found
    }
}

/// Whether a service is on a network on which others may call it.
pub fn is_called(manifest: &Manifest, spec: &ServiceSpec) -> bool {
    spec.network_names()
        .iter()
        .any(|name| is_external(manifest, name))
}

/// Whether a network of the manifest is one that others made.
pub fn is_external(manifest: &Manifest, network: &str) -> bool {
    manifest
        .networks
        .get(network)
        .is_some_and(|network| network.external.is_some())
}

/// Why a manifest cannot be swapped in the wanted way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{message}", service.as_ref().map(|name| format!("service {name}: ")).unwrap_or_default())]
pub struct Unfit {
    /// The service at fault; `None` when it is the whole.
    pub service: Option<ServiceName>,
    /// What does not fit.
    pub message: String,
    /// What to do next.
    pub advice: &'static str,
}

/// What keeps two containers of a service from running side by side, with advice for each.
pub fn beside(spec: &ServiceSpec) -> impl Iterator<Item = (String, &'static str)> + '_ {
    let ports = spec.ports.iter().filter_map(|port| {
        let message = format!(
            "it publishes host port {}, which two containers cannot hold at once",
            port.host?
        );
        Some((message, "publish it without a host port behind a proxy"))
    });
    let mounts = spec.volumes.iter().filter_map(|mount| {
        let (what, target) = match mount {
            MountSpec::Volume {
                volume,
                target,
                read_only: false,
            } => (format!("the volume {volume}"), target),
            MountSpec::Bind {
                source,
                target,
                read_only: false,
            } => (format!("the host path {source}"), target),
            MountSpec::Volume { .. } | MountSpec::Bind { .. } | MountSpec::Anonymous { .. } => return None,
        };
        let message = format!("it writes to {what} at {target}, which two containers must not do at once");
        Some((message, "mount it read-only, or keep the data in another service"))
    });
    ports.chain(mounts)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::compose::{self, EnvFiles};

    fn manifest(text: &str) -> Manifest {
        let file = compose::parse(text, &EnvFiles::new()).unwrap();
        let image = crate::manifest::PinnedImage {
            repository: "r".to_owned(),
            tag: None,
            digest: crate::digest::Digest::of(b"i"),
        };
        let resolved: BTreeMap<_, _> = file
            .images()
            .into_keys()
            .map(|name| (name.clone(), image.clone()))
            .collect();
        file.pin(&resolved).unwrap()
    }

    #[test]
    fn sets_that_hold_what_only_one_can_hold_are_unfit_for_blue_green_and_fit_in_place() {
        let bad = manifest(
            "services:\n  web: {image: i, ports: ['80:80', '81'], volumes: ['data:/d', '/srv:/s', 'ro:/r:ro', /anonymous]}\n  \
             volumes: {image: i}\nvolumes: {data: {}, ro: {}}\n",
        );
        assert_eq!(Swap::InPlace.unfit(&bad), []);
        let green = Swap::BlueGreen { bake_ms: u32::MAX };
        let found: Vec<String> = green.unfit(&bad).iter().map(ToString::to_string).collect();
        assert_eq!(
            found,
            [
                "the bake time is above 24 hours",
                "service web: it publishes host port 80, which two containers cannot hold at once",
                "service web: it writes to the volume data at /d, which two containers must not do at once",
                "service web: it writes to the host path /srv at /s, which two containers must not do at once",
                "no service is on an external network, so there are no aliases that could move",
            ]
        );
        let good = manifest(
            "services:\n  web: {image: i, networks: [edge]}\n  job: {image: i}\nnetworks: {edge: {external: true}}\n",
        );
        assert_eq!(Swap::BlueGreen { bake_ms: 0 }.unfit(&good), []);
    }
}
