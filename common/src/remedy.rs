//! Remediation: what the orchestrator does by itself about drift. By default nothing. Where an environment asks for it, the release
//! that is recorded is put back, within limits on rate and number: what does not help is not repeated for ever.

use chrono::{DateTime, TimeDelta, Utc};

use crate::{
    bounds,
    drift::{DriftKind, Severity},
    inventory::{AgentIntent, AgentStatus},
    phases,
    strategy::{DAY_MS, InvalidLimit, wrong},
};

/// Who asks for the promotions that put things back.
pub const RECONCILER: &str = "orchestrator/reconciler";

/// The span in which acts are counted.
pub const WINDOW: TimeDelta = TimeDelta::hours(24);
/// How long a place must have been as it is: a restart under way, or somebody's hand, is not fought.
pub const SETTLE: TimeDelta = TimeDelta::seconds(30);
/// Findings that keep coming put an act off for this long at most.
const SETTLE_AT_MOST: TimeDelta = TimeDelta::minutes(5);
/// The wait after the first act is three times this; after each further one three times as long.
const BACK_OFF: TimeDelta = TimeDelta::seconds(10);
/// The longest wait between acts.
const LONGEST_BACK_OFF: TimeDelta = TimeDelta::hours(1);

phases! {
    /// What is done about drift, as it is stored.
    Mode { Alert = "alert", Reconcile = "reconcile" }
}

/// What is done about drift in an environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Remediation {
    /// It is told, and a person decides.
    #[default]
    Alert,
    /// What is recorded is put back.
    Reconcile(Limits),
}

impl Remediation {
    /// Without its limits.
    pub const fn mode(self) -> Mode {
        match self {
            Self::Alert => Mode::Alert,
            Self::Reconcile(_) => Mode::Reconcile,
        }
    }

    /// The limits, if it acts at all.
    pub const fn limits(self) -> Option<Limits> {
        match self {
            Self::Alert => None,
            Self::Reconcile(limits) => Some(limits),
        }
    }
}

/// How far remediation may go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most acts for one project on one target within [`WINDOW`].
    pub max_tries: u32,
    /// What is less severe is only told.
    pub min_severity: Severity,
    /// How long after an act in the environment the next one may follow, wherever that is.
    pub pause_ms: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_tries: 3,
            min_severity: Severity::Low,
            pause_ms: 60_000,
        }
    }
}

impl Limits {
    /// Checks the bounds.
    pub fn check(&self) -> Result<(), InvalidLimit> {
        if !(1..=bounds::REMEDY_TRIES).contains(&self.max_tries) {
            return wrong("max_tries", "must be between 1 and 10");
        }
        if self.pause_ms > DAY_MS {
            return wrong("pause", "must be at most 24 hours");
        }
        Ok(())
    }
}

/// An open finding, as far as remediation goes by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// What disagrees.
    pub kind: DriftKind,
    /// How severe it is.
    pub severity: Severity,
    /// Somebody looks after it.
    pub owned: bool,
    /// Since when it is known.
    pub since: DateTime<Utc>,
}

/// What is recorded to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deployed {
    /// Since when.
    pub since: DateTime<Utc>,
    /// Remediation itself had put it there last; otherwise it is somebody's wish, and acts from before it do not count.
    pub by_remediation: bool,
    /// The release may still be promoted.
    pub ready: bool,
}

/// An act of the past.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Try {
    /// Its number, from 1; begins anew when none before it counts.
    pub number: u32,
    /// When.
    pub at: DateTime<Utc>,
}

/// Everything that is known about one place: one project on one target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Situation {
    /// All open findings.
    pub findings: Vec<Seen>,
    /// What is recorded to run.
    pub deployed: Option<Deployed>,
    /// When the agent last said how the target is.
    pub looked_at: Option<DateTime<Utc>>,
    /// The agent that serves the target.
    pub agent: Option<(AgentIntent, AgentStatus)>,
    /// A job runs or waits in the environment, or a task works on the target.
    pub busy: bool,
    /// A person has to look before anything new of the project goes to the environment.
    pub held: bool,
    /// Acts at this place, newest first.
    pub tries: Vec<Try>,
    /// The newest act anywhere in the environment.
    pub last_act: Option<DateTime<Utc>>,
}

