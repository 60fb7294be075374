//! What history is made of: promotions that one real orchestrator carried out with real agents (on fake engines), row by row as it
//! wrote them. The benchmark casts its history from them, so no column is invented here.

use std::{
    collections::{BTreeMap, HashSet},
    path::Path,
};

use anyhow::{Context as _, Result, ensure};
use sealift_e2e::{
    real::{Database, System},
    simulated::{Agents, Registry},
};
use sqlx::types::Uuid;

use crate::tables::{self as t, Conn, Row, Table, Value};

/// Targets of each environment, in the mould and where history is cast.
pub const TARGETS: usize = 3;
/// The environment of the mould.
const ENVIRONMENT: &str = "mould";

/// What belongs to a promotion, in an order in which it may be written, with the column that says to which.
const OF_PROMOTION: [(&Table, &str); 14] = [
    (&t::PROMOTIONS, "id"),
    (&t::DECISIONS, "promotion_id"),
    (&t::JOBS, "promotion_id"),
    (&t::WAVES, "job_id"),
    (&t::JOB_SUBJECTS, "job_id"),
    (&t::TASKS, "job_id"),
    (&t::TASK_ATTEMPTS, "task_id"),
    (&t::TRANSITIONS, "entity_id"),
    (&t::ACTIVE_COMPONENTS, "job_id"),
    (&t::STICKERS, "task_id"),
    (&t::PACKETS, "job_id"),
    (&t::LOG_HEADS, "job_id"),
    (&t::LOG_LINES, "job_id"),
    (&t::LOG_SIZES, "task_id"),
];

/// What belongs to a release.
const OF_RELEASE: [(&Table, &str); 2] = [(&t::RELEASES, "id"), (&t::RELEASE_COMPONENTS, "release_id")];

