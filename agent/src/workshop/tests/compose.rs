//! Attempts on a compose host whose Compose is a script and whose engine is the fake one.

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt as _};

use sealift_common::compose_manifest::ComposeManifest;

use super::*;
use crate::{
    compose::{ComposeConfig, HostFiles, files::ProjectFiles},
    host::NewContainer,
    journal::{Cause, LockRef},
};

/// Writes a Compose that does `script` when it is asked for anything but its version.
fn install(dir: &Path, script: &str) {
    let program = dir.join("docker-compose");
    let text = format!("#!/bin/sh\n[ \"$*\" = 'version --short' ] && echo 2.30.0 && exit\n{script}\n");
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
}

/// Looks for what is installed there. Its owner's variables are in `host.env`, and in `NAME.env` for one environment.
fn search(dir: &Path) -> Search {
    let given = |name: &str| HostFiles {
        env_file: Some(dir.join(format!("{name}.env"))),
        ..HostFiles::default()
    };
    let config = ComposeConfig {
        program: Some(dir.join("docker-compose")),
        usual: given("host"),
        environments: [("production".parse().unwrap(), given("production"))].into(),
    };
    Search::new(config, dir, "unix:///nowhere.sock", None)
}

/// Looks for a Compose that does `script`, and that is there.
async fn compose(dir: &Path, script: &str) -> Search {
    install(dir, script);
    let search = search(dir);
    assert!(search.look().await.is_some());
    search
}

/// The files of the order's project.
async fn files(dir: &Path, order: &Order<ComposeManifest>) -> ProjectFiles {
    search(dir).look().await.unwrap().files(order)
}

/// An attempt that is on its way back to a lock that is kept, as its journal tells it.
async fn going_back(dir: &Path, files: &ProjectFiles, order: &Order<ComposeManifest>) {
    let key = AttemptKey {
        task: order.task_id,
        attempt: order.attempt,
    };
    let (lock, old) = (files.keep(b"new").unwrap(), files.keep(b"old").unwrap());
    let at = samples::at(0);
    let records = [
        samples::accepted(at),
        Record::Locked {
            at,
            lock,
            previous: Some(LockRef {
                digest: old,
                profiles: BTreeSet::new(),
            }),
            allowances: Vec::new(),
        },
        Record::Prepared { at, old: Vec::new() },
        Record::Restoring {
            at,
            cause: Cause::Failed {
                failure: Failure::new(FailureCode::Unhealthy, "the new set is ill"),
            },
        },
    ];
    let order = Write::Order {
        key,
        bytes: sign_order(order, &samples::order_key()).unwrap(),
        target: order.target_id,
        fence: order.fence,
    };
    let records = records.map(|record| Write::Record(key, record));
    let journal = Journal::open(dir).unwrap();
    journal
        .commit(std::iter::once(order).chain(records).collect())
        .await
        .unwrap();
}

/// An agent that was enrolled anew has no lock of what runs, and taking that down would be no way back.
#[tokio::test]
async fn r10_a_set_that_the_agent_knows_nothing_of_is_not_touched() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let asked = dir.path().join("asked");
    let compose = compose(dir.path(), &format!("echo >> {}", asked.display())).await;
    let order = samples::compose_order(1, &[("web", "v1")]);
    let service = "web".parse().unwrap();
    let image = samples::image("v1");
    let there = NewContainer {
        name: "web".to_owned(),
        labels: crate::labels::of_compose_container(&order, &service, &image),
        service,
        spec: samples::service(image),
        networks: Vec::new(),
        volumes: BTreeMap::new(),
    };
    let id = host.create(&there).await.unwrap();
    host.start(&id).await.unwrap();
    let policy = HostPolicy::default();
    let agent = Agent::start_on(&host, dir.path(), &samples::clock(), policy, Some(compose)).await;
    let bytes = sign_order(&order, &samples::order_key()).unwrap();
    agent.workshop.offer(order.task_id, order.attempt, bytes).await;
    agent.idle().await;
    let finished = agent.finished(&order).unwrap();
    assert_eq!(
        (finished.result(), code(&finished)),
        (Wire::Failed, "AGENT_STATE")
    );
    let detail = finished.failure.unwrap().detail;
    assert!(detail.contains("docker rm -f"), "{detail}");
    assert_eq!(running(&host), set(&[("web", "v1")]));
    assert!(!asked.exists(), "Compose was asked for nothing");
    agent.down().await;
}

