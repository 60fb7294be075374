//! `sealift status`: the board, environments × components.

use clap::Args;
use sealift_proto::v1::{GetBoardRequest, GetBoardResponse, GetServerInfoRequest};

use crate::{
    args::Global,
    client::{client, connect, named, unary},
    error::{CliError, Exit},
    output::{
        self, Format, Rows,
        text::{age, clean, leaf, or_dash, short_digest},
    },
};

/// Which part of the board.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this environment.
    environment: Option<String>,
}

pub async fn run(global: &Global, args: StatusArgs) -> Result<Exit, CliError> {
    let channel = connect(global).await?;
    let mut server = client!(server_service_client, ServerServiceClient, channel.clone());
    let mut client = client!(status_service_client, StatusServiceClient, channel);
    let environment = args
        .environment
        .map(|env| named("environments", &env))
        .unwrap_or_default();
    let board = client
        .get_board(unary(GetBoardRequest { environment }))
        .await?
        .into_inner();
    output::write(global.output, &board, || environments(&board))?;
    if global.output == Format::Table {
        output::line("")?;
        output::write(global.output, &board, || components(&board))?;
    }
    let info = server.get_server_info(unary(GetServerInfoRequest {})).await?;
    for (name, error) in info.into_inner().troubles {
        anstream::eprintln!(
            "warning: the orchestrator's {} fails: {}",
            clean(&name),
            clean(&error)
        );
    }
    Ok(Exit::Done)
}

fn environments(board: &GetBoardResponse) -> Rows {
    Rows::new(&["ENVIRONMENT", "TARGETS", "AGENTS", "RUNNING", "QUEUED"]).with(board.environments.iter().map(
        |environment| {
            let offline = environment.agents_offline;
            let agents = if offline > 0 {
                format!("{} online, {offline} OFFLINE", environment.agents_online)
            } else {
                format!("{} online", environment.agents_online)
            };
            vec![
                leaf(&environment.environment),
                environment.targets.to_string(),
                agents,
                or_dash(&leaf(&environment.running_promotion)),
                environment.queued.to_string(),
            ]
        },
    ))
}

fn components(board: &GetBoardResponse) -> Rows {
    Rows::new(&["ENVIRONMENT", "COMPONENT", "RELEASE", "DIGEST", "SINCE", "DRIFT"]).with(
        board.environments.iter().flat_map(|environment| {
            environment.components.iter().map(|component| {
                let name = component
                    .component
                    .strip_prefix("components/")
                    .unwrap_or(&component.component);
                vec![
                    leaf(&environment.environment),
                    clean(name),
                    clean(&component.release_display),
                    short_digest(&component.digest),
                    age(component.since.as_ref(), output::now()),
                    if component.drift > 0 {
                        format!("{} open", component.drift)
                    } else {
                        "none".to_owned()
                    },
                ]
            })
        }),
    )
}
