//! Order: what an agent is told to do. Signed by the orchestrator, addressed to one target, numbered by a fencing token.
//!
//! On the wire an order is a DSSE envelope whose payload is the canonical JSON of [`Order`]. [`Order::check`] holds every check
//! that needs no key; the signature is checked before the payload is even parsed (see [`crate::dsse`]).

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    canonical::{CanonicalError, decimal},
    digest::Digest,
    id::{AgentId, JobId, PromotionId, ReleaseId, TargetId, TaskId},
    manifest::Manifest,
    name::{Name, ProjectRef},
    strategy::Limits,
};

/// DSSE payload type of an order.
pub const ORDER_PAYLOAD_TYPE: &str = "application/vnd.sealift.order.v1+json";

/// How far the clocks of orchestrator and host may differ before an order counts as not yet valid or expired.
pub const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(30);

/// A number that only grows, per target. An agent refuses any order that is not above the highest it has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(#[serde(with = "decimal")] pub u64);

impl std::fmt::Display for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Which release an order, a sticker or a packet is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRef {
    /// Identifier.
    pub id: ReleaseId,
    /// The project that it belongs to. Releases of different projects live side by side on a target.
    pub project: ProjectRef,
    /// The commit that it was made from.
    pub commit: String,
    /// Its number in the project.
    #[serde(with = "decimal")]
    pub number: u64,
    /// Digest of its canonical manifest.
    pub content: Digest,
}

impl std::fmt::Display for ReleaseRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}#{}", self.project, self.number)
    }
}

/// Who decided, so that evidence can name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionRef {
    /// The promotion.
    pub promotion: PromotionId,
    /// Digest of the decision record's canonical bytes.
    pub record: Digest,
    /// Digest of the plan that was decided on.
    pub plan: Digest,
    /// Who asked for it.
    pub requested_by: String,
}

/// What an agent is told to do: run this manifest on this target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// Tenant of the target.
    pub tenant: Name,
    /// Environment of the target.
    pub environment: Name,
    /// Name of the target, for people.
    pub target: Name,
    /// The agent that it is addressed to.
    pub agent_id: AgentId,
    /// The target that it is addressed to.
    pub target_id: TargetId,
    /// The job.
    pub job_id: JobId,
    /// The task.
    pub task_id: TaskId,
    /// Which attempt of the task; counts from 1.
    pub attempt: u32,
    /// Ordinal of the wave; counts from 0.
    pub wave: u32,
    /// The fencing token.
    pub fence: Fence,
    /// Not to be acted on before.
    pub not_before: DateTime<Utc>,
    /// Not to be begun after.
    pub expires_at: DateTime<Utc>,
    /// Who decided.
    pub decision: DecisionRef,
    /// The release.
    pub release: ReleaseRef,
    /// What to run.
    pub manifest: Manifest,
    /// Limits while doing so.
    pub limits: Limits,
}

/// Why an order is refused, although its signature verifies.
#[derive(Debug, thiserror::Error)]
pub enum OrderRefusal {
    /// Addressed to another agent.
    #[error("the order is addressed to agent {0}")]
    OtherAgent(AgentId),
    /// Addressed to a target that this agent does not serve.
    #[error("the order is addressed to target {0}, which this agent does not serve")]
    OtherTarget(TargetId),
    /// Tenant or environment differ from what the agent was enrolled for.
    #[error("the order is for {tenant}/{environment}, the target was enrolled for another place")]
    OtherPlace {
        /// Tenant of the order.
        tenant: Name,
        /// Environment of the order.
        environment: Name,
    },
    /// Not valid yet.
    #[error("the order is not valid before {0}; check the clocks of host and orchestrator")]
    NotYet(DateTime<Utc>),
    /// No longer valid.
    #[error("the order expired at {0}")]
    Expired(DateTime<Utc>),
    /// Not above the highest fencing token seen.
    #[error("the order's fencing token {given} is not above {highest}, the highest seen")]
    Stale {
        /// Token of the order.
        given: Fence,
        /// Highest seen on this target.
        highest: Fence,
    },
    /// The manifest is not the one that the release digest names.
    #[error("the manifest has digest {actual}, the release says {stated}")]
    OtherManifest {
        /// What the release says.
        stated: Digest,
        /// What the manifest has.
        actual: Digest,
    },
    /// The limits do not fit together.
    #[error("the order's limits do not fit")]
    Limits(#[source] crate::strategy::InvalidLimit),
    /// The manifest has no canonical form.
    #[error("the manifest cannot be hashed")]
    Canonical(#[source] CanonicalError),
}

/// What the agent knows when it checks an order.
#[derive(Debug, Clone)]
pub struct OrderContext<'a> {
    /// Who it is.
    pub agent_id: AgentId,
    /// The targets that it serves, as bound at enrolment.
    pub target: Option<&'a TargetBinding>,
    /// Highest fencing token seen on the order's target.
    pub highest: Fence,
    /// The present.
    pub now: DateTime<Utc>,
}

/// A target that an agent was enrolled for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetBinding {
    /// Tenant.
    pub tenant: Name,
    /// Environment.
    pub environment: Name,
    /// Name of the target.
    pub target: Name,
    /// Identifier of the target.
    pub target_id: TargetId,
}

impl Order {
    /// Every check after the signature, in the order of the trust page (1.2): address, time, fence, release, limits.
    pub fn check(&self, context: &OrderContext<'_>) -> Result<(), OrderRefusal> {
        if self.agent_id != context.agent_id {
            return Err(OrderRefusal::OtherAgent(self.agent_id));
        }
        let Some(target) = context.target.filter(|target| target.target_id == self.target_id) else {
            return Err(OrderRefusal::OtherTarget(self.target_id));
        };
        if target.tenant != self.tenant || target.environment != self.environment {
            return Err(OrderRefusal::OtherPlace {
                tenant: self.tenant.clone(),
                environment: self.environment.clone(),
            });
        }
        if context.now + CLOCK_TOLERANCE < self.not_before {
            return Err(OrderRefusal::NotYet(self.not_before));
        }
        if context.now - CLOCK_TOLERANCE > self.expires_at {
            return Err(OrderRefusal::Expired(self.expires_at));
        }
        if self.fence <= context.highest {
            return Err(OrderRefusal::Stale {
                given: self.fence,
                highest: context.highest,
            });
        }
        let actual = self.manifest.content_digest().map_err(OrderRefusal::Canonical)?;
        if actual != self.release.content {
            return Err(OrderRefusal::OtherManifest {
                stated: self.release.content,
                actual,
            });
        }
        self.limits.check().map_err(OrderRefusal::Limits)
    }
}
