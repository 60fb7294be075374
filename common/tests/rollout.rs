//! Waves and what a job does next: properties over random fleets, random fates of tasks and random wishes of operators.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use sealift_common::{
    failure::{Failure, FailureCode},
    id::TargetId,
    job::{JobEvent, PauseReason, Stop, StopWish},
    name::{Labels, Name},
    recipe::{FailurePolicy, OnFailure},
    rollout::{Next, Situation, Tally, WaveSummary, next},
    strategy::{CanaryPromotion, Place, Share, Strategy as Way, Then, Wave, waves},
    task::{SkipReason, TaskPhase},
};

const PROGRESS: TimeDelta = TimeDelta::minutes(30);

fn fleet(count: usize) -> Vec<(Name, TargetId, Labels)> {
    (0..count)
        .map(|index| {
            let region = ["eu", "us"]
                .get(index % 3)
                .map(|value| ("region".to_owned(), (*value).to_owned()));
            (
                format!("t{index}").parse().unwrap(),
                TargetId::from(uuid::Uuid::from_u128(index as u128 + 1)),
                region.into_iter().collect(),
            )
        })
        .collect()
}

fn plan(way: &Way, fleet: &[(Name, TargetId, Labels)]) -> Vec<Wave> {
    let places: Vec<_> = fleet
        .iter()
        .map(|(name, id, labels)| Place {
            name,
            id: *id,
            labels,
        })
        .collect();
    waves(way, &places)
}

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

fn stop(wish: StopWish, code: FailureCode) -> Stop {
    Stop {
        wish,
        failure: Failure::new(code, "stopped"),
    }
}

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

/// A wave as the job of the test keeps it.
#[derive(Debug, Clone)]
struct Stage {
    then: Then,
    settled_at: Option<DateTime<Utc>>,
    passed: bool,
}

/// A task as the job of the test keeps it.
#[derive(Debug, Clone)]
struct Task {
    wave: u32,
    phase: TaskPhase,
    failure: Option<Failure>,
    skipped: Option<SkipReason>,
}

fn tally<'a>(tasks: impl IntoIterator<Item = &'a Task>) -> Tally {
    let mut tally = Tally::default();
    for task in tasks {
        tally.add(task.phase, task.skipped, 1);
    }
    tally
}

/// A job that is carried out by following [`next`], as the scheduler does.
#[derive(Debug, Clone)]
struct Job {
    waves: Vec<Stage>,
    tasks: Vec<Task>,
    stop: Option<Stop>,
    paused: Option<PauseReason>,
    failures: FailurePolicy,
    accepted_failures: u32,
    progress_due: Option<DateTime<Utc>>,
    now: DateTime<Utc>,
    /// The most that were under way at the same time.
    busiest: usize,
    opened: Vec<u32>,
    end: Option<Next>,
}

impl Job {
    fn new(planned: &[Wave], failures: FailurePolicy) -> Self {
        let tasks = (0_u32..).zip(planned).flat_map(|(wave, members)| {
            members.targets.iter().map(move |_| Task {
                wave,
                phase: TaskPhase::Pending,
                failure: None,
                skipped: None,
            })
        });
        Self {
            waves: planned
                .iter()
                .map(|wave| Stage {
                    then: wave.then,
                    settled_at: None,
                    passed: false,
                })
                .collect(),
            tasks: tasks.collect(),
            stop: None,
            paused: None,
            failures,
            accepted_failures: 0,
            progress_due: None,
            now: start(),
            busiest: 0,
            opened: Vec::new(),
            end: None,
        }
    }

    fn of(way: &Way, targets: usize, on_failure: OnFailure) -> Self {
        let failures = FailurePolicy {
            tolerated: Share::NONE,
            on_failure,
        };
        Self::new(&plan(way, &fleet(targets)), failures)
    }

