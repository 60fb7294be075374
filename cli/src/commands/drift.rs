//! `sealift drift`: where recorded, sticker and runtime disagree, why, and who looks after it.

use clap::{Args, Subcommand, ValueEnum};
use sealift_proto::v1::{
    AcknowledgeDriftRequest, Drift, ExplainDriftRequest, ExplainDriftResponse, GetEnvironmentRequest,
    ListDriftRequest, RecordedProject, Remediation,
    drift::{Kind, Severity},
    drift_service_client::DriftServiceClient,
    remediation::Mode,
};
use tonic::transport::Channel;

use crate::{
    args::{Global, ListArgs},
    client::{client, connect, named, request_id, target_name, unary},
    commands::env::remediation::shown,
    error::{CliError, Exit},
    list,
    output::{
        self, Format, Rows,
        text::{age, clean, external, leaf, or_dash, short_digest, short_target, stamp},
    },
};

/// `sealift drift` alone lists.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct DriftArgs {
    /// What else.
    #[command(subcommand)]
    command: Option<DriftCommand>,
    /// Which drift.
    #[command(flatten)]
    list: DriftListArgs,
}

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum DriftCommand {
    /// Show drift, newest first.
    List(DriftListArgs),
    /// Show one: what was recorded, what the sticker says, what runs, since when, what changed it, what to do.
    Explain {
        /// Its identifier, as the list shows it.
        id: String,
    },
    /// Say who looks after one.
    #[command(visible_alias = "ack")]
    Acknowledge {
        /// Its identifier, as the list shows it.
        id: String,
        /// Who looks after it; you, unless told otherwise.
        #[arg(long, default_value = "")]
        owner: String,
        /// What is known or being done.
        #[arg(long, default_value = "")]
        note: String,
    },
}

/// How soon somebody should look.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum SeverityArg {
    /// All.
    Low,
    /// Medium and above.
    Medium,
    /// High and critical.
    High,
    /// Critical only.
    Critical,
}

impl From<SeverityArg> for Severity {
    fn from(severity: SeverityArg) -> Self {
        match severity {
            SeverityArg::Low => Self::Low,
            SeverityArg::Medium => Self::Medium,
            SeverityArg::High => Self::High,
            SeverityArg::Critical => Self::Critical,
        }
    }
}

