//! Top-level `networks` and `volumes`.

use std::collections::BTreeMap;

use super::cx::{At, Cx, quoted};
use crate::{
    bounds,
    manifest::{NetworkSpec, VolumeSpec},
    name::ServiceName,
};

/// Reads `networks`.
pub fn networks(cx: &mut Cx, at: &At, project: Option<&str>) -> BTreeMap<ServiceName, NetworkSpec> {
    const SCHEMA: &str = "networks.*";
    let mut networks = BTreeMap::new();
    for (name, at) in cx.named(at, bounds::SERVICE_ENTRIES) {
        let fields = cx.fields(&at, SCHEMA);
        let internal = fields
            .get("internal")
            .and_then(|at| cx.flag(at))
            .unwrap_or_default();
        driver(cx, fields.get("driver"), "bridge");
        if let Some(at) = fields.get("ipam") {
            cx.fields(at, "networks.*.ipam");
        }
        let external = external(cx, &fields, &name, project);
        if name.as_str() != "default" {
            networks.insert(name, NetworkSpec { internal, external });
        } else if internal || external.is_some() {
            cx.unsupported(
                &at,
                "the default network cannot be changed",
                "declare another network and name it in every service",
            );
        }
    }
    networks
}

/// Reads `volumes`.
pub fn volumes(cx: &mut Cx, at: &At, project: Option<&str>) -> BTreeMap<ServiceName, VolumeSpec> {
    let mut volumes = BTreeMap::new();
    for (name, at) in cx.named(at, bounds::SERVICE_ENTRIES) {
        let fields = cx.fields(&at, "volumes.*");
        driver(cx, fields.get("driver"), "local");
        let external = external(cx, &fields, &name, project);
        volumes.insert(name, VolumeSpec { external });
    }
    volumes
}

fn driver(cx: &mut Cx, at: Option<&At>, only: &str) {
    if let Some(at) = at
        && let Some(text) = cx.text(at)
        && text != only
    {
        let message = format!("the driver {} is not supported", quoted(&text));
        cx.unsupported(
            at,
            message,
            "remove it, or make it on the host and use `external: true`",
        );
    }
}

/// The engine's name of an external network or volume. A `name` on one that is ours is only accepted when it is the default
/// that `docker compose config` prints: any other would promise a name that we do not give.
fn external(
    cx: &mut Cx,
    fields: &BTreeMap<&str, At>,
    key: &ServiceName,
    project: Option<&str>,
) -> Option<String> {
    let external = fields
        .get("external")
        .and_then(|at| cx.flag(at))
        .unwrap_or_default();
    let name = fields.get("name").and_then(|at| Some((at, cx.text(at)?)));
    if external {
        let Some((at, name)) = name else {
            return Some(key.to_string());
        };
        // The engine allows the same characters as a service name, only longer.
        let legal = name.len() <= 255
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if !legal {
            cx.wrong(
                at,
                format!("{} is no name that the engine allows", quoted(&name)),
                "correct it",
            );
        }
        return Some(name);
    }
    if let Some((at, name)) = name
        && project.is_none_or(|project| name != format!("{project}_{key}"))
    {
        cx.unsupported(
            at,
            "only external networks and volumes have a name of their own",
            "remove `name`, or make it on the host and add `external: true`",
        );
    }
    None
}
