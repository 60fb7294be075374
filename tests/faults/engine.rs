//! A container engine of the suite's own, which may be killed, stopped and filled without harm to any other. Laid out as
//! `deploy/lib/engine.sh` does, whose clean-up ends what a killed suite leaves behind.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use sealift_e2e::{
    commands::{docker_at, run},
    real::eventually,
};
use tempfile::TempDir;
use tokio::process::{Child, Command};

use crate::signal::{self, Signal};

const GONE: Duration = Duration::from_secs(30);

/// The engine.
pub struct Engine {
    folder: TempDir,
    data: PathBuf,
    bridge: String,
    daemon: Option<Child>,
}

impl Engine {
    /// Starts one that keeps its data in `data`, or in its own folder.
    pub async fn start(data: Option<&Path>) -> Result<Self> {
        let folder = TempDir::with_prefix("sealift-engine.")?;
        let bridge = make_bridge(folder.path()).await?;
        fs::write(folder.path().join("bridge"), &bridge)?;
        fs::write(folder.path().join("daemon.json"), "{}\n")?;
        let data = data.map_or_else(|| folder.path().join("data"), Into::into);
        let mut engine = Self {
            folder,
            data,
            bridge,
            daemon: None,
        };
        if let Err(error) = engine.launch().await {
            engine.end().await?;
            return Err(error);
        }
        Ok(engine)
    }

    /// The socket's path.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("docker.sock")
    }

    /// As `DOCKER_HOST` has it.
    pub fn address(&self) -> String {
        format!("unix://{}", self.socket().display())
    }

    fn name(&self) -> String {
        let name = self.folder.path().extension().unwrap_or_default();
        name.to_string_lossy().into_owned()
    }

    /// Starts it (again) and waits until it answers.
    pub async fn launch(&mut self) -> Result<()> {
        let at = |name: &str| self.folder.path().join(name);
        let log = File::options().create(true).append(true).open(at("log"))?;
        let mut command = Command::new("dockerd");
        command.arg("--config-file").arg(at("daemon.json"));
        command.arg("--data-root").arg(&self.data);
        command.arg("--exec-root").arg(at("exec"));
        command.arg("--pidfile").arg(at("pid"));
        command.args(["--host", &self.address(), "--bridge", &self.bridge]);
        command.args(["--iptables=false", "--ip-masq=false", "--userland-proxy=true"]);
        let name = self.name();
        command.args(["--containerd-namespace", &format!("sealift-{name}")]);
        command.args([
            "--containerd-plugins-namespace",
            &format!("sealift-plugins-{name}"),
        ]);
        command
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .kill_on_drop(true);
        self.daemon = Some(command.spawn().context("dockerd cannot be started")?);
        let address = self.address();
        let answers = eventually("the private engine answers", async || {
            let ended = self
                .daemon
                .as_mut()
                .and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                bail!("dockerd ended with {status}");
            }
            let asked = docker_at(Some(&address), &["version", "--format", "{{.Server.Version}}"]).await;
            Ok(asked.ok())
        });
        answers.await.map(drop).with_context(|| self.log())
    }

    fn log(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        let lines: Vec<_> = log.lines().rev().take(20).collect();
        lines.into_iter().rev().collect::<Vec<_>>().join("\n")
    }

    /// Sends a signal to the engine itself.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.daemon.as_ref().and_then(Child::id);
        signal::send(pid.context("the engine does not run")?, signal)
    }

    /// SIGKILL for the engine and for the containerd that it leaves behind.
    pub async fn kill(&mut self) -> Result<()> {
        if let Some(mut daemon) = self.daemon.take() {
            daemon.kill().await?;
        }
        self.sweep(Signal::KILL).await
    }

    /// An orderly end, as an upgrade's.
    pub async fn stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let mut daemon = self.daemon.take().context("the engine does not run")?;
        let ended = tokio::time::timeout(GONE, daemon.wait()).await;
        ended.context("the engine does not end")??;
        self.sweep(Signal::TERM).await
    }

    /// Ends the engine's own containerd and removes what it finds its way by, or the next start finds them and waits.
    async fn sweep(&self, signal: Signal) -> Result<()> {
        let containerd = self.folder.path().join("exec/containerd");
        let file = containerd.join("containerd.pid");
        let pid = fs::read_to_string(&file)
            .ok()
            .and_then(|text| text.trim().parse().ok());
        if let Some(pid) = pid {
            let program = fs::read_link(format!("/proc/{pid}/exe")).unwrap_or_default();
            if program.ends_with("containerd") {
                signal::send(pid, signal)?;
                signal::gone(pid, GONE).await?;
            }
        }
        for left in [
            file,
            containerd.join("containerd.sock"),
            self.folder.path().join("pid"),
            self.socket(),
        ] {
            match fs::remove_file(left) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        Ok(())
    }

    /// Ends it with its containers and networks.
    pub async fn end(mut self) -> Result<()> {
        let is_up = self
            .daemon
            .as_mut()
            .is_some_and(|child| matches!(child.try_wait(), Ok(None)));
        if !is_up {
            // What was left running can only be ended by an engine.
            self.sweep(Signal::KILL).await?;
            self.launch().await?;
        }
        self.signal(Signal::CONT)?;
        let address = self.address();
        let all = docker_at(Some(&address), &["ps", "--all", "--quiet"]).await?;
        let mut remove = vec!["rm", "--force", "--volumes"];
        remove.extend(all.split_whitespace());
        if remove.len() > 3 {
            docker_at(Some(&address), &remove).await?;
        }
        docker_at(Some(&address), &["network", "prune", "--force"]).await?;
        self.stop().await?;
        unmount_below(self.folder.path()).await?;
        command("ip", &["link", "del", &self.bridge]).await?;
        Ok(())
    }
}

/// Runs a program that must succeed.
pub async fn command(program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(program);
    command.args(arguments);
    let output = run(command, None).await?;
    ensure!(
        output.status.success(),
        "{program} {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// What engines leave mounted, deepest first.
async fn unmount_below(folder: &Path) -> Result<()> {
    let mounts = fs::read_to_string("/proc/mounts")?;
    let mut below: Vec<&str> = mounts
        .lines()
        .filter_map(|line| line.split(' ').nth(1))
        .filter(|path| Path::new(path).starts_with(folder))
        .collect();
    below.sort_unstable();
    for path in below.into_iter().rev() {
        command("umount", &["--lazy", path]).await?;
    }
    Ok(())
}

/// A bridge on a network that nothing uses, named after the engine's folder.
async fn make_bridge(folder: &Path) -> Result<String> {
    let unique = folder
        .extension()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let bridge = format!("sl{unique}");
    let routes = command("ip", &["-4", "route", "show"]).await?;
    let seed = unique
        .bytes()
        .fold(0_usize, |sum, byte| sum * 31 + usize::from(byte));
    let free = (0..64).map(|offset| seed + offset * 7).find_map(|number| {
        let net = format!("172.{}.{}", 20 + number % 12, number / 12 % 256);
        let taken = routes
            .lines()
            .any(|line| line.starts_with(&format!("172.{}.", 20 + number % 12)));
        (!taken).then_some(net)
    });
    let net = free.context("no free network for the private engine's bridge")?;
    command("ip", &["link", "add", "name", &bridge, "type", "bridge"]).await?;
    command("ip", &["addr", "add", &format!("{net}.1/24"), "dev", &bridge]).await?;
    command("ip", &["link", "set", &bridge, "up"]).await?;
    Ok(bridge)
}
