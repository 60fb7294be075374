//! Every history of an attempt with at most two mishaps, on a model of host and journal: the agent dies before or after an effect,
//! an effect fails, a stop is asked for, a hook's container is lost. Whatever happens, it ends with the old or the new set whole, and
//! while a set is swapped blue/green somebody always answers to the aliases, or to whomever the switch hook sends callers to (R10).

use sealift_common::{
    failure::FailureCode,
    hook::{Direction, HookSpec},
    manifest::UpdateOrder,
    swap::Swap,
};

use super::*;
use crate::journal::{HookOutcome, HookRef};

const OLD: [(&str, &str); 2] = [("o-api", "api"), ("o-web", "web")];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    DieBefore,
    DieAfter,
    Fail,
    Stop,
    Lose,
}

#[derive(Clone, Debug)]
struct Container {
    service: ServiceName,
    running: bool,
    restart: RestartPolicy,
    aliased: bool,
}

/// Host, journal and what the agent of this moment knows.
#[derive(Clone, Debug)]
struct Model {
    manifest: Manifest,
    swap: Swap,
    engine: BTreeMap<String, Container>,
    hooks: Present,
    /// Where the switch hook sends callers to: the containers whose names begin so.
    routed: &'static str,
    records: Vec<Record>,
    world: World,
    looked: bool,
    stop: bool,
    trace: Vec<String>,
}

impl Model {
    fn new(swap: Swap, update_order: UpdateOrder, hooks: Vec<HookSpec>) -> Self {
        let mut manifest = samples::order(1, &[("api", "v2"), ("web", "v2")]).manifest;
        manifest.hooks = hooks;
        let edge = name("edge");
        for (service, spec) in &mut manifest.services {
            if service.as_str() == "web" {
                spec.update_order = update_order;
                spec.depends_on
                    .insert(name("api"), DependencyCondition::ServiceHealthy);
            }
            spec.networks.insert(edge.clone(), Vec::new());
        }
        let external = sealift_common::manifest::NetworkSpec {
            internal: false,
            external: Some("edge".to_owned()),
        };
        manifest.networks.insert(edge, external);
        let old = OLD.map(|(id, service)| {
            let container = Container {
                service: name(service),
                running: true,
                restart: RestartPolicy::Always,
                aliased: true,
            };
            (id.to_owned(), container)
        });
        Self {
            manifest,
            swap,
            engine: old.into(),
            hooks: Present::new(),
            routed: "o-",
            records: vec![samples::accepted(samples::at(0))],
            world: World::default(),
            looked: false,
            stop: false,
            trace: Vec::new(),
        }
    }

    fn state(&self) -> AttemptState {
        AttemptState::fold(&self.records)
    }

    fn look(&mut self) {
        let state = self.state();
        self.world.new.clear();
        self.world.old.clear();
        self.world.hooks.clone_from(&self.hooks);
        for (id, container) in &self.engine {
            let seen = seen(id, container.running, container.restart);
            if id.starts_with("n-") {
                self.world.new.insert(container.service.clone(), seen);
            } else if state.old.iter().flatten().any(|old| old.id == *id) {
                self.world.old.insert(id.clone(), seen);
            }
        }
        self.looked = true;
    }

    fn die(&mut self) {
        self.world = World::default();
        self.looked = false;
        let at = samples::at(0);
        if !matches!(self.state().phase, Phase::Ended(_) | Phase::Done) {
            self.records.push(Record::Resumed { at });
        }
    }

    fn step(&mut self) -> Step {
        if !self.looked {
            self.look();
        }
        let wanted = if self.stop { Wanted::Stop } else { Wanted::Run };
        next(&self.manifest, self.swap, &self.state(), wanted, &self.world)
    }

    fn new_id(service: &ServiceName) -> String {
        format!("n-{service}")
    }

    fn container(&mut self, id: &str) -> &mut Container {
        self.engine.get_mut(id).unwrap()
    }

    fn moves_aliases(&self) -> bool {
        !self.swap.is_in_place() && swap::moves_aliases(&self.manifest)
    }

