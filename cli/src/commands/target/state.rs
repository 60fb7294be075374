//! What is recorded and what runs on one target, and its stickers.

use sealift_proto::v1::{
    CurrentProject, ListStickersRequest, ListStickersResponse, ReportedSticker, Target,
    reported_sticker::Link, target_service_client::TargetServiceClient,
};
use tonic::transport::Channel;

use super::{get, rows};
use crate::{
    args::{Global, ListArgs},
    client::{target_name, unary},
    commands::drift,
    error::{CliError, Exit},
    list::{self, Page as _},
    output::{
        self, Format, Rows,
        parts::Document,
        text::{age, clean, external, leaf, or_dash, short_digest, stamp},
    },
};

/// Stickers of a project that are shown with its target.
const STICKERS_SHOWN: u32 = 3;

/// `sealift target get`
pub async fn show(
    global: &Global,
    client: &mut TargetServiceClient<Channel>,
    name: &str,
) -> Result<Exit, CliError> {
    let target = get(client, name).await?;
    output::write(global.output, &target, || rows(std::slice::from_ref(&target)))?;
    if global.output != Format::Table {
        return Ok(Exit::Done);
    }
    output::line(&format!("\n{}", word(&target)))?;
    for project in &target.current {
        output::line("")?;
        for line in head(project, target.silent) {
            output::line(&line)?;
        }
        output::write(global.output, &target, || services(project))?;
        if project.recorded.is_some() {
            let page = read(client, &target.name, &project.project, STICKERS_SHOWN).await?;
            output::line("")?;
            output::write(global.output, &target, || sticker_rows(&project.project, &page))?;
        }
    }
    if !target.drift.is_empty() {
        output::line("")?;
        output::write(global.output, &target, || drift::rows(&target.drift))?;
    }
    Ok(Exit::Done)
}

/// When its host was last heard and seen.
fn word(target: &Target) -> String {
    let now = output::now();
    let heard = age(target.agent_seen_time.as_ref(), now);
    let seen = age(target.observe_time.as_ref(), now);
    let word = match (target.silent, &target.agent_seen_time, &target.observe_time) {
        (true, None, _) => "no agent has ever spoken for it".to_owned(),
        (true, Some(_), None) => format!("SILENT for {heard}, never looked at"),
        (true, Some(_), Some(_)) => format!("SILENT for {heard}: what follows was told {seen} ago"),
        (false, _, None) => format!("heard {heard} ago, not looked at yet"),
        // An agent looks all the time and tells what has changed.
        (false, _, Some(_)) => format!("heard {heard} ago, as told {seen} ago: unchanged since"),
    };
    match target.agent_version.as_str() {
        "" => word,
        version => format!("{word}; its agent is version {}", clean(version)),
    }
}

fn head(project: &CurrentProject, silent: bool) -> Vec<String> {
    let mut lines = vec![clean(&project.project)];
    match &project.recorded {
        None => lines.push("  recorded: nothing".to_owned()),
        Some(recorded) => {
            let mut text = format!(
                "  recorded: {} since {}, asked for by {} (promotion {})",
                clean(&recorded.release_display),
                stamp(recorded.since.as_ref()),
                clean(&recorded.requested_by),
                leaf(&recorded.promotion)
            );
            if project.behind > 0 {
                let whose = if silent { "; silent and " } else { "; " };
                text = format!("{text}{whose}BEHIND by {} releases", project.behind);
            }
            lines.push(text);
        }
    }
    let sticker = match &project.sticker {
        None => "not looked at".to_owned(),
        Some(sticker) if sticker.state == "present" => {
            let same = project
                .recorded
                .as_ref()
                .is_some_and(|recorded| recorded.sticker == sticker.digest);
            format!(
                "{} of order {}{}",
                short_digest(&sticker.digest),
                sticker.fence,
                if same {
                    ", as recorded"
                } else {
                    ", NOT as recorded"
                }
            )
        }
        Some(sticker) => clean(&sticker.state),
    };
    lines.push(format!("  sticker:  {sticker}"));
    lines
}

