//! Answers of engines that use words of their own for the state of a container, which bollard refuses as a whole: Podman says
//! `stopped` for a moment, until it has cleaned up. Only when that has happened the same is asked again here, and read with the words
//! that are known.

use std::path::Path;

use bollard::{errors::Error, models};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

/// Largest answer that is read.
const BYTES: u64 = 16 * 1024 * 1024;
/// The oldest API that is supported knows both calls.
const API: &str = "/v1.41";

/// Whether an answer came that could not be read.
pub(super) const fn is_unread(error: &Error) -> bool {
    matches!(error, Error::JsonDataError { .. } | Error::JsonSerdeError { .. })
}

/// One container; `None` when there is none.
pub(super) async fn inspect(
    socket: &Path,
    id: &str,
) -> std::io::Result<Option<models::ContainerInspectResponse>> {
    let path = format!("{API}/containers/{}/json", escaped(id));
    let Some(mut answer) = get(socket, &path).await? else {
        return Ok(None);
    };
    correct(&mut answer["State"]["Status"]);
    read(answer).map(Some)
}

/// All containers, running or not, that fit the filters.
pub(super) async fn list(socket: &Path, filters: &Value) -> std::io::Result<Vec<models::ContainerSummary>> {
    let filters = escaped(&filters.to_string());
    let path = format!("{API}/containers/json?all=true&filters={filters}");
    let mut answer = get(socket, &path).await?.unwrap_or_default();
    for one in answer.as_array_mut().into_iter().flatten() {
        correct(&mut one["State"]);
    }
    read(answer)
}

fn correct(state: &mut Value) {
    let word = state.as_str().unwrap_or_default();
    let known = match word {
        "created" | "running" | "paused" | "restarting" | "removing" | "exited" | "dead" => word,
        "stopped" => "exited",
        "configured" | "initialized" => "created",
        // What that is, the next look will tell.
        _ => "",
    };
    *state = Value::from(known);
}

fn read<T: DeserializeOwned>(answer: Value) -> std::io::Result<T> {
    serde_json::from_value(answer).map_err(std::io::Error::other)
}

fn escaped(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b'-' => char::from(byte).to_string(),
            other => format!("%{other:02X}"),
        })
        .collect()
}

/// What the engine says to a path; `None` for 404. HTTP/1.0, so that the answer is plain and ends with the connection.
async fn get(socket: &Path, path: &str) -> std::io::Result<Option<Value>> {
    let mut stream = UnixStream::connect(socket).await?;
    let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = Vec::new();
    stream.take(BYTES).read_to_end(&mut answer).await?;
    parse(&answer)
}

fn parse(answer: &[u8]) -> std::io::Result<Option<Value>> {
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    let (head, body) = end
        .and_then(|end| Some((answer.get(..end)?, answer.get(end + 4..)?)))
        .ok_or_else(|| std::io::Error::other("the engine's answer has no end of its head"))?;
    let head = String::from_utf8_lossy(head);
    match head.split_ascii_whitespace().nth(1) {
        Some("200") => serde_json::from_slice(body)
            .map(Some)
            .map_err(std::io::Error::other),
        Some("404") => Ok(None),
        status => Err(std::io::Error::other(format!("the engine answers {status:?}"))),
    }
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixListener;

    use super::*;

    async fn asked(
        answer: &'static str,
    ) -> (String, std::io::Result<Option<models::ContainerInspectResponse>>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.sock");
        let engine = UnixListener::bind(&path).unwrap();
        let answering = async {
            let (mut stream, _) = engine.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        };
        tokio::join!(answering, inspect(&path, "a/b"))
    }

    #[tokio::test]
    async fn words_of_podman_are_understood() {
        let (request, seen) = asked(
            "HTTP/1.0 200 OK\r\nX: y\r\n\r\n{\"Id\":\"x\",\"State\":{\"Status\":\"stopped\",\"ExitCode\":3}}",
        )
        .await;
        assert!(
            request.starts_with("GET /v1.41/containers/a%2Fb/json HTTP/1.0\r\n"),
            "{request}"
        );
        let state = seen.unwrap().unwrap().state.unwrap();
        assert_eq!(state.status, Some(models::ContainerStateStatusEnum::EXITED));
        assert_eq!(state.exit_code, Some(3));
    }

    #[tokio::test]
    async fn what_is_not_there_and_what_is_no_answer_are_told_apart() {
        assert!(
            asked("HTTP/1.0 404 Not Found\r\n\r\n{}")
                .await
                .1
                .unwrap()
                .is_none()
        );
        assert!(asked("HTTP/1.0 500 x\r\n\r\n{}").await.1.is_err());
        assert!(asked("HTTP/1.0 200 OK\r\n").await.1.is_err());
    }

    #[test]
    fn a_word_that_nobody_knows_is_no_state() {
        for (word, wanted) in [("initialized", "created"), ("running", "running"), ("odd", "")] {
            let mut state = Value::from(word);
            correct(&mut state);
            assert_eq!(state, wanted);
        }
    }
}
