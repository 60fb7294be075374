//! P7: what a statement costs does not grow with history. SQLite keeps no statistics here (nobody runs ANALYZE), so how it carries
//! out a statement depends on the schema alone: what is read here is what happens after years, too.

use std::collections::BTreeMap;

use sealift_store::{STATEMENTS, Statement};

use crate::harness::{Raw, World, on_sqlite};

/// Tables that grow with every deployment or call.
const GROWING: &[&str] = &[
    "active_components",
    "audit_events",
    "certificates",
    "decisions",
    "drift",
    "drift_remedies",
    "failures",
    "holds",
    "idempotent_answers",
    "job_subjects",
    "jobs",
    "log_heads",
    "log_lines",
    "log_sizes",
    "packets",
    "promotions",
    "quality_marks",
    "release_components",
    "releases",
    "stickers",
    "task_attempts",
    "tasks",
    "transitions",
    "version_entries",
    "waves",
];

/// Indexes that hold only what is under way, waits or is open: few rows however long the history is.
const FEW: &[&str] = &[
    "attempts_by_due_time",
    "certificates_of_agent",
    "drift_open_of_environment",
    "drift_open_of_target",
    "drift_open_of_tenant",
    "holds_open_of_tenant",
    "jobs_in_motion",
    "jobs_queued",
    "jobs_rolling_back",
    "one_active_release_per_component",
    "one_live_task_per_target",
    "one_open_drift",
    "one_open_hold",
    "tasks_leased",
    "tasks_of_agent",
];

/// Columns that have few rows for each value: those of one job, one task, one release.
const NARROW: &[&str] = &[
    "commit_id=?",
    "drift_id=?",
    "entity_id=?",
    "job_id=?",
    "number=?",
    "promotion_id=?",
    "release_id=?",
    "request_id=?",
    "rollback_of=?",
    "rowid=?",
    "serial=?",
    "task_id=?",
    "user_id=?",
    "(id=?",
    " id=?",
];

/// Statements about what is open, which must not pass over what is not.
const OPEN: &[(&str, &str)] = &[
    ("active::ACTIVE", "one_active_release_per_component"),
    ("active::ACTIVE_OF_TENANT", "one_active_release_per_component"),
    ("active::SUPERSEDE", "one_active_release_per_component"),
    ("board::DRIFT", "drift_open_of_tenant"),
    ("board::JOBS", "jobs_in_motion"),
    ("board::QUEUED", "jobs_queued"),
    ("board::SERVICES", "one_active_release_per_component"),
    ("certificates::RETIRE", "certificates_of_agent"),
    ("drift::OPEN", "one_open_drift"),
    ("drift::OPEN_OF_ENVIRONMENT", "drift_open_of_environment"),
    ("drift::OPEN_OF_TARGET", "drift_open_of_target"),
    ("drift::OPEN_OF_TENANT", "drift_open_of_tenant"),
    ("holds::LIST_OPEN", "holds_open_of_tenant"),
    ("holds::OPEN", "one_open_hold"),
    ("holds::OPEN_ON_RELEASE", "one_open_hold"),
    ("jobs::IN_MOTION", "jobs_in_motion"),
    ("lanes::HEAD", "jobs_queued"),
    ("lanes::IN_MOTION", "jobs_in_motion"),
    ("lanes::PROJECT_UNDER_WAY", "jobs_in_motion"),
    ("lanes::PROJECT_UNDER_WAY", "jobs_rolling_back"),
    ("lanes::PROJECT_WAITS", "jobs_queued"),
    ("lanes::PROMOTION_UNDER_WAY", "jobs_in_motion"),
    ("lanes::QUEUED", "jobs_queued"),
    ("lanes::QUEUED_UP_TO", "jobs_queued"),
    ("lanes::START_FIRST", "jobs_queued"),
    ("lanes::WITH_QUEUED", "jobs_queued"),
    ("remedies::OPEN", "one_open_drift"),
    ("remedies::PLACES", "one_open_drift"),
    ("tasks::AGENTS_WITH_LIVE", "tasks_of_agent"),
    ("tasks::EXPIRED", "tasks_leased"),
    ("tasks::LIVE_OF_AGENT", "tasks_of_agent"),
    ("tasks::LIVE_OF_REVOKED", "tasks_of_agent"),
    ("tasks::LIVE_ON_TARGET", "one_live_task_per_target"),
    ("tasks::OVERDUE", "attempts_by_due_time"),
];

