//! The board: what all environments of a tenant run and how they are. A handful of statements whatever there is: none of them is
//! repeated per environment or per target.

use chrono::{DateTime, Utc};
use sealift_common::{
    drift::Severity,
    id::{AgentId, ComponentId, EnvironmentId, JobId, PromotionId, ReleaseId, TenantId},
    inventory::AgentIntent,
    job::{JobPhase, Pause},
    name::ProjectRef,
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Result, StoreError, Tx,
    engine::{on, statements},
    jobs::pause,
    rows::{At, all, count},
};

statements! {
    TARGETS = {
        "SELECT environment_id, COUNT(*) FROM targets WHERE tenant_id = $1 AND archived_at IS NULL ",
        "GROUP BY environment_id"
    };
    AGENTS = {
        "SELECT DISTINCT t.environment_id, a.id, a.intent, h.last_seen_at FROM targets t ",
        "JOIN agents a ON a.id = t.agent_id LEFT JOIN agent_heartbeats h ON h.agent_id = a.id ",
        "WHERE t.tenant_id = $1 AND t.archived_at IS NULL"
    };
    QUEUED = {
        "SELECT j.environment_id, COUNT(*) FROM jobs j JOIN environments e ON e.id = j.environment_id ",
        "WHERE e.tenant_id = $1 AND j.state = 'queued' GROUP BY j.environment_id"
    };
    DRIFT = {
        "SELECT d.environment_id, d.project, d.service, d.severity, COUNT(*) FROM drift d JOIN targets t ON t.id = d.target_id ",
        "WHERE d.tenant_id = $1 AND d.resolved_at IS NULL AND t.archived_at IS NULL ",
        "GROUP BY d.environment_id, d.project, d.service, d.severity"
    };
    SERVICES = {
        "SELECT a.environment_id, a.release_id, a.component_id, c.service FROM active_components a ",
        "JOIN environments e ON e.id = a.environment_id ",
        "JOIN release_components c ON c.release_id = a.release_id AND c.component_id = a.component_id ",
        "WHERE e.tenant_id = $1 AND e.archived_at IS NULL AND a.superseded_at IS NULL"
    };
    RELEASES = {
        "SELECT o.environment_id, o.release_id, r.repository, r.project, r.number, o.targets FROM (",
        "SELECT t.environment_id, c.release_id, COUNT(*) AS targets FROM target_current c ",
        "JOIN targets t ON t.id = c.target_id WHERE t.tenant_id = $1 AND t.archived_at IS NULL ",
        "GROUP BY t.environment_id, c.release_id) o JOIN releases r ON r.id = o.release_id ",
        "ORDER BY r.repository, r.project, r.number DESC, o.environment_id"
    };
    JOBS = {
        "SELECT j.environment_id, j.id, j.promotion_id, j.state, j.pause_reason, j.pause_gate, j.started_at, r.repository, r.project, r.number, ",
        "COUNT(t.id) AS tasks, COALESCE(MAX(t.wave), 0) AS last_wave, ",
        "MIN(CASE WHEN t.finished_at IS NULL THEN t.wave END) AS open_wave, ",
        "COUNT(t.finished_at) AS ended, COUNT(CASE WHEN t.state = 'failed' THEN 1 END) AS failed FROM jobs j ",
        "JOIN environments e ON e.id = j.environment_id JOIN releases r ON r.id = j.release_id ",
        "LEFT JOIN tasks t ON t.job_id = j.id ",
        "WHERE e.tenant_id = $1 AND j.state IN ('running', 'paused') ",
        "GROUP BY j.environment_id, j.id, j.promotion_id, j.state, j.pause_reason, j.pause_gate, j.started_at, ",
        "r.repository, r.project, r.number ",
        "ORDER BY j.id"
    };
}

/// An agent as the board needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoardAgent {
    /// An environment that it serves.
    pub environment: EnvironmentId,
    /// The agent.
    pub id: AgentId,
    /// What the operator wants of it.
    pub intent: AgentIntent,
    /// When it was last heard.
    pub last_seen_at: Option<DateTime<Utc>>,
}

/// Open drift of a service of a project in an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoardDrift {
    /// Environment.
    pub environment: EnvironmentId,
    /// The project, `repository/project`.
    pub project: String,
    /// The service; empty where it is none of one.
    pub service: String,
    /// How severe.
    pub severity: Severity,
    /// How much.
    pub open: u32,
}

/// A service of what is active.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoardService {
    /// Environment.
    pub environment: EnvironmentId,
    /// The active release.
    pub release: ReleaseId,
    /// Its component.
    pub component: ComponentId,
    /// The service that runs it.
    pub service: String,
}

/// A release that is recorded on targets of an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoardRelease {
    /// Environment.
    pub environment: EnvironmentId,
    /// The release.
    pub release: ReleaseId,
    /// Its project.
    pub project: ProjectRef,
    /// Its number in the project.
    pub number: u64,
    /// On how many targets.
    pub targets: u32,
}

/// A job that is under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoardJob {
    /// Environment.
    pub environment: EnvironmentId,
    /// The job.
    pub id: JobId,
    /// Its promotion.
    pub promotion: PromotionId,
    /// Project of its release.
    pub project: ProjectRef,
    /// Number of its release in the project.
    pub number: u64,
    /// Its phase.
    pub phase: JobPhase,
    /// Why it is paused, when it is.
    pub pause: Option<Pause>,
    /// When it began.
    pub started_at: Option<DateTime<Utc>>,
    /// How many tasks it has.
    pub tasks: u32,
    /// How many of them have ended.
    pub ended: u32,
    /// How many of them failed.
    pub failed: u32,
    /// The first wave that has not ended, from 0; the last one when all have.
    pub wave: u32,
    /// How many waves it has.
    pub waves: u32,
}

