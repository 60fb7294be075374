//! Holds: what keeps new promotions of a project away from an environment until a person says otherwise.

use chrono::{DateTime, Utc};
use sealift_common::{
    id::{EnvironmentId, HoldId, ProjectId, ReleaseId, TenantId},
    name::ProjectRef,
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Change, Cursor, Hold, Page, PageRequest, Result, StoreError, Tx,
    engine::{on, statements},
    rows::{At, all, one},
};

macro_rules! select {
    () => {
        "SELECT h.id, h.tenant_id, h.environment_id, e.name AS environment, h.project_id, p.repository, p.project, \
         h.reason, h.placed_by, h.placed_at, h.lifted_by, h.lifted_at FROM holds h \
         JOIN environments e ON e.id = h.environment_id JOIN projects p ON p.id = h.project_id "
    };
}

statements! {
    PLACE = {
        "INSERT INTO holds (id, tenant_id, environment_id, project_id, reason, placed_by, placed_at) ",
        "VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT DO NOTHING"
    };
    LIFT = { "UPDATE holds SET lifted_by = $2, lifted_at = $3 WHERE id = $1 AND lifted_at IS NULL" };
    BY_ID = { select!(), "WHERE h.tenant_id = $1 AND h.id = $2" };
    OPEN = { select!(), "WHERE h.environment_id = $1 AND h.project_id = $2 AND h.lifted_at IS NULL" };
    OPEN_ON_RELEASE = {
        select!(), "WHERE h.environment_id = $1 AND h.lifted_at IS NULL ",
        "AND h.project_id = (SELECT project_id FROM releases WHERE id = $2)"
    };
    LIST = { select!(), "WHERE h.tenant_id = $1 AND h.id < $2 ORDER BY h.id DESC LIMIT $3" };
    LIST_OPEN = {
        select!(), "WHERE h.tenant_id = $1 AND h.id < $2 AND h.lifted_at IS NULL ORDER BY h.id DESC LIMIT $3"
    };
}

#[derive(FromRow)]
struct HoldRow {
    id: Uuid,
    tenant_id: Uuid,
    environment_id: Uuid,
    environment: String,
    project_id: Uuid,
    repository: String,
    project: String,
    reason: String,
    placed_by: String,
    placed_at: DateTime<Utc>,
    lifted_by: Option<String>,
    lifted_at: Option<DateTime<Utc>>,
}

impl TryFrom<HoldRow> for Hold {
    type Error = StoreError;

    fn try_from(row: HoldRow) -> Result<Self> {
        let at = At::new("holds", row.id);
        Ok(Self {
            id: row.id.into(),
            tenant_id: row.tenant_id.into(),
            environment_id: row.environment_id.into(),
            environment: at.parse("environment", &row.environment)?,
            project_id: row.project_id.into(),
            project: ProjectRef {
                repository: row.repository,
                project: row.project,
            },
            reason: row.reason,
            placed_by: row.placed_by,
            placed_at: row.placed_at,
            lifted: match (row.lifted_by, row.lifted_at) {
                (Some(by), Some(when)) => Some((by, when)),
                (None, None) => None,
                _ => return Err(at.corrupt("lifted_at")),
            },
        })
    }
}

impl Tx {
    /// Puts a hold on a project in an environment; one that is there already stays as it is.
    pub async fn place_hold(&mut self, hold: &Hold) -> Result<()> {
        on!(self, |conn| sqlx::query(PLACE)
            .bind(hold.id.uuid())
            .bind(hold.tenant_id.uuid())
            .bind(hold.environment_id.uuid())
            .bind(hold.project_id.uuid())
            .bind(hold.reason.as_str())
            .bind(hold.placed_by.as_str())
            .bind(hold.placed_at)
            .execute(conn)
            .await
            .map(drop))?;
        self.note(Change::Lane(hold.environment_id));
        Ok(())
    }

    /// Lifts a hold; one that was lifted before stays as it is.
    pub async fn lift_hold(&mut self, hold: &Hold, by: &str, now: DateTime<Utc>) -> Result<()> {
        on!(self, |conn| sqlx::query(LIFT)
            .bind(hold.id.uuid())
            .bind(by)
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        self.note(Change::Lane(hold.environment_id));
        Ok(())
    }

    /// A hold of a tenant.
    pub async fn hold(&mut self, tenant: TenantId, id: HoldId) -> Result<Option<Hold>> {
        let row: Option<HoldRow> = on!(self, |conn| sqlx::query_as(BY_ID)
            .bind(tenant.uuid())
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// The hold on a project in an environment, when there is one.
    pub async fn open_hold(
        &mut self,
        environment: EnvironmentId,
        project: ProjectId,
    ) -> Result<Option<Hold>> {
        let row: Option<HoldRow> = on!(self, |conn| sqlx::query_as(OPEN)
            .bind(environment.uuid())
            .bind(project.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// The hold on the project of a release in an environment, when there is one.
    pub async fn open_hold_on_release(
        &mut self,
        environment: EnvironmentId,
        release: ReleaseId,
    ) -> Result<Option<Hold>> {
        let row: Option<HoldRow> = on!(self, |conn| sqlx::query_as(OPEN_ON_RELEASE)
            .bind(environment.uuid())
            .bind(release.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// Holds of a tenant, the newest first; only those that hold now, unless all are asked for.
    pub async fn list_holds(
        &mut self,
        tenant: TenantId,
        lifted_too: bool,
        page: &PageRequest,
    ) -> Result<Page<Hold>> {
        let below = page.below_id()?;
        let statement = if lifted_too { LIST } else { LIST_OPEN };
        let rows: Vec<HoldRow> = on!(self, |conn| sqlx::query_as(statement)
            .bind(tenant.uuid())
            .bind(below)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        Ok(Page::of(all(rows)?, page, |hold: &Hold| Cursor::of(&[&hold.id])))
    }
}
