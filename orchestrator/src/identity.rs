//! Who is who: the orchestrator's own CA and keys, certificates for agents, users and the server itself, and the TLS edge that
//! turns a connection into a [`PeerIdentity`].
//!
//! TLS keys are ECDSA P-256, which every gRPC client speaks; orders and evidence use Ed25519 ([`sealift_common::keys`]).

mod accept;
mod ca;
mod files;
mod keys;
mod peer;
mod server_cert;
mod tls;

pub use accept::{AcceptLimits, Connection, PeerInfo, incoming};
pub use ca::{Ca, IssuedCertificate, NewKey, ServerNames, new_key};
pub use keys::OrchestratorKeys;
pub use peer::PeerIdentity;
pub use server_cert::ServerCertificate;
pub use tls::server_config;

/// Why an identity cannot be made, read or believed.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written, or others may read it.
    #[error("identity file {path}")]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file has content that it should not have.
    #[error("identity file {path}: {problem}")]
    Content {
        /// Which.
        path: std::path::PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// The certificate signing request is malformed, does not verify or has a key of another kind.
    #[error("the certificate signing request is refused: {0}")]
    Csr(&'static str),
    /// A certificate names no peer of ours.
    #[error("the certificate names no peer: {0}")]
    Peer(&'static str),
    /// The certificate library refused.
    #[error("the certificate cannot be made")]
    Certificate(#[from] rcgen::Error),
    /// The TLS library refused.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// The verifier of client certificates cannot be built.
    #[error("client certificates cannot be verified")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// The operating system gave no random numbers.
    #[error("no random numbers")]
    Random(#[from] getrandom::Error),
    /// A time outside of what certificates can say.
    #[error("the time {0} cannot be written into a certificate")]
    Time(chrono::DateTime<chrono::Utc>),
    /// A DNS name of the server that is none.
    #[error("{0:?} is not a DNS name")]
    DnsName(String),
}

#[cfg(test)]
mod tests;
