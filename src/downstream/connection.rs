//! One client connection: the TLS handshake, the choice between HTTP/1.1 and HTTP/2, and hyper on the stream,
//! with a [watchdog] over all of it.

use std::cell::Cell;
use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Context;

use http::header::CONNECTION;
use http::{HeaderMap, HeaderValue, Method, Request, Response, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2 as hyper_http2};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::sleep_until;

use super::activity::{Activity, Busy, Phase, Tracked};
use super::http1_stream::{Http1Stream, Messages};
use super::http2::{self, Paced, Streams};
use super::http2_stream::{ErrorCode, Http2Stream};
use super::lingering::{Socket, Watched};
use super::membership::{Member, Stage};
use super::preface::{self, Rewound};
use super::refusal::{self, Unread};
use super::tls::{self, Stream};
use super::watchdog::{self, Watchdog, first_deadline};
use crate::gateway::{self, Cut, Gateway, ResponseBody, Tunnel};
use crate::policy::request::Limits;
use crate::telemetry::metrics::{Connected, Excess, Protocol, Unserved};
use crate::upstream::client_body::ClientBody;
use crate::vocabulary::peer::Peer;
use crate::vocabulary::rejection::{Rejection, Unavailable};

/// How connections are served. A reload replaces it for connections that come later.
#[derive(Clone, Debug)]
pub struct Serving {
    pub watchdog: watchdog::Settings,
    /// `None`: plain text.
    pub tls: Option<tls::Acceptor>,
}

/// The size of hyper's buffers for one connection, in bytes.
const BUFFER: usize = 64 << 10;
/// The bytes that a head may have beyond the limits that the guard refuses with an envelope: method, version,
/// separators.
const HEAD_MARGIN: usize = 4 << 10;
/// hyper parses this many header fields without an allocation.
const FIELDS_INLINE: usize = 100;

/// Serves one connection until the client, the gateway or the watchdog ends it.
pub(super) async fn serve<S>(stream: S, peer: Peer, gateway: Rc<Gateway>, serving: &Serving, member: Member)
where
    S: Socket + 'static,
{
    let connected = gateway.cells().connected();
    let activity = Rc::new(Activity::new());
    let watched = Watched::new(stream, Rc::clone(&activity));
    let timer = pin!(sleep_until(first_deadline(&serving.watchdog)));
    let mut watchdog = Watchdog::new(&activity, &serving.watchdog, &member, timer);
    let tls = serving.tls.as_ref();
    // A client that goes away, sends nothing in time or does not speak TLS gets no answer: it could not read
    // one.
    let opened = watchdog.until(open(watched, tls, &activity)).await;
    let unserved = match &opened {
        Some(Ok(opened)) => opened.lacks_preface().then_some(Unserved::Preface),
        Some(Err(why)) => *why,
        None => late(&activity, &member),
    };
    unserved.into_iter().for_each(|why| gateway.cells().connection_unserved(why));
    let Some(Ok(Opened { stream, is_http2, .. })) = opened else { return };
    let peer = Rc::new(if tls.is_some() { peer.over_tls() } else { peer });
    let connection =
        Connection { peer, gateway, activity: &activity, connected: &connected, member: &member };
    if is_http2 {
        connection.serve_http2(stream, &mut watchdog, &serving.watchdog).await;
    } else {
        connection.serve_http1(stream, &mut watchdog).await;
    }
}

/// Why a connection ended before its first request because it took too long. Not in the last call of a drain.
fn late(activity: &Activity, member: &Member) -> Option<Unserved> {
    match activity.phase() {
        _ if member.stage() >= Stage::Finishing => None,
        Phase::Handshake => Some(Unserved::HandshakeTimeout),
        Phase::Head => Some(Unserved::HeadTimeout),
        Phase::Busy | Phase::Idle => None,
    }
}

/// A connection that is open: everything that its requests need of it.
struct Connection<'c> {
    peer: Rc<Peer>,
    gateway: Rc<Gateway>,
    activity: &'c Rc<Activity>,
    connected: &'c Connected,
    member: &'c Member,
}

