//! Failures of attempts: where, when, in which step; bounded lists along their own index.

use sealift_common::{
    failure::{Failure, FailureCode},
    job::JobEvent,
    task::{TaskEvent, TaskStep},
};
use sealift_store::{AttemptFailure, Db, EntityKind, PageRequest, Task};

use crate::{
    harness::{Raw, World, at, conformance},
    seed::{Deployment, Seed},
};

conformance![
    each_attempt_has_a_failure_of_its_own,
    failures_are_paged_and_counted_newest_first,
    the_step_is_the_one_on_the_way_forward,
    what_is_told_of_an_ended_task_is_no_further_failure,
    the_time_of_a_jobs_failure_is_that_of_its_first_word,
    r7_failures_cannot_be_changed,
    failures_from_before_the_table_are_taken_over,
];

fn of(code: FailureCode) -> Failure {
    Failure::new(code, "what failed")
}

fn failed(code: FailureCode) -> TaskEvent {
    TaskEvent::Failed { failure: of(code) }
}

fn attempt_failed() -> TaskEvent {
    let failure = of(FailureCode::RegistryUnavailable).with_detail("503");
    TaskEvent::AttemptFailed { failure }
}

fn step(step: TaskStep) -> TaskEvent {
    TaskEvent::Progressed { step }
}

/// Gives a task to the agent and tells what it reports, each list as one batch, a second apart.
async fn attempt(world: &World, seed: &Seed, task: &Task, begin: i64, batches: &[&[TaskEvent]]) -> Task {
    let mut tx = world.db.write().await.unwrap();
    let mut task = seed.assign(&mut tx, task, at(begin)).await.unwrap();
    tx.commit().await.unwrap();
    for (batch, seconds) in batches.iter().zip(begin + 1..) {
        task = tell(&world.db, &task, batch, seconds).await;
    }
    task
}

async fn tell(db: &Db, task: &Task, events: &[TaskEvent], seconds: i64) -> Task {
    let mut tx = db.write().await.unwrap();
    let told = tx.apply_task_events(task, events, "agent/1", at(seconds)).await;
    tx.commit().await.unwrap();
    told.unwrap()
}

async fn failures(world: &World, made: &Deployment) -> Vec<AttemptFailure> {
    let mut tx = world.db.read().await.unwrap();
    let page = tx.failures_of_job(made.job.id, &PageRequest::first(100)).await;
    page.unwrap().items
}

fn told(failure: &AttemptFailure) -> (&str, u32, Option<TaskStep>) {
    (failure.failure.code.as_str(), failure.attempt, failure.step)
}

async fn each_attempt_has_a_failure_of_its_own(world: World) {
    let seed = Seed::sow(&world.db, "acme", 2).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let pulling: &[TaskEvent] = &[TaskEvent::Accepted, step(TaskStep::Pulling), attempt_failed()];
    let task = attempt(&world, &seed, &made.tasks[0], 1, &[pulling]).await;
    let waiting: &[TaskEvent] = &[TaskEvent::Accepted, step(TaskStep::HealthWait)];
    let back: &[TaskEvent] = &[step(TaskStep::Restoring)];
    let end: &[TaskEvent] = &[failed(FailureCode::Unhealthy)];
    attempt(&world, &seed, &task, 10, &[waiting, back, end]).await;
    // Nobody is there who could do the other one.
    tell(&world.db, &made.tasks[1], &[failed(FailureCode::AgentLost)], 20).await;

    let found = failures(&world, &made).await;
    let seen: Vec<_> = found.iter().map(told).collect();
    assert_eq!(
        seen,
        [
            ("AGENT_LOST", 0, None),
            ("UNHEALTHY", 2, Some(TaskStep::HealthWait)),
            ("REGISTRY_UNAVAILABLE", 1, Some(TaskStep::Pulling)),
        ]
    );
    let times: Vec<_> = found.iter().map(|failure| failure.at).collect();
    assert_eq!(times, [at(20), at(13), at(2)]);
    assert_eq!(found[2].failure.detail, "503");
    for (failure, task) in found.iter().zip([&made.tasks[1], &made.tasks[0], &made.tasks[0]]) {
        assert_eq!((failure.task_id, &failure.target), (task.id, &task.target));
        assert_eq!(
            (failure.job_id, &failure.environment),
            (made.job.id, &task.environment)
        );
    }
    let mut tx = world.db.read().await.unwrap();
    let ids = [made.tasks[0].id, made.tasks[1].id];
    let places = tx.failed_places(&ids).await.unwrap();
    let place = places[&ids[0]];
    assert_eq!((place.attempt, place.step), (2, Some(TaskStep::HealthWait)));
    let place = places[&ids[1]];
    assert_eq!((place.attempt, place.step), (0, None));
    assert!(tx.failed_places(&[]).await.unwrap().is_empty());
}

