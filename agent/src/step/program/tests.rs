//! Every history of an update with at most two mishaps, on a model of journal, marker and launcher: the process or the whole host
//! dies before or after an effect, an effect fails, a stop is asked for. Whatever happens and whatever the new program is like, it ends
//! with the new program running and found good, or with the one before running and nothing on trial (R10).

use std::collections::BTreeSet;

use sealift_common::manifest::RestartPolicy;
use semver::Version;

use super::*;
use crate::{
    journal::{AttemptKey, Ending, MOST_STARTS, OldContainer, OldOfCompose, Record},
    program::marker::{Choice, Installed, MOST_BOOTS, Marker, is_superseded},
    samples::{self, at},
};

/// How often an effect of the way back is tried.
const TRIES: u32 = 4;

/// What the new program is like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Works.
    Good,
    /// Ends at once.
    Dies,
    /// Runs and does nothing, or never gets through to the orchestrator and does not notice.
    Hangs,
    /// Runs, and finds out itself that it is not healthy.
    Unhealthy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mishap {
    DieBefore,
    DieAfter,
    Fail,
    Stop,
    /// The marker cannot be written any more; the second time it can be again.
    Disk,
    /// The marker cannot be read, and the agent notices it.
    Lose,
    /// The marker cannot be read, and the launcher notices it.
    LoseAndDie,
    /// Another package is installed: a newer one, the second time the one before.
    Package,
    /// Another package is installed, and its installation starts the unit again.
    PackageAndDie,
}

const MISHAPS: [Mishap; 9] = [
    Mishap::DieBefore,
    Mishap::DieAfter,
    Mishap::Fail,
    Mishap::Stop,
    Mishap::Disk,
    Mishap::Lose,
    Mishap::LoseAndDie,
    Mishap::Package,
    Mishap::PackageAndDie,
];

/// The packaged program: the version that the host has had, and a newer one.
fn packaged(is_newer: bool) -> (Version, Digest) {
    if is_newer {
        (Version::new(9, 0, 0), Digest::of(b"newer package"))
    } else {
        (Version::new(0, 5, 0), Digest::of(b"package"))
    }
}

/// An earlier update.
fn earlier() -> Digest {
    Digest::of(b"earlier")
}

fn installed(program: Digest) -> Installed {
    Installed {
        program,
        version: Version::new(1, 0, 0),
        image: samples::image("v2"),
        task: samples::key(1).task,
        attempt: samples::key(1).attempt,
    }
}

#[derive(Clone, Debug)]
struct Model {
    /// The ordered program.
    new: Digest,
    kind: Kind,
    records: Vec<Record>,
    marker: Marker,
    world: World,
    /// What ran when the order came.
    before: Digest,
    /// Whether the package is the newer one, and whether it was when this process was started.
    newer: bool,
    launched_newer: bool,
    /// What the launcher passed over to start this process.
    passed_over: BTreeSet<AttemptKey>,
    /// Whether the marker cannot be written.
    full: bool,
    stop: bool,
    restore_failures: u32,
    trace: Vec<Event>,
}

/// What a history tells of itself when it ends badly.
#[derive(Clone, Debug)]
#[expect(dead_code, reason = "it is only shown")]
enum Event {
    Start(Digest),
    Step(Step, Option<Mishap>),
}

impl Model {
    fn new(kind: Kind, new: Option<Digest>, current: Option<Installed>, newer: bool) -> Self {
        let mut model = Self {
            new: Digest::of(b"new"),
            kind,
            records: vec![samples::accepted(at(0))],
            marker: Marker {
                packaged: current.as_ref().map(|_| packaged(false).1),
                current,
                ..Marker::default()
            },
            world: unknown(Digest::of(b"")),
            before: Digest::of(b""),
            newer,
            launched_newer: newer,
            passed_over: BTreeSet::new(),
            full: false,
            stop: false,
            restore_failures: 0,
            trace: Vec::new(),
        };
        model.start();
        model.records = vec![samples::accepted(at(0))];
        model.before = model.world.running;
        model.new = new.unwrap_or(model.before);
        model.look();
        model
    }

    fn state(&self) -> AttemptState {
        AttemptState::fold(&self.records)
    }

    fn is_superseded(&self, newer: bool) -> bool {
        is_superseded(&self.marker, &packaged(newer).0, || Some(packaged(self.newer).1))
    }

    fn look(&mut self) {
        let key = samples::key(1);
        self.world.stand = self.marker.stand(key);
        let named = self.marker.known(self.new).filter(|known| known.key() == key);
        self.world.named = named.map(|known| known.program);
        let superseded = self.is_superseded(self.launched_newer);
        self.world.chosen = self
            .marker
            .chosen(superseded, packaged(self.newer).1, &self.passed_over);
    }

