//! `sealift target`: deployable places on hosts.

mod state;

use std::collections::HashMap;

use clap::{Subcommand, ValueEnum};
use pbjson_types::FieldMask;
use sealift_proto::v1::{
    ArchiveTargetRequest, CreateJoinTokenRequest, CreateTargetRequest, GetTargetRequest, ListTargetsRequest,
    Target, UpdateTargetRequest, target::Kind, target_service_client::TargetServiceClient,
};
use tonic::transport::Channel;

use crate::{
    args::{Global, ListArgs},
    client::{client, connect, named, request_id, target_name, unary},
    error::{CliError, Exit},
    list,
    output::{
        self, Format, Rows,
        text::{age, clean, leaf, short_target},
    },
};

/// What kind of place.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum KindArg {
    /// The agent drives the engine itself.
    DockerHost,
    /// The agent drives the host's Compose.
    ComposeHost,
    /// The agent's own program, which it exchanges itself.
    #[value(name = "agent-host")]
    Agent,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Self {
        match kind {
            KindArg::DockerHost => Self::DockerHost,
            KindArg::ComposeHost => Self::ComposeHost,
            KindArg::Agent => Self::AgentHost,
        }
    }
}

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum TargetCommand {
    /// Make a target.
    Create {
        /// ENVIRONMENT/TARGET.
        name: String,
        /// What kind of place.
        #[arg(long, value_enum, default_value = "docker-host")]
        kind: KindArg,
        /// KEY=VALUE; may be repeated. `region` groups targets for strategies.
        #[arg(long = "label", value_parser = label)]
        labels: Vec<(String, String)>,
    },
    /// Show all.
    List {
        /// Only of this environment.
        #[arg(long, visible_alias = "environment")]
        env: Option<String>,
        /// Bounds.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Show one: what is recorded and what runs there, side by side, its drift, the newest of its stickers.
    Get {
        /// ENVIRONMENT/TARGET.
        name: String,
    },
    /// Show the stickers that its host has reported, newest first, each checked against the one before it.
    Stickers {
        /// ENVIRONMENT/TARGET.
        name: String,
        /// Only of this project (`repository/project`).
        #[arg(long)]
        project: Option<String>,
        /// Bounds.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Replace the labels.
    Label {
        /// ENVIRONMENT/TARGET.
        name: String,
        /// KEY=VALUE; all labels that it shall have.
        #[arg(value_parser = label)]
        labels: Vec<(String, String)>,
    },
    /// Put one away that nothing uses.
    Archive {
        /// ENVIRONMENT/TARGET.
        name: String,
    },
    /// Make a single-use token with which an agent enrols for this target.
    Token {
        /// ENVIRONMENT/TARGET.
        name: String,
        /// How long it is good for.
        #[arg(long, default_value = "10m", value_parser = humantime::parse_duration)]
        life: std::time::Duration,
    },
}

fn label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("wanted KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}

pub async fn run(global: &Global, command: TargetCommand) -> Result<Exit, CliError> {
    let mut client = client!(target_service_client, TargetServiceClient, connect(global).await?);
    let target = match command {
        TargetCommand::Create { name, kind, labels } => {
            let full = target_name(&name)?;
            let (parent, target_id) = full.split_once("/targets/").unwrap_or((&full, ""));
            let labels: HashMap<_, _> = labels.into_iter().collect();
            let request = CreateTargetRequest {
                request_id: request_id(),
                parent: parent.to_owned(),
                target_id: target_id.to_owned(),
                target: Some(Target {
                    kind: Kind::from(kind).into(),
                    labels,
                    ..Default::default()
                }),
            };
            client.create_target(unary(request)).await?.into_inner().target
        }
        TargetCommand::List { env, list } => {
            let parent = named("environments", env.as_deref().unwrap_or("-"));
            let fetch = async |page_size, page_token| {
                let request = ListTargetsRequest {
                    parent: parent.clone(),
                    page_size,
                    page_token,
                };
                client.clone().list_targets(unary(request)).await
            };
            list::show(global, list, fetch, rows).await?;
            return Ok(Exit::Done);
        }
        TargetCommand::Get { name } => return state::show(global, &mut client, &name).await,
        TargetCommand::Stickers { name, project, list } => {
            return state::stickers(global, &mut client, &name, project.as_deref(), list).await;
        }
        TargetCommand::Label { name, labels } => {
            let mut target = get(&mut client, &name).await?;
            target.labels = labels.into_iter().collect();
            let request = UpdateTargetRequest {
                request_id: request_id(),
                target: Some(target),
                update_mask: Some(FieldMask {
                    paths: vec!["labels".to_owned()],
                }),
            };
            client.update_target(unary(request)).await?.into_inner().target
        }
        TargetCommand::Archive { name } => {
            let target = get(&mut client, &name).await?;
            let request = ArchiveTargetRequest {
                request_id: request_id(),
                name: target.name,
                etag: target.etag,
            };
            client.archive_target(unary(request)).await?.into_inner().target
        }
        TargetCommand::Token { name, life } => return token(global, &mut client, &name, life).await,
    };
    let target = target.unwrap_or_default();
    output::write(global.output, &target, || rows(std::slice::from_ref(&target)))?;
    Ok(Exit::Done)
}

async fn get(client: &mut TargetServiceClient<Channel>, name: &str) -> Result<Target, CliError> {
    let request = GetTargetRequest {
        name: target_name(name)?,
    };
    Ok(client
        .get_target(unary(request))
        .await?
        .into_inner()
        .target
        .unwrap_or_default())
}

async fn token(
    global: &Global,
    client: &mut TargetServiceClient<Channel>,
    name: &str,
    life: std::time::Duration,
) -> Result<Exit, CliError> {
    let request = CreateJoinTokenRequest {
        request_id: request_id(),
        name: target_name(name)?,
        life_seconds: i64::try_from(life.as_secs()).unwrap_or(i64::MAX),
    };
    let answer = client.create_join_token(unary(request)).await?.into_inner();
    if global.output == Format::Table {
        // The bare token, so that it can be piped into `sealift-agent join --token-stdin`.
        output::line(&clean(&answer.token))?;
        anstream::eprintln!(
            "on the host: sealift-agent join --orchestrator URL --token-stdin (a host that has an agent already: join --add-target \
             --token-stdin); it works once and is not shown again"
        );
    } else {
        output::write_message(global.output, &answer)?;
    }
    Ok(Exit::Done)
}

fn rows(targets: &[Target]) -> Rows {
    Rows::new(&["TARGET", "KIND", "AGENT", "LABELS", "LAST NEWS"]).with(targets.iter().map(|target| {
        let mut labels: Vec<_> = target
            .labels
            .iter()
            .map(|(key, value)| clean(&format!("{key}={value}")))
            .collect();
        labels.sort();
        vec![
            short_target(&target.name),
            kind(target).to_owned(),
            if target.agent.is_empty() {
                "none".to_owned()
            } else {
                format!("{} ({})", leaf(&target.agent), clean(&target.agent_status))
            },
            labels.join(","),
            age(target.observe_time.as_ref(), crate::output::now()),
        ]
    }))
}

fn kind(target: &Target) -> &'static str {
    match target.kind() {
        Kind::DockerHost => "docker-host",
        Kind::ComposeHost => "compose-host",
        Kind::AgentHost => "agent-host",
        Kind::Unspecified => "-",
    }
}
