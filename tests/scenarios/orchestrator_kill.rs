//! `kill -9` for the orchestrator in the middle of rollouts: what it acknowledged is there when it is started again, what was begun
//! ends, and nothing happened twice. Agents are simulated, so that this needs no engine; the orchestrator and `sealift` are the real
//! programs, on either database.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use sealift_e2e::{
    invariants,
    real::{Database, System, eventually},
    simulated::{Agents, Registry},
};
use serde_json::Value;
use tokio::{net::TcpListener, time::timeout};

const TARGETS: usize = 4;

/// When the orchestrator dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Moment {
    /// As soon as the promotion was acknowledged.
    Acknowledged,
    /// While agents work on the first orders.
    Working,
    /// While reports of the end of tasks come in, more than once.
    Reporting,
}

const MOMENTS: [Moment; 3] = [Moment::Acknowledged, Moment::Working, Moment::Reporting];
const TAGS: [&str; 4] = ["v1", "v2", "v3", "v4"];

async fn die(system: &mut System) -> Result<()> {
    system.kill_orchestrator().await?;
    system.start_orchestrator().await
}

/// A UUID that says which round it belongs to.
fn request_id(round: usize) -> String {
    format!("00000000-0000-4000-8000-{round:012}")
}

fn arguments<'a>(alias: &'a str, request: &'a str) -> [&'a str; 10] {
    [
        "promote",
        alias,
        "--to",
        "staging",
        "--rolling",
        "2",
        "--min-healthy",
        "1s",
        "--request-id",
        request,
    ]
}

/// How many tasks of the promotion's job are in one of these states; none while there is no job.
async fn tasks_in(system: &System, promotion: &str, states: &[&str]) -> Result<usize> {
    let promotion = system.json(&["promotion", "get", promotion]).await?;
    let Some(job) = promotion["job"].as_str().filter(|job| !job.is_empty()) else {
        return Ok(0);
    };
    let listed = system.json(&["job", "tasks", job]).await?;
    let tasks = listed["tasks"].as_array().cloned().unwrap_or_default();
    Ok(tasks
        .iter()
        .filter(|task| states.iter().any(|state| task["state"] == *state))
        .count())
}

async fn reached(system: &System, promotion: &str, states: &[&str], count: usize) -> Result<()> {
    eventually(&format!("{count} tasks are {states:?}"), async || {
        Ok((tasks_in(system, promotion, states).await? >= count).then_some(()))
    })
    .await
}

async fn die_at(system: &mut System, moment: Moment, promotion: &str) -> Result<()> {
    const ENDED: [&str; 1] = ["STATE_SUCCEEDED"];
    match moment {
        Moment::Acknowledged => die(system).await,
        Moment::Working => {
            reached(system, promotion, &["STATE_ACCEPTED", "STATE_RUNNING"], 1).await?;
            die(system).await
        }
        Moment::Reporting => {
            for ended in [1, TARGETS / 2, TARGETS] {
                reached(system, promotion, &ENDED, ended).await?;
                die(system).await?;
            }
            Ok(())
        }
    }
}

async fn deployed(system: &System, promotion: &str) -> Result<()> {
    eventually(&format!("{promotion} is deployed"), async || {
        let seen = system.json(&["promotion", "get", promotion]).await?;
        let state = seen["state"].as_str().unwrap_or_default().to_owned();
        ensure!(
            !["STATE_FAILED", "STATE_CANCELLED", "STATE_REJECTED"].contains(&state.as_str()),
            "{promotion} did not survive: {seen}"
        );
        Ok((state == "STATE_DEPLOYED").then_some(()))
    })
    .await
}

fn name(promotion: &Value) -> Result<String> {
    Ok(promotion["uid"]
        .as_str()
        .context("a promotion has a uid")?
        .to_owned())
}

