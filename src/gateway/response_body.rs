//! An answer's body on its way to the client, and the exchange that ends with it.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::event_stream::EventStream;
use super::exchange::Exchange;
use crate::upstream::answer::AnswerBody;
use crate::upstream::error::BodyError;

/// The body of an answer of keygate's own or of the upstream's. It holds the exchange, whose record is written
/// when this is dropped. The sender of an answer that must end early drops it, which also ends what a client
/// does not take.
#[derive(Debug)]
pub struct ResponseBody {
    source: Source,
    /// `None` where the exchange goes on in a tunnel.
    exchange: Option<Box<Exchange>>,
}

#[derive(Debug)]
enum Source {
    Own(Option<Bytes>),
    Upstream(AnswerBody),
    Events(EventStream),
}

impl ResponseBody {
    pub(super) fn own(bytes: Bytes, mut exchange: Box<Exchange>) -> Self {
        if bytes.is_empty() || exchange.is_head() {
            // The bytes will not be asked for.
            exchange.note_complete();
        }
        let source = Source::Own(Some(bytes).filter(|bytes| !bytes.is_empty()));
        Self { source, exchange: Some(exchange) }
    }

    /// No body, before a tunnel.
    pub(super) const fn none() -> Self {
        Self { source: Source::Own(None), exchange: None }
    }

    pub(super) fn upstream(body: AnswerBody, mut exchange: Box<Exchange>) -> Self {
        if body.is_end_stream() {
            exchange.note_complete();
        }
        Self { source: Source::Upstream(body), exchange: Some(exchange) }
    }

    /// An event stream, which may end before the upstream's when the process ends.
    pub(super) fn events(body: AnswerBody, exchange: Box<Exchange>) -> Self {
        let events = EventStream::new(body, exchange.gateway().event_streams());
        Self { source: Source::Events(events), exchange: Some(exchange) }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        let mut polled = match &mut self.source {
            Source::Own(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Source::Upstream(body) => Pin::new(body).poll_frame(cx),
            Source::Events(events) => events.poll_frame(cx),
        };
        if let (Poll::Ready(Some(Ok(frame))), Some(exchange)) = (&mut polled, &mut self.exchange) {
            if let Some(data) = frame.data_ref() {
                exchange.note_sent(data.len() as u64);
            } else if let Some(trailers) = frame.trailers_mut() {
                exchange.filter_trailers(trailers);
                if trailers.is_empty() {
                    polled = Poll::Ready(None);
                }
            }
        }
        let ended = match &polled {
            Poll::Ready(None) => !matches!(&self.source, Source::Events(events) if events.was_dismissed()),
            // After trailers hyper does not poll again.
            Poll::Ready(Some(Ok(frame))) => frame.is_trailers() || self.is_end_stream(),
            Poll::Ready(Some(Err(_))) | Poll::Pending => false,
        };
        if ended && let Some(exchange) = &mut self.exchange {
            exchange.note_complete();
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        match &self.source {
            Source::Own(bytes) => bytes.is_none(),
            Source::Upstream(body) => body.is_end_stream(),
            Source::Events(events) => events.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.source {
            Source::Own(bytes) => SizeHint::with_exact(bytes.as_ref().map_or(0, |bytes| bytes.len() as u64)),
            Source::Upstream(body) => body.size_hint(),
            Source::Events(events) => events.size_hint(),
        }
    }
}
