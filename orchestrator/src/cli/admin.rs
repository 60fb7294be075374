//! `sealift-orchestrator admin …`: what is done on the orchestrator's host. The commands speak to the admin socket; while no
//! orchestrator runs, they start just enough of one to have that socket.

use std::{
    fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
    sync::Arc,
};

use anyhow::Context as _;
use chrono::{DateTime, SecondsFormat};
use clap::{Args, Subcommand};
use hyper_util::rt::TokioIo;
use sealift_common::{
    bounds::MESSAGE_BYTES, maintenance::MaintenanceKind, name::Name, role::Role, time::SystemClock,
};
use sealift_orchestrator::{
    Orchestrator, Running, StartError,
    config::Config,
    gate::{DEFAULT_TENANT, TENANT},
    identity,
};
use sealift_proto::v1::{
    CreateTenantRequest, GetTrustFileRequest, IssueUserCertificateRequest, ListMaintenanceRunsRequest,
    ListTenantsRequest, MaintenanceRun, RevokeUserRequest, RunMaintenanceRequest, VerifyAuditEventsRequest,
    audit_service_client::AuditServiceClient, evidence_service_client::EvidenceServiceClient,
    maintenance_run, maintenance_service_client::MaintenanceServiceClient,
    tenant_service_client::TenantServiceClient, user_service_client::UserServiceClient,
};
use tokio::net::UnixStream;
use tonic::{
    Request,
    metadata::MetadataValue,
    transport::{Channel, Endpoint},
};

use super::ServeFlags;

/// Administration.
#[derive(Debug, Args)]
pub struct Admin {
    #[command(flatten)]
    flags: ServeFlags,
    #[command(subcommand)]
    command: AdminCommand,
}

#[derive(Debug, Subcommand)]
enum AdminCommand {
    /// Issues a client certificate for a user (made when there is none) and writes it with key, CA and a context for sealift.
    Issue(Issue),
    /// Revokes a user: its certificates stop counting at once.
    Revoke {
        /// Name of the user.
        user: Name,
        /// Tenant of the user.
        #[arg(long, default_value = DEFAULT_TENANT)]
        tenant: Name,
        /// Why; kept in the records.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Tenants.
    #[command(subcommand)]
    Tenant(TenantCommand),
    /// The audit log.
    #[command(subcommand)]
    Audit(AuditCommand),
    /// What the orchestrator does by itself to keep its records small and sound.
    #[command(subcommand)]
    Maintenance(MaintenanceCommand),
    /// Writes the trust file: the public keys with which evidence is verified offline.
    TrustFile {
        /// Tenant.
        #[arg(long, default_value = DEFAULT_TENANT)]
        tenant: Name,
        /// Where to; standard output when not given.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
struct Issue {
    /// Name of the user.
    user: Name,
    /// What it may do: observer, ci, deployer, approver or admin.
    #[arg(long)]
    role: Role,
    /// Tenant of the user.
    #[arg(long, default_value = DEFAULT_TENANT)]
    tenant: Name,
    /// Directory to write to; made when it is not there.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Life of the certificate in days (at most 400).
    #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(i64).range(1..=400))]
    days: Option<i64>,
    /// What to write into the context as the orchestrator's address, for example https://sealift.example.com:8443.
    #[arg(long, value_name = "URL")]
    endpoint: Option<String>,
}

#[derive(Debug, Subcommand)]
enum TenantCommand {
    /// Makes a tenant.
    Create {
        /// Its name.
        name: Name,
    },
    /// Lists tenants.
    List,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Checks the whole chain: no event is missing, none was changed. Fails at the first that does not fit.
    Verify,
}

#[derive(Debug, Subcommand)]
enum MaintenanceCommand {
    /// Lists runs, the newest first.
    List {
        /// Most runs to show.
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(i32).range(1..=500))]
        limit: i32,
    },
    /// Asks for a run; the orchestrator carries it out when it runs.
    Run {
        /// What to do: cleanup, audit or evidence.
        kind: MaintenanceKind,
    },
}

/// A connection to the orchestrator, or to the part of one that was started for the command.
struct Local {
    channel: Channel,
    started: Option<Running>,
}

async fn dial(path: &Path) -> Result<Channel, tonic::transport::Error> {
    let path = path.to_owned();
    let connect = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The address is never looked at: the connector knows where to go.
    Endpoint::from_static("http://localhost")
        .connect_with_connector(connect)
        .await
}

impl Local {
    async fn open(config: &Config) -> anyhow::Result<Self> {
        let path = config.admin_socket();
        match UnixStream::connect(&path).await {
            Ok(_) => Ok(Self {
                channel: dial(&path).await?,
                started: None,
            }),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(error).with_context(|| {
                format!(
                    "{} may only be used by the orchestrator's own user",
                    path.display()
                )
            }),
            Err(_) => {
                let started = match Orchestrator::start_admin(config.clone(), Arc::new(SystemClock)).await {
                    Err(error @ StartError::NoData { .. }) => Err(error.into()),
                    started => started.context(
                        "no orchestrator answers on the admin socket, and its store cannot be opened directly",
                    ),
                }?;
                Ok(Self {
                    channel: dial(&path).await?,
                    started: Some(started),
                })
            }
        }
    }

