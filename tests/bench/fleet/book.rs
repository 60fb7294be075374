//! The orchestrator's database, read past the orchestrator: what a job did and how long it took, without asking the one who is measured.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail, ensure};
use chrono::{DateTime, Utc};
use sqlx::{Connection as _, PgConnection, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::meter;

/// One database.
pub enum Book {
    /// A file.
    Sqlite(SqliteConnection, PathBuf),
    /// A server's.
    Postgres(PgConnection),
}

/// A job that has ended.
#[derive(Debug, Clone, Copy)]
pub struct Ended {
    /// When its waves and tasks were made.
    pub started: DateTime<Utc>,
    /// When it had succeeded.
    pub finished: DateTime<Utc>,
}

macro_rules! on {
    ($book:expr, |$conn:ident| $body:expr) => {
        match $book {
            Book::Sqlite($conn, _) => $body,
            Book::Postgres($conn) => $body,
        }
    };
}

const UNDER_WAY: &str =
    "SELECT COUNT(*) FROM jobs WHERE state IN ('queued', 'running', 'paused', 'rolling_back')";
const NEWEST: &str =
    "SELECT state, started_at, finished_at FROM jobs ORDER BY created_at DESC, id DESC LIMIT 1";
const TASK_TRANSITIONS: &str = "SELECT COUNT(*) FROM transitions WHERE entity_kind = 'task'";
const PACKETS: &str = "SELECT COUNT(*) FROM packets WHERE result = 'succeeded'";
const TRANSACTIONS: &str = "SELECT CAST(CAST(pg_snapshot_xmax(pg_current_snapshot()) AS TEXT) AS BIGINT)";

impl Book {
    /// Opens the database of an orchestrator to read.
    pub async fn open(url: &str) -> Result<Self> {
        if let Some(path) = url.strip_prefix("sqlite:") {
            let options = SqliteConnectOptions::new().filename(path).read_only(true);
            let connection = SqliteConnection::connect_with(&options).await?;
            Ok(Self::Sqlite(connection, Path::new(path).to_owned()))
        } else {
            Ok(Self::Postgres(PgConnection::connect(url).await?))
        }
    }

    async fn count(&mut self, statement: &'static str) -> Result<u64> {
        let count: i64 = on!(self, |conn| sqlx::query_scalar(statement).fetch_one(conn).await)?;
        Ok(u64::try_from(count)?)
    }

    /// Whether a job has not ended yet.
    pub async fn is_busy(&mut self) -> Result<bool> {
        Ok(self.count(UNDER_WAY).await? > 0)
    }

    /// Changes of tasks so far.
    pub async fn task_transitions(&mut self) -> Result<u64> {
        self.count(TASK_TRANSITIONS).await
    }

    /// Packets of successes so far.
    pub async fn packets(&mut self) -> Result<u64> {
        self.count(PACKETS).await
    }

    /// Transactions that wrote something so far.
    pub async fn commits(&mut self) -> Result<u64> {
        match self {
            Self::Sqlite(_, path) => Ok(meter::sqlite_commits(path)?.into()),
            Self::Postgres(_) => self.count(TRANSACTIONS).await,
        }
    }

    /// The newest job, which must have succeeded.
    pub async fn newest_job(&mut self) -> Result<Ended> {
        type Row = (String, Option<DateTime<Utc>>, Option<DateTime<Utc>>);
        let (state, started, finished): Row = on!(self, |conn| sqlx::query_as(NEWEST).fetch_one(conn).await)?;
        ensure!(state == "succeeded", "the job ended as {state}");
        let (Some(started), Some(finished)) = (started, finished) else {
            bail!("a job that succeeded without beginning or end");
        };
        Ok(Ended { started, finished })
    }
}
