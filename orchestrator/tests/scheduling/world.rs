//! A small world: one tenant, one environment, some targets with agents that do as the test says.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
    time::Duration,
};

use chrono::{DateTime, TimeDelta};
use sealift_common::{
    decision::Requester,
    digest::Digest,
    failure::{Failure, FailureCode},
    id::{AgentId, EnvironmentId, JobId, ReplicaId, SessionId, TargetId, TenantId},
    inventory::{
        Agent, AgentFacts, AgentIntent, Environment, EnvironmentClass, IntentNote, Target, TargetKind, Tenant,
    },
    job::JobPhase,
    lane::LanePolicy,
    manifest::{Manifest, PinnedImage},
    name::Labels,
    order::{Fence, inputs},
    promotion::PromotionState,
    recipe::Recipe,
    release::Release,
    remedy::Remediation,
    role::Role,
    strategy::{Limits, Share, Strategy},
    task::{TaskEvent, TaskPhase, TaskStep},
    time::{Clock, TestClock},
    variables::Variables,
};
use sealift_orchestrator::{
    app::{
        Core, attempts,
        cancel_promotion::Running,
        create_promotion::{NewPromotion, Requested, create_promotion},
        create_release::{Draft, create_release},
        turn,
    },
    loops::{
        driver::{Activity as _, Outcome},
        lease_reaper::LeaseReaper,
        scheduler::Scheduler,
    },
};
use sealift_store::{Db, Job, Promotion, StoreConfig, Task};

#[path = "../../../tests/harness/database.rs"]
mod database;
use database::Database;

use crate::{presence::core, seen::sticker_of};

/// What an agent does with an order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Act {
    /// Accepts it and works on.
    Begin,
    /// Carries it out.
    Succeed,
    /// Fails.
    Fail(FailureCode),
    /// Stops and restores.
    Stop,
}

/// Everything that a test needs. Dropping it removes the database.
pub struct World {
    pub core: Core,
    pub clock: TestClock,
    pub tenant: TenantId,
    pub environment: Environment,
    pub targets: Vec<Target>,
    pub offline: Arc<Mutex<BTreeSet<AgentId>>>,
    /// In which session agents are back that were away.
    pub back: Arc<Mutex<BTreeMap<AgentId, SessionId>>>,
    database: Database,
    directory: tempfile::TempDir,
    pub limits: Limits,
    scheduler: Mutex<Option<Scheduler>>,
}

fn start() -> DateTime<chrono::Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap()
}

async fn open(database: &Database) -> Db {
    let config = StoreConfig {
        url: database.url.clone(),
        max_connections: 4,
        acquire_deadline: Duration::from_secs(10),
    };
    Db::open(&config).await.unwrap()
}

impl World {
    /// An environment `staging` with so many targets, each with an agent.
    pub async fn new(targets: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let clock = TestClock::at(start());
        let (offline, back) = (Arc::default(), Arc::default());
        let database = Database::create(directory.path()).unwrap();
        let core = core(open(&database).await, &clock, &offline, &back);
        let now = clock.now();
        let tenant = Tenant {
            id: TenantId::new(now),
            name: "acme".parse().unwrap(),
            created_at: now,
        };
        let environment = environment(&tenant, "staging", now);
        let mut tx = core.db.write().await.unwrap();
        tx.insert_tenant(&tenant).await.unwrap();
        tx.insert_environment(&environment).await.unwrap();
        tx.commit().await.unwrap();
        let mut world = Self {
            core,
            clock,
            tenant: tenant.id,
            environment,
            targets: Vec::new(),
            offline,
            back,
            database,
            directory,
            limits: Limits::default(),
            scheduler: Mutex::default(),
        };
        for number in 1..=targets {
            let target = world.add_target(&format!("web-{number:03}")).await;
            world.targets.push(target);
        }
        world
    }

