//! The keys under which evidence verifies: those of the agents and the orchestrator's own.

use chrono::DateTime;
use sealift_common::{
    inventory::Agent,
    keys::PublicKey,
    name::Name,
    order::CLOCK_TOLERANCE,
    trust::{AgentKey, OrchestratorKey, Validity},
};

use crate::status::ApiError;

const ALWAYS: Validity = Validity {
    from: DateTime::UNIX_EPOCH,
    until: None,
    revoked_at: None,
};

/// The evidence key of an agent. It counts from its enrolment on, by the host's clock, which may be behind.
pub fn agent_key(agent: &Agent, tenant: &Name) -> Result<AgentKey, ApiError> {
    let validity = Validity {
        from: agent.created_at - CLOCK_TOLERANCE,
        until: None,
        revoked_at: agent.revoked_at,
    };
    key_of(agent, tenant, validity)
}

/// The same key without a time: whoever took the packet in saw then that the agent was enrolled and not revoked, by a clock of its
/// own, so that the host's need not be asked again.
pub fn timeless_key(agent: &Agent, tenant: &Name) -> Result<AgentKey, ApiError> {
    key_of(agent, tenant, ALWAYS)
}

fn key_of(agent: &Agent, tenant: &Name, validity: Validity) -> Result<AgentKey, ApiError> {
    let key = PublicKey::from_bytes(&agent.evidence_key).map_err(ApiError::internal)?;
    Ok(AgentKey::new(
        agent.id,
        agent.name.to_string(),
        tenant.clone(),
        key,
        validity,
    ))
}

/// The orchestrator's key. It is as old as the orchestrator and has not been replaced since.
pub fn own_key(key: PublicKey) -> OrchestratorKey {
    OrchestratorKey::new(key, ALWAYS)
}
