//! `sealift dev`: an orchestrator and a local agent in one command, to try things out. Not for production.
//!
//! It starts the two real binaries that are installed beside this one, so what is tried is what is run later.

use std::{
    fs::{self, File},
    net::TcpListener,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use clap::Args;
use sealift_proto::v1::{
    CreateEnvironmentRequest, CreateJoinTokenRequest, CreateTargetRequest, Environment, GetTargetRequest,
    Target, environment::Class, target::Kind,
};
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpStream, UnixStream},
    process::{Child, Command},
    time::{Instant, sleep, timeout},
};
use tonic::{Code, transport::Channel};

use crate::{
    client::{client, connect_context, request_id, unary},
    commands::context::Lent,
    context::Context,
    error::{CliError, Exit},
    output::text::clean,
};

/// Longest wait for a part to come up.
const START_DEADLINE: Duration = Duration::from_mins(1);
/// Lines of a part's log that are shown when it failed.
const LAST_LINES: usize = 5;
/// Longest wait for a part to go down by itself.
const STOP_DEADLINE: Duration = Duration::from_secs(20);

/// How to run it.
#[derive(Debug, Args)]
pub struct DevArgs {
    /// Keep everything here and go on with it the next time; without it all is gone at the end.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Port of the orchestrator on loopback; a free one without.
    #[arg(long)]
    port: Option<u16>,
    /// Name of the context that is selected while it runs.
    #[arg(long, default_value = "dev")]
    name: String,
}

pub async fn run(args: DevArgs) -> Result<Exit, CliError> {
    let kept = args.data.is_some();
    let data = match &args.data {
        // The agent takes no other.
        Some(data) => {
            std::path::absolute(data).map_err(|error| CliError::file(data, "cannot be used", error))?
        }
        None => std::env::temp_dir().join(format!("sealift-dev-{}", request_id())),
    };
    // Before anything is started: most likely another one runs under this name.
    Lent::check(&args.name, &data)?;
    make_private(&data)?;
    let mut system = System {
        data: data.clone(),
        children: Vec::new(),
        context: None,
    };
    let outcome = tokio::select! {
        outcome = system.run(&args) => outcome,
        _ = tokio::signal::ctrl_c() => Ok(()),
        () = terminated() => Ok(()),
    };
    anstream::eprintln!("stopping ...");
    system.stop(!kept).await;
    if let Some(Err(error)) = system.context.take().map(Lent::give_back) {
        error.print();
    }
    if !kept {
        drop(fs::remove_dir_all(&data));
    }
    outcome.map(|()| Exit::Done)
}

/// SIGTERM, as service managers and other programs send it.
async fn terminated() {
    match tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate()) {
        Ok(mut signal) => drop(signal.recv().await),
        Err(_) => std::future::pending().await,
    }
}

struct System {
    data: PathBuf,
    children: Vec<(&'static str, Child)>,
    context: Option<Lent>,
}

impl System {
    async fn run(&mut self, args: &DevArgs) -> Result<(), CliError> {
        let port = args.port.map_or_else(free_port, Ok)?;
        let endpoint = format!("https://127.0.0.1:{port}");
        let orchestrator_data = self.data.join("orchestrator");
        make_private(&orchestrator_data)?;
        let mut serve = Command::new(beside("sealift-orchestrator")?);
        serve
            .arg("serve")
            .arg("--data-dir")
            .arg(&orchestrator_data)
            .arg("--listen")
            .arg(format!("127.0.0.1:{port}"));
        self.start("orchestrator", serve)?;
        let socket = orchestrator_data.join("admin.sock");
        let ready = async || answers(&socket).await && TcpStream::connect(("127.0.0.1", port)).await.is_ok();
        self.until("the orchestrator", ready).await?;

        let identity = self.data.join("admin");
        let mut issue = Command::new(beside("sealift-orchestrator")?);
        issue.args(["admin", "--data-dir"]).arg(&orchestrator_data);
        issue
            .args([
                "issue",
                "admin",
                "--role",
                "admin",
                "--endpoint",
                &endpoint,
                "--out",
            ])
            .arg(&identity);
        finish("issuing a certificate", issue, None).await?;
        let file = identity.join("context.toml");
        let context = Context::read(&file)?;
        let channel = connect_context(&context).await?;

        let agent_data = self.data.join("agent");
        if inventory(&channel).await? {
            let token = join_token(&channel).await?;
            let mut join = Command::new(beside("sealift-agent")?);
            join.arg("join").arg("--state-dir").arg(&agent_data);
            join.args(["--orchestrator", &endpoint, "--token-stdin"]);
            finish("enrolling the agent", join, Some(&token)).await?;
        }
        let mut agent = Command::new(beside("sealift-agent")?);
        agent
            .arg("run")
            .arg("--state-dir")
            .arg(&agent_data)
            .args(["--orchestrator", &endpoint]);
        self.start("agent", agent)?;
        self.until("the agent", async || agent_online(&channel).await)
            .await?;

        self.context = Some(Lent::lend(&args.name, &file)?);
        self.greet(args, &endpoint);
        self.watch().await
    }

