//! Recipes: strategies, limits, and what to do about failures and absent agents.

use sealift_common::{
    recipe::{FailurePolicy, OfflinePolicy, OnFailure, Recipe},
    strategy::{CanaryPromotion, Limits, Share, Strategy},
};
use sealift_proto::v1::{
    self as pb,
    failure_policy::OnFailure as WireOnFailure,
    offline_policy::Kind as WireOffline,
    strategy::{Kind, canary::Promotion as WireCanary},
};

use crate::{convert::time, status::ApiError};

/// Reads a recipe; what is absent has its default.
pub fn to_recipe(wire: Option<&pb::Recipe>) -> Result<Recipe, ApiError> {
    let Some(wire) = wire else {
        return Ok(Recipe::default());
    };
    let recipe = Recipe {
        strategy: to_strategy(wire.strategy.as_ref())?,
        limits: to_limits(wire.limits.as_ref())?,
        failures: to_failures(wire.failures.as_ref())?,
        offline: to_offline(wire.offline.as_ref())?,
    };
    recipe
        .check()
        .map_err(|error| ApiError::invalid(format!("recipe.{}", error.field), error.rule))?;
    Ok(recipe)
}

/// Writes a recipe.
pub fn recipe(recipe: &Recipe) -> pb::Recipe {
    pb::Recipe {
        strategy: Some(strategy(&recipe.strategy)),
        limits: Some(limits(&recipe.limits)),
        failures: Some(failures(recipe.failures)),
        offline: Some(offline(recipe.offline)),
    }
}

fn to_share(field: &str, text: &str, default: Share) -> Result<Share, ApiError> {
    if text.is_empty() {
        return Ok(default);
    }
    text.parse()
        .map_err(|error: sealift_common::strategy::InvalidShare| ApiError::invalid(field, error.to_string()))
}

fn to_strategy(wire: Option<&pb::Strategy>) -> Result<Strategy, ApiError> {
    let Some(wire) = wire else {
        return Ok(Strategy::AllAtOnce {});
    };
    let ms = |field, value: Option<&pbjson_types::Duration>| time::to_millis(field, value, 0);
    match &wire.kind {
        None => Err(ApiError::invalid(
            "recipe.strategy.kind",
            "must be all_at_once, rolling, canary or blue_green",
        )),
        Some(Kind::AllAtOnce(_)) => Ok(Strategy::AllAtOnce {}),
        Some(Kind::Rolling(rolling)) => Ok(Strategy::Rolling {
            max_parallel: to_share(
                "recipe.strategy.max_parallel",
                &rolling.max_parallel,
                Share::Count(1),
            )?,
            by: Some(rolling.by.clone()).filter(|key| !key.is_empty()),
            pause_ms: ms("recipe.strategy.pause", rolling.pause.as_ref())?,
        }),
        Some(Kind::Canary(canary)) => Ok(Strategy::Canary {
            first: to_share("recipe.strategy.first", &canary.first, Share::Count(1))?,
            bake_ms: ms("recipe.strategy.bake", canary.bake.as_ref())?,
            promote: match canary.promotion() {
                WireCanary::Unspecified | WireCanary::Automatic => CanaryPromotion::Automatic,
                WireCanary::Manual => CanaryPromotion::Manual,
            },
            max_parallel: to_share("recipe.strategy.max_parallel", &canary.max_parallel, Share::ALL)?,
        }),
        Some(Kind::BlueGreen(blue_green)) => Ok(Strategy::BlueGreen {
            bake_ms: ms("recipe.strategy.bake", blue_green.bake.as_ref())?,
        }),
    }
}

fn strategy(strategy: &Strategy) -> pb::Strategy {
    let kind = match strategy {
        Strategy::AllAtOnce {} => Kind::AllAtOnce(pb::strategy::AllAtOnce {}),
        Strategy::Rolling {
            max_parallel,
            by,
            pause_ms,
        } => Kind::Rolling(pb::strategy::Rolling {
            max_parallel: max_parallel.to_string(),
            by: by.clone().unwrap_or_default(),
            pause: Some(time::millis(*pause_ms)),
        }),
        Strategy::Canary {
            first,
            bake_ms,
            promote,
            max_parallel,
        } => Kind::Canary(pb::strategy::Canary {
            first: first.to_string(),
            bake: Some(time::millis(*bake_ms)),
            promotion: match promote {
                CanaryPromotion::Automatic => WireCanary::Automatic,
                CanaryPromotion::Manual => WireCanary::Manual,
            }
            .into(),
            max_parallel: max_parallel.to_string(),
        }),
        Strategy::BlueGreen { bake_ms } => Kind::BlueGreen(pb::strategy::BlueGreen {
            bake: Some(time::millis(*bake_ms)),
        }),
    };
    pb::Strategy { kind: Some(kind) }
}

