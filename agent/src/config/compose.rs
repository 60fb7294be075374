//! Section `[compose]`: the host's Compose and what its owner gives to it.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use sealift_common::name::Name;
use serde::Deserialize;

use super::ConfigError;
use crate::compose::{ComposeConfig, HostFiles};

/// Section `[compose]`. Only the file has it: it belongs to whoever runs the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ComposeSettings {
    /// The program: `docker` (for its plug-in) or `docker-compose`, by absolute path. Default: what is found.
    pub program: Option<PathBuf>,
    /// Folder in which the relative paths of compose files are looked up: secrets, configs, `env_file`s, mounts. Services may mount
    /// what is in it. Default: none, and compose files with relative paths are refused.
    pub files_dir: Option<PathBuf>,
    /// File of `NAME=value` lines that Compose fills in beside the environment's variables. Its values never leave the host.
    pub env_file: Option<PathBuf>,
    /// For orders of these environments: what is set here holds in place of what is set above.
    pub environments: BTreeMap<Name, HostFilesSettings>,
}

/// Section `[compose.environments.NAME]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HostFilesSettings {
    /// As in `[compose]`.
    pub files_dir: Option<PathBuf>,
    /// As in `[compose]`.
    pub env_file: Option<PathBuf>,
}

impl ComposeSettings {
    /// These settings where they say something, `below` elsewhere.
    pub(super) fn over(self, below: Self) -> Self {
        let mut environments = below.environments;
        environments.extend(self.environments);
        Self {
            program: self.program.or(below.program),
            files_dir: self.files_dir.or(below.files_dir),
            env_file: self.env_file.or(below.env_file),
            environments,
        }
    }

    pub(super) fn check(self, state_dir: &Path) -> Result<ComposeConfig, ConfigError> {
        let usual = HostFiles {
            files_dir: self.files_dir,
            env_file: self.env_file,
        };
        let environments: BTreeMap<Name, HostFiles> = self
            .environments
            .into_iter()
            .map(|(name, own)| {
                let files = HostFiles {
                    files_dir: own.files_dir.or_else(|| usual.files_dir.clone()),
                    env_file: own.env_file.or_else(|| usual.env_file.clone()),
                };
                (name, files)
            })
            .collect();
        let all = || std::iter::once(&usual).chain(environments.values());
        apart("compose.program", self.program.as_ref(), state_dir)?;
        for files in all() {
            apart("compose.files_dir", files.files_dir.as_ref(), state_dir)?;
            apart("compose.env_file", files.env_file.as_ref(), state_dir)?;
        }
        // A release of the one environment could mount what is the other's.
        let folders = || all().filter_map(|files| files.files_dir.as_deref());
        if folders().any(|one| folders().any(|other| one != other && one.starts_with(other))) {
            return Err(ConfigError::Invalid {
                name: "compose.files_dir",
                problem: "of one environment must not lie in that of another".to_owned(),
            });
        }
        Ok(ComposeConfig {
            program: self.program,
            usual,
            environments,
        })
    }
}

/// Refuses a path that is not absolute or has to do with the agent's own state.
fn apart(name: &'static str, path: Option<&PathBuf>, state_dir: &Path) -> Result<(), ConfigError> {
    let problem = match path {
        Some(path) if !path.is_absolute() => "must be an absolute path",
        Some(path) if path.starts_with(state_dir) || state_dir.starts_with(path) => {
            "must not share anything with state_dir"
        }
        _ => return Ok(()),
    };
    Err(ConfigError::Invalid {
        name,
        problem: problem.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checked(text: &str) -> Result<ComposeConfig, ConfigError> {
        let settings: ComposeSettings = toml::from_str(text).unwrap();
        settings.check(Path::new("/var/lib/sealift-agent"))
    }

    #[test]
    fn t16_an_environment_has_its_own_files_and_inherits_only_what_it_does_not_name() {
        let config = checked(
            "files_dir = '/srv/files'\nenv_file = '/etc/sealift/host.env'\n\
             [environments.production]\nenv_file = '/etc/sealift/production.env'\n\
             [environments.staging]\nfiles_dir = '/srv/staging'",
        )
        .unwrap();
        let of = |name: &str| {
            let files = config.of(&name.parse().unwrap());
            let text = |path: &Option<PathBuf>| path.as_ref().unwrap().display().to_string();
            (text(&files.files_dir), text(&files.env_file))
        };
        let wanted = |dir: &str, file: &str| (dir.to_owned(), file.to_owned());
        assert_eq!(
            of("production"),
            wanted("/srv/files", "/etc/sealift/production.env")
        );
        assert_eq!(of("staging"), wanted("/srv/staging", "/etc/sealift/host.env"));
        assert_eq!(of("other"), wanted("/srv/files", "/etc/sealift/host.env"));
        let apart = checked("[environments.production]\nenv_file = '/etc/production.env'").unwrap();
        assert_eq!(apart.of(&"staging".parse().unwrap()), &HostFiles::default());
    }

    #[test]
    fn t16_paths_that_could_not_be_kept_apart_are_refused() {
        for text in [
            "files_dir = 'relative'",
            "env_file = '/var/lib/sealift-agent/host.env'",
            "[environments.a]\nenv_file = 'relative'",
            "[environments.a]\nfiles_dir = '/var/lib'",
            "files_dir = '/srv'\n[environments.a]\nfiles_dir = '/srv/a'",
            "[environments.a]\nfiles_dir = '/srv/a'\n[environments.b]\nfiles_dir = '/srv/a/b'",
        ] {
            assert!(checked(text).is_err(), "{text}");
        }
        let shared = "[environments.a]\nfiles_dir = '/srv/a'\n[environments.b]\nfiles_dir = '/srv/a'";
        assert!(checked(shared).is_ok());
        assert!(toml::from_str::<ComposeSettings>("[environments.a]\nprogram = '/usr/bin/docker'").is_err());
    }
}
