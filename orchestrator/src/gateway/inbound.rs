//! What an agent says after Hello: read strictly and bounded here, stored by the writer.

use sealift_common::{
    bounds::LOG_LINE_BYTES,
    digest::Digest,
    evidence::EvidenceResult,
    id::{AgentId, JobId, TargetId, TaskId},
    inventory::AgentFacts,
    keys::PublicKey,
    observation::TargetObservation,
};
use sealift_proto::{
    agent::v1::{ConnectRequest, LogBatch, ReportBatch, connect_request::Message},
    convert::{Malformed, bounded, parse, time},
};
use sealift_store::LogLine;

use super::{
    observations, packets,
    refusal::Refusal,
    reports::{self, AgentReport, ReportEvent, Standing},
    session::{Session, Work},
    writer::{Item, Outcome, Writer},
};
use crate::state::App;

/// Longest name of a log's source: the agent, or a service.
const SOURCE_BYTES: usize = 128;
/// Most lines in one batch.
const LOG_LINES: usize = 1_024;

/// What a message asks for.
pub enum Taken {
    /// Something that takes a while; nothing else is read meanwhile.
    Work(Work),
    /// The agent is there, and may want to know the time.
    Heartbeat {
        /// It does.
        wants_time: bool,
    },
    /// The agent is there and says something new about itself.
    News {
        /// It wants to know the time: told at once, since it measures how long that takes.
        wants_time: bool,
        /// Storing what it said.
        work: Work,
    },
    /// The agent wants the full set again.
    Resync,
    /// Nothing to do.
    Nothing,
}

/// What became of something that took a while.
#[derive(Debug)]
pub enum Done {
    /// Reports up to this number are stored.
    Acknowledged(u64),
    /// This is stored and judged for a target.
    Seen(TargetId, Digest),
    /// Nothing to tell.
    Nothing,
}

/// Takes one message of the agent.
pub fn take(session: &Session, request: ConnectRequest, key: &PublicKey) -> Result<Taken, Refusal> {
    let (app, writer, agent) = (session.app.clone(), session.writer.clone(), session.peer.agent);
    match request.message {
        None => Err(Refusal::violation("a message without content")),
        Some(Message::Hello(_)) => Err(Refusal::violation("a second Hello")),
        Some(Message::Resync(_)) => Ok(Taken::Resync),
        Some(Message::Heartbeat(heartbeat)) => match heartbeat.facts {
            None => Ok(Taken::Heartbeat {
                wants_time: heartbeat.wants_time,
            }),
            Some(facts) => {
                let facts = AgentFacts::try_from(facts)?;
                Ok(Taken::News {
                    wants_time: heartbeat.wants_time,
                    work: Box::pin(async move {
                        writer.store(agent, Item::Facts(Box::new(facts))).await?;
                        Ok(Done::Nothing)
                    }),
                })
            }
        },
        Some(Message::Reports(batch)) => {
            let key = *key;
            Ok(Taken::Work(Box::pin(take_reports(
                app, writer, agent, key, batch,
            ))))
        }
        Some(Message::Observation(observation)) => {
            let seen = TargetObservation::try_from(observation)?;
            let content = observations::content(&seen);
            if session.seen.get(&seen.target_id) == Some(&content) {
                return Ok(Taken::Nothing);
            }
            let (tenant, id) = (session.peer.tenant.0, session.id);
            Ok(Taken::Work(Box::pin(async move {
                let target_id = seen.target_id;
                let target = app.db.read().await?.target(tenant, target_id).await?;
                match target {
                    // It was this agent's, or another's, and is nobody's now; the agent does not know yet.
                    Some(target) if target.archived_at.is_some() => return Ok(Done::Nothing),
                    Some(target) if target.agent_id == Some(agent) => {}
                    Some(_) | None => {
                        return Err(Refusal::violation(
                            "an observation of a target that is not this agent's",
                        ));
                    }
                }
                match writer.store(agent, Item::Observation(id, Box::new(seen))).await? {
                    Outcome::Stored | Outcome::Acknowledged(_) => Ok(Done::Seen(target_id, content)),
                    Outcome::Deferred => Ok(Done::Nothing),
                }
            })))
        }
        Some(Message::Logs(batch)) => {
            let (task, attempt, lines) = read_logs(batch)?;
            let known = session.tasks.get(&task).copied();
            Ok(Taken::Work(Box::pin(async move {
                let job = job_of(&app, agent, task, attempt, known).await?;
                writer
                    .store(
                        agent,
                        Item::Logs {
                            job,
                            task,
                            attempt,
                            lines,
                        },
                    )
                    .await?;
                Ok(Done::Nothing)
            })))
        }
    }
}

