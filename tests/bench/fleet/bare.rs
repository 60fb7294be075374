//! The bare server: mutual TLS and one bidirectional stream for each client with tonic and nothing else, in a process of its own. It
//! takes whatever its clients say and pushes messages when it is told to. What it costs is what the transport costs.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::{Context as _, Result};
use rcgen::{CertifiedKey, generate_simple_self_signed};
use sealift_common::time::{Clock as _, SystemClock};
use sealift_proto::agent::v1::{
    AddTargetRequest, AddTargetResponse, Assignment, Assignments, ConnectRequest, ConnectResponse,
    EnrollRequest, EnrollResponse, PingRequest, PingResponse, RenewCertificateRequest,
    RenewCertificateResponse, Welcome, connect_response::Message, gateway_service_server as server,
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc, task::JoinSet, time::interval};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::task::TaskTracker;
use tonic::{
    Request, Response, Status, Streaming,
    transport::{Certificate, Identity, Server, ServerTlsConfig},
};

use crate::lines::{self, number, text};

type Out = mpsc::Sender<Result<ConnectResponse, Status>>;

#[derive(Clone, Default)]
struct Bare {
    clients: Arc<Mutex<Vec<Out>>>,
    tasks: TaskTracker,
}

/// Serves clients with certificates of `client_ca` on a loopback port until standard input ends; the first line that it writes says
/// where, and which certificate it has.
pub async fn run(client_ca: &str) -> Result<()> {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(vec!["localhost".to_owned()])?;
    let tls = ServerTlsConfig::new()
        .identity(Identity::from_pem(cert.pem(), signing_key.serialize_pem()))
        .client_ca_root(Certificate::from_pem(client_ca));
    let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
    let port = listener.local_addr()?.port();
    let bare = Bare::default();
    let service = server::GatewayServiceServer::new(bare.clone());
    let mut served = JoinSet::new();
    let incoming = TcpListenerStream::new(listener);
    let router = Server::builder()
        .tcp_nodelay(true)
        .tls_config(tls)?
        .add_service(service);
    served.spawn(router.serve_with_incoming(incoming));
    let root = cert.pem();
    lines::serve(async |command| match text(&command, "do")? {
        "where" => Ok(json!({ "endpoint": format!("https://localhost:{port}"), "root_pem": root })),
        "push" => bare.push(&command).await,
        other => anyhow::bail!("{other:?} is no command"),
    })
    .await
}

impl Bare {
    /// Sends messages to one client after the other.
    async fn push(&self, command: &Value) -> Result<Value> {
        let (count, bytes) = (number(command, "count")?, number(command, "bytes")?);
        let mut ticks = interval(Duration::from_millis(number(command, "every_ms")?));
        let clients = self.lock().clone();
        for turn in 0..count {
            ticks.tick().await;
            // A step that is prime to most numbers, so that all parts of the fleet are met.
            let index = usize::try_from(turn * 7_919)? % clients.len().max(1);
            let client = clients.get(index).context("nobody is connected")?;
            client.send(Ok(message(usize::try_from(bytes)?))).await?;
        }
        Ok(json!({}))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Out>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// As large as an order, with the moment of sending in place of the version.
fn message(bytes: usize) -> ConnectResponse {
    let micros = SystemClock.now().timestamp_micros();
    ConnectResponse {
        message: Some(Message::Assignments(Assignments {
            version: u64::try_from(micros).unwrap_or_default(),
            base: 1,
            upserts: vec![Assignment {
                task_id: String::new(),
                attempt: 1,
                order: vec![0; bytes],
                stop: false,
            }],
            removals: Vec::new(),
        })),
    }
}

#[tonic::async_trait]
impl server::GatewayService for Bare {
    type ConnectStream = Pin<Box<ReceiverStream<Result<ConnectResponse, Status>>>>;

    async fn connect(
        &self,
        request: Request<Streaming<ConnectRequest>>,
    ) -> Result<Response<Self::ConnectStream>, Status> {
        let (out, stream) = mpsc::channel(4);
        let first = [
            Message::Welcome(Welcome::default()),
            Message::Assignments(Assignments::default()),
        ];
        for message in first {
            let message = Some(message);
            out.try_send(Ok(ConnectResponse { message }))
                .map_err(|_| Status::internal("a new stream is full"))?;
        }
        self.lock().push(out);
        let mut inbound = request.into_inner();
        self.tasks
            .spawn(async move { while let Ok(Some(_)) = inbound.message().await {} });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn enroll(&self, _: Request<EnrollRequest>) -> Result<Response<EnrollResponse>, Status> {
        Err(none())
    }

    async fn renew_certificate(
        &self,
        _: Request<RenewCertificateRequest>,
    ) -> Result<Response<RenewCertificateResponse>, Status> {
        Err(none())
    }

    async fn add_target(&self, _: Request<AddTargetRequest>) -> Result<Response<AddTargetResponse>, Status> {
        Err(none())
    }

    async fn ping(&self, _: Request<PingRequest>) -> Result<Response<PingResponse>, Status> {
        Err(none())
    }
}

fn none() -> Status {
    Status::unimplemented("the bare server has streams only")
}
