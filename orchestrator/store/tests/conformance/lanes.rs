//! Lanes: tickets, and whose turn it is in one that lets several jobs run.

use sealift_common::{
    decision::{Gate, GateAnswer, Verdict},
    id::{JobId, ProjectId},
    job::{JobEvent, JobState, Pause},
    outcome::Outcome,
    promotion::{PromotionEvent, PromotionKind, PromotionState},
};
use sealift_store::{EntityKind, HistoryScope, Job, Newcomer, PageRequest, StoreError, Tx, WaitingJob};

use crate::{
    harness::{World, at, conformance},
    seed::{Seed, failure},
};

conformance![
    a_promotion_that_waits_is_superseded_and_names_the_newer_one,
    a_job_behind_a_gate_keeps_what_the_gate_said,
    a_newcomer_is_told_who_comes_first,
    a_project_has_one_job_under_way_and_beside_what_is_undone_only_its_rollback,
    r1_lanes_keep_ticket_order,
    tickets_have_no_gap_under_concurrency,
];

/// The next job of a project of the repository.
async fn queue(seed: &Seed, tx: &mut Tx, project: &str, seconds: i64) -> Job {
    let text = format!("github.com/acme/shop/{project}");
    let release = seed.release(tx, &text, at(seconds)).await.unwrap();
    let promotion = seed.promotion(tx, &release, at(seconds)).await;
    seed.job(tx, &promotion, at(seconds)).await.unwrap()
}

/// A rollback of a job, to the release that it brought.
async fn queue_rollback(seed: &Seed, tx: &mut Tx, of: &Job, seconds: i64) -> Job {
    let release = tx.release(seed.tenant.id, of.release_id).await.unwrap().unwrap();
    let promotion = seed.promotion(tx, &release, at(seconds)).await;
    seed.rollback_job(tx, &promotion, of.id, at(seconds))
        .await
        .unwrap()
}

async fn happens(tx: &mut Tx, job: &Job, event: &JobEvent) -> Job {
    let job = tx.job_by_id(job.id).await.unwrap().unwrap();
    tx.apply_job_event(&job, event, "x", at(50)).await.unwrap()
}

async fn a_project_has_one_job_under_way_and_beside_what_is_undone_only_its_rollback(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let lane = seed.environment.id;
    let mut tx = world.db.write().await.unwrap();
    let canary = queue(&seed, &mut tx, "api", 1).await;
    let newer = queue(&seed, &mut tx, "api", 2).await;
    let other = queue(&seed, &mut tx, "web", 3).await;
    let asked_for = queue_rollback(&seed, &mut tx, &newer, 4).await;
    let head = async |tx: &mut Tx| tx.lane_head(lane).await.unwrap().map(|job| job.id);
    assert_eq!(head(&mut tx).await, Some(asked_for.id), "rollbacks go first");
    happens(&mut tx, &canary, &JobEvent::Started).await;
    assert_eq!(
        head(&mut tx).await,
        Some(other.id),
        "the other project need not wait"
    );
    let why = Pause::Canary;
    happens(&mut tx, &canary, &JobEvent::Paused { why }).await;
    assert_eq!(head(&mut tx).await, Some(other.id), "a paused one is live, too");
    happens(&mut tx, &other, &JobEvent::Started).await;
    assert_eq!(head(&mut tx).await, None);

    let event = JobEvent::RollbackStarted { failure: failure() };
    let undone = happens(&mut tx, &canary, &event).await;
    let rollback = queue_rollback(&seed, &mut tx, &undone, 5).await;
    assert_eq!(
        head(&mut tx).await,
        Some(rollback.id),
        "before one with a lower ticket"
    );
    happens(&mut tx, &rollback, &JobEvent::Started).await;
    assert_eq!(head(&mut tx).await, None);
    happens(&mut tx, &rollback, &JobEvent::Completed).await;
    assert_eq!(head(&mut tx).await, None, "what it undoes has not ended");
    happens(&mut tx, &undone, &JobEvent::RolledBack).await;
    assert_eq!(head(&mut tx).await, Some(asked_for.id));
    happens(&mut tx, &asked_for, &JobEvent::Cancelled).await;
    assert_eq!(head(&mut tx).await, Some(newer.id));
}

async fn project_of(seed: &Seed, tx: &mut Tx, job: &Job) -> ProjectId {
    let release = tx.release(seed.tenant.id, job.release_id).await.unwrap();
    release.unwrap().project_id
}

