//! What failed, as callers see it over the real port: each attempt for itself, with category, time, target and step.

use sealift_common::{
    error::Reason,
    failure::{Failure, FailureCategory, FailureCode},
    inventory::EnvironmentClass,
    role::Role,
    task::{TaskEvent, TaskStep},
};
use sealift_proto::v1::{
    self, GetJobRequest, GetPromotionRequest, GetTaskRequest, ListFailuresRequest, ListFailuresResponse,
    ListJobsRequest, ListPromotionsRequest, ListTasksRequest, job_service_client::JobServiceClient,
    promotion_service_client::PromotionServiceClient, task::State,
};
use tonic::{Code, transport::Channel};

use crate::{
    host::Host,
    support::{World, reason},
};

fn step(step: TaskStep) -> TaskEvent {
    TaskEvent::Progressed { step }
}

fn failed(code: FailureCode) -> TaskEvent {
    let failure = Failure::new(code, "what failed");
    TaskEvent::Failed { failure }
}

/// Code, category, attempt, step and target.
fn said(failure: &v1::Failure) -> (&str, &str, i32, &str, &str) {
    (
        &failure.code,
        &failure.category,
        failure.attempt,
        &failure.step,
        failure.target.rsplit('/').next().unwrap(),
    )
}

async fn page(channel: &Channel, parent: &str, size: i32, token: &str) -> ListFailuresResponse {
    let request = ListFailuresRequest {
        parent: parent.to_owned(),
        page_size: size,
        page_token: token.to_owned(),
    };
    let answer = JobServiceClient::new(channel.clone())
        .list_failures(request)
        .await;
    answer.unwrap().into_inner()
}

#[tokio::test]
async fn a_job_tells_what_failed_in_each_attempt_newest_first() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let class = EnvironmentClass::NonProduction;
    let one = Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    let two = Host::new(&world, "default", &ada, "prod", "web-2", class).await;
    let release = one.release("one").await;
    let promotion = one.promote(&release).await;
    let (first, second) = (one.take().await, two.take().await);
    let flaky = Failure::new(FailureCode::RegistryUnavailable, "it broke off").with_detail("503");
    let flaky = TaskEvent::AttemptFailed { failure: flaky };
    one.report(&first, &[flaky, failed(FailureCode::AgentRevoked)])
        .await;
    let way = [step(TaskStep::HealthWait), step(TaskStep::Restoring)];
    two.report(&second, &way).await;
    two.report(&second, &[failed(FailureCode::Unhealthy)]).await;
    one.ended(&promotion).await;

    // Whoever may read sees it.
    let olga = world.user("default", "olga", Role::Observer).await;
    let mut jobs = JobServiceClient::new(olga.clone());
    let name = format!("jobs/{}", first.job_id);
    let request = GetJobRequest { name: name.clone() };
    let job = jobs.get_job(request).await.unwrap().into_inner().job.unwrap();
    let seen: Vec<_> = job.failures.iter().map(said).collect();
    assert_eq!(
        seen,
        [
            ("UNHEALTHY", "app", 1, "health_wait", "web-2"),
            ("AGENT_REVOKED", "policy", 1, "retry_wait", "web-1"),
            ("REGISTRY_UNAVAILABLE", "artifact", 1, "pulling", "web-1"),
        ]
    );
    assert_eq!(job.failure_count, 3);
    assert_eq!(job.failures[2].detail, "503");
    for failure in &job.failures {
        assert!(failure.observe_time.is_some() && !failure.advice.is_empty());
        assert!(failure.category.parse::<FailureCategory>().is_ok());
    }
    assert!(job.failures.is_sorted_by_key(|failure| {
        let time = failure.observe_time.unwrap();
        std::cmp::Reverse((time.seconds, time.nanos))
    }));
    // The job's own failure says when it was told, and so does the promotion's; in lists, too.
    let own = job.failure.unwrap();
    assert!(own.observe_time.is_some() && own.target.is_empty(), "{own:?}");
    let listed = jobs.list_jobs(ListJobsRequest::default()).await.unwrap();
    let listed = listed.into_inner().jobs.remove(0);
    assert_eq!(listed.failure, Some(own));
    assert_eq!((listed.failures, listed.failure_count), (Vec::new(), 0));
    let mut promotions = PromotionServiceClient::new(olga.clone());
    let request = GetPromotionRequest { name: promotion };
    let got = promotions.get_promotion(request).await.unwrap().into_inner();
    let got = got.promotion.unwrap().failure.unwrap();
    assert!(got.observe_time.is_some());
    let listed = promotions.list_promotions(ListPromotionsRequest::default()).await;
    assert_eq!(listed.unwrap().into_inner().promotions[0].failure, Some(got));

    // A task says its own.
    let task = format!("{name}/tasks/{}", first.id);
    let request = GetTaskRequest { name: task.clone() };
    let got = jobs.get_task(request).await.unwrap().into_inner().task.unwrap();
    assert_eq!(got.failures, job.failures[1..]);
    assert_eq!(got.failure.as_ref(), got.failures.first());
    let request = ListTasksRequest {
        parent: name.clone(),
        state: State::Failed.into(),
        ..ListTasksRequest::default()
    };
    let listed = jobs.list_tasks(request).await.unwrap().into_inner().tasks;
    let listed: Vec<_> = listed.iter().filter_map(|task| task.failure.clone()).collect();
    assert_eq!(listed, [job.failures[1].clone(), job.failures[0].clone()]);

    // Page by page, of the job and of the task.
    let (mut token, mut paged) = (String::new(), Vec::new());
    loop {
        let answer = page(&olga, &name, 2, &token).await;
        assert_eq!(answer.total_size, 3);
        paged.extend(answer.failures);
        token = answer.next_page_token;
        if token.is_empty() {
            break;
        }
    }
    assert_eq!(paged, job.failures);
    let of_task = page(&olga, &task, 0, "").await;
    assert_eq!((of_task.failures, of_task.total_size), (got.failures, 2));
    // A token is good for the same list only.
    let token = page(&olga, &name, 1, "").await.next_page_token;
    let other = ListFailuresRequest {
        parent: task.clone(),
        page_token: token,
        ..ListFailuresRequest::default()
    };
    let refused = jobs.list_failures(other).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::InvalidPageToken.as_str());

    // Nobody else learns of it (R12).
    world.tenant("evil").await;
    let mallory = world.user("evil", "mallory", Role::Admin).await;
    for parent in [name, task] {
        let request = ListFailuresRequest {
            parent,
            ..ListFailuresRequest::default()
        };
        let refused = JobServiceClient::new(mallory.clone())
            .list_failures(request)
            .await;
        assert_eq!(refused.unwrap_err().code(), Code::NotFound);
    }
    world.stop().await;
}

#[tokio::test]
async fn a_lost_task_has_a_failure_without_a_time_until_it_is_told() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let class = EnvironmentClass::NonProduction;
    let host = Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    let release = host.release("one").await;
    host.promote(&release).await;
    let task = host.take().await;
    host.report(&task, &[TaskEvent::LeaseExpired]).await;
    let mut jobs = JobServiceClient::new(ada.clone());
    let name = format!("jobs/{}/tasks/{}", task.job_id, task.id);
    let got = jobs.get_task(GetTaskRequest { name }).await.unwrap().into_inner();
    let got = got.task.unwrap();
    let failure = got.failure.unwrap();
    assert_eq!(said(&failure), ("AGENT_LOST", "infrastructure", 1, "", "web-1"));
    assert_eq!((failure.observe_time, got.failures), (None, Vec::new()));
    world.stop().await;
}