    fn next(&self) -> Next {
        let ahead = (0_u32..).zip(&self.waves).filter(|(_, wave)| !wave.passed);
        let waves: Vec<_> = ahead
            .map(|(ordinal, wave)| WaveSummary {
                ordinal,
                then: wave.then,
                settled_at: wave.settled_at,
                tasks: tally(self.tasks.iter().filter(|task| task.wave == ordinal)),
            })
            .collect();
        let situation = Situation {
            waves: &waves,
            tasks: tally(&self.tasks),
            first_failure: self.tasks.iter().find_map(|task| task.failure.as_ref()),
            stop: self.stop.as_ref(),
            paused: self.paused,
            failures: self.failures,
            accepted_failures: self.accepted_failures,
            progress_due: self.progress_due,
            now: self.now,
        };
        let step = next(&situation);
        // The scheduler reads no more than the first wave that has tasks.
        let first = waves.iter().position(|wave| !wave.tasks.is_empty());
        let behind = Situation {
            waves: first.map_or(&[], |first| &waves[first..=first]),
            ..situation
        };
        assert_eq!(next(&behind), step, "waves behind the first decide nothing");
        step
    }

    fn live(&self) -> Vec<usize> {
        (0..self.tasks.len())
            .filter(|index| self.tasks[*index].phase.is_live())
            .collect()
    }

    fn set(&mut self, index: usize, phase: TaskPhase) {
        self.tasks[index].phase = phase;
        if phase == TaskPhase::Failed {
            self.tasks[index].failure = Some(Failure::new(FailureCode::Unhealthy, "unhealthy"));
        }
        if phase == TaskPhase::Succeeded && self.progress_due.is_some() {
            self.progress_due = Some(self.now + PROGRESS);
        }
    }

    /// Follows until it waits or has ended.
    fn settle(&mut self) -> Next {
        for _ in 0..self.tasks.len() * 4 + 16 {
            let step = self.next();
            match &step {
                Next::Wait(_) => return step,
                Next::OpenWave(wave) => {
                    self.opened.push(*wave);
                    for task in self.tasks.iter_mut().filter(|task| task.wave == *wave) {
                        if task.phase == TaskPhase::Pending {
                            task.phase = TaskPhase::Assigned;
                        }
                    }
                    self.progress_due = Some(self.now + PROGRESS);
                    self.busiest = self.busiest.max(self.live().len());
                }
                Next::SettleWave(wave) => {
                    self.waves[*wave as usize].settled_at = Some(self.now);
                    self.progress_due = None;
                }
                Next::PassWave(wave) => self.waves[*wave as usize].passed = true,
                Next::CloseRest => {
                    let withdrawn = self.stop.as_ref().is_some_and(|stop| stop.wish != StopWish::Fail);
                    let (phase, skipped) = if withdrawn {
                        (TaskPhase::Cancelled, None)
                    } else {
                        (TaskPhase::Skipped, Some(SkipReason::EarlierWaveFailed))
                    };
                    for task in self
                        .tasks
                        .iter_mut()
                        .filter(|task| task.phase == TaskPhase::Pending)
                    {
                        task.phase = phase;
                        task.skipped = skipped;
                    }
                }
                Next::Pause(reason) => {
                    self.paused = Some(*reason);
                    self.progress_due = None;
                }
                Next::Halt => self.stop = Some(stop(StopWish::Fail, FailureCode::ProgressDeadline)),
                Next::RollBack(_) | Next::End(_) => {
                    self.end = Some(step.clone());
                    return step;
                }
            }
        }
        panic!("it never waits: {self:?}");
    }

    /// What a person does to let a paused job go on.
    fn resume(&mut self) {
        match self.paused.take() {
            Some(PauseReason::Canary) => {
                let waiting = self.waves.iter_mut().find(|wave| !wave.passed).unwrap();
                waiting.passed = true;
            }
            Some(PauseReason::Failures) => {
                let missed = self
                    .tasks
                    .iter()
                    .filter(|task| matches!(task.phase, TaskPhase::Failed | TaskPhase::Cancelled));
                self.accepted_failures = missed.count() as u32;
            }
            Some(PauseReason::Operator) | None => {}
        }
        if !self.live().is_empty() {
            self.progress_due = Some(self.now + PROGRESS);
        }
    }

