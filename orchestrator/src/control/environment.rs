//! EnvironmentService: where releases run.

use std::collections::{BTreeMap, HashMap};

use sealift_common::{
    bounds,
    error::Reason,
    id::EnvironmentId,
    inventory::{Environment, EnvironmentClass},
    variables::Variables,
};
use sealift_proto::v1::{
    self, ArchiveEnvironmentRequest, ArchiveEnvironmentResponse, CreateEnvironmentRequest,
    CreateEnvironmentResponse, GetEnvironmentRequest, GetEnvironmentResponse, ListEnvironmentsRequest,
    ListEnvironmentsResponse, UpdateEnvironmentRequest, UpdateEnvironmentResponse, environment::Class,
    environment_service_server::EnvironmentService,
};
use sealift_store::Tx;
use tonic::{Request, Response, Status};

use super::{check_etag, find_environment, int32, mask, needed, text, timestamp};
use crate::{
    caller::Caller,
    convert::{lane, remediation},
    mutate::mutate,
    names,
    paging::{next_token, page_request},
    state::App,
    status::ApiError,
};

/// What an update may change.
const UPDATABLE: &[&str] = &[
    "display_name",
    "position",
    "class",
    "variables",
    "remediation",
    "lane_policy",
];

/// The service.
#[derive(Debug, Clone)]
pub struct Environments {
    /// Shared state.
    pub app: App,
}

fn encode(environment: &Environment) -> v1::Environment {
    let class = match environment.class {
        EnvironmentClass::Production => Class::Production,
        EnvironmentClass::NonProduction => Class::NonProduction,
    };
    v1::Environment {
        name: names::of_environment(&environment.name),
        uid: environment.id.to_string(),
        display_name: environment.display_name.clone(),
        position: int32(environment.position),
        class: class.into(),
        variables: environment
            .variables
            .iter()
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect(),
        remediation: Some(remediation::encode(environment.remediation)),
        lane_policy: lane::encode(environment.lane_policy).into(),
        etag: names::etag(environment.revision),
        create_time: timestamp(environment.created_at),
        update_time: timestamp(environment.updated_at),
        archive_time: environment.archived_at.and_then(timestamp),
    }
}

fn position(value: i32) -> Result<u32, ApiError> {
    u32::try_from(value)
        .ok()
        .filter(|position| *position <= 1_000_000)
        .ok_or_else(|| ApiError::invalid("environment.position", "must be between 0 and 1000000"))
}

fn class(value: i32) -> Result<EnvironmentClass, ApiError> {
    match Class::try_from(value) {
        Ok(Class::Production) => Ok(EnvironmentClass::Production),
        Ok(Class::NonProduction) => Ok(EnvironmentClass::NonProduction),
        Ok(Class::Unspecified) => Err(ApiError::invalid(
            "environment.class",
            "is missing: CLASS_NON_PRODUCTION or CLASS_PRODUCTION",
        )),
        Err(_) => Err(ApiError::invalid(
            "environment.class",
            "is not a class that this version knows",
        )),
    }
}

fn variables(wanted: &HashMap<String, String>) -> Result<Variables, ApiError> {
    let sorted: BTreeMap<_, _> = wanted
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    Variables::try_from(sorted).map_err(|error| ApiError::invalid("environment.variables", error.to_string()))
}

