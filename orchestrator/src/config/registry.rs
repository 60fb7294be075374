//! Image registries.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::{ConfigError, within, wrong};

/// Image registries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RegistryConfig {
    /// Hosts (with port, as in image references) that may be spoken to without TLS. Loopback always may.
    pub plain_http: Vec<String>,
    /// A Docker configuration file with credentials (`auths`); nothing when it is not set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub docker_config_file: Option<PathBuf>,
    /// How long resolving one image may take.
    pub deadline_seconds: u64,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            plain_http: Vec::new(),
            docker_config_file: None,
            deadline_seconds: 20,
        }
    }
}

impl RegistryConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.plain_http.len() > 64 {
            return Err(wrong("registry.plain_http", "more than 64 hosts"));
        }
        for host in &self.plain_http {
            let legal =
                |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b':' | b'[' | b']');
            if host.is_empty() || host.len() > 255 || !host.bytes().all(legal) {
                return Err(wrong(
                    "registry.plain_http",
                    format!("{host:?} is not a host with an optional port"),
                ));
            }
        }
        within("registry.deadline_seconds", self.deadline_seconds, 1, 300)
    }
}
