//! SPIFFE identifier: the URI in a certificate that says who its holder is, `spiffe://sealift/<tenant>/agent/<id>`.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

use crate::{
    id::{AgentId, UserId},
    name::Name,
    phases,
};

/// The trust domain of every identifier.
pub const TRUST_DOMAIN: &str = "sealift";

phases! {
    /// What kind of peer it is.
    PeerKind { Agent = "agent", User = "user" }
}

/// Who a peer is within its tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Principal {
    /// An agent.
    Agent(AgentId),
    /// A person or a machine that calls the operator API.
    User(UserId),
}

impl Principal {
    /// The kind.
    pub const fn kind(&self) -> PeerKind {
        match self {
            Self::Agent(_) => PeerKind::Agent,
            Self::User(_) => PeerKind::User,
        }
    }
}

/// Who the holder of a certificate is. Only the canonical spelling is read.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SpiffeId {
    /// Name of the tenant.
    pub tenant: Name,
    /// Who.
    pub principal: Principal,
}

/// Why a text is not such an identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an identity: wanted spiffe://sealift/<tenant>/agent/<id> or .../user/<id>")]
pub struct InvalidSpiffeId(pub String);

impl SpiffeId {
    /// An agent's.
    pub const fn agent(tenant: Name, id: AgentId) -> Self {
        Self {
            tenant,
            principal: Principal::Agent(id),
        }
    }

    /// A user's.
    pub const fn user(tenant: Name, id: UserId) -> Self {
        Self {
            tenant,
            principal: Principal::User(id),
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = self.principal.kind();
        write!(f, "spiffe://{TRUST_DOMAIN}/{}/{kind}/", self.tenant)?;
        match self.principal {
            Principal::Agent(id) => id.fmt(f),
            Principal::User(id) => id.fmt(f),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = InvalidSpiffeId;

    fn from_str(text: &str) -> Result<Self, InvalidSpiffeId> {
        let invalid = || InvalidSpiffeId(text.chars().take(200).collect());
        let path = text
            .strip_prefix("spiffe://")
            .and_then(|rest| rest.strip_prefix(TRUST_DOMAIN))
            .and_then(|rest| rest.strip_prefix('/'))
            .ok_or_else(invalid)?;
        let mut segments = path.split('/');
        let (Some(tenant), Some(kind), Some(id), None) =
            (segments.next(), segments.next(), segments.next(), segments.next())
        else {
            return Err(invalid());
        };
        let tenant = tenant.parse().map_err(|_| invalid())?;
        let principal = match kind.parse().map_err(|_| invalid())? {
            PeerKind::Agent => Principal::Agent(id.parse().map_err(|_| invalid())?),
            PeerKind::User => Principal::User(id.parse().map_err(|_| invalid())?),
        };
        Ok(Self { tenant, principal })
    }
}

impl TryFrom<String> for SpiffeId {
    type Error = InvalidSpiffeId;

    fn try_from(text: String) -> Result<Self, InvalidSpiffeId> {
        text.parse()
    }
}

impl From<SpiffeId> for String {
    fn from(value: SpiffeId) -> Self {
        value.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_round_trip_and_other_spellings_are_refused() {
        let id = "018f0000-0000-7000-8000-000000000000";
        for kind in ["agent", "user"] {
            let text = format!("spiffe://sealift/acme/{kind}/{id}");
            assert_eq!(text.parse::<SpiffeId>().unwrap().to_string(), text);
        }
        for text in [
            String::new(),
            format!("spiffe://sealift/acme/agent/{id}/"),
            format!("spiffe://sealift//agent/{id}"),
            format!("spiffe://sealift2/acme/agent/{id}"),
            format!("spiffe://other/acme/agent/{id}"),
            format!("SPIFFE://sealift/acme/agent/{id}"),
            format!("spiffe://sealift/acme/server/{id}"),
            format!("spiffe://sealift/acme/agent/{id}?x"),
            format!("spiffe://sealift/../agent/{id}"),
        ] {
            assert!(text.parse::<SpiffeId>().is_err(), "{text}");
        }
    }
}
