//! Promotions, decisions, jobs, lanes.

use std::time::Duration;

use sealift_common::{
    failure::{Failure, FailureCode},
    id::{DecisionId, HoldId, PromotionId, ReleaseId},
    job::{JobEvent, JobState, Pause, Stop, StopWish},
    promotion::{PromotionEvent, PromotionState},
    strategy::Then,
};
use sealift_store::{
    DecisionHead, DecisionRow, EntityKind, Hold, PageRequest, Promotion, ReleaseName, StoreError,
};

use crate::{
    harness::{World, at, conformance},
    seed::{Seed, digest, failure},
};

conformance![
    promotions_move_with_their_history,
    a_lost_update_of_a_promotion_is_a_conflict,
    events_that_change_nothing_write_nothing,
    illegal_events_are_refused,
    a_plan_is_replaced_with_a_trace,
    the_latest_decision_counts,
    what_lists_show_is_read_for_many_at_once,
    promotions_and_jobs_are_listed_newest_first,
    jobs_move_with_their_history,
    a_lost_update_of_a_job_is_a_conflict,
    a_stop_is_asked_for_once,
    a_promotion_has_one_job,
    a_paused_job_keeps_its_lane_and_a_rollback_goes_first,
    a_hold_keeps_a_project_out_of_the_lane_but_no_rollback,
    waves_are_written_once_and_keep_their_first_times,
    a_stronger_wish_to_stop_takes_the_place_of_a_weaker_one,
    r14_nobody_steers_a_job_whose_orders_are_being_made,
];

async fn promotions_move_with_their_history(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut tx = world.db.write().await.unwrap();
    let release = seed
        .release(&mut tx, "github.com/acme/shop/api", at(0))
        .await
        .unwrap();
    let mut promotion = seed.promotion(&mut tx, &release, at(0)).await;
    assert_eq!(
        tx.promotion(seed.tenant.id, promotion.id).await.unwrap(),
        Some(promotion.clone())
    );
    let why = failure();
    for (event, failure) in [
        (PromotionEvent::GatesPassed, None),
        (PromotionEvent::JobStarted, None),
        (PromotionEvent::JobFailed, Some(&why)),
    ] {
        promotion = tx
            .apply_promotion_event(&promotion, event, failure, "orchestrator", at(3))
            .await
            .unwrap();
    }
    assert_eq!((promotion.state, promotion.version), (PromotionState::Failed, 3));
    assert_eq!(
        (promotion.failure.as_ref(), promotion.finished_at),
        (Some(&why), Some(at(3)))
    );
    assert_eq!(
        tx.promotion(seed.tenant.id, promotion.id).await.unwrap(),
        Some(promotion.clone())
    );
    let history = tx
        .transitions(EntityKind::Promotion, promotion.id.uuid())
        .await
        .unwrap();
    let told: Vec<_> = history
        .iter()
        .map(|row| (row.seq, row.from.as_str(), row.event.as_str(), row.to.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (1, "pending_gate", "gates_passed", "approved"),
            (2, "approved", "job_started", "deploying"),
            (3, "deploying", "job_failed", "failed"),
        ]
    );
    assert_eq!(
        (history[2].detail.as_str(), history[2].failure.as_ref()),
        ("UNHEALTHY", Some(&why))
    );
}

async fn a_lost_update_of_a_promotion_is_a_conflict(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let decide = async |event| {
        let mut tx = world.db.write().await?;
        tx.apply_promotion_event(&made.promotion, event, None, "x", at(1))
            .await?;
        tx.commit().await
    };
    let (passed, refused) = futures::join!(
        decide(PromotionEvent::GatesPassed),
        decide(PromotionEvent::GatesRefused)
    );
    let conflicts = [&passed, &refused]
        .iter()
        .filter(|r| matches!(r, Err(StoreError::Conflict)))
        .count();
    assert_eq!(
        (conflicts, passed.is_ok() ^ refused.is_ok()),
        (1, true),
        "{passed:?} {refused:?}"
    );
    let mut tx = world.db.read().await.unwrap();
    assert_eq!(
        tx.transitions(EntityKind::Promotion, made.promotion.id.uuid())
            .await
            .unwrap()
            .len(),
        1
    );
}

