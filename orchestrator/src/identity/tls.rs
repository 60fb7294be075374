//! The TLS configuration of the one port: TLS 1.3 only, HTTP/2 only, client certificates optional but never unverified.

use std::{sync::Arc, time::Duration};

use rustls::{
    RootCertStore, ServerConfig,
    server::{NoServerSessionStorage, WebPkiClientVerifier},
    time_provider::TimeProvider,
    version::TLS13,
};
use rustls_pki_types::UnixTime;
use sealift_common::time::Clock;

use super::{Ca, IdentityError, ServerCertificate};

/// The one application protocol.
pub(super) const ALPN_H2: &[u8] = b"h2";

#[derive(Debug)]
struct ClockTime(Arc<dyn Clock>);

impl TimeProvider for ClockTime {
    fn current_time(&self) -> Option<UnixTime> {
        let seconds = u64::try_from(self.0.now().timestamp()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(seconds)))
    }
}

/// The server's TLS configuration. A peer without certificate gets in with no identity (joining, health); one whose certificate
/// does not verify against our CA is refused in the handshake.
pub fn server_config(
    ca: &Ca,
    certificate: Arc<ServerCertificate>,
    clock: Arc<dyn Clock>,
) -> Result<Arc<ServerConfig>, IdentityError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone())?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()?;
    let mut config = ServerConfig::builder_with_details(provider, Arc::new(ClockTime(clock)))
        .with_protocol_versions(&[&TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    // A resumed session skips the verification of the client's certificate, so a refused peer could come back: none is resumable.
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(Arc::new(config))
}
