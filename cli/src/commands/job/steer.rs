//! The verbs of `sealift job` that change one: pause, resume, abort, skip, retry.

use sealift_proto::v1::{
    AbortJobRequest, GetJobRequest, GetPromotionRequest, Job, PauseJobRequest, ResumeJobRequest,
    RetryJobRequest, SkipTaskRequest, job, job_service_client::JobServiceClient, promotion::State,
};
use tonic::transport::Channel;

use crate::{
    args::{Global, RequestArgs},
    client::{client, named, repeated, unary},
    commands::{
        job::{JobCommand, rows, tasks::of_target},
        promote::{WaitArgs, print_gates, see_through},
        promotion,
    },
    error::{CliError, Exit},
    output,
};

type Client = JobServiceClient<Channel>;

/// Runs one of them.
pub async fn run(
    global: &Global,
    client: &mut Client,
    channel: Channel,
    command: JobCommand,
) -> Result<Exit, CliError> {
    let etag = String::new();
    let job = match command {
        JobCommand::Pause { id, reason, request } => {
            let request = PauseJobRequest {
                request_id: request.id(),
                name: named("jobs", &id),
                reason,
                etag,
            };
            let pause = async || client.pause_job(unary(request.clone())).await;
            repeated(pause).await?.job
        }
        JobCommand::Resume { id, request } => {
            let request = ResumeJobRequest {
                request_id: request.id(),
                name: named("jobs", &id),
                etag,
            };
            let before = client.get_job(unary(GetJobRequest {
                name: request.name.clone(),
            }));
            let before = before.await?.into_inner().job.unwrap_or_default();
            let resume = async || client.resume_job(unary(request.clone())).await;
            let resumed = repeated(resume).await?.job;
            if before.state() == job::State::Running {
                anstream::eprintln!(
                    "it was not paused, so nothing was let go on; a canary asks when its bake is over"
                );
            }
            resumed
        }
        JobCommand::Abort { id, reason, request } => {
            let request = AbortJobRequest {
                request_id: request.id(),
                name: named("jobs", &id),
                reason,
                etag,
            };
            let abort = async || client.abort_job(unary(request.clone())).await;
            repeated(abort).await?.job
        }
        JobCommand::Skip {
            id,
            target,
            reason,
            request,
        } => skip(client, &id, &target, reason, request).await?,
        JobCommand::Retry {
            id,
            summary,
            waiting,
            request,
        } => {
            let request = RetryJobRequest {
                request_id: request.id(),
                name: named("jobs", &id),
                change_summary: summary,
            };
            return retry(global, client, channel, request, &waiting).await;
        }
        JobCommand::Get { .. }
        | JobCommand::Failures { .. }
        | JobCommand::Tasks { .. }
        | JobCommand::Task { .. }
        | JobCommand::List { .. }
        | JobCommand::Watch { .. }
        | JobCommand::Logs { .. } => None,
    };
    let job = job.unwrap_or_default();
    output::write(global.output, &job, || rows(std::slice::from_ref(&job)))?;
    Ok(Exit::Done)
}

async fn skip(
    client: &mut Client,
    id: &str,
    target: &str,
    reason: String,
    request: RequestArgs,
) -> Result<Option<Job>, CliError> {
    let request = SkipTaskRequest {
        request_id: request.id(),
        name: of_target(client, id, target).await?.name,
        reason,
    };
    repeated(async || client.skip_task(unary(request.clone())).await).await?;
    let get = GetJobRequest {
        name: named("jobs", id),
    };
    Ok(client.get_job(unary(get)).await?.into_inner().job)
}

async fn retry(
    global: &Global,
    client: &mut Client,
    channel: Channel,
    request: RetryJobRequest,
    waiting: &WaitArgs,
) -> Result<Exit, CliError> {
    let retry = async || client.retry_job(unary(request.clone())).await;
    let name = repeated(retry).await?.promotion;
    let mut client = client!(promotion_service_client, PromotionServiceClient, channel);
    let answer = client.get_promotion(unary(GetPromotionRequest { name })).await?;
    let promotion = answer.into_inner().promotion.unwrap_or_default();
    if promotion.state() == State::Rejected {
        promotion::show(global, &promotion)?;
        if let Some(decision) = &promotion.decision {
            print_gates(decision);
        }
        return Ok(Exit::Rejected);
    }
    if waiting.wait {
        return see_through(global, &mut client, &promotion, waiting).await;
    }
    promotion::show(global, &promotion)?;
    Ok(Exit::Done)
}
