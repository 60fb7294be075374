//! Rollbacks: by themselves after failures, and asked for by a person; that they stay.

use sealift_common::{
    any_manifest::Described as _,
    decision::{DecisionRecord, Requester},
    failure::FailureCode,
    id::JobId,
    inventory::Target,
    job::{JobPhase, JobState},
    keys::SigningKey,
    order::open_order,
    promotion::{PromotionKind, PromotionState},
    recipe::{FailurePolicy, OnFailure, Recipe},
    release::Release,
    role::Role,
    rollback::{QualityMark, Wish},
    strategy::{CanaryPromotion, Limits, Share, Strategy},
    task::TaskPhase,
    time::Clock as _,
};
use sealift_orchestrator::{
    app::{
        create_promotion::Requested,
        roll_back::{explain_rollback, roll_back},
        steer_job::abort_job,
    },
    status::ApiError,
};
use sealift_store::{Hold, Mark, Tx};

use crate::world::{Act, World};

fn recipe() -> Recipe {
    Recipe {
        strategy: World::rolling(1),
        failures: FailurePolicy {
            tolerated: Share::NONE,
            on_failure: OnFailure::RollBack,
        },
        ..Recipe::default()
    }
}

/// The first release everywhere, then the second one until the second target fails: its job is being rolled back.
pub async fn half_way(world: &World) -> (Release, Release, JobId) {
    let (good, bad) = (world.release("v1").await, world.release("v2").await);
    let first = world.promote(&good).await;
    world.finish(first).await;
    let job = breaks_half_way(world, &bad).await;
    (good, bad, job)
}

/// A release that succeeds on the first target and fails on the second one.
async fn breaks_half_way(world: &World, bad: &Release) -> JobId {
    ends_half_way(world, bad, FailureCode::Unhealthy).await
}

/// The same, failing with that.
async fn ends_half_way(world: &World, bad: &Release, failure: FailureCode) -> JobId {
    let mut wish = world.wish(bad, World::rolling(1));
    wish.recipe = recipe();
    let job = world.request(&wish).await.job.unwrap().id;
    world.settle().await;
    world.act(Act::Succeed).await;
    world.settle().await;
    world.act(Act::Fail(failure)).await;
    world.settle().await;
    job
}

pub async fn rollback_of(world: &World, job: JobId) -> JobId {
    let mut tx = world.core.db.read().await.unwrap();
    tx.newest_rollback(job).await.unwrap().unwrap().id
}

pub async fn hold(world: &World, release: &Release) -> Option<Hold> {
    let mut tx = world.core.db.read().await.unwrap();
    tx.open_hold(world.environment.id, release.project_id)
        .await
        .unwrap()
}

async fn mark(world: &World, release: &Release) -> Option<QualityMark> {
    let mut tx = world.core.db.read().await.unwrap();
    let marks = tx.marks_of_release(release.id, 1).await.unwrap();
    marks.first().map(|mark| mark.mark)
}

/// A person goes back to the last known good release of the project.
pub async fn roll_back_by_hand(world: &World, release: &Release) -> JobId {
    let requested = go_back(world, release, Wish::default()).await.unwrap();
    requested.job.unwrap().id
}

/// The same as `wish` has it.
pub async fn go_back(world: &World, release: &Release, wish: Wish) -> Result<Requested, ApiError> {
    let mut tx = world.core.db.write().await.unwrap();
    let requested = go_back_within(world, &mut tx, release, wish).await?;
    tx.commit().await.unwrap();
    Ok(requested)
}

/// The same, before it counts.
pub async fn go_back_within(
    world: &World,
    tx: &mut Tx,
    release: &Release,
    wish: Wish,
) -> Result<Requested, ApiError> {
    let environment = world.environment.clone();
    let explained = explain_rollback(tx, &environment, release.project_id, wish)
        .await
        .unwrap()
        .unwrap();
    let requester = Requester {
        actor: "user/alice".into(),
        role: Role::Deployer,
    };
    let requested = roll_back(
        &world.core,
        tx,
        environment,
        &explained,
        &Recipe::default(),
        requester,
        "back",
    )
    .await?;
    Ok(requested.unwrap())
}

