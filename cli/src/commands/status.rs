//! `sealift status`: the board, environments × components; with `--watch` it stays up to date.

use std::{collections::BTreeMap, io::IsTerminal as _};

use clap::Args;
use sealift_proto::v1::{
    BoardComponent, BoardEnvironment, BoardHold, BoardJob, BoardRelease, DriftCount, GetBoardRequest,
    GetBoardResponse, GetServerInfoRequest, WatchBoardRequest, WatchBoardResponse,
    status_service_client::StatusServiceClient,
};
use tonic::transport::Channel;

use crate::{
    args::Global,
    client::{client, connect, named, unary},
    error::{CliError, Exit},
    output::{
        self, Format, Rows,
        text::{age, clean, leaf, short_digest, stamp},
    },
    progress::Progress,
    watch,
};

/// Which part of the board.
#[derive(Debug, Args)]
pub struct StatusArgs {
    /// Only this environment.
    environment: Option<String>,
    /// Stay and show changes: a picture on a terminal, a line per change elsewhere, a JSON document per line with `-o json`.
    #[arg(long, short)]
    watch: bool,
}

pub async fn run(global: &Global, args: StatusArgs) -> Result<Exit, CliError> {
    let channel = connect(global).await?;
    let mut server = client!(server_service_client, ServerServiceClient, channel.clone());
    let mut client = client!(status_service_client, StatusServiceClient, channel);
    let environment = args
        .environment
        .map(|env| named("environments", &env))
        .unwrap_or_default();
    if args.watch {
        return watch(global, client, environment).await;
    }
    let board = client
        .get_board(unary(GetBoardRequest { environment }))
        .await?
        .into_inner();
    if global.output == Format::Table {
        for (place, table) in tables(&board).iter().enumerate() {
            if place > 0 {
                output::line("")?;
            }
            output::write_rows(table)?;
        }
    } else {
        output::write_message(global.output, &board)?;
    }
    let info = server.get_server_info(unary(GetServerInfoRequest {})).await?;
    for (name, error) in info.into_inner().troubles {
        anstream::eprintln!(
            "warning: the orchestrator's {} fails: {}",
            clean(&name),
            clean(&error)
        );
    }
    Ok(Exit::Done)
}

/// Shows the board until Ctrl-C. A stream that breaks is taken up again, and begins with how things are then.
async fn watch(
    global: &Global,
    client: StatusServiceClient<Channel>,
    environment: String,
) -> Result<Exit, CliError> {
    let open = async || {
        let request = WatchBoardRequest {
            environment: environment.clone(),
        };
        let answer = client.clone().watch_board(request).await;
        answer.map(tonic::Response::into_inner)
    };
    let live = std::io::stdout().is_terminal();
    let mut said = BTreeMap::new();
    watch::follow(
        &mut Progress::of_connection(),
        watch::PATIENCE,
        open,
        None,
        |_, message: WatchBoardResponse| {
            // A sign of life holds nothing.
            let Some(board) = message.board else {
                return Ok(None);
            };
            match global.output {
                Format::Json | Format::Yaml => output::write_record(global.output, &board)?,
                Format::Table if live => output::redraw(&picture(&board))?,
                Format::Table => {
                    for line in news(&mut said, &board) {
                        output::line(&line)?;
                    }
                }
            }
            Ok(None)
        },
    )
    .await
}

fn picture(board: &GetBoardResponse) -> String {
    let tables: Vec<_> = tables(board).iter().map(Rows::table).collect();
    format!(
        "{}\n{}\nCtrl-C ends watching, never the work\n",
        stamp(board.time.as_ref()),
        tables.join("\n")
    )
}

/// Environments, and, where there are any, components and what else is recorded.
fn tables(board: &GetBoardResponse) -> Vec<Rows> {
    let mut tables = vec![environments(board)];
    let more = [components(board), others(board)];
    tables.extend(more.into_iter().filter(|rows| !rows.is_empty()));
    tables
}

/// One line for each environment that is not as it was last said.
fn news(said: &mut BTreeMap<String, String>, board: &GetBoardResponse) -> Vec<String> {
    let mut lines = Vec::new();
    for environment in &board.environments {
        let mut parts = vec![
            format!("{} targets", environment.targets),
            agents(environment),
            format!("drift {}", drift(environment.drift.as_ref())),
            format!("{} queued", environment.queued),
        ];
        parts.extend(environment.jobs.iter().map(job));
        parts.extend(environment.holds.iter().map(hold));
        parts.extend(environment.components.iter().map(|component| {
            format!(
                "{} {} on {}",
                short_component(&component.component),
                clean(&component.release_display),
                spread(component)
            )
        }));
        parts.extend(environment.others.iter().map(other));
        let name = leaf(&environment.environment);
        let text = parts.join(", ");
        if said.get(&name) != Some(&text) {
            lines.push(format!("{} {name}: {text}", stamp(board.time.as_ref())));
            said.insert(name, text);
        }
    }
    lines
}

fn environments(board: &GetBoardResponse) -> Rows {
    let header = ["ENVIRONMENT", "TARGETS", "AGENTS", "RUNNING", "QUEUED", "DRIFT"];
    Rows::new(&header).with(board.environments.iter().map(|environment| {
        let mut running: Vec<_> = environment.jobs.iter().map(job).collect();
        running.extend(environment.holds.iter().map(hold));
        vec![
            leaf(&environment.environment),
            environment.targets.to_string(),
            agents(environment),
            if running.is_empty() {
                "-".to_owned()
            } else {
                running.join("; ")
            },
            environment.queued.to_string(),
            drift(environment.drift.as_ref()),
        ]
    }))
}

