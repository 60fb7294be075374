//! What is written about one attempt, and what follows from it. Records are only appended; the state is their fold.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use sealift_common::{
    compose_manifest::Lifetime,
    digest::Digest,
    evidence::{Allowance, EvidenceStep},
    failure::Failure,
    hook::{Direction, HookWhen},
    manifest::RestartPolicy,
    name::ServiceName,
    task::TaskStep,
};
use serde::{Deserialize, Serialize};

/// A container of the set that ran before, as it was found before anything was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OldContainer {
    /// The engine's identifier.
    pub id: String,
    /// Its service.
    pub service: ServiceName,
    /// Whether it ran.
    pub running: bool,
    /// Its restart policy.
    pub restart: RestartPolicy,
    /// Its grace period in milliseconds.
    pub grace_ms: u64,
    /// The registry digest of its image, if the engine knew one.
    pub digest: Option<Digest>,
    /// Its aliases on the networks on which the new set takes its place; nothing when the sets are swapped in place.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub aliases: BTreeMap<String, Vec<String>>,
    /// What else is known of it on a compose host, where it may stay as a part of the new set.
    #[serde(default)]
    pub compose: OldOfCompose,
}

/// More of an [`OldContainer`] on a compose host.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct OldOfCompose {
    /// How often the engine had restarted it.
    pub restarts: u64,
    /// Whether it was not as it was deployed: changed on the host since, or made by somebody else.
    pub altered: bool,
    /// Whether it was meant to run for ever, if that is known.
    pub lifetime: Option<Lifetime>,
}

/// A hook, and which way it leads.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct HookRef {
    /// Its name.
    pub hook: ServiceName,
    /// Which way: only the hook that switches has a way back.
    pub direction: Direction,
}

/// How a run of a hook ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HookOutcome {
    /// Its exit code, if it came to have one.
    pub exit_code: Option<i32>,
    /// Whether it said more than the log has room for.
    pub is_truncated: bool,
    /// Why it counts as failed, if it does.
    pub failure: Option<Failure>,
}

/// A run of a hook.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HookRun {
    /// Of which.
    pub hook: HookRef,
    /// When it runs in an attempt.
    pub when: HookWhen,
    /// When it began.
    pub began_at: DateTime<Utc>,
    /// When and how it ended, if that was seen.
    pub ended: Option<(DateTime<Utc>, HookOutcome)>,
}

/// Why the set before is restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cause", rename_all = "snake_case")]
pub enum Cause {
    /// Something failed.
    Failed {
        /// What.
        failure: Failure,
    },
    /// It was asked for.
    Stopped,
}

/// A kept lock of a compose host, with what Compose must be told beside it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRef {
    /// Digest of the lock.
    pub digest: Digest,
    /// The profiles that are switched on in it.
    pub profiles: BTreeSet<String>,
}

/// The locks of an attempt on a compose host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Locked {
    /// The new one.
    pub lock: Digest,
    /// The one that ran before, if any did.
    pub previous: Option<LockRef>,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// The new set runs.
    Succeeded,
    /// The set before runs (unless restoring failed).
    Failed,
    /// The set before runs, as was asked for.
    Stopped,
    /// The order was refused; nothing was touched.
    Refused,
}

