//! Starts the job at the head of a lane when its turn has come: the gates are asked again, the plan is made again, then waves and
//! tasks are made in the same transaction that marks it as running (R1: in ticket order, never more than the lane allows).

use chrono::{DateTime, Utc};
use sealift_common::{
    decision::{DecisionRecord, Requester, Stage, Verdict},
    failure::{Failure, FailureCode},
    id::{EnvironmentId, TaskId},
    job::JobEvent,
    order::Fence,
    promotion::PromotionEvent,
    task::{SkipReason, TaskEvent, TaskState, Wanted},
};
use sealift_store::{Job, Promotion, Task, Tx};

use crate::{
    app::{
        Core, ORCHESTRATOR,
        create_promotion::decision_row,
        end_job::end_job,
        repeat_job::stale_repeat,
        resolve_release::release_of,
        survey::{Ask, Survey, survey},
    },
    status::ApiError,
};

/// What became of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Started {
    /// Nothing waits, or the lane has no room.
    Nothing,
    /// The head's agents are not back yet after a start of the orchestrator: look again soon.
    NotYet,
    /// The head runs now.
    Running,
    /// The head's gates no longer pass, or it repeats what the project has moved on from; it failed.
    Refused,
}

/// Whether nothing of a lane with room can start now, as far as that is known without the right to write: nothing is at its head, or
/// what is waits for agents that may only be late.
pub async fn is_waiting(core: &Core, tx: &mut Tx, lane: EnvironmentId) -> Result<bool, ApiError> {
    let Some(job) = tx.lane_head(lane).await? else {
        return Ok(true);
    };
    if core.reconnect_until().is_none() {
        return Ok(false);
    }
    let promotion = promotion_of(tx, &job).await?;
    let survey = look_again(core, tx, &job, &promotion).await?;
    Ok(survey.record.result == Verdict::Wait)
}

async fn promotion_of(tx: &mut Tx, job: &Job) -> Result<Promotion, ApiError> {
    tx.promotion(job.tenant_id, job.promotion_id)
        .await?
        .ok_or_else(|| ApiError::internal("a job without its promotion"))
}

/// Starts the head of the lane if it may.
pub async fn start_job(core: &Core, tx: &mut Tx, lane: EnvironmentId) -> Result<Started, ApiError> {
    let now = core.clock.now();
    // A rollback that comes at the same time must see it under way, or go first.
    tx.lock_lane(lane).await?;
    let Some(job) = tx.lane_head(lane).await? else {
        return Ok(Started::Nothing);
    };
    if tx.running_in_lane(lane).await? >= core.rules.lane_capacity {
        return Ok(Started::Nothing);
    }
    let promotion = promotion_of(tx, &job).await?;
    if let Some(failure) = stale_repeat(tx, &promotion).await? {
        end_job(core, tx, &job, &JobEvent::Failed { failure }).await?;
        return Ok(Started::Refused);
    }
    let survey = look_again(core, tx, &job, &promotion).await?;
    // Its place in the lane is no reason to wait any more: an agent is that may only be late.
    if survey.record.result == Verdict::Wait {
        return Ok(Started::NotYet);
    }
    tx.insert_decision(&decision_row(&survey, promotion.id, now))
        .await?;
    if !survey.record.passed() {
        let event = JobEvent::Failed {
            failure: Failure::new(FailureCode::GateClosed, survey.record.refusal()),
        };
        end_job(core, tx, &job, &event).await?;
        return Ok(Started::Refused);
    }
    let promotion = if promotion.plan_digest == survey.plan_digest {
        promotion
    } else {
        tx.update_promotion_plan(
            &promotion,
            &survey.plan_json,
            survey.plan_digest,
            ORCHESTRATOR,
            now,
        )
        .await?
    };
    tx.insert_waves(job.id, &survey.plan.waves).await?;
    make_tasks(tx, &job, &survey, now).await?;
    tx.apply_job_event(&job, &JobEvent::Started, ORCHESTRATOR, now)
        .await?;
    tx.apply_promotion_event(&promotion, PromotionEvent::JobStarted, None, ORCHESTRATOR, now)
        .await?;
    Ok(Started::Running)
}

async fn look_again(core: &Core, tx: &mut Tx, job: &Job, promotion: &Promotion) -> Result<Survey, ApiError> {
    let environment = tx
        .environment(job.tenant_id, job.environment_id)
        .await?
        .ok_or_else(|| ApiError::internal("a job without its environment"))?;
    let release = release_of(tx, job.tenant_id, job.release_id).await?;
    // Who looked at a plan meant that plan, also when the turn comes later.
    let before = tx
        .latest_decision(promotion.id)
        .await?
        .ok_or_else(|| ApiError::internal("an approved promotion without a decision"))?;
    let before = DecisionRecord::from_bytes(&before.record).map_err(ApiError::internal)?;
    let ask = Ask {
        environment: &environment,
        release: &release,
        recipe: &promotion.recipe,
        scope: promotion.scope.as_deref(),
        undoes: promotion.rollback_of,
        choice: before.inputs.choice.as_ref(),
        promotion: Some(promotion.id),
        stage: Stage::Start,
        requester: Requester {
            actor: promotion.requested_by.clone(),
            role: promotion.requester_role,
        },
        plan_seen: before.inputs.plan_seen,
    };
    survey(core, tx, ask).await
}

async fn make_tasks(tx: &mut Tx, job: &Job, survey: &Survey, now: DateTime<Utc>) -> Result<(), ApiError> {
    let agents: std::collections::BTreeMap<_, _> = survey
        .targets
        .iter()
        .map(|target| (target.id, target.agent_id))
        .collect();
    let tasks: Vec<_> = survey
        .plan
        .targets
        .iter()
        .map(|planned| Task {
            id: TaskId::new(now),
            job_id: job.id,
            tenant_id: job.tenant_id,
            target_id: planned.target_id,
            target: planned.target.clone(),
            environment: job.environment.clone(),
            agent_id: agents.get(&planned.target_id).copied().flatten(),
            wave: planned.wave,
            state: TaskState::Pending,
            wanted: Wanted::Run,
            attempt: 0,
            fence: Fence::default(),
            order: None,
            lease_until: None,
            retry_at: None,
            version: 0,
            created_at: now,
            started_at: None,
            finished_at: None,
        })
        .collect();
    tx.insert_tasks(&tasks).await?;
    let skip = TaskEvent::Skipped {
        reason: SkipReason::AlreadyRunning,
    };
    for (task, planned) in tasks.iter().zip(&survey.plan.targets) {
        if planned.no_op {
            tx.apply_task_event(task, &skip, ORCHESTRATOR, now).await?;
        }
    }
    Ok(())
}
