//! R14: cancel always works, in each state.

use chrono::TimeDelta;
use sealift_common::{
    error::Reason,
    failure::FailureCode,
    job::JobPhase,
    promotion::PromotionState,
    strategy::{Limits, Strategy},
    task::{TaskPhase, Wanted},
};

use crate::world::{Act, World};

#[tokio::test]
async fn r14_cancel_in_the_lane_ends_at_once() {
    let world = World::new(1).await;
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    let promotion = world.cancel(job).await.unwrap();
    assert_eq!(promotion.state, PromotionState::Cancelled);
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Cancelled);
    assert!(world.tasks(job).await.is_empty());
}

#[tokio::test]
async fn r14_cancel_while_running_withdraws_what_waits_and_stops_what_runs() {
    let world = World::new(5).await;
    let release = world.release("v1").await;
    let wish = world.wish(&release, Strategy::Rolling { max_parallel: 2 });
    let job = world.request(&wish).await.job.unwrap().id;
    world.settle().await;
    world.act(Act::Succeed).await;
    world.settle().await;
    world.act(Act::Begin).await;
    world.cancel(job).await.unwrap();
    world.cancel(job).await.unwrap();
    world.settle().await;
    use TaskPhase::{Cancelled, Running, Succeeded};
    assert_eq!(
        world.phases(job).await,
        [Succeeded, Succeeded, Running, Running, Cancelled]
    );
    let live = world.live().await;
    assert!(live.iter().all(|task| task.wanted == Wanted::Stop));
    assert_eq!(world.phase(job).await, JobPhase::Running, "agents restore first");
    world.act_on(&live[0], Act::Stop).await;
    // This one was faster than the message: it tells what is true.
    world.act_on(&live[1], Act::Succeed).await;
    world.settle().await;
    assert_eq!(
        world.phases(job).await,
        [Succeeded, Succeeded, Cancelled, Succeeded, Cancelled]
    );
    assert_eq!(world.phase(job).await, JobPhase::Cancelled);
    let promotion = world.promotion(job).await;
    assert_eq!(promotion.state, PromotionState::Cancelled);
    assert_eq!(promotion.failure.unwrap().code, FailureCode::Cancelled);
    assert!(world.active().await.is_empty());
}

#[tokio::test]
async fn r14_cancel_between_two_attempts_needs_no_agent() {
    let mut world = World::new(1).await;
    world.limits = Limits {
        max_attempts: 3,
        ..Limits::default()
    };
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.settle().await;
    world.act(Act::Fail(FailureCode::RegistryUnavailable)).await;
    world.settle().await;
    world.cancel(job).await.unwrap();
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Cancelled);
}

#[tokio::test]
async fn r14_cancel_reaches_a_lost_task_when_its_host_is_back() {
    let world = World::new(1).await;
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.settle().await;
    world.act(Act::Begin).await;
    world.clock.advance(TimeDelta::hours(1));
    world.reap().await;
    world.cancel(job).await.unwrap();
    world.settle().await;
    assert_eq!(world.live().await[0].wanted, Wanted::Stop);
    world.act(Act::Stop).await;
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Cancelled);
}

#[tokio::test]
async fn r14_what_has_ended_cannot_be_cancelled() {
    let world = World::new(1).await;
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.finish(job).await;
    let error = world.cancel(job).await.unwrap_err();
    assert_eq!(error.reason(), Reason::WrongState);
    assert_eq!(world.state(job).await, PromotionState::Deployed);
}
