//! Order: what an agent is told to do. Signed by the orchestrator, addressed to one target, numbered by a fencing token.
//!
//! On the wire an order is a DSSE envelope whose payload is the canonical JSON of [`Order`]. [`Order::check`] holds every check
//! that needs no key; the signature is checked before the payload is even parsed (see [`crate::dsse`]).

use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

use crate::{
    any_manifest::{AnyManifest, Described},
    canonical::{self, CanonicalError, decimal},
    digest::Digest,
    dsse::{self, DsseError, Envelope},
    id::{AgentId, JobId, PromotionId, ReleaseId, TargetId, TaskId},
    keys::{PublicKey, SigningKey},
    name::{Name, ProjectRef},
    strategy::Limits,
    swap::Swap,
    variables::Variables,
};

/// DSSE payload type of an order.
pub const ORDER_PAYLOAD_TYPE: &str = "application/vnd.sealift.order.v1+json";

/// How far the clocks of orchestrator and host may differ before an order counts as not yet valid or expired.
pub const CLOCK_TOLERANCE: TimeDelta = TimeDelta::seconds(30);

/// A number that only grows, per target. An agent refuses any order that is not above the highest it has seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fence(#[serde(with = "decimal")] pub u64);

impl std::fmt::Display for Fence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

/// Which release an order, a sticker or a packet is about.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ReleaseRef {
    /// Identifier.
    pub id: ReleaseId,
    /// The project that it belongs to. Releases of different projects live side by side on a target.
    pub project: ProjectRef,
    /// The commit that it was made from.
    pub commit: String,
    /// Its number in the project.
    #[serde(with = "decimal")]
    pub number: u64,
    /// Digest of its canonical manifest.
    pub content: Digest,
}

impl std::fmt::Display for ReleaseRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}#{}", self.project, self.number)
    }
}

/// Who decided, so that evidence can name it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DecisionRef {
    /// The promotion.
    pub promotion: PromotionId,
    /// Digest of the decision record's canonical bytes.
    pub record: Digest,
    /// Digest of the plan that was decided on.
    pub plan: Digest,
    /// Who asked for it.
    pub requested_by: String,
}

/// Digest over all that a set on a host is made from: the release's content and the variables of the environment. An order, its
/// sticker and its packet name it, so that parts of two orders are never taken for one.
pub fn inputs(content: Digest, variables: &Variables) -> Result<Digest, CanonicalError> {
    canonical::digest(&(content, variables))
}

/// What an agent is told to do: run this manifest on this target. Who carries it out narrows it to the kind that he knows
/// ([`Order::narrow`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Order<M = AnyManifest> {
    /// Tenant of the target.
    pub tenant: Name,
    /// Environment of the target.
    pub environment: Name,
    /// Name of the target, for people.
    pub target: Name,
    /// The agent that it is addressed to.
    pub agent_id: AgentId,
    /// The target that it is addressed to.
    pub target_id: TargetId,
    /// The job.
    pub job_id: JobId,
    /// The task.
    pub task_id: TaskId,
    /// Which attempt of the task; counts from 1.
    pub attempt: u32,
    /// Ordinal of the wave; counts from 0.
    pub wave: u32,
    /// The fencing token.
    pub fence: Fence,
    /// Not to be acted on before.
    pub not_before: DateTime<Utc>,
    /// Not to be begun after.
    pub expires_at: DateTime<Utc>,
    /// Who decided.
    pub decision: DecisionRef,
    /// The release.
    pub release: ReleaseRef,
    /// What to run.
    pub manifest: M,
    /// What Compose fills in; nothing for other kinds of targets.
    #[serde(default, skip_serializing_if = "Variables::is_empty")]
    pub variables: Variables,
    /// [`inputs`] of content and variables.
    pub inputs: Digest,
    /// Limits while doing so.
    pub limits: Limits,
    /// How the set before gives way.
    #[serde(default, skip_serializing_if = "Swap::is_in_place")]
    pub swap: Swap,
}

