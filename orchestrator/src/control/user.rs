//! UserService: people and machines that call this API, and their certificates.

use chrono::TimeDelta;
use rustls_pki_types::{CertificateSigningRequestDer, pem::PemObject};
use sealift_common::{
    error::Reason,
    id::{TenantId, UserId},
    inventory::User,
    name::Name,
    role::Role,
};
use sealift_proto::v1::{
    self, IssueUserCertificateRequest, IssueUserCertificateResponse, ListUsersRequest, ListUsersResponse,
    RevokeUserRequest, RevokeUserResponse, user_service_server::UserService,
};
use sealift_store::{Certificate, CertificateSubject, Tx};
use tonic::{Request, Response, Status};

use super::{text, timestamp};
use crate::{
    caller::{Caller, Principal},
    config::USER_CERTIFICATE_MOST,
    mutate::mutate,
    names,
    paging::{next_token, page_request},
    state::App,
    status::ApiError,
};

/// Largest signing request as PEM.
const CSR_PEM_BYTES: usize = 24 * 1024;

/// Shortest life of a certificate.
const LIFE_LEAST: i64 = 60;

/// The service.
#[derive(Debug, Clone)]
pub struct Users {
    /// Shared state.
    pub app: App,
}

fn encode(user: &User) -> v1::User {
    v1::User {
        name: names::of_user(&user.name),
        uid: user.id.to_string(),
        role: user.role.to_string(),
        create_time: timestamp(user.created_at),
        revoke_time: user.revoked_at.and_then(timestamp),
    }
}

/// The request's DER.
pub(crate) fn csr(field: &str, pem: &str) -> Result<Vec<u8>, ApiError> {
    if pem.len() > CSR_PEM_BYTES {
        return Err(ApiError::invalid(
            field,
            format!("is longer than {CSR_PEM_BYTES} bytes"),
        ));
    }
    CertificateSigningRequestDer::from_pem_slice(pem.as_bytes())
        .map(|der| der.as_ref().to_vec())
        .map_err(|error| {
            let description = "is not a PKCS#10 request in PEM";
            ApiError::new(
                Reason::InvalidCsr,
                format!("field {field}: {description}"),
                "make one with an ECDSA P-256 key, for example with openssl req -new",
            )
            .field(field, description)
            .caused_by(error)
        })
}

impl Users {
    /// The caller as seen from the tenant that the request names. Only the orchestrator's host may name another than its own.
    async fn in_tenant(&self, caller: Caller, wanted: &str) -> Result<Caller, ApiError> {
        let own = caller.tenant.as_ref().map(|(_, name)| name.as_str());
        if wanted.is_empty() || own == Some(wanted) {
            return Ok(caller);
        }
        if caller.principal != Principal::Local {
            return Err(ApiError::new(
                Reason::RoleMissing,
                "field tenant: only the orchestrator's host may name another tenant than the caller's",
                "leave the field empty, or call on the orchestrator's host (sealift-orchestrator admin issue)",
            )
            .field("tenant", "is not the caller's tenant"));
        }
        let name = names::chosen("tenant", wanted)?;
        let mut tx = self.app.db.read().await?;
        let tenant = tx.tenant_by_name(&name).await?.ok_or_else(|| {
            ApiError::not_found(names::of_tenant(&name), "sealift-orchestrator admin tenant list")
        })?;
        Ok(Caller {
            tenant: Some((tenant.id, tenant.name)),
            ..caller
        })
    }

    fn life(&self, seconds: i64) -> Result<TimeDelta, ApiError> {
        match seconds {
            0 => Ok(TimeDelta::seconds(
                self.app.config.identity.user_certificate_seconds,
            )),
            LIFE_LEAST..=USER_CERTIFICATE_MOST => Ok(TimeDelta::seconds(seconds)),
            _ => Err(ApiError::invalid(
                "life_seconds",
                format!("must be between {LIFE_LEAST} and {USER_CERTIFICATE_MOST}, or 0 for the default"),
            )),
        }
    }
}

