//! Compose files for `compose_host`: read only as far as it must be known before a host sees them, that is which services run and
//! from which images. The host's own Compose interprets the file; keys that are not named here are none of our business.
//!
//! Refused is what a single file cannot hold (`build`, `include`, `extends` from another file), what would make Compose read other
//! files of the host (`env_file` outside the folder that the host's owner set aside), and images that are known only on the host.

use std::collections::{BTreeMap, BTreeSet};

use super::{
    ComposeErrors, EnvFiles,
    cx::{At, Cx, quoted},
    hooks::{self, ComposeHook, Surroundings},
    service, yaml,
};
use crate::{
    bounds,
    compose_manifest::{ComposeKind, ComposeManifest, ComposeServicePin, Lifetime},
    hook::HookSpec,
    manifest::{PinnedImage, Probe},
    name::{ServiceName, few},
};

/// How many profiles a message names.
const SHOWN: usize = 10;
/// How many bases a service may have.
const EXTENDS: usize = 8;

/// A file whose images are still references as people write them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostedFile {
    document: String,
    profiles: BTreeSet<String>,
    services: BTreeMap<ServiceName, HostedService>,
    hooks: Vec<ComposeHook>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct HostedService {
    image: String,
    lifetime: Lifetime,
    probe: Option<Probe>,
}

impl HostedFile {
    /// The image of each service that the profiles switch on, as written.
    pub fn images(&self) -> BTreeMap<&ServiceName, &str> {
        self.services
            .iter()
            .map(|(name, service)| (name, service.image.as_str()))
            .collect()
    }

    /// The image of each hook, as written.
    pub fn hook_images(&self) -> BTreeMap<&ServiceName, &str> {
        hooks::images(&self.hooks)
    }

    /// Whether `pinned` are the hooks of this file with nothing changed but the images.
    pub fn has_hooks(&self, pinned: &[HookSpec]) -> bool {
        self.hooks.len() == pinned.len()
            && self
                .hooks
                .iter()
                .zip(pinned)
                .all(|(written, pinned)| written.is_same(pinned))
    }

    /// The content of a release, given what a registry said about the image of every service and every hook.
    pub fn pin(
        self,
        resolved: &BTreeMap<ServiceName, PinnedImage>,
        hooks: &BTreeMap<ServiceName, PinnedImage>,
    ) -> Result<ComposeManifest, super::NotResolved> {
        let services = self
            .services
            .into_iter()
            .map(|(name, service)| match resolved.get(&name) {
                Some(image) => {
                    let pin = ComposeServicePin {
                        image: image.clone(),
                        lifetime: service.lifetime,
                        probe: service.probe,
                    };
                    Ok((name, pin))
                }
                None => Err(super::NotResolved { service: name }),
            })
            .collect::<Result<_, _>>()?;
        Ok(ComposeManifest {
            kind: ComposeKind::ComposeHost,
            document: self.document,
            profiles: self.profiles,
            services,
            hooks: hooks::pin(self.hooks, hooks)?,
        })
    }
}

/// Reads the compose file of which a release for compose hosts is to be made. `profiles` are switched on, and each must be one of the
/// file's: Compose passes over others, and would leave services out where a name is misspelt.
pub fn parse_new(text: &str, profiles: &BTreeSet<String>) -> Result<HostedFile, ComposeErrors> {
    parse_with(text, profiles, known)
}

/// Reads the compose file of a release.
pub fn parse(text: &str, profiles: &BTreeSet<String>) -> Result<HostedFile, ComposeErrors> {
    parse_with(text, profiles, |_, _, _| ())
}

fn parse_with(
    text: &str,
    profiles: &BTreeSet<String>,
    look: impl FnOnce(&mut Cx, &At, &BTreeSet<String>),
) -> Result<HostedFile, ComposeErrors> {
    let variables = EnvFiles::new();
    let mut cx = Cx::new(&variables);
    let Some(root) = cx.read(text) else {
        return Err(cx.into_errors());
    };
    let root = At::root(&root);
    look(&mut cx, &root, profiles);
    let services = read(&mut cx, &root, profiles);
    let hooks = own(&mut cx, &root);
    cx.finish(HostedFile {
        document: text.to_owned(),
        profiles: profiles.clone(),
        services,
        hooks,
    })
}

