//! Lanes: tickets, who waits, whose turn it is, and what somebody who comes now would find.

use chrono::{DateTime, Utc};
use sealift_common::{
    id::{EnvironmentId, JobId, ProjectId, TargetId},
    job::JobState,
    promotion::PromotionKind,
};
use sqlx::types::Json;
use uuid::Uuid;

use crate::{
    Job, Result, Tx,
    engine::{on, statements},
    jobs::{JobRow, columns},
    rows::{At, count, int, one},
};

/// Jobs `o` of the environment that are about the same project as the job in question.
macro_rules! same_project {
    () => {
        "JOIN releases p ON p.id = o.release_id JOIN releases q ON q.project_id = p.project_id \
         WHERE o.environment_id = $1 AND q.id = jobs.release_id "
    };
}

/// Nothing keeps the queued job `jobs` of the environment from starting but those before it: its project is not held (going back
/// always may), and no other job of it is under way, paused or being undone by another rollback.
macro_rules! may_start {
    () => {
        concat!(
            "(jobs.rollback_of IS NOT NULL OR NOT EXISTS (SELECT 1 FROM holds h JOIN releases r ON r.project_id = h.project_id \
             WHERE h.environment_id = $1 AND h.lifted_at IS NULL AND r.id = jobs.release_id)) \
             AND NOT EXISTS (SELECT 1 FROM jobs o ",
            same_project!(),
            "AND o.state IN ('running', 'paused')) AND NOT EXISTS (SELECT 1 FROM jobs o ",
            same_project!(),
            "AND o.state = 'rolling_back' AND (jobs.rollback_of IS NULL OR jobs.rollback_of <> o.id)) "
        )
    };
}

statements! {
    NEXT_TICKET = {
        "INSERT INTO lanes (environment_id, last_ticket) VALUES ($1, 1) ON CONFLICT (environment_id) ",
        "DO UPDATE SET last_ticket = lanes.last_ticket + 1 RETURNING last_ticket"
    };
    LOCK = {
        "INSERT INTO lanes (environment_id, last_ticket) VALUES ($1, 0) ON CONFLICT (environment_id) ",
        "DO UPDATE SET last_ticket = lanes.last_ticket"
    };
    WITH_QUEUED = { "SELECT DISTINCT environment_id FROM jobs WHERE state = 'queued'" };
    HEAD = {
        "SELECT ", columns!(), " FROM jobs WHERE environment_id = $1 AND state = 'queued' AND ", may_start!(),
        "ORDER BY CASE WHEN rollback_of IS NULL THEN 1 ELSE 0 END, ticket LIMIT 1"
    };
    IN_MOTION = {
        "SELECT COUNT(*) FROM jobs WHERE environment_id = $1 AND state IN ('running', 'paused')"
    };
    QUEUED = { "SELECT COUNT(*), COUNT(rollback_of) FROM jobs WHERE environment_id = $1 AND state = 'queued'" };
    START_FIRST = {
        "SELECT COUNT(DISTINCT n.project_id) FROM jobs JOIN releases n ON n.id = jobs.release_id ",
        "WHERE jobs.environment_id = $1 AND jobs.state = 'queued' AND n.project_id <> $2 ",
        "AND ($3 OR jobs.rollback_of IS NOT NULL) AND ", may_start!()
    };
    PROJECT_UNDER_WAY = {
        "SELECT COUNT(*) FROM (",
        "SELECT j.id FROM jobs j JOIN releases r ON r.id = j.release_id ",
        "WHERE j.environment_id = $1 AND j.state IN ('running', 'paused') AND r.project_id = $2 ",
        "UNION ALL SELECT j.id FROM jobs j JOIN releases r ON r.id = j.release_id ",
        "WHERE j.environment_id = $1 AND j.state = 'rolling_back' AND r.project_id = $2 AND j.id <> $3) found"
    };
    PROMOTION_UNDER_WAY = {
        "SELECT ", columns!(), " FROM jobs WHERE environment_id = $1 AND state IN ('running', 'paused') ",
        "AND rollback_of IS NULL AND EXISTS (SELECT 1 FROM releases r WHERE r.id = jobs.release_id AND r.project_id = $2) ",
        "LIMIT 1"
    };
    PROJECT_WAITS = {
        "SELECT j.id, j.rollback_of, p.scope FROM jobs j JOIN releases r ON r.id = j.release_id ",
        "JOIN promotions p ON p.id = j.promotion_id ",
        "WHERE j.environment_id = $1 AND j.state = 'queued' AND r.project_id = $2 ORDER BY j.ticket LIMIT $3"
    };
    QUEUED_UP_TO = {
        "SELECT COUNT(*) FROM jobs WHERE environment_id = $1 AND state = 'queued' ",
        "AND (CASE WHEN rollback_of IS NULL THEN 1 ELSE 0 END, ticket) <= ($2, $3)"
    };
    RECENT_TIMES = {
        "SELECT started_at, finished_at FROM jobs WHERE environment_id = $1 AND state = 'succeeded' ",
        "AND started_at IS NOT NULL AND finished_at IS NOT NULL ORDER BY finished_at DESC LIMIT $2"
    };
}

