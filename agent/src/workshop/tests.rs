//! The workshop on the fake engine: every way an order can go, and death at every effect.

use std::{path::Path, time::Duration};

use sealift_common::{
    digest::Digest,
    evidence::{EvidenceResult, Packet, Statement},
    failure::FailureCode,
    id::AgentId,
    keys::SigningKey,
    manifest::{DependencyCondition, Manifest, RestartPolicy},
    order::{Fence, sign_order},
    spiffe::SpiffeId,
    sticker::Sticker,
    time::TestClock,
};
use sealift_proto::agent::v1::{Finished, Report, finished::Result as Wire};

use super::*;
use crate::{
    bindings::Bindings,
    host::{
        HostError,
        fake::{Behaviour, FakeContainer, FakeHost},
    },
    samples,
    work::Work,
};

mod compose;
mod costs;
mod crashes;
mod hooks;
mod images;
mod observed;
mod offers;
mod program;
mod swaps;

const EVIDENCE_SEED: [u8; 32] = [9; 32];

struct Agent {
    workshop: Arc<Workshop<FakeHost>>,
    shutdown: CancellationToken,
    tracker: TaskTracker,
}

impl Agent {
    async fn start(host: &FakeHost, dir: &Path, clock: &TestClock) -> Self {
        Self::start_with(host, dir, clock, HostPolicy::default()).await
    }

    async fn start_with(host: &FakeHost, dir: &Path, clock: &TestClock, policy: HostPolicy) -> Self {
        Self::start_on(host, dir, clock, policy, None).await
    }

    async fn start_on(
        host: &FakeHost,
        dir: &Path,
        clock: &TestClock,
        policy: HostPolicy,
        compose: Option<Search>,
    ) -> Self {
        let shutdown = CancellationToken::new();
        let tracker = TaskTracker::new();
        let workshop = Workshop::start(WorkshopParts {
            host: host.clone(),
            state_dir: dir.to_owned(),
            clock: Arc::new(clock.clone()),
            identity: identity(),
            compose: compose.unwrap_or_else(|| samples::no_compose(dir)),
            policy,
            prune: PrunePolicy::default(),
            program: ProgramParts::default(),
            hostname: "host".to_owned(),
            shutdown: shutdown.clone(),
            tracker: tracker.clone(),
        })
        .await;
        Self {
            workshop,
            shutdown,
            tracker,
        }
    }

    async fn offer(&self, order: &Order<Manifest>) {
        self.workshop
            .offer(order.task_id, order.attempt, samples::signed(order))
            .await;
    }

