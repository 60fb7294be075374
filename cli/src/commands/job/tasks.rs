//! `sealift job tasks` and `sealift job task`: what a job does on each target.

use clap::ValueEnum;
use sealift_proto::v1::{
    GetJobRequest, GetTaskRequest, ListTasksRequest, ListTasksResponse, Task,
    job_service_client::JobServiceClient, task::State,
};
use tonic::{Response, Status, transport::Channel};

use crate::{
    args::{Global, ListArgs},
    client::{named, target_in, target_name, unary},
    commands::{job::failures, promotion::transitions},
    error::{CliError, Exit},
    list,
    output::{
        self, Format, Rows,
        text::{leaf, or_dash, short_target},
    },
    progress::{failure_line, failure_text},
};

type Client = JobServiceClient<Channel>;

/// A state to narrow a list to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum TaskStateArg {
    Pending,
    Assigned,
    Accepted,
    Running,
    Lost,
    Succeeded,
    Failed,
    Skipped,
    Cancelled,
}

impl TaskStateArg {
    const fn wire(self) -> State {
        match self {
            Self::Pending => State::Pending,
            Self::Assigned => State::Assigned,
            Self::Accepted => State::Accepted,
            Self::Running => State::Running,
            Self::Lost => State::Lost,
            Self::Succeeded => State::Succeeded,
            Self::Failed => State::Failed,
            Self::Skipped => State::Skipped,
            Self::Cancelled => State::Cancelled,
        }
    }
}

/// Shows the tasks of a job.
pub async fn list(
    global: &Global,
    client: &Client,
    id: &str,
    state: Option<TaskStateArg>,
    list: ListArgs,
) -> Result<Exit, CliError> {
    let state = state.map_or(State::Unspecified, TaskStateArg::wire);
    let job = named("jobs", id);
    let fetch = async |page_size, page_token| page(client, &job, state, page_size, page_token).await;
    list::show(global, list, fetch, rows).await?;
    Ok(Exit::Done)
}

/// Tasks of a job for a table.
pub async fn read(client: &Client, job: &str, list: ListArgs) -> Result<Vec<Task>, CliError> {
    let every = State::Unspecified;
    let fetch = async |page_size, page_token| page(client, job, every, page_size, page_token).await;
    list::table(list, fetch).await
}

async fn page(
    client: &Client,
    job: &str,
    state: State,
    page_size: i32,
    page_token: String,
) -> Result<Response<ListTasksResponse>, Status> {
    let request = ListTasksRequest {
        parent: job.to_owned(),
        state: state.into(),
        target: String::new(),
        page_size,
        page_token,
    };
    client.clone().list_tasks(unary(request)).await
}

/// Shows one task with its history.
pub async fn get(global: &Global, client: &mut Client, id: &str, target: &str) -> Result<Exit, CliError> {
    let name = of_target(client, id, target).await?.name;
    let answer = client.get_task(unary(GetTaskRequest { name })).await?;
    let task = answer.into_inner().task.unwrap_or_default();
    output::write(global.output, &task, || rows(std::slice::from_ref(&task)))?;
    if global.output == Format::Table {
        if let Some(failure) = &task.failure {
            output::line(&format!("\n{}", failure_text(failure)))?;
        }
        // One failure is told above already.
        if task.failures.len() > usize::from(task.failure.is_some()) {
            output::line("")?;
            output::write(global.output, &task, || failures::rows(&task.failures))?;
        }
        output::line("")?;
        output::write(global.output, &task, || transitions(&task.transitions))?;
    }
    Ok(Exit::Done)
}

/// The task of a job on a target, named alone, as ENVIRONMENT/TARGET or in full.
pub async fn of_target(client: &mut Client, id: &str, target: &str) -> Result<Task, CliError> {
    let job = named("jobs", id);
    let target = if target.contains('/') {
        target_name(target)?
    } else {
        let request = GetJobRequest { name: job.clone() };
        let found = client.get_job(unary(request)).await?.into_inner().job;
        target_in(&found.unwrap_or_default().environment, target)?
    };
    let request = ListTasksRequest {
        parent: job,
        target: target.clone(),
        ..ListTasksRequest::default()
    };
    let found = client.list_tasks(unary(request)).await?.into_inner().tasks;
    found.into_iter().next().ok_or_else(|| {
        CliError::usage(
            format!("the job has no target {target:?}"),
            format!("see sealift job tasks {id}"),
        )
    })
}

/// The stable text of a state.
pub const fn task_state(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::Pending => "pending",
        State::Assigned => "assigned",
        State::Accepted => "accepted",
        State::Running => "running",
        State::Lost => "lost",
        State::Succeeded => "succeeded",
        State::Failed => "failed",
        State::Skipped => "skipped",
        State::Cancelled => "cancelled",
    }
}

/// Tasks as rows.
pub fn rows(tasks: &[Task]) -> Rows {
    Rows::new(&[
        "WAVE", "TARGET", "STATE", "STEP", "ATTEMPT", "EVIDENCE", "FAILURE",
    ])
    .with(tasks.iter().map(|task| {
        vec![
            task.wave.to_string(),
            short_target(&task.target),
            task_state(task.state()).to_owned(),
            or_dash(if task.skip_reason.is_empty() {
                &task.step
            } else {
                &task.skip_reason
            }),
            task.attempt.to_string(),
            or_dash(
                &task
                    .packets
                    .iter()
                    .map(|packet| leaf(packet))
                    .collect::<Vec<_>>()
                    .join(","),
            ),
            task.failure.as_ref().map(failure_line).unwrap_or_default(),
        ]
    }))
}
