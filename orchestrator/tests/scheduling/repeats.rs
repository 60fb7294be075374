//! Repeats of jobs (`sealift job retry`), and jobs that changed nothing: what becomes the active release, and what does not.

use sealift_common::{
    decision::Requester,
    error::Reason,
    failure::FailureCode,
    id::{JobId, ReplicaId},
    job::{JobPhase, JobState},
    promotion::PromotionState,
    recipe::{OfflinePolicy, Recipe},
    release::Release,
    role::Role,
    strategy::{Limits, Strategy},
    task::TaskPhase,
    time::Clock as _,
};
use sealift_orchestrator::{
    app::{create_promotion::NewPromotion, repeat_job::repeat_job, steer_job::skip_task},
    loops::{catch_up::CatchUp, driver::Activity as _},
    status::ApiError,
};

use crate::{
    rollbacks::{half_way, hold, rollback_of},
    rollouts::{start, succeeds_without_the_first},
    world::{Act, World},
};

async fn repeat(world: &World, job: JobId) -> Result<NewPromotion, ApiError> {
    let mut tx = world.core.db.read().await.unwrap();
    let job = tx.job_by_id(job).await.unwrap().unwrap();
    let requester = Requester {
        actor: "user/alice".into(),
        role: Role::Deployer,
    };
    repeat_job(&mut tx, &job, "once more".to_owned(), requester).await
}

/// Promotes the release to all targets, and the first one fails.
async fn fails_on_the_first(world: &World, release: &Release) -> JobId {
    let job = world.promote(release).await;
    world.settle().await;
    let live = world.live().await;
    world.act_on(&live[0], Act::Fail(FailureCode::Unhealthy)).await;
    for task in &live[1..] {
        world.act_on(task, Act::Succeed).await;
    }
    job
}

/// A job that has failed on one target where another release is active, and a third release.
async fn failed_after_a_success(world: &World) -> (JobId, Release) {
    let (first, second) = (world.release("v1").await, world.release("v2").await);
    let ran = world.promote(&first).await;
    world.finish(ran).await;
    (
        fails_on_the_first(world, &second).await,
        world.release("v3").await,
    )
}

async fn failed_with(world: &World, job: JobId) -> FailureCode {
    match world.job(job).await.state {
        JobState::Failed { failure } => failure.code,
        other => panic!("{other:?}"),
    }
}

fn digest_of(release: &Release) -> sealift_common::digest::Digest {
    use sealift_common::any_manifest::Described as _;
    release.manifest.images().values().next().unwrap().digest
}

async fn is_active(world: &World, release: &Release) -> bool {
    world.active().await.values().eq([&digest_of(release)])
}

#[tokio::test]
async fn r8_a_repeat_takes_no_place_of_what_became_active_since() {
    let world = World::new(2).await;
    let (failed, third) = failed_after_a_success(&world).await;
    world.settle().await;
    assert_eq!(world.phase(failed).await, JobPhase::Failed);
    // While nothing newer is active it may be repeated.
    assert!(repeat(&world, failed).await.is_ok());
    let newer = world.promote(&third).await;
    assert_eq!(world.finish(newer).await, JobPhase::Succeeded);
    let refused = repeat(&world, failed).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::WrongState);
    assert!(
        refused.message().contains("#3 became active"),
        "{}",
        refused.message()
    );
    assert!(is_active(&world, &third).await);
}

#[tokio::test]
async fn r8_a_repeat_that_waited_too_long_begins_nothing() {
    let world = World::new(2).await;
    let (failed, third) = failed_after_a_success(&world).await;
    // It is in the lane before anybody knows that the other one failed.
    let newer = world.promote(&third).await;
    world.settle().await;
    assert_eq!(world.phase(failed).await, JobPhase::Failed);
    let wish = repeat(&world, failed).await.unwrap();
    let waiting = world.request(&wish).await.job.unwrap().id;
    assert_eq!(world.finish(newer).await, JobPhase::Succeeded);
    world.settle().await;
    assert_eq!(failed_with(&world, waiting).await, FailureCode::Overtaken);
    assert_eq!(world.state(waiting).await, PromotionState::Failed);
    assert!(world.tasks(waiting).await.is_empty(), "no order was made");
    assert!(is_active(&world, &third).await);
}

