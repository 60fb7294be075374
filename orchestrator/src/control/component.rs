//! ComponentService: deployable things, identified by image repositories.

use sealift_common::{
    id::{ComponentId, TenantId},
    inventory::Component,
    name::ComponentName,
};
use sealift_proto::v1::{
    self, CreateComponentRequest, CreateComponentResponse, GetComponentRequest, GetComponentResponse,
    ListComponentsRequest, ListComponentsResponse, ListVersionsRequest, ListVersionsResponse,
    component_service_server::ComponentService,
};
use sealift_store::Tx;
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
pub struct Components {
    /// Shared state.
    pub app: App,
}

fn encode(component: &Component) -> v1::Component {
    v1::Component {
        name: names::of_component(&component.name),
        uid: component.id.to_string(),
        repository: component.repository.clone(),
        create_time: timestamp(component.created_at),
    }
}

/// A full image repository: a registry host, then lower-case path segments; no tag, no digest.
fn repository(text: &str) -> Result<String, ApiError> {
    let wrong = |what: &str| {
        let rule =
            "wanted registry host and path without tag, for example registry.example.com/acme/shop-api";
        ApiError::invalid("repository", format!("{what}; {rule}"))
    };
    if text.len() > 255 {
        return Err(wrong("is longer than 255 bytes"));
    }
    let (host, path) = text
        .split_once('/')
        .ok_or_else(|| wrong("has no registry host"))?;
    let is_host = host == "localhost" || host.contains(['.', ':']);
    let legal_host = host
        .bytes()
        .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'-' | b':'));
    if !is_host || !legal_host {
        return Err(wrong("does not begin with a registry host"));
    }
    let legal =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'.' | b'_' | b'-');
    let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
    let segment = |segment: &str| {
        let bytes = segment.as_bytes();
        bytes.iter().all(|byte| legal(*byte)) && edge(bytes.first()) && edge(bytes.last())
    };
    if !path.split('/').all(segment) {
        return Err(wrong("has a malformed path"));
    }
    Ok(text.to_owned())
}

async fn find(tx: &mut Tx, tenant: TenantId, name: &ComponentName) -> Result<Component, ApiError> {
    tx.component_by_name(tenant, name)
        .await?
        .ok_or_else(|| ApiError::not_found(names::of_component(name), "sealift component list"))
}

#[tonic::async_trait]
impl ComponentService for Components {
    async fn create_component(
        &self,
        request: Request<CreateComponentRequest>,
    ) -> Result<Response<CreateComponentResponse>, Status> {
        let caller = Caller::of(&request)?;
        let request = request.into_inner();
        let name = names::component_id("component_id", &request.component_id)?;
        let now = self.app.clock.now();
        let component = Component {
            id: ComponentId::new(now),
            tenant_id: caller.tenant_id()?,
            name,
            repository: repository(&request.repository)?,
            created_at: now,
        };
        let resource = names::of_component(&component.name);
        let method = "sealift.v1.ComponentService/CreateComponent";
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
                    tx.insert_component(&component).await?;
                    Ok(CreateComponentResponse {
                        component: Some(encode(&component)),
                    })
                })
            },
        )
        .await?;
        Ok(Response::new(response))
    }

    async fn get_component(
        &self,
        request: Request<GetComponentRequest>,
    ) -> Result<Response<GetComponentResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let name = names::component("name", &request.get_ref().name)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let component = find(&mut tx, tenant, &name).await?;
        Ok(Response::new(GetComponentResponse {
            component: Some(encode(&component)),
        }))
    }

    async fn list_components(
        &self,
        request: Request<ListComponentsRequest>,
    ) -> Result<Response<ListComponentsResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let request = request.into_inner();
        let bound_to = &["ListComponents"];
        let page = page_request(request.page_size, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let page = tx.list_components(tenant, &page).await.map_err(ApiError::from)?;
        Ok(Response::new(ListComponentsResponse {
            components: page.items.iter().map(encode).collect(),
            next_page_token: next_token(page.next, bound_to),
        }))
    }

    async fn list_versions(
        &self,
        request: Request<ListVersionsRequest>,
    ) -> Result<Response<ListVersionsResponse>, Status> {
        let tenant = Caller::of(&request)?.tenant_id()?;
        let request = request.into_inner();
        let name = names::component("parent", &request.parent)?;
        let bound_to = &["ListVersions", request.parent.as_str()];
        let page = page_request(request.page_size, &request.page_token, bound_to)?;
        let mut tx = self.app.db.read().await.map_err(ApiError::from)?;
        let component = find(&mut tx, tenant, &name).await?;
        let page = tx
            .list_versions(component.id, &page)
            .await
            .map_err(ApiError::from)?;
        let versions = page.items.iter().map(|entry| v1::VersionEntry {
            tag: entry.tag.clone(),
            digest: entry.digest.to_string(),
            resolve_time: timestamp(entry.resolved_at),
        });
        Ok(Response::new(ListVersionsResponse {
            versions: versions.collect(),
            next_page_token: next_token(page.next, bound_to),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repositories_carry_their_registry_and_no_tag() {
        for text in [
            "docker.io/library/nginx",
            "localhost:5000/a",
            "registry.example.com/acme/shop-api",
        ] {
            assert_eq!(repository(text).unwrap(), text);
        }
        for text in [
            "",
            "nginx",
            "acme/shop",
            "docker.io/",
            "docker.io/a:1",
            "docker.io/A",
            "docker.io/a@sha256:00",
            "docker.io//a",
            "docker.io/-a",
        ] {
            assert!(repository(text).is_err(), "{text}");
        }
    }
}
