//! Who watches the watchers: every invariant is shown a database that breaks it. Foreign keys are off, so that a breach needs few
//! rows; what the schema refuses by itself is no invariant here.

use std::collections::BTreeSet;

use sealift_store::{Db, StoreConfig};
use sqlx::{Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};
use tempfile::TempDir;

use super::{ALWAYS, AT_REST, Duration, at_rest, check};

macro_rules! job {
    ($id:literal, $ticket:literal, $state:literal, $finished:literal) => {
        concat!(
            "INSERT INTO jobs (id, tenant_id, promotion_id, environment_id, environment, release_id, state, ticket, \
             accepted_failures, version, created_at, finished_at) VALUES (x'", $id, "', x'00', x'", $id,
            "', x'e0', 'staging', x'f0', '", $state, "', ", $ticket, ", 0, 1, 't', ", $finished, ");"
        )
    };
}

macro_rules! task {
    ($id:literal, $job:literal, $target:literal, $wave:literal, $state:literal, $fence:literal, $finished:literal) => {
        concat!(
            "INSERT INTO tasks (id, job_id, tenant_id, target_id, target, environment, agent_id, wave, state, wanted, attempt, \
             fence, version, created_at, finished_at) VALUES (x'", $id, "', x'", $job, "', x'00', x'", $target,
            "', 'web-", $target, "', 'staging', x'a0', ", $wave, ", '", $state, "', 'run', 1, ", $fence, ", 1, 't', ",
            $finished, ");"
        )
    };
}

macro_rules! step {
    ($kind:literal, $id:literal, $seq:literal, $from:literal, $to:literal) => {
        concat!(
            "INSERT INTO transitions (entity_kind, entity_id, seq, from_state, to_state, event, actor, detail, at) VALUES ('",
            $kind, "', x'", $id, "', ", $seq, ", '", $from, "', '", $to, "', 'e', 'a', '', 't');"
        )
    };
}

macro_rules! attempt {
    ($task:literal, $fence:literal, $result:literal) => {
        concat!(
            "INSERT INTO task_attempts (task_id, number, fence, agent_id, order_envelope, order_digest, result, started_at, due_at) \
             VALUES (x'", $task, "', 1, ", $fence, ", x'a0', x'00', 'd', '", $result, "', 't', 't');"
        )
    };
}

macro_rules! target {
    ($id:literal, $fence:literal) => {
        concat!(
            "INSERT INTO targets (id, tenant_id, environment_id, environment, name, kind, labels, fence, revision, created_at, \
             updated_at) VALUES (x'", $id, "', x'00', x'e0', 'staging', 'web-", $id, "', 'docker_host', '{}', ", $fence,
            ", 1, 't', 't');"
        )
    };
}

const RELEASE: &str = "INSERT INTO projects VALUES (x'b0', x'00', 'r', 'p', 1, 't'); \
                       INSERT INTO releases VALUES (x'f0', x'00', x'b0', 'r', 'p', 'c', 1, 'ready', 'd', '{}', 'u', 't');";
const RECORDED: &str =
    "INSERT INTO target_current VALUES (x'c1', 'r', 'p', x'01', x'11', x'f0', 1, 'd', 'd', 't');";

