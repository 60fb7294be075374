//! Instants and spans.

use std::time::Duration;

use chrono::{DateTime, Utc};

use crate::status::ApiError;

/// An instant as a protobuf timestamp.
pub fn timestamp(at: DateTime<Utc>) -> pbjson_types::Timestamp {
    pbjson_types::Timestamp {
        seconds: at.timestamp(),
        nanos: i32::try_from(at.timestamp_subsec_nanos()).unwrap_or(0),
    }
}

/// Milliseconds as a protobuf duration.
pub fn millis(value: u32) -> pbjson_types::Duration {
    pbjson_types::Duration {
        seconds: i64::from(value / 1000),
        nanos: i32::try_from(value % 1000 * 1_000_000).unwrap_or(0),
    }
}

/// A span as a protobuf duration.
pub fn duration(value: Duration) -> pbjson_types::Duration {
    pbjson_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0),
    }
}

/// A protobuf duration as whole milliseconds (finer parts are cut off); absent means `default`.
pub fn to_millis(field: &str, value: Option<&pbjson_types::Duration>, default: u32) -> Result<u32, ApiError> {
    let Some(value) = value else {
        return Ok(default);
    };
    let nanos = u32::try_from(value.nanos)
        .ok()
        .filter(|nanos| *nanos < 1_000_000_000);
    let millis = u64::try_from(value.seconds)
        .ok()
        .zip(nanos)
        .and_then(|(seconds, nanos)| {
            seconds
                .checked_mul(1000)?
                .checked_add(u64::from(nanos / 1_000_000))
        })
        .and_then(|millis| u32::try_from(millis).ok());
    millis.ok_or_else(|| ApiError::invalid(field, "must be a duration from 0 to 24 hours"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_round_trip_and_wild_ones_are_refused() {
        for value in [0, 1, 999, 1000, 86_400_000, u32::MAX] {
            assert_eq!(to_millis("f", Some(&millis(value)), 7).unwrap(), value);
        }
        assert_eq!(to_millis("f", None, 7).unwrap(), 7);
        for (seconds, nanos) in [(-1, 0), (0, -1), (i64::MAX, 0), (0, i32::MAX)] {
            assert!(to_millis("f", Some(&pbjson_types::Duration { seconds, nanos }), 7).is_err());
        }
    }
}
