//! Strategies and limits.

use sealift_common::{
    bounds,
    strategy::{Limits, Strategy},
};
use sealift_proto::v1::{self as pb, strategy::Kind};

use crate::{convert::time, status::ApiError};

/// Reads a strategy; an absent one is all at once.
pub fn to_strategy(wire: Option<&pb::Strategy>) -> Result<Strategy, ApiError> {
    let Some(wire) = wire else {
        return Ok(Strategy::AllAtOnce {});
    };
    match &wire.kind {
        None => Err(ApiError::invalid(
            "strategy.kind",
            "must be all_at_once or rolling",
        )),
        Some(Kind::AllAtOnce(_)) => Ok(Strategy::AllAtOnce {}),
        Some(Kind::Rolling(rolling)) => {
            let most = u32::try_from(rolling.max_parallel).unwrap_or(0);
            if (1..=bounds::TARGETS_PER_JOB as u32).contains(&most) {
                Ok(Strategy::Rolling { max_parallel: most })
            } else {
                let rule = format!("must be 1 to {}", bounds::TARGETS_PER_JOB);
                Err(ApiError::invalid("strategy.rolling.max_parallel", rule))
            }
        }
    }
}

/// Writes a strategy.
pub fn strategy(strategy: Strategy) -> pb::Strategy {
    let kind = match strategy {
        Strategy::AllAtOnce {} => Kind::AllAtOnce(pb::strategy::AllAtOnce {}),
        Strategy::Rolling { max_parallel } => Kind::Rolling(pb::strategy::Rolling {
            max_parallel: i32::try_from(max_parallel).unwrap_or(i32::MAX),
        }),
    };
    pb::Strategy { kind: Some(kind) }
}

/// Reads limits; what is absent has its default.
pub fn to_limits(wire: Option<&pb::Limits>) -> Result<Limits, ApiError> {
    let default = Limits::default();
    let Some(wire) = wire else {
        return Ok(default);
    };
    let limits = Limits {
        min_healthy_ms: time::to_millis(
            "limits.min_healthy",
            wire.min_healthy.as_ref(),
            default.min_healthy_ms,
        )?,
        healthy_deadline_ms: time::to_millis(
            "limits.healthy_deadline",
            wire.healthy_deadline.as_ref(),
            default.healthy_deadline_ms,
        )?,
        pull_deadline_ms: time::to_millis(
            "limits.pull_deadline",
            wire.pull_deadline.as_ref(),
            default.pull_deadline_ms,
        )?,
        max_attempts: match wire.max_attempts {
            0 => default.max_attempts,
            attempts => u32::try_from(attempts).unwrap_or(0),
        },
    };
    limits
        .check()
        .map_err(|error| ApiError::invalid(format!("limits.{}", error.field), error.rule))?;
    Ok(limits)
}

/// Writes limits.
pub fn limits(limits: &Limits) -> pb::Limits {
    pb::Limits {
        min_healthy: Some(time::millis(limits.min_healthy_ms)),
        healthy_deadline: Some(time::millis(limits.healthy_deadline_ms)),
        pull_deadline: Some(time::millis(limits.pull_deadline_ms)),
        max_attempts: i32::try_from(limits.max_attempts).unwrap_or(i32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strategies_and_limits_round_trip() {
        for value in [Strategy::AllAtOnce {}, Strategy::Rolling { max_parallel: 3 }] {
            assert_eq!(to_strategy(Some(&strategy(value))).unwrap(), value);
        }
        let value = Limits {
            min_healthy_ms: 1_500,
            healthy_deadline_ms: 2_000,
            pull_deadline_ms: 1,
            max_attempts: 3,
        };
        assert_eq!(to_limits(Some(&limits(&value))).unwrap(), value);
        assert_eq!(to_limits(None).unwrap(), Limits::default());
        assert_eq!(
            to_limits(Some(&pb::Limits::default())).unwrap(),
            Limits::default()
        );
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let rolling = |max_parallel| pb::Strategy {
            kind: Some(Kind::Rolling(pb::strategy::Rolling { max_parallel })),
        };
        for wire in [
            pb::Strategy::default(),
            rolling(0),
            rolling(-1),
            rolling(i32::MAX),
        ] {
            assert!(to_strategy(Some(&wire)).is_err(), "{wire:?}");
        }
        let mut wire = limits(&Limits::default());
        wire.max_attempts = -1;
        assert!(to_limits(Some(&wire)).is_err());
        wire.max_attempts = 1;
        wire.min_healthy.clone_from(&wire.healthy_deadline);
        assert!(to_limits(Some(&wire)).is_err());
    }
}
