//! The way to the engine: its socket is opened with each call, so an agent may start before its engine and outlive it. (bollard's
//! own way asks for the socket's file once, when it is made.) What is said over it does not belong here.

use std::path::{Path, PathBuf};

use bollard::{API_DEFAULT_VERSION, BollardRequest, Docker, errors::Error};
use hyper_util::{
    client::legacy::Client,
    rt::{TokioExecutor, TokioIo},
};
use tokio::net::UnixStream;

/// Engines take any name for the host of a request over their socket.
const HOST: &str = "http://localhost";
/// bollard's own limit, above all of ours.
pub(super) const LIMIT_SECONDS: u64 = 24 * 60 * 60;

/// A client of the engine at `path`. Nothing is asked yet, and nothing needs to be there.
pub(super) fn client(path: &Path) -> Result<Docker, Error> {
    let path = PathBuf::from(path);
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        Box::pin(async move { UnixStream::connect(path).await.map(TokioIo::new) })
    });
    let client = Client::builder(TokioExecutor::new())
        .pool_max_idle_per_host(0)
        .build(connector);
    let transport = move |request: BollardRequest| {
        let answer = client.request(request);
        async move { answer.await.map_err(Error::from) }
    };
    Docker::connect_with_custom_transport(transport, Some(HOST), LIMIT_SECONDS, API_DEFAULT_VERSION)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use sealift_common::failure::FailureCode;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::UnixListener,
        time::timeout,
    };

    use crate::host::{Host as _, docker::DockerHost};

    #[tokio::test]
    async fn f2_an_engine_that_is_not_there_is_unavailable_and_used_as_soon_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("engine.sock");
        let host = DockerHost::connect(&format!("unix://{}", path.display()), None).unwrap();
        let missing = host.engine().await.unwrap_err();
        assert_eq!(missing.0.code, FailureCode::EngineUnavailable);
        assert!(missing.is_transient());
        assert!(missing.0.detail.contains("engine.sock"), "{missing:?}");

        let engine = UnixListener::bind(&path).unwrap();
        let answer = async {
            let (mut stream, _) = engine.accept().await.unwrap();
            let mut request = vec![0; 4096];
            let read = stream.read(&mut request).await.unwrap();
            let body = r#"{"Version":"27.0.1","ApiVersion":"1.46","Os":"linux","Arch":"amd64"}"#;
            let length = body.len();
            let answer =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}");
            stream.write_all(answer.as_bytes()).await.unwrap();
            String::from_utf8_lossy(&request[..read]).into_owned()
        };
        let both = async { tokio::join!(host.engine(), answer) };
        let (seen, request) = timeout(Duration::from_secs(10), both).await.unwrap();
        assert_eq!(seen.unwrap().version, "27.0.1");
        assert!(request.starts_with("GET /version"), "{request}");
    }
}
