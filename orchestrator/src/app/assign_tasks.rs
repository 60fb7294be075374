//! Makes orders: for each task a fencing token, a signed order and the row of its attempt, many tasks in one transaction.

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    any_manifest::Described as _,
    digest::Digest,
    failure::{Failure, FailureCode},
    id::AgentId,
    inventory::{AgentIntent, AgentStatus, Target},
    name::Name,
    order::{self, DecisionRef, Order},
    plan::PlanHead,
    recipe::{OfflinePolicy, Recipe},
    release::Release,
    task::{SkipReason, TaskEvent, TaskPhase, TaskState, TaskStep},
    variables::Variables,
};
use sealift_store::{Job, Task, Tx};

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
    /// Until when a target whose agent is away is waited for, when the recipe does that.
    wait_until: Option<DateTime<Utc>>,
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
            wait_until: match promotion.recipe.offline {
                OfflinePolicy::Fail {} | OfflinePolicy::Skip {} => None,
                OfflinePolicy::Wait { ms } => {
                    job.started_at.map(|at| at + TimeDelta::milliseconds(ms.into()))
                }
            },
            recipe: promotion.recipe,
        })
    }
}

/// Makes orders for those of `tasks` whose target is free; answers how many of them changed. A task whose target has nobody who
/// could ever do it fails at once instead of waiting for ever.
pub async fn assign_tasks(
    core: &Core,
    tx: &mut Tx,
    orders: &Orders,
    tasks: &[&Task],
) -> Result<usize, ApiError> {
    let now = core.clock.now();
    let mut changed = 0;
    for task in tasks {
        let occupied = tx.live_task_on_target(task.target_id).await?;
        if occupied.is_some_and(|other| other.id != task.id) {
            continue;
        }
        let target = tx.target(task.tenant_id, task.target_id).await?;
        let event = match server_of(core, tx, orders, task, target.as_ref(), now).await? {
            Server::Ready(target, agent) => {
                assign(core, tx, orders, task, target, agent, now).await?;
                changed += 1;
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
    Ok(changed)
}

/// Who is to do a task.
enum Server<'a> {
    /// This agent, now.
    Ready(&'a Target, AgentId),
    /// An agent that takes no orders now and is waited for.
    Later,
    /// An agent that takes no orders now and is not waited for (any longer): its target is left alone, and catches up.
    Away,
    /// Nobody, and waiting would not help.
    None(Failure),
}

/// The agent that is to do it, or why there is none. Where the recipe does not say otherwise, one that is offline is still the
/// one: it finds the order when it is back, and refuses it when that is too late; one that is paused is waited for as long as an
/// order would be good for.
async fn server_of<'a>(
    core: &Core,
    tx: &mut Tx,
    orders: &Orders,
    task: &Task,
    target: Option<&'a Target>,
    now: DateTime<Utc>,
) -> Result<Server<'a>, ApiError> {
    let none = |code, what: String| Server::None(Failure::new(code, what));
    let Some(target) = target.filter(|target| target.archived_at.is_none()) else {
        return Ok(none(FailureCode::AgentLost, "the target was archived".to_owned()));
    };
    let agent = match target.agent_id {
        Some(id) => tx.agent_by_id(id).await?,
        None => None,
    };
    let Some(agent) = agent else {
        let summary = format!("no agent is enrolled for {}", target.name);
        return Ok(none(FailureCode::AgentLost, summary));
    };
    // What has begun is carried through; only a first order may be left out.
    let first = task.state.phase() == TaskPhase::Pending;
    let offline = (core.status_of)(&agent) == AgentStatus::Offline;
    let away = agent.intent != AgentIntent::Active || offline;
    if first && away && agent.intent.is_live() && orders.recipe.offline != (OfflinePolicy::Fail {}) {
        let late = offline && core.reconnect_until().is_some();
        let later = late || orders.wait_until.is_some_and(|until| now < until);
        return Ok(if later { Server::Later } else { Server::Away });
    }
    Ok(match agent.intent {
        AgentIntent::Active => Server::Ready(target, agent.id),
        AgentIntent::Paused if now - agent.intent_note.at < core.rules.order_life => Server::Later,
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
    })
}

async fn assign(
    core: &Core,
    tx: &mut Tx,
    orders: &Orders,
    task: &Task,
    target: &Target,
    agent_id: AgentId,
    now: DateTime<Utc>,
) -> Result<(), ApiError> {
    let attempt = task.attempt.saturating_add(1);
    let fence = tx.next_fence(target.id).await?;
    let order = Order {
        tenant: orders.tenant.clone(),
        environment: task.environment.clone(),
        target: target.name.clone(),
        agent_id,
        target_id: target.id,
        job_id: task.job_id,
        task_id: task.id,
        attempt,
        wave: task.wave,
        fence,
        not_before: now,
        expires_at: now + core.rules.order_life,
        decision: orders.decision.clone(),
        release: orders.release.reference(),
        manifest: orders.release.manifest.clone(),
        variables: orders.variables.clone(),
        inputs: orders.inputs,
        limits: orders.recipe.limits,
        swap: orders.recipe.strategy.swap(),
    };
    let signed = match (core.sign_order)(&order) {
        Ok(signed) => signed,
        // Trying again would give the same: the lane must not wait for it.
        Err(error) => {
            let summary = format!("no order can be made for {}", target.name);
            let failure = Failure::new(FailureCode::Internal, summary).with_detail(error.to_string());
            tx.apply_task_event(task, &TaskEvent::Failed { failure }, ORCHESTRATOR, now)
                .await?;
            return Ok(());
        }
    };
    let lease = core.lease_until(now);
    let due =
        now + core.rules.order_life + attempts::longest(&order.limits, order.swap, order.manifest.hooks());
    tx.assign_task(
        task,
        agent_id,
        attempt,
        fence,
        &signed,
        lease,
        due,
        ORCHESTRATOR,
        now,
    )
    .await?;
    Ok(())
}

/// Whether the task waits for an order: for its first, or for the next attempt whose time has come.
pub fn wants_order(task: &Task, now: DateTime<Utc>) -> bool {
    match &task.state {
        TaskState::Pending => true,
        TaskState::Running {
            step: TaskStep::RetryWait,
        } => task.retry_at.is_some_and(|at| at <= now),
        TaskState::Running { .. }
        | TaskState::Assigned
        | TaskState::Accepted
        | TaskState::Lost
        | TaskState::Succeeded
        | TaskState::Failed { .. }
        | TaskState::Skipped { .. }
        | TaskState::Cancelled => false,
    }
}

/// Whether the agent may have something on the host that a stop must reach.
pub fn reaches_host(task: &Task) -> bool {
    task.state.phase().is_live() && !is_between_attempts(task)
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
