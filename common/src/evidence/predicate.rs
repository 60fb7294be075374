//! The predicate: what was ordered, by whose decision, what the agent did and what it found running. camelCase JSON; 64-bit
//! numbers are decimal strings; times are RFC 3339 in UTC, by the host's clock.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::{
    allowance::Allowance,
    hooks::{self, EvidenceHook},
};
use crate::{
    any_manifest::Described,
    canonical::decimal,
    digest::Digest,
    failure::{Failure, FailureCode},
    id::{AgentId, JobId, PromotionId, ReleaseId, TargetId, TaskId},
    inventory::TargetKind,
    manifest::PinnedImage,
    name::{Name, ServiceName},
    observation::ContainerHealth,
    order::{DecisionRef, Fence, Order, ReleaseRef},
    phases,
    spiffe::SpiffeId,
    task::TaskStep,
};

phases! {
    /// How an attempt ended.
    EvidenceResult { Succeeded = "succeeded", Failed = "failed", Cancelled = "cancelled", Refused = "refused" }
}

/// Who carried out the order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentInfo {
    /// Its identity, as in its certificate.
    pub spiffe_id: SpiffeId,
    /// Serial of the certificate that it held, lower-case hex.
    pub certificate_serial: String,
    /// Its version.
    pub version: String,
}

/// The engine that it was carried out on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EngineInfo {
    /// `docker` or `podman`.
    pub name: String,
    /// Version of the engine.
    pub version: String,
    /// Version of its API.
    pub api: String,
    /// Operating system and architecture, `linux/amd64`.
    pub platform: String,
}

/// Who decided.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EvidenceDecision {
    /// The promotion.
    pub promotion: PromotionId,
    /// Digest of the decision record's canonical bytes.
    pub record: Digest,
    /// Digest of the plan that was decided on.
    pub plan: Digest,
    /// Who asked for it.
    pub requested_by: String,
}

impl From<&DecisionRef> for EvidenceDecision {
    fn from(value: &DecisionRef) -> Self {
        Self {
            promotion: value.promotion,
            record: value.record,
            plan: value.plan,
            requested_by: value.requested_by.clone(),
        }
    }
}

/// The release.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EvidenceRelease {
    /// Identifier.
    pub id: ReleaseId,
    /// The source repository.
    pub repository: String,
    /// The project in it.
    pub project: String,
    /// The commit.
    pub commit: String,
    /// The number in the project.
    #[serde(with = "decimal")]
    pub number: u64,
    /// Digest of the canonical manifest.
    pub content: Digest,
}

impl From<&ReleaseRef> for EvidenceRelease {
    fn from(value: &ReleaseRef) -> Self {
        Self {
            id: value.id,
            repository: value.project.repository.clone(),
            project: value.project.project.clone(),
            commit: value.commit.clone(),
            number: value.number,
            content: value.content,
        }
    }
}

/// Why it did not succeed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EvidenceFailure {
    /// The stable code.
    pub code: FailureCode,
    /// One line for people.
    pub summary: String,
}

impl From<&Failure> for EvidenceFailure {
    fn from(value: &Failure) -> Self {
        Self {
            code: value.code,
            summary: value.summary.clone(),
        }
    }
}

/// What the engine reported as running for a service after the attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Observed {
    /// The container.
    pub container_id: String,
    /// The engine's identifier of the image.
    pub image_id: String,
    /// The registry digest under which the engine knows that image.
    pub digest: Digest,
}

/// One ordered service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EvidenceService {
    /// Name of the service.
    pub service: ServiceName,
    /// Repository of the ordered image, with registry host.
    pub repository: String,
    /// The tag that the digest was resolved from, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// The digest that was ordered.
    pub ordered_digest: Digest,
    /// What runs now under the service's name; absent when nothing does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed: Option<Observed>,
    /// Health of what runs now.
    pub health: ContainerHealth,
}

