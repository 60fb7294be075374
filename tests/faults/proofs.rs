//! Rows that tests of the workspace prove: the tests are run by name, and a name that no test has proves nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, Result};
use tokio::{process::Command, time::timeout};

use crate::matrix::Outcome;

const LIMIT: Duration = Duration::from_mins(30);

/// Which tests ran, and whether they passed.
#[derive(Debug, Default)]
pub struct Passed {
    tests: BTreeMap<String, bool>,
}

/// Runs the tests that were not seen yet; those on a real engine, which have a stage of their own in `tests/run`, only when there is
/// time for them.
pub async fn run(
    mut passed: Passed,
    names: impl Iterator<Item = &'static str>,
    full: bool,
) -> Result<Passed> {
    let names: BTreeSet<_> = names.filter(|name| !passed.tests.contains_key(*name)).collect();
    if names.is_empty() {
        return Ok(passed);
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
        .env("SEALIFT_TEST_FULL", if full { "1" } else { "0" })
        .current_dir(root)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    let output = timeout(LIMIT, command.output())
        .await
        .context("the tests took too long")??;
    passed.add(&String::from_utf8_lossy(&output.stderr));
    Ok(passed)
}

impl Passed {
    /// What a file says of tests that ran before.
    pub fn read(path: &Path) -> Result<Self> {
        let mut passed = Self::default();
        passed.add(&fs::read_to_string(path).with_context(|| path.display().to_string())?);
        Ok(passed)
    }

    /// Takes the result of each test from lines like `        PASS [   0.012s] (3/20) package::binary module::test`. Of a test that
    /// ran more than once, every run counts.
    fn add(&mut self, lines: &str) {
        for line in lines.lines() {
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
            *self.tests.entry(name.to_owned()).or_insert(true) &= passed;
        }
    }

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
        if missing.len() == names.len() && names.iter().all(|name| name.contains("r10_killed")) {
            return Outcome::LeftOut("stage engine of tests/run, or --full");
        }
        if !missing.is_empty() {
            return Outcome::Failed(format!("no such test: {}", missing.join(", ")));
        }
        Outcome::Held(format!("{} tests", names.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_holds_only_when_each_of_its_tests_ran_and_passed() {
        let mut passed = Passed::default();
        passed.add("        PASS [   0.012s] (3/20) package::binary module::one\nPASS two\n  Summary of 3 tests\nFAIL three\n");
        passed.add("PASS three\n");
        assert!(matches!(passed.outcome(&["one", "two"]), Outcome::Held(_)));
        for names in [&["one", "three"][..], &["one", "none"], &["none"]] {
            assert!(matches!(passed.outcome(names), Outcome::Failed(_)), "{names:?}");
        }
    }
}