async fn a_job_behind_a_gate_keeps_what_the_gate_said(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let answer = |message: &str| GateAnswer {
        gate: Gate::Hold,
        verdict: Verdict::Wait,
        reason: "LANE_HELD".to_owned(),
        message: message.to_owned(),
        advice: "lift it".to_owned(),
    };
    let mut tx = world.db.write().await.unwrap();
    happens(&mut tx, &made.job, &JobEvent::Started).await;
    for message in ["one \u{0}", "two"] {
        let why = Pause::Gate(answer(message));
        let paused = happens(&mut tx, &made.job, &JobEvent::Paused { why: why.clone() }).await;
        assert_eq!(paused.state.pause(), Some(&why));
    }
    let board = tx.board(seed.tenant.id).await.unwrap();
    assert_eq!(board.jobs[0].pause, Some(Pause::Gate(answer("two"))));
    let why = Pause::Operator;
    let paused = happens(&mut tx, &made.job, &JobEvent::Paused { why: why.clone() }).await;
    assert_eq!(paused.state.pause(), Some(&why));
    let resumed = happens(&mut tx, &made.job, &JobEvent::Resumed).await;
    assert_eq!(resumed.state.pause(), None);
    let history = tx.transitions(EntityKind::Job, made.job.id.uuid()).await.unwrap();
    let told: Vec<_> = history.iter().map(|row| row.detail.as_str()).collect();
    assert_eq!(told, ["", "LANE_HELD", "LANE_HELD", "operator", ""]);

    // Found from the release alone, as the gates of a job under way are asked.
    let (environment, release) = (seed.environment.id, &made.release);
    assert_eq!(
        tx.open_hold_on_release(environment, release.id).await.unwrap(),
        None
    );
    let hold = seed.hold(release, at(4));
    tx.place_hold(&hold).await.unwrap();
    let found = tx.open_hold_on_release(environment, release.id).await.unwrap();
    assert_eq!(found, Some(hold.clone()));
    tx.lift_hold(&hold, "user/ada", at(5)).await.unwrap();
    assert_eq!(
        tx.open_hold_on_release(environment, release.id).await.unwrap(),
        None
    );
}

async fn a_promotion_that_waits_is_superseded_and_names_the_newer_one(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let environment = seed.environment.id;
    let mut tx = world.db.write().await.unwrap();
    tx.lock_lane(environment).await.unwrap();
    let older = queue(&seed, &mut tx, "api", 1).await;
    let newer = queue(&seed, &mut tx, "api", 2).await;
    assert_eq!((older.ticket, newer.ticket), (1, 2), "a lock takes no ticket");
    let find = async |tx: &mut Tx, job: &Job| {
        let found = tx.promotion(seed.tenant.id, job.promotion_id).await.unwrap();
        found.unwrap()
    };
    let waiting = find(&mut tx, &older).await;
    let approved = tx
        .apply_promotion_event(&waiting, PromotionEvent::GatesPassed, None, "x", at(3))
        .await
        .unwrap();
    let ended = happens(&mut tx, &older, &JobEvent::Superseded).await;
    assert_eq!(ended.state, JobState::Cancelled);
    let why = failure();
    tx.supersede_promotion(&approved, newer.promotion_id, &why, "x", at(4))
        .await
        .unwrap();
    let ended = find(&mut tx, &older).await;
    assert_eq!(
        (ended.state, ended.superseded_by, ended.failure),
        (PromotionState::Cancelled, Some(newer.promotion_id), Some(why))
    );
    let page = PageRequest::first(10);
    let history = tx.history(environment, HistoryScope::All, &page).await.unwrap();
    let outcomes: Vec<_> = history.items.iter().map(|row| row.fate.outcome()).collect();
    assert_eq!(outcomes, [None, Some(Outcome::Superseded)]);
    // What runs cannot be superseded.
    let running = happens(&mut tx, &newer, &JobEvent::Started).await;
    let refused = tx
        .apply_job_event(&running, &JobEvent::Superseded, "x", at(5))
        .await;
    assert!(
        matches!(refused, Err(StoreError::IllegalTransition(_))),
        "{refused:?}"
    );
}

