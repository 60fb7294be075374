//! Checks of an order in the order of the trust page (1.2), and what is said when one fails. Nothing is persisted before all
//! have passed.

use std::{sync::Arc, time::Duration};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use sealift_common::{
    agent_manifest::AgentManifest,
    any_manifest::{AnyManifest, Described as _},
    canonical,
    digest::Digest,
    evidence::{Allowance, EngineInfo},
    failure::{Failure, FailureCode},
    manifest::ServiceSpec,
    order::{Order, OrderContext, OrderRefusal, open_order},
    program::{ProgramRefusal, SERVICE},
};
use serde::Deserialize;

use super::{Looking, Shared, exchange::other_owner};
use crate::{
    causes::chain,
    hanging::Hangs,
    host::Host,
    journal::{AttemptKey, AttemptState, Ending, JournalError, ReportDraft, Write},
    labels,
    policy::Borrowed,
    proof::{self, End},
};

/// How long following the paths of the host that an order mounts may take.
pub(crate) const PATHS_ANSWER: Duration = Duration::from_secs(15);

/// An order that failed a check.
pub(super) struct Refusal {
    /// The order, if its signature was good.
    order: Option<Box<Order>>,
    failure: Failure,
}

/// An order that passed every check.
pub(super) struct Checked {
    /// The order.
    pub order: Order,
    /// What of it the host's settings allow, as far as that is known before it is begun.
    pub allowances: Vec<Allowance>,
}

/// Size, envelope, signature, address, time, fence, release, limits. Blocks: looks into the journal.
pub(super) fn check<H: Host>(
    shared: &Shared<H>,
    key: AttemptKey,
    envelope: &[u8],
) -> Result<Result<Order, Refusal>, JournalError> {
    let identity = &shared.identity;
    let order = match open_order(envelope, &identity.order_keys) {
        Ok(order) => order,
        Err(error) => {
            let failure = Failure::new(FailureCode::OrderRefused, error.to_string());
            return Ok(Err(Refusal {
                order: None,
                failure: failure.with_detail(chain(&error)),
            }));
        }
    };
    if (order.task_id, order.attempt) != (key.task, key.attempt) {
        let summary = "the order is for another task or attempt than it was offered for";
        return Ok(Err(Refusal {
            order: None,
            failure: Failure::new(FailureCode::OrderRefused, summary),
        }));
    }
    let target = identity.bindings.find(order.target_id);
    let target = target.as_ref();
    let context = OrderContext {
        agent_id: identity.agent_id,
        target,
        highest: shared.journal.highest(order.target_id)?,
        now: shared.clock.now(),
    };
    if let Err(refusal) = order.check(&context) {
        let code = match refusal {
            OrderRefusal::Expired(_) => FailureCode::OrderExpired,
            _ => FailureCode::OrderRefused,
        };
        let failure = Failure::new(code, refusal.to_string()).with_detail(chain(&refusal));
        return Ok(Err(Refusal {
            order: Some(Box::new(order)),
            failure,
        }));
    }
    // The name is a part of file names and labels, so it must be the one that was enrolled.
    if target.is_some_and(|target| target.target != order.target) {
        let failure = Failure::new(
            FailureCode::OrderRefused,
            format!(
                "the order calls the target {}, it was enrolled under another name",
                order.target
            ),
        );
        return Ok(Err(Refusal {
            order: Some(Box::new(order)),
            failure,
        }));
    }
    if let AnyManifest::AgentHost(manifest) = &order.manifest
        && let Some(failure) = program_refused(shared, &order, manifest)?
    {
        return Ok(Err(Refusal {
            order: Some(Box::new(order)),
            failure,
        }));
    }
    Ok(Ok(order))
}

/// The last check: the host's policy. It follows the paths of the host that the order mounts, wherever they lead.
pub(super) async fn judge<H: Host>(shared: &Arc<Shared<H>>, order: Order) -> Result<Checked, Refusal> {
    let refused = |order: Order, failure| Refusal {
        order: Some(Box::new(order)),
        failure,
    };
    let looks = match &order.manifest {
        AnyManifest::DockerHost(manifest) => manifest.services.values().any(ServiceSpec::has_host_paths),
        _ => false,
    };
    let judged = if looks {
        let (policy, judged) = (shared.clone(), order.clone());
        let judged = shared
            .paths
            .within((order.target_id, Looking::Taking), PATHS_ANSWER, move || {
                allowed(&policy, &judged)
            });
        match judged.await {
            Ok(judged) => judged,
            Err(hangs) => return Err(refused(order, unanswered("the release", hangs))),
        }
    } else {
        allowed(shared, &order)
    };
    match judged {
        Ok(allowances) => Ok(Checked { order, allowances }),
        Err(forbidden) => Err(refused(order, Failure::new(FailureCode::OrderRefused, forbidden))),
    }
}

