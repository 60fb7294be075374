//! A host whose agent is played by the test: what it does and sees is written to the store as the gateway would.

use std::time::Duration;

use sealift_common::{
    any_manifest::Described,
    digest::Digest,
    drift::Finding,
    id::{AgentId, SessionId, TargetId, TaskId, TenantId},
    inventory::{AgentFacts, EnvironmentClass},
    manifest::{Manifest, PinnedImage},
    name::Name,
    observation::{
        ContainerHealth, ContainerObservation, ContainerState, EngineEvent, ProjectObservation,
        StickerObservation, TargetObservation,
    },
    order::inputs,
    release::Release,
    task::{TaskEvent, TaskStep},
    variables::Variables,
};
use sealift_orchestrator::{
    app::create_release::{Draft, Platforms, create_release},
    gateway::observations,
};
use sealift_proto::v1::{
    self, CreateEnvironmentRequest, CreatePromotionRequest, CreateTargetRequest, GetPromotionRequest,
    environment::Class, environment_service_client::EnvironmentServiceClient,
    promotion_service_client::PromotionServiceClient, target::Kind,
    target_service_client::TargetServiceClient,
};
use sealift_store::{Heartbeat, StoreError, Task, Tx};
use tonic::transport::Channel;

use crate::support::World;

/// Where every release comes from.
pub const PROJECT: &str = "github.com/acme/shop/api";
const PATIENCE: Duration = Duration::from_secs(30);

/// One target with its agent.
pub struct Host<'w> {
    world: &'w World,
    channel: Channel,
    pub tenant: TenantId,
    pub target: TargetId,
    pub agent: AgentId,
    pub name: String,
}

impl<'w> Host<'w> {
    /// A target of an environment of the tenant, both made unless they are there; `channel` is an admin's.
    pub async fn new(
        world: &'w World,
        tenant: &str,
        channel: &Channel,
        environment: &str,
        target: &str,
        class: EnvironmentClass,
    ) -> Self {
        let class = match class {
            EnvironmentClass::Production => Class::Production,
            EnvironmentClass::NonProduction => Class::NonProduction,
        };
        // Of several hosts of an environment the first makes it.
        let _ = EnvironmentServiceClient::new(channel.clone())
            .create_environment(CreateEnvironmentRequest {
                request_id: String::new(),
                environment_id: environment.to_owned(),
                environment: Some(v1::Environment {
                    position: 1,
                    class: class.into(),
                    ..v1::Environment::default()
                }),
            })
            .await;
        let made = TargetServiceClient::new(channel.clone())
            .create_target(CreateTargetRequest {
                request_id: String::new(),
                parent: format!("environments/{environment}"),
                target_id: target.to_owned(),
                target: Some(v1::Target {
                    kind: Kind::DockerHost.into(),
                    ..v1::Target::default()
                }),
            })
            .await
            .unwrap()
            .into_inner()
            .target
            .unwrap();
        let (agent, _) = world.agent(tenant).await;
        let facts = AgentFacts {
            capabilities: vec!["docker_host".to_owned()],
            platform: "linux/amd64".to_owned(),
            ..AgentFacts::default()
        };
        let app = &world.running.app;
        let now = app.clock.now();
        let target: TargetId = made.uid.parse().unwrap();
        let mut tx = app.db.write().await.unwrap();
        let owner: Name = tenant.parse().unwrap();
        let tenant = tx.tenant_by_name(&owner).await.unwrap().unwrap().id;
        tx.update_agent_facts(agent, &facts, now).await.unwrap();
        tx.bind_target(target, None, agent, now).await.unwrap();
        let beat = Heartbeat {
            agent_id: agent,
            at: now,
            session: SessionId::new(now),
        };
        tx.record_heartbeats(&[beat]).await.unwrap();
        tx.commit().await.unwrap();
        Self {
            world,
            channel: channel.clone(),
            tenant,
            target,
            agent,
            name: made.name,
        }
    }

    fn environment(&self) -> &str {
        self.name.split_once("/targets/").unwrap().0
    }

    pub async fn write(&self) -> Tx {
        self.world.running.app.db.write().await.unwrap()
    }

    /// A release of one service whose image has the digest of `content`.
    pub async fn release(&self, content: &str) -> Release {
        self.release_of(content, 1).await
    }

    /// A release of so many services whose images have the digest of `content`.
    pub async fn release_of(&self, content: &str, services: usize) -> Release {
        self.release_in(PROJECT, content, services).await
    }

    /// The same of another project.
    pub async fn release_in(&self, project: &str, content: &str, services: usize) -> Release {
        let image = PinnedImage {
            repository: "registry.example.com/shop/api".to_owned(),
            tag: None,
            digest: Digest::of(content.as_bytes()),
        };
        let spec = serde_json::json!({ "image": image, "stop_grace_period_ms": 1_000 });
        let manifest = Manifest {
            services: (0..services)
                .map(|number| {
                    let name = if number == 0 {
                        "web".to_owned()
                    } else {
                        format!("web-{number}")
                    };
                    (
                        name.parse().unwrap(),
                        serde_json::from_value(spec.clone()).unwrap(),
                    )
                })
                .collect(),
            ..Manifest::default()
        };
        let commit = &Digest::of(content.as_bytes()).to_hex()[..40];
        let draft = Draft {
            source: format!("{project}@{commit}").parse().unwrap(),
            content: manifest.content_digest().unwrap(),
            manifest: manifest.into(),
            platforms: Platforms::new(),
        };
        let mut tx = self.write().await;
        let now = self.world.running.app.clock.now();
        let release = create_release(&mut tx, self.tenant, draft, "user/ci", now)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        release
    }

