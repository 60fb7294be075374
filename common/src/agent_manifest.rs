//! What a release for agents is made of: the one image that holds the agent's program with its signature. The program itself is
//! judged on the host, by keys that only the host's owner chooses ([`crate::program`]).

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    canonical::{self, CanonicalError},
    digest::Digest,
    manifest::PinnedImage,
    name::ServiceName,
    program::{PROGRAM_PATH, SERVICE, SIGNATURE_PATH},
};

/// Says in the content itself what kind of target it is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum AgentKind {
    /// `agent_host`
    #[default]
    #[serde(rename = "agent_host")]
    AgentHost,
}

/// The content of a release for agents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentManifest {
    /// Always `agent_host`.
    pub kind: AgentKind,
    /// One service of the name [`SERVICE`], written as every other release writes its services.
    pub services: BTreeMap<ServiceName, PinnedImage>,
}

impl AgentManifest {
    /// The image, with the name of its service; `None` when there is another service, or more than one.
    pub fn program(&self) -> Option<(&ServiceName, &PinnedImage)> {
        let mut services = self.services.iter();
        match (services.next(), services.next()) {
            (Some((name, image)), None) if name.as_str() == SERVICE => Some((name, image)),
            _ => None,
        }
    }

    /// The digest of what a program is made from besides its image: where it lies in it.
    pub fn config_digest() -> Result<Digest, CanonicalError> {
        canonical::digest(&(PROGRAM_PATH, SIGNATURE_PATH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_one_program_of_the_known_name() {
        let image = PinnedImage {
            repository: "r.example/agent".into(),
            tag: None,
            digest: Digest::of(b"1"),
        };
        let of = |names: &[&str]| AgentManifest {
            kind: AgentKind::AgentHost,
            services: names
                .iter()
                .map(|name| (name.parse().unwrap(), image.clone()))
                .collect(),
        };
        assert_eq!(of(&[SERVICE]).program().map(|(_, image)| image), Some(&image));
        assert_eq!(of(&[]).program(), None);
        assert_eq!(of(&["web"]).program(), None);
        assert_eq!(of(&[SERVICE, "web"]).program(), None);
    }
}
