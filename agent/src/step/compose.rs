//! Step of a compose host: the same phases as for single containers, but Compose makes and takes away the set as one. What counts
//! as old or new is which lock was last brought up whole.

use std::collections::BTreeMap;

use sealift_common::{
    any_manifest::Described as _,
    compose_manifest::{ComposeManifest, Lifetime},
    failure::{Failure, FailureCode},
    hook::HookWhen,
    name::ServiceName,
    task::Wanted,
};

use super::hooks::{self, HookStep, Present};
use crate::journal::{AttemptState, Cause, Phase};

/// What is known of the host. Made by looking, kept up to date by what each step did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct World {
    /// Whether all ordered images are there with their digests.
    pub images: bool,
    /// Whether a service's container runs, for those that have one.
    pub running: BTreeMap<ServiceName, bool>,
    /// Whether this run of the agent has brought the old lock up again, or taken away what there was none before.
    pub restored: bool,
    /// Whether the old set was seen running after that.
    pub checked: bool,
    /// Whether the way back is over although nothing was brought back.
    pub given_up: bool,
    /// Containers of this order's hooks.
    pub hooks: Present,
}

/// The one next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Have Compose resolve the file, judge what comes out, keep it as a lock.
    Render,
    /// Bring all images to the host and compare their digests.
    Pull,
    /// Do something about a hook.
    Hook(HookStep),
    /// Look at the old set and write down what it is; from then on it may be touched.
    Prepare,
    /// Bring the new lock up.
    Up,
    /// Wait until all were healthy for as long as they must be, and what has to end has ended well.
    AwaitHealth,
    /// Write down that the new set has taken over.
    NoteSwitched,
    /// See once more that all are well, after the hooks.
    Confirm,
    /// Sticker, packet, report, end.
    Commit,
    /// Go back to the old set.
    Restore(Cause),
    /// Bring the old lock up again, or take the new set away when there was none.
    Return,
    /// See that the old set runs.
    CheckOld,
    /// Packet, report, end, with the old set running.
    Conclude(Cause),
    /// Drop locks that nothing needs any more and write down that all is done.
    Clean,
    /// Nothing is left to do.
    Done,
}

impl Step {
    /// Whether a request to stop may end it in the middle: what it has done by then is undone or done again.
    pub fn gives_way(&self) -> bool {
        match self {
            Self::Render | Self::Pull | Self::Up | Self::AwaitHealth | Self::Confirm => true,
            Self::Hook(step) => step.gives_way(),
            _ => false,
        }
    }

    /// Whether the agent's own end may end it in the middle: it is done again at the next start.
    pub fn is_long(&self) -> bool {
        match self {
            Self::Return => true,
            Self::Hook(step) => step.is_long(),
            _ => self.gives_way(),
        }
    }

    fn of_hooks(pending: Result<Option<HookStep>, Failure>) -> Option<Self> {
        match pending {
            Ok(step) => step.map(Self::Hook),
            Err(failure) => Some(Self::Restore(Cause::Failed { failure })),
        }
    }
}

/// Whether what is left of an attempt can ask something of Compose. Pure.
pub fn needs_compose(state: &AttemptState, wanted: Wanted) -> bool {
    match state.phase {
        Phase::Ended(_) | Phase::Done => false,
        Phase::Restoring(_) => state.old.is_some() && !state.is_poison(),
        _ => state.old.is_some() || super::turned_back(state, wanted).is_none(),
    }
}

