//! AuditService: who tried what, with which result.

use sealift_common::audit::{AuditEvent, AuditOutcome};
use sealift_proto::v1::{
    self, ListAuditEventsRequest, ListAuditEventsResponse, VerifyAuditEventsRequest,
    VerifyAuditEventsResponse, audit_event::Outcome, audit_service_server::AuditService,
};
use sealift_store::StoreError;
use tonic::{Request, Response, Status};

use super::{int64, timestamp};
use crate::{
    caller::Caller,
    paging::{next_token, page_request},
    state::App,
    status::ApiError,
};

/// Events that one call of VerifyAuditEvents checks.
const VERIFIED: u32 = 2_000;

/// The service.
#[derive(Debug, Clone)]
pub struct Audit {
    /// Shared state.
    pub app: App,
}

fn encode(event: &AuditEvent) -> Result<v1::AuditEvent, ApiError> {
    let outcome = match event.entry.outcome {
        AuditOutcome::Success => Outcome::Success,
        AuditOutcome::Denied => Outcome::Denied,
        AuditOutcome::Failed => Outcome::Failed,
    };
    Ok(v1::AuditEvent {
        seq: int64(event.seq),
        time: timestamp(event.at),
        actor: event.entry.actor.clone(),
        role: event.entry.role.clone(),
        action: event.entry.action.clone(),
        resource: event.entry.resource.clone(),
        outcome: outcome.into(),
        reason: event.entry.reason.clone(),
        request_id: event.entry.request_id.clone(),
        previous_hash: event.previous.to_string(),
        hash: event.hash().map_err(ApiError::internal)?.to_string(),
    })
}

#[tonic::async_trait]
impl AuditService for Audit {
    async fn list_audit_events(
        &self,
        request: Request<ListAuditEventsRequest>,
    ) -> Result<Response<ListAuditEventsResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let request = request.into_inner();
        let bound_to = &["ListAuditEvents"];
        let page = page_request(request.page_size, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let page = tx.list_audit(Some(tenant), &page).await.map_err(ApiError::from)?;
        Ok(Response::new(ListAuditEventsResponse {
            events: page.items.iter().map(encode).collect::<Result<_, _>>()?,
            next_page_token: next_token(page.next, bound_to),
        }))
    }

    async fn verify_audit_events(
        &self,
        request: Request<VerifyAuditEventsRequest>,
    ) -> Result<Response<VerifyAuditEventsResponse>, Status> {
        let first = u64::try_from(request.get_ref().first_seq)
            .map_err(|_| ApiError::invalid("first_seq", "must not be negative"))?
            .max(1);
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let mut answer = VerifyAuditEventsResponse::default();
        match tx.verify_audit_chain(first, VERIFIED).await {
            Ok(events) => {
                let last = match events {
                    0 => 0,
                    events => first + events - 1,
                };
                answer.last_seq = int64(last);
                if events == u64::from(VERIFIED) {
                    answer.next_seq = int64(last);
                }
            }
            Err(error @ StoreError::Corrupt { .. }) => answer.problem = error.to_string(),
            Err(error) => return Err(ApiError::from(error).into()),
        }
        Ok(Response::new(answer))
    }
}