    fn succeed_all(&mut self) {
        for index in self.live() {
            self.set(index, TaskPhase::Succeeded);
        }
    }
}

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
    job.now += TimeDelta::seconds(59);
    job.settle();
    assert_eq!(job.live().len(), 0, "still baking");
    job.now += TimeDelta::seconds(1);
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
    job.now += TimeDelta::minutes(1);
    job.settle();
    assert_eq!(job.paused, Some(PauseReason::Canary));
    // Nomad: the progress deadline must not fail a deployment that waits for a person, nor one that was promoted late.
    job.now += TimeDelta::days(3);
    assert_eq!(job.settle(), Next::Wait(None));
    job.resume();
    job.settle();
    assert_eq!(
        (job.live().len(), job.stop.clone()),
        (2, None),
        "no stale deadline after promote"
    );
    assert_eq!(job.progress_due, Some(job.now + PROGRESS));
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
fn the_progress_deadline_stands_still_while_paused_and_begins_anew_on_resume() {
    let mut job = Job::of(&Way::AllAtOnce {}, 2, OnFailure::Stop);
    job.settle();
    job.paused = Some(PauseReason::Operator);
    job.progress_due = None;
    job.now += PROGRESS * 3;
    assert_eq!(job.settle(), Next::Wait(None), "never fails while paused");
    job.resume();
    assert_eq!(job.settle(), Next::Wait(Some(job.now + PROGRESS)), "begins anew");
    job.now += PROGRESS;
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
fn a_job_that_hung_and_came_to_a_good_end_is_no_failure() {
    let mut job = Job::of(&Way::AllAtOnce {}, 2, OnFailure::RollBack);
    job.settle();
    job.now += PROGRESS;
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
        job.now += PROGRESS - TimeDelta::seconds(1);
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
fn a_target_that_is_skipped_does_not_stall_a_canary() {
    let mut job = Job::of(&canary(CanaryPromotion::Automatic), 3, OnFailure::Stop);
    // Its host is drained before it got its order: skipped, not waited for.
    job.tasks[0].phase = TaskPhase::Skipped;
    job.tasks[0].skipped = Some(SkipReason::Offline);
    job.settle();
    job.now += TimeDelta::minutes(1);
    job.settle();
    assert_eq!(job.live().len(), 2);
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
    assert_eq!(job.paused, Some(PauseReason::Failures));
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
        Some(PauseReason::Failures),
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
        happenings in prop::collection::vec((any::<prop::sample::Index>(), 0..14_u8), 0..120),
    ) {
        let planned = plan(&way, &fleet(targets));
        let widest = planned.iter().map(|wave| wave.targets.len()).max().unwrap_or(0);
        let mut job = Job::new(&planned, FailurePolicy { tolerated, on_failure });
        let mut happenings = happenings.into_iter();
        for _ in 0..targets * 40 + 400 {
            let step = job.settle();
            if job.end.is_some() {
                break;
            }
            let live = job.live();
            let pick = |pick: prop::sample::Index| (!live.is_empty()).then(|| live[pick.index(live.len())]);
            // When the happenings run out, everything works and everybody agrees.
            match happenings.next() {
                Some((at, 0 | 1)) => if let Some(index) = pick(at) { job.set(index, TaskPhase::Failed) },
                Some((_, 2)) if job.stop.is_none() => job.stop = Some(stop(StopWish::Cancel, FailureCode::Cancelled)),
                Some((_, 3)) if job.stop.is_none() => job.stop = Some(stop(StopWish::RollBack, FailureCode::Aborted)),
                Some((_, 4)) if job.paused.is_none() => { job.paused = Some(PauseReason::Operator); job.progress_due = None; }
                Some((_, 5)) => job.now += PROGRESS,
                Some((at, 6)) => if let Some(index) = pick(at) { job.set(index, TaskPhase::Cancelled) },
                Some((at, 7)) => if let Some(index) = pick(at) { job.set(index, TaskPhase::Lost) },
                Some((at, _)) => if let Some(index) = pick(at) { job.set(index, TaskPhase::Succeeded) },
                None if job.paused.is_some() => job.resume(),
                None => match (step, live.first()) {
                    (_, Some(index)) => { let index = *index; job.set(index, TaskPhase::Succeeded); }
                    (Next::Wait(Some(until)), None) => job.now = until,
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
        match job.end.unwrap() {
            Next::End(JobEvent::Completed) if job.stop.is_none() && on_failure != OnFailure::Continue => {
                let touched = targets - count(TaskPhase::Skipped);
                prop_assert!(missed <= tolerated.of(touched).max(job.accepted_failures as usize), "success tells the truth");
            }
            Next::RollBack(_) => prop_assert!(count(TaskPhase::Succeeded) > 0 && (missed > 0 || job.stop.is_some())),
            _ => {}
        }
    }
}
