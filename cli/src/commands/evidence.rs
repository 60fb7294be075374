//! `sealift evidence`: signed statements of what happened; verified here, offline, with nothing but a trust file.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use clap::{Args, Subcommand};
use sealift_common::{
    bounds,
    evidence::Subject,
    id::PacketId,
    trust::{TrustFile, VerifiedPacket, VerifyError, verify_packet},
};
use sealift_proto::v1::{
    GetPacketRequest, GetTrustFileRequest, ListPacketsRequest, ListPacketsResponse, Packet,
    evidence_service_client::EvidenceServiceClient,
};
use serde::Serialize;
use tonic::{Response, Status, transport::Channel};

use crate::{
    args::{Global, ListArgs},
    client::{client, connect, every_page, named, target_name, unary},
    error::{CliError, Exit},
    input::{read_bounded, unreadable},
    list,
    output::{
        self, Format, REPORT, Rows,
        text::{clean, counted, leaf, short_digest, short_target, stamp},
    },
};

/// Which packets.
#[derive(Debug, Args)]
pub struct Selection {
    /// Only of this job.
    #[arg(long, conflicts_with = "place")]
    job: Option<String>,
    /// Only of this ENVIRONMENT or ENVIRONMENT/TARGET.
    #[arg(long, value_name = "PLACE")]
    place: Option<String>,
}

