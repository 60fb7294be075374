//! Casts history: years of promotions of two projects through three environments, written straight into the tables of an
//! orchestrator that does not run, as it would have written them itself.

use std::collections::{BTreeMap, HashMap};

use anyhow::{Context as _, Result, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use sealift_common::{
    audit::{AuditEntry, AuditEvent, AuditOutcome},
    digest::Digest,
    id::TenantId,
    time::{Clock as _, SystemClock},
};
use sqlx::types::Uuid;

use crate::{
    mould::{self, Mould, TARGETS, Template},
    tables::{self as t, Conn, Row, Table, Value},
};

/// How far it goes back.
const PAST: TimeDelta = TimeDelta::days(730);
/// It ends this long before now.
const RECENT: TimeDelta = TimeDelta::hours(6);
/// When a release goes to each of its environments, after it was made.
const STEPS: [TimeDelta; 3] = [
    TimeDelta::minutes(5),
    TimeDelta::minutes(20),
    TimeDelta::minutes(60),
];
/// Rows of `transitions` per transaction.
const FLUSH: u64 = 20_000;
/// One job in so many fails, one promotion in so many is rejected.
const FAILS: u64 = 7;
const REJECTED: u64 = 10;
/// One job in so many was followed by drift that is gone, one in so many by a hold that was lifted.
const DRIFTS: u64 = 3;
const HOLDS: u64 = 3;
/// One call in so many was denied.
const DENIED: u64 = 5;

/// The tables in an order in which rows may be written.
const ORDER: [&Table; 20] = [
    &t::RELEASES,
    &t::RELEASE_COMPONENTS,
    &t::VERSION_ENTRIES,
    &t::PROMOTIONS,
    &t::DECISIONS,
    &t::JOBS,
    &t::WAVES,
    &t::JOB_SUBJECTS,
    &t::TASKS,
    &t::TASK_ATTEMPTS,
    &t::TRANSITIONS,
    &t::ACTIVE_COMPONENTS,
    &t::STICKERS,
    &t::PACKETS,
    &t::LOG_HEADS,
    &t::LOG_LINES,
    &t::LOG_SIZES,
    &t::DRIFT,
    &t::HOLDS,
    &t::AUDIT_EVENTS,
];

/// A place in the middle of what was cast.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub promotion: Uuid,
    pub job: Uuid,
    /// Number of an audit event.
    pub audit: i64,
}

/// How much was cast.
#[derive(Debug, Default)]
pub struct Cast {
    /// Rows by table.
    pub rows: BTreeMap<&'static str, u64>,
    /// All of them.
    pub all: u64,
}

struct Environment {
    id: Uuid,
    name: String,
    targets: BTreeMap<String, (Uuid, Uuid)>,
    ticket: i64,
}

struct Project {
    id: Uuid,
    repository: String,
    name: String,
    number: i64,
}

struct Caster<'a> {
    mould: &'a Mould,
    tenant: Uuid,
    component: Uuid,
    environments: Vec<Environment>,
    projects: Vec<Project>,
    /// What is active and waits for what supersedes it, by environment and project.
    active: HashMap<(Uuid, Uuid), Row>,
    audit: (i64, Digest),
    made: u64,
    jobs: u64,
    buffer: BTreeMap<&'static str, Vec<Row>>,
    cast: Cast,
}

/// Writes at least `wanted` rows of `transitions`, and all that belongs to them.
pub async fn write(conn: &mut Conn, mould: &Mould, wanted: u64) -> Result<(Cast, Sample)> {
    let mut caster = Caster::new(conn, mould).await?;
    // So many come of FAILS * REJECTED jobs.
    let of_many = mould.succeeded.transitions() * (FAILS - 1) * REJECTED
        + mould.failed.transitions() * REJECTED
        + mould.rejected.transitions() * FAILS;
    let jobs = (wanted * FAILS * REJECTED).div_ceil(of_many);
    let cycles = jobs.div_ceil(STEPS.len() as u64).max(1);
    let began = SystemClock.now() - PAST;
    let every = TimeDelta::milliseconds((PAST - RECENT).num_milliseconds() / cycles as i64);
    let (mut cycle, mut sample, mut unflushed) = (0_u64, None, 0);
    let mut written = 0;
    while written < wanted {
        let at = began + every * i32::try_from(cycle.min(cycles))?;
        let (transitions, made) = caster.cycle(cycle as usize, at)?;
        written += transitions;
        unflushed += transitions;
        cycle += 1;
        if sample.is_none() && written >= wanted / 2 {
            sample = Some(made);
        }
        if unflushed >= FLUSH {
            caster.flush(conn).await?;
            unflushed = 0;
        }
    }
    caster.end(conn).await?;
    Ok((caster.cast, sample.context("nothing was cast")?))
}

