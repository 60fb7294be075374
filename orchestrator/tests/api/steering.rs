//! What people do to jobs under way, over the real port: pause and resume, leave a target out, abort, repeat; the logs they read
//! meanwhile, and how long they are told to wait.

use std::time::Duration;

use sealift_common::{
    error::Reason,
    failure::{Failure, FailureCode},
    inventory::EnvironmentClass,
    release::Release,
    role::Role,
    task::{TaskEvent, Wanted},
    time::Clock as _,
};
use sealift_proto::v1::{
    self, AbortJobRequest, CancelPromotionRequest, CreatePromotionRequest, GetBoardRequest, GetJobRequest,
    GetPromotionRequest, Job, LiftHoldRequest, ListHistoryRequest, ListTasksRequest, LogLine,
    PauseJobRequest, PlaceHoldRequest, Promotion, Recipe, ResumeJobRequest, RetryJobRequest, SkipTaskRequest,
    Strategy, StreamJobLogsRequest, StreamJobLogsResponse, WatchJobRequest, gate_answer::Verdict,
    history_entry::Outcome, hold_service_client::HoldServiceClient, job::State as JobState,
    job_service_client::JobServiceClient, promotion::State, promotion_service_client::PromotionServiceClient,
    status_service_client::StatusServiceClient, strategy, task::State as TaskState,
};
use tonic::{Code, Response, Status, Streaming, transport::Channel};

use crate::{
    host::{Host, PROJECT},
    support::{World, reason},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Two hosts of one environment.
async fn two_hosts<'w>(world: &'w World, ada: &Channel) -> [Host<'w>; 2] {
    let class = EnvironmentClass::NonProduction;
    [
        Host::new(world, "default", ada, "prod", "web-1", class).await,
        Host::new(world, "default", ada, "prod", "web-2", class).await,
    ]
}

fn one_by_one() -> Recipe {
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

async fn promote(channel: &Channel, release: &Release, recipe: Recipe) -> Promotion {
    let request = CreatePromotionRequest {
        release: format!("releases/{}", release.id),
        environment: "environments/prod".to_owned(),
        recipe: Some(recipe),
        ..CreatePromotionRequest::default()
    };
    let mut client = PromotionServiceClient::new(channel.clone());
    let made = client.create_promotion(request).await.unwrap().into_inner();
    made.promotion.unwrap()
}

async fn promotion(channel: &Channel, name: &str) -> Promotion {
    let request = GetPromotionRequest {
        name: name.to_owned(),
    };
    let mut client = PromotionServiceClient::new(channel.clone());
    let found = client.get_promotion(request).await.unwrap().into_inner();
    found.promotion.unwrap()
}

async fn job(channel: &Channel, name: &str) -> Job {
    let request = GetJobRequest {
        name: name.to_owned(),
    };
    let mut client = JobServiceClient::new(channel.clone());
    client.get_job(request).await.unwrap().into_inner().job.unwrap()
}

async fn tasks(channel: &Channel, job: &str) -> Vec<v1::Task> {
    let request = ListTasksRequest {
        parent: job.to_owned(),
        ..ListTasksRequest::default()
    };
    let mut client = JobServiceClient::new(channel.clone());
    client.list_tasks(request).await.unwrap().into_inner().tasks
}

/// Brings a release to both hosts.
async fn deploy_everywhere(ada: &Channel, hosts: &[Host<'_>; 2], release: &Release) {
    let made = promote(ada, release, Recipe::default()).await;
    for host in hosts {
        let task = host.take().await;
        host.carry_out(&task, release).await;
    }
    assert_eq!(hosts[0].ended(&made.name).await, State::Deployed);
}

#[tokio::test]
async fn a_job_is_paused_and_resumed_and_a_target_left_out() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let hosts = two_hosts(&world, &ada).await;
    let release = hosts[0].release("one").await;
    let made = promote(&ada, &release, one_by_one()).await;
    let task = hosts[0].take().await;
    let mut client = JobServiceClient::new(ada.clone());
    let pause = PauseJobRequest {
        name: made.job.clone(),
        reason: "a look first".to_owned(),
        ..PauseJobRequest::default()
    };
    let stale = PauseJobRequest {
        etag: "\"0\"".to_owned(),
        ..pause.clone()
    };
    let refused = client.pause_job(stale).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::StaleEtag.as_str());
    let paused = client.pause_job(pause.clone()).await.unwrap().into_inner();
    let paused = paused.job.unwrap();
    assert_eq!(
        (paused.state(), paused.pause_reason.as_str()),
        (JobState::Paused, "operator")
    );
    let history = job(&ada, &made.job).await.transitions;
    let last = history.last().unwrap();
    assert_eq!(
        (last.actor.as_str(), last.detail.as_str()),
        ("user/ada", "operator: a look first")
    );
    hosts[0].carry_out(&task, &release).await;

    // What has not begun does not begin, and may be left out.
    let second = tasks(&ada, &made.job).await.remove(1);
    assert_eq!(second.target, hosts[1].name);
    let mut skip = SkipTaskRequest {
        name: second.name.clone(),
        ..SkipTaskRequest::default()
    };
    let refused = client.skip_task(skip.clone()).await.unwrap_err();
    assert_eq!(
        reason(&refused),
        Reason::InvalidArgument.as_str(),
        "a reason is required"
    );
    skip.reason = "the host moves".to_owned();
    let skipped = client.skip_task(skip.clone()).await.unwrap().into_inner();
    let skipped = skipped.task.unwrap();
    assert_eq!(
        (skipped.state(), skipped.skip_reason.as_str()),
        (TaskState::Skipped, "operator")
    );
    let resume = ResumeJobRequest {
        name: made.job.clone(),
        ..ResumeJobRequest::default()
    };
    let resumed = client.resume_job(resume).await.unwrap().into_inner();
    assert_ne!(resumed.job.unwrap().state(), JobState::Paused);
    assert_eq!(hosts[0].ended(&made.name).await, State::Deployed);
    let ended = tasks(&ada, &made.job).await;
    let states: Vec<_> = ended.iter().map(v1::Task::state).collect();
    assert_eq!(states, [TaskState::Succeeded, TaskState::Skipped]);
    for refused in [
        client.pause_job(pause).await.map(drop),
        client
            .skip_task(SkipTaskRequest {
                name: ended[0].name.clone(),
                ..skip
            })
            .await
            .map(drop),
    ] {
        assert_eq!(reason(&refused.unwrap_err()), Reason::WrongState.as_str());
    }
    world.stop().await;
}

