//! Waves of many targets: what is looked at, and what is written, is bounded.

use std::time::Duration;

use chrono::TimeDelta;
use sealift_common::{
    failure::FailureCode,
    id::JobId,
    job::JobState,
    recipe::OfflinePolicy,
    strategy::{CanaryPromotion, Share, Strategy},
    task::{SkipReason, TaskPhase, TaskState},
};
use sealift_orchestrator::loops::driver::Outcome;

use crate::{
    seen::stopped,
    world::{Act, World},
};

/// The look at a wave that has baked goes page by page, and stops at no page.
#[tokio::test]
async fn the_last_target_of_a_large_canary_counts_as_much_as_the_first() {
    let world = World::new(102).await;
    let release = world.release("v1").await;
    let strategy = Strategy::Canary {
        first: Share::Count(101),
        bake_ms: 60_000,
        promote: CanaryPromotion::Automatic,
        max_parallel: Share::ALL,
    };
    let job = world
        .request(&world.wish(&release, strategy))
        .await
        .job
        .unwrap()
        .id;
    world.settle().await;
    world.act(Act::Succeed).await;
    world.settle().await;
    let last = world.targets[100].id;
    world.tamper(last, stopped).await;
    world.clock.advance(TimeDelta::seconds(61));
    world.settle().await;
    let JobState::Failed { failure } = world.job(job).await.state else {
        panic!("it passed");
    };
    assert_eq!(failure.code, FailureCode::CanaryFailed);
    assert!(failure.summary.starts_with("web-101 "), "{}", failure.summary);
    assert_eq!(world.live().await.len(), 0);
}

/// A job of which no host is there, and which waits for them.
async fn waits_for_all(world: &World) -> JobId {
    let release = world.release("v1").await;
    let mut wish = world.wish(&release, Strategy::AllAtOnce {});
    wish.recipe.offline = OfflinePolicy::Wait { ms: 600_000 };
    let agents: Vec<_> = world
        .targets
        .iter()
        .filter_map(|target| target.agent_id)
        .collect();
    world.offline.lock().unwrap().extend(agents);
    let job = world.request(&wish).await.job.unwrap().id;
    world.settle().await;
    job
}

/// Looking whether hosts that are waited for are back takes no right to write: here somebody else has it all the time.
#[tokio::test]
async fn hosts_that_are_waited_for_cost_no_write() {
    let world = World::new(3).await;
    let job = waits_for_all(&world).await;
    assert_eq!(world.phases(job).await, [TaskPhase::Pending; 3]);
    let held = world.core.db.write().await.unwrap();
    let outcome = tokio::time::timeout(Duration::from_secs(5), world.step()).await;
    assert_eq!(outcome.unwrap(), Outcome::Idle);
    drop(held);
    world
        .offline
        .lock()
        .unwrap()
        .remove(&world.targets[2].agent_id.unwrap());
    world.settle().await;
    assert_eq!(
        world.phases(job).await,
        [TaskPhase::Pending, TaskPhase::Pending, TaskPhase::Assigned]
    );
    world.clock.advance(TimeDelta::seconds(600));
    world.settle().await;
    let left = TaskState::Skipped {
        reason: SkipReason::Offline,
    };
    let tasks = world.tasks(job).await;
    assert!(tasks[..2].iter().all(|task| task.state == left), "not for ever");
}

/// However many are waited for, one activation looks at so many of them, and the next ones at the others.
#[tokio::test]
async fn a_host_behind_a_thousand_that_are_waited_for_gets_its_order() {
    let world = World::new(1_101).await;
    let job = waits_for_all(&world).await;
    // The one with the last name.
    let tasks = world.tasks(job).await;
    let last = tasks.last().unwrap();
    let target = world.targets.iter().find(|target| target.id == last.target_id);
    world
        .offline
        .lock()
        .unwrap()
        .remove(&target.unwrap().agent_id.unwrap());
    for _ in 0..4 {
        world.step().await;
    }
    let tasks = world.tasks(job).await;
    let assigned: Vec<_> = tasks
        .iter()
        .filter(|task| task.state.phase() == TaskPhase::Assigned)
        .map(|task| task.id)
        .collect();
    assert_eq!(assigned, [last.id]);
}