    /// The intent comes before the effect.
    fn begin(&mut self, hook: &HookRef) {
        let specs = &self.manifest.hooks;
        let when = specs.iter().find(|spec| spec.name == hook.hook).unwrap().when;
        let (at, hook) = (samples::at(0), hook.clone());
        self.records.push(Record::HookBegan { at, hook, when });
    }

    fn end_hook(&mut self, hook: &HookRef, failure: Option<Failure>) {
        let (at, hook) = (samples::at(0), hook.clone());
        let outcome = HookOutcome {
            exit_code: None,
            is_truncated: false,
            failure,
        };
        self.records.push(Record::HookEnded { at, hook, outcome });
    }

    /// Whether every hook of this time has ended well.
    fn ran_well(&self, when: HookWhen) -> bool {
        let state = self.state();
        sealift_common::hook::at(&self.manifest.hooks, when).all(|spec| {
            let run = state.hooks.iter().rfind(|run| run.hook.hook == spec.name);
            run.is_some_and(|run| matches!(&run.ended, Some((_, outcome)) if outcome.failure.is_none()))
        })
    }

    /// What must hold before a step is done.
    fn check_step(&self, step: &Step) {
        match step {
            Step::Prepare | Step::StopOld(_) | Step::QuietOld(_) | Step::StartNew(_)
                if !matches!(self.state().phase, Phase::Restoring(_)) =>
            {
                assert!(self.ran_well(HookWhen::PreDeploy), "{step:?} {:#?}", self.trace);
            }
            Step::Commit => {
                let all = HookWhen::ALL.iter().all(|when| self.ran_well(*when));
                assert!(all && self.hooks.is_empty(), "{step:?} {:#?}", self.trace);
            }
            Step::StopNew(_) | Step::RemoveNew(_) => {
                assert!(self.hooks.is_empty(), "a hook still works: {:#?}", self.trace);
            }
            _ => {}
        }
    }

    /// What the effect of a step does to the host.
    fn act(&mut self, step: &Step) {
        match step {
            Step::Hook(HookStep::Begin(hook)) => {
                self.begin(hook);
                self.hooks.insert(hook.clone(), hook.hook.to_string());
            }
            Step::Hook(HookStep::Await(hook)) => {
                let switch = sealift_common::hook::switch(&self.manifest.hooks);
                if switch.is_some_and(|spec| spec.name == hook.hook) {
                    self.routed = match hook.direction {
                        Direction::Forward => "n-",
                        Direction::Back => "o-",
                    };
                }
            }
            Step::Hook(HookStep::Remove(hook)) => {
                self.hooks.remove(hook);
            }
            Step::Clean => self.hooks.clear(),
            Step::Create(service) => {
                let made = Container {
                    service: service.clone(),
                    running: false,
                    restart: RestartPolicy::Always,
                    aliased: !self.moves_aliases(),
                };
                self.engine.entry(Self::new_id(service)).or_insert(made);
            }
            Step::StopOld(id) => self.container(id).running = false,
            Step::QuietOld(id) => self.container(id).restart = RestartPolicy::No,
            Step::StartNew(service) => self.container(&Self::new_id(service)).running = true,
            Step::JoinNew(service) => self.container(&Self::new_id(service)).aliased = true,
            Step::LeaveOld(id) => self.container(id).aliased = false,
            Step::JoinOld(id) => self.container(id).aliased = true,
            Step::StopNew(service) => self.container(&Self::new_id(service)).running = false,
            Step::RemoveNew(service) => {
                self.engine.remove(&Self::new_id(service));
            }
            Step::RestorePolicy(id, policy) => self.container(id).restart = *policy,
            Step::StartOld(id) => self.container(id).running = true,
            Step::RemoveOld(id) => {
                self.engine.remove(id);
            }
            _ => {}
        }
    }