async fn events_that_change_nothing_write_nothing(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let running = tx
        .apply_job_event(&made.job, &JobEvent::Started, "x", at(1))
        .await
        .unwrap();
    let same = tx
        .apply_job_event(&running, &JobEvent::Started, "x", at(2))
        .await
        .unwrap();
    assert_eq!(running, same);
    assert_eq!(
        tx.transitions(EntityKind::Job, made.job.id.uuid())
            .await
            .unwrap()
            .len(),
        1
    );
}

async fn illegal_events_are_refused(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let refused = tx
        .apply_job_event(&made.job, &JobEvent::Completed, "x", at(1))
        .await;
    assert!(
        matches!(refused, Err(StoreError::IllegalTransition(_))),
        "{refused:?}"
    );
    let event = PromotionEvent::JobSucceeded;
    let refused = tx
        .apply_promotion_event(&made.promotion, event, None, "x", at(1))
        .await;
    assert!(
        matches!(refused, Err(StoreError::IllegalTransition(_))),
        "{refused:?}"
    );
}

async fn a_plan_is_replaced_with_a_trace(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let new = tx
        .update_promotion_plan(
            &made.promotion,
            r#"{"waves":[]}"#,
            digest("new"),
            "orchestrator",
            at(1),
        )
        .await
        .unwrap();
    assert_eq!(
        (new.plan_digest, new.version, new.state),
        (digest("new"), 1, PromotionState::PendingGate)
    );
    let history = tx
        .transitions(EntityKind::Promotion, new.id.uuid())
        .await
        .unwrap();
    assert_eq!((history[0].event.as_str(), history[0].seq), ("replanned", 1));
    let stale = tx
        .update_promotion_plan(&made.promotion, "{}", digest("x"), "x", at(2))
        .await;
    assert!(matches!(stale, Err(StoreError::Conflict)), "{stale:?}");
}

async fn the_latest_decision_counts(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    assert_eq!(tx.latest_decision(made.promotion.id).await.unwrap(), None);
    for (passed, seconds) in [(false, 1), (true, 2)] {
        let decision = DecisionRow {
            id: DecisionId::new(at(seconds)),
            promotion_id: made.promotion.id,
            digest: digest("record"),
            record: vec![0, 1, 2, 255],
            passed,
            created_at: at(seconds),
        };
        tx.insert_decision(&decision).await.unwrap();
        assert_eq!(
            tx.latest_decision(made.promotion.id).await.unwrap(),
            Some(decision)
        );
    }
}

async fn promotions_and_jobs_are_listed_newest_first(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut made = Vec::new();
    for seconds in 0..4 {
        made.push(seed.deployment(&world.db, at(seconds)).await);
    }
    made.reverse();
    let (tenant, lane) = (seed.tenant.id, Some(seed.environment.id));
    let mut tx = world.db.read().await.unwrap();
    for environment in [None, lane] {
        let first = tx
            .list_promotions(tenant, environment, &PageRequest::first(3))
            .await
            .unwrap();
        let request = PageRequest {
            size: 3,
            after: first.next,
        };
        let rest = tx.list_promotions(tenant, environment, &request).await.unwrap();
        let listed: Vec<_> = first.items.into_iter().chain(rest.items).collect();
        let without_plans = made.iter().map(|made| Promotion {
            plan_json: String::new(),
            ..made.promotion.clone()
        });
        assert_eq!(listed, without_plans.collect::<Vec<_>>());

        let first = tx
            .list_jobs(tenant, environment, &PageRequest::first(3))
            .await
            .unwrap();
        let request = PageRequest {
            size: 3,
            after: first.next,
        };
        let rest = tx.list_jobs(tenant, environment, &request).await.unwrap();
        let ids: Vec<_> = first.items.iter().chain(&rest.items).map(|job| job.id).collect();
        assert_eq!(ids, made.iter().map(|made| made.job.id).collect::<Vec<_>>());
    }
}

