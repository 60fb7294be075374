//! The calls that are measured: over the same API, connection and certificates that `sealift` uses.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use sealift_common::bounds::MESSAGE_BYTES;
use sealift_e2e::real::{PROJECT, System};
use sealift_orchestrator::paging::next_token;
use sealift_proto::v1::{
    CancelPromotionRequest, CreatePromotionRequest, ExplainRollbackRequest, GetBoardRequest, GetJobRequest,
    GetPromotionRequest, GetTargetRequest, ListAuditEventsRequest, ListDriftRequest, ListHistoryRequest,
    ListHoldsRequest, ListJobsRequest, ListPacketsRequest, ListPromotionsRequest, ListReleasesRequest,
    ListStickersRequest, ListTasksRequest, ListVersionsRequest, PlanPromotionRequest, RollbackWish,
    audit_service_client::AuditServiceClient, component_service_client::ComponentServiceClient,
    drift_service_client::DriftServiceClient, evidence_service_client::EvidenceServiceClient,
    hold_service_client::HoldServiceClient, job_service_client::JobServiceClient, list_history_request::Only,
    promotion_service_client::PromotionServiceClient, release_service_client::ReleaseServiceClient,
    rollback_service_client::RollbackServiceClient, status_service_client::StatusServiceClient,
    target_service_client::TargetServiceClient,
};
use sealift_store::Cursor;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::history::Sample;

/// Items on a page: as many as the shortest history has of everything that is listed.
const PAGE: i32 = 10;
/// The same of what is narrowed to one project.
const SHORT_PAGE: i32 = 5;
/// Longest call.
const DEADLINE: Duration = Duration::from_mins(1);
/// Where promotions are planned.
const PLANNED: &str = "environments/staging";
/// Where a job runs for as long as it is measured: what is requested waits behind it.
pub const OCCUPIED: &str = "prod";

