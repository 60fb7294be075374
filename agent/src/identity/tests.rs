use std::{fs, io, net::SocketAddr, os::unix::fs::PermissionsExt, path::Path, sync::Arc};

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::{
    HandshakeKind, RootCertStore, ServerConfig, crypto::ring::default_provider, server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use sealift_common::{
    digest::Digest,
    id::{AgentId, TargetId},
    keys::SigningKey,
    order::TargetBinding,
    spiffe::SpiffeId,
    time::{Clock, SystemClock},
};
use tempfile::TempDir;
use tokio::{
    io::AsyncReadExt,
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::{channel::pinned_config, *};

struct Ca {
    certificate: Certificate,
    issuer: Issuer<'static, KeyPair>,
}

impl Ca {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        // The same name for all: a verifier must not be taken in by it.
        params.distinguished_name.push(DnType::CommonName, "Sealift CA");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        Self {
            certificate,
            issuer: Issuer::new(params, key),
        }
    }

    fn pin(&self) -> [u8; 32] {
        *Digest::of(self.certificate.der()).as_bytes()
    }

    fn server(&self, name: &str) -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let key = PrivatePkcs8KeyDer::from(key.serialize_der());
        (certificate.der().clone(), key.into())
    }

    fn agent(&self, id: AgentId) -> Credential {
        let key = new_key().unwrap();
        let mut request = CertificateSigningRequestParams::from_pem(&key.csr_pem).unwrap();
        let id = SpiffeId::agent("acme".parse().unwrap(), id).to_string();
        request.params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        request.params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = request.signed_by(&self.issuer).unwrap();
        Credential::new(key.key_pem, certificate.pem()).unwrap()
    }
}

/// What a server saw of one connection: whether the handshake succeeded, and how many client certificates came.
type Seen = Result<usize, String>;

struct Server {
    address: SocketAddr,
    seen: mpsc::Receiver<Seen>,
    _tasks: JoinSet<()>,
}

impl Server {
    fn endpoint(&self) -> OrchestratorEndpoint {
        format!("https://localhost:{}", self.address.port())
            .parse()
            .unwrap()
    }
}

async fn serve(ca: &Ca, leaf: (CertificateDer<'static>, PrivateKeyDer<'static>)) -> Server {
    let mut roots = RootCertStore::empty();
    roots.add(ca.certificate.der().clone()).unwrap();
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
        .allow_unauthenticated()
        .build()
        .unwrap();
    // Tickets stay on: that the client never resumes must not depend on the server.
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![leaf.0, ca.certificate.der().clone()], leaf.1)
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (sender, seen) = mpsc::channel(8);
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        let mut open = Vec::new();
        loop {
            let (tcp, _) = listener.accept().await.unwrap();
            let result = match acceptor.accept(tcp).await {
                Ok(mut stream) => {
                    // The client's preface: its part of the handshake is over.
                    let mut preface = [0; 3];
                    let read = stream.read_exact(&mut preface).await;
                    let certificates = stream.get_ref().1.peer_certificates().map_or(0, <[_]>::len);
                    open.push(stream);
                    read.map(|_| certificates).map_err(|error| error.to_string())
                }
                Err(error) => Err(error.to_string()),
            };
            if sender.send(result).await.is_err() {
                return;
            }
        }
    });
    Server {
        address,
        seen,
        _tasks: tasks,
    }
}

#[tokio::test]
async fn t3_a_joining_agent_believes_the_pinned_ca() {
    let ca = Ca::new();
    let mut server = serve(&ca, ca.server("localhost")).await;
    connect_pinned(&server.endpoint(), ca.pin()).await.unwrap();
    assert_eq!(server.seen.recv().await.unwrap(), Ok(0));
}

#[tokio::test]
async fn t3_a_wrong_pin_is_refused_before_any_application_byte() {
    let ca = Ca::new();
    let mut server = serve(&ca, ca.server("localhost")).await;
    assert!(connect_pinned(&server.endpoint(), [7; 32]).await.is_err());
    // The server never got through the handshake, so there was nothing that a secret could have been sent in.
    assert!(server.seen.recv().await.unwrap().is_err());
}

#[tokio::test]
async fn t3_showing_the_pinned_ca_beside_a_foreign_leaf_is_refused() {
    let (ca, evil) = (Ca::new(), Ca::new());
    // The CA certificate is public: anybody can send it along.
    let mut server = serve(&ca, evil.server("localhost")).await;
    assert!(connect_pinned(&server.endpoint(), ca.pin()).await.is_err());
    assert!(server.seen.recv().await.unwrap().is_err());
}

