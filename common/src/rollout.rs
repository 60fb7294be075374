//! Rollout: what a running job does next, as its waves and tasks tell. One pure function, so that the restart of an orchestrator,
//! a second evaluation and the ordinary course are the same thing.

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    decision::{GateAnswer, Verdict},
    failure::{Failure, FailureCode},
    job::{JobEvent, Pause, Stop, StopWish},
    recipe::{FailurePolicy, OnFailure},
    strategy::Then,
    task::{SkipReason, TaskPhase},
};

/// How many tasks of a group stand where. What is decided about a job depends on nothing else of its tasks, so that a decision
/// costs the same for ten and for ten thousand of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Have no order yet.
    pub pending: u32,
    /// Are with their agents, or lost there.
    pub live: u32,
    /// Did what they should.
    pub succeeded: u32,
    /// Did not.
    pub failed: u32,
    /// Were withdrawn or stopped.
    pub cancelled: u32,
    /// Were left alone because the job was closing.
    pub closed: u32,
    /// Ran the wanted set already.
    pub unneeded: u32,
    /// Were left alone for another reason.
    pub skipped: u32,
}

impl Tally {
    /// Counts `tasks` more of one phase; of skipped ones with the reason.
    pub fn add(&mut self, phase: TaskPhase, skipped: Option<SkipReason>, tasks: u32) {
        let count = match phase {
            TaskPhase::Pending => &mut self.pending,
            TaskPhase::Assigned | TaskPhase::Accepted | TaskPhase::Running | TaskPhase::Lost => {
                &mut self.live
            }
            TaskPhase::Succeeded => &mut self.succeeded,
            TaskPhase::Failed => &mut self.failed,
            TaskPhase::Cancelled => &mut self.cancelled,
            TaskPhase::Skipped => match skipped {
                Some(SkipReason::EarlierWaveFailed) => &mut self.closed,
                Some(SkipReason::AlreadyRunning) => &mut self.unneeded,
                Some(SkipReason::Offline | SkipReason::Operator) | None => &mut self.skipped,
            },
        };
        *count = count.saturating_add(tasks);
    }

    /// Whether there are none at all.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Failed, or stopped by their agents without being asked: their targets run the set before.
    const fn missed(&self) -> usize {
        self.failed as usize + self.cancelled as usize
    }

    /// All that were to change.
    const fn touched(&self) -> usize {
        self.pending as usize + self.live as usize + self.succeeded as usize + self.missed()
    }
}

/// One wave that has not passed, as its job sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WaveSummary {
    /// Place in the order, from 0.
    pub ordinal: u32,
    /// What must happen after it.
    pub then: Then,
    /// When its last task ended.
    pub settled_at: Option<DateTime<Utc>>,
    /// Whether a person has let it pass, where one has to.
    pub approved: bool,
    /// Its tasks.
    pub tasks: Tally,
}

/// The moments from which the progress deadline of a job counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Progress {
    /// When the wave that is worked on was opened; `None` while none is.
    pub opened_at: Option<DateTime<Utc>>,
    /// When its newest target got its first order: later than the wave, where an absent agent was waited for.
    pub last_begun: Option<DateTime<Utc>>,
    /// When its newest success was.
    pub last_success: Option<DateTime<Utc>>,
    /// When a person last let the job go on.
    pub resumed_at: Option<DateTime<Utc>>,
}

impl Progress {
    /// When the next target must be healthy: `deadline` after the newest of these moments. `None` while no wave is worked on.
    pub fn due(&self, deadline: TimeDelta) -> Option<DateTime<Utc>> {
        let opened = self.opened_at?;
        let later = [self.last_begun, self.last_success, self.resumed_at];
        let since = later.into_iter().flatten().fold(opened, DateTime::max);
        Some(since + deadline)
    }
}

