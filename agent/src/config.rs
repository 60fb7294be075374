//! Settings of the agent: a TOML file, environment variables (`SEALIFT_AGENT_*`) over it, flags over both, and `DOCKER_HOST` below
//! all of them. Unknown names are refused, and everything is checked before anything starts.

mod compose;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::{Component, Path, PathBuf},
};

use sealift_common::{name::Name, program};
use serde::Deserialize;

use crate::{
    compose::ComposeConfig,
    identity::OrchestratorEndpoint,
    policy::{AllowHooks, HostPolicy, capability},
    program::UpdatePolicy,
    prune::PrunePolicy,
};

pub use compose::{ComposeSettings, HostFilesSettings};

/// Largest settings file.
const FILE_BYTES: u64 = 64 * 1024;
/// Bytes of the unit in which space is set.
const MIB: u64 = 1024 * 1024;
/// Most publishers of programs.
const PUBLISHERS: usize = 8;

/// Settings as files, variables and flags give them; what is missing gets its default.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// Where identity, journal and stickers are kept. Default `/var/lib/sealift-agent`.
    pub state_dir: Option<PathBuf>,
    /// The orchestrator, `https://host:port`. Default: the one that the agent was enrolled at.
    pub orchestrator: Option<String>,
    /// The container engine.
    pub engine: EngineSettings,
    /// Logs.
    pub log: LogSettings,
    /// What orders may ask of the host.
    pub policy: PolicySettings,
    /// Which images are taken away from the host.
    pub prune: PruneSettings,
    /// The host's Compose.
    pub compose: ComposeSettings,
    /// The agent's own program.
    pub update: UpdateSettings,
}

/// Section `[update]`. Only the file has it: it belongs to whoever runs the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct UpdateSettings {
    /// Public keys of those who may sign programs of the agent, `ed25519:` and 64 hex digits each. Default: none, and no order
    /// exchanges the agent's program.
    pub publishers: Option<Vec<String>>,
    /// No program before this version. Default: that of the packaged program.
    pub oldest: Option<String>,
    /// The one target that may exchange the program, `environment/name`. Default: the first that did.
    pub target: Option<String>,
}

/// Section `[prune]`. Only the file has it: it belongs to whoever runs the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PruneSettings {
    /// Whether images are taken away at all. Default: yes.
    pub enabled: Option<bool>,
    /// The newest images of each repository that stay, whatever their age. Default 3.
    pub keep_last: Option<u32>,
    /// Images that an order asked for within so many days stay, unless the disk is low. Default 14.
    pub keep_days: Option<u32>,
    /// Less free space than this on the engine's disk is low. Default 2048.
    pub min_free_mib: Option<u64>,
}

/// Section `[policy]`. Only the file has it: it belongs to whoever runs the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySettings {
    /// Paths of the host that containers may mount, with what is below them. Default: none. Engines follow paths anew at each start of a
    /// container: who may write to one of them can have what others mount below it lead anywhere.
    pub allowed_host_paths: Option<Vec<PathBuf>>,
    /// Capabilities that containers may add besides those that the engine gives every container; `ALL` is every one. Default: none.
    pub allowed_capabilities: Option<Vec<String>>,
    /// Whether containers may mount the engine's socket, which makes them root of the host. Default: no.
    pub allow_engine_socket: Option<bool>,
    /// Whether security options may switch a confinement off (`seccomp=unconfined`, profiles and the like). Default: no.
    pub allow_unconfined: Option<bool>,
    /// Whether releases may run hooks. Default: yes.
    pub allow_hooks: Option<bool>,
    /// Hooks run only from images of these repositories, written in full (`docker.io/library/alpine`). Default: from any.
    pub hook_repositories: Option<Vec<String>>,
    /// For orders of these environments: what is set here holds in place of what is set above.
    pub environments: BTreeMap<Name, Self>,
}

/// Section `[engine]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct EngineSettings {
    /// Socket of the engine's API, Docker's or Podman's. Default: `DOCKER_HOST`, so that the agent and the engine's other tools mean
    /// the same engine, else `unix:///var/run/docker.sock`.
    pub socket: Option<String>,
    /// The Docker configuration file with the registries' credentials. Default: none is used.
    pub docker_config_file: Option<PathBuf>,
}

