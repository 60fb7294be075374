//! How long certificates and tokens live.

use chrono::TimeDelta;
use serde::{Deserialize, Serialize};

use super::{ConfigError, within};

/// Lives of certificates and tokens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct IdentityConfig {
    /// Life of an agent's certificate; agents renew it at half of that or somewhat later.
    pub agent_certificate_seconds: i64,
    /// Life of a user's certificate when none is asked for.
    pub user_certificate_seconds: i64,
    /// Life of a join token when none is asked for.
    pub join_token_seconds: i64,
}

/// Longest life of a user's certificate.
pub const USER_CERTIFICATE_MOST: i64 = 400 * 86_400;
/// Longest life of a join token.
pub const JOIN_TOKEN_MOST: i64 = 3600;

impl Default for IdentityConfig {
    fn default() -> Self {
        Self {
            agent_certificate_seconds: 86_400,
            user_certificate_seconds: 90 * 86_400,
            join_token_seconds: 600,
        }
    }
}

impl IdentityConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        within(
            "identity.agent_certificate_seconds",
            self.agent_certificate_seconds,
            60,
            30 * 86_400,
        )?;
        within(
            "identity.user_certificate_seconds",
            self.user_certificate_seconds,
            60,
            USER_CERTIFICATE_MOST,
        )?;
        within(
            "identity.join_token_seconds",
            self.join_token_seconds,
            10,
            JOIN_TOKEN_MOST,
        )
    }

    /// Life of an agent's certificate.
    pub const fn agent_life(&self) -> TimeDelta {
        TimeDelta::seconds(self.agent_certificate_seconds)
    }
}
