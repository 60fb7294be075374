//! What becomes of promotions that would have to wait (seed row C16): they wait, are refused, or take the place of those that wait.

use futures::future::join_all;
use sealift_common::{
    decision::DecisionRecord,
    failure::FailureCode,
    id::JobId,
    job::{JobPhase, JobState},
    lane::LanePolicy,
    outcome::Outcome,
    promotion::PromotionState,
    rollback::Wish,
    strategy::Strategy,
    time::Clock as _,
};
use sealift_orchestrator::app::{
    create_promotion::{NewPromotion, Requested, create_promotion, plan_promotion},
    supersede::supersede,
};
use sealift_store::{HistoryScope, PageRequest};

use crate::{
    rollbacks::{go_back, roll_back_by_hand},
    world::{Act, World},
};

const AT_ONCE: Strategy = Strategy::AllAtOnce {};

fn lane_reason(requested: &Requested) -> String {
    let record = DecisionRecord::from_bytes(&requested.decision.record).unwrap();
    record.gates.last().unwrap().reason.clone()
}

/// The jobs of the lane that wait, by ticket.
async fn waiting(world: &World) -> Vec<JobId> {
    let mut tx = world.core.db.read().await.unwrap();
    let page = PageRequest::first(100);
    let jobs = tx
        .list_jobs(world.tenant, Some(world.environment.id), &page)
        .await;
    let mut jobs: Vec<_> = jobs.unwrap().items;
    jobs.reverse();
    let waits = jobs.iter().filter(|job| job.state == JobState::Queued);
    waits.map(|job| job.id).collect()
}

