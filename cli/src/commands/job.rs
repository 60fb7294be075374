//! `sealift job`: the execution of promotions.

mod failures;
mod steer;
pub mod tasks;

use std::cell::RefCell;

use clap::Subcommand;
use sealift_proto::v1::{
    GateAnswer, GetJobRequest, Job, ListJobsRequest, LogLine, StreamJobLogsRequest, StreamJobLogsResponse,
    TaskCounts, WatchJobRequest, WatchJobResponse, gate_answer::Verdict, job::State,
    job_service_client::JobServiceClient,
};
use tonic::transport::Channel;

use crate::{
    args::{Global, ListArgs, RequestArgs},
    client::{client, connect, named, unary},
    commands::{job::tasks::TaskStateArg, promote::WaitArgs},
    error::{CliError, Exit},
    list,
    output::{
        self, Format, Rows,
        text::{age, clean, leaf, log_line, one_line, short_target, time},
    },
    progress::{Progress, failure_line},
    watch,
};

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum JobCommand {
    /// Show one with its tasks (`-o json`: with how they stand; see `job tasks`).
    Get {
        /// Its identifier.
        id: String,
        /// Bounds of its tasks.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show its tasks, one for each target, by wave.
    Tasks {
        /// Its identifier.
        id: String,
        /// Only those in this state.
        #[arg(long, value_enum)]
        state: Option<TaskStateArg>,
        /// Bounds.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show one of its tasks with its history.
    Task {
        /// Identifier of the job.
        id: String,
        /// The target: its name, or ENVIRONMENT/TARGET.
        target: String,
    },
    /// Show what failed, each attempt for itself, newest first.
    Failures {
        /// Identifier of the job.
        id: String,
        /// Only on this target: its name, or ENVIRONMENT/TARGET.
        target: Option<String>,
        /// Bounds.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show all, newest first.
    List {
        /// Only in this environment.
        #[arg(long, visible_alias = "environment")]
        env: Option<String>,
        /// Bounds.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Follow one to its end; the exit code tells how it ended. With -o json, one JSON object in one line for each change.
    Watch {
        /// Its identifier.
        id: String,
    },
    /// Begin nothing new until it is resumed; what is under way ends.
    Pause {
        /// Its identifier.
        id: String,
        /// Why.
        #[arg(long, default_value = "")]
        reason: String,
        /// Repeating it.
        #[command(flatten)]
        request: RequestArgs,
    },
    /// Let a paused one go on: a canary passes if it still runs, failures so far are accepted.
    #[command(visible_alias = "promote")]
    Resume {
        /// Its identifier.
        id: String,
        /// Repeating it.
        #[command(flatten)]
        request: RequestArgs,
    },
    /// End one before its time and undo what it changed (`promotion cancel` keeps what it changed).
    Abort {
        /// Its identifier.
        id: String,
        /// Why.
        #[arg(long, default_value = "")]
        reason: String,
        /// Repeating it.
        #[command(flatten)]
        request: RequestArgs,
    },
    /// Leave one target alone that has not begun.
    Skip {
        /// Identifier of the job.
        id: String,
        /// The target: its name, or ENVIRONMENT/TARGET.
        target: String,
        /// Why.
        #[arg(long)]
        reason: String,
        /// Repeating it.
        #[command(flatten)]
        request: RequestArgs,
    },
    /// Repeat one that ended on the targets that did not succeed.
    Retry {
        /// Its identifier.
        id: String,
        /// What this is, for the record.
        #[arg(long, default_value = "")]
        summary: String,
        /// Following it.
        #[command(flatten)]
        waiting: WaitArgs,
        /// Repeating it.
        #[command(flatten)]
        request: RequestArgs,
    },
    /// What agents and services logged while it ran.
    Logs {
        /// Its identifier.
        id: String,
        /// Go on until the job ends.
        #[arg(short, long)]
        follow: bool,
    },
}

/// Calls about jobs.
type Client = JobServiceClient<Channel>;

pub async fn run(global: &Global, command: JobCommand) -> Result<Exit, CliError> {
    let channel = connect(global).await?;
    let mut client = client!(job_service_client, JobServiceClient, channel.clone());
    match command {
        JobCommand::Pause { .. }
        | JobCommand::Resume { .. }
        | JobCommand::Abort { .. }
        | JobCommand::Skip { .. }
        | JobCommand::Retry { .. } => steer::run(global, &mut client, channel, command).await,
        JobCommand::Tasks { id, state, list } => tasks::list(global, &client, &id, state, list).await,
        JobCommand::Task { id, target } => tasks::get(global, &mut client, &id, &target).await,
        JobCommand::Failures { id, target, list } => {
            failures::list(global, &mut client, &id, target.as_deref(), list).await
        }
        JobCommand::Get { id, list } => {
            let request = GetJobRequest {
                name: named("jobs", &id),
            };
            let job = client
                .get_job(unary(request))
                .await?
                .into_inner()
                .job
                .unwrap_or_default();
            output::write(global.output, &job, || rows(std::slice::from_ref(&job)))?;
            if global.output == Format::Table {
                let found = tasks::read(&client, &job.name, list).await?;
                output::line("")?;
                output::write(global.output, &job, || tasks::rows(&found))?;
                if !job.failures.is_empty() {
                    output::line(&format!("\n{}", failures::shown(&job)))?;
                    output::write(global.output, &job, || failures::rows(&job.failures))?;
                }
                if let Some(text) = waits_for_a_person(&job) {
                    output::line(&format!("\n{text}"))?;
                } else if !job.rollback.is_empty() {
                    output::line(&format!("\nundone{}", undone_by(&job)))?;
                }
            }
            Ok(Exit::Done)
        }
        JobCommand::List { env, list } => {
            let environment = env.map(|env| named("environments", &env)).unwrap_or_default();
            let fetch = async |page_size, page_token| {
                let request = ListJobsRequest {
                    environment: environment.clone(),
                    page_size,
                    page_token,
                };
                client.clone().list_jobs(unary(request)).await
            };
            list::show(global, list, fetch, rows).await?;
            Ok(Exit::Done)
        }
        JobCommand::Watch { id } => watch(global, &mut client, &named("jobs", &id)).await,
        JobCommand::Logs { id, follow } => logs(global, &client, &named("jobs", &id), follow).await,
    }
}

/// Follows a job to its end. With a format for programs, each change is one record.
async fn watch(global: &Global, client: &mut Client, name: &str) -> Result<Exit, CliError> {
    let open = async || {
        let request = WatchJobRequest {
            name: name.to_owned(),
        };
        client.watch_job(request).await.map(tonic::Response::into_inner)
    };
    watch::follow(
        &mut Progress::new(),
        watch::PATIENCE,
        open,
        None,
        |progress, news: WatchJobResponse| {
            // A sign of life holds nothing.
            if global.output != Format::Table && news != WatchJobResponse::default() {
                output::write_record(global.output, &news)?;
            }
            progress.tasks(&news.tasks);
            let Some(job) = &news.job else { return Ok(None) };
            let text = waits_for_a_person(job).unwrap_or_else(|| state(job.state()).to_owned());
            progress.say("job", &text);
            Ok(ended(job.state()))
        },
    )
    .await
}

/// Writes the lines of a log, with `follow` until its job ends. A stream that breaks is taken up behind the last line.
async fn logs(global: &Global, client: &Client, name: &str, follow: bool) -> Result<Exit, CliError> {
    let after = RefCell::new(String::new());
    let open = async || {
        let request = StreamJobLogsRequest {
            name: name.to_owned(),
            follow,
            after: after.borrow().clone(),
        };
        let answer = client.clone().stream_job_logs(request).await;
        answer.map(tonic::Response::into_inner)
    };
    watch::follow(
        &mut Progress::of_connection(),
        watch::PATIENCE,
        open,
        Some(Exit::Done),
        |_, batch: StreamJobLogsResponse| {
            for line in &batch.lines {
                log(global, line)?;
            }
            if !batch.cursor.is_empty() {
                after.replace(batch.cursor);
            }
            Ok(None)
        },
    )
    .await
}

fn ended(state: State) -> Option<Exit> {
    match state {
        State::Succeeded => Some(Exit::Done),
        State::Failed | State::Cancelled | State::RolledBack | State::RollbackFailed => Some(Exit::Failed),
        State::Unspecified | State::Queued | State::Running | State::Paused | State::RollingBack => None,
    }
}

/// What a job under way says about itself that its tasks do not.
pub fn waits_for_a_person(job: &Job) -> Option<String> {
    let id = leaf(&job.name);
    match (job.state(), &job.closed_gate) {
        (State::Paused, Some(gate)) => {
            Some(format!("paused ({}): {}", clean(&gate.reason), closed(gate, &id)))
        }
        (State::Paused, None) => Some(format!(
            "paused ({}): sealift job resume {id} lets it go on, sealift job abort {id} undoes it",
            clean(&job.pause_reason)
        )),
        (State::RollingBack, _) => Some(format!("rolling back{}", undone_by(job))),
        (
            State::Unspecified
            | State::Queued
            | State::Running
            | State::Succeeded
            | State::Failed
            | State::Cancelled
            | State::RolledBack
            | State::RollbackFailed,
            _,
        ) => None,
    }
}

/// Which job undoes one, or has undone it.
fn undone_by(job: &Job) -> String {
    match leaf(&job.rollback) {
        id if id.is_empty() => String::new(),
        id => format!(": sealift job get {id} is the job that undoes it"),
    }
}

/// What a gate that has closed says, and what to do next.
fn closed(gate: &GateAnswer, id: &str) -> String {
    let then = match gate.verdict() {
        Verdict::Wait => format!("sealift job abort {id} undoes it"),
        Verdict::Unspecified | Verdict::Pass | Verdict::Fail => {
            format!("sealift job resume {id} asks the gate again, sealift job abort {id} undoes it")
        }
    };
    one_line(&format!("{}; next: {}; or {then}", gate.message, gate.advice))
}

fn log(global: &Global, line: &LogLine) -> Result<(), CliError> {
    if global.output != Format::Table {
        return output::write_record(global.output, line);
    }
    let stamp =
        time(line.time.as_ref()).map_or_else(String::new, |time| time.format("%H:%M:%S%.3f").to_string());
    let mark = if line.truncated { " [truncated]" } else { "" };
    output::line(&format!(
        "{stamp} {} [{}] {}{mark}",
        short_target(&line.target),
        clean(&line.source),
        log_line(&line.text)
    ))
}

fn state(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::Queued => "queued",
        State::Running => "running",
        State::Paused => "paused",
        State::RollingBack => "rolling_back",
        State::Succeeded => "succeeded",
        State::Failed => "failed",
        State::Cancelled => "cancelled",
        State::RolledBack => "rolled_back",
        State::RollbackFailed => "rollback_failed",
    }
}

/// `3/10`, with what went wrong.
fn stand(tasks: &TaskCounts) -> String {
    let done = tasks.succeeded + tasks.failed + tasks.skipped + tasks.cancelled;
    let mut text = format!("{done}/{}", tasks.total);
    for (count, what) in [(tasks.failed, "failed"), (tasks.lost, "lost")] {
        if count > 0 {
            text = format!("{text} ({count} {what})");
        }
    }
    text
}

pub fn rows(jobs: &[Job]) -> Rows {
    // Lists tell nothing about tasks.
    let counted = jobs.iter().any(|job| job.task_counts.is_some());
    let mut header = vec!["JOB", "RELEASE", "ENVIRONMENT", "STATE", "AGE", "FAILURE"];
    if counted {
        header.insert(4, "TASKS");
    }
    Rows::new(&header).with(jobs.iter().map(|job| {
        let mut row = vec![
            leaf(&job.name),
            clean(&job.release_display),
            leaf(&job.environment),
            match (job.stopping, job.pause_reason.as_str()) {
                (true, _) => format!("{} (stopping)", state(job.state())),
                (false, "") => state(job.state()).to_owned(),
                (false, reason) => format!("{} ({})", state(job.state()), clean(reason)),
            },
            age(job.create_time.as_ref(), output::now()),
            job.failure.as_ref().map(failure_line).unwrap_or_default(),
        ];
        if counted {
            row.insert(4, job.task_counts.as_ref().map(stand).unwrap_or_default());
        }
        row
    }))
}
