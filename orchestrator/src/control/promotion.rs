//! `sealift.v1.PromotionService`.

use std::collections::BTreeSet;

use sealift_common::{
    error::Reason,
    id::{PromotionId, TargetId, TenantId},
    inventory::Environment,
    role::Role,
};
use sealift_proto::v1::{
    self as pb, CancelPromotionRequest, CancelPromotionResponse, CreatePromotionRequest,
    CreatePromotionResponse, GetPromotionRequest, GetPromotionResponse, ListPlanTargetsRequest,
    ListPlanTargetsResponse, ListPromotionsRequest, ListPromotionsResponse, PlanPromotionRequest,
    PlanPromotionResponse, ReadDecisionRequest, ReadDecisionResponse, WatchPromotionRequest,
    WatchPromotionResponse, promotion_service_server::PromotionService,
};
use sealift_store::{Change, Promotion, Tx};
use tokio::{sync::mpsc, time::Instant};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    app::{
        Core,
        cancel_promotion::{Running, cancel_promotion},
        create_promotion::{NewPromotion, create_promotion},
        resolve_release::resolve_release,
    },
    caller::Caller,
    control::{
        check_etag_if_any, find_target,
        news::{News, Told, spread},
        steer::requester,
        text,
        views::{Detail, promotion_message, promotion_messages, wait},
    },
    convert::{promotion::to_plan_digest, recipe::to_recipe},
    mutate::mutate,
    names,
    paging::{next_token, page_request},
    state::App,
    status::ApiError,
    watch::{Watch, Woken, stream},
};

/// Most targets that a request may name.
const SCOPE: usize = 1_000;

/// The service.
#[derive(Debug, Clone)]
pub struct Promotions {
    app: App,
    core: Core,
}

impl Promotions {
    /// Over the parts that all share.
    pub const fn new(app: App, core: Core) -> Self {
        Self { app, core }
    }

    pub(super) const fn app(&self) -> &App {
        &self.app
    }

    pub(super) const fn core(&self) -> &Core {
        &self.core
    }

    async fn create(
        &self,
        caller: &Caller,
        request: CreatePromotionRequest,
    ) -> Result<CreatePromotionResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let resource = names::of_environment(&names::environment("environment", &request.environment)?);
        let method = "sealift.v1.PromotionService/CreatePromotion";
        mutate(
            &self.app,
            caller,
            method,
            &request.request_id,
            &request,
            &resource,
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let wanted = to_new_promotion(tx, tenant, caller, &request).await?;
                    let requested = create_promotion(&self.core, tx, &wanted).await?;
                    let promotion = promotion_message(tx, &requested.promotion, Detail::Whole).await?;
                    Ok(CreatePromotionResponse {
                        promotion: Some(promotion),
                    })
                })
            },
        )
        .await
    }

    async fn get(
        &self,
        caller: &Caller,
        request: &GetPromotionRequest,
    ) -> Result<GetPromotionResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let id = names::promotion("name", &request.name)?;
        let mut tx = self.app.db.read().await?;
        let found = find(&mut tx, tenant, id).await?;
        let promotion = promotion_message(&mut tx, &found, Detail::History).await?;
        Ok(GetPromotionResponse {
            promotion: Some(promotion),
        })
    }

    async fn list(
        &self,
        caller: &Caller,
        request: &ListPromotionsRequest,
    ) -> Result<ListPromotionsResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let bound = ["ListPromotions", request.environment.as_str()];
        let page = page_request(request.page_size, &request.page_token, &bound)?;
        let mut tx = self.app.db.read().await?;
        let environment =
            crate::control::views::environment_filter(&mut tx, tenant, &request.environment).await?;
        let found = tx.list_promotions(tenant, environment, &page).await?;
        Ok(ListPromotionsResponse {
            promotions: promotion_messages(&mut tx, &found.items).await?,
            next_page_token: next_token(found.next, &bound),
        })
    }

    async fn cancel(
        &self,
        caller: &Caller,
        request: CancelPromotionRequest,
    ) -> Result<CancelPromotionResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let id = names::promotion("name", &request.name)?;
        let reason = text("reason", &request.reason)?;
        let running = if request.finish_running {
            Running::Finish
        } else {
            Running::Restore
        };
        let method = "sealift.v1.PromotionService/CancelPromotion";
        let actor = caller.actor();
        mutate(
            &self.app,
            caller,
            method,
            &request.request_id,
            &request,
            &request.name,
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let found = find(tx, tenant, id).await?;
                    check_own(caller, found.id, &found.requested_by)?;
                    check_etag_if_any("etag", &request.etag, found.version, &names::of_promotion(id))?;
                    let now = self.app.clock.now();
                    let cancelled =
                        cancel_promotion(&self.core, tx, found, running, &reason, &actor, now).await?;
                    let promotion = promotion_message(tx, &cancelled, Detail::Whole).await?;
                    Ok(CancelPromotionResponse {
                        promotion: Some(promotion),
                    })
                })
            },
        )
        .await
    }

    async fn watch(
        &self,
        caller: &Caller,
        request: &WatchPromotionRequest,
    ) -> Result<ReceiverStream<Result<WatchPromotionResponse, Status>>, ApiError> {
        let tenant = caller.tenant_id()?;
        let id = names::promotion("name", &request.name)?;
        let watch = Watch::new(&self.app, caller);
        // A name that does not exist is an error of the call, not of the stream.
        find(&mut self.app.db.read().await?, tenant, id).await?;
        let app = self.app.clone();
        Ok(stream(&self.app, move |sender| {
            follow(app, watch, tenant, id, sender)
        }))
    }
}

