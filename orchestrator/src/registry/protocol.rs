//! The read-only part of the OCI distribution protocol.
//!
//! Rules: every body has a bound; plain http only to loopback and to the hosts that the configuration names; credentials go to
//! the registry itself and to the token server that it names over https, never along a redirect; manifests are not followed
//! elsewhere, blobs are (they are checked by digest); messages hold no URL queries and nothing that a server wrote.

use std::{net::Ipv4Addr, time::Duration};

use oci_spec::distribution::Reference;
use reqwest::{
    Client, RequestBuilder, Response, StatusCode, Url,
    header::{ACCEPT, LOCATION, WWW_AUTHENTICATE},
    redirect::Policy,
};
use sealift_common::digest::Digest;
use secrecy::{ExposeSecret, SecretString};
use serde::Deserialize;

use super::{
    RegistryConfig,
    credentials::Credentials,
    error::{Cause, RegistryError},
};

/// What the protocol's text recommends as the largest manifest.
const MANIFEST_BYTES: usize = 4 * 1024 * 1024;
const CONFIG_BYTES: usize = 8 * 1024 * 1024;
const TOKEN_BYTES: usize = 256 * 1024;
const REDIRECTS: usize = 5;
const CONNECT: Duration = Duration::from_secs(10);

const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// The two HTTP clients.
#[derive(Debug)]
pub struct Http {
    /// Only https; through the machine's proxy, if it has one.
    secure: Client,
    /// For registries in plain http, which are near: never through a proxy.
    plain: Client,
    insecure: Vec<String>,
}

impl Http {
    pub fn new(config: &RegistryConfig) -> Result<Self, RegistryError> {
        // Whoever comes first chooses the process's crypto provider; all of Sealift chooses the same.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let base = || {
            Client::builder()
                .redirect(Policy::none())
                .connect_timeout(CONNECT.min(config.deadline))
                .timeout(config.deadline)
                .user_agent(concat!("sealift/", env!("CARGO_PKG_VERSION")))
        };
        let broken = |error: reqwest::Error| RegistryError::Client(Cause::from(error));
        Ok(Self {
            secure: base().https_only(true).build().map_err(broken)?,
            plain: base().no_proxy().build().map_err(broken)?,
            insecure: config.insecure.clone(),
        })
    }

    /// Whether `host` (with or without port) may be spoken to in plain http.
    fn is_plain(&self, host: &str) -> bool {
        let bare = match host.rsplit_once(':') {
            Some((bare, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => bare,
            _ => host,
        };
        bare == "localhost"
            || bare == "[::1]"
            || bare
                .parse::<Ipv4Addr>()
                .is_ok_and(|address| address.is_loopback())
            || self.insecure.iter().any(|allowed| allowed == host)
    }

    fn client(&self, url: &Url) -> &Client {
        if url.scheme() == "http" {
            &self.plain
        } else {
            &self.secure
        }
    }
}

enum Authorization {
    None,
    Basic,
    Bearer(SecretString),
}

/// One resolution: a registry, a repository, and what it took to get in.
pub struct Session<'a> {
    http: &'a Http,
    reference: &'a Reference,
    credentials: Option<Credentials>,
    authorization: Authorization,
}

impl<'a> Session<'a> {
    pub fn new(http: &'a Http, reference: &'a Reference, credentials: Option<Credentials>) -> Self {
        Self {
            http,
            reference,
            credentials,
            authorization: Authorization::None,
        }
    }

    fn registry(&self) -> String {
        self.reference.registry().to_owned()
    }

    pub fn misbehaved(&self, what: impl Into<String>) -> RegistryError {
        RegistryError::Misbehaved {
            registry: self.registry(),
            what: what.into(),
        }
    }

    fn denied(&self) -> RegistryError {
        RegistryError::Denied {
            registry: self.registry(),
            image: self.reference.whole(),
            anonymous: self.credentials.is_none(),
        }
    }

    fn insecure(&self, what: &'static str) -> RegistryError {
        RegistryError::Insecure {
            registry: self.registry(),
            what,
        }
    }

