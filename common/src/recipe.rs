//! Recipe: the way in which a release is brought to its targets. Strategy, limits, what to do when targets fail, what to do about
//! agents that are away.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use crate::{
    phases,
    strategy::{DAY_MS, InvalidLimit, Limits, Share, Strategy, wrong},
    swap::Swap,
};

phases! {
    /// What a job does when more targets failed than it tolerates.
    OnFailure { Stop = "stop", RollBack = "roll_back", Pause = "pause", Continue = "continue" }
}

/// What counts as too many failures, and what follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FailurePolicy {
    /// How many targets may fail without consequences for the others.
    pub tolerated: Share,
    /// What happens beyond that.
    pub on_failure: OnFailure,
}

impl Default for FailurePolicy {
    fn default() -> Self {
        Self {
            tolerated: Share::NONE,
            on_failure: OnFailure::Stop,
        }
    }
}

/// What to do about targets whose agent takes no orders at the moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum OfflinePolicy {
    /// The promotion is refused while there is one.
    Fail {},
    /// They are left alone, and catch up when they are back.
    Skip {},
    /// They are waited for, then left alone.
    Wait {
        /// How long after the start of the job.
        ms: u32,
    },
}

/// The way in which a release is brought to its targets.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recipe {
    /// In which waves.
    pub strategy: Strategy,
    /// Within which limits.
    pub limits: Limits,
    /// What counts as too many failures.
    pub failures: FailurePolicy,
    /// What to do about agents that are away.
    pub offline: OfflinePolicy,
}

impl Default for Recipe {
    fn default() -> Self {
        Self {
            strategy: Strategy::AllAtOnce {},
            limits: Limits::default(),
            failures: FailurePolicy::default(),
            offline: OfflinePolicy::Fail {},
        }
    }
}

impl Recipe {
    /// Checks that everything fits together.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        self.strategy.check()?;
        self.limits.check()?;
        if let OfflinePolicy::Wait { ms } = self.offline
            && !(1..=DAY_MS).contains(&ms)
        {
            return wrong("offline.wait", "must be more than 0 and at most 24 hours");
        }
        Ok(())
    }

    /// How long a wave may go without one target more that is healthy. Where each target bakes as a part of its task, a success is
    /// later by that much, and the deadline with it.
    pub fn progress_deadline(&self) -> TimeDelta {
        let bakes = match self.strategy.swap() {
            Swap::BlueGreen { bake_ms } => bake_ms,
            Swap::InPlace => 0,
        };
        TimeDelta::milliseconds(i64::from(self.limits.progress_deadline_ms) + i64::from(bakes))
    }

    /// How a rollback goes about: all at once, without ado, and with the same limits on health. It never starts another one.
    #[must_use]
    pub fn for_rollback(&self) -> Self {
        Self {
            strategy: Strategy::AllAtOnce {},
            limits: self.limits,
            failures: FailurePolicy {
                tolerated: Share::NONE,
                on_failure: OnFailure::Continue,
            },
            offline: self.offline,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::strategy::CanaryPromotion;

    #[test]
    fn a_blue_green_bake_does_not_eat_up_the_progress_deadline() {
        let deadline = |strategy| {
            let recipe = Recipe {
                strategy,
                ..Recipe::default()
            };
            recipe.check().unwrap();
            recipe.progress_deadline()
        };
        let plain = deadline(Strategy::AllAtOnce {});
        let baked = deadline(Strategy::BlueGreen { bake_ms: DAY_MS });
        assert_eq!(plain, TimeDelta::minutes(30));
        assert_eq!(baked, plain + TimeDelta::hours(24));
    }

    #[test]
    fn a_rollback_takes_the_fast_way_whatever_the_strategy_within_the_same_limits() {
        let canary = Strategy::Canary {
            first: Share::Count(1),
            bake_ms: 60_000,
            promote: CanaryPromotion::Manual,
            max_parallel: Share::Count(1),
        };
        let rolling = Strategy::Rolling {
            max_parallel: Share::Count(1),
            by: None,
            pause_ms: 60_000,
        };
        for strategy in [
            Strategy::AllAtOnce {},
            rolling,
            canary,
            Strategy::BlueGreen { bake_ms: 60_000 },
        ] {
            for on_failure in OnFailure::ALL {
                let recipe = Recipe {
                    strategy: strategy.clone(),
                    limits: Limits {
                        min_healthy_ms: 7_000,
                        ..Limits::default()
                    },
                    failures: FailurePolicy {
                        tolerated: Share::ALL,
                        on_failure: *on_failure,
                    },
                    offline: OfflinePolicy::Skip {},
                };
                let back = recipe.for_rollback();
                assert_eq!(back.strategy, Strategy::AllAtOnce {});
                assert_eq!((back.limits, back.offline), (recipe.limits, recipe.offline));
                let wanted = FailurePolicy {
                    tolerated: Share::NONE,
                    on_failure: OnFailure::Continue,
                };
                assert_eq!(
                    back.failures, wanted,
                    "all targets are tried, and none may fail unseen"
                );
            }
        }
    }
}
