//! Lanes: tickets, one at a time, gates asked again.

use chrono::TimeDelta;
use sealift_common::{
    decision::{DecisionRecord, GateAnswer},
    failure::FailureCode,
    id::{JobId, ReplicaId, TaskId},
    inventory::Target,
    job::{JobPhase, JobState},
    order::{Fence, OrderError},
    promotion::PromotionState,
    recipe::OnFailure,
    release::Release,
    strategy::Strategy,
    task::{TaskState, Wanted},
    time::Clock as _,
};
use sealift_orchestrator::{
    app::{create_promotion::plan_promotion, give_up_job::give_up_job, turn::Turn},
    loops::{
        driver::{Activity as _, Outcome},
        scheduler::Scheduler,
    },
};
use sealift_store::Task;

use crate::world::{Act, World};

#[tokio::test]
async fn r1_jobs_of_a_lane_run_one_by_one_in_the_order_of_their_tickets() {
    let world = World::new(2).await;
    let mut jobs = Vec::new();
    for content in ["v1", "v2", "v3"] {
        let release = world.release(content).await;
        jobs.push(world.promote(&release).await);
    }
    let mut tickets = Vec::new();
    for job in &jobs {
        tickets.push(world.job(*job).await.ticket);
    }
    assert_eq!(tickets, [1, 2, 3]);
    for (index, job) in jobs.iter().enumerate() {
        world.settle().await;
        for (other, id) in jobs.iter().enumerate() {
            let wanted = match other.cmp(&index) {
                std::cmp::Ordering::Less => JobPhase::Succeeded,
                std::cmp::Ordering::Equal => JobPhase::Running,
                std::cmp::Ordering::Greater => JobPhase::Queued,
            };
            assert_eq!(world.phase(*id).await, wanted);
        }
        assert!(world.live().await.iter().all(|task| task.job_id == *job));
        world.act(Act::Succeed).await;
    }
    world.settle().await;
    assert_eq!(world.phase(jobs[2]).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn r1_a_wider_lane_runs_as_many_as_it_may_and_never_two_tasks_on_one_target() {
    let mut world = World::new(2).await;
    world.core.rules.lane_capacity = 2;
    let mut jobs = Vec::new();
    for (project, content) in [("api", "v1"), ("web", "v2"), ("api", "v3"), ("web", "v4")] {
        let release = world.release_in(project, content).await;
        jobs.push(world.promote(&release).await);
    }
    let mut most = 0;
    for _ in 0..100 {
        world.settle().await;
        let mut phases = Vec::new();
        for job in &jobs {
            phases.push(world.phase(*job).await);
        }
        for (older, newer) in [(0, 2), (1, 3)] {
            assert!(
                phases[older].is_terminal() || phases[newer] == JobPhase::Queued,
                "two jobs of a project: {phases:?}"
            );
        }
        let running = phases.iter().filter(|phase| **phase == JobPhase::Running).count();
        assert!(running <= 2, "{phases:?}");
        most = most.max(running);
        let mut busy: Vec<_> = world.live().await.iter().map(|task| task.target_id).collect();
        let tasks = busy.len();
        busy.sort_unstable();
        busy.dedup();
        assert_eq!(busy.len(), tasks, "two live tasks on one target");
        if phases.iter().all(|phase| phase.is_terminal()) {
            assert!(
                phases.iter().all(|phase| *phase == JobPhase::Succeeded),
                "{phases:?}"
            );
            assert_eq!(most, 2);
            return;
        }
        if world.act(Act::Succeed).await == 0 {
            world.clock.advance(TimeDelta::seconds(1));
        }
    }
    panic!("the lane does not come to rest");
}

#[tokio::test]
async fn the_second_in_the_lane_is_told_its_place() {
    let world = World::new(1).await;
    let release = world.release("v1").await;
    world.promote(&release).await;
    world.settle().await;
    let second = world.request(&world.wish(&release, Strategy::AllAtOnce {})).await;
    let record = DecisionRecord::from_bytes(&second.decision.record).unwrap();
    let lane = record.gates.last().unwrap();
    assert_eq!(lane.reason, "LANE_BUSY");
    assert!(lane.message.contains("place 1"), "{}", lane.message);
}

/// What the lane's gate says to a request for this release.
async fn lane_says(world: &World, release: &Release) -> GateAnswer {
    let wish = world.wish(release, Strategy::AllAtOnce {});
    let mut tx = world.core.db.read().await.unwrap();
    let survey = plan_promotion(&world.core, &mut tx, &wish).await.unwrap();
    survey.record.gates.last().unwrap().clone()
}

/// However wide the lane: a job of the same project that waits, is paused or is being undone comes first, and the gate says so.
#[tokio::test]
async fn the_gate_of_a_wide_lane_tells_the_truth() {
    let mut world = World::new(2).await;
    world.core.rules.lane_capacity = 5;
    let (first, second) = (world.release("v1").await, world.release("v2").await);
    let other = world.release_in("web", "w1").await;
    let active = world.promote(&first).await;
    let busy = lane_says(&world, &second).await;
    assert_eq!(busy.reason, "LANE_BUSY", "one waits");
    assert!(
        busy.message.contains("place 2") && busy.message.contains("github.com/acme/shop/api"),
        "{}",
        busy.message
    );
    assert_eq!(lane_says(&world, &other).await.reason, "LANE_FREE");
    assert_eq!(world.finish(active).await, JobPhase::Succeeded);
    assert_eq!(lane_says(&world, &second).await.reason, "LANE_FREE");

    let mut wish = world.wish(&second, World::rolling(1));
    wish.recipe.failures.on_failure = OnFailure::RollBack;
    let job = world.request(&wish).await.job.unwrap().id;
    world.settle().await;
    world.act(Act::Succeed).await;
    world.settle().await;
    world.act(Act::Fail(FailureCode::Unhealthy)).await;
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::RollingBack);
    assert_eq!(
        lane_says(&world, &first).await.reason,
        "LANE_BUSY",
        "it is being undone"
    );
    assert_eq!(lane_says(&world, &other).await.reason, "LANE_FREE");
}

#[tokio::test]
async fn gates_are_asked_again_when_the_turn_comes() {
    let world = World::new(1).await;
    let (first, second) = (world.release("v1").await, world.release("v2").await);
    let job = world.promote(&first).await;
    let waiting = world.promote(&second).await;
    world.settle().await;
    world.act(Act::Succeed).await;
    world.offline.lock().unwrap().extend(world.targets[0].agent_id);
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Succeeded);
    assert!(
        matches!(world.job(waiting).await.state, JobState::Failed { failure } if failure.code == FailureCode::GateClosed)
    );
    assert_eq!(world.state(waiting).await, PromotionState::Failed);
    assert!(world.tasks(waiting).await.is_empty());
}

