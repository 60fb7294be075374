//! Settings: a TOML file, overridden by environment variables and flags. Unknown keys are refused; every value is checked and a
//! wrong one is named by its key. Secrets live in files of their own (`*_file`) and are never printed.

mod database;
mod identity;
mod limits;
mod registry;
mod scheduling;
mod server;

use std::{
    fmt, fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

pub use self::{
    database::DatabaseConfig,
    identity::{IdentityConfig, JOIN_TOKEN_MOST, USER_CERTIFICATE_MOST},
    limits::LimitsConfig,
    registry::RegistryConfig,
    scheduling::SchedulingConfig,
    server::ServerConfig,
};

/// Largest configuration file that is read.
const FILE_BYTES: u64 = 1024 * 1024;

/// All settings of an orchestrator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Where keys, the embedded database and the admin socket live. Only the orchestrator's user may enter it.
    pub data_dir: PathBuf,
    /// Listening and names.
    pub server: ServerConfig,
    /// The database.
    pub database: DatabaseConfig,
    /// Image registries.
    pub registry: RegistryConfig,
    /// Lanes and orders.
    pub scheduling: SchedulingConfig,
    /// Lives of certificates and tokens.
    pub identity: IdentityConfig,
    /// Limits.
    pub limits: LimitsConfig,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/sealift-orchestrator"),
            server: ServerConfig::default(),
            database: DatabaseConfig::default(),
            registry: RegistryConfig::default(),
            scheduling: SchedulingConfig::default(),
            identity: IdentityConfig::default(),
            limits: LimitsConfig::default(),
        }
    }
}

/// Why settings are refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file cannot be read.
    #[error("cannot read {path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, or has a key that does not exist or a value of another kind.
    #[error("{path}: {message}")]
    Shape {
        /// Which.
        path: PathBuf,
        /// What is wrong and where in the file.
        message: String,
    },
    /// A value is out of its bounds or does not fit to another.
    #[error("setting {key}: {problem}")]
    Value {
        /// The key, as in the file: `server.listen`.
        key: &'static str,
        /// What is wrong.
        problem: String,
    },
}

/// A wrong value of a key.
fn wrong(key: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Value {
        key,
        problem: problem.into(),
    }
}

/// Checks that a number lies within its bounds.
fn within<T: PartialOrd + fmt::Display>(
    key: &'static str,
    value: T,
    least: T,
    most: T,
) -> Result<(), ConfigError> {
    if value < least || value > most {
        return Err(wrong(key, format!("{value} is not between {least} and {most}")));
    }
    Ok(())
}

fn read(path: &Path) -> Result<String, ConfigError> {
    let failed = |source| ConfigError::File {
        path: path.to_owned(),
        source,
    };
    if fs::metadata(path).map_err(failed)?.len() > FILE_BYTES {
        return Err(failed(io::Error::other("larger than 1 MiB")));
    }
    fs::read_to_string(path).map_err(failed)
}

impl Config {
    /// Reads a file. Does not validate yet: flags may still change values.
    pub fn from_file(path: &Path) -> Result<Self, ConfigError> {
        Self::from_toml(&read(path)?, path)
    }

    /// Reads TOML text; `path` is named in errors.
    pub fn from_toml(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| ConfigError::Shape {
            path: path.to_owned(),
            // The text of the line is left out: it may be a secret in the wrong place.
            message: error.message().to_owned() + &position(text, error.span()),
        })
    }

    /// Checks every value.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if self.data_dir.as_os_str().is_empty() {
            return Err(wrong("data_dir", "must not be empty"));
        }
        self.server.validate()?;
        self.database.validate()?;
        self.registry.validate()?;
        self.scheduling.validate()?;
        self.identity.validate()?;
        self.limits.validate()
    }

    /// Where the database is.
    pub fn database_url(&self) -> Result<String, ConfigError> {
        self.database.resolve(&self.data_dir)
    }

    /// Where keys live.
    pub fn identity_dir(&self) -> PathBuf {
        self.data_dir.join("identity")
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.data_dir.join("admin.sock")
    }
}

fn position(text: &str, span: Option<std::ops::Range<usize>>) -> String {
    span.and_then(|span| text.get(..span.start))
        .map_or_else(String::new, |before| {
            format!(" (line {})", before.matches('\n').count() + 1)
        })
}

/// Prints all settings as TOML, without secrets.
impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = self.clone();
        shown.database = shown.database.redacted();
        f.write_str(&toml::to_string_pretty(&shown).map_err(|_| fmt::Error)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let config = Config::from_toml(text, Path::new("test.toml"))?;
        config.validate()?;
        Ok(config)
    }

    #[test]
    fn the_sample_configuration_is_valid_and_shows_the_defaults() {
        let text = include_str!("../../deploy/config/sealift-orchestrator.toml");
        assert_eq!(parse(text).unwrap(), Config::default());
    }

    /// Every key of a table and of those below it, as in a file: `server.listen`.
    fn keys(table: &toml::Table, prefix: &str) -> Vec<String> {
        let below = |(key, value): (&String, &toml::Value)| match value {
            toml::Value::Table(table) => keys(table, &format!("{prefix}{key}.")),
            _ => vec![format!("{prefix}{key}")],
        };
        table.iter().flat_map(below).collect()
    }

    #[test]
    fn the_sample_configuration_has_every_key_that_has_a_default() {
        let text = include_str!("../../deploy/config/sealift-orchestrator.toml");
        let sample = keys(&text.parse().unwrap(), "");
        let wanted = keys(&toml::Table::try_from(Config::default()).unwrap(), "");
        assert!(wanted.len() > 20, "{wanted:?}");
        for key in wanted {
            assert!(sample.contains(&key), "{key} is not in the sample");
        }
    }

    #[test]
    fn unknown_keys_and_wrong_kinds_are_refused_with_their_line() {
        for text in [
            "colour = 1",
            "[server]\nlisten_on = \"x\"",
            "[limits]\nconnections = \"many\"",
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(
                error.starts_with("test.toml: ") && error.contains("line"),
                "{error}"
            );
        }
    }

    #[test]
    fn wrong_values_are_named_by_their_key() {
        for (text, key) in [
            ("data_dir = \"\"", "data_dir"),
            ("[server]\npublic_names = [\"not a name\"]", "server.public_names"),
            ("[database]\nurl = \"mysql://x\"", "database.url"),
            ("[database]\nurl = \"sqlite:x\"\nurl_file = \"y\"", "database.url"),
            ("[database]\nmax_connections = 0", "database.max_connections"),
            ("[limits]\nconnections = 0", "limits.connections"),
            (
                "[identity]\nagent_certificate_seconds = 1",
                "identity.agent_certificate_seconds",
            ),
            ("[registry]\nplain_http = [\"http://x\"]", "registry.plain_http"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("setting {key}: ")), "{text}: {error}");
        }
    }

    #[test]
    fn r11_a_printed_configuration_shows_no_password() {
        let config = parse("[database]\nurl = \"postgres://sealift:hunter2@db/sealift\"").unwrap();
        let shown = config.to_string();
        assert!(
            !shown.contains("hunter2") && shown.contains("postgres://sealift:***@db/sealift"),
            "{shown}"
        );
        assert!(!format!("{config:?}").contains("hunter2"));
    }

    #[test]
    fn the_embedded_database_lies_in_the_data_directory() {
        let config = Config {
            data_dir: "/srv/x".into(),
            ..Config::default()
        };
        assert_eq!(config.database_url().unwrap(), "sqlite:/srv/x/sealift.db");
    }
}
