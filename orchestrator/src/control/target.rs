//! TargetService: deployable places on hosts, and the join tokens with which agents enrol for them.

use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    error::Reason,
    id::{JoinTokenId, TargetId, TenantId},
    inventory::{Agent, AgentStatus, Target, TargetKind},
    join_token::JoinToken,
    name::{InvalidName, Labels, Name, ProjectRef, check_labels},
    observation::TargetObservation,
    order::Fence,
    role::Role,
};
use sealift_proto::v1::{
    self, ArchiveTargetRequest, ArchiveTargetResponse, CreateJoinTokenRequest, CreateJoinTokenResponse,
    CreateTargetRequest, CreateTargetResponse, GetTargetRequest, GetTargetResponse, ListStickersRequest,
    ListStickersResponse, ListTargetsRequest, ListTargetsResponse, UpdateTargetRequest, UpdateTargetResponse,
    target::Kind, target_service_server::TargetService,
};
use sealift_store::{DriftFilter, JoinToken as StoredToken, PageRequest, Tx};
use tonic::{Request, Response, Status};

use super::{
    agent, check_etag, current, drift, find_environment, find_target, int64, mask, needed, timestamp,
};
use crate::{
    caller::Caller,
    config::JOIN_TOKEN_MOST,
    convert::{self, state},
    mutate::{mutate, mutate_secret},
    names,
    paging::{next_token, page_request},
    state::App,
    status::ApiError,
};

/// Most join tokens of one target that count at the same time.
const LIVE_TOKENS: u32 = 10;

/// Most drift observations shown with a target.
const DRIFT_SHOWN: u32 = 100;

/// The service.
#[derive(Debug, Clone)]
pub struct Targets {
    /// Shared state.
    pub app: App,
}

fn encode(target: &Target) -> v1::Target {
    v1::Target {
        name: names::of_target(&target.environment, &target.name),
        uid: target.id.to_string(),
        kind: convert::release::kind(target.kind).into(),
        labels: target.labels.clone().into_iter().collect(),
        agent: target.agent_id.map(names::of_agent).unwrap_or_default(),
        agent_status: String::new(),
        fence: int64(target.fence.0),
        etag: names::etag(target.revision),
        create_time: timestamp(target.created_at),
        update_time: timestamp(target.updated_at),
        archive_time: target.archived_at.and_then(timestamp),
        observed: Vec::new(),
        observe_time: None,
        drift: Vec::new(),
        current: Vec::new(),
        agent_seen_time: None,
        silent: false,
        agent_version: String::new(),
    }
}

fn observed(observation: &TargetObservation, viewer: Option<Role>) -> Vec<v1::ObservedService> {
    let projects = observation.projects.iter();
    projects
        .flat_map(|(project, seen)| state::services(project, seen, viewer))
        .collect()
}

fn kind(value: i32) -> Result<TargetKind, ApiError> {
    match Kind::try_from(value) {
        Ok(Kind::DockerHost) => Ok(TargetKind::DockerHost),
        Ok(Kind::ComposeHost) => Ok(TargetKind::ComposeHost),
        Ok(Kind::AgentHost) => Ok(TargetKind::AgentHost),
        Ok(Kind::Unspecified) => Err(ApiError::invalid(
            "target.kind",
            "is missing: KIND_DOCKER_HOST, KIND_COMPOSE_HOST or KIND_AGENT_HOST",
        )),
        Err(_) => Err(ApiError::invalid(
            "target.kind",
            "is not a kind that this version knows",
        )),
    }
}

fn labels(wanted: &v1::Target) -> Result<Labels, ApiError> {
    let labels: Labels = wanted.labels.clone().into_iter().collect();
    check_labels(&labels).map_err(|error| ApiError::invalid("target.labels", error.to_string()))?;
    Ok(labels)
}

impl Targets {
    /// Adds how the agent is.
    fn with_status(&self, target: &Target, served_by: Option<&Agent>) -> v1::Target {
        let mut encoded = encode(target);
        if let Some(found) = served_by {
            encoded.agent_status = agent::status(&self.app, found).to_string();
            encoded.agent_version.clone_from(&found.facts.version);
        }
        encoded
    }

