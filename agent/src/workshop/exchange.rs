//! The agent's own program as the workshop sees it: what is taken up at the start of a process, and which target's orders may
//! exchange it.

use sealift_common::{
    any_manifest::AnyManifest,
    condition::ConditionCode,
    name::Name,
    order::{Order, TargetBinding},
};

use super::{Shared, Workshop, carry::is_exchange, check};
use crate::{
    host::Host,
    journal::{AttemptKey, JournalError, StoredAttempt},
};

impl<H: Host> Workshop<H> {
    /// Looks at how this process came to run. An exchange that is under way goes on before anything else.
    pub(super) async fn begin_program(&self, stored: &[StoredAttempt]) {
        let program = &self.shared.program;
        if let Err(error) = program.begin().await {
            tracing::error!(%error, "the agent's programs cannot be seen");
        }
        // What kept another program from running in this one's place.
        let problem = program.launched.problem.as_deref();
        self.shared
            .set_condition(ConditionCode::AgentState, "program", problem);
        let under_way: Vec<AttemptKey> = stored
            .iter()
            .filter(|attempt| {
                check::trusted(&attempt.order).is_ok_and(|order| is_exchange(&order, &attempt.records))
            })
            .map(|attempt| attempt.key)
            .collect();
        if let Some(exchange) = under_way.first() {
            program.keep_turn(*exchange);
        }
        self.settle_trial(&under_way).await;
    }

    /// A program on trial whose attempt is over, or is not in the journal, has nobody who could find it good: the one before runs.
    async fn settle_trial(&self, under_way: &[AttemptKey]) {
        let program = &self.shared.program;
        let Ok(marker) = program.marker().await else {
            return;
        };
        let trial = marker.trial.as_ref().map(|trial| trial.installed.key());
        let Some(orphan) = trial.filter(|trial| !under_way.contains(trial)) else {
            return;
        };
        tracing::error!(task.id = %orphan.task, "a new program is on trial and no attempt waits for it: it is given up");
        let given_up = marker.withdraw(orphan, "no attempt waits for it any more");
        if let Err(error) = program.set_marker(given_up).await {
            // The launcher counts how often it is started.
            tracing::error!(%error, "the marker cannot be written");
        }
        if program.launched.is_supervised {
            // Nothing begins any more in this process.
            program.keep_turn(orphan);
            program.hand_over();
        }
    }

    /// What was kept for an exchange that nobody carries out is for everybody again.
    pub(super) fn release_turn(&self, key: AttemptKey) {
        if !super::lock(&self.shared.active).contains_key(&key) {
            drop(self.shared.program.kept_turn(key));
        }
    }
}

/// The target that this agent's program belongs to, if that is another than the order's: an agent has one program, and two targets
/// would exchange it in turn for ever. The orchestrator sees to that, too; this is for the day on which it is wrong. Blocks.
pub(super) fn other_owner<H: Host>(
    shared: &Shared<H>,
    order: &Order,
) -> Result<Option<String>, JournalError> {
    let is_order =
        |environment: &Name, target: &Name| (environment, target) == (&order.environment, &order.target);
    if let Some((environment, target)) = &shared.program.policy.target {
        return Ok((!is_order(environment, target)).then(|| format!("{environment}/{target}")));
    }
    // One that was made anew under the same name takes its predecessor's place.
    let bindings = shared.identity.bindings.all();
    let others = bindings
        .iter()
        .filter(|other| !is_order(&other.environment, &other.target));
    let named = |other: &TargetBinding| format!("{}/{}", other.environment, other.target);
    for other in others {
        let baselines = shared.journal.baselines(other.target_id)?;
        if baselines.iter().any(|(_, baseline)| baseline.program.is_some()) {
            return Ok(Some(named(other)));
        }
    }
    // One that has just begun has nothing that was found good yet.
    let under_way = shared.journal.attempts()?.into_iter().find_map(|attempt| {
        let other = check::trusted(&attempt.order).ok()?;
        let is_other = !is_order(&other.environment, &other.target);
        let exchanges = matches!(other.manifest, AnyManifest::AgentHost(_));
        (is_other && exchanges && !attempt.is_over())
            .then(|| format!("{}/{}", other.environment, other.target))
    });
    Ok(under_way)
}
