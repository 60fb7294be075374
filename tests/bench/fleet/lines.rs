//! Lines of JSON between the driver and its processes: a command, then its answer.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines},
    process::{Child as Process, ChildStdin, ChildStdout, Command},
    task::spawn_blocking,
    time::timeout,
};

/// Answers commands of standard input on standard output until the input ends.
pub async fn serve(mut obey: impl AsyncFnMut(Value) -> Result<Value>) -> Result<()> {
    while let Some(line) = spawn_blocking(read_line).await?? {
        let answer = match obey(serde_json::from_str(&line)?).await {
            Ok(answer) => answer,
            Err(error) => json!({ "error": format!("{error:#}") }),
        };
        println!("{answer}");
    }
    Ok(())
}

fn read_line() -> std::io::Result<Option<String>> {
    std::io::stdin().lines().next().transpose()
}

/// A text of a command.
pub fn text<'a>(value: &'a Value, field: &str) -> Result<&'a str> {
    value[field]
        .as_str()
        .with_context(|| format!("{field} in {value}"))
}

/// A number of a command or an answer.
pub fn number(value: &Value, field: &str) -> Result<u64> {
    value[field]
        .as_u64()
        .with_context(|| format!("{field} in {value}"))
}

/// A process of the driver's own program that takes commands. It ends with this value.
pub struct Child {
    process: Process,
    commands: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Child {
    /// Starts this program again as `role`.
    pub fn start(role: &str, arguments: &[&Path]) -> Result<Self> {
        let mut process = Command::new(std::env::current_exe()?)
            .arg(role)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let commands = process.stdin.take().context("its input")?;
        let answers = process.stdout.take().context("its output")?;
        Ok(Self {
            process,
            commands,
            answers: BufReader::new(answers).lines(),
        })
    }

    /// Its number.
    pub fn pid(&self) -> Result<u32> {
        self.process.id().context("the process has ended")
    }

    /// Gives a command and waits for its answer.
    pub async fn ask(&mut self, command: &Value, patience: Duration) -> Result<Value> {
        let work = async {
            self.commands.write_all(format!("{command}\n").as_bytes()).await?;
            self.commands.flush().await?;
            self.answers.next_line().await
        };
        let line = timeout(patience, work)
            .await
            .with_context(|| format!("no answer to {}", command["do"]))??
            .context("the process has ended")?;
        let answer: Value = serde_json::from_str(&line)?;
        if let Some(error) = answer["error"].as_str() {
            bail!("{}: {error}", command["do"]);
        }
        Ok(answer)
    }
}
