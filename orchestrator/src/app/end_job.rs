//! Ends a job and its promotion in one transaction. Success makes the release the active one (R2, R8); the end of a rollback ends
//! the job that it undoes.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sealift_common::{
    failure::{Failure, FailureCode},
    id::{ComponentId, ReleaseId},
    job::{JobEvent, JobPhase, JobState},
    promotion::PromotionEvent,
    task::{SkipReason, TaskState},
};
use sealift_store::{Job, Promotion, Tx};

use crate::{
    app::{
        Core, ORCHESTRATOR,
        repeat_job::{original, overtaken},
        resolve_release::release_of,
    },
    status::ApiError,
};

/// Ends the job by `event`, which must be a final one.
pub async fn end_job(core: &Core, tx: &mut Tx, job: &Job, event: &JobEvent) -> Result<Job, ApiError> {
    let now = core.clock.now();
    let promotion = tx
        .promotion(job.tenant_id, job.promotion_id)
        .await?
        .ok_or_else(|| ApiError::internal("a job without its promotion"))?;
    let (outcome, failure) = match event {
        JobEvent::Completed => (PromotionEvent::JobSucceeded, None),
        JobEvent::Failed { failure } | JobEvent::RollbackFailed { failure } => {
            (PromotionEvent::JobFailed, Some(failure.clone()))
        }
        JobEvent::Cancelled => {
            let failure = job.stop.as_ref().map(|stop| stop.failure.clone());
            let failure =
                failure.unwrap_or_else(|| Failure::new(FailureCode::Cancelled, "stopped on its targets"));
            (PromotionEvent::JobCancelled, Some(failure))
        }
        JobEvent::RolledBack => (PromotionEvent::JobRolledBack, job.state.failure().cloned()),
        JobEvent::Started
        | JobEvent::Superseded
        | JobEvent::Paused { .. }
        | JobEvent::Resumed
        | JobEvent::RollbackStarted { .. } => {
            return Err(ApiError::internal("no job ends like that"));
        }
    };
    let ended = tx.apply_job_event(job, event, ORCHESTRATOR, now).await?;
    tx.apply_promotion_event(&promotion, outcome, failure.as_ref(), ORCHESTRATOR, now)
        .await?;
    if ended.state.phase() == JobPhase::Succeeded && activates(tx, &promotion).await? {
        activate(tx, &ended, now).await?;
    }
    if brings_what_is_active(tx, &ended).await? {
        remember_left_out(tx, &ended, now).await?;
    }
    end_undone(core, tx, &ended).await?;
    Ok(ended)
}

/// Whether the targets that a job left alone have something to catch up with by it: it succeeded, or all of them were away from
/// which the active release was to be run.
async fn brings_what_is_active(tx: &mut Tx, job: &Job) -> Result<bool, ApiError> {
    Ok(match &job.state {
        JobState::Succeeded => true,
        JobState::Failed { failure } if failure.code == FailureCode::NothingChanged => {
            let active = tx.active(job.environment_id).await?;
            active.iter().any(|row| row.release == job.release_id)
        }
        _ => false,
    })
}

/// Targets whose agents were away catch up when they are back.
async fn remember_left_out(tx: &mut Tx, job: &Job, now: DateTime<Utc>) -> Result<(), ApiError> {
    let tasks = tx.tasks_of_job(job.id).await?;
    let offline = TaskState::Skipped {
        reason: SkipReason::Offline,
    };
    let targets: Vec<_> = tasks
        .iter()
        .filter(|task| task.state == offline)
        .map(|task| task.target_id)
        .collect();
    if !targets.is_empty() {
        let release = release_of(tx, job.tenant_id, job.release_id).await?;
        tx.leave_out(&targets, release.project_id, now).await?;
    }
    Ok(())
}

/// A part of an environment says nothing about the whole, unless it completes what a job for the whole began, and nothing else took
/// the place of that meanwhile.
async fn activates(tx: &mut Tx, promotion: &Promotion) -> Result<bool, ApiError> {
    let Some(original) = original(tx, promotion).await? else {
        return Ok(false);
    };
    if original.promotion.scope.is_some() && original.promotion.rollback_of.is_none() {
        return Ok(false);
    }
    Ok(match original.repeated {
        None => true,
        Some(job) => overtaken(tx, &job).await?.is_none(),
    })
}

async fn activate(tx: &mut Tx, job: &Job, now: DateTime<Utc>) -> Result<(), ApiError> {
    let release = release_of(tx, job.tenant_id, job.release_id).await?;
    let active: BTreeMap<ComponentId, ReleaseId> = tx
        .active(job.environment_id)
        .await?
        .into_iter()
        .filter(|row| row.project == release.source.project)
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

/// The job that a rollback undoes ends with it: rolled back only if every target is. A rollback never starts another one. Does
/// nothing after a job that is no rollback.
pub async fn end_undone(core: &Core, tx: &mut Tx, rollback: &Job) -> Result<(), ApiError> {
    let Some(undone) = rollback.rollback_of else {
        return Ok(());
    };
    let undone = tx
        .job_by_id(undone)
        .await?
        .ok_or_else(|| ApiError::internal("a rollback of no job"))?;
    // A rollback of what once succeeded changes nothing about that success.
    if !matches!(undone.state, JobState::RollingBack { .. }) {
        return Ok(());
    }
    let event = match unfinished(tx, rollback).await? {
        None => JobEvent::RolledBack,
        Some(failure) => JobEvent::RollbackFailed { failure },
    };
    Box::pin(end_job(core, tx, &undone, &event)).await?;
    Ok(())
}

/// What a rollback did not undo.
async fn unfinished(tx: &mut Tx, rollback: &Job) -> Result<Option<Failure>, ApiError> {
    let failed = |why: &str| Failure::new(FailureCode::RollbackFailed, why);
    match &rollback.state {
        JobState::Succeeded => {
            let tasks = tx.tasks_of_job(rollback.id).await?;
            let left: Vec<_> = tasks
                .iter()
                .filter(|task| match task.state {
                    TaskState::Skipped { reason } => reason != SkipReason::AlreadyRunning,
                    _ => false,
                })
                .map(|task| task.target.as_str())
                .take(5)
                .collect();
            Ok((!left.is_empty()).then(|| failed(&format!("targets were left alone: {}", left.join(", ")))))
        }
        JobState::Cancelled => Ok(Some(failed("the rollback was cancelled"))),
        other => Ok(Some(match other.failure() {
            Some(failure) => failed("the rollback failed").with_detail(failure.to_string()),
            None => failed("the rollback did not end"),
        })),
    }
}
