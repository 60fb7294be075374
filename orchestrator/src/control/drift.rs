//! DriftService: disagreement between what is recorded, what the sticker says and what really runs.

use sealift_common::drift::DriftKind;
use sealift_proto::v1::{
    self, ListDriftRequest, ListDriftResponse, drift::Kind, drift_service_server::DriftService,
};
use sealift_store::{DriftFilter, DriftRow};
use tonic::{Request, Response, Status};

use super::{find_environment, target, timestamp};
use crate::{
    caller::Caller,
    names::{self, Parent},
    paging::{next_token, page_request},
    state::App,
    status::ApiError,
};

/// The service.
#[derive(Debug, Clone)]
pub struct DriftObservations {
    /// Shared state.
    pub app: App,
}

pub(super) fn encode(row: &DriftRow) -> v1::Drift {
    let kind = match row.finding.kind {
        DriftKind::Image => Kind::Image,
        DriftKind::Config => Kind::Config,
        DriftKind::Missing => Kind::Missing,
        DriftKind::Stopped => Kind::Stopped,
        DriftKind::Extra => Kind::Extra,
        DriftKind::StickerEdited => Kind::StickerEdited,
        DriftKind::StickerMissing => Kind::StickerMissing,
    };
    v1::Drift {
        name: names::of_drift(row.id),
        target: names::of_target(&row.environment, &row.target),
        project: row.project.clone(),
        service: row
            .finding
            .service
            .as_ref()
            .map(ToString::to_string)
            .unwrap_or_default(),
        kind: kind.into(),
        expected: row.finding.expected.clone(),
        actual: row.finding.actual.clone(),
        first_seen_time: timestamp(row.first_seen_at),
        last_seen_time: timestamp(row.last_seen_at),
        resolve_time: row.resolved_at.and_then(timestamp),
    }
}

#[tonic::async_trait]
impl DriftService for DriftObservations {
    async fn list_drift(
        &self,
        request: Request<ListDriftRequest>,
    ) -> Result<Response<ListDriftResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let request = request.into_inner();
        let parent = names::parent("parent", &request.parent)?;
        let resolved = if request.include_resolved {
            "resolved"
        } else {
            "open"
        };
        let bound_to = &["ListDrift", request.parent.as_str(), resolved];
        let page = page_request(request.page_size, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let mut filter = DriftFilter {
            include_resolved: request.include_resolved,
            ..DriftFilter::default()
        };
        match parent {
            Parent::All => {}
            Parent::Environment(name) => {
                filter.environment = Some(find_environment(&mut tx, tenant, &name).await?.id);
            }
            Parent::Target(environment, name) => {
                filter.target = Some(target::target_id(&mut tx, tenant, &environment, &name).await?);
            }
            Parent::Job(_) => {
                return Err(ApiError::invalid("parent", "must be an environment or a target").into());
            }
        }
        let page = tx
            .list_drift(tenant, filter, &page)
            .await
            .map_err(ApiError::from)?;
        Ok(Response::new(ListDriftResponse {
            drift: page.items.iter().map(encode).collect(),
            next_page_token: next_token(page.next, bound_to),
        }))
    }
}
