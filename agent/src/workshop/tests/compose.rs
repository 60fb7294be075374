//! Attempts on a compose host whose Compose is a script and whose engine is the fake one.

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt as _, path::PathBuf};

use sealift_common::compose_manifest::ComposeManifest;

use super::*;
use crate::{
    compose::{ComposeConfig, HostFiles},
    host::NewContainer,
    journal::{Cause, LockRef},
    runner::RESTORE_PATIENCE,
};

/// A host whose Compose is a script, and an order for it.
struct Place {
    host: FakeHost,
    dir: tempfile::TempDir,
    order: Order<ComposeManifest>,
}

impl Place {
    /// With a Compose that does `script` when it is asked for anything but its version.
    fn new(script: &str) -> Self {
        let place = Self {
            host: engine(),
            dir: tempfile::tempdir().unwrap(),
            order: samples::compose_order(1, &[("web", "v1")]),
        };
        place.install(script);
        place
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn program(&self) -> PathBuf {
        self.path("docker-compose")
    }

    fn install(&self, script: &str) {
        let text = format!("#!/bin/sh\n[ \"$*\" = 'version --short' ] && echo 2.30.0 && exit\n{script}\n");
        std::fs::write(self.program(), text).unwrap();
        std::fs::set_permissions(self.program(), std::fs::Permissions::from_mode(0o755)).unwrap();
    }

    fn remove(&self) {
        std::fs::remove_file(self.program()).unwrap();
    }

    /// Where the agent looks for it. The owner's variables are in `host.env`, and in `production.env` for that environment.
    fn search(&self) -> Search {
        let given = |name: &str| HostFiles {
            env_file: Some(self.path(name)),
            ..HostFiles::default()
        };
        let config = ComposeConfig {
            program: Some(self.program()),
            usual: given("host.env"),
            environments: [("production".parse().unwrap(), given("production.env"))].into(),
        };
        Search::new(config, self.dir.path(), "unix:///nowhere.sock", None)
    }

    const fn key(&self) -> AttemptKey {
        AttemptKey {
            task: self.order.task_id,
            attempt: self.order.attempt,
        }
    }

    /// Writes an attempt into the journal that was accepted and then came as far as `records`.
    async fn began(&self, records: Vec<Record>) {
        let order = Write::Order {
            key: self.key(),
            bytes: sign_order(&self.order, &samples::order_key()).unwrap(),
            target: self.order.target_id,
            fence: self.order.fence,
        };
        let accepted = Write::Record(self.key(), samples::accepted(samples::at(0)));
        let records = records
            .into_iter()
            .map(|record| Write::Record(self.key(), record));
        let journal = Journal::open(self.dir.path()).unwrap();
        journal
            .commit([order, accepted].into_iter().chain(records).collect())
            .await
            .unwrap();
    }

    /// Its lock, and that of what ran before, are kept.
    async fn locked(&self) -> Record {
        let files = self.search().look().await.files(&self.order);
        let (lock, old) = (files.keep(b"new").unwrap(), files.keep(b"old").unwrap());
        Record::Locked {
            at: samples::at(0),
            lock,
            previous: Some(LockRef {
                digest: old,
                profiles: BTreeSet::new(),
            }),
            allowances: Vec::new(),
        }
    }

    /// The attempt is on its way back to the lock before.
    async fn going_back(&self) {
        let (at, old) = (samples::at(0), Vec::new());
        let failure = Failure::new(FailureCode::Unhealthy, "the new set is ill");
        let cause = Cause::Failed { failure };
        self.began(vec![
            self.locked().await,
            Record::Prepared { at, old },
            Record::Restoring { at, cause },
        ])
        .await;
    }

    /// A container of the order's set.
    async fn add_container(&self) {
        let service = "web".parse().unwrap();
        let image = samples::image("v1");
        let there = NewContainer {
            name: "web".to_owned(),
            labels: crate::labels::of_compose_container(&self.order, &service, &image),
            service,
            spec: samples::service(image),
            networks: Vec::new(),
            volumes: BTreeMap::new(),
        };
        let id = self.host.create(&there).await.unwrap();
        self.host.start(&id).await.unwrap();
    }

    async fn start(&self) -> Agent {
        let (policy, search) = (HostPolicy::default(), Some(self.search()));
        Agent::start_on(&self.host, self.dir.path(), &samples::clock(), policy, search).await
    }

    async fn offer(&self, agent: &Agent) {
        let bytes = sign_order(&self.order, &samples::order_key()).unwrap();
        let workshop = &agent.workshop;
        workshop
            .offer(self.order.task_id, self.order.attempt, bytes)
            .await;
    }

    /// The end of the attempt, which must come soon.
    async fn end(&self, agent: &Agent) -> Finished {
        within(Duration::from_mins(1), || !agent.workshop.is_busy()).await;
        agent.finished(&self.order).unwrap()
    }
}

/// Whether the agent says that an attempt waits for Compose.
fn says_that_it_waits(agent: &Agent) -> bool {
    let facts = agent.workshop.facts();
    let facts = facts.borrow();
    let mut details = facts.degraded.iter().map(|found| &found.detail);
    details.any(|detail| detail.contains("needs Compose"))
}

async fn waits(agent: &Agent) {
    within(Duration::from_mins(1), || says_that_it_waits(agent)).await;
    assert!(agent.workshop.is_busy());
}

/// An agent that was enrolled anew has no lock of what runs, and taking that down would be no way back.
#[tokio::test]
async fn r10_a_set_that_the_agent_knows_nothing_of_is_not_touched() {
    let place = Place::new("");
    place.install(&format!("echo >> {}", place.path("asked").display()));
    place.add_container().await;
    let agent = place.start().await;
    place.offer(&agent).await;
    let finished = place.end(&agent).await;
    assert_eq!(
        (finished.result(), code(&finished)),
        (Wire::Failed, "AGENT_STATE")
    );
    let detail = finished.failure.unwrap().detail;
    assert!(detail.contains("docker rm -f"), "{detail}");
    assert_eq!(running(&place.host), set(&[("web", "v1")]));
    assert!(!place.path("asked").exists(), "Compose was asked for nothing");
    agent.down().await;
}

/// It may repeat what was filled into the lock.
#[tokio::test]
async fn t16_what_compose_says_is_not_shown_when_the_values_that_were_filled_in_are_not_known() {
    let place = Place::new("echo using hunter22 >&2");
    place.going_back().await;
    let agent = place.start().await;
    let mut logs = agent.workshop.take_logs().unwrap();
    let finished = place.end(&agent).await;
    assert_eq!(code(&finished), "UNHEALTHY", "{finished:?}");
    let said: Vec<_> = std::iter::from_fn(|| logs.try_recv().ok())
        .map(|line| format!("{line:?}"))
        .collect();
    let has = |text: &str| said.iter().any(|line| line.contains(text));
    assert!(has("[not shown") && !has("hunter22"), "{said:?}");
    agent.down().await;
}

/// What Compose is given when it resolves the file.
#[tokio::test]
async fn t16_values_of_another_environment_are_given_to_no_compose() {
    let place = Place::new("");
    let seen = place.path("seen");
    place.install(&format!("env > {}; exit 1", seen.display()));
    std::fs::write(place.path("host.env"), "DB_PASSWORD=hunter22\n").unwrap();
    std::fs::write(place.path("production.env"), "PRODUCTION=hunter23\n").unwrap();
    assert_eq!(place.order.environment.as_str(), "staging");
    let agent = place.start().await;
    place.offer(&agent).await;
    let finished = place.end(&agent).await;
    assert_eq!(code(&finished), "COMPOSE_REJECTED", "{finished:?}");
    let seen = std::fs::read_to_string(&seen).unwrap();
    assert!(
        seen.contains("DB_PASSWORD=hunter22") && !seen.contains("hunter23"),
        "{seen}"
    );
    agent.down().await;
}

#[tokio::test]
async fn r10_an_attempt_waits_for_a_compose_that_is_not_there_yet() {
    let place = Place::new("exit 0");
    place.going_back().await;
    place.remove();
    let agent = place.start().await;
    let told = agent.workshop.facts();
    let can = || told.borrow().capabilities.iter().any(|can| can == "compose_host");
    waits(&agent).await;
    assert!(!can() && agent.finished(&place.order).is_none());
    place.install("exit 0");
    let finished = place.end(&agent).await;
    assert_eq!(code(&finished), "UNHEALTHY", "{finished:?}");
    assert!(can() && !says_that_it_waits(&agent));
    agent.down().await;
}

#[tokio::test]
async fn r14_a_stop_ends_an_attempt_that_waits_for_compose_and_has_touched_nothing() {
    let place = Place::new("exit 0");
    place.began(vec![place.locked().await]).await;
    place.remove();
    let agent = place.start().await;
    waits(&agent).await;
    agent.workshop.stop(place.order.task_id).await;
    let finished = place.end(&agent).await;
    assert_eq!(finished.result(), Wire::Stopped, "{finished:?}");
    assert!(!says_that_it_waits(&agent));
    agent.down().await;
}

/// Without it the old set cannot come back, if it is not still there.
#[tokio::test]
async fn r14_after_a_stop_in_the_middle_of_a_swap_compose_is_waited_for_only_so_long() {
    for is_touched in [true, false] {
        let place = Place::new("exit 0");
        let (at, old) = (samples::at(0), Vec::new());
        place
            .began(vec![place.locked().await, Record::Prepared { at, old }])
            .await;
        if is_touched {
            place.add_container().await;
        }
        place.remove();
        let agent = place.start().await;
        waits(&agent).await;
        agent.workshop.stop(place.order.task_id).await;
        let asked = tokio::time::Instant::now();
        tokio::time::pause();
        until(|| !agent.workshop.is_busy()).await;
        let waited = asked.elapsed();
        tokio::time::resume();
        assert!(
            waited >= RESTORE_PATIENCE && waited < RESTORE_PATIENCE * 2,
            "{waited:?}"
        );
        let finished = place.end(&agent).await;
        if is_touched {
            assert_eq!(code(&finished), "RESTORE_FAILED");
            let summary = finished.failure.unwrap().summary;
            assert!(summary.contains("no Compose"), "{summary}");
        } else {
            assert_eq!(finished.result(), Wire::Stopped, "{finished:?}");
        }
        agent.down().await;
    }
}

/// A Compose that comes back in time brings the old set back.
#[tokio::test]
async fn r10_a_stop_that_waits_for_compose_ends_with_the_old_set_when_it_comes() {
    let place = Place::new("exit 0");
    let (at, old) = (samples::at(0), Vec::new());
    place
        .began(vec![place.locked().await, Record::Prepared { at, old }])
        .await;
    place.remove();
    let agent = place.start().await;
    waits(&agent).await;
    agent.workshop.stop(place.order.task_id).await;
    let asked = place.path("asked");
    place.install(&format!("echo \"$*\" >> {}", asked.display()));
    let finished = place.end(&agent).await;
    assert_eq!(finished.result(), Wire::Stopped, "{finished:?}");
    let asked = std::fs::read_to_string(asked).unwrap();
    assert!(asked.contains("up -d"), "{asked}");
    agent.down().await;
}

#[tokio::test]
async fn f8_an_attempt_that_waits_for_compose_keeps_no_agent_whose_journal_failed() {
    let place = Place::new("exit 0");
    place.going_back().await;
    place.remove();
    let agent = place.start().await;
    assert!(agent.workshop.is_busy());
    let full = JournalError::Damaged("no space left on device".to_owned());
    agent.workshop.shared.journal.fail(&full);
    within(Duration::from_mins(1), || !agent.workshop.is_busy()).await;
    agent.down().await;
}

/// Else every stop of the agent would count as a start that came to nothing.
#[tokio::test]
async fn f21_waiting_for_compose_makes_no_attempt_poisonous() {
    let place = Place::new("exit 0");
    place.going_back().await;
    place.remove();
    for _ in 0..2 {
        let agent = place.start().await;
        let journal = agent.workshop.shared.journal.clone();
        agent.down().await;
        let stored = journal.attempt(place.key()).unwrap().unwrap();
        assert_eq!(AttemptState::fold(&stored.records).starts, 1);
    }
}

/// What a client of the engine says differs with the instant in which the engine goes away, so that it is away counts whatever is said.
#[tokio::test]
async fn r10_f3_an_engine_that_goes_away_on_the_way_back_is_waited_for() {
    for said in ["is the docker daemon running?", "oh"] {
        let place = Place::new("exit 0");
        place.going_back().await;
        let (asked, away) = (place.path("asked"), place.path("away"));
        place.install(&format!(
            "echo >> {asked}; while [ ! -e {away}.known ]; do sleep 0.01; done; [ -e {away} ] && echo '{said}' >&2 && exit 1; exit 0",
            asked = asked.display(),
            away = away.display(),
        ));
        std::fs::write(&away, "").unwrap();
        let agent = place.start().await;
        within(Duration::from_mins(1), || asked.exists()).await;
        let gone = HostError::new(FailureCode::EngineUnavailable, "no engine");
        place.host.fail("list", 6, gone);
        place.host.record_calls();
        std::fs::write(place.path("away.known"), "").unwrap();
        let calls = std::cell::Cell::new(0);
        let is_waiting = || {
            let lists = place.host.recorded_calls();
            place.host.record_calls();
            calls.set(calls.get() + lists.into_iter().filter(|call| *call == "list").count());
            calls.get() > 3
        };
        within(Duration::from_mins(1), || {
            is_waiting() || !agent.workshop.is_busy()
        })
        .await;
        std::fs::remove_file(&away).unwrap();
        let finished = place.end(&agent).await;
        assert_eq!(code(&finished), "UNHEALTHY", "{said}: {finished:?}");
        let tries = std::fs::read_to_string(&asked).unwrap().len();
        assert_eq!(tries, 2, "{said}: it is not asked while the engine is away");
        agent.down().await;
    }
}