/// One line of an attempt's journal. Each stands for all effects that may follow it until the next one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "record", rename_all = "snake_case")]
pub enum Record {
    /// The order passed every check. Intent: pull and create.
    Accepted {
        /// When.
        at: DateTime<Utc>,
        /// What of it the host's settings allow.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        allowances: Vec<Allowance>,
    },
    /// The agent was started again and goes on.
    Resumed {
        /// When.
        at: DateTime<Utc>,
    },
    /// The agent was asked to stop and left the attempt in order: the start that follows is none of the attempt's making.
    Rested {
        /// When.
        at: DateTime<Utc>,
    },
    /// The compose file is resolved, judged, and kept as a lock.
    Locked {
        /// When.
        at: DateTime<Utc>,
        /// Its digest.
        lock: Digest,
        /// The lock that a restore goes back to.
        previous: Option<LockRef>,
        /// What of it the host's settings allow.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        allowances: Vec<Allowance>,
    },
    /// Intent: make the container of a hook and run it. Once more when the agent found no container after a crash.
    HookBegan {
        /// When.
        at: DateTime<Utc>,
        /// Which.
        hook: HookRef,
        /// When it runs in an attempt.
        when: HookWhen,
    },
    /// A hook has ended. Intent: remove its container.
    HookEnded {
        /// When.
        at: DateTime<Utc>,
        /// Which.
        hook: HookRef,
        /// How.
        outcome: HookOutcome,
    },
    /// All images are on the host, with the ordered digests.
    Pulled {
        /// When.
        at: DateTime<Utc>,
    },
    /// The new set is made, stopped. Intent: stop the old set, start the new one.
    Prepared {
        /// When.
        at: DateTime<Utc>,
        /// The old set, in the order in which it is started.
        old: Vec<OldContainer>,
    },
    /// The old set is stopped, the new one started. Intent: wait for health.
    Started {
        /// When the first new container was started.
        starting_at: DateTime<Utc>,
        /// When the last one was.
        at: DateTime<Utc>,
    },
    /// The new set was healthy for as long as it must be. Intent: let it take over, by a hook or (blue/green) by its aliases. Not
    /// written when there is nothing to do for that.
    Ready {
        /// When.
        at: DateTime<Utc>,
    },
    /// The new set has taken over. Intent: run the hooks that follow, watch it for the bake time.
    Switched {
        /// When.
        at: DateTime<Utc>,
    },
    /// The new set was healthy for as long as it must be. Intent: write the sticker and the packet.
    Healthy {
        /// When.
        at: DateTime<Utc>,
        /// The sticker file before, to put back if the new set does not outlive a crash right now.
        sticker_before: Option<String>,
    },
    /// Intent: remove the new set, start the old one.
    Restoring {
        /// When.
        at: DateTime<Utc>,
        /// Why.
        cause: Cause,
    },
    /// The end, reported. Intent after a success: remove the old set.
    Ended {
        /// When.
        at: DateTime<Utc>,
        /// How.
        ending: Ending,
    },
    /// Nothing of the attempt is left to do.
    Cleaned,
}

/// Where an attempt stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Phase {
    /// Pulling and creating.
    #[default]
    Preparing,
    /// Stopping the old set, starting the new one.
    Switching,
    /// Waiting for health.
    Proving,
    /// Letting the new set take over.
    Moving,
    /// Running the hooks that follow, then watching the new set.
    Baking,
    /// Writing sticker and packet.
    Committing,
    /// Going back to the old set.
    Restoring(Cause),
    /// Cleaning up.
    Ended(Ending),
    /// Nothing left.
    Done,
}

/// How often an attempt may be begun before it counts as poison: it is then restored instead of tried again.
pub const MOST_STARTS: u32 = 3;
/// How often a restore may be begun before it is given up: more often, because what is given up then is the old set.
pub const MOST_RESTORE_STARTS: u32 = 12;

/// The fold of an attempt's records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AttemptState {
    /// Where it stands.
    pub phase: Phase,
    /// How often it was begun, counting the first time; once it restores: how often that was begun. Starts after an orderly
    /// stop do not count.
    pub starts: u32,
    /// The locks, on a compose host.
    pub lock: Option<Locked>,
    /// What the host's settings allow of what was ordered.
    pub allowances: Vec<Allowance>,
    /// Whether the images are known to be there.
    pub pulled: bool,
    /// The old set, once it is known.
    pub old: Option<Vec<OldContainer>>,
    /// Whether the new set may have taken over.
    pub moved: bool,
    /// The runs of hooks, in order.
    pub hooks: Vec<HookRun>,
    /// The sticker file before, once it may have been replaced.
    pub sticker_before: Option<Option<String>>,
    /// When it began.
    pub began_at: Option<DateTime<Utc>>,
    /// Steps with their times.
    pub steps: Vec<EvidenceStep>,
}

