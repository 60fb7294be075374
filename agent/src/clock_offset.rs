//! Clock offset: the host's clock beside the orchestrator's, from one question and its answer. Pure; the session asks.

use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    condition::{Condition, ConditionCode},
    inventory::ClockFacts,
};

/// Clocks that certainly differ by more than this are a condition: orders would seem expired, or not begun.
const MUCH: TimeDelta = TimeDelta::seconds(10);
/// A change below this is not worth telling.
const LITTLE: TimeDelta = TimeDelta::milliseconds(500);

/// What a round trip of `took` says, when the answer names `theirs` and has arrived at `ours`: it was written somewhere in
/// between, so the middle is wrong by at most half the trip.
pub fn measure(theirs: DateTime<Utc>, ours: DateTime<Utc>, took: Duration) -> ClockFacts {
    let half = TimeDelta::from_std(took / 2).unwrap_or(TimeDelta::MAX);
    let ahead = ours - theirs - half;
    ClockFacts {
        ahead_ms: ahead.num_milliseconds(),
        // Rounded up: it is a promise.
        uncertainty_ms: u32::try_from(half.num_milliseconds() + 1).unwrap_or(u32::MAX),
    }
}

/// A time of the host's clock by the orchestrator's, which differ as `measured`; `None` when no calendar has it.
pub fn theirs(ours: DateTime<Utc>, measured: ClockFacts) -> Option<DateTime<Utc>> {
    ours.checked_sub_signed(TimeDelta::try_milliseconds(measured.ahead_ms)?)
}

/// Whether `now` says something that `told` does not.
pub fn is_news(told: Option<ClockFacts>, now: ClockFacts) -> bool {
    let Some(told) = told else {
        return true;
    };
    let doubt = i64::from(told.uncertainty_ms) + i64::from(now.uncertainty_ms) + LITTLE.num_milliseconds();
    let moved = told.ahead_ms.abs_diff(now.ahead_ms) > doubt.unsigned_abs();
    let better = i64::from(told.uncertainty_ms) - i64::from(now.uncertainty_ms) > LITTLE.num_milliseconds();
    moved || better || skew(told).is_some() != skew(now).is_some()
}

/// The condition of a host whose clock is certainly wrong by much.
pub fn skew(clock: ClockFacts) -> Option<Condition> {
    let certain = clock
        .ahead_ms
        .unsigned_abs()
        .saturating_sub(u64::from(clock.uncertainty_ms));
    if certain <= MUCH.num_milliseconds().unsigned_abs() {
        return None;
    }
    let way = if clock.ahead_ms > 0 { "ahead of" } else { "behind" };
    let detail = format!(
        "the host's clock is {:.1} s {way} the orchestrator's (±{:.1} s)",
        clock.ahead_ms.unsigned_abs() as f64 / 1000.0,
        f64::from(clock.uncertainty_ms) / 1000.0
    );
    Some(Condition::new(ConditionCode::ClockSkew, detail))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: i64) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(1_800_000_000_000 + millis).unwrap()
    }

    fn clock(ahead_ms: i64, uncertainty_ms: u32) -> ClockFacts {
        ClockFacts {
            ahead_ms,
            uncertainty_ms,
        }
    }

    #[test]
    fn half_the_round_trip_is_the_doubt() {
        assert_eq!(
            measure(at(0), at(30_100), Duration::from_millis(200)),
            clock(30_000, 101)
        );
        assert_eq!(measure(at(30_000), at(0), Duration::ZERO), clock(-30_000, 1));
    }

    #[test]
    fn a_time_of_the_host_is_told_by_the_orchestrators_clock() {
        for ahead in [0, 180_000, -180_000] {
            assert_eq!(theirs(at(ahead), clock(ahead, 1)), Some(at(0)));
        }
        for impossible in [i64::MIN, i64::MAX] {
            assert_eq!(theirs(at(0), clock(impossible, 1)), None);
        }
    }

    #[test]
    fn only_what_the_doubt_does_not_cover_is_news() {
        assert!(is_news(None, clock(0, 1)));
        assert!(!is_news(Some(clock(0, 100)), clock(600, 100)));
        assert!(is_news(Some(clock(0, 100)), clock(701, 100)));
        assert!(
            is_news(Some(clock(0, 5_000)), clock(0, 10)),
            "known much better now"
        );
        assert!(!is_news(Some(clock(0, 10)), clock(0, 5_000)));
        assert!(
            is_news(Some(clock(9_990, 10)), clock(10_100, 10)),
            "crosses the bound"
        );
    }

    #[test]
    fn a_clock_is_wrong_only_when_that_is_certain() {
        assert_eq!(skew(clock(10_500, 600)), None);
        assert_eq!(skew(clock(-10_000, 0)), None);
        let behind = skew(clock(-23_140, 140)).unwrap();
        assert!(behind.is(ConditionCode::ClockSkew));
        assert_eq!(
            behind.detail,
            "the host's clock is 23.1 s behind the orchestrator's (±0.1 s)"
        );
    }
}
