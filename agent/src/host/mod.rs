//! Host: the container engine as the agent needs it. Plain data in and out; every call has its own deadline and is safe to
//! repeat (a container that is already there, started, stopped or gone is not an error).

pub mod contents;
pub mod docker;
pub mod fake;
pub mod upkeep;

use std::{collections::BTreeMap, future::Future, net::IpAddr, time::Duration};

use chrono::{DateTime, Utc};
use sealift_common::{
    digest::Digest,
    evidence::EngineInfo,
    failure::{Failure, FailureCode},
    id::TargetId,
    manifest::{PinnedImage, RestartPolicy, ServiceSpec},
    name::ServiceName,
    observation::{ContainerHealth, ContainerState, EngineEvent},
};
use tokio::sync::mpsc;

use crate::labels::Labels;

/// What the engine could not do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct HostError(pub Failure);

impl HostError {
    /// An error with a code.
    pub fn new(code: FailureCode, summary: impl Into<String>) -> Self {
        Self(Failure::new(code, summary))
    }

    /// Whether the engine was away or slow, so that the same call may work in a moment.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.0.code,
            FailureCode::EngineUnavailable | FailureCode::EngineTimeout
        )
    }
}

impl From<HostError> for Failure {
    fn from(value: HostError) -> Self {
        value.0
    }
}

/// An image that the engine has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LocalImage {
    /// The engine's identifier.
    pub id: String,
    /// The registry digests under which it knows it.
    pub digests: Vec<Digest>,
    /// `os/architecture`.
    pub platform: String,
}

/// A container as lists show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    /// The engine's identifier.
    pub id: String,
    /// Labels.
    pub labels: Labels,
    /// Image identifier.
    pub image_id: String,
    /// State.
    pub state: ContainerState,
    /// Health.
    pub health: ContainerHealth,
}

/// A container in detail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspected {
    /// The engine's identifier.
    pub id: String,
    /// Labels.
    pub labels: Labels,
    /// Image identifier.
    pub image_id: String,
    /// The image reference that it was made with.
    pub image: String,
    /// State.
    pub state: ContainerState,
    /// Health.
    pub health: ContainerHealth,
    /// Health checks that failed in a row.
    pub failing_streak: u32,
    /// Output of the last health check.
    pub health_output: String,
    /// Exit code of the last run.
    pub exit_code: i64,
    /// Whether the kernel ended it for lack of memory.
    pub oom_killed: bool,
    /// When it was last started, as the engine spells it: another value is another run.
    pub started_at: String,
    /// How often the engine restarted it.
    pub restart_count: u64,
    /// Restart policy.
    pub restart: RestartPolicy,
    /// Time between the stop signal and SIGKILL.
    pub grace: Duration,
    /// Aliases by network, without what the engine adds by itself.
    pub aliases: BTreeMap<String, Vec<String>>,
    /// Addresses by network.
    pub addresses: BTreeMap<String, IpAddr>,
    /// Digest of all that was given when it was made and that can change later: image, command, environment, limits, restart
    /// policy, mounts, ports, capabilities, networks.
    pub fingerprint: Digest,
}

/// A container to make.
#[derive(Debug, Clone)]
pub struct NewContainer {
    /// Its name.
    pub name: String,
    /// Its service.
    pub service: ServiceName,
    /// Its description.
    pub spec: ServiceSpec,
    /// Its labels.
    pub labels: Labels,
    /// Networks of the engine with the aliases on each; never empty.
    pub networks: Vec<(String, Vec<String>)>,
    /// Names of the engine's volumes by their names in the manifest.
    pub volumes: BTreeMap<ServiceName, String>,
}

/// A network to make.
#[derive(Debug, Clone)]
pub struct NewNetwork {
    /// Its name.
    pub name: String,
    /// No way out.
    pub internal: bool,
    /// Its labels.
    pub labels: Labels,
}

/// Something happened to a container or image that may concern us.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostEvent {
    /// The target of the container's label; `None` for images.
    pub target: Option<TargetId>,
    /// The container, or the image.
    pub id: String,
    /// What happened, when it was to a container whose labels are ours.
    pub event: Option<EngineEvent>,
}

/// A container engine.
pub trait Host: contents::Contents + upkeep::Upkeep + Send + Sync + 'static {
    /// What the engine is.
    fn engine(&self) -> impl Future<Output = Result<EngineInfo, HostError>> + Send;

    /// Looks for an image by reference or identifier; `None` when the engine does not have it.
    fn image(&self, reference: &str) -> impl Future<Output = Result<Option<LocalImage>, HostError>> + Send;

    /// Pulls an image by digest. Lines of progress go to `progress` as long as it takes them. That the call ends well does not
    /// mean that the image is there: look afterwards.
    fn pull(
        &self,
        image: &PinnedImage,
        progress: &mpsc::Sender<String>,
        deadline: Duration,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Makes a network unless it is there.
    fn ensure_network(&self, network: &NewNetwork) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Names of the networks with these labels.
    fn networks(&self, labels: &Labels) -> impl Future<Output = Result<Vec<String>, HostError>> + Send;

    /// Removes a network; one that is gone or still used is left as it is.
    fn remove_network(&self, name: &str) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Makes a volume unless it is there.
    fn ensure_volume(
        &self,
        name: &str,
        labels: &Labels,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// All containers, running or not, with these labels; an empty value means any.
    fn list(&self, labels: &Labels) -> impl Future<Output = Result<Vec<Listed>, HostError>> + Send;

    /// One container; `None` when there is none.
    fn inspect(&self, id: &str) -> impl Future<Output = Result<Option<Inspected>, HostError>> + Send;

    /// Makes a container, stopped, on all its networks. One of the same name with the same labels is taken as made.
    fn create(&self, container: &NewContainer) -> impl Future<Output = Result<String, HostError>> + Send;

    /// Puts a container on a network with exactly these aliases. If it is on it with others, it leaves for an instant.
    fn join_network(
        &self,
        id: &str,
        network: &str,
        aliases: &[String],
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Sets the restart policy. A container that is gone is left alone.
    fn set_restart(
        &self,
        id: &str,
        policy: RestartPolicy,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Starts a container unless it runs.
    fn start(&self, id: &str) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Stops a container unless it is stopped or gone; `grace` is its own grace period.
    fn stop(&self, id: &str, grace: Duration) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Removes a container and its anonymous volumes, running or not, unless it is gone.
    fn remove(&self, id: &str) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Runs a command in a container and gives its exit code.
    fn exec(
        &self,
        id: &str,
        command: &[String],
        deadline: Duration,
    ) -> impl Future<Output = Result<i64, HostError>> + Send;

    /// Sends what a container has said since (to the second) and all that follows to `lines`, until it ends or nobody listens.
    fn logs(
        &self,
        id: &str,
        since: DateTime<Utc>,
        lines: mpsc::Sender<String>,
    ) -> impl Future<Output = Result<(), HostError>> + Send;

    /// Sends events to `events` until the engine ends the stream or nobody listens.
    fn watch(&self, events: mpsc::Sender<HostEvent>) -> impl Future<Output = Result<(), HostError>> + Send;
}
