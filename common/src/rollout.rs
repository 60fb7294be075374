//! Rollout: what a running job does next, as its waves and tasks tell. One pure function, so that the restart of an orchestrator,
//! a second evaluation and the ordinary course are the same thing.

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    failure::{Failure, FailureCode},
    job::{JobEvent, PauseReason, Stop, StopWish},
    recipe::{FailurePolicy, OnFailure},
    strategy::Then,
    task::{SkipReason, TaskPhase},
};

/// One task as its job sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSummary {
    /// Which wave it belongs to.
    pub wave: u32,
    /// Its phase.
    pub phase: TaskPhase,
    /// Why it failed, when it did.
    pub failure: Option<Failure>,
    /// Why it was left alone, when it was.
    pub skipped: Option<SkipReason>,
}

/// One wave as its job sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaveSummary {
    /// What must happen after it.
    pub then: Then,
    /// When its last task ended.
    pub settled_at: Option<DateTime<Utc>>,
    /// Whether the next one may open.
    pub passed: bool,
}

/// Everything that the decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The waves, by ordinal.
    pub waves: &'a [WaveSummary],
    /// The tasks.
    pub tasks: &'a [TaskSummary],
    /// Whether it is to end before its time.
    pub stop: Option<&'a Stop>,
    /// Whether it waits for a person.
    pub paused: Option<PauseReason>,
    /// What counts as too many failures.
    pub failures: FailurePolicy,
    /// So many failures a person has accepted by letting the job go on.
    pub accepted_failures: u32,
    /// When the next target must be healthy; `None` while no wave is worked on.
    pub progress_due: Option<DateTime<Utc>>,
    /// The present.
    pub now: DateTime<Utc>,
}

/// What a job needs next. Lost tasks keep a job from ending: only the host knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Next {
    /// Nothing until something happens, or until then.
    Wait(Option<DateTime<Utc>>),
    /// Make orders for the pending tasks of this wave.
    OpenWave(u32),
    /// The last task of this wave has ended: write down when.
    SettleWave(u32),
    /// The wave was watched for long enough: see that it still runs, then let the next one open.
    PassWave(u32),
    /// The pending tasks of all waves are skipped or withdrawn first.
    CloseRest,
    /// A person has to look.
    Pause(PauseReason),
    /// No target became healthy for too long: whatever is under way is to stop.
    Halt,
    /// All has ended: undo what succeeded.
    RollBack(Failure),
    /// All has ended: this is how.
    End(JobEvent),
}

/// What a running or paused job needs next.
pub fn next(job: &Situation<'_>) -> Next {
    let counts = Counts::of(job.tasks);
    let too_many = counts.missed > counts.tolerated(job);
    let closing = job.stop.is_some()
        || (too_many && matches!(job.failures.on_failure, OnFailure::Stop | OnFailure::RollBack));
    if closing {
        return match (counts.pending, counts.live) {
            (0, 0) => conclude(job, &counts),
            (0, _) => Next::Wait(None),
            _ => Next::CloseRest,
        };
    }
    if too_many && job.failures.on_failure == OnFailure::Pause && job.paused != Some(PauseReason::Failures) {
        // Also over another pause: the person must see this one.
        return if job.paused.is_none() {
            Next::Pause(PauseReason::Failures)
        } else {
            Next::Wait(None)
        };
    }
    if job.paused.is_some() {
        return Next::Wait(None);
    }
    if counts.live > 0 && job.progress_due.is_some_and(|due| due <= job.now) {
        return Next::Halt;
    }
    for (ordinal, wave) in (0_u32..).zip(job.waves) {
        let mut members = job.tasks.iter().filter(|task| task.wave == ordinal).peekable();
        if members.peek().is_none() {
            continue;
        }
        let (mut pending, mut live) = (false, false);
        for task in members {
            pending |= task.phase == TaskPhase::Pending;
            live |= task.phase.is_live();
        }
        // A wave opens whole: members that are still pending wait for their target or their agent.
        match (pending, live) {
            (true, _) => return Next::OpenWave(ordinal),
            (false, true) => return Next::Wait(job.progress_due),
            (false, false) => {}
        }
        if let Some(step) = pass(job, ordinal, *wave) {
            return step;
        }
    }
    // Tasks of no wave at all must not be forgotten.
    if counts.pending > 0 {
        return Next::CloseRest;
    }
    if counts.live > 0 {
        return Next::Wait(None);
    }
    conclude(job, &counts)
}

