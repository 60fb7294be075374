//! Programs that run to their end: the engine's and the database's command-line tools.

use std::{
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tokio::{io::AsyncWriteExt as _, process::Command, time::timeout};

/// Longest run of one command.
const COMMAND_DEADLINE: Duration = Duration::from_secs(150);

/// Runs the engine's command-line tool.
pub async fn docker(arguments: &[&str]) -> Result<String> {
    docker_at(None, arguments).await
}

/// Runs the command-line tool of the engine at a socket.
pub async fn docker_at(engine: Option<&str>, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new("docker");
    command.args(arguments);
    if let Some(socket) = engine {
        command.env("DOCKER_HOST", socket);
    }
    let output = run(command, None).await?;
    ensure!(
        output.status.success(),
        "docker {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs a statement at a database server.
pub async fn psql(server: &str, statement: &str) -> Result<()> {
    let mut command = Command::new("psql");
    command.args(["--no-psqlrc", "--quiet", "--command", statement, server]);
    let output = run(command, None).await?;
    ensure!(
        output.status.success(),
        "psql: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// Runs a command to its end, with a deadline.
pub async fn run(mut command: Command, input: Option<&str>) -> Result<Output> {
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
        .spawn()?;
    if let (Some(input), Some(mut stdin)) = (input, child.stdin.take()) {
        stdin.write_all(input.as_bytes()).await?;
    }
    Ok(timeout(COMMAND_DEADLINE, child.wait_with_output())
        .await
        .context("a command took too long")??)
}
