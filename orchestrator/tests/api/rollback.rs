//! Going back, over the real port: which release is chosen and why none of the others, and which project is meant.

use sealift_common::{error::Reason, inventory::EnvironmentClass, role::Role};
use sealift_proto::v1::{
    CreateRollbackRequest, ExplainRollbackRequest, ExplainRollbackResponse, GetReleaseRequest,
    ListReleasesRequest, MarkReleaseRequest, RollbackWish,
    promotion::{Kind, State},
    quality_mark::Mark,
    release_service_client::ReleaseServiceClient,
    rollback_service_client::RollbackServiceClient,
};
use tonic::{Code, Status, transport::Channel};

use crate::{
    host::{Host, PROJECT},
    support::{World, reason},
};

const OTHER: &str = "github.com/acme/shop/web";

fn wish(project: &str) -> RollbackWish {
    RollbackWish {
        environment: "environments/prod".to_owned(),
        project: project.to_owned(),
        ..RollbackWish::default()
    }
}

async fn explain(channel: &Channel, wish: RollbackWish) -> Result<ExplainRollbackResponse, Status> {
    let request = ExplainRollbackRequest { wish: Some(wish) };
    let mut client = RollbackServiceClient::new(channel.clone());
    Ok(client.explain_rollback(request).await?.into_inner())
}

/// Each release with why it was not chosen.
fn rejections(answer: &ExplainRollbackResponse) -> Vec<(&str, &str)> {
    let rejected = answer.rejected.iter();
    rejected
        .map(|one| (one.release_display.as_str(), one.rejection.as_str()))
        .collect()
}

#[tokio::test]
async fn an_explanation_names_every_candidate_and_a_rollback_goes_where_it_says() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let class = EnvironmentClass::NonProduction;
    let host = Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    let nothing = explain(&ada, wish("")).await.unwrap_err();
    assert_eq!(nothing.code(), Code::NotFound, "nothing runs there");
    let mut releases = Vec::new();
    for content in ["one", "two", "three"] {
        let release = host.release(content).await;
        host.deploy(&release).await;
        releases.push(release);
    }
    let number = |number: u64| format!("{PROJECT}#{number}");

    let mut client = ReleaseServiceClient::new(ada.clone());
    let mut mark = MarkReleaseRequest {
        name: format!("releases/{}", releases[1].id),
        mark: Mark::Unstable.into(),
        ..MarkReleaseRequest::default()
    };
    let refused = client.mark_release(mark.clone()).await.unwrap_err();
    assert_eq!(
        reason(&refused),
        Reason::InvalidArgument.as_str(),
        "a reason is required"
    );
    mark.reason = "it leaks memory".to_owned();
    let marked = client.mark_release(mark.clone()).await.unwrap().into_inner();
    let found = client
        .get_release(GetReleaseRequest { name: mark.name })
        .await
        .unwrap()
        .into_inner()
        .release;
    assert_eq!(marked.release, found);
    let marks = found.unwrap().marks;
    let listed = client
        .list_releases(ListReleasesRequest::default())
        .await
        .unwrap();
    let listed: Vec<_> = listed
        .into_inner()
        .releases
        .into_iter()
        .map(|one| one.marks)
        .collect();
    assert_eq!(
        listed,
        [vec![], marks.clone(), vec![]],
        "the newest mark, in lists too"
    );
    assert_eq!(marks[0].mark(), Mark::Unstable);
    assert_eq!(
        (marks[0].reason.as_str(), marks[0].actor.as_str()),
        ("it leaks memory", "user/ada")
    );

    let answer = explain(&ada, wish("")).await.unwrap();
    assert_eq!(answer.from.as_ref().unwrap().release_display, number(3));
    assert_eq!(answer.to.as_ref().unwrap().release_display, number(1));
    let (two, three) = (number(2), number(3));
    assert_eq!(
        rejections(&answer),
        [(three.as_str(), "current"), (two.as_str(), "unstable")]
    );
    assert_eq!(answer.rejected[1].mark, "unstable");

    // By its name, by the end of its name, by a component.
    for project in [PROJECT, "shop/api", "components/shop/api"] {
        assert_eq!(explain(&ada, wish(project)).await.unwrap(), answer, "{project}");
    }
    for project in ["shop/ap", "components/shop/ap", "components/other"] {
        let refused = explain(&ada, wish(project)).await.unwrap_err();
        assert_eq!(refused.code(), Code::NotFound, "{project}");
    }
    let named = RollbackWish {
        release: "shop/api#2".to_owned(),
        ..wish("shop/api")
    };
    let answer = explain(&ada, named).await.unwrap();
    assert_eq!(
        answer.to.unwrap().release_display,
        number(2),
        "a person may know better"
    );

    let mut client = RollbackServiceClient::new(ada.clone());
    let mut request = CreateRollbackRequest {
        wish: Some(wish("components/shop/api")),
        ..CreateRollbackRequest::default()
    };
    let refused = client.create_rollback(request.clone()).await.unwrap_err();
    assert_eq!(
        reason(&refused),
        Reason::InvalidArgument.as_str(),
        "a reason is required"
    );
    request.reason = "customers complain".to_owned();
    let made = client.create_rollback(request).await.unwrap().into_inner();
    let made = made.promotion.unwrap();
    assert_eq!((made.kind(), made.release_display), (Kind::Rollback, number(1)));
    let task = host.take().await;
    host.carry_out(&task, &releases[0]).await;
    assert_eq!(host.ended(&made.name).await, State::Deployed);
    world.stop().await;
}

#[tokio::test]
async fn where_several_projects_run_one_must_be_named() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let class = EnvironmentClass::NonProduction;
    let host = Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    for content in ["one", "two"] {
        let release = host.release(content).await;
        host.deploy(&release).await;
    }
    let other = host.release_in(OTHER, "other", 1).await;
    host.deploy(&other).await;
    let refused = explain(&ada, wish("")).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::InvalidArgument.as_str());
    let text = format!("{refused:?}");
    assert!(text.contains(PROJECT) && text.contains(OTHER), "{text}");
    // Both run the same component.
    let refused = explain(&ada, wish("components/shop/api")).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::InvalidArgument.as_str());
    let answer = explain(&ada, wish("shop/api")).await.unwrap();
    assert_eq!(answer.to.unwrap().release_display, format!("{PROJECT}#1"));
    let answer = explain(&ada, wish("shop/web")).await.unwrap();
    assert_eq!(
        (answer.from.is_some(), answer.to),
        (true, None),
        "nothing ran before it"
    );
    let request = CreateRollbackRequest {
        wish: Some(wish("shop/web")),
        reason: "back".to_owned(),
        ..CreateRollbackRequest::default()
    };
    let refused = RollbackServiceClient::new(ada).create_rollback(request).await;
    assert_eq!(reason(&refused.unwrap_err()), Reason::WrongState.as_str());
    world.stop().await;
}