/// What follows a wave all of whose tasks have ended; `None` when the next one may open.
fn pass(job: &Situation<'_>, ordinal: u32, wave: WaveSummary) -> Option<Next> {
    if wave.passed {
        return None;
    }
    let Some(settled_at) = wave.settled_at else {
        return Some(Next::SettleWave(ordinal));
    };
    let due = settled_at + TimeDelta::milliseconds(wave.then.ms().into());
    if due > job.now {
        return Some(Next::Wait(Some(due)));
    }
    // Nothing to prove where nothing was changed.
    let proved = job
        .tasks
        .iter()
        .any(|task| task.wave == ordinal && task.phase == TaskPhase::Succeeded);
    Some(match wave.then {
        Then::Approve { .. } if proved => Next::Pause(PauseReason::Canary),
        _ => Next::PassWave(ordinal),
    })
}

#[derive(Debug, Default)]
struct Counts {
    pending: usize,
    live: usize,
    succeeded: usize,
    failed: usize,
    cancelled: usize,
    /// Failed, or stopped by their agents without being asked: their targets run the set before.
    missed: usize,
    /// Left alone because the job was closing.
    closed: usize,
    /// All that were to change.
    touched: usize,
}

impl Counts {
    fn of(tasks: &[TaskSummary]) -> Self {
        let mut counts = Self::default();
        for task in tasks {
            match task.phase {
                TaskPhase::Pending => counts.pending += 1,
                TaskPhase::Assigned | TaskPhase::Accepted | TaskPhase::Running | TaskPhase::Lost => {
                    counts.live += 1;
                }
                TaskPhase::Succeeded => counts.succeeded += 1,
                TaskPhase::Failed => counts.failed += 1,
                TaskPhase::Cancelled => counts.cancelled += 1,
                TaskPhase::Skipped => {
                    counts.closed += usize::from(task.skipped == Some(SkipReason::EarlierWaveFailed));
                }
            }
        }
        counts.missed = counts.failed + counts.cancelled;
        counts.touched = counts.pending + counts.live + counts.succeeded + counts.missed;
        counts
    }

    fn tolerated(&self, job: &Situation<'_>) -> usize {
        job.failures
            .tolerated
            .of(self.touched)
            .max(job.accepted_failures as usize)
    }
}

/// How a job ends all of whose tasks have ended.
fn conclude(job: &Situation<'_>, counts: &Counts) -> Next {
    let first_failure = || {
        let first = job.tasks.iter().find_map(|task| task.failure.clone());
        first.unwrap_or_else(|| Failure::new(FailureCode::Internal, "a task failed without a cause"))
    };
    let too_many = counts.missed > counts.tolerated(job);
    let undo = counts.succeeded > 0;
    match (job.stop, job.failures.on_failure) {
        // All that hung came to a good end after all.
        (Some(stop), _)
            if stop.failure.code == FailureCode::ProgressDeadline && counts.missed + counts.closed == 0 =>
        {
            Next::End(JobEvent::Completed)
        }
        (Some(Stop { wish, failure }), _) => match wish {
            StopWish::RollBack if undo => Next::RollBack(failure.clone()),
            StopWish::Fail => Next::End(JobEvent::Failed {
                failure: failure.clone(),
            }),
            StopWish::Cancel | StopWish::RollBack => ended_anyway(counts, first_failure),
        },
        (None, OnFailure::RollBack) if too_many && undo => Next::RollBack(first_failure()),
        (None, _) if too_many => ended_anyway(counts, first_failure),
        (None, _) => Next::End(JobEvent::Completed),
    }
}

/// The end that the tasks tell. A stop that came when everything had ended well stopped nothing.
fn ended_anyway(counts: &Counts, first_failure: impl Fn() -> Failure) -> Next {
    Next::End(if counts.failed > 0 {
        JobEvent::Failed {
            failure: first_failure(),
        }
    } else if counts.cancelled > 0 {
        JobEvent::Cancelled
    } else {
        JobEvent::Completed
    })
}
