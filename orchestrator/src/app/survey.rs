//! Looks at the world once: the plan of a promotion and the answers of its gates, from what the store knows in one transaction.

use std::collections::{BTreeMap, BTreeSet};

use sealift_common::{
    any_manifest::Described,
    canonical,
    decision::{
        self, AgentSituation, DecisionRecord, HoldFacts, Inputs, LaneFacts, ReleaseFacts, Requester,
        Situation, Stage,
    },
    digest::Digest,
    id::{AgentId, JobId, PromotionId, TargetId},
    inventory::{Agent, Environment, Target},
    lane::{self, Waiter},
    observation::TargetObservation,
    plan::{Place, Plan},
    promotion::PromotionKind,
    recipe::Recipe,
    release::Release,
    rollback::Choice,
};
use sealift_store::{Newcomer, Tx, WaitingJob};

use crate::{
    app::{Core, ask_again::hold_facts},
    status::ApiError,
};

/// What is asked.
#[derive(Debug)]
pub struct Ask<'a> {
    /// Where to.
    pub environment: &'a Environment,
    /// What.
    pub release: &'a Release,
    /// In which way.
    pub recipe: &'a Recipe,
    /// Only these targets; `None` is all of the environment.
    pub scope: Option<&'a [TargetId]>,
    /// The job that it undoes; `None` when it is no rollback.
    pub undoes: Option<JobId>,
    /// Why the release of a rollback was chosen.
    pub choice: Option<&'a Choice>,
    /// For which promotion; `None` when it is only planned.
    pub promotion: Option<PromotionId>,
    /// When in its life.
    pub stage: Stage,
    /// By whom.
    pub requester: Requester,
    /// Digest of the plan that the requester looked at.
    pub plan_seen: Option<Digest>,
}

/// What was found.
#[derive(Debug)]
pub struct Survey {
    /// The plan.
    pub plan: Plan,
    /// Its canonical JSON.
    pub plan_json: String,
    /// Its digest.
    pub plan_digest: Digest,
    /// The gates' answers.
    pub record: DecisionRecord,
    /// The record's canonical bytes.
    pub record_bytes: Vec<u8>,
    /// The targets that are meant.
    pub targets: Vec<Target>,
    /// Jobs that wait and that the promotion replaces if it is let in.
    pub replaces: Vec<JobId>,
}

impl Survey {
    /// Digest of the decision record.
    pub fn record_digest(&self) -> Digest {
        Digest::of(&self.record_bytes)
    }
}

/// Plans and decides. Changes nothing.
pub async fn survey(core: &Core, tx: &mut Tx, ask: Ask<'_>) -> Result<Survey, ApiError> {
    let mut targets = tx.environment_targets(ask.environment.id).await?;
    if let Some(scope) = ask.scope {
        let scope: BTreeSet<_> = scope.iter().collect();
        targets.retain(|target| scope.contains(&target.id));
    }
    let agents: BTreeMap<AgentId, Agent> = tx
        .agents_of_environment(ask.environment.id)
        .await?
        .into_iter()
        .map(|agent| (agent.id, agent))
        .collect();
    let observations: BTreeMap<TargetId, TargetObservation> = tx
        .observations_of_environment(ask.environment.id)
        .await?
        .into_iter()
        .map(|observation| (observation.target_id, observation))
        .collect();
    let project = &ask.release.source.project;
    let recorded = tx.recorded_of_project(ask.environment.id, project).await?;

    let places: Vec<_> = targets
        .iter()
        .map(|target| Place {
            target_id: target.id,
            target: &target.name,
            labels: &target.labels,
            observation: observations.get(&target.id),
            recorded: recorded.get(&target.id),
        })
        .collect();
    let plan = Plan::new(
        ask.release,
        ask.environment.id,
        &ask.environment.variables,
        ask.recipe,
        &places,
    );
    let plan_bytes = canonical::to_vec(&plan).map_err(ApiError::internal)?;
    let plan_digest = Digest::of(&plan_bytes);
    let no_ops: BTreeMap<TargetId, bool> = plan
        .targets
        .iter()
        .map(|planned| (planned.target_id, planned.no_op))
        .collect();

    let situations = targets.iter().map(|target| {
        let situation = Situation {
            kind: target.kind,
            no_op: no_ops.get(&target.id).copied().unwrap_or(false),
            agent: target
                .agent_id
                .and_then(|id| agents.get(&id))
                .map(|agent| situation(core, agent)),
        };
        (target.name.clone(), situation)
    });
    let (lane, replaces) = lane(core, tx, &ask).await?;
    let inputs = Inputs {
        tenant: ask.environment.tenant_id,
        promotion: ask.promotion,
        kind: PromotionKind::of(ask.undoes),
        choice: ask.choice.cloned(),
        stage: ask.stage,
        at: core.clock.now(),
        requester: ask.requester.clone(),
        environment: ask.environment.id,
        environment_name: ask.environment.name.clone(),
        release: release_facts(ask.release),
        plan: plan_digest,
        plan_seen: ask.plan_seen,
        targets: decision::group(situations),
        target_limit: core.rules.targets,
        offline: ask.recipe.offline,
        reconnect_until: core.reconnect_until(),
        swap_unfit: ask.recipe.strategy.swap().unfit_for(&ask.release.manifest),
        hold: hold(tx, &ask).await?,
        lane,
    };
    let record = decision::evaluate(inputs);
    let record_bytes = record.to_bytes().map_err(ApiError::internal)?;
    Ok(Survey {
        plan,
        plan_json: String::from_utf8(plan_bytes).map_err(ApiError::internal)?,
        plan_digest,
        record,
        record_bytes,
        targets,
        replaces,
    })
}

