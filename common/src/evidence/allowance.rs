//! What an order asked of the host beyond what every order may have, and got.

use serde::{Deserialize, Serialize};

use crate::{bounds, failure::cut, phases};

phases! {
    /// The setting of the host that allowed it, by its name in the agent's section `[policy]`.
    AllowedBy {
        HostPaths = "allowed_host_paths", Capabilities = "allowed_capabilities", EngineSocket = "allow_engine_socket",
        Unconfined = "allow_unconfined",
    }
}

/// Something that the order got only because whoever runs the host has allowed it in the host's settings.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Allowance {
    /// The service; in a compose file also the place of what several services share, for example `volumes.data`.
    pub service: String,
    /// Which setting allowed it.
    pub setting: AllowedBy,
    /// What was asked for, as the order has it: a path, a capability, a security option.
    pub what: String,
}

impl Allowance {
    /// One of them, with its text cut to [`bounds::ALLOWANCE_BYTES`].
    pub fn new(service: &str, setting: AllowedBy, what: &str) -> Self {
        Self {
            service: service.to_owned(),
            setting,
            what: cut(what.to_owned(), bounds::ALLOWANCE_BYTES),
        }
    }
}
