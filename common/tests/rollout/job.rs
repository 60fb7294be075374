//! A job of these tests, which is carried out by following [`next`], as the scheduler does.

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    decision::{Gate, GateAnswer, Verdict},
    failure::{Failure, FailureCode},
    id::TargetId,
    job::{JobEvent, JobState, Pause, Stop, StopWish},
    name::{Labels, Name},
    recipe::{FailurePolicy, OnFailure},
    rollout::{Next, Progress, Situation, Tally, WaveSummary, next},
    strategy::{Place, Share, Strategy as Way, Then, Wave, waves},
    task::{SkipReason, TaskPhase},
};

/// The progress deadline of every job.
pub const PROGRESS: TimeDelta = TimeDelta::minutes(30);

pub fn fleet(count: usize) -> Vec<(Name, TargetId, Labels)> {
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

pub fn plan(way: &Way, fleet: &[(Name, TargetId, Labels)]) -> Vec<Wave> {
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

pub fn stop(wish: StopWish, code: FailureCode) -> Stop {
    Stop {
        wish,
        failure: Failure::new(code, "stopped"),
    }
}

/// A gate that has closed.
pub fn closed(verdict: Verdict, message: &str) -> GateAnswer {
    GateAnswer {
        gate: Gate::Hold,
        verdict,
        reason: "LANE_HELD".to_owned(),
        message: message.to_owned(),
        advice: "lift it".to_owned(),
    }
}

pub fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

/// A wave as the job of the test keeps it.
#[derive(Debug, Clone)]
pub struct Stage {
    pub then: Then,
    pub opened_at: Option<DateTime<Utc>>,
    pub settled_at: Option<DateTime<Utc>>,
    pub approved: bool,
    pub passed: bool,
}

/// What the agent of a target is found to do when an order is to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Host {
    /// It takes orders.
    There,
    /// It is away, and the recipe waits for it.
    Away,
    /// It is being drained, and the recipe leaves such targets alone.
    LeftOut,
    /// It is being drained, and the recipe says nothing about that.
    Drained,
    /// It runs the wanted set already.
    HasIt,
}

/// A task as the job of the test keeps it.
#[derive(Debug, Clone)]
pub struct Task {
    pub wave: u32,
    pub phase: TaskPhase,
    pub host: Host,
    pub failure: Option<Failure>,
    pub skipped: Option<SkipReason>,
    begun_at: Option<DateTime<Utc>>,
    ended_at: Option<DateTime<Utc>>,
}

fn tally<'a>(tasks: impl IntoIterator<Item = &'a Task>) -> Tally {
    let mut tally = Tally::default();
    for task in tasks {
        tally.add(task.phase, task.skipped, 1);
    }
    tally
}

/// The job.
#[derive(Debug, Clone)]
pub struct Job {
    pub waves: Vec<Stage>,
    pub tasks: Vec<Task>,
    pub stop: Option<Stop>,
    pub paused: Option<Pause>,
    /// The gate that is closed now.
    pub closed_gate: Option<GateAnswer>,
    failures: FailurePolicy,
    pub accepted_failures: u32,
    resumed_at: Option<DateTime<Utc>>,
    pub now: DateTime<Utc>,
    /// How long, without a break, something was under way that nobody had paused and nothing became of: counted here, so that the
    /// deadline is not asked about itself.
    pub hung: TimeDelta,
    /// The most that were under way at the same time.
    pub busiest: usize,
    pub opened: Vec<u32>,
    pub end: Option<Next>,
}

impl Job {
    pub fn new(planned: &[Wave], failures: FailurePolicy) -> Self {
        let tasks = (0_u32..).zip(planned).flat_map(|(wave, members)| {
            members.targets.iter().map(move |_| Task {
                wave,
                phase: TaskPhase::Pending,
                host: Host::There,
                failure: None,
                skipped: None,
                begun_at: None,
                ended_at: None,
            })
        });
        Self {
            waves: planned
                .iter()
                .map(|wave| Stage {
                    then: wave.then,
                    opened_at: None,
                    settled_at: None,
                    approved: false,
                    passed: false,
                })
                .collect(),
            tasks: tasks.collect(),
            stop: None,
            paused: None,
            closed_gate: None,
            failures,
            accepted_failures: 0,
            resumed_at: None,
            now: start(),
            hung: TimeDelta::zero(),
            busiest: 0,
            opened: Vec::new(),
            end: None,
        }
    }