async fn hold(tx: &mut Tx, ask: &Ask<'_>) -> Result<Option<HoldFacts>, ApiError> {
    let hold = tx.open_hold(ask.environment.id, ask.release.project_id).await?;
    Ok(hold.as_ref().map(hold_facts))
}

fn situation(core: &Core, agent: &Agent) -> AgentSituation {
    let mut capabilities = agent.facts.capabilities.clone();
    capabilities.sort();
    AgentSituation {
        intent: agent.intent,
        status: (core.status_of)(agent),
        platform: agent.facts.platform.clone(),
        capabilities,
        degraded: agent
            .facts
            .degraded
            .iter()
            .map(|found| found.code.clone())
            .collect(),
    }
}

fn release_facts(release: &Release) -> ReleaseFacts {
    ReleaseFacts {
        id: release.id,
        project: release.source.project.clone(),
        number: release.number,
        content: release.content,
        state: release.state,
        kind: release.manifest.kind(),
        platforms: release
            .components
            .iter()
            .filter(|(_, component)| !component.platforms.is_empty())
            .map(|(service, component)| (service.clone(), component.platforms.clone()))
            .collect(),
    }
}

/// The lane, and the jobs that the promotion replaces if it is let in.
async fn lane(core: &Core, tx: &mut Tx, ask: &Ask<'_>) -> Result<(LaneFacts, Vec<JobId>), ApiError> {
    let environment = ask.environment;
    let free = LaneFacts {
        running: 0,
        ahead: 0,
        start_first: 0,
        project_busy: false,
        capacity: core.rules.lane_capacity,
        queue_limit: core.rules.lane_queue,
        policy: environment.lane_policy,
        replaces: 0,
    };
    if ask.stage == Stage::Start {
        // Only the head of the lane is ever started, and none of whose project another job is under way.
        let running = tx.running_in_lane(environment.id).await?;
        return Ok((LaneFacts { running, ..free }, Vec::new()));
    }
    let kind = PromotionKind::of(ask.undoes);
    let view = tx
        .lane_view(Newcomer {
            environment: environment.id,
            project: ask.release.project_id,
            undoes: ask.undoes,
        })
        .await?;
    let newer = Waiter {
        kind,
        scope: ask.scope,
    };
    let is_replaced = |job: &WaitingJob| {
        let older = Waiter {
            kind: job.kind,
            scope: job.scope.as_deref(),
        };
        lane::replaces(environment.lane_policy, newer, older)
    };
    let (replaced, staying): (Vec<_>, Vec<_>) = view.project_waits.iter().partition(|job| is_replaced(job));
    // Rollbacks go before all others.
    let waits_first =
        |job: &&WaitingJob| kind == PromotionKind::Deploy || job.kind == PromotionKind::Rollback;
    let replaces = u32::try_from(replaced.len()).unwrap_or(u32::MAX);
    let facts = LaneFacts {
        running: view.running,
        ahead: view.ahead.saturating_sub(replaces),
        start_first: view.start_first,
        project_busy: view.project_under_way || staying.iter().any(waits_first),
        replaces,
        ..free
    };
    Ok((facts, replaced.iter().map(|job| job.id).collect()))
}
