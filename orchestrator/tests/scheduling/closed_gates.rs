//! Gates that close while a job is under way (seed row C15): no wave begins behind one, what runs ends, the job says what it waits
//! for and goes on.

use chrono::TimeDelta;
use sealift_common::{
    decision::{GateAnswer, Verdict},
    id::{HoldId, JobId},
    job::{JobPhase, Pause},
    release::Release,
    task::TaskPhase,
    time::Clock as _,
};
use sealift_orchestrator::app::steer_job::{abort_job, pause_job, resume_job};
use sealift_store::{By, EntityKind, Hold};

use crate::world::{Act, World};

const ALICE: &str = "user/alice";

/// A job of three waves whose first one is with its agent.
async fn half_way(world: &World, release: &Release) -> JobId {
    let wish = world.wish(release, World::rolling(1));
    let job = world.request(&wish).await.job.unwrap().id;
    world.settle().await;
    assert_eq!(world.live().await.len(), 1);
    job
}

async fn place_hold(world: &World, release: &Release, reason: &str) -> Hold {
    let now = world.clock.now();
    let hold = Hold {
        id: HoldId::new(now),
        tenant_id: world.tenant,
        environment_id: world.environment.id,
        environment: world.environment.name.clone(),
        project_id: release.project_id,
        project: release.source.project.clone(),
        reason: reason.to_owned(),
        placed_by: ALICE.to_owned(),
        placed_at: now,
        lifted: None,
    };
    let mut tx = world.core.db.write().await.unwrap();
    tx.place_hold(&hold).await.unwrap();
    tx.commit().await.unwrap();
    hold
}

async fn lift(world: &World, hold: &Hold) {
    let mut tx = world.core.db.write().await.unwrap();
    tx.lift_hold(hold, ALICE, world.clock.now()).await.unwrap();
    tx.commit().await.unwrap();
}

/// What the gate says that the job waits behind.
async fn waits_behind(world: &World, job: JobId) -> GateAnswer {
    match world.job(job).await.state.pause() {
        Some(Pause::Gate(answer)) => answer.clone(),
        other => panic!("it waits for something else: {other:?}"),
    }
}

#[tokio::test]
async fn r5_a_hold_stops_the_next_wave_and_its_end_lets_the_job_go_on() {
    let world = World::new(3).await;
    let release = world.release("v1").await;
    let job = half_way(&world, &release).await;
    let hold = place_hold(&world, &release, "a look first").await;
    world.settle().await;
    assert_eq!(
        world.phase(job).await,
        JobPhase::Running,
        "what runs is left alone"
    );
    world.act(Act::Succeed).await;
    world.settle().await;
    let told = waits_behind(&world, job).await;
    assert_eq!((told.verdict, told.reason.as_str()), (Verdict::Wait, "LANE_HELD"));
    assert!(told.message.contains("a look first"), "{}", told.message);
    assert!(told.advice.contains(&hold.id.to_string()), "{}", told.advice);
    // Days: nothing begins, and no deadline passes.
    world.clock.advance(TimeDelta::days(3));
    world.settle().await;
    assert_eq!(
        world.phases(job).await,
        [TaskPhase::Succeeded, TaskPhase::Pending, TaskPhase::Pending]
    );
    lift(&world, &hold).await;
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Running);
    assert_eq!(world.live().await.len(), 1);
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);

    let mut tx = world.core.db.read().await.unwrap();
    let history = tx.transitions(EntityKind::Job, job.uuid()).await.unwrap();
    let told: Vec<_> = history
        .iter()
        .map(|row| (row.event.as_str(), row.detail.as_str(), row.actor.as_str()))
        .collect();
    assert!(
        told.windows(2).any(|pair| pair
            == [
                ("paused", "LANE_HELD", "orchestrator"),
                ("resumed", "", "orchestrator")
            ]),
        "{told:?}"
    );
}