    /// A target of the environment with an agent.
    pub async fn add_target(&self, name: &str) -> Target {
        let now = self.clock.now();
        let agent = Agent {
            id: AgentId::new(now),
            tenant_id: self.tenant,
            name: name.parse().unwrap(),
            intent: AgentIntent::Active,
            intent_note: IntentNote {
                reason: String::new(),
                by: "user/test".to_owned(),
                at: now,
            },
            revision: 1,
            evidence_key: *Digest::of(name.as_bytes()).as_bytes(),
            facts: AgentFacts {
                capabilities: vec!["docker_host".into()],
                platform: "linux/amd64".into(),
                ..AgentFacts::default()
            },
            created_at: now,
            last_seen_at: Some(now),
            session: Some(SessionId::new(now)),
            revoked_at: None,
        };
        let target = Target {
            id: TargetId::new(now),
            tenant_id: self.tenant,
            environment_id: self.environment.id,
            environment: self.environment.name.clone(),
            name: name.parse().unwrap(),
            kind: TargetKind::DockerHost,
            labels: Labels::new(),
            agent_id: None,
            fence: Fence::default(),
            revision: 1,
            created_at: now,
            updated_at: now,
            archived_at: None,
        };
        let mut tx = self.core.db.write().await.unwrap();
        tx.insert_target(&target).await.unwrap();
        tx.insert_agent(&agent).await.unwrap();
        tx.bind_target(target.id, target.agent_id, agent.id, now)
            .await
            .unwrap();
        tx.commit().await.unwrap();
        Target {
            agent_id: Some(agent.id),
            ..target
        }
    }

    /// What a release is made of; `content` says which image.
    pub fn draft(content: &str) -> Draft {
        World::draft_of("api", content)
    }

    /// The same for another project.
    pub fn draft_of(project: &str, content: &str) -> Draft {
        let image = PinnedImage {
            repository: format!("registry.example.com/shop/{project}"),
            tag: Some("latest".into()),
            digest: Digest::of(content.as_bytes()),
        };
        let spec = serde_json::json!({ "image": image, "stop_grace_period_ms": 10_000 });
        let manifest = Manifest {
            services: [("web".parse().unwrap(), serde_json::from_value(spec).unwrap())].into(),
            ..Manifest::default()
        };
        let commit = &Digest::of(format!("commit {content}").as_bytes()).to_hex()[..40];
        Draft {
            source: format!("github.com/acme/shop/{project}@{commit}")
                .parse()
                .unwrap(),
            content: manifest.content_digest().unwrap(),
            manifest: manifest.into(),
            platforms: [("web".parse().unwrap(), vec!["linux/amd64".to_owned()])].into(),
        }
    }

    /// Makes another environment; what is asked for from now on is for that one.
    pub async fn enter(&mut self, name: &str) {
        let mut tx = self.core.db.write().await.unwrap();
        let tenant = tx.tenant(self.tenant).await.unwrap().unwrap();
        self.environment = environment(&tenant, name, self.clock.now());
        tx.insert_environment(&self.environment).await.unwrap();
        tx.commit().await.unwrap();
    }

    /// Gives the environment this lane policy.
    pub async fn set_lane_policy(&mut self, policy: LanePolicy) {
        let mut tx = self.core.db.write().await.unwrap();
        let found = tx.environment(self.tenant, self.environment.id).await.unwrap();
        let wanted = Environment {
            lane_policy: policy,
            ..found.unwrap()
        };
        let changed = tx.update_environment(&wanted, self.clock.now()).await.unwrap();
        assert_eq!(changed.lane_policy, policy);
        tx.commit().await.unwrap();
        self.environment = changed;
    }

    /// Makes a release.
    pub async fn release(&self, content: &str) -> Release {
        self.release_in("api", content).await
    }

    /// Makes a release of another project.
    pub async fn release_in(&self, project: &str, content: &str) -> Release {
        let mut tx = self.core.db.write().await.unwrap();
        let draft = World::draft_of(project, content);
        let release = create_release(&mut tx, self.tenant, draft, "user/ci", self.clock.now())
            .await
            .unwrap();
        tx.commit().await.unwrap();
        release
    }

    /// So many at a time.
    pub fn rolling(max_parallel: u32) -> Strategy {
        Strategy::Rolling {
            max_parallel: Share::Count(max_parallel),
            by: None,
            pause_ms: 0,
        }
    }

