//! Whatever is asked for and whatever happens: how many releases of a project are live at once.

use std::collections::BTreeSet;

use chrono::TimeDelta;
use sealift_common::{
    failure::FailureCode,
    id::{JobId, ReleaseId},
    job::JobPhase,
    recipe::{FailurePolicy, OnFailure, Recipe},
    release::Release,
    strategy::{CanaryPromotion, Share, Strategy},
    task::TaskPhase,
    time::Clock as _,
};
use sealift_orchestrator::app::{
    cancel_promotion::Running,
    steer_job::{abort_job, resume_job},
};
use sealift_store::{Job, PageRequest};

use crate::world::{Act, World};

/// Steps with each width of the lane: together some seconds.
const STEPS: u32 = 45;

/// Random numbers that are the same in every run (splitmix64).
struct Dice(u64);

impl Dice {
    fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, count: usize) -> usize {
        (self.roll() % count as u64) as usize
    }

    fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() {
            return None;
        }
        of.get(self.below(of.len()))
    }
}

fn recipe(dice: &mut Dice) -> Recipe {
    let canary = |promote| Strategy::Canary {
        first: Share::Count(1),
        bake_ms: 1_000,
        promote,
        max_parallel: Share::Count(1),
    };
    let strategy = match dice.below(4) {
        0 => Strategy::AllAtOnce {},
        1 => World::rolling(1),
        2 => canary(CanaryPromotion::Automatic),
        _ => canary(CanaryPromotion::Manual),
    };
    let failures = FailurePolicy {
        tolerated: Share::NONE,
        on_failure: *dice.pick(OnFailure::ALL).unwrap(),
    };
    Recipe {
        strategy,
        failures,
        ..Recipe::default()
    }
}

/// One random thing happens; answers what.
async fn happen(world: &World, dice: &mut Dice, releases: &[Release]) -> &'static str {
    let jobs: Vec<Job> = jobs(world).await;
    let under_way: Vec<JobId> = jobs
        .iter()
        .filter(|job| job.state.phase().occupies_lane())
        .map(|job| job.id)
        .collect();
    let open: Vec<JobId> = jobs
        .iter()
        .filter(|job| !job.state.phase().is_terminal())
        .map(|job| job.id)
        .collect();
    let now = world.clock.now();
    match dice.below(20) {
        0..4 => {
            let mut wish = world.wish(dice.pick(releases).unwrap(), Strategy::AllAtOnce {});
            wish.recipe = recipe(dice);
            world.request(&wish).await;
            "promote"
        }
        4..13 => {
            let act = match dice.below(10) {
                0..7 => Act::Succeed,
                7 => Act::Fail(FailureCode::Unhealthy),
                8 => Act::Stop,
                _ => Act::Begin,
            };
            if let Some(task) = dice.pick(&world.live().await) {
                world.act_on(task, act).await;
            }
            "act"
        }
        13..15 => {
            if let Some(id) = dice.pick(&under_way) {
                let mut tx = world.core.db.write().await.unwrap();
                let job = tx.job_by_id(*id).await.unwrap().unwrap();
                resume_job(&mut tx, &job, "user/alice", now).await.unwrap();
                tx.commit().await.unwrap();
            }
            "resume"
        }
        15 => {
            if let Some(id) = dice.pick(&under_way) {
                let mut tx = world.core.db.write().await.unwrap();
                let job = tx.job_by_id(*id).await.unwrap().unwrap();
                // Where a stop was asked for before, a second wish may be refused.
                if abort_job(&mut tx, &job, "", "user/alice", now).await.is_ok() {
                    tx.commit().await.unwrap();
                }
            }
            "abort"
        }
        16 => {
            if let Some(id) = dice.pick(&open) {
                let running = if dice.below(2) == 0 {
                    Running::Finish
                } else {
                    Running::Restore
                };
                drop(world.cancel_and(*id, running).await);
            }
            "cancel"
        }
        17 => {
            let mut tx = world.core.db.write().await.unwrap();
            let project = releases[0].project_id;
            if let Some(hold) = tx.open_hold(world.environment.id, project).await.unwrap() {
                tx.lift_hold(&hold, "user/alice", now).await.unwrap();
                tx.commit().await.unwrap();
            }
            "lift"
        }
        _ => {
            world.clock.advance(TimeDelta::milliseconds(1_001));
            "wait"
        }
    }
}

