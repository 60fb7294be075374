//! Every call that changes something goes through here: one write transaction that holds the change, its audit event (R13) and
//! the answer to a repeated request (R16), or none of them.

use std::marker::PhantomData;

use futures::future::BoxFuture;
use prost::Message;
use sealift_common::{
    audit::{AuditEntry, AuditOutcome},
    canonical,
    digest::Digest,
    error::Reason,
};
use sealift_store::{StoreError, Tx};
use serde::Serialize;
use uuid::Uuid;

use crate::{caller::Caller, state::App, status::ApiError};

/// How often a transaction is tried when others win.
const TRIES: u32 = 3;

/// What a mutation does inside its transaction.
pub type Work<'t, Resp> = BoxFuture<'t, Result<Resp, ApiError>>;

/// Ties the life of a [`Work`] to that of what its closure borrows, so that closures may borrow instead of cloning.
#[derive(Debug, Clone, Copy)]
pub struct Scope<'t, 'e: 't>(PhantomData<&'t &'e ()>);

/// What becomes of the answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// A repeated request gets it again.
    Answer,
    /// It holds a secret: a repeated request is refused.
    Nothing,
}

/// Runs `work` inside one write transaction. Without `request_id` the call is not idempotent. `work` runs again when another
/// transaction won, so it must read what it decides on from `tx`. Failures are recorded by the audit layer around the call.
///
/// The closure is written in place: `|tx, _| Box::pin(async { let tx = tx; … Ok(response) })`. It is boxed because the compiler
/// cannot yet show that the future of a generic async closure may move between threads.
pub async fn mutate<'e, Req, Resp, F>(
    app: &App,
    caller: &Caller,
    method: &'static str,
    request_id: &str,
    request: &Req,
    resource: &str,
    work: F,
) -> Result<Resp, ApiError>
where
    Req: Serialize,
    Resp: Message + Default + 'e,
    F: for<'t> FnMut(&'t mut Tx, Scope<'t, 'e>) -> Work<'t, Resp> + Send,
{
    run(
        app,
        caller,
        method,
        request_id,
        request,
        resource,
        Keep::Answer,
        work,
    )
    .await
}

/// The answer that a repeated request gets (R16); `None` for one that is new, or that has no `request_id`. For calls with work
/// before their transaction: a repetition needs none of it.
pub async fn known_answer<Req, Resp>(
    app: &App,
    caller: &Caller,
    method: &'static str,
    request_id: &str,
    request: &Req,
) -> Result<Option<Resp>, ApiError>
where
    Req: Serialize,
    Resp: Message + Default,
{
    let key = Key::read(caller, method, request_id, request)?;
    let Some((id, digest)) = key.request else {
        return Ok(None);
    };
    let mut tx = app.db.read().await?;
    match tx
        .idempotent_answer(key.tenant, &key.principal, key.method, id)
        .await?
    {
        Some((first, answer)) => replay(first == digest, Keep::Answer, &answer).map(Some),
        None => Ok(None),
    }
}

/// As [`mutate`], for answers that hold a secret: they are not kept, so a repeated `request_id` is refused.
pub async fn mutate_secret<'e, Req, Resp, F>(
    app: &App,
    caller: &Caller,
    method: &'static str,
    request_id: &str,
    request: &Req,
    resource: &str,
    work: F,
) -> Result<Resp, ApiError>
where
    Req: Serialize,
    Resp: Message + Default + 'e,
    F: for<'t> FnMut(&'t mut Tx, Scope<'t, 'e>) -> Work<'t, Resp> + Send,
{
    run(
        app,
        caller,
        method,
        request_id,
        request,
        resource,
        Keep::Nothing,
        work,
    )
    .await
}

#[expect(
    clippy::too_many_arguments,
    reason = "private; both callers name each argument"
)]
async fn run<'e, Req, Resp, F>(
    app: &App,
    caller: &Caller,
    method: &'static str,
    request_id: &str,
    request: &Req,
    resource: &str,
    keep: Keep,
    mut work: F,
) -> Result<Resp, ApiError>
where
    Req: Serialize,
    Resp: Message + Default + 'e,
    F: for<'t> FnMut(&'t mut Tx, Scope<'t, 'e>) -> Work<'t, Resp> + Send,
{
    caller.about(resource);
    let key = Key::read(caller, method, request_id, request)?;
    let mut tries = 0;
    loop {
        tries += 1;
        match attempt(app, caller, &key, keep, &mut work).await {
            Err(error) if error.reason() == Reason::Conflict && tries < TRIES => {}
            result => return result,
        }
    }
}

