//! Drift observations: opened when a finding appears, resolved when it is gone, never deleted. Identity of an open one on a
//! target: project, kind, service.

use std::collections::HashMap;

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    drift::{self, Finding, Severity},
    id::{DriftId, JobId, TargetId, TenantId},
    inventory::EnvironmentClass,
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Acknowledgement, Change, Cursor, DriftChange, DriftFilter, DriftRow, Found, Page, PageRequest, Result,
    StoreError, Tx,
    engine::{on, statements},
    rows::{At, all, count, json_opt, one},
};

macro_rules! select {
    () => {
        "SELECT d.id, d.tenant_id, d.target_id, t.environment, t.name AS target, d.project, d.kind, d.service, \
         d.severity, d.expected, d.actual, d.job_id, d.cause, d.owner, d.note, d.acknowledged_by, \
         d.acknowledged_at, d.gave_up_at, d.first_seen_at, d.last_seen_at, d.resolved_at, \
         (SELECT COUNT(*) FROM drift_remedies r WHERE r.drift_id = d.id) AS tries, \
         (SELECT r.promotion_id FROM drift_remedies r WHERE r.drift_id = d.id \
         ORDER BY r.promotion_id DESC LIMIT 1) AS last_promotion \
         FROM drift d JOIN targets t ON t.id = d.target_id "
    };
}

// Lists run along an index that begins with what they are narrowed to and a severity: one statement per severity.
macro_rules! of_severity {
    () => {
        "AND d.severity = $2 AND d.id < $3 AND d.tenant_id = $5 "
    };
}

macro_rules! newest {
    () => {
        "ORDER BY d.id DESC LIMIT $4"
    };
}

statements! {
    CLASS = {
        "SELECT e.class FROM targets t JOIN environments e ON e.id = t.environment_id WHERE t.id = $1"
    };
    OPEN = {
        "SELECT id, kind, service, severity, expected, actual, last_seen_at, cause IS NOT NULL AS explained, ",
        "gave_up_at IS NOT NULL AS gave_up ",
        "FROM drift WHERE target_id = $1 AND project = $2 AND resolved_at IS NULL"
    };
    OPEN_PROJECTS = {
        "SELECT DISTINCT project FROM drift WHERE target_id = $1 AND resolved_at IS NULL ORDER BY project"
    };
    INSERT = {
        "INSERT INTO drift (id, tenant_id, environment_id, target_id, project, kind, service, severity, expected, ",
        "actual, job_id, cause, first_seen_at, last_seen_at) ",
        "SELECT $1, t.tenant_id, t.environment_id, t.id, $3, $4, $5, $6, $7, $8, $9, $10, $11, $11 ",
        "FROM targets t WHERE t.id = $2"
    };
    TOUCH = {
        "UPDATE drift SET expected = $2, actual = $3, severity = $4, last_seen_at = $5, cause = COALESCE($6, cause) ",
        "WHERE id = $1 AND resolved_at IS NULL"
    };
    RESOLVE = { "UPDATE drift SET resolved_at = $2 WHERE id = $1 AND resolved_at IS NULL" };
    ACKNOWLEDGE = {
        "UPDATE drift SET owner = $3, note = $4, acknowledged_by = $5, acknowledged_at = $6 ",
        "WHERE tenant_id = $1 AND id = $2 AND resolved_at IS NULL"
    };
    BY_ID = { select!(), "WHERE d.tenant_id = $1 AND d.id = $2" };
    ALL_OF_TENANT = { select!(), "WHERE d.tenant_id = $1 ", of_severity!(), newest!() };
    ALL_OF_ENVIRONMENT = { select!(), "WHERE d.environment_id = $1 ", of_severity!(), newest!() };
    ALL_OF_TARGET = { select!(), "WHERE d.target_id = $1 ", of_severity!(), newest!() };
    OPEN_OF_TENANT = {
        select!(), "WHERE d.tenant_id = $1 AND d.resolved_at IS NULL ", of_severity!(), newest!()
    };
    OPEN_OF_ENVIRONMENT = {
        select!(), "WHERE d.environment_id = $1 AND d.resolved_at IS NULL ", of_severity!(), newest!()
    };
    OPEN_OF_TARGET = {
        select!(), "WHERE d.target_id = $1 AND d.resolved_at IS NULL ", of_severity!(), newest!()
    };
}

