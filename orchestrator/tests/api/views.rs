//! What operators look at, over the real port: the board, histories, one target with its stickers.

use std::time::Duration;

use sealift_common::{
    digest::Digest, error::Reason, id::SessionId, inventory::EnvironmentClass, observation::ContainerState,
    order::open_order, role::Role, sticker::Sticker, task::TaskEvent,
};
use sealift_proto::v1::{
    GetBoardRequest, GetTargetRequest, ListHistoryRequest, ListStickersRequest, ReportedSticker, Target,
    WatchBoardRequest, history_entry::Outcome, list_history_request::Only, promotion::State,
    reported_sticker::Link, status_service_client::StatusServiceClient,
    target_service_client::TargetServiceClient,
};
use sealift_store::Task;
use tonic::{Code, transport::Channel};

use crate::{
    host::{Host, PROJECT},
    support::{World, reason},
};

const PATIENCE: Duration = Duration::from_secs(30);

async fn target(channel: &Channel, name: &str) -> Target {
    let request = GetTargetRequest {
        name: name.to_owned(),
    };
    let answer = TargetServiceClient::new(channel.clone())
        .get_target(request)
        .await;
    answer.unwrap().into_inner().target.unwrap()
}

#[tokio::test]
async fn a_board_says_what_runs_and_what_is_under_way_and_its_watch_follows() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let class = EnvironmentClass::Production;
    let host = Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    let mut client = StatusServiceClient::new(ada.clone());
    let mut stream = client
        .watch_board(WatchBoardRequest::default())
        .await
        .unwrap()
        .into_inner();
    let mut seen = async |what: &str, wanted: &dyn Fn(&sealift_proto::v1::BoardEnvironment) -> bool| {
        let look = async {
            loop {
                let message = stream.message().await.unwrap().unwrap();
                let board = message.board.unwrap_or_default();
                if board.environments.iter().any(wanted) {
                    return board.environments[0].clone();
                }
            }
        };
        tokio::time::timeout(PATIENCE, look)
            .await
            .unwrap_or_else(|_| panic!("{what} is never shown"))
    };
    seen("the target", &|one| one.targets == 1 && one.agents_online == 1).await;

    let release = host.release("one").await;
    let promotion = host.promote(&release).await;
    let task = host.take().await;
    let under_way = seen("the job", &|one| !one.jobs.is_empty()).await;
    let job = &under_way.jobs[0];
    assert_eq!(
        (job.promotion.as_str(), job.state.as_str()),
        (promotion.as_str(), "running")
    );
    assert_eq!((job.wave, job.waves, job.tasks), (1, 1, 1));
    assert_eq!(under_way.running_promotion, promotion);
    host.carry_out(&task, &release).await;
    let done = seen("the release", &|one| !one.components.is_empty()).await;
    assert_eq!(done.components[0].release_display, format!("{PROJECT}#1"));
    assert_eq!(
        (done.components[0].targets, done.components[0].targets_of_project),
        (1, 1)
    );
    assert!(done.others.is_empty());
    host.ended(&promotion).await;
    host.sees(
        &task,
        &release,
        |project| project.containers[0].state = ContainerState::Exited,
        &[],
    )
    .await;
    let drifted = seen("the drift", &|one| {
        one.drift.is_some_and(|drift| drift.critical > 0)
    })
    .await;
    let of_component = drifted.components[0].drift_count.unwrap();
    assert_eq!((of_component.critical, drifted.components[0].drift), (1, 1));

    let board = client
        .get_board(GetBoardRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert_eq!(board.environments[0].drift, drifted.drift);
    // R12
    world.tenant("evil").await;
    let mallory = world.user("evil", "mallory", Role::Admin).await;
    let mut foreign = StatusServiceClient::new(mallory);
    let board = foreign
        .get_board(GetBoardRequest::default())
        .await
        .unwrap()
        .into_inner();
    assert!(board.environments.is_empty());
    let request = WatchBoardRequest {
        environment: "environments/prod".to_owned(),
    };
    let mut stream = foreign.watch_board(request).await.unwrap().into_inner();
    let refused = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap();
    assert_eq!(refused.unwrap_err().code(), Code::NotFound);
    drop((stream, seen));
    world.stop().await;
}

