//! Rows that tests of the workspace prove: the tests are run by name, and a name that no test has proves nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{process::Command, time::timeout};

use crate::matrix::Outcome;

const LIMIT: Duration = Duration::from_mins(30);

/// Which tests ran, and whether they passed.
pub struct Passed {
    tests: BTreeMap<String, bool>,
}

/// Runs the tests; those on a real engine, which have a stage of their own in `tests/run`, only when there is time for them.
pub async fn run(names: impl Iterator<Item = &'static str>, full: bool) -> Result<Passed> {
    let names: BTreeSet<_> = names.collect();
    let mut tests = BTreeMap::new();
    if names.is_empty() {
        return Ok(Passed { tests });
    }
    let filter: Vec<String> = names
        .iter()
        .map(|name| format!("test(/(^|::){name}$/)"))
        .collect();
    let mut filter = filter.join(" | ");
    if !full {
        filter = format!("({filter}) - (binary(/engine/) | test(/on_engine/))");
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let mut command = Command::new("cargo");
    command
        .args([
            "nextest",
            "run",
            "--workspace",
            "--features",
            "sealift-agent/kill-points",
        ])
        .args([
            "--no-fail-fast",
            "--no-tests=pass",
            "--status-level",
            "all",
            "--color",
            "never",
        ])
        .args(["--filterset", &filter])
        .current_dir(root)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(LIMIT, command.output())
        .await
        .context("the tests took too long")??;
    // `        PASS [   0.012s] (3/20) package::binary module::test`
    for line in String::from_utf8_lossy(&output.stderr).lines() {
        let mut words = line.split_whitespace();
        let Some(passed) = words.next().and_then(|word| match word {
            "PASS" => Some(true),
            "FAIL" | "TIMEOUT" | "SIGABRT" => Some(false),
            _ => None,
        }) else {
            continue;
        };
        let Some(name) = words.next_back().and_then(|path| path.rsplit("::").next()) else {
            continue;
        };
        *tests.entry(name.to_owned()).or_insert(true) &= passed;
    }
    Ok(Passed { tests })
}

impl Passed {
    /// What the tests say together.
    pub fn outcome(&self, names: &[&str]) -> Outcome {
        let of = |wanted: Option<bool>| -> Vec<&str> {
            let all = names.iter().copied();
            all.filter(|name| self.tests.get(*name).copied() == wanted)
                .collect()
        };
        let (failed, missing) = (of(Some(false)), of(None));
        if !failed.is_empty() {
            return Outcome::Failed(format!("failed: {}", failed.join(", ")));
        }
        if missing.len() == names.len() && names.iter().all(|name| name.starts_with("r10_killed")) {
            return Outcome::LeftOut("stage engine of tests/run, or --full");
        }
        if !missing.is_empty() {
            return Outcome::Failed(format!("no such test: {}", missing.join(", ")));
        }
        Outcome::Held(format!("{} tests", names.len()))
    }
}
