//! What happens to a response on its way out.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::Future as _;
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use sealift_common::error::Reason;
use tokio::time::Sleep;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Code, Status, body::Body};
use tonic_types::StatusExt as _;

use super::REQUEST_ID;
use crate::status::{ApiError, explained};

/// Names the call, so that a caller can point at it in the orchestrator's log.
pub(super) fn with_request_id(mut response: Response<Body>, id: &str) -> Response<Body> {
    if let Ok(value) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Gives a refusal that did not come from a handler (a message that is too large or none, an unknown service of health) what
/// every refusal has: a reason, a next step and a page.
pub(super) fn with_reason(response: Response<Body>) -> Response<Body> {
    match Status::from_header_map(response.headers()) {
        Some(status) if status.code() != Code::Ok && status.get_details_error_info().is_none() => {
            explained(&status).into_http()
        }
        _ => response,
    }
}

/// Ends a stream when its principal is revoked, or when the certificate that it was opened with does not count any more.
pub(super) fn while_certified(
    response: Response<Body>,
    revoked: CancellationToken,
    life: Option<Duration>,
) -> Response<Body> {
    response.map(|body| {
        Body::new(WhileCertified {
            body: Some(body),
            revoked: Box::pin(revoked.cancelled_owned()),
            expired: life.map(|life| Box::pin(tokio::time::sleep(life))),
        })
    })
}

struct WhileCertified {
    /// `None` once the stream was ended from here; the handler's side is dropped with it.
    body: Option<Body>,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
    /// `None` for callers without a certificate.
    expired: Option<Pin<Box<Sleep>>>,
}

impl WhileCertified {
    /// Why the stream has to end, if it has to.
    fn poll_end(&mut self, context: &mut Context<'_>) -> Option<ApiError> {
        let next = "ask an administrator for a new certificate";
        if self.revoked.as_mut().poll(context).is_ready() {
            let what = "the holder of the client certificate was revoked";
            return Some(ApiError::new(Reason::CertificateRefused, what, next).meta("holder", "revoked"));
        }
        let expired = self.expired.as_mut()?;
        let what = "the client certificate has expired since the stream began";
        let is_over = expired.as_mut().poll(context).is_ready();
        is_over.then(|| ApiError::new(Reason::CertificateRefused, what, next))
    }
}

impl http_body::Body for WhileCertified {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let inner = Pin::new(body).poll_frame(context);
        // The end goes first: what is ready may be something the caller must not see any more.
        if let Some(error) = self.poll_end(context) {
            self.body = None;
            let mut trailers = HeaderMap::new();
            Status::from(error).add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        inner
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }
}

#[cfg(test)]
mod tests {
    use http_body::Body as _;

    use super::*;

    struct Endless;

    impl http_body::Body for Endless {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Pending
        }
    }

    #[tokio::test]
    async fn t1_a_stream_does_not_outlive_its_certificate() {
        let life = Duration::from_millis(20);
        let response = Response::new(Body::new(Endless));
        let mut body = while_certified(response, CancellationToken::new(), Some(life)).into_body();
        let ended = std::future::poll_fn(|context| Pin::new(&mut body).poll_frame(context));
        let ended = tokio::time::timeout(Duration::from_secs(10), ended)
            .await
            .unwrap();
        let trailers = ended.unwrap().unwrap().into_trailers().unwrap();
        let status = Status::from_header_map(&trailers).unwrap();
        let info = status.get_details_error_info().unwrap();
        assert_eq!(info.reason, Reason::CertificateRefused.as_str());
        assert!(status.message().contains("expired"), "{status:?}");
    }
}
