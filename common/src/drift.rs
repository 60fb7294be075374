//! Drift: disagreement between what is recorded, what the sticker says and what really runs (three-way comparison).

use serde::{Deserialize, Serialize};

use crate::{
    any_manifest::{AnyManifest, Described},
    compose_manifest::Lifetime,
    digest::Digest,
    inventory::EnvironmentClass,
    name::ServiceName,
    observation::{
        ContainerObservation, ContainerState, EngineAction, EngineEvent, ProjectObservation,
        StickerObservation,
    },
    order::Fence,
    phases,
};

phases! {
    /// What kind of disagreement.
    DriftKind {
        Image = "image", Config = "config", Missing = "missing", Stopped = "stopped", Extra = "extra",
        StickerEdited = "sticker_edited", StickerMissing = "sticker_missing",
    }
}

phases! {
    /// How soon somebody should look, from low to high.
    Severity { Low = "low", Medium = "medium", High = "high", Critical = "critical" }
}

/// How severe a kind of drift is in an environment of a class (printed in `docs/drift-severity.md`). What runs something else
/// than was decided, or hides what runs, is critical everywhere; all else is one step worse in production.
pub const fn severity(kind: DriftKind, class: EnvironmentClass) -> Severity {
    use DriftKind::{Config, Extra, Image, Missing, StickerEdited, StickerMissing, Stopped};
    match (kind, class) {
        (Image | StickerEdited, _) | (Missing | Stopped, EnvironmentClass::Production) => Severity::Critical,
        (Missing | Stopped, EnvironmentClass::NonProduction)
        | (Config | StickerMissing, EnvironmentClass::Production) => Severity::High,
        (Config | StickerMissing, EnvironmentClass::NonProduction)
        | (Extra, EnvironmentClass::Production) => Severity::Medium,
        (Extra, EnvironmentClass::NonProduction) => Severity::Low,
    }
}

/// How severe it is at least once remediation could not put it right: somebody has to look.
pub fn after_giving_up(severity: Severity) -> Severity {
    severity.max(Severity::High)
}

/// The event of the engine that best explains a finding: of the most telling action, the newest.
pub fn cause<'a>(finding: &Finding, project: &str, events: &'a [EngineEvent]) -> Option<&'a EngineEvent> {
    use EngineAction::{Create, Destroy, Die, Oom, Pause, Rename, Start, Stop, Unpause, Update};
    let telling: &[EngineAction] = match finding.kind {
        DriftKind::Image => &[Create, Start],
        DriftKind::Config => &[Update, Rename, Create, Start],
        DriftKind::Missing => &[Destroy],
        DriftKind::Stopped => &[Oom, Stop, Pause, Die],
        DriftKind::Extra => &[Create, Start, Unpause],
        // Engines see no files.
        DriftKind::StickerEdited | DriftKind::StickerMissing => &[],
    };
    telling.iter().find_map(|action| {
        events
            .iter()
            .filter(|event| event.action == *action && event.project == project)
            .filter(|event| Some(&event.service) == finding.service.as_ref())
            .max_by_key(|event| event.at)
    })
}

/// What whoever asks is told of the container that a finding is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AboutContainer<'a> {
    /// There is none, or nobody knows which.
    Unknown,
    /// There is one, and the caller's role does not get to see which.
    Hidden,
    /// Its identifier at the engine.
    Known(&'a str),
}

/// What is known when somebody asks what to do about a drift observation.
#[derive(Debug, Clone)]
pub struct NextSteps<'a> {
    /// What disagrees.
    pub kind: DriftKind,
    /// Identifier of the observation.
    pub id: &'a str,
    /// Environment.
    pub environment: &'a str,
    /// Target.
    pub target: &'a str,
    /// What was recorded, as `project#number`; `None` when nothing was.
    pub release: Option<&'a str>,
    /// The job that had brought it.
    pub job: Option<String>,
    /// The container that it is about.
    pub container: AboutContainer<'a>,
    /// It is gone again.
    pub resolved: bool,
    /// Somebody looks after it.
    pub owned: bool,
    /// Nobody can say how the host is now.
    pub silent: bool,
    /// The last promotion that was to put it right; `None` when there was none.
    pub last_try: Option<String>,
}

