//! Host policy: what orders may ask of this host, whoever signed them. Set on the host alone (section `[policy]` of the settings),
//! so that nobody who may only deploy becomes root of the host. Nothing of the host is open unless its settings name it.

mod borrowed;
mod model;

use std::{
    collections::BTreeSet,
    path::{Component, Path, PathBuf},
};

use sealift_common::{
    hook::HookSpec,
    manifest::{Manifest, MountSpec, ServiceSpec},
};

pub use borrowed::Borrowed;

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
    /// Whether everything that `manifest` asks of the host is allowed. Blocks: follows symbolic links on the host.
    pub fn check(&self, manifest: &Manifest) -> Result<(), Forbidden> {
        for (name, spec) in &manifest.services {
            self.check_service(name.as_str(), spec)?;
        }
        Ok(())
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

    /// Whether everything that one service asks of the host is allowed. Blocks: follows symbolic links on the host.
    pub(crate) fn check_service(&self, service: &str, spec: &ServiceSpec) -> Result<(), Forbidden> {
        for mount in &spec.volumes {
            if let MountSpec::Bind { source, .. } = mount {
                self.check_path(service, source)?;
            }
        }
        for name in &spec.cap_add {
            self.check_capability(service, name)?;
        }
        for option in &spec.security_opt {
            self.check_security_option(service, option)?;
        }
        Ok(())
    }

    /// Whether a service may add a capability.
    pub(crate) fn check_capability(&self, service: &str, name: &str) -> Result<(), Forbidden> {
        let wanted = capability(name);
        let allowed = USUAL_CAPABILITIES.contains(&wanted.as_str())
            || self.allowed_capabilities.contains(&wanted)
            || self.allowed_capabilities.contains("ALL");
        if allowed {
            return Ok(());
        }
        Err(Forbidden::Capability {
            service: service.to_owned(),
            capability: name.to_owned(),
        })
    }

    /// Whether a service may have a security option.
    pub(crate) fn check_security_option(&self, service: &str, option: &str) -> Result<(), Forbidden> {
        if self.allow_unconfined || confines(option) {
            return Ok(());
        }
        Err(Forbidden::Unconfined {
            service: service.to_owned(),
            option: option.to_owned(),
        })
    }

    /// Whether a service may mount a path of the host. Blocks: follows symbolic links.
    pub(crate) fn check_path(&self, service: &str, source: &str) -> Result<(), Forbidden> {
        let (service, written) = (service.to_owned(), source.to_owned());
        let Some(path) = canonical(Path::new(source)) else {
            return Err(Forbidden::Path {
                service,
                path: written,
            });
        };
        let socket = self.engine_socket.as_deref().and_then(canonical);
        if socket.as_deref().is_some_and(|socket| socket.starts_with(&path)) {
            if !self.allow_engine_socket {
                return Err(Forbidden::EngineSocket {
                    service,
                    path: written,
                });
            }
            // The socket alone is named by the setting itself.
            if socket.as_deref() == Some(path.as_path()) {
                return Ok(());
            }
        }
        let state = self.state_dir.as_deref().and_then(canonical);
        if state.is_some_and(|state| state.starts_with(&path) || path.starts_with(&state)) {
            return Err(Forbidden::AgentState {
                service,
                path: written,
            });
        }
        let mut allowed = self
            .allowed_host_paths
            .iter()
            .filter_map(|allowed| canonical(allowed));
        if allowed.any(|allowed| path.starts_with(allowed)) {
            return Ok(());
        }
        Err(Forbidden::Path {
            service,
            path: written,
        })
    }
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
        "no-new-privileges" => true,
        "seccomp" => value.trim() == "builtin",
        "apparmor" => value.trim() == "docker-default",
        "label" => value.trim().starts_with("level"),
        _ => false,
    }
}

