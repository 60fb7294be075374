use std::{fs, io, os::unix::fs::PermissionsExt, path::Path, pin::pin, sync::Arc, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use futures::StreamExt;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::{ClientConfig, HandshakeKind, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject};
use sealift_common::{
    id::{AgentId, UserId},
    name::Name,
    spiffe::SpiffeId,
    time::{Clock, SystemClock, TestClock},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::*;

fn now() -> DateTime<Utc> {
    SystemClock.now()
}

fn acme() -> Name {
    "acme".parse().unwrap()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn ca() -> (TempDir, Arc<Ca>) {
    let directory = TempDir::new().unwrap();
    let ca = Ca::open(&directory.path().join("identity"), now()).unwrap();
    (directory, Arc::new(ca))
}

#[test]
fn t14_the_ca_and_the_keys_are_made_once_and_private() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("identity");
    let ca = Ca::open(&path, now()).unwrap();
    let keys = OrchestratorKeys::open(&path).unwrap();
    assert_eq!(mode(&path), 0o700);
    for file in ["ca.pem", "ca.key.pem", "order.key.pem", "evidence.key.pem"] {
        assert_eq!(mode(&path.join(file)), 0o600, "{file}");
    }
    let again = OrchestratorKeys::open(&path).unwrap();
    assert_eq!(Ca::open(&path, now()).unwrap().digest(), ca.digest());
    assert_eq!(again.order.public(), keys.order.public());
    assert_eq!(again.evidence.public(), keys.evidence.public());
    assert_ne!(keys.order.public(), keys.evidence.public());
}

#[test]
fn a_start_that_was_killed_between_key_and_certificate_goes_on() {
    let (directory, _) = ca();
    let path = directory.path().join("identity");
    let key = fs::read(path.join("ca.key.pem")).unwrap();
    fs::remove_file(path.join("ca.pem")).unwrap();
    fs::write(path.join(".ca.pem.new"), "half").unwrap();
    Ca::open(&path, now()).unwrap();
    assert_eq!(fs::read(path.join("ca.key.pem")).unwrap(), key);
}

#[test]
fn a_ca_that_is_damaged_or_readable_by_others_is_refused() {
    let (directory, _) = ca();
    let path = directory.path().join("identity");
    let key = path.join("ca.key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
    assert!(Ca::open(&path, now()).is_err());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();
    fs::write(&key, new_key().unwrap().key_pem).unwrap();
    assert!(matches!(
        Ca::open(&path, now()),
        Err(IdentityError::Content { .. })
    ));
    fs::remove_file(&key).unwrap();
    assert!(matches!(
        Ca::open(&path, now()),
        Err(IdentityError::Content { .. })
    ));
}

#[test]
fn t2_of_a_request_only_the_key_is_used() {
    let (_directory, ca) = ca();
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["orchestrator.example.com".to_owned()]).unwrap();
    let evil = format!("spiffe://sealift/acme/user/{}", UserId::new(now()));
    params
        .subject_alt_names
        .push(SanType::URI(evil.try_into().unwrap()));
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ServerAuth];
    let request = params.serialize_request(&key).unwrap();
    let agent = AgentId::new(now());
    let at = now();
    for bytes in [request.der().to_vec(), request.pem().unwrap().into_bytes()] {
        let issued = ca
            .issue_agent(&bytes, &acme(), agent, at, TimeDelta::hours(24))
            .unwrap();
        let peer = PeerIdentity::from_der(&issued.leaf).unwrap();
        assert_eq!(peer.spiffe, SpiffeId::agent(acme(), agent));
        assert_eq!(peer.serial_hex, issued.serial_hex);
        assert_eq!(peer.not_after.timestamp(), issued.not_after.timestamp());
        assert_eq!(issued.not_before, at - TimeDelta::minutes(5));
        let (_, leaf) = x509_parser::parse_x509_certificate(&issued.leaf).unwrap();
        assert!(!leaf.is_ca());
        let usage = leaf.key_usage().unwrap().unwrap();
        assert!(usage.critical && usage.value.digital_signature() && !usage.value.key_cert_sign());
        let extended = leaf.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.client_auth && !extended.server_auth);
        let chain: Vec<_> = CertificateDer::pem_slice_iter(issued.chain_pem.as_bytes())
            .collect::<Result<_, _>>()
            .unwrap();
        assert_eq!(chain, [issued.leaf.clone(), ca.certificate().clone()]);
    }
}

