//! Who the agent is: whom it serves, whom it believes, what it signs with.

use sealift_common::{
    id::AgentId,
    keys::{PublicKey, SigningKey},
    spiffe::SpiffeId,
};

use crate::bindings::Bindings;

/// Who the agent is, as far as orders and packets need it.
pub struct AgentIdentity {
    /// Its identifier.
    pub agent_id: AgentId,
    /// The targets that it serves.
    pub bindings: Bindings,
    /// Keys of which one must have signed an order.
    pub order_keys: Vec<PublicKey>,
    /// The key that signs its packets.
    pub evidence_key: SigningKey,
    /// Its identity, as in its certificate.
    pub spiffe_id: SpiffeId,
    /// Serial of the certificate that it holds now, lower-case hex.
    pub certificate_serial: Box<dyn Fn() -> String + Send + Sync>,
}

impl std::fmt::Debug for AgentIdentity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AgentIdentity")
            .field("agent_id", &self.agent_id)
            .field("bindings", &self.bindings)
            .finish_non_exhaustive()
    }
}