/// Everything that the decision is made from.
#[derive(Debug, Clone, Copy)]
pub struct Situation<'a> {
    /// The waves that have not passed, by ordinal. Those behind the first that has tasks decide nothing and may be left out.
    pub waves: &'a [WaveSummary],
    /// All tasks of the job.
    pub tasks: Tally,
    /// Why the first task failed, by wave and target, when one did.
    pub first_failure: Option<&'a Failure>,
    /// Whether it is to end before its time.
    pub stop: Option<&'a Stop>,
    /// Whether it waits for a person, or for a gate.
    pub paused: Option<&'a Pause>,
    /// The gate that keeps a wave from beginning now; `None` while all are open, or none was asked because nothing would begin.
    pub closed_gate: Option<&'a GateAnswer>,
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
    /// The wave was watched for long enough, and let pass by whoever has to: see that it still runs, then let the next one open.
    PassWave(u32),
    /// The pending tasks of all waves are skipped or withdrawn first.
    CloseRest,
    /// A person has to look, or a gate has closed. A canary is seen to run still before a person is asked about it.
    Pause(Pause),
    /// The gate is open again.
    Resume,
    /// No target became healthy for too long: whatever is under way is to stop, for this reason.
    Halt(Failure),
    /// All has ended: undo what succeeded.
    RollBack(Failure),
    /// All has ended: this is how.
    End(JobEvent),
}

/// What a running or paused job needs next.
pub fn next(job: &Situation<'_>) -> Next {
    let tasks = &job.tasks;
    let too_many = too_many(job);
    let closing = job.stop.is_some()
        || (too_many && matches!(job.failures.on_failure, OnFailure::Stop | OnFailure::RollBack));
    // A stop is a deadline of its own for agents; what may finish, or nobody has told to stop, still has that of the job. Nobody lets
    // go on later what may finish, so no pause holds its deadline up.
    let finishing = job.stop.is_some_and(|stop| stop.wish == StopWish::Finish);
    let counts = finishing || job.paused.is_none();
    let late = tasks.live > 0 && counts && job.progress_due.is_some_and(|due| due <= job.now);
    if closing {
        return match (tasks.pending, tasks.live) {
            (0, 0) => conclude(job),
            (0, _) if job.stop.is_some() && !finishing => Next::Wait(None),
            (0, _) if late => Next::Halt(hung(job)),
            (0, _) => Next::Wait(job.progress_due.filter(|_| counts)),
            _ => Next::CloseRest,
        };
    }
    if too_many && job.failures.on_failure == OnFailure::Pause {
        // Also over another pause: the person must see this one. One that ends by itself gives way at once.
        match job.paused {
            None | Some(Pause::Gate(_)) => return Next::Pause(Pause::Failures),
            Some(Pause::Failures | Pause::Operator | Pause::Canary) => return Next::Wait(None),
        }
    }
    match job.paused {
        Some(Pause::Gate(told)) => return behind_gate(told, job.closed_gate),
        Some(Pause::Operator | Pause::Canary | Pause::Failures) => return Next::Wait(None),
        None => {}
    }
    if late {
        return Next::Halt(hung(job));
    }
    if let Some(wave) = job.waves.iter().find(|wave| !wave.tasks.is_empty()) {
        // A wave opens whole: members that are still pending wait for their target or their agent. No gate stops what has begun.
        return match (wave.tasks.pending, wave.tasks.live, job.closed_gate) {
            (0, 0, _) => pass(job, wave),
            (0, _, _) => Next::Wait(job.progress_due),
            (_, _, Some(closed)) => Next::Pause(Pause::Gate(closed.clone())),
            (_, _, None) => Next::OpenWave(wave.ordinal),
        };
    }
    // Tasks of no wave at all must not be forgotten.
    if tasks.pending > 0 {
        return Next::CloseRest;
    }
    if tasks.live > 0 {
        return Next::Wait(None);
    }
    conclude(job)
}

/// What a job needs that a gate keeps from going on. What a person has to let go on waits for the person, whatever the gate says
/// meanwhile: the gates are asked again then.
fn behind_gate(told: &GateAnswer, closed: Option<&GateAnswer>) -> Next {
    match (told.verdict, closed) {
        (Verdict::Wait, None) => Next::Resume,
        (Verdict::Wait, Some(closed)) if closed != told => Next::Pause(Pause::Gate(closed.clone())),
        (Verdict::Wait | Verdict::Fail | Verdict::Pass, _) => Next::Wait(None),
    }
}

