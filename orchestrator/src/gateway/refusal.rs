//! Why a session's message is not taken: the agent broke the protocol (audited, the session ends), or we could not store it.

use sealift_common::error::Reason;
use sealift_proto::convert::Malformed;
use sealift_store::StoreError;
use tonic::Status;

use crate::status::ApiError;

/// Why something an agent said was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The agent said what it must not say (R12, T2). Nothing of it was stored.
    #[error("{0}")]
    Violation(String),
    /// The store refused or is away. Nothing of it was stored; the agent says it again.
    #[error("the store did not take it")]
    Store(#[from] StoreError),
    /// The orchestrator's own keys or orders are not what they should be.
    #[error("{0}")]
    Internal(String),
    /// The agent has done more than the database knows (F16): a person has to look.
    #[error("{0}")]
    Ahead(String),
    /// The agent was revoked: nothing that it says counts any more.
    #[error("the agent was revoked")]
    Revoked,
    /// The process is going down.
    #[error("the orchestrator is going down")]
    ShuttingDown,
}

impl Refusal {
    /// A breach of the protocol.
    pub fn violation(what: impl Into<String>) -> Self {
        Self::Violation(what.into())
    }

    /// The stable reason.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Violation(_) => Reason::ProtocolViolation,
            Self::Store(error) if error.is_concurrency() => Reason::Conflict,
            Self::Store(StoreError::Unavailable(_)) => Reason::StoreUnavailable,
            Self::Store(_) | Self::Internal(_) => Reason::Internal,
            Self::Ahead(_) => Reason::WrongState,
            Self::Revoked => Reason::CertificateRefused,
            Self::ShuttingDown => Reason::ShuttingDown,
        }
    }
}

impl From<Malformed> for Refusal {
    fn from(error: Malformed) -> Self {
        Self::Violation(error.to_string())
    }
}

impl From<Refusal> for Status {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Violation(what) => ApiError::new(
                Reason::ProtocolViolation,
                what,
                "the agent connects again by itself; if this repeats, agent and orchestrator do not fit or the host is not to be trusted",
            )
            .into(),
            Refusal::Store(error) => ApiError::from(error).into(),
            Refusal::Ahead(what) => ApiError::new(
                Reason::WrongState,
                what,
                "the agent keeps what runs as it is and gets no orders until then",
            )
            .into(),
            Refusal::Internal(what) => ApiError::internal(what).into(),
            Refusal::Revoked => ApiError::new(
                Reason::CertificateRefused,
                "the agent was revoked",
                "enrol the host again with a new join token (sealift target token)",
            )
            .meta("holder", "revoked")
            .into(),
            Refusal::ShuttingDown => ApiError::new(
                Reason::ShuttingDown,
                "the orchestrator is going down",
                "the agent connects again by itself",
            )
            .into(),
        }
    }
}
