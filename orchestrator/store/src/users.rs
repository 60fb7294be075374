//! Users: people and machines that call the operator API.

use chrono::{DateTime, Utc};
use sealift_common::{
    id::{TenantId, UserId},
    inventory::User,
    name::Name,
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Change, Cursor, Page, PageRequest, Result, StoreError, Tx,
    engine::{on, statements},
    rows::{At, all, one},
};

macro_rules! columns {
    () => {
        "id, tenant_id, name, role, created_at, revoked_at"
    };
}

statements! {
    INSERT = { "INSERT INTO users (", columns!(), ") VALUES ($1, $2, $3, $4, $5, $6)" };
    BY_ID = { "SELECT ", columns!(), " FROM users WHERE id = $1" };
    BY_NAME = { "SELECT ", columns!(), " FROM users WHERE tenant_id = $1 AND name = $2" };
    LIST = { "SELECT ", columns!(), " FROM users WHERE tenant_id = $1 AND name > $2 ORDER BY name LIMIT $3" };
    REVOKE = { "UPDATE users SET revoked_at = $2, revoked_reason = $3 WHERE id = $1 AND revoked_at IS NULL" };
    REVOKE_CERTIFICATES = { "UPDATE certificates SET revoked_at = $2 WHERE user_id = $1 AND revoked_at IS NULL" };
}

#[derive(FromRow)]
pub(crate) struct UserRow {
    pub(crate) id: Uuid,
    pub(crate) tenant_id: Uuid,
    pub(crate) name: String,
    pub(crate) role: String,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) revoked_at: Option<DateTime<Utc>>,
}

impl TryFrom<UserRow> for User {
    type Error = StoreError;

    fn try_from(row: UserRow) -> Result<Self> {
        let at = At::new("users", row.id);
        Ok(Self {
            id: row.id.into(),
            tenant_id: row.tenant_id.into(),
            name: at.parse("name", &row.name)?,
            role: at.parse("role", &row.role)?,
            created_at: row.created_at,
            revoked_at: row.revoked_at,
        })
    }
}

impl Tx {
    /// Makes a user.
    pub async fn insert_user(&mut self, user: &User) -> Result<()> {
        on!(self, |conn| sqlx::query(INSERT)
            .bind(user.id.uuid())
            .bind(user.tenant_id.uuid())
            .bind(user.name.as_str())
            .bind(user.role.as_str())
            .bind(user.created_at)
            .bind(user.revoked_at)
            .execute(conn)
            .await
            .map(drop))?;
        self.note(Change::User(user.id));
        Ok(())
    }

    /// A user. Not scoped by tenant: for the orchestrator's own work.
    pub async fn user(&mut self, id: UserId) -> Result<Option<User>> {
        let row: Option<UserRow> = on!(self, |conn| sqlx::query_as(BY_ID)
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// A user by name.
    pub async fn user_by_name(&mut self, tenant: TenantId, name: &Name) -> Result<Option<User>> {
        let row: Option<UserRow> = on!(self, |conn| sqlx::query_as(BY_NAME)
            .bind(tenant.uuid())
            .bind(name.as_str())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// Users by name, the revoked ones too.
    pub async fn list_users(&mut self, tenant: TenantId, page: &PageRequest) -> Result<Page<User>> {
        let after = page.above_text()?;
        let rows: Vec<UserRow> = on!(self, |conn| sqlx::query_as(LIST)
            .bind(tenant.uuid())
            .bind(after)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        Ok(Page::of(all(rows)?, page, |user: &User| {
            Cursor::of(&[&user.name])
        }))
    }

    /// Revokes a user with all certificates. Doing it again changes nothing.
    pub async fn revoke_user(&mut self, id: UserId, reason: &str, now: DateTime<Utc>) -> Result<()> {
        on!(self, |conn| sqlx::query(REVOKE)
            .bind(id.uuid())
            .bind(now)
            .bind(reason)
            .execute(conn)
            .await
            .map(drop))?;
        on!(self, |conn| sqlx::query(REVOKE_CERTIFICATES)
            .bind(id.uuid())
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        self.note(Change::User(id));
        Ok(())
    }
}
