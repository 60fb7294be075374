//! The connection: mutual TLS, deadlines, bounded messages; and what calls have in common.

use std::time::Duration;

use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};

use crate::{
    args::Global,
    context,
    error::{CliError, Exit},
    watch,
};

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

/// Makes a call that carries a request id; tried again when the connection breaks, which the id makes harmless.
pub async fn repeated<T>(
    mut call: impl AsyncFnMut() -> Result<tonic::Response<T>, tonic::Status>,
) -> Result<T, CliError> {
    const MOST_TRIES: usize = 5;
    let mut pauses = watch::pauses().take(MOST_TRIES - 1);
    loop {
        let error = match call().await {
            Ok(answer) => return Ok(answer.into_inner()),
            Err(status) => CliError::from(status),
        };
        match pauses.next() {
            Some(pause) if error.exit() == Exit::Unreachable => tokio::time::sleep(pause).await,
            _ => return Err(error),
        }
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

#[cfg(test)]
mod tests {
    use tonic::{Response, Status};

    use super::*;

    /// Calls with these answers in turn; gives what became of it, and after how many calls.
    async fn after(mut answers: Vec<Result<u8, Status>>) -> (Result<u8, CliError>, usize) {
        let mut calls = 0;
        answers.reverse();
        let done = repeated(async || {
            calls += 1;
            let answer = answers.pop().unwrap_or_else(|| Err(Status::unavailable("away")));
            answer.map(Response::new)
        })
        .await;
        (done, calls)
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_with_an_id_outlives_a_connection_that_breaks_but_not_a_refusal() {
        let away = || Err(Status::unavailable("away"));
        let (done, calls) = after(vec![away(), away(), Ok(7)]).await;
        assert_eq!((done.unwrap(), calls), (7, 3));
        let refused = Err(Status::failed_precondition("no"));
        let (done, calls) = after(vec![away(), refused, Ok(7)]).await;
        assert_eq!((done.unwrap_err().exit(), calls), (Exit::Conflict, 2));
        let (done, calls) = after(Vec::new()).await;
        assert_eq!((done.unwrap_err().exit(), calls), (Exit::Unreachable, 5));
    }
}
