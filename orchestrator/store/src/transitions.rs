//! History of promotions, jobs and tasks: one row for every version that a change made. Insert-only (R7).

use std::borrow::Cow;

use chrono::{DateTime, Utc};
use sealift_common::{failure::Failure, id::JobId, job::PauseReason};
use sqlx::{FromRow, QueryBuilder};
use uuid::Uuid;

use crate::{
    EntityKind, Result, Transition, Tx,
    engine::{on, statements},
    rows::{At, int, json_opt},
};

/// The bulk statement: its rows come after it.
const INSERT: &str = "INSERT INTO transitions (entity_kind, entity_id, seq, from_state, to_state, event, actor, detail, failure, at) ";
/// Rows per statement, and most rows that wait in a transaction.
const BULK: usize = 200;

statements! {
    OF_ENTITY = {
        "SELECT seq, from_state, to_state, event, actor, detail, failure, at FROM transitions ",
        "WHERE entity_kind = $1 AND entity_id = $2 ORDER BY seq LIMIT $3"
    };
    RESUMED_FROM = {
        "SELECT COUNT(*) FROM transitions WHERE entity_kind = $1 AND entity_id = $2 AND event = 'resumed' AND detail = $3"
    };
}

/// Most rows of one history that are read. Far more than any machine makes: ten attempts of ten steps.
const MOST: i64 = 10_000;

#[derive(FromRow)]
struct TransitionRow {
    seq: i64,
    from_state: String,
    to_state: String,
    event: String,
    actor: String,
    detail: String,
    failure: Option<String>,
    at: DateTime<Utc>,
}

/// Who makes a change, and the reason that was given for it: the history keeps both, each in its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct By<'a> {
    /// `user/alice`, `agent/<id>`, `orchestrator`.
    pub actor: &'a str,
    /// Free text; empty when none was given.
    pub reason: &'a str,
}

impl<'a> From<&'a str> for By<'a> {
    fn from(actor: &'a str) -> Self {
        Self { actor, reason: "" }
    }
}

impl<'a> From<&'a String> for By<'a> {
    fn from(actor: &'a String) -> Self {
        Self::from(actor.as_str())
    }
}

impl<'a> By<'a> {
    /// The detail of the history's row: what the event says, then the reason.
    pub(crate) fn detail(&self, event: &'a str) -> Cow<'a, str> {
        match (event, self.reason) {
            (event, "") => event.into(),
            ("", reason) => reason.into(),
            (event, reason) => format!("{event}: {reason}").into(),
        }
    }
}

/// A row that waits in its transaction until many are written at once, at the latest with the commit.
#[derive(Debug)]
pub(crate) struct Waiting {
    kind: &'static str,
    id: Uuid,
    seq: i64,
    from: &'static str,
    to: &'static str,
    event: &'static str,
    actor: String,
    detail: String,
    failure: Option<String>,
    at: DateTime<Utc>,
}

/// A history row to be written.
pub(crate) struct NewTransition<'a> {
    pub(crate) kind: EntityKind,
    pub(crate) id: Uuid,
    pub(crate) seq: u64,
    pub(crate) from: &'static str,
    pub(crate) to: &'static str,
    pub(crate) event: &'static str,
    pub(crate) actor: &'a str,
    pub(crate) detail: &'a str,
    pub(crate) failure: Option<&'a Failure>,
    pub(crate) at: DateTime<Utc>,
}

impl Tx {
    /// The history of a promotion, a job or a task, oldest first.
    pub async fn transitions(&mut self, kind: EntityKind, id: Uuid) -> Result<Vec<Transition>> {
        self.write_history().await?;
        let rows: Vec<TransitionRow> = on!(self, |conn| sqlx::query_as(OF_ENTITY)
            .bind(kind.as_str())
            .bind(id)
            .bind(MOST)
            .fetch_all(conn)
            .await)?;
        let transition = |row: TransitionRow| {
            let at = At::new("transitions", id);
            Ok(Transition {
                seq: at.number("seq", row.seq)?,
                from: row.from_state,
                to: row.to_state,
                event: row.event,
                actor: row.actor,
                detail: row.detail,
                failure: at.json_opt("failure", row.failure.as_deref())?,
                at: row.at,
            })
        };
        rows.into_iter().map(transition).collect()
    }

    /// Whether somebody has let a job go on that waited for this, as the reason of [`JobEvent::Resumed`] says.
    ///
    /// [`JobEvent::Resumed`]: sealift_common::job::JobEvent::Resumed
    pub async fn was_resumed_from(&mut self, job: JobId, why: PauseReason) -> Result<bool> {
        self.write_history().await?;
        let times: i64 = on!(self, |conn| sqlx::query_scalar(RESUMED_FROM)
            .bind(EntityKind::Job.as_str())
            .bind(job.uuid())
            .bind(why.as_str())
            .fetch_one(conn)
            .await)?;
        Ok(times > 0)
    }

    /// Writes a row of the history, together with others: [`Tx::write_history`].
    pub(crate) async fn insert_transition(&mut self, new: NewTransition<'_>) -> Result<()> {
        self.history.push(Waiting {
            kind: new.kind.as_str(),
            id: new.id,
            seq: int(new.seq)?,
            from: new.from,
            to: new.to,
            event: new.event,
            actor: new.actor.to_owned(),
            detail: new.detail.to_owned(),
            failure: json_opt(new.failure)?,
            at: new.at,
        });
        if self.history.len() < BULK {
            return Ok(());
        }
        self.write_history().await
    }

    /// Writes the rows that wait if one of them is of this promotion, job or task, for whoever reads its history only.
    pub(crate) async fn write_history_of(&mut self, id: Uuid) -> Result<()> {
        if self.history.iter().any(|row| row.id == id) {
            self.write_history().await?;
        }
        Ok(())
    }

    /// Writes the rows that wait, in the order in which they came. The commit calls this, and whoever reads the history.
    pub(crate) async fn write_history(&mut self) -> Result<()> {
        let waiting = std::mem::take(&mut self.history);
        for chunk in waiting.chunks(BULK) {
            on!(self, |conn| {
                let mut query = QueryBuilder::new(INSERT);
                query.push_values(chunk, |mut row, new| {
                    row.push_bind(new.kind)
                        .push_bind(new.id)
                        .push_bind(new.seq)
                        .push_bind(new.from)
                        .push_bind(new.to)
                        .push_bind(new.event)
                        .push_bind(new.actor.as_str())
                        .push_bind(new.detail.as_str())
                        .push_bind(new.failure.as_deref())
                        .push_bind(new.at);
                });
                query.build().execute(conn).await.map(drop)
            })?;
        }
        Ok(())
    }
}
