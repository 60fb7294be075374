//! DeploymentTask: one target's part of a job. The state machine and nothing else.
//!
//! Two writers, two fields: the orchestrator owns [`Wanted`], reports of the agent move the state once the task is assigned.
//! Retries add attempts; they never move a task backwards. `docs/task-states.md` is printed from [`TaskState::apply`] by a test.

use serde::{Deserialize, Serialize};

use crate::{failure::Failure, phases};

/// Whether the orchestrator still wants the task done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Wanted {
    /// Do it.
    Run,
    /// Stop it: restore what ran before, then say so.
    Stop,
}

phases! {
    /// What the agent is doing, as its journal tells.
    TaskStep {
        Received = "received", Pulling = "pulling", Verifying = "verifying", PreDeployHook = "pre_deploy_hook",
        Creating = "creating", Switching = "switching", Starting = "starting", HealthWait = "health_wait",
        SwitchHook = "switch_hook", PostDeployHook = "post_deploy_hook", Committing = "committing",
        Restoring = "restoring", RetryWait = "retry_wait",
    }
}

phases! {
    /// Why a target was left alone.
    SkipReason {
        AlreadyRunning = "already_running", EarlierWaveFailed = "earlier_wave_failed", Offline = "offline",
        Operator = "operator",
    }
}

phases! {
    /// The state without its data: for columns, filters, metrics and the wire.
    TaskPhase {
        Pending = "pending", Assigned = "assigned", Accepted = "accepted", Running = "running", Lost = "lost",
        Succeeded = "succeeded", Failed = "failed", Skipped = "skipped", Cancelled = "cancelled",
    }
}

impl TaskPhase {
    /// Whether nothing follows any more.
    pub const fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::Succeeded | Self::Failed | Self::Skipped | Self::Cancelled
        )
    }

    /// Whether the target is occupied by it (R1: at most one such task per target).
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Assigned | Self::Accepted | Self::Running | Self::Lost)
    }
}

/// The state of a task, with exactly the data that exists in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TaskState {
    /// Waits for its wave and its target.
    Pending,
    /// An order is made and may be on its way.
    Assigned,
    /// The agent has verified the order and written it to its journal.
    Accepted,
    /// The agent works on it.
    Running {
        /// What it was last heard to do.
        step: TaskStep,
    },
    /// The lease ran out and the effect is unknown; only what the agent finds on the host ends this.
    Lost,
    /// The wanted set runs and was healthy for the whole time asked for.
    Succeeded,
    /// It did not work; the set before it runs, unless the failure says that restoring failed.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// The target was left alone.
    Skipped {
        /// Why.
        reason: SkipReason,
    },
    /// It was stopped; the set before it runs.
    Cancelled,
}

/// What happened, and by whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum TaskEvent {
    /// The dispatcher made an order for a new attempt.
    Assigned,
    /// The agent accepted the order.
    Accepted,
    /// The agent began a step.
    Progressed {
        /// The step.
        step: TaskStep,
    },
    /// The agent reports success.
    Succeeded,
    /// The agent reports a failure and there will be no other attempt.
    Failed {
        /// Why.
        failure: Failure,
    },
    /// The agent reports a failure that another attempt may mend.
    AttemptFailed {
        /// Why.
        failure: Failure,
    },
    /// The agent reports that it stopped and restored.
    Stopped,
    /// The lease ran out without a word.
    LeaseExpired,
    /// The job does not need it (any more).
    Skipped {
        /// Why.
        reason: SkipReason,
    },
    /// The job was cancelled before any order was made.
    Withdrawn,
}

impl TaskEvent {
    /// The stable name of the event.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Assigned => "assigned",
            Self::Accepted => "accepted",
            Self::Progressed { .. } => "progressed",
            Self::Succeeded => "succeeded",
            Self::Failed { .. } => "failed",
            Self::AttemptFailed { .. } => "attempt_failed",
            Self::Stopped => "stopped",
            Self::LeaseExpired => "lease_expired",
            Self::Skipped { .. } => "skipped",
            Self::Withdrawn => "withdrawn",
        }
    }
}

/// An event that the state does not allow.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{from} does not allow {event}")]
pub struct IllegalTransition {
    /// The phase that it met.
    pub from: &'static str,
    /// The event.
    pub event: &'static str,
}

