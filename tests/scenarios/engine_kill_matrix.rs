//! F1: the agent is killed in every phase of an attempt, on a real engine; with `SEALIFT_TEST_FULL=1` at every step of its journal.
//! Each time the target ends with the old or the new set, whole (R10), the task ends (R14), and exactly one packet tells the truth
//! about it (R3).

use anyhow::{Context as _, Result, ensure};
use sealift_agent::kill::RESTORE_KILL_POINTS;
use sealift_e2e::{
    phases::{self, IN_PLACE, IN_PLACE_RESTORE},
    real::{Database, System, eventually, image},
};
use serde_json::Value;

const TARGET: &str = "staging/web-1";

/// One system; the agent dies at each of the points in turn, with the two releases taking turns.
async fn walk(points: &[&str]) -> Result<()> {
    let mut system = System::start(Database::Sqlite).await?;
    system.environment("staging", 10).await?;
    let agent = system.target(TARGET).await?;
    let images = [image("OK_1")?, image("OK_2")?, image("UNHEALTHY")?];
    for (number, image) in (1..).zip(&images) {
        system.release(image, number).await?;
    }
    let (code, said) = system.promote(1, "staging", &[]).await?;
    ensure!(code == 0, "the first promotion ended with {code}:\n{said}");

    let mut current = 0;
    for point in points {
        // The steps of restoring are met only by a release that fails.
        let next = if RESTORE_KILL_POINTS.contains(point) {
            2
        } else {
            1 - current
        };
        let outcome = crash_at(&mut system, agent, point, next).await.with_context(|| {
            format!(
                "killed at {point}; agent log:\n{}\n{}",
                system.agents[agent].log(),
                system.orchestrator_log()
            )
        })?;
        let images_now = system.running_images(TARGET).await?;
        let expected = if outcome == "succeeded" { next } else { current };
        ensure!(
            images_now.len() == 1,
            "killed at {point}: {} containers run: {images_now:?}",
            images_now.len()
        );
        let wanted = digest_of(&system, expected + 1).await?;
        ensure!(
            images_now[0].ends_with(&wanted),
            "killed at {point}: {outcome}, but {} runs",
            images_now[0]
        );
        current = expected;
    }
    system.end().await
}

/// Promotes, sees the agent die, starts it again, and gives the task's result.
async fn crash_at(system: &mut System, agent: usize, point: &str, next: usize) -> Result<String> {
    let packets_before = packets(system).await?;
    system.agents[agent].kill().await?;
    system
        .start_agent(agent, &[("SEALIFT_AGENT_KILL_AT", point)])
        .await?;
    let alias = format!("shop/web#{}", next + 1);
    let promotion = system
        .json(&[
            "promote",
            &alias,
            "--to",
            "staging",
            "--min-healthy",
            "500ms",
            "--healthy-deadline",
            "20s",
        ])
        .await?;
    let status = system.agents[agent].ended().await?;
    ensure!(!status.success(), "the agent ended by itself with {status}");
    system.spawn_agent(agent, &[])?;

    let id = promotion["uid"].as_str().context("uid")?.to_owned();
    let ended = eventually("the promotion ends", async || {
        let seen = system.json(&["promotion", "get", &id]).await?;
        Ok(["STATE_DEPLOYED", "STATE_FAILED"]
            .iter()
            .any(|state| seen["state"] == *state)
            .then_some(seen))
    })
    .await?;
    let packets_after = packets(system).await?;
    ensure!(
        packets_after.len() == packets_before.len() + 1,
        "{} packets more than before",
        packets_after.len() - packets_before.len()
    );
    let result = packets_after[0]["result"].as_str().context("result")?.to_owned();
    let deployed = ended["state"] == "STATE_DEPLOYED";
    ensure!(
        deployed == (result == "succeeded"),
        "the promotion is {}, the packet says {result}",
        ended["state"]
    );
    Ok(result)
}

async fn packets(system: &System) -> Result<Vec<Value>> {
    Ok(system.json(&["evidence", "list"]).await?["packets"]
        .as_array()
        .cloned()
        .unwrap_or_default())
}

async fn digest_of(system: &System, release: usize) -> Result<String> {
    let release = system
        .json(&["release", "get", &format!("shop/web#{release}")])
        .await?;
    Ok(release["components"][0]["digest"]
        .as_str()
        .context("digest")?
        .to_owned())
}

/// The points in two parts, so that each test stays short.
fn half(number: usize) -> Vec<&'static str> {
    let all = [IN_PLACE, IN_PLACE_RESTORE].concat();
    let all = phases::chosen(&all, phases::is_full()).into_iter().enumerate();
    all.filter(|(index, _)| index % 2 == number)
        .map(|(_, point)| point)
        .collect()
}

#[tokio::test]
async fn r10_killed_in_every_phase_first_half() -> Result<()> {
    walk(&half(0)).await
}

#[tokio::test]
async fn r10_killed_in_every_phase_second_half() -> Result<()> {
    walk(&half(1)).await
}
