//! What a swap asks of the engine. Engine and agents share the cores of a host, so calls that nobody needs make every swap slower (P1).

use super::*;

const ENOUGH: Duration = Duration::from_secs(2);

/// Deploys `first`, then records the calls that `second` takes until nothing is left to do.
async fn calls(first: &Order<Manifest>, second: &Order<Manifest>) -> Vec<&'static str> {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    assert_eq!(agent.deploy(first).await.result(), Wire::Succeeded);
    // The observer's look at what was deployed is over.
    tokio::time::sleep(ENOUGH).await;
    let (progress, _lines) = mpsc::channel(1);
    let image = samples::image("v2");
    host.pull(&image, &progress, ENOUGH).await.unwrap();
    host.record_calls();
    agent.offer(second).await;
    while agent.finished(second).is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    agent.idle().await;
    let calls = host.recorded_calls();
    assert_eq!(agent.finished(second).unwrap().result(), Wire::Succeeded);
    agent.down().await;
    calls
}

#[tokio::test(start_paused = true)]
async fn p1_a_plain_swap_asks_the_engine_no_more_than_it_must() {
    let first = samples::order(1, &[("web", "v1")]);
    let mut second = samples::order(2, &[("web", "v2")]);
    second.limits.min_healthy_ms = 2_000;
    assert_eq!(
        calls(&first, &second).await,
        [
            // The ordered digest is there.
            "image",
            "ensure_network",
            "create",
            // What ran before, with the digest that it had.
            "list",
            "inspect",
            "image",
            "stop",
            "set_restart",
            "start",
            // Health at the start, in between and at the end; then the old set once more.
            "inspect",
            "logs",
            "inspect",
            "inspect",
            "list",
            // From here on the packet is on its way.
            "remove",
            "networks",
        ]
    );
}

#[tokio::test(start_paused = true)]
async fn p1_a_swap_of_three_services_asks_the_engine_for_each_once() {
    let services = |version: &'static str| [("a", version), ("b", version), ("c", version)];
    let mut second = samples::order(2, &services("v2"));
    second.limits.min_healthy_ms = 1_000;
    let calls = calls(&samples::order(1, &services("v1")), &second).await;
    let count = |wanted: &str| calls.iter().filter(|call| **call == wanted).count();
    // Three old containers looked at, and three new ones twice.
    assert_eq!(count("inspect"), 9, "{calls:?}");
    // The new image and the old one.
    assert_eq!(count("image"), 2, "{calls:?}");
    assert_eq!((count("list"), count("ensure_network")), (2, 1), "{calls:?}");
    assert_eq!((count("create"), count("start"), count("stop")), (3, 3, 3));
    assert_eq!(calls.len(), 33, "{calls:?}");
}

#[tokio::test(start_paused = true)]
async fn r10_an_old_set_that_an_engine_restart_brought_back_is_down_before_the_commit() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    let old = ours(&host)[0].id.clone();
    let order = samples::order(2, &[("web", "v2")]);
    agent.offer(&order).await;
    while !host
        .containers()
        .iter()
        .any(|container| container.id == old && !container.running)
    {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    host.tamper(&old, |container| container.running = true);
    while agent.finished(&order).is_none() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(agent.finished(&order).unwrap().result(), Wire::Succeeded);
    agent.idle().await;
    assert_eq!(running(&host), set(&[("web", "v2")]));
    agent.down().await;
}
