//! One fresh database per case, gone afterwards.

use std::{panic::AssertUnwindSafe, path::PathBuf, time::Duration};

use chrono::{DateTime, TimeDelta, Utc};
use futures::FutureExt;
use sealift_common::id::JobId;
use sealift_store::{Db, StoreConfig};
use sqlx::{Connection, PgConnection, QueryBuilder, SqliteConnection};
use tempfile::TempDir;

/// Runs each case on both engines.
macro_rules! conformance {
    ($($case:ident),+ $(,)?) => {
        mod on_sqlite {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    crate::harness::on_sqlite(super::$case).await;
                }
            )+
        }
        mod on_postgres {
            $(
                #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
                async fn $case() {
                    crate::harness::on_postgres(super::$case).await;
                }
            )+
        }
    };
}

pub(crate) use conformance;

/// A database for one case.
pub struct World {
    pub db: Db,
    pub config: StoreConfig,
}

/// Seconds after an arbitrary instant.
pub fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 123_456_000).unwrap() + TimeDelta::seconds(seconds)
}

pub fn config(url: String) -> StoreConfig {
    StoreConfig {
        url,
        max_connections: 8,
        acquire_deadline: Duration::from_secs(20),
    }
}

pub async fn on_sqlite(case: impl AsyncFnOnce(World)) {
    let folder = TempDir::new().unwrap();
    let config = config(format!("sqlite:{}", folder.path().join("sealift.db").display()));
    let db = Db::open(&config).await.unwrap();
    case(World { db, config }).await;
}

pub async fn on_postgres(case: impl AsyncFnOnce(World)) {
    let Some(server) = postgres_url() else { return };
    let database = Database::create(&server).await;
    let config = config(database.url.clone());
    let run = AssertUnwindSafe(async {
        let db = Db::open(&config).await.unwrap();
        case(World {
            db,
            config: config.clone(),
        })
        .await;
    });
    let outcome = run.catch_unwind().await;
    database.remove().await;
    if let Err(panic) = outcome {
        std::panic::resume_unwind(panic);
    }
}

fn postgres_url() -> Option<String> {
    let url = std::env::var("SEALIFT_TEST_POSTGRES_URL").ok();
    let skip = std::env::var("SEALIFT_TEST_SKIP_POSTGRES").is_ok_and(|value| value == "1");
    assert!(
        url.is_some() || skip,
        "SEALIFT_TEST_POSTGRES_URL is not set; SEALIFT_TEST_SKIP_POSTGRES=1 leaves PostgreSQL out"
    );
    url
}

/// A PostgreSQL database with a random name.
struct Database {
    server: String,
    name: String,
    url: String,
}

impl Database {
    async fn create(server: &str) -> Self {
        let name = format!("sealift_{}", JobId::new(at(0)).uuid().simple());
        let (base, _) = server.rsplit_once('/').unwrap();
        let database = Self {
            server: server.to_owned(),
            url: format!("{base}/{name}"),
            name,
        };
        database.run("CREATE DATABASE ", "").await;
        database
    }

    async fn remove(self) {
        self.run("DROP DATABASE ", " WITH (FORCE)").await;
    }

    async fn run(&self, before: &'static str, after: &'static str) {
        let mut connection = PgConnection::connect(&self.server).await.unwrap();
        let mut query = QueryBuilder::new(before);
        query.push(&self.name).push(after);
        query.build().execute(&mut connection).await.unwrap();
    }
}

/// A connection beside the store, for what the store would never do.
pub enum Raw {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Raw {
    pub async fn open(url: &str) -> Self {
        match url.strip_prefix("sqlite:") {
            Some(path) => {
                let options = sqlx::sqlite::SqliteConnectOptions::new()
                    .filename(PathBuf::from(path))
                    .create_if_missing(true)
                    .foreign_keys(true);
                Self::Sqlite(SqliteConnection::connect_with(&options).await.unwrap())
            }
            None => Self::Postgres(PgConnection::connect(url).await.unwrap()),
        }
    }

    /// Runs one or many statements.
    pub async fn run(&mut self, sql: &'static str) -> Result<(), sqlx::Error> {
        match self {
            Self::Sqlite(connection) => sqlx::raw_sql(sql).execute(connection).await.map(drop),
            Self::Postgres(connection) => sqlx::raw_sql(sql).execute(connection).await.map(drop),
        }
    }

    /// Ends the connection in the middle of whatever it does, and waits until it is gone.
    pub async fn end(self) {
        match self {
            Self::Sqlite(connection) => connection.close().await.unwrap(),
            Self::Postgres(connection) => connection.close().await.unwrap(),
        }
    }

    /// How SQLite would carry out a statement.
    pub async fn plan(&mut self, sql: &'static str) -> Vec<String> {
        let Self::Sqlite(connection) = self else {
            panic!("plans are read on SQLite");
        };
        let mut query = QueryBuilder::new("EXPLAIN QUERY PLAN ");
        query.push(sql);
        let rows: Vec<(i64, i64, i64, String)> = query.build_query_as().fetch_all(connection).await.unwrap();
        rows.into_iter().map(|(.., detail)| detail).collect()
    }

    /// Rows of texts.
    pub async fn texts(&mut self, sql: &'static str) -> Vec<(String, String, String)> {
        match self {
            Self::Sqlite(connection) => sqlx::query_as(sql).fetch_all(connection).await.unwrap(),
            Self::Postgres(connection) => sqlx::query_as(sql).fetch_all(connection).await.unwrap(),
        }
    }
}
