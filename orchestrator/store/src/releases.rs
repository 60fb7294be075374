//! Projects with their gapless release numbers (R6), and releases, frozen once written.

use std::collections::{BTreeMap, HashMap};

use chrono::{DateTime, Utc};
use sealift_common::{
    any_manifest::AnyManifest,
    id::{ProjectId, ReleaseId, TenantId},
    name::{ProjectRef, ServiceName, SourceRef},
    release::{Release, ReleaseComponent},
};
use sqlx::{FromRow, QueryBuilder};
use uuid::Uuid;

use crate::{
    Cursor, Page, PageRequest, Result, StoreError, Tx,
    engine::{of_ids, on, statements},
    rows::{At, canonical_text, int, json},
};

macro_rules! columns {
    () => {
        "id, tenant_id, project_id, repository, project, commit_id, number, state, content, manifest, created_by, \
         created_at"
    };
}

statements! {
    PROJECT = { "SELECT id FROM projects WHERE tenant_id = $1 AND repository = $2 AND project = $3" };
    PROJECTS_NAMED = {
        "SELECT id, repository, project FROM projects WHERE tenant_id = $1 AND project = $2 ",
        "ORDER BY repository LIMIT 100"
    };
    INSERT_PROJECT = {
        "INSERT INTO projects (id, tenant_id, repository, project, last_number, created_at) ",
        "VALUES ($1, $2, $3, $4, 0, $5) ON CONFLICT (tenant_id, repository, project) DO NOTHING"
    };
    NEXT_NUMBER = { "UPDATE projects SET last_number = last_number + 1 WHERE id = $1 RETURNING last_number" };
    INSERT = {
        "INSERT INTO releases (", columns!(), ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
    };
    BY_ID = { "SELECT ", columns!(), " FROM releases WHERE tenant_id = $1 AND id = $2" };
    BY_NUMBER = { "SELECT ", columns!(), " FROM releases WHERE project_id = $1 AND number = $2" };
    BY_COMMIT = { "SELECT ", columns!(), " FROM releases WHERE project_id = $1 AND commit_id = $2" };
    LIST = {
        "SELECT ", columns!(), " FROM releases WHERE tenant_id = $1 AND id < $2 ORDER BY id DESC LIMIT $3"
    };
    LIST_OF_PROJECT = {
        "SELECT ", columns!(), " FROM releases WHERE tenant_id = $1 AND project_id = $2 AND number < $3 ",
        "ORDER BY number DESC LIMIT $4"
    };
}

const INSERT_COMPONENTS: &str =
    "INSERT INTO release_components (release_id, service, component_id, component, digest, platforms) ";
const COMPONENTS_OF: &str = "SELECT release_id, service, component_id, component, digest, platforms FROM release_components WHERE release_id IN (";

#[derive(FromRow)]
struct ReleaseRow {
    id: Uuid,
    tenant_id: Uuid,
    project_id: Uuid,
    repository: String,
    project: String,
    commit_id: String,
    number: i64,
    state: String,
    content: String,
    manifest: String,
    created_by: String,
    created_at: DateTime<Utc>,
}

#[derive(FromRow)]
struct ComponentRow {
    release_id: Uuid,
    service: String,
    component_id: Uuid,
    component: String,
    digest: String,
    platforms: String,
}

type Components = BTreeMap<ServiceName, ReleaseComponent>;

fn release(row: ReleaseRow, components: Components) -> Result<Release> {
    let at = At::new("releases", row.id);
    Ok(Release {
        id: row.id.into(),
        tenant_id: row.tenant_id.into(),
        project_id: row.project_id.into(),
        number: at.number("number", row.number)?,
        state: at.parse("state", &row.state)?,
        content: at.parse("content", &row.content)?,
        manifest: at.json::<AnyManifest>("manifest", &row.manifest)?,
        source: SourceRef {
            project: ProjectRef {
                repository: row.repository,
                project: row.project,
            },
            commit: row.commit_id,
        },
        components,
        created_by: row.created_by,
        created_at: row.created_at,
    })
}

impl Tx {
    /// The project of a tenant.
    pub async fn project(&mut self, tenant: TenantId, project: &ProjectRef) -> Result<Option<ProjectId>> {
        let id: Option<Uuid> = on!(self, |conn| sqlx::query_scalar(PROJECT)
            .bind(tenant.uuid())
            .bind(project.repository.as_str())
            .bind(project.project.as_str())
            .fetch_optional(conn)
            .await)?;
        Ok(id.map(ProjectId::from))
    }

    /// Projects whose last segment is `project`, at most 100.
    pub async fn projects_named(
        &mut self,
        tenant: TenantId,
        project: &str,
    ) -> Result<Vec<(ProjectId, ProjectRef)>> {
        let rows: Vec<(Uuid, String, String)> = on!(self, |conn| sqlx::query_as(PROJECTS_NAMED)
            .bind(tenant.uuid())
            .bind(project)
            .fetch_all(conn)
            .await)?;
        let named = |(id, repository, project): (Uuid, _, _)| (id.into(), ProjectRef { repository, project });
        Ok(rows.into_iter().map(named).collect())
    }

