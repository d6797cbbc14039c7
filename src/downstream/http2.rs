//! HTTP/2 with clients: its limits, a task for every stream, and the end of a stream whose client takes nothing
//! of its answer.
//!
//! A client on HTTP/2 can let an answer wait without blocking the connection, if it gives the stream no window:
//! nothing is written, so nothing blocks, and upstream connections and buffers wait too. Therefore every answer
//! is paced: it goes out in small pieces. A piece that the client does not take within the write time-out of a
//! connection ends its stream, and no other.

use std::cell::{Cell, RefCell};
use std::mem;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker, ready};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request};
use http_body::{Body, Frame, SizeHint};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper_util::rt::TokioTimer;
use tokio::time::{Instant, Sleep, sleep_until};

use super::allowance::Allowance;
use super::held::{Held, OpenRequest, Unsent};
use super::ledger::{Body as BodyEntry, Ending, Entry, Ledger};
use crate::gateway::Cut;
use crate::policy::request::Limits;
use crate::telemetry::Event;
use crate::telemetry::metrics::ResetStreams;
use crate::upstream::client_body::ClientBody;
use crate::upstream::early_hints::EarlyHints;

/// Requests at once on one connection.
const STREAMS: u32 = 100;
/// The part of a request's header list that h2 reads, in bytes after decompression: more than the limits of a request, so that
/// it is the guard that refuses, as on HTTP/1.1. Beyond it h2 answers with a bare 431.
const HEADER_LIST: usize = 64 << 10;
/// The size that a field has in a header list beside its name and its value (RFC 9113, section 10.5.1).
const FIELD: usize = 32;
/// The fields that every request has in its header list, and no limit counts.
const PSEUDO_FIELDS: usize = 1 << 10;
/// How many bytes of bodies a client may send before they are forwarded.
const STREAM_WINDOW: u32 = 256 << 10;
const CONNECTION_WINDOW: u32 = 1 << 20;
/// How many bytes of one stream may wait to be written.
const SEND_BUFFER: usize = 64 << 10;
/// A client that sends nothing for this time gets a ping, and has the same time to answer it.
const PING: Duration = Duration::from_secs(20);
/// How many requests a client may cancel at once that it has [just begun](HASTE), beyond those that it lets be answered
/// (Rapid Reset, CVE-2023-44487). Such a request costs an upstream connection, and no longer counts among the requests
/// at once.
const CANCELLED_AT_MOST: u32 = 200;
/// How many of them time forgives. Other clients may share the connection: what is common on it must not add up.
const FORGIVEN_PER_SECOND: u32 = 10;
/// A request that was cancelled later than this, or after its answer began, was an ordinary one: somebody left.
const HASTE: Duration = Duration::from_secs(1);
/// How many bytes of an answer are handed over at once: a frame of the size that every client accepts.
const PIECE: usize = 16 << 10;

pub(super) fn builder(streams: Streams, limits: &Limits) -> http2::Builder<Streams> {
    let mut builder = http2::Builder::new(streams);
    let list = limits.head + limits.target + FIELD * limits.fields + PSEUDO_FIELDS;
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS)
        .max_header_list_size(u32::try_from(list.max(HEADER_LIST)).unwrap_or(u32::MAX))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_send_buf_size(SEND_BUFFER)
        // Those that are reset before keygate looks at them count among the cancelled ones too, once it does.
        .max_pending_accept_reset_streams(CANCELLED_AT_MOST as usize)
        // h2 would count over the whole life of the connection. `Http2Stream` counts them by time.
        .max_local_error_reset_streams(None)
        .keep_alive_interval(PING)
        .keep_alive_timeout(PING);
    builder
}

/// Drops header fields that a request has beyond the number that is allowed, all but one, for which the guard refuses
/// it. Compressed, thousands of fields are a few bytes on the wire, and each waiting request would hold them in memory.
pub(super) fn shed(headers: &mut HeaderMap, allowed: usize) {
    if headers.len() > allowed {
        let mut few = HeaderMap::with_capacity(allowed + 1);
        for (name, value) in headers.iter().take(allowed + 1) {
            few.append(name, value.clone());
        }
        *headers = few;
    }
}