/// Refuses profiles that no service has.
fn known(cx: &mut Cx, root: &At, profiles: &BTreeSet<String>) {
    let Some(at) = root.get("services") else {
        return;
    };
    let services = at.map();
    let there: BTreeSet<String> = services
        .iter()
        .filter_map(|(_, service)| service.get("profiles"))
        .flat_map(|named| named.list())
        .filter_map(|item| item.plain_text())
        .collect();
    let unknown: Vec<_> = profiles.difference(&there).collect();
    if unknown.is_empty() {
        return;
    }
    let advice = if there.is_empty() {
        "leave --profile out: the file has no profiles".to_owned()
    } else {
        format!(
            "the file has {}",
            few(there.iter().map(|name| quoted(name)), SHOWN)
        )
    };
    let message = format!(
        "no service has the profile {}",
        few(unknown.iter().map(|name| quoted(name)), SHOWN)
    );
    cx.wrong(&at, message, &advice);
}

/// The top-level `x-sealift`, which Compose passes over.
fn own(cx: &mut Cx, root: &At) -> Vec<ComposeHook> {
    let around = Surroundings {
        networks: names(root, "networks"),
        volumes: names(root, "volumes"),
        has_variables: true,
    };
    root.get("x-sealift")
        .map(|at| hooks::hooks(cx, &at, &around))
        .unwrap_or_default()
}

fn names<'n>(root: &At<'n>, key: &str) -> BTreeSet<&'n str> {
    root.get(key).iter().flat_map(At::keys).collect()
}

fn read(cx: &mut Cx, root: &At, profiles: &BTreeSet<String>) -> BTreeMap<ServiceName, HostedService> {
    let mut services = BTreeMap::new();
    if let Some(include) = root.get("include") {
        let advice = "flatten the files into one first: `docker compose config --no-interpolate`";
        cx.wrong(&include, "include brings in other files", advice);
    }
    let Some(at) = root.get("services") else {
        cx.wrong(root, "it has no `services`", "name at least one service");
        return services;
    };
    let all = cx.named(&at, bounds::SERVICES);
    let awaited = awaited(&all);
    let switched_on: BTreeSet<&ServiceName> = all
        .iter()
        .filter(|(_, service)| is_on(cx, service, profiles))
        .map(|(name, _)| name)
        .collect();
    for (name, service) in &all {
        refuse_files(cx, service);
        if !switched_on.contains(name) {
            continue;
        }
        for (needed, at) in dependencies(service) {
            let exists = all.iter().find(|(name, _)| name.as_str() == needed);
            if exists.is_none_or(|(name, _)| !switched_on.contains(name)) {
                let advice = "name the profile with --profile, or let the service run without one";
                cx.wrong(
                    &at,
                    format!("{needed} is no service that runs under these profiles"),
                    advice,
                );
            }
        }
        if let Some(service) = one(cx, name, service, &all, &awaited) {
            services.insert(name.clone(), service);
        }
    }
    if switched_on.is_empty() {
        cx.wrong(
            &at,
            "no service runs under these profiles",
            "name one with --profile",
        );
    }
    services
}

/// Services whose completion others wait for.
fn awaited(all: &[(ServiceName, At)]) -> BTreeSet<String> {
    all.iter()
        .flat_map(|(_, service)| dependencies(service))
        .filter(|(_, at)| {
            at.get("condition")
                .and_then(|condition| condition.plain_text())
                .is_some_and(|condition| condition == "service_completed_successfully")
        })
        .map(|(name, _)| name)
        .collect()
}

fn dependencies<'n>(service: &At<'n>) -> Vec<(String, At<'n>)> {
    let Some(at) = service.get("depends_on") else {
        return Vec::new();
    };
    let listed = at
        .list()
        .into_iter()
        .filter_map(|item| Some((item.plain_text()?, item)));
    let mapped = at.map().into_iter().map(|(name, at)| (name.to_owned(), at));
    listed.chain(mapped).collect()
}

fn is_on(cx: &mut Cx, service: &At, profiles: &BTreeSet<String>) -> bool {
    let Some(at) = service.get("profiles") else {
        return true;
    };
    let named = at.list();
    let mut on = named.is_empty();
    for item in named {
        match item.plain_text() {
            Some(name) if !name.contains('$') => on |= profiles.contains(&name),
            _ => cx.wrong(
                &item,
                "a profile must be a plain name",
                "write it without variables",
            ),
        }
    }
    on
}

