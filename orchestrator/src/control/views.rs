//! Reads from one transaction everything that a message of a promotion or a job is made of.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use chrono::{DateTime, Utc};
use sealift_common::{
    id::{EnvironmentId, JobId, ReleaseId, TaskId, TenantId},
    job::JobPhase,
};
use sealift_proto::v1 as pb;
use sealift_store::{EntityKind, FailedPlace, Job, PageRequest, Promotion, Task, Tx};
use uuid::Uuid;

use crate::{
    convert::{
        decision,
        job::{self, JobExtras, TaskExtras},
        promotion::{Estimate, PromotionView, Waits, promotion},
        state::release_display,
    },
    names,
    status::ApiError,
};

/// Jobs from whose times a wait is estimated.
const RECENT_JOBS: u32 = 20;
/// Most failures of attempts in the message of one job or task.
const FAILURES: u32 = 20;

/// How much the message of one promotion says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Detail {
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
    let called = release_called(tx, item.release_id).await?;
    let decided = tx.latest_decision(item.id).await?;
    let decided = decided.map(|row| decision::decision(&row.record));
    let job = tx.job_of_promotion(item.id).await?;
    let waits = wait(tx, job.as_ref()).await?;
    let transitions = match detail {
        Detail::History => tx.transitions(EntityKind::Promotion, item.id.uuid()).await?,
        Detail::Whole => Vec::new(),
    };
    let times = promotions_failed_at(tx, std::slice::from_ref(item)).await?;
    promotion(PromotionView {
        failed_at: times.get(&item.id.uuid()).copied(),
        promotion: item,
        release: &called,
        decision: decided.transpose().map_err(ApiError::internal)?,
        job: job.as_ref(),
        waits,
        transitions: &transitions,
        whole: true,
    })
}

/// The messages of a page of promotions, without what plans and gates say. What belongs to them is read for all at once.
pub async fn promotion_messages(tx: &mut Tx, items: &[Promotion]) -> Result<Vec<pb::Promotion>, ApiError> {
    let ids: Vec<_> = items.iter().map(|item| item.id).collect();
    let called = releases_called(tx, items.iter().map(|item| item.release_id)).await?;
    let decisions = tx.decision_heads(&ids).await?;
    let jobs = tx.jobs_of_promotions(&ids).await?;
    let times = promotions_failed_at(tx, items).await?;
    let mut messages = Vec::with_capacity(items.len());
    for item in items {
        let job = jobs.get(&item.id);
        let waits = wait(tx, job).await?;
        messages.push(promotion(PromotionView {
            failed_at: times.get(&item.id.uuid()).copied(),
            promotion: item,
            release: called_of(&called, item.release_id)?,
            decision: decisions.get(&item.id).map(decision::head),
            job,
            waits,
            transitions: &[],
            whole: false,
        })?);
    }
    Ok(messages)
}

/// The messages of a page of jobs.
pub async fn job_messages(tx: &mut Tx, items: &[Job]) -> Result<Vec<pb::Job>, ApiError> {
    let called = releases_called(tx, items.iter().map(|item| item.release_id)).await?;
    let times = jobs_failed_at(tx, items).await?;
    let message = |item: &Job| {
        // Without counts: they would be read from all tasks of all these jobs.
        let extras = JobExtras {
            failed_at: times.get(&item.id.uuid()).copied(),
            ..JobExtras::default()
        };
        Ok(job::job(item, called_of(&called, item.release_id)?, &extras))
    };
    items.iter().map(message).collect()
}

/// When the failures of jobs were told, of those that have one.
async fn jobs_failed_at(tx: &mut Tx, items: &[Job]) -> Result<BTreeMap<Uuid, DateTime<Utc>>, ApiError> {
    let failed = items
        .iter()
        .filter_map(|item| Some((item.id.uuid(), item.state.failure()?)));
    let failed: Vec<_> = failed.collect();
    Ok(tx.failure_times(EntityKind::Job, &failed).await?)
}

