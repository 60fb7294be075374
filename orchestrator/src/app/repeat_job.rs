//! Repeats of jobs that have ended: promotions of their own for the targets that did not succeed. A repeat completes what was decided
//! once, so that it has to stand back where the project has moved on since.

use sealift_common::{
    decision::{DecisionRecord, Requester},
    error::Reason,
    failure::{Failure, FailureCode},
    id::TargetId,
    job::JobPhase,
    promotion::PromotionKind,
    rollback::Choice,
    task::{SkipReason, TaskPhase, TaskState},
};
use sealift_store::{Active, Job, Newcomer, Promotion, Tx};

use crate::{
    app::{create_promotion::NewPromotion, resolve_release::release_of},
    names,
    status::ApiError,
};

/// How many repeats of repeats are followed back to the first job.
const MOST_REPEATS: u32 = 100;

/// What a promotion goes back to.
#[derive(Debug)]
pub struct Original {
    /// The promotion that repeats nothing; that in question, when it is none.
    pub promotion: Promotion,
    /// The job of that promotion, when it is repeated.
    pub repeated: Option<Job>,
}

/// Follows repeats back to what was first decided; `None` when there are too many.
pub async fn original(tx: &mut Tx, promotion: &Promotion) -> Result<Option<Original>, ApiError> {
    let missing = || ApiError::internal("a promotion that repeats nothing");
    let mut found = Original {
        promotion: promotion.clone(),
        repeated: None,
    };
    for _ in 0..MOST_REPEATS {
        let Some(before) = found.promotion.rerun_of else {
            return Ok(Some(found));
        };
        let job = tx.job_by_id(before).await?.ok_or_else(missing)?;
        let promotion = tx.promotion(job.tenant_id, job.promotion_id).await?;
        found = Original {
            promotion: promotion.ok_or_else(missing)?,
            repeated: Some(job),
        };
    }
    Ok(None)
}

/// What became active in the environment after the job began, of its project and instead of its release: to repeat the job would
/// bring back what that took the place of. Jobs of a project are under way one after the other, so that time tells.
pub async fn overtaken(tx: &mut Tx, job: &Job) -> Result<Option<Active>, ApiError> {
    let release = release_of(tx, job.tenant_id, job.release_id).await?;
    let began = job.started_at.or(job.finished_at).unwrap_or(job.created_at);
    let active = tx.active(job.environment_id).await?;
    Ok(active
        .into_iter()
        .find(|row| row.project == release.source.project && row.release != release.id && row.since > began))
}

/// Why a repeat whose turn has come must not begin: another release became active while it waited.
pub async fn stale_repeat(tx: &mut Tx, promotion: &Promotion) -> Result<Option<Failure>, ApiError> {
    if promotion.rerun_of.is_none() {
        return Ok(None);
    }
    let Some(job) = original(tx, promotion).await?.and_then(|found| found.repeated) else {
        return Ok(None);
    };
    let newer = overtaken(tx, &job).await?;
    Ok(newer.map(|newer| {
        let summary = format!(
            "{} became active in {} after the job began that is repeated",
            name(&newer),
            promotion.environment
        );
        Failure::new(FailureCode::Overtaken, summary)
    }))
}

fn name(active: &Active) -> String {
    format!("{}#{}", active.project, active.number)
}

/// The promotion that repeats a job on the targets that did not succeed. That of a rollback is a rollback again, in its place in the
/// lane and past the hold that the first one has put.
pub async fn repeat_job(
    tx: &mut Tx,
    job: &Job,
    change_summary: String,
    requester: Requester,
) -> Result<NewPromotion, ApiError> {
    let phase = job.state.phase();
    let state = |error: ApiError| error.precondition("JOB_STATE", names::of_job(job.id), phase.as_str());
    if !matches!(
        phase,
        JobPhase::Failed | JobPhase::Cancelled | JobPhase::Succeeded
    ) {
        return Err(state(ApiError::new(
            Reason::WrongState,
            "only a job that has ended and was not rolled back can be repeated",
            format!("see sealift job get {}", job.id),
        )));
    }
    let left: Vec<TargetId> = tx
        .tasks_of_job(job.id)
        .await?
        .into_iter()
        .filter(|task| match (&task.state, task.state.phase()) {
            (TaskState::Skipped { reason }, _) => *reason != SkipReason::AlreadyRunning,
            (_, phase) => phase != TaskPhase::Succeeded,
        })
        .map(|task| task.target_id)
        .collect();
    if left.is_empty() {
        return Err(state(ApiError::new(
            Reason::WrongState,
            "every target of this job succeeded, nothing is left to repeat",
            "promote the release again to see whether anything would change (sealift promote --plan)",
        )));
    }
    let promotion = tx
        .promotion(job.tenant_id, job.promotion_id)
        .await?
        .ok_or_else(|| ApiError::internal("a job without its promotion"))?;
    let environment = tx
        .environment(job.tenant_id, job.environment_id)
        .await?
        .ok_or_else(|| ApiError::internal("a job without its environment"))?;
    let release = release_of(tx, job.tenant_id, job.release_id).await?;
    let first = original(tx, &promotion).await?.and_then(|found| found.repeated);
    if let Some(newer) = overtaken(tx, first.as_ref().unwrap_or(job)).await? {
        let reference = release.reference();
        return Err(ApiError::new(
            Reason::WrongState,
            format!(
                "{} became active in {} after this job began; to repeat it would bring back {reference}",
                name(&newer),
                environment.name
            ),
            format!(
                "if {reference} is wanted after all, promote it again (sealift promote); else nothing has to be done"
            ),
        )
        .precondition("OVERTAKEN", names::of_job(newer.job), name(&newer)));
    }
    let rollback = match job.rollback_of {
        None => None,
        Some(undone) => {
            let newcomer = Newcomer {
                environment: environment.id,
                project: release.project_id,
                undoes: Some(undone),
            };
            not_behind_another(tx, job, newcomer).await?;
            Some((undone, choice_of(tx, &promotion).await?))
        }
    };
    Ok(NewPromotion {
        environment,
        release,
        recipe: promotion.recipe,
        scope: Some(left),
        // One that goes back is linked to what it undoes, as the first one was.
        rerun_of: rollback.is_none().then_some(job.id),
        rollback,
        change_summary,
        plan_seen: None,
        requester,
    })
}

/// A way back must not be decided over while it waits.
async fn not_behind_another(tx: &mut Tx, job: &Job, newcomer: Newcomer) -> Result<(), ApiError> {
    let lane = tx.lane_view(newcomer).await?;
    let goes_back = |kind| kind == PromotionKind::Rollback;
    if !lane.project_under_way && !lane.project_waits.iter().any(|other| goes_back(other.kind)) {
        return Ok(());
    }
    Err(ApiError::new(
        Reason::WrongState,
        format!(
            "another job of the project is under way in {} or goes back before this rollback could",
            job.environment
        ),
        "wait until it has ended or end it (sealift status), then see whether going back is still wanted",
    )
    .precondition("PROJECT_BUSY", names::of_job(job.id), "is a rollback"))
}

/// Why the release of a rollback was chosen.
async fn choice_of(tx: &mut Tx, promotion: &Promotion) -> Result<Choice, ApiError> {
    let decision = tx
        .latest_decision(promotion.id)
        .await?
        .ok_or_else(|| ApiError::internal("an approved promotion without a decision"))?;
    let record = DecisionRecord::from_bytes(&decision.record).map_err(ApiError::internal)?;
    let choice = record.inputs.choice;
    choice.ok_or_else(|| ApiError::internal("a rollback without a choice"))
}
