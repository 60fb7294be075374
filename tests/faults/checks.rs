//! The invariants that must hold after every fault, over packets, engine, agents' journals and database. The database is checked by a
//! program of its own (`invariants.py`).

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use anyhow::{Context as _, Result, ensure};
use sealift_agent::journal::{AttemptState, Journal, Phase};
use sealift_e2e::{commands::run, wait::within};
use serde_json::{Value, json};
use tokio::process::Command;

use crate::{
    signal::{self, Signal},
    stage::Stage,
};

const SETTLED: Duration = Duration::from_mins(2);
const AT_REST: Duration = Duration::from_secs(30);
const LABEL: &str = "dev.sealift.target-id";

/// All violations; the agents are stopped for a look into their journals.
pub async fn violations(stage: &mut Stage) -> Result<Vec<String>> {
    let mut found = Vec::new();
    found.extend(settled(stage).await.err().map(|error| format!("I21: {error:#}")));
    let mut targets = BTreeMap::new();
    for agent in &stage.system.agents {
        let seen = stage.system.json(&["target", "get", &agent.target]).await?;
        let uid = seen["uid"].as_str().context("uid")?.to_owned();
        found.extend(
            at_rest(stage, &uid)
                .await
                .err()
                .map(|error| format!("I6: {error:#}")),
        );
        targets.insert(agent.target.clone(), uid);
    }
    found.extend(unverified(stage).await?);
    let (mut fences, mut kept) = (BTreeMap::new(), BTreeMap::new());
    for index in 0..stage.system.agents.len() {
        let (newest, broken) = journal(stage, index, &mut fences).await?;
        found.extend(broken);
        if let Some(uid) = targets.get(&stage.system.agents[index].target) {
            kept.insert(uid.clone(), newest);
        }
    }
    for watch in &stage.stickers {
        let broken = watch.broken();
        if broken > 0 {
            found.push(format!("I22: the sticker was not whole {broken} times"));
        }
    }
    let facts = json!({
        "running": running(stage, targets.values()).await?,
        "created": created(stage, targets.values()).await?,
        "fences": fences,
        "kept": kept,
        "acknowledged": stage.acknowledged,
    });
    found.extend(database(stage, &facts).await?);
    Ok(found)
}

/// I21: once the fault is over, everything comes to its end.
async fn settled(stage: &Stage) -> Result<()> {
    within(SETTLED, "every promotion ends", async || {
        let all = stage.system.json(&["promotion", "list"]).await?;
        let mut all = all["promotions"].as_array().into_iter().flatten();
        let open = all.any(|promotion| promotion["finishTime"].is_null());
        Ok((!open).then_some(()))
    })
    .await
}

/// An agent at rest leaves no container that does not run.
async fn at_rest(stage: &Stage, uid: &str) -> Result<()> {
    let filter = format!("label={LABEL}={uid}");
    within(AT_REST, "nothing is left beside the set that runs", async || {
        let all = stage
            .system
            .docker(&["ps", "--all", "--quiet", "--filter", &filter])
            .await?;
        let up = stage
            .system
            .docker(&["ps", "--quiet", "--filter", &filter])
            .await?;
        Ok((all.lines().count() == up.lines().count()).then_some(()))
    })
    .await
}

/// I5: every packet verifies offline.
async fn unverified(stage: &Stage) -> Result<Option<String>> {
    let out = stage.system.folder().join("evidence");
    if out.exists() {
        fs::remove_dir_all(&out)?;
    }
    let folder = out.to_string_lossy().into_owned();
    stage
        .system
        .sealift(&["evidence", "export", "--out", &folder])
        .await?;
    let packets = fs::read_dir(&out)?.filter_map(Result::ok);
    if !packets
        .map(|entry| entry.file_name())
        .any(|name| name.to_string_lossy().ends_with(".intoto.jsonl"))
    {
        return Ok(None);
    }
    let trust = format!("{folder}/trust.json");
    let verify = ["evidence", "verify", &folder, "--trust", &trust];
    let (code, out, errors) = stage.system.sealift_as("nobody", &verify).await?;
    Ok((code != 0).then(|| format!("I5: packets do not verify: {out}{errors}")))
}

/// The agent's own memory: no attempt without an end. Also gives the number of the newest report that it still has, 0 for none. Stops
/// the agent.
async fn journal(
    stage: &mut Stage,
    index: usize,
    fences: &mut BTreeMap<String, u64>,
) -> Result<(u64, Vec<String>)> {
    let state = stage.state(index);
    if let Some(pid) = stage.system.agents[index].pid() {
        signal::send(pid, Signal::TERM)?;
        stage.system.agents[index].ended().await?;
    }
    let journal = tokio::task::spawn_blocking(move || Journal::open(&state)).await?;
    let mut found = Vec::new();
    let journal = match journal {
        Ok(journal) => journal,
        Err(error) => return Ok((0, vec![format!("I4: the journal cannot be read: {error}")])),
    };
    for attempt in journal.attempts()? {
        let phase = AttemptState::fold(&attempt.records).phase;
        if !matches!(phase, Phase::Ended(_) | Phase::Done) {
            found.push(format!("I4: {:?} of the journal is {phase:?}", attempt.key));
        }
    }
    let newest = journal
        .reports(0, 1_000)?
        .last()
        .map_or(0, |report| report.number);
    for (target, fence) in journal.fences()? {
        fences.insert(target.to_string(), fence.0);
    }
    Ok((newest, found))
}

/// What runs, by digest.
async fn running(stage: &Stage, targets: impl Iterator<Item = &String>) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for target in targets {
        let filter = format!("label={LABEL}={target}");
        let ids = stage
            .system
            .docker(&["ps", "--quiet", "--filter", &filter])
            .await?;
        for id in ids.lines() {
            let image = stage
                .system
                .docker(&["inspect", "--format", "{{.Config.Image}}", id])
                .await?;
            let digest = image.trim().rsplit('@').next().unwrap_or_default();
            all.push(json!({ "target": target, "digest": digest }));
        }
    }
    Ok(all)
}

/// The containers that were made, as the engine's events have them.
async fn created(stage: &Stage, targets: impl Iterator<Item = &String>) -> Result<Vec<Value>> {
    let mut all = Vec::new();
    for target in targets {
        let (since, filter) = (stage.began.to_string(), format!("label={LABEL}={target}"));
        let events = stage
            .system
            .docker(&[
                "events",
                "--since",
                &since,
                "--until",
                "0s",
                "--filter",
                "type=container",
                "--filter",
                "event=create",
                "--filter",
                &filter,
                "--format",
                "{{json .Actor.Attributes}}",
            ])
            .await?;
        for line in events.lines() {
            let labels: Value = serde_json::from_str(line)?;
            all.push(json!({
                "target": target,
                "task": labels["dev.sealift.task"],
                "attempt": labels["dev.sealift.attempt"],
                "digest": labels["dev.sealift.digest"],
            }));
        }
    }
    Ok(all)
}

async fn database(stage: &Stage, facts: &Value) -> Result<Vec<String>> {
    let file = stage.system.folder().join("facts.json");
    fs::write(&file, facts.to_string())?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut command = Command::new("python3");
    command.arg(root.join("faults/invariants.py"));
    command.arg(stage.system.database_file());
    command.arg(root.join("../docs")).arg(&file);
    let output = run(command, None).await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(errors.is_empty(), "the checker failed: {errors}");
    Ok(said
        .lines()
        .filter(|line| !line.is_empty())
        .map(str::to_owned)
        .collect())
}
