//! What an agent says about itself.

use sealift_common::{bounds::TEXT_BYTES, inventory::AgentFacts};

use super::{Malformed, bounded};
use crate::agent::v1 as pb;

/// Most entries in a list of facts.
pub const MAX_FACTS: usize = 64;

impl From<AgentFacts> for pb::Facts {
    fn from(facts: AgentFacts) -> Self {
        let AgentFacts {
            version,
            capabilities,
            hostname,
            platform,
            engine,
            engine_api,
            degraded,
        } = facts;
        Self {
            version,
            capabilities,
            hostname,
            platform,
            engine,
            engine_api,
            degraded,
        }
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
        } = facts;
        let text = |field, text| bounded(field, text, TEXT_BYTES);
        let list = |field, list: Vec<String>| {
            if list.len() > MAX_FACTS {
                return Err(Malformed::new(field, format!("more than {MAX_FACTS} entries")));
            }
            list.into_iter().map(|entry| text(field, entry)).collect()
        };
        Ok(Self {
            version: text("facts.version", version)?,
            capabilities: list("facts.capabilities", capabilities)?,
            hostname: text("facts.hostname", hostname)?,
            platform: text("facts.platform", platform)?,
            engine: text("facts.engine", engine)?,
            engine_api: text("facts.engine_api", engine_api)?,
            degraded: list("facts.degraded", degraded)?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts() -> AgentFacts {
        AgentFacts {
            version: "0.1.0".into(),
            capabilities: vec!["docker_host".into()],
            hostname: "h1".into(),
            platform: "linux/amd64".into(),
            engine: "Docker 20.10".into(),
            engine_api: "1.41".into(),
            degraded: vec!["disk nearly full".into()],
        }
    }

    #[test]
    fn facts_round_trip() {
        assert_eq!(AgentFacts::try_from(pb::Facts::from(facts())), Ok(facts()));
    }

    #[test]
    fn facts_are_bounded() {
        let long = pb::Facts {
            hostname: "x".repeat(TEXT_BYTES + 1),
            ..facts().into()
        };
        assert_eq!(AgentFacts::try_from(long).unwrap_err().field, "facts.hostname");
        let many = pb::Facts {
            degraded: vec![String::new(); MAX_FACTS + 1],
            ..facts().into()
        };
        assert_eq!(AgentFacts::try_from(many).unwrap_err().field, "facts.degraded");
    }
}
