//! Orders that meet defects, stops of the agent, or an agent that carries them out already; and the host's policy.

use std::collections::BTreeSet;

use sealift_common::{
    evidence::{Allowance, AllowedBy},
    manifest::MountSpec,
};

use super::*;

#[tokio::test(start_paused = true)]
async fn r14_a_runner_that_panics_goes_on_from_the_journal() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    host.panic_at("create", 2);
    let finished = agent.deploy(&samples::order(2, &[("web", "v2")])).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{finished:?}");
    host.panic_at("create", 100);
    let finished = agent.deploy(&samples::order(3, &[("web", "v3")])).await;
    assert_eq!(code(&finished), "AGENT_STATE");
    assert_eq!(running(&host), set(&[("web", "v2")]));
    host.panic_at("create", 0);
    let finished = agent.deploy(&samples::order(4, &[("web", "v3")])).await;
    assert_eq!(finished.result(), Wire::Succeeded, "the target is served again");
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r14_an_attempt_whose_order_cannot_be_read_is_reported() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let order = samples::order(1, &[("web", "v1")]);
    let key = AttemptKey {
        task: order.task_id,
        attempt: order.attempt,
    };
    let journal = Journal::open(dir.path()).unwrap();
    let stored = Write::Order {
        key,
        bytes: b"garbage".to_vec(),
        target: order.target_id,
        fence: order.fence,
    };
    let accepted = Write::Record(key, samples::accepted(samples::at(0)));
    journal.commit(vec![stored, accepted]).await.unwrap();
    drop(journal);
    for _ in 0..2 {
        let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
        agent.idle().await;
        let finished = agent.finished(&order).unwrap();
        assert_eq!(finished.result(), Wire::Failed);
        assert_eq!(code(&finished), "AGENT_STATE");
        assert_eq!(agent.reports().len(), 1, "told once");
        agent.down().await;
    }
}

#[tokio::test(start_paused = true)]
async fn r14_an_attempt_under_way_that_is_offered_again_tells_its_step_again() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let order = samples::order(1, &[("web", "slow")]);
    agent.offer(&order).await;
    until(|| stepped(&agent, &order, "health_wait")).await;
    let before = agent.reports().len();
    agent.offer(&order).await;
    let reports = agent.reports();
    assert_eq!(reports.len(), before + 1);
    assert!(
        matches!(&reports[before].event, Some(Event::Progressed(progressed)) if progressed.step == "health_wait")
    );
    agent.idle().await;
    assert_eq!(code(&agent.finished(&order).unwrap()), "HEALTH_DEADLINE");
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn f21_orderly_stops_of_the_agent_do_not_count_against_an_attempt() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let order = samples::order(1, &[("web", "v1")]);
    for _ in 0..6 {
        let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
        agent.offer(&order).await;
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert!(agent.workshop.is_busy());
        agent.down().await;
    }
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.idle().await;
    let finished = agent.finished(&order).unwrap();
    assert_eq!(finished.result(), Wire::Succeeded, "{finished:?}");
    agent.down().await;
}

fn mount(path: &str) -> MountSpec {
    MountSpec::Bind {
        source: path.to_owned(),
        target: "/mounted".to_owned(),
        read_only: false,
    }
}

