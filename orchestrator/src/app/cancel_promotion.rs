//! Cancels a promotion (R14). State first: the wish is stored and holds from that commit on, whatever is up or down. Messages
//! second: the scheduler withdraws what has not begun and asks agents to stop what has.

use chrono::{DateTime, Utc};
use sealift_common::{
    error::Reason,
    failure::{Failure, FailureCode},
    job::{JobEvent, JobPhase, Stop, StopWish},
    promotion::PromotionEvent,
};
use sealift_store::{Promotion, Tx};

use crate::{
    app::{Core, end_job::end_undone, steer_job::request_stop},
    status::ApiError,
};

/// What becomes of targets that are under way when a promotion is cancelled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Running {
    /// They stop and restore what ran before.
    Restore,
    /// They may finish, within the limits of the recipe.
    Finish,
}

/// Cancels. A job that waits is cancelled at once; one that runs ends as soon as its agents have restored what ran before, or have
/// finished. Repeating it changes nothing, but that whoever let them finish may have them restore after all. A job that fails or is
/// undone already is refused.
pub async fn cancel_promotion(
    core: &Core,
    tx: &mut Tx,
    promotion: Promotion,
    running: Running,
    reason: &str,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<Promotion, ApiError> {
    if promotion.state.is_terminal() {
        return Err(ended(&promotion));
    }
    let job = tx
        .job_of_promotion(promotion.id)
        .await?
        .ok_or_else(|| ApiError::internal("an open promotion without a job"))?;
    match job.state.phase() {
        JobPhase::Queued => {
            let ended = tx.apply_job_event(&job, &JobEvent::Cancelled, actor, now).await?;
            let failure = Failure::new(FailureCode::Cancelled, summary(reason, actor));
            let event = PromotionEvent::JobCancelled;
            let cancelled = tx
                .apply_promotion_event(&promotion, event, Some(&failure), actor, now)
                .await?;
            end_undone(core, tx, &ended).await?;
            Ok(cancelled)
        }
        JobPhase::Running | JobPhase::Paused => {
            let stop = Stop {
                wish: match running {
                    Running::Restore => StopWish::Cancel,
                    Running::Finish => StopWish::Finish,
                },
                failure: Failure::new(FailureCode::Cancelled, summary(reason, actor)),
            };
            // What may finish has the time of its progress deadline from now on, however long the job was paused.
            let job = match running {
                Running::Finish if job.stop.is_none() && job.state.phase() == JobPhase::Paused => {
                    tx.apply_job_event(&job, &JobEvent::Resumed, actor, now).await?
                }
                Running::Finish | Running::Restore => job,
            };
            request_stop(tx, &job, &stop, actor, now).await?;
            Ok(promotion)
        }
        JobPhase::RollingBack => Err(ApiError::new(
            Reason::WrongState,
            "the promotion is being rolled back: nothing of it is left to cancel",
            format!(
                "to stop the rollback, cancel its own promotion (sealift job get {} names it)",
                job.id
            ),
        )
        .precondition(
            "PROMOTION_ROLLING_BACK",
            format!("promotions/{}", promotion.id),
            "rolling_back",
        )),
        JobPhase::Succeeded
        | JobPhase::Failed
        | JobPhase::Cancelled
        | JobPhase::RolledBack
        | JobPhase::RollbackFailed => Err(ended(&promotion)),
    }
}

fn summary(reason: &str, actor: &str) -> String {
    if reason.is_empty() {
        format!("cancelled by {actor}")
    } else {
        format!("cancelled by {actor}: {reason}")
    }
}

fn ended(promotion: &Promotion) -> ApiError {
    ApiError::new(
        Reason::WrongState,
        format!("the promotion has ended already: it is {}", promotion.state),
        "nothing is left to cancel; see sealift promotion get",
    )
    .precondition(
        "PROMOTION_ENDED",
        format!("promotions/{}", promotion.id),
        promotion.state.as_str(),
    )
}