    /// What is recorded and what is observed, for a caller of that role.
    async fn whole(
        &self,
        tx: &mut Tx,
        target: &Target,
        viewer: Option<Role>,
    ) -> Result<v1::Target, ApiError> {
        let seen = tx.observation(target.id).await?;
        let served_by = match target.agent_id {
            Some(id) => tx.agent(target.tenant_id, id).await?,
            None => None,
        };
        let status = served_by.as_ref().map(|found| agent::status(&self.app, found));
        Ok(v1::Target {
            agent_status: status.map(|status| status.to_string()).unwrap_or_default(),
            observed: seen
                .as_ref()
                .map(|seen| observed(seen, viewer))
                .unwrap_or_default(),
            observe_time: seen.as_ref().and_then(|seen| timestamp(seen.observed_at)),
            drift: open_drift(tx, target, viewer).await?,
            current: current::projects(tx, target, seen.as_ref(), viewer).await?,
            agent_version: served_by
                .as_ref()
                .map(|found| found.facts.version.clone())
                .unwrap_or_default(),
            agent_seen_time: served_by.and_then(|found| found.last_seen_at).and_then(timestamp),
            silent: status.is_none_or(|status| status == AgentStatus::Offline),
            ..encode(target)
        })
    }
}

/// The newest open drift of a target.
async fn open_drift(tx: &mut Tx, target: &Target, viewer: Option<Role>) -> Result<Vec<v1::Drift>, ApiError> {
    let filter = DriftFilter {
        target: Some(target.id),
        ..DriftFilter::default()
    };
    let page = PageRequest::first(DRIFT_SHOWN);
    let open = tx.list_drift(target.tenant_id, filter, &page).await?;
    Ok(open.items.iter().map(|row| drift::encode(row, viewer)).collect())
}

