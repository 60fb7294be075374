//! Rollbacks: chooses what to go back to, requests that as a promotion of its own, holds the project back in the environment and
//! marks what is undone as unstable, all in the caller's transaction.

use sealift_common::{
    decision::Requester,
    error::Reason,
    failure::{Failure, FailureCode},
    id::{EnvironmentId, HoldId, ProjectId, ReleaseId},
    inventory::Environment,
    job::{JobEvent, Stop, StopWish},
    promotion::PromotionState,
    recipe::{OfflinePolicy, Recipe},
    release::Release,
    rollback::{Choice, QualityMark, Rejection, Wish, choose, undo},
    task::TaskState,
};
use sealift_store::{Active, Hold, Job, Mark, Tx};

use crate::{
    app::{
        Core, ORCHESTRATOR,
        create_promotion::{NewPromotion, Requested, create_promotion},
        end_job::end_job,
        resolve_release::release_of,
    },
    status::ApiError,
};

/// How long a rollback that starts by itself waits for agents that are away.
const PATIENCE_MS: u32 = 10 * 60 * 1000;

/// What an environment would go back to.
#[derive(Debug)]
pub struct Explained {
    /// What runs, as recorded.
    pub active: Active,
    /// The choice with its reasons.
    pub choice: Choice,
}

/// Explains the choice for one project of an environment; `None` when nothing of it is active there.
pub async fn explain_rollback(
    tx: &mut Tx,
    environment: &Environment,
    project: ProjectId,
    wish: Wish,
) -> Result<Option<Explained>, ApiError> {
    let Some(active) = active_of_project(tx, environment.id, project).await? else {
        return Ok(None);
    };
    let from = tx.rollback_candidate(active.release).await?;
    let candidates = tx.rollback_candidates(environment.id, project).await?;
    Ok(Some(Explained {
        choice: choose(from.as_ref(), &candidates, wish),
        active,
    }))
}

/// What is active of a project in an environment: one release, of whose components this is one.
pub async fn active_of_project(
    tx: &mut Tx,
    environment: EnvironmentId,
    project: ProjectId,
) -> Result<Option<Active>, ApiError> {
    let active = tx.active(environment).await?;
    Ok(active.into_iter().find(|active| active.project_id == project))
}

/// Requests the rollback of what is active, as explained. A promotion of the project that is under way ends for it: what it was
/// doing is restored. Without a release that is asked for by name it is a refusal instead, for whoever wants that promotion
/// undone would be brought one release too far back.
pub async fn roll_back(
    core: &Core,
    tx: &mut Tx,
    environment: Environment,
    explained: &Explained,
    recipe: &Recipe,
    requester: Requester,
    reason: &str,
) -> Result<Option<Requested>, ApiError> {
    let Some(to) = &explained.choice.to else {
        return Ok(None);
    };
    let bad = release_of(tx, environment.tenant_id, explained.active.release).await?;
    let good = release_of(tx, environment.tenant_id, to.release).await?;
    let actor = requester.actor.clone();
    // What waits must not start between this look and the hold.
    tx.lock_lane(environment.id).await?;
    let under_way = tx.promotion_under_way(environment.id, bad.project_id).await?;
    if let Some(job) = under_way
        .as_ref()
        .filter(|_| explained.choice.wish.release.is_none())
    {
        return Err(must_say_which(tx, job, &environment, &bad, &good).await?);
    }
    let request = NewPromotion {
        environment,
        release: good,
        recipe: recipe.for_rollback(),
        scope: None,
        rollback: Some((explained.active.job, explained.choice.clone())),
        rerun_of: None,
        change_summary: reason.to_owned(),
        plan_seen: None,
        requester,
    };
    let requested = create_promotion(core, tx, &request).await?;
    if requested.promotion.state != PromotionState::Rejected {
        if let Some(job) = under_way {
            let summary = format!("{actor} goes back to {}: {reason}", request.release.reference());
            let stop = Stop {
                wish: StopWish::Cancel,
                failure: Failure::new(FailureCode::Cancelled, summary),
            };
            tx.request_job_stop(&job, &stop, &actor, core.clock.now()).await?;
        }
        condemn(core, tx, &request.environment, &bad, &actor, reason).await?;
    }
    Ok(Some(requested))
}

/// The refusal of a rollback while `job` is under way that does not say how far back.
async fn must_say_which(
    tx: &mut Tx,
    job: &Job,
    environment: &Environment,
    active: &Release,
    before: &Release,
) -> Result<ApiError, ApiError> {
    let rolling_out = release_of(tx, job.tenant_id, job.release_id).await?;
    let (name, before) = (&environment.name, before.reference());
    Ok(ApiError::new(
        Reason::WrongState,
        format!(
            "{} is being rolled out to {name}, so it is unclear how far back to go",
            rolling_out.reference()
        ),
        format!(
            "to stay at {}: sealift job abort {}; to end that job and go back to {before}: sealift rollback {name} --to {before} --reason \"…\"",
            active.reference(),
            job.id
        ),
    )
    .precondition("ROLLOUT_UNDER_WAY", format!("jobs/{}", job.id), job.state.phase().as_str()))
}