#[tokio::test]
async fn t9_a_server_of_another_name_is_refused() {
    let ca = Ca::new();
    let mut server = serve(&ca, ca.server("elsewhere.example.com")).await;
    assert!(connect_pinned(&server.endpoint(), ca.pin()).await.is_err());
    assert!(server.seen.recv().await.unwrap().is_err());
    let credential = ca.agent(AgentId::new(SystemClock.now()));
    assert!(
        connect_mtls(&server.endpoint(), &ca.certificate.pem(), &credential)
            .await
            .is_err()
    );
    assert!(server.seen.recv().await.unwrap().is_err());
}

#[tokio::test]
async fn an_enrolled_agent_shows_its_certificate_to_its_own_ca_only() {
    let ca = Ca::new();
    let credential = ca.agent(AgentId::new(SystemClock.now()));
    let mut server = serve(&ca, ca.server("localhost")).await;
    connect_mtls(&server.endpoint(), &ca.certificate.pem(), &credential)
        .await
        .unwrap();
    assert_eq!(server.seen.recv().await.unwrap(), Ok(1));

    let evil = Ca::new();
    let mut server = serve(&evil, evil.server("localhost")).await;
    assert!(
        connect_mtls(&server.endpoint(), &ca.certificate.pem(), &credential)
            .await
            .is_err()
    );
    assert!(server.seen.recv().await.unwrap().is_err());
}

#[tokio::test]
async fn t1_the_client_never_resumes_a_session() {
    let ca = Ca::new();
    let server = serve(&ca, ca.server("localhost")).await;
    let config = pinned_config(ca.pin()).unwrap();
    for _ in 0..3 {
        let tcp = TcpStream::connect(server.address).await.unwrap();
        let name = ServerName::try_from("localhost").unwrap();
        let stream = TlsConnector::from(Arc::clone(&config))
            .connect(name, tcp)
            .await
            .unwrap();
        assert_eq!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
    }
}

#[tokio::test]
async fn t9_a_client_offers_tls_1_3_only() {
    let ca = Ca::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint: OrchestratorEndpoint =
        format!("https://localhost:{}", listener.local_addr().unwrap().port())
            .parse()
            .unwrap();
    let server = async {
        let (mut tcp, _) = listener.accept().await?;
        let mut hello = vec![0; 4096];
        let read = tcp.read(&mut hello).await?;
        hello.truncate(read);
        io::Result::Ok(hello)
    };
    let (hello, channel) = tokio::join!(server, connect_pinned(&endpoint, ca.pin()));
    assert!(channel.is_err());
    // supported_versions (43) with one entry, 0x0304.
    let only_1_3 = [0, 43, 0, 3, 2, 3, 4];
    assert!(hello.unwrap().windows(7).any(|part| part == only_1_3));
}

#[test]
fn endpoints_are_strict() {
    for good in [
        "https://orchestrator.example.com:7443",
        "https://[::1]:7443",
        "https://127.0.0.1:7443/",
    ] {
        let endpoint: OrchestratorEndpoint = good.parse().unwrap();
        assert_eq!(endpoint.to_string(), good.trim_end_matches('/'));
    }
    for bad in [
        "",
        "localhost:7443",
        "http://localhost:7443",
        "https://localhost",
        "https://localhost:7443/path",
        "https://user@localhost:7443",
        "https://localhost:7443?x",
    ] {
        assert!(bad.parse::<OrchestratorEndpoint>().is_err(), "{bad}");
    }
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

fn identity(ca: &Ca, agent_id: AgentId) -> Identity {
    Identity {
        agent_id,
        tenant: "acme".parse().unwrap(),
        bindings: vec![TargetBinding {
            tenant: "acme".parse().unwrap(),
            environment: "staging".parse().unwrap(),
            target: "web-1".parse().unwrap(),
            target_id: TargetId::new(SystemClock.now()),
        }],
        ca_pem: ca.certificate.pem(),
        order_keys: vec![SigningKey::from_seed(&[3; 32]).public()],
    }
}

#[test]
fn t14_the_identity_is_kept_in_private_files() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("identity");
    let store = IdentityStore::open(path.clone()).unwrap();
    let ca = Ca::new();
    let agent = AgentId::new(SystemClock.now());
    let key = store.evidence_key().unwrap().public();
    assert!(store.load().unwrap().is_none());
    store.enroll(&identity(&ca, agent), &ca.agent(agent)).unwrap();
    assert_eq!(mode(&path), 0o700);
    for file in fs::read_dir(&path).unwrap() {
        assert_eq!(mode(&file.unwrap().path()), 0o600);
    }
    let enrolled = store.load().unwrap().unwrap();
    assert_eq!(enrolled.identity.agent_id, agent);
    assert_eq!(store.evidence_key().unwrap().public(), key);
    assert!(!format!("{enrolled:?}").contains("PRIVATE KEY"));
    assert!(matches!(
        store.enroll(&identity(&ca, agent), &ca.agent(agent)),
        Err(IdentityError::AlreadyEnrolled)
    ));
    fs::set_permissions(path.join("credential.json"), fs::Permissions::from_mode(0o644)).unwrap();
    assert!(store.load().is_err());
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(IdentityStore::open(path).is_err());
}

