//! Compose files: reads the documented subset of compose-spec that `docker_host` supports (`docs/compose-support.md`).
//!
//! [`parse`] turns text into a [`ComposeFile`], whose images are still references as people write them; [`ComposeFile::pin`] makes
//! a [`Manifest`] of it when a registry has said which digests they are. No key is ever dropped silently: what is not
//! supported is refused with its path. Reading is bounded in size, depth, nodes and alias expansion before anything is built.

pub mod agents;
mod check;
mod cx;
mod error;
mod hooks;
pub mod hosted;
pub mod keys;
mod mounts;
mod networks;
mod ports;
mod resources;
mod scalar;
mod service;
mod strict;
mod yaml;

use std::collections::BTreeMap;

pub use error::{ComposeError, ComposeErrors, NotResolved};

use crate::{
    bounds,
    manifest::{Manifest, NetworkSpec, PinnedImage, ServiceSpec, VolumeSpec},
    name::ServiceName,
};
use cx::{At, Cx};
use hooks::{ComposeHook, Surroundings};

/// The contents of `env_file`s by the path that the compose file names. Whoever reads the compose file reads them too: nothing
/// here opens a file.
pub type EnvFiles = BTreeMap<String, BTreeMap<String, String>>;

/// A compose file that is understood wholly; only the digests of its images are missing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeFile {
    /// Services by name.
    pub services: BTreeMap<ServiceName, ComposeService>,
    /// Networks besides `default`.
    pub networks: BTreeMap<ServiceName, NetworkSpec>,
    /// Named volumes.
    pub volumes: BTreeMap<ServiceName, VolumeSpec>,
    /// Hooks.
    hooks: Vec<ComposeHook>,
}

/// One service with its image as written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ComposeService {
    /// The image reference as written: `redis`, `registry.acme.com:5000/shop/api:1.4`.
    pub image: String,
    /// Everything else. Its image is a placeholder, so it only leaves this module through [`ComposeService::pin`].
    spec: ServiceSpec,
}

impl ComposeService {
    /// The service with the digest that a registry gave for its image.
    pub fn pin(self, image: PinnedImage) -> ServiceSpec {
        ServiceSpec { image, ..self.spec }
    }
}

impl ComposeFile {
    /// The image of each service, as written.
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

    /// The manifest, given what a registry said about the image of every service and every hook.
    pub fn pin(
        self,
        resolved: &BTreeMap<ServiceName, PinnedImage>,
        hooks: &BTreeMap<ServiceName, PinnedImage>,
    ) -> Result<Manifest, NotResolved> {
        let services = self
            .services
            .into_iter()
            .map(|(name, service)| match resolved.get(&name) {
                Some(image) => Ok((name, service.pin(image.clone()))),
                None => Err(NotResolved { service: name }),
            })
            .collect::<Result<_, _>>()?;
        Ok(Manifest {
            services,
            networks: self.networks,
            volumes: self.volumes,
            hooks: hooks::pin(self.hooks, hooks)?,
        })
    }
}

/// Reads a compose file. All errors are collected, the first [`error::MOST`] are returned.
pub fn parse(text: &str, variables: &EnvFiles) -> Result<ComposeFile, ComposeErrors> {
    let mut cx = Cx::new(variables);
    let Some(root) = cx.read(text) else {
        return Err(cx.into_errors());
    };
    let file = read_file(&mut cx, &At::root(&root));
    cx.finish(file)
}

fn read_file(cx: &mut Cx, root: &At) -> ComposeFile {
    let fields = cx.fields(root, "");
    let project = fields.get("name").and_then(|at| cx.text(at));
    if let Some(version) = fields.get("version") {
        // Obsolete in compose-spec and ignored there too.
        cx.number(version);
    }
    let networks = fields
        .get("networks")
        .map(|at| networks::networks(cx, at, project.as_deref()))
        .unwrap_or_default();
    let volumes = fields
        .get("volumes")
        .map(|at| networks::volumes(cx, at, project.as_deref()))
        .unwrap_or_default();
    let mut services = BTreeMap::new();
    match fields.get("services") {
        None => cx.wrong(root, "it has no `services`", "name at least one service"),
        Some(at) => {
            let entries = cx.named(at, bounds::SERVICES);
            if at.keys().is_empty() {
                cx.wrong(at, "it has no services", "name at least one service");
            }
            for (name, at) in entries {
                if let Some(service) = service::service(cx, &at) {
                    check::references(cx, &at, &service.spec, &networks, &volumes);
                    services.insert(name, service);
                }
            }
            check::between(cx, at, &services);
        }
    }
    let around = Surroundings {
        networks: networks.keys().map(ServiceName::as_str).collect(),
        volumes: volumes.keys().map(ServiceName::as_str).collect(),
        has_variables: false,
    };
    let hooks = fields
        .get("x-sealift")
        .map(|at| hooks::hooks(cx, at, &around))
        .unwrap_or_default();
    ComposeFile {
        services,
        networks,
        volumes,
        hooks,
    }
}

#[cfg(test)]
mod tests;
