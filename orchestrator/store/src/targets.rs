//! Targets: their agents, labels and fencing tokens.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sealift_common::{
    bounds,
    id::{AgentId, EnvironmentId, TargetId, TenantId},
    inventory::Target,
    name::{Labels, Name},
    order::Fence,
};
use sqlx::{FromRow, types::Json};
use uuid::Uuid;

use crate::{
    Change, Cursor, Page, PageRequest, Result, StoreError, Tx,
    engine::{of_ids, on, statements},
    rows::{At, all, int, one},
};

macro_rules! columns {
    () => {
        "id, tenant_id, environment_id, environment, name, kind, labels, agent_id, fence, revision, created_at, \
         updated_at, archived_at"
    };
}

statements! {
    INSERT = {
        "INSERT INTO targets (", columns!(), ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)"
    };
    BY_ID = { "SELECT ", columns!(), " FROM targets WHERE tenant_id = $1 AND id = $2" };
    BY_NAME = {
        "SELECT ", columns!(), " FROM targets WHERE tenant_id = $1 AND environment_id = $2 AND name = $3 ",
        "AND archived_at IS NULL"
    };
    LIST = {
        "SELECT ", columns!(), " FROM targets WHERE tenant_id = $1 AND archived_at IS NULL ",
        "AND (environment, name, id) > ($2, $3, $4) ORDER BY environment, name, id LIMIT $5"
    };
    LIST_OF_ENVIRONMENT = {
        "SELECT ", columns!(), " FROM targets WHERE tenant_id = $1 AND environment_id = $2 AND archived_at IS NULL ",
        "AND name > $3 ORDER BY name LIMIT $4"
    };
    ALL_OF_ENVIRONMENT = {
        "SELECT ", columns!(), " FROM targets WHERE environment_id = $1 AND archived_at IS NULL ORDER BY name LIMIT $2"
    };
    OF_AGENT = {
        "SELECT ", columns!(), " FROM targets WHERE agent_id = $1 AND archived_at IS NULL ORDER BY name, id LIMIT $2"
    };
    UPDATE = {
        "UPDATE targets SET kind = $4, labels = $5, updated_at = $6, revision = revision + 1 ",
        "WHERE tenant_id = $1 AND id = $2 AND revision = $3 AND archived_at IS NULL RETURNING ", columns!()
    };
    ARCHIVE = {
        "UPDATE targets SET archived_at = $4, updated_at = $4, agent_id = NULL, revision = revision + 1 ",
        "WHERE tenant_id = $1 AND id = $2 AND revision = $3 AND archived_at IS NULL RETURNING ", columns!()
    };
    BIND = {
        "UPDATE targets SET agent_id = $2, updated_at = $3, revision = revision + 1 ",
        "WHERE id = $1 AND archived_at IS NULL AND agent_id IS NOT DISTINCT FROM $4"
    };
    UNBIND = {
        "UPDATE targets SET agent_id = NULL, updated_at = $2, revision = revision + 1 WHERE agent_id = $1 RETURNING id"
    };
}

const BY_IDS: &str = concat!("SELECT ", columns!(), " FROM targets WHERE id IN (");
const OF_AGENTS: &str = concat!(
    "SELECT ",
    columns!(),
    " FROM targets WHERE archived_at IS NULL AND agent_id IN ("
);
const NEXT_FENCES: &str = "UPDATE targets SET fence = fence + 1 WHERE id IN (";
/// Rows per bulk statement.
const BULK: usize = 500;

#[derive(FromRow)]
struct TargetRow {
    id: Uuid,
    tenant_id: Uuid,
    environment_id: Uuid,
    environment: String,
    name: String,
    kind: String,
    labels: Json<Labels>,
    agent_id: Option<Uuid>,
    fence: i64,
    revision: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    archived_at: Option<DateTime<Utc>>,
}

impl TryFrom<TargetRow> for Target {
    type Error = StoreError;

    fn try_from(row: TargetRow) -> Result<Self> {
        let at = At::new("targets", row.id);
        Ok(Self {
            id: row.id.into(),
            tenant_id: row.tenant_id.into(),
            environment_id: row.environment_id.into(),
            environment: at.parse("environment", &row.environment)?,
            name: at.parse("name", &row.name)?,
            kind: at.parse("kind", &row.kind)?,
            labels: row.labels.0,
            agent_id: row.agent_id.map(AgentId::from),
            fence: Fence(at.number("fence", row.fence)?),
            revision: at.number("revision", row.revision)?,
            created_at: row.created_at,
            updated_at: row.updated_at,
            archived_at: row.archived_at,
        })
    }
}

