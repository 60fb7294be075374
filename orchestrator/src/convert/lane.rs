//! Lane policies.

use sealift_common::lane::LanePolicy;
use sealift_proto::v1::environment::LanePolicy as Wire;

use crate::status::ApiError;

/// Writes a policy.
pub const fn encode(policy: LanePolicy) -> Wire {
    match policy {
        LanePolicy::Queue => Wire::Queue,
        LanePolicy::Reject => Wire::Reject,
        LanePolicy::Supersede => Wire::Supersede,
    }
}

/// Reads a policy; unspecified is the usual one.
pub fn decode(value: i32) -> Result<LanePolicy, ApiError> {
    match Wire::try_from(value) {
        Ok(Wire::Unspecified) => Ok(LanePolicy::default()),
        Ok(Wire::Queue) => Ok(LanePolicy::Queue),
        Ok(Wire::Reject) => Ok(LanePolicy::Reject),
        Ok(Wire::Supersede) => Ok(LanePolicy::Supersede),
        Err(_) => Err(ApiError::invalid(
            "environment.lane_policy",
            "is not a policy that this version knows",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_policy_comes_back() {
        for policy in LanePolicy::ALL {
            assert_eq!(decode(encode(*policy).into()).unwrap(), *policy);
        }
        assert_eq!(decode(0).unwrap(), LanePolicy::Queue);
        assert!(decode(11).is_err());
    }
}
