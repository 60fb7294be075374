//! Does what Sealift does every day cost more after years? One orchestrator for each length of history, all with the same fleet,
//! asked the same things in turns. README.md says what is measured; started by `run`.

mod history;
mod mould;
mod probe;
mod report;
mod tables;

use std::{process::ExitCode, time::Instant};

use anyhow::{Context as _, Result, bail, ensure};
use sealift_e2e::{
    real::{Database, System, eventually},
    simulated::{Agents, Registry},
};

use crate::{
    history::Cast,
    mould::{Mould, TARGETS},
    probe::{OCCUPIED, Operation, Probe},
    report::{Measured, Report},
    tables::Conn,
};

const USAGE: &str =
    "usage: run [--smoke] [--rows N,N,...] [--store sqlite|postgres|both] [--repeat N] [--json FILE]";
/// Calls of each operation before any is measured.
const WARM_UP: usize = 10;
/// Environments in the order of promotion.
const ENVIRONMENTS: [&str; 3] = ["dev", "staging", OCCUPIED];
/// Sources of the two projects.
const PROJECTS: [&str; 2] = ["example.com/acme/shop/web", "example.com/acme/shop/api"];

#[derive(Debug)]
struct Options {
    rows: Vec<u64>,
    stores: Vec<Database>,
    repeat: usize,
    json: Option<String>,
}

fn options(mut words: impl Iterator<Item = String>) -> Result<Options> {
    let mut options = Options {
        rows: vec![1_000, 100_000, 1_000_000],
        stores: vec![Database::Sqlite, Database::Postgres],
        repeat: 200,
        json: None,
    };
    while let Some(word) = words.next() {
        let mut next = || words.next().context(USAGE);
        match word.as_str() {
            "--smoke" => {
                options.rows = vec![1_000, 5_000];
                options.repeat = 5;
            }
            "--rows" => {
                let rows = next()?
                    .split(',')
                    .map(str::parse)
                    .collect::<Result<Vec<u64>, _>>();
                options.rows = rows.context(USAGE)?;
            }
            "--store" => {
                options.stores = match next()?.as_str() {
                    "sqlite" => vec![Database::Sqlite],
                    "postgres" => vec![Database::Postgres],
                    "both" => vec![Database::Sqlite, Database::Postgres],
                    _ => bail!(USAGE),
                };
            }
            "--repeat" => options.repeat = next()?.parse().context(USAGE)?,
            "--json" => options.json = Some(next()?),
            _ => bail!("{word:?}? {USAGE}"),
        }
    }
    let fits = options
        .rows
        .iter()
        .all(|rows| (1_000..=10_000_000).contains(rows));
    ensure!(
        fits && !options.rows.is_empty() && options.repeat > 0,
        "rows: 1000 to 10000000. {USAGE}"
    );
    Ok(options)
}

