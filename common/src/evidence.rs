//! Evidence packet: what an agent states about one finished attempt, signed by it and countersigned by the orchestrator.
//!
//! A packet is a DSSE envelope whose payload is an in-toto Statement v1 in canonical JSON. Its subjects are the images that the
//! engine reported as running **after** the attempt: the ordered ones after a success, the ones before it after a restore. In-toto
//! wants at least one subject; when nothing runs (a first deployment failed), the one subject is the release's content digest
//! under the name `release:<repository>/<project>#<number>`.

mod allowance;
mod hooks;
mod predicate;
mod statement;

pub use allowance::{Allowance, AllowedBy};
pub use hooks::{EvidenceHook, HookResult};
pub use predicate::{
    AgentInfo, Attempt, EngineInfo, EvidenceDecision, EvidenceFailure, EvidenceRelease, EvidenceResult,
    EvidenceService, EvidenceStep, Observed, Predicate,
};
pub use statement::{Inconsistent, PREDICATE_TYPE, STATEMENT_TYPE, Statement, Subject, SubjectDigest};

use crate::{
    canonical::{self, CanonicalError},
    dsse::{self, DsseError, Envelope},
    keys::{PublicKey, SigningKey},
};

/// DSSE payload type of a packet.
pub const EVIDENCE_PAYLOAD_TYPE: &str = "application/vnd.in-toto+json";

/// Why a packet cannot be made or is refused.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// The envelope is malformed or its signature does not verify.
    #[error("the evidence packet's envelope is refused")]
    Envelope(#[from] DsseError),
    /// The payload is not a statement in canonical form.
    #[error("the evidence packet's statement is malformed")]
    Statement(#[from] CanonicalError),
    /// The statement contradicts itself.
    #[error("the evidence packet's statement contradicts itself")]
    Inconsistent(#[from] Inconsistent),
}

/// Makes and opens packets. The bytes are the packet: they are stored and handed on exactly as they are.
#[derive(Debug)]
pub struct Packet;

impl Packet {
    /// Signs `statement` with the agent's evidence key. A statement that contradicts itself is not signed.
    pub fn sign(statement: &Statement, key: &SigningKey) -> Result<Vec<u8>, PacketError> {
        statement.check()?;
        let payload = canonical::to_vec(statement)?;
        Ok(dsse::sign(EVIDENCE_PAYLOAD_TYPE, payload, &[key])?.to_json()?)
    }

    /// Verifies the signature by `key`, then reads the statement strictly.
    pub fn open(bytes: &[u8], key: &PublicKey) -> Result<Statement, PacketError> {
        Self::read(&Envelope::from_json(bytes)?, key)
    }

    /// Adds the orchestrator's signature to a packet that verifies under the agent's key. The payload bytes stay as they are.
    pub fn countersign(bytes: &[u8], agent: &PublicKey, key: &SigningKey) -> Result<Vec<u8>, PacketError> {
        let mut envelope = Envelope::from_json(bytes)?;
        Self::read(&envelope, agent)?;
        envelope.countersign(key)?;
        Ok(envelope.to_json()?)
    }

    pub(crate) fn read(envelope: &Envelope, key: &PublicKey) -> Result<Statement, PacketError> {
        let payload = envelope.verify(EVIDENCE_PAYLOAD_TYPE, key)?;
        let statement: Statement = canonical::from_slice(payload)?;
        statement.check()?;
        Ok(statement)
    }
}

#[cfg(test)]
pub(crate) mod tests;
