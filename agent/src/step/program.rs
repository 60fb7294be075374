//! Step of an agent's own program: the same phases as for containers, but what decides is which program this process runs and what
//! the marker says of the attempt. The process that goes on with an attempt is often another than the one that began it.

use sealift_common::{
    digest::Digest,
    failure::{Failure, FailureCode},
    task::Wanted,
};

use crate::{
    journal::{AttemptState, Cause, Phase},
    program::marker::{Returned, Stand, Why},
};

/// What is known of the host. Made by looking, kept up to date by what each step did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct World {
    /// Whether the ordered image is there with its digest.
    pub image: bool,
    /// The ordered program, once it is verified and installed.
    pub staged: Option<Digest>,
    /// Whether nothing else is under way on this agent, and nothing begins.
    pub turn: bool,
    /// The program that this process runs.
    pub running: Digest,
    /// What the marker says of the attempt.
    pub stand: Stand,
    /// The program that the marker names for the attempt, if it is on trial or installed.
    pub named: Option<Digest>,
    /// The program that the launcher would start now. One that it did not start when it started this process is not chosen: handing
    /// over to what does not come would never end.
    pub chosen: Digest,
    /// What kept the launcher from starting another program than this one.
    pub problem: Option<String>,
    /// Whether the marker could not be written on the way back, however often that was tried.
    pub stuck: bool,
}

/// The one next thing to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Bring the image to the host and compare its digest.
    Pull,
    /// Take program and signature out of the image, verify them, install the program beside the others.
    Fetch,
    /// Wait until nothing else is under way on this agent.
    AwaitTurn,
    /// Look at what runs and write it down; from then on it may be exchanged.
    Prepare,
    /// Have the marker put the new program on trial.
    Switch,
    /// Have this process hand over to whatever the marker says.
    HandOver,
    /// Write down that the new program runs.
    NoteStarted,
    /// Wait until the orchestrator has answered for as long as it must.
    AwaitHealth,
    /// Have the marker say that the new program is good.
    Confirm,
    /// Sticker, packet, report, end.
    Commit,
    /// Go back to the program before.
    Restore(Cause),
    /// Have the marker give the new program up.
    Withdraw,
    /// Packet, report, end, with the program before running.
    Conclude(Cause),
    /// Drop programs that nothing needs any more and write down that all is done.
    Clean,
    /// Nothing is left to do.
    Done,
}

impl Step {
    /// Whether a request to stop may end it in the middle.
    pub fn gives_way(&self) -> bool {
        matches!(
            self,
            Self::Pull | Self::Fetch | Self::AwaitTurn | Self::AwaitHealth
        )
    }

    /// Whether the agent's own end may end it in the middle: it is done again at the next start.
    pub fn is_long(&self) -> bool {
        matches!(self, Self::HandOver) || self.gives_way()
    }
}

/// The next step. Pure.
pub fn next(state: &AttemptState, wanted: Wanted, world: &World) -> Step {
    if let Phase::Switching | Phase::Proving | Phase::Moving | Phase::Baking | Phase::Committing = state.phase
        && let Stand::Returned(returned) = &world.stand
    {
        // Whatever else is true: the launcher has settled it.
        return Step::Restore(Cause::Failed {
            failure: not_healthy(returned),
        });
    }
    if let Some(cause) = super::turned_back(state, wanted) {
        return Step::Restore(cause);
    }
    match &state.phase {
        Phase::Preparing => prepare(world),
        Phase::Switching => forward(world, Step::NoteStarted),
        Phase::Proving | Phase::Moving | Phase::Baking => match world.stand {
            // Written down as running, and the marker does not know it any more.
            Stand::Untouched => lost(),
            _ => forward(world, Step::AwaitHealth),
        },
        Phase::Committing => match world.stand {
            Stand::Trying if runs_new(world) => Step::Confirm,
            Stand::Installed if runs_new(world) => Step::Commit,
            _ => lost(),
        },
        // The end says that the restore was given up.
        Phase::Restoring(cause) if state.is_poison() => Step::Conclude(cause.clone()),
        Phase::Restoring(cause) => restore(state, cause, world),
        Phase::Ended(_) => Step::Clean,
        Phase::Done => Step::Done,
    }
}

fn prepare(world: &World) -> Step {
    if !world.image {
        Step::Pull
    } else if world.staged.is_none() {
        Step::Fetch
    } else if world.turn {
        Step::Prepare
    } else {
        Step::AwaitTurn
    }
}

fn runs_new(world: &World) -> bool {
    world.named == Some(world.running)
}

/// Whether handing over brings the program that the marker names for the attempt.
fn is_chosen(world: &World) -> bool {
    world.named == Some(world.chosen)
}

fn forward(world: &World, reached: Step) -> Step {
    if !world.turn {
        return Step::AwaitTurn;
    }
    match &world.stand {
        Stand::Untouched if !world.image => Step::Pull,
        Stand::Untouched if world.staged.is_none() => Step::Fetch,
        Stand::Untouched => Step::Switch,
        Stand::Trying | Stand::Installed if runs_new(world) => reached,
        Stand::Trying if is_chosen(world) => Step::HandOver,
        Stand::Trying => not_started(world),
        Stand::Installed | Stand::Returned(_) => lost(),
    }
}

/// What went on meanwhile cannot be explained by the journal: back to what is certain.
fn lost() -> Step {
    let failure = Failure::new(
        FailureCode::AgentUpdateNotHealthy,
        "the new program does not run any more",
    );
    Step::Restore(Cause::Failed { failure })
}

/// The launcher was asked for the new program and started this one again.
fn not_started(world: &World) -> Step {
    let failure = Failure::new(
        FailureCode::AgentState,
        "the new program could not be started on trial, and the one before runs on",
    );
    let detail = world.problem.as_deref().unwrap_or("the agent's log says why");
    Step::Restore(Cause::Failed {
        failure: failure.with_detail(detail),
    })
}

fn restore(state: &AttemptState, cause: &Cause, world: &World) -> Step {
    match world.stand {
        Stand::Trying | Stand::Installed if !world.stuck => return Step::Withdraw,
        // A launcher that cannot write the marker either starts the program before.
        Stand::Trying if runs_new(world) && is_chosen(world) => return Step::HandOver,
        _ => {}
    }
    let is_back = match state.old.iter().flatten().next() {
        // Nothing was exchanged yet.
        None => true,
        Some(before) => before.id == world.running.to_string(),
    };
    // What ran before may not be there any more: then the launcher has chosen what runs, and would choose it again.
    if is_back || world.chosen == world.running {
        Step::Conclude(cause.clone())
    } else {
        Step::HandOver
    }
}

/// Why the program of an attempt was given up, as a failure.
fn not_healthy(returned: &Returned) -> Failure {
    let summary = match returned.why {
        Why::Died => "did not keep running, and the one before runs again",
        Why::Silent => "did not come back to the orchestrator in time, and the one before runs again",
        Why::Damaged => "was not started: its file is not what was signed",
        Why::Withdrawn => "gave itself up, and the one before runs again",
    };
    Failure::new(
        FailureCode::AgentUpdateNotHealthy,
        format!("the new program {} {summary}", returned.program.short()),
    )
    .with_detail(&returned.detail)
}

#[cfg(test)]
mod tests;
