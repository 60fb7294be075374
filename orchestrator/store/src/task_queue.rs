//! Tasks as the scheduler looks for them: how many stand where, and the next few that need something. A count runs
//! through one index of the job's tasks; rows are read in bounded pages.

use chrono::{DateTime, Utc};
use sealift_common::{
    failure::Failure,
    id::JobId,
    name::Name,
    rollout::Tally,
    task::{SkipReason, TaskPhase},
};

use crate::{
    Result, Task, Tx,
    engine::{on, statements},
    rows::{At, all, count},
    tasks::live,
    tasks_rows::{TaskRow, columns},
};

/// No wave has this number.
const NO_WAVE: i64 = -1;

statements! {
    TALLY = {
        "SELECT state, skip_reason, CAST(CASE WHEN wave = $2 THEN 1 ELSE 0 END AS BIGINT), COUNT(*), MAX(finished_at), MAX(started_at) ",
        "FROM tasks WHERE job_id = $1 GROUP BY 1, 2, 3"
    };
    FIRST_FAILURE = {
        "SELECT failure FROM tasks WHERE job_id = $1 AND state = 'failed' ORDER BY wave, target LIMIT 1"
    };
    FREE_OF_WAVE = {
        "SELECT ", columns!("t."), " FROM tasks t WHERE t.job_id = $1 AND t.state = 'pending' AND t.wave = $2 ",
        "AND t.target > $3 AND NOT EXISTS (SELECT 1 FROM tasks o WHERE o.target_id = t.target_id AND o.", live!(), ") ",
        "ORDER BY t.target LIMIT $4"
    };
    SUCCEEDED_OF_WAVE = {
        "SELECT ", columns!(""), " FROM tasks WHERE job_id = $1 AND state = 'succeeded' AND wave = $2 AND target > $3 ",
        "ORDER BY target LIMIT $4"
    };
    PENDING = {
        "SELECT ", columns!(""), " FROM tasks WHERE job_id = $1 AND state = 'pending' ORDER BY wave, target LIMIT $2"
    };
    BETWEEN_ATTEMPTS = {
        "SELECT ", columns!(""), " FROM tasks WHERE job_id = $1 AND step = 'retry_wait' LIMIT $2"
    };
    UNDATED = {
        "SELECT ", columns!(""), " FROM tasks WHERE job_id = $1 AND step = 'retry_wait' AND retry_at IS NULL LIMIT $2"
    };
    DUE_AGAIN = {
        "SELECT ", columns!(""), " FROM tasks WHERE job_id = $1 AND step = 'retry_wait' AND retry_at <= $2 ",
        "AND target > $3 ORDER BY target LIMIT $4"
    };
    TO_STOP = {
        "SELECT ", columns!(""), " FROM tasks WHERE job_id = $1 AND ", live!(),
        " AND (wanted = 'run' OR step = 'retry_wait') LIMIT $2"
    };
}

/// Where the tasks of a job stand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct JobTally {
    /// All of them.
    pub all: Tally,
    /// Those of the wave that was asked about.
    pub wave: Tally,
    /// When the newest success of that wave was.
    pub last_success: Option<DateTime<Utc>>,
    /// When the newest first order of that wave was made.
    pub last_begun: Option<DateTime<Utc>>,
}

impl Tx {
    /// Counts the tasks of a job, and those of one of its waves.
    pub async fn tally_tasks(&mut self, job: JobId, wave: Option<u32>) -> Result<JobTally> {
        type Row = (
            String,
            Option<String>,
            i64,
            i64,
            Option<DateTime<Utc>>,
            Option<DateTime<Utc>>,
        );
        let rows: Vec<Row> = on!(self, |conn| sqlx::query_as(TALLY)
            .bind(job.uuid())
            .bind(wave.map_or(NO_WAVE, i64::from))
            .fetch_all(conn)
            .await)?;
        let at = At::new("tasks", job);
        let mut tally = JobTally::default();
        for (state, reason, here, tasks, finished_at, started_at) in rows {
            let phase: TaskPhase = at.parse("state", &state)?;
            let reason: Option<SkipReason> = at.parse_opt("skip_reason", reason.as_deref())?;
            tally.all.add(phase, reason, count(tasks));
            if here == 1 {
                tally.wave.add(phase, reason, count(tasks));
                tally.last_begun = tally.last_begun.max(started_at);
                if phase == TaskPhase::Succeeded {
                    tally.last_success = tally.last_success.max(finished_at);
                }
            }
        }
        Ok(tally)
    }

