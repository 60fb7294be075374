//! Credentials of registries from a docker `config.json`, as `docker login` writes it. Read anew for every pull, never logged.

use std::{collections::BTreeMap, path::Path};

use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;

/// Largest file that is read.
const FILE_BYTES: u64 = 1024 * 1024;
const HUB: &str = "docker.io";
const HUB_KEY: &str = "https://index.docker.io/v1/";

/// What a registry wants to know. Its `Debug` shows nothing.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    /// User name.
    pub username: Option<String>,
    /// Password.
    pub password: Option<String>,
    /// Token instead of a password.
    pub identity_token: Option<String>,
    /// The registry.
    pub server: String,
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Credentials")
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Auth>,
}

#[derive(Deserialize, Default)]
struct Auth {
    #[serde(rename = "auth")]
    encoded: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
}

/// Why the file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// It cannot be read.
    #[error("the docker config file cannot be read")]
    Read(#[source] std::io::Error),
    /// It is larger than 1 MiB.
    #[error("the docker config file is larger than 1 MiB")]
    TooLarge,
    /// It is not what `docker login` writes. The cause is left out: it could quote a secret.
    #[error("the docker config file is malformed")]
    Malformed,
}

/// Hosts (with ports, as they stand in the file) of the registries that the file has credentials for.
pub async fn registries(file: &Path) -> Result<Vec<String>, AuthError> {
    let config: ConfigFile = match read(file).await? {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(|_| AuthError::Malformed)?,
        None => return Ok(Vec::new()),
    };
    Ok(config.auths.keys().map(|key| bare(key).to_owned()).collect())
}

/// A registry's key in the file without scheme and path.
fn bare(key: &str) -> &str {
    let key = key.trim_start_matches("https://").trim_start_matches("http://");
    key.split('/').next().unwrap_or(key)
}

/// The credentials for the registry of `repository`; `None` when the file is not there or has none.
pub async fn find(file: &Path, repository: &str) -> Result<Option<Credentials>, AuthError> {
    match read(file).await? {
        Some(bytes) => parse(&bytes, repository),
        None => Ok(None),
    }
}

async fn read(file: &Path) -> Result<Option<Vec<u8>>, AuthError> {
    let size = match tokio::fs::metadata(file).await {
        Ok(metadata) => metadata.len(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(AuthError::Read(error)),
    };
    if size > FILE_BYTES {
        return Err(AuthError::TooLarge);
    }
    tokio::fs::read(file).await.map(Some).map_err(AuthError::Read)
}

fn parse(bytes: &[u8], repository: &str) -> Result<Option<Credentials>, AuthError> {
    let config: ConfigFile = serde_json::from_slice(bytes).map_err(|_| AuthError::Malformed)?;
    let host = repository.split('/').next().unwrap_or_default();
    let found = config.auths.into_iter().find(|(key, _)| {
        let bare = bare(key);
        (host == HUB && (key == HUB_KEY || bare == "index.docker.io")) || bare == host
    });
    let Some((_, auth)) = found else {
        return Ok(None);
    };
    let mut credentials = Credentials {
        username: auth.username,
        password: auth.password,
        identity_token: auth.identitytoken.filter(|token| !token.is_empty()),
        server: if host == HUB { HUB_KEY } else { host }.to_owned(),
    };
    if let Some(encoded) = auth.encoded.filter(|text| !text.is_empty()) {
        let decoded = STANDARD
            .decode(encoded.trim())
            .map_err(|_| AuthError::Malformed)?;
        let text = String::from_utf8(decoded).map_err(|_| AuthError::Malformed)?;
        let (user, password) = text.split_once(':').ok_or(AuthError::Malformed)?;
        credentials.username = Some(user.to_owned());
        credentials.password = Some(password.trim_end_matches('\0').to_owned());
    }
    let empty = credentials.username.is_none() && credentials.identity_token.is_none();
    Ok((!empty).then_some(credentials))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_by_registry_host_and_never_shown() {
        let file = format!(
            r#"{{"auths": {{"127.0.0.1:5000": {{"auth": "{0}"}}, "https://index.docker.io/v1/": {{"auth": "{0}"}},
                "https://reg.example.com/v2/": {{"identitytoken": "tok"}}, "helper.example.com": {{}}}}, "credsStore": "x"}}"#,
            STANDARD.encode("user:pa:ss")
        );
        let find = |repository| parse(file.as_bytes(), repository).unwrap();
        let local = find("127.0.0.1:5000/a/b").unwrap();
        assert_eq!(local.password.as_deref(), Some("pa:ss"));
        assert!(!format!("{local:?}").contains("pa:ss"));
        assert_eq!(find("docker.io/library/redis").unwrap().server, HUB_KEY);
        assert_eq!(
            find("reg.example.com/a").unwrap().identity_token.as_deref(),
            Some("tok")
        );
        assert_eq!(find("helper.example.com/a"), None);
        assert_eq!(find("127.0.0.1:5001/a"), None);
        assert!(matches!(parse(b"{", "x"), Err(AuthError::Malformed)));
    }
}
