//! Hooks: their turn, their failures, and what becomes of them when the agent is away.

use sealift_common::{
    evidence::HookResult,
    hook::{HookSpec, HookWhen, OnFailure},
    swap::Swap,
};

use super::*;
use crate::labels;

fn with(order: &Order<Manifest>, hooks: &[HookSpec]) -> Order<Manifest> {
    let manifest = Manifest {
        hooks: hooks.to_vec(),
        ..order.manifest.clone()
    };
    let mut other = samples::with_manifest(order.fence.0, manifest);
    other.swap = order.swap;
    other
}

fn hook(when: HookWhen, version: &str) -> HookSpec {
    samples::hook(&when.as_str().replace('_', "-"), when, version)
}

fn results(finished: &Finished) -> Vec<(HookWhen, HookResult)> {
    let runs = statement(finished).predicate.hooks;
    runs.iter().map(|run| (run.when, run.result)).collect()
}

fn hooks_of(host: &FakeHost) -> Vec<FakeContainer> {
    let mut all = ours(host);
    all.retain(|container| container.labels.contains_key(labels::HOOK));
    all
}

#[tokio::test(start_paused = true)]
async fn r3_hooks_run_in_their_turn_and_each_is_proven() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let hooks = HookWhen::ALL.iter().map(|when| hook(*when, "done"));
    let hooks: Vec<_> = hooks.collect();
    for (fence, swap) in [
        (1, Swap::InPlace),
        (2, Swap::InPlace),
        (3, Swap::BlueGreen { bake_ms: 500 }),
    ] {
        let mut order = with(&samples::order(fence, &[("web", "v1")]), &hooks);
        order.swap = swap;
        let finished = agent.deploy(&order).await;
        assert_eq!(finished.result(), Wire::Succeeded, "{finished:?}");
        let wanted = HookWhen::ALL.iter().map(|when| (*when, HookResult::Succeeded));
        assert_eq!(results(&finished), wanted.collect::<Vec<_>>());
        assert_eq!(ours(&host).len(), 1, "no hook is left");
        statement(&finished)
            .predicate
            .check_order(&order, statement(&finished).predicate.order_digest)
            .unwrap();
    }
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r10_a_hook_that_fails_or_takes_too_long_ends_with_the_old_set() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    let cases = [
        (HookWhen::PreDeploy, "crash", "HOOK_FAILED", 1),
        (HookWhen::PreDeploy, "v1", "HOOK_TIMEOUT", 1),
        (HookWhen::Switch, "crash", "HOOK_FAILED", 2),
        (HookWhen::PostDeploy, "crash", "HOOK_FAILED", 3),
        (HookWhen::PostDeploy, "v1", "HOOK_TIMEOUT", 4),
    ];
    for (fence, (when, version, wanted, started)) in (2..).zip(cases) {
        let order = with(&samples::order(fence, &[("web", "v2")]), &[hook(when, version)]);
        let finished = agent.deploy(&order).await;
        // A switch that cannot be undone is told: its way back fails as its way there did.
        let told = if when == HookWhen::Switch {
            "RESTORE_FAILED"
        } else {
            wanted
        };
        assert_eq!(code(&finished), told, "{finished:?}");
        assert_eq!(running(&host), set(&[("web", "v1")]));
        assert_eq!(ours(&host).len(), 1, "no hook is left");
        assert_eq!(ours(&host)[0].started, started, "{when} {version}");
    }
    let mut harmless = hook(HookWhen::PreDeploy, "crash");
    harmless.on_failure = OnFailure::Continue;
    let order = with(&samples::order(9, &[("web", "v2")]), &[harmless]);
    let finished = agent.deploy(&order).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{finished:?}");
    assert_eq!(results(&finished), [(HookWhen::PreDeploy, HookResult::Failed)]);
    agent.down().await;
}

/// A seed that runs again is data lost: an agent that was enrolled anew knows nothing, but the host does.
#[tokio::test(start_paused = true)]
async fn a_hook_is_told_of_a_first_deployment_only_where_nothing_says_that_there_was_another() {
    let lost = || tempfile::tempdir().unwrap();
    let seed = |fence| {
        with(
            &samples::order(fence, &[("web", "v1")]),
            &[hook(HookWhen::PreDeploy, "v2")],
        )
    };
    let told_first = async |host: &FakeHost, dir: &Path, fence| {
        let agent = Agent::start(host, dir, &samples::clock()).await;
        agent.offer(&seed(fence)).await;
        until(|| hooks_of(host).iter().any(|hook| hook.running)).await;
        let told = hooks_of(host)[0].environment["SEALIFT_FIRST"].clone();
        agent.workshop.stop(seed(fence).task_id).await;
        agent.idle().await;
        agent.down().await;
        told
    };
    let (host, dir) = (engine(), lost());
    assert_eq!(told_first(&host, dir.path(), 1).await, "true");
    assert_eq!(
        told_first(&host, dir.path(), 2).await,
        "true",
        "nothing came of it"
    );
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let deployed = agent.deploy(&samples::order(3, &[("web", "v1")])).await;
    assert_eq!(deployed.result(), Wire::Succeeded, "{deployed:?}");
    agent.down().await;
    assert_eq!(told_first(&host, dir.path(), 4).await, "false");
    let anew = lost();
    assert_eq!(told_first(&host, anew.path(), 5).await, "false", "a container");
    let (other_host, anew) = (engine(), lost());
    let stickers = "stickers/web-1.staging";
    std::fs::create_dir_all(anew.path().join(stickers)).unwrap();
    for entry in std::fs::read_dir(dir.path().join(stickers)).unwrap() {
        let from = entry.unwrap();
        std::fs::copy(from.path(), anew.path().join(stickers).join(from.file_name())).unwrap();
    }
    assert_eq!(
        told_first(&other_host, anew.path(), 6).await,
        "false",
        "a sticker"
    );
}

