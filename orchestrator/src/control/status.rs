//! StatusService: the board. What runs where, since when, and whether it drifted.

use std::collections::HashMap;

use sealift_common::{
    bounds::PAGE_MAX,
    id::EnvironmentId,
    inventory::{AgentStatus, Environment},
};
use sealift_proto::v1::{
    BoardComponent, BoardEnvironment, GetBoardRequest, GetBoardResponse, status_service_server::StatusService,
};
use sealift_store::{PageRequest, Tx};
use tonic::{Request, Response, Status};

use super::{agent, find_environment, int32, timestamp};
use crate::{caller::Caller, convert::state, names, state::App, status::ApiError};

/// Most components shown of one environment.
const COMPONENTS: usize = 1000;

/// Most running jobs that are looked through.
const RUNNING_JOBS: u32 = 1000;

/// The service. A board shows the first [`PAGE_MAX`] environments, in promotion order.
#[derive(Debug, Clone)]
pub struct Board {
    /// Shared state.
    pub app: App,
}

impl Board {
    async fn environment(
        &self,
        tx: &mut Tx,
        environment: &Environment,
        running: &HashMap<EnvironmentId, String>,
    ) -> Result<BoardEnvironment, ApiError> {
        let drift: HashMap<String, u32> = tx.count_open_drift(environment.id).await?.into_iter().collect();
        let components = tx.active(environment.id).await?.into_iter().take(COMPONENTS);
        let components = components.map(|active| {
            let project = active.project.to_string();
            BoardComponent {
                component: names::of_component(&active.component.name),
                digest: active.digest.to_string(),
                release: names::of_release(active.release),
                release_display: state::release_display(&active.project, active.number),
                job: names::of_job(active.job),
                since: timestamp(active.since),
                drift: int32(drift.get(&project).copied().unwrap_or(0)),
            }
        });
        let components = components.collect();
        let agents = tx.agents_of_environment(environment.id).await?;
        let offline = agents
            .iter()
            .filter(|found| agent::status(&self.app, found) == AgentStatus::Offline)
            .count();
        Ok(BoardEnvironment {
            environment: names::of_environment(&environment.name),
            targets: int32(tx.environment_targets(environment.id).await?.len()),
            agents_online: int32(agents.len() - offline),
            agents_offline: int32(offline),
            running_promotion: running.get(&environment.id).cloned().unwrap_or_default(),
            queued: int32(tx.queued_in_lane(environment.id).await?),
            components,
        })
    }
}

#[tonic::async_trait]
impl StatusService for Board {
    async fn get_board(
        &self,
        request: Request<GetBoardRequest>,
    ) -> Result<Response<GetBoardResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let wanted = names::environment_or_all("environment", &request.get_ref().environment)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let environments = if let Some(name) = wanted {
            vec![find_environment(&mut tx, tenant, &name).await?]
        } else {
            let page = tx.list_environments(tenant, &PageRequest::first(PAGE_MAX)).await;
            page.map_err(ApiError::from)?.items
        };
        let jobs = tx.jobs_in_motion(RUNNING_JOBS).await.map_err(ApiError::from)?;
        let running = jobs
            .into_iter()
            .filter(|job| job.tenant_id == tenant)
            .map(|job| (job.environment_id, names::of_promotion(job.promotion_id)))
            .collect();
        let mut board = Vec::with_capacity(environments.len());
        for environment in &environments {
            board.push(self.environment(&mut tx, environment, &running).await?);
        }
        Ok(Response::new(GetBoardResponse {
            environments: board,
            time: timestamp(self.app.clock.now()),
        }))
    }
}
