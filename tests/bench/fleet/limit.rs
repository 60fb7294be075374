//! The storage limit: how fast the engine alone makes changes durable that are like those of tasks, each the guarded update of one row
//! and one new row of a history, on the same disk with the same settings, in a process of its own. The tables have the fewest
//! indexes that the statements need, so the limit is a generous one.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};
use futures::future::try_join_all;
use sealift_common::time::{Clock as _, SystemClock};
use serde_json::json;
use sqlx::{
    Connection as _, Executor as _, PgConnection, QueryBuilder, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

/// Changes in one transaction of the batched way.
const BATCH: usize = 100;
/// Writers on PostgreSQL, as many as the orchestrator has.
const WRITERS: usize = 4;
/// Most changes of the way that commits each.
const MOST_SINGLE: usize = 5_000;

const SQLITE_TABLES: [&str; 2] = [
    "CREATE TABLE limit_tasks (id INTEGER NOT NULL PRIMARY KEY, state TEXT NOT NULL, version INTEGER NOT NULL, at TEXT NOT NULL) STRICT",
    "CREATE TABLE limit_history (ordinal INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT, task_id INTEGER NOT NULL, seq INTEGER NOT NULL, \
     from_state TEXT NOT NULL, to_state TEXT NOT NULL, event TEXT NOT NULL, actor TEXT NOT NULL, detail TEXT NOT NULL, \
     at TEXT NOT NULL, UNIQUE (task_id, seq)) STRICT",
];
const POSTGRES_TABLES: [&str; 4] = [
    "DROP TABLE IF EXISTS limit_tasks",
    "DROP TABLE IF EXISTS limit_history",
    "CREATE TABLE limit_tasks (id BIGINT NOT NULL PRIMARY KEY, state TEXT NOT NULL, version BIGINT NOT NULL, at TIMESTAMPTZ NOT NULL)",
    "CREATE TABLE limit_history (ordinal BIGINT NOT NULL GENERATED ALWAYS AS IDENTITY PRIMARY KEY, task_id BIGINT NOT NULL, \
     seq BIGINT NOT NULL, from_state TEXT NOT NULL, to_state TEXT NOT NULL, event TEXT NOT NULL, actor TEXT NOT NULL, \
     detail TEXT NOT NULL, at TIMESTAMPTZ NOT NULL, UNIQUE (task_id, seq))",
];
const MOVE: &str =
    "UPDATE limit_tasks SET state = $3, version = version + 1, at = $4 WHERE id = $1 AND version = $2";
const MOVE_MANY: &str = "UPDATE limit_tasks SET version = version + 1, state = ";
const INSERT_TASKS: &str = "INSERT INTO limit_tasks (id, state, version, at) ";
const INSERT_HISTORY: &str =
    "INSERT INTO limit_history (task_id, seq, from_state, to_state, event, actor, detail, at) ";
const ACTOR: &str = "agent/01990000-0000-7000-8000-000000000000";

/// How changes are grouped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// A transaction for each change.
    Single,
    /// A hundred changes in a transaction, each row updated by a statement of its own, their history in one.
    Batched,
    /// The same with one statement for all updates too, which only changes that are alike allow.
    Bulk,
}

/// Repeats one body for either engine.
macro_rules! on {
    ($connection:expr, |$conn:ident| $body:expr) => {
        match $connection {
            Connection::Sqlite($conn) => $body,
            Connection::Postgres($conn) => $body,
        }
    };
}

