//! `sealift agent`: the programs on hosts, as operators see them.

mod program;

use std::time::Duration;

use clap::Subcommand;
use sealift_proto::v1::{
    Agent, DrainAgentRequest, GetAgentRequest, ListAgentsRequest, ListAgentsResponse, PauseAgentRequest,
    ResumeAgentRequest, RevokeAgentRequest,
    agent::{Intent, Status},
    agent_service_client::AgentServiceClient,
};
use tonic::transport::Channel;

use crate::{
    args::{Global, ListArgs},
    client::{client, connect, named, pages, request_id, unary},
    error::{CliError, Exit},
    output::{
        self, Format, Rows,
        text::{age, clean, external, leaf, or_dash, short_target},
    },
};

/// How often it is looked whether a host is drained.
const LOOK_EVERY: Duration = Duration::from_secs(1);

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
    /// Give it no new orders for a while; what it has begun is finished, what is to run there waits a little.
    Pause {
        /// Its identifier.
        id: String,
        /// Why.
        #[arg(long)]
        reason: String,
    },
    /// Give it orders again.
    Resume {
        /// Its identifier.
        id: String,
        /// Why.
        #[arg(long, default_value = "")]
        reason: String,
    },
    /// Take its host out of service: no new orders; what it has begun is finished.
    Drain {
        /// Its identifier.
        id: String,
        /// Why.
        #[arg(long)]
        reason: String,
        /// Wait until nothing is under way on the host.
        #[arg(long)]
        wait: bool,
        /// How long to wait at most.
        #[arg(long, requires = "wait", default_value = "15m", value_parser = humantime::parse_duration)]
        timeout: Duration,
    },
    /// Sign a program for agents, offline, so that hosts that trust the key let a release exchange theirs.
    SignProgram(program::SignProgramArgs),
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
    if let AgentCommand::SignProgram(args) = &command {
        return program::sign(args);
    }
    let mut client = client!(agent_service_client, AgentServiceClient, connect(global).await?);
    let agent = match command {
        AgentCommand::SignProgram(args) => return program::sign(&args),
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
            let agent = get(&mut client, &id).await?;
            return show(global, &agent);
        }
        AgentCommand::Pause { id, reason } => {
            let seen = get(&mut client, &id).await?;
            let request = PauseAgentRequest {
                request_id: request_id(),
                name: seen.name,
                etag: seen.etag,
                reason,
            };
            client.pause_agent(unary(request)).await?.into_inner().agent
        }
        AgentCommand::Resume { id, reason } => {
            let seen = get(&mut client, &id).await?;
            let request = ResumeAgentRequest {
                request_id: request_id(),
                name: seen.name,
                etag: seen.etag,
                reason,
            };
            client.resume_agent(unary(request)).await?.into_inner().agent
        }
        AgentCommand::Drain {
            id,
            reason,
            wait,
            timeout,
        } => {
            let seen = get(&mut client, &id).await?;
            let request = DrainAgentRequest {
                request_id: request_id(),
                name: seen.name,
                etag: seen.etag,
                reason,
            };
            let draining = client.drain_agent(unary(request)).await?.into_inner().agent;
            if wait && !drained(&mut client, &id, timeout).await? {
                anstream::eprintln!(
                    "--timeout passed; the agent is still being drained: sealift agent get {id}"
                );
                return Ok(Exit::TimedOut);
            }
            draining
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

async fn get(client: &mut AgentServiceClient<Channel>, id: &str) -> Result<Agent, CliError> {
    let request = GetAgentRequest {
        name: named("agents", id),
    };
    Ok(client
        .get_agent(unary(request))
        .await?
        .into_inner()
        .agent
        .unwrap_or_default())
}

/// Whether nothing is under way on the host any more, at the latest when `patience` is at its end.
async fn drained(
    client: &mut AgentServiceClient<Channel>,
    id: &str,
    patience: Duration,
) -> Result<bool, CliError> {
    let look = async {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            looks.tick().await;
            if get(client, id).await?.running_tasks == 0 {
                return Ok(());
            }
        }
    };
    tokio::time::timeout(patience, look)
        .await
        .map_or(Ok(false), |looked| looked.map(|()| true))
}