/// An absolute path without symbolic links; what does not exist yet is taken as it is written, below what does. `None`: it is not
/// absolute, climbs, or cannot be followed.
fn canonical(path: &Path) -> Option<PathBuf> {
    if !path.is_absolute() || path.components().any(|part| part == Component::ParentDir) {
        return None;
    }
    let mut rest = Vec::new();
    let mut there = path;
    loop {
        match there.canonicalize() {
            Ok(found) => return Some(rest.iter().rev().fold(found, |whole, part| whole.join(part))),
            // A link that leads nowhere exists all the same, and nobody knows what it will lead to.
            Err(_) if there.symlink_metadata().is_ok() => return None,
            Err(_) => {
                rest.push(there.file_name()?.to_owned());
                there = there.parent()?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sealift_common::hook::HookWhen;

    use super::*;
    use crate::samples;

    fn with(change: impl FnOnce(&mut ServiceSpec)) -> Manifest {
        let mut manifest = samples::order(1, &[("web", "v1")]).manifest;
        change(manifest.services.values_mut().next().unwrap());
        manifest
    }

    fn bind(source: impl AsRef<Path>) -> Manifest {
        let source = source.as_ref().to_str().unwrap().to_owned();
        with(|spec| {
            spec.volumes.push(MountSpec::Bind {
                source,
                target: "/x".to_owned(),
                read_only: true,
            });
        })
    }

    fn policy() -> HostPolicy {
        HostPolicy {
            engine_socket: Some("/var/run/docker.sock".into()),
            state_dir: Some("/var/lib/sealift-agent".into()),
            ..HostPolicy::default()
        }
    }

    fn listing(paths: &[&Path]) -> HostPolicy {
        HostPolicy {
            allowed_host_paths: paths.iter().map(|path| (*path).to_owned()).collect(),
            ..policy()
        }
    }

    #[test]
    fn r4_no_path_of_the_host_is_open_unless_the_settings_name_it() {
        for path in [
            "/",
            "/etc",
            "/etc/shadow",
            "/usr/local/bin",
            "/boot",
            "/var/spool/cron",
            "/home/x/.ssh",
            "/var/lib/containerd",
            "/dev",
            "/proc/1/root",
            "/run/x",
            "/srv/app",
            "/srv/../etc",
            "relative",
            "//etc",
        ] {
            let refused = policy().check(&bind(path)).unwrap_err().to_string();
            assert!(refused.contains(path) && refused.contains("policy."), "{refused}");
        }
    }

    #[test]
    fn t16_hooks_are_run_only_as_far_as_the_settings_allow_them() {
        let hooks = [crate::samples::hook("migrate", HookWhen::PreDeploy, "v1")];
        let of = |allow_hooks| HostPolicy {
            allow_hooks,
            ..policy()
        };
        let named = |repository: &str| AllowHooks::From([repository.to_owned()].into());
        assert_eq!(policy().check_hooks(&hooks), Ok(()));
        assert_eq!(of(named(&hooks[0].image.repository)).check_hooks(&hooks), Ok(()));
        for policy in [of(named("registry.example.com")), of(AllowHooks::Never)] {
            let refused = policy.check_hooks(&hooks).unwrap_err().to_string();
            assert!(refused.contains("migrate") && refused.contains("policy.allow_hooks"));
            assert_eq!(policy.check_hooks(&[]), Ok(()));
        }
    }

    #[test]
    fn r4_listed_paths_are_open_with_what_is_below_them() {
        let policy = listing(&[Path::new("/srv/app")]);
        for path in ["/srv/app", "/srv/app/data", "/srv/./app"] {
            assert_eq!(policy.check(&bind(path)), Ok(()), "{path}");
        }
        for path in ["/srv/application", "/srv", "/opt", "/srv/app/../x"] {
            assert!(policy.check(&bind(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn r4_a_link_counts_as_what_it_leads_to() {
        let dir = tempfile::tempdir().unwrap();
        let policy = listing(&[dir.path()]);
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", dir.path().join("loose")).unwrap();
        for path in ["link", "link/passwd", "loose"] {
            assert!(policy.check(&bind(dir.path().join(path))).is_err(), "{path}");
        }
        assert_eq!(policy.check(&bind(dir.path().join("plain"))), Ok(()));
    }

    #[test]
    fn r4_the_engines_socket_needs_a_setting_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("engine.sock");
        std::fs::write(&socket, "").unwrap();
        let mut policy = HostPolicy {
            engine_socket: Some(socket.clone()),
            ..listing(&[Path::new("/")])
        };
        for path in [&socket, dir.path(), Path::new("/")] {
            let refused = policy.check(&bind(path)).unwrap_err();
            assert!(matches!(refused, Forbidden::EngineSocket { .. }), "{refused}");
            assert!(refused.to_string().contains("policy.allow_engine_socket"));
        }
        policy.allow_engine_socket = true;
        policy.allowed_host_paths.clear();
        assert_eq!(policy.check(&bind(&socket)), Ok(()));
        assert!(policy.check(&bind(dir.path())).is_err());
        policy.allowed_host_paths.push(dir.path().to_owned());
        assert_eq!(policy.check(&bind(dir.path())), Ok(()));
    }

    #[test]
    fn r4_the_agents_own_state_is_never_open() {
        let dir = tempfile::tempdir().unwrap();
        let policy = HostPolicy {
            state_dir: Some(dir.path().join("agent")),
            allow_engine_socket: true,
            ..listing(&[Path::new("/")])
        };
        for path in ["agent", "agent/identity", ""] {
            let refused = policy.check(&bind(dir.path().join(path))).unwrap_err();
            assert!(matches!(refused, Forbidden::AgentState { .. }), "{refused}");
        }
        assert_eq!(policy.check(&bind(dir.path().join("other"))), Ok(()));
    }

    #[test]
    fn r4_capabilities_are_the_usual_ones_and_those_that_the_settings_name() {
        let adding = |name: &str| with(|spec| spec.cap_add.push(name.to_owned()));
        for usual in ["NET_BIND_SERVICE", "cap_chown", "Kill"] {
            assert_eq!(policy().check(&adding(usual)), Ok(()), "{usual}");
        }
        for more in [
            "all",
            "CAP_ALL",
            "SYS_ADMIN",
            "cap_sys_ptrace",
            "NET_ADMIN",
            "DAC_READ_SEARCH",
            "",
        ] {
            let refused = policy().check(&adding(more)).unwrap_err().to_string();
            assert!(refused.contains("policy.allowed_capabilities"), "{refused}");
        }
        let some = HostPolicy {
            allowed_capabilities: BTreeSet::from(["NET_ADMIN".to_owned()]),
            ..policy()
        };
        assert_eq!(some.check(&adding("cap_net_admin")), Ok(()));
        assert!(some.check(&adding("SYS_ADMIN")).is_err());
        assert!(some.check(&adding("ALL")).is_err());
        let every = HostPolicy {
            allowed_capabilities: BTreeSet::from(["ALL".to_owned()]),
            ..policy()
        };
        assert_eq!(every.check(&adding("ALL")), Ok(()));
        assert_eq!(every.check(&adding("SYS_ADMIN")), Ok(()));
    }

    #[test]
    fn r4_options_that_may_switch_a_confinement_off_are_refused() {
        for option in [
            "seccomp=unconfined",
            "seccomp={\"defaultAction\":\"SCMP_ACT_ALLOW\"}",
            "apparmor:unconfined",
            "apparmor=mine",
            "systempaths=unconfined",
            "label=disable",
            "label:type:spc_t",
            "unmask=ALL",
        ] {
            let loose = with(|spec| spec.security_opt.push(option.to_owned()));
            let refused = policy().check(&loose).unwrap_err().to_string();
            assert!(refused.contains(option), "{refused}");
            let allowed = HostPolicy {
                allow_unconfined: true,
                ..policy()
            };
            assert_eq!(allowed.check(&loose), Ok(()));
        }
        for option in [
            "no-new-privileges:true",
            "no-new-privileges",
            "seccomp=builtin",
            "label=level:s0:c1",
        ] {
            let strict = with(|spec| spec.security_opt.push(option.to_owned()));
            assert_eq!(policy().check(&strict), Ok(()), "{option}");
        }
    }
}
