//! What is done about drift, for the wire.

use sealift_common::{
    drift::Severity,
    remedy::{Limits, Remediation},
};
use sealift_proto::v1::{self, remediation::Mode};

use crate::{
    control::int32,
    convert::{state, time},
    status::ApiError,
};

/// A policy for the wire.
pub fn encode(remediation: Remediation) -> v1::Remediation {
    match remediation {
        Remediation::Alert => v1::Remediation {
            mode: Mode::Alert.into(),
            ..v1::Remediation::default()
        },
        Remediation::Reconcile(limits) => v1::Remediation {
            mode: Mode::Reconcile.into(),
            max_tries: int32(limits.max_tries),
            min_severity: state::severity(limits.min_severity).into(),
            pause: Some(time::millis(limits.pause_ms)),
        },
    }
}

/// A policy from the wire; `None` only tells.
pub fn decode(wanted: Option<&v1::Remediation>) -> Result<Remediation, ApiError> {
    let Some(wanted) = wanted else {
        return Ok(Remediation::Alert);
    };
    let wrong = |field: &str, rule: &str| ApiError::invalid(format!("environment.remediation.{field}"), rule);
    match Mode::try_from(wanted.mode) {
        Ok(Mode::Unspecified | Mode::Alert) => {
            if wanted.max_tries != 0 || wanted.min_severity != 0 || wanted.pause.is_some() {
                return Err(wrong("mode", "limits are for MODE_RECONCILE only"));
            }
            Ok(Remediation::Alert)
        }
        Ok(Mode::Reconcile) => {
            let default = Limits::default();
            let max_tries = u32::try_from(wanted.max_tries)
                .map_err(|_| wrong("max_tries", "must be between 1 and 10"))?;
            let min_severity = state::at_least("environment.remediation.min_severity", wanted.min_severity)?;
            let pause = wanted.pause.as_ref();
            let limits = Limits {
                max_tries: if max_tries == 0 {
                    default.max_tries
                } else {
                    max_tries
                },
                min_severity: min_severity.unwrap_or(Severity::Low),
                pause_ms: time::to_millis("environment.remediation.pause", pause, default.pause_ms)?,
            };
            limits.check().map_err(|error| wrong(error.field, error.rule))?;
            Ok(Remediation::Reconcile(limits))
        }
        Err(_) => Err(wrong("mode", "is not a mode that this version knows")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_round_trip_and_are_bounded() {
        let limits = Limits {
            max_tries: 10,
            min_severity: Severity::Critical,
            pause_ms: 0,
        };
        for policy in [
            Remediation::Alert,
            Remediation::Reconcile(Limits::default()),
            Remediation::Reconcile(limits),
        ] {
            assert_eq!(decode(Some(&encode(policy))).unwrap(), policy);
        }
        assert_eq!(decode(None).unwrap(), Remediation::Alert);
        assert_eq!(
            decode(Some(&v1::Remediation::default())).unwrap(),
            Remediation::Alert
        );
        let bare = v1::Remediation {
            mode: Mode::Reconcile.into(),
            ..v1::Remediation::default()
        };
        assert_eq!(
            decode(Some(&bare)).unwrap(),
            Remediation::Reconcile(Limits::default())
        );
        let day = pbjson_types::Duration {
            seconds: 24 * 3600 + 1,
            nanos: 0,
        };
        for wrong in [
            v1::Remediation { mode: 77, ..bare },
            v1::Remediation {
                max_tries: 11,
                ..bare
            },
            v1::Remediation {
                max_tries: -1,
                ..bare
            },
            v1::Remediation {
                min_severity: 41,
                ..bare
            },
            v1::Remediation {
                pause: Some(day),
                ..bare
            },
            v1::Remediation {
                mode: Mode::Alert.into(),
                max_tries: 3,
                ..bare
            },
        ] {
            assert!(decode(Some(&wrong)).is_err(), "{wrong:?}");
        }
    }
}
