//! Log lines of tasks. Bounded per attempt, numbered per job so that a reader that follows by number misses none.

use std::collections::BTreeSet;

use chrono::{DateTime, Utc};
use sealift_common::{
    bounds,
    id::{JobId, TaskId},
};
use sqlx::{FromRow, QueryBuilder};
use uuid::Uuid;

use crate::{
    Change, LogCursor, LogLine, LogState, Result, StoredLogLine, Tx,
    engine::{on, statements},
    rows::{At, int},
};

statements! {
    LOCK_HEAD = {
        "INSERT INTO log_heads (job_id, last_position) VALUES ($1, 0) ON CONFLICT (job_id) ",
        "DO UPDATE SET last_position = log_heads.last_position RETURNING last_position"
    };
    SET_HEAD = { "UPDATE log_heads SET last_position = $2 WHERE job_id = $1" };
    SIZE = { "SELECT bytes, truncated FROM log_sizes WHERE task_id = $1 AND attempt = $2" };
    SET_SIZE = {
        "INSERT INTO log_sizes (task_id, attempt, bytes, truncated) VALUES ($1, $2, $3, $4) ",
        "ON CONFLICT (task_id, attempt) DO UPDATE SET bytes = excluded.bytes, truncated = excluded.truncated"
    };
    KNOWN = { "SELECT seq FROM log_lines WHERE task_id = $1 AND attempt = $2 AND seq >= $3 AND seq <= $4" };
    OF_JOB = {
        "SELECT position, task_id, attempt, seq, source, text, at, truncated FROM log_lines ",
        "WHERE job_id = $1 AND position > $2 ORDER BY position LIMIT $3"
    };
    OF_TASK = {
        "SELECT position, task_id, attempt, seq, source, text, at, truncated FROM log_lines ",
        "WHERE job_id = $1 AND position > $2 AND task_id = $4 ORDER BY position LIMIT $3"
    };
}

const INSERT: &str =
    "INSERT INTO log_lines (job_id, position, task_id, attempt, seq, source, text, at, truncated) ";
/// Rows per bulk statement: far below the bound on parameters of both engines.
const BULK: usize = 500;

#[derive(FromRow)]
struct LineRow {
    position: i64,
    task_id: Uuid,
    attempt: i64,
    seq: i64,
    source: String,
    text: String,
    at: DateTime<Utc>,
    truncated: bool,
}

impl TryFrom<LineRow> for StoredLogLine {
    type Error = crate::StoreError;

    fn try_from(row: LineRow) -> Result<Self> {
        let at = At::new("log_lines", row.task_id);
        Ok(Self {
            cursor: LogCursor(at.number("position", row.position)?),
            task_id: row.task_id.into(),
            attempt: at.small("attempt", row.attempt)?,
            seq: at.number("seq", row.seq)?,
            source: row.source,
            text: row.text,
            at: row.at,
            truncated: row.truncated,
        })
    }
}

/// A line as it will be stored.
struct NewLine {
    seq: i64,
    source: String,
    text: String,
    at: DateTime<Utc>,
    truncated: bool,
}

/// Text that both engines can hold: PostgreSQL refuses the zero character.
fn storable(text: &str) -> String {
    text.replace('\0', "\u{fffd}")
}

/// The longest beginning of `text` that has at most `most` bytes and ends between characters.
fn cut(text: &str, most: usize) -> &str {
    &text[..text.floor_char_boundary(most)]
}

/// Which lines still fit, the last one cut where the bound is.
fn fitting(lines: Vec<(i64, &LogLine)>, mut state: LogState) -> (Vec<NewLine>, LogState) {
    let mut kept = Vec::with_capacity(lines.len());
    for (seq, line) in lines {
        if state.truncated {
            break;
        }
        let room = (bounds::ATTEMPT_LOG_BYTES as u64)
            .saturating_sub(state.bytes)
            .saturating_sub(bounds::LOG_LINE_OVERHEAD as u64) as usize;
        let whole = storable(&line.text);
        let text = cut(&whole, room.min(bounds::LOG_LINE_BYTES));
        // A line that is too long by itself is cut; only a full log ends the log.
        state.truncated = room == 0 || room < whole.len().min(bounds::LOG_LINE_BYTES);
        let counts = (text.len() + bounds::LOG_LINE_OVERHEAD) as u64;
        state.bytes = (state.bytes + counts).min(bounds::ATTEMPT_LOG_BYTES as u64);
        kept.push(NewLine {
            seq,
            source: storable(&line.source),
            truncated: line.truncated || state.truncated,
            text: text.to_owned(),
            at: line.at,
        });
    }
    (kept, state)
}

