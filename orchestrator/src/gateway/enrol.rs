//! Enrolment: a join token and a signing request become an agent with a certificate, bound to the token's target.
//!
//! Whatever is wrong with a token, the caller hears the same: nobody learns which part was right. The secret is compared by its
//! hash, in constant time, and never logged.

use chrono::{DateTime, Utc};
use sealift_common::{
    audit::{AuditEntry, AuditOutcome},
    error::Reason,
    id::{AgentId, TenantId},
    inventory::{Agent, AgentFacts, AgentIntent, IntentNote, Target},
    join_token::{JoinToken, SecretHash},
    keys::PublicKey,
    name::Name,
};
use sealift_proto::agent::v1::{Binding, EnrollRequest, EnrollResponse};
use sealift_store::{Certificate, CertificateSubject, JoinToken as JoinTokenRow, Tx};

use crate::{
    caller::Caller,
    identity::{IdentityError, IssuedCertificate},
    state::App,
    status::ApiError,
};

/// Longest text that can be a join token.
const TOKEN_BYTES: usize = 256;
/// Largest signing request, as PEM.
const CSR_BYTES: usize = 16 * 1024;

const METHOD: &str = "/sealift.agent.v1.GatewayService/";

/// Enrols an agent.
pub async fn enroll(app: &App, caller: &Caller, request: EnrollRequest) -> Result<EnrollResponse, ApiError> {
    let EnrollRequest {
        join_token,
        csr_pem,
        evidence_public_key,
        facts,
    } = request;
    // What is no secret is looked at first, so that a typo does not use up anything.
    let key = PublicKey::from_slice(&evidence_public_key)
        .map_err(|error| ApiError::invalid("evidence_public_key", error.to_string()))?;
    let facts = facts.ok_or_else(|| ApiError::invalid("facts", "is missing"))?;
    let facts = AgentFacts::try_from(facts).map_err(|error| ApiError::invalid(error.field, error.problem))?;
    let token = read_token(&join_token)?;

    // Anyone may call this: whoever has no good token does not get as far as the store's writer.
    let mut tx = app.db.read().await?;
    good_token(&mut tx, app, caller, &token).await?;
    drop(tx);
    let mut tries = 0;
    loop {
        tries += 1;
        match attempt(app, caller, &token, &csr_pem, &key, &facts).await {
            Err(error) if error.reason() == Reason::Conflict && tries < 3 => {}
            result => return result,
        }
    }
}

/// The row of a token that counts.
async fn good_token(
    tx: &mut Tx,
    app: &App,
    caller: &Caller,
    token: &JoinToken,
) -> Result<JoinTokenRow, ApiError> {
    let row = known_token(tx, caller, token).await?;
    check_counts(app, caller, &row)?;
    Ok(row)
}

/// The row of a token whose secret is right, whether or not it still counts.
pub(super) async fn known_token(
    tx: &mut Tx,
    caller: &Caller,
    token: &JoinToken,
) -> Result<JoinTokenRow, ApiError> {
    let row = tx.join_token(token.id()).await?;
    // Compared even when there is no such token, so that the time does not tell.
    let stored = row.as_ref().map_or([0; 32], |row| row.secret_hash);
    let matches = SecretHash::from_bytes(stored).matches(&token.secret_hash());
    row.filter(|_| matches).ok_or_else(|| {
        tracing::warn!(join_token.id = %token.id(), "a join token was refused: there is none of this secret");
        caller.about(&format!("joinTokens/{}", token.id()));
        refused()
    })
}

/// Refuses a token that was used or has expired; it is named in the denial's audit event (T3): its second use is an alarm.
pub(super) fn check_counts(app: &App, caller: &Caller, row: &JoinTokenRow) -> Result<(), ApiError> {
    if row.used_at.is_none() && row.expires_at > app.clock.now() {
        return Ok(());
    }
    tracing::warn!(join_token.id = %row.id, used = row.used_at.is_some(), "a join token was shown that does not count any more");
    caller.about_proven(&format!("joinTokens/{}", row.id));
    Err(refused())
}

async fn attempt(
    app: &App,
    caller: &Caller,
    token: &JoinToken,
    csr_pem: &str,
    key: &PublicKey,
    facts: &AgentFacts,
) -> Result<EnrollResponse, ApiError> {
    let now = app.clock.now();
    let mut tx = app.db.write().await?;
    let row = good_token(&mut tx, app, caller, token).await?;
    let tenant = tx
        .tenant(row.tenant_id)
        .await?
        .ok_or_else(|| ApiError::internal(format!("join token {} has no tenant", row.id)))?;
    let target = live_target(&mut tx, &row).await?;
    check_free(&mut tx, &target).await?;

    let agent = Agent {
        id: AgentId::new(now),
        tenant_id: tenant.id,
        name: target.name.clone(),
        intent: AgentIntent::Active,
        intent_note: IntentNote {
            reason: String::new(),
            by: row.created_by,
            at: now,
        },
        revision: 1,
        evidence_key: key.to_bytes(),
        facts: facts.clone(),
        created_at: now,
        last_seen_at: None,
        session: None,
        revoked_at: None,
    };
    let issued = issue(app, csr_pem, &tenant.name, agent.id, now)?;
    tx.insert_agent(&agent).await?;
    if !tx.use_join_token(row.id, agent.id, now).await? {
        return Err(refused());
    }
    tx.insert_certificate(&Certificate {
        serial: issued.serial_hex.clone(),
        tenant_id: tenant.id,
        subject: CertificateSubject::Agent(agent.id),
        not_before: issued.not_before,
        not_after: issued.not_after,
        revoked_at: None,
    })
    .await?;
    // Two tokens of one target at the same moment: one of them finds the other's agent at its next try.
    tx.bind_target(target.id, target.agent_id, agent.id, now).await?;
    audit_enrolment(&mut tx, caller, tenant.id, &agent, &target, now).await?;
    tx.commit().await?;
    caller.set_recorded();
    tracing::info!(agent.id = %agent.id, target.id = %target.id, "agent enrolled");
    Ok(EnrollResponse {
        agent_id: agent.id.to_string(),
        certificate_pem: issued.chain_pem,
        ca_pem: app.identity.ca.pem().to_owned(),
        binding: Some(binding(&tenant.name, &target)),
        order_public_keys: vec![app.identity.keys.order.public().to_bytes().to_vec()],
    })
}