/// Wherever a job is shown that waits behind a gate, it says what the gate says and what to do next.
#[tokio::test]
async fn a_job_behind_a_closed_gate_is_shown_with_what_the_gate_says() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let hosts = two_hosts(&world, &ada).await;
    let release = hosts[0].release("one").await;
    let made = promote(&ada, &release, one_by_one()).await;
    let task = hosts[0].take().await;
    let request = WatchJobRequest {
        name: made.job.clone(),
    };
    let mut client = JobServiceClient::new(ada.clone());
    let mut watch = client.watch_job(request).await.unwrap().into_inner();
    let request = PlaceHoldRequest {
        environment: "environments/prod".to_owned(),
        project: PROJECT.to_owned(),
        reason: "a look first".to_owned(),
        ..PlaceHoldRequest::default()
    };
    let mut holds = HoldServiceClient::new(ada.clone());
    let placed = holds.place_hold(request).await.unwrap().into_inner();
    let hold = placed.hold.unwrap();
    hosts[0].carry_out(&task, &release).await;
    let paused = async {
        loop {
            let news = watch.message().await.unwrap().unwrap();
            if let Some(job) = news.job.filter(|job| job.state() == JobState::Paused) {
                return job;
            }
        }
    };
    let shown = tokio::time::timeout(PATIENCE, paused).await.unwrap();
    let gate = shown.closed_gate.clone().unwrap();
    assert_eq!(
        (
            shown.pause_reason.as_str(),
            gate.gate.as_str(),
            gate.reason.as_str()
        ),
        ("gate", "hold", "LANE_HELD")
    );
    assert_eq!(gate.verdict(), Verdict::Wait);
    assert!(gate.advice.contains(&hold.uid), "{}", gate.advice);
    assert_eq!(job(&ada, &made.job).await.closed_gate, Some(gate.clone()));
    let board = StatusServiceClient::new(ada.clone())
        .get_board(GetBoardRequest::default())
        .await
        .unwrap()
        .into_inner();
    let on_board = &board.environments[0].jobs[0];
    assert_eq!(
        (on_board.pause_reason.as_str(), on_board.closed_gate.as_ref()),
        ("gate", Some(&gate))
    );
    let lift = LiftHoldRequest {
        name: hold.name,
        ..LiftHoldRequest::default()
    };
    holds.lift_hold(lift).await.unwrap();
    let task = hosts[1].take().await;
    hosts[1].carry_out(&task, &release).await;
    assert_eq!(hosts[1].ended(&made.name).await, State::Deployed);
    drop(watch);
    world.stop().await;
}

