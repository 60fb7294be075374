//! `sealift promotion`: requests to bring releases to environments.

use clap::Subcommand;
use sealift_common::digest::Digest;
use sealift_proto::v1::{
    CancelPromotionRequest, GetPromotionRequest, ListPromotionsRequest, Promotion, ReadDecisionRequest,
    Transition, WatchPromotionResponse, promotion::State,
};

use crate::{
    args::{Global, ListArgs, RequestArgs},
    client::{client, connect, named, repeated, unary},
    commands::promote,
    error::{CliError, Exit},
    list,
    output::{
        self, Format, Rows,
        text::{age, clean, leaf, or_dash, stamp},
    },
    progress::{failure_line, failure_text},
};

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum PromotionCommand {
    /// Show one with its decision and history.
    Get {
        /// Its identifier.
        id: String,
    },
    /// Show all, newest first.
    List {
        /// Only to this environment.
        #[arg(long, visible_alias = "environment")]
        env: Option<String>,
        /// Bounds.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Follow one to its end; the exit code tells how it ended. With -o json, one JSON object in one line for each change.
    Watch {
        /// Its identifier.
        id: String,
    },
    /// Write the exact bytes of its newest decision: what was known, and what every gate said.
    Decision {
        /// Its identifier.
        id: String,
    },
    /// Cancel one: finished targets stay, unstarted ones never start, running ones restore what ran before.
    Cancel {
        /// Its identifier.
        id: String,
        /// Let targets that are under way finish. Without it, later, they restore what ran before after all.
        #[arg(long)]
        finish: bool,
        /// Why.
        #[arg(long, default_value = "cancelled by an operator")]
        reason: String,
        /// Repeating it.
        #[command(flatten)]
        request: RequestArgs,
    },
}

pub async fn run(global: &Global, command: PromotionCommand) -> Result<Exit, CliError> {
    let mut client = client!(
        promotion_service_client,
        PromotionServiceClient,
        connect(global).await?
    );
    match command {
        PromotionCommand::Get { id } => {
            let request = GetPromotionRequest {
                name: named("promotions", &id),
            };
            let promotion = client
                .get_promotion(unary(request))
                .await?
                .into_inner()
                .promotion
                .unwrap_or_default();
            show(global, &promotion)?;
            if global.output == Format::Table {
                details(&promotion)?;
            }
            Ok(Exit::Done)
        }
        PromotionCommand::List { env, list } => {
            let environment = env.map(|env| named("environments", &env)).unwrap_or_default();
            let fetch = async |page_size, page_token| {
                let request = ListPromotionsRequest {
                    environment: environment.clone(),
                    page_size,
                    page_token,
                };
                client.clone().list_promotions(unary(request)).await
            };
            list::show(global, list, fetch, rows).await?;
            Ok(Exit::Done)
        }
        PromotionCommand::Watch { id } => {
            let each = |news: &WatchPromotionResponse| match global.output {
                Format::Table => Ok(()),
                format => output::write_record(format, news),
            };
            let (exit, _) = promote::follow(&mut client, &named("promotions", &id), each).await?;
            Ok(exit)
        }
        PromotionCommand::Decision { id } => decision(&mut client, named("promotions", &id)).await,
        PromotionCommand::Cancel {
            id,
            finish,
            reason,
            request,
        } => {
            let request = CancelPromotionRequest {
                request_id: request.id(),
                name: named("promotions", &id),
                reason,
                etag: String::new(),
                finish_running: finish,
            };
            let cancel = async || client.cancel_promotion(unary(request.clone())).await;
            let promotion = repeated(cancel).await?.promotion.unwrap_or_default();
            show(global, &promotion)?;
            Ok(Exit::Done)
        }
    }
}

/// One promotion as a result.
pub fn show(global: &Global, promotion: &Promotion) -> Result<(), CliError> {
    output::write(global.output, promotion, || rows(std::slice::from_ref(promotion)))
}

/// The stable text of a state.
pub fn state(state: State) -> &'static str {
    match state {
        State::Unspecified => "unknown",
        State::PendingGate => "pending_gate",
        State::Approved => "approved",
        State::Deploying => "deploying",
        State::Deployed => "deployed",
        State::Rejected => "rejected",
        State::Cancelled => "cancelled",
        State::Failed => "failed",
        State::RolledBack => "rolled_back",
    }
}

fn rows(promotions: &[Promotion]) -> Rows {
    let header = [
        "PROMOTION",
        "RELEASE",
        "TO",
        "STATE",
        "BY",
        "AGE",
        "JOB",
        "FAILURE",
    ];
    Rows::new(&header).with(promotions.iter().map(|promotion| {
        vec![
            leaf(&promotion.name),
            clean(&promotion.release_display),
            leaf(&promotion.environment),
            if promotion.superseded_by.is_empty() {
                state(promotion.state()).to_owned()
            } else {
                format!("{} (superseded)", state(promotion.state()))
            },
            clean(&promotion.requested_by),
            age(promotion.create_time.as_ref(), output::now()),
            or_dash(&leaf(&promotion.job)),
            promotion.failure.as_ref().map(failure_line).unwrap_or_default(),
        ]
    }))
}

fn details(promotion: &Promotion) -> Result<(), CliError> {
    if let Some(failure) = &promotion.failure {
        output::line(&format!("\n{}", failure_text(failure)))?;
    }
    if let Some(decision) = &promotion.decision {
        output::line(&format!("\ndecision {}", clean(&decision.digest)))?;
        promote::print_gates(decision);
    }
    output::line("")?;
    let history = transitions(&promotion.transitions);
    output::write(Format::Table, promotion, || history)
}

/// A history as rows.
pub fn transitions(rows: &[Transition]) -> Rows {
    Rows::new(&["SEQ", "TIME", "FROM", "TO", "EVENT", "BY", "DETAIL"]).with(rows.iter().map(|row| {
        vec![
            row.seq.to_string(),
            stamp(row.at.as_ref()),
            or_dash(&row.from),
            clean(&row.to),
            clean(&row.event),
            clean(&row.actor),
            clean(&row.detail),
        ]
    }))
}

/// Writes the exact bytes of a decision, checked against the digest that the promotion names.
async fn decision(client: &mut promote::Client, name: String) -> Result<Exit, CliError> {
    let request = GetPromotionRequest { name: name.clone() };
    let promotion = client.get_promotion(unary(request)).await?.into_inner().promotion;
    let digest = promotion
        .and_then(|promotion| promotion.decision)
        .unwrap_or_default()
        .digest;
    let mut stream = client
        .read_decision(unary(ReadDecisionRequest { name }))
        .await?
        .into_inner();
    let mut record = Vec::new();
    while let Some(piece) = stream.message().await? {
        record.extend_from_slice(&piece.data);
    }
    if Digest::of(&record).to_string() != digest {
        return Err(CliError::failed(
            "the record is not the one whose digest the promotion names: it was decided anew meanwhile",
            "run the command again",
        ));
    }
    output::write_stdout(&record)?;
    Ok(Exit::Done)
}
