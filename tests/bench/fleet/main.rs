//! The fleet benchmark: one orchestrator and thousands of agents, beside what the storage and the transport can do at most. Started by
//! `tests/bench/fleet/run`, which says what is measured. This program is the driver; it starts itself again as worker, as bare server and
//! for the storage limit.

mod bare;
mod board;
mod book;
mod limit;
mod lines;
mod member;
mod meter;
mod phases;
mod stage;
mod worker;

use std::{collections::BTreeSet, process::ExitCode, time::Duration};

use anyhow::{Context as _, Result, bail};
use sealift_e2e::{invariants, real::Database};

use crate::{phases::Finding, stage::Stage};

/// Agents of a full run: as many as one job may address.
const AGENTS: usize = 10_000;
/// Agents of a run that only shows that all of it works.
const FEW: usize = 40;
/// The goals that are measured, as the design numbers them.
const GOALS: [&str; 5] = ["P3", "P4", "P5", "P6", "P8"];

const USAGE: &str = "usage: sealift-fleet run [--smoke] [--agents N] [--store sqlite|postgres] [--soak] [--only P3,P4,P5,P6,P8]";

/// What to measure.
#[derive(Debug)]
pub struct Options {
    /// Agents of the large environment; the small one has a tenth of it.
    pub agents: usize,
    /// Which database.
    pub database: Database,
    /// How long the fleet is watched while it does nothing.
    pub idle: Duration,
    /// How long a fleet settles before it is watched.
    pub settle: Duration,
    /// Jobs of one target each.
    pub dispatches: usize,
    /// Jobs to each environment.
    pub repeats: usize,
    /// Which goals.
    pub only: BTreeSet<String>,
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        agents: AGENTS,
        database: Database::Sqlite,
        idle: Duration::from_mins(1),
        settle: Duration::from_secs(20),
        dispatches: 300,
        repeats: 3,
        only: GOALS.map(ToOwned::to_owned).into(),
    };
    while let Some(word) = words.next() {
        match word.as_str() {
            "--smoke" => {
                options.agents = FEW;
                options.idle = Duration::from_secs(10);
                options.settle = Duration::from_secs(1);
                options.dispatches = 10;
                options.repeats = 1;
            }
            "--soak" => options.idle = Duration::from_hours(1),
            "--agents" => options.agents = words.next().context(USAGE)?.parse()?,
            "--store" => {
                options.database = match words.next().as_deref() {
                    Some("sqlite") => Database::Sqlite,
                    Some("postgres") => Database::Postgres,
                    _ => bail!(USAGE),
                }
            }
            "--only" => {
                let goals = words.next().context(USAGE)?;
                options.only = goals.split(',').map(ToOwned::to_owned).collect();
                if let Some(unknown) = options.only.iter().find(|goal| !GOALS.contains(&goal.as_str())) {
                    bail!("{unknown:?} is not measured here; {USAGE}");
                }
            }
            _ => bail!("{word:?}? {USAGE}"),
        }
    }
    if !(20..=AGENTS).contains(&options.agents) {
        bail!("wanted 20 to {AGENTS} agents");
    }
    Ok(options)
}

#[tokio::main]
async fn main() -> ExitCode {
    match act(std::env::args().skip(1)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn act(mut words: impl Iterator<Item = String>) -> Result<()> {
    let role = words.next();
    let mut word = || words.next().context("an argument is missing");
    match role.as_deref() {
        Some("worker") => worker::run().await,
        Some("bare") => bare::run(&std::fs::read_to_string(word()?)?).await,
        Some("limit") => limit::run(&word()?, word()?.parse()?, word()?.parse()?).await,
        Some("run") => measure(&options(words)?).await,
        _ => bail!(USAGE),
    }
}

async fn measure(options: &Options) -> Result<()> {
    let sizes = [options.agents / 10, options.agents];
    let mut stage = Stage::set_up(options.database, sizes, 10).await?;
    let wants = |goal: &str| options.only.contains(goal);
    let mut findings = Vec::new();
    if wants("P4") || wants("P5") {
        findings.extend(phases::idle(&mut stage, options).await?);
    }
    if wants("P6") {
        findings.extend(phases::dispatch(&mut stage, options).await?);
    }
    if wants("P3") {
        findings.extend(phases::rollout(&mut stage, options).await?);
    }
    // Last: on PostgreSQL the one that was killed holds its leases for some seconds.
    if wants("P8") {
        findings.extend(phases::come_back(&mut stage).await?);
    }
    stage.connect([0, 0]).await?;
    invariants::at_rest(&stage.system.database_url()).await?;
    stage.system.admin(&["audit", "verify"]).await?;
    print(options, &findings);
    stage.system.end().await
}

/// The table: ours, what stands beside it, their ratio and the goal.
fn print(options: &Options, findings: &[Finding]) {
    println!(
        "\n{} agents, {:?}; a goal is about the ratio alone\n",
        options.agents, options.database
    );
    let rows = findings.iter().map(Finding::row);
    let head = ["goal", "what", "sealift", "beside", "ratio", "wanted", ""].map(ToOwned::to_owned);
    let all: Vec<_> = [head].into_iter().chain(rows).collect();
    let width = |column: usize| {
        all.iter()
            .map(|row| row[column].chars().count())
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<_> = (0..7).map(width).collect();
    for row in &all {
        let cells = row
            .iter()
            .zip(&widths)
            .map(|(cell, width)| format!("{cell:<width$}"));
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