/// How exact `last_seen_at` is: agents report all the time, rows need not be written all the time.
const TOUCH_EVERY: TimeDelta = TimeDelta::seconds(60);

#[derive(FromRow)]
struct OpenRow {
    id: Uuid,
    kind: String,
    service: String,
    severity: String,
    expected: String,
    actual: String,
    last_seen_at: DateTime<Utc>,
    explained: bool,
    gave_up: bool,
}

#[derive(FromRow)]
struct DriftColumns {
    id: Uuid,
    tenant_id: Uuid,
    target_id: Uuid,
    environment: String,
    target: String,
    project: String,
    kind: String,
    service: String,
    severity: String,
    expected: String,
    actual: String,
    job_id: Option<Uuid>,
    cause: Option<String>,
    owner: String,
    note: String,
    acknowledged_by: String,
    acknowledged_at: Option<DateTime<Utc>>,
    gave_up_at: Option<DateTime<Utc>>,
    first_seen_at: DateTime<Utc>,
    last_seen_at: DateTime<Utc>,
    resolved_at: Option<DateTime<Utc>>,
    tries: i64,
    last_promotion: Option<Uuid>,
}

impl TryFrom<DriftColumns> for DriftRow {
    type Error = StoreError;

    fn try_from(row: DriftColumns) -> Result<Self> {
        let at = At::new("drift", row.id);
        let service = (!row.service.is_empty()).then_some(row.service.as_str());
        Ok(Self {
            id: row.id.into(),
            tenant_id: row.tenant_id.into(),
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
            severity: at.parse("severity", &row.severity)?,
            job_id: row.job_id.map(Into::into),
            cause: at.json_opt("cause", row.cause.as_deref())?,
            acknowledged: row.acknowledged_at.map(|when| Acknowledgement {
                owner: row.owner,
                note: row.note,
                by: row.acknowledged_by,
                at: when,
            }),
            tries: count(row.tries),
            last_promotion: row.last_promotion.map(Into::into),
            gave_up_at: row.gave_up_at,
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
    /// The class of a target's environment. [`StoreError::Conflict`] when there is no such target.
    pub async fn class_of_target(&mut self, target: TargetId) -> Result<EnvironmentClass> {
        let class: Option<String> = on!(self, |conn| sqlx::query_scalar(CLASS)
            .bind(target.uuid())
            .fetch_optional(conn)
            .await)?;
        At::new("environments", target).parse("class", &class.ok_or(StoreError::Conflict)?)
    }

    /// The projects of which a target has open drift, by name.
    pub async fn drifted_projects(&mut self, target: TargetId) -> Result<Vec<String>> {
        Ok(on!(self, |conn| sqlx::query_scalar(OPEN_PROJECTS)
            .bind(target.uuid())
            .fetch_all(conn)
            .await)?)
    }

    /// Makes the open drift of a project on a target equal to `found`: opens what is new, touches what is there (at most
    /// once a minute, or when it is not what it was), resolves what is gone.
    pub async fn reconcile_drift(
        &mut self,
        target: TargetId,
        project: &str,
        found: &[Found],
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
        for found in found {
            let finding = &found.finding;
            let key = (finding.kind.as_str().to_owned(), service(finding).to_owned());
            match open.remove(&key) {
                None => {
                    self.open_drift(target, project, found, now).await?;
                    change.opened += 1;
                }
                Some(row) => self.touch_drift(&row, found, now).await?,
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
        found: &Found,
        now: DateTime<Utc>,
    ) -> Result<()> {
        let cause = json_opt(found.cause.as_ref())?;
        on!(self, |conn| sqlx::query(INSERT)
            .bind(DriftId::new(now).uuid())
            .bind(target.uuid())
            .bind(project)
            .bind(found.finding.kind.as_str())
            .bind(service(&found.finding))
            .bind(found.severity.as_str())
            .bind(found.finding.expected.as_str())
            .bind(found.finding.actual.as_str())
            .bind(found.job.map(JobId::uuid))
            .bind(cause)
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    async fn touch_drift(&mut self, row: &OpenRow, found: &Found, now: DateTime<Utc>) -> Result<()> {
        let finding = &found.finding;
        let changed = row.expected != finding.expected || row.actual != finding.actual;
        // The first explanation stands until it drifts further.
        let cause = found.cause.as_ref().filter(|_| changed || !row.explained);
        let severity = if row.gave_up {
            drift::after_giving_up(found.severity)
        } else {
            found.severity
        };
        let same = !changed && cause.is_none() && row.severity == severity.as_str();
        if same && now - row.last_seen_at < TOUCH_EVERY {
            return Ok(());
        }
        let cause = json_opt(cause)?;
        on!(self, |conn| sqlx::query(TOUCH)
            .bind(row.id)
            .bind(finding.expected.as_str())
            .bind(finding.actual.as_str())
            .bind(severity.as_str())
            .bind(now)
            .bind(cause)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// Says who looks after an open drift observation, in place of what was said before. [`StoreError::Conflict`] when the tenant
    /// has no such open one.
    pub async fn acknowledge_drift(
        &mut self,
        tenant: TenantId,
        drift: &DriftRow,
        by: &Acknowledgement,
    ) -> Result<()> {
        let changed = on!(self, |conn| sqlx::query(ACKNOWLEDGE)
            .bind(tenant.uuid())
            .bind(drift.id.uuid())
            .bind(by.owner.as_str())
            .bind(by.note.as_str())
            .bind(by.by.as_str())
            .bind(by.at)
            .execute(conn)
            .await
            .map(|done| done.rows_affected()))?;
        self.note(Change::Drift(drift.target_id));
        if changed == 1 {
            Ok(())
        } else {
            Err(StoreError::Conflict)
        }
    }

    /// A drift observation of a tenant.
    pub async fn drift(&mut self, tenant: TenantId, id: DriftId) -> Result<Option<DriftRow>> {
        let row: Option<DriftColumns> = on!(self, |conn| sqlx::query_as(BY_ID)
            .bind(tenant.uuid())
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// Drift newest first.
    pub async fn list_drift(
        &mut self,
        tenant: TenantId,
        filter: DriftFilter,
        page: &PageRequest,
    ) -> Result<Page<DriftRow>> {
        let below = page.below_id()?;
        let (statement, scope) = narrowed(tenant, filter);
        let mut rows: Vec<DriftColumns> = Vec::new();
        let wanted = |severity: &&Severity| filter.at_least.is_none_or(|least| **severity >= least);
        for severity in Severity::ALL.iter().filter(wanted) {
            let some: Vec<DriftColumns> = on!(self, |conn| sqlx::query_as(statement)
                .bind(scope)
                .bind(severity.as_str())
                .bind(below)
                .bind(page.limit())
                .bind(tenant.uuid())
                .fetch_all(conn)
                .await)?;
            rows.extend(some);
        }
        rows.sort_unstable_by_key(|row| std::cmp::Reverse(row.id));
        rows.truncate(usize::try_from(page.limit()).unwrap_or(usize::MAX));
        Ok(Page::of(all(rows)?, page, |row: &DriftRow| {
            Cursor::of(&[&row.id])
        }))
    }
}

/// The statement for a filter, and what its first parameter is.
fn narrowed(tenant: TenantId, filter: DriftFilter) -> (&'static str, Uuid) {
    let all = filter.include_resolved;
    match (filter.target, filter.environment) {
        (Some(target), _) if all => (ALL_OF_TARGET, target.uuid()),
        (Some(target), _) => (OPEN_OF_TARGET, target.uuid()),
        (None, Some(environment)) if all => (ALL_OF_ENVIRONMENT, environment.uuid()),
        (None, Some(environment)) => (OPEN_OF_ENVIRONMENT, environment.uuid()),
        (None, None) if all => (ALL_OF_TENANT, tenant.uuid()),
        (None, None) => (OPEN_OF_TENANT, tenant.uuid()),
    }
}
