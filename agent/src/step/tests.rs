use sealift_common::failure::FailureCode;

mod model;

use super::*;
use crate::{
    journal::{OldContainer, OldOfCompose, Record},
    samples,
};

fn old(running: bool) -> OldContainer {
    OldContainer {
        id: "o1".into(),
        service: "web".parse().unwrap(),
        running,
        restart: RestartPolicy::Always,
        grace_ms: 1_000,
        digest: None,
        aliases: BTreeMap::new(),
        compose: OldOfCompose::default(),
    }
}

fn seen(id: &str, running: bool, restart: RestartPolicy) -> Seen {
    Seen {
        id: id.into(),
        running,
        restart,
    }
}

fn name(text: &str) -> ServiceName {
    text.parse().unwrap()
}

fn world(new: Option<bool>, old: Option<Seen>) -> World {
    World {
        images: true,
        surroundings: true,
        new: new
            .map(|running| (name("web"), seen("n1", running, RestartPolicy::No)))
            .into_iter()
            .collect(),
        complete: new.map(|_| name("web")).into_iter().collect(),
        old: old.map(|seen| (seen.id.clone(), seen)).into_iter().collect(),
        ..World::default()
    }
}

#[test]
fn each_position_has_its_next_step() {
    let at = samples::at(0);
    let failure = Failure::new(FailureCode::Unhealthy, "ill");
    let failed = Cause::Failed { failure };
    let accepted = vec![samples::accepted(at)];
    let prepared = |running| {
        [
            accepted.clone(),
            vec![Record::Prepared {
                at,
                old: vec![old(running)],
            }],
        ]
        .concat()
    };
    let restoring = [
        prepared(true),
        vec![Record::Restoring {
            at,
            cause: failed.clone(),
        }],
    ]
    .concat();
    let healthy = [
        prepared(true),
        vec![
            Record::Started { starting_at: at, at },
            Record::Healthy {
                at,
                sticker_before: None,
            },
        ],
    ]
    .concat();
    let ended = |ending| [healthy.clone(), vec![Record::Ended { at, ending }]].concat();
    let loud = |running| Some(seen("o1", running, RestartPolicy::Always));
    let quiet = |running| Some(seen("o1", running, RestartPolicy::No));
    let (run, stop) = (Wanted::Run, Wanted::Stop);
    let mut checked = world(None, loud(true));
    checked.old_checked = true;
    let id = || "o1".to_owned();
    let cases = [
        (accepted.clone(), run, World::default(), Step::Pull),
        (
            accepted.clone(),
            run,
            world(None, None),
            Step::Create(name("web")),
        ),
        (accepted.clone(), run, world(Some(false), None), Step::Prepare),
        (
            accepted.clone(),
            stop,
            World::default(),
            Step::Restore(Cause::Stopped),
        ),
        (
            prepared(true),
            run,
            world(Some(false), loud(true)),
            Step::StopOld(id()),
        ),
        (
            prepared(true),
            run,
            world(Some(false), loud(false)),
            Step::QuietOld(id()),
        ),
        (
            prepared(true),
            run,
            world(Some(false), quiet(false)),
            Step::StartNew(name("web")),
        ),
        (
            prepared(true),
            run,
            world(Some(true), quiet(false)),
            Step::NoteStarted,
        ),
        (
            prepared(true),
            stop,
            world(Some(true), quiet(false)),
            Step::Restore(Cause::Stopped),
        ),
        // An engine that was started again meanwhile brought the old set back.
        (
            healthy.clone(),
            run,
            world(Some(true), loud(true)),
            Step::StopOld(id()),
        ),
        (
            healthy.clone(),
            run,
            world(Some(true), loud(false)),
            Step::QuietOld(id()),
        ),
        // After the decision to commit a stop is too late.
        (
            healthy.clone(),
            stop,
            world(Some(true), quiet(false)),
            Step::Commit,
        ),
        (
            restoring.clone(),
            run,
            world(Some(true), quiet(false)),
            Step::StopNew(name("web")),
        ),
        (
            restoring.clone(),
            run,
            world(Some(false), quiet(false)),
            Step::RemoveNew(name("web")),
        ),
        (
            restoring.clone(),
            run,
            world(None, quiet(false)),
            Step::RestorePolicy(id(), RestartPolicy::Always),
        ),
        (
            restoring.clone(),
            run,
            world(None, loud(false)),
            Step::StartOld(id()),
        ),
        (restoring.clone(), run, world(None, loud(true)), Step::CheckOld),
        (restoring, run, checked, Step::Conclude(failed)),
        (
            ended(Ending::Succeeded),
            run,
            world(Some(true), quiet(false)),
            Step::RemoveOld(id()),
        ),
        (
            ended(Ending::Succeeded),
            run,
            world(Some(true), None),
            Step::Clean,
        ),
        (ended(Ending::Failed), run, world(None, loud(true)), Step::Clean),
    ];
    let manifest = samples::order(1, &[("web", "v1")]).manifest;
    for (number, (records, wanted, world, expected)) in cases.into_iter().enumerate() {
        let state = AttemptState::fold(&records);
        assert_eq!(
            next(&manifest, Swap::InPlace, &state, wanted, &world),
            expected,
            "case {number}"
        );
    }
}

#[test]
fn r10_a_new_set_that_died_while_the_agent_was_away_is_not_committed() {
    let at = samples::at(0);
    let records = [
        samples::accepted(at),
        Record::Prepared {
            at,
            old: vec![old(true)],
        },
        Record::Started { starting_at: at, at },
        Record::Healthy {
            at,
            sticker_before: None,
        },
    ];
    let manifest = samples::order(1, &[("web", "v1")]).manifest;
    let state = AttemptState::fold(&records);
    let world = world(Some(false), None);
    assert!(matches!(
        next(&manifest, Swap::InPlace, &state, Wanted::Run, &world),
        Step::Restore(Cause::Failed { failure }) if failure.code == FailureCode::WorkloadExited
    ));
}

#[test]
fn f21_poison_is_restored_while_committing_and_given_up_only_after_many_restores() {
    let at = samples::at(0);
    let resumed = |times: u32| (0..times).map(move |_| Record::Resumed { at });
    let healthy = [
        samples::accepted(at),
        Record::Prepared {
            at,
            old: vec![old(true)],
        },
        Record::Started { starting_at: at, at },
        Record::Healthy {
            at,
            sticker_before: None,
        },
    ];
    let manifest = samples::order(1, &[("web", "v1")]).manifest;
    let decide = |records: Vec<Record>| {
        let state = AttemptState::fold(&records);
        let old = seen("o1", false, RestartPolicy::No);
        next(
            &manifest,
            Swap::InPlace,
            &state,
            Wanted::Run,
            &world(Some(true), Some(old)),
        )
    };
    let committing = |times| healthy.iter().cloned().chain(resumed(times));
    assert_eq!(decide(committing(2).collect()), Step::Commit);
    assert!(matches!(
        decide(committing(3).collect()),
        Step::Restore(Cause::Failed { failure }) if failure.code == FailureCode::AgentState
    ));
    let restoring = |times| {
        committing(3)
            .chain([Record::Restoring {
                at,
                cause: Cause::Stopped,
            }])
            .chain(resumed(times))
    };
    assert_eq!(decide(restoring(11).collect()), Step::StopNew(name("web")));
    assert_eq!(decide(restoring(12).collect()), Step::Conclude(Cause::Stopped));
}
