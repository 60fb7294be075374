//! What is recorded and what is observed on one target, side by side, and the stickers that its host has reported.

use std::collections::{BTreeMap, BTreeSet};

use sealift_common::{
    any_manifest::Described as _,
    inventory::Target,
    name::{ComponentName, ServiceName},
    observation::{ProjectObservation, TargetObservation},
    role::Role,
    sticker::{Link, Sticker},
};
use sealift_proto::v1::{
    CurrentProject, CurrentService, ReportedSticker as WireSticker, reported_sticker::Link as WireLink,
};
use sealift_store::{Current, ReportedSticker, Tx};

use super::{int32, timestamp};
use crate::{app::resolve_release::release_of, convert::state, names, status::ApiError};

/// Everything recorded or seen on a target, by project, for a caller of that role.
pub async fn projects(
    tx: &mut Tx,
    target: &Target,
    seen: Option<&TargetObservation>,
    viewer: Option<Role>,
) -> Result<Vec<CurrentProject>, ApiError> {
    let current: BTreeMap<String, Current> = tx
        .current(target.id)
        .await?
        .into_iter()
        .map(|current| (current.project.to_string(), current))
        .collect();
    let observed = seen.map(|seen| &seen.projects);
    let names: BTreeSet<&String> = current
        .keys()
        .chain(observed.into_iter().flat_map(|projects| projects.keys()))
        .collect();
    let mut projects = Vec::with_capacity(names.len());
    for name in names {
        let recorded = current.get(name);
        let seen = observed.and_then(|projects| projects.get(name));
        let mut components = BTreeMap::new();
        let mut behind = 0;
        if let Some(recorded) = recorded {
            let release = release_of(tx, target.tenant_id, recorded.release).await?;
            let (environment, since) = (target.environment_id, recorded.since);
            behind = tx
                .releases_since(environment, release.project_id, recorded.release, since)
                .await?;
            components.extend(
                release
                    .components
                    .into_iter()
                    .map(|(service, component)| (service, component.component)),
            );
        }
        projects.push(CurrentProject {
            project: name.clone(),
            recorded: recorded.map(state::recorded),
            sticker: seen.map(|seen| state::sticker(&seen.sticker)),
            services: services(name, recorded, &components, seen, viewer),
            behind: int32(behind),
        });
    }
    Ok(projects)
}

/// One row for each container, and one for each recorded service without any.
fn services(
    project: &str,
    recorded: Option<&Current>,
    components: &BTreeMap<ServiceName, ComponentName>,
    seen: Option<&ProjectObservation>,
    viewer: Option<Role>,
) -> Vec<CurrentService> {
    let wanted = recorded
        .map(|recorded| recorded.recorded.manifest.images())
        .unwrap_or_default();
    let row = |service: &str, observed| {
        let image = wanted
            .iter()
            .find(|(name, _)| name.as_str() == service)
            .map(|(_, image)| image);
        CurrentService {
            service: service.to_owned(),
            component: components
                .get(service)
                .map(names::of_component)
                .unwrap_or_default(),
            recorded_digest: image.map(|image| image.digest.to_string()).unwrap_or_default(),
            observed,
        }
    };
    let mut rows: Vec<_> = seen
        .map(|seen| state::services(project, seen, viewer))
        .unwrap_or_default()
        .into_iter()
        .map(|observed| row(&observed.service.clone(), Some(observed)))
        .collect();
    let missing: Vec<_> = wanted
        .keys()
        .filter(|service| rows.iter().all(|row| row.service != service.as_str()))
        .map(|service| row(service.as_str(), None))
        .collect();
    rows.extend(missing);
    rows.sort_by(|a, b| a.service.cmp(&b.service));
    rows
}

/// A reported sticker, checked against the one before it.
pub fn sticker(reported: &ReportedSticker) -> WireSticker {
    let link = match Link::of(reported.previous, reported.older) {
        Link::First => WireLink::First,
        Link::Linked => WireLink::Linked,
        Link::Broken => WireLink::Broken,
    };
    let read = Sticker::from_file(&reported.content).ok();
    let digest = read.as_ref().and_then(|sticker| sticker.digest().ok());
    let named = read.as_ref().map(|sticker| &sticker.release);
    WireSticker {
        digest: reported.digest.to_string(),
        previous: reported
            .previous
            .map(|digest| digest.to_string())
            .unwrap_or_default(),
        link: link.into(),
        // Its own bytes have to give the digest under which it is kept.
        intact: digest == Some(reported.digest),
        release_display: named
            .map(|release| state::release_display(&release.project, release.number))
            .unwrap_or_default(),
        job: names::of_job(reported.job),
        task: names::of_task(reported.job, reported.task),
        write_time: read.and_then(|sticker| timestamp(sticker.written_at)),
        report_time: timestamp(reported.reported_at),
    }
}
