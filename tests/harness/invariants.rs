//! Statements that must hold in every database that an orchestrator has written, whatever was killed meanwhile: one query each, over
//! the tables and past the store, so that the store is not asked about itself. Each gives what breaks it.
//!
//! [`check`] may run at any time, beside the orchestrator; [`at_rest`] when everything that was asked for should have ended.

use std::{path::PathBuf, time::Duration};

use anyhow::{Result, ensure};
use sqlx::{Connection as _, PgConnection, SqliteConnection, sqlite::SqliteConnectOptions};

/// One statement.
#[derive(Debug, Clone, Copy)]
pub struct Invariant {
    /// Its number in the rules of the product (R) or the list of invariants (I).
    pub number: &'static str,
    /// What holds.
    pub statement: &'static str,
    /// A query that gives one text for each breach, on either engine.
    breaches: &'static str,
}

/// The part of the log in which a job runs, by ordinals: a job that is being rolled back leaves the lane to its rollback.
macro_rules! with_job_spans {
    ($query:literal) => {
        concat!(
            "WITH spans AS (SELECT j.id, j.environment_id, r.project_id, j.environment || ' job ' || CAST(j.ticket AS TEXT) AS name, \
             j.ticket, j.rollback_of, \
             MIN(CASE WHEN t.to_state = 'running' THEN t.ordinal END) AS begun, \
             MIN(CASE WHEN t.to_state NOT IN ('queued', 'running', 'paused') THEN t.ordinal END) AS ended, \
             MIN(CASE WHEN t.to_state NOT IN ('queued', 'running', 'paused', 'rolling_back') THEN t.ordinal END) AS finished \
             FROM jobs j JOIN transitions t ON t.entity_kind = 'job' AND t.entity_id = j.id \
             LEFT JOIN releases r ON r.id = j.release_id \
             GROUP BY j.id, j.environment_id, r.project_id, j.environment, j.ticket, j.rollback_of) ",
            $query
        )
    };
}

/// The part of the log in which a task is with an agent.
macro_rules! with_task_spans {
    ($query:literal) => {
        concat!(
            "WITH spans AS (SELECT k.id, k.job_id, k.target_id, k.wave, k.environment || '/' || k.target || ' fence ' || \
             CAST(k.fence AS TEXT) AS name, \
             MIN(CASE WHEN t.to_state = 'assigned' THEN t.ordinal END) AS begun, \
             MIN(CASE WHEN t.to_state IN ('succeeded', 'failed', 'skipped', 'cancelled') THEN t.ordinal END) AS ended \
             FROM tasks k JOIN transitions t ON t.entity_kind = 'task' AND t.entity_id = k.id \
             GROUP BY k.id, k.job_id, k.target_id, k.wave, k.environment, k.target, k.fence) ",
            $query
        )
    };
}

