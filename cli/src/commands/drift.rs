//! `sealift drift`: where recorded, sticker and runtime disagree.

use clap::Args;
use sealift_proto::v1::{Drift, ListDriftRequest, ListDriftResponse, drift::Kind};

use crate::{
    args::{Global, ListArgs},
    client::{client, connect, named, pages, target_name, unary},
    error::{CliError, Exit},
    output::{
        self, Rows,
        text::{age, clean, or_dash, short_target},
    },
};

/// Which drift.
#[derive(Debug, Args)]
pub struct DriftArgs {
    /// Only of this ENVIRONMENT or ENVIRONMENT/TARGET.
    place: Option<String>,
    /// Also what is gone again.
    #[arg(long)]
    all: bool,
    /// Exit with 2 when there is open drift.
    #[arg(long)]
    detailed_exitcode: bool,
    /// Bounds.
    #[command(flatten)]
    list: ListArgs,
}

pub async fn run(global: &Global, args: DriftArgs) -> Result<Exit, CliError> {
    let client = client!(drift_service_client, DriftServiceClient, connect(global).await?);
    let parent = match &args.place {
        None => String::new(),
        Some(place) if place.contains('/') => target_name(place)?,
        Some(place) => named("environments", place),
    };
    let drift = pages(args.list.limit, async |page_size, page_token| {
        let request = ListDriftRequest {
            parent: parent.clone(),
            include_resolved: args.all,
            page_size,
            page_token,
        };
        let page = client.clone().list_drift(unary(request)).await?.into_inner();
        Ok((page.drift, page.next_page_token))
    })
    .await?;
    let answer = ListDriftResponse {
        drift,
        next_page_token: String::new(),
    };
    output::write(global.output, &answer, || rows(&answer.drift))?;
    let open = answer.drift.iter().any(|drift| drift.resolve_time.is_none());
    Ok(if args.detailed_exitcode && open {
        Exit::Differences
    } else {
        Exit::Done
    })
}

/// Drift as rows.
pub fn rows(drift: &[Drift]) -> Rows {
    let header = [
        "TARGET", "PROJECT", "SERVICE", "DRIFT", "EXPECTED", "ACTUAL", "SINCE", "GONE",
    ];
    Rows::new(&header).with(drift.iter().map(|drift| {
        vec![
            short_target(&drift.target),
            clean(&drift.project),
            or_dash(&drift.service),
            kind(drift.kind()).to_owned(),
            clean(&drift.expected),
            clean(&drift.actual),
            age(drift.first_seen_time.as_ref(), output::now()),
            age(drift.resolve_time.as_ref(), output::now()),
        ]
    }))
}

fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Unspecified => "-",
        Kind::Image => "image",
        Kind::Config => "config",
        Kind::Missing => "missing",
        Kind::Stopped => "stopped",
        Kind::Extra => "extra",
        Kind::StickerEdited => "sticker edited",
        Kind::StickerMissing => "sticker missing",
    }
}
