//! The stage of a case: an orchestrator, one host of the case's kind with its agent, and an engine, with what every case does to
//! them. Everything that it started ends with [`Stage::end`].

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use sealift_common::time::{Clock as _, SystemClock};
use sealift_e2e::{
    commands::docker_at,
    real::{Database, System, compose, image},
    wait::within,
};
use serde_json::Value;

use crate::{
    engine::{Engine, command},
    signal::Signal,
    sticker::Watch,
    table::Host,
};

/// The environment of every case.
pub const ENVIRONMENT: &str = "staging";
/// Its one target, unless the case makes more.
pub const TARGET: &str = "staging/web-1";
/// Longest wait for an end after a fault is over.
const PATIENCE: Duration = Duration::from_secs(150);

/// A promotion that was acknowledged.
#[derive(Debug, Clone)]
pub struct Promotion {
    /// Its identifier.
    pub uid: String,
}

/// The stage.
pub struct Stage {
    /// The kind of the host.
    pub host: Host,
    /// Orchestrator and agents.
    pub system: System,
    /// The case's own engine, if it has one.
    pub engine: Option<Engine>,
    /// Promotions that the orchestrator said it has.
    pub acknowledged: Vec<String>,
    /// Watches over the stickers of the agents.
    pub stickers: Vec<Watch>,
    /// When it began, in seconds of the engine's events.
    pub began: i64,
    /// Whether there is time for everything.
    pub full: bool,
    /// Networks that the case made by hand.
    pub networks: Vec<String>,
    /// File systems that the case mounted.
    pub mounts: Vec<PathBuf>,
    releases: u32,
    note: String,
}

impl Stage {
    /// With an engine of its own, or on the one that the environment names.
    pub async fn start(host: Host, private: bool, settings: &str, full: bool) -> Result<Self> {
        let engine = if private {
            Some(Engine::start(None).await?)
        } else {
            None
        };
        let mut system = match System::start_with(Database::Sqlite, settings).await {
            Ok(system) => system,
            Err(error) => {
                if let Some(engine) = engine {
                    engine.end().await?;
                }
                return Err(error);
            }
        };
        system.engine = engine.as_ref().map(Engine::address);
        system.environment(ENVIRONMENT, 10).await?;
        Ok(Self {
            host,
            system,
            engine,
            acknowledged: Vec::new(),
            stickers: Vec::new(),
            began: SystemClock.now().timestamp(),
            full,
            networks: Vec::new(),
            mounts: Vec::new(),
            releases: 0,
            note: String::new(),
        })
    }

    /// Something that the matrix shall show of it.
    pub fn note(&mut self, text: impl Into<String>) {
        self.note = text.into();
    }

    /// What it shall show.
    pub fn noted(&self) -> &str {
        &self.note
    }

    /// Lets the host's agent join and start.
    pub async fn join(&mut self) -> Result<usize> {
        let agent = self.enrol(TARGET).await?;
        self.system.start_agent(agent, &[]).await?;
        Ok(agent)
    }

    /// Lets an agent join that does not run yet.
    pub async fn enrol(&mut self, target: &str) -> Result<usize> {
        let kind = self.host.kind();
        let agent = self.system.enrol(kind, target, &[]).await?;
        let state = self.system.agents[agent].state();
        self.stickers.push(Watch::start(state, target)?);
        Ok(agent)
    }

    /// The suite's own engine.
    pub fn engine(&mut self) -> Result<&mut Engine> {
        self.engine.as_mut().context("the case has no engine of its own")
    }

    /// Makes a release of an image of the fixtures.
    pub async fn release(&mut self, name: &str) -> Result<u64> {
        self.release_of(&compose(&image(name)?)).await
    }

    /// Makes a release of a compose file.
    pub async fn release_of(&mut self, text: &str) -> Result<u64> {
        self.releases += 1;
        let kind = self.host.kind();
        self.system.release_for(kind, text, self.releases).await
    }