fn agents(environment: &BoardEnvironment) -> String {
    let offline = environment.agents_offline;
    if offline > 0 {
        format!("{} online, {offline} OFFLINE", environment.agents_online)
    } else {
        format!("{} online", environment.agents_online)
    }
}

fn job(job: &BoardJob) -> String {
    let failed = if job.tasks_failed > 0 {
        format!(", {} FAILED", job.tasks_failed)
    } else {
        String::new()
    };
    let paused = match (&job.closed_gate, job.pause_reason.as_str()) {
        (Some(gate), _) => format!(" ({}: {})", clean(&gate.reason), clean(&gate.advice)),
        (None, "") => String::new(),
        (None, reason) => format!(" ({})", clean(reason)),
    };
    format!(
        "{} {}{paused} wave {}/{}, {}/{} targets{failed}",
        clean(&job.release_display),
        clean(&job.state),
        job.wave,
        job.waves,
        job.tasks_ended,
        job.tasks
    )
}

fn hold(hold: &BoardHold) -> String {
    format!("{} HELD ({})", clean(&hold.project), clean(&hold.reason))
}

/// Open drift, the most severe first.
fn drift(count: Option<&DriftCount>) -> String {
    let count = count.copied().unwrap_or_default();
    let parts: Vec<_> = [
        (count.critical, "critical"),
        (count.high, "high"),
        (count.medium, "medium"),
        (count.low, "low"),
    ]
    .into_iter()
    .filter(|(open, _)| *open > 0)
    .map(|(open, severity)| format!("{open} {severity}"))
    .collect();
    if parts.is_empty() {
        "none".to_owned()
    } else {
        parts.join(" ")
    }
}

fn short_component(name: &str) -> String {
    clean(name.strip_prefix("components/").unwrap_or(name))
}

/// On how many targets the active release is recorded, of so many on which its project is: `3`, or `2 of 3`.
fn spread(component: &BoardComponent) -> String {
    if component.targets == component.targets_of_project {
        component.targets.to_string()
    } else {
        format!("{} of {}", component.targets, component.targets_of_project)
    }
}

fn other(release: &BoardRelease) -> String {
    format!("also {} on {}", clean(&release.release_display), release.targets)
}

/// What is recorded beside the active releases.
fn others(board: &GetBoardResponse) -> Rows {
    Rows::new(&["ENVIRONMENT", "ALSO RECORDED", "ON"]).with(board.environments.iter().flat_map(
        |environment| {
            environment.others.iter().map(|release| {
                vec![
                    leaf(&environment.environment),
                    clean(&release.release_display),
                    release.targets.to_string(),
                ]
            })
        },
    ))
}

fn components(board: &GetBoardResponse) -> Rows {
    let header = [
        "ENVIRONMENT",
        "COMPONENT",
        "RELEASE",
        "DIGEST",
        "ON",
        "SINCE",
        "DRIFT",
    ];
    Rows::new(&header).with(board.environments.iter().flat_map(|environment| {
        environment.components.iter().map(|component| {
            vec![
                leaf(&environment.environment),
                short_component(&component.component),
                clean(&component.release_display),
                short_digest(&component.digest),
                spread(component),
                age(component.since.as_ref(), output::now()),
                drift(component.drift_count.as_ref()),
            ]
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_recorded_beside_the_active_release_is_shown() {
        let mut board = GetBoardResponse {
            environments: vec![BoardEnvironment {
                environment: "environments/prod".to_owned(),
                components: vec![BoardComponent {
                    component: "components/shop/web".to_owned(),
                    release_display: "acme/shop#1".to_owned(),
                    targets: 3,
                    targets_of_project: 3,
                    ..BoardComponent::default()
                }],
                ..BoardEnvironment::default()
            }],
            time: None,
        };
        assert!(!picture(&board).contains("ALSO RECORDED"));
        let environment = &mut board.environments[0];
        environment.components[0].targets = 2;
        environment.others.push(BoardRelease {
            release_display: "acme/shop#2".to_owned(),
            targets: 1,
            ..BoardRelease::default()
        });
        let shown = picture(&board);
        assert!(
            shown.contains("2 of 3") && shown.contains("ALSO RECORDED"),
            "{shown}"
        );
        assert!(!shown.contains("\n\n\n"), "{shown}");
        let said = news(&mut BTreeMap::new(), &board).concat();
        assert!(
            said.contains("acme/shop#1 on 2 of 3, also acme/shop#2 on 1"),
            "{said}"
        );
    }

    #[test]
    fn what_did_not_change_is_not_said_again() {
        let mut board = GetBoardResponse {
            environments: vec![
                BoardEnvironment {
                    environment: "environments/prod".to_owned(),
                    ..BoardEnvironment::default()
                },
                BoardEnvironment {
                    environment: "environments/staging".to_owned(),
                    ..BoardEnvironment::default()
                },
            ],
            time: None,
        };
        let mut said = BTreeMap::new();
        assert_eq!(news(&mut said, &board).len(), 2);
        assert!(news(&mut said, &board).is_empty());
        board.environments[1].drift = Some(DriftCount {
            high: 1,
            low: 2,
            ..DriftCount::default()
        });
        let lines = news(&mut said, &board);
        assert_eq!(lines.len(), 1);
        assert!(
            lines[0].contains("staging") && lines[0].contains("drift 1 high 2 low"),
            "{lines:?}"
        );
    }
}
