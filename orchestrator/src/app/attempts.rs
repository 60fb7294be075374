//! What follows a failed attempt: a pure decision.

use std::time::Duration;

use chrono::TimeDelta;
use sealift_common::{
    digest::Digest,
    failure::{Failure, FailureCode},
    hook::{self, HookSpec},
    id::TaskId,
    strategy::Limits,
    swap::Swap,
    task::{TaskEvent, Wanted},
};
use sealift_store::Task;

/// Wait before the second attempt, but for the spread; each further one waits twice as long.
const FIRST_WAIT: Duration = Duration::from_secs(2);
/// Longest wait between two attempts, but for the spread.
const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// What restoring the old set may take: containers that stop slowly, an engine that answers slowly.
const RESTORING: Duration = Duration::from_mins(30);
/// What is left for the way there and back.
const GRACE: Duration = Duration::from_mins(5);

/// How long an attempt that has begun may take, all its steps at their limits. After that its agent, however alive, is taken
/// not to know what became of it (R14).
pub fn longest(limits: &Limits, swap: Swap, hooks: &[HookSpec]) -> TimeDelta {
    let healthy = u64::from(limits.healthy_deadline_ms);
    let side_by_side = match swap {
        Swap::InPlace => 0,
        // The new set is healthy once more when it has taken over, then both are watched.
        Swap::BlueGreen { bake_ms } => 2 * healthy + u64::from(bake_ms),
    };
    // When hooks have run, the new set is seen once more before it counts.
    let after_hooks = if hooks.is_empty() { 0 } else { healthy };
    let steps =
        u64::from(limits.pull_deadline_ms) + healthy + side_by_side + hook::longest_ms(hooks) + after_hooks;
    TimeDelta::from_std(Duration::from_millis(steps) + RESTORING + GRACE).unwrap_or(TimeDelta::days(3))
}

/// The event for a failure that the agent reported: the end of the task, or of this attempt only. A task that is to stop, whose
/// attempts are used up, or whose failure nothing but a person can mend, has no other attempt.
pub fn after_failure(task: &Task, failure: &Failure, limits: &Limits) -> TaskEvent {
    decide(task.wanted, task.attempt, failure, limits)
}

fn decide(wanted: Wanted, attempt: u32, failure: &Failure, limits: &Limits) -> TaskEvent {
    // A target that could not be restored is in an unknown state: another attempt would build on sand.
    let hopeless = !failure.code.retryable() || failure.code == FailureCode::RestoreFailed;
    if hopeless || wanted == Wanted::Stop || attempt >= limits.max_attempts {
        TaskEvent::Failed {
            failure: failure.clone(),
        }
    } else {
        TaskEvent::AttemptFailed {
            failure: failure.clone(),
        }
    }
}

/// How long to wait after the failed attempt number `attempt` (from 1) of a task. Each task waits up to a quarter less or more than
/// others, so that a wave that failed at one registry does not come back to it in one moment; the same one always the same.
pub fn retry_wait(task: TaskId, attempt: u32) -> Duration {
    const WHOLE: u32 = 1 << 16;
    let doublings = attempt.saturating_sub(1).min(16);
    let wait = FIRST_WAIT.saturating_mul(1 << doublings).min(LONGEST_WAIT);
    let [high, low, ..] = *Digest::of(format!("{task} {attempt}").as_bytes()).as_bytes();
    let drawn = u32::from(u16::from_be_bytes([high, low]));
    wait * (WHOLE / 4 * 3 + drawn / 2) / WHOLE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_may_mend_itself_is_tried_again_and_only_so_often() {
        let limits = Limits {
            max_attempts: 3,
            ..Limits::default()
        };
        let flaky = Failure::new(FailureCode::RegistryUnavailable, "registry away");
        let broken = Failure::new(FailureCode::Unhealthy, "sick");
        let name = |wanted, attempt, failure| decide(wanted, attempt, failure, &limits).name();
        assert_eq!(name(Wanted::Run, 1, &flaky), "attempt_failed");
        assert_eq!(name(Wanted::Run, 2, &flaky), "attempt_failed");
        assert_eq!(name(Wanted::Run, 3, &flaky), "failed");
        assert_eq!(name(Wanted::Stop, 1, &flaky), "failed");
        assert_eq!(name(Wanted::Run, 1, &broken), "failed");
    }

    #[test]
    fn an_attempt_may_take_as_long_as_its_hooks_and_the_way_back_of_a_switch() {
        let hook = |when: &str| -> HookSpec {
            let image = serde_json::json!({
                "repository": "r.example/tool", "digest": sealift_common::digest::Digest::of(b"tool"),
            });
            serde_json::from_value(serde_json::json!({
                "name": "a", "when": when, "image": image, "timeout_ms": 60_000, "on_failure": "fail",
            }))
            .unwrap()
        };
        let limits = Limits::default();
        let more = |hooks: &[HookSpec]| {
            let seconds = |hooks| longest(&limits, Swap::InPlace, hooks).num_seconds();
            seconds(hooks) - seconds(&[]) - i64::from(limits.healthy_deadline_ms / 1000)
        };
        assert_eq!(more(&[hook("pre_deploy"), hook("post_deploy")]), 2 * 70);
        assert_eq!(more(&[hook("switch")]), 4 * 70);
    }

    #[test]
    fn the_wait_grows_has_an_end_and_is_spread_over_the_tasks() {
        let attempts = [
            (1, 2),
            (2, 4),
            (3, 8),
            (4, 16),
            (5, 32),
            (6, 60),
            (7, 60),
            (u32::MAX, 60),
        ];
        for (attempt, seconds) in attempts {
            let middle = Duration::from_secs(seconds);
            let mut tenths = [0; 10];
            for number in 0..1_000 {
                let task = TaskId::from(uuid::Uuid::from_u128(number));
                let wait = retry_wait(task, attempt);
                assert_eq!(wait, retry_wait(task, attempt), "the same wherever it is asked");
                let share = wait.as_secs_f64() / middle.as_secs_f64();
                assert!((0.75..1.25).contains(&share), "{share} of {middle:?}");
                tenths[((share - 0.75) * 20.0) as usize] += 1;
            }
            // A thousand that failed together: about a hundred in each tenth of the half wait over which they are spread.
            assert!(tenths.iter().all(|tasks| (60..140).contains(tasks)), "{tenths:?}");
        }
    }
}
