//! AgentService: agents as operators see them.

use sealift_common::{
    error::Reason,
    id::{AgentId, TenantId},
    inventory::{Agent, AgentIntent, AgentStatus, Target},
    keys::PublicKey,
};
use sealift_proto::v1::{
    self, GetAgentRequest, GetAgentResponse, ListAgentsRequest, ListAgentsResponse, RevokeAgentRequest,
    RevokeAgentResponse,
    agent::{Intent, Status as WireStatus},
    agent_service_server::AgentService,
};
use sealift_store::Tx;
use tonic::{Request, Response, Status};

use super::{text, timestamp};
use crate::{
    app::abandon_task::abandon_task,
    caller::Caller,
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
        !agent.facts.degraded.is_empty(),
    )
}

fn encode(app: &App, agent: &Agent, targets: &[Target]) -> v1::Agent {
    let status = match status(app, agent) {
        AgentStatus::Online => WireStatus::Online,
        AgentStatus::Degraded => WireStatus::Degraded,
        AgentStatus::Offline => WireStatus::Offline,
    };
    let intent = match agent.intent {
        AgentIntent::Active => Intent::Active,
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
        degraded: agent.facts.degraded.clone(),
        targets: targets
            .iter()
            .map(|target| names::of_target(&target.environment, &target.name))
            .collect(),
        create_time: timestamp(agent.created_at),
        last_seen_time: agent.last_seen_at.and_then(timestamp),
        revoke_time: agent.revoked_at.and_then(timestamp),
        evidence_key_id: key_id.unwrap_or_default(),
    }
}

async fn find(tx: &mut Tx, tenant: TenantId, id: AgentId) -> Result<Agent, ApiError> {
    tx.agent(tenant, id)
        .await?
        .ok_or_else(|| ApiError::not_found(names::of_agent(id), "sealift agent list"))
}

#[tonic::async_trait]
impl AgentService for Agents {
    async fn get_agent(
        &self,
        request: Request<GetAgentRequest>,
    ) -> Result<Response<GetAgentResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let id = names::agent("name", &request.get_ref().name)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let agent = find(&mut tx, tenant, id).await?;
        let targets = tx.targets_of_agent(id).await.map_err(ApiError::from)?;
        Ok(Response::new(GetAgentResponse {
            agent: Some(encode(&self.app, &agent, &targets)),
        }))
    }

    async fn list_agents(
        &self,
        request: Request<ListAgentsRequest>,
    ) -> Result<Response<ListAgentsResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let request = request.into_inner();
        let bound_to = &["ListAgents"];
        let page = page_request(request.page_size, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let page = tx.list_agents(tenant, &page).await.map_err(ApiError::from)?;
        let mut agents = Vec::with_capacity(page.items.len());
        for agent in &page.items {
            let targets = tx.targets_of_agent(agent.id).await.map_err(ApiError::from)?;
            agents.push(encode(&self.app, agent, &targets));
        }
        Ok(Response::new(ListAgentsResponse {
            agents,
            next_page_token: next_token(page.next, bound_to),
        }))
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
        let (app, actor) = (self.app.clone(), caller.actor());
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
                    tx.revoke_agent(id, &reason, now).await?;
                    // Nobody will ever report these tasks: the agent's word does not count any more.
                    for task in tx.live_tasks_of_agent(id).await? {
                        abandon_task(tx, &task, &reason, &actor, now).await?;
                    }
                    tx.unbind_agent(id, now).await?;
                    let agent = find(tx, tenant, id).await?;
                    Ok(RevokeAgentResponse {
                        agent: Some(encode(&app, &agent, &[])),
                    })
                })
            },
        )
        .await?;
        self.app.presence.close(id, Reason::CertificateRefused, true);
        Ok(Response::new(response))
    }
}