/// How all environments of a tenant are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BoardState {
    /// Live targets by environment.
    pub targets: Vec<(EnvironmentId, u32)>,
    /// Agents of live targets; one that serves several environments is there once for each.
    pub agents: Vec<BoardAgent>,
    /// Waiting jobs by environment.
    pub queued: Vec<(EnvironmentId, u32)>,
    /// Open drift.
    pub drift: Vec<BoardDrift>,
    /// Services of what is active.
    pub services: Vec<BoardService>,
    /// What is recorded on live targets, by project, the newest release first.
    pub releases: Vec<BoardRelease>,
    /// Jobs under way.
    pub jobs: Vec<BoardJob>,
}

#[derive(FromRow)]
struct AgentRow {
    environment_id: Uuid,
    id: Uuid,
    intent: String,
    last_seen_at: Option<DateTime<Utc>>,
}

impl TryFrom<AgentRow> for BoardAgent {
    type Error = StoreError;

    fn try_from(row: AgentRow) -> Result<Self> {
        Ok(Self {
            environment: row.environment_id.into(),
            id: row.id.into(),
            intent: At::new("agents", row.id).parse("intent", &row.intent)?,
            last_seen_at: row.last_seen_at,
        })
    }
}

#[derive(FromRow)]
struct ReleaseRow {
    environment_id: Uuid,
    release_id: Uuid,
    repository: String,
    project: String,
    number: i64,
    targets: i64,
}

impl TryFrom<ReleaseRow> for BoardRelease {
    type Error = StoreError;

    fn try_from(row: ReleaseRow) -> Result<Self> {
        Ok(Self {
            environment: row.environment_id.into(),
            release: row.release_id.into(),
            project: ProjectRef {
                repository: row.repository,
                project: row.project,
            },
            number: At::new("releases", row.release_id).number("number", row.number)?,
            targets: count(row.targets),
        })
    }
}

#[derive(FromRow)]
struct JobRow {
    environment_id: Uuid,
    id: Uuid,
    promotion_id: Uuid,
    state: String,
    pause_reason: Option<String>,
    pause_gate: Option<String>,
    started_at: Option<DateTime<Utc>>,
    repository: String,
    project: String,
    number: i64,
    tasks: i64,
    last_wave: i64,
    open_wave: Option<i64>,
    ended: i64,
    failed: i64,
}

impl TryFrom<JobRow> for BoardJob {
    type Error = StoreError;

    fn try_from(row: JobRow) -> Result<Self> {
        let at = At::new("jobs", row.id);
        Ok(Self {
            environment: row.environment_id.into(),
            id: row.id.into(),
            promotion: row.promotion_id.into(),
            project: ProjectRef {
                repository: row.repository,
                project: row.project,
            },
            number: at.number("number", row.number)?,
            phase: at.parse("state", &row.state)?,
            pause: pause(&at, row.pause_reason.as_deref(), row.pause_gate.as_deref())?,
            started_at: row.started_at,
            tasks: count(row.tasks),
            ended: count(row.ended),
            failed: count(row.failed),
            wave: count(row.open_wave.unwrap_or(row.last_wave)),
            waves: count(row.last_wave).saturating_add(1),
        })
    }
}

impl Tx {
    /// How all environments of a tenant are.
    pub async fn board(&mut self, tenant: TenantId) -> Result<BoardState> {
        let counts = |rows: Vec<(Uuid, i64)>| {
            let counted = rows.into_iter().map(|(id, found)| (id.into(), count(found)));
            counted.collect()
        };
        let targets: Vec<(Uuid, i64)> = on!(self, |conn| sqlx::query_as(TARGETS)
            .bind(tenant.uuid())
            .fetch_all(conn)
            .await)?;
        let agents: Vec<AgentRow> = on!(self, |conn| sqlx::query_as(AGENTS)
            .bind(tenant.uuid())
            .fetch_all(conn)
            .await)?;
        let queued: Vec<(Uuid, i64)> = on!(self, |conn| sqlx::query_as(QUEUED)
            .bind(tenant.uuid())
            .fetch_all(conn)
            .await)?;
        let drift: Vec<(Uuid, String, String, String, i64)> = on!(self, |conn| sqlx::query_as(DRIFT)
            .bind(tenant.uuid())
            .fetch_all(conn)
            .await)?;
        let services: Vec<(Uuid, Uuid, Uuid, String)> = on!(self, |conn| sqlx::query_as(SERVICES)
            .bind(tenant.uuid())
            .fetch_all(conn)
            .await)?;
        let releases: Vec<ReleaseRow> = on!(self, |conn| sqlx::query_as(RELEASES)
            .bind(tenant.uuid())
            .fetch_all(conn)
            .await)?;
        let jobs: Vec<JobRow> = on!(self, |conn| sqlx::query_as(JOBS)
            .bind(tenant.uuid())
            .fetch_all(conn)
            .await)?;
        let drift = drift
            .into_iter()
            .map(|(environment, project, service, severity, open)| {
                let severity = At::new("drift", environment).parse("severity", &severity)?;
                Ok(BoardDrift {
                    environment: environment.into(),
                    project,
                    service,
                    severity,
                    open: count(open),
                })
            });
        let service = |(environment, release, component, service): (Uuid, Uuid, Uuid, String)| BoardService {
            environment: environment.into(),
            release: release.into(),
            component: component.into(),
            service,
        };
        Ok(BoardState {
            services: services.into_iter().map(service).collect(),
            targets: counts(targets),
            agents: all(agents)?,
            queued: counts(queued),
            drift: drift.collect::<Result<_>>()?,
            releases: all(releases)?,
            jobs: all(jobs)?,
        })
    }
}