impl<'a> Caster<'a> {
    async fn new(conn: &mut Conn, mould: &'a Mould) -> Result<Self> {
        let mut environments = Vec::new();
        for (id, name) in conn
            .named("SELECT id, name FROM environments ORDER BY position")
            .await?
        {
            let targets = mould::targets(conn, &name).await?;
            ensure!(targets.len() == TARGETS, "{name} has {} targets", targets.len());
            environments.push(Environment {
                id,
                name,
                targets,
                ticket: 0,
            });
        }
        ensure!(
            environments.len() == STEPS.len(),
            "wanted {} environments",
            STEPS.len()
        );
        let tenant = conn
            .named("SELECT DISTINCT tenant_id, 'tenant' FROM environments")
            .await?;
        let found = conn
            .named("SELECT id, repository || '|' || project FROM projects ORDER BY project")
            .await?;
        let project = |(id, name): (Uuid, String)| {
            let (repository, name) = name.split_once('|').context("a project has a repository")?;
            Ok(Project {
                id,
                repository: repository.to_owned(),
                name: name.to_owned(),
                number: 1,
            })
        };
        let (seq, hash) = conn.audit_head().await?;
        Ok(Self {
            mould,
            tenant: tenant.first().context("no tenant")?.0,
            component: mould::single(conn, "SELECT id, name FROM components").await?,
            environments,
            projects: found.into_iter().map(project).collect::<Result<_>>()?,
            active: HashMap::new(),
            audit: (seq, hash.parse()?),
            made: 0,
            jobs: 0,
            buffer: BTreeMap::new(),
            cast: Cast::default(),
        })
    }

    /// A release and its way through the environments. How many transitions that made, and a job of it.
    fn cycle(&mut self, cycle: usize, at: DateTime<Utc>) -> Result<(u64, Sample)> {
        let mould = self.mould;
        let project = cycle % self.projects.len();
        let release = self.release(project, at)?;
        let (mut transitions, mut sample) = (0, None);
        for (place, step) in STEPS.into_iter().enumerate() {
            let at = at + step;
            let order = cycle as u64 * STEPS.len() as u64 + place as u64;
            if order.is_multiple_of(REJECTED) {
                self.promotion(&mould.rejected, project, place, release, at)?;
                transitions += mould.rejected.transitions();
            }
            let template = if order % FAILS == FAILS - 1 {
                &mould.failed
            } else {
                &mould.succeeded
            };
            let (promotion, job) = self.promotion(template, project, place, release, at)?;
            transitions += template.transitions();
            let job = job.context("the template has no job")?;
            self.aftermath(project, place, job, at)?;
            sample = Some(Sample {
                promotion,
                job,
                audit: self.audit.0,
            });
        }
        Ok((transitions, sample.context("no environment")?))
    }

    fn release(&mut self, project: usize, at: DateTime<Utc>) -> Result<Uuid> {
        let mould = self.mould;
        self.projects[project].number += 1;
        let number = self.projects[project].number;
        let mut ids = self.ids(project, None, None);
        let mut made = None;
        for (table, row) in &mould.release.rows {
            let mut row = self.shifted(row, &mut ids, at - mould.release.began);
            if **table == t::RELEASES {
                let project = &self.projects[project];
                put(
                    table,
                    &mut row,
                    "repository",
                    Value::from(project.repository.as_str()),
                )?;
                put(table, &mut row, "project", Value::from(project.name.as_str()))?;
                put(table, &mut row, "number", Value::Int(number))?;
                put(
                    table,
                    &mut row,
                    "commit_id",
                    Value::Text(format!("{:040x}", (1 << 40) + number)),
                )?;
                let content = Digest::of(&number.to_be_bytes()).to_string();
                put(table, &mut row, "content", Value::Text(content))?;
                made = id_of(table, &row)?;
            }
            self.keep(table, row);
        }
        let mut version = self.shifted(&mould.version, &mut ids, at - mould.release.began);
        put(
            &t::VERSION_ENTRIES,
            &mut version,
            "tag",
            Value::Text(format!("v{number}")),
        )?;
        self.keep(&t::VERSION_ENTRIES, version);
        made.context("the template has no release")
    }

