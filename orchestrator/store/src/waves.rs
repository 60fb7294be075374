//! Waves of jobs. Written with the tasks; afterwards only their three times change, each once, by whoever holds the scheduler's
//! turn.

use chrono::{DateTime, Utc};
use sealift_common::{id::JobId, strategy::Then};
use sqlx::{FromRow, QueryBuilder, types::Json};
use uuid::Uuid;

use crate::{
    Change, JobWave, Result, StoreError, Tx,
    engine::{on, statements},
    rows::{At, all, one},
};

/// Rows per bulk statement.
const BULK: usize = 500;
const INSERT: &str = "INSERT INTO waves (job_id, ordinal, what_then) ";

statements! {
    OF_JOB = {
        "SELECT job_id, ordinal, what_then, opened_at, settled_at, passed_at FROM waves WHERE job_id = $1 ORDER BY ordinal"
    };
    AHEAD = {
        "SELECT w.job_id, w.ordinal, w.what_then, w.opened_at, w.settled_at, w.passed_at FROM waves w ",
        "WHERE w.job_id = $1 AND w.passed_at IS NULL ",
        "AND EXISTS (SELECT 1 FROM tasks t WHERE t.job_id = w.job_id AND t.wave = w.ordinal) ORDER BY w.ordinal LIMIT 1"
    };
    OPEN = { "UPDATE waves SET opened_at = COALESCE(opened_at, $3) WHERE job_id = $1 AND ordinal = $2" };
    SETTLE = { "UPDATE waves SET settled_at = COALESCE(settled_at, $3) WHERE job_id = $1 AND ordinal = $2" };
    PASS = { "UPDATE waves SET passed_at = COALESCE(passed_at, $3) WHERE job_id = $1 AND ordinal = $2" };
}

#[derive(FromRow)]
struct WaveRow {
    job_id: Uuid,
    ordinal: i64,
    what_then: Json<Then>,
    opened_at: Option<DateTime<Utc>>,
    settled_at: Option<DateTime<Utc>>,
    passed_at: Option<DateTime<Utc>>,
}

impl TryFrom<WaveRow> for JobWave {
    type Error = StoreError;

    fn try_from(row: WaveRow) -> Result<Self> {
        Ok(Self {
            ordinal: At::new("waves", row.job_id).small("ordinal", row.ordinal)?,
            then: row.what_then.0,
            opened_at: row.opened_at,
            settled_at: row.settled_at,
            passed_at: row.passed_at,
        })
    }
}

impl Tx {
    /// Writes the waves of a job, in order.
    pub async fn insert_waves(&mut self, job: JobId, waves: &[Then]) -> Result<()> {
        let rows: Vec<(i64, &Then)> = (0_i64..).zip(waves).collect();
        for chunk in rows.chunks(BULK) {
            on!(self, |conn| {
                let mut query = QueryBuilder::new(INSERT);
                query.push_values(chunk, |mut row, (ordinal, then)| {
                    row.push_bind(job.uuid())
                        .push_bind(*ordinal)
                        .push_bind(Json(**then));
                });
                query.build().execute(conn).await.map(drop)
            })?;
        }
        Ok(())
    }

    /// The waves of a job, in order.
    pub async fn waves_of_job(&mut self, job: JobId) -> Result<Vec<JobWave>> {
        let rows: Vec<WaveRow> = on!(self, |conn| sqlx::query_as(OF_JOB)
            .bind(job.uuid())
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// The first wave of a job that has tasks and has not passed: the one that is worked on, or comes next.
    pub async fn wave_ahead(&mut self, job: JobId) -> Result<Option<JobWave>> {
        let row: Option<WaveRow> = on!(self, |conn| sqlx::query_as(AHEAD)
            .bind(job.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// Notes when the first order of a wave was made.
    pub async fn open_wave(&mut self, job: JobId, ordinal: u32, now: DateTime<Utc>) -> Result<()> {
        self.note_wave(OPEN, job, ordinal, now).await
    }

    /// Notes when the last task of a wave ended.
    pub async fn settle_wave(&mut self, job: JobId, ordinal: u32, now: DateTime<Utc>) -> Result<()> {
        self.note_wave(SETTLE, job, ordinal, now).await
    }

    /// Lets the wave after this one begin.
    pub async fn pass_wave(&mut self, job: JobId, ordinal: u32, now: DateTime<Utc>) -> Result<()> {
        self.note_wave(PASS, job, ordinal, now).await
    }

    async fn note_wave(
        &mut self,
        statement: &'static str,
        job: JobId,
        ordinal: u32,
        now: DateTime<Utc>,
    ) -> Result<()> {
        on!(self, |conn| sqlx::query(statement)
            .bind(job.uuid())
            .bind(i64::from(ordinal))
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        self.note(Change::Job(job));
        Ok(())
    }
}
