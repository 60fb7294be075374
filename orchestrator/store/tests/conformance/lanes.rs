//! Whose turn it is in a lane that lets several jobs run.

use sealift_common::job::{JobEvent, PauseReason};
use sealift_store::{Job, Tx};

use crate::{
    harness::{World, at, conformance},
    seed::{Seed, failure},
};

conformance![a_project_has_one_job_under_way_and_beside_what_is_undone_only_its_rollback];

/// The next job of a project of the repository.
async fn queue(seed: &Seed, tx: &mut Tx, project: &str, seconds: i64) -> Job {
    let text = format!("github.com/acme/shop/{project}");
    let release = seed.release(tx, &text, at(seconds)).await.unwrap();
    let promotion = seed.promotion(tx, &release, at(seconds)).await;
    seed.job(tx, &promotion, at(seconds)).await.unwrap()
}

/// A rollback of a job, to the release that it brought.
async fn queue_rollback(seed: &Seed, tx: &mut Tx, of: &Job, seconds: i64) -> Job {
    let release = tx.release(seed.tenant.id, of.release_id).await.unwrap().unwrap();
    let promotion = seed.promotion(tx, &release, at(seconds)).await;
    seed.rollback_job(tx, &promotion, of.id, at(seconds))
        .await
        .unwrap()
}

async fn happens(tx: &mut Tx, job: &Job, event: &JobEvent) -> Job {
    let job = tx.job_by_id(job.id).await.unwrap().unwrap();
    tx.apply_job_event(&job, event, "x", at(50)).await.unwrap()
}

async fn a_project_has_one_job_under_way_and_beside_what_is_undone_only_its_rollback(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let lane = seed.environment.id;
    let mut tx = world.db.write().await.unwrap();
    let canary = queue(&seed, &mut tx, "api", 1).await;
    let newer = queue(&seed, &mut tx, "api", 2).await;
    let other = queue(&seed, &mut tx, "web", 3).await;
    let asked_for = queue_rollback(&seed, &mut tx, &newer, 4).await;
    let head = async |tx: &mut Tx| tx.lane_head(lane).await.unwrap().map(|job| job.id);
    assert_eq!(head(&mut tx).await, Some(asked_for.id), "rollbacks go first");
    happens(&mut tx, &canary, &JobEvent::Started).await;
    assert_eq!(
        head(&mut tx).await,
        Some(other.id),
        "the other project need not wait"
    );
    let reason = PauseReason::Canary;
    happens(&mut tx, &canary, &JobEvent::Paused { reason }).await;
    assert_eq!(head(&mut tx).await, Some(other.id), "a paused one is live, too");
    happens(&mut tx, &other, &JobEvent::Started).await;
    assert_eq!(head(&mut tx).await, None);

    let event = JobEvent::RollbackStarted { failure: failure() };
    let undone = happens(&mut tx, &canary, &event).await;
    let rollback = queue_rollback(&seed, &mut tx, &undone, 5).await;
    assert_eq!(
        head(&mut tx).await,
        Some(rollback.id),
        "before one with a lower ticket"
    );
    happens(&mut tx, &rollback, &JobEvent::Started).await;
    assert_eq!(head(&mut tx).await, None);
    happens(&mut tx, &rollback, &JobEvent::Completed).await;
    assert_eq!(head(&mut tx).await, None, "what it undoes has not ended");
    happens(&mut tx, &undone, &JobEvent::RolledBack).await;
    assert_eq!(head(&mut tx).await, Some(asked_for.id));
    happens(&mut tx, &asked_for, &JobEvent::Cancelled).await;
    assert_eq!(head(&mut tx).await, Some(newer.id));
}
