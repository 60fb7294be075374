//! Supervisor: tells systemd (Type=notify) how the orchestrator is. Without systemd nobody listens, and nothing happens.

use std::{convert::Infallible, time::Duration};

use sd_notify::NotifyState;

/// Everything is open and served.
pub fn ready() {
    send(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// It was asked to go down.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Says that the process is alive as often as systemd wants to hear it.
pub async fn watchdog() -> Infallible {
    let Some(patience) = sd_notify::watchdog_enabled() else {
        return std::future::pending().await;
    };
    let mut ticks = tokio::time::interval((patience / 3).max(Duration::from_millis(1)));
    loop {
        ticks.tick().await;
        send(&[NotifyState::Watchdog]);
    }
}

fn send(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}
