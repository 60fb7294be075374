//! What an agent says about itself: read from agents, so every text and list is bounded.

use sealift_common::{
    bounds::TEXT_BYTES,
    condition::Condition,
    inventory::{AgentFacts, ClockFacts, DiskFacts, PruneFacts},
};

use super::{Malformed, bounded, time, timestamp};
use crate::agent::v1 as pb;

/// Most entries in a list of facts.
pub const MAX_FACTS: usize = 64;
/// Longest code of a condition.
const CODE_BYTES: usize = 64;
/// Clocks differ by at most this much: more is not a measurement.
const CLOCK_MS: i64 = 1000 * 60 * 60 * 24 * 365 * 100;

impl From<AgentFacts> for pb::Facts {
    fn from(facts: AgentFacts) -> Self {
        let AgentFacts {
            version,
            capabilities,
            hostname,
            platform,
            engine,
            engine_api,
            storage_driver,
            cgroup_version,
            compose,
            disks,
            clock,
            pruned,
            degraded,
        } = facts;
        Self {
            version,
            capabilities,
            hostname,
            platform,
            engine,
            engine_api,
            degraded: degraded
                .into_iter()
                .map(|Condition { code, detail }| pb::Condition { code, detail })
                .collect(),
            storage_driver,
            cgroup_version,
            compose,
            disks: disks.into_iter().map(disk).collect(),
            clock: clock.map(|clock| pb::Clock {
                ahead_ms: clock.ahead_ms,
                uncertainty_ms: clock.uncertainty_ms,
            }),
            pruned: pruned.map(|pruned| pb::Prune {
                time: Some(timestamp(pruned.at)),
                images: pruned.images,
                bytes: pruned.bytes,
            }),
        }
    }
}

fn disk(disk: DiskFacts) -> pb::Disk {
    let DiskFacts {
        what,
        path,
        free_bytes,
        total_bytes,
    } = disk;
    pb::Disk {
        what,
        path,
        free_bytes,
        total_bytes,
    }
}

impl TryFrom<pb::Facts> for AgentFacts {
    type Error = Malformed;

    fn try_from(facts: pb::Facts) -> Result<Self, Malformed> {
        let pb::Facts {
            version,
            capabilities,
            hostname,
            platform,
            engine,
            engine_api,
            degraded,
            storage_driver,
            cgroup_version,
            compose,
            disks,
            clock,
            pruned,
        } = facts;
        let text = |field, text| bounded(field, text, TEXT_BYTES);
        Ok(Self {
            version: text("facts.version", version)?,
            capabilities: list("facts.capabilities", capabilities, |entry| {
                text("facts.capabilities", entry)
            })?,
            hostname: text("facts.hostname", hostname)?,
            platform: text("facts.platform", platform)?,
            engine: text("facts.engine", engine)?,
            engine_api: text("facts.engine_api", engine_api)?,
            storage_driver: text("facts.storage_driver", storage_driver)?,
            cgroup_version: text("facts.cgroup_version", cgroup_version)?,
            compose: text("facts.compose", compose)?,
            disks: list("facts.disks", disks, |disk| {
                Ok(DiskFacts {
                    what: text("facts.disks[].what", disk.what)?,
                    path: text("facts.disks[].path", disk.path)?,
                    free_bytes: disk.free_bytes,
                    total_bytes: disk.total_bytes,
                })
            })?,
            clock: clock.map(measured).transpose()?,
            pruned: pruned
                .map(|pruned| {
                    Ok(PruneFacts {
                        at: time("facts.pruned.time", pruned.time.as_ref())?,
                        images: pruned.images,
                        bytes: pruned.bytes,
                    })
                })
                .transpose()?,
            degraded: list("facts.degraded", degraded, |condition| {
                Ok(Condition {
                    code: code(condition.code)?,
                    detail: text("facts.degraded[].detail", condition.detail)?,
                })
            })?,
        })
    }
}

fn list<In, Out>(
    field: &'static str,
    entries: Vec<In>,
    read: impl FnMut(In) -> Result<Out, Malformed>,
) -> Result<Vec<Out>, Malformed> {
    if entries.len() > MAX_FACTS {
        return Err(Malformed::new(field, format!("more than {MAX_FACTS} entries")));
    }
    entries.into_iter().map(read).collect()
}

/// Codes go into decisions and scripts, so they are held to their alphabet.
fn code(text: String) -> Result<String, Malformed> {
    let fits = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    if text.is_empty() || text.len() > CODE_BYTES || !text.chars().all(fits) {
        return Err(Malformed::new(
            "facts.degraded[].code",
            format!("wanted 1 to {CODE_BYTES} of A-Z, 0-9 and _"),
        ));
    }
    Ok(text)
}

fn measured(clock: pb::Clock) -> Result<ClockFacts, Malformed> {
    if clock.ahead_ms.unsigned_abs() > CLOCK_MS.unsigned_abs() {
        return Err(Malformed::new("facts.clock.ahead_ms", "is more than a century"));
    }
    Ok(ClockFacts {
        ahead_ms: clock.ahead_ms,
        uncertainty_ms: clock.uncertainty_ms,
    })
}

#[cfg(test)]
mod tests {
    use sealift_common::condition::ConditionCode;

    use super::*;

    fn facts() -> AgentFacts {
        AgentFacts {
            version: "0.1.0".into(),
            capabilities: vec!["docker_host".into()],
            hostname: "h1".into(),
            platform: "linux/amd64".into(),
            engine: "Docker 20.10".into(),
            engine_api: "1.41".into(),
            storage_driver: "overlay2".into(),
            cgroup_version: "2".into(),
            compose: "2.29.1".into(),
            disks: vec![DiskFacts {
                what: "engine".into(),
                path: "/var/lib/docker".into(),
                free_bytes: 1,
                total_bytes: u64::MAX,
            }],
            clock: Some(ClockFacts {
                ahead_ms: -20_000,
                uncertainty_ms: 3,
            }),
            pruned: Some(PruneFacts {
                at: chrono::DateTime::from_timestamp(1_800_000_000, 0).unwrap(),
                images: 2,
                bytes: 3,
            }),
            degraded: vec![Condition::new(ConditionCode::DiskLow, "1 B free")],
        }
    }

    #[test]
    fn facts_round_trip() {
        assert_eq!(AgentFacts::try_from(pb::Facts::from(facts())), Ok(facts()));
    }

    #[test]
    fn facts_are_bounded() {
        let refused = |spoil: fn(&mut pb::Facts)| {
            let mut facts = pb::Facts::from(facts());
            spoil(&mut facts);
            AgentFacts::try_from(facts).unwrap_err().field
        };
        assert_eq!(
            refused(|facts| facts.hostname = "x".repeat(TEXT_BYTES + 1)),
            "facts.hostname"
        );
        assert_eq!(
            refused(|facts| facts.degraded = vec![pb::Condition::default(); MAX_FACTS + 1]),
            "facts.degraded"
        );
        assert_eq!(
            refused(|facts| facts.degraded[0].code = "disk low".into()),
            "facts.degraded[].code"
        );
        assert_eq!(
            refused(|facts| facts.degraded[0].detail = "x".repeat(TEXT_BYTES + 1)),
            "facts.degraded[].detail"
        );
        assert_eq!(
            refused(|facts| facts.disks = vec![pb::Disk::default(); MAX_FACTS + 1]),
            "facts.disks"
        );
        assert_eq!(
            refused(|facts| facts.clock = Some(pb::Clock {
                ahead_ms: i64::MIN,
                uncertainty_ms: 0
            })),
            "facts.clock.ahead_ms"
        );
    }
}
