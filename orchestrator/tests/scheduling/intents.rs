//! What operators want of agents, and what the scheduler makes of it.

use chrono::TimeDelta;
use sealift_common::{
    failure::FailureCode,
    id::{AgentId, JobId},
    inventory::{AgentIntent, IntentNote},
    job::{JobPhase, JobState},
    recipe::{OfflinePolicy, Recipe},
    strategy::{CanaryPromotion, Share, Strategy},
    task::TaskPhase,
    time::Clock as _,
};
use sealift_orchestrator::app::start_job::{Started, start_job};

use crate::world::{Act, World};

/// An operator wants something else of an agent.
pub async fn want(world: &World, agent: AgentId, intent: AgentIntent) {
    let note = IntentNote {
        reason: "for a test".into(),
        by: "user/ada".into(),
        at: world.clock.now(),
    };
    let mut tx = world.core.db.write().await.unwrap();
    if intent.is_live() {
        let seen = tx.agent_by_id(agent).await.unwrap().unwrap();
        tx.set_agent_intent(&seen, intent, &note).await.unwrap();
    } else {
        tx.revoke_agent(agent, &note).await.unwrap();
    }
    tx.commit().await.unwrap();
}

/// One target after the other; the first is under way.
async fn one_by_one(world: &World) -> JobId {
    let release = world.release("v1").await;
    let wish = world.wish(&release, World::rolling(1));
    let job = world.request(&wish).await.job.unwrap().id;
    world.settle().await;
    job
}

#[tokio::test]
async fn a_paused_agent_gets_no_new_orders_and_finishes_what_it_has_begun() {
    let world = World::new(2).await;
    let job = one_by_one(&world).await;
    for target in &world.targets {
        want(&world, target.agent_id.unwrap(), AgentIntent::Paused).await;
    }
    world.act(Act::Succeed).await;
    world.settle().await;
    assert_eq!(
        world.phases(job).await,
        [TaskPhase::Succeeded, TaskPhase::Pending]
    );
    assert_eq!(world.phase(job).await, JobPhase::Running);
    want(&world, world.targets[1].agent_id.unwrap(), AgentIntent::Active).await;
    world.settle().await;
    world.act(Act::Succeed).await;
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn r14_a_job_waits_for_a_paused_agent_up_to_a_bound_and_for_a_draining_one_not_at_all() {
    for (intent, code) in [
        (AgentIntent::Paused, FailureCode::AgentPaused),
        (AgentIntent::Draining, FailureCode::AgentDraining),
    ] {
        let world = World::new(2).await;
        let job = one_by_one(&world).await;
        want(&world, world.targets[1].agent_id.unwrap(), intent).await;
        world.act(Act::Succeed).await;
        world.settle().await;
        if intent == AgentIntent::Paused {
            assert_eq!(world.phase(job).await, JobPhase::Running);
            world.clock.advance(world.core.rules.order_life);
            world.settle().await;
        }
        let JobState::Failed { failure } = world.job(job).await.state else {
            panic!("{intent}");
        };
        assert_eq!(failure.code, code);
    }
}

#[tokio::test]
async fn a_promotion_to_a_target_whose_agent_takes_no_orders_is_refused() {
    let world = World::new(1).await;
    let release = world.release("v1").await;
    for (intent, reason) in [
        (AgentIntent::Paused, "AGENT_PAUSED"),
        (AgentIntent::Draining, "AGENT_DRAINING"),
    ] {
        want(&world, world.targets[0].agent_id.unwrap(), intent).await;
        let refused = world.request(&world.wish(&release, Strategy::AllAtOnce {})).await;
        assert!(refused.job.is_none());
        let record = String::from_utf8(refused.decision.record).unwrap();
        assert!(record.contains(reason), "{record}");
    }
}

fn canary(offline: OfflinePolicy) -> Recipe {
    Recipe {
        strategy: Strategy::Canary {
            first: Share::Count(1),
            bake_ms: 60_000,
            promote: CanaryPromotion::Automatic,
            max_parallel: Share::ALL,
        },
        offline,
        ..Recipe::default()
    }
}

async fn ask(world: &World, recipe: Recipe) -> JobId {
    let release = world.release("v1").await;
    let mut wish = world.wish(&release, recipe.strategy.clone());
    wish.recipe = recipe;
    world.request(&wish).await.job.unwrap().id
}

/// Nomad: draining a canary's host must not stall the deployment, whenever that is.
#[tokio::test]
async fn r14_draining_the_host_of_a_canary_stalls_nothing_before_its_order() {
    // The job is paused between its start and the first order; its gates have passed.
    for (offline, ends) in [
        (OfflinePolicy::Fail {}, JobPhase::Failed),
        (OfflinePolicy::Skip {}, JobPhase::Succeeded),
        (OfflinePolicy::Wait { ms: 600_000 }, JobPhase::Succeeded),
    ] {
        let world = World::new(3).await;
        let job = ask(&world, canary(offline)).await;
        while world.phase(job).await == JobPhase::Queued {
            let mut tx = world.core.db.write().await.unwrap();
            let started = start_job(&world.core, &mut tx, world.environment.id)
                .await
                .unwrap();
            assert_eq!(started, Started::Running);
            tx.commit().await.unwrap();
        }
        want(&world, world.targets[0].agent_id.unwrap(), AgentIntent::Draining).await;
        world.settle().await;
        if matches!(offline, OfflinePolicy::Wait { .. }) {
            assert_eq!(
                world.phases(job).await,
                [TaskPhase::Pending; 3],
                "it is waited for"
            );
            world.clock.advance(TimeDelta::seconds(601));
            world.settle().await;
        }
        if ends == JobPhase::Succeeded {
            assert_eq!(
                world.live().await.len(),
                0,
                "a canary bakes also when it proves nothing"
            );
            world.clock.advance(TimeDelta::seconds(61));
            world.settle().await;
            assert_eq!(world.live().await.len(), 2, "{offline:?}");
            world.act(Act::Succeed).await;
            world.settle().await;
        }
        assert_eq!(world.phase(job).await, ends, "{offline:?}");
    }
}

#[tokio::test]
async fn r14_draining_the_host_of_a_canary_stalls_nothing_under_way_nor_in_its_bake() {
    for in_its_bake in [false, true] {
        let world = World::new(3).await;
        let job = ask(&world, canary(OfflinePolicy::Fail {})).await;
        world.settle().await;
        let agent = world.targets[0].agent_id.unwrap();
        if !in_its_bake {
            world.act(Act::Begin).await;
            want(&world, agent, AgentIntent::Draining).await;
            world.settle().await;
            assert_eq!(world.live().await.len(), 1, "what has begun is carried through");
        }
        world.act(Act::Succeed).await;
        world.settle().await;
        if in_its_bake {
            want(&world, agent, AgentIntent::Draining).await;
        }
        world.clock.advance(TimeDelta::seconds(61));
        world.settle().await;
        assert_eq!(world.live().await.len(), 2);
        world.act(Act::Succeed).await;
        world.settle().await;
        assert_eq!(world.phase(job).await, JobPhase::Succeeded);
    }
}