#[tonic::async_trait]
impl TargetService for Targets {
    async fn create_target(
        &self,
        request: Request<CreateTargetRequest>,
    ) -> Result<Response<CreateTargetResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant_id = caller.tenant_id()?;
        let request = request.into_inner();
        let environment = names::environment("parent", &request.parent)?;
        let name = names::chosen("target_id", &request.target_id)?;
        let wanted = needed("target", request.target.as_ref())?;
        let (kind, labels) = (kind(wanted.kind)?, labels(wanted)?);
        let resource = names::of_target(&environment, &name);
        let app = self.app.clone();
        let method = "sealift.v1.TargetService/CreateTarget";
        let response = mutate(
            &self.app,
            &caller,
            method,
            &request.request_id,
            &request,
            &resource,
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let found = find_environment(tx, tenant_id, &environment).await?;
                    let now = app.clock.now();
                    let target = Target {
                        id: TargetId::new(now),
                        tenant_id,
                        environment_id: found.id,
                        environment: found.name,
                        name: name.clone(),
                        kind,
                        labels: labels.clone(),
                        agent_id: None,
                        fence: Fence(0),
                        revision: 1,
                        created_at: now,
                        updated_at: now,
                        archived_at: None,
                    };
                    tx.insert_target(&target).await?;
                    Ok(CreateTargetResponse {
                        target: Some(encode(&target)),
                    })
                })
            },
        )
        .await?;
        Ok(Response::new(response))
    }

    async fn get_target(
        &self,
        request: Request<GetTargetRequest>,
    ) -> Result<Response<GetTargetResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant_id()?;
        let (environment, name) = names::target("name", &request.get_ref().name)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let (_, target) = find_target(&mut tx, tenant, &environment, &name).await?;
        let encoded = self.whole(&mut tx, &target, caller.user_role()).await?;
        Ok(Response::new(GetTargetResponse {
            target: Some(encoded),
        }))
    }

    async fn list_stickers(
        &self,
        request: Request<ListStickersRequest>,
    ) -> Result<Response<ListStickersResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let request = request.into_inner();
        let (environment, name) = names::target("parent", &request.parent)?;
        let project: ProjectRef = request
            .project
            .parse()
            .map_err(|error: InvalidName| ApiError::invalid("project", error.to_string()))?;
        let project = project.to_string();
        let bound_to = &["ListStickers", request.parent.as_str(), project.as_str()];
        let page = page_request(request.page_size, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let (_, target) = find_target(&mut tx, tenant, &environment, &name).await?;
        let page = tx
            .list_stickers(target.id, &project, &page)
            .await
            .map_err(ApiError::from)?;
        Ok(Response::new(ListStickersResponse {
            stickers: page.items.iter().map(current::sticker).collect(),
            next_page_token: next_token(page.next, bound_to),
        }))
    }

    async fn list_targets(
        &self,
        request: Request<ListTargetsRequest>,
    ) -> Result<Response<ListTargetsResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let request = request.into_inner();
        let environment = names::environment_or_all("parent", &request.parent)?;
        let bound_to = &["ListTargets", request.parent.as_str()];
        let page = page_request(request.page_size, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let environment = match environment {
            Some(name) => Some(find_environment(&mut tx, tenant, &name).await?.id),
            None => None,
        };
        let page = tx
            .list_targets(tenant, environment, &page)
            .await
            .map_err(ApiError::from)?;
        let served_by: Vec<_> = page.items.iter().filter_map(|target| target.agent_id).collect();
        let agents = tx.agents_by_ids(&served_by).await.map_err(ApiError::from)?;
        let with_status = |target: &Target| {
            let agent = target.agent_id.and_then(|id| agents.get(&id));
            self.with_status(target, agent)
        };
        Ok(Response::new(ListTargetsResponse {
            targets: page.items.iter().map(with_status).collect(),
            next_page_token: next_token(page.next, bound_to),
        }))
    }

    async fn update_target(
        &self,
        request: Request<UpdateTargetRequest>,
    ) -> Result<Response<UpdateTargetResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant_id()?;
        let request = request.into_inner();
        let wanted = needed("target", request.target.as_ref())?.clone();
        let (environment, name) = names::target("target.name", &wanted.name)?;
        mask(request.update_mask.as_ref(), &["labels"])?;
        let labels = labels(&wanted)?;
        let resource = names::of_target(&environment, &name);
        let app = self.app.clone();
        let method = "sealift.v1.TargetService/UpdateTarget";
        let response = mutate(
            &self.app,
            &caller,
            method,
            &request.request_id,
            &request,
            &resource,
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let (_, mut target) = find_target(tx, tenant, &environment, &name).await?;
                    let resource = names::of_target(&environment, &name);
                    check_etag("target.etag", &wanted.etag, target.revision, &resource)?;
                    target.labels.clone_from(&labels);
                    let target = tx.update_target(&target, app.clock.now()).await?;
                    Ok(UpdateTargetResponse {
                        target: Some(encode(&target)),
                    })
                })
            },
        )
        .await?;
        Ok(Response::new(response))
    }

    async fn archive_target(
        &self,
        request: Request<ArchiveTargetRequest>,
    ) -> Result<Response<ArchiveTargetResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant_id()?;
        let request = request.into_inner();
        let (environment, name) = names::target("name", &request.name)?;
        let resource = names::of_target(&environment, &name);
        let (app, etag) = (self.app.clone(), request.etag.clone());
        let method = "sealift.v1.TargetService/ArchiveTarget";
        let response = mutate(
            &self.app,
            &caller,
            method,
            &request.request_id,
            &request,
            &resource,
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let (_, target) = find_target(tx, tenant, &environment, &name).await?;
                    check_etag(
                        "etag",
                        &etag,
                        target.revision,
                        &names::of_target(&environment, &name),
                    )?;
                    refuse_use(tx, &target).await?;
                    let target = tx.archive_target(&target, app.clock.now()).await?;
                    Ok(ArchiveTargetResponse {
                        target: Some(encode(&target)),
                    })
                })
            },
        )
        .await?;
        Ok(Response::new(response))
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Result<Response<CreateJoinTokenResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant_id()?;
        let request = request.into_inner();
        let (environment, name) = names::target("name", &request.name)?;
        let life = self.token_life(request.life_seconds)?;
        let resource = names::of_target(&environment, &name);
        let (app, created_by) = (self.app.clone(), caller.actor());
        let ca = *self.app.identity.ca.digest().as_bytes();
        let method = "sealift.v1.TargetService/CreateJoinToken";
        let response = mutate_secret(
            &self.app,
            &caller,
            method,
            &request.request_id,
            &request,
            &resource,
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let (_, target) = find_target(tx, tenant, &environment, &name).await?;
                    issue_token(tx, &target, ca, &created_by, app.clock.now(), life).await
                })
            },
        )
        .await?;
        Ok(Response::new(response))
    }
}

