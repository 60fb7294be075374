//! `sealift.v1.ReleaseService`.

use std::collections::BTreeSet;

use sealift_common::{bounds, compose::EnvFiles, name::ProjectRef, release::Release};
use sealift_proto::v1::{
    self as pb, CreateReleaseRequest, CreateReleaseResponse, GetReleaseRequest, GetReleaseResponse,
    ListReleasesRequest, ListReleasesResponse, MarkReleaseRequest, MarkReleaseResponse,
    release_service_server::ReleaseService,
};
use sealift_store::{Mark, PageRequest, Tx};
use tonic::{Request, Response, Status};

use crate::{
    app::{
        create_release::{Reading, create_release, prepare, preview_release},
        resolve_release::{find_project, resolve_release},
    },
    caller::Caller,
    control::reason,
    convert::release::{mark, release, to_mark, to_source},
    mutate::{known_answer, mutate},
    names,
    paging::{next_token, page_request},
    state::App,
    status::ApiError,
};

/// Most marks of a release that a message shows.
const MARKS: u32 = 50;

/// How many releases of a list are read at a time: of each its whole manifest is read, and little of it shown.
const AT_ONCE: u32 = 16;

/// The service.
#[derive(Debug, Clone)]
pub struct Releases {
    app: App,
}

impl Releases {
    /// Over the parts that all share.
    pub const fn new(app: App) -> Self {
        Self { app }
    }

    async fn create(
        &self,
        caller: &Caller,
        request: CreateReleaseRequest,
    ) -> Result<CreateReleaseResponse, ApiError> {
        let (tenant, _) = caller
            .tenant
            .clone()
            .ok_or_else(crate::caller::certificate_missing)?;
        let source = to_source(request.source.as_ref())?;
        let reading = to_reading(&request)?;
        caller.about(&format!("releases/{source}"));
        let method = "sealift.v1.ReleaseService/CreateRelease";
        if !request.validate_only
            && let Some(known) =
                known_answer(&self.app, caller, method, &request.request_id, &request).await?
        {
            return Ok(known);
        }
        // Registries are asked before any transaction begins: they may take long.
        let draft = prepare(&self.app.registry, source, &request.compose, &reading).await?;
        let actor = caller.actor();
        let now = self.app.clock.now();
        if request.validate_only {
            let mut tx = self.app.db.read().await?;
            let preview = preview_release(&mut tx, tenant, draft, &actor, now).await?;
            return created(&mut tx, &preview).await;
        }
        let resource = format!("releases/{}", draft.source);
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
                    let made = create_release(tx, tenant, draft.clone(), &actor, now).await?;
                    created(tx, &made).await
                })
            },
        )
        .await
    }

    async fn get(
        &self,
        caller: &Caller,
        request: &GetReleaseRequest,
    ) -> Result<GetReleaseResponse, ApiError> {
        let (tenant, _) = caller
            .tenant
            .clone()
            .ok_or_else(crate::caller::certificate_missing)?;
        let alias = names::release("name", &request.name)?;
        let mut tx = self.app.db.read().await?;
        let found = resolve_release(&mut tx, tenant, &alias).await?;
        Ok(GetReleaseResponse {
            release: Some(with_marks(&mut tx, &found).await?),
        })
    }

    async fn mark(
        &self,
        caller: &Caller,
        request: &MarkReleaseRequest,
    ) -> Result<MarkReleaseResponse, ApiError> {
        let tenant = caller.tenant_id()?;
        let alias = names::release("name", &request.name)?;
        let mark = to_mark(request.mark())?;
        let reason = reason(&request.reason)?;
        let actor = caller.actor();
        mutate(
            &self.app,
            caller,
            "sealift.v1.ReleaseService/MarkRelease",
            &request.request_id,
            request,
            &format!("releases/{alias}"),
            |tx, _| {
                Box::pin(async {
                    let tx = tx;
                    let found = resolve_release(tx, tenant, &alias).await?;
                    tx.insert_mark(&Mark {
                        release_id: found.id,
                        mark,
                        reason: reason.clone(),
                        actor: actor.clone(),
                        at: self.app.clock.now(),
                    })
                    .await?;
                    Ok(MarkReleaseResponse {
                        release: Some(with_marks(tx, &found).await?),
                    })
                })
            },
        )
        .await
    }

    async fn list(
        &self,
        caller: &Caller,
        request: &ListReleasesRequest,
    ) -> Result<ListReleasesResponse, ApiError> {
        let (tenant, _) = caller
            .tenant
            .clone()
            .ok_or_else(crate::caller::certificate_missing)?;
        let bound = ["ListReleases", request.project.as_str()];
        let page = page_request(request.page_size, &request.page_token, &bound)?;
        let mut tx = self.app.db.read().await?;
        let project = if request.project.is_empty() {
            None
        } else {
            if !ProjectRef::is_ending(&request.project) {
                let rule = "wanted the last segments of a project's name, for example shop/api";
                return Err(ApiError::invalid("project", rule));
            }
            Some(find_project(&mut tx, tenant, &request.project).await?.0)
        };
        let mut rest = page;
        let mut releases = Vec::new();
        loop {
            let few = PageRequest {
                size: rest.size.min(AT_ONCE),
                after: rest.after.take(),
            };
            let found = tx.list_releases(tenant, project, &few).await?;
            let ids: Vec<_> = found.items.iter().map(|item| item.id).collect();
            let marks = tx.newest_marks(&ids).await?;
            for item in &found.items {
                let mut shown = release(item, false).map_err(ApiError::internal)?;
                shown.marks = marks.get(&item.id).map(mark).into_iter().collect();
                releases.push(shown);
            }
            rest.size = rest.size.saturating_sub(few.size);
            rest.after = found.next;
            if rest.size == 0 || rest.after.is_none() {
                break;
            }
        }
        Ok(ListReleasesResponse {
            releases,
            next_page_token: next_token(rest.after, &bound),
        })
    }
}

