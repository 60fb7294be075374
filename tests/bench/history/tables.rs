//! The tables of history as far as a row can be written by anybody: names and kinds of their columns, and rows of values that
//! both engines take. Columns that the database numbers itself are left out.

use anyhow::{Context as _, Result};
use serde_json::Value as JsonValue;
use sqlx::{
    Connection as _, PgConnection, Postgres, QueryBuilder, Row as _, Sqlite, SqliteConnection,
    sqlite::{SqliteConnectOptions, SqliteRow},
    types::{Json, Uuid},
};

type Time = chrono::DateTime<chrono::Utc>;

/// Rows per statement: far below the bound on parameters of both engines.
const BULK: usize = 200;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Id,
    Text,
    Int,
    Bool,
    Bytes,
    Time,
    Json,
}

/// What one row has in one column.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Id(Uuid),
    Text(String),
    Int(i64),
    Bool(bool),
    Bytes(Vec<u8>),
    Time(Time),
    Json(JsonValue),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

/// A row, in the order of its table's columns.
pub type Row = Vec<Value>;

/// A table.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    pub name: &'static str,
    pub columns: &'static [(&'static str, Kind)],
}

impl Table {
    /// Where a column is.
    pub fn at(&self, column: &str) -> Result<usize> {
        let found = self.columns.iter().position(|(name, _)| *name == column);
        found.with_context(|| format!("{} has no column {column}", self.name))
    }
}

macro_rules! tables {
    ($($constant:ident = $name:literal { $($kind:ident: $($column:literal)+;)+ })+) => {$(
        pub const $constant: Table = Table {
            name: $name,
            columns: &[$($(($column, Kind::$kind)),+),+],
        };
    )+};
}

tables! {
    RELEASES = "releases" {
        Id: "id" "tenant_id" "project_id";
        Text: "repository" "project" "commit_id" "state" "content" "manifest" "created_by";
        Int: "number";
        Time: "created_at";
    }
    RELEASE_COMPONENTS = "release_components" {
        Id: "release_id" "component_id";
        Text: "service" "component" "digest" "platforms";
    }
    VERSION_ENTRIES = "version_entries" {
        Id: "component_id";
        Text: "tag" "digest";
        Time: "resolved_at";
    }
    PROMOTIONS = "promotions" {
        Id: "id" "tenant_id" "environment_id" "release_id" "rollback_of" "rerun_of" "superseded_by";
        Text: "environment" "state" "plan_json" "plan_digest" "change_summary" "requested_by" "requester_role" "failure";
        Json: "recipe" "scope";
        Int: "version";
        Time: "created_at" "finished_at";
    }
    DECISIONS = "decisions" {
        Id: "id" "promotion_id";
        Text: "digest";
        Bytes: "record";
        Bool: "passed";
        Time: "created_at";
    }
    JOBS = "jobs" {
        Id: "id" "tenant_id" "promotion_id" "environment_id" "release_id" "rollback_of";
        Text: "environment" "state" "pause_reason" "pause_gate" "failure" "stop" "stop_failure";
        Int: "ticket" "accepted_failures" "version";
        Time: "resumed_at" "created_at" "started_at" "finished_at";
    }
    WAVES = "waves" {
        Id: "job_id";
        Int: "ordinal";
        Json: "what_then";
        Time: "opened_at" "settled_at" "passed_at";
    }
    JOB_SUBJECTS = "job_subjects" { Id: "environment_id" "subject_id" "job_id"; }
    TASKS = "tasks" {
        Id: "id" "job_id" "tenant_id" "target_id" "agent_id";
        Text: "target" "environment" "state" "step" "skip_reason" "failure" "wanted";
        Int: "wave" "attempt" "fence" "version";
        Time: "lease_until" "retry_at" "created_at" "started_at" "finished_at";
    }
    TASK_ATTEMPTS = "task_attempts" {
        Id: "task_id" "agent_id" "packet_id";
        Int: "number" "fence";
        Bytes: "order_envelope";
        Text: "order_digest" "result";
        Time: "started_at" "due_at" "finished_at";
    }
    TRANSITIONS = "transitions" {
        Text: "entity_kind" "from_state" "to_state" "event" "actor" "detail" "failure";
        Id: "entity_id";
        Int: "seq";
        Time: "at";
    }
    ACTIVE_COMPONENTS = "active_components" {
        Id: "environment_id" "component_id" "project_id" "release_id" "job_id" "superseded_by";
        Text: "digest";
        Time: "since" "superseded_at";
    }
    STICKERS = "stickers" {
        Id: "target_id" "task_id";
        Text: "project" "digest" "previous";
        Bytes: "content";
        Time: "created_at";
    }
    PACKETS = "packets" {
        Id: "id" "tenant_id" "environment_id" "target_id" "job_id" "task_id" "agent_id";
        Int: "attempt";
        Text: "result" "digest";
        Bytes: "envelope";
        Time: "created_at";
    }
    LOG_HEADS = "log_heads" { Id: "job_id"; Int: "last_position"; }
    LOG_LINES = "log_lines" {
        Id: "job_id" "task_id";
        Int: "position" "attempt" "seq";
        Text: "source" "text";
        Time: "at";
        Bool: "truncated";
    }
    LOG_SIZES = "log_sizes" {
        Id: "task_id";
        Int: "attempt" "bytes";
        Bool: "truncated";
    }
    DRIFT = "drift" {
        Id: "id" "tenant_id" "environment_id" "target_id" "job_id";
        Text: "project" "kind" "service" "severity" "expected" "actual";
        Time: "first_seen_at" "last_seen_at" "resolved_at";
    }
    HOLDS = "holds" {
        Id: "id" "tenant_id" "environment_id" "project_id";
        Text: "reason" "placed_by" "lifted_by";
        Time: "placed_at" "lifted_at";
    }
    AUDIT_EVENTS = "audit_events" {
        Int: "seq";
        Time: "at";
        Id: "tenant_id";
        Text: "actor" "role" "action" "resource" "outcome" "reason" "request_id" "previous";
    }
}