#[tokio::main]
async fn main() -> ExitCode {
    match benchmark().await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn benchmark() -> Result<()> {
    let options = options(std::env::args().skip(1))?;
    let registry = Registry::start().await?;
    let mould = mould::make(&registry).await?;
    let mut reports = Vec::new();
    for store in &options.stores {
        let report = of_store(*store, &options, &registry, &mould).await?;
        report.print();
        reports.push(report);
    }
    if let Some(file) = &options.json {
        report::write(&reports, file)?;
    }
    Ok(())
}

async fn of_store(store: Database, options: &Options, registry: &Registry, mould: &Mould) -> Result<Report> {
    let mut beds = Vec::new();
    for rows in &options.rows {
        let mut bed = Bed {
            system: System::start(store).await?,
            agents: Agents::default(),
        };
        let probe = bed.prepare(*rows, registry, mould).await;
        let probe =
            probe.with_context(|| format!("{store:?}, {rows} rows: {}", bed.system.orchestrator_log()))?;
        beds.push((bed, probe));
    }
    let mut report = Report::new(store, &options.rows, options.repeat);
    for operation in Operation::ALL {
        eprintln!("  {store:?}: {}", operation.name());
        report.add(measure(*operation, &beds, options.repeat).await?);
    }
    for (mut bed, _) in beds {
        bed.agents.all_run()?;
        bed.system.end().await?;
    }
    Ok(report)
}

/// The same call at all lengths in turns, so that a busy moment of the machine does not hit one of them alone.
async fn measure(operation: Operation, beds: &[(Bed, Probe)], repeat: usize) -> Result<Measured> {
    let mut seconds = vec![Vec::with_capacity(repeat); beds.len()];
    let mut items = None;
    for turn in 0..repeat + WARM_UP {
        for place in 0..beds.len() {
            let place = (place + turn) % beds.len();
            let (took, found) = beds[place].1.run(operation).await?;
            let before = *items.get_or_insert(found);
            ensure!(
                before == found,
                "{}: {before} items at one length and {found} at another",
                operation.name()
            );
            if turn >= WARM_UP {
                seconds[place].push(took.as_secs_f64());
            }
        }
    }
    Ok(Measured {
        operation: operation.name(),
        items: items.unwrap_or_default(),
        seconds,
    })
}

/// One orchestrator with its fleet.
struct Bed {
    system: System,
    agents: Agents,
}

impl Bed {
    /// The fleet, its history, and then its present: what runs there now was really brought there.
    async fn prepare(&mut self, rows: u64, registry: &Registry, mould: &Mould) -> Result<Probe> {
        for (position, environment) in (1..).zip(ENVIRONMENTS) {
            self.system.environment(environment, position * 10).await?;
            for number in 1..=TARGETS {
                let target = format!("{environment}/web-{number}");
                let engine = registry.engine(&["v1", "v2", "v3"]);
                self.agents.join(&self.system, &target, engine).await?;
            }
        }
        for project in PROJECTS {
            self.release(project, registry, "v1").await?;
        }
        self.system.kill_orchestrator().await?;
        let mut conn = Conn::open(&self.system.database_url()).await?;
        let began = Instant::now();
        let (cast, sample) = history::write(&mut conn, mould, rows).await?;
        told(rows, &cast, began);
        settle(&mut conn).await?;
        conn.close().await?;
        let began = Instant::now();
        self.system.start_orchestrator().await?;
        eprintln!(
            "    the orchestrator started in {:.2} s",
            began.elapsed().as_secs_f64()
        );
        self.online().await?;
        for project in PROJECTS {
            let number = self.release(project, registry, "v2").await?;
            for environment in ENVIRONMENTS {
                self.promote(
                    project,
                    number,
                    environment,
                    &["--wait", "--timeout", "2m", "--min-healthy", "100ms"],
                )
                .await?;
            }
        }
        // The hosts do not know the stickers of the history, and that was noticed. Agents look again when they connect.
        self.system.kill_orchestrator().await?;
        self.system.start_orchestrator().await?;
        self.online().await?;
        eventually("no drift is open", async || {
            let listed = self.system.json(&["drift", "list"]).await?;
            Ok(listed["drift"].as_array().is_none_or(Vec::is_empty).then_some(()))
        })
        .await?;
        // A job that does not end keeps the lane occupied.
        let number = self.release(PROJECTS[1], registry, "v3").await?;
        let long = [
            "--min-healthy",
            "20h",
            "--healthy-deadline",
            "22h",
            "--progress-deadline",
            "23h",
        ];
        self.promote(PROJECTS[1], number, OCCUPIED, &long).await?;
        let next = self.release(PROJECTS[0], registry, "v3").await?;
        Probe::connect(&self.system, sample, next).await
    }

    async fn online(&self) -> Result<()> {
        eventually("all agents are online", async || {
            let listed = self.system.sealift(&["agent", "list", "-o", "json"]).await?;
            let online = listed.matches("\"STATUS_ONLINE\"").count();
            Ok((online == ENVIRONMENTS.len() * TARGETS).then_some(()))
        })
        .await
    }

    async fn release(&self, project: &str, registry: &Registry, tag: &str) -> Result<u64> {
        let file = self.system.folder().join(format!("{tag}.yaml"));
        std::fs::write(&file, sealift_e2e::real::compose(&registry.image(tag)))?;
        let version: u32 = tag.trim_start_matches('v').parse()?;
        let source = format!("{project}@{}", sealift_e2e::real::commit(version));
        let file = file.to_string_lossy().into_owned();
        let made = self
            .system
            .json(&["release", "create", "-f", &file, "--source", &source])
            .await?;
        sealift_e2e::real::number(&made["number"])
    }

    async fn promote(&self, project: &str, number: u64, environment: &str, more: &[&str]) -> Result<()> {
        let alias = format!("{project}#{number}");
        let mut arguments = vec!["promote", &alias, "--to", environment];
        arguments.extend(more);
        self.system.sealift(&arguments).await.map(drop)
    }
}

fn told(rows: u64, cast: &Cast, began: Instant) {
    let took = began.elapsed().as_secs_f64();
    eprintln!(
        "    {rows} rows: {} in all, written in {took:.1} s: {:?}",
        cast.all, cast.rows
    );
}

/// What the database does by itself in the hours in which such a history comes to be: PostgreSQL's autovacuum gathers statistics.
/// On SQLite nobody does but the orchestrator.
async fn settle(conn: &mut Conn) -> Result<()> {
    match conn {
        Conn::Postgres(_) => conn.run("VACUUM ANALYZE").await,
        Conn::Sqlite(_) => conn.run("PRAGMA wal_checkpoint(TRUNCATE)").await,
    }
}
