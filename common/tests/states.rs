//! The state machines: printed wholly into `docs/`, and checked with random histories.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod golden;

use std::fmt::Write as _;

use golden::golden;
use proptest::prelude::*;
use sealift_common::{
    decision::{Gate, GateAnswer, Verdict},
    failure::{Failure, FailureCode},
    job::{JobEvent, JobPhase, JobState, Pause},
    promotion::{PromotionEvent, PromotionState},
    task::{IllegalTransition, SkipReason, TaskEvent, TaskPhase, TaskState, TaskStep},
};

fn failure() -> Failure {
    Failure::new(FailureCode::Unhealthy, "api: unhealthy")
}

fn task_states() -> Vec<(&'static str, TaskState)> {
    vec![
        ("pending", TaskState::Pending),
        ("assigned", TaskState::Assigned),
        ("accepted", TaskState::Accepted),
        (
            "running (pulling)",
            TaskState::Running {
                step: TaskStep::Pulling,
            },
        ),
        (
            "running (retry_wait)",
            TaskState::Running {
                step: TaskStep::RetryWait,
            },
        ),
        ("lost", TaskState::Lost),
        ("succeeded", TaskState::Succeeded),
        ("failed", TaskState::Failed { failure: failure() }),
        (
            "skipped",
            TaskState::Skipped {
                reason: SkipReason::AlreadyRunning,
            },
        ),
        ("cancelled", TaskState::Cancelled),
    ]
}

fn task_events() -> Vec<(&'static str, TaskEvent)> {
    let events = vec![
        TaskEvent::Assigned,
        TaskEvent::Accepted,
        TaskEvent::Progressed {
            step: TaskStep::Pulling,
        },
        TaskEvent::Succeeded,
        TaskEvent::Failed { failure: failure() },
        TaskEvent::AttemptFailed { failure: failure() },
        TaskEvent::Stopped,
        TaskEvent::LeaseExpired,
        TaskEvent::Skipped {
            reason: SkipReason::EarlierWaveFailed,
        },
        TaskEvent::Withdrawn,
    ];
    events.into_iter().map(|event| (event.name(), event)).collect()
}

fn closed(message: &str) -> GateAnswer {
    GateAnswer {
        gate: Gate::Hold,
        verdict: Verdict::Wait,
        reason: "LANE_HELD".to_owned(),
        message: message.to_owned(),
        advice: "lift it".to_owned(),
    }
}

fn job_states() -> Vec<(&'static str, JobState)> {
    vec![
        ("queued", JobState::Queued),
        ("running", JobState::Running),
        ("paused", JobState::Paused { why: Pause::Operator }),
        (
            "paused (gate)",
            JobState::Paused {
                why: Pause::Gate(closed("held")),
            },
        ),
        ("rolling_back", JobState::RollingBack { failure: failure() }),
        ("succeeded", JobState::Succeeded),
        ("failed", JobState::Failed { failure: failure() }),
        ("cancelled", JobState::Cancelled),
        ("rolled_back", JobState::RolledBack { failure: failure() }),
        ("rollback_failed", JobState::RollbackFailed { failure: failure() }),
    ]
}

fn job_events() -> Vec<(&'static str, JobEvent)> {
    let events = vec![
        JobEvent::Started,
        JobEvent::Paused { why: Pause::Canary },
        JobEvent::Paused {
            why: Pause::Gate(closed("held by another")),
        },
        JobEvent::Resumed,
        JobEvent::Completed,
        JobEvent::Failed { failure: failure() },
        JobEvent::Cancelled,
        JobEvent::Superseded,
        JobEvent::RollbackStarted { failure: failure() },
        JobEvent::RolledBack,
        JobEvent::RollbackFailed { failure: failure() },
    ];
    let name = |event: &JobEvent| match event {
        JobEvent::Paused { why: Pause::Gate(_) } => "paused (gate)",
        other => other.name(),
    };
    events.into_iter().map(|event| (name(&event), event)).collect()
}

fn job_name(state: &JobState) -> String {
    match state {
        JobState::Paused { why: Pause::Gate(_) } => "paused (gate)".to_owned(),
        other => other.phase().to_string(),
    }
}

fn task_name(state: &TaskState) -> String {
    match state {
        TaskState::Running { step } => format!("running ({step})"),
        other => other.phase().to_string(),
    }
}

/// A table of all states and events. A dash is "nothing changes", a cross is "not allowed".
fn table<S, E>(
    title: &str,
    states: &[(&str, S)],
    events: &[(&str, E)],
    apply: impl Fn(&S, &E) -> Result<Option<String>, IllegalTransition>,
) -> String {
    let mut page = format!(
        "# {title}\n\nPrinted from the code by `common/tests/states.rs` (`UPDATE_GOLDEN=1` rewrites it). Rows are states, columns \
         events; `–` means that nothing changes, `✗` that the event is refused.\n\n|"
    );
    for (name, _) in events {
        let _ = write!(page, " | {name}");
    }
    let _ = writeln!(page, " |\n|---{}|", "|---".repeat(events.len()));
    for (name, state) in states {
        let _ = write!(page, "| **{name}**");
        for (_, event) in events {
            let cell = match apply(state, event) {
                Ok(Some(next)) => next,
                Ok(None) => "–".to_owned(),
                Err(_) => "✗".to_owned(),
            };
            let _ = write!(page, " | {cell}");
        }
        page.push_str(" |\n");
    }
    page
}

