//! The tables of the journal: what is written where. Values that a decision depends on are checked when they are read.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Utc};
use prost::Message as _;
use redb::{ReadTransaction, ReadableTable, TableDefinition, WriteTransaction};
use sealift_common::{
    digest::Digest,
    id::{TargetId, TaskId},
    name::ProjectRef,
    order::Fence,
};
use sealift_proto::agent::v1::{Progressed, Report, report::Event};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::{
    Answer, AttemptKey, AttemptState, Baseline, JournalError, Phase, Record, ReportDraft, StoredAttempt,
    Write, encode_report,
};
use crate::prune::PulledImage;

type Key = (u128, u32);

/// (task, attempt) → envelope.
const ORDERS: TableDefinition<Key, &[u8]> = TableDefinition::new("orders");
/// target → highest fencing token.
const FENCES: TableDefinition<u128, u64> = TableDefinition::new("fences");
/// (task, attempt, sequence) → hash over the record before and this one, then this one as JSON.
const RECORDS: TableDefinition<(u128, u32, u32), &[u8]> = TableDefinition::new("records");
/// number → report.
const OUTBOX: TableDefinition<u64, &[u8]> = TableDefinition::new("outbox");
/// (task, attempt) → digest of the order, then the final report.
const ANSWERS: TableDefinition<Key, &[u8]> = TableDefinition::new("answers");
/// target/project → baseline as JSON.
const BASELINES: TableDefinition<&str, &[u8]> = TableDefinition::new("baselines");
/// repository@digest → when an order last asked for it, as JSON.
const IMAGES: TableDefinition<&str, &[u8]> = TableDefinition::new("images");
/// Counters.
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");

const NEXT_REPORT: &str = "next_report";
const FORMAT: &str = "format";
const FORMAT_VERSION: u64 = 1;
const CHAIN_BYTES: usize = 32;

fn key(key: AttemptKey) -> Key {
    (key.task.uuid().as_u128(), key.attempt)
}

fn task(raw: u128) -> TaskId {
    TaskId::from(Uuid::from_u128(raw))
}

fn damaged(what: impl std::fmt::Display) -> JournalError {
    JournalError::Damaged(what.to_string())
}

fn to_json<T: Serialize>(value: &T) -> Result<Vec<u8>, JournalError> {
    serde_json::to_vec(value).map_err(damaged)
}

fn from_json<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, JournalError> {
    serde_json::from_slice(bytes).map_err(damaged)
}

/// Makes the tables and checks the format.
pub(super) fn make(transaction: &WriteTransaction) -> Result<(), JournalError> {
    transaction.open_table(ORDERS)?;
    transaction.open_table(FENCES)?;
    transaction.open_table(RECORDS)?;
    transaction.open_table(OUTBOX)?;
    transaction.open_table(ANSWERS)?;
    transaction.open_table(BASELINES)?;
    transaction.open_table(IMAGES)?;
    let mut meta = transaction.open_table(META)?;
    let format = meta.get(FORMAT)?.map(|value| value.value());
    match format {
        None => {
            meta.insert(FORMAT, FORMAT_VERSION)?;
            Ok(())
        }
        Some(FORMAT_VERSION) => Ok(()),
        Some(other) => Err(damaged(format_args!(
            "format {other} is not known to this version of the agent"
        ))),
    }
}

pub(super) fn write(transaction: &WriteTransaction, write: &Write) -> Result<(), JournalError> {
    match write {
        Write::Order {
            key: attempt,
            bytes,
            target,
            fence,
        } => {
            transaction
                .open_table(ORDERS)?
                .insert(key(*attempt), bytes.as_slice())?;
            let mut fences = transaction.open_table(FENCES)?;
            let target = target.uuid().as_u128();
            let highest = fences.get(target)?.map_or(0, |value| value.value());
            fences.insert(target, highest.max(fence.0))?;
            Ok(())
        }
        Write::Record(attempt, record) => append(transaction, *attempt, record),
        Write::Report(draft) => {
            let number = take_number(transaction)?;
            let bytes = encode_report(number, draft);
            transaction.open_table(OUTBOX)?.insert(number, bytes.as_slice())?;
            Ok(())
        }
        Write::Finished { report, order } => {
            let number = take_number(transaction)?;
            let bytes = encode_report(number, report);
            transaction.open_table(OUTBOX)?.insert(number, bytes.as_slice())?;
            let answer = [order.as_bytes().as_slice(), &bytes].concat();
            transaction
                .open_table(ANSWERS)?
                .insert(key(report.key), answer.as_slice())?;
            Ok(())
        }
        Write::StepAgain { key, at } => step_again(transaction, *key, *at),
        Write::Baseline {
            target,
            project,
            baseline,
        } => {
            let bytes = to_json(baseline)?;
            transaction
                .open_table(BASELINES)?
                .insert(baseline_key(*target, project).as_str(), bytes.as_slice())?;
            Ok(())
        }
        Write::ImagePulled { reference, at } => keep_image(transaction, reference, *at, true),
        Write::ImageUsed { reference, at } => keep_image(transaction, reference, *at, false),
        Write::ImageGone { reference } => {
            transaction.open_table(IMAGES)?.remove(reference.as_str())?;
            Ok(())
        }
        Write::Forget(attempts) => forget(transaction, attempts),
    }
}

