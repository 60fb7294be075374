//! A whole orchestrator on a loopback port with a database of its own (SQLite, or PostgreSQL: see `database.rs` of the harness), and
//! callers of every kind.

use std::{sync::Arc, time::Duration};

use hyper_util::rt::TokioIo;
use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use sealift_common::{
    id::AgentId,
    inventory::{Agent, AgentFacts, AgentIntent, IntentNote},
    keys::SigningKey,
    name::Name,
    role::Role,
    time::SystemClock,
};
use sealift_orchestrator::{Orchestrator, Running, config::Config};
use sealift_proto::v1::{
    CreateTenantRequest, IssueUserCertificateRequest, tenant_service_client::TenantServiceClient,
    user_service_client::UserServiceClient,
};
use sealift_store::{Certificate, CertificateSubject, Tx};
use tempfile::TempDir;
use tokio::net::UnixStream;
use tonic::{
    Request, Status,
    transport::{Certificate as Pem, Channel, ClientTlsConfig, Endpoint, Identity},
};
use tonic_types::StatusExt as _;

#[path = "../../../tests/harness/database.rs"]
mod database;
use database::Database;

/// Longest wait: unoptimised, on a machine that runs other tests beside it.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// Waits until the store says so.
pub async fn until(world: &World, mut said: impl AsyncFnMut(&mut Tx) -> bool) {
    let mut changes = world.running.app.db.changes();
    let said = async {
        while !said(&mut world.running.app.db.read().await.unwrap()).await {
            let _ = changes.recv().await;
        }
    };
    tokio::time::timeout(PATIENCE, said).await.unwrap();
}

pub struct World {
    pub running: Running,
    pub database: Database,
    pub folder: TempDir,
}

pub fn config(folder: &TempDir, database: &Database) -> Config {
    let mut config = Config {
        data_dir: folder.path().join("data"),
        ..Config::default()
    };
    config.server.listen = "127.0.0.1:0".parse().unwrap();
    config.database.url = Some(database.url.clone());
    config
}

impl World {
    pub async fn start() -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let database = Database::create(folder.path()).unwrap();
        let running = Orchestrator::start(config(&folder, &database), Arc::new(SystemClock))
            .await
            .unwrap();
        Self {
            running,
            database,
            folder,
        }
    }

    pub async fn stop(self) {
        assert!(self.running.stop().await, "something did not end in time");
    }

    /// The admin socket.
    pub async fn local(&self) -> Channel {
        let path = self.running.app.config.admin_socket();
        let connect = tower::service_fn(move |_| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        });
        Endpoint::from_static("http://localhost")
            .connect_with_connector(connect)
            .await
            .unwrap()
    }

    pub async fn tenant(&self, name: &str) {
        let request = CreateTenantRequest {
            request_id: String::new(),
            tenant_id: name.to_owned(),
        };
        TenantServiceClient::new(self.local().await)
            .create_tenant(request)
            .await
            .unwrap();
    }

    /// A user of `tenant` with a certificate of its own.
    pub async fn user(&self, tenant: &str, name: &str, role: Role) -> Channel {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let request = IssueUserCertificateRequest {
            request_id: String::new(),
            user_id: name.to_owned(),
            role: role.to_string(),
            csr_pem: csr.pem().unwrap(),
            life_seconds: 0,
            tenant: tenant.to_owned(),
        };
        let issued = UserServiceClient::new(self.local().await)
            .issue_user_certificate(request)
            .await
            .unwrap()
            .into_inner();
        self.dial(Some((&issued.certificate_pem, &key.serialize_pem())))
            .await
    }

    /// An agent as if it had enrolled.
    pub async fn agent(&self, tenant: &str) -> (AgentId, Channel) {
        let app = &self.running.app;
        let (name, now): (Name, _) = (tenant.parse().unwrap(), app.clock.now());
        let id = AgentId::new(now);
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).unwrap();
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let csr = CertificateParams::default().serialize_request(&key).unwrap();
        let issued = app
            .identity
            .ca
            .issue_agent(csr.der(), &name, id, now, app.config.identity.agent_life())
            .unwrap();
        let mut tx = app.db.write().await.unwrap();
        let tenant = tx.tenant_by_name(&name).await.unwrap().unwrap();
        let agent = Agent {
            id,
            tenant_id: tenant.id,
            name: "host-1".parse().unwrap(),
            intent: AgentIntent::Active,
            intent_note: IntentNote {
                reason: String::new(),
                by: "user/test".to_owned(),
                at: now,
            },
            revision: 1,
            evidence_key: SigningKey::from_seed(&seed).public().to_bytes(),
            facts: AgentFacts::default(),
            created_at: now,
            last_seen_at: None,
            session: None,
            revoked_at: None,
        };
        tx.insert_agent(&agent).await.unwrap();
        let certificate = Certificate {
            serial: issued.serial_hex.clone(),
            tenant_id: tenant.id,
            subject: CertificateSubject::Agent(id),
            not_before: issued.not_before,
            not_after: issued.not_after,
            revoked_at: None,
        };
        tx.insert_certificate(&certificate).await.unwrap();
        tx.commit().await.unwrap();
        (
            id,
            self.dial(Some((&issued.chain_pem, &key.serialize_pem()))).await,
        )
    }

    /// A caller without certificate.
    pub async fn anonymous(&self) -> Channel {
        self.dial(None).await
    }

    async fn dial(&self, identity: Option<(&str, &str)>) -> Channel {
        let ca = Pem::from_pem(self.running.app.identity.ca.pem());
        let mut tls = ClientTlsConfig::new().ca_certificate(ca).domain_name("localhost");
        if let Some((certificate, key)) = identity {
            tls = tls.identity(Identity::from_pem(certificate, key));
        }
        Endpoint::from_shared(format!("https://{}", self.running.address.unwrap()))
            .unwrap()
            .tls_config(tls)
            .unwrap()
            .connect()
            .await
            .unwrap()
    }
}

/// The stable reason of a refusal.
pub fn reason(status: &Status) -> String {
    status
        .get_details_error_info()
        .map_or_else(|| panic!("no ErrorInfo in {status:?}"), |info| info.reason)
}

/// Calls any method with an empty message and gives the status that it ends with, or that of its first answer.
pub async fn call_empty(channel: &Channel, path: &str) -> Status {
    let mut grpc = tonic::client::Grpc::new(channel.clone());
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<(), ()>::default();
    let body = Request::new(futures::stream::iter([()]));
    match grpc.streaming(body, path.parse().unwrap(), codec).await {
        Err(status) => status,
        Ok(response) => match tokio::time::timeout(
            std::time::Duration::from_millis(500),
            response.into_inner().message(),
        )
        .await
        {
            Ok(Err(status)) => status,
            _ => Status::ok("answered"),
        },
    }
}