async fn failures_are_paged_and_counted_newest_first(world: World) {
    let seed = Seed::sow(&world.db, "acme", 7).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let other = seed.deployment(&world.db, at(0)).await;
    for (task, seconds) in made.tasks.iter().zip(1..) {
        tell(&world.db, task, &[failed(FailureCode::AgentRevoked)], seconds).await;
    }
    tell(
        &world.db,
        &other.tasks[0],
        &[failed(FailureCode::AgentRevoked)],
        50,
    )
    .await;
    let mut tx = world.db.read().await.unwrap();
    assert_eq!(tx.count_failures_of_job(made.job.id).await.unwrap(), 7);
    assert_eq!(tx.count_failures_of_job(other.job.id).await.unwrap(), 1);
    assert_eq!(tx.count_failures_of_task(made.tasks[0].id).await.unwrap(), 1);
    let mut request = PageRequest::first(3);
    let mut seen = Vec::new();
    loop {
        let page = tx.failures_of_job(made.job.id, &request).await.unwrap();
        assert!(page.items.len() <= 3);
        seen.extend(page.items);
        request.after = page.next;
        if request.after.is_none() {
            break;
        }
    }
    let times: Vec<_> = seen.iter().map(|failure| failure.at).collect();
    assert_eq!(times, (1..=7).rev().map(at).collect::<Vec<_>>());
    let page = tx
        .failures_of_task(made.tasks[3].id, &PageRequest::first(9))
        .await
        .unwrap();
    assert_eq!(page.items, [seen[3].clone()]);
}

async fn the_step_is_the_one_on_the_way_forward(world: World) {
    let seed = Seed::sow(&world.db, "acme", 5).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let forward: &[TaskEvent] = &[
        TaskEvent::Accepted,
        step(TaskStep::Starting),
        step(TaskStep::Restoring),
    ];
    // The way back failed itself.
    let end: &[TaskEvent] = &[failed(FailureCode::RestoreFailed)];
    attempt(&world, &seed, &made.tasks[0], 1, &[forward, end]).await;
    // Everything in one batch.
    let all: &[TaskEvent] = &[forward, &[failed(FailureCode::WorkloadExited)]].concat();
    attempt(&world, &seed, &made.tasks[1], 10, &[all]).await;
    // Given up while it waited for its next attempt.
    let wait: &[TaskEvent] = &[step(TaskStep::Pulling), attempt_failed()];
    let revoked: &[TaskEvent] = &[failed(FailureCode::AgentRevoked)];
    attempt(&world, &seed, &made.tasks[2], 20, &[wait, revoked]).await;
    // An attempt that never began a step does not take over that of the one before it.
    let task = attempt(&world, &seed, &made.tasks[3], 30, &[wait]).await;
    let refused: &[TaskEvent] = &[failed(FailureCode::OrderRefused)];
    attempt(&world, &seed, &task, 40, &[refused]).await;
    // Lost on its way.
    let lost: &[TaskEvent] = &[TaskEvent::LeaseExpired];
    let creating: &[TaskEvent] = &[step(TaskStep::Creating)];
    attempt(&world, &seed, &made.tasks[4], 50, &[creating, lost, revoked]).await;
    let found = failures(&world, &made).await;
    let seen: Vec<_> = found.iter().map(told).collect();
    assert_eq!(
        seen,
        [
            ("AGENT_REVOKED", 1, Some(TaskStep::Creating)),
            ("ORDER_REFUSED", 2, None),
            ("REGISTRY_UNAVAILABLE", 1, Some(TaskStep::Pulling)),
            ("AGENT_REVOKED", 1, Some(TaskStep::RetryWait)),
            ("REGISTRY_UNAVAILABLE", 1, Some(TaskStep::Pulling)),
            ("WORKLOAD_EXITED", 1, Some(TaskStep::Starting)),
            ("RESTORE_FAILED", 1, Some(TaskStep::Restoring)),
        ]
    );
}

