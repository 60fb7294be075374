//! Heartbeats: what [`Presence`] heard is written every few seconds, all agents in one statement, and the leases of their tasks
//! are extended with it. Never a commit per heartbeat.

use std::time::Duration;

use sealift_store::StoreError;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::{gateway::presence::FLUSH_INTERVAL, state::App};

/// Most rows in one statement.
const ROWS: usize = 1_000;
const DEADLINE: Duration = Duration::from_secs(30);

/// Runs until shutdown.
pub async fn run(app: App) {
    let mut ticks = interval_at(Instant::now() + FLUSH_INTERVAL, FLUSH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => break,
            _ = ticks.tick() => {}
        }
        flush_within_deadline(&app).await;
    }
    // What was heard last keeps leases up while another replica (or this one, after a restart) takes over.
    flush_within_deadline(&app).await;
}

async fn flush_within_deadline(app: &App) {
    match tokio::time::timeout(DEADLINE, flush(app)).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = %crate::status::Chain(&error), "heartbeats were not written");
        }
        Err(_) => tracing::warn!("heartbeats were not written in time"),
    }
}

/// Writes what was heard since the last call; answers how many agents that were.
pub async fn flush(app: &App) -> Result<usize, StoreError> {
    let heard = app.presence.take_heard();
    if heard.agents.is_empty() {
        return Ok(0);
    }
    let lease = chrono::TimeDelta::from_std(app.presence.lease()).unwrap_or(chrono::TimeDelta::MAX);
    let until = app.clock.now() + lease;
    let mut tx = app.db.write().await?;
    for agents in heard.agents.chunks(ROWS) {
        tx.record_heartbeats(agents).await?;
    }
    for tasks in heard.tasks.chunks(ROWS) {
        tx.extend_leases(tasks, until).await?;
    }
    tx.commit().await?;
    Ok(heard.agents.len())
}
