//! `sealift release`: immutable bundles of what to run.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use clap::Subcommand;
use sealift_common::{bounds, compose::agents, name::SourceRef};
use sealift_proto::v1::{
    CreateReleaseRequest, GetReleaseRequest, ListReleasesRequest, MarkReleaseRequest, QualityMark, Release,
    ReleaseHook, Source, Variables, quality_mark::Mark, target,
};

use crate::{
    args::{Global, ListArgs, RequestArgs},
    client::{client, connect, named, repeated, unary},
    commands::target::KindArg,
    env_files,
    error::{CliError, Exit},
    input::read_bounded,
    list,
    output::{
        self, Format, Rows,
        text::{clean, leaf, or_dash, short_digest, stamp},
    },
};

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum ReleaseCommand {
    /// Make a release from a compose file: every tag is resolved to a digest, then it is numbered and frozen.
    Create {
        /// The compose file.
        #[arg(short, long, value_name = "FILE", required_unless_present = "agent_image")]
        file: Option<PathBuf>,
        /// In place of a compose file: the image that holds the signed program of agents (see `sealift agent sign-program`).
        #[arg(long, value_name = "IMAGE", conflicts_with_all = ["file", "kind", "profiles"])]
        agent_image: Option<String>,
        /// Where it came from: REPOSITORY/PROJECT@COMMIT.
        #[arg(long)]
        source: String,
        /// What kind of target it is for: with compose-host the file is kept as it is, and the Compose of each host reads it.
        #[arg(long, value_enum, default_value = "docker-host")]
        kind: KindArg,
        /// Switch a profile of the file on (only compose-host; may be repeated).
        #[arg(long = "profile", value_name = "NAME")]
        profiles: Vec<String>,
        /// Check and resolve everything, keep nothing.
        #[arg(long)]
        dry_run: bool,
        /// Repeating it.
        #[command(flatten)]
        request: RequestArgs,
    },
    /// Show one: by id, PROJECT#NUMBER or REPOSITORY/PROJECT@COMMIT.
    Get {
        /// The release.
        release: String,
    },
    /// Say what you think of one: a rollback prefers stable ones, and never goes to deprecated ones.
    Mark {
        /// The release.
        release: String,
        /// What it is.
        #[arg(value_enum)]
        mark: MarkArg,
        /// Why.
        #[arg(long)]
        reason: String,
        /// Repeating it.
        #[command(flatten)]
        request: RequestArgs,
    },
    /// Show all, newest first.
    List {
        /// Only of this project (REPOSITORY/PROJECT or its last segments).
        #[arg(long, default_value = "")]
        project: String,
        /// Bounds.
        #[command(flatten)]
        list: ListArgs,
    },
}

/// What somebody thinks of a release.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum MarkArg {
    /// A rollback prefers it.
    Stable,
    /// A rollback does not choose it by itself.
    Unstable,
    /// A rollback never goes to it.
    Deprecated,
}

