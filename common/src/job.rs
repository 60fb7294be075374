//! DeploymentJob: the execution of one approved promotion. State machine, and what its tasks say about it.

use crate::{
    failure::{Failure, FailureCode},
    phases,
    task::{IllegalTransition, TaskPhase},
};

phases! {
    /// The state without its data.
    JobPhase {
        Queued = "queued", Running = "running", Succeeded = "succeeded", Failed = "failed", Cancelled = "cancelled",
    }
}

impl JobPhase {
    /// Whether nothing follows any more.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }
}

/// The state of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// Waits in the lane of its environment.
    Queued,
    /// Its waves are being worked on.
    Running,
    /// Every task succeeded or needed nothing.
    Succeeded,
    /// At least one task failed.
    Failed {
        /// The first failure.
        failure: Failure,
    },
    /// It was cancelled; nothing of it is still running.
    Cancelled,
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// Its turn in the lane came and its gates passed again.
    Started,
    /// The last wave is healthy.
    Completed,
    /// A task failed and all others have ended; or its gates no longer pass.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// Cancelled, and every task has ended.
    Cancelled,
}

impl JobEvent {
    /// The stable name of the event.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Completed => "completed",
            Self::Failed { .. } => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

impl JobState {
    /// The phase.
    pub const fn phase(&self) -> JobPhase {
        match self {
            Self::Queued => JobPhase::Queued,
            Self::Running => JobPhase::Running,
            Self::Succeeded => JobPhase::Succeeded,
            Self::Failed { .. } => JobPhase::Failed,
            Self::Cancelled => JobPhase::Cancelled,
        }
    }

    /// The state after `event`; `None` when it is already so.
    pub fn apply(&self, event: &JobEvent) -> Result<Option<Self>, IllegalTransition> {
        use JobEvent as E;
        let illegal = || IllegalTransition {
            from: self.phase().as_str(),
            event: event.name(),
        };
        let next = match (self, event) {
            (Self::Queued, E::Started) => Self::Running,
            (Self::Queued | Self::Running, E::Cancelled) => Self::Cancelled,
            (Self::Queued | Self::Running, E::Failed { failure }) => Self::Failed {
                failure: failure.clone(),
            },
            (Self::Queued, E::Completed) => return Err(illegal()),

            (Self::Running, E::Completed) => Self::Succeeded,
            (Self::Running, E::Started) => return Ok(None),

            (Self::Succeeded, E::Completed)
            | (Self::Failed { .. }, E::Failed { .. })
            | (Self::Cancelled, E::Cancelled) => return Ok(None),
            (Self::Succeeded | Self::Failed { .. } | Self::Cancelled, _) => return Err(illegal()),
        };
        Ok(Some(next))
    }
}

/// What a job needs next, as its tasks tell. Lost tasks keep the job from ending: only the host knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobNext {
    /// Nothing: tasks are under way.
    Wait,
    /// Make orders for the pending tasks of this wave.
    OpenWave(u32),
    /// A task failed or was cancelled (or the job is to stop): the pending tasks of all later waves are skipped or withdrawn first.
    CloseRest,
    /// All has ended: this is how.
    End(JobEvent),
}

/// One task as its job sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskSummary {
    /// Which wave it belongs to.
    pub wave: u32,
    /// Its phase.
    pub phase: TaskPhase,
    /// Why it failed, when it did.
    pub failure: Option<Failure>,
}

/// What a running job needs next. `stop` is the operator's wish to cancel it.
pub fn next(tasks: &[TaskSummary], stop: bool) -> JobNext {
    let failure = tasks.iter().find_map(|task| task.failure.clone());
    let failed = tasks.iter().any(|task| task.phase == TaskPhase::Failed);
    // A task that an agent stopped by itself counts like one that the operator cancelled: its target runs the set before it.
    let cancelled = tasks.iter().any(|task| task.phase == TaskPhase::Cancelled);
    let pending = tasks.iter().any(|task| task.phase == TaskPhase::Pending);
    let live = tasks.iter().any(|task| task.phase.is_live());

    if (stop || failed || cancelled) && pending {
        return JobNext::CloseRest;
    }
    if live {
        // A wave opens whole: members that are still pending belong to it and wait for their target.
        return tasks
            .iter()
            .filter(|task| !task.phase.is_terminal())
            .map(|task| task.wave)
            .min()
            .filter(|wave| {
                tasks
                    .iter()
                    .any(|task| task.wave == *wave && task.phase == TaskPhase::Pending)
            })
            .map_or(JobNext::Wait, JobNext::OpenWave);
    }
    if let Some(wave) = tasks
        .iter()
        .filter(|task| task.phase == TaskPhase::Pending)
        .map(|task| task.wave)
        .min()
    {
        return JobNext::OpenWave(wave);
    }
    if failed {
        let failure =
            failure.unwrap_or_else(|| Failure::new(FailureCode::Internal, "a task failed without a cause"));
        return JobNext::End(JobEvent::Failed { failure });
    }
    if cancelled {
        return JobNext::End(JobEvent::Cancelled);
    }
    JobNext::End(JobEvent::Completed)
}
