//! The one door that every call goes through: request id, span, who is it, may it, is there room, did it work.
//!
//! Deny by default: what the authorization table does not list is not reached. Denied calls, and failed ones that would have
//! changed something, leave an audit event (R13). Streams end when their principal is revoked.

mod authenticate;
mod denials;
mod respond;

pub use authenticate::DEFAULT_TENANT;
use authenticate::Evidence;
use denials::Denials;

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Request, Response};
use sealift_common::{
    audit::{AuditEntry, AuditOutcome},
    error::Reason,
};
use tokio::{sync::Semaphore, time::timeout};
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;
use tower::{Layer, Service};
use tracing::Instrument as _;
use uuid::{NoContext, Timestamp, Uuid};

use crate::{
    authz::{self, Rule},
    caller::{Caller, Principal},
    mutate,
    state::App,
    status::{ApiError, Chain},
};

/// The header that names a call in logs and audit events. A caller may choose it.
pub const REQUEST_ID: &str = "x-request-id";

/// The header by which the local socket names a tenant other than `default`.
pub const TENANT: &str = "x-sealift-tenant";

/// How long a call waits for room before it is refused.
const ROOM_WAIT: Duration = Duration::from_secs(1);

/// Most audit events written at the same time on behalf of refused calls: a flood of them waits for itself, not for the store.
const AUDITS: usize = 4;

/// How long writing such an event may take.
const AUDIT_DEADLINE: Duration = Duration::from_secs(10);

/// Where calls come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The TLS port: the peer's certificate says who it is.
    Tls,
    /// The socket in the data directory: whoever may open it is the local administrator.
    Local,
}

struct Shared {
    app: App,
    origin: Origin,
    calls: Arc<Semaphore>,
    audits: Arc<Semaphore>,
    denials: Denials,
}

/// Puts a [`Gate`] in front of a service.
#[derive(Clone)]
pub struct GateLayer(Arc<Shared>);

impl GateLayer {
    /// A gate for calls of this origin.
    pub fn new(app: App, origin: Origin) -> Self {
        let calls = Arc::new(Semaphore::new(app.config.limits.calls));
        let audits = Arc::new(Semaphore::new(AUDITS));
        Self(Arc::new(Shared {
            app,
            origin,
            calls,
            audits,
            denials: Denials::default(),
        }))
    }
}

impl<S> Layer<S> for GateLayer {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        Gate {
            inner,
            shared: Arc::clone(&self.0),
        }
    }
}

/// The door itself.
#[derive(Clone)]
pub struct Gate<S> {
    inner: S,
    shared: Arc<Shared>,
}

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        // The instance that was polled ready is the one to call.
        let ready = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, ready);
        let shared = Arc::clone(&self.shared);
        let id = request_id(&request, &shared.app);
        let span = tracing::info_span!("call", request.id = %id, method = request.uri().path(), actor = tracing::field::Empty);
        Box::pin(async move { Ok(shared.pass(inner, request, id).await) }.instrument(span))
    }
}

/// The path is not echoed: it is the caller's to choose, and the caller knows it.
fn unknown_method() -> ApiError {
    ApiError::new(
        Reason::UnknownMethod,
        "this orchestrator has no such method",
        "use a client of the orchestrator's version, or list what there is with gRPC reflection",
    )
}

/// The caller's own id for the call when it is a harmless one, else a fresh one.
fn request_id(request: &Request<Body>, app: &App) -> String {
    let given = request
        .headers()
        .get(REQUEST_ID)
        .and_then(|value| value.to_str().ok());
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    match given {
        Some(given) if (1..=64).contains(&given.len()) && given.bytes().all(legal) => given.to_owned(),
        _ => {
            let now = app.clock.now();
            let seconds = u64::try_from(now.timestamp()).unwrap_or(0);
            Uuid::new_v7(Timestamp::from_unix(
                NoContext,
                seconds,
                now.timestamp_subsec_nanos(),
            ))
            .to_string()
        }
    }
}

impl Shared {
    async fn pass<S>(self: Arc<Self>, inner: S, mut request: Request<Body>, id: String) -> Response<Body>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        let started = tokio::time::Instant::now();
        let path = request.uri().path().to_owned();
        let rule = authz::rule(&path);
        let (caller, refusal) = self.identify(Evidence::of(&request), rule, &id).await;
        tracing::Span::current().record("actor", caller.actor());

