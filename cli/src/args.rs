//! The grammar: nouns and verbs, daily verbs on top.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use uuid::Uuid;

use crate::{
    client::request_id,
    commands,
    output::{Color, Format},
};

/// Promotes releases from environment to environment on plain Docker and Compose hosts, with proof.
#[derive(Debug, Parser)]
#[command(
    name = "sealift",
    version,
    propagate_version = true,
    disable_help_subcommand = true
)]
pub struct Cli {
    /// What holds for every command.
    #[command(flatten)]
    pub global: Global,
    /// The command.
    #[command(subcommand)]
    pub command: Command,
}

/// What holds for every command.
#[derive(Debug, Clone, Args)]
pub struct Global {
    /// Context to use instead of the selected one.
    #[arg(long, global = true, env = "SEALIFT_CONTEXT", value_name = "NAME")]
    pub context: Option<String>,
    /// Context file to use instead of the saved contexts (as `sealift-orchestrator admin issue` writes it).
    #[arg(long, global = true, env = "SEALIFT_CONTEXT_FILE", value_name = "FILE")]
    pub context_file: Option<PathBuf>,
    /// Endpoint to use instead of the context's.
    #[arg(long, global = true, env = "SEALIFT_ENDPOINT", value_name = "URL")]
    pub endpoint: Option<String>,
    /// How results are written.
    #[arg(short, long, global = true, value_enum, default_value_t)]
    pub output: Format,
    /// When to use colour.
    #[arg(long, global = true, value_enum, default_value_t)]
    pub color: Color,
}

/// Bounds of a list.
#[derive(Debug, Clone, Copy, Args)]
pub struct ListArgs {
    /// Most items to show; otherwise 200 in a table, and all of them with -o json or yaml.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub limit: Option<u32>,
}

/// Which request it is.
#[derive(Debug, Clone, Copy, Args)]
pub struct RequestArgs {
    /// A UUID of this request: a repetition with the same one has no further effect and gets the same answer, for CI that tries
    /// again. A fresh one when not given.
    #[arg(long, value_name = "UUID", value_parser = uuid)]
    request_id: Option<Uuid>,
}

impl RequestArgs {
    /// The given one, or a fresh one.
    pub fn id(self) -> String {
        self.request_id.map_or_else(request_id, |id| id.to_string())
    }
}

fn uuid(text: &str) -> Result<Uuid, String> {
    Uuid::try_parse(text).map_err(|_| "wanted a UUID: 32 hexadecimal digits, with or without dashes; Linux makes one in /proc/sys/kernel/random/uuid".to_owned())
}

/// All commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Bring a release to an environment.
    Promote(commands::promote::PromoteArgs),
    /// Go back to what is known to be good.
    Rollback(commands::rollback::RollbackArgs),
    /// What runs where, since when, and where it drifted.
    Status(commands::status::StatusArgs),
    /// What was brought to an environment, newest first, and what became of it.
    History(commands::history::HistoryArgs),
    /// Where recorded, sticker and runtime disagree.
    Drift(commands::drift::DriftArgs),
    /// Who the orchestrator takes you for.
    Whoami,
    /// Environments: where releases run.
    #[command(subcommand, visible_alias = "environment")]
    Env(commands::env::EnvCommand),
    /// Targets: deployable places on hosts.
    #[command(subcommand)]
    Target(commands::target::TargetCommand),
    /// Agents: the programs on hosts.
    #[command(subcommand)]
    Agent(commands::agent::AgentCommand),
    /// Components: deployable things, identified by image repositories.
    #[command(subcommand)]
    Component(commands::component::ComponentCommand),
    /// Releases: immutable bundles of what to run.
    #[command(subcommand)]
    Release(commands::release::ReleaseCommand),
    /// Promotions: requests to bring releases to environments.
    #[command(subcommand)]
    Promotion(commands::promotion::PromotionCommand),
    /// Jobs: the execution of promotions.
    #[command(subcommand)]
    Job(commands::job::JobCommand),
    /// Holds: what keeps new promotions of a project away from an environment.
    #[command(subcommand)]
    Hold(commands::hold::HoldCommand),
    /// Evidence: signed statements of what happened.
    #[command(subcommand)]
    Evidence(commands::evidence::EvidenceCommand),
    /// Who tried what, with which result.
    Audit(commands::audit::AuditArgs),
    /// Users: people and machines that may call the orchestrator.
    #[command(subcommand)]
    User(commands::user::UserCommand),
    /// Contexts: which orchestrator, as whom.
    #[command(subcommand)]
    Context(commands::context::ContextCommand),
    /// Run an orchestrator and a local agent in one command, to try things out.
    Dev(commands::dev::DevArgs),
    /// Write a completion script for a shell.
    Completion {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Print the exit codes that CI can branch on.
    ExitCodes,
}

impl Command {
    /// Whether it asks for something that goes on without it, or follows such a thing.
    pub const fn requests(&self) -> bool {
        match self {
            Self::Status(_)
            | Self::History(_)
            | Self::Drift(_)
            | Self::Whoami
            | Self::Evidence(_)
            | Self::Audit(_)
            | Self::Context(_)
            | Self::Completion { .. }
            | Self::ExitCodes => false,
            Self::Promote(_)
            | Self::Rollback(_)
            | Self::Env(_)
            | Self::Target(_)
            | Self::Agent(_)
            | Self::Component(_)
            | Self::Release(_)
            | Self::Promotion(_)
            | Self::Job(_)
            | Self::Hold(_)
            | Self::User(_)
            | Self::Dev(_) => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_requests_something_says_that_it_goes_on() {
        let requests = |line: &str| Cli::try_parse_from(line.split(' ')).unwrap().command.requests();
        assert!(!requests("sealift status --watch"));
        assert!(requests("sealift promote a#1 --to b --wait"));
        assert!(requests("sealift promotion watch x"));
    }
}