/// The table's line, and what does not fit into it.
fn show(global: &Global, agent: &Agent) -> Result<Exit, CliError> {
    output::write(global.output, agent, || rows(std::slice::from_ref(agent)))?;
    if global.output != Format::Table {
        return Ok(Exit::Done);
    }
    output::line("")?;
    for (what, found) in details(agent) {
        output::line(&format!("{what:<12} {}", clean(&found)))?;
    }
    for found in &agent.degraded {
        output::line(&format!("{:<12} {}", clean(&found.code), clean(&found.detail)))?;
        if !found.advice.is_empty() {
            output::line(&format!("{:<12} hint: {}", "", clean(&found.advice)))?;
        }
    }
    Ok(Exit::Done)
}

/// What there is to tell of an agent and its host, one line each.
fn details(agent: &Agent) -> Vec<(&'static str, String)> {
    let mut lines = Vec::new();
    if agent.intent() != Intent::Active {
        let since = age(agent.intent_time.as_ref(), output::now());
        let (who, why) = (&agent.intent_actor, &agent.intent_reason);
        lines.push((
            "wanted",
            format!("{} by {who}, {since} ago: {why}", intent(agent)),
        ));
    }
    lines.push(("running", format!("{} tasks", agent.running_tasks)));
    let engine = [
        ("API", &agent.engine_api),
        ("storage", &agent.storage_driver),
        ("control groups", &agent.cgroup_version),
        ("Compose", &agent.compose),
    ];
    let engine: Vec<_> = engine
        .iter()
        .filter(|(_, value)| !value.is_empty())
        .map(|(what, value)| format!("{what} {value}"))
        .collect();
    lines.push(("engine", or_dash(&engine.join(", "))));
    for disk in &agent.disks {
        let of = format!("{} of {}", size(disk.free_bytes), size(disk.total_bytes));
        lines.push((
            "disk",
            format!("{}: {of} free, at {}", disk.what, external(disk.path.as_ref())),
        ));
    }
    if let Some(clock) = &agent.clock {
        let (ahead, doubt) = (clock.ahead_ms as f64 / 1e3, clock.uncertainty_ms as f64 / 1e3);
        let found = format!("{ahead:+.3} s beside the orchestrator's (±{doubt:.3} s)");
        lines.push(("clock", found));
    }
    if let Some(pruned) = &agent.pruned {
        let when = age(pruned.time.as_ref(), output::now());
        let found = format!(
            "{} images of {} taken away {when} ago",
            pruned.images,
            size(pruned.bytes)
        );
        lines.push(("prune", found));
    }
    lines
}

/// Bytes for people.
fn size(bytes: i64) -> String {
    const MIB: i64 = 1024 * 1024;
    if bytes < 10 * 1024 * MIB {
        format!("{} MiB", bytes / MIB)
    } else {
        format!("{} GiB", bytes / MIB / 1024)
    }
}

fn intent(agent: &Agent) -> &'static str {
    match agent.intent() {
        Intent::Active => "active",
        Intent::Paused => "paused",
        Intent::Draining if agent.running_tasks == 0 => "drained",
        Intent::Draining => "draining",
        Intent::Revoked => "revoked",
        Intent::Unspecified => "-",
    }
}

fn rows(agents: &[Agent]) -> Rows {
    let header = [
        "AGENT", "STATUS", "TARGETS", "HOST", "PLATFORM", "ENGINE", "VERSION", "SEEN", "NOTES",
    ];
    Rows::new(&header).with(agents.iter().map(|agent| {
        let status = match agent.status() {
            Status::Online => "online",
            Status::Degraded => "degraded",
            Status::Offline => "offline",
            Status::Unspecified => "-",
        };
        let status = match agent.intent() {
            Intent::Active | Intent::Unspecified => status.to_owned(),
            Intent::Paused | Intent::Draining => format!("{status}, {}", intent(agent)),
            Intent::Revoked => "revoked".to_owned(),
        };
        let codes: Vec<_> = agent.degraded.iter().map(|found| found.code.as_str()).collect();
        let targets: Vec<_> = agent.targets.iter().map(|target| short_target(target)).collect();
        vec![
            leaf(&agent.name),
            status,
            or_dash(&targets.join(",")),
            or_dash(&agent.hostname),
            or_dash(&agent.platform),
            or_dash(&agent.engine),
            or_dash(&agent.version),
            age(agent.last_seen_time.as_ref(), output::now()),
            clean(&codes.join(",")),
        ]
    }))
}