/// What follows a wave all of whose tasks have ended.
fn pass(job: &Situation<'_>, wave: &WaveSummary) -> Next {
    let Some(settled_at) = wave.settled_at else {
        return Next::SettleWave(wave.ordinal);
    };
    let due = settled_at + TimeDelta::milliseconds(wave.then.ms().into());
    if due > job.now {
        return Next::Wait(Some(due));
    }
    match wave.then {
        // Nothing to prove where nothing was changed; what failed there is for a person to see, however much is tolerated.
        Then::Approve { .. } if !wave.approved && wave.tasks.succeeded as usize + wave.tasks.missed() > 0 => {
            Next::Pause(Pause::Canary)
        }
        _ => Next::PassWave(wave.ordinal),
    }
}

/// Why a job hangs. A wish or a failure that came before is the reason why it ends; what hangs only adds to that.
fn hung(job: &Situation<'_>) -> Failure {
    let what = "no further target became healthy in time";
    match (job.stop, job.first_failure) {
        (Some(stop), _) => stop.failure.clone().with_detail(what),
        (None, Some(failure)) if too_many(job) => failure.clone(),
        (None, _) => Failure::new(FailureCode::ProgressDeadline, what),
    }
}

/// Whether more failed than may. A canary of which nothing succeeded has proven nothing but that the release fails: that is too much
/// whatever is tolerated, unless a person has seen it and let the job go on.
fn too_many(job: &Situation<'_>) -> bool {
    let missed = job.tasks.missed();
    let failed_canary = |wave: &WaveSummary| {
        matches!(wave.then, Then::Bake { .. } | Then::Approve { .. })
            && (wave.tasks.pending, wave.tasks.live, wave.tasks.succeeded) == (0, 0, 0)
            && wave.tasks.missed() > job.accepted_failures as usize
            && !wave.approved
    };
    let ahead = job.waves.iter().find(|wave| !wave.tasks.is_empty());
    missed > tolerated(job) || ahead.is_some_and(failed_canary)
}

fn tolerated(job: &Situation<'_>) -> usize {
    job.failures
        .tolerated
        .of(job.tasks.touched())
        .max(job.accepted_failures as usize)
}

/// How a job ends all of whose tasks have ended.
fn conclude(job: &Situation<'_>) -> Next {
    let tasks = &job.tasks;
    let too_many = too_many(job);
    let undo = tasks.succeeded > 0;
    match (job.stop, job.failures.on_failure) {
        // All that hung came to a good end after all.
        (Some(stop), _)
            if stop.failure.code == FailureCode::ProgressDeadline
                && tasks.missed() == 0
                && tasks.closed == 0 =>
        {
            completed(job)
        }
        (Some(Stop { wish, failure }), _) => match wish {
            StopWish::RollBack if undo => Next::RollBack(failure.clone()),
            // What a person ends by an abort, and nothing had come of, was cancelled; what a deadline ends has failed.
            StopWish::RollBack if failure.code == FailureCode::Aborted => ended_anyway(job),
            StopWish::Fail | StopWish::RollBack => Next::End(JobEvent::Failed {
                failure: failure.clone(),
            }),
            StopWish::Finish | StopWish::Cancel => ended_anyway(job),
        },
        (None, OnFailure::RollBack) if too_many && undo => Next::RollBack(first_failure(job)),
        (None, _) if too_many => ended_anyway(job),
        (None, _) => completed(job),
    }
}

fn first_failure(job: &Situation<'_>) -> Failure {
    let unknown = || Failure::new(FailureCode::Internal, "a task failed without a cause");
    job.first_failure.cloned().unwrap_or_else(unknown)
}

/// The end that the tasks tell. A stop that came when everything had ended well stopped nothing.
fn ended_anyway(job: &Situation<'_>) -> Next {
    if job.tasks.failed > 0 {
        let failure = first_failure(job);
        return Next::End(JobEvent::Failed { failure });
    }
    if job.tasks.cancelled > 0 {
        return Next::End(JobEvent::Cancelled);
    }
    completed(job)
}

/// A good end, unless the release runs nowhere by it: what no target runs does not become what the environment runs, however many
/// failures or absent hosts the recipe allows.
fn completed(job: &Situation<'_>) -> Next {
    let tasks = &job.tasks;
    if tasks.succeeded > 0 || tasks.unneeded > 0 {
        return Next::End(JobEvent::Completed);
    }
    let failure = if tasks.failed > 0 {
        first_failure(job)
    } else {
        Failure::new(
            FailureCode::NothingChanged,
            "every target was left alone, so the release runs nowhere",
        )
    };
    Next::End(JobEvent::Failed { failure })
}