    fn unavailable(&self, what: impl Into<String>, source: Option<Cause>) -> RegistryError {
        RegistryError::Unavailable {
            registry: self.registry(),
            what: what.into(),
            source,
        }
    }

    fn is_plain(&self) -> bool {
        self.http.is_plain(self.reference.registry())
    }

    fn url(&self, kind: &str, name: &str) -> Result<Url, RegistryError> {
        let scheme = if self.is_plain() { "http" } else { "https" };
        let host = match self.reference.registry() {
            "docker.io" => "registry-1.docker.io",
            host => host,
        };
        let repository = self.reference.repository();
        Url::parse(&format!("{scheme}://{host}/v2/{repository}/{kind}/{name}"))
            .map_err(|_| self.misbehaved("its name makes no URL"))
    }

    /// The bytes of a manifest by tag or digest, and the digest that the registry claims for it.
    pub async fn manifest(&mut self, name: &str) -> Result<(Vec<u8>, Option<String>), RegistryError> {
        let url = self.url("manifests", name)?;
        let mut response = self.get(&url).await?;
        if response.status() == StatusCode::UNAUTHORIZED {
            self.log_in(&response).await?;
            response = self.get(&url).await?;
        }
        self.check(&response)?;
        let claimed = response
            .headers()
            .get("docker-content-digest")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let bytes = self.body(response, MANIFEST_BYTES).await?;
        Ok((bytes, claimed))
    }

    /// The bytes of a blob. Redirects are followed without credentials.
    pub async fn blob(&mut self, digest: Digest) -> Result<Vec<u8>, RegistryError> {
        let mut url = self.url("blobs", &digest.to_string())?;
        let mut response = self.get(&url).await?;
        for _ in 0..REDIRECTS {
            if !response.status().is_redirection() {
                break;
            }
            url = self.target(&url, &response)?;
            let request = self.http.client(&url).get(url.clone());
            response = self.send(request).await?;
        }
        self.check(&response)?;
        self.body(response, CONFIG_BYTES).await
    }

    /// Where a redirect leads. From https only to https; from plain http to hosts that are allowed plain http too.
    fn target(&self, from: &Url, response: &Response) -> Result<Url, RegistryError> {
        let url = response
            .headers()
            .get(LOCATION)
            .and_then(|value| value.to_str().ok())
            .and_then(|text| from.join(text).ok())
            .filter(Url::has_host)
            .ok_or_else(|| self.misbehaved("it redirects to nowhere"))?;
        match url.scheme() {
            "https" => Ok(url),
            "http" if self.is_plain() && self.http.is_plain(url.authority()) => Ok(url),
            "http" => Err(self.insecure("it redirects to plain http")),
            _ => Err(self.misbehaved("it redirects to another protocol")),
        }
    }

    /// A request to the registry itself.
    async fn get(&self, url: &Url) -> Result<Response, RegistryError> {
        let request = self
            .http
            .client(url)
            .get(url.clone())
            .header(ACCEPT, MANIFEST_TYPES);
        let request = match (&self.authorization, &self.credentials) {
            (Authorization::Bearer(token), _) => request.bearer_auth(token.expose_secret()),
            (Authorization::Basic, Some(credentials)) => basic(request, credentials),
            _ => request,
        };
        self.send(request).await
    }

    async fn send(&self, request: RequestBuilder) -> Result<Response, RegistryError> {
        request.send().await.map_err(|error| {
            if speaks_plain(&error) {
                self.insecure("it does not answer in TLS")
            } else {
                self.unavailable("the request got no answer", Some(error.without_url().into()))
            }
        })
    }

    fn check(&self, response: &Response) -> Result<(), RegistryError> {
        let status = response.status();
        match status {
            StatusCode::OK => Ok(()),
            StatusCode::NOT_FOUND => Err(RegistryError::NotFound {
                image: self.reference.whole(),
            }),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => Err(self.denied()),
            StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT => {
                Err(self.unavailable(format!("it answered {}", status.as_u16()), None))
            }
            status if status.is_server_error() => {
                Err(self.unavailable(format!("it answered {}", status.as_u16()), None))
            }
            status if status.is_redirection() => Err(self.misbehaved("it redirects to elsewhere")),
            status => Err(self.misbehaved(format!("it answered {}", status.as_u16()))),
        }
    }

