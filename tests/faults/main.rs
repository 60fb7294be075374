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
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Result, bail};

use crate::{
    matrix::Outcome,
    stage::Stage,
    table::{Act, FAULTS, Flag, Host, Proof, ROWS, Row},
};

/// Longest time of a case; a walk over all points is the longest.
const SHORT: Duration = Duration::from_mins(10);
const LONG: Duration = Duration::from_mins(30);

const USAGE: &str = "usage: sealift-faults [--full] [--only FAULT]... [--host docker_host|compose_host|center] [--no-tests] [--list]";

#[derive(Debug, Default)]
struct Options {
    full: bool,
    only: Vec<String>,
    host: Option<String>,
    list: bool,
    no_tests: bool,
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
            "--host" => options.host = words.next(),
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
        fault
            && options
                .host
                .as_deref()
                .is_none_or(|chosen| chosen == host.as_str())
    };
    let all = ROWS
        .iter()
        .flat_map(|row| row.hosts.iter().map(move |host| (row, *host)));
    let chosen: Vec<(&Row, Host)> = all.filter(|(row, host)| is_chosen(row.fault, *host)).collect();
    if options.list {
        for (row, host) in chosen {
            println!("{:<5}{:<14}{}", row.fault, host.as_str(), row.how);
        }
        return Ok(true);
    }
    let tests = chosen.iter().filter_map(|(row, _)| match row.proof {
        Proof::Tests(names) => Some(names),
        Proof::Act { .. } => None,
    });
    let passed = if options.no_tests {
        None
    } else {
        Some(proofs::run(tests.flatten().copied(), options.full).await?)
    };
    let mut results = Vec::new();
    for (row, host) in chosen {
        let began = Instant::now();
        let outcome = match &row.proof {
            Proof::Tests(names) => passed
                .as_ref()
                .map_or(Outcome::LeftOut("--no-tests"), |passed| passed.outcome(names)),
            Proof::Act { flags, .. } if flags.contains(&Flag::Long) && !options.full => {
                Outcome::LeftOut("--full")
            }
            Proof::Act { flags, .. } if flags.contains(&Flag::Memory) && !memory::is_there() => {
                Outcome::LeftOut("no memory controller")
            }
            Proof::Act { flags, .. } if !flags.is_empty() && !rustix::process::geteuid().is_root() => {
                Outcome::LeftOut("needs root")
            }
            Proof::Act { act, flags, settings } => {
                eprintln!("--- {} {}: {}", row.fault, host.as_str(), row.how);
                let private = flags.contains(&Flag::Private);
                let done = perform(*act, host, private, settings, options.full).await;
                done.unwrap_or_else(|error| Outcome::Failed(format!("the stage: {error:#}")))
            }
        };
        if let Outcome::Violated(_) | Outcome::Failed(_) = &outcome {
            eprintln!("{outcome:#?}");
        }
        results.push(matrix::Result {
            row,
            host,
            outcome,
            took: began.elapsed(),
        });
    }
    Ok(matrix::print(&results, is_chosen))
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
