//! Looks for the host's Compose until it is there: a host may boot slowly, and an agent may start while a package is being exchanged.
//! Attempts under way wait for it meanwhile.

use std::{sync::Arc, time::Duration};

use sealift_common::{condition::ConditionCode, digest::Digest, name::Name, task::Wanted};
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;

use super::{Shared, capabilities};
use crate::{
    backoff,
    compose::{Compose, Search},
    host::Host,
    journal::{AttemptState, Cause, Phase},
    runner::RESTORE_PATIENCE,
    step::compose::needs_compose,
};

/// Looks again and again, less and less often, until it is found or the agent goes down.
pub(super) async fn run<H: Host>(shared: Arc<Shared<H>>, search: Search) {
    // The agent's own share of each wait, so that a fleet does not look all at once.
    let byte = Digest::of(shared.identity.agent_id.to_string().as_bytes()).as_bytes()[0];
    let share = f64::from(byte) / 256.0;
    let mut misses = 0;
    while shared.compose.borrow().is_missing() {
        misses += 1;
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            () = sleep(backoff::wait(misses, share)) => {}
        }
        let found = tokio::select! {
            () = shared.shutdown.cancelled() => return,
            found = search.look() => found,
        };
        if let Ok(tool) = found.tool() {
            tracing::info!(version = tool.version(), "the host's Compose was found");
            let capabilities = capabilities(&found, &shared.program);
            shared.compose.send_replace(Arc::new(found));
            shared
                .facts
                .send_modify(|facts| facts.capabilities = capabilities);
        }
    }
}

/// The host's Compose for an attempt on a target. It is waited for if the attempt needs it: until somebody stops the attempt, and then
/// for as long as a way back may take. `None` when the agent goes down or its journal fails before.
pub(super) async fn found<H: Host>(
    shared: &Shared<H>,
    target: &Name,
    state: &AttemptState,
    stop: &CancellationToken,
) -> Option<Arc<Compose>> {
    let mut known = shared.compose.subscribe();
    let is_stopped = matches!(state.phase, Phase::Restoring(Cause::Stopped));
    let can_wait = needs_compose(state, Wanted::Run);
    let given_up = async {
        if can_wait && !is_stopped {
            stop.cancelled().await;
        }
        if needs_compose(state, Wanted::Stop) {
            sleep(RESTORE_PATIENCE).await;
        }
    };
    let subject = format!("compose for {target}");
    if can_wait && known.borrow().is_missing() {
        let lost = "an attempt under way needs Compose, which this host has not now; it goes on when Compose is there";
        shared.set_condition(ConditionCode::AgentState, &subject, Some(lost));
    }
    let found = tokio::select! {
        biased;
        () = shared.shutdown.cancelled() => None,
        () = journal_failed(shared) => None,
        found = known.wait_for(|compose| !compose.is_missing()) => found.ok().map(|found| found.clone()),
        () = given_up => Some(shared.compose.borrow().clone()),
    };
    shared.set_condition(ConditionCode::AgentState, &subject, None);
    found
}

/// Only another start of the agent opens it again, and that comes when nothing is under way any more.
async fn journal_failed<H: Host>(shared: &Shared<H>) {
    let mut looks = interval(Duration::from_secs(1));
    while shared.journal.failure().is_none() {
        looks.tick().await;
    }
}
