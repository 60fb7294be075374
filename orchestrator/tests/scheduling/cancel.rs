//! R14: cancel always works, in each state.

use chrono::TimeDelta;
use sealift_common::{
    error::Reason,
    failure::FailureCode,
    id::{JobId, ReplicaId},
    job::{JobPhase, StopWish},
    promotion::PromotionState,
    strategy::Limits,
    task::{TaskPhase, Wanted},
    time::Clock as _,
};
use sealift_orchestrator::{
    app::{
        abandon_task::abandon_task,
        cancel_promotion::Running::Finish,
        steer_job::{abort_job, pause_job},
    },
    loops::{
        driver::{Activity as _, Outcome},
        lease_reaper::LeaseReaper,
    },
    status::ApiError,
};

use sealift_store::By;

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
    use TaskPhase::{Cancelled, Running, Succeeded};
    let world = World::new(5).await;
    let release = world.release("v1").await;
    let wish = world.wish(&release, World::rolling(2));
    let job = world.request(&wish).await.job.unwrap().id;
    world.settle().await;
    world.act(Act::Succeed).await;
    world.settle().await;
    world.act(Act::Begin).await;
    world.cancel(job).await.unwrap();
    world.cancel(job).await.unwrap();
    world.settle().await;
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
async fn r14_a_cancel_may_let_what_runs_finish_and_can_still_be_made_to_stop_it() {
    use TaskPhase::{Cancelled, Running, Succeeded};
    for changes_mind in [false, true] {
        let world = World::new(5).await;
        let release = world.release("v1").await;
        let job = world
            .request(&world.wish(&release, World::rolling(2)))
            .await
            .job
            .unwrap()
            .id;
        world.settle().await;
        world.act(Act::Succeed).await;
        world.settle().await;
        world.act(Act::Begin).await;
        world.cancel_and(job, Finish).await.unwrap();
        world.cancel_and(job, Finish).await.unwrap();
        world.settle().await;
        assert_eq!(
            world.phases(job).await,
            [Succeeded, Succeeded, Running, Running, Cancelled]
        );
        let live = world.live().await;
        assert!(
            live.iter().all(|task| task.wanted == Wanted::Run),
            "nobody is asked to stop"
        );
        world.act_on(&live[0], Act::Succeed).await;
        if changes_mind {
            world.cancel(job).await.unwrap();
            world.settle().await;
            assert_eq!(world.live().await[0].wanted, Wanted::Stop);
            // It is not undone: whoever wants less than that is too late, and is told so.
            let refused = world.cancel_and(job, Finish).await.unwrap_err();
            assert_eq!(refused.reason(), Reason::WrongState);
            assert_eq!(world.job(job).await.stop.unwrap().wish, StopWish::Cancel);
            world.act_on(&live[1], Act::Stop).await;
        } else {
            world.act_on(&live[1], Act::Succeed).await;
        }
        world.settle().await;
        assert_eq!(world.phase(job).await, JobPhase::Cancelled);
        assert_eq!(world.phases(job).await[4], Cancelled);
        let promotion = world.promotion(job).await;
        assert_eq!(promotion.state, PromotionState::Cancelled);
        assert_eq!(promotion.failure.unwrap().code, FailureCode::Cancelled);
        assert!(world.active().await.is_empty());
    }
}

/// A first target has the new release, a second one is under way with it.
async fn half_done() -> (World, JobId) {
    let mut world = World::new(2).await;
    world.limits = Limits {
        progress_deadline_ms: 400_000,
        ..Limits::default()
    };
    let before = world.promote(&world.release("v1").await).await;
    world.finish(before).await;
    let wish = world.wish(&world.release("v2").await, World::rolling(1));
    let job = world.request(&wish).await.job.unwrap().id;
    world.settle().await;
    world.act(Act::Succeed).await;
    world.settle().await;
    world.act(Act::Begin).await;
    (world, job)
}

async fn abort(world: &World, job: JobId) -> Result<(), ApiError> {
    let mut tx = world.core.db.write().await.unwrap();
    let found = tx.job_by_id(job).await.unwrap().unwrap();
    abort_job(&mut tx, &found, "", "user/alice", world.clock.now()).await?;
    tx.commit().await.unwrap();
    Ok(())
}

#[tokio::test]
async fn r14_an_abort_undoes_also_what_a_cancel_or_a_deadline_only_stops() {
    for cancelled in [true, false] {
        let (world, job) = half_done().await;
        if cancelled {
            world.cancel(job).await.unwrap();
        } else {
            world.clock.advance(TimeDelta::seconds(401));
        }
        world.settle().await;
        let wish = world.job(job).await.stop.unwrap().wish;
        let first = if cancelled {
            StopWish::Cancel
        } else {
            StopWish::Fail
        };
        assert_eq!(wish, first);
        abort(&world, job).await.unwrap();
        world.act(Act::Stop).await;
        world.settle().await;
        assert_eq!(world.phase(job).await, JobPhase::RollingBack);
        abort(&world, job).await.unwrap();
    }
}