    /// One promotion with all that came of it; its identifier and that of its job.
    fn promotion(
        &mut self,
        template: &Template,
        project: usize,
        place: usize,
        release: Uuid,
        at: DateTime<Utc>,
    ) -> Result<(Uuid, Option<Uuid>)> {
        let mut ids = self.ids(project, Some(place), Some(release));
        let delta = at - template.began;
        let (mut promotion, mut job) = (None, None);
        for (table, row) in &template.rows {
            let mut row = self.shifted(row, &mut ids, delta);
            if table.at("environment").is_ok() {
                let name = self.environments[place].name.clone();
                put(table, &mut row, "environment", Value::Text(name))?;
            }
            if **table == t::PROMOTIONS {
                promotion = id_of(table, &row)?;
            }
            if **table == t::JOBS {
                job = id_of(table, &row)?;
                self.environments[place].ticket += 1;
                put(
                    table,
                    &mut row,
                    "ticket",
                    Value::Int(self.environments[place].ticket),
                )?;
            }
            if let Ok(fence) = table.at("fence")
                && row[fence] != Value::Int(0)
            {
                row[fence] = Value::Int(self.environments[place].ticket);
            }
            if **table == t::STICKERS {
                let project = &self.projects[project];
                let name = format!("{}/{}", project.repository, project.name);
                put(table, &mut row, "project", Value::Text(name))?;
            }
            if **table == t::ACTIVE_COMPONENTS {
                self.activate(project, place, release, row)?;
                continue;
            }
            self.keep(table, row);
        }
        self.audited(place, AuditOutcome::Success, at)?;
        if self.made.is_multiple_of(DENIED) {
            self.audited(place, AuditOutcome::Denied, at)?;
        }
        Ok((promotion.context("the template has no promotion")?, job))
    }

    /// The next active row of a project in an environment takes the place of the one before.
    fn activate(&mut self, project: usize, place: usize, release: Uuid, row: Row) -> Result<()> {
        let key = (self.environments[place].id, self.projects[project].id);
        let since = row[t::ACTIVE_COMPONENTS.at("since")?].clone();
        if let Some(mut before) = self.active.insert(key, row) {
            put(&t::ACTIVE_COMPONENTS, &mut before, "superseded_at", since)?;
            put(
                &t::ACTIVE_COMPONENTS,
                &mut before,
                "superseded_by",
                Value::Id(release),
            )?;
            self.keep(&t::ACTIVE_COMPONENTS, before);
        }
        Ok(())
    }

    /// Drift that is gone, a hold that was lifted.
    fn aftermath(&mut self, project: usize, place: usize, job: Uuid, at: DateTime<Utc>) -> Result<()> {
        self.jobs += 1;
        let project = (
            self.projects[project].id,
            format!(
                "{}/{}",
                self.projects[project].repository, self.projects[project].name
            ),
        );
        let environment = self.environments[place].id;
        let later = at + TimeDelta::minutes(2);
        if self.jobs.is_multiple_of(DRIFTS) {
            let targets = &self.environments[place].targets;
            let target = targets
                .values()
                .nth(self.jobs as usize / DRIFTS as usize % TARGETS);
            let target = target.context("an environment has targets")?.0;
            let expected = Digest::of(b"expected").to_string();
            let actual = Digest::of(&self.jobs.to_be_bytes()).to_string();
            let row = vec![
                Value::Id(self.fresh(at)),
                Value::Id(self.tenant),
                Value::Id(environment),
                Value::Id(target),
                Value::Id(job),
                Value::Text(project.1),
                Value::from("image"),
                Value::from("web"),
                Value::from("medium"),
                Value::Text(expected),
                Value::Text(actual),
                Value::Time(at),
                Value::Time(later),
                Value::Time(later),
            ];
            self.keep(&t::DRIFT, row);
        }
        if self.jobs % HOLDS == 1 {
            let row = vec![
                Value::Id(self.fresh(at)),
                Value::Id(self.tenant),
                Value::Id(environment),
                Value::Id(project.0),
                Value::from("a rollback"),
                Value::from("orchestrator"),
                Value::from("user/ada"),
                Value::Time(at),
                Value::Time(later),
            ];
            self.keep(&t::HOLDS, row);
        }
        Ok(())
    }

    /// The event of a request, in its place in the chain.
    fn audited(&mut self, place: usize, outcome: AuditOutcome, at: DateTime<Utc>) -> Result<()> {
        let (seq, previous) = (self.audit.0 + 1, self.audit.1);
        let event = AuditEvent {
            seq: u64::try_from(seq)?,
            at,
            entry: AuditEntry {
                tenant_id: Some(TenantId::from(self.tenant)),
                actor: "user/ada".to_owned(),
                role: "admin".to_owned(),
                action: "sealift.v1.PromotionService/CreatePromotion".to_owned(),
                resource: format!("environments/{}", self.environments[place].name),
                outcome,
                reason: if outcome == AuditOutcome::Denied {
                    "ROLE_MISSING"
                } else {
                    ""
                }
                .to_owned(),
                request_id: self.fresh(at).to_string(),
            },
            previous,
        };
        let entry = &event.entry;
        let row = vec![
            Value::Int(seq),
            Value::Time(at),
            Value::Id(self.tenant),
            Value::from(entry.actor.as_str()),
            Value::from(entry.role.as_str()),
            Value::from(entry.action.as_str()),
            Value::from(entry.resource.as_str()),
            Value::from(entry.outcome.as_str()),
            Value::from(entry.reason.as_str()),
            Value::from(entry.request_id.as_str()),
            Value::Text(previous.to_string()),
        ];
        self.audit = (seq, event.hash()?);
        self.keep(&t::AUDIT_EVENTS, row);
        Ok(())
    }

