//! `sealift env`: where releases run.

mod lane;
pub mod remediation;

use std::collections::BTreeMap;

use clap::{Subcommand, ValueEnum};
use pbjson_types::FieldMask;
use sealift_proto::v1::{
    ArchiveEnvironmentRequest, CreateEnvironmentRequest, Environment, GetEnvironmentRequest,
    ListEnvironmentsRequest, UpdateEnvironmentRequest,
    environment::{Class, LanePolicy},
    environment_service_client::EnvironmentServiceClient,
};

use self::{lane::LaneArg, remediation::RemediationArgs};
use crate::{
    args::{Global, ListArgs},
    client::{client, connect, named, request_id, unary},
    error::{CliError, Exit},
    list,
    output::{
        self, Format, Rows,
        text::{clean, leaf, stamp},
    },
};

/// Whether an environment is production.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum ClassArg {
    /// Production.
    Production,
    /// Anything else.
    NonProduction,
}

impl From<ClassArg> for Class {
    fn from(class: ClassArg) -> Self {
        match class {
            ClassArg::Production => Self::Production,
            ClassArg::NonProduction => Self::NonProduction,
        }
    }
}

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum EnvCommand {
    /// Make an environment.
    Create {
        /// Its name: a-z, 0-9, dashes.
        name: String,
        /// Promotion order: releases go from low to high.
        #[arg(long)]
        position: i32,
        /// Production or not.
        #[arg(long, value_enum, default_value = "non-production")]
        class: ClassArg,
        /// Name for people.
        #[arg(long, default_value = "")]
        display_name: String,
        /// What becomes of a promotion that would have to wait.
        #[arg(long, value_enum, default_value = "queue")]
        lane: LaneArg,
        /// About drift.
        #[command(flatten)]
        remediation: RemediationArgs,
    },
    /// Show all, in promotion order.
    List(ListArgs),
    /// Show one.
    Get {
        /// Its name.
        name: String,
    },
    /// Change one.
    Update {
        /// Its name.
        name: String,
        /// New promotion order.
        #[arg(long)]
        position: Option<i32>,
        /// New class.
        #[arg(long, value_enum)]
        class: Option<ClassArg>,
        /// New name for people.
        #[arg(long)]
        display_name: Option<String>,
        /// What becomes of a promotion that would have to wait from now on.
        #[arg(long, value_enum)]
        lane: Option<LaneArg>,
        /// About drift.
        #[command(flatten)]
        remediation: RemediationArgs,
    },
    /// Set variables that Compose fills into the files of releases for compose hosts. Not for secrets: everybody who may look
    /// at the environment sees them.
    SetVariable {
        /// Its name.
        name: String,
        /// NAME=VALUE, one or more.
        #[arg(required = true, value_name = "NAME=VALUE")]
        variables: Vec<String>,
    },
    /// Take variables away.
    UnsetVariable {
        /// Its name.
        name: String,
        /// NAME, one or more.
        #[arg(required = true, value_name = "NAME")]
        variables: Vec<String>,
    },
    /// Put one without targets away.
    Archive {
        /// Its name.
        name: String,
    },
}