impl Tx {
    /// Keeps log lines of an attempt, many per statement. Lines that are there already (by their number) are left out and do not
    /// count again: a restarted agent tells what its containers have said once more. What is above [`bounds::ATTEMPT_LOG_BYTES`] is cut off and marked.
    pub async fn append_logs(
        &mut self,
        task: TaskId,
        job: JobId,
        attempt: u32,
        lines: &[LogLine],
    ) -> Result<LogState> {
        // In the order of their arrival: numbers tell lines apart, not which came first.
        let mut numbers = BTreeSet::new();
        let mut new = Vec::with_capacity(lines.len());
        for line in lines {
            let seq = int(line.seq)?;
            if numbers.insert(seq) {
                new.push((seq, line));
            }
        }
        // Locks the job's log until the end of the transaction: positions become visible in their order.
        let head: i64 = on!(self, |conn| sqlx::query_scalar(LOCK_HEAD)
            .bind(job.uuid())
            .fetch_one(conn)
            .await)?;
        let state = self.log_state(task, attempt).await?;
        let (Some(first), Some(last)) = (numbers.first(), numbers.last()) else {
            return Ok(state);
        };
        if state.truncated {
            return Ok(state);
        }
        let known: Vec<i64> = on!(self, |conn| sqlx::query_scalar(KNOWN)
            .bind(task.uuid())
            .bind(i64::from(attempt))
            .bind(*first)
            .bind(*last)
            .fetch_all(conn)
            .await)?;
        let known: BTreeSet<i64> = known.into_iter().collect();
        new.retain(|(seq, _)| !known.contains(seq));
        let (kept, state) = fitting(new, state);
        if kept.is_empty() {
            return Ok(state);
        }
        self.insert_log_lines(task, job, attempt, head, &kept).await?;
        let bytes = int(state.bytes)?;
        on!(self, |conn| sqlx::query(SET_SIZE)
            .bind(task.uuid())
            .bind(i64::from(attempt))
            .bind(bytes)
            .bind(state.truncated)
            .execute(conn)
            .await
            .map(drop))?;
        on!(self, |conn| sqlx::query(SET_HEAD)
            .bind(job.uuid())
            .bind(head + kept.len() as i64)
            .execute(conn)
            .await
            .map(drop))?;
        self.note(Change::Logs(job));
        Ok(state)
    }

    async fn log_state(&mut self, task: TaskId, attempt: u32) -> Result<LogState> {
        let size: Option<(i64, bool)> = on!(self, |conn| sqlx::query_as(SIZE)
            .bind(task.uuid())
            .bind(i64::from(attempt))
            .fetch_optional(conn)
            .await)?;
        let (bytes, truncated) = size.unwrap_or((0, false));
        Ok(LogState {
            bytes: At::new("log_sizes", task).number("bytes", bytes)?,
            truncated,
        })
    }

    async fn insert_log_lines(
        &mut self,
        task: TaskId,
        job: JobId,
        attempt: u32,
        head: i64,
        lines: &[NewLine],
    ) -> Result<()> {
        for (number, chunk) in lines.chunks(BULK).enumerate() {
            let before = head + (number * BULK) as i64;
            on!(self, |conn| {
                let mut query = QueryBuilder::new(INSERT);
                query.push_values(chunk.iter().zip(1_i64..), |mut row, (line, place)| {
                    row.push_bind(job.uuid())
                        .push_bind(before + place)
                        .push_bind(task.uuid())
                        .push_bind(i64::from(attempt))
                        .push_bind(line.seq)
                        .push_bind(line.source.as_str())
                        .push_bind(line.text.as_str())
                        .push_bind(line.at)
                        .push_bind(line.truncated);
                });
                query.build().execute(conn).await.map(drop)
            })?;
        }
        Ok(())
    }

    /// Log lines of a job, or of one of its tasks, in the order of their arrival.
    pub async fn logs(
        &mut self,
        job: JobId,
        task: Option<TaskId>,
        after: Option<LogCursor>,
        limit: u32,
    ) -> Result<Vec<StoredLogLine>> {
        let after = int(after.map_or(0, |cursor| cursor.0))?;
        let limit = i64::from(limit);
        let rows: Vec<LineRow> = match task {
            None => on!(self, |conn| sqlx::query_as(OF_JOB)
                .bind(job.uuid())
                .bind(after)
                .bind(limit)
                .fetch_all(conn)
                .await)?,
            Some(task) => on!(self, |conn| sqlx::query_as(OF_TASK)
                .bind(job.uuid())
                .bind(after)
                .bind(limit)
                .bind(task.uuid())
                .fetch_all(conn)
                .await)?,
        };
        crate::rows::all(rows)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t17_empty_lines_are_not_free() {
        let empty = LogLine {
            seq: 1,
            source: "web".into(),
            text: String::new(),
            at: DateTime::default(),
            truncated: false,
        };
        let lines = (1..=100_000).map(|seq| (seq, &empty)).collect();
        let start = LogState {
            bytes: 0,
            truncated: false,
        };
        let (kept, state) = fitting(lines, start);
        assert!(kept.len() <= bounds::ATTEMPT_LOG_BYTES / bounds::LOG_LINE_OVERHEAD);
        assert!(state.truncated && kept.last().unwrap().truncated);
        assert_eq!(state.bytes, bounds::ATTEMPT_LOG_BYTES as u64);
    }

    #[test]
    fn a_cut_never_splits_a_character() {
        assert_eq!(cut("aä", 2), "a");
        assert_eq!(cut("aä", 3), "aä");
        assert_eq!(cut("ä", 9), "ä");
    }
}
