//! Strategy: how the targets of a job are ordered into waves, and the limits that hold while they are worked on.

use serde::{Deserialize, Serialize};

use crate::{bounds, id::TargetId, name::Name};

/// How targets are ordered into waves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    /// One wave of all targets.
    AllAtOnce {},
    /// Waves of at most so many targets, in order of their names.
    Rolling {
        /// Most targets at the same time; at least 1.
        max_parallel: u32,
    },
}

/// The limits of a deployment. Milliseconds, so that they can be hashed and signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// How long every service must be healthy without a break before the task succeeds (R15).
    pub min_healthy_ms: u32,
    /// How long the services may take from their start until that is reached.
    pub healthy_deadline_ms: u32,
    /// How long pulling all images may take.
    pub pull_deadline_ms: u32,
    /// How many attempts a task may have; failures that are not retryable end it at once.
    pub max_attempts: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            min_healthy_ms: 10_000,
            healthy_deadline_ms: 300_000,
            pull_deadline_ms: 600_000,
            max_attempts: 1,
        }
    }
}

/// A limit that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct InvalidLimit {
    /// The field at fault.
    pub field: &'static str,
    /// What it must be.
    pub rule: &'static str,
}

const DAY_MS: u32 = 24 * 60 * 60 * 1000;

impl Limits {
    /// Checks that the limits fit together.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        let wrong = |field, rule| Err(InvalidLimit { field, rule });
        if self.healthy_deadline_ms > DAY_MS || self.pull_deadline_ms > DAY_MS {
            return wrong("healthy_deadline", "deadlines are at most 24 hours");
        }
        if self.min_healthy_ms >= self.healthy_deadline_ms {
            return wrong("min_healthy", "must be less than healthy_deadline");
        }
        if self.pull_deadline_ms == 0 {
            return wrong("pull_deadline", "must be more than 0");
        }
        if !(1..=bounds::ATTEMPTS).contains(&self.max_attempts) {
            return wrong("max_attempts", "must be 1 to 10");
        }
        Ok(())
    }
}

/// Targets by wave: the wave ordinals start at 0 and have no gap. A pure function of its arguments; the order of `targets`
/// does not matter.
pub fn waves(strategy: Strategy, targets: &[(Name, TargetId)]) -> Vec<Vec<TargetId>> {
    let mut sorted: Vec<_> = targets.iter().collect();
    sorted.sort();
    let size = match strategy {
        Strategy::AllAtOnce {} => sorted.len(),
        Strategy::Rolling { max_parallel } => max_parallel as usize,
    };
    sorted
        .chunks(size.max(1))
        .map(|wave| wave.iter().map(|(_, id)| *id).collect())
        .collect()
}