/// Why an order is refused, although its signature verifies.
#[derive(Debug, thiserror::Error)]
pub enum OrderRefusal {
    /// Addressed to another agent.
    #[error("the order is addressed to agent {0}")]
    OtherAgent(AgentId),
    /// Addressed to a target that this agent does not serve.
    #[error("the order is addressed to target {0}, which this agent does not serve")]
    OtherTarget(TargetId),
    /// Tenant or environment differ from what the agent was enrolled for.
    #[error("the order is for {tenant}/{environment}, the target was enrolled for another place")]
    OtherPlace {
        /// Tenant of the order.
        tenant: Name,
        /// Environment of the order.
        environment: Name,
    },
    /// Not valid yet.
    #[error("the order is not valid before {0}; check the clocks of host and orchestrator")]
    NotYet(DateTime<Utc>),
    /// No longer valid.
    #[error("the order expired at {0}")]
    Expired(DateTime<Utc>),
    /// Not above the highest fencing token seen.
    #[error("the order's fencing token {given} is not above {highest}, the highest seen")]
    Stale {
        /// Token of the order.
        given: Fence,
        /// Highest seen on this target.
        highest: Fence,
    },
    /// The manifest is not the one that the release digest names.
    #[error("the manifest has digest {actual}, the release says {stated}")]
    OtherManifest {
        /// What the release says.
        stated: Digest,
        /// What the manifest has.
        actual: Digest,
    },
    /// The variables are not the ones that were decided on.
    #[error("content and variables have digest {actual}, the order says {stated}")]
    OtherInputs {
        /// What the order says.
        stated: Digest,
        /// What they have.
        actual: Digest,
    },
    /// The limits do not fit together.
    #[error("the order's limits do not fit")]
    Limits(#[source] crate::strategy::InvalidLimit),
    /// The manifest has no canonical form.
    #[error("the manifest cannot be hashed")]
    Canonical(#[source] CanonicalError),
}

/// What the agent knows when it checks an order.
#[derive(Debug, Clone)]
pub struct OrderContext<'a> {
    /// Who it is.
    pub agent_id: AgentId,
    /// The targets that it serves, as bound at enrolment.
    pub target: Option<&'a TargetBinding>,
    /// Highest fencing token seen on the order's target.
    pub highest: Fence,
    /// The present.
    pub now: DateTime<Utc>,
}

/// A target that an agent was enrolled for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetBinding {
    /// Tenant.
    pub tenant: Name,
    /// Environment.
    pub environment: Name,
    /// Name of the target.
    pub target: Name,
    /// Identifier of the target.
    pub target_id: TargetId,
}

impl<M> Order<M> {
    /// The same order over what `narrow` makes of its manifest; `None` when it makes nothing of it.
    pub fn narrow<N>(self, narrow: impl FnOnce(M) -> Option<N>) -> Option<Order<N>> {
        Some(Order {
            tenant: self.tenant,
            environment: self.environment,
            target: self.target,
            agent_id: self.agent_id,
            target_id: self.target_id,
            job_id: self.job_id,
            task_id: self.task_id,
            attempt: self.attempt,
            wave: self.wave,
            fence: self.fence,
            not_before: self.not_before,
            expires_at: self.expires_at,
            decision: self.decision,
            release: self.release,
            manifest: narrow(self.manifest)?,
            variables: self.variables,
            inputs: self.inputs,
            limits: self.limits,
            swap: self.swap,
        })
    }
}

impl<M: Described> Order<M> {
    /// Every check after the signature, in the order of the trust page (1.2): address, time, fence, release, limits.
    pub fn check(&self, context: &OrderContext<'_>) -> Result<(), OrderRefusal> {
        if self.agent_id != context.agent_id {
            return Err(OrderRefusal::OtherAgent(self.agent_id));
        }
        let Some(target) = context.target.filter(|target| target.target_id == self.target_id) else {
            return Err(OrderRefusal::OtherTarget(self.target_id));
        };
        if target.tenant != self.tenant || target.environment != self.environment {
            return Err(OrderRefusal::OtherPlace {
                tenant: self.tenant.clone(),
                environment: self.environment.clone(),
            });
        }
        if context.now + CLOCK_TOLERANCE < self.not_before {
            return Err(OrderRefusal::NotYet(self.not_before));
        }
        if context.now - CLOCK_TOLERANCE > self.expires_at {
            return Err(OrderRefusal::Expired(self.expires_at));
        }
        if self.fence <= context.highest {
            return Err(OrderRefusal::Stale {
                given: self.fence,
                highest: context.highest,
            });
        }
        let actual = self.manifest.content_digest().map_err(OrderRefusal::Canonical)?;
        if actual != self.release.content {
            return Err(OrderRefusal::OtherManifest {
                stated: self.release.content,
                actual,
            });
        }
        let actual = inputs(actual, &self.variables).map_err(OrderRefusal::Canonical)?;
        if actual != self.inputs {
            return Err(OrderRefusal::OtherInputs {
                stated: self.inputs,
                actual,
            });
        }
        self.limits.check().map_err(OrderRefusal::Limits)
    }
}

