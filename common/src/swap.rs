//! Swap: how the old set of a target gives way to the new one, and which manifests allow it.
//!
//! A service whose new container runs beside the old one must not need anything that only one container can have. The same
//! questions are asked for `deploy.update_config.order: start-first` and for whole sets ([`Swap::BlueGreen`]).

use serde::{Deserialize, Serialize};

use crate::{
    any_manifest::AnyManifest,
    hook,
    manifest::{Manifest, MountSpec, ServiceSpec},
    name::ServiceName,
};

/// Longest time that both sets may run side by side.
const MOST_BAKE_MS: u32 = 24 * 60 * 60 * 1000;
/// Most findings about one manifest: enough for people, and little enough to be kept with every decision.
const MOST_FINDINGS: usize = 16;

/// How a set is swapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Swap {
    /// Service by service in its place: the old set goes down, the new one comes up. Services that are started first overlap.
    #[default]
    InPlace,
    /// The whole new set (green) runs healthy beside the old one (blue) before it takes over, by the release's switch hook or else by
    /// its network aliases; both run until
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

    /// What keeps the content of a release from being swapped this way ([`crate::error::Reason::SwapUnfit`]), the first findings
    /// of many; nothing means that it fits. Pure: for gates, and for agents that check an order.
    pub fn unfit_for(&self, content: &AnyManifest) -> Vec<Unfit> {
        match content {
            AnyManifest::DockerHost(manifest) => self.unfit(manifest),
            AnyManifest::ComposeHost(_) | AnyManifest::AgentHost(_) if self.is_in_place() => Vec::new(),
            AnyManifest::AgentHost(_) => vec![Unfit::of_all(
                "an agent cannot run as two programs beside each other",
                "promote it without --blue-green; --canary and --rolling do it host by host",
            )],
            AnyManifest::ComposeHost(_) => vec![Unfit::of_all(
                "a compose host cannot run two sets beside each other",
                "promote it without --blue-green",
            )],
        }
    }

    /// The same for the content of one kind of target.
    pub fn unfit(&self, manifest: &Manifest) -> Vec<Unfit> {
        let mut found = match self {
            Self::InPlace => {
                let overlapping = |spec: &ServiceSpec| !spec.update_order.is_stop_first();
                alone(manifest, overlapping).collect()
            }
            Self::BlueGreen { bake_ms } => unfit_for_two(manifest, *bake_ms),
        };
        found.truncate(MOST_FINDINGS);
        found
    }
}

/// What keeps two whole sets from running side by side.
fn unfit_for_two(manifest: &Manifest, bake_ms: u32) -> Vec<Unfit> {
    let mut found = Vec::new();
    if bake_ms > MOST_BAKE_MS {
        found.push(Unfit::of_all(
            "the bake time is above 24 hours",
            "let both sets run side by side for a shorter time",
        ));
    }
    let called = || manifest.services.values().any(|spec| is_called(manifest, spec));
    if moves_aliases(manifest) && !called() {
        found.push(Unfit::of_all(
            "no service is on an external network, so there are no aliases that could move",
            "put what is called from outside on an external network, declare a switch hook, or swap in place",
        ));
    }
    found.extend(alone(manifest, |_| true));
    found
}

/// What keeps two containers of those services from running side by side that would have to.
fn alone(manifest: &Manifest, overlaps: impl Fn(&ServiceSpec) -> bool) -> impl Iterator<Item = Unfit> {
    let services = manifest.services.iter();
    services
        .filter(move |(_, spec)| overlaps(spec))
        .flat_map(|(name, spec)| {
            beside(spec).map(move |(message, advice)| Unfit {
                service: Some(name.clone()),
                message,
                advice: advice.to_owned(),
            })
        })
}

/// Whether a service is on a network on which others may call it.
pub fn is_called(manifest: &Manifest, spec: &ServiceSpec) -> bool {
    spec.network_names()
        .iter()
        .any(|name| is_external(manifest, name))
}