    fn greet(&self, args: &DevArgs, endpoint: &str) {
        let kept = if args.data.is_some() {
            "kept for the next time"
        } else {
            "gone when this ends; --data DIR keeps it"
        };
        anstream::println!(
            "Sealift runs at {endpoint}, with one environment `dev` and one target `dev/local` on this host's engine."
        );
        anstream::println!("Data and logs: {} ({kept})", self.data.display());
        anstream::println!(
            "The context `{}` is selected as long as this runs. Try in another terminal:",
            args.name
        );
        anstream::println!("  sealift status");
        anstream::println!(
            "  sealift release create -f compose.yaml --source example.com/acme/shop/api@$(git rev-parse HEAD)"
        );
        anstream::println!("  sealift promote shop/api#1 --to dev --wait");
        anstream::println!("This is for trying things out, not for production. Ctrl-C stops it.");
    }

    fn start(&mut self, name: &'static str, mut command: Command) -> Result<(), CliError> {
        let path = self.data.join(format!("{name}.log"));
        let failed = |error| {
            let hint = "the three programs belong into one folder, or on the PATH";
            CliError::local(format!("the {name} cannot be started"), hint, error)
        };
        let log = File::create(&path).map_err(failed)?;
        let errors = log.try_clone().map_err(failed)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(errors)
            // Ctrl-C reaches the whole foreground group; we stop our children ourselves, in order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        self.children.push((name, child));
        Ok(())
    }

