//! Agents, their heartbeats and report numbers, and the tokens by which they join.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use sealift_common::{
    bounds,
    id::{AgentId, EnvironmentId, JoinTokenId, SessionId, TargetId, TenantId},
    inventory::{Agent, AgentFacts, AgentIntent, IntentNote},
};
use sqlx::{FromRow, QueryBuilder};
use uuid::Uuid;

use crate::{
    Change, Cursor, Heartbeat, JoinToken, Page, PageRequest, Result, StoreError, Tx,
    engine::{of_ids, on, statements},
    rows::{At, all, count, int, json, one},
};

macro_rules! select {
    () => {
        "SELECT a.id, a.tenant_id, a.name, a.intent, a.intent_reason, a.intent_by, a.intent_at, a.revision, \
         a.evidence_key, a.facts, a.created_at, h.last_seen_at, h.session_id, a.revoked_at FROM agents a LEFT JOIN agent_heartbeats h ON h.agent_id = a.id "
    };
}

macro_rules! token_columns {
    () => {
        "id, tenant_id, target_id, secret_hash, expires_at, created_by, created_at, used_at, used_by"
    };
}

statements! {
    INSERT = {
        "INSERT INTO agents (id, tenant_id, name, intent, intent_reason, intent_by, intent_at, revision, evidence_key, ",
        "facts, created_at, revoked_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)"
    };
    BY_TENANT_AND_ID = { select!(), "WHERE a.tenant_id = $1 AND a.id = $2" };
    BY_ID = { select!(), "WHERE a.id = $1" };
    LIST = {
        select!(), "WHERE a.tenant_id = $1 AND (a.name, a.id) > ($2, $3) ORDER BY a.name, a.id LIMIT $4"
    };
    OF_ENVIRONMENT = {
        select!(), "WHERE a.id IN (SELECT agent_id FROM targets WHERE environment_id = $1 AND archived_at IS NULL) ",
        "ORDER BY a.name, a.id LIMIT $2"
    };
    SET_INTENT = {
        "UPDATE agents SET intent = $3, intent_reason = $4, intent_by = $5, intent_at = $6, revision = revision + 1 ",
        "WHERE id = $1 AND revision = $2 AND intent <> 'revoked'"
    };
    REVOKE = {
        "UPDATE agents SET intent = 'revoked', revoked_at = $2, intent_at = $2, intent_reason = $3, intent_by = $4, ",
        "revision = revision + 1 WHERE id = $1 AND intent <> 'revoked'"
    };
    REVOKE_CERTIFICATES = { "UPDATE certificates SET revoked_at = $2 WHERE agent_id = $1 AND revoked_at IS NULL" };
    UPDATE_FACTS = { "UPDATE agents SET facts = $2, facts_at = $3 WHERE id = $1" };
    INSERT_TOKEN = {
        "INSERT INTO join_tokens (", token_columns!(), ") VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)"
    };
    TOKEN = { "SELECT ", token_columns!(), " FROM join_tokens WHERE id = $1" };
    USE_TOKEN = {
        "UPDATE join_tokens SET used_at = $3, used_by = $2 WHERE id = $1 AND used_at IS NULL AND expires_at > $3"
    };
    COUNT_LIVE_TOKENS = {
        "SELECT COUNT(*) FROM join_tokens WHERE target_id = $1 AND used_at IS NULL AND expires_at > $2"
    };
    STANDING = {
        "SELECT COALESCE(r.acknowledged, 0) FROM agents a LEFT JOIN agent_reports r ON r.agent_id = a.id ",
        "WHERE a.id = $1 AND a.revoked_at IS NULL"
    };
    ACKNOWLEDGED = { "SELECT acknowledged FROM agent_reports WHERE agent_id = $1" };
    ACKNOWLEDGE = {
        "INSERT INTO agent_reports (agent_id, acknowledged) VALUES ($1, $2) ON CONFLICT (agent_id) ",
        "DO UPDATE SET acknowledged = excluded.acknowledged ",
        "WHERE agent_reports.acknowledged < excluded.acknowledged"
    };
}

