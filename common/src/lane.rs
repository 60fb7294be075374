//! Lane: what an environment does with promotions that would have to wait. Pure decisions; the queue itself is in the store.

use crate::{id::TargetId, phases, promotion::PromotionKind};

phases! {
    /// What becomes of a promotion that would have to wait in its lane. Rollbacks wait whatever it says: going back must always be
    /// possible.
    LanePolicy { Queue = "queue", Reject = "reject", Supersede = "supersede" }
}

impl Default for LanePolicy {
    /// It waits for its turn.
    fn default() -> Self {
        Self::Queue
    }
}

impl LanePolicy {
    /// Whether it is the usual one.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A promotion that waits or would have to, as far as this matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiter<'a> {
    /// What it is for.
    pub kind: PromotionKind,
    /// Only these targets; `None` is all of the environment.
    pub scope: Option<&'a [TargetId]>,
}

/// Whether `newer` takes the place of `older`, which waits for a release of the same project. Only where it brings something to
/// every target that the older one was for: what is not replaced must not get lost.
pub fn replaces(policy: LanePolicy, newer: Waiter<'_>, older: Waiter<'_>) -> bool {
    let both_deploy = newer.kind == PromotionKind::Deploy && older.kind == PromotionKind::Deploy;
    let covers = match (newer.scope, older.scope) {
        (None, _) => true,
        (Some(_), None) => false,
        (Some(newer), Some(older)) => older.iter().all(|target| newer.contains(target)),
    };
    policy == LanePolicy::Supersede && both_deploy && covers
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every policy with every pair: only what loses no target is replaced, and no rollback ever is, nor does one replace.
    #[test]
    fn only_what_loses_nothing_is_replaced_and_never_a_rollback() {
        let targets: Vec<TargetId> = (1..=3)
            .map(|n| TargetId::from(uuid::Uuid::from_u128(n)))
            .collect();
        let scopes: [Option<&[TargetId]>; 4] = [
            None,
            Some(&targets[..1]),
            Some(&targets[..2]),
            Some(&targets[2..]),
        ];
        let all = |scope: Option<&[TargetId]>| scope.map_or_else(|| targets.clone(), <[_]>::to_vec);
        for policy in LanePolicy::ALL {
            for newer_kind in PromotionKind::ALL {
                for older_kind in PromotionKind::ALL {
                    for newer in scopes {
                        for older in scopes {
                            let deploys = [*newer_kind, *older_kind] == [PromotionKind::Deploy; 2];
                            // A new target of the environment belongs to a promotion of the whole only.
                            let whole = newer.is_none() || older.is_some();
                            let nothing_lost = all(older).iter().all(|target| all(newer).contains(target));
                            let wanted = *policy == LanePolicy::Supersede && deploys && whole && nothing_lost;
                            let (newer, older) = (
                                Waiter {
                                    kind: *newer_kind,
                                    scope: newer,
                                },
                                Waiter {
                                    kind: *older_kind,
                                    scope: older,
                                },
                            );
                            assert_eq!(
                                replaces(*policy, newer, older),
                                wanted,
                                "{policy} {newer:?} {older:?}"
                            );
                        }
                    }
                }
            }
        }
    }
}
