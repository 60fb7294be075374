//! Rows that tests of the workspace prove: the tests are run by name, and a name that no test has proves nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
    process::{Output, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use tokio::{process::Command, time::timeout};

use crate::{matrix::Outcome, table::Proof};

/// Longest time of building and running them, with every kill point if that is asked for.
const LIMIT: Duration = Duration::from_hours(1);

/// Which tests there are, which ran, and whether they passed.
#[derive(Debug, Default)]
pub struct Passed {
    tests: BTreeMap<String, bool>,
    /// Those that are there and were left to another stage.
    elsewhere: BTreeSet<String>,
}

/// The tests of a row.
#[derive(Debug, Clone, Copy)]
pub struct Wanted {
    names: &'static [&'static str],
    /// Another stage runs them.
    elsewhere: bool,
}

impl Wanted {
    /// The tests of a row that has some. A full run leaves nothing to others.
    pub fn of(proof: &Proof, full: bool) -> Option<Self> {
        match proof {
            Proof::Tests(names) => Some(Self {
                names,
                elsewhere: false,
            }),
            Proof::Elsewhere(names) => Some(Self {
                names,
                elsewhere: !full,
            }),
            Proof::Act { .. } => None,
        }
    }
}

/// Runs the tests that were not seen yet. Of those that another stage runs it only looks whether they are there.
pub async fn run(mut passed: Passed, rows: &[Wanted], full: bool) -> Result<Passed> {
    let of = |elsewhere: bool| -> BTreeSet<&str> {
        let rows = rows.iter().filter(|row| row.elsewhere == elsewhere);
        let names = rows.flat_map(|row| row.names.iter().copied());
        names.filter(|name| !passed.tests.contains_key(*name)).collect()
    };
    let (here, elsewhere) = (of(false), of(true));
    if !elsewhere.is_empty() {
        let listed = nextest(&["list", "--message-format", "oneline"], &elsewhere, full).await?;
        ensure!(
            listed.status.success(),
            "the tests cannot be listed: {}",
            String::from_utf8_lossy(&listed.stderr)
        );
        passed.list(&String::from_utf8_lossy(&listed.stdout));
    }
    if !here.is_empty() {
        let run = [
            "run",
            "--no-fail-fast",
            "--no-tests=pass",
            "--status-level",
            "all",
        ];
        let output = nextest(&run, &here, full).await?;
        passed.add(&String::from_utf8_lossy(&output.stderr));
    }
    Ok(passed)
}

/// Calls nextest about tests of the workspace.
async fn nextest(words: &[&str], names: &BTreeSet<&str>, full: bool) -> Result<Output> {
    let filter: Vec<String> = names
        .iter()
        .map(|name| format!("test(/(^|::){name}$/)"))
        .collect();
    let mut command = Command::new("cargo");
    command
        .arg("nextest")
        .args(words)
        .args(["--workspace", "--features", "sealift-agent/kill-points"])
        .args(["--color", "never", "--filterset", &filter.join(" | ")])
        .env("SEALIFT_TEST_FULL", if full { "1" } else { "0" })
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .stdin(Stdio::null())
        .kill_on_drop(true);
    Ok(timeout(LIMIT, command.output())
        .await
        .context("the tests took too long")??)
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

    /// Takes the tests that are there from lines like `package::binary module::test`.
    fn list(&mut self, lines: &str) {
        let names = lines
            .lines()
            .filter_map(|line| line.split_whitespace().next_back());
        let names = names.filter_map(|path| path.rsplit("::").next());
        self.elsewhere.extend(names.map(str::to_owned));
    }

    /// What the tests of a row say together.
    pub fn outcome(&self, wanted: &Wanted) -> Outcome {
        let of = |result: Option<bool>| -> Vec<&str> {
            let all = wanted.names.iter().copied();
            all.filter(|name| self.tests.get(*name).copied() == result)
                .collect()
        };
        let (failed, mut missing) = (of(Some(false)), of(None));
        if !failed.is_empty() {
            return Outcome::Failed(format!("failed: {}", failed.join(", ")));
        }
        let any_missing = !missing.is_empty();
        if wanted.elsewhere {
            missing.retain(|name| !self.elsewhere.contains(*name));
        }
        if !missing.is_empty() {
            return Outcome::Failed(format!("no such test ran: {}", missing.join(", ")));
        }
        if any_missing {
            return Outcome::Elsewhere("stage engine of tests/run, or --full");
        }
        Outcome::Held(format!("{} tests", wanted.names.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn here(names: &'static [&'static str]) -> Wanted {
        Wanted {
            names,
            elsewhere: false,
        }
    }

    #[test]
    fn a_row_holds_only_when_each_of_its_tests_ran_and_passed() {
        let mut passed = Passed::default();
        passed.add("        PASS [   0.012s] (3/20) package::binary module::one\nPASS two\n  Summary of 3 tests\nFAIL three\n");
        passed.add("PASS three\n");
        assert!(matches!(passed.outcome(&here(&["one", "two"])), Outcome::Held(_)));
        for names in [&["one", "three"][..], &["one", "none"], &["none"]] {
            assert!(
                matches!(passed.outcome(&here(names)), Outcome::Failed(_)),
                "{names:?}"
            );
        }
    }

    #[test]
    fn a_row_is_proven_elsewhere_only_by_tests_that_exist_and_never_in_a_full_run() {
        const PROOF: Proof = Proof::Elsewhere(&["first", "second"]);
        let (bounded, full) = (
            Wanted::of(&PROOF, false).unwrap(),
            Wanted::of(&PROOF, true).unwrap(),
        );
        let mut passed = Passed::default();
        passed.list("package::binary first\n");
        assert!(matches!(passed.outcome(&bounded), Outcome::Failed(_)), "renamed");
        passed.list("package::binary module::second\n");
        assert!(matches!(passed.outcome(&bounded), Outcome::Elsewhere(_)));
        assert!(matches!(passed.outcome(&full), Outcome::Failed(_)), "none ran");
        passed.add("PASS first\nPASS second\n");
        for wanted in [bounded, full] {
            assert!(matches!(passed.outcome(&wanted), Outcome::Held(_)));
        }
        passed.add("FAIL second\n");
        assert!(matches!(passed.outcome(&bounded), Outcome::Failed(_)));
    }
}
