//! Strategies and failure rules, and what a person may do to a job under way.

use chrono::TimeDelta;
use sealift_common::{
    failure::FailureCode,
    id::{HoldId, JobId, ReplicaId},
    job::{JobPhase, JobState, Pause},
    promotion::PromotionState,
    recipe::{FailurePolicy, OfflinePolicy, OnFailure, Recipe},
    release::Release,
    strategy::{CanaryPromotion, Limits, Share, Strategy},
    task::{SkipReason, TaskPhase, TaskState},
    time::Clock as _,
};
use sealift_orchestrator::{
    app::steer_job::{abort_job, pause_job, resume_job, skip_task},
    loops::{catch_up::CatchUp, driver::Activity as _},
};
use sealift_store::{By, EntityKind, Hold, Transition};

use crate::{
    seen::stopped,
    world::{Act, World},
};

const ALICE: &str = "user/alice";

pub async fn start(world: &World, release: &Release, recipe: Recipe) -> JobId {
    let mut wish = world.wish(release, recipe.strategy.clone());
    wish.recipe = recipe;
    let job = world.request(&wish).await.job.unwrap().id;
    world.settle().await;
    job
}

/// A release that came to all targets but the first, whose agent is away and was not waited for.
pub async fn succeeds_without_the_first(world: &World) -> Release {
    let away = world.targets[0].agent_id.unwrap();
    world.offline.lock().unwrap().insert(away);
    let release = world.release("v1").await;
    let skip = Recipe {
        offline: OfflinePolicy::Skip {},
        ..Recipe::default()
    };
    let job = start(world, &release, skip).await;
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    release
}

pub fn canary(promote: CanaryPromotion) -> Recipe {
    Recipe {
        strategy: Strategy::Canary {
            first: Share::Count(1),
            bake_ms: 60_000,
            promote,
            max_parallel: Share::ALL,
        },
        ..Recipe::default()
    }
}

/// Alice, for a reason.
fn by(reason: &str) -> By<'_> {
    By { actor: ALICE, reason }
}

async fn history(world: &World, kind: EntityKind, id: uuid::Uuid) -> Vec<Transition> {
    let mut tx = world.core.db.read().await.unwrap();
    tx.transitions(kind, id).await.unwrap()
}

