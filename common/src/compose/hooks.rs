//! `x-sealift.hooks`: commands that a release runs beside its services, for both kinds of targets.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    cx::{At, Cx, quoted},
    mounts::{self, Mounts},
    service,
};
use crate::{
    bounds,
    digest::Digest,
    hook::{DEFAULT_TIMEOUT_MS, HookMount, HookSpec, HookWhen, MOST_TIMEOUT_MS, OnFailure},
    manifest::{MountSpec, PinnedImage},
    name::ServiceName,
};

const SCHEMA: &str = "x-sealift.hooks[]";

/// What hooks may use of their file.
pub struct Surroundings<'a> {
    /// Networks that are declared, besides `default`.
    pub networks: BTreeSet<&'a str>,
    /// Volumes that are declared.
    pub volumes: BTreeSet<&'a str>,
    /// Whether a variable without a value gets it on the host.
    pub has_variables: bool,
}

/// One hook with its image as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeHook {
    /// The image reference as written.
    pub image: String,
    /// Everything else. Its image is a placeholder, so it only leaves this module through [`pin`].
    spec: HookSpec,
}

impl ComposeHook {
    /// Whether a hook of a release says what this one says. The image is not compared: the release pins it.
    pub fn is_same(&self, pinned: &HookSpec) -> bool {
        self.spec.says_the_same(pinned)
    }
}

/// The image of each hook, as written.
pub fn images(hooks: &[ComposeHook]) -> BTreeMap<&ServiceName, &str> {
    hooks
        .iter()
        .map(|hook| (&hook.spec.name, hook.image.as_str()))
        .collect()
}

/// The hooks with the digests that a registry gave for their images.
pub fn pin(
    hooks: Vec<ComposeHook>,
    resolved: &BTreeMap<ServiceName, PinnedImage>,
) -> Result<Vec<HookSpec>, super::NotResolved> {
    hooks
        .into_iter()
        .map(|hook| match resolved.get(&hook.spec.name) {
            Some(image) => Ok(HookSpec {
                image: image.clone(),
                ..hook.spec
            }),
            None => Err(super::NotResolved {
                service: hook.spec.name,
            }),
        })
        .collect()
}

/// Reads the top-level `x-sealift`.
pub fn hooks(cx: &mut Cx, at: &At, around: &Surroundings<'_>) -> Vec<ComposeHook> {
    let mut hooks: Vec<ComposeHook> = Vec::new();
    let fields = cx.fields(at, "x-sealift");
    let Some(list) = fields.get("hooks") else {
        return hooks;
    };
    let items = cx.items(list);
    if items.len() > bounds::HOOKS {
        let message = format!(
            "it has {} hooks, at most {} are allowed",
            items.len(),
            bounds::HOOKS
        );
        cx.wrong(list, message, "let one hook do the work of several");
    }
    for item in items.iter().take(bounds::HOOKS) {
        let Some(hook) = one(cx, item, around) else {
            continue;
        };
        if hooks.iter().any(|other| other.spec.name == hook.spec.name) {
            let message = format!("a hook is called {} already", hook.spec.name);
            cx.wrong(item, message, "choose another name");
        }
        let is_switch = |hook: &ComposeHook| hook.spec.when == HookWhen::Switch;
        if is_switch(&hook) && hooks.iter().any(is_switch) {
            let advice = "let one hook send the callers from one set to the other";
            cx.wrong(item, "there is another switch hook", advice);
        }
        hooks.push(hook);
    }
    hooks
}

fn one(cx: &mut Cx, at: &At, around: &Surroundings<'_>) -> Option<ComposeHook> {
    if !at.is_map() {
        cx.wrong(at, "wanted a map", "see docs/hooks.md");
        return None;
    }
    let fields = cx.fields(at, SCHEMA);
    let text = |cx: &mut Cx, key: &str| fields.get(key).and_then(|at| cx.text(at));
    let command = |cx: &mut Cx, key: &str| fields.get(key).and_then(|at| service::command(cx, at));
    let name = required(cx, at, &fields, "name", "name it, for example `name: migrate`");
    let when = required(cx, at, &fields, "when", "say pre_deploy, switch or post_deploy");
    let image = required(cx, at, &fields, "image", "name one with `image:`");
    let (environment, variables) = environment(cx, fields.get("environment"), around);
    let networks = networks(cx, fields.get("networks"), around);
    let volumes = volumes(cx, fields.get("volumes"), around);
    let spec = HookSpec {
        command: command(cx, "command"),
        entrypoint: command(cx, "entrypoint"),
        environment,
        variables,
        networks,
        volumes,
        user: text(cx, "user"),
        working_dir: fields
            .get("working_dir")
            .and_then(|at| service::working_dir(cx, at)),
        timeout_ms: fields
            .get("timeout")
            .map_or(DEFAULT_TIMEOUT_MS, |at| timeout(cx, at)),
        on_failure: OnFailure::Fail,
        image: PinnedImage {
            repository: String::new(),
            tag: None,
            digest: Digest::of(b""),
        },
        name: chosen(cx, name?, "use letters, digits, '.', '_', '-'")?,
        when: chosen(cx, when?, "say pre_deploy, switch or post_deploy")?,
    };
    let on_failure = match fields.get("on_failure") {
        Some(at) => chosen(cx, at, "say fail or continue")?,
        None => OnFailure::Fail,
    };
    if spec.when == HookWhen::Switch && on_failure == OnFailure::Continue {
        let advice = "remove `on_failure`: what follows a switch that failed is the way back";
        cx.wrong(at, "a switch that failed cannot count as done", advice);
    }
    Some(ComposeHook {
        image: service::image(cx, image?)?,
        spec: HookSpec { on_failure, ..spec },
    })
}

