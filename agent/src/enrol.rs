//! Enrolment from the host's side: the orchestrator is authenticated by the CA digest in the join token before the token's secret
//! is sent anywhere (T3).

use std::{path::Path, time::Duration};

use sealift_common::{
    bounds::MESSAGE_BYTES, inventory::AgentFacts, join_token::JoinToken, keys::PublicKey, name::InvalidName,
    order::TargetBinding,
};
use sealift_proto::{
    agent::v1::{
        AddTargetRequest, Binding, EnrollRequest, EnrollResponse,
        gateway_service_client::GatewayServiceClient,
    },
    convert::{Malformed, parse},
};
use tokio::time::timeout;
use tonic::Status;

use crate::identity::{
    self, Credential, Identity, IdentityError, IdentityStore, OrchestratorEndpoint, connect_mtls,
    connect_pinned,
};

/// How long the orchestrator may take to answer.
const ANSWER: Duration = Duration::from_secs(30);
/// Where the orchestrator's address is kept, below the state directory.
const ADDRESS_FILE: &str = "orchestrator";
/// Most order keys that are kept.
const ORDER_KEYS: usize = 16;

/// Why a host could not join.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The identity cannot be made, kept or believed; or there is no connection.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The orchestrator refused.
    #[error("{}", .0.message())]
    Refused(Box<Status>),
    /// The orchestrator took too long.
    #[error(
        "the orchestrator did not answer within 30 s; if it enrolled the host all the same, revoke that agent and ask for a new token"
    )]
    Deadline,
    /// The orchestrator took too long to add a target.
    #[error("the orchestrator did not answer within 30 s; try again with the same token")]
    AddDeadline,
    /// No orchestrator is known.
    #[error("no orchestrator is known: name it with --orchestrator https://host:port")]
    NoOrchestrator,
    /// The orchestrator's answer does not make sense.
    #[error("the orchestrator's answer is malformed")]
    Answer(#[from] Malformed),
    /// The state directory cannot be written.
    #[error("cannot write {path}")]
    Write {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// Makes this host an agent: keys, enrolment, identity on the disk. Blocks on the disk, shortly.
pub async fn join(
    state_dir: &Path,
    endpoint: &OrchestratorEndpoint,
    token: &JoinToken,
    facts: AgentFacts,
) -> Result<Identity, JoinError> {
    let store = IdentityStore::open(state_dir.to_owned())?;
    if store.load()?.is_some() {
        return Err(IdentityError::AlreadyEnrolled.into());
    }
    let evidence_key = store.evidence_key()?;
    let key = identity::new_key()?;
    let channel = connect_pinned(endpoint, *token.ca_pin()).await?;
    let mut client = GatewayServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
    let request = EnrollRequest {
        join_token: token.reveal(),
        csr_pem: key.csr_pem,
        evidence_public_key: evidence_key.public().to_bytes().to_vec(),
        facts: Some(facts.into()),
    };
    let answer = timeout(ANSWER, client.enroll(request))
        .await
        .map_err(|_| JoinError::Deadline)?
        .map_err(|status| JoinError::Refused(Box::new(status)))?
        .into_inner();
    let credential = Credential::new(key.key_pem, answer.certificate_pem.clone())?;
    let identity = read(answer)?;
    identity.check_ca(token.ca_pin())?;
    let path = state_dir.join(ADDRESS_FILE);
    std::fs::write(&path, format!("{endpoint}\n")).map_err(|source| JoinError::Write { path, source })?;
    // Last: its presence means that the agent is enrolled.
    store.enroll(&identity, &credential)?;
    Ok(identity)
}

/// Gives the agent of this host another target, also while it runs. Blocks on the disk, shortly.
pub async fn add_target(
    state_dir: &Path,
    endpoint: Option<&OrchestratorEndpoint>,
    token: &JoinToken,
) -> Result<TargetBinding, JoinError> {
    let store = IdentityStore::open(state_dir.to_owned())?;
    let enrolled = store.load()?.ok_or(IdentityError::NotEnrolled)?;
    // The token is a secret of the orchestrator that made it: no other one is to see it.
    enrolled.identity.check_ca(token.ca_pin())?;
    let endpoint = endpoint
        .cloned()
        .or_else(|| enrolled_at(state_dir))
        .ok_or(JoinError::NoOrchestrator)?;
    let credential = enrolled.next.as_ref().unwrap_or(&enrolled.current);
    let channel = connect_mtls(&endpoint, &enrolled.identity.ca_pem, credential).await?;
    let mut client = GatewayServiceClient::new(channel).max_decoding_message_size(MESSAGE_BYTES);
    let request = AddTargetRequest {
        join_token: token.reveal(),
    };
    let answer = timeout(ANSWER, client.add_target(request))
        .await
        .map_err(|_| JoinError::AddDeadline)?
        .map_err(|status| JoinError::Refused(Box::new(status)))?
        .into_inner();
    let binding = read_binding(answer.binding)?;
    store.add_binding(&binding)?;
    Ok(binding)
}

/// The orchestrator that the agent was enrolled at.
pub fn enrolled_at(state_dir: &Path) -> Option<OrchestratorEndpoint> {
    let text = std::fs::read_to_string(state_dir.join(ADDRESS_FILE)).ok()?;
    text.trim().parse().ok()
}

fn read_binding(binding: Option<Binding>) -> Result<TargetBinding, Malformed> {
    let Binding {
        tenant,
        environment,
        target,
        target_id,
    } = binding.ok_or_else(|| Malformed::new("binding", "is missing"))?;
    let name = |field, text: &str| {
        text.parse()
            .map_err(|error: InvalidName| Malformed::new(field, error.to_string()))
    };
    Ok(TargetBinding {
        tenant: name("binding.tenant", &tenant)?,
        environment: name("binding.environment", &environment)?,
        target: name("binding.target", &target)?,
        target_id: parse("binding.target_id", &target_id)?,
    })
}

fn read(answer: EnrollResponse) -> Result<Identity, Malformed> {
    let binding = read_binding(answer.binding)?;
    let keys = &answer.order_public_keys;
    if keys.is_empty() || keys.len() > ORDER_KEYS {
        return Err(Malformed::new("order_public_keys", "wanted 1 to 16 keys"));
    }
    let order_keys = keys
        .iter()
        .map(|key| PublicKey::from_slice(key))
        .collect::<Result<_, _>>()
        .map_err(|error| Malformed::new("order_public_keys", error.to_string()))?;
    Ok(Identity {
        agent_id: parse("agent_id", &answer.agent_id)?,
        tenant: binding.tenant.clone(),
        bindings: vec![binding],
        ca_pem: answer.ca_pem,
        order_keys,
    })
}