    /// Promotes and returns when the orchestrator has acknowledged it.
    pub async fn begin(&mut self, release: u64, more: &[&str]) -> Result<Promotion> {
        let alias = format!("shop/web#{release}");
        let mut arguments = vec!["promote", &alias, "--to", ENVIRONMENT];
        for (flag, value) in [("--min-healthy", "500ms"), ("--healthy-deadline", "20s")] {
            if !more.contains(&flag) {
                arguments.extend([flag, value]);
            }
        }
        arguments.extend(more);
        let made = self.system.json(&arguments).await?;
        let uid = made["uid"].as_str().context("uid")?.to_owned();
        self.acknowledged.push(uid.clone());
        Ok(Promotion { uid })
    }

    /// Waits for a promotion's end and gives its state.
    pub async fn ended(&self, promotion: &Promotion) -> Result<String> {
        within(PATIENCE, "the promotion ends", async || {
            let seen = self.system.json(&["promotion", "get", &promotion.uid]).await?;
            let state = seen["state"].as_str().unwrap_or_default();
            let over = ["DEPLOYED", "FAILED", "CANCELLED", "ROLLED_BACK", "REJECTED"];
            let state = state.strip_prefix("STATE_").unwrap_or_default();
            Ok(over.contains(&state).then(|| state.to_owned()))
        })
        .await
    }

    /// Whether the orchestrator knows a promotion's end.
    pub async fn is_over(&self, promotion: &Promotion) -> Result<bool> {
        let seen = self.system.json(&["promotion", "get", &promotion.uid]).await?;
        Ok(!seen["finishTime"].is_null())
    }

    /// Waits until a promotion's end is known, or until its agent cannot go on by itself: it is gone, or it has told that its journal
    /// takes no more writes, which it does until it is started again.
    pub async fn over_or_stuck(&mut self, promotion: &Promotion, agent: usize, patience: Duration) -> bool {
        let over = within(patience, "the promotion ends or the agent is stuck", async || {
            let told = self.is_over(promotion).await?
                || !self.system.agents[agent].is_running()
                || self.has_told_of_its_journal().await?;
            Ok(told.then_some(()))
        });
        over.await.is_ok()
    }

    /// Whether an agent has told that its journal failed.
    async fn has_told_of_its_journal(&self) -> Result<bool> {
        let all = self.system.json(&["agent", "list"]).await?;
        let agents = all["agents"].as_array().into_iter().flatten();
        let mut conditions = agents.flat_map(|agent| agent["degraded"].as_array().into_iter().flatten());
        Ok(conditions.any(|condition| {
            let detail = condition["detail"].as_str().unwrap_or_default();
            detail.starts_with("journal: ")
        }))
    }

    /// Deploys a release, which must succeed.
    pub async fn deploy(&mut self, release: u64) -> Result<()> {
        let promotion = self.begin(release, &[]).await?;
        let state = self.ended(&promotion).await?;
        ensure!(
            state == "DEPLOYED",
            "release {release} ended {state}: {}",
            self.why(&promotion).await?
        );
        self.runs(release).await
    }

    /// What `sealift job tasks` says of a promotion's job; `None` while there is none.
    pub async fn job(&self, promotion: &Promotion) -> Result<Option<Value>> {
        match self.job_id(promotion).await? {
            Some(job) => self.system.json(&["job", "tasks", &job]).await.map(Some),
            None => Ok(None),
        }
    }

    /// The identifier of a promotion's job; `None` while there is none.
    pub async fn job_id(&self, promotion: &Promotion) -> Result<Option<String>> {
        let seen = self.system.json(&["promotion", "get", &promotion.uid]).await?;
        let job = seen["job"].as_str().and_then(|name| name.strip_prefix("jobs/"));
        Ok(job.map(str::to_owned))
    }

