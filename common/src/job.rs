//! DeploymentJob: the execution of one approved promotion or rollback. The state machine and nothing else; what a running job does
//! next is [`crate::rollout`]. `docs/job-states.md` is printed from [`JobState::apply`] by a test.

use crate::{
    decision::GateAnswer,
    failure::{Failure, FailureCode},
    phases,
    task::IllegalTransition,
};

phases! {
    /// The state without its data.
    JobPhase {
        Queued = "queued", Running = "running", Paused = "paused", RollingBack = "rolling_back",
        Succeeded = "succeeded", Failed = "failed", Cancelled = "cancelled", RolledBack = "rolled_back",
        RollbackFailed = "rollback_failed",
    }
}

phases! {
    /// Why a job does not go on.
    PauseReason { Operator = "operator", Canary = "canary", Failures = "failures", Gate = "gate" }
}

/// Why a job does not go on, with what is known of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pause {
    /// A person asked for it.
    Operator,
    /// A canary waits for a person to let it pass.
    Canary,
    /// A person has to say whether so many failures are accepted.
    Failures,
    /// A gate has closed since the job started. Where its answer is that it waits, the job goes on by itself when the gate opens
    /// again; otherwise a person lets it go on, and the gates are asked again.
    Gate(GateAnswer),
}

impl Pause {
    /// Without what is known of it.
    pub const fn reason(&self) -> PauseReason {
        match self {
            Self::Operator => PauseReason::Operator,
            Self::Canary => PauseReason::Canary,
            Self::Failures => PauseReason::Failures,
            Self::Gate(_) => PauseReason::Gate,
        }
    }
}

phases! {
    /// How somebody, or a deadline, wants a job to end before its time.
    ///
    /// `finish` is a cancel that lets what runs come to its own end. Which wish outdoes which: [`Stop::outdoes`].
    StopWish { Finish = "finish", Cancel = "cancel", RollBack = "roll_back", Fail = "fail" }
}

/// The wish that a job ends before its time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stop {
    /// How.
    pub wish: StopWish,
    /// Why, as it becomes the failure of whatever it ends.
    pub failure: Failure,
}

impl Stop {
    /// How much it asks for: to keep what has changed and let the rest finish, to stop that, to call the job failed as well, to
    /// undo what has changed, and to undo it however well all that was late comes to its end.
    const fn strength(&self) -> u8 {
        match (self.wish, self.failure.code) {
            (StopWish::Finish, _) => 0,
            (StopWish::Cancel, _) => 1,
            (StopWish::Fail, _) => 2,
            (StopWish::RollBack, FailureCode::Aborted) => 4,
            (StopWish::RollBack, _) => 3,
        }
    }

    /// Whether it takes the place of `before`. Of two wishes the stronger one counts, whichever came first.
    pub const fn outdoes(&self, before: &Self) -> bool {
        self.strength() > before.strength()
    }
}

impl JobPhase {
    /// Whether nothing follows any more.
    pub const fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::Failed | Self::Cancelled | Self::RolledBack | Self::RollbackFailed
        )
    }

    /// Whether it takes up room in its lane. One that is being rolled back does not: the rollback does.
    pub const fn occupies_lane(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// The state of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobState {
    /// Waits in the lane of its environment.
    Queued,
    /// Its waves are being worked on.
    Running,
    /// Nothing new begins until it goes on; what is under way ends.
    Paused {
        /// Why.
        why: Pause,
    },
    /// Its own tasks have ended; a rollback undoes what they changed.
    RollingBack {
        /// Why it is undone.
        failure: Failure,
    },
    /// Every task succeeded or needed nothing, but for failures that the recipe tolerates.
    Succeeded,
    /// Too many tasks failed.
    Failed {
        /// The first failure.
        failure: Failure,
    },
    /// It was cancelled, or replaced while it waited; nothing of it is still running.
    Cancelled,
    /// What it changed was undone.
    RolledBack {
        /// Why.
        failure: Failure,
    },
    /// What it changed could not be undone everywhere: a person has to look.
    RollbackFailed {
        /// Why undoing failed.
        failure: Failure,
    },
}

/// What happened to a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum JobEvent {
    /// Its turn in the lane came and its gates passed again.
    Started,
    /// It is not to go on for now.
    Paused {
        /// Why.
        why: Pause,
    },
    /// A person lets it go on, or the gate that had closed is open again.
    Resumed,
    /// The last wave is healthy.
    Completed,
    /// Too many tasks failed and all others have ended; or its gates no longer pass.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// Cancelled, and every task has ended.
    Cancelled,
    /// A newer promotion takes its place while it waits.
    Superseded,
    /// Every task has ended, and what succeeded is to be undone.
    RollbackStarted {
        /// Why.
        failure: Failure,
    },
    /// The rollback succeeded.
    RolledBack,
    /// The rollback ended otherwise.
    RollbackFailed {
        /// Why.
        failure: Failure,
    },
}

