//! The database of one test in one process: SQLite in the test's folder, or a database of its own on the PostgreSQL server of
//! `tests/run`. `SEALIFT_TEST_STORE=postgres` chooses for a whole run, so the same tests run on either engine and a plain
//! `cargo nextest` needs no server. Whole programs have theirs in `real`.

use std::{fmt::Write as _, io, path::Path, process::Command};

/// A database that nobody else uses. Dropping it removes it.
#[derive(Debug)]
pub struct Database {
    /// For the store's configuration.
    pub url: String,
    /// The server and the name of the database there; `None` on SQLite.
    on_server: Option<(String, String)>,
}

impl Database {
    /// A fresh one for the test that has this folder.
    pub fn create(folder: &Path) -> io::Result<Self> {
        if std::env::var("SEALIFT_TEST_STORE").as_deref() != Ok("postgres") {
            return Ok(Self {
                url: format!("sqlite:{}", folder.join("sealift.db").display()),
                on_server: None,
            });
        }
        let server = std::env::var("SEALIFT_TEST_POSTGRES_URL").map_err(io::Error::other)?;
        // The folder's name is unique on this machine; PostgreSQL does not tell its upper case from its lower case.
        let unique = folder.file_name().unwrap_or_default().as_encoded_bytes();
        let mut name = "sealift_".to_owned();
        for byte in unique {
            // Writing to a string does not fail.
            let _ = write!(name, "{byte:02x}");
        }
        psql(&server, &format!("CREATE DATABASE {name}"))?;
        let (head, _) = server.rsplit_once('/').unwrap_or((&server, ""));
        Ok(Self {
            url: format!("{head}/{name}"),
            on_server: Some((server, name)),
        })
    }

    /// Whether other processes could use it at the same time.
    pub const fn is_shared(&self) -> bool {
        self.on_server.is_some()
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Some((server, name)) = &self.on_server {
            // What is left goes with the server at the end of the run.
            let _ = psql(server, &format!("DROP DATABASE IF EXISTS {name} WITH (FORCE)"));
        }
    }
}

fn psql(server: &str, sql: &str) -> io::Result<()> {
    let output = Command::new("psql")
        .args([
            "--no-psqlrc",
            "--quiet",
            "--set",
            "ON_ERROR_STOP=1",
            "--command",
            sql,
            server,
        ])
        .output()?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(
        String::from_utf8_lossy(&output.stderr).into_owned(),
    ))
}
