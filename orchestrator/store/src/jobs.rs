//! Jobs. Their state is written by [`Tx::apply_job_event`] and nothing else.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sealift_common::{
    id::{EnvironmentId, JobId, PromotionId, TenantId},
    job::{JobEvent, JobPhase, JobState, Pause, PauseReason, Stop},
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Change, Cursor, EntityKind, Job, Page, PageRequest, Result, StoreError, Tx,
    engine::{of_ids, on, statements},
    rows::{At, all, int, json, json_opt, one},
    transitions::{By, NewTransition},
};

macro_rules! columns {
    () => {
        "id, tenant_id, promotion_id, environment_id, environment, release_id, state, pause_reason, pause_gate, failure, \
         rollback_of, stop, stop_failure, ticket, accepted_failures, resumed_at, version, created_at, started_at, \
         finished_at"
    };
}

pub(crate) use columns;

statements! {
    INSERT = {
        "INSERT INTO jobs (", columns!(), ") ",
        "VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18, $19, $20)"
    };
    INSERT_SUBJECTS = {
        "INSERT INTO job_subjects (environment_id, subject_id, job_id) ",
        "SELECT j.environment_id, r.project_id, j.id FROM jobs j JOIN releases r ON r.id = j.release_id ",
        "WHERE j.id = $1 UNION SELECT j.environment_id, c.component_id, j.id FROM jobs j ",
        "JOIN release_components c ON c.release_id = j.release_id WHERE j.id = $1"
    };
    BY_TENANT_AND_ID = { "SELECT ", columns!(), " FROM jobs WHERE tenant_id = $1 AND id = $2" };
    BY_ID = { "SELECT ", columns!(), " FROM jobs WHERE id = $1" };
    OF_PROMOTION = { "SELECT ", columns!(), " FROM jobs WHERE promotion_id = $1" };
    LIST = { "SELECT ", columns!(), " FROM jobs WHERE tenant_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3" };
    LIST_OF_ENVIRONMENT = {
        "SELECT ", columns!(), " FROM jobs WHERE tenant_id = $1 AND environment_id = $2 AND ticket < $3 ",
        "ORDER BY ticket DESC LIMIT $4"
    };
    SET_STATE = {
        "UPDATE jobs SET state = $3, failure = $4, started_at = COALESCE(started_at, $5), finished_at = $6, ",
        "pause_reason = $7, pause_gate = $8, resumed_at = COALESCE($9, resumed_at), version = version + 1 ",
        "WHERE id = $1 AND version = $2 RETURNING ", columns!()
    };
    REQUEST_STOP = {
        "UPDATE jobs SET stop = $3, stop_failure = $4, version = version + 1 ",
        "WHERE id = $1 AND version = $2 RETURNING ", columns!()
    };
    ACCEPT_FAILURES = {
        "UPDATE jobs SET accepted_failures = $3, version = version + 1 ",
        "WHERE id = $1 AND version = $2 RETURNING ", columns!()
    };
    LOCK = { "UPDATE jobs SET version = version WHERE id = $1 AND version = $2" };
    IN_MOTION = {
        "SELECT ", columns!(), " FROM jobs WHERE state IN ('running', 'paused') ",
        "ORDER BY environment_id, state, ticket LIMIT $1"
    };
    NEWEST_ROLLBACK = {
        "SELECT ", columns!(), " FROM jobs WHERE rollback_of = $1 ORDER BY ticket DESC LIMIT 1"
    };
}

const OF_PROMOTIONS: &str = concat!("SELECT ", columns!(), " FROM jobs WHERE promotion_id IN (");

#[derive(FromRow)]
pub(crate) struct JobRow {
    id: Uuid,
    tenant_id: Uuid,
    promotion_id: Uuid,
    environment_id: Uuid,
    environment: String,
    release_id: Uuid,
    state: String,
    pause_reason: Option<String>,
    pause_gate: Option<String>,
    failure: Option<String>,
    rollback_of: Option<Uuid>,
    stop: Option<String>,
    stop_failure: Option<String>,
    ticket: i64,
    accepted_failures: i64,
    resumed_at: Option<DateTime<Utc>>,
    version: i64,
    created_at: DateTime<Utc>,
    started_at: Option<DateTime<Utc>>,
    finished_at: Option<DateTime<Utc>>,
}

