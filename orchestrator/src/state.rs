//! What every part of the orchestrator shares.

use std::{fmt, sync::Arc};

use chrono::{DateTime, Utc};
use sealift_common::{id::ReplicaId, time::Clock};
use sealift_store::Db;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    config::Config,
    gateway::presence::Presence,
    identity::{Ca, OrchestratorKeys, ServerCertificate},
    loops::{health::LoopHealth, supervisor::Supervisor},
    registry::Registry,
    revocations::Revocations,
};

/// Who this orchestrator is.
#[derive(Debug)]
pub struct Identity {
    /// The certificate authority.
    pub ca: Arc<Ca>,
    /// Keys that sign orders and countersign evidence.
    pub keys: OrchestratorKeys,
    /// The certificate that clients and agents see.
    pub server: Arc<ServerCertificate>,
}

/// What every part of the orchestrator shares. Cheap to clone.
#[derive(Clone)]
pub struct App {
    /// The store.
    pub db: Db,
    /// The present.
    pub clock: Arc<dyn Clock>,
    /// CA and keys.
    pub identity: Arc<Identity>,
    /// Which agents are connected here.
    pub presence: Arc<Presence>,
    /// Image registries.
    pub registry: Arc<Registry>,
    /// How the background loops are.
    pub loops: LoopHealth,
    /// Settings.
    pub config: Arc<Config>,
    /// Ends streams of revoked principals.
    pub revocations: Arc<Revocations>,
    /// Cancelled when the orchestrator goes down.
    pub shutdown: CancellationToken,
    /// Starts what must not end by itself.
    pub supervisor: Supervisor,
    /// Everything that runs beside calls; waited for at the end.
    pub tasks: TaskTracker,
    /// This process.
    pub replica: ReplicaId,
    /// When it started.
    pub started_at: DateTime<Utc>,
}

impl fmt::Debug for App {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("App")
            .field("replica", &self.replica)
            .finish_non_exhaustive()
    }
}