const BY_IDS: &str = concat!(select!(), "WHERE a.id IN (");
/// The bulk statement: its rows come between these two.
const HEARTBEATS: &str = "INSERT INTO agent_heartbeats (agent_id, last_seen_at, session_id) ";
const HEARTBEATS_FORWARD: &str = " ON CONFLICT (agent_id) DO UPDATE SET last_seen_at = excluded.last_seen_at, \
     session_id = excluded.session_id WHERE agent_heartbeats.last_seen_at < excluded.last_seen_at";
/// Rows per bulk statement: far below the bound on parameters of both engines.
const BULK: usize = 1000;
/// Most agents that serve one environment: each serves at least one target.
const MOST: i64 = bounds::TARGETS_PER_JOB as i64 + 1;

#[derive(FromRow)]
pub(crate) struct AgentRow {
    pub(crate) id: Uuid,
    pub(crate) tenant_id: Uuid,
    pub(crate) name: String,
    pub(crate) intent: String,
    pub(crate) intent_reason: String,
    pub(crate) intent_by: String,
    pub(crate) intent_at: DateTime<Utc>,
    pub(crate) revision: i64,
    pub(crate) evidence_key: Vec<u8>,
    pub(crate) facts: String,
    pub(crate) created_at: DateTime<Utc>,
    pub(crate) last_seen_at: Option<DateTime<Utc>>,
    pub(crate) session_id: Option<Uuid>,
    pub(crate) revoked_at: Option<DateTime<Utc>>,
}

impl TryFrom<AgentRow> for Agent {
    type Error = StoreError;

    fn try_from(row: AgentRow) -> Result<Self> {
        let at = At::new("agents", row.id);
        Ok(Self {
            id: row.id.into(),
            tenant_id: row.tenant_id.into(),
            name: at.parse("name", &row.name)?,
            intent: at.parse("intent", &row.intent)?,
            intent_note: IntentNote {
                reason: row.intent_reason,
                by: row.intent_by,
                at: row.intent_at,
            },
            revision: at.number("revision", row.revision)?,
            evidence_key: at.bytes32("evidence_key", &row.evidence_key)?,
            facts: at.json("facts", &row.facts)?,
            created_at: row.created_at,
            last_seen_at: row.last_seen_at,
            session: row.session_id.map(SessionId::from),
            revoked_at: row.revoked_at,
        })
    }
}

#[derive(FromRow)]
struct JoinTokenRow {
    id: Uuid,
    tenant_id: Uuid,
    target_id: Uuid,
    secret_hash: Vec<u8>,
    expires_at: DateTime<Utc>,
    created_by: String,
    created_at: DateTime<Utc>,
    used_at: Option<DateTime<Utc>>,
    used_by: Option<Uuid>,
}

impl TryFrom<JoinTokenRow> for JoinToken {
    type Error = StoreError;

    fn try_from(row: JoinTokenRow) -> Result<Self> {
        let at = At::new("join_tokens", row.id);
        Ok(Self {
            id: row.id.into(),
            tenant_id: row.tenant_id.into(),
            target_id: row.target_id.into(),
            secret_hash: at.bytes32("secret_hash", &row.secret_hash)?,
            expires_at: row.expires_at,
            created_by: row.created_by,
            created_at: row.created_at,
            used_at: row.used_at,
            used_by: row.used_by.map(AgentId::from),
        })
    }
}

impl Tx {
    /// Records an enrolled agent.
    pub async fn insert_agent(&mut self, agent: &Agent) -> Result<()> {
        let facts = json(&agent.facts)?;
        let revision = int(agent.revision)?;
        on!(self, |conn| sqlx::query(INSERT)
            .bind(agent.id.uuid())
            .bind(agent.tenant_id.uuid())
            .bind(agent.name.as_str())
            .bind(agent.intent.as_str())
            .bind(agent.intent_note.reason.as_str())
            .bind(agent.intent_note.by.as_str())
            .bind(agent.intent_note.at)
            .bind(revision)
            .bind(agent.evidence_key.as_slice())
            .bind(facts)
            .bind(agent.created_at)
            .bind(agent.revoked_at)
            .execute(conn)
            .await
            .map(drop))?;
        if let (Some(at), Some(session)) = (agent.last_seen_at, agent.session) {
            let beat = Heartbeat {
                agent_id: agent.id,
                session,
                at,
            };
            self.record_heartbeats(&[beat]).await?;
        }
        self.note(Change::Agent(agent.id));
        Ok(())
    }

