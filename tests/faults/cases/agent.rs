//! Faults of the agent's process: F1, F8, F9, F21, F28, F29.

use std::{os::unix::process::ExitStatusExt as _, time::Duration};

use anyhow::{Context as _, Result, ensure};
use sealift_common::bounds;
use sealift_e2e::{
    phases::{self, Phase},
    real::{compose, image},
    wait::within,
};

use crate::{
    checks,
    engine::command,
    memory::Starved,
    signal::Signal,
    stage::{Promotion, Stage},
    table::Host,
};

/// The variable that tells an agent where to die.
const KILL_AT: &str = "SEALIFT_AGENT_KILL_AT";
const DIES: Duration = Duration::from_secs(90);
/// How long an agent may be left alone with a disk that does not sync.
const BROKEN: Duration = Duration::from_secs(20);

/// A place to die, and the release on the way to which the agent passes it.
struct Death {
    point: &'static str,
    release: To,
}

#[derive(Clone, Copy)]
enum To {
    /// The other one of two good ones.
    Good,
    /// One that fails its health check.
    Ill,
    /// One that is healthy at first and falls ill.
    Flapping,
}

/// The releases of a walk.
struct Releases {
    good: [u64; 2],
    ill: u64,
    flapping: u64,
}

/// Places in every phase on the way to a release.
fn deaths(phases: &[Phase], release: To, full: bool) -> Vec<Death> {
    let points = phases::chosen(phases, full).into_iter();
    points.map(|point| Death { point, release }).collect()
}

/// The agent dies at each of the places in turn. Each time the target must end with the old or the new set, whole.
async fn walk(stage: &mut Stage, deaths: Vec<Death>, releases: &Releases, flags: &[&str]) -> Result<()> {
    let agent = stage.join().await?;
    stage.deploy(releases.good[0]).await?;
    let mut current = 0;
    let many = deaths.len();
    for Death { point, release } in deaths {
        let next = match release {
            To::Good => releases.good[1 - current],
            To::Ill => releases.ill,
            To::Flapping => releases.flapping,
        };
        let bake = match (flags.is_empty(), release) {
            (true, _) => &[][..],
            (false, To::Flapping) => &["--bake", "20s"],
            (false, _) => &["--bake", "500ms"],
        };
        let more: Vec<&str> = flags.iter().chain(bake).copied().collect();
        let died = die(stage, agent, point, next, &more).await;
        let promotion = died.with_context(|| format!("killed at {point}"))?;
        let ended = stage.either(&promotion, next, releases.good[current]).await;
        ended.with_context(|| format!("killed at {point}"))?;
        if stage.ended(&promotion).await? == "DEPLOYED" {
            ensure!(
                matches!(release, To::Good),
                "killed at {point}: a release that is ill was deployed"
            );
            current = 1 - current;
        }
        let violations = checks::violations(stage).await?;
        ensure!(
            violations.is_empty(),
            "killed at {point}: {}",
            violations.join("; ")
        );
    }
    stage.note(format!("{many} points"));
    Ok(())
}

/// Promotes, sees the agent die at the point, starts it again.
async fn die(stage: &mut Stage, agent: usize, point: &str, next: u64, more: &[&str]) -> Result<Promotion> {
    stage.system.agents[agent].kill().await?;
    stage.system.start_agent(agent, &[(KILL_AT, point)]).await?;
    let promotion = stage.begin(next, more).await?;
    let status = stage.system.agents[agent].ended().await?;
    ensure!(!status.success(), "the agent ended by itself with {status}");
    stage.system.spawn_agent(agent, &[])?;
    Ok(promotion)
}

async fn releases(stage: &mut Stage, text: impl Fn(&str) -> String) -> Result<Releases> {
    let mut made = Vec::new();
    for name in ["OK_1", "OK_2", "UNHEALTHY", "FLAP"] {
        made.push(stage.release_of(&text(&image(name)?)).await?);
    }
    Ok(Releases {
        good: [made[0], made[1]],
        ill: made[2],
        flapping: made[3],
    })
}