impl JobEvent {
    /// The stable name of the event.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Started => "started",
            Self::Paused { .. } => "paused",
            Self::Resumed => "resumed",
            Self::Completed => "completed",
            Self::Failed { .. } => "failed",
            Self::Cancelled => "cancelled",
            Self::Superseded => "superseded",
            Self::RollbackStarted { .. } => "rollback_started",
            Self::RolledBack => "rolled_back",
            Self::RollbackFailed { .. } => "rollback_failed",
        }
    }
}

impl JobState {
    /// The phase.
    pub const fn phase(&self) -> JobPhase {
        match self {
            Self::Queued => JobPhase::Queued,
            Self::Running => JobPhase::Running,
            Self::Paused { .. } => JobPhase::Paused,
            Self::RollingBack { .. } => JobPhase::RollingBack,
            Self::Succeeded => JobPhase::Succeeded,
            Self::Failed { .. } => JobPhase::Failed,
            Self::Cancelled => JobPhase::Cancelled,
            Self::RolledBack { .. } => JobPhase::RolledBack,
            Self::RollbackFailed { .. } => JobPhase::RollbackFailed,
        }
    }

    /// What went wrong, in the states that know.
    pub const fn failure(&self) -> Option<&Failure> {
        match self {
            Self::RollingBack { failure }
            | Self::Failed { failure }
            | Self::RolledBack { failure }
            | Self::RollbackFailed { failure } => Some(failure),
            Self::Queued | Self::Running | Self::Paused { .. } | Self::Succeeded | Self::Cancelled => None,
        }
    }

    /// Why it is paused, when it is.
    pub const fn pause(&self) -> Option<&Pause> {
        match self {
            Self::Paused { why } => Some(why),
            Self::Queued
            | Self::Running
            | Self::RollingBack { .. }
            | Self::Succeeded
            | Self::Failed { .. }
            | Self::Cancelled
            | Self::RolledBack { .. }
            | Self::RollbackFailed { .. } => None,
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
            (Self::Queued, E::Cancelled | E::Superseded) => Self::Cancelled,
            (Self::Queued, E::Failed { failure }) => Self::Failed {
                failure: failure.clone(),
            },
            (Self::Queued, _) => return Err(illegal()),

            (Self::Running, E::Started | E::Resumed) => return Ok(None),
            // Behind a closed gate the newest reason counts: what a person must end must not end with the gate.
            (Self::Paused { why: Pause::Gate(_) }, E::Paused { why }) if self.pause() != Some(why) => {
                Self::Paused { why: why.clone() }
            }
            // Otherwise a second reason does not hide the first one; the scheduler finds it again when the job goes on.
            (Self::Paused { .. }, E::Paused { .. }) => return Ok(None),
            (Self::Running, E::Paused { why }) => Self::Paused { why: why.clone() },
            (Self::Paused { .. }, E::Resumed) => Self::Running,
            (Self::Running | Self::Paused { .. }, E::Completed) => Self::Succeeded,
            (Self::Running | Self::Paused { .. }, E::Failed { failure }) => Self::Failed {
                failure: failure.clone(),
            },
            (Self::Running | Self::Paused { .. }, E::Cancelled) => Self::Cancelled,
            (Self::Running | Self::Paused { .. }, E::RollbackStarted { failure }) => Self::RollingBack {
                failure: failure.clone(),
            },
            (Self::Running | Self::Paused { .. }, _) => return Err(illegal()),

            (Self::RollingBack { .. }, E::RollbackStarted { .. }) => return Ok(None),
            (Self::RollingBack { failure }, E::RolledBack) => Self::RolledBack {
                failure: failure.clone(),
            },
            (Self::RollingBack { .. }, E::RollbackFailed { failure }) => Self::RollbackFailed {
                failure: failure.clone(),
            },
            (Self::RollingBack { .. }, _) => return Err(illegal()),

            (Self::Succeeded, E::Completed)
            | (Self::Failed { .. }, E::Failed { .. })
            | (Self::Cancelled, E::Cancelled | E::Superseded)
            | (Self::RolledBack { .. }, E::RolledBack)
            | (Self::RollbackFailed { .. }, E::RollbackFailed { .. }) => return Ok(None),
            (
                Self::Succeeded
                | Self::Failed { .. }
                | Self::Cancelled
                | Self::RolledBack { .. }
                | Self::RollbackFailed { .. },
                _,
            ) => return Err(illegal()),
        };
        Ok(Some(next))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_wishes_the_stronger_one_counts_whichever_came_first() {
        use StopWish::{Cancel, Fail, Finish, RollBack};
        let by_strength = [
            (Finish, FailureCode::Cancelled),
            (Cancel, FailureCode::Cancelled),
            (Fail, FailureCode::ProgressDeadline),
            (RollBack, FailureCode::ProgressDeadline),
            (RollBack, FailureCode::Aborted),
        ]
        .map(|(wish, code)| Stop {
            wish,
            failure: Failure::new(code, "wanted"),
        });
        for (strength, one) in by_strength.iter().enumerate() {
            for (weaker, other) in by_strength.iter().enumerate() {
                assert_eq!(one.outdoes(other), strength > weaker, "{one:?} after {other:?}");
            }
        }
        assert!(
            StopWish::ALL
                .iter()
                .all(|wish| by_strength.iter().any(|stop| stop.wish == *wish)),
            "every wish has its place"
        );
    }
}
