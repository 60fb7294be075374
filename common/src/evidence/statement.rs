//! The in-toto Statement v1 around the predicate, and the rules that tie subjects and result together.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::predicate::{EvidenceResult, Predicate};
use crate::{
    digest::{Digest, InvalidDigest},
    manifest::PinnedImage,
    observation::ContainerHealth,
    phases,
    spiffe::{Principal, SpiffeId},
};

/// `_type` of an in-toto Statement v1.
pub const STATEMENT_TYPE: &str = "https://in-toto.io/Statement/v1";

/// `predicateType` of a deployment packet.
pub const PREDICATE_TYPE: &str = "https://sealift.dev/evidence/deployment/v1";

phases! {
    /// The type of a statement.
    StatementType { V1 = "https://in-toto.io/Statement/v1" }
}
phases! {
    /// The type of a predicate.
    PredicateType { DeploymentV1 = "https://sealift.dev/evidence/deployment/v1" }
}

/// The digests of a subject; in-toto's digest set, of which this uses one member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SubjectDigest {
    /// 64 lower-case hex digits, without prefix.
    pub sha256: String,
}

/// What a statement is about.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Subject {
    /// Repository of an image, or `release:<repository>/<project>#<number>`.
    pub name: String,
    /// Its digest.
    pub digest: SubjectDigest,
}

impl Subject {
    fn new(name: impl Into<String>, digest: Digest) -> Self {
        Self {
            name: name.into(),
            digest: SubjectDigest {
                sha256: digest.to_hex(),
            },
        }
    }

    /// The digest.
    pub fn digest(&self) -> Result<Digest, InvalidDigest> {
        Digest::from_hex(&self.digest.sha256)
    }
}

/// What an agent states about one attempt.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Statement {
    #[serde(rename = "_type")]
    kind: StatementType,
    /// What runs after the attempt. Sorted, each once; never empty.
    pub subject: Vec<Subject>,
    predicate_type: PredicateType,
    /// What was done.
    pub predicate: Predicate,
}

/// A statement that contradicts itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Inconsistent {
    /// No subject, a repeated one, or one whose digest is none.
    #[error("the subjects are empty, repeated, unsorted or malformed")]
    Subjects,
    /// A success whose subjects are not exactly the ordered images.
    #[error("the attempt succeeded, but the subjects are not exactly the ordered images")]
    SubjectsOfSuccess,
    /// A subject that neither runs according to the predicate nor ran before.
    #[error("the subject {0:?} is neither an observed nor a previous image")]
    SubjectUnknown(String),
    /// A success with a service that does not run what was ordered.
    #[error("the attempt succeeded, but service {0} does not run the ordered digest")]
    ServiceNotAsOrdered(String),
    /// A success with a failure, or a failure without one.
    #[error("the result {0} and the failure do not fit together")]
    Failure(EvidenceResult),
    /// The agent named in detail is not the agent named.
    #[error("the agent's identity {0} is not that of the agent and tenant that the statement names")]
    Agent(SpiffeId),
}

impl Statement {
    /// The statement about an attempt after which `running` runs.
    pub fn new<'a>(predicate: Predicate, running: impl IntoIterator<Item = &'a PinnedImage>) -> Self {
        let mut subject: BTreeSet<Subject> = running
            .into_iter()
            .map(|image| Subject::new(image.repository.clone(), image.digest))
            .collect();
        if subject.is_empty() {
            subject.insert(Self::release_subject(&predicate));
        }
        Self {
            kind: StatementType::V1,
            subject: subject.into_iter().collect(),
            predicate_type: PredicateType::DeploymentV1,
            predicate,
        }
    }

    fn release_subject(predicate: &Predicate) -> Subject {
        let release = &predicate.release;
        Subject::new(
            format!(
                "release:{}/{}#{}",
                release.repository, release.project, release.number
            ),
            release.content,
        )
    }

    /// Whether the statement agrees with itself: result, failure, services, subjects and the agent's identity.
    pub fn check(&self) -> Result<(), Inconsistent> {
        let predicate = &self.predicate;
        let spiffe = &predicate.agent.spiffe_id;
        if spiffe.tenant != predicate.tenant || spiffe.principal != Principal::Agent(predicate.agent_id) {
            return Err(Inconsistent::Agent(spiffe.clone()));
        }
        let fits = match predicate.result {
            EvidenceResult::Succeeded => predicate.failure.is_none(),
            EvidenceResult::Failed | EvidenceResult::Refused => predicate.failure.is_some(),
            EvidenceResult::Cancelled => true,
        };
        if !fits {
            return Err(Inconsistent::Failure(predicate.result));
        }
        let ascending = self.subject.windows(2).all(|pair| pair[0] < pair[1]);
        if self.subject.is_empty() || !ascending || self.subject.iter().any(|one| one.digest().is_err()) {
            return Err(Inconsistent::Subjects);
        }
        if predicate.result == EvidenceResult::Succeeded {
            self.check_success()
        } else {
            self.check_rest()
        }
    }

    fn check_success(&self) -> Result<(), Inconsistent> {
        let mut wanted = BTreeSet::new();
        for service in &self.predicate.services {
            let runs = service
                .observed
                .as_ref()
                .is_some_and(|observed| observed.digest == service.ordered_digest);
            if !runs || service.health == ContainerHealth::Unhealthy {
                return Err(Inconsistent::ServiceNotAsOrdered(service.service.to_string()));
            }
            wanted.insert(Subject::new(service.repository.clone(), service.ordered_digest));
        }
        if self.subject.iter().eq(&wanted) {
            Ok(())
        } else {
            Err(Inconsistent::SubjectsOfSuccess)
        }
    }

    fn check_rest(&self) -> Result<(), Inconsistent> {
        if self.subject == [Self::release_subject(&self.predicate)] {
            return Ok(());
        }
        let observed = self
            .predicate
            .services
            .iter()
            .filter_map(|service| service.observed.as_ref());
        let known: BTreeSet<String> = observed
            .map(|observed| observed.digest)
            .chain(self.predicate.previous.values().copied())
            .map(Digest::to_hex)
            .collect();
        self.subject
            .iter()
            .find(|subject| !known.contains(&subject.digest.sha256))
            .map_or(Ok(()), |subject| {
                Err(Inconsistent::SubjectUnknown(subject.name.clone()))
            })
    }
}