impl Targets {
    fn token_life(&self, seconds: i64) -> Result<TimeDelta, ApiError> {
        match seconds {
            0 => Ok(TimeDelta::seconds(self.app.config.identity.join_token_seconds)),
            1..=JOIN_TOKEN_MOST => Ok(TimeDelta::seconds(seconds)),
            _ => Err(ApiError::invalid(
                "life_seconds",
                format!("must be between 1 and {JOIN_TOKEN_MOST}, or 0 for the default"),
            )),
        }
    }
}

async fn issue_token(
    tx: &mut Tx,
    target: &Target,
    ca: [u8; 32],
    created_by: &str,
    now: DateTime<Utc>,
    life: TimeDelta,
) -> Result<CreateJoinTokenResponse, ApiError> {
    if tx.count_live_join_tokens(target.id, now).await? >= LIVE_TOKENS {
        return Err(ApiError::new(
            Reason::Overloaded,
            format!("{LIVE_TOKENS} join tokens of this target are not used yet"),
            "use one of them, or wait until they end",
        ));
    }
    let mut secret = [0; 32];
    getrandom::fill(&mut secret).map_err(ApiError::internal)?;
    let token = JoinToken::new(JoinTokenId::new(now), secret, ca);
    let expires_at = now + life;
    tx.insert_join_token(&StoredToken {
        id: token.id(),
        tenant_id: target.tenant_id,
        target_id: target.id,
        secret_hash: *token.secret_hash().as_bytes(),
        expires_at,
        created_by: created_by.to_owned(),
        created_at: now,
        used_at: None,
        used_by: None,
    })
    .await?;
    Ok(CreateJoinTokenResponse {
        token: token.reveal(),
        expire_time: timestamp(expires_at),
    })
}

/// Refuses when a task is under way on the target, or jobs of its environment have not ended, which may need it.
async fn refuse_use(tx: &mut Tx, target: &Target) -> Result<(), ApiError> {
    let resource = names::of_target(&target.environment, &target.name);
    if tx.live_task_on_target(target.id).await?.is_some() {
        return Err(ApiError::new(
            Reason::InUse,
            format!("a task is under way on {resource}"),
            "cancel its promotion or wait for it (sealift promotion list)",
        )
        .precondition("IN_USE", resource, "a task is under way"));
    }
    let jobs =
        tx.queued_in_lane(target.environment_id).await? + tx.running_in_lane(target.environment_id).await?;
    if jobs > 0 {
        return Err(ApiError::new(
            Reason::InUse,
            format!(
                "{jobs} jobs in {} have not ended and may need {resource}",
                names::of_environment(&target.environment)
            ),
            "cancel these promotions or wait for them (sealift promotion list)",
        )
        .precondition("IN_USE", resource, "jobs of its environment have not ended"));
    }
    Ok(())
}

/// The identifier of a target of this tenant, for filters.
pub(super) async fn target_id(
    tx: &mut Tx,
    tenant: TenantId,
    environment: &Name,
    name: &Name,
) -> Result<TargetId, ApiError> {
    find_target(tx, tenant, environment, name)
        .await
        .map(|(_, target)| target.id)
}
