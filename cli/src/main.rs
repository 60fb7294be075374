//! `sealift`: see what runs where and why, promote, watch, verify.

mod args;
mod client;
mod commands;
mod context;
mod env_files;
mod error;
mod input;
mod list;
mod output;
mod progress;
mod recipe;
mod watch;

use std::process::ExitCode;

use clap::Parser as _;
use error::Exit;

use crate::args::Cli;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            // clap's own code for wrong usage is 2, which here means "differences exist".
            let code = if error.use_stderr() {
                Exit::Usage
            } else {
                Exit::Done
            };
            drop(error.print());
            return code.into();
        }
    };
    let color = cli.global.color;
    color.apply();
    let runtime = match tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
    {
        Ok(runtime) => runtime,
        Err(error) => {
            anstream::eprintln!("error: the asynchronous runtime cannot start: {error}");
            return Exit::Failed.into();
        }
    };
    // `dev` has children to stop and files to take away: it listens to Ctrl-C itself.
    let cleans_up = matches!(cli.command, args::Command::Dev(_));
    let requests = cli.command.requests();
    let code = runtime.block_on(async {
        tokio::select! {
            // Listening comes first: Ctrl-C has its exit code from the first call on.
            biased;
            exit = interrupted(requests), if !cleans_up => exit,
            result = commands::run(cli) => match result {
                Ok(exit) => exit,
                Err(error) => {
                    error.print();
                    error.exit()
                }
            },
        }
    });
    runtime.shutdown_background();
    code.into()
}

/// Ctrl-C stops watching, never the work: the orchestrator goes on.
async fn interrupted(requests: bool) -> Exit {
    if tokio::signal::ctrl_c().await.is_err() {
        std::future::pending::<()>().await;
    }
    anstream::eprintln!();
    if !requests {
        return Exit::Interrupted;
    }
    anstream::eprintln!(
        "interrupted: what was already requested goes on; `sealift promotion list` shows it, `sealift promotion cancel` stops it"
    );
    Exit::Interrupted
}