#[tokio::test]
async fn after_a_start_absent_agents_are_waited_for() {
    let world = World::new(1).await;
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    world.offline.lock().unwrap().extend(world.targets[0].agent_id);
    let mut core = world.core.clone();
    core.rules.reconnect_grace = TimeDelta::seconds(60);
    let mut scheduler = Scheduler::new(core, ReplicaId::new(world.clock.now()));
    assert_eq!(scheduler.activate().await.unwrap(), Outcome::Idle);
    assert_eq!(world.phase(job).await, JobPhase::Queued);
    world.offline.lock().unwrap().clear();
    assert_eq!(scheduler.activate().await.unwrap(), Outcome::More);
    assert_eq!(world.phase(job).await, JobPhase::Running);
}

#[tokio::test]
async fn a_plan_that_was_looked_at_is_the_one_that_is_carried_out() {
    let world = World::new(1).await;
    let (first, second) = (world.release("v1").await, world.release("v2").await);
    let mut wish = world.wish(&second, Strategy::AllAtOnce {});
    let plan = {
        let mut tx = world.core.db.read().await.unwrap();
        sealift_orchestrator::app::create_promotion::plan_promotion(&world.core, &mut tx, &wish)
            .await
            .unwrap()
    };
    wish.plan_seen = Some(plan.plan_digest);
    let job = world.promote(&first).await;
    let bound = world.request(&wish).await.job.unwrap().id;
    world.finish(job).await;
    world.settle().await;
    let failure = world.promotion(bound).await.failure.unwrap();
    assert_eq!(failure.code, FailureCode::GateClosed);
    assert!(failure.summary.contains("plan"), "{}", failure.summary);
}

