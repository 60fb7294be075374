//! `sealift agent sign-program`: a publisher states which program is good. Offline: neither the orchestrator nor any host sees the key.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use clap::Args;
use sealift_common::{
    bounds,
    digest::Digest,
    keys::SigningKey,
    program::{self, ProgramStatement, SIGNATURE_PATH},
};

use crate::{
    error::{CliError, Exit},
    input::read_bounded,
    output,
};

/// Largest key file.
const KEY_BYTES: usize = 64 * 1024;

/// What is signed, and by whom.
#[derive(Debug, Args)]
pub struct SignProgramArgs {
    /// The program: a sealift-agent as it was built.
    program: PathBuf,
    /// The publisher's private key: Ed25519, PKCS#8 PEM (openssl genpkey -algorithm ed25519 -out publisher.pem).
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// The version that the program says of itself (sealift-agent version).
    #[arg(long, value_name = "VERSION")]
    program_version: String,
    /// What it was built for, as images spell it. Without it: what this command was built for.
    #[arg(long, value_name = "OS/ARCHITECTURE")]
    platform: Option<String>,
    /// Where the signature goes. Without it: beside the program, under the name that agents look for.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// Signs a program, and says what hosts that are to take it must trust.
pub fn sign(args: &SignProgramArgs) -> Result<Exit, CliError> {
    let pem = read_bounded(&args.key, KEY_BYTES)?;
    let key = String::from_utf8(pem)
        .ok()
        .and_then(|pem| SigningKey::from_pem(&pem).ok())
        .ok_or_else(|| {
            CliError::usage(
                format!(
                    "{} is not an Ed25519 private key in PKCS#8 PEM",
                    args.key.display()
                ),
                "make one with: openssl genpkey -algorithm ed25519 -out publisher.pem",
            )
        })?;
    let version = args.program_version.parse().map_err(|error| {
        CliError::usage(
            format!("{:?} is no version: {error}", args.program_version),
            "write it as `sealift-agent version` prints it, for example 1.4.2",
        )
    })?;
    let unreadable = |error| CliError::file(&args.program, "cannot be read", error);
    let (digest, bytes) = File::open(&args.program)
        .and_then(Digest::read)
        .map_err(unreadable)?;
    if bytes == 0 || bytes > bounds::PROGRAM_BYTES {
        return Err(CliError::usage(
            format!("{} has {bytes} bytes", args.program.display()),
            "is this the right file? Agents take programs of at most 512 MiB",
        ));
    }
    let own = || program::platform(std::env::consts::OS, std::env::consts::ARCH);
    let statement = ProgramStatement {
        program: digest,
        bytes,
        version,
        platform: args.platform.clone().unwrap_or_else(own),
    };
    let envelope = statement
        .sign(&key)
        .map_err(|error| CliError::usage(error.to_string(), "see the message"))?;
    let out = args.out.clone().unwrap_or_else(|| beside(&args.program));
    fs::write(&out, envelope).map_err(|error| CliError::file(&out, "cannot be written", error))?;
    output::line(&format!(
        "signed {} ({}, version {}, {}): {}",
        args.program.display(),
        statement.program,
        statement.version,
        statement.platform,
        out.display()
    ))?;
    output::line("hosts that are to take it say in their agent's settings:")?;
    output::line("[update]")?;
    let trusted = program::publisher_text(&key.public());
    output::line(&format!("publishers = [\"{trusted}\"]"))?;
    Ok(Exit::Done)
}

fn beside(program: &Path) -> PathBuf {
    program.with_file_name(SIGNATURE_PATH.trim_start_matches('/'))
}
