//! Answers of calls that may be sent again: the same request gets the same answer (R16).

use chrono::{DateTime, Utc};
use sealift_common::{digest::Digest, id::TenantId};
use uuid::Uuid;

use crate::{
    Result, Tx,
    engine::{on, statements},
    rows::At,
};

statements! {
    GET = {
        "SELECT request_hash, response FROM idempotent_answers ",
        "WHERE tenant_id = $1 AND principal = $2 AND method = $3 AND request_id = $4"
    };
    PUT = {
        "INSERT INTO idempotent_answers (tenant_id, principal, method, request_id, request_hash, response, created_at) ",
        "VALUES ($1, $2, $3, $4, $5, $6, $7)"
    };
    PURGE = { "DELETE FROM idempotent_answers WHERE created_at < $1" };
}

impl Tx {
    /// The answer that a request got, with the digest of the request that it was for.
    pub async fn idempotent_answer(
        &mut self,
        tenant: TenantId,
        principal: &str,
        method: &str,
        request: Uuid,
    ) -> Result<Option<(Digest, Vec<u8>)>> {
        let row: Option<(String, Vec<u8>)> = on!(self, |conn| sqlx::query_as(GET)
            .bind(tenant.uuid())
            .bind(principal)
            .bind(method)
            .bind(request)
            .fetch_optional(conn)
            .await)?;
        let answer = |(hash, response): (String, Vec<u8>)| {
            let hash = At::new("idempotent_answers", request).parse("request_hash", &hash)?;
            Ok((hash, response))
        };
        row.map(answer).transpose()
    }

    /// Keeps the answer of a request, in the transaction of its effect. When another call with the same id was faster:
    /// [`StoreError::Duplicate`](crate::StoreError::Duplicate) of `idempotent_request`; roll back and read its answer.
    #[expect(
        clippy::too_many_arguments,
        reason = "an answer is these values, and nothing else needs them together"
    )]
    pub async fn put_idempotent_answer(
        &mut self,
        tenant: TenantId,
        principal: &str,
        method: &str,
        request: Uuid,
        request_hash: Digest,
        response: &[u8],
        now: DateTime<Utc>,
    ) -> Result<()> {
        on!(self, |conn| sqlx::query(PUT)
            .bind(tenant.uuid())
            .bind(principal)
            .bind(method)
            .bind(request)
            .bind(request_hash.to_string())
            .bind(response)
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// Forgets answers from before `before`; says how many.
    pub async fn purge_idempotent_answers(&mut self, before: DateTime<Utc>) -> Result<u64> {
        let gone = on!(self, |conn| sqlx::query(PURGE)
            .bind(before)
            .execute(conn)
            .await
            .map(|done| done.rows_affected()))?;
        Ok(gone)
    }
}