/// F1 on a blue/green swap, forward and back.
pub async fn killed_in_blue_green(stage: &mut Stage) -> Result<()> {
    let edge = format!("faults-edge-{}", std::process::id());
    stage.system.docker(&["network", "create", &edge]).await?;
    stage.networks.push(edge.clone());
    let text = |image: &str| {
        format!(
            "services:\n  web:\n    image: {image}\n    networks: [edge]\n    stop_grace_period: 2s\n\
             networks:\n  edge: {{external: true, name: {edge}}}\n"
        )
    };
    let releases = releases(stage, text).await?;
    let mut all = deaths(phases::BLUE_GREEN, To::Good, stage.full);
    all.extend(deaths(phases::BLUE_GREEN_GIVEN_UP, To::Ill, stage.full));
    all.extend(deaths(phases::BLUE_GREEN_RESTORE, To::Flapping, stage.full));
    walk(stage, all, &releases, &["--blue-green"]).await
}

/// F1 on a compose host, forward and back.
pub async fn killed_on_compose(stage: &mut Stage) -> Result<()> {
    let releases = releases(stage, compose).await?;
    let mut all = deaths(phases::COMPOSE, To::Good, stage.full);
    all.extend(deaths(phases::COMPOSE_RESTORE, To::Ill, stage.full));
    walk(stage, all, &releases, &[]).await
}

/// F21: an order that ends the agent each time it is begun.
pub async fn poison(stage: &mut Stage) -> Result<()> {
    let (old, new) = (stage.release("OK_1").await?, stage.release("OK_2").await?);
    let agent = stage.join().await?;
    stage.deploy(old).await?;
    let point = match stage.host {
        Host::Compose => "up.before",
        _ => "new_started.before",
    };
    stage.system.agents[agent].kill().await?;
    stage.system.start_agent(agent, &[(KILL_AT, point)]).await?;
    let promotion = stage.begin(new, &["--max-attempts", "1"]).await?;
    let mut deaths = 0;
    within(DIES, "the agent gives the order up", async || {
        if !stage.system.agents[agent].is_running() {
            deaths += 1;
            ensure!(deaths < 10, "the agent never gives up");
            stage.system.spawn_agent(agent, &[(KILL_AT, point)])?;
        }
        Ok(stage.is_over(&promotion).await?.then_some(()))
    })
    .await?;
    stage.note(format!("given up after {deaths} deaths"));
    ensure!(deaths >= 2, "it died only {deaths} times");
    stage.fails(&promotion, &["AGENT_STATE"], old).await?;
    // It goes on to serve others.
    stage.system.agents[agent].kill().await?;
    stage.system.start_agent(agent, &[]).await?;
    stage.deploy(new).await
}

/// F28: a container floods its log. What is kept of it is bounded and says so.
pub async fn floods(stage: &mut Stage) -> Result<()> {
    const MOST: usize = bounds::ATTEMPT_LOG_BYTES * 2;
    let text = format!(
        "{}    environment: {{FLOOD: \"200000\"}}\n",
        compose(&image("OK_1")?)
    );
    let new = stage.release_of(&text).await?;
    stage.join().await?;
    let promotion = stage.begin(new, &["--min-healthy", "3s"]).await?;
    let state = stage.ended(&promotion).await?;
    ensure!(
        state == "DEPLOYED",
        "it ended {state}: {}",
        stage.why(&promotion).await?
    );
    let job = stage.job_id(&promotion).await?.context("it has a job")?;
    let kept = stage.system.sealift(&["job", "logs", &job]).await?;
    stage.note(format!("{} KiB kept", kept.len() / 1024));
    ensure!(kept.len() < MOST, "{} bytes were kept", kept.len());
    ensure!(
        kept.contains("[truncated]"),
        "nothing says that the log is not whole"
    );
    Ok(())
}