impl Connection<'_> {
    async fn serve_http1<S>(&self, stream: S, watchdog: &mut Watchdog<'_>)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        self.connected.speaks(Protocol::Http1);
        let switch: Rc<Cell<Option<Box<Tunnel>>>> = Rc::default();
        let cut = Cut::default();
        let messages = Messages::new(self.activity);
        let service = service_fn(|mut request: Request<Incoming>| {
            self.activity.note_body(!request.body().is_end_stream());
            messages.begin(&mut request);
            self.member.held().end_head();
            let (connection, version, is_lost) = (self, request.version(), messages.is_lost());
            let busy = Busy::begin(self.activity);
            let (gateway, peer) = (Rc::clone(&self.gateway), Rc::clone(&self.peer));
            let (switch, cut) = (Rc::clone(&switch), cut.clone());
            async move {
                let request = request.map(ClientBody::from);
                let (response, tunnel) = gateway::handle(&gateway, peer, request, &cut, None).await;
                let ends = is_lost || tunnel.is_none() && connection.member.stage() > Stage::Serving;
                switch.set(tunnel);
                Ok::<_, Infallible>(
                    connection.framed(version, ends, response).map(|body| Tracked::new(body, busy)),
                )
            }
        });
        let limits = self.gateway.limits();
        let io = TokioIo::new(Http1Stream::new(stream, Rc::clone(&messages), Rc::clone(self.member.held())));
        let mut connection = http1_builder(&limits).serve_connection(io, service);
        let finish = http1::Connection::graceful_shutdown;
        let is_excess = || self.member.held().must_go() && !self.activity.is_busy();
        let is_over = || cut.is_due() || is_excess();
        let outcome = watchdog.watch(Pin::new(&mut connection), || (), finish, is_over).await;
        if outcome.is_none() && is_excess() {
            return self.note_cut("HTTP/1.1", Excess::Memory);
        }
        if outcome.is_none() {
            self.note_unserved();
        }
        if let Some(tunnel) = switch.take() {
            self.connected.speaks(Protocol::WebSocket);
            // The client has its 101. The next bytes are not HTTP.
            messages.give_up();
            let http1::Parts { io, read_buf, .. } = connection.into_parts();
            // When one side breaks off, the tunnel is over for both: there is nothing to report.
            let (member, begun) = (self.member, self.member.stage());
            let departure = |cx: &mut Context<'_>| member.poll_departure(cx, begun);
            drop(tunnel.run(io.into_inner(), read_buf, departure).await);
        } else if let Some(Err(error)) = outcome
            && error.is_parse()
            && messages.is_settled()
        {
            let http1::Parts { io, read_buf, .. } = connection.into_parts();
            let line = messages.request_line().to_vec();
            messages.give_up();
            let unread = Unread { line: &line, left: &read_buf };
            let (method, rejection) = (unread.method(), unread.rejection(&error, &limits));
            self.refuse(io.into_inner(), method.as_ref(), &rejection, watchdog).await;
        }
    }

    /// Counts the connection if it was ended before its first request.
    fn note_unserved(&self) {
        let why = if self.activity.has_served() { None } else { late(self.activity, self.member) };
        why.into_iter().for_each(|why| self.gateway.cells().connection_unserved(why));
    }

    /// The answer with what its framing needs. The connection `ends` with it if nobody knows where the next request
    /// begins, or if the process ends. HTTP/1.0 has no framing for a body of unknown length but the end of the
    /// connection, and then hyper must not announce that it stays open.
    fn framed(
        &self,
        version: Version,
        ends: bool,
        mut response: Response<ResponseBody>,
    ) -> Response<ResponseBody> {
        if ends {
            response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
        }
        if version == Version::HTTP_10 && response.body().size_hint().exact().is_none() {
            *response.version_mut() = Version::HTTP_10;
            self.activity.note_open_end();
        }
        response
    }

    /// Answers what hyper could not parse, and closes the connection: nobody knows where the next request begins.
    async fn refuse<S>(
        &self,
        mut stream: S,
        method: Option<&Method>,
        rejection: &Rejection,
        watchdog: &mut Watchdog<'_>,
    ) where
        S: AsyncWrite + Unpin,
    {
        let peer = Rc::clone(&self.peer);
        let answer = gateway::refuse_unread(&self.gateway, peer, method, &HeaderMap::new(), rejection);
        let is_head = method == Some(&Method::HEAD);
        let bytes = refusal::to_bytes(answer, is_head, self.gateway.now().wall).await;
        // The client may still be sending what was refused.
        self.activity.note_body(true);
        let writing = pin!(async {
            stream.write_all(&bytes).await?;
            stream.shutdown().await
        });
        // A client that went away before it read its refusal is no failure of the gateway.
        let _: Option<io::Result<()>> = watchdog.watch(writing, || (), |_| (), || false).await;
    }

    async fn serve_http2<S>(self, stream: S, watchdog: &mut Watchdog<'_>, settings: &watchdog::Settings)
    where
        S: AsyncRead + AsyncWrite + Unpin + 'static,
    {
        self.connected.speaks(Protocol::Http2);
        self.activity.share();
        let (held, limits) = (self.member.held(), self.gateway.limits());
        let reset = self.gateway.cells().reset_streams();
        let outgoing = Http2Stream::new(stream, reset, held);
        let streams = Streams::new(settings.write_timeout, held, outgoing.ledger(), reset);
        let service = service_fn(|mut request: Request<Incoming>| {
            http2::shed(request.headers_mut(), limits.fields);
            let busy = Busy::begin(self.activity);
            let (pace, request) = streams.open(request);
            let (gateway, peer, cut) = (Rc::clone(&self.gateway), Rc::clone(&self.peer), pace.cut().clone());
            if self.member.stage() > Stage::Serving {
                outgoing.announce_end();
            }
            async move {
                let has_place = pace.place().has_place() || Box::pin(pace.place().wait()).await;
                let response = if has_place {
                    // It never makes a tunnel: HTTP/2 has no `Upgrade`, and a request with one is refused as
                    // malformed.
                    gateway::handle(&gateway, peer, request, &cut, Some(pace.hints())).await.0
                } else {
                    let why = Rejection::Unavailable(Unavailable::Requests);
                    gateway::refuse_unread(&gateway, peer, Some(request.method()), request.headers(), &why)
                };
                pace.note_answer(response.headers());
                Ok::<_, Infallible>(response.map(|body| Paced::new(Tracked::new(body, busy), pace)))
            }
        });
        let excess = Cell::new(None);
        let is_over = || {
            let cancelled = || streams.are_abused().then_some(Excess::CancelledRequests);
            let reset = || outgoing.has_reset_too_many().then_some(Excess::StreamsReset);
            let memory = || held.must_go().then_some(Excess::Memory);
            excess.set(cancelled().or_else(reset).or_else(memory));
            excess.get().is_some()
        };
        {
            let io = TokioIo::new(outgoing.clone());
            let connection = pin!(http2::builder(streams.clone(), &limits).serve_connection(io, service));
            let finish = hyper_http2::Connection::graceful_shutdown;
            // An error means that the client went away, or spoke something else; h2 has told it so.
            let _ = watchdog.watch(connection, || outgoing.announce_end(), finish, is_over).await;
        }
        if let Some(why) = excess.get() {
            self.note_cut("HTTP/2", why);
            outgoing.end(Some(ErrorCode::EnhanceYourCalm)).await;
        } else if outgoing.was_calmed() {
            // h2 has written the GOAWAY.
            self.note_cut("HTTP/2", Excess::Flood);
            outgoing.end(None).await;
        }
    }

    /// Counts and logs that the connection is cut.
    fn note_cut(&self, version: &str, why: Excess) {
        self.gateway.cells().connection_cut(why);
        let client = self.peer.address();
        self.member.log_cut(|| {
            format!("cutting an {version} connection: its client, {client}, {}", why.described())
        });
    }
}

