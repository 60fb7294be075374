//! Prune: takes away images that the agent itself pulled and nothing needs any more, by the policy of whoever runs the host
//! (section `[prune]` of the settings): on a schedule, and when the engine's disk is low. An image that anybody else pulled,
//! tagged or uses is never touched.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    any_manifest::Described as _, condition::ConditionCode, digest::Digest, inventory::PruneFacts,
};
use serde::{Deserialize, Serialize};
use tokio::time::{Instant, interval};

use crate::{
    facts,
    host::{Host, HostError, upkeep::ImageNames},
    journal::{AttemptState, JournalError, Phase, StoredAttempt, Write},
    labels::Labels,
    workshop::{Shared, trusted},
};

/// How often it is looked whether images should go.
const LOOK: Duration = Duration::from_mins(1);
/// Time between two sweeps while there is room.
const SCHEDULE: Duration = Duration::from_hours(6);
/// Time between two sweeps while the disk is low.
const PRESSED: Duration = Duration::from_mins(10);
/// An image that was asked for within this time stays, however low the disk is.
const FRESH: TimeDelta = TimeDelta::hours(1);

/// When images are taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PrunePolicy {
    /// `prune.enabled`: whether images are taken away at all.
    pub enabled: bool,
    /// `prune.keep_last`: the newest images of each repository that stay, whatever their age.
    pub keep_last: usize,
    /// `prune.keep_days`: images that were asked for within this time stay, unless the disk is low.
    pub keep: TimeDelta,
    /// `prune.min_free_mib`, in bytes: less free space on the engine's disk than this is low.
    pub min_free: u64,
}

impl Default for PrunePolicy {
    fn default() -> Self {
        Self {
            enabled: true,
            keep_last: 3,
            keep: TimeDelta::days(14),
            min_free: 2 * 1024 * 1024 * 1024,
        }
    }
}

/// An image that this agent pulled, as the journal knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PulledImage {
    /// When an order last asked for it.
    pub used_at: DateTime<Utc>,
}

/// Which of the `known` images may go, the longest unused first.
pub fn spare<'a>(
    known: &'a BTreeMap<String, PulledImage>,
    needed: &BTreeSet<String>,
    policy: &PrunePolicy,
    is_pressed: bool,
    now: DateTime<Utc>,
) -> Vec<&'a str> {
    let mut by_repository: BTreeMap<&str, Vec<(&str, DateTime<Utc>)>> = BTreeMap::new();
    for (reference, image) in known {
        by_repository
            .entry(repository(reference))
            .or_default()
            .push((reference, image.used_at));
    }
    let keep = if is_pressed { FRESH } else { policy.keep.max(FRESH) };
    let mut going = Vec::new();
    for images in by_repository.values_mut() {
        images.sort_by_key(|(_, used_at)| std::cmp::Reverse(*used_at));
        let older = images.iter().skip(policy.keep_last);
        going.extend(
            older.filter(|(reference, used_at)| !needed.contains(*reference) && now - *used_at > keep),
        );
    }
    going.sort_by_key(|(_, used_at)| *used_at);
    going.into_iter().map(|(reference, _)| reference).collect()
}

/// What attempts that are not over may need once more, whether a container uses it now or not: Compose removes the old containers
/// long before it is known whether the new set stays.
#[derive(Debug, Default)]
struct Open {
    /// Repositories that an order names.
    repositories: BTreeSet<String>,
    /// Images of the sets that ran before.
    old: BTreeSet<Digest>,
}

impl Open {
    fn of(attempts: &[StoredAttempt]) -> Self {
        let mut open = Self::default();
        for attempt in attempts {
            let state = AttemptState::fold(&attempt.records);
            // An order that cannot be read is carried out by nobody.
            let Some(order) = trusted(&attempt.order)
                .ok()
                .filter(|_| state.phase != Phase::Done)
            else {
                continue;
            };
            let services = order.manifest.images().into_values();
            let images = services.chain(order.manifest.hooks().iter().map(|hook| &hook.image));
            open.repositories
                .extend(images.map(|image| image.repository.clone()));
            open.old
                .extend(state.old.iter().flatten().filter_map(|old| old.digest));
        }
        open
    }

    fn needs(&self, reference: &str) -> bool {
        let digest = reference
            .rsplit_once('@')
            .and_then(|(_, digest)| digest.parse().ok());
        self.repositories.contains(repository(reference))
            || digest.is_some_and(|digest| self.old.contains(&digest))
    }
}

/// The repository of `repository@digest`.
fn repository(reference: &str) -> &str {
    reference
        .rsplit_once('@')
        .map_or(reference, |(repository, _)| repository)
}

/// A name as engines shorten it.
fn short(name: &str) -> &str {
    let name = name.strip_prefix("docker.io/").unwrap_or(name);
    name.strip_prefix("library/").unwrap_or(name)
}

/// Whether every name of an image is one under which this agent pulled it.
fn is_ours(found: &ImageNames, known: &BTreeMap<String, PulledImage>) -> bool {
    let ours: BTreeSet<&str> = known.keys().map(|reference| short(reference)).collect();
    found.names.iter().all(|name| ours.contains(short(name)))
}