#[tokio::test]
async fn an_aborted_job_goes_back_and_its_history_says_so() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let hosts = two_hosts(&world, &ada).await;
    let good = hosts[0].release("good").await;
    deploy_everywhere(&ada, &hosts, &good).await;
    let bad = hosts[0].release("bad").await;
    let made = promote(&ada, &bad, one_by_one()).await;
    let first = hosts[0].take().await;
    hosts[0].carry_out(&first, &bad).await;
    let second = hosts[1].take().await;
    let abort = AbortJobRequest {
        name: made.job.clone(),
        reason: "it looks wrong".to_owned(),
        ..AbortJobRequest::default()
    };
    let mut client = JobServiceClient::new(ada.clone());
    let aborted = client.abort_job(abort).await.unwrap().into_inner();
    assert!(aborted.job.unwrap().stopping);
    hosts[1].report(&second, &[TaskEvent::Stopped]).await;
    let back = hosts[0].take().await;
    assert_ne!(back.job_id, first.job_id, "a job of its own");
    hosts[0].carry_out(&back, &good).await;
    assert_eq!(hosts[0].ended(&made.name).await, State::RolledBack);

    let undone = job(&ada, &made.job).await;
    assert_eq!(undone.state(), JobState::RolledBack);
    assert_eq!(undone.rollback, format!("jobs/{}", back.job_id));
    let failure = undone.failure.unwrap();
    assert_eq!(failure.code, FailureCode::Aborted.as_str());
    assert!(failure.summary.contains("it looks wrong"), "{}", failure.summary);
    let request = ListHistoryRequest {
        environment: "environments/prod".to_owned(),
        ..ListHistoryRequest::default()
    };
    let history = StatusServiceClient::new(ada.clone()).list_history(request).await;
    let outcomes: Vec<_> = history
        .unwrap()
        .into_inner()
        .entries
        .iter()
        .map(v1::HistoryEntry::outcome)
        .collect();
    assert_eq!(
        outcomes,
        [Outcome::Succeeded, Outcome::RolledBack, Outcome::Succeeded],
        "what it went back to was the active one all the while"
    );
    world.stop().await;
}

#[tokio::test]
async fn a_failed_job_is_repeated_on_the_targets_that_did_not_succeed() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let hosts = two_hosts(&world, &ada).await;
    let release = hosts[0].release("one").await;
    let made = promote(&ada, &release, Recipe::default()).await;
    let fine = hosts[0].take().await;
    let sick = hosts[1].take().await;
    let mut client = JobServiceClient::new(ada.clone());
    let retry = |job: &str| RetryJobRequest {
        name: job.to_owned(),
        change_summary: "the port is free now".to_owned(),
        ..RetryJobRequest::default()
    };
    let refused = client.retry_job(retry(&made.job)).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::WrongState.as_str(), "it has not ended");
    let failure = Failure::new(FailureCode::PortInUse, "played by a test");
    hosts[1].report(&sick, &[TaskEvent::Failed { failure }]).await;
    hosts[0].carry_out(&fine, &release).await;
    assert_eq!(hosts[0].ended(&made.name).await, State::Failed);

    let again = client.retry_job(retry(&made.job)).await.unwrap().into_inner();
    let again = promotion(&ada, &again.promotion).await;
    assert_eq!(
        (again.rerun_of.as_str(), again.scope_size),
        (made.job.as_str(), 1)
    );
    assert_eq!(again.change_summary, "the port is free now");
    let task = hosts[1].take().await;
    assert_eq!(format!("jobs/{}", task.job_id), again.job);
    hosts[1].carry_out(&task, &release).await;
    assert_eq!(hosts[1].ended(&again.name).await, State::Deployed);
    let all = tasks(&ada, &again.job).await;
    assert_eq!(all.len(), 1);
    assert_eq!(all[0].target, hosts[1].name);
    let refused = client.retry_job(retry(&again.job)).await.unwrap_err();
    assert_eq!(reason(&refused), Reason::WrongState.as_str(), "nothing is left");
    world.stop().await;
}