impl NextSteps<'_> {
    /// Commands, each with what it is for, the most useful first.
    pub fn list(&self) -> Vec<(String, &'static str)> {
        let (environment, target) = (self.environment, self.target);
        let mut steps = Vec::new();
        if self.resolved {
            if let Some(job) = &self.job {
                steps.push((format!("sealift job get {job}"), "see what had been deployed"));
            }
            steps.push((
                format!("sealift drift list {environment}/{target} --all"),
                "see whether it keeps coming back",
            ));
            return steps;
        }
        if self.silent {
            steps.push((
                format!("sealift target get {environment}/{target}"),
                "see since when the agent is silent: nothing here is newer than that",
            ));
        }
        if let Some(promotion) = &self.last_try {
            steps.push((
                format!("sealift promotion get {promotion}"),
                "see what became of the last attempt to put it right",
            ));
        }
        match (self.kind, self.release) {
            (DriftKind::Extra, _) | (_, None) => match self.container {
                AboutContainer::Unknown if self.silent => {}
                AboutContainer::Unknown => steps.push((
                    format!("sealift target get {environment}/{target}"),
                    "see what its agent finds there",
                )),
                AboutContainer::Hidden => steps.push((
                    format!("sealift drift explain {}", self.id),
                    "as an admin: only admins are told which container it is",
                )),
                AboutContainer::Known(container) => {
                    let short: String = container.chars().take(12).collect();
                    steps.push((
                        format!("docker inspect {short}"),
                        "on the host: see what it is before anybody removes it",
                    ));
                }
            },
            (_, Some(release)) => {
                steps.push((
                    format!("sealift promote {release} --to {environment} --plan"),
                    "see what putting the recorded release back would change",
                ));
                steps.push((
                    format!("sealift promote {release} --to {environment} --wait"),
                    "put the recorded release back, with proof",
                ));
            }
        }
        if matches!(self.kind, DriftKind::StickerEdited | DriftKind::StickerMissing) {
            steps.push((
                format!("sealift target stickers {environment}/{target}"),
                "compare with the stickers that were reported",
            ));
        }
        if !self.owned {
            steps.push((
                format!("sealift drift acknowledge {} --note WHY", self.id),
                "tell others that you look after it",
            ));
        }
        steps
    }
}

/// What is recorded for one project on one target: the last success that was to activate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// Fencing token of the order that put it there.
    pub fence: Fence,
    /// What should run.
    pub manifest: AnyManifest,
    /// Digest over content and variables of that order.
    pub inputs: Digest,
    /// Digest of the sticker that was reported with it.
    pub sticker: Digest,
}

/// One disagreement. Its identity on a target is (project, service, kind).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Finding {
    /// What kind.
    pub kind: DriftKind,
    /// Which service; `None` when it is about the sticker.
    pub service: Option<ServiceName>,
    /// What should be, for people.
    pub expected: String,
    /// What is, for people.
    pub actual: String,
}