/// Section `[log]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// What is logged: `info` (default), `debug`, or a filter such as `sealift_agent=debug,warn`.
    pub level: Option<String>,
    /// How it is written. Default `text`.
    pub format: Option<LogFormat>,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object per line.
    Json,
}

/// Checked settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Where identity, journal and stickers are kept.
    pub state_dir: PathBuf,
    /// The orchestrator, when it is not the one of the enrolment.
    pub orchestrator: Option<OrchestratorEndpoint>,
    /// Socket of the engine's API.
    pub engine_socket: String,
    /// The Docker configuration file with the registries' credentials.
    pub docker_config_file: Option<PathBuf>,
    /// What is logged.
    pub log_level: String,
    /// How it is written.
    pub log_format: LogFormat,
    /// What orders may ask of the host.
    pub policy: HostPolicy,
    /// Which images are taken away from the host.
    pub prune: PrunePolicy,
    /// The host's Compose.
    pub compose: ComposeConfig,
    /// Who may exchange the agent's own program.
    pub update: UpdatePolicy,
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is larger than any settings file.
    #[error("{0} is larger than 64 KiB")]
    TooLarge(PathBuf),
    /// The file is not TOML of this shape.
    #[error("{path} is not a settings file")]
    Parse {
        /// The file.
        path: PathBuf,
        /// Why, with line and column.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value is not one that can be used.
    #[error("{name}: {problem}")]
    Invalid {
        /// The setting.
        name: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl Settings {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Read {
            path: path.to_owned(),
            source,
        };
        if std::fs::metadata(path).map_err(unreadable)?.len() > FILE_BYTES {
            return Err(ConfigError::TooLarge(path.to_owned()));
        }
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        toml::from_str(&text).map_err(|source| ConfigError::Parse {
            path: path.to_owned(),
            source: Box::new(source),
        })
    }

    /// What the variable `DOCKER_HOST` says of the engine.
    #[must_use]
    pub fn of_docker_host(value: Option<String>) -> Self {
        Self {
            engine: EngineSettings {
                socket: value.filter(|text| !text.is_empty()),
                ..EngineSettings::default()
            },
            ..Self::default()
        }
    }

    /// These settings where they say something, `below` elsewhere.
    #[must_use]
    pub fn over(self, below: Self) -> Self {
        Self {
            state_dir: self.state_dir.or(below.state_dir),
            orchestrator: self.orchestrator.or(below.orchestrator),
            engine: EngineSettings {
                socket: self.engine.socket.or(below.engine.socket),
                docker_config_file: self.engine.docker_config_file.or(below.engine.docker_config_file),
            },
            log: LogSettings {
                level: self.log.level.or(below.log.level),
                format: self.log.format.or(below.log.format),
            },
            policy: self.policy.over(below.policy),
            compose: self.compose.over(below.compose),
            prune: PruneSettings {
                enabled: self.prune.enabled.or(below.prune.enabled),
                keep_last: self.prune.keep_last.or(below.prune.keep_last),
                keep_days: self.prune.keep_days.or(below.prune.keep_days),
                min_free_mib: self.prune.min_free_mib.or(below.prune.min_free_mib),
            },
            update: UpdateSettings {
                publishers: self.update.publishers.or(below.update.publishers),
                oldest: self.update.oldest.or(below.update.oldest),
                target: self.update.target.or(below.update.target),
            },
        }
    }

    /// Fills in defaults and checks everything.
    pub fn check(self) -> Result<Config, ConfigError> {
        let invalid = |name, problem: &str| ConfigError::Invalid {
            name,
            problem: problem.to_owned(),
        };
        let state_dir = self
            .state_dir
            .unwrap_or_else(|| PathBuf::from("/var/lib/sealift-agent"));
        if !state_dir.is_absolute() {
            return Err(invalid(
                "state_dir",
                "must be an absolute path, here and as --state-dir",
            ));
        }
        let engine_socket = self
            .engine
            .socket
            .unwrap_or_else(|| "unix:///var/run/docker.sock".to_owned());
        let socket_path = engine_socket.strip_prefix("unix://").map(PathBuf::from);
        if !socket_path.as_deref().is_some_and(Path::is_absolute) {
            let problem = format!(
                "{engine_socket:?} is not unix:// and an absolute path; name the engine's socket in engine.socket (it counts more than DOCKER_HOST)"
            );
            return Err(invalid("engine.socket", &problem));
        }
        let orchestrator = self
            .orchestrator
            .map(|text| text.parse::<OrchestratorEndpoint>())
            .transpose()
            .map_err(|error| invalid("orchestrator", &error.to_string()))?;
        let policy = self.policy.check(socket_path.as_deref(), &state_dir)?;
        let usual = PrunePolicy::default();
        let given = self.prune;
        let prune = PrunePolicy {
            enabled: given.enabled.unwrap_or(usual.enabled),
            keep_last: given.keep_last.map_or(usual.keep_last, |last| last as usize),
            keep: given
                .keep_days
                .map_or(usual.keep, |days| chrono::TimeDelta::days(days.into())),
            min_free: given
                .min_free_mib
                .map_or(usual.min_free, |mib| mib.saturating_mul(MIB)),
        };
        if prune.keep_last == 0 {
            let problem = "must be at least 1: what was replaced last may be needed again";
            return Err(invalid("prune.keep_last", problem));
        }
        let compose = self.compose.check(&state_dir)?;
        let update = self.update.check()?;
        Ok(Config {
            update,
            compose,
            policy,
            prune,
            state_dir,
            orchestrator,
            engine_socket,
            docker_config_file: self.engine.docker_config_file,
            log_level: self.log.level.unwrap_or_else(|| "info".to_owned()),
            log_format: self.log.format.unwrap_or_default(),
        })
    }
}

impl UpdateSettings {
    fn check(self) -> Result<UpdatePolicy, ConfigError> {
        let invalid = |name, problem: String| ConfigError::Invalid { name, problem };
        let given = self.publishers.unwrap_or_default();
        if given.len() > PUBLISHERS {
            let problem = format!("must hold at most {PUBLISHERS} keys");
            return Err(invalid("update.publishers", problem));
        }
        let read = |text: &String| {
            program::publisher(text).map_err(|_| {
                let problem = "must hold public keys as `sealift agent sign-program` prints them: ed25519: and 64 hex digits";
                invalid("update.publishers", problem.to_owned())
            })
        };
        let oldest = self.oldest.map(|text| text.parse()).transpose();
        Ok(UpdatePolicy {
            publishers: given.iter().map(read).collect::<Result<_, _>>()?,
            oldest: oldest.map_err(|error| invalid("update.oldest", format!("is no version: {error}")))?,
            target: self.target.map(|text| target(&text)).transpose()?,
        })
    }
}

/// Reads `environment/name`.
fn target(text: &str) -> Result<(Name, Name), ConfigError> {
    let parts = text.split_once('/');
    parts
        .and_then(|(environment, name)| Some((environment.parse().ok()?, name.parse().ok()?)))
        .ok_or_else(|| ConfigError::Invalid {
            name: "update.target",
            problem: "must name an environment and a target: agents/web-1".to_owned(),
        })
}

impl PolicySettings {
    /// These settings where they say something, `below` elsewhere.
    fn over(self, below: Self) -> Self {
        let mut environments = below.environments;
        environments.extend(self.environments);
        Self {
            allowed_host_paths: self.allowed_host_paths.or(below.allowed_host_paths),
            allowed_capabilities: self.allowed_capabilities.or(below.allowed_capabilities),
            allow_engine_socket: self.allow_engine_socket.or(below.allow_engine_socket),
            allow_unconfined: self.allow_unconfined.or(below.allow_unconfined),
            allow_hooks: self.allow_hooks.or(below.allow_hooks),
            hook_repositories: self.hook_repositories.or(below.hook_repositories),
            environments,
        }
    }

    fn check(mut self, engine_socket: Option<&Path>, state_dir: &Path) -> Result<HostPolicy, ConfigError> {
        let invalid = |name, problem: &str| ConfigError::Invalid {
            name,
            problem: problem.to_owned(),
        };
        let mut environments = BTreeMap::new();
        for (name, of_environment) in std::mem::take(&mut self.environments) {
            if !of_environment.environments.is_empty() {
                return Err(invalid("policy.environments", "an environment holds no others"));
            }
            let whole = of_environment.over(self.clone());
            environments.insert(name, whole.check(engine_socket, state_dir)?);
        }
        let allowed_host_paths = self.allowed_host_paths.unwrap_or_default();
        let climbs = |path: &PathBuf| {
            !path.is_absolute() || path.components().any(|part| part == Component::ParentDir)
        };
        if allowed_host_paths.iter().any(climbs) {
            let problem = "must hold absolute paths without ..";
            return Err(invalid("policy.allowed_host_paths", problem));
        }
        let allowed_capabilities: BTreeSet<String> = self
            .allowed_capabilities
            .unwrap_or_default()
            .iter()
            .map(|name| capability(name))
            .collect();
        let odd =
            |name: &String| name.is_empty() || !name.bytes().all(|b| b.is_ascii_uppercase() || b == b'_');
        if allowed_capabilities.iter().any(odd) {
            let problem = "must hold names such as NET_ADMIN, or ALL";
            return Err(invalid("policy.allowed_capabilities", problem));
        }
        Ok(HostPolicy {
            allowed_host_paths,
            allowed_capabilities,
            allow_engine_socket: self.allow_engine_socket.unwrap_or(false),
            allow_unconfined: self.allow_unconfined.unwrap_or(false),
            allow_hooks: match (self.allow_hooks, self.hook_repositories) {
                (Some(false), _) => AllowHooks::Never,
                (_, Some(repositories)) => AllowHooks::From(repositories.into_iter().collect()),
                (_, None) => AllowHooks::All,
            },
            engine_socket: engine_socket.map(Into::into),
            state_dir: Some(state_dir.to_owned()),
            files_dir: None,
            environments,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, toml::de::Error> {
        toml::from_str(text)
    }

    #[test]
    fn an_empty_file_means_the_defaults() {
        let config = parse("").unwrap().check().unwrap();
        assert_eq!(config.state_dir, Path::new("/var/lib/sealift-agent"));
        assert_eq!(config.engine_socket, "unix:///var/run/docker.sock");
        assert_eq!(config.orchestrator, None);
    }

    #[test]
    fn the_packaged_file_says_the_defaults() {
        let packaged = parse(include_str!("../../deploy/config/sealift-agent.toml")).unwrap();
        assert_eq!(packaged.check().unwrap(), Settings::default().check().unwrap());
    }

    #[test]
    fn unknown_names_are_refused() {
        for text in [
            "statedir = '/x'",
            "[engine]\nsock = 'x'",
            "[log]\nlevel = 'info'\ncolour = true",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = parse("orchestrator = 'https://a:1'\n[log]\nformat = 'json'").unwrap();
        let flags = Settings {
            orchestrator: Some("https://b:2".into()),
            ..Settings::default()
        };
        let config = flags.over(file).check().unwrap();
        assert_eq!(config.orchestrator.unwrap().to_string(), "https://b:2");
        assert_eq!(config.log_format, LogFormat::Json);
    }

    #[test]
    fn docker_host_names_the_engine_when_no_setting_does() {
        let around = || Settings::of_docker_host(Some("unix:///tmp/own.sock".into()));
        let config = parse("").unwrap().over(around()).check().unwrap();
        assert_eq!(config.engine_socket, "unix:///tmp/own.sock");
        assert_eq!(config.policy.engine_socket, Some("/tmp/own.sock".into()));
        let file = parse("[engine]\nsocket = 'unix:///run/other.sock'").unwrap();
        assert_eq!(
            file.over(around()).check().unwrap().engine_socket,
            "unix:///run/other.sock"
        );
        let empty = Settings::of_docker_host(Some(String::new()));
        assert_eq!(
            empty.check().unwrap().engine_socket,
            "unix:///var/run/docker.sock"
        );
        // An engine elsewhere is not quietly exchanged for the one of this host.
        let far = Settings::of_docker_host(Some("tcp://10.0.0.1:2376".into()));
        assert!(far.check().unwrap_err().to_string().contains("engine.socket"));
    }

    #[test]
    fn nothing_of_the_host_is_open_by_default() {
        let policy = parse("").unwrap().check().unwrap().policy;
        assert!(policy.allowed_host_paths.is_empty() && policy.allowed_capabilities.is_empty());
        assert!(!policy.allow_engine_socket && !policy.allow_unconfined);
        assert_eq!(policy.allow_hooks, AllowHooks::All);
        let hooks = |text: &str| parse(text).unwrap().check().unwrap().policy.allow_hooks;
        let listed = hooks("[policy]\nhook_repositories = ['r.example/tool']");
        assert_eq!(listed, AllowHooks::From(["r.example/tool".to_owned()].into()));
        assert_eq!(
            hooks("[policy]\nallow_hooks = false\nhook_repositories = ['r.example/tool']"),
            AllowHooks::Never
        );
        let named = parse("[policy]\nallowed_capabilities = ['cap_net_admin', 'SYS_TIME']").unwrap();
        let named = named.check().unwrap().policy.allowed_capabilities;
        assert_eq!(named.into_iter().collect::<Vec<_>>(), ["NET_ADMIN", "SYS_TIME"]);
    }

    #[test]
    fn an_environment_changes_only_what_it_names() {
        let text = "[policy]\nallowed_host_paths = ['/srv']\nallow_hooks = false\n\
                    [policy.environments.production]\nallowed_host_paths = []\nallow_engine_socket = true";
        let policy = parse(text).unwrap().check().unwrap().policy;
        let production = policy.of(&"production".parse().unwrap());
        assert!(production.allowed_host_paths.is_empty() && production.allow_engine_socket);
        assert_eq!(production.allow_hooks, AllowHooks::Never);
        assert_eq!(production.engine_socket, policy.engine_socket);
        assert_eq!(production.state_dir, policy.state_dir);
        let staging = policy.of(&"staging".parse().unwrap());
        assert_eq!(staging, &policy);
        assert!(!staging.allow_engine_socket);
    }

    #[test]
    fn no_publisher_is_trusted_by_default() {
        assert_eq!(
            parse("").unwrap().check().unwrap().update,
            UpdatePolicy::default()
        );
        let key = sealift_common::keys::SigningKey::from_seed(&[7; 32]).public();
        let text = format!(
            "[update]\npublishers = ['{}']\noldest = '1.2.0'\ntarget = 'agents/web-1'",
            program::publisher_text(&key)
        );
        let update = parse(&text).unwrap().check().unwrap().update;
        assert_eq!(update.publishers, [key]);
        assert_eq!(update.oldest, Some("1.2.0".parse().unwrap()));
        let target = ("agents".parse().unwrap(), "web-1".parse().unwrap());
        assert_eq!(update.target, Some(target));
    }

    #[test]
    fn values_are_checked() {
        for text in [
            "state_dir = 'relative'",
            "[engine]\nsocket = 'tcp://1.2.3.4:2375'",
            "orchestrator = 'http://a:1'",
            "orchestrator = 'https://a'",
            "orchestrator = 'https://user@a:1'",
            "orchestrator = 'https://a:1/path'",
            "[policy]\nallowed_host_paths = ['data']",
            "[policy]\nallowed_host_paths = ['/srv/../etc']",
            "[policy]\nallowed_capabilities = ['NET ADMIN']",
            "[policy]\nallowed_capabilities = ['CAP_']",
            "[policy.environments.prod]\nallowed_host_paths = ['data']",
            "[policy.environments.prod.environments.prod]",
            "[prune]\nkeep_last = 0",
            "[update]\npublishers = ['00']",
            "[update]\noldest = '1'",
            "[update]\ntarget = 'web-1'",
        ] {
            assert!(parse(text).unwrap().check().is_err(), "{text}");
        }
    }
}
