//! HTTP/2 by h2, many requests at a time over one connection. h2's types do not leave this file.
//!
//! # What one request cannot do to the others of its connection
//! - Not read its answer: a connection's window is as large as those of all its streams together, so what waits in one of them
//!   keeps nothing from the others.
//! - Break off: that resets its stream. Servers take many resets for an attack (CVE-2023-44487) and end the connection, so after a
//!   few of them it takes no more requests, and those that are on it go on.
//! - What its server does: a head that cannot be read, or one stream that the server resets, ends that request. What breaks the
//!   rules of the connection ends the connection, with every request on it (RFC 9113, section 5.4).

use std::cell::{Cell, RefCell};
use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{self, ResponseFuture, SendRequest};
use h2::{Ping, PingPong, Reason, RecvStream};
use http::header::{CONNECTION, HOST, LINK, TE, TRANSFER_ENCODING};
use http::request::Parts;
use http::uri::{Authority, Scheme};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, Sleep, sleep};

use super::interim::{MOST, TooMany};
use super::measured::Measured;
use super::pump::{Pump, Pumped};
use super::state::State;
use super::streamed::Streamed;
use super::wire::Unanswered;
use super::{Incoming, Received, Undelivered};
use crate::tls::client::{explain_later, tls_error};
use crate::upstream::dial::Stream;
use crate::upstream::error::BrokenOff;
use crate::upstream::request_body::RequestBody;

/// The requests that a connection carries at a time at most, whatever its server allows.
pub(in crate::upstream) const MOST_STREAMS: usize = 256;
/// What may come of one answer before it is read, in bytes: as much as of one over HTTP/1.1.
const STREAM_WINDOW: u32 = (64 << 10) - 1;
/// The greatest head of an answer, in bytes as RFC 9113, section 6.5.2 counts them.
const ANSWER_HEAD: u32 = 64 << 10;
/// What h2 keeps of a request until the connection takes it, in bytes.
const UNSENT: usize = 32 << 10;
/// Streams that were reset, by the server or here, and about which frames may still come.
const RESET_STREAMS: usize = 64;
/// How long an answer to a PING may take.
const PONG: Duration = Duration::from_secs(10);

/// A connection that carries many requests. Dropping it closes it.
pub(in crate::upstream) struct Shared {
    sender: RefCell<SendRequest<Bytes>>,
    scheme: Scheme,
    driver: AbortHandle,
    state: Rc<State>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

impl Shared {
    /// Begins HTTP/2 on a stream. A server of which nothing has come for `silence`, while requests wait for it, is asked with a
    /// PING whether it is there. `changed` is told when the connection takes a request, and when it ends.
    ///
    /// # Errors
    /// When the stream cannot be used.
    pub(in crate::upstream) async fn open(
        stream: Stream,
        silence: Duration,
        changed: Rc<Notify>,
    ) -> io::Result<Rc<Self>> {
        let scheme = if matches!(stream, Stream::Tls(_)) { Scheme::HTTPS } else { Scheme::HTTP };
        let (wire, traffic) = Measured::new(stream);
        let handshake = client::Builder::new()
            .enable_push(false)
            // Until the server has said how many it takes, one request is sent: it has nothing to refuse.
            .initial_max_send_streams(1)
            .initial_window_size(STREAM_WINDOW)
            .initial_connection_window_size(STREAM_WINDOW * MOST_STREAMS as u32)
            .max_header_list_size(ANSWER_HEAD)
            .max_send_buffer_size(UNSENT)
            .max_concurrent_reset_streams(RESET_STREAMS)
            .max_pending_accept_reset_streams(RESET_STREAMS)
            .handshake(wire)
            .await;
        let (sender, connection) = handshake.map_err(io::Error::other)?;
        let state = Rc::new(State {
            in_flight: Cell::new(0),
            allowed: Cell::new(1),
            is_closed: Cell::new(false),
            is_settled: Cell::new(false),
            resets: Cell::new(0),
            changed,
            traffic,
        });
        let driver = Driver::new(connection, silence, Rc::clone(&state));
        let driver = tokio::task::spawn_local(driver.run()).abort_handle();
        Ok(Rc::new(Self { sender: RefCell::new(sender), scheme, driver, state }))
    }

    /// Whether another request can be sent now.
    pub(in crate::upstream) fn is_ready(&self) -> bool {
        !self.is_closed() && self.has_place()
    }

    /// Whether its server lets it carry one more.
    pub(in crate::upstream) fn has_place(&self) -> bool {
        self.in_flight() < self.state.allowed.get()
    }