/// What was last told.
#[derive(Debug, Default)]
struct Seen {
    promotion: Option<(u64, u32)>,
    job: Told,
}

async fn follow(
    app: App,
    mut watch: Watch,
    tenant: TenantId,
    id: PromotionId,
    sender: mpsc::Sender<Result<WatchPromotionResponse, Status>>,
) -> Result<(), Status> {
    let mut seen = Seen::default();
    loop {
        let begun = Instant::now();
        let look = look(&app, tenant, id, &mut seen).await?;
        let took = begun.elapsed();
        let (full, tasks) = spread(look.news.tasks);
        for tasks in full {
            let message = WatchPromotionResponse {
                tasks,
                ..WatchPromotionResponse::default()
            };
            watch.send(&sender, message).await?;
        }
        let message = WatchPromotionResponse {
            promotion: look.promotion,
            job: look.news.job,
            tasks,
        };
        if message != WatchPromotionResponse::default() {
            watch.send(&sender, message).await?;
        }
        if look.ended {
            return Ok(());
        }
        watch.breathe(took).await;
        let mine = |change: &Change| look.scope.concerns(id, change);
        if watch.next(mine).await? == Woken::SignOfLife {
            watch.send(&sender, WatchPromotionResponse::default()).await?;
        }
    }
}

/// What a promotion's watcher must hear of.
#[derive(Debug, Clone, Copy)]
struct Scope {
    job: Option<sealift_common::id::JobId>,
    lane: sealift_common::id::EnvironmentId,
}

impl Scope {
    fn concerns(self, id: PromotionId, change: &Change) -> bool {
        match change {
            Change::Promotion(other) => *other == id,
            Change::Job(job) | Change::Task { job, .. } => Some(*job) == self.job,
            Change::Lane(lane) => *lane == self.lane,
            Change::Agent(_)
            | Change::User(_)
            | Change::Target(_)
            | Change::Logs(_)
            | Change::Drift(_)
            | Change::Maintenance => false,
        }
    }
}

/// One snapshot: only what changed since the last one is in it.
struct Look {
    promotion: Option<pb::Promotion>,
    news: News,
    ended: bool,
    scope: Scope,
}

async fn look(app: &App, tenant: TenantId, id: PromotionId, seen: &mut Seen) -> Result<Look, ApiError> {
    let mut tx = app.db.read().await?;
    let found = find(&mut tx, tenant, id).await?;
    let job = tx.job_of_promotion(id).await?;
    let position = wait(&mut tx, job.as_ref()).await?.position;
    let mut promotion = None;
    let now = Some((found.version, position));
    if seen.promotion != now {
        promotion = Some(promotion_message(&mut tx, &found, Detail::Whole).await?);
        seen.promotion = now;
    }
    let news = match &job {
        Some(job) => seen.job.news(&mut tx, job).await?,
        None => News::default(),
    };
    Ok(Look {
        promotion,
        news,
        ended: found.state.is_terminal(),
        scope: Scope {
            job: job.map(|job| job.id),
            lane: found.environment_id,
        },
    })
}

pub(super) async fn find(tx: &mut Tx, tenant: TenantId, id: PromotionId) -> Result<Promotion, ApiError> {
    let found = tx.promotion(tenant, id).await?;
    found.ok_or_else(|| ApiError::not_found(names::of_promotion(id), "sealift promotion list"))
}

/// A CI system takes back only what it asked for itself.
fn check_own(caller: &Caller, id: PromotionId, requested_by: &str) -> Result<(), ApiError> {
    if caller.user_role() != Some(Role::Ci) || requested_by == caller.actor() {
        return Ok(());
    }
    Err(ApiError::new(
        Reason::RoleMissing,
        format!(
            "{} was requested by {requested_by}, and a CI system cancels only its own promotions",
            names::of_promotion(id)
        ),
        "ask a deployer or an administrator to cancel it",
    ))
}

