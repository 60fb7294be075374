//! Host policy: what orders may ask of this host, whoever signed them. Set on the host alone (section `[policy]` of the settings),
//! so that nobody who may only deploy becomes root of the host.

use std::path::{Component, Path, PathBuf};

use sealift_common::manifest::{Manifest, MountSpec, ServiceSpec};

/// Paths that containers get nothing of by default, nor of what is below them, nor a directory that holds them.
const RESERVED: &[&str] = &["/", "/etc", "/proc", "/sys", "/root", "/var/lib/docker", "/run"];

/// What orders may ask of the host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostPolicy {
    /// `policy.allowed_host_paths`: containers may mount these and what is below. `None`: everything that is not reserved.
    pub allowed_host_paths: Option<Vec<PathBuf>>,
    /// `policy.allow_all_capabilities`: `cap_add: [ALL]`.
    pub allow_all_capabilities: bool,
    /// `policy.allow_engine_socket`: the engine's socket, or a directory that holds it.
    pub allow_engine_socket: bool,
    /// `policy.allow_unconfined`: security options that switch a confinement off.
    pub allow_unconfined: bool,
    /// The engine's socket.
    pub engine_socket: Option<PathBuf>,
    /// The agent's own state.
    pub state_dir: Option<PathBuf>,
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
    /// All capabilities.
    #[error(
        "service {service} adds all capabilities, which this host does not allow (policy.allow_all_capabilities of the agent's settings)"
    )]
    Capabilities {
        /// The service.
        service: String,
    },
    /// A confinement is switched off.
    #[error(
        "service {service} asks for security_opt {option}, which this host does not allow (policy.allow_unconfined of the agent's settings)"
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

    fn check_service(&self, service: &str, spec: &ServiceSpec) -> Result<(), Forbidden> {
        for mount in &spec.volumes {
            if let MountSpec::Bind { source, .. } = mount {
                self.check_path(service, source)?;
            }
        }
        let is_all = |name: &String| {
            let name = name.to_ascii_uppercase();
            name == "ALL" || name == "CAP_ALL"
        };
        if !self.allow_all_capabilities && spec.cap_add.iter().any(is_all) {
            return Err(Forbidden::Capabilities {
                service: service.to_owned(),
            });
        }
        let unconfined = spec.security_opt.iter().find(|option| switches_off(option));
        if let (false, Some(option)) = (self.allow_unconfined, unconfined) {
            return Err(Forbidden::Unconfined {
                service: service.to_owned(),
                option: option.clone(),
            });
        }
        Ok(())
    }

    fn check_path(&self, service: &str, source: &str) -> Result<(), Forbidden> {
        let refused = || Forbidden::Path {
            service: service.to_owned(),
            path: source.to_owned(),
        };
        let path = canonical(Path::new(source)).ok_or_else(refused)?;
        let socket = self.engine_socket.as_deref().and_then(canonical);
        if let Some(socket) = &socket
            && socket.starts_with(&path)
        {
            if !self.allow_engine_socket {
                return Err(Forbidden::EngineSocket {
                    service: service.to_owned(),
                    path: source.to_owned(),
                });
            }
            // The socket alone is named by the setting itself.
            if *socket == path {
                return Ok(());
            }
        }
        let allowed = match &self.allowed_host_paths {
            Some(list) => list
                .iter()
                .filter_map(|allowed| canonical(allowed))
                .any(|allowed| path.starts_with(allowed)),
            None => !self.is_reserved(&path, socket.as_deref()),
        };
        if allowed { Ok(()) } else { Err(refused()) }
    }

    /// Whether `path` (canonical) shares anything with what is reserved.
    fn is_reserved(&self, path: &Path, socket: Option<&Path>) -> bool {
        let own = [
            socket.and_then(Path::parent).map(Path::to_owned),
            self.state_dir.as_deref().and_then(canonical),
        ];
        let fixed = RESERVED.iter().filter_map(|path| canonical(Path::new(path)));
        own.into_iter().flatten().chain(fixed).any(|reserved| {
            let holds_all = reserved == Path::new("/");
            reserved.starts_with(path) || (!holds_all && path.starts_with(&reserved))
        })
    }
}

