//! Every history of an update with at most two mishaps, on a model of journal, marker and launcher: the process or the whole host
//! dies before or after an effect, an effect fails, a stop is asked for. Whatever happens and whatever the new program is like, it ends
//! with the new program running and found good, or with the one before running and nothing on trial (R10).

use std::collections::BTreeSet;

use sealift_common::manifest::RestartPolicy;

use super::*;
use crate::{
    journal::{Ending, MOST_STARTS, OldContainer, Record},
    program::{
        launcher::own_version,
        marker::{Choice, Installed, MOST_BOOTS, Marker},
    },
    samples::{self, at},
};

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
}

const MISHAPS: [Mishap; 4] = [Mishap::DieBefore, Mishap::DieAfter, Mishap::Fail, Mishap::Stop];

fn old() -> Digest {
    Digest::of(b"old")
}

fn installed(program: Digest) -> Installed {
    Installed {
        program,
        version: own_version(),
        image: samples::image("v2"),
        task: samples::key(1).task,
        attempt: samples::key(1).attempt,
    }
}

#[derive(Clone, Debug)]
struct Model {
    new: Digest,
    kind: Kind,
    records: Vec<Record>,
    marker: Marker,
    world: World,
    stop: bool,
    restore_failures: u32,
    trace: Vec<String>,
}

impl Model {
    fn new(kind: Kind, new: Digest, before: Option<Installed>) -> Self {
        Self {
            new,
            kind,
            records: vec![samples::accepted(at(0))],
            marker: Marker {
                current: before,
                ..Marker::default()
            },
            world: World {
                image: false,
                staged: None,
                turn: false,
                running: old(),
                stand: Stand::Untouched,
                named: None,
            },
            stop: false,
            restore_failures: 0,
            trace: Vec::new(),
        }
    }

    fn state(&self) -> AttemptState {
        AttemptState::fold(&self.records)
    }

    fn look(&mut self) {
        let key = samples::key(1);
        self.world.stand = self.marker.stand(key);
        self.world.named = self
            .marker
            .known(self.new)
            .filter(|known| known.key() == key)
            .map(|known| known.program);
    }

    /// A process is started: the launcher chooses, until something runs that goes on with the attempt.
    fn boot(&mut self) {
        for _ in 0..=MOST_BOOTS + 1 {
            let (marker, choice) = self.marker.clone().next_start(false);
            self.marker = marker;
            let running = match &choice {
                Choice::Packaged => old(),
                Choice::Current(current) => current.program,
                Choice::Try(trial) => trial.installed.program,
            };
            self.trace.push(format!("start of {}", running.short()));
            match (self.kind, choice) {
                (Kind::Dies, Choice::Try(_)) => continue,
                (Kind::Hangs, Choice::Try(_)) => {
                    self.marker = self.marker.clone().give_up(Why::Silent, "hung");
                    continue;
                }
                _ => {}
            }
            self.world = World {
                image: false,
                staged: None,
                turn: false,
                running,
                stand: Stand::Untouched,
                named: None,
            };
            if !matches!(self.state().phase, Phase::Ended(_)) {
                self.records.push(Record::Resumed { at: at(1) });
            }
            self.look();
            return;
        }
        panic!("nothing runs: {:#?}", self.trace);
    }

    fn next(&self) -> Step {
        let wanted = if self.stop { Wanted::Stop } else { Wanted::Run };
        next(&self.state(), wanted, &self.world)
    }

