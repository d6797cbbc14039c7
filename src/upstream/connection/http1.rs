//! HTTP/1.1 by hyper, one request at a time. hyper's client types do not leave this file.

use std::error::Error;
use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode};
use http_body::{Body, Frame, SizeHint};
use hyper::client::conn::http1::{self, SendRequest};
use hyper::ext::ReasonPhrase;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::AbortHandle;

use super::flaw::flaw;
use super::interim::TooMany;
use super::wire::{Outcome, Unanswered, Wire};
use super::{Received, Undelivered};
use crate::tls::client::{explain_later, tls_error};
use crate::upstream::dial::Stream;
use crate::upstream::error::BrokenOff;
use crate::upstream::request_body::RequestBody;

/// Greatest head of an answer, in bytes. Its fields may be as many as hyper takes by itself, which is 100, as with Envoy:
/// for any other number hyper allocates room for all of them on every answer (500 instructions).
const ANSWER_HEAD: usize = 64 << 10;
/// Greatest input and output that hyper keeps of one connection, in bytes: room for a head and what came with
/// it. hyper's own default is five times as much, which a stalled transfer holds several times over.
const BUFFER: usize = ANSWER_HEAD + (16 << 10);

#[derive(Debug)]
pub(in crate::upstream) struct Http1 {
    sender: SendRequest<RequestBody>,
    driver: AbortHandle,
    outcome: Arc<Outcome>,
}

impl Drop for Http1 {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Http1 {
    pub(super) async fn open(stream: Stream) -> io::Result<Self> {
        let (wire, outcome) = Wire::new(stream);
        let (sender, driver) = http1::Builder::new()
            .writev(false)
            .max_header_size(ANSWER_HEAD)
            .max_buf_size(BUFFER)
            .handshake(TokioIo::new(wire))
            .await
            .map_err(io::Error::other)?;
        // The driver's own error also reaches the request that is under way.
        let driver = tokio::task::spawn_local(async move { drop(driver.with_upgrades().await) });
        Ok(Self { sender, driver: driver.abort_handle(), outcome })
    }

    pub(super) fn is_ready(&self) -> bool {
        self.sender.is_ready() && !self.outcome.is_broken()
    }

    pub(super) fn is_closed(&self) -> bool {
        self.sender.is_closed() || self.outcome.is_broken()
    }

    pub(super) fn unanswered(&self) -> Option<Unanswered> {
        self.outcome.unanswered()
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.outcome.is_waiting()
    }

    pub(super) fn take_links(&self, cx: &Context<'_>) -> Vec<HeaderValue> {
        self.outcome.take_links(cx)
    }

    pub(super) fn forget_links(&self) {
        self.outcome.forget_links();
    }

    pub(super) fn abandon(&self) {
        self.driver.abort();
    }

    pub(super) fn spoke_unasked(&self) -> Option<BrokenOff> {
        let came = self.outcome.came();
        let unasked =
            (came.is_unasked && !came.beginning.is_empty()).then_some("it spoke before it was asked");
        let flaw = unasked.map(|unasked| match flaw(&came.beginning) {
            Some(flaw) => format!("{unasked}: {flaw}"),
            None => unasked.to_owned(),
        });
        flaw.map(|flaw| BrokenOff::Malformed(flaw.into()))
    }

    pub(super) fn explained(&self, cause: BrokenOff) -> BrokenOff {
        let BrokenOff::Malformed(words) = cause else { return cause };
        BrokenOff::Malformed(flaw(&self.outcome.came().beginning).map_or(words, Into::into))
    }