/// Which drift.
#[derive(Debug, Args)]
pub struct DriftListArgs {
    /// Only of this ENVIRONMENT or ENVIRONMENT/TARGET.
    place: Option<String>,
    /// Only of this environment.
    #[arg(long, visible_alias = "env", conflicts_with = "place")]
    environment: Option<String>,
    /// Only of this ENVIRONMENT/TARGET.
    #[arg(long, conflicts_with_all = ["place", "environment"])]
    target: Option<String>,
    /// At least this severe.
    #[arg(long, value_enum)]
    severity: Option<SeverityArg>,
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

impl DriftListArgs {
    fn parent(&self) -> Result<String, CliError> {
        match (&self.place, &self.environment, &self.target) {
            (Some(place), ..) if place.contains('/') => target_name(place),
            (Some(environment), ..) | (None, Some(environment), _) => Ok(named("environments", environment)),
            (None, None, Some(target)) => target_name(target),
            (None, None, None) => Ok(String::new()),
        }
    }
}

pub async fn run(global: &Global, args: DriftArgs) -> Result<Exit, CliError> {
    let channel = connect(global).await?;
    let mut client = client!(drift_service_client, DriftServiceClient, channel.clone());
    match args.command {
        None => list(global, client, args.list).await,
        Some(DriftCommand::List(list_args)) => list(global, client, list_args).await,
        Some(DriftCommand::Explain { id }) => {
            let request = ExplainDriftRequest {
                name: named("drift", &id),
            };
            let answer = client.explain_drift(unary(request)).await?.into_inner();
            explain(global, &answer)?;
            let drift = answer.drift.unwrap_or_default();
            if global.output == Format::Table && drift.resolve_time.is_none() {
                let policy = remediation(channel, &drift.target).await;
                if let Some(note) = by_itself(&drift, policy.as_ref()) {
                    output::line(&format!("\n{note}"))?;
                }
            }
            Ok(Exit::Done)
        }
        Some(DriftCommand::Acknowledge { id, owner, note }) => {
            let request = AcknowledgeDriftRequest {
                request_id: request_id(),
                name: named("drift", &id),
                owner,
                note,
            };
            let answer = client.acknowledge_drift(unary(request)).await?.into_inner();
            let drift = answer.drift.unwrap_or_default();
            output::write(global.output, &drift, || rows(std::slice::from_ref(&drift)))?;
            Ok(Exit::Done)
        }
    }
}

async fn list(
    global: &Global,
    client: DriftServiceClient<Channel>,
    args: DriftListArgs,
) -> Result<Exit, CliError> {
    let parent = args.parent()?;
    let at_least = args.severity.map_or(Severity::Unspecified, Severity::from);
    let page = async |include_resolved, page_size, page_token| {
        let request = ListDriftRequest {
            parent: parent.clone(),
            include_resolved,
            page_size,
            page_token,
            at_least: at_least.into(),
        };
        client.clone().list_drift(unary(request)).await
    };
    let fetch = async |page_size, page_token| page(args.all, page_size, page_token).await;
    list::show(global, args.list, fetch, rows).await?;
    // Asked for by itself: open drift may be behind all that is shown, when what is gone again is shown, too.
    if args.detailed_exitcode && !page(false, 1, String::new()).await?.into_inner().drift.is_empty() {
        return Ok(Exit::Differences);
    }
    Ok(Exit::Done)
}

/// Drift as rows.
pub fn rows(drift: &[Drift]) -> Rows {
    let header = [
        "ID", "SEVERITY", "TARGET", "PROJECT", "SERVICE", "DRIFT", "SINCE", "GONE", "TRIES", "OWNER",
    ];
    Rows::new(&header).with(drift.iter().map(|drift| {
        vec![
            leaf(&drift.name),
            severity(drift.severity()).to_owned(),
            short_target(&drift.target),
            clean(&drift.project),
            or_dash(&drift.service),
            kind(drift.kind()).to_owned(),
            age(drift.first_seen_time.as_ref(), output::now()),
            age(drift.resolve_time.as_ref(), output::now()),
            tries(drift),
            or_dash(&drift.owner),
        ]
    }))
}

/// What the environment of a target does about drift. The explanation is whole without it: what cannot be asked is not told.
async fn remediation(channel: Channel, target: &str) -> Option<Remediation> {
    let environment = target.split("/targets/").next().unwrap_or_default();
    let request = GetEnvironmentRequest {
        name: environment.to_owned(),
    };
    let mut client = client!(environment_service_client, EnvironmentServiceClient, channel);
    let found = client.get_environment(unary(request)).await.ok()?.into_inner();
    found.environment?.remediation
}

/// Says that the orchestrator puts a drift right by itself, so that nobody does it by hand beside it.
fn by_itself(drift: &Drift, policy: Option<&Remediation>) -> Option<String> {
    let policy = policy.filter(|policy| policy.mode() == Mode::Reconcile)?;
    if drift.give_up_time.is_some() || drift.severity() < policy.min_severity() {
        return None;
    }
    Some(format!(
        "the environment's remediation is {}: unless something is in its way (docs/drift.md), it is put right without you",
        shown(Some(policy))
    ))
}

fn explain(global: &Global, answer: &ExplainDriftResponse) -> Result<(), CliError> {
    if global.output != Format::Table {
        return output::write_message(global.output, answer);
    }
    for (name, text) in paragraphs(answer) {
        output::line(&format!("{name:<13} {text}"))?;
    }
    if !answer.next_steps.is_empty() {
        output::line("\nnext:")?;
    }
    for step in &answer.next_steps {
        output::line(&format!(
            "  {}\n      {}",
            clean(&step.command),
            clean(&step.purpose)
        ))?;
    }
    Ok(())
}

fn paragraphs(answer: &ExplainDriftResponse) -> Vec<(&'static str, String)> {
    let drift = answer.drift.clone().unwrap_or_default();
    let now = output::now();
    let subject = if drift.service.is_empty() {
        clean(&drift.project)
    } else {
        format!("service {} of {}", clean(&drift.service), clean(&drift.project))
    };
    let mut lines = vec![
        (
            "drift",
            format!(
                "{} ({}) on {}: {subject}",
                kind(drift.kind()),
                severity(drift.severity()),
                short_target(&drift.target)
            ),
        ),
        ("expected", clean(&drift.expected)),
        ("actual", clean(&drift.actual)),
        (
            "since",
            format!(
                "{} ({} ago)",
                stamp(drift.first_seen_time.as_ref()),
                age(drift.first_seen_time.as_ref(), now)
            ),
        ),
    ];
    if drift.resolve_time.is_some() {
        lines.push(("gone", stamp(drift.resolve_time.as_ref())));
    }
    lines.push((
        "recorded",
        answer
            .recorded
            .as_ref()
            .map_or_else(|| "nothing".to_owned(), recorded),
    ));
    if let Some(newer) = &answer.recorded_now {
        lines.push(("recorded now", recorded(newer)));
    }
    if let Some(sticker) = &answer.sticker {
        let said = match sticker.state.as_str() {
            "present" => format!(
                "{} for release {} by order {}",
                short_digest(&sticker.digest),
                short_digest(&sticker.release),
                sticker.fence
            ),
            "unreadable" => format!("a file that is no sticker, {}", short_digest(&sticker.digest)),
            state => clean(state),
        };
        lines.push(("sticker", said));
    }
    if answer.observed.is_empty() {
        lines.push(("runs", "nothing".to_owned()));
    }
    for seen in &answer.observed {
        lines.push((
            "runs",
            format!(
                "{} {} ({}), container {}, order {}{}",
                clean(&seen.service),
                or_dash(&short_digest(&seen.digest)),
                clean(&seen.state),
                external(seen.container.as_ref()),
                seen.fence,
                if seen.unchanged { "" } else { ", changed by hand" }
            ),
        ));
    }
    lines.push(("changed by", changed_by(&drift)));
    if drift.tries > 0 || drift.give_up_time.is_some() {
        lines.push(("put right", put_right(&drift)));
    }
    let agent = if answer.agent.is_empty() {
        "none".to_owned()
    } else {
        let (silent, told) = (
            answer.agent_status == "offline",
            age(answer.observe_time.as_ref(), now),
        );
        // An agent looks all the time and tells what has changed.
        let looked = match (&answer.observe_time, silent) {
            (None, _) => "has not looked yet".to_owned(),
            (Some(_), true) => format!("told what it saw {told} ago"),
            (Some(_), false) => format!("told what it sees {told} ago, unchanged since"),
        };
        format!(
            "{} ({}), {looked}",
            leaf(&answer.agent),
            clean(&answer.agent_status)
        )
    };
    lines.push(("agent", agent));
    if !drift.owner.is_empty() {
        let mut owner = format!(
            "{} (said by {} {} ago)",
            clean(&drift.owner),
            clean(&drift.acknowledged_by),
            age(drift.acknowledge_time.as_ref(), now)
        );
        if !drift.note.is_empty() {
            owner = format!("{owner}: {}", clean(&drift.note));
        }
        lines.push(("owner", owner));
    }
    lines
}

fn recorded(recorded: &RecordedProject) -> String {
    format!(
        "{} since {}, asked for by {} ({}, {})",
        clean(&recorded.release_display),
        stamp(recorded.since.as_ref()),
        clean(&recorded.requested_by),
        clean(&recorded.promotion),
        clean(&recorded.job)
    )
}

/// How often the orchestrator tried to put it right.
fn tries(drift: &Drift) -> String {
    match (drift.tries, &drift.give_up_time) {
        (0, None) => "-".to_owned(),
        (tries, None) => tries.to_string(),
        (tries, Some(_)) => format!("{tries}, gave up"),
    }
}

fn put_right(drift: &Drift) -> String {
    let tried = match drift.tries {
        0 => "not tried again after it came back".to_owned(),
        1 => format!("tried once ({})", clean(&drift.last_promotion)),
        tries => format!("tried {tries} times, last by {}", clean(&drift.last_promotion)),
    };
    match &drift.give_up_time {
        None => tried,
        since => format!(
            "{tried}; given up since {}: a person has to look",
            stamp(since.as_ref())
        ),
    }
}

fn changed_by(drift: &Drift) -> String {
    drift.cause.as_ref().map_or_else(
        || "unknown: the engine said nothing that explains it".to_owned(),
        |cause| {
            format!(
                "engine event {} of container {} at {}; the engine does not say who did it",
                clean(&cause.action),
                external(cause.container.as_ref()),
                stamp(cause.time.as_ref())
            )
        },
    )
}

/// A kind of drift for people.
pub fn kind(kind: Kind) -> &'static str {
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

/// A severity for people.
pub fn severity(severity: Severity) -> &'static str {
    match severity {
        Severity::Unspecified => "-",
        Severity::Low => "low",
        Severity::Medium => "medium",
        Severity::High => "high",
        Severity::Critical => "critical",
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use sealift_proto::v1::{Drift, Remediation, drift::Severity, remediation::Mode};

    use crate::args::Cli;

    #[test]
    fn the_bare_command_lists_and_takes_the_flags_of_the_list() {
        for line in [
            "sealift drift",
            "sealift drift prod --all",
            "sealift drift list --environment prod --severity high",
            "sealift drift --env prod",
            "sealift promotion list --environment prod",
            "sealift job list --environment prod",
            "sealift target list --environment prod",
            "sealift drift list --target prod/web-1 --all",
            "sealift drift explain x",
            "sealift drift acknowledge x --owner team-a --note seen",
            "sealift drift ack x",
        ] {
            let parsed = Cli::try_parse_from(line.split(' '));
            assert!(parsed.is_ok(), "{line}: {:?}", parsed.err());
        }
        let two = "sealift drift list prod --target prod/web-1";
        assert!(Cli::try_parse_from(two.split(' ')).is_err());
    }

    #[test]
    fn where_drift_is_put_right_by_itself_it_is_told_so_until_that_is_given_up() {
        let mut policy = Remediation::default();
        policy.set_mode(Mode::Reconcile);
        policy.set_min_severity(Severity::Medium);
        let mut drift = Drift::default();
        drift.set_severity(Severity::High);
        let note = super::by_itself(&drift, Some(&policy)).unwrap();
        assert!(note.contains("put right without you"), "{note}");
        assert_eq!(super::by_itself(&drift, None), None);
        drift.set_severity(Severity::Low);
        assert_eq!(super::by_itself(&drift, Some(&policy)), None);
        drift.set_severity(Severity::High);
        drift.give_up_time = Some(pbjson_types::Timestamp::default());
        assert_eq!(super::by_itself(&drift, Some(&policy)), None);
    }

    #[test]
    fn what_was_tried_and_given_up_is_told() {
        let given_up = Drift {
            tries: 3,
            last_promotion: "promotions/x".to_owned(),
            give_up_time: Some(pbjson_types::Timestamp::default()),
            ..Drift::default()
        };
        assert_eq!(super::tries(&given_up), "3, gave up");
        assert!(
            super::put_right(&given_up).contains("tried 3 times, last by promotions/x; given up since 1970")
        );
    }
}