/// A connection past the orchestrator, which must not run meanwhile.
pub enum Conn {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

/// The same words for both engines; each copy is checked with its own driver.
macro_rules! on {
    ($conn:expr, |$inner:ident: $database:ident| $body:expr) => {
        match $conn {
            Conn::Sqlite($inner) => {
                type $database = Sqlite;
                $body
            }
            Conn::Postgres($inner) => {
                type $database = Postgres;
                $body
            }
        }
    };
}

impl Conn {
    /// Connects to the database of an orchestrator. What is written is as checked as ever, but not flushed until the end.
    pub async fn open(url: &str) -> Result<Self> {
        let Some(path) = url.strip_prefix("sqlite:") else {
            return Ok(Self::Postgres(PgConnection::connect(url).await?));
        };
        let options = SqliteConnectOptions::new().filename(path).foreign_keys(true);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        sqlx::raw_sql("PRAGMA synchronous = OFF")
            .execute(&mut connection)
            .await?;
        Ok(Self::Sqlite(connection))
    }

    /// Runs statements without parameters.
    pub async fn run(&mut self, sql: &'static str) -> Result<()> {
        on!(self, |conn: Database| {
            let mut query = QueryBuilder::<Database>::new(sql);
            query.build().execute(conn).await.map(drop)
        })?;
        Ok(())
    }

    /// Runs one statement with values in place of `?`.
    pub async fn set(&mut self, sql: &'static str, values: &[Value]) -> Result<u64> {
        let mut pieces = sql.split('?');
        let done = on!(self, |conn: Database| {
            let mut query = QueryBuilder::<Database>::new(pieces.next().unwrap_or_default());
            for (piece, value) in pieces.zip(values) {
                match value.clone() {
                    Value::Null => query.push("NULL"),
                    Value::Id(value) => query.push_bind(value),
                    Value::Text(value) => query.push_bind(value),
                    Value::Int(value) => query.push_bind(value),
                    Value::Bool(value) => query.push_bind(value),
                    Value::Bytes(value) => query.push_bind(value),
                    Value::Time(value) => query.push_bind(value),
                    Value::Json(value) => query.push_bind(Json(value)),
                };
                query.push(piece);
            }
            query.build().execute(conn).await.map(|done| done.rows_affected())
        })?;
        Ok(done)
    }

