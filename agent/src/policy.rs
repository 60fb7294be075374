//! Host policy: what orders may ask of this host, whoever signed them. Set on the host alone (section `[policy]` of the settings),
//! so that nobody who may only deploy becomes root of the host. Nothing of the host is open unless its settings name it.

mod borrowed;
mod model;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::ErrorKind,
    path::{Component, Path, PathBuf},
};

use sealift_common::{
    bounds,
    evidence::{Allowance, AllowedBy},
    hook::HookSpec,
    manifest::{Manifest, MountSpec, ServiceSpec},
    name::Name,
};

pub use borrowed::Borrowed;
pub(crate) use borrowed::{called, is_external};

/// Capabilities that the engine gives every container anyway.
const USUAL_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What orders may ask of the host. The default is: nothing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostPolicy {
    /// `policy.allowed_host_paths`: containers may mount these and what is below.
    pub allowed_host_paths: Vec<PathBuf>,
    /// `policy.allowed_capabilities`: besides the usual ones, as [`capability`] writes them; `ALL` is every one.
    pub allowed_capabilities: BTreeSet<String>,
    /// `policy.allow_engine_socket`: the engine's socket, or a directory that holds it. Whoever has it is root of the host.
    pub allow_engine_socket: bool,
    /// `policy.allow_unconfined`: security options that may switch a confinement off.
    pub allow_unconfined: bool,
    /// `policy.allow_hooks`: releases may run hooks. They are given less than services may ask for.
    pub allow_hooks: AllowHooks,
    /// The engine's socket.
    pub engine_socket: Option<PathBuf>,
    /// The agent's own state.
    pub state_dir: Option<PathBuf>,
    /// Folder that whoever runs the host has set aside for compose files: what is in it needs no allowance.
    pub files_dir: Option<PathBuf>,
    /// `policy.environments`: what holds for orders of these environments in place of all this.
    pub environments: BTreeMap<Name, Self>,
}

/// Which hooks a host runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum AllowHooks {
    /// All: they can do nothing that a service could not.
    #[default]
    All,
    /// Those whose image is of one of these repositories.
    From(BTreeSet<String>),
    /// None.
    Never,
}

/// What an order must not ask of this host.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Forbidden {
    /// A path of the host.
    #[error(
        "service {service} mounts {path} of the host, which this host does not allow; whoever runs the host may name it in policy.allowed_host_paths of the agent's settings"
    )]
    Path {
        /// The service.
        service: String,
        /// The path as the order has it.
        path: String,
    },
    /// A path of the host whose end nobody can tell.
    #[error(
        "service {service} mounts {path} of the host, and what that is cannot be told: it is not absolute, climbs, is a link that leads nowhere, or lies in a folder that the agent's user may not enter; write it out, or let that user enter the folders above it (only then policy.allowed_host_paths of the agent's settings counts)"
    )]
    Unseen {
        /// The service.
        service: String,
        /// The path as the order has it.
        path: String,
    },
    /// The engine's socket.
    #[error(
        "service {service} mounts {path}, which gives it the container engine and so the whole host; this host does not allow that (policy.allow_engine_socket of the agent's settings)"
    )]
    EngineSocket {
        /// The service.
        service: String,
        /// The path as the order has it.
        path: String,
    },
    /// The agent's own state.
    #[error(
        "service {service} mounts {path}, which holds the keys of this host's agent; no service may, whatever policy.allowed_host_paths of the agent's settings names"
    )]
    AgentState {
        /// The service.
        service: String,
        /// The path as the order has it.
        path: String,
    },
    /// A capability that containers do not have anyway.
    #[error(
        "service {service} adds the capability {capability}, which this host does not allow; whoever runs the host may name it in policy.allowed_capabilities of the agent's settings"
    )]
    Capability {
        /// The service.
        service: String,
        /// The capability as the order has it.
        capability: String,
    },
    /// Something else of the host, in a resolved compose file.
    #[error("{path} {what}; this host does not allow that to any release: take it out of the compose file")]
    Asks {
        /// Where.
        path: String,
        /// What it does.
        what: &'static str,
    },
    /// A hook that this host does not run.
    #[error(
        "hook {hook} runs {repository}, which this host does not allow (policy.allow_hooks and policy.hook_repositories of the agent's settings)"
    )]
    Hook {
        /// The hook.
        hook: String,
        /// The repository of its image.
        repository: String,
    },
    /// A network or volume that is none of the release's.
    #[error(
        "the external {kind} {name} is the engine's own or another target's, so no release may use it: make one for it on the host (docker {kind} create)"
    )]
    Borrowed {
        /// `network` or `volume`.
        kind: &'static str,
        /// The engine's name.
        name: String,
    },
    /// A confinement may be switched off.
    #[error(
        "service {service} asks for security_opt {option}, which may switch a confinement off and which this host does not allow (policy.allow_unconfined of the agent's settings)"
    )]
    Unconfined {
        /// The service.
        service: String,
        /// The option.
        option: String,
    },
}

