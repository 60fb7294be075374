//! The listeners and what they serve: one TLS port for users, CI systems and agents, and a socket in the data directory for the
//! local administrator. Both serve the same services behind the same gate.

use std::{
    fs, io,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use sealift_common::bounds::MESSAGE_BYTES;
use sealift_proto::agent::v1::gateway_service_server::GatewayServiceServer;
use sealift_proto::v1::{
    agent_service_server::AgentServiceServer, audit_service_server::AuditServiceServer,
    component_service_server::ComponentServiceServer, drift_service_server::DriftServiceServer,
    environment_service_server::EnvironmentServiceServer, evidence_service_server::EvidenceServiceServer,
    hold_service_server::HoldServiceServer, job_service_server::JobServiceServer,
    maintenance_service_server::MaintenanceServiceServer, promotion_service_server::PromotionServiceServer,
    release_service_server::ReleaseServiceServer, rollback_service_server::RollbackServiceServer,
    server_service_server::ServerServiceServer, status_service_server::StatusServiceServer,
    target_service_server::TargetServiceServer, tenant_service_server::TenantServiceServer,
    user_service_server::UserServiceServer,
};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{
    server::NamedService,
    service::{Routes, RoutesBuilder},
    transport::Server,
};
use tower::layer::util::{Identity as NoLayer, Stack};

use crate::{
    app::Core,
    control,
    gate::{GateLayer, Origin},
    gateway::Gateway,
    health::Health,
    identity::{self, AcceptLimits},
    state::App,
};

/// Most streams that a peer may reset before the server has looked at them (rapid reset attacks).
const PENDING_RESETS: usize = 64;

/// Collects services, each with the same bounds, and their names for the health service.
struct Services {
    routes: RoutesBuilder,
    names: Vec<&'static str>,
}

macro_rules! add {
    ($services:ident, $server:ident, $service:expr) => {
        let service = $server::new($service)
            .max_decoding_message_size(MESSAGE_BYTES)
            .max_encoding_message_size(MESSAGE_BYTES);
        $services.names.push(name_of(&service));
        $services.routes.add_service(service);
    };
}

fn name_of<S: NamedService>(_: &S) -> &'static str {
    S::NAME
}

