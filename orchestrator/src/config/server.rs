//! Where the orchestrator listens and what it is called.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use serde::{Deserialize, Serialize};

use super::{ConfigError, wrong};
use crate::identity::ServerNames;

/// Listening and names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ServerConfig {
    /// Address of the one TLS port for users, CI systems and agents.
    pub listen: SocketAddr,
    /// What clients and agents call the orchestrator: DNS names and addresses for its certificate. The loopback names and the
    /// listening address (unless it is the unspecified one) are always included.
    pub public_names: Vec<String>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 8443)),
            public_names: Vec::new(),
        }
    }
}

fn is_dns_name(text: &str) -> bool {
    let label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    text.len() <= 253 && text.split('.').all(label)
}

impl ServerConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.public_names.len() > 64 {
            return Err(wrong("server.public_names", "more than 64 names"));
        }
        for name in &self.public_names {
            if name.parse::<IpAddr>().is_err() && !is_dns_name(name) {
                return Err(wrong(
                    "server.public_names",
                    format!("{name:?} is neither a DNS name nor an address (no scheme, no port)"),
                ));
            }
        }
        Ok(())
    }

    /// Names for the server's certificate.
    pub fn names(&self) -> ServerNames {
        let mut dns = vec!["localhost".to_owned()];
        let mut addresses = vec![
            IpAddr::from(Ipv4Addr::LOCALHOST),
            IpAddr::from(std::net::Ipv6Addr::LOCALHOST),
        ];
        if !self.listen.ip().is_unspecified() {
            addresses.push(self.listen.ip());
        }
        for name in &self.public_names {
            match name.parse() {
                Ok(address) => addresses.push(address),
                Err(_) => dns.push(name.to_ascii_lowercase()),
            }
        }
        dns.sort();
        dns.dedup();
        addresses.sort();
        addresses.dedup();
        ServerNames { dns, addresses }
    }

    /// What to write into clients' contexts: the first public name, else the listening address or loopback.
    pub fn endpoint(&self, port: u16) -> String {
        let ip = self.listen.ip();
        let name = self.public_names.first().cloned().unwrap_or_else(|| {
            if ip.is_unspecified() {
                "localhost".to_owned()
            } else {
                ip.to_string()
            }
        });
        match name.parse() {
            Ok(IpAddr::V6(address)) => format!("https://[{address}]:{port}"),
            _ => format!("https://{name}:{port}"),
        }
    }
}
