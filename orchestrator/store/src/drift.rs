//! Drift observations: opened when a finding appears, resolved when it is gone. Identity on a target: project, kind, service.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    drift::Finding,
    id::{DriftId, EnvironmentId, TargetId, TenantId},
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Change, Cursor, DriftChange, DriftFilter, DriftRow, Page, PageRequest, Result, StoreError, Tx,
    engine::{on, statements},
    rows::{At, all, count},
};

statements! {
    OPEN = {
        "SELECT id, kind, service, expected, actual, last_seen_at FROM drift ",
        "WHERE target_id = $1 AND project = $2 AND resolved_at IS NULL"
    };
    INSERT = {
        "INSERT INTO drift (id, target_id, project, kind, service, expected, actual, first_seen_at, last_seen_at) ",
        "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
    };
    TOUCH = {
        "UPDATE drift SET expected = $2, actual = $3, last_seen_at = $4 WHERE id = $1 AND resolved_at IS NULL"
    };
    RESOLVE = { "UPDATE drift SET resolved_at = $2 WHERE id = $1 AND resolved_at IS NULL" };
    LIST = {
        "SELECT d.id, d.target_id, t.environment, t.name AS target, d.project, d.kind, d.service, d.expected, d.actual, ",
        "d.first_seen_at, d.last_seen_at, d.resolved_at FROM drift d JOIN targets t ON t.id = d.target_id ",
        "WHERE t.tenant_id = $1 AND (t.environment_id = $2 OR $2 IS NULL) AND (d.target_id = $3 OR $3 IS NULL) ",
        "AND (d.resolved_at IS NULL OR $4) AND d.id < $5 ORDER BY d.id DESC LIMIT $6"
    };
    COUNT_OPEN = {
        "SELECT d.project, COUNT(*) FROM drift d JOIN targets t ON t.id = d.target_id ",
        "WHERE t.environment_id = $1 AND t.archived_at IS NULL AND d.resolved_at IS NULL ",
        "GROUP BY d.project ORDER BY d.project"
    };
}

/// How exact `last_seen_at` is: agents report all the time, rows need not be written all the time.
const TOUCH_EVERY: TimeDelta = TimeDelta::seconds(60);

#[derive(FromRow)]
struct OpenRow {
    id: Uuid,
    kind: String,
    service: String,
    expected: String,
    actual: String,
    last_seen_at: DateTime<Utc>,
}

#[derive(FromRow)]
struct DriftColumns {
    id: Uuid,
    target_id: Uuid,
    environment: String,
    target: String,
    project: String,
    kind: String,
    service: String,
    expected: String,
    actual: String,
    first_seen_at: DateTime<Utc>,
    last_seen_at: DateTime<Utc>,
    resolved_at: Option<DateTime<Utc>>,
}

impl TryFrom<DriftColumns> for DriftRow {
    type Error = StoreError;

    fn try_from(row: DriftColumns) -> Result<Self> {
        let at = At::new("drift", row.id);
        let service = (!row.service.is_empty()).then_some(row.service.as_str());
        Ok(Self {
            id: row.id.into(),
            target_id: row.target_id.into(),
            environment: at.parse("environment", &row.environment)?,
            target: at.parse("target", &row.target)?,
            project: row.project,
            finding: Finding {
                kind: at.parse("kind", &row.kind)?,
                service: at.parse_opt("service", service)?,
                expected: row.expected,
                actual: row.actual,
            },
            first_seen_at: row.first_seen_at,
            last_seen_at: row.last_seen_at,
            resolved_at: row.resolved_at,
        })
    }
}

/// The service as it is stored: unique indexes treat nulls as different, so "none" is the empty text.
fn service(finding: &Finding) -> &str {
    finding.service.as_ref().map_or("", |service| service.as_str())
}

impl Tx {
    /// Makes the open drift of a project on a target equal to `findings`: opens what is new, touches what is there (at most
    /// once a minute, or when its text changes), resolves what is gone.
    pub async fn reconcile_drift(
        &mut self,
        target: TargetId,
        project: &str,
        findings: &[Finding],
        now: DateTime<Utc>,
    ) -> Result<DriftChange> {
        let rows: Vec<OpenRow> = on!(self, |conn| sqlx::query_as(OPEN)
            .bind(target.uuid())
            .bind(project)
            .fetch_all(conn)
            .await)?;
        let mut open: HashMap<(String, String), OpenRow> = rows
            .into_iter()
            .map(|row| ((row.kind.clone(), row.service.clone()), row))
            .collect();
        let mut change = DriftChange::default();
        for finding in findings {
            let key = (finding.kind.as_str().to_owned(), service(finding).to_owned());
            match open.remove(&key) {
                None => {
                    self.open_drift(target, project, finding, now).await?;
                    change.opened += 1;
                }
                Some(row) => self.touch_drift(&row, finding, now).await?,
            }
        }
        for row in open.into_values() {
            on!(self, |conn| sqlx::query(RESOLVE)
                .bind(row.id)
                .bind(now)
                .execute(conn)
                .await
                .map(drop))?;
            change.resolved += 1;
        }
        if change != DriftChange::default() {
            self.note(Change::Drift(target));
        }
        Ok(change)
    }

    async fn open_drift(
        &mut self,
        target: TargetId,
        project: &str,
        finding: &Finding,
        now: DateTime<Utc>,
    ) -> Result<()> {
        on!(self, |conn| sqlx::query(INSERT)
            .bind(DriftId::new(now).uuid())
            .bind(target.uuid())
            .bind(project)
            .bind(finding.kind.as_str())
            .bind(service(finding))
            .bind(finding.expected.as_str())
            .bind(finding.actual.as_str())
            .bind(now)
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    async fn touch_drift(&mut self, row: &OpenRow, finding: &Finding, now: DateTime<Utc>) -> Result<()> {
        let same = row.expected == finding.expected && row.actual == finding.actual;
        if same && now - row.last_seen_at < TOUCH_EVERY {
            return Ok(());
        }
        on!(self, |conn| sqlx::query(TOUCH)
            .bind(row.id)
            .bind(finding.expected.as_str())
            .bind(finding.actual.as_str())
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// Drift newest first.
    pub async fn list_drift(
        &mut self,
        tenant: TenantId,
        filter: DriftFilter,
        page: &PageRequest,
    ) -> Result<Page<DriftRow>> {
        let below = page.below_id()?;
        let rows: Vec<DriftColumns> = on!(self, |conn| sqlx::query_as(LIST)
            .bind(tenant.uuid())
            .bind(filter.environment.map(EnvironmentId::uuid))
            .bind(filter.target.map(TargetId::uuid))
            .bind(filter.include_resolved)
            .bind(below)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        Ok(Page::of(all(rows)?, page, |row: &DriftRow| {
            Cursor::of(&[&row.id])
        }))
    }

    /// How much open drift the live targets of an environment have, by project.
    pub async fn count_open_drift(&mut self, environment: EnvironmentId) -> Result<Vec<(String, u32)>> {
        let rows: Vec<(String, i64)> = on!(self, |conn| sqlx::query_as(COUNT_OPEN)
            .bind(environment.uuid())
            .fetch_all(conn)
            .await)?;
        Ok(rows
            .into_iter()
            .map(|(project, open)| (project, count(open)))
            .collect())
    }
}
