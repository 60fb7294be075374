//! The command line of `sealift-orchestrator`.

pub mod admin;

use std::{net::SocketAddr, path::PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};

use sealift_orchestrator::config::{Config, ConfigError};

/// The central orchestrator of Sealift.
#[derive(Debug, Parser)]
#[command(
    name = "sealift-orchestrator",
    version,
    after_help = "Exit codes: 0 as asked; 1 failed; 2 wrong usage; 3 a setting is wrong; 4 something needed is not there \
                  (database, port, files); 5 went down but not everything ended in time."
)]
pub struct Options {
    /// How to write logs (to standard error; RUST_LOG chooses what).
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "SEALIFT_LOG_FORMAT")]
    pub log_format: LogFormat,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// How to write logs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the orchestrator until SIGTERM or SIGINT.
    Serve(ServeFlags),
    /// Administration on the orchestrator's host: through its socket while it runs, else directly.
    Admin(admin::Admin),
    /// Checks the settings and prints them, without secrets.
    CheckConfig(ServeFlags),
    /// Prints the version.
    Version,
}

/// Where settings come from. Flags win over the environment, that over the file, that over defaults.
#[derive(Debug, Clone, Default, Args)]
pub struct ServeFlags {
    /// Configuration file (TOML).
    #[arg(long, env = "SEALIFT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where keys, the embedded database and the admin socket live: /var/lib/sealift-orchestrator, unless this or the file says
    /// otherwise.
    #[arg(long, env = "SEALIFT_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address of the TLS port, for example 0.0.0.0:8443.
    #[arg(long, env = "SEALIFT_LISTEN", value_name = "ADDRESS")]
    pub listen: Option<SocketAddr>,
    /// DNS name or address by which clients and agents call the orchestrator; may be given several times.
    #[arg(
        long = "public-name",
        env = "SEALIFT_PUBLIC_NAMES",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub public_names: Vec<String>,
    /// postgres://… or sqlite:PATH. A URL with a password is better kept in a file (database.url_file).
    #[arg(
        long,
        env = "SEALIFT_DATABASE_URL",
        value_name = "URL",
        hide_env_values = true
    )]
    pub database_url: Option<String>,
    /// Directory of the credentials that systemd gave the unit.
    #[arg(long, env = "CREDENTIALS_DIRECTORY", hide = true)]
    pub credentials_directory: Option<PathBuf>,
}

/// Name of the credential of the systemd unit that holds the database's URL.
const DATABASE_URL: &str = "sealift-orchestrator.database-url";

impl ServeFlags {
    /// The settings, checked.
    pub fn config(&self) -> anyhow::Result<Config> {
        Ok(self.read()?)
    }

    /// How to administer the same orchestrator again. A database's URL is left out: it may hold a password.
    fn admin(&self) -> String {
        let flags = [("--config", &self.config), ("--data-dir", &self.data_dir)];
        let mut words = vec!["sealift-orchestrator admin".to_owned()];
        words.extend(
            flags
                .into_iter()
                .filter_map(|(flag, path)| Some(format!("{flag} {}", path.as_ref()?.display()))),
        );
        words.join(" ")
    }

    fn read(&self) -> Result<Config, ConfigError> {
        let mut config = match &self.config {
            Some(path) => Config::from_file(path)?,
            None => Config::default(),
        };
        if let Some(data_dir) = &self.data_dir {
            config.data_dir.clone_from(data_dir);
        }
        if let Some(listen) = self.listen {
            config.server.listen = listen;
        }
        if !self.public_names.is_empty() {
            config.server.public_names.clone_from(&self.public_names);
        }
        if let Some(url) = &self.database_url {
            config.database.url = Some(url.clone());
            config.database.url_file = None;
        }
        if config.database.url.is_none() && config.database.url_file.is_none() {
            let credential = self
                .credentials_directory
                .as_ref()
                .map(|directory| directory.join(DATABASE_URL));
            config.database.url_file = credential.filter(|file| file.exists());
        }
        config.validate()?;
        Ok(config)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        use clap::CommandFactory as _;
        Options::command().debug_assert();
    }

    #[test]
    fn help_names_the_folder_that_is_used_when_none_is_given() {
        use clap::CommandFactory as _;
        let folder = Config::default().data_dir.display().to_string();
        for command in ["serve", "admin"] {
            let mut options = Options::command();
            let command = options.find_subcommand_mut(command).unwrap();
            let help = command.render_long_help().to_string();
            assert!(help.contains(&folder), "{help}");
        }
    }

    #[test]
    fn a_hint_names_the_orchestrator_that_was_administered() {
        let mut flags = ServeFlags::default();
        assert_eq!(flags.admin(), "sealift-orchestrator admin");
        flags.data_dir = Some("/srv/x".into());
        flags.database_url = Some("postgres://sealift:hunter2@db/sealift".to_owned());
        assert_eq!(flags.admin(), "sealift-orchestrator admin --data-dir /srv/x");
    }

    #[test]
    fn flags_win_over_the_file() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("config.toml");
        std::fs::write(
            &file,
            "data_dir = \"/from-file\"\n[database]\nurl_file = \"/x\"\n",
        )
        .unwrap();
        let flags = ServeFlags {
            config: Some(file),
            listen: Some("127.0.0.1:1".parse().unwrap()),
            database_url: Some("sqlite:/y".to_owned()),
            ..ServeFlags::default()
        };
        let config = flags.config().unwrap();
        assert_eq!(config.data_dir, PathBuf::from("/from-file"));
        assert_eq!(config.server.listen.port(), 1);
        assert_eq!(config.database_url().unwrap(), "sqlite:/y");
    }

    #[test]
    fn the_units_credential_names_the_database_unless_somebody_else_does() {
        let directory = tempfile::tempdir().unwrap();
        let mut flags = ServeFlags {
            credentials_directory: Some(directory.path().to_owned()),
            ..ServeFlags::default()
        };
        assert_eq!(flags.config().unwrap().database.url_file, None);
        let file = directory.path().join(DATABASE_URL);
        std::fs::write(&file, "sqlite:/z").unwrap();
        assert_eq!(flags.config().unwrap().database.url_file, Some(file));
        flags.database_url = Some("sqlite:/y".to_owned());
        assert_eq!(flags.config().unwrap().database.url_file, None);
    }
}
