//! Ends a job that cannot be moved: a defect, or data that does not fit. Its lane must not wait for it for ever (R1).

use sealift_common::{
    failure::{Failure, FailureCode},
    id::JobId,
    job::{JobEvent, JobPhase, Stop, StopWish},
    task::{TaskEvent, TaskPhase},
};
use sealift_store::{Job, Tx};

use crate::{
    app::{
        Core, ORCHESTRATOR, advance_job::BATCH, assign_tasks::is_between_attempts, end_job::end_job,
        turn::Turn,
    },
    status::ApiError,
};

/// Fails the job. One that runs fails by its tasks: those that no agent works on fail now, the others are asked to stop and say
/// how they ended.
pub async fn give_up_job(core: &Core, turn: &Turn, id: JobId, why: &str) -> Result<(), ApiError> {
    let mut tx = turn.write().await?;
    let Some(job) = tx.job_by_id(id).await? else {
        return Ok(());
    };
    let failure =
        Failure::new(FailureCode::Internal, "the orchestrator cannot move this job").with_detail(why);
    match job.state.phase() {
        JobPhase::Queued => drop(end_job(core, &mut tx, &job, &JobEvent::Failed { failure }).await?),
        JobPhase::Running | JobPhase::Paused => fail_tasks(core, &mut tx, &job, failure).await?,
        JobPhase::RollingBack
        | JobPhase::Succeeded
        | JobPhase::Failed
        | JobPhase::Cancelled
        | JobPhase::RolledBack
        | JobPhase::RollbackFailed => return Ok(()),
    }
    tx.commit().await?;
    Ok(())
}

async fn fail_tasks(core: &Core, tx: &mut Tx, job: &Job, failure: Failure) -> Result<(), ApiError> {
    let now = core.clock.now();
    let tasks = tx.tasks_of_job(job.id).await?;
    if tasks.iter().all(|task| task.state.phase().is_terminal()) {
        end_job(core, tx, job, &JobEvent::Failed { failure }).await?;
        return Ok(());
    }
    let idle = tasks
        .iter()
        .filter(|task| task.state.phase() == TaskPhase::Pending || is_between_attempts(task));
    for task in idle.take(BATCH) {
        let event = TaskEvent::Failed {
            failure: failure.clone(),
        };
        tx.apply_task_event(task, &event, ORCHESTRATOR, now).await?;
    }
    let stop = Stop {
        wish: StopWish::Fail,
        failure,
    };
    tx.request_job_stop(job, &stop, ORCHESTRATOR, now).await?;
    Ok(())
}
