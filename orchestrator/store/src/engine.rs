//! The two database engines. The only file that knows there are two; what they differ in beyond this is in the migrations.
//!
//! SQLite: one writer connection with `BEGIN IMMEDIATE` (a deferred transaction that upgrades fails at once), several
//! read-only connections, a lock file held for life. Nobody runs ANALYZE there: without statistics the schema alone decides how a
//! statement is carried out, so it is the same on the first day and after years, and a test can read it (P7). PostgreSQL: read committed for writes (every update checks a version),
//! a read-only snapshot for reads.

use std::{
    fs::{File, OpenOptions, TryLockError},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use sqlx::{
    Connection, Database, Encode, Executor, Postgres, QueryBuilder, Sqlite, Transaction, Type,
    pool::PoolOptions,
    postgres::{PgConnectOptions, PgPool},
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqliteSynchronous},
};
use tokio::sync::broadcast;
use uuid::Uuid;

use crate::{
    changes::{CHANGES_KEPT, Change},
    error::{Result, StoreError},
};

/// Repeats one body per engine; each copy is checked by the compiler with its own driver.
macro_rules! on {
    ($tx:expr, |$conn:ident| $body:expr) => {
        match &mut $tx.inner {
            $crate::engine::Inner::Sqlite(transaction) => {
                let $conn = &mut **transaction;
                $body
            }
            $crate::engine::Inner::Postgres(transaction) => {
                let $conn = &mut **transaction;
                $body
            }
        }
    };
}

/// Declares the statements of one file as constants and lists them, so that a test can prepare each on both engines.
macro_rules! statements {
    ($($name:ident = { $($sql:tt)+ };)+) => {
        $(const $name: &str = concat!($($sql)+);)+

        /// Every constant statement of this file.
        pub(crate) const STATEMENTS: &[crate::Statement] = &[$(crate::Statement {
            file: module_path!(),
            name: stringify!($name),
            sql: $name,
        },)+];
    };
}

pub(crate) use {on, statements};

/// A statement about some identifiers: they are listed between `head`, which ends with an opening parenthesis, and `tail`, which begins
/// with the closing one.
pub(crate) fn of_ids<DB>(head: &str, ids: impl Iterator<Item = Uuid>, tail: &str) -> QueryBuilder<DB>
where
    DB: Database,
    Uuid: Type<DB> + for<'q> Encode<'q, DB>,
{
    let mut query = QueryBuilder::new(head);
    push_ids(&mut query, ids, tail);
    query
}

/// The same, behind what a statement holds already.
pub(crate) fn push_ids<DB>(query: &mut QueryBuilder<DB>, ids: impl Iterator<Item = Uuid>, tail: &str)
where
    DB: Database,
    Uuid: Type<DB> + for<'q> Encode<'q, DB>,
{
    let mut list = query.separated(", ");
    for id in ids {
        list.push_bind(id);
    }
    list.push_unseparated(tail);
}

/// Oldest SQLite that is safe in WAL mode: versions before it can corrupt the file when the log is reset.
const OLDEST_SQLITE: (u32, u32, u32) = (3, 51, 3);
/// A larger SQLite file is not checked as a whole at the start.
const CHECKED_BYTES: u64 = 512 * 1024 * 1024;
/// Longest time that a single statement may take, on PostgreSQL.
const STATEMENT_DEADLINE: &str = "30s";
/// Longest wait for a lock: SQLite's busy timeout, PostgreSQL's lock timeout.
const LOCK_DEADLINE: Duration = Duration::from_secs(10);
/// Longest time that an open transaction may stand idle, on PostgreSQL.
const IDLE_DEADLINE: &str = "60s";
/// Longest time that a health check may take.
const PING_DEADLINE: Duration = Duration::from_secs(2);

static SQLITE_MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/sqlite");
static POSTGRES_MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("../../migrations/postgres");

/// Which engine holds the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// One file, one process.
    Sqlite,
    /// A server, several replicas.
    Postgres,
}

/// Where the data is and how hard to use it.
#[derive(Debug, Clone)]
pub struct StoreConfig {
    /// `sqlite:PATH` or `postgres://…`.
    pub url: String,
    /// Most connections: readers on SQLite (the writer comes on top), all on PostgreSQL.
    pub max_connections: u32,
    /// Longest wait for a free connection.
    pub acquire_deadline: Duration,
}

#[derive(Debug, Clone)]
enum Pools {
    Sqlite {
        writer: SqlitePool,
        readers: SqlitePool,
        _lock: Arc<File>,
    },
    Postgres(PgPool),
}