macro_rules! operations {
    ($($(#[$doc:meta])* $name:ident = $text:literal;)+) => {
        /// What is measured.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        pub enum Operation { $($(#[$doc])* $name),+ }

        impl Operation {
            /// All of them, in the order of the table.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// For people.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text),+ }
            }
        }
    };
}

operations! {
    Plan = "plan a promotion";
    Request = "request a promotion";
    Cancel = "cancel a promotion";
    Promotion = "promotion, whole";
    ExplainRollback = "explain a rollback";
    Board = "status: the board";
    Target = "status: a target";
    Promotions = "promotions";
    PromotionsOfEnvironment = "promotions of an environment";
    PromotionsFromMiddle = "promotions, from the middle";
    Jobs = "jobs";
    JobsOfEnvironment = "jobs of an environment";
    Job = "job, whole";
    Tasks = "tasks of a job";
    Releases = "releases";
    ReleasesOfProject = "releases of a project";
    Versions = "versions of a component";
    History = "history of an environment";
    HistoryOfProject = "history of a project";
    HistoryOfComponent = "history of a component";
    HistoryOfTarget = "history of a target";
    Packets = "evidence";
    PacketsOfEnvironment = "evidence of an environment";
    PacketsOfTarget = "evidence of a target";
    PacketsOfJob = "evidence of a job";
    Stickers = "stickers of a target";
    Drift = "drift, with what is gone";
    OpenDrift = "open drift";
    Holds = "holds, with what was lifted";
    OpenHolds = "open holds";
    Audit = "audit events";
    AuditFromMiddle = "audit events, from the middle";
}

/// A caller with what it asks for.
pub struct Probe {
    channel: Channel,
    sample: Sample,
    component: String,
    /// A release that runs nowhere yet.
    release: String,
}

macro_rules! client {
    ($self:ident, $client:ident) => {
        $client::new($self.channel.clone()).max_decoding_message_size(MESSAGE_BYTES)
    };
}

impl Probe {
    /// Connects as `ada`. `release` is one that runs nowhere yet.
    pub async fn connect(system: &System, sample: Sample, release: u64) -> Result<Self> {
        let folder = system.folder().join("ada");
        let read = |name: &str| fs::read(folder.join(name)).with_context(|| name.to_owned());
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(read("ca.pem")?))
            .identity(Identity::from_pem(read("ada.pem")?, read("ada.key")?));
        let endpoint = Endpoint::from_shared(system.endpoint())?.timeout(DEADLINE);
        let listed = system.json(&["component", "list"]).await?;
        let component = listed["components"][0]["name"].as_str();
        Ok(Self {
            channel: endpoint.tls_config(tls)?.connect().await?,
            sample,
            component: component.context("there is a component")?.to_owned(),
            release: format!("{PROJECT}#{release}"),
        })
    }

    /// Carries an operation out: how long it took, and how many items came back.
    pub async fn run(&self, operation: Operation) -> Result<(Duration, usize)> {
        let done = match operation {
            Operation::Plan | Operation::Request | Operation::Cancel | Operation::Promotion => {
                self.promotion(operation).await
            }
            Operation::Promotions | Operation::PromotionsOfEnvironment | Operation::PromotionsFromMiddle => {
                self.promotions(operation).await
            }
            Operation::Board | Operation::Target | Operation::ExplainRollback => self.state(operation).await,
            Operation::Jobs | Operation::JobsOfEnvironment | Operation::Job | Operation::Tasks => {
                self.jobs(operation).await
            }
            Operation::Releases | Operation::ReleasesOfProject | Operation::Versions => {
                self.releases(operation).await
            }
            Operation::History => self.history(None).await,
            Operation::HistoryOfProject => self.history(Some(Only::Project(PROJECT.to_owned()))).await,
            Operation::HistoryOfComponent => {
                self.history(Some(Only::Component(self.component.clone()))).await
            }
            Operation::HistoryOfTarget => {
                self.history(Some(Only::Target(format!("{PLANNED}/targets/web-1"))))
                    .await
            }
            Operation::Packets => self.packets(String::new()).await,
            Operation::PacketsOfEnvironment => self.packets(PLANNED.to_owned()).await,
            Operation::PacketsOfTarget => self.packets(format!("{PLANNED}/targets/web-1")).await,
            Operation::PacketsOfJob => self.packets(format!("jobs/{}", self.sample.job)).await,
            Operation::Stickers
            | Operation::Drift
            | Operation::OpenDrift
            | Operation::Holds
            | Operation::OpenHolds
            | Operation::Audit
            | Operation::AuditFromMiddle => self.records(operation).await,
        };
        done.with_context(|| operation.name())
    }

    async fn promotion(&self, operation: Operation) -> Result<(Duration, usize)> {
        let mut client = client!(self, PromotionServiceClient);
        let request = CreatePromotionRequest {
            release: self.release.clone(),
            environment: format!("environments/{OCCUPIED}"),
            change_summary: "measured".to_owned(),
            ..CreatePromotionRequest::default()
        };
        let began = Instant::now();
        match operation {
            Operation::Plan => {
                let request = PlanPromotionRequest {
                    release: self.release.clone(),
                    environment: PLANNED.to_owned(),
                    ..PlanPromotionRequest::default()
                };
                let planned = client.plan_promotion(request).await?.into_inner();
                Ok((began.elapsed(), planned.targets.len()))
            }
            Operation::Promotion => {
                let name = format!("promotions/{}", self.sample.promotion);
                let found = client
                    .get_promotion(GetPromotionRequest { name })
                    .await?
                    .into_inner();
                let found = found.promotion.context("it is there")?;
                Ok((began.elapsed(), found.transitions.len()))
            }
            _ => {
                let requested = client.create_promotion(request).await?.into_inner();
                let took = began.elapsed();
                let promotion = requested.promotion.context("it was requested")?;
                anyhow::ensure!(
                    !promotion.job.is_empty(),
                    "it was rejected: {:?}",
                    promotion.failure
                );
                let request = CancelPromotionRequest {
                    name: promotion.name,
                    reason: "measured".to_owned(),
                    ..CancelPromotionRequest::default()
                };
                let began = Instant::now();
                client.cancel_promotion(request).await?;
                let cancelled = began.elapsed();
                let took = if operation == Operation::Cancel {
                    cancelled
                } else {
                    took
                };
                Ok((took, 1))
            }
        }
    }

    async fn promotions(&self, operation: Operation) -> Result<(Duration, usize)> {
        let environment = match operation {
            Operation::PromotionsOfEnvironment => PLANNED,
            _ => "",
        };
        let page_token = match operation {
            Operation::PromotionsFromMiddle => token(&self.sample.promotion, &["ListPromotions", ""]),
            _ => String::new(),
        };
        let request = ListPromotionsRequest {
            environment: environment.to_owned(),
            page_size: PAGE,
            page_token,
        };
        let mut client = client!(self, PromotionServiceClient);
        let began = Instant::now();
        let found = client.list_promotions(request).await?.into_inner();
        Ok((began.elapsed(), found.promotions.len()))
    }

    async fn state(&self, operation: Operation) -> Result<(Duration, usize)> {
        let began = Instant::now();
        let items = match operation {
            Operation::Board => {
                let request = GetBoardRequest::default();
                let board = client!(self, StatusServiceClient).get_board(request).await?;
                let environments = board.into_inner().environments;
                environments.iter().map(|one| one.components.len()).sum()
            }
            Operation::Target => {
                let name = format!("{PLANNED}/targets/web-1");
                let request = GetTargetRequest { name };
                let found = client!(self, TargetServiceClient).get_target(request).await?;
                found.into_inner().target.map_or(0, |target| target.current.len())
            }
            _ => {
                let wish = RollbackWish {
                    environment: PLANNED.to_owned(),
                    project: PROJECT.to_owned(),
                    ..RollbackWish::default()
                };
                let request = ExplainRollbackRequest { wish: Some(wish) };
                let found = client!(self, RollbackServiceClient)
                    .explain_rollback(request)
                    .await?;
                usize::from(found.into_inner().from.is_some())
            }
        };
        Ok((began.elapsed(), items))
    }

    async fn jobs(&self, operation: Operation) -> Result<(Duration, usize)> {
        let mut client = client!(self, JobServiceClient);
        let job = format!("jobs/{}", self.sample.job);
        let began = Instant::now();
        let items = match operation {
            Operation::Job => {
                let found = client.get_job(GetJobRequest { name: job }).await?.into_inner();
                found.job.map_or(0, |job| job.transitions.len())
            }
            Operation::Tasks => {
                let request = ListTasksRequest {
                    parent: job,
                    page_size: PAGE,
                    ..ListTasksRequest::default()
                };
                client.list_tasks(request).await?.into_inner().tasks.len()
            }
            _ => {
                let environment = if operation == Operation::Jobs { "" } else { PLANNED };
                let request = ListJobsRequest {
                    environment: environment.to_owned(),
                    page_size: PAGE,
                    page_token: String::new(),
                };
                client.list_jobs(request).await?.into_inner().jobs.len()
            }
        };
        Ok((began.elapsed(), items))
    }

    async fn releases(&self, operation: Operation) -> Result<(Duration, usize)> {
        let began = Instant::now();
        let items = if operation == Operation::Versions {
            let request = ListVersionsRequest {
                parent: self.component.clone(),
                page_size: PAGE,
                page_token: String::new(),
            };
            let found = client!(self, ComponentServiceClient)
                .list_versions(request)
                .await?;
            found.into_inner().versions.len()
        } else {
            let (project, page_size) = match operation {
                Operation::Releases => ("", PAGE),
                _ => (PROJECT, SHORT_PAGE),
            };
            let request = ListReleasesRequest {
                project: project.to_owned(),
                page_size,
                page_token: String::new(),
            };
            let found = client!(self, ReleaseServiceClient).list_releases(request).await?;
            found.into_inner().releases.len()
        };
        Ok((began.elapsed(), items))
    }

    async fn history(&self, only: Option<Only>) -> Result<(Duration, usize)> {
        let page_size = match only {
            Some(Only::Project(_)) => SHORT_PAGE,
            _ => PAGE,
        };
        let request = ListHistoryRequest {
            environment: PLANNED.to_owned(),
            only,
            page_size,
            page_token: String::new(),
        };
        let mut client = client!(self, StatusServiceClient);
        let began = Instant::now();
        let found = client.list_history(request).await?.into_inner();
        Ok((began.elapsed(), found.entries.len()))
    }

    async fn packets(&self, parent: String) -> Result<(Duration, usize)> {
        let request = ListPacketsRequest {
            parent,
            page_size: PAGE,
            ..ListPacketsRequest::default()
        };
        let mut client = client!(self, EvidenceServiceClient);
        let began = Instant::now();
        let found = client.list_packets(request).await?.into_inner();
        Ok((began.elapsed(), found.packets.len()))
    }

    async fn records(&self, operation: Operation) -> Result<(Duration, usize)> {
        let began = Instant::now();
        let items = match operation {
            Operation::Stickers => {
                let request = ListStickersRequest {
                    parent: format!("{PLANNED}/targets/web-1"),
                    project: PROJECT.to_owned(),
                    page_size: SHORT_PAGE,
                    page_token: String::new(),
                };
                let found = client!(self, TargetServiceClient).list_stickers(request).await?;
                found.into_inner().stickers.len()
            }
            Operation::Drift | Operation::OpenDrift => {
                let request = ListDriftRequest {
                    include_resolved: operation == Operation::Drift,
                    page_size: PAGE,
                    ..ListDriftRequest::default()
                };
                let found = client!(self, DriftServiceClient).list_drift(request).await?;
                found.into_inner().drift.len()
            }
            Operation::Holds | Operation::OpenHolds => {
                let request = ListHoldsRequest {
                    show_lifted: operation == Operation::Holds,
                    page_size: PAGE,
                    page_token: String::new(),
                };
                let found = client!(self, HoldServiceClient).list_holds(request).await?;
                found.into_inner().holds.len()
            }
            _ => {
                let page_token = match operation {
                    Operation::AuditFromMiddle => token(&self.sample.audit, &["ListAuditEvents"]),
                    _ => String::new(),
                };
                let request = ListAuditEventsRequest {
                    page_size: PAGE,
                    page_token,
                };
                let found = client!(self, AuditServiceClient)
                    .list_audit_events(request)
                    .await?;
                found.into_inner().events.len()
            }
        };
        Ok((began.elapsed(), items))
    }
}

/// The token of a page that begins after this place: reached page by page it would be the same.
fn token(after: &impl ToString, bound_to: &[&str]) -> String {
    next_token(Some(Cursor::from_text(after.to_string())), bound_to)
}