    /// Whether no request can be sent any more.
    pub(in crate::upstream) fn is_closed(&self) -> bool {
        let ask = || {
            let mut context = Context::from_waker(Waker::noop());
            // Only a server that is leaving, or has left, makes this an error: one that is full is asked through `allowed`.
            matches!(self.sender.borrow_mut().poll_ready(&mut context), Poll::Ready(Err(_)))
        };
        self.state.is_closed.get() || ask()
    }

    /// The requests that it carries.
    pub(in crate::upstream) fn in_flight(&self) -> usize {
        self.state.in_flight.get()
    }

    /// How many requests its server lets it carry, as far as that is known.
    pub(in crate::upstream) fn allowed(&self) -> usize {
        self.state.allowed.get()
    }

    /// Whether its server has said how many requests it takes.
    pub(in crate::upstream) fn is_settled(&self) -> bool {
        self.state.is_settled.get()
    }

    /// No further request is to be sent on it.
    fn close(&self) {
        self.state.is_closed.set(true);
    }
}

/// This request as HTTP/2 has it: without fields of one connection, with the host in its place (RFC 9113, sections 8.2.2 and
/// 8.3.1). Nothing if it has no such form: another target than the authorised one must not be sent.
fn head(scheme: &Scheme, parts: &Parts) -> Option<Request<()>> {
    let mut headers = parts.headers.clone();
    headers.remove(CONNECTION);
    headers.remove(TRANSFER_ENCODING);
    if headers.get(TE).is_some_and(|te| te != "trailers") {
        headers.remove(TE);
    }
    let mut head = Request::new(());
    let authority = headers.get(HOST).and_then(|host| Authority::try_from(host.as_bytes()).ok());
    let mut uri = parts.uri.clone().into_parts();
    if authority.is_some() {
        uri.scheme = Some(scheme.clone());
        uri.authority = authority;
    }
    // A host that is no authority stays the field that it is, and h2 takes such a request as one of HTTP/1.1.
    *head.version_mut() = Version::HTTP_11;
    let uri = Uri::from_parts(uri).ok()?;
    if uri.authority().is_some() {
        headers.remove(HOST);
        *head.version_mut() = Version::HTTP_2;
    }
    *head.uri_mut() = uri;
    *head.method_mut() = parts.method.clone();
    *head.headers_mut() = headers;
    Some(head)
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("state", &self.state).finish_non_exhaustive()
    }
}

/// Moves frames, for as long as the connection lives.
struct Driver {
    connection: client::Connection<Measured, Bytes>,
    silence: Duration,
    pings: Option<PingPong>,
    /// When a PING was sent that is not answered.
    asked: Option<Instant>,
    timer: Pin<Box<Sleep>>,
    state: Rc<State>,
}

impl Driver {
    fn new(mut connection: client::Connection<Measured, Bytes>, silence: Duration, state: Rc<State>) -> Self {
        let pings = connection.ping_pong();
        Self { connection, silence, pings, asked: None, timer: Box::pin(sleep(silence)), state }
    }