phases! {
    /// Why nothing is done, until something else changes.
    Because {
        AlertOnly = "alert_only", NothingToMend = "nothing_to_mend", Owned = "owned", NothingRecorded = "nothing_recorded",
        ReleaseNotReady = "release_not_ready", Held = "held", AgentAway = "agent_away", Busy = "busy",
        NotLookedAt = "not_looked_at",
    }
}

/// What is to be done at a place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// What is recorded is put back.
    Act {
        /// Which try that is.
        number: u32,
    },
    /// Not before a moment.
    Wait {
        /// That moment.
        until: DateTime<Utc>,
    },
    /// Nothing.
    Leave(Because),
    /// It was tried often enough: a person has to look.
    GiveUp {
        /// How often.
        tries: u32,
    },
}

/// Whether an act can put right what a finding is about. What nothing recorded explains is somebody else's.
pub const fn is_mendable(kind: DriftKind) -> bool {
    !matches!(kind, DriftKind::Extra)
}

/// What is to be done at a place now.
pub fn decide(policy: Remediation, place: &Situation, now: DateTime<Utc>) -> Decision {
    use Decision::{Act, GiveUp, Leave, Wait};
    let Remediation::Reconcile(limits) = policy else {
        return Leave(Because::AlertOnly);
    };
    let since = place
        .findings
        .iter()
        .filter(|seen| is_mendable(seen.kind) && seen.severity >= limits.min_severity)
        .map(|seen| seen.since);
    let (Some(oldest), Some(newest)) = (since.clone().min(), since.max()) else {
        return Leave(Because::NothingToMend);
    };
    // An act puts back the whole set, so whoever looks after one part of it has the place.
    if place.findings.iter().any(|seen| seen.owned) {
        return Leave(Because::Owned);
    }
    let Some(deployed) = place.deployed else {
        return Leave(Because::NothingRecorded);
    };
    if let Some(because) = obstacle(place, deployed) {
        return Leave(because);
    }
    let settled = (newest + SETTLE).min(oldest + SETTLE_AT_MOST);
    if settled > now {
        return Wait { until: settled };
    }
    let tries = counted(&place.tries, deployed, now);
    if let (Some(last), 1..) = (place.tries.first(), tries) {
        let until = last.at + back_off(tries);
        if until > now {
            return Wait { until };
        }
    }
    if tries >= limits.max_tries {
        return GiveUp { tries };
    }
    if let Some(last) = place.last_act {
        let until = last + TimeDelta::milliseconds(i64::from(limits.pause_ms));
        if until > now {
            return Wait { until };
        }
    }
    Act { number: tries + 1 }
}

fn obstacle(place: &Situation, deployed: Deployed) -> Option<Because> {
    if !deployed.ready {
        return Some(Because::ReleaseNotReady);
    }
    if place.held {
        return Some(Because::Held);
    }
    let serves = place.agent.is_some_and(|(intent, status)| {
        intent.takes_orders() && matches!(status, AgentStatus::Online | AgentStatus::Degraded)
    });
    if !serves {
        return Some(Because::AgentAway);
    }
    if place.busy {
        return Some(Because::Busy);
    }
    // What was found before the last deployment says nothing about what that one has changed.
    if place.looked_at.is_none_or(|at| at < deployed.since) {
        return Some(Because::NotLookedAt);
    }
    None
}

/// How many acts count against the limit: those within the window, after the last deployment that somebody else wanted, back to
/// where counting began.
fn counted(tries: &[Try], deployed: Deployed, now: DateTime<Utc>) -> u32 {
    let mut count = 0;
    for one in tries {
        let wanted_since = !deployed.by_remediation && one.at <= deployed.since;
        if one.at <= now - WINDOW || wanted_since {
            break;
        }
        count += 1;
        if one.number == 1 {
            break;
        }
    }
    count
}

/// The wait after so many acts.
fn back_off(tries: u32) -> TimeDelta {
    3_i32
        .checked_pow(tries)
        .and_then(|factor| BACK_OFF.checked_mul(factor))
        .map_or(LONGEST_BACK_OFF, |wait| wait.min(LONGEST_BACK_OFF))
}