/// About the memory of fields, in bytes.
fn size_of(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 2 * FIELD).sum()
}

/// The streams of one connection: each is a task of the worker's own thread.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    patience: Duration,
    /// Requests cancelled in [haste](HASTE), less those answered since.
    cancelled: Rc<Allowance>,
    held: Rc<Held>,
    ledger: Rc<Ledger>,
    reset: Arc<ResetStreams>,
    pairing: Rc<RefCell<Pairing>>,
}

impl Streams {
    /// A piece of an answer may wait for `patience` until the client takes it. `held` counts what waits, `ledger` what comes,
    /// and `reset` the streams whose bodies keep too much.
    #[must_use]
    pub(super) fn new(
        patience: Duration,
        held: &Rc<Held>,
        ledger: Rc<Ledger>,
        reset: &Arc<ResetStreams>,
    ) -> Self {
        let cancelled = Rc::new(Allowance::new(CANCELLED_AT_MOST, FORGIVEN_PER_SECOND));
        let (held, reset) = (Rc::clone(held), Arc::clone(reset));
        Self { patience, cancelled, held, ledger, reset, pairing: Rc::default() }
    }

    /// Makes the pace of a request, and counts what it holds. To be called once for each request, when hyper calls the
    /// service.
    pub(super) fn open(&self, request: Request<Incoming>) -> (Pace, Request<ClientBody>) {
        let ending = Rc::<Ending>::default();
        let has_body = !request.body().is_end_stream();
        let fields = size_of(request.headers());
        let entry = self.ledger.begin(fields, has_body, &ending);
        let pace = Pace::begin(Instant::now(), self.held.open(), ending, entry.clone());
        self.pairing.borrow_mut().request(pace.clone());
        let request = request.map(|incoming| {
            if has_body {
                ClientBody::followed(incoming, Box::new(BodyEntry(entry)))
            } else {
                incoming.into()
            }
        });
        (pace, request)
    }

    /// Whether the client cancels more requests than a client of good will does.
    #[must_use]
    pub(super) fn are_abused(&self) -> bool {
        self.cancelled.is_spent(Instant::now)
    }
}

impl<F: Future<Output = ()> + 'static> Executor<F> for Streams {
    fn execute(&self, stream: F) {
        // Without its pace a stream could neither be cut nor time out. Dropped here, it is reset.
        let Some(pace) = self.pairing.borrow_mut().stream() else { return };
        if pace.0.open.is_refused() {
            return answer_at_once(stream);
        }
        let (patience, cancelled, reset) =
            (self.patience, Rc::clone(&self.cancelled), Arc::clone(&self.reset));
        tokio::task::spawn_local(async move {
            Stream { stream, pace: pace.clone(), patience, timer: None }.await;
            if pace.0.ending.is_ordered() {
                return reset.count_for_memory();
            }
            if pace.cut().is_due() {
                // keygate ended it, not the client.
                return;
            }
            let now = Instant::now();
            match pace.0.answer.get() {
                Answer::HandedOver => cancelled.give_back(),
                Answer::None if now.saturating_duration_since(pace.0.begun) < HASTE => cancelled.spend(now),
                Answer::None | Answer::Begun => {}
            }
        });
    }
}

/// Lets a stream whose request is refused give its answer to h2. There is no memory for a task: if the client has left no
/// window for the answer, the stream is dropped here, and so reset.
fn answer_at_once(stream: impl Future<Output = ()>) {
    let _ = pin!(stream).poll(&mut Context::from_waker(Waker::noop()));
}

/// Brings each stream together with the pace of its request.
///
/// hyper calls the service for a request, and starts the stream of that request before it calls the service
/// again. It does not say which request a stream belongs to, so this order is the only sign. If hyper ever keeps
/// another order, a stream could get the pace of another request, and the cut of one key would end the stream
/// of another key. Then no stream can be brought together with certainty, and each one ends.
#[derive(Debug, Default)]
enum Pairing {
    /// Every request has its stream.
    #[default]
    Even,
    /// The stream of this request has not been started.
    Waiting(Pace),
    /// Requests and streams did not take turns.
    Broken,
}

