//! Rollback: which release an environment goes back to, and why not another one. Pure; nothing of the choice is stored but its
//! explanation in the decision record.

use std::cmp::Reverse;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{canonical::decimal, digest::Digest, id::ReleaseId, phases};

phases! {
    /// What somebody thinks of a release. Append-only; the newest one counts.
    QualityMark { Stable = "stable", Unstable = "unstable", Deprecated = "deprecated" }
}

phases! {
    /// Why a release was not chosen.
    Rejection {
        Current = "current", SameContent = "same_content", Deprecated = "deprecated", Unstable = "unstable",
        Newer = "newer", LessPreferred = "less_preferred", NotNamed = "not_named",
    }
}

/// A release that once was the active one in the environment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Candidate {
    /// Identifier.
    pub release: ReleaseId,
    /// Number in its project.
    #[serde(with = "decimal")]
    pub number: u64,
    /// Digest of its canonical manifest.
    pub content: Digest,
    /// The newest mark.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mark: Option<QualityMark>,
    /// When it last became the active one there.
    pub active_since: DateTime<Utc>,
}

/// What is asked of a choice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wish {
    /// This release and no other.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<ReleaseId>,
    /// Releases with a higher number than the one that runs are allowed too.
    pub allow_higher: bool,
}

/// A candidate and why it was not chosen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rejected {
    /// The candidate.
    pub candidate: Candidate,
    /// Why not.
    pub why: Rejection,
}

/// The choice with its reasons.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Choice {
    /// What was asked.
    pub wish: Wish,
    /// What to go back from.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Candidate>,
    /// What to go back to; `None` when nothing fits.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Candidate>,
    /// All others that ran there, the newest first.
    pub rejected: Vec<Rejected>,
}

/// Chooses the last known good release: it ran there before, is another one than `from`, is neither deprecated nor marked as
/// unstable, has a lower number unless `wish` allows a higher one, and of those one marked as stable, else the one that was
/// active last. The order of `candidates` does not matter.
///
/// `from` is what is to be undone: the release that runs, or the one that a failed job brought to some targets.
pub fn choose(from: Option<&Candidate>, candidates: &[Candidate], wish: Wish) -> Choice {
    pick(from, candidates, wish, |candidate| {
        obstacle(from, candidate, wish)
    })
}

/// The way back to `active`, which runs wherever the job that brought `from` has not been. That is no choice: whatever people have
/// come to think of it since, it is what the environment runs. Only where it is what the job brought there is nothing to undo.
pub fn undo(from: Option<&Candidate>, candidates: &[Candidate], active: ReleaseId) -> Choice {
    let wish = Wish {
        release: Some(active),
        allow_higher: true,
    };
    pick(from, candidates, wish, |candidate| {
        same(from, candidate).or_else(|| (candidate.release != active).then_some(Rejection::NotNamed))
    })
}

impl Choice {
    /// Why this release was not chosen; `None` when it was, or is no candidate.
    pub fn why_not(&self, release: ReleaseId) -> Option<Rejection> {
        let found = self
            .rejected
            .iter()
            .find(|rejected| rejected.candidate.release == release);
        found.map(|rejected| rejected.why)
    }
}

fn pick(
    from: Option<&Candidate>,
    candidates: &[Candidate],
    wish: Wish,
    obstacle: impl Fn(&Candidate) -> Option<Rejection>,
) -> Choice {
    let mut sorted: Vec<&Candidate> = candidates.iter().collect();
    sorted.sort_by_key(|candidate| Reverse((candidate.active_since, candidate.number, candidate.release)));
    let chosen = sorted
        .iter()
        .copied()
        .filter(|candidate| obstacle(candidate).is_none())
        // The first of equals is kept, which is the one that was active last.
        .min_by_key(|candidate| candidate.mark != Some(QualityMark::Stable));
    let rejected = sorted
        .iter()
        .filter(|candidate| chosen.is_none_or(|chosen| chosen.release != candidate.release))
        .map(|candidate| Rejected {
            candidate: (*candidate).clone(),
            why: obstacle(candidate).unwrap_or(Rejection::LessPreferred),
        })
        .collect();
    Choice {
        wish,
        from: from.cloned(),
        to: chosen.cloned(),
        rejected,
    }
}

/// Whether a candidate is what is to be undone.
fn same(from: Option<&Candidate>, candidate: &Candidate) -> Option<Rejection> {
    let from = from?;
    if candidate.release == from.release {
        Some(Rejection::Current)
    } else if candidate.content == from.content {
        Some(Rejection::SameContent)
    } else {
        None
    }
}

