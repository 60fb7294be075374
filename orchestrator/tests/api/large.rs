//! More targets than fit into one message: every answer stays within the message limit, and nothing is left out.

use std::collections::BTreeSet;

use sealift_common::{
    bounds,
    failure::{Failure, FailureCode},
    id::{PromotionId, TargetId},
    inventory::EnvironmentClass,
    order::Fence,
    role::Role,
    task::{TaskEvent, TaskPhase},
};
use sealift_proto::v1::{
    CreatePromotionRequest, GetJobRequest, GetPromotionRequest, GetTaskRequest, Job, ListFailuresRequest,
    ListPlanTargetsRequest, ListTasksRequest, PlanPromotionRequest, PlanTarget, Promotion,
    ReadDecisionRequest, Recipe, Strategy, Task, WatchJobRequest, WatchPromotionRequest,
    job_service_client::JobServiceClient, promotion_service_client::PromotionServiceClient, strategy,
    task::State,
};
use tonic::{Code, transport::Channel};

use crate::{
    host::Host,
    support::{PATIENCE, World, reason, until},
};

/// A host, and further targets that its agent serves too, with names of full length.
async fn fleet<'w>(world: &'w World, ada: &Channel, targets: usize) -> Host<'w> {
    let class = EnvironmentClass::NonProduction;
    let host = Host::new(world, "default", ada, "prod", "web", class).await;
    let app = &world.running.app;
    let now = app.clock.now();
    let mut tx = app.db.write().await.unwrap();
    let first = tx.target(host.tenant, host.target).await.unwrap().unwrap();
    for number in 1..targets {
        let mut target = first.clone();
        target.id = TargetId::new(now);
        target.name = format!("t{number:05}-{}", "x".repeat(50)).parse().unwrap();
        target.fence = Fence(0);
        tx.insert_target(&target).await.unwrap();
    }
    tx.commit().await.unwrap();
    host
}

fn one_at_a_time() -> Recipe {
    let rolling = strategy::Rolling {
        max_parallel: "1".to_owned(),
        ..strategy::Rolling::default()
    };
    Recipe {
        strategy: Some(Strategy {
            kind: Some(strategy::Kind::Rolling(rolling)),
        }),
        ..Recipe::default()
    }
}

async fn tasks(channel: &Channel, job: &str, state: State) -> Vec<Task> {
    let mut client = JobServiceClient::new(channel.clone());
    let (mut tasks, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListTasksRequest {
            parent: job.to_owned(),
            state: state.into(),
            page_size: i32::MAX,
            page_token,
            ..ListTasksRequest::default()
        };
        let page = client.list_tasks(request).await.unwrap().into_inner();
        tasks.extend(page.tasks);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return tasks;
        }
    }
}

fn id(promotion: &str) -> PromotionId {
    promotion.strip_prefix("promotions/").unwrap().parse().unwrap()
}

/// What a promotion's plan says about every target.
async fn planned(channel: &Channel, promotion: &str) -> Vec<PlanTarget> {
    let mut client = PromotionServiceClient::new(channel.clone());
    let (mut planned, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListPlanTargetsRequest {
            parent: promotion.to_owned(),
            page_size: 300,
            page_token,
        };
        let page = client.list_plan_targets(request).await.unwrap().into_inner();
        planned.extend(page.targets);
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return planned;
        }
    }
}

fn distinct(names: impl IntoIterator<Item = String>) -> usize {
    names.into_iter().collect::<BTreeSet<_>>().len()
}