#[tokio::test]
async fn a_wish_that_can_have_no_effect_any_more_is_refused() {
    let (world, job) = half_done().await;
    abort(&world, job).await.unwrap();
    abort(&world, job).await.unwrap();
    for refused in [world.cancel(job).await, world.cancel_and(job, Finish).await] {
        let refused = refused.unwrap_err();
        assert_eq!(refused.reason(), Reason::WrongState);
        assert!(refused.to_string().contains("is undone"), "{refused}");
    }
    world.act(Act::Stop).await;
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::RollingBack);
}

#[tokio::test]
async fn r14_what_may_finish_gets_no_further_attempt_and_no_more_time_than_its_limits() {
    let mut world = World::new(2).await;
    world.limits = Limits {
        max_attempts: 3,
        progress_deadline_ms: 400_000,
        ..Limits::default()
    };
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.settle().await;
    let live = world.live().await;
    world.act_on(&live[1], Act::Begin).await;
    world.cancel_and(job, Finish).await.unwrap();
    let flaky = Act::Fail(FailureCode::RegistryUnavailable);
    world.act_on(&live[0], flaky).await;
    world.settle().await;
    world.clock.advance(TimeDelta::seconds(300));
    world.settle().await;
    assert_eq!(
        world.phases(job).await,
        [TaskPhase::Cancelled, TaskPhase::Running]
    );
    world.clock.advance(TimeDelta::seconds(100));
    world.settle().await;
    assert_eq!(world.live().await[0].wanted, Wanted::Stop);
    world.act(Act::Stop).await;
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Cancelled);
    let failure = world.promotion(job).await.failure.unwrap();
    assert_eq!(
        failure.code,
        FailureCode::Cancelled,
        "and not that it took too long"
    );
}

#[tokio::test]
async fn r14_a_paused_job_that_may_finish_ends_in_bounded_time() {
    let mut world = World::new(2).await;
    world.limits = Limits {
        progress_deadline_ms: 400_000,
        ..Limits::default()
    };
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.settle().await;
    world.act(Act::Begin).await;
    let now = world.clock.now();
    let mut tx = world.core.db.write().await.unwrap();
    let found = tx.job_by_id(job).await.unwrap().unwrap();
    let by = By {
        actor: "user/alice",
        reason: "",
    };
    pause_job(&mut tx, &found, by, now).await.unwrap();
    tx.commit().await.unwrap();
    world.clock.advance(TimeDelta::hours(5));
    world.settle().await;
    world.cancel_and(job, Finish).await.unwrap();
    world.clock.advance(TimeDelta::seconds(399));
    world.settle().await;
    assert!(
        world.live().await.iter().all(|task| task.wanted == Wanted::Run),
        "it has its time"
    );
    world.clock.advance(TimeDelta::seconds(1));
    world.settle().await;
    assert!(world.live().await.iter().all(|task| task.wanted == Wanted::Stop));
    world.act(Act::Stop).await;
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Cancelled);
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

#[tokio::test]
async fn r14_a_revoked_agent_ends_its_task_and_its_attempt() {
    let world = World::new(1).await;
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.settle().await;
    world.act(Act::Begin).await;
    let task = world.tasks(job).await.remove(0);
    let now = world.clock.now();
    let mut tx = world.core.db.write().await.unwrap();
    for _ in 0..2 {
        let task = tx.task(task.id).await.unwrap().unwrap();
        let ended = abandon_task(&mut tx, &task, "host is gone", "user/alice", now)
            .await
            .unwrap();
        assert_eq!(ended.state.phase(), TaskPhase::Failed);
    }
    let attempts = tx.attempts(task.id).await.unwrap();
    assert_eq!((attempts.len(), attempts[0].result.as_str()), (1, "abandoned"));
    assert_eq!(attempts[0].finished_at, Some(now));
    tx.commit().await.unwrap();
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Failed);
}

#[tokio::test]
async fn r14_an_attempt_that_outlasts_its_limits_is_lost_however_alive_its_agent_is() {
    let world = World::new(1).await;
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.settle().await;
    world.act(Act::Begin).await;
    let task = world.tasks(job).await.remove(0);
    for (hours, phase) in [(0, TaskPhase::Running), (2, TaskPhase::Lost)] {
        world.clock.advance(TimeDelta::hours(hours));
        let mut tx = world.core.db.write().await.unwrap();
        tx.extend_leases(&[task.id], world.clock.now() + TimeDelta::hours(1))
            .await
            .unwrap();
        tx.commit().await.unwrap();
        world.reap().await;
        assert_eq!(world.phases(job).await, [phase]);
    }
    // What it says later still counts.
    world.act(Act::Succeed).await;
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn r9_after_a_start_silence_is_not_loss_until_agents_had_time_to_return() {
    let mut world = World::new(1).await;
    world.core.rules.reconnect_grace = TimeDelta::seconds(60);
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.settle().await;
    world.act(Act::Begin).await;
    world.clock.advance(TimeDelta::minutes(10));
    // As a process that starts now.
    world.core.started_at = world.clock.now();
    let mut reaper = LeaseReaper::new(world.core.clone(), ReplicaId::new(world.clock.now()));
    assert_eq!(reaper.activate().await.unwrap(), Outcome::Idle);
    assert_eq!(world.phases(job).await, [TaskPhase::Running]);
    world.clock.advance(TimeDelta::seconds(60));
    while reaper.activate().await.unwrap() == Outcome::More {}
    assert_eq!(world.phases(job).await, [TaskPhase::Lost]);
}
