//! Remediation: where drift may be put right, and what was done about it. What was done is insert-only.

use chrono::{DateTime, Utc};
use sealift_common::{
    bounds,
    drift::{self, DriftKind, Severity},
    id::{DriftId, EnvironmentId, PromotionId, TargetId, TenantId},
    remedy::Try,
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Change, Result, StoreError, Tx,
    engine::{on, statements},
    rows::{At, all},
};

statements! {
    PLACES = {
        "SELECT DISTINCT d.tenant_id, d.environment_id, d.target_id, d.project FROM drift d ",
        "JOIN environments e ON e.id = d.environment_id JOIN targets t ON t.id = d.target_id ",
        "WHERE d.resolved_at IS NULL AND d.kind <> 'extra' AND (d.target_id, d.project) > ($1, $2) ",
        "AND e.remediation = 'reconcile' AND e.archived_at IS NULL AND t.archived_at IS NULL ",
        "ORDER BY d.target_id, d.project LIMIT $3"
    };
    OPEN = {
        "SELECT id, kind, service, severity, owner <> '' AS owned, first_seen_at, gave_up_at IS NOT NULL AS gave_up ",
        "FROM drift WHERE target_id = $1 AND project = $2 AND resolved_at IS NULL ORDER BY id"
    };
    TRIES = {
        "SELECT DISTINCT at, number FROM drift_remedies WHERE target_id = $1 AND project = $2 AND at > $3 ",
        "ORDER BY at DESC LIMIT $4"
    };
    NEWEST_IN_ENVIRONMENT = {
        "SELECT at FROM drift_remedies WHERE environment_id = $1 ORDER BY at DESC LIMIT 1"
    };
    LOOKED_AT = { "SELECT received_at FROM target_observations WHERE target_id = $1" };
    INSERT = {
        "INSERT INTO drift_remedies (drift_id, promotion_id, environment_id, target_id, project, number, at) ",
        "SELECT d.id, $2, d.environment_id, d.target_id, d.project, $3, $4 FROM drift d WHERE d.id = $1"
    };
    GIVE_UP = {
        "UPDATE drift SET gave_up_at = $2, severity = $3 WHERE id = $1 AND resolved_at IS NULL AND gave_up_at IS NULL"
    };
    TAKE_UP = { "UPDATE drift SET gave_up_at = NULL WHERE id = $1 AND gave_up_at IS NOT NULL" };
}

/// One project on one target, with open drift, in an environment that wants it put right.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct DriftedPlace {
    /// Target.
    pub target_id: TargetId,
    /// The project, `repository/project`.
    pub project: String,
    /// Tenant.
    pub tenant_id: TenantId,
    /// Environment.
    pub environment_id: EnvironmentId,
}

/// Open drift as far as remediation goes by it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OpenDrift {
    /// Identifier.
    pub id: DriftId,
    /// What kind.
    pub kind: DriftKind,
    /// Which service; empty when it is about the sticker.
    pub service: String,
    /// How severe.
    pub severity: Severity,
    /// Somebody looks after it.
    pub owned: bool,
    /// When it was first seen.
    pub first_seen_at: DateTime<Utc>,
    /// Remediation has given it up.
    pub gave_up: bool,
}

/// An act.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remedy {
    /// The promotion that puts back what is recorded.
    pub promotion: PromotionId,
    /// Which try at the place it is.
    pub number: u32,
    /// When.
    pub at: DateTime<Utc>,
}

#[derive(FromRow)]
struct PlaceRow {
    tenant_id: Uuid,
    environment_id: Uuid,
    target_id: Uuid,
    project: String,
}

impl From<PlaceRow> for DriftedPlace {
    fn from(row: PlaceRow) -> Self {
        Self {
            target_id: row.target_id.into(),
            project: row.project,
            tenant_id: row.tenant_id.into(),
            environment_id: row.environment_id.into(),
        }
    }
}

#[derive(FromRow)]
struct OpenRow {
    id: Uuid,
    kind: String,
    service: String,
    severity: String,
    owned: bool,
    first_seen_at: DateTime<Utc>,
    gave_up: bool,
}

impl TryFrom<OpenRow> for OpenDrift {
    type Error = StoreError;

