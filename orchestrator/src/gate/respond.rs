//! What happens to a response on its way out.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures::Future as _;
use http::{HeaderMap, HeaderValue, Response};
use http_body::Frame;
use sealift_common::error::Reason;
use tokio_util::sync::{CancellationToken, WaitForCancellationFutureOwned};
use tonic::{Status, body::Body};

use super::REQUEST_ID;
use crate::status::ApiError;

/// Names the call, so that a caller can point at it in the orchestrator's log.
pub(super) fn with_request_id(mut response: Response<Body>, id: &str) -> Response<Body> {
    if let Ok(value) = HeaderValue::from_str(id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

/// Ends a stream when its principal is revoked.
pub(super) fn until_revoked(response: Response<Body>, revoked: CancellationToken) -> Response<Body> {
    response.map(|body| {
        Body::new(UntilRevoked {
            body: Some(body),
            revoked: Box::pin(revoked.cancelled_owned()),
        })
    })
}

struct UntilRevoked {
    /// `None` once the stream was ended from here; the handler's side is dropped with it.
    body: Option<Body>,
    revoked: Pin<Box<WaitForCancellationFutureOwned>>,
}

impl http_body::Body for UntilRevoked {
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
        // Revocation goes first: what is ready may be something the caller must not see any more.
        if self.revoked.as_mut().poll(context).is_ready() {
            self.body = None;
            let status = Status::from(
                ApiError::new(
                    Reason::CertificateRefused,
                    "the holder of the client certificate was revoked",
                    "ask an administrator for a new certificate",
                )
                .meta("holder", "revoked"),
            );
            let mut trailers = HeaderMap::new();
            status.add_header(&mut trailers)?;
            return Poll::Ready(Some(Ok(Frame::trailers(trailers))));
        }
        inner
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(http_body::Body::is_end_stream)
    }
}