async fn a_newcomer_is_told_who_comes_first(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let environment = seed.environment.id;
    let mut tx = world.db.write().await.unwrap();
    let first = queue(&seed, &mut tx, "api", 1).await;
    let second = queue(&seed, &mut tx, "api", 2).await;
    let other = queue(&seed, &mut tx, "web", 3).await;
    let api = project_of(&seed, &mut tx, &first).await;
    let third = ProjectId::new(at(0));
    let view = async |tx: &mut Tx, project: ProjectId, undoes: Option<JobId>| {
        let newcomer = Newcomer {
            environment,
            project,
            undoes,
        };
        let view = tx.lane_view(newcomer).await.unwrap();
        (view.running, view.ahead, view.start_first, view.project_under_way)
    };
    // Three wait; of each other project one starts first. A rollback goes before all of them.
    assert_eq!(view(&mut tx, third, None).await, (0, 3, 2, false));
    assert_eq!(view(&mut tx, api, None).await, (0, 3, 1, false));
    assert_eq!(view(&mut tx, api, Some(first.id)).await, (0, 0, 0, false));
    let newcomer = Newcomer {
        environment,
        project: api,
        undoes: None,
    };
    let waits = tx.lane_view(newcomer).await.unwrap().project_waits;
    let scopes = [&first, &second].map(|job| job.promotion_id);
    for ((job, waiting), promotion) in [&first, &second].into_iter().zip(&waits).zip(scopes) {
        let promotion = tx.promotion(seed.tenant.id, promotion).await.unwrap().unwrap();
        let wanted = WaitingJob {
            id: job.id,
            kind: PromotionKind::Deploy,
            scope: promotion.scope,
        };
        assert_eq!(waiting, &wanted);
    }
    assert_eq!(waits.len(), 2);

    // The second of a project waits for the first, not for room.
    happens(&mut tx, &first, &JobEvent::Started).await;
    assert_eq!(view(&mut tx, third, None).await, (1, 2, 1, false));
    assert_eq!(view(&mut tx, api, Some(second.id)).await, (1, 0, 0, true));

    // Nor does one that is held.
    let release = tx.release(seed.tenant.id, other.release_id).await.unwrap();
    tx.place_hold(&seed.hold(&release.unwrap(), at(4))).await.unwrap();
    assert_eq!(view(&mut tx, third, None).await, (1, 2, 0, false));

    // One that is being undone keeps its project from starting anything but the rollback.
    let event = JobEvent::RollbackStarted { failure: failure() };
    let undone = happens(&mut tx, &first, &event).await;
    assert_eq!(view(&mut tx, api, Some(undone.id)).await, (0, 0, 0, false));
    assert_eq!(view(&mut tx, api, Some(second.id)).await, (0, 0, 0, true));
    let rollback = queue_rollback(&seed, &mut tx, &undone, 5).await;
    assert_eq!(view(&mut tx, third, None).await, (0, 3, 1, false));
    assert_eq!(view(&mut tx, third, Some(second.id)).await, (0, 1, 1, false));
    let mut places = Vec::new();
    for job in [&rollback, &second, &other] {
        places.push(tx.lane_position(job).await.unwrap());
    }
    assert_eq!(places, [1, 2, 3]);
}

async fn r1_lanes_keep_ticket_order(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut jobs: Vec<Job> = Vec::new();
    for seconds in 0..3 {
        jobs.push(seed.deployment(&world.db, at(seconds)).await.job);
    }
    let lane = seed.environment.id;
    let mut tx = world.db.write().await.unwrap();
    let project = tx.release(seed.tenant.id, jobs[0].release_id).await.unwrap();
    let project = project.unwrap().project_id;
    assert_eq!(jobs.iter().map(|job| job.ticket).collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(tx.lanes_with_queued().await.unwrap(), [lane]);
    assert_eq!(tx.lane_head(lane).await.unwrap(), Some(jobs[0].clone()));
    assert_eq!(tx.lane_position(&jobs[2]).await.unwrap(), 3);
    let running = tx
        .apply_job_event(&jobs[0], &JobEvent::Started, "x", at(10))
        .await
        .unwrap();
    assert_eq!(
        tx.lane_head(lane).await.unwrap(),
        None,
        "its project is under way"
    );
    let newcomer = Newcomer {
        environment: lane,
        project,
        undoes: None,
    };
    let view = tx.lane_view(newcomer).await.unwrap();
    assert_eq!((view.running, view.ahead, view.project_under_way), (1, 2, true));
    assert_eq!((view.start_first, view.project_waits.len()), (0, 2));
    assert_eq!(
        (
            tx.running_in_lane(lane).await.unwrap(),
            tx.queued_in_lane(lane).await.unwrap()
        ),
        (1, 2)
    );
    assert_eq!(tx.lane_position(&running).await.unwrap(), 0);
    assert_eq!(tx.lane_position(&jobs[2]).await.unwrap(), 2);
    tx.apply_job_event(&running, &JobEvent::Completed, "x", at(25))
        .await
        .unwrap();
    assert_eq!(tx.lane_head(lane).await.unwrap().unwrap().id, jobs[1].id);
    let view = tx.lane_view(newcomer).await.unwrap();
    assert_eq!((view.running, view.ahead, view.project_under_way), (0, 2, false));
    assert_eq!(tx.recent_job_seconds(lane, 5).await.unwrap(), [15.0]);
    for job in &jobs[1..] {
        tx.apply_job_event(job, &JobEvent::Cancelled, "x", at(30))
            .await
            .unwrap();
    }
    assert!(tx.lanes_with_queued().await.unwrap().is_empty());
    assert_eq!(tx.lane_head(lane).await.unwrap(), None);
}

async fn tickets_have_no_gap_under_concurrency(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = futures::future::join_all((0..12).map(|number| seed.deployment(&world.db, at(number)))).await;
    let mut tickets: Vec<u64> = made.iter().map(|made| made.job.ticket).collect();
    tickets.sort_unstable();
    assert_eq!(tickets, (1..=12).collect::<Vec<_>>());
}
