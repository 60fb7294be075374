//! Servers to resolve against: Debian's docker-registry, and a small one that does what it is told, right or wrong.

use std::{
    fmt::Write as _,
    io::{BufRead, BufReader},
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use sealift_common::digest::Digest;
use serde_json::json;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};

/// User, password and the line of an htpasswd file that allows them.
pub const USER: &str = "ann";
pub const PASSWORD: &str = "s3cret:x";
const HTPASSWD: &str = "ann:$2b$05$abcdefghijklmnopqrstuuWrm/5AoaKADYlqOe34LrWvaAncFaCxG\n";

/// A docker-registry, our own or the one that `SEALIFT_TEST_REGISTRY` names.
pub struct RealRegistry {
    pub host: String,
    process: Option<(Child, TempDir)>,
}

impl RealRegistry {
    pub fn open() -> Self {
        match std::env::var("SEALIFT_TEST_REGISTRY") {
            Ok(host) => Self { host, process: None },
            Err(_) => Self::start(false),
        }
    }

    pub fn start(auth: bool) -> Self {
        let folder = TempDir::new().unwrap();
        let root = folder.path().display();
        let mut config = format!(
            "version: 0.1\nlog: {{level: info}}\nstorage: {{filesystem: {{rootdirectory: {root}/data}}}}\n\
             http: {{addr: '127.0.0.1:0', secret: test}}\n"
        );
        if auth {
            writeln!(
                config,
                "auth: {{htpasswd: {{realm: test, path: {root}/htpasswd}}}}"
            )
            .unwrap();
            std::fs::write(folder.path().join("htpasswd"), HTPASSWD).unwrap();
        }
        let path = folder.path().join("config.yml");
        std::fs::write(&path, config).unwrap();
        let mut process = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .env("OTEL_TRACES_EXPORTER", "none")
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("Debian's package docker-registry is installed");
        let mut lines = BufReader::new(process.stderr.take().unwrap()).lines();
        let host = lines
            .by_ref()
            .map_while(Result::ok)
            .find_map(|line| {
                let (_, rest) = line.split_once("listening on ")?;
                let end = rest.find(|c: char| !c.is_ascii_digit() && !matches!(c, '.' | ':'));
                Some(rest[..end.unwrap_or(rest.len())].to_owned())
            })
            .expect("docker-registry says where it listens");
        // Somebody has to read on, or it blocks when the pipe is full.
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
        Self {
            host,
            process: Some((process, folder)),
        }
    }

    /// Pushes an image for `linux/arm64` with plain HTTP calls; returns the digest of its manifest.
    pub async fn push(&self, repository: &str, tag: &str) -> Digest {
        let config =
            json!({"os": "linux", "architecture": "arm64", "rootfs": {"type": "layers", "diff_ids": []}});
        let config = self.push_blob(repository, config.to_string().into_bytes()).await;
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0, "size": config.1},
            "layers": [],
        });
        self.push_manifest(repository, tag, &manifest).await
    }

    async fn push_blob(&self, repository: &str, bytes: Vec<u8>) -> (String, usize) {
        let host = &self.host;
        let (digest, size) = (Digest::of(&bytes).to_string(), bytes.len());
        let begun = client()
            .post(format!("http://{host}/v2/{repository}/blobs/uploads/"))
            .basic_auth(USER, Some(PASSWORD))
            .send()
            .await
            .unwrap();
        let location = begun.headers()["location"].to_str().unwrap().to_owned();
        let url = begun.url().join(&location).unwrap();
        let put = client().put(url).query(&[("digest", &digest)]);
        let done = put
            .basic_auth(USER, Some(PASSWORD))
            .body(bytes)
            .send()
            .await
            .unwrap();
        assert_eq!(done.status(), 201);
        (digest, size)
    }

    pub async fn push_manifest(&self, repository: &str, tag: &str, manifest: &serde_json::Value) -> Digest {
        let bytes = manifest.to_string();
        let digest = Digest::of(bytes.as_bytes());
        let put = client().put(format!("http://{}/v2/{repository}/manifests/{tag}", self.host));
        let done = put
            .header("content-type", manifest["mediaType"].as_str().unwrap())
            .basic_auth(USER, Some(PASSWORD))
            .body(bytes)
            .send()
            .await
            .unwrap();
        assert_eq!(done.status(), 201, "{:?}", done.text().await);
        digest
    }
}

impl Drop for RealRegistry {
    fn drop(&mut self) {
        if let Some((process, _folder)) = &mut self.process {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn client() -> reqwest::Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    reqwest::Client::builder().no_proxy().build().unwrap()
}

/// Writes a docker `config.json` with USER and `password` for `host`.
pub fn docker_config(path: &Path, host: &str, password: &str) {
    use base64::{Engine, prelude::BASE64_STANDARD};
    let auth = BASE64_STANDARD.encode(format!("{USER}:{password}"));
    std::fs::write(path, json!({"auths": {host: {"auth": auth}}}).to_string()).unwrap();
}

/// One answer of [`Fake`].
pub enum Answer {
    /// Status line and headers (each line ended), and the body.
    Full(String, Vec<u8>),
    /// A head, then bytes until the client hangs up.
    Endless(String),
    /// Nothing at all, with the connection open.
    Silence,
}

/// `200 OK` with a body and further headers.
pub fn ok(headers: &str, body: impl Into<Vec<u8>>) -> Answer {
    status("200 OK", headers, body)
}

/// An answer with any status.
pub fn status(status: &str, headers: &str, body: impl Into<Vec<u8>>) -> Answer {
    let body = body.into();
    let head = format!(
        "HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: {}\r\n{headers}",
        body.len()
    );
    Answer::Full(head, body)
}

/// A server that answers as the given function says; it gets the request's head and its number from 0.
pub struct Fake {
    pub address: SocketAddr,
    pub asked: Arc<AtomicUsize>,
    _tasks: JoinSet<()>,
}

impl Fake {
    pub async fn start(answer: impl Fn(&str, usize) -> Answer + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let count = asked.clone();
        let answer = Arc::new(answer);
        let mut tasks = JoinSet::new();
        tasks.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (answer, count) = (answer.clone(), count.clone());
                connections.spawn(async move {
                    let _ = serve(stream, &*answer, &count).await;
                });
            }
        });
        Self {
            address,
            asked,
            _tasks: tasks,
        }
    }

    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    pub fn image(&self, name: &str) -> String {
        format!("{}/{name}", self.address)
    }
}

async fn serve(
    mut stream: TcpStream,
    answer: &(dyn Fn(&str, usize) -> Answer + Send + Sync),
    count: &AtomicUsize,
) -> std::io::Result<()> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < 64 * 1024 {
        head.push(stream.read_u8().await?);
        // A TLS greeting: say what servers of plain http say.
        if head == [0x16] {
            return stream.write_all(b"HTTP/1.0 400 Bad Request\r\n\r\n").await;
        }
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    match answer(&head, count.fetch_add(1, Ordering::SeqCst)) {
        Answer::Full(head, body) => {
            stream.write_all(format!("{head}\r\n").as_bytes()).await?;
            stream.write_all(&body).await?;
            stream.shutdown().await
        }
        Answer::Endless(head) => {
            stream.write_all(format!("{head}\r\n").as_bytes()).await?;
            loop {
                stream.write_all(&b" ".repeat(64 * 1024)).await?;
            }
        }
        // Until the client hangs up.
        Answer::Silence => stream.read(&mut [0; 1]).await.map(drop),
    }
}
