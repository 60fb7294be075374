//! Remediation of drift: what it never does in whatever situation, and how often it acts over days.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use sealift_common::{
    drift::{DriftKind, Severity},
    inventory::{AgentIntent, AgentStatus},
    remedy::{
        Because, Decision, Deployed, Limits, Remediation, SETTLE, Seen, Situation, Try, WINDOW, decide,
    },
};

/// Makes a situation another one.
type Change = fn(&mut Situation);

fn at(seconds: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
}

fn seen(kind: DriftKind, since: i64) -> Seen {
    Seen {
        kind,
        severity: Severity::High,
        owned: false,
        since: at(since),
    }
}

/// A stopped service that was found at 0 and may be put back by 100.
fn ripe() -> Situation {
    Situation {
        findings: vec![seen(DriftKind::Stopped, 0)],
        deployed: Some(Deployed {
            since: at(-1_000),
            by_remediation: false,
            ready: true,
        }),
        looked_at: Some(at(0)),
        agent: Some((AgentIntent::Active, AgentStatus::Online)),
        busy: false,
        held: false,
        tries: Vec::new(),
        last_act: None,
    }
}

fn policy() -> Remediation {
    Remediation::Reconcile(Limits::default())
}

fn left(change: impl FnOnce(&mut Situation)) -> Option<Because> {
    let mut situation = ripe();
    change(&mut situation);
    match decide(policy(), &situation, at(100)) {
        Decision::Leave(because) => Some(because),
        _ => None,
    }
}

#[test]
fn what_is_ripe_is_put_back_and_only_where_that_is_wanted() {
    assert_eq!(decide(policy(), &ripe(), at(100)), Decision::Act { number: 1 });
    let alert = decide(Remediation::default(), &ripe(), at(100));
    assert_eq!(alert, Decision::Leave(Because::AlertOnly));
    for kind in DriftKind::ALL {
        let mut situation = ripe();
        situation.findings[0].kind = *kind;
        let acts = decide(policy(), &situation, at(100)) == Decision::Act { number: 1 };
        assert_eq!(acts, *kind != DriftKind::Extra, "{kind}");
    }
}

#[test]
fn every_obstacle_alone_is_enough() {
    let cases: [(Because, Change); 14] = [
        (Because::NothingToMend, |one| one.findings.clear()),
        (Because::NothingToMend, |one| {
            one.findings[0].kind = DriftKind::Extra;
        }),
        (Because::Owned, |one| one.findings[0].owned = true),
        (Because::Owned, |one| {
            let mut other = seen(DriftKind::Extra, 0);
            other.owned = true;
            one.findings.push(other);
        }),
        (Because::NothingRecorded, |one| one.deployed = None),
        (Because::ReleaseNotReady, |one| {
            one.deployed.as_mut().unwrap().ready = false;
        }),
        (Because::Held, |one| one.held = true),
        (Because::AgentAway, |one| one.agent = None),
        (Because::AgentAway, |one| {
            one.agent = Some((AgentIntent::Active, AgentStatus::Offline));
        }),
        (Because::AgentAway, |one| {
            one.agent = Some((AgentIntent::Paused, AgentStatus::Online));
        }),
        (Because::AgentAway, |one| {
            one.agent = Some((AgentIntent::Draining, AgentStatus::Online));
        }),
        (Because::Busy, |one| one.busy = true),
        (Because::NotLookedAt, |one| one.looked_at = None),
        (Because::NotLookedAt, |one| one.looked_at = Some(at(-1_001))),
    ];
    for (number, (because, change)) in cases.into_iter().enumerate() {
        assert_eq!(left(change), Some(because), "case {number}");
    }
    assert_eq!(left(|_| {}), None);
}

#[test]
fn what_is_less_severe_than_asked_for_is_only_told() {
    for (found, acts) in Severity::ALL.iter().zip([false, false, true, true]) {
        let policy = Remediation::Reconcile(Limits {
            min_severity: Severity::High,
            ..Limits::default()
        });
        let mut situation = ripe();
        situation.findings[0].severity = *found;
        let decision = decide(policy, &situation, at(100));
        assert_eq!(decision == Decision::Act { number: 1 }, acts, "{found}");
    }
}

#[test]
fn a_hand_at_work_is_not_fought_and_does_not_hold_it_up_for_ever() {
    let mut situation = ripe();
    let wait = |until| Decision::Wait { until };
    assert_eq!(decide(policy(), &situation, at(29)), wait(at(0) + SETTLE));
    assert_eq!(decide(policy(), &situation, at(30)), Decision::Act { number: 1 });
    situation.findings.push(seen(DriftKind::Config, 20));
    assert_eq!(decide(policy(), &situation, at(30)), wait(at(20) + SETTLE));
    // Something comes and goes all the time.
    situation.findings[1].since = at(299);
    assert_eq!(decide(policy(), &situation, at(299)), wait(at(300)));
    assert_eq!(decide(policy(), &situation, at(300)), Decision::Act { number: 1 });
}