enum Connection {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// Makes `transitions` changes of `tasks` rows in each way; prints seconds per change of each.
pub async fn run(url: &str, tasks: usize, transitions: usize) -> Result<()> {
    ensure!(tasks > 0 && transitions >= tasks, "nothing to change");
    let rounds = transitions / tasks;
    let mut answer = json!({ "transitions": rounds * tasks });
    for (name, way) in [
        ("single", Way::Single),
        ("batched", Way::Batched),
        ("bulk", Way::Bulk),
    ] {
        let (rows, rounds) = match way {
            Way::Single => (tasks.min(MOST_SINGLE / rounds.max(1)).max(1), rounds),
            Way::Batched | Way::Bulk => (tasks, rounds),
        };
        let mut connections = connections(url, name).await?;
        fill(&mut connections[0], rows).await?;
        let took = measure(&mut connections, way, rows, rounds).await?;
        answer[name] = json!(took.as_secs_f64() / (rows * rounds) as f64);
        for connection in connections {
            on!(connection, |conn| conn.close().await)?;
        }
    }
    println!("{answer}");
    Ok(())
}

async fn connections(url: &str, way: &str) -> Result<Vec<Connection>> {
    if let Some(folder) = url.strip_prefix("sqlite:") {
        let options = SqliteConnectOptions::new()
            .filename(Path::new(folder).join(format!("limit-{way}.db")))
            .create_if_missing(true)
            .journal_mode(SqliteJournalMode::Wal)
            .synchronous(SqliteSynchronous::Full);
        let mut one = SqliteConnection::connect_with(&options).await?;
        for statement in SQLITE_TABLES {
            one.execute(statement).await?;
        }
        return Ok(vec![Connection::Sqlite(one)]);
    }
    let mut all = Vec::new();
    for _ in 0..WRITERS {
        all.push(PgConnection::connect(url).await?);
    }
    for statement in POSTGRES_TABLES {
        all[0].execute(statement).await?;
    }
    Ok(all.into_iter().map(Connection::Postgres).collect())
}

async fn fill(connection: &mut Connection, tasks: usize) -> Result<()> {
    let now = SystemClock.now();
    let ids: Vec<i64> = (0..tasks as i64).collect();
    for chunk in ids.chunks(1_000) {
        on!(connection, |conn| {
            let mut query = QueryBuilder::new(INSERT_TASKS);
            query.push_values(chunk, |mut row, id| {
                row.push_bind(*id).push_bind("0").push_bind(0_i64).push_bind(now);
            });
            query.build().execute(conn).await.map(drop)
        })?;
    }
    Ok(())
}

async fn measure(connections: &mut [Connection], way: Way, tasks: usize, rounds: usize) -> Result<Duration> {
    let writers = connections.len();
    let begun = Instant::now();
    let shares = connections
        .iter_mut()
        .enumerate()
        .map(|(writer, connection)| async move {
            let ids: Vec<i64> = (writer..tasks).step_by(writers).map(|id| id as i64).collect();
            let size = if way == Way::Single { 1 } else { BATCH };
            for round in 0..rounds as i64 {
                for chunk in ids.chunks(size) {
                    on!(connection, |conn| {
                        let mut tx = conn.begin().await?;
                        let (state, now) = ((round + 1).to_string(), SystemClock.now());
                        if way == Way::Bulk {
                            let mut query = QueryBuilder::new(MOVE_MANY);
                            query.push_bind(state.as_str()).push(", at = ").push_bind(now);
                            query
                                .push(" WHERE version = ")
                                .push_bind(round)
                                .push(" AND id IN (");
                            let mut list = query.separated(", ");
                            for id in chunk {
                                list.push_bind(*id);
                            }
                            list.push_unseparated(")");
                            let done = query.build().execute(&mut *tx).await?;
                            ensure!(
                                done.rows_affected() as usize == chunk.len(),
                                "a row was not moved"
                            );
                        } else {
                            for id in chunk {
                                let moved = sqlx::query(MOVE)
                                    .bind(*id)
                                    .bind(round)
                                    .bind(state.as_str())
                                    .bind(now)
                                    .execute(&mut *tx)
                                    .await?;
                                ensure!(moved.rows_affected() == 1, "a row was not moved");
                            }
                        }
                        let mut query = QueryBuilder::new(INSERT_HISTORY);
                        query.push_values(chunk, |mut row, id| {
                            row.push_bind(*id)
                                .push_bind(round + 1)
                                .push_bind("running")
                                .push_bind(state.as_str())
                                .push_bind("progressed")
                                .push_bind(ACTOR)
                                .push_bind("health_wait")
                                .push_bind(now);
                        });
                        query.build().execute(&mut *tx).await?;
                        tx.commit().await?;
                    });
                }
            }
            Ok::<_, anyhow::Error>(())
        });
    try_join_all(shares).await?;
    Ok(begun.elapsed())
}
