//! Facts: what this agent finds out about its host, and what of it is worth telling. Free space changes all the time and every
//! telling is stored, so it is told anew when it has moved by a twentieth of the whole, or when it became low or enough.

use std::{
    path::{Path, PathBuf},
    sync::LazyLock,
    time::Duration,
};

use crate::{hanging::Hanging, host::Host, workshop::Shared};
use sealift_common::{
    condition::{Condition, ConditionCode},
    inventory::{AgentFacts, DiskFacts},
};

/// Oldest engine API that is supported.
const OLDEST_API: (u32, u32) = (1, 41);
/// How long a file system may take to say how full it is.
const DISK: Duration = Duration::from_secs(10);
/// The state directory needs little: below this it is low.
pub const STATE_MIN_FREE: u64 = 256 * 1024 * 1024;

/// What lies on a disk that is looked at.
pub const ENGINE: &str = "engine";
/// The agent's own state.
pub const STATE: &str = "state";

/// Asks the engine and the file systems, and tells what is new. `thorough`: also what hardly ever changes.
pub(crate) async fn refresh<H: Host>(shared: &Shared<H>, thorough: bool) {
    match shared.ask_engine().await {
        Ok(engine) => {
            shared.facts.send_if_modified(|facts| {
                let before = facts.clone();
                facts.platform.clone_from(&engine.platform);
                facts.engine = format!("{} {}", engine.name, engine.version);
                facts.engine_api.clone_from(&engine.api);
                *facts != before
            });
            shared.set_condition(ConditionCode::EngineUnavailable, ENGINE, None);
            let old = is_old(&engine.api).then(|| format!("its API {} is too old", engine.api));
            shared.set_condition(ConditionCode::EngineOld, ENGINE, old.as_deref());
            if thorough {
                tell_details(shared).await;
            }
        }
        Err(error) => {
            shared.set_condition(ConditionCode::EngineUnavailable, ENGINE, Some(&error.0.summary));
        }
    }
    tell_disks(shared).await;
}

async fn tell_details<H: Host>(shared: &Shared<H>) {
    match shared.host.details().await {
        Ok(details) => {
            shared.set_engine_root(details.root);
            shared.facts.send_if_modified(|facts| {
                let before = facts.clone();
                facts.storage_driver = details.storage_driver;
                facts.cgroup_version = details.cgroup_version;
                *facts != before
            });
        }
        // What it is stays told; whether it answers at all is asked elsewhere.
        Err(error) => tracing::debug!(%error, "the engine does not say how it is set up"),
    }
}

async fn tell_disks<H: Host>(shared: &Shared<H>) {
    let places = [
        (ENGINE, shared.engine_root(), shared.prune.min_free),
        (STATE, Some(shared.state_dir.clone()), STATE_MIN_FREE),
    ];
    for (what, path, min_free) in places {
        let Some(path) = path else { continue };
        // A root that this process does not see (another mount namespace) is no disk of ours.
        if let Some(disk) = look(what, path).await {
            shared
                .facts
                .send_if_modified(|facts| note_disk(facts, disk, min_free));
        }
    }
}

/// Whether an engine with this newest API is too old. One that says nothing of the kind is taken as it is.
pub fn is_old(api: &str) -> bool {
    api_level(api).is_some_and(|level| level < OLDEST_API)
}

fn api_level(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once('.')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// How full the file system at `path` is; `None` when it cannot be seen or does not answer.
pub async fn look(what: &'static str, path: PathBuf) -> Option<DiskFacts> {
    static ASKED: LazyLock<Hanging<PathBuf>> = LazyLock::new(Hanging::default);
    let asked = path.clone();
    ASKED.within(asked, DISK, move || space(what, &path)).await.ok()?
}

fn space(what: &str, path: &Path) -> Option<DiskFacts> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(DiskFacts {
        what: what.to_owned(),
        path: path.display().to_string(),
        free_bytes: stat.f_bavail.saturating_mul(stat.f_frsize),
        total_bytes: stat.f_blocks.saturating_mul(stat.f_frsize),
    })
}