impl Pairing {
    fn request(&mut self, pace: Pace) {
        *self = match mem::replace(self, Self::Broken) {
            Self::Even => Self::Waiting(pace),
            Self::Waiting(_) => Self::break_off("a second request came before the stream of the first"),
            Self::Broken => Self::Broken,
        };
    }

    /// The pace of the stream that starts now; `None` when it is not certain.
    fn stream(&mut self) -> Option<Pace> {
        let (next, pace) = match mem::replace(self, Self::Broken) {
            Self::Waiting(pace) => (Self::Even, Some(pace)),
            Self::Even => (Self::break_off("a stream came without a request"), None),
            Self::Broken => (Self::Broken, None),
        };
        *self = next;
        pace
    }

    fn break_off(what: &str) -> Self {
        Event::StreamsMixedUp.log(Instant::now().into_std(), || {
            format!(
                "HTTP/2: {what}; ending this and every later stream of the connection. This is a fault in keygate: please \
                 report it"
            )
        });
        Self::Broken
    }
}

/// How far an answer has come; shared by its body and the task of its stream.
#[derive(Clone, Debug)]
pub(super) struct Pace(Rc<Progress>);

#[derive(Debug)]
struct Progress {
    begun: Instant,
    /// Since when a piece of the answer has waited for the client.
    waiting_since: Cell<Option<Instant>>,
    answer: Cell<Answer>,
    cut: Cut,
    open: OpenRequest,
    ending: Rc<Ending>,
    entry: Entry,
}

/// The answer to a request, as far as it has been handed over.
#[derive(Clone, Copy, Debug)]
enum Answer {
    None,
    Begun,
    /// All of it, as far as there is one.
    HandedOver,
}

impl Pace {
    fn begin(now: Instant, open: OpenRequest, ending: Rc<Ending>, entry: Entry) -> Self {
        let (waiting_since, answer, cut) = (Cell::default(), Cell::new(Answer::None), Cut::default());
        Self(Rc::new(Progress { begun: now, waiting_since, answer, cut, open, ending, entry }))
    }

    /// The answer has this head.
    pub(super) fn note_answer(&self, headers: &HeaderMap) {
        self.0.entry.note_answer(size_of(headers));
    }

    /// The client, for what it may be told before the answer.
    pub(super) fn hints(&self) -> Rc<dyn EarlyHints> {
        Rc::clone(&self.0) as Rc<dyn EarlyHints>
    }

    /// The place of the request among those that are held.
    pub(super) fn place(&self) -> &OpenRequest {
        &self.0.open
    }

    /// Orders the stream to end.
    #[must_use]
    pub(super) fn cut(&self) -> &Cut {
        &self.0.cut
    }
}

impl EarlyHints for Progress {
    fn pass(&self, links: Vec<HeaderValue>) {
        self.entry.hint(&links);
    }
}

pin_project_lite::pin_project! {
    /// A stream. It ends when it is done, when its client has taken nothing for too long, when its body keeps too much
    /// memory, or when its key may no longer do what it does. A stream that is dropped before its end is reset.
    struct Stream<F> {
        #[pin]
        stream: F,
        pace: Pace,
        patience: Duration,
        timer: Option<Pin<Box<Sleep>>>,
    }
}

impl<F: Future<Output = ()>> Future for Stream<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if this.pace.cut().is_due() || this.pace.0.ending.is_due(cx) || this.stream.poll(cx).is_ready() {
            return Poll::Ready(());
        }
        loop {
            let Some(since) = this.pace.0.waiting_since.get() else { return Poll::Pending };
            let deadline = since + *this.patience;
            let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
            ready!(timer.as_mut().poll(cx));
            // The timer was set for an earlier piece. Only now is a new setting worth its cost.
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            timer.as_mut().reset(deadline);
        }
    }
}

pin_project_lite::pin_project! {
    /// The body of an answer in pieces; the pace says since when the last one waits.
    pub(super) struct Paced<B> {
        #[pin]
        body: B,
        rest: Bytes,
        pace: Pace,
    }
}

