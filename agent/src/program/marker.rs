//! Marker: which program of the agent is to run, in one small file that is only ever replaced whole. Whoever dies between two of its
//! states leaves one of them. Everything that is decided about it is pure.
//!
//! Two programs of different age read it: the launcher, which is the packaged one, and the one that it started. So its format never
//! changes: fields may be added, none may come to mean something else, and unknown ones are passed over.

use std::collections::BTreeSet;

use sealift_common::{digest::Digest, id::TaskId, manifest::PinnedImage};
use semver::Version;
use serde::{Deserialize, Serialize};

use crate::journal::AttemptKey;

/// How often a program on trial may be started before the one before it is taken back.
pub const MOST_BOOTS: u32 = 3;

/// A program beside the packaged one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Installed {
    /// SHA-256 of its file, which is also its name.
    pub program: Digest,
    /// Its version, as its publisher signed it.
    pub version: Version,
    /// The image that it came in.
    pub image: PinnedImage,
    /// The task that brought it.
    pub task: TaskId,
    /// The attempt.
    pub attempt: u32,
}

impl Installed {
    /// The attempt that brought it.
    pub fn key(&self) -> AttemptKey {
        AttemptKey {
            task: self.task,
            attempt: self.attempt,
        }
    }
}

/// A program that has not shown yet that it works.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    /// Which.
    pub installed: Installed,
    /// How often it was started; counted before each start.
    pub boots: u32,
    /// How long each start may take until it has shown it, in milliseconds.
    pub patience_ms: u64,
}

/// Why a program was given up for the one before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Why {
    /// It ended again and again, or could not be started.
    Died,
    /// It ran and did not show in time that it works.
    Silent,
    /// Its file is not what was signed.
    Damaged,
    /// It gave itself up: its order failed or was stopped.
    Withdrawn,
}

/// A program that was given up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Returned {
    /// Which.
    pub program: Digest,
    /// The task that had brought it.
    pub task: TaskId,
    /// The attempt.
    pub attempt: u32,
    /// Why.
    pub why: Why,
    /// What was seen, for people.
    pub detail: String,
}

/// The whole file. Without one, the packaged program runs.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Marker {
    /// The program that runs unless one is on trial; `None` is the packaged one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<Installed>,
    /// The one that ran before it; `None` is the packaged one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous: Option<Installed>,
    /// The packaged program at the time when the current one was found good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub packaged: Option<Digest>,
    /// The packaged program at the time when the previous one was found good.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub previous_packaged: Option<Digest>,
    /// The one on trial.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trial: Option<Trial>,
    /// The last that was given up, unless one was found good since.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub returned: Option<Returned>,
}

/// What a launcher starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Choice {
    /// The packaged program.
    Packaged,
    /// The one that was found good.
    Current(Installed),
    /// The one on trial, under supervision.
    Try(Trial),
}

/// How the marker stands to one attempt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stand {
    /// It says nothing of it.
    Untouched,
    /// Its program is on trial.
    Trying,
    /// Its program was found good.
    Installed,
    /// Its program was given up.
    Returned(Returned),
}

/// Whether the packaged program takes over from the current one: somebody has installed a newer package since. A package that has
/// not changed since does not, so that a program that is older on purpose stays.
pub fn is_superseded(
    marker: &Marker,
    packaged: &Version,
    packaged_now: impl FnOnce() -> Option<Digest>,
) -> bool {
    let newer = marker
        .current
        .as_ref()
        .is_some_and(|current| packaged.cmp_precedence(&current.version).is_gt());
    newer && packaged_now().is_none_or(|now| marker.packaged != Some(now))
}

impl Marker {
    /// What is started next, and the marker to write before that. `superseded`: the packaged program takes over from the current.
    #[must_use]
    pub fn next_start(mut self, superseded: bool) -> (Self, Choice) {
        match &mut self.trial {
            Some(trial) if trial.boots < MOST_BOOTS => {
                trial.boots += 1;
                let choice = Choice::Try(trial.clone());
                (self, choice)
            }
            Some(trial) => {
                let detail = format!("it was started {} times and ended each time", trial.boots);
                self.give_up(Why::Died, &detail).next_start(superseded)
            }
            None => {
                let current = self.current.clone().filter(|_| !superseded);
                let choice = current.map_or(Choice::Packaged, Choice::Current);
                (self, choice)
            }
        }
    }

