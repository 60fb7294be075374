//! `sealift.v1.HoldService`.

use sealift_common::id::{HoldId, TenantId};
use sealift_proto::v1::{
    self as pb, LiftHoldRequest, LiftHoldResponse, ListHoldsRequest, ListHoldsResponse, PlaceHoldRequest,
    PlaceHoldResponse, hold_service_server::HoldService,
};
use sealift_store::{Hold, Tx};
use tonic::{Request, Response, Status};

use crate::{
    app::resolve_release::find_project,
    caller::Caller,
    control::{find_environment, reason},
    convert::time,
    mutate::mutate,
    names,
    paging::{next_token, page_request},
    state::App,
    status::ApiError,
};

/// The service.
#[derive(Debug, Clone)]
pub struct Holds {
    app: App,
}

impl Holds {
    /// Over the parts that all share.
    pub const fn new(app: App) -> Self {
        Self { app }
    }

    async fn list(&self, caller: &Caller, request: &ListHoldsRequest) -> Result<ListHoldsResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let bound = ["ListHolds", if request.show_lifted { "all" } else { "open" }];
        let page = page_request(request.page_size, &request.page_token, &bound)?;
        let mut tx = self.app.db.read().await?;
        let found = tx.list_holds(tenant, request.show_lifted, &page).await?;
        Ok(ListHoldsResponse {
            holds: found.items.iter().map(hold).collect(),
            next_page_token: next_token(found.next, &bound),
        })
    }

    async fn place(
        &self,
        caller: &Caller,
        request: &PlaceHoldRequest,
    ) -> Result<PlaceHoldResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let environment = names::environment("environment", &request.environment)?;
        let reason = reason(&request.reason)?;
        let actor = caller.actor();
        mutate(
            &self.app,
            caller,
            "sealift.v1.HoldService/PlaceHold",
            &request.request_id,
            request,
            &names::of_environment(&environment),
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let found = find_environment(tx, tenant, &environment).await?;
                    let (project_id, project) = find_project(tx, tenant, &request.project).await?;
                    let now = self.app.clock.now();
                    let wanted = Hold {
                        id: HoldId::new(now),
                        tenant_id: tenant,
                        environment_id: found.id,
                        environment: found.name,
                        project_id,
                        project,
                        reason: reason.clone(),
                        placed_by: actor.clone(),
                        placed_at: now,
                        lifted: None,
                    };
                    tx.place_hold(&wanted).await?;
                    let there = tx.open_hold(found.id, project_id).await?;
                    Ok(PlaceHoldResponse {
                        hold: there.as_ref().map(hold),
                    })
                })
            },
        )
        .await
    }

    async fn lift(&self, caller: &Caller, request: &LiftHoldRequest) -> Result<LiftHoldResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let id = names::hold("name", &request.name)?;
        let actor = caller.actor();
        mutate(
            &self.app,
            caller,
            "sealift.v1.HoldService/LiftHold",
            &request.request_id,
            request,
            &request.name,
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let found = find(tx, tenant, id).await?;
                    tx.lift_hold(&found, &actor, self.app.clock.now()).await?;
                    Ok(LiftHoldResponse {
                        hold: Some(hold(&find(tx, tenant, id).await?)),
                    })
                })
            },
        )
        .await
    }
}

async fn find(tx: &mut Tx, tenant: TenantId, id: HoldId) -> Result<Hold, ApiError> {
    let found = tx.hold(tenant, id).await?;
    found.ok_or_else(|| ApiError::not_found(names::of_hold(id), "sealift hold list"))
}

fn hold(hold: &Hold) -> pb::Hold {
    let (lifted_by, lifted_at) = match &hold.lifted {
        Some((by, at)) => (by.clone(), Some(*at)),
        None => (String::new(), None),
    };
    pb::Hold {
        name: names::of_hold(hold.id),
        uid: hold.id.to_string(),
        environment: names::of_environment(&hold.environment),
        project: hold.project.to_string(),
        reason: hold.reason.clone(),
        placed_by: hold.placed_by.clone(),
        place_time: Some(time::timestamp(hold.placed_at)),
        lifted_by,
        lift_time: lifted_at.map(time::timestamp),
    }
}

#[tonic::async_trait]
impl HoldService for Holds {
    async fn list_holds(
        &self,
        request: Request<ListHoldsRequest>,
    ) -> Result<Response<ListHoldsResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.list(&caller, request.get_ref()).await?))
    }

    async fn place_hold(
        &self,
        request: Request<PlaceHoldRequest>,
    ) -> Result<Response<PlaceHoldResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.place(&caller, request.get_ref()).await?))
    }

    async fn lift_hold(
        &self,
        request: Request<LiftHoldRequest>,
    ) -> Result<Response<LiftHoldResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.lift(&caller, request.get_ref()).await?))
    }
}
