//! ServerService: about the orchestrator and the caller.

use sealift_proto::v1::{
    GetCallerRequest, GetCallerResponse, GetServerInfoRequest, GetServerInfoResponse,
    server_service_server::ServerService,
};
use sealift_store::Engine;
use tonic::{Request, Response, Status};

use super::timestamp;
use crate::{caller::Caller, state::App};

/// Optional abilities of this version, by name.
const FEATURES: &[&str] = &["docker_host", "rolling", "drift", "evidence"];

/// The service.
#[derive(Debug, Clone)]
pub struct Server {
    /// Shared state.
    pub app: App,
}

#[tonic::async_trait]
impl ServerService for Server {
    async fn get_server_info(
        &self,
        _: Request<GetServerInfoRequest>,
    ) -> Result<Response<GetServerInfoResponse>, Status> {
        let database = match self.app.db.engine() {
            Engine::Sqlite => "sqlite",
            Engine::Postgres => "postgres",
        };
        Ok(Response::new(GetServerInfoResponse {
            version: crate::VERSION.to_owned(),
            database: database.to_owned(),
            time: timestamp(self.app.clock.now()),
            features: FEATURES.iter().map(ToString::to_string).collect(),
            troubles: self
                .app
                .loops
                .report()
                .into_iter()
                .map(|(name, error)| (name.to_owned(), error))
                .collect(),
        }))
    }

    async fn get_caller(
        &self,
        request: Request<GetCallerRequest>,
    ) -> Result<Response<GetCallerResponse>, Status> {
        let caller = Caller::of(&request)?;
        let (_, tenant) = caller.tenant_name()?;
        Ok(Response::new(GetCallerResponse {
            tenant: tenant.to_string(),
            principal: caller.actor(),
            role: caller.role().to_owned(),
            certificate_expire_time: caller.certificate_not_after.and_then(timestamp),
        }))
    }
}
