//! Errors of the store. What does not exist is `None`, never an error.

use std::path::PathBuf;

use sealift_common::{canonical::CanonicalError, task::IllegalTransition};

/// Result of the store.
pub type Result<T> = std::result::Result<T, StoreError>;

/// Why the store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else changed the row first: read again, decide again. The transaction itself is as good as before.
    #[error("a concurrent change won")]
    Conflict,
    /// Two transactions met, and the database has ended this one (deadlock, or no order in which both could have happened):
    /// nothing more can be said in it. Begin again; never go on in spite of it.
    #[error("the database ended the transaction in favour of another one")]
    Collision(#[source] sqlx::Error),
    /// A unique constraint refused the row.
    #[error("{constraint} exists already")]
    Duplicate {
        /// Name of the constraint, the same on both engines.
        constraint: &'static str,
    },
    /// A row names another row that does not exist, or that belongs to another tenant.
    #[error("the row refers to something that does not exist")]
    Reference(#[source] sqlx::Error),
    /// A CHECK constraint refused the row: a defect of the caller.
    #[error("the row is not one that the schema allows")]
    Check(#[source] sqlx::Error),
    /// Another orchestrator uses the SQLite file.
    #[error("{0}")]
    Locked(String),
    /// The lock file cannot be made or locked.
    #[error("cannot lock {path}")]
    LockFile {
        /// The lock file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The database, its URL or its version is not one that can be used.
    #[error("{0}")]
    Unsupported(String),
    /// A stored value is not one that this program writes.
    #[error("table {table}, column {column}, row {row} holds a value that cannot be read")]
    Corrupt {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// Identifier of the row.
        row: String,
    },
    /// The file is not an SQLite database any more, or not a whole one.
    #[error("the database file is damaged ({0}): keep a copy of it, then put a backup in its place")]
    Damaged(String),
    /// The database is away or too slow: try later.
    #[error("the database is not available")]
    Unavailable(#[source] sqlx::Error),
    /// A write inside a read transaction: a defect of the caller.
    #[error("a read transaction cannot write")]
    ReadOnly,
    /// The state does not allow the event.
    #[error(transparent)]
    IllegalTransition(#[from] IllegalTransition),
    /// The cursor is not one that this list gave.
    #[error("the page cursor is not one of this list")]
    InvalidCursor,
    /// A number that does not fit into the database's 64-bit signed integers.
    #[error("the number {0} is too large to be stored")]
    TooLarge(u64),
    /// A value has no JSON form.
    #[error("the value has no JSON form")]
    Json(#[from] serde_json::Error),
    /// A value has no canonical form.
    #[error("the value has no canonical form")]
    Canonical(#[from] CanonicalError),
    /// The schema could not be brought up to date.
    #[error("the database schema could not be brought up to date")]
    Migration(#[from] sqlx::migrate::MigrateError),
    /// Anything else that the driver says.
    #[error("the database refused a statement")]
    Driver(#[source] sqlx::Error),
}

/// Unique constraints and indexes by name, with the columns by which SQLite names them.
const UNIQUE: &[(&str, &str)] = &[
    ("tenant_name", "tenants.name"),
    ("user_name", "users.tenant_id, users.name"),
    ("certificates_pkey", "certificates.serial"),
    ("environment_name", "environments.tenant_id, environments.name"),
    ("target_name", "targets.environment_id, targets.name"),
    ("one_program_per_agent", "targets.agent_id"),
    ("component_name", "components.tenant_id, components.name"),
    (
        "component_repository",
        "components.tenant_id, components.repository",
    ),
    (
        "project_ref",
        "projects.tenant_id, projects.repository, projects.project",
    ),
    ("release_number", "releases.project_id, releases.number"),
    ("release_commit", "releases.project_id, releases.commit_id"),
    ("job_of_promotion", "jobs.promotion_id"),
    ("job_ticket", "jobs.environment_id, jobs.ticket"),
    ("task_target", "tasks.job_id, tasks.target_id"),
    ("one_live_task_per_target", "tasks.target_id"),
    (
        "task_attempts_pkey",
        "task_attempts.task_id, task_attempts.number",
    ),
    (
        "transition_seq",
        "transitions.entity_kind, transitions.entity_id, transitions.seq",
    ),
    (
        "one_active_release_per_component",
        "active_components.environment_id, active_components.project_id, active_components.component_id",
    ),
    (
        "one_open_drift",
        "drift.target_id, drift.project, drift.kind, drift.service",
    ),
    ("packet_of_attempt", "packets.task_id, packets.attempt"),
    ("log_line", "log_lines.task_id, log_lines.attempt, log_lines.seq"),
    (
        "idempotent_request",
        "idempotent_answers.tenant_id, idempotent_answers.principal, idempotent_answers.method, idempotent_answers.request_id",
    ),
];

/// Name of the violated unique constraint, whichever engine tells.
fn unique_constraint(error: &dyn sqlx::error::DatabaseError) -> &'static str {
    let columns = error
        .message()
        .rsplit_once("constraint failed: ")
        .map(|(_, tail)| tail);
    UNIQUE
        .iter()
        .find(|(name, on_sqlite)| error.constraint() == Some(name) || columns == Some(on_sqlite))
        .map_or("identifier", |(name, _)| name)
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        use sqlx::error::ErrorKind;
        let Some(database) = error.as_database_error() else {
            return match error {
                sqlx::Error::Io(_)
                | sqlx::Error::Tls(_)
                | sqlx::Error::PoolTimedOut
                | sqlx::Error::PoolClosed
                | sqlx::Error::WorkerCrashed
                | sqlx::Error::Protocol(_) => Self::Unavailable(error),
                other => Self::Driver(other),
            };
        };
        match database.kind() {
            ErrorKind::UniqueViolation => Self::Duplicate {
                constraint: unique_constraint(database),
            },
            ErrorKind::ForeignKeyViolation => Self::Reference(error),
            ErrorKind::CheckViolation | ErrorKind::NotNullViolation => Self::Check(error),
            _ => Self::by_code(database.code().unwrap_or_default().into_owned(), error),
        }
    }
}

impl StoreError {
    /// The database did not answer before the caller's own deadline.
    pub const fn out_of_time() -> Self {
        Self::Unavailable(sqlx::Error::PoolTimedOut)
    }

    /// Whether another change was faster, so that the whole transaction may be tried again.
    pub const fn is_concurrency(&self) -> bool {
        matches!(self, Self::Conflict | Self::Collision(_))
    }

    /// Whether the database says that its disk is full: a kind of [`StoreError::Unavailable`] that waiting does not end.
    pub fn is_disk_full(&self) -> bool {
        let Self::Unavailable(error) = self else {
            return false;
        };
        // SQLITE_FULL; SQLSTATE "disk full".
        error
            .as_database_error()
            .and_then(sqlx::error::DatabaseError::code)
            .is_some_and(|code| code == "13" || code == "53100")
    }

    /// Sorts the rest by SQLSTATE (five characters) or SQLite's extended result code (a number).
    fn by_code(code: String, error: sqlx::Error) -> Self {
        if code.len() == 5 {
            return match code.as_str() {
                "40001" | "40P01" => Self::Collision(error),
                "25006" => Self::ReadOnly,
                // Lock and statement deadlines, connections that end, servers that start, stop or are full.
                "55P03" | "57014" | "57P01" | "57P02" | "57P03" | "25P03" => Self::Unavailable(error),
                _ if code.starts_with("08") || code.starts_with("53") => Self::Unavailable(error),
                _ => Self::Driver(error),
            };
        }
        match code.parse::<u32>().unwrap_or(0) & 0xff {
            // SQLITE_BUSY, SQLITE_LOCKED, SQLITE_IOERR, SQLITE_FULL, SQLITE_CANTOPEN.
            5 | 6 | 10 | 13 | 14 => Self::Unavailable(error),
            // SQLITE_READONLY.
            8 => Self::ReadOnly,
            // SQLITE_CORRUPT, SQLITE_NOTADB.
            11 | 26 => Self::Damaged(error.to_string()),
            _ => Self::Driver(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::{Connection, SqliteConnection};

    use super::*;

    #[tokio::test]
    async fn f7_a_full_disk_is_told_from_a_database_that_is_away() {
        let mut full = SqliteConnection::connect("sqlite::memory:").await.unwrap();
        let fill = "CREATE TABLE t (x TEXT); PRAGMA max_page_count = 2; INSERT INTO t VALUES (hex(zeroblob(100000)));";
        let error = sqlx::raw_sql(fill).execute(&mut full).await.unwrap_err();
        let error = StoreError::from(error);
        assert!(matches!(error, StoreError::Unavailable(_)), "{error:?}");
        assert!(error.is_disk_full());
        assert!(!StoreError::out_of_time().is_disk_full());
    }
}