    /// Replaces the marker, if that is possible.
    fn keep(&mut self, marker: Marker) -> bool {
        if !self.full {
            self.marker = marker;
        }
        !self.full
    }

    /// What the launcher starts, or nothing when it starts over.
    fn launch(&mut self) -> Option<(Digest, bool)> {
        let superseded = self.is_superseded(self.newer);
        let (marker, choice) = self.marker.clone().next_start(superseded);
        let counted = marker == self.marker || self.keep(marker);
        let settled = |choice| match choice {
            Choice::Current(current) => current.program,
            Choice::Packaged | Choice::Try(_) => packaged(self.newer).1,
        };
        let without_trial = Marker {
            trial: None,
            ..self.marker.clone()
        };
        let without_trial = settled(without_trial.next_start(superseded).1);
        match choice {
            _ if !counted => Some((without_trial, false)),
            Choice::Try(_) if self.kind == Kind::Dies => None,
            Choice::Try(_) if self.kind == Kind::Hangs => {
                let given_up = self.marker.clone().give_up(Why::Silent, "hung");
                (!self.keep(given_up)).then_some((without_trial, false))
            }
            Choice::Try(trial) => Some((trial.installed.program, true)),
            choice => Some((settled(choice), false)),
        }
    }

    /// A process is started: the launcher chooses, until something runs that stays.
    fn start(&mut self) {
        for _ in 0..=2 * MOST_BOOTS {
            let Some((running, is_supervised)) = self.launch() else {
                continue;
            };
            self.trace.push(Event::Start(running));
            self.world = unknown(running);
            self.launched_newer = self.newer;
            let superseded = self.is_superseded(self.launched_newer);
            self.passed_over = self.marker.passed_over(superseded, running, is_supervised);
            if self.settle_trial() && is_supervised {
                continue;
            }
            self.look();
            return;
        }
        panic!("nothing runs: {:#?}", self.trace);
    }

    /// A trial that no attempt waits for is given up; whether there was one.
    fn settle_trial(&mut self) -> bool {
        let is_over = matches!(
            self.state().phase,
            Phase::Preparing | Phase::Ended(_) | Phase::Done
        );
        let is_orphan = is_over && self.marker.trial.is_some();
        if is_orphan {
            let given_up = self.marker.clone().withdraw(samples::key(1), "no attempt");
            self.keep(given_up);
        }
        is_orphan
    }

    fn boot(&mut self) {
        self.start();
        if !matches!(self.state().phase, Phase::Ended(_) | Phase::Done) {
            self.records.push(Record::Resumed { at: at(1) });
        }
    }

    fn next(&self) -> Step {
        let wanted = if self.stop { Wanted::Stop } else { Wanted::Run };
        next(&self.state(), wanted, &self.world)
    }

    /// What a step does: whether it worked, and whether this process is over.
    fn work(&mut self, step: &Step) -> (bool, bool) {
        let key = samples::key(1);
        let marker = self.marker.clone();
        let package = Some(packaged(self.newer).1);
        let mut worked = true;
        match step {
            Step::Pull => self.world.image = true,
            Step::Fetch => self.world.staged = Some(self.new),
            Step::AwaitTurn => self.world.turn = true,
            Step::Prepare => self.records.push(Record::Prepared {
                at: at(2),
                old: vec![OldContainer {
                    id: self.world.running.to_string(),
                    service: "sealift-agent".parse().unwrap(),
                    running: true,
                    restart: RestartPolicy::No,
                    grace_ms: 0,
                    digest: None,
                    aliases: std::collections::BTreeMap::new(),
                    compose: OldOfCompose::default(),
                }],
            }),
            Step::Switch if self.new == self.world.running => {
                worked = self.keep(marker.install(installed(self.new), package));
            }
            Step::Switch => worked = self.keep(marker.try_out(installed(self.new), 1)),
            Step::HandOver => return (true, true),
            Step::NoteStarted => self.records.push(Record::Started {
                starting_at: at(3),
                at: at(3),
            }),
            // A program that finds out that it is not healthy.
            Step::AwaitHealth if self.kind == Kind::Unhealthy && self.world.running != self.before => {
                worked = false;
            }
            Step::AwaitHealth => self.records.push(Record::Healthy {
                at: at(4),
                sticker_before: None,
            }),
            Step::Confirm => worked = self.keep(marker.confirm(package)),
            Step::Commit => self.records.push(Record::Ended {
                at: at(5),
                ending: Ending::Succeeded,
            }),
            Step::Restore(cause) => self.restore(cause.clone()),
            Step::Withdraw => worked = self.keep(marker.withdraw(key, "withdrawn")),
            Step::Conclude(cause) => self.records.push(Record::Ended {
                at: at(7),
                ending: match cause {
                    Cause::Stopped => Ending::Stopped,
                    Cause::Failed { .. } => Ending::Failed,
                },
            }),
            Step::Clean => self.records.push(Record::Cleaned),
            Step::Done => {}
        }
        self.look();
        (worked, false)
    }

