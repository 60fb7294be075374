//! Remind: a session looks at its agent's assignments when somebody says that they changed. What nobody said, because another process
//! made it or this one was too slow to listen, is found here: one question for the whole fleet every few seconds, instead of one from
//! each session. Sessions that know of work look for themselves.

use std::time::Duration;

use sealift_store::StoreError;
use tokio::time::{Instant, MissedTickBehavior, interval_at};

use crate::{state::App, status::Chain};

/// How often it is asked.
const EVERY: Duration = Duration::from_secs(10);
/// How long asking may take.
const DEADLINE: Duration = Duration::from_secs(30);
/// Agents in one answer.
const AGENTS: u32 = 1_000;

/// Runs until shutdown.
pub async fn run(app: App) {
    let mut ticks = interval_at(Instant::now() + EVERY, EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = app.shutdown.cancelled() => return,
            _ = ticks.tick() => {}
        }
        match tokio::time::timeout(DEADLINE, remind(&app)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(error = %Chain(&error), "which agents have work cannot be read");
            }
            Err(_) => tracing::warn!("which agents have work was not read in time"),
        }
    }
}

/// Tells the sessions whose agents have work that they do not know of.
pub async fn remind(app: &App) -> Result<(), StoreError> {
    let mut after = None;
    loop {
        let agents = app.db.read().await?.agents_with_live_tasks(after, AGENTS).await?;
        app.presence.remind(&agents);
        if agents.len() < AGENTS as usize {
            return Ok(());
        }
        after = agents.last().copied();
    }
}