/// What makes two requests the same.
struct Key {
    tenant: sealift_common::id::TenantId,
    principal: String,
    method: &'static str,
    request: Option<(Uuid, Digest)>,
}

impl Key {
    fn read<Req: Serialize>(
        caller: &Caller,
        method: &'static str,
        request_id: &str,
        request: &Req,
    ) -> Result<Self, ApiError> {
        let (tenant, _) = caller
            .tenant
            .clone()
            .ok_or_else(crate::caller::certificate_missing)?;
        let request = if request_id.is_empty() {
            None
        } else {
            let id = Uuid::try_parse(request_id)
                .map_err(|_| ApiError::invalid("request_id", "must be a UUID, or empty"))?;
            // Canonical JSON, not the wire form: maps have no order on the wire.
            Some((id, canonical::digest(request).map_err(ApiError::internal)?))
        };
        Ok(Self {
            tenant,
            principal: caller.actor(),
            method,
            request,
        })
    }
}

async fn attempt<'e, Resp, F>(
    app: &App,
    caller: &Caller,
    key: &Key,
    keep: Keep,
    work: &mut F,
) -> Result<Resp, ApiError>
where
    Resp: Message + Default + 'e,
    F: for<'t> FnMut(&'t mut Tx, Scope<'t, 'e>) -> Work<'t, Resp> + Send,
{
    let mut tx = app.db.write().await?;
    if let Some((id, digest)) = key.request {
        let known = tx
            .idempotent_answer(key.tenant, &key.principal, key.method, id)
            .await?;
        if let Some((first, answer)) = known {
            return replay(first == digest, keep, &answer);
        }
    }
    let response = work(&mut tx, Scope(PhantomData)).await?;
    let now = app.clock.now();
    if let Some((id, digest)) = key.request {
        let answer = match keep {
            Keep::Answer => response.encode_to_vec(),
            Keep::Nothing => Vec::new(),
        };
        let stored = tx
            .put_idempotent_answer(key.tenant, &key.principal, key.method, id, digest, &answer, now)
            .await;
        match stored {
            // The same request at the same time: read its answer in the next try.
            Err(StoreError::Duplicate { .. }) => return Err(StoreError::Conflict.into()),
            other => other?,
        }
    }
    let entry = entry(caller, key.method, &caller.resource(), AuditOutcome::Success, "");
    tx.append_audit(&entry, now).await?;
    tx.commit().await?;
    caller.set_recorded();
    Ok(response)
}

fn replay<Resp: Message + Default>(same: bool, keep: Keep, answer: &[u8]) -> Result<Resp, ApiError> {
    let refused = |description: &str, hint: &str| {
        Err(ApiError::new(
            Reason::RequestIdReused,
            format!("field request_id: {description}"),
            hint,
        )
        .field("request_id", description))
    };
    match (same, keep) {
        (false, _) => refused(
            "another request was made with this id",
            "make a fresh UUID for each new request; repeat an id only with the very same request",
        ),
        (true, Keep::Nothing) => refused(
            "the answer to this request held a secret and was not kept",
            "make a fresh UUID and call again; the first answer stays valid until it ends",
        ),
        (true, Keep::Answer) => Resp::decode(answer).map_err(ApiError::internal),
    }
}

/// An audit event of this call.
pub fn entry(
    caller: &Caller,
    method: &str,
    resource: &str,
    outcome: AuditOutcome,
    reason: &str,
) -> AuditEntry {
    AuditEntry {
        tenant_id: caller.tenant.as_ref().map(|(id, _)| *id),
        actor: caller.actor(),
        role: caller.role().to_owned(),
        action: method.trim_start_matches('/').to_owned(),
        resource: resource.to_owned(),
        outcome,
        reason: reason.to_owned(),
        request_id: caller.request_id.clone(),
    }
}
