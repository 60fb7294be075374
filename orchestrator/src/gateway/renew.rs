//! Renewal: a new certificate for a new key, while the old one still counts. The newest two of an agent count, so that an answer
//! that got lost does not lock the agent out.

use sealift_common::error::Reason;
use sealift_proto::agent::v1::{RenewCertificateRequest, RenewCertificateResponse};
use sealift_store::{Certificate, CertificateSubject};

use super::enrol::issue;
use crate::{
    caller::{Caller, certificate_missing},
    state::App,
    status::ApiError,
};

/// How many certificates of an agent count.
const COUNTING: u32 = 2;

/// Issues the certificate.
pub async fn renew(
    app: &App,
    caller: &Caller,
    request: &RenewCertificateRequest,
) -> Result<RenewCertificateResponse, ApiError> {
    let (tenant, tenant_name) = caller.tenant.clone().ok_or_else(certificate_missing)?;
    let agent = caller.agent_id().map_err(|_| certificate_missing())?;
    let now = app.clock.now();
    let issued = issue(app, &request.csr_pem, &tenant_name, agent, now)?;
    let certificate = Certificate {
        serial: issued.serial_hex.clone(),
        tenant_id: tenant,
        subject: CertificateSubject::Agent(agent),
        not_before: issued.not_before,
        not_after: issued.not_after,
        revoked_at: None,
    };
    let mut tries = 0;
    loop {
        tries += 1;
        match store(app, caller, &certificate, agent).await {
            Err(error) if error.reason() == Reason::Conflict && tries < 3 => {}
            stored => break stored?,
        }
    }
    tracing::info!(agent.id = %agent, serial = issued.serial_hex, "certificate renewed");
    Ok(RenewCertificateResponse {
        certificate_pem: issued.chain_pem,
        ca_pem: app.identity.ca.pem().to_owned(),
    })
}

async fn store(
    app: &App,
    caller: &Caller,
    certificate: &Certificate,
    agent: sealift_common::id::AgentId,
) -> Result<(), ApiError> {
    let now = app.clock.now();
    let mut tx = app.db.write().await?;
    tx.insert_certificate(certificate).await?;
    tx.retire_agent_certificates(agent, COUNTING, now).await?;
    super::enrol::audit_success(
        &mut tx,
        caller,
        "RenewCertificate",
        &format!("agents/{agent}"),
        now,
    )
    .await?;
    tx.commit().await?;
    caller.set_recorded();
    Ok(())
}
