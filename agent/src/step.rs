//! Step: the pure heart of the agent. From the journal, what is wanted and what is seen it decides the one next thing to do.
//!
//! Whatever happened before, following the steps from any point ends with the old set whole or the new set whole (R10), as long
//! as the engine answers.

pub mod compose;
pub mod hooks;
pub mod program;

use std::collections::{BTreeMap, BTreeSet};

use sealift_common::{
    failure::{Failure, FailureCode},
    hook::HookWhen,
    manifest::{DependencyCondition, Manifest, RestartPolicy},
    name::ServiceName,
    swap::{self, Swap},
    task::Wanted,
};

use crate::journal::{AttemptState, Cause, Ending, MOST_STARTS, OldContainer, Phase};
use hooks::{HookStep, Present};

/// A container as far as deciding needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The engine's identifier.
    pub id: String,
    /// Whether it runs.
    pub running: bool,
    /// Its restart policy, when it matters.
    pub restart: RestartPolicy,
}

/// What is known of the engine. Made by looking, kept up to date by what each step did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct World {
    /// Whether networks and volumes are there.
    pub surroundings: bool,
    /// Whether all ordered images are there with their digests.
    pub images: bool,
    /// Containers of this order.
    pub new: BTreeMap<ServiceName, Seen>,
    /// Those of them that were made in full by this run of the agent.
    pub complete: BTreeSet<ServiceName>,
    /// Those that this run has seen healthy.
    pub healthy: BTreeSet<ServiceName>,
    /// Those of them that this run gave their aliases.
    pub joined: BTreeSet<ServiceName>,
    /// Old containers that this run took the aliases from.
    pub left: BTreeSet<String>,
    /// Old containers that this run gave them back to.
    pub back: BTreeSet<String>,
    /// Containers of the old set, by identifier.
    pub old: BTreeMap<String, Seen>,
    /// Whether the old set was seen running after it was started again.
    pub old_checked: bool,
    /// Containers of this order's hooks.
    pub hooks: Present,
}

/// The one next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Bring all images to the host and compare their digests.
    Pull,
    /// Make networks and volumes.
    Surroundings,
    /// Make the container of a service, stopped.
    Create(ServiceName),
    /// Do something about a hook.
    Hook(HookStep),
    /// Look at the old set and write down what it is; from then on it may be touched.
    Prepare,
    /// Stop an old container.
    StopOld(String),
    /// Keep the engine from starting an old container by itself. After it was stopped: for a container that runs, the engine
    /// spends ten times the work on it.
    QuietOld(String),
    /// Wait until a service that others depend on is healthy.
    AwaitDependency(ServiceName),
    /// Start a new container.
    StartNew(ServiceName),
    /// Write down that all are started.
    NoteStarted,
    /// Wait until all were healthy for as long as they must be.
    AwaitHealth,
    /// Give a new container its aliases on the networks that others call it on.
    JoinNew(ServiceName),
    /// Take an old container's aliases away; it stays on its networks.
    LeaveOld(String),
    /// Write down that the new set has taken over.
    NoteSwitched,
    /// Watch the new set after it has taken over.
    AwaitBake,
    /// Sticker, packet, report, end.
    Commit,
    /// Go back to the old set.
    Restore(Cause),
    /// Give an old container its aliases back.
    JoinOld(String),
    /// Stop a new container.
    StopNew(ServiceName),
    /// Remove a new container.
    RemoveNew(ServiceName),
    /// Give an old container its restart policy back.
    RestorePolicy(String, RestartPolicy),
    /// Start an old container.
    StartOld(String),
    /// See that the old set runs.
    CheckOld,
    /// Packet, report, end, with the old set running.
    Conclude(Cause),
    /// Remove an old container.
    RemoveOld(String),
    /// Remove what nothing uses any more and write down that all is done.
    Clean,
    /// Nothing is left to do.
    Done,
}

impl Step {
    /// Whether a request to stop may end it in the middle. Effects on containers are always finished.
    pub fn gives_way(&self) -> bool {
        match self {
            Self::Pull | Self::AwaitDependency(_) | Self::AwaitHealth | Self::AwaitBake => true,
            Self::Hook(step) => step.gives_way(),
            _ => false,
        }
    }

    /// Whether the agent's own end may end it in the middle: it is done again at the next start.
    pub fn is_long(&self) -> bool {
        match self {
            Self::Hook(step) => step.is_long(),
            _ => self.gives_way(),
        }
    }

    /// The step that follows from hooks of a time: what is left to do about them, or the way back when one failed.
    fn of_hooks(pending: Result<Option<HookStep>, Failure>) -> Option<Self> {
        match pending {
            Ok(step) => step.map(Self::Hook),
            Err(failure) => Some(Self::Restore(Cause::Failed { failure })),
        }
    }
}

