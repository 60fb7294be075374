//! Networks and volumes that an order uses without making them (`external`): which there are, and which it may name at all. Whether
//! they are on the host is asked before anything is changed; that does not belong here.

use std::collections::BTreeSet;

use sealift_common::{
    hook::HookSpec,
    manifest::{Manifest, MountSpec, ServiceSpec},
};
use serde_json::{Map, Value};

use super::{
    Forbidden,
    model::{entries, is_set, items, text},
};
use crate::labels;

/// Networks that an engine makes for itself; they are the host's own, or everybody's. `podman` takes the place of `bridge` there,
/// the last two are those of a Swarm. Judged by name whatever the engine: an engine that has none of that name lends none.
pub(super) const ENGINES_OWN: [&str; 6] = ["bridge", "host", "none", "podman", "ingress", "docker_gwbridge"];

/// What an order uses without making it, by the engine's names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Borrowed {
    /// Networks.
    pub networks: BTreeSet<String>,
    /// Volumes.
    pub volumes: BTreeSet<String>,
}

impl Borrowed {
    /// What the services and hooks of a manifest use.
    pub fn of_manifest(manifest: &Manifest) -> Self {
        let (services, hooks) = (|| manifest.services.values(), || manifest.hooks.iter());
        let networks = services()
            .flat_map(ServiceSpec::network_names)
            .chain(hooks().flat_map(HookSpec::network_names))
            .filter_map(|name| manifest.networks.get(name)?.external.clone());
        let volumes = services()
            .flat_map(|spec| &spec.volumes)
            .filter_map(|mount| match mount {
                MountSpec::Volume { volume, .. } => Some(volume),
                MountSpec::Bind { .. } | MountSpec::Anonymous { .. } => None,
            })
            .chain(hooks().flat_map(|hook| &hook.volumes).map(|mount| &mount.volume))
            .filter_map(|volume| manifest.volumes.get(volume)?.external.clone());
        Self {
            networks: networks.collect(),
            volumes: volumes.collect(),
        }
    }

    /// What the `active` services of a compose file as Compose resolved it, and its hooks, use.
    pub fn of_model(model: &Value, active: &BTreeSet<String>, hooks: &[HookSpec]) -> Self {
        let mut borrowed = Self::default();
        let external = |kind: &str, name: &str| {
            let entry = model.get(kind)?.get(name)?;
            is_external(entry).then(|| called(name, entry).to_owned())
        };
        for (_, service) in entries(model.get("services")).filter(|(name, _)| active.contains(*name)) {
            let networks = service.get("networks");
            let named = entries(networks).map(|(name, _)| name.as_str());
            let listed = items(networks).map(|name| text(Some(name)));
            let networks = named.chain(listed).filter_map(|name| external("networks", name));
            borrowed.networks.extend(networks);
            let volumes = items(service.get("volumes")).filter_map(|mount| match mount {
                Value::String(short) => short.split_once(':').map(|(source, _)| source),
                long => Some(text(long.get("source"))),
            });
            borrowed
                .volumes
                .extend(volumes.filter_map(|name| external("volumes", name)));
        }
        for hook in hooks {
            let networks = hook.network_names().into_iter();
            borrowed
                .networks
                .extend(networks.filter_map(|name| external("networks", name)));
            let volumes = hook.volumes.iter().map(|mount| mount.volume.as_str());
            borrowed
                .volumes
                .extend(volumes.filter_map(|name| external("volumes", name)));
        }
        borrowed
    }

    /// Whether an order for a target may use all that (R12): nothing of other targets, nothing of the engine itself.
    pub fn check(&self, own_prefix: &str) -> Result<(), Forbidden> {
        let engines = self
            .networks
            .iter()
            .find(|name| ENGINES_OWN.contains(&name.as_str()));
        if let Some(name) = engines {
            return Err(Forbidden::Borrowed {
                kind: "network",
                name: name.clone(),
            });
        }
        let named = |kind, names: &BTreeSet<String>| {
            names
                .iter()
                .try_for_each(|name| not_of_another(kind, name, own_prefix))
        };
        named("network", &self.networks)?;
        named("volume", &self.volumes)
    }
}

/// Refuses what the agent made for another target, by its name.
pub(super) fn not_of_another(kind: &'static str, name: &str, own_prefix: &str) -> Result<(), Forbidden> {
    if name.starts_with(labels::NAME_PREFIX) && !name.starts_with(own_prefix) {
        return Err(Forbidden::Borrowed {
            kind,
            name: name.to_owned(),
        });
    }
    Ok(())
}

/// Whether a network or volume of a resolved model is one that Compose does not make.
pub(crate) fn is_external(entry: &Value) -> bool {
    entry.get("external").is_some_and(is_set)
}

