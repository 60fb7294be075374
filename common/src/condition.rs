//! Condition: why an agent is not wholly well, as a stable code with an advice. What an agent says travels as it is, also from a
//! newer version whose codes this one does not know; only the texts are bounded. What failed on a target is in `failure.rs`.

use serde::{Deserialize, Serialize};

use crate::{bounds, failure, phases};

phases! {
    /// Stable code of a condition. Each has a page in `docs/errors`.
    ConditionCode {
        EngineUnavailable = "ENGINE_UNAVAILABLE",
        EngineOld = "ENGINE_OLD",
        DiskLow = "DISK_LOW",
        ClockSkew = "CLOCK_SKEW",
        AgentState = "AGENT_STATE",
        VersionSkew = "VERSION_SKEW",
    }
}

impl ConditionCode {
    /// What to do next.
    pub const fn advice(self) -> &'static str {
        match self {
            Self::EngineUnavailable => {
                "check the engine on the host (systemctl status docker; sealift-agent doctor)"
            }
            Self::EngineOld => "update the engine: API 1.41 (Engine 20.10) or newer is needed",
            Self::DiskLow => {
                "free space on the host (docker system df), or let the agent do it ([prune] of its settings)"
            }
            Self::ClockSkew => "synchronise the host's clock (timedatectl)",
            Self::AgentState => {
                "read the agent's log on the host; start it again, or enrol the host again if unsure"
            }
            Self::VersionSkew => {
                "bring agent and orchestrator together: the orchestrator first, then its agents"
            }
        }
    }
}

/// One reason why an agent is not wholly well.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Condition {
    /// A [`ConditionCode`], or the code of another version.
    pub code: String,
    /// What was found, for people.
    pub detail: String,
}

impl Condition {
    /// A condition of this version.
    pub fn new(code: ConditionCode, detail: impl Into<String>) -> Self {
        Self {
            code: code.as_str().to_owned(),
            detail: failure::cut(detail.into(), bounds::TEXT_BYTES),
        }
    }

    /// Whether it is of this kind.
    pub fn is(&self, code: ConditionCode) -> bool {
        self.code == code.as_str()
    }

    /// What to do next; empty for the code of another version.
    pub fn advice(&self) -> &'static str {
        self.code
            .parse::<ConditionCode>()
            .map_or("", ConditionCode::advice)
    }
}

/// How the version of an agent stands to that of the orchestrator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Skew {
    /// The same minor version, or one or two before it.
    Supported,
    /// Too old for the orchestrator.
    Older,
    /// Newer than the orchestrator.
    Newer,
    /// Not a version that can be compared.
    Unknown,
}

/// Minor versions that an agent may be behind.
const MINORS_BEHIND: u64 = 2;

/// How `agent` stands to `orchestrator`. Patch levels do not matter.
pub fn skew(orchestrator: &str, agent: &str) -> Skew {
    let (Some((ours, our_minor)), Some((theirs, their_minor))) =
        (release_line(orchestrator), release_line(agent))
    else {
        return Skew::Unknown;
    };
    if (theirs, their_minor) > (ours, our_minor) {
        Skew::Newer
    } else if theirs == ours && our_minor - their_minor <= MINORS_BEHIND {
        Skew::Supported
    } else {
        Skew::Older
    }
}

/// The condition that an agent of version `agent` is in beside an orchestrator of version `orchestrator`.
pub fn version_skew(orchestrator: &str, agent: &str) -> Option<Condition> {
    let detail = match skew(orchestrator, agent) {
        Skew::Supported => return None,
        Skew::Older => format!("the agent ({agent}) is too old for the orchestrator ({orchestrator})"),
        Skew::Newer => format!("the agent ({agent}) is newer than the orchestrator ({orchestrator})"),
        Skew::Unknown => format!("the agent's version {agent:?} cannot be compared with {orchestrator}"),
    };
    Some(Condition::new(ConditionCode::VersionSkew, detail))
}

fn release_line(version: &str) -> Option<(u64, u64)> {
    let (major, rest) = version.split_once('.')?;
    let (minor, _) = rest.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_may_be_two_minor_versions_behind_and_never_ahead() {
        for (agent, wanted) in [
            ("1.4.0", Skew::Supported),
            ("1.4.9-rc.1", Skew::Supported),
            ("1.3.7", Skew::Supported),
            ("1.2.0", Skew::Supported),
            ("1.1.9", Skew::Older),
            ("0.9.0", Skew::Older),
            ("1.5.0", Skew::Newer),
            ("2.0.0", Skew::Newer),
            ("", Skew::Unknown),
            ("1.x.0", Skew::Unknown),
            ("1.4", Skew::Unknown),
        ] {
            assert_eq!(skew("1.4.2", agent), wanted, "{agent}");
        }
        assert_eq!(version_skew("1.4.2", "1.4.0"), None);
        assert!(version_skew("1.4.2", "1.5.0").is_some_and(|found| found.is(ConditionCode::VersionSkew)));
    }

    #[test]
    fn codes_of_other_versions_have_no_advice_of_ours() {
        let mut condition = Condition::new(ConditionCode::DiskLow, "x".repeat(bounds::TEXT_BYTES * 2));
        assert_eq!(condition.detail.len(), bounds::TEXT_BYTES);
        assert!(!condition.advice().is_empty());
        condition.code = "MOON_FULL".to_owned();
        assert_eq!(condition.advice(), "");
    }
}
