//! Final reports with their packets, as an agent would make them: good ones and refusals.

use anyhow::Result;
use sealift_common::{
    any_manifest::Described,
    digest::Digest,
    evidence::{
        AgentInfo, Attempt, EngineInfo, EvidenceFailure, EvidenceResult, EvidenceService, Observed, Packet,
        Predicate, Statement,
    },
    failure::{Failure, FailureCode},
    id::AgentId,
    keys::SigningKey,
    observation::ContainerHealth,
    order::Order,
    spiffe::SpiffeId,
    sticker::Sticker,
};
use sealift_proto::agent::v1::{Finished, ReportedFailure, finished};

/// A final report that says that the order was refused, with a packet signed by `key`.
pub fn refused(order_bytes: &[u8], order: &Order, agent: AgentId, key: &SigningKey) -> Result<Finished> {
    let failure = Failure::new(FailureCode::OrderRefused, "a test");
    Ok(Finished {
        result: finished::Result::Refused.into(),
        packet: packet(order_bytes, order, agent, Some(&failure), None, key)?,
        failure: Some(ReportedFailure {
            code: failure.code.as_str().into(),
            summary: failure.summary,
            detail: String::new(),
        }),
        sticker: Vec::new(),
    })
}

/// A final report of success with its sticker, and the sticker's digest.
pub fn succeeded(
    order_bytes: &[u8],
    order: &Order,
    previous: Option<Digest>,
    key: &SigningKey,
) -> Result<(Finished, Digest)> {
    let sticker = Sticker::of(order, None, order.not_before, previous)?;
    let digest = sticker.digest()?;
    let finished = Finished {
        result: finished::Result::Succeeded.into(),
        failure: None,
        packet: packet(order_bytes, order, order.agent_id, None, Some(digest), key)?,
        sticker: sticker.to_file()?,
    };
    Ok((finished, digest))
}

fn packet(
    order_bytes: &[u8],
    order: &Order,
    agent: AgentId,
    failure: Option<&Failure>,
    sticker_digest: Option<Digest>,
    key: &SigningKey,
) -> Result<Vec<u8>> {
    let now = order.not_before;
    let services = order
        .manifest
        .images()
        .into_iter()
        .map(|(name, image)| {
            let observed = failure.is_none().then(|| Observed {
                container_id: format!("container of {name}"),
                image_id: "an image".to_owned(),
                digest: image.digest,
            });
            EvidenceService::of(name, image, observed, ContainerHealth::None)
        })
        .collect();
    let attempt = Attempt {
        agent: AgentInfo {
            spiffe_id: SpiffeId::agent(order.tenant.clone(), agent),
            certificate_serial: "00".into(),
            version: "0".into(),
        },
        engine: EngineInfo {
            name: "fake".into(),
            version: "1".into(),
            api: "1.41".into(),
            platform: "linux/amd64".into(),
        },
        result: if failure.is_some() {
            EvidenceResult::Refused
        } else {
            EvidenceResult::Succeeded
        },
        failure: failure.map(EvidenceFailure::from),
        services,
        hooks: Vec::new(),
        allowances: Vec::new(),
        previous: std::collections::BTreeMap::new(),
        sticker_digest,
        compose_lock: None,
        log_truncated: false,
        order_digest: Digest::of(order_bytes),
        started_at: now,
        finished_at: now,
        finished_at_orchestrator: None,
        steps: Vec::new(),
    };
    let running = order.manifest.images().into_values();
    let running: Vec<_> = running.filter(|_| failure.is_none()).collect();
    let statement = Statement::new(Predicate::of(order, attempt), running);
    Ok(Packet::sign(&statement, key)?)
}
