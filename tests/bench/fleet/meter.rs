//! What the kernel and the databases say about a process: memory, processor time, commits.

use std::{fs, path::Path, time::Duration};

use anyhow::{Context as _, Result};

/// Processor time is counted in hundredths of a second on every Linux of today (USER_HZ).
const TICKS_PER_SECOND: u64 = 100;

/// Memory of a process in KiB.
#[derive(Debug, Clone, Copy)]
pub struct Memory {
    /// Resident.
    pub rss: u64,
    /// Resident, with shared pages divided among those who share them.
    pub pss: u64,
}

/// Memory of a process.
pub fn memory(pid: u32) -> Result<Memory> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse().ok()
    };
    Ok(Memory {
        rss: field("Rss:").context("smaps_rollup has no Rss")?,
        pss: field("Pss:").context("smaps_rollup has no Pss")?,
    })
}

/// Processor time that a process has used so far, in all its threads.
pub fn processor(pid: u32) -> Result<Duration> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name of the program, in brackets, may hold anything.
    let (_, fields) = text.rsplit_once(')').context("stat has no name")?;
    let ticks: u64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 1_000 / TICKS_PER_SECOND))
}

/// How many transactions were committed to an SQLite database in WAL mode so far: the counter `iChange` of the header of its
/// shared index, which SQLite's format of WAL files describes. Wraps.
pub fn sqlite_commits(database: &Path) -> Result<u32> {
    let mut name = database.as_os_str().to_owned();
    name.push("-shm");
    let index = fs::read(&name).with_context(|| format!("{}", Path::new(&name).display()))?;
    let bytes = index.get(8..12).context("the shared index is too short")?;
    Ok(u32::from_ne_bytes(bytes.try_into()?))
}