    /// Why a promotion's tasks failed, for people and for comparing codes.
    pub async fn why(&self, promotion: &Promotion) -> Result<String> {
        let job = self.job(promotion).await?.unwrap_or_default();
        let tasks = job["tasks"].as_array().cloned().unwrap_or_default();
        let failures: Vec<String> = tasks
            .iter()
            .filter(|task| !task["failure"].is_null())
            .map(|task| task["failure"].to_string())
            .collect();
        Ok(failures.join("; "))
    }

    /// Waits until the orchestrator knows that a task of the promotion is at a step.
    pub async fn at_step(&self, promotion: &Promotion, step: &str) -> Result<()> {
        within(PATIENCE, &format!("the task is at {step}"), async || {
            let job = self.job(promotion).await?.unwrap_or_default();
            let mut tasks = job["tasks"].as_array().into_iter().flatten();
            Ok(tasks.any(|task| task["step"] == step).then_some(()))
        })
        .await
    }

    /// The digest of a release's service.
    pub async fn digest(&self, release: u64) -> Result<String> {
        let release = self
            .system
            .json(&["release", "get", &format!("shop/web#{release}")])
            .await?;
        let digest = release["components"][0]["digest"].as_str().context("digest")?;
        Ok(digest.to_owned())
    }

    /// Waits until exactly one container runs on the target and it is of the release.
    pub async fn runs(&self, release: u64) -> Result<()> {
        let wanted = self.digest(release).await?;
        let mut seen = Vec::new();
        let whole = within(Duration::from_secs(30), "one set runs, whole", async || {
            seen = self.system.running_images(TARGET).await?;
            Ok((seen.len() == 1 && seen[0].ends_with(&wanted)).then_some(()))
        });
        whole
            .await
            .with_context(|| format!("release {release} should run, these do: {seen:?}"))
    }

    /// Ends a promotion and checks that it failed with one of the codes and that the old release runs as before.
    pub async fn fails(&self, promotion: &Promotion, codes: &[&str], old: u64) -> Result<()> {
        let state = self.ended(promotion).await?;
        let why = self.why(promotion).await?;
        ensure!(
            state == "FAILED" && codes.iter().any(|code| why.contains(code)),
            "it ended {state}, wanted FAILED with one of {codes:?}: {why}"
        );
        self.runs(old).await
    }

    /// Checks that either release runs, whole, as the promotion's end says.
    pub async fn either(&self, promotion: &Promotion, new: u64, old: u64) -> Result<()> {
        let state = self.ended(promotion).await?;
        self.runs(if state == "DEPLOYED" { new } else { old }).await
    }

    /// Where the agent keeps its state.
    pub fn state(&self, agent: usize) -> PathBuf {
        self.system.agents[agent].state().to_owned()
    }

    /// What the programs said, for a case that went wrong.
    pub fn logs(&self) -> String {
        let tail = |text: String| {
            let lines: Vec<_> = text.lines().rev().take(25).collect();
            lines.into_iter().rev().collect::<Vec<_>>().join("\n")
        };
        let agents = self.system.agents.iter().map(|agent| tail(agent.log()));
        let agents: Vec<String> = agents.collect();
        format!(
            "--- agent\n{}\n--- orchestrator\n{}",
            agents.join("\n--- agent\n"),
            tail(self.system.orchestrator_log())
        )
    }

    /// Ends everything.
    pub async fn end(self) -> Result<()> {
        for watch in self.stickers {
            watch.end();
        }
        let mut engine = self.engine;
        if let Some(engine) = &mut engine
            // An engine that still stands still would keep the agents from clearing up.
            && engine.signal(Signal::CONT).is_err()
        {
            engine.launch().await?;
        }
        let address = self.system.engine.clone();
        let ended = self.system.end().await;
        for network in self.networks {
            docker_at(address.as_deref(), &["network", "rm", &network]).await?;
        }
        if let Some(engine) = engine {
            engine.end().await?;
        }
        for mount in self.mounts {
            command("umount", &["--lazy", &mount.to_string_lossy()]).await?;
        }
        ended
    }
}
