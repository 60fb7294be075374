//! `sealift.v1.RollbackService`.

use std::collections::BTreeMap;

use sealift_common::{
    error::Reason,
    id::{ProjectId, ReleaseId, TenantId},
    inventory::Environment,
    name::{ComponentName, Name},
    rollback::{Candidate, Rejection, Wish},
};
use sealift_proto::v1::{
    CreateRollbackRequest, CreateRollbackResponse, ExplainRollbackRequest, ExplainRollbackResponse,
    RollbackCandidate, RollbackWish, rollback_service_server::RollbackService,
};
use sealift_store::Tx;
use tonic::{Request, Response, Status};

use crate::{
    app::{
        Core,
        resolve_release::{find_project, release_of, resolve_release},
        roll_back::{Explained, explain_rollback, roll_back},
    },
    caller::Caller,
    control::{
        find_environment, needed, reason,
        steer::requester,
        views::{Detail, called_of, promotion_message, releases_called},
    },
    convert::{recipe::to_recipe, time},
    mutate::mutate,
    names,
    state::App,
    status::ApiError,
};

/// The service.
#[derive(Debug, Clone)]
pub struct Rollbacks {
    app: App,
    core: Core,
}

impl Rollbacks {
    /// Over the parts that all share.
    pub const fn new(app: App, core: Core) -> Self {
        Self { app, core }
    }

    async fn explain(
        &self,
        caller: &Caller,
        request: &ExplainRollbackRequest,
    ) -> Result<ExplainRollbackResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let wish = needed("wish", request.wish.as_ref())?;
        let mut tx = self.app.db.read().await?;
        let (_, explained) = look(&mut tx, tenant, wish).await?;
        let choice = &explained.choice;
        let rejected = || choice.rejected.iter();
        let all = rejected().map(|rejected| &rejected.candidate);
        let all = all.chain(&choice.from).chain(&choice.to);
        let called = releases_called(&mut tx, all.map(|candidate| candidate.release)).await?;
        let message = |one: &Candidate| candidate(&called, one, "");
        Ok(ExplainRollbackResponse {
            from: choice.from.as_ref().map(message).transpose()?,
            to: choice.to.as_ref().map(message).transpose()?,
            rejected: rejected()
                .map(|rejected| candidate(&called, &rejected.candidate, rejected.why.as_str()))
                .collect::<Result<_, _>>()?,
        })
    }

    async fn create(
        &self,
        caller: &Caller,
        request: &CreateRollbackRequest,
    ) -> Result<CreateRollbackResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let wish = needed("wish", request.wish.as_ref())?;
        let recipe = to_recipe(request.recipe.as_ref())?;
        let why = reason(&request.reason)?;
        let requester = requester(caller)?;
        let environment = names::environment("wish.environment", &wish.environment)?;
        mutate(
            &self.app,
            caller,
            "sealift.v1.RollbackService/CreateRollback",
            &request.request_id,
            request,
            &names::of_environment(&environment),
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let (environment, explained) = look(tx, tenant, wish).await?;
                    let name = environment.name.clone();
                    let requested = roll_back(
                        &self.core,
                        tx,
                        environment,
                        &explained,
                        &recipe,
                        requester.clone(),
                        &why,
                    )
                    .await?;
                    let requested = requested.ok_or_else(|| {
                        ApiError::new(
                            Reason::WrongState,
                            nothing_fits(&name, &explained),
                            format!("see why: sealift rollback {name} --explain"),
                        )
                        .precondition(
                            "NO_ROLLBACK_TARGET",
                            names::of_environment(&name),
                            "no candidate fits",
                        )
                    })?;
                    let promotion = promotion_message(tx, &requested.promotion, Detail::Whole).await?;
                    Ok(CreateRollbackResponse {
                        promotion: Some(promotion),
                    })
                })
            },
        )
        .await
    }
}

