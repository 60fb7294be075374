//! Where the walks let an agent die: its kill points, by phase of the attempt.
//!
//! A crash anywhere in a phase leaves much the same behind. So a run by default dies once in every phase, at the phase's first point,
//! where most is half done; with `SEALIFT_TEST_FULL=1` it dies at every point.

/// The points of a phase; the first one is where a run without much time dies.
pub type Phase = &'static [&'static str];

/// A swap in place that goes well, and the session that carries its order and its report.
pub const IN_PLACE: &[Phase] = &[
    &["journalled", "received", "verified", "journalled.before", "acked"],
    &["pull_done", "pull_begun", "digest_compared"],
    &["new_created", "network_ready", "new_created.before"],
    &["switch_journalled", "old_saved", "switch_journalled.before"],
    &[
        "old_stopped",
        "old_stopped.before",
        "old_policy_no.before",
        "old_policy_no",
    ],
    &["new_started", "new_started.before"],
    &["health_wait", "healthy"],
    &["commit_journalled", "sticker_temp_written", "sticker_renamed"],
    &["outbox_synced", "evidence_signed", "outbox_synced.before"],
    &["old_removed.before", "old_removed"],
    &["evidence_sent", "evidence_acked"],
];

/// The way back of a swap in place.
pub const IN_PLACE_RESTORE: &[Phase] = &[
    &["restore_journalled", "restore_journalled.before"],
    &[
        "new_stopped",
        "new_stopped.before",
        "new_removed.before",
        "new_removed",
    ],
    &[
        "old_started.before",
        "old_policy_restored.before",
        "old_policy_restored",
        "old_started",
    ],
];

/// A blue/green swap that goes well. What every swap passes before it is walked on swaps in place.
pub const BLUE_GREEN: &[Phase] = &[
    &["switch_journalled", "new_created", "old_saved"],
    &[
        "new_started",
        "health_wait",
        "ready_journalled.before",
        "ready_journalled",
    ],
    &["new_joined", "new_joined.before"],
    &["old_left", "old_left.before"],
    &["switched_journalled", "switched_journalled.before"],
    &["commit_journalled", "healthy", "sticker_renamed", "outbox_synced"],
    &["old_stopped", "old_removed"],
];

/// The way back of a blue/green swap before its switch.
pub const BLUE_GREEN_GIVEN_UP: &[Phase] = &[&["new_stopped", "restore_journalled", "new_removed"]];

/// The way back of a blue/green swap after its switch.
pub const BLUE_GREEN_RESTORE: &[Phase] = &[
    &["old_joined", "old_joined.before"],
    &["new_stopped.before", "new_removed"],
];

/// An attempt on a compose host that goes well, and its session.
pub const COMPOSE: &[Phase] = &[
    &["journalled", "received", "verified", "journalled.before", "acked"],
    &[
        "lock_journalled",
        "pull_begun",
        "digest_compared",
        "lock_kept",
        "lock_shown",
    ],
    &["switch_journalled", "old_saved", "switch_journalled.before"],
    &["up", "up.before"],
    &["health_wait", "healthy"],
    &["commit_journalled", "sticker_temp_written", "sticker_renamed"],
    &["outbox_synced", "evidence_signed", "outbox_synced.before"],
    &["evidence_sent", "evidence_acked"],
];

/// The way back on a compose host, with its report.
pub const COMPOSE_RESTORE: &[Phase] = &[
    &["restore_journalled", "restore_journalled.before"],
    &["return", "return.before"],
    &["outbox_synced", "evidence_signed"],
];

/// A hook.
pub const HOOKS: &[Phase] = &[
    &["hook_created", "hook_journalled.before", "hook_journalled"],
    &["hook_started"],
    &["hook_ended", "hook_ended.before", "hook_removed"],
];

/// Whether a run is to take every point.
pub fn is_full() -> bool {
    std::env::var("SEALIFT_TEST_FULL").is_ok_and(|value| value == "1")
}

/// Where a run dies: at the first point of every phase, or at all of them.
pub fn chosen(phases: &[Phase], full: bool) -> Vec<&'static str> {
    let most = if full { usize::MAX } else { 1 };
    phases
        .iter()
        .flat_map(|phase| phase.iter().take(most))
        .copied()
        .collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use sealift_agent::kill;

    use super::*;

    fn all(phases: &[Phase]) -> BTreeSet<&'static str> {
        let points = chosen(phases, true);
        let unique: BTreeSet<_> = points.iter().copied().collect();
        assert_eq!(points.len(), unique.len(), "a point is named twice: {points:?}");
        unique
    }

    fn those(lists: &[&[&'static str]]) -> BTreeSet<&'static str> {
        lists.concat().into_iter().collect()
    }

    #[test]
    fn f1_every_kill_point_is_in_a_phase() {
        assert_eq!(
            all(IN_PLACE),
            those(&[kill::KILL_POINTS, kill::SESSION_KILL_POINTS])
        );
        assert_eq!(all(IN_PLACE_RESTORE), those(&[kill::RESTORE_KILL_POINTS]));
        assert_eq!(all(HOOKS), those(&[kill::HOOK_KILL_POINTS]));
        // These walks add to the one in place: nothing that only they pass is left out, and nothing unknown is waited for.
        for (phases, own, shared) in [
            (BLUE_GREEN, kill::BLUE_GREEN_KILL_POINTS, kill::KILL_POINTS),
            (
                BLUE_GREEN_RESTORE,
                kill::BLUE_GREEN_RESTORE_KILL_POINTS,
                kill::RESTORE_KILL_POINTS,
            ),
            (BLUE_GREEN_GIVEN_UP, &[], kill::RESTORE_KILL_POINTS),
        ] {
            assert!(all(phases).is_superset(&those(&[own])), "{own:?}");
            assert!(all(phases).is_subset(&those(&[own, shared])), "{phases:?}");
        }
        let (own, session) = (kill::COMPOSE_KILL_POINTS, kill::SESSION_KILL_POINTS);
        assert!(all(COMPOSE).is_superset(&those(&[own, session])));
        assert!(all(COMPOSE).is_subset(&those(&[own, session, kill::KILL_POINTS])));
        let (own, way_back) = (kill::COMPOSE_RESTORE_KILL_POINTS, kill::RESTORE_KILL_POINTS);
        assert!(all(COMPOSE_RESTORE).is_superset(&those(&[own])));
        assert!(all(COMPOSE_RESTORE).is_subset(&those(&[own, way_back, kill::KILL_POINTS])));
    }

    #[test]
    fn f1_a_run_without_much_time_dies_once_in_every_phase() {
        for phases in [
            IN_PLACE,
            IN_PLACE_RESTORE,
            BLUE_GREEN,
            COMPOSE,
            COMPOSE_RESTORE,
            HOOKS,
        ] {
            let few = chosen(phases, false);
            assert_eq!(few.len(), phases.len());
            assert!(few.iter().zip(phases).all(|(point, phase)| phase.contains(point)));
        }
    }
}
