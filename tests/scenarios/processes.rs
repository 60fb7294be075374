//! The three programs as processes, without an engine: exit codes and formats of `sealift` against a real orchestrator.

use std::process::Stdio;

use anyhow::{Context as _, Result, ensure};
use sealift_e2e::{
    real::{Database, System},
    wait::PATIENCE,
};
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt as _, BufReader, Lines},
    process::ChildStdout,
    time::timeout,
};

async fn code_of(system: &System, user: &str, arguments: &[&str]) -> Result<(i32, String)> {
    let (code, out, errors) = system.sealift_as(user, arguments).await?;
    ensure!(
        code == 0 || out.is_empty(),
        "{arguments:?} failed and wrote a result:\n{out}"
    );
    Ok((code, out + &errors))
}

#[tokio::test]
async fn exit_codes_tell_refusals_apart() -> Result<()> {
    let mut system = System::start(Database::Sqlite).await?;
    system.issue("olga", "observer").await?;
    system.environment("staging", 10).await?;
    for (user, arguments, wanted) in [
        ("olga", &["env", "list"][..], 0),
        // 4: known, but the role does not allow it.
        ("olga", &["env", "create", "production", "--position", "20"], 4),
        // 5: not there, or there already.
        ("ada", &["env", "get", "production"], 5),
        ("ada", &["env", "create", "staging", "--position", "30"], 5),
        ("ada", &["promote", "shop/web#1", "--to", "staging"], 5),
        // 64: the orchestrator finds that the input is not valid.
        ("ada", &["env", "create", "No Name", "--position", "1"], 64),
    ] {
        let (code, said) = code_of(&system, user, arguments).await?;
        ensure!(
            code == wanted,
            "{user} {arguments:?} ended with {code} instead of {wanted}:\n{said}"
        );
        ensure!(wanted == 0 || said.contains("error: "), "{said}");
    }
    system.kill_orchestrator().await?;
    let (code, said) = code_of(&system, "ada", &["whoami"]).await?;
    ensure!(
        code == 6 && said.contains("cannot be reached"),
        "without an orchestrator it ended with {code}:\n{said}"
    );
    system.end().await
}

#[tokio::test]
async fn results_are_the_same_in_json_and_yaml() -> Result<()> {
    let system = System::start(Database::Sqlite).await?;
    system.environment("staging", 10).await?;
    let json: Value = system.json(&["env", "get", "staging"]).await?;
    ensure!(json["name"] == "environments/staging", "{json}");
    let yaml = system.sealift(&["env", "get", "staging", "-o", "yaml"]).await?;
    ensure!(
        yaml.lines().any(|line| line == "name: environments/staging"),
        "{yaml}"
    );
    let table = system.sealift(&["env", "get", "staging"]).await?;
    ensure!(table.lines().count() == 2 && table.contains("staging"), "{table}");
    system.end().await
}

/// The next board that a watch shows which has an environment.
async fn board_with(watch: &mut Lines<BufReader<ChildStdout>>, environment: &str) -> Result<()> {
    let wanted = format!("environments/{environment}");
    let shown = async {
        loop {
            let line = watch.next_line().await?.context("the watch ended")?;
            let board: Value = serde_json::from_str(&line)?;
            let environments = board["environments"].as_array().cloned().unwrap_or_default();
            if environments.iter().any(|one| one["environment"] == *wanted) {
                return Ok(());
            }
        }
    };
    timeout(PATIENCE, shown).await.context(wanted.clone())?
}

#[tokio::test]
async fn a_status_that_is_watched_outlasts_the_orchestrator() -> Result<()> {
    let mut system = System::start(Database::Sqlite).await?;
    system.environment("staging", 10).await?;
    let mut watch = system.command("ada", &["status", "--watch", "-o", "json"])?;
    watch.stdout(Stdio::piped()).kill_on_drop(true);
    let mut watch = watch.spawn()?;
    let mut boards = BufReader::new(watch.stdout.take().context("it is piped")?).lines();
    board_with(&mut boards, "staging").await?;
    system.kill_orchestrator().await?;
    system.start_orchestrator().await?;
    system.environment("production", 20).await?;
    board_with(&mut boards, "production").await?;
    watch.kill().await?;
    system.end().await
}

#[tokio::test]
async fn a_list_for_programs_is_whole_and_one_that_is_cut_says_so() -> Result<()> {
    let system = System::start(Database::Sqlite).await?;
    for number in 0..3 {
        system.environment(&format!("env-{number}"), 10 + number).await?;
    }
    let whole = system.json(&["env", "list"]).await?;
    let cut = system.json(&["env", "list", "--limit", "2"]).await?;
    let count = |list: &Value| list["environments"].as_array().map_or(0, Vec::len);
    ensure!((count(&whole), count(&cut)) == (3, 2), "{whole}\n{cut}");
    ensure!(whole["nextPageToken"].is_null(), "{whole}");
    ensure!(cut["nextPageToken"].is_string(), "{cut}");
    let audit = system.json(&["audit"]).await?;
    ensure!(audit["events"].is_array(), "{audit}");
    let none = system.json(&["hold", "list"]).await?;
    ensure!(none["holds"] == serde_json::json!([]), "{none}");
    system.end().await
}
