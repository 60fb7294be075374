//! Supervisor: tells systemd (Type=notify) how the agent is. Without systemd nobody listens, and nothing happens.

use std::{convert::Infallible, time::Duration};

use sd_notify::NotifyState;
use sealift_agent::connect::Notice;

/// Passes on how the agent is.
pub fn tell(notice: Notice) {
    let status = match notice {
        Notice::Ready => return send(&[NotifyState::Ready, NotifyState::Status("not connected yet")]),
        Notice::Connected => "connected",
        Notice::Answered => return,
        Notice::Away => "not connected: tries again by itself; what runs on the host goes on",
    };
    send(&[NotifyState::Status(status)]);
}

/// The agent was asked to stop.
pub fn stopping() {
    send(&[NotifyState::Stopping]);
}

/// Says that the process is alive as often as systemd wants to hear it, from the task that everything else runs beside.
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

/// All is well while another program is on trial: the process that systemd knows only watches it.
pub fn on_trial() {
    send(&[
        NotifyState::Ready,
        NotifyState::Status("a new program is on trial"),
        NotifyState::Watchdog,
    ]);
}

fn send(states: &[NotifyState]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "systemd was not told");
    }
}
