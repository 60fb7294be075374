//! Strategy: how the targets of a job are ordered into waves, what must happen between two waves, and the limits that hold while
//! they are worked on. Pure; what a running job does next is [`crate::rollout`].

use std::{collections::BTreeMap, fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    bounds,
    id::TargetId,
    name::{Labels, Name},
    phases,
    swap::Swap,
};

/// A number of targets, or a part of all that a job is to change. As text `3` or `25%`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Share {
    /// So many.
    Count(u32),
    /// So many of a hundred, rounded down; at most 100.
    Percent(u8),
}

impl Share {
    /// None at all.
    pub const NONE: Self = Self::Count(0);
    /// All.
    pub const ALL: Self = Self::Percent(100);

    /// How many of `total` that is; never more than all.
    pub const fn of(self, total: usize) -> usize {
        let part = match self {
            Self::Count(count) => count as usize,
            Self::Percent(percent) => total * percent as usize / 100,
        };
        if part < total { part } else { total }
    }

    /// The same for sizes of waves, which are never empty.
    pub const fn at_least_one(self, total: usize) -> usize {
        let part = self.of(total);
        if part == 0 { 1 } else { part }
    }

    /// Whether it is no number of targets at all.
    pub const fn is_none(self) -> bool {
        matches!(self, Self::Count(0) | Self::Percent(0))
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Count(count) => write!(f, "{count}"),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

/// Neither a number nor a percentage.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("must be a number like 3 (at most 10000) or a percentage like 25% (at most 100%)")]
pub struct InvalidShare;

impl FromStr for Share {
    type Err = InvalidShare;

    fn from_str(text: &str) -> Result<Self, InvalidShare> {
        let (digits, percent) = text
            .strip_suffix('%')
            .map_or((text, false), |digits| (digits, true));
        // `parse` would also take a sign.
        if !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidShare);
        }
        let number: u32 = digits.parse().map_err(|_| InvalidShare)?;
        match percent {
            true if number <= 100 => Ok(Self::Percent(number as u8)),
            false if number <= bounds::TARGETS_PER_JOB as u32 => Ok(Self::Count(number)),
            _ => Err(InvalidShare),
        }
    }
}

impl TryFrom<String> for Share {
    type Error = InvalidShare;

    fn try_from(text: String) -> Result<Self, InvalidShare> {
        text.parse()
    }
}

impl From<Share> for String {
    fn from(share: Share) -> Self {
        share.to_string()
    }
}

phases! {
    /// Who lets a canary pass.
    CanaryPromotion { Automatic = "automatic", Manual = "manual" }
}

/// How targets are ordered into waves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Strategy {
    /// One wave of all targets.
    AllAtOnce {},
    /// Waves of at most so many targets, in order of their names.
    Rolling {
        /// Most targets at the same time; at least 1.
        max_parallel: Share,
        /// A label such as `region`: no wave holds targets of two of its values, and values follow each other in order. Targets
        /// without it come last.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        by: Option<String>,
        /// How long to wait after each wave.
        #[serde(default)]
        pause_ms: u32,
    },
    /// A first wave that proves itself, then the rest.
    Canary {
        /// Size of the first wave; at least 1.
        first: Share,
        /// How long the first wave is watched once it is healthy.
        bake_ms: u32,
        /// Who lets it pass after that.
        promote: CanaryPromotion,
        /// Most targets at the same time afterwards; at least 1.
        max_parallel: Share,
    },
    /// One wave; on each target a second set is started beside the first, takes over when it is healthy, and the first stays up
    /// until the second has been watched for a while.
    BlueGreen {
        /// How long both sets stay up after the switch.
        bake_ms: u32,
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
    /// How long a wave may go without one target more that is healthy.
    pub progress_deadline_ms: u32,
    /// How many attempts a task may have; failures that are not retryable end it at once.
    pub max_attempts: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            min_healthy_ms: 10_000,
            healthy_deadline_ms: 300_000,
            pull_deadline_ms: 600_000,
            progress_deadline_ms: 1_800_000,
            max_attempts: 1,
        }
    }
}

