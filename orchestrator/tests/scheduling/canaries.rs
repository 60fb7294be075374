//! What a canary is judged by: what its hosts told after it, of its own project, when its bake ends and when a person lets it pass.

use chrono::TimeDelta;
use sealift_common::{
    condition::{Condition, ConditionCode},
    failure::FailureCode,
    id::{JobId, TargetId},
    job::{JobPhase, JobState, Pause},
    observation::{ContainerHealth, TargetObservation},
    recipe::Recipe,
    strategy::{CanaryPromotion, Share, Strategy},
    task::TaskPhase,
    time::Clock as _,
};

use crate::{
    rollouts::{canary, pause, resume, start},
    seen::stopped,
    world::{Act, World},
};

/// The release `v1` everywhere, then a canary of `v2` on one target.
async fn canary_of_an_update(world: &World, recipe: Recipe) -> JobId {
    let before = world.release("v1").await;
    let ran = world.promote(&before).await;
    assert_eq!(world.finish(ran).await, JobPhase::Succeeded);
    // Whatever was told is of the past.
    world.clock.advance(TimeDelta::seconds(1));
    let release = world.release("v2").await;
    start(world, &release, recipe).await
}

async fn has_failed(world: &World, job: JobId) {
    let JobState::Failed { failure } = world.job(job).await.state else {
        panic!("it passed: {:?}", world.job(job).await.state);
    };
    assert_eq!(failure.code, FailureCode::CanaryFailed);
    let untouched = world.phases(job).await.into_iter().skip(1);
    assert!(untouched.eq([TaskPhase::Skipped; 2]), "nothing else was touched");
}

#[tokio::test]
async fn a_canary_is_not_judged_by_what_its_host_told_before_it() {
    for bake_ms in [0, 60_000] {
        let world = World::new(3).await;
        let recipe = Recipe {
            strategy: Strategy::Canary {
                first: Share::Count(1),
                bake_ms,
                promote: CanaryPromotion::Automatic,
                max_parallel: Share::ALL,
            },
            ..Recipe::default()
        };
        let job = canary_of_an_update(&world, recipe).await;
        let task = world.live().await.pop().unwrap();
        world.report(&task, Act::Succeed).await;
        // A look that had begun before the end, and is told after it, shows a mixture.
        world.tamper(task.target_id, |seen| seen.busy = true).await;
        world.settle().await;
        world.clock.advance(TimeDelta::milliseconds(bake_ms.into()));
        world.settle().await;
        assert!(world.live().await.is_empty(), "nobody has told what runs");
        world.look(&task).await;
        world.settle().await;
        assert_eq!(world.live().await.len(), 2, "the rest follows");
        assert_eq!(world.finish(job).await, JobPhase::Succeeded);
    }
}

#[tokio::test]
async fn a_canary_is_judged_by_what_its_host_told_after_it() {
    let world = World::new(3).await;
    let job = canary_of_an_update(&world, canary(CanaryPromotion::Automatic)).await;
    let task = world.live().await.pop().unwrap();
    world.report(&task, Act::Succeed).await;
    world.settle().await;
    world.clock.advance(TimeDelta::seconds(30));
    world.look(&task).await;
    world.tamper(task.target_id, stopped).await;
    world.clock.advance(TimeDelta::seconds(31));
    world.settle().await;
    has_failed(&world, job).await;
}

/// Of this project, something is wrong on the host.
async fn break_project(world: &World, target: TargetId, project: &str, how: fn(&mut TargetObservation)) {
    let broken = |seen: &mut TargetObservation| {
        let others = seen.projects.clone();
        how(seen);
        for (name, other) in others.into_iter().filter(|(name, _)| !name.ends_with(project)) {
            seen.projects.insert(name, other);
        }
    };
    world.tamper(target, broken).await;
}

fn unhealthy(seen: &mut TargetObservation) {
    for project in seen.projects.values_mut() {
        project.containers[0].health = ContainerHealth::Unhealthy;
    }
}

fn gone(seen: &mut TargetObservation) {
    seen.projects.clear();
}

#[tokio::test]
async fn a_canary_is_judged_by_its_own_project_only() {
    for how in [stopped as fn(&mut TargetObservation), unhealthy, gone] {
        for (project, passes) in [("shop/web", true), ("shop/api", false)] {
            let world = World::new(3).await;
            let web = world.release_in("web", "v1").await;
            let other = world.promote(&web).await;
            assert_eq!(world.finish(other).await, JobPhase::Succeeded);
            let job = canary_of_an_update(&world, canary(CanaryPromotion::Automatic)).await;
            let task = world.live().await.pop().unwrap();
            world.act_on(&task, Act::Succeed).await;
            break_project(&world, task.target_id, project, how).await;
            world.settle().await;
            world.clock.advance(TimeDelta::seconds(61));
            world.settle().await;
            if passes {
                assert_eq!(world.live().await.len(), 2, "the rest follows");
            } else {
                has_failed(&world, job).await;
            }
        }
    }
}