impl EvidenceService {
    /// A service of an order with what was found of it.
    pub fn of(
        service: &ServiceName,
        image: &PinnedImage,
        observed: Option<Observed>,
        health: ContainerHealth,
    ) -> Self {
        Self {
            service: service.clone(),
            repository: image.repository.clone(),
            tag: image.tag.clone(),
            ordered_digest: image.digest,
            observed,
            health,
        }
    }
}

/// When a step began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EvidenceStep {
    /// The step.
    pub step: TaskStep,
    /// When.
    pub at: DateTime<Utc>,
}

/// All that is stated about one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Predicate {
    /// Tenant.
    pub tenant: Name,
    /// Environment.
    pub environment: Name,
    /// Target.
    pub target: Name,
    /// Target.
    pub target_id: TargetId,
    /// The agent that signs.
    pub agent_id: AgentId,
    /// The agent in more detail.
    pub agent: AgentInfo,
    /// The engine.
    pub engine: EngineInfo,
    /// The job.
    pub job_id: JobId,
    /// The task.
    pub task_id: TaskId,
    /// Which attempt of the task, from 1.
    pub attempt: u32,
    /// Ordinal of the wave, from 0.
    pub wave: u32,
    /// Fencing token of the order.
    pub fence: Fence,
    /// Who decided.
    pub decision: EvidenceDecision,
    /// The release.
    pub release: EvidenceRelease,
    /// How it ended.
    pub result: EvidenceResult,
    /// Why it did not succeed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<EvidenceFailure>,
    /// The ordered services.
    pub services: Vec<EvidenceService>,
    /// The runs of hooks, in order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub hooks: Vec<EvidenceHook>,
    /// What the order asked of the host and got because the host's settings allow it; at most
    /// [`ALLOWANCES`](crate::bounds::ALLOWANCES).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allowances: Vec<Allowance>,
    /// The set that ran before.
    pub previous: BTreeMap<ServiceName, Digest>,
    /// Digest of the sticker that the attempt wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sticker_digest: Option<Digest>,
    /// Digest over the release's content and the variables that were ordered.
    pub inputs: Digest,
    /// Digest of the compose file as the host's Compose resolved and locked it; only on compose hosts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compose_lock: Option<Digest>,
    /// Whether something is missing in the log that the agent sent since it was last started: it was too long or too
    /// fast, or may be lost with a connection that broke.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub log_truncated: bool,
    /// Digest of the exact bytes of the order's envelope.
    pub order_digest: Digest,
    /// When the attempt began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// When it ended by the orchestrator's clock, as far as the host knew: its own time without the offset that the session had
    /// measured. Absent when no session had since the agent started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub finished_at_orchestrator: Option<DateTime<Utc>>,
    /// The steps, in order.
    pub steps: Vec<EvidenceStep>,
}

/// What the agent knows about a finished attempt besides its order.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// Who carried it out.
    pub agent: AgentInfo,
    /// On which engine.
    pub engine: EngineInfo,
    /// How it ended.
    pub result: EvidenceResult,
    /// Why it did not succeed.
    pub failure: Option<EvidenceFailure>,
    /// The ordered services with what was found of them.
    pub services: Vec<EvidenceService>,
    /// The runs of hooks, in order.
    pub hooks: Vec<EvidenceHook>,
    /// What the order asked of the host and got because the host's settings allow it.
    pub allowances: Vec<Allowance>,
    /// The set that ran before.
    pub previous: BTreeMap<ServiceName, Digest>,
    /// Digest of the sticker that was written.
    pub sticker_digest: Option<Digest>,
    /// Digest of the locked compose file.
    pub compose_lock: Option<Digest>,
    /// Whether something is missing in the log.
    pub log_truncated: bool,
    /// Digest of the exact bytes of the order's envelope.
    pub order_digest: Digest,
    /// When it began.
    pub started_at: DateTime<Utc>,
    /// When it ended.
    pub finished_at: DateTime<Utc>,
    /// When it ended by the orchestrator's clock.
    pub finished_at_orchestrator: Option<DateTime<Utc>>,
    /// The steps, in order.
    pub steps: Vec<EvidenceStep>,
}