/// F29: from the middle of a deployment on the agent gets no more memory.
pub async fn no_memory(stage: &mut Stage) -> Result<()> {
    let (old, new) = (stage.release("OK_1").await?, stage.release("OK_2").await?);
    let agent = stage.join().await?;
    stage.deploy(old).await?;
    let promotion = stage.begin(new, &["--min-healthy", "3s"]).await?;
    stage.at_step(&promotion, "health_wait").await?;
    let pid = stage.system.agents[agent].pid().context("no agent")?;
    command("prlimit", &["--pid", &pid.to_string(), "--as=1"]).await?;
    within(DIES, "it dies or comes to the end", async || {
        let over = !stage.system.agents[agent].is_running() || stage.is_over(&promotion).await?;
        Ok(over.then_some(()))
    })
    .await?;
    let died = !stage.system.agents[agent].is_running();
    stage.note(if died {
        "it died of it"
    } else {
        "what it had was enough"
    });
    stage.system.agents[agent].kill().await?;
    stage.system.start_agent(agent, &[]).await?;
    stage.either(&promotion, new, old).await?;
    stage.deploy(old).await
}

/// F29: the kernel ends the agent in the middle of its work, as it does when a host runs out of memory.
pub async fn oom_killed(stage: &mut Stage) -> Result<()> {
    let (old, new) = (stage.release("OK_1").await?, stage.release("OK_2").await?);
    let agent = stage.join().await?;
    stage.deploy(old).await?;
    let promotion = stage.begin(new, &["--min-healthy", "3s"]).await?;
    stage.at_step(&promotion, "health_wait").await?;
    let starved = Starved::new(stage.system.agents[agent].pid().context("no agent")?)?;
    let status = stage.system.agents[agent].ended().await?;
    ensure!(
        status.signal() == Some(Signal::KILL.as_raw()),
        "the kernel did not kill it, it ended with {status}"
    );
    drop(starved);
    stage.system.start_agent(agent, &[]).await?;
    stage.either(&promotion, new, old).await?;
    stage.deploy(old).await
}

/// F8: the disk under the agent's state does not sync any more.
pub async fn sync_fails(stage: &mut Stage) -> Result<()> {
    let (old, new) = (stage.release("OK_1").await?, stage.release("OK_2").await?);
    let agent = stage.join().await?;
    stage.deploy(old).await?;
    // The agent syncs a handful of times when it starts and a few times for each order: somewhere in the middle of one.
    let whens: &[u32] = if stage.full { &[4, 6, 8, 10, 12, 14] } else { &[8] };
    let mut current = old;
    for when in whens {
        let next = if current == old { new } else { old };
        stage.system.agents[agent].kill().await?;
        let inject = format!("inject=fsync,fdatasync:error=EIO:when={when}+");
        let under = [
            "strace",
            "-D",
            "-f",
            "-qq",
            "-o",
            "/dev/null",
            "-e",
            "trace=fsync,fdatasync",
            "-e",
            &inject,
        ];
        stage.system.agents[agent].under = under.map(str::to_owned).to_vec();
        stage.system.spawn_agent(agent, &[])?;
        let promotion = stage
            .begin(next, &["--max-attempts", "1", "--offline", "30s"])
            .await?;
        // What it did until then is for the next start to end.
        // An agent that stays up with a broken disk says so and waits.
        let said = stage.over_or_stuck(&promotion, agent, BROKEN).await;
        stage.system.agents[agent].kill().await?;
        stage.system.agents[agent].under.clear();
        stage.system.start_agent(agent, &[]).await?;
        stage
            .either(&promotion, next, current)
            .await
            .with_context(|| format!("from sync {when} on (told at once: {said})"))?;
        if stage.ended(&promotion).await? == "DEPLOYED" {
            current = next;
        }
    }
    stage.deploy(new).await
}
