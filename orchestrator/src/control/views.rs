//! Reads from one transaction everything that a message of a promotion or a job is made of.

use std::time::Duration;

use sealift_common::{
    id::{EnvironmentId, JobId, TaskId, TenantId},
    job::JobPhase,
};
use sealift_proto::v1 as pb;
use sealift_store::{EntityKind, Job, Promotion, Task, Tx};

use crate::{
    app::resolve_release::release_of,
    convert::{
        job::{self, JobExtras},
        promotion::{Estimate, PromotionView, Waits, promotion},
    },
    names,
    status::ApiError,
};

/// Jobs from whose times a wait is estimated.
const RECENT_JOBS: u32 = 20;

/// How much of a promotion a message says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
    /// One of many.
    Listed,
    /// With what plan and gates say.
    Whole,
    /// With its history, too.
    History,
}

/// The message of a promotion.
pub async fn promotion_message(
    tx: &mut Tx,
    item: &Promotion,
    detail: Detail,
) -> Result<pb::Promotion, ApiError> {
    let release = release_of(tx, item.tenant_id, item.release_id).await?;
    let decision = tx.latest_decision(item.id).await?;
    let job = tx.job_of_promotion(item.id).await?;
    let waits = wait(tx, job.as_ref()).await?;
    let transitions = match detail {
        Detail::History => tx.transitions(EntityKind::Promotion, item.id.uuid()).await?,
        Detail::Listed | Detail::Whole => Vec::new(),
    };
    promotion(&PromotionView {
        promotion: item,
        release: &release,
        decision: decision.as_ref(),
        job: job.as_ref(),
        waits,
        transitions: &transitions,
        whole: detail != Detail::Listed,
    })
}

/// Place in the lane and the estimate of the wait.
pub async fn wait(tx: &mut Tx, job: Option<&Job>) -> Result<Waits, ApiError> {
    let Some(job) = job.filter(|job| job.state.phase() == JobPhase::Queued) else {
        return Ok(Waits::default());
    };
    let position = tx.lane_position(job).await?;
    let recent = tx.recent_job_seconds(job.environment_id, RECENT_JOBS).await?;
    let samples = recent.len();
    let estimate = median(recent)
        .and_then(|seconds| Duration::try_from_secs_f64(seconds * f64::from(position)).ok())
        .map(|wait| Estimate { wait, samples });
    Ok(Waits { position, estimate })
}

/// The middle one; `None` without experience.
fn median(mut seconds: Vec<f64>) -> Option<f64> {
    seconds.sort_by(f64::total_cmp);
    seconds.get(seconds.len() / 2).copied()
}

/// The message of a job; with its history if that is wanted.
pub async fn job_message(tx: &mut Tx, item: &Job, history: bool) -> Result<pb::Job, ApiError> {
    let release = release_of(tx, item.tenant_id, item.release_id).await?;
    let mut extras = JobExtras {
        task_counts: Some(tx.count_tasks(item.id).await?),
        waves: tx.waves_of_job(item.id).await?,
        rollback: tx.newest_rollback(item.id).await?.map(|job| job.id),
        ..JobExtras::default()
    };
    if history {
        extras.transitions = tx.transitions(EntityKind::Job, item.id.uuid()).await?;
    }
    Ok(job::job(item, &release, &extras))
}

/// The message of a task with its history.
pub async fn task_message(tx: &mut Tx, item: &Task) -> Result<pb::Task, ApiError> {
    let history = tx.transitions(EntityKind::Task, item.id.uuid()).await?;
    let packets = tx.packets_of_tasks(&[item.id]).await?;
    let packets = packets.get(&item.id).map(Vec::as_slice).unwrap_or_default();
    Ok(job::task(item, packets, &history))
}

/// The environment that a list is narrowed to.
pub async fn environment_filter(
    tx: &mut Tx,
    tenant: TenantId,
    text: &str,
) -> Result<Option<EnvironmentId>, ApiError> {
    let Some(name) = names::environment_or_all("environment", text)? else {
        return Ok(None);
    };
    let found = tx.environment_by_name(tenant, &name).await?;
    let environment =
        found.ok_or_else(|| ApiError::not_found(names::of_environment(&name), "sealift env list"))?;
    Ok(Some(environment.id))
}

/// The job of that identifier in the tenant.
pub async fn find_job(tx: &mut Tx, tenant: TenantId, id: JobId) -> Result<Job, ApiError> {
    let found = tx.job(tenant, id).await?;
    found.ok_or_else(|| ApiError::not_found(names::of_job(id), "sealift promotion list"))
}

/// The task of that identifier in a job of the tenant.
pub async fn find_task(tx: &mut Tx, tenant: TenantId, job: JobId, id: TaskId) -> Result<Task, ApiError> {
    find_job(tx, tenant, job).await?;
    let found = tx.task(id).await?.filter(|task| task.job_id == job);
    found.ok_or_else(|| ApiError::not_found(names::of_task(job, id), "sealift job tasks"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle_one() {
        assert_eq!(median(Vec::new()), None);
        assert_eq!(median(vec![9.0, 1.0, 2.0]), Some(2.0));
    }
}
