//! Waves, plans, retries, lost tasks.

use chrono::TimeDelta;
use sealift_common::{
    any_manifest::Described,
    decision::{DecisionRecord, Verdict},
    failure::FailureCode,
    inventory::AgentIntent,
    job::{JobPhase, JobState},
    order::open_order,
    plan::Plan,
    promotion::PromotionState,
    strategy::{Limits, Strategy},
    task::{SkipReason, TaskPhase, TaskState, TaskStep},
};
use sealift_store::Task;

use crate::{
    intents::want,
    world::{Act, World},
};

#[tokio::test]
async fn a_promotion_becomes_tasks_and_the_release_becomes_active() {
    let world = World::new(3).await;
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.settle().await;
    assert_eq!(world.phases(job).await, [TaskPhase::Assigned; 3]);
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    assert_eq!(world.state(job).await, PromotionState::Deployed);
    let digest = release.manifest.images().values().next().unwrap().digest;
    assert_eq!(world.active().await, [("shop/api".to_owned(), digest)].into());
}

#[tokio::test]
async fn orders_are_signed_addressed_fenced_and_expire() {
    let world = World::new(1).await;
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.settle().await;
    let task = world.live().await.pop().unwrap();
    let key = sealift_common::keys::SigningKey::from_seed(&[7; 32]);
    let order = open_order(task.order.as_deref().unwrap(), &[key.public()]).unwrap();
    assert_eq!(order.agent_id, world.targets[0].agent_id.unwrap());
    assert_eq!(
        (order.target_id, order.job_id, order.task_id),
        (world.targets[0].id, job, task.id)
    );
    assert_eq!((order.attempt, order.fence), (1, task.fence));
    assert_eq!(order.expires_at - order.not_before, TimeDelta::minutes(15));
    assert_eq!(order.release.content, release.content);
    let promotion = world.promotion(job).await;
    assert_eq!(order.decision.plan, promotion.plan_digest);
    let mut tx = world.core.db.read().await.unwrap();
    assert_eq!(
        order.decision.record,
        tx.latest_decision(promotion.id).await.unwrap().unwrap().digest
    );
}

#[tokio::test]
async fn i18_a_wave_starts_when_the_last_one_is_healthy_and_a_failing_one_stops_the_rest() {
    use TaskPhase::{Failed, Skipped, Succeeded};
    let world = World::new(5).await;
    let release = world.release("v1").await;
    let wish = world.wish(&release, World::rolling(2));
    let job = world.request(&wish).await.job.unwrap().id;
    world.settle().await;
    let waves: Vec<_> = world.tasks(job).await.iter().map(|task| task.wave).collect();
    assert_eq!(waves, [0, 0, 1, 1, 2]);
    let first = world.live().await;
    assert_eq!(first.len(), 2);
    world.act_on(&first[0], Act::Succeed).await;
    world.settle().await;
    assert_eq!(world.live().await.len(), 1, "half a wave opens nothing");
    world.act_on(&first[1], Act::Succeed).await;
    world.settle().await;

    let second = world.live().await;
    assert!(second.iter().all(|task| task.wave == 1) && second.len() == 2);
    world.act_on(&second[0], Act::Fail(FailureCode::Unhealthy)).await;
    world.settle().await;
    assert_eq!(
        world.phase(job).await,
        JobPhase::Running,
        "the other one of the wave still works"
    );
    world.act_on(&second[1], Act::Succeed).await;
    world.settle().await;
    assert_eq!(
        world.phases(job).await,
        [Succeeded, Succeeded, Failed, Succeeded, Skipped]
    );
    let rest = world.tasks(job).await.pop().unwrap();
    assert_eq!(
        rest.state,
        TaskState::Skipped {
            reason: SkipReason::EarlierWaveFailed
        }
    );
    assert!(
        matches!(world.job(job).await.state, JobState::Failed { failure } if failure.code == FailureCode::Unhealthy)
    );
    let promotion = world.promotion(job).await;
    assert_eq!(promotion.state, PromotionState::Failed);
    assert_eq!(promotion.failure.unwrap().code, FailureCode::Unhealthy);
}

