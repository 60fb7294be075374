//! Promotion: the request to bring a release to an environment, and its fate.

use crate::{id::JobId, phases, task::IllegalTransition};

phases! {
    /// The state of a promotion.
    PromotionState {
        PendingGate = "pending_gate", Approved = "approved", Deploying = "deploying", Deployed = "deployed",
        Rejected = "rejected", Cancelled = "cancelled", Failed = "failed", RolledBack = "rolled_back",
    }
}

phases! {
    /// What a promotion is for. Derived from what it undoes, never chosen.
    PromotionKind { Deploy = "deploy", Rollback = "rollback" }
}

phases! {
    /// What happened to a promotion.
    PromotionEvent {
        GatesPassed = "gates_passed", GatesRefused = "gates_refused", JobStarted = "job_started",
        JobSucceeded = "job_succeeded", JobFailed = "job_failed", JobCancelled = "job_cancelled",
        JobRolledBack = "job_rolled_back", Superseded = "superseded",
    }
}

impl PromotionKind {
    /// What a promotion is for that undoes this job, if any.
    pub const fn of(undoes: Option<JobId>) -> Self {
        match undoes {
            Some(_) => Self::Rollback,
            None => Self::Deploy,
        }
    }
}

impl PromotionState {
    /// Whether nothing follows any more.
    pub const fn is_terminal(self) -> bool {
        matches!(
            self,
            Self::Deployed | Self::Rejected | Self::Cancelled | Self::Failed | Self::RolledBack
        )
    }

    /// The state after `event`; `None` when it is already so.
    pub fn apply(self, event: PromotionEvent) -> Result<Option<Self>, IllegalTransition> {
        use PromotionEvent as E;
        let next = match (self, event) {
            (Self::PendingGate, E::GatesPassed) => Self::Approved,
            (Self::PendingGate, E::GatesRefused) => Self::Rejected,
            (Self::PendingGate | Self::Approved | Self::Deploying, E::JobCancelled) => Self::Cancelled,
            // Only while it waits: what runs is never replaced.
            (Self::Approved, E::Superseded) => Self::Cancelled,
            (Self::Approved, E::JobStarted) => Self::Deploying,
            (Self::Approved | Self::Deploying, E::JobFailed) => Self::Failed,
            (Self::Deploying, E::JobSucceeded) => Self::Deployed,
            (Self::Deploying, E::JobRolledBack) => Self::RolledBack,
            (Self::Deploying, E::JobStarted)
            | (Self::Deployed, E::JobSucceeded)
            | (Self::Failed, E::JobFailed)
            | (Self::Cancelled, E::JobCancelled | E::Superseded)
            | (Self::RolledBack, E::JobRolledBack) => return Ok(None),
            (Self::PendingGate | Self::Approved | Self::Deploying, _) => {
                return Err(IllegalTransition {
                    from: self.as_str(),
                    event: event.as_str(),
                });
            }
            (Self::Deployed | Self::Rejected | Self::Cancelled | Self::Failed | Self::RolledBack, _) => {
                return Err(IllegalTransition {
                    from: self.as_str(),
                    event: event.as_str(),
                });
            }
        };
        Ok(Some(next))
    }
}
