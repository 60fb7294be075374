//! What the store keeps that the domain has no type of its own for. Plain data.

use chrono::{DateTime, Utc};
use sealift_common::{
    digest::Digest,
    drift::{Finding, Recorded, Severity},
    failure::Failure,
    id::{
        AgentId, DecisionId, DriftId, EnvironmentId, HoldId, JobId, JoinTokenId, PacketId, ProjectId,
        PromotionId, ReleaseId, SessionId, TargetId, TaskId, TenantId, UserId,
    },
    inventory::{Agent, Component, User},
    job::{JobState, Stop},
    name::{Name, ProjectRef},
    observation::EngineEvent,
    order::Fence,
    phases,
    promotion::{PromotionKind, PromotionState},
    recipe::Recipe,
    role::Role,
    rollback::QualityMark,
    strategy::Then,
    task::{TaskState, Wanted},
};

/// Whose a certificate is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CertificateSubject {
    /// A user's.
    User(UserId),
    /// An agent's.
    Agent(AgentId),
}

/// An issued client certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certificate {
    /// Serial number, lower-case hex.
    pub serial: String,
    /// Tenant.
    pub tenant_id: TenantId,
    /// Whose it is.
    pub subject: CertificateSubject,
    /// Valid from.
    pub not_before: DateTime<Utc>,
    /// Valid until.
    pub not_after: DateTime<Utc>,
    /// When it was revoked.
    pub revoked_at: Option<DateTime<Utc>>,
}

/// Who stands behind a certificate.
#[expect(clippy::large_enum_variant, reason = "one per call, and short-lived")]
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AuthenticatedPrincipal {
    /// A user.
    User(User),
    /// An agent.
    Agent(Agent),
}

/// What the store knows of a certificate. Whether it counts (time, revocation, role) is for the caller to judge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authenticated {
    /// The certificate.
    pub certificate: Certificate,
    /// Name of its tenant.
    pub tenant: Name,
    /// Whose it is.
    pub principal: AuthenticatedPrincipal,
}

/// A single-use permission to enrol an agent for a target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    /// Identifier (not the secret).
    pub id: JoinTokenId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// The target that it binds.
    pub target_id: TargetId,
    /// SHA-256 of the secret.
    pub secret_hash: [u8; 32],
    /// Valid until (not including).
    pub expires_at: DateTime<Utc>,
    /// Who made it.
    pub created_by: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was used.
    pub used_at: Option<DateTime<Utc>>,
    /// The agent that used it.
    pub used_by: Option<AgentId>,
}

/// What a tag of a component meant from some time on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VersionEntry {
    /// The tag.
    pub tag: String,
    /// What it pointed at.
    pub digest: Digest,
    /// When that was learnt.
    pub resolved_at: DateTime<Utc>,
}

/// What is recorded to run of one project on one target, and by whose wish.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Current {
    /// The project.
    pub project: ProjectRef,
    /// What should run, since which order.
    pub recorded: Recorded,
    /// The release.
    pub release: ReleaseId,
    /// Its number in the project.
    pub number: u64,
    /// The job that put it there.
    pub job: JobId,
    /// The task of that job.
    pub task: TaskId,
    /// The promotion that the job carried out.
    pub promotion: PromotionId,
    /// Who asked for it: `user/alice`.
    pub requested_by: String,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// A sticker as reported, without its history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StickerRow {
    /// Its digest.
    pub digest: Digest,
    /// The file's bytes.
    pub content: Vec<u8>,
}

/// A finding with all that is known of it when it is seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// What disagrees.
    pub finding: Finding,
    /// How severe that is here.
    pub severity: Severity,
    /// The job that put there what is recorded; `None` when nothing is.
    pub job: Option<JobId>,
    /// What the engine said that explains it.
    pub cause: Option<EngineEvent>,
}

/// Who looks after a drift observation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledgement {
    /// Who looks after it, as named by whoever acknowledged.
    pub owner: String,
    /// What they say about it.
    pub note: String,
    /// Who acknowledged.
    pub by: String,
    /// When.
    pub at: DateTime<Utc>,
}

/// One drift observation with its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DriftRow {
    /// Identifier.
    pub id: DriftId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// Target.
    pub target_id: TargetId,
    /// Environment, for people.
    pub environment: Name,
    /// Target, for people.
    pub target: Name,
    /// The project, `repository/project`.
    pub project: String,
    /// What disagrees.
    pub finding: Finding,
    /// How severe that was when it was last seen.
    pub severity: Severity,
    /// The job that had put there what was recorded when it was found; `None` when nothing was.
    pub job_id: Option<JobId>,
    /// What the engine said that explains it.
    pub cause: Option<EngineEvent>,
    /// Who looks after it.
    pub acknowledged: Option<Acknowledgement>,
    /// How many acts of remediation were about it.
    pub tries: u32,
    /// The newest of them.
    pub last_promotion: Option<PromotionId>,
    /// Since when remediation has given it up.
    pub gave_up_at: Option<DateTime<Utc>>,
    /// When it was first seen.
    pub first_seen_at: DateTime<Utc>,
    /// When it was last seen; kept to the minute.
    pub last_seen_at: DateTime<Utc>,
    /// When it was gone.
    pub resolved_at: Option<DateTime<Utc>>,
}

