//! Requests a promotion: plans, decides, and gives the approved one its ticket in the lane, all in one transaction. A refused one
//! is kept with every gate's answer.

use sealift_common::{
    decision::{Requester, Stage},
    digest::Digest,
    failure::{Failure, FailureCode},
    id::{DecisionId, JobId, PromotionId, TargetId},
    inventory::Environment,
    job::JobState,
    promotion::{PromotionEvent, PromotionState},
    recipe::Recipe,
    release::Release,
    rollback::Choice,
};
use sealift_store::{DecisionRow, Job, Promotion, Tx};

use crate::{
    app::{
        Core, ORCHESTRATOR,
        supersede::supersede,
        survey::{Ask, Survey, survey},
    },
    status::ApiError,
};

/// What is requested.
#[derive(Debug, Clone)]
pub struct NewPromotion {
    /// Where to.
    pub environment: Environment,
    /// What.
    pub release: Release,
    /// In which way.
    pub recipe: Recipe,
    /// Only these targets; `None` is all of the environment.
    pub scope: Option<Vec<TargetId>>,
    /// The job that it undoes, and why this release was chosen for that.
    pub rollback: Option<(JobId, Choice)>,
    /// The job that it repeats.
    pub rerun_of: Option<JobId>,
    /// Why, for people.
    pub change_summary: String,
    /// Digest of the plan that the requester looked at.
    pub plan_seen: Option<Digest>,
    /// Who asks.
    pub requester: Requester,
}

/// What became of the request.
#[derive(Debug)]
pub struct Requested {
    /// The promotion: approved or rejected.
    pub promotion: Promotion,
    /// The decision.
    pub decision: DecisionRow,
    /// Its job; `None` when it was rejected.
    pub job: Option<Job>,
}

/// What the promotion would change and what its gates would say. Stores nothing.
pub async fn plan_promotion(core: &Core, tx: &mut Tx, request: &NewPromotion) -> Result<Survey, ApiError> {
    survey(core, tx, ask(request, None)).await
}

fn ask(request: &NewPromotion, promotion: Option<PromotionId>) -> Ask<'_> {
    Ask {
        environment: &request.environment,
        release: &request.release,
        recipe: &request.recipe,
        scope: request.scope.as_deref(),
        undoes: request.rollback.as_ref().map(|(job, _)| *job),
        choice: request.rollback.as_ref().map(|(_, choice)| choice),
        promotion,
        stage: Stage::Request,
        requester: request.requester.clone(),
        plan_seen: request.plan_seen,
    }
}

/// Requests the promotion.
pub async fn create_promotion(
    core: &Core,
    tx: &mut Tx,
    request: &NewPromotion,
) -> Result<Requested, ApiError> {
    let now = core.clock.now();
    let id = PromotionId::new(now);
    // One after the other: who looks at those that wait must not miss one that comes at the same time.
    tx.lock_lane(request.environment.id).await?;
    let survey = survey(core, tx, ask(request, Some(id))).await?;
    let promotion = Promotion {
        id,
        tenant_id: request.environment.tenant_id,
        environment_id: request.environment.id,
        environment: request.environment.name.clone(),
        release_id: request.release.id,
        state: PromotionState::PendingGate,
        plan_json: survey.plan_json.clone(),
        plan_digest: survey.plan_digest,
        recipe: request.recipe.clone(),
        scope: request.scope.clone(),
        rollback_of: request.rollback.as_ref().map(|(job, _)| *job),
        rerun_of: request.rerun_of,
        superseded_by: None,
        change_summary: request.change_summary.clone(),
        requested_by: request.requester.actor.clone(),
        requester_role: request.requester.role,
        failure: None,
        version: 0,
        created_at: now,
        finished_at: None,
    };
    tx.insert_promotion(&promotion).await?;
    let decision = decision_row(&survey, id, now);
    tx.insert_decision(&decision).await?;

    if !survey.record.passed() {
        let failure = Failure::new(FailureCode::GateClosed, survey.record.refusal());
        let event = PromotionEvent::GatesRefused;
        let promotion = tx
            .apply_promotion_event(&promotion, event, Some(&failure), ORCHESTRATOR, now)
            .await?;
        return Ok(Requested {
            promotion,
            decision,
            job: None,
        });
    }
    let promotion = tx
        .apply_promotion_event(&promotion, PromotionEvent::GatesPassed, None, ORCHESTRATOR, now)
        .await?;
    let job = Job {
        id: JobId::new(now),
        tenant_id: promotion.tenant_id,
        promotion_id: promotion.id,
        environment_id: promotion.environment_id,
        environment: promotion.environment.clone(),
        release_id: promotion.release_id,
        state: JobState::Queued,
        rollback_of: promotion.rollback_of,
        stop: None,
        ticket: tx.next_ticket(promotion.environment_id).await?,
        accepted_failures: 0,
        resumed_at: None,
        version: 0,
        created_at: now,
        started_at: None,
        finished_at: None,
    };
    tx.insert_job(&job).await?;
    supersede(tx, &survey.replaces, &promotion, &request.release, now).await?;
    Ok(Requested {
        promotion,
        decision,
        job: Some(job),
    })
}

/// The row of a survey's decision.
pub fn decision_row(
    survey: &Survey,
    promotion: PromotionId,
    now: chrono::DateTime<chrono::Utc>,
) -> DecisionRow {
    DecisionRow {
        id: DecisionId::new(now),
        promotion_id: promotion,
        digest: survey.record_digest(),
        record: survey.record_bytes.clone(),
        passed: survey.record.passed(),
        // When the gates were asked: what the record says.
        created_at: survey.record.inputs.at,
    }
}