fn obstacle(from: Option<&Candidate>, candidate: &Candidate, wish: Wish) -> Option<Rejection> {
    if let Some(same) = same(from, candidate) {
        return Some(same);
    }
    if from.is_some_and(|from| candidate.number > from.number) && !wish.allow_higher {
        return Some(Rejection::Newer);
    }
    if candidate.mark == Some(QualityMark::Deprecated) {
        return Some(Rejection::Deprecated);
    }
    match wish.release {
        // Who names a release may know better than an unstable mark.
        Some(named) if named == candidate.release => None,
        Some(_) => Some(Rejection::NotNamed),
        None if candidate.mark == Some(QualityMark::Unstable) => Some(Rejection::Unstable),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn candidate(number: u64, since: i64, mark: Option<QualityMark>) -> Candidate {
        Candidate {
            release: ReleaseId::from(uuid::Uuid::from_u128(number.into())),
            number,
            content: Digest::of(&number.to_be_bytes()),
            mark,
            active_since: DateTime::from_timestamp(since, 0).unwrap(),
        }
    }

    fn why(choice: &Choice, number: u64) -> Rejection {
        let found = choice
            .rejected
            .iter()
            .find(|rejected| rejected.candidate.number == number);
        found.unwrap().why
    }

    #[test]
    fn the_last_known_good_release_is_chosen_and_the_others_say_why_not() {
        use QualityMark::{Deprecated, Stable, Unstable};
        let ran = [
            candidate(1, 10, Some(Stable)),
            candidate(2, 20, Some(Deprecated)),
            candidate(3, 30, None),
            candidate(4, 40, Some(Unstable)),
            candidate(6, 50, None),
            candidate(5, 60, None),
        ];
        let choice = choose(Some(&ran[5]), &ran, Wish::default());
        assert_eq!(choice.to.as_ref().unwrap().number, 1, "stable is preferred");
        assert_eq!(why(&choice, 5), Rejection::Current);
        assert_eq!(why(&choice, 6), Rejection::Newer);
        assert_eq!(why(&choice, 4), Rejection::Unstable);
        assert_eq!(why(&choice, 3), Rejection::LessPreferred);
        assert_eq!(why(&choice, 2), Rejection::Deprecated);

        let wish = Wish {
            allow_higher: true,
            ..Wish::default()
        };
        let unmarked: Vec<_> = ran
            .iter()
            .filter(|candidate| candidate.mark.is_none())
            .cloned()
            .collect();
        assert_eq!(choose(Some(&ran[5]), &unmarked, wish).to.unwrap().number, 6);
        assert_eq!(
            choose(Some(&ran[5]), &unmarked, Wish::default())
                .to
                .unwrap()
                .number,
            3
        );
    }

    #[test]
    fn a_named_release_may_be_unstable_but_not_deprecated_and_must_have_run_there() {
        let ran = [
            candidate(1, 10, Some(QualityMark::Unstable)),
            candidate(2, 20, Some(QualityMark::Deprecated)),
            candidate(3, 30, None),
        ];
        let named = |number: u64| Wish {
            release: Some(ReleaseId::from(uuid::Uuid::from_u128(number.into()))),
            allow_higher: false,
        };
        assert_eq!(choose(Some(&ran[2]), &ran, named(1)).to.unwrap().number, 1);
        assert_eq!(choose(Some(&ran[2]), &ran, named(2)).to, None);
        assert_eq!(choose(Some(&ran[2]), &ran, named(9)).to, None);
    }

    #[test]
    fn undoing_goes_to_what_is_active_whatever_is_thought_of_it_since() {
        for mark in QualityMark::ALL {
            let ran = [candidate(1, 10, None), candidate(2, 20, Some(*mark))];
            // Never active, and older than what is.
            let bad = Candidate {
                number: 0,
                ..candidate(7, 30, None)
            };
            let choice = undo(Some(&bad), &ran, ran[1].release);
            assert_eq!(choice.to, Some(ran[1].clone()), "{mark}");
            assert_eq!(why(&choice, 1), Rejection::NotNamed);
        }
        let active = candidate(1, 10, None);
        let choice = undo(Some(&active), std::slice::from_ref(&active), active.release);
        assert_eq!(
            (choice.to.clone(), choice.why_not(active.release)),
            (None, Some(Rejection::Current))
        );
        let same = Candidate {
            content: active.content,
            ..candidate(2, 20, None)
        };
        let choice = undo(Some(&same), std::slice::from_ref(&active), active.release);
        assert_eq!(choice.why_not(active.release), Some(Rejection::SameContent));
        assert_eq!(undo(Some(&same), &[], active.release).to, None);
    }

    #[test]
    fn a_release_of_the_same_content_is_no_way_back() {
        let mut same = candidate(1, 10, None);
        let now = candidate(2, 20, None);
        same.content = now.content;
        let choice = choose(Some(&now), &[same], Wish::default());
        assert_eq!(
            (choice.to.clone(), why(&choice, 1)),
            (None, Rejection::SameContent)
        );
    }

    proptest! {
        #[test]
        fn every_candidate_is_chosen_or_says_why_not(
            marks in prop::collection::vec(prop::option::of(prop::sample::select(QualityMark::ALL)), 0..8),
            from in any::<prop::sample::Index>(), allow_higher: bool,
        ) {
            let ran: Vec<_> = (1..).zip(marks).map(|(number, mark)| candidate(number, (number * 7 % 5) as i64, mark)).collect();
            let from = (!ran.is_empty()).then(|| &ran[from.index(ran.len())]);
            let wish = Wish { release: None, allow_higher };
            let choice = choose(from, &ran, wish);
            prop_assert_eq!(choice.rejected.len() + usize::from(choice.to.is_some()), ran.len());
            if let (Some(to), Some(from)) = (&choice.to, from) {
                prop_assert!(to.number < from.number || allow_higher);
                prop_assert!(!matches!(to.mark, Some(QualityMark::Deprecated | QualityMark::Unstable)));
            }
            let mut shuffled = ran.clone();
            shuffled.reverse();
            prop_assert_eq!(choose(from, &shuffled, wish), choice);
        }
    }
}
