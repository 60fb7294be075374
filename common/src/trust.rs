//! Trust file and offline verification: everything that is needed to judge a packet without the orchestrator.
//!
//! The file is JSON, exported by the orchestrator and kept by whoever audits: public keys only, so it is no secret, but who can
//! change it decides what is believed.
//!
//! What a good verification means: the agent that the statement names signed exactly these bytes while its key was valid by the
//! statement's own clock, and the orchestrator vouched for it when it took the packet in (it takes none from a revoked agent, so
//! a stolen key cannot date a packet back: T1).

mod verify;

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

pub use verify::{VerifiedPacket, VerifyError, verify_packet};

use crate::{
    id::AgentId,
    keys::{KeyId, PublicKey},
    name::Name,
};

/// The version of the trust file that this program reads and writes.
pub const TRUST_FILE_VERSION: u32 = 1;

/// Largest trust file in bytes: room for the keys of some 30,000 agents.
pub const TRUST_FILE_BYTES: usize = 16 * 1024 * 1024;

/// When a key counts. By the times that packets state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Validity {
    /// From.
    pub from: DateTime<Utc>,
    /// Until, when it was replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<DateTime<Utc>>,
    /// Not from this instant on, when it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked_at: Option<DateTime<Utc>>,
}

/// A countersigning key of the orchestrator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct OrchestratorKey {
    /// Its id; must be that of the key.
    pub key_id: KeyId,
    /// SubjectPublicKeyInfo PEM.
    pub public_key: PublicKey,
    /// When it counts.
    pub validity: Validity,
}

/// An evidence key of an agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentKey {
    /// The agent.
    pub agent_id: AgentId,
    /// Its name, for people.
    pub name: String,
    /// Its tenant.
    pub tenant: Name,
    /// Its id; must be that of the key.
    pub key_id: KeyId,
    /// SubjectPublicKeyInfo PEM.
    pub public_key: PublicKey,
    /// When it counts.
    pub validity: Validity,
}

impl OrchestratorKey {
    /// A key with its id.
    pub fn new(public_key: PublicKey, validity: Validity) -> Self {
        Self {
            key_id: public_key.key_id(),
            public_key,
            validity,
        }
    }
}

impl AgentKey {
    /// A key with its id.
    pub fn new(agent_id: AgentId, name: String, tenant: Name, key: PublicKey, validity: Validity) -> Self {
        Self {
            agent_id,
            name,
            tenant,
            key_id: key.key_id(),
            public_key: key,
            validity,
        }
    }
}

/// The keys to believe.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct TrustFile {
    version: u32,
    /// Countersigning keys of the orchestrator.
    pub orchestrator: Vec<OrchestratorKey>,
    /// Evidence keys of agents.
    pub agents: Vec<AgentKey>,
}

/// Why a trust file is refused.
#[derive(Debug, thiserror::Error)]
pub enum TrustFileError {
    /// Larger than [`TRUST_FILE_BYTES`].
    #[error("the trust file has {0} bytes, more than the {TRUST_FILE_BYTES} that are allowed")]
    TooLarge(usize),
    /// Not the JSON of a trust file.
    #[error("the document is not a trust file")]
    Shape(#[source] serde_json::Error),
    /// Made by a newer program.
    #[error("the trust file has version {0}, this program reads version {TRUST_FILE_VERSION}")]
    Version(u32),
    /// A key id that does not belong to its key.
    #[error("the key id {0} is not that of the key beside it")]
    KeyId(KeyId),
    /// One key twice, or one key in two roles.
    #[error("the key {0} is listed twice")]
    Repeated(KeyId),
}

impl TrustFile {
    /// A file of these keys, checked.
    pub fn new(orchestrator: Vec<OrchestratorKey>, agents: Vec<AgentKey>) -> Result<Self, TrustFileError> {
        Self {
            version: TRUST_FILE_VERSION,
            orchestrator,
            agents,
        }
        .checked()
    }

    /// Reads a file strictly.
    pub fn from_json(bytes: &[u8]) -> Result<Self, TrustFileError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }

        if bytes.len() > TRUST_FILE_BYTES {
            return Err(TrustFileError::TooLarge(bytes.len()));
        }
        // The version first: a newer file is to be called newer, not malformed.
        let Version { version } = serde_json::from_slice(bytes).map_err(TrustFileError::Shape)?;
        if version != TRUST_FILE_VERSION {
            return Err(TrustFileError::Version(version));
        }
        let file: Self = serde_json::from_slice(bytes).map_err(TrustFileError::Shape)?;
        file.checked()
    }

    /// Writes the file, indented for people, ending in a line feed.
    pub fn to_json(&self) -> Result<Vec<u8>, TrustFileError> {
        let mut bytes = serde_json::to_vec_pretty(self).map_err(TrustFileError::Shape)?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    fn checked(self) -> Result<Self, TrustFileError> {
        let orchestrator = self.orchestrator.iter().map(|one| (&one.key_id, &one.public_key));
        let agents = self.agents.iter().map(|one| (&one.key_id, &one.public_key));
        let mut seen = BTreeSet::new();
        for (id, key) in orchestrator.chain(agents) {
            if key.key_id() != *id {
                return Err(TrustFileError::KeyId(id.clone()));
            }
            if !seen.insert(id) {
                return Err(TrustFileError::Repeated(id.clone()));
            }
        }
        Ok(self)
    }
}
