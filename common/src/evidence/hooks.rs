//! What is stated about the hooks of an attempt.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    digest::Digest,
    hook::{Direction, HookSpec, HookWhen, OnFailure},
    name::ServiceName,
    phases,
};

phases! {
    /// How a run of a hook ended.
    HookResult { Succeeded = "succeeded", Failed = "failed", TimedOut = "timed_out", Interrupted = "interrupted" }
}

/// One run of a hook. A hook that an agent was killed over may have run more than once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct EvidenceHook {
    /// Name of the hook.
    pub hook: ServiceName,
    /// When it runs.
    pub when: HookWhen,
    /// Whether it sent the callers to the new set or back to the old one.
    pub direction: Direction,
    /// Repository of the ordered image, with registry host.
    pub repository: String,
    /// The digest that was ordered, and that its container was made from.
    pub digest: Digest,
    /// How it ended.
    pub result: HookResult,
    /// Its exit code; absent when it never had one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// Whether it said more than its log has room for.
    pub log_truncated: bool,
    /// When it began.
    pub began_at: DateTime<Utc>,
    /// When it ended; absent when nobody saw it end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<DateTime<Utc>>,
}

/// Whether `stated` is only about `ordered` hooks and, after a success, says of each one that it ran as well as it must.
pub(super) fn fit(stated: &[EvidenceHook], ordered: &[HookSpec], succeeded: bool) -> bool {
    let is_of = |run: &EvidenceHook, hook: &HookSpec| {
        run.hook == hook.name
            && run.when == hook.when
            && run.repository == hook.image.repository
            && run.digest == hook.image.digest
    };
    let known = stated
        .iter()
        .all(|run| ordered.iter().any(|hook| is_of(run, hook)));
    let done = ordered.iter().all(|hook| {
        let last = stated
            .iter()
            .rfind(|run| is_of(run, hook) && run.direction == Direction::Forward);
        last.is_some_and(|run| run.result == HookResult::Succeeded || hook.on_failure == OnFailure::Continue)
    });
    known && (done || !succeeded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hook::DEFAULT_TIMEOUT_MS;

    fn hook(on_failure: OnFailure) -> HookSpec {
        serde_json::from_value(serde_json::json!({
            "name": "migrate", "when": "pre_deploy", "timeout_ms": DEFAULT_TIMEOUT_MS, "on_failure": on_failure,
            "image": { "repository": "r.example/tool", "digest": Digest::of(b"tool") },
        }))
        .unwrap()
    }

    fn run(of: &HookSpec, result: HookResult) -> EvidenceHook {
        EvidenceHook {
            hook: of.name.clone(),
            when: of.when,
            direction: Direction::Forward,
            repository: of.image.repository.clone(),
            digest: of.image.digest,
            result,
            exit_code: Some(0),
            log_truncated: false,
            began_at: DateTime::UNIX_EPOCH,
            ended_at: Some(DateTime::UNIX_EPOCH),
        }
    }

    #[test]
    fn t2_a_success_states_that_every_hook_ran_as_well_as_it_must() {
        use HookResult::{Failed, Interrupted, Succeeded};
        let strict = hook(OnFailure::Fail);
        for (runs, fits) in [
            (vec![Succeeded], true),
            (vec![Interrupted, Succeeded], true),
            (vec![Succeeded, Failed], false),
            (vec![Failed], false),
            (vec![], false),
        ] {
            let stated: Vec<_> = runs.iter().map(|result| run(&strict, *result)).collect();
            assert_eq!(
                fit(&stated, std::slice::from_ref(&strict), true),
                fits,
                "{runs:?}"
            );
            assert!(fit(&stated, std::slice::from_ref(&strict), false));
        }
        let lenient = hook(OnFailure::Continue);
        assert!(fit(
            &[run(&lenient, Failed)],
            std::slice::from_ref(&lenient),
            true
        ));
        assert!(!fit(&[], std::slice::from_ref(&lenient), true));
    }

    #[test]
    fn t2_only_ordered_hooks_are_stated() {
        let ordered = hook(OnFailure::Fail);
        let mut other = run(&ordered, HookResult::Succeeded);
        other.digest = Digest::of(b"other");
        assert!(!fit(&[other], std::slice::from_ref(&ordered), false));
        assert!(!fit(&[run(&ordered, HookResult::Succeeded)], &[], true));
    }
}