#[tokio::test]
async fn r8_what_is_recorded_is_the_last_success_only() {
    let world = World::new(2).await;
    let (first, second) = (world.release("v1").await, world.release("v2").await);
    let job = world.promote(&first).await;
    world.finish(job).await;
    let before = world.active().await;
    let failing = world.promote(&second).await;
    world.settle().await;
    let live = world.live().await;
    world.act_on(&live[0], Act::Succeed).await;
    world.act_on(&live[1], Act::Fail(FailureCode::Unhealthy)).await;
    world.settle().await;
    assert_eq!(world.phase(failing).await, JobPhase::Failed);
    assert_eq!(world.active().await, before);
}

#[tokio::test]
async fn r2_a_success_supersedes_what_was_active() {
    let world = World::new(1).await;
    for content in ["v1", "v2", "v3"] {
        let release = world.release(content).await;
        let job = world.promote(&release).await;
        assert_eq!(world.finish(job).await, JobPhase::Succeeded);
        let digest = release.manifest.images().values().next().unwrap().digest;
        assert_eq!(world.active().await, [("shop/api".to_owned(), digest)].into());
    }
}

#[tokio::test]
async fn r2_a_repeat_activates_only_what_the_first_job_was_meant_to() {
    let world = World::new(2).await;
    let old = world.release("v1").await;
    let job = world.promote(&old).await;
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    let before = world.active().await;
    let new = world.release("v2").await;
    let targets: Vec<_> = world.targets.iter().map(|target| target.id).collect();
    // The one target that fails, and whether the first job is for that one only.
    for (failing, is_scoped) in [(targets[0], true), (targets[1], false)] {
        let mut wish = world.wish(&new, Strategy::AllAtOnce {});
        wish.scope = is_scoped.then(|| vec![failing]);
        let first = world.request(&wish).await.job.unwrap().id;
        world.settle().await;
        for task in world.live().await {
            world.act_on(&task, Act::Fail(FailureCode::Unhealthy)).await;
        }
        world.settle().await;
        assert_eq!(world.phase(first).await, JobPhase::Failed);
        wish.scope = Some(vec![failing]);
        wish.rerun_of = Some(first);
        let repeat = world.request(&wish).await.job.unwrap().id;
        assert_eq!(world.finish(repeat).await, JobPhase::Succeeded);
        assert_eq!(world.active().await == before, is_scoped);
    }
}

#[tokio::test]
async fn a_target_that_runs_the_wanted_set_stays_untouched() {
    let world = World::new(2).await;
    let release = world.release("v1").await;
    let first = world.promote(&release).await;
    world.finish(first).await;
    let again = world.promote(&release).await;
    world.settle().await;
    assert_eq!(world.phase(again).await, JobPhase::Succeeded, "nothing to do");
    let skipped = TaskState::Skipped {
        reason: SkipReason::AlreadyRunning,
    };
    assert!(world.tasks(again).await.iter().all(|task| task.state == skipped));
    let plan: Plan = serde_json::from_str(&world.promotion(again).await.plan_json).unwrap();
    assert_eq!(plan.touched(), 0);
}

#[tokio::test]
async fn a_failure_that_may_mend_itself_is_tried_again_with_a_higher_fence() {
    let mut world = World::new(1).await;
    world.limits = Limits {
        max_attempts: 2,
        ..Limits::default()
    };
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.settle().await;
    let first = world.live().await.pop().unwrap();
    world
        .act_on(&first, Act::Fail(FailureCode::RegistryUnavailable))
        .await;
    world.settle().await;
    let waiting = world.tasks(job).await.pop().unwrap();
    assert_eq!(
        waiting.state,
        TaskState::Running {
            step: TaskStep::RetryWait
        }
    );
    assert_eq!(waiting.attempt, 1);
    world.clock.advance(TimeDelta::seconds(3));
    world.settle().await;
    let second = world.tasks(job).await.pop().unwrap();
    assert_eq!(second.attempt, 2);
    assert!(second.fence > first.fence);
    world
        .act_on(&second, Act::Fail(FailureCode::RegistryUnavailable))
        .await;
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Failed, "no third attempt");
    let attempts = world
        .core
        .db
        .read()
        .await
        .unwrap()
        .attempts(second.id)
        .await
        .unwrap();
    assert_eq!(
        attempts.iter().map(|attempt| attempt.number).collect::<Vec<_>>(),
        [1, 2]
    );
}

