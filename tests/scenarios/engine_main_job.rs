//! The main job on a real engine: release, plan, promotion, failure that leaves the old set, drift, evidence; both databases.

use anyhow::{Context as _, Result, ensure};
use sealift_e2e::real::{Database, System, docker, eventually, image};

async fn main_job(database: Database) -> Result<()> {
    let mut system = System::start(database).await?;
    system.environment("staging", 10).await?;
    system.environment("production", 20).await?;
    for target in ["staging/web-1", "production/web-1", "production/web-2"] {
        system.target(target).await?;
    }

    let one = system.release(&image("OK_1")?, 1).await?;
    ensure!(one == 1, "the first release has number {one}");
    let (code, said) = system.promote(one, "staging", &[]).await?;
    ensure!(
        code == 0,
        "release 1 to staging ended with {code}:\n{said}\n{}",
        system.orchestrator_log()
    );
    let (code, said) = system.promote(one, "production", &["--rolling", "1"]).await?;
    ensure!(code == 0, "release 1 to production ended with {code}:\n{said}");

    // What runs already is left alone.
    let before = system.running("staging/web-1").await?;
    let (code, said) = system.promote(one, "staging", &[]).await?;
    ensure!(
        code == 0 && said.contains("already_running"),
        "a no-op was not one ({code}):\n{said}"
    );
    ensure!(
        system.running("staging/web-1").await? == before,
        "a no-op replaced containers"
    );

    // R10, R15: a release that never becomes healthy fails and leaves the old set, whole and untouched.
    let two = system.release(&image("UNHEALTHY")?, 2).await?;
    ensure!(two == 2, "the second release has number {two}");
    let (code, said) = system
        .promote(two, "staging", &["--healthy-deadline", "30s"])
        .await?;
    ensure!(
        code == 1 && said.contains("UNHEALTHY"),
        "an unhealthy release ended with {code}:\n{said}"
    );
    ensure!(
        system.running("staging/web-1").await? == before,
        "the old set does not run as before"
    );

    drift(&system).await?;
    evidence(&system).await?;
    system.end().await
}

async fn drift(system: &System) -> Result<()> {
    let container = system
        .running("production/web-1")
        .await?
        .pop()
        .context("nothing runs on production/web-1")?;
    docker(&["stop", "-t", "1", &container]).await?;
    eventually("the stopped container is drift", async || {
        let drift = system.json(&["drift", "production/web-1"]).await?;
        Ok(drift["drift"]
            .as_array()
            .is_some_and(|rows| rows.iter().any(|row| row["kind"] == "KIND_STOPPED"))
            .then_some(()))
    })
    .await?;
    docker(&["start", &container]).await?;
    eventually("the drift is resolved", async || {
        let drift = system.json(&["drift", "production/web-1"]).await?;
        Ok(drift["drift"].as_array().is_none_or(Vec::is_empty).then_some(()))
    })
    .await
}

async fn evidence(system: &System) -> Result<()> {
    let out = system.folder().join("evidence");
    let out = out.to_string_lossy();
    system.sealift(&["evidence", "export", "--out", &out]).await?;
    let trust = format!("{out}/trust.json");
    let verdicts = system
        .json(&["evidence", "verify", &out, "--trust", &trust])
        .await?;
    // R3: each attempt that reached a host left one packet: three successes and one failure.
    let verdicts = verdicts.as_array().context("verdicts")?.clone();
    ensure!(verdicts.len() == 4, "{} packets instead of 4", verdicts.len());
    ensure!(
        verdicts.iter().all(|verdict| verdict["verified"] == true),
        "{verdicts:?}"
    );

    let file = verdicts[0]["file"].as_str().context("file")?.to_owned();
    let mut bytes = std::fs::read(&file)?;
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&file, bytes)?;
    let (code, ..) = system
        .sealift_as("ada", &["evidence", "verify", &file, "--trust", &trust])
        .await?;
    ensure!(code == 1, "a forged packet ended with {code}");
    Ok(())
}

#[tokio::test]
async fn r3_r10_r15_main_job_on_sqlite() -> Result<()> {
    main_job(Database::Sqlite).await
}

#[tokio::test]
async fn r3_r10_r15_main_job_on_postgres() -> Result<()> {
    main_job(Database::Postgres).await
}
