//! Targets that a job left alone because their agents were away, until they have caught up.

use chrono::{DateTime, Utc};
use sealift_common::id::{ProjectId, TargetId, TenantId};
use uuid::Uuid;

use crate::{
    Change, Result, Tx,
    engine::{on, statements},
    rows::count,
};

statements! {
    ADD = {
        "INSERT INTO left_out (target_id, project_id, since, look_at) VALUES ($1, $2, $3, $3) ",
        "ON CONFLICT (target_id, project_id) DO UPDATE SET since = excluded.since, look_at = excluded.look_at"
    };
    DUE = {
        "SELECT l.target_id, l.project_id, t.tenant_id, l.since FROM left_out l JOIN targets t ON t.id = l.target_id ",
        "WHERE l.look_at <= $1 AND (l.target_id, l.project_id) > ($2, $3) ORDER BY l.target_id, l.project_id LIMIT $4"
    };
    POSTPONE = { "UPDATE left_out SET look_at = $3 WHERE target_id = $1 AND project_id = $2" };
    TRIES = {
        "SELECT COUNT(*) FROM (SELECT r.project_id, p.requested_by, t.created_at FROM tasks t ",
        "JOIN jobs j ON j.id = t.job_id JOIN releases r ON r.id = j.release_id JOIN promotions p ON p.id = j.promotion_id ",
        "WHERE t.target_id = $1 ORDER BY t.job_id DESC LIMIT $5) newest ",
        "WHERE project_id = $2 AND requested_by = $3 AND created_at >= $4"
    };
    FORGET = { "DELETE FROM left_out WHERE target_id = $1 AND project_id = $2" };
}

/// A target that a job left alone because its agent was away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeftOut {
    /// The target.
    pub target_id: TargetId,
    /// For which project.
    pub project_id: ProjectId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// When it was left alone, the last time.
    pub since: DateTime<Utc>,
}

/// Most tasks of a target among which tries are counted.
pub const TRIES_SEEN: u32 = 16;

impl Tx {
    /// Notes that targets were left alone for a project.
    pub async fn leave_out(
        &mut self,
        targets: &[TargetId],
        project: ProjectId,
        now: DateTime<Utc>,
    ) -> Result<()> {
        for target in targets {
            on!(self, |conn| sqlx::query(ADD)
                .bind(target.uuid())
                .bind(project.uuid())
                .bind(now)
                .execute(conn)
                .await
                .map(drop))?;
            self.note(Change::Target(*target));
        }
        Ok(())
    }

    /// Those that are to be looked at, in one order; those behind `after`.
    pub async fn left_out(
        &mut self,
        now: DateTime<Utc>,
        after: Option<&LeftOut>,
        most: u32,
    ) -> Result<Vec<LeftOut>> {
        let nowhere = (Uuid::nil(), Uuid::nil());
        let (target, project) = after.map_or(nowhere, |one| (one.target_id.uuid(), one.project_id.uuid()));
        let rows: Vec<(Uuid, Uuid, Uuid, DateTime<Utc>)> = on!(self, |conn| sqlx::query_as(DUE)
            .bind(now)
            .bind(target)
            .bind(project)
            .bind(i64::from(most))
            .fetch_all(conn)
            .await)?;
        let left_out = |(target, project, tenant, since)| LeftOut {
            target_id: TargetId::from(target),
            project_id: ProjectId::from(project),
            tenant_id: TenantId::from(tenant),
            since,
        };
        Ok(rows.into_iter().map(left_out).collect())
    }

    /// How many tasks `requester` has had made for one since it was left alone; counts the newest [`TRIES_SEEN`] of the target.
    pub async fn tries_of_left_out(&mut self, one: &LeftOut, requester: &str) -> Result<u32> {
        let tries: i64 = on!(self, |conn| sqlx::query_scalar(TRIES)
            .bind(one.target_id.uuid())
            .bind(one.project_id.uuid())
            .bind(requester)
            .bind(one.since)
            .bind(i64::from(TRIES_SEEN))
            .fetch_one(conn)
            .await)?;
        Ok(count(tries))
    }

    /// Does not look at one again before `until`.
    pub async fn postpone_left_out(&mut self, one: &LeftOut, until: DateTime<Utc>) -> Result<()> {
        on!(self, |conn| sqlx::query(POSTPONE)
            .bind(one.target_id.uuid())
            .bind(one.project_id.uuid())
            .bind(until)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// It has caught up, or has nothing to catch up with.
    pub async fn forget_left_out(&mut self, one: &LeftOut) -> Result<()> {
        on!(self, |conn| sqlx::query(FORGET)
            .bind(one.target_id.uuid())
            .bind(one.project_id.uuid())
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }
}