/// `label` and `systempaths` options are the engine's other words for it.
fn switches_off(option: &str) -> bool {
    let option = option.to_ascii_lowercase();
    option.split_once(['=', ':']).is_some_and(|(name, value)| {
        value.trim() == "unconfined" || (name.trim() == "label" && value.trim() == "disable")
    })
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

    #[test]
    fn r4_reserved_paths_of_the_host_are_refused_and_others_allowed() {
        for path in [
            "/",
            "/etc",
            "/etc/shadow",
            "/proc/1/root",
            "/sys/fs",
            "/root/.ssh",
            "/var/lib/docker/volumes",
            "/var/lib",
            "/var",
            "/run/x",
            "/var/lib/sealift-agent/identity",
            "/srv/../etc",
            "relative",
            "//etc",
            "/etc/./passwd",
        ] {
            let refused = policy().check(&bind(path)).unwrap_err().to_string();
            assert!(refused.contains(path) && refused.contains("policy."), "{refused}");
        }
        for path in ["/srv/app", "/var/lib/app", "/var/log", "/home/x/data", "/opt"] {
            assert_eq!(policy().check(&bind(path)), Ok(()), "{path}");
        }
    }

    #[test]
    fn r4_a_link_to_a_reserved_path_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc", dir.path().join("link")).unwrap();
        std::os::unix::fs::symlink("/nowhere/at/all", dir.path().join("loose")).unwrap();
        for path in ["link", "link/passwd", "loose"] {
            assert!(policy().check(&bind(dir.path().join(path))).is_err(), "{path}");
        }
        assert_eq!(policy().check(&bind(dir.path().join("plain"))), Ok(()));
    }

    #[test]
    fn r4_the_engines_socket_needs_a_setting_of_its_own() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("engine.sock");
        std::fs::write(&socket, "").unwrap();
        let mut policy = HostPolicy {
            engine_socket: Some(socket.clone()),
            ..policy()
        };
        let refused = policy.check(&bind(&socket)).unwrap_err();
        assert!(
            refused.to_string().contains("policy.allow_engine_socket"),
            "{refused}"
        );
        assert!(policy.check(&bind(dir.path())).is_err());
        assert!(policy.check(&bind(dir.path().join("other"))).is_err());
        policy.allowed_host_paths = Some(vec!["/".into()]);
        assert!(matches!(
            policy.check(&bind(&socket)),
            Err(Forbidden::EngineSocket { .. })
        ));
        assert!(matches!(
            policy.check(&bind("/")),
            Err(Forbidden::EngineSocket { .. })
        ));
        assert_eq!(policy.check(&bind("/etc/app")), Ok(()));
        policy.allow_engine_socket = true;
        policy.allowed_host_paths = None;
        assert_eq!(policy.check(&bind(&socket)), Ok(()));
        assert!(policy.check(&bind(dir.path())).is_err());
    }

    #[test]
    fn r4_only_listed_paths_are_allowed_when_there_is_a_list() {
        let policy = HostPolicy {
            allowed_host_paths: Some(vec!["/srv/app".into()]),
            ..policy()
        };
        assert_eq!(policy.check(&bind("/srv/app/data")), Ok(()));
        for path in ["/srv/application", "/srv", "/opt"] {
            assert!(policy.check(&bind(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn r4_all_capabilities_and_missing_confinement_are_refused() {
        let caps = with(|spec| spec.cap_add.push("all".to_owned()));
        assert!(policy().check(&caps).is_err());
        let allowed = HostPolicy {
            allow_all_capabilities: true,
            ..policy()
        };
        assert_eq!(allowed.check(&caps), Ok(()));
        let few = with(|spec| spec.cap_add.push("NET_BIND_SERVICE".to_owned()));
        assert_eq!(policy().check(&few), Ok(()));
        for option in [
            "seccomp=unconfined",
            "apparmor:unconfined",
            "systempaths=unconfined",
            "label=disable",
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
        let strict = with(|spec| spec.security_opt.push("no-new-privileges:true".to_owned()));
        assert_eq!(policy().check(&strict), Ok(()));
    }
}
