//! What the streams of an HTTP/2 connection make h2 hold, by the frames that have come and gone.
//!
//! The h2 library (0.4.20) gives out parts of the pieces that it reads: a DATA frame of one byte keeps 8 KiB from being freed
//! (`codec/framed_read.rs`, `decode_frame`: `bytes.freeze()`, of pieces that `tokio_util::codec::FramedRead` allocates with
//! 8 KiB, or with the length of a longer frame), until it is taken from the stream (`proto/streams/recv.rs`, `recv_data` and
//! `poll_data`). What lies between two such frames may be anything, so their windows do not bound it: frames that are taken
//! give h2's allowance for short ones back (`proto/streams/counts.rs`, `record_data_frame`). So each frame is counted with the
//! piece that it lies in, until it is taken or its stream is gone.
//!
//! At the most, with the limits of [`http2`](super::http2), one connection holds: 100 requests of 32 KiB and 64 KiB of fields
//! (9.4 MiB), bodies and the slots of their frames ([`BODIES`], 3 MiB), answers of which the client takes nothing (2 MiB), what the
//! table of HPACK keeps (1.5 MiB) and a header list (0.6 MiB): 16.5 MiB. Honest clients come to some 100 KiB.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::task::{Context, Poll};

use http::HeaderValue;

use super::fields::Table;
use super::frames::{CONTINUATION, DATA, Frame, HEADERS, RST_STREAM};
use super::held::{Held, OF_ONE_PLACE};
use super::hint;
use super::together::Waiter;
use crate::upstream::client_body::Followed;

/// The pieces that h2 reads into, in bytes, and the rest of one that a long frame has for itself.
const PIECE: usize = 8 << 10;
/// The longest payload of a frame that h2 takes.
const PAYLOAD: usize = 16 << 10;
/// What h2's own piece takes more, from the first frame on that is longer than [`PIECE`].
const LONG_PIECE: usize = 12 << 10;
/// The memory of a frame's place in the queue of h2, which only grows (`proto/streams/buffer.rs`, a slab).
const OF_ONE_SLOT: usize = 512;
/// The same for a stream that h2 remembers only to reset it.
const OF_ONE_RESET: usize = 1 << 10;
/// The memory of a header list that has not ended, in bytes: compressed, a field is one byte on the wire. And the frames that
/// it came in.
const OF_OPEN_LIST: usize = (512 + 96) << 10;
/// What the bodies of one stream may keep, in bytes, before it is reset.
const BODY: usize = 2 << 20;
/// The same for all streams of a connection: then the one is reset that keeps the most.
const BODIES: usize = 3 << 20;
/// Frames that make h2 reset streams, before it has written anything.
const RESETS: usize = 512;
/// How many interim answers may wait to be written. More are dropped.
const HINTS: usize = 8;
/// The setting of a client that bounds the table of fields that it is sent, and its value at first (RFC 9113, section 6.5.2).
const HEADER_TABLE_SIZE: (u16, u32) = (1, 4096);
/// After so much was added, in bytes, the budget is asked again.
const ENOUGH: usize = 64 << 10;

/// The streams of one connection.
#[derive(Debug)]
pub(super) struct Ledger {
    held: Rc<Held>,
    book: RefCell<Book>,
    /// Whether a request has come whole, and h2 must hand it over before it reads more.
    is_request_due: Cell<bool>,
    /// Whether interim answers wait.
    has_hints: Cell<bool>,
    /// The task that writes.
    writer: Waiter,
}

#[derive(Debug, Default)]
struct Book {
    read: u64,
    streams: Vec<Stream>,
    /// The highest stream that there was.
    last: u32,
    /// The stream whose request h2 hands over next.
    arrived: Option<u32>,
    is_in_list: bool,
    has_long_frame: bool,
    table: Table,
    /// What heads, and bodies, of streams keep; and the DATA frames that are not taken.
    of_heads: usize,
    of_bodies: usize,
    frames: usize,
    most_frames: usize,
    /// Frames that h2 may answer with a reset, and has not written one since.
    resets: usize,
    most_resets: usize,
    /// Interim answers that wait for their place between two frames, each with its stream.
    hints: VecDeque<(u32, Vec<u8>)>,
    of_hints: usize,
    /// The client has made the table smaller. h2 says so at the beginning of the next header block (RFC 7541, section 4.2), which a
    /// block of keygate's own must not precede.
    has_shrunk: bool,
    table_size: Option<u32>,
}

