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
    name::{Name, ProjectRef, ServiceName},
    phases,
    promotion::PromotionKind,
    recipe::OfflinePolicy,
    release::ReleaseState,
    role::Role,
    rollback,
};

phases! {
    /// The checks of a promotion, in the order in which they answer.
    Gate {
        ReleaseReady = "release_ready", TargetsPresent = "targets_present", TargetsFit = "targets_fit",
        AgentsPresent = "agents_present", PlanUnchanged = "plan_unchanged", Hold = "hold", Lane = "lane",
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
    /// Jobs that the lane lets run side by side.
    pub capacity: u32,
    /// Most jobs that may wait.
    pub queue_limit: u32,
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn agent() -> AgentSituation {
        AgentSituation {
            intent: AgentIntent::Active,
            status: AgentStatus::Online,
            platform: "linux/amd64".into(),
            capabilities: vec!["docker_host".into()],
            degraded: Vec::new(),
        }
    }

    fn situation(agent: Option<AgentSituation>) -> Situation {
        Situation {
            kind: TargetKind::DockerHost,
            no_op: false,
            agent,
        }
    }

    fn inputs(targets: Vec<(Name, Situation)>) -> Inputs {
        Inputs {
            tenant: TenantId::from(uuid::Uuid::from_u128(1)),
            promotion: Some(PromotionId::from(uuid::Uuid::from_u128(2))),
            kind: PromotionKind::Deploy,
            choice: None,
            stage: Stage::Request,
            at: DateTime::from_timestamp(1_000, 0).unwrap(),
            requester: Requester {
                actor: "user/alice".into(),
                role: Role::Deployer,
            },
            environment: EnvironmentId::from(uuid::Uuid::from_u128(3)),
            environment_name: "staging".parse().unwrap(),
            release: ReleaseFacts {
                id: ReleaseId::from(uuid::Uuid::from_u128(4)),
                project: "github.com/acme/shop/api".parse().unwrap(),
                number: 42,
                content: Digest::of(b"content"),
                state: ReleaseState::Ready,
                kind: TargetKind::DockerHost,
                platforms: BTreeMap::new(),
            },
            plan: Digest::of(b"plan"),
            plan_seen: None,
            targets: group(targets),
            target_limit: 100,
            offline: OfflinePolicy::Fail {},
            hold: None,
            lane: LaneFacts {
                running: 0,
                ahead: 0,
                capacity: 1,
                queue_limit: 10,
            },
        }
    }

    fn one(agent: Option<AgentSituation>) -> Inputs {
        inputs(vec![("web".parse().unwrap(), situation(agent))])
    }

    fn reason(record: &DecisionRecord, gate: Gate) -> (&str, Verdict) {
        let answer = record.gates.iter().find(|answer| answer.gate == gate).unwrap();
        (answer.reason.as_str(), answer.verdict)
    }

    #[test]
    fn all_gates_answer_even_when_all_fail() {
        let mut inputs = inputs(Vec::new());
        inputs.release.state = ReleaseState::Draft;
        inputs.plan_seen = Some(Digest::of(b"other plan"));
        inputs.lane = LaneFacts {
            running: 1,
            ahead: 10,
            capacity: 1,
            queue_limit: 10,
        };
        let record = evaluate(inputs);
        let gates: Vec<_> = record.gates.iter().map(|answer| answer.gate).collect();
        assert_eq!(gates, Gate::ALL);
        assert_eq!(record.result, Verdict::Fail);
        assert_eq!(
            reason(&record, Gate::ReleaseReady),
            ("RELEASE_NOT_READY", Verdict::Fail)
        );
        assert_eq!(
            reason(&record, Gate::TargetsPresent),
            ("NO_TARGETS", Verdict::Fail)
        );
        assert_eq!(
            reason(&record, Gate::PlanUnchanged),
            ("PLAN_CHANGED", Verdict::Fail)
        );
        assert_eq!(reason(&record, Gate::Lane), ("LANE_FULL", Verdict::Fail));
        assert!(
            record
                .gates
                .iter()
                .all(|answer| answer.verdict == Verdict::Pass || !answer.advice.is_empty())
        );
    }

    #[test]
    fn an_agent_that_cannot_do_it_closes_the_gate() {
        let spoil = |change: fn(&mut AgentSituation)| {
            let mut agent = agent();
            change(&mut agent);
            evaluate(one(Some(agent)))
        };
        let gate = Gate::AgentsPresent;
        assert_eq!(reason(&evaluate(one(Some(agent()))), gate).1, Verdict::Pass);
        assert_eq!(reason(&evaluate(one(None)), gate).0, "AGENT_MISSING");
        assert_eq!(
            reason(&spoil(|agent| agent.status = AgentStatus::Offline), gate).0,
            "AGENT_OFFLINE"
        );
        assert_eq!(
            reason(&spoil(|agent| agent.intent = AgentIntent::Revoked), gate).0,
            "AGENT_REVOKED"
        );
        assert_eq!(
            reason(&spoil(|agent| agent.intent = AgentIntent::Paused), gate).0,
            "AGENT_PAUSED"
        );
        assert_eq!(
            reason(&spoil(|agent| agent.intent = AgentIntent::Draining), gate).0,
            "AGENT_DRAINING"
        );
        assert_eq!(
            reason(&spoil(|agent| agent.capabilities.clear()), gate).0,
            "CAPABILITY_MISSING"
        );
        assert_eq!(
            reason(&spoil(|agent| agent.status = AgentStatus::Degraded), gate).1,
            Verdict::Pass
        );
        let mut untouched = situation(None);
        untouched.no_op = true;
        let record = evaluate(inputs(vec![("web".parse().unwrap(), untouched)]));
        assert_eq!(
            reason(&record, gate).1,
            Verdict::Pass,
            "a target that is left alone needs no agent"
        );
    }

    #[test]
    fn a_release_for_another_kind_of_target_closes_the_gate() {
        let gate = Gate::TargetsFit;
        assert_eq!(
            reason(&evaluate(one(Some(agent()))), gate),
            ("TARGETS_FIT", Verdict::Pass)
        );
        let mut inputs = one(Some(agent()));
        inputs.release.kind = TargetKind::ComposeHost;
        let record = evaluate(inputs);
        assert_eq!(reason(&record, gate), ("KIND_MISMATCH", Verdict::Fail));
        let answer = record.gates.iter().find(|answer| answer.gate == gate).unwrap();
        assert!(answer.message.contains("web (docker_host)"), "{}", answer.message);
        assert!(answer.advice.contains("--kind docker-host"), "{}", answer.advice);
    }

    #[test]
    fn an_image_for_another_platform_closes_the_gate() {
        let with = |platforms: &[&str]| {
            let mut inputs = one(Some(agent()));
            let platforms = platforms.iter().map(|text| (*text).to_owned()).collect();
            inputs.release.platforms.insert("web".parse().unwrap(), platforms);
            evaluate(inputs)
        };
        assert_eq!(
            reason(&with(&["linux/arm64"]), Gate::AgentsPresent).0,
            "PLATFORM_MISMATCH"
        );
        assert!(with(&["linux/arm64/v8", "linux/amd64"]).passed());
        assert!(with(&[]).passed(), "nothing known");
    }

    #[test]
    fn a_busy_lane_waits_and_does_not_refuse() {
        let mut inputs = one(Some(agent()));
        inputs.lane = LaneFacts {
            running: 1,
            ahead: 2,
            capacity: 1,
            queue_limit: 10,
        };
        let record = evaluate(inputs);
        assert_eq!(reason(&record, Gate::Lane), ("LANE_BUSY", Verdict::Wait));
        assert_eq!(record.result, Verdict::Wait);
        assert!(record.passed());
        assert!(record.gates.last().unwrap().message.contains("place 3"));
    }

    #[test]
    fn equal_targets_become_one_group() {
        let targets = (0..1_000)
            .map(|n| (format!("web-{n:04}").parse().unwrap(), situation(Some(agent()))))
            .rev()
            .collect();
        let inputs = inputs(targets);
        assert_eq!(inputs.targets.len(), 1);
        assert!(evaluate(inputs).to_bytes().unwrap().len() < 20_000);
    }

    prop_compose! {
        fn any_situation()(
            no_op: bool, enrolled: bool, status in 0_usize..3, capable: bool, platform in "(linux/amd64|linux/arm64|)",
        ) -> Situation {
            let agent = AgentSituation {
                status: AgentStatus::ALL[status],
                platform,
                capabilities: if capable { vec!["docker_host".into()] } else { Vec::new() },
                ..agent()
            };
            Situation { no_op, ..situation(enrolled.then_some(agent)) }
        }
    }

    proptest! {
        /// I16: a stored record evaluated again gives the same bytes.
        #[test]
        fn i16_a_decision_is_a_pure_function_of_its_inputs(
            situations in prop::collection::vec(any_situation(), 0..6),
            running in 0_u32..3, ahead in 0_u32..12, seen in prop::option::of(any::<bool>()),
        ) {
            let targets: Vec<(Name, Situation)> =
                (0..).zip(situations).map(|(n, situation)| (format!("t{n}").parse().unwrap(), situation)).collect();
            let mut first = inputs(targets.clone());
            first.lane.running = running;
            first.lane.ahead = ahead;
            first.plan_seen = seen.map(|same| if same { first.plan } else { Digest::of(b"other") });
            let mut shuffled = first.clone();
            shuffled.targets = group(targets.into_iter().rev());
            let bytes = evaluate(first).to_bytes().unwrap();
            prop_assert_eq!(&evaluate(shuffled).to_bytes().unwrap(), &bytes);
            let stored = DecisionRecord::from_bytes(&bytes).unwrap();
            prop_assert_eq!(&evaluate(stored.inputs.clone()).to_bytes().unwrap(), &bytes);
        }
    }
}
