//! `sealift user`: people and machines that may call the orchestrator. Certificates are made with
//! `sealift-orchestrator admin issue`.

use clap::Subcommand;
use sealift_proto::v1::{ListUsersRequest, RevokeUserRequest, User};

use crate::{
    args::{Global, ListArgs},
    client::{client, connect, named, request_id, unary},
    error::{CliError, Exit},
    list,
    output::{
        self, Rows,
        text::{clean, leaf, stamp},
    },
};

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Show all.
    List(ListArgs),
    /// End one: its certificates stop counting, its live streams end within seconds.
    Revoke {
        /// Its name.
        name: String,
        /// Why.
        #[arg(long)]
        reason: String,
    },
}

pub async fn run(global: &Global, command: UserCommand) -> Result<Exit, CliError> {
    let mut client = client!(user_service_client, UserServiceClient, connect(global).await?);
    match command {
        UserCommand::List(args) => {
            let fetch = async |page_size, page_token| {
                let request = ListUsersRequest {
                    page_size,
                    page_token,
                };
                client.clone().list_users(unary(request)).await
            };
            list::show(global, args, fetch, rows).await?;
        }
        UserCommand::Revoke { name, reason } => {
            let request = RevokeUserRequest {
                request_id: request_id(),
                name: named("users", &name),
                reason,
            };
            let user = client
                .revoke_user(unary(request))
                .await?
                .into_inner()
                .user
                .unwrap_or_default();
            output::write(global.output, &user, || rows(std::slice::from_ref(&user)))?;
        }
    }
    Ok(Exit::Done)
}

fn rows(users: &[User]) -> Rows {
    Rows::new(&["USER", "ROLE", "CREATED", "REVOKED"]).with(users.iter().map(|user| {
        vec![
            leaf(&user.name),
            clean(&user.role),
            stamp(user.create_time.as_ref()),
            stamp(user.revoke_time.as_ref()),
        ]
    }))
}