/// Whether the new set of a blue/green swap takes over by its aliases on external networks.
pub fn moves_aliases(manifest: &Manifest) -> bool {
    hook::switch(&manifest.hooks).is_none()
}

/// Whether a network of the manifest is one that others made.
pub fn is_external(manifest: &Manifest, network: &str) -> bool {
    manifest
        .networks
        .get(network)
        .is_some_and(|network| network.external.is_some())
}

/// Why a manifest cannot be swapped in the wanted way.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[error("{}{message}", service.as_ref().map(|name| format!("service {name}: ")).unwrap_or_default())]
pub struct Unfit {
    /// The service at fault; `None` when it is the whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service: Option<ServiceName>,
    /// What does not fit.
    pub message: String,
    /// What to do next.
    pub advice: String,
}

impl Unfit {
    fn of_all(message: &str, advice: &str) -> Self {
        Self {
            service: None,
            message: message.to_owned(),
            advice: advice.to_owned(),
        }
    }
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
    use crate::{
        compose::{self, EnvFiles},
        manifest::{PinnedImage, UpdateOrder},
    };

    fn manifest(text: &str) -> Manifest {
        let file = compose::parse(text, &EnvFiles::new()).unwrap();
        let image = PinnedImage {
            repository: "r".to_owned(),
            tag: None,
            digest: crate::digest::Digest::of(b"i"),
        };
        let resolved: BTreeMap<_, _> = file
            .images()
            .into_keys()
            .map(|name| (name.clone(), image.clone()))
            .collect();
        file.pin(&resolved, &BTreeMap::new()).unwrap()
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
                "no service is on an external network, so there are no aliases that could move",
                "service web: it publishes host port 80, which two containers cannot hold at once",
                "service web: it writes to the volume data at /d, which two containers must not do at once",
                "service web: it writes to the host path /srv at /s, which two containers must not do at once",
            ]
        );
        let good = manifest(
            "services:\n  web: {image: i, networks: [edge]}\n  job: {image: i}\nnetworks: {edge: {external: true}}\n",
        );
        assert_eq!(Swap::BlueGreen { bake_ms: 0 }.unfit(&good), []);
        let mut inward = manifest("services:\n  web: {image: i}\n");
        assert_eq!(Swap::BlueGreen { bake_ms: 0 }.unfit(&inward).len(), 1);
        let hook = serde_json::json!({
            "name": "proxy", "when": "switch", "image": inward.services["web"].image, "timeout_ms": 1_000,
            "on_failure": "fail",
        });
        inward.hooks.push(serde_json::from_value(hook).unwrap());
        assert_eq!(Swap::BlueGreen { bake_ms: 0 }.unfit(&inward), []);
        let mut first = bad;
        for spec in first.services.values_mut() {
            spec.update_order = UpdateOrder::StartFirst;
        }
        let found = Swap::InPlace.unfit_for(&first.into());
        assert_eq!(
            found.len(),
            3,
            "what is started first runs beside the old one: {found:?}"
        );
    }

    #[test]
    fn findings_are_bounded_and_compose_hosts_swap_in_place_only() {
        let ports: Vec<String> = (1..=64).map(|port| format!("'{port}:80'")).collect();
        let many = manifest(&format!(
            "services:\n  web: {{image: i, ports: [{}]}}\n",
            ports.join(", ")
        ));
        let green = Swap::BlueGreen { bake_ms: 0 };
        assert_eq!(green.unfit(&many).len(), MOST_FINDINGS);
        let text = "services: {web: {image: i}}\n";
        let hosted = compose::hosted::parse(text, &std::collections::BTreeSet::new()).unwrap();
        let image = PinnedImage {
            repository: "r".to_owned(),
            tag: None,
            digest: crate::digest::Digest::of(b"i"),
        };
        let images = [("web".parse().unwrap(), image)].into();
        let content: AnyManifest = hosted
            .pin(&images, &std::collections::BTreeMap::new())
            .unwrap()
            .into();
        assert_eq!(Swap::InPlace.unfit_for(&content), []);
        assert_eq!(green.unfit_for(&content).len(), 1);
    }
}
