//! Hello: the first word of an agent, held against what the store knows of it. Here both ends notice when one of them was put
//! back in time (F16: the database; F30: the agent).

use sealift_common::{error::Reason, id::TargetId, inventory::AgentFacts, keys::PublicKey, order::Fence};
use sealift_proto::{
    agent::v1::{ConnectRequest, Hello, connect_request::Message},
    convert::{Malformed, parse},
};
use tonic::Streaming;

use super::{
    refusal::Refusal,
    session::{HELLO_DEADLINE, Session},
    writer::Item,
};

/// Most targets that one agent serves.
pub(super) const TARGETS: usize = 1_024;

/// What the store knows of an agent that said Hello.
pub struct Known {
    /// Highest report that is stored.
    pub acknowledged: u64,
    /// The key that its evidence is signed with.
    pub evidence_key: PublicKey,
}

/// Waits for Hello.
pub async fn receive(inbound: &mut Streaming<ConnectRequest>) -> Result<Hello, Refusal> {
    let first = tokio::time::timeout(HELLO_DEADLINE, inbound.message())
        .await
        .map_err(|_| Refusal::violation("no Hello within ten seconds"))?
        .map_err(|status| {
            Refusal::violation(format!("the first message cannot be read: {}", status.message()))
        })?;
    match first.and_then(|request| request.message) {
        Some(Message::Hello(hello)) => Ok(hello),
        Some(_) => Err(Refusal::violation("the first message is not Hello")),
        None => Err(Refusal::violation("the stream ended or began without Hello")),
    }
}

/// Holds Hello against the store.
pub async fn check(session: &mut Session, hello: Hello) -> Result<Known, Refusal> {
    let facts = AgentFacts::try_from(
        hello
            .facts
            .ok_or_else(|| Malformed::new("hello.facts", "is missing"))?,
    )?;
    if hello.fences.len() > TARGETS {
        return Err(Refusal::violation(format!("more than {TARGETS} fences")));
    }
    let fences = hello
        .fences
        .iter()
        .map(|fence| {
            Ok((
                parse::<TargetId>("hello.fences[].target_id", &fence.target_id)?,
                Fence(fence.fence),
            ))
        })
        .collect::<Result<Vec<_>, Malformed>>()?;

    let id = session.peer.agent;
    let mut tx = session.app.db.read().await?;
    let agent = tx
        .agent_by_id(id)
        .await?
        .ok_or_else(|| Refusal::Internal(format!("agent {id} was authenticated and is not in the store")))?;
    let acknowledged = tx.acknowledged_report(id).await?;
    let targets = tx.targets_of_agent(id).await?;
    drop(tx);

    for target in &targets {
        let Some((_, seen)) = fences
            .iter()
            .find(|(id, fence)| *id == target.id && *fence > target.fence)
        else {
            continue;
        };
        tracing::error!(
            agent.id = %id, target.id = %target.id, %seen, stored = %target.fence,
            "the database is older than what this agent has done: restored from an old copy? No orders are given to it"
        );
        super::audit_agent(
            &session.app,
            &session.peer,
            "agent.database_older",
            Reason::WrongState,
        )
        .await;
        return Err(Refusal::Ahead(format!(
            "order {seen} was seen on target {} and the database knows only up to {}: the database was restored from an older \
             copy; restore the newest one, or enrol the host again",
            target.name, target.fence
        )));
    }
    if hello.next_report <= acknowledged {
        tracing::error!(
            agent.id = %id, next_report = hello.next_report, acknowledged,
            "the agent's state is older than what it has reported: restored from an old copy?"
        );
        super::audit_agent(
            &session.app,
            &session.peer,
            "agent.state_older",
            Reason::WrongState,
        )
        .await;
    }
    if facts != agent.facts {
        session.writer.store(id, Item::Facts(Box::new(facts))).await?;
    }
    let evidence_key = PublicKey::from_bytes(&agent.evidence_key)
        .map_err(|error| Refusal::Internal(format!("the evidence key of agent {id} is none: {error}")))?;
    Ok(Known {
        acknowledged,
        evidence_key,
    })
}
