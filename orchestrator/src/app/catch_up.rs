//! Lets a target that was left alone catch up: it gets the release that is active by then, under a small decision of its own, and
//! never an order that was meant for another time. It is remembered until that release has arrived: an attempt that fails is made
//! again, each time later.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    decision::Requester,
    id::{AgentId, TargetId},
    inventory::{Agent, AgentIntent, AgentStatus, Environment, Target},
    promotion::PromotionState,
    recipe::{OfflinePolicy, Recipe},
    release::Release,
    strategy::Strategy,
};
use sealift_store::{Active, LeftOut, Newcomer, Promotion, Tx};

use crate::{
    app::{
        Core,
        create_promotion::{NewPromotion, create_promotion, plan_promotion},
        resolve_release::release_of,
        roll_back::active_of_project,
    },
    status::ApiError,
};

/// Who asks.
pub const CATCH_UP: &str = "orchestrator/catch-up";
/// How soon it is looked again whether the project has become free, or the promotion that was requested has done its work.
const SOON: TimeDelta = TimeDelta::minutes(1);
/// How soon a refused promotion, or one that a hold keeps back, is tried again; doubles with each one that failed.
const LATER: TimeDelta = TimeDelta::minutes(10);
/// The longest that it doubles to.
const LATEST: TimeDelta = TimeDelta::days(1);

/// What became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CaughtUp {
    /// Its agent is away, or busy. Nothing was written: whoever is away costs no more than a look.
    Waits,
    /// A promotion was requested for it.
    Requested,
    /// It has nothing to catch up with.
    Settled,
    /// It is looked at again later.
    Postponed,
}

/// Those of a page that [`catch_up`] can do something about now. Changes nothing.
pub async fn ready(core: &Core, tx: &mut Tx, page: &[LeftOut]) -> Result<Vec<LeftOut>, ApiError> {
    let ids: Vec<TargetId> = page.iter().map(|one| one.target_id).collect();
    let targets = tx.targets_by_ids(&ids).await?;
    let agents: Vec<AgentId> = targets.values().filter_map(|target| target.agent_id).collect();
    let agents: BTreeMap<AgentId, Agent> = tx.agents_by_ids(&agents).await?;
    let mut ready = Vec::new();
    for one in page {
        let target = targets.get(&one.target_id).filter(|target| is_live(target));
        let agent = target.and_then(|target| agents.get(&target.agent_id?));
        if target.is_none() || (is_there(core, agent) && !is_busy(tx, one.target_id).await?) {
            ready.push(*one);
        }
    }
    Ok(ready)
}

/// Looks at one target that was left alone.
pub async fn catch_up(core: &Core, tx: &mut Tx, one: &LeftOut) -> Result<CaughtUp, ApiError> {
    let now = core.clock.now();
    let target = tx.target(one.tenant_id, one.target_id).await?;
    let Some(target) = target.filter(is_live) else {
        return settle(tx, one).await;
    };
    let agent = match target.agent_id {
        Some(id) => tx.agent_by_id(id).await?,
        None => None,
    };
    if !is_there(core, agent.as_ref()) || is_busy(tx, target.id).await? {
        return Ok(CaughtUp::Waits);
    }
    let environment = tx
        .environment(target.tenant_id, target.environment_id)
        .await?
        .ok_or_else(|| ApiError::internal("a target without its environment"))?;
    let Some(active) = active_of_project(tx, environment.id, one.project_id).await? else {
        return settle(tx, one).await;
    };
    if has_arrived(tx, one, &active).await? {
        return settle(tx, one).await;
    }
    if tx.open_hold(environment.id, one.project_id).await?.is_some() {
        return postpone(tx, one, now + LATER).await;
    }
    if is_under_way(tx, one, &environment).await? {
        return postpone(tx, one, now + SOON).await;
    }
    let release = release_of(tx, environment.tenant_id, active.release).await?;
    let before = promotion_of(tx, &active).await?;
    let tries = tx.tries_of_left_out(one, CATCH_UP).await?;
    let request = request(environment, &target, release, before);
    let plan = plan_promotion(core, tx, &request).await?.plan;
    if plan.targets.iter().all(|planned| planned.no_op) {
        return settle(tx, one).await;
    }
    let requested = create_promotion(core, tx, &request).await?;
    if requested.promotion.state == PromotionState::Rejected {
        return postpone(tx, one, now + LATER).await;
    }
    tx.postpone_left_out(one, now + later(tries)).await?;
    Ok(CaughtUp::Requested)
}

