//! What a person may do to a job under way: pause it, let it go on, have it undone, leave a target out. Each stores the wish; the
//! scheduler does the rest.

use chrono::{DateTime, Utc};
use sealift_common::{
    error::Reason,
    failure::{Failure, FailureCode},
    job::{JobEvent, JobPhase, Pause, Stop, StopWish},
    task::{SkipReason, TaskEvent, TaskPhase},
};
use sealift_store::{By, Job, Task, Tx};

use crate::status::ApiError;

/// Keeps a job from beginning anything new; what is under way ends.
pub async fn pause_job(tx: &mut Tx, job: &Job, by: By<'_>, now: DateTime<Utc>) -> Result<Job, ApiError> {
    match job.state.phase() {
        // One that waits behind a gate waits for the person from now on; other pauses stay what they are.
        JobPhase::Running | JobPhase::Paused if job.stop.is_none() => {
            let event = JobEvent::Paused { why: Pause::Operator };
            Ok(tx.apply_job_event(job, &event, by, now).await?)
        }
        JobPhase::Paused => Ok(job.clone()),
        _ => Err(wrong_state(
            job,
            "only a running job that is not being stopped can be paused",
        )),
    }
}

/// Lets a paused job go on: a canary passes if it runs still, failures so far are accepted, gates are asked again.
pub async fn resume_job(tx: &mut Tx, job: &Job, actor: &str, now: DateTime<Utc>) -> Result<Job, ApiError> {
    let Some(why) = job.state.pause() else {
        return match job.state.phase() {
            JobPhase::Running => Ok(job.clone()),
            _ => Err(wrong_state(job, "only a paused job can go on")),
        };
    };
    let mut job = job.clone();
    match why {
        Pause::Failures => {
            let tasks = tx.tasks_of_job(job.id).await?;
            let missed = tasks
                .iter()
                .filter(|task| matches!(task.state.phase(), TaskPhase::Failed | TaskPhase::Cancelled));
            let accepted = u32::try_from(missed.count()).unwrap_or(u32::MAX);
            job = tx.accept_job_failures(&job, accepted, actor, now).await?;
        }
        Pause::Canary | Pause::Operator | Pause::Gate(_) => {}
    }
    // The history keeps what was let go on: for a canary that is the person's yes, and the scheduler, which looks at the canary once
    // more before it passes, finds it there.
    let by = By {
        actor,
        reason: why.reason().as_str(),
    };
    Ok(tx.apply_job_event(&job, &JobEvent::Resumed, by, now).await?)
}

/// Ends a job before its time and has undone what it changed.
pub async fn abort_job(
    tx: &mut Tx,
    job: &Job,
    reason: &str,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<Job, ApiError> {
    match job.state.phase() {
        JobPhase::Running | JobPhase::Paused => {
            let summary = match reason {
                "" => format!("aborted by {actor}"),
                reason => format!("aborted by {actor}: {reason}"),
            };
            let stop = Stop {
                wish: StopWish::RollBack,
                failure: Failure::new(FailureCode::Aborted, summary),
            };
            request_stop(tx, job, &stop, actor, now).await
        }
        JobPhase::RollingBack => Ok(job.clone()),
        _ => Err(wrong_state(job, "only a job under way can be aborted")),
    }
}

/// Notes a person's wish that a job ends before its time. Asking for the same again changes nothing; asking for less than what is
/// under way already is refused, for it would change nothing either.
pub async fn request_stop(
    tx: &mut Tx,
    job: &Job,
    stop: &Stop,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<Job, ApiError> {
    let Some(before) = job.stop.as_ref().filter(|before| before.outdoes(stop)) else {
        return Ok(tx.request_job_stop(job, stop, actor, now).await?);
    };
    let (what, more) = match before.wish {
        StopWish::Finish | StopWish::Cancel => {
            ("what runs stops", "sealift job abort undoes what has changed")
        }
        StopWish::Fail => ("it fails", "sealift job abort undoes what has changed"),
        StopWish::RollBack => (
            "what has changed is undone",
            "promote the release again once that is done",
        ),
    };
    let why = &before.failure.summary;
    Err(ApiError::new(
        Reason::WrongState,
        format!("the job is ending already, and {what}: {why}"),
        format!("wait for its end (sealift job get {}); {more}", job.id),
    )
    .precondition("JOB_ENDING", format!("jobs/{}", job.id), before.wish.as_str()))
}

/// Leaves a target alone that has not begun.
pub async fn skip_task(tx: &mut Tx, task: &Task, by: By<'_>, now: DateTime<Utc>) -> Result<Task, ApiError> {
    if task.state.phase() != TaskPhase::Pending {
        return Err(ApiError::new(
            Reason::WrongState,
            format!(
                "the task on {} is {} and can no longer be skipped",
                task.target,
                task.state.phase()
            ),
            "cancel its promotion or abort its job to stop what has begun",
        )
        .precondition(
            "TASK_BEGUN",
            format!("tasks/{}", task.id),
            task.state.phase().as_str(),
        ));
    }
    let event = TaskEvent::Skipped {
        reason: SkipReason::Operator,
    };
    Ok(tx.apply_task_event(task, &event, by, now).await?)
}

fn wrong_state(job: &Job, rule: &str) -> ApiError {
    let phase = job.state.phase();
    ApiError::new(
        Reason::WrongState,
        format!("{rule}; this one is {phase}"),
        format!("see sealift job get {}", job.id),
    )
    .precondition("JOB_STATE", format!("jobs/{}", job.id), phase.as_str())
}