/// Compares what is recorded (`None`: nothing should run) with what an agent saw. Sorted, without duplicates.
pub fn compare(recorded: Option<&Recorded>, seen: &ProjectObservation) -> Vec<Finding> {
    let mut findings = Vec::new();
    if let Some(recorded) = recorded {
        findings.extend(sticker(recorded, &seen.sticker));
        for (name, image) in recorded.manifest.images() {
            let mut own: Vec<_> = seen
                .containers
                .iter()
                .filter(|container| container.service == *name && container.fence == recorded.fence)
                .collect();
            // The one that serves is judged, whatever order the engine lists them in; others that run are too many.
            own.sort_by_key(|container| (rank(container.state), *container));
            findings.extend(
                own.iter()
                    .skip(1)
                    .filter(|container| is_up(container))
                    .map(|container| extra(container)),
            );
            let config = recorded.manifest.config_of(name).ok().flatten();
            let lasting = recorded.manifest.lifetime_of(name) == Lifetime::Lasting;
            findings.extend(service(name, image.digest, config, lasting, &own));
        }
    }
    findings.extend(
        seen.containers
            .iter()
            .filter(|container| is_extra(recorded, container))
            .map(extra),
    );
    findings.sort();
    findings.dedup_by(|a, b| (a.kind, &a.service) == (b.kind, &b.service));
    findings
}

fn sticker(recorded: &Recorded, seen: &StickerObservation) -> Option<Finding> {
    let finding = |kind, actual| {
        Some(Finding {
            kind,
            service: None,
            expected: format!("sticker {}", recorded.sticker),
            actual,
        })
    };
    match seen {
        StickerObservation::Missing => finding(DriftKind::StickerMissing, "no sticker".to_owned()),
        StickerObservation::Unreadable { digest } => finding(
            DriftKind::StickerEdited,
            format!("a file that is no sticker, {digest}"),
        ),
        StickerObservation::Present { digest, .. } if *digest != recorded.sticker => {
            finding(DriftKind::StickerEdited, format!("sticker {digest}"))
        }
        StickerObservation::Present { .. } => None,
    }
}

fn service(
    name: &ServiceName,
    image: Digest,
    config: Option<Digest>,
    lasting: bool,
    containers: &[&ContainerObservation],
) -> Vec<Finding> {
    let finding = |kind, expected: String, actual: String| Finding {
        kind,
        service: Some(name.clone()),
        expected,
        actual,
    };
    let Some(container) = containers.first() else {
        // What has done its work may be gone.
        if !lasting {
            return Vec::new();
        }
        return vec![finding(
            DriftKind::Missing,
            format!("a container of {image}"),
            "no container".to_owned(),
        )];
    };
    let mut findings = Vec::new();
    if lasting && !matches!(container.state, ContainerState::Running) {
        findings.push(finding(
            DriftKind::Stopped,
            "running".to_owned(),
            container.state.to_string(),
        ));
    }
    // An engine that knows no registry digest for the image (any more) cannot contradict the record.
    if container.digest.is_some_and(|digest| digest != image) {
        let actual = container
            .digest
            .map_or_else(String::new, |digest| digest.to_string());
        findings.push(finding(DriftKind::Image, image.to_string(), actual));
    }
    if container.config != config || !container.unchanged {
        let expected = config.map_or_else(String::new, |digest| format!("description {digest}"));
        let actual = if container.unchanged {
            "another description"
        } else {
            "changed on the host since it was deployed"
        };
        findings.push(finding(DriftKind::Config, expected, actual.to_owned()));
    }
    findings
}

fn is_up(container: &ContainerObservation) -> bool {
    rank(container.state) < 2
}

/// 0 runs, 1 holds on to its resources, 2 is down.
fn rank(state: ContainerState) -> u8 {
    match state {
        ContainerState::Running => 0,
        ContainerState::Restarting | ContainerState::Paused => 1,
        _ => 2,
    }
}

fn is_extra(recorded: Option<&Recorded>, container: &ContainerObservation) -> bool {
    let wanted = recorded.is_some_and(|recorded| {
        recorded.fence == container.fence && recorded.manifest.images().contains_key(&container.service)
    });
    is_up(container) && !wanted
}

fn extra(container: &ContainerObservation) -> Finding {
    Finding {
        kind: DriftKind::Extra,
        service: Some(container.service.clone()),
        expected: "nothing".to_owned(),
        // Which one is told by the reference to it, to those who may know.
        actual: format!("a container of order {}", container.fence),
    }
}
