//! Drift on a real engine: changes by hand are noticed within seconds, explained by what the engine said, and gone when undone.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use sealift_e2e::real::{Database, System, docker, eventually, image};
use serde_json::Value;

/// How soon a change by hand has to be known, from the moment that the engine has made it.
const SECONDS: Duration = Duration::from_secs(5);

async fn one_drift(system: &System, kind: &str) -> Result<(Value, Duration)> {
    let begun = Instant::now();
    let found = eventually(&format!("{kind} is found"), async || {
        let drift = system.json(&["drift", "list", "--target", "prod/web-1"]).await?;
        let rows = drift["drift"].as_array().cloned().unwrap_or_default();
        Ok(rows.into_iter().find(|row| row["kind"] == kind))
    })
    .await?;
    Ok((found, begun.elapsed()))
}

async fn no_drift(system: &System) -> Result<()> {
    eventually("the drift is gone", async || {
        let drift = system.json(&["drift", "prod/web-1"]).await?;
        Ok(drift["drift"].as_array().is_none_or(Vec::is_empty).then_some(()))
    })
    .await
}

#[tokio::test]
async fn r14_a_change_by_hand_is_known_within_seconds_and_explained() -> Result<()> {
    let mut system = System::start(Database::Sqlite).await?;
    let create = [
        "env",
        "create",
        "prod",
        "--position",
        "1",
        "--class",
        "production",
    ];
    system.sealift(&create).await?;
    system.target("prod/web-1").await?;
    let release = system.release(&image("OK_1")?, 1).await?;
    let (code, said) = system.promote(release, "prod", &[]).await?;
    ensure!(code == 0, "the deployment ended with {code}:\n{said}");
    let container = system
        .running("prod/web-1")
        .await?
        .pop()
        .context("nothing runs")?;

    docker(&["stop", "-t", "1", &container]).await?;
    let (stopped, took) = one_drift(&system, "KIND_STOPPED").await?;
    ensure!(took < SECONDS, "a stop was known after {took:?}");
    ensure!(stopped["severity"] == "SEVERITY_CRITICAL", "{stopped}");
    let id = stopped["name"].as_str().context("name")?.to_owned();
    // The look may have been faster than the event.
    let explained = eventually("the event of the engine is known", async || {
        let answer = system.json(&["drift", "explain", &id]).await?;
        Ok((!answer["drift"]["cause"].is_null()).then_some(answer))
    })
    .await?;
    let cause = &explained["drift"]["cause"];
    ensure!(
        matches!(cause["action"].as_str(), Some("stop" | "die")),
        "{cause}"
    );
    ensure!(
        cause["container"]["id"]
            .as_str()
            .is_some_and(|id| id.starts_with(&container)),
        "{cause}"
    );
    ensure!(explained["recorded"]["requestedBy"] == "user/ada", "{explained}");
    let text = system.sealift(&["drift", "explain", &id]).await?;
    ensure!(
        text.contains("does not say who did it") && text.contains("sealift promote"),
        "{text}"
    );
    system
        .sealift(&[
            "drift",
            "acknowledge",
            &id,
            "--owner",
            "team-web",
            "--note",
            "on it",
        ])
        .await?;
    let text = system.sealift(&["drift", "explain", &id]).await?;
    ensure!(text.contains("team-web") && text.contains("on it"), "{text}");
    docker(&["start", &container]).await?;
    no_drift(&system).await?;

    docker(&["update", "--restart", "no", &container]).await?;
    let (changed, took) = one_drift(&system, "KIND_CONFIG").await?;
    ensure!(took < SECONDS, "an update was known after {took:?}");
    ensure!(
        changed["cause"].is_null() || changed["cause"]["action"] == "update",
        "{changed}"
    );
    docker(&["rm", "-f", &container]).await?;
    let (_, took) = one_drift(&system, "KIND_MISSING").await?;
    ensure!(took < SECONDS, "a removal was known after {took:?}");

    let (code, said) = system.promote(release, "prod", &[]).await?;
    ensure!(code == 0, "putting it back ended with {code}:\n{said}");
    no_drift(&system).await?;
    let history = system.json(&["drift", "list", "prod", "--all"]).await?;
    let gone = history["drift"].as_array().context("drift")?;
    ensure!(gone.iter().all(|row| !row["resolveTime"].is_null()), "{history}");
    ensure!(gone.len() >= 3, "{history}");
    system.end().await
}

#[tokio::test]
async fn what_is_stopped_by_hand_is_put_back_by_itself_with_proof() -> Result<()> {
    let mut system = System::start(Database::Sqlite).await?;
    let create = [
        "env",
        "create",
        "prod",
        "--position",
        "1",
        "--remediation",
        "reconcile",
        "--min-severity",
        "high",
    ];
    system.sealift(&create).await?;
    system.target("prod/web-1").await?;
    let release = system.release(&image("OK_1")?, 1).await?;
    let (code, said) = system.promote(release, "prod", &[]).await?;
    ensure!(code == 0, "the deployment ended with {code}:\n{said}");
    let container = system
        .running("prod/web-1")
        .await?
        .pop()
        .context("nothing runs")?;

    docker(&["stop", "-t", "1", &container]).await?;
    let (stopped, _) = one_drift(&system, "KIND_STOPPED").await?;
    let id = stopped["name"].as_str().context("name")?.to_owned();
    no_drift(&system).await?;
    let running = system.running("prod/web-1").await?;
    ensure!(running.len() == 1, "{running:?}");
    let told = system.json(&["drift", "explain", &id]).await?;
    ensure!(told["drift"]["tries"] == 1, "{told}");
    let promotion = told["drift"]["lastPromotion"].as_str().context("promotion")?;
    let promotion = system.json(&["promotion", "get", promotion]).await?;
    ensure!(
        promotion["requestedBy"] == "orchestrator/reconciler",
        "{promotion}"
    );
    let job = promotion["job"].as_str().context("job")?.to_owned();
    let proof = eventually("its job is proven", async || {
        let listed = system.json(&["evidence", "list", "--job", &job]).await?;
        let packets = listed["packets"].as_array().cloned().unwrap_or_default();
        Ok((!packets.is_empty()).then_some(packets))
    })
    .await?;
    ensure!(proof.len() == 1, "{proof:?}");
    system.end().await
}