/// The database. Cheap to clone; all clones share connections and changes.
#[derive(Debug, Clone)]
pub struct Db {
    pools: Pools,
    changes: broadcast::Sender<Change>,
}

#[derive(Debug)]
pub(crate) enum Inner {
    Sqlite(Transaction<'static, Sqlite>),
    Postgres(Transaction<'static, Postgres>),
}

/// A transaction. Dropping it rolls it back. In a read transaction every writing method fails with
/// [`StoreError::ReadOnly`].
#[derive(Debug)]
pub struct Tx {
    pub(crate) inner: Inner,
    pub(crate) changes: Vec<Change>,
    /// Rows of the history that are written together.
    pub(crate) history: Vec<crate::transitions::Waiting>,
    publisher: broadcast::Sender<Change>,
}

impl Db {
    /// Opens the database, brings its schema up to date, and on SQLite takes the lock that keeps a second orchestrator out.
    pub async fn open(config: &StoreConfig) -> Result<Self> {
        let pools = if let Some(path) = config.url.strip_prefix("sqlite:") {
            open_sqlite(Path::new(path.strip_prefix("//").unwrap_or(path)), config).await?
        } else if config.url.starts_with("postgres://") || config.url.starts_with("postgresql://") {
            open_postgres(config).await?
        } else {
            let text = "the database URL begins neither with sqlite: nor with postgres://";
            return Err(StoreError::Unsupported(text.to_owned()));
        };
        let (changes, _) = broadcast::channel(CHANGES_KEPT);
        Ok(Self { pools, changes })
    }

    /// Which engine this is.
    pub fn engine(&self) -> Engine {
        match self.pools {
            Pools::Sqlite { .. } => Engine::Sqlite,
            Pools::Postgres(_) => Engine::Postgres,
        }
    }

    /// Asks the database for a sign of life, within two seconds.
    pub async fn ping(&self) -> Result<()> {
        let ask = async {
            match &self.pools {
                Pools::Sqlite { readers, .. } => sqlx::query("SELECT 1").execute(readers).await.map(drop),
                Pools::Postgres(pool) => sqlx::query("SELECT 1").execute(pool).await.map(drop),
            }
        };
        match tokio::time::timeout(PING_DEADLINE, ask).await {
            Ok(answer) => answer.map_err(StoreError::from),
            Err(_) => Err(StoreError::Unavailable(sqlx::Error::PoolTimedOut)),
        }
    }

    /// Begins a read-only transaction that sees one instant.
    pub async fn read(&self) -> Result<Tx> {
        let inner = match &self.pools {
            Pools::Sqlite { readers, .. } => Inner::Sqlite(readers.begin_with("BEGIN DEFERRED").await?),
            Pools::Postgres(pool) => {
                let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY";
                Inner::Postgres(pool.begin_with(begin).await?)
            }
        };
        Ok(self.tx(inner))
    }

    /// Begins a transaction that may write.
    pub async fn write(&self) -> Result<Tx> {
        let inner = match &self.pools {
            Pools::Sqlite { writer, .. } => Inner::Sqlite(writer.begin_with("BEGIN IMMEDIATE").await?),
            Pools::Postgres(pool) => {
                Inner::Postgres(pool.begin_with("BEGIN ISOLATION LEVEL READ COMMITTED").await?)
            }
        };
        Ok(self.tx(inner))
    }

    fn tx(&self, inner: Inner) -> Tx {
        Tx {
            inner,
            changes: Vec::new(),
            history: Vec::new(),
            publisher: self.changes.clone(),
        }
    }

    /// What other tasks of this process commit from now on. A reader that lags must read its state again.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Closes all connections after their work is done. The SQLite lock ends with the last clone.
    pub async fn close(self) {
        match self.pools {
            Pools::Sqlite { writer, readers, .. } => {
                readers.close().await;
                writer.close().await;
            }
            Pools::Postgres(pool) => pool.close().await,
        }
    }

    /// Prepares `sql` without running it.
    pub async fn prepare(&self, sql: &'static str) -> Result<()> {
        let mut tx = self.write().await?;
        on!(tx, |conn| conn
            .prepare(sqlx::SqlStr::from_static(sql))
            .await
            .map(drop))?;
        Ok(())
    }
}

impl Tx {
    /// Makes it all lasting, then tells the subscribers.
    pub async fn commit(mut self) -> Result<()> {
        self.write_history().await?;
        match self.inner {
            Inner::Sqlite(transaction) => transaction.commit().await?,
            Inner::Postgres(transaction) => transaction.commit().await?,
        }
        for change in self.changes {
            // Nobody listening is a normal case.
            let _ = self.publisher.send(change);
        }
        Ok(())
    }

    /// Notes a change that is told at commit, once.
    pub(crate) fn note(&mut self, change: Change) {
        if !self.changes.contains(&change) {
            self.changes.push(change);
        }
    }
}

async fn open_sqlite(path: &Path, config: &StoreConfig) -> Result<Pools> {
    let path = &spelled_out(path);
    let lock = lock(path)?;
    let options = SqliteConnectOptions::new()
        .filename(path)
        .foreign_keys(true)
        .busy_timeout(LOCK_DEADLINE);
    let writing = options
        .clone()
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full);
    let writer: SqlitePool = PoolOptions::new()
        .min_connections(1)
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .acquire_timeout(config.acquire_deadline)
        .connect_with(writing)
        .await?;
    let version: String = sqlx::query_scalar("SELECT sqlite_version()")
        .fetch_one(&writer)
        .await?;
    check_sqlite(&version)?;
    // Better no start than one that finds the damage in the middle of a deployment. It reads the whole file, so that a large one
    // would make the start last for minutes: there each page is checked when it is used.
    if path.metadata().is_ok_and(|file| file.len() <= CHECKED_BYTES) {
        let found: String = sqlx::query_scalar("PRAGMA quick_check(1)")
            .fetch_one(&writer)
            .await?;
        if found != "ok" {
            return Err(StoreError::Damaged(found));
        }
    }
    SQLITE_MIGRATIONS.run(&writer).await?;
    let readers = PoolOptions::new()
        .max_connections(config.max_connections.max(1))
        .acquire_timeout(config.acquire_deadline)
        .connect_with(options.read_only(true))
        .await?;
    Ok(Pools::Sqlite {
        writer,
        readers,
        _lock: Arc::new(lock),
    })
}

/// The one path that all spellings of a database's path lead to, through links and dots: two spellings must not be two locks.
fn spelled_out(path: &Path) -> PathBuf {
    if let Ok(path) = path.canonicalize() {
        return path;
    }
    // There is no file yet. A folder that is not there either is told when the lock is made.
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    match (folder.canonicalize(), path.file_name()) {
        (Ok(folder), Some(name)) => folder.join(name),
        _ => path.to_owned(),
    }
}

/// Takes the lock file next to the database, or says who is in the way.
fn lock(database: &Path) -> Result<File> {
    let mut name = database.as_os_str().to_owned();
    name.push(".lock");
    let path = PathBuf::from(name);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(|source| StoreError::LockFile {
            path: path.clone(),
            source,
        })?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::Locked(format!(
            "another orchestrator uses {}: a SQLite database belongs to one process (stop the other one, or use PostgreSQL)",
            database.display()
        ))),
        Err(TryLockError::Error(source)) => Err(StoreError::LockFile { path, source }),
    }
}