    /// Puts a program on trial.
    #[must_use]
    pub fn try_out(self, installed: Installed, patience_ms: u64) -> Self {
        Self {
            trial: Some(Trial {
                installed,
                boots: 0,
                patience_ms,
            }),
            returned: None,
            ..self
        }
    }

    /// The program on trial has shown that it works. `packaged` is the packaged program, if it is known.
    #[must_use]
    pub fn confirm(mut self, packaged: Option<Digest>) -> Self {
        match self.trial.take() {
            None => self,
            Some(trial) => self.install(trial.installed, packaged),
        }
    }

    /// A program that runs already counts from now on as brought by this attempt.
    #[must_use]
    pub fn install(mut self, installed: Installed, packaged: Option<Digest>) -> Self {
        Self {
            previous: self.current.take(),
            previous_packaged: self.packaged.take(),
            current: Some(installed),
            packaged,
            trial: None,
            returned: None,
        }
    }

    /// The program on trial is given up: the current one runs next.
    #[must_use]
    pub fn give_up(mut self, why: Why, detail: &str) -> Self {
        if let Some(trial) = self.trial.take() {
            self.returned = Some(returned(&trial.installed, why, detail));
        }
        self
    }

    /// The program that an attempt brought is given up, on trial or already found good.
    #[must_use]
    pub fn withdraw(mut self, key: AttemptKey, detail: &str) -> Self {
        match self.stand(key) {
            Stand::Trying => self.give_up(Why::Withdrawn, detail),
            Stand::Installed => {
                if let Some(current) = self.current.take() {
                    self.returned = Some(returned(&current, Why::Withdrawn, detail));
                }
                self.current = self.previous.take();
                // What a package had superseded before stays superseded.
                self.packaged = self.previous_packaged.take();
                self
            }
            Stand::Untouched | Stand::Returned(_) => self,
        }
    }

    /// How it stands to an attempt.
    pub fn stand(&self, key: AttemptKey) -> Stand {
        let is_its = |installed: &Installed| installed.key() == key;
        if self.trial.as_ref().is_some_and(|trial| is_its(&trial.installed)) {
            return Stand::Trying;
        }
        if self.current.as_ref().is_some_and(is_its) {
            return Stand::Installed;
        }
        match &self.returned {
            Some(returned) if (returned.task, returned.attempt) == (key.task, key.attempt) => {
                Stand::Returned(returned.clone())
            }
            _ => Stand::Untouched,
        }
    }

    /// The program that a launcher starts next, if it starts what these attempts brought as little as it did before. `packaged` is the
    /// packaged program.
    pub fn chosen(&self, superseded: bool, packaged: Digest, passed_over: &BTreeSet<AttemptKey>) -> Digest {
        let trial = self.trial.as_ref().filter(|trial| trial.boots < MOST_BOOTS);
        let current = self.current.as_ref().filter(|_| !superseded);
        trial
            .map(|trial| &trial.installed)
            .into_iter()
            .chain(current)
            .find(|installed| !passed_over.contains(&installed.key()))
            .map_or(packaged, |installed| installed.program)
    }

    /// What the launcher did not start although the marker named it, told by a process that it started instead: the attempts that
    /// brought it. `supervised` is a process whose launcher stays beside it.
    pub fn passed_over(&self, superseded: bool, running: Digest, supervised: bool) -> BTreeSet<AttemptKey> {
        let trial = self.trial.as_ref().map(|trial| &trial.installed);
        if supervised && trial.is_none_or(|trial| trial.program == running) {
            return BTreeSet::new();
        }
        let current = self
            .current
            .as_ref()
            .filter(|current| !superseded && current.program != running);
        trial.into_iter().chain(current).map(Installed::key).collect()
    }

    /// What is known of a program by its digest.
    pub fn known(&self, program: Digest) -> Option<&Installed> {
        let trial = self.trial.iter().map(|trial| &trial.installed);
        let all = trial.chain(&self.current).chain(&self.previous);
        all.into_iter().find(|known| known.program == program)
    }

    /// The programs whose files are needed.
    pub fn needed(&self) -> Vec<Digest> {
        let trial = self.trial.iter().map(|trial| &trial.installed);
        let all = trial.chain(&self.current).chain(&self.previous);
        all.map(|known| known.program).collect()
    }
}