/// The next step. Pure.
pub fn next(manifest: &ComposeManifest, state: &AttemptState, wanted: Wanted, world: &World) -> Step {
    if let Some(cause) = super::turned_back(state, wanted) {
        return Step::Restore(cause);
    }
    let pending = |when| Step::of_hooks(hooks::pending(&manifest.hooks, when, state, &world.hooks));
    match &state.phase {
        Phase::Preparing if state.lock.is_none() => Step::Render,
        Phase::Preparing if !world.images => Step::Pull,
        Phase::Preparing => pending(HookWhen::PreDeploy).unwrap_or(Step::Prepare),
        Phase::Switching => Step::Up,
        Phase::Proving => Step::AwaitHealth,
        Phase::Moving => pending(HookWhen::Switch).unwrap_or(Step::NoteSwitched),
        Phase::Baking => pending(HookWhen::PostDeploy).unwrap_or(Step::Confirm),
        Phase::Committing => commit(manifest, world),
        // The end says that the restore was given up.
        Phase::Restoring(cause) if state.is_poison() => Step::Conclude(cause.clone()),
        Phase::Restoring(cause) => restore(manifest, state, cause, world),
        Phase::Ended(_) => Step::Clean,
        Phase::Done => Step::Done,
    }
}

fn commit(manifest: &ComposeManifest, world: &World) -> Step {
    let down = manifest.services.keys().find(|name| {
        manifest.lifetime_of(name) == Lifetime::Lasting && world.running.get(*name) != Some(&true)
    });
    down.map_or(Step::Commit, |name| {
        let failure = Failure::new(
            FailureCode::WorkloadExited,
            format!("service {name} ended while the agent was away"),
        );
        Step::Restore(Cause::Failed { failure })
    })
}

fn restore(manifest: &ComposeManifest, state: &AttemptState, cause: &Cause, world: &World) -> Step {
    if let Some(step) = hooks::strays(&world.hooks) {
        return Step::Hook(step);
    }
    // Before the old set was written down nothing was touched.
    if state.old.is_none() || world.given_up {
        return Step::Conclude(cause.clone());
    }
    if !world.restored {
        return Step::Return;
    }
    if !world.checked {
        return Step::CheckOld;
    }
    let way_back = hooks::way_back(&manifest.hooks, state, &world.hooks).map(Step::Hook);
    way_back.unwrap_or_else(|| Step::Conclude(cause.clone()))
}

#[cfg(test)]
mod tests {
    use sealift_common::{
        digest::Digest,
        hook::{Direction, HookSpec},
    };

    use super::*;
    use crate::{
        journal::{Ending, HookOutcome, HookRef, MOST_STARTS, Record},
        samples::{self, at},
    };

    fn hooks() -> Vec<HookSpec> {
        let of = |when: &HookWhen| samples::hook(&when.as_str().replace('_', "-"), *when, "v1");
        HookWhen::ALL.iter().map(of).collect()
    }

    fn manifest() -> ComposeManifest {
        let mut manifest = samples::compose_order(1, &[("web", "v1"), ("once", "v1")]).manifest;
        let once = manifest.services.get_mut("once").unwrap();
        once.lifetime = Lifetime::MustEnd;
        manifest
    }

    /// The records that a step leaves, and what it changes of the world when it works.
    fn work(manifest: &ComposeManifest, step: &Step, world: &mut World) -> Option<Record> {
        match step {
            Step::Hook(HookStep::Begin(hook)) => {
                world.hooks.insert(hook.clone(), hook.hook.to_string());
                let spec = manifest.hooks.iter().find(|spec| spec.name == hook.hook);
                Some(Record::HookBegan {
                    at: at(1),
                    hook: hook.clone(),
                    when: spec.unwrap().when,
                })
            }
            Step::Hook(HookStep::Await(hook)) => Some(Record::HookEnded {
                at: at(1),
                hook: hook.clone(),
                outcome: HookOutcome {
                    exit_code: Some(0),
                    is_truncated: false,
                    failure: None,
                },
            }),
            Step::Hook(HookStep::Remove(hook)) => {
                world.hooks.remove(hook);
                None
            }
            Step::NoteSwitched => Some(Record::Switched { at: at(4) }),
            Step::AwaitHealth if !manifest.hooks.is_empty() => Some(Record::Ready { at: at(4) }),
            Step::Render => Some(Record::Locked {
                at: at(1),
                lock: Digest::of(b"new"),
                previous: None,
                allowances: Vec::new(),
            }),
            Step::Pull => {
                world.images = true;
                None
            }
            Step::Prepare => Some(Record::Prepared {
                at: at(2),
                old: Vec::new(),
            }),
            Step::Up => {
                world.running.insert("web".parse().unwrap(), true);
                Some(Record::Started {
                    starting_at: at(3),
                    at: at(3),
                })
            }
            Step::AwaitHealth | Step::Confirm => Some(Record::Healthy {
                at: at(4),
                sticker_before: None,
            }),
            Step::Commit => Some(Record::Ended {
                at: at(5),
                ending: Ending::Succeeded,
            }),
            Step::Restore(cause) => Some(Record::Restoring {
                at: at(6),
                cause: cause.clone(),
            }),
            Step::Return => {
                world.restored = true;
                None
            }
            Step::CheckOld => {
                world.checked = true;
                None
            }
            Step::Conclude(_) => Some(Record::Ended {
                at: at(7),
                ending: Ending::Failed,
            }),
            Step::Clean => Some(Record::Cleaned),
            Step::Done => None,
        }
    }