#[test]
fn requests_that_do_not_verify_or_have_other_keys_are_refused() {
    let (_directory, ca) = ca();
    let issue = |csr: &[u8]| ca.issue_agent(csr, &acme(), AgentId::new(now()), now(), TimeDelta::hours(1));
    let mut forged = new_key().unwrap().csr_der;
    assert!(issue(&forged).is_ok());
    *forged.last_mut().unwrap() ^= 1;
    let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    let other = CertificateParams::default().serialize_request(&other).unwrap();
    for bad in [
        forged.as_slice(),
        other.der(),
        b"",
        b"-----BEGIN",
        vec![0x30; 20_000].as_slice(),
    ] {
        assert!(matches!(issue(bad), Err(IdentityError::Csr(_))));
    }
}

#[test]
fn certificates_that_name_no_peer_are_refused() {
    let (_directory, ca) = ca();
    assert!(PeerIdentity::from_der(ca.certificate()).is_err());
    let key = KeyPair::generate().unwrap();
    let id = SpiffeId::agent(acme(), AgentId::new(now())).to_string();
    for names in [vec![id.clone(), id], vec!["https://example.com/".to_owned()]] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = names
            .into_iter()
            .map(|name| SanType::URI(name.try_into().unwrap()))
            .collect();
        let certificate = params.self_signed(&key).unwrap();
        assert!(PeerIdentity::from_der(certificate.der()).is_err());
    }
}

#[test]
fn the_server_certificate_is_replaced_before_it_ends() {
    let (_directory, ca) = ca();
    let at = now();
    let certificate = ServerCertificate::new(ca, ServerNames::default(), at).unwrap();
    let end = certificate.not_after();
    assert!(!certificate.renew_if_due(at + TimeDelta::days(1)).unwrap());
    assert_eq!(certificate.not_after(), end);
    assert!(certificate.renew_if_due(at + TimeDelta::days(5)).unwrap());
    assert!(certificate.not_after() > end);
}

/// A server on loopback whose connections are told to the test and then echo one byte.
struct Server {
    _directory: TempDir,
    ca: Arc<Ca>,
    address: std::net::SocketAddr,
    peers: mpsc::Receiver<PeerInfo>,
    _tasks: JoinSet<()>,
}

async fn serve(clock: Arc<dyn Clock>, limits: AcceptLimits) -> Server {
    let (directory, ca) = ca();
    let names = ServerNames {
        dns: vec!["localhost".into()],
        addresses: vec!["127.0.0.1".parse().unwrap()],
    };
    let certificate = ServerCertificate::new(Arc::clone(&ca), names, clock.now()).unwrap();
    let config = server_config(&ca, certificate, clock).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, peers) = mpsc::channel(16);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut connections = pin!(incoming(listener, config, limits));
        let mut echoes = JoinSet::new();
        while let Some(Ok(mut connection)) = connections.next().await {
            sender.send(connection.peer().clone()).await.unwrap();
            echoes.spawn(async move {
                let mut byte = [0];
                if connection.read_exact(&mut byte).await.is_ok() {
                    connection.write_all(&byte).await.unwrap();
                    connection.flush().await.unwrap();
                }
            });
        }
    });
    Server {
        _directory: directory,
        ca,
        address,
        peers,
        _tasks: tasks,
    }
}

fn client(ca: &Ca, identity: Option<(String, String)>) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate().clone()).unwrap();
    let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match identity {
        None => builder.with_no_client_auth(),
        Some((chain, key)) => builder
            .with_client_auth_cert(
                CertificateDer::pem_slice_iter(chain.as_bytes())
                    .collect::<Result<_, _>>()
                    .unwrap(),
                PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
            )
            .unwrap(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config
}

async fn dial(server: &Server, config: &Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let tcp = TcpStream::connect(server.address).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::clone(config)).connect(name, tcp).await
}