impl HostPolicy {
    /// The policy for orders of an environment.
    pub fn of(&self, environment: &Name) -> &Self {
        self.environments.get(environment).unwrap_or(self)
    }

    /// Whether everything that `manifest` asks of the host is allowed, and what of it is so because the settings say it. Blocks:
    /// follows symbolic links on the host.
    pub fn check(&self, manifest: &Manifest) -> Result<Vec<Allowance>, Forbidden> {
        let mut allowances = BTreeSet::new();
        for (name, spec) in &manifest.services {
            allowances.extend(self.check_service(name.as_str(), spec)?);
        }
        Ok(bounded(allowances))
    }

    /// Whether this host runs these hooks.
    pub fn check_hooks(&self, hooks: &[HookSpec]) -> Result<(), Forbidden> {
        let is_allowed = |hook: &&HookSpec| match &self.allow_hooks {
            AllowHooks::All => true,
            AllowHooks::From(repositories) => repositories.contains(&hook.image.repository),
            AllowHooks::Never => false,
        };
        match hooks.iter().find(|hook| !is_allowed(hook)) {
            None => Ok(()),
            Some(hook) => Err(Forbidden::Hook {
                hook: hook.name.to_string(),
                repository: hook.image.repository.clone(),
            }),
        }
    }

    /// The same for one service.
    pub(crate) fn check_service(
        &self,
        service: &str,
        spec: &ServiceSpec,
    ) -> Result<BTreeSet<Allowance>, Forbidden> {
        let mut allowances = BTreeSet::new();
        for mount in &spec.volumes {
            if let MountSpec::Bind { source, .. } = mount {
                allowances.extend(self.check_path(service, source)?);
            }
        }
        for name in &spec.cap_add {
            allowances.extend(self.check_capability(service, name)?);
        }
        for option in &spec.security_opt {
            allowances.extend(self.check_security_option(service, option)?);
        }
        Ok(allowances)
    }

    /// Whether a service may add a capability, and whether that is so because the settings say it.
    pub(crate) fn check_capability(&self, service: &str, name: &str) -> Result<Option<Allowance>, Forbidden> {
        let wanted = capability(name);
        if USUAL_CAPABILITIES.contains(&wanted.as_str()) {
            return Ok(None);
        }
        if self.allowed_capabilities.contains(&wanted) || self.allowed_capabilities.contains("ALL") {
            return Ok(Some(Allowance::new(service, AllowedBy::Capabilities, &wanted)));
        }
        Err(Forbidden::Capability {
            service: service.to_owned(),
            capability: name.to_owned(),
        })
    }

    /// Whether a service may have a security option, and whether that is so because the settings say it.
    pub(crate) fn check_security_option(
        &self,
        service: &str,
        option: &str,
    ) -> Result<Option<Allowance>, Forbidden> {
        if confines(option) {
            return Ok(None);
        }
        if self.allow_unconfined {
            return Ok(Some(Allowance::new(service, AllowedBy::Unconfined, option)));
        }
        Err(Forbidden::Unconfined {
            service: service.to_owned(),
            option: option.to_owned(),
        })
    }