#[tokio::test]
async fn a_failed_rollback_is_repeated_as_a_rollback_past_its_own_hold() {
    let world = World::new(2).await;
    let (good, _, undone) = half_way(&world).await;
    let rollback = rollback_of(&world, undone).await;
    world.act(Act::Fail(FailureCode::PortInUse)).await;
    world.settle().await;
    assert_eq!(world.phase(rollback).await, JobPhase::Failed);
    assert!(hold(&world, &good).await.is_some());
    let wish = repeat(&world, rollback).await.unwrap();
    let again = world.request(&wish).await.job.unwrap();
    assert_eq!(again.rollback_of, Some(undone));
    let refused = repeat(&world, rollback).await.unwrap_err();
    assert_eq!(refused.reason(), Reason::WrongState, "one at a time");
    assert_eq!(world.finish(again.id).await, JobPhase::Succeeded);
    let tasks = world.tasks(again.id).await;
    assert_eq!(tasks.len(), 1);
    assert_eq!(world.job(again.id).await.release_id, good.id);
    assert!(is_active(&world, &good).await);
    assert!(
        hold(&world, &good).await.is_some(),
        "a person has to look all the same"
    );
}

#[tokio::test]
async fn r15_a_job_that_left_every_target_alone_has_failed_and_activates_nothing() {
    let world = World::new(2).await;
    let first = world.release("v1").await;
    let ran = world.promote(&first).await;
    world.finish(ran).await;
    let agents: Vec<_> = world
        .targets
        .iter()
        .filter_map(|target| target.agent_id)
        .collect();
    world.offline.lock().unwrap().extend(agents);

    // All are away.
    let second = world.release("v2").await;
    let skip = Recipe {
        offline: OfflinePolicy::Skip {},
        ..Recipe::default()
    };
    let job = start(&world, &second, skip).await;
    assert_eq!(failed_with(&world, job).await, FailureCode::NothingChanged);
    assert_eq!(world.state(job).await, PromotionState::Failed);
    assert!(is_active(&world, &first).await);

    // A person leaves all out.
    let wait = Recipe {
        offline: OfflinePolicy::Wait { ms: 600_000 },
        ..Recipe::default()
    };
    let job = start(&world, &second, wait).await;
    let mut tx = world.core.db.write().await.unwrap();
    for task in tx.tasks_of_job(job).await.unwrap() {
        skip_task(&mut tx, &task, "user/alice".into(), world.clock.now())
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    world.settle().await;
    assert_eq!(failed_with(&world, job).await, FailureCode::NothingChanged);
    assert!(is_active(&world, &first).await);
}

#[tokio::test]
async fn who_goes_away_while_it_catches_up_is_not_forgotten() {
    let world = World::new(2).await;
    succeeds_without_the_first(&world).await;
    let mut catch_up = CatchUp::new(world.core.clone(), ReplicaId::new(world.clock.now()));
    world.offline.lock().unwrap().clear();
    catch_up.activate().await.unwrap();
    world
        .offline
        .lock()
        .unwrap()
        .insert(world.targets[0].agent_id.unwrap());
    world.settle().await;
    assert_eq!(world.live().await.len(), 0);
    world.offline.lock().unwrap().clear();
    world.clock.advance(chrono::TimeDelta::minutes(11));
    catch_up.activate().await.unwrap();
    world.settle().await;
    let live = world.live().await;
    assert_eq!(live.len(), 1);
    assert_eq!(live[0].target_id, world.targets[0].id);
    assert_eq!(world.finish(live[0].job_id).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn r15_a_job_that_hung_and_had_nothing_to_undo_has_failed() {
    let mut world = World::new(1).await;
    world.limits = Limits {
        progress_deadline_ms: 400_000,
        ..Limits::default()
    };
    let release = world.release("v1").await;
    let mut wish = world.wish(&release, Strategy::AllAtOnce {});
    wish.recipe.failures.on_failure = sealift_common::recipe::OnFailure::RollBack;
    let job = world.request(&wish).await.job.unwrap().id;
    world.settle().await;
    world.act(Act::Begin).await;
    world.clock.advance(chrono::TimeDelta::seconds(401));
    world.settle().await;
    world.act(Act::Stop).await;
    world.settle().await;
    assert_eq!(world.phases(job).await, [TaskPhase::Cancelled]);
    assert_eq!(failed_with(&world, job).await, FailureCode::ProgressDeadline);
    assert_eq!(world.state(job).await, PromotionState::Failed);
}
