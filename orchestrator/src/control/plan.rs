//! The calls of `sealift.v1.PromotionService` that show what a promotion would change and what its decision was made from.

use prost::Message as _;
use sealift_common::{bounds, name::Name, plan::Plan};
use sealift_proto::v1::{
    self as pb, CreatePromotionRequest, ListPlanTargetsRequest, ListPlanTargetsResponse,
    PlanPromotionRequest, PlanPromotionResponse, ReadDecisionRequest, ReadDecisionResponse,
};
use sealift_store::{Cursor, PageRequest};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use crate::{
    app::create_promotion::plan_promotion,
    caller::Caller,
    control::promotion::{Promotions, find, to_new_promotion},
    convert::{decision::decision, plan},
    names,
    paging::{invalid_token, next_token, page_request},
    status::ApiError,
    watch::{Watch, stream},
};

/// Most bytes of targets in one message.
const PAGE_BYTES: usize = bounds::MESSAGE_BYTES / 4;
/// Size of the pieces in which a decision record is read.
const PIECE: usize = 256 * 1024;

impl Promotions {
    pub(super) async fn plan(
        &self,
        caller: &Caller,
        request: PlanPromotionRequest,
    ) -> Result<PlanPromotionResponse, ApiError> {
        let wish = CreatePromotionRequest {
            release: request.release,
            environment: request.environment,
            recipe: request.recipe,
            targets: request.targets,
            ..CreatePromotionRequest::default()
        };
        let tenant = caller.tenant_id()?;
        let mut tx = self.app().db.read().await?;
        let wanted = to_new_promotion(&mut tx, tenant, caller, &wish).await?;
        let survey = plan_promotion(self.core(), &mut tx, &wanted).await?;
        // The digest covers all arguments and what was seen on the hosts: pages of different plans never mix.
        let digest = survey.plan_digest.to_string();
        let bound = ["PlanPromotion", digest.as_str()];
        let page = page_request(request.page_size, &request.page_token, &bound)?;
        let (targets, next) = target_page(&survey.plan, &wanted.environment.name, &page)?;
        Ok(PlanPromotionResponse {
            plan: Some(plan::plan(&survey.plan, survey.plan_digest)),
            decision: Some(decision(&survey.record_bytes).map_err(ApiError::internal)?),
            release: names::of_release(wanted.release.id),
            targets,
            next_page_token: next_token(next, &bound),
        })
    }

    pub(super) async fn plan_targets(
        &self,
        caller: &Caller,
        request: &ListPlanTargetsRequest,
    ) -> Result<ListPlanTargetsResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let id = names::promotion("parent", &request.parent)?;
        let found = find(&mut self.app().db.read().await?, tenant, id).await?;
        let digest = found.plan_digest.to_string();
        let bound = ["ListPlanTargets", request.parent.as_str(), digest.as_str()];
        let page = page_request(request.page_size, &request.page_token, &bound)?;
        let stored: Plan = serde_json::from_str(&found.plan_json).map_err(ApiError::internal)?;
        let (targets, next) = target_page(&stored, &found.environment, &page)?;
        Ok(ListPlanTargetsResponse {
            targets,
            next_page_token: next_token(next, &bound),
        })
    }

    pub(super) async fn read_decision(
        &self,
        caller: &Caller,
        request: &ReadDecisionRequest,
    ) -> Result<ReceiverStream<Result<ReadDecisionResponse, Status>>, ApiError> {
        let tenant = caller.tenant_id()?;
        let id = names::promotion("name", &request.name)?;
        let mut watch = Watch::new(self.app(), caller);
        let mut tx = self.app().db.read().await?;
        find(&mut tx, tenant, id).await?;
        let decision = tx
            .latest_decision(id)
            .await?
            .ok_or_else(|| ApiError::internal("a promotion without a decision"))?;
        drop(tx);
        Ok(stream(self.app(), move |sender| async move {
            for piece in decision.record.chunks(PIECE) {
                let message = ReadDecisionResponse { data: piece.to_vec() };
                watch.send(&sender, message).await?;
            }
            Ok(())
        }))
    }
}

/// A page of what it says about the targets. It ends early where a message would grow too large: a target may have many services.
fn target_page(
    planned: &Plan,
    environment: &Name,
    page: &PageRequest,
) -> Result<(Vec<pb::PlanTarget>, Option<Cursor>), ApiError> {
    let begin: usize = match &page.after {
        None => 0,
        Some(cursor) => cursor.as_str().parse().map_err(|_| invalid_token())?,
    };
    let mut bytes = 0_usize;
    let mut targets = Vec::new();
    for one in planned.targets.iter().skip(begin).take(page.size as usize) {
        let message = plan::target(one, environment);
        bytes = bytes.saturating_add(message.encoded_len());
        if bytes > PAGE_BYTES && !targets.is_empty() {
            break;
        }
        targets.push(message);
    }
    let end = begin.saturating_add(targets.len());
    let next = (end < planned.targets.len()).then(|| Cursor::from_text(end.to_string()));
    Ok((targets, next))
}
