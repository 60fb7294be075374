//! The deployable description of a release: a documented subset of compose-spec, every image pinned to a digest.
//!
//! [`crate::compose`] reads it from a compose file; its canonical JSON is what a release's content digest covers, what orders
//! carry and what the agent gives to the engine. Times are milliseconds, sizes bytes; 64-bit numbers are decimal strings.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    canonical::{CanonicalError, decimal, digest},
    digest::Digest,
    hook::HookSpec,
    name::ServiceName,
};

/// All services of a release and what they share.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Services by name.
    pub services: BTreeMap<ServiceName, ServiceSpec>,
    /// Networks that the services share, besides the `default` one that always exists.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<ServiceName, NetworkSpec>,
    /// Named volumes: kept from release to release.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub volumes: BTreeMap<ServiceName, VolumeSpec>,
    /// Hooks, in the order in which those of one time run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<HookSpec>,
}

impl Manifest {
    /// The identity of the content: digest of its canonical bytes.
    pub fn content_digest(&self) -> Result<Digest, CanonicalError> {
        digest(self)
    }

    /// Service names in the order in which they are started: what a service depends on comes before it, ties by name.
    /// Services in a circle (refused when the manifest is read) come last.
    pub fn start_order(&self) -> Vec<&ServiceName> {
        let mut order: Vec<&ServiceName> = Vec::with_capacity(self.services.len());
        loop {
            let ready = self.services.iter().find(|(name, spec)| {
                !order.contains(name) && spec.depends_on.keys().all(|needed| order.contains(&needed))
            });
            match ready {
                Some((name, _)) => order.push(name),
                None => break,
            }
        }
        let rest: Vec<_> = self
            .services
            .keys()
            .filter(|name| !order.contains(name))
            .collect();
        order.extend(rest);
        order
    }
}

/// A project network.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkSpec {
    /// No way out to other networks.
    #[serde(default)]
    pub internal: bool,
    /// An existing network of the engine with this name, not made by us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<String>,
}

/// A named volume.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeSpec {
    /// An existing volume of the engine with this name, not made by us.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external: Option<String>,
}

/// An image pinned to what a registry held when the release was made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedImage {
    /// Full repository with registry host: `docker.io/library/redis`, `registry.acme.com:5000/shop/api`.
    pub repository: String,
    /// The tag that was resolved, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The manifest (or index) digest.
    pub digest: Digest,
}

impl PinnedImage {
    /// The reference to pull: `repository@sha256:…`.
    pub fn pull_reference(&self) -> String {
        format!("{}@{}", self.repository, self.digest)
    }
}

/// One service: what one container is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ServiceSpec {
    /// The image.
    pub image: PinnedImage,
    /// `command`: replaces the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// `entrypoint`: replaces the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// `environment` and the given variables of `env_file`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// `ports`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortSpec>,
    /// `volumes`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<MountSpec>,
    /// `networks` with further aliases; the service's own name is always one. Empty means the `default` network.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<ServiceName, Vec<String>>,
    /// `labels`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// `user`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// `working_dir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// `restart`.
    #[serde(default)]
    pub restart: RestartPolicy,
    /// `healthcheck`: replaces the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<Healthcheck>,
    /// `x-sealift.probe`: a check that the agent makes itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub probe: Option<Probe>,
    /// `read_only`.
    #[serde(default)]
    pub read_only: bool,
    /// `tmpfs`: path to options.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tmpfs: BTreeMap<String, String>,
    /// `cap_add`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// `cap_drop`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// `security_opt`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub security_opt: Vec<String>,
    /// `sysctls`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    /// `ulimits`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ulimits: BTreeMap<String, Ulimit>,
    /// `extra_hosts`: `name:address`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extra_hosts: Vec<String>,
    /// `hostname`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// `stop_signal`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<String>,
    /// `stop_grace_period`: milliseconds between the stop signal and SIGKILL.
    pub stop_grace_period_ms: u32,
    /// `init`.
    #[serde(default)]
    pub init: bool,
    /// `logging`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logging: Option<Logging>,
    /// `deploy.resources.limits`.
    #[serde(default)]
    pub resources: Resources,
    /// `depends_on`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub depends_on: BTreeMap<ServiceName, DependencyCondition>,
    /// `deploy.update_config.order`.
    #[serde(default, skip_serializing_if = "UpdateOrder::is_stop_first")]
    pub update_order: UpdateOrder,
}

/// The network of services that name none.
pub const DEFAULT_NETWORK: &str = "default";