/// The engine's name of a network or volume of a resolved model, where the model says it.
pub(crate) fn called<'a>(name: &'a str, entry: &'a Value) -> &'a str {
    let nested = entry
        .get("external")
        .and_then(Value::as_object)
        .map(|external: &Map<String, Value>| text(external.get("name")))
        // Compose v1 may keep the name inside of `external`.
        .filter(|name| !name.is_empty());
    match nested.unwrap_or_else(|| text(entry.get("name"))) {
        "" => name,
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use sealift_common::{
        compose::hosted,
        hook::{HookMount, HookWhen},
        manifest::{NetworkSpec, VolumeSpec},
    };

    use super::*;
    use crate::samples;

    const OWN: &str = "sealift-0a0a0a0a-";

    fn manifest(network: &str, volume: &str) -> Manifest {
        let mut manifest = samples::order(1, &[("web", "v1")]).manifest;
        let edge = NetworkSpec {
            internal: false,
            external: Some(network.to_owned()),
        };
        manifest.networks.insert("edge".parse().unwrap(), edge);
        let data = VolumeSpec {
            external: Some(volume.to_owned()),
        };
        manifest.volumes.insert("data".parse().unwrap(), data);
        let web = manifest.services.values_mut().next().unwrap();
        web.networks.insert("edge".parse().unwrap(), Vec::new());
        web.volumes.push(MountSpec::Volume {
            volume: "data".parse().unwrap(),
            target: "/d".to_owned(),
            read_only: false,
        });
        manifest
    }

    #[test]
    fn r12_nothing_of_other_targets_or_of_the_engine_is_borrowed() {
        for (network, volume) in [
            ("host", "mine"),
            ("bridge", "mine"),
            ("none", "mine"),
            ("podman", "mine"),
            ("ingress", "mine"),
            ("docker_gwbridge", "mine"),
            ("sealift-ffffffff-shop-default", "mine"),
            ("sealift-0a0a0a0b-shop-default", "mine"),
            ("edge", "sealift-ffffffff-shop-data"),
        ] {
            for manifest in [manifest(network, volume), of_hook(network, volume)] {
                let refused = Borrowed::of_manifest(&manifest).check(OWN);
                assert!(
                    matches!(refused, Err(Forbidden::Borrowed { .. })),
                    "{network} {volume}: {refused:?}"
                );
            }
        }
        for (network, volume) in [
            ("edge", "mine"),
            ("sealift-0a0a0a0a-shop-default", "sealift-0a0a0a0a-shop-data"),
            ("hosts", "sealifted"),
        ] {
            for manifest in [manifest(network, volume), of_hook(network, volume)] {
                let borrowed = Borrowed::of_manifest(&manifest);
                assert_eq!(borrowed.check(OWN), Ok(()));
                assert!(borrowed.networks.contains(network) && borrowed.volumes.contains(volume));
            }
        }
    }

    /// The same, used by a hook alone.
    fn of_hook(network: &str, volume: &str) -> Manifest {
        let mut manifest = manifest(network, volume);
        let web = manifest.services.values_mut().next().unwrap();
        web.networks.clear();
        web.volumes.clear();
        manifest.hooks.push(hook());
        manifest
    }

    fn hook() -> HookSpec {
        let mut hook = samples::hook("migrate", HookWhen::PreDeploy, "v1");
        hook.networks.insert("edge".parse().unwrap());
        hook.volumes.push(HookMount {
            volume: "data".parse().unwrap(),
            target: "/d".to_owned(),
            read_only: false,
        });
        hook
    }

    #[test]
    fn t16_what_hooks_borrow_on_compose_hosts_is_judged_like_what_services_do() {
        let model = hosted::document(
            "services: {a: {image: a}}\nnetworks: {edge: {external: true, name: the-edge}}\n\
             volumes: {data: {external: true, name: the-data}}\n",
        )
        .unwrap();
        let active = BTreeSet::from(["a".to_owned()]);
        let borrowed = Borrowed::of_model(&model, &active, &[hook()]);
        assert_eq!(borrowed.networks, BTreeSet::from(["the-edge".to_owned()]));
        assert_eq!(borrowed.volumes, BTreeSet::from(["the-data".to_owned()]));
        assert_eq!(Borrowed::of_model(&model, &active, &[]), Borrowed::default());
    }

    #[test]
    fn what_a_resolved_model_borrows_is_what_its_active_services_use() {
        let model = hosted::document(
            "services:\n  a: {image: a, networks: [edge, back], volumes: ['data:/d', '/srv/x:/x', /y]}\n  \
             b: {image: b, networks: {old: null}, volumes: [{type: volume, source: more, target: /m}]}\n  \
             c: {image: c, networks: [unused]}\n\
             networks: {edge: {external: true, name: the-edge}, back: {}, old: {external: {name: the-old}}, unused: {external: true}}\n\
             volumes: {data: {external: true}, more: {}}\n",
        )
        .unwrap();
        let active = BTreeSet::from(["a".to_owned(), "b".to_owned()]);
        let borrowed = Borrowed::of_model(&model, &active, &[]);
        assert_eq!(
            borrowed.networks,
            BTreeSet::from(["the-edge".to_owned(), "the-old".to_owned()])
        );
        assert_eq!(borrowed.volumes, BTreeSet::from(["data".to_owned()]));
    }
}