#[test]
fn task_states_are_as_documented() {
    let page = table(
        "States of a task",
        &task_states(),
        &task_events(),
        |state, event| state.apply(event).map(|next| next.as_ref().map(task_name)),
    );
    golden("task-states.md", &page);
}

#[test]
fn job_states_are_as_documented() {
    let page = table("States of a job", &job_states(), &job_events(), |state, event| {
        state.apply(event).map(|next| next.as_ref().map(job_name))
    });
    golden("job-states.md", &page);
}

#[test]
fn promotion_states_are_as_documented() {
    let states: Vec<_> = PromotionState::ALL
        .iter()
        .map(|state| (state.as_str(), *state))
        .collect();
    let events: Vec<_> = PromotionEvent::ALL
        .iter()
        .map(|event| (event.as_str(), *event))
        .collect();
    let page = table("States of a promotion", &states, &events, |state, event| {
        state.apply(*event).map(|next| next.map(|next| next.to_string()))
    });
    golden("promotion-states.md", &page);
}

#[test]
fn every_phase_is_in_the_tables() {
    for phase in TaskPhase::ALL {
        assert!(
            task_states().iter().any(|(_, state)| state.phase() == *phase),
            "{phase}"
        );
    }
    for phase in JobPhase::ALL {
        assert!(
            job_states().iter().any(|(_, state)| state.phase() == *phase),
            "{phase}"
        );
    }
}

fn task_event() -> impl Strategy<Value = TaskEvent> {
    prop_oneof![
        3 => prop::sample::select(task_events()).prop_map(|(_, event)| event),
        1 => prop::sample::select(TaskStep::ALL).prop_map(|step| TaskEvent::Progressed { step }),
    ]
}

proptest! {
    #[test]
    fn a_task_never_leaves_a_terminal_phase(events in prop::collection::vec(task_event(), 0..60)) {
        let mut state = TaskState::Pending;
        for event in &events {
            let before = state.clone();
            if let Ok(Some(next)) = state.apply(event) {
                prop_assert!(!before.phase().is_terminal(), "{before:?} left by {event:?}");
                prop_assert_ne!(&next, &before, "an event without effect is None");
                // Once an order is out, only a report ends it or it waits: it never waits for its wave again.
                prop_assert_ne!(next.phase(), TaskPhase::Pending);
                state = next;
            }
        }
    }

    #[test]
    fn a_tasks_history_replayed_ends_in_the_same_state(events in prop::collection::vec(task_event(), 0..60)) {
        let mut state = TaskState::Pending;
        let mut history = Vec::new();
        for event in events {
            if let Ok(Some(next)) = state.apply(&event) {
                history.push(event);
                state = next;
            }
        }
        // What the history kept is what is stored: it must also survive being written and read.
        let stored = serde_json::to_string(&history).unwrap();
        let history: Vec<TaskEvent> = serde_json::from_str(&stored).unwrap();
        let mut again = TaskState::Pending;
        for event in &history {
            let next = again.apply(event).unwrap();
            prop_assert!(next.is_some(), "{event:?} had an effect when it happened");
            again = next.unwrap();
        }
        prop_assert_eq!(again, state);
    }

    #[test]
    fn a_repeated_report_changes_nothing(events in prop::collection::vec(task_event(), 0..40)) {
        let mut state = TaskState::Pending;
        for event in &events {
            if let Ok(Some(next)) = state.apply(event) {
                // The agent resends until it is acknowledged (R9), so every report may come twice.
                let report = !matches!(event, TaskEvent::Assigned | TaskEvent::Withdrawn | TaskEvent::Skipped { .. });
                if report {
                    let twice = next.apply(event);
                    prop_assert!(matches!(twice, Ok(None)) || next == twice.clone().unwrap().unwrap(), "{event:?}: {twice:?}");
                }
                state = next;
            }
        }
    }

    #[test]
    fn a_job_never_leaves_a_terminal_phase(picks in prop::collection::vec(any::<prop::sample::Index>(), 0..30)) {
        let mut state = JobState::Queued;
        let mut history = Vec::new();
        for pick in picks {
            let mut events = job_events();
            let event = events.remove(pick.index(events.len())).1;
            if let Ok(Some(next)) = state.apply(&event) {
                prop_assert!(!state.phase().is_terminal());
                history.push(event);
                state = next;
            }
        }
        let replayed = history.iter().fold(JobState::Queued, |state, event| {
            state.apply(event).unwrap().unwrap()
        });
        prop_assert_eq!(replayed, state);
    }

    #[test]
    fn a_promotion_never_leaves_a_terminal_phase(
        events in prop::collection::vec(prop::sample::select(PromotionEvent::ALL), 0..30)
    ) {
        let mut state = PromotionState::PendingGate;
        let mut history = Vec::new();
        for event in events {
            if let Ok(Some(next)) = state.apply(event) {
                prop_assert!(!state.is_terminal());
                history.push(event);
                state = next;
            }
        }
        let replayed = history.into_iter().fold(PromotionState::PendingGate, |state, event| {
            state.apply(event).unwrap().unwrap()
        });
        prop_assert_eq!(replayed, state);
    }
}
