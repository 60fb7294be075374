//! The connection: mutual TLS, deadlines, bounded messages; and reading lists page by page.

use std::time::Duration;

use sealift_common::bounds;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::{args::Global, context, error::CliError};

/// How long to try to connect.
const CONNECT_DEADLINE: Duration = Duration::from_secs(10);

/// A connected channel. Generated clients are made from it by [`client`].
pub async fn connect(global: &Global) -> Result<Channel, CliError> {
    connect_context(&context::resolve(global)?).await
}

/// A channel to a given context.
pub async fn connect_context(context: &context::Context) -> Result<Channel, CliError> {
    let endpoint = context.endpoint.clone();
    let unusable = |source| CliError::Unreachable {
        endpoint: endpoint.clone(),
        source,
    };
    let tls = ClientTlsConfig::new()
        .ca_certificate(Certificate::from_pem(context.ca_pem()?))
        .identity(Identity::from_pem(context.certificate_pem()?, context.key_pem()?));
    Endpoint::from_shared(context.endpoint.clone())
        .map_err(|_| {
            CliError::usage(
                format!("{:?} is not an endpoint", context.endpoint),
                "wanted https://host:port",
            )
        })?
        .connect_timeout(CONNECT_DEADLINE)
        .http2_keep_alive_interval(Duration::from_secs(10))
        .keep_alive_timeout(Duration::from_secs(20))
        .user_agent(concat!("sealift/", env!("CARGO_PKG_VERSION")))
        .map_err(unusable)?
        .tls_config(tls)
        .map_err(unusable)?
        .connect()
        .await
        .map_err(unusable)
}

/// Makes a generated client with our message bounds: `client!(environment_service, EnvironmentServiceClient, channel)`.
macro_rules! client {
    ($module:ident, $client:ident, $channel:expr) => {
        ::sealift_proto::v1::$module::$client::new($channel)
            .max_decoding_message_size(::sealift_common::bounds::MESSAGE_BYTES)
            .max_encoding_message_size(::sealift_common::bounds::MESSAGE_BYTES)
    };
}
pub(crate) use client;

/// A request with the deadline of a plain call.
pub fn unary<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(Duration::from_mins(1));
    request
}

/// A fresh identifier that makes a repeated request harmless.
pub fn request_id() -> String {
    #[expect(
        clippy::disallowed_methods,
        reason = "the edge where request identifiers are made"
    )]
    uuid::Uuid::new_v4().to_string()
}

/// Reads pages until `limit` items are there or the list ends. `fetch` gets page size and page token and gives items and the
/// next token.
pub async fn pages<T, F>(limit: u32, mut fetch: F) -> Result<Vec<T>, CliError>
where
    F: AsyncFnMut(i32, String) -> Result<(Vec<T>, String), tonic::Status>,
{
    let limit = limit as usize;
    let mut items = Vec::new();
    let mut token = String::new();
    loop {
        let size = (limit - items.len()).min(bounds::PAGE_MAX as usize);
        let (page, next) = fetch(i32::try_from(size).unwrap_or(i32::MAX), token).await?;
        items.extend(page);
        if next.is_empty() {
            return Ok(items);
        }
        if items.len() >= limit {
            items.truncate(limit);
            anstream::eprintln!("there is more: raise --limit (now {limit}) to see it");
            return Ok(items);
        }
        token = next;
    }
}

/// Reads pages to the end of a list. `fetch` gets the page token, takes what the page holds, and gives the next token.
pub async fn every_page<F>(mut fetch: F) -> Result<(), CliError>
where
    F: AsyncFnMut(String) -> Result<String, CliError>,
{
    let mut token = String::new();
    loop {
        let next = fetch(token.clone()).await?;
        if next.is_empty() {
            return Ok(());
        }
        if next == token {
            return Err(CliError::failed(
                "the orchestrator sends the same page again and again",
                "ask whoever runs it",
            ));
        }
        token = next;
    }
}

/// `environments/x` of a bare name or a full one.
pub fn named(collection: &str, name: &str) -> String {
    if name.starts_with(&format!("{collection}/")) {
        name.to_owned()
    } else {
        format!("{collection}/{name}")
    }
}

/// `environments/e/targets/t` of `e/t` or the full name.
pub fn target_name(name: &str) -> Result<String, CliError> {
    if name.starts_with("environments/") {
        return Ok(name.to_owned());
    }
    let (environment, target) = name.split_once('/').ok_or_else(|| {
        CliError::usage(
            format!("{name:?} does not name a target"),
            "wanted ENVIRONMENT/TARGET, for example staging/web-1",
        )
    })?;
    Ok(format!("environments/{environment}/targets/{target}"))
}

/// The resource name of a target that may be written alone where its environment is known.
pub fn target_in(environment: &str, target: &str) -> Result<String, CliError> {
    if target.contains('/') {
        return target_name(target);
    }
    let environment = environment.strip_prefix("environments/").unwrap_or(environment);
    target_name(&format!("{environment}/{target}"))
}
