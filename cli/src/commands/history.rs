//! `sealift history`: what was brought to an environment, newest first, and what became of it.

use clap::Args;
use sealift_proto::v1::{
    HistoryEntry, ListHistoryRequest, history_entry::Outcome, list_history_request::Only,
};

use crate::{
    args::{Global, ListArgs},
    client::{client, connect, named, target_in, unary},
    error::{CliError, Exit},
    list,
    output::{
        Rows,
        text::{clean, leaf, or_dash, span, stamp, time},
    },
};

/// Whose history.
#[derive(Debug, Args)]
pub struct HistoryArgs {
    /// The environment.
    environment: String,
    /// Only of this project (its last segments are enough).
    #[arg(long, group = "only")]
    project: Option<String>,
    /// Only releases with this component.
    #[arg(long, group = "only")]
    component: Option<String>,
    /// Only what concerned this target of the environment.
    #[arg(long, group = "only")]
    target: Option<String>,
    /// Bounds.
    #[command(flatten)]
    list: ListArgs,
}

impl HistoryArgs {
    fn only(&self) -> Result<Option<Only>, CliError> {
        Ok(match (&self.project, &self.component, &self.target) {
            (Some(project), ..) => Some(Only::Project(project.clone())),
            (None, Some(component), _) => Some(Only::Component(named("components", component))),
            (None, None, Some(target)) => Some(Only::Target(target_in(&self.environment, target)?)),
            (None, None, None) => None,
        })
    }
}

pub async fn run(global: &Global, args: HistoryArgs) -> Result<Exit, CliError> {
    let client = client!(status_service_client, StatusServiceClient, connect(global).await?);
    let (environment, only) = (named("environments", &args.environment), args.only()?);
    let fetch = async |page_size, page_token| {
        let request = ListHistoryRequest {
            environment: environment.clone(),
            only: only.clone(),
            page_size,
            page_token,
        };
        client.clone().list_history(unary(request)).await
    };
    list::show(global, args.list, fetch, rows).await?;
    Ok(Exit::Done)
}

fn rows(entries: &[HistoryEntry]) -> Rows {
    let header = ["ASKED", "RELEASE", "OUTCOME", "TOOK", "BY", "PROMOTION", "WHY"];
    Rows::new(&header).with(entries.iter().map(|entry| {
        let took = time(entry.start_time.as_ref()).zip(time(entry.finish_time.as_ref()));
        let mut outcome = match entry.outcome() {
            Outcome::Unspecified => clean(&entry.state),
            Outcome::Succeeded => "succeeded".to_owned(),
            Outcome::Failed => "failed".to_owned(),
            Outcome::Cancelled => "cancelled".to_owned(),
            Outcome::RolledBack => "rolled back".to_owned(),
            Outcome::Superseded => "superseded".to_owned(),
        };
        if !entry.target_state.is_empty() && entry.target_state != outcome {
            outcome = format!("{outcome} (here: {})", clean(&entry.target_state));
        }
        vec![
            stamp(entry.create_time.as_ref()),
            clean(&entry.release_display),
            outcome,
            took.map_or_else(|| "-".to_owned(), |(from, to)| span(to - from)),
            clean(&entry.requested_by),
            leaf(&entry.promotion),
            or_dash(&entry.change_summary),
        ]
    }))
}