/// Connects and exchanges one byte, so that a refusal after the client's part of the handshake is seen too.
async fn exchange(server: &Server, config: Arc<ClientConfig>) -> io::Result<TlsStream<TcpStream>> {
    let mut stream = dial(server, &config).await?;
    stream.write_all(b"x").await?;
    stream.flush().await?;
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    Ok(stream)
}

fn agent_certificate(ca: &Ca, at: DateTime<Utc>) -> (AgentId, (String, String)) {
    let key = new_key().unwrap();
    let agent = AgentId::new(at);
    let issued = ca
        .issue_agent(&key.csr_der, &acme(), agent, at, TimeDelta::hours(24))
        .unwrap();
    (agent, (issued.chain_pem, key.key_pem))
}

#[tokio::test]
async fn a_client_certificate_gives_the_identity_and_none_gives_none() {
    let mut server = serve(Arc::new(SystemClock), AcceptLimits::default()).await;
    exchange(&server, Arc::new(client(&server.ca, None)))
        .await
        .unwrap();
    let peer = server.peers.recv().await.unwrap();
    assert!(peer.identity.is_none() && peer.certificates.is_empty());

    let (agent, identity) = agent_certificate(&server.ca, now());
    exchange(&server, Arc::new(client(&server.ca, Some(identity))))
        .await
        .unwrap();
    let peer = server.peers.recv().await.unwrap();
    assert_eq!(peer.identity.unwrap().spiffe, SpiffeId::agent(acme(), agent));
    assert_eq!(peer.certificates.len(), 2);
    assert!(peer.remote.ip().is_loopback());
}

#[tokio::test]
async fn t9_a_client_certificate_of_another_ca_is_refused_in_the_handshake() {
    let mut server = serve(Arc::new(SystemClock), AcceptLimits::default()).await;
    let (_other_directory, other) = ca();
    let (_, foreign) = agent_certificate(&other, now());
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    let id = SpiffeId::agent(acme(), AgentId::new(now())).to_string();
    params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
    params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
    let own = (params.self_signed(&key).unwrap().pem(), key.serialize_pem());
    for identity in [foreign, own] {
        let config = Arc::new(client(&server.ca, Some(identity)));
        assert!(exchange(&server, config).await.is_err());
    }
    assert!(
        server.peers.try_recv().is_err(),
        "nothing reached the application"
    );
}

#[tokio::test]
async fn t1_an_expired_client_certificate_is_refused_by_the_injected_clock() {
    let clock = TestClock::at(now());
    let mut server = serve(Arc::new(clock.clone()), AcceptLimits::default()).await;
    let (_, identity) = agent_certificate(&server.ca, clock.now());
    let config = Arc::new(client(&server.ca, Some(identity)));
    exchange(&server, Arc::clone(&config)).await.unwrap();
    server.peers.recv().await.unwrap();
    clock.advance(TimeDelta::hours(25));
    assert!(exchange(&server, config).await.is_err());
    assert!(server.peers.try_recv().is_err());
}