#[tokio::test]
async fn a_board_says_on_how_many_targets_a_release_is_and_what_else_is_recorded() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let class = EnvironmentClass::NonProduction;
    let first = Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    let second = Host::new(&world, "default", &ada, "prod", "web-2", class).await;
    let client = StatusServiceClient::new(ada.clone());
    let board = async || {
        let board = client
            .clone()
            .get_board(GetBoardRequest::default())
            .await
            .unwrap();
        let environment = board.into_inner().environments.remove(0);
        let component = &environment.components[0];
        let others: Vec<_> = environment
            .others
            .iter()
            .map(|one| (one.release_display.clone(), one.targets))
            .collect();
        let active = component.release_display.clone();
        (active, component.targets, component.targets_of_project, others)
    };
    let (one, two) = (format!("{PROJECT}#1"), format!("{PROJECT}#2"));

    let release = first.release("one").await;
    let promotion = first.promote(&release).await;
    for host in [&first, &second] {
        let task = host.take().await;
        host.carry_out(&task, &release).await;
    }
    first.ended(&promotion).await;
    assert_eq!(board().await, (one.clone(), 2, 2, vec![]));

    let release = first.release("two").await;
    let promotion = first.promote(&release).await;
    let task = first.take().await;
    first.carry_out(&task, &release).await;
    assert_eq!(board().await, (one, 1, 2, vec![(two.clone(), 1)]));
    let task = second.take().await;
    second.carry_out(&task, &release).await;
    first.ended(&promotion).await;
    assert_eq!(board().await, (two, 2, 2, vec![]));
    world.stop().await;
}

#[tokio::test]
async fn a_history_tells_what_became_of_each_promotion() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let class = EnvironmentClass::NonProduction;
    let host = Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    let one = host.release("one").await;
    let (first, _) = host.deploy(&one).await;
    let two = host.release("two").await;
    let second = host.promote(&two).await;
    let task = host.take().await;
    let failure = sealift_common::failure::Failure::new(
        sealift_common::failure::FailureCode::ImageNotFound,
        "played by a test",
    );
    host.report(&task, &[TaskEvent::Failed { failure }]).await;
    assert_eq!(host.ended(&second).await, State::Failed);
    let three = host.release("three").await;
    let (third, _) = host.deploy(&three).await;

    let mut client = StatusServiceClient::new(ada.clone());
    let mut history = async |only: Option<Only>| {
        let request = ListHistoryRequest {
            environment: "environments/prod".to_owned(),
            only,
            ..ListHistoryRequest::default()
        };
        client.list_history(request).await
    };
    let all = history(None).await.unwrap().into_inner().entries;
    let told: Vec<_> = all
        .iter()
        .map(|entry| (entry.promotion.as_str(), entry.outcome()))
        .collect();
    let wanted = [
        (third.as_str(), Outcome::Succeeded),
        (second.as_str(), Outcome::Failed),
        (first.as_str(), Outcome::Superseded),
    ];
    assert_eq!(told, wanted);
    for only in [
        Only::Project("shop/api".to_owned()),
        Only::Component("components/shop/api".to_owned()),
    ] {
        let same = history(Some(only)).await.unwrap().into_inner().entries;
        assert_eq!(same, all);
    }
    let here = history(Some(Only::Target(host.name.clone()))).await;
    let here = here.unwrap().into_inner().entries;
    let states: Vec<_> = here.iter().map(|entry| entry.target_state.as_str()).collect();
    assert_eq!(states, ["succeeded", "failed", "succeeded"]);

    for (only, wanted) in [
        (Only::Project("nobody/knows".to_owned()), Reason::NotFound),
        (Only::Component("components/x".to_owned()), Reason::NotFound),
        (
            Only::Target("environments/other/targets/web-1".to_owned()),
            Reason::InvalidArgument,
        ),
    ] {
        let refused = history(Some(only)).await.unwrap_err();
        assert_eq!(reason(&refused), wanted.as_str());
    }
    world.stop().await;
}

