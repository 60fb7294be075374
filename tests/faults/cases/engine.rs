//! Faults of the engine: F2 to F5.

use std::{path::PathBuf, time::Duration};

use anyhow::{Context as _, Result, ensure};
use tokio::time::{Instant, sleep};

use crate::{
    proxy::{Deed, Peer, Proxy},
    signal::Signal,
    stage::{Promotion, Stage},
    table::Host,
};

/// Long enough to be in the middle of it.
const HEALTH: [&str; 4] = ["--min-healthy", "5s", "--healthy-deadline", "60s"];

async fn two(stage: &mut Stage) -> Result<(u64, u64)> {
    Ok((stage.release("OK_1").await?, stage.release("OK_2").await?))
}

async fn in_the_middle(stage: &mut Stage, new: u64) -> Result<Promotion> {
    let promotion = stage.begin(new, &HEALTH).await?;
    stage.at_step(&promotion, "health_wait").await?;
    Ok(promotion)
}

/// F2: after a reboot the agent is there before the engine.
pub async fn agent_before_engine(stage: &mut Stage) -> Result<()> {
    let (old, new) = two(stage).await?;
    let agent = stage.join().await?;
    stage.deploy(old).await?;
    stage.system.agents[agent].kill().await?;
    stage.engine()?.kill().await?;
    stage.system.start_agent(agent, &[]).await?;
    // What was promoted meanwhile waits or fails; it does not end in a mixture.
    let promotion = stage.begin(new, &["--max-attempts", "1"]).await;
    stage.engine()?.launch().await?;
    if let Ok(promotion) = promotion {
        stage.ended(&promotion).await?;
    }
    stage.deploy(new).await
}

/// F3: the engine and its containerd are killed under a swap.
pub async fn killed_in_a_swap(stage: &mut Stage) -> Result<()> {
    let (old, new) = two(stage).await?;
    stage.join().await?;
    stage.deploy(old).await?;
    let promotion = in_the_middle(stage, new).await?;
    stage.engine()?.kill().await?;
    stage.engine()?.launch().await?;
    stage.either(&promotion, new, old).await?;
    stage.note(stage.ended(&promotion).await?);
    stage.deploy(old).await
}

/// F3: the engine is restarted in order, as by an upgrade.
pub async fn restarted_in_a_swap(stage: &mut Stage) -> Result<()> {
    let (old, new) = two(stage).await?;
    stage.join().await?;
    stage.deploy(old).await?;
    let promotion = in_the_middle(stage, new).await?;
    stage.engine()?.stop().await?;
    stage.engine()?.launch().await?;
    stage.either(&promotion, new, old).await?;
    stage.note(stage.ended(&promotion).await?);
    stage.deploy(old).await
}

/// F3 and F1 at once: engine and agent are killed in the middle and start in either order.
pub async fn killed_with_the_agent(stage: &mut Stage) -> Result<()> {
    let (old, new) = two(stage).await?;
    let agent = stage.join().await?;
    stage.deploy(old).await?;
    let promotion = in_the_middle(stage, new).await?;
    stage.system.agents[agent].kill().await?;
    stage.engine()?.kill().await?;
    stage.system.spawn_agent(agent, &[])?;
    stage.engine()?.launch().await?;
    stage.either(&promotion, new, old).await?;
    stage.deploy(old).await
}

/// F4: the engine stands still for a while; the agent's beats go on, and late answers change nothing.
async fn hangs(stage: &mut Stage, lasts: Duration) -> Result<()> {
    let (old, new) = two(stage).await?;
    stage.join().await?;
    stage.deploy(old).await?;
    let promotion = in_the_middle(stage, new).await?;
    stage.engine()?.signal(Signal::STOP)?;
    let until = Instant::now() + lasts;
    while Instant::now() < until {
        let seen = stage
            .system
            .json(&["target", "get", crate::stage::TARGET])
            .await?;
        ensure!(
            seen["agentStatus"] != "offline",
            "the agent's beats stopped with the engine"
        );
        sleep(Duration::from_millis(500)).await;
    }
    stage.engine()?.signal(Signal::CONT)?;
    stage.either(&promotion, new, old).await?;
    stage.note(stage.ended(&promotion).await?);
    stage.deploy(old).await
}

/// F4, shorter than anybody's patience.
pub async fn hangs_for_a_moment(stage: &mut Stage) -> Result<()> {
    hangs(stage, Duration::from_secs(10)).await
}

/// F4, longer than the agent's patience with it.
pub async fn hangs_for_long(stage: &mut Stage) -> Result<()> {
    hangs(stage, Duration::from_secs(75)).await
}

/// F5: the engine's answers are wrong, once and again and again.
pub async fn answers_wrongly(stage: &mut Stage) -> Result<()> {
    const CREATE: &str = "/containers/create";
    let (old, new) = two(stage).await?;
    let path = stage.system.folder().join("engine.sock");
    let real = std::env::var("DOCKER_HOST").unwrap_or_else(|_| "/var/run/docker.sock".to_owned());
    let real = PathBuf::from(real.trim_start_matches("unix://"));
    let proxy = Proxy::unix(&path, Peer::Unix(real))?;
    let address = format!("unix://{}", path.display());
    let agent = stage.enrol(crate::stage::TARGET).await?;
    stage
        .system
        .start_agent(agent, &[("DOCKER_HOST", &address)])
        .await?;
    stage.deploy(old).await?;
    let mut wrongs = vec![
        (1, "POST", CREATE, Deed::Status(500)),
        (3, "POST", "/start", Deed::Status(500)),
        (2, "GET", "/containers/json", Deed::HalfJson),
        (2, "GET", "/containers/", Deed::Cut(60)),
    ];
    if stage.full {
        wrongs.extend([
            (9, "POST", CREATE, Deed::Status(409)),
            (1, "POST", CREATE, Deed::Cut(20)),
            (1, "POST", "/stop", Deed::Status(500)),
            (9, "POST", "/stop", Deed::Cut(0)),
            (1, "POST", "/start", Deed::Cut(0)),
            (1, "POST", "/start", Deed::ErrorLine),
            (1, "POST", "/start", Deed::Silence),
            (1, "GET", "/containers/json", Deed::ErrorLine),
            (9, "GET", "/containers/", Deed::Status(404)),
            (9, "DELETE", "/containers/", Deed::Status(500)),
            (1, "GET", "/images/", Deed::HalfJson),
        ]);
    }
    let mut current = old;
    let many = wrongs.len();
    for (times, method, has, deed) in wrongs {
        // What the agent does not ask, because Compose does, is asked over the same socket.
        let next = if current == old { new } else { old };
        let before = proxy.done();
        proxy.next(times, method, has, deed);
        let promotion = stage.begin(next, &["--max-attempts", "1"]).await?;
        let whole = stage.either(&promotion, next, current).await;
        proxy.relent();
        let what = format!("{times} x {method} {has}: {deed:?}");
        whole.with_context(|| what.clone())?;
        ensure!(
            proxy.done() > before || stage.host == Host::Compose,
            "{what}: nothing was asked"
        );
        if stage.ended(&promotion).await? == "DEPLOYED" {
            current = next;
        }
    }
    stage.note(format!("{many} wrong answers"));
    stage.deploy(if current == old { new } else { old }).await
}
