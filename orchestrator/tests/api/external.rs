//! Row 3.08 of the seed map over the real port: identifiers of other systems reach those who get to see them, and nobody else.

use sealift_common::{
    inventory::EnvironmentClass,
    observation::{ContainerState, EngineAction, EngineEvent},
    role::Role,
};
use sealift_proto::v1::{
    AcknowledgeDriftRequest, ExplainDriftRequest, ExternalRef, GetTargetRequest, ListDriftRequest,
    ListTargetsRequest, drift_service_client::DriftServiceClient, target_service_client::TargetServiceClient,
};
use tonic::transport::Channel;

use crate::{
    host::{Host, PROJECT},
    support::World,
};

/// Every answer in which a container may be named, as JSON; and one of the references in it.
async fn answers(channel: &Channel, target: &str, drift: &str) -> (String, ExternalRef) {
    let mut targets = TargetServiceClient::new(channel.clone());
    let mut drifts = DriftServiceClient::new(channel.clone());
    let get = GetTargetRequest {
        name: target.to_owned(),
    };
    let got = targets.get_target(get).await.unwrap().into_inner();
    let request = ListTargetsRequest {
        parent: "environments/-".to_owned(),
        ..ListTargetsRequest::default()
    };
    let listed = targets.list_targets(request).await.unwrap().into_inner();
    let found = drifts.list_drift(ListDriftRequest::default()).await;
    let explain = ExplainDriftRequest {
        name: drift.to_owned(),
    };
    let explained = drifts.explain_drift(explain).await.unwrap().into_inner();
    let current = got.target.as_ref().unwrap().current[0].services[0].clone();
    let reference = current.observed.unwrap().container.unwrap();
    let all = [
        serde_json::to_string(&got).unwrap(),
        serde_json::to_string(&listed).unwrap(),
        serde_json::to_string(&found.unwrap().into_inner()).unwrap(),
        serde_json::to_string(&explained).unwrap(),
    ];
    (all.concat(), reference)
}

#[tokio::test]
async fn containers_are_named_to_admins_only_in_every_answer() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let class = EnvironmentClass::Production;
    let host = Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    let release = host.release("one").await;
    let (_, task) = host.deploy(&release).await;
    let stop = EngineEvent {
        action: EngineAction::Stop,
        container: "container-of-1".to_owned(),
        project: PROJECT.to_owned(),
        service: "web".parse().unwrap(),
        at: world.running.app.clock.now(),
    };
    let stopped = |seen: &mut sealift_common::observation::ProjectObservation| {
        let mut extra = seen.containers[0].clone();
        seen.containers[0].state = ContainerState::Exited;
        extra.service = "extra".parse().unwrap();
        seen.containers.push(extra);
    };
    host.sees(&task, &release, stopped, std::slice::from_ref(&stop))
        .await;
    let mut drifts = DriftServiceClient::new(ada.clone());
    let found = drifts.list_drift(ListDriftRequest::default()).await;
    let found = found.unwrap().into_inner().drift;
    assert!(found.iter().any(|one| one.cause.is_some()));
    let extra = found
        .iter()
        .find(|one| one.service == "extra")
        .unwrap_or_else(|| panic!("{found:?}"));

    for role in Role::ALL {
        let channel = world.user("default", &format!("user-{role}"), role).await;
        let (said, reference) = answers(&channel, &host.name, &extra.name).await;
        let admin = role == Role::Admin;
        // The beginning of it, too: commands name containers by that.
        assert_eq!(said.contains("container-of"), admin, "{role}: {said}");
        assert_eq!(reference.hidden, !admin, "{role}");
        assert_eq!(reference.id.is_empty(), !admin, "{role}");
        assert_eq!(
            (
                reference.system.as_str(),
                reference.kind.as_str(),
                reference.visibility.as_str()
            ),
            ("engine", "container", "admins")
        );
        assert_eq!(said.contains("docker inspect"), admin, "{role}: {said}");
        assert_eq!(said.contains("as an admin"), !admin, "{role}: {said}");
        // What is no reference is there for everybody.
        assert!(said.contains("exited") && said.contains("stop"), "{role}");
    }
    // Whoever owns the orchestrator's host counts as an admin, and answers to changes are no way around.
    let caused = found.iter().find(|one| one.cause.is_some()).unwrap();
    let dora = world.user("default", "dora", Role::Deployer).await;
    for (channel, hidden) in [(world.local().await, false), (dora, true)] {
        let request = AcknowledgeDriftRequest {
            name: caused.name.clone(),
            ..AcknowledgeDriftRequest::default()
        };
        let said = DriftServiceClient::new(channel).acknowledge_drift(request).await;
        let cause = said.unwrap().into_inner().drift.unwrap().cause.unwrap();
        assert_eq!(cause.container.unwrap().hidden, hidden);
    }
    world.stop().await;
}