fn returned(installed: &Installed, why: Why, detail: &str) -> Returned {
    Returned {
        program: installed.program,
        task: installed.task,
        attempt: installed.attempt,
        why,
        detail: detail.chars().take(sealift_common::bounds::TEXT_BYTES).collect(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::samples;

    pub(crate) fn installed(task: i64, version: &str) -> Installed {
        Installed {
            program: Digest::of(version.as_bytes()),
            version: version.parse().unwrap(),
            image: samples::image(version),
            task: samples::id(task),
            attempt: 1,
        }
    }

    fn after_update() -> Marker {
        Marker::default()
            .try_out(installed(1, "1.1.0"), 1)
            .confirm(Some(Digest::of(b"packaged")))
    }

    #[test]
    fn without_a_word_the_packaged_program_runs() {
        let (marker, choice) = Marker::default().next_start(false);
        assert_eq!((marker, choice), (Marker::default(), Choice::Packaged));
    }

    #[test]
    fn a_trial_is_started_three_times_and_then_given_up() {
        let mut marker = after_update().try_out(installed(2, "1.2.0"), 1);
        for boot in 1..=MOST_BOOTS {
            let (next, choice) = marker.next_start(false);
            assert!(matches!(choice, Choice::Try(trial) if trial.boots == boot));
            marker = next;
        }
        let (marker, choice) = marker.next_start(false);
        assert_eq!(choice, Choice::Current(installed(1, "1.1.0")));
        assert!(matches!(
            marker.stand(installed(2, "1.2.0").key()),
            Stand::Returned(Returned { why: Why::Died, .. })
        ));
        assert_eq!(marker.clone().next_start(false), (marker, choice), "for good");
    }

    #[test]
    fn a_program_that_works_takes_the_place_of_the_one_before() {
        let marker = after_update().try_out(installed(2, "1.2.0"), 1);
        assert_eq!(marker.stand(installed(2, "1.2.0").key()), Stand::Trying);
        let marker = marker.next_start(false).0.confirm(None);
        assert_eq!(marker.stand(installed(2, "1.2.0").key()), Stand::Installed);
        assert_eq!(marker.previous, Some(installed(1, "1.1.0")));
        assert_eq!(marker.clone().confirm(None), marker, "once is as good as twice");
        let back = marker.withdraw(installed(2, "1.2.0").key(), "stopped");
        assert_eq!(back.current, Some(installed(1, "1.1.0")));
        assert_eq!(back.previous, None);
        let other = back.clone().withdraw(installed(3, "1.3.0").key(), "not its own");
        assert_eq!(other, back);
    }

    #[test]
    fn a_newer_package_takes_over_and_an_unchanged_one_does_not() {
        let (old, new) = (Digest::of(b"packaged"), Digest::of(b"newer"));
        let marker = after_update();
        for (packaged, now, wanted) in [
            ("1.0.0", Some(old), false),
            ("1.0.0", Some(new), false),
            ("1.1.0", Some(new), false),
            ("1.1.1", Some(new), true),
            ("1.1.1", None, true),
            // The current one is older on purpose.
            ("1.1.1", Some(old), false),
        ] {
            let version = packaged.parse().unwrap();
            assert_eq!(
                is_superseded(&marker, &version, || now),
                wanted,
                "{packaged} {now:?}"
            );
        }
        assert!(!is_superseded(&Marker::default(), &Version::new(9, 0, 0), || {
            unreachable!("nothing is hashed for it")
        }));
        assert_eq!(marker.next_start(true).1, Choice::Packaged);
    }

    #[test]
    fn what_a_package_superseded_stays_superseded_after_an_exchange_that_went_back() {
        let newer = Digest::of(b"newer package");
        let is_old = |marker: &Marker| is_superseded(marker, &Version::new(1, 5, 0), || Some(newer));
        let before = after_update();
        assert!(is_old(&before));
        let key = installed(2, "1.6.0").key();
        let trial = before.clone().try_out(installed(2, "1.6.0"), 1);
        assert!(is_old(&trial.clone().give_up(Why::Died, "died")));
        let good = trial.confirm(Some(newer));
        assert!(!is_old(&good));
        let back = good.withdraw(key, "stopped");
        assert_eq!(
            (&back.current, &back.packaged),
            (&before.current, &before.packaged)
        );
        assert!(
            is_old(&back),
            "the packaged program runs, not the one that it had superseded"
        );
        assert_eq!(back.next_start(true).1, Choice::Packaged);
    }

    #[test]
    fn what_a_launcher_did_not_start_is_not_chosen_again() {
        let packaged = Digest::of(b"packaged");
        let marker = after_update().try_out(installed(2, "1.2.0"), 1);
        let (current, trial) = (installed(1, "1.1.0"), installed(2, "1.2.0"));
        let nothing = BTreeSet::new();
        assert_eq!(marker.chosen(false, packaged, &nothing), trial.program);
        // The one on trial runs: nothing was passed over.
        assert_eq!(marker.passed_over(false, trial.program, true), nothing);
        // The current one runs, so the one on trial was not started.
        let passed = marker.passed_over(false, current.program, false);
        assert_eq!(passed, [trial.key()].into());
        assert_eq!(marker.chosen(false, packaged, &passed), current.program);
        // Neither was.
        let passed = marker.passed_over(false, packaged, false);
        assert_eq!(passed, [trial.key(), current.key()].into());
        assert_eq!(marker.chosen(false, packaged, &passed), packaged);
        // The same program brought once more has a chance of its own.
        let again = marker.try_out(installed(3, "1.2.0"), 1);
        assert_eq!(again.chosen(false, packaged, &passed), trial.program);
        // Superseded is not passed over, and neither is chosen.
        let superseded = after_update();
        assert_eq!(superseded.passed_over(true, packaged, false), nothing);
        assert_eq!(superseded.chosen(true, packaged, &nothing), packaged);
    }

    #[test]
    fn fields_of_later_versions_are_passed_over() {
        let text = r#"{"current":null,"later":{"x":1}}"#;
        assert_eq!(serde_json::from_str::<Marker>(text).unwrap(), Marker::default());
        let marker = after_update().try_out(installed(2, "1.2.0"), 7);
        let bytes = serde_json::to_vec(&marker).unwrap();
        assert_eq!(serde_json::from_slice::<Marker>(&bytes).unwrap(), marker);
    }

    #[derive(Debug, Clone)]
    enum Event {
        Try(i64),
        Start,
        Confirm,
        Hang,
        Withdraw(i64),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            (1..4_i64).prop_map(Event::Try),
            Just(Event::Start),
            Just(Event::Start),
            Just(Event::Confirm),
            Just(Event::Hang),
            (1..4_i64).prop_map(Event::Withdraw),
        ]
    }

    proptest! {
        /// Whatever happens in whatever order: what runs for good was found good, every trial ends after a bounded number of
        /// starts, and what may be started is among the files that are kept.
        #[test]
        fn only_what_was_found_good_stays(events in proptest::collection::vec(event(), 0..60)) {
            let of = |task: i64| installed(task, &format!("1.{task}.0"));
            let mut marker = Marker::default();
            let mut good = std::collections::BTreeSet::new();
            let mut starts = 0;
            for event in events {
                marker = match event {
                    Event::Try(task) => {
                        starts = 0;
                        marker.try_out(of(task), 1)
                    }
                    Event::Start => {
                        let (next, choice) = marker.next_start(false);
                        match choice {
                            Choice::Packaged => {}
                            Choice::Current(current) => prop_assert!(good.contains(&current.program)),
                            Choice::Try(trial) => {
                                starts += 1;
                                prop_assert!(starts <= MOST_BOOTS);
                                prop_assert!(next.needed().contains(&trial.installed.program));
                            }
                        }
                        next
                    }
                    Event::Confirm => {
                        good.extend(marker.trial.as_ref().map(|trial| trial.installed.program));
                        marker.confirm(None)
                    }
                    Event::Hang => marker.give_up(Why::Silent, "hung"),
                    Event::Withdraw(task) => marker.withdraw(of(task).key(), "withdrawn"),
                };
                if let Some(current) = &marker.current {
                    prop_assert!(good.contains(&current.program));
                    prop_assert!(marker.needed().contains(&current.program));
                }
            }
            let mut choice;
            for _ in 0..=MOST_BOOTS {
                (marker, choice) = marker.next_start(false);
                if !matches!(choice, Choice::Try(_)) {
                    prop_assert_eq!(&marker.trial, &None);
                }
            }
            prop_assert_eq!(marker.trial, None);
        }
    }
}
