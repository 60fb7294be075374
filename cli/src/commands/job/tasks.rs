//! `sealift job tasks` and `sealift job task`: what a job does on each target.

use clap::ValueEnum;
use sealift_proto::v1::{
    GetJobRequest, GetTaskRequest, ListTasksRequest, ListTasksResponse, Task,
    job_service_client::JobServiceClient, task::State,
};
use tonic::transport::Channel;

use crate::{
    args::{Global, ListArgs},
    client::{named, pages, target_in, target_name, unary},
    commands::{job::failures, promotion::transitions},
    error::{CliError, Exit},
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
    let answer = ListTasksResponse {
        tasks: read(client, &named("jobs", id), state, list.limit).await?,
        next_page_token: String::new(),
    };
    output::write(global.output, &answer, || rows(&answer.tasks))?;
    Ok(Exit::Done)
}

/// Reads tasks of a job, at most `limit`.
pub async fn read(client: &Client, job: &str, state: State, limit: u32) -> Result<Vec<Task>, CliError> {
    pages(limit, async |page_size, page_token| {
        let request = ListTasksRequest {
            parent: job.to_owned(),
            state: state.into(),
            target: String::new(),
            page_size,
            page_token,
        };
        let page = client.clone().list_tasks(unary(request)).await?.into_inner();
        Ok((page.tasks, page.next_page_token))
    })
    .await
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
