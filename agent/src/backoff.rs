//! Back-off: how long to wait before the next connection. Doubles from half a second to half a minute; the jitter spreads a fleet
//! that lost its orchestrator at the same instant (F20).

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(30);

/// The wait after `failures` failures in a row (from 1). `dice` is a random number from 0 up to 1: the wait is 50 to 100 % of
/// its nominal length.
pub fn wait(failures: u32, dice: f64) -> Duration {
    let doublings = failures.saturating_sub(1).min(16);
    let nominal = FIRST.saturating_mul(1 << doublings).min(LONGEST);
    nominal.mul_f64(0.5 + 0.5 * dice.clamp(0.0, 1.0))
}

/// `interval`, give or take a tenth.
pub fn jittered(interval: Duration, dice: f64) -> Duration {
    interval.mul_f64(0.9 + 0.2 * dice.clamp(0.0, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_half_a_minute_and_are_spread() {
        let nominal: Vec<_> = (1..=8).map(|failures| wait(failures, 1.0).as_millis()).collect();
        assert_eq!(nominal, [500, 1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000]);
        assert_eq!(wait(1, 0.0), Duration::from_millis(250));
        assert_eq!(wait(0, 1.0), Duration::from_millis(500));
        assert_eq!(wait(u32::MAX, 1.0), LONGEST);
        assert_eq!(wait(1, f64::MAX), Duration::from_millis(500));
    }

    #[test]
    fn heartbeats_differ_by_a_tenth_at_most() {
        let interval = Duration::from_secs(10);
        assert_eq!(jittered(interval, 0.0), Duration::from_secs(9));
        assert_eq!(jittered(interval, 1.0), Duration::from_secs(11));
    }
}
