//! Clients and verifiers that are not ours: grpcio with reflection, securesystemslib, in-toto.

use anyhow::{Context as _, Result, ensure};
use sealift_e2e::real::{Database, PROJECT, System, commit, eventually, image};
use tokio::process::Command;

async fn python(script: &str, arguments: &[&str]) -> Result<String> {
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let interpreter = std::env::var("SEALIFT_TEST_PYTHON")
        .unwrap_or_else(|_| format!("{root}/target/python-venv/bin/python"));
    let output = Command::new(&interpreter)
        .arg(format!("{root}/tests/python/{script}"))
        .args(arguments)
        .kill_on_drop(true)
        .output()
        .await
        .with_context(|| format!("{interpreter} is missing: run this through tests/run"))?;
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    ensure!(output.status.success(), "{script}:\n{said}");
    Ok(said)
}

fn files(folder: &str, ending: &str) -> Result<Vec<String>> {
    let names = std::fs::read_dir(folder)?.map(|entry| Ok(entry?.path().to_string_lossy().into_owned()));
    let names = names.collect::<Result<Vec<_>>>()?;
    Ok(names.into_iter().filter(|name| name.ends_with(ending)).collect())
}

fn only(folder: &str, ending: &str) -> Result<Vec<String>> {
    let found = files(folder, ending)?;
    ensure!(
        found.len() == 1,
        "{} files with {ending} in {folder}",
        found.len()
    );
    Ok(found)
}

/// A Python client without generated code of ours promotes; then other people's tools verify what the agent signed.
#[tokio::test]
async fn python_client_promotes_and_python_tools_verify_the_packet() -> Result<()> {
    let mut system = System::start(Database::Sqlite).await?;
    system.issue("ci", "ci").await?;
    system.issue("olga", "observer").await?;
    system.environment("staging", 10).await?;
    system.target("staging/web-1").await?;
    system.release(&image("OK_1")?, 1).await?;

    let address = system.endpoint().replace("https://", "");
    let folder = system.folder().to_string_lossy().into_owned();
    let release = format!("{PROJECT}@{}", commit(1));
    let said = python("reflection_client.py", &[&address, &folder, &release, "staging"]).await?;
    ensure!(said.contains("all as it should be"), "{said}");

    eventually("the promotion of the Python client is deployed", async || {
        let promotions = system.json(&["promotion", "list"]).await?;
        Ok((promotions["promotions"][0]["state"] == "STATE_DEPLOYED").then_some(()))
    })
    .await?;
    let out = system.folder().join("evidence").to_string_lossy().into_owned();
    system.sealift(&["evidence", "export", "--out", &out]).await?;
    // One agent and one orchestrator: the exported keys are exactly those that signed.
    let packet = only(&out, ".intoto.jsonl")?;
    let keys = files(&format!("{out}/keys"), ".pem")?;
    let arguments: Vec<_> = packet.iter().chain(&keys).map(String::as_str).collect();
    let said = python("verify_packet.py", &arguments).await?;
    ensure!(said.contains("verified"), "{said}");
    system.end().await
}