/// Why there is no rollback: the reason against the release that was asked for by name, if one was.
fn nothing_fits(environment: &Name, explained: &Explained) -> String {
    let wanted = explained.choice.wish.release;
    let why = wanted.map(|release| explained.choice.why_not(release));
    match why {
        None => format!("{environment} has nothing that it could go back to"),
        Some(Some(Rejection::Current)) => format!(
            "that release is what {environment} runs already; promote it to bring it to targets that run something else"
        ),
        Some(Some(why)) => format!("{environment} cannot go back to that release: {why}"),
        Some(None) => format!("{environment} cannot go back to that release: it was never active there"),
    }
}

async fn look(
    tx: &mut Tx,
    tenant: TenantId,
    wish: &RollbackWish,
) -> Result<(Environment, Explained), ApiError> {
    let name = names::environment("wish.environment", &wish.environment)?;
    let environment = find_environment(tx, tenant, &name).await?;
    let project = project(tx, tenant, &environment, &wish.project).await?;
    let release = if wish.release.is_empty() {
        None
    } else {
        let alias = names::release("wish.release", &wish.release)?;
        Some(resolve_release(tx, tenant, &alias).await?.id)
    };
    let wanted = Wish {
        release,
        allow_higher: wish.allow_higher,
    };
    let explained = explain_rollback(tx, &environment, project, wanted).await?;
    let explained = explained.ok_or_else(|| nothing_active(&environment))?;
    Ok((environment, explained))
}

fn nothing_active(environment: &Environment) -> ApiError {
    ApiError::new(
        Reason::NotFound,
        format!("nothing of that project is active in {}", environment.name),
        format!("sealift status {} shows what is", environment.name),
    )
}

/// The project that is meant: named, of a component, or the only one that is active there.
async fn project(
    tx: &mut Tx,
    tenant: TenantId,
    environment: &Environment,
    text: &str,
) -> Result<ProjectId, ApiError> {
    let component: Option<ComponentName> = match text.strip_prefix("components/") {
        Some(name) => Some(names::component("wish.project", &format!("components/{name}"))?),
        None => None,
    };
    if component.is_none() && !text.is_empty() {
        return Ok(find_project(tx, tenant, text).await?.0);
    }
    let mut projects = BTreeMap::new();
    for active in tx.active(environment.id).await? {
        if component
            .as_ref()
            .is_none_or(|name| *name == active.component.name)
        {
            let release = release_of(tx, tenant, active.release).await?;
            projects.insert(release.project_id, release.source.project);
        }
    }
    let mut ids = projects.keys();
    match (ids.next(), ids.next()) {
        (Some(only), None) => Ok(*only),
        (None, _) => Err(nothing_active(environment)),
        (Some(_), Some(_)) => {
            let names: Vec<_> = projects.values().take(10).map(ToString::to_string).collect();
            Err(ApiError::invalid(
                "wish.project",
                format!("must name one of those that run there: {}", names.join(", ")),
            ))
        }
    }
}

fn candidate(
    called: &BTreeMap<ReleaseId, String>,
    candidate: &Candidate,
    rejection: &str,
) -> Result<RollbackCandidate, ApiError> {
    Ok(RollbackCandidate {
        release: names::of_release(candidate.release),
        release_display: called_of(called, candidate.release)?.to_owned(),
        mark: candidate
            .mark
            .map(|mark| mark.as_str().to_owned())
            .unwrap_or_default(),
        active_time: Some(time::timestamp(candidate.active_since)),
        rejection: rejection.to_owned(),
    })
}

#[tonic::async_trait]
impl RollbackService for Rollbacks {
    async fn explain_rollback(
        &self,
        request: Request<ExplainRollbackRequest>,
    ) -> Result<Response<ExplainRollbackResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.explain(&caller, request.get_ref()).await?))
    }

    async fn create_rollback(
        &self,
        request: Request<CreateRollbackRequest>,
    ) -> Result<Response<CreateRollbackResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.create(&caller, request.get_ref()).await?))
    }
}
