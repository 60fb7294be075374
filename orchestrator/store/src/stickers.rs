//! Stickers as agents reported them: insert-only, one chain per target and project.

use chrono::{DateTime, Utc};
use sealift_common::{
    digest::Digest,
    id::{JobId, TargetId, TaskId},
};
use sqlx::FromRow;
use uuid::Uuid;

use crate::{
    Cursor, Page, PageRequest, Result, StickerRow, StoreError, Tx,
    engine::{on, statements},
    rows::{At, all},
};

statements! {
    INSERT = {
        "INSERT INTO stickers (target_id, project, task_id, digest, previous, content, created_at) ",
        "VALUES ($1, $2, $3, $4, $5, $6, $7)"
    };
    LATEST = {
        "SELECT digest, content FROM stickers WHERE target_id = $1 AND project = $2 ORDER BY id DESC LIMIT 1"
    };
    LIST = {
        "SELECT s.id, s.task_id, t.job_id, s.digest, s.previous, s.content, s.created_at FROM stickers s ",
        "JOIN tasks t ON t.id = s.task_id WHERE s.target_id = $1 AND s.project = $2 AND s.id < $3 ",
        "ORDER BY s.id DESC LIMIT $4"
    };
}

/// A sticker with its place in the chain of its project and target.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReportedSticker {
    /// Grows with each reported sticker.
    pub position: u64,
    /// The task that it was reported with.
    pub task: TaskId,
    /// That task's job.
    pub job: JobId,
    /// Its digest.
    pub digest: Digest,
    /// The sticker that it names as the one before it.
    pub previous: Option<Digest>,
    /// The sticker that was reported before it.
    pub older: Option<Digest>,
    /// The file's bytes.
    pub content: Vec<u8>,
    /// When it was reported.
    pub reported_at: DateTime<Utc>,
}

#[derive(FromRow)]
struct ReportedRow {
    id: i64,
    task_id: Uuid,
    job_id: Uuid,
    digest: String,
    previous: Option<String>,
    content: Vec<u8>,
    created_at: DateTime<Utc>,
}

impl TryFrom<ReportedRow> for ReportedSticker {
    type Error = StoreError;

    fn try_from(row: ReportedRow) -> Result<Self> {
        let at = At::new("stickers", row.id);
        Ok(Self {
            position: at.number("id", row.id)?,
            task: row.task_id.into(),
            job: row.job_id.into(),
            digest: at.parse("digest", &row.digest)?,
            previous: at.parse_opt("previous", row.previous.as_deref())?,
            older: None,
            content: row.content,
            reported_at: row.created_at,
        })
    }
}

impl Tx {
    /// Keeps a reported sticker.
    #[expect(
        clippy::too_many_arguments,
        reason = "a sticker's row is these values, and nothing else needs them together"
    )]
    pub async fn insert_sticker(
        &mut self,
        target: TargetId,
        project: &str,
        task: TaskId,
        digest: Digest,
        previous: Option<Digest>,
        content: &[u8],
        now: DateTime<Utc>,
    ) -> Result<()> {
        on!(self, |conn| sqlx::query(INSERT)
            .bind(target.uuid())
            .bind(project)
            .bind(task.uuid())
            .bind(digest.to_string())
            .bind(previous.map(|digest| digest.to_string()))
            .bind(content)
            .bind(now)
            .execute(conn)
            .await
            .map(drop))?;
        Ok(())
    }

    /// The newest sticker of a project on a target.
    pub async fn latest_sticker(&mut self, target: TargetId, project: &str) -> Result<Option<StickerRow>> {
        let row: Option<(String, Vec<u8>)> = on!(self, |conn| sqlx::query_as(LATEST)
            .bind(target.uuid())
            .bind(project)
            .fetch_optional(conn)
            .await)?;
        let sticker = |(digest, content): (String, Vec<u8>)| {
            let digest = At::new("stickers", target).parse("digest", &digest)?;
            Ok(StickerRow { digest, content })
        };
        row.map(sticker).transpose()
    }

    /// The chain of a project on a target, newest first; each with the one that was reported before it, on whatever page that is.
    pub async fn list_stickers(
        &mut self,
        target: TargetId,
        project: &str,
        page: &PageRequest,
    ) -> Result<Page<ReportedSticker>> {
        let below = page.below_number()?;
        let rows: Vec<ReportedRow> = on!(self, |conn| sqlx::query_as(LIST)
            .bind(target.uuid())
            .bind(project)
            .bind(below)
            .bind(page.limit())
            .fetch_all(conn)
            .await)?;
        let mut items: Vec<ReportedSticker> = all(rows)?;
        // The row beyond the page, if there is one, is the one before its last.
        let older: Vec<Digest> = items.iter().skip(1).map(|sticker| sticker.digest).collect();
        for (sticker, older) in items.iter_mut().zip(older) {
            sticker.older = Some(older);
        }
        Ok(Page::of(items, page, |sticker: &ReportedSticker| {
            Cursor::of(&[&sticker.position])
        }))
    }
}