#[tokio::test]
async fn c16_a_lane_that_lets_nothing_wait_refuses_at_once() {
    let mut world = World::new(1).await;
    world.set_lane_policy(LanePolicy::Reject).await;
    let (first, second) = (world.release("v1").await, world.release("v2").await);
    let job = world.promote(&first).await;
    // Whether the first has started by now or not.
    for _ in 0..2 {
        let refused = world.request(&world.wish(&second, AT_ONCE)).await;
        assert_eq!(lane_reason(&refused), "LANE_OCCUPIED");
        assert_eq!(refused.promotion.state, PromotionState::Rejected);
        assert_eq!(refused.promotion.failure.unwrap().code, FailureCode::GateClosed);
        assert!(refused.job.is_none() && !refused.decision.passed);
        world.settle().await;
    }
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    let next = world.promote(&second).await;
    assert_eq!(world.job(next).await.ticket, 2, "who was refused took no ticket");
    assert_eq!(world.finish(next).await, JobPhase::Succeeded);

    // Going back must always be possible.
    let busy = world.promote(&first).await;
    world.settle().await;
    let wish = Wish {
        release: Some(first.id),
        allow_higher: false,
    };
    let rollback = go_back(&world, &second, wish).await.unwrap().job.unwrap().id;
    assert_eq!(waiting(&world).await, [rollback]);
    // Its only target was done before it could be stopped.
    assert_eq!(world.finish(busy).await, JobPhase::Succeeded);
    assert_eq!(world.finish(rollback).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn c16_a_wide_lane_that_lets_nothing_wait_takes_one_job_of_each_project() {
    let mut world = World::new(2).await;
    world.core.rules.lane_capacity = 2;
    world.set_lane_policy(LanePolicy::Reject).await;
    let (api, web, third) = (
        world.release("v1").await,
        world.release_in("web", "w1").await,
        world.release_in("third", "t1").await,
    );
    world.promote(&api).await;
    let again = world.request(&world.wish(&api, AT_ONCE)).await;
    assert_eq!(lane_reason(&again), "LANE_OCCUPIED", "one job of a project");
    let other = world.request(&world.wish(&web, AT_ONCE)).await;
    assert_eq!(lane_reason(&other), "LANE_FREE");
    let full = world.request(&world.wish(&third, AT_ONCE)).await;
    assert_eq!(lane_reason(&full), "LANE_OCCUPIED");
}

#[tokio::test]
async fn c16_the_newest_takes_the_place_of_those_of_its_project_that_wait() {
    let mut world = World::new(2).await;
    world.set_lane_policy(LanePolicy::Supersede).await;
    let other = world.release_in("web", "w1").await;
    let running = world.promote(&world.release("v1").await).await;
    world.settle().await;
    world.act(Act::Begin).await;
    let second = world.promote(&world.release("v2").await).await;
    let beside = world.promote(&other).await;
    let third = world.release("v3").await;

    // The plan says so before anything happens.
    let mut tx = world.core.db.read().await.unwrap();
    let plan = plan_promotion(&world.core, &mut tx, &world.wish(&third, AT_ONCE))
        .await
        .unwrap();
    drop(tx);
    let said = &plan.record.gates.last().unwrap().message;
    assert!(
        said.contains("place 2") && said.contains("replaces 1 promotion"),
        "{said}"
    );
    assert_eq!(waiting(&world).await, [second, beside], "a plan replaces nothing");

    let newest = world.request(&world.wish(&third, AT_ONCE)).await;
    let newest_job = newest.job.unwrap().id;
    assert_eq!(waiting(&world).await, [beside, newest_job]);
    assert_eq!(
        world.phase(running).await,
        JobPhase::Running,
        "what runs is never touched"
    );
    let replaced = world.promotion(second).await;
    assert_eq!(
        (replaced.state, replaced.superseded_by),
        (PromotionState::Cancelled, Some(newest.promotion.id))
    );
    let failure = replaced.failure.unwrap();
    assert_eq!(failure.code, FailureCode::Cancelled);
    assert!(
        failure.summary.contains(&newest.promotion.id.to_string()),
        "{}",
        failure.summary
    );
    assert_eq!(world.phase(second).await, JobPhase::Cancelled);
    for job in [running, beside, newest_job] {
        assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    }
    let mut tx = world.core.db.read().await.unwrap();
    let page = PageRequest::first(10);
    let history = tx
        .history(world.environment.id, HistoryScope::All, &page)
        .await
        .unwrap();
    let of = |job: JobId| {
        history
            .items
            .iter()
            .find(|row| row.job == job)
            .unwrap()
            .fate
            .outcome()
    };
    assert_eq!(of(second), Some(Outcome::Superseded));
    assert_eq!(of(newest_job), Some(Outcome::Succeeded));
}

#[tokio::test]
async fn c16_no_target_is_lost_and_no_rollback_replaced() {
    let mut world = World::new(2).await;
    let (old, new) = (world.release("v1").await, world.release("v2").await);
    for release in [&old, &new] {
        let job = world.promote(release).await;
        assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    }
    let other = world.release_in("web", "w1").await;
    world.promote(&other).await;
    world.settle().await;
    world.set_lane_policy(LanePolicy::Supersede).await;
    let one = |index: usize| {
        let mut wish: NewPromotion = world.wish(&old, AT_ONCE);
        wish.scope = Some(vec![world.targets[index].id]);
        wish
    };
    let whole = world.promote(&old).await;
    let first = world.request(&one(0)).await.job.unwrap().id;
    let second = world.request(&one(1)).await.job.unwrap().id;
    assert_eq!(
        waiting(&world).await,
        [whole, first, second],
        "each has a target of its own"
    );
    let again = world.request(&one(0)).await.job.unwrap().id;
    assert_eq!(waiting(&world).await, [whole, second, again]);

    let rollback = roll_back_by_hand(&world, &new).await;
    assert_eq!(
        waiting(&world).await,
        [whole, second, again, rollback],
        "it replaces nothing"
    );
    // The rollback holds the project: nothing newer is let in, so nothing is replaced.
    let refused = world.request(&world.wish(&new, AT_ONCE)).await;
    assert_eq!(refused.promotion.state, PromotionState::Rejected);
    assert_eq!(waiting(&world).await.len(), 4);
    let mut tx = world.core.db.write().await.unwrap();
    let hold = tx.open_hold(world.environment.id, new.project_id).await.unwrap();
    tx.lift_hold(&hold.unwrap(), "user/alice", world.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    let newest = world.promote(&new).await;
    assert_eq!(waiting(&world).await, [rollback, newest]);
}

/// What starts in the same moment was faster, and stays.
#[tokio::test]
async fn c16_what_has_started_meanwhile_is_left_alone() {
    let world = World::new(1).await;
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    let newer = world.request(&world.wish(&release, AT_ONCE)).await;
    world.settle().await;
    world.act(Act::Begin).await;
    let before = world.job(job).await;
    let mut tx = world.core.db.write().await.unwrap();
    let now = world.clock.now();
    supersede(&mut tx, &[job], &newer.promotion, &release, now)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(world.job(job).await, before);
    assert_eq!(world.promotion(job).await.superseded_by, None);
}

/// Requests that come at the same time, each in a transaction of its own.
async fn all_at_once(world: &World, count: usize) -> Vec<Requested> {
    let release = world.release("v1").await;
    let wish = world.wish(&release, AT_ONCE);
    join_all((0..count).map(async |_| {
        let mut tx = world.core.db.write().await.unwrap();
        let requested = create_promotion(&world.core, &mut tx, &wish).await.unwrap();
        tx.commit().await.unwrap();
        requested
    }))
    .await
}

#[tokio::test]
async fn c16_of_many_that_come_at_once_one_is_let_in_where_nothing_may_wait() {
    let mut world = World::new(1).await;
    world.set_lane_policy(LanePolicy::Reject).await;
    let requested = all_at_once(&world, 12).await;
    let let_in: Vec<_> = requested.iter().filter_map(|one| one.job.as_ref()).collect();
    assert_eq!(let_in.len(), 1);
    assert_eq!(let_in[0].ticket, 1);
    assert_eq!(waiting(&world).await, [let_in[0].id]);
}

#[tokio::test]
async fn c16_of_many_that_come_at_once_the_last_ticket_replaces_all_others() {
    let mut world = World::new(1).await;
    world.set_lane_policy(LanePolicy::Supersede).await;
    let requested = all_at_once(&world, 12).await;
    let mut jobs: Vec<_> = requested.iter().filter_map(|one| one.job.as_ref()).collect();
    jobs.sort_by_key(|job| job.ticket);
    assert_eq!(jobs.len(), 12);
    let last = jobs.pop().unwrap();
    assert_eq!(waiting(&world).await, [last.id]);
    for (index, job) in jobs.iter().enumerate() {
        // Each by the very next one: nobody was passed over, and nobody is replaced by an older one.
        let next = jobs.get(index + 1).map_or(last, |next| next);
        let replaced = world.promotion(job.id).await;
        assert_eq!(
            replaced.superseded_by,
            Some(next.promotion_id),
            "ticket {}",
            job.ticket
        );
    }
}

#[tokio::test]
async fn c16_of_many_that_come_at_once_each_is_told_its_own_place() {
    let world = World::new(1).await;
    let mut requested = all_at_once(&world, 8).await;
    requested.sort_by_key(|one| one.job.as_ref().unwrap().ticket);
    for (index, one) in requested.iter().enumerate() {
        let record = DecisionRecord::from_bytes(&one.decision.record).unwrap();
        assert_eq!(record.inputs.lane.ahead as usize, index);
    }
}
