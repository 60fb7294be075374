//! Tenants.

use chrono::{DateTime, Utc};
use sealift_common::{id::TenantId, inventory::Tenant, name::Name};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Cursor, Page, PageRequest, Result, StoreError, Tx,
    engine::{on, statements},
    rows::{At, all, one},
};

statements! {
    INSERT = { "INSERT INTO tenants (id, name, created_at) VALUES ($1, $2, $3)" };
    BY_ID = { "SELECT id, name, created_at FROM tenants WHERE id = $1" };
    BY_NAME = { "SELECT id, name, created_at FROM tenants WHERE name = $1" };
    LIST = { "SELECT id, name, created_at FROM tenants WHERE name > $1 ORDER BY name LIMIT $2" };
}

#[derive(FromRow)]
struct TenantRow {
    id: Uuid,
    name: String,
    created_at: DateTime<Utc>,
}

impl TryFrom<TenantRow> for Tenant {
    type Error = StoreError;

    fn try_from(row: TenantRow) -> Result<Self> {
        let at = At::new("tenants", row.id);
        Ok(Self {
            id: row.id.into(),
            name: at.parse("name", &row.name)?,
            created_at: row.created_at,
        })
    }
}

impl Tx {
    /// Makes a tenant.
    pub async fn insert_tenant(&mut self, tenant: &Tenant) -> Result<()> {
        on!(self, |conn| sqlx::query(INSERT)
            .bind(tenant.id.uuid())
            .bind(tenant.name.as_str())
            .bind(tenant.created_at)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// A tenant.
    pub async fn tenant(&mut self, id: TenantId) -> Result<Option<Tenant>> {
        let row: Option<TenantRow> = on!(self, |conn| sqlx::query_as(BY_ID)
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// A tenant by name.
    pub async fn tenant_by_name(&mut self, name: &Name) -> Result<Option<Tenant>> {
        let row: Option<TenantRow> = on!(self, |conn| sqlx::query_as(BY_NAME)
            .bind(name.as_str())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// Tenants by name.
    pub async fn list_tenants(&mut self, page: &PageRequest) -> Result<Page<Tenant>> {
        let after = page.above_text()?;
        let rows: Vec<TenantRow> = on!(self, |conn| sqlx::query_as(LIST)
            .bind(after)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        Ok(Page::of(all(rows)?, page, |tenant: &Tenant| {
            Cursor::of(&[&tenant.name])
        }))
    }
}