fn required<'f, 'n>(
    cx: &mut Cx,
    at: &At,
    fields: &'f BTreeMap<&str, At<'n>>,
    key: &str,
    advice: &str,
) -> Option<&'f At<'n>> {
    let found = fields.get(key);
    if found.is_none() {
        cx.wrong(at, format!("it has no {key}"), advice);
    }
    found
}

/// One of the texts that a type has.
fn chosen<T: std::str::FromStr>(cx: &mut Cx, at: &At, advice: &str) -> Option<T> {
    let text = cx.text(at)?;
    let value = text.parse().ok();
    if value.is_none() {
        cx.wrong(at, format!("{} is not possible here", quoted(&text)), advice);
    }
    value
}

fn environment(
    cx: &mut Cx,
    at: Option<&At>,
    around: &Surroundings<'_>,
) -> (BTreeMap<String, String>, BTreeSet<String>) {
    let (mut values, mut variables) = (BTreeMap::new(), BTreeSet::new());
    let pairs = at.map(|at| cx.written_pairs(at)).unwrap_or_default();
    for (key, value, at) in pairs {
        if key.starts_with("SEALIFT_") {
            let advice = "choose another name: these say where the hook runs (docs/hooks.md)";
            cx.wrong(&at, format!("{} is reserved", quoted(&key)), advice);
        }
        match value {
            Some(value) => {
                values.insert(key, value);
            }
            None if around.has_variables => {
                variables.insert(key);
            }
            None => {
                let advice = "write the value: nothing is taken from the caller's shell";
                cx.wrong(&at, format!("{} has no value", quoted(&key)), advice);
            }
        }
    }
    (values, variables)
}

fn networks(cx: &mut Cx, at: Option<&At>, around: &Surroundings<'_>) -> BTreeSet<ServiceName> {
    let mut networks = BTreeSet::new();
    for item in at.map(|at| cx.items(at)).unwrap_or_default() {
        let Some(name) = chosen::<ServiceName>(cx, &item, "name a network of this file") else {
            continue;
        };
        let is_known = name.as_str() == crate::manifest::DEFAULT_NETWORK;
        if !is_known && !around.networks.contains(name.as_str()) {
            let message = format!("it uses the network {name}, which is not declared");
            cx.wrong(&item, message, "declare it under the top-level `networks`");
        }
        if !networks.insert(name) {
            cx.wrong(&item, "this network is there twice", "remove one");
        }
    }
    // "Only the default network" has one spelling: none.
    if networks.len() == 1 && networks.contains(crate::manifest::DEFAULT_NETWORK) {
        networks.clear();
    }
    networks
}

fn volumes(cx: &mut Cx, at: Option<&At>, around: &Surroundings<'_>) -> Vec<HookMount> {
    let Some(at) = at else {
        return Vec::new();
    };
    let mut mounts = Mounts::default();
    mounts::volumes(cx, at, &mut mounts);
    let only = "a hook mounts named volumes of its file and nothing else";
    if !mounts.tmpfs.is_empty() {
        cx.wrong(at, only, "remove the tmpfs: the hook may write in its container");
    }
    let mut found = Vec::new();
    for mount in mounts.volumes {
        match mount {
            MountSpec::Volume {
                volume,
                target,
                read_only,
            } => {
                if !around.volumes.contains(volume.as_str()) {
                    let message = format!("it uses the volume {volume}, which is not declared");
                    cx.wrong(at, message, "declare it under the top-level `volumes`");
                }
                found.push(HookMount {
                    volume,
                    target,
                    read_only,
                });
            }
            MountSpec::Bind { source, .. } => {
                let advice = "put what it needs into the image or a named volume";
                cx.wrong(at, format!("{only}: {} is of the host", quoted(&source)), advice);
            }
            MountSpec::Anonymous { .. } => {
                let advice = "remove the mount: the hook may write in its container";
                cx.wrong(at, only, advice);
            }
        }
    }
    found
}

fn timeout(cx: &mut Cx, at: &At) -> u32 {
    let Some(timeout) = service::duration(cx, at) else {
        return DEFAULT_TIMEOUT_MS;
    };
    if !(1_000..=MOST_TIMEOUT_MS).contains(&timeout) {
        cx.wrong(
            at,
            "a hook may take one second to one hour",
            "correct the timeout",
        );
    }
    timeout
}

#[cfg(test)]
pub mod tests;
