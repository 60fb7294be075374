//! Outcome: how a job ended as it looks from today. Derived from states that never change and from what came after, never stored.

use crate::{job::JobPhase, phases};

phases! {
    /// How a job ended.
    Outcome {
        Succeeded = "succeeded", Failed = "failed", Cancelled = "cancelled", RolledBack = "rolled_back",
        Superseded = "superseded",
    }
}

/// What is known of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// Its phase.
    pub phase: JobPhase,
    /// How many components it activated.
    pub activated: u32,
    /// How many of these another job has replaced.
    pub superseded: u32,
    /// It activated none itself, its release being active already or it being for a part of the environment, and nothing that it
    /// brought or found stands any longer.
    pub gone: bool,
    /// A later rollback has undone it.
    pub undone: bool,
    /// A newer promotion took its place while it waited.
    pub replaced: bool,
}

impl Fate {
    /// The outcome; `None` until it has ended.
    pub const fn outcome(self) -> Option<Outcome> {
        match self.phase {
            JobPhase::Queued | JobPhase::Running | JobPhase::Paused | JobPhase::RollingBack => None,
            JobPhase::Failed | JobPhase::RollbackFailed => Some(Outcome::Failed),
            JobPhase::Cancelled if self.replaced => Some(Outcome::Superseded),
            JobPhase::Cancelled => Some(Outcome::Cancelled),
            JobPhase::RolledBack => Some(Outcome::RolledBack),
            JobPhase::Succeeded if self.undone => Some(Outcome::RolledBack),
            // As long as one component of it is active, it is not history.
            JobPhase::Succeeded if self.activated > 0 && self.superseded >= self.activated => {
                Some(Outcome::Superseded)
            }
            JobPhase::Succeeded if self.gone => Some(Outcome::Superseded),
            JobPhase::Succeeded => Some(Outcome::Succeeded),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C11: what is stored of a job never changes again; only how it looks does, and only from succeeded to superseded or rolled back.
    #[test]
    fn an_outcome_follows_from_the_phase_and_from_what_replaced_it() {
        for phase in JobPhase::ALL {
            for (activated, superseded) in [(0, 0), (2, 0), (2, 1), (2, 2)] {
                let fate = Fate {
                    phase: *phase,
                    activated,
                    superseded,
                    gone: false,
                    undone: false,
                    replaced: false,
                };
                let outcome = fate.outcome();
                assert_eq!(outcome.is_some(), phase.is_terminal(), "{fate:?}");
                let replaced = *phase == JobPhase::Succeeded && (activated, superseded) == (2, 2);
                assert_eq!(outcome == Some(Outcome::Superseded), replaced, "{fate:?}");
                let undone = Fate { undone: true, ..fate };
                let wanted = if *phase == JobPhase::Succeeded {
                    Some(Outcome::RolledBack)
                } else {
                    outcome
                };
                assert_eq!(undone.outcome(), wanted, "{undone:?}");
                let gone = Fate { gone: true, ..fate };
                let wanted = if *phase == JobPhase::Succeeded {
                    Some(Outcome::Superseded)
                } else {
                    outcome
                };
                assert_eq!(gone.outcome(), wanted, "{gone:?}");
                // Whoever was replaced while it waited has never begun anything.
                let replaced = Fate {
                    replaced: true,
                    ..fate
                };
                let wanted = if *phase == JobPhase::Cancelled {
                    Some(Outcome::Superseded)
                } else {
                    outcome
                };
                assert_eq!(replaced.outcome(), wanted, "{replaced:?}");
            }
        }
    }
}
