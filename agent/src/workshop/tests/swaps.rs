//! Swaps in which old and new containers run side by side: start-first services and blue/green sets.

use sealift_common::{
    manifest::{NetworkSpec, PortSpec, Protocol, UpdateOrder},
    swap::Swap,
};

use super::*;

/// The external network of these sets.
pub(super) const EDGE: &str = "edge-of-the-host";

/// The same order with `web` on an external network.
fn outward(order: &Order<Manifest>) -> Order<Manifest> {
    let mut manifest = order.manifest.clone();
    let edge = NetworkSpec {
        internal: false,
        external: Some(EDGE.to_owned()),
    };
    manifest.networks.insert("edge".parse().unwrap(), edge);
    if let Some(web) = manifest.services.get_mut("web") {
        web.networks
            .insert("edge".parse().unwrap(), vec!["shop".to_owned()]);
        web.networks.insert("default".parse().unwrap(), Vec::new());
    }
    samples::with_manifest(order.fence.0, manifest)
}

pub(super) fn blue_green(order: Order<Manifest>) -> Order<Manifest> {
    let mut order = outward(&order);
    order.swap = Swap::BlueGreen { bake_ms: 2_000 };
    order
}

pub(super) fn start_first(order: Order<Manifest>) -> Order<Manifest> {
    let mut manifest = order.manifest;
    if let Some(web) = manifest.services.get_mut("web") {
        web.update_order = UpdateOrder::StartFirst;
    }
    samples::with_manifest(order.fence.0, manifest)
}

/// The container of `web` with this version.
fn of_version(host: &FakeHost, version: &str) -> Option<FakeContainer> {
    let digest = samples::image(version).digest;
    ours(host).into_iter().find(|container| {
        container.image.digest == digest && container.labels[crate::labels::SERVICE] == "web"
    })
}

/// Whether a container of this version answers on the external network; `None` when there is no such container.
fn answers(host: &FakeHost, version: &str) -> Option<bool> {
    let container = of_version(host, version)?;
    Some(
        container.running && container.networks.get(EDGE) == Some(&vec!["web".to_owned(), "shop".to_owned()]),
    )
}

#[tokio::test(start_paused = true)]
async fn r10_the_old_container_of_a_start_first_service_runs_until_the_new_one_is_healthy() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    for (fence, version) in [(2, "slow"), (3, "ill")] {
        let finished = agent
            .deploy(&start_first(samples::order(fence, &[("web", version)])))
            .await;
        assert_eq!(finished.result(), Wire::Failed, "{finished:?}");
        assert_eq!(running(&host), set(&[("web", "v1")]));
        assert_eq!(
            of_version(&host, "v1").unwrap().started,
            1,
            "it was never stopped"
        );
    }
    host.record_calls();
    let finished = agent
        .deploy(&start_first(samples::order(4, &[("web", "v2")])))
        .await;
    assert_eq!(finished.result(), Wire::Succeeded, "{finished:?}");
    let calls = host.recorded_calls();
    let place = |wanted: &str| calls.iter().position(|call| *call == wanted);
    assert!(place("start") < place("stop"), "{calls:?}");
    assert_eq!(running(&host), set(&[("web", "v2")]));
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r3_a_restore_that_leaves_old_and_new_running_is_proven() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    let refused = HostError::new(FailureCode::EngineError, "cannot kill container");
    host.fail("stop", 100, refused.clone());
    host.fail("remove", 100, refused);
    let finished = agent
        .deploy(&start_first(samples::order(2, &[("web", "ill")])))
        .await;
    assert_eq!(code(&finished), "RESTORE_FAILED", "{finished:?}");
    assert_eq!(ours(&host).iter().filter(|one| one.running).count(), 2);
    let said = statement(&finished);
    assert_eq!(said.predicate.result, EvidenceResult::Failed);
    for version in ["v1", "ill"] {
        let digest = samples::image(version).digest;
        assert!(
            said.subject.iter().any(|subject| subject.digest() == Ok(digest)),
            "{version} runs: {said:?}"
        );
    }
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn r10_what_is_borrowed_and_not_there_is_found_before_anything_is_changed() {
    let (host, dir) = (FakeHost::default(), tempfile::tempdir().unwrap());
    for version in ["v1", "v2"] {
        host.publish(samples::image(version).digest, Behaviour::Healthy);
    }
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    let old = ours(&host);
    let finished = agent.deploy(&outward(&samples::order(2, &[("web", "v2")]))).await;
    assert_eq!(code(&finished), "CONTAINER_REJECTED", "{finished:?}");
    assert!(finished.failure.unwrap().summary.contains(EDGE));
    assert_eq!(ours(&host)[0].started, old[0].started, "it was never stopped");
    assert_eq!(running(&host), set(&[("web", "v1")]));
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn blue_green_moves_the_aliases_when_the_new_set_is_healthy_and_keeps_both_for_the_bake_time() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let one = outward(&samples::order(1, &[("web", "v1"), ("db", "v1")]));
    agent.deploy(&one).await;
    let order = blue_green(samples::order(2, &[("web", "v2"), ("db", "v2")]));
    let began = tokio::time::Instant::now();
    agent.offer(&order).await;
    let mut seen = Vec::new();
    while agent.finished(&order).is_none() {
        let both = (answers(&host, "v1"), answers(&host, "v2"));
        if seen.last() != Some(&both) {
            seen.push(both);
        }
        assert!(
            both.0 == Some(true) || both.1 == Some(true),
            "nobody answers: {seen:?}"
        );
        tokio::time::sleep(Duration::from_micros(100)).await;
    }
    agent.idle().await;
    let finished = agent.finished(&order).unwrap();
    assert_eq!(finished.result(), Wire::Succeeded, "{finished:?}");
    // Healthy for half a second, then two seconds side by side.
    assert!(began.elapsed() >= Duration::from_millis(2_500));
    for both in [(Some(true), Some(false)), (Some(false), Some(true))] {
        assert!(seen.contains(&both), "{seen:?}");
    }
    assert_eq!(answers(&host, "v1"), None);
    assert_eq!(running(&host), set(&[("web", "v2"), ("db", "v2")]));
    // Its project network is its own; that of the set before is gone.
    let networks = host.network_names();
    assert!(
        networks.len() == 1 && networks[0].ends_with("-default-2"),
        "{networks:?}"
    );
    assert_eq!(statement(&finished).predicate.previous.len(), 2);

    let three = outward(&samples::order(3, &[("web", "v3"), ("db", "v3")]));
    assert_eq!(
        agent.deploy(&three).await.result(),
        Wire::Succeeded,
        "and back in place"
    );
    let networks = host.network_names();
    assert!(
        networks.len() == 1 && networks[0].ends_with("-default"),
        "{networks:?}"
    );
    agent.down().await;
}

