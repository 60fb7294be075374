//! `sealift-agent`: joins a host, runs the agent, examines the host.

mod supervisor;

use std::{
    io::{IsTerminal as _, Read as _},
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::{Args, Parser, Subcommand};
use sealift_agent::{
    agent::{self, AgentOptions, StateLock, hostname},
    config::{
        ComposeSettings, Config, EngineSettings, LogFormat, LogSettings, PolicySettings, PruneSettings,
        Settings, UpdateSettings,
    },
    connect::Finish,
    doctor::{self, Verdict},
    enrol,
    host::{Host as _, docker::DockerHost},
    identity::IdentityStore,
    program::{
        files::Files,
        launcher::{self, DISMISSED, Launched, Launcher, Start, own_version},
    },
};
use sealift_common::{inventory::AgentFacts, join_token::JoinToken, time::SystemClock};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// Name of the credential of the systemd unit that holds the registries' credentials.
const REGISTRIES: &str = "sealift-agent.docker-config";
/// Largest token file.
const TOKEN_BYTES: u64 = 4 * 1024;
/// How long the end of the process waits for work on files.
const ENDING: Duration = Duration::from_secs(10);

/// The agent of Sealift: deploys by digest on its host and proves what it did.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(flatten)]
    settings: Flags,
    #[command(subcommand)]
    command: What,
}

#[derive(Debug, Args)]
struct Flags {
    /// Settings file (TOML).
    #[arg(long, global = true, env = "SEALIFT_AGENT_CONFIG")]
    config: Option<PathBuf>,
    /// Where identity, journal and stickers are kept.
    #[arg(long, global = true, env = "SEALIFT_AGENT_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// The orchestrator, https://host:port.
    #[arg(long, global = true, env = "SEALIFT_AGENT_ORCHESTRATOR")]
    orchestrator: Option<String>,
    /// Socket of the container engine, unix:///path. Without it DOCKER_HOST counts, then unix:///var/run/docker.sock.
    #[arg(long, global = true, env = "SEALIFT_AGENT_ENGINE_SOCKET")]
    engine_socket: Option<String>,
    /// Docker configuration file with the registries' credentials.
    #[arg(long, global = true, env = "SEALIFT_AGENT_DOCKER_CONFIG_FILE")]
    docker_config_file: Option<PathBuf>,
    /// Directory of the credentials that systemd gave the unit.
    #[arg(long, global = true, env = "CREDENTIALS_DIRECTORY", hide = true)]
    credentials_directory: Option<PathBuf>,
    /// What is logged: info, debug, or a filter such as sealift_agent=debug,warn.
    #[arg(long, global = true, env = "SEALIFT_AGENT_LOG_LEVEL")]
    log_level: Option<String>,
    /// How log lines look.
    #[arg(long, global = true, env = "SEALIFT_AGENT_LOG_FORMAT")]
    log_format: Option<LogFormat>,
}

