//! Evidence packets, byte for byte as signed. Insert-only (R7); one per attempt.

use chrono::{DateTime, Utc};
use sealift_common::id::{AgentId, EnvironmentId, JobId, PacketId, TargetId, TaskId, TenantId};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Cursor, PacketFilter, PacketRow, Page, PageRequest, Result, StoreError, Tx,
    engine::{on, statements},
    rows::{At, all, one},
};

macro_rules! columns {
    () => {
        "id, tenant_id, environment_id, target_id, job_id, task_id, attempt, agent_id, result, digest, envelope, \
         created_at"
    };
}

// With envelopes if the first parameter says so: they are most of a packet.
macro_rules! listed {
    () => {
        "SELECT id, tenant_id, environment_id, target_id, job_id, task_id, attempt, agent_id, result, digest, \
         CASE WHEN $1 THEN envelope END AS envelope, created_at FROM packets WHERE tenant_id = $2 AND id < $3 "
    };
}

statements! {
    INSERT = {
        "INSERT INTO packets (", columns!(), ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
    };
    BY_ID = { "SELECT ", columns!(), " FROM packets WHERE tenant_id = $1 AND id = $2" };
    OF_ATTEMPT = { "SELECT ", columns!(), " FROM packets WHERE task_id = $1 AND attempt = $2" };
    AFTER = { "SELECT id, tenant_id, agent_id, digest, envelope FROM packets WHERE id > $1 ORDER BY id LIMIT $2" };
    LIST = { listed!(), "ORDER BY id DESC LIMIT $4" };
    LIST_OF_JOB = {
        listed!(), "AND job_id = $5 AND (target_id = $6 OR $6 IS NULL) AND (environment_id = $7 OR $7 IS NULL) ",
        "ORDER BY id DESC LIMIT $4"
    };
    LIST_OF_TARGET = {
        listed!(), "AND target_id = $5 AND (environment_id = $6 OR $6 IS NULL) ORDER BY id DESC LIMIT $4"
    };
    LIST_OF_ENVIRONMENT = { listed!(), "AND environment_id = $5 ORDER BY id DESC LIMIT $4" };
}

#[derive(FromRow)]
struct PacketColumns {
    id: Uuid,
    tenant_id: Uuid,
    environment_id: Uuid,
    target_id: Uuid,
    job_id: Uuid,
    task_id: Uuid,
    attempt: i64,
    agent_id: Uuid,
    result: String,
    digest: String,
    envelope: Option<Vec<u8>>,
    created_at: DateTime<Utc>,
}

/// A packet as it stands in the database, for whoever looks whether it is as it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredPacket {
    /// Identifier.
    pub id: PacketId,
    /// Tenant.
    pub tenant_id: TenantId,
    /// The agent that signed it.
    pub agent_id: AgentId,
    /// What stands there as its digest.
    pub digest: String,
    /// The envelope.
    pub envelope: Vec<u8>,
}

#[derive(FromRow)]
struct StoredColumns {
    id: Uuid,
    tenant_id: Uuid,
    agent_id: Uuid,
    digest: String,
    envelope: Vec<u8>,
}

impl From<StoredColumns> for StoredPacket {
    fn from(row: StoredColumns) -> Self {
        Self {
            id: row.id.into(),
            tenant_id: row.tenant_id.into(),
            agent_id: row.agent_id.into(),
            digest: row.digest,
            envelope: row.envelope,
        }
    }
}

impl TryFrom<PacketColumns> for PacketRow {
    type Error = StoreError;

    fn try_from(row: PacketColumns) -> Result<Self> {
        let at = At::new("packets", row.id);
        Ok(Self {
            id: row.id.into(),
            tenant_id: row.tenant_id.into(),
            environment_id: row.environment_id.into(),
            target_id: row.target_id.into(),
            job_id: row.job_id.into(),
            task_id: row.task_id.into(),
            attempt: at.small("attempt", row.attempt)?,
            agent_id: row.agent_id.into(),
            result: row.result,
            digest: at.parse("digest", &row.digest)?,
            envelope: row.envelope.unwrap_or_default(),
            created_at: row.created_at,
        })
    }
}

