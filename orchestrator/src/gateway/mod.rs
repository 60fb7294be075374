//! Gateway: what agents call. Agents dial in; nothing here dials out.
//!
//! - `enrol`, `renew`: identities; `add_target`: another target for one.
//! - `session`: one connection, with `hello` (its beginning), `inbound` (what the agent says), `assignments`
//!   and `outgoing` (what it is told).
//! - `reports`, `packets`, `observations`: what becomes of what agents say; `writer` stores it in groups.
//! - `presence`: who is connected; memory only; `loops/remind.rs` finds the agents that nobody told of their work.

mod add_target;
pub mod assignments;
mod enrol;
mod hello;
mod inbound;
pub mod observations;
mod outgoing;
pub mod packets;
pub mod presence;
mod refusal;
mod renew;
pub mod reports;
pub mod session;
pub mod writer;

use std::time::Duration;

use sealift_common::{
    audit::{AuditEntry, AuditOutcome},
    error::Reason,
};
use sealift_proto::{
    agent::v1::{
        AddTargetRequest, AddTargetResponse, ConnectRequest, ConnectResponse, EnrollRequest, EnrollResponse,
        PingRequest, PingResponse, RenewCertificateRequest, RenewCertificateResponse, gateway_service_server,
    },
    convert,
};
use sealift_store::{Change, StoreError};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use self::{
    session::{Peer, Session},
    writer::Writer,
};
use crate::{VERSION, caller::Caller, state::App, status::ApiError};

/// How long writing an audit event beside a call may take.
const AUDIT_DEADLINE: Duration = Duration::from_secs(10);

/// The service that agents call.
#[derive(Debug, Clone)]
pub struct Gateway {
    app: App,
    writer: Writer,
}

impl Gateway {
    /// The service. Starts the loops that it needs on the app's tracker.
    pub fn start(app: &App) -> Self {
        app.supervisor
            .spawn("gateway_changes", follow_changes(app.clone()));
        Self {
            app: app.clone(),
            writer: Writer::start(&app.db, &app.clock, &app.supervisor),
        }
    }
}

#[tonic::async_trait]
impl gateway_service_server::GatewayService for Gateway {
    async fn enroll(&self, request: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        let caller = Caller::of(&request)?;
        let response = enrol::enroll(&self.app, &caller, request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn renew_certificate(
        &self,
        request: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        let caller = Caller::of(&request)?;
        let response = renew::renew(&self.app, &caller, &request.into_inner()).await?;
        Ok(Response::new(response))
    }

    async fn add_target(
        &self,
        request: Request<AddTargetRequest>,
    ) -> Result<Response<AddTargetResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (tenant, agent) = (caller.tenant_name()?, caller.agent_id()?);
        let response = add_target::add_target(&self.app, &caller, &tenant, agent, request.get_ref()).await?;
        Ok(Response::new(response))
    }

    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        Ok(Response::new(PingResponse {
            time: Some(convert::timestamp(self.app.clock.now())),
            version: VERSION.to_owned(),
        }))
    }

    type ConnectStream = ReceiverStream<Result<ConnectResponse, Status>>;

    async fn connect(
        &self,
        request: Request<Streaming<ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let caller = Caller::of(&request)?;
        let peer = Peer {
            tenant: caller.tenant_name()?,
            agent: caller.agent_id()?,
            request_id: caller.request_id.clone(),
            certificate_life: caller.certificate_life(self.app.clock.now()),
        };
        if self.app.shutdown.is_cancelled() {
            return Err(refusal::Refusal::ShuttingDown.into());
        }
        let (out, stream) = mpsc::channel(outgoing::BUFFERED);
        let revoked = self.app.revocations.watch(&caller);
        let session = Session::new(self.app.clone(), self.writer.clone(), peer, out, revoked);
        self.app.tasks.spawn(session.run(request.into_inner()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Tells sessions that their assignments may have changed, for as long as the orchestrator runs.
async fn follow_changes(app: App) {
    let mut changes = app.db.changes();
    loop {
        let change = tokio::select! {
            () = app.shutdown.cancelled() => return,
            change = changes.recv() => change,
        };
        match change {
            Ok(Change::Task {
                agent: Some(agent), ..
            }) => app.presence.notify(agent),
            Ok(_) => {}
            Err(RecvError::Lagged(_)) => app.presence.notify_all(),
            Err(RecvError::Closed) => return,
        }
    }
}

/// Records that an agent did what it must not, or that either end was put back in time. A failure to record is logged: the
/// session ends all the same. The same of one agent is recorded once an hour.
async fn audit_agent(app: &App, peer: &Peer, action: &'static str, reason: Reason) {
    if !app.presence.blame(peer.agent, action) {
        return;
    }
    let entry = AuditEntry {
        tenant_id: Some(peer.tenant.0),
        actor: format!("agent/{}", peer.agent),
        role: "agent".to_owned(),
        action: action.to_owned(),
        resource: format!("agents/{}", peer.agent),
        outcome: AuditOutcome::Denied,
        reason: reason.as_str().to_owned(),
        request_id: peer.request_id.clone(),
    };
    if let Err(error) = audit(app, &entry).await {
        tracing::error!(agent.id = %peer.agent, action, %error, "an audit event was not written");
    }
}

/// Writes an audit event in a transaction of its own.
async fn audit(app: &App, entry: &AuditEntry) -> Result<(), ApiError> {
    let write = async {
        let mut tx = app.db.write().await?;
        tx.append_audit(entry, app.clock.now()).await?;
        tx.commit().await
    };
    match tokio::time::timeout(AUDIT_DEADLINE, write).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(StoreError::Conflict.into()),
    }
}
