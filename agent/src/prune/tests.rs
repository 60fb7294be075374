use proptest::prelude::*;

use super::*;
use crate::{
    journal::{AttemptKey, Record},
    samples,
};

fn at(hours: i64) -> DateTime<Utc> {
    DateTime::from_timestamp(1_800_000_000, 0).unwrap() + TimeDelta::hours(hours)
}

fn known(images: &[(&str, i64)]) -> BTreeMap<String, PulledImage> {
    images
        .iter()
        .map(|(name, hours)| {
            let used_at = at(*hours);
            ((*name).to_owned(), PulledImage { used_at })
        })
        .collect()
}

const POLICY: PrunePolicy = PrunePolicy {
    enabled: true,
    keep_last: 2,
    keep: TimeDelta::days(1),
    min_free: 1,
};

#[test]
fn the_newest_of_each_repository_stay_and_the_rest_goes_when_it_is_old() {
    let known = known(&[("a@1", 0), ("a@2", 1), ("a@3", 2), ("a@4", 90), ("b@1", 0)]);
    let spare = |needed: &[&str], is_pressed, now| {
        let needed = needed.iter().map(|name| (*name).to_owned()).collect();
        spare(&known, &needed, &POLICY, is_pressed, at(now)).join(" ")
    };
    assert_eq!(spare(&[], false, 100), "a@1 a@2");
    assert_eq!(spare(&["a@1"], false, 100), "a@2");
    assert_eq!(spare(&[], false, 24), "", "not old enough yet");
    assert_eq!(spare(&[], true, 24), "a@1 a@2", "but the disk is low");
}

proptest! {
    #[test]
    fn nothing_that_is_needed_or_fresh_or_among_the_newest_ever_goes(
        images in proptest::collection::btree_map("[ab]@[0-9]{1,2}", 0_i64..400, 0..20),
        needed in proptest::collection::btree_set("[ab]@[0-9]{1,2}", 0..10),
        keep_last in 0_usize..4,
        is_pressed: bool,
    ) {
        let known: BTreeMap<_, _> = images.iter().map(|(name, hours)| (name.clone(), PulledImage { used_at: at(*hours) })).collect();
        let policy = PrunePolicy { keep_last, ..POLICY };
        let going: BTreeSet<_> = spare(&known, &needed, &policy, is_pressed, at(400)).into_iter().collect();
        for repository in ["a", "b"] {
            let of = |name: &&String| super::repository(name) == repository;
            let staying = known.keys().filter(of).filter(|name| !going.contains(name.as_str())).count();
            prop_assert!(staying >= keep_last.min(known.keys().filter(of).count()));
        }
        for name in going {
            prop_assert!(!needed.contains(name));
            prop_assert!(at(400) - known[name].used_at > FRESH);
        }
    }
}

#[test]
fn a_name_that_somebody_else_gave_protects_an_image() {
    let known = known(&[("docker.io/library/nginx@sha256:1", 0), ("r.test/a@sha256:2", 0)]);
    let ours = |names: &[&str]| {
        let found = ImageNames {
            id: String::new(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            bytes: 0,
        };
        is_ours(&found, &known)
    };
    assert!(ours(&["nginx@sha256:1"]));
    assert!(ours(&["r.test/a@sha256:2"]));
    assert!(!ours(&["r.test/a@sha256:2", "r.test/a:latest"]));
    assert!(!ours(&["r.test/a@sha256:2", "mirror.test/a@sha256:2"]));
}

#[test]
fn r10_an_open_attempt_needs_its_repositories_and_the_images_of_the_old_set() {
    let order = samples::order(1, &[("web", "v1")]);
    let attempt = |records: &[Record]| StoredAttempt {
        key: AttemptKey {
            task: order.task_id,
            attempt: order.attempt,
        },
        order: samples::signed(&order),
        records: records.to_vec(),
    };
    let image = samples::image("v1");
    let other_version = format!("{}@{}", image.repository, samples::image("v0").digest);
    let begun = samples::accepted(at(0));
    let open = Open::of(&[attempt(std::slice::from_ref(&begun))]);
    assert!(open.needs(&image.pull_reference()) && open.needs(&other_version));
    assert!(!open.needs(&format!("r.test/other@{}", image.digest)));
    let over = Open::of(&[attempt(&[begun, Record::Cleaned])]);
    assert!(!over.needs(&image.pull_reference()));
}
