//! Components and what their tags meant, over time.

use chrono::{DateTime, Utc};
use sealift_common::{
    digest::Digest,
    id::{ComponentId, TenantId},
    inventory::Component,
    name::ComponentName,
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Cursor, Page, PageRequest, Result, StoreError, Tx, VersionEntry,
    engine::{on, statements},
    rows::{At, all, one},
};

macro_rules! columns {
    () => {
        "id, tenant_id, name, repository, created_at"
    };
}

statements! {
    INSERT = { "INSERT INTO components (", columns!(), ") VALUES ($1, $2, $3, $4, $5)" };
    BY_REPOSITORY = { "SELECT ", columns!(), " FROM components WHERE tenant_id = $1 AND repository = $2" };
    BY_NAME = { "SELECT ", columns!(), " FROM components WHERE tenant_id = $1 AND name = $2" };
    LIST = { "SELECT ", columns!(), " FROM components WHERE tenant_id = $1 AND name > $2 ORDER BY name LIMIT $3" };
    LOCK = { "UPDATE components SET repository = repository WHERE id = $1" };
    NEWEST_OF_TAG = {
        "SELECT digest FROM version_entries WHERE component_id = $1 AND tag = $2 ORDER BY id DESC LIMIT 1"
    };
    APPEND = { "INSERT INTO version_entries (component_id, tag, digest, resolved_at) VALUES ($1, $2, $3, $4)" };
    VERSIONS = {
        "SELECT id, tag, digest, resolved_at FROM version_entries WHERE component_id = $1 AND id < $2 ",
        "ORDER BY id DESC LIMIT $3"
    };
}

#[derive(FromRow)]
pub(crate) struct ComponentRow {
    pub(crate) id: Uuid,
    pub(crate) tenant_id: Uuid,
    pub(crate) name: String,
    pub(crate) repository: String,
    pub(crate) created_at: DateTime<Utc>,
}

impl TryFrom<ComponentRow> for Component {
    type Error = StoreError;

    fn try_from(row: ComponentRow) -> Result<Self> {
        let at = At::new("components", row.id);
        Ok(Self {
            id: row.id.into(),
            tenant_id: row.tenant_id.into(),
            name: at.parse("name", &row.name)?,
            repository: row.repository,
            created_at: row.created_at,
        })
    }
}

#[derive(FromRow)]
struct VersionRow {
    id: i64,
    tag: String,
    digest: String,
    resolved_at: DateTime<Utc>,
}

impl Tx {
    /// Makes a component.
    pub async fn insert_component(&mut self, component: &Component) -> Result<()> {
        on!(self, |conn| sqlx::query(INSERT)
            .bind(component.id.uuid())
            .bind(component.tenant_id.uuid())
            .bind(component.name.as_str())
            .bind(component.repository.as_str())
            .bind(component.created_at)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// A component by its image repository.
    pub async fn component_by_repository(
        &mut self,
        tenant: TenantId,
        repository: &str,
    ) -> Result<Option<Component>> {
        let row: Option<ComponentRow> = on!(self, |conn| sqlx::query_as(BY_REPOSITORY)
            .bind(tenant.uuid())
            .bind(repository)
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// A component by name.
    pub async fn component_by_name(
        &mut self,
        tenant: TenantId,
        name: &ComponentName,
    ) -> Result<Option<Component>> {
        let row: Option<ComponentRow> = on!(self, |conn| sqlx::query_as(BY_NAME)
            .bind(tenant.uuid())
            .bind(name.as_str())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// Components by name.
    pub async fn list_components(&mut self, tenant: TenantId, page: &PageRequest) -> Result<Page<Component>> {
        let after = page.above_text()?;
        let rows: Vec<ComponentRow> = on!(self, |conn| sqlx::query_as(LIST)
            .bind(tenant.uuid())
            .bind(after)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        Ok(Page::of(all(rows)?, page, |component: &Component| {
            Cursor::of(&[&component.name])
        }))
    }

    /// Records what a tag means now, if that is news; says whether it was.
    pub async fn record_version(
        &mut self,
        component: ComponentId,
        tag: &str,
        digest: Digest,
        now: DateTime<Utc>,
    ) -> Result<bool> {
        // Two writers that both see the old entry would both append: the component's row makes them follow each other.
        on!(self, |conn| sqlx::query(LOCK)
            .bind(component.uuid())
            .execute(conn)
            .await
            .map(drop))?;
        let newest: Option<String> = on!(self, |conn| sqlx::query_scalar(NEWEST_OF_TAG)
            .bind(component.uuid())
            .bind(tag)
            .fetch_optional(conn)
            .await)?;
        let digest = digest.to_string();
        if newest.as_ref() == Some(&digest) {
            return Ok(false);
        }
        on!(self, |conn| sqlx::query(APPEND)
            .bind(component.uuid())
            .bind(tag)
            .bind(digest)
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(true)
    }

    /// What the tags of a component meant, newest first.
    pub async fn list_versions(
        &mut self,
        component: ComponentId,
        page: &PageRequest,
    ) -> Result<Page<VersionEntry>> {
        let below = page.below_number()?;
        let rows: Vec<VersionRow> = on!(self, |conn| sqlx::query_as(VERSIONS)
            .bind(component.uuid())
            .bind(below)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        let page = Page::of(rows, page, |row| Cursor::of(&[&row.id]));
        let entry = |row: VersionRow| {
            let digest = At::new("version_entries", row.id).parse("digest", &row.digest)?;
            Ok(VersionEntry {
                tag: row.tag,
                digest,
                resolved_at: row.resolved_at,
            })
        };
        Ok(Page {
            items: page.items.into_iter().map(entry).collect::<Result<_>>()?,
            next: page.next,
        })
    }
}
