//! Credentials from a docker `config.json`. Secrets live in `secrecy` types from the first byte read.

use std::{collections::BTreeMap, io, path::Path};

use base64::{Engine, prelude::BASE64_STANDARD};
use secrecy::{ExposeSecret, SecretSlice, SecretString};
use serde::{Deserialize, Deserializer};
use tokio::io::AsyncReadExt;

use super::error::RegistryError;

/// Largest file that is read.
const FILE_BYTES: u64 = 1024 * 1024;

/// User and password for one registry.
#[derive(Debug)]
pub struct Credentials {
    pub user: String,
    pub password: SecretString,
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default, rename = "credHelpers")]
    helpers: BTreeMap<String, String>,
    #[serde(default, rename = "credsStore")]
    store: Option<String>,
}

#[derive(Deserialize, Default)]
struct Entry {
    #[serde(default, deserialize_with = "secret")]
    auth: Option<SecretString>,
    #[serde(default, rename = "identitytoken", deserialize_with = "secret")]
    identity_token: Option<SecretString>,
}

fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.filter(|text| !text.is_empty()).map(SecretString::from))
}

/// The credentials for `registry` in the file at `path`; `None` when it has none for it.
pub async fn read(path: &Path, registry: &str) -> Result<Option<Credentials>, RegistryError> {
    let unusable = |problem| RegistryError::Credentials {
        registry: registry.to_owned(),
        path: path.to_owned(),
        problem,
    };
    let bytes = bounded(path).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => unusable("the file does not exist"),
        io::ErrorKind::PermissionDenied => unusable("the file may not be read"),
        io::ErrorKind::FileTooLarge => unusable("the file is larger than 1 MiB"),
        _ => unusable("the file cannot be read"),
    })?;
    // A parser's message may quote what it read, so it is not passed on.
    let file: ConfigFile = serde_json::from_slice(bytes.expose_secret())
        .map_err(|_| unusable("the file is no docker config.json"))?;
    choose(&file, registry).map_err(unusable)
}

async fn bounded(path: &Path) -> io::Result<SecretSlice<u8>> {
    let file = tokio::fs::File::open(path).await?;
    let mut bytes = Vec::new();
    file.take(FILE_BYTES + 1).read_to_end(&mut bytes).await?;
    let bytes = SecretSlice::from(bytes);
    if bytes.expose_secret().len() as u64 > FILE_BYTES {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    Ok(bytes)
}

/// The host in a key of `auths`: `https://index.docker.io/v1/` is `index.docker.io`.
fn host(key: &str) -> &str {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    bare.split('/').next().unwrap_or(bare)
}

fn same(key: &str, registry: &str) -> bool {
    let hub = |name: &str| matches!(name, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    host(key) == registry || (hub(host(key)) && hub(registry))
}

fn choose(file: &ConfigFile, registry: &str) -> Result<Option<Credentials>, &'static str> {
    let entry = file
        .auths
        .iter()
        .find(|(key, entry)| same(key, registry) && (entry.auth.is_some() || entry.identity_token.is_some()))
        .map(|(_, entry)| entry);
    let Some(entry) = entry else {
        let helped = file.helpers.keys().any(|key| same(key, registry))
            || (file.store.is_some() && file.auths.keys().any(|key| same(key, registry)));
        if helped {
            return Err("they are in a credential helper, which is not supported");
        }
        return Ok(None);
    };
    let Some(auth) = &entry.auth else {
        return Err("they are an identity token, which is not supported");
    };
    let decoded = BASE64_STANDARD
        .decode(auth.expose_secret().trim())
        .map_err(|_| "`auth` is not base64")?;
    let decoded = SecretSlice::from(decoded);
    let text = std::str::from_utf8(decoded.expose_secret()).map_err(|_| "`auth` is not UTF-8")?;
    let (user, password) = text.split_once(':').ok_or("`auth` is not user:password")?;
    if text.chars().any(char::is_control) {
        return Err("`auth` has control characters");
    }
    Ok(Some(Credentials {
        user: user.to_owned(),
        password: SecretString::from(password.to_owned()),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(json: &serde_json::Value, registry: &str) -> Result<Option<(String, String)>, &'static str> {
        let file = serde_json::from_value(json.clone()).unwrap();
        choose(&file, registry).map(|found| found.map(|c| (c.user, c.password.expose_secret().to_owned())))
    }

    #[test]
    fn entries_are_found_under_the_names_that_docker_writes() {
        let auth = BASE64_STANDARD.encode("ann:se:cret");
        let wanted = Ok(Some(("ann".to_owned(), "se:cret".to_owned())));
        for (key, registry) in [
            ("https://index.docker.io/v1/", "docker.io"),
            ("docker.io", "docker.io"),
            ("registry.acme.com:5000", "registry.acme.com:5000"),
            ("https://registry.acme.com:5000/v2/", "registry.acme.com:5000"),
        ] {
            let json = serde_json::json!({"auths": {"other.io": {"auth": "eDp5"}, key: {"auth": auth}}});
            assert_eq!(chosen(&json, registry), wanted, "{key}");
        }
        let json = serde_json::json!({"auths": {"acme.com": {"auth": auth}}});
        assert_eq!(chosen(&json, "evil-acme.com"), Ok(None));
        assert_eq!(chosen(&json, "acme.com:5000"), Ok(None));
    }

    #[test]
    fn what_cannot_be_used_is_named_without_its_content() {
        for json in [
            serde_json::json!({"auths": {"a.io": {}}, "credsStore": "desktop"}),
            serde_json::json!({"credHelpers": {"a.io": "ecr-login"}}),
            serde_json::json!({"auths": {"a.io": {"identitytoken": "t0ps3cret"}}}),
            serde_json::json!({"auths": {"a.io": {"auth": "t0ps3cret!"}}}),
            serde_json::json!({"auths": {"a.io": {"auth": BASE64_STANDARD.encode("t0ps3cret")}}}),
        ] {
            let fault = chosen(&json, "a.io").unwrap_err();
            assert!(!fault.contains("t0ps3cret"));
        }
        let credentials = Credentials {
            user: "ann".into(),
            password: SecretString::from("t0ps3cret".to_owned()),
        };
        assert!(!format!("{credentials:?}").contains("t0ps3cret"));
    }
}