/// It may repeat what was filled into the lock.
#[tokio::test]
async fn t16_what_compose_says_is_not_shown_when_the_values_that_were_filled_in_are_not_known() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    install(dir.path(), "echo using hunter22 >&2");
    let order = samples::compose_order(1, &[("web", "v1")]);
    going_back(dir.path(), &files(dir.path(), &order).await, &order).await;
    let policy = HostPolicy::default();
    let agent = Agent::start_on(
        &host,
        dir.path(),
        &samples::clock(),
        policy,
        Some(search(dir.path())),
    )
    .await;
    let mut logs = agent.workshop.take_logs().unwrap();
    within(Duration::from_mins(1), || !agent.workshop.is_busy()).await;
    let finished = agent.finished(&order).unwrap();
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
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let seen = dir.path().join("seen");
    install(dir.path(), &format!("env > {}; exit 1", seen.display()));
    std::fs::write(dir.path().join("host.env"), "DB_PASSWORD=hunter22\n").unwrap();
    std::fs::write(dir.path().join("production.env"), "PRODUCTION=hunter23\n").unwrap();
    let policy = HostPolicy::default();
    let search = Some(search(dir.path()));
    let agent = Agent::start_on(&host, dir.path(), &samples::clock(), policy, search).await;
    let order = samples::compose_order(1, &[("web", "v1")]);
    assert_eq!(order.environment.as_str(), "staging");
    let bytes = sign_order(&order, &samples::order_key()).unwrap();
    agent.workshop.offer(order.task_id, order.attempt, bytes).await;
    within(Duration::from_mins(1), || !agent.workshop.is_busy()).await;
    let finished = agent.finished(&order).unwrap();
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
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    install(dir.path(), "exit 0");
    let order = samples::compose_order(1, &[("web", "v1")]);
    going_back(dir.path(), &files(dir.path(), &order).await, &order).await;
    std::fs::remove_file(dir.path().join("docker-compose")).unwrap();
    let policy = HostPolicy::default();
    let wanted = Some(search(dir.path()));
    let agent = Agent::start_on(&host, dir.path(), &samples::clock(), policy, wanted).await;
    let told = agent.workshop.facts();
    let can = || told.borrow().capabilities.iter().any(|can| can == "compose_host");
    let waits = || {
        let facts = told.borrow();
        facts
            .degraded
            .iter()
            .any(|found| found.detail.contains("needs Compose"))
    };
    within(Duration::from_mins(1), waits).await;
    assert!(!can() && agent.workshop.is_busy() && agent.finished(&order).is_none());
    install(dir.path(), "exit 0");
    within(Duration::from_mins(1), || !agent.workshop.is_busy()).await;
    let finished = agent.finished(&order).unwrap();
    assert_eq!(code(&finished), "UNHEALTHY", "{finished:?}");
    assert!(can() && !waits());
    agent.down().await;
}

#[tokio::test]
async fn f8_an_attempt_that_waits_for_compose_keeps_no_agent_whose_journal_failed() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    install(dir.path(), "exit 0");
    let order = samples::compose_order(1, &[("web", "v1")]);
    going_back(dir.path(), &files(dir.path(), &order).await, &order).await;
    std::fs::remove_file(dir.path().join("docker-compose")).unwrap();
    let policy = HostPolicy::default();
    let wanted = Some(search(dir.path()));
    let agent = Agent::start_on(&host, dir.path(), &samples::clock(), policy, wanted).await;
    assert!(agent.workshop.is_busy());
    let full = JournalError::Damaged("no space left on device".to_owned());
    agent.workshop.shared.journal.fail(&full);
    within(Duration::from_mins(1), || !agent.workshop.is_busy()).await;
    agent.down().await;
}

/// Else every stop of the agent would count as a start that came to nothing.
#[tokio::test]
async fn f21_waiting_for_compose_makes_no_attempt_poisonous() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    install(dir.path(), "exit 0");
    let order = samples::compose_order(1, &[("web", "v1")]);
    going_back(dir.path(), &files(dir.path(), &order).await, &order).await;
    std::fs::remove_file(dir.path().join("docker-compose")).unwrap();
    let key = AttemptKey {
        task: order.task_id,
        attempt: order.attempt,
    };
    for _ in 0..2 {
        let policy = HostPolicy::default();
        let wanted = Some(search(dir.path()));
        let agent = Agent::start_on(&host, dir.path(), &samples::clock(), policy, wanted).await;
        let journal = agent.workshop.shared.journal.clone();
        agent.down().await;
        let stored = journal.attempt(key).unwrap().unwrap();
        assert_eq!(AttemptState::fold(&stored.records).starts, 1);
    }
}

/// What a client of the engine says differs with the instant in which the engine goes away, so that it is away counts whatever is said.
#[tokio::test]
async fn r10_f3_an_engine_that_goes_away_on_the_way_back_is_waited_for() {
    for said in ["is the docker daemon running?", "oh"] {
        let (host, dir) = (engine(), tempfile::tempdir().unwrap());
        let (asked, away) = (dir.path().join("asked"), dir.path().join("away"));
        let script = format!(
            "echo >> {asked}; while [ ! -e {away}.known ]; do sleep 0.01; done; [ -e {away} ] && echo '{said}' >&2 && exit 1; exit 0",
            asked = asked.display(),
            away = away.display(),
        );
        let compose = compose(dir.path(), &script).await;
        let order = samples::compose_order(1, &[("web", "v1")]);
        going_back(dir.path(), &files(dir.path(), &order).await, &order).await;
        std::fs::write(&away, "").unwrap();
        let policy = HostPolicy::default();
        let agent = Agent::start_on(&host, dir.path(), &samples::clock(), policy, Some(compose)).await;
        within(Duration::from_mins(1), || asked.exists()).await;
        let gone = HostError::new(FailureCode::EngineUnavailable, "no engine");
        host.fail("list", 6, gone);
        host.record_calls();
        std::fs::write(dir.path().join("away.known"), "").unwrap();
        let calls = std::cell::Cell::new(0);
        let is_waiting = || {
            let lists = host.recorded_calls();
            host.record_calls();
            calls.set(calls.get() + lists.into_iter().filter(|call| *call == "list").count());
            calls.get() > 3
        };
        within(Duration::from_mins(1), || {
            is_waiting() || !agent.workshop.is_busy()
        })
        .await;
        std::fs::remove_file(&away).unwrap();
        agent.idle().await;
        let finished = agent.finished(&order).unwrap();
        assert_eq!(code(&finished), "UNHEALTHY", "{said}: {finished:?}");
        let tries = std::fs::read_to_string(&asked).unwrap().len();
        assert_eq!(tries, 2, "{said}: it is not asked while the engine is away");
        agent.down().await;
    }
}
