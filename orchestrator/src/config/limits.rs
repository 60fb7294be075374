//! A limit on everything that others can make grow.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{ConfigError, within, wrong};

/// Limits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct LimitsConfig {
    /// Most connections at the same time.
    pub connections: usize,
    /// Most TLS handshakes at the same time.
    pub handshakes: usize,
    /// How long a TLS handshake may take.
    pub handshake_seconds: u64,
    /// Most connections at the same time of peers without a certificate: hosts that enrol.
    pub anonymous_connections: usize,
    /// How long such a connection may last.
    pub anonymous_seconds: u64,
    /// Most calls at the same time that are worked on, over all connections. Live streams do not count once they run.
    pub calls: usize,
    /// Most calls at the same time that are worked on, for one connection.
    pub calls_per_connection: usize,
    /// Most streams (calls and live streams) at the same time on one connection.
    pub streams_per_connection: u32,
    /// Largest request headers in bytes.
    pub header_bytes: u32,
    /// How long a call may take, or a live stream until it begins.
    pub call_seconds: u64,
    /// After how much silence a connection is asked for a sign of life.
    pub keepalive_seconds: u64,
    /// How long that sign may take.
    pub keepalive_timeout_seconds: u64,
    /// How long a connection may last before its client is told to make a new one (10 % more or less).
    pub connection_age_seconds: u64,
    /// How long calls may go on after their connection was told to end.
    pub connection_grace_seconds: u64,
    /// How long going down may take.
    pub shutdown_seconds: u64,
}

impl Default for LimitsConfig {
    fn default() -> Self {
        Self {
            connections: 16_384,
            handshakes: 256,
            handshake_seconds: 10,
            anonymous_connections: 256,
            anonymous_seconds: 60,
            calls: 512,
            calls_per_connection: 64,
            streams_per_connection: 128,
            header_bytes: 16 * 1024,
            call_seconds: 120,
            keepalive_seconds: 20,
            keepalive_timeout_seconds: 10,
            connection_age_seconds: 12 * 3600,
            connection_grace_seconds: 60,
            shutdown_seconds: 20,
        }
    }
}

impl LimitsConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        within("limits.connections", self.connections, 1, 1_000_000)?;
        within("limits.handshakes", self.handshakes, 1, 100_000)?;
        within("limits.handshake_seconds", self.handshake_seconds, 1, 300)?;
        within(
            "limits.anonymous_connections",
            self.anonymous_connections,
            1,
            1_000_000,
        )?;
        within("limits.anonymous_seconds", self.anonymous_seconds, 1, 3600)?;
        within("limits.calls", self.calls, 1, 100_000)?;
        within(
            "limits.calls_per_connection",
            self.calls_per_connection,
            1,
            10_000,
        )?;
        within(
            "limits.streams_per_connection",
            self.streams_per_connection,
            1,
            10_000,
        )?;
        within("limits.header_bytes", self.header_bytes, 4096, 1024 * 1024)?;
        within("limits.call_seconds", self.call_seconds, 1, 3600)?;
        within("limits.keepalive_seconds", self.keepalive_seconds, 1, 3600)?;
        within(
            "limits.keepalive_timeout_seconds",
            self.keepalive_timeout_seconds,
            1,
            3600,
        )?;
        within(
            "limits.connection_age_seconds",
            self.connection_age_seconds,
            60,
            30 * 86_400,
        )?;
        within(
            "limits.connection_grace_seconds",
            self.connection_grace_seconds,
            1,
            3600,
        )?;
        within("limits.shutdown_seconds", self.shutdown_seconds, 1, 3600)?;
        if self.handshakes > self.connections {
            return Err(wrong("limits.handshakes", "more than limits.connections"));
        }
        Ok(())
    }

    /// How long a call may take.
    pub const fn call_deadline(&self) -> Duration {
        Duration::from_secs(self.call_seconds)
    }

    /// How long going down may take.
    pub const fn shutdown_deadline(&self) -> Duration {
        Duration::from_secs(self.shutdown_seconds)
    }
}