/// What holds at any time. Lanes are taken to let one job run, as they do unless the settings say otherwise.
pub const ALWAYS: &[Invariant] = &[
    Invariant {
        number: "I1",
        statement: "a lane runs one job at a time",
        breaches: with_job_spans!(
            "SELECT b.name || ' ran beside ' || a.name FROM spans a JOIN spans b ON a.environment_id = b.environment_id \
             AND a.begun < b.begun AND (a.ended IS NULL OR a.ended > b.begun)"
        ),
    },
    Invariant {
        number: "I1",
        statement: "a project has one job at a time in an environment, and beside one that is being undone its rollback",
        breaches: with_job_spans!(
            "SELECT b.name || ' ran beside ' || a.name || ', of the same project' FROM spans a \
             JOIN spans b ON a.environment_id = b.environment_id AND a.project_id = b.project_id \
             AND a.begun < b.begun AND (a.finished IS NULL OR a.finished > b.begun) \
             AND (b.rollback_of IS NULL OR b.rollback_of <> a.id OR a.ended IS NULL OR a.ended > b.begun)"
        ),
    },
    Invariant {
        number: "I1",
        statement: "a target has one task at a time",
        breaches: with_task_spans!(
            "SELECT b.name || ' ran beside ' || a.name FROM spans a JOIN spans b ON a.target_id = b.target_id \
             AND a.begun < b.begun AND (a.ended IS NULL OR a.ended > b.begun)"
        ),
    },
    Invariant {
        number: "I2",
        statement: "jobs of a lane begin in the order of their tickets, except rollbacks, and unless a hold keeps one back",
        breaches: with_job_spans!(
            "SELECT b.name || ' overtook ' || a.name FROM spans a JOIN spans b ON a.environment_id = b.environment_id \
             AND a.ticket < b.ticket AND a.begun > b.begun \
             WHERE b.rollback_of IS NULL AND NOT EXISTS (SELECT 1 FROM holds h WHERE h.environment_id = a.environment_id)"
        ),
    },
    Invariant {
        number: "I3",
        statement: "every history has no gap, and each step begins where the one before ended",
        breaches: "SELECT b.entity_kind || ' ' || b.event || ' at ' || CAST(b.ordinal AS TEXT) FROM transitions b \
                   LEFT JOIN transitions a ON a.entity_kind = b.entity_kind AND a.entity_id = b.entity_id AND a.seq = b.seq - 1 \
                   WHERE b.seq > 1 AND (a.to_state IS NULL OR a.to_state <> b.from_state OR a.ordinal >= b.ordinal)",
    },
    Invariant {
        number: "I3",
        statement: "what has ended stays as it is",
        breaches: "SELECT entity_kind || ' ' || event || ' after ' || from_state FROM transitions \
                   WHERE from_state <> to_state AND from_state IN \
                   ('deployed', 'rejected', 'succeeded', 'failed', 'skipped', 'cancelled', 'rolled_back', 'rollback_failed')",
    },
    Invariant {
        number: "I3",
        statement: "states are those that the histories end with",
        breaches: "SELECT e.kind || ' is ' || e.state || ', its history ends with ' || COALESCE(t.to_state, 'nothing') FROM ( \
                   SELECT 'promotion' AS kind, id, state, version FROM promotions \
                   UNION ALL SELECT 'job', id, state, version FROM jobs \
                   UNION ALL SELECT 'task', id, state, version FROM tasks) e \
                   LEFT JOIN transitions t ON t.entity_kind = e.kind AND t.entity_id = e.id \
                   AND t.seq = (SELECT MAX(u.seq) FROM transitions u WHERE u.entity_kind = e.kind AND u.entity_id = e.id) \
                   WHERE COALESCE(t.seq, 0) <> e.version OR t.to_state <> e.state",
    },
    Invariant {
        number: "I4",
        statement: "what succeeded is proven by the packet of its last attempt",
        breaches: "SELECT k.environment || '/' || k.target || ' fence ' || CAST(k.fence AS TEXT) FROM tasks k \
                   LEFT JOIN packets p ON p.task_id = k.id AND p.attempt = k.attempt \
                   WHERE k.state = 'succeeded' AND (p.result IS NULL OR p.result <> 'succeeded')",
    },
    Invariant {
        number: "I8",
        statement: "what is recorded of a target is its last success",
        breaches: "SELECT k.environment || '/' || k.target || ' fence ' || CAST(c.fence AS TEXT) FROM target_current c \
                   JOIN tasks k ON k.id = c.task_id WHERE k.state <> 'succeeded' OR k.fence <> c.fence OR EXISTS ( \
                   SELECT 1 FROM tasks n JOIN jobs j ON j.id = n.job_id JOIN releases r ON r.id = j.release_id \
                   WHERE n.target_id = c.target_id AND n.state = 'succeeded' AND n.fence > c.fence \
                   AND r.repository = c.repository AND r.project = c.project)",
    },
    Invariant {
        number: "I9",
        statement: "release numbers have no gap",
        breaches: "SELECT p.project FROM projects p LEFT JOIN releases r ON r.project_id = p.id \
                   GROUP BY p.id, p.project, p.last_number \
                   HAVING COUNT(r.id) <> p.last_number OR COALESCE(MAX(r.number), 0) <> p.last_number \
                   OR COUNT(DISTINCT r.number) <> p.last_number",
    },
    Invariant {
        number: "I13",
        statement: "the audit log has no gap and ends where its head says",
        breaches: "SELECT 'head ' || CAST(h.seq AS TEXT) || ', events ' || CAST(e.events AS TEXT) FROM audit_head h \
                   CROSS JOIN (SELECT COUNT(*) AS events, COALESCE(MAX(seq), 0) AS newest FROM audit_events) e \
                   WHERE h.seq <> e.newest OR e.events <> e.newest",
    },
    Invariant {
        number: "I17",
        statement: "a fencing token is given once, and never above the target's counter",
        breaches: "SELECT g.name || ' fence ' || CAST(a.fence AS TEXT) FROM task_attempts a \
                   JOIN tasks k ON k.id = a.task_id JOIN targets g ON g.id = k.target_id \
                   GROUP BY g.id, g.name, g.fence, a.fence HAVING COUNT(*) > 1 OR a.fence > g.fence",
    },
    Invariant {
        number: "I18",
        statement: "a wave begins when the one before has ended",
        breaches: with_task_spans!(
            "SELECT b.name || ' did not wait for ' || a.name FROM spans a JOIN spans b ON a.job_id = b.job_id \
             AND a.wave < b.wave AND b.begun IS NOT NULL AND (a.ended IS NULL OR a.ended > b.begun)"
        ),
    },
];

