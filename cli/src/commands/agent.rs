//! `sealift agent`: the programs on hosts, as operators see them.

mod program;

use std::time::Duration;

use clap::Subcommand;
use sealift_proto::v1::{
    Agent, DrainAgentRequest, GetAgentRequest, ListAgentsRequest, PauseAgentRequest, ResumeAgentRequest,
    RevokeAgentRequest,
    agent::{Intent, Status},
    agent_service_client::AgentServiceClient,
};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;

use crate::{
    args::{Global, ListArgs},
    client::{client, connect, named, request_id, unary},
    error::{CliError, Exit},
    list,
    output::{
        self, Format, Rows,
        text::{age, clean, external, leaf, or_dash, short_target},
    },
    watch::{self, Away},
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
            let fetch = async |page_size, page_token| {
                let request = ListAgentsRequest {
                    page_size,
                    page_token,
                };
                client.clone().list_agents(unary(request)).await
            };
            list::show(global, args, fetch, rows).await?;
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
            let mut seen = draining.unwrap_or_default();
            if wait && !drained(&mut seen, timeout, async || get(&mut client, &id).await).await? {
                anstream::eprintln!(
                    "--timeout passed; the agent is still being drained: sealift agent get {id}"
                );
                return Ok(Exit::TimedOut);
            }
            Some(seen)
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

/// Looks until nothing is under way on the host any more: false when `patience` ends before. `seen` is what was seen last. An
/// orchestrator that is away for a while is waited for.
async fn drained(
    seen: &mut Agent,
    patience: Duration,
    mut look: impl AsyncFnMut() -> Result<Agent, CliError>,
) -> Result<bool, CliError> {
    let mut away = Away::new(watch::PATIENCE);
    let looks = async {
        loop {
            let pause = match look().await {
                Ok(agent) => {
                    away.heard();
                    *seen = agent;
                    if seen.running_tasks == 0 {
                        return Ok(true);
                    }
                    LOOK_EVERY
                }
                Err(error) => away.pause(Instant::now(), error)?,
            };
            sleep(pause).await;
        }
    };
    timeout(patience, looks).await.unwrap_or(Ok(false))
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

#[cfg(test)]
mod tests {
    use tonic::Status;

    use super::*;

    /// An agent with so many tasks under way.
    fn with(running_tasks: i32) -> Agent {
        Agent {
            running_tasks,
            ..Agent::default()
        }
    }

    /// Waits for a drain while the looks give this in turn, the last one for ever.
    async fn drain(mut looks: Vec<Result<Agent, Status>>) -> (Result<bool, Exit>, Agent) {
        looks.reverse();
        let mut seen = with(3);
        let look = async || {
            let next = if looks.len() > 1 {
                looks.pop()
            } else {
                looks.last().cloned()
            };
            next.unwrap_or_else(|| Ok(with(0))).map_err(CliError::from)
        };
        let done = drained(&mut seen, Duration::from_mins(15), look).await;
        (done.map_err(|error| error.exit()), seen)
    }

    #[tokio::test(start_paused = true)]
    async fn a_drain_outlasts_an_orchestrator_that_is_away_and_tells_what_was_seen_last() {
        let away = || Err(Status::unavailable("away"));
        let (done, seen) = drain(vec![Ok(with(2)), away(), away(), Ok(with(1)), Ok(with(0))]).await;
        assert_eq!((done, seen.running_tasks), (Ok(true), 0));
        let (done, seen) = drain(vec![Ok(with(2)), Ok(with(1))]).await;
        assert_eq!((done, seen.running_tasks), (Ok(false), 1), "--timeout");
        let (done, _) = drain(vec![Ok(with(2)), away()]).await;
        assert_eq!(done, Err(Exit::Unreachable), "it is not waited for without end");
        let (done, _) = drain(vec![Err(Status::permission_denied("no"))]).await;
        assert_eq!(done, Err(Exit::Denied));
    }
}