pub async fn pause(world: &World, job: JobId) {
    let mut tx = world.core.db.write().await.unwrap();
    let found = tx.job_by_id(job).await.unwrap().unwrap();
    pause_job(&mut tx, &found, by("a look first"), world.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

pub async fn resume(world: &World, job: JobId) {
    let mut tx = world.core.db.write().await.unwrap();
    let found = tx.job_by_id(job).await.unwrap().unwrap();
    resume_job(&mut tx, &found, ALICE, world.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    world.settle().await;
}

pub async fn abort(world: &World, job: JobId) {
    let mut tx = world.core.db.write().await.unwrap();
    let found = tx.job_by_id(job).await.unwrap().unwrap();
    abort_job(&mut tx, &found, "it looks wrong", ALICE, world.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    world.settle().await;
}

#[tokio::test]
async fn a_canary_bakes_and_then_the_rest_follows() {
    let world = World::new(4).await;
    let release = world.release("v1").await;
    let job = start(&world, &release, canary(CanaryPromotion::Automatic)).await;
    assert_eq!(world.live().await.len(), 1);
    world.act(Act::Succeed).await;
    world.settle().await;
    assert_eq!(world.live().await.len(), 0, "it bakes");
    world.clock.advance(TimeDelta::seconds(61));
    world.settle().await;
    assert_eq!(world.live().await.len(), 3);
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn a_canary_that_stops_running_while_it_bakes_fails_the_job() {
    let world = World::new(3).await;
    let release = world.release("v1").await;
    let job = start(&world, &release, canary(CanaryPromotion::Automatic)).await;
    let task = world.live().await.pop().unwrap();
    world.act_on(&task, Act::Succeed).await;
    world.settle().await;
    world.tamper(task.target_id, stopped).await;
    world.clock.advance(TimeDelta::seconds(61));
    world.settle().await;
    assert!(
        matches!(world.job(job).await.state, JobState::Failed { failure } if failure.code == FailureCode::CanaryFailed)
    );
    let untouched = world.phases(job).await;
    assert_eq!(
        untouched
            .iter()
            .filter(|phase| **phase == TaskPhase::Skipped)
            .count(),
        2
    );
}

#[tokio::test]
async fn a_manual_canary_waits_for_a_person_and_a_newer_promotion_waits_for_it() {
    for lane_capacity in [1, 5] {
        canary_and_newer_promotion(lane_capacity).await;
    }
}

/// Nomad: a newer promotion during a canary must never leave three versions live, however many jobs a lane lets run.
async fn canary_and_newer_promotion(lane_capacity: u32) {
    let mut world = World::new(3).await;
    world.core.rules.lane_capacity = lane_capacity;
    let before = world.release("v0").await;
    let ran = world.promote(&before).await;
    world.finish(ran).await;
    let (first, second) = (world.release("v1").await, world.release("v2").await);
    let job = start(&world, &first, canary(CanaryPromotion::Manual)).await;
    world.act(Act::Succeed).await;
    world.settle().await;
    world.clock.advance(TimeDelta::seconds(61));
    world.settle().await;
    let paused = JobState::Paused { why: Pause::Canary };
    assert_eq!(world.job(job).await.state, paused);
    let requested = world.request(&world.wish(&second, Strategy::AllAtOnce {})).await;
    let record = String::from_utf8(requested.decision.record).unwrap();
    assert!(record.contains("LANE_BUSY"), "{record}");
    let newer = requested.job.unwrap().id;
    let web = world.release_in("web", "v1").await;
    let other = world.promote(&web).await;
    world.clock.advance(TimeDelta::days(2));
    world.settle().await;
    assert_eq!(world.phase(newer).await, JobPhase::Queued);
    if lane_capacity > 1 {
        assert_eq!(
            world.phase(other).await,
            JobPhase::Running,
            "another project need not wait"
        );
        world.act(Act::Succeed).await;
        world.settle().await;
    }
    assert_eq!(world.live().await.len(), 0);
    resume(&world, job).await;
    assert_eq!(world.live().await.len(), 2, "no stale deadline after promote");
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    assert_eq!(world.finish(newer).await, JobPhase::Succeeded);
    assert_eq!(world.finish(other).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn failures_within_the_tolerance_stop_nothing() {
    let world = World::new(4).await;
    let release = world.release("v1").await;
    let recipe = Recipe {
        strategy: World::rolling(2),
        failures: FailurePolicy {
            tolerated: Share::Percent(25),
            on_failure: OnFailure::Stop,
        },
        ..Recipe::default()
    };
    let job = start(&world, &release, recipe).await;
    let live = world.live().await;
    world.act_on(&live[0], Act::Fail(FailureCode::Unhealthy)).await;
    world.act_on(&live[1], Act::Succeed).await;
    world.settle().await;
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    assert_eq!(world.phases(job).await[0], TaskPhase::Failed);
    assert_eq!(world.state(job).await, PromotionState::Deployed);
}

#[tokio::test]
async fn too_many_failures_ask_a_person_when_the_recipe_says_so() {
    let world = World::new(3).await;
    let release = world.release("v1").await;
    let recipe = Recipe {
        strategy: World::rolling(1),
        failures: FailurePolicy {
            tolerated: Share::NONE,
            on_failure: OnFailure::Pause,
        },
        ..Recipe::default()
    };
    let job = start(&world, &release, recipe).await;
    world.act(Act::Fail(FailureCode::Unhealthy)).await;
    world.settle().await;
    let paused = JobState::Paused { why: Pause::Failures };
    assert_eq!(world.job(job).await.state, paused);
    resume(&world, job).await;
    assert_eq!(world.job(job).await.accepted_failures, 1);
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn the_progress_deadline_stops_what_hangs_but_not_what_is_paused() {
    let world = World::new(2).await;
    let release = world.release("v1").await;
    let recipe = Recipe {
        limits: Limits {
            progress_deadline_ms: 400_000,
            ..Limits::default()
        },
        ..Recipe::default()
    };
    let job = start(&world, &release, recipe).await;
    let live = world.live().await;
    world.clock.advance(TimeDelta::seconds(390));
    world.act_on(&live[0], Act::Succeed).await;
    world.settle().await;
    world.clock.advance(TimeDelta::seconds(390));
    world.settle().await;
    assert_eq!(world.job(job).await.stop, None, "every healthy target extends it");
    pause(&world, job).await;
    world.clock.advance(TimeDelta::hours(3));
    world.settle().await;
    assert_eq!(world.job(job).await.stop, None, "never while paused");
    resume(&world, job).await;
    world.clock.advance(TimeDelta::seconds(390));
    world.settle().await;
    assert_eq!(world.job(job).await.stop, None, "it begins anew on resume");
    world.clock.advance(TimeDelta::seconds(11));
    world.settle().await;
    let stop = world.job(job).await.stop.unwrap();
    assert_eq!(stop.failure.code, FailureCode::ProgressDeadline);
    world.act_on(&live[1], Act::Stop).await;
    world.settle().await;
    assert!(
        matches!(world.job(job).await.state, JobState::Failed { failure } if failure.code == FailureCode::ProgressDeadline)
    );
}

#[tokio::test]
async fn absent_agents_are_skipped_or_waited_for_as_the_recipe_says() {
    let world = World::new(2).await;
    let release = world.release("v1").await;
    let away = world.targets[0].agent_id.unwrap();
    world.offline.lock().unwrap().insert(away);
    let skip = Recipe {
        offline: OfflinePolicy::Skip {},
        ..Recipe::default()
    };
    let job = start(&world, &release, skip).await;
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    let skipped = TaskState::Skipped {
        reason: SkipReason::Offline,
    };
    assert_eq!(world.tasks(job).await[0].state, skipped);

    let other = world.release("v2").await;
    let wait = Recipe {
        offline: OfflinePolicy::Wait { ms: 600_000 },
        ..Recipe::default()
    };
    let job = start(&world, &other, wait.clone()).await;
    world.act(Act::Succeed).await;
    world.settle().await;
    assert_eq!(
        world.phases(job).await,
        [TaskPhase::Pending, TaskPhase::Succeeded]
    );
    world.offline.lock().unwrap().clear();
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    assert_eq!(world.phases(job).await, [TaskPhase::Succeeded; 2]);

    world.offline.lock().unwrap().insert(away);
    let third = world.release("v3").await;
    let job = start(&world, &third, wait).await;
    world.act(Act::Succeed).await;
    world.clock.advance(TimeDelta::seconds(601));
    world.settle().await;
    assert_eq!(world.tasks(job).await[0].state, skipped, "not for ever (R14)");
    assert_eq!(world.phase(job).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn a_target_that_returns_gets_what_is_active_by_then() {
    let world = World::new(2).await;
    let away = world.targets[0].agent_id.unwrap();
    world.offline.lock().unwrap().insert(away);
    let skip = Recipe {
        offline: OfflinePolicy::Skip {},
        ..Recipe::default()
    };
    for content in ["v1", "v2"] {
        let release = world.release(content).await;
        let job = start(&world, &release, skip.clone()).await;
        assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    }
    let mut catch_up = CatchUp::new(world.core.clone(), ReplicaId::new(world.clock.now()));
    catch_up.activate().await.unwrap();
    world.settle().await;
    assert_eq!(world.live().await.len(), 0, "it is still away");
    world.offline.lock().unwrap().clear();
    world.clock.advance(TimeDelta::seconds(6));
    catch_up.activate().await.unwrap();
    world.settle().await;
    let live = world.live().await;
    assert_eq!(live.len(), 1, "one order, for the newest");
    assert_eq!(live[0].target_id, world.targets[0].id);
    let job = live[0].job_id;
    assert_eq!(world.promotion(job).await.requested_by, "orchestrator/catch-up");
    let newest = world.release_of(job).await;
    assert_eq!(newest.number, 2);
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    world.clock.advance(TimeDelta::minutes(20));
    catch_up.activate().await.unwrap();
    world.settle().await;
    assert_eq!(world.live().await.len(), 0, "it has caught up");
}

#[tokio::test]
async fn a_target_that_returns_late_has_the_whole_progress_deadline() {
    let world = World::new(2).await;
    let release = world.release("v1").await;
    let away = world.targets[1].agent_id.unwrap();
    world.offline.lock().unwrap().insert(away);
    let recipe = Recipe {
        offline: OfflinePolicy::Wait { ms: 7_200_000 },
        limits: Limits {
            progress_deadline_ms: 400_000,
            ..Limits::default()
        },
        ..Recipe::default()
    };
    let job = start(&world, &release, recipe).await;
    world.act(Act::Succeed).await;
    world.settle().await;
    world.clock.advance(TimeDelta::hours(1));
    world.settle().await;
    world.offline.lock().unwrap().clear();
    world.settle().await;
    world.act(Act::Begin).await;
    world.clock.advance(TimeDelta::seconds(399));
    world.settle().await;
    assert_eq!(
        world.job(job).await.stop,
        None,
        "the hour of waiting does not count"
    );
    world.clock.advance(TimeDelta::seconds(1));
    world.settle().await;
    let stop = world.job(job).await.stop.unwrap();
    assert_eq!(stop.failure.code, FailureCode::ProgressDeadline);
}

#[tokio::test]
async fn who_returns_while_the_project_is_held_catches_up_when_the_hold_is_lifted() {
    let world = World::new(2).await;
    let release = succeeds_without_the_first(&world).await;
    let now = world.clock.now();
    let hold = Hold {
        id: HoldId::new(now),
        tenant_id: world.tenant,
        environment_id: world.environment.id,
        environment: world.environment.name.clone(),
        project_id: release.project_id,
        project: release.source.project.clone(),
        reason: "nobody touches it".to_owned(),
        placed_by: ALICE.to_owned(),
        placed_at: now,
        lifted: None,
    };
    let mut tx = world.core.db.write().await.unwrap();
    tx.place_hold(&hold).await.unwrap();
    tx.commit().await.unwrap();
    world.offline.lock().unwrap().clear();
    let mut catch_up = CatchUp::new(world.core.clone(), ReplicaId::new(now));
    for _ in 0..3 {
        world.clock.advance(TimeDelta::minutes(11));
        catch_up.activate().await.unwrap();
        world.settle().await;
        assert_eq!(world.live().await.len(), 0, "a hold is a hold");
    }
    let mut tx = world.core.db.write().await.unwrap();
    tx.lift_hold(&hold, ALICE, world.clock.now()).await.unwrap();
    tx.commit().await.unwrap();
    world.clock.advance(TimeDelta::minutes(11));
    catch_up.activate().await.unwrap();
    world.settle().await;
    let live = world.live().await;
    assert_eq!(live.len(), 1);
    assert_eq!(world.finish(live[0].job_id).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn failures_keep_nothing_else_from_being_worked_on_when_the_recipe_says_so() {
    let world = World::new(4).await;
    let release = world.release("v1").await;
    let recipe = Recipe {
        strategy: World::rolling(2),
        failures: FailurePolicy {
            tolerated: Share::NONE,
            on_failure: OnFailure::Continue,
        },
        ..Recipe::default()
    };
    let job = start(&world, &release, recipe).await;
    world.act(Act::Fail(FailureCode::Unhealthy)).await;
    world.settle().await;
    assert_eq!(world.live().await.len(), 2, "the next wave begins");
    world.act(Act::Succeed).await;
    world.settle().await;
    assert!(
        matches!(world.job(job).await.state, JobState::Failed { failure } if failure.code == FailureCode::Unhealthy),
        "it tells the truth at the end"
    );
    assert!(world.active().await.is_empty());
}

#[tokio::test]
async fn all_waves_and_tasks_are_there_before_the_first_order() {
    let world = World::new(5).await;
    let release = world.release("v1").await;
    let wish = world.wish(&release, World::rolling(2));
    let job = world.request(&wish).await.job.unwrap().id;
    world.step().await;
    assert_eq!(world.phase(job).await, JobPhase::Running);
    let tasks = world.tasks(job).await;
    let waves: Vec<_> = tasks.iter().map(|task| task.wave).collect();
    assert_eq!(waves, [0, 0, 1, 1, 2]);
    let mut tx = world.core.db.read().await.unwrap();
    let stored = tx.waves_of_job(job).await.unwrap();
    assert_eq!(stored.len(), 3);
    assert!(stored.iter().all(|wave| wave.opened_at.is_none()));
    for task in tasks {
        assert_eq!(task.state.phase(), TaskPhase::Pending);
        assert!(tx.attempts(task.id).await.unwrap().is_empty(), "no order yet");
    }
}

#[tokio::test]
async fn a_target_that_a_person_leaves_out_is_never_touched() {
    let world = World::new(2).await;
    let release = world.release("v1").await;
    let recipe = Recipe {
        strategy: World::rolling(1),
        ..Recipe::default()
    };
    let job = start(&world, &release, recipe).await;
    let tasks = world.tasks(job).await;
    let mut tx = world.core.db.write().await.unwrap();
    let now = world.clock.now();
    assert!(
        skip_task(&mut tx, &tasks[0], ALICE.into(), now).await.is_err(),
        "it has begun"
    );
    skip_task(&mut tx, &tasks[1], by("the host moves"), now)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    assert_eq!(
        world.phases(job).await,
        [TaskPhase::Succeeded, TaskPhase::Skipped]
    );
    let history = history(&world, EntityKind::Task, tasks[1].id.uuid()).await;
    let skipped = history.last().unwrap();
    assert_eq!(
        (skipped.actor.as_str(), skipped.detail.as_str()),
        (ALICE, "operator: the host moves"),
        "who and why are told apart"
    );
}

#[tokio::test]
async fn a_paused_job_lets_what_is_under_way_end_and_begins_nothing() {
    let world = World::new(2).await;
    let release = world.release("v1").await;
    let recipe = Recipe {
        strategy: World::rolling(1),
        ..Recipe::default()
    };
    let job = start(&world, &release, recipe).await;
    pause(&world, job).await;
    let history = history(&world, EntityKind::Job, job.uuid()).await;
    let paused = history.last().unwrap();
    assert_eq!(
        (paused.actor.as_str(), paused.detail.as_str()),
        (ALICE, "operator: a look first"),
        "who and why are told apart"
    );
    world.act(Act::Succeed).await;
    world.settle().await;
    assert_eq!(
        world.phases(job).await,
        [TaskPhase::Succeeded, TaskPhase::Pending]
    );
    assert_eq!(world.phase(job).await, JobPhase::Paused);
    resume(&world, job).await;
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn r14_a_paused_job_can_be_cancelled() {
    let world = World::new(2).await;
    let release = world.release("v1").await;
    let job = start(&world, &release, Recipe::default()).await;
    pause(&world, job).await;
    world.cancel(job).await.unwrap();
    world.settle().await;
    world.act(Act::Stop).await;
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Cancelled);
}

#[tokio::test]
async fn an_aborted_first_release_has_nothing_to_go_back_to_and_says_so() {
    let world = World::new(2).await;
    let release = world.release("v1").await;
    let recipe = Recipe {
        strategy: World::rolling(1),
        ..Recipe::default()
    };
    let job = start(&world, &release, recipe).await;
    world.act(Act::Succeed).await;
    world.settle().await;
    abort(&world, job).await;
    world.act(Act::Stop).await;
    world.settle().await;
    let JobState::Failed { failure } = world.job(job).await.state else {
        panic!("{:?}", world.job(job).await);
    };
    assert_eq!(failure.code, FailureCode::Aborted);
    assert!(
        failure.detail.contains("nothing to go back to"),
        "{}",
        failure.detail
    );
}

#[tokio::test]
async fn a_part_of_an_environment_does_not_make_a_release_the_active_one() {
    let world = World::new(2).await;
    let release = world.release("v1").await;
    let mut wish = world.wish(&release, Strategy::AllAtOnce {});
    wish.scope = Some(vec![world.targets[1].id]);
    let job = world.request(&wish).await.job.unwrap().id;
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    assert_eq!(world.tasks(job).await.len(), 1);
    assert!(world.active().await.is_empty());
}
