//! Observations: what agents see is stored, and compared with what is recorded. The comparison itself is `common::drift`.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use sealift_common::{
    digest::Digest,
    drift::{self, Finding},
    id::{JobId, SessionId, TargetId},
    observation::{EngineEvent, ProjectObservation, TargetObservation},
};
use sealift_store::{DriftChange, Found, Tx};

use super::{refusal::Refusal, writer::Outcome};

/// Digest of all that an observation says except when: equal digests need no second look.
pub fn content(seen: &TargetObservation) -> Digest {
    let timeless = TargetObservation {
        observed_at: DateTime::default(),
        ..seen.clone()
    };
    sealift_common::canonical::digest(&timeless).unwrap_or_else(|_| Digest::of(&[]))
}

/// Stores an observation that was told in a session and, unless a task is under way on the target, what disagrees with the record.
pub async fn apply(
    tx: &mut Tx,
    seen: &TargetObservation,
    session: SessionId,
    now: DateTime<Utc>,
) -> Result<Outcome, Refusal> {
    let target = seen.target_id;
    tx.put_observation(seen, session, now).await?;
    if seen.busy || tx.live_task_on_target(target).await?.is_some() {
        return Ok(Outcome::Deferred);
    }
    let current = tx.current(target).await?;
    // What has drift may be seen and recorded no more: then the drift is over.
    let projects: BTreeSet<String> = current
        .iter()
        .map(|current| current.project.to_string())
        .chain(seen.projects.keys().cloned())
        .chain(tx.drifted_projects(target).await?)
        .collect();
    let nothing = ProjectObservation::nothing();
    for project in projects {
        let record = current.iter().find(|one| one.project.to_string() == project);
        let runs = seen.projects.get(&project).unwrap_or(&nothing);
        let findings = drift::compare(record.map(|one| &one.recorded), runs);
        let job = record.map(|one| one.job);
        set_drift(tx, target, &project, findings, job, &seen.events, now).await?;
    }
    Ok(Outcome::Stored)
}

/// Makes the open drift of a project on a target equal to `findings`, judged by the target's environment.
pub async fn set_drift(
    tx: &mut Tx,
    target: TargetId,
    project: &str,
    findings: Vec<Finding>,
    job: Option<JobId>,
    events: &[EngineEvent],
    now: DateTime<Utc>,
) -> Result<DriftChange, Refusal> {
    let mut found = Vec::with_capacity(findings.len());
    if !findings.is_empty() {
        let class = tx.class_of_target(target).await?;
        found.extend(findings.into_iter().map(|finding| Found {
            severity: drift::severity(finding.kind, class),
            cause: drift::cause(&finding, project, events).cloned(),
            job,
            finding,
        }));
    }
    Ok(tx.reconcile_drift(target, project, &found, now).await?)
}