/// Who would come into a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Newcomer {
    /// The lane's environment.
    pub environment: EnvironmentId,
    /// Project of the release.
    pub project: ProjectId,
    /// The job that it would undo; `None` when it is no rollback.
    pub undoes: Option<JobId>,
}

/// A job of the newcomer's project that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WaitingJob {
    /// The job.
    pub id: JobId,
    /// What it is for.
    pub kind: PromotionKind,
    /// Only these targets; `None` is all of the environment.
    pub scope: Option<Vec<TargetId>>,
}

/// Job, the job that it undoes, and the scope of its promotion.
type WaitingRow = (Uuid, Option<Uuid>, Option<Json<Vec<TargetId>>>);

/// What a newcomer finds in a lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LaneView {
    /// Jobs that run or are paused.
    pub running: u32,
    /// Jobs that wait before it.
    pub ahead: u32,
    /// So many of other projects start first when there is room: of each one, and none that something else keeps back.
    pub start_first: u32,
    /// Whether another job of its project runs, is paused, or is being undone by another rollback.
    pub project_under_way: bool,
    /// The jobs of its project that wait, by ticket, the first [`PROJECT_WAITERS`] of them.
    pub project_waits: Vec<WaitingJob>,
}

/// Most waiting jobs of its project that a newcomer is told of.
pub const PROJECT_WAITERS: u32 = 1_000;

impl Tx {
    /// The next ticket of an environment's lane, from 1 without gap. Others wait until this transaction ends.
    pub async fn next_ticket(&mut self, environment: EnvironmentId) -> Result<u64> {
        let ticket: i64 = on!(self, |conn| sqlx::query_scalar(NEXT_TICKET)
            .bind(environment.uuid())
            .fetch_one(conn)
            .await)?;
        At::new("lanes", environment).number("last_ticket", ticket)
    }