/// Which drift is wanted.
#[derive(Debug, Clone, Copy, Default)]
pub struct DriftFilter {
    /// Only of this environment.
    pub environment: Option<EnvironmentId>,
    /// Only of this target.
    pub target: Option<TargetId>,
    /// At least this severe.
    pub at_least: Option<Severity>,
    /// Also what is gone.
    pub include_resolved: bool,
}

/// What a reconciliation of drift did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct DriftChange {
    /// Findings that are new.
    pub opened: u32,
    /// Findings that are gone.
    pub resolved: u32,
}

/// A request to bring a release to an environment.
#[derive(Debug, Clone, PartialEq)]
pub struct Promotion {
    /// Identifier.
    pub id: PromotionId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// Environment.
    pub environment_id: EnvironmentId,
    /// Its name.
    pub environment: Name,
    /// Release.
    pub release_id: ReleaseId,
    /// State.
    pub state: PromotionState,
    /// The plan as canonical JSON, byte for byte; empty in lists.
    pub plan_json: String,
    /// Its digest.
    pub plan_digest: Digest,
    /// In which way.
    pub recipe: Recipe,
    /// The targets that it is restricted to; `None` is all of the environment.
    pub scope: Option<Vec<TargetId>>,
    /// The job that it undoes: what makes it a rollback.
    pub rollback_of: Option<JobId>,
    /// The job that it repeats.
    pub rerun_of: Option<JobId>,
    /// The newer promotion that took its place while it waited.
    pub superseded_by: Option<PromotionId>,
    /// Why, for people.
    pub change_summary: String,
    /// Who asked: `user/alice`.
    pub requested_by: String,
    /// The role of that time.
    pub requester_role: Role,
    /// Why it failed, when it did.
    pub failure: Option<Failure>,
    /// Counts changes; 0 when it is made.
    pub version: u64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

impl Promotion {
    /// What it is for.
    pub const fn kind(&self) -> PromotionKind {
        PromotionKind::of(self.rollback_of)
    }
}

/// A decision record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DecisionRow {
    /// Identifier.
    pub id: DecisionId,
    /// What it decides.
    pub promotion_id: PromotionId,
    /// Digest of the record.
    pub digest: Digest,
    /// The record's canonical bytes.
    pub record: Vec<u8>,
    /// Whether all gates passed.
    pub passed: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
}

/// The execution of one promotion.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Job {
    /// Identifier.
    pub id: JobId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// Promotion.
    pub promotion_id: PromotionId,
    /// Environment.
    pub environment_id: EnvironmentId,
    /// Its name.
    pub environment: Name,
    /// Release.
    pub release_id: ReleaseId,
    /// State.
    pub state: JobState,
    /// The job that it undoes: what makes it a rollback.
    pub rollback_of: Option<JobId>,
    /// The wish that it ends before its time.
    pub stop: Option<Stop>,
    /// Place in the lane. Rollbacks go before all others.
    pub ticket: u64,
    /// So many failures a person has accepted by letting it go on.
    pub accepted_failures: u32,
    /// When a person last let it go on.
    pub resumed_at: Option<DateTime<Utc>>,
    /// Counts changes; 0 when it is made.
    pub version: u64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

/// One wave of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobWave {
    /// Place in the order, from 0.
    pub ordinal: u32,
    /// What must happen after it.
    pub then: Then,
    /// When its first order was made.
    pub opened_at: Option<DateTime<Utc>>,
    /// When its last task ended.
    pub settled_at: Option<DateTime<Utc>>,
    /// When the next one was let begin.
    pub passed_at: Option<DateTime<Utc>>,
}

/// What keeps new promotions of a project away from an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hold {
    /// Identifier.
    pub id: HoldId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// Environment.
    pub environment_id: EnvironmentId,
    /// Its name.
    pub environment: Name,
    /// Identifier of the project.
    pub project_id: ProjectId,
    /// The project.
    pub project: ProjectRef,
    /// Why.
    pub reason: String,
    /// Who put it there.
    pub placed_by: String,
    /// When.
    pub placed_at: DateTime<Utc>,
    /// Who lifted it, and when.
    pub lifted: Option<(String, DateTime<Utc>)>,
}

/// A quality mark of a release.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// The release.
    pub release_id: ReleaseId,
    /// The mark.
    pub mark: QualityMark,
    /// Why.
    pub reason: String,
    /// Who says so.
    pub actor: String,
    /// When.
    pub at: DateTime<Utc>,
}

