//! Contexts: which orchestrator, as whom. Key material stays in files that the context names.

use std::{
    collections::BTreeMap,
    fs,
    io::Write as _,
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

use crate::{args::Global, error::CliError, output::REPORT};

/// One orchestrator and the identity to use there. Paths in a context file are relative to that file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `https://host:port`.
    pub endpoint: String,
    /// PEM of the orchestrator's CA.
    pub ca: PathBuf,
    /// PEM of the client certificate.
    pub certificate: PathBuf,
    /// PEM of its key; must not be readable by others.
    pub key: PathBuf,
}

impl Context {
    /// Reads a context file, or that of a folder as it is issued.
    pub fn read(path: &Path) -> Result<Self, CliError> {
        let in_folder = path.join("context.toml");
        let path = if path.is_dir() { &in_folder } else { path };
        let hint = "`sealift-orchestrator admin issue NAME --role ROLE --out DIR` writes DIR/context.toml";
        let text = fs::read_to_string(path)
            .map_err(|error| CliError::local(format!("{} cannot be read", path.display()), hint, error))?;
        let context: Self = toml::from_str(&text).map_err(|error| {
            CliError::local(format!("{} is not a context file", path.display()), hint, error)
        })?;
        let folder = path.parent().unwrap_or(Path::new("."));
        let folder = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned());
        Ok(Self {
            endpoint: context.endpoint,
            ca: folder.join(context.ca),
            certificate: folder.join(context.certificate),
            key: folder.join(context.key),
        })
    }

    /// The client key; refused when others may read it.
    pub fn key_pem(&self) -> Result<Vec<u8>, CliError> {
        let path = self.key.display();
        let metadata =
            fs::metadata(&self.key).map_err(|error| CliError::file(&self.key, "cannot be read", error))?;
        if metadata.permissions().mode() & 0o077 != 0 {
            return Err(CliError::usage(
                format!("the key {path} can be read by others"),
                format!("chmod 600 {path}"),
            ));
        }
        read(&self.key)
    }

    /// The client certificate.
    pub fn certificate_pem(&self) -> Result<Vec<u8>, CliError> {
        read(&self.certificate)
    }

    /// The orchestrator's CA.
    pub fn ca_pem(&self) -> Result<Vec<u8>, CliError> {
        read(&self.ca)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    fs::read(path).map_err(|error| CliError::file(path, "cannot be read", error))
}

/// All saved contexts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contexts {
    /// Name of the selected one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selected: Option<String>,
    /// By name.
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

impl Contexts {
    /// Where contexts are saved: `$XDG_CONFIG_HOME/sealift/contexts.toml`, by default below `~/.config`.
    pub fn path() -> Result<PathBuf, CliError> {
        let folder = std::env::var_os("XDG_CONFIG_HOME")
            .map(PathBuf::from)
            .or_else(|| std::env::home_dir().map(|home| home.join(".config")))
            .ok_or_else(|| {
                CliError::usage(
                    "there is no home directory",
                    "set XDG_CONFIG_HOME, or use --context-file",
                )
            })?;
        Ok(folder.join("sealift").join("contexts.toml"))
    }

    /// Reads the saved contexts; none when nothing was ever saved.
    pub fn load() -> Result<Self, CliError> {
        let path = Self::path()?;
        match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).map_err(|error| {
                CliError::local(
                    format!("{} cannot be understood", path.display()),
                    "correct it or move it away",
                    error,
                )
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(CliError::file(&path, "cannot be read", error)),
        }
    }

    /// Saves them, whole or not at all.
    pub fn save(&self) -> Result<(), CliError> {
        let path = Self::path()?;
        let failed = |error| CliError::file(&path, "cannot be written", error);
        let text = toml::to_string_pretty(self)
            .map_err(|error| CliError::local("contexts cannot be written", REPORT, error))?;
        let folder = path.parent().unwrap_or(Path::new("."));
        fs::create_dir_all(folder).map_err(failed)?;
        let temporary = folder.join(format!(".contexts.{}", std::process::id()));
        let mut file = fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(failed)?;
        file.write_all(text.as_bytes())
            .and_then(|()| file.sync_all())
            .map_err(failed)?;
        fs::rename(&temporary, &path).map_err(failed)
    }
}

/// The context that the flags ask for: `--context-file`, else `--context`, else the selected one.
pub fn resolve(global: &Global) -> Result<Context, CliError> {
    let mut context = match (&global.context_file, &global.context) {
        (Some(path), None) => Context::read(path)?,
        (Some(_), Some(_)) => {
            return Err(CliError::usage(
                "--context and --context-file exclude each other",
                "give one of them",
            ));
        }
        (None, name) => saved(name.as_deref())?,
    };
    if let Some(endpoint) = &global.endpoint {
        context.endpoint.clone_from(endpoint);
    }
    Ok(context)
}

fn saved(name: Option<&str>) -> Result<Context, CliError> {
    let contexts = Contexts::load()?;
    let name = name.or(contexts.selected.as_deref()).ok_or_else(|| {
        CliError::usage(
            "no context is selected",
            "`sealift dev` makes one to try things out; else `sealift context add NAME --file context.toml`",
        )
    })?;
    contexts.contexts.get(name).cloned().ok_or_else(|| {
        CliError::usage(
            format!("there is no context {name:?}"),
            "`sealift context list` shows all",
        )
    })
}
