//! What an engine's error means. Engines speak in status codes and free text; registries speak through engines. The raw text is
//! kept in the failure's detail.

use sealift_common::failure::{Failure, FailureCode};

use crate::host::HostError;

/// What was asked of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Call {
    /// Anything that looks or tidies.
    Other,
    /// Pulling an image.
    Pull,
    /// Making a container.
    Create,
    /// Starting a container.
    Start,
}

/// Parts of messages and what they mean; the first that fits counts. Lower case.
const ANY: &[(&str, FailureCode)] = &[("no space left on device", FailureCode::DiskFull)];

const PULL: &[(&str, FailureCode)] = &[
    ("no matching manifest for", FailureCode::PlatformMismatch),
    (
        "does not match the specified platform",
        FailureCode::PlatformMismatch,
    ),
    ("cannot be used on this platform", FailureCode::PlatformMismatch),
    ("layer verification failed", FailureCode::DigestMismatch),
    ("image verification failed", FailureCode::DigestMismatch),
    ("failed digest verification", FailureCode::DigestMismatch),
    ("does not match digest", FailureCode::DigestMismatch),
    ("unexpected commit digest", FailureCode::DigestMismatch),
    ("manifest verification failed", FailureCode::DigestMismatch),
    ("did not match any supplied digest", FailureCode::DigestMismatch),
    ("invalid checksum digest", FailureCode::DigestMismatch),
    ("no basic auth credentials", FailureCode::RegistryDenied),
    ("unauthorized", FailureCode::RegistryDenied),
    ("authentication required", FailureCode::RegistryDenied),
    ("denied", FailureCode::RegistryDenied),
    ("incorrect username or password", FailureCode::RegistryDenied),
    ("forbidden", FailureCode::RegistryDenied),
    ("toomanyrequests", FailureCode::RegistryUnavailable),
    ("manifest unknown", FailureCode::ImageNotFound),
    ("name unknown", FailureCode::ImageNotFound),
    ("repository name not known", FailureCode::ImageNotFound),
    ("not found", FailureCode::ImageNotFound),
    ("connection refused", FailureCode::RegistryUnavailable),
    ("connection reset", FailureCode::RegistryUnavailable),
    ("connection broken", FailureCode::RegistryUnavailable),
    // What answers is no registry, as a page of a proxy on the way.
    ("looking for beginning of value", FailureCode::RegistryUnavailable),
    ("no such host", FailureCode::RegistryUnavailable),
    ("no route to host", FailureCode::RegistryUnavailable),
    ("network is unreachable", FailureCode::RegistryUnavailable),
    ("timeout", FailureCode::RegistryUnavailable),
    ("timed out", FailureCode::RegistryUnavailable),
    ("deadline exceeded", FailureCode::RegistryUnavailable),
    ("server gave http response", FailureCode::RegistryUnavailable),
    ("x509", FailureCode::RegistryUnavailable),
    ("tls", FailureCode::RegistryUnavailable),
    ("unexpected http status", FailureCode::RegistryUnavailable),
    ("request canceled", FailureCode::RegistryUnavailable),
    ("eof", FailureCode::RegistryUnavailable),
    ("received unexpected", FailureCode::RegistryUnavailable),
];

const RUN: &[(&str, FailureCode)] = &[
    ("port is already allocated", FailureCode::PortInUse),
    ("address already in use", FailureCode::PortInUse),
    ("ports are not available", FailureCode::PortInUse),
    ("executable file not found", FailureCode::ContainerRejected),
    ("no such file or directory", FailureCode::ContainerRejected),
    ("permission denied", FailureCode::ContainerRejected),
    ("oci runtime", FailureCode::ContainerRejected),
    ("failed to create shim", FailureCode::ContainerRejected),
    ("failed to create task", FailureCode::ContainerRejected),
    ("invalid", FailureCode::ContainerRejected),
    ("unknown capability", FailureCode::ContainerRejected),
    ("unable to find user", FailureCode::ContainerRejected),
    ("not allowed", FailureCode::ContainerRejected),
];

/// The error for what the engine answered. `status` is that of the response, 200 for an error inside a stream.
pub fn engine(call: Call, subject: &str, status: u16, message: &str) -> HostError {
    let lower = message.to_lowercase();
    let find = |table: &[(&str, FailureCode)]| {
        table
            .iter()
            .find(|(part, _)| lower.contains(part))
            .map(|(_, code)| *code)
    };
    let code = find(ANY).or_else(|| match call {
        Call::Pull => find(PULL).or(match status {
            401 | 403 => Some(FailureCode::RegistryDenied),
            404 => Some(FailureCode::ImageNotFound),
            _ => None,
        }),
        Call::Create => find(RUN).or(matches!(status, 400..=499).then_some(FailureCode::ContainerRejected)),
        Call::Start => find(RUN).or(matches!(status, 400..=499).then_some(FailureCode::ContainerRejected)),
        Call::Other => None,
    });
    let code = code.unwrap_or(match status {
        502..=504 => FailureCode::EngineUnavailable,
        _ => FailureCode::EngineError,
    });
    let first = message.lines().next().unwrap_or_default();
    let summary = format!(
        "{}: {}",
        what(call, subject),
        first.chars().take(200).collect::<String>()
    );
    HostError(Failure::new(code, summary).with_detail(message))
}

