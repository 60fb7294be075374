//! Verification of one packet against a trust file.

use chrono::{DateTime, Utc};

use super::{AgentKey, OrchestratorKey, TrustFile, Validity};
use crate::{
    digest::Digest,
    dsse::{DsseError, Envelope},
    evidence::{EVIDENCE_PAYLOAD_TYPE, Packet, PacketError, Statement},
    id::AgentId,
    keys::KeyId,
    order::CLOCK_TOLERANCE,
};

/// A packet that was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPacket {
    /// What the agent stated.
    pub statement: Statement,
    /// Digest of the packet's bytes.
    pub digest: Digest,
    /// Name of the agent, from the trust file.
    pub agent: String,
    /// The agent's key.
    pub agent_key: KeyId,
    /// The orchestrator's key.
    pub orchestrator_key: KeyId,
}

/// Why a packet is not believed.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// The envelope is malformed.
    #[error("the packet is not a signed envelope")]
    Envelope(#[source] DsseError),
    /// A signature by a key that the trust file does not list.
    #[error("the packet is signed by key {0}, which the trust file does not list")]
    UnknownKey(KeyId),
    /// No signature by an agent.
    #[error("the packet carries no agent's signature")]
    AgentSignatureMissing,
    /// Signatures by two agents.
    #[error("the packet carries the signatures of more than one agent")]
    SecondAgent,
    /// No signature by the orchestrator.
    #[error("the packet carries no countersignature by the orchestrator")]
    CountersignatureMissing,
    /// A signature does not verify: the packet was changed.
    #[error("a signature does not verify: the packet was changed after it was signed")]
    BadSignature(#[source] DsseError),
    /// Properly signed, but no statement that this program understands, or one that contradicts itself.
    #[error("the signed statement is refused")]
    Statement(#[source] PacketError),
    /// The signer is not the agent that the statement names.
    #[error("the statement names agent {stated}, the signature is by agent {signer}")]
    OtherAgent {
        /// Whom the statement names.
        stated: AgentId,
        /// Whose key signed.
        signer: AgentId,
    },
    /// The key did not count at the time that the statement gives.
    #[error("the attempt ended at {at}, when key {key} was not valid")]
    KeyNotValid {
        /// The key.
        key: KeyId,
        /// End of the attempt.
        at: DateTime<Utc>,
    },
    /// The key had been revoked at the time that the statement gives.
    #[error("the attempt ended at {at}, but key {key} was revoked at {revoked_at}")]
    KeyRevoked {
        /// The key.
        key: KeyId,
        /// End of the attempt.
        at: DateTime<Utc>,
        /// When it was revoked.
        revoked_at: DateTime<Utc>,
    },
}

impl VerifyError {
    /// The stable code, for programs.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Envelope(_) => "ENVELOPE_MALFORMED",
            Self::UnknownKey(_) => "KEY_UNKNOWN",
            Self::AgentSignatureMissing => "AGENT_SIGNATURE_MISSING",
            Self::SecondAgent => "AGENT_SIGNATURE_REPEATED",
            Self::CountersignatureMissing => "COUNTERSIGNATURE_MISSING",
            Self::BadSignature(_) => "SIGNATURE_BAD",
            Self::Statement(_) => "STATEMENT_REFUSED",
            Self::OtherAgent { .. } => "AGENT_MISMATCH",
            Self::KeyNotValid { .. } => "KEY_NOT_VALID",
            Self::KeyRevoked { .. } => "KEY_REVOKED",
        }
    }
}

fn check_time(key: &KeyId, validity: &Validity, at: DateTime<Utc>) -> Result<(), VerifyError> {
    // Revocation is exact: on that side, doubt counts against the packet.
    if let Some(revoked_at) = validity.revoked_at.filter(|revoked_at| at >= *revoked_at) {
        return Err(VerifyError::KeyRevoked {
            key: key.clone(),
            at,
            revoked_at,
        });
    }
    let early = at + CLOCK_TOLERANCE < validity.from;
    let late = validity.until.is_some_and(|until| at - CLOCK_TOLERANCE > until);
    if early || late {
        return Err(VerifyError::KeyNotValid { key: key.clone(), at });
    }
    Ok(())
}

/// Verifies a packet offline: every signature is by a listed key and good, one is the agent's that the statement names and at
/// least one the orchestrator's, the keys counted when the attempt ended, and the statement agrees with itself
/// ([`Statement::check`]).
pub fn verify_packet(bytes: &[u8], trust: &TrustFile) -> Result<VerifiedPacket, VerifyError> {
    let envelope = Envelope::from_json(bytes).map_err(VerifyError::Envelope)?;
    let mut agent: Option<&AgentKey> = None;
    let mut orchestrator: Option<&OrchestratorKey> = None;
    for id in envelope.key_ids() {
        if let Some(key) = trust.agents.iter().find(|key| key.key_id == *id) {
            envelope
                .verify(EVIDENCE_PAYLOAD_TYPE, &key.public_key)
                .map_err(VerifyError::BadSignature)?;
            if agent.replace(key).is_some() {
                return Err(VerifyError::SecondAgent);
            }
        } else if let Some(key) = trust.orchestrator.iter().find(|key| key.key_id == *id) {
            envelope
                .verify(EVIDENCE_PAYLOAD_TYPE, &key.public_key)
                .map_err(VerifyError::BadSignature)?;
            orchestrator = Some(key);
        } else {
            return Err(VerifyError::UnknownKey(id.clone()));
        }
    }
    let agent = agent.ok_or(VerifyError::AgentSignatureMissing)?;
    let orchestrator = orchestrator.ok_or(VerifyError::CountersignatureMissing)?;

    let statement = Packet::read(&envelope, &agent.public_key).map_err(VerifyError::Statement)?;
    let predicate = &statement.predicate;
    if predicate.agent_id != agent.agent_id || predicate.tenant != agent.tenant {
        return Err(VerifyError::OtherAgent {
            stated: predicate.agent_id,
            signer: agent.agent_id,
        });
    }
    let at = predicate.counts_at();
    check_time(&agent.key_id, &agent.validity, at)?;
    check_time(&orchestrator.key_id, &orchestrator.validity, at)?;
    Ok(VerifiedPacket {
        digest: Digest::of(bytes),
        agent: agent.name.clone(),
        agent_key: agent.key_id.clone(),
        orchestrator_key: orchestrator.key_id.clone(),
        statement,
    })
}

#[cfg(test)]
mod tests;
