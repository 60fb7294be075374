//! Ends a job that cannot be moved: a defect, or data that does not fit. Its lane must not wait for it for ever (R1).

use sealift_common::{
    failure::{Failure, FailureCode},
    id::JobId,
    job::{JobEvent, JobPhase},
    promotion::PromotionEvent,
    task::{TaskEvent, TaskPhase},
};
use sealift_store::{Job, Tx};

use crate::{
    app::{Core, ORCHESTRATOR, advance_job::BATCH, assign_tasks::is_between_attempts, turn::Turn},
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
        JobPhase::Queued => fail(core, &mut tx, &job, failure).await?,
        JobPhase::Running => fail_tasks(core, &mut tx, &job, failure).await?,
        JobPhase::Succeeded | JobPhase::Failed | JobPhase::Cancelled => return Ok(()),
    }
    tx.commit().await?;
    Ok(())
}

async fn fail_tasks(core: &Core, tx: &mut Tx, job: &Job, failure: Failure) -> Result<(), ApiError> {
    let now = core.clock.now();
    let tasks = tx.tasks_of_job(job.id).await?;
    if tasks.iter().all(|task| task.state.phase().is_terminal()) {
        return fail(core, tx, job, failure).await;
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
    if !job.stop {
        tx.request_job_stop(job, &failure.summary, ORCHESTRATOR, now)
            .await?;
    }
    Ok(())
}

async fn fail(core: &Core, tx: &mut Tx, job: &Job, failure: Failure) -> Result<(), ApiError> {
    let now = core.clock.now();
    let event = JobEvent::Failed {
        failure: failure.clone(),
    };
    tx.apply_job_event(job, &event, ORCHESTRATOR, now).await?;
    if let Some(promotion) = tx.promotion(job.tenant_id, job.promotion_id).await? {
        let event = PromotionEvent::JobFailed;
        tx.apply_promotion_event(&promotion, event, Some(&failure), ORCHESTRATOR, now)
            .await?;
    }
    Ok(())
}