    /// What a step does when it works; the answer says whether this process is over.
    fn work(&mut self, step: &Step) -> bool {
        let key = samples::key(1);
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
                }],
            }),
            Step::Switch if self.new == self.world.running => {
                self.marker = self.marker.clone().install(installed(self.new), None);
            }
            Step::Switch => self.marker = self.marker.clone().try_out(installed(self.new), 1),
            Step::HandOver => return true,
            Step::NoteStarted => self.records.push(Record::Started {
                starting_at: at(3),
                at: at(3),
            }),
            Step::AwaitHealth => self.records.push(Record::Healthy {
                at: at(4),
                sticker_before: None,
            }),
            Step::Confirm => self.marker = self.marker.clone().confirm(None),
            Step::Commit => self.records.push(Record::Ended {
                at: at(5),
                ending: Ending::Succeeded,
            }),
            Step::Restore(cause) => self.records.push(Record::Restoring {
                at: at(6),
                cause: cause.clone(),
            }),
            Step::Withdraw => self.marker = self.marker.clone().withdraw(key, "withdrawn"),
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
        false
    }

    fn fail(&mut self, step: &Step) {
        let phase = self.state().phase;
        let failure = Failure::new(FailureCode::Internal, format!("{step:?} failed"));
        match phase {
            Phase::Restoring(_) => self.restore_failures += 1,
            Phase::Ended(_) => self.records.push(Record::Cleaned),
            Phase::Done => {}
            _ => self.records.push(Record::Restoring {
                at: at(6),
                cause: Cause::Failed { failure },
            }),
        }
    }

    fn step(&mut self, mishap: Option<Mishap>) {
        let step = self.next();
        self.trace.push(format!("{step:?} {mishap:?}"));
        // A program that finds out that it is not healthy.
        let sick = self.kind == Kind::Unhealthy && self.world.running == self.new && self.new != old();
        if mishap == Some(Mishap::Stop) {
            self.stop = true;
            return;
        }
        if mishap == Some(Mishap::DieBefore) {
            return self.boot();
        }
        if mishap == Some(Mishap::Fail) || (sick && step == Step::AwaitHealth) {
            return self.fail(&step);
        }
        let is_over = self.work(&step);
        if mishap == Some(Mishap::DieAfter) {
            return self.boot();
        }
        if is_over {
            self.records.push(Record::Rested { at: at(1) });
            self.boot();
        }
    }

    fn check(&self, mishaps: &[(usize, Mishap)]) {
        let about = || format!("{:?} {mishaps:?}\n{:#?}", self.kind, self.trace);
        let state = self.state();
        assert_eq!(state.phase, Phase::Done, "{}", about());
        assert_eq!(self.marker.trial, None, "nothing stays on trial: {}", about());
        let endings: BTreeSet<_> = self
            .records
            .iter()
            .filter_map(|record| match record {
                Record::Ended { ending, .. } => Some(format!("{ending:?}")),
                _ => None,
            })
            .collect();
        assert_eq!(endings.len(), 1, "one end: {}", about());
        let is_new = self.marker.stand(samples::key(1)) == Stand::Installed;
        if endings.contains("Succeeded") {
            assert!(is_new && self.world.running == self.new, "{}", about());
            assert_ne!(self.kind, Kind::Dies, "{}", about());
        } else {
            assert!(!is_new, "{}", about());
            assert_eq!(self.world.running, old(), "{}", about());
        }
        // Whoever starts next runs what runs now.
        let (_, choice) = self.marker.clone().next_start(false);
        let next = match choice {
            Choice::Packaged => old(),
            Choice::Current(current) => current.program,
            Choice::Try(_) => panic!("{}", about()),
        };
        assert_eq!(next, self.world.running, "{}", about());
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

/// The program is new or the one that runs already; the one before is packaged or an earlier update.
fn beginnings() -> Vec<Model> {
    let mut models = Vec::new();
    let before = Installed {
        task: samples::key(9).task,
        ..installed(old())
    };
    for kind in [Kind::Good, Kind::Dies, Kind::Hangs, Kind::Unhealthy] {
        for current in [None, Some(before.clone())] {
            models.push(Model::new(kind, Digest::of(b"new"), current.clone()));
            if kind == Kind::Good {
                models.push(Model::new(kind, old(), current));
            }
        }
    }
    models
}

#[test]
fn without_a_mishap_only_a_program_that_works_stays() {
    for model in beginnings() {
        let (model, _) = run(model, &[]);
        model.check(&[]);
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
    assert!(walked > 5_000, "only {walked} histories");
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
