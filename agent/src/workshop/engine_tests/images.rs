//! Images that are taken away from a real engine, and those that stay.

use chrono::TimeDelta;

use super::*;
use crate::prune::sweep;

/// A new image of its own that only the registry has: nobody else's tests may lose theirs.
fn fresh(like: &PinnedImage, name: &str) -> PinnedImage {
    let (registry, _) = like.repository.split_once('/').unwrap();
    let repository = format!("{registry}/sealift-test/prune-{name}");
    let tag = random().to_string();
    let tagged = format!("{repository}:{tag}");
    let made = docker(&["create", &like.pull_reference()]);
    docker(&["commit", "--change", &format!("LABEL made={tag}"), &made, &tagged]);
    docker(&["rm", &made]);
    docker(&["push", &tagged]);
    docker(&["rmi", &tagged]);
    pin(&repository, &tag, &repository)
}

fn is_there(image: &PinnedImage) -> bool {
    !docker(&["image", "inspect", "--format", "{{.Id}}", &image.pull_reference()]).is_empty()
}

#[tokio::test]
async fn pruning_on_engine_takes_away_what_this_agent_pulled_and_nothing_of_others() {
    images!(ok = "OK_1");
    let policy = PrunePolicy {
        keep_last: 1,
        keep: TimeDelta::zero(),
        ..PrunePolicy::default()
    };
    let mut place = Place::pruning(1, None, policy).await;
    let name = random().simple().to_string();
    let (older, newer) = (fresh(&ok, &name), fresh(&ok, &name));
    let keepsake = format!("sealift-test-keepsake:{name}");
    for is_tagged in [false, true] {
        for image in [&older, &newer] {
            let finished = place.deploy(one(samples::service(image.clone()))).await;
            assert_eq!(finished.result(), Wire::Succeeded, "{:?}", finished.failure);
        }
        if is_tagged {
            docker(&["tag", &older.pull_reference(), &keepsake]);
        }
        // As if that had been long ago.
        let shared = &place.workshop.shared;
        for (image, hours) in [(&older, 3), (&newer, 2)] {
            let write = Write::ImagePulled {
                reference: image.pull_reference(),
                at: SystemClock.now() - TimeDelta::hours(hours),
            };
            shared.journal.note(vec![write]).await.unwrap();
        }
        let done = sweep(shared, false).await.unwrap();
        assert_eq!(
            (done.images, is_there(&older)),
            if is_tagged { (0, true) } else { (1, false) }
        );
        assert!(
            is_there(&newer) && is_there(&ok),
            "one is used, the other is somebody else's"
        );
    }
    place.down().await;
    docker(&[
        "rmi",
        "-f",
        &keepsake,
        &older.pull_reference(),
        &newer.pull_reference(),
    ]);
}
