//! Gates that close while a job is under way: no wave begins behind one, what runs ends, and it goes on as the gate is of a kind.

use chrono::TimeDelta;
use sealift_common::{
    decision::{Gate, HoldFacts, Verdict},
    failure::FailureCode,
    gates::{Held, Meanwhile, answer_again, closed_meanwhile},
    id::HoldId,
    job::{JobEvent, JobState, Pause, StopWish},
    name::ProjectRef,
    promotion::PromotionKind,
    recipe::OnFailure,
    rollout::Next,
    strategy::{Share, Strategy as Way},
    task::TaskPhase,
};

use crate::job::{Host, Job, PROGRESS, closed, start, stop};

const ROLLING: Way = Way::Rolling {
    max_parallel: Share::Count(2),
    by: None,
    pause_ms: 0,
};

/// A job of three waves whose first one runs, and whose gate has closed meanwhile.
fn half_way(on_failure: OnFailure, verdict: Verdict) -> Job {
    let mut job = Job::of(&ROLLING, 6, on_failure);
    job.settle();
    job.closed_gate = Some(closed(verdict, "closed"));
    job
}

#[test]
fn r5_a_gate_that_closes_stops_the_next_wave_and_no_running_task() {
    for verdict in [Verdict::Wait, Verdict::Fail] {
        let mut job = half_way(OnFailure::Stop, verdict);
        assert_eq!(job.settle(), Next::Wait(Some(start() + PROGRESS)));
        assert_eq!((&job.paused, job.live().len()), (&None, 2), "they run on");
        job.succeed_all();
        assert_eq!(job.settle(), Next::Wait(None));
        assert_eq!(job.paused, Some(Pause::Gate(closed(verdict, "closed"))));
        assert_eq!(job.opened, [0]);
        // However long that takes.
        job.pass(PROGRESS * 100);
        assert_eq!(job.settle(), Next::Wait(None));
        assert_eq!(job.stop, None);
    }
}

#[test]
fn a_gate_that_opens_lets_the_job_go_on_by_itself_only_where_it_was_waited_for() {
    let mut job = half_way(OnFailure::Stop, Verdict::Wait);
    job.succeed_all();
    job.settle();
    job.pass(PROGRESS * 3);
    job.closed_gate = None;
    assert_eq!(
        job.settle(),
        Next::Wait(Some(job.now + PROGRESS)),
        "the deadline begins anew"
    );
    assert_eq!((&job.paused, job.opened.as_slice()), (&None, &[0, 1][..]));

    let mut job = half_way(OnFailure::Stop, Verdict::Fail);
    job.succeed_all();
    job.settle();
    job.closed_gate = None;
    assert_eq!(job.settle(), Next::Wait(None), "a person closed it");
    job.resume();
    job.settle();
    assert_eq!((&job.paused, job.opened.as_slice()), (&None, &[0, 1][..]));
}

#[test]
fn a_person_who_resumes_has_the_gates_asked_again() {
    for verdict in [Verdict::Wait, Verdict::Fail] {
        let mut job = half_way(OnFailure::Stop, verdict);
        job.succeed_all();
        job.settle();
        job.closed_gate = Some(closed(verdict, "closed otherwise"));
        job.resume();
        job.settle();
        assert_eq!(job.paused, Some(Pause::Gate(closed(verdict, "closed otherwise"))));
        assert_eq!(job.opened, [0]);
    }
    // Also after a pause that has nothing to do with gates.
    let mut job = Job::of(&ROLLING, 4, OnFailure::Stop);
    job.settle();
    job.pause(Pause::Operator);
    job.succeed_all();
    job.closed_gate = Some(closed(Verdict::Wait, "closed"));
    job.settle();
    assert_eq!(job.paused, Some(Pause::Operator), "one reason at a time");
    job.resume();
    job.settle();
    assert!(matches!(job.paused, Some(Pause::Gate(_))));
}

#[test]
fn what_is_told_of_a_gate_is_what_it_says_now() {
    let mut job = half_way(OnFailure::Stop, Verdict::Wait);
    job.succeed_all();
    job.settle();
    for verdict in [Verdict::Wait, Verdict::Fail] {
        job.closed_gate = Some(closed(verdict, "another one"));
        job.settle();
        assert_eq!(job.paused, Some(Pause::Gate(closed(verdict, "another one"))));
    }
    // From here on a person is needed.
    job.closed_gate = Some(closed(Verdict::Wait, "a third"));
    job.settle();
    assert_eq!(
        job.paused,
        Some(Pause::Gate(closed(Verdict::Fail, "another one")))
    );
}

#[test]
fn what_a_person_must_end_does_not_end_with_the_gate() {
    let mut job = half_way(OnFailure::Pause, Verdict::Wait);
    job.succeed_all();
    job.settle();
    job.pause(Pause::Operator);
    job.closed_gate = None;
    assert_eq!(job.settle(), Next::Wait(None));
    assert_eq!(job.paused, Some(Pause::Operator));

    // A member that waits for its host keeps the wave open; the other one fails behind the gate.
    let mut job = Job::of(&ROLLING, 2, OnFailure::Pause);
    job.tasks[1].host = Host::Away;
    job.settle();
    job.closed_gate = Some(closed(Verdict::Wait, "closed"));
    job.settle();
    assert!(matches!(job.paused, Some(Pause::Gate(_))));
    job.set(0, TaskPhase::Failed);
    job.settle();
    assert_eq!(job.paused, Some(Pause::Failures));
    job.closed_gate = None;
    assert_eq!(job.settle(), Next::Wait(None));
}

