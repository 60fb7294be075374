//! Maintenance over the admin socket: what is asked for is done and its result told.

use sealift_common::role::Role;
use sealift_proto::v1::{
    ListMaintenanceRunsRequest, MaintenanceRun, RunMaintenanceRequest,
    maintenance_run::{Kind, State},
    maintenance_service_client::MaintenanceServiceClient,
};
use sealift_store::PageRequest;
use tonic::transport::Channel;

use crate::support::{World, reason, until};

async fn runs(channel: &Channel) -> Vec<MaintenanceRun> {
    let request = ListMaintenanceRunsRequest::default();
    let mut client = MaintenanceServiceClient::new(channel.clone());
    let answer = client.list_maintenance_runs(request).await.unwrap();
    answer.into_inner().runs
}

#[tokio::test]
async fn maintenance_that_was_asked_for_is_done_and_says_what_it_did() {
    let world = World::start().await;
    let local = world.local().await;
    let mut client = MaintenanceServiceClient::new(local.clone());
    for kind in [Kind::Cleanup, Kind::Audit, Kind::Evidence] {
        let request = RunMaintenanceRequest {
            request_id: String::new(),
            kind: kind.into(),
        };
        let asked = client.run_maintenance(request).await.unwrap().into_inner();
        let asked = asked.run.unwrap();
        let id = asked.uid.clone();
        until(&world, async |tx| {
            let all = tx.list_maintenance(&PageRequest::first(100)).await.unwrap().items;
            all.iter()
                .any(|run| run.id.to_string() == id && run.state.is_terminal())
        })
        .await;
        let ended = runs(&local)
            .await
            .into_iter()
            .find(|run| run.uid == asked.uid)
            .unwrap();
        assert_eq!(
            (ended.kind(), ended.state()),
            (kind, State::Succeeded),
            "{ended:?}"
        );
        assert!(!ended.summary.is_empty() && ended.problems == 0, "{ended:?}");
    }
    let nothing = client.run_maintenance(RunMaintenanceRequest::default()).await;
    assert_eq!(reason(&nothing.unwrap_err()), "INVALID_ARGUMENT");
    let alice = world.user("default", "alice", Role::Admin).await;
    let over_the_port = MaintenanceServiceClient::new(alice)
        .list_maintenance_runs(ListMaintenanceRunsRequest::default())
        .await;
    assert_eq!(reason(&over_the_port.unwrap_err()), "ROLE_MISSING");
    world.stop().await;
}
