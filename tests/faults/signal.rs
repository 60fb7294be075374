//! Signals for processes that the suite itself started.

use std::{fs, time::Duration};

use anyhow::{Context as _, Result};
use rustix::process::{Pid, kill_process};
use sealift_e2e::wait::within;

pub use rustix::process::Signal;

/// Sends one.
pub fn send(pid: u32, signal: Signal) -> Result<()> {
    let raw = i32::try_from(pid)?;
    let pid = Pid::from_raw(raw).context("there is no process 0")?;
    kill_process(pid, signal)?;
    Ok(())
}

/// Whether no such process exists; one that only waits for its parent counts as gone.
pub fn is_gone(pid: u32) -> bool {
    let Ok(status) = fs::read_to_string(format!("/proc/{pid}/status")) else {
        return true;
    };
    status
        .lines()
        .any(|line| line.starts_with("State:") && line.contains('Z'))
}

/// Waits until a process is gone.
pub async fn gone(pid: u32, patience: Duration) -> Result<()> {
    within(patience, &format!("process {pid} ends"), async || {
        Ok(is_gone(pid).then_some(()))
    })
    .await
}

/// Resident memory in KiB.
pub fn resident_kib(pid: u32) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .context("VmRSS")?;
    let number = line.split_whitespace().next().context("a number")?;
    Ok(number.parse()?)
}
