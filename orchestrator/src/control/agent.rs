//! AgentService: agents as operators see them.

use prost::Message;
use sealift_common::{
    condition::Condition,
    error::Reason,
    external::{ExternalRef, SeenRef},
    id::{AgentId, TenantId},
    inventory::{Agent, AgentIntent, AgentStatus, DiskFacts, IntentNote, Target},
    keys::PublicKey,
    role::Role,
};
use sealift_proto::v1::{
    self, DrainAgentRequest, DrainAgentResponse, GetAgentRequest, GetAgentResponse, ListAgentsRequest,
    ListAgentsResponse, PauseAgentRequest, PauseAgentResponse, ResumeAgentRequest, ResumeAgentResponse,
    RevokeAgentRequest, RevokeAgentResponse,
    agent::{Intent, Status as WireStatus},
    agent_service_server::AgentService,
};
use sealift_store::Tx;
use serde::Serialize;
use tonic::{Request, Response, Status};

use super::{check_etag, int32, int64, reason, text, timestamp};
use crate::{
    VERSION,
    app::abandon_task::abandon_task,
    caller::Caller,
    convert::external::external,
    mutate::mutate,
    names,
    paging::{next_token, page_request},
    state::App,
    status::ApiError,
};

/// The service.
#[derive(Debug, Clone)]
pub struct Agents {
    /// Shared state.
    pub app: App,
}

/// How an agent is now.
pub(super) fn status(app: &App, agent: &Agent) -> AgentStatus {
    app.presence.status(
        agent.id,
        agent.intent,
        agent.last_seen_at,
        !agent.facts.conditions(VERSION).is_empty(),
    )
}

/// An agent for a caller of that role.
fn encode(
    app: &App,
    agent: &Agent,
    targets: &[Target],
    running_tasks: u32,
    viewer: Option<Role>,
) -> v1::Agent {
    let paths: Vec<_> = agent
        .facts
        .disks
        .iter()
        .map(|disk| ExternalRef::host_path(&disk.path))
        .collect();
    let status = match status(app, agent) {
        AgentStatus::Online => WireStatus::Online,
        AgentStatus::Degraded => WireStatus::Degraded,
        AgentStatus::Offline => WireStatus::Offline,
    };
    let intent = match agent.intent {
        AgentIntent::Active => Intent::Active,
        AgentIntent::Paused => Intent::Paused,
        AgentIntent::Draining => Intent::Draining,
        AgentIntent::Revoked => Intent::Revoked,
    };
    let key_id = PublicKey::from_bytes(&agent.evidence_key).map(|key| key.key_id().to_string());
    v1::Agent {
        name: names::of_agent(agent.id),
        uid: agent.id.to_string(),
        display_name: agent.name.to_string(),
        status: status.into(),
        intent: intent.into(),
        version: agent.facts.version.clone(),
        capabilities: agent.facts.capabilities.clone(),
        hostname: agent.facts.hostname.clone(),
        platform: agent.facts.platform.clone(),
        engine: agent.facts.engine.clone(),
        degraded: agent
            .facts
            .conditions(VERSION)
            .into_iter()
            .map(|found| condition(found, &paths, viewer))
            .collect(),
        targets: targets
            .iter()
            .map(|target| names::of_target(&target.environment, &target.name))
            .collect(),
        create_time: timestamp(agent.created_at),
        last_seen_time: agent.last_seen_at.and_then(timestamp),
        revoke_time: agent.revoked_at.and_then(timestamp),
        evidence_key_id: key_id.unwrap_or_default(),
        intent_reason: agent.intent_note.reason.clone(),
        intent_actor: agent.intent_note.by.clone(),
        intent_time: timestamp(agent.intent_note.at),
        running_tasks: int32(running_tasks),
        etag: names::etag(agent.revision),
        engine_api: agent.facts.engine_api.clone(),
        storage_driver: agent.facts.storage_driver.clone(),
        cgroup_version: agent.facts.cgroup_version.clone(),
        compose: agent.facts.compose.clone(),
        disks: agent
            .facts
            .disks
            .iter()
            .zip(&paths)
            .map(|(one, path)| disk(one, path.seen_by(viewer)))
            .collect(),
        clock: agent.facts.clock.map(|clock| v1::AgentClock {
            ahead_ms: clock.ahead_ms,
            uncertainty_ms: i64::from(clock.uncertainty_ms),
        }),
        pruned: agent.facts.pruned.map(|pruned| v1::AgentPrune {
            time: timestamp(pruned.at),
            images: int32(pruned.images),
            bytes: int64(pruned.bytes),
        }),
    }
}

