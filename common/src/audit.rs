//! AuditEvent: who tried what, with which result. Each event's hash covers the hash of the event before it (R7, R13).

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    canonical::{self, CanonicalError, decimal},
    digest::Digest,
    id::TenantId,
    phases,
};

phases! {
    /// How a call ended.
    AuditOutcome { Success = "success", Denied = "denied", Failed = "failed" }
}

/// What is to be recorded.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// Tenant; `None` for what no tenant can be blamed for (a caller without identity).
    pub tenant_id: Option<TenantId>,
    /// Who: `user/alice`, `agent/<id>`, `orchestrator`, `anonymous`.
    pub actor: String,
    /// The actor's role at that time; empty without one.
    pub role: String,
    /// What: the gRPC method or the name of the inner act.
    pub action: String,
    /// On what: a resource name; may be empty.
    pub resource: String,
    /// How it ended.
    pub outcome: AuditOutcome,
    /// The stable reason when it did not succeed.
    pub reason: String,
    /// The call's request identifier; may be empty.
    pub request_id: String,
}

/// A recorded event in its chain. There is one chain for the whole orchestrator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuditEvent {
    /// Position, gapless from 1.
    #[serde(with = "decimal")]
    pub seq: u64,
    /// When.
    pub at: DateTime<Utc>,
    /// What.
    pub entry: AuditEntry,
    /// Hash of the event before it; all zero for the first.
    pub previous: Digest,
}

impl AuditEvent {
    /// The hash that the next event covers.
    pub fn hash(&self) -> Result<Digest, CanonicalError> {
        canonical::digest(self)
    }
}
