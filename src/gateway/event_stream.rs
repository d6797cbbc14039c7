//! Event streams when the process ends.
//!
//! A `text/event-stream` goes on for hours, and its client comes back by itself when it ends. Between two events it can end
//! at any moment, and nobody loses anything. So when the process ends, it is ended behind a blank line, which ends an event
//! (WHATWG HTML, section 9.2.6). One that has sent nothing yet waits for its first event, as long as streams may take:
//! its client has asked for something, and an end without an event would be an answer without a content. Where keygate
//! cannot see the lines, in a compressed stream, it is a body like any other. Other bodies are never shortened.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE};
use http_body::{Body, Frame, SizeHint};
use slab::Slab;

use super::tunnel::Departure;
use crate::upstream::answer::AnswerBody;
use crate::upstream::error::BodyError;

/// The event streams of one worker, and what the end of the process means to them.
#[derive(Debug, Default)]
pub(super) struct EventStreams {
    open: RefCell<Slab<Open>>,
    /// What it means to those that begin from now on.
    later: Cell<Departure>,
}

#[derive(Debug)]
struct Open {
    departure: Departure,
    waker: Option<Waker>,
}

impl EventStreams {
    /// Asks those that are open to end. One that begins later is let be: its client has come back while load balancers
    /// still send it here.
    pub(super) fn ask(&self) {
        self.tell(Departure::Asked);
    }

    /// Tells this to those that are open and to all that begin later. It never goes back.
    pub(super) fn dismiss(&self, departure: Departure) {
        self.later.set(self.later.get().max(departure));
        self.tell(departure);
    }

    fn tell(&self, departure: Departure) {
        for (_, open) in &mut *self.open.borrow_mut() {
            open.departure = open.departure.max(departure);
            open.waker.iter().for_each(Waker::wake_by_ref);
        }
    }

    fn join(self: &Rc<Self>) -> Place {
        let open = Open { departure: self.later.get(), waker: None };
        Place { streams: Rc::clone(self), number: self.open.borrow_mut().insert(open) }
    }
}

/// The place of an event stream among those of its worker. It leaves them when this is dropped.
#[derive(Debug)]
struct Place {
    streams: Rc<EventStreams>,
    number: usize,
}

impl Place {
    /// What the stream is to do. Its task is woken when that changes.
    fn poll(&self, cx: &Context<'_>) -> Departure {
        let mut open = self.streams.open.borrow_mut();
        let Some(open) = open.get_mut(self.number) else { return Departure::NotYet };
        match &mut open.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            none => *none = Some(cx.waker().clone()),
        }
        open.departure
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.streams.open.borrow_mut().try_remove(self.number);
    }
}

/// Whether a body of unknown length with these fields is an event stream whose lines can be seen.
pub(super) fn is_event_stream(headers: &HeaderMap) -> bool {
    const TYPE: &[u8] = b"text/event-stream";
    let Some(content) = headers.get(CONTENT_TYPE).map(|content| content.as_bytes()) else { return false };
    let Some((named, parameters)) = content.split_at_checked(TYPE.len()) else { return false };
    named.eq_ignore_ascii_case(TYPE)
        && parameters.first().is_none_or(|next| b"; \t".contains(next))
        && !headers.contains_key(CONTENT_ENCODING)
}

/// The body of an event stream.
#[derive(Debug)]
pub(super) struct EventStream {
    /// `None` once it was ended here.
    body: Option<AnswerBody>,
    place: Place,
    tail: Tail,
}

impl EventStream {
    pub(super) fn new(body: AnswerBody, streams: &Rc<EventStreams>) -> Self {
        Self { body: Some(body), place: streams.join(), tail: Tail::default() }
    }

    /// Whether it was ended here, and not by the upstream.
    pub(super) const fn was_dismissed(&self) -> bool {
        self.body.is_none()
    }

    pub(super) fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    pub(super) fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }

    pub(super) fn poll_frame(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let departure = self.place.poll(cx);
        let has_begun = !self.tail.is_empty();
        if departure != Departure::NotYet && has_begun && self.tail.ends_event() {
            // That closes the connection to the upstream.
            self.body = None;
        }
        let Some(body) = &mut self.body else { return Poll::Ready(None) };
        if departure == Departure::Over && has_begun {
            // The client must not take half an event for the end of the stream.
            return Poll::Ready(Some(Err(BodyError::Broken)));
        }
        let frame = match Pin::new(body).poll_frame(cx) {
            Poll::Ready(Some(Ok(frame))) => frame,
            Poll::Pending if departure == Departure::Over => return self.end(),
            polled => return polled,
        };
        let mut data = match frame.into_data() {
            Ok(data) => data,
            Err(trailers) => return Poll::Ready(Some(Ok(trailers))),
        };
        if departure != Departure::NotYet {
            match self.tail.last_event_in(&data) {
                Some(end) => data.truncate(end),
                // Nothing has passed, and nothing whole can.
                None if departure == Departure::Over => return self.end(),
                None => {}
            }
        }
        self.tail.pass(&data);
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    /// Ends it here.
    fn end<T>(&mut self) -> Poll<Option<T>> {
        self.body = None;
        Poll::Ready(None)
    }
}

