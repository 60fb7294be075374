//! Why an image could not be resolved. No message ever holds a credential, a token, a URL's query or what a server wrote.

use std::{path::PathBuf, time::Duration};

use oci_spec::distribution::ParseError;
use sealift_common::error::Reason;

/// A cause below HTTP.
pub type Cause = Box<dyn std::error::Error + Send + Sync>;

/// Why an image could not be resolved.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// The text is no image reference.
    #[error("{image} is not an image reference")]
    InvalidReference {
        /// What was given.
        image: String,
        /// The rule that it breaks.
        source: ParseError,
    },
    /// The digest is not SHA-256.
    #[error("{image} names a digest that is not sha256 in lower-case hex")]
    UnsupportedDigest {
        /// What was given.
        image: String,
    },
    /// It exists, but is no container image.
    #[error("{image} is not a container image: it names no platform")]
    NotAnImage {
        /// The full reference.
        image: String,
    },
    /// The registry does not know it.
    #[error("{image} is not at the registry")]
    NotFound {
        /// The full reference.
        image: String,
    },
    /// The registry wants other credentials, or some at all.
    #[error("{registry} refused access to {image}{}", if *.anonymous { " (no credentials are configured for it)" } else { "" })]
    Denied {
        /// Registry host.
        registry: String,
        /// The full reference.
        image: String,
        /// Whether we had no credentials.
        anonymous: bool,
    },
    /// The docker `config.json` cannot be used.
    #[error("the credentials for {registry} in {} cannot be used: {problem}", path.display())]
    Credentials {
        /// Registry host.
        registry: String,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The registry cannot be reached or says that it cannot answer now.
    #[error("{registry} cannot be reached: {what}")]
    Unavailable {
        /// Registry host.
        registry: String,
        /// What was tried.
        what: String,
        /// The cause, when it is below HTTP.
        source: Option<Cause>,
    },
    /// The deadline passed.
    #[error("{registry} did not answer within {} s", deadline.as_secs_f32())]
    Timeout {
        /// Registry host.
        registry: String,
        /// The deadline.
        deadline: Duration,
    },
    /// The registry breaks the protocol or sends other bytes than it promised.
    #[error("{registry} misbehaves: {what}")]
    Misbehaved {
        /// Registry host.
        registry: String,
        /// What it did.
        what: String,
    },
    /// Plain http where the configuration does not allow it.
    #[error("{registry} speaks plain http ({what})")]
    Insecure {
        /// Registry host.
        registry: String,
        /// What was plain.
        what: &'static str,
    },
    /// The HTTP client cannot be made on this machine.
    #[error("no HTTP client can be made")]
    Client(#[source] Cause),
}

impl RegistryError {
    /// The stable reason.
    pub const fn reason(&self) -> Reason {
        match self {
            Self::InvalidReference { .. } | Self::UnsupportedDigest { .. } | Self::NotAnImage { .. } => {
                Reason::InvalidImageReference
            }
            Self::NotFound { .. } => Reason::ImageNotFound,
            Self::Denied { .. } | Self::Credentials { .. } => Reason::RegistryDenied,
            Self::Unavailable { .. } | Self::Timeout { .. } => Reason::RegistryUnavailable,
            Self::Misbehaved { .. } => Reason::RegistryMisbehaved,
            Self::Insecure { .. } => Reason::RegistryInsecure,
            Self::Client(_) => Reason::Internal,
        }
    }

    /// What to do next.
    pub const fn advice(&self) -> &'static str {
        match self {
            Self::InvalidReference { .. } | Self::UnsupportedDigest { .. } => {
                "write it like registry.example.com/shop/api:1.4 or …@sha256:…"
            }
            Self::NotAnImage { .. } => "name a container image, not a chart, a signature or another artifact",
            Self::NotFound { .. } => "push the image first, or correct its name or tag",
            Self::Denied { .. } => {
                "give the orchestrator credentials for this registry in its docker config file, or correct the image's name"
            }
            Self::Credentials { .. } => {
                "write user and password for this registry under `auths` (docker login without a credential store)"
            }
            Self::Unavailable { .. } | Self::Timeout { .. } => {
                "check that the registry is up and that the orchestrator reaches it, then try again"
            }
            Self::Misbehaved { .. } => "treat the registry as broken or compromised until explained",
            Self::Insecure { .. } => {
                "give the registry a certificate, or list it under the orchestrator's insecure registries"
            }
            Self::Client(_) => "check the machine's trusted certificates (package ca-certificates)",
        }
    }

    /// Whether another try may succeed with nothing changed.
    pub const fn is_transient(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}

/// Foreign text for a message: without control characters, of bounded length.
pub fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}
