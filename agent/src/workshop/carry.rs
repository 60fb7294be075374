//! Carries attempts out, by the kind of target that their orders are for, and takes them up again after a defect.

use std::{panic::AssertUnwindSafe, sync::Arc};

use futures::FutureExt as _;
use sealift_common::{
    any_manifest::AnyManifest, condition::ConditionCode, digest::Digest, inventory::TargetKind, order::Order,
};
use tokio_util::sync::CancellationToken;

use super::{Shared, search};
use crate::{
    compose::Compose,
    host::Host,
    journal::{
        AttemptKey, AttemptState, JournalError, MOST_RESTORE_STARTS, MOST_STARTS, Phase, Record, Write,
    },
    program::Program,
    runner::{Runner, compose::ComposeRunner, program::ProgramRunner},
};

/// What an agent can do: kinds of targets, and with which Compose.
pub(super) fn capabilities(compose: &Compose, program: &Program) -> Vec<String> {
    let mut capabilities = vec![TargetKind::DockerHost.to_string()];
    if let Ok(tool) = compose.tool() {
        capabilities.push(TargetKind::ComposeHost.to_string());
        capabilities.push(format!("compose-{}", tool.version()));
    }
    if program.is_enabled() {
        capabilities.push(TargetKind::AgentHost.to_string());
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
    if let Some(order) = order.clone().narrow(AnyManifest::agent) {
        return ProgramRunner::new(shared.clone(), key, order, digest, records, stop.clone())
            .run()
            .await;
    }
    // Before the turn is taken: this wait may be long, and must not keep the agent's program from being exchanged.
    let compose = match order.manifest {
        AnyManifest::ComposeHost(_) => {
            let state = AttemptState::fold(records);
            match search::found(shared, &order.target, &state, stop).await {
                Some(compose) => Some(compose),
                None => return rest(shared, key, records).await,
            }
        }
        AnyManifest::DockerHost(_) | AnyManifest::AgentHost(_) => None,
    };
    // While the agent's program is exchanged nothing else begins; what is under way is waited for.
    let _turn = tokio::select! {
        turn = shared.program.share() => turn,
        () = shared.shutdown.cancelled() => return rest(shared, key, records).await,
    };
    if let Some(order) = order.clone().narrow(AnyManifest::docker) {
        return Runner::new(shared.clone(), key, order, digest, records, stop.clone())
            .run()
            .await;
    }
    if let (Some(order), Some(compose)) = (order.narrow(AnyManifest::compose), compose) {
        return ComposeRunner::new(shared.clone(), compose, key, order, digest, records, stop.clone())
            .run()
            .await;
    }
    Ok(())
}

/// Leaves an attempt that did nothing in this run of the agent, so that the next start is none of its making.
async fn rest<H: Host>(shared: &Shared<H>, key: AttemptKey, records: &[Record]) -> Result<(), JournalError> {
    if matches!(AttemptState::fold(records).phase, Phase::Ended(_) | Phase::Done) {
        return Ok(());
    }
    let record = Record::Rested {
        at: shared.clock.now(),
    };
    shared.journal.commit(vec![Write::Record(key, record)]).await
}

/// Whether an attempt has begun to exchange the agent's program and is not at its end: nothing else may come before it.
pub(super) fn is_exchange(order: &Order, records: &[Record]) -> bool {
    let phase = AttemptState::fold(records).phase;
    matches!(order.manifest, AnyManifest::AgentHost(_))
        && !matches!(phase, Phase::Preparing | Phase::Ended(_) | Phase::Done)
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