    fn restore(&mut self, cause: Cause) {
        self.records.push(Record::Restoring { at: at(6), cause });
    }

    fn fail(&mut self, step: &Step) {
        let failure = Failure::new(FailureCode::Internal, format!("{step:?} failed"));
        match self.state().phase {
            Phase::Restoring(_) => {
                self.restore_failures += 1;
                self.world.stuck |= self.restore_failures.is_multiple_of(TRIES);
            }
            Phase::Ended(_) => self.records.push(Record::Cleaned),
            Phase::Done => {}
            _ => self.restore(Cause::Failed { failure }),
        }
    }

    /// The marker is put aside by an agent that cannot read it.
    fn lose(&mut self) {
        self.marker = Marker::default();
        if !matches!(
            self.state().phase,
            Phase::Restoring(_) | Phase::Ended(_) | Phase::Done
        ) {
            let failure = Failure::new(FailureCode::AgentState, "the marker cannot be read");
            self.restore(Cause::Failed { failure });
        }
        self.look();
    }

    fn step(&mut self, mishap: Option<Mishap>) {
        let step = self.next();
        self.trace.push(Event::Step(step.clone(), mishap));
        match mishap {
            Some(Mishap::Stop) => return self.stop = true,
            Some(Mishap::DieBefore) => return self.boot(),
            Some(Mishap::Fail) => return self.fail(&step),
            Some(Mishap::Disk) => self.full = !self.full,
            Some(Mishap::Lose) => return self.lose(),
            Some(Mishap::LoseAndDie) => {
                self.marker = Marker::default();
                return self.boot();
            }
            Some(Mishap::Package) => self.newer = !self.newer,
            Some(Mishap::PackageAndDie) => {
                self.newer = !self.newer;
                return self.boot();
            }
            Some(Mishap::DieAfter) | None => {}
        }
        let (worked, is_over) = self.work(&step);
        if mishap == Some(Mishap::DieAfter) {
            return self.boot();
        }
        if !worked {
            return self.fail(&step);
        }
        if is_over {
            // Handing over on the way back counts as a start.
            if !matches!(self.state().phase, Phase::Restoring(_)) {
                self.records.push(Record::Rested { at: at(1) });
            }
            self.boot();
        }
    }

    fn check(mut self, mishaps: &[(usize, Mishap)]) {
        let about = |model: &Self| {
            let (kind, trace) = (model.kind, &model.trace);
            format!("{kind:?} {mishaps:?} {:?}\n{trace:#?}", model.marker)
        };
        let met = |some: &[Mishap]| mishaps.iter().any(|(_, mishap)| some.contains(mishap));
        assert_eq!(self.state().phase, Phase::Done, "{}", about(&self));
        let endings: BTreeSet<_> = self
            .records
            .iter()
            .filter_map(|record| match record {
                Record::Ended { ending, .. } => Some(format!("{ending:?}")),
                _ => None,
            })
            .collect();
        assert_eq!(endings.len(), 1, "one end: {}", about(&self));
        let has_succeeded = endings.contains("Succeeded");
        // With room on the disk again, the next start settles what could not be written down.
        if met(&[Mishap::Disk]) {
            self.full = false;
            self.boot();
        }
        assert_eq!(
            self.marker.trial,
            None,
            "nothing stays on trial: {}",
            about(&self)
        );
        let is_lost = met(&[Mishap::Lose, Mishap::LoseAndDie]);
        let is_packaged = met(&[Mishap::Package, Mishap::PackageAndDie]);
        let packages = [packaged(false).1, packaged(true).1];
        let is_new = self.marker.stand(samples::key(1)) == Stand::Installed;
        // A package that comes in the middle may take over from anything, or no longer supersede the update before, and without a
        // marker the packaged one is all there is.
        let floor = (is_lost || is_packaged) && packages.contains(&self.world.running)
            || is_packaged && self.world.running == earlier();
        if has_succeeded {
            assert!(is_new || is_lost, "{}", about(&self));
            assert!(floor || self.world.running == self.new, "{}", about(&self));
            // What runs already for another reason is never tried.
            let is_untried = is_lost && packages.contains(&self.new) || is_packaged && self.new == earlier();
            assert!(self.kind != Kind::Dies || is_untried, "{}", about(&self));
        } else if self.new != self.before {
            // A disk that is full while the way back is written down may keep a program that was found good already.
            let stays = is_new && met(&[Mishap::Disk]);
            assert!(!is_new || stays, "{}", about(&self));
            let is_back = self.world.running == self.before || (stays && self.world.running == self.new);
            assert!(floor || is_back, "{}", about(&self));
        } else {
            assert!(floor || self.world.running == self.before, "{}", about(&self));
        }
        // Whoever starts next runs what runs now, unless that is superseded or forgotten; and so for ever.
        let now = self.world.running;
        self.boot();
        if !is_lost && !is_packaged {
            assert_eq!(self.world.running, now, "{}", about(&self));
        }
        let then = self.world.running;
        self.boot();
        assert_eq!(self.world.running, then, "{}", about(&self));
        let superseded = self.is_superseded(self.newer);
        assert!(!superseded || packages.contains(&then), "{}", about(&self));
    }
}