/// The last bytes of an event stream that have passed.
#[derive(Clone, Copy, Debug, Default)]
struct Tail {
    bytes: [u8; Self::LENGTH],
    length: usize,
}

impl Tail {
    /// The longest that must be seen to know a blank line: a line end, and CRLF.
    const LENGTH: usize = 3;

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    const fn is_empty(&self) -> bool {
        self.length == 0
    }

    fn pass(&mut self, data: &[u8]) {
        let last = &data[data.len().saturating_sub(Self::LENGTH)..];
        let kept = self.length.min(Self::LENGTH - last.len());
        self.bytes.copy_within(self.length - kept..self.length, 0);
        self.bytes[kept..kept + last.len()].copy_from_slice(last);
        self.length = kept + last.len();
    }

    /// Whether an event ends here, or none has begun.
    fn ends_event(&self) -> bool {
        ends_event(self.bytes())
    }

    /// The number of bytes of `data` up to its last end of an event.
    fn last_event_in(&self, data: &[u8]) -> Option<usize> {
        let text = [self.bytes(), data].concat();
        let ends = (self.length + 1..=text.len()).rev();
        let mut ends = ends.filter(|end| ends_event(&text[end.saturating_sub(Self::LENGTH)..*end]));
        ends.next().map(|end| end - self.length)
    }
}

/// Whether a stream that ends with these bytes is between two events. They are its last three, or all if it has fewer.
fn ends_event(last: &[u8]) -> bool {
    let line_ends: [&[u8]; 3] = [b"\r\n", b"\n", b"\r"];
    match line_ends.iter().find_map(|end| last.strip_suffix(*end)) {
        Some(before) => before.last().is_none_or(|byte| b"\r\n".contains(byte)),
        None => last.is_empty(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    #[test]
    fn a_blank_line_ends_an_event_whatever_its_line_ends() {
        for ended in ["", "\n", "\r\n", "data: a\n\n", "data: a\r\n\r\n", "data: a\r\r", "data: a\n\r\n"] {
            assert!(of(&[ended]).ends_event(), "{ended:?}");
        }
        for open in ["a", "data: a\n", "data: a\r\n", "data: a\r", "data: a\n\ndata: b\n", "\n\n:"] {
            assert!(!of(&[open]).ends_event(), "{open:?}");
        }
    }

    fn of(pieces: &[&str]) -> Tail {
        let mut tail = Tail::default();
        pieces.iter().for_each(|piece| tail.pass(piece.as_bytes()));
        tail
    }

    #[test]
    fn a_piece_is_cut_behind_its_last_event() {
        let cut = |before: &str, data: &str| of(&[before]).last_event_in(data.as_bytes());
        assert_eq!(cut("data: a\n", "\ndata: b"), Some(1));
        assert_eq!(cut("data: a", "\r\n\r\ndata: b\r\n\r\ndata"), Some(15));
        assert_eq!(cut("data: a", "\r\n\r\n"), Some(4), "CRLF is not taken apart");
        assert_eq!(cut("data: a\n", "data: b\n"), None);
    }

    proptest! {
        #[test]
        fn it_does_not_matter_how_a_stream_is_cut_into_pieces(text in "[a\r\n]{0,12}", at in 0_usize..12) {
            let (one, two) = text.split_at(at.min(text.len()));
            let pieces = of(&[one, two]);
            prop_assert_eq!(pieces.ends_event(), of(&[&text]).ends_event());
            prop_assert_eq!(pieces.bytes(), &text.as_bytes()[text.len().saturating_sub(3)..]);
        }
    }

    #[test]
    fn only_a_plain_event_stream_is_one() {
        let with = |fields: &[(http::HeaderName, &'static str)]| {
            let fields = fields.iter().map(|(name, value)| (name.clone(), HeaderValue::from_static(value)));
            is_event_stream(&fields.collect())
        };
        assert!(with(&[(CONTENT_TYPE, "text/event-stream")]));
        assert!(with(&[(CONTENT_TYPE, "Text/Event-Stream; charset=utf-8")]));
        assert!(!with(&[(CONTENT_TYPE, "text/event-streams")]));
        assert!(!with(&[(CONTENT_TYPE, "text/plain")]));
        assert!(!with(&[(CONTENT_TYPE, "text/event-stream"), (CONTENT_ENCODING, "gzip")]));
        assert!(!with(&[]));
    }
}
