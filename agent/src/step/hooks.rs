//! Hooks as a part of the step: the same for all kinds of targets. What was begun and not seen to end is looked for; what is gone
//! runs again, so a hook runs at least once.

use std::collections::BTreeMap;

use sealift_common::{
    failure::Failure,
    hook::{self, BACK_TRIES, Direction, HookSpec, HookWhen, OnFailure},
};

use crate::journal::{AttemptState, HookRef};

/// The containers of hooks that are there, with the engine's identifiers.
pub type Present = BTreeMap<HookRef, String>;

/// The one next thing to do about hooks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HookStep {
    /// Write down that it begins, make its container.
    Begin(HookRef),
    /// Start it unless it was, wait until it ends, write down how.
    Await(HookRef),
    /// Remove its container, whatever it does.
    Remove(HookRef),
}

impl HookStep {
    /// Which hook.
    pub const fn hook(&self) -> &HookRef {
        match self {
            Self::Begin(hook) | Self::Await(hook) | Self::Remove(hook) => hook,
        }
    }

    /// Whether a request to stop may end it in the middle.
    pub fn gives_way(&self) -> bool {
        matches!(self, Self::Await(hook) if hook.direction == Direction::Forward)
    }

    /// Whether the agent's own end may end it in the middle: it is taken up again at the next start.
    pub const fn is_long(&self) -> bool {
        matches!(self, Self::Await(_))
    }
}

fn forward(spec: &HookSpec) -> HookRef {
    HookRef {
        hook: spec.name.clone(),
        direction: Direction::Forward,
    }
}

/// What is left to do until all hooks of this time have run; an error when one failed that must not.
pub fn pending(
    hooks: &[HookSpec],
    when: HookWhen,
    state: &AttemptState,
    present: &Present,
) -> Result<Option<HookStep>, Failure> {
    for spec in hook::at(hooks, when) {
        let hook = forward(spec);
        let is_here = present.contains_key(&hook);
        let outcome = state.last_run(&hook).map(|run| run.ended.as_ref());
        match outcome {
            Some(Some(_)) if is_here => return Ok(Some(HookStep::Remove(hook))),
            Some(Some((_, outcome))) => match &outcome.failure {
                Some(failure) if spec.on_failure == OnFailure::Fail => return Err(failure.clone()),
                _ => {}
            },
            Some(None) if is_here => return Ok(Some(HookStep::Await(hook))),
            _ => return Ok(Some(HookStep::Begin(hook))),
        }
    }
    Ok(None)
}

/// Before anything is undone: no hook is left that works on the new set.
pub fn strays(present: &Present) -> Option<HookStep> {
    present
        .keys()
        .find(|hook| hook.direction == Direction::Forward)
        .map(|hook| HookStep::Remove(hook.clone()))
}

/// What is left to do until the switch is undone, if it may have been begun. Given up after [`BACK_TRIES`].
pub fn way_back(hooks: &[HookSpec], state: &AttemptState, present: &Present) -> Option<HookStep> {
    let spec = hook::switch(hooks)?;
    state.last_run(&forward(spec))?;
    let hook = back(spec);
    let is_here = present.contains_key(&hook);
    let Some(run) = state.last_run(&hook) else {
        return Some(HookStep::Begin(hook));
    };
    match &run.ended {
        Some(_) if is_here => Some(HookStep::Remove(hook)),
        Some((_, outcome)) if outcome.failure.is_some() => {
            let failures = state.hooks.iter().filter(|run| run.hook == hook);
            let failures = failures.filter(|run| run.ended.is_some()).count();
            let is_given_up = u32::try_from(failures).is_ok_and(|failures| failures >= BACK_TRIES);
            (!is_given_up).then_some(HookStep::Begin(hook))
        }
        Some(_) => None,
        None if is_here => Some(HookStep::Await(hook)),
        None => Some(HookStep::Begin(hook)),
    }
}

fn back(spec: &HookSpec) -> HookRef {
    HookRef {
        hook: spec.name.clone(),
        direction: Direction::Back,
    }
}

/// Why the switch was not undone, if it was not.
pub fn stuck<'a>(hooks: &[HookSpec], state: &'a AttemptState) -> Option<&'a Failure> {
    let run = state.last_run(&back(hook::switch(hooks)?))?;
    run.ended
        .as_ref()
        .and_then(|(_, outcome)| outcome.failure.as_ref())
}
