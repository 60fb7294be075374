//! Agents exchange their own program by promotion: real agents, a real registry, real images with real programs. What does not work
//! is taken back by the host itself, what nobody trusted signed is refused, and death at any step leaves one program that runs (R10).

use std::{
    fs::{self, File},
    io::Write as _,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result, bail, ensure};
use sealift_agent::{
    kill::{PROGRAM_KILL_POINTS, PROGRAM_RESTORE_KILL_POINTS},
    program::{
        files::{Files, digest_of},
        marker::Marker,
    },
};
use sealift_common::{compose::agents, digest::Digest, keys::SigningKey, program::publisher_text};
use sealift_e2e::real::{Database, System, docker, eventually};
use serde_json::Value;
use tempfile::TempDir;

const ENVIRONMENT: &str = "agents";
/// The version that the programs of this build say of themselves.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// A system, a publisher, and agents that trust it.
struct Stage {
    system: System,
    folder: TempDir,
    settings: String,
    made: u32,
}

/// How an image is spoiled.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spoil {
    Nothing,
    Publisher,
    Platform,
    Version,
    Truncated,
    Unsigned,
}

impl Stage {
    async fn start(agents: &[&str]) -> Result<Self> {
        let system = System::start(Database::Sqlite).await?;
        let folder = TempDir::with_prefix("sealift-programs-")?;
        for (name, seed) in [("publisher", 7), ("stranger", 8)] {
            let key = SigningKey::from_seed(&[seed; 32]);
            let pem = key.to_pem()?;
            fs::write(folder.path().join(format!("{name}.pem")), pem.as_bytes())?;
        }
        let settings = folder.path().join("agent.toml");
        let trusted = publisher_text(&SigningKey::from_seed(&[7; 32]).public());
        fs::write(&settings, format!("[update]\npublishers = [\"{trusted}\"]\n"))?;
        let mut stage = Self {
            settings: settings.to_string_lossy().into_owned(),
            system,
            folder,
            made: 0,
        };
        stage.system.environment(ENVIRONMENT, 5).await?;
        for agent in agents {
            let target = format!("{ENVIRONMENT}/{agent}");
            let index = stage.system.enrol("agent-host", &target, &[]).await?;
            stage.run(index, None).await?;
        }
        Ok(stage)
    }

    /// Starts an agent (again) and waits until it is online.
    async fn run(&mut self, index: usize, kill_at: Option<&str>) -> Result<()> {
        let settings = self.settings.clone();
        let mut environment = vec![("SEALIFT_AGENT_CONFIG", settings.as_str())];
        environment.extend(kill_at.map(|point| ("SEALIFT_AGENT_KILL_AT", point)));
        self.system.start_agent(index, &environment).await
    }

    /// A program that does what agents do and is another file than all others.
    fn good(&mut self) -> Result<PathBuf> {
        self.made += 1;
        let path = self.folder.path().join(format!("good-{}", self.made));
        let built = program_of_this_build()?;
        let status = std::process::Command::new("strip")
            .arg("--strip-debug")
            .arg("-o")
            .arg(&path)
            .arg(&built)
            .status();
        if !status.is_ok_and(|status| status.success()) {
            fs::copy(&built, &path)?;
        }
        // What comes after the last section of a program means nothing to the system.
        let mut file = File::options().append(true).open(&path)?;
        writeln!(file, "program {} of {}", self.made, self.folder.path().display())?;
        Ok(path)
    }

    /// A program that is a script.
    fn script(&mut self, text: &str) -> Result<PathBuf> {
        self.made += 1;
        let path = self.folder.path().join(format!("script-{}", self.made));
        fs::write(&path, format!("#!/bin/sh\n# {}\n{text}\n", self.made))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        Ok(path)
    }

