//! Faults between agent and orchestrator: F10 to F12, F19, F24. What is held back arrives late, as after a partition.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sealift_e2e::{real::System, wait::within};
use tokio::time::{Instant, sleep};

use crate::{
    proxy::{Held, Peer, Proxy},
    signal::{self, Signal},
    stage::{Promotion, Stage, TARGET},
};

const BOTH: Held = Held { up: true, down: true };
const LOOK: Duration = Duration::from_mins(1);

/// A line between the agent and the orchestrator.
async fn line(system: &System) -> Result<Proxy> {
    let address = system.endpoint();
    let address = address.strip_prefix("https://").context("https")?.parse()?;
    Proxy::tcp(Peer::Tcp(address)).await
}

/// An agent that dials through the line, with release 1 deployed.
async fn joined(stage: &mut Stage) -> Result<(Proxy, u64, u64)> {
    let (old, new) = (stage.release("OK_1").await?, stage.release("OK_2").await?);
    let proxy = line(&stage.system).await?;
    let agent = stage.enrol(TARGET).await?;
    stage.system.agents[agent].dials = Some(format!("https://127.0.0.1:{}", proxy.port));
    stage.system.start_agent(agent, &[]).await?;
    stage.deploy(old).await?;
    Ok((proxy, old, new))
}

/// Waits until the host runs the release, whatever anybody is told.
async fn host_runs(stage: &Stage, release: u64) -> Result<()> {
    let wanted = stage.digest(release).await?;
    within(LOOK, "the host runs the release", async || {
        let seen = stage.system.running_images(TARGET).await?;
        Ok((seen.len() == 1 && seen[0].ends_with(&wanted)).then_some(()))
    })
    .await
}

/// What came of it is one result of one attempt.
async fn once(stage: &Stage, promotion: &Promotion, new: u64) -> Result<()> {
    let state = stage.ended(promotion).await?;
    ensure!(
        state == "DEPLOYED",
        "it ended {state}: {}",
        stage.why(promotion).await?
    );
    let job = stage.job(promotion).await?.unwrap_or_default();
    ensure!(job["tasks"][0]["attempt"] == 1, "more than one attempt: {job}");
    stage.runs(new).await
}

async fn partition(stage: &mut Stage, held: Held, lasts: Duration) -> Result<()> {
    let (proxy, _, new) = joined(stage).await?;
    let promotion = stage.begin(new, &["--min-healthy", "2s"]).await?;
    stage.at_step(&promotion, "health_wait").await?;
    proxy.hold(held);
    host_runs(stage, new).await?;
    sleep(lasts).await;
    if held.up {
        ensure!(
            !stage.is_over(&promotion).await?,
            "the orchestrator knows what it cannot know"
        );
    }
    proxy.hold(Held::default());
    once(stage, &promotion, new).await
}

fn lasts(stage: &Stage) -> Duration {
    // Longer than both sides' keep-alives, which close the connection meanwhile, or shorter, so that what was held arrives.
    Duration::from_secs(if stage.full { 60 } else { 5 })
}

/// F10: nothing comes through.
pub async fn partition_both_ways(stage: &mut Stage) -> Result<()> {
    let lasts = lasts(stage);
    partition(stage, BOTH, lasts).await
}

/// F11: the orchestrator hears nothing, the agent everything.
pub async fn partition_upward(stage: &mut Stage) -> Result<()> {
    let lasts = lasts(stage);
    partition(
        stage,
        Held {
            up: true,
            down: false,
        },
        lasts,
    )
    .await
}

/// F11: the agent hears nothing, the orchestrator everything.
pub async fn partition_downward(stage: &mut Stage) -> Result<()> {
    let lasts = lasts(stage);
    partition(
        stage,
        Held {
            up: false,
            down: true,
        },
        lasts,
    )
    .await
}

/// F12: every piece arrives late, and connections break off all the time.
pub async fn slow_and_broken(stage: &mut Stage) -> Result<()> {
    let (proxy, _, new) = joined(stage).await?;
    proxy.delay(Duration::from_millis(80));
    let promotion = stage.begin(new, &["--min-healthy", "3s"]).await?;
    let until = Instant::now() + Duration::from_secs(6);
    let mut breaks = 0;
    while Instant::now() < until {
        sleep(Duration::from_millis(700)).await;
        proxy.reset();
        breaks += 1;
    }
    stage.note(format!("{breaks} breaks"));
    once(stage, &promotion, new).await
}

/// F19: an agent takes nothing any more; others do not notice, and the orchestrator does not grow.
pub async fn slow_consumer(stage: &mut Stage) -> Result<()> {
    const MOST_KIB: u64 = 64 * 1024;
    let (old, new) = (stage.release("OK_1").await?, stage.release("OK_2").await?);
    stage.join().await?;
    let second = stage.enrol("staging/web-2").await?;
    stage.system.start_agent(second, &[]).await?;
    stage.deploy(old).await?;
    let orchestrator = stage.system.orchestrator_pid().context("no orchestrator")?;
    let before = signal::resident_kib(orchestrator)?;
    let stuck = stage.system.agents[second].pid().context("no agent")?;
    signal::send(stuck, Signal::STOP)?;
    let promotion = stage.begin(new, &[]).await?;
    let other = host_runs(stage, new).await;
    let after = signal::resident_kib(orchestrator)?;
    signal::send(stuck, Signal::CONT)?;
    other?;
    ensure!(
        after < before + MOST_KIB,
        "the orchestrator grew from {before} to {after} KiB"
    );
    let state = stage.ended(&promotion).await?;
    ensure!(
        state == "DEPLOYED",
        "it ended {state}: {}",
        stage.why(&promotion).await?
    );
    Ok(())
}

/// F24: the deployment outlives the certificate with which it began.
pub async fn certificate_expires(stage: &mut Stage) -> Result<()> {
    let (old, new) = (stage.release("OK_1").await?, stage.release("OK_2").await?);
    stage.join().await?;
    stage.deploy(old).await?;
    // Certificates live for 60 s, the shortest that there is.
    let flags = ["--min-healthy", "75s", "--healthy-deadline", "120s"];
    let promotion = stage.begin(new, &flags).await?;
    once(stage, &promotion, new).await
}