impl TaskState {
    /// The phase.
    pub const fn phase(&self) -> TaskPhase {
        match self {
            Self::Pending => TaskPhase::Pending,
            Self::Assigned => TaskPhase::Assigned,
            Self::Accepted => TaskPhase::Accepted,
            Self::Running { .. } => TaskPhase::Running,
            Self::Lost => TaskPhase::Lost,
            Self::Succeeded => TaskPhase::Succeeded,
            Self::Failed { .. } => TaskPhase::Failed,
            Self::Skipped { .. } => TaskPhase::Skipped,
            Self::Cancelled => TaskPhase::Cancelled,
        }
    }

    /// The state after `event`; `None` when it is already so or the event is late (a normal case).
    pub fn apply(&self, event: &TaskEvent) -> Result<Option<Self>, IllegalTransition> {
        use TaskEvent as E;
        let illegal = || IllegalTransition {
            from: self.phase().as_str(),
            event: event.name(),
        };
        let next = match (self, event) {
            (Self::Pending, E::Assigned) => Self::Assigned,
            (Self::Pending, E::Skipped { reason }) => Self::Skipped { reason: *reason },
            (Self::Pending, E::Withdrawn) => Self::Cancelled,
            // Nobody is left who could do it: the agent was revoked or the target put away since the job began.
            (Self::Pending, E::Failed { failure }) => Self::Failed {
                failure: failure.clone(),
            },
            (Self::Pending, _) => return Err(illegal()),

            (Self::Assigned, E::Accepted) => Self::Accepted,
            (Self::Assigned | Self::Accepted | Self::Lost, E::Progressed { step }) => {
                Self::Running { step: *step }
            }
            (Self::Running { step: now }, E::Progressed { step }) if now == step => return Ok(None),
            (Self::Running { .. }, E::Progressed { step }) => Self::Running { step: *step },
            (Self::Accepted | Self::Running { .. }, E::Accepted) => return Ok(None),
            (Self::Lost, E::Accepted) => Self::Accepted,

            // A further attempt: the task runs on, the attempts tell the story.
            (
                Self::Running {
                    step: TaskStep::RetryWait,
                },
                E::Assigned,
            ) => Self::Running {
                step: TaskStep::Received,
            },
            // Reports are resent until they are acknowledged: the second one is no further failure.
            (
                Self::Running {
                    step: TaskStep::RetryWait,
                },
                E::AttemptFailed { .. },
            ) => return Ok(None),
            (
                Self::Assigned | Self::Accepted | Self::Running { .. } | Self::Lost,
                E::AttemptFailed { .. },
            ) => Self::Running {
                step: TaskStep::RetryWait,
            },
            // Nothing is on the host between two attempts, so stopping needs no agent.
            (
                Self::Running {
                    step: TaskStep::RetryWait,
                },
                E::Withdrawn,
            ) => Self::Cancelled,

            (Self::Assigned | Self::Accepted | Self::Running { .. } | Self::Lost, E::Succeeded) => {
                Self::Succeeded
            }
            (Self::Assigned | Self::Accepted | Self::Running { .. } | Self::Lost, E::Failed { failure }) => {
                Self::Failed {
                    failure: failure.clone(),
                }
            }
            (Self::Assigned | Self::Accepted | Self::Running { .. } | Self::Lost, E::Stopped) => {
                Self::Cancelled
            }
            (
                Self::Running {
                    step: TaskStep::RetryWait,
                }
                | Self::Lost,
                E::LeaseExpired,
            ) => return Ok(None),
            (Self::Assigned | Self::Accepted | Self::Running { .. }, E::LeaseExpired) => Self::Lost,
            (
                Self::Assigned | Self::Accepted | Self::Running { .. } | Self::Lost,
                E::Assigned | E::Skipped { .. } | E::Withdrawn,
            ) => return Err(illegal()),

            // Terminal states never change; what comes late is ignored.
            (Self::Succeeded | Self::Failed { .. } | Self::Skipped { .. } | Self::Cancelled, E::Assigned) => {
                return Err(illegal());
            }
            (Self::Succeeded | Self::Failed { .. } | Self::Skipped { .. } | Self::Cancelled, _) => {
                return Ok(None);
            }
        };
        Ok(Some(next))
    }
}
