//! Waves and what a job does next: properties over random fleets and random fates of tasks.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;

use proptest::prelude::*;
use sealift_common::{
    failure::{Failure, FailureCode},
    id::TargetId,
    job::{self, JobEvent, JobNext, TaskSummary},
    name::Name,
    strategy::{Strategy as Rollout, waves},
    task::TaskPhase,
};

fn targets(count: usize) -> Vec<(Name, TargetId)> {
    (0..count)
        .map(|index| {
            let name = format!("t{index}").parse().unwrap();
            let id = format!("{:08x}-0000-7000-8000-000000000000", index + 1)
                .parse()
                .unwrap();
            (name, id)
        })
        .collect()
}

fn rollout() -> impl Strategy<Value = Rollout> {
    prop_oneof![
        Just(Rollout::AllAtOnce {}),
        (0..9_u32).prop_map(|max_parallel| Rollout::Rolling { max_parallel }),
    ]
}

fn summary(wave: u32, phase: TaskPhase) -> TaskSummary {
    let failure = (phase == TaskPhase::Failed).then(|| Failure::new(FailureCode::Unhealthy, "unhealthy"));
    TaskSummary { wave, phase, failure }
}

fn tasks() -> impl Strategy<Value = Vec<TaskSummary>> {
    prop::collection::vec((0..4_u32, prop::sample::select(TaskPhase::ALL)), 0..12).prop_map(|tasks| {
        tasks
            .into_iter()
            .map(|(wave, phase)| summary(wave, phase))
            .collect()
    })
}

proptest! {
    #[test]
    fn waves_hold_every_target_once_without_gaps(
        rollout in rollout(),
        (sorted, shuffled) in (0..40_usize).prop_flat_map(|count| {
            (Just(targets(count)), Just(targets(count)).prop_shuffle())
        }),
    ) {
        let planned = waves(rollout, &shuffled);
        prop_assert_eq!(&planned, &waves(rollout, &sorted), "the order of the targets does not matter");
        prop_assert!(planned.iter().all(|wave| !wave.is_empty()), "no gaps");
        let all: Vec<_> = planned.iter().flatten().copied().collect();
        let distinct: BTreeSet<_> = all.iter().copied().collect();
        prop_assert_eq!(all.len(), sorted.len());
        prop_assert_eq!(distinct, sorted.iter().map(|(_, id)| *id).collect::<BTreeSet<_>>());
        match rollout {
            Rollout::AllAtOnce {} => prop_assert!(planned.len() <= 1),
            Rollout::Rolling { max_parallel } => {
                let most = usize::try_from(max_parallel.max(1)).unwrap();
                prop_assert!(planned.iter().all(|wave| wave.len() <= most));
                prop_assert!(planned.iter().rev().skip(1).all(|wave| wave.len() == most), "only the last is smaller");
            }
        }
    }

    #[test]
    fn no_wave_opens_over_an_unfinished_or_failed_one(tasks in tasks(), stop in any::<bool>()) {
        if let JobNext::OpenWave(wave) = job::next(&tasks, stop) {
            prop_assert!(!stop, "nothing opens after a stop");
            prop_assert!(tasks.iter().all(|task| task.phase != TaskPhase::Failed));
            prop_assert!(tasks.iter().all(|task| task.wave >= wave || task.phase.is_terminal()));
            prop_assert!(tasks.iter().any(|task| task.wave == wave && task.phase == TaskPhase::Pending));
        }
    }

    #[test]
    fn a_job_ends_only_when_every_task_has_and_says_how(tasks in tasks(), stop in any::<bool>()) {
        let ended = tasks.iter().all(|task| task.phase.is_terminal());
        match job::next(&tasks, stop) {
            JobNext::End(event) => {
                prop_assert!(ended, "lost and live tasks keep the job from ending");
                let failed = tasks.iter().any(|task| task.phase == TaskPhase::Failed);
                let cancelled = tasks.iter().any(|task| task.phase == TaskPhase::Cancelled);
                match event {
                    JobEvent::Failed { .. } => prop_assert!(failed),
                    JobEvent::Cancelled => prop_assert!(!failed && cancelled),
                    JobEvent::Completed => prop_assert!(!failed && !cancelled),
                    JobEvent::Started => prop_assert!(false, "no end"),
                }
            }
            JobNext::Wait => prop_assert!(tasks.iter().any(|task| task.phase.is_live())),
            JobNext::CloseRest => prop_assert!(tasks.iter().any(|task| task.phase == TaskPhase::Pending)),
            JobNext::OpenWave(_) => {}
        }
    }

    #[test]
    fn every_job_ends(
        sizes in prop::collection::vec(1..5_usize, 1..5),
        fates in prop::collection::vec((any::<prop::sample::Index>(), 0..6_u8), 0..200),
        stop_at in prop::option::of(0..40_usize),
    ) {
        let mut tasks: Vec<_> = sizes
            .iter()
            .zip(0..)
            .flat_map(|(size, wave)| vec![summary(wave, TaskPhase::Pending); *size])
            .collect();
        let mut fates = fates.into_iter();
        let mut end = None;
        // Every step either ends a task, opens a wave or closes the rest, so this many are enough.
        for step in 0..tasks.len() * 8 + 8 {
            let stop = stop_at.is_some_and(|at| step >= at);
            match job::next(&tasks, stop) {
                JobNext::End(event) => {
                    end = Some(event);
                    break;
                }
                JobNext::OpenWave(wave) => {
                    for task in tasks.iter_mut().filter(|task| task.wave == wave && task.phase == TaskPhase::Pending) {
                        *task = summary(wave, TaskPhase::Assigned);
                    }
                }
                JobNext::CloseRest => {
                    let phase = if stop { TaskPhase::Cancelled } else { TaskPhase::Skipped };
                    for task in tasks.iter_mut().filter(|task| task.phase == TaskPhase::Pending) {
                        *task = summary(task.wave, phase);
                    }
                }
                JobNext::Wait => {
                    let live: Vec<_> = (0..tasks.len()).filter(|index| tasks[*index].phase.is_live()).collect();
                    prop_assert!(!live.is_empty(), "it waits for something");
                    // When the fates run out, everything works.
                    let (pick, fate) = fates.next().map_or((0, 5), |(pick, fate)| (pick.index(live.len()), fate));
                    let index = live[pick];
                    let phase = match fate {
                        0 => TaskPhase::Failed,
                        1 if stop => TaskPhase::Cancelled,
                        2 => TaskPhase::Lost,
                        _ => TaskPhase::Succeeded,
                    };
                    tasks[index] = summary(tasks[index].wave, phase);
                }
            }
        }
        let losses = tasks.iter().any(|task| task.phase == TaskPhase::Lost);
        prop_assert!(end.is_some() || losses, "{tasks:?}");
    }
}