/// A breach of each statement.
const BREACHES: &[(&str, &[&str])] = &[
    (
        "a lane runs one job at a time",
        &[
            job!("01", 1, "running", "NULL"),
            job!("02", 2, "running", "NULL"),
            step!("job", "01", 1, "queued", "running"),
            step!("job", "02", 1, "queued", "running"),
        ],
    ),
    (
        "a project has one job at a time in an environment, and beside one that is being undone its rollback",
        &[
            RELEASE,
            job!("01", 1, "running", "NULL"),
            "UPDATE jobs SET state = 'rolling_back', failure = '{}' WHERE id = x'01'",
            job!("02", 2, "running", "NULL"),
            step!("job", "01", 1, "queued", "running"),
            step!("job", "01", 2, "running", "rolling_back"),
            step!("job", "02", 1, "queued", "running"),
        ],
    ),
    (
        "a target has one task at a time",
        &[
            task!("11", "01", "c1", 0, "lost", 1, "NULL"),
            // The schema refuses two that live now; the log tells of two that lived at once.
            task!("12", "02", "c1", 0, "cancelled", 2, "'t'"),
            step!("task", "11", 1, "pending", "assigned"),
            step!("task", "12", 1, "pending", "assigned"),
        ],
    ),
    (
        "jobs of a lane begin in the order of their tickets, except rollbacks, and unless a hold keeps one back",
        &[
            job!("01", 1, "running", "NULL"),
            job!("02", 2, "succeeded", "'t'"),
            step!("job", "02", 1, "queued", "running"),
            step!("job", "02", 2, "running", "succeeded"),
            step!("job", "01", 1, "queued", "running"),
        ],
    ),
    (
        "every history has no gap, and each step begins where the one before ended",
        &[
            step!("job", "01", 1, "queued", "running"),
            step!("job", "01", 2, "paused", "running"),
        ],
    ),
    (
        "what has ended stays as it is",
        &[
            step!("job", "01", 1, "running", "succeeded"),
            step!("job", "01", 2, "succeeded", "running"),
        ],
    ),
    (
        "states are those that the histories end with",
        &[
            job!("01", 1, "running", "NULL"),
            step!("job", "01", 1, "queued", "succeeded"),
        ],
    ),
    (
        "what succeeded is proven by the packet of its last attempt",
        &[task!("11", "01", "c1", 0, "succeeded", 1, "'t'")],
    ),
    (
        "what is recorded of a target is its last success",
        &[
            RELEASE,
            job!("01", 1, "succeeded", "'t'"),
            job!("02", 2, "succeeded", "'t'"),
            task!("11", "01", "c1", 0, "succeeded", 1, "'t'"),
            task!("12", "02", "c1", 0, "succeeded", 2, "'t'"),
            RECORDED,
        ],
    ),
    (
        "release numbers have no gap",
        &["INSERT INTO projects VALUES (x'b0', x'00', 'r', 'p', 1, 't')"],
    ),
    (
        "the audit log has no gap and ends where its head says",
        &["UPDATE audit_head SET seq = 1"],
    ),
    (
        "a fencing token is given once, and never above the target's counter",
        &[
            target!("c1", 1),
            task!("11", "01", "c1", 0, "succeeded", 2, "'t'"),
            attempt!("11", 2, "succeeded"),
        ],
    ),
    (
        "a wave begins when the one before has ended",
        &[
            task!("11", "01", "c1", 0, "lost", 1, "NULL"),
            task!("12", "01", "c2", 1, "lost", 1, "NULL"),
            step!("task", "11", 1, "pending", "assigned"),
            step!("task", "12", 1, "pending", "assigned"),
        ],
    ),
    (
        "no promotion is under way",
        &[
            "INSERT INTO promotions (id, tenant_id, environment_id, environment, release_id, state, plan_json, plan_digest, recipe, \
             change_summary, requested_by, requester_role, version, created_at) VALUES \
             (x'01', x'00', x'e0', 'staging', x'f0', 'approved', '{}', 'd', '{}', '', 'u', 'ci', 0, 't')",
        ],
    ),
    ("the lanes are empty", &[job!("01", 1, "queued", "NULL")]),
    (
        "every task has ended",
        &[task!("11", "01", "c1", 0, "lost", 1, "NULL")],
    ),
    (
        "an attempt that ended has its packet, unless its agent never came back",
        &[
            target!("c1", 1),
            task!("11", "01", "c1", 0, "cancelled", 1, "'t'"),
            attempt!("11", 1, "cancelled"),
        ],
    ),
];

async fn database() -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let url = format!("sqlite:{}", folder.path().join("sealift.db").display());
    let config = StoreConfig {
        url: url.clone(),
        max_connections: 1,
        acquire_deadline: Duration::from_secs(10),
    };
    Db::open(&config).await.unwrap().close().await;
    (folder, url)
}

#[tokio::test]
async fn every_invariant_finds_its_breach_and_nothing_in_an_empty_database() {
    let (_folder, url) = database().await;
    at_rest(&url).await.unwrap();
    let shown: BTreeSet<_> = BREACHES.iter().map(|(statement, _)| *statement).collect();
    let all: BTreeSet<_> = ALWAYS.iter().chain(AT_REST).map(|one| one.statement).collect();
    assert_eq!(shown, all, "each is shown a breach");
    for (statement, rows) in BREACHES {
        let (folder, url) = database().await;
        let options = SqliteConnectOptions::new()
            .filename(folder.path().join("sealift.db"))
            .foreign_keys(false);
        let mut forger = SqliteConnection::connect_with(&options).await.unwrap();
        for row in *rows {
            sqlx::raw_sql(*row).execute(&mut forger).await.unwrap();
        }
        forger.close().await.unwrap();
        let found = at_rest(&url).await.unwrap_err().to_string();
        assert!(found.contains(statement), "{statement}: {found}");
        let always = ALWAYS.iter().any(|one| one.statement == *statement);
        let soon = check(&url).await.map_err(|error| error.to_string());
        assert_eq!(
            soon.is_err_and(|found| found.contains(statement)),
            always,
            "{statement}"
        );
    }
}