/// Why a job is paused, from its columns.
pub(crate) fn pause(at: &At, reason: Option<&str>, gate: Option<&str>) -> Result<Option<Pause>> {
    let reason = at.parse_opt("pause_reason", reason)?;
    Ok(match (reason, at.json_opt("pause_gate", gate)?) {
        (None, None) => None,
        (Some(PauseReason::Operator), None) => Some(Pause::Operator),
        (Some(PauseReason::Canary), None) => Some(Pause::Canary),
        (Some(PauseReason::Failures), None) => Some(Pause::Failures),
        (Some(PauseReason::Gate), Some(answer)) => Some(Pause::Gate(answer)),
        _ => return Err(at.corrupt("pause_gate")),
    })
}

/// The answer of the gate that a job waits behind.
fn pause_gate(state: &JobState) -> Result<Option<String>> {
    json_opt(match state.pause() {
        Some(Pause::Gate(answer)) => Some(answer),
        Some(Pause::Operator | Pause::Canary | Pause::Failures) | None => None,
    })
}

impl TryFrom<JobRow> for Job {
    type Error = StoreError;

    fn try_from(row: JobRow) -> Result<Self> {
        let at = At::new("jobs", row.id);
        let state = match (
            at.parse("state", &row.state)?,
            at.json_opt("failure", row.failure.as_deref())?,
            pause(&at, row.pause_reason.as_deref(), row.pause_gate.as_deref())?,
        ) {
            (JobPhase::Queued, None, None) => JobState::Queued,
            (JobPhase::Running, None, None) => JobState::Running,
            (JobPhase::Paused, None, Some(why)) => JobState::Paused { why },
            (JobPhase::RollingBack, Some(failure), None) => JobState::RollingBack { failure },
            (JobPhase::Succeeded, None, None) => JobState::Succeeded,
            (JobPhase::Failed, Some(failure), None) => JobState::Failed { failure },
            (JobPhase::Cancelled, None, None) => JobState::Cancelled,
            (JobPhase::RolledBack, Some(failure), None) => JobState::RolledBack { failure },
            (JobPhase::RollbackFailed, Some(failure), None) => JobState::RollbackFailed { failure },
            _ => return Err(at.corrupt("state")),
        };
        let stop = match (
            at.parse_opt("stop", row.stop.as_deref())?,
            at.json_opt("stop_failure", row.stop_failure.as_deref())?,
        ) {
            (Some(wish), Some(failure)) => Some(Stop { wish, failure }),
            (None, None) => None,
            _ => return Err(at.corrupt("stop_failure")),
        };
        Ok(Self {
            id: row.id.into(),
            tenant_id: row.tenant_id.into(),
            promotion_id: row.promotion_id.into(),
            environment_id: row.environment_id.into(),
            environment: at.parse("environment", &row.environment)?,
            release_id: row.release_id.into(),
            state,
            rollback_of: row.rollback_of.map(JobId::from),
            stop,
            ticket: at.number("ticket", row.ticket)?,
            accepted_failures: at.small("accepted_failures", row.accepted_failures)?,
            resumed_at: row.resumed_at,
            version: at.number("version", row.version)?,
            created_at: row.created_at,
            started_at: row.started_at,
            finished_at: row.finished_at,
        })
    }
}

impl Tx {
    /// Writes a new job, and what histories find it by; its version should be 0, so that the history counts from 1.
    pub async fn insert_job(&mut self, job: &Job) -> Result<()> {
        let (ticket, version) = (int(job.ticket)?, int(job.version)?);
        let failure = json_opt(job.state.failure())?;
        let stop_failure = json_opt(job.stop.as_ref().map(|stop| &stop.failure))?;
        let pause_gate = pause_gate(&job.state)?;
        on!(self, |conn| sqlx::query(INSERT)
            .bind(job.id.uuid())
            .bind(job.tenant_id.uuid())
            .bind(job.promotion_id.uuid())
            .bind(job.environment_id.uuid())
            .bind(job.environment.as_str())
            .bind(job.release_id.uuid())
            .bind(job.state.phase().as_str())
            .bind(job.state.pause().map(|why| why.reason().as_str()))
            .bind(pause_gate)
            .bind(failure)
            .bind(job.rollback_of.map(JobId::uuid))
            .bind(job.stop.as_ref().map(|stop| stop.wish.as_str()))
            .bind(stop_failure)
            .bind(ticket)
            .bind(i64::from(job.accepted_failures))
            .bind(job.resumed_at)
            .bind(version)
            .bind(job.created_at)
            .bind(job.started_at)
            .bind(job.finished_at)
            .execute(conn)
            .await
            .map(drop))?;
        on!(self, |conn| sqlx::query(INSERT_SUBJECTS)
            .bind(job.id.uuid())
            .execute(conn)
            .await
            .map(drop))?;
        self.note_job(job);
        Ok(())
    }