/// Undoes what a job changed whose tasks have all ended: its targets that succeeded, and those that could not be restored, go back to
/// the release that is active. When that cannot even begin, the job ends with the failure and says so.
pub async fn undo_job(core: &Core, tx: &mut Tx, job: &Job, failure: &Failure) -> Result<(), ApiError> {
    let now = core.clock.now();
    // As `roll_back` does it, which may come for the same job: the lane first, then the job.
    tx.lock_lane(job.environment_id).await?;
    let environment = tx
        .environment(job.tenant_id, job.environment_id)
        .await?
        .ok_or_else(|| ApiError::internal("a job without its environment"))?;
    let promotion = tx
        .promotion(job.tenant_id, job.promotion_id)
        .await?
        .ok_or_else(|| ApiError::internal("a job without its promotion"))?;
    let bad = release_of(tx, job.tenant_id, job.release_id).await?;
    let way_back = if job.rollback_of.is_some() {
        Err("a rollback never starts another one")
    } else {
        way_back(tx, &environment, &bad).await?
    };
    let (to, choice) = match way_back {
        Ok(way_back) => way_back,
        Err(why) => return fail(core, tx, job, failure, why).await,
    };
    condemn(core, tx, &environment, &bad, ORCHESTRATOR, &failure.summary).await?;
    let event = JobEvent::RollbackStarted {
        failure: failure.clone(),
    };
    let undone = tx.apply_job_event(job, &event, ORCHESTRATOR, now).await?;
    let changed = tx
        .tasks_of_job(job.id)
        .await?
        .into_iter()
        .filter(|task| is_changed(&task.state))
        .map(|task| task.target_id);
    let request = NewPromotion {
        release: release_of(tx, environment.tenant_id, to).await?,
        recipe: Recipe {
            offline: OfflinePolicy::Wait { ms: PATIENCE_MS },
            ..promotion.recipe.for_rollback()
        },
        scope: Some(changed.collect()),
        rollback: Some((job.id, choice)),
        rerun_of: None,
        change_summary: format!("undoes job {}: {}", job.id, failure.summary),
        plan_seen: None,
        requester: Requester {
            actor: ORCHESTRATOR.to_owned(),
            role: promotion.requester_role,
        },
        environment,
    };
    let requested = create_promotion(core, tx, &request).await?;
    if let (None, Some(refusal)) = (requested.job, requested.promotion.failure) {
        let event = JobEvent::RollbackFailed { failure: refusal };
        end_job(core, tx, &undone, &event).await?;
    }
    Ok(())
}

/// Whether a target that a job is done with runs another set than before.
fn is_changed(task: &TaskState) -> bool {
    match task {
        TaskState::Succeeded => true,
        TaskState::Failed { failure } => failure.code == FailureCode::RestoreFailed,
        _ => false,
    }
}

/// What the targets go back to that a job brought `bad`, with the record of that; or why there is nothing to go back to.
async fn way_back(
    tx: &mut Tx,
    environment: &Environment,
    bad: &Release,
) -> Result<Result<(ReleaseId, Choice), &'static str>, ApiError> {
    // What ran before on these targets is what is active: the job never came so far as to change that.
    let Some(active) = active_of_project(tx, environment.id, bad.project_id).await? else {
        return Ok(Err(
            "nothing of the project was active here before, so there is nothing to go back to",
        ));
    };
    let from = tx.rollback_candidate(bad.id).await?;
    let candidates = tx.rollback_candidates(environment.id, bad.project_id).await?;
    let choice = undo(from.as_ref(), &candidates, active.release);
    Ok(match (&choice.to, choice.why_not(active.release)) {
        (Some(to), _) => Ok((to.release, choice)),
        (None, Some(Rejection::Current)) => {
            Err("this release was the active one before, so there is nothing to go back to")
        }
        (None, Some(Rejection::SameContent)) => {
            Err("the release that was active before has the same content, so there is nothing to go back to")
        }
        (None, _) => return Err(ApiError::internal("what is active was never activated")),
    })
}

/// Ends a job that cannot be undone, and says why.
async fn fail(core: &Core, tx: &mut Tx, job: &Job, failure: &Failure, why: &str) -> Result<(), ApiError> {
    let failure = failure
        .clone()
        .with_detail(format!("{} {why}", failure.detail).trim());
    end_job(core, tx, job, &JobEvent::Failed { failure }).await?;
    Ok(())
}

/// Marks a release as unstable and holds its project back in the environment until a person has looked.
async fn condemn(
    core: &Core,
    tx: &mut Tx,
    environment: &Environment,
    release: &Release,
    actor: &str,
    reason: &str,
) -> Result<(), ApiError> {
    let now = core.clock.now();
    tx.insert_mark(&Mark {
        release_id: release.id,
        mark: QualityMark::Unstable,
        reason: format!("rolled back in {}: {reason}", environment.name),
        actor: actor.to_owned(),
        at: now,
    })
    .await?;
    tx.place_hold(&Hold {
        id: HoldId::new(now),
        tenant_id: environment.tenant_id,
        environment_id: environment.id,
        environment: environment.name.clone(),
        project_id: release.project_id,
        project: release.source.project.clone(),
        reason: format!("{} was rolled back: {reason}", release.reference()),
        placed_by: actor.to_owned(),
        placed_at: now,
        lifted: None,
    })
    .await?;
    Ok(())
}
