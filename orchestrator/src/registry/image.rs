//! What a manifest says: an index of platforms, or one image whose configuration names its platform. Docker's own media types
//! and OCI's have the same shape here.

use std::collections::BTreeSet;

use sealift_common::{bounds, digest::Digest};
use serde::Deserialize;

use super::error::printable;

/// Content of a manifest.
#[derive(Debug, PartialEq, Eq)]
pub enum Content {
    /// One manifest for each platform; the platforms, sorted.
    Index(Vec<String>),
    /// One image.
    Image {
        /// Digest of its configuration blob.
        config: Digest,
    },
}

#[derive(Deserialize)]
struct Manifest {
    manifests: Option<Vec<Entry>>,
    config: Option<Descriptor>,
}

#[derive(Deserialize)]
struct Entry {
    platform: Option<Platform>,
}

#[derive(Deserialize)]
struct Descriptor {
    digest: String,
}

#[derive(Deserialize)]
struct Platform {
    #[serde(default)]
    os: String,
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    variant: Option<String>,
}

impl Platform {
    /// `linux/arm/v7`; `None` for what is no platform (attestations say `unknown`).
    fn name(&self) -> Option<String> {
        let word = |text: &str| {
            (1..=32).contains(&text.len())
                && text != "unknown"
                && text
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'))
        };
        if !word(&self.os) || !word(&self.architecture) {
            return None;
        }
        Some(match self.variant.as_deref().filter(|variant| word(variant)) {
            Some(variant) => format!("{}/{}/{variant}", self.os, self.architecture),
            None => format!("{}/{}", self.os, self.architecture),
        })
    }
}

/// Reads a manifest.
pub fn read(bytes: &[u8]) -> Result<Content, String> {
    let manifest: Manifest =
        serde_json::from_slice(bytes).map_err(|_| "what it sent is not a manifest".to_owned())?;
    match (manifest.manifests, manifest.config) {
        (Some(entries), None) => {
            let platforms: BTreeSet<String> = entries
                .iter()
                .filter_map(|entry| entry.platform.as_ref()?.name())
                .collect();
            // They are kept with the release and are a part of each decision about it.
            if platforms.len() > bounds::PLATFORMS {
                return Err(format!(
                    "the image is built for {} platforms, at most {} are supported",
                    platforms.len(),
                    bounds::PLATFORMS
                ));
            }
            Ok(Content::Index(platforms.into_iter().collect()))
        }
        (None, Some(config)) => {
            let digest = config.digest.parse().map_err(|_| {
                format!(
                    "the manifest names the configuration {}, which is no sha256 digest",
                    printable(&config.digest)
                )
            })?;
            Ok(Content::Image { config: digest })
        }
        (Some(_), Some(_)) => Err("the manifest is an image and an index at once".to_owned()),
        (None, None) => {
            Err("the manifest is neither an image nor an index (schema 1 is not supported)".to_owned())
        }
    }
}

/// The platform in an image's configuration.
pub fn platform(bytes: &[u8]) -> Result<String, String> {
    serde_json::from_slice::<Platform>(bytes)
        .ok()
        .and_then(|platform| platform.name())
        .ok_or_else(|| "the image's configuration names no platform: it is no container image".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indexes_name_their_platforms_without_attestations() {
        let json = serde_json::json!({"manifests": [
            {"digest": "x", "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}},
            {"digest": "x", "platform": {"os": "linux", "architecture": "amd64"}},
            {"digest": "x", "platform": {"os": "unknown", "architecture": "unknown"}},
            {"digest": "x"},
        ]});
        let wanted = Content::Index(vec!["linux/amd64".into(), "linux/arm/v7".into()]);
        assert_eq!(read(json.to_string().as_bytes()), Ok(wanted));
    }

    #[test]
    fn an_index_of_too_many_platforms_is_refused() {
        let index = |count: usize| {
            let entries: Vec<_> = (0..count)
                .map(|n| serde_json::json!({"digest": "x", "platform": {"os": "linux", "architecture": format!("a{n}")}}))
                .collect();
            read(serde_json::json!({ "manifests": entries }).to_string().as_bytes())
        };
        assert!(index(bounds::PLATFORMS).is_ok());
        assert!(index(bounds::PLATFORMS + 1).is_err());
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        for text in [
            "",
            "[]",
            "{}",
            "null",
            r#"{"config":{"digest":"sha256:0"}}"#,
            r#"{"config":{}}"#,
        ] {
            assert!(read(text.as_bytes()).is_err(), "{text}");
        }
        assert!(platform(b"{}").is_err());
        assert!(platform(br#"{"os":"li/nux","architecture":"amd64"}"#).is_err());
    }
}
