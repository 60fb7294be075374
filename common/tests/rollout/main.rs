//! Waves and what a job does next: examples, and in `properties.rs` what holds over random fleets, random fates of tasks and
//! random wishes of operators.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod gates;
mod job;
mod properties;

use std::collections::BTreeSet;

use chrono::TimeDelta;
use sealift_common::{
    decision::Verdict,
    failure::FailureCode,
    id::TargetId,
    job::{JobEvent, Pause, StopWish},
    recipe::{FailurePolicy, OnFailure},
    rollout::Next,
    strategy::{CanaryPromotion, Share, Strategy as Way, Then},
    task::TaskPhase,
};

use job::{Host, Job, PROGRESS, closed, fleet, plan, start, stop};

fn canary(promote: CanaryPromotion) -> Way {
    Way::Canary {
        first: Share::Count(1),
        bake_ms: 60_000,
        promote,
        max_parallel: Share::ALL,
    }
}

#[test]
fn a_canary_bakes_before_the_rest_begins() {
    let mut job = Job::of(&canary(CanaryPromotion::Automatic), 4, OnFailure::Stop);
    job.settle();
    assert_eq!(job.live().len(), 1);
    job.succeed_all();
    assert_eq!(job.settle(), Next::Wait(Some(start() + TimeDelta::minutes(1))));
    job.pass(TimeDelta::seconds(59));
    job.settle();
    assert_eq!(job.live().len(), 0, "still baking");
    job.pass(TimeDelta::seconds(1));
    job.settle();
    assert_eq!(job.live().len(), 3);
    job.succeed_all();
    assert_eq!(job.settle(), Next::End(JobEvent::Completed));
}

#[test]
fn a_canary_that_a_person_must_let_pass_waits_for_as_long_as_it_takes() {
    let mut job = Job::of(&canary(CanaryPromotion::Manual), 3, OnFailure::Stop);
    job.settle();
    job.succeed_all();
    job.settle();
    job.pass(TimeDelta::minutes(1));
    job.settle();
    assert_eq!(job.paused, Some(Pause::Canary));
    // Nomad: the progress deadline must not fail a deployment that waits for a person, nor one that was promoted late.
    job.pass(TimeDelta::days(3));
    assert_eq!(job.settle(), Next::Wait(None));
    job.resume();
    job.settle();
    assert_eq!(
        (job.live().len(), job.stop.clone()),
        (2, None),
        "no stale deadline after promote"
    );
    assert_eq!(job.progress_due(), Some(job.now + PROGRESS));
}

#[test]
fn a_canary_that_fails_leaves_all_others_untouched() {
    let mut job = Job::of(&canary(CanaryPromotion::Automatic), 5, OnFailure::Stop);
    job.settle();
    let canary = job.live()[0];
    job.set(canary, TaskPhase::Failed);
    assert!(matches!(job.settle(), Next::End(JobEvent::Failed { .. })));
    assert_eq!(job.opened, [0]);
}

#[test]
fn a_canary_of_which_nothing_succeeds_fails_the_job_whatever_is_tolerated() {
    for promote in [CanaryPromotion::Automatic, CanaryPromotion::Manual] {
        for on_failure in [OnFailure::Stop, OnFailure::RollBack, OnFailure::Pause] {
            let tolerated = Share::Percent(50);
            let failures = FailurePolicy {
                tolerated,
                on_failure,
            };
            let mut job = Job::new(&plan(&canary(promote), &fleet(6)), failures);
            job.settle();
            job.set(0, TaskPhase::Failed);
            job.settle();
            job.pass(TimeDelta::minutes(1));
            let step = job.settle();
            assert_eq!(job.opened, [0], "{promote} {on_failure}: {step:?}");
            if on_failure == OnFailure::Pause {
                assert_eq!(job.paused, Some(Pause::Failures));
            } else {
                assert!(matches!(step, Next::End(JobEvent::Failed { .. })), "{step:?}");
            }
        }
    }
}

#[test]
fn a_person_who_lets_a_canary_pass_is_asked_also_when_a_part_of_it_failed() {
    let way = Way::Canary {
        first: Share::Count(2),
        bake_ms: 60_000,
        promote: CanaryPromotion::Manual,
        max_parallel: Share::ALL,
    };
    // Tolerated, and where the recipe goes on whatever fails also when all of it did.
    for (on_failure, second) in [
        (OnFailure::Stop, TaskPhase::Succeeded),
        (OnFailure::Continue, TaskPhase::Failed),
    ] {
        let tolerated = Share::Percent(50);
        let failures = FailurePolicy {
            tolerated,
            on_failure,
        };
        let mut job = Job::new(&plan(&way, &fleet(6)), failures);
        job.settle();
        job.set(0, TaskPhase::Failed);
        job.set(1, second);
        job.settle();
        job.pass(TimeDelta::minutes(1));
        job.settle();
        assert_eq!((&job.paused, job.live().len()), (&Some(Pause::Canary), 0));
        job.resume();
        job.settle();
        assert_eq!(job.live().len(), 4);
    }
}