    /// Signs a program, puts it into an image, makes a release of that; gives its number and the program's digest.
    async fn release(&mut self, program: &Path, spoil: Spoil) -> Result<(u64, Digest)> {
        self.made += 1;
        let context = self.folder.path().join(format!("image-{}", self.made));
        fs::create_dir(&context)?;
        let file = context.join("sealift-agent");
        fs::copy(program, &file)?;
        let key = if spoil == Spoil::Publisher {
            "stranger.pem"
        } else {
            "publisher.pem"
        };
        let key = self.folder.path().join(key).to_string_lossy().into_owned();
        let version = if spoil == Spoil::Version { "0.0.1" } else { VERSION };
        let path = file.to_string_lossy().into_owned();
        let mut arguments = vec![
            "agent",
            "sign-program",
            &path,
            "--key",
            &key,
            "--program-version",
            version,
        ];
        if spoil == Spoil::Platform {
            arguments.extend(["--platform", "plan9/mips"]);
        }
        let said = self.system.sealift(&arguments).await?;
        ensure!(said.contains("publishers = [\"ed25519:"), "{said}");
        if spoil == Spoil::Truncated {
            let whole = fs::metadata(&file)?.len();
            File::options().write(true).open(&file)?.set_len(whole / 2)?;
        }
        let copied = if spoil == Spoil::Unsigned {
            "COPY sealift-agent /\n"
        } else {
            "COPY sealift-agent sealift-agent.dsse.json /\n"
        };
        fs::write(context.join("Dockerfile"), format!("FROM scratch\n{copied}"))?;
        let registry = std::env::var("SEALIFT_TEST_REGISTRY")
            .context("SEALIFT_TEST_REGISTRY is not set: run this through tests/run")?;
        let name = format!(
            "{registry}/sealift-test/agent:{}-{}",
            std::process::id(),
            self.made
        );
        let folder = context.to_string_lossy().into_owned();
        docker(&["build", "--quiet", "--tag", &name, &folder]).await?;
        docker(&["push", "--quiet", &name]).await?;
        let digest = digest_of(&file)?.0;
        fs::remove_dir_all(&context)?;
        let number = self
            .system
            .release_for("agent-host", &agents::document(&name), self.made)
            .await?;
        Ok((number, digest))
    }

    async fn promote(&self, release: u64, more: &[&str]) -> Result<(i32, String)> {
        self.promote_within("60s", release, more).await
    }

    async fn promote_within(&self, deadline: &str, release: u64, more: &[&str]) -> Result<(i32, String)> {
        let mut all = vec!["--healthy-deadline", deadline];
        all.extend(more);
        self.system.promote(release, ENVIRONMENT, &all).await
    }

    fn marker(&self, index: usize) -> Result<Marker> {
        Ok(Files::new(self.system.agents[index].state()).marker()?)
    }

    /// The program that an agent really runs: of its process, or of the child that this supervises.
    fn runs(&self, index: usize) -> Result<Digest> {
        let pid = self.system.agents[index]
            .pid()
            .context("the agent does not run")?;
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        let agent = children
            .split_whitespace()
            .find(|child| {
                fs::read_to_string(format!("/proc/{child}/cmdline"))
                    .is_ok_and(|line| line.contains("--state-dir"))
            })
            .map_or_else(|| pid.to_string(), str::to_owned);
        Ok(digest_of(Path::new(&format!("/proc/{agent}/exe")))?.0)
    }

    /// Waits until the host itself reports which program runs, and that nothing drifts.
    async fn settled(&self, index: usize, wanted: Digest) -> Result<()> {
        let target = self.system.agents[index].target.clone();
        let what = format!("{target} reports what it runs");
        let seen = eventually(&what, async || {
            let seen = self.system.json(&["target", "get", &target]).await?;
            let observed = &seen["observed"][0];
            let runs = observed["container"]["id"] == format!("sealift-agent@{}", wanted.short())
                && observed["unchanged"] == true;
            let online = seen["agentStatus"] == "online" || seen["agentStatus"] == "degraded";
            let drifts = seen["drift"].as_array().is_some_and(|drift| !drift.is_empty());
            Ok((online && !drifts && runs).then_some(seen))
        });
        let seen = seen.await.with_context(|| self.system.agents[index].log())?;
        ensure!(
            self.runs(index)? == wanted,
            "{seen}\n{}",
            self.system.agents[index].log()
        );
        ensure!(seen["agentVersion"] == VERSION, "{seen}");
        Ok(())
    }

    async fn packets(&self) -> Result<Vec<Value>> {
        let list = self.system.json(&["evidence", "list"]).await?;
        Ok(list["packets"].as_array().cloned().unwrap_or_default())
    }
}

