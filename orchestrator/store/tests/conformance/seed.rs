//! A small world to write into: one tenant with an environment, an agent and targets, and what is deployed to them.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sealift_common::{
    digest::Digest,
    failure::{Failure, FailureCode},
    id::{
        AgentId, ComponentId, EnvironmentId, HoldId, JobId, PromotionId, ReleaseId, TargetId, TaskId,
        TenantId, UserId,
    },
    inventory::{
        Agent, AgentFacts, AgentIntent, Component, Environment, EnvironmentClass, IntentNote, Target,
        TargetKind, Tenant, User,
    },
    job::JobState,
    lane::LanePolicy,
    manifest::Manifest,
    name::{Labels, Name, ProjectRef, SourceRef},
    order::Fence,
    promotion::PromotionState,
    recipe::Recipe,
    release::{Release, ReleaseComponent, ReleaseState},
    remedy::Remediation,
    role::Role,
    task::{TaskState, Wanted},
    variables::Variables,
};
use sealift_store::{Assignment, Db, Hold, Job, Promotion, Result, Task, Tx};

use crate::harness::at;

pub fn name(text: &str) -> Name {
    text.parse().unwrap()
}

pub fn digest(text: &str) -> Digest {
    Digest::of(text.as_bytes())
}

pub fn failure() -> Failure {
    Failure::new(FailureCode::Unhealthy, "api is not healthy").with_detail("exit 1 \u{0} \"quoted\"")
}

pub fn tenant(text: &str) -> Tenant {
    Tenant {
        id: TenantId::new(at(0)),
        name: name(text),
        created_at: at(0),
    }
}

pub fn user(tenant: &Tenant, text: &str, role: Role) -> User {
    User {
        id: UserId::new(at(0)),
        tenant_id: tenant.id,
        name: name(text),
        role,
        created_at: at(0),
        revoked_at: None,
    }
}

pub fn environment(tenant: &Tenant, text: &str, position: u32) -> Environment {
    Environment {
        id: EnvironmentId::new(at(0)),
        tenant_id: tenant.id,
        name: name(text),
        display_name: format!("The {text}"),
        position,
        class: EnvironmentClass::NonProduction,
        variables: Variables::default(),
        remediation: Remediation::default(),
        lane_policy: LanePolicy::default(),
        revision: 1,
        created_at: at(0),
        updated_at: at(0),
        archived_at: None,
    }
}

pub fn target(environment: &Environment, text: &str) -> Target {
    Target {
        id: TargetId::new(at(0)),
        tenant_id: environment.tenant_id,
        environment_id: environment.id,
        environment: environment.name.clone(),
        name: name(text),
        kind: TargetKind::DockerHost,
        labels: Labels::from([("region".to_owned(), "eu \"1\" ä".to_owned())]),
        agent_id: None,
        fence: Fence(0),
        revision: 1,
        created_at: at(0),
        updated_at: at(0),
        archived_at: None,
    }
}

/// Why somebody wants an agent to be otherwise.
pub fn note(reason: &str, seconds: i64) -> IntentNote {
    IntentNote {
        reason: reason.to_owned(),
        by: "user/ada".to_owned(),
        at: at(seconds),
    }
}

pub fn agent(tenant: &Tenant, text: &str) -> Agent {
    Agent {
        id: AgentId::new(at(0)),
        tenant_id: tenant.id,
        name: name(text),
        intent: AgentIntent::Active,
        intent_note: IntentNote {
            reason: String::new(),
            by: "user/test".to_owned(),
            at: at(0),
        },
        revision: 1,
        evidence_key: [7; 32],
        facts: AgentFacts {
            version: "0.1.0".to_owned(),
            hostname: "host \u{0} with a zero".to_owned(),
            capabilities: vec!["docker_host".to_owned()],
            ..AgentFacts::default()
        },
        created_at: at(0),
        last_seen_at: None,
        session: None,
        revoked_at: None,
    }
}

pub fn component(tenant: &Tenant, text: &str) -> Component {
    Component {
        id: ComponentId::new(at(0)),
        tenant_id: tenant.id,
        name: text.parse().unwrap(),
        repository: format!("registry.test/{text}"),
        created_at: at(0),
    }
}

pub fn project(text: &str) -> ProjectRef {
    text.parse().unwrap()
}

