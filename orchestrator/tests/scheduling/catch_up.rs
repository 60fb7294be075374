//! Targets that were left alone get what is active by the time they are back, however often that fails and whoever else cannot.

use chrono::TimeDelta;
use sealift_common::{
    failure::FailureCode,
    id::{JobId, PromotionId, ReplicaId},
    inventory::Target,
    job::{JobPhase, JobState},
    promotion::PromotionState,
    recipe::{OfflinePolicy, Recipe},
    strategy::Strategy,
    time::Clock as _,
};
use sealift_orchestrator::loops::{catch_up::CatchUp, driver::Activity as _};
use sealift_store::{Job, LeftOut, Promotion};

use crate::world::{Act, World};

/// Makes the target's agent go away.
fn leave(world: &World, target: &Target) {
    world.offline.lock().unwrap().insert(target.agent_id.unwrap());
}

/// Brings a release everywhere but where the agents are away.
async fn bring(world: &World, content: &str) -> JobId {
    let release = world.release(content).await;
    let mut wish = world.wish(&release, Strategy::AllAtOnce {});
    wish.recipe = Recipe {
        offline: OfflinePolicy::Skip {},
        ..Recipe::default()
    };
    let job = world.request(&wish).await.job.unwrap().id;
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    job
}

fn catch_up(world: &World) -> CatchUp {
    CatchUp::new(world.core.clone(), ReplicaId::new(world.clock.now()))
}

/// What would be looked at after so many minutes.
async fn remembered(world: &World, minutes: i64) -> Vec<LeftOut> {
    let then = world.clock.now() + TimeDelta::minutes(minutes);
    let mut tx = world.core.db.read().await.unwrap();
    tx.left_out(then, None, 9).await.unwrap()
}

#[tokio::test]
async fn a_target_is_remembered_until_what_is_active_has_arrived() {
    let world = World::new(2).await;
    leave(&world, &world.targets[0]);
    bring(&world, "v1").await;
    world.offline.lock().unwrap().clear();
    let mut catch_up = catch_up(&world);
    for minutes in [11, 21] {
        catch_up.activate().await.unwrap();
        world.settle().await;
        assert_eq!(world.live().await.len(), 1);
        world.act(Act::Fail(FailureCode::Unhealthy)).await;
        world.settle().await;
        catch_up.activate().await.unwrap();
        world.settle().await;
        assert_eq!(world.live().await.len(), 0, "not again at once");
        assert_eq!(remembered(&world, minutes).await.len(), 1);
        assert_eq!(remembered(&world, minutes - 2).await.len(), 0, "each time later");
        world.clock.advance(TimeDelta::minutes(minutes));
    }
    catch_up.activate().await.unwrap();
    world.settle().await;
    assert_eq!(world.act(Act::Succeed).await, 1);
    world.settle().await;
    world.clock.advance(TimeDelta::days(1));
    catch_up.activate().await.unwrap();
    world.settle().await;
    assert_eq!(world.live().await.len(), 0, "it has caught up");
    assert_eq!(remembered(&world, 9_999).await, []);
}

#[tokio::test]
async fn a_target_that_has_what_is_active_by_now_has_nothing_to_catch_up_with() {
    let world = World::new(2).await;
    bring(&world, "v1").await;
    leave(&world, &world.targets[0]);
    bring(&world, "v2").await;
    // The others go back to what this one has kept.
    bring(&world, "v1").await;
    world.offline.lock().unwrap().clear();
    catch_up(&world).activate().await.unwrap();
    assert_eq!(remembered(&world, 9_999).await, []);
    world.settle().await;
    assert_eq!(world.live().await.len(), 0);
}

#[tokio::test]
async fn while_the_project_is_under_way_nobody_catches_up_with_what_it_leaves_behind() {
    let world = World::new(3).await;
    leave(&world, &world.targets[0]);
    bring(&world, "v1").await;
    world.offline.lock().unwrap().clear();
    let wish = world.wish(&world.release("v2").await, World::rolling(1));
    let job = world.request(&wish).await.job.unwrap().id;
    let mut catch_up = catch_up(&world);
    for _ in 0..2 {
        // First it waits in the lane, then it runs.
        catch_up.activate().await.unwrap();
        world.clock.advance(TimeDelta::minutes(2));
        world.settle().await;
    }
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    catch_up.activate().await.unwrap();
    assert_eq!(remembered(&world, 9_999).await, [], "that job brought it");
    world.settle().await;
    assert_eq!(world.live().await.len(), 0);
}

#[tokio::test]
async fn who_is_away_is_looked_for_again_and_again_without_a_write() {
    let world = World::new(2).await;
    leave(&world, &world.targets[0]);
    bring(&world, "v1").await;
    let mut changes = world.core.db.changes();
    let mut catch_up = catch_up(&world);
    for _ in 0..3 {
        catch_up.activate().await.unwrap();
        assert_eq!(remembered(&world, 0).await.len(), 1, "it stays due");
    }
    assert!(changes.try_recv().is_err());
    world.offline.lock().unwrap().clear();
    catch_up.activate().await.unwrap();
    world.settle().await;
    assert_eq!(world.live().await.len(), 1, "at once when it is back");
}

/// Takes the next ticket of the job's lane, so that no promotion can be requested there.
async fn spoil(world: &World, job: JobId) {
    let (job, promotion) = (world.job(job).await, world.promotion(job).await);
    let now = world.clock.now();
    let promotion = Promotion {
        id: PromotionId::new(now),
        state: PromotionState::Cancelled,
        ..promotion
    };
    let taken = Job {
        id: JobId::new(now),
        promotion_id: promotion.id,
        state: JobState::Cancelled,
        ticket: job.ticket + 1,
        ..job
    };
    let mut tx = world.core.db.write().await.unwrap();
    tx.insert_promotion(&promotion).await.unwrap();
    tx.insert_job(&taken).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn one_target_that_cannot_be_looked_at_holds_up_no_other_one() {
    let mut world = World::new(0).await;
    let mut back = Vec::new();
    // The spoilt one has the first place.
    for name in ["spoilt", "sound"] {
        world.enter(name).await;
        world.clock.advance(TimeDelta::milliseconds(1));
        let away = world.add_target("away").await;
        let there = world.add_target("there").await;
        leave(&world, &away);
        world.targets.extend([away.clone(), there]);
        let job = bring(&world, name).await;
        if name == "spoilt" {
            spoil(&world, job).await;
        }
        back.push(away.id);
    }
    world.offline.lock().unwrap().clear();
    let mut catch_up = catch_up(&world);
    catch_up.activate().await.unwrap_err();
    world.settle().await;
    let live = world.live().await;
    assert_eq!(
        live.iter().map(|task| task.target_id).collect::<Vec<_>>(),
        back[1..]
    );
    catch_up.activate().await.unwrap();
    let later = remembered(&world, 11).await;
    assert!(
        later.iter().any(|one| one.target_id == back[0]),
        "put off, and not forgotten"
    );
}