/// A setting of a recipe that does not fit.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {rule}")]
pub struct InvalidLimit {
    /// The field at fault.
    pub field: &'static str,
    /// What it must be.
    pub rule: &'static str,
}

/// Longest of all durations in recipes.
pub const DAY_MS: u32 = 24 * 60 * 60 * 1000;

pub(crate) const fn wrong(field: &'static str, rule: &'static str) -> Result<(), InvalidLimit> {
    Err(InvalidLimit { field, rule })
}

impl Limits {
    /// Checks that the limits fit together.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        let longest = self
            .healthy_deadline_ms
            .max(self.pull_deadline_ms)
            .max(self.progress_deadline_ms);
        if longest > DAY_MS {
            return wrong("healthy_deadline", "deadlines are at most 24 hours");
        }
        if self.min_healthy_ms >= self.healthy_deadline_ms {
            return wrong("min_healthy", "must be less than healthy_deadline");
        }
        if self.healthy_deadline_ms >= self.progress_deadline_ms {
            return wrong("progress_deadline", "must be more than healthy_deadline");
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

impl Strategy {
    /// Checks sizes, durations and labels.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        match self {
            Self::AllAtOnce {} => Ok(()),
            Self::Rolling {
                max_parallel,
                by,
                pause_ms,
            } => {
                if max_parallel.is_none() {
                    return wrong("strategy.max_parallel", "must be at least 1 or 1%");
                }
                if *pause_ms > DAY_MS {
                    return wrong("strategy.pause", "must be at most 24 hours");
                }
                let labels: Labels = by.iter().map(|key| (key.clone(), String::new())).collect();
                match crate::name::check_labels(&labels) {
                    Ok(()) => Ok(()),
                    Err(_) => wrong("strategy.by", "must be the key of a label"),
                }
            }
            Self::Canary {
                first,
                bake_ms,
                max_parallel,
                ..
            } => {
                if first.is_none() {
                    return wrong("strategy.first", "must be at least 1 or 1%");
                }
                if max_parallel.is_none() {
                    return wrong("strategy.max_parallel", "must be at least 1 or 1%");
                }
                bake(*bake_ms)
            }
            Self::BlueGreen { bake_ms } => bake(*bake_ms),
        }
    }

    /// How the set of each target gives way.
    pub const fn swap(&self) -> Swap {
        match self {
            Self::BlueGreen { bake_ms } => Swap::BlueGreen { bake_ms: *bake_ms },
            Self::AllAtOnce {} | Self::Rolling { .. } | Self::Canary { .. } => Swap::InPlace,
        }
    }
}

fn bake(bake_ms: u32) -> Result<(), InvalidLimit> {
    if bake_ms > DAY_MS {
        return wrong("strategy.bake", "must be at most 24 hours");
    }
    Ok(())
}

/// What must happen after a wave is healthy and before the next one opens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Then {
    /// Nothing.
    Next {},
    /// Time passes.
    Wait {
        /// How much.
        ms: u32,
    },
    /// It is watched for a while, and passes by itself.
    Bake {
        /// How long.
        ms: u32,
    },
    /// It is watched for a while, then a person lets it pass.
    Approve {
        /// How long.
        ms: u32,
    },
}

impl Then {
    /// How long after the wave became healthy.
    pub const fn ms(self) -> u32 {
        match self {
            Self::Next {} => 0,
            Self::Wait { ms } | Self::Bake { ms } | Self::Approve { ms } => ms,
        }
    }
}

/// A target that is to change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place<'a> {
    /// Its name, which gives the order.
    pub name: &'a Name,
    /// Its identifier.
    pub id: TargetId,
    /// Its labels.
    pub labels: &'a Labels,
}

/// One group of targets of a job; they are worked on side by side.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wave {
    /// Its members; never empty.
    pub targets: Vec<TargetId>,
    /// What follows it.
    pub then: Then,
}