        let refusal = match (refusal, rule) {
            (Some(error), _) => Some(Status::from(error)),
            (None, None) => Some(unknown_method().into()),
            (None, Some(rule)) => authz::check(rule, &caller).err().map(Status::from),
        };
        let response = if let Some(status) = refusal {
            status.into_http()
        } else {
            request.extensions_mut().insert(caller.clone());
            self.call(inner, request).await
        };
        let response = respond::with_reason(response);
        let failed = Status::from_header_map(response.headers()).filter(|status| status.code() != Code::Ok);
        tracing::debug!(
            code = ?failed.as_ref().map_or(Code::Ok, Status::code),
            elapsed_ms = started.elapsed().as_millis() as u64,
            "call answered"
        );
        if let Some(status) = &failed {
            self.record(&caller, &path, rule, status).await;
        }
        let response = match (failed, rule) {
            (None, Some(rule)) if rule.streams => respond::while_certified(
                response,
                self.app.revocations.watch(&caller),
                caller.certificate_life(self.app.clock.now()),
            ),
            _ => response,
        };
        respond::with_request_id(response, &id)
    }

    /// Room, deadline, then the handler.
    async fn call<S>(&self, mut inner: S, request: Request<Body>) -> Response<Body>
    where
        S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    {
        let Ok(Ok(_permit)) = timeout(ROOM_WAIT, Arc::clone(&self.calls).acquire_owned()).await else {
            return Status::from(
                ApiError::new(
                    Reason::Overloaded,
                    "the orchestrator works on as many calls as it may",
                    "try again in a moment",
                )
                .retry_after(Duration::from_secs(2)),
            )
            .into_http();
        };
        let deadline = self.app.config.limits.call_deadline();
        match timeout(deadline, inner.call(request)).await {
            Ok(Ok(response)) => response,
            Ok(Err(never)) => match never {},
            Err(_) => Status::from(ApiError::new(
                Reason::DeadlineExceeded,
                format!("the call took longer than {} s", deadline.as_secs()),
                "look at the present state before you call again: it may have worked",
            ))
            .into_http(),
        }
    }

    /// Writes the audit event of a call that was denied, or failed and would have changed something.
    async fn record(self: &Arc<Self>, caller: &Caller, path: &str, rule: Option<&Rule>, status: &Status) {
        let denied = matches!(status.code(), Code::PermissionDenied | Code::Unauthenticated);
        let mutates = rule.is_some_and(|rule| rule.mutates);
        if caller.is_recorded() || !(denied || mutates) {
            return;
        }
        let outcome = if denied {
            AuditOutcome::Denied
        } else {
            AuditOutcome::Failed
        };
        let reason = status
            .get_details_error_info()
            .map_or_else(|| format!("{:?}", status.code()), |info| info.reason);
        let method: String = path.chars().take(200).collect();
        let entry = mutate::entry(caller, &method, &caller.resource(), outcome, &reason);
        if matches!(caller.principal, Principal::Anonymous) {
            // Whoever has shown a secret is named: as many keys as there are join tokens, not as callers like.
            let key = match rule {
                Some(_) if caller.is_proven() => format!("{method} {}", caller.resource()),
                Some(_) => method.clone(),
                None => denials::UNKNOWN.to_owned(),
            };
            if !self.denials.is_first(&key) {
                return;
            }
            let shared = Arc::clone(self);
            self.app
                .tasks
                .spawn(shared.count_denials(key, method, entry.clone()));
        }
        let shared = Arc::clone(self);
        // On the tracker: the event is written even when the caller hangs up first.
        let written = self.app.tasks.spawn(async move { shared.write(&entry).await });
        if let Err(error) = written.await {
            tracing::error!(%error, "writing an audit event ended without result");
        }
    }

    /// Records once per window how many callers without identity were refused after `first`, until there were none.
    async fn count_denials(self: Arc<Self>, key: String, method: String, first: AuditEntry) {
        let of = match first.resource.as_str() {
            "" => String::new(),
            resource => format!("{resource}/"),
        };
        loop {
            tokio::select! {
                () = tokio::time::sleep(denials::WINDOW) => {}
                () = self.app.shutdown.cancelled() => {}
            }
            let Some(more) = self.denials.more(&key) else {
                return;
            };
            let entry = AuditEntry {
                action: method.trim_start_matches('/').to_owned(),
                resource: format!("{of}calls/{more}"),
                request_id: String::new(),
                ..first.clone()
            };
            self.write(&entry).await;
        }
    }

    async fn write(&self, entry: &AuditEntry) {
        let work = async {
            let _room = self.audits.acquire().await;
            let mut tx = self.app.db.write().await?;
            tx.append_audit(entry, self.app.clock.now()).await?;
            tx.commit().await
        };
        match timeout(AUDIT_DEADLINE, work).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(?entry, error = %Chain(&error), "an audit event is lost"),
            Err(_) => tracing::error!(?entry, "an audit event is lost: the store does not answer"),
        }
    }
}
