//! Lets a target that was left alone catch up: it gets the release that is active by then, under a small decision of its own, and
//! never an order that was meant for another time.

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    decision::Requester,
    inventory::{AgentIntent, AgentStatus, Target},
    promotion::PromotionState,
    recipe::{OfflinePolicy, Recipe},
    rollback::Wish,
    strategy::Strategy,
};
use sealift_store::{LeftOut, Tx};

use crate::{
    app::{
        Core,
        create_promotion::{NewPromotion, create_promotion},
        resolve_release::release_of,
        roll_back::explain_rollback,
    },
    status::ApiError,
};

/// Who asks.
pub const CATCH_UP: &str = "orchestrator/catch-up";
/// How soon an absent agent is looked for again.
const SOON: TimeDelta = TimeDelta::seconds(5);
/// How soon a refused promotion, or one that a hold keeps back, is tried again.
const LATER: TimeDelta = TimeDelta::minutes(10);

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaughtUp {
    /// A promotion was requested for it.
    Requested,
    /// It has nothing to catch up with.
    Settled,
    /// It is looked at again later.
    Postponed,
}

/// Looks at one target that was left alone.
pub async fn catch_up(core: &Core, tx: &mut Tx, one: &LeftOut) -> Result<CaughtUp, ApiError> {
    let now = core.clock.now();
    let target = tx.target(one.tenant_id, one.target_id).await?;
    let Some(target) = target.filter(|target| target.archived_at.is_none()) else {
        return settle(tx, one).await;
    };
    if !is_there(core, tx, &target).await? {
        return postpone(tx, one, now + SOON).await;
    }
    let environment = tx
        .environment(target.tenant_id, target.environment_id)
        .await?
        .ok_or_else(|| ApiError::internal("a target without its environment"))?;
    let active = explain_rollback(tx, &environment, one.project_id, Wish::default()).await?;
    let Some(active) = active.map(|explained| explained.active) else {
        return settle(tx, one).await;
    };
    if tx.open_hold(environment.id, one.project_id).await?.is_some() {
        return postpone(tx, one, now + LATER).await;
    }
    let job = tx
        .job_by_id(active.job)
        .await?
        .ok_or_else(|| ApiError::internal("an active component without its job"))?;
    let before = tx
        .promotion(job.tenant_id, job.promotion_id)
        .await?
        .ok_or_else(|| ApiError::internal("a job without its promotion"))?;
    let release = release_of(tx, environment.tenant_id, active.release).await?;
    let request = NewPromotion {
        change_summary: format!("{} catches up with {}", target.name, release.reference()),
        environment,
        release,
        recipe: Recipe {
            strategy: Strategy::AllAtOnce {},
            offline: OfflinePolicy::Skip {},
            ..before.recipe
        },
        scope: Some(vec![target.id]),
        rollback: None,
        rerun_of: None,
        plan_seen: None,
        requester: Requester {
            actor: CATCH_UP.to_owned(),
            role: before.requester_role,
        },
    };
    let requested = create_promotion(core, tx, &request).await?;
    if requested.promotion.state == PromotionState::Rejected {
        return postpone(tx, one, now + LATER).await;
    }
    // Should it go away again meanwhile, the end of that job remembers it anew.
    tx.forget_left_out(one).await?;
    Ok(CaughtUp::Requested)
}

async fn is_there(core: &Core, tx: &mut Tx, target: &Target) -> Result<bool, ApiError> {
    let Some(agent) = target.agent_id else {
        return Ok(false);
    };
    let agent = tx.agent_by_id(agent).await?;
    let ready = agent.is_some_and(|agent| {
        agent.intent == AgentIntent::Active && (core.status_of)(&agent) != AgentStatus::Offline
    });
    Ok(ready && tx.live_task_on_target(target.id).await?.is_none())
}

async fn settle(tx: &mut Tx, one: &LeftOut) -> Result<CaughtUp, ApiError> {
    tx.forget_left_out(one).await?;
    Ok(CaughtUp::Settled)
}

async fn postpone(tx: &mut Tx, one: &LeftOut, until: DateTime<Utc>) -> Result<CaughtUp, ApiError> {
    tx.postpone_left_out(one, until).await?;
    Ok(CaughtUp::Postponed)
}