/// The next step. Pure.
pub fn next(manifest: &Manifest, swap: Swap, state: &AttemptState, wanted: Wanted, world: &World) -> Step {
    if let Some(cause) = turned_back(state, wanted) {
        return Step::Restore(cause);
    }
    match &state.phase {
        Phase::Preparing => prepare(manifest, state, world),
        Phase::Switching => match swap {
            Swap::InPlace => in_place(manifest, state, world),
            Swap::BlueGreen { .. } => start_new(manifest, world).unwrap_or(Step::NoteStarted),
        },
        Phase::Proving => Step::AwaitHealth,
        Phase::Moving => take_over(manifest, swap, state, world),
        Phase::Baking => {
            let hooks = hooks::pending(&manifest.hooks, HookWhen::PostDeploy, state, &world.hooks);
            Step::of_hooks(hooks).unwrap_or(Step::AwaitBake)
        }
        Phase::Committing => commit(manifest, state, world),
        // The end says that the restore was given up.
        Phase::Restoring(cause) if state.is_poison() => Step::Conclude(cause.clone()),
        Phase::Restoring(cause) => restore(manifest, swap, state, cause, world),
        Phase::Ended(Ending::Succeeded) => world
            .old
            .values()
            .next()
            .map_or(Step::Clean, |old| Step::RemoveOld(old.id.clone())),
        Phase::Ended(_) => Step::Clean,
        Phase::Done => Step::Done,
    }
}

/// Why an attempt that goes forward turns back whatever is left to do, for every kind of target: it was begun too often, or it is asked to
/// stop. What is only written down and reported any more is not stopped.
fn turned_back(state: &AttemptState, wanted: Wanted) -> Option<Cause> {
    let is_forward = !matches!(state.phase, Phase::Restoring(_) | Phase::Ended(_) | Phase::Done);
    if is_forward && state.is_poison() {
        let summary = format!(
            "the agent was started {MOST_STARTS} times during this attempt and never came to its end"
        );
        let failure = Failure::new(FailureCode::AgentState, summary);
        return Some(Cause::Failed { failure });
    }
    let may_stop = is_forward && state.phase != Phase::Committing;
    (may_stop && wanted == Wanted::Stop).then_some(Cause::Stopped)
}

fn prepare(manifest: &Manifest, state: &AttemptState, world: &World) -> Step {
    if !world.images {
        return Step::Pull;
    }
    if !world.surroundings {
        return Step::Surroundings;
    }
    let hooks = hooks::pending(&manifest.hooks, HookWhen::PreDeploy, state, &world.hooks);
    if let Some(step) = Step::of_hooks(hooks) {
        return step;
    }
    let missing = manifest
        .start_order()
        .into_iter()
        .find(|name| !world.complete.contains(*name));
    missing.map_or(Step::Prepare, |name| Step::Create(name.clone()))
}

/// What is left to do until the `chosen` of the old set are down and stay down: the last that was started stops first.
fn put_down(state: &AttemptState, world: &World, chosen: impl Fn(&OldContainer) -> bool) -> Option<Step> {
    let old = || {
        state
            .old
            .iter()
            .flatten()
            .rev()
            .filter(|old| chosen(old))
            .filter_map(|old| world.old.get(&old.id))
    };
    let stop = old()
        .find(|seen| seen.running)
        .map(|seen| Step::StopOld(seen.id.clone()));
    let quiet = || {
        old()
            .find(|seen| seen.restart != RestartPolicy::No)
            .map(|seen| Step::QuietOld(seen.id.clone()))
    };
    stop.or_else(quiet)
}

/// The old set goes down and the new one comes up, but old containers of services that are started first wait for health.
fn in_place(manifest: &Manifest, state: &AttemptState, world: &World) -> Step {
    let starts_first = |name: &ServiceName| {
        let spec = manifest.services.get(name);
        spec.is_some_and(|spec| !spec.update_order.is_stop_first())
    };
    if let Some(step) = put_down(state, world, |old| !starts_first(&old.service)) {
        return step;
    }
    if let Some(step) = start_new(manifest, world) {
        return step;
    }
    let outlived = |old: &&OldContainer| world.old.get(&old.id).is_some_and(|seen| seen.running);
    let unproven = state
        .old
        .iter()
        .flatten()
        .filter(outlived)
        .find(|old| starts_first(&old.service) && !world.healthy.contains(&old.service));
    if let Some(old) = unproven {
        return Step::AwaitDependency(old.service.clone());
    }
    put_down(state, world, |_| true).unwrap_or(Step::NoteStarted)
}