#[tokio::test]
async fn what_succeeded_goes_back_and_nothing_else_is_touched() {
    let world = World::new(3).await;
    let (good, bad, job) = half_way(&world).await;
    assert!(matches!(world.job(job).await.state, JobState::RollingBack { .. }));
    let rollback = rollback_of(&world, job).await;
    let tasks = world.tasks(rollback).await;
    assert_eq!(tasks.len(), 1, "only what the job had changed");
    assert_eq!(tasks[0].target_id, world.tasks(job).await[0].target_id);
    assert_eq!(world.job(rollback).await.release_id, good.id);
    assert_eq!(world.promotion(rollback).await.kind(), PromotionKind::Rollback);
    assert_eq!(world.finish(rollback).await, JobPhase::Succeeded);
    assert!(
        matches!(world.job(job).await.state, JobState::RolledBack { failure } if failure.code == FailureCode::Unhealthy)
    );
    assert_eq!(world.state(job).await, PromotionState::RolledBack);
    let digest = good.manifest.images().values().next().unwrap().digest;
    assert_eq!(world.active().await.values().collect::<Vec<_>>(), [&digest]);
    assert_eq!(mark(&world, &bad).await, Some(QualityMark::Unstable));
}

#[tokio::test]
async fn r10_a_target_that_could_not_be_restored_goes_back_with_those_that_succeeded() {
    for (act, end) in [
        (Act::Succeed, JobPhase::RolledBack),
        (Act::Fail(FailureCode::RestoreFailed), JobPhase::RollbackFailed),
    ] {
        let world = World::new(3).await;
        let (good, bad) = (world.release("v1").await, world.release("v2").await);
        let first = world.promote(&good).await;
        world.finish(first).await;
        let job = ends_half_way(&world, &bad, FailureCode::RestoreFailed).await;
        let rollback = rollback_of(&world, job).await;
        let back: Vec<_> = world
            .tasks(rollback)
            .await
            .iter()
            .map(|task| task.target_id)
            .collect();
        assert_eq!(back, [world.targets[0].id, world.targets[1].id]);
        world.act(act).await;
        world.settle().await;
        assert_eq!(world.phase(job).await, end);
    }
}

#[tokio::test]
async fn what_succeeded_goes_back_to_what_is_active_whatever_is_thought_of_it_since() {
    let world = World::new(3).await;
    let (good, bad) = (world.release("v1").await, world.release("v2").await);
    let first = world.promote(&good).await;
    world.finish(first).await;
    // Natural while it is being replaced.
    let deprecated = Mark {
        release_id: good.id,
        mark: QualityMark::Deprecated,
        reason: "replaced".to_owned(),
        actor: "user/alice".to_owned(),
        at: world.clock.now(),
    };
    let mut tx = world.core.db.write().await.unwrap();
    tx.insert_mark(&deprecated).await.unwrap();
    tx.commit().await.unwrap();
    let job = breaks_half_way(&world, &bad).await;
    let rollback = rollback_of(&world, job).await;
    assert_eq!(world.job(rollback).await.release_id, good.id);
    assert_eq!(world.finish(rollback).await, JobPhase::Succeeded);
    assert_eq!(world.phase(job).await, JobPhase::RolledBack);
}

