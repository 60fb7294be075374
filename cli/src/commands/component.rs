//! `sealift component`: deployable things, identified by image repositories.

use clap::Subcommand;
use sealift_proto::v1::{
    Component, CreateComponentRequest, GetComponentRequest, ListComponentsRequest, ListVersionsRequest,
    VersionEntry,
};

use crate::{
    args::{Global, ListArgs},
    client::{client, connect, named, request_id, unary},
    error::{CliError, Exit},
    list,
    output::{
        self, Rows,
        text::{clean, stamp},
    },
};

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum ComponentCommand {
    /// Give an image repository a name before the first release mentions it.
    Create {
        /// The name.
        name: String,
        /// The repository: registry.acme.com/shop/api; Docker Hub conventions hold.
        #[arg(long)]
        repository: String,
    },
    /// Show all.
    List(ListArgs),
    /// Show one.
    Get {
        /// Its name.
        name: String,
    },
    /// What its tags were seen to mean, newest first.
    Versions {
        /// Its name.
        name: String,
        /// Bounds.
        #[command(flatten)]
        list: ListArgs,
    },
}

pub async fn run(global: &Global, command: ComponentCommand) -> Result<Exit, CliError> {
    let mut client = client!(
        component_service_client,
        ComponentServiceClient,
        connect(global).await?
    );
    let component = match command {
        ComponentCommand::Create { name, repository } => {
            let request = CreateComponentRequest {
                request_id: request_id(),
                component_id: name,
                repository,
            };
            client
                .create_component(unary(request))
                .await?
                .into_inner()
                .component
        }
        ComponentCommand::List(args) => {
            let fetch = async |page_size, page_token| {
                let request = ListComponentsRequest {
                    page_size,
                    page_token,
                };
                client.clone().list_components(unary(request)).await
            };
            list::show(global, args, fetch, rows).await?;
            return Ok(Exit::Done);
        }
        ComponentCommand::Get { name } => {
            let request = GetComponentRequest {
                name: named("components", &name),
            };
            client.get_component(unary(request)).await?.into_inner().component
        }
        ComponentCommand::Versions { name, list } => {
            let parent = named("components", &name);
            let fetch = async |page_size, page_token| {
                let request = ListVersionsRequest {
                    parent: parent.clone(),
                    page_size,
                    page_token,
                };
                client.clone().list_versions(unary(request)).await
            };
            list::show(global, list, fetch, version_rows).await?;
            return Ok(Exit::Done);
        }
    };
    let component = component.unwrap_or_default();
    output::write(global.output, &component, || {
        rows(std::slice::from_ref(&component))
    })?;
    Ok(Exit::Done)
}

fn version_rows(versions: &[VersionEntry]) -> Rows {
    Rows::new(&["TAG", "DIGEST", "SEEN"]).with(versions.iter().map(|version| {
        vec![
            clean(&version.tag),
            clean(&version.digest),
            stamp(version.resolve_time.as_ref()),
        ]
    }))
}

fn rows(components: &[Component]) -> Rows {
    Rows::new(&["COMPONENT", "REPOSITORY", "CREATED"]).with(components.iter().map(|component| {
        let name = component
            .name
            .strip_prefix("components/")
            .unwrap_or(&component.name);
        vec![
            clean(name),
            clean(&component.repository),
            stamp(component.create_time.as_ref()),
        ]
    }))
}