    /// Promotes a release to the environment; the promotion's name.
    pub async fn promote(&self, release: &Release) -> String {
        let request = CreatePromotionRequest {
            release: format!("releases/{}", release.id),
            environment: self.environment().to_owned(),
            ..CreatePromotionRequest::default()
        };
        let made = PromotionServiceClient::new(self.channel.clone())
            .create_promotion(request)
            .await
            .unwrap()
            .into_inner()
            .promotion
            .unwrap();
        assert!(!made.job.is_empty(), "{made:?}");
        made.name
    }

    /// Waits for the agent's next order, which begins.
    pub async fn take(&self) -> Task {
        let app = &self.world.running.app;
        let mut changes = app.db.changes();
        let taken = async {
            loop {
                let live = app.db.read().await.unwrap().live_tasks_of_agent(self.agent).await;
                if let Some(task) = live.unwrap().into_iter().next() {
                    return task;
                }
                let _ = changes.recv().await;
            }
        };
        let task = tokio::time::timeout(PATIENCE, taken).await.unwrap();
        let begun = TaskEvent::Progressed {
            step: TaskStep::Pulling,
        };
        self.report(&task, &[TaskEvent::Accepted, begun]).await
    }

    /// Reports what became of a task; again when somebody else was faster, as an agent does.
    pub async fn report(&self, task: &Task, events: &[TaskEvent]) -> Task {
        loop {
            match self.told(task.id, events).await {
                Err(StoreError::Conflict) => {}
                told => return told.unwrap(),
            }
        }
    }

    async fn told(&self, task: TaskId, events: &[TaskEvent]) -> Result<Task, StoreError> {
        let now = self.world.running.app.clock.now();
        let actor = format!("agent/{}", self.agent);
        let mut tx = self.write().await;
        let mut task = tx.task(task).await?.unwrap();
        for event in events {
            task = tx.apply_task_event(&task, event, &actor, now).await?;
        }
        tx.commit().await?;
        Ok(task)
    }

    /// Carries the order out and reports it.
    pub async fn carry_out(&self, task: &Task, release: &Release) {
        let now = self.world.running.app.clock.now();
        let mut tx = self.write().await;
        let project = &release.source.project;
        let (job, sticker) = (task.job_id, sticker_of(task));
        tx.set_current(
            self.target,
            project,
            job,
            task.id,
            release.id,
            task.fence,
            inputs(release.content, &Variables::default()).unwrap(),
            sticker,
            now,
        )
        .await
        .unwrap();
        tx.commit().await.unwrap();
        self.report(task, &[TaskEvent::Succeeded]).await;
        self.sees(task, release, |_| {}, &[]).await;
    }

    /// Brings a release to the host, with everything that this takes; the promotion's name and the task.
    pub async fn deploy(&self, release: &Release) -> (String, Task) {
        let promotion = self.promote(release).await;
        let task = self.take().await;
        self.carry_out(&task, release).await;
        self.ended(&promotion).await;
        (promotion, task)
    }

    /// Waits until a promotion has ended; its state.
    pub async fn ended(&self, promotion: &str) -> v1::promotion::State {
        let mut changes = self.world.running.app.db.changes();
        let mut client = PromotionServiceClient::new(self.channel.clone());
        let ended = async {
            loop {
                let request = GetPromotionRequest {
                    name: promotion.to_owned(),
                };
                let answer = client.get_promotion(request).await.unwrap().into_inner();
                let found = answer.promotion.unwrap();
                if found.finish_time.is_some() {
                    return found.state();
                }
                let _ = changes.recv().await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.unwrap()
    }

    /// The agent looks at the host, on which a task's release runs except for `change`.
    pub async fn sees(
        &self,
        task: &Task,
        release: &Release,
        change: impl FnOnce(&mut ProjectObservation),
        events: &[EngineEvent],
    ) {
        let now = self.world.running.app.clock.now();
        let containers = release.manifest.images().into_iter();
        let containers = containers.map(|(service, image)| ContainerObservation {
            id: format!("container-of-{}", task.fence),
            service: service.clone(),
            fence: task.fence,
            image_id: "image".to_owned(),
            digest: Some(image.digest),
            config: release.manifest.config_of(service).unwrap(),
            unchanged: true,
            state: ContainerState::Running,
            health: ContainerHealth::Healthy,
        });
        let mut project = ProjectObservation {
            sticker: StickerObservation::Present {
                digest: sticker_of(task),
                release: release.content,
                fence: task.fence,
            },
            containers: containers.collect(),
        };
        change(&mut project);
        let seen = TargetObservation {
            target_id: self.target,
            observed_at: now,
            busy: false,
            projects: [(release.source.project.to_string(), project)].into(),
            events: events.to_vec(),
        };
        let mut tx = self.write().await;
        observations::apply(&mut tx, &seen, SessionId::new(now), now)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }

    /// Drift that nobody has to see first.
    pub async fn drifts(&self, findings: Vec<Finding>) {
        let now = self.world.running.app.clock.now();
        let mut tx = self.write().await;
        observations::set_drift(&mut tx, self.target, PROJECT, findings, None, &[], now)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }
}

/// The digest of the sticker that a task writes.
pub fn sticker_of(task: &Task) -> Digest {
    Digest::of(task.id.to_string().as_bytes())
}