fn program_of_this_build() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("SEALIFT_TEST_BIN_DIR") {
        return Ok(PathBuf::from(folder).join("sealift-agent"));
    }
    let test = std::env::current_exe()?;
    let folder = test.ancestors().nth(2);
    let folder = folder.context("the test runs outside a target folder")?;
    Ok(folder.join("sealift-agent"))
}

#[tokio::test]
async fn r10_r15_agents_are_updated_in_waves_and_rolled_back() -> Result<()> {
    let mut stage = Stage::start(&["web-1", "web-2"]).await?;
    let packaged = digest_of(&program_of_this_build()?)?.0;
    let (one, two) = (stage.good()?, stage.good()?);
    let (first, one) = stage.release(&one, Spoil::Nothing).await?;
    let (second, two) = stage.release(&two, Spoil::Nothing).await?;
    for index in 0..2 {
        ensure!(
            stage.runs(index)? == packaged,
            "the packaged program runs at first"
        );
    }

    let (code, said) = stage.promote(first, &["--rolling", "1"]).await?;
    ensure!(code == 0, "{said}\n{}", stage.system.agents[0].log());
    for index in 0..2 {
        stage.settled(index, one).await?;
        ensure!(
            stage.marker(index)?.trial.is_none(),
            "nothing is on trial any more"
        );
    }
    // From the next start on the new program has the process for itself.
    stage.system.agents[0].kill().await?;
    stage.run(0, None).await?;
    stage.settled(0, one).await?;
    let pid = stage.system.agents[0].pid().context("pid")?;
    ensure!(
        digest_of(Path::new(&format!("/proc/{pid}/exe")))?.0 == one,
        "no launcher in between"
    );

    // The same once more changes nothing, as soon as the agent that was started again has said what runs.
    let again = format!("shop/web#{first}");
    let plan = [
        "promote",
        &again,
        "--to",
        ENVIRONMENT,
        "--plan",
        "--detailed-exitcode",
    ];
    eventually("nothing is left to do", async || {
        let (code, _, _) = stage.system.sealift_as("ada", &plan).await?;
        Ok((code == 0).then_some(()))
    })
    .await?;
    let (code, said) = stage.promote(first, &[]).await?;
    ensure!(code == 0, "{said}");
    // One agent goes on from a program that has the process for itself, the other from one that is supervised.
    let (code, said) = stage.promote(second, &["--canary", "1", "--bake", "1s"]).await?;
    ensure!(code == 0, "{said}\n{}", stage.system.agents[0].log());
    for index in 0..2 {
        stage.settled(index, two).await?;
    }
    stage
        .system
        .sealift(&[
            "rollback",
            ENVIRONMENT,
            "--reason",
            "taste",
            "--wait",
            "--timeout",
            "2m",
        ])
        .await?;
    for index in 0..2 {
        stage.settled(index, one).await?;
    }
    let packets = stage.packets().await?;
    ensure!(packets.len() == 6, "one packet for each exchange: {packets:?}");
    ensure!(
        packets.iter().all(|packet| packet["result"] == "succeeded"),
        "{packets:?}"
    );
    stage.system.end().await
}