    async fn run(mut self) {
        poll_fn(|cx| self.poll(cx)).await;
        self.state.is_closed.set(true);
        let changed = Rc::clone(&self.state.changed);
        // What waits on this connection hears of its end first.
        drop(self);
        changed.notify_waiters();
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.state.traffic.allow();
        let has_ended = Pin::new(&mut self.connection).poll(cx).is_ready();
        let allowed = self.connection.max_concurrent_send_streams().min(MOST_STREAMS);
        if self.state.allowed.replace(allowed) < allowed {
            self.state.changed.notify_one();
        }
        // What a server says first is how many it takes.
        if self.state.traffic.has_spoken() && !self.state.is_settled.replace(true) {
            self.state.changed.notify_waiters();
        }
        if has_ended || self.is_silent(cx) { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Whether the server has not answered a PING in time. Sends one when it is time for that.
    fn is_silent(&mut self, cx: &mut Context<'_>) -> bool {
        let Some(pings) = &mut self.pings else { return false };
        if pings.poll_pong(cx).is_ready() {
            self.asked = None;
        }
        while self.timer.as_mut().poll(cx).is_ready() {
            let heard = self.state.traffic.heard();
            if self.asked.is_some_and(|asked| heard <= asked) {
                return true;
            }
            self.asked = None;
            let due = heard + self.silence;
            let is_due = Instant::now() >= due && self.state.in_flight.get() > 0;
            let next = if is_due && pings.send_ping(Ping::opaque()).is_ok() {
                self.asked = Some(Instant::now());
                Instant::now() + PONG
            } else if is_due || self.state.in_flight.get() == 0 {
                Instant::now() + self.silence
            } else {
                due
            };
            self.timer.as_mut().reset(next);
        }
        false
    }
}

/// One request on such a connection. Dropping it resets its stream, unless it has ended.
#[derive(Debug)]
pub(in crate::upstream) struct Http2 {
    shared: Rc<Shared>,
    exchange: Rc<Exchange>,
}

/// What a request and who waits for its answer know of each other.
#[derive(Debug, Default)]
struct Exchange {
    /// Whether something was sent, and no frame of an answer has come.
    is_waiting: Cell<bool>,
    is_abandoned: Cell<bool>,
    links: RefCell<Vec<HeaderValue>>,
    unanswered: RefCell<Option<Unanswered>>,
    /// What sends the rest of the request's body after the answer's head.
    rest: RefCell<Option<AbortHandle>>,
    /// How the request's body ended, if it has.
    pumped: Cell<Option<Pumped>>,
}

impl Drop for Http2 {
    fn drop(&mut self) {
        if let Some(rest) = self.exchange.rest.take() {
            rest.abort();
        }
        let state = &self.shared.state;
        if self.exchange.is_waiting.get() {
            state.note_reset();
        }
        state.in_flight.set(state.in_flight.get() - 1);
        state.changed.notify_one();
    }
}

impl Http2 {
    /// A place for one request, to be asked for where the connection [is ready](Shared::is_ready).
    pub(in crate::upstream) fn on(shared: &Rc<Shared>) -> Self {
        let state = &shared.state;
        state.in_flight.set(state.in_flight.get() + 1);
        Self { shared: Rc::clone(shared), exchange: Rc::default() }
    }

    pub(in crate::upstream) const fn shared(&self) -> &Rc<Shared> {
        &self.shared
    }

    pub(super) fn unanswered(&self) -> Option<Unanswered> {
        self.exchange.unanswered.take()
    }

    pub(super) fn is_waiting(&self) -> bool {
        self.exchange.is_waiting.get()
    }

    pub(super) fn take_links(&self) -> Vec<HeaderValue> {
        self.exchange.links.take()
    }

    /// Noticed when the wait for the answer is polled next, by who calls this.
    pub(super) fn abandon(&self) {
        self.exchange.is_abandoned.set(true);
    }

    /// With what the server says instead of HTTP/2, where that can be seen.
    pub(super) fn explained(&self, cause: BrokenOff) -> BrokenOff {
        match self.shared.state.traffic.is_http1() {
            true => BrokenOff::Malformed(
                "it answers in HTTP/1.1, and HTTP/2 was expected; write protocol = \"http1\"".into(),
            ),
            false => cause,
        }
    }

    pub(super) fn send(
        &self,
        request: Request<RequestBody>,
    ) -> Pin<Box<impl Future<Output = Result<Received, Undelivered>> + use<>>> {
        let (shared, exchange) = (Rc::clone(&self.shared), Rc::clone(&self.exchange));
        Box::pin(async move { exchange.run(&shared, request).await })
    }
}

impl Exchange {
    async fn run(&self, shared: &Shared, request: Request<RequestBody>) -> Result<Received, Undelivered> {
        let (parts, body) = request.into_parts();
        let has_body = !body.is_end_stream();
        let Some(head) = head(&shared.scheme, &parts) else {
            return Err(Undelivered::BrokeOff(BrokenOff::Other("the request has no form in HTTP/2".into())));
        };
        let sent = shared.sender.borrow_mut().send_request(head, !has_body);
        let (response, stream) = match sent {
            Ok(sent) => sent,
            Err(error) if shared.is_closed() || error.is_go_away() => {
                shared.close();
                return Err(unsent(parts, body));
            }
            Err(error) => return Err(Undelivered::BrokeOff(broken_off(&error))),
        };
        self.is_waiting.set(true);
        self.pumped.set((!has_body).then_some(Pumped::Whole));
        let mut pump = has_body.then(|| Pump::new(stream, body));
        let answered = self.answer(response, pump.as_mut()).await;
        self.is_waiting.set(false);
        let error = match answered {
            Ok(response) => return Ok(self.receive(response, pump, &shared.state)),
            Err(error) => error,
        };
        let error = match error {
            Failure::Stream(error) => error,
            Failure::Malformed(flaw) => {
                shared.close();
                return Err(Undelivered::BrokeOff(BrokenOff::Malformed(flaw)));
            }
            Failure::Abandoned => {
                self.keep(parts, has_body);
                return Err(Undelivered::BrokeOff(BrokenOff::Closed));
            }
        };
        if is_unprocessed(&error) {
            // One that refuses requests takes others after a while, or on another connection.
            shared.close();
            let body = pump.map_or_else(|| Some(RequestBody::default()), Pump::into_body);
            return Err(body.map_or(Undelivered::BrokeOff(broken_off(&error)), |body| unsent(parts, body)));
        }
        // A stream that the server reset was an answer of sorts.
        if !error.is_reset() {
            shared.close();
            self.keep(parts, has_body);
        }
        Err(Undelivered::BrokeOff(broken_off(&error)))
    }

    /// The request as it was sent, if it may be sent again.
    fn keep(&self, parts: Parts, has_body: bool) {
        if !has_body {
            self.unanswered.replace(Some(Unanswered::Head(Box::new(parts))));
        }
    }

    /// Waits for the head of the answer, and sends the body meanwhile.
    async fn answer(
        &self,
        response: ResponseFuture,
        mut pump: Option<&mut Pump>,
    ) -> Result<Response<RecvStream>, Failure> {
        let mut response = pin!(response);
        let mut interims = 0;
        poll_fn(|cx| {
            if self.is_abandoned.get() {
                return Poll::Ready(Err(Failure::Abandoned));
            }
            if self.pumped.get().is_none()
                && let Some(pump) = &mut pump
                && let Poll::Ready(pumped) = pump.poll(cx)
            {
                self.pumped.set(Some(pumped));
            }
            while let Poll::Ready(Some(Ok(interim))) = response.as_mut().get_mut().poll_informational(cx) {
                self.is_waiting.set(false);
                interims += 1;
                if interims > MOST {
                    return Poll::Ready(Err(Failure::Malformed(TooMany.to_string().into())));
                }
                if interim.status() == StatusCode::SWITCHING_PROTOCOLS {
                    let flaw = "it answered with 101, which HTTP/2 does not have";
                    return Poll::Ready(Err(Failure::Malformed(flaw.into())));
                }
                if interim.status() == StatusCode::EARLY_HINTS {
                    self.links.borrow_mut().extend(interim.headers().get_all(LINK).iter().cloned());
                }
            }
            response.as_mut().poll(cx).map_err(Failure::Stream)
        })
        .await
    }

    fn receive(&self, response: Response<RecvStream>, pump: Option<Pump>, state: &Rc<State>) -> Received {
        let (mut head, body) = response.into_parts();
        head.extensions.clear();
        // What it means is the same in every version.
        head.version = Version::HTTP_11;
        if let Some(pump) = pump.filter(|_| self.pumped.get().is_none()) {
            // Bidirectional: the body goes on while the answer comes.
            self.rest.replace(Some(tokio::task::spawn_local(pump.rest()).abort_handle()));
        }
        let is_request_sent = self.pumped.get() == Some(Pumped::Whole);
        let streamed = Streamed::new(body, &head.headers, is_request_sent, Rc::clone(state));
        Received { head, incoming: Incoming::Http2(streamed), upgrading: None }
    }
}

/// Why no answer came.
enum Failure {
    Stream(h2::Error),
    Malformed(Box<str>),
    Abandoned,
}

fn unsent(parts: Parts, body: RequestBody) -> Undelivered {
    Undelivered::Unsent(Box::new(Request::from_parts(parts, body)))
}

/// Whether the server has said that it did nothing with the request: it refused the stream, or it leaves and this one came after the
/// last that it looks at (RFC 9113, sections 8.7 and 6.8).
fn is_unprocessed(error: &h2::Error) -> bool {
    error.is_remote()
        && (error.is_go_away() || error.is_reset() && error.reason() == Some(Reason::REFUSED_STREAM))
}

/// Only h2's words and ours go into it, which repeat nothing of the answer.
fn broken_off(error: &h2::Error) -> BrokenOff {
    if let Some(io) = error.get_io() {
        return match tls_error(io) {
            Some(tls) => BrokenOff::Tls(explain_later(tls).into()),
            None if matches!(io.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::UnexpectedEof) => {
                BrokenOff::Closed
            }
            None => BrokenOff::Io(io.kind()),
        };
    }
    if error.is_remote() && error.is_reset() {
        let reason = error.reason().unwrap_or(Reason::INTERNAL_ERROR);
        return BrokenOff::Other(format!("it reset the request ({reason:?})").into());
    }
    // What h2 found wrong.
    BrokenOff::Malformed(error.to_string().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_same_target_and_host_in_http2() {
        for (target, host, expected) in [
            ("/a%2Fb?q={}&&c=%41", "h:80", "http://h:80/a%2Fb?q={}&&c=%41"),
            ("*", "h", "http://h*"),
            // A host that is no authority stays a field.
            ("/a", "h h", "/a"),
        ] {
            let request = Request::builder().method("OPTIONS").uri(target).header(HOST, host);
            let request = request.header(CONNECTION, "te").header(TE, "trailers").body(()).unwrap();
            let head = head(&Scheme::HTTP, &request.into_parts().0).unwrap();
            assert_eq!(head.uri().to_string(), expected);
            assert_eq!(head.uri().path_and_query().unwrap().as_str(), target);
            assert_eq!(head.headers().contains_key(HOST), host == "h h");
            assert!(!head.headers().contains_key(CONNECTION) && head.headers()[TE] == "trailers");
        }
    }
}
