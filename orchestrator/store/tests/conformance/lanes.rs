//! Lanes: tickets, and whose turn it is in one that lets several jobs run.

use sealift_common::job::{JobEvent, PauseReason};
use sealift_store::{Job, Tx};

use crate::{
    harness::{World, at, conformance},
    seed::{Seed, failure},
};

conformance![
    a_project_has_one_job_under_way_and_beside_what_is_undone_only_its_rollback,
    r1_lanes_keep_ticket_order,
    tickets_have_no_gap_under_concurrency,
];

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

async fn r1_lanes_keep_ticket_order(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut jobs: Vec<Job> = Vec::new();
    for seconds in 0..3 {
        jobs.push(seed.deployment(&world.db, at(seconds)).await.job);
    }
    let lane = seed.environment.id;
    let mut tx = world.db.write().await.unwrap();
    let project = tx.release(seed.tenant.id, jobs[0].release_id).await.unwrap();
    let project = project.unwrap().project_id;
    assert_eq!(jobs.iter().map(|job| job.ticket).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(tx.lanes_with_queued().await.unwrap(), [lane]);
    assert_eq!(tx.lane_head(lane).await.unwrap(), Some(jobs[0].clone()));
    assert_eq!(tx.lane_position(&jobs[2]).await.unwrap(), 3);
    let running = tx
        .apply_job_event(&jobs[0], &JobEvent::Started, "x", at(10))
        .await
        .unwrap();
    assert_eq!(
        tx.lane_head(lane).await.unwrap(),
        None,
        "its project is under way"
    );
    assert!(tx.is_project_in_motion(lane, project).await.unwrap());
    assert_eq!(
        (
            tx.running_in_lane(lane).await.unwrap(),
            tx.queued_in_lane(lane).await.unwrap()
        ),
        (1, 2)
    );
    assert_eq!(tx.lane_position(&running).await.unwrap(), 0);
    assert_eq!(tx.lane_position(&jobs[2]).await.unwrap(), 2);
    tx.apply_job_event(&running, &JobEvent::Completed, "x", at(25))
        .await
        .unwrap();
    assert_eq!(tx.lane_head(lane).await.unwrap().unwrap().id, jobs[1].id);
    assert!(!tx.is_project_in_motion(lane, project).await.unwrap());
    assert_eq!(tx.recent_job_seconds(lane, 5).await.unwrap(), [15.0]);
    for job in &jobs[1..] {
        tx.apply_job_event(job, &JobEvent::Cancelled, "x", at(30))
            .await
            .unwrap();
    }
    assert!(tx.lanes_with_queued().await.unwrap().is_empty());
    assert_eq!(tx.lane_head(lane).await.unwrap(), None);
}

async fn tickets_have_no_gap_under_concurrency(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = futures::future::join_all((0..12).map(|number| seed.deployment(&world.db, at(number)))).await;
    let mut tickets: Vec<u64> = made.iter().map(|made| made.job.ticket).collect();
    tickets.sort_unstable();
    assert_eq!(tickets, (1..=12).collect::<Vec<_>>());
}