#[derive(Debug)]
struct Stream {
    id: u32,
    of_head: usize,
    of_body: usize,
    /// What each of its DATA frames keeps that were not taken.
    frames: VecDeque<usize>,
    /// Where the last of them ended.
    end: u64,
    body: Stage,
    /// Whether the head of its answer was written.
    has_head: bool,
    is_answered: bool,
    ending: Option<Rc<Ending>>,
}

/// How far the body of a request has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// h2 has not handed the request over.
    Expected,
    Open,
    /// Nobody will read it, so h2 keeps nothing of it.
    Gone,
}

impl Ledger {
    pub(super) fn new(held: &Rc<Held>) -> Rc<Self> {
        Rc::new(Self {
            held: Rc::clone(held),
            book: RefCell::default(),
            is_request_due: Cell::new(false),
            has_hints: Cell::new(false),
            writer: Waiter::default(),
        })
    }

    /// Ready if h2 may read more now.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        self.writer.remember(cx);
        if self.is_request_due.take() {
            // h2 looks for requests when there is nothing to read, and is asked to read again at once if there was one.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.held.poll_room(cx)
    }

    /// Whether the client makes h2 reset streams and takes nothing of what it writes.
    pub(super) fn is_flooded(&self) -> bool {
        let book = self.book.borrow();
        book.resets + book.streams.len() > RESETS
    }

    /// So many bytes were read and not given to h2.
    pub(super) fn note_rest(&self, bytes: usize) {
        self.held.note_rest(bytes);
    }

    /// What is counted, after a change of it.
    fn settle(&self, book: &Book) {
        self.held.note_streams(book.bytes());
    }

    /// Bytes have come. `note` follows them, and what it adds is told.
    pub(super) fn pass(&self, note: impl FnOnce(&mut Arrived<'_>)) {
        let book = &mut *self.book.borrow_mut();
        let before = book.bytes();
        let mut arrived = Arrived { book, before, is_request_due: &self.is_request_due };
        note(&mut arrived);
        self.settle(book);
    }

    /// A frame was written.
    pub(super) fn written(&self, frame: Frame) {
        if frame.ends_stream() || frame.kind == HEADERS {
            let book = &mut *self.book.borrow_mut();
            book.change(frame.stream, |stream| {
                stream.has_head = true;
                stream.is_answered |= frame.ends_stream();
            });
            self.settle(book);
        }
    }

    /// Whether an interim answer waits to be written.
    pub(super) const fn has_hints(&self) -> bool {
        self.has_hints.get()
    }

    /// The next interim answer, of a stream whose answer has not begun. To be written at once.
    pub(super) fn next_hint(&self) -> Option<Vec<u8>> {
        let book = &mut *self.book.borrow_mut();
        let next = loop {
            let Some((id, frame)) = book.hints.pop_front() else { break None };
            book.of_hints -= frame.len();
            if book.awaits(id) {
                break Some(frame);
            }
        };
        self.has_hints.set(!book.hints.is_empty());
        self.settle(book);
        next
    }

    /// All that h2 had to write was written.
    pub(super) fn flushed(&self) {
        self.book.borrow_mut().resets = 0;
    }

    /// The stream whose request has come whole.
    #[cfg(test)]
    pub(super) fn arrived(&self) -> Option<u32> {
        self.book.borrow().arrived
    }

    /// h2 has handed a request over whose fields have so many bytes. Call it once for each, at once.
    pub(super) fn begin(self: &Rc<Self>, fields: usize, has_body: bool, ending: &Rc<Ending>) -> Entry {
        let book = &mut *self.book.borrow_mut();
        let id = book.arrived.take().unwrap_or_default();
        book.change(id, |stream| {
            stream.of_head = OF_ONE_PLACE + fields;
            stream.body = if has_body { Stage::Open } else { Stage::Gone };
            stream.ending = Some(Rc::clone(ending));
        });
        self.settle(book);
        Entry { ledger: Rc::clone(self), id }
    }
}

impl Book {
    fn bytes(&self) -> usize {
        let list = if self.is_in_list { OF_OPEN_LIST } else { 0 };
        let piece = if self.has_long_frame { LONG_PIECE } else { 0 };
        self.of_heads
            + self.of_bodies
            + self.of_hints
            + self.most_frames * OF_ONE_SLOT
            + self.most_resets * OF_ONE_RESET
            + self.table.bytes(self.read)
            + list
            + piece
    }