    /// An agent of a tenant.
    pub async fn agent(&mut self, tenant: TenantId, id: AgentId) -> Result<Option<Agent>> {
        let row: Option<AgentRow> = on!(self, |conn| sqlx::query_as(BY_TENANT_AND_ID)
            .bind(tenant.uuid())
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// An agent. Not scoped by tenant: for the orchestrator's own work.
    pub async fn agent_by_id(&mut self, id: AgentId) -> Result<Option<Agent>> {
        let row: Option<AgentRow> = on!(self, |conn| sqlx::query_as(BY_ID)
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// Agents by identifier, many per statement; those that do not exist are left out. Not scoped by tenant: for identifiers from rows
    /// that are.
    pub async fn agents_by_ids(&mut self, ids: &[AgentId]) -> Result<BTreeMap<AgentId, Agent>> {
        let mut agents = BTreeMap::new();
        for chunk in ids.chunks(BULK) {
            let rows: Vec<AgentRow> = on!(self, |conn| {
                let ids = chunk.iter().map(|id| id.uuid());
                let mut query = of_ids(BY_IDS, ids, ")");
                query.build_query_as().fetch_all(conn).await
            })?;
            let found: Vec<Agent> = all(rows)?;
            agents.extend(found.into_iter().map(|agent| (agent.id, agent)));
        }
        Ok(agents)
    }

    /// Agents by name, the revoked ones too.
    pub async fn list_agents(&mut self, tenant: TenantId, page: &PageRequest) -> Result<Page<Agent>> {
        let (name, id) = page.above_text_id()?;
        let rows: Vec<AgentRow> = on!(self, |conn| sqlx::query_as(LIST)
            .bind(tenant.uuid())
            .bind(name)
            .bind(id)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        Ok(Page::of(all(rows)?, page, |agent: &Agent| {
            Cursor::of(&[&agent.name, &agent.id])
        }))
    }

    /// Agents that serve live targets of an environment, by name.
    pub async fn agents_of_environment(&mut self, environment: EnvironmentId) -> Result<Vec<Agent>> {
        let rows: Vec<AgentRow> = on!(self, |conn| sqlx::query_as(OF_ENVIRONMENT)
            .bind(environment.uuid())
            .bind(MOST)
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// Writes what is wanted of an agent from now on, if the stored revision is still that of `agent`; otherwise
    /// [`StoreError::Conflict`]. Revoking is [`Tx::revoke_agent`], and is not taken back.
    pub async fn set_agent_intent(
        &mut self,
        agent: &Agent,
        intent: AgentIntent,
        note: &IntentNote,
    ) -> Result<()> {
        let revision = int(agent.revision)?;
        let changed = on!(self, |conn| sqlx::query(SET_INTENT)
            .bind(agent.id.uuid())
            .bind(revision)
            .bind(intent.as_str())
            .bind(note.reason.as_str())
            .bind(note.by.as_str())
            .bind(note.at)
            .execute(conn)
            .await
            .map(|done| done.rows_affected()))?;
        self.note(Change::Agent(agent.id));
        if changed == 1 {
            Ok(())
        } else {
            Err(StoreError::Conflict)
        }
    }

    /// Revokes an agent with all certificates. Doing it again changes nothing.
    pub async fn revoke_agent(&mut self, id: AgentId, note: &IntentNote) -> Result<()> {
        let now = note.at;
        on!(self, |conn| sqlx::query(REVOKE)
            .bind(id.uuid())
            .bind(now)
            .bind(note.reason.as_str())
            .bind(note.by.as_str())
            .execute(conn)
            .await
            .map(drop))?;
        on!(self, |conn| sqlx::query(REVOKE_CERTIFICATES)
            .bind(id.uuid())
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        self.note(Change::Agent(id));
        Ok(())
    }

    /// Replaces what an agent said about itself.
    pub async fn update_agent_facts(
        &mut self,
        id: AgentId,
        facts: &AgentFacts,
        now: DateTime<Utc>,
    ) -> Result<()> {
        let facts = json(facts)?;
        on!(self, |conn| sqlx::query(UPDATE_FACTS)
            .bind(id.uuid())
            .bind(facts)
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        self.note(Change::Agent(id));
        Ok(())
    }

    /// Records when agents were last heard; times only move forward. One statement per thousand agents.
    pub async fn record_heartbeats(&mut self, beats: &[Heartbeat]) -> Result<()> {
        // Each agent once (a statement may not touch a row twice) and in one order (so that writers do not deadlock).
        let mut newest = BTreeMap::new();
        for beat in beats {
            let known = newest.entry(beat.agent_id).or_insert(beat);
            if known.at < beat.at {
                *known = beat;
            }
        }
        let beats: Vec<_> = newest.into_values().collect();
        for chunk in beats.chunks(BULK) {
            on!(self, |conn| {
                let mut query = QueryBuilder::new(HEARTBEATS);
                query.push_values(chunk, |mut row, beat| {
                    row.push_bind(beat.agent_id.uuid())
                        .push_bind(beat.at)
                        .push_bind(beat.session.uuid());
                });
                query.push(HEARTBEATS_FORWARD);
                query.build().execute(conn).await.map(drop)
            })?;
        }
        Ok(())
    }

    /// Makes a join token.
    pub async fn insert_join_token(&mut self, token: &JoinToken) -> Result<()> {
        on!(self, |conn| sqlx::query(INSERT_TOKEN)
            .bind(token.id.uuid())
            .bind(token.tenant_id.uuid())
            .bind(token.target_id.uuid())
            .bind(token.secret_hash.as_slice())
            .bind(token.expires_at)
            .bind(token.created_by.as_str())
            .bind(token.created_at)
            .bind(token.used_at)
            .bind(token.used_by.map(AgentId::uuid))
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// A join token.
    pub async fn join_token(&mut self, id: JoinTokenId) -> Result<Option<JoinToken>> {
        let row: Option<JoinTokenRow> = on!(self, |conn| sqlx::query_as(TOKEN)
            .bind(id.uuid())
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// Uses a join token for an agent (that must be recorded already); `false` when it was used before or has expired.
    pub async fn use_join_token(
        &mut self,
        id: JoinTokenId,
        agent: AgentId,
        now: DateTime<Utc>,
    ) -> Result<bool> {
        let changed = on!(self, |conn| sqlx::query(USE_TOKEN)
            .bind(id.uuid())
            .bind(agent.uuid())
            .bind(now)
            .execute(conn)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(changed == 1)
    }

    /// How many join tokens of a target can still be used.
    pub async fn count_live_join_tokens(&mut self, target: TargetId, now: DateTime<Utc>) -> Result<u32> {
        let live: i64 = on!(self, |conn| sqlx::query_scalar(COUNT_LIVE_TOKENS)
            .bind(target.uuid())
            .bind(now)
            .fetch_one(conn)
            .await)?;
        Ok(count(live))
    }

    /// Highest report number of an agent that was acknowledged, 0 before the first; `None` when there is no such agent, or it was
    /// revoked.
    pub async fn standing_of_agent(&mut self, agent: AgentId) -> Result<Option<u64>> {
        let number: Option<i64> = on!(self, |conn| sqlx::query_scalar(STANDING)
            .bind(agent.uuid())
            .fetch_optional(conn)
            .await)?;
        number
            .map(|number| At::new("agent_reports", agent).number("acknowledged", number))
            .transpose()
    }

    /// Highest report number of an agent that was acknowledged; 0 before the first.
    pub async fn acknowledged_report(&mut self, agent: AgentId) -> Result<u64> {
        let number: Option<i64> = on!(self, |conn| sqlx::query_scalar(ACKNOWLEDGED)
            .bind(agent.uuid())
            .fetch_optional(conn)
            .await)?;
        At::new("agent_reports", agent).number("acknowledged", number.unwrap_or(0))
    }

    /// Records that reports up to `number` are stored. A lower number changes nothing.
    pub async fn set_acknowledged_report(&mut self, agent: AgentId, number: u64) -> Result<()> {
        let number = int(number)?;
        on!(self, |conn| sqlx::query(ACKNOWLEDGE)
            .bind(agent.uuid())
            .bind(number)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }
}