async fn take_reports(
    app: App,
    writer: Writer,
    agent: AgentId,
    key: PublicKey,
    batch: ReportBatch,
) -> Result<Done, Refusal> {
    let mut reports = reports::read(batch)?;
    prove(&app, agent, &key, &mut reports).await?;
    match writer.store(agent, Item::Reports(reports)).await? {
        Outcome::Acknowledged(number) => Ok(Done::Acknowledged(number)),
        Outcome::Stored | Outcome::Deferred => Ok(Done::Nothing),
    }
}

/// Checks the packets of final reports, outside of the writer's transaction.
async fn prove(
    app: &App,
    agent: AgentId,
    key: &PublicKey,
    reports: &mut [AgentReport],
) -> Result<(), Refusal> {
    if !reports
        .iter()
        .any(|report| matches!(report.event, ReportEvent::Finished(_)))
    {
        return Ok(());
    }
    let order = app.identity.keys.order.public();
    let keys = packets::Keys {
        agent: key,
        evidence: &app.identity.keys.evidence,
        order: &order,
    };
    let now = app.clock.now();
    let mut tx = app.db.read().await?;
    for report in reports {
        let task = match &report.event {
            ReportEvent::Finished(_) => tx.task(report.task).await?,
            ReportEvent::Accepted | ReportEvent::Progressed(_) => continue,
        };
        let standing = reports::standing(report, task.as_ref(), agent)?;
        let (ReportEvent::Finished(finished), Some(task), Standing::Current) =
            (&mut report.event, task, standing)
        else {
            continue;
        };
        let job = tx
            .job_by_id(task.job_id)
            .await?
            .ok_or_else(|| Refusal::Internal(format!("task {} has no job", task.id)))?;
        let verdict = packets::check(finished, &task, job.environment_id, keys, now)?;
        if finished.result != EvidenceResult::Succeeded {
            tracing::info!(task.id = %task.id, agent.id = %agent, result = %finished.result, "attempt ended");
        }
        finished.verdict = Some(verdict);
    }
    Ok(())
}

/// The job of a task that this agent has or had (R12).
async fn job_of(
    app: &App,
    agent: AgentId,
    task: TaskId,
    attempt: u32,
    known: Option<(JobId, u32)>,
) -> Result<JobId, Refusal> {
    if let Some((job, newest)) = known
        && (1..=newest).contains(&attempt)
    {
        return Ok(job);
    }
    let task = app.db.read().await?.task(task).await?;
    task.filter(|task| task.agent_id == Some(agent) && (1..=task.attempt).contains(&attempt))
        .map(|task| task.job_id)
        .ok_or_else(|| Refusal::violation("log lines of a task or attempt that is not this agent's"))
}

fn read_logs(batch: LogBatch) -> Result<(TaskId, u32, Vec<LogLine>), Malformed> {
    if batch.lines.is_empty() || batch.lines.len() > LOG_LINES {
        return Err(Malformed::new(
            "logs.lines",
            format!("wanted 1 to {LOG_LINES} lines"),
        ));
    }
    let task = parse("logs.task_id", &batch.task_id)?;
    let lines = batch
        .lines
        .into_iter()
        .map(|line| {
            if line.seq == 0 {
                return Err(Malformed::new("logs.lines[].seq", "counts from 1"));
            }
            Ok(LogLine {
                seq: line.seq,
                source: bounded("logs.lines[].source", line.source, SOURCE_BYTES)?,
                text: bounded("logs.lines[].text", line.text, LOG_LINE_BYTES)?,
                at: time("logs.lines[].time", line.time.as_ref())?,
                truncated: line.truncated,
            })
        })
        .collect::<Result<_, _>>()?;
    Ok((task, batch.attempt, lines))
}