#[tonic::async_trait]
impl EnvironmentService for Environments {
    async fn create_environment(
        &self,
        request: Request<CreateEnvironmentRequest>,
    ) -> Result<Response<CreateEnvironmentResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let name = names::chosen("environment_id", &request.environment_id)?;
        let wanted = needed("environment", request.environment.as_ref())?;
        let now = self.app.clock.now();
        let environment = Environment {
            id: EnvironmentId::new(now),
            tenant_id: caller.tenant_id()?,
            name,
            display_name: text("environment.display_name", &wanted.display_name)?,
            position: position(wanted.position)?,
            class: class(wanted.class)?,
            variables: variables(&wanted.variables)?,
            remediation: remediation::decode(wanted.remediation.as_ref())?,
            lane_policy: lane::decode(wanted.lane_policy)?,
            revision: 1,
            created_at: now,
            updated_at: now,
            archived_at: None,
        };
        let resource = names::of_environment(&environment.name);
        let method = "sealift.v1.EnvironmentService/CreateEnvironment";
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
                    tx.insert_environment(&environment).await?;
                    Ok(CreateEnvironmentResponse {
                        environment: Some(encode(&environment)),
                    })
                })
            },
        )
        .await?;
        Ok(Response::new(response))
    }

    async fn get_environment(
        &self,
        request: Request<GetEnvironmentRequest>,
    ) -> Result<Response<GetEnvironmentResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let name = names::environment("name", &request.get_ref().name)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let environment = find_environment(&mut tx, tenant, &name).await?;
        Ok(Response::new(GetEnvironmentResponse {
            environment: Some(encode(&environment)),
        }))
    }

    async fn list_environments(
        &self,
        request: Request<ListEnvironmentsRequest>,
    ) -> Result<Response<ListEnvironmentsResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let request = request.into_inner();
        let bound_to = &["ListEnvironments"];
        let page = page_request(request.page_size, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let page = tx
            .list_environments(tenant, &page)
            .await
            .map_err(ApiError::from)?;
        Ok(Response::new(ListEnvironmentsResponse {
            environments: page.items.iter().map(encode).collect(),
            next_page_token: next_token(page.next, bound_to),
        }))
    }

    async fn update_environment(
        &self,
        request: Request<UpdateEnvironmentRequest>,
    ) -> Result<Response<UpdateEnvironmentResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant_id()?;
        let request = request.into_inner();
        let wanted = needed("environment", request.environment.as_ref())?.clone();
        let name = names::environment("environment.name", &wanted.name)?;
        let mut changes: Vec<Box<dyn Fn(&mut Environment) + Send + Sync>> = Vec::new();
        for path in mask(request.update_mask.as_ref(), UPDATABLE)? {
            match path {
                "display_name" => {
                    let value = text("environment.display_name", &wanted.display_name)?;
                    changes.push(Box::new(move |environment| {
                        environment.display_name.clone_from(&value);
                    }));
                }
                "position" => {
                    let value = position(wanted.position)?;
                    changes.push(Box::new(move |environment| environment.position = value));
                }
                "variables" => {
                    let value = variables(&wanted.variables)?;
                    changes.push(Box::new(move |environment| {
                        environment.variables.clone_from(&value);
                    }));
                }
                "remediation" => {
                    let value = remediation::decode(wanted.remediation.as_ref())?;
                    changes.push(Box::new(move |environment| environment.remediation = value));
                }
                "lane_policy" => {
                    let value = lane::decode(wanted.lane_policy)?;
                    changes.push(Box::new(move |environment| environment.lane_policy = value));
                }
                _ => {
                    let value = class(wanted.class)?;
                    changes.push(Box::new(move |environment| environment.class = value));
                }
            }
        }
        let resource = names::of_environment(&name);
        let app = self.app.clone();
        let method = "sealift.v1.EnvironmentService/UpdateEnvironment";
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
                    let mut environment = find_environment(tx, tenant, &name).await?;
                    let resource = names::of_environment(&name);
                    check_etag("environment.etag", &wanted.etag, environment.revision, &resource)?;
                    for change in &changes {
                        change(&mut environment);
                    }
                    let environment = tx.update_environment(&environment, app.clock.now()).await?;
                    Ok(UpdateEnvironmentResponse {
                        environment: Some(encode(&environment)),
                    })
                })
            },
        )
        .await?;
        Ok(Response::new(response))
    }

    async fn archive_environment(
        &self,
        request: Request<ArchiveEnvironmentRequest>,
    ) -> Result<Response<ArchiveEnvironmentResponse>, Status> {
        let caller = Caller::of(&request)?;
        let tenant = caller.tenant_id()?;
        let request = request.into_inner();
        let name = names::environment("name", &request.name)?;
        let resource = names::of_environment(&name);
        let app = self.app.clone();
        let etag = request.etag.clone();
        let method = "sealift.v1.EnvironmentService/ArchiveEnvironment";
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
                    let environment = find_environment(tx, tenant, &name).await?;
                    let resource = names::of_environment(&name);
                    check_etag("etag", &etag, environment.revision, &resource)?;
                    refuse_use(tx, &environment).await?;
                    let environment = tx.archive_environment(&environment, app.clock.now()).await?;
                    Ok(ArchiveEnvironmentResponse {
                        environment: Some(encode(&environment)),
                    })
                })
            },
        )
        .await?;
        Ok(Response::new(response))
    }
}

/// Refuses when targets or jobs still need the environment.
async fn refuse_use(tx: &mut Tx, environment: &Environment) -> Result<(), ApiError> {
    let resource = names::of_environment(&environment.name);
    let targets = tx.environment_targets(environment.id).await?.len();
    if targets > 0 {
        let shown = targets.min(bounds::TARGETS_PER_JOB);
        return Err(ApiError::new(
            Reason::InUse,
            format!("{resource} still has {shown} targets"),
            "archive its targets first (sealift target archive)",
        )
        .precondition("IN_USE", resource, "it has targets"));
    }
    let jobs = tx.queued_in_lane(environment.id).await? + tx.running_in_lane(environment.id).await?;
    if jobs > 0 {
        return Err(ApiError::new(
            Reason::InUse,
            format!("{resource} still has {jobs} jobs that have not ended"),
            "cancel its promotions or wait for them (sealift promotion list)",
        )
        .precondition("IN_USE", resource, "it has jobs that have not ended"));
    }
    Ok(())
}