    /// Follows the steps to the end; the agent is killed after `death` of them and, when `fails`, the new set never becomes healthy.
    fn follow(death: Option<usize>, fails: bool, wanted: Wanted) -> Vec<Step> {
        let ill = |step: &Step| fails && *step == Step::AwaitHealth;
        follow_with(&manifest(), death, ill, wanted)
    }

    fn follow_with(
        manifest: &ComposeManifest,
        death: Option<usize>,
        fails: impl Fn(&Step) -> bool,
        wanted: Wanted,
    ) -> Vec<Step> {
        let mut records = vec![samples::accepted(at(0))];
        let (mut world, mut steps) = (World::default(), Vec::new());
        let mut is_spared = false;
        for number in 0..40 {
            if death == Some(number) {
                records.push(Record::Resumed { at: at(0) });
                // What was only known in memory is gone; what runs is seen again.
                world = World {
                    running: world.running,
                    hooks: world.hooks,
                    ..World::default()
                };
            }
            let state = AttemptState::fold(&records);
            let step = next(manifest, &state, wanted, &world);
            if step == Step::Done {
                assert!(is_spared);
                return steps;
            }
            is_spared |= !needs_compose(&state, wanted);
            let asks = matches!(step, Step::Render | Step::Up | Step::Return);
            assert!(!(asks && is_spared), "{step:?} came after {steps:?}");
            let failure = Failure::new(FailureCode::Unhealthy, "ill");
            let record = if !fails(&step) {
                work(manifest, &step, &mut world)
            } else if let Step::Hook(HookStep::Await(hook)) = &step {
                Some(Record::HookEnded {
                    at: at(1),
                    hook: hook.clone(),
                    outcome: HookOutcome {
                        exit_code: Some(1),
                        is_truncated: false,
                        failure: Some(failure),
                    },
                })
            } else {
                Some(Record::Restoring {
                    at: at(6),
                    cause: Cause::Failed { failure },
                })
            };
            records.extend(record);
            steps.push(step);
        }
        panic!("never done: {steps:?}");
    }

    #[test]
    fn r10_every_death_ends_with_the_new_set_committed() {
        let plain = follow(None, false, Wanted::Run);
        assert_eq!(plain.len(), 7);
        for death in 0..plain.len() {
            let steps = follow(Some(death), false, Wanted::Run);
            assert!(steps.contains(&Step::Commit), "{death}: {steps:?}");
            assert!(!steps.contains(&Step::Return), "{death}: {steps:?}");
        }
    }

    #[test]
    fn r10_a_failure_ends_with_the_old_set_wherever_the_agent_dies() {
        let plain = follow(None, true, Wanted::Run);
        for death in 0..plain.len() {
            let steps = follow(Some(death), true, Wanted::Run);
            let back = steps.iter().rposition(|step| *step == Step::Return).unwrap();
            let checked = steps.iter().rposition(|step| *step == Step::CheckOld).unwrap();
            assert!(back < checked, "{death}: {steps:?}");
            assert!(!steps.contains(&Step::Commit), "{death}: {steps:?}");
        }
    }

