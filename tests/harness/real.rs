//! The real binaries, a real engine, a real registry: what a user would have on one machine.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use tokio::{
    process::{Child, Command},
    time::timeout,
};

use crate::commands::{psql, run};
pub use crate::{
    commands::{docker, docker_at},
    wait::{PATIENCE, eventually},
};

/// File of the orchestrator's settings.
const SETTINGS: &str = "orchestrator.toml";
/// Where every test's project comes from.
pub const PROJECT: &str = "example.com/acme/shop/web";

/// Which database the orchestrator uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Database {
    /// The embedded default.
    Sqlite,
    /// A database of its own on the server that `SEALIFT_TEST_POSTGRES_URL` names.
    Postgres,
}

/// An image that `tests/run` has pushed to the test registry: `OK_1`, `OK_2`, `UNHEALTHY`.
pub fn image(name: &str) -> Result<String> {
    let variable = format!("SEALIFT_TEST_IMAGE_{name}");
    std::env::var(&variable).with_context(|| format!("{variable} is not set: run this through tests/run"))
}

/// A compose file with one service that stops quickly.
pub fn compose(image: &str) -> String {
    format!("services:\n  web:\n    image: {image}\n    restart: unless-stopped\n    stop_grace_period: 2s\n")
}

/// A commit that nobody else uses.
pub fn commit(number: u32) -> String {
    format!("{number:040x}")
}

fn binary(name: &str) -> Result<PathBuf> {
    let folder = if let Some(folder) = std::env::var_os("SEALIFT_TEST_BIN_DIR") {
        PathBuf::from(folder)
    } else {
        // target/debug/deps/<test> → target/debug
        let test = std::env::current_exe()?;
        test.ancestors()
            .nth(2)
            .context("the test runs outside a target folder")?
            .to_owned()
    };
    let path = folder.join(name);
    ensure!(
        path.exists(),
        "{} is missing: build with `cargo build --workspace --all-targets`",
        path.display()
    );
    Ok(path)
}

/// A free port on loopback.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}

/// An agent process with its state folder.
pub struct Agent {
    /// `environment/target`.
    pub target: String,
    /// Where it dials in place of the orchestrator itself: what stands between the two.
    pub dials: Option<String>,
    /// The program with its arguments that runs it: a tracer, another clock.
    pub under: Vec<String>,
    state: PathBuf,
    log: PathBuf,
    child: Option<Child>,
}

impl Agent {
    /// What it has logged so far.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Its state folder.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().and_then(Child::id)
    }

    /// Whether the process is there.
    pub fn is_running(&mut self) -> bool {
        self.child
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)))
    }

    /// SIGKILL.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Waits until the process has ended by itself.
    pub async fn ended(&mut self) -> Result<ExitStatus> {
        let mut child = self.child.take().context("the agent does not run")?;
        match timeout(PATIENCE, child.wait()).await {
            Ok(status) => Ok(status?),
            Err(_) => bail!("the agent did not end; its log:\n{}", self.log()),
        }
    }
}

/// An orchestrator with its agents. Everything that it started and made ends with [`System::end`].
pub struct System {
    folder: TempDir,
    orchestrator: Option<Child>,
    port: u16,
    database_url: Option<String>,
    database: Option<String>,
    /// The engine of the hosts, when it is not the one that the environment names.
    pub engine: Option<String>,
    /// Further environment variables of the orchestrator.
    pub variables: Vec<(String, String)>,
    /// The agents, in the order in which they joined.
    pub agents: Vec<Agent>,
}

impl System {
    /// Starts an orchestrator on an empty database and makes the user `ada` (admin), whom [`System::sealift`] acts as.
    pub async fn start(database: Database) -> Result<Self> {
        Self::start_with(database, "").await
    }

    /// As [`System::start`] with settings of the orchestrator.
    pub async fn start_with(database: Database, settings: &str) -> Result<Self> {
        let folder = TempDir::with_prefix("sealift-e2e-")?;
        fs::write(folder.path().join(SETTINGS), settings)?;
        let mut system = Self {
            folder,
            orchestrator: None,
            port: free_port()?,
            database_url: None,
            database: None,
            engine: None,
            variables: Vec::new(),
            agents: Vec::new(),
        };
        if database == Database::Postgres {
            system.make_database().await?;
        }
        system.start_orchestrator().await?;
        system.issue("ada", "admin").await?;
        Ok(system)
    }

