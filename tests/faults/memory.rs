//! A memory controller: takes a process the memory that it would need next, until the kernel ends it.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

/// Where the controller is, and the file of its limit: of cgroup v1, or of v2.
const PLACES: [(&str, &str); 2] = [
    ("/sys/fs/cgroup/memory", "memory.limit_in_bytes"),
    ("/sys/fs/cgroup", "memory.max"),
];
const LIMIT: &str = "65536";

fn place() -> Option<(&'static Path, &'static str)> {
    // The root of v2 has no limit of its own; what it delegates is named in this file.
    let has_it = |folder: &Path, limit: &str| {
        folder.join(limit).exists()
            || fs::read_to_string(folder.join("cgroup.subtree_control"))
                .is_ok_and(|all| all.contains("memory"))
    };
    PLACES
        .iter()
        .map(|(folder, limit)| (Path::new(*folder), *limit))
        .find(|(folder, limit)| has_it(folder, limit))
}

/// Whether this machine lets us have one.
pub fn is_there() -> bool {
    place().is_some() && rustix::process::geteuid().is_root()
}

/// A group of processes that get no further page.
pub struct Starved {
    folder: PathBuf,
}

impl Starved {
    /// Moves a process into a group of its own. What it holds already stays charged to the group that it comes from.
    pub fn new(pid: u32) -> Result<Self> {
        let (root, limit) = place().context("no memory controller")?;
        let folder = root.join(format!("sealift-faults-{pid}"));
        fs::create_dir(&folder)?;
        let group = Self { folder };
        fs::write(group.folder.join(limit), LIMIT)?;
        fs::write(group.folder.join("cgroup.procs"), pid.to_string())?;
        Ok(group)
    }
}

impl Drop for Starved {
    fn drop(&mut self) {
        // Only an empty group can go; its process is dead by then.
        let _ = fs::remove_dir(&self.folder);
    }
}