async fn what_lists_show_is_read_for_many_at_once(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let one = seed.deployment(&world.db, at(0)).await;
    let two = seed.deployment(&world.db, at(10)).await;
    let mut tx = world.db.write().await.unwrap();
    for (passed, seconds) in [(false, 2), (true, 1)] {
        tx.insert_decision(&DecisionRow {
            id: DecisionId::new(at(seconds)),
            promotion_id: one.promotion.id,
            digest: digest(&seconds.to_string()),
            record: vec![0; 10_000],
            passed,
            created_at: at(seconds),
        })
        .await
        .unwrap();
    }
    let promotions = [one.promotion.id, two.promotion.id, PromotionId::new(at(0))];
    let heads = tx.decision_heads(&promotions).await.unwrap();
    let newest = DecisionHead {
        digest: digest("2"),
        passed: false,
        created_at: at(2),
    };
    assert_eq!(heads, [(one.promotion.id, newest)].into());
    let jobs = tx.jobs_of_promotions(&promotions).await.unwrap();
    let wanted = [&one, &two].map(|made| (made.promotion.id, made.job.clone()));
    assert_eq!(jobs, wanted.into());
    let releases = [one.release.id, ReleaseId::new(at(0))];
    let names = tx.release_names(&releases).await.unwrap();
    let name = ReleaseName {
        project: one.release.source.project.clone(),
        number: one.release.number,
    };
    assert_eq!(names, [(one.release.id, name)].into());
    assert!(tx.decision_heads(&[]).await.unwrap().is_empty());
    assert!(tx.jobs_of_promotions(&[]).await.unwrap().is_empty());
    assert!(tx.release_names(&[]).await.unwrap().is_empty());
}

fn stop(why: &str) -> Stop {
    Stop {
        wish: StopWish::Cancel,
        failure: Failure::new(FailureCode::Cancelled, why),
    }
}

async fn a_paused_job_keeps_its_lane_and_a_rollback_goes_first(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let running = tx
        .apply_job_event(&made.job, &JobEvent::Started, "x", at(1))
        .await
        .unwrap();
    let why = Pause::Failures;
    let paused = tx
        .apply_job_event(&running, &JobEvent::Paused { why: why.clone() }, "x", at(2))
        .await
        .unwrap();
    assert_eq!(paused.state, JobState::Paused { why });
    assert_eq!(tx.running_in_lane(seed.environment.id).await.unwrap(), 1);
    assert_eq!(tx.jobs_in_motion(9).await.unwrap(), std::slice::from_ref(&paused));
    let accepted = tx
        .accept_job_failures(&paused, 3, "user/alice", at(3))
        .await
        .unwrap();
    let resumed = tx
        .apply_job_event(&accepted, &JobEvent::Resumed, "user/alice", at(4))
        .await
        .unwrap();
    assert_eq!(
        (&resumed.state, resumed.accepted_failures, resumed.resumed_at),
        (&JobState::Running, 3, Some(at(4)))
    );
    let event = JobEvent::RollbackStarted { failure: failure() };
    let undone = tx.apply_job_event(&resumed, &event, "x", at(5)).await.unwrap();
    assert_eq!(tx.running_in_lane(seed.environment.id).await.unwrap(), 0);

    let later = seed.promotion(&mut tx, &made.release, at(6)).await;
    let later = seed.job(&mut tx, &later, at(6)).await.unwrap();
    assert_eq!(
        tx.lane_head(seed.environment.id).await.unwrap(),
        None,
        "{} waits until all is undone",
        later.id
    );
    let rollback = seed.promotion(&mut tx, &made.release, at(7)).await;
    let rollback = seed
        .rollback_job(&mut tx, &rollback, undone.id, at(7))
        .await
        .unwrap();
    let head = tx.lane_head(seed.environment.id).await.unwrap().unwrap();
    assert_eq!((head.id, head.rollback_of), (rollback.id, Some(undone.id)));
    assert_eq!(tx.newest_rollback(undone.id).await.unwrap(), Some(rollback));
    let event = JobEvent::RollbackFailed { failure: failure() };
    let ended = tx.apply_job_event(&undone, &event, "x", at(8)).await.unwrap();
    assert_eq!(tx.job_by_id(ended.id).await.unwrap(), Some(ended.clone()));
    assert_eq!(ended.finished_at, Some(at(8)));
}