fn to_limits(wire: Option<&pb::Limits>) -> Result<Limits, ApiError> {
    let default = Limits::default();
    let Some(wire) = wire else {
        return Ok(default);
    };
    let ms = |field: &str, value: Option<&pbjson_types::Duration>, default| {
        time::to_millis(&format!("recipe.limits.{field}"), value, default)
    };
    let healthy_deadline_ms = ms(
        "healthy_deadline",
        wire.healthy_deadline.as_ref(),
        default.healthy_deadline_ms,
    )?;
    // Who only raises the one means to raise the other with it.
    let progress_default = default
        .progress_deadline_ms
        .max(healthy_deadline_ms.saturating_mul(2));
    Ok(Limits {
        min_healthy_ms: ms("min_healthy", wire.min_healthy.as_ref(), default.min_healthy_ms)?,
        healthy_deadline_ms,
        pull_deadline_ms: ms(
            "pull_deadline",
            wire.pull_deadline.as_ref(),
            default.pull_deadline_ms,
        )?,
        progress_deadline_ms: ms(
            "progress_deadline",
            wire.progress_deadline.as_ref(),
            progress_default,
        )?,
        max_attempts: match wire.max_attempts {
            0 => default.max_attempts,
            attempts => u32::try_from(attempts).unwrap_or(0),
        },
    })
}

fn limits(limits: &Limits) -> pb::Limits {
    pb::Limits {
        min_healthy: Some(time::millis(limits.min_healthy_ms)),
        healthy_deadline: Some(time::millis(limits.healthy_deadline_ms)),
        pull_deadline: Some(time::millis(limits.pull_deadline_ms)),
        progress_deadline: Some(time::millis(limits.progress_deadline_ms)),
        max_attempts: i32::try_from(limits.max_attempts).unwrap_or(i32::MAX),
    }
}

fn to_failures(wire: Option<&pb::FailurePolicy>) -> Result<FailurePolicy, ApiError> {
    let Some(wire) = wire else {
        return Ok(FailurePolicy::default());
    };
    Ok(FailurePolicy {
        tolerated: to_share("recipe.failures.tolerated", &wire.tolerated, Share::NONE)?,
        on_failure: match wire.on_failure() {
            WireOnFailure::Unspecified | WireOnFailure::Stop => OnFailure::Stop,
            WireOnFailure::RollBack => OnFailure::RollBack,
            WireOnFailure::Pause => OnFailure::Pause,
            WireOnFailure::Continue => OnFailure::Continue,
        },
    })
}

fn failures(policy: FailurePolicy) -> pb::FailurePolicy {
    let on_failure = match policy.on_failure {
        OnFailure::Stop => WireOnFailure::Stop,
        OnFailure::RollBack => WireOnFailure::RollBack,
        OnFailure::Pause => WireOnFailure::Pause,
        OnFailure::Continue => WireOnFailure::Continue,
    };
    pb::FailurePolicy {
        tolerated: policy.tolerated.to_string(),
        on_failure: on_failure.into(),
    }
}

fn to_offline(wire: Option<&pb::OfflinePolicy>) -> Result<OfflinePolicy, ApiError> {
    match wire.and_then(|wire| wire.kind.as_ref()) {
        None | Some(WireOffline::Fail(_)) => Ok(OfflinePolicy::Fail {}),
        Some(WireOffline::Skip(_)) => Ok(OfflinePolicy::Skip {}),
        Some(WireOffline::Wait(wait)) => Ok(OfflinePolicy::Wait {
            ms: time::to_millis("recipe.offline.wait", wait.time.as_ref(), 0)?,
        }),
    }
}