impl Predicate {
    /// The time at which keys have to count: validity is written down by the orchestrator's clock, which the host's may differ from.
    pub fn counts_at(&self) -> DateTime<Utc> {
        self.finished_at_orchestrator.unwrap_or(self.finished_at)
    }

    /// What is stated about an attempt at `order`.
    pub fn of<M>(order: &Order<M>, attempt: Attempt) -> Self {
        Self {
            tenant: order.tenant.clone(),
            environment: order.environment.clone(),
            target: order.target.clone(),
            target_id: order.target_id,
            agent_id: order.agent_id,
            agent: attempt.agent,
            engine: attempt.engine,
            job_id: order.job_id,
            task_id: order.task_id,
            attempt: order.attempt,
            wave: order.wave,
            fence: order.fence,
            decision: (&order.decision).into(),
            release: (&order.release).into(),
            result: attempt.result,
            failure: attempt.failure,
            services: attempt.services,
            hooks: attempt.hooks,
            allowances: attempt.allowances,
            previous: attempt.previous,
            sticker_digest: attempt.sticker_digest,
            inputs: order.inputs,
            compose_lock: attempt.compose_lock,
            log_truncated: attempt.log_truncated,
            order_digest: attempt.order_digest,
            started_at: attempt.started_at,
            finished_at: attempt.finished_at,
            finished_at_orchestrator: attempt.finished_at_orchestrator,
            steps: attempt.steps,
        }
    }

    /// A compose host that succeeded has locked the file; nobody else has.
    fn lock_fits(&self, kind: TargetKind) -> bool {
        match (kind, self.compose_lock) {
            (TargetKind::ComposeHost, Some(_)) | (TargetKind::DockerHost | TargetKind::AgentHost, None) => {
                true
            }
            (TargetKind::ComposeHost, None) => self.result != EvidenceResult::Succeeded,
            (TargetKind::DockerHost | TargetKind::AgentHost, Some(_)) => false,
        }
    }

    /// Whether every field that comes from the order says what the order says (T2: an agent may state only what it was told
    /// to do). Gives the first field that does not.
    pub fn check_order<M: Described>(
        &self,
        order: &Order<M>,
        order_digest: Digest,
    ) -> Result<(), &'static str> {
        let services = self.services.iter().map(|one| {
            (
                &one.service,
                &one.repository,
                one.tag.as_ref(),
                one.ordered_digest,
            )
        });
        let ordered = order
            .manifest
            .images()
            .into_iter()
            .map(|(name, image)| (name, &image.repository, image.tag.as_ref(), image.digest));
        let mut services: Vec<_> = services.collect();
        services.sort();
        let checks = [
            ("tenant", self.tenant == order.tenant),
            ("environment", self.environment == order.environment),
            ("target", self.target == order.target),
            ("targetId", self.target_id == order.target_id),
            ("agentId", self.agent_id == order.agent_id),
            ("jobId", self.job_id == order.job_id),
            ("taskId", self.task_id == order.task_id),
            ("attempt", self.attempt == order.attempt),
            ("wave", self.wave == order.wave),
            ("fence", self.fence == order.fence),
            ("decision", self.decision == (&order.decision).into()),
            ("release", self.release == (&order.release).into()),
            ("services", services.into_iter().eq(ordered)),
            (
                "hooks",
                hooks::fit(
                    &self.hooks,
                    order.manifest.hooks(),
                    self.result == EvidenceResult::Succeeded,
                ),
            ),
            ("inputs", self.inputs == order.inputs),
            ("composeLock", self.lock_fits(order.manifest.kind())),
            ("orderDigest", self.order_digest == order_digest),
        ];
        checks
            .into_iter()
            .find(|(_, holds)| !holds)
            .map_or(Ok(()), |(field, _)| Err(field))
    }
}