fn step_again(
    transaction: &WriteTransaction,
    attempt: AttemptKey,
    at: DateTime<Utc>,
) -> Result<(), JournalError> {
    let (task, number) = key(attempt);
    let mut state = AttemptState::default();
    for entry in transaction
        .open_table(RECORDS)?
        .range((task, number, 0)..=(task, number, u32::MAX))?
    {
        let (_, value) = entry?;
        let json = value.value().get(CHAIN_BYTES..).unwrap_or_default();
        state.apply(&from_json(json)?);
    }
    let step = match (&state.phase, state.steps.last()) {
        (Phase::Ended(_) | Phase::Done, _) | (_, None) => return Ok(()),
        (_, Some(last)) => last.step.as_str().to_owned(),
    };
    let draft = ReportDraft {
        key: attempt,
        at,
        event: Event::Progressed(Progressed { step }),
    };
    write(transaction, &Write::Report(draft))
}

fn keep_image(
    transaction: &WriteTransaction,
    reference: &str,
    used_at: DateTime<Utc>,
    is_new: bool,
) -> Result<(), JournalError> {
    let mut images = transaction.open_table(IMAGES)?;
    if is_new || images.get(reference)?.is_some() {
        let image = to_json(&PulledImage { used_at })?;
        images.insert(reference, image.as_slice())?;
    }
    Ok(())
}

pub(super) fn images(transaction: &ReadTransaction) -> Result<BTreeMap<String, PulledImage>, JournalError> {
    transaction
        .open_table(IMAGES)?
        .iter()?
        .map(|entry| {
            let (reference, image) = entry?;
            Ok((reference.value().to_owned(), from_json(image.value())?))
        })
        .collect()
}

fn baseline_key(target: TargetId, project: &ProjectRef) -> String {
    format!("{target}/{project}")
}

fn chain(before: &[u8], record: &[u8]) -> [u8; CHAIN_BYTES] {
    *Digest::of(&[before, record].concat()).as_bytes()
}

fn append(transaction: &WriteTransaction, attempt: AttemptKey, record: &Record) -> Result<(), JournalError> {
    let (task, number) = key(attempt);
    let mut records = transaction.open_table(RECORDS)?;
    let last = records
        .range((task, number, 0)..=(task, number, u32::MAX))?
        .next_back()
        .transpose()?
        .map(|(key, value)| (key.value().2, value.value().to_vec()));
    let (sequence, before) = match &last {
        None => (0, &[][..]),
        Some((sequence, value)) => (sequence + 1, value.get(..CHAIN_BYTES).unwrap_or_default()),
    };
    let json = to_json(record)?;
    let value = [chain(before, &json).as_slice(), &json].concat();
    records.insert((task, number, sequence), value.as_slice())?;
    Ok(())
}

fn forget(transaction: &WriteTransaction, attempts: &[AttemptKey]) -> Result<(), JournalError> {
    let mut orders = transaction.open_table(ORDERS)?;
    let mut answers = transaction.open_table(ANSWERS)?;
    let mut records = transaction.open_table(RECORDS)?;
    for attempt in attempts {
        let (task, number) = key(*attempt);
        orders.remove((task, number))?;
        answers.remove((task, number))?;
        records.retain_in((task, number, 0)..=(task, number, u32::MAX), |_, _| false)?;
    }
    Ok(())
}

fn take_number(transaction: &WriteTransaction) -> Result<u64, JournalError> {
    let mut meta = transaction.open_table(META)?;
    let number = meta.get(NEXT_REPORT)?.map_or(1, |value| value.value());
    meta.insert(NEXT_REPORT, number + 1)?;
    Ok(number)
}

pub(super) fn next_report(transaction: &WriteTransaction) -> Result<u64, JournalError> {
    let meta = transaction.open_table(META)?;
    let number = meta.get(NEXT_REPORT)?.map_or(1, |value| value.value());
    Ok(number)
}

pub(super) fn read_next_report(transaction: &ReadTransaction) -> Result<u64, JournalError> {
    let meta = transaction.open_table(META)?;
    let number = meta.get(NEXT_REPORT)?.map_or(1, |value| value.value());
    Ok(number)
}

pub(super) fn acknowledge(transaction: &WriteTransaction, number: u64) -> Result<(), JournalError> {
    transaction
        .open_table(OUTBOX)?
        .retain_in(..=number, |_, _| false)?;
    Ok(())
}

pub(super) fn skip(transaction: &WriteTransaction, number: u64) -> Result<(), JournalError> {
    let mut meta = transaction.open_table(META)?;
    let next = meta.get(NEXT_REPORT)?.map_or(1, |value| value.value());
    meta.insert(NEXT_REPORT, next.max(number.saturating_add(1)))?;
    Ok(())
}