impl AttemptState {
    /// The state after `records`.
    pub fn fold<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut state = Self::default();
        for record in records {
            state.apply(record);
        }
        state
    }

    /// The state after one more record.
    pub fn apply(&mut self, record: &Record) {
        for (step, at) in steps(record) {
            self.steps.push(EvidenceStep { step, at });
        }
        match record {
            Record::Accepted { at, allowances } => {
                self.allowances.clone_from(allowances);
                self.began_at = Some(*at);
                self.starts += 1;
            }
            Record::Resumed { .. } => self.starts += 1,
            Record::Rested { .. } => self.starts = self.starts.saturating_sub(1),
            Record::Locked {
                lock,
                previous,
                allowances,
                ..
            } => {
                self.allowances.clone_from(allowances);
                self.lock = Some(Locked {
                    lock: *lock,
                    previous: previous.clone(),
                });
            }
            Record::HookBegan { at, hook, when } => self.hooks.push(HookRun {
                hook: hook.clone(),
                when: *when,
                began_at: *at,
                ended: None,
            }),
            Record::HookEnded { at, hook, outcome } => {
                if let Some(run) = self.hooks.iter_mut().rfind(|run| run.hook == *hook) {
                    run.ended = Some((*at, outcome.clone()));
                }
            }
            Record::Pulled { .. } => self.pulled = true,
            Record::Prepared { old, .. } => {
                self.phase = Phase::Switching;
                self.old = Some(old.clone());
            }
            Record::Started { .. } => self.phase = Phase::Proving,
            Record::Ready { .. } => {
                self.phase = Phase::Moving;
                self.moved = true;
            }
            Record::Switched { .. } => self.phase = Phase::Baking,
            Record::Healthy { sticker_before, .. } => {
                self.phase = Phase::Committing;
                self.sticker_before = Some(sticker_before.clone());
            }
            Record::Restoring { cause, .. } => {
                self.phase = Phase::Restoring(cause.clone());
                self.starts = 1;
            }
            Record::Ended { ending, .. } => self.phase = Phase::Ended(*ending),
            Record::Cleaned => self.phase = Phase::Done,
        }
    }

    /// Whether it was begun too often without coming to an end.
    pub fn is_poison(&self) -> bool {
        match self.phase {
            Phase::Restoring(_) => self.starts > MOST_RESTORE_STARTS,
            Phase::Ended(_) | Phase::Done => false,
            _ => self.starts > MOST_STARTS,
        }
    }

    /// The newest run of a hook.
    pub fn last_run(&self, hook: &HookRef) -> Option<&HookRun> {
        self.hooks.iter().rfind(|run| run.hook == *hook)
    }

    /// The old set by digest, as far as it ran.
    pub fn previous(&self) -> BTreeMap<ServiceName, Digest> {
        self.old
            .iter()
            .flatten()
            .filter(|old| old.running)
            .filter_map(|old| Some((old.service.clone(), old.digest?)))
            .collect()
    }
}

/// The steps that begin with a record, as they are reported and proven.
pub fn steps(record: &Record) -> Vec<(TaskStep, DateTime<Utc>)> {
    match record {
        Record::Accepted { at, .. } => vec![(TaskStep::Pulling, *at)],
        Record::Pulled { at } => vec![(TaskStep::Verifying, *at), (TaskStep::Creating, *at)],
        Record::Prepared { at, .. } => vec![(TaskStep::Switching, *at)],
        Record::Started { starting_at, at } => {
            vec![(TaskStep::Starting, *starting_at), (TaskStep::HealthWait, *at)]
        }
        Record::Healthy { at, .. } => vec![(TaskStep::Committing, *at)],
        Record::Restoring { at, .. } => vec![(TaskStep::Restoring, *at)],
        Record::HookBegan { at, hook, when } if hook.direction == Direction::Forward => {
            vec![(hook_step(*when), *at)]
        }
        Record::Locked { .. }
        | Record::HookBegan { .. }
        | Record::HookEnded { .. }
        | Record::Resumed { .. }
        | Record::Rested { .. }
        | Record::Ready { .. }
        | Record::Switched { .. }
        | Record::Ended { .. }
        | Record::Cleaned => Vec::new(),
    }
}

const fn hook_step(when: HookWhen) -> TaskStep {
    match when {
        HookWhen::PreDeploy => TaskStep::PreDeployHook,
        HookWhen::Switch => TaskStep::SwitchHook,
        HookWhen::PostDeploy => TaskStep::PostDeployHook,
    }
}
