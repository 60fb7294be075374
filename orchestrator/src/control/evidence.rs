//! EvidenceService: signed statements of what happened, and the keys with which anybody can check them.

use std::collections::HashMap;

use sealift_common::{
    bounds::{MESSAGE_BYTES, PAGE_MAX},
    error::Reason,
    id::{TargetId, TenantId},
    trust::TrustFile,
};
use sealift_proto::v1::{
    self, GetPacketRequest, GetPacketResponse, GetTrustFileRequest, GetTrustFileResponse, ListPacketsRequest,
    ListPacketsResponse, evidence_service_server::EvidenceService,
};
use sealift_store::{PacketFilter, PacketRow, PageRequest, Tx};
use tonic::{Request, Response, Status};

use super::{find_environment, int32, target, timestamp};
use crate::{
    app::trust::{agent_key, own_key},
    caller::Caller,
    names::{self, Parent},
    paging::{next_token, page_request},
    state::App,
    status::ApiError,
};

/// Most packets in one page with envelopes: together they must fit into a message.
const PAGE_WITH_ENVELOPES: i32 = 25;

/// How much of a message envelopes may fill.
const ENVELOPES_BYTES: usize = MESSAGE_BYTES / 4 * 3;

/// The service.
#[derive(Debug, Clone)]
pub struct Evidence {
    /// Shared state.
    pub app: App,
}

fn encode(row: &PacketRow, target: String, with_envelope: bool) -> v1::Packet {
    v1::Packet {
        name: names::of_packet(row.id),
        envelope: if with_envelope {
            row.envelope.clone()
        } else {
            Vec::new()
        },
        digest: row.digest.to_string(),
        target,
        task: names::of_task(row.job_id, row.task_id),
        attempt: int32(row.attempt),
        agent: names::of_agent(row.agent_id),
        result: row.result.clone(),
        create_time: timestamp(row.created_at),
    }
}

/// Resource names of targets, each looked up once.
#[derive(Default)]
struct TargetNames(HashMap<TargetId, String>);

impl TargetNames {
    async fn of(&mut self, tx: &mut Tx, tenant: TenantId, id: TargetId) -> Result<String, ApiError> {
        if let Some(known) = self.0.get(&id) {
            return Ok(known.clone());
        }
        let name = tx
            .target(tenant, id)
            .await?
            .map(|target| names::of_target(&target.environment, &target.name))
            .unwrap_or_default();
        self.0.insert(id, name.clone());
        Ok(name)
    }
}

async fn filter(tx: &mut Tx, tenant: TenantId, parent: Parent) -> Result<PacketFilter, ApiError> {
    let mut filter = PacketFilter::default();
    match parent {
        Parent::All => {}
        Parent::Environment(name) => filter.environment = Some(find_environment(tx, tenant, &name).await?.id),
        Parent::Target(environment, name) => {
            filter.target = Some(target::target_id(tx, tenant, &environment, &name).await?);
        }
        Parent::Job(id) => {
            let job = tx.job(tenant, id).await?;
            job.ok_or_else(|| ApiError::not_found(names::of_job(id), "sealift job list"))?;
            filter.job = Some(id);
        }
    }
    Ok(filter)
}

#[tonic::async_trait]
impl EvidenceService for Evidence {
    async fn get_packet(
        &self,
        request: Request<GetPacketRequest>,
    ) -> Result<Response<GetPacketResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let id = names::packet("name", &request.get_ref().name)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let row = tx
            .packet(tenant, id)
            .await
            .map_err(ApiError::from)?
            .ok_or_else(|| ApiError::not_found(names::of_packet(id), "sealift evidence list"))?;
        let target = TargetNames::default().of(&mut tx, tenant, row.target_id).await?;
        Ok(Response::new(GetPacketResponse {
            packet: Some(encode(&row, target, true)),
        }))
    }

    async fn list_packets(
        &self,
        request: Request<ListPacketsRequest>,
    ) -> Result<Response<ListPacketsResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let request = request.into_inner();
        let parent = names::parent("parent", &request.parent)?;
        let bound_to = &["ListPackets", request.parent.as_str()];
        let wanted = match request.page_size {
            0 if request.include_envelopes => PAGE_WITH_ENVELOPES,
            size if request.include_envelopes => size.min(PAGE_WITH_ENVELOPES),
            size => size,
        };
        let mut page = page_request(wanted, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let filter = filter(&mut tx, tenant, parent).await?;
        // Envelopes vary in size: a page that would not fit into a message is asked for again with fewer packets.
        let found = loop {
            let found = tx
                .list_packets(tenant, filter, request.include_envelopes, &page)
                .await
                .map_err(ApiError::from)?;
            let bytes: usize = found.items.iter().map(|row| row.envelope.len()).sum();
            if !request.include_envelopes || bytes <= ENVELOPES_BYTES || page.size <= 1 {
                break found;
            }
            page.size /= 2;
        };
        let mut targets = TargetNames::default();
        let mut packets = Vec::with_capacity(found.items.len());
        for row in &found.items {
            let target = targets.of(&mut tx, tenant, row.target_id).await?;
            packets.push(encode(row, target, request.include_envelopes));
        }
        Ok(Response::new(ListPacketsResponse {
            packets,
            next_page_token: next_token(found.next, bound_to),
        }))
    }

    async fn get_trust_file(
        &self,
        request: Request<GetTrustFileRequest>,
    ) -> Result<Response<GetTrustFileResponse>, Status> {
        let (tenant, name) = Caller::of(&request)?.tenant_name()?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let mut agents = Vec::new();
        let mut page = PageRequest::first(PAGE_MAX);
        loop {
            let found = tx.list_agents(tenant, &page).await.map_err(ApiError::from)?;
            for agent in &found.items {
                agents.push(agent_key(agent, &name)?);
            }
            match found.next {
                Some(next) => page.after = Some(next),
                None => break,
            }
        }
        let own = own_key(self.app.identity.keys.evidence.public());
        let file = TrustFile::new(vec![own], agents).map_err(ApiError::internal)?;
        let trust_file = file.to_json().map_err(ApiError::internal)?;
        if trust_file.len() > MESSAGE_BYTES - 1024 {
            return Err(ApiError::new(
                Reason::Overloaded,
                "the trust file does not fit into one message",
                "write it on the orchestrator's host (sealift-orchestrator admin trust-file)",
            )
            .into());
        }
        Ok(Response::new(GetTrustFileResponse { trust_file }))
    }
}
