//! What holds whatever happens.

use std::collections::BTreeSet;

use proptest::prelude::*;
use sealift_common::{
    decision::Verdict,
    failure::FailureCode,
    job::{JobEvent, Pause, StopWish},
    recipe::{FailurePolicy, OnFailure},
    rollout::Next,
    strategy::{CanaryPromotion, Share, Strategy as Way},
    task::{SkipReason, TaskPhase},
};

use crate::job::{Host, Job, PROGRESS, Task, closed, fleet, plan, stop};

/// Most hosts are there.
const HOSTS: &[Host] = &[
    Host::There,
    Host::There,
    Host::There,
    Host::Away,
    Host::LeftOut,
    Host::Drained,
    Host::HasIt,
];

fn share() -> impl Strategy<Value = Share> {
    prop_oneof![
        (1..9_u32).prop_map(Share::Count),
        (1..=100_u8).prop_map(Share::Percent)
    ]
}

fn way() -> impl Strategy<Value = Way> {
    prop_oneof![
        Just(Way::AllAtOnce {}),
        (share(), prop::option::of(Just("region".to_owned())), 0..2_u32).prop_map(
            |(max_parallel, by, pause)| Way::Rolling {
                max_parallel,
                by,
                pause_ms: pause * 60_000
            }
        ),
        (
            share(),
            0..2_u32,
            prop::sample::select(CanaryPromotion::ALL),
            share()
        )
            .prop_map(|(first, bake, promote, max_parallel)| Way::Canary {
                first,
                bake_ms: bake * 60_000,
                promote,
                max_parallel
            }),
        Just(Way::BlueGreen { bake_ms: 1 }),
    ]
}