/// Paths of the host that `who` mounts could not be followed.
pub(crate) fn unanswered(who: &str, hangs: Hangs) -> Failure {
    let summary = format!("a path of the host that {who} mounts could not be followed to its end: {hangs}");
    Failure::new(FailureCode::HostPathTimeout, summary)
}

/// What of an order the host's settings allow, if it asks for nothing else. Blocks when services mount paths of the host.
fn allowed<H: Host>(shared: &Shared<H>, order: &Order) -> Result<Vec<Allowance>, String> {
    let policy = shared.policy.of(&order.environment);
    let allowed = match &order.manifest {
        AnyManifest::DockerHost(manifest) => {
            let own = labels::target_prefix(order.target_id);
            let allowances = policy.check(manifest).and_then(|allowances| {
                Borrowed::of_manifest(manifest).check(&own)?;
                Ok(allowances)
            });
            allowances.map_err(|error| error.to_string())
        }
        // Its policy is for the file as Compose resolves it, which is the first step of the attempt.
        AnyManifest::ComposeHost(_) if !shared.compose.borrow().is_missing() => Ok(Vec::new()),
        // What it asks for is checked above; whether its program may run shows in the image.
        AnyManifest::AgentHost(_) => Ok(Vec::new()),
        AnyManifest::ComposeHost(_) => Err("this host has no Compose".to_owned()),
    };
    // A gate has asked the same, of what the orchestrator knew.
    let unfit = order.swap.unfit_for(&order.manifest).into_iter().next();
    let allowances = allowed?;
    unfit.map_or(Ok(()), |unfit| Err(unfit.to_string()))?;
    let hooks = policy.check_hooks(order.manifest.hooks());
    hooks.map_err(|error| error.to_string())?;
    Ok(allowances)
}

/// Why the order may not exchange this agent's program, if so.
fn program_refused<H: Host>(
    shared: &Shared<H>,
    order: &Order,
    manifest: &AgentManifest,
) -> Result<Option<Failure>, JournalError> {
    let refused = |summary: String, detail: &str| {
        Ok(Some(
            Failure::new(FailureCode::AgentUpdateRefused, summary).with_detail(detail),
        ))
    };
    if !shared.program.is_enabled() {
        return refused(
            ProgramRefusal::NoPublisher.to_string(),
            "name the publisher's key in section [update] of the agent's settings, then start the agent again",
        );
    }
    if manifest.program().is_none() {
        let summary = format!("the order holds something else than one service {SERVICE}");
        return Ok(Some(Failure::new(FailureCode::OrderRefused, summary)));
    }
    if let Some(owner) = other_owner(shared, order)? {
        return refused(
            format!("this agent's program is the target {owner}, and no other target may exchange it"),
            "archive the target that is not meant; to choose another one for this host, name it as `target` in section \
             [update] of the agent's settings, then start the agent again",
        );
    }
    Ok(None)
}

/// Reports a refusal. Nothing was touched, so the packet says only that.
pub(super) async fn refuse<H: Host>(
    shared: &Shared<H>,
    key: AttemptKey,
    digest: Digest,
    refusal: &Refusal,
) -> Result<(), JournalError> {
    tracing::warn!(task.id = %key.task, failure = %refusal.failure, "an order was refused");
    let at = shared.clock.now();
    let facts = shared.facts.borrow().clone();
    let packet = refusal.order.as_ref().and_then(|order| {
        let end = End {
            order,
            order_digest: digest,
            state: &AttemptState::default(),
            ending: Ending::Refused,
            failure: Some(&refusal.failure),
            running: &[],
            engine: EngineInfo {
                name: facts.engine.clone(),
                version: String::new(),
                api: facts.engine_api.clone(),
                platform: facts.platform.clone(),
            },
            sticker: None,
            compose_lock: None,
            log_truncated: false,
            at,
            orchestrator_time: shared.orchestrator_time(),
        };
        // An order for somebody else cannot be stated under our name; it is refused without a packet.
        proof::packet(&shared.identity, &end).ok()
    });
    let report = ReportDraft {
        key,
        at,
        event: proof::finished(
            Ending::Refused,
            Some(&refusal.failure),
            packet.unwrap_or_default(),
            Vec::new(),
        ),
    };
    // What carries no good signature must not settle what a later, good order is answered.
    let write = match refusal.order {
        Some(_) => Write::Finished {
            report,
            order: digest,
        },
        None => Write::Report(report),
    };
    shared.journal.commit(vec![write]).await
}

/// Why a stored order cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("the stored order cannot be read")]
pub(crate) struct Unreadable;

/// Reads an order that passed all checks before it was written to the journal. The keys may have changed since.
pub(crate) fn trusted(envelope: &[u8]) -> Result<Order, Unreadable> {
    #[derive(Deserialize)]
    struct Envelope {
        payload: String,
    }
    let envelope: Envelope = serde_json::from_slice(envelope).map_err(|_| Unreadable)?;
    let payload = STANDARD.decode(envelope.payload).map_err(|_| Unreadable)?;
    canonical::from_slice(&payload).map_err(|_| Unreadable)
}