/// Most targets that one look at an environment or an agent gives: one more than a job may have, so that callers notice.
const MOST: i64 = bounds::TARGETS_PER_JOB as i64 + 1;

impl Tx {
    /// Makes a target.
    pub async fn insert_target(&mut self, target: &Target) -> Result<()> {
        let (fence, revision) = (int(target.fence.0)?, int(target.revision)?);
        on!(self, |conn| sqlx::query(INSERT)
            .bind(target.id.uuid())
            .bind(target.tenant_id.uuid())
            .bind(target.environment_id.uuid())
            .bind(target.environment.as_str())
            .bind(target.name.as_str())
            .bind(target.kind.as_str())
            .bind(Json(&target.labels))
            .bind(target.agent_id.map(AgentId::uuid))
            .bind(fence)
            .bind(revision)
            .bind(target.created_at)
            .bind(target.updated_at)
            .bind(target.archived_at)
            .execute(conn)
            .await
            .map(drop))?;
        self.note(Change::Target(target.id));
        Ok(())
    }

    /// A target, archived or not.
    pub async fn target(&mut self, tenant: TenantId, id: TargetId) -> Result<Option<Target>> {
        let row: Option<TargetRow> = on!(self, |conn| sqlx::query_as(BY_ID)
            .bind(tenant.uuid())
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// A live target by name.
    pub async fn target_by_name(
        &mut self,
        tenant: TenantId,
        environment: EnvironmentId,
        name: &Name,
    ) -> Result<Option<Target>> {
        let row: Option<TargetRow> = on!(self, |conn| sqlx::query_as(BY_NAME)
            .bind(tenant.uuid())
            .bind(environment.uuid())
            .bind(name.as_str())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// Live targets by environment name and name, of one environment or of all.
    pub async fn list_targets(
        &mut self,
        tenant: TenantId,
        environment: Option<EnvironmentId>,
        page: &PageRequest,
    ) -> Result<Page<Target>> {
        let Some(environment) = environment else {
            let (above, name, id) = page.above_texts()?;
            let rows: Vec<TargetRow> = on!(self, |conn| sqlx::query_as(LIST)
                .bind(tenant.uuid())
                .bind(above)
                .bind(name)
                .bind(id)
                .bind(page.limit())
                .fetch_all(conn)
                .await)?;
            return Ok(Page::of(all(rows)?, page, |target: &Target| {
                Cursor::of(&[&target.environment, &target.name, &target.id])
            }));
        };
        let name = page.above_text()?;
        let rows: Vec<TargetRow> = on!(self, |conn| sqlx::query_as(LIST_OF_ENVIRONMENT)
            .bind(tenant.uuid())
            .bind(environment.uuid())
            .bind(name)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        Ok(Page::of(all(rows)?, page, |target: &Target| {
            Cursor::of(&[&target.name])
        }))
    }

    /// All live targets of an environment by name: at most one more than a job may have.
    pub async fn environment_targets(&mut self, environment: EnvironmentId) -> Result<Vec<Target>> {
        let rows: Vec<TargetRow> = on!(self, |conn| sqlx::query_as(ALL_OF_ENVIRONMENT)
            .bind(environment.uuid())
            .bind(MOST)
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// Live targets that an agent serves, by name.
    pub async fn targets_of_agent(&mut self, agent: AgentId) -> Result<Vec<Target>> {
        let rows: Vec<TargetRow> = on!(self, |conn| sqlx::query_as(OF_AGENT)
            .bind(agent.uuid())
            .bind(MOST)
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// The targets that each of the agents serves, by name; agents with none are left out. At most a page of agents.
    pub async fn targets_of_agents(&mut self, agents: &[AgentId]) -> Result<BTreeMap<AgentId, Vec<Target>>> {
        let mut targets: BTreeMap<AgentId, Vec<Target>> = BTreeMap::new();
        if agents.is_empty() {
            return Ok(targets);
        }
        let rows: Vec<TargetRow> = on!(self, |conn| {
            let ids = agents.iter().map(|agent| agent.uuid());
            let mut query = of_ids(OF_AGENTS, ids, ") ORDER BY name, id");
            query.build_query_as().fetch_all(conn).await
        })?;
        for target in all::<_, Target>(rows)? {
            if let Some(agent) = target.agent_id {
                targets.entry(agent).or_default().push(target);
            }
        }
        Ok(targets)
    }

    /// Writes kind and labels, if the stored revision is still that of `target`; otherwise [`StoreError::Conflict`].
    pub async fn update_target(&mut self, target: &Target, now: DateTime<Utc>) -> Result<Target> {
        let revision = int(target.revision)?;
        let row: Option<TargetRow> = on!(self, |conn| sqlx::query_as(UPDATE)
            .bind(target.tenant_id.uuid())
            .bind(target.id.uuid())
            .bind(revision)
            .bind(target.kind.as_str())
            .bind(Json(&target.labels))
            .bind(now)
            .fetch_optional(conn)
            .await)?;
        self.note(Change::Target(target.id));
        row.ok_or(StoreError::Conflict)?.try_into()
    }

    /// Puts a target away and takes it from its agent, under the same condition.
    pub async fn archive_target(&mut self, target: &Target, now: DateTime<Utc>) -> Result<Target> {
        let revision = int(target.revision)?;
        let row: Option<TargetRow> = on!(self, |conn| sqlx::query_as(ARCHIVE)
            .bind(target.tenant_id.uuid())
            .bind(target.id.uuid())
            .bind(revision)
            .bind(now)
            .fetch_optional(conn)
            .await)?;
        self.note(Change::Target(target.id));
        if let Some(agent) = target.agent_id {
            self.note(Change::Agent(agent));
        }
        row.ok_or(StoreError::Conflict)?.try_into()
    }

    /// Gives a target to an agent, if its agent is still `seen`. [`StoreError::Conflict`] when it is not, or the target is
    /// archived or gone.
    pub async fn bind_target(
        &mut self,
        target: TargetId,
        seen: Option<AgentId>,
        agent: AgentId,
        now: DateTime<Utc>,
    ) -> Result<()> {
        let changed = on!(self, |conn| sqlx::query(BIND)
            .bind(target.uuid())
            .bind(agent.uuid())
            .bind(now)
            .bind(seen.map(AgentId::uuid))
            .execute(conn)
            .await
            .map(|done| done.rows_affected()))?;
        self.note(Change::Target(target));
        self.note(Change::Agent(agent));
        if changed == 1 {
            Ok(())
        } else {
            Err(StoreError::Conflict)
        }
    }

    /// Takes all targets from an agent.
    pub async fn unbind_agent(&mut self, agent: AgentId, now: DateTime<Utc>) -> Result<()> {
        let targets: Vec<Uuid> = on!(self, |conn| sqlx::query_scalar(UNBIND)
            .bind(agent.uuid())
            .bind(now)
            .fetch_all(conn)
            .await)?;
        for target in targets {
            self.note(Change::Target(target.into()));
        }
        self.note(Change::Agent(agent));
        Ok(())
    }

    /// Targets by identifier, many per statement; those that do not exist are left out. Not scoped by tenant: for identifiers from
    /// rows that are.
    pub async fn targets_by_ids(&mut self, ids: &[TargetId]) -> Result<BTreeMap<TargetId, Target>> {
        let mut targets = BTreeMap::new();
        for chunk in ids.chunks(BULK) {
            let rows: Vec<TargetRow> = on!(self, |conn| {
                let ids = chunk.iter().map(|id| id.uuid());
                let mut query = of_ids(BY_IDS, ids, ")");
                query.build_query_as().fetch_all(conn).await
            })?;
            let found: Vec<Target> = all(rows)?;
            targets.extend(found.into_iter().map(|target| (target.id, target)));
        }
        Ok(targets)
    }

    /// Takes the next fencing token of each of the targets, many per statement. [`StoreError::Conflict`] when one does not exist.
    pub async fn next_fences(
        &mut self,
        targets: impl IntoIterator<Item = TargetId>,
    ) -> Result<BTreeMap<TargetId, Fence>> {
        // Each once, and in one order for all writers, so that they do not deadlock.
        let targets: BTreeSet<TargetId> = targets.into_iter().collect();
        let targets: Vec<TargetId> = targets.into_iter().collect();
        let mut fences = BTreeMap::new();
        for chunk in targets.chunks(BULK) {
            let rows: Vec<(Uuid, i64)> = on!(self, |conn| {
                let ids = chunk.iter().map(|id| id.uuid());
                let mut query = of_ids(NEXT_FENCES, ids, ") RETURNING id, fence");
                query.build_query_as().fetch_all(conn).await
            })?;
            for (id, fence) in rows {
                fences.insert(id.into(), Fence(At::new("targets", id).number("fence", fence)?));
            }
        }
        if fences.len() == targets.len() {
            Ok(fences)
        } else {
            Err(StoreError::Conflict)
        }
    }
}
