//! Who calls: put into each request by the authentication layer, read by handlers. Never read from headers by anybody else.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use chrono::{DateTime, Utc};
use sealift_common::{
    error::Reason,
    id::{AgentId, TenantId, UserId},
    name::Name,
    role::Role,
};
use tonic::Status;

use crate::status::ApiError;

/// What kind of caller it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Principal {
    /// A person or a CI system with a client certificate.
    User {
        /// Identifier.
        id: UserId,
        /// Name in its tenant.
        name: Name,
        /// What it may do.
        role: Role,
    },
    /// An agent with a client certificate.
    Agent {
        /// Identifier.
        id: AgentId,
    },
    /// Whoever may write to the orchestrator's data directory: the socket in it.
    Local,
    /// A caller without certificate.
    Anonymous,
}

/// What a handler notes about its call for the audit layer around it.
#[derive(Debug, Default)]
pub struct CallNotes {
    resource: Mutex<String>,
    recorded: AtomicBool,
    proven: AtomicBool,
}

/// Longest name of a resource in an audit event, in characters: more than any legal one has.
const RESOURCE_CHARS: usize = 512;

/// One authenticated call.
#[derive(Debug, Clone)]
pub struct Caller {
    /// Tenant that the call is about; `None` for a caller without identity.
    pub tenant: Option<(TenantId, Name)>,
    /// Who.
    pub principal: Principal,
    /// Serial of the client certificate, lower-case hex.
    pub serial: Option<String>,
    /// Identifier of this call in logs and audit events.
    pub request_id: String,
    /// When the client certificate ends.
    pub certificate_not_after: Option<DateTime<Utc>>,
    /// Notes for the audit layer.
    pub notes: Arc<CallNotes>,
}

impl Caller {
    /// The caller of a request.
    pub fn of<T>(request: &tonic::Request<T>) -> Result<Self, Status> {
        request.extensions().get::<Self>().cloned().ok_or_else(|| {
            ApiError::internal("no caller in the request: the authentication layer is missing").into()
        })
    }

    /// How audit events and transitions name it: `user/alice`, `agent/<id>`, `local`, `anonymous`.
    pub fn actor(&self) -> String {
        match &self.principal {
            Principal::User { name, .. } => format!("user/{name}"),
            Principal::Agent { id } => format!("agent/{id}"),
            Principal::Local => "local".to_owned(),
            Principal::Anonymous => "anonymous".to_owned(),
        }
    }

    /// The role for audit events; empty without one.
    pub fn role(&self) -> &'static str {
        match &self.principal {
            Principal::User { role, .. } => role.as_str(),
            Principal::Agent { .. } => "agent",
            Principal::Local => "local",
            Principal::Anonymous => "",
        }
    }

    /// What it may do in its tenant: the local socket counts as an admin.
    pub fn user_role(&self) -> Option<Role> {
        match &self.principal {
            Principal::User { role, .. } => Some(*role),
            Principal::Local => Some(Role::Admin),
            Principal::Agent { .. } | Principal::Anonymous => None,
        }
    }

    /// The tenant that scopes everything the call does.
    pub fn tenant_id(&self) -> Result<TenantId, ApiError> {
        self.tenant_name().map(|(id, _)| id)
    }

    /// The tenant with its name.
    pub fn tenant_name(&self) -> Result<(TenantId, Name), ApiError> {
        self.tenant.clone().ok_or_else(certificate_missing)
    }

    /// The agent that calls.
    pub fn agent_id(&self) -> Result<AgentId, Status> {
        match &self.principal {
            Principal::Agent { id } => Ok(*id),
            Principal::User { .. } | Principal::Local | Principal::Anonymous => {
                Err(certificate_missing().into())
            }
        }
    }

    /// How long the client certificate still counts; `None` without one.
    pub fn certificate_life(&self, now: DateTime<Utc>) -> Option<Duration> {
        self.certificate_not_after
            .map(|end| (end - now).to_std().unwrap_or_default())
    }

    /// Notes which resource the call is about, for its audit event. Cut and without control characters: it may be a text of the
    /// caller that nobody has checked, and the audit log keeps it for ever.
    pub fn about(&self, resource: &str) {
        let clean = resource
            .chars()
            .take(RESOURCE_CHARS)
            .map(|c| if c.is_control() { '\u{fffd}' } else { c })
            .collect();
        *self.notes.resource.lock().unwrap_or_else(PoisonError::into_inner) = clean;
    }

    /// As [`Caller::about`], for a caller without identity that has shown the resource's secret: its denial names the resource,
    /// whatever else is refused at the same time.
    pub fn about_proven(&self, resource: &str) {
        self.about(resource);
        self.notes.proven.store(true, Ordering::Release);
    }

    /// Whether the caller has shown the secret of the resource that was noted.
    pub fn is_proven(&self) -> bool {
        self.notes.proven.load(Ordering::Acquire)
    }

    /// The resource that was noted; empty when none was.
    pub fn resource(&self) -> String {
        self.notes
            .resource
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Says that the call's audit event is written, so that the audit layer does not write another.
    pub fn set_recorded(&self) {
        self.notes.recorded.store(true, Ordering::Release);
    }

    /// Whether the call's audit event is written.
    pub fn is_recorded(&self) -> bool {
        self.notes.recorded.load(Ordering::Acquire)
    }
}

/// The caller showed no client certificate, and what it calls needs one.
pub fn certificate_missing() -> ApiError {
    ApiError::new(
        Reason::CertificateMissing,
        "this call needs a client certificate and none was shown",
        "ask an administrator for one (sealift-orchestrator admin issue) and name it in the client's context",
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(principal: Principal) -> Caller {
        Caller {
            tenant: None,
            principal,
            serial: None,
            request_id: "r".to_owned(),
            certificate_not_after: None,
            notes: Arc::default(),
        }
    }

    #[test]
    fn actors_are_named_by_kind() {
        let user = Principal::User {
            id: UserId::new(DateTime::default()),
            name: "alice".parse().unwrap(),
            role: Role::Ci,
        };
        assert_eq!(caller(user.clone()).actor(), "user/alice");
        assert_eq!(caller(user).role(), "ci");
        assert_eq!(caller(Principal::Local).user_role(), Some(Role::Admin));
        assert_eq!(caller(Principal::Anonymous).user_role(), None);
    }

    #[test]
    fn without_identity_there_is_no_tenant_and_no_agent() {
        let anonymous = caller(Principal::Anonymous);
        assert_eq!(
            Status::from(anonymous.tenant_id().unwrap_err()).code(),
            tonic::Code::Unauthenticated
        );
        assert!(anonymous.agent_id().is_err());
        assert!(Caller::of(&tonic::Request::new(())).is_err());
    }

    #[test]
    fn r13_what_a_caller_calls_a_resource_is_cut_and_cleaned() {
        let caller = caller(Principal::Local);
        caller.about(&format!("a\0b\n{}", "x".repeat(5_000_000)));
        let noted = caller.resource();
        assert!(noted.starts_with("a\u{fffd}b\u{fffd}x"), "{noted}");
        assert_eq!(noted.chars().count(), RESOURCE_CHARS);
    }

    #[test]
    fn notes_are_shared_between_the_layers_of_a_call() {
        let inner = caller(Principal::Local);
        let outer = inner.clone();
        inner.about("environments/prod");
        inner.set_recorded();
        assert_eq!(outer.resource(), "environments/prod");
        assert!(outer.is_recorded());
    }
}