#[tokio::test]
async fn t1_sessions_are_never_resumed() {
    let mut server = serve(Arc::new(SystemClock), AcceptLimits::default()).await;
    let (_, identity) = agent_certificate(&server.ca, now());
    // One configuration: the client would resume if it were given a ticket.
    let config = Arc::new(client(&server.ca, Some(identity)));
    for _ in 0..3 {
        let stream = exchange(&server, Arc::clone(&config)).await.unwrap();
        let (_, session) = stream.get_ref();
        assert_eq!(session.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(session.tls13_tickets_received(), 0);
        assert!(server.peers.recv().await.unwrap().identity.is_some());
    }
}

#[tokio::test]
async fn t9_tls_1_2_is_refused() {
    let mut server = serve(Arc::new(SystemClock), AcceptLimits::default()).await;
    // ClientHello of TLS 1.2: two ECDHE suites, P-256, ECDSA and RSA with SHA-256, no supported_versions.
    let extensions =
        hex::decode("000a00040002001700 0d0006000404030401 000b00020100".replace(' ', "")).unwrap();
    let mut hello = vec![3, 3];
    hello.extend([7; 32]);
    hello.extend([0, 0, 4, 0xC0, 0x2B, 0xC0, 0x2F, 1, 0]);
    hello.extend(u16::try_from(extensions.len()).unwrap().to_be_bytes());
    hello.extend(extensions);
    let mut record = vec![0x16, 3, 1];
    record.extend(u16::try_from(hello.len() + 4).unwrap().to_be_bytes());
    record.extend([1, 0]);
    record.extend(u16::try_from(hello.len()).unwrap().to_be_bytes());
    record.extend(hello);
    let mut tcp = TcpStream::connect(server.address).await.unwrap();
    tcp.write_all(&record).await.unwrap();
    let mut answer = Vec::new();
    tcp.read_to_end(&mut answer).await.unwrap();
    // A fatal alert, protocol_version.
    assert_eq!(answer, [0x15, 3, 3, 0, 2, 2, 70]);
    assert!(server.peers.try_recv().is_err());
}

#[tokio::test]
async fn plain_text_and_other_protocols_are_refused() {
    let mut server = serve(Arc::new(SystemClock), AcceptLimits::default()).await;
    let mut tcp = TcpStream::connect(server.address).await.unwrap();
    tcp.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // An alert or a reset, but the end in any case.
    let _ = tcp.read_to_end(&mut answer).await;
    for protocols in [vec![], vec![b"http/1.1".to_vec()]] {
        let mut config = client(&server.ca, None);
        config.alpn_protocols = protocols;
        assert!(exchange(&server, Arc::new(config)).await.is_err());
    }
    assert!(server.peers.try_recv().is_err());
}

#[tokio::test]
async fn t9_a_peer_that_stalls_is_dropped_and_holds_nobody_up() {
    let limits = AcceptLimits {
        handshakes: 2,
        handshake_deadline: Duration::from_millis(200),
        ..AcceptLimits::default()
    };
    let mut server = serve(Arc::new(SystemClock), limits).await;
    let mut stalled = Vec::new();
    for _ in 0..2 {
        stalled.push(TcpStream::connect(server.address).await.unwrap());
    }
    // Waits until the stalled ones run into their deadline, then gets through.
    exchange(&server, Arc::new(client(&server.ca, None)))
        .await
        .unwrap();
    server.peers.recv().await.unwrap();
    for mut tcp in stalled {
        assert_eq!(tcp.read(&mut [0]).await.unwrap_or(0), 0);
    }
}

#[tokio::test]
async fn connections_are_bounded() {
    let limits = AcceptLimits {
        connections: 1,
        ..AcceptLimits::default()
    };
    let mut server = serve(Arc::new(SystemClock), limits).await;
    let config = Arc::new(client(&server.ca, None));
    // The server drops each connection after its byte, which frees the place for the next.
    for _ in 0..3 {
        exchange(&server, Arc::clone(&config)).await.unwrap();
        server.peers.recv().await.unwrap();
    }
}

#[tokio::test]
async fn t17_connections_without_a_certificate_are_few_and_short_and_take_no_place_of_others() {
    let limits = AcceptLimits {
        anonymous: 1,
        anonymous_life: Duration::from_millis(300),
        ..AcceptLimits::default()
    };
    let mut server = serve(Arc::new(SystemClock), limits).await;
    let anonymous = Arc::new(client(&server.ca, None));
    let mut idle = dial(&server, &anonymous).await.unwrap();
    server.peers.recv().await.unwrap();
    // The second one is turned away while the first one is there.
    assert!(exchange(&server, Arc::clone(&anonymous)).await.is_err());
    assert_eq!(
        idle.read(&mut [0]).await.unwrap_or(0),
        0,
        "the idle one was ended"
    );
    let (agent, identity) = agent_certificate(&server.ca, now());
    exchange(&server, Arc::new(client(&server.ca, Some(identity))))
        .await
        .unwrap();
    let peer = server.peers.recv().await.unwrap();
    assert_eq!(peer.identity.unwrap().spiffe, SpiffeId::agent(acme(), agent));
    exchange(&server, anonymous).await.unwrap();
}