    /// What is asked for.
    pub fn wish(&self, release: &Release, strategy: Strategy) -> NewPromotion {
        NewPromotion {
            environment: self.environment.clone(),
            release: release.clone(),
            recipe: Recipe {
                strategy,
                limits: self.limits,
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
        }
    }

    /// Requests a promotion.
    pub async fn request(&self, wish: &NewPromotion) -> Requested {
        let mut tx = self.core.db.write().await.unwrap();
        let requested = create_promotion(&self.core, &mut tx, wish).await.unwrap();
        tx.commit().await.unwrap();
        self.clock.advance(TimeDelta::milliseconds(1));
        requested
    }

    /// Requests a promotion of the release to all targets at once; answers its job.
    pub async fn promote(&self, release: &Release) -> JobId {
        self.request(&self.wish(release, Strategy::AllAtOnce {}))
            .await
            .job
            .unwrap()
            .id
    }

    /// One activation of the scheduler.
    pub async fn step(&self) -> Outcome {
        let mut scheduler = self
            .scheduler
            .lock()
            .unwrap()
            .take()
            .unwrap_or_else(|| Scheduler::new(self.core.clone(), ReplicaId::new(self.clock.now())));
        let outcome = scheduler.activate().await.unwrap();
        *self.scheduler.lock().unwrap() = Some(scheduler);
        outcome
    }

    /// Lets the scheduler work until it has nothing to do.
    pub async fn settle(&self) {
        for _ in 0..1_000 {
            if self.step().await == Outcome::Idle {
                return;
            }
        }
        panic!("the scheduler does not come to rest");
    }

    /// Lets the lease reaper work until it has nothing to do.
    pub async fn reap(&self) {
        // Each is another process: the lease of the one before must have run out.
        self.clock.advance(TimeDelta::seconds(20));
        let mut reaper = LeaseReaper::new(self.core.clone(), ReplicaId::new(self.clock.now()));
        while reaper.activate().await.unwrap() == Outcome::More {}
    }

    /// Whether other processes could hold a lease on the database.
    pub const fn is_shared(&self) -> bool {
        self.database.is_shared()
    }

    /// A new process over the same database, as after `kill -9`.
    pub async fn restart(self) -> Self {
        let Self {
            core: old,
            clock,
            tenant,
            environment,
            targets,
            offline,
            back,
            database,
            directory,
            limits,
            scheduler,
        } = self;
        drop(scheduler);
        old.db.clone().close().await;
        drop(old);
        if database.is_shared() {
            // To the new process it looks as if another replica held the turn: its lease has to run out.
            clock.advance(TimeDelta::seconds(20));
        }
        let core = core(open(&database).await, &clock, &offline, &back);
        turn::take_over(&core.db, clock.now()).await.unwrap();
        Self {
            core,
            clock,
            tenant,
            environment,
            targets,
            offline,
            back,
            database,
            directory,
            limits,
            scheduler: Mutex::default(),
        }
    }

    pub async fn job(&self, id: JobId) -> Job {
        self.core
            .db
            .read()
            .await
            .unwrap()
            .job_by_id(id)
            .await
            .unwrap()
            .unwrap()
    }

    pub async fn phase(&self, id: JobId) -> JobPhase {
        self.job(id).await.state.phase()
    }

    pub async fn tasks(&self, id: JobId) -> Vec<Task> {
        self.core.db.read().await.unwrap().tasks_of_job(id).await.unwrap()
    }

    pub async fn phases(&self, id: JobId) -> Vec<TaskPhase> {
        self.tasks(id)
            .await
            .iter()
            .map(|task| task.state.phase())
            .collect()
    }

    pub async fn promotion(&self, id: JobId) -> Promotion {
        let mut tx = self.core.db.read().await.unwrap();
        let job = tx.job_by_id(id).await.unwrap().unwrap();
        tx.promotion(job.tenant_id, job.promotion_id)
            .await
            .unwrap()
            .unwrap()
    }

    pub async fn release_of(&self, id: JobId) -> Release {
        let job = self.job(id).await;
        let mut tx = self.core.db.read().await.unwrap();
        tx.release(self.tenant, job.release_id).await.unwrap().unwrap()
    }

    pub async fn state(&self, id: JobId) -> PromotionState {
        self.promotion(id).await.state
    }

    /// What the environment runs: component to digest.
    pub async fn active(&self) -> BTreeMap<String, Digest> {
        let rows = self
            .core
            .db
            .read()
            .await
            .unwrap()
            .active(self.environment.id)
            .await
            .unwrap();
        rows.into_iter()
            .map(|row| (row.component.name.to_string(), row.digest))
            .collect()
    }

    /// Every live task that an agent has heard of, in the order of targets.
    pub async fn live(&self) -> Vec<Task> {
        let mut tx = self.core.db.read().await.unwrap();
        let mut live = Vec::new();
        for target in &self.targets {
            live.extend(tx.live_tasks_of_agent(target.agent_id.unwrap()).await.unwrap());
        }
        live
    }

    /// All agents with work do the same; answers how many there were.
    pub async fn act(&self, act: Act) -> usize {
        let live = self.live().await;
        for task in &live {
            self.act_on(task, act).await;
        }
        live.len()
    }

    /// One agent reports, and after a success looks at its host as it does next.
    pub async fn act_on(&self, task: &Task, act: Act) {
        self.report(task, act).await;
        if act == Act::Succeed {
            self.look(task).await;
        }
    }

    /// One agent reports, and says nothing of its host.
    pub async fn report(&self, task: &Task, act: Act) {
        let now = self.clock.now();
        let actor = format!("agent/{}", task.agent_id.unwrap());
        let mut tx = self.core.db.write().await.unwrap();
        let mut task = tx.task(task.id).await.unwrap().unwrap();
        let mut events = vec![
            TaskEvent::Accepted,
            TaskEvent::Progressed {
                step: TaskStep::Pulling,
            },
        ];
        match act {
            Act::Begin => {}
            Act::Succeed => events.push(TaskEvent::Succeeded),
            Act::Stop => events.push(TaskEvent::Stopped),
            Act::Fail(code) => {
                let failure = Failure::new(code, "played by a test");
                events.push(attempts::after_failure(&task, &failure, &self.limits));
            }
        }
        for event in &events {
            task = tx.apply_task_event(&task, event, &actor, now).await.unwrap();
        }
        if act == Act::Succeed {
            let job = tx.job_by_id(task.job_id).await.unwrap().unwrap();
            let release = tx.release(self.tenant, job.release_id).await.unwrap().unwrap();
            let project = &release.source.project;
            tx.set_current(
                task.target_id,
                project,
                job.id,
                task.id,
                release.id,
                task.fence,
                inputs(release.content, &Variables::default()).unwrap(),
                sticker_of(&task),
                now,
            )
            .await
            .unwrap();
        }
        tx.commit().await.unwrap();
    }

    /// Lets scheduler and willing agents work until the job has ended.
    pub async fn finish(&self, id: JobId) -> JobPhase {
        for _ in 0..1_000 {
            self.settle().await;
            if self.phase(id).await.is_terminal() {
                return self.phase(id).await;
            }
            if self.act(Act::Succeed).await == 0 {
                self.clock.advance(TimeDelta::seconds(1));
            }
        }
        panic!("the job does not end");
    }

    /// Cancels as alice.
    pub async fn cancel(&self, id: JobId) -> Result<Promotion, sealift_orchestrator::status::ApiError> {
        self.cancel_and(id, Running::Restore).await
    }

    /// The same, with a word about what runs.
    pub async fn cancel_and(
        &self,
        id: JobId,
        running: Running,
    ) -> Result<Promotion, sealift_orchestrator::status::ApiError> {
        let promotion = self.promotion(id).await;
        let mut tx = self.core.db.write().await.unwrap();
        let now = self.clock.now();
        let cancelled = sealift_orchestrator::app::cancel_promotion::cancel_promotion(
            &self.core,
            &mut tx,
            promotion,
            running,
            "",
            "user/alice",
            now,
        )
        .await?;
        tx.commit().await.unwrap();
        Ok(cancelled)
    }
}

pub fn environment(tenant: &Tenant, name: &str, now: DateTime<chrono::Utc>) -> Environment {
    Environment {
        id: EnvironmentId::new(now),
        tenant_id: tenant.id,
        name: name.parse().unwrap(),
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
    }
}