/// Why bytes are not an order of this orchestrator.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// The envelope is malformed, or no trusted key made a good signature.
    #[error("the order's envelope is refused")]
    Envelope(#[source] DsseError),
    /// There is no key to verify with.
    #[error("no order key is known to verify with")]
    NoKey,
    /// Properly signed, but not the canonical form of an order.
    #[error("the order is malformed")]
    Malformed(#[source] CanonicalError),
}

/// Signs an order: the bytes of its envelope, as they go to the agent and as evidence names them by digest.
pub fn sign_order<M: Serialize>(order: &Order<M>, key: &SigningKey) -> Result<Vec<u8>, OrderError> {
    let payload = canonical::to_vec(order).map_err(OrderError::Malformed)?;
    dsse::sign(ORDER_PAYLOAD_TYPE, payload, &[key])
        .and_then(|envelope| envelope.to_json())
        .map_err(OrderError::Envelope)
}

/// Opens an order: size, envelope, signature by one of `keys` over the raw bytes, and only then the payload, strictly.
/// What is left to check is [`Order::check`].
pub fn open_order(bytes: &[u8], keys: &[PublicKey]) -> Result<Order, OrderError> {
    let envelope = Envelope::from_json(bytes).map_err(OrderError::Envelope)?;
    let mut refusal = OrderError::NoKey;
    for key in keys {
        match envelope.verify(ORDER_PAYLOAD_TYPE, key) {
            Ok(payload) => return canonical::from_slice(payload).map_err(OrderError::Malformed),
            // A signature that does not verify says more than one that is not there.
            Err(error @ DsseError::NotSigned(_)) if matches!(refusal, OrderError::NoKey) => {
                refusal = OrderError::Envelope(error);
            }
            Err(DsseError::NotSigned(_)) => {}
            Err(error) => refusal = OrderError::Envelope(error),
        }
    }
    Err(refusal)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::manifest::Manifest;

    fn order() -> Order {
        let now = DateTime::from_timestamp(1_800_000_000, 0).unwrap();
        let manifest = AnyManifest::from(Manifest::default());
        let content = manifest.content_digest().unwrap();
        Order {
            tenant: "acme".parse().unwrap(),
            environment: "prod".parse().unwrap(),
            target: "web-1".parse().unwrap(),
            agent_id: AgentId::new(now),
            target_id: TargetId::new(now),
            job_id: JobId::new(now),
            task_id: TaskId::new(now),
            attempt: 1,
            wave: 0,
            fence: Fence(7),
            not_before: now,
            expires_at: now + TimeDelta::minutes(10),
            decision: DecisionRef {
                promotion: PromotionId::new(now),
                record: Digest::of(b"record"),
                plan: Digest::of(b"plan"),
                requested_by: "alice".into(),
            },
            release: ReleaseRef {
                id: ReleaseId::new(now),
                project: "github.com/acme/shop/api".parse().unwrap(),
                commit: "0".repeat(40),
                number: 1,
                content,
            },
            manifest,
            variables: Variables::default(),
            inputs: inputs(content, &Variables::default()).unwrap(),
            limits: Limits::default(),
            swap: Swap::default(),
        }
    }

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_seed(&[seed; 32])
    }

    #[test]
    fn a_signed_order_opens_under_its_key_and_no_other() {
        let order = order();
        let bytes = sign_order(&order, &key(1)).unwrap();
        assert_eq!(
            open_order(&bytes, &[key(2).public(), key(1).public()]).unwrap(),
            order
        );
        assert!(matches!(
            open_order(&bytes, &[key(2).public()]),
            Err(OrderError::Envelope(DsseError::NotSigned(_)))
        ));
        assert!(matches!(open_order(&bytes, &[]), Err(OrderError::NoKey)));
    }

    #[test]
    fn t4_an_order_with_one_byte_changed_is_refused() {
        let bytes = sign_order(&order(), &key(1)).unwrap();
        for position in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[position] ^= 1;
            assert!(open_order(&bad, &[key(1).public()]).is_err(), "{position}");
        }
    }

    #[test]
    fn t12_parts_of_two_orders_make_no_order() {
        let order = order();
        let target = TargetBinding {
            tenant: order.tenant.clone(),
            environment: order.environment.clone(),
            target: order.target.clone(),
            target_id: order.target_id,
        };
        let context = OrderContext {
            agent_id: order.agent_id,
            target: Some(&target),
            highest: Fence(1),
            now: order.not_before,
        };
        order.check(&context).unwrap();
        let mut other = order.clone();
        other.variables = Variables::try_from(std::collections::BTreeMap::from([(
            "A".to_owned(),
            "1".to_owned(),
        )]))
        .unwrap();
        assert!(matches!(
            other.check(&context),
            Err(OrderRefusal::OtherInputs { .. })
        ));
        let mut other = order;
        other.release.content = Digest::of(b"another");
        assert!(matches!(
            other.check(&context),
            Err(OrderRefusal::OtherManifest { .. })
        ));
    }

    #[test]
    fn t11_a_payload_of_another_type_is_no_order() {
        let payload = canonical::to_vec(&order()).unwrap();
        let bytes = dsse::sign("application/json", payload, &[&key(1)])
            .unwrap()
            .to_json()
            .unwrap();
        assert!(matches!(
            open_order(&bytes, &[key(1).public()]),
            Err(OrderError::Envelope(DsseError::PayloadType { .. }))
        ));
    }

    #[test]
    fn t4_a_loose_order_is_refused_although_signed() {
        let text = String::from_utf8(canonical::to_vec(&order()).unwrap()).unwrap();
        for bad in [
            text.replacen('{', "{\"attempt\":2,", 1),
            text.replacen('{', "{\"zzz\":2,", 1),
            format!("{text} "),
        ] {
            let envelope = dsse::sign(ORDER_PAYLOAD_TYPE, bad.into_bytes(), &[&key(1)]).unwrap();
            assert!(matches!(
                open_order(&envelope.to_json().unwrap(), &[key(1).public()]),
                Err(OrderError::Malformed(_))
            ));
        }
    }
}
