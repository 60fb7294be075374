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
    output::text::{clean, lines, one_line, short_target},
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
        if self.live.is_none() && self.spoke.elapsed() >= SIGN_OF_LIFE {
            self.speak(&format!(
                "still waiting; {} targets are being worked on",
                self.running.len()
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

/// A failure with all that is known of it, and what to do next.
pub fn failure_text(failure: &Failure) -> String {
    let mut text = format!("failure: {}", failure_line(failure));
    if !failure.detail.is_empty() {
        text = format!("{text}\ndetail:  {}", lines(&failure.detail, 9));
    }
    format!("{text}\nnext:    {}", one_line(&failure.advice))
}