pub async fn run(global: &Global, command: EnvCommand) -> Result<Exit, CliError> {
    let mut client = client!(
        environment_service_client,
        EnvironmentServiceClient,
        connect(global).await?
    );
    let get =
        async |client: &mut sealift_proto::v1::environment_service_client::EnvironmentServiceClient<_>,
               name: &str| {
            let request = GetEnvironmentRequest {
                name: named("environments", name),
            };
            client
                .get_environment(unary(request))
                .await
                .map(|answer| answer.into_inner().environment.unwrap_or_default())
        };
    let environment = match command {
        EnvCommand::Create {
            name,
            position,
            class,
            display_name,
            lane,
            remediation,
        } => {
            let environment = Environment {
                display_name,
                remediation: remediation.wanted(),
                position,
                class: Class::from(class).into(),
                lane_policy: LanePolicy::from(lane).into(),
                ..Default::default()
            };
            let request = CreateEnvironmentRequest {
                request_id: request_id(),
                environment_id: name,
                environment: Some(environment),
            };
            client
                .create_environment(unary(request))
                .await?
                .into_inner()
                .environment
        }
        EnvCommand::List(args) => {
            let fetch = async |page_size, page_token| {
                let request = ListEnvironmentsRequest {
                    page_size,
                    page_token,
                };
                client.clone().list_environments(unary(request)).await
            };
            list::show(global, args, fetch, rows).await?;
            return Ok(Exit::Done);
        }
        EnvCommand::Get { name } => Some(get(&mut client, &name).await?),
        EnvCommand::Update {
            name,
            position,
            class,
            display_name,
            lane,
            remediation,
        } => {
            let mut environment = get(&mut client, &name).await?;
            let mut paths = Vec::new();
            if let Some(position) = position {
                environment.position = position;
                paths.push("position".to_owned());
            }
            if let Some(class) = class {
                environment.class = Class::from(class).into();
                paths.push("class".to_owned());
            }
            if let Some(display_name) = display_name {
                environment.display_name = display_name;
                paths.push("display_name".to_owned());
            }
            if let Some(lane) = lane {
                environment.lane_policy = LanePolicy::from(lane).into();
                paths.push("lane_policy".to_owned());
            }
            if let Some(policy) = remediation.wanted() {
                environment.remediation = Some(policy);
                paths.push("remediation".to_owned());
            }
            let request = UpdateEnvironmentRequest {
                request_id: request_id(),
                environment: Some(environment),
                update_mask: Some(FieldMask { paths }),
            };
            client
                .update_environment(unary(request))
                .await?
                .into_inner()
                .environment
        }
        EnvCommand::SetVariable { name, variables } => {
            let mut environment = get(&mut client, &name).await?;
            for variable in &variables {
                let (variable, value) = assignment(variable)?;
                environment.variables.insert(variable, value);
            }
            set_variables(&mut client, environment).await?
        }
        EnvCommand::UnsetVariable { name, variables } => {
            let mut environment = get(&mut client, &name).await?;
            for variable in &variables {
                if environment.variables.remove(variable).is_none() {
                    return Err(CliError::usage(
                        format!("{name} has no variable {variable}"),
                        format!("sealift env get {name}"),
                    ));
                }
            }
            set_variables(&mut client, environment).await?
        }
        EnvCommand::Archive { name } => {
            let environment = get(&mut client, &name).await?;
            let request = ArchiveEnvironmentRequest {
                request_id: request_id(),
                name: environment.name,
                etag: environment.etag,
            };
            client
                .archive_environment(unary(request))
                .await?
                .into_inner()
                .environment
        }
    };
    let environment = environment.unwrap_or_default();
    output::write(global.output, &environment, || {
        rows(std::slice::from_ref(&environment))
    })?;
    if global.output == Format::Table && !environment.variables.is_empty() {
        output::line("")?;
        output::write(global.output, &environment, || variables(&environment))?;
    }
    Ok(Exit::Done)
}

fn assignment(text: &str) -> Result<(String, String), CliError> {
    text.split_once('=')
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .ok_or_else(|| {
            CliError::usage(
                format!("{text} is not NAME=VALUE"),
                "for example GREETING=hello; NAME= sets an empty value",
            )
        })
}

/// All variables at once; the etag in `environment` refuses what somebody else has changed meanwhile.
async fn set_variables(
    client: &mut EnvironmentServiceClient<tonic::transport::Channel>,
    environment: Environment,
) -> Result<Option<Environment>, CliError> {
    let request = UpdateEnvironmentRequest {
        request_id: request_id(),
        environment: Some(environment),
        update_mask: Some(FieldMask {
            paths: vec!["variables".to_owned()],
        }),
    };
    let answer = client.update_environment(unary(request)).await?;
    Ok(answer.into_inner().environment)
}

fn variables(environment: &Environment) -> Rows {
    let sorted: BTreeMap<_, _> = environment.variables.iter().collect();
    Rows::new(&["VARIABLE", "VALUE"]).with(
        sorted
            .into_iter()
            .map(|(name, value)| vec![clean(name), clean(value)]),
    )
}

fn rows(environments: &[Environment]) -> Rows {
    Rows::new(&[
        "POSITION",
        "NAME",
        "CLASS",
        "LANE",
        "DRIFT",
        "DISPLAY NAME",
        "CREATED",
    ])
    .with(environments.iter().map(|environment| {
        let class = match environment.class() {
            Class::Production => "production",
            Class::NonProduction => "non-production",
            Class::Unspecified => "-",
        };
        vec![
            environment.position.to_string(),
            leaf(&environment.name),
            class.to_owned(),
            lane::shown(environment.lane_policy()).to_owned(),
            remediation::shown(environment.remediation.as_ref()),
            clean(&environment.display_name),
            stamp(environment.create_time.as_ref()),
        ]
    }))
}