/// What the launcher tells a program that it starts.
#[derive(Debug, Args)]
struct LaunchFlags {
    /// The packaged program.
    #[arg(long, env = launcher::LAUNCHER, hide = true)]
    launcher: Option<PathBuf>,
    /// Its version.
    #[arg(long, env = launcher::PACKAGED, hide = true)]
    packaged: Option<semver::Version>,
    /// What kept another program from being started.
    #[arg(long, env = launcher::PROBLEM, hide = true)]
    problem: Option<String>,
    /// Process id of the parent that supervises this program.
    #[arg(long, env = launcher::SUPERVISOR, hide = true)]
    supervisor: Option<i32>,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Enrol this host with a join token (from `sealift target token`).
    Join(JoinArgs),
    /// Run the agent.
    Run(LaunchFlags),
    /// Examine this host: engine, disk, identity, orchestrator.
    Doctor,
    /// Take away every container and network that this agent made; named volumes stay. The agent must not be running.
    Purge {
        /// Do it; without this it only says what it would do.
        #[arg(long)]
        yes: bool,
    },
    /// Print the version.
    Version,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Join {
    /// File that holds the join token.
    #[arg(long)]
    token_file: Option<PathBuf>,
    /// Read the join token from standard input.
    #[arg(long)]
    token_stdin: bool,
    /// The join token itself. Other users of the host can see it while the command runs: prefer a file.
    #[arg(long)]
    token: Option<String>,
}

#[derive(Debug, Args)]
struct JoinArgs {
    #[command(flatten)]
    from: Join,
    /// This host has an agent already, which gets another target; it may be running.
    #[arg(long)]
    add_target: bool,
}

fn main() -> ExitCode {
    begin(Cli::parse()).unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

fn begin(cli: Cli) -> anyhow::Result<ExitCode> {
    let config = settings(cli.settings)?;
    let What::Run(flags) = cli.command else {
        let runtime = runtime()?;
        let code = runtime.block_on(start(config, cli.command));
        runtime.shutdown_timeout(ENDING);
        return code;
    };
    log(&config)?;
    let launched = match launched(&config, flags)? {
        Start::Here(launched) => launched,
        Start::Ended(code) => return Ok(ExitCode::from(code)),
    };
    let runtime = runtime()?;
    let finish = runtime.block_on(run(config, launched.clone()));
    // What looks at a file system that hangs has no end to wait for.
    runtime.shutdown_timeout(ENDING);
    let finish = finish?;
    Ok(match finish {
        Finish::Stopped => ExitCode::SUCCESS,
        Finish::HandedOver => {
            let arguments: Vec<_> = std::env::args_os().skip(1).collect();
            let code = launched.hand_over(&arguments);
            ExitCode::from(code.context("the other program cannot be started")?)
        }
        Finish::Dismissed { reason } => {
            eprintln!(
                "error: the orchestrator has revoked this agent ({reason}); to serve again, enrol the host anew with a new state directory"
            );
            ExitCode::from(DISMISSED)
        }
    })
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the asynchronous runtime cannot start")
}

/// How this process is to run: as the agent, because it was started to be, or as the launcher finds.
fn launched(config: &Config, flags: LaunchFlags) -> anyhow::Result<Start> {
    if let Some(launcher) = flags.launcher {
        if let Some(parent) = flags.supervisor {
            end_with(parent)?;
        }
        return Ok(Start::Here(Launched {
            launcher: Some(launcher),
            packaged: flags.packaged.unwrap_or_else(own_version),
            is_supervised: flags.supervisor.is_some(),
            problem: flags.problem,
            ..Launched::default()
        }));
    }
    let files = Files::new(&config.state_dir);
    let program = std::env::current_exe().context("this program's own path is not known")?;
    // No order has ever brought another.
    if !files.has_marker() {
        return Ok(Start::Here(Launched {
            launcher: Some(program),
            ..Launched::default()
        }));
    }
    // One thread: the programs that it starts end with the thread that started them.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("the asynchronous runtime cannot start")?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let launcher = Launcher {
            files,
            program,
            version: own_version(),
            arguments: std::env::args_os().skip(1).collect(),
            beat: &supervisor::on_trial,
            stop: stop.clone(),
        };
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let signals = async {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            stop.cancel();
            std::future::pending::<std::convert::Infallible>().await
        };
        tokio::select! {
            start = launcher.launch() => Ok(start),
            never = signals => match never {},
        }
    })
}

/// Ends this process with its parent, so that never two programs of one agent run.
fn end_with(parent: i32) -> anyhow::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))
        .context("the end of the launcher would not be noticed")?;
    let now = rustix::process::getppid().map(rustix::process::Pid::as_raw_nonzero);
    if now.is_none_or(|now| now.get() != parent) {
        bail!("the launcher is gone");
    }
    Ok(())
}

async fn start(config: Config, command: What) -> anyhow::Result<ExitCode> {
    match command {
        What::Version => println!("sealift-agent {}", env!("CARGO_PKG_VERSION")),
        What::Join(JoinArgs {
            from,
            add_target: true,
        }) => add_target(&config, &from).await?,
        What::Join(JoinArgs { from, .. }) => join(&config, &from).await?,
        What::Doctor => return Ok(examine(&config).await),
        What::Run(_) => bail!("an agent is begun elsewhere"),
        What::Purge { yes } => purge(&config, yes).await?,
    }
    Ok(ExitCode::SUCCESS)
}

fn settings(flags: Flags) -> anyhow::Result<Config> {
    let file = flags
        .config
        .as_deref()
        .map(Settings::read)
        .transpose()?
        .unwrap_or_default();
    let given = Settings {
        state_dir: flags.state_dir,
        orchestrator: flags.orchestrator,
        engine: EngineSettings {
            socket: flags.engine_socket,
            docker_config_file: flags.docker_config_file,
        },
        log: LogSettings {
            level: flags.log_level,
            format: flags.log_format,
        },
        compose: ComposeSettings::default(),
        policy: PolicySettings::default(),
        prune: PruneSettings::default(),
        update: UpdateSettings::default(),
    };
    let around = Settings::of_docker_host(std::env::var("DOCKER_HOST").ok());
    let mut settings = given.over(file).over(around);
    let credential = flags
        .credentials_directory
        .map(|directory| directory.join(REGISTRIES));
    if settings.engine.docker_config_file.is_none() {
        settings.engine.docker_config_file = credential.filter(|file| file.exists());
    }
    Ok(settings.check()?)
}

