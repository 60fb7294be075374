//! Decision: one evaluation of a promotion's gates, kept with everything it was made from. A pure function of its inputs: the
//! same inputs give the same bytes, so anyone can evaluate a stored record again and compare.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    canonical::{self, CanonicalError, decimal},
    digest::Digest,
    gates,
    id::{EnvironmentId, HoldId, PromotionId, ReleaseId, TenantId},
    inventory::{AgentIntent, AgentStatus, TargetKind},
    lane::LanePolicy,
    name::{Name, ProjectRef, ServiceName},
    phases,
    promotion::PromotionKind,
    recipe::OfflinePolicy,
    release::ReleaseState,
    role::Role,
    rollback,
    swap::Unfit,
};

phases! {
    /// The checks of a promotion, in the order in which they answer.
    Gate {
        ReleaseReady = "release_ready", TargetsPresent = "targets_present", TargetsFit = "targets_fit",
        SwapFits = "swap_fits", AgentsPresent = "agents_present", PlanUnchanged = "plan_unchanged", Hold = "hold", Lane = "lane",
    }
}

phases! {
    /// What a gate says.
    Verdict { Pass = "pass", Wait = "wait", Fail = "fail" }
}

phases! {
    /// When a decision is made.
    Stage { Request = "request", Start = "start" }
}

/// Who asks for what.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Requester {
    /// `user/alice`.
    pub actor: String,
    /// The role with which the request was made.
    pub role: Role,
}

/// The release as it is when the decision is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseFacts {
    /// Identifier.
    pub id: ReleaseId,
    /// Project.
    pub project: ProjectRef,
    /// Number in the project.
    #[serde(with = "decimal")]
    pub number: u64,
    /// Digest of the canonical manifest.
    pub content: Digest,
    /// Whether it may be promoted.
    pub state: ReleaseState,
    /// The kind of target that it is for.
    pub kind: TargetKind,
    /// Platforms of each service's image, where the registry told; a service that is absent fits everywhere.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub platforms: BTreeMap<ServiceName, Vec<String>>,
}

/// The agent of a target as it is when the decision is made.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentSituation {
    /// What the operator wants of it.
    pub intent: AgentIntent,
    /// How it is.
    pub status: AgentStatus,
    /// Platform of its host; empty when it said none.
    pub platform: String,
    /// What it can do, sorted.
    pub capabilities: Vec<String>,
    /// Why it is not wholly well.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub degraded: Vec<String>,
}

/// How a target stands.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Situation {
    /// Kind of target.
    pub kind: TargetKind,
    /// The plan leaves it alone.
    pub no_op: bool,
    /// Its agent; `None` when none is enrolled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentSituation>,
}

/// All targets that stand alike: a fleet of ten thousand equal hosts stays a list of names.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetGroup {
    /// How they stand.
    pub situation: Situation,
    /// Which they are, sorted.
    pub targets: Vec<Name>,
}

/// Groups targets by how they stand; the order of `targets` does not matter.
pub fn group(targets: impl IntoIterator<Item = (Name, Situation)>) -> Vec<TargetGroup> {
    let mut groups: BTreeMap<Situation, Vec<Name>> = BTreeMap::new();
    for (name, situation) in targets {
        groups.entry(situation).or_default().push(name);
    }
    groups
        .into_iter()
        .map(|(situation, mut targets)| {
            targets.sort();
            TargetGroup { situation, targets }
        })
        .collect()
}

/// The lane when the decision is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LaneFacts {
    /// Jobs of the lane that run.
    pub running: u32,
    /// Jobs that wait before this one.
    pub ahead: u32,
    /// So many of other projects start first when there is room: of each project one, and none that something else keeps back.
    pub start_first: u32,
    /// Whether another job of the same project comes first, one that runs, waits or is being undone: whatever the capacity, this
    /// one waits for it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub project_busy: bool,
    /// Jobs that the lane lets run side by side.
    pub capacity: u32,
    /// Most jobs that may wait.
    pub queue_limit: u32,
    /// What becomes of a promotion that would have to wait.
    #[serde(default, skip_serializing_if = "LanePolicy::is_default")]
    pub policy: LanePolicy,
    /// So many that wait are replaced by this one; they are not counted elsewhere.
    #[serde(default, skip_serializing_if = "is_none_replaced")]
    pub replaces: u32,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde hands over a reference")]
