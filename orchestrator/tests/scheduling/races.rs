//! What comes at the same instant for one lane: the second waits until the first counts, and then sees it.

use std::{pin::pin, time::Duration};

use sealift_common::{id::JobId, job::JobPhase, release::Release, rollback::Wish, strategy::Strategy};
use sealift_orchestrator::app::start_job::{Started, start_job};
use tokio::time::timeout;

use crate::{rollbacks::go_back_within, world::World};

/// `v1` and then `v2` everywhere, and `v3` at the head of the lane.
async fn before_the_race(world: &World) -> (Release, JobId) {
    for content in ["v1", "v2"] {
        let release = world.release(content).await;
        let job = world.promote(&release).await;
        assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    }
    let release = world.release("v3").await;
    let waiting = world.request(&world.wish(&release, Strategy::AllAtOnce {})).await;
    (release, waiting.job.unwrap().id)
}

async fn start(world: &World) -> Started {
    let mut tx = world.core.db.write().await.unwrap();
    let started = start_job(&world.core, &mut tx, world.environment.id)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    started
}

#[tokio::test]
async fn what_waits_does_not_start_beside_a_rollback_that_holds_it_back() {
    let world = World::new(2).await;
    let (release, waiting) = before_the_race(&world).await;
    let mut first = world.core.db.write().await.unwrap();
    let rollback = go_back_within(&world, &mut first, &release, Wish::default()).await;
    let rollback = rollback.unwrap().job.unwrap().id;
    let mut second = pin!(start(&world));
    let early = timeout(Duration::from_millis(100), &mut second).await;
    assert!(early.is_err(), "it started what the rollback holds back");
    first.commit().await.unwrap();
    assert_eq!(second.await, Started::Running);
    assert_eq!(world.phase(waiting).await, JobPhase::Queued);
    assert_eq!(world.phase(rollback).await, JobPhase::Running);
}

#[tokio::test]
async fn a_rollback_sees_what_starts_at_the_same_instant() {
    let world = World::new(2).await;
    let (release, waiting) = before_the_race(&world).await;
    let mut first = world.core.db.write().await.unwrap();
    let started = start_job(&world.core, &mut first, world.environment.id).await;
    assert_eq!(started.unwrap(), Started::Running);
    let rollback = async {
        let mut tx = world.core.db.write().await.unwrap();
        go_back_within(&world, &mut tx, &release, Wish::default()).await
    };
    let mut second = pin!(rollback);
    let early = timeout(Duration::from_millis(100), &mut second).await;
    assert!(early.is_err(), "it went back as if nothing were under way");
    first.commit().await.unwrap();
    let refused = second.await.unwrap_err().to_string();
    assert!(refused.contains("is being rolled out"), "{refused}");
    assert_eq!(world.phase(waiting).await, JobPhase::Running);
}
