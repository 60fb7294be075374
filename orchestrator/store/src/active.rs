//! What each environment runs, component by component: at most one active release of a project each (R2, ADR 0008).

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sealift_common::{
    id::{EnvironmentId, JobId, TenantId},
    name::ProjectRef,
    release::Release,
};
use sqlx::FromRow;

use crate::{
    Active, Change, Result, StoreError, Tx,
    engine::{on, statements},
    rows::{At, all},
    versions::ComponentRow,
};

macro_rules! select {
    () => {
        "SELECT c.id, c.tenant_id, c.name, c.repository, c.created_at, a.environment_id, a.digest, a.release_id, \
         r.repository AS release_repository, r.project, a.project_id, r.number, a.job_id, a.since FROM active_components a \
         JOIN components c ON c.id = a.component_id JOIN releases r ON r.id = a.release_id "
    };
}

statements! {
    SUPERSEDE = {
        "UPDATE active_components SET superseded_at = $3, superseded_by = $4 ",
        "WHERE environment_id = $1 AND project_id = $2 AND superseded_at IS NULL"
    };
    ACTIVATE = {
        "INSERT INTO active_components (environment_id, component_id, digest, release_id, job_id, since, project_id) ",
        "VALUES ($1, $2, $3, $4, $5, $6, $7)"
    };
    ACTIVE = {
        select!(), "WHERE a.environment_id = $1 AND a.superseded_at IS NULL ORDER BY c.name"
    };
    ACTIVE_OF_TENANT = {
        select!(), "JOIN environments e ON e.id = a.environment_id ",
        "WHERE e.tenant_id = $1 AND e.archived_at IS NULL AND a.superseded_at IS NULL ORDER BY c.name"
    };
}

#[derive(FromRow)]
struct ActiveRow {
    #[sqlx(flatten)]
    component: ComponentRow,
    environment_id: uuid::Uuid,
    digest: String,
    release_id: uuid::Uuid,
    release_repository: String,
    project: String,
    project_id: uuid::Uuid,
    number: i64,
    job_id: uuid::Uuid,
    since: DateTime<Utc>,
}

impl TryFrom<ActiveRow> for Active {
    type Error = StoreError;

    fn try_from(row: ActiveRow) -> Result<Self> {
        let at = At::new("active_components", row.component.id);
        Ok(Self {
            component: row.component.try_into()?,
            digest: at.parse("digest", &row.digest)?,
            release: row.release_id.into(),
            project: ProjectRef {
                repository: row.release_repository,
                project: row.project,
            },
            project_id: row.project_id.into(),
            number: at.number("number", row.number)?,
            job: row.job_id.into(),
            since: row.since,
        })
    }
}

impl Tx {
    /// Makes a release the active one for its components in an environment. Several services of one component are one row.
    /// It takes the place of all that was active of its project: components that an earlier release had and this one has no more
    /// are not active any longer (R8). Other projects keep what they have, also where they run the same component.
    pub async fn activate_release(
        &mut self,
        environment: EnvironmentId,
        release: &Release,
        job: JobId,
        now: DateTime<Utc>,
    ) -> Result<()> {
        on!(self, |conn| sqlx::query(SUPERSEDE)
            .bind(environment.uuid())
            .bind(release.project_id.uuid())
            .bind(now)
            .bind(release.id.uuid())
            .execute(conn)
            .await
            .map(drop))?;
        let components: BTreeMap<_, _> = release
            .components
            .values()
            .map(|component| (component.component_id, component.digest))
            .collect();
        for (component, digest) in components {
            on!(self, |conn| sqlx::query(ACTIVATE)
                .bind(environment.uuid())
                .bind(component.uuid())
                .bind(digest.to_string())
                .bind(release.id.uuid())
                .bind(job.uuid())
                .bind(now)
                .bind(release.project_id.uuid())
                .execute(conn)
                .await
                .map(drop))?;
        }
        self.note(Change::Lane(environment));
        Ok(())
    }

    /// What an environment runs, by component name.
    pub async fn active(&mut self, environment: EnvironmentId) -> Result<Vec<Active>> {
        let rows: Vec<ActiveRow> = on!(self, |conn| sqlx::query_as(ACTIVE)
            .bind(environment.uuid())
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// What all live environments of a tenant run, by component name.
    pub async fn active_of_tenant(&mut self, tenant: TenantId) -> Result<Vec<(EnvironmentId, Active)>> {
        let rows: Vec<ActiveRow> = on!(self, |conn| sqlx::query_as(ACTIVE_OF_TENANT)
            .bind(tenant.uuid())
            .fetch_all(conn)
            .await)?;
        let placed = |row: ActiveRow| Ok((row.environment_id.into(), row.try_into()?));
        rows.into_iter().map(placed).collect()
    }
}