pub async fn run(global: &Global, command: ReleaseCommand) -> Result<Exit, CliError> {
    match command {
        ReleaseCommand::Create {
            file,
            agent_image,
            source,
            kind,
            profiles,
            dry_run,
            request,
        } => {
            let content = match (agent_image, &file) {
                (Some(image), _) => Content::agents(&image),
                (None, Some(file)) => Content::read(file, kind, profiles)?,
                (None, None) => {
                    return Err(CliError::usage(
                        "there is no compose file",
                        "name one with --file",
                    ));
                }
            };
            create(global, content, &source, dry_run, request).await
        }
        ReleaseCommand::Get { release } => {
            let mut client = client!(
                release_service_client,
                ReleaseServiceClient,
                connect(global).await?
            );
            let request = GetReleaseRequest {
                name: named("releases", &release),
            };
            let release = client
                .get_release(unary(request))
                .await?
                .into_inner()
                .release
                .unwrap_or_default();
            show(global, &release)
        }
        ReleaseCommand::Mark {
            release,
            mark,
            reason,
            request,
        } => {
            let mut client = client!(
                release_service_client,
                ReleaseServiceClient,
                connect(global).await?
            );
            let mark = match mark {
                MarkArg::Stable => Mark::Stable,
                MarkArg::Unstable => Mark::Unstable,
                MarkArg::Deprecated => Mark::Deprecated,
            };
            let request = MarkReleaseRequest {
                request_id: request.id(),
                name: named("releases", &release),
                mark: mark.into(),
                reason,
            };
            let mark = async || client.mark_release(unary(request.clone())).await;
            let answer = repeated(mark).await?;
            show(global, &answer.release.unwrap_or_default())
        }
        ReleaseCommand::List { project, list } => {
            let client = client!(
                release_service_client,
                ReleaseServiceClient,
                connect(global).await?
            );
            let fetch = async |page_size, page_token| {
                let request = ListReleasesRequest {
                    project: project.clone(),
                    page_size,
                    page_token,
                };
                client.clone().list_releases(unary(request)).await
            };
            list::show(global, list, fetch, rows).await?;
            Ok(Exit::Done)
        }
    }
}

/// What a release is made from.
struct Content {
    compose: Vec<u8>,
    env_files: HashMap<String, Variables>,
    kind: KindArg,
    profiles: Vec<String>,
}

impl Content {
    fn read(file: &Path, kind: KindArg, profiles: Vec<String>) -> Result<Self, CliError> {
        let compose = read_bounded(file, bounds::MANIFEST_BYTES)?;
        let env_files = match kind {
            KindArg::DockerHost => env_files::read(&compose, file.parent().unwrap_or(Path::new(".")))?,
            // Each host has its own; their values never leave it. Agents have none.
            KindArg::ComposeHost | KindArg::Agent => HashMap::new(),
        };
        Ok(Self {
            compose,
            env_files,
            kind,
            profiles,
        })
    }

    fn agents(image: &str) -> Self {
        Self {
            compose: agents::document(image).into_bytes(),
            env_files: HashMap::new(),
            kind: KindArg::Agent,
            profiles: Vec::new(),
        }
    }
}

async fn create(
    global: &Global,
    content: Content,
    source: &str,
    dry_run: bool,
    request: RequestArgs,
) -> Result<Exit, CliError> {
    let source: SourceRef = source
        .parse()
        .map_err(|error: sealift_common::name::InvalidName| {
            CliError::usage(
                error.to_string(),
                "for example --source github.com/acme/shop/api@$(git rev-parse HEAD)",
            )
        })?;
    let mut client = client!(
        release_service_client,
        ReleaseServiceClient,
        connect(global).await?
    );
    let request = CreateReleaseRequest {
        request_id: request.id(),
        source: Some(Source {
            repository: source.project.repository,
            project: source.project.project,
            commit: source.commit,
        }),
        compose: content.compose,
        env_files: content.env_files,
        validate_only: dry_run,
        kind: target::Kind::from(content.kind).into(),
        profiles: content.profiles,
    };
    let create = async || {
        let mut request = tonic::Request::new(request.clone());
        // Resolving many tags at a slow registry takes its time; the orchestrator has its own deadline for each.
        request.set_timeout(std::time::Duration::from_mins(3));
        client.create_release(request).await
    };
    let release = repeated(create).await?.release.unwrap_or_default();
    if dry_run {
        anstream::eprintln!("checked; nothing was kept (--dry-run)");
    }
    show(global, &release)
}

