//! Carries attempts out, by the kind of target that their orders are for, and takes them up again after a defect.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt as _;
use sealift_common::{
    any_manifest::AnyManifest, condition::ConditionCode, digest::Digest, inventory::TargetKind, order::Order,
};
use tokio_util::sync::CancellationToken;

use super::Shared;
use crate::{
    compose::Compose,
    host::Host,
    journal::{
        AttemptKey, AttemptState, JournalError, MOST_RESTORE_STARTS, MOST_STARTS, Phase, Record, Write,
    },
    runner::{Runner, compose::ComposeRunner},
};

/// What an agent can do: kinds of targets, and with which Compose.
pub(super) fn capabilities(compose: Option<&Compose>) -> Vec<String> {
    let mut capabilities = vec![TargetKind::DockerHost.to_string()];
    if let Some(compose) = compose {
        capabilities.push(TargetKind::ComposeHost.to_string());
        capabilities.push(format!("compose-{}", compose.version()));
    }
    capabilities
}

/// Carries an attempt out, by the kind of target that the order is for.
async fn carry<H: Host>(
    shared: &Arc<Shared<H>>,
    key: AttemptKey,
    records: &[Record],
    order: Order,
    digest: Digest,
    stop: &CancellationToken,
) -> Result<(), JournalError> {
    if let Some(order) = order.clone().narrow(AnyManifest::docker) {
        return Runner::new(shared.clone(), key, order, digest, records, stop.clone())
            .run()
            .await;
    }
    if let (Some(order), Some(compose)) = (order.narrow(AnyManifest::compose), shared.compose.clone()) {
        return ComposeRunner::new(shared.clone(), compose, key, order, digest, records, stop.clone())
            .run()
            .await;
    }
    // Only what this agent can do is accepted; what is under way waits until the host has its Compose again.
    let lost = "an attempt under way needs Compose, which this host has no more: install it, then start the agent again";
    shared.set_condition(ConditionCode::AgentState, "attempt", Some(lost));
    Ok(())
}

/// Runs an attempt. A defect that ends the runner is treated as the death of the agent: it goes on from the journal, which counts
/// how often.
pub(super) async fn run_to_end<H: Host>(
    shared: &Arc<Shared<H>>,
    key: AttemptKey,
    mut records: Vec<Record>,
    order: &Order,
    digest: Digest,
    stop: &CancellationToken,
) -> Result<(), JournalError> {
    for _ in 0..MOST_STARTS + MOST_RESTORE_STARTS + 2 {
        let run = carry(shared, key, &records, order.clone(), digest, stop);
        if let Ok(result) = AssertUnwindSafe(run).catch_unwind().await {
            return result;
        }
        tracing::error!(task.id = %key.task, "a defect ended the attempt's runner; it goes on from the journal");
        let reader = shared.journal.clone();
        let stored = tokio::task::spawn_blocking(move || reader.attempt(key))
            .await
            .unwrap_or_else(|panic| Err(JournalError::Damaged(panic.to_string())))?;
        let Some(stored) = stored else {
            return Err(JournalError::Damaged(format!("task {} is not in it", key.task)));
        };
        records = stored.records;
        if !matches!(AttemptState::fold(&records).phase, Phase::Ended(_) | Phase::Done) {
            let record = Record::Resumed {
                at: shared.clock.now(),
            };
            shared
                .journal
                .commit(vec![Write::Record(key, record.clone())])
                .await?;
            records.push(record);
        }
    }
    tracing::error!(task.id = %key.task, "the attempt is left as it is until the agent is started again");
    shared.set_condition(
        ConditionCode::AgentState,
        "attempt",
        Some("a defect keeps an attempt from its end: see the agent's log, then start the agent again"),
    );
    Ok(())
}
