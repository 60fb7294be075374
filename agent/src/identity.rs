//! Who this agent is and how it knows its orchestrator: keys made on the host, the identity as files, pinned and mutual TLS.

mod channel;
mod credential;
pub(crate) mod files;
mod pin;
mod store;

pub use channel::{OrchestratorEndpoint, connect_mtls, connect_pinned};
pub use credential::{Credential, NewKey, new_key, renewal_instant};
pub use store::{Enrolled, Identity, IdentityStore};

/// Why an identity cannot be made, kept or used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("identity file {path}")]
    File {
        /// Which.
        path: std::path::PathBuf,
        /// What the system said.
        #[source]
        source: std::io::Error,
    },
    /// A file has content or a mode that it should not have.
    #[error("identity file {path}: {problem}")]
    Content {
        /// Which.
        path: std::path::PathBuf,
        /// What is wrong.
        problem: &'static str,
    },
    /// The host is enrolled already.
    #[error("this state directory belongs to an enrolled agent; remove it to enrol anew")]
    AlreadyEnrolled,
    /// The host was never enrolled.
    #[error("this host is not enrolled: run sealift-agent join without --add-target")]
    NotEnrolled,
    /// The target belongs to another tenant than the agent.
    #[error("the target belongs to another tenant than this agent")]
    OtherTenant,
    /// What the orchestrator sent as certificate or key does not hold together.
    #[error("the certificate is refused: {0}")]
    Certificate(&'static str),
    /// The CA that came with the answer is not the one that the join token pins.
    #[error("the orchestrator's CA is not the one that the join token names")]
    OtherCa,
    /// A key cannot be made.
    #[error("no key could be made")]
    Key(#[from] rcgen::Error),
    /// The operating system gave no random numbers.
    #[error("no random numbers")]
    Random(#[from] getrandom::Error),
    /// TLS cannot be set up.
    #[error("TLS cannot be set up")]
    Tls(#[from] rustls::Error),
    /// Not the address of an orchestrator.
    #[error("{0:?} is not an orchestrator's address: wanted https://host:port")]
    Endpoint(String),
    /// The orchestrator cannot be reached, or is not the one that it should be.
    #[error("no connection to {endpoint}")]
    Connect {
        /// Where to.
        endpoint: String,
        /// Why not.
        #[source]
        source: tonic::transport::Error,
    },
}

#[cfg(test)]
mod tests;
