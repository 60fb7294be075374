//! Images that are taken away, and those that stay.

use chrono::TimeDelta;
use tokio::sync::mpsc;

use super::*;
use crate::prune::sweep;

#[tokio::test(start_paused = true)]
async fn only_old_images_that_this_agent_pulled_and_nothing_uses_are_taken_away() {
    let (host, dir, clock) = (engine(), tempfile::tempdir().unwrap(), samples::clock());
    for version in ["v0", "v4"] {
        host.publish(samples::image(version).digest, Behaviour::Healthy);
    }
    let (progress, _lines) = mpsc::channel(1);
    let by_hand = samples::image("v0");
    host.pull(&by_hand, &progress, Duration::from_secs(1))
        .await
        .unwrap();
    let agent = Agent::start(&host, dir.path(), &clock).await;
    for (fence, version) in (1..).zip(["v0", "v1", "v2", "v3", "v4"]) {
        let finished = agent.deploy(&samples::order(fence, &[("web", version)])).await;
        assert_eq!(finished.result(), Wire::Succeeded);
        clock.advance(TimeDelta::seconds(1));
    }
    let shared = &agent.workshop.shared;
    let known: Vec<_> = shared.journal.images().unwrap().into_keys().collect();
    assert!(
        !known.contains(&by_hand.pull_reference()),
        "somebody else pulled it"
    );
    assert_eq!(known.len(), 4);
    assert_eq!(sweep(shared, false).await.unwrap().images, 0, "all are young");
    clock.advance(TimeDelta::days(15));
    let done = sweep(shared, false).await.unwrap();
    assert_eq!(done.images, 1);
    assert_eq!(agent.workshop.facts().borrow().pruned, Some(done));
    let mut there = Vec::new();
    for version in ["v0", "v1", "v2", "v3", "v4"] {
        let image = samples::image(version).pull_reference();
        if host.image(&image).await.unwrap().is_some() {
            there.push(version);
        }
    }
    assert_eq!(there, ["v0", "v2", "v3", "v4"]);
    assert_eq!(shared.journal.images().unwrap().len(), 3);
    agent.down().await;
}
