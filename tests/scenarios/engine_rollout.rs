//! Canaries, rollbacks that start by themselves, and rollbacks that a person asks for and that stay, with the real programs on a
//! real engine.

use anyhow::{Context as _, Result, ensure};
use sealift_e2e::real::{Database, System, compose, eventually, free_port, image};
use serde_json::Value;

const ENVIRONMENT: &str = "staging";

async fn images(system: &System) -> Result<Vec<Vec<String>>> {
    Ok(vec![
        system.running_images("staging/web-1").await?,
        system.running_images("staging/web-2").await?,
    ])
}

/// The newest job in a state; `None` while there is none.
async fn job_in(system: &System, state: &str) -> Result<Option<String>> {
    let jobs = system.json(&["job", "list"]).await?;
    let found = jobs["jobs"].as_array().and_then(|jobs| {
        let job = jobs.iter().find(|job| job["state"] == state)?;
        job["name"].as_str()?.strip_prefix("jobs/").map(str::to_owned)
    });
    Ok(found)
}

fn rejected_by(plan: &Value, reason: &str) -> bool {
    plan["decision"]["gates"]
        .as_array()
        .is_some_and(|gates| gates.iter().any(|gate| gate["reason"] == reason))
}

#[tokio::test]
async fn r10_r15_a_failed_rollout_goes_back_and_a_rollback_stays() -> Result<()> {
    let mut system = System::start(Database::Sqlite).await?;
    system.environment(ENVIRONMENT, 10).await?;
    for target in ["staging/web-1", "staging/web-2"] {
        system.target(target).await?;
    }
    let one = system.release(&image("OK_1")?, 1).await?;
    let (code, said) = system.promote(one, ENVIRONMENT, &[]).await?;
    ensure!(code == 0, "release 1 ended with {code}:\n{said}");
    let good = images(&system).await?;

    // Both targets are on one engine, so the second one finds the port taken: the first has succeeded and must go back.
    let port = free_port()?;
    let bad = format!(
        "{}    ports: [\"127.0.0.1:{port}:8080\"]\n",
        compose(&image("OK_2")?)
    );
    let two = system.release_of(&bad, 2).await?;
    let (code, said) = system
        .promote(two, ENVIRONMENT, &["--rolling", "1", "--on-failure", "roll-back"])
        .await?;
    ensure!(
        code == 1,
        "a rollout that was rolled back ended with {code}:\n{said}"
    );
    ensure!(said.contains("PORT_IN_USE"), "{said}");
    ensure!(images(&system).await? == good, "both run release 1 again");
    let undone = job_in(&system, "STATE_ROLLED_BACK")
        .await?
        .context("no job was rolled back")?;
    let job = system.json(&["job", "get", &undone]).await?;
    ensure!(
        job["rollback"]
            .as_str()
            .is_some_and(|name| name.starts_with("jobs/")),
        "{job}"
    );

    let known = system.register("docker-host", &bad, 2).await?;
    ensure!(known["marks"][0]["mark"] == "MARK_UNSTABLE", "{known}");

    // It stays: nothing of the project goes there until a person lifts the hold.
    let plan = [
        "promote",
        "shop/web#2",
        "--to",
        ENVIRONMENT,
        "--plan",
        "-o",
        "json",
    ];
    let (code, out, _) = system.sealift_as("ada", &plan).await?;
    let plan: Value = serde_json::from_str(&out).with_context(|| out.clone())?;
    ensure!(code == 3 && rejected_by(&plan, "LANE_HELD"), "{code} {plan}");
    let holds = system.json(&["hold", "list"]).await?;
    let hold = holds["holds"][0]["uid"].as_str().context("no hold")?.to_owned();
    system.sealift(&["hold", "lift", &hold]).await?;

    // A canary that a person lets pass.
    let three = system.release(&image("OK_2")?, 3).await?;
    let release = format!("shop/web#{three}");
    let canary = [
        "promote",
        &release,
        "--to",
        ENVIRONMENT,
        "--canary",
        "1",
        "--manual",
        "--min-healthy",
        "1s",
    ];
    system.sealift(&canary).await?;
    let paused = eventually("the canary waits for a person", async || {
        job_in(&system, "STATE_PAUSED").await
    })
    .await?;
    let now = images(&system).await?;
    ensure!(now[0] != good[0] && now[1] == good[1], "one of two: {now:?}");
    system.sealift(&["job", "resume", &paused]).await?;
    eventually("the canary's job succeeds", async || {
        let job = system.json(&["job", "get", &paused]).await?;
        Ok((job["state"] == "STATE_SUCCEEDED").then_some(()))
    })
    .await?;
    ensure!(images(&system).await?[1] != good[1], "the rest followed");

    // And back, on request; release 2 never was active, so it is no candidate.
    let explained = system.json(&["rollback", ENVIRONMENT, "--explain"]).await?;
    ensure!(
        explained["to"]["releaseDisplay"]
            .as_str()
            .is_some_and(|name| name.ends_with("#1")),
        "{explained}"
    );
    let others = explained["rejected"].as_array().context("no others")?;
    let only_three = others.len() == 1
        && others[0]["releaseDisplay"]
            .as_str()
            .is_some_and(|name| name.ends_with("#3"));
    ensure!(only_three, "{explained}");
    let back = [
        "rollback",
        ENVIRONMENT,
        "--reason",
        "it is slow",
        "--wait",
        "--min-healthy",
        "1s",
    ];
    let (code, out, said) = system.sealift_as("ada", &back).await?;
    ensure!(code == 0, "the rollback ended with {code}:\n{out}\n{said}");
    ensure!(images(&system).await? == good, "both run release 1 again");
    system.end().await
}