/// What holds besides once everything that was asked for has had its time.
pub const AT_REST: &[Invariant] = &[
    Invariant {
        number: "I21",
        statement: "no promotion is under way",
        breaches: "SELECT 'promotion to ' || environment || ': ' || state FROM promotions WHERE finished_at IS NULL",
    },
    Invariant {
        number: "I21",
        statement: "the lanes are empty",
        breaches: "SELECT environment || ' job ' || CAST(ticket AS TEXT) || ': ' || state FROM jobs WHERE finished_at IS NULL",
    },
    Invariant {
        number: "I21",
        statement: "every task has ended",
        breaches: "SELECT environment || '/' || target || ': ' || state FROM tasks WHERE finished_at IS NULL",
    },
    Invariant {
        number: "I4",
        statement: "an attempt that ended has its packet, unless its agent never came back",
        breaches: "SELECT k.environment || '/' || k.target || ' fence ' || CAST(a.fence AS TEXT) || ': ' || a.result \
                   FROM task_attempts a JOIN tasks k ON k.id = a.task_id \
                   LEFT JOIN packets p ON p.task_id = a.task_id AND p.attempt = a.number \
                   WHERE a.result NOT IN ('', 'abandoned') AND p.id IS NULL",
    },
];

/// Fails with every breach of [`ALWAYS`] in the database of this URL.
pub async fn check(url: &str) -> Result<()> {
    hold(url, ALWAYS).await
}

/// Fails with every breach of [`ALWAYS`] and [`AT_REST`].
pub async fn at_rest(url: &str) -> Result<()> {
    hold(url, &[ALWAYS, AT_REST].concat()).await
}

/// How many promotions the database of this URL holds.
pub async fn promotions(url: &str) -> Result<usize> {
    let mut eyes = Eyes::open(url).await?;
    Ok(eyes.texts("SELECT environment FROM promotions").await?.len())
}

async fn hold(url: &str, invariants: &[Invariant]) -> Result<()> {
    let mut eyes = Eyes::open(url).await?;
    let mut broken = Vec::new();
    for invariant in invariants {
        for breach in eyes.texts(invariant.breaches).await? {
            broken.push(format!("{} {}: {breach}", invariant.number, invariant.statement));
        }
    }
    ensure!(broken.is_empty(), "broken invariants:\n{}", broken.join("\n"));
    Ok(())
}

/// A connection of its own, which only looks.
enum Eyes {
    Sqlite(SqliteConnection),
    Postgres(PgConnection),
}

impl Eyes {
    async fn open(url: &str) -> Result<Self> {
        Ok(match url.strip_prefix("sqlite:") {
            Some(path) => {
                let options = SqliteConnectOptions::new()
                    .filename(PathBuf::from(path))
                    .busy_timeout(Duration::from_secs(10))
                    .read_only(true);
                Self::Sqlite(SqliteConnection::connect_with(&options).await?)
            }
            None => Self::Postgres(PgConnection::connect(url).await?),
        })
    }

    async fn texts(&mut self, query: &'static str) -> Result<Vec<String>> {
        Ok(match self {
            Self::Sqlite(connection) => sqlx::query_scalar(query).fetch_all(connection).await?,
            Self::Postgres(connection) => sqlx::query_scalar(query).fetch_all(connection).await?,
        })
    }
}

#[cfg(test)]
mod tests;
