//! Runs of maintenance. At most one of a kind is not over.

use chrono::{DateTime, Utc};
use sealift_common::{
    id::MaintenanceRunId,
    maintenance::{MaintenanceKind, MaintenanceState, Progress},
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Change, Cursor, Page, PageRequest, Result, StoreError, Tx,
    engine::{on, statements},
    rows::{At, all, int, one},
};

macro_rules! columns {
    () => {
        "id, kind, state, requested_by, created_at, started_at, ended_at, position, items, problems, first_problem, summary"
    };
}

statements! {
    INSERT = {
        "INSERT INTO maintenance_runs (id, kind, state, requested_by, created_at) VALUES ($1, $2, 'pending', $3, $4) ",
        "ON CONFLICT DO NOTHING"
    };
    OPEN = { "SELECT ", columns!(), " FROM maintenance_runs WHERE ended_at IS NULL ORDER BY id LIMIT 1" };
    OPEN_OF_KIND = { "SELECT ", columns!(), " FROM maintenance_runs WHERE kind = $1 AND ended_at IS NULL" };
    NEWEST = { "SELECT created_at FROM maintenance_runs WHERE kind = $1 ORDER BY id DESC LIMIT 1" };
    LIST = { "SELECT ", columns!(), " FROM maintenance_runs WHERE id < $1 ORDER BY id DESC LIMIT $2" };
    BEGIN = {
        "UPDATE maintenance_runs SET state = 'in_progress', started_at = $2 WHERE id = $1 AND state = 'pending'"
    };
    PROGRESS = {
        "UPDATE maintenance_runs SET position = $2, items = $3, problems = $4, first_problem = $5 ",
        "WHERE id = $1 AND state = 'in_progress'"
    };
    END = {
        "UPDATE maintenance_runs SET state = $2, ended_at = $3, summary = $4 WHERE id = $1 AND state = 'in_progress'"
    };
    PURGE = { "DELETE FROM maintenance_runs WHERE ended_at < $1" };
}

/// A run of maintenance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaintenanceRun {
    /// Identifier.
    pub id: MaintenanceRunId,
    /// What it does.
    pub kind: MaintenanceKind,
    /// Where it stands.
    pub state: MaintenanceState,
    /// Who asked for it.
    pub requested_by: String,
    /// When.
    pub created_at: DateTime<Utc>,
    /// When it began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub ended_at: Option<DateTime<Utc>>,
    /// How far it is.
    pub progress: Progress,
    /// The result in one line; empty before the end.
    pub summary: String,
}

#[derive(FromRow)]
struct RunRow {
    id: Uuid,
    kind: String,
    state: String,
    requested_by: String,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    ended_at: Option<DateTime<Utc>>,
    position: String,
    items: i64,
    problems: i64,
    first_problem: String,
    summary: String,
}

impl TryFrom<RunRow> for MaintenanceRun {
    type Error = StoreError;

    fn try_from(row: RunRow) -> Result<Self> {
        let at = At::new("maintenance_runs", row.id);
        Ok(Self {
            id: row.id.into(),
            kind: at.parse("kind", &row.kind)?,
            state: at.parse("state", &row.state)?,
            requested_by: row.requested_by,
            created_at: row.created_at,
            started_at: row.started_at,
            ended_at: row.ended_at,
            progress: Progress {
                position: row.position,
                items: at.number("items", row.items)?,
                problems: at.number("problems", row.problems)?,
                first_problem: row.first_problem,
            },
            summary: row.summary,
        })
    }
}

impl Tx {
    /// Makes a run that waits, unless one of its kind is not over; gives the one that is not.
    pub async fn request_maintenance(
        &mut self,
        kind: MaintenanceKind,
        requested_by: &str,
        now: DateTime<Utc>,
    ) -> Result<MaintenanceRun> {
        on!(self, |conn| sqlx::query(INSERT)
            .bind(MaintenanceRunId::new(now).uuid())
            .bind(kind.as_str())
            .bind(requested_by)
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        self.note(Change::Maintenance);
        let row: Option<RunRow> = on!(self, |conn| sqlx::query_as(OPEN_OF_KIND)
            .bind(kind.as_str())
            .fetch_optional(conn)
            .await)?;
        // It may have ended in this very moment.
        one(row)?.ok_or(StoreError::Conflict)
    }

    /// The oldest run that is not over.
    pub async fn open_maintenance(&mut self) -> Result<Option<MaintenanceRun>> {
        let row: Option<RunRow> = on!(self, |conn| sqlx::query_as(OPEN).fetch_optional(conn).await)?;
        one(row)
    }

    /// When the newest run of a kind was made.
    pub async fn newest_maintenance(&mut self, kind: MaintenanceKind) -> Result<Option<DateTime<Utc>>> {
        Ok(on!(self, |conn| sqlx::query_scalar(NEWEST)
            .bind(kind.as_str())
            .fetch_optional(conn)
            .await)?)
    }

    /// Runs, newest first.
    pub async fn list_maintenance(&mut self, page: &PageRequest) -> Result<Page<MaintenanceRun>> {
        let below = page.below_id()?;
        let rows: Vec<RunRow> = on!(self, |conn| sqlx::query_as(LIST)
            .bind(below)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        Ok(Page::of(all(rows)?, page, |run: &MaintenanceRun| {
            Cursor::of(&[&run.id])
        }))
    }

    /// A run that waits begins.
    pub async fn begin_maintenance(&mut self, id: MaintenanceRunId, now: DateTime<Utc>) -> Result<()> {
        let begun = on!(self, |conn| sqlx::query(BEGIN)
            .bind(id.uuid())
            .bind(now)
            .execute(conn)
            .await
            .map(|done| done.rows_affected()))?;
        moved(begun)
    }

    /// A run that is under way got so far.
    pub async fn progress_maintenance(&mut self, id: MaintenanceRunId, progress: &Progress) -> Result<()> {
        let (items, problems) = (int(progress.items)?, int(progress.problems)?);
        let written = on!(self, |conn| sqlx::query(PROGRESS)
            .bind(id.uuid())
            .bind(progress.position.as_str())
            .bind(items)
            .bind(problems)
            .bind(progress.first_problem.as_str())
            .execute(conn)
            .await
            .map(|done| done.rows_affected()))?;
        self.note(Change::Maintenance);
        moved(written)
    }

    /// A run that is under way ends, as its progress says.
    pub async fn end_maintenance(
        &mut self,
        run: &MaintenanceRun,
        progress: &Progress,
        now: DateTime<Utc>,
    ) -> Result<()> {
        self.progress_maintenance(run.id, progress).await?;
        let summary = progress.summary(run.kind);
        let ended = on!(self, |conn| sqlx::query(END)
            .bind(run.id.uuid())
            .bind(progress.verdict().as_str())
            .bind(now)
            .bind(summary.as_str())
            .execute(conn)
            .await
            .map(|done| done.rows_affected()))?;
        moved(ended)
    }

    /// Forgets runs that ended before `before`; gives how many.
    pub async fn purge_maintenance(&mut self, before: DateTime<Utc>) -> Result<u64> {
        Ok(on!(self, |conn| sqlx::query(PURGE)
            .bind(before)
            .execute(conn)
            .await
            .map(|done| done.rows_affected()))?)
    }
}

/// Somebody else moved the run first.
const fn moved(rows: u64) -> Result<()> {
    if rows == 1 {
        Ok(())
    } else {
        Err(StoreError::Conflict)
    }
}