    async fn close(self) {
        drop(self.channel);
        if let Some(started) = self.started {
            started.stop().await;
        }
    }
}

/// Runs a command.
pub async fn run(admin: Admin) -> anyhow::Result<()> {
    let config = admin.flags.config()?;
    let local = Local::open(&config).await?;
    let done = match admin.command {
        AdminCommand::Issue(issue) => self::issue(&local.channel, &config, issue).await,
        AdminCommand::Revoke { user, tenant, reason } => revoke(&local.channel, &user, &tenant, reason).await,
        AdminCommand::Tenant(TenantCommand::Create { name }) => create_tenant(&local.channel, &name).await,
        AdminCommand::Tenant(TenantCommand::List) => list_tenants(&local.channel).await,
        AdminCommand::Audit(AuditCommand::Verify) => verify_audit(&local.channel).await,
        AdminCommand::Maintenance(MaintenanceCommand::List { limit }) => {
            list_maintenance(&local.channel, limit).await
        }
        AdminCommand::Maintenance(MaintenanceCommand::Run { kind }) => {
            run_maintenance(&local.channel, kind, &admin.flags).await
        }
        AdminCommand::TrustFile { tenant, out } => trust_file(&local.channel, &tenant, out).await,
    };
    local.close().await;
    done
}

/// A request about a tenant.
fn about<T>(tenant: &Name, message: T) -> anyhow::Result<Request<T>> {
    let mut request = Request::new(message);
    let value = MetadataValue::try_from(tenant.as_str())?;
    request.metadata_mut().insert(TENANT, value);
    Ok(request)
}

/// An orchestrator's answer as an error of this command: its message names cause and next step.
fn said(status: tonic::Status) -> anyhow::Error {
    anyhow::anyhow!("{}", status.message())
}

async fn issue(channel: &Channel, config: &Config, issue: Issue) -> anyhow::Result<()> {
    let key = identity::new_key()?;
    let csr = pem("CERTIFICATE REQUEST", &key.csr_der);
    let request = IssueUserCertificateRequest {
        request_id: String::new(),
        user_id: issue.user.to_string(),
        role: issue.role.to_string(),
        csr_pem: csr,
        life_seconds: issue.days.unwrap_or(0) * 86_400,
        tenant: issue.tenant.to_string(),
    };
    make_own(&issue.out)?;
    let answer = UserServiceClient::new(channel.clone())
        .issue_user_certificate(about(&issue.tenant, request)?)
        .await
        .map_err(said)?
        .into_inner();
    let out = fs::canonicalize(&issue.out)?;
    let chain = out.join(format!("{}.pem", issue.user));
    let key_file = out.join(format!("{}.key", issue.user));
    let ca = out.join("ca.pem");
    write(
        &chain,
        0o644,
        &format!("{}{}", answer.certificate_pem, answer.ca_pem),
    )?;
    write(&key_file, 0o600, &key.key_pem)?;
    write(&ca, 0o644, &answer.ca_pem)?;
    let endpoint = issue
        .endpoint
        .unwrap_or_else(|| config.server.endpoint(config.server.listen.port()));
    let context = Context {
        endpoint,
        ca: "ca.pem".to_owned(),
        certificate: format!("{}.pem", issue.user),
        key: format!("{}.key", issue.user),
    };
    let context_file = out.join("context.toml");
    write(&context_file, 0o644, &toml::to_string(&context)?)?;
    println!("certificate  {}", chain.display());
    println!("key          {}", key_file.display());
    println!("ca           {}", ca.display());
    println!("context      {}", context_file.display());
    Ok(())
}

/// Makes a folder that only we may enter. One that is there already must not be somebody else's: its owner could exchange what we put
/// there. Root may use any: it hands such folders out.
fn make_own(folder: &Path) -> anyhow::Result<()> {
    let unusable = || format!("cannot use {}", folder.display());
    let mut builder = fs::DirBuilder::new();
    builder.recursive(true).mode(0o700);
    builder.create(folder).with_context(unusable)?;
    let owner = fs::metadata(folder).with_context(unusable)?.uid();
    let me = fs::metadata("/proc/self").context("is /proc mounted?")?.uid();
    anyhow::ensure!(
        may_use(owner, me),
        "{} belongs to another user ({owner}): choose another --out, such as one that `mktemp -d` makes",
        folder.display()
    );
    Ok(())
}

const fn may_use(owner: u32, me: u32) -> bool {
    owner == me || me == 0
}

/// What the `sealift` command reads. Paths are relative to the file, so that the directory can be moved as a whole.
#[derive(serde::Serialize)]
struct Context {
    endpoint: String,
    ca: String,
    certificate: String,
    key: String,
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().copied().map(char::from));
        pem.push('\n');
    }
    pem + &format!("-----END {label}-----\n")
}

/// Writes a file whole: a temporary file with the wanted rights from the beginning, then a rename.
fn write(path: &Path, mode: u32, content: &str) -> anyhow::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let work = || {
        let _ = fs::remove_file(&temporary);
        let mut options = fs::OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode).open(&temporary)?;
        file.write_all(content.as_bytes())?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    work().with_context(|| format!("cannot write {}", path.display()))
}