/// A look that never comes back stands for a file system that hangs.
#[tokio::test]
async fn r14_a_path_that_hangs_is_refused_for_now_and_other_orders_are_served() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let policy = HostPolicy {
        allowed_host_paths: vec![dir.path().to_owned()],
        ..HostPolicy::default()
    };
    let agent = Agent::start_with(&host, dir.path(), &samples::clock(), policy).await;
    let data = dir.path().join("data");
    let mounting = |fence| {
        let mut manifest = samples::order(fence, &[("web", "v1")]).manifest;
        for spec in manifest.services.values_mut() {
            spec.volumes.push(mount(data.to_str().unwrap()));
        }
        samples::with_manifest(fence, manifest)
    };
    for (fence, looking, result) in [
        (1, Looking::Taking, Wire::Refused),
        (2, Looking::Making, Wire::Failed),
    ] {
        let (answer, question) = std::sync::mpsc::channel::<()>();
        let paths = &agent.workshop.shared.paths;
        let hangs = paths.within((samples::target_id(), looking), Duration::ZERO, move || {
            question.recv()
        });
        hangs.await.unwrap_err();
        let finished = agent.deploy(&mounting(fence)).await;
        assert_eq!(
            (finished.result(), code(&finished)),
            (result, "HOST_PATH_TIMEOUT")
        );
        assert!(FailureCode::HostPathTimeout.retryable());
        drop(answer);
        while paths
            .within((samples::target_id(), looking), Duration::from_mins(1), || ())
            .await
            .is_err()
        {
            tokio::task::yield_now().await;
        }
    }
    let finished = agent.deploy(&samples::order(3, &[("web", "v1")])).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{finished:?}");
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r14_a_session_does_not_wait_for_what_an_order_needs_to_be_looked_at() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let order = samples::order(1, &[("web", "slow")]);
    let (workshop, envelope) = (&*agent.workshop, samples::signed(&order));
    let looking = workshop.offers.lock().await;
    let offered = Work::offer(workshop, order.task_id, order.attempt, envelope).now_or_never();
    let stopped = Work::stop(workshop, order.task_id).now_or_never();
    assert!(offered.is_some() && stopped.is_some());
    drop(looking);
    until(|| agent.finished(&order).is_some()).await;
    let finished = agent.finished(&order).unwrap();
    assert_eq!(
        finished.result(),
        Wire::Stopped,
        "in the order in which it was asked: {finished:?}"
    );
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r4_an_order_that_the_hosts_policy_forbids_is_refused_with_a_packet() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let before = host.containers().len();
    let mut manifest = samples::order(1, &[("web", "v1")]).manifest;
    for spec in manifest.services.values_mut() {
        spec.volumes.push(mount("/"));
    }
    let order = samples::with_manifest(1, manifest);
    let finished = agent.deploy(&order).await;
    assert_eq!(finished.result(), Wire::Refused);
    assert_eq!(code(&finished), "ORDER_REFUSED");
    let summary = &finished.failure.as_ref().unwrap().summary;
    assert!(summary.contains("policy.allowed_host_paths"), "{summary}");
    assert_eq!(statement(&finished).predicate.result, EvidenceResult::Refused);
    assert_eq!(host.containers().len(), before);
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_hosts_settings_allowed_is_in_the_packet() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let policy = HostPolicy {
        allowed_capabilities: BTreeSet::from(["NET_ADMIN".to_owned()]),
        ..HostPolicy::default()
    };
    let agent = Agent::start_with(&host, dir.path(), &samples::clock(), policy).await;
    let mut manifest = samples::order(1, &[("web", "v1")]).manifest;
    for spec in manifest.services.values_mut() {
        spec.cap_add = vec!["NET_ADMIN".to_owned(), "CHOWN".to_owned()];
    }
    let finished = agent.deploy(&samples::with_manifest(1, manifest)).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{finished:?}");
    assert_eq!(
        statement(&finished).predicate.allowances,
        [Allowance::new("web", AllowedBy::Capabilities, "NET_ADMIN")]
    );
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r4_a_path_that_leads_elsewhere_once_the_order_was_taken_is_not_mounted() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let data = dir.path().join("data");
    let policy = HostPolicy {
        allowed_host_paths: vec![data.clone()],
        ..HostPolicy::default()
    };
    let agent = Agent::start_with(&host, dir.path(), &samples::clock(), policy).await;
    let before = host.containers().len();
    let away = HostError::new(sealift_common::failure::FailureCode::EngineUnavailable, "away");
    let mut manifest = samples::order(1, &[("web", "v1")]).manifest;
    for spec in manifest.services.values_mut() {
        spec.volumes.push(mount(data.join("app").to_str().unwrap()));
    }
    let order = samples::with_manifest(1, manifest);
    // The engine is away for a moment, so the order is taken and not yet carried out.
    host.fail("image", 3, away);
    agent.offer(&order).await;
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::symlink("/etc", data.join("app")).unwrap();
    agent.idle().await;
    let finished = agent.finished(&order).unwrap();
    assert_eq!(finished.result(), Wire::Failed);
    assert_eq!(code(&finished), "ORDER_REFUSED");
    assert_eq!(host.containers().len(), before);
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn t16_a_path_that_leads_elsewhere_once_the_container_was_made_is_not_mounted() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let data = dir.path().join("data");
    let policy = HostPolicy {
        allowed_host_paths: vec![data.clone()],
        ..HostPolicy::default()
    };
    let agent = Agent::start_with(&host, dir.path(), &samples::clock(), policy).await;
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    let before = host.containers().len();
    let mut manifest = samples::order(2, &[("web", "v1")]).manifest;
    for spec in manifest.services.values_mut() {
        spec.volumes.push(sealift_common::manifest::MountSpec::Bind {
            source: data.join("app").to_str().unwrap().to_owned(),
            target: "/app".to_owned(),
            read_only: false,
        });
    }
    let order = samples::with_manifest(2, manifest);
    // Engines follow the path when the container is started: after the old one has stopped.
    let away = HostError::new(sealift_common::failure::FailureCode::EngineUnavailable, "away");
    host.fail("stop", 3, away);
    agent.offer(&order).await;
    while host.containers().len() == before {
        tokio::task::yield_now().await;
    }
    std::fs::create_dir(&data).unwrap();
    std::os::unix::fs::symlink("/etc", data.join("app")).unwrap();
    agent.idle().await;
    let finished = agent.finished(&order).unwrap();
    assert_eq!(finished.result(), Wire::Failed);
    assert_eq!(code(&finished), "ORDER_REFUSED");
    assert_eq!(host.containers().len(), before, "the old set runs");
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn f8_an_agent_whose_journal_failed_stays_connected_with_what_it_knows() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.deploy(&samples::order(7, &[("web", "v1")])).await;
    let workshop = &*agent.workshop;
    let next = Work::next_report(workshop);
    assert_eq!(next, Work::next_report(&*agent.workshop));
    let full = JournalError::Damaged("no space left on device".to_owned());
    workshop.shared.journal.fail(&full);
    assert_eq!(
        Work::fences(workshop).unwrap(),
        [(samples::target_id(), Fence(7))]
    );
    assert_eq!(Work::next_report(workshop), next);
    assert_eq!(Work::pending_reports(workshop, 0, 10).await.unwrap(), []);
    Work::acknowledge(workshop, 1).await.unwrap();
    agent.offer(&samples::order(8, &[("web", "v2")])).await;
    assert!(workshop.has_failed() && !workshop.is_busy());
    let facts = workshop.facts().borrow().clone();
    assert!(
        facts
            .degraded
            .iter()
            .any(|found| found.detail.contains("no space left"))
    );
    crate::agent::failed_for_long(workshop).await;
    agent.down().await;
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    assert_eq!(Work::next_report(&*agent.workshop), next);
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn what_a_new_container_says_is_in_the_log_also_after_a_restart_of_the_agent() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let order = samples::order(1, &[("web", "slow")]);
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.offer(&order).await;
    until(|| stepped(&agent, &order, "health_wait")).await;
    agent.down().await;
    let id = ours(&host)[0].id.clone();
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let mut logs = agent.workshop.take_logs().unwrap();
    agent.idle().await;
    let mut said = Vec::new();
    while let Ok(record) = logs.try_recv() {
        said.extend((record.source == "web").then_some(record.text));
    }
    assert_eq!(said, [format!("{id} says hello")]);
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn a_packet_says_when_lines_of_its_attempt_may_be_lost() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    for (fence, breaks) in [(1, false), (2, true)] {
        let order = samples::order(fence, &[("web", "v1")]);
        agent.offer(&order).await;
        if breaks {
            Work::lines_lost(&*agent.workshop, order.task_id, order.attempt);
        }
        agent.idle().await;
        let finished = agent.finished(&order).unwrap();
        assert_eq!(statement(&finished).predicate.log_truncated, breaks);
    }
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r10_one_slow_answer_does_not_undo_what_was_healthy() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    let order = samples::order(2, &[("web", "v2")]);
    agent.offer(&order).await;
    until(|| stepped(&agent, &order, "health_wait")).await;
    // What is next asked for in this way is what the old set does, beside the record that the new one is healthy.
    host.fail("list", 2, HostError::new(FailureCode::EngineTimeout, "slow"));
    agent.idle().await;
    let finished = agent.finished(&order).unwrap();
    assert_eq!(finished.result(), Wire::Succeeded, "{finished:?}");
    agent.down().await;
}