    /// What the agent knows and writes once the effect is done.
    fn learn(&mut self, step: &Step) {
        let at = samples::at(0);
        let new = |service: &ServiceName, running| seen(&Self::new_id(service), running, RestartPolicy::No);
        match step {
            Step::Hook(HookStep::Begin(hook)) => {
                self.world.hooks.insert(hook.clone(), hook.hook.to_string());
            }
            Step::Hook(HookStep::Await(hook)) => self.end_hook(hook, None),
            Step::Hook(HookStep::Remove(hook)) => {
                self.world.hooks.remove(hook);
            }
            Step::Pull => self.world.images = true,
            Step::Surroundings => self.world.surroundings = true,
            Step::Create(service) => {
                self.world.complete.insert(service.clone());
                let made = new(service, false);
                self.world.new.entry(service.clone()).or_insert(made);
            }
            Step::Prepare => {
                let old = OLD.map(|(id, service)| OldContainer {
                    id: id.to_owned(),
                    service: name(service),
                    aliases: [("edge".to_owned(), vec![service.to_owned()])].into(),
                    ..old(true)
                });
                self.records.push(Record::Prepared { at, old: old.into() });
                self.looked = false;
            }
            Step::StopOld(id) | Step::StartOld(id) => {
                let running = matches!(step, Step::StartOld(_));
                self.world.old.get_mut(id).unwrap().running = running;
            }
            Step::QuietOld(id) => self.world.old.get_mut(id).unwrap().restart = RestartPolicy::No,
            Step::RestorePolicy(id, policy) => self.world.old.get_mut(id).unwrap().restart = *policy,
            Step::AwaitDependency(service) => {
                self.world.healthy.insert(service.clone());
            }
            Step::StartNew(service) => {
                self.world.new.insert(service.clone(), new(service, true));
            }
            Step::NoteStarted => self.records.push(Record::Started { starting_at: at, at }),
            Step::AwaitHealth
                if !self.swap.is_in_place() || sealift_common::hook::has_late(&self.manifest.hooks) =>
            {
                self.records.push(Record::Ready { at });
            }
            Step::AwaitHealth | Step::AwaitBake => {
                let sticker_before = None;
                self.records.push(Record::Healthy { at, sticker_before });
                self.looked = false;
            }
            Step::JoinNew(service) => {
                self.world.healthy.remove(service);
                self.world.joined.insert(service.clone());
            }
            Step::LeaveOld(id) => {
                self.world.left.insert(id.clone());
            }
            Step::JoinOld(id) => {
                self.world.back.insert(id.clone());
            }
            Step::NoteSwitched => self.records.push(Record::Switched { at }),
            Step::Commit => self.end(Ending::Succeeded),
            Step::Restore(cause) => self.restore(cause.clone()),
            Step::StopNew(service) => {
                self.world.new.insert(service.clone(), new(service, false));
            }
            Step::RemoveNew(service) => {
                self.world.new.remove(service);
            }
            Step::CheckOld => self.world.old_checked = true,
            Step::Conclude(_) => self.end(Ending::Failed),
            Step::RemoveOld(id) => {
                self.world.old.remove(id);
            }
            Step::Clean => self.records.push(Record::Cleaned),
            Step::Done => {}
        }
    }

    fn end(&mut self, ending: Ending) {
        let at = samples::at(0);
        self.records.push(Record::Ended { at, ending });
    }

    fn restore(&mut self, cause: Cause) {
        let at = samples::at(0);
        self.records.push(Record::Restoring { at, cause });
        self.looked = false;
    }

    fn fail(&mut self, step: &Step) {
        if let Step::Hook(HookStep::Await(hook)) = step {
            self.end_hook(hook, Some(Failure::new(FailureCode::HookFailed, "no")));
            return;
        }
        let phase = self.state().phase;
        if !matches!(phase, Phase::Restoring(_) | Phase::Ended(_)) {
            let failure = Failure::new(FailureCode::Unhealthy, "ill");
            self.restore(Cause::Failed { failure });
        }
    }

    fn answers(&self, service: &str) -> bool {
        let is_reached = |id: &str, container: &Container| {
            if swap::moves_aliases(&self.manifest) {
                container.aliased
            } else {
                id.starts_with(self.routed)
            }
        };
        self.engine.iter().any(|(id, container)| {
            container.service.as_str() == service && container.running && is_reached(id, container)
        })
    }

