//! Failures.

use sealift_common::failure::{Failure, FailureCategory};
use sealift_proto::v1 as pb;

/// A failure with everything that its code says.
pub fn failure(failure: &Failure) -> pb::Failure {
    pb::Failure {
        code: failure.code.as_str().to_owned(),
        category: category(failure.code.category()).to_owned(),
        summary: failure.summary.clone(),
        detail: failure.detail.clone(),
        advice: failure.code.advice().to_owned(),
        retryable: failure.code.retryable(),
    }
}

const fn category(category: FailureCategory) -> &'static str {
    match category {
        FailureCategory::Validation => "validation",
        FailureCategory::Policy => "policy",
        FailureCategory::Artifact => "artifact",
        FailureCategory::Infrastructure => "infrastructure",
        FailureCategory::Workload => "workload",
        FailureCategory::Timeout => "timeout",
        FailureCategory::Cancelled => "cancelled",
        FailureCategory::Trust => "trust",
        FailureCategory::Internal => "internal",
    }
}

#[cfg(test)]
mod tests {
    use sealift_common::failure::FailureCode;

    use super::*;

    #[test]
    fn every_code_reaches_the_wire_with_its_advice() {
        for code in FailureCode::ALL {
            let wire = failure(&Failure::new(*code, "summary"));
            assert_eq!(wire.code.parse(), Ok(*code));
            assert_eq!(
                serde_json::to_value(code.category()).unwrap(),
                wire.category.as_str()
            );
            assert!(!wire.advice.is_empty());
        }
    }
}
