//! DriftService: disagreement between what is recorded, what the sticker says and what really runs.

use sealift_common::{
    drift::{AboutContainer, DriftKind, NextSteps},
    error::Reason,
    id::TenantId,
    inventory::AgentStatus,
    role::Role,
};
use sealift_proto::v1::{
    self, AcknowledgeDriftRequest, AcknowledgeDriftResponse, ExplainDriftRequest, ExplainDriftResponse,
    ListDriftRequest, ListDriftResponse, drift::Kind, drift_service_server::DriftService,
};
use sealift_store::{Acknowledgement, DriftFilter, DriftRow, Tx};
use tonic::{Request, Response, Status};

use super::{agent, find_environment, int32, target, text, timestamp, views};
use crate::{
    app::resolve_release::release_of,
    caller::Caller,
    convert::state,
    mutate::mutate,
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

pub(super) fn encode(row: &DriftRow, viewer: Option<Role>) -> v1::Drift {
    let kind = match row.finding.kind {
        DriftKind::Image => Kind::Image,
        DriftKind::Config => Kind::Config,
        DriftKind::Missing => Kind::Missing,
        DriftKind::Stopped => Kind::Stopped,
        DriftKind::Extra => Kind::Extra,
        DriftKind::StickerEdited => Kind::StickerEdited,
        DriftKind::StickerMissing => Kind::StickerMissing,
    };
    let said = row.acknowledged.as_ref();
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
        severity: state::severity(row.severity).into(),
        cause: row.cause.as_ref().map(|cause| state::event(cause, viewer)),
        job: row.job_id.map(names::of_job).unwrap_or_default(),
        owner: said.map(|said| said.owner.clone()).unwrap_or_default(),
        note: said.map(|said| said.note.clone()).unwrap_or_default(),
        acknowledged_by: said.map(|said| said.by.clone()).unwrap_or_default(),
        acknowledge_time: said.and_then(|said| timestamp(said.at)),
        tries: int32(row.tries),
        last_promotion: row.last_promotion.map(names::of_promotion).unwrap_or_default(),
        give_up_time: row.gave_up_at.and_then(timestamp),
    }
}

async fn find(tx: &mut Tx, tenant: TenantId, id: sealift_common::id::DriftId) -> Result<DriftRow, ApiError> {
    let found = tx.drift(tenant, id).await?;
    found.ok_or_else(|| ApiError::not_found(names::of_drift(id), "sealift drift list --all"))
}

impl DriftObservations {
    async fn explain(
        &self,
        tx: &mut Tx,
        row: &DriftRow,
        viewer: Option<Role>,
    ) -> Result<ExplainDriftResponse, ApiError> {
        let current = tx
            .current(row.target_id)
            .await?
            .into_iter()
            .find(|current| current.project.to_string() == row.project);
        let now = current.as_ref().filter(|current| Some(current.job) != row.job_id);
        let recorded = match &current {
            Some(current) if Some(current.job) == row.job_id => Some(state::recorded(current)),
            _ => then_recorded(tx, row).await?,
        };
        let seen = tx.observation(row.target_id).await?;
        let project = seen.as_ref().and_then(|seen| seen.projects.get(&row.project));
        let mut observed = project
            .map(|project| state::services(&row.project, project, viewer))
            .unwrap_or_default();
        if let Some(service) = &row.finding.service {
            observed.retain(|one| one.service == service.as_str());
        }
        let found = tx.target(row.tenant_id, row.target_id).await?;
        let served_by = match found.and_then(|target| target.agent_id) {
            Some(id) => tx.agent(row.tenant_id, id).await?,
            None => None,
        };
        let status = served_by.as_ref().map(|found| agent::status(&self.app, found));
        let drift = encode(row, viewer);
        let steps = NextSteps {
            kind: row.finding.kind,
            id: &row.id.to_string(),
            environment: row.environment.as_str(),
            target: row.target.as_str(),
            release: recorded.as_ref().map(|one| one.release_display.as_str()),
            job: row.job_id.map(|job| job.to_string()),
            container: drift
                .cause
                .as_ref()
                .and_then(|cause| cause.container.as_ref())
                .or_else(|| observed.first().and_then(|one| one.container.as_ref()))
                .map_or(AboutContainer::Unknown, |container| {
                    if container.hidden {
                        AboutContainer::Hidden
                    } else {
                        AboutContainer::Known(&container.id)
                    }
                }),
            resolved: row.resolved_at.is_some(),
            owned: row.acknowledged.is_some(),
            silent: status.is_none_or(|status| status == AgentStatus::Offline),
            last_try: row.last_promotion.map(|promotion| promotion.to_string()),
        };
        let next_steps = steps
            .list()
            .into_iter()
            .map(|(command, purpose)| v1::NextStep {
                command,
                purpose: purpose.to_owned(),
            })
            .collect();
        Ok(ExplainDriftResponse {
            drift: Some(drift),
            recorded_now: now.map(state::recorded),
            sticker: project.map(|project| state::sticker(&project.sticker)),
            observe_time: seen.and_then(|seen| timestamp(seen.observed_at)),
            agent: served_by
                .as_ref()
                .map(|found| names::of_agent(found.id))
                .unwrap_or_default(),
            agent_status: status.map(|status| status.to_string()).unwrap_or_default(),
            agent_seen_time: served_by.and_then(|found| found.last_seen_at).and_then(timestamp),
            next_steps,
            recorded,
            observed,
        })
    }
}

