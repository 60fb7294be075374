//! Failures.

use chrono::{DateTime, Utc};
use sealift_common::{failure::Failure, task::TaskStep};
use sealift_proto::v1 as pb;
use sealift_store::{AttemptFailure, FailedPlace, Task};

use crate::{convert::time, names};

/// A failure with everything that its code says, and when it was told, if that is known.
pub fn failure(failure: &Failure, at: Option<DateTime<Utc>>) -> pb::Failure {
    pb::Failure {
        code: failure.code.as_str().to_owned(),
        category: failure.code.category().as_str().to_owned(),
        summary: failure.summary.clone(),
        detail: failure.detail.clone(),
        advice: failure.code.advice().to_owned(),
        retryable: failure.code.retryable(),
        observe_time: at.map(time::timestamp),
        target: String::new(),
        task: String::new(),
        attempt: 0,
        step: String::new(),
    }
}

/// The failure of one attempt.
pub fn of_attempt(failed: &AttemptFailure) -> pb::Failure {
    pb::Failure {
        target: names::of_target(&failed.environment, &failed.target),
        task: names::of_task(failed.job_id, failed.task_id),
        attempt: i32::try_from(failed.attempt).unwrap_or(i32::MAX),
        step: step(failed.step),
        ..failure(&failed.failure, Some(failed.at))
    }
}

/// The failure that a task has now; `place` is where its last attempt failed, if that is told.
pub fn of_task(
    task: &Task,
    now: &Failure,
    at: Option<DateTime<Utc>>,
    place: Option<FailedPlace>,
) -> pb::Failure {
    let attempt = place.map_or(task.attempt, |place| place.attempt);
    pb::Failure {
        target: names::of_target(&task.environment, &task.target),
        task: names::of_task(task.job_id, task.id),
        attempt: i32::try_from(attempt).unwrap_or(i32::MAX),
        step: step(place.and_then(|place| place.step)),
        ..failure(now, at)
    }
}

fn step(step: Option<TaskStep>) -> String {
    step.map(|step| step.as_str().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use sealift_common::failure::{FailureCategory, FailureCode};

    use super::*;

    #[test]
    fn every_code_reaches_the_wire_with_its_category_and_advice() {
        for code in FailureCode::ALL {
            let wire = failure(&Failure::new(*code, "summary"), Some(DateTime::default()));
            assert_eq!(wire.code.parse(), Ok(*code));
            assert_eq!(wire.category.parse::<FailureCategory>(), Ok(code.category()));
            assert!(!wire.advice.is_empty());
            assert_eq!(wire.retryable, code.retryable());
            assert!(wire.observe_time.is_some());
        }
    }
}