/// What is left to do until all new containers are started, each after what it depends on.
fn start_new(manifest: &Manifest, world: &World) -> Option<Step> {
    for name in manifest.start_order() {
        match world.new.get(name) {
            None => {
                let failure = Failure::new(
                    FailureCode::ContainerRejected,
                    format!("the new container of service {name} is gone"),
                );
                return Some(Step::Restore(Cause::Failed { failure }));
            }
            Some(seen) if seen.running => {}
            Some(_) => {
                let unmet = manifest.services.get(name).and_then(|spec| {
                    spec.depends_on.iter().find(|(needed, condition)| {
                        **condition == DependencyCondition::ServiceHealthy && !world.healthy.contains(*needed)
                    })
                });
                return Some(unmet.map_or_else(
                    || Step::StartNew(name.clone()),
                    |(needed, _)| Step::AwaitDependency(needed.clone()),
                ));
            }
        }
    }
    None
}

/// The new set takes over: by the release's hook, or by its aliases when both sets run.
fn take_over(manifest: &Manifest, swap: Swap, state: &AttemptState, world: &World) -> Step {
    let hooks = hooks::pending(&manifest.hooks, HookWhen::Switch, state, &world.hooks);
    if let Some(step) = Step::of_hooks(hooks) {
        return step;
    }
    if swap.is_in_place() || !swap::moves_aliases(manifest) {
        return Step::NoteSwitched;
    }
    move_over(manifest, state, world)
}

/// The new set takes its aliases and is well with them, then the old one loses them: at no time does nobody answer.
fn move_over(manifest: &Manifest, state: &AttemptState, world: &World) -> Step {
    let order = manifest.start_order();
    let outward = |name: &&&ServiceName| {
        let spec = manifest.services.get(**name);
        spec.is_some_and(|spec| swap::is_called(manifest, spec))
    };
    let called = || order.iter().filter(outward);
    if let Some(name) = called().find(|name| !world.joined.contains(**name)) {
        return Step::JoinNew((*name).clone());
    }
    if let Some(name) = called().find(|name| !world.healthy.contains(**name)) {
        return Step::AwaitDependency((*name).clone());
    }
    let loud = state.old.iter().flatten().rev().find(|old| {
        !old.aliases.is_empty() && world.old.contains_key(&old.id) && !world.left.contains(&old.id)
    });
    loud.map_or(Step::NoteSwitched, |old| Step::LeaveOld(old.id.clone()))
}

fn commit(manifest: &Manifest, state: &AttemptState, world: &World) -> Step {
    // An engine that was started again between the stop of an old container and what keeps it down brought it back.
    if let Some(step) = put_down(state, world, |_| true) {
        return step;
    }
    let down = manifest
        .services
        .keys()
        .find(|name| !world.new.get(*name).is_some_and(|seen| seen.running));
    down.map_or(Step::Commit, |name| {
        let failure = Failure::new(
            FailureCode::WorkloadExited,
            format!("service {name} ended while the agent was away"),
        );
        Step::Restore(Cause::Failed { failure })
    })
}

fn restore(manifest: &Manifest, swap: Swap, state: &AttemptState, cause: &Cause, world: &World) -> Step {
    let way_back = || hooks::way_back(&manifest.hooks, state, &world.hooks).map(Step::Hook);
    let old_answers = || bring_back(state, world).or_else(way_back);
    // Sets that ran side by side can do so again: the old one answers before the new one goes.
    let beside = state.moved && !swap.is_in_place();
    hooks::strays(&world.hooks)
        .map(Step::Hook)
        .or_else(|| beside.then(old_answers).flatten())
        .or_else(|| remove_new(manifest, world))
        .or_else(old_answers)
        .unwrap_or_else(|| Step::Conclude(cause.clone()))
}

fn remove_new(manifest: &Manifest, world: &World) -> Option<Step> {
    let order = manifest.start_order();
    let new = || {
        order
            .iter()
            .rev()
            .filter_map(|name| Some((*name, world.new.get(*name)?)))
    };
    let stop = new().find(|(_, seen)| seen.running);
    stop.map(|(name, _)| Step::StopNew(name.clone()))
        .or_else(|| new().next().map(|(name, _)| Step::RemoveNew(name.clone())))
}

/// What is left to do until the old set is as it was found.
fn bring_back(state: &AttemptState, world: &World) -> Option<Step> {
    for old in state.old.iter().flatten() {
        let Some(seen) = world.old.get(&old.id) else {
            continue;
        };
        if state.moved && !old.aliases.is_empty() && !world.back.contains(&old.id) {
            return Some(Step::JoinOld(old.id.clone()));
        }
        if seen.restart != old.restart {
            return Some(Step::RestorePolicy(old.id.clone(), old.restart));
        }
        if old.running && !seen.running {
            return Some(Step::StartOld(old.id.clone()));
        }
    }
    let was_running = state.old.iter().flatten().any(|old| old.running);
    (was_running && !world.old_checked).then_some(Step::CheckOld)
}

#[cfg(test)]
mod tests;
