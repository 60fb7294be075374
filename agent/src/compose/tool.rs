//! Tool: runs the host's Compose, the v2 plug-in of the engine's command line or the v1 program. Every call has a deadline and a
//! bound on its output, is a process group of its own, and is ended with it when nobody waits any more. No shell is involved.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    path::Path,
    process::Stdio,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process_group};
use sealift_common::failure::{Failure, FailureCode};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    process::Command,
    time::{sleep, timeout},
};

use super::files::{self, LOCK_BYTES, ProjectFiles};

/// How long asking for the version may take.
const DETECT_DEADLINE: Duration = Duration::from_secs(20);
/// How long a Compose that an earlier agent left may take to be gone.
const CLAIM_TRIES: u32 = 100;
const CLAIM_PAUSE: Duration = Duration::from_millis(100);
/// Bytes of messages that are kept: the last ones.
const MESSAGE_BYTES: usize = 16 * 1024;

/// The program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tool {
    program: OsString,
    first: Option<&'static str>,
    version: String,
}

/// One call.
#[derive(Debug)]
pub struct Call<'a> {
    /// Whose files it works on.
    pub files: &'a ProjectFiles,
    /// Its whole environment.
    pub environment: Vec<(OsString, OsString)>,
    /// What to do.
    pub arguments: Vec<OsString>,
    /// How long it may take.
    pub deadline: Duration,
}

/// What a call said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// Whether it ended with 0.
    pub success: bool,
    /// Its answer.
    pub output: Vec<u8>,
    /// Its messages.
    pub messages: String,
}

/// Ends a process group when it goes out of scope.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            // Already gone is as good.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

fn broken(summary: impl Into<String>) -> Failure {
    Failure::new(FailureCode::ComposeUnavailable, summary)
}

impl fmt::Display for Tool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({})", self.version, Path::new(&self.program).display())
    }
}

impl Tool {
    /// The program that is `configured`, else the plug-in, else the v1 program.
    pub async fn detect(configured: Option<&Path>) -> Option<Self> {
        let candidates: Vec<(OsString, Option<&'static str>)> = match configured {
            Some(path) => {
                let is_cli = path.file_name() == Some(OsStr::new("docker"));
                vec![(path.into(), is_cli.then_some("compose"))]
            }
            None => vec![
                ("docker".into(), Some("compose")),
                ("docker-compose".into(), None),
            ],
        };
        for (program, first) in candidates {
            let mut command = Command::new(&program);
            command.args(first).args(["version", "--short"]);
            command
                .env_clear()
                .env("PATH", super::PATH)
                .env("LANG", "C.UTF-8");
            let said = run(command, None, DETECT_DEADLINE).await;
            let version = match said {
                Ok(said) if said.success => version(&String::from_utf8_lossy(&said.output)),
                _ => None,
            };
            if let Some(version) = version {
                return Some(Self {
                    program,
                    first,
                    version,
                });
            }
        }
        None
    }

    /// Its version: `1.29.2`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether a network or volume of a later file takes the place of the earlier one's whole: v1 does not merge them.
    pub fn replaces_entries(&self) -> bool {
        self.version.starts_with("1.")
    }

    /// Makes a call. The project is claimed for as long as it lasts; a Compose that an earlier agent left at work there is ended.
    pub async fn call(&self, call: Call<'_>) -> Result<Said, Failure> {
        let claimed = claim(call.files).await?;
        let folder = call.files.folder().to_owned();
        let mut command = Command::new(&self.program);
        command.args(self.first).args(&call.arguments);
        command.env_clear().envs(call.environment).current_dir(folder);
        run(command, Some(claimed), call.deadline).await
    }
}

/// `1.29.2`, `v2.30.0`, `2.30.0-desktop.1`.
fn version(text: &str) -> Option<String> {
    let text = text.trim();
    let text = text.strip_prefix('v').unwrap_or(text);
    let legal = |c: char| c.is_ascii_alphanumeric() || ".-+".contains(c);
    let is_version =
        text.len() <= 64 && text.starts_with(|c: char| c.is_ascii_digit()) && text.chars().all(legal);
    is_version.then(|| text.to_owned())
}

async fn claim(files: &ProjectFiles) -> Result<std::fs::File, Failure> {
    let unusable =
        |error: std::io::Error| broken("the project's folder cannot be used").with_detail(error.to_string());
    for _ in 0..CLAIM_TRIES {
        match files.claim().map_err(unusable)? {
            Ok(file) => return Ok(file),
            Err(holder) => {
                drop(Group(holder.and_then(Pid::from_raw)));
                sleep(CLAIM_PAUSE).await;
            }
        }
    }
    Err(broken("another Compose works on the project and does not end"))
}