/// The sticker that the agent writes for an order.
async fn write_sticker(world: &World, host: &Host<'_>, task: &Task, previous: Option<Digest>) -> Digest {
    let app = &world.running.app;
    let order = open_order(
        task.order.as_deref().unwrap(),
        &[app.identity.keys.order.public()],
    )
    .unwrap();
    let sticker = Sticker::of(&order, None, app.clock.now(), previous).unwrap();
    let digest = sticker.digest().unwrap();
    let mut tx = host.write().await;
    let bytes = sticker.to_file().unwrap();
    let now = app.clock.now();
    tx.insert_sticker(host.target, PROJECT, task.id, digest, previous, &bytes, now)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    digest
}

#[tokio::test]
async fn a_target_shows_record_and_host_side_by_side_and_its_checked_stickers() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let class = EnvironmentClass::NonProduction;
    let host = Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    let empty = target(&ada, &host.name).await;
    assert!(empty.current.is_empty() && !empty.silent);

    let one = host.release("one").await;
    let promotion = host.promote(&one).await;
    let task = host.take().await;
    let first = write_sticker(&world, &host, &task, None).await;
    host.carry_out(&task, &one).await;
    host.ended(&promotion).await;
    let found = target(&ada, &host.name).await;
    let project = &found.current[0];
    let recorded = project.recorded.as_ref().unwrap();
    assert_eq!(recorded.release_display, format!("{PROJECT}#1"));
    assert_eq!(
        (recorded.promotion.as_str(), project.behind),
        (promotion.as_str(), 0)
    );
    assert_eq!(project.sticker.as_ref().unwrap().digest, recorded.sticker);
    let service = &project.services[0];
    assert_eq!(service.component, "components/shop/api");
    assert_eq!(service.observed.as_ref().unwrap().digest, service.recorded_digest);

    // The container is gone: the record still has its row.
    host.sees(&task, &one, |project| project.containers.clear(), &[])
        .await;
    let found = target(&ada, &host.name).await;
    assert_eq!(found.current[0].services.len(), 1);
    assert_eq!(found.current[0].services[0].observed, None);
    assert_eq!(found.drift.len(), 1);

    // Another host gets a newer release; this one is left behind.
    let two = host.release("two").await;
    let promotion = host.promote(&two).await;
    let task = host.take().await;
    let edited = Some(Digest::of(b"somebody wrote to the file"));
    write_sticker(&world, &host, &task, edited).await;
    let release = two.clone();
    host.report(&task, &[TaskEvent::Succeeded]).await;
    host.ended(&promotion).await;
    let found = target(&ada, &host.name).await;
    assert_eq!(
        found.current[0].behind, 1,
        "{} is not recorded here",
        release.number
    );
    assert!(!found.silent);
    // Its host is cut off: what is said of it is as old as its last word, and it is still known by how much it is behind.
    let session = SessionId::new(world.running.app.clock.now());
    drop(world.running.app.presence.open(host.agent, session));
    let found = target(&ada, &host.name).await;
    assert!(found.silent && found.agent_seen_time.is_some());
    assert_eq!(
        (found.agent_status.as_str(), found.current[0].behind),
        ("offline", 1)
    );

    let request = ListStickersRequest {
        parent: host.name.clone(),
        project: PROJECT.to_owned(),
        ..ListStickersRequest::default()
    };
    let mut client = TargetServiceClient::new(ada.clone());
    let stickers: Vec<ReportedSticker> = client
        .list_stickers(request.clone())
        .await
        .unwrap()
        .into_inner()
        .stickers;
    let links: Vec<_> = stickers.iter().map(|one| (one.link(), one.intact)).collect();
    assert_eq!(links, [(Link::Broken, true), (Link::First, true)]);
    assert_eq!(stickers[1].digest, first.to_string());
    assert_eq!(stickers[0].release_display, format!("{PROJECT}#2"));
    let wrong = ListStickersRequest {
        project: String::new(),
        ..request
    };
    let refused = client.list_stickers(wrong).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::InvalidArgument.as_str());
    world.stop().await;
}
