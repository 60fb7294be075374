//! Maintenance: what the orchestrator does by itself to keep its records small and sound. Each run is recorded with its result.

use chrono::{DateTime, TimeDelta, Utc};

use crate::phases;

phases! {
    /// What a run does.
    MaintenanceKind {
        Cleanup = "cleanup", Audit = "audit", Evidence = "evidence",
    }
}

phases! {
    /// Where a run stands.
    MaintenanceState {
        Pending = "pending", InProgress = "in_progress", Succeeded = "succeeded", Failed = "failed",
    }
}

impl MaintenanceKind {
    /// What it does, for people.
    pub const fn description(self) -> &'static str {
        match self {
            Self::Cleanup => {
                "forgets answers that nobody may ask for again, old runs of maintenance, and certificates that ended long ago"
            }
            Self::Audit => "checks the chain of audit events from its beginning",
            Self::Evidence => "verifies every stored packet again, under the keys that signed it",
        }
    }

    /// How long after the beginning of a run the next one begins.
    pub const fn interval(self) -> TimeDelta {
        match self {
            Self::Cleanup => TimeDelta::hours(1),
            Self::Audit | Self::Evidence => TimeDelta::hours(24),
        }
    }

    /// Whether a run is due, by when the newest one was made; one that is not over is the only one.
    pub fn is_due(self, newest: Option<DateTime<Utc>>, now: DateTime<Utc>) -> bool {
        newest.is_none_or(|newest| now - newest >= self.interval())
    }
}

impl MaintenanceState {
    /// Whether nothing follows.
    pub const fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// How far a run is.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Progress {
    /// Where the next piece begins, in the words of its kind; empty at the beginning.
    pub position: String,
    /// How many things it has looked at.
    pub items: u64,
    /// How many of them were not as they must be.
    pub problems: u64,
    /// The first problem, for people.
    pub first_problem: String,
}

impl Progress {
    /// One thing that is not as it must be.
    pub fn problem(&mut self, text: impl Into<String>) {
        self.problems += 1;
        if self.first_problem.is_empty() {
            self.first_problem = text.into();
        }
    }

    /// How a run ends that is through.
    pub const fn verdict(&self) -> MaintenanceState {
        if self.problems == 0 {
            MaintenanceState::Succeeded
        } else {
            MaintenanceState::Failed
        }
    }

    /// The result in one line.
    pub fn summary(&self, kind: MaintenanceKind) -> String {
        let what = match kind {
            MaintenanceKind::Cleanup => "rows forgotten",
            MaintenanceKind::Audit => "audit events checked",
            MaintenanceKind::Evidence => "packets verified",
        };
        match self.problems {
            0 => format!("{} {what}", self.items),
            problems => format!(
                "{} {what}, {problems} of them not as they must be; the first: {}",
                self.items, self.first_problem
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_due_when_the_newest_is_an_interval_old() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        for kind in MaintenanceKind::ALL {
            assert!(kind.is_due(None, now));
            assert!(!kind.is_due(Some(now), now));
            assert!(!kind.is_due(Some(now - kind.interval() + TimeDelta::seconds(1)), now));
            assert!(kind.is_due(Some(now - kind.interval()), now));
            // A clock that was set back makes none due.
            assert!(!kind.is_due(Some(now + TimeDelta::days(2)), now));
        }
    }

    #[test]
    fn one_problem_fails_a_run_and_the_first_one_is_named() {
        let mut progress = Progress {
            items: 3,
            ..Progress::default()
        };
        assert_eq!(progress.verdict(), MaintenanceState::Succeeded);
        assert_eq!(progress.summary(MaintenanceKind::Evidence), "3 packets verified");
        progress.problem("packet 1");
        progress.problem("packet 2");
        assert_eq!(progress.verdict(), MaintenanceState::Failed);
        assert_eq!(
            progress.summary(MaintenanceKind::Evidence),
            "3 packets verified, 2 of them not as they must be; the first: packet 1"
        );
    }
}