pub(super) async fn to_new_promotion(
    tx: &mut Tx,
    tenant: TenantId,
    caller: &Caller,
    request: &CreatePromotionRequest,
) -> Result<NewPromotion, ApiError> {
    let alias = names::release("release", &request.release)?;
    let name = names::environment("environment", &request.environment)?;
    let recipe = to_recipe(request.recipe.as_ref())?;
    let plan_seen = to_plan_digest("plan_digest", &request.plan_digest)?;
    let change_summary = text("change_summary", &request.change_summary)?;
    let requester = requester(caller)?;
    let environment = tx
        .environment_by_name(tenant, &name)
        .await?
        .filter(|environment| environment.archived_at.is_none())
        .ok_or_else(|| ApiError::not_found(names::of_environment(&name), "sealift env list"))?;
    let release = resolve_release(tx, tenant, &alias).await?;
    let scope = to_scope(tx, tenant, &environment, &request.targets).await?;
    Ok(NewPromotion {
        environment,
        release,
        recipe,
        scope,
        rollback: None,
        rerun_of: None,
        change_summary,
        plan_seen,
        requester,
    })
}

/// The targets that a promotion is restricted to; none named is all.
async fn to_scope(
    tx: &mut Tx,
    tenant: TenantId,
    environment: &Environment,
    names: &[String],
) -> Result<Option<Vec<TargetId>>, ApiError> {
    if names.is_empty() {
        return Ok(None);
    }
    if names.len() > SCOPE {
        return Err(ApiError::invalid("targets", format!("at most {SCOPE} targets")));
    }
    let mut scope = BTreeSet::new();
    for name in names {
        let (of, target) = names::target("targets", name)?;
        if of != environment.name {
            let rule = format!("must be targets of {}", environment.name);
            return Err(ApiError::invalid("targets", rule));
        }
        let (_, found) = find_target(tx, tenant, &of, &target).await?;
        scope.insert(found.id);
    }
    Ok(Some(scope.into_iter().collect()))
}

#[tonic::async_trait]
impl PromotionService for Promotions {
    type WatchPromotionStream = ReceiverStream<Result<WatchPromotionResponse, Status>>;
    type ReadDecisionStream = ReceiverStream<Result<ReadDecisionResponse, Status>>;

    async fn plan_promotion(
        &self,
        request: Request<PlanPromotionRequest>,
    ) -> Result<Response<PlanPromotionResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.plan(&caller, request.into_inner()).await?))
    }

    async fn create_promotion(
        &self,
        request: Request<CreatePromotionRequest>,
    ) -> Result<Response<CreatePromotionResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.create(&caller, request.into_inner()).await?))
    }

    async fn get_promotion(
        &self,
        request: Request<GetPromotionRequest>,
    ) -> Result<Response<GetPromotionResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.get(&caller, request.get_ref()).await?))
    }

    async fn list_promotions(
        &self,
        request: Request<ListPromotionsRequest>,
    ) -> Result<Response<ListPromotionsResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.list(&caller, request.get_ref()).await?))
    }

    async fn list_plan_targets(
        &self,
        request: Request<ListPlanTargetsRequest>,
    ) -> Result<Response<ListPlanTargetsResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(
            self.plan_targets(&caller, request.get_ref()).await?,
        ))
    }

    async fn read_decision(
        &self,
        request: Request<ReadDecisionRequest>,
    ) -> Result<Response<Self::ReadDecisionStream>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(
            self.read_decision(&caller, request.get_ref()).await?,
        ))
    }

    async fn cancel_promotion(
        &self,
        request: Request<CancelPromotionRequest>,
    ) -> Result<Response<CancelPromotionResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.cancel(&caller, request.into_inner()).await?))
    }

    async fn watch_promotion(
        &self,
        request: Request<WatchPromotionRequest>,
    ) -> Result<Response<Self::WatchPromotionStream>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.watch(&caller, request.get_ref()).await?))
    }
}

#[cfg(test)]
mod tests {
    use sealift_common::id::UserId;

    use super::*;
    use crate::caller::Principal;

    #[test]
    fn r12_a_ci_system_cancels_only_its_own_promotions() {
        let now = chrono::DateTime::default();
        let (id, user) = (PromotionId::new(now), UserId::new(now));
        let caller = |role| Caller {
            tenant: None,
            principal: Principal::User {
                id: user,
                name: "ci-shop".parse().unwrap(),
                role,
            },
            serial: None,
            request_id: String::new(),
            certificate_not_after: None,
            notes: std::sync::Arc::default(),
        };
        check_own(&caller(Role::Ci), id, "user/ci-shop").unwrap();
        let refused = check_own(&caller(Role::Ci), id, "user/alice").unwrap_err();
        assert_eq!(refused.reason(), Reason::RoleMissing);
        for role in [Role::Deployer, Role::Admin] {
            check_own(&caller(role), id, "user/alice").unwrap();
        }
    }
}
