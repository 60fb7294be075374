use std::os::unix::fs::PermissionsExt as _;

use sealift_proto::agent::v1::Accepted;

use super::*;
use crate::samples;

fn order(fence: u64) -> Write {
    Write::Order {
        key: samples::key(7),
        bytes: b"envelope".to_vec(),
        target: samples::target_id(),
        fence: Fence(fence),
    }
}

fn record() -> Write {
    Write::Record(samples::key(7), samples::accepted(samples::at(1)))
}

fn report() -> Write {
    Write::Report(ReportDraft {
        key: samples::key(7),
        at: samples::at(1),
        event: Event::Accepted(Accepted {}),
    })
}

#[tokio::test]
async fn r9_what_was_committed_is_there_after_opening_again() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    journal.commit(vec![order(5), record(), report()]).await.unwrap();
    journal.commit(vec![order(3)]).await.unwrap();
    drop(journal);
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(journal.highest(samples::target_id()).unwrap(), Fence(5));
    assert_eq!(journal.attempts().unwrap()[0].records.len(), 1);
    assert_eq!(journal.reports(0, 10).unwrap()[0].number, 1);
    assert_eq!(journal.next_report().unwrap(), 2);
    let mode = std::fs::metadata(dir.path().join(FILE_NAME))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[tokio::test]
async fn writes_at_the_same_time_keep_reports_without_gap() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let commits = (0..50).map(|_| journal.commit(vec![report()]));
    let results = futures::future::join_all(commits).await;
    assert!(results.iter().all(Result::is_ok));
    let numbers: Vec<u64> = journal
        .reports(0, 100)
        .unwrap()
        .iter()
        .map(|report| report.number)
        .collect();
    assert_eq!(numbers, (1..=50).collect::<Vec<_>>());
    assert_eq!(*journal.tip().borrow(), 51);
}

#[tokio::test]
async fn t13_a_journal_with_an_edited_record_is_damaged() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    journal.commit(vec![order(5), record(), record()]).await.unwrap();
    drop(journal);
    let path = dir.path().join(FILE_NAME);
    let mut bytes = std::fs::read(&path).unwrap();
    let needle = br#"{"record":"accepted""#;
    let found: Vec<usize> = bytes
        .windows(needle.len())
        .enumerate()
        .filter(|(_, window)| window == needle)
        .map(|(position, _)| position)
        .collect();
    for position in found {
        bytes[position + 11..position + 19].copy_from_slice(b"rejected");
    }
    std::fs::write(&path, bytes).unwrap();
    assert!(Journal::open(dir.path()).is_err());
}