/// Verbs.
#[derive(Debug, Subcommand)]
pub enum EvidenceCommand {
    /// Show all, newest first.
    List {
        /// Which packets.
        #[command(flatten)]
        selection: Selection,
        /// Bounds.
        #[command(flatten)]
        list: ListArgs,
    },
    /// Write one packet's exact bytes to standard output or a file.
    Get {
        /// Its identifier.
        id: String,
        /// Where to write it.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Write every packet, the trust file and all public keys to a folder, for verification elsewhere.
    Export {
        /// The folder; made when missing.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
        /// Which packets.
        #[command(flatten)]
        selection: Selection,
    },
    /// Verify packets offline. No connection is made.
    Verify {
        /// Packet files, or folders that hold some (`*.intoto.jsonl`).
        #[arg(required = true)]
        files: Vec<PathBuf>,
        /// The trust file, got once over a channel that you trust (`evidence trust`).
        #[arg(long, value_name = "FILE")]
        trust: PathBuf,
    },
    /// Write the trust file: every public key that a verifier needs.
    Trust {
        /// Where to write it; standard output without.
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
}

type Client = EvidenceServiceClient<Channel>;

/// Ending of an exported packet: one DSSE envelope in one line.
const ENDING: &str = ".intoto.jsonl";

pub async fn run(global: &Global, command: EvidenceCommand) -> Result<Exit, CliError> {
    match command {
        EvidenceCommand::List { selection, list } => {
            let client = connected(global).await?;
            let parent = selection.parent()?;
            let fetch = async |page_size, page_token| {
                page(&client, parent.clone(), page_size, page_token, false).await
            };
            list::show(global, list, fetch, rows).await?;
            Ok(Exit::Done)
        }
        EvidenceCommand::Get { id, out } => {
            let request = GetPacketRequest {
                name: named("packets", &id),
            };
            let answer = connected(global)
                .await?
                .get_packet(unary(request))
                .await?
                .into_inner();
            let packet = answer.packet.unwrap_or_default();
            write(out.as_deref(), &packet.envelope)?;
            Ok(Exit::Done)
        }
        EvidenceCommand::Export { out, selection } => export(global, &out, &selection).await,
        EvidenceCommand::Verify { files, trust } => verify(global, &files, &trust),
        EvidenceCommand::Trust { out } => {
            let bytes = trust_file(&mut connected(global).await?).await?;
            write(out.as_deref(), &bytes)?;
            Ok(Exit::Done)
        }
    }
}

async fn connected(global: &Global) -> Result<Client, CliError> {
    Ok(client!(
        evidence_service_client,
        EvidenceServiceClient,
        connect(global).await?
    ))
}

impl Selection {
    fn parent(&self) -> Result<String, CliError> {
        Ok(match (&self.job, &self.place) {
            (Some(job), _) => named("jobs", job),
            (None, Some(place)) if place.contains('/') => target_name(place)?,
            (None, Some(place)) => named("environments", place),
            (None, None) => String::new(),
        })
    }
}

async fn page(
    client: &Client,
    parent: String,
    page_size: i32,
    page_token: String,
    include_envelopes: bool,
) -> Result<Response<ListPacketsResponse>, Status> {
    let request = ListPacketsRequest {
        parent,
        page_size,
        page_token,
        include_envelopes,
    };
    client.clone().list_packets(unary(request)).await
}

async fn trust_file(client: &mut Client) -> Result<Vec<u8>, CliError> {
    Ok(client
        .get_trust_file(unary(GetTrustFileRequest {}))
        .await?
        .into_inner()
        .trust_file)
}

async fn export(global: &Global, out: &Path, selection: &Selection) -> Result<Exit, CliError> {
    let mut client = connected(global).await?;
    let trust = trust_file(&mut client).await?;
    let keys = out.join("keys");
    fs::create_dir_all(&keys).map_err(|error| CliError::file(&keys, "cannot be made", error))?;
    write(Some(&out.join("trust.json")), &trust)?;
    let parsed = TrustFile::from_json(&trust).map_err(|error| {
        let hint = "is this program as new as the orchestrator?";
        CliError::local("the orchestrator's trust file cannot be understood", hint, error)
    })?;
    let agents = parsed.agents.iter().map(|key| (&key.key_id, &key.public_key));
    for (id, key) in parsed
        .orchestrator
        .iter()
        .map(|key| (&key.key_id, &key.public_key))
        .chain(agents)
    {
        let pem = key
            .to_pem()
            .map_err(|error| CliError::local("a public key cannot be written", REPORT, error))?;
        write(Some(&keys.join(format!("{}.pem", id.as_str()))), pem.as_bytes())?;
    }
    let parent = selection.parent()?;
    let mut packets = Vec::new();
    // Half of the evidence would look like all of it, so there is no bound; what is written is not kept in memory.
    every_page(async |page_token| {
        let answer = page(&client, parent.clone(), 0, page_token, true).await?;
        let page = answer.into_inner();
        for mut packet in page.packets {
            write_packet(out, &packet)?;
            packet.envelope.clear();
            packets.push(packet);
        }
        Ok(page.next_page_token)
    })
    .await?;
    anstream::eprintln!(
        "{}, the trust file and {} are in {}",
        counted(packets.len(), "packet"),
        counted(parsed.orchestrator.len() + parsed.agents.len(), "public key"),
        out.display()
    );
    anstream::eprintln!(
        "to verify: sealift evidence verify {0} --trust {0}/trust.json",
        out.display()
    );
    if global.output != Format::Table {
        let answer = ListPacketsResponse {
            packets,
            next_page_token: String::new(),
        };
        output::write_message(global.output, &answer)?;
    }
    Ok(Exit::Done)
}

fn write(out: Option<&Path>, bytes: &[u8]) -> Result<(), CliError> {
    match out {
        None => output::write_stdout(bytes),
        Some(path) => {
            fs::write(path, bytes).map_err(|error| CliError::file(path, "cannot be written", error))
        }
    }
}

fn write_packet(out: &Path, packet: &Packet) -> Result<(), CliError> {
    // A server that we do not trust names the packet: only its last, checked segment becomes a file name.
    let id: PacketId = leaf(&packet.name).parse().map_err(|error| {
        let hint = "nothing was written for it: ask whoever runs the orchestrator";
        CliError::local(
            "the orchestrator sent a packet without a proper name",
            hint,
            error,
        )
    })?;
    write(Some(&out.join(format!("{id}{ENDING}"))), &packet.envelope)
}

/// What became of one file.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Verdict {
    file: String,
    verified: bool,
    /// Stable code when it did not verify.
    #[serde(skip_serializing_if = "String::is_empty")]
    code: String,
    /// What it says, or why it is not believed.
    summary: String,
}

fn verify(global: &Global, files: &[PathBuf], trust: &Path) -> Result<Exit, CliError> {
    let bytes = read(trust)?;
    let trust = TrustFile::from_json(&bytes).map_err(|error| {
        CliError::usage(
            format!("{} is not a trust file: {error}", trust.display()),
            "get one with `sealift evidence trust`",
        )
    })?;
    let mut verdicts = Vec::new();
    for file in expand(files)? {
        let outcome = verify_packet(read(&file)?.trim_ascii_end(), &trust);
        let file = file.display().to_string();
        verdicts.push(match outcome {
            Ok(packet) => Verdict {
                file,
                verified: true,
                code: String::new(),
                summary: summary(&packet),
            },
            Err(error) => Verdict {
                file,
                verified: false,
                code: error.code().to_owned(),
                summary: reason(&error),
            },
        });
    }
    output::write(global.output, &verdicts, || {
        Rows::new(&["VERIFIED", "FILE", "WHAT IT SAYS"]).with(verdicts.iter().map(|verdict| {
            let answer = if verdict.verified { "yes" } else { "NO" };
            vec![answer.to_owned(), clean(&verdict.file), clean(&verdict.summary)]
        }))
    })?;
    let refused = verdicts.iter().filter(|verdict| !verdict.verified).count();
    if verdicts.is_empty() {
        return Err(CliError::usage(
            "there is no packet to verify",
            format!("packets are files that end in {ENDING}"),
        ));
    }
    if refused > 0 {
        return Err(CliError::NotVerified(format!(
            "not verified: {refused} of {}",
            counted(verdicts.len(), "packet")
        )));
    }
    Ok(Exit::Done)
}

fn summary(packet: &VerifiedPacket) -> String {
    let said = &packet.statement.predicate;
    let hooks: Vec<_> = said
        .hooks
        .iter()
        .map(|run| format!("{} {}", run.hook, run.result))
        .collect();
    let hooks = if hooks.is_empty() {
        String::new()
    } else {
        format!("; hooks: {}", hooks.join(", "))
    };
    let allowances: BTreeSet<_> = said
        .allowances
        .iter()
        .map(|allowance| format!("{} ({})", clean(&allowance.what), allowance.setting))
        .collect();
    let allowances = if allowances.is_empty() {
        String::new()
    } else {
        let all: Vec<_> = allowances.into_iter().collect();
        format!("; allowed by the host's settings: {}", all.join(", "))
    };
    format!(
        "{} {}/{}#{} on {}/{} by {}, running {}{hooks}{allowances}",
        said.result,
        said.release.repository,
        said.release.project,
        said.release.number,
        said.environment,
        said.target,
        said.decision.requested_by,
        running(&packet.statement.subject)
    )
}

/// What runs after the attempt. A statement without an image names its release in their place; no repository has a number sign.
fn running(subjects: &[Subject]) -> String {
    let images: Vec<_> = subjects
        .iter()
        .filter(|subject| !subject.name.contains('#'))
        .map(|subject| {
            format!(
                "{}@{}",
                clean(&subject.name),
                short_digest(&subject.digest.sha256)
            )
        })
        .collect();
    if images.is_empty() {
        "nothing".to_owned()
    } else {
        images.join(", ")
    }
}

fn reason(error: &VerifyError) -> String {
    let mut text = format!("{}: {error}", error.code());
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

fn expand(files: &[PathBuf]) -> Result<Vec<PathBuf>, CliError> {
    let mut all = Vec::new();
    for file in files {
        if !file.is_dir() {
            all.push(file.clone());
            continue;
        }
        for entry in fs::read_dir(file).map_err(|error| unreadable(file, &error))? {
            let path = entry.map_err(|error| unreadable(file, &error))?.path();
            if path.to_string_lossy().ends_with(ENDING) {
                all.push(path);
            }
        }
    }
    all.sort();
    Ok(all)
}

/// A file that is not there is a wrong use of the command: what does not verify has an exit code of its own, which CI can trust.
fn read(path: &Path) -> Result<Vec<u8>, CliError> {
    read_bounded(path, 64 * bounds::ENVELOPE_BYTES)
}

fn rows(packets: &[Packet]) -> Rows {
    Rows::new(&[
        "PACKET", "RESULT", "TARGET", "JOB", "ATTEMPT", "DIGEST", "CREATED",
    ])
    .with(packets.iter().map(|packet| {
        let job = packet.task.split("/tasks/").next().unwrap_or_default();
        vec![
            leaf(&packet.name),
            clean(&packet.result),
            short_target(&packet.target),
            leaf(job),
            packet.attempt.to_string(),
            short_digest(&packet.digest),
            stamp(packet.create_time.as_ref()),
        ]
    }))
}

#[cfg(test)]
mod tests {
    use sealift_common::evidence::SubjectDigest;

    use super::*;
    use crate::output::Color;

    #[test]
    fn a_statement_that_names_no_image_says_that_nothing_runs() {
        let subject = |name: &str| Subject {
            name: name.to_owned(),
            digest: SubjectDigest {
                sha256: "0".repeat(64),
            },
        };
        assert_eq!(running(&[subject("release:github.com/acme/shop#1")]), "nothing");
        let text = running(&[subject("release:5000/acme/api")]);
        assert!(text.starts_with("release:5000/acme/api@"), "{text}");
    }

    #[test]
    fn a_packet_or_trust_file_that_is_not_there_is_told_apart_from_one_that_does_not_verify() {
        let global = Global {
            context: None,
            context_file: None,
            endpoint: None,
            output: Format::Table,
            color: Color::Never,
        };
        let nowhere = PathBuf::from("/nowhere/to/be/found");
        let error = verify(&global, std::slice::from_ref(&nowhere), &nowhere).unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        let folder = tempfile::tempdir().unwrap();
        let trust = folder.path().join("trust.json");
        fs::write(&trust, "no trust").unwrap();
        let error = verify(&global, std::slice::from_ref(&nowhere), &trust).unwrap_err();
        assert_eq!(error.exit(), Exit::Usage);
        let forged = CliError::NotVerified(String::new());
        assert_eq!(forged.exit(), Exit::Failed);
    }
}