/// Takes in how full a disk is now; whether that is worth telling.
fn note_disk(facts: &mut AgentFacts, disk: DiskFacts, min_free: u64) -> bool {
    let told = facts.disks.iter_mut().find(|told| told.what == disk.what);
    let was_low = facts.degraded.iter().any(|found| is_about(found, &disk.path));
    let is_low = is_low(&disk, min_free, was_low);
    let moved = told.as_ref().is_none_or(|told| {
        told.path != disk.path
            || told.total_bytes != disk.total_bytes
            || told.free_bytes.abs_diff(disk.free_bytes) > disk.total_bytes / 20
    });
    if !moved && was_low == is_low {
        return false;
    }
    facts.degraded.retain(|found| !is_about(found, &disk.path));
    if is_low {
        let detail = format!(
            "{}{} MiB free",
            subject(&disk.path),
            disk.free_bytes / (1024 * 1024)
        );
        facts
            .degraded
            .push(Condition::new(ConditionCode::DiskLow, detail));
    }
    match told {
        Some(told) => *told = disk,
        None => facts.disks.push(disk),
    }
    true
}

/// How the condition of a disk begins.
fn subject(path: &str) -> String {
    format!("{path} has ")
}

/// Whether it is the condition of the disk at `path`.
pub(crate) fn is_about(found: &Condition, path: &str) -> bool {
    found.is(ConditionCode::DiskLow) && found.detail.starts_with(&subject(path))
}

/// Whether a disk is low: below `min_free`, or a tenth of it when it is small. One that was low needs a fifth more to be enough.
pub fn is_low(disk: &DiskFacts, min_free: u64, was_low: bool) -> bool {
    let bound = min_free.min(disk.total_bytes / 10);
    let bound = if was_low { bound + bound / 5 } else { bound };
    disk.free_bytes < bound
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1024 * 1024 * 1024;

    fn disk(free_bytes: u64) -> DiskFacts {
        DiskFacts {
            what: ENGINE.to_owned(),
            path: "/var/lib/docker".to_owned(),
            free_bytes,
            total_bytes: 100 * GIB,
        }
    }

    #[test]
    fn free_space_is_told_again_only_when_it_moved_much_or_crossed_the_bound() {
        let mut facts = AgentFacts::default();
        assert!(note_disk(&mut facts, disk(50 * GIB), 2 * GIB));
        assert!(!note_disk(&mut facts, disk(46 * GIB), 2 * GIB));
        assert_eq!(facts.disks[0].free_bytes, 50 * GIB);
        assert!(note_disk(&mut facts, disk(44 * GIB), 2 * GIB));
        assert!(facts.degraded.is_empty());
        assert!(note_disk(&mut facts, disk(GIB), 2 * GIB));
        assert!(facts.degraded[0].is(ConditionCode::DiskLow));
        assert!(!note_disk(&mut facts, disk(GIB / 2), 2 * GIB));
        assert!(
            !note_disk(&mut facts, disk(2 * GIB + 1), 2 * GIB),
            "at the bound it does not flap"
        );
        assert!(note_disk(&mut facts, disk(3 * GIB), 2 * GIB));
        assert!(facts.degraded.is_empty());
        assert_eq!(facts.disks.len(), 1);
    }

    #[test]
    fn a_small_disk_is_low_at_a_tenth() {
        let mut small = disk(GIB);
        small.total_bytes = 8 * GIB;
        assert!(!is_low(&small, 2 * GIB, false));
        small.free_bytes = GIB / 2;
        assert!(is_low(&small, 2 * GIB, false));
    }

    #[test]
    fn api_levels_compare_as_numbers() {
        assert!(!is_old("1.41") && !is_old("1.100") && !is_old("2.0"));
        assert!(is_old("1.40") && is_old("0.99"));
        assert!(!is_old("x"));
    }

    #[tokio::test]
    async fn a_real_file_system_says_how_full_it_is() {
        let directory = tempfile::tempdir().unwrap();
        let seen = look(STATE, directory.path().to_owned()).await.unwrap();
        assert!(seen.total_bytes >= seen.free_bytes && seen.total_bytes > 0);
        assert_eq!(look(STATE, directory.path().join("absent")).await, None);
    }
}