#[tokio::test]
async fn i10_a_scheduler_that_was_paused_beyond_its_lease_writes_nothing() {
    let world = World::new(1).await;
    let release = world.release("v1").await;
    let job = world.promote(&release).await;
    let now = world.clock.now();
    let mut paused = Turn::new(world.core.db.clone(), "scheduler", ReplicaId::new(now));
    assert!(paused.hold(now).await.unwrap());
    let mut other = Turn::new(world.core.db.clone(), "scheduler", ReplicaId::new(now));
    assert!(!other.hold(now).await.unwrap(), "one at a time");
    world.clock.advance(TimeDelta::seconds(30));
    assert!(other.hold(world.clock.now()).await.unwrap());
    // It still believes that it holds the lease.
    assert!(paused.write().await.is_err());
    assert!(other.write().await.is_ok());
    assert_eq!(world.phase(job).await, JobPhase::Queued);
}

#[tokio::test]
async fn r1_an_order_that_cannot_be_made_does_not_jam_the_lane() {
    let mut world = World::new(3).await;
    let release = world.release("v1").await;
    world.core.sign_order = std::sync::Arc::new(|_| Err(OrderError::NoKey));
    let job = world.promote(&release).await;
    world.settle().await;
    assert_eq!(world.phase(job).await, JobPhase::Failed);
    let world = world.restart().await;
    let next = world.promote(&release).await;
    assert_eq!(world.finish(next).await, JobPhase::Succeeded);
}

#[tokio::test]
async fn r1_a_job_that_cannot_be_moved_is_given_up_waiting_or_running() {
    let world = World::new(3).await;
    let release = world.release("v1").await;
    let (one, two) = (world.promote(&release).await, world.promote(&release).await);
    world.step().await;
    world.step().await;
    world.act(Act::Begin).await;
    let now = world.clock.now() + chrono::TimeDelta::minutes(1);
    let mut turn = Turn::new(world.core.db.clone(), "test", ReplicaId::new(now));
    assert!(turn.hold(now).await.unwrap());
    for job in [one, two] {
        give_up_job(&world.core, &turn, job, "a defect").await.unwrap();
        give_up_job(&world.core, &turn, job, "a defect").await.unwrap();
    }
    assert_eq!(world.phase(two).await, JobPhase::Failed);
    assert_eq!(world.state(two).await, PromotionState::Failed);
    world.settle().await;
    assert!(world.live().await.iter().all(|task| task.wanted == Wanted::Stop));
    world.act(Act::Stop).await;
    world.settle().await;
    assert!(world.phase(one).await.is_terminal());
}

/// Makes the start of a waiting job fail for a reason that is neither a defect nor an outage: its task is there already.
async fn spoil(world: &World, job: JobId, target: &Target) {
    let job = world.job(job).await;
    let task = Task {
        id: TaskId::new(world.clock.now()),
        job_id: job.id,
        tenant_id: job.tenant_id,
        target_id: target.id,
        target: target.name.clone(),
        environment: job.environment.clone(),
        agent_id: target.agent_id,
        wave: 0,
        state: TaskState::Pending,
        wanted: Wanted::Run,
        attempt: 0,
        fence: Fence::default(),
        order: None,
        lease_until: None,
        retry_at: None,
        version: 0,
        created_at: world.clock.now(),
        started_at: None,
        finished_at: None,
    };
    let mut tx = world.core.db.write().await.unwrap();
    tx.insert_tasks(&[task]).await.unwrap();
    tx.commit().await.unwrap();
}

#[tokio::test]
async fn r1_a_job_that_cannot_be_moved_for_whatever_reason_holds_up_no_other_lane() {
    let mut world = World::new(0).await;
    let release = world.release("v1").await;
    let mut jobs = Vec::new();
    // Whether lanes are looked at in this order or the other way round, a spoilt one comes first.
    for (name, spoilt) in [("one", true), ("two", false), ("three", true)] {
        world.enter(name).await;
        let target = world.add_target("web-001").await;
        let job = world.promote(&release).await;
        if spoilt {
            spoil(&world, job, &target).await;
        }
        jobs.push(job);
    }
    world.step().await;
    assert_eq!(world.phase(jobs[1]).await, JobPhase::Running);
    assert_eq!(world.phase(jobs[0]).await, JobPhase::Queued);
    for _ in 0..5 {
        world.step().await;
    }
    for job in [jobs[0], jobs[2]] {
        assert!(
            matches!(world.job(job).await.state, JobState::Failed { failure } if failure.code == FailureCode::Internal),
            "its lane does not wait for ever"
        );
    }
}