    /// Writes rows, many per statement.
    pub async fn insert(&mut self, table: &Table, rows: &[Row]) -> Result<()> {
        for chunk in rows.chunks(BULK) {
            let done = on!(self, |conn: Database| {
                let mut query = QueryBuilder::<Database>::new("INSERT INTO ");
                query.push(table.name);
                for (number, (column, _)) in table.columns.iter().enumerate() {
                    query.push(if number == 0 { " (" } else { ", " }).push(column);
                }
                query.push(") ");
                query.push_values(chunk, |mut row, values| {
                    for value in values {
                        match value {
                            Value::Null => row.push("NULL"),
                            Value::Id(value) => row.push_bind(*value),
                            Value::Text(value) => row.push_bind(value.as_str()),
                            Value::Int(value) => row.push_bind(*value),
                            Value::Bool(value) => row.push_bind(*value),
                            Value::Bytes(value) => row.push_bind(value.as_slice()),
                            Value::Time(value) => row.push_bind(*value),
                            Value::Json(value) => row.push_bind(Json(value)),
                        };
                    }
                });
                query.build().execute(conn).await.map(drop)
            });
            done.with_context(|| format!("rows of {}", table.name))?;
        }
        Ok(())
    }

    /// All rows of a table, in the order in which they were written. Of a small embedded database.
    pub async fn read(&mut self, table: &Table) -> Result<Vec<Row>> {
        let Self::Sqlite(connection) = self else {
            anyhow::bail!("rows are read from an embedded database");
        };
        let mut query = QueryBuilder::<Sqlite>::new("SELECT ");
        for (number, (column, _)) in table.columns.iter().enumerate() {
            query.push(if number == 0 { "" } else { ", " }).push(column);
        }
        query.push(" FROM ").push(table.name).push(" ORDER BY rowid");
        let found = query.build().fetch_all(connection).await?;
        let whole = |row: &SqliteRow| {
            let kinds = table.columns.iter().enumerate();
            kinds.map(|(at, (_, kind))| value(row, at, *kind)).collect()
        };
        found.iter().map(whole).collect()
    }

    /// Identifiers with the text that names each.
    pub async fn named(&mut self, sql: &'static str) -> Result<Vec<(Uuid, String)>> {
        Ok(on!(self, |conn: Database| {
            QueryBuilder::<Database>::new(sql)
                .build_query_as()
                .fetch_all(conn)
                .await
        })?)
    }

    /// Number and hash of the newest audit event.
    pub async fn audit_head(&mut self) -> Result<(i64, String)> {
        Ok(on!(self, |conn: Database| {
            QueryBuilder::<Database>::new("SELECT seq, hash FROM audit_head")
                .build_query_as()
                .fetch_one(conn)
                .await
        })?)
    }

    /// Ends the connection.
    pub async fn close(self) -> Result<()> {
        match self {
            Self::Sqlite(connection) => connection.close().await?,
            Self::Postgres(connection) => connection.close().await?,
        }
        Ok(())
    }
}

fn value(row: &SqliteRow, at: usize, kind: Kind) -> Result<Value> {
    let value = match kind {
        Kind::Id => row.try_get::<Option<Uuid>, _>(at)?.map(Value::Id),
        Kind::Text => row.try_get::<Option<String>, _>(at)?.map(Value::Text),
        Kind::Int => row.try_get::<Option<i64>, _>(at)?.map(Value::Int),
        Kind::Bool => row.try_get::<Option<bool>, _>(at)?.map(Value::Bool),
        Kind::Bytes => row.try_get::<Option<Vec<u8>>, _>(at)?.map(Value::Bytes),
        Kind::Time => row.try_get::<Option<Time>, _>(at)?.map(Value::Time),
        Kind::Json => row
            .try_get::<Option<Json<JsonValue>>, _>(at)?
            .map(|json| Value::Json(json.0)),
    };
    Ok(value.unwrap_or(Value::Null))
}