fn show(global: &Global, release: &Release) -> Result<Exit, CliError> {
    output::write(global.output, release, || rows(std::slice::from_ref(release)))?;
    if global.output == Format::Table {
        output::line("")?;
        output::write(global.output, release, || {
            Rows::new(&["SERVICE", "COMPONENT", "TAG", "PLATFORMS", "DIGEST"]).with(
                release.components.iter().map(|component| {
                    let name = component
                        .component
                        .strip_prefix("components/")
                        .unwrap_or(&component.component);
                    vec![
                        clean(&component.service),
                        clean(name),
                        or_dash(&component.tag),
                        or_dash(&component.platforms.join(" ")),
                        clean(&component.digest),
                    ]
                }),
            )
        })?;
        if !release.marks.is_empty() {
            output::line("")?;
            output::write(global.output, release, || mark_rows(&release.marks))?;
        }
        if !release.hooks.is_empty() {
            output::line("")?;
            output::write(global.output, release, || hook_rows(&release.hooks))?;
        }
    }
    Ok(Exit::Done)
}

/// The newest mark is the one that counts.
fn mark_rows(marks: &[QualityMark]) -> Rows {
    let rows = marks.iter().map(|mark| {
        vec![
            quality(mark.mark()).to_owned(),
            stamp(mark.time.as_ref()),
            clean(&mark.actor),
            or_dash(&mark.reason),
        ]
    });
    Rows::new(&["MARK", "SINCE", "BY", "WHY"]).with(rows)
}

const fn quality(mark: Mark) -> &'static str {
    match mark {
        Mark::Unspecified => "-",
        Mark::Stable => "stable",
        Mark::Unstable => "unstable",
        Mark::Deprecated => "deprecated",
    }
}

/// The name that `--kind` takes.
const fn kind(kind: target::Kind) -> &'static str {
    match kind {
        target::Kind::Unspecified => "-",
        target::Kind::DockerHost => "docker-host",
        target::Kind::ComposeHost => "compose-host",
        target::Kind::AgentHost => "agent-host",
    }
}

fn hook_rows(hooks: &[ReleaseHook]) -> Rows {
    let rows = hooks.iter().map(|hook| {
        let when = hook.when().as_str_name().trim_start_matches("WHEN_");
        let timeout = hook.timeout.as_ref().map_or(0, |timeout| timeout.seconds);
        let failure = if hook.may_fail { "continue" } else { "fail" };
        vec![
            clean(&hook.hook),
            when.to_lowercase(),
            format!("{timeout}s"),
            failure.to_owned(),
            or_dash(&hook.tag),
            clean(&hook.digest),
        ]
    });
    Rows::new(&["HOOK", "WHEN", "TIMEOUT", "ON FAILURE", "TAG", "DIGEST"]).with(rows)
}

fn rows(releases: &[Release]) -> Rows {
    let header = [
        "RELEASE", "COMMIT", "KIND", "CONTENT", "SERVICES", "MARK", "BY", "CREATED", "ID",
    ];
    Rows::new(&header).with(releases.iter().map(|release| {
        let source = release.source.clone().unwrap_or_default();
        vec![
            clean(&format!(
                "{}/{}#{}",
                source.repository, source.project, release.number
            )),
            clean(&source.commit.chars().take(12).collect::<String>()),
            kind(release.kind()).to_owned(),
            short_digest(&release.content_digest),
            release.components.len().to_string(),
            quality(release.marks.first().map_or(Mark::Unspecified, QualityMark::mark)).to_owned(),
            clean(&release.created_by),
            stamp(release.create_time.as_ref()),
            leaf(&release.name),
        ]
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_show_a_release_s_kind_and_its_marks_with_who_set_them_and_why() {
        let mut release = Release {
            marks: vec![QualityMark {
                reason: "checkout is broken".to_owned(),
                actor: "user/alice".to_owned(),
                ..QualityMark::default()
            }],
            ..Release::default()
        };
        release.set_kind(target::Kind::ComposeHost);
        release.marks[0].set_mark(Mark::Unstable);
        let list = rows(std::slice::from_ref(&release)).table();
        assert!(
            list.contains("compose-host") && list.contains("unstable"),
            "{list}"
        );
        let marks = mark_rows(&release.marks).table();
        for part in ["unstable", "user/alice", "checkout is broken"] {
            assert!(marks.contains(part), "{marks}");
        }
    }
}