#[test]
fn r14_the_progress_deadline_still_counts_when_too_many_failed_already() {
    for (on_failure, wish) in [
        (OnFailure::Stop, StopWish::Fail),
        (OnFailure::RollBack, StopWish::RollBack),
    ] {
        let mut job = Job::of(&Way::AllAtOnce {}, 3, on_failure);
        job.settle();
        job.set(0, TaskPhase::Succeeded);
        job.set(1, TaskPhase::Failed);
        assert_eq!(job.settle(), Next::Wait(Some(job.now + PROGRESS)));
        job.pass(PROGRESS);
        job.settle();
        assert_eq!(job.stop.as_ref().map(|stop| stop.wish), Some(wish));
        job.set(2, TaskPhase::Cancelled);
        // What failed first is the reason, not what hung afterwards.
        let (Next::RollBack(failure) | Next::End(JobEvent::Failed { failure })) = job.settle() else {
            panic!("{job:?}");
        };
        assert_eq!(failure.code, FailureCode::Unhealthy);
    }
}

#[test]
fn the_progress_deadline_stands_still_while_paused_and_begins_anew_on_resume() {
    let mut job = Job::of(&Way::AllAtOnce {}, 2, OnFailure::Stop);
    job.settle();
    job.paused = Some(Pause::Operator);
    job.pass(PROGRESS * 3);
    assert_eq!(job.settle(), Next::Wait(None), "never fails while paused");
    job.resume();
    assert_eq!(job.settle(), Next::Wait(Some(job.now + PROGRESS)), "begins anew");
    job.pass(PROGRESS);
    job.settle();
    assert_eq!(job.stop.as_ref().map(|stop| stop.wish), Some(StopWish::Fail));
    for index in job.live() {
        job.set(index, TaskPhase::Cancelled);
    }
    let Next::End(JobEvent::Failed { failure }) = job.settle() else {
        panic!("{job:?}");
    };
    assert_eq!(failure.code, FailureCode::ProgressDeadline);
}

#[test]
fn r15_a_job_that_hung_has_failed_whatever_the_recipe_says_about_failures() {
    for on_failure in OnFailure::ALL {
        let mut job = Job::of(&Way::AllAtOnce {}, 2, *on_failure);
        job.settle();
        job.pass(PROGRESS);
        job.settle();
        for index in job.live() {
            job.set(index, TaskPhase::Cancelled);
        }
        let Next::End(JobEvent::Failed { failure }) = job.settle() else {
            panic!("{on_failure}: {job:?}");
        };
        assert_eq!(failure.code, FailureCode::ProgressDeadline);
    }
    // Who aborts a job of which nothing had come ends it by a wish, not by a failure.
    let mut job = Job::of(&Way::AllAtOnce {}, 2, OnFailure::RollBack);
    job.settle();
    job.stop = Some(stop(StopWish::RollBack, FailureCode::Aborted));
    for index in job.live() {
        job.set(index, TaskPhase::Cancelled);
    }
    assert_eq!(job.settle(), Next::End(JobEvent::Cancelled));
}

#[test]
fn r15_a_release_that_runs_nowhere_is_no_success() {
    let ends = |hosts: &[Host], failures: FailurePolicy| {
        let mut job = Job::new(&plan(&Way::AllAtOnce {}, &fleet(hosts.len())), failures);
        for (task, host) in job.tasks.iter_mut().zip(hosts) {
            task.host = *host;
        }
        job.settle();
        job.succeed_all();
        match job.settle() {
            Next::End(JobEvent::Completed) => None,
            Next::End(JobEvent::Failed { failure }) => Some(failure.code),
            step => panic!("{step:?}"),
        }
    };
    let tolerated = |tolerated| FailurePolicy {
        tolerated,
        on_failure: OnFailure::Stop,
    };
    let none = tolerated(Share::NONE);
    assert_eq!(
        ends(&[Host::LeftOut, Host::LeftOut], none),
        Some(FailureCode::NothingChanged)
    );
    assert_eq!(
        ends(&[Host::LeftOut, Host::There], none),
        None,
        "it runs somewhere"
    );
    assert_eq!(
        ends(&[Host::LeftOut, Host::HasIt], none),
        None,
        "it ran there already"
    );
    assert_eq!(
        ends(&[Host::HasIt, Host::HasIt], none),
        None,
        "nothing was to be done"
    );
    let all = tolerated(Share::ALL);
    assert_eq!(
        ends(&[Host::Drained, Host::LeftOut], all),
        Some(FailureCode::AgentDraining),
        "failures that are tolerated are not successes"
    );
}