#[tokio::test]
async fn r10_a_program_that_does_not_work_is_taken_back_by_the_host() -> Result<()> {
    let mut stage = Stage::start(&["web-1"]).await?;
    let packaged = digest_of(&program_of_this_build()?)?.0;
    let dies = stage.script("exit 1")?;
    let ends = stage.script("exit 0")?;
    let hangs = stage.script("exec sleep 600")?;
    let no_program = stage.folder.path().join("no-program");
    fs::write(&no_program, "this is no program")?;
    for (program, wanted) in [
        (dies, "did not keep running"),
        (ends, "did not keep running"),
        (no_program, "did not keep running"),
        (hangs, "did not come back"),
    ] {
        let (release, _) = stage.release(&program, Spoil::Nothing).await?;
        let (code, said) = stage.promote_within("5s", release, &[]).await?;
        ensure!(
            code == 1 && said.contains("AGENT_UPDATE_NOT_HEALTHY") && said.contains(wanted),
            "{}: {code} {said}\n{}",
            program.display(),
            stage.system.agents[0].log()
        );
        ensure!(stage.runs(0)? == packaged, "the packaged program runs again");
        ensure!(stage.marker(0)?.trial.is_none(), "nothing stays on trial");
    }
    // And the host is as it was: the next good one is taken.
    let good = stage.good()?;
    let (release, digest) = stage.release(&good, Spoil::Nothing).await?;
    let (code, said) = stage.promote(release, &[]).await?;
    ensure!(code == 0, "{said}\n{}", stage.system.agents[0].log());
    stage.settled(0, digest).await?;
    // A program that was changed on the disk is not started; the packaged one says so.
    stage.system.agents[0].kill().await?;
    let path = Files::new(stage.system.agents[0].state()).program(digest);
    // As another file: the process that was killed may still be going down with the old one.
    let mut bytes = fs::read(&path)?;
    bytes.push(b'x');
    fs::remove_file(&path)?;
    fs::write(&path, bytes)?;
    stage.run(0, None).await?;
    ensure!(stage.runs(0)? == packaged, "the packaged program takes over");
    eventually("the host says so", async || {
        let agents = stage.system.json(&["agent", "list"]).await?;
        let degraded = agents["agents"][0]["degraded"].to_string();
        let seen = stage.system.json(&["target", "get", "agents/web-1"]).await?;
        let drifts = seen["drift"].as_array().is_some_and(|drift| !drift.is_empty());
        Ok((drifts && degraded.contains("was changed on the host")).then_some(()))
    })
    .await?;
    stage.system.end().await
}

#[tokio::test]
async fn r4_what_the_host_does_not_trust_touches_nothing() -> Result<()> {
    let mut stage = Stage::start(&["web-1"]).await?;
    let pid = stage.system.agents[0].pid();
    let good = stage.good()?;
    for (spoil, wanted) in [
        (Spoil::Publisher, "no publisher that this host trusts"),
        (Spoil::Platform, "plan9/mips"),
        (Spoil::Version, "takes none before"),
        (Spoil::Truncated, "bytes"),
        (Spoil::Unsigned, "no file /sealift-agent.dsse.json"),
    ] {
        let (release, _) = stage.release(&good, spoil).await?;
        let (code, said) = stage.promote(release, &[]).await?;
        ensure!(code == 1 && said.contains(wanted), "{code} {said}");
        ensure!(
            spoil == Spoil::Unsigned || said.contains("AGENT_UPDATE_REFUSED"),
            "{said}"
        );
        ensure!(stage.marker(0)? == Marker::default(), "the marker is untouched");
        ensure!(
            stage.system.agents[0].pid() == pid && stage.system.agents[0].is_running(),
            "the agent runs on"
        );
    }
    let programs = stage.system.agents[0].state().join("programs");
    let left: Vec<_> = fs::read_dir(&programs)?.collect::<Result<_, _>>()?;
    ensure!(left.is_empty(), "nothing is left behind: {left:?}");

    // A host that trusts nobody says that it cannot do it, and the gate hears it.
    stage.system.agents[0].kill().await?;
    stage.system.start_agent(0, &[]).await?;
    let (release, _) = stage.release(&good, Spoil::Nothing).await?;
    let (code, said) = stage.promote(release, &[]).await?;
    ensure!(code == 3 && said.contains("CAPABILITY_MISSING"), "{code} {said}");
    stage.system.end().await
}

/// The agent dies at each of the points in turn; whoever supervises it starts it again without the fault.
async fn walk(points: &[&str]) -> Result<()> {
    let mut stage = Stage::start(&["web-1"]).await?;
    let bad = stage.script("exec sleep 600")?;
    let programs = [stage.good()?, stage.good()?, bad];
    let mut releases = Vec::new();
    for program in &programs {
        releases.push(stage.release(program, Spoil::Nothing).await?);
    }
    let (code, said) = stage.promote(releases[0].0, &[]).await?;
    ensure!(code == 0, "{said}");
    let mut current = 0;
    for point in points {
        // The way back is met only by a program that fails.
        let next = if point.starts_with("given_up") {
            2
        } else {
            1 - current
        };
        let ended = crash_at(&mut stage, point, releases[next].0)
            .await
            .with_context(|| format!("killed at {point}; agent log:\n{}", stage.system.agents[0].log()))?;
        if ended == "succeeded" {
            current = next;
        }
        stage
            .settled(0, releases[current].1)
            .await
            .with_context(|| format!("killed at {point}: {ended}"))?;
        ensure!(
            stage.marker(0)?.trial.is_none(),
            "killed at {point}: still on trial"
        );
        ensure!(
            next != 2 || ended != "succeeded",
            "a program that hangs has succeeded"
        );
    }
    stage.system.end().await
}