fn is_none_replaced(count: &u32) -> bool {
    *count == 0
}

/// A hold on the project's promotions in the environment when the decision is made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HoldFacts {
    /// Which.
    pub id: HoldId,
    /// Who put it there.
    pub placed_by: String,
    /// Why.
    pub reason: String,
}

/// Everything that a decision is made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Inputs {
    /// Tenant.
    pub tenant: TenantId,
    /// The promotion; `None` for a plan that nobody asked to carry out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promotion: Option<PromotionId>,
    /// What it is for.
    pub kind: PromotionKind,
    /// Why the release of a rollback was chosen, and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub choice: Option<rollback::Choice>,
    /// When in the promotion's life.
    pub stage: Stage,
    /// The instant of the decision.
    pub at: DateTime<Utc>,
    /// Who asks.
    pub requester: Requester,
    /// Where to.
    pub environment: EnvironmentId,
    /// Its name.
    pub environment_name: Name,
    /// What.
    pub release: ReleaseFacts,
    /// Digest of the plan that the decision is about.
    pub plan: Digest,
    /// Digest of the plan that the requester looked at.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub plan_seen: Option<Digest>,
    /// Targets by how they stand.
    pub targets: Vec<TargetGroup>,
    /// Most targets that one job may address.
    pub target_limit: u32,
    /// What is done about agents that take no orders.
    pub offline: OfflinePolicy,
    /// Until when agents that are away are only late, because the orchestrator has just started; `None` when that time is over.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconnect_until: Option<DateTime<Utc>>,
    /// What keeps the release from being swapped in the recipe's way.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub swap_unfit: Vec<Unfit>,
    /// The hold on the project, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hold: Option<HoldFacts>,
    /// The lane.
    pub lane: LaneFacts,
}

/// What one gate says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GateAnswer {
    /// Which gate.
    pub gate: Gate,
    /// What it says.
    pub verdict: Verdict,
    /// Stable code of the reason, upper snake case.
    pub reason: String,
    /// The same for people.
    pub message: String,
    /// What to do next; empty when there is nothing to do.
    pub advice: String,
}

/// Immutable record of one evaluation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionRecord {
    /// What it was made from: plan digest and instant included.
    pub inputs: Inputs,
    /// Every gate's answer, in the order of [`Gate::ALL`].
    pub gates: Vec<GateAnswer>,
    /// `fail` if any gate fails, else `wait` if any waits, else `pass`.
    pub result: Verdict,
}

/// Evaluates all gates, also after one has failed: a refused caller learns every reason at once.
pub fn evaluate(inputs: Inputs) -> DecisionRecord {
    let gates: Vec<_> = Gate::ALL
        .iter()
        .map(|gate| gates::answer(*gate, &inputs))
        .collect();
    let result = gates
        .iter()
        .map(|answer| answer.verdict)
        .max()
        .unwrap_or(Verdict::Fail);
    DecisionRecord {
        inputs,
        gates,
        result,
    }
}

impl DecisionRecord {
    /// Whether no gate failed: the promotion may take its place in the lane.
    pub fn passed(&self) -> bool {
        self.result != Verdict::Fail
    }

    /// The canonical bytes, as stored.
    pub fn to_bytes(&self) -> Result<Vec<u8>, CanonicalError> {
        canonical::to_vec(self)
    }

    /// Reads stored bytes strictly.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, CanonicalError> {
        canonical::from_slice(bytes)
    }

    /// One line for people: what the failing gates say.
    pub fn refusal(&self) -> String {
        let said: Vec<_> = self
            .gates
            .iter()
            .filter(|answer| answer.verdict == Verdict::Fail)
            .map(|answer| answer.message.as_str())
            .collect();
        said.join("; ")
    }
}

#[cfg(test)]
mod tests;