#[tokio::test]
async fn a_cancel_that_lets_finish_asks_no_agent_to_stop() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let hosts = two_hosts(&world, &ada).await;
    let release = hosts[0].release("one").await;
    let made = promote(&ada, &release, one_by_one()).await;
    let task = hosts[0].take().await;
    let cancel = CancelPromotionRequest {
        name: made.name.clone(),
        reason: "another is coming".to_owned(),
        finish_running: true,
        ..CancelPromotionRequest::default()
    };
    let mut client = PromotionServiceClient::new(ada.clone());
    client.cancel_promotion(cancel).await.unwrap();
    assert!(job(&ada, &made.job).await.stopping);
    let app = &world.running.app;
    let seen = app.db.read().await.unwrap().task(task.id).await.unwrap().unwrap();
    assert_eq!(seen.wanted, Wanted::Run);
    hosts[0].carry_out(&task, &release).await;
    assert_eq!(hosts[0].ended(&made.name).await, State::Cancelled);
    let ended = tasks(&ada, &made.job).await;
    let states: Vec<_> = ended.iter().map(v1::Task::state).collect();
    assert_eq!(states, [TaskState::Succeeded, TaskState::Cancelled]);
    world.stop().await;
}

/// Log lines of the attempt that is under way.
async fn says(host: &Host<'_>, task: &sealift_store::Task, lines: &[(u64, &str)]) {
    let lines: Vec<_> = lines
        .iter()
        .map(|(seq, text)| sealift_store::LogLine {
            seq: *seq,
            source: "web".to_owned(),
            text: (*text).to_owned(),
            truncated: false,
            at: sealift_common::time::SystemClock.now(),
        })
        .collect();
    let mut tx = host.write().await;
    tx.append_logs(task.id, task.job_id, task.attempt, &lines)
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

async fn logs(channel: &Channel, name: &str, follow: bool) -> Streaming<StreamJobLogsResponse> {
    logs_after(channel, name, follow, "").await.unwrap()
}

async fn logs_after(
    channel: &Channel,
    name: &str,
    follow: bool,
    after: &str,
) -> Result<Streaming<StreamJobLogsResponse>, Status> {
    let request = StreamJobLogsRequest {
        name: name.to_owned(),
        follow,
        after: after.to_owned(),
    };
    let mut client = JobServiceClient::new(channel.clone());
    client.stream_job_logs(request).await.map(Response::into_inner)
}

/// The next message with lines; `None` at the end.
async fn next_message(stream: &mut Streaming<StreamJobLogsResponse>) -> Option<StreamJobLogsResponse> {
    loop {
        let message = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap();
        match message.unwrap() {
            // A sign of life.
            Some(message) if message.lines.is_empty() => assert_eq!(message.cursor, ""),
            message => return message,
        }
    }
}

/// The next lines; `None` at the end.
async fn next_lines(stream: &mut Streaming<StreamJobLogsResponse>) -> Option<Vec<LogLine>> {
    next_message(stream).await.map(|message| message.lines)
}

fn texts(lines: &[LogLine]) -> Vec<&str> {
    lines.iter().map(|line| line.text.as_str()).collect()
}

/// A promotion to both hosts, of which the first has said `pulling` and `starting`.
async fn says_two_lines(
    ada: &Channel,
    hosts: &[Host<'_>; 2],
) -> (Release, Promotion, [sealift_store::Task; 2]) {
    let release = hosts[0].release("one").await;
    let made = promote(ada, &release, Recipe::default()).await;
    let task_of = [hosts[0].take().await, hosts[1].take().await];
    says(&hosts[0], &task_of[0], &[(1, "pulling"), (2, "starting")]).await;
    (release, made, task_of)
}

#[tokio::test]
async fn logs_are_read_as_they_are_and_followed_to_the_end_of_the_job() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let hosts = two_hosts(&world, &ada).await;
    let (release, made, task_of) = says_two_lines(&ada, &hosts).await;

    let mut now = logs(&ada, &made.job, false).await;
    let lines = next_lines(&mut now).await.unwrap();
    assert_eq!(texts(&lines), ["pulling", "starting"]);
    assert_eq!(
        (
            lines[0].target.as_str(),
            lines[0].source.as_str(),
            lines[0].attempt
        ),
        (hosts[0].name.as_str(), "web", 1)
    );
    assert_eq!(next_lines(&mut now).await, None, "without follow it ends");

    let mut follower = logs(&ada, &made.job, true).await;
    assert_eq!(
        next_lines(&mut follower).await.unwrap().len(),
        2,
        "from the beginning"
    );
    says(&hosts[1], &task_of[1], &[(1, "also here")]).await;
    assert_eq!(texts(&next_lines(&mut follower).await.unwrap()), ["also here"]);
    let of_second = format!("{}/tasks/{}", made.job, task_of[1].id);
    let mut second = logs(&ada, &of_second, false).await;
    assert_eq!(texts(&next_lines(&mut second).await.unwrap()), ["also here"]);
    assert_eq!(next_lines(&mut second).await, None);

    // The last words come before the end.
    says(&hosts[0], &task_of[0], &[(3, "done")]).await;
    for (host, task) in hosts.iter().zip(&task_of) {
        host.carry_out(task, &release).await;
    }
    assert_eq!(texts(&next_lines(&mut follower).await.unwrap()), ["done"]);
    assert_eq!(next_lines(&mut follower).await, None);
    assert_eq!(hosts[0].ended(&made.name).await, State::Deployed);

    world.tenant("evil").await;
    let mallory = world.user("evil", "mallory", Role::Admin).await;
    let refused = logs_after(&mallory, &made.job, false, "").await;
    assert_eq!(refused.unwrap_err().code(), Code::NotFound);
    world.stop().await;
}

#[tokio::test]
async fn a_log_that_broke_off_is_taken_up_behind_its_last_line_and_no_line_comes_twice() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let hosts = two_hosts(&world, &ada).await;
    let (release, made, task_of) = says_two_lines(&ada, &hosts).await;

    let mut broken = logs(&ada, &made.job, true).await;
    let seen = next_message(&mut broken).await.unwrap();
    assert_eq!(texts(&seen.lines), ["pulling", "starting"]);
    drop(broken);
    // What comes while nobody follows is told, too.
    says(&hosts[1], &task_of[1], &[(1, "also here")]).await;
    let mut again = logs_after(&ada, &made.job, true, &seen.cursor).await.unwrap();
    let more = next_message(&mut again).await.unwrap();
    assert_eq!(texts(&more.lines), ["also here"]);
    assert_ne!(more.cursor, seen.cursor);
    let mut nothing = logs_after(&ada, &made.job, false, &more.cursor).await.unwrap();
    assert_eq!(next_message(&mut nothing).await, None);

    // A place belongs to the log that gave it.
    let of_task = format!("{}/tasks/{}", made.job, task_of[1].id);
    for (name, after) in [(&of_task, seen.cursor.as_str()), (&made.job, "17")] {
        let refused = logs_after(&ada, name, false, after).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{name} {after}");
        assert!(refused.message().contains("after"), "{}", refused.message());
    }
    for (host, task) in hosts.iter().zip(&task_of) {
        host.carry_out(task, &release).await;
    }
    assert_eq!(next_message(&mut again).await, None);
    world.stop().await;
}

