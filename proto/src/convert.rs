//! Where wire meets domain: `TryFrom` the wire (bounded, strict) and `From` the domain, side by side, with round-trip tests.

mod facts;
mod observation;

pub use facts::MAX_FACTS;

use chrono::{DateTime, SubsecRound as _, Utc};

/// Why a message does not say anything that the domain knows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct Malformed {
    /// Path of the field, `projects[].sticker`.
    pub field: &'static str,
    /// What is wrong with it.
    pub problem: String,
}

impl Malformed {
    /// `problem` in `field`.
    pub fn new(field: &'static str, problem: impl Into<String>) -> Self {
        Self {
            field,
            problem: problem.into(),
        }
    }
}

/// Reads a text as `T` or says which field does not hold one.
pub fn parse<T>(field: &'static str, text: &str) -> Result<T, Malformed>
where
    T: std::str::FromStr,
    T::Err: std::fmt::Display,
{
    text.parse()
        .map_err(|error: T::Err| Malformed::new(field, error.to_string()))
}

/// Refuses a text that is longer than `most` bytes.
pub fn bounded(field: &'static str, text: String, most: usize) -> Result<String, Malformed> {
    if text.len() > most {
        Err(Malformed::new(field, format!("longer than {most} bytes")))
    } else {
        Ok(text)
    }
}

/// A point in time as the wire writes it.
pub fn timestamp(time: DateTime<Utc>) -> pbjson_types::Timestamp {
    pbjson_types::Timestamp {
        seconds: time.timestamp(),
        nanos: i32::try_from(time.timestamp_subsec_nanos()).unwrap_or(0),
    }
}

/// A required point in time, cut to microseconds (the finest unit that is stored).
pub fn time(
    field: &'static str,
    value: Option<&pbjson_types::Timestamp>,
) -> Result<DateTime<Utc>, Malformed> {
    let value = value.ok_or_else(|| Malformed::new(field, "is missing"))?;
    u32::try_from(value.nanos)
        .ok()
        .and_then(|nanos| DateTime::from_timestamp(value.seconds, nanos))
        .filter(|time| (0..=9999).contains(&chrono::Datelike::year(time)))
        .map(|time| time.trunc_subsecs(6))
        .ok_or_else(|| Malformed::new(field, "is no point in time"))
}

/// A span as the wire writes it.
pub fn duration(value: std::time::Duration) -> pbjson_types::Duration {
    pbjson_types::Duration {
        seconds: i64::try_from(value.as_secs()).unwrap_or(i64::MAX),
        nanos: i32::try_from(value.subsec_nanos()).unwrap_or(0),
    }
}

/// A required span; negative ones are refused.
pub fn span(
    field: &'static str,
    value: Option<&pbjson_types::Duration>,
) -> Result<std::time::Duration, Malformed> {
    let value = value.ok_or_else(|| Malformed::new(field, "is missing"))?;
    match (u64::try_from(value.seconds), u32::try_from(value.nanos)) {
        (Ok(seconds), Ok(nanos)) if nanos < 1_000_000_000 => Ok(std::time::Duration::new(seconds, nanos)),
        _ => Err(Malformed::new(field, "is no span of time")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_and_spans_round_trip_and_hostile_ones_are_refused() {
        let now = DateTime::from_timestamp(1_800_000_000, 123_456_000).unwrap();
        assert_eq!(time("t", Some(&timestamp(now))), Ok(now));
        for (seconds, nanos) in [(i64::MAX, 0), (i64::MIN, 0), (0, -1), (0, i32::MAX)] {
            assert!(time("t", Some(&pbjson_types::Timestamp { seconds, nanos })).is_err());
        }
        assert!(time("t", None).is_err());
        let wait = std::time::Duration::from_millis(1_500);
        assert_eq!(span("d", Some(&duration(wait))), Ok(wait));
        assert!(
            span(
                "d",
                Some(&pbjson_types::Duration {
                    seconds: -1,
                    nanos: 0
                })
            )
            .is_err()
        );
        assert!(
            span(
                "d",
                Some(&pbjson_types::Duration {
                    seconds: 1,
                    nanos: i32::MAX
                })
            )
            .is_err()
        );
    }
}
