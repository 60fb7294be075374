//! History: what was brought to an environment, newest first, whole or of one project, component or target. Each list runs along an
//! index of its own, so that it costs the same after a year.

use chrono::{DateTime, Utc};
use sealift_common::{
    id::{ComponentId, EnvironmentId, JobId, ProjectId, PromotionId, ReleaseId, TargetId},
    job::JobPhase,
    name::ProjectRef,
    outcome::Fate,
    task::TaskPhase,
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Cursor, Page, PageRequest, Result, StoreError, Tx,
    engine::{on, statements},
    rows::{At, all, count},
};

/// `next` is what became active of the project after the job ended: 2 by undoing the job's release, 1 otherwise. `stands` says of jobs
/// for a part of the environment whether a target still has what such a job brought or found there; it reads the tasks of that job.
/// Both are for jobs that activated nothing; those that did are told by the rows that they made active.
macro_rules! select {
    ($state:literal) => {
        concat!(
            "SELECT j.id, j.promotion_id, j.release_id, r.repository, r.project, r.number, j.state, ",
            $state,
            " AS task_state, p.requested_by, p.change_summary, j.created_at, j.started_at, j.finished_at, \
             (SELECT COUNT(*) FROM active_components a WHERE a.job_id = j.id) AS activated, \
             (SELECT COUNT(*) FROM active_components a WHERE a.job_id = j.id AND a.superseded_at IS NOT NULL) \
             AS superseded, \
             (SELECT COUNT(*) FROM jobs u WHERE u.rollback_of = j.id AND u.state = 'succeeded') AS undone, \
             CAST(CASE WHEN p.superseded_by IS NULL THEN 0 ELSE 1 END AS BIGINT) AS replaced, \
             CAST((SELECT CASE WHEN x.release_id = j.release_id THEN 2 ELSE 1 END FROM active_components n \
             JOIN jobs u ON u.id = n.job_id LEFT JOIN jobs x ON x.id = u.rollback_of \
             WHERE n.environment_id = j.environment_id AND n.project_id = r.project_id AND n.since > j.finished_at \
             ORDER BY n.since LIMIT 1) AS BIGINT) AS next, \
             CAST(CASE WHEN p.scope IS NULL OR j.rollback_of IS NOT NULL THEN NULL WHEN EXISTS (SELECT 1 FROM tasks o \
             JOIN target_current c ON c.target_id = o.target_id AND c.repository = r.repository AND c.project = r.project \
             WHERE o.job_id = j.id AND c.release_id = j.release_id AND c.since <= j.finished_at) THEN 1 ELSE 0 END AS BIGINT) \
             AS stands "
        )
    };
}

macro_rules! joins {
    () => {
        "JOIN releases r ON r.id = j.release_id JOIN promotions p ON p.id = j.promotion_id "
    };
}

statements! {
    OF_ENVIRONMENT = {
        select!("NULL"), "FROM jobs j ", joins!(),
        "WHERE j.environment_id = $1 AND j.id < $2 ORDER BY j.id DESC LIMIT $3"
    };
    OF_SUBJECT = {
        select!("NULL"), "FROM job_subjects s JOIN jobs j ON j.id = s.job_id ", joins!(),
        "WHERE s.environment_id = $1 AND s.subject_id = $2 AND s.job_id < $3 ORDER BY s.job_id DESC LIMIT $4"
    };
    OF_TARGET = {
        select!("t.state"), "FROM tasks t JOIN jobs j ON j.id = t.job_id ", joins!(),
        "WHERE t.target_id = $1 AND t.job_id < $2 ORDER BY t.job_id DESC LIMIT $3"
    };
    RELEASES_SINCE = {
        "SELECT COUNT(DISTINCT release_id) FROM active_components ",
        "WHERE environment_id = $1 AND project_id = $2 AND since > $3 AND release_id <> $4"
    };
}

/// What a history is narrowed to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HistoryScope {
    /// All of the environment.
    All,
    /// One project.
    Project(ProjectId),
    /// Releases with this component.
    Component(ComponentId),
    /// What concerned one target.
    Target(TargetId),
}