    /// Changes what a stream is, if it is there; removes it where h2 keeps nothing of it any more.
    fn change(&mut self, id: u32, change: impl FnOnce(&mut Stream)) {
        let Some(n) = self.streams.iter().position(|stream| stream.id == id) else { return };
        let stream = &mut self.streams[n];
        let (head, body, frames) = (stream.of_head, stream.of_body, stream.frames.len());
        change(stream);
        if stream.body == Stage::Gone {
            (stream.of_body, stream.frames) = (0, VecDeque::new());
        }
        self.of_heads = self.of_heads + stream.of_head - head;
        self.of_bodies = self.of_bodies + stream.of_body - body;
        self.frames = self.frames + stream.frames.len() - frames;
        // One that was never handed over has no reader.
        if stream.is_answered && stream.body != Stage::Open {
            self.of_heads -= stream.of_head;
            self.of_bodies -= stream.of_body;
            self.frames -= stream.frames.len();
            self.streams.swap_remove(n);
        }
        self.most_frames = self.most_frames.max(self.frames);
    }

    /// Whether the answer of this stream has not begun.
    fn awaits(&self, id: u32) -> bool {
        self.streams.iter().any(|stream| stream.id == id && !stream.has_head && !stream.is_answered)
    }

    fn note_reset(&mut self) {
        self.resets += 1;
        self.most_resets = self.most_resets.max(self.resets);
    }

    /// Resets streams while bodies keep too much.
    fn bound_bodies(&mut self, id: u32) {
        let is_due = |stream: &Stream| stream.ending.as_ref().is_some_and(|ending| ending.is_ordered());
        if self.streams.iter().any(|stream| stream.id == id && stream.of_body > BODY && !is_due(stream)) {
            self.streams.iter().filter(|stream| stream.id == id).for_each(Stream::end);
        }
        let due: usize = self.streams.iter().filter(|stream| is_due(stream)).map(Stream::of_frames).sum();
        if (self.of_bodies + self.frames * OF_ONE_SLOT).saturating_sub(due) > BODIES {
            let stay = self.streams.iter().filter(|stream| !is_due(stream));
            stay.max_by_key(|stream| stream.of_frames()).into_iter().for_each(Stream::end);
        }
    }
}

impl Stream {
    fn of_frames(&self) -> usize {
        self.of_body + self.frames.len() * OF_ONE_SLOT
    }

    fn end(&self) {
        self.ending.iter().for_each(|ending| ending.order());
    }
}

/// Follows what has come.
#[derive(Debug)]
pub(super) struct Arrived<'l> {
    book: &'l mut Book,
    before: usize,
    is_request_due: &'l Cell<bool>,
}

