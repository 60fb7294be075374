//! Hook: a command that a release runs on each target before it changes anything, when the new set takes over, or after it has.
//! A container of its own, from an image pinned by digest; declared under `x-sealift.hooks` of the compose file (`docs/hooks.md`).

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{manifest::PinnedImage, name::ServiceName, phases};

phases! {
    /// When a hook runs.
    HookWhen { PreDeploy = "pre_deploy", Switch = "switch", PostDeploy = "post_deploy" }
}

phases! {
    /// What the failure of a hook means.
    OnFailure { Fail = "fail", Continue = "continue" }
}

phases! {
    /// Whether the new set takes over or the old one does again.
    Direction { Forward = "forward", Back = "back" }
}

/// Time that a hook may take when it names none.
pub const DEFAULT_TIMEOUT_MS: u32 = 5 * 60 * 1000;
/// The most that it may name.
pub const MOST_TIMEOUT_MS: u32 = 60 * 60 * 1000;
/// Time between the stop signal and the kill of a hook that took too long.
pub const GRACE_MS: u32 = 10 * 1000;
/// How often the way back of a switch is tried.
pub const BACK_TRIES: u32 = 3;

/// A named volume in a hook's container. There is no other kind of mount.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookMount {
    /// Its name in the file.
    pub volume: ServiceName,
    /// Absolute path in the container.
    pub target: String,
    /// Mounted read-only.
    pub read_only: bool,
}

/// One hook. What it does not say cannot be had: no ports, host paths, capabilities, privileges.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HookSpec {
    /// Unique in the release.
    pub name: ServiceName,
    /// When it runs.
    pub when: HookWhen,
    /// The image.
    pub image: PinnedImage,
    /// Replaces the image's command.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Replaces the image's entry point.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Variables with their values.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
    /// Variables whose values are those of the target's environment, or of the host; only on compose hosts.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub variables: BTreeSet<String>,
    /// Networks of the file. Empty means `default`.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub networks: BTreeSet<ServiceName>,
    /// Volumes of the file.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<HookMount>,
    /// The user that it runs as.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// The folder that it runs in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub working_dir: Option<String>,
    /// After so long it is ended, and has failed.
    pub timeout_ms: u32,
    /// What its failure means.
    pub on_failure: OnFailure,
}

impl HookSpec {
    /// Names of its networks.
    pub fn network_names(&self) -> Vec<&str> {
        if self.networks.is_empty() {
            return vec![crate::manifest::DEFAULT_NETWORK];
        }
        self.networks.iter().map(ServiceName::as_str).collect()
    }

    /// Whether two hooks are the same but for what a registry said of the image.
    pub fn says_the_same(&self, other: &Self) -> bool {
        let image = other.image.clone();
        Self {
            image,
            ..self.clone()
        } == *other
    }
}

/// The hooks of one time, in the order in which they run.
pub fn at(hooks: &[HookSpec], when: HookWhen) -> impl Iterator<Item = &HookSpec> {
    hooks.iter().filter(move |hook| hook.when == when)
}

/// The hook that sends callers to the set that takes over; there is at most one.
pub fn switch(hooks: &[HookSpec]) -> Option<&HookSpec> {
    at(hooks, HookWhen::Switch).next()
}

/// Whether anything runs between health and the commit.
pub fn has_late(hooks: &[HookSpec]) -> bool {
    hooks.iter().any(|hook| hook.when != HookWhen::PreDeploy)
}

/// How long all of them may take in milliseconds, the way back of a switch among them.
pub fn longest_ms(hooks: &[HookSpec]) -> u64 {
    let of = |hook: &HookSpec| {
        let runs = match hook.when {
            HookWhen::Switch => 1 + u64::from(BACK_TRIES),
            HookWhen::PreDeploy | HookWhen::PostDeploy => 1,
        };
        runs * (u64::from(hook.timeout_ms) + u64::from(GRACE_MS))
    };
    hooks.iter().map(of).sum()
}
