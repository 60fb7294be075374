//! Compose: the host's own Compose, driven by the agent for targets of kind `compose_host`. It alone reads, merges and interpolates
//! compose files and makes what they describe; the agent pins the images, checks what came out against the host's policy, and keeps
//! the result whole.
//!
//! [`tool`] runs the program, [`render`] makes the lock, [`files`] keeps locks on the disk, [`resolved`] reads them, [`names`] says what
//! the engine calls what is in them, [`variables`] are those of the host.

pub mod files;
pub mod names;
pub mod render;
pub mod resolved;
pub mod tool;
pub mod variables;

use std::{
    collections::BTreeMap,
    ffi::OsString,
    path::{Path, PathBuf},
};

use sealift_common::{
    compose_manifest::ComposeManifest,
    failure::{Failure, FailureCode},
    name::Name,
    order::Order,
    variables::Variables,
};

use crate::labels;
use files::ProjectFiles;
use tool::Tool;
use variables::{HostVariables, HostVariablesError};

/// Where programs are found; the caller's own search path says nothing about the host.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Section `[compose]` of the settings, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ComposeConfig {
    /// The program to use instead of the one that is found.
    pub program: Option<PathBuf>,
    /// What the host's owner gives to Compose.
    pub usual: HostFiles,
    /// `compose.environments`: what holds for orders of these environments in place of it.
    pub environments: BTreeMap<Name, HostFiles>,
}

/// What the host's owner gives to Compose, secrets among it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFiles {
    /// Where the relative paths of compose files are looked up.
    pub files_dir: Option<PathBuf>,
    /// Variables of this host, as `NAME=value` lines. Their values never leave it.
    pub env_file: Option<PathBuf>,
}

impl ComposeConfig {
    /// What is given for orders of an environment.
    pub fn of(&self, environment: &Name) -> &HostFiles {
        self.environments.get(environment).unwrap_or(&self.usual)
    }
}

/// The host's Compose with everything that it is called with. It may be missing: then only the files that the agent keeps are there,
/// and whatever Compose would have to do fails.
#[derive(Debug, Clone)]
pub struct Compose {
    tool: Option<Tool>,
    search: Search,
}

/// Where the host's Compose is looked for, and what it is then called with.
#[derive(Debug, Clone)]
pub struct Search {
    config: ComposeConfig,
    root: PathBuf,
    engine_socket: String,
    docker_config: Option<PathBuf>,
}

impl Search {
    /// For an agent with these settings.
    pub fn new(
        config: ComposeConfig,
        state_dir: &Path,
        engine_socket: &str,
        docker_config_file: Option<&Path>,
    ) -> Self {
        Self {
            config,
            root: state_dir.join("compose"),
            engine_socket: engine_socket.to_owned(),
            docker_config: docker_config_file.and_then(Path::parent).map(Path::to_owned),
        }
    }

    /// Looks once; it is missing when there is none that works now.
    pub async fn look(&self) -> Compose {
        Compose {
            tool: Tool::detect(self.config.program.as_deref()).await,
            search: self.clone(),
        }
    }
}

impl Compose {
    /// The program.
    pub fn tool(&self) -> Result<&Tool, Failure> {
        let missing = || Failure::new(FailureCode::ComposeUnavailable, "this host has no Compose now");
        self.tool.as_ref().ok_or_else(missing)
    }

    /// Whether there is no program.
    pub const fn is_missing(&self) -> bool {
        self.tool.is_none()
    }

    /// The folder in which the relative paths of compose files of an environment are looked up, if the host's owner has set one aside.
    pub fn files_dir(&self, environment: &Name) -> Option<&Path> {
        self.search.config.of(environment).files_dir.as_deref()
    }

    /// The files of the project of an order.
    pub fn files(&self, order: &Order<ComposeManifest>) -> ProjectFiles {
        let target = format!("{}.{}", order.target, order.environment);
        ProjectFiles::new(
            self.search
                .root
                .join(target)
                .join(labels::project_slug(&order.release.project)),
        )
    }

    /// Reads the host's variables for an environment. Blocks.
    pub fn host_variables(&self, environment: &Name) -> Result<HostVariables, HostVariablesError> {
        self.search
            .config
            .of(environment)
            .env_file
            .as_deref()
            .map_or_else(|| Ok(HostVariables::default()), HostVariables::read)
    }

    /// The program's whole environment: nothing of the agent's own.
    pub fn environment(
        &self,
        home: &Path,
        ordered: &Variables,
        host: &HostVariables,
    ) -> Vec<(OsString, OsString)> {
        let mut environment: Vec<(OsString, OsString)> = vec![
            ("PATH".into(), PATH.into()),
            ("HOME".into(), home.into()),
            ("LANG".into(), "C.UTF-8".into()),
            ("DOCKER_HOST".into(), self.search.engine_socket.clone().into()),
        ];
        environment.extend(
            self.search
                .docker_config
                .as_ref()
                .map(|folder| ("DOCKER_CONFIG".into(), folder.into())),
        );
        let ordered = ordered.iter().filter(|(name, _)| host.get(name).is_none());
        environment.extend(ordered.map(|(name, value)| (name.into(), value.into())));
        environment.extend(host.iter().map(|(name, value)| (name.into(), value.into())));
        environment
    }
}
