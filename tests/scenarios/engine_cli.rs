//! Exit codes of `sealift promote` that only a real rollout shows.

use anyhow::{Result, ensure};
use sealift_e2e::real::{Database, System, eventually, image};

#[tokio::test]
async fn promote_ends_with_3_when_a_gate_says_no_and_with_124_when_its_own_time_is_over() -> Result<()> {
    let mut system = System::start(Database::Sqlite).await?;
    system.environment("staging", 10).await?;
    system.environment("production", 20).await?;
    system.target("staging/web-1").await?;
    system.target("production/web-1").await?;
    let release = system.release(&image("OK_1")?, 1).await?;

    let hold = [
        "hold",
        "place",
        "production",
        "shop/web",
        "--reason",
        "not before Monday",
    ];
    system.sealift(&hold).await?;
    let (code, said) = system.promote(release, "production", &[]).await?;
    ensure!(
        code == 3 && said.contains("rejected"),
        "a rejected promotion ended with {code}:\n{said}"
    );

    let long = [
        "--timeout",
        "2s",
        "--min-healthy",
        "10m",
        "--healthy-deadline",
        "20m",
    ];
    let mut arguments = vec!["promote", "shop/web#1", "--to", "staging", "--wait"];
    arguments.extend(long);
    let (code, out, said) = system.sealift_as("ada", &arguments).await?;
    ensure!(code == 124, "--timeout ended with {code}:\n{out}{said}");

    // What was requested goes on: the container still runs its time, until somebody cancels it.
    let id = system.json(&["promotion", "list"]).await?["promotions"][0]["uid"]
        .as_str()
        .unwrap_or_default()
        .to_owned();
    let seen = system.json(&["promotion", "get", &id]).await?;
    ensure!(seen["state"] == "STATE_DEPLOYING", "{seen}");
    system
        .sealift(&["promotion", "cancel", &id, "--reason", "the test is over"])
        .await?;
    eventually("the promotion is cancelled", async || {
        let seen = system.json(&["promotion", "get", &id]).await?;
        Ok((seen["state"] == "STATE_CANCELLED").then_some(()))
    })
    .await?;
    system.end().await
}