/// Makes the TLS handshake where there is one, and finds out whether the client speaks HTTP/2.
///
/// # Errors
/// Why no request can come, where that is more than a client that went away.
async fn open<S>(
    stream: Watched<S>,
    tls: Option<&tls::Acceptor>,
    activity: &Activity,
) -> Result<Opened<Rewound<Stream<Watched<S>>>>, Option<Unserved>>
where
    S: Socket,
{
    let Some(tls) = tls else {
        let (stream, is_http2) = preface::is_http2(Stream::Plain(stream)).await.map_err(|_| None)?;
        return Ok(Opened { stream, is_http2, has_preface: is_http2 });
    };
    activity.enter(Phase::Handshake);
    let (stream, is_http2) = tls.accept(stream).await?;
    activity.enter(Phase::Head);
    // The first bytes are read here because of their time limit. hyper judges them.
    let (stream, has_preface) = preface::is_http2(stream).await.map_err(|_| None)?;
    Ok(Opened { stream, is_http2, has_preface })
}

/// A connection of which the first bytes have come.
struct Opened<S> {
    stream: S,
    is_http2: bool,
    has_preface: bool,
}

impl<S> Opened<Rewound<S>> {
    /// Whether the client agreed on HTTP/2 and then spoke something else.
    const fn lacks_preface(&self) -> bool {
        self.is_http2 && !self.has_preface && self.stream.has_begun()
    }
}

fn http1_builder(limits: &Limits) -> http1::Builder {
    let mut builder = http1::Builder::new();
    let head = limits.head + limits.target + HEAD_MARGIN;
    builder.writev(false).max_header_size(head).max_buf_size(BUFFER.max(2 * head));
    if limits.fields > FIELDS_INLINE {
        builder.max_headers(limits.fields);
    }
    builder
}
