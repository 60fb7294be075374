//! Start-first and blue/green on a real engine.

use sealift_common::{
    manifest::{NetworkSpec, UpdateOrder},
    swap::Swap,
};

use super::*;

/// An external network that is removed in the end.
pub(super) struct Edge(String);

impl Edge {
    pub(super) fn new() -> Self {
        let name = format!("edge-{}", random().simple());
        docker(&["network", "create", &name]);
        Self(name)
    }

    /// A set whose one service is called from outside.
    pub(super) fn set(&self, image: &PinnedImage) -> Manifest {
        let mut spec = samples::service(image.clone());
        let edge: sealift_common::name::ServiceName = "edge".parse().unwrap();
        spec.networks.insert(edge.clone(), vec!["shop".to_owned()]);
        let mut manifest = one(spec);
        let external = NetworkSpec {
            internal: false,
            external: Some(self.0.clone()),
        };
        manifest.networks.insert(edge, external);
        manifest
    }

    /// Start times of the running containers that answer to the alias on the network.
    fn answering(&self, place: &Place) -> Vec<String> {
        let filter = format!(
            "label={}={}",
            crate::labels::TARGET_ID,
            place.bindings[0].target_id
        );
        let format = format!(
            "{{{{.State.StartedAt}}}} {{{{.State.Running}}}} {{{{with index .NetworkSettings.Networks {:?}}}}}{{{{json .Aliases}}}}{{{{end}}}}",
            self.0
        );
        let ids = docker(&["ps", "-aq", "--filter", &filter]);
        ids.split_whitespace()
            .map(|id| docker(&["inspect", "--format", &format, id]))
            .filter(|line| line.contains(" true ") && line.contains("\"shop\"") && line.contains("\"web\""))
            .map(|line| line.split_whitespace().next().unwrap_or_default().to_owned())
            .collect()
    }
}

impl Drop for Edge {
    fn drop(&mut self) {
        docker(&["network", "rm", &self.0]);
    }
}

#[tokio::test]
async fn blue_green_on_engine_always_has_somebody_who_answers_and_switches_back() {
    images!(ok_1 = "OK_1", ok_2 = "OK_2", unhealthy = "UNHEALTHY");
    // Dropped after the place, whose containers are on it.
    let edge = Edge::new();
    let mut place = Place::new(1, None).await;
    let first = place.deploy(edge.set(&ok_1)).await;
    assert_eq!(first.result(), Wire::Succeeded, "{:?}", first.failure);
    let blue = edge.answering(&place);
    assert_eq!(blue.len(), 1);

    for (image, stops) in [(&unhealthy, false), (&ok_2, true)] {
        let mut order = place.order(0, edge.set(image));
        order.swap = Swap::BlueGreen { bake_ms: 60_000 };
        place.begin(&order).await;
        if stops {
            // It has taken over: the bake has begun.
            let wait = async {
                while edge.answering(&place) == blue || edge.answering(&place).len() != 1 {
                    tokio::task::yield_now().await;
                }
            };
            timeout(PATIENCE, wait).await.unwrap();
            place.workshop.stop(order.task_id).await;
        }
        let finished = place.end(&order).await;
        place.idle().await;
        let wanted = if stops { Wire::Stopped } else { Wire::Failed };
        assert_eq!(finished.result(), wanted, "{:?}", finished.failure);
        assert_eq!(
            edge.answering(&place),
            blue,
            "the old container was never stopped"
        );
    }

    let mut order = place.order(0, edge.set(&ok_2));
    order.swap = Swap::BlueGreen { bake_ms: 1_000 };
    place.begin(&order).await;
    let wait = async {
        while place.workshop.is_busy() {
            assert!(!edge.answering(&place).is_empty(), "nobody answers");
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap();
    let finished = place.end(&order).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
    assert_eq!(
        place.containers(),
        [format!("{} always running", ok_2.pull_reference())]
    );
    assert!(edge.answering(&place).len() == 1 && edge.answering(&place) != blue);
    place.down().await;
}

#[tokio::test]
async fn start_first_on_engine_keeps_the_old_container_until_the_new_one_is_healthy() {
    images!(ok_1 = "OK_1", ok_2 = "OK_2", unhealthy = "UNHEALTHY");
    let edge = Edge::new();
    let mut place = Place::new(1, None).await;
    let overlapping = |image: &PinnedImage| {
        let mut manifest = edge.set(image);
        for spec in manifest.services.values_mut() {
            spec.update_order = UpdateOrder::StartFirst;
        }
        manifest
    };
    let first = place.deploy(overlapping(&ok_1)).await;
    assert_eq!(first.result(), Wire::Succeeded, "{:?}", first.failure);
    let old = edge.answering(&place);
    let failed = place.deploy(overlapping(&unhealthy)).await;
    assert_eq!(code(&failed), "UNHEALTHY", "{:?}", failed.failure);
    assert_eq!(edge.answering(&place), old, "it was never stopped");

    let order = place.order(0, overlapping(&ok_2));
    place.begin(&order).await;
    let wait = async {
        while place.workshop.is_busy() {
            assert!(!edge.answering(&place).is_empty(), "nobody answers");
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, wait).await.unwrap();
    let finished = place.end(&order).await;
    assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
    assert_eq!(
        place.containers(),
        [format!("{} always running", ok_2.pull_reference())]
    );
    place.down().await;
}
