//! TenantService: tenants are made on the orchestrator's host only (the authorization table says so).

use sealift_common::{id::TenantId, inventory::Tenant};
use sealift_proto::v1::{
    self, CreateTenantRequest, CreateTenantResponse, ListTenantsRequest, ListTenantsResponse,
    tenant_service_server::TenantService,
};
use tonic::{Request, Response, Status};

use super::timestamp;
use crate::{
    caller::Caller,
    mutate::mutate,
    names,
    paging::{next_token, page_request},
    state::App,
    status::ApiError,
};

/// The service.
#[derive(Debug, Clone)]
pub struct Tenants {
    /// Shared state.
    pub app: App,
}

fn encode(tenant: &Tenant) -> v1::Tenant {
    v1::Tenant {
        name: names::of_tenant(&tenant.name),
        uid: tenant.id.to_string(),
        create_time: timestamp(tenant.created_at),
    }
}

#[tonic::async_trait]
impl TenantService for Tenants {
    async fn create_tenant(
        &self,
        request: Request<CreateTenantRequest>,
    ) -> Result<Response<CreateTenantResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let name = names::chosen("tenant_id", &request.tenant_id)?;
        let now = self.app.clock.now();
        let tenant = Tenant {
            id: TenantId::new(now),
            name,
            created_at: now,
        };
        let resource = names::of_tenant(&tenant.name);
        let method = "sealift.v1.TenantService/CreateTenant";
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
                    tx.insert_tenant(&tenant).await?;
                    Ok(CreateTenantResponse {
                        tenant: Some(encode(&tenant)),
                    })
                })
            },
        )
        .await?;
        Ok(Response::new(response))
    }

    async fn list_tenants(
        &self,
        request: Request<ListTenantsRequest>,
    ) -> Result<Response<ListTenantsResponse>, Status> {
        let request = request.into_inner();
        let bound_to = &["ListTenants"];
        let page = page_request(request.page_size, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let page = tx.list_tenants(&page).await.map_err(ApiError::from)?;
        Ok(Response::new(ListTenantsResponse {
            tenants: page.items.iter().map(encode).collect(),
            next_page_token: next_token(page.next, bound_to),
        }))
    }
}
