//! `sealift agent`: the programs on hosts, as operators see them.

use clap::Subcommand;
use sealift_proto::v1::{
    Agent, GetAgentRequest, ListAgentsRequest, ListAgentsResponse, RevokeAgentRequest, agent::Status,
};

use crate::{
    args::{Global, ListArgs},
    client::{client, connect, named, pages, request_id, unary},
    error::{CliError, Exit},
    output::{
        self, Rows,
        text::{age, clean, leaf, or_dash, short_target},
    },
};

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum AgentCommand {
    /// Show all.
    List(ListArgs),
    /// Show one.
    Get {
        /// Its identifier.
        id: String,
    },
    /// End one for good: its session ends within seconds, its targets become free for a new agent.
    Revoke {
        /// Its identifier.
        id: String,
        /// Why.
        #[arg(long)]
        reason: String,
    },
}

pub async fn run(global: &Global, command: AgentCommand) -> Result<Exit, CliError> {
    let mut client = client!(agent_service_client, AgentServiceClient, connect(global).await?);
    let agent = match command {
        AgentCommand::List(args) => {
            let agents = pages(args.limit, async |page_size, page_token| {
                let request = ListAgentsRequest {
                    page_size,
                    page_token,
                };
                let page = client.clone().list_agents(unary(request)).await?.into_inner();
                Ok((page.agents, page.next_page_token))
            })
            .await?;
            let answer = ListAgentsResponse {
                agents,
                next_page_token: String::new(),
            };
            output::write(global.output, &answer, || rows(&answer.agents))?;
            return Ok(Exit::Done);
        }
        AgentCommand::Get { id } => {
            let request = GetAgentRequest {
                name: named("agents", &id),
            };
            client.get_agent(unary(request)).await?.into_inner().agent
        }
        AgentCommand::Revoke { id, reason } => {
            let request = RevokeAgentRequest {
                request_id: request_id(),
                name: named("agents", &id),
                reason,
            };
            client.revoke_agent(unary(request)).await?.into_inner().agent
        }
    };
    let agent = agent.unwrap_or_default();
    output::write(global.output, &agent, || rows(std::slice::from_ref(&agent)))?;
    Ok(Exit::Done)
}

fn rows(agents: &[Agent]) -> Rows {
    let header = [
        "AGENT", "STATUS", "TARGETS", "HOST", "PLATFORM", "ENGINE", "VERSION", "SEEN", "NOTES",
    ];
    Rows::new(&header).with(agents.iter().map(|agent| {
        let status = match agent.status() {
            _ if agent.revoke_time.is_some() => "revoked",
            Status::Online => "online",
            Status::Degraded => "degraded",
            Status::Offline => "offline",
            Status::Unspecified => "-",
        };
        let targets: Vec<_> = agent.targets.iter().map(|target| short_target(target)).collect();
        vec![
            leaf(&agent.name),
            status.to_owned(),
            or_dash(&targets.join(",")),
            or_dash(&agent.hostname),
            or_dash(&agent.platform),
            or_dash(&agent.engine),
            or_dash(&agent.version),
            age(agent.last_seen_time.as_ref(), output::now()),
            clean(&agent.degraded.join("; ")),
        ]
    }))
}