/// A release with its manifest and its newest marks.
async fn with_marks(tx: &mut Tx, found: &Release) -> Result<pb::Release, ApiError> {
    let marks = tx.marks_of_release(found.id, MARKS).await?;
    let mut message = release(found, true).map_err(ApiError::internal)?;
    message.marks = marks.iter().map(mark).collect();
    Ok(message)
}

/// The release of that commit, which may have been there, and have marks.
async fn created(tx: &mut Tx, made: &Release) -> Result<CreateReleaseResponse, ApiError> {
    Ok(CreateReleaseResponse {
        release: Some(with_marks(tx, made).await?),
    })
}

fn to_reading(request: &CreateReleaseRequest) -> Result<Reading, ApiError> {
    match pb::target::Kind::try_from(request.kind) {
        Ok(pb::target::Kind::Unspecified | pb::target::Kind::DockerHost) => {
            if !request.profiles.is_empty() {
                return Err(ApiError::invalid(
                    "profiles",
                    "only releases for compose hosts have them",
                ));
            }
            Ok(Reading::DockerHost(to_env_files(request)?))
        }
        Ok(pb::target::Kind::ComposeHost) => {
            if !request.env_files.is_empty() {
                return Err(ApiError::invalid(
                    "env_files",
                    "must be empty: on compose hosts they are read from the folder that the host's owner sets aside",
                ));
            }
            Ok(Reading::ComposeHost(to_profiles(&request.profiles)?))
        }
        Ok(pb::target::Kind::AgentHost) => {
            if !request.env_files.is_empty() || !request.profiles.is_empty() {
                return Err(ApiError::invalid(
                    "env_files",
                    "must be empty, and so must profiles: a release for agents is one image and nothing else",
                ));
            }
            Ok(Reading::AgentHost)
        }
        Err(_) => Err(ApiError::invalid("kind", "is not a kind that this version knows")),
    }
}

fn to_profiles(profiles: &[String]) -> Result<BTreeSet<String>, ApiError> {
    let legal = |name: &String| {
        let begins = name
            .bytes()
            .next()
            .is_some_and(|byte| byte.is_ascii_alphanumeric());
        begins
            && name.len() <= 63
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
    };
    if profiles.len() > bounds::PROFILES || !profiles.iter().all(legal) {
        let rule = format!(
            "at most {} names of letters, digits, '_', '.' and '-', each at most 63 bytes",
            bounds::PROFILES
        );
        return Err(ApiError::invalid("profiles", rule));
    }
    Ok(profiles.iter().cloned().collect())
}

fn to_env_files(request: &CreateReleaseRequest) -> Result<EnvFiles, ApiError> {
    if request.env_files.len() > bounds::SERVICES {
        let rule = format!("at most {} files", bounds::SERVICES);
        return Err(ApiError::invalid("env_files", rule));
    }
    let files = request
        .env_files
        .iter()
        .map(|(path, variables): (&String, &pb::Variables)| {
            if path.len() > bounds::TEXT_BYTES || variables.values.len() > bounds::SERVICE_ENTRIES {
                let rule = format!(
                    "paths have at most {} bytes, files at most {} variables",
                    bounds::TEXT_BYTES,
                    bounds::SERVICE_ENTRIES
                );
                return Err(ApiError::invalid("env_files", rule));
            }
            let values = variables
                .values
                .iter()
                .map(|(key, value)| (key.clone(), value.clone()));
            Ok((path.clone(), values.collect()))
        });
    files.collect()
}

#[tonic::async_trait]
impl ReleaseService for Releases {
    async fn create_release(
        &self,
        request: Request<CreateReleaseRequest>,
    ) -> Result<Response<CreateReleaseResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.create(&caller, request.into_inner()).await?))
    }

    async fn get_release(
        &self,
        request: Request<GetReleaseRequest>,
    ) -> Result<Response<GetReleaseResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.get(&caller, request.get_ref()).await?))
    }

    async fn mark_release(
        &self,
        request: Request<MarkReleaseRequest>,
    ) -> Result<Response<MarkReleaseResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.mark(&caller, request.get_ref()).await?))
    }

    async fn list_releases(
        &self,
        request: Request<ListReleasesRequest>,
    ) -> Result<Response<ListReleasesResponse>, Status> {
        let caller = Caller::of(&request)?;
        Ok(Response::new(self.list(&caller, request.get_ref()).await?))
    }
}
