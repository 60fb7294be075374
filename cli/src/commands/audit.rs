//! `sealift audit`: who tried what, with which result.

use clap::Args;
use sealift_proto::v1::{ListAuditEventsRequest, ListAuditEventsResponse, audit_event::Outcome};

use crate::{
    args::{Global, ListArgs},
    client::{client, connect, pages, unary},
    error::{CliError, Exit},
    output::{
        self, Rows,
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
    let events = pages(args.list.limit, async |page_size, page_token| {
        let request = ListAuditEventsRequest {
            page_size,
            page_token,
        };
        let page = client
            .clone()
            .list_audit_events(unary(request))
            .await?
            .into_inner();
        Ok((page.events, page.next_page_token))
    })
    .await?;
    let answer = ListAuditEventsResponse {
        events,
        next_page_token: String::new(),
    };
    output::write(global.output, &answer, || {
        Rows::new(&[
            "SEQ", "TIME", "ACTOR", "ROLE", "ACTION", "RESOURCE", "OUTCOME", "REASON",
        ])
        .with(answer.events.iter().map(|event| {
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
    })?;
    Ok(Exit::Done)
}
