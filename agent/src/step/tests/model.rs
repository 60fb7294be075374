//! Every history of an attempt with at most two mishaps, on a model of host and journal: the agent dies before or after an effect,
//! an effect fails, a stop is asked for. Whatever happens, it ends with the old or the new set whole, and while a set is swapped
//! blue/green somebody always answers to the aliases (R10).

use sealift_common::{failure::FailureCode, manifest::UpdateOrder, swap::Swap};

use super::*;

const OLD: [(&str, &str); 2] = [("o-api", "api"), ("o-web", "web")];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    DieBefore,
    DieAfter,
    Fail,
    Stop,
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
    records: Vec<Record>,
    world: World,
    looked: bool,
    stop: bool,
    trace: Vec<String>,
}

impl Model {
    fn new(swap: Swap, update_order: UpdateOrder) -> Self {
        let mut manifest = samples::order(1, &[("api", "v2"), ("web", "v2")]).manifest;
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
            records: vec![Record::Accepted { at: samples::at(0) }],
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

    /// What the effect of a step does to the host.
    fn act(&mut self, step: &Step) {
        match step {
            Step::Create(service) => {
                let made = Container {
                    service: service.clone(),
                    running: false,
                    restart: RestartPolicy::Always,
                    aliased: self.swap.is_in_place(),
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
            Step::AwaitHealth if !self.swap.is_in_place() => self.records.push(Record::Ready { at }),
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

    fn fail(&mut self) {
        let phase = self.state().phase;
        if !matches!(phase, Phase::Restoring(_) | Phase::Ended(_)) {
            let failure = Failure::new(FailureCode::Unhealthy, "ill");
            self.restore(Cause::Failed { failure });
        }
    }

    fn answers(&self, service: &str) -> bool {
        self.engine
            .values()
            .any(|container| container.service.as_str() == service && container.running && container.aliased)
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
        if left > 0 {
            for mishap in [Mishap::DieBefore, Mishap::DieAfter, Mishap::Fail, Mishap::Stop] {
                let mut other = model.clone();
                other.trace.push(format!("{step:?} {mishap:?}"));
                match mishap {
                    Mishap::DieBefore => other.die(),
                    Mishap::DieAfter => {
                        other.act(&step);
                        other.die();
                    }
                    Mishap::Fail => other.fail(),
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
        let histories = explore(Model::new(swap, order), 2);
        assert!(histories > 2_000, "{swap:?} {order:?}: {histories}");
    }
}

#[test]
fn r10_a_service_that_is_started_first_answers_all_the_time() {
    let mut model = Model::new(Swap::InPlace, UpdateOrder::StartFirst);
    while model.step() != Step::Done {
        let step = model.step();
        model.act(&step);
        model.learn(&step);
        assert!(model.answers("web"), "{step:?}");
    }
    model.check_whole();
}
