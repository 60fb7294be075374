//! Targets that a job left alone because their agents were away, until they have caught up.

use chrono::{DateTime, Utc};
use sealift_common::id::{ProjectId, TargetId, TenantId};
use uuid::Uuid;

use crate::{
    Change, LeftOut, Result, Tx,
    engine::{on, statements},
};

statements! {
    ADD = {
        "INSERT INTO left_out (target_id, project_id, since, look_at) VALUES ($1, $2, $3, $3) ",
        "ON CONFLICT (target_id, project_id) DO UPDATE SET look_at = excluded.look_at"
    };
    DUE = {
        "SELECT l.target_id, l.project_id, t.tenant_id FROM left_out l JOIN targets t ON t.id = l.target_id ",
        "WHERE l.look_at <= $1 ORDER BY l.look_at LIMIT $2"
    };
    POSTPONE = { "UPDATE left_out SET look_at = $3 WHERE target_id = $1 AND project_id = $2" };
    FORGET = { "DELETE FROM left_out WHERE target_id = $1 AND project_id = $2" };
}

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

    /// Those that are to be looked at, the longest due first.
    pub async fn left_out(&mut self, now: DateTime<Utc>, most: u32) -> Result<Vec<LeftOut>> {
        let rows: Vec<(Uuid, Uuid, Uuid)> = on!(self, |conn| sqlx::query_as(DUE)
            .bind(now)
            .bind(i64::from(most))
            .fetch_all(conn)
            .await)?;
        let left_out = |(target, project, tenant)| LeftOut {
            target_id: TargetId::from(target),
            project_id: ProjectId::from(project),
            tenant_id: TenantId::from(tenant),
        };
        Ok(rows.into_iter().map(left_out).collect())
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
