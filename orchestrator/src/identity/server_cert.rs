//! The server's own certificate: issued by the CA at start, replaced in place before it expires.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use chrono::{DateTime, TimeDelta, Utc};
use rustls::{
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sealift_common::time::Clock;
use tokio_util::sync::CancellationToken;

use super::{Ca, IdentityError, ServerNames};

/// How long a server certificate lives.
const LIFE: TimeDelta = TimeDelta::days(7);

/// It is replaced when less than this is left, so that days of failures are survived.
const RENEW_BEFORE: TimeDelta = TimeDelta::days(3);

/// How often the loop looks.
const LOOK_EVERY: Duration = Duration::from_mins(10);

/// Gives rustls the newest certificate: leaf and CA, so that a joining agent can compare the CA with its token's pin.
#[derive(Debug)]
pub struct ServerCertificate {
    ca: Arc<Ca>,
    names: ServerNames,
    current: ArcSwap<Current>,
}

#[derive(Debug)]
struct Current {
    key: Arc<CertifiedKey>,
    not_after: DateTime<Utc>,
}

fn issue(ca: &Ca, names: &ServerNames, now: DateTime<Utc>) -> Result<Current, IdentityError> {
    let (issued, key) = ca.issue_server(names, now, LIFE)?;
    let key = CertifiedKey::from_der(
        vec![issued.leaf, ca.certificate().clone()],
        PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key)),
        &rustls::crypto::ring::default_provider(),
    )?;
    Ok(Current {
        key: Arc::new(key),
        not_after: issued.not_after,
    })
}

impl ServerCertificate {
    /// Issues the first certificate.
    pub fn new(ca: Arc<Ca>, names: ServerNames, now: DateTime<Utc>) -> Result<Arc<Self>, IdentityError> {
        let current = ArcSwap::from_pointee(issue(&ca, &names, now)?);
        Ok(Arc::new(Self { ca, names, current }))
    }

    /// End of life of the certificate in use.
    pub fn not_after(&self) -> DateTime<Utc> {
        self.current.load().not_after
    }

    /// Replaces the certificate when it is due. Connections that are open keep theirs. Gives whether it was replaced.
    pub fn renew_if_due(&self, now: DateTime<Utc>) -> Result<bool, IdentityError> {
        if self.not_after() - now > RENEW_BEFORE {
            return Ok(false);
        }
        self.current.store(Arc::new(issue(&self.ca, &self.names, now)?));
        Ok(true)
    }

    /// Renews until `stop`. A failure is logged and tried again at the next look.
    pub async fn keep_fresh(self: Arc<Self>, clock: Arc<dyn Clock>, stop: CancellationToken) {
        let mut looks = tokio::time::interval(LOOK_EVERY);
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                _ = looks.tick() => match self.renew_if_due(clock.now()) {
                    Ok(true) => tracing::info!(not_after = %self.not_after(), "server certificate renewed"),
                    Ok(false) => {}
                    Err(error) => tracing::error!(
                        error = &error as &dyn std::error::Error,
                        not_after = %self.not_after(),
                        "server certificate not renewed"
                    ),
                },
            }
        }
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.current.load().key))
    }
}
