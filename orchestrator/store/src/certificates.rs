//! Client certificates by serial number: the one look-up that authentication needs.

use chrono::{DateTime, Utc};
use sealift_common::id::AgentId;
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Authenticated, AuthenticatedPrincipal, Certificate, CertificateSubject, Result, StoreError, Tx,
    agents::AgentRow,
    engine::{on, statements},
    rows::{At, all, one},
    users::UserRow,
};

macro_rules! columns {
    () => {
        "serial, tenant_id, user_id, agent_id, not_before, not_after, revoked_at"
    };
}

statements! {
    INSERT = { "INSERT INTO certificates (", columns!(), ") VALUES ($1, $2, $3, $4, $5, $6, $7)" };
    BY_SERIAL = { "SELECT ", columns!(), " FROM certificates WHERE serial = $1" };
    AUTHENTICATE = {
        "SELECT c.serial, c.tenant_id, c.user_id, c.agent_id, c.not_before, c.not_after, c.revoked_at, ",
        "t.name AS tenant, u.name AS user_name, u.role, u.created_at AS user_created_at, ",
        "u.revoked_at AS user_revoked_at, a.name AS agent_name, a.intent, a.intent_reason, ",
        "a.intent_by, a.intent_at, a.revision, a.evidence_key, a.facts, ",
        "a.created_at AS agent_created_at, a.revoked_at AS agent_revoked_at, h.last_seen_at, h.session_id ",
        "FROM certificates c JOIN tenants t ON t.id = c.tenant_id ",
        "LEFT JOIN users u ON u.id = c.user_id LEFT JOIN agents a ON a.id = c.agent_id ",
        "LEFT JOIN agent_heartbeats h ON h.agent_id = c.agent_id WHERE c.serial = $1"
    };
    REVOKED_SINCE = {
        "SELECT id AS user_id, NULL AS agent_id FROM users WHERE revoked_at >= $1 ",
        "UNION ALL SELECT NULL AS user_id, id AS agent_id FROM agents WHERE revoked_at >= $1"
    };
    RETIRE = {
        "UPDATE certificates SET revoked_at = $2 WHERE agent_id = $1 AND revoked_at IS NULL AND serial NOT IN (",
        "SELECT serial FROM certificates WHERE agent_id = $1 AND revoked_at IS NULL ",
        "ORDER BY not_before DESC, serial DESC LIMIT $3)"
    };
    PURGE = {
        "DELETE FROM certificates WHERE serial IN (SELECT serial FROM certificates WHERE not_after < $1 ",
        "ORDER BY not_after LIMIT $2)"
    };
}

#[derive(FromRow)]
struct CertificateRow {
    serial: String,
    tenant_id: Uuid,
    user_id: Option<Uuid>,
    agent_id: Option<Uuid>,
    not_before: DateTime<Utc>,
    not_after: DateTime<Utc>,
    revoked_at: Option<DateTime<Utc>>,
}

impl TryFrom<CertificateRow> for Certificate {
    type Error = StoreError;

    fn try_from(row: CertificateRow) -> Result<Self> {
        let subject = match (row.user_id, row.agent_id) {
            (Some(user), None) => CertificateSubject::User(user.into()),
            (None, Some(agent)) => CertificateSubject::Agent(agent.into()),
            _ => return Err(At::new("certificates", &row.serial).corrupt("user_id")),
        };
        Ok(Self {
            serial: row.serial,
            tenant_id: row.tenant_id.into(),
            subject,
            not_before: row.not_before,
            not_after: row.not_after,
            revoked_at: row.revoked_at,
        })
    }
}

#[derive(FromRow)]
struct SubjectRow {
    user_id: Option<Uuid>,
    agent_id: Option<Uuid>,
}

impl TryFrom<SubjectRow> for CertificateSubject {
    type Error = StoreError;

    fn try_from(row: SubjectRow) -> Result<Self> {
        match (row.user_id, row.agent_id) {
            (Some(user), None) => Ok(Self::User(user.into())),
            (None, Some(agent)) => Ok(Self::Agent(agent.into())),
            _ => Err(At::new("certificates", "revoked").corrupt("user_id")),
        }
    }
}

#[derive(FromRow)]
struct AuthenticatedRow {
    #[sqlx(flatten)]
    certificate: CertificateRow,
    tenant: String,
    user_name: Option<String>,
    role: Option<String>,
    user_created_at: Option<DateTime<Utc>>,
    user_revoked_at: Option<DateTime<Utc>>,
    agent_name: Option<String>,
    intent: Option<String>,
    intent_reason: Option<String>,
    intent_by: Option<String>,
    intent_at: Option<DateTime<Utc>>,
    revision: Option<i64>,
    evidence_key: Option<Vec<u8>>,
    facts: Option<String>,
    agent_created_at: Option<DateTime<Utc>>,
    agent_revoked_at: Option<DateTime<Utc>>,
    last_seen_at: Option<DateTime<Utc>>,
    session_id: Option<Uuid>,
}