/// One job in the history of an environment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HistoryRow {
    /// The job.
    pub job: JobId,
    /// The promotion that it carried out.
    pub promotion: PromotionId,
    /// The release.
    pub release: ReleaseId,
    /// Its project.
    pub project: ProjectRef,
    /// Its number there.
    pub number: u64,
    /// What its outcome follows from.
    pub fate: Fate,
    /// The phase of the target's task, in the history of a target.
    pub task: Option<TaskPhase>,
    /// Who asked for it.
    pub requested_by: String,
    /// Why, for people.
    pub change_summary: String,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it began.
    pub started_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub finished_at: Option<DateTime<Utc>>,
}

#[derive(FromRow)]
struct Columns {
    id: Uuid,
    promotion_id: Uuid,
    release_id: Uuid,
    repository: String,
    project: String,
    number: i64,
    state: String,
    task_state: Option<String>,
    requested_by: String,
    change_summary: String,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
    activated: i64,
    superseded: i64,
    undone: i64,
    replaced: i64,
    next: Option<i64>,
    stands: Option<i64>,
}

impl Columns {
    fn fate(&self, phase: JobPhase) -> Fate {
        let gone = self.activated == 0 && self.stands.map_or(self.next.is_some(), |stands| stands == 0);
        Fate {
            phase,
            activated: count(self.activated),
            superseded: count(self.superseded),
            gone,
            undone: self.undone > 0 || (gone && self.next == Some(2)),
            replaced: self.replaced > 0,
        }
    }
}

impl TryFrom<Columns> for HistoryRow {
    type Error = StoreError;

    fn try_from(row: Columns) -> Result<Self> {
        let at = At::new("jobs", row.id);
        let fate = row.fate(at.parse("state", &row.state)?);
        Ok(Self {
            job: row.id.into(),
            promotion: row.promotion_id.into(),
            release: row.release_id.into(),
            project: ProjectRef {
                repository: row.repository,
                project: row.project,
            },
            number: at.number("number", row.number)?,
            fate,
            task: at.parse_opt("task_state", row.task_state.as_deref())?,
            requested_by: row.requested_by,
            change_summary: row.change_summary,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
        })
    }
}

impl Tx {
    /// Jobs of an environment, newest first.
    pub async fn history(
        &mut self,
        environment: EnvironmentId,
        scope: HistoryScope,
        page: &PageRequest,
    ) -> Result<Page<HistoryRow>> {
        let below = page.below_id()?;
        let subject = match scope {
            HistoryScope::All | HistoryScope::Target(_) => None,
            HistoryScope::Project(id) => Some(ProjectId::uuid(id)),
            HistoryScope::Component(id) => Some(ComponentId::uuid(id)),
        };
        let rows: Vec<Columns> = match (scope, subject) {
            (_, Some(subject)) => on!(self, |conn| sqlx::query_as(OF_SUBJECT)
                .bind(environment.uuid())
                .bind(subject)
                .bind(below)
                .bind(page.limit())
                .fetch_all(conn)
                .await)?,
            (HistoryScope::Target(target), None) => on!(self, |conn| sqlx::query_as(OF_TARGET)
                .bind(TargetId::uuid(target))
                .bind(below)
                .bind(page.limit())
                .fetch_all(conn)
                .await)?,
            (_, None) => on!(self, |conn| sqlx::query_as(OF_ENVIRONMENT)
                .bind(environment.uuid())
                .bind(below)
                .bind(page.limit())
                .fetch_all(conn)
                .await)?,
        };
        Ok(Page::of(all(rows)?, page, |row: &HistoryRow| {
            Cursor::of(&[&row.job])
        }))
    }

    /// How many other releases of a project an environment has got since a time.
    pub async fn releases_since(
        &mut self,
        environment: EnvironmentId,
        project: ProjectId,
        release: ReleaseId,
        since: DateTime<Utc>,
    ) -> Result<u32> {
        let found: i64 = on!(self, |conn| sqlx::query_scalar(RELEASES_SINCE)
            .bind(environment.uuid())
            .bind(project.uuid())
            .bind(since)
            .bind(release.uuid())
            .fetch_one(conn)
            .await)?;
        Ok(count(found))
    }
}
