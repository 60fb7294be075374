//! Inventory: what there is to deploy to. Plain data; the rules that hold between them are the store's constraints.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    condition::{self, Condition},
    id::{AgentId, ComponentId, EnvironmentId, SessionId, TargetId, TenantId, UserId},
    lane::LanePolicy,
    name::{ComponentName, Labels, Name},
    order::Fence,
    phases,
    remedy::Remediation,
    role::Role,
    variables::Variables,
};

/// Owner of everything below. Every query is scoped by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// Identifier.
    pub id: TenantId,
    /// Name.
    pub name: Name,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// A person or machine that calls the operator API.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Identifier.
    pub id: UserId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// Name, unique in the tenant.
    pub name: Name,
    /// What it may do.
    pub role: Role,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

phases! {
    /// Whether an environment is production.
    EnvironmentClass { Production = "production", NonProduction = "non_production" }
}

/// Where releases run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    /// Identifier.
    pub id: EnvironmentId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// Name, unique in the tenant.
    pub name: Name,
    /// For people.
    pub display_name: String,
    /// Promotion order: releases go from low to high.
    pub position: u32,
    /// Production or not.
    pub class: EnvironmentClass,
    /// What Compose fills into the files of releases for compose hosts. Never secret.
    pub variables: Variables,
    /// What is done about drift.
    pub remediation: Remediation,
    /// What becomes of promotions that would have to wait.
    pub lane_policy: LanePolicy,
    /// Counts changes; the etag is made of it.
    pub revision: u64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was put away.
    pub archived_at: Option<DateTime<Utc>>,
}

phases! {
    /// What kind of place a target is.
    TargetKind { DockerHost = "docker_host", ComposeHost = "compose_host", AgentHost = "agent_host" }
}

/// One deployable place on one host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Identifier.
    pub id: TargetId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// Environment.
    pub environment_id: EnvironmentId,
    /// Name of the environment, for people.
    pub environment: Name,
    /// Name, unique in the environment.
    pub name: Name,
    /// Kind.
    pub kind: TargetKind,
    /// Labels; `region` groups targets for strategies.
    pub labels: Labels,
    /// The agent that serves it.
    pub agent_id: Option<AgentId>,
    /// Highest fencing token given out.
    pub fence: Fence,
    /// Counts changes; the etag is made of it.
    pub revision: u64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it last changed.
    pub updated_at: DateTime<Utc>,
    /// When it was put away.
    pub archived_at: Option<DateTime<Utc>>,
}

phases! {
    /// What the operator wants of an agent. A paused one gets no new orders for a while: what is to run there waits for it, up to
    /// a bound. A draining one gets none any more: what is to run there fails at once. Both finish what they have begun.
    AgentIntent { Active = "active", Paused = "paused", Draining = "draining", Revoked = "revoked" }
}

impl AgentIntent {
    /// Whether new orders may be given to it.
    pub const fn takes_orders(self) -> bool {
        matches!(self, Self::Active)
    }

    /// Whether it is still an agent of ours. What was revoked stays revoked.
    pub const fn is_live(self) -> bool {
        match self {
            Self::Active | Self::Paused | Self::Draining => true,
            Self::Revoked => false,
        }
    }
}

phases! {
    /// How an agent is, derived from its session and last heartbeat.
    AgentStatus { Online = "online", Degraded = "degraded", Offline = "offline" }
}

/// What an agent says about itself and its host. Agents say it again when it has changed, so what changes all the time (free
/// space, clocks) is said anew only when it has changed by enough to matter.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentFacts {
    /// Version of the agent.
    pub version: String,
    /// What it can do: `docker_host`, ...
    pub capabilities: Vec<String>,
    /// Host name.
    pub hostname: String,
    /// Operating system and architecture of the engine: `linux/amd64`.
    pub platform: String,
    /// Engine name and version.
    pub engine: String,
    /// Newest API version of the engine.
    pub engine_api: String,
    /// Storage driver of the engine.
    pub storage_driver: String,
    /// Version of the control groups: `1` or `2`.
    pub cgroup_version: String,
    /// Version of the host's Compose; empty when there is none.
    pub compose: String,
    /// Space where it matters.
    pub disks: Vec<DiskFacts>,
    /// The host's clock beside the orchestrator's; `None` before it was measured.
    pub clock: Option<ClockFacts>,
    /// What the agent last took away from the host.
    pub pruned: Option<PruneFacts>,
    /// Why the agent is not wholly well; empty when it is.
    pub degraded: Vec<Condition>,
}

impl AgentFacts {
    /// Why the agent is not wholly well beside an orchestrator of this version.
    pub fn conditions(&self, orchestrator: &str) -> Vec<Condition> {
        let skew = condition::version_skew(orchestrator, &self.version);
        self.degraded.iter().cloned().chain(skew).collect()
    }
}

/// Space on a file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskFacts {
    /// What lies there: `engine` or `state`.
    pub what: String,
    /// Where.
    pub path: String,
    /// Bytes that can still be written.
    pub free_bytes: u64,
    /// Bytes in all.
    pub total_bytes: u64,
}

/// Images that an agent took away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PruneFacts {
    /// When.
    pub at: DateTime<Utc>,
    /// How many.
    pub images: u32,
    /// Their sizes together. Layers that other images share are still there, so less may have become free.
    pub bytes: u64,
}

/// The host's clock beside the orchestrator's, measured over the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockFacts {
    /// By how much the host's clock is ahead; negative when it is behind.
    pub ahead_ms: i64,
    /// The true value differs from it by at most this much: half the round trip.
    pub uncertainty_ms: u32,
}

/// Why an operator wants of an agent what it wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IntentNote {
    /// Why; may be empty.
    pub reason: String,
    /// Who: the actor of the audit event.
    pub by: String,
    /// Since when.
    pub at: DateTime<Utc>,
}

/// The program on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Agent {
    /// Identifier.
    pub id: AgentId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// Name: that of the first target that it was enrolled for.
    pub name: Name,
    /// What the operator wants of it.
    pub intent: AgentIntent,
    /// Why, who and since when it is wanted so.
    pub intent_note: IntentNote,
    /// Counts changes of the intent; the etag is made of it.
    pub revision: u64,
    /// Raw Ed25519 public key that signs its evidence.
    pub evidence_key: [u8; 32],
    /// What it last said about itself.
    pub facts: AgentFacts,
    /// When it was enrolled.
    pub created_at: DateTime<Utc>,
    /// When it was last heard.
    pub last_seen_at: Option<DateTime<Utc>>,
    /// The session in which it was last heard.
    pub session: Option<SessionId>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Something deployable, identified by an image repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Component {
    /// Identifier.
    pub id: ComponentId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// Name, unique in the tenant.
    pub name: ComponentName,
    /// Full image repository with registry host, unique in the tenant.
    pub repository: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

impl Component {
    /// The name that a component gets when nobody chose one: the repository without its registry host.
    pub fn default_name(repository: &str) -> &str {
        match repository.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => path,
            _ => repository,
        }
    }
}
