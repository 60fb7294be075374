//! Environments, in promotion order. Names never change: they are part of resource names and of what was signed.

use chrono::{DateTime, Utc};
use sealift_common::{
    id::{EnvironmentId, TenantId},
    inventory::Environment,
    name::Name,
    remedy::{Limits, Mode, Remediation},
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Cursor, Page, PageRequest, Result, StoreError, Tx,
    engine::{on, statements},
    rows::{At, all, canonical_text, int, one},
};

macro_rules! columns {
    () => {
        "id, tenant_id, name, display_name, position, class, variables, remediation, max_tries, min_severity, pause_ms, \
         lane_policy, revision, created_at, updated_at, archived_at"
    };
}

statements! {
    INSERT = {
        "INSERT INTO environments (", columns!(), ") ",
        "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16)"
    };
    BY_ID = { "SELECT ", columns!(), " FROM environments WHERE tenant_id = $1 AND id = $2" };
    BY_NAME = {
        "SELECT ", columns!(), " FROM environments WHERE tenant_id = $1 AND name = $2 AND archived_at IS NULL"
    };
    LIST = {
        "SELECT ", columns!(), " FROM environments WHERE tenant_id = $1 AND archived_at IS NULL ",
        "AND (position, name) > ($2, $3) ORDER BY position, name LIMIT $4"
    };
    UPDATE = {
        "UPDATE environments SET display_name = $4, position = $5, class = $6, variables = $7, remediation = $8, ",
        "max_tries = $9, min_severity = $10, pause_ms = $11, lane_policy = $12, updated_at = $13, ",
        "revision = revision + 1 WHERE tenant_id = $1 AND id = $2 AND revision = $3 AND archived_at IS NULL ",
        "RETURNING ", columns!()
    };
    ARCHIVE = {
        "UPDATE environments SET archived_at = $4, updated_at = $4, revision = revision + 1 ",
        "WHERE tenant_id = $1 AND id = $2 AND revision = $3 AND archived_at IS NULL RETURNING ", columns!()
    };
}

#[derive(FromRow)]
struct EnvironmentRow {
    id: Uuid,
    tenant_id: Uuid,
    name: String,
    display_name: String,
    position: i64,
    class: String,
    variables: String,
    remediation: String,
    max_tries: Option<i64>,
    min_severity: Option<String>,
    pause_ms: Option<i64>,
    lane_policy: String,
    revision: i64,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    archived_at: Option<DateTime<Utc>>,
}

impl TryFrom<EnvironmentRow> for Environment {
    type Error = StoreError;

    fn try_from(row: EnvironmentRow) -> Result<Self> {
        let at = At::new("environments", row.id);
        let remediation = row.remediation(&at)?;
        Ok(Self {
            id: row.id.into(),
            tenant_id: row.tenant_id.into(),
            name: at.parse("name", &row.name)?,
            display_name: row.display_name,
            position: at.small("position", row.position)?,
            class: at.parse("class", &row.class)?,
            variables: at.json("variables", &row.variables)?,
            remediation,
            lane_policy: at.parse("lane_policy", &row.lane_policy)?,
            revision: at.number("revision", row.revision)?,
            created_at: row.created_at,
            updated_at: row.updated_at,
            archived_at: row.archived_at,
        })
    }
}

impl EnvironmentRow {
    fn remediation(&self, at: &At) -> Result<Remediation> {
        let limits = (self.max_tries, self.min_severity.as_deref(), self.pause_ms);
        match (at.parse("remediation", &self.remediation)?, limits) {
            (Mode::Alert, (None, None, None)) => Ok(Remediation::Alert),
            (Mode::Reconcile, (Some(max_tries), Some(min_severity), Some(pause_ms))) => {
                Ok(Remediation::Reconcile(Limits {
                    max_tries: at.small("max_tries", max_tries)?,
                    min_severity: at.parse("min_severity", min_severity)?,
                    pause_ms: at.small("pause_ms", pause_ms)?,
                }))
            }
            _ => Err(at.corrupt("remediation")),
        }
    }
}