    /// Makes all others who would come into the lane, or start in it, wait until this transaction ends: what [`Tx::lane_view`] tells
    /// stays true of those that wait. (They end all the same.)
    pub async fn lock_lane(&mut self, environment: EnvironmentId) -> Result<()> {
        on!(self, |conn| sqlx::query(LOCK)
            .bind(environment.uuid())
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// What somebody who comes now would find in a lane.
    pub async fn lane_view(&mut self, who: Newcomer) -> Result<LaneView> {
        // Rollbacks go first.
        let is_deploy = who.undoes.is_none();
        // In this order: a job that starts between two of these statements (on PostgreSQL, where they do not see one instant) is
        // counted twice, and never left out.
        let (queued, rollbacks) = self.waiting(who.environment).await?;
        let waits: Vec<WaitingRow> = on!(self, |conn| sqlx::query_as(PROJECT_WAITS)
            .bind(who.environment.uuid())
            .bind(who.project.uuid())
            .bind(i64::from(PROJECT_WAITERS))
            .fetch_all(conn)
            .await)?;
        let start_first: i64 = on!(self, |conn| sqlx::query_scalar(START_FIRST)
            .bind(who.environment.uuid())
            .bind(who.project.uuid())
            .bind(is_deploy)
            .fetch_one(conn)
            .await)?;
        let under_way: i64 = on!(self, |conn| sqlx::query_scalar(PROJECT_UNDER_WAY)
            .bind(who.environment.uuid())
            .bind(who.project.uuid())
            .bind(who.undoes.map_or(Uuid::nil(), JobId::uuid))
            .fetch_one(conn)
            .await)?;
        let waiting = |(id, undoes, scope): (Uuid, Option<Uuid>, Option<Json<_>>)| WaitingJob {
            id: id.into(),
            kind: PromotionKind::of(undoes.map(JobId::from)),
            scope: scope.map(|scope| scope.0),
        };
        Ok(LaneView {
            running: self.running_in_lane(who.environment).await?,
            ahead: if is_deploy { queued } else { rollbacks },
            start_first: count(start_first),
            project_under_way: under_way > 0,
            project_waits: waits.into_iter().map(waiting).collect(),
        })
    }

    /// Lanes in which jobs wait.
    pub async fn lanes_with_queued(&mut self) -> Result<Vec<EnvironmentId>> {
        let ids: Vec<Uuid> = on!(self, |conn| sqlx::query_scalar(WITH_QUEUED).fetch_all(conn).await)?;
        Ok(ids.into_iter().map(EnvironmentId::from).collect())
    }

    /// The queued job whose turn is next: rollbacks first, then by ticket. Jobs of a project that is held do not count, nor those
    /// of a project of which another job is under way, paused or being undone by another rollback: however wide the lane, never
    /// more than one release of a project is on its way.
    pub async fn lane_head(&mut self, environment: EnvironmentId) -> Result<Option<Job>> {
        let row: Option<JobRow> = on!(self, |conn| sqlx::query_as(HEAD)
            .bind(environment.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// The job of a project that runs or is paused in a lane and is no rollback; there is at most one.
    pub async fn promotion_under_way(
        &mut self,
        environment: EnvironmentId,
        project: ProjectId,
    ) -> Result<Option<Job>> {
        let row: Option<JobRow> = on!(self, |conn| sqlx::query_as(PROMOTION_UNDER_WAY)
            .bind(environment.uuid())
            .bind(project.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// How many jobs of a lane run or are paused.
    pub async fn running_in_lane(&mut self, environment: EnvironmentId) -> Result<u32> {
        let running: i64 = on!(self, |conn| sqlx::query_scalar(IN_MOTION)
            .bind(environment.uuid())
            .fetch_one(conn)
            .await)?;
        Ok(count(running))
    }

    /// How many jobs of a lane wait.
    pub async fn queued_in_lane(&mut self, environment: EnvironmentId) -> Result<u32> {
        Ok(self.waiting(environment).await?.0)
    }

    /// How many jobs of a lane wait, and how many of these are rollbacks.
    async fn waiting(&mut self, environment: EnvironmentId) -> Result<(u32, u32)> {
        let (queued, rollbacks): (i64, i64) = on!(self, |conn| sqlx::query_as(QUEUED)
            .bind(environment.uuid())
            .fetch_one(conn)
            .await)?;
        Ok((count(queued), count(rollbacks)))
    }

    /// Place of a queued job among those that wait, from 1, rollbacks first; 0 when it does not wait.
    pub async fn lane_position(&mut self, job: &Job) -> Result<u32> {
        if job.state != JobState::Queued {
            return Ok(0);
        }
        let ticket = int(job.ticket)?;
        let position: i64 = on!(self, |conn| sqlx::query_scalar(QUEUED_UP_TO)
            .bind(job.environment_id.uuid())
            .bind(i64::from(job.rollback_of.is_none()))
            .bind(ticket)
            .fetch_one(conn)
            .await)?;
        Ok(count(position))
    }

    /// How long the newest succeeded jobs of an environment ran, in seconds, newest first.
    pub async fn recent_job_seconds(&mut self, environment: EnvironmentId, most: u32) -> Result<Vec<f64>> {
        let rows: Vec<(DateTime<Utc>, DateTime<Utc>)> = on!(self, |conn| sqlx::query_as(RECENT_TIMES)
            .bind(environment.uuid())
            .bind(i64::from(most))
            .fetch_all(conn)
            .await)?;
        let seconds = |(from, to): (DateTime<Utc>, DateTime<Utc>)| (to - from).as_seconds_f64();
        Ok(rows.into_iter().map(seconds).collect())
    }
}