/// The user of that name, made when there is none.
async fn ensure(tx: &mut Tx, tenant: TenantId, name: &Name, role: Role, app: &App) -> Result<User, ApiError> {
    let Some(user) = tx.user_by_name(tenant, name).await? else {
        let now = app.clock.now();
        let user = User {
            id: UserId::new(now),
            tenant_id: tenant,
            name: name.clone(),
            role,
            created_at: now,
            revoked_at: None,
        };
        tx.insert_user(&user).await?;
        return Ok(user);
    };
    if user.revoked_at.is_some() {
        return Err(ApiError::new(
            Reason::WrongState,
            format!("{} was revoked", names::of_user(name)),
            "revoked users stay so; choose another name",
        )
        .precondition("WRONG_STATE", names::of_user(name), "it was revoked"));
    }
    if user.role != role {
        return Err(ApiError::new(
            Reason::AlreadyExists,
            format!(
                "{} exists with the role {}, not {role}",
                names::of_user(name),
                user.role
            ),
            "use its role, or choose another name",
        )
        .meta("role", user.role.to_string()));
    }
    Ok(user)
}

#[tonic::async_trait]
impl UserService for Users {
    async fn issue_user_certificate(
        &self,
        request: Request<IssueUserCertificateRequest>,
    ) -> Result<Response<IssueUserCertificateResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let name = names::chosen("user_id", &request.user_id)?;
        let role: Role = request
            .role
            .parse()
            .map_err(|error: String| ApiError::invalid("role", error))?;
        let csr = csr("csr_pem", &request.csr_pem)?;
        let life = self.life(request.life_seconds)?;
        let caller = self.in_tenant(caller, &request.tenant).await?;
        let (tenant_id, tenant) = caller.tenant_name()?;
        let resource = names::of_user(&name);
        let app = self.app.clone();
        let method = "sealift.v1.UserService/IssueUserCertificate";
        let response = mutate(
            &self.app,
            &caller,
            method,
            &request.request_id,
            &request,
            &resource,
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let user = ensure(tx, tenant_id, &name, role, &app).await?;
                    let issued = app
                        .identity
                        .ca
                        .issue_user(&csr, &tenant, user.id, app.clock.now(), life)
                        .map_err(refused_csr)?;
                    tx.insert_certificate(&Certificate {
                        serial: issued.serial_hex,
                        tenant_id,
                        subject: CertificateSubject::User(user.id),
                        not_before: issued.not_before,
                        not_after: issued.not_after,
                        revoked_at: None,
                    })
                    .await?;
                    let end = "-----END CERTIFICATE-----\n";
                    let leaf = issued.chain_pem.split_inclusive(end).next().unwrap_or_default();
                    Ok(IssueUserCertificateResponse {
                        user: Some(encode(&user)),
                        certificate_pem: leaf.to_owned(),
                        ca_pem: app.identity.ca.pem().to_owned(),
                        expire_time: timestamp(issued.not_after),
                    })
                })
            },
        )
        .await?;
        Ok(Response::new(response))
    }

    async fn list_users(
        &self,
        request: Request<ListUsersRequest>,
    ) -> Result<Response<ListUsersResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let request = request.into_inner();
        let bound_to = &["ListUsers"];
        let page = page_request(request.page_size, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let page = tx.list_users(tenant, &page).await.map_err(ApiError::from)?;
        Ok(Response::new(ListUsersResponse {
            users: page.items.iter().map(encode).collect(),
            next_page_token: next_token(page.next, bound_to),
        }))
    }

    async fn revoke_user(
        &self,
        request: Request<RevokeUserRequest>,
    ) -> Result<Response<RevokeUserResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant_id()?;
        let request = request.into_inner();
        let name = names::user("name", &request.name)?;
        let reason = text("reason", &request.reason)?;
        let resource = names::of_user(&name);
        let app = self.app.clone();
        let method = "sealift.v1.UserService/RevokeUser";
        let response = mutate(
            &self.app,
            &caller,
            method,
            &request.request_id,
            &request,
            &resource,
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let missing = || ApiError::not_found(names::of_user(&name), "sealift user list");
                    let user = tx.user_by_name(tenant, &name).await?.ok_or_else(missing)?;
                    tx.revoke_user(user.id, &reason, app.clock.now()).await?;
                    let user = tx.user(user.id).await?.ok_or_else(missing)?;
                    Ok(RevokeUserResponse {
                        user: Some(encode(&user)),
                    })
                })
            },
        )
        .await?;
        Ok(Response::new(response))
    }
}

fn refused_csr(error: crate::identity::IdentityError) -> ApiError {
    match error {
        crate::identity::IdentityError::Csr(problem) => {
            let description = format!("the signing request is refused: {problem}");
            ApiError::new(
                Reason::InvalidCsr,
                format!("field csr_pem: {description}"),
                "make a new one with an ECDSA P-256 key, for example with openssl req -new",
            )
            .field("csr_pem", description)
        }
        other => ApiError::internal(other),
    }
}
