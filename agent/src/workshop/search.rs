//! Looks for the host's Compose until it is there: a host may boot slowly, and a package that is being exchanged is away for a while.
//! Attempts under way wait for it meanwhile.

use std::{sync::Arc, time::Duration};

use sealift_common::{condition::ConditionCode, digest::Digest, task::Wanted};
use tokio::time::{interval, sleep};
use tokio_util::sync::CancellationToken;

use super::{Shared, capabilities};
use crate::{
    backoff,
    compose::{Compose, Search},
    host::Host,
    journal::AttemptState,
    runner::RESTORE_PATIENCE,
    step::compose::needs_compose,
};

/// What the condition of attempts that wait concerns.
const SUBJECT: &str = "compose";

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

/// Waits until the host has its Compose, if an attempt needs it and is not to stop without; `None` when the agent goes down or its
/// journal fails before.
pub(super) async fn found<H: Host>(
    shared: &Shared<H>,
    state: &AttemptState,
    stop: &CancellationToken,
) -> Option<Arc<Compose>> {
    let mut known = shared.compose.subscribe();
    let given_up = async {
        if needs_compose(state, Wanted::Run) {
            stop.cancelled().await;
        }
        if needs_compose(state, Wanted::Stop) {
            sleep(RESTORE_PATIENCE).await;
        }
    };
    if known.borrow().is_missing() {
        let lost = "an attempt under way needs Compose, which this host has not now: it goes on when it is installed, and after a cancel for ten minutes at the most";
        shared.set_condition(ConditionCode::AgentState, SUBJECT, Some(lost));
    }
    let found = tokio::select! {
        biased;
        () = shared.shutdown.cancelled() => None,
        () = journal_failed(shared) => None,
        found = known.wait_for(|compose| !compose.is_missing()) => found.ok().map(|found| found.clone()),
        () = given_up => Some(shared.compose.borrow().clone()),
    };
    shared.set_condition(ConditionCode::AgentState, SUBJECT, None);
    found
}

/// Only another start of the agent opens it again, and that comes when nothing is under way any more.
async fn journal_failed<H: Host>(shared: &Shared<H>) {
    let mut looks = interval(Duration::from_secs(1));
    while shared.journal.failure().is_none() {
        looks.tick().await;
    }
}