    pub fn of(way: &Way, targets: usize, on_failure: OnFailure) -> Self {
        let failures = FailurePolicy {
            tolerated: Share::NONE,
            on_failure,
        };
        Self::new(&plan(way, &fleet(targets)), failures)
    }

    fn members(&self, wave: u32) -> impl Iterator<Item = &Task> {
        self.tasks.iter().filter(move |task| task.wave == wave)
    }

    pub fn progress_due(&self) -> Option<DateTime<Utc>> {
        let mut ahead = (0_u32..).zip(&self.waves).filter(|(_, wave)| !wave.passed);
        let (ordinal, wave) = ahead.find(|(ordinal, _)| self.members(*ordinal).next().is_some())?;
        let succeeded = |task: &&Task| task.phase == TaskPhase::Succeeded;
        let progress = Progress {
            opened_at: wave.opened_at.filter(|_| wave.settled_at.is_none()),
            last_begun: self.members(ordinal).filter_map(|task| task.begun_at).max(),
            last_success: self
                .members(ordinal)
                .filter(succeeded)
                .filter_map(|task| task.ended_at)
                .max(),
            resumed_at: self.resumed_at,
        };
        progress.due(PROGRESS)
    }

    fn next(&self) -> Next {
        let ahead = (0_u32..).zip(&self.waves).filter(|(_, wave)| !wave.passed);
        let waves: Vec<_> = ahead
            .map(|(ordinal, wave)| WaveSummary {
                ordinal,
                then: wave.then,
                settled_at: wave.settled_at,
                approved: wave.approved,
                tasks: tally(self.members(ordinal)),
            })
            .collect();
        let situation = Situation {
            waves: &waves,
            tasks: tally(&self.tasks),
            first_failure: self.tasks.iter().find_map(|task| task.failure.as_ref()),
            stop: self.stop.as_ref(),
            paused: self.paused.as_ref(),
            closed_gate: self.closed_gate.as_ref(),
            failures: self.failures,
            accepted_failures: self.accepted_failures,
            progress_due: self.progress_due(),
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

    pub fn live(&self) -> Vec<usize> {
        (0..self.tasks.len())
            .filter(|index| self.tasks[*index].phase.is_live())
            .collect()
    }

    pub fn set(&mut self, index: usize, phase: TaskPhase) {
        let task = &mut self.tasks[index];
        task.phase = phase;
        task.ended_at = phase.is_terminal().then_some(self.now);
        if phase == TaskPhase::Failed {
            task.failure = Some(Failure::new(FailureCode::Unhealthy, "unhealthy"));
        }
        if phase == TaskPhase::Succeeded {
            self.hung = TimeDelta::zero();
        }
    }

    /// Time goes by.
    pub fn pass(&mut self, time: TimeDelta) {
        self.now += time;
        if self.paused.is_none() && !self.live().is_empty() {
            self.hung += time;
        }
    }

    /// Makes orders for the pending tasks of a wave whose hosts take them; answers whether any task changed.
    fn open(&mut self, wave: u32) -> bool {
        assert_eq!(self.closed_gate, None, "nothing begins behind a closed gate");
        let now = self.now;
        let mut changed = false;
        for task in self.tasks.iter_mut().filter(|task| task.wave == wave) {
            if task.phase != TaskPhase::Pending || task.host == Host::Away {
                continue;
            }
            changed = true;
            match task.host {
                Host::There | Host::Away => {
                    task.phase = TaskPhase::Assigned;
                    task.begun_at = Some(now);
                    self.hung = TimeDelta::zero();
                }
                Host::LeftOut => {
                    task.phase = TaskPhase::Skipped;
                    task.skipped = Some(SkipReason::Offline);
                }
                Host::HasIt => {
                    task.phase = TaskPhase::Skipped;
                    task.skipped = Some(SkipReason::AlreadyRunning);
                }
                Host::Drained => {
                    task.phase = TaskPhase::Failed;
                    task.failure = Some(Failure::new(FailureCode::AgentDraining, "drained"));
                }
            }
        }
        if changed {
            self.opened.push(wave);
            self.waves[wave as usize].opened_at.get_or_insert(now);
            self.busiest = self.busiest.max(self.live().len());
        }
        changed
    }

    fn close_rest(&mut self) {
        let withdrawn = self.stop.as_ref().is_some_and(|stop| stop.wish != StopWish::Fail);
        let (phase, skipped) = if withdrawn {
            (TaskPhase::Cancelled, None)
        } else {
            (TaskPhase::Skipped, Some(SkipReason::EarlierWaveFailed))
        };
        let pending = self.tasks.iter_mut();
        for task in pending.filter(|task| task.phase == TaskPhase::Pending) {
            task.phase = phase;
            task.skipped = skipped;
        }
    }

    fn halt(&mut self, failure: Failure) {
        assert_eq!(
            self.paused, None,
            "the progress deadline never passes while paused"
        );
        assert!(
            self.hung >= PROGRESS,
            "a stale deadline: it hung for {} only",
            self.hung
        );
        let wish = match &self.stop {
            Some(stop) => {
                assert_eq!(stop.wish, StopWish::Finish);
                StopWish::Cancel
            }
            None if self.failures.on_failure == OnFailure::RollBack => StopWish::RollBack,
            None => StopWish::Fail,
        };
        self.stop = Some(Stop { wish, failure });
    }

    /// Follows until it waits or has ended.
    pub fn settle(&mut self) -> Next {
        for _ in 0..self.tasks.len() * 4 + 16 {
            let step = self.next();
            match &step {
                Next::Wait(until) => {
                    self.check_wait(*until);
                    return step;
                }
                // All that are left of the wave are waited for.
                Next::OpenWave(wave) => {
                    if !self.open(*wave) {
                        return step;
                    }
                }
                Next::SettleWave(wave) => self.waves[*wave as usize].settled_at = Some(self.now),
                Next::PassWave(wave) => self.waves[*wave as usize].passed = true,
                Next::CloseRest => self.close_rest(),
                Next::Pause(why) => self.pause(why.clone()),
                Next::Resume => {
                    assert_eq!(self.closed_gate, None, "the gate is open");
                    assert!(
                        matches!(&self.paused, Some(Pause::Gate(told)) if told.verdict == Verdict::Wait),
                        "nothing else ends by itself: {:?}",
                        self.paused
                    );
                    self.go_on();
                }
                Next::Halt(failure) => self.halt(failure.clone()),
                Next::RollBack(_) | Next::End(_) => {
                    self.end = Some(step.clone());
                    return step;
                }
            }
        }
        panic!("it never waits: {self:?}");
    }

    /// Nothing waits but for a person, for a host, or until a moment that is known: no more than what follows the wave.
    fn check_wait(&self, until: Option<DateTime<Utc>>) {
        if self.paused.is_some() || !self.live().is_empty() {
            return;
        }
        let wave = self.waves.iter().find(|wave| !wave.passed).unwrap();
        let due = wave.settled_at.unwrap() + TimeDelta::milliseconds(wave.then.ms().into());
        assert_eq!(until, Some(due));
        assert!(due > self.now, "it does not wait for what has passed");
    }

    /// It is paused, as the state machine says.
    pub fn pause(&mut self, why: Pause) {
        let state = match self.paused.take() {
            Some(why) => JobState::Paused { why },
            None => JobState::Running,
        };
        let next = state.apply(&JobEvent::Paused { why }).unwrap().unwrap_or(state);
        self.paused = next.pause().cloned();
    }

    fn go_on(&mut self) {
        self.paused = None;
        self.resumed_at = Some(self.now);
        self.hung = TimeDelta::zero();
    }

    /// What a person does to let a paused job go on.
    pub fn resume(&mut self) {
        match self.paused.take() {
            Some(Pause::Canary) => {
                let waiting = self.waves.iter_mut().find(|wave| !wave.passed).unwrap();
                waiting.approved = true;
            }
            Some(Pause::Failures) => {
                let missed = self
                    .tasks
                    .iter()
                    .filter(|task| matches!(task.phase, TaskPhase::Failed | TaskPhase::Cancelled));
                self.accepted_failures = missed.count() as u32;
            }
            Some(Pause::Operator | Pause::Gate(_)) | None => {}
        }
        self.go_on();
    }

    /// What a person does to end a job and let finish what is under way. Nobody lets it go on later, so it is not paused any more.
    pub fn finish(&mut self) {
        self.stop = Some(stop(StopWish::Finish, FailureCode::Cancelled));
        if self.paused.is_some() {
            self.go_on();
        }
    }

    pub fn succeed_all(&mut self) {
        for index in self.live() {
            self.set(index, TaskPhase::Succeeded);
        }
    }
}