/// Targets by wave, in order; ordinals are places in the list. A pure function of its arguments; the order of `places` does not
/// matter.
pub fn waves(strategy: &Strategy, places: &[Place<'_>]) -> Vec<Wave> {
    let mut sorted: Vec<_> = places.iter().collect();
    sorted.sort_by_key(|place| (place.name, place.id));
    let total = sorted.len();
    let mut waves = match strategy {
        Strategy::AllAtOnce {} | Strategy::BlueGreen { .. } => chunks(&sorted, total, Then::Next {}),
        Strategy::Rolling {
            max_parallel,
            by,
            pause_ms,
        } => {
            let then = match pause_ms {
                0 => Then::Next {},
                ms => Then::Wait { ms: *ms },
            };
            let size = max_parallel.at_least_one(total);
            groups(&sorted, by.as_deref())
                .iter()
                .flat_map(|group| chunks(group, size, then))
                .collect()
        }
        Strategy::Canary {
            first,
            bake_ms,
            promote,
            max_parallel,
        } => {
            let (canary, rest) = sorted.split_at(first.at_least_one(total).min(total));
            let then = match promote {
                CanaryPromotion::Automatic => Then::Bake { ms: *bake_ms },
                CanaryPromotion::Manual => Then::Approve { ms: *bake_ms },
            };
            let mut waves = chunks(canary, total, then);
            waves.extend(chunks(rest, max_parallel.at_least_one(total), Then::Next {}));
            waves
        }
    };
    // Nothing is left that a pause after the last wave would protect. Its bake still counts: that is what was asked for.
    if let Some(last) = waves.last_mut()
        && matches!(last.then, Then::Wait { .. })
    {
        last.then = Then::Next {};
    }
    waves
}

fn chunks(places: &[&Place<'_>], size: usize, then: Then) -> Vec<Wave> {
    places
        .chunks(size.max(1))
        .map(|members| Wave {
            targets: members.iter().map(|place| place.id).collect(),
            then,
        })
        .collect()
}

/// Places by the value of a label, those without it last. Without a label all are one group.
fn groups<'a, 'b>(places: &[&'a Place<'b>], by: Option<&str>) -> Vec<Vec<&'a Place<'b>>> {
    let Some(key) = by else {
        return vec![places.to_vec()];
    };
    let mut groups: BTreeMap<(bool, &str), Vec<&Place<'_>>> = BTreeMap::new();
    for place in places {
        let value = place.labels.get(key).map(String::as_str);
        groups
            .entry((value.is_none(), value.unwrap_or_default()))
            .or_default()
            .push(place);
    }
    groups.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_numbers_or_percentages_and_nothing_else() {
        for (text, share) in [
            ("3", Share::Count(3)),
            ("0", Share::NONE),
            ("100%", Share::ALL),
            ("7%", Share::Percent(7)),
        ] {
            assert_eq!(text.parse(), Ok(share));
            assert_eq!(share.to_string(), text);
        }
        for bad in ["", "%", "-1", "+1", "101%", "10001", "1.5", "3 %", "99999999999"] {
            assert_eq!(bad.parse::<Share>(), Err(InvalidShare), "{bad}");
        }
    }

    #[test]
    fn a_part_is_rounded_down_but_a_wave_is_never_empty() {
        assert_eq!(Share::Percent(25).of(10), 2);
        assert_eq!(Share::Percent(25).of(3), 0);
        assert_eq!(Share::Percent(25).at_least_one(3), 1);
        assert_eq!(Share::Count(5).of(3), 3);
        assert_eq!(Share::ALL.of(7), 7);
    }

    #[test]
    fn limits_that_contradict_each_other_are_refused() {
        let limits = Limits::default();
        assert_eq!(limits.check(), Ok(()));
        let field = |limits: Limits| limits.check().unwrap_err().field;
        assert_eq!(
            field(Limits {
                min_healthy_ms: 300_000,
                ..limits
            }),
            "min_healthy"
        );
        assert_eq!(
            field(Limits {
                progress_deadline_ms: 300_000,
                ..limits
            }),
            "progress_deadline"
        );
        assert_eq!(
            field(Limits {
                max_attempts: 0,
                ..limits
            }),
            "max_attempts"
        );
    }
}