async fn a_hold_keeps_a_project_out_of_the_lane_but_no_rollback(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let lane = seed.environment.id;
    let hold = Hold {
        id: HoldId::new(at(1)),
        tenant_id: seed.tenant.id,
        environment_id: lane,
        environment: seed.environment.name.clone(),
        project_id: made.release.project_id,
        project: made.release.source.project.clone(),
        reason: "it was rolled back".to_owned(),
        placed_by: "user/alice".to_owned(),
        placed_at: at(1),
        lifted: None,
    };
    tx.place_hold(&hold).await.unwrap();
    let second = Hold {
        id: HoldId::new(at(2)),
        ..hold.clone()
    };
    tx.place_hold(&second).await.unwrap();
    let open = tx.open_hold(lane, made.release.project_id).await.unwrap();
    assert_eq!(open.as_ref(), Some(&hold), "one at a time");
    assert_eq!(tx.lane_head(lane).await.unwrap(), None);
    let rollback = seed.promotion(&mut tx, &made.release, at(3)).await;
    let rollback = seed
        .rollback_job(&mut tx, &rollback, made.job.id, at(3))
        .await
        .unwrap();
    assert_eq!(tx.lane_head(lane).await.unwrap().unwrap().id, rollback.id);
    tx.apply_job_event(&rollback, &JobEvent::Cancelled, "x", at(4))
        .await
        .unwrap();
    tx.lift_hold(&hold, "user/bob", at(5)).await.unwrap();
    assert_eq!(tx.lane_head(lane).await.unwrap().unwrap().id, made.job.id);
    let lifted = tx.hold(seed.tenant.id, hold.id).await.unwrap().unwrap();
    assert_eq!(lifted.lifted, Some(("user/bob".to_owned(), at(5))));
    let page = PageRequest::first(9);
    assert_eq!(
        tx.list_holds(seed.tenant.id, false, &page).await.unwrap().items,
        []
    );
    assert_eq!(
        tx.list_holds(seed.tenant.id, true, &page).await.unwrap().items,
        [lifted]
    );
}

async fn waves_are_written_once_and_keep_their_first_times(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let thens = [Then::Bake { ms: 5 }, Then::Next {}];
    tx.insert_waves(made.job.id, &thens).await.unwrap();
    for seconds in [1, 9] {
        tx.open_wave(made.job.id, 0, at(seconds)).await.unwrap();
        tx.settle_wave(made.job.id, 0, at(seconds + 1)).await.unwrap();
        tx.pass_wave(made.job.id, 0, at(seconds + 2)).await.unwrap();
    }
    let waves = tx.waves_of_job(made.job.id).await.unwrap();
    assert_eq!(waves.iter().map(|wave| wave.then).collect::<Vec<_>>(), thens);
    assert_eq!(
        (waves[0].opened_at, waves[0].settled_at, waves[0].passed_at),
        (Some(at(1)), Some(at(2)), Some(at(3)))
    );
    assert_eq!(waves[1].opened_at, None);
}

async fn jobs_move_with_their_history(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let running = tx
        .apply_job_event(&made.job, &JobEvent::Started, "orchestrator", at(5))
        .await
        .unwrap();
    assert_eq!(
        (&running.state, running.started_at),
        (&JobState::Running, Some(at(5)))
    );
    assert_eq!(
        tx.jobs_in_motion(9).await.unwrap(),
        std::slice::from_ref(&running)
    );
    let event = JobEvent::Failed { failure: failure() };
    let failed = tx
        .apply_job_event(&running, &event, "orchestrator", at(9))
        .await
        .unwrap();
    assert_eq!(failed.state, JobState::Failed { failure: failure() });
    assert_eq!(
        (failed.started_at, failed.finished_at, failed.version),
        (Some(at(5)), Some(at(9)), 2)
    );
    assert_eq!(tx.job_by_id(failed.id).await.unwrap(), Some(failed.clone()));
    assert_eq!(
        tx.job_of_promotion(failed.promotion_id).await.unwrap(),
        Some(failed.clone())
    );
    let history = tx.transitions(EntityKind::Job, failed.id.uuid()).await.unwrap();
    let told: Vec<_> = history
        .iter()
        .map(|row| (row.seq, row.from.as_str(), row.to.as_str()))
        .collect();
    assert_eq!(told, [(1, "queued", "running"), (2, "running", "failed")]);
    assert_eq!(history[1].failure, Some(failure()));
}

