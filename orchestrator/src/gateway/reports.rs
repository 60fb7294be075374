//! Reports of agents: read strictly, applied in order inside one transaction. Late and repeated ones change nothing; one that is
//! not this agent's to make refuses the whole batch (R12).

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    bounds::{ENVELOPE_BYTES, REPORT_BATCH, TEXT_BYTES},
    evidence::EvidenceResult,
    failure::{Failure, FailureCode},
    id::{AgentId, TaskId},
    task::{TaskEvent, TaskStep},
};
use sealift_proto::{
    agent::v1::{self as pb, report::Event},
    convert::{Malformed, bounded, parse},
};
use sealift_store::{Task, Tx};

use super::{packets::Proof, refusal::Refusal};
use crate::app::attempts;

/// One report, as the domain knows it.
#[derive(Debug)]
pub struct AgentReport {
    /// Number of the report; counts from 1 for each agent.
    pub number: u64,
    /// The task.
    pub task: TaskId,
    /// Which attempt.
    pub attempt: u32,
    /// What happened.
    pub event: ReportEvent,
}

/// What an agent reports about an attempt.
#[derive(Debug)]
pub enum ReportEvent {
    /// The order was verified and journalled.
    Accepted,
    /// A step began; `None` when this orchestrator does not know the step.
    Progressed(Option<TaskStep>),
    /// It ended.
    Finished(Box<Finished>),
}

/// How an attempt ended, with its proof.
#[derive(Debug)]
pub struct Finished {
    /// How.
    pub result: EvidenceResult,
    /// Why it did not succeed.
    pub failure: Option<Failure>,
    /// The packet's exact bytes.
    pub packet: Vec<u8>,
    /// The sticker's exact bytes; empty when none was written.
    pub sticker: Vec<u8>,
    /// What [`super::packets::check`] made of the packet; `None` until then, or when the report is late.
    pub proof: Option<Box<Proof>>,
}

/// Reads a batch strictly: bounded, numbered without gap.
pub fn read(batch: pb::ReportBatch) -> Result<Vec<AgentReport>, Malformed> {
    if batch.reports.is_empty() || batch.reports.len() > REPORT_BATCH {
        return Err(Malformed::new(
            "reports",
            format!("wanted 1 to {REPORT_BATCH} reports"),
        ));
    }
    let reports = batch
        .reports
        .into_iter()
        .map(report)
        .collect::<Result<Vec<_>, _>>()?;
    let in_order = reports
        .windows(2)
        .all(|pair| pair[0].number.checked_add(1) == Some(pair[1].number));
    if reports[0].number == 0 || !in_order {
        return Err(Malformed::new(
            "reports[].number",
            "does not count from 1 without gap",
        ));
    }
    Ok(reports)
}

fn report(report: pb::Report) -> Result<AgentReport, Malformed> {
    let event = match report.event {
        None => return Err(Malformed::new("reports[].event", "is missing")),
        Some(Event::Accepted(pb::Accepted {})) => ReportEvent::Accepted,
        // Waiting for the next attempt is ours to say.
        Some(Event::Progressed(pb::Progressed { step })) => {
            ReportEvent::Progressed(step.parse().ok().filter(|step| *step != TaskStep::RetryWait))
        }
        Some(Event::Finished(finished)) => ReportEvent::Finished(Box::new(self::finished(finished)?)),
    };
    Ok(AgentReport {
        number: report.number,
        task: parse("reports[].task_id", &report.task_id)?,
        attempt: report.attempt,
        event,
    })
}

fn finished(finished: pb::Finished) -> Result<Finished, Malformed> {
    use pb::finished::Result as Wire;
    let result = match finished.result() {
        Wire::Unspecified => return Err(Malformed::new("finished.result", "is missing or unknown")),
        Wire::Succeeded => EvidenceResult::Succeeded,
        Wire::Failed => EvidenceResult::Failed,
        Wire::Stopped => EvidenceResult::Cancelled,
        Wire::Refused => EvidenceResult::Refused,
    };
    if finished.packet.len() > ENVELOPE_BYTES || finished.sticker.len() > ENVELOPE_BYTES {
        return Err(Malformed::new(
            "finished",
            format!("packet or sticker above {ENVELOPE_BYTES} bytes"),
        ));
    }
    let failure = finished
        .failure
        .map(|failure| {
            Ok::<_, Malformed>(Failure {
                // A code of a newer agent: what it means is in the summary.
                code: failure.code.parse().unwrap_or(FailureCode::Internal),
                summary: bounded("failure.summary", failure.summary, TEXT_BYTES)?,
                detail: bounded("failure.detail", failure.detail, TEXT_BYTES * 4)?,
            })
        })
        .transpose()?;
    if failure.is_none() && matches!(result, EvidenceResult::Failed | EvidenceResult::Refused) {
        return Err(Malformed::new("finished.failure", "is missing"));
    }
    Ok(Finished {
        result,
        failure,
        packet: finished.packet,
        sticker: finished.sticker,
        proof: None,
    })
}

