//! Kill points: places in the code where a test ends the process, as a crash would. Compiled in only with the cargo feature `kill-points`, off by
//! default; then `SEALIFT_AGENT_KILL_AT=<point>[:n]` ends the process at the n-th passage of that point, without any clean-up,
//! as `kill -9` would. A point with the suffix `.before` lies before the effect, one without after it.

/// All points, in the order in which an attempt passes them; restore points at the end.
pub const KILL_POINTS: &[&str] = &[
    "received",
    "verified",
    "journalled.before",
    "journalled",
    "pull_begun",
    "pull_done",
    "digest_compared",
    "network_ready",
    "new_created.before",
    "new_created",
    "old_saved",
    "switch_journalled.before",
    "switch_journalled",
    "old_stopped.before",
    "old_stopped",
    "old_policy_no.before",
    "old_policy_no",
    "new_started.before",
    "new_started",
    "health_wait",
    "healthy",
    "sticker_temp_written",
    "commit_journalled",
    "sticker_renamed",
    "evidence_signed",
    "outbox_synced.before",
    "outbox_synced",
    "old_removed.before",
    "old_removed",
];

/// Points that only a blue/green swap passes.
pub const BLUE_GREEN_KILL_POINTS: &[&str] = &[
    "ready_journalled.before",
    "ready_journalled",
    "new_joined.before",
    "new_joined",
    "old_left.before",
    "old_left",
    "switched_journalled.before",
    "switched_journalled",
];
/// Points that only the way back of a blue/green swap passes.
pub const BLUE_GREEN_RESTORE_KILL_POINTS: &[&str] = &["old_joined.before", "old_joined"];

/// Points that only a restore passes.
pub const RESTORE_KILL_POINTS: &[&str] = &[
    "restore_journalled.before",
    "restore_journalled",
    "new_stopped.before",
    "new_stopped",
    "new_removed.before",
    "new_removed",
    "old_policy_restored.before",
    "old_policy_restored",
    "old_started.before",
    "old_started",
];

/// Points that only an attempt with hooks passes.
pub const HOOK_KILL_POINTS: &[&str] = &[
    "hook_journalled.before",
    "hook_journalled",
    "hook_created",
    "hook_started",
    "hook_ended.before",
    "hook_ended",
    "hook_removed",
];

/// Points of an attempt on a compose host; those of [`KILL_POINTS`] that it passes, too, are not repeated.
pub const COMPOSE_KILL_POINTS: &[&str] = &["lock_kept", "lock_journalled", "lock_shown", "up.before", "up"];

/// Points that only a restore on a compose host passes.
pub const COMPOSE_RESTORE_KILL_POINTS: &[&str] = &["return.before", "return"];

/// Points of an exchange of the agent's own program; those of [`KILL_POINTS`] that it passes, too, are not repeated. The last ones are
/// passed by the launcher or by the new program.
pub const PROGRAM_KILL_POINTS: &[&str] = &[
    "program_copied",
    "program_verified",
    "program_installed",
    "trial_marked.before",
    "trial_marked",
    "handed_over.before",
    "launch_counted",
    "launched",
    "program_confirmed.before",
    "program_confirmed",
];

/// Points that only the way back to the program before passes.
pub const PROGRAM_RESTORE_KILL_POINTS: &[&str] = &[
    "given_up.before",
    "given_up",
    "program_withdrawn.before",
    "program_withdrawn",
];

/// Points of the session: the acknowledgement of an accepted order arrived; a batch with the end of an attempt was handed to
/// the stream; its acknowledgement was taken.
pub const SESSION_KILL_POINTS: &[&str] = &["acked", "evidence_sent", "evidence_acked"];

/// Passes `point`.
#[cfg(not(feature = "kill-points"))]
#[inline]
pub fn at(_point: &str) {}

/// Passes `point`.
#[cfg(feature = "kill-points")]
pub fn at(point: &str) {
    use std::sync::atomic::{AtomicU32, Ordering};

    static PASSED: AtomicU32 = AtomicU32::new(0);
    let Ok(wanted) = std::env::var("SEALIFT_AGENT_KILL_AT") else {
        return;
    };
    let (name, count) = wanted
        .split_once(':')
        .map_or((wanted.as_str(), 1), |(name, count)| {
            (name, count.parse().unwrap_or(1))
        });
    if name == point && PASSED.fetch_add(1, Ordering::Relaxed) + 1 == count {
        // Ends every thread at once: no destructor, no flush, no exit handler runs.
        std::process::abort();
    }
}