    async fn make_database(&mut self) -> Result<()> {
        let server = std::env::var("SEALIFT_TEST_POSTGRES_URL")
            .context("SEALIFT_TEST_POSTGRES_URL is not set: run this through tests/run")?;
        let name = format!("sealift_e2e_{}", self.port).to_lowercase() + &std::process::id().to_string();
        psql(&server, &format!("CREATE DATABASE {name}")).await?;
        let (head, _) = server.rsplit_once('/').context("a database URL has a path")?;
        self.database_url = Some(format!("{head}/{name}"));
        self.database = Some(name);
        Ok(())
    }

    /// The folder of everything.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the orchestrator listens.
    pub fn endpoint(&self) -> String {
        format!("https://127.0.0.1:{}", self.port)
    }

    /// URL of the orchestrator's database, for those who look at it past the orchestrator.
    pub fn database_url(&self) -> String {
        let embedded = || format!("sqlite:{}", self.data().join("sealift.db").display());
        self.database_url.clone().unwrap_or_else(embedded)
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("orchestrator")
    }

    /// What the orchestrator has logged so far.
    pub fn orchestrator_log(&self) -> String {
        fs::read_to_string(self.folder.path().join("orchestrator.log")).unwrap_or_default()
    }

    /// Starts the orchestrator (again) and waits until it answers.
    pub async fn start_orchestrator(&mut self) -> Result<()> {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.folder.path().join("orchestrator.log"))?;
        let mut command = Command::new(binary("sealift-orchestrator")?);
        command
            .arg("serve")
            .arg("--config")
            .arg(self.folder.path().join(SETTINGS))
            .arg("--data-dir")
            .arg(self.data())
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", self.port));
        if let Some(url) = &self.database_url {
            command.arg("--database-url").arg(url);
        }
        command.envs(self.variables.iter().map(|(name, value)| (name, value)));
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        self.orchestrator = Some(command.spawn()?);
        let (socket, port) = (self.data().join("admin.sock"), self.port);
        let ready = eventually("the orchestrator listens", async || {
            if let Some(status) = self
                .orchestrator
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten())
            {
                bail!("the orchestrator ended with {status}");
            }
            let listening = tokio::net::TcpStream::connect(("127.0.0.1", port)).await.is_ok();
            Ok((socket.exists() && listening).then_some(()))
        });
        ready.await.with_context(|| self.orchestrator_log())
    }

    /// The orchestrator's process.
    pub fn orchestrator_pid(&self) -> Option<u32> {
        self.orchestrator.as_ref().and_then(Child::id)
    }

    /// The embedded database.
    pub fn database_file(&self) -> PathBuf {
        self.data().join("sealift.db")
    }

    /// SIGKILL for the orchestrator.
    pub async fn kill_orchestrator(&mut self) -> Result<()> {
        if let Some(mut child) = self.orchestrator.take() {
            child.kill().await?;
        }
        Ok(())
    }

    /// Runs `sealift-orchestrator admin`, which must succeed; gives what it wrote.
    pub async fn admin(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new(binary("sealift-orchestrator")?);
        command.args(["admin", "--data-dir"]).arg(self.data());
        if let Some(url) = &self.database_url {
            command.arg("--database-url").arg(url);
        }
        command.args(arguments);
        let output = run(command, None).await?;
        ensure!(
            output.status.success(),
            "admin {} failed: {}",
            arguments.join(" "),
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Issues a client certificate; its folder is `folder()/user`.
    pub async fn issue(&self, user: &str, role: &str) -> Result<PathBuf> {
        let out = self.folder.path().join(user);
        let (endpoint, folder) = (self.endpoint(), out.to_string_lossy().into_owned());
        let arguments = [
            "issue",
            user,
            "--role",
            role,
            "--endpoint",
            &endpoint,
            "--out",
            &folder,
        ];
        self.admin(&arguments).await?;
        Ok(out)
    }

    /// Runs `sealift` as a user and gives exit code, standard output and standard error.
    pub async fn sealift_as(&self, user: &str, arguments: &[&str]) -> Result<(i32, String, String)> {
        self.later(user, arguments)?.await
    }

    /// `sealift` as a user, to be started.
    pub fn command(&self, user: &str, arguments: &[&str]) -> Result<Command> {
        let mut command = Command::new(binary("sealift")?);
        let context = self.folder.path().join(user).join("context.toml");
        command.args(arguments).env("SEALIFT_CONTEXT_FILE", context);
        command
            .env_remove("SEALIFT_CONTEXT")
            .env_remove("SEALIFT_ENDPOINT");
        Ok(command)
    }

    /// The same as something that runs on its own, while this system is killed and started again.
    pub fn later(
        &self,
        user: &str,
        arguments: &[&str],
    ) -> Result<impl Future<Output = Result<(i32, String, String)>> + Send + use<>> {
        let command = self.command(user, arguments)?;
        Ok(async move {
            let output = run(command, None).await?;
            let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
            Ok((
                output.status.code().unwrap_or(-1),
                text(output.stdout),
                text(output.stderr),
            ))
        })
    }

    /// Runs `sealift` as `ada`; it must succeed.
    pub async fn sealift(&self, arguments: &[&str]) -> Result<String> {
        let (code, out, errors) = self.sealift_as("ada", arguments).await?;
        ensure!(
            code == 0,
            "sealift {} ended with {code}:\n{out}{errors}",
            arguments.join(" ")
        );
        Ok(out)
    }

    /// Runs `sealift -o json` as `ada`; it must succeed.
    pub async fn json(&self, arguments: &[&str]) -> Result<Value> {
        let mut all = arguments.to_vec();
        all.extend(["-o", "json"]);
        Ok(serde_json::from_str(&self.sealift(&all).await?)?)
    }

    /// Makes an environment.
    pub async fn environment(&self, name: &str, position: u32) -> Result<()> {
        self.sealift(&["env", "create", name, "--position", &position.to_string()])
            .await
            .map(drop)
    }

    /// Makes a target, lets an agent join it and starts the agent.
    pub async fn target(&mut self, target: &str) -> Result<usize> {
        self.target_with(target, &[]).await
    }

    /// Makes a target whose agent has further environment variables.
    pub async fn target_with(&mut self, target: &str, environment: &[(&str, &str)]) -> Result<usize> {
        self.target_of("docker-host", target, environment).await
    }

    /// Makes a target of a kind, lets an agent join it and starts the agent.
    pub async fn target_of(
        &mut self,
        kind: &str,
        target: &str,
        environment: &[(&str, &str)],
    ) -> Result<usize> {
        let index = self.enrol(kind, target, environment).await?;
        self.start_agent(index, environment).await?;
        Ok(index)
    }

    /// Makes a target and lets an agent join it that does not run yet.
    pub async fn enrol(&mut self, kind: &str, target: &str, environment: &[(&str, &str)]) -> Result<usize> {
        self.sealift(&["target", "create", target, "--kind", kind])
            .await?;
        let token = self.sealift(&["target", "token", target]).await?;
        let state = self.folder.path().join("agents").join(target);
        // The agent makes its own folder, which nobody else may enter.
        fs::create_dir_all(state.parent().context("a state folder has a parent")?)?;
        let mut command = Command::new(binary("sealift-agent")?);
        command.arg("join").arg("--state-dir").arg(&state);
        command.args(["--orchestrator", &self.endpoint(), "--token-stdin"]);
        command.envs(self.engine_variable());
        command.envs(environment.iter().copied());
        let output = run(command, Some(&token)).await?;
        ensure!(
            output.status.success(),
            "{target} did not join: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let log = state.with_extension("log");
        self.agents.push(Agent {
            target: target.to_owned(),
            dials: None,
            under: Vec::new(),
            state,
            log,
            child: None,
        });
        Ok(self.agents.len() - 1)
    }

    fn engine_variable(&self) -> Option<(&'static str, &str)> {
        let socket = self.engine.as_deref()?;
        Some(("DOCKER_HOST", socket))
    }

    /// Starts an agent (again), with further environment variables, and waits until it is online.
    pub async fn start_agent(&mut self, index: usize, environment: &[(&str, &str)]) -> Result<()> {
        self.spawn_agent(index, environment)?;
        let target = self.agents[index].target.clone();
        eventually(&format!("the agent of {target} is online"), async || {
            let seen = self.json(&["target", "get", &target]).await?;
            // An agent whose engine is away is there all the same.
            let there = ["online", "degraded"]
                .iter()
                .any(|status| seen["agentStatus"] == *status);
            Ok(there.then_some(()))
        })
        .await
        .with_context(|| format!("agent log:\n{}", self.agents[index].log()))
    }

    /// Starts an agent (again) without waiting.
    pub fn spawn_agent(&mut self, index: usize, environment: &[(&str, &str)]) -> Result<()> {
        let endpoint = self.endpoint();
        let engine = self.engine.clone();
        let agent = self.agents.get_mut(index).context("no such agent")?;
        let endpoint = agent.dials.clone().unwrap_or(endpoint);
        let log = File::options().create(true).append(true).open(&agent.log)?;
        let program = binary("sealift-agent")?;
        let mut command = match agent.under.split_first() {
            None => Command::new(program),
            Some((under, arguments)) => {
                let mut command = Command::new(under);
                command.args(arguments).arg(program);
                command
            }
        };
        if let Some(socket) = engine {
            command.env("DOCKER_HOST", socket);
        }
        command
            .arg("run")
            .arg("--state-dir")
            .arg(&agent.state)
            .args(["--orchestrator", &endpoint]);
        command.envs(environment.iter().copied());
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        agent.child = Some(command.spawn()?);
        Ok(())
    }

    /// Makes a release of the one-service compose file and gives its number.
    pub async fn release(&self, image: &str, commit_number: u32) -> Result<u64> {
        self.release_of(&compose(image), commit_number).await
    }

    /// Makes a release of a compose file and gives its number.
    pub async fn release_of(&self, compose: &str, commit_number: u32) -> Result<u64> {
        self.release_for("docker-host", compose, commit_number).await
    }

    /// Makes a release of a compose file for a kind of target and gives its number.
    pub async fn release_for(&self, kind: &str, compose: &str, commit_number: u32) -> Result<u64> {
        number(&self.register(kind, compose, commit_number).await?["number"])
    }

    /// Makes a release, or finds the one of that commit and content, as the command line shows it.
    pub async fn register(&self, kind: &str, compose: &str, commit_number: u32) -> Result<Value> {
        let file = self.folder.path().join(format!("compose-{commit_number}.yaml"));
        fs::write(&file, compose)?;
        let source = format!("{PROJECT}@{}", commit(commit_number));
        let file = file.to_string_lossy().into_owned();
        self.json(&[
            "release", "create", "-f", &file, "--source", &source, "--kind", kind,
        ])
        .await
    }

    /// Promotes and waits; gives the exit code and everything that was said.
    pub async fn promote(&self, release: u64, environment: &str, more: &[&str]) -> Result<(i32, String)> {
        let alias = format!("shop/web#{release}");
        let mut arguments = vec![
            "promote",
            &alias,
            "--to",
            environment,
            "--wait",
            "--timeout",
            "2m",
        ];
        arguments.extend(["--min-healthy", "1s"]);
        arguments.extend(more);
        let (code, out, errors) = self.sealift_as("ada", &arguments).await?;
        Ok((code, out + &errors))
    }

    /// Identifiers of the running containers of a target, sorted.
    pub async fn running(&self, target: &str) -> Result<Vec<String>> {
        let uid = self.json(&["target", "get", target]).await?["uid"]
            .as_str()
            .context("uid")?
            .to_owned();
        let filter = format!("label=dev.sealift.target-id={uid}");
        let output = self
            .docker(&["ps", "--no-trunc", "--quiet", "--filter", &filter])
            .await?;
        let mut ids: Vec<_> = output.lines().map(str::to_owned).collect();
        ids.sort();
        Ok(ids)
    }

    /// References of the images that run on a target, sorted.
    pub async fn running_images(&self, target: &str) -> Result<Vec<String>> {
        let mut images = Vec::new();
        for id in self.running(target).await? {
            images.push(
                self.docker(&["inspect", "--format", "{{.Config.Image}}", &id])
                    .await?
                    .trim()
                    .to_owned(),
            );
        }
        images.sort();
        Ok(images)
    }

    /// Runs the command-line tool of the hosts' engine.
    pub async fn docker(&self, arguments: &[&str]) -> Result<String> {
        docker_at(self.engine.as_deref(), arguments).await
    }

    /// Ends all processes and takes away everything that they made on the engine.
    pub async fn end(mut self) -> Result<()> {
        for agent in &mut self.agents {
            agent.kill().await?;
            let mut command = Command::new(binary("sealift-agent")?);
            command.args(["purge", "--yes", "--state-dir"]).arg(&agent.state);
            if let Some(socket) = &self.engine {
                command.env("DOCKER_HOST", socket);
            }
            let output = run(command, None).await?;
            ensure!(
                output.status.success(),
                "purge failed: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        self.kill_orchestrator().await?;
        if let (Some(name), Ok(server)) = (&self.database, std::env::var("SEALIFT_TEST_POSTGRES_URL")) {
            psql(&server, &format!("DROP DATABASE {name} WITH (FORCE)")).await?;
        }
        Ok(())
    }
}

/// A 64-bit number of proto JSON (a string).
pub fn number(value: &Value) -> Result<u64> {
    value
        .as_str()
        .unwrap_or("0")
        .parse()
        .with_context(|| format!("{value} is not a number"))
}