/// A condition, whose detail may name a place on the host.
fn condition(found: Condition, paths: &[ExternalRef], viewer: Option<Role>) -> v1::AgentCondition {
    let advice = found.advice().to_owned();
    let detail = paths.iter().fold(found.detail, |detail, path| {
        path.seen_by(viewer).without_hidden(&detail)
    });
    v1::AgentCondition {
        advice,
        code: found.code,
        detail,
    }
}

fn disk(disk: &DiskFacts, path: SeenRef<'_>) -> v1::AgentDisk {
    v1::AgentDisk {
        what: disk.what.clone(),
        path: Some(external(path)),
        free_bytes: int64(disk.free_bytes),
        total_bytes: int64(disk.total_bytes),
    }
}

/// Encoded with what else there is to tell of them, for a caller of that role.
async fn described(
    app: &App,
    tx: &mut Tx,
    agents: &[Agent],
    viewer: Option<Role>,
) -> Result<Vec<v1::Agent>, ApiError> {
    let ids: Vec<_> = agents.iter().map(|agent| agent.id).collect();
    let targets = tx.targets_of_agents(&ids).await?;
    let running = tx.count_live_tasks_of_agents(&ids).await?;
    let encoded = agents.iter().map(|agent| {
        let targets = targets.get(&agent.id).map_or(&[][..], Vec::as_slice);
        let running = running.get(&agent.id).copied().unwrap_or_default();
        encode(app, agent, targets, running, viewer)
    });
    Ok(encoded.collect())
}

/// The same for one.
async fn described_one(
    app: &App,
    tx: &mut Tx,
    agent: &Agent,
    viewer: Option<Role>,
) -> Result<Option<v1::Agent>, ApiError> {
    Ok(described(app, tx, std::slice::from_ref(agent), viewer)
        .await?
        .pop())
}

async fn find(tx: &mut Tx, tenant: TenantId, id: AgentId) -> Result<Agent, ApiError> {
    tx.agent(tenant, id)
        .await?
        .ok_or_else(|| ApiError::not_found(names::of_agent(id), "sealift agent list"))
}

/// What an operator wants of an agent from now on.
struct Wish<'a> {
    tenant: TenantId,
    method: &'static str,
    request_id: &'a str,
    agent: AgentId,
    etag: &'a str,
    intent: AgentIntent,
    reason: String,
}

impl Agents {
    async fn wish<Req, Resp>(
        &self,
        caller: &Caller,
        request: &Req,
        wish: Wish<'_>,
        answer: fn(Option<v1::Agent>) -> Resp,
    ) -> Result<Resp, ApiError>
    where
        Req: Serialize + Sync,
        Resp: Message + Default,
    {
        let (app, actor, resource) = (self.app.clone(), caller.actor(), names::of_agent(wish.agent));
        let viewer = caller.user_role();
        mutate(
            &self.app,
            caller,
            wish.method,
            wish.request_id,
            request,
            &resource,
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let agent = find(tx, wish.tenant, wish.agent).await?;
                    check_etag("etag", wish.etag, agent.revision, &resource)?;
                    if !agent.intent.is_live() {
                        return Err(revoked(&resource));
                    }
                    if agent.intent != wish.intent {
                        let note = IntentNote {
                            reason: wish.reason.clone(),
                            by: actor.clone(),
                            at: app.clock.now(),
                        };
                        tx.set_agent_intent(&agent, wish.intent, &note).await?;
                    }
                    let agent = find(tx, wish.tenant, wish.agent).await?;
                    Ok(answer(described_one(&app, tx, &agent, viewer).await?))
                })
            },
        )
        .await
    }
}

fn revoked(resource: &str) -> ApiError {
    ApiError::new(
        Reason::WrongState,
        format!("{resource} is revoked, which is not taken back"),
        "enrol a new agent for its targets (sealift target token)",
    )
    .precondition("AGENT_REVOKED", resource, "is revoked")
}

