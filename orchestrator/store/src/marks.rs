//! Quality marks of releases, insert-only, and which releases an environment could go back to.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sealift_common::{
    id::{EnvironmentId, ProjectId, ReleaseId},
    rollback::Candidate,
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Mark, Result, StoreError, Tx,
    engine::{of_ids, on, statements},
    rows::{At, all, one},
};

/// Most activations that are looked at for candidates: the newest.
const ACTIVATIONS: i64 = 500;

statements! {
    INSERT = { "INSERT INTO quality_marks (release_id, mark, reason, actor, at) VALUES ($1, $2, $3, $4, $5)" };
    OF_RELEASE = {
        "SELECT release_id, mark, reason, actor, at FROM quality_marks WHERE release_id = $1 ORDER BY id DESC LIMIT $2"
    };
    CANDIDATES = {
        "SELECT r.id, r.number, r.content, a.since, ",
        "(SELECT m.mark FROM quality_marks m WHERE m.release_id = r.id ORDER BY m.id DESC LIMIT 1) AS mark ",
        "FROM active_components a JOIN releases r ON r.id = a.release_id ",
        "WHERE a.environment_id = $1 AND a.project_id = $2 ORDER BY a.id DESC LIMIT $3"
    };
    CANDIDATE = {
        "SELECT r.id, r.number, r.content, r.created_at AS since, ",
        "(SELECT m.mark FROM quality_marks m WHERE m.release_id = r.id ORDER BY m.id DESC LIMIT 1) AS mark ",
        "FROM releases r WHERE r.id = $1"
    };
}

const NEWEST_OF: &str = concat!(
    "SELECT m.release_id, m.mark, m.reason, m.actor, m.at FROM releases r JOIN quality_marks m ",
    "ON m.id = (SELECT MAX(n.id) FROM quality_marks n WHERE n.release_id = r.id) WHERE r.id IN ("
);

#[derive(FromRow)]
struct MarkRow {
    release_id: Uuid,
    mark: String,
    reason: String,
    actor: String,
    at: DateTime<Utc>,
}

impl TryFrom<MarkRow> for Mark {
    type Error = StoreError;

    fn try_from(row: MarkRow) -> Result<Self> {
        let at = At::new("quality_marks", row.release_id);
        Ok(Self {
            release_id: row.release_id.into(),
            mark: at.parse("mark", &row.mark)?,
            reason: row.reason,
            actor: row.actor,
            at: row.at,
        })
    }
}

#[derive(FromRow)]
struct CandidateRow {
    id: Uuid,
    number: i64,
    content: String,
    since: DateTime<Utc>,
    mark: Option<String>,
}

impl TryFrom<CandidateRow> for Candidate {
    type Error = StoreError;

    fn try_from(row: CandidateRow) -> Result<Self> {
        let at = At::new("releases", row.id);
        Ok(Self {
            release: row.id.into(),
            number: at.number("number", row.number)?,
            content: at.parse("content", &row.content)?,
            mark: at.parse_opt("mark", row.mark.as_deref())?,
            active_since: row.since,
        })
    }
}

impl Tx {
    /// Adds a mark to a release; the newest one counts.
    pub async fn insert_mark(&mut self, mark: &Mark) -> Result<()> {
        on!(self, |conn| sqlx::query(INSERT)
            .bind(mark.release_id.uuid())
            .bind(mark.mark.as_str())
            .bind(mark.reason.as_str())
            .bind(mark.actor.as_str())
            .bind(mark.at)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// The marks of a release, the newest first, at most so many.
    pub async fn marks_of_release(&mut self, release: ReleaseId, most: u32) -> Result<Vec<Mark>> {
        let rows: Vec<MarkRow> = on!(self, |conn| sqlx::query_as(OF_RELEASE)
            .bind(release.uuid())
            .bind(i64::from(most))
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// The newest mark of each of the releases that has one. At most a page of releases.
    pub async fn newest_marks(&mut self, releases: &[ReleaseId]) -> Result<BTreeMap<ReleaseId, Mark>> {
        if releases.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows: Vec<MarkRow> = on!(self, |conn| {
            let ids = releases.iter().map(|release| release.uuid());
            let mut query = of_ids(NEWEST_OF, ids, ")");
            query.build_query_as().fetch_all(conn).await
        })?;
        let marks: Vec<Mark> = all(rows)?;
        Ok(marks.into_iter().map(|mark| (mark.release_id, mark)).collect())
    }

    /// The releases of a project that were active in an environment, each with the last time that it became so.
    pub async fn rollback_candidates(
        &mut self,
        environment: EnvironmentId,
        project: ProjectId,
    ) -> Result<Vec<Candidate>> {
        let rows: Vec<CandidateRow> = on!(self, |conn| sqlx::query_as(CANDIDATES)
            .bind(environment.uuid())
            .bind(project.uuid())
            .bind(ACTIVATIONS)
            .fetch_all(conn)
            .await)?;
        let mut newest: BTreeMap<ReleaseId, Candidate> = BTreeMap::new();
        for row in rows {
            let candidate: Candidate = row.try_into()?;
            newest.entry(candidate.release).or_insert(candidate);
        }
        Ok(newest.into_values().collect())
    }

    /// A release as something to go back from, whether or not it was ever active.
    pub async fn rollback_candidate(&mut self, release: ReleaseId) -> Result<Option<Candidate>> {
        let row: Option<CandidateRow> = on!(self, |conn| sqlx::query_as(CANDIDATE)
            .bind(release.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }
}