impl TryFrom<AuthenticatedRow> for Authenticated {
    type Error = StoreError;

    fn try_from(row: AuthenticatedRow) -> Result<Self> {
        let at = At::new("certificates", &row.certificate.serial);
        let certificate = Certificate::try_from(row.certificate)?;
        let tenant_id = certificate.tenant_id.uuid();
        let principal = match certificate.subject {
            CertificateSubject::User(id) => {
                let missing = || at.corrupt("user_id");
                let user = UserRow {
                    id: id.uuid(),
                    tenant_id,
                    name: row.user_name.ok_or_else(missing)?,
                    role: row.role.ok_or_else(missing)?,
                    created_at: row.user_created_at.ok_or_else(missing)?,
                    revoked_at: row.user_revoked_at,
                };
                AuthenticatedPrincipal::User(user.try_into()?)
            }
            CertificateSubject::Agent(id) => {
                let missing = || at.corrupt("agent_id");
                let agent = AgentRow {
                    id: id.uuid(),
                    tenant_id,
                    name: row.agent_name.ok_or_else(missing)?,
                    intent: row.intent.ok_or_else(missing)?,
                    intent_reason: row.intent_reason.ok_or_else(missing)?,
                    intent_by: row.intent_by.ok_or_else(missing)?,
                    intent_at: row.intent_at.ok_or_else(missing)?,
                    revision: row.revision.ok_or_else(missing)?,
                    evidence_key: row.evidence_key.ok_or_else(missing)?,
                    facts: row.facts.ok_or_else(missing)?,
                    created_at: row.agent_created_at.ok_or_else(missing)?,
                    last_seen_at: row.last_seen_at,
                    session_id: row.session_id,
                    revoked_at: row.agent_revoked_at,
                };
                AuthenticatedPrincipal::Agent(agent.try_into()?)
            }
        };
        let tenant = at.parse("tenant_id", &row.tenant)?;
        Ok(Self {
            certificate,
            tenant,
            principal,
        })
    }
}

impl Tx {
    /// Records an issued certificate.
    pub async fn insert_certificate(&mut self, certificate: &Certificate) -> Result<()> {
        let (user, agent) = match certificate.subject {
            CertificateSubject::User(id) => (Some(id.uuid()), None),
            CertificateSubject::Agent(id) => (None, Some(id.uuid())),
        };
        on!(self, |conn| sqlx::query(INSERT)
            .bind(certificate.serial.as_str())
            .bind(certificate.tenant_id.uuid())
            .bind(user)
            .bind(agent)
            .bind(certificate.not_before)
            .bind(certificate.not_after)
            .bind(certificate.revoked_at)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// A certificate by serial number (lower-case hex).
    pub async fn certificate(&mut self, serial: &str) -> Result<Option<Certificate>> {
        let row: Option<CertificateRow> = on!(self, |conn| sqlx::query_as(BY_SERIAL)
            .bind(serial)
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// All that authentication needs to know of a certificate, in one query.
    pub async fn authenticate(&mut self, serial: &str) -> Result<Option<Authenticated>> {
        let row: Option<AuthenticatedRow> = on!(self, |conn| sqlx::query_as(AUTHENTICATE)
            .bind(serial)
            .fetch_optional(conn)
            .await)?;
        one(row)
    }

    /// Whoever was revoked at `since` or later, so that replicas can end their live streams.
    pub async fn revoked_since(&mut self, since: DateTime<Utc>) -> Result<Vec<CertificateSubject>> {
        let rows: Vec<SubjectRow> = on!(self, |conn| sqlx::query_as(REVOKED_SINCE)
            .bind(since)
            .fetch_all(conn)
            .await)?;
        all(rows)
    }

    /// After a renewal: only the `keep_newest` certificates of the agent count from now on.
    pub async fn retire_agent_certificates(
        &mut self,
        agent: AgentId,
        keep_newest: u32,
        now: DateTime<Utc>,
    ) -> Result<()> {
        on!(self, |conn| sqlx::query(RETIRE)
            .bind(agent.uuid())
            .bind(now)
            .bind(i64::from(keep_newest))
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// Forgets at most `most` certificates that ended before `before`; gives how many. Whoever shows one of them is refused for
    /// its age before anybody looks it up.
    pub async fn purge_certificates(&mut self, before: DateTime<Utc>, most: u32) -> Result<u64> {
        Ok(on!(self, |conn| sqlx::query(PURGE)
            .bind(before)
            .bind(i64::from(most))
            .execute(conn)
            .await
            .map(|done| done.rows_affected()))?)
    }
}
