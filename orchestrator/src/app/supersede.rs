//! Ends promotions that wait because a newer one takes their place. What has begun is never touched: the state machines let only
//! a waiting one be superseded, and whatever starts at the same moment was faster.

use chrono::{DateTime, Utc};
use sealift_common::{
    failure::{Failure, FailureCode},
    id::JobId,
    job::{JobEvent, JobPhase},
    release::Release,
};
use sealift_store::{By, Promotion, StoreError, Tx};

use crate::{app::ORCHESTRATOR, names, status::ApiError};

/// Ends those of `jobs` that still wait; `newer`, of `release`, is named by each.
pub async fn supersede(
    tx: &mut Tx,
    jobs: &[JobId],
    newer: &Promotion,
    release: &Release,
    now: DateTime<Utc>,
) -> Result<(), ApiError> {
    let newer_name = names::of_promotion(newer.id);
    let summary = format!("superseded by {newer_name} of {}", release.reference());
    let failure = Failure::new(FailureCode::Cancelled, summary);
    for id in jobs {
        let waiting = tx.job_by_id(*id).await?;
        let Some(job) = waiting.filter(|job| job.state.phase() == JobPhase::Queued) else {
            continue;
        };
        let by = By {
            actor: ORCHESTRATOR,
            reason: &newer_name,
        };
        match tx.apply_job_event(&job, &JobEvent::Superseded, by, now).await {
            Ok(_) => {}
            Err(StoreError::Conflict) => continue,
            Err(error) => return Err(error.into()),
        }
        let promotion = tx
            .promotion(job.tenant_id, job.promotion_id)
            .await?
            .ok_or_else(|| ApiError::internal("a job without its promotion"))?;
        tx.supersede_promotion(&promotion, newer.id, &failure, ORCHESTRATOR, now)
            .await?;
    }
    Ok(())
}