async fn run(
    mut command: Command,
    claimed: Option<std::fs::File>,
    deadline: Duration,
) -> Result<Said, Failure> {
    let unstartable =
        |error: std::io::Error| broken("the host's Compose cannot be started").with_detail(error.to_string());
    // The program inherits the claim: it lasts as long as the last of its processes, also when the agent is killed.
    let stdin = match &claimed {
        Some(file) => Stdio::from(file.try_clone().map_err(unstartable)?),
        None => Stdio::null(),
    };
    let mut child = command
        .stdin(stdin)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .process_group(0)
        .kill_on_drop(true)
        .spawn()
        .map_err(unstartable)?;
    let id = child.id();
    let _group = Group(id.and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    if let (Some(file), Some(id)) = (&claimed, id) {
        files::sign(file, id).map_err(unstartable)?;
    }
    let (stdout, stderr) = (child.stdout.take(), child.stderr.take());
    let work = async {
        tokio::join!(
            beginning(stdout, LOCK_BYTES),
            ending(stderr, MESSAGE_BYTES),
            child.wait()
        )
    };
    let Ok((output, messages, status)) = timeout(deadline, work).await else {
        let summary = format!("the host's Compose did not end within {} s", deadline.as_secs());
        return Err(Failure::new(FailureCode::ComposeTimeout, summary));
    };
    let success = status.map_err(unstartable)?.success();
    let Some(output) = output else {
        return Err(broken("the host's Compose says more than can be read"));
    };
    Ok(Said {
        success,
        output,
        messages,
    })
}

/// All that comes, if it is not more than `most`.
async fn beginning(reader: Option<impl AsyncRead + Unpin>, most: usize) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut reader = reader?;
    // A pipe that breaks ends the output as its end would.
    let _ = (&mut reader).take(most as u64 + 1).read_to_end(&mut bytes).await;
    (bytes.len() <= most).then_some(bytes)
}

/// The end of all that comes.
async fn ending(reader: Option<impl AsyncRead + Unpin>, most: usize) -> String {
    let mut kept: Vec<u8> = Vec::new();
    let mut piece = [0; 4096];
    if let Some(mut reader) = reader {
        while let Ok(read @ 1..) = reader.read(&mut piece).await {
            kept.extend_from_slice(piece.get(..read).unwrap_or_default());
            let over = kept.len().saturating_sub(most);
            kept.drain(..over);
        }
    }
    String::from_utf8_lossy(&kept)
        .chars()
        .filter(|c| *c == '\n' || !c.is_control())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::{os::unix::fs::PermissionsExt as _, path::PathBuf};

    use super::*;

    fn program(dir: &Path, script: &str) -> PathBuf {
        let path = dir.join("docker-compose");
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    async fn call(dir: &Path, script: &str, deadline: Duration) -> Result<Said, Failure> {
        let tool = Tool {
            program: program(dir, script).into(),
            first: None,
            version: String::new(),
        };
        let files = ProjectFiles::new(dir.join("project"));
        let call = Call {
            files: &files,
            environment: vec![("A".into(), "1".into())],
            arguments: vec!["config".into()],
            deadline,
        };
        tool.call(call).await
    }

    const LONG: Duration = Duration::from_secs(30);

    #[tokio::test]
    async fn a_program_is_found_by_its_version() {
        let dir = tempfile::tempdir().unwrap();
        let path = program(dir.path(), "[ \"$*\" = 'version --short' ] && echo v2.30.1");
        let tool = Tool::detect(Some(&path)).await.unwrap();
        assert_eq!(tool.version(), "2.30.1");
        assert_eq!(
            Tool::detect(Some(Path::new("/nowhere/docker-compose"))).await,
            None
        );
        let path = program(dir.path(), "echo hello world");
        assert_eq!(Tool::detect(Some(&path)).await, None);
    }

    #[tokio::test]
    async fn t18_nothing_of_the_agents_environment_reaches_the_program() {
        let dir = tempfile::tempdir().unwrap();
        let said = call(dir.path(), "/usr/bin/env; echo \"$*\"; echo oh >&2; exit 3", LONG)
            .await
            .unwrap();
        let output = String::from_utf8(said.output).unwrap();
        assert!(!said.success);
        assert_eq!(said.messages, "oh\n");
        assert!(output.contains("A=1") && output.ends_with("config\n"), "{output}");
        assert!(!output.contains("CARGO"), "{output}");
    }

    #[tokio::test]
    async fn r14_a_program_that_hangs_is_ended_with_all_its_children() {
        let dir = tempfile::tempdir().unwrap();
        let mark = dir.path().join("pid");
        let script = format!("sleep 600 & echo $! > {}; wait", mark.display());
        let ended = call(dir.path(), &script, Duration::from_secs(2))
            .await
            .unwrap_err();
        assert_eq!(ended.code, FailureCode::ComposeTimeout);
        let child: i32 = std::fs::read_to_string(mark).unwrap().trim().parse().unwrap();
        let stat = format!("/proc/{child}/stat");
        let gone = || std::fs::read_to_string(&stat).map_or(true, |text| text.contains(") Z "));
        timeout(LONG, async {
            while !gone() {
                sleep(Duration::from_millis(10)).await;
            }
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn f28_a_flood_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let flood = call(dir.path(), "head -c 9000000 /dev/zero | tr '\\0' x", LONG).await;
        assert_eq!(flood.unwrap_err().code, FailureCode::ComposeUnavailable);
        let said = call(
            dir.path(),
            "head -c 9000000 /dev/zero | tr '\\0' x >&2; echo end >&2",
            LONG,
        )
        .await
        .unwrap();
        assert!(said.messages.len() <= MESSAGE_BYTES && said.messages.ends_with("end\n"));
    }

    #[tokio::test]
    async fn r1_what_an_earlier_agent_left_at_work_is_ended_first() {
        let dir = tempfile::tempdir().unwrap();
        let files = ProjectFiles::new(dir.path().join("project"));
        let claimed = files.claim().unwrap().unwrap();
        let mut left = Command::new("sleep")
            .arg("600")
            .stdin(Stdio::from(claimed.try_clone().unwrap()))
            .process_group(0)
            .spawn()
            .unwrap();
        files::sign(&claimed, left.id().unwrap()).unwrap();
        drop(claimed);
        let said = call(dir.path(), "echo done", LONG).await.unwrap();
        assert_eq!(said.output, b"done\n");
        assert!(!left.wait().await.unwrap().success());
    }
}
