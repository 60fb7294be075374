//! A whole system in one process: an orchestrator with real TLS and a real store, and agents on fake engines.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::Context as _;
use sealift_agent::{
    agent::{self, AgentError, AgentOptions},
    config::Settings,
    connect::Finish,
    enrol,
    host::fake::{Behaviour, FakeHost},
    identity::{Credential, IdentityStore, OrchestratorEndpoint, connect_mtls},
    program::launcher::Launched,
};
use sealift_common::{
    decision::Requester,
    digest::Digest,
    id::{AgentId, EnvironmentId, JobId, JoinTokenId, TargetId, TenantId},
    inventory::{AgentFacts, Environment, EnvironmentClass, Target, TargetKind},
    job::JobPhase,
    join_token::JoinToken,
    keys::SigningKey,
    lane::LanePolicy,
    manifest::{Manifest, PinnedImage},
    name::Labels,
    order::Fence,
    recipe::Recipe,
    remedy::Remediation,
    role::Role,
    strategy::Limits,
    time::{Clock, SystemClock},
    variables::Variables,
};
use sealift_orchestrator::{
    Orchestrator, Running,
    app::{
        Core,
        create_promotion::{NewPromotion, create_promotion},
        create_release::{Draft, Platforms, create_release},
    },
    config::Config,
};
use sealift_store::JoinToken as JoinTokenRow;
use tempfile::TempDir;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::database::Database;

/// How long anything in a test may take.
pub const PATIENCE: Duration = Duration::from_mins(1);

/// An orchestrator with one environment.
#[derive(Debug)]
pub struct Fleet {
    /// The orchestrator.
    pub running: Running,
    /// Its database.
    pub database: Database,
    /// Where everything is kept.
    pub folder: TempDir,
    /// The default tenant.
    pub tenant: TenantId,
    /// The environment.
    pub environment: Environment,
}

/// An agent on a fake engine.
pub struct FakeAgent {
    /// Its engine.
    pub host: FakeHost,
    /// Ends it.
    pub stop: CancellationToken,
    /// How it ended.
    pub ended: JoinHandle<Result<Finish, AgentError>>,
}

impl Fleet {
    /// Starts an orchestrator on the engine that the run asks for.
    pub async fn start() -> anyhow::Result<Self> {
        Self::start_with(|_| {}).await
    }

    /// The same with other settings.
    pub async fn start_with(change: impl FnOnce(&mut Config)) -> anyhow::Result<Self> {
        Self::start_at(Arc::new(SystemClock), change).await
    }

