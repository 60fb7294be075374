//! Decisions.

use sealift_common::{
    canonical::CanonicalError,
    decision::{DecisionRecord, GateAnswer, Verdict},
    digest::Digest,
};
use sealift_proto::v1::{self as pb, gate_answer::Verdict as Wire};
use sealift_store::DecisionHead;

use crate::convert::time;

/// Writes a decision from the exact bytes that are stored.
pub fn decision(bytes: &[u8]) -> Result<pb::Decision, CanonicalError> {
    let record = DecisionRecord::from_bytes(bytes)?;
    Ok(pb::Decision {
        digest: Digest::of(bytes).to_string(),
        passed: record.passed(),
        gates: record.gates.iter().map(gate).collect(),
        time: Some(time::timestamp(record.inputs.at)),
    })
}

/// Writes what lists show of a decision.
pub fn head(head: &DecisionHead) -> pb::Decision {
    pb::Decision {
        digest: head.digest.to_string(),
        passed: head.passed,
        gates: Vec::new(),
        time: Some(time::timestamp(head.created_at)),
    }
}

/// Writes what one gate says.
pub fn gate(answer: &GateAnswer) -> pb::GateAnswer {
    pb::GateAnswer {
        gate: answer.gate.as_str().to_owned(),
        verdict: verdict(answer.verdict).into(),
        reason: answer.reason.clone(),
        message: answer.message.clone(),
        advice: answer.advice.clone(),
    }
}

const fn verdict(verdict: Verdict) -> Wire {
    match verdict {
        Verdict::Pass => Wire::Pass,
        Verdict::Wait => Wire::Wait,
        Verdict::Fail => Wire::Fail,
    }
}