fn request(environment: Environment, target: &Target, release: Release, before: Promotion) -> NewPromotion {
    NewPromotion {
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
    }
}

/// When it is looked again what became of an attempt, after so many that failed.
fn later(tries: u32) -> TimeDelta {
    let doubled = LATER.checked_mul(1_i32.checked_shl(tries).unwrap_or(i32::MAX));
    doubled.unwrap_or(LATEST).clamp(LATER, LATEST)
}

/// The promotion that made it active.
async fn promotion_of(tx: &mut Tx, active: &Active) -> Result<Promotion, ApiError> {
    let job = tx
        .job_by_id(active.job)
        .await?
        .ok_or_else(|| ApiError::internal("an active component without its job"))?;
    tx.promotion(job.tenant_id, job.promotion_id)
        .await?
        .ok_or_else(|| ApiError::internal("a job without its promotion"))
}

/// Whether what is active was brought to the target since it was left alone.
async fn has_arrived(tx: &mut Tx, one: &LeftOut, active: &Active) -> Result<bool, ApiError> {
    let recorded = tx.current(one.target_id).await?;
    let recorded = recorded.iter().find(|current| current.project == active.project);
    Ok(recorded.is_some_and(|current| current.release == active.release && current.since > one.since))
}

/// Whether a job of the project is under way, or waits, that may bring the target something: when it has ended, it is clear whether
/// anything is left to catch up with.
async fn is_under_way(tx: &mut Tx, one: &LeftOut, environment: &Environment) -> Result<bool, ApiError> {
    let newcomer = Newcomer {
        environment: environment.id,
        project: one.project_id,
        undoes: None,
    };
    let lane = tx.lane_view(newcomer).await?;
    Ok(lane.project_under_way
        || lane.project_waits.iter().any(|waiting| {
            let scope = waiting.scope.as_ref();
            scope.is_none_or(|scope| scope.contains(&one.target_id))
        }))
}

fn is_live(target: &Target) -> bool {
    target.archived_at.is_none()
}

fn is_there(core: &Core, agent: Option<&Agent>) -> bool {
    agent.is_some_and(|agent| {
        agent.intent == AgentIntent::Active && (core.status_of)(agent) != AgentStatus::Offline
    })
}

async fn is_busy(tx: &mut Tx, target: TargetId) -> Result<bool, ApiError> {
    Ok(tx.live_task_on_target(target).await?.is_some())
}

async fn settle(tx: &mut Tx, one: &LeftOut) -> Result<CaughtUp, ApiError> {
    tx.forget_left_out(one).await?;
    Ok(CaughtUp::Settled)
}

async fn postpone(tx: &mut Tx, one: &LeftOut, until: DateTime<Utc>) -> Result<CaughtUp, ApiError> {
    tx.postpone_left_out(one, until).await?;
    Ok(CaughtUp::Postponed)
}

/// Puts one off that cannot be looked at, so that it is not in the way of the others.
pub async fn put_off(core: &Core, tx: &mut Tx, one: &LeftOut) -> Result<(), ApiError> {
    tx.postpone_left_out(one, core.clock.now() + LATER).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failed_try_doubles_the_wait_up_to_a_day() {
        let waits: Vec<_> = [0, 1, 2, 7, 8, 40, u32::MAX]
            .into_iter()
            .map(|tries| later(tries).num_minutes())
            .collect();
        assert_eq!(waits, [10, 20, 40, 1_280, 1_440, 1_440, 1_440]);
    }
}
