//! Reports of agents: read strictly, applied in order inside one transaction. Late and repeated ones change nothing; one that is
//! not this agent's to make refuses the whole batch (R12).

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    audit::{AuditEntry, AuditOutcome},
    bounds::{ENVELOPE_BYTES, REPORT_BATCH, TEXT_BYTES},
    drift::{DriftKind, Finding},
    evidence::EvidenceResult,
    failure::{self, Failure, FailureCode},
    id::{AgentId, TaskId},
    task::{TaskEvent, TaskStep},
};
use sealift_proto::{
    agent::v1::{self as pb, report::Event},
    convert::{Malformed, parse},
};
use sealift_store::{StoreError, Task, Tx};

use super::{
    observations,
    packets::{Proof, Unproven, Verdict, WrittenSticker},
    refusal::Refusal,
};
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
    pub verdict: Option<Verdict>,
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
        Some(Event::Finished(finished)) => ReportEvent::Finished(Box::new(self::finished(finished))),
    };
    Ok(AgentReport {
        number: report.number,
        task: parse("reports[].task_id", &report.task_id)?,
        attempt: report.attempt,
        event,
    })
}

fn finished(finished: pb::Finished) -> Finished {
    use pb::finished::Result as Wire;
    // Nothing in here cuts the session: the agent would say the same again, for ever. What is wrong cannot be proven, and
    // `packets::check` ends the attempt with that.
    let result = match finished.result() {
        Wire::Succeeded => EvidenceResult::Succeeded,
        Wire::Failed | Wire::Unspecified => EvidenceResult::Failed,
        Wire::Stopped => EvidenceResult::Cancelled,
        Wire::Refused => EvidenceResult::Refused,
    };
    let (mut packet, mut sticker) = (finished.packet, finished.sticker);
    packet.truncate(ENVELOPE_BYTES);
    sticker.truncate(ENVELOPE_BYTES);
    let failure = finished.failure.map(|failure| Failure {
        // A code of a newer agent: what it means is in the summary.
        code: failure.code.parse().unwrap_or(FailureCode::Internal),
        summary: failure::cut(failure.summary, TEXT_BYTES),
        detail: failure::cut(failure.detail, TEXT_BYTES * 4),
    });
    let without_reason =
        failure.is_none() && matches!(result, EvidenceResult::Failed | EvidenceResult::Refused);
    let failure = failure.or_else(|| {
        without_reason.then(|| {
            Failure::new(
                FailureCode::AgentState,
                "the agent reports a failure without a reason",
            )
        })
    });
    Finished {
        result,
        failure,
        packet,
        sticker,
        verdict: None,
    }
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

/// Applies a batch and moves the agent's acknowledged number, which was `acknowledged`. The caller commits. Answers the number to
/// acknowledge.
pub async fn apply(
    tx: &mut Tx,
    agent: AgentId,
    acknowledged: u64,
    reports: &[AgentReport],
    now: DateTime<Utc>,
) -> Result<u64, Refusal> {
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
    let news: Vec<_> = reports
        .iter()
        .filter(|report| report.number > acknowledged)
        .collect();
    for about_one in news.chunk_by(|one, next| one.task == next.task) {
        apply_to_task(tx, agent, about_one, &actor, now).await?;
    }
    if last.number > acknowledged {
        tx.set_acknowledged_report(agent, last.number).await?;
    }
    Ok(last.number.max(acknowledged))
}

/// Applies reports about one task, which is read once, and written once for all that follow each other.
async fn apply_to_task(
    tx: &mut Tx,
    agent: AgentId,
    reports: &[&AgentReport],
    actor: &str,
    now: DateTime<Utc>,
) -> Result<(), Refusal> {
    let Some(first) = reports.first() else {
        return Ok(());
    };
    let mut task = tx.bare_task(first.task).await?;
    let mut events = Vec::with_capacity(reports.len());
    for report in reports {
        let (Standing::Current, Some(current)) = (standing(report, task.as_ref(), agent)?, &task) else {
            continue;
        };
        match &report.event {
            ReportEvent::Accepted => events.push(TaskEvent::Accepted),
            ReportEvent::Progressed(None) => {}
            ReportEvent::Progressed(Some(step)) => events.push(TaskEvent::Progressed { step: *step }),
            ReportEvent::Finished(finished) => {
                let before = std::mem::take(&mut events);
                task = Some(finish(tx, current, before, finished, actor, now).await?);
            }
        }
    }
    if let Some(task) = task.filter(|_| !events.is_empty()) {
        tx.apply_task_events(&task, &events, actor, now).await?;
    }
    Ok(())
}

/// Applies a final report after the events that came before it; answers the task as it is then.
async fn finish(
    tx: &mut Tx,
    task: &Task,
    before: Vec<TaskEvent>,
    finished: &Finished,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<Task, Refusal> {
    if tx.packet_of_attempt(task.id, task.attempt).await?.is_some() {
        return Ok(tx.apply_task_events(task, &before, actor, now).await?);
    }
    match &finished.verdict {
        Some(Verdict::Proven(proof)) => apply_finished(tx, task, before, finished, proof, actor, now).await,
        Some(Verdict::Unproven(unproven)) => apply_unproven(tx, task, before, unproven, actor, now).await,
        None => Err(Refusal::Internal(
            "a final report came without its checked packet".to_owned(),
        )),
    }
}

/// Moves a task by the events of its reports and then by the one that ends its attempt; answers the task, and whether that last one
/// changed it.
async fn end_attempt(
    tx: &mut Tx,
    task: &Task,
    mut events: Vec<TaskEvent>,
    end: &TaskEvent,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<(Task, bool), Refusal> {
    let mut state = task.state.clone();
    for event in &events {
        state = state.apply(event).map_err(StoreError::from)?.unwrap_or(state);
    }
    let ends = state.apply(end).map_err(StoreError::from)?.is_some();
    events.push(end.clone());
    let moved = tx.apply_task_events(task, &events, actor, now).await?;
    Ok((moved, ends))
}

async fn apply_finished(
    tx: &mut Tx,
    task: &Task,
    before: Vec<TaskEvent>,
    finished: &Finished,
    proof: &Proof,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<Task, Refusal> {
    tx.insert_packet(&proof.row).await?;
    tx.finish_attempt(
        task.id,
        task.attempt,
        finished.result.as_str(),
        Some(proof.row.id),
        now,
    )
    .await?;
    let mut findings = Vec::new();
    if let Some(sticker) = &proof.sticker {
        findings.extend(check_chain(tx, task, proof, sticker, actor, now).await?);
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
    let (mut ended, ends) = end_attempt(tx, task, before, &event, actor, now).await?;
    if !ends {
        // The task had ended before: cancelled, or given up as lost. The packet tells what the host did, and nothing follows from it.
        return Ok(ended);
    }
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
                    proof.inputs,
                    sticker.digest,
                    now,
                )
                .await?;
            }
            // What was found wrong before is replaced; the next observation finds what is wrong now. An edited sticker is
            // overwritten by now, so its finding stays until then.
            let (target, project) = (task.target_id, proof.project.to_string());
            observations::set_drift(tx, target, &project, findings, Some(task.job_id), &[], now).await?;
        }
        TaskEvent::AttemptFailed { .. } => ended = wait_for_next(tx, &ended, actor, now).await?,
        _ => {}
    }
    Ok(ended)
}

async fn wait_for_next(tx: &mut Tx, task: &Task, actor: &str, now: DateTime<Utc>) -> Result<Task, Refusal> {
    let wait = TimeDelta::from_std(attempts::retry_wait(task.id, task.attempt)).unwrap_or(TimeDelta::MAX);
    Ok(tx.set_task_retry(task, now + wait, actor, now).await?)
}

/// Ends an attempt whose final report proves nothing: failed, without a packet, and recorded (R3, R13).
async fn apply_unproven(
    tx: &mut Tx,
    task: &Task,
    before: Vec<TaskEvent>,
    unproven: &Unproven,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<Task, Refusal> {
    let event = attempts::after_failure(task, &unproven.failure, &unproven.limits);
    let (ended, ends) = end_attempt(tx, task, before, &event, actor, now).await?;
    if !ends {
        return Ok(ended);
    }
    tx.finish_attempt(task.id, task.attempt, EvidenceResult::Failed.as_str(), None, now)
        .await?;
    let (action, outcome) = if unproven.suspect {
        tracing::error!(task.id = %task.id, actor, failure = %unproven.failure, detail = unproven.failure.detail, "an agent's evidence is refused");
        ("agent.evidence_refused", AuditOutcome::Denied)
    } else {
        tracing::warn!(task.id = %task.id, actor, failure = %unproven.failure, "an attempt ended without evidence");
        ("agent.no_evidence", AuditOutcome::Failed)
    };
    let entry = audit_entry(task, actor, action, outcome, unproven.failure.code.as_str());
    tx.append_audit(&entry, now).await?;
    if matches!(event, TaskEvent::AttemptFailed { .. }) {
        return wait_for_next(tx, &ended, actor, now).await;
    }
    Ok(ended)
}

/// Whether the sticker continues the chain of those that were recorded before; if not, somebody else wrote to the file.
async fn check_chain(
    tx: &mut Tx,
    task: &Task,
    proof: &Proof,
    sticker: &WrittenSticker,
    actor: &str,
    now: DateTime<Utc>,
) -> Result<Option<Finding>, Refusal> {
    let project = proof.project.to_string();
    let Some(latest) = tx.latest_sticker(task.target_id, &project).await? else {
        return Ok(None);
    };
    let (expected, found) = (latest.digest, sticker.previous);
    if found == Some(expected) {
        return Ok(None);
    }
    let actual = found.map_or_else(|| "no sticker".to_owned(), |digest| format!("sticker {digest}"));
    tracing::warn!(task.id = %task.id, project, %expected, actual, "the sticker chain is broken: the file was changed on the host");
    let entry = audit_entry(
        task,
        actor,
        "agent.sticker_chain",
        AuditOutcome::Failed,
        DriftKind::StickerEdited.as_str(),
    );
    tx.append_audit(&entry, now).await?;
    Ok(Some(Finding {
        kind: DriftKind::StickerEdited,
        service: None,
        expected: format!("sticker {expected}"),
        actual: format!("{actual} before the newest release"),
    }))
}

fn audit_entry(task: &Task, actor: &str, action: &str, outcome: AuditOutcome, reason: &str) -> AuditEntry {
    AuditEntry {
        tenant_id: Some(task.tenant_id),
        actor: actor.to_owned(),
        role: "agent".to_owned(),
        action: action.to_owned(),
        resource: format!(
            "environments/{}/targets/{}/tasks/{}",
            task.environment, task.target, task.id
        ),
        outcome,
        reason: reason.to_owned(),
        request_id: String::new(),
    }
}
