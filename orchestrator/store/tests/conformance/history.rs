//! R7: history replayed through the state machines ends in the stored state, and cannot be changed.

use sealift_common::{
    failure::{Failure, FailureCode},
    job::{JobEvent, JobState, Stop, StopWish},
    promotion::{PromotionEvent, PromotionState},
    task::{TaskEvent, TaskState, TaskStep},
};
use sealift_store::{EntityKind, Transition};

use crate::{
    harness::{Raw, World, at, conformance},
    seed::{Seed, failure},
};

conformance![
    a_wish_to_let_finish_is_outdone_by_any_other_and_outdoes_none,
    r7_the_history_of_a_task_replays_to_its_state,
    r7_the_history_of_a_job_and_promotion_replays_to_their_states,
    r7_history_cannot_be_changed,
];

fn task_event(row: &Transition) -> Option<TaskEvent> {
    let failure = || row.failure.clone().unwrap();
    Some(match row.event.as_str() {
        "assigned" => TaskEvent::Assigned,
        "accepted" => TaskEvent::Accepted,
        "progressed" => TaskEvent::Progressed {
            step: row.detail.parse().unwrap(),
        },
        "succeeded" => TaskEvent::Succeeded,
        "failed" => TaskEvent::Failed { failure: failure() },
        "attempt_failed" => TaskEvent::AttemptFailed { failure: failure() },
        "stopped" => TaskEvent::Stopped,
        "lease_expired" => TaskEvent::LeaseExpired,
        "skipped" => TaskEvent::Skipped {
            reason: row.detail.parse().unwrap(),
        },
        "withdrawn" => TaskEvent::Withdrawn,
        _ => return None,
    })
}

fn check_numbers(history: &[Transition], version: u64) {
    let numbers: Vec<u64> = history.iter().map(|row| row.seq).collect();
    assert_eq!(numbers, (1..=version).collect::<Vec<_>>());
    for pair in history.windows(2) {
        assert_eq!(pair[0].to, pair[1].from);
    }
}

async fn r7_the_history_of_a_task_replays_to_its_state(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let mut task = seed.assign(&mut tx, &made.tasks[0], at(0)).await.unwrap();
    let progressed = |step| TaskEvent::Progressed { step };
    for event in [
        TaskEvent::Accepted,
        progressed(TaskStep::Pulling),
        progressed(TaskStep::Pulling),
        TaskEvent::LeaseExpired,
        TaskEvent::AttemptFailed { failure: failure() },
    ] {
        task = tx.apply_task_event(&task, &event, "x", at(1)).await.unwrap();
    }
    task = tx.set_task_retry(&task, at(5), "x", at(1)).await.unwrap();
    task = seed.assign(&mut tx, &task, at(5)).await.unwrap();
    for event in [
        progressed(TaskStep::Switching),
        TaskEvent::Failed { failure: failure() },
        TaskEvent::Succeeded,
    ] {
        task = tx.apply_task_event(&task, &event, "x", at(6)).await.unwrap();
    }
    let history = tx.transitions(EntityKind::Task, task.id.uuid()).await.unwrap();
    check_numbers(&history, task.version);
    let mut state = TaskState::Pending;
    for row in &history {
        assert_eq!(row.from, state.phase().as_str());
        if let Some(event) = task_event(row) {
            state = state.apply(&event).unwrap().unwrap_or(state);
        }
    }
    assert_eq!(state, task.state);
    assert_eq!(state, TaskState::Failed { failure: failure() });
}

async fn r7_the_history_of_a_job_and_promotion_replays_to_their_states(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let job = tx
        .apply_job_event(&made.job, &JobEvent::Started, "x", at(1))
        .await
        .unwrap();
    let stop = Stop {
        wish: StopWish::Cancel,
        failure: failure(),
    };
    let job = tx
        .request_job_stop(&job, &stop, "user/alice", at(2))
        .await
        .unwrap();
    let job = tx
        .apply_job_event(&job, &JobEvent::Cancelled, "x", at(3))
        .await
        .unwrap();
    let history = tx.transitions(EntityKind::Job, job.id.uuid()).await.unwrap();
    check_numbers(&history, job.version);
    let mut state = JobState::Queued;
    for row in &history {
        let failure = || -> Failure { row.failure.clone().unwrap() };
        let event = match row.event.as_str() {
            "started" => JobEvent::Started,
            "completed" => JobEvent::Completed,
            "failed" => JobEvent::Failed { failure: failure() },
            "cancelled" => JobEvent::Cancelled,
            _ => continue,
        };
        state = state.apply(&event).unwrap().unwrap_or(state);
    }
    assert_eq!(state, job.state);

    let mut promotion = made.promotion;
    for event in [
        PromotionEvent::GatesPassed,
        PromotionEvent::JobStarted,
        PromotionEvent::JobSucceeded,
    ] {
        promotion = tx
            .apply_promotion_event(&promotion, event, None, "x", at(4))
            .await
            .unwrap();
    }
    let history = tx
        .transitions(EntityKind::Promotion, promotion.id.uuid())
        .await
        .unwrap();
    check_numbers(&history, promotion.version);
    let mut state = PromotionState::PendingGate;
    for row in &history {
        let event: PromotionEvent = row.event.parse().unwrap();
        state = state.apply(event).unwrap().unwrap_or(state);
    }
    assert_eq!((state, state), (promotion.state, PromotionState::Deployed));
}

async fn r7_history_cannot_be_changed(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    seed.assign(&mut tx, &made.tasks[0], at(1)).await.unwrap();
    tx.commit().await.unwrap();
    let mut raw = Raw::open(&world.config.url).await;
    for sql in [
        "UPDATE transitions SET actor = 'mallory'",
        "DELETE FROM transitions",
    ] {
        let refused = raw.run(sql).await.unwrap_err().to_string();
        assert!(refused.contains("insert-only"), "{sql}: {refused}");
    }
}

async fn a_wish_to_let_finish_is_outdone_by_any_other_and_outdoes_none(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut tx = world.db.write().await.unwrap();
    let release = seed
        .release(&mut tx, "github.com/acme/shop/api", at(0))
        .await
        .unwrap();
    for (seconds, wish) in (1..).zip([StopWish::Cancel, StopWish::RollBack, StopWish::Fail]) {
        let promotion = seed.promotion(&mut tx, &release, at(seconds)).await;
        let mut job = seed.job(&mut tx, &promotion, at(seconds)).await.unwrap();
        let wishes = [StopWish::Finish, StopWish::Finish, wish, StopWish::Finish];
        for (number, wish) in wishes.into_iter().enumerate() {
            let stop = Stop {
                wish,
                failure: Failure::new(FailureCode::Cancelled, format!("wish {number}")),
            };
            job = tx
                .request_job_stop(&job, &stop, "user/alice", at(9))
                .await
                .unwrap();
        }
        let kept = job.stop.unwrap();
        assert_eq!((kept.wish, kept.failure.summary.as_str()), (wish, "wish 2"));
        let history = tx.transitions(EntityKind::Job, job.id.uuid()).await.unwrap();
        let told: Vec<_> = history.iter().map(|row| row.detail.as_str()).collect();
        assert_eq!(told, ["wish 0", "wish 2"]);
    }
}
