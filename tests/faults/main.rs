//! The fault suite: injects every fault that one machine can make into real programs on a real engine, checks after each that what
//! must hold held, and prints the matrix. Started by `tests/faults/run`, which sets up what it needs.

mod cases;
mod checks;
mod engine;
mod matrix;
mod memory;
mod proofs;
mod proxy;
mod signal;
mod stage;
mod sticker;
mod table;

use std::{
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail};
use futures::{StreamExt as _, stream};
use sealift_e2e::phases;

use crate::{
    matrix::Outcome,
    proofs::{Passed, Wanted},
    stage::Stage,
    table::{Act, FAULTS, Flag, Host, Proof, ROWS, Row},
};

/// Longest time of a case; a walk over all points is the longest.
const SHORT: Duration = Duration::from_mins(10);
const LONG: Duration = Duration::from_mins(30);

/// Rows that run side by side: most of a row is waiting, and each has programs, ports and folders of its own.
const SIDE_BY_SIDE: usize = 2;

const USAGE: &str = "usage: sealift-faults [--full] [--only FAULT]... [--host docker_host|compose_host|center] \
     [--jobs N] [--seen FILE] [--no-tests] [--list]";

#[derive(Debug)]
struct Options {
    full: bool,
    only: Vec<String>,
    host: Option<Host>,
    jobs: usize,
    /// What tests said that ran already: `PASS name` or `FAIL name` in each line.
    seen: Option<PathBuf>,
    list: bool,
    no_tests: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            full: phases::is_full(),
            only: Vec::new(),
            host: None,
            jobs: SIDE_BY_SIDE,
            seen: None,
            list: false,
            no_tests: false,
        }
    }
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--full" => options.full = true,
            "--list" => options.list = true,
            "--no-tests" => options.no_tests = true,
            "--only" => {
                let fault = words.next().unwrap_or_default();
                if !FAULTS.iter().any(|known| known.id == fault) {
                    bail!("{fault:?} is no fault; {USAGE}");
                }
                options.only.push(fault);
            }
            "--host" => {
                let name = words.next().unwrap_or_default();
                let host = Host::ALL.into_iter().find(|host| host.as_str() == name);
                options.host = Some(host.with_context(|| format!("{name:?} is no kind of host; {USAGE}"))?);
            }
            "--jobs" => {
                let jobs = words.next().and_then(|number| number.parse().ok());
                options.jobs = jobs.filter(|jobs| (1..=8).contains(jobs)).context(USAGE)?;
            }
            "--seen" => options.seen = Some(words.next().context(USAGE)?.into()),
            _ => bail!("{word:?}? {USAGE}"),
        }
    }
    Ok(options)
}

#[tokio::main]
async fn main() -> ExitCode {
    match suite().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(2)
        }
    }
}

async fn suite() -> Result<bool> {
    let options = options(std::env::args().skip(1))?;
    let is_chosen = |fault: &str, host: Host| {
        let fault = options.only.is_empty() || options.only.iter().any(|id| id == fault);
        fault && options.host.is_none_or(|chosen| chosen == host)
    };
    let all = ROWS
        .iter()
        .flat_map(|row| row.hosts.iter().map(move |host| (row, *host)));
    let chosen: Vec<(&Row, Host)> = all.filter(|(row, host)| is_chosen(row.fault, *host)).collect();
    if chosen.is_empty() {
        bail!("no row has this fault on this kind of host; --list shows all rows");
    }
    if options.list {
        for (row, host) in chosen {
            println!("{:<5}{:<14}{}", row.fault, host.as_str(), row.how);
        }
        return Ok(true);
    }
    let tests: Vec<Wanted> = chosen
        .iter()
        .filter_map(|(row, _)| Wanted::of(&row.proof, options.full))
        .collect();
    let passed = if options.no_tests {
        None
    } else {
        let seen = options
            .seen
            .as_deref()
            .map_or_else(|| Ok(Passed::default()), Passed::read)?;
        Some(proofs::run(seen, &tests, options.full).await?)
    };
    let (options, passed) = (&options, passed.as_ref());
    let rows = stream::iter(chosen.into_iter().enumerate()).map(|(place, (row, host))| async move {
        let began = Instant::now();
        let outcome = outcome(row, host, options, passed).await;
        let took = began.elapsed();
        if outcome.ran() {
            let (seconds, how) = (took.as_secs_f64(), row.how);
            eprintln!(
                "--- {seconds:>6.1} s  {} {}: {how}: {outcome}",
                row.fault,
                host.as_str()
            );
        }
        let result = matrix::Result {
            row,
            host,
            outcome,
            took,
        };
        (place, result)
    });
    let mut results: Vec<_> = rows.buffer_unordered(options.jobs).collect().await;
    results.sort_by_key(|(place, _)| *place);
    let results: Vec<_> = results.into_iter().map(|(_, result)| result).collect();
    Ok(matrix::print(&results, is_chosen))
}

/// What comes of a row.
async fn outcome(row: &Row, host: Host, options: &Options, passed: Option<&Passed>) -> Outcome {
    let Proof::Act { act, flags, settings } = &row.proof else {
        let wanted = Wanted::of(&row.proof, options.full).zip(passed);
        return wanted.map_or(Outcome::LeftOut("--no-tests"), |(wanted, passed)| {
            passed.outcome(&wanted)
        });
    };
    if flags.contains(&Flag::Long) && !options.full {
        return Outcome::LeftOut("--full");
    }
    if flags.contains(&Flag::Memory) && !memory::is_there() {
        return Outcome::LeftOut("no memory controller");
    }
    if !flags.is_empty() && !rustix::process::geteuid().is_root() {
        return Outcome::LeftOut("needs root");
    }
    let private = flags.contains(&Flag::Private);
    let done = perform(*act, host, private, settings, options.full).await;
    done.unwrap_or_else(|error| Outcome::Failed(format!("the stage: {error:#}")))
}

/// Sets the stage, does it, checks what must hold, clears up.
async fn perform(act: Act, host: Host, private: bool, settings: &str, full: bool) -> Result<Outcome> {
    let mut stage = Stage::start(host, private, settings, full).await?;
    let limit = if full { LONG } else { SHORT };
    let outcome = match tokio::time::timeout(limit, act(&mut stage)).await {
        Err(_) => Outcome::Failed(format!("not done after {} s", limit.as_secs())),
        Ok(Err(error)) => Outcome::Failed(format!("{error:#}\n{}", stage.logs())),
        Ok(Ok(())) => match checks::violations(&mut stage).await {
            Ok(found) if found.is_empty() => Outcome::Held(stage.noted().to_owned()),
            Ok(found) => Outcome::Violated(found),
            Err(error) => Outcome::Failed(format!("the checks failed: {error:#}")),
        },
    };
    stage.end().await?;
    Ok(outcome)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Options> {
        options(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn what_is_chosen_must_exist() {
        assert_eq!(parsed("--host compose_host").unwrap().host, Some(Host::Compose));
        for line in [
            "--only F3 --host nonsense",
            "--host",
            "--only F99",
            "--only",
            "--jobs 0",
            "--fast",
        ] {
            assert!(parsed(line).is_err(), "{line}");
        }
    }
}
