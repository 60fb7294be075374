//! Brings a running job forward by what its tasks allow: opens waves, closes the rest after a failure or a cancel, orders further
//! attempts, passes a stop on, and ends the job. Each call does a bounded piece of work and says whether there is more.

use std::collections::BTreeMap;

use chrono::TimeDelta;
use sealift_common::{
    failure::{Failure, FailureCode},
    id::{ComponentId, JobId, ReleaseId},
    job::{self, JobEvent, JobNext, JobPhase, TaskSummary},
    promotion::PromotionEvent,
    task::{SkipReason, TaskEvent, TaskPhase, TaskState, Wanted},
};
use sealift_store::{Job, Task, Tx};

use crate::{
    app::{
        Core, ORCHESTRATOR,
        assign_tasks::{Orders, assign_tasks, is_between_attempts, reaches_host, wants_order},
        attempts,
        turn::Turn,
    },
    status::ApiError,
};

/// Most tasks that one transaction changes.
pub const BATCH: usize = 100;

/// What a call did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Advance {
    /// Nothing was to be done.
    Idle,
    /// Something was done; there may be more.
    Worked,
    /// The job has ended.
    Ended,
}

/// Does the next piece of work of the job.
pub async fn advance_job(core: &Core, turn: &Turn, id: JobId) -> Result<Advance, ApiError> {
    let mut tx = turn.read().await?;
    let Some(job) = tx
        .job_by_id(id)
        .await?
        .filter(|job| job.state.phase() == JobPhase::Running)
    else {
        return Ok(Advance::Idle);
    };
    let tasks = tx.tasks_of_job(id).await?;
    drop(tx);

    match job::next(&summaries(&tasks), job.stop) {
        JobNext::End(event) => {
            end_job(core, turn, &job, &event).await?;
            Ok(Advance::Ended)
        }
        JobNext::CloseRest => close_rest(core, turn, &job, &tasks).await,
        JobNext::OpenWave(wave) => {
            let opened = order(core, turn, &job, &tasks, |task, wave| task.wave == wave, wave).await?;
            if opened == Advance::Idle {
                attend(core, turn, &job, &tasks).await
            } else {
                Ok(opened)
            }
        }
        JobNext::Wait => attend(core, turn, &job, &tasks).await,
    }
}

fn summaries(tasks: &[Task]) -> Vec<TaskSummary> {
    tasks
        .iter()
        .map(|task| TaskSummary {
            wave: task.wave,
            phase: task.state.phase(),
            failure: match &task.state {
                TaskState::Failed { failure } => Some(failure.clone()),
                TaskState::Pending
                | TaskState::Assigned
                | TaskState::Accepted
                | TaskState::Running { .. }
                | TaskState::Lost
                | TaskState::Succeeded
                | TaskState::Skipped { .. }
                | TaskState::Cancelled => None,
            },
        })
        .collect()
}

/// Makes orders for the first batch of those that want one.
async fn order(
    core: &Core,
    turn: &Turn,
    job: &Job,
    tasks: &[Task],
    among: fn(&Task, u32) -> bool,
    wave: u32,
) -> Result<Advance, ApiError> {
    let now = core.clock.now();
    let waiting: Vec<&Task> = tasks
        .iter()
        .filter(|task| among(task, wave) && wants_order(task, now))
        .collect();
    if waiting.is_empty() {
        return Ok(Advance::Idle);
    }
    let mut tx = turn.write().await?;
    let orders = Orders::of(&mut tx, job).await?;
    // Targets that are still occupied must not keep those behind them waiting.
    let mut changed = 0;
    for batch in waiting.chunks(BATCH) {
        changed += assign_tasks(core, &mut tx, &orders, batch).await?;
        if changed >= BATCH {
            break;
        }
    }
    tx.commit().await?;
    Ok(if changed == 0 {
        Advance::Idle
    } else {
        Advance::Worked
    })
}

/// After a failure or a cancel: what has not begun never begins.
async fn close_rest(core: &Core, turn: &Turn, job: &Job, tasks: &[Task]) -> Result<Advance, ApiError> {
    let event = if job.stop {
        TaskEvent::Withdrawn
    } else {
        TaskEvent::Skipped {
            reason: SkipReason::EarlierWaveFailed,
        }
    };
    let now = core.clock.now();
    let mut tx = turn.write().await?;
    for task in tasks
        .iter()
        .filter(|task| task.state.phase() == TaskPhase::Pending)
        .take(BATCH)
    {
        tx.apply_task_event(task, &event, ORCHESTRATOR, now).await?;
    }
    tx.commit().await?;
    Ok(Advance::Worked)
}