    /// A job of a tenant.
    pub async fn job(&mut self, tenant: TenantId, id: JobId) -> Result<Option<Job>> {
        let row: Option<JobRow> = on!(self, |conn| sqlx::query_as(BY_TENANT_AND_ID)
            .bind(tenant.uuid())
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// A job. Not scoped by tenant: for the orchestrator's own work.
    pub async fn job_by_id(&mut self, id: JobId) -> Result<Option<Job>> {
        let row: Option<JobRow> = on!(self, |conn| sqlx::query_as(BY_ID)
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// The job that carries out a promotion.
    pub async fn job_of_promotion(&mut self, promotion: PromotionId) -> Result<Option<Job>> {
        let row: Option<JobRow> = on!(self, |conn| sqlx::query_as(OF_PROMOTION)
            .bind(promotion.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// The jobs that carry out these promotions. Of a page of what a tenant has.
    pub async fn jobs_of_promotions(
        &mut self,
        promotions: &[PromotionId],
    ) -> Result<BTreeMap<PromotionId, Job>> {
        if promotions.is_empty() {
            return Ok(BTreeMap::new());
        }
        let rows: Vec<JobRow> = on!(self, |conn| {
            let ids = promotions.iter().map(|promotion| promotion.uuid());
            let mut query = of_ids(OF_PROMOTIONS, ids, ")");
            query.build_query_as().fetch_all(conn).await
        })?;
        let jobs: Vec<Job> = all(rows)?;
        Ok(jobs.into_iter().map(|job| (job.promotion_id, job)).collect())
    }

    /// Jobs newest first, of one environment (by ticket) or of all.
    pub async fn list_jobs(
        &mut self,
        tenant: TenantId,
        environment: Option<EnvironmentId>,
        page: &PageRequest,
    ) -> Result<Page<Job>> {
        let Some(environment) = environment else {
            let below = page.below_id()?;
            let rows: Vec<JobRow> = on!(self, |conn| sqlx::query_as(LIST)
                .bind(tenant.uuid())
                .bind(below)
                .bind(page.limit())
                .fetch_all(conn)
                .await)?;
            return Ok(Page::of(all(rows)?, page, |job: &Job| Cursor::of(&[&job.id])));
        };
        let below = page.below_number()?;
        let rows: Vec<JobRow> = on!(self, |conn| sqlx::query_as(LIST_OF_ENVIRONMENT)
            .bind(tenant.uuid())
            .bind(environment.uuid())
            .bind(below)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        Ok(Page::of(all(rows)?, page, |job: &Job| Cursor::of(&[&job.ticket])))
    }

    /// Moves a job, with its history row; the only SQL that writes `jobs.state`. An event that changes nothing writes
    /// nothing. [`StoreError::Conflict`] when the job is not the newest version.
    pub async fn apply_job_event(
        &mut self,
        job: &Job,
        event: &JobEvent,
        by: impl Into<By<'_>>,
        now: DateTime<Utc>,
    ) -> Result<Job> {
        let by = by.into();
        let Some(next) = job.state.apply(event)? else {
            return Ok(job.clone());
        };
        let version = int(job.version)?;
        let phase = next.phase();
        let failure = json_opt(next.failure())?;
        let pause_gate = pause_gate(&next)?;
        let started_at = (phase == JobPhase::Running).then_some(now);
        let finished_at = phase.is_terminal().then_some(now);
        let resumed_at = matches!(event, JobEvent::Resumed).then_some(now);
        let row: Option<JobRow> = on!(self, |conn| sqlx::query_as(SET_STATE)
            .bind(job.id.uuid())
            .bind(version)
            .bind(phase.as_str())
            .bind(failure)
            .bind(started_at)
            .bind(finished_at)
            .bind(next.pause().map(|why| why.reason().as_str()))
            .bind(pause_gate)
            .bind(resumed_at)
            .fetch_optional(conn)
            .await)?;
        let changed: Job = row.ok_or(StoreError::Conflict)?.try_into()?;
        let detail = match (next.failure(), next.pause()) {
            (Some(failure), _) => failure.code.as_str(),
            (None, Some(Pause::Gate(answer))) => answer.reason.as_str(),
            (None, Some(why)) => why.reason().as_str(),
            (None, None) => "",
        };
        self.insert_transition(NewTransition {
            kind: EntityKind::Job,
            id: job.id.uuid(),
            seq: changed.version,
            from: job.state.phase().as_str(),
            to: phase.as_str(),
            event: event.name(),
            actor: by.actor,
            detail: &by.detail(detail),
            failure: next.failure(),
            at: now,
        })
        .await?;
        self.note_job(&changed);
        Ok(changed)
    }

    /// Notes the wish that a job ends before its time; the history gets a row `stop_requested`. A job that has ended stays as it
    /// is, and so does one of which as much or more was asked before ([`Stop::outdoes`]).
    pub async fn request_job_stop(
        &mut self,
        job: &Job,
        stop: &Stop,
        actor: &str,
        now: DateTime<Utc>,
    ) -> Result<Job> {
        let asked = job.stop.as_ref().is_some_and(|before| !stop.outdoes(before));
        if asked || job.state.phase().is_terminal() {
            return Ok(job.clone());
        }
        let (version, failure) = (int(job.version)?, json(&stop.failure)?);
        let row: Option<JobRow> = on!(self, |conn| sqlx::query_as(REQUEST_STOP)
            .bind(job.id.uuid())
            .bind(version)
            .bind(stop.wish.as_str())
            .bind(failure)
            .fetch_optional(conn)
            .await)?;
        self.noted_job_change(row, "stop_requested", &stop.failure.summary, actor, now)
            .await
    }

    /// Whether the job is as it was read. Locks its row: until this transaction ends nobody steers it, so that no order is
    /// committed after a stop or a pause that was acknowledged.
    pub async fn lock_job(&mut self, job: &Job) -> Result<bool> {
        let version = int(job.version)?;
        let locked = on!(self, |conn| sqlx::query(LOCK)
            .bind(job.id.uuid())
            .bind(version)
            .execute(conn)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(locked == 1)
    }

    /// Notes that a person has accepted so many failures of a job; the history gets a row `failures_accepted`.
    pub async fn accept_job_failures(
        &mut self,
        job: &Job,
        accepted: u32,
        actor: &str,
        now: DateTime<Utc>,
    ) -> Result<Job> {
        let version = int(job.version)?;
        let row: Option<JobRow> = on!(self, |conn| sqlx::query_as(ACCEPT_FAILURES)
            .bind(job.id.uuid())
            .bind(version)
            .bind(i64::from(accepted))
            .fetch_optional(conn)
            .await)?;
        self.noted_job_change(row, "failures_accepted", &accepted.to_string(), actor, now)
            .await
    }

    /// The history row of a change that leaves the state as it is.
    async fn noted_job_change(
        &mut self,
        row: Option<JobRow>,
        event: &'static str,
        detail: &str,
        actor: &str,
        now: DateTime<Utc>,
    ) -> Result<Job> {
        let changed: Job = row.ok_or(StoreError::Conflict)?.try_into()?;
        let phase = changed.state.phase().as_str();
        self.insert_transition(NewTransition {
            kind: EntityKind::Job,
            id: changed.id.uuid(),
            seq: changed.version,
            from: phase,
            to: phase,
            event,
            actor,
            detail,
            failure: None,
            at: now,
        })
        .await?;
        self.note_job(&changed);
        Ok(changed)
    }

    fn note_job(&mut self, job: &Job) {
        self.note(Change::Job(job.id));
        self.note(Change::Lane(job.environment_id));
    }

    /// Running and paused jobs of all lanes: the work list.
    pub async fn jobs_in_motion(&mut self, limit: u32) -> Result<Vec<Job>> {
        let rows: Vec<JobRow> = on!(self, |conn| sqlx::query_as(IN_MOTION)
            .bind(i64::from(limit))
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// The newest rollback of a job.
    pub async fn newest_rollback(&mut self, job: JobId) -> Result<Option<Job>> {
        let row: Option<JobRow> = on!(self, |conn| sqlx::query_as(NEWEST_ROLLBACK)
            .bind(job.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }
}
