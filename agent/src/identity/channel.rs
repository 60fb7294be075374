//! Channels to the orchestrator: TLS 1.3 and HTTP/2 only, never resumed, every step with a deadline.

use std::{io, str::FromStr, sync::Arc, time::Duration};

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    client::Resumption,
    crypto::{CryptoProvider, ring::default_provider},
    version::TLS13,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use tokio::{net::TcpStream, time::timeout};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint};

use super::{Credential, IdentityError, pin::PinnedCa};

/// How long connecting may take: name, TCP and TLS together.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);
/// How often an open connection is asked for life.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
/// How long the answer to that may take.
const KEEPALIVE_DEADLINE: Duration = Duration::from_secs(20);

/// Where an orchestrator listens: `https://host:port`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OrchestratorEndpoint {
    host: String,
    port: u16,
    uri: Uri,
    name: ServerName<'static>,
}

impl std::fmt::Display for OrchestratorEndpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.uri
            .authority()
            .map_or(Ok(()), |authority| write!(f, "https://{authority}"))
    }
}

impl FromStr for OrchestratorEndpoint {
    type Err = IdentityError;

    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let wrong = || IdentityError::Endpoint(text.chars().take(200).collect());
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let plain_path = matches!(uri.path(), "" | "/") && uri.query().is_none();
        let has_user = uri
            .authority()
            .is_some_and(|authority| authority.as_str().contains('@'));
        if uri.scheme_str() != Some("https") || !plain_path || has_user {
            return Err(wrong());
        }
        // Of an IPv6 address the brackets belong to the URI, not to the host.
        let host = uri.host().ok_or_else(wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Self {
            port: uri.port_u16().ok_or_else(wrong)?,
            name: ServerName::try_from(host.clone()).map_err(|_| wrong())?,
            host,
            uri,
        })
    }
}

fn finish(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// TLS for joining: the server is known by the digest of its CA, the client has no certificate yet.
pub(super) fn pinned_config(pin: [u8; 32]) -> Result<Arc<ClientConfig>, IdentityError> {
    let provider: Arc<CryptoProvider> = Arc::new(default_provider());
    let verifier = Arc::new(PinnedCa::new(pin, Arc::clone(&provider)));
    let config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(finish(config))
}

/// TLS of an enrolled agent: the CA from enrolment and no other, and its own certificate.
pub(super) fn mutual_config(
    ca_pem: &str,
    credential: &Credential,
) -> Result<Arc<ClientConfig>, IdentityError> {
    let mut roots = RootCertStore::empty();
    let ca = CertificateDer::from_pem_slice(ca_pem.as_bytes())
        .map_err(|_| IdentityError::Certificate("the CA's is not PEM"))?;
    roots.add(ca)?;
    let chain = CertificateDer::pem_slice_iter(credential.chain_pem().as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| IdentityError::Certificate("it is not PEM"))?;
    let key = PrivateKeyDer::from_pem_slice(credential.key_pem().as_bytes())
        .map_err(|_| IdentityError::Certificate("its key is not PEM"))?;
    let config = ClientConfig::builder_with_provider(Arc::new(default_provider()))
        .with_protocol_versions(&[&TLS13])?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)?;
    Ok(finish(config))
}

/// Connects to an orchestrator that is known by the SHA-256 of its CA certificate only. When this succeeds, the server has proved
/// to hold a certificate of that CA for the endpoint's name; nothing secret was sent.
pub async fn connect_pinned(
    endpoint: &OrchestratorEndpoint,
    pin: [u8; 32],
) -> Result<Channel, IdentityError> {
    connect(endpoint, pinned_config(pin)?).await
}

/// Connects as the holder of `credential` to an orchestrator with a certificate of the CA `ca_pem`. The channel reconnects by
/// itself with the same credential: after a renewal a new channel is needed.
pub async fn connect_mtls(
    endpoint: &OrchestratorEndpoint,
    ca_pem: &str,
    credential: &Credential,
) -> Result<Channel, IdentityError> {
    connect(endpoint, mutual_config(ca_pem, credential)?).await
}

async fn dial(
    host: String,
    port: u16,
    name: ServerName<'static>,
    tls: TlsConnector,
) -> io::Result<TokioIo<TlsStream<TcpStream>>> {
    let work = async {
        let tcp = TcpStream::connect((host, port)).await?;
        tcp.set_nodelay(true)?;
        tls.connect(name, tcp).await
    };
    let stream = timeout(CONNECT_DEADLINE, work)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "connecting took more than 10 s"))??;
    if stream.get_ref().1.alpn_protocol() == Some(b"h2") {
        Ok(TokioIo::new(stream))
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "the server did not agree on HTTP/2",
        ))
    }
}

async fn connect(
    endpoint: &OrchestratorEndpoint,
    config: Arc<ClientConfig>,
) -> Result<Channel, IdentityError> {
    let failed = |source| IdentityError::Connect {
        endpoint: endpoint.to_string(),
        source,
    };
    let authority = endpoint
        .uri
        .authority()
        .map(ToString::to_string)
        .unwrap_or_default();
    let tls = TlsConnector::from(config);
    let (host, port, name) = (endpoint.host.clone(), endpoint.port, endpoint.name.clone());
    let connector = tower::service_fn(move |_: Uri| dial(host.clone(), port, name.clone(), tls.clone()));
    // `http` keeps tonic from adding TLS of its own; what the server sees as scheme and authority is the origin.
    Endpoint::from_shared(format!("http://{authority}"))
        .map_err(failed)?
        .origin(endpoint.uri.clone())
        .connect_timeout(CONNECT_DEADLINE)
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_DEADLINE)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(failed)
}