#[tonic::async_trait]
impl AgentService for Agents {
    async fn get_agent(
        &self,
        request: Request<GetAgentRequest>,
    ) -> Result<Response<GetAgentResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant_id()?;
        let id = names::agent("name", &request.get_ref().name)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let agent = find(&mut tx, tenant, id).await?;
        Ok(Response::new(GetAgentResponse {
            agent: described_one(&self.app, &mut tx, &agent, caller.user_role()).await?,
        }))
    }

    async fn list_agents(
        &self,
        request: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (tenant, viewer) = (caller.tenant_id()?, caller.user_role());
        let request = request.into_inner();
        let bound_to = &["ListAgents"];
        let page = page_request(request.page_size, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let page = tx.list_agents(tenant, &page).await.map_err(ApiError::from)?;
        let agents = described(&self.app, &mut tx, &page.items, viewer).await?;
        Ok(Response::new(ListAgentsResponse {
            agents,
            next_page_token: next_token(page.next, bound_to),
        }))
    }

    async fn pause_agent(
        &self,
        request: Request<PauseAgentRequest>,
    ) -> Result<Response<PauseAgentResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let wish = Wish {
            tenant: caller.tenant_id()?,
            method: "sealift.v1.AgentService/PauseAgent",
            request_id: &request.request_id,
            agent: names::agent("name", &request.name)?,
            etag: &request.etag,
            intent: AgentIntent::Paused,
            reason: reason(&request.reason)?,
        };
        let agent = self
            .wish(&caller, &request, wish, |agent| PauseAgentResponse { agent })
            .await?;
        Ok(Response::new(agent))
    }

    async fn resume_agent(
        &self,
        request: Request<ResumeAgentRequest>,
    ) -> Result<Response<ResumeAgentResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let wish = Wish {
            tenant: caller.tenant_id()?,
            method: "sealift.v1.AgentService/ResumeAgent",
            request_id: &request.request_id,
            agent: names::agent("name", &request.name)?,
            etag: &request.etag,
            intent: AgentIntent::Active,
            reason: text("reason", &request.reason)?,
        };
        let agent = self
            .wish(&caller, &request, wish, |agent| ResumeAgentResponse { agent })
            .await?;
        Ok(Response::new(agent))
    }

    async fn drain_agent(
        &self,
        request: Request<DrainAgentRequest>,
    ) -> Result<Response<DrainAgentResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let wish = Wish {
            tenant: caller.tenant_id()?,
            method: "sealift.v1.AgentService/DrainAgent",
            request_id: &request.request_id,
            agent: names::agent("name", &request.name)?,
            etag: &request.etag,
            intent: AgentIntent::Draining,
            reason: reason(&request.reason)?,
        };
        let agent = self
            .wish(&caller, &request, wish, |agent| DrainAgentResponse { agent })
            .await?;
        Ok(Response::new(agent))
    }

    async fn revoke_agent(
        &self,
        request: Request<RevokeAgentRequest>,
    ) -> Result<Response<RevokeAgentResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant_id()?;
        let request = request.into_inner();
        let id = names::agent("name", &request.name)?;
        let reason = text("reason", &request.reason)?;
        let resource = names::of_agent(id);
        let (app, actor, viewer) = (self.app.clone(), caller.actor(), caller.user_role());
        let method = "sealift.v1.AgentService/RevokeAgent";
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
                    find(tx, tenant, id).await?;
                    let now = app.clock.now();
                    let note = IntentNote {
                        reason: reason.clone(),
                        by: actor.clone(),
                        at: now,
                    };
                    tx.revoke_agent(id, &note).await?;
                    // Nobody will ever report these tasks: the agent's word does not count any more.
                    for task in tx.live_tasks_of_agent(id).await? {
                        abandon_task(tx, &task, &reason, &actor, now).await?;
                    }
                    tx.unbind_agent(id, now).await?;
                    let agent = find(tx, tenant, id).await?;
                    Ok(RevokeAgentResponse {
                        agent: described_one(&app, tx, &agent, viewer).await?,
                    })
                })
            },
        )
        .await?;
        self.app.presence.close(id, Reason::CertificateRefused, true);
        Ok(Response::new(response))
    }
}