impl ServiceSpec {
    /// Names of its networks.
    pub fn network_names(&self) -> Vec<&str> {
        if self.networks.is_empty() {
            return vec![DEFAULT_NETWORK];
        }
        self.networks.keys().map(ServiceName::as_str).collect()
    }

    /// Whether it mounts paths of the host.
    pub fn has_host_paths(&self) -> bool {
        self.volumes
            .iter()
            .any(|mount| matches!(mount, MountSpec::Bind { .. }))
    }

    /// The digest of everything but the image: two services of the same image differ by it.
    pub fn config_digest(&self) -> Result<Digest, CanonicalError> {
        let mut config = self.clone();
        config.image.tag = None;
        digest(&config)
    }
}

/// Grace period that the engine uses when a service names none.
pub const DEFAULT_STOP_GRACE_PERIOD_MS: u32 = 10_000;

/// Transport protocol of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
}

/// One published port.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortSpec {
    /// Port inside the container.
    pub container: u16,
    /// Port on the host; `None` lets the engine choose.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<u16>,
    /// Address on the host; `None` means all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_ip: Option<std::net::IpAddr>,
    /// Transport.
    #[serde(default)]
    pub protocol: Protocol,
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum MountSpec {
    /// A named volume of the manifest.
    Volume {
        /// Its name in the manifest.
        volume: ServiceName,
        /// Absolute path in the container.
        target: String,
        /// Mounted read-only.
        read_only: bool,
    },
    /// A path of the host.
    Bind {
        /// Absolute path on the host.
        source: String,
        /// Absolute path in the container.
        target: String,
        /// Mounted read-only.
        read_only: bool,
    },
    /// A volume without a name, gone with the container.
    Anonymous {
        /// Absolute path in the container.
        target: String,
    },
}

/// When the engine starts a container again by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "policy", rename_all = "kebab-case", deny_unknown_fields)]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// Always, also after an engine restart.
    Always,
    /// Always, unless it was stopped by hand.
    UnlessStopped,
    /// After a non-zero exit.
    OnFailure {
        /// At most so often; 0 is no limit.
        max_retries: u32,
    },
}

/// A health check that the engine runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Healthcheck {
    /// `NONE`, or `CMD`/`CMD-SHELL` and its arguments; empty keeps the image's test.
    #[serde(default)]
    pub test: Vec<String>,
    /// Time between two checks; `None` keeps the image's or the engine's default, as for all below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u32>,
    /// Time one check may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u32>,
    /// Failures in a row that make it unhealthy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retries: Option<u32>,
    /// Time in which failures do not count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_period_ms: Option<u32>,
}

impl Healthcheck {
    /// Whether it switches the image's own check off.
    pub fn is_disabled(&self) -> bool {
        self.test.first().is_some_and(|word| word == "NONE")
    }
}

/// A check that the agent makes itself, from the host (tcp, http) or through the engine (exec).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Probe {
    /// A TCP connection is accepted.
    Tcp {
        /// Port inside the container.
        port: u16,
    },
    /// An HTTP GET answers 200 to 399.
    Http {
        /// Port inside the container.
        port: u16,
        /// Path, beginning with `/`.
        path: String,
    },
    /// A command inside the container ends with 0.
    Exec {
        /// Program and arguments.
        command: Vec<String>,
    },
}

/// A process limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ulimit {
    /// Soft limit; -1 is none.
    pub soft: i32,
    /// Hard limit; -1 is none.
    pub hard: i32,
}

/// Where the engine sends the output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Logging {
    /// Driver of the engine.
    pub driver: String,
    /// Its options.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}

/// Limits on what the container may use; 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Resources {
    /// Thousandths of a core.
    #[serde(default)]
    pub milli_cpus: u32,
    /// Bytes of memory.
    #[serde(default, with = "decimal")]
    pub memory_bytes: u64,
    /// Processes and threads.
    #[serde(default)]
    pub pids: u32,
}

/// In which order a service's old container gives way to the new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum UpdateOrder {
    /// The old one is stopped, then the new one started.
    #[default]
    StopFirst,
    /// The new one is started and healthy, then the old one is stopped.
    StartFirst,
}

impl UpdateOrder {
    /// Whether it is the one that is meant when nothing is said.
    pub const fn is_stop_first(&self) -> bool {
        matches!(self, Self::StopFirst)
    }
}

/// What must hold of a service before one that depends on it is started.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DependencyCondition {
    /// It was started.
    #[default]
    ServiceStarted,
    /// It is healthy.
    ServiceHealthy,
}