fn token(from: &Join) -> anyhow::Result<JoinToken> {
    let read = |path: &Path| {
        let file = std::fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut text = String::new();
        file.take(TOKEN_BYTES)
            .read_to_string(&mut text)
            .with_context(|| format!("cannot read {}", path.display()))?;
        anyhow::Ok(text)
    };
    let text = match (&from.token, &from.token_file) {
        (Some(text), _) => text.clone(),
        (None, Some(path)) => read(path)?,
        (None, None) => {
            let mut text = String::new();
            std::io::stdin()
                .take(TOKEN_BYTES)
                .read_to_string(&mut text)
                .context("cannot read standard input")?;
            text
        }
    };
    Ok(text.trim().parse()?)
}

async fn join(config: &Config, from: &Join) -> anyhow::Result<()> {
    let token = token(from)?;
    let Some(endpoint) = &config.orchestrator else {
        bail!("name the orchestrator with --orchestrator https://host:port");
    };
    let mut facts = AgentFacts {
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capabilities: vec!["docker_host".to_owned()],
        hostname: hostname(),
        ..AgentFacts::default()
    };
    // A host may join before its engine runs.
    if let Ok(host) = docker(config)
        && let Ok(engine) = host.engine().await
    {
        facts.engine = format!("{} {}", engine.name, engine.version);
        facts.engine_api = engine.api;
        facts.platform = engine.platform;
    }
    let identity = enrol::join(&config.state_dir, endpoint, &token, facts)
        .await
        .context("this host was not enrolled")?;
    for binding in &identity.bindings {
        println!(
            "enrolled as agent {} for target {} in {}",
            identity.agent_id, binding.target, binding.environment
        );
    }
    println!(
        "next: sealift-agent run --state-dir {}",
        config.state_dir.display()
    );
    Ok(())
}

async fn add_target(config: &Config, from: &Join) -> anyhow::Result<()> {
    let token = token(from)?;
    let binding = enrol::add_target(&config.state_dir, config.orchestrator.as_ref(), &token)
        .await
        .context("the target was not added")?;
    println!(
        "this host's agent serves {} in {} from now on; it need not be started again",
        binding.target, binding.environment
    );
    Ok(())
}

fn docker(config: &Config) -> anyhow::Result<DockerHost> {
    DockerHost::connect(&config.engine_socket, config.docker_config_file.as_deref())
        .with_context(|| format!("the engine at {} cannot be used", config.engine_socket))
}

async fn examine(config: &Config) -> ExitCode {
    let host = docker(config).ok();
    let lines = doctor::examine(config, host.as_ref(), &SystemClock).await;
    for line in &lines {
        println!("{line}");
    }
    if lines.iter().any(|line| line.verdict == Verdict::Fail) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

async fn purge(config: &Config, yes: bool) -> anyhow::Result<()> {
    let store = IdentityStore::open(config.state_dir.clone())?;
    let _lock = StateLock::await_free(&config.state_dir).await?;
    let Some(enrolled) = store.load()? else {
        println!(
            "{} holds no enrolled agent, so there is nothing to take away",
            config.state_dir.display()
        );
        return Ok(());
    };
    let targets = &enrolled.identity.bindings;
    if !yes {
        for target in targets {
            println!(
                "would take away all containers and networks of {}/{}",
                target.environment, target.target
            );
        }
        bail!("nothing was done: say --yes to do it");
    }
    let purged = sealift_agent::purge::purge(&docker(config)?, targets).await?;
    println!(
        "{} containers and {} networks taken away",
        purged.containers, purged.networks
    );
    Ok(())
}

async fn run(config: Config, launched: Launched) -> anyhow::Result<Finish> {
    let host = docker(&config)?;
    let shutdown = CancellationToken::new();
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let options = AgentOptions {
        config,
        host,
        clock: Arc::new(SystemClock),
        dice: Arc::new(rand::random::<f64>),
        launched,
        hostname: hostname(),
        notices: Arc::new(supervisor::tell),
        shutdown: shutdown.clone(),
    };
    let agent = Box::pin(agent::run(options));
    let signals = async {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        supervisor::stopping();
        shutdown.cancel();
        std::future::pending::<std::convert::Infallible>().await
    };
    tokio::select! {
        finish = agent => Ok(finish?),
        never = signals => match never {},
        never = supervisor::watchdog() => match never {},
    }
}

fn log(config: &Config) -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_new(&config.log_level)
        .with_context(|| format!("log.level: {:?} is not a log filter", config.log_level))?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}