#[test]
fn a_job_that_hung_and_came_to_a_good_end_is_no_failure() {
    let mut job = Job::of(&Way::AllAtOnce {}, 2, OnFailure::RollBack);
    job.settle();
    job.pass(PROGRESS);
    job.settle();
    assert!(job.stop.is_some(), "they are to stop");
    job.succeed_all();
    assert_eq!(
        job.settle(),
        Next::End(JobEvent::Completed),
        "but were done before"
    );
}

#[test]
fn every_healthy_target_extends_the_progress_deadline() {
    let mut job = Job::of(&Way::AllAtOnce {}, 3, OnFailure::Stop);
    job.settle();
    for _ in 0..2 {
        job.pass(PROGRESS - TimeDelta::seconds(1));
        let first = job.live()[0];
        job.set(first, TaskPhase::Succeeded);
        job.settle();
        assert_eq!(job.stop, None);
    }
}

#[test]
fn a_second_evaluation_opens_nothing_more() {
    let way = Way::Rolling {
        max_parallel: Share::Count(2),
        by: None,
        pause_ms: 0,
    };
    let mut job = Job::of(&way, 6, OnFailure::Stop);
    job.settle();
    for _ in 0..5 {
        job.settle();
        assert_eq!(job.live().len(), 2);
    }
    let first = job.live()[0];
    job.set(first, TaskPhase::Succeeded);
    job.settle();
    assert_eq!(
        job.live().len(),
        1,
        "the next wave waits for the whole of this one"
    );
}

#[test]
fn a_canary_whose_host_is_drained_before_its_order_does_not_stall() {
    // Left out: the canary proves nothing, and the rest follows after the bake.
    for promote in [CanaryPromotion::Automatic, CanaryPromotion::Manual] {
        let mut job = Job::of(&canary(promote), 3, OnFailure::Stop);
        job.tasks[0].host = Host::LeftOut;
        assert_eq!(job.settle(), Next::Wait(Some(start() + TimeDelta::minutes(1))));
        job.pass(TimeDelta::minutes(1));
        job.settle();
        assert_eq!((&job.paused, job.live().len()), (&None, 2));
    }
    // A failure: nothing else is touched.
    let mut job = Job::of(&canary(CanaryPromotion::Automatic), 3, OnFailure::Stop);
    job.tasks[0].host = Host::Drained;
    let Next::End(JobEvent::Failed { failure }) = job.settle() else {
        panic!("{job:?}");
    };
    assert_eq!(failure.code, FailureCode::AgentDraining);
}

#[test]
fn a_host_that_comes_back_late_has_the_whole_progress_deadline() {
    let mut job = Job::of(&Way::AllAtOnce {}, 2, OnFailure::Stop);
    job.tasks[1].host = Host::Away;
    job.settle();
    job.set(0, TaskPhase::Succeeded);
    job.pass(PROGRESS * 3);
    assert_eq!(job.settle(), Next::OpenWave(0), "it is waited for");
    job.tasks[1].host = Host::There;
    assert_eq!(job.settle(), Next::Wait(Some(job.now + PROGRESS)));
    job.pass(PROGRESS);
    job.settle();
    assert_eq!(job.stop.map(|stop| stop.wish), Some(StopWish::Fail));
}

#[test]
fn a_cancel_that_lets_finish_keeps_what_finishes_and_begins_nothing_more() {
    let way = Way::Rolling {
        max_parallel: Share::Count(2),
        by: None,
        pause_ms: 0,
    };
    let mut job = Job::of(&way, 5, OnFailure::RollBack);
    job.settle();
    job.succeed_all();
    job.settle();
    job.stop = Some(stop(StopWish::Finish, FailureCode::Cancelled));
    assert_eq!(job.settle(), Next::Wait(Some(job.now + PROGRESS)));
    assert_eq!(job.tasks[4].phase, TaskPhase::Cancelled);
    job.succeed_all();
    assert_eq!(job.settle(), Next::End(JobEvent::Cancelled));
}

#[test]
fn what_may_finish_is_stopped_when_it_hangs() {
    let mut job = Job::of(&Way::AllAtOnce {}, 2, OnFailure::RollBack);
    job.settle();
    job.stop = Some(stop(StopWish::Finish, FailureCode::Cancelled));
    job.settle();
    job.pass(PROGRESS);
    assert_eq!(job.settle(), Next::Wait(None));
    assert_eq!(job.stop.as_ref().map(|stop| stop.wish), Some(StopWish::Cancel));
    for index in job.live() {
        job.set(index, TaskPhase::Cancelled);
    }
    assert_eq!(job.settle(), Next::End(JobEvent::Cancelled), "nothing is undone");
}