/// What live tasks need: a stop passed on, or the next attempt.
async fn attend(core: &Core, turn: &Turn, job: &Job, tasks: &[Task]) -> Result<Advance, ApiError> {
    if job.stop {
        return stop(core, turn, tasks).await;
    }
    let now = core.clock.now();
    let undated: Vec<_> = tasks
        .iter()
        .filter(|task| is_between_attempts(task) && task.retry_at.is_none())
        .take(BATCH)
        .collect();
    if !undated.is_empty() {
        let mut tx = turn.write().await?;
        for task in undated {
            let wait =
                TimeDelta::from_std(attempts::retry_wait(task.attempt)).unwrap_or(TimeDelta::minutes(1));
            tx.set_task_retry(task, now + wait, ORCHESTRATOR, now).await?;
        }
        tx.commit().await?;
        return Ok(Advance::Worked);
    }
    order(core, turn, job, tasks, |task, _| is_between_attempts(task), 0).await
}

async fn stop(core: &Core, turn: &Turn, tasks: &[Task]) -> Result<Advance, ApiError> {
    let now = core.clock.now();
    let told = |task: &&Task| is_between_attempts(task) || (reaches_host(task) && task.wanted == Wanted::Run);
    let batch: Vec<_> = tasks.iter().filter(told).take(BATCH).collect();
    if batch.is_empty() {
        return Ok(Advance::Idle);
    }
    let mut tx = turn.write().await?;
    for task in batch {
        if is_between_attempts(task) {
            tx.apply_task_event(task, &TaskEvent::Withdrawn, ORCHESTRATOR, now)
                .await?;
        } else {
            tx.set_task_wanted(task, Wanted::Stop, ORCHESTRATOR, now).await?;
        }
    }
    tx.commit().await?;
    Ok(Advance::Worked)
}

/// Ends the job and its promotion; success makes the release the active one, all in one transaction (R2, R8).
async fn end_job(core: &Core, turn: &Turn, job: &Job, event: &JobEvent) -> Result<(), ApiError> {
    let now = core.clock.now();
    let mut tx = turn.write().await?;
    let promotion = tx
        .promotion(job.tenant_id, job.promotion_id)
        .await?
        .ok_or_else(|| ApiError::internal("a job without its promotion"))?;
    let (outcome, failure) = match event {
        JobEvent::Completed => (PromotionEvent::JobSucceeded, None),
        JobEvent::Failed { failure } => (PromotionEvent::JobFailed, Some(failure.clone())),
        JobEvent::Cancelled => {
            let failure = Failure::new(FailureCode::Cancelled, job.stop_reason.clone());
            (PromotionEvent::JobCancelled, Some(failure))
        }
        JobEvent::Started => return Err(ApiError::internal("a running job cannot end by starting")),
    };
    let ended = tx.apply_job_event(job, event, ORCHESTRATOR, now).await?;
    tx.apply_promotion_event(&promotion, outcome, failure.as_ref(), ORCHESTRATOR, now)
        .await?;
    if ended.state.phase() == JobPhase::Succeeded {
        activate(&mut tx, &ended, now).await?;
    }
    tx.commit().await?;
    Ok(())
}

async fn activate(tx: &mut Tx, job: &Job, now: chrono::DateTime<chrono::Utc>) -> Result<(), ApiError> {
    let release = tx
        .release(job.tenant_id, job.release_id)
        .await?
        .ok_or_else(|| ApiError::internal("a job without its release"))?;
    let active: BTreeMap<ComponentId, ReleaseId> = tx
        .active(job.environment_id)
        .await?
        .into_iter()
        .map(|row| (row.component.id, row.release))
        .collect();
    let is_active = release
        .components
        .values()
        .all(|component| active.get(&component.component_id) == Some(&release.id));
    // Promoting what is active already keeps "since when" true.
    if !is_active {
        tx.activate_release(job.environment_id, &release, job.id, now)
            .await?;
    }
    Ok(())
}
