//! `sealift hold`: what keeps new promotions of a project away from an environment.

use clap::Subcommand;
use sealift_proto::v1::{Hold, LiftHoldRequest, ListHoldsRequest, PlaceHoldRequest};

use crate::{
    args::{Global, ListArgs, RequestArgs},
    client::{client, connect, named, repeated, unary},
    error::{CliError, Exit},
    list,
    output::{
        self, Rows,
        text::{age, clean, leaf, or_dash},
    },
};

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum HoldCommand {
    /// Keep new promotions of a project away from an environment; rollbacks still may.
    Place {
        /// The environment.
        environment: String,
        /// The project: REPOSITORY/PROJECT or its last segments.
        project: String,
        /// Why.
        #[arg(long)]
        reason: String,
        /// Repeating it.
        #[command(flatten)]
        request: RequestArgs,
    },
    /// Show what holds, newest first.
    List {
        /// Also those that were lifted.
        #[arg(long)]
        all: bool,
        /// Bounds.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Let promotions through again.
    Lift {
        /// Its identifier.
        id: String,
        /// Repeating it.
        #[command(flatten)]
        request: RequestArgs,
    },
}

pub async fn run(global: &Global, command: HoldCommand) -> Result<Exit, CliError> {
    let mut client = client!(hold_service_client, HoldServiceClient, connect(global).await?);
    let hold = match command {
        HoldCommand::Place {
            environment,
            project,
            reason,
            request,
        } => {
            let request = PlaceHoldRequest {
                request_id: request.id(),
                environment: named("environments", &environment),
                project,
                reason,
            };
            let place = async || client.place_hold(unary(request.clone())).await;
            repeated(place).await?.hold
        }
        HoldCommand::Lift { id, request } => {
            let request = LiftHoldRequest {
                request_id: request.id(),
                name: named("holds", &id),
            };
            let lift = async || client.lift_hold(unary(request.clone())).await;
            repeated(lift).await?.hold
        }
        HoldCommand::List { all, list } => {
            let fetch = async |page_size, page_token| {
                let request = ListHoldsRequest {
                    show_lifted: all,
                    page_size,
                    page_token,
                };
                client.clone().list_holds(unary(request)).await
            };
            list::show(global, list, fetch, rows).await?;
            return Ok(Exit::Done);
        }
    };
    let hold = hold.unwrap_or_default();
    output::write(global.output, &hold, || rows(std::slice::from_ref(&hold)))?;
    Ok(Exit::Done)
}

fn rows(holds: &[Hold]) -> Rows {
    let header = [
        "HOLD",
        "ENVIRONMENT",
        "PROJECT",
        "BY",
        "AGE",
        "LIFTED BY",
        "REASON",
    ];
    Rows::new(&header).with(holds.iter().map(|hold| {
        vec![
            leaf(&hold.name),
            leaf(&hold.environment),
            clean(&hold.project),
            clean(&hold.placed_by),
            age(hold.place_time.as_ref(), output::now()),
            or_dash(&hold.lifted_by),
            clean(&hold.reason),
        ]
    }))
}