    fn try_from(row: OpenRow) -> Result<Self> {
        let at = At::new("drift", row.id);
        Ok(Self {
            id: row.id.into(),
            kind: at.parse("kind", &row.kind)?,
            service: row.service,
            severity: at.parse("severity", &row.severity)?,
            owned: row.owned,
            first_seen_at: row.first_seen_at,
            gave_up: row.gave_up,
        })
    }
}

impl Tx {
    /// Places with drift that may be put right, in one order; those behind `after`.
    pub async fn drifted_places(
        &mut self,
        after: Option<&DriftedPlace>,
        most: u32,
    ) -> Result<Vec<DriftedPlace>> {
        let (target, project) = after.map_or((Uuid::nil(), ""), |place| {
            (place.target_id.uuid(), place.project.as_str())
        });
        let rows: Vec<PlaceRow> = on!(self, |conn| sqlx::query_as(PLACES)
            .bind(target)
            .bind(project)
            .bind(i64::from(most))
            .fetch_all(conn)
            .await)?;
        Ok(rows.into_iter().map(DriftedPlace::from).collect())
    }

    /// The open drift of a place, oldest first.
    pub async fn open_drift_at(&mut self, place: &DriftedPlace) -> Result<Vec<OpenDrift>> {
        let rows: Vec<OpenRow> = on!(self, |conn| sqlx::query_as(OPEN)
            .bind(place.target_id.uuid())
            .bind(place.project.as_str())
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// The acts at a place since a time, newest first; of more than may ever count, the newest.
    pub async fn remedies_at(&mut self, place: &DriftedPlace, since: DateTime<Utc>) -> Result<Vec<Try>> {
        let rows: Vec<(DateTime<Utc>, i64)> = on!(self, |conn| sqlx::query_as(TRIES)
            .bind(place.target_id.uuid())
            .bind(place.project.as_str())
            .bind(since)
            .bind(i64::from(bounds::REMEDY_TRIES))
            .fetch_all(conn)
            .await)?;
        let at = At::new("drift_remedies", place.target_id);
        let tries = rows.into_iter().map(|(when, number)| {
            Ok(Try {
                number: at.small("number", number)?,
                at: when,
            })
        });
        tries.collect()
    }

    /// When the newest act of an environment was.
    pub async fn newest_remedy(&mut self, environment: EnvironmentId) -> Result<Option<DateTime<Utc>>> {
        Ok(on!(self, |conn| sqlx::query_scalar(NEWEST_IN_ENVIRONMENT)
            .bind(environment.uuid())
            .fetch_optional(conn)
            .await)?)
    }

    /// When an agent last said something new about a target.
    pub async fn looked_at(&mut self, target: TargetId) -> Result<Option<DateTime<Utc>>> {
        Ok(on!(self, |conn| sqlx::query_scalar(LOOKED_AT)
            .bind(target.uuid())
            .fetch_optional(conn)
            .await)?)
    }

    /// Records an act that is about `drift`, all of one place. What was given up there is taken up again.
    pub async fn insert_remedy(
        &mut self,
        target: TargetId,
        drift: &[DriftId],
        remedy: &Remedy,
    ) -> Result<()> {
        for id in drift {
            on!(self, |conn| sqlx::query(INSERT)
                .bind(id.uuid())
                .bind(remedy.promotion.uuid())
                .bind(i64::from(remedy.number))
                .bind(remedy.at)
                .execute(conn)
                .await
                .map(drop))?;
            on!(self, |conn| sqlx::query(TAKE_UP)
                .bind(id.uuid())
                .execute(conn)
                .await
                .map(drop))?;
        }
        self.note(Change::Drift(target));
        Ok(())
    }

    /// Remediation gives an open observation up: from now on it is at least [`Severity::High`]. Whether that is news.
    pub async fn give_up_drift(
        &mut self,
        target: TargetId,
        one: &OpenDrift,
        now: DateTime<Utc>,
    ) -> Result<bool> {
        let severity = drift::after_giving_up(one.severity);
        let changed = on!(self, |conn| sqlx::query(GIVE_UP)
            .bind(one.id.uuid())
            .bind(now)
            .bind(severity.as_str())
            .execute(conn)
            .await
            .map(|done| done.rows_affected()))?;
        if changed > 0 {
            self.note(Change::Drift(target));
        }
        Ok(changed > 0)
    }
}