fn offline(policy: OfflinePolicy) -> pb::OfflinePolicy {
    let kind = match policy {
        OfflinePolicy::Fail {} => WireOffline::Fail(pb::offline_policy::Fail {}),
        OfflinePolicy::Skip {} => WireOffline::Skip(pb::offline_policy::Skip {}),
        OfflinePolicy::Wait { ms } => WireOffline::Wait(pb::offline_policy::Wait {
            time: Some(time::millis(ms)),
        }),
    };
    pb::OfflinePolicy { kind: Some(kind) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recipes() -> Vec<Recipe> {
        let strategies = [
            Strategy::AllAtOnce {},
            Strategy::Rolling {
                max_parallel: Share::Percent(25),
                by: Some("region".into()),
                pause_ms: 5_000,
            },
            Strategy::Canary {
                first: Share::Count(2),
                bake_ms: 60_000,
                promote: CanaryPromotion::Manual,
                max_parallel: Share::Count(7),
            },
            Strategy::BlueGreen { bake_ms: 1_500 },
        ];
        let offline = [
            OfflinePolicy::Fail {},
            OfflinePolicy::Skip {},
            OfflinePolicy::Wait { ms: 9_000 },
            OfflinePolicy::Fail {},
        ];
        strategies
            .into_iter()
            .zip(OnFailure::ALL)
            .zip(offline)
            .map(|((strategy, on_failure), offline)| Recipe {
                strategy,
                limits: Limits {
                    min_healthy_ms: 1_500,
                    healthy_deadline_ms: 2_000,
                    pull_deadline_ms: 1,
                    progress_deadline_ms: 3_000,
                    max_attempts: 3,
                },
                failures: FailurePolicy {
                    tolerated: Share::Percent(10),
                    on_failure: *on_failure,
                },
                offline,
            })
            .collect()
    }

    #[test]
    fn recipes_round_trip_and_absence_is_the_default() {
        for value in recipes() {
            assert_eq!(to_recipe(Some(&recipe(&value))).unwrap(), value);
        }
        assert_eq!(to_recipe(None).unwrap(), Recipe::default());
        assert_eq!(
            to_recipe(Some(&pb::Recipe::default())).unwrap(),
            Recipe::default()
        );
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_field() {
        let refused = |change: fn(&mut pb::Recipe)| {
            let mut wire = recipe(&Recipe::default());
            change(&mut wire);
            to_recipe(Some(&wire)).unwrap_err().to_string()
        };
        for change in [
            (|wire| wire.strategy = Some(pb::Strategy::default())) as fn(&mut pb::Recipe),
            |wire| {
                wire.strategy = Some(pb::Strategy {
                    kind: Some(Kind::Rolling(pb::strategy::Rolling {
                        max_parallel: "0".into(),
                        ..Default::default()
                    })),
                });
            },
            |wire| {
                wire.strategy = Some(pb::Strategy {
                    kind: Some(Kind::Rolling(pb::strategy::Rolling {
                        max_parallel: "-1".into(),
                        ..Default::default()
                    })),
                });
            },
            |wire| {
                wire.strategy = Some(pb::Strategy {
                    kind: Some(Kind::Rolling(pb::strategy::Rolling {
                        max_parallel: "1".into(),
                        by: "no key\n".into(),
                        ..Default::default()
                    })),
                });
            },
            |wire| wire.limits.as_mut().unwrap().max_attempts = -1,
            |wire| {
                let limits = wire.limits.as_mut().unwrap();
                limits.min_healthy.clone_from(&limits.healthy_deadline);
            },
            |wire| wire.failures.as_mut().unwrap().tolerated = "many".into(),
            |wire| {
                wire.offline = Some(pb::OfflinePolicy {
                    kind: Some(WireOffline::Wait(pb::offline_policy::Wait::default())),
                });
            },
        ] {
            assert!(!refused(change).is_empty());
        }
    }

    #[test]
    fn raising_the_health_deadline_raises_the_progress_deadline_with_it() {
        let wire = pb::Recipe {
            limits: Some(pb::Limits {
                healthy_deadline: Some(time::millis(3_600_000)),
                ..pb::Limits::default()
            }),
            ..pb::Recipe::default()
        };
        assert_eq!(
            to_recipe(Some(&wire)).unwrap().limits.progress_deadline_ms,
            7_200_000
        );
    }
}
