//! Progress of a promotion: a live picture on a terminal, one plain line per change otherwise, and a sign of life every 30 s.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use sealift_proto::v1::{Failure, Task, task::State};

use crate::{
    commands::job::tasks::task_state,
    output::text::{clean, counted, lines, one_line, or_dash, short_target, stamp},
};

/// Silence after which a line without news is written.
pub const SIGN_OF_LIFE: Duration = Duration::from_secs(30);

/// Shows what a watch tells.
pub struct Progress {
    live: Option<MultiProgress>,
    bars: BTreeMap<String, ProgressBar>,
    said: BTreeMap<String, String>,
    /// Targets that are being worked on.
    running: BTreeSet<String>,
    started: Instant,
    spoke: Instant,
    /// Whether it says that it still waits.
    signs_of_life: bool,
}

impl Progress {
    /// A picture on a terminal, lines elsewhere; always on standard error, so that results stay clean.
    pub fn new() -> Self {
        let terminal =
            std::io::stderr().is_terminal() && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        let now = Instant::now();
        Self {
            live: terminal.then(MultiProgress::new),
            bars: BTreeMap::new(),
            said: BTreeMap::new(),
            running: BTreeSet::new(),
            started: now,
            spoke: now,
            signs_of_life: true,
        }
    }

    /// One that speaks only of the connection: what is followed speaks for itself.
    pub fn of_connection() -> Self {
        Self {
            signs_of_life: false,
            ..Self::new()
        }
    }

    /// News about the whole.
    pub fn say(&mut self, subject: &str, text: &str) {
        if self.said.get(subject).is_some_and(|said| said == text) {
            return;
        }
        self.said.insert(subject.to_owned(), text.to_owned());
        self.speak(&format!("{subject}: {text}"));
    }

    fn speak(&mut self, line: &str) {
        self.spoke = Instant::now();
        let line = format!("{:>6.1}s  {line}", self.started.elapsed().as_secs_f64());
        match &self.live {
            Some(live) => drop(live.println(line)),
            None => anstream::eprintln!("{line}"),
        }
    }

    /// Writes a sign of life when nothing was said for a while.
    pub fn tick(&mut self) {
        if self.signs_of_life && self.live.is_none() && self.spoke.elapsed() >= SIGN_OF_LIFE {
            self.speak(&format!(
                "still waiting; being worked on: {}",
                counted(self.running.len(), "target")
            ));
        }
    }

    /// News about tasks of a job.
    pub fn tasks(&mut self, tasks: &[Task]) {
        for task in tasks {
            let subject = short_target(&task.target);
            let text = describe(task);
            if task.state() == State::Running {
                self.running.insert(subject.clone());
            } else {
                self.running.remove(&subject);
            }
            match &self.live {
                None => self.say(&subject, &text),
                Some(live) => {
                    let bar = self.bars.entry(subject.clone()).or_insert_with(|| {
                        let bar = live.add(ProgressBar::new_spinner());
                        // Both templates are constants; a wrong one only costs the decoration.
                        if let Ok(style) = ProgressStyle::with_template("  {spinner} {prefix:24} {msg}") {
                            bar.set_style(style);
                        }
                        bar.set_prefix(subject);
                        bar.enable_steady_tick(Duration::from_millis(120));
                        bar
                    });
                    bar.set_message(text);
                    if is_terminal(task.state()) && !bar.is_finished() {
                        bar.finish();
                    }
                }
            }
        }
    }
}

const fn is_terminal(state: State) -> bool {
    match state {
        State::Succeeded | State::Failed | State::Skipped | State::Cancelled => true,
        State::Unspecified
        | State::Pending
        | State::Assigned
        | State::Accepted
        | State::Running
        | State::Lost => false,
    }
}

fn describe(task: &Task) -> String {
    let state = task.state();
    let mut text = task_state(state).to_owned();
    if state == State::Running && !task.step.is_empty() {
        text = format!("{text} ({})", clean(&task.step));
    }
    if !task.skip_reason.is_empty() {
        text = format!("{text} ({})", clean(&task.skip_reason));
    }
    if task.attempt > 1 {
        text = format!("{text}, attempt {}", task.attempt);
    }
    match &task.failure {
        Some(failure) => format!("{text}: {}", failure_line(failure)),
        None => text,
    }
}

/// A failure in one line.
pub fn failure_line(failure: &Failure) -> String {
    one_line(&format!("{} {}", failure.code, failure.summary))
}

/// What kind of failure it is, where and when it happened.
fn kind(failure: &Failure) -> String {
    let mut text = or_dash(&failure.category);
    if !failure.step.is_empty() {
        text = format!("{text}, in step {}", clean(&failure.step));
    }
    if failure.attempt > 0 {
        text = format!("{text}, in attempt {}", failure.attempt);
    }
    if failure.observe_time.is_some() {
        text = format!("{text}, at {}", stamp(failure.observe_time.as_ref()));
    }
    if failure.retryable {
        text = format!("{text}; the same may work when tried again");
    }
    text
}

/// A failure with all that is known of it, and what to do next.
pub fn failure_text(failure: &Failure) -> String {
    let mut text = format!("failure: {}\nkind:    {}", failure_line(failure), kind(failure));
    if !failure.detail.is_empty() {
        text = format!("{text}\ndetail:  {}", lines(&failure.detail, 9));
    }
    format!("{text}\nnext:    {}", one_line(&failure.advice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_says_of_what_kind_it_is_where_and_when_it_happened_and_what_to_do() {
        let failure = Failure {
            code: "REGISTRY_UNAVAILABLE".to_owned(),
            category: "artifact".to_owned(),
            summary: "the registry broke off".to_owned(),
            detail: "503".to_owned(),
            advice: "check it".to_owned(),
            retryable: true,
            observe_time: Some(pbjson_types::Timestamp::default()),
            step: "pulling".to_owned(),
            attempt: 2,
            ..Failure::default()
        };
        assert_eq!(
            failure_text(&failure),
            "failure: REGISTRY_UNAVAILABLE the registry broke off\n\
             kind:    artifact, in step pulling, in attempt 2, at 1970-01-01T00:00:00Z; the same may work when tried again\n\
             detail:  503\n\
             next:    check it"
        );
        // One of an older orchestrator says less.
        assert_eq!(
            failure_text(&Failure::default()),
            "failure: \nkind:    -\nnext:    "
        );
    }
}
