//! Who calls: the peer's certificate, looked up anew for each call, so that a revoked one is refused at once.

use std::sync::Arc;

use http::Request;
use sealift_common::{error::Reason, name::Name, spiffe};
use sealift_store::{AuthenticatedPrincipal, StoreError};
use tonic::body::Body;

use super::{Origin, Shared, TENANT};
use crate::{
    authz::Rule,
    caller::{Caller, Principal},
    identity::{PeerIdentity, PeerInfo},
    names,
    status::ApiError,
};

/// The tenant that is made at first start.
pub const DEFAULT_TENANT: &str = "default";

/// What a request brings to say who sent it. Taken out first: a request's body cannot be held while waiting.
pub(super) struct Evidence {
    peer: Option<Arc<PeerIdentity>>,
    /// `None` when the header is no name.
    tenant: Option<Name>,
}

impl Evidence {
    pub(super) fn of(request: &Request<Body>) -> Self {
        let tenant = match request.headers().get(TENANT) {
            Some(value) => value.to_str().ok().and_then(|name| name.parse().ok()),
            None => DEFAULT_TENANT.parse().ok(),
        };
        let peer = request.extensions().get::<PeerInfo>();
        Self {
            peer: peer.and_then(|peer| peer.identity.clone()),
            tenant,
        }
    }
}

impl Shared {
    /// The caller, and why it is refused if it is. A refused caller is named as far as it is known, for the audit event.
    pub(super) async fn identify(
        &self,
        evidence: Evidence,
        rule: Option<&Rule>,
        id: &str,
    ) -> (Caller, Option<ApiError>) {
        let mut caller = Caller {
            tenant: None,
            principal: Principal::Anonymous,
            serial: None,
            request_id: id.to_owned(),
            certificate_not_after: None,
            notes: Arc::default(),
        };
        let refusal = match self.origin {
            Origin::Local => self.local(evidence.tenant, &mut caller).await,
            Origin::Tls => match evidence.peer {
                None => Ok(()),
                Some(peer) => self.certified(&peer, rule, &mut caller).await,
            },
        };
        (caller, refusal.err())
    }

    async fn local(&self, tenant: Option<Name>, caller: &mut Caller) -> Result<(), ApiError> {
        caller.principal = Principal::Local;
        let name = tenant.ok_or_else(|| ApiError::invalid(TENANT, "is not the name of a tenant"))?;
        let tenant = self.app.db.read().await?.tenant_by_name(&name).await?;
        let tenant = tenant.ok_or_else(|| {
            ApiError::not_found(names::of_tenant(&name), "sealift-orchestrator admin tenant list")
        })?;
        caller.tenant = Some((tenant.id, tenant.name));
        Ok(())
    }

    async fn certified(
        &self,
        peer: &PeerIdentity,
        rule: Option<&Rule>,
        caller: &mut Caller,
    ) -> Result<(), ApiError> {
        caller.serial = Some(peer.serial_hex.clone());
        caller.certificate_not_after = Some(peer.not_after);
        let known = match self.look_up(&peer.serial_hex).await {
            // Health must be told without the store: TLS has verified the certificate against our CA.
            Err(StoreError::Unavailable(_) | StoreError::Locked(_))
                if rule.is_some_and(|rule| rule.without_store) =>
            {
                caller.principal = Principal::Local;
                return Ok(());
            }
            other => other?,
        };
        let Some(known) = known else {
            return Err(refused("this orchestrator did not issue it, or has forgotten it"));
        };
        let (principal, spiffe, revoked) = match known.principal {
            AuthenticatedPrincipal::User(user) => (
                Principal::User {
                    id: user.id,
                    name: user.name,
                    role: user.role,
                },
                spiffe::Principal::User(user.id),
                user.revoked_at.is_some(),
            ),
            AuthenticatedPrincipal::Agent(agent) => (
                Principal::Agent { id: agent.id },
                spiffe::Principal::Agent(agent.id),
                agent.revoked_at.is_some(),
            ),
        };
        if peer.spiffe.principal != spiffe || peer.spiffe.tenant != known.tenant {
            return Err(refused(
                "it names another holder than the one that it was issued to",
            ));
        }
        caller.tenant = Some((known.certificate.tenant_id, known.tenant));
        caller.principal = principal;
        if revoked {
            // Agents end for good on this, and only on this.
            return Err(refused("its holder was revoked").meta("holder", "revoked"));
        }
        if known.certificate.revoked_at.is_some() {
            return Err(refused("it was revoked or replaced by a newer one"));
        }
        // TLS checked this when the connection was made; connections last.
        if peer.not_after <= self.app.clock.now() {
            return Err(refused("it has expired"));
        }
        Ok(())
    }

    async fn look_up(&self, serial: &str) -> Result<Option<sealift_store::Authenticated>, StoreError> {
        self.app.db.read().await?.authenticate(serial).await
    }
}

fn refused(why: &str) -> ApiError {
    ApiError::new(
        Reason::CertificateRefused,
        format!("the client certificate does not count: {why}"),
        "ask an administrator for a new one (sealift-orchestrator admin issue); a host enrols again with a new join token",
    )
}
