//! One file per noun; each turns arguments into calls and answers into rows.

pub mod agent;
pub mod audit;
pub mod component;
pub mod context;
pub mod dev;
pub mod drift;
pub mod env;
pub mod evidence;
pub mod history;
pub mod hold;
pub mod job;
pub mod promote;
pub mod promotion;
pub mod release;
pub mod rollback;
pub mod status;
pub mod target;
pub mod user;
mod whoami;

use clap::CommandFactory as _;

use crate::{
    args::{Cli, Command},
    error::{CliError, Exit},
    output,
};

/// Runs the command that was asked for.
pub async fn run(cli: Cli) -> Result<Exit, CliError> {
    let global = &cli.global;
    match cli.command {
        Command::Promote(args) => promote::run(global, args).await,
        Command::Rollback(args) => rollback::run(global, args).await,
        Command::Status(args) => status::run(global, args).await,
        Command::History(args) => history::run(global, args).await,
        Command::Drift(args) => drift::run(global, args).await,
        Command::Whoami => whoami::run(global).await,
        Command::Env(command) => env::run(global, command).await,
        Command::Target(command) => target::run(global, command).await,
        Command::Agent(command) => agent::run(global, command).await,
        Command::Component(command) => component::run(global, command).await,
        Command::Release(command) => release::run(global, command).await,
        Command::Promotion(command) => promotion::run(global, command).await,
        Command::Job(command) => job::run(global, command).await,
        Command::Hold(command) => hold::run(global, command).await,
        Command::Evidence(command) => evidence::run(global, command).await,
        Command::Audit(args) => audit::run(global, args).await,
        Command::User(command) => user::run(global, command).await,
        Command::Context(command) => context::run(global, command),
        Command::Dev(args) => dev::run(args).await,
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sealift", &mut script);
            output::write_stdout(&script)?;
            Ok(Exit::Done)
        }
        Command::ExitCodes => {
            for (_, code, meaning) in Exit::TABLE {
                output::line(&format!("{code:>4}  {meaning}"))?;
            }
            Ok(Exit::Done)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }
}