/// An agent goes down while the hook of its order runs; gives the order.
async fn goes_down_over_a_hook(host: &FakeHost, dir: &Path) -> Order<Manifest> {
    let order = with(
        &samples::order(1, &[("web", "v1")]),
        &[hook(HookWhen::PreDeploy, "v2")],
    );
    let agent = Agent::start(host, dir, &samples::clock()).await;
    agent.offer(&order).await;
    until(|| hooks_of(host).iter().any(|hook| hook.running)).await;
    agent.down().await;
    order
}

#[tokio::test(start_paused = true)]
async fn a_hook_runs_on_while_the_agent_is_away_and_is_waited_for_again() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let order = goes_down_over_a_hook(&host, dir.path()).await;
    assert!(hooks_of(&host)[0].running, "it goes on without the agent");
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let id = hooks_of(&host)[0].id.clone();
    tokio::time::sleep(Duration::from_secs(1)).await;
    host.tamper(&id, |hook| hook.running = false);
    agent.idle().await;
    let finished = agent.finished(&order).unwrap();
    assert_eq!(finished.result(), Wire::Succeeded, "{finished:?}");
    assert_eq!(results(&finished), [(HookWhen::PreDeploy, HookResult::Succeeded)]);
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r14_a_stop_ends_a_hook_at_once() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let order = with(
        &samples::order(1, &[("web", "v1")]),
        &[hook(HookWhen::PostDeploy, "v2")],
    );
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.offer(&order).await;
    until(|| hooks_of(&host).iter().any(|hook| hook.running)).await;
    agent.workshop.stop(order.task_id).await;
    agent.idle().await;
    let finished = agent.finished(&order).unwrap();
    assert_eq!(finished.result(), Wire::Stopped, "{finished:?}");
    assert_eq!(
        results(&finished),
        [(HookWhen::PostDeploy, HookResult::Interrupted)]
    );
    assert!(ours(&host).is_empty());
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn t16_a_host_that_runs_no_hooks_refuses_the_order() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let policy = HostPolicy {
        allow_hooks: crate::policy::AllowHooks::Never,
        ..HostPolicy::default()
    };
    let agent = Agent::start_with(&host, dir.path(), &samples::clock(), policy).await;
    let order = with(
        &samples::order(1, &[("web", "v1")]),
        &[hook(HookWhen::PreDeploy, "done")],
    );
    let finished = agent.deploy(&order).await;
    assert_eq!(finished.result(), Wire::Refused);
    assert_eq!(code(&finished), "ORDER_REFUSED");
    assert!(ours(&host).is_empty());
    agent.down().await;
}

fn with_all(order: Order<Manifest>) -> Order<Manifest> {
    // What ran before had none.
    if order.fence == Fence(1) {
        return order;
    }
    let hooks = HookWhen::ALL.iter().map(|when| hook(*when, "done"));
    with(&order, &hooks.collect::<Vec<_>>())
}

#[tokio::test(start_paused = true)]
async fn r10_death_at_every_effect_of_a_swap_with_hooks_ends_with_a_whole_set() {
    for version in ["v2", "ill"] {
        for at in 1..=28 {
            for after in [false, true] {
                super::crashes::crash_case_of(with_all, version, &[(at, after)]).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn r10_death_at_every_effect_of_a_switch_and_its_way_back_ends_with_a_whole_set() {
    let shape = |order: Order<Manifest>| {
        let mut order = super::swaps::blue_green(order);
        if order.fence != Fence(1) {
            let hooks = [
                hook(HookWhen::Switch, "done"),
                hook(HookWhen::PostDeploy, "crash"),
            ];
            order = with(&order, &hooks);
        }
        order
    };
    for at in 1..=30 {
        for after in [false, true] {
            super::crashes::crash_case_of(shape, "v2", &[(at, after)]).await;
        }
    }
}

/// That nothing is under way says little where the journal is not known, or the agent goes down, or Compose is missing.
#[tokio::test(start_paused = true)]
async fn r10_no_hook_is_taken_away_whose_attempt_may_go_on() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    goes_down_over_a_hook(&host, dir.path()).await;

    // The journal cannot be used: it is not known whose the hook is.
    let file = dir.path().join(crate::journal::FILE_NAME);
    let kept = std::fs::read(&file).unwrap();
    std::fs::write(&file, b"not a database, but long enough to look like one").unwrap();
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    observed(&agent).await;
    assert!(hooks_of(&host)[0].running);
    agent.down().await;
    std::fs::write(&file, kept).unwrap();

    // The attempt waits, as one does whose Compose is gone.
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    lock(&agent.workshop.shared.active).clear();
    observed(&agent).await;
    assert!(hooks_of(&host)[0].running);
    agent.down().await;

    // Another agent's journal has no such attempt: nobody will ever look after the hook.
    let other = tempfile::tempdir().unwrap();
    let agent = Agent::start(&host, other.path(), &samples::clock()).await;
    until(|| hooks_of(&host).is_empty()).await;
    agent.down().await;
}

/// Waits until everything was looked at.
async fn observed(agent: &Agent) {
    let mut feed = agent.workshop.take_observations().unwrap();
    while feed.try_recv().is_ok() {}
    agent.workshop.shared.observer.request_all(Vec::new());
    feed.recv().await.unwrap();
}