    /// The same with another clock, which its agents follow too.
    pub async fn start_at(clock: Arc<dyn Clock>, change: impl FnOnce(&mut Config)) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let database = Database::create(folder.path())?;
        let mut config = Config {
            data_dir: folder.path().join("data"),
            ..Config::default()
        };
        config.server.listen = "127.0.0.1:0".parse()?;
        config.database.url = Some(database.url.clone());
        change(&mut config);
        let running = Orchestrator::start(config, clock).await?;
        let app = &running.app;
        let now = app.clock.now();
        let mut tx = app.db.write().await?;
        let tenant = tx
            .tenant_by_name(&"default".parse()?)
            .await?
            .ok_or_else(|| anyhow::anyhow!("there is no default tenant"))?;
        let environment = Environment {
            id: EnvironmentId::new(now),
            tenant_id: tenant.id,
            name: "staging".parse()?,
            display_name: String::new(),
            position: 1,
            class: EnvironmentClass::NonProduction,
            variables: Variables::default(),
            remediation: Remediation::default(),
            lane_policy: LanePolicy::default(),
            revision: 1,
            created_at: now,
            updated_at: now,
            archived_at: None,
        };
        tx.insert_environment(&environment).await?;
        tx.commit().await?;
        Ok(Self {
            tenant: tenant.id,
            environment,
            running,
            database,
            folder,
        })
    }

    /// Where agents dial.
    pub fn endpoint(&self) -> anyhow::Result<OrchestratorEndpoint> {
        let address = self.running.address.ok_or_else(|| anyhow::anyhow!("no port"))?;
        Ok(format!("https://localhost:{}", address.port()).parse()?)
    }

    /// A target without agent.
    pub async fn target(&self, name: &str) -> anyhow::Result<Target> {
        let app = &self.running.app;
        let now = app.clock.now();
        let target = Target {
            id: TargetId::new(now),
            tenant_id: self.tenant,
            environment_id: self.environment.id,
            environment: self.environment.name.clone(),
            name: name.parse()?,
            kind: TargetKind::DockerHost,
            labels: Labels::new(),
            agent_id: None,
            fence: Fence::default(),
            revision: 1,
            created_at: now,
            updated_at: now,
            archived_at: None,
        };
        let mut tx = app.db.write().await?;
        tx.insert_target(&target).await?;
        tx.commit().await?;
        Ok(target)
    }

    /// A join token for a target.
    pub async fn token(&self, target: &Target) -> anyhow::Result<JoinToken> {
        let app = &self.running.app;
        let now = app.clock.now();
        let id = JoinTokenId::new(now);
        let secret = *Digest::of(id.to_string().as_bytes()).as_bytes();
        let token = JoinToken::new(id, secret, *app.identity.ca.digest().as_bytes());
        let mut tx = app.db.write().await?;
        tx.insert_join_token(&JoinTokenRow {
            id,
            tenant_id: self.tenant,
            target_id: target.id,
            secret_hash: *token.secret_hash().as_bytes(),
            expires_at: now + chrono::TimeDelta::minutes(10),
            created_by: "user/test".to_owned(),
            created_at: now,
            used_at: None,
            used_by: None,
        })
        .await?;
        tx.commit().await?;
        Ok(token)
    }

    /// Enrols a host for a target; gives its state directory.
    pub async fn enrol(&self, target: &Target) -> anyhow::Result<PathBuf> {
        let state = self.folder.path().join(target.id.to_string());
        let token = self.token(target).await?;
        enrol::join(&state, &self.endpoint()?, &token, facts()).await?;
        Ok(state)
    }

    /// The agent that serves a target, as it is stored.
    pub async fn agent_of(&self, target: &Target) -> anyhow::Result<AgentId> {
        let mut tx = self.running.app.db.read().await?;
        let found = tx.target(self.tenant, target.id).await?;
        found
            .and_then(|target| target.agent_id)
            .context("no agent serves the target")
    }

    /// Runs an agent over a state directory. `host` has no image yet.
    pub fn run_agent(&self, state: &Path, host: FakeHost) -> anyhow::Result<FakeAgent> {
        let stop = CancellationToken::new();
        let options = AgentOptions {
            config: Settings {
                state_dir: Some(state.to_owned()),
                ..Settings::default()
            }
            .check()?,
            host: host.clone(),
            clock: Arc::clone(&self.running.app.clock),
            dice: Arc::new(|| 0.5),
            launched: Launched::default(),
            hostname: "fake".to_owned(),
            notices: Arc::new(|_| {}),
            shutdown: stop.clone(),
        };
        let ended = self.running.app.tasks.spawn(agent::run(options));
        Ok(FakeAgent { host, stop, ended })
    }

    /// A connection as the agent of a state directory, with its evidence key.
    pub async fn dial(&self, state: &Path) -> anyhow::Result<(Channel, SigningKey)> {
        let store = IdentityStore::open(state.to_owned())?;
        let enrolled = store.load()?.ok_or_else(|| anyhow::anyhow!("not enrolled"))?;
        let credential: &Credential = &enrolled.current;
        let channel = connect_mtls(&self.endpoint()?, &enrolled.identity.ca_pem, credential).await?;
        Ok((channel, store.evidence_key()?))
    }

    /// Promotes a release of one service whose image has the digest of `content`; gives its job.
    pub async fn promote(&self, content: &str) -> anyhow::Result<JobId> {
        let app = &self.running.app;
        let image = image(content)?;
        let spec = serde_json::json!({ "image": image, "stop_grace_period_ms": 1_000 });
        let manifest = Manifest {
            services: [("web".parse()?, serde_json::from_value(spec)?)].into(),
            ..Manifest::default()
        };
        let commit = &Digest::of(format!("commit {content}").as_bytes()).to_hex()[..40];
        let draft = Draft {
            source: format!("github.com/acme/shop/api@{commit}").parse()?,
            content: manifest.content_digest()?,
            manifest: manifest.into(),
            platforms: Platforms::new(),
        };
        let mut tx = app.db.write().await?;
        let release = create_release(&mut tx, self.tenant, draft, "user/ci", app.clock.now())
            .await
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        let wish = NewPromotion {
            environment: self.environment.clone(),
            release,
            recipe: Recipe {
                limits: Limits {
                    min_healthy_ms: 100,
                    healthy_deadline_ms: 20_000,
                    ..Limits::default()
                },
                ..Recipe::default()
            },
            scope: None,
            rollback: None,
            rerun_of: None,
            change_summary: String::new(),
            plan_seen: None,
            requester: Requester {
                actor: "user/alice".into(),
                role: Role::Deployer,
            },
        };
        let requested = create_promotion(&Core::of(app), &mut tx, &wish)
            .await
            .map_err(|error| anyhow::anyhow!("{error:?}"))?;
        tx.commit().await?;
        requested
            .job
            .map(|job| job.id)
            .ok_or_else(|| anyhow::anyhow!("no job: {:?}", requested.promotion.state))
    }

    /// The phase in which a job ends.
    pub async fn end_of(&self, job: JobId) -> anyhow::Result<JobPhase> {
        let mut changes = self.running.app.db.changes();
        let ended = async {
            loop {
                let row = self.running.app.db.read().await?.job_by_id(job).await?;
                let phase = row.map(|job| job.state.phase());
                if let Some(phase) = phase.filter(|phase| phase.is_terminal()) {
                    return anyhow::Ok(phase);
                }
                // A change that was missed is a reason to look again, as every change is.
                let _ = changes.recv().await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await?
    }

    /// Waits until so many agents are connected.
    pub async fn connected(&self, agents: usize) -> anyhow::Result<()> {
        let mut looks = tokio::time::interval(Duration::from_millis(20));
        let there = async {
            while self.running.app.presence.connected() != agents {
                looks.tick().await;
            }
        };
        Ok(tokio::time::timeout(PATIENCE, there).await?)
    }
}

/// The image whose digest is that of `content`.
pub fn image(content: &str) -> anyhow::Result<PinnedImage> {
    Ok(PinnedImage {
        repository: "registry.example.com/shop/api".to_owned(),
        tag: Some("latest".to_owned()),
        digest: Digest::of(content.as_bytes()),
    })
}

/// A fake engine whose registry has these images.
pub fn engine(contents: &[&str]) -> FakeHost {
    let host = FakeHost::default();
    for content in contents {
        host.publish(Digest::of(content.as_bytes()), Behaviour::Healthy);
    }
    host
}

/// What a test agent says about itself.
pub fn facts() -> AgentFacts {
    AgentFacts {
        version: "0.1.0".to_owned(),
        capabilities: vec!["docker_host".to_owned()],
        hostname: "fake".to_owned(),
        platform: "linux/amd64".to_owned(),
        engine: "fake 1".to_owned(),
        engine_api: "1.41".to_owned(),
        ..AgentFacts::default()
    }
}