/// Why the reflection service cannot be built: the descriptors in this binary are broken.
#[derive(Debug, thiserror::Error)]
#[error("the descriptors for reflection cannot be read")]
pub struct ReflectionError(#[source] tonic_reflection::server::Error);

/// All services. The names are those that the health service answers for.
pub fn services(app: &App, health: &Health) -> Result<(Routes, Vec<&'static str>), ReflectionError> {
    let mut services = Services {
        routes: Routes::builder(),
        names: Vec::new(),
    };
    let core = Core::of(app);
    let app = || app.clone();
    add!(
        services,
        ServerServiceServer,
        control::server::Server { app: app() }
    );
    add!(
        services,
        TenantServiceServer,
        control::tenant::Tenants { app: app() }
    );
    add!(services, UserServiceServer, control::user::Users { app: app() });
    add!(
        services,
        EnvironmentServiceServer,
        control::environment::Environments { app: app() }
    );
    add!(
        services,
        TargetServiceServer,
        control::target::Targets { app: app() }
    );
    add!(
        services,
        AgentServiceServer,
        control::agent::Agents { app: app() }
    );
    add!(
        services,
        ComponentServiceServer,
        control::component::Components { app: app() }
    );
    add!(
        services,
        ReleaseServiceServer,
        control::release::Releases::new(app())
    );
    add!(
        services,
        PromotionServiceServer,
        control::promotion::Promotions::new(app(), core.clone())
    );
    add!(
        services,
        JobServiceServer,
        control::job::Jobs::new(app(), core.clone())
    );
    add!(
        services,
        RollbackServiceServer,
        control::rollback::Rollbacks::new(app(), core.clone())
    );
    add!(services, HoldServiceServer, control::hold::Holds::new(app()));
    add!(
        services,
        StatusServiceServer,
        control::status::Board { app: app() }
    );
    add!(
        services,
        DriftServiceServer,
        control::drift::DriftObservations { app: app() }
    );
    add!(
        services,
        EvidenceServiceServer,
        control::evidence::Evidence { app: app() }
    );
    add!(services, AuditServiceServer, control::audit::Audit { app: app() });
    add!(
        services,
        MaintenanceServiceServer,
        control::maintenance::MaintenanceRuns { app: app() }
    );
    add!(services, GatewayServiceServer, Gateway::start(&app()));

    services.routes.add_service(health.service());
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(sealift_proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    services
        .routes
        .add_service(reflection().build_v1().map_err(ReflectionError)?);
    services
        .routes
        .add_service(reflection().build_v1alpha().map_err(ReflectionError)?);
    Ok((services.routes.routes(), services.names))
}

/// A tenth more or less than `age`, so that a fleet that connected at once does not come back at once.
fn with_jitter(age: Duration) -> Duration {
    let mut byte = [0];
    // Without random numbers there is no jitter, which is no reason not to serve.
    let _ = getrandom::fill(&mut byte);
    age.mul_f64(0.9 + f64::from(byte[0]) / f64::from(u8::MAX) * 0.2)
}

fn builder(app: &App, origin: Origin) -> Server<Stack<GateLayer, NoLayer>> {
    let limits = &app.config.limits;
    let seconds = Duration::from_secs;
    Server::builder()
        .layer(GateLayer::new(app.clone(), origin))
        .concurrency_limit_per_connection(limits.calls_per_connection)
        .max_concurrent_streams(limits.streams_per_connection)
        .http2_max_header_list_size(limits.header_bytes)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS))
        .http2_keepalive_interval(Some(seconds(limits.keepalive_seconds)))
        .http2_keepalive_timeout(Some(seconds(limits.keepalive_timeout_seconds)))
        .max_connection_age(with_jitter(seconds(limits.connection_age_seconds)))
        .max_connection_age_grace(seconds(limits.connection_grace_seconds))
}

/// Serves the TLS port until `stop`, then lets calls under way end.
pub async fn serve_tls(
    app: App,
    routes: Routes,
    listener: TcpListener,
    tls: std::sync::Arc<rustls::ServerConfig>,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let limits = AcceptLimits {
        connections: app.config.limits.connections,
        handshakes: app.config.limits.handshakes,
        handshake_deadline: Duration::from_secs(app.config.limits.handshake_seconds),
        anonymous: app.config.limits.anonymous_connections,
        anonymous_life: Duration::from_secs(app.config.limits.anonymous_seconds),
        ..AcceptLimits::default()
    };
    let incoming = identity::incoming(listener, tls, limits);
    builder(&app, Origin::Tls)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await
}

/// Serves the admin socket until `stop`.
pub async fn serve_local(
    app: App,
    routes: Routes,
    socket: AdminSocket,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let incoming = UnixListenerStream::new(socket.listener);
    let served = builder(&app, Origin::Local)
        .add_routes(routes)
        .serve_with_incoming_shutdown(incoming, stop.cancelled_owned())
        .await;
    drop(socket.file);
    served
}

/// The admin socket; its file goes away with it.
#[derive(Debug)]
pub struct AdminSocket {
    listener: UnixListener,
    file: SocketFile,
}

#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Somebody may have removed it already, which is as good.
        let _ = fs::remove_file(&self.0);
    }
}

impl AdminSocket {
    /// Binds the socket for its owner only. A file that a killed process left is replaced; a live one is an error.
    pub async fn bind(path: &Path) -> io::Result<Self> {
        if UnixStream::connect(path).await.is_ok() {
            return Err(io::Error::new(
                io::ErrorKind::AddrInUse,
                "another orchestrator answers there",
            ));
        }
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(path)?;
        let file = SocketFile(path.to_owned());
        fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
        Ok(Self { listener, file })
    }
}
