//! A whole orchestrator in one value: started with settings and a clock, stopped in order. Used by `main` and by tests alike.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use sealift_common::{
    id::{ReplicaId, TenantId},
    inventory::Tenant,
    name::{InvalidName, Name},
    time::Clock,
};
use sealift_store::{Db, Engine, StoreConfig, StoreError};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::{
    sync::{CancellationToken, DropGuard},
    task::TaskTracker,
};

use crate::{
    app::{Core, turn},
    config::{Config, ConfigError},
    gate::DEFAULT_TENANT,
    gateway::presence::{Elsewhere, Presence},
    health::Health,
    identity::{self, Ca, IdentityError, OrchestratorKeys, ServerCertificate},
    loops::{self, health::LoopHealth, heartbeats, remind, supervisor::Supervisor},
    registry::{Registry, RegistryConfig, RegistryError},
    server::{self, AdminSocket, ReflectionError},
    state::{App, Identity},
    status::Chain,
};

/// Longest wait for the store when leases are given up at a stop.
const HAND_OVER_DEADLINE: Duration = Duration::from_secs(2);

/// How many of the newest audit events are checked at a start.
const AUDIT_TAIL: u32 = 1_000;

/// Why an orchestrator does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A setting is wrong.
    #[error("the configuration is wrong")]
    Config(#[from] ConfigError),
    /// The data directory cannot be made or entered.
    #[error("cannot use the data directory {path}")]
    DataDir {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Administration of an orchestrator that has never been there.
    #[error(
        "no orchestrator's data in {path}: name its folder with --data-dir, or its settings with --config; \
         a new orchestrator makes its data when it is first served (sealift-orchestrator serve)"
    )]
    NoData {
        /// Where it was looked for.
        path: PathBuf,
    },
    /// The store cannot be opened or prepared.
    #[error("cannot open the database")]
    Store(#[from] StoreError),
    /// Keys or certificates cannot be made or read.
    #[error("cannot prepare the orchestrator's identity")]
    Identity(#[from] IdentityError),
    /// The port cannot be listened on.
    #[error("cannot listen on {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The admin socket cannot be made.
    #[error("cannot make the admin socket {path}")]
    Socket {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Registries cannot be reached from this machine at all.
    #[error("cannot speak to image registries")]
    Registry(#[from] RegistryError),
    /// Reflection cannot be served.
    #[error("cannot serve reflection")]
    Reflection(#[from] ReflectionError),
    /// A built-in name is none: a defect.
    #[error("a built-in name is wrong")]
    Name(#[from] InvalidName),
    /// A blocking step ended without result: a defect.
    #[error("a step of starting ended without result")]
    Step(#[source] tokio::task::JoinError),
}

/// How much of an orchestrator to start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Everything.
    Whole,
    /// Only the admin socket, for administration while the orchestrator does not run.
    Admin,
}

/// Starts orchestrators.
#[derive(Debug)]
pub struct Orchestrator;

/// An orchestrator that runs. Dropping it ends it without waiting; [`Running::stop`] waits.
#[derive(Debug)]
pub struct Running {
    /// Address of the TLS port, with the port that was really taken; `None` when only the admin socket is served.
    pub address: Option<SocketAddr>,
    /// What its parts share.
    pub app: App,
    health: (CancellationToken, JoinHandle<()>),
    accept: CancellationToken,
    failed: CancellationToken,
    servers: Vec<JoinHandle<()>>,
    _guards: [DropGuard; 3],
}

impl Orchestrator {
    /// Starts everything: store, identity, loops, the TLS port and the admin socket. It serves when this returns.
    pub async fn start(config: Config, clock: Arc<dyn Clock>) -> Result<Running, StartError> {
        start(config, clock, Part::Whole).await
    }

    /// Starts what the admin commands need: store, identity and the admin socket. Fails while an orchestrator runs, and where there
    /// has never been one: a wrong folder must not become a second authority that nobody trusts.
    pub async fn start_admin(config: Config, clock: Arc<dyn Clock>) -> Result<Running, StartError> {
        let there = config
            .identity_dir()
            .try_exists()
            .map_err(|source| StartError::DataDir {
                path: config.data_dir.clone(),
                source,
            })?;
        if !there {
            return Err(StartError::NoData {
                path: config.data_dir,
            });
        }
        start(config, clock, Part::Admin).await
    }
}

async fn start(config: Config, clock: Arc<dyn Clock>, part: Part) -> Result<Running, StartError> {
    config.validate()?;
    make_data_dir(&config)?;
    let db = Db::open(&StoreConfig {
        url: config.database_url()?,
        max_connections: config.database.max_connections,
        acquire_deadline: config.database.acquire_deadline(),
    })
    .await?;
    let identity = Arc::new(open_identity(&config, &clock).await?);
    ensure_default_tenant(&db, clock.as_ref()).await?;
    turn::take_over(&db, clock.now()).await?;
    let supervisor = Supervisor {
        tasks: TaskTracker::new(),
        health: LoopHealth::default(),
        shutdown: CancellationToken::new(),
        failed: CancellationToken::new(),
    };
    let elsewhere = match db.engine() {
        Engine::Sqlite => Elsewhere::Nowhere,
        Engine::Postgres => Elsewhere::Replicas,
    };
    let app = App {
        db,
        identity,
        presence: Presence::new(Arc::clone(&clock), elsewhere),
        registry: Arc::new(open_registry(&config)?),
        loops: supervisor.health.clone(),
        config: Arc::new(config),
        revocations: Arc::default(),
        shutdown: supervisor.shutdown.clone(),
        tasks: supervisor.tasks.clone(),
        supervisor,
        replica: ReplicaId::new(clock.now()),
        started_at: clock.now(),
        clock,
    };

    app.tasks.spawn(check_audit_tail(app.db.clone()));
    let health = Health::default();
    let (routes, names) = server::services(&app, &health)?;
    let accept = CancellationToken::new();
    let failed = app.supervisor.failed.clone();
    let mut servers = Vec::new();

    let path = app.config.admin_socket();
    let socket = AdminSocket::bind(&path)
        .await
        .map_err(|source| StartError::Socket { path, source })?;
    let local = server::serve_local(app.clone(), routes.clone(), socket, accept.clone());
    servers.push(app.tasks.spawn(report("admin socket", local, failed.clone())));

    let address = match part {
        Part::Admin => None,
        Part::Whole => {
            let wanted = app.config.server.listen;
            let refused = |source| StartError::Listen {
                address: wanted,
                source,
            };
            let listener = TcpListener::bind(wanted).await.map_err(refused)?;
            let address = listener.local_addr().map_err(refused)?;
            let tls = identity::server_config(
                &app.identity.ca,
                Arc::clone(&app.identity.server),
                Arc::clone(&app.clock),
            )?;
            spawn_loops(&app);
            let served = server::serve_tls(app.clone(), routes, listener, tls, accept.clone());
            servers.push(app.tasks.spawn(report("TLS port", served, failed.clone())));
            Some(address)
        }
    };

    let health_stop = CancellationToken::new();
    let health_loop = app
        .tasks
        .spawn(health.run(app.clone(), names, health_stop.clone()));
    let guards = [
        health_stop.clone().drop_guard(),
        accept.clone().drop_guard(),
        app.shutdown.clone().drop_guard(),
    ];
    Ok(Running {
        address,
        app,
        health: (health_stop, health_loop),
        accept,
        failed,
        servers,
        _guards: guards,
    })
}

/// Everything that runs beside calls. One line each.
fn spawn_loops(app: &App) {
    let (clock, stop) = (Arc::clone(&app.clock), app.shutdown.clone());
    let supervisor = &app.supervisor;
    supervisor.spawn("heartbeats", heartbeats::run(app.clone()));
    supervisor.spawn("remind", remind::run(app.clone()));
    supervisor.spawn(
        "server_certificate",
        Arc::clone(&app.identity.server).keep_fresh(Arc::clone(&clock), stop.clone()),
    );
    loops::start(app, &Core::of(app));
    let revocations = Arc::clone(&app.revocations);
    supervisor.spawn("revocations", revocations.run(app.db.clone(), clock, stop));
}

async fn report(
    what: &'static str,
    served: impl Future<Output = Result<(), tonic::transport::Error>>,
    failed: CancellationToken,
) {
    if let Err(error) = served.await {
        tracing::error!(error = %Chain(&error), "the {what} ended");
        failed.cancel();
    }
}

fn make_data_dir(config: &Config) -> Result<(), StartError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let failed = |source| StartError::DataDir {
        path: config.data_dir.clone(),
        source,
    };
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.data_dir)
        .map_err(failed)
}

fn open_registry(config: &Config) -> Result<Registry, RegistryError> {
    Registry::new(RegistryConfig {
        docker_config: config.registry.docker_config_file.clone(),
        insecure: config.registry.plain_http.clone(),
        deadline: Duration::from_secs(config.registry.deadline_seconds),
        ..RegistryConfig::default()
    })
}

async fn open_identity(config: &Config, clock: &Arc<dyn Clock>) -> Result<Identity, StartError> {
    let (directory, names, now) = (config.identity_dir(), config.server.names(), clock.now());
    let open = move || {
        let ca = Arc::new(Ca::open(&directory, now)?);
        Ok(Identity {
            keys: OrchestratorKeys::open(&directory)?,
            server: ServerCertificate::new(Arc::clone(&ca), names, now)?,
            ca,
        })
    };
    tokio::task::spawn_blocking(open)
        .await
        .map_err(StartError::Step)?
}

/// Makes the tenant `default` at first start. Two replicas may do so at once: one of them finds it there.
async fn ensure_default_tenant(db: &Db, clock: &dyn Clock) -> Result<(), StartError> {
    let name: Name = DEFAULT_TENANT.parse()?;
    let mut tx = db.write().await?;
    if tx.tenant_by_name(&name).await?.is_some() {
        return Ok(());
    }
    let now = clock.now();
    let tenant = Tenant {
        id: TenantId::new(now),
        name,
        created_at: now,
    };
    match tx.insert_tenant(&tenant).await {
        Err(StoreError::Duplicate { .. }) => return Ok(()),
        other => other?,
    }
    Ok(tx.commit().await?)
}

impl Running {
    /// Waits until a listener or a loop ends by itself, which it should not.
    pub async fn ended(&self) {
        self.failed.cancelled().await;
    }

    /// Whether a listener or a loop ended by itself.
    pub fn has_ended(&self) -> bool {
        self.failed.is_cancelled()
    }

    /// Goes down in order, within the configured deadline: health says so, no new connections, streams are told and loops stop,
    /// calls under way end, the store is closed. Gives whether everything ended in time.
    pub async fn stop(self) -> bool {
        let deadline = tokio::time::Instant::now() + self.app.config.limits.shutdown_deadline();
        let (stop_health, health) = self.health;
        stop_health.cancel();
        let _ = health.await;
        // A moment for probes to see it would be here; load balancers look every few seconds, so they are not waited for.
        self.accept.cancel();
        self.app.shutdown.cancel();
        self.app.tasks.close();
        let ended = tokio::time::timeout_at(deadline, async {
            for server in self.servers {
                let _ = server.await;
            }
            self.app.tasks.wait().await;
        })
        .await
        .is_ok();
        if ended {
            hand_over(&self.app).await;
        } else {
            tracing::warn!("some calls or loops did not end in time; they are cut off");
        }
        let closed = tokio::time::timeout(Duration::from_secs(5), self.app.db.clone().close()).await;
        ended && closed.is_ok()
    }
}

/// Gives the leases up. Failing costs the next holder seconds and nothing else.
async fn hand_over(app: &App) {
    let given = turn::hand_over(&app.db, app.replica, app.clock.now());
    match tokio::time::timeout(HAND_OVER_DEADLINE, given).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error = %Chain(&error), "the leases run out by themselves"),
        Err(_) => tracing::warn!("the leases run out by themselves: the store did not answer in time"),
    }
}

/// Checks the newest links of the audit chain. A log that somebody changed is no reason to stop deploying, but to look.
async fn check_audit_tail(db: Db) {
    let checked = async {
        let mut tx = db.read().await?;
        let (newest, _) = tx.audit_head().await?;
        let first = newest.saturating_sub(u64::from(AUDIT_TAIL)) + 1;
        tx.verify_audit_chain(first, AUDIT_TAIL).await
    };
    match checked.await {
        Ok(events) => tracing::debug!(events, "the end of the audit log is whole"),
        Err(error @ StoreError::Corrupt { .. }) => {
            tracing::error!(error = %Chain(&error), "the audit log was changed, or its database is damaged");
        }
        Err(error) => tracing::warn!(error = %Chain(&error), "the audit log could not be checked"),
    }
}