/// A text that may be a join token.
pub(super) fn read_token(text: &str) -> Result<JoinToken, ApiError> {
    Some(text)
        .filter(|text| text.len() <= TOKEN_BYTES)
        .and_then(|text| text.parse().ok())
        .ok_or_else(refused)
}

/// The target of a join token.
pub(super) async fn live_target(tx: &mut Tx, row: &JoinTokenRow) -> Result<Target, ApiError> {
    tx.target(row.tenant_id, row.target_id)
        .await?
        .filter(|target| target.archived_at.is_none())
        .ok_or_else(refused)
}

/// What an agent has to know of a target that it serves.
pub(super) fn binding(tenant: &Name, target: &Target) -> Binding {
    Binding {
        tenant: tenant.to_string(),
        environment: target.environment.to_string(),
        target: target.name.to_string(),
        target_id: target.id.to_string(),
    }
}

/// A target has one agent at a time. The caller has shown a good token by now, so it may hear the reason.
pub(super) async fn check_free(tx: &mut Tx, target: &Target) -> Result<(), ApiError> {
    let Some(id) = target.agent_id else {
        return Ok(());
    };
    match tx.agent_by_id(id).await? {
        Some(agent) if agent.intent.is_live() => Err(ApiError::new(
            Reason::WrongState,
            format!(
                "target {} in {} has an agent already",
                target.name, target.environment
            ),
            format!("revoke it first (sealift agent revoke {id}), then use the same token again"),
        )
        .precondition(
            "TARGET_HAS_AGENT",
            format!("agents/{id}"),
            "must be revoked first",
        )),
        Some(_) | None => Ok(()),
    }
}

/// A certificate for an agent's new key.
pub fn issue(
    app: &App,
    csr_pem: &str,
    tenant: &Name,
    agent: AgentId,
    now: DateTime<Utc>,
) -> Result<IssuedCertificate, ApiError> {
    if csr_pem.len() > CSR_BYTES {
        return Err(invalid_csr("it is larger than 16 KiB"));
    }
    app.identity
        .ca
        .issue_agent(
            csr_pem.as_bytes(),
            tenant,
            agent,
            now,
            app.config.identity.agent_life(),
        )
        .map_err(|error| match error {
            IdentityError::Csr(problem) => invalid_csr(problem),
            other => ApiError::internal(other),
        })
}

fn invalid_csr(problem: &str) -> ApiError {
    ApiError::new(
        Reason::InvalidCsr,
        format!("the certificate signing request is refused: {problem}"),
        "send a PKCS#10 request in PEM for an ECDSA P-256 key, signed by that key",
    )
    .field("csr_pem", problem)
}

pub(super) fn refused() -> ApiError {
    ApiError::new(
        Reason::JoinTokenRefused,
        "the join token is not accepted",
        "it may be mistyped, expired or used: ask for a new one (sealift target token)",
    )
}

async fn audit_enrolment(
    tx: &mut Tx,
    caller: &Caller,
    tenant: TenantId,
    agent: &Agent,
    target: &Target,
    now: DateTime<Utc>,
) -> Result<(), ApiError> {
    let entry = AuditEntry {
        tenant_id: Some(tenant),
        actor: format!("agent/{}", agent.id),
        role: "agent".to_owned(),
        action: format!("{METHOD}Enroll"),
        resource: format!("environments/{}/targets/{}", target.environment, target.name),
        outcome: AuditOutcome::Success,
        reason: String::new(),
        request_id: caller.request_id.clone(),
    };
    tx.append_audit(&entry, now).await?;
    Ok(())
}

/// Records a call of an agent that succeeded, in the same transaction.
pub async fn audit_success(
    tx: &mut Tx,
    caller: &Caller,
    method: &str,
    resource: &str,
    now: DateTime<Utc>,
) -> Result<(), ApiError> {
    let entry = AuditEntry {
        tenant_id: caller.tenant.as_ref().map(|(id, _)| *id),
        actor: caller.actor(),
        role: caller.role().to_owned(),
        action: format!("{METHOD}{method}"),
        resource: resource.to_owned(),
        outcome: AuditOutcome::Success,
        reason: String::new(),
        request_id: caller.request_id.clone(),
    };
    tx.append_audit(&entry, now).await?;
    Ok(())
}
