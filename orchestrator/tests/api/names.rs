//! A name means one thing that is there, or nothing. Nomad: names were matched by prefix where only the whole one may count. Here for
//! every kind of name, and every prefix of it.

use sealift_common::{id::ReleaseId, inventory::EnvironmentClass, role::Role};
use sealift_proto::v1::{
    self, GetEnvironmentRequest, GetPromotionRequest, GetReleaseRequest, GetTargetRequest,
    ListPromotionsRequest, RevokeUserRequest, promotion_service_client::PromotionServiceClient,
    release_service_client::ReleaseServiceClient, target_service_client::TargetServiceClient,
    user_service_client::UserServiceClient,
};
use tonic::{Code, Request, Status, transport::Channel};

use crate::{
    host::{Host, PROJECT},
    support::World,
};

/// Asks for one thing by name; all calls that do so say the name in the same field.
async fn get(channel: &Channel, method: &str, name: &str) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let request = GetEnvironmentRequest {
        name: name.to_owned(),
    };
    let codec = tonic_prost::ProstCodec::<GetEnvironmentRequest, ()>::default();
    let path = format!("/sealift.v1.{method}").parse().unwrap();
    grpc.unary(Request::new(request), path, codec).await.map(drop)
}

/// Whether a text means nothing at all.
fn is_refused(answer: &Result<(), Status>) -> bool {
    let code = answer.as_ref().err().map(Status::code);
    matches!(code, Some(Code::NotFound | Code::InvalidArgument))
}

#[tokio::test]
async fn no_name_of_any_kind_is_matched_by_prefix() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let dora = world.user("default", "dora", Role::Deployer).await;
    let class = EnvironmentClass::NonProduction;
    let host = Host::new(&world, "default", &ada, "prod", "web", class).await;
    Host::new(&world, "default", &ada, "prod-eu", "web-1", class).await;
    for number in 1..=11 {
        host.release(&format!("content {number}")).await;
    }
    let release = host.release("content 12").await;
    let (promotion, task) = host.deploy(&release).await;
    let commit = &release.source.commit;
    let by_name = [
        (
            "EnvironmentService/GetEnvironment",
            "environments/prod-eu".to_owned(),
        ),
        (
            "TargetService/GetTarget",
            "environments/prod-eu/targets/web-1".to_owned(),
        ),
        ("TargetService/GetTarget", host.name.clone()),
        ("ComponentService/GetComponent", "components/shop/api".to_owned()),
        ("AgentService/GetAgent", format!("agents/{}", host.agent)),
        ("ReleaseService/GetRelease", format!("releases/{}", release.id)),
        ("ReleaseService/GetRelease", format!("{PROJECT}@{commit}")),
        ("PromotionService/GetPromotion", promotion.clone()),
        ("JobService/GetJob", format!("jobs/{}", task.job_id)),
        (
            "JobService/GetTask",
            format!("jobs/{}/tasks/{}", task.job_id, task.id),
        ),
    ];
    for (method, name) in &by_name {
        get(&ada, method, name).await.unwrap();
        for end in (0..name.len()).filter(|end| name.is_char_boundary(*end)) {
            let prefix = &name[..end];
            // `environments/prod` is there, too.
            let is_whole = by_name.iter().any(|(_, whole)| whole == prefix) || prefix == "environments/prod";
            let answer = get(&ada, method, prefix).await;
            assert!(is_refused(&answer) || is_whole, "{method} {prefix:?}: {answer:?}");
        }
    }

    // Projects are written from any of their segments on, but whole segments.
    for begin in 1..PROJECT.len() {
        let alias = format!("{}#12", &PROJECT[begin..]);
        let answer = get(&ada, "ReleaseService/GetRelease", &alias).await;
        let whole = PROJECT[..begin].ends_with('/');
        assert_eq!(is_refused(&answer), !whole, "{alias}: {answer:?}");
    }
    for end in 1..PROJECT.len() {
        let alias = format!("{}#12", &PROJECT[..end]);
        let answer = get(&ada, "ReleaseService/GetRelease", &alias).await;
        assert!(is_refused(&answer), "{alias}: {answer:?}");
    }
    // The first is neither the tenth nor the twelfth.
    let request = GetReleaseRequest {
        name: "shop/api#1".to_owned(),
    };
    let first = ReleaseServiceClient::new(ada.clone()).get_release(request).await;
    assert_eq!(first.unwrap().into_inner().release.unwrap().number, 1);

    // Filters and orders, too.
    let mut promotions = PromotionServiceClient::new(ada.clone());
    for environment in ["environments/pro", "environments/prod-e"] {
        let request = ListPromotionsRequest {
            environment: environment.to_owned(),
            ..ListPromotionsRequest::default()
        };
        let refused = promotions.list_promotions(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{environment}");
    }
    let mut users = UserServiceClient::new(ada);
    for user in ["d", "do", "dor"] {
        let request = RevokeUserRequest {
            request_id: String::new(),
            name: format!("users/{user}"),
            reason: "by a prefix".to_owned(),
        };
        let refused = users.revoke_user(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{user}");
    }
    let request = GetPromotionRequest { name: promotion };
    PromotionServiceClient::new(dora)
        .get_promotion(request)
        .await
        .unwrap();
    world.stop().await;
}

#[tokio::test]
async fn a_commit_without_a_registered_release_is_not_promoted() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let class = EnvironmentClass::NonProduction;
    let host = Host::new(&world, "default", &ada, "prod", "web", class).await;
    let registered = host.release("registered").await;
    let mut promotions = PromotionServiceClient::new(ada);
    let commit = "0123456789abcdef0123456789abcdef01234567";
    for release in [
        "shop/api#2".to_owned(),
        format!("{PROJECT}@{commit}"),
        format!("releases/{}", ReleaseId::new(registered.created_at)),
    ] {
        let request = v1::CreatePromotionRequest {
            release: release.clone(),
            environment: "environments/prod".to_owned(),
            ..v1::CreatePromotionRequest::default()
        };
        let refused = promotions.create_promotion(request).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{release}: {refused:?}");
        let name = release.trim_start_matches("releases/");
        assert!(refused.message().contains(name), "{release}: {refused:?}");
    }
    let made = promotions.list_promotions(ListPromotionsRequest::default()).await;
    assert!(made.unwrap().into_inner().promotions.is_empty());
    world.stop().await;
}

#[tokio::test]
async fn names_of_targets_are_never_matched_by_prefix() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let class = EnvironmentClass::NonProduction;
    let web = Host::new(&world, "default", &ada, "prod", "web", class).await;
    Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    let release = web.release("one").await;
    let mut client = PromotionServiceClient::new(ada.clone());
    let mut plan = async |target: &str| {
        let request = v1::PlanPromotionRequest {
            release: format!("releases/{}", release.id),
            environment: "environments/prod".to_owned(),
            targets: vec![format!("environments/prod/targets/{target}")],
            ..v1::PlanPromotionRequest::default()
        };
        client.plan_promotion(request).await
    };
    let planned = plan("web").await.unwrap().into_inner().targets;
    let planned: Vec<_> = planned.iter().map(|one| one.target.as_str()).collect();
    assert_eq!(planned, [web.name.as_str()]);
    assert_eq!(plan("we").await.unwrap_err().code(), Code::NotFound);
    let mut targets = TargetServiceClient::new(ada);
    let request = GetTargetRequest {
        name: "environments/prod/targets/we".to_owned(),
    };
    assert_eq!(
        targets.get_target(request).await.unwrap_err().code(),
        Code::NotFound
    );
    world.stop().await;
}