#[tokio::test]
async fn nobody_is_asked_to_let_a_canary_pass_that_does_not_run_any_more() {
    let world = World::new(3).await;
    let job = canary_of_an_update(&world, canary(CanaryPromotion::Manual)).await;
    let task = world.live().await.pop().unwrap();
    world.act_on(&task, Act::Succeed).await;
    world.settle().await;
    world.tamper(task.target_id, stopped).await;
    world.clock.advance(TimeDelta::seconds(61));
    world.settle().await;
    has_failed(&world, job).await;
}

#[tokio::test]
async fn a_canary_that_a_person_lets_pass_is_looked_at_once_more() {
    for breaks in [false, true] {
        let world = World::new(3).await;
        let job = canary_of_an_update(&world, canary(CanaryPromotion::Manual)).await;
        let task = world.live().await.pop().unwrap();
        world.act_on(&task, Act::Succeed).await;
        world.settle().await;
        // To let a job go on that a person has paused is no word about its canary.
        pause(&world, job).await;
        world.clock.advance(TimeDelta::seconds(61));
        resume(&world, job).await;
        let paused = JobState::Paused { why: Pause::Canary };
        assert_eq!(world.job(job).await.state, paused);
        world.clock.advance(TimeDelta::days(2));
        world.settle().await;
        assert_eq!(world.job(job).await.state, paused);
        if breaks {
            world.tamper(task.target_id, stopped).await;
        }
        resume(&world, job).await;
        if breaks {
            has_failed(&world, job).await;
        } else {
            assert_eq!(world.live().await.len(), 2, "the rest follows");
            assert_eq!(world.finish(job).await, JobPhase::Succeeded);
        }
    }
}

#[tokio::test]
async fn a_canary_whose_host_is_silent_is_waited_for_and_never_passes_unseen() {
    for promote in CanaryPromotion::ALL {
        for returns in [Some(true), Some(false), None] {
            let world = World::new(3).await;
            let job = canary_of_an_update(&world, canary(*promote)).await;
            let task = world.live().await.pop().unwrap();
            world.act(Act::Succeed).await;
            world.look(&task).await;
            world.settle().await;
            world.offline.lock().unwrap().extend(task.agent_id);
            for wait in [61, 60, 1_700] {
                world.clock.advance(TimeDelta::seconds(wait));
                world.settle().await;
                assert_eq!(world.job(job).await.state, JobState::Running);
                assert!(world.live().await.is_empty(), "it is waited for");
            }
            let Some(is_well) = returns else {
                world.clock.advance(TimeDelta::seconds(61));
                world.settle().await;
                has_failed(&world, job).await;
                continue;
            };
            world.returns(task.agent_id.unwrap());
            world.settle().await;
            assert_eq!(world.job(job).await.state, JobState::Running);
            assert!(world.live().await.is_empty(), "what it told before it was away");
            if is_well {
                world.look(&task).await;
            } else {
                world.tamper(task.target_id, stopped).await;
            }
            world.settle().await;
            if !is_well {
                has_failed(&world, job).await;
                continue;
            }
            if *promote == CanaryPromotion::Manual {
                resume(&world, job).await;
            }
            assert_eq!(world.live().await.len(), 2, "the rest follows");
        }
    }
}

/// Its agent is there, and cannot tell what runs.
#[tokio::test]
async fn a_canary_that_took_its_engine_down_does_not_pass() {
    for comes_back in [true, false] {
        let world = World::new(3).await;
        let job = canary_of_an_update(&world, canary(CanaryPromotion::Automatic)).await;
        let task = world.live().await.pop().unwrap();
        world.act_on(&task, Act::Succeed).await;
        world.look(&task).await;
        world.settle().await;
        let answers = async |answers: bool| {
            let gone = Condition::new(ConditionCode::EngineUnavailable, "engine: it does not answer");
            let mut tx = world.core.db.write().await.unwrap();
            let agent = task.agent_id.unwrap();
            let mut facts = tx.agent_by_id(agent).await.unwrap().unwrap().facts;
            facts.degraded = if answers { Vec::new() } else { vec![gone] };
            let now = world.clock.now();
            tx.update_agent_facts(agent, &facts, now).await.unwrap();
            tx.commit().await.unwrap();
        };
        answers(false).await;
        world.clock.advance(TimeDelta::seconds(61));
        world.settle().await;
        assert!(world.live().await.is_empty(), "it is waited for");
        if comes_back {
            answers(true).await;
            world.settle().await;
            assert_eq!(world.live().await.len(), 2, "the rest follows");
        } else {
            world.clock.advance(TimeDelta::seconds(1_861));
            world.settle().await;
            has_failed(&world, job).await;
        }
    }
}

/// The look may be stored before the report that ends the task: it shows the sticker that was written last of all.
#[tokio::test]
async fn a_canary_is_judged_by_a_look_that_came_before_the_word_of_its_end() {
    let world = World::new(3).await;
    let job = canary_of_an_update(&world, canary(CanaryPromotion::Automatic)).await;
    let task = world.live().await.pop().unwrap();
    world.look(&task).await;
    world.clock.advance(TimeDelta::seconds(1));
    world.report(&task, Act::Succeed).await;
    world.settle().await;
    world.clock.advance(TimeDelta::seconds(61));
    world.settle().await;
    assert_eq!(world.live().await.len(), 2, "the rest follows");
    assert_eq!(world.finish(job).await, JobPhase::Succeeded);
}
