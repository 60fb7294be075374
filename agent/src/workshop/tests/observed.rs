//! What the observer tells of a host on which not everything is in order.

use sealift_common::observation::{
    ContainerObservation, ContainerState, EngineAction, EngineEvent, TargetObservation,
};

use super::*;
use crate::host::NewContainer;

/// What is seen of the project of [`samples::order`], by service.
fn seen(observation: &TargetObservation) -> Vec<ContainerObservation> {
    let project = samples::order(1, &[]).release.project;
    let seen = observation.project(&project);
    seen.map(|project| project.containers.clone()).unwrap_or_default()
}

/// The next observation of a target at rest for which this holds.
async fn next(
    feed: &mut mpsc::Receiver<TargetObservation>,
    holds: impl Fn(&[ContainerObservation]) -> bool,
) -> Vec<ContainerObservation> {
    loop {
        let observation = feed.recv().await.unwrap();
        let containers = seen(&observation);
        if !observation.busy && holds(&containers) {
            return containers;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn one_container_that_cannot_be_looked_at_hides_no_other() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let mut feed = agent.workshop.take_observations().unwrap();
    agent
        .deploy(&samples::order(1, &[("db", "v1"), ("web", "v1")]))
        .await;
    let before = next(&mut feed, |seen| seen.len() == 2).await;
    let broken = HostError::new(FailureCode::EngineError, "look at a container: no such layer");
    host.fail("inspect", 1, broken);
    host.tamper(&before[1].id, |_| {});
    let now = next(&mut feed, |_| true).await;
    assert_eq!(now[0], before[0]);
    let unknown = &now[1];
    assert_eq!((unknown.state, unknown.digest), (ContainerState::Unknown, None));
    assert!(unknown.unchanged, "nobody knows that it was changed");
    let conditions = agent.workshop.shared.facts.borrow().degraded.clone();
    assert_eq!(conditions, [], "the engine answers");

    host.tamper(&before[1].id, |_| {});
    assert_eq!(next(&mut feed, |_| true).await, before);
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn what_somebody_runs_with_compose_run_is_not_observed() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let mut feed = agent.workshop.take_observations().unwrap();
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    let before = next(&mut feed, |seen| seen.len() == 1).await;
    let service = ours(&host).remove(0);
    let mut labels = service.labels.clone();
    labels.insert("com.docker.compose.oneoff".to_owned(), "True".to_owned());
    let one_off = NewContainer {
        name: "web_run_1".to_owned(),
        service: "web".parse().unwrap(),
        spec: samples::service(samples::image("v1")),
        labels,
        networks: Vec::new(),
        volumes: BTreeMap::new(),
    };
    let id = host.create(&one_off).await.unwrap();
    host.start(&id).await.unwrap();
    agent.workshop.shared.observer.request_all(Vec::new());
    assert_eq!(next(&mut feed, |_| true).await, before);
    agent.down().await;
}

/// A session that begins asks for it, and nobody asks again.
#[tokio::test(start_paused = true)]
async fn what_could_not_be_looked_at_when_it_was_asked_for_is_told_by_the_next_look() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let mut feed = agent.workshop.take_observations().unwrap();
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    let before = next(&mut feed, |seen| seen.len() == 1).await;
    let gone = HostError::new(FailureCode::EngineUnavailable, "no engine");
    host.fail("list", 1, gone);
    let asked = tokio::time::Instant::now();
    agent.workshop.shared.observer.request_all(Vec::new());
    assert_eq!(next(&mut feed, |_| true).await, before);
    let waited = asked.elapsed();
    assert!(
        waited > Duration::from_secs(1) && waited < Duration::from_mins(1),
        "{waited:?}"
    );
    agent.down().await;
}

#[tokio::test(start_paused = true)]
async fn what_the_engine_said_is_not_lost_with_a_look_that_was_told_to_nobody() {
    let (host, dir) = (engine(), tempfile::tempdir().unwrap());
    let agent = Agent::start(&host, dir.path(), &samples::clock()).await;
    let mut feed = agent.workshop.take_observations().unwrap();
    agent.deploy(&samples::order(1, &[("web", "v1")])).await;
    let before = next(&mut feed, |seen| seen.len() == 1).await;
    let event = EngineEvent {
        action: EngineAction::Die,
        container: before[0].id.clone(),
        project: samples::order(1, &[]).release.project.to_string(),
        service: before[0].service.clone(),
        at: samples::at(1),
    };
    let untold = TargetObservation {
        target_id: samples::binding().target_id,
        observed_at: samples::at(1),
        busy: false,
        projects: BTreeMap::new(),
        events: vec![event.clone()],
    };
    agent.workshop.shared.observer.request_all(vec![untold]);
    let told = feed.recv().await.unwrap();
    assert_eq!((told.events, told.projects.len()), (vec![event], 1));
    agent.down().await;
}