    pub(super) fn send(
        &mut self,
        request: Request<RequestBody>,
    ) -> impl Future<Output = Result<Received, Undelivered>> + use<> {
        let answering = self.sender.try_send_request(request);
        async move {
            let mut response = match answering.await {
                Ok(response) => response,
                Err(mut error) => {
                    return Err(match error.take_message() {
                        Some(unsent) => Undelivered::Unsent(Box::new(unsent)),
                        None => Undelivered::BrokeOff(broken_off(&error.into_error())),
                    });
                }
            };
            let is_switch = response.status() == StatusCode::SWITCHING_PROTOCOLS;
            let upgrading = is_switch.then(|| Upgrading(hyper::upgrade::on(&mut response)));
            let (mut head, incoming) = response.into_parts();
            // Data of the upstream's connection travels as an extension, as does a reason phrase other than
            // the usual one. The phrase is the client's: to some it says more than the status.
            if let Some(phrase) = head.extensions.remove::<ReasonPhrase>() {
                head.extensions.clear();
                head.extensions.insert(phrase);
            } else {
                head.extensions.clear();
            }
            Ok(Received { head, incoming: super::Incoming::Http1(Incoming(incoming)), upgrading })
        }
    }
}

/// Only hyper's words and ours go into it, which repeat nothing of the answer.
fn broken_off(error: &hyper::Error) -> BrokenOff {
    let io = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    if error.is_parse() {
        BrokenOff::Malformed(error.to_string().into())
    } else if let Some(flaw) = io.and_then(io::Error::get_ref).and_then(|io| io.downcast_ref::<TooMany>()) {
        BrokenOff::Malformed(flaw.to_string().into())
    } else if let Some(tls) = io.and_then(tls_error) {
        BrokenOff::Tls(explain_later(tls).into())
    } else if let Some(io) = io {
        BrokenOff::Io(io.kind())
    } else if error.is_incomplete_message() || error.is_closed() || error.is_canceled() {
        BrokenOff::Closed
    } else {
        BrokenOff::Other(error.to_string().into())
    }
}

/// An answer's body as it arrives.
#[derive(Debug)]
pub(in crate::upstream) struct Incoming(hyper::body::Incoming);

impl Body for Incoming {
    type Data = Bytes;
    type Error = BodyFlaw;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyFlaw>>> {
        Pin::new(&mut self.0).poll_frame(cx).map_err(BodyFlaw)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

/// Why an answer's body broke off, in hyper's words, which repeat nothing of the body.
#[derive(Debug)]
pub(in crate::upstream) struct BodyFlaw(hyper::Error);

impl fmt::Display for BodyFlaw {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.source() {
            Some(cause) => fmt::Display::fmt(cause, f),
            None => fmt::Display::fmt(&self.0, f),
        }
    }
}

/// A connection that stops speaking HTTP after its 101.
#[derive(Debug)]
pub(in crate::upstream) struct Upgrading(OnUpgrade);

impl Upgrading {
    /// Waits until the connection is free of HTTP.
    ///
    /// # Errors
    /// When it ends before that.
    pub(in crate::upstream) async fn complete(self) -> io::Result<impl AsyncRead + AsyncWrite + Unpin> {
        self.0.await.map(TokioIo::new).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::{TcpListener, TcpStream};
    use tokio::runtime::Builder;
    use tokio::task::LocalSet;

    use super::*;

    /// The outcome of a request at a server that sends `answer` and closes the connection.
    async fn failed_by(answer: &[u8]) -> Undelivered {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let serving = async {
            let (mut stream, _) = listener.accept().await.unwrap();
            assert_ne!(stream.read(&mut [0; 4096]).await.unwrap(), 0);
            stream.write_all(answer).await.unwrap();
        };
        let sending = async {
            let stream = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
            let mut connection = Http1::open(Stream::Tcp(stream)).await.unwrap();
            connection.send(Request::default()).await.unwrap_err()
        };
        tokio::join!(sending, serving).0
    }

    #[test]
    fn a_connection_that_broke_off_is_told_from_one_that_speaks_something_else() {
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        LocalSet::new().block_on(&runtime, async {
            for cut in ["", "HTTP/1.1 200 OK\r\ncontent-le"] {
                let failure = failed_by(cut.as_bytes()).await;
                assert!(matches!(failure, Undelivered::BrokeOff(BrokenOff::Closed)), "{cut}: {failure:?}");
            }
            for other in ["SSH-2.0-x\r\n\r\n", "HTTP/1.1 2x0 OK\r\n\r\n"] {
                let failure = failed_by(other.as_bytes()).await;
                let is_malformed = matches!(failure, Undelivered::BrokeOff(BrokenOff::Malformed(_)));
                assert!(is_malformed, "{other}: {failure:?}");
            }
        });
    }
}