/// An order asks for an image: it stays for a while. Waits while one is being taken away, so that whoever looks for it next
/// finds it whole or not at all.
pub(crate) async fn claim<H: Host>(shared: &Shared<H>, reference: &str) {
    let _turn = shared.images.read().await;
    let write = Write::ImageUsed {
        reference: reference.to_owned(),
        at: shared.clock.now(),
    };
    note(shared, write).await;
}

/// An image was not on the host and this agent has pulled it: it is ours to take away.
pub(crate) async fn pulled<H: Host>(shared: &Shared<H>, reference: &str) {
    let write = Write::ImagePulled {
        reference: reference.to_owned(),
        at: shared.clock.now(),
    };
    note(shared, write).await;
}

/// Notes, without standing in the way of an attempt: with a journal that takes no notes nothing is ever taken away.
async fn note<H: Host>(shared: &Shared<H>, write: Write) {
    if let Err(error) = shared.journal.note(vec![write]).await {
        tracing::debug!(error = &error as &dyn std::error::Error, "an image was not noted");
    }
}

/// Sweeps when it is time, until the agent goes down.
pub(crate) async fn run<H: Host>(shared: Arc<Shared<H>>) {
    if !shared.prune.enabled {
        return;
    }
    let mut looks = interval(LOOK);
    let mut last = Instant::now();
    loop {
        tokio::select! {
            () = shared.shutdown.cancelled() => return,
            _ = looks.tick() => {}
        }
        let is_pressed = is_pressed(&shared);
        let pause = if is_pressed { PRESSED } else { SCHEDULE };
        if last.elapsed() < pause {
            continue;
        }
        last = Instant::now();
        if let Err(error) = sweep(&shared, is_pressed).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "images were not taken away"
            );
        }
    }
}

fn is_pressed<H>(shared: &Shared<H>) -> bool {
    let facts = shared.facts.borrow();
    let engine = facts.disks.iter().find(|disk| disk.what == facts::ENGINE);
    engine.is_some_and(|disk| {
        facts
            .degraded
            .iter()
            .any(|found| found.is(ConditionCode::DiskLow) && facts::is_about(found, &disk.path))
    })
}

/// Why a sweep ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PruneError {
    #[error("the engine did not do it")]
    Host(#[from] HostError),
    #[error("the journal cannot be used")]
    Journal(#[from] JournalError),
}

/// Takes away what may go. What it did is told with the facts.
pub(crate) async fn sweep<H: Host>(shared: &Shared<H>, is_pressed: bool) -> Result<PruneFacts, PruneError> {
    let mut done = PruneFacts {
        at: shared.clock.now(),
        images: 0,
        bytes: 0,
    };
    let mut known = shared.journal.images()?;
    let containers = shared.host.list(&Labels::new()).await?;
    let running: BTreeSet<String> = containers.into_iter().map(|listed| listed.image_id).collect();
    // Asked after the engine was: a set that is gone by then has been written down before.
    let journal = shared.journal.clone();
    let attempts = tokio::task::spawn_blocking(move || journal.attempts())
        .await
        .unwrap_or_else(|panic| Err(JournalError::Damaged(panic.to_string())))?;
    let open = Open::of(&attempts);
    let mut needed = BTreeSet::new();
    let mut sizes = BTreeMap::new();
    let mut gone = Vec::new();
    for reference in known.keys() {
        match shared.host.image_names(reference).await? {
            // Somebody else took it away.
            None => gone.push(Write::ImageGone {
                reference: reference.clone(),
            }),
            Some(found) => {
                if running.contains(&found.id) || open.needs(reference) || !is_ours(&found, &known) {
                    needed.insert(reference.clone());
                }
                sizes.insert(reference.clone(), found.bytes);
            }
        }
    }
    known.retain(|reference, _| sizes.contains_key(reference));
    shared.journal.note(gone).await?;
    for reference in spare(&known, &needed, &shared.prune, is_pressed, done.at) {
        let Some(bytes) = sizes.get(reference) else {
            continue;
        };
        if take_away(shared, reference, done.at).await? {
            done.images += 1;
            done.bytes += bytes;
        }
    }
    if done.images > 0 {
        tracing::info!(
            images = done.images,
            bytes = done.bytes,
            is_pressed,
            "images taken away"
        );
        shared.facts.send_modify(|facts| facts.pruned = Some(done));
    }
    Ok(done)
}

async fn take_away<H: Host>(
    shared: &Shared<H>,
    reference: &str,
    now: DateTime<Utc>,
) -> Result<bool, PruneError> {
    let _turn = shared.images.write().await;
    // An order may have asked for it since.
    let used = shared.journal.images()?.get(reference).map(|image| image.used_at);
    if used.is_none_or(|used_at| now - used_at <= FRESH) {
        return Ok(false);
    }
    let is_gone = shared.host.remove_image(reference).await?;
    if is_gone {
        tracing::info!(image = reference, "image taken away");
        let write = Write::ImageGone {
            reference: reference.to_owned(),
        };
        shared.journal.note(vec![write]).await?;
    }
    Ok(is_gone)
}

#[cfg(test)]
mod tests;