impl Arrived<'_> {
    /// So many bytes have come.
    pub(super) const fn note_bytes(&mut self, count: usize) {
        self.book.read += count as u64;
    }

    /// Whether so much was added that nothing more should be read before the budget is asked again.
    pub(super) fn is_enough(&self) -> bool {
        self.book.bytes() > self.before + ENOUGH
    }

    /// The head of a frame has come.
    pub(super) fn note_frame(&mut self, frame: Frame) {
        self.book.has_long_frame |= frame.length > PIECE;
        match frame.kind {
            DATA => self.note_data(frame),
            HEADERS => {
                self.begin_stream(frame.stream);
                self.book.is_in_list = !frame.has(super::frames::END_HEADERS);
            }
            CONTINUATION => self.book.is_in_list = !frame.has(super::frames::END_HEADERS),
            RST_STREAM => self.book.change(frame.stream, |stream| stream.is_answered = true),
            _ => {}
        }
    }

    /// A setting of the client has come.
    pub(super) fn note_setting(&mut self, setting: u16, value: u32) {
        let (table_size, first) = HEADER_TABLE_SIZE;
        if setting == table_size {
            let before = self.book.table_size.replace(value).unwrap_or(first);
            self.book.has_shrunk |= value < before;
        }
    }

    /// A part of a header list has come.
    pub(super) fn note_fields(&mut self, part: &[u8]) {
        self.book.table.pass(part);
    }

    /// A header list has come whole. Returns whether h2 must look at it before it reads more.
    pub(super) fn end_list(&mut self, stream: u32) -> bool {
        self.book.table.end_list(self.book.read);
        let is_expected = |at: &Stream| at.id == stream && at.body == Stage::Expected;
        let is_new = self.book.streams.iter().any(is_expected);
        if is_new {
            self.book.arrived = Some(stream);
            self.is_request_due.set(true);
        }
        is_new
    }

    fn begin_stream(&mut self, id: u32) {
        if id <= self.book.last {
            return;
        }
        self.book.last = id;
        self.book.of_heads += OF_ONE_PLACE;
        let end = self.book.read;
        let (of_head, of_body, frames) = (OF_ONE_PLACE, 0, VecDeque::new());
        let (body, has_head, is_answered, ending) = (Stage::Expected, false, false, None);
        let stream = Stream { id, of_head, of_body, frames, end, body, has_head, is_answered, ending };
        self.book.streams.push(stream);
    }

    fn note_data(&mut self, frame: Frame) {
        let (read, payload) = (self.book.read, frame.length.min(PAYLOAD));
        let mut is_kept = false;
        self.book.change(frame.stream, |stream| {
            is_kept = stream.body != Stage::Gone;
            let before = usize::try_from(read.saturating_sub(stream.end)).unwrap_or(usize::MAX);
            // Half of a piece can be unused, where the next frame did not fit.
            let shared = before.saturating_add(payload).saturating_mul(2);
            let keeps = shared.min(PIECE.max(payload / 4 * 5));
            stream.end = read + payload as u64;
            if is_kept && payload > 0 {
                stream.of_body += keeps;
                stream.frames.push_back(keeps);
            }
        });
        if is_kept {
            self.book.bound_bodies(frame.stream);
        } else {
            self.book.note_reset();
        }
    }
}

/// The stream of one request, for what learns how far it is.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    ledger: Rc<Ledger>,
    id: u32,
}

impl Entry {
    /// The head of its answer has so many bytes, which h2 keeps until the client takes them.
    pub(super) fn note_answer(&self, fields: usize) {
        self.change(|stream| stream.of_head = stream.of_head.max(OF_ONE_PLACE + fields));
    }

    /// Lets an interim answer with these links go out before the next frame.
    pub(super) fn hint(&self, links: &[HeaderValue]) {
        let book = &mut *self.ledger.book.borrow_mut();
        if book.has_shrunk || book.hints.len() == HINTS || !book.awaits(self.id) {
            return;
        }
        if let Some(frame) = hint::frame(self.id, links) {
            book.of_hints += frame.len();
            book.hints.push_back((self.id, frame));
            self.ledger.has_hints.set(true);
            self.ledger.settle(book);
            self.ledger.writer.wake();
        }
    }

    fn change(&self, change: impl FnOnce(&mut Stream)) {
        let book = &mut *self.ledger.book.borrow_mut();
        book.change(self.id, change);
        self.ledger.settle(book);
    }
}

/// The body of one request; when it is dropped, h2 keeps nothing of it.
#[derive(Debug)]
pub(super) struct Body(pub(super) Entry);

impl Followed for Body {
    fn took_frame(&self) {
        self.0.change(|stream| {
            let kept = stream.frames.pop_front().unwrap_or_default();
            stream.of_body -= kept;
        });
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        self.0.change(|stream| stream.body = Stage::Gone);
    }
}

/// Whether a stream must end because of what its body keeps; shared with the stream's task.
#[derive(Debug, Default)]
pub(super) struct Ending {
    is_due: Cell<bool>,
    task: Waiter,
}

impl Ending {
    /// Whether it is due; the task is woken when it becomes so.
    pub(super) fn is_due(&self, cx: &Context<'_>) -> bool {
        self.task.remember(cx);
        self.is_ordered()
    }

    pub(super) const fn is_ordered(&self) -> bool {
        self.is_due.get()
    }