async fn crash_at(stage: &mut Stage, point: &str, release: u64) -> Result<String> {
    let before = stage.packets().await?.len();
    stage.system.agents[0].kill().await?;
    stage.run(0, Some(point)).await?;
    let alias = format!("shop/web#{release}");
    let promotion = stage
        .system
        .json(&[
            "promote",
            &alias,
            "--to",
            ENVIRONMENT,
            "--min-healthy",
            "500ms",
            "--healthy-deadline",
            "12s",
        ])
        .await?;
    let id = promotion["uid"].as_str().context("uid")?.to_owned();
    for _ in 0..1_800 {
        let seen = stage.system.json(&["promotion", "get", &id]).await?;
        if ["STATE_DEPLOYED", "STATE_FAILED"]
            .iter()
            .any(|state| seen["state"] == *state)
        {
            let packets = stage.packets().await?;
            ensure!(packets.len() == before + 1, "{} packets", packets.len() - before);
            let result = packets[0]["result"].as_str().context("result")?.to_owned();
            ensure!(
                (seen["state"] == "STATE_DEPLOYED") == (result == "succeeded"),
                "{seen} {result}"
            );
            if !stage.system.agents[0].is_running() {
                stage.run(0, None).await?;
            }
            return Ok(result);
        }
        if !stage.system.agents[0].is_running() {
            let settings = stage.settings.clone();
            stage
                .system
                .spawn_agent(0, &[("SEALIFT_AGENT_CONFIG", settings.as_str())])?;
        }
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    bail!("no end")
}

/// One point of each phase of an exchange: fetching, writing down, the trial's begin, its start, its proof, the confirmation, the end,
/// and the way back. Each point takes some seconds, so these are all that is walked by default; with `SEALIFT_TEST_FULL=1` it is
/// every point.
const BRIEF: [&str; 8] = [
    "program_copied",
    "switch_journalled",
    "trial_marked",
    "launch_counted",
    "health_wait",
    "program_confirmed",
    "outbox_synced",
    "given_up",
];

/// The points in four parts, so that each test stays short.
fn part(part: usize) -> Vec<&'static str> {
    let is_full = std::env::var_os("SEALIFT_TEST_FULL").is_some_and(|full| full == "1");
    let common = [
        "switch_journalled.before",
        "switch_journalled",
        "health_wait",
        "healthy",
        "commit_journalled",
        "evidence_signed",
        "outbox_synced",
    ];
    let all = PROGRAM_KILL_POINTS
        .iter()
        .chain(&common)
        .chain(PROGRAM_RESTORE_KILL_POINTS)
        .filter(|point| !point.starts_with("program_withdrawn"));
    let walked: Vec<_> = all.filter(|point| is_full || BRIEF.contains(*point)).collect();
    assert!(walked.len() >= BRIEF.len(), "a point of the brief walk is gone");
    walked
        .into_iter()
        .enumerate()
        .filter(|(index, _)| index % 4 == part)
        .map(|(_, point)| *point)
        .collect()
}

#[tokio::test]
async fn r10_killed_at_each_step_of_an_update_first_quarter() -> Result<()> {
    walk(&part(0)).await
}

#[tokio::test]
async fn r10_killed_at_each_step_of_an_update_second_quarter() -> Result<()> {
    walk(&part(1)).await
}

#[tokio::test]
async fn r10_killed_at_each_step_of_an_update_third_quarter() -> Result<()> {
    walk(&part(2)).await
}

#[tokio::test]
async fn r10_killed_at_each_step_of_an_update_fourth_quarter() -> Result<()> {
    walk(&part(3)).await
}