/// Rows that belong together.
#[derive(Debug)]
pub struct Template {
    /// When they began to be.
    pub began: chrono::DateTime<chrono::Utc>,
    /// In an order in which they may be written.
    pub rows: Vec<(&'static Table, Row)>,
}

impl Template {
    /// How many rows of the table `transitions` it has.
    pub fn transitions(&self) -> u64 {
        self.rows
            .iter()
            .filter(|(table, _)| **table == t::TRANSITIONS)
            .count() as u64
    }
}

/// Identifiers that every cast replaces by those of its place.
#[derive(Debug)]
pub struct Fixed {
    pub tenant: Uuid,
    pub environment: Uuid,
    pub project: Uuid,
    pub component: Uuid,
    /// Targets and their agents, by the targets' names.
    pub targets: BTreeMap<String, (Uuid, Uuid)>,
    /// Releases.
    pub releases: Vec<Uuid>,
}

/// One of each kind.
#[derive(Debug)]
pub struct Mould {
    pub fixed: Fixed,
    pub release: Template,
    /// What the release's tag meant.
    pub version: Row,
    pub succeeded: Template,
    pub failed: Template,
    pub rejected: Template,
}

/// Makes the mould, with programs of its own that are gone afterwards.
pub async fn make(registry: &Registry) -> Result<Mould> {
    let mut system = System::start(Database::Sqlite).await?;
    let made = perform(&mut system, registry).await;
    let mould = match made {
        Ok(()) => {
            system.kill_orchestrator().await?;
            read(&system.database_file()).await
        }
        Err(error) => Err(error.context(system.orchestrator_log())),
    };
    system.end().await?;
    mould
}

async fn perform(system: &mut System, registry: &Registry) -> Result<()> {
    system.environment(ENVIRONMENT, 10).await?;
    let mut agents = Agents::default();
    for number in 1..=TARGETS {
        // It can pull v1, and nothing else.
        let target = format!("{ENVIRONMENT}/web-{number}");
        agents.join(system, &target, registry.engine(&["v1"])).await?;
    }
    let good = system.release(&registry.image("v1"), 1).await?;
    let bad = system.release(&registry.image("absent"), 2).await?;
    let (code, said) = system.promote(good, ENVIRONMENT, &[]).await?;
    ensure!(code == 0, "the good release was not deployed: {said}");
    let (code, said) = system.promote(bad, ENVIRONMENT, &[]).await?;
    ensure!(code != 0, "the bad release was deployed: {said}");
    system
        .sealift(&[
            "hold",
            "place",
            ENVIRONMENT,
            "shop/web",
            "--reason",
            "nothing new today",
        ])
        .await?;
    let (code, said) = system.promote(good, ENVIRONMENT, &[]).await?;
    ensure!(code != 0, "a hold held nothing: {said}");
    agents.all_run()
}

async fn read(database: &Path) -> Result<Mould> {
    let mut conn = Conn::open(&format!("sqlite:{}", database.display())).await?;
    let mut rows: BTreeMap<&'static str, Vec<Row>> = BTreeMap::new();
    for (table, _) in OF_PROMOTION.iter().chain(&OF_RELEASE) {
        rows.insert(table.name, conn.read(table).await?);
    }
    let promotion = |state: &str| -> Result<Uuid> {
        let (id, column) = (t::PROMOTIONS.at("id")?, t::PROMOTIONS.at("state")?);
        let found = rows[t::PROMOTIONS.name]
            .iter()
            .find(|row| row[column] == Value::from(state));
        match found.with_context(|| format!("no promotion is {state}"))?[id] {
            Value::Id(id) => Ok(id),
            _ => anyhow::bail!("a promotion without identifier"),
        }
    };
    let of_promotion = |state: &str| together(&rows, &OF_PROMOTION, promotion(state)?);
    let (succeeded, failed, rejected) = (
        of_promotion("deployed")?,
        of_promotion("failed")?,
        of_promotion("rejected")?,
    );
    let releases = conn
        .named("SELECT id, project FROM releases ORDER BY number")
        .await?;
    let release = releases.first().context("no release")?.0;
    let version = conn.read(&t::VERSION_ENTRIES).await?;
    let fixed = Fixed {
        tenant: single(&mut conn, "SELECT tenant_id, name FROM environments").await?,
        environment: single(&mut conn, "SELECT id, name FROM environments").await?,
        project: single(&mut conn, "SELECT id, project FROM projects").await?,
        component: single(&mut conn, "SELECT id, name FROM components").await?,
        targets: targets(&mut conn, ENVIRONMENT).await?,
        releases: releases.iter().map(|(id, _)| *id).collect(),
    };
    conn.close().await?;
    Ok(Mould {
        fixed,
        release: together(&rows, &OF_RELEASE, release)?,
        version: version.into_iter().next().context("no version")?,
        succeeded,
        failed,
        rejected,
    })
}

/// The one row of a query that names things.
pub async fn single(conn: &mut Conn, sql: &'static str) -> Result<Uuid> {
    let found = conn.named(sql).await?;
    ensure!(found.len() == 1, "wanted one row: {sql}");
    Ok(found[0].0)
}

/// Targets and agents of an environment, by the targets' names.
pub async fn targets(conn: &mut Conn, environment: &str) -> Result<BTreeMap<String, (Uuid, Uuid)>> {
    let mut targets: BTreeMap<String, (Uuid, Uuid)> = BTreeMap::new();
    let prefix = format!("{environment}/");
    let agents = conn
        .named("SELECT agent_id, environment || '/' || name FROM targets WHERE agent_id IS NOT NULL")
        .await?;
    for (target, name) in conn
        .named("SELECT id, environment || '/' || name FROM targets")
        .await?
    {
        let agent = agents.iter().find(|(_, served)| *served == name);
        let agent = agent.with_context(|| format!("{name} has no agent"))?.0;
        if let Some(name) = name.strip_prefix(&prefix) {
            targets.insert(name.to_owned(), (target, agent));
        }
    }
    Ok(targets)
}

/// Everything that belongs to one thing.
fn together(
    rows: &BTreeMap<&'static str, Vec<Row>>,
    tables: &[(&'static Table, &str)],
    first: Uuid,
) -> Result<Template> {
    let mut owners = HashSet::from([first]);
    let mut found = Vec::new();
    let mut began = None;
    for (table, column) in tables {
        let owner = table.at(column)?;
        for row in &rows[table.name] {
            match row[owner] {
                Value::Id(id) if owners.contains(&id) => {}
                _ => continue,
            }
            if let Ok(id) = table.at("id")
                && let Value::Id(id) = row[id]
            {
                owners.insert(id);
            }
            if let (None, Ok(created)) = (began, table.at("created_at"))
                && let Value::Time(at) = row[created]
            {
                began = Some(at);
            }
            found.push((*table, row.clone()));
        }
    }
    Ok(Template {
        began: began.context("nothing that has begun")?,
        rows: found,
    })
}