/// The error for an engine that does not answer.
pub fn unreachable(call: Call, subject: &str, message: &str) -> HostError {
    let summary = format!("{}: the engine cannot be reached", what(call, subject));
    HostError(Failure::new(FailureCode::EngineUnavailable, summary).with_detail(message))
}

/// The error for a call that took too long.
pub fn timeout(call: Call, subject: &str, seconds: u64) -> HostError {
    let code = match call {
        // What is slow about a pull is nearly always the way to the registry.
        Call::Pull => FailureCode::RegistryUnavailable,
        Call::Other | Call::Create | Call::Start => FailureCode::EngineTimeout,
    };
    let summary = format!("{}: not done after {seconds} s", what(call, subject));
    HostError(Failure::new(code, summary))
}

fn what(call: Call, subject: &str) -> String {
    match call {
        Call::Other => subject.to_owned(),
        Call::Pull => format!("pull {subject}"),
        Call::Create => format!("create {subject}"),
        Call::Start => format!("start {subject}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_engines_have_codes() {
        use FailureCode as F;
        let cases = [
            (
                Call::Pull,
                404,
                "manifest for 127.0.0.1:5000/a@sha256:00 not found: manifest unknown: manifest unknown",
                F::ImageNotFound,
            ),
            (
                Call::Pull,
                500,
                "Get \"https://reg.example.com/v2/\": no basic auth credentials",
                F::RegistryDenied,
            ),
            (
                Call::Pull,
                500,
                "Head \"http://127.0.0.1:5000/v2/a/manifests/1\": unauthorized: authentication required",
                F::RegistryDenied,
            ),
            (
                Call::Pull,
                404,
                "pull access denied for acme/x, repository does not exist or may require 'docker login'",
                F::RegistryDenied,
            ),
            (
                Call::Pull,
                500,
                "Get \"http://127.0.0.1:5000/v2/\": dial tcp 127.0.0.1:5000: connect: connection refused",
                F::RegistryUnavailable,
            ),
            (
                Call::Pull,
                500,
                "invalid character '<' looking for beginning of value",
                F::RegistryUnavailable,
            ),
            (
                Call::Pull,
                500,
                "Get \"http://127.0.0.1:5000/v2/a/manifests/1\": net/http: HTTP/1.x transport connection broken: malformed MIME header: missing colon: \"Content-Lengt\"",
                F::RegistryUnavailable,
            ),
            (
                Call::Pull,
                500,
                "Get \"https://nope.example/v2/\": dial tcp: lookup nope.example: no such host",
                F::RegistryUnavailable,
            ),
            (
                Call::Pull,
                500,
                "Get \"https://r/v2/\": net/http: TLS handshake timeout",
                F::RegistryUnavailable,
            ),
            (
                Call::Pull,
                500,
                "http: server gave HTTP response to HTTPS client",
                F::RegistryUnavailable,
            ),
            (Call::Pull, 200, "unexpected EOF", F::RegistryUnavailable),
            (
                Call::Pull,
                200,
                "filesystem layer verification failed for digest sha256:00",
                F::DigestMismatch,
            ),
            (
                Call::Pull,
                200,
                "write /var/lib/docker/tmp/x: no space left on device",
                F::DiskFull,
            ),
            (
                Call::Pull,
                404,
                "no matching manifest for linux/amd64 in the manifest list entries",
                F::PlatformMismatch,
            ),
            (Call::Pull, 200, "something new", F::EngineError),
            (
                Call::Start,
                500,
                "driver failed programming external connectivity on endpoint x: Bind for 0.0.0.0:80 failed: port is already allocated",
                F::PortInUse,
            ),
            (
                Call::Start,
                500,
                "driver failed: Error starting userland proxy: listen tcp4 127.0.0.1:80: bind: address already in use",
                F::PortInUse,
            ),
            (
                Call::Start,
                400,
                "failed to create shim: OCI runtime create failed: exec: \"x\": executable file not found in $PATH",
                F::ContainerRejected,
            ),
            (
                Call::Create,
                400,
                "invalid mount config for type \"bind\": bind source path does not exist: /x",
                F::ContainerRejected,
            ),
            (
                Call::Create,
                404,
                "No such image: x@sha256:00",
                F::ContainerRejected,
            ),
            (
                Call::Create,
                500,
                "mkdir /var/lib/docker/overlay2/x: no space left on device",
                F::DiskFull,
            ),
            (Call::Other, 500, "boom", F::EngineError),
            (Call::Other, 503, "starting", F::EngineUnavailable),
        ];
        for (call, status, message, code) in cases {
            let HostError(failure) = engine(call, "x", status, message);
            assert_eq!(failure.code, code, "{message}");
            assert_eq!(failure.detail, message);
        }
    }

    #[test]
    fn slow_and_absent_engines_are_transient() {
        assert!(timeout(Call::Start, "x", 1).is_transient());
        assert!(unreachable(Call::Pull, "x", "ENOENT").is_transient());
        assert!(!engine(Call::Other, "x", 500, "boom").is_transient());
    }
}