    /// Why the first task of a job failed, by wave and target.
    pub async fn first_task_failure(&mut self, job: JobId) -> Result<Option<Failure>> {
        let failure: Option<String> = on!(self, |conn| sqlx::query_scalar(FIRST_FAILURE)
            .bind(job.uuid())
            .fetch_optional(conn)
            .await)?;
        At::new("tasks", job).json_opt("failure", failure.as_deref())
    }

    /// The next pending tasks of a wave whose target no task occupies, by target, without orders; those after the target `after`.
    pub async fn free_pending_tasks(
        &mut self,
        job: JobId,
        wave: u32,
        after: Option<&Name>,
        limit: u32,
    ) -> Result<Vec<Task>> {
        self.page_of_wave(FREE_OF_WAVE, job, wave, after, limit).await
    }

    /// The next tasks of a wave that succeeded, by target, without orders; those after the target `after`.
    pub async fn succeeded_tasks(
        &mut self,
        job: JobId,
        wave: u32,
        after: Option<&Name>,
        limit: u32,
    ) -> Result<Vec<Task>> {
        self.page_of_wave(SUCCEEDED_OF_WAVE, job, wave, after, limit)
            .await
    }

    /// The first pending tasks of a job, by wave and target, without orders; they come in the order of [`Tx::in_order`].
    pub async fn pending_tasks(&mut self, job: JobId, limit: u32) -> Result<Vec<Task>> {
        self.first_tasks(PENDING, job, limit).await
    }

    /// Tasks of a job that wait for another attempt, without orders.
    pub async fn tasks_between_attempts(&mut self, job: JobId, limit: u32) -> Result<Vec<Task>> {
        self.first_tasks(BETWEEN_ATTEMPTS, job, limit).await
    }

    /// Tasks of a job whose attempt failed and whose next one has no time yet, without orders.
    pub async fn undated_tasks(&mut self, job: JobId, limit: u32) -> Result<Vec<Task>> {
        self.first_tasks(UNDATED, job, limit).await
    }

    /// Tasks of a job whose next attempt is due, by target, those behind `after`; without orders.
    pub async fn tasks_due_again(
        &mut self,
        job: JobId,
        now: DateTime<Utc>,
        after: Option<&Name>,
        limit: u32,
    ) -> Result<Vec<Task>> {
        let rows: Vec<TaskRow> = on!(self, |conn| sqlx::query_as(DUE_AGAIN)
            .bind(job.uuid())
            .bind(now)
            .bind(after.map_or("", Name::as_str))
            .bind(i64::from(limit))
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// Tasks of a job that a stop must still reach: those that wait for another attempt, and those whose agents may have something
    /// on the host and were not told. Without orders.
    pub async fn tasks_to_stop(&mut self, job: JobId, limit: u32) -> Result<Vec<Task>> {
        self.first_tasks(TO_STOP, job, limit).await
    }

    /// The order in which a transaction changes several tasks. Whoever keeps to it may have to wait for another one at its first
    /// row, but no two wait for each other (on PostgreSQL such two would end in a deadlock).
    pub fn in_order(mut tasks: Vec<Task>) -> Vec<Task> {
        tasks.sort_unstable_by_key(|task| task.id);
        tasks
    }

    async fn page_of_wave(
        &mut self,
        statement: &'static str,
        job: JobId,
        wave: u32,
        after: Option<&Name>,
        limit: u32,
    ) -> Result<Vec<Task>> {
        let rows: Vec<TaskRow> = on!(self, |conn| sqlx::query_as(statement)
            .bind(job.uuid())
            .bind(i64::from(wave))
            .bind(after.map_or("", Name::as_str))
            .bind(i64::from(limit))
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    async fn first_tasks(&mut self, statement: &'static str, job: JobId, limit: u32) -> Result<Vec<Task>> {
        let rows: Vec<TaskRow> = on!(self, |conn| sqlx::query_as(statement)
            .bind(job.uuid())
            .bind(i64::from(limit))
            .fetch_all(conn)
            .await)?;
        Ok(Self::in_order(all(rows)?))
    }
}
