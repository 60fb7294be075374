//! Registries: finds out which digest an image reference means at this moment, and for which platforms it is built.
//!
//! Speaks the read-only part of the OCI distribution protocol that this needs (one manifest, one configuration blob). The
//! client is our own, on reqwest, because no client crate bounds the bodies that a registry sends, keeps credentials away from
//! plain http and redirects, and tells transient errors from final ones: see the rules at [`protocol`].

mod credentials;
mod error;
mod image;
mod protocol;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
    time::Duration,
};

use backon::{ExponentialBuilder, Retryable};
use futures::{StreamExt, stream};
use oci_spec::distribution::Reference;
use sealift_common::{digest::Digest, manifest::PinnedImage};
use tokio::sync::Semaphore;

pub use error::RegistryError;

/// Most resolutions under way at the same time, over all callers.
const PARALLEL: usize = 8;
/// How many deadlines a resolution may wait for its turn: others' slow registries must not look like a slow registry of its own.
const TURN_DEADLINES: u32 = 4;
/// Tries after the first.
const RETRIES: usize = 4;

/// How registries are reached.
#[derive(Debug, Clone)]
pub struct RegistryConfig {
    /// A docker `config.json` with credentials (`auths`); read again at every use, so that a rotation needs no restart.
    pub docker_config: Option<PathBuf>,
    /// Registries (`host` or `host:port`) that are spoken to in plain http. Loopback needs no entry.
    pub insecure: Vec<String>,
    /// What one resolution may take, retries included, from when it has its turn.
    pub deadline: Duration,
    /// Pause before the first retry; doubles each time, with jitter.
    pub retry_delay: Duration,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            docker_config: None,
            insecure: Vec::new(),
            deadline: Duration::from_secs(30),
            retry_delay: Duration::from_millis(250),
        }
    }
}

/// What a registry holds under a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedImage {
    /// The image, pinned.
    pub pinned: PinnedImage,
    /// What it is built for, sorted: `linux/amd64`, `linux/arm/v7`.
    pub platforms: Vec<String>,
}

/// Resolves image references at their registries.
#[derive(Debug)]
pub struct Registry {
    config: RegistryConfig,
    http: protocol::Http,
    turns: Semaphore,
}

impl Registry {
    /// Makes the HTTP clients. Fails when the machine's trusted certificates cannot be read.
    pub fn new(config: RegistryConfig) -> Result<Self, RegistryError> {
        let http = protocol::Http::new(&config)?;
        Ok(Self {
            config,
            http,
            turns: Semaphore::new(PARALLEL),
        })
    }

    /// Resolves one reference (`redis`, `registry.acme.com:5000/shop/api:1.4`, with or without digest).
    pub async fn resolve(&self, image: &str) -> Result<ResolvedImage, RegistryError> {
        let reference = parse(image)?;
        let registry = reference.registry().to_owned();
        let late = |deadline| RegistryError::Timeout { registry, deadline };
        let patience = self.config.deadline * TURN_DEADLINES;
        let Ok(turn) = tokio::time::timeout(patience, self.turns.acquire()).await else {
            return Err(late(patience));
        };
        let resolved = tokio::time::timeout(self.config.deadline, self.with_retries(&reference)).await;
        drop(turn);
        resolved.unwrap_or_else(|_| Err(late(self.config.deadline)))
    }

    /// Resolves many references side by side; each distinct one once.
    pub async fn resolve_all<'a>(
        &self,
        images: impl IntoIterator<Item = &'a str>,
    ) -> BTreeMap<String, Result<ResolvedImage, RegistryError>> {
        let distinct: BTreeSet<String> = images.into_iter().map(str::to_owned).collect();
        stream::iter(distinct)
            .map(|image| async move {
                let resolved = self.resolve(&image).await;
                (image, resolved)
            })
            .buffer_unordered(PARALLEL)
            .collect()
            .await
    }

    async fn with_retries(&self, reference: &Reference) -> Result<ResolvedImage, RegistryError> {
        let policy = ExponentialBuilder::default()
            .with_min_delay(self.config.retry_delay)
            .with_max_delay(self.config.retry_delay * 16)
            .with_max_times(RETRIES)
            .with_jitter();
        (|| self.once(reference))
            .retry(policy)
            .when(RegistryError::is_transient)
            .notify(|error, pause| tracing::debug!(%error, ?pause, "asking the registry again"))
            .await
    }

    async fn once(&self, reference: &Reference) -> Result<ResolvedImage, RegistryError> {
        let credentials = match &self.config.docker_config {
            Some(path) => credentials::read(path, reference.registry()).await?,
            None => None,
        };
        let mut session = protocol::Session::new(&self.http, reference, credentials);
        let wanted = reference
            .digest()
            .or(reference.tag())
            .unwrap_or("latest")
            .to_owned();
        let (bytes, claimed) = session.manifest(&wanted).await?;
        let digest = Digest::of(&bytes);
        for promise in [claimed.as_deref(), reference.digest()].into_iter().flatten() {
            // A registry may speak of another algorithm than ours; what it says of SHA-256 must be true.
            if promise.starts_with("sha256:") && promise != digest.to_string() {
                return Err(session.misbehaved(format!(
                    "the manifest has the digest {digest}, promised was {}",
                    error::printable(promise)
                )));
            }
        }
        let platforms = match image::read(&bytes).map_err(|what| session.misbehaved(what))? {
            image::Content::Index(platforms) => platforms,
            image::Content::Image { config } => {
                let bytes = session.blob(config).await?;
                if Digest::of(&bytes) != config {
                    return Err(session.misbehaved("the image's configuration has another digest".to_owned()));
                }
                vec![image::platform(&bytes).map_err(|what| session.misbehaved(what))?]
            }
        };
        if platforms.is_empty() {
            return Err(RegistryError::NotAnImage {
                image: reference.whole(),
            });
        }
        Ok(ResolvedImage {
            pinned: PinnedImage {
                repository: format!("{}/{}", reference.registry(), reference.repository()),
                tag: reference.tag().map(str::to_owned),
                digest,
            },
            platforms,
        })
    }
}

fn parse(image: &str) -> Result<Reference, RegistryError> {
    let reference: Reference = image.parse().map_err(|source| RegistryError::InvalidReference {
        image: error::printable(image),
        source,
    })?;
    match reference.digest() {
        Some(digest) if digest.parse::<Digest>().is_err() => Err(RegistryError::UnsupportedDigest {
            image: error::printable(image),
        }),
        _ => Ok(reference),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_follow_docker_hub_conventions() {
        for (text, wanted) in [
            ("redis", "docker.io/library/redis:latest"),
            ("acme/shop:1", "docker.io/acme/shop:1"),
            ("localhost:5000/shop", "localhost:5000/shop:latest"),
            ("registry.acme.com/shop/api:1.4", "registry.acme.com/shop/api:1.4"),
        ] {
            assert_eq!(parse(text).unwrap().whole(), wanted);
        }
    }

    #[test]
    fn what_is_no_reference_is_refused() {
        let short = format!("redis@sha256:{}", "a".repeat(63));
        let other = format!("redis@sha512:{}", "a".repeat(128));
        for text in [
            "",
            "Redis",
            "a b",
            "redis:",
            "http://redis",
            "redis:\u{1b}[31m",
            "../redis",
            "ada:secret@registry.acme.com/shop/api:1",
            "https://ada:secret@registry.acme.com/shop/api",
            &short,
            &other,
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(
                error.reason(),
                sealift_common::error::Reason::InvalidImageReference,
                "{text}"
            );
            assert!(!error.to_string().contains('\u{1b}'));
        }
    }
}