    /// Waits until `ready`, but not longer than the deadline or the life of the children.
    async fn until(&mut self, what: &str, ready: impl AsyncFn() -> bool) -> Result<(), CliError> {
        let deadline = Instant::now() + START_DEADLINE;
        while !ready().await {
            self.check()?;
            if Instant::now() > deadline {
                return Err(CliError::failed(
                    format!("{what} did not come up within {} s", START_DEADLINE.as_secs()),
                    format!("read the logs in {}", self.data.display()),
                ));
            }
            sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    fn check(&mut self) -> Result<(), CliError> {
        for (name, child) in &mut self.children {
            if let Ok(Some(status)) = child.try_wait() {
                let log = self.data.join(format!("{name}.log"));
                print_end(&fs::read_to_string(&log).unwrap_or_default());
                return Err(CliError::failed(
                    format!("the {name} ended by itself ({status})"),
                    format!("its log is {}", log.display()),
                ));
            }
        }
        Ok(())
    }

    async fn watch(&mut self) -> Result<(), CliError> {
        loop {
            self.check()?;
            sleep(Duration::from_millis(500)).await;
        }
    }

    /// Stops the agent before the orchestrator; with `purge` the agent first takes away the containers that it made.
    async fn stop(&mut self, purge: bool) {
        while let Some((name, mut child)) = self.children.pop() {
            terminate(&mut child).await;
            if purge
                && name == "agent"
                && let Ok(binary) = beside("sealift-agent")
            {
                let mut command = Command::new(binary);
                command
                    .args(["purge", "--yes", "--state-dir"])
                    .arg(self.data.join("agent"));
                if let Err(error) = finish("taking away what the agent made", command, None).await {
                    error.print();
                }
            }
        }
    }
}

/// Whether somebody listens at a socket. A process that was killed leaves the file behind.
async fn answers(socket: &Path) -> bool {
    UnixStream::connect(socket).await.is_ok()
}

/// The last lines of what a part said, each cleaned on its own.
fn print_end(text: &str) {
    let lines: Vec<_> = text.lines().collect();
    for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
        anstream::eprintln!("  {}", clean(line));
    }
}

/// SIGTERM by the `kill` program (this crate has no unsafe code), then SIGKILL after the deadline.
async fn terminate(child: &mut Child) {
    if let Some(pid) = child.id() {
        drop(
            Command::new("kill")
                .arg(pid.to_string())
                .stderr(Stdio::null())
                .status()
                .await,
        );
    }
    if timeout(STOP_DEADLINE, child.wait()).await.is_err() {
        drop(child.kill().await);
    }
}

/// Runs a command to its end, with a text on standard input.
async fn finish(what: &str, mut command: Command, input: Option<&str>) -> Result<(), CliError> {
    let failed = |error: std::io::Error| {
        let hint = "the three programs belong into one folder, or on the PATH";
        CliError::local(format!("{what} failed"), hint, error)
    };
    let stdin = if input.is_some() {
        Stdio::piped()
    } else {
        Stdio::null()
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(failed)?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes()).await.map_err(failed)?;
    }
    let output = timeout(START_DEADLINE, child.wait_with_output())
        .await
        .map_err(|_| {
            CliError::failed(
                format!("{what} took longer than {} s", START_DEADLINE.as_secs()),
                "look at the host's load",
            )
        })?;
    let output = output.map_err(failed)?;
    if output.status.success() {
        return Ok(());
    }
    print_end(&String::from_utf8_lossy(&output.stderr));
    Err(CliError::failed(
        format!("{what} failed ({})", output.status),
        "the lines above say why",
    ))
}

/// Makes environment and target unless they exist; whether the target still needs an agent.
async fn inventory(channel: &Channel) -> Result<bool, CliError> {
    let mut environments = client!(
        environment_service_client,
        EnvironmentServiceClient,
        channel.clone()
    );
    let environment = Environment {
        display_name: "Try-outs".to_owned(),
        position: 1,
        class: Class::NonProduction.into(),
        ..Default::default()
    };
    let request = CreateEnvironmentRequest {
        request_id: request_id(),
        environment_id: "dev".to_owned(),
        environment: Some(environment),
    };
    known_is_fine(environments.create_environment(unary(request)).await)?;
    let mut targets = client!(target_service_client, TargetServiceClient, channel.clone());
    let request = CreateTargetRequest {
        request_id: request_id(),
        parent: "environments/dev".to_owned(),
        target_id: "local".to_owned(),
        target: Some(Target {
            kind: Kind::DockerHost.into(),
            ..Default::default()
        }),
    };
    known_is_fine(targets.create_target(unary(request)).await)?;
    Ok(local_target(channel).await?.agent.is_empty())
}

fn known_is_fine<T>(outcome: Result<T, tonic::Status>) -> Result<(), CliError> {
    match outcome {
        Err(status) if status.code() != Code::AlreadyExists => Err(status.into()),
        _ => Ok(()),
    }
}

const LOCAL: &str = "environments/dev/targets/local";

async fn local_target(channel: &Channel) -> Result<Target, CliError> {
    let mut targets = client!(target_service_client, TargetServiceClient, channel.clone());
    let answer = targets
        .get_target(unary(GetTargetRequest {
            name: LOCAL.to_owned(),
        }))
        .await?;
    Ok(answer.into_inner().target.unwrap_or_default())
}

async fn agent_online(channel: &Channel) -> bool {
    local_target(channel)
        .await
        .is_ok_and(|target| target.agent_status == "online")
}

async fn join_token(channel: &Channel) -> Result<String, CliError> {
    let mut targets = client!(target_service_client, TargetServiceClient, channel.clone());
    let request = CreateJoinTokenRequest {
        request_id: request_id(),
        name: LOCAL.to_owned(),
        life_seconds: 0,
    };
    Ok(targets
        .create_join_token(unary(request))
        .await?
        .into_inner()
        .token)
}

fn make_private(path: &Path) -> Result<(), CliError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|error| CliError::file(path, "cannot be made", error))
}

/// A program installed beside this one, else one on the path.
fn beside(name: &str) -> Result<PathBuf, CliError> {
    let here = std::env::current_exe()
        .map_err(|error| CliError::local("this program cannot find itself", "is /proc mounted?", error))?;
    let candidate = here.with_file_name(name);
    Ok(if candidate.exists() {
        candidate
    } else {
        PathBuf::from(name)
    })
}

fn free_port() -> Result<u16, CliError> {
    TcpListener::bind(("127.0.0.1", 0))
        .and_then(|listener| listener.local_addr())
        .map(|address| address.port())
        .map_err(|error| CliError::local("there is no free port on loopback", "give one with --port", error))
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    #[tokio::test]
    async fn a_socket_that_a_killed_process_left_behind_is_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("admin.sock");
        assert!(!answers(&socket).await);
        drop(UnixListener::bind(&socket).unwrap());
        assert!(socket.exists() && !answers(&socket).await);
        fs::remove_file(&socket).unwrap();
        let _listener = UnixListener::bind(&socket).unwrap();
        assert!(answers(&socket).await);
    }
}
