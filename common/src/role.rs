//! Who may call what kind of thing: roles of principals.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// What a user may do. Each role stands for itself: `admin` contains all others, `ci` may register and request, not approve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Reads everything of the tenant.
    Observer,
    /// A CI system: registers releases, requests promotions, reads.
    Ci,
    /// An operator: requests and cancels promotions, manages targets, reads.
    Deployer,
    /// Says yes or no to promotions, reads.
    Approver,
    /// Everything in the tenant, users and agents included.
    Admin,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [
        Self::Observer,
        Self::Ci,
        Self::Deployer,
        Self::Approver,
        Self::Admin,
    ];

    /// The stable text.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Observer => "observer",
            Self::Ci => "ci",
            Self::Deployer => "deployer",
            Self::Approver => "approver",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Role {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|role| role.as_str() == text)
            .ok_or_else(|| format!("{text:?} is not a role: one of observer, ci, deployer, approver, admin"))
    }
}