    /// The project of a tenant, made if it does not exist yet.
    pub async fn ensure_project(
        &mut self,
        tenant: TenantId,
        project: &ProjectRef,
        now: DateTime<Utc>,
    ) -> Result<ProjectId> {
        if let Some(id) = self.project(tenant, project).await? {
            return Ok(id);
        }
        on!(self, |conn| sqlx::query(INSERT_PROJECT)
            .bind(ProjectId::new(now).uuid())
            .bind(tenant.uuid())
            .bind(project.repository.as_str())
            .bind(project.project.as_str())
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        self.project(tenant, project).await?.ok_or(StoreError::Conflict)
    }

    /// The next release number of a project. Others wait until this transaction ends; a rolled-back one uses none (R6).
    pub async fn next_release_number(&mut self, project: ProjectId) -> Result<u64> {
        let number: Option<i64> = on!(self, |conn| sqlx::query_scalar(NEXT_NUMBER)
            .bind(project.uuid())
            .fetch_optional(conn)
            .await)?;
        At::new("projects", project).number("last_number", number.ok_or(StoreError::Conflict)?)
    }

    /// Writes a release with its components. Nothing can change it afterwards.
    pub async fn insert_release(&mut self, release: &Release) -> Result<()> {
        let number = int(release.number)?;
        let manifest = canonical_text(&release.manifest)?;
        on!(self, |conn| sqlx::query(INSERT)
            .bind(release.id.uuid())
            .bind(release.tenant_id.uuid())
            .bind(release.project_id.uuid())
            .bind(release.source.project.repository.as_str())
            .bind(release.source.project.project.as_str())
            .bind(release.source.commit.as_str())
            .bind(number)
            .bind(release.state.as_str())
            .bind(release.content.to_string())
            .bind(manifest)
            .bind(release.created_by.as_str())
            .bind(release.created_at)
            .execute(conn)
            .await
            .map(drop))?;
        if release.components.is_empty() {
            return Ok(());
        }
        let platforms = |component: &ReleaseComponent| json(&component.platforms);
        let platforms: Vec<String> = release
            .components
            .values()
            .map(platforms)
            .collect::<Result<_>>()?;
        on!(self, |conn| {
            let mut query = QueryBuilder::new(INSERT_COMPONENTS);
            let rows = release.components.iter().zip(&platforms);
            query.push_values(rows, |mut row, ((service, component), platforms)| {
                row.push_bind(release.id.uuid())
                    .push_bind(service.as_str())
                    .push_bind(component.component_id.uuid())
                    .push_bind(component.component.as_str())
                    .push_bind(component.digest.to_string())
                    .push_bind(platforms.as_str());
            });
            query.build().execute(conn).await.map(drop)
        })?;
        Ok(())
    }

    /// A release.
    pub async fn release(&mut self, tenant: TenantId, id: ReleaseId) -> Result<Option<Release>> {
        let row: Option<ReleaseRow> = on!(self, |conn| sqlx::query_as(BY_ID)
            .bind(tenant.uuid())
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        self.whole_release(row).await
    }

    /// A release by its number in a project.
    pub async fn release_by_number(&mut self, project: ProjectId, number: u64) -> Result<Option<Release>> {
        // A number that the database cannot hold is a number that no release has.
        let Ok(number) = int(number) else { return Ok(None) };
        let row: Option<ReleaseRow> = on!(self, |conn| sqlx::query_as(BY_NUMBER)
            .bind(project.uuid())
            .bind(number)
            .fetch_optional(conn)
            .await)?;
        self.whole_release(row).await
    }

    /// A release by its commit in a project.
    pub async fn release_by_commit(&mut self, project: ProjectId, commit: &str) -> Result<Option<Release>> {
        let row: Option<ReleaseRow> = on!(self, |conn| sqlx::query_as(BY_COMMIT)
            .bind(project.uuid())
            .bind(commit)
            .fetch_optional(conn)
            .await)?;
        self.whole_release(row).await
    }

    /// Releases newest first, of one project or of all.
    pub async fn list_releases(
        &mut self,
        tenant: TenantId,
        project: Option<ProjectId>,
        page: &PageRequest,
    ) -> Result<Page<Release>> {
        let Some(project) = project else {
            let below = page.below_id()?;
            let rows: Vec<ReleaseRow> = on!(self, |conn| sqlx::query_as(LIST)
                .bind(tenant.uuid())
                .bind(below)
                .bind(page.limit())
                .fetch_all(conn)
                .await)?;
            let releases = self.whole_releases(rows).await?;
            return Ok(Page::of(releases, page, |release| Cursor::of(&[&release.id])));
        };
        let below = page.below_number()?;
        let rows: Vec<ReleaseRow> = on!(self, |conn| sqlx::query_as(LIST_OF_PROJECT)
            .bind(tenant.uuid())
            .bind(project.uuid())
            .bind(below)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        let releases = self.whole_releases(rows).await?;
        Ok(Page::of(releases, page, |release| Cursor::of(&[&release.number])))
    }

    async fn whole_release(&mut self, row: Option<ReleaseRow>) -> Result<Option<Release>> {
        Ok(self.whole_releases(row.into_iter().collect()).await?.pop())
    }

    /// Adds the components, with one query for all releases.
    async fn whole_releases(&mut self, rows: Vec<ReleaseRow>) -> Result<Vec<Release>> {
        if rows.is_empty() {
            return Ok(Vec::new());
        }
        let found: Vec<ComponentRow> = on!(self, |conn| {
            let ids = rows.iter().map(|row| row.id);
            let mut query = of_ids(COMPONENTS_OF, ids, ")");
            query.build_query_as().fetch_all(conn).await
        })?;
        let mut components: HashMap<Uuid, Components> = HashMap::new();
        for row in found {
            let at = At::new("release_components", row.release_id);
            let component = ReleaseComponent {
                component_id: row.component_id.into(),
                component: at.parse("component", &row.component)?,
                digest: at.parse("digest", &row.digest)?,
                platforms: at.json("platforms", &row.platforms)?,
            };
            let service = at.parse("service", &row.service)?;
            components
                .entry(row.release_id)
                .or_default()
                .insert(service, component);
        }
        rows.into_iter()
            .map(|row| {
                let components = components.remove(&row.id).unwrap_or_default();
                release(row, components)
            })
            .collect()
    }
}
