//! Proof: the evidence packet of an attempt, from the journal and from what the engine reports after it.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sealift_common::{
    any_manifest::Described,
    digest::Digest,
    evidence::{
        AgentInfo, Attempt, EngineInfo, EvidenceHook, EvidenceResult, EvidenceService, HookResult, Observed,
        Packet, PacketError, Predicate, Statement,
    },
    failure::{Failure, FailureCode},
    hook::HookSpec,
    manifest::PinnedImage,
    name::ServiceName,
    observation::{ContainerHealth, ContainerState},
    order::Order,
};
use sealift_proto::agent::v1::{Finished, ReportedFailure, finished::Result as WireResult, report::Event};

use crate::{
    host::{Host, HostError, Inspected},
    journal::{AttemptState, Ending},
    labels::{self, Ours},
    workshop::AgentIdentity,
};

/// A container of the project as the engine reports it.
#[derive(Debug, Clone)]
pub struct Running {
    /// What its labels say.
    pub ours: Ours,
    /// What the engine says.
    pub inspected: Inspected,
    /// The registry digest of its image: the one on its label if the engine knows the image under it, else any.
    pub digest: Option<Digest>,
}

/// The registry digests under which the engine knew images, by the engine's identifier. An identifier names the content, so
/// what was known once stays true.
pub type Images = BTreeMap<String, Vec<Digest>>;

/// All running containers of a project on a target.
pub async fn running<H: Host, M>(host: &H, order: &Order<M>) -> Result<Vec<Running>, HostError> {
    let wanted = labels::of_project(order.target_id, &order.release.project);
    let mut found = Vec::new();
    for listed in host.list(&wanted).await? {
        let Some(ours) = labels::read(&listed.labels) else {
            continue;
        };
        if listed.state != ContainerState::Running {
            continue;
        }
        let (inspected, digests) =
            tokio::try_join!(host.inspect(&listed.id), digests_of(host, &listed.image_id))?;
        let Some(inspected) = inspected else {
            continue;
        };
        if inspected.state != ContainerState::Running {
            continue;
        }
        found.push(Running {
            digest: choose(&digests, ours.digest),
            ours,
            inspected,
        });
    }
    Ok(found)
}

/// What was just seen of containers as what runs; `None` when that cannot be told without asking the engine again.
pub fn seen_running(seen: Vec<Inspected>, images: &Images) -> Option<Vec<Running>> {
    seen.into_iter()
        .map(|inspected| {
            let ours = labels::read(&inspected.labels)?;
            let digest = choose(images.get(&inspected.image_id)?, ours.digest);
            Some(Running {
                ours,
                inspected,
                digest,
            })
        })
        .collect()
}

/// The registry digests of an image that the engine knows by identifier.
pub async fn digests_of<H: Host>(host: &H, image_id: &str) -> Result<Vec<Digest>, HostError> {
    let image = host.image(image_id).await?;
    Ok(image.map(|image| image.digests).unwrap_or_default())
}

/// Of an image's digests the one that a container was ordered with, else any.
pub fn choose(digests: &[Digest], labelled: Option<Digest>) -> Option<Digest> {
    let known = labelled.filter(|digest| digests.contains(digest));
    known.or_else(|| digests.first().copied())
}

/// What is stated about the end of an attempt.
#[derive(Debug, Clone)]
pub struct End<'a, M> {
    /// The order.
    pub order: &'a Order<M>,
    /// Digest of its envelope.
    pub order_digest: Digest,
    /// The fold of the attempt's records.
    pub state: &'a AttemptState,
    /// How it ended.
    pub ending: Ending,
    /// Why it did not succeed.
    pub failure: Option<&'a Failure>,
    /// What runs.
    pub running: &'a [Running],
    /// The engine.
    pub engine: EngineInfo,
    /// Digest of the sticker that was written.
    pub sticker: Option<Digest>,
    /// Digest of the locked compose file, on a compose host.
    pub compose_lock: Option<Digest>,
    /// Whether something is missing in the attempt's log.
    pub log_truncated: bool,
    /// When.
    pub at: DateTime<Utc>,
    /// The same by the orchestrator's clock, as far as it is known.
    pub orchestrator_time: Option<DateTime<Utc>>,
}