#[tokio::test]
async fn a_hold_between_start_and_first_order_lets_nothing_begin() {
    let world = World::new(2).await;
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.step().await;
    assert_eq!(world.phases(job).await, [TaskPhase::Pending; 2]);
    let hold = place_hold(&world, &release, "wait").await;
    world.settle().await;
    waits_behind(&world, job).await;
    assert_eq!(world.live().await.len(), 0);
    lift(&world, &hold).await;
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn a_job_behind_a_gate_survives_a_restart_and_shows_what_is_true_now() {
    let world = World::new(2).await;
    let release = world.release("v1").await;
    let job = half_way(&world, &release).await;
    let first = place_hold(&world, &release, "the first").await;
    world.act(Act::Succeed).await;
    world.settle().await;
    let world = world.restart().await;
    world.settle().await;
    assert!(waits_behind(&world, job).await.message.contains("the first"));
    // Another one takes its place before the scheduler has looked.
    lift(&world, &first).await;
    let second = place_hold(&world, &release, "the second").await;
    world.settle().await;
    assert!(waits_behind(&world, job).await.message.contains("the second"));
    lift(&world, &second).await;
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn what_a_person_says_counts_behind_a_gate_too() {
    let world = World::new(3).await;
    let release = world.release("v1").await;
    let job = half_way(&world, &release).await;
    let hold = place_hold(&world, &release, "wait").await;
    world.act(Act::Succeed).await;
    world.settle().await;

    // Whoever lets it go on has the gate asked again: it is closed.
    let now = world.clock.now();
    let mut tx = world.core.db.write().await.unwrap();
    let found = tx.job_by_id(job).await.unwrap().unwrap();
    resume_job(&mut tx, &found, ALICE, now).await.unwrap();
    tx.commit().await.unwrap();
    world.settle().await;
    waits_behind(&world, job).await;
    assert_eq!(world.live().await.len(), 0);

    // A pause of a person does not end with the gate.
    let mut tx = world.core.db.write().await.unwrap();
    let found = tx.job_by_id(job).await.unwrap().unwrap();
    let by = By {
        actor: ALICE,
        reason: "my own",
    };
    pause_job(&mut tx, &found, by, now).await.unwrap();
    tx.commit().await.unwrap();
    lift(&world, &hold).await;
    world.settle().await;
    assert_eq!(world.job(job).await.state.pause(), Some(&Pause::Operator));

    // Asked again after that pause, too.
    place_hold(&world, &release, "once more").await;
    let mut tx = world.core.db.write().await.unwrap();
    let found = tx.job_by_id(job).await.unwrap().unwrap();
    resume_job(&mut tx, &found, ALICE, now).await.unwrap();
    tx.commit().await.unwrap();
    world.settle().await;
    assert!(waits_behind(&world, job).await.message.contains("once more"));
    assert_eq!(world.live().await.len(), 0);

    let mut tx = world.core.db.write().await.unwrap();
    let found = tx.job_by_id(job).await.unwrap().unwrap();
    abort_job(&mut tx, &found, "", ALICE, now).await.unwrap();
    tx.commit().await.unwrap();
    world.settle().await;
    assert!(world.phase(job).await.is_terminal(), "R14");
}

/// Going back is what a hold waits for: it stops no wave of a rollback.
#[tokio::test]
async fn a_hold_stops_no_wave_of_a_rollback() {
    let world = World::new(2).await;
    let (old, new) = (world.release("v1").await, world.release("v2").await);
    for release in [&old, &new] {
        let job = world.promote(release).await;
        assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    }
    let rollback = crate::rollbacks::roll_back_by_hand(&world, &new).await;
    world.settle().await;
    let live = world.live().await;
    assert_eq!(live.len(), 2);
    let mut tx = world.core.db.read().await.unwrap();
    let held = tx.open_hold(world.environment.id, new.project_id).await.unwrap();
    assert!(held.is_some(), "it holds the project itself");
    drop(tx);
    assert_eq!(world.finish(rollback).await, JobPhase::Succeeded);
}