impl<B: Body<Data = Bytes>> Paced<B> {
    pub(super) fn new(body: B, pace: Pace) -> Self {
        pace.0.answer.set(if body.is_end_stream() { Answer::HandedOver } else { Answer::Begun });
        Self { body, rest: Bytes::new(), pace }
    }
}

impl<B: Body<Data = Bytes>> Body for Paced<B> {
    type Data = Unsent;
    type Error = B::Error;

    /// hyper asks for more only when the client has taken the last piece.
    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Unsent>, B::Error>>> {
        let mut this = self.project();
        let progress = &this.pace.0;
        progress.waiting_since.set(None);
        if this.rest.is_empty() {
            ready!(progress.open.poll_room(cx));
            match ready!(this.body.as_mut().poll_frame(cx)) {
                Some(Ok(frame)) if frame.is_data() => *this.rest = frame.into_data().unwrap_or_default(),
                // Trailers, the end, or an upstream that broke off: the client did not cancel.
                last => {
                    progress.answer.set(Answer::HandedOver);
                    let counted =
                        |frame: Frame<Bytes>| frame.map_data(|bytes| progress.open.hand_over(bytes));
                    return Poll::Ready(last.map(|last| last.map(counted)));
                }
            }
        }
        let mut piece = this.rest.split_to(this.rest.len().min(PIECE));
        if this.rest.is_empty() && this.body.is_end_stream() {
            // The wait of the last piece is not measured, so the piece must not hold the whole buffer that it
            // was read into.
            piece = Bytes::copy_from_slice(&piece);
            progress.answer.set(Answer::HandedOver);
        }
        progress.waiting_since.set(Some(Instant::now()));
        Poll::Ready(Some(Ok(Frame::data(progress.open.hand_over(piece)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        let (mut hint, rest) = (self.body.size_hint(), self.rest.len() as u64);
        if let Some(upper) = hint.upper() {
            hint.set_upper(upper + rest);
        }
        hint.set_lower(hint.lower() + rest);
        hint
    }
}

#[cfg(test)]
mod tests {
    use super::super::held::Owner;
    use super::*;

    fn streams() -> Streams {
        let held = Held::new(Owner::Proxy(0), &Rc::default());
        Streams::new(Duration::from_secs(1), &held, Ledger::new(&held), &Arc::default())
    }

    fn pace() -> Pace {
        let Streams { held, ledger, .. } = streams();
        let ending = Rc::default();
        let entry = ledger.begin(0, false, &ending);
        Pace::begin(Instant::now(), held.open(), ending, entry)
    }

    fn is_same(one: &Pace, other: &Pace) -> bool {
        Rc::ptr_eq(&one.0, &other.0)
    }

    #[test]
    fn each_stream_gets_the_pace_of_its_own_request() {
        let mut pairing = Pairing::default();
        for _ in 0..3 {
            let pace = pace();
            pairing.request(pace.clone());
            assert!(is_same(&pairing.stream().unwrap(), &pace));
        }
    }

    #[test]
    fn where_requests_and_streams_do_not_take_turns_every_stream_ends() {
        let (mut two_requests, mut no_request) = (Pairing::default(), Pairing::default());
        two_requests.request(pace());
        two_requests.request(pace());
        for pairing in [&mut two_requests, &mut no_request] {
            assert!(pairing.stream().is_none());
            pairing.request(pace());
            assert!(pairing.stream().is_none(), "a later turn does not make it certain again");
        }
    }

    #[test]
    fn a_stream_without_a_request_is_dropped_unpolled() {
        let local = tokio::task::LocalSet::new();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let runs = Rc::new(Cell::new(0));
        local.block_on(&runtime, async {
            let streams = streams();
            let run = |runs: &Rc<Cell<u32>>| {
                let runs = Rc::clone(runs);
                async move { runs.set(runs.get() + 1) }
            };
            streams.pairing.borrow_mut().request(pace());
            streams.execute(run(&runs));
            streams.execute(run(&runs));
            tokio::task::yield_now().await;
        });
        assert_eq!(runs.get(), 1);
        assert_eq!(Rc::strong_count(&runs), 1, "the stream without a request is gone");
    }
}