/// What would make Compose read or build from other files of the host. Also refused in services that are switched off: Compose reads
/// them all the same.
fn refuse_files(cx: &mut Cx, service: &At) {
    if let Some(at) = service.get("extends")
        && let Some(file) = at.get("file")
    {
        let advice = "flatten the files into one first: `docker compose config --no-interpolate`";
        cx.wrong(&file, "extends another file", advice);
    }
    for key in ["env_file", "label_file"] {
        for (path, at) in service.get(key).map(|at| paths(&at)).unwrap_or_default() {
            if !is_below(&path) {
                let message = "must be a plain path below the folder that the host's owner sets aside";
                let advice = "write it relative, without `..` and variables (see docs/compose-support.md)";
                cx.wrong(&at, message, advice);
            }
        }
    }
}

fn paths<'n>(at: &At<'n>) -> Vec<(String, At<'n>)> {
    let path = |at: &At<'n>| {
        let long = at.get("path").and_then(|path| path.plain_text());
        at.plain_text().or(long).unwrap_or_default()
    };
    if at.is_list() {
        return at.list().into_iter().map(|item| (path(&item), item)).collect();
    }
    vec![(path(at), at.clone())]
}

fn is_below(path: &str) -> bool {
    !path.is_empty()
        && !path.starts_with(['/', '~'])
        && !path.contains(['$', '\\', '\0'])
        && path.split('/').all(|part| part != "..")
}

fn one(
    cx: &mut Cx,
    name: &ServiceName,
    service: &At,
    all: &[(ServiceName, At)],
    awaited: &BTreeSet<String>,
) -> Option<HostedService> {
    let chain = chain(cx, service, all)?;
    let own = |key: &str| chain.iter().find_map(|at| at.get(key));
    for (key, advice) in [
        (
            "build",
            "build and push the image first, then name it with `image`",
        ),
        ("provider", "run the service as a container"),
    ] {
        if let Some(at) = own(key) {
            cx.wrong(&at, format!("{key} is not possible on a compose host"), advice);
        }
    }
    refuse_replicas(cx, own("scale"));
    refuse_replicas(cx, own("deploy").and_then(|deploy| deploy.get("replicas")));
    let Some(image) = own("image") else {
        cx.wrong(
            service,
            "it names no `image`",
            "every service needs an image that is at a registry",
        );
        return None;
    };
    let Some(text) = image.plain_text() else {
        cx.wrong(&image, "wanted a text", "name an image");
        return None;
    };
    if text.contains('$') {
        let advice = "write the image without variables; the release pins it to a digest";
        cx.wrong(
            &image,
            "which image a variable means is known only on the host",
            advice,
        );
        return None;
    }
    let restart = own("restart").and_then(|at| at.plain_text());
    let lifetime = if awaited.contains(name.as_str()) {
        Lifetime::MustEnd
    } else if restart.as_deref() == Some("no") {
        Lifetime::MayEnd
    } else {
        Lifetime::Lasting
    };
    let probe = own("x-sealift").and_then(|at| service::own(cx, &at));
    Some(HostedService {
        image: text,
        lifetime,
        probe,
    })
}

fn refuse_replicas(cx: &mut Cx, at: Option<At>) {
    if let Some(at) = at
        && at.plain_text().as_deref() != Some("1")
    {
        let advice = "name a service for each container that is wanted; YAML anchors keep that short";
        cx.wrong(&at, "a service runs as exactly one container", advice);
    }
}

/// The service and the services of this file that it extends, nearest first.
fn chain<'n>(cx: &mut Cx, service: &At<'n>, all: &[(ServiceName, At<'n>)]) -> Option<Vec<At<'n>>> {
    let mut chain = vec![service.clone()];
    while let Some(extends) = chain.last().and_then(|last| last.get("extends")) {
        let base = extends
            .plain_text()
            .or_else(|| extends.get("service")?.plain_text())
            .unwrap_or_default();
        let found = all.iter().find(|(name, _)| name.as_str() == base);
        match found {
            Some((_, at)) if chain.len() < EXTENDS => chain.push(at.clone()),
            Some(_) => {
                cx.wrong(
                    &extends,
                    "more than eight services extend each other",
                    "write the service out",
                );
                return None;
            }
            None => {
                cx.wrong(
                    &extends,
                    "extends a service that this file does not have",
                    "name one of this file",
                );
                return None;
            }
        }
    }
    Some(chain)
}

/// Reads any YAML document under the budgets that hold for compose files: what a host's Compose made of one.
pub fn document(text: &str) -> Result<serde_json::Value, super::ComposeError> {
    Ok(yaml::read(text)?.into_json())
}

#[cfg(test)]
mod tests;