async fn what_is_told_of_an_ended_task_is_no_further_failure(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let end: &[TaskEvent] = &[failed(FailureCode::Unhealthy)];
    let task = attempt(&world, &seed, &made.tasks[0], 1, &[end]).await;
    tell(&world.db, &task, &[failed(FailureCode::Internal)], 9).await;
    assert_eq!(failures(&world, &made).await.len(), 1);
}

async fn the_time_of_a_jobs_failure_is_that_of_its_first_word(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let other = seed.deployment(&world.db, at(0)).await;
    let failure = of(FailureCode::CanaryFailed);
    let events = [
        JobEvent::Started,
        JobEvent::RollbackStarted {
            failure: failure.clone(),
        },
        JobEvent::RolledBack,
    ];
    let mut tx = world.db.write().await.unwrap();
    let mut job = made.job.clone();
    for (event, seconds) in events.iter().zip(1..) {
        job = tx.apply_job_event(&job, event, "x", at(seconds)).await.unwrap();
    }
    // Read in the transaction that wrote it, too.
    let asked = [(job.id.uuid(), &failure), (other.job.id.uuid(), &failure)];
    let times = tx.failure_times(EntityKind::Job, &asked).await.unwrap();
    assert_eq!(times, [(job.id.uuid(), at(2))].into());
    tx.commit().await.unwrap();
    let mut tx = world.db.read().await.unwrap();
    let another = of(FailureCode::Internal);
    let asked = [(job.id.uuid(), &another)];
    assert!(
        tx.failure_times(EntityKind::Job, &asked)
            .await
            .unwrap()
            .is_empty()
    );
    assert!(tx.failure_times(EntityKind::Job, &[]).await.unwrap().is_empty());
}

async fn r7_failures_cannot_be_changed(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    tell(&world.db, &made.tasks[0], &[failed(FailureCode::AgentLost)], 1).await;
    let mut raw = Raw::open(&world.config.url).await;
    for sql in ["UPDATE failures SET attempt = 7", "DELETE FROM failures"] {
        let refused = raw.run(sql).await.unwrap_err().to_string();
        assert!(refused.contains("insert-only"), "{sql}: {refused}");
    }
}

/// What the migration makes of a history is what would have been written at the time.
async fn failures_from_before_the_table_are_taken_over(world: World) {
    let seed = Seed::sow(&world.db, "acme", 3).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let wait: &[TaskEvent] = &[TaskEvent::Accepted, step(TaskStep::Pulling), attempt_failed()];
    let task = attempt(&world, &seed, &made.tasks[0], 1, &[wait]).await;
    let back: &[TaskEvent] = &[step(TaskStep::HealthWait), step(TaskStep::Restoring)];
    let end: &[TaskEvent] = &[failed(FailureCode::Unhealthy)];
    attempt(&world, &seed, &task, 10, &[back, end]).await;
    let worse: &[TaskEvent] = &[failed(FailureCode::RestoreFailed)];
    attempt(&world, &seed, &made.tasks[1], 20, &[back, worse]).await;
    let revoked: &[TaskEvent] = &[failed(FailureCode::AgentRevoked)];
    let task = attempt(&world, &seed, &made.tasks[2], 30, &[wait, revoked]).await;
    assert!(task.state.phase().is_terminal());
    let before = failures(&world, &made).await;
    assert_eq!(before.len(), 5);

    world.db.close().await;
    let mut raw = Raw::open(&world.config.url).await;
    raw.run("DROP TABLE failures; DELETE FROM _sqlx_migrations WHERE version = 2")
        .await
        .unwrap();
    raw.end().await;
    let db = Db::open(&world.config).await.unwrap();
    let mut tx = db.read().await.unwrap();
    let page = tx.failures_of_job(made.job.id, &PageRequest::first(100)).await;
    assert_eq!(page.unwrap().items, before);
    drop(tx);
    db.close().await;
}