    fn order(&self) {
        self.is_due.set(true);
        self.task.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::super::arrivals::Arrivals;
    use super::super::frames::{END_HEADERS, END_STREAM, PREFACE};
    use super::super::held::Owner;
    use super::*;

    const KIB: usize = 1 << 10;

    fn frame(kind: u8, flags: u8, stream: u8, payload: &[u8]) -> Vec<u8> {
        let length = u16::try_from(payload.len()).unwrap().to_be_bytes();
        [&[0, length[0], length[1], kind, flags, 0, 0, 0, stream][..], payload].concat()
    }

    /// A connection, and what it is at.
    struct Connection {
        held: Rc<Held>,
        ledger: Rc<Ledger>,
        arrivals: Arrivals,
    }

    impl Connection {
        fn new() -> Self {
            let held = Held::new(Owner::Proxy(0), &Rc::default());
            let mut connection = Self { ledger: Ledger::new(&held), held, arrivals: Arrivals::default() };
            assert_eq!(connection.pass(&[0; PREFACE]), PREFACE);
            connection
        }

        fn pass(&mut self, bytes: &[u8]) -> usize {
            let (arrivals, mut taken) = (&mut self.arrivals, 0);
            self.ledger.pass(|arrived| taken = arrivals.pass(bytes, arrived));
            taken
        }

        /// All of it, whatever there is room for.
        fn pass_all(&mut self, mut bytes: &[u8], step: usize) {
            while !bytes.is_empty() {
                let taken = self.pass(&bytes[..bytes.len().min(step)]);
                bytes = &bytes[taken..];
            }
        }

        fn request(&mut self, stream: u8) -> (Body, Rc<Ending>) {
            self.pass_all(&frame(HEADERS, END_HEADERS, stream, &[0x84]), 1000);
            let ending = Rc::default();
            (Body(self.ledger.begin(0, true, &ending)), ending)
        }

        fn bytes(&self) -> usize {
            self.held.bytes()
        }
    }

    #[test]
    fn h2_gets_one_request_at_a_time() {
        let mut connection = Connection::new();
        let head = frame(HEADERS, END_HEADERS, 1, &[0x84]);
        let two = [head.clone(), frame(HEADERS, END_HEADERS, 3, &[0x84])].concat();
        assert_eq!(connection.pass(&two), head.len());
        let cx = Context::from_waker(std::task::Waker::noop());
        assert!(connection.ledger.poll_room(&cx).is_pending());
        assert!(connection.ledger.poll_room(&cx).is_ready());
        // Trailers are no request.
        let trailers = frame(HEADERS, END_HEADERS | END_STREAM, 1, &[0x84]);
        drop(connection.ledger.begin(0, true, &Rc::default()));
        assert_eq!(connection.pass(&trailers), trailers.len());
        assert!(connection.ledger.poll_room(&cx).is_ready());
    }

    #[test]
    fn a_request_counts_until_it_is_answered_and_its_body_is_gone() {
        for step in [1, 2, 7, 1000] {
            let mut connection = Connection::new();
            let (body, _) = connection.request(1);
            assert_eq!(connection.bytes(), OF_ONE_PLACE);
            connection.pass_all(&frame(DATA, 0, 1, &[0; 100]), step);
            connection.pass_all(&frame(DATA, 0, 1, &[0; 16_000]), step);
            let always = 2 * OF_ONE_SLOT + LONG_PIECE;
            let held = connection.bytes() - OF_ONE_PLACE - always;
            assert!((16_000..21_000).contains(&held), "in steps of {step}: {held}");
            body.took_frame();
            body.took_frame();
            assert_eq!(connection.bytes(), OF_ONE_PLACE + always);
            body.0.note_answer(1000);
            assert_eq!(connection.bytes(), OF_ONE_PLACE + 1000 + always);
            connection.ledger.written(Frame { kind: DATA, flags: END_STREAM, stream: 1, length: 0 });
            connection.pass_all(&frame(DATA, 0, 1, &[0; 100]), step);
            assert!(connection.bytes() > OF_ONE_PLACE + always, "the body is still wanted");
            drop(body);
            assert_eq!(connection.bytes(), always);
        }
    }

    #[test]
    fn a_short_frame_far_from_the_last_keeps_a_whole_piece_whatever_lies_between() {
        let mut connection = Connection::new();
        let ((kept, _), (taken, _)) = (connection.request(1), connection.request(3));
        let before = connection.bytes();
        for _ in 0..100 {
            connection.pass_all(&frame(DATA, 0, 3, &[0; 8000]), 16 * KIB);
            taken.took_frame();
            connection.pass_all(&frame(DATA, 0, 1, &[0]), 16 * KIB);
        }
        let held = connection.bytes() - before;
        assert!((100 * 8 * KIB..100 * 9 * KIB).contains(&held), "{held}");
        drop(kept);
    }

    #[test]
    fn a_stream_whose_body_keeps_too_much_is_reset_and_no_other() {
        let mut connection = Connection::new();
        let ((_first, ending), (second, other)) = (connection.request(1), connection.request(3));
        let cx = Context::from_waker(std::task::Waker::noop());
        let far_apart = [frame(DATA, 0, 3, &[0; 8000]), frame(DATA, 0, 1, &[0])].concat();
        for _ in 0..2 * BODIES / PIECE {
            connection.pass_all(&far_apart, 16 * KIB);
            second.took_frame();
            if ending.is_due(&cx) {
                break;
            }
        }
        assert!(ending.is_due(&cx) && !other.is_due(&cx));
        assert!(connection.bytes() < BODIES + 3 * OF_ONE_PLACE, "{}", connection.bytes());
    }

    #[test]
    fn hints_wait_until_they_are_written_or_their_answer_begins() {
        let mut connection = Connection::new();
        let ((one, _), (other, _), before) =
            (connection.request(1), connection.request(3), connection.bytes());
        let links = [HeaderValue::from_static("</a>")];
        for body in [&one, &other, &one] {
            body.0.hint(&links);
        }
        assert!(connection.ledger.has_hints() && connection.bytes() > before);
        assert_eq!(connection.ledger.next_hint(), hint::frame(1, &links));
        connection.ledger.written(Frame { kind: HEADERS, flags: END_HEADERS, stream: 3, length: 0 });
        assert_eq!(connection.ledger.next_hint(), hint::frame(1, &links), "that of stream 3 came too late");
        assert_eq!((connection.ledger.next_hint(), connection.bytes()), (None, before));
        other.0.hint(&links);
        assert!(!connection.ledger.has_hints(), "its answer has begun");
        (0..2 * HINTS).for_each(|_| one.0.hint(&links));
        assert_eq!(std::iter::from_fn(|| connection.ledger.next_hint()).count(), HINTS);
        connection.pass_all(&frame(RST_STREAM, 0, 1, &[0; 4]), 1000);
        one.0.hint(&links);
        assert!(!connection.ledger.has_hints(), "the client has reset it");
    }

    #[test]
    fn no_hint_comes_before_h2_has_said_that_its_table_is_smaller() {
        let size = |size: u32| [&[0, 1][..], &size.to_be_bytes()].concat();
        for (settings, may) in [
            (vec![size(65_536)], true),
            (vec![size(4096), [&[0, 3][..], &[0; 4]].concat()], true),
            (vec![size(0)], false),
            (vec![size(65_536), size(4096)], false),
        ] {
            for step in [1, 5, 1000] {
                let mut connection = Connection::new();
                connection.pass_all(&frame(super::super::frames::SETTINGS, 0, 0, &settings.concat()), step);
                let (body, _) = connection.request(1);
                body.0.hint(&[HeaderValue::from_static("</a>")]);
                assert_eq!(connection.ledger.has_hints(), may, "{settings:?} in steps of {step}");
            }
        }
    }

    #[test]
    fn a_list_that_does_not_end_counts_until_it_does() {
        let mut connection = Connection::new();
        connection.pass_all(&frame(HEADERS, 0, 1, &[0x84]), 1000);
        assert_eq!(connection.bytes(), OF_OPEN_LIST + OF_ONE_PLACE);
        connection.pass_all(&frame(CONTINUATION, END_HEADERS, 1, &[0x84]), 1000);
        assert_eq!(connection.bytes(), OF_ONE_PLACE);
    }

    #[test]
    fn frames_that_make_h2_reset_streams_are_counted_until_it_could_write() {
        let mut connection = Connection::new();
        for _ in 0..RESETS {
            connection.pass_all(&frame(DATA, 0, 1, &[0]), 1000);
        }
        assert!(!connection.ledger.is_flooded());
        connection.pass_all(&frame(DATA, 0, 1, &[0]), 1000);
        assert!(connection.ledger.is_flooded());
        connection.ledger.flushed();
        assert!(!connection.ledger.is_flooded());
    }
}