#[tokio::test]
async fn a_plan_of_25_000_changes_is_answered_within_the_message_limit() {
    const TARGETS: usize = 5_000;
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let host = fleet(&world, &ada, TARGETS).await;
    let release = host.release_of("one", 5).await;
    let mut client = PromotionServiceClient::new(ada.clone());

    let mut wish = PlanPromotionRequest {
        release: format!("releases/{}", release.id),
        environment: "environments/prod".to_owned(),
        recipe: Some(one_at_a_time()),
        page_size: i32::MAX,
        ..PlanPromotionRequest::default()
    };
    let first = client.plan_promotion(wish.clone()).await.unwrap().into_inner();
    let plan = first.plan.unwrap();
    assert_eq!((plan.target_count, plan.changed_count), (5_000, 5_000));
    assert!(first.decision.unwrap().passed);
    // The second page of the same plan goes on where the first one ended; that of another plan is refused.
    wish.page_token = first.next_page_token;
    let second = client.plan_promotion(wish.clone()).await.unwrap().into_inner();
    let names = first
        .targets
        .iter()
        .chain(&second.targets)
        .map(|one| one.target.clone());
    assert_eq!(distinct(names), first.targets.len() + second.targets.len());
    wish.recipe = None;
    let refused = client.plan_promotion(wish).await.unwrap_err();
    assert_eq!(reason(&refused), "INVALID_PAGE_TOKEN");

    let request = CreatePromotionRequest {
        release: format!("releases/{}", release.id),
        environment: "environments/prod".to_owned(),
        recipe: Some(one_at_a_time()),
        plan_digest: plan.digest.clone(),
        ..CreatePromotionRequest::default()
    };
    let made = client.create_promotion(request).await.unwrap().into_inner();
    let made = made.promotion.unwrap();
    let request = GetPromotionRequest {
        name: made.name.clone(),
    };
    let shown = client.get_promotion(request).await.unwrap().into_inner();
    assert_eq!(shown.promotion.unwrap().plan.unwrap().target_count, 5_000);

    let started = until(&world, async |tx| {
        let job = tx.job_of_promotion(id(&made.name)).await.unwrap().unwrap();
        job.started_at.is_some()
    });
    started.await;
    let mut jobs = JobServiceClient::new(ada.clone());
    let request = GetJobRequest {
        name: made.job.clone(),
    };
    let job = jobs.get_job(request).await.unwrap().into_inner().job.unwrap();
    assert_eq!(
        (job.task_counts.unwrap().total, job.waves.len()),
        (5_000, TARGETS)
    );

    // The decision's bytes are those whose digest the promotion names.
    let request = ReadDecisionRequest {
        name: made.name.clone(),
    };
    let mut stream = client.read_decision(request).await.unwrap().into_inner();
    let mut record = Vec::new();
    while let Some(piece) = stream.message().await.unwrap() {
        record.extend_from_slice(&piece.data);
    }
    let request = GetPromotionRequest {
        name: made.name.clone(),
    };
    let now: Promotion = client
        .get_promotion(request)
        .await
        .unwrap()
        .into_inner()
        .promotion
        .unwrap();
    assert_eq!(
        sealift_common::digest::Digest::of(&record).to_string(),
        now.decision.unwrap().digest
    );
    drop(stream);
    world.stop().await;
}

/// Reads a watch until the news hold `wanted` tasks and end with the job.
async fn watched(mut next: impl AsyncFnMut() -> (Option<Job>, Vec<Task>), wanted: usize) -> (Job, Vec<Task>) {
    let look = async {
        let mut tasks = Vec::new();
        loop {
            let (job, some) = next().await;
            assert!(some.len() <= 200, "{}", some.len());
            tasks.extend(some);
            if let Some(job) = job.filter(|_| tasks.len() >= wanted) {
                return (job, tasks);
            }
        }
    };
    tokio::time::timeout(PATIENCE, look).await.unwrap()
}