    fn check_whole(&self) {
        let trace = &self.trace;
        let live: Vec<&str> = self
            .engine
            .iter()
            .filter(|(_, container)| container.running && container.aliased)
            .map(|(id, container)| {
                assert_eq!(container.restart, RestartPolicy::Always, "{id} {trace:#?}");
                id.as_str()
            })
            .collect();
        let succeeded = self.records.contains(&Record::Ended {
            at: samples::at(0),
            ending: Ending::Succeeded,
        });
        let wanted = if succeeded {
            ["n-api", "n-web"]
        } else {
            ["o-api", "o-web"]
        };
        assert_eq!(live, wanted, "{trace:#?}");
        assert_eq!(self.engine.len(), 2, "{trace:#?}");
        assert!(self.hooks.is_empty(), "{trace:#?}");
        if !swap::moves_aliases(&self.manifest) {
            let wanted = if succeeded { "n-" } else { "o-" };
            assert_eq!(self.routed, wanted, "{trace:#?}");
        }
    }
}

/// Goes on from `model` to the end, with each mishap at each place while `left` allows more. Answers how many histories there were.
fn explore(mut model: Model, left: u32) -> u64 {
    let mut histories = 0;
    for _ in 0..200 {
        let step = model.step();
        if step == Step::Done {
            model.check_whole();
            return histories + 1;
        }
        model.check_step(&step);
        if left > 0 {
            let mishaps = [
                Mishap::DieBefore,
                Mishap::DieAfter,
                Mishap::Fail,
                Mishap::Stop,
                Mishap::Lose,
            ];
            for mishap in mishaps {
                if mishap == Mishap::Lose && !matches!(step, Step::Hook(_)) {
                    continue;
                }
                let mut other = model.clone();
                other.trace.push(format!("{step:?} {mishap:?}"));
                match mishap {
                    Mishap::DieBefore => other.die(),
                    Mishap::DieAfter => {
                        other.act(&step);
                        other.die();
                    }
                    Mishap::Fail => other.fail(&step),
                    // The agent dies and somebody removes the container, or it was never made.
                    Mishap::Lose => {
                        if let Step::Hook(HookStep::Begin(hook)) = &step {
                            other.begin(hook);
                        }
                        other.hooks.clear();
                        other.die();
                    }
                    Mishap::Stop => other.stop = true,
                }
                histories += explore(other, left - 1);
            }
        }
        model.trace.push(format!("{step:?}"));
        model.act(&step);
        model.learn(&step);
        if !model.swap.is_in_place() {
            assert!(model.answers("api") && model.answers("web"), "{:#?}", model.trace);
        }
    }
    panic!("it never ends: {:#?}", model.trace);
}

#[test]
fn r10_every_history_with_two_mishaps_ends_whole() {
    let ways = [
        (Swap::InPlace, UpdateOrder::StopFirst),
        (Swap::InPlace, UpdateOrder::StartFirst),
        (Swap::BlueGreen { bake_ms: 1 }, UpdateOrder::StopFirst),
    ];
    for (swap, order) in ways {
        let histories = explore(Model::new(swap, order, Vec::new()), 2);
        assert!(histories > 2_000, "{swap:?} {order:?}: {histories}");
    }
}

#[test]
fn r10_every_history_with_hooks_and_two_mishaps_ends_whole() {
    let hook = |when: HookWhen| samples::hook(&when.as_str().replace('_', "-"), when, "v1");
    let around = vec![hook(HookWhen::PreDeploy), hook(HookWhen::PostDeploy)];
    let all: Vec<_> = HookWhen::ALL.iter().map(|when| hook(*when)).collect();
    let green = Swap::BlueGreen { bake_ms: 1 };
    for (swap, hooks) in [
        (Swap::InPlace, &all),
        (green, &all),
        (green, &around),
        (Swap::InPlace, &around),
    ] {
        let histories = explore(Model::new(swap, UpdateOrder::StopFirst, hooks.clone()), 2);
        assert!(histories > 2_000, "{swap:?} {hooks:?}: {histories}");
    }
}

#[test]
fn r10_a_service_that_is_started_first_answers_all_the_time() {
    let mut model = Model::new(Swap::InPlace, UpdateOrder::StartFirst, Vec::new());
    while model.step() != Step::Done {
        let step = model.step();
        model.act(&step);
        model.learn(&step);
        assert!(model.answers("web"), "{step:?}");
    }
    model.check_whole();
}