#[test]
fn a_lost_evidence_key_is_not_silently_replaced() {
    let directory = TempDir::new().unwrap();
    let path = directory.path().join("identity");
    let store = IdentityStore::open(path.clone()).unwrap();
    let ca = Ca::new();
    let agent = AgentId::new(SystemClock.now());
    store.evidence_key().unwrap();
    store.enroll(&identity(&ca, agent), &ca.agent(agent)).unwrap();
    fs::remove_file(path.join("evidence.key.pem")).unwrap();
    assert!(store.evidence_key().is_err());
}

#[test]
fn a_renewed_credential_takes_over_only_after_it_was_used() {
    let directory = TempDir::new().unwrap();
    let store = IdentityStore::open(directory.path().join("identity")).unwrap();
    let ca = Ca::new();
    let agent = AgentId::new(SystemClock.now());
    let (first, second) = (ca.agent(agent), ca.agent(agent));
    assert_ne!(first.key_pem(), second.key_pem());
    assert_ne!(first.serial_hex(), second.serial_hex());
    store.enroll(&identity(&ca, agent), &first).unwrap();
    store.stage(&second).unwrap();
    let both = store.load().unwrap().unwrap();
    assert_eq!((both.current, both.next), (first.clone(), Some(second.clone())));
    store.discard().unwrap();
    assert_eq!(store.load().unwrap().unwrap().next, None);
    store.stage(&second).unwrap();
    store.confirm().unwrap();
    let after = store.load().unwrap().unwrap();
    assert_eq!((after.current, after.next), (second, None));
}

#[test]
fn credentials_that_do_not_fit_are_refused() {
    let directory = TempDir::new().unwrap();
    let store = IdentityStore::open(directory.path().join("identity")).unwrap();
    let (ca, now) = (Ca::new(), SystemClock.now());
    let (agent, other) = (AgentId::new(now), AgentId::new(now));
    assert!(store.enroll(&identity(&ca, agent), &ca.agent(other)).is_err());
    let credential = ca.agent(agent);
    let foreign_key = new_key().unwrap().key_pem;
    assert!(Credential::new(foreign_key, credential.chain_pem().to_owned()).is_err());
    assert!(Credential::new(credential.key_pem().to_owned(), "x".into()).is_err());
    assert!(Credential::new(credential.key_pem().to_owned(), ca.certificate.pem()).is_err());
}

#[test]
fn t3_an_answer_with_another_ca_is_refused() {
    let (ca, evil) = (Ca::new(), Ca::new());
    let agent = AgentId::new(SystemClock.now());
    assert!(identity(&ca, agent).check_ca(&ca.pin()).is_ok());
    assert!(matches!(
        identity(&evil, agent).check_ca(&ca.pin()),
        Err(IdentityError::OtherCa)
    ));
}

proptest! {
    #[test]
    fn renewal_is_at_50_to_80_percent_of_life(
        start in 0_i64..4_000_000_000,
        life in 0_i64..10_000_000,
        fraction in any::<f64>(),
    ) {
        let start: DateTime<Utc> = DateTime::from_timestamp(start, 0).unwrap();
        let end = start + TimeDelta::seconds(life);
        let at = renewal_instant(start, end, fraction);
        prop_assert!(at >= start + TimeDelta::milliseconds(life * 500) - TimeDelta::milliseconds(1));
        prop_assert!(at <= start + TimeDelta::milliseconds(life * 800) + TimeDelta::milliseconds(1));
    }
}

#[test]
fn renewal_of_a_life_that_ends_before_it_begins_is_at_once() {
    let now = SystemClock.now();
    assert_eq!(renewal_instant(now, now - TimeDelta::hours(1), 0.5), now);
    assert_eq!(
        renewal_instant(now, now + TimeDelta::hours(10), 0.0),
        now + TimeDelta::hours(5)
    );
}