async fn jobs(world: &World) -> Vec<Job> {
    let mut tx = world.core.db.read().await.unwrap();
    let page = PageRequest::first(200);
    let environment = Some(world.environment.id);
    tx.list_jobs(world.tenant, environment, &page)
        .await
        .unwrap()
        .items
}

/// What is live of the project.
#[derive(Debug, Default, Clone)]
struct Live {
    /// The promotions of which something is on the hosts and that have not ended.
    promotions: BTreeSet<JobId>,
    /// What the environment is said to run.
    active: BTreeSet<ReleaseId>,
    /// What jobs bring, or have brought, that have not ended.
    brought: BTreeSet<ReleaseId>,
    /// What hosts run, or are about to.
    hosts: BTreeSet<ReleaseId>,
}

async fn live(world: &World) -> Live {
    let mut found = Live::default();
    for job in jobs(world).await {
        let ended = job.state.phase().is_terminal() || job.state.phase() == JobPhase::Queued;
        for task in world.tasks(job.id).await {
            let phase = task.state.phase();
            if phase.is_live() {
                found.hosts.insert(job.release_id);
            }
            if !ended && (phase.is_live() || phase == TaskPhase::Succeeded) {
                found.brought.insert(job.release_id);
                if job.rollback_of.is_none() {
                    found.promotions.insert(job.id);
                }
            }
        }
    }
    let mut tx = world.core.db.read().await.unwrap();
    let active = tx.active(world.environment.id).await.unwrap();
    found.active.extend(active.iter().map(|row| row.release));
    for target in &world.targets {
        let current = tx.current(target.id).await.unwrap();
        found.hosts.extend(current.iter().map(|one| one.release));
    }
    found
}

/// However wide the lane: one release of a project at most is on its way at a time, beside the active one. So there are never more
/// than two on the hosts, unless a promotion was ended half-way that kept what had succeeded: what the hosts ran when the next one
/// began, and what that brings, is then all there is.
#[tokio::test]
async fn never_more_than_two_releases_of_a_project_are_live() {
    for width in 1..=5 {
        walk(width).await;
    }
}

async fn walk(width: u32) {
    let mut world = World::new(3).await;
    world.core.rules.lane_capacity = width;
    let mut dice = Dice(u64::from(width));
    let mut releases = Vec::new();
    for content in ["v1", "v2", "v3", "v4"] {
        releases.push(world.release(content).await);
    }
    let first = world.promote(&releases[0]).await;
    world.finish(first).await;
    let mut last = live(&world).await;
    // What hosts ran when what is under way began.
    let mut before = last.hosts.clone();
    let mut mixed = 0;
    for step in 0..STEPS {
        let what = happen(&world, &mut dice, &releases).await;
        for settled in [false, true] {
            if settled {
                world.settle().await;
            }
            let now = live(&world).await;
            if now.promotions != last.promotions {
                before.clone_from(&last.hosts);
            }
            let told = || {
                format!("width {width}, step {step} ({what}, settled {settled}): {now:?}, before {before:?}")
            };
            let on_the_way = now.brought.union(&now.active).count();
            assert!(on_the_way <= 2, "{}", told());
            let known: BTreeSet<_> = before.union(&now.active).chain(&now.brought).copied().collect();
            assert!(now.hosts.is_subset(&known), "{}", told());
            if before.is_subset(&now.active) {
                assert!(now.hosts.len() <= 2, "{}", told());
            }
            mixed += usize::from(on_the_way == 2);
            last = now;
        }
    }
    assert!(
        mixed > 5,
        "width {width}: two were live only {mixed} times, so that this proves little"
    );
}