/// Takes the agent of a target away.
async fn take_agent(world: &World, target: &Target) {
    let mut tx = world.core.db.write().await.unwrap();
    tx.unbind_agent(target.agent_id.unwrap(), world.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn a_target_that_nobody_serves_keeps_no_other_one_from_going_back() {
    use TaskPhase::{Skipped, Succeeded};
    let world = World::new(3).await;
    let (good, bad) = (world.release("v1").await, world.release("v2").await);
    for release in [&good, &bad] {
        let job = world.promote(release).await;
        world.finish(job).await;
    }
    take_agent(&world, &world.targets[1]).await;
    let refused = world.request(&world.wish(&good, World::rolling(1))).await;
    assert_eq!(
        refused.promotion.state,
        PromotionState::Rejected,
        "a promotion is refused"
    );
    let requested = go_back(&world, &good, Wish::default()).await.unwrap();
    let record = DecisionRecord::from_bytes(&requested.decision.record).unwrap();
    let said: Vec<_> = record.gates.iter().map(|gate| gate.message.as_str()).collect();
    assert!(
        said.join("; ").contains("web-002 (no agent is enrolled)"),
        "{said:?}"
    );
    let rollback = requested.job.unwrap().id;
    assert_eq!(world.finish(rollback).await, JobPhase::Succeeded);
    let phases = world.phases(rollback).await;
    assert_eq!(phases, [Succeeded, Skipped, Succeeded]);
    let mut tx = world.core.db.read().await.unwrap();
    let later = tx.left_out(world.clock.now(), None, 9).await.unwrap();
    let later: Vec<_> = later.iter().map(|one| one.target_id).collect();
    assert_eq!(later, [world.targets[1].id], "it catches up when it has an agent");
}

#[tokio::test]
async fn an_undoing_that_leaves_a_target_alone_says_which() {
    let world = World::new(3).await;
    let (good, bad) = (world.release("v1").await, world.release("v2").await);
    let first = world.promote(&good).await;
    world.finish(first).await;
    let mut wish = world.wish(&bad, World::rolling(1));
    wish.recipe = recipe();
    let job = world.request(&wish).await.job.unwrap().id;
    for act in [Act::Succeed, Act::Succeed] {
        world.settle().await;
        world.act(act).await;
    }
    world.settle().await;
    take_agent(&world, &world.targets[0]).await;
    world.act(Act::Fail(FailureCode::Unhealthy)).await;
    world.settle().await;
    let rollback = rollback_of(&world, job).await;
    assert_eq!(world.finish(rollback).await, JobPhase::Succeeded);
    let JobState::RollbackFailed { failure } = world.job(job).await.state else {
        panic!("{:?}", world.job(job).await);
    };
    assert!(failure.summary.contains("web-001"), "{failure:?}");
}

#[tokio::test]
async fn a_rollback_stays_until_a_person_lifts_the_hold() {
    let world = World::new(2).await;
    let (good, bad, job) = half_way(&world).await;
    world.finish(rollback_of(&world, job).await).await;
    let refused = world.request(&world.wish(&bad, World::rolling(1))).await;
    assert_eq!(refused.promotion.state, PromotionState::Rejected);
    let record = DecisionRecord::from_bytes(&refused.decision.record).unwrap();
    let reasons: Vec<_> = record.gates.iter().map(|answer| answer.reason.as_str()).collect();
    assert!(reasons.contains(&"LANE_HELD"), "{reasons:?}");
    let held = hold(&world, &good).await.unwrap();
    let mut tx = world.core.db.write().await.unwrap();
    tx.lift_hold(&held, "user/alice", world.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(
        world
            .request(&world.wish(&bad, World::rolling(1)))
            .await
            .promotion
            .state,
        PromotionState::Approved
    );
}

#[tokio::test]
async fn a_failed_rollback_stops_and_asks_for_a_person() {
    let world = World::new(2).await;
    let (_, _, job) = half_way(&world).await;
    let rollback = rollback_of(&world, job).await;
    world.act(Act::Fail(FailureCode::RestoreFailed)).await;
    world.settle().await;
    assert_eq!(world.phase(rollback).await, JobPhase::Failed);
    assert!(
        matches!(world.job(job).await.state, JobState::RollbackFailed { failure } if failure.code == FailureCode::RollbackFailed)
    );
    assert_eq!(world.state(job).await, PromotionState::Failed);
    assert_eq!(
        rollback_of(&world, job).await,
        rollback,
        "a rollback never starts another one"
    );
    let mut tx = world.core.db.read().await.unwrap();
    assert_eq!(tx.newest_rollback(rollback).await.unwrap(), None);
}

#[tokio::test]
async fn r14_a_cancelled_rollback_ends_what_it_undoes() {
    let world = World::new(2).await;
    let (_, _, job) = half_way(&world).await;
    let rollback = rollback_of(&world, job).await;
    assert!(
        world.cancel(job).await.is_err(),
        "nothing of the job itself is left to cancel"
    );
    world.cancel(rollback).await.unwrap();
    world.settle().await;
    world.act(Act::Stop).await;
    world.settle().await;
    assert_eq!(world.phase(rollback).await, JobPhase::Cancelled);
    assert_eq!(world.phase(job).await, JobPhase::RollbackFailed);
}

#[tokio::test]
async fn a_restart_in_the_middle_of_a_rollback_goes_on_with_it() {
    let world = World::new(2).await;
    let (_, _, job) = half_way(&world).await;
    let world = world.restart().await;
    let rollback = rollback_of(&world, job).await;
    assert_eq!(world.finish(rollback).await, JobPhase::Succeeded);
    assert_eq!(world.phase(job).await, JobPhase::RolledBack);
}

#[tokio::test]
async fn a_person_goes_back_to_the_last_known_good_release_before_all_that_wait() {
    let world = World::new(2).await;
    let releases = [
        world.release("v1").await,
        world.release("v2").await,
        world.release("v3").await,
    ];
    for release in &releases {
        let job = world.promote(release).await;
        assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    }
    let waiting = world.promote(&releases[0]).await;
    let now = world.clock.now();
    let mut tx = world.core.db.write().await.unwrap();
    let environment = world.environment.clone();
    let explained = explain_rollback(&mut tx, &environment, releases[0].project_id, Wish::default())
        .await
        .unwrap()
        .unwrap();
    assert_eq!(explained.choice.to.as_ref().unwrap().release, releases[1].id);
    assert_eq!(explained.choice.rejected.len(), 2);
    let requester = Requester {
        actor: "user/alice".into(),
        role: Role::Deployer,
    };
    let requested = roll_back(
        &world.core,
        &mut tx,
        environment,
        &explained,
        &Recipe::default(),
        requester,
        "customers complain",
    )
    .await
    .unwrap()
    .unwrap();
    tx.commit().await.unwrap();
    let record = DecisionRecord::from_bytes(&requested.decision.record).unwrap();
    assert_eq!(
        record.inputs.choice,
        Some(explained.choice),
        "the reasons are part of the decision"
    );
    let rollback = requested.job.unwrap().id;
    world.settle().await;
    assert_eq!(world.phase(rollback).await, JobPhase::Running);
    assert_eq!(
        world.phase(waiting).await,
        JobPhase::Queued,
        "I2: a rollback goes first"
    );
    assert_eq!(world.finish(rollback).await, JobPhase::Succeeded);
    let digest = releases[1].manifest.images().values().next().unwrap().digest;
    assert_eq!(world.active().await.values().collect::<Vec<_>>(), [&digest]);
    world.settle().await;
    assert_eq!(world.phase(waiting).await, JobPhase::Queued, "held");
    let held = hold(&world, &releases[0]).await.unwrap();
    assert_eq!((held.placed_by.as_str(), held.placed_at), ("user/alice", now));
    // A success that was undone stays what it was.
    let mut tx = world.core.db.read().await.unwrap();
    let undone = tx.job_by_id(explained.active.job).await.unwrap().unwrap();
    assert_eq!(undone.state, JobState::Succeeded);
}

#[tokio::test]
async fn a_target_that_runs_the_wanted_set_is_left_alone_by_a_rollback() {
    let world = World::new(2).await;
    let (good, bad) = (world.release("v1").await, world.release("v2").await);
    let first = world.promote(&good).await;
    world.finish(first).await;
    let second = world.promote(&bad).await;
    world.finish(second).await;
    // Somebody has put one target back already.
    let mut wish = world.wish(&good, World::rolling(1));
    wish.scope = Some(vec![world.targets[0].id]);
    let by_hand = world.request(&wish).await.job.unwrap().id;
    world.finish(by_hand).await;
    let rollback = roll_back_by_hand(&world, &good).await;
    world.finish(rollback).await;
    assert_eq!(
        world.phases(rollback).await,
        [TaskPhase::Skipped, TaskPhase::Succeeded]
    );
}

#[tokio::test]
async fn a_rollback_takes_the_fast_way_to_all_targets_and_still_waits_for_health() {
    let world = World::new(4).await;
    let (good, bad) = (world.release("v1").await, world.release("v2").await);
    let first = world.promote(&good).await;
    world.finish(first).await;
    // A slow way there: a canary, then one after the other.
    let limits = Limits {
        min_healthy_ms: 7_000,
        ..Limits::default()
    };
    let recipe = Recipe {
        strategy: Strategy::Canary {
            first: Share::Count(3),
            bake_ms: 600_000,
            promote: CanaryPromotion::Manual,
            max_parallel: Share::Count(1),
        },
        limits,
        ..Recipe::default()
    };
    let mut wish = world.wish(&bad, World::rolling(1));
    wish.recipe = recipe;
    let job = world.request(&wish).await.job.unwrap().id;
    world.settle().await;
    assert_eq!(world.act(Act::Succeed).await, 3);
    world.settle().await;
    let mut tx = world.core.db.write().await.unwrap();
    let canary = tx.job_by_id(job).await.unwrap().unwrap();
    abort_job(&mut tx, &canary, "", "user/alice", world.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    world.settle().await;
    let rollback = rollback_of(&world, job).await;
    assert_eq!(world.live().await.len(), 3, "all at once, without a canary");
    let order = world.live().await[0].order.clone().unwrap();
    let order = open_order(&order, &[SigningKey::from_seed(&[7; 32]).public()]).unwrap();
    assert_eq!(order.limits, limits, "with the same limits on health");
    assert_eq!(world.finish(rollback).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn an_aborted_rollback_condemns_nothing_and_starts_no_other() {
    let world = World::new(2).await;
    let (good, bad) = (world.release("v1").await, world.release("v2").await);
    for release in [&good, &bad] {
        let job = world.promote(release).await;
        world.finish(job).await;
    }
    let rollback = roll_back_by_hand(&world, &good).await;
    world.settle().await;
    let live = world.live().await;
    world.act_on(&live[0], Act::Succeed).await;
    let mut tx = world.core.db.write().await.unwrap();
    let job = tx.job_by_id(rollback).await.unwrap().unwrap();
    abort_job(&mut tx, &job, "", "user/alice", world.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    world.settle().await;
    world.act_on(&live[1], Act::Stop).await;
    world.settle().await;
    assert_eq!(world.phase(rollback).await, JobPhase::Failed);
    assert_eq!(mark(&world, &good).await, None, "it is still known to be good");
    let mut tx = world.core.db.read().await.unwrap();
    assert_eq!(tx.newest_rollback(rollback).await.unwrap(), None);
}

/// Two releases that were active, and a third one that has reached the first of three targets.
async fn third_under_way(world: &World) -> ([Release; 3], JobId) {
    let releases = [
        world.release("v1").await,
        world.release("v2").await,
        world.release("v3").await,
    ];
    for release in &releases[..2] {
        let job = world.promote(release).await;
        world.finish(job).await;
    }
    let wish = world.wish(&releases[2], World::rolling(1));
    let job = world.request(&wish).await.job.unwrap().id;
    world.settle().await;
    world.act(Act::Succeed).await;
    world.settle().await;
    (releases, job)
}

#[tokio::test]
async fn while_a_promotion_is_under_way_a_rollback_says_which_release_is_meant() {
    let world = World::new(3).await;
    let ([first, second, _], job) = third_under_way(&world).await;
    let refused = go_back(&world, &second, Wish::default()).await.unwrap_err();
    let text = tonic::Status::from(refused).message().to_owned();
    assert!(text.contains(&format!("sealift job abort {job}")), "{text}");
    assert!(text.contains(&format!("--to {}", first.reference())), "{text}");
    assert_eq!(mark(&world, &second).await, None, "nothing was condemned");
    assert_eq!(hold(&world, &second).await.map(|hold| hold.reason), None);
    assert_eq!(world.finish(job).await, JobPhase::Succeeded, "it went on");
}

#[tokio::test]
async fn r14_a_rollback_to_a_named_release_ends_the_promotion_that_is_under_way() {
    let world = World::new(3).await;
    let ([first, ..], job) = third_under_way(&world).await;
    let wish = Wish {
        release: Some(first.id),
        allow_higher: false,
    };
    let rollback = go_back(&world, &first, wish).await.unwrap().job.unwrap().id;
    // Nobody has to abort anything: the promotion ends, and the rollback's turn comes.
    assert_eq!(world.finish(job).await, JobPhase::Cancelled);
    assert_eq!(world.finish(rollback).await, JobPhase::Succeeded);
    let digest = first.manifest.images().values().next().unwrap().digest;
    let active = world.active().await;
    assert_eq!(active.values().collect::<Vec<_>>(), [&digest]);
    assert_eq!(world.tasks(rollback).await.len(), 3, "every target goes back");
}