/// Refuses an SQLite that may corrupt its file.
fn check_sqlite(version: &str) -> Result<()> {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    let mut next = || parts.next().unwrap_or(0);
    if (next(), next(), next()) < OLDEST_SQLITE {
        let text = format!("SQLite {version} can corrupt a database in WAL mode: at least 3.51.3 is needed");
        return Err(StoreError::Unsupported(text));
    }
    Ok(())
}

async fn open_postgres(config: &StoreConfig) -> Result<Pools> {
    let lock_deadline = format!("{}ms", LOCK_DEADLINE.as_millis());
    let options = PgConnectOptions::from_str(&config.url)?;
    // Migrations may take longer than any statement of daily work, so they run on a connection without deadlines.
    let mut connection = sqlx::PgConnection::connect_with(&options).await?;
    POSTGRES_MIGRATIONS.run(&mut connection).await?;
    connection.close().await?;
    let options = options.application_name("sealift").options([
        ("statement_timeout", STATEMENT_DEADLINE),
        ("lock_timeout", &lock_deadline),
        ("idle_in_transaction_session_timeout", IDLE_DEADLINE),
    ]);
    let pool = PoolOptions::new()
        .max_connections(config.max_connections.max(1))
        .acquire_timeout(config.acquire_deadline)
        .connect_with(options)
        .await?;
    Ok(Pools::Postgres(pool))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_sqlite_that_corrupts_is_refused() {
        for version in ["3.40.1", "3.51.2", "", "x"] {
            assert!(check_sqlite(version).is_err(), "{version}");
        }
        for version in ["3.51.3", "3.52.0", "4.0.0"] {
            assert!(check_sqlite(version).is_ok(), "{version}");
        }
    }
}