impl Tx {
    /// Makes an environment.
    pub async fn insert_environment(&mut self, environment: &Environment) -> Result<()> {
        let revision = int(environment.revision)?;
        let variables = canonical_text(&environment.variables)?;
        let limits = environment.remediation.limits();
        on!(self, |conn| sqlx::query(INSERT)
            .bind(environment.id.uuid())
            .bind(environment.tenant_id.uuid())
            .bind(environment.name.as_str())
            .bind(environment.display_name.as_str())
            .bind(i64::from(environment.position))
            .bind(environment.class.as_str())
            .bind(variables)
            .bind(environment.remediation.mode().as_str())
            .bind(limits.map(|limits| i64::from(limits.max_tries)))
            .bind(limits.map(|limits| limits.min_severity.as_str()))
            .bind(limits.map(|limits| i64::from(limits.pause_ms)))
            .bind(environment.lane_policy.as_str())
            .bind(revision)
            .bind(environment.created_at)
            .bind(environment.updated_at)
            .bind(environment.archived_at)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// An environment, archived or not.
    pub async fn environment(&mut self, tenant: TenantId, id: EnvironmentId) -> Result<Option<Environment>> {
        let row: Option<EnvironmentRow> = on!(self, |conn| sqlx::query_as(BY_ID)
            .bind(tenant.uuid())
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// A live environment by name.
    pub async fn environment_by_name(
        &mut self,
        tenant: TenantId,
        name: &Name,
    ) -> Result<Option<Environment>> {
        let row: Option<EnvironmentRow> = on!(self, |conn| sqlx::query_as(BY_NAME)
            .bind(tenant.uuid())
            .bind(name.as_str())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// Live environments by position, then name.
    pub async fn list_environments(
        &mut self,
        tenant: TenantId,
        page: &PageRequest,
    ) -> Result<Page<Environment>> {
        let (position, name) = page.above_position()?;
        let rows: Vec<EnvironmentRow> = on!(self, |conn| sqlx::query_as(LIST)
            .bind(tenant.uuid())
            .bind(position)
            .bind(name)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        Ok(Page::of(all(rows)?, page, |environment: &Environment| {
            Cursor::of(&[&environment.position, &environment.name])
        }))
    }

    /// Writes display name, position, class, variables, remediation and lane policy, if the stored revision is still that of `environment`; otherwise
    /// [`StoreError::Conflict`].
    pub async fn update_environment(
        &mut self,
        environment: &Environment,
        now: DateTime<Utc>,
    ) -> Result<Environment> {
        let revision = int(environment.revision)?;
        let variables = canonical_text(&environment.variables)?;
        let limits = environment.remediation.limits();
        let row: Option<EnvironmentRow> = on!(self, |conn| sqlx::query_as(UPDATE)
            .bind(environment.tenant_id.uuid())
            .bind(environment.id.uuid())
            .bind(revision)
            .bind(environment.display_name.as_str())
            .bind(i64::from(environment.position))
            .bind(environment.class.as_str())
            .bind(variables)
            .bind(environment.remediation.mode().as_str())
            .bind(limits.map(|limits| i64::from(limits.max_tries)))
            .bind(limits.map(|limits| limits.min_severity.as_str()))
            .bind(limits.map(|limits| i64::from(limits.pause_ms)))
            .bind(environment.lane_policy.as_str())
            .bind(now)
            .fetch_optional(conn)
            .await)?;
        row.ok_or(StoreError::Conflict)?.try_into()
    }

    /// Puts an environment away, under the same condition.
    pub async fn archive_environment(
        &mut self,
        environment: &Environment,
        now: DateTime<Utc>,
    ) -> Result<Environment> {
        let revision = int(environment.revision)?;
        let row: Option<EnvironmentRow> = on!(self, |conn| sqlx::query_as(ARCHIVE)
            .bind(environment.tenant_id.uuid())
            .bind(environment.id.uuid())
            .bind(revision)
            .bind(now)
            .fetch_optional(conn)
            .await)?;
        row.ok_or(StoreError::Conflict)?.try_into()
    }
}
