//! Which database.

use std::{fmt, path::Path, path::PathBuf, time::Duration};

use serde::{Deserialize, Serialize};

use super::{ConfigError, read, within, wrong};

/// The database.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DatabaseConfig {
    /// `postgres://…` or `sqlite:<path>`. Without it and without `url_file`: an embedded SQLite file in the data directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// File that holds the URL, for one with a password.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url_file: Option<PathBuf>,
    /// Most connections to PostgreSQL.
    pub max_connections: u32,
    /// How long a call waits for a connection.
    pub acquire_seconds: u64,
}

impl Default for DatabaseConfig {
    fn default() -> Self {
        Self {
            url: None,
            url_file: None,
            max_connections: 16,
            acquire_seconds: 5,
        }
    }
}

impl fmt::Debug for DatabaseConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DatabaseConfig")
            .field("url", &self.url.as_deref().map(hide_password))
            .field("url_file", &self.url_file)
            .field("max_connections", &self.max_connections)
            .field("acquire_seconds", &self.acquire_seconds)
            .finish()
    }
}

/// `scheme://user:password@rest` without the password; also without parameters, which may hold one.
fn hide_password(url: &str) -> String {
    let url = url.split_once('?').map_or(url, |(head, _)| head);
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    match rest.rsplit_once('@') {
        Some((who, place)) => {
            let user = who.split_once(':').map_or(who, |(user, _)| user);
            format!("{scheme}://{user}:***@{place}")
        }
        None => url.to_owned(),
    }
}

fn check_url(url: &str) -> Result<(), ConfigError> {
    let known = ["sqlite:", "postgres://", "postgresql://"];
    if known.iter().any(|scheme| url.starts_with(scheme)) {
        Ok(())
    } else {
        Err(wrong("database.url", "must begin with postgres:// or sqlite:"))
    }
}

impl DatabaseConfig {
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        if self.url.is_some() && self.url_file.is_some() {
            return Err(wrong("database.url", "url and url_file exclude each other"));
        }
        if let Some(url) = &self.url {
            check_url(url)?;
        }
        within("database.max_connections", self.max_connections, 1, 1000)?;
        within("database.acquire_seconds", self.acquire_seconds, 1, 300)
    }

    pub(super) fn resolve(&self, data_dir: &Path) -> Result<String, ConfigError> {
        if let Some(url) = &self.url {
            return Ok(url.clone());
        }
        let Some(path) = &self.url_file else {
            return Ok(format!("sqlite:{}", data_dir.join("sealift.db").display()));
        };
        let url = read(path)?.trim().to_owned();
        check_url(&url)?;
        Ok(url)
    }

    pub(super) fn redacted(mut self) -> Self {
        self.url = self.url.as_deref().map(hide_password);
        self
    }

    /// How long a call waits for a connection.
    pub const fn acquire_deadline(&self) -> Duration {
        Duration::from_secs(self.acquire_seconds)
    }
}
