//! What must hold between services, and between a service and the networks and volumes of the file.

use std::collections::BTreeMap;

use super::{
    ComposeService,
    cx::{At, Cx},
    ports,
};
use crate::{
    manifest::{MountSpec, NetworkSpec, PortSpec, ServiceSpec, VolumeSpec},
    name::ServiceName,
};

/// Every network and volume that a service names is declared.
pub fn references(
    cx: &mut Cx,
    at: &At,
    spec: &ServiceSpec,
    networks: &BTreeMap<ServiceName, NetworkSpec>,
    volumes: &BTreeMap<ServiceName, VolumeSpec>,
) {
    for name in spec.networks.keys() {
        if name.as_str() != "default" && !networks.contains_key(name) {
            let message = format!("it uses the network {name}, which is not declared");
            cx.wrong(at, message, "declare it under the top-level `networks`");
        }
    }
    for mount in &spec.volumes {
        if let MountSpec::Volume { volume, .. } = mount
            && !volumes.contains_key(volume)
        {
            let message = format!("it uses the volume {volume}, which is not declared");
            cx.wrong(at, message, "declare it under the top-level `volumes`");
        }
    }
}

/// Dependencies exist and run in no circle; no host port is published twice.
pub fn between(cx: &mut Cx, at: &At, services: &BTreeMap<ServiceName, ComposeService>) {
    // Services that could not be read have their own errors; what depends on them is not blamed for it.
    let declared = at.keys();
    for (name, service) in services {
        for needed in service.spec.depends_on.keys() {
            if !declared.contains(&needed.as_str()) {
                let message = format!("{name} depends on {needed}, which is no service of this file");
                cx.wrong(at, message, "correct `depends_on`");
            }
        }
    }
    for name in circle(services) {
        let message = format!("{name} depends on itself, directly or through others");
        cx.wrong(at, message, "break the circle in `depends_on`");
    }
    let published: Vec<_> = services
        .iter()
        .flat_map(|(name, service)| service.spec.ports.iter().map(move |port| (name, port)))
        .filter(|(_, port)| port.host.is_some())
        .collect();
    let mut by_port: BTreeMap<_, Vec<(&ServiceName, &PortSpec)>> = BTreeMap::new();
    for (name, port) in published {
        let others = by_port.entry((port.host, port.protocol)).or_default();
        if let Some((other, _)) = others.iter().find(|(_, other)| ports::clash(port, other)) {
            let host = port.host.unwrap_or_default();
            let message = format!("{other} and {name} both publish host port {host}");
            cx.wrong(at, message, "publish one of them on another port or address");
        }
        others.push((name, port));
    }
}

/// The services that are left when everything that can be started has been started, without those that only wait for them.
fn circle(services: &BTreeMap<ServiceName, ComposeService>) -> Vec<&ServiceName> {
    let mut left: BTreeMap<&ServiceName, &ServiceSpec> = services
        .iter()
        .map(|(name, service)| (name, &service.spec))
        .collect();
    loop {
        let before = left.len();
        let names: Vec<_> = left.keys().copied().collect();
        left.retain(|_, spec| spec.depends_on.keys().any(|needed| names.contains(&needed)));
        let needed: Vec<_> = left.values().flat_map(|spec| spec.depends_on.keys()).collect();
        let keep: Vec<_> = left
            .keys()
            .copied()
            .filter(|name| needed.contains(name))
            .collect();
        left.retain(|name, _| keep.contains(name));
        if left.len() == before {
            return left.into_keys().collect();
        }
    }
}