/// When the failure of a job was told; `None` when it has none.
pub async fn job_failed_at(tx: &mut Tx, item: &Job) -> Result<Option<DateTime<Utc>>, ApiError> {
    let times = jobs_failed_at(tx, std::slice::from_ref(item)).await?;
    Ok(times.get(&item.id.uuid()).copied())
}

/// When the failures of promotions were told, of those that have one.
async fn promotions_failed_at(
    tx: &mut Tx,
    items: &[Promotion],
) -> Result<BTreeMap<Uuid, DateTime<Utc>>, ApiError> {
    let failed = items
        .iter()
        .filter_map(|item| Some((item.id.uuid(), item.failure.as_ref()?)));
    let failed: Vec<_> = failed.collect();
    Ok(tx.failure_times(EntityKind::Promotion, &failed).await?)
}

/// What a release that another row names is called.
pub async fn release_called(tx: &mut Tx, id: ReleaseId) -> Result<String, ApiError> {
    let called = releases_called(tx, [id]).await?;
    called_of(&called, id).map(str::to_owned)
}

/// What releases are called, read for all at once.
pub async fn releases_called(
    tx: &mut Tx,
    ids: impl IntoIterator<Item = ReleaseId>,
) -> Result<BTreeMap<ReleaseId, String>, ApiError> {
    let ids: BTreeSet<ReleaseId> = ids.into_iter().collect();
    let ids: Vec<ReleaseId> = ids.into_iter().collect();
    let names = tx.release_names(&ids).await?.into_iter();
    let called = names.map(|(id, name)| (id, release_display(&name.project, name.number)));
    Ok(called.collect())
}

/// What one of them is called. A release is never taken away, so its absence is a defect.
pub fn called_of(called: &BTreeMap<ReleaseId, String>, id: ReleaseId) -> Result<&str, ApiError> {
    let found = called.get(&id).map(String::as_str);
    found.ok_or_else(|| ApiError::internal(format!("release {id} is named and not there")))
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
    let called = release_called(tx, item.release_id).await?;
    let mut extras = JobExtras {
        task_counts: Some(tx.count_tasks(item.id).await?),
        waves: tx.waves_of_job(item.id).await?,
        rollback: tx.newest_rollback(item.id).await?.map(|job| job.id),
        failed_at: job_failed_at(tx, item).await?,
        ..JobExtras::default()
    };
    if history {
        extras.transitions = tx.transitions(EntityKind::Job, item.id.uuid()).await?;
        extras.failure_count = tx.count_failures_of_job(item.id).await?;
        let newest = tx.failures_of_job(item.id, &PageRequest::first(FAILURES)).await?;
        extras.failures = newest.items;
    }
    Ok(job::job(item, &called, &extras))
}

/// The message of a task with its history.
pub async fn task_message(tx: &mut Tx, item: &Task) -> Result<pb::Task, ApiError> {
    let history = tx.transitions(EntityKind::Task, item.id.uuid()).await?;
    let packets = tx.packets_of_tasks(&[item.id]).await?;
    let failures = tx
        .failures_of_task(item.id, &PageRequest::first(FAILURES))
        .await?
        .items;
    let extras = TaskExtras {
        packets: packets.get(&item.id).map(Vec::as_slice).unwrap_or_default(),
        history: &history,
        place: failures.first().map(|newest| FailedPlace {
            attempt: newest.attempt,
            step: newest.step,
        }),
        failures: &failures,
    };
    Ok(job::task(item, extras))
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
    found.ok_or_else(|| ApiError::not_found(names::of_job(id), "sealift job list"))
}

/// The task of that identifier in a job of the tenant.
pub async fn find_task(tx: &mut Tx, tenant: TenantId, job: JobId, id: TaskId) -> Result<Task, ApiError> {
    find_job(tx, tenant, job).await?;
    let found = tx.task(id).await?.filter(|task| task.job_id == job);
    found.ok_or_else(|| ApiError::not_found(names::of_task(job, id), &format!("sealift job tasks {job}")))
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