#[tokio::test]
async fn a_thousand_failures_with_all_their_text_reach_every_reader() {
    const TARGETS: usize = 1_000;
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let host = fleet(&world, &ada, TARGETS).await;
    let release = host.release_of("one", 1).await;
    let promotion = host.promote(&release).await;
    let app = &world.running.app;
    let job = {
        let mut tx = app.db.read().await.unwrap();
        tx.job_of_promotion(id(&promotion)).await.unwrap().unwrap()
    };
    let planned = planned(&ada, &promotion).await;
    assert!(planned.is_sorted_by_key(|one| (one.wave, one.target.clone())));
    assert!(planned.iter().all(|one| one.changes.len() == 1));
    assert_eq!(distinct(planned.into_iter().map(|one| one.target)), TARGETS);
    // All assigned, then all failed, with as much to say as fits.
    let assigned = until(&world, async |tx| {
        let counts = tx.count_tasks(job.id).await.unwrap();
        counts.get(&TaskPhase::Assigned).copied() == Some(1_000)
    });
    assigned.await;
    let failure = Failure::new(FailureCode::Unhealthy, "s".repeat(bounds::TEXT_BYTES))
        .with_detail("ä".repeat(bounds::TEXT_BYTES));
    let now = app.clock.now();
    let mut tx = host.write().await;
    for task in tx.tasks_of_job(job.id).await.unwrap() {
        let failed = TaskEvent::Failed {
            failure: failure.clone(),
        };
        tx.apply_task_event(&task, &failed, "agent/test", now)
            .await
            .unwrap();
    }
    tx.commit().await.unwrap();
    host.ended(&promotion).await;

    let name = format!("jobs/{}", job.id);
    let failed = tasks(&ada, &name, State::Failed).await;
    assert_eq!(distinct(failed.iter().map(|task| task.target.clone())), TARGETS);
    assert!(failed.iter().all(|task| task.transitions.is_empty()));
    assert_eq!(tasks(&ada, &name, State::Succeeded).await, []);
    let mut jobs = JobServiceClient::new(ada.clone());
    let request = GetJobRequest { name: name.clone() };
    let shown = jobs.get_job(request).await.unwrap().into_inner().job.unwrap();
    assert_eq!((shown.failures.len(), shown.failure_count), (20, 1_000));
    let mut page = ListFailuresRequest {
        parent: name.clone(),
        page_size: i32::MAX,
        ..ListFailuresRequest::default()
    };
    let mut listed = Vec::new();
    loop {
        let answer = jobs.list_failures(page.clone()).await.unwrap().into_inner();
        assert!(answer.failures.len() <= 200, "{}", answer.failures.len());
        assert_eq!(answer.total_size, 1_000);
        listed.extend(answer.failures);
        page.page_token = answer.next_page_token;
        if page.page_token.is_empty() {
            break;
        }
    }
    assert_eq!(listed[..20], shown.failures);
    assert_eq!(distinct(listed.into_iter().map(|one| one.target)), TARGETS);
    let request = GetTaskRequest {
        name: failed[7].name.clone(),
    };
    let one = jobs.get_task(request).await.unwrap().into_inner().task.unwrap();
    assert_eq!(one.transitions.last().unwrap().to, "failed");

    let request = WatchJobRequest { name: name.clone() };
    let mut stream = jobs.watch_job(request).await.unwrap().into_inner();
    let next = async || {
        let message = stream.message().await.unwrap().unwrap();
        (message.job, message.tasks)
    };
    let (told, seen) = watched(next, TARGETS).await;
    assert_eq!((told.task_counts.unwrap().failed, seen.len()), (1_000, TARGETS));
    let request = WatchPromotionRequest {
        name: promotion.clone(),
    };
    let mut client = PromotionServiceClient::new(ada.clone());
    let mut stream = client.watch_promotion(request).await.unwrap().into_inner();
    let next = async || {
        let message = stream.message().await.unwrap().unwrap();
        (message.job, message.tasks)
    };
    let (told, seen) = watched(next, TARGETS).await;
    assert_eq!((told.task_counts.unwrap().failed, seen.len()), (1_000, TARGETS));

    // R12: nothing of it for other tenants.
    world.tenant("evil").await;
    let mallory = world.user("evil", "mallory", Role::Admin).await;
    let mut foreign = JobServiceClient::new(mallory.clone());
    let request = ListTasksRequest {
        parent: name.clone(),
        ..ListTasksRequest::default()
    };
    let refused = foreign.list_tasks(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let request = GetTaskRequest {
        name: failed[7].name.clone(),
    };
    let refused = foreign.get_task(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let refused = foreign.watch_job(WatchJobRequest { name }).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let mut foreign = PromotionServiceClient::new(mallory);
    let request = ListPlanTargetsRequest {
        parent: promotion.clone(),
        ..ListPlanTargetsRequest::default()
    };
    let refused = foreign.list_plan_targets(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let request = ReadDecisionRequest {
        name: promotion.clone(),
    };
    let refused = foreign.read_decision(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    let request = WatchPromotionRequest { name: promotion };
    let refused = foreign.watch_promotion(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound);
    world.stop().await;
}
