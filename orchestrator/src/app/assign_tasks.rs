//! Makes orders: for each task a fencing token, a signed order and the row of its attempt, many tasks in one transaction.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    any_manifest::Described as _,
    digest::Digest,
    failure::{Failure, FailureCode},
    id::{AgentId, TargetId},
    inventory::{Agent, AgentIntent, AgentStatus, Target},
    name::Name,
    order::{self, DecisionRef, Fence, Order},
    plan::PlanHead,
    recipe::{OfflinePolicy, Recipe},
    release::Release,
    task::{SkipReason, TaskEvent, TaskPhase, TaskState, TaskStep},
    variables::Variables,
};
use sealift_store::{Assignment, Job, StoreError, Task, Tx};

use crate::{
    app::{Core, ORCHESTRATOR, attempts, resolve_release::release_of},
    status::ApiError,
};

/// What all orders of a job share.
#[derive(Debug)]
pub struct Orders {
    tenant: Name,
    decision: DecisionRef,
    release: Release,
    variables: Variables,
    inputs: Digest,
    recipe: Recipe,
}

/// How long agents that take no orders are waited for.
#[derive(Debug, Clone, Copy)]
pub struct Patience {
    offline: OfflinePolicy,
    /// Until when, where the recipe waits at all.
    until: Option<DateTime<Utc>>,
    /// Targets that nobody serves are left alone instead of failing: they keep no other from going back.
    goes_back: bool,
}

impl Patience {
    /// Of a job with this recipe.
    pub fn of(recipe: &Recipe, job: &Job) -> Self {
        let until = match recipe.offline {
            OfflinePolicy::Fail {} | OfflinePolicy::Skip {} => None,
            OfflinePolicy::Wait { ms } => job.started_at.map(|at| at + TimeDelta::milliseconds(ms.into())),
        };
        Self {
            offline: recipe.offline,
            until,
            goes_back: job.rollback_of.is_some(),
        }
    }
}

impl Orders {
    /// Of a job.
    pub async fn of(tx: &mut Tx, job: &Job) -> Result<Self, ApiError> {
        let missing = |what| ApiError::internal(format!("a job without its {what}"));
        let tenant = tx.tenant(job.tenant_id).await?.ok_or_else(|| missing("tenant"))?;
        let promotion = tx
            .promotion(job.tenant_id, job.promotion_id)
            .await?
            .ok_or_else(|| missing("promotion"))?;
        let decision = tx
            .latest_decision(promotion.id)
            .await?
            .ok_or_else(|| missing("decision"))?;
        let release = release_of(tx, job.tenant_id, job.release_id).await?;
        // What was decided on, whatever the environment's variables are by now.
        let plan: PlanHead = serde_json::from_str(&promotion.plan_json).map_err(ApiError::internal)?;
        let inputs = order::inputs(release.content, &plan.variables).map_err(ApiError::internal)?;
        Ok(Self {
            tenant: tenant.name,
            decision: DecisionRef {
                promotion: promotion.id,
                record: decision.digest,
                plan: promotion.plan_digest,
                requested_by: promotion.requested_by,
            },
            release,
            variables: plan.variables,
            inputs,
            recipe: promotion.recipe,
        })
    }
}

impl Orders {
    /// The order of a task's next attempt.
    fn order(
        &self,
        task: &Task,
        target: &Target,
        agent_id: AgentId,
        fence: Fence,
        not_before: DateTime<Utc>,
        expires_at: DateTime<Utc>,
    ) -> Order {
        Order {
            tenant: self.tenant.clone(),
            environment: task.environment.clone(),
            target: target.name.clone(),
            agent_id,
            target_id: target.id,
            job_id: task.job_id,
            task_id: task.id,
            attempt: task.attempt.saturating_add(1),
            wave: task.wave,
            fence,
            not_before,
            expires_at,
            decision: self.decision.clone(),
            release: self.release.reference(),
            manifest: self.release.manifest.clone(),
            variables: self.variables.clone(),
            inputs: self.inputs,
            limits: self.recipe.limits,
            swap: self.recipe.strategy.swap(),
        }
    }
}

/// The targets of some tasks, and their agents.
struct Hosts {
    targets: BTreeMap<TargetId, Target>,
    agents: BTreeMap<AgentId, Agent>,
}

impl Hosts {
    async fn of(tx: &mut Tx, tasks: &[Task]) -> Result<Self, ApiError> {
        let ids: Vec<_> = tasks.iter().map(|task| task.target_id).collect();
        let targets = tx.targets_by_ids(&ids).await?;
        let ids: Vec<_> = targets.values().filter_map(|target| target.agent_id).collect();
        let agents = tx.agents_by_ids(&ids).await?;
        Ok(Self { targets, agents })
    }

    fn server_of(&self, core: &Core, patience: Patience, task: &Task, now: DateTime<Utc>) -> Server<'_> {
        let target = self.targets.get(&task.target_id);
        let agent = target
            .and_then(|target| target.agent_id)
            .and_then(|id| self.agents.get(&id));
        server_of(core, patience, task, target, agent, now)
    }
}

/// Whether [`assign_tasks`] would change one of these tasks now: the others wait for their agents.
pub async fn would_assign(
    core: &Core,
    tx: &mut Tx,
    patience: Patience,
    tasks: &[Task],
) -> Result<bool, ApiError> {
    if tasks.is_empty() {
        return Ok(false);
    }
    let now = core.clock.now();
    let hosts = Hosts::of(tx, tasks).await?;
    let moves = |task: &Task| !matches!(hosts.server_of(core, patience, task, now), Server::Later);
    Ok(tasks.iter().any(moves))
}