/// The signed packet.
pub fn packet<M: Described>(identity: &AgentIdentity, end: &End<'_, M>) -> Result<Vec<u8>, PacketError> {
    let order = end.order;
    let services = order
        .manifest
        .images()
        .into_iter()
        .map(|(name, image)| {
            let found = of_service(end, name);
            let observed = found.and_then(observed);
            let health = found.map_or(ContainerHealth::None, |running| running.inspected.health);
            EvidenceService::of(name, image, observed, health)
        })
        .collect();
    let mut previous: BTreeMap<ServiceName, Digest> = end.state.previous();
    if end.state.old.is_none() {
        // Nothing was touched: what runs now is what ran before.
        previous.extend(
            end.running
                .iter()
                .filter_map(|running| Some((running.ours.service.clone(), running.digest?))),
        );
    }
    // Only what the statement speaks of elsewhere may be its subject.
    let seen = order
        .manifest
        .images()
        .into_keys()
        .filter_map(|name| of_service(end, name)?.digest);
    let known: BTreeSet<Digest> = previous.values().copied().chain(seen).collect();
    let predicate = Predicate::of(
        order,
        Attempt {
            agent: AgentInfo {
                spiffe_id: identity.spiffe_id.clone(),
                certificate_serial: (identity.certificate_serial)(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            engine: end.engine.clone(),
            result: match end.ending {
                Ending::Succeeded => EvidenceResult::Succeeded,
                Ending::Failed => EvidenceResult::Failed,
                Ending::Stopped => EvidenceResult::Cancelled,
                Ending::Refused => EvidenceResult::Refused,
            },
            failure: end.failure.map(Into::into),
            services,
            hooks: hooks(order.manifest.hooks(), end.state),
            allowances: end.state.allowances.clone(),
            previous,
            sticker_digest: end.sticker,
            compose_lock: end.compose_lock,
            log_truncated: end.log_truncated,
            order_digest: end.order_digest,
            started_at: end.state.began_at.unwrap_or(end.at),
            finished_at: end.at,
            finished_at_orchestrator: end.orchestrator_time,
            steps: end.state.steps.clone(),
        },
    );
    let subjects: Vec<PinnedImage> = if end.ending == Ending::Succeeded {
        order.manifest.images().into_values().cloned().collect()
    } else {
        end.running
            .iter()
            .filter_map(image_of)
            .filter(|image| known.contains(&image.digest))
            .collect()
    };
    Packet::sign(
        &Statement::new(predicate, subjects.iter()),
        &identity.evidence_key,
    )
}

/// The runs of hooks as they are stated.
fn hooks(ordered: &[HookSpec], state: &AttemptState) -> Vec<EvidenceHook> {
    let runs = state.hooks.iter().filter_map(|run| {
        let spec = ordered.iter().find(|spec| spec.name == run.hook.hook)?;
        let outcome = run.ended.as_ref().map(|(_, outcome)| outcome);
        let result = match outcome.map(|outcome| outcome.failure.as_ref().map(|failure| failure.code)) {
            None => HookResult::Interrupted,
            Some(None) => HookResult::Succeeded,
            Some(Some(FailureCode::HookTimeout)) => HookResult::TimedOut,
            Some(Some(_)) => HookResult::Failed,
        };
        Some(EvidenceHook {
            hook: spec.name.clone(),
            when: spec.when,
            direction: run.hook.direction,
            repository: spec.image.repository.clone(),
            digest: spec.image.digest,
            result,
            exit_code: outcome.and_then(|outcome| outcome.exit_code),
            log_truncated: outcome.is_some_and(|outcome| outcome.is_truncated),
            began_at: run.began_at,
            ended_at: run.ended.as_ref().map(|(at, _)| *at),
        })
    });
    runs.collect()
}

/// What runs as a service: the order's own container before one of the old set, which a restore that failed may have left beside it.
fn of_service<'a, M>(end: &End<'a, M>, name: &ServiceName) -> Option<&'a Running> {
    let all = || end.running.iter().filter(|running| running.ours.service == *name);
    all()
        .find(|running| running.ours.fence == end.order.fence)
        .or_else(|| all().next())
}

fn observed(running: &Running) -> Option<Observed> {
    Some(Observed {
        container_id: running.inspected.id.clone(),
        image_id: running.inspected.image_id.clone(),
        digest: running.digest?,
    })
}

fn image_of(running: &Running) -> Option<PinnedImage> {
    let repository = running.inspected.image.split('@').next()?.to_owned();
    Some(PinnedImage {
        repository,
        tag: None,
        digest: running.digest?,
    })
}

/// The final report.
pub fn finished(ending: Ending, failure: Option<&Failure>, packet: Vec<u8>, sticker: Vec<u8>) -> Event {
    let result = match ending {
        Ending::Succeeded => WireResult::Succeeded,
        Ending::Failed => WireResult::Failed,
        Ending::Stopped => WireResult::Stopped,
        Ending::Refused => WireResult::Refused,
    };
    Event::Finished(Finished {
        result: result.into(),
        failure: failure.map(|failure| ReportedFailure {
            code: failure.code.as_str().to_owned(),
            summary: failure.summary.clone(),
            detail: failure.detail.clone(),
        }),
        packet,
        sticker,
    })
}