    async fn idle(&self) {
        while self.workshop.is_busy() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The final report about `order`.
    fn finished<M>(&self, order: &Order<M>) -> Option<Finished> {
        self.reports().into_iter().rev().find_map(|report| {
            let ours = report.task_id == order.task_id.to_string() && report.attempt == order.attempt;
            match report.event {
                Some(Event::Finished(finished)) if ours => Some(finished),
                _ => None,
            }
        })
    }

    fn reports(&self) -> Vec<Report> {
        self.workshop.outbox().pending(0, 10_000).unwrap()
    }

    async fn deploy(&self, order: &Order<Manifest>) -> Finished {
        self.offer(order).await;
        self.idle().await;
        self.finished(order).unwrap()
    }

    async fn down(self) {
        self.shutdown.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

fn identity() -> AgentIdentity {
    AgentIdentity {
        agent_id: samples::agent_id(),
        bindings: Bindings::fixed(vec![samples::binding()]),
        order_keys: vec![samples::order_key().public()],
        evidence_key: SigningKey::from_seed(&EVIDENCE_SEED),
        spiffe_id: SpiffeId::agent("acme".parse().unwrap(), samples::agent_id()),
        certificate_serial: Box::new(|| "0a".to_owned()),
    }
}

fn engine() -> FakeHost {
    let host = FakeHost::default();
    for version in ["v1", "v2", "v3"] {
        host.publish(samples::image(version).digest, Behaviour::Healthy);
    }
    host.publish(samples::image("crash").digest, Behaviour::Exits(3));
    host.publish(samples::image("done").digest, Behaviour::Exits(0));
    host.publish(samples::image("ill").digest, Behaviour::Unhealthy);
    host.publish(samples::image("slow").digest, Behaviour::Starting);
    host.add_foreign("foreign");
    host.lend(swaps::EDGE);
    host
}

fn statement(finished: &Finished) -> Statement {
    let key = SigningKey::from_seed(&EVIDENCE_SEED).public();
    Packet::open(&finished.packet, &key).unwrap()
}

/// (service, image, fence) of what runs, sorted; with the policies.
fn ours(host: &FakeHost) -> Vec<FakeContainer> {
    host.containers()
        .into_iter()
        .filter(|container| !container.labels.is_empty())
        .collect()
}

fn running(host: &FakeHost) -> Vec<(String, Digest)> {
    let mut list: Vec<_> = ours(host)
        .into_iter()
        .filter(|container| container.running)
        .map(|container| {
            assert_eq!(container.restart, RestartPolicy::Always, "{}", container.name);
            (
                container.labels[crate::labels::SERVICE].clone(),
                container.image.digest,
            )
        })
        .collect();
    list.sort();
    list
}

fn set(services: &[(&str, &str)]) -> Vec<(String, Digest)> {
    let mut list: Vec<_> = services
        .iter()
        .map(|(name, version)| ((*name).to_owned(), samples::image(version).digest))
        .collect();
    list.sort();
    list
}

fn code(finished: &Finished) -> &str {
    finished.failure.as_ref().map_or("", |failure| &failure.code)
}

#[tokio::test(start_paused = true)]
async fn r3_r15_a_release_replaces_the_one_before_and_is_proven() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let first = samples::order(1, &[("web", "v1"), ("db", "v1")]);
    let one = agent.deploy(&first).await;
    assert_eq!(one.result(), Wire::Succeeded, "{one:?}");
    let second = samples::order(2, &[("web", "v2")]);
    let began = tokio::time::Instant::now();
    let two = agent.deploy(&second).await;
    assert_eq!(two.result(), Wire::Succeeded, "{two:?}");
    assert!(began.elapsed() >= Duration::from_millis(500) && began.elapsed() < Duration::from_millis(800));

    assert_eq!(running(&host), set(&[("web", "v2")]));
    assert_eq!(ours(&host).len(), 1, "the old set is removed");
    let sticker = Sticker::from_file(&two.sticker).unwrap();
    let before = Sticker::from_file(&one.sticker).unwrap();
    assert_eq!(sticker.previous, Some(before.digest().unwrap()));
    let said = statement(&two);
    assert_eq!(said.predicate.result, EvidenceResult::Succeeded);
    assert_eq!(said.predicate.sticker_digest, Some(sticker.digest().unwrap()));
    assert_eq!(said.predicate.previous.len(), 2);
    let order_digest = Digest::of(&samples::signed(&second));
    said.predicate.check_order(&second, order_digest).unwrap();
    assert!(
        host.containers()
            .iter()
            .any(|container| container.name == "foreign" && container.running)
    );
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r10_a_release_that_does_not_work_leaves_the_one_before_running() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let good = samples::order(1, &[("web", "v1"), ("db", "v1")]);
    agent.deploy(&good).await;
    let sticker_before = std::fs::read_dir(dir.path().join("stickers/web-1.staging"))
        .unwrap()
        .count();
    let cases = [
        (2, "crash", FailureCode::WorkloadExited),
        (3, "ill", FailureCode::Unhealthy),
        (4, "slow", FailureCode::HealthDeadline),
        (5, "nowhere", FailureCode::ImageNotFound),
    ];
    for (fence, version, wanted) in cases {
        let bad = samples::order(fence, &[("web", version), ("db", "v2")]);
        let finished = agent.deploy(&bad).await;
        assert_eq!(finished.result(), Wire::Failed);
        assert_eq!(code(&finished), wanted.as_str(), "{version}");
        assert_eq!(running(&host), set(&[("web", "v1"), ("db", "v1")]), "{version}");
        assert_eq!(ours(&host).len(), 2, "{version}");
        let said = statement(&finished);
        assert_eq!(said.subject.len(), 1);
        assert_eq!(said.subject[0].digest(), Ok(samples::image("v1").digest));
    }
    assert_eq!(sticker_before, 1);
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r10_a_first_release_that_fails_leaves_nothing() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let finished = agent.deploy(&samples::order(1, &[("web", "crash")])).await;
    assert_eq!(finished.result(), Wire::Failed);
    assert_eq!(ours(&host).len(), 0);
    assert!(statement(&finished).subject[0].name.starts_with("release:"));
    agent.idle().await;
    assert_eq!(host.network_names(), Vec::<String>::new());
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r4_agent_refuses_orders_that_are_forged_foreign_late_or_stale() {
    let (host, dir, clock) = (engine(), tempfile::tempdir().unwrap(), samples::clock());
    let agent = Agent::start(&host, dir.path(), &clock).await;
    let good = samples::order(10, &[("web", "v1")]);
    agent.deploy(&good).await;
    let before = host.containers().len();

    let mut cases = Vec::new();
    let forged = samples::order(20, &[("web", "v2")]);
    let foreign_key = sign_order(&forged, &SigningKey::from_seed(&[3; 32])).unwrap();
    cases.push((forged.clone(), foreign_key, "ORDER_REFUSED"));
    let mut flipped = samples::signed(&forged);
    flipped[40] ^= 1;
    cases.push((samples::order(21, &[]), flipped, "ORDER_REFUSED"));
    let mut other = samples::order(22, &[("web", "v2")]);
    other.agent_id = AgentId::new(samples::at(5));
    cases.push((other.clone(), samples::signed(&other), "ORDER_REFUSED"));
    let mut other = samples::order(23, &[("web", "v2")]);
    other.target_id = samples::id(77);
    cases.push((other.clone(), samples::signed(&other), "ORDER_REFUSED"));
    let mut other = samples::order(24, &[("web", "v2")]);
    other.environment = "prod".parse().unwrap();
    cases.push((other.clone(), samples::signed(&other), "ORDER_REFUSED"));
    let mut late = samples::order(25, &[("web", "v2")]);
    late.not_before = samples::at(-7200);
    late.expires_at = samples::at(-3600);
    cases.push((late.clone(), samples::signed(&late), "ORDER_EXPIRED"));
    let mut early = samples::order(26, &[("web", "v2")]);
    early.not_before = samples::at(3600);
    cases.push((early.clone(), samples::signed(&early), "ORDER_REFUSED"));
    for fence in [9, 10] {
        let mut stale = samples::order(27 + fence, &[("web", "v2")]);
        stale.fence = Fence(fence);
        cases.push((stale.clone(), samples::signed(&stale), "ORDER_REFUSED"));
    }
    let mut mixed = samples::order(50, &[("web", "v2")]);
    mixed.release.content = Digest::of(b"another manifest");
    cases.push((mixed.clone(), samples::signed(&mixed), "ORDER_REFUSED"));
    let mut renamed = samples::order(51, &[("web", "v2")]);
    renamed.target = "other".parse().unwrap();
    cases.push((renamed.clone(), samples::signed(&renamed), "ORDER_REFUSED"));
    let swapped = samples::order(52, &[("web", "v2")]);
    cases.push((
        samples::order(53, &[]),
        samples::signed(&swapped),
        "ORDER_REFUSED",
    ));

    for (number, (order, bytes, wanted)) in cases.into_iter().enumerate() {
        agent.workshop.offer(order.task_id, order.attempt, bytes).await;
        agent.idle().await;
        let finished = agent.finished(&order).unwrap_or_else(|| panic!("case {number}"));
        assert_eq!(finished.result(), Wire::Refused, "case {number}");
        assert_eq!(code(&finished), wanted, "case {number}");
    }
    assert_eq!(host.containers().len(), before);
    assert_eq!(
        agent.workshop.fences().unwrap(),
        [(samples::target_id(), Fence(10))]
    );
    assert_eq!(running(&host), set(&[("web", "v1")]));
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn t11_a_repeated_order_is_answered_and_not_carried_out_again() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let first = samples::order(1, &[("web", "v1")]);
    let answer = agent.deploy(&first).await;
    agent.deploy(&samples::order(2, &[("web", "v2")])).await;
    let reports = agent.reports().len();
    agent.offer(&first).await;
    assert_eq!(
        agent.reports().len(),
        reports,
        "the answer still waits in the outbox"
    );
    let next = Work::next_report(&*agent.workshop);
    agent.workshop.outbox().acknowledge(next - 1).unwrap();
    assert_eq!(agent.reports().len(), 0);
    agent.offer(&first).await;
    agent.idle().await;
    assert_eq!(agent.finished(&first).unwrap(), answer);
    assert_eq!(agent.reports()[0].number, next);
    assert_eq!(running(&host), set(&[("web", "v2")]));
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r14_a_stop_restores_at_any_moment() {
    for after_ms in [0, 1, 100, 400] {
        let (host, dir) = (engine(), tempfile::tempdir().unwrap());
        let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
        agent.deploy(&samples::order(1, &[("web", "v1")])).await;
        let order = samples::order(2, &[("web", "v2")]);
        agent.offer(&order).await;
        tokio::time::sleep(Duration::from_millis(after_ms)).await;
        agent.workshop.stop(order.task_id).await;
        agent.idle().await;
        let finished = agent.finished(&order).unwrap();
        assert_eq!(finished.result(), Wire::Stopped, "{after_ms}");
        assert_eq!(statement(&finished).predicate.result, EvidenceResult::Cancelled);
        assert_eq!(running(&host), set(&[("web", "v1")]), "{after_ms}");
        assert_eq!(ours(&host).len(), 1);
        agent.down().await;
    }
}

#[tokio::test(start_paused = true)]
async fn dependencies_are_healthy_before_what_needs_them_starts() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let mut order = samples::order(1, &[("app", "v1"), ("base", "slow")]);
    let mut manifest = order.manifest.clone();
    manifest
        .services
        .get_mut("app")
        .unwrap()
        .depends_on
        .insert("base".parse().unwrap(), DependencyCondition::ServiceHealthy);
    order = samples::with_manifest(1, manifest);
    let finished = agent.deploy(&order).await;
    assert_eq!(code(&finished), "HEALTH_DEADLINE");
    assert_eq!(ours(&host).len(), 0);
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn a_restore_that_the_engine_refuses_says_so() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    let refused = HostError::new(FailureCode::PortInUse, "port is already allocated");
    host.fail("start", 100, refused);
    let finished = agent.deploy(&samples::order(2, &[("web", "v2")])).await;
    assert_eq!(finished.result(), Wire::Failed);
    assert_eq!(code(&finished), "RESTORE_FAILED");
    let detail = &finished.failure.as_ref().unwrap().detail;
    assert!(detail.contains("PORT_IN_USE"), "{detail}");
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn f4_an_engine_that_is_away_for_a_moment_is_waited_for() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    for call in ["stop", "start", "create", "set_restart", "inspect", "list"] {
        let away = HostError::new(FailureCode::EngineUnavailable, "connection refused");
        host.fail(call, 4, away);
    }
    let finished = agent.deploy(&samples::order(2, &[("web", "v2")])).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{finished:?}");
    agent.down().await;
}

/// Looks again and again until something is so.
async fn within(limit: Duration, is_so: impl Fn() -> bool) {
    let looks = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(limit, looks).await.unwrap();
}

/// The same where time is only told, and an hour of it passes in an instant.
async fn until(is_so: impl Fn() -> bool) {
    within(Duration::from_hours(1), is_so).await;
}

/// Whether a step of `order` was reported.
fn stepped(agent: &Agent, order: &Order<Manifest>, wanted: &str) -> bool {
    agent.reports().iter().any(|report| {
        report.task_id == order.task_id.to_string()
            && matches!(&report.event, Some(Event::Progressed(progressed)) if progressed.step == wanted)
    })
}

#[tokio::test(start_paused = true)]
async fn r10_a_call_that_failed_and_took_effect_later_is_noticed_by_the_restore() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    let old = ours(&host)[0].id.clone();
    let hangs = HostError::new(FailureCode::EngineTimeout, "stop took too long");
    host.fail("stop", 10_000, hangs);
    let order = samples::order(2, &[("web", "v2")]);
    agent.offer(&order).await;
    until(|| stepped(&agent, &order, "switching")).await;
    let away = HostError::new(FailureCode::EngineUnavailable, "no answer");
    host.fail("list", 60, away);
    until(|| stepped(&agent, &order, "restoring")).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    host.tamper(&old, |container| container.running = false);
    agent.idle().await;
    let finished = agent.finished(&order).unwrap();
    assert_eq!(code(&finished), "ENGINE_TIMEOUT", "{finished:?}");
    assert_eq!(running(&host), set(&[("web", "v1")]));
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r10_an_old_set_that_falls_over_after_the_look_is_started_again() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    let old = ours(&host)[0].id.clone();
    let hangs = HostError::new(FailureCode::EngineTimeout, "stop took too long");
    host.fail("stop", 10_000, hangs);
    let order = samples::order(2, &[("web", "v2")]);
    agent.offer(&order).await;
    until(|| stepped(&agent, &order, "restoring")).await;
    // The look of the restore saw it running; now the stop takes effect.
    while ours(&host)
        .iter()
        .any(|one| one.restart == RestartPolicy::No && one.id == old)
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    host.tamper(&old, |container| container.running = false);
    agent.idle().await;
    let finished = agent.finished(&order).unwrap();
    assert_eq!(code(&finished), "ENGINE_TIMEOUT", "{finished:?}");
    assert_eq!(running(&host), set(&[("web", "v1")]));
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn t13_a_damaged_journal_takes_no_orders_and_says_so() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    std::fs::write(
        dir.path().join(crate::journal::FILE_NAME),
        b"not a database, but long enough to look like one",
    )
    .unwrap();
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let facts = agent.workshop.facts().borrow().clone();
    assert!(
        facts
            .degraded
            .iter()
            .any(|found| found.is(ConditionCode::AgentState) && found.detail.starts_with("journal: ")),
        "{facts:?}"
    );
    assert_eq!(facts.engine, "fake 1.0");
    agent.offer(&samples::order(1, &[("web", "v1")])).await;
    agent.idle().await;
    assert_eq!(ours(&host).len(), 0);
    assert_eq!(Work::next_report(&*agent.workshop), 1);
    assert!(agent.workshop.outbox().pending(0, 10).is_err());
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r9_reports_have_no_gap_and_survive_a_restart() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    let before = agent.reports();
    agent.down().await;
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    assert_eq!(agent.reports(), before);
    let numbers: Vec<u64> = before.iter().map(|report| report.number).collect();
    assert_eq!(numbers, (1..=numbers.len() as u64).collect::<Vec<_>>());
    agent.workshop.outbox().skip_to(100).unwrap();
    agent.deploy(&samples::order(2, &[("web", "v2")])).await;
    assert!(agent.reports().iter().any(|report| report.number == 101));
    agent.workshop.outbox().acknowledge(1_000).unwrap();
    agent.workshop.forget(|_| false).await;
    assert_eq!(agent.workshop.shared.journal.attempts().unwrap().len(), 0);
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn observations_tell_what_changed_on_the_host() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let mut feed = agent.workshop.take_observations().unwrap();
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    let project = samples::order(1, &[]).release.project;
    let quiet = loop {
        let seen = feed.recv().await.unwrap();
        if !seen.busy
            && seen
                .projects
                .values()
                .any(|project| !project.containers.is_empty())
        {
            break seen;
        }
    };
    let seen = quiet.project(&project).unwrap();
    assert!(seen.containers[0].unchanged);
    assert_eq!(seen.containers[0].digest, Some(samples::image("v1").digest));
    let id = seen.containers[0].id.clone();
    host.tamper(&id, |container| container.restart = RestartPolicy::No);
    let seen = feed.recv().await.unwrap();
    assert!(!seen.project(&project).unwrap().containers[0].unchanged);
    host.tamper(&id, |container| {
        container.restart = RestartPolicy::Always;
        container.running = false;
    });
    let seen = feed.recv().await.unwrap();
    let container = &seen.project(&project).unwrap().containers[0];
    assert!(container.unchanged);
    assert_eq!(container.state.as_str(), "exited");
    std::fs::remove_dir_all(dir.path().join("stickers")).unwrap();
    let seen = feed.recv().await.unwrap();
    assert_eq!(
        seen.project(&project).unwrap().sticker,
        sealift_common::observation::StickerObservation::Missing
    );
    agent.down().await;
}