async fn revoke(channel: &Channel, user: &Name, tenant: &Name, reason: String) -> anyhow::Result<()> {
    let request = RevokeUserRequest {
        request_id: String::new(),
        name: format!("users/{user}"),
        reason,
    };
    UserServiceClient::new(channel.clone())
        .revoke_user(about(tenant, request)?)
        .await
        .map_err(said)?;
    println!("users/{user} of tenants/{tenant} is revoked");
    Ok(())
}

async fn create_tenant(channel: &Channel, name: &Name) -> anyhow::Result<()> {
    let request = CreateTenantRequest {
        request_id: String::new(),
        tenant_id: name.to_string(),
    };
    TenantServiceClient::new(channel.clone())
        .create_tenant(request)
        .await
        .map_err(said)?;
    println!("tenants/{name}");
    Ok(())
}

async fn list_tenants(channel: &Channel) -> anyhow::Result<()> {
    let mut client = TenantServiceClient::new(channel.clone());
    let mut request = ListTenantsRequest::default();
    loop {
        let page = client
            .list_tenants(request.clone())
            .await
            .map_err(said)?
            .into_inner();
        for tenant in page.tenants {
            println!("{}", tenant.name);
        }
        if page.next_page_token.is_empty() {
            return Ok(());
        }
        request.page_token = page.next_page_token;
    }
}

/// One run in one line.
fn line(run: &MaintenanceRun) -> String {
    let name = |text: &str| text.rsplit('_').next().unwrap_or_default().to_lowercase();
    let kind = name(run.kind().as_str_name());
    let state = run
        .state()
        .as_str_name()
        .trim_start_matches("STATE_")
        .to_lowercase();
    let made = run
        .create_time
        .as_ref()
        .and_then(|time| DateTime::from_timestamp(time.seconds, 0))
        .map_or_else(String::new, |time| {
            time.to_rfc3339_opts(SecondsFormat::Secs, true)
        });
    format!("{made}  {kind:<9} {state:<12} {}", run.summary)
}

async fn list_maintenance(channel: &Channel, limit: i32) -> anyhow::Result<()> {
    let request = ListMaintenanceRunsRequest {
        page_size: limit,
        ..ListMaintenanceRunsRequest::default()
    };
    let mut client = MaintenanceServiceClient::new(channel.clone());
    let page = client.list_maintenance_runs(request).await.map_err(said)?;
    for run in page.into_inner().runs {
        println!("{}", line(&run));
    }
    Ok(())
}

async fn run_maintenance(channel: &Channel, kind: MaintenanceKind, flags: &ServeFlags) -> anyhow::Result<()> {
    let kind = match kind {
        MaintenanceKind::Cleanup => maintenance_run::Kind::Cleanup,
        MaintenanceKind::Audit => maintenance_run::Kind::Audit,
        MaintenanceKind::Evidence => maintenance_run::Kind::Evidence,
    };
    let request = RunMaintenanceRequest {
        request_id: String::new(),
        kind: kind.into(),
    };
    let mut client = MaintenanceServiceClient::new(channel.clone());
    let answer = client.run_maintenance(request).await.map_err(said)?.into_inner();
    println!("{}", line(&answer.run.unwrap_or_default()));
    println!("its result: {} maintenance list", flags.admin());
    Ok(())
}

async fn verify_audit(channel: &Channel) -> anyhow::Result<()> {
    let mut client = AuditServiceClient::new(channel.clone());
    let mut request = VerifyAuditEventsRequest::default();
    loop {
        let piece = client
            .verify_audit_events(request)
            .await
            .map_err(said)?
            .into_inner();
        anyhow::ensure!(
            piece.problem.is_empty(),
            "the audit log was changed, or its database is damaged: {}",
            piece.problem
        );
        if piece.next_seq == 0 {
            println!("{} audit events: the chain is whole", piece.last_seq);
            return Ok(());
        }
        request.first_seq = piece.next_seq;
    }
}

async fn trust_file(channel: &Channel, tenant: &Name, out: Option<PathBuf>) -> anyhow::Result<()> {
    let answer = EvidenceServiceClient::new(channel.clone())
        .max_decoding_message_size(MESSAGE_BYTES)
        .get_trust_file(about(tenant, GetTrustFileRequest {})?)
        .await
        .map_err(said)?
        .into_inner();
    let text = std::str::from_utf8(&answer.trust_file)?;
    match out {
        Some(path) => write(&path, 0o644, text),
        None => Ok(io::stdout().write_all(text.as_bytes())?),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_private_key_goes_into_a_folder_that_nobody_else_may_enter_or_owns() {
        let parent = tempfile::tempdir().unwrap();
        let folder = parent.path().join("a/b");
        for _ in 0..2 {
            make_own(&folder).unwrap();
            assert_eq!(fs::metadata(&folder).unwrap().mode() & 0o777, 0o700);
        }
        assert!(may_use(1000, 1000) && may_use(1000, 0));
        assert!(!may_use(0, 1000) && !may_use(1001, 1000));
    }
}