    /// What the identifiers of the mould are here; all others become fresh ones.
    fn ids(&self, project: usize, place: Option<usize>, release: Option<Uuid>) -> HashMap<Uuid, Uuid> {
        let fixed = &self.mould.fixed;
        let mut ids = HashMap::from([
            (fixed.tenant, self.tenant),
            (fixed.project, self.projects[project].id),
            (fixed.component, self.component),
        ]);
        if let Some(place) = place.map(|place| &self.environments[place]) {
            ids.insert(fixed.environment, place.id);
            for (name, here) in &place.targets {
                if let Some(there) = fixed.targets.get(name) {
                    ids.insert(there.0, here.0);
                    ids.insert(there.1, here.1);
                }
            }
        }
        if let Some(release) = release {
            ids.extend(fixed.releases.iter().map(|there| (*there, release)));
        }
        ids
    }

    /// A row of the mould at another time and place.
    fn shifted(&mut self, row: &Row, ids: &mut HashMap<Uuid, Uuid>, delta: TimeDelta) -> Row {
        row.iter()
            .map(|value| match value {
                Value::Id(old) => Value::Id(*ids.entry(*old).or_insert_with(|| self.renewed(*old, delta))),
                Value::Time(at) => Value::Time(*at + delta),
                other => other.clone(),
            })
            .collect()
    }

    /// A fresh identifier that sorts by time as the old one did.
    fn renewed(&mut self, old: Uuid, delta: TimeDelta) -> Uuid {
        let ms = (old.as_u128() >> 80) as i64 + delta.num_milliseconds();
        self.numbered(ms, (old.as_u128() >> 64) as u64 & 0xfff)
    }

    fn fresh(&mut self, at: DateTime<Utc>) -> Uuid {
        self.numbered(at.timestamp_millis(), 0)
    }

    /// A version 7 identifier: time, a few bits within the millisecond, and a number that no other has.
    fn numbered(&mut self, ms: i64, fine: u64) -> Uuid {
        self.made += 1;
        // Spread as random ones are (SplitMix64, which maps different numbers to different ones).
        let mut mixed = self.made.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^= mixed >> 31;
        let high = (u128::from(ms as u64) << 16) | 0x7000 | u128::from(fine);
        let low = (mixed >> 2) | (1 << 63);
        Uuid::from_u128((high << 64) | u128::from(low))
    }

    fn keep(&mut self, table: &Table, row: Row) {
        *self.cast.rows.entry(table.name).or_default() += 1;
        self.cast.all += 1;
        self.buffer.entry(table.name).or_default().push(row);
    }

    async fn flush(&mut self, conn: &mut Conn) -> Result<()> {
        conn.run("BEGIN").await?;
        for table in ORDER {
            if let Some(rows) = self.buffer.remove(table.name) {
                conn.insert(table, &rows).await?;
            }
        }
        conn.run("COMMIT").await
    }

    /// Writes what is left, and what the orchestrator counts on from.
    async fn end(&mut self, conn: &mut Conn) -> Result<()> {
        for (_, row) in std::mem::take(&mut self.active) {
            self.keep(&t::ACTIVE_COMPONENTS, row);
        }
        self.flush(conn).await?;
        let sql = "UPDATE audit_head SET seq = ?, hash = ?";
        conn.set(
            sql,
            &[Value::Int(self.audit.0), Value::Text(self.audit.1.to_string())],
        )
        .await?;
        for project in &self.projects {
            let sql = "UPDATE projects SET last_number = ? WHERE id = ?";
            conn.set(sql, &[Value::Int(project.number), Value::Id(project.id)])
                .await?;
        }
        for environment in &self.environments {
            let (id, ticket) = (Value::Id(environment.id), Value::Int(environment.ticket));
            let sql = "INSERT INTO lanes (environment_id, last_ticket) VALUES (?, ?)";
            conn.set(sql, &[id.clone(), ticket.clone()]).await?;
            let sql = "UPDATE targets SET fence = ? WHERE environment_id = ?";
            conn.set(sql, &[ticket, id]).await?;
        }
        Ok(())
    }
}

fn put(table: &Table, row: &mut Row, column: &str, value: Value) -> Result<()> {
    row[table.at(column)?] = value;
    Ok(())
}

fn id_of(table: &Table, row: &Row) -> Result<Option<Uuid>> {
    match row[table.at("id")?] {
        Value::Id(id) => Ok(Some(id)),
        _ => Ok(None),
    }
}