/// A blue/green swap that `spoil` meets during its bake. The old set never stopped.
async fn spoilt_in_the_bake(spoil: impl AsyncFnOnce(&Agent, &FakeHost, &Order<Manifest>)) -> Finished {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let services = |version: &'static str| [("web", version), ("db", version)];
    agent.deploy(&outward(&samples::order(1, &services("v1")))).await;
    let networks = host.network_names();
    let order = blue_green(samples::order(2, &services("v2")));
    agent.offer(&order).await;
    until(|| answers(&host, "v1") == Some(false)).await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(answers(&host, "v2"), Some(true));
    spoil(&agent, &host, &order).await;
    agent.idle().await;
    let finished = agent.finished(&order).unwrap();
    assert_eq!(running(&host), set(&services("v1")));
    assert!(ours(&host).iter().all(|container| container.started == 1));
    assert_eq!((answers(&host, "v1"), answers(&host, "v2")), (Some(true), None));
    assert_eq!(host.network_names(), networks);
    agent.down().await;
    finished
}

#[tokio::test(start_paused = true)]
async fn r10_a_new_set_that_falls_ill_during_the_bake_gives_the_aliases_back_at_once() {
    let finished = spoilt_in_the_bake(async |_, host, _| {
        host.publish(samples::image("v2").digest, Behaviour::Unhealthy);
    })
    .await;
    assert_eq!((finished.result(), code(&finished)), (Wire::Failed, "UNHEALTHY"));
}

#[tokio::test(start_paused = true)]
async fn r14_a_stop_during_the_bake_switches_back() {
    let finished = spoilt_in_the_bake(async |agent, _, order| agent.workshop.stop(order.task_id).await).await;
    assert_eq!(finished.result(), Wire::Stopped);
}

#[tokio::test(start_paused = true)]
async fn r4_a_blue_green_order_for_a_manifest_that_is_unfit_is_refused() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let mut manifest = outward(&samples::order(1, &[("web", "v1")])).manifest;
    for spec in manifest.services.values_mut() {
        spec.ports.push(PortSpec {
            container: 80,
            host: Some(8080),
            host_ip: None,
            protocol: Protocol::Tcp,
        });
    }
    let order = blue_green(samples::with_manifest(1, manifest));
    let finished = agent.deploy(&order).await;
    assert_eq!(
        (finished.result(), code(&finished)),
        (Wire::Refused, "ORDER_REFUSED")
    );
    assert_eq!(ours(&host).len(), 0);
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn a_network_that_loses_its_way_out_is_another_one_and_the_way_back_has_the_old_one() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let with_network = |fence, version: &str, internal| {
        let mut manifest = samples::order(fence, &[("web", version)]).manifest;
        for spec in manifest.services.values_mut() {
            spec.networks.insert("back".parse().unwrap(), Vec::new());
        }
        let network = NetworkSpec {
            internal,
            external: None,
        };
        manifest.networks.insert("back".parse().unwrap(), network);
        samples::with_manifest(fence, manifest)
    };
    let joined = || -> Vec<String> { ours(&host)[0].networks.keys().cloned().collect() };
    agent.deploy(&with_network(1, "v1", false)).await;
    let open = joined();
    agent.deploy(&with_network(2, "ill", true)).await;
    assert_eq!(joined(), open, "what ran before is back on its own");
    let finished = agent.deploy(&with_network(3, "v2", true)).await;
    assert_eq!(finished.result(), Wire::Succeeded);
    assert_ne!(joined(), open);
    assert_eq!(host.network_names(), joined(), "the one before is gone");
    agent.deploy(&with_network(4, "v1", false)).await;
    assert_eq!((joined(), host.network_names()), (open.clone(), open));
    agent.down().await;
}