pub fn commit(number: u64) -> String {
    format!("{number:040x}")
}

/// A manifest of one service whose environment holds a zero character, which JSONB would refuse.
pub fn manifest(version: &str) -> Manifest {
    let image = format!(
        r#"{{"repository":"registry.test/shop/api","digest":"{}"}}"#,
        digest(version)
    );
    let service =
        format!(r#"{{"image":{image},"environment":{{"A":"\u0000"}},"stop_grace_period_ms":10000}}"#);
    serde_json::from_str(&format!(r#"{{"services":{{"api":{service}}}}}"#)).unwrap()
}

/// What most cases begin with.
pub struct Seed {
    pub tenant: Tenant,
    pub environment: Environment,
    pub agent: Agent,
    pub targets: Vec<Target>,
    pub component: Component,
}

impl Seed {
    /// A tenant `tenant_name` with the environment `staging` and `targets` targets, all served by one agent.
    pub async fn sow(db: &Db, tenant_name: &str, targets: usize) -> Self {
        let tenant = tenant(tenant_name);
        let environment = environment(&tenant, "staging", 1);
        let agent = agent(&tenant, "web-0");
        let component = component(&tenant, "shop/api");
        let mut tx = db.write().await.unwrap();
        tx.insert_tenant(&tenant).await.unwrap();
        tx.insert_environment(&environment).await.unwrap();
        tx.insert_agent(&agent).await.unwrap();
        tx.insert_component(&component).await.unwrap();
        let mut all = Vec::new();
        for number in 0..targets {
            let mut target = target(&environment, &format!("web-{number}"));
            target.agent_id = Some(agent.id);
            tx.insert_target(&target).await.unwrap();
            all.push(target);
        }
        tx.commit().await.unwrap();
        Self {
            tenant,
            environment,
            agent,
            targets: all,
            component,
        }
    }

    /// Writes the next release of a project.
    pub async fn release(&self, tx: &mut Tx, project_text: &str, now: DateTime<Utc>) -> Result<Release> {
        let project = project(project_text);
        let project_id = tx.ensure_project(self.tenant.id, &project, now).await?;
        let number = tx.next_release_number(project_id).await?;
        let manifest = manifest(&number.to_string());
        let component = ReleaseComponent {
            component_id: self.component.id,
            component: self.component.name.clone(),
            digest: digest(&number.to_string()),
            platforms: vec!["linux/amd64".to_owned(), "linux/arm/v7".to_owned()],
        };
        let release = Release {
            id: ReleaseId::new(now),
            tenant_id: self.tenant.id,
            project_id,
            source: SourceRef {
                project,
                commit: commit(number),
            },
            number,
            state: ReleaseState::Ready,
            content: manifest.content_digest().unwrap(),
            manifest: manifest.into(),
            components: BTreeMap::from([
                ("api".parse().unwrap(), component.clone()),
                // As one whose registry said nothing.
                (
                    "worker".parse().unwrap(),
                    ReleaseComponent {
                        platforms: Vec::new(),
                        ..component
                    },
                ),
            ]),
            created_by: "user/alice".to_owned(),
            created_at: now,
        };
        tx.insert_release(&release).await?;
        Ok(release)
    }

    pub fn new_promotion(&self, release: &Release, now: DateTime<Utc>) -> Promotion {
        Promotion {
            id: PromotionId::new(now),
            tenant_id: self.tenant.id,
            environment_id: self.environment.id,
            environment: self.environment.name.clone(),
            release_id: release.id,
            state: PromotionState::PendingGate,
            plan_json: r#"{"waves":[["web-0"]]}"#.to_owned(),
            plan_digest: digest("plan"),
            recipe: Recipe::default(),
            scope: Some(vec![TargetId::new(now)]),
            rollback_of: None,
            rerun_of: None,
            superseded_by: None,
            change_summary: "shop/api#1".to_owned(),
            requested_by: "user/alice".to_owned(),
            requester_role: Role::Deployer,
            failure: None,
            version: 0,
            created_at: now,
            finished_at: None,
        }
    }

    pub async fn promotion(&self, tx: &mut Tx, release: &Release, now: DateTime<Utc>) -> Promotion {
        let promotion = self.new_promotion(release, now);
        tx.insert_promotion(&promotion).await.unwrap();
        promotion
    }

    /// Queues a job for a promotion.
    pub async fn job(&self, tx: &mut Tx, promotion: &Promotion, now: DateTime<Utc>) -> Result<Job> {
        let job = self.new_job(tx, promotion, now).await?;
        tx.insert_job(&job).await?;
        Ok(job)
    }

    async fn new_job(&self, tx: &mut Tx, promotion: &Promotion, now: DateTime<Utc>) -> Result<Job> {
        let ticket = tx.next_ticket(self.environment.id).await?;
        Ok(Job {
            id: JobId::new(now),
            tenant_id: self.tenant.id,
            promotion_id: promotion.id,
            environment_id: self.environment.id,
            environment: self.environment.name.clone(),
            release_id: promotion.release_id,
            state: JobState::Queued,
            rollback_of: None,
            stop: None,
            ticket,
            accepted_failures: 0,
            resumed_at: None,
            version: 0,
            created_at: now,
            started_at: None,
            finished_at: None,
        })
    }

    /// Queues the rollback of a job for a promotion.
    pub async fn rollback_job(
        &self,
        tx: &mut Tx,
        promotion: &Promotion,
        undoes: JobId,
        now: DateTime<Utc>,
    ) -> Result<Job> {
        let job = Job {
            rollback_of: Some(undoes),
            ..self.new_job(tx, promotion, now).await?
        };
        tx.insert_job(&job).await?;
        Ok(job)
    }

    /// A hold on the project of a release.
    pub fn hold(&self, release: &Release, now: DateTime<Utc>) -> Hold {
        Hold {
            id: HoldId::new(now),
            tenant_id: self.tenant.id,
            environment_id: self.environment.id,
            environment: self.environment.name.clone(),
            project_id: release.project_id,
            project: release.source.project.clone(),
            reason: "wait".to_owned(),
            placed_by: "user/ada".to_owned(),
            placed_at: now,
            lifted: None,
        }
    }

    pub fn new_task(&self, job: &Job, target: &Target, wave: u32, now: DateTime<Utc>) -> Task {
        Task {
            id: TaskId::new(now),
            job_id: job.id,
            tenant_id: self.tenant.id,
            target_id: target.id,
            target: target.name.clone(),
            environment: self.environment.name.clone(),
            agent_id: None,
            wave,
            state: TaskState::Pending,
            wanted: Wanted::Run,
            attempt: 0,
            fence: Fence(0),
            order: None,
            lease_until: None,
            retry_at: None,
            version: 0,
            created_at: now,
            started_at: None,
            finished_at: None,
        }
    }

    /// A release, a promotion, a job and one pending task per target, committed.
    pub async fn deployment(&self, db: &Db, now: DateTime<Utc>) -> Deployment {
        let mut tx = db.write().await.unwrap();
        let release = self
            .release(&mut tx, "github.com/acme/shop/api", now)
            .await
            .unwrap();
        let promotion = self.promotion(&mut tx, &release, now).await;
        let job = self.job(&mut tx, &promotion, now).await.unwrap();
        let tasks: Vec<Task> = self
            .targets
            .iter()
            .map(|target| self.new_task(&job, target, 0, now))
            .collect();
        tx.insert_tasks(&tasks).await.unwrap();
        tx.commit().await.unwrap();
        Deployment {
            release,
            promotion,
            job,
            tasks,
        }
    }

    /// Gives a task to the agent, with the target's next fence and a lease of 30 seconds.
    pub async fn assign(&self, tx: &mut Tx, task: &Task, now: DateTime<Utc>) -> Result<Task> {
        let fence = tx.next_fences([task.target_id]).await?[&task.target_id];
        let until = now + chrono::TimeDelta::seconds(30);
        let order = format!("order of {} for {fence}", task.id).into_bytes();
        let attempt = task.attempt + 1;
        let assigned = tx
            .assign_tasks(
                vec![Assignment {
                    task,
                    agent: self.agent.id,
                    attempt,
                    fence,
                    order,
                    lease_until: until,
                    due_at: now + chrono::TimeDelta::hours(1),
                }],
                "orchestrator",
                now,
            )
            .await?;
        Ok(assigned.into_iter().next().unwrap())
    }
}

/// One deployment.
pub struct Deployment {
    pub release: Release,
    pub promotion: Promotion,
    pub job: Job,
    pub tasks: Vec<Task>,
}