fn services(project: &CurrentProject) -> Rows {
    let header = [
        "  SERVICE",
        "COMPONENT",
        "RECORDED",
        "RUNS",
        "STATE",
        "HEALTH",
        "CONTAINER",
    ];
    Rows::new(&header).with(project.services.iter().map(|service| {
        let seen = service.observed.clone().unwrap_or_default();
        let runs = if seen.digest == service.recorded_digest && seen.unchanged {
            "the same".to_owned()
        } else if seen.digest == service.recorded_digest && !seen.digest.is_empty() {
            "the same, changed by hand".to_owned()
        } else {
            or_dash(&short_digest(&seen.digest))
        };
        vec![
            format!("  {}", clean(&service.service)),
            or_dash(
                service
                    .component
                    .strip_prefix("components/")
                    .unwrap_or(&service.component),
            ),
            or_dash(&short_digest(&service.recorded_digest)),
            runs,
            or_dash(&seen.state),
            or_dash(&seen.health),
            external(seen.container.as_ref()),
        ]
    }))
}

async fn read(
    client: &TargetServiceClient<Channel>,
    target: &str,
    project: &str,
    most: u32,
) -> Result<Vec<ReportedSticker>, CliError> {
    let request = ListStickersRequest {
        parent: target.to_owned(),
        project: project.to_owned(),
        page_size: i32::try_from(most).unwrap_or(i32::MAX),
        page_token: String::new(),
    };
    let page = client.clone().list_stickers(unary(request)).await?;
    Ok(page.into_inner().stickers)
}

/// `sealift target stickers`
pub async fn stickers(
    global: &Global,
    client: &mut TargetServiceClient<Channel>,
    name: &str,
    project: Option<&str>,
    list: ListArgs,
) -> Result<Exit, CliError> {
    let parent = target_name(name)?;
    let projects = if let Some(project) = project {
        vec![project.to_owned()]
    } else {
        let target = get(client, name).await?;
        target.current.into_iter().map(|one| one.project).collect()
    };
    let calls = &*client;
    let mut broken = false;
    for project in projects {
        let fetch = async |page_size, page_token| {
            let request = ListStickersRequest {
                parent: parent.clone(),
                project: project.clone(),
                page_size,
                page_token,
            };
            calls.clone().list_stickers(unary(request)).await
        };
        if global.output == Format::Table {
            let stickers = list::table(list, fetch).await?;
            broken |= stickers.iter().any(is_broken);
            output::write_rows(&sticker_rows(&project, &stickers))?;
        } else {
            let record = Document::record(global.output, ListStickersResponse::FIELD);
            list::write(record, list, fetch, |sticker| broken |= is_broken(sticker)).await?;
        }
    }
    Ok(if broken { Exit::Failed } else { Exit::Done })
}

fn is_broken(sticker: &ReportedSticker) -> bool {
    sticker.link() == Link::Broken || !sticker.intact
}

fn sticker_rows(project: &str, stickers: &[ReportedSticker]) -> Rows {
    let header = ["  STICKER", "RELEASE", "FOLLOWS", "CHAIN", "WRITTEN", "JOB"];
    Rows::new(&header).with(stickers.iter().map(|sticker| {
        let chain = match sticker.link() {
            _ if !sticker.intact => "ALTERED: its bytes do not give its digest",
            Link::First => "first",
            Link::Linked => "linked",
            Link::Broken => "BROKEN: the one before it was another",
            Link::Unspecified => "-",
        };
        let release = sticker
            .release_display
            .strip_prefix(project)
            .unwrap_or(&sticker.release_display);
        vec![
            format!("  {}", short_digest(&sticker.digest)),
            clean(release),
            or_dash(&short_digest(&sticker.previous)),
            chain.to_owned(),
            stamp(sticker.write_time.as_ref()),
            leaf(&sticker.job),
        ]
    }))
}