/// Dies while two watches look on, and somebody follows the log.
async fn watched(system: &mut System, moment: Moment, promotion: &str, job: &str) -> Result<()> {
    let of_job = system.later("ada", &["job", "watch", job, "-o", "json"])?;
    let of_promotion = system.later("ada", &["promotion", "watch", promotion, "-o", "json"])?;
    let log = system.later("ada", &["job", "logs", job, "-f", "-o", "json"])?;
    let (of_job, of_promotion, log, died) =
        tokio::join!(of_job, of_promotion, log, die_at(system, moment, promotion));
    died?;
    let (code, followed, said) = log?;
    ensure!(code == 0, "job logs -f ended with {code}:\n{followed}{said}");
    ensure!(said.contains("trying again"), "it noticed nothing:\n{said}");
    let whole = system.sealift(&["job", "logs", job, "-o", "json"]).await?;
    // No line twice, none left out; what an agent tells of a job that is over comes too late for whoever follows it.
    ensure!(
        !followed.is_empty() && whole.starts_with(&followed),
        "followed, it was\n{followed}\nand is\n{whole}"
    );
    outlasted(&of_job?, "job").context("job watch")?;
    outlasted(&of_promotion?, "promotion").context("promotion watch")
}

/// A watch goes on over the death of what it watches: it ends well, and each line of its output is one JSON object.
fn outlasted((code, out, said): &(i32, String, String), about: &str) -> Result<()> {
    ensure!(*code == 0, "it ended with {code}:\n{out}{said}");
    let mut told = 0;
    for line in out.lines() {
        let news: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        told += usize::from(news[about].is_object());
    }
    ensure!(told > 1, "a change is one line:\n{out}");
    ensure!(said.contains("trying again"), "it noticed nothing:\n{said}");
    Ok(())
}