/// Makes orders for `tasks`, whose targets nothing else occupies; answers how many of them changed. A task whose target has nobody
/// who could ever do it fails at once instead of waiting for ever.
pub async fn assign_tasks(
    core: &Core,
    tx: &mut Tx,
    orders: &Orders,
    patience: Patience,
    tasks: &[Task],
) -> Result<usize, ApiError> {
    if tasks.is_empty() {
        return Ok(0);
    }
    let now = core.clock.now();
    let hosts = Hosts::of(tx, tasks).await?;
    let mut ready = Vec::with_capacity(tasks.len());
    let mut changed = 0;
    for task in tasks {
        let event = match hosts.server_of(core, patience, task, now) {
            Server::Ready(target, agent) => {
                ready.push((task, target, agent));
                continue;
            }
            Server::Later => continue,
            Server::Away => TaskEvent::Skipped {
                reason: SkipReason::Offline,
            },
            Server::None(failure) => TaskEvent::Failed { failure },
        };
        tx.apply_task_event(task, &event, ORCHESTRATOR, now).await?;
        changed += 1;
    }
    changed += ready.len();
    assign(core, tx, orders, ready, now).await?;
    Ok(changed)
}

/// Who is to do a task.
enum Server<'a> {
    /// This agent, now.
    Ready(&'a Target, AgentId),
    /// An agent that takes no orders now and is waited for.
    Later,
    /// An agent that takes no orders now and is not waited for (any longer), or in a rollback none at all: its target is left alone,
    /// and catches up.
    Away,
    /// Nobody, and waiting would not help.
    None(Failure),
}

/// The agent that is to do it, or why there is none. Where the recipe does not say otherwise, one that is offline or paused is waited
/// for as long as an order would be good for. It gets none meanwhile: of a task without an order everybody knows that nothing of it
/// is on a host, so that it can be ended, while one that is lost keeps its job from ending until the host is back.
fn server_of<'a>(
    core: &Core,
    patience: Patience,
    task: &Task,
    target: Option<&'a Target>,
    agent: Option<&Agent>,
    now: DateTime<Utc>,
) -> Server<'a> {
    let none = |code, what: String| Server::None(Failure::new(code, what));
    let Some(target) = target.filter(|target| target.archived_at.is_none()) else {
        return none(FailureCode::AgentLost, "the target was archived".to_owned());
    };
    // What has begun is carried through; only a first order may be left out.
    let first = task.state.phase() == TaskPhase::Pending;
    if first && patience.goes_back && !agent.is_some_and(|agent| agent.intent.is_live()) {
        return Server::Away;
    }
    let Some(agent) = agent else {
        let summary = format!("no agent is enrolled for {}", target.name);
        return none(FailureCode::AgentLost, summary);
    };
    let offline = (core.status_of)(agent) == AgentStatus::Offline;
    let away = agent.intent != AgentIntent::Active || offline;
    if first && away && agent.intent.is_live() && patience.offline != (OfflinePolicy::Fail {}) {
        let late = offline && core.reconnect_until().is_some();
        let later = late || patience.until.is_some_and(|until| now < until);
        return if later { Server::Later } else { Server::Away };
    }
    let in_time = |since| now - since < core.rules.order_life;
    match agent.intent {
        AgentIntent::Active if offline => {
            let silent = agent.last_seen_at.unwrap_or(agent.created_at);
            if in_time(silent) || core.reconnect_until().is_some() {
                Server::Later
            } else {
                none(
                    FailureCode::AgentLost,
                    format!("the agent of {} was not there to take the order", target.name),
                )
            }
        }
        AgentIntent::Active => Server::Ready(target, agent.id),
        AgentIntent::Paused if in_time(agent.intent_note.at) => Server::Later,
        AgentIntent::Paused => none(
            FailureCode::AgentPaused,
            format!("the agent of {} is paused for too long", target.name),
        ),
        AgentIntent::Draining => none(
            FailureCode::AgentDraining,
            format!("the agent of {} is being drained", target.name),
        ),
        AgentIntent::Revoked => none(
            FailureCode::AgentRevoked,
            format!("the agent of {} was revoked", target.name),
        ),
    }
}

async fn assign(
    core: &Core,
    tx: &mut Tx,
    orders: &Orders,
    ready: Vec<(&Task, &Target, AgentId)>,
    now: DateTime<Utc>,
) -> Result<(), ApiError> {
    let fences = tx
        .next_fences(ready.iter().map(|(_, target, _)| target.id))
        .await?;
    let lease_until = core.lease_until(now);
    let mut assignments = Vec::with_capacity(ready.len());
    for (task, target, agent) in ready {
        let fence = fences.get(&target.id).copied().ok_or(StoreError::Conflict)?;
        let order = orders.order(task, target, agent, fence, now, now + core.rules.order_life);
        match (core.sign_order)(&order) {
            Ok(signed) => assignments.push(Assignment {
                task,
                agent,
                attempt: order.attempt,
                fence,
                order: signed,
                lease_until,
                due_at: order.expires_at
                    + attempts::longest(&order.limits, order.swap, order.manifest.hooks()),
            }),
            // Trying again would give the same: the lane must not wait for it.
            Err(error) => {
                let summary = format!("no order can be made for {}", target.name);
                let failure = Failure::new(FailureCode::Internal, summary).with_detail(error.to_string());
                tx.apply_task_event(task, &TaskEvent::Failed { failure }, ORCHESTRATOR, now)
                    .await?;
            }
        }
    }
    tx.assign_tasks(assignments, ORCHESTRATOR, now).await?;
    Ok(())
}

/// Whether it waits between two attempts: nothing of it is on the host then.
pub fn is_between_attempts(task: &Task) -> bool {
    task.state.phase() == TaskPhase::Running
        && matches!(
            task.state,
            TaskState::Running {
                step: TaskStep::RetryWait
            }
        )
}