    #[test]
    fn r10_hooks_run_in_their_turn_wherever_the_agent_dies() {
        let manifest = ComposeManifest {
            hooks: hooks(),
            ..manifest()
        };
        let plain = follow_with(&manifest, None, |_| false, Wanted::Run);
        for death in 0..=plain.len() {
            let steps = follow_with(&manifest, Some(death), |_| false, Wanted::Run);
            let first = |wanted: &Step| steps.iter().position(|step| step == wanted).unwrap();
            let awaited = |name: &str| {
                first(&Step::Hook(HookStep::Await(HookRef {
                    hook: name.parse().unwrap(),
                    direction: Direction::Forward,
                })))
            };
            let turns = [
                awaited("pre-deploy"),
                first(&Step::Prepare),
                first(&Step::Up),
                awaited("switch"),
                first(&Step::NoteSwitched),
                awaited("post-deploy"),
                first(&Step::Confirm),
                first(&Step::Commit),
            ];
            assert!(turns.is_sorted(), "{death}: {steps:?}");
            assert!(!steps.contains(&Step::Return), "{death}: {steps:?}");
        }
    }

    #[test]
    fn r10_a_hook_that_fails_brings_the_old_set_back_if_anything_was_touched() {
        let manifest = ComposeManifest {
            hooks: hooks(),
            ..manifest()
        };
        for spec in &manifest.hooks {
            let hook = |direction| HookRef {
                hook: spec.name.clone(),
                direction,
            };
            let failing = Step::Hook(HookStep::Await(hook(Direction::Forward)));
            let plain = follow_with(&manifest, None, |step| *step == failing, Wanted::Run);
            for death in 0..=plain.len() {
                let fails = |step: &Step| *step == failing;
                let steps = follow_with(&manifest, Some(death), fails, Wanted::Run);
                let is_touched = spec.when != HookWhen::PreDeploy;
                assert_eq!(steps.contains(&Step::Return), is_touched, "{death}: {steps:?}");
                let switch = manifest.hooks.iter().find(|hook| hook.when == HookWhen::Switch);
                let back = Step::Hook(HookStep::Await(HookRef {
                    hook: switch.unwrap().name.clone(),
                    direction: Direction::Back,
                }));
                assert_eq!(steps.contains(&back), is_touched, "{death}: {steps:?}");
                assert!(!steps.contains(&Step::Commit), "{death}: {steps:?}");
            }
        }
    }

    #[test]
    fn r14_what_was_not_touched_is_not_restored() {
        let steps = follow(None, false, Wanted::Stop);
        assert_eq!(
            steps,
            [
                Step::Restore(Cause::Stopped),
                Step::Conclude(Cause::Stopped),
                Step::Clean
            ]
        );
    }

    #[test]
    fn f21_a_poisonous_order_is_given_up() {
        let mut records = vec![samples::accepted(at(0))];
        records.extend((0..MOST_STARTS).map(|_| Record::Resumed { at: at(0) }));
        let state = AttemptState::fold(&records);
        let step = next(&manifest(), &state, Wanted::Run, &World::default());
        assert!(matches!(step, Step::Restore(Cause::Failed { .. })), "{step:?}");
    }

    #[test]
    fn r15_a_lasting_service_that_ended_while_the_agent_was_away_is_no_success() {
        let mut records = vec![samples::accepted(at(0))];
        let mut world = World::default();
        for step in [Step::Render, Step::Prepare, Step::Up, Step::AwaitHealth] {
            records.extend(work(&manifest(), &step, &mut world));
        }
        let state = AttemptState::fold(&records);
        assert_eq!(next(&manifest(), &state, Wanted::Run, &world), Step::Commit);
        world.running.insert("web".parse().unwrap(), false);
        let step = next(&manifest(), &state, Wanted::Run, &world);
        assert!(matches!(step, Step::Restore(Cause::Failed { .. })), "{step:?}");
    }
}
