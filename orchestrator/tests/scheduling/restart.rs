//! The orchestrator may die at any point: what it finds in the store is enough to go on.

use sealift_common::{failure::FailureCode, id::ReplicaId, job::JobPhase, task::TaskPhase, time::Clock as _};
use sealift_orchestrator::app::turn::{self, Turn};

use crate::world::{Act, World};

/// Plays `steps` moves, one transaction or one report each, then restarts and goes on to the end.
async fn die_after(steps: usize, stop: bool) -> (JobPhase, Vec<TaskPhase>) {
    let mut world = World::new(3).await;
    let release = world.release("v1").await;
    let wish = world.wish(&release, World::rolling(2));
    let job = world.request(&wish).await.job.unwrap().id;
    for step in 0..steps {
        if step % 2 == 0 {
            world.step().await;
        } else if let Some(task) = world.live().await.first() {
            world.act_on(task, Act::Succeed).await;
        }
    }
    if stop && !world.phase(job).await.is_terminal() {
        world.cancel(job).await.unwrap();
    }
    world = world.restart().await;
    for _ in 0..100 {
        world.settle().await;
        if world.phase(job).await.is_terminal() {
            break;
        }
        world.act(if stop { Act::Stop } else { Act::Succeed }).await;
    }
    (world.phase(job).await, world.phases(job).await)
}

#[tokio::test]
async fn r9_a_restart_at_any_point_converges() {
    for steps in 0..12 {
        let (phase, tasks) = die_after(steps, false).await;
        assert_eq!(phase, JobPhase::Succeeded, "after {steps} steps");
        assert_eq!(tasks, [TaskPhase::Succeeded; 3], "after {steps} steps");
    }
}

#[tokio::test]
async fn r14_a_cancel_survives_a_restart_at_any_point() {
    for steps in 0..12 {
        let (phase, tasks) = die_after(steps, true).await;
        assert!(phase.is_terminal(), "after {steps} steps");
        assert!(
            tasks.iter().all(|task| task.is_terminal()),
            "after {steps} steps: {tasks:?}"
        );
    }
}

#[tokio::test]
async fn a_failure_survives_a_restart() {
    let mut world = World::new(2).await;
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.settle().await;
    world.act(Act::Fail(FailureCode::Unhealthy)).await;
    world = world.restart().await;
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Failed);
}

#[tokio::test]
async fn r9_a_restart_does_not_wait_for_the_lease_of_the_process_before() {
    let mut world = World::new(1).await;
    if world.is_shared() {
        // Where another replica may live, its lease has to run out.
        return;
    }
    let release = world.release("v1").await;
    world.settle().await;
    let job = world.promote(&release).await;
    let before = world.clock.now();
    world = world.restart().await;
    world.settle().await;
    assert_eq!(world.clock.now(), before, "no time passed");
    assert_eq!(world.phase(job).await, JobPhase::Running);
}

#[tokio::test]
async fn r9_a_stopped_replica_hands_its_turns_over() {
    let world = World::new(1).await;
    let now = world.clock.now();
    let (old, new) = (ReplicaId::new(now), ReplicaId::new(now));
    let db = world.core.db.clone();
    assert!(
        Turn::new(db.clone(), turn::SCHEDULER, old)
            .hold(now)
            .await
            .unwrap()
    );
    let mut next = Turn::new(db.clone(), turn::SCHEDULER, new);
    assert!(!next.hold(now).await.unwrap(), "the old one holds it");
    turn::hand_over(&db, old, now).await.unwrap();
    assert!(next.hold(now).await.unwrap());
}