#[test]
fn a_late_host_gets_no_order_behind_a_closed_gate() {
    let mut job = Job::of(&Way::AllAtOnce {}, 2, OnFailure::Stop);
    job.tasks[1].host = Host::Away;
    job.settle();
    job.closed_gate = Some(closed(Verdict::Wait, "closed"));
    job.tasks[1].host = Host::There;
    job.settle();
    assert_eq!(job.tasks[1].phase, TaskPhase::Pending);
    // What runs has no deadline meanwhile, and ends.
    job.pass(PROGRESS * 2);
    job.settle();
    assert_eq!(job.stop, None);
    job.set(0, TaskPhase::Succeeded);
    job.settle();
    job.closed_gate = None;
    job.settle();
    assert_eq!(job.tasks[1].phase, TaskPhase::Assigned);
}

#[test]
fn r14_a_job_behind_a_gate_can_be_stopped() {
    for (wish, end) in [
        (StopWish::Cancel, Next::End(JobEvent::Cancelled)),
        (StopWish::Finish, Next::End(JobEvent::Cancelled)),
        (
            StopWish::RollBack,
            Next::RollBack(stop(StopWish::RollBack, FailureCode::Aborted).failure),
        ),
    ] {
        let mut job = half_way(OnFailure::Stop, Verdict::Fail);
        job.succeed_all();
        job.settle();
        job.stop = Some(stop(wish, FailureCode::Aborted));
        assert_eq!(job.settle(), end);
    }
}

#[test]
fn a_gate_stops_neither_a_bake_nor_the_end() {
    let way = Way::Canary {
        first: Share::Count(1),
        bake_ms: 60_000,
        promote: sealift_common::strategy::CanaryPromotion::Automatic,
        max_parallel: Share::ALL,
    };
    let mut job = Job::of(&way, 3, OnFailure::Stop);
    job.settle();
    job.closed_gate = Some(closed(Verdict::Wait, "closed"));
    job.succeed_all();
    assert_eq!(job.settle(), Next::Wait(Some(start() + TimeDelta::minutes(1))));
    job.pass(TimeDelta::minutes(1));
    job.settle();
    assert!(
        matches!(job.paused, Some(Pause::Gate(_))),
        "it has baked, and the rest waits"
    );
    job.closed_gate = None;
    job.settle();
    job.closed_gate = Some(closed(Verdict::Fail, "closed"));
    job.succeed_all();
    assert_eq!(
        job.settle(),
        Next::End(JobEvent::Completed),
        "nothing is left to begin"
    );
}

/// Every pause against every other: only one behind a gate gives way.
#[test]
fn the_newest_reason_counts_behind_a_gate_and_nowhere_else() {
    let pauses = [
        Pause::Operator,
        Pause::Canary,
        Pause::Failures,
        Pause::Gate(closed(Verdict::Wait, "one")),
        Pause::Gate(closed(Verdict::Fail, "two")),
    ];
    for before in &pauses {
        for why in &pauses {
            let state = JobState::Paused { why: before.clone() };
            let next = state.apply(&JobEvent::Paused { why: why.clone() }).unwrap();
            let gives_way = matches!(before, Pause::Gate(_)) && before != why;
            let wanted = gives_way.then(|| JobState::Paused { why: why.clone() });
            assert_eq!(next, wanted, "{before:?} {why:?}");
        }
    }
}

#[test]
fn a_hold_is_asked_about_again_and_stops_no_rollback() {
    let environment = "staging".parse().unwrap();
    let project: ProjectRef = "github.com/acme/shop/api".parse().unwrap();
    let facts = HoldFacts {
        id: HoldId::from(uuid::Uuid::from_u128(7)),
        placed_by: "user/ada".to_owned(),
        reason: "a look first".to_owned(),
    };
    let held = Held {
        environment: &environment,
        project: &project,
        hold: &facts,
    };
    let meanwhile = |kind, is_held: bool| Meanwhile {
        kind,
        held: is_held.then_some(held),
    };
    let closed = closed_meanwhile(&meanwhile(PromotionKind::Deploy, true)).unwrap();
    assert_eq!(
        (closed.gate, closed.verdict, closed.reason.as_str()),
        (Gate::Hold, Verdict::Wait, "LANE_HELD")
    );
    assert!(closed.message.contains("a look first") && closed.advice.contains("sealift hold lift"));
    assert_eq!(closed_meanwhile(&meanwhile(PromotionKind::Rollback, true)), None);
    assert_eq!(closed_meanwhile(&meanwhile(PromotionKind::Deploy, false)), None);
    // What a job has settled by its start is not asked again.
    let asked: Vec<_> = Gate::ALL
        .iter()
        .filter(|gate| answer_again(**gate, &meanwhile(PromotionKind::Deploy, true)).is_some())
        .collect();
    assert_eq!(asked, [&Gate::Hold]);
}
