//! The audit log: one chain of hashes for the whole orchestrator (R7, R13). Insert-only.

use chrono::{DateTime, SubsecRound, Utc};
use sealift_common::{
    audit::{AuditEntry, AuditEvent},
    digest::Digest,
    id::TenantId,
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Cursor, Page, PageRequest, Result, StoreError, Tx,
    engine::{on, statements},
    rows::{At, all, int},
};

macro_rules! columns {
    () => {
        "seq, at, tenant_id, actor, role, action, resource, outcome, reason, request_id, previous"
    };
}

statements! {
    LOCK_HEAD = { "UPDATE audit_head SET seq = seq + 1 WHERE id = 1 RETURNING seq, hash" };
    SET_HEAD = { "UPDATE audit_head SET hash = $1 WHERE id = 1" };
    HEAD = { "SELECT seq, hash FROM audit_head WHERE id = 1" };
    INSERT = {
        "INSERT INTO audit_events (", columns!(), ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)"
    };
    LIST = { "SELECT ", columns!(), " FROM audit_events WHERE seq < $1 ORDER BY seq DESC LIMIT $2" };
    LIST_OF_TENANT = {
        "SELECT ", columns!(), " FROM audit_events WHERE tenant_id = $1 AND seq < $2 ORDER BY seq DESC LIMIT $3"
    };
    FROM_SEQ = { "SELECT ", columns!(), " FROM audit_events WHERE seq >= $1 ORDER BY seq LIMIT $2" };
}

#[derive(FromRow)]
struct AuditRow {
    seq: i64,
    at: DateTime<Utc>,
    tenant_id: Option<Uuid>,
    actor: String,
    role: String,
    action: String,
    resource: String,
    outcome: String,
    reason: String,
    request_id: String,
    previous: String,
}

impl TryFrom<AuditRow> for AuditEvent {
    type Error = StoreError;

    fn try_from(row: AuditRow) -> Result<Self> {
        let at = At::new("audit_events", row.seq);
        Ok(Self {
            seq: at.number("seq", row.seq)?,
            at: row.at,
            previous: at.parse("previous", &row.previous)?,
            entry: AuditEntry {
                tenant_id: row.tenant_id.map(TenantId::from),
                actor: row.actor,
                role: row.role,
                action: row.action,
                resource: row.resource,
                outcome: at.parse("outcome", &row.outcome)?,
                reason: row.reason,
                request_id: row.request_id,
            },
        })
    }
}

impl Tx {
    /// Appends to the chain and gives the event's number. Others wait until this transaction ends, so append last.
    pub async fn append_audit(&mut self, entry: &AuditEntry, now: DateTime<Utc>) -> Result<u64> {
        let head: (i64, String) = on!(self, |conn| sqlx::query_as(LOCK_HEAD).fetch_one(conn).await)?;
        let at = At::new("audit_head", 1);
        let event = AuditEvent {
            seq: at.number("seq", head.0)?,
            // What is hashed must be what is read back: the databases keep microseconds.
            at: now.trunc_subsecs(6),
            entry: entry.clone(),
            previous: at.parse("hash", &head.1)?,
        };
        on!(self, |conn| sqlx::query(INSERT)
            .bind(head.0)
            .bind(event.at)
            .bind(entry.tenant_id.map(TenantId::uuid))
            .bind(entry.actor.as_str())
            .bind(entry.role.as_str())
            .bind(entry.action.as_str())
            .bind(entry.resource.as_str())
            .bind(entry.outcome.as_str())
            .bind(entry.reason.as_str())
            .bind(entry.request_id.as_str())
            .bind(event.previous.to_string())
            .execute(conn)
            .await
            .map(drop))?;
        let hash = event.hash()?.to_string();
        on!(self, |conn| sqlx::query(SET_HEAD)
            .bind(hash)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(event.seq)
    }

    /// Audit events newest first, of one tenant or of all.
    pub async fn list_audit(
        &mut self,
        tenant: Option<TenantId>,
        page: &PageRequest,
    ) -> Result<Page<AuditEvent>> {
        let below = page.below_number()?;
        let rows: Vec<AuditRow> = match tenant {
            None => on!(self, |conn| sqlx::query_as(LIST)
                .bind(below)
                .bind(page.limit())
                .fetch_all(conn)
                .await)?,
            Some(tenant) => on!(self, |conn| sqlx::query_as(LIST_OF_TENANT)
                .bind(tenant.uuid())
                .bind(below)
                .bind(page.limit())
                .fetch_all(conn)
                .await)?,
        };
        Ok(Page::of(all(rows)?, page, |event: &AuditEvent| {
            Cursor::of(&[&event.seq])
        }))
    }

    /// Number and hash of the newest event; 0 and zeros before the first.
    pub async fn audit_head(&mut self) -> Result<(u64, Digest)> {
        let (seq, hash): (i64, String) = on!(self, |conn| sqlx::query_as(HEAD).fetch_one(conn).await)?;
        let at = At::new("audit_head", 1);
        Ok((at.number("seq", seq)?, at.parse("hash", &hash)?))
    }

    /// Checks up to `limit` links of the chain from event `from_seq` (at least 1) on: numbers without gap, each event naming
    /// the hash of the one before, the last one the head. Gives how many events were read, or [`StoreError::Corrupt`] at the
    /// first that does not fit.
    pub async fn verify_audit_chain(&mut self, from_seq: u64, limit: u32) -> Result<u64> {
        let first = from_seq.max(1);
        let start = int(first)?;
        let rows: Vec<AuditRow> = on!(self, |conn| sqlx::query_as(FROM_SEQ)
            .bind(start)
            .bind(i64::from(limit))
            .fetch_all(conn)
            .await)?;
        let events: Vec<AuditEvent> = all(rows)?;
        let (newest, head) = self.audit_head().await?;
        for (event, seq) in events.iter().zip(first..) {
            if event.seq != seq {
                return Err(At::new("audit_events", seq).corrupt("seq"));
            }
            let next = events.get((seq - first + 1) as usize).map(|next| next.previous);
            let wanted = next.or_else(|| (seq == newest).then_some(head));
            let hash = event.hash()?;
            if wanted.is_some_and(|wanted| wanted != hash) {
                return Err(At::new("audit_events", seq + 1).corrupt("previous"));
            }
        }
        let read = events.len() as u64;
        let missing = read < u64::from(limit) && first + read <= newest;
        if missing {
            return Err(At::new("audit_events", first + read).corrupt("seq"));
        }
        Ok(read)
    }
}
