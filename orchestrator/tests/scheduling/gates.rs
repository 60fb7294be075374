//! Gates over what the store knows: asked when a promotion is requested, and again when its turn comes.

use chrono::TimeDelta;
use sealift_common::{
    decision::DecisionRecord,
    failure::FailureCode,
    id::JobId,
    job::{JobPhase, JobState},
    manifest::PortSpec,
    observation::ContainerState,
    promotion::PromotionState,
    recipe::OfflinePolicy,
    release::Release,
    strategy::Strategy,
    task::TaskPhase,
    time::Clock as _,
};
use sealift_orchestrator::app::{
    create_promotion::Requested,
    create_release::{Draft, create_release},
};

use crate::world::{Act, World};

const BLUE_GREEN: Strategy = Strategy::BlueGreen { bake_ms: 0 };

async fn create(world: &World, draft: Draft) -> Release {
    let mut tx = world.core.db.write().await.unwrap();
    let release = create_release(&mut tx, world.tenant, draft, "user/ci", world.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    release
}

/// What every gate answered.
fn reasons(requested: &Requested) -> Vec<String> {
    let record = DecisionRecord::from_bytes(&requested.decision.record).unwrap();
    record.gates.into_iter().map(|answer| answer.reason).collect()
}

fn refused_for(requested: &Requested, reason: &str) -> bool {
    requested.promotion.state == PromotionState::Rejected
        && requested.job.is_none()
        && reasons(requested).iter().any(|given| given == reason)
}

/// Whether the job failed because a gate no longer passed when its turn came, and said this.
async fn closed(world: &World, job: JobId, word: &str) -> bool {
    matches!(world.job(job).await.state, JobState::Failed { failure }
        if failure.code == FailureCode::GateClosed && failure.summary.contains(word))
}

#[tokio::test]
async fn a_release_for_another_platform_is_refused_before_anything_is_ordered() {
    let world = World::new(2).await;
    let fitting = world.release("v1").await;
    let service = "web".parse().unwrap();
    assert_eq!(fitting.components[&service].platforms, ["linux/amd64"]);
    let mut draft = World::draft("v2");
    draft.platforms = [(service, vec!["linux/arm64".to_owned(), "linux/s390x".to_owned()])].into();
    let other = create(&world, draft).await;
    let refused = world.request(&world.wish(&other, Strategy::AllAtOnce {})).await;
    assert!(
        refused_for(&refused, "PLATFORM_MISMATCH"),
        "{:?}",
        reasons(&refused)
    );
    let said = refused.promotion.failure.unwrap().summary;
    assert!(said.contains("linux/arm64, linux/s390x"), "{said}");

    // The host is another one by the time its turn comes.
    let waiting = world.promote(&fitting).await;
    let agent = world.targets[0].agent_id.unwrap();
    let mut tx = world.core.db.write().await.unwrap();
    let mut facts = tx.agent_by_id(agent).await.unwrap().unwrap().facts;
    facts.platform = "linux/arm64".to_owned();
    tx.update_agent_facts(agent, &facts, world.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    world.settle().await;
    assert!(closed(&world, waiting, "the host is linux/arm64").await);
}

#[tokio::test]
async fn a_release_that_two_sets_cannot_share_is_refused_for_blue_green_and_fits_in_place() {
    let world = World::new(1).await;
    let mut draft = World::draft("v1");
    let mut manifest = draft.manifest.docker().unwrap();
    for spec in manifest.services.values_mut() {
        let port = serde_json::json!({ "container": 80, "host": 80, "protocol": "tcp" });
        spec.ports.push(serde_json::from_value::<PortSpec>(port).unwrap());
    }
    draft.content = manifest.content_digest().unwrap();
    draft.manifest = manifest.into();
    let release = create(&world, draft).await;
    let refused = world.request(&world.wish(&release, BLUE_GREEN)).await;
    assert!(refused_for(&refused, "SWAP_UNFIT"), "{:?}", reasons(&refused));
    let job = world.promote(&release).await;
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);

    // Nothing is swapped where it runs already; that is asked again when the turn comes.
    let nothing = world.request(&world.wish(&release, BLUE_GREEN)).await;
    assert!(reasons(&nothing).contains(&"SWAP_FITS".to_owned()));
    let target = world.targets[0].id;
    let mut tx = world.core.db.write().await.unwrap();
    let mut seen = tx.observation(target).await.unwrap().unwrap();
    for project in seen.projects.values_mut() {
        project.containers[0].state = ContainerState::Exited;
    }
    let session = world.session_for(&mut tx, target).await;
    tx.put_observation(&seen, session, world.clock.now())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    world.settle().await;
    let job = nothing.job.unwrap().id;
    assert!(
        closed(&world, job, "host port 80").await,
        "{:?}",
        world.job(job).await
    );
}

#[tokio::test]
async fn right_after_a_start_agents_that_are_not_back_yet_refuse_no_promotion() {
    let mut world = World::new(1).await;
    let release = world.release("v1").await;
    world.core.rules.reconnect_grace = TimeDelta::seconds(60);
    let mut world = world.restart().await;
    world.core.rules.reconnect_grace = TimeDelta::seconds(60);
    world.offline.lock().unwrap().extend(world.targets[0].agent_id);
    let wish = world.wish(&release, Strategy::AllAtOnce {});
    let early = world.request(&wish).await;
    assert!(
        reasons(&early).contains(&"AGENT_RECONNECTING".to_owned()),
        "{:?}",
        reasons(&early)
    );
    let job = early.job.unwrap().id;
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Queued, "it waits for them");
    world.offline.lock().unwrap().clear();
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);

    // Who is not back when that time is over is offline.
    world.clock.advance(TimeDelta::seconds(60));
    world.offline.lock().unwrap().extend(world.targets[0].agent_id);
    let other = world.release("v2").await;
    let late = world.request(&world.wish(&other, Strategy::AllAtOnce {})).await;
    assert!(refused_for(&late, "AGENT_OFFLINE"), "{:?}", reasons(&late));
}

#[tokio::test]
async fn right_after_a_start_a_target_that_may_be_left_out_is_waited_for_first() {
    let mut world = World::new(2).await;
    world.core.rules.reconnect_grace = TimeDelta::seconds(60);
    let release = world.release("v1").await;
    let mut wish = world.wish(&release, Strategy::AllAtOnce {});
    wish.recipe.offline = OfflinePolicy::Skip {};
    world.offline.lock().unwrap().extend(world.targets[0].agent_id);
    let job = world.request(&wish).await.job.unwrap().id;
    world.settle().await;
    assert_eq!(world.phases(job).await, [TaskPhase::Pending, TaskPhase::Assigned]);
    world.offline.lock().unwrap().clear();
    world.settle().await;
    world.act(Act::Succeed).await;
    world.settle().await;
    assert_eq!(world.phases(job).await, [TaskPhase::Succeeded; 2]);
}