    /// Whether a service may mount a path of the host, and whether that is so because the settings say it. Blocks: follows symbolic
    /// links.
    pub(crate) fn check_path(&self, service: &str, source: &str) -> Result<Option<Allowance>, Forbidden> {
        let by = |setting| Ok(Some(Allowance::new(service, setting, source)));
        let (service, written) = (service.to_owned(), source.to_owned());
        let Some(path) = canonical(Path::new(source)) else {
            return Err(Forbidden::Unseen {
                service,
                path: written,
            });
        };
        let socket = self.engine_socket.as_deref().and_then(nearest);
        let has_socket = socket.as_deref().is_some_and(|socket| socket.starts_with(&path));
        if has_socket {
            if !self.allow_engine_socket {
                return Err(Forbidden::EngineSocket {
                    service,
                    path: written,
                });
            }
            // The socket alone is named by the setting itself.
            if socket.as_deref() == Some(path.as_path()) {
                return by(AllowedBy::EngineSocket);
            }
        }
        let state = self.state_dir.as_deref().and_then(nearest);
        if state.is_some_and(|state| state.starts_with(&path) || path.starts_with(&state)) {
            return Err(Forbidden::AgentState {
                service,
                path: written,
            });
        }
        let files_dir = self.files_dir.as_deref().and_then(canonical);
        if files_dir.is_some_and(|files_dir| path.starts_with(files_dir)) {
            return if has_socket {
                by(AllowedBy::EngineSocket)
            } else {
                Ok(None)
            };
        }
        let mut allowed = self
            .allowed_host_paths
            .iter()
            .filter_map(|allowed| canonical(allowed));
        if allowed.any(|allowed| path.starts_with(allowed)) {
            // Of two settings that allow it, the one that gives more away is named.
            return by(if has_socket {
                AllowedBy::EngineSocket
            } else {
                AllowedBy::HostPaths
            });
        }
        Err(Forbidden::Path {
            service,
            path: written,
        })
    }
}

/// As many as a packet may name; when there are more, the last one says how many.
fn bounded(allowances: BTreeSet<Allowance>) -> Vec<Allowance> {
    let more = allowances.len().saturating_sub(bounds::ALLOWANCES);
    let mut kept: Vec<_> = allowances.into_iter().take(bounds::ALLOWANCES).collect();
    if let Some(last) = kept.last_mut().filter(|_| more > 0) {
        last.what = format!("this and {more} more");
    }
    kept
}

/// A capability as the kernel's headers spell it, without `CAP_`: `net_admin` and `CAP_NET_ADMIN` are `NET_ADMIN`.
pub(crate) fn capability(name: &str) -> String {
    let name = name.trim().to_ascii_uppercase();
    name.strip_prefix("CAP_").unwrap_or(&name).to_owned()
}

/// Whether an option is one that only makes a confinement stricter or names the usual one. What is not known is not.
fn confines(option: &str) -> bool {
    let option = option.to_ascii_lowercase();
    let (name, value) = option.split_once(['=', ':']).unwrap_or((&option, ""));
    match name.trim() {
        // `false` would switch off what the engine's own settings switch on for all.
        "no-new-privileges" => matches!(value.trim(), "" | "true"),
        "seccomp" => value.trim() == "builtin",
        "apparmor" => value.trim() == "docker-default",
        "label" => value.trim().starts_with("level"),
        _ => false,
    }
}

/// An absolute path without symbolic links; what does not exist yet is taken as it is written, below what does. `None`: it is not
/// absolute, climbs, or cannot be followed. What may not be looked at may be a link to anywhere, and the engine follows it.
fn canonical(path: &Path) -> Option<PathBuf> {
    followed(path, |error| error.kind() == ErrorKind::NotFound)
}

/// Whether a file of a folder lies there once every link is followed. Blocks.
pub(crate) fn stays_in(folder: &Path, file: &str) -> bool {
    let whole = canonical(&folder.join(file));
    whole
        .zip(canonical(folder))
        .is_some_and(|(file, folder)| file.starts_with(folder))
}

/// As [`canonical`], for what is kept from everybody: where it cannot be looked at, it is there as it is written.
fn nearest(path: &Path) -> Option<PathBuf> {
    followed(path, |_| true)
}

fn followed(path: &Path, is_absent: impl Fn(&std::io::Error) -> bool) -> Option<PathBuf> {
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    let mut rest = Vec::new();
    let mut there = path;
    loop {
        match there.canonicalize() {
            Ok(found) => return Some(rest.iter().rev().fold(found, |whole, part| whole.join(part))),
            Err(error) if !is_absent(&error) => return None,
            Err(_) => match there.symlink_metadata() {
                Err(error) if is_absent(&error) => {
                    rest.push(there.file_name()?.to_owned());
                    there = there.parent()?;
                }
                // A link that leads nowhere exists all the same, and nobody knows what it will lead to.
                _ => return None,
            },
        }
    }
}

#[cfg(test)]
mod tests;
