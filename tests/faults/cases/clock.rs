//! Clocks that are wrong: F9.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};

use crate::stage::Stage;

/// Where the library is that makes clocks wrong.
fn faketime() -> Result<PathBuf> {
    let folders = fs::read_dir("/usr/lib")?.filter_map(Result::ok);
    let mut found = folders.map(|folder| folder.path().join("faketime/libfaketime.so.1"));
    found
        .find(|path| path.exists())
        .context("libfaketime is not installed")
}

/// F9: the host's clock is elsewhere.
async fn skewed(stage: &mut Stage, offset: &str) -> Result<()> {
    let library = faketime()?;
    let (old, new) = (stage.release("OK_1").await?, stage.release("OK_2").await?);
    let agent = stage.join().await?;
    stage.deploy(old).await?;
    stage.system.agents[agent].kill().await?;
    // Not by the program of that name: it stays between the suite and the agent.
    stage.system.agents[agent].under = vec![
        "env".to_owned(),
        format!("LD_PRELOAD={}", library.display()),
        format!("FAKETIME={offset}"),
    ];
    stage.system.spawn_agent(agent, &[])?;
    let promotion = stage
        .begin(new, &["--offline", "20s", "--max-attempts", "1"])
        .await?;
    stage.either(&promotion, new, old).await?;
    stage.note(format!("{offset}: {}", stage.ended(&promotion).await?));
    // The clock is right again.
    stage.system.agents[agent].kill().await?;
    stage.system.agents[agent].under.clear();
    stage.system.start_agent(agent, &[]).await?;
    stage.deploy(new).await
}

/// F9, a few minutes ahead.
pub async fn clock_ahead(stage: &mut Stage) -> Result<()> {
    skewed(stage, "+3m").await
}

/// F9, a few minutes behind.
pub async fn clock_behind(stage: &mut Stage) -> Result<()> {
    skewed(stage, "-3m").await
}

/// Programs see the clock that a file says, and see it change while they run. Their monotonic clock stays true, as it does when a real
/// clock is set.
struct Jumping {
    offset: PathBuf,
}

impl Jumping {
    /// Right so far.
    fn new(stage: &Stage) -> Result<Self> {
        let offset = stage.system.folder().join("clock");
        fs::write(&offset, "+0\n")?;
        Ok(Self { offset })
    }

    /// What a program has to see to go by it.
    fn variables(&self) -> Result<[(String, String); 4]> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        Ok([
            ("LD_PRELOAD".to_owned(), text(faketime()?)),
            ("FAKETIME_TIMESTAMP_FILE".to_owned(), text(self.offset.clone())),
            ("FAKETIME_NO_CACHE".to_owned(), "1".to_owned()),
            ("FAKETIME_DONT_FAKE_MONOTONIC".to_owned(), "1".to_owned()),
        ])
    }

    /// The clock jumps. By another name first, so that nobody reads half of it.
    fn to(&self, offset: &str) -> Result<()> {
        let next = self.offset.with_extension("next");
        fs::write(&next, format!("{offset}\n"))?;
        Ok(fs::rename(next, &self.offset)?)
    }
}

/// Where a clock jumps from the truth.
const JUMPS: [&str; 2] = ["+3m", "-3m"];

/// Each time in the health wait of a promotion, whose target must end with the old or the new set, whole.
async fn jumps(stage: &mut Stage, clock: &Jumping, releases: [u64; 2]) -> Result<()> {
    let [mut current, mut next] = releases;
    let mut ends = Vec::new();
    for offset in JUMPS {
        let promotion = stage.begin(next, &["--min-healthy", "4s"]).await?;
        stage.at_step(&promotion, "health_wait").await?;
        clock.to(offset)?;
        stage.either(&promotion, next, current).await?;
        let end = stage.ended(&promotion).await?;
        if end == "DEPLOYED" {
            std::mem::swap(&mut current, &mut next);
        }
        ends.push(format!("{offset}: {end}"));
        clock.to("+0")?;
    }
    stage.note(ends.join(", "));
    stage.deploy(next).await
}

/// F9: the host's clock is set while a deployment waits for health.
pub async fn host_jumps(stage: &mut Stage) -> Result<()> {
    let releases = [stage.release("OK_1").await?, stage.release("OK_2").await?];
    let agent = stage.join().await?;
    stage.deploy(releases[0]).await?;
    let clock = Jumping::new(stage)?;
    stage.system.agents[agent].kill().await?;
    let variables = clock.variables()?;
    let variables: Vec<_> = variables
        .iter()
        .map(|(name, value)| (name.as_str(), value.as_str()))
        .collect();
    stage.system.start_agent(agent, &variables).await?;
    jumps(stage, &clock, releases).await
}

/// F9: the orchestrator's clock is set while a deployment waits for health.
pub async fn center_jumps(stage: &mut Stage) -> Result<()> {
    let releases = [stage.release("OK_1").await?, stage.release("OK_2").await?];
    let clock = Jumping::new(stage)?;
    stage.system.kill_orchestrator().await?;
    stage.system.variables = clock.variables()?.to_vec();
    stage.system.start_orchestrator().await?;
    stage.join().await?;
    stage.deploy(releases[0]).await?;
    jumps(stage, &clock, releases).await
}