/// Whose a report is to make, and whether it still says anything.
#[derive(Debug, PartialEq, Eq)]
pub enum Standing {
    /// About the task's present attempt.
    Current,
    /// About an attempt that is over: known already.
    Late,
}

/// Checks a report against the task that it names (R12).
pub fn standing(report: &AgentReport, task: Option<&Task>, agent: AgentId) -> Result<Standing, Refusal> {
    // The answer does not tell a foreign task from one that does not exist.
    let task = task.filter(|task| task.agent_id == Some(agent)).ok_or_else(|| {
        Refusal::violation(format!(
            "report {} is about a task that is not this agent's",
            report.number
        ))
    })?;
    if report.attempt == 0 || report.attempt > task.attempt {
        return Err(Refusal::violation(format!(
            "report {} is about an attempt that was never ordered",
            report.number
        )));
    }
    Ok(if report.attempt == task.attempt {
        Standing::Current
    } else {
        Standing::Late
    })
}

/// Applies a batch and moves the agent's acknowledged number. The caller commits. Answers the number to acknowledge.
pub async fn apply(
    tx: &mut Tx,
    agent: AgentId,
    reports: &[AgentReport],
    now: DateTime<Utc>,
) -> Result<u64, Refusal> {
    let acknowledged = tx.acknowledged_report(agent).await?;
    let (Some(first), Some(last)) = (reports.first(), reports.last()) else {
        return Ok(acknowledged);
    };
    if first.number > acknowledged + 1 {
        return Err(Refusal::violation(format!(
            "report {} does not follow {acknowledged}, the last one stored: reports are missing, or the database is older than the agent",
            first.number
        )));
    }
    let actor = format!("agent/{agent}");
    for report in reports.iter().filter(|report| report.number > acknowledged) {
        let task = tx.task(report.task).await?;
        if standing(report, task.as_ref(), agent)? == Standing::Current
            && let Some(task) = task
        {
            apply_one(tx, &task, report, &actor, now).await?;
        }
    }
    if last.number > acknowledged {
        tx.set_acknowledged_report(agent, last.number).await?;
    }
    Ok(last.number.max(acknowledged))
}

async fn apply_one(
    tx: &mut Tx,
    task: &Task,
    report: &AgentReport,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<(), Refusal> {
    match &report.event {
        ReportEvent::Accepted => {
            tx.apply_task_event(task, &TaskEvent::Accepted, actor, now)
                .await?;
        }
        ReportEvent::Progressed(None) => {}
        ReportEvent::Progressed(Some(step)) => {
            let event = TaskEvent::Progressed { step: *step };
            tx.apply_task_event(task, &event, actor, now).await?;
        }
        ReportEvent::Finished(finished) => apply_finished(tx, task, finished, actor, now).await?,
    }
    Ok(())
}

async fn apply_finished(
    tx: &mut Tx,
    task: &Task,
    finished: &Finished,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<(), Refusal> {
    if tx.packet_of_attempt(task.id, task.attempt).await?.is_some() {
        return Ok(());
    }
    let proof = finished
        .proof
        .as_deref()
        .ok_or_else(|| Refusal::Internal("a final report came without its checked packet".to_owned()))?;
    tx.insert_packet(&proof.row).await?;
    tx.finish_attempt(
        task.id,
        task.attempt,
        finished.result.as_str(),
        Some(proof.row.id),
        now,
    )
    .await?;
    if let Some(sticker) = &proof.sticker {
        let (digest, previous) = (sticker.digest, sticker.previous);
        tx.insert_sticker(
            task.target_id,
            &proof.project.to_string(),
            task.id,
            digest,
            previous,
            &sticker.content,
            now,
        )
        .await?;
    }
    let event = match (finished.result, &finished.failure) {
        (EvidenceResult::Succeeded, _) => TaskEvent::Succeeded,
        (EvidenceResult::Cancelled, _) => TaskEvent::Stopped,
        (EvidenceResult::Failed | EvidenceResult::Refused, Some(failure)) => {
            attempts::after_failure(task, failure, &proof.limits)
        }
        (EvidenceResult::Failed | EvidenceResult::Refused, None) => {
            return Err(Refusal::violation("a failure without a reason"));
        }
    };
    let task = tx.apply_task_event(task, &event, actor, now).await?;
    match &event {
        TaskEvent::Succeeded => {
            if let Some(sticker) = &proof.sticker {
                tx.set_current(
                    task.target_id,
                    &proof.project,
                    task.job_id,
                    task.id,
                    proof.release,
                    task.fence,
                    sticker.digest,
                    now,
                )
                .await?;
            }
            // What was found wrong before is replaced; the next observation finds what is wrong now.
            tx.reconcile_drift(task.target_id, &proof.project.to_string(), &[], now)
                .await?;
        }
        TaskEvent::AttemptFailed { .. } => {
            let wait = TimeDelta::from_std(attempts::retry_wait(task.attempt)).unwrap_or(TimeDelta::MAX);
            tx.set_task_retry(&task, now + wait, actor, now).await?;
        }
        _ => {}
    }
    Ok(())
}