#[test]
fn r14_what_may_finish_of_a_paused_job_has_the_progress_deadline_and_no_more() {
    let mut job = Job::of(&Way::AllAtOnce {}, 2, OnFailure::Stop);
    job.settle();
    job.paused = Some(Pause::Operator);
    job.pass(PROGRESS * 5);
    assert_eq!(job.settle(), Next::Wait(None));
    job.finish();
    assert_eq!(job.settle(), Next::Wait(Some(job.now + PROGRESS)), "from now on");
    job.pass(PROGRESS);
    job.settle();
    assert_eq!(job.stop.as_ref().map(|stop| stop.wish), Some(StopWish::Cancel));

    // Whatever paused it: a job that is to finish never waits without an end.
    let mut job = Job::of(&Way::AllAtOnce {}, 2, OnFailure::Stop);
    job.settle();
    job.finish();
    let gate = Pause::Gate(closed(Verdict::Fail, "closed"));
    for why in [Pause::Operator, Pause::Canary, Pause::Failures, gate] {
        job.paused = Some(why.clone());
        assert_eq!(job.settle(), Next::Wait(Some(job.now + PROGRESS)), "{why:?}");
    }
}

#[test]
fn failures_stop_nothing_when_the_recipe_says_so() {
    let way = Way::Rolling {
        max_parallel: Share::Count(1),
        by: None,
        pause_ms: 0,
    };
    let mut job = Job::of(&way, 3, OnFailure::Continue);
    for phase in [TaskPhase::Failed, TaskPhase::Succeeded, TaskPhase::Failed] {
        job.settle();
        let only = job.live()[0];
        job.set(only, phase);
    }
    let Next::End(JobEvent::Failed { failure }) = job.settle() else {
        panic!("it does not tell the truth: {job:?}");
    };
    assert_eq!(failure.code, FailureCode::Unhealthy);
    assert_eq!(job.opened, [0, 1, 2]);
}

#[test]
fn what_succeeded_is_undone_when_the_recipe_says_so_and_only_then() {
    let way = Way::Rolling {
        max_parallel: Share::Count(1),
        by: None,
        pause_ms: 0,
    };
    for (on_failure, undone) in [(OnFailure::RollBack, true), (OnFailure::Stop, false)] {
        let mut job = Job::of(&way, 3, on_failure);
        job.settle();
        job.succeed_all();
        job.settle();
        let second = job.live()[0];
        job.set(second, TaskPhase::Failed);
        assert_eq!(matches!(job.settle(), Next::RollBack(_)), undone, "{on_failure}");
    }
    let mut job = Job::of(&way, 3, OnFailure::RollBack);
    job.settle();
    let first = job.live()[0];
    job.set(first, TaskPhase::Failed);
    assert!(
        matches!(job.settle(), Next::End(JobEvent::Failed { .. })),
        "nothing was changed"
    );
}

#[test]
fn failures_that_are_accepted_pause_no_second_time() {
    let way = Way::Rolling {
        max_parallel: Share::Count(1),
        by: None,
        pause_ms: 0,
    };
    let mut job = Job::of(&way, 3, OnFailure::Pause);
    job.settle();
    let first = job.live()[0];
    job.set(first, TaskPhase::Failed);
    job.settle();
    assert_eq!(job.paused, Some(Pause::Failures));
    job.resume();
    job.settle();
    assert_eq!(job.live().len(), 1);
    job.succeed_all();
    job.settle();
    let last = job.live()[0];
    job.set(last, TaskPhase::Failed);
    job.settle();
    assert_eq!(
        job.paused,
        Some(Pause::Failures),
        "a new failure is a new question"
    );
}

#[test]
fn no_wave_holds_targets_of_two_regions() {
    let way = Way::Rolling {
        max_parallel: Share::Count(2),
        by: Some("region".into()),
        pause_ms: 5,
    };
    let fleet = fleet(9);
    let planned = plan(&way, &fleet);
    let region = |id: &TargetId| {
        let (_, _, labels) = fleet.iter().find(|(_, other, _)| other == id).unwrap();
        labels.get("region").cloned()
    };
    let regions: Vec<BTreeSet<_>> = planned
        .iter()
        .map(|wave| wave.targets.iter().map(region).collect())
        .collect();
    assert!(regions.iter().all(|values| values.len() == 1), "{regions:?}");
    let order: Vec<_> = regions
        .iter()
        .map(|values| values.first().unwrap().clone())
        .collect();
    let eu = Some("eu".to_owned());
    let us = Some("us".to_owned());
    assert_eq!(order, [eu.clone(), eu, us.clone(), us, None, None]);
    assert_eq!(
        planned.last().unwrap().then,
        Then::Next {},
        "no pause after the end"
    );
}
