//! Attempts on a compose host whose Compose is a script and whose engine is the fake one.

use std::{collections::BTreeSet, os::unix::fs::PermissionsExt as _};

use sealift_common::compose_manifest::ComposeManifest;

use super::*;
use crate::{
    compose::{ComposeConfig, HostFiles, files::ProjectFiles},
    host::NewContainer,
    journal::{Cause, LockRef},
};

/// A Compose that does `script` when it is asked for anything but its version. Its owner's variables are not there.
async fn compose(dir: &Path, script: &str) -> Compose {
    let program = dir.join("docker-compose");
    let text = format!("#!/bin/sh\n[ \"$*\" = 'version --short' ] && echo 2.30.0 && exit\n{script}\n");
    std::fs::write(&program, text).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let config = ComposeConfig {
        program: Some(program),
        usual: HostFiles {
            env_file: Some(dir.join("host.env")),
            ..HostFiles::default()
        },
        ..ComposeConfig::default()
    };
    Compose::detect(config, dir, "unix:///nowhere.sock", None)
        .await
        .unwrap()
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
        going_back(dir.path(), &compose.files(&order), &order).await;
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
    let compose = compose(dir.path(), "echo using hunter22 >&2").await;
    let order = samples::compose_order(1, &[("web", "v1")]);
    going_back(dir.path(), &compose.files(&order), &order).await;
    let policy = HostPolicy::default();
    let agent = Agent::start_on(&host, dir.path(), &samples::clock(), policy, Some(compose)).await;
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
