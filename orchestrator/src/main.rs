//! The orchestrator's binary: settings, logs, signals, exit codes. Everything else is in the library.
//!
//! Exit codes: 0 as asked; 1 it failed; 2 wrong usage; 3 a setting is wrong; 4 something needed is not there (database, port,
//! files); 5 it went down but not everything ended in time.

mod cli;
mod supervisor;

use std::{io::IsTerminal as _, process::ExitCode, sync::Arc};

use clap::Parser as _;
use sealift_common::time::SystemClock;
use sealift_orchestrator::{Orchestrator, StartError};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// It failed.
const FAILED: u8 = 1;
/// A setting is wrong.
const CONFIGURATION: u8 = 3;
/// Something needed is not there.
const ENVIRONMENT: u8 = 4;
/// Not everything ended in time.
const UNCLEAN: u8 = 5;

#[tokio::main]
async fn main() -> ExitCode {
    // One TLS library for the whole process; a second call would only say that there is one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let options = cli::Options::parse();
    log_to_stderr(options.log_format);
    let result = match options.command {
        cli::Command::Serve(flags) => serve(&flags).await,
        cli::Command::Admin(admin) => cli::admin::run(admin).await.map(|()| ExitCode::SUCCESS),
        cli::Command::CheckConfig(flags) => flags.config().map(|config| {
            print!("{config}");
            ExitCode::SUCCESS
        }),
        cli::Command::Version => {
            println!("sealift-orchestrator {}", env!("CARGO_PKG_VERSION"));
            Ok(ExitCode::SUCCESS)
        }
    };
    result.unwrap_or_else(|error| {
        eprintln!("sealift-orchestrator: {error:#}");
        ExitCode::from(exit_code(&error))
    })
}

fn exit_code(error: &anyhow::Error) -> u8 {
    if error.is::<sealift_orchestrator::config::ConfigError>() {
        return CONFIGURATION;
    }
    match error.downcast_ref::<StartError>() {
        Some(StartError::Config(_)) => CONFIGURATION,
        Some(_) => ENVIRONMENT,
        None => FAILED,
    }
}

fn log_to_stderr(format: cli::LogFormat) {
    let filter = EnvFilter::builder()
        .with_default_directive(tracing::Level::INFO.into())
        .from_env_lossy();
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match format {
        cli::LogFormat::Text => logs.init(),
        cli::LogFormat::Json => logs.json().flatten_event(true).init(),
    }
}

async fn serve(flags: &cli::ServeFlags) -> anyhow::Result<ExitCode> {
    let config = flags.config()?;
    // Before anything is opened: a signal during the start must not be lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let running = Orchestrator::start(config, Arc::new(SystemClock)).await?;
    if let Some(address) = running.address {
        tracing::info!(%address, ca = %running.app.identity.ca.digest(), "sealift-orchestrator serves");
    }
    supervisor::ready();
    tokio::select! {
        _ = terminate.recv() => tracing::info!("asked to go down (SIGTERM)"),
        _ = interrupt.recv() => tracing::info!("asked to go down (SIGINT)"),
        () = running.ended() => tracing::error!("a listener or a loop ended by itself"),
        never = supervisor::watchdog() => match never {},
    }
    supervisor::stopping();
    let failed = running.has_ended();
    let clean = running.stop().await;
    tracing::info!(clean, "sealift-orchestrator has gone down");
    Ok(match (failed, clean) {
        (true, _) => ExitCode::from(FAILED),
        (false, true) => ExitCode::SUCCESS,
        (false, false) => ExitCode::from(UNCLEAN),
    })
}
