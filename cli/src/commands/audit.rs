//! `sealift audit`: who tried what, with which result.

use clap::Args;
use sealift_proto::v1::{AuditEvent, ListAuditEventsRequest, audit_event::Outcome};

use crate::{
    args::{Global, ListArgs},
    client::{client, connect, unary},
    error::{CliError, Exit},
    list,
    output::{
        Rows,
        text::{clean, or_dash, stamp},
    },
};

/// How much.
#[derive(Debug, Args)]
pub struct AuditArgs {
    /// Bounds.
    #[command(flatten)]
    list: ListArgs,
}

pub async fn run(global: &Global, args: AuditArgs) -> Result<Exit, CliError> {
    let client = client!(audit_service_client, AuditServiceClient, connect(global).await?);
    let fetch = async |page_size, page_token| {
        let request = ListAuditEventsRequest {
            page_size,
            page_token,
        };
        client.clone().list_audit_events(unary(request)).await
    };
    list::show(global, args.list, fetch, rows).await?;
    Ok(Exit::Done)
}

fn rows(events: &[AuditEvent]) -> Rows {
    Rows::new(&[
        "SEQ", "TIME", "ACTOR", "ROLE", "ACTION", "RESOURCE", "OUTCOME", "REASON",
    ])
    .with(events.iter().map(|event| {
        let outcome = match event.outcome() {
            Outcome::Success => "success",
            Outcome::Denied => "DENIED",
            Outcome::Failed => "failed",
            Outcome::Unspecified => "-",
        };
        vec![
            event.seq.to_string(),
            stamp(event.time.as_ref()),
            clean(&event.actor),
            or_dash(&event.role),
            clean(&event.action),
            or_dash(&event.resource),
            outcome.to_owned(),
            or_dash(&event.reason),
        ]
    }))
}