pub(super) fn reports(
    transaction: &ReadTransaction,
    after: u64,
    most: usize,
) -> Result<Vec<Report>, JournalError> {
    transaction
        .open_table(OUTBOX)?
        .range(after.saturating_add(1)..)?
        .take(most)
        .map(|entry| Report::decode(entry?.1.value()).map_err(damaged))
        .collect()
}

pub(super) fn fences(transaction: &ReadTransaction) -> Result<BTreeMap<TargetId, Fence>, JournalError> {
    transaction
        .open_table(FENCES)?
        .iter()?
        .map(|entry| {
            let (target, fence) = entry?;
            let target = TargetId::from(Uuid::from_u128(target.value()));
            Ok((target, Fence(fence.value())))
        })
        .collect()
}

pub(super) fn answer(
    transaction: &ReadTransaction,
    attempt: AttemptKey,
) -> Result<Option<Answer>, JournalError> {
    let Some(value) = transaction.open_table(ANSWERS)?.get(key(attempt))? else {
        return Ok(None);
    };
    let bytes = value.value();
    let (order, report) = bytes
        .split_at_checked(CHAIN_BYTES)
        .ok_or_else(|| damaged("a stored answer is too short"))?;
    let report = Report::decode(report).map_err(damaged)?;
    Ok(Some(Answer {
        order: Digest::from_hex(&hex::encode(order)).map_err(damaged)?,
        report: report.number,
        finished: report.event.ok_or_else(|| damaged("a stored answer is empty"))?,
    }))
}

pub(super) fn order(
    transaction: &ReadTransaction,
    attempt: AttemptKey,
) -> Result<Option<Vec<u8>>, JournalError> {
    let value = transaction.open_table(ORDERS)?.get(key(attempt))?;
    Ok(value.map(|bytes| bytes.value().to_vec()))
}

pub(super) fn attempts(transaction: &ReadTransaction) -> Result<Vec<StoredAttempt>, JournalError> {
    let orders = transaction.open_table(ORDERS)?;
    let records = transaction.open_table(RECORDS)?;
    let mut attempts = Vec::new();
    let mut known = BTreeSet::new();
    for entry in orders.iter()? {
        let (stored, order) = entry?;
        let (raw, attempt) = stored.value();
        known.insert((raw, attempt));
        let mut before = Vec::new();
        let mut list = Vec::new();
        for (expected, entry) in records
            .range((raw, attempt, 0)..=(raw, attempt, u32::MAX))?
            .enumerate()
        {
            let (stored, value) = entry?;
            let value = value.value();
            let (link, json) = value
                .split_at_checked(CHAIN_BYTES)
                .ok_or_else(|| damaged("a record is too short"))?;
            if stored.value().2 as usize != expected || link != chain(&before, json) {
                return Err(damaged(format_args!(
                    "record {expected} of task {} attempt {attempt} does not follow the one before",
                    task(raw)
                )));
            }
            before = link.to_vec();
            list.push(from_json(json)?);
        }
        attempts.push(StoredAttempt {
            key: AttemptKey {
                task: task(raw),
                attempt,
            },
            order: order.value().to_vec(),
            records: list,
        });
    }
    for entry in records.iter()? {
        let (raw, attempt, _) = entry?.0.value();
        if !known.contains(&(raw, attempt)) {
            return Err(damaged("a record has no order"));
        }
    }
    Ok(attempts)
}

pub(super) fn baseline(
    transaction: &ReadTransaction,
    target: TargetId,
    project: &ProjectRef,
) -> Result<Option<Baseline>, JournalError> {
    transaction
        .open_table(BASELINES)?
        .get(baseline_key(target, project).as_str())?
        .map(|value| from_json(value.value()))
        .transpose()
}

/// Baselines of one target by project.
pub(super) fn baselines(
    transaction: &ReadTransaction,
    target: TargetId,
) -> Result<Vec<(ProjectRef, Baseline)>, JournalError> {
    let prefix = format!("{target}/");
    let mut found = Vec::new();
    for entry in transaction.open_table(BASELINES)?.range(prefix.as_str()..)? {
        let (key, value) = entry?;
        let Some(project) = key.value().strip_prefix(&prefix) else {
            break;
        };
        found.push((project.parse().map_err(damaged)?, from_json(value.value())?));
    }
    Ok(found)
}

/// Attempts that were answered, with the numbers of the reports that did it.
pub(super) fn answered(transaction: &ReadTransaction) -> Result<Vec<(AttemptKey, u64)>, JournalError> {
    transaction
        .open_table(ANSWERS)?
        .iter()?
        .map(|entry| {
            let (key, value) = entry?;
            let (raw, attempt) = key.value();
            let report = value.value().get(CHAIN_BYTES..).unwrap_or_default();
            let number = Report::decode(report).map_err(damaged)?.number;
            let key = AttemptKey {
                task: task(raw),
                attempt,
            };
            Ok((key, number))
        })
        .collect()
}
