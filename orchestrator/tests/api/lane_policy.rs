//! What environments do with promotions that would have to wait, over the real port.

use sealift_common::{error::Reason, inventory::EnvironmentClass, release::Release, role::Role};
use sealift_proto::v1::{
    CreatePromotionRequest, Environment, GetEnvironmentRequest, GetPromotionRequest, ListHistoryRequest,
    Promotion, UpdateEnvironmentRequest, environment::LanePolicy,
    environment_service_client::EnvironmentServiceClient, gate_answer::Verdict, history_entry::Outcome,
    promotion::State, promotion_service_client::PromotionServiceClient,
    status_service_client::StatusServiceClient,
};
use tonic::{Status, transport::Channel};

use crate::{
    host::Host,
    support::{World, reason},
};

async fn environment(channel: &Channel) -> Environment {
    let request = GetEnvironmentRequest {
        name: "environments/prod".to_owned(),
    };
    let mut client = EnvironmentServiceClient::new(channel.clone());
    let found = client.get_environment(request).await.unwrap().into_inner();
    found.environment.unwrap()
}

async fn set(channel: &Channel, policy: i32) -> Result<Environment, Status> {
    let request = UpdateEnvironmentRequest {
        request_id: String::new(),
        environment: Some(Environment {
            lane_policy: policy,
            ..environment(channel).await
        }),
        update_mask: Some(pbjson_types::FieldMask {
            paths: vec!["lane_policy".to_owned()],
        }),
    };
    let mut client = EnvironmentServiceClient::new(channel.clone());
    let answer = client.update_environment(request).await?;
    Ok(answer.into_inner().environment.unwrap())
}

async fn promote(channel: &Channel, release: &Release) -> Promotion {
    let request = CreatePromotionRequest {
        release: format!("releases/{}", release.id),
        environment: "environments/prod".to_owned(),
        ..CreatePromotionRequest::default()
    };
    let mut client = PromotionServiceClient::new(channel.clone());
    let made = client.create_promotion(request).await.unwrap().into_inner();
    made.promotion.unwrap()
}

#[tokio::test]
async fn c16_an_environment_says_what_becomes_of_promotions_that_would_have_to_wait() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let dora = world.user("default", "dora", Role::Deployer).await;
    let class = EnvironmentClass::NonProduction;
    let host = Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    assert_eq!(environment(&ada).await.lane_policy(), LanePolicy::Queue);
    let refused = set(&dora, LanePolicy::Reject.into()).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::RoleMissing.as_str());
    let refused = set(&ada, 7).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::InvalidArgument.as_str());
    assert!(refused.message().contains("lane_policy"), "{}", refused.message());

    let changed = set(&ada, LanePolicy::Reject.into()).await.unwrap();
    assert_eq!(changed.lane_policy(), LanePolicy::Reject);
    assert_eq!(environment(&ada).await, changed);
    let release = host.release("one").await;
    let first = host.promote(&release).await;
    let task = host.take().await;
    let rejected = promote(&ada, &host.release("two").await).await;
    assert_eq!((rejected.state(), rejected.job.as_str()), (State::Rejected, ""));
    let gates = rejected.decision.unwrap().gates;
    let lane = gates.iter().find(|gate| gate.gate == "lane").unwrap();
    assert_eq!(
        (lane.verdict(), lane.reason.as_str()),
        (Verdict::Fail, "LANE_OCCUPIED")
    );
    assert!(lane.advice.contains("sealift"), "{}", lane.advice);

    set(&ada, LanePolicy::Supersede.into()).await.unwrap();
    let second = promote(&ada, &host.release("three").await).await;
    assert_eq!((second.state(), second.lane_position), (State::Approved, 1));
    let third = promote(&ada, &host.release("four").await).await;
    assert_eq!((third.state(), third.lane_position), (State::Approved, 1));
    let request = GetPromotionRequest {
        name: second.name.clone(),
    };
    let mut client = PromotionServiceClient::new(ada.clone());
    let replaced = client.get_promotion(request).await.unwrap().into_inner();
    let replaced = replaced.promotion.unwrap();
    assert_eq!(
        (replaced.state(), &replaced.superseded_by),
        (State::Cancelled, &third.name)
    );
    assert_eq!(replaced.transitions.last().unwrap().event, "superseded");
    let request = ListHistoryRequest {
        environment: "environments/prod".to_owned(),
        ..ListHistoryRequest::default()
    };
    let mut client = StatusServiceClient::new(ada.clone());
    let history = client.list_history(request).await.unwrap().into_inner();
    let entry = history
        .entries
        .iter()
        .find(|entry| entry.promotion == second.name);
    assert_eq!(entry.unwrap().outcome(), Outcome::Superseded);
    host.carry_out(&task, &release).await;
    assert_eq!(host.ended(&first).await, State::Deployed);
    world.stop().await;
}
