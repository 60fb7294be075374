//! Proof of an attempt: the packet is checked against the order that the task had, the sticker against the packet, and both are
//! prepared for storing. Done before the transaction, so that the writer holds its lock for no signature.

use chrono::{DateTime, Utc};
use sealift_common::{
    canonical,
    digest::Digest,
    evidence::{EvidenceResult, Packet, Predicate},
    failure::{Failure, FailureCode},
    id::{EnvironmentId, PacketId, ReleaseId},
    keys::{PublicKey, SigningKey},
    name::ProjectRef,
    order::{Order, open_order},
    sticker::Sticker,
    strategy::Limits,
};
use sealift_store::{PacketRow, Task};

use super::{refusal::Refusal, reports::Finished};

/// A checked and countersigned packet with what is stored beside it.
#[derive(Debug)]
pub struct Proof {
    /// The row of the packet.
    pub row: PacketRow,
    /// The sticker that was written with it.
    pub sticker: Option<WrittenSticker>,
    /// The project of the order.
    pub project: ProjectRef,
    /// The release of the order.
    pub release: ReleaseId,
    /// Digest over content and variables of the order.
    pub inputs: Digest,
    /// The limits of the order.
    pub limits: Limits,
}

/// What a final report is worth.
#[derive(Debug)]
pub enum Verdict {
    /// It is proven.
    Proven(Box<Proof>),
    /// It is not. The attempt ends all the same: a report that is refused is sent again for ever.
    Unproven(Unproven),
}

/// A final report without proof.
#[derive(Debug)]
pub struct Unproven {
    /// Why the attempt counts as failed.
    pub failure: Failure,
    /// Whether the agent showed something that cannot be true, rather than nothing.
    pub suspect: bool,
    /// The limits of the order.
    pub limits: Limits,
}

/// A sticker as the agent wrote it.
#[derive(Debug)]
pub struct WrittenSticker {
    /// Its digest.
    pub digest: Digest,
    /// Digest of the one before it.
    pub previous: Option<Digest>,
    /// The file's exact content.
    pub content: Vec<u8>,
}

/// Keys that a packet is checked and countersigned with.
#[derive(Debug, Clone, Copy)]
pub struct Keys<'a> {
    /// The agent's evidence key.
    pub agent: &'a PublicKey,
    /// The orchestrator's evidence key.
    pub evidence: &'a SigningKey,
    /// The orchestrator's order key.
    pub order: &'a PublicKey,
}

/// Checks the packet and the sticker of a final report about `task`'s present attempt. What the agent got wrong is a verdict, what
/// the orchestrator got wrong is a refusal.
pub fn check(
    finished: &Finished,
    task: &Task,
    environment: EnvironmentId,
    keys: Keys<'_>,
    now: DateTime<Utc>,
) -> Result<Verdict, Refusal> {
    let bytes = task
        .order
        .as_deref()
        .ok_or_else(|| Refusal::Internal(format!("task {} has an attempt without an order", task.id)))?;
    let order = open_order(bytes, std::slice::from_ref(keys.order)).map_err(|error| {
        Refusal::Internal(format!(
            "the stored order of task {} does not verify: {error}",
            task.id
        ))
    })?;
    // An agent that could not even state the order (it did not verify, it was for somebody else) has nothing to sign.
    let reason = finished
        .failure
        .as_ref()
        .filter(|_| matches!(finished.result, EvidenceResult::Failed | EvidenceResult::Refused));
    if let Some(failure) = reason.filter(|_| finished.packet.is_empty()) {
        return Ok(Verdict::Unproven(Unproven {
            failure: failure.clone(),
            suspect: false,
            limits: order.limits,
        }));
    }
    match prove(finished, task, environment, keys, bytes, &order, now) {
        Ok(proof) => Ok(Verdict::Proven(Box::new(proof))),
        Err(Refusal::Violation(what)) => Ok(Verdict::Unproven(Unproven {
            failure: Failure::new(
                FailureCode::AgentState,
                format!("the agent reports \"{}\" without proof", finished.result),
            )
            .with_detail(what),
            suspect: true,
            limits: order.limits,
        })),
        Err(other) => Err(other),
    }
}

fn prove(
    finished: &Finished,
    task: &Task,
    environment: EnvironmentId,
    keys: Keys<'_>,
    bytes: &[u8],
    order: &Order,
    now: DateTime<Utc>,
) -> Result<Proof, Refusal> {
    let statement = Packet::open(&finished.packet, keys.agent)
        .map_err(|error| Refusal::violation(format!("the evidence packet is refused: {error}")))?;
    let predicate = &statement.predicate;
    predicate.check_order(order, Digest::of(bytes)).map_err(|field| {
        Refusal::violation(format!("the evidence packet's {field} is not that of the order"))
    })?;
    let same_failure = predicate.failure.as_ref().map(|failure| failure.code)
        == finished.failure.as_ref().map(|failure| failure.code);
    if predicate.result != finished.result || !same_failure {
        return Err(Refusal::violation(
            "the evidence packet does not say what the report says",
        ));
    }
    let sticker = sticker(finished, order, predicate)?;
    // The payload is the statement's canonical form: opening it has checked that.
    let digest = canonical::digest(&statement)
        .map_err(|error| Refusal::Internal(format!("the packet's statement has no digest: {error}")))?;
    let envelope = Packet::countersign(&finished.packet, keys.agent, keys.evidence)
        .map_err(|error| Refusal::Internal(format!("the packet cannot be countersigned: {error}")))?;
    let row = PacketRow {
        id: PacketId::new(now),
        tenant_id: task.tenant_id,
        environment_id: environment,
        target_id: task.target_id,
        job_id: task.job_id,
        task_id: task.id,
        attempt: task.attempt,
        agent_id: order.agent_id,
        result: finished.result.to_string(),
        digest,
        envelope,
        created_at: now,
    };
    Ok(Proof {
        row,
        sticker,
        project: order.release.project.clone(),
        release: order.release.id,
        inputs: order.inputs,
        limits: order.limits,
    })
}

fn sticker(
    finished: &Finished,
    order: &Order,
    predicate: &Predicate,
) -> Result<Option<WrittenSticker>, Refusal> {
    let stated = predicate.sticker_digest;
    if finished.sticker.is_empty() {
        return match (stated, finished.result) {
            (Some(_), _) => Err(Refusal::violation("the packet names a sticker that was not sent")),
            (None, EvidenceResult::Succeeded) => Err(Refusal::violation("a success without a sticker")),
            (None, _) => Ok(None),
        };
    }
    let sticker = Sticker::from_file(&finished.sticker)
        .map_err(|error| Refusal::violation(format!("the sticker is refused: {error}")))?;
    let digest = sticker
        .digest()
        .map_err(|error| Refusal::violation(format!("the sticker has no digest: {error}")))?;
    // All but three fields follow from the order, so the whole sticker can be made again and compared. What a host's Compose made
    // of the order only the host can say; it says the same twice.
    let expected = Sticker::of(
        order,
        predicate.compose_lock,
        sticker.written_at,
        sticker.previous,
    )
    .map_err(|error| Refusal::Internal(format!("the order has no sticker: {error}")))?;
    if stated != Some(digest) || sticker != expected {
        return Err(Refusal::violation(
            "the sticker is not that of the order and the packet",
        ));
    }
    Ok(Some(WrittenSticker {
        digest,
        previous: sticker.previous,
        content: finished.sticker.clone(),
    }))
}