#[tokio::test]
async fn a_lost_task_keeps_its_target_until_the_host_tells() {
    let world = World::new(1).await;
    let (first, second) = (world.release("v1").await, world.release("v2").await);
    let job = world.promote(&first).await;
    let next = world.promote(&second).await;
    world.settle().await;
    world.act(Act::Begin).await;
    world.clock.advance(TimeDelta::hours(1));
    world.reap().await;
    world.settle().await;
    assert_eq!(world.phases(job).await, [TaskPhase::Lost]);
    assert_eq!(world.phase(job).await, JobPhase::Running);
    assert_eq!(
        world.phase(next).await,
        JobPhase::Queued,
        "nothing else may touch the target"
    );
    world.act(Act::Succeed).await;
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Succeeded);
    assert_eq!(world.phase(next).await, JobPhase::Running);
}

#[tokio::test]
async fn r14_an_agent_that_is_away_gets_no_order_and_is_waited_for_within_a_bound() {
    for between_attempts in [false, true] {
        for returns in [true, false] {
            let mut world = World::new(2).await;
            world.limits.max_attempts = 2;
            let release = world.release("v1").await;
            let wish = world.wish(&release, World::rolling(1));
            let job = world.request(&wish).await.job.unwrap().id;
            world.settle().await;
            let (tried, away) = if between_attempts {
                world.act(Act::Fail(FailureCode::EngineUnavailable)).await;
                (1, &world.targets[0])
            } else {
                world.act(Act::Succeed).await;
                (0, &world.targets[1])
            };
            world.offline.lock().unwrap().extend(away.agent_id);
            world.clock.advance(TimeDelta::minutes(14));
            world.settle().await;
            let task = |tasks: Vec<Task>| tasks.into_iter().find(|task| task.target_id == away.id).unwrap();
            assert_eq!(task(world.tasks(job).await).attempt, tried, "no order for nobody");
            if returns {
                world.offline.lock().unwrap().clear();
                world.settle().await;
                assert_eq!(world.finish(job).await, JobPhase::Succeeded);
            } else {
                world.clock.advance(TimeDelta::minutes(1));
                world.settle().await;
                let TaskState::Failed { failure } = task(world.tasks(job).await).state else {
                    panic!("it waits for ever");
                };
                assert_eq!(failure.code, FailureCode::AgentLost);
                assert_eq!(
                    world.phase(job).await,
                    JobPhase::Failed,
                    "nothing is lost, so it ends"
                );
            }
        }
    }
}

#[tokio::test]
async fn i21_a_revoked_agent_does_not_keep_a_job_for_ever() {
    for lost_before in [false, true] {
        let world = World::new(2).await;
        let release = world.release("v1").await;
        let job = world.promote(&release).await;
        world.settle().await;
        let live = world.live().await;
        world.act_on(&live[0], Act::Succeed).await;
        world.act_on(&live[1], Act::Begin).await;
        if lost_before {
            world.clock.advance(TimeDelta::hours(1));
            world.reap().await;
        }
        want(&world, live[1].agent_id.unwrap(), AgentIntent::Revoked).await;
        world.reap().await;
        world.settle().await;
        assert!(
            matches!(world.job(job).await.state, JobState::Failed { failure } if failure.code == FailureCode::AgentRevoked)
        );
    }
}

#[tokio::test]
async fn i16_every_stored_decision_evaluates_to_its_own_bytes() {
    let world = World::new(2).await;
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.finish(job).await;
    world.offline.lock().unwrap().extend(world.targets[0].agent_id);
    let other = world.release("v2").await;
    let refused = world.request(&world.wish(&other, Strategy::AllAtOnce {})).await;
    assert_eq!(refused.promotion.state, PromotionState::Rejected);
    assert!(refused.job.is_none() && !refused.decision.passed);
    let mut tx = world.core.db.read().await.unwrap();
    let started = tx
        .latest_decision(world.promotion(job).await.id)
        .await
        .unwrap()
        .unwrap();
    for row in [&started, &refused.decision] {
        let record = DecisionRecord::from_bytes(&row.record).unwrap();
        assert_eq!(
            sealift_common::decision::evaluate(record.inputs.clone())
                .to_bytes()
                .unwrap(),
            row.record
        );
    }
    let record = DecisionRecord::from_bytes(&refused.decision.record).unwrap();
    let failing: Vec<_> = record
        .gates
        .iter()
        .filter(|answer| answer.verdict == Verdict::Fail)
        .collect();
    assert_eq!(failing.len(), 1);
    assert_eq!(failing[0].reason, "AGENT_OFFLINE");
}