/// One target's part of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Task {
    /// Identifier.
    pub id: TaskId,
    /// Job.
    pub job_id: JobId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// Target.
    pub target_id: TargetId,
    /// Its name.
    pub target: Name,
    /// Name of the environment.
    pub environment: Name,
    /// The agent that got the newest order.
    pub agent_id: Option<AgentId>,
    /// Wave, from 0.
    pub wave: u32,
    /// State.
    pub state: TaskState,
    /// Whether it is still wanted.
    pub wanted: Wanted,
    /// Number of the newest attempt; 0 before the first.
    pub attempt: u32,
    /// Fencing token of the newest order.
    pub fence: Fence,
    /// The signed order of the newest attempt. Only filled by [`Tx::task`](crate::Tx::task),
    /// [`Tx::live_tasks_of_agent`](crate::Tx::live_tasks_of_agent) and [`Tx::assign_tasks`](crate::Tx::assign_tasks);
    /// lists of many tasks leave it out.
    pub order: Option<Vec<u8>>,
    /// Until when the agent need not be heard.
    pub lease_until: Option<DateTime<Utc>>,
    /// When the next attempt is due.
    pub retry_at: Option<DateTime<Utc>>,
    /// Counts changes; 0 when it is made.
    pub version: u64,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When its first order was made.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

/// One try of a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Number, from 1.
    pub number: u32,
    /// Fencing token of its order.
    pub fence: Fence,
    /// Who got the order.
    pub agent_id: AgentId,
    /// Digest of the signed order.
    pub order_digest: Digest,
    /// How it ended; empty until then.
    pub result: String,
    /// The evidence.
    pub packet_id: Option<PacketId>,
    /// When its order was made.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

phases! {
    /// What a transition is of.
    EntityKind { Promotion = "promotion", Job = "job", Task = "task" }
}

/// One step in the history of a promotion, a job or a task.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transition {
    /// The version that it made: counts from 1 without gap.
    pub seq: u64,
    /// State before.
    pub from: String,
    /// State after; the same when only a wish or a plan changed.
    pub to: String,
    /// What happened.
    pub event: String,
    /// Who made it happen.
    pub actor: String,
    /// Step, reason or failure code, then what somebody gave as reason; may be empty.
    pub detail: String,
    /// The failure that the event carried.
    pub failure: Option<Failure>,
    /// When.
    pub at: DateTime<Utc>,
}

/// What an environment runs of one component, as deployed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Active {
    /// The component.
    pub component: Component,
    /// The digest.
    pub digest: Digest,
    /// The release that brought it.
    pub release: ReleaseId,
    /// The release's project.
    pub project: ProjectRef,
    /// Its identifier.
    pub project_id: ProjectId,
    /// The release's number in it.
    pub number: u64,
    /// The job that brought it.
    pub job: JobId,
    /// Since when.
    pub since: DateTime<Utc>,
}

/// A stored evidence packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketRow {
    /// Identifier.
    pub id: PacketId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// Environment.
    pub environment_id: EnvironmentId,
    /// Target.
    pub target_id: TargetId,
    /// Job.
    pub job_id: JobId,
    /// Task.
    pub task_id: TaskId,
    /// Attempt.
    pub attempt: u32,
    /// Who signed it.
    pub agent_id: AgentId,
    /// The result that it states.
    pub result: String,
    /// Digest of the envelope's payload.
    pub digest: Digest,
    /// The signed envelope, byte for byte.
    pub envelope: Vec<u8>,
    /// When it was stored.
    pub created_at: DateTime<Utc>,
}

/// Which packets are wanted; all given fields must fit.
#[derive(Debug, Clone, Copy, Default)]
pub struct PacketFilter {
    /// Of this job.
    pub job: Option<JobId>,
    /// Of this environment.
    pub environment: Option<EnvironmentId>,
    /// Of this target.
    pub target: Option<TargetId>,
}

/// A log line as the agent sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// Grows with each line of an attempt.
    pub seq: u64,
    /// `agent`, the name of a service, or `hook/` and the name of a hook.
    pub source: String,
    /// The text.
    pub text: String,
    /// When, by the host's clock.
    pub at: DateTime<Utc>,
    /// The agent left something out here.
    pub truncated: bool,
}

/// How much is kept of an attempt's log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogState {
    /// Bytes of text kept.
    pub bytes: u64,
    /// Something was left out.
    pub truncated: bool,
}

/// Position in a job's log: counts from 1 without gap in the order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LogCursor(pub u64);

/// A stored log line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredLogLine {
    /// Where to continue after it.
    pub cursor: LogCursor,
    /// Task.
    pub task_id: TaskId,
    /// Attempt.
    pub attempt: u32,
    /// Number in the attempt.
    pub seq: u64,
    /// `agent`, the name of a service, or `hook/` and the name of a hook.
    pub source: String,
    /// The text.
    pub text: String,
    /// When, by the host's clock.
    pub at: DateTime<Utc>,
    /// Something was left out here: by the agent, or, when the log is full, the rest of this line and all that followed.
    pub truncated: bool,
}

/// When an agent was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heartbeat {
    /// Which agent.
    pub agent_id: AgentId,
    /// In which of its sessions.
    pub session: SessionId,
    /// When.
    pub at: DateTime<Utc>,
}