proptest! {
    #[test]
    fn waves_hold_every_target_once_without_gaps(
        way in way(),
        (sorted, shuffled) in (0..40_usize).prop_flat_map(|count| (Just(fleet(count)), Just(fleet(count)).prop_shuffle())),
    ) {
        let planned = plan(&way, &shuffled);
        prop_assert_eq!(&planned, &plan(&way, &sorted), "the order of the targets does not matter");
        prop_assert!(planned.iter().all(|wave| !wave.targets.is_empty()), "no gaps");
        let all: Vec<_> = planned.iter().flat_map(|wave| &wave.targets).collect();
        let distinct: BTreeSet<_> = all.iter().collect();
        prop_assert_eq!((all.len(), distinct.len()), (sorted.len(), sorted.len()));
        let most = match &way {
            Way::AllAtOnce {} | Way::BlueGreen { .. } => sorted.len(),
            Way::Rolling { max_parallel, .. } => max_parallel.at_least_one(sorted.len()),
            Way::Canary { first, max_parallel, .. } => {
                let first = first.at_least_one(sorted.len());
                prop_assert!(planned.first().is_none_or(|wave| wave.targets.len() <= first));
                first.max(max_parallel.at_least_one(sorted.len()))
            }
        };
        prop_assert!(planned.iter().all(|wave| wave.targets.len() <= most));
    }

    /// Whatever happens, a job ends (unless a task is lost or a person is asked), in order, within its limits, and tells the truth.
    #[test]
    fn i18_every_job_ends_in_order_and_within_its_limits(
        way in way(), targets in 1..12_usize,
        tolerated in prop_oneof![Just(Share::NONE), share()], on_failure in prop::sample::select(OnFailure::ALL),
        hosts in prop::collection::vec(prop::sample::select(HOSTS), 12),
        happenings in prop::collection::vec((any::<prop::sample::Index>(), 0..20_u8), 0..120),
    ) {
        let planned = plan(&way, &fleet(targets));
        let widest = planned.iter().map(|wave| wave.targets.len()).max().unwrap_or(0);
        let mut job = Job::new(&planned, FailurePolicy { tolerated, on_failure });
        for (task, host) in job.tasks.iter_mut().zip(hosts) {
            task.host = host;
        }
        let mut happenings = happenings.into_iter();
        for _ in 0..targets * 40 + 400 {
            let step = job.settle();
            if job.end.is_some() {
                break;
            }
            let live = job.live();
            // A second evaluation of the same situation.
            let mut again = job.clone();
            prop_assert_eq!((again.settle(), again.live()), (step.clone(), live.clone()), "nothing more is begun");
            let pick = |pick: prop::sample::Index| (!live.is_empty()).then(|| live[pick.index(live.len())]);
            // When the happenings run out, everything works and everybody agrees.
            match happenings.next() {
                Some((at, 0 | 1)) => if let Some(index) = pick(at) { job.set(index, TaskPhase::Failed) },
                Some((_, 2)) if job.stop.is_none() => job.stop = Some(stop(StopWish::Cancel, FailureCode::Cancelled)),
                Some((_, 3)) if job.stop.is_none() => job.stop = Some(stop(StopWish::RollBack, FailureCode::Aborted)),
                Some((_, 4)) if job.stop.is_none() => job.pause(Pause::Operator),
                Some((_, 5)) => job.pass(PROGRESS),
                Some((at, 8)) => job.pass(PROGRESS / 100 * at.index(99) as i32),
                Some((_, 9)) if job.stop.is_none() => job.finish(),
                Some((_, 9)) => if let Some(asked) = &mut job.stop && asked.wish == StopWish::Finish { asked.wish = StopWish::Cancel },
                Some((at, 10)) => { let index = at.index(job.tasks.len()); job.tasks[index].host = Host::There; }
                Some((_, 11)) => job.closed_gate = Some(closed(Verdict::Wait, "until it opens")),
                Some((_, 12)) => job.closed_gate = Some(closed(Verdict::Fail, "until a person opens it")),
                Some((_, 13)) => job.closed_gate = None,
                Some((at, 6)) => if let Some(index) = pick(at) { job.set(index, TaskPhase::Cancelled) },
                Some((at, 7)) => if let Some(index) = pick(at) { job.set(index, TaskPhase::Lost) },
                Some((at, _)) => if let Some(index) = pick(at) { job.set(index, TaskPhase::Succeeded) },
                None if job.closed_gate.is_some() => job.closed_gate = None,
                None if job.paused.is_some() => job.resume(),
                None => match (step, live.first()) {
                    (_, Some(index)) => { let index = *index; job.set(index, TaskPhase::Succeeded); }
                    (Next::Wait(Some(until)), None) => job.pass(until - job.now),
                    (Next::OpenWave(_), None) => for task in &mut job.tasks { task.host = Host::There },
                    (step, None) => prop_assert!(false, "it waits for nothing: {:?} {:?}", step, job),
                },
            }
        }
        prop_assert!(job.end.is_some(), "{:?}", job);
        prop_assert!(job.busiest <= widest, "never more at the same time than planned");
        prop_assert!(job.opened.windows(2).all(|pair| pair[0] <= pair[1]), "waves in order: {:?}", job.opened);
        prop_assert!(job.tasks.iter().all(|task| task.phase.is_terminal()));
        let count = |phase| job.tasks.iter().filter(|task| task.phase == phase).count();
        let missed = count(TaskPhase::Failed) + count(TaskPhase::Cancelled);
        if job.end == Some(Next::End(JobEvent::Completed)) {
            let runs = |task: &Task| task.phase == TaskPhase::Succeeded || task.skipped == Some(SkipReason::AlreadyRunning);
            prop_assert!(job.tasks.iter().any(runs), "what runs nowhere is no success: {:?}", job);
        }
        match job.end.unwrap() {
            Next::End(JobEvent::Completed) if job.stop.is_none() && on_failure != OnFailure::Continue => {
                let touched = targets - count(TaskPhase::Skipped);
                prop_assert!(missed <= tolerated.of(touched).max(job.accepted_failures as usize), "success tells the truth");
            }
            Next::RollBack(_) => prop_assert!(count(TaskPhase::Succeeded) > 0 && (missed > 0 || job.stop.is_some())),
            _ => {}
        }
    }

    /// However long a job was paused, baked, or waited for a person or for absent hosts: while each target becomes healthy within
    /// the progress deadline of the moment before, no deadline passes, not even right after a promote.
    #[test]
    fn no_deadline_ever_comes_of_waiting(
        way in way(), targets in 1..10_usize, hosts in prop::collection::vec(prop::sample::select(HOSTS), 10),
        waits in prop::collection::vec((0..3_u8, 0..2_000_i32), 1..60),
    ) {
        let mut job = Job::new(&plan(&way, &fleet(targets)), FailurePolicy { tolerated: Share::ALL, on_failure: OnFailure::Stop });
        for (task, host) in job.tasks.iter_mut().zip(hosts) {
            task.host = host;
        }
        for (round, (what, share)) in waits.into_iter().cycle().take(400).enumerate() {
            let step = job.settle();
            prop_assert_eq!(&job.stop, &None);
            if job.end.is_some() {
                break;
            }
            // Days, where nothing is under way that could hang.
            let long = PROGRESS * share;
            match (step, job.live().first().copied()) {
                _ if job.paused.is_some() => {
                    job.pass(long);
                    if job.closed_gate.take().is_none() { job.resume() }
                }
                (Next::OpenWave(_), None) => {
                    job.pass(long);
                    for task in &mut job.tasks { task.host = Host::There }
                }
                (Next::Wait(Some(until)), None) => job.pass(until - job.now + long),
                (_, None) => prop_assert!(false, "{:?}", job),
                (_, Some(_)) if what == 0 && round < 200 => job.pause(Pause::Operator),
                (_, Some(_)) if what == 1 && round < 200 => job.closed_gate = Some(closed(Verdict::Wait, "closed")),
                (_, Some(index)) => {
                    job.pass(PROGRESS / 2_000 * share);
                    prop_assert!(matches!(job.settle(), Next::Wait(_) | Next::OpenWave(_)));
                    job.set(index, TaskPhase::Succeeded);
                }
            }
        }
        prop_assert!(job.end.is_some(), "{:?}", job);
    }
}
