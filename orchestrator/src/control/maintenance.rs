//! MaintenanceService: runs of maintenance, for whoever runs the orchestrator's host.

use sealift_common::maintenance::{MaintenanceKind, MaintenanceState};
use sealift_proto::v1::{
    self, ListMaintenanceRunsRequest, ListMaintenanceRunsResponse, RunMaintenanceRequest,
    RunMaintenanceResponse, maintenance_run, maintenance_service_server::MaintenanceService,
};
use sealift_store::MaintenanceRun;
use tonic::{Request, Response, Status};

use super::{int64, timestamp};
use crate::{
    caller::Caller,
    mutate::mutate,
    paging::{next_token, page_request},
    state::App,
    status::ApiError,
};

/// The service.
#[derive(Debug, Clone)]
pub struct MaintenanceRuns {
    /// Shared state.
    pub app: App,
}

fn encode(run: &MaintenanceRun) -> v1::MaintenanceRun {
    let kind = match run.kind {
        MaintenanceKind::Cleanup => maintenance_run::Kind::Cleanup,
        MaintenanceKind::Audit => maintenance_run::Kind::Audit,
        MaintenanceKind::Evidence => maintenance_run::Kind::Evidence,
    };
    let state = match run.state {
        MaintenanceState::Pending => maintenance_run::State::Pending,
        MaintenanceState::InProgress => maintenance_run::State::InProgress,
        MaintenanceState::Succeeded => maintenance_run::State::Succeeded,
        MaintenanceState::Failed => maintenance_run::State::Failed,
    };
    v1::MaintenanceRun {
        uid: run.id.to_string(),
        kind: kind.into(),
        state: state.into(),
        create_time: timestamp(run.created_at),
        start_time: run.started_at.and_then(timestamp),
        end_time: run.ended_at.and_then(timestamp),
        items: int64(run.progress.items),
        problems: int64(run.progress.problems),
        summary: run.summary.clone(),
        requested_by: run.requested_by.clone(),
    }
}

fn kind(kind: maintenance_run::Kind) -> Result<MaintenanceKind, ApiError> {
    match kind {
        maintenance_run::Kind::Cleanup => Ok(MaintenanceKind::Cleanup),
        maintenance_run::Kind::Audit => Ok(MaintenanceKind::Audit),
        maintenance_run::Kind::Evidence => Ok(MaintenanceKind::Evidence),
        maintenance_run::Kind::Unspecified => Err(ApiError::invalid("kind", "must be a kind of maintenance")),
    }
}

#[tonic::async_trait]
impl MaintenanceService for MaintenanceRuns {
    async fn list_maintenance_runs(
        &self,
        request: Request<ListMaintenanceRunsRequest>,
    ) -> Result<Response<ListMaintenanceRunsResponse>, Status> {
        let request = request.into_inner();
        let bound_to = &["ListMaintenanceRuns"];
        let page = page_request(request.page_size, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let page = tx.list_maintenance(&page).await.map_err(ApiError::from)?;
        Ok(Response::new(ListMaintenanceRunsResponse {
            runs: page.items.iter().map(encode).collect(),
            next_page_token: next_token(page.next, bound_to),
        }))
    }

    async fn run_maintenance(
        &self,
        request: Request<RunMaintenanceRequest>,
    ) -> Result<Response<RunMaintenanceResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let kind = kind(request.kind())?;
        let (now, actor) = (self.app.clock.now(), caller.actor());
        let response = mutate(
            &self.app,
            &caller,
            "sealift.v1.MaintenanceService/RunMaintenance",
            &request.request_id,
            &request,
            kind.as_str(),
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let run = tx.request_maintenance(kind, &actor, now).await?;
                    Ok(RunMaintenanceResponse {
                        run: Some(encode(&run)),
                    })
                })
            },
        )
        .await?;
        Ok(Response::new(response))
    }
}
