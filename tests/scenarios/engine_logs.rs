//! The log of a job on a real engine: followed live by `sealift job logs -f`, bounded, kept, and marked where something is missing,
//! also in the signed packet.

use std::fs;

use anyhow::{Context as _, Result, ensure};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use sealift_common::bounds;
use sealift_e2e::real::{Database, System, compose, eventually, image};
use serde_json::Value;

async fn newest_job(system: &System) -> Result<String> {
    eventually("there is a job", async || {
        let jobs = system.json(&["job", "list"]).await?;
        let name = jobs["jobs"][0]["name"].as_str();
        Ok(name
            .and_then(|name| name.strip_prefix("jobs/"))
            .map(str::to_owned))
    })
    .await
}

/// The lines of a job as they are kept.
async fn lines(system: &System, job: &str) -> Result<Vec<Value>> {
    let out = system.sealift(&["job", "logs", job, "-o", "json"]).await?;
    out.lines().map(|line| Ok(serde_json::from_str(line)?)).collect()
}

/// What the one packet of a job states.
async fn predicate(system: &System, number: u32) -> Result<Value> {
    let out = system.folder().join(format!("evidence-{number}"));
    let folder = out.to_string_lossy().into_owned();
    system.sealift(&["evidence", "export", "--out", &folder]).await?;
    let mut newest: Option<Value> = None;
    for entry in fs::read_dir(&out)? {
        let path = entry?.path();
        if !path.is_file() {
            continue;
        }
        let Ok(envelope) = serde_json::from_slice::<Value>(&fs::read(path)?) else {
            continue;
        };
        let Some(payload) = envelope["payload"].as_str() else {
            continue;
        };
        let statement: Value = serde_json::from_slice(&STANDARD.decode(payload)?)?;
        let predicate = statement["predicate"].clone();
        let at = |predicate: &Value| predicate["finishedAt"].as_str().map(str::to_owned);
        if newest.as_ref().and_then(at) < at(&predicate) {
            newest = Some(predicate);
        }
    }
    newest.context("no packet")
}

#[tokio::test]
async fn f28_a_job_is_followed_live_and_a_flood_is_bounded_and_marked() -> Result<()> {
    let mut system = System::start(Database::Sqlite).await?;
    system.environment("staging", 10).await?;
    system.target("staging/web-1").await?;

    // A quiet one: seen while it runs, whole, and the packet has nothing to say of it.
    let quiet = system.release(&image("OK_1")?, 1).await?;
    let promote = [
        "promote",
        &format!("shop/web#{quiet}"),
        "--to",
        "staging",
        "--min-healthy",
        "4s",
    ];
    system.sealift(&promote).await?;
    let job = newest_job(&system).await?;
    eventually("the service is heard while the job runs", async || {
        let heard = lines(&system, &job).await?.iter().any(|line| {
            line["source"] == "web"
                && line["text"]
                    .as_str()
                    .is_some_and(|text| text.contains("listening"))
        });
        let running = system.json(&["job", "get", &job]).await?["state"] == "STATE_RUNNING";
        Ok((heard && running).then_some(()))
    })
    .await?;
    let (code, followed, said) = system.sealift_as("ada", &["job", "logs", &job, "-f"]).await?;
    ensure!(code == 0, "{said}");
    ensure!(followed.contains("[web] demo-app"), "{followed}");
    ensure!(!followed.contains("[truncated]"), "{followed}");
    let kept = lines(&system, &job).await?;
    ensure!(
        followed.lines().count() == kept.len(),
        "what was followed is not what is kept:\n{followed}\n{kept:#?}"
    );
    ensure!(predicate(&system, 1).await?.get("logTruncated").is_none());

    // One that floods: 8 MiB in short lines.
    let file = format!(
        "{}    environment: {{ FLOOD: \"80000\" }}\n",
        compose(&image("OK_2")?)
    );
    let loud = system.release_of(&file, 2).await?;
    let (code, said) = system.promote(loud, "staging", &[]).await?;
    ensure!(code == 0, "a service that says much ended with {code}:\n{said}");
    let job = newest_job(&system).await?;
    let kept = lines(&system, &job).await?;
    let text = |line: &Value| line["text"].as_str().unwrap_or_default().to_owned();
    // The marks come on top.
    let bytes: usize = kept
        .iter()
        .filter(|line| line["truncated"] != true)
        .map(|line| text(line).len() + bounds::LOG_LINE_OVERHEAD)
        .sum();
    ensure!(bytes <= bounds::ATTEMPT_LOG_BYTES, "{bytes} bytes are kept");
    let marked: Vec<String> = kept
        .iter()
        .filter(|line| line["truncated"] == true)
        .map(text)
        .collect();
    ensure!(
        !marked.is_empty(),
        "none of {} lines is marked as the last one that had room",
        kept.len()
    );
    let shown = system.sealift(&["job", "logs", &job]).await?;
    ensure!(shown.contains("[truncated]"), "people are not told");
    ensure!(predicate(&system, 2).await?["logTruncated"] == true);
    system.end().await
}
