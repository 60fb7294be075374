//! Typed identifiers: UUIDs that cannot be mixed up. Time-ordered (version 7) down to the microsecond, the finest unit of a
//! [`Clock`](crate::time::Clock), so that lists by id are lists by creation.

use std::{fmt, str::FromStr};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use uuid::{Timestamp, Uuid};

/// Why a text is not an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind} id (a lower-case UUID)")]
pub struct InvalidId {
    /// What kind of identifier was wanted.
    pub kind: &'static str,
    /// What was given, cut to a printable length.
    pub text: String,
}

/// How many bits behind the milliseconds of a version 7 UUID carry on the time; all others are random.
const FRACTION_BITS: u8 = 12;

/// The time with the microseconds behind its millisecond: a version 7 UUID alone keeps milliseconds only. Nothing is remembered
/// from one identifier to the next, so that they depend on the given time and on chance, in whichever thread they are made.
fn timestamp(now: DateTime<Utc>) -> Timestamp {
    let seconds = u64::try_from(now.timestamp()).unwrap_or(0);
    let micros = u128::from(now.timestamp_subsec_micros() % 1_000);
    // A microsecond is a little more than four steps of 1/4096 ms: two different ones never fall together.
    let fraction = (micros << FRACTION_BITS) / 1_000;
    Timestamp::from_unix_time(seconds, now.timestamp_subsec_nanos(), fraction, FRACTION_BITS)
}

macro_rules! ids {
    ($($(#[$doc:meta])* $name:ident, $kind:literal;)+) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Uuid);

        impl $name {
            /// A fresh identifier that sorts by `now`.
            pub fn new(now: DateTime<Utc>) -> Self {
                Self(Uuid::new_v7(timestamp(now)))
            }

            /// The raw value, for storage.
            pub const fn uuid(self) -> Uuid {
                self.0
            }
        }

        impl From<Uuid> for $name {
            fn from(value: Uuid) -> Self {
                Self(value)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                // Only the canonical spelling, so that one thing has one name.
                Uuid::try_parse(text)
                    .ok()
                    .filter(|id| id.to_string() == text)
                    .map(Self)
                    .ok_or_else(|| InvalidId { kind: $kind, text: text.chars().take(64).collect() })
            }
        }
    )+};
}

ids! {
    /// A [tenant](crate::inventory::Tenant).
    TenantId, "tenant";
    /// A person or a machine that calls the operator API.
    UserId, "user";
    /// An [environment](crate::inventory::Environment).
    EnvironmentId, "environment";
    /// A [target](crate::inventory::Target).
    TargetId, "target";
    /// An [agent](crate::inventory::Agent).
    AgentId, "agent";
    /// One connection of one agent. Never stored on the agent's disk.
    SessionId, "session";
    /// A single-use join token (the identifier, not the secret).
    JoinTokenId, "join token";
    /// A [component](crate::inventory::Component).
    ComponentId, "component";
    /// A project: a place in a repository that numbers its own releases.
    ProjectId, "project";
    /// A [release](crate::release::Release).
    ReleaseId, "release";
    /// A [promotion](crate::promotion::Promotion).
    PromotionId, "promotion";
    /// A decision record.
    DecisionId, "decision";
    /// A [deployment job](crate::job::Job).
    JobId, "job";
    /// A [deployment task](crate::task::Task).
    TaskId, "task";
    /// An evidence packet.
    PacketId, "packet";
    /// A drift observation.
    DriftId, "drift";
    /// A hold on a project in an environment.
    HoldId, "hold";
    /// A run of maintenance.
    MaintenanceRunId, "maintenance run";
    /// An orchestrator process.
    ReplicaId, "replica";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use chrono::TimeDelta;

    use super::*;

    #[test]
    fn ids_sort_by_time_and_round_trip() {
        let early = TaskId::new(DateTime::from_timestamp(1_000, 0).unwrap());
        let late = TaskId::new(DateTime::from_timestamp(2_000, 0).unwrap());
        assert!(early < late);
        assert_eq!(early.to_string().parse(), Ok(early));
    }

    #[test]
    fn ids_of_one_millisecond_sort_by_the_microsecond() {
        let start = DateTime::from_timestamp(1_800_000_000, 999_500_000).unwrap();
        let ids: Vec<_> = (0..1_000)
            .map(|micros| TaskId::new(start + TimeDelta::microseconds(micros)))
            .collect();
        assert!(ids.is_sorted());
        let version = ids.iter().map(|id| id.uuid().get_version_num());
        assert!(version.eq(std::iter::repeat_n(7, ids.len())));
    }

    #[test]
    fn ids_of_one_instant_differ() {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let ids: BTreeSet<_> = (0..1_000).map(|_| TaskId::new(now)).collect();
        assert_eq!(ids.len(), 1_000);
    }

    #[test]
    fn other_spellings_are_refused() {
        for text in [
            "",
            "x",
            "{018f0000-0000-7000-8000-000000000000}",
            "018F0000-0000-7000-8000-000000000000",
        ] {
            assert!(text.parse::<TaskId>().is_err(), "{text}");
        }
    }
}
