//! Images that are taken away, and those that stay.

use chrono::TimeDelta;
use sealift_common::manifest::PinnedImage;
use tokio::sync::mpsc;

use super::*;
use crate::{journal::OldContainer, prune::sweep};

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

/// Compose removes the old containers while it brings the new set up, so nothing on the engine says that their images matter.
#[tokio::test(start_paused = true)]
async fn r10_images_of_the_old_set_stay_while_an_attempt_is_not_over() {
    let (host, dir, clock) = (engine(), tempfile::tempdir().unwrap(), samples::clock());
    host.publish(samples::image("v4").digest, Behaviour::Healthy);
    let agent = Agent::start(&host, dir.path(), &clock).await;
    let shared = &agent.workshop.shared;
    let (progress, _lines) = mpsc::channel(1);
    let elsewhere = |version: &str| PinnedImage {
        repository: "registry.example.com/elsewhere".to_owned(),
        ..samples::image(version)
    };
    for version in ["v1", "v2", "v3", "v4"] {
        let image = elsewhere(version);
        host.pull(&image, &progress, Duration::from_secs(1))
            .await
            .unwrap();
        let write = Write::ImagePulled {
            reference: image.pull_reference(),
            at: clock.now(),
        };
        shared.journal.note(vec![write]).await.unwrap();
        clock.advance(TimeDelta::seconds(1));
    }
    clock.advance(TimeDelta::days(15));
    let order = samples::compose_order(1, &[("web", "v5")]);
    let key = AttemptKey {
        task: order.task_id,
        attempt: order.attempt,
    };
    let old = OldContainer {
        id: "gone".to_owned(),
        service: "web".parse().unwrap(),
        running: true,
        restart: RestartPolicy::No,
        grace_ms: 0,
        digest: Some(elsewhere("v1").digest),
        aliases: std::collections::BTreeMap::new(),
        compose: crate::journal::OldOfCompose::default(),
    };
    let begun = vec![
        Write::Order {
            key,
            bytes: sign_order(&order, &samples::order_key()).unwrap(),
            target: order.target_id,
            fence: order.fence,
        },
        Write::Record(key, samples::accepted(samples::at(0))),
        Write::Record(
            key,
            Record::Prepared {
                at: samples::at(0),
                old: vec![old],
            },
        ),
    ];
    shared.journal.commit(begun).await.unwrap();
    assert_eq!(sweep(shared, true).await.unwrap().images, 0);
    let over = vec![Write::Record(key, Record::Cleaned)];
    shared.journal.commit(over).await.unwrap();
    assert_eq!(sweep(shared, true).await.unwrap().images, 1);
    agent.down().await;
}