/// Lists of history, each along the index that begins with what it is narrowed to.
const LISTS: &[(&str, &str)] = &[
    (
        "audit::LIST_OF_TENANT",
        "audit_events_of_tenant (tenant_id=? AND seq<?)",
    ),
    (
        "drift::ALL_OF_ENVIRONMENT",
        "drift_of_environment (environment_id=? AND severity=? AND id<?)",
    ),
    (
        "drift::ALL_OF_TARGET",
        "drift_of_target (target_id=? AND severity=? AND id<?)",
    ),
    (
        "drift::ALL_OF_TENANT",
        "drift_of_tenant (tenant_id=? AND severity=? AND id<?)",
    ),
    ("evidence::LIST", "packets_of_tenant (tenant_id=? AND id<?)"),
    (
        "evidence::LIST_OF_ENVIRONMENT",
        "packets_of_environment (environment_id=? AND id<?)",
    ),
    ("evidence::LIST_OF_JOB", "packets_of_job (job_id=? AND id<?)"),
    (
        "evidence::LIST_OF_TARGET",
        "packets_of_target (target_id=? AND id<?)",
    ),
    ("failures::OF_JOB", "failures_of_job (job_id=? AND id<?)"),
    ("failures::OF_TASK", "failures_of_task (task_id=? AND id<?)"),
    (
        "history::OF_ENVIRONMENT",
        "jobs_of_environment (environment_id=? AND id<?)",
    ),
    (
        "history::OF_SUBJECT",
        "(environment_id=? AND subject_id=? AND job_id<?)",
    ),
    ("history::OF_TARGET", "tasks_of_target (target_id=? AND job_id<?)"),
    ("jobs::LIST", "(tenant_id=? AND id<?)"),
    ("jobs::LIST_OF_ENVIRONMENT", "(environment_id=? AND ticket<?)"),
    ("logs::OF_JOB", "(job_id=? AND position>?)"),
    ("logs::OF_TASK", "log_lines_of_task (task_id=? AND position>?)"),
    (
        "marks::CANDIDATES",
        "active_components_of_project (project_id=? AND environment_id=?)",
    ),
    ("promotions::LIST", "(tenant_id=? AND id<?)"),
    (
        "promotions::LIST_OF_ENVIRONMENT",
        "promotions_of_environment (environment_id=? AND id<?)",
    ),
    ("releases::LIST", "(tenant_id=? AND id<?)"),
    ("releases::LIST_OF_PROJECT", "(project_id=? AND number<?)"),
    (
        "stickers::LIST",
        "stickers_newest (target_id=? AND project=? AND id<?)",
    ),
    ("task_lists::LIST", "tasks_of_job (job_id=?"),
    (
        "versions::VERSIONS",
        "version_entries_newest (component_id=? AND id<?)",
    ),
];

/// Statements that read more of history than they show, and how much.
const EXCEPTIONS: &[(&str, &str)] = &[
    (
        "history::RELEASES_SINCE",
        "as many as the target has missed of its project",
    ),
    ("idempotency::PURGE", "what is deleted"),
    (
        "remedies::TRIES",
        "the tries of a place within the time that counts",
    ),
];

fn name(statement: &Statement) -> String {
    let file = statement.file.rsplit("::").next().unwrap_or_default();
    format!("{file}::{}", statement.name)
}

/// What is wrong with one line of a plan, if anything is.
fn fault(
    line: &str,
    indexes: &BTreeMap<String, String>,
    sorted: bool,
    limited: bool,
) -> Option<&'static str> {
    let mut words = line.split_whitespace();
    let how = words.next()?;
    if how != "SCAN" && how != "SEARCH" {
        return None;
    }
    let index = line
        .split("INDEX ")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next());
    let scanned = words.next()?;
    let table = index.and_then(|index| indexes.get(index).map(String::as_str));
    let table = table.unwrap_or(scanned);
    // By the rowid an alias is all that is told, and only the numbered tables are searched like that.
    let grows = GROWING.contains(&table) || line.contains("INTEGER PRIMARY KEY");
    if !grows || index.is_some_and(|index| FEW.contains(&index)) {
        return None;
    }
    if how == "SCAN" {
        return Some("reads a whole history");
    }
    let narrow = NARROW.iter().any(|column| line.contains(column));
    let in_order = limited && !sorted;
    (!narrow && !in_order).then_some("reads all of a part of history")
}

#[tokio::test]
async fn p7_no_statement_reads_more_of_history_than_it_shows() {
    on_sqlite(async |world: World| {
        let mut raw = Raw::open(&world.config.url).await;
        let indexes: BTreeMap<String, String> = raw
            .texts("SELECT name, tbl_name, '' FROM sqlite_master WHERE type = 'index'")
            .await
            .into_iter()
            .map(|(index, table, _)| (index, table))
            .collect();
        let mut plans = BTreeMap::new();
        for statement in STATEMENTS.iter().copied().flatten() {
            let plan = raw.plan(statement.sql).await;
            let sorted = plan.iter().any(|line| line.contains("TEMP B-TREE FOR ORDER BY"));
            let limited = statement.sql.contains("LIMIT");
            for line in &plan {
                let fault = fault(line, &indexes, sorted, limited);
                let excepted = EXCEPTIONS.iter().any(|(known, _)| *known == name(statement));
                assert!(
                    fault.is_none() || excepted,
                    "{} {fault:?}:\n{plan:#?}",
                    name(statement)
                );
            }
            plans.insert(name(statement), plan.join("\n"));
        }
        for (statement, wanted) in OPEN.iter().chain(LISTS) {
            let plan = &plans[*statement];
            assert!(plan.contains(wanted), "{statement} wanted {wanted}:\n{plan}");
        }
        for (statement, _) in LISTS {
            let plan = &plans[*statement];
            assert!(!plan.contains("TEMP B-TREE"), "{statement}:\n{plan}");
        }
        for index in FEW {
            assert!(indexes.contains_key(*index), "{index}");
        }
        for (statement, _) in EXCEPTIONS {
            assert!(plans.contains_key(*statement), "{statement}");
        }
    })
    .await;
}
