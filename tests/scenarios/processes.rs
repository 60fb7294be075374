//! The three programs as processes, without an engine: exit codes and formats of `sealift` against a real orchestrator.

use anyhow::{Result, ensure};
use sealift_e2e::real::{Database, System};
use serde_json::Value;

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