    async fn body(&self, mut response: Response, most: usize) -> Result<Vec<u8>, RegistryError> {
        let too_long = || self.misbehaved(format!("it sends more than {most} bytes where less is due"));
        let most_long = u64::try_from(most).unwrap_or(u64::MAX);
        if response.content_length().is_some_and(|length| length > most_long) {
            return Err(too_long());
        }
        let mut bytes = Vec::new();
        loop {
            let chunk = response.chunk().await.map_err(|error| {
                self.unavailable("the answer broke off", Some(error.without_url().into()))
            })?;
            let Some(chunk) = chunk else {
                return Ok(bytes);
            };
            if bytes.len() + chunk.len() > most {
                return Err(too_long());
            }
            bytes.extend_from_slice(&chunk);
        }
    }

    /// Does what a 401 asks for: basic credentials, or a token from the server that it names.
    async fn log_in(&mut self, response: &Response) -> Result<(), RegistryError> {
        let headers: Vec<&str> = response
            .headers()
            .get_all(WWW_AUTHENTICATE)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .collect();
        let mut bearer = None;
        let mut basic = false;
        for header in headers {
            for challenge in http_auth::parse_challenges(header).unwrap_or_default() {
                let param = |wanted: &str| {
                    challenge
                        .params
                        .iter()
                        .find(|(name, _)| name.eq_ignore_ascii_case(wanted))
                        .map(|(_, value)| value.to_unescaped())
                };
                if challenge.scheme.eq_ignore_ascii_case("bearer") {
                    bearer = param("realm").map(|realm| (realm, param("service")));
                }
                basic |= challenge.scheme.eq_ignore_ascii_case("basic");
            }
        }
        if let Some((realm, service)) = bearer {
            let token = self.token(&realm, service.as_deref()).await?;
            self.authorization = Authorization::Bearer(token);
            return Ok(());
        }
        if !basic {
            return Err(self.misbehaved("it refuses access without saying how to get it"));
        }
        if self.credentials.is_none() {
            return Err(self.denied());
        }
        self.authorization = Authorization::Basic;
        Ok(())
    }

    async fn token(&self, realm: &str, service: Option<&str>) -> Result<SecretString, RegistryError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let url = Url::parse(realm).map_err(|_| self.misbehaved("its token server has no valid URL"))?;
        match url.scheme() {
            "https" => {}
            "http" if self.is_plain() && self.http.is_plain(url.authority()) => {}
            "http" => return Err(self.insecure("its token server is plain http")),
            _ => return Err(self.misbehaved("its token server has no valid URL")),
        }
        let scope = format!("repository:{}:pull", self.reference.repository());
        let mut request = self
            .http
            .client(&url)
            .get(url.clone())
            .query(&[("scope", scope.as_str())]);
        if let Some(service) = service {
            request = request.query(&[("service", service)]);
        }
        if let Some(credentials) = &self.credentials {
            request = basic(request, credentials);
        }
        let response = self.send(request).await?;
        match response.status() {
            StatusCode::BAD_REQUEST | StatusCode::NOT_FOUND => return Err(self.denied()),
            _ => self.check(&response)?,
        }
        let bytes = self.body(response, TOKEN_BYTES).await?;
        let token: Token =
            serde_json::from_slice(&bytes).map_err(|_| self.misbehaved("its token server sends no token"))?;
        token
            .token
            .or(token.access_token)
            .filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()))
            .map(SecretString::from)
            .ok_or_else(|| self.misbehaved("its token server sends no token"))
    }
}

fn basic(request: RequestBuilder, credentials: &Credentials) -> RequestBuilder {
    request.basic_auth(&credentials.user, Some(credentials.password.expose_secret()))
}

/// Whether the peer answered a TLS greeting with something that is no TLS, as plain http servers do.
fn speaks_plain(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidMessage(_)) = error.downcast_ref() {
            return true;
        }
        // An I/O error passes itself over in `source` and only shows what it wraps here.
        cause = match error.downcast_ref::<std::io::Error>() {
            Some(error) => error
                .get_ref()
                .map(|inner| inner as &(dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    false
}
