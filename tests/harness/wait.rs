//! Waiting for what is expected to happen, with a deadline; never a guess that something is done by then.

use std::time::Duration;

use anyhow::{Result, ensure};
use tokio::time::{Instant, sleep};

/// Longest wait for anything that is expected to happen.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// The pause between two looks.
const PAUSE: Duration = Duration::from_millis(50);

/// Waits until `check` gives something; fails with `what` when patience ends.
pub async fn eventually<T>(what: &str, check: impl AsyncFnMut() -> Result<Option<T>>) -> Result<T> {
    within(PATIENCE, what, check).await
}

/// The same with another patience.
pub async fn within<T>(
    patience: Duration,
    what: &str,
    mut check: impl AsyncFnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = check().await? {
            return Ok(value);
        }
        ensure!(
            Instant::now() < deadline,
            "not within {} s: {what}",
            patience.as_secs()
        );
        sleep(PAUSE).await;
    }
}