impl Tx {
    /// Writes a packet. A second one of the same attempt is [`StoreError::Duplicate`] of `packet_of_attempt`.
    pub async fn insert_packet(&mut self, packet: &PacketRow) -> Result<()> {
        on!(self, |conn| sqlx::query(INSERT)
            .bind(packet.id.uuid())
            .bind(packet.tenant_id.uuid())
            .bind(packet.environment_id.uuid())
            .bind(packet.target_id.uuid())
            .bind(packet.job_id.uuid())
            .bind(packet.task_id.uuid())
            .bind(i64::from(packet.attempt))
            .bind(packet.agent_id.uuid())
            .bind(packet.result.as_str())
            .bind(packet.digest.to_string())
            .bind(packet.envelope.as_slice())
            .bind(packet.created_at)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// A packet.
    pub async fn packet(&mut self, tenant: TenantId, id: PacketId) -> Result<Option<PacketRow>> {
        let row: Option<PacketColumns> = on!(self, |conn| sqlx::query_as(BY_ID)
            .bind(tenant.uuid())
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// Packets of all tenants in the order in which they were made; those behind `after`.
    pub async fn packets_after(&mut self, after: Option<PacketId>, most: u32) -> Result<Vec<StoredPacket>> {
        let after = after.map_or(Uuid::nil(), PacketId::uuid);
        let rows: Vec<StoredColumns> = on!(self, |conn| sqlx::query_as(AFTER)
            .bind(after)
            .bind(i64::from(most))
            .fetch_all(conn)
            .await)?;
        Ok(rows.into_iter().map(StoredPacket::from).collect())
    }

    /// The packet of an attempt.
    pub async fn packet_of_attempt(&mut self, task: TaskId, attempt: u32) -> Result<Option<PacketRow>> {
        let row: Option<PacketColumns> = on!(self, |conn| sqlx::query_as(OF_ATTEMPT)
            .bind(task.uuid())
            .bind(i64::from(attempt))
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// Packets newest first; without their envelopes (which are empty then) unless those are wanted.
    pub async fn list_packets(
        &mut self,
        tenant: TenantId,
        filter: PacketFilter,
        envelopes: bool,
        page: &PageRequest,
    ) -> Result<Page<PacketRow>> {
        let below = page.below_id()?;
        let (tenant, limit) = (tenant.uuid(), page.limit());
        let job = filter.job.map(JobId::uuid);
        let target = filter.target.map(TargetId::uuid);
        let environment = filter.environment.map(EnvironmentId::uuid);
        // One statement per leading column, so that each has its index.
        let rows: Vec<PacketColumns> = if job.is_some() {
            on!(self, |conn| sqlx::query_as(LIST_OF_JOB)
                .bind(envelopes)
                .bind(tenant)
                .bind(below)
                .bind(limit)
                .bind(job)
                .bind(target)
                .bind(environment)
                .fetch_all(conn)
                .await)?
        } else if target.is_some() {
            on!(self, |conn| sqlx::query_as(LIST_OF_TARGET)
                .bind(envelopes)
                .bind(tenant)
                .bind(below)
                .bind(limit)
                .bind(target)
                .bind(environment)
                .fetch_all(conn)
                .await)?
        } else if environment.is_some() {
            on!(self, |conn| sqlx::query_as(LIST_OF_ENVIRONMENT)
                .bind(envelopes)
                .bind(tenant)
                .bind(below)
                .bind(limit)
                .bind(environment)
                .fetch_all(conn)
                .await)?
        } else {
            on!(self, |conn| sqlx::query_as(LIST)
                .bind(envelopes)
                .bind(tenant)
                .bind(below)
                .bind(limit)
                .fetch_all(conn)
                .await)?
        };
        Ok(Page::of(all(rows)?, page, |packet: &PacketRow| {
            Cursor::of(&[&packet.id])
        }))
    }
}