/// What a process knows before it has looked.
fn unknown(running: Digest) -> World {
    World {
        image: false,
        staged: None,
        turn: false,
        running,
        stand: Stand::Untouched,
        named: None,
        chosen: running,
        problem: None,
        stuck: false,
    }
}

/// Runs a history; gives how many steps it took.
fn run(mut model: Model, mishaps: &[(usize, Mishap)]) -> (Model, usize) {
    for count in 0..200 {
        if model.next() == Step::Done {
            return (model, count);
        }
        let mishap = mishaps.iter().find(|(step, _)| *step == count);
        model.step(mishap.map(|(_, mishap)| *mishap));
    }
    panic!("no end: {mishaps:?}\n{:#?}", model.trace);
}

/// The program is new, or the one that runs already, or the very program of the package or of an update that a package has superseded;
/// the one before is packaged or an earlier update.
fn beginnings() -> Vec<Model> {
    let before = Installed {
        task: samples::key(9).task,
        ..installed(earlier())
    };
    let new = Digest::of(b"new");
    let mut models = Vec::new();
    for kind in [Kind::Good, Kind::Dies, Kind::Hangs, Kind::Unhealthy] {
        models.push(Model::new(kind, Some(new), None, false));
        models.push(Model::new(kind, Some(new), Some(before.clone()), false));
        models.push(Model::new(kind, Some(new), Some(before.clone()), true));
        models.push(Model::new(
            kind,
            Some(packaged(false).1),
            Some(before.clone()),
            false,
        ));
        models.push(Model::new(kind, Some(earlier()), Some(before.clone()), true));
    }
    for current in [None, Some(before)] {
        models.push(Model::new(Kind::Good, None, current, false));
    }
    models
}

#[test]
fn without_a_mishap_only_a_program_that_works_stays() {
    for model in beginnings() {
        let (model, _) = run(model, &[]);
        model.clone().check(&[]);
        let stays = model.marker.stand(samples::key(1)) == Stand::Installed;
        assert_eq!(stays, model.kind == Kind::Good, "{:#?}", model.trace);
        if !stays {
            let failed = model.records.iter().find_map(|record| match record {
                Record::Restoring {
                    cause: Cause::Failed { failure },
                    ..
                } => Some(failure),
                _ => None,
            });
            let code = failed.unwrap().code;
            let own = model.kind == Kind::Unhealthy;
            assert_eq!(
                code == FailureCode::AgentUpdateNotHealthy,
                !own,
                "{:#?}",
                model.trace
            );
        }
    }
}

#[test]
fn r10_whatever_happens_one_program_runs_for_good() {
    let mut walked = 0;
    for begin in beginnings() {
        let (_, steps) = run(begin.clone(), &[]);
        for first in 0..steps {
            for one in MISHAPS {
                let (model, more) = run(begin.clone(), &[(first, one)]);
                model.check(&[(first, one)]);
                for second in first + 1..more {
                    for two in MISHAPS {
                        let mishaps = [(first, one), (second, two)];
                        let (model, _) = run(begin.clone(), &mishaps);
                        model.check(&mishaps);
                        walked += 1;
                    }
                }
            }
        }
    }
    assert!(walked > 50_000, "only {walked} histories");
}

#[test]
fn a_host_that_crashes_again_and_again_comes_to_an_end() {
    for begin in beginnings() {
        let mut model = begin;
        let mut left = MOST_STARTS + MOST_BOOTS + 30;
        for _ in 0..200 {
            if model.next() == Step::Done {
                break;
            }
            let dies = left > 0 && !matches!(model.state().phase, Phase::Ended(_));
            model.step(dies.then_some(Mishap::DieAfter));
            left = left.saturating_sub(1);
        }
        model.check(&[]);
    }
}