#[tokio::test]
async fn who_waits_is_told_for_how_long_and_from_how_many_jobs_that_is_known() {
    let world = World::start().await;
    let ada = world.user("default", "ada", Role::Admin).await;
    let class = EnvironmentClass::NonProduction;
    let host = Host::new(&world, "default", &ada, "prod", "web-1", class).await;
    let mut took = Vec::new();
    for content in ["one", "two"] {
        let release = host.release(content).await;
        let (_, task) = host.deploy(&release).await;
        let app = &world.running.app;
        let job = app
            .db
            .read()
            .await
            .unwrap()
            .job_by_id(task.job_id)
            .await
            .unwrap()
            .unwrap();
        took.push((job.finished_at.unwrap() - job.started_at.unwrap()).as_seconds_f64());
    }
    let release = host.release("three").await;
    let running = promote(&ada, &release, Recipe::default()).await;
    let task = host.take().await;
    let later = host.release("four").await;
    let waiting = promote(&ada, &later, Recipe::default()).await;
    let last = promote(&ada, &later, Recipe::default()).await;
    took.sort_by(f64::total_cmp);
    for (made, place) in [(&waiting, 1), (&last, 2)] {
        assert_eq!((made.lane_position, made.estimated_wait_samples), (place, 2));
        let told = made.estimated_wait.as_ref().unwrap();
        let told = told.seconds as f64 + f64::from(told.nanos) / 1e9;
        let wanted = took[1] * f64::from(place);
        assert!((told - wanted).abs() < 0.01, "{told} instead of {wanted}");
    }
    host.carry_out(&task, &release).await;
    assert_eq!(host.ended(&running.name).await, State::Deployed);
    let begun = promotion(&ada, &running.name).await;
    assert_eq!(
        (
            begun.lane_position,
            begun.estimated_wait_samples,
            begun.estimated_wait
        ),
        (0, 0, None)
    );
    world.stop().await;
}