async fn kill_nine_loses_nothing(database: Database) -> Result<()> {
    let registry = Registry::start().await?;
    let mut system = System::start(database).await?;
    system.environment("staging", 10).await?;
    let mut agents = Agents::default();
    for number in 1..=TARGETS {
        let target = format!("staging/web-{number}");
        agents.join(&system, &target, registry.engine(&TAGS)).await?;
    }
    let mut acknowledged: Vec<String> = Vec::new();
    for (round, moment) in MOMENTS.into_iter().enumerate() {
        let release = system.release(&registry.image(TAGS[round]), round as u32).await?;
        let (alias, request) = (format!("shop/web#{release}"), request_id(round));
        let requested = system.json(&arguments(&alias, &request)).await?;
        let promotion = name(&requested)?;
        acknowledged.push(promotion.clone());
        let job = requested["job"].as_str().context("it has a job")?.to_owned();
        let died = match moment {
            Moment::Acknowledged | Moment::Working => die_at(&mut system, moment, &promotion).await,
            Moment::Reporting => watched(&mut system, moment, &promotion, &job).await,
        };
        died.with_context(|| format!("{moment:?}: {}", system.orchestrator_log()))?;
        let again = name(&system.json(&arguments(&alias, &request)).await?)?;
        ensure!(
            again == promotion,
            "{moment:?}: a repeated request got another answer"
        );
        deployed(&system, &promotion)
            .await
            .with_context(|| format!("{moment:?}: {}", system.orchestrator_log()))?;
        invariants::check(&system.database_url()).await?;
        agents.all_run()?;
    }

    // It dies while the request itself is under way. Whoever asks does not know what became of it, and asks again.
    let release = system.release(&registry.image(TAGS[3]), 4).await?;
    let (alias, request) = (format!("shop/web#{release}"), request_id(3));
    let mut asked: Vec<&str> = arguments(&alias, &request).to_vec();
    asked.extend(["-o", "json"]);
    let (before, url) = (acknowledged.len(), system.database_url());
    let committed = eventually("the request is committed", async || {
        Ok((invariants::promotions(&url).await? > before).then_some(()))
    });
    let request_under_way = system.later("ada", &asked)?;
    let (answer, restarted) = tokio::join!(request_under_way, async {
        committed.await?;
        die(&mut system).await
    });
    restarted?;
    let (code, out, said) = answer?;
    ensure!(
        [0, 6].contains(&code),
        "the request ended with {code}:\n{out}{said}"
    );
    let promotion = name(&system.json(&arguments(&alias, &request)).await?)?;
    ensure!(
        code == 6 || name(&serde_json::from_str(&out)?)? == promotion,
        "a repeated request got another answer"
    );
    deployed(&system, &promotion).await?;
    acknowledged.push(promotion);

    let listed = system.json(&["promotion", "list"]).await?;
    let listed = listed["promotions"].as_array().cloned().unwrap_or_default();
    let mut listed = listed.iter().map(name).collect::<Result<Vec<_>>>()?;
    listed.sort();
    acknowledged.sort();
    ensure!(
        listed == acknowledged,
        "wanted {acknowledged:?}, found {listed:?}"
    );
    invariants::at_rest(&system.database_url()).await?;
    let verified = system.admin(&["audit", "verify"]).await?;
    ensure!(verified.contains("events"), "{verified}");
    system.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r9_r16_kill_nine_of_the_orchestrator_loses_nothing_on_sqlite() -> Result<()> {
    kill_nine_loses_nothing(Database::Sqlite).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn r9_r16_kill_nine_of_the_orchestrator_loses_nothing_on_postgres() -> Result<()> {
    kill_nine_loses_nothing(Database::Postgres).await
}

/// Agents that lose their orchestrator together.
const FLEET: usize = 40;
/// How long nobody answers them, while each try is counted.
const SILENCE: Duration = Duration::from_secs(8);
/// Tries of one agent in that time: its waits double from a quarter of a second (half of the first wait, with the worst of luck).
const TRIES: usize = 6;
/// Within which all are there again.
const BACK: Duration = Duration::from_mins(1);

/// Counts who knocks at the orchestrator's door in its place.
async fn knocks(address: &str) -> Result<usize> {
    let listener = TcpListener::bind(address).await?;
    let mut count = 0;
    let counting = async {
        loop {
            drop(listener.accept().await?);
            count += 1;
        }
    };
    match timeout(SILENCE, counting).await {
        Ok(failed) => failed,
        Err(_) => Ok(count),
    }
}

async fn online(system: &System) -> Result<usize> {
    let listed = system.json(&["target", "list"]).await?;
    let targets = listed["targets"].as_array().cloned().unwrap_or_default();
    Ok(targets
        .iter()
        .filter(|target| target["agentStatus"] == "online")
        .count())
}

async fn all_agents_come_back(database: Database) -> Result<()> {
    let registry = Registry::start().await?;
    let mut system = System::start(database).await?;
    system.environment("staging", 10).await?;
    let mut agents = Agents::default();
    for number in 1..=FLEET {
        let target = format!("staging/web-{number}");
        agents.join(&system, &target, registry.engine(&TAGS)).await?;
    }
    ensure!(online(&system).await? == FLEET, "not all are online");
    let endpoint = system.endpoint();
    let address = endpoint.trim_start_matches("https://");
    system.kill_orchestrator().await?;
    let knocks = knocks(address).await?;
    ensure!(
        (FLEET..=FLEET * TRIES).contains(&knocks),
        "{FLEET} agents knocked {knocks} times within {SILENCE:?}"
    );
    system.start_orchestrator().await?;
    let back = eventually("all agents are back", async || {
        Ok((online(&system).await? == FLEET).then_some(()))
    });
    timeout(BACK, back)
        .await
        .with_context(|| format!("not all agents were back within {BACK:?}"))??;
    agents.all_run()?;

    // And they are good for work at once.
    let release = system.release(&registry.image(TAGS[0]), 1).await?;
    let alias = format!("shop/web#{release}");
    let requested = system
        .json(&["promote", &alias, "--to", "staging", "--min-healthy", "1s"])
        .await?;
    deployed(&system, &name(&requested)?).await?;
    invariants::at_rest(&system.database_url()).await?;
    system.end().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_all_agents_come_back_and_nobody_hammers_on_sqlite() -> Result<()> {
    all_agents_come_back(Database::Sqlite).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn f20_all_agents_come_back_and_nobody_hammers_on_postgres() -> Result<()> {
    all_agents_come_back(Database::Postgres).await
}