#[test]
fn acts_are_apart_by_the_back_off_of_the_place_and_the_pause_of_the_environment() {
    let mut situation = ripe();
    situation.last_act = Some(at(90));
    let wait = |until| Decision::Wait { until };
    assert_eq!(decide(policy(), &situation, at(100)), wait(at(150)));
    assert_eq!(decide(policy(), &situation, at(150)), Decision::Act { number: 1 });
    situation.last_act = None;
    for (number, pause) in [(1, 30), (2, 90)] {
        situation.tries.insert(0, Try { number, at: at(100) });
        assert_eq!(decide(policy(), &situation, at(101)), wait(at(100 + pause)));
        let next = decide(policy(), &situation, at(100 + pause));
        assert_eq!(next, Decision::Act { number: number + 1 });
    }
    situation.tries.insert(
        0,
        Try {
            number: 3,
            at: at(100),
        },
    );
    // The last one gets its time to help, too.
    assert_eq!(decide(policy(), &situation, at(369)), wait(at(370)));
    assert_eq!(
        decide(policy(), &situation, at(370)),
        Decision::GiveUp { tries: 3 }
    );
}

#[test]
fn counting_begins_anew_after_the_window_and_after_a_deployment_that_somebody_wanted() {
    let mut situation = ripe();
    situation.tries = [(3, 300), (2, 200), (1, 100)]
        .map(|(number, second)| Try {
            number,
            at: at(second),
        })
        .into();
    assert_eq!(
        decide(policy(), &situation, at(5_000)),
        Decision::GiveUp { tries: 3 }
    );
    let later = at(100) + WINDOW;
    assert_eq!(decide(policy(), &situation, later), Decision::Act { number: 3 });
    let later = at(300) + WINDOW;
    assert_eq!(decide(policy(), &situation, later), Decision::Act { number: 1 });

    // What remediation itself has put there changes nothing.
    let put = |by_remediation, second| {
        Some(Deployed {
            since: at(second),
            by_remediation,
            ready: true,
        })
    };
    situation.looked_at = Some(at(5_000));
    situation.deployed = put(true, 4_000);
    assert_eq!(
        decide(policy(), &situation, at(5_000)),
        Decision::GiveUp { tries: 3 }
    );
    situation.deployed = put(false, 4_000);
    assert_eq!(
        decide(policy(), &situation, at(5_000)),
        Decision::Act { number: 1 }
    );
    // Nor does its success after that bring the old ones back.
    situation.tries.insert(
        0,
        Try {
            number: 1,
            at: at(5_000),
        },
    );
    situation.deployed = put(true, 5_001);
    situation.looked_at = Some(at(5_002));
    assert_eq!(
        decide(policy(), &situation, at(5_100)),
        Decision::Act { number: 2 }
    );
}

#[test]
fn limits_have_limits() {
    assert!(Limits::default().check().is_ok());
    for (max_tries, pause_ms) in [(0, 0), (11, 0), (1, 24 * 3600 * 1000 + 1)] {
        let limits = Limits {
            max_tries,
            pause_ms,
            ..Limits::default()
        };
        assert!(limits.check().is_err(), "{limits:?}");
    }
}

proptest! {
    /// Whatever breaks again and again, and whether acts help or not: in no 24 hours there are more of them at a place than
    /// allowed, and never two in the environment closer than the pause.
    #[test]
    fn in_no_window_are_there_more_acts_than_allowed(
        max_tries in 1_u32..=10,
        pause_s in 0_u32..7_200,
        steps in prop::collection::vec((1_i64..10_000, any::<bool>(), any::<bool>()), 1..300),
    ) {
        let limits = Limits { max_tries, pause_ms: pause_s * 1000, ..Limits::default() };
        let mut situation = ripe();
        let (mut now, mut acts) = (at(0), Vec::<DateTime<Utc>>::new());
        for (seconds, flaps, helps) in steps {
            now += TimeDelta::seconds(seconds);
            if flaps {
                situation.findings[0].since = now;
            }
            if let Decision::Act { number } = decide(Remediation::Reconcile(limits), &situation, now) {
                prop_assert!(number <= max_tries);
                acts.push(now);
                situation.tries.insert(0, Try { number, at: now });
                situation.last_act = Some(now);
                if helps {
                    situation.deployed = Some(Deployed { since: now, by_remediation: true, ready: true });
                    situation.looked_at = Some(now);
                }
            }
        }
        for (index, first) in acts.iter().enumerate() {
            let within = acts[index..].iter().filter(|one| **one - *first < WINDOW).count();
            prop_assert!(within <= max_tries as usize, "{within} acts from {first}");
        }
        let pause = TimeDelta::seconds(i64::from(pause_s));
        prop_assert!(acts.windows(2).all(|pair| pair[1] - pair[0] >= pause));
    }
}