/// What the job had brought that was recorded when the drift was found, after something else is recorded.
async fn then_recorded(tx: &mut Tx, row: &DriftRow) -> Result<Option<v1::RecordedProject>, ApiError> {
    let Some(job) = row.job_id else { return Ok(None) };
    let job = views::find_job(tx, row.tenant_id, job).await?;
    let release = release_of(tx, row.tenant_id, job.release_id).await?;
    let promotion = tx.promotion(row.tenant_id, job.promotion_id).await?;
    Ok(Some(v1::RecordedProject {
        project: row.project.clone(),
        release: names::of_release(release.id),
        release_display: state::release_display(&release.source.project, release.number),
        job: names::of_job(job.id),
        promotion: names::of_promotion(job.promotion_id),
        requested_by: promotion
            .map(|promotion| promotion.requested_by)
            .unwrap_or_default(),
        since: job.finished_at.and_then(timestamp),
        fence: 0,
        sticker: String::new(),
    }))
}

#[tonic::async_trait]
impl DriftService for DriftObservations {
    async fn list_drift(
        &self,
        request: Request<ListDriftRequest>,
    ) -> Result<Response<ListDriftResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (tenant, viewer) = (caller.tenant_id()?, caller.user_role());
        let request = request.into_inner();
        let parent = names::parent("parent", &request.parent)?;
        let at_least = state::at_least("at_least", request.at_least)?;
        let resolved = if request.include_resolved {
            "resolved"
        } else {
            "open"
        };
        let severity = at_least.map_or("", |severity| severity.as_str());
        let bound_to = &["ListDrift", request.parent.as_str(), resolved, severity];
        let page = page_request(request.page_size, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let mut filter = DriftFilter {
            include_resolved: request.include_resolved,
            at_least,
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
            drift: page.items.iter().map(|row| encode(row, viewer)).collect(),
            next_page_token: next_token(page.next, bound_to),
        }))
    }

    async fn explain_drift(
        &self,
        request: Request<ExplainDriftRequest>,
    ) -> Result<Response<ExplainDriftResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant_id()?;
        let id = names::drift("name", &request.get_ref().name)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let row = find(&mut tx, tenant, id).await?;
        let explained = self.explain(&mut tx, &row, caller.user_role()).await?;
        Ok(Response::new(explained))
    }

    async fn acknowledge_drift(
        &self,
        request: Request<AcknowledgeDriftRequest>,
    ) -> Result<Response<AcknowledgeDriftResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant_id()?;
        let request = request.into_inner();
        let id = names::drift("name", &request.name)?;
        let owner = text("owner", request.owner.trim())?;
        let note = text("note", &request.note)?;
        let resource = names::of_drift(id);
        let (app, by, viewer) = (self.app.clone(), caller.actor(), caller.user_role());
        let owner = if owner.is_empty() { by.clone() } else { owner };
        let method = "sealift.v1.DriftService/AcknowledgeDrift";
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
                    let row = find(tx, tenant, id).await?;
                    if row.resolved_at.is_some() {
                        return Err(ApiError::new(
                            Reason::WrongState,
                            format!("{} is gone again", names::of_drift(id)),
                            "nothing is left to look after (sealift drift list)",
                        ));
                    }
                    let said = Acknowledgement {
                        owner: owner.clone(),
                        note: note.clone(),
                        by: by.clone(),
                        at: app.clock.now(),
                    };
                    tx.acknowledge_drift(tenant, &row, &said).await?;
                    let row = DriftRow {
                        acknowledged: Some(said),
                        ..row
                    };
                    Ok(AcknowledgeDriftResponse {
                        drift: Some(encode(&row, viewer)),
                    })
                })
            },
        )
        .await?;
        Ok(Response::new(response))
    }
}