async fn a_lost_update_of_a_job_is_a_conflict(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let start = async || {
        let mut tx = world.db.write().await?;
        tx.apply_job_event(&made.job, &JobEvent::Started, "x", at(1))
            .await?;
        tx.commit().await
    };
    let cancel = async || {
        let mut tx = world.db.write().await?;
        tx.request_job_stop(&made.job, &stop("no"), "x", at(1)).await?;
        tx.commit().await
    };
    let (started, cancelled) = futures::join!(start(), cancel());
    assert!(started.is_ok() ^ cancelled.is_ok(), "{started:?} {cancelled:?}");
    let lost = started.and(cancelled);
    assert!(matches!(lost, Err(StoreError::Conflict)), "{lost:?}");
}

async fn a_stop_is_asked_for_once(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let stopping = tx
        .request_job_stop(&made.job, &stop("wrong release"), "user/alice", at(1))
        .await
        .unwrap();
    assert_eq!(
        (stopping.stop.clone(), stopping.version),
        (Some(stop("wrong release")), 1)
    );
    assert_eq!(
        tx.request_job_stop(&stopping, &stop("again"), "user/bob", at(2))
            .await
            .unwrap(),
        stopping
    );
    let history = tx.transitions(EntityKind::Job, made.job.id.uuid()).await.unwrap();
    assert_eq!(history.len(), 1);
    assert_eq!(
        (history[0].event.as_str(), history[0].detail.as_str()),
        ("stop_requested", "wrong release")
    );
    let ended = tx
        .apply_job_event(&stopping, &JobEvent::Cancelled, "x", at(3))
        .await
        .unwrap();
    assert_eq!(
        tx.request_job_stop(&ended, &stop("late"), "x", at(4))
            .await
            .unwrap(),
        ended
    );
}

async fn a_stronger_wish_to_stop_takes_the_place_of_a_weaker_one(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let mut job = seed.deployment(&world.db, at(0)).await.job;
    let mut tx = world.db.write().await.unwrap();
    let wishes = [
        StopWish::Finish,
        StopWish::Cancel,
        StopWish::Fail,
        StopWish::RollBack,
    ];
    for wish in wishes {
        let stronger = Stop { wish, ..stop("now") };
        job = tx.request_job_stop(&job, &stronger, "x", at(1)).await.unwrap();
        assert_eq!(job.stop, Some(stronger));
        for no_stronger in [wish, StopWish::Finish] {
            let late = Stop {
                wish: no_stronger,
                ..stop("late")
            };
            assert_eq!(tx.request_job_stop(&job, &late, "x", at(2)).await.unwrap(), job);
        }
    }
    let history = tx.transitions(EntityKind::Job, job.id.uuid()).await.unwrap();
    assert_eq!(history.len(), wishes.len(), "only those that counted");
}

async fn a_promotion_has_one_job(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let made = seed.deployment(&world.db, at(0)).await;
    let mut tx = world.db.write().await.unwrap();
    let refused = seed.job(&mut tx, &made.promotion, at(1)).await;
    assert!(
        matches!(
            refused,
            Err(StoreError::Duplicate {
                constraint: "job_of_promotion"
            })
        ),
        "{refused:?}"
    );
}

async fn r14_nobody_steers_a_job_whose_orders_are_being_made(world: World) {
    let seed = Seed::sow(&world.db, "acme", 1).await;
    let job = seed.deployment(&world.db, at(0)).await.job;
    let mut orders = world.db.write().await.unwrap();
    assert!(orders.lock_job(&job).await.unwrap());
    let stop = Stop {
        wish: StopWish::Cancel,
        failure: failure(),
    };
    let steer = async {
        let mut tx = world.db.write().await.unwrap();
        tx.request_job_stop(&job, &stop, "user/ada", at(1)).await.unwrap();
        tx.commit().await.unwrap();
    };
    let mut steer = std::pin::pin!(steer);
    let early = tokio::time::timeout(Duration::from_millis(100), &mut steer).await;
    assert!(
        early.is_err(),
        "a stop is acknowledged while orders are being made"
    );
    orders.commit().await.unwrap();
    steer.await;
    let mut late = world.db.write().await.unwrap();
    assert!(!late.lock_job(&job).await.unwrap(), "orders after the stop");
}
