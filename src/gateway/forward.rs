//! To the upstream and back. The request that goes up is built from the canonical one and from nothing else.

use std::borrow::Cow;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body::Body;

use super::authorize::Permit;
use super::caller::Prepared;
use super::event_stream::is_event_stream;
use super::exchange::Exchange;
use super::headers;
use super::response_body::ResponseBody;
use super::shares::{Client, OfOrg, ThreadShares};
use super::tunnel::{self, Tunnel};
use crate::policy::request::{CanonicalRequest, Parts};
use crate::store::cache::Known;
use crate::telemetry::{Event, Notice};
use crate::upstream::answer::{Answer, Framing};
use crate::upstream::bounds::Places;
use crate::upstream::client_body::ClientBody;
use crate::upstream::error::{BodyError, BrokenOff, SendError};
use crate::upstream::request_body::{RequestBody, TrailerRules};
use crate::upstream::send::Asking;
use crate::upstream::{Protocol, Total, UpstreamId};
use crate::vocabulary::believed::RemovedSet;
use crate::vocabulary::network::ClientNetwork;
use crate::vocabulary::rejection::{BadGateway, Rejection, Unavailable};

/// Sends what `permit` allows to `upstream`.
///
/// # Errors
/// 413 and 400 where the body proves to be wrong on the way, 502 and 504 where no answer comes, 503 where the client, its
/// organisation, or all together have as many requests in flight as may be, at all upstreams or at this one.
pub(super) async fn forward(
    exchange: &mut Exchange,
    request: CanonicalRequest<ClientBody>,
    permit: &Permit<'_>,
    upstream: UpstreamId,
) -> Result<Forwarded, Rejection> {
    let wants_tunnel = permit.route().websocket && tunnel::is_handshake(request.method(), request.headers());
    let takes_trailers = headers::takes_trailers(request.headers());
    let client = match permit.holder() {
        Some(holder) => Client::Key(holder.digest, of_org(exchange, holder)),
        None => Client::Site(ClientNetwork::of(exchange.client()).site()),
    };
    let (terms, timeouts) = (&permit.route().terms, &exchange.snapshot().upstream(upstream).timeouts);
    let total = terms.total.unwrap_or(timeouts.total);
    if let Total::AtMost(total) = exchange.dialect().limit(total, request.headers()) {
        exchange.limit(total);
    }
    // Before it waits: a key that is revoked meanwhile must not get through.
    if let Some(holder) = permit.holder() {
        exchange.enter_flight(holder);
    }
    if let Some(crowd) = exchange.snapshot().crowd(upstream, permit.environment()) {
        let shares = Rc::clone(crowd);
        // Boxed, since few upstreams have a limit.
        Box::pin(take_part_of_upstream(exchange, shares, permit)).await?;
    }
    exchange.take_part(client).await?;
    let mut request = build(exchange, request, permit)?;
    if exchange.snapshot().upstream(upstream).protocol != Protocol::Http1 {
        let snapshot = Rc::clone(exchange.snapshot());
        let rules = TrailerRules(Rc::new(move |trailers| snapshot.rules().trailers(trailers)));
        request = request.map(|body| body.with_trailers(rules));
    }
    if wants_tunnel {
        tunnel::upgrade(request.headers_mut());
    } else if takes_trailers {
        headers::ask_for_trailers(request.headers_mut());
    }
    let org = permit.holder().map(|holder| holder.found.org.id);
    exchange.note_upload(request.body().upload());
    exchange.note_sending(permit.environment());
    let route = exchange.route().unwrap_or_default();
    let asking = Asking { org, route, hints: exchange.hints.as_deref() };
    let sent =
        exchange.snapshot().upstreams().send((upstream, permit.environment()), request, asking, terms).await;
    exchange.note_answered();
    exchange.note_endpoint(sent.endpoint);
    let mut answer = sent.outcome.map_err(|error| refuse(exchange, upstream, &error))?;
    let snapshot = exchange.snapshot();
    snapshot.upstream_cells(upstream).answered(exchange.upstream_duration().unwrap_or_default());
    // Dropping the answer closes the connection.
    refuse_invalid(&answer, wants_tunnel).map_err(|flaw| invalid_answer(exchange, upstream, &flaw))?;
    snapshot.rules().answer(&mut answer.head.headers, exchange.id_value(), takes_trailers);
    let stream_idle = terms.stream_idle.unwrap_or(snapshot.upstream(upstream).timeouts.stream_idle);
    Ok(Forwarded { answer, stream_idle })
}

/// What the organisation of a key has in flight on this thread.
fn of_org(exchange: &Exchange, holder: &Known<Prepared>) -> Rc<OfOrg> {
    let of_org = holder.prepared.of_org.get_or_init(|| exchange.gateway().shares.of_org(holder.found.org.id));
    Rc::clone(of_org)
}

/// See [`Exchange::take_part_of_upstream`].
async fn take_part_of_upstream(
    exchange: &mut Exchange,
    shares: Rc<ThreadShares<Places>>,
    permit: &Permit<'_>,
) -> Result<(), Rejection> {
    let client = match permit.holder() {
        Some(holder) => Client::Key(holder.digest, shares.of_org(holder.found.org.id)),
        None => Client::Site(ClientNetwork::of(exchange.client()).site()),
    };
    exchange.take_part_of_upstream(shares, client).await
}

/// # Errors
/// Why the answer cannot be passed on.
fn refuse_invalid(answer: &Answer, wants_tunnel: bool) -> Result<(), Cow<'static, str>> {
    match answer.framing {
        Framing::Unknown(flaw) => Err(flaw.to_string().into()),
        Framing::Clear | Framing::Doubtful if answer.upgrade.is_none() => Ok(()),
        Framing::Clear | Framing::Doubtful if !wants_tunnel => {
            Err("it is a 101, and the request asked for no upgrade".into())
        }
        Framing::Clear | Framing::Doubtful if !tunnel::is_granted(&answer.head.headers) => {
            Err("it is a 101 to something else than `websocket`".into())
        }
        Framing::Clear | Framing::Doubtful => Ok(()),
    }
}

/// The refusal of a request that got no answer.
fn refuse(exchange: &Exchange, upstream: UpstreamId, error: &SendError) -> Rejection {
    match error {
        SendError::Body(error) => (*error).into(),
        SendError::TimedOut => Rejection::GatewayTimeout,
        SendError::Crowded => Rejection::Unavailable(Unavailable::Upstreams),
        SendError::Full => Rejection::Unavailable(Unavailable::Upstream),
        SendError::Unreachable => Rejection::BadGateway(BadGateway::Unreachable),
        SendError::Unresolved => Rejection::BadGateway(BadGateway::Unresolved),
        SendError::NoTls => Rejection::BadGateway(BadGateway::NoTls),
        SendError::BrokeOff(BrokenOff::Malformed(flaw)) => invalid_answer(exchange, upstream, flaw),
        SendError::BrokeOff(cause) => {
            log_broken_off(exchange, upstream, cause);
            let is_tls = matches!(cause, BrokenOff::Tls(_));
            Rejection::BadGateway(if is_tls { BadGateway::NoTls } else { BadGateway::BrokeOff })
        }
    }
}

/// Logged, since the upstream may have carried out what was sent.
fn log_broken_off(exchange: &Exchange, upstream: UpstreamId, cause: &BrokenOff) {
    let upstream = &exchange.snapshot().upstream(upstream).name;
    Event::UpstreamBrokeOff.log_of(upstream, exchange.gateway().clock.mono(), || {
        format!("upstream {upstream} broke off before it answered {}: {cause}", exchange.id())
    });
}

/// The refusal of a request whose answer cannot be passed on. Logged: neither its client nor the metrics can say why.
fn invalid_answer(exchange: &Exchange, upstream: UpstreamId, flaw: &str) -> Rejection {
    let upstream = &exchange.snapshot().upstream(upstream).name;
    Event::UpstreamInvalidAnswer.log_of(upstream, exchange.gateway().clock.mono(), || {
        format!("upstream {upstream} gave {} an answer that cannot be passed on: {flaw}", exchange.id())
    });
    Rejection::BadGateway(BadGateway::InvalidAnswer)
}

impl From<BodyError> for Rejection {
    fn from(error: BodyError) -> Self {
        match error {
            BodyError::TooLarge => Self::BodyTooLarge,
            BodyError::Stalled => Self::BodyStalled,
            BodyError::Broken => Self::BodyBroken,
        }
    }
}

/// An answer that is ready to be passed on.
#[derive(Debug)]
pub(super) struct Forwarded {
    answer: Answer,
    stream_idle: Duration,
}

impl Forwarded {
    /// The answer as the client gets it, streaming, and the tunnel that it may begin.
    pub(super) fn into_response(
        self,
        mut exchange: Box<Exchange>,
    ) -> (Response<ResponseBody>, Option<Box<Tunnel>>) {
        let Self { answer: Answer { mut head, body, upgrade, .. }, stream_idle } = self;
        head.version = Version::HTTP_11;
        if matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            // There is no body; a length of one is forbidden beside a 204, and only confuses beside a 304.
            head.headers.remove(CONTENT_LENGTH);
        }
        exchange.note_forwarded(head.status);
        if head.status == StatusCode::RESET_CONTENT {
            // It has no body (RFC 9110, section 15.3.6), and a client that knows this would take one for the next answer.
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(0));
            return (Response::from_parts(head, ResponseBody::own(Bytes::new(), exchange)), None);
        }
        if let Some(upstream) = upgrade {
            tunnel::upgrade(&mut head.headers);
            let tunnel = Box::new(Tunnel { upstream, idle: stream_idle, exchange });
            return (Response::from_parts(head, ResponseBody::none()), Some(tunnel));
        }
        let is_open = body.size_hint().exact().is_none();
        let as_it_comes = if is_open && is_event_stream(&head.headers) {
            ResponseBody::events
        } else {
            ResponseBody::upstream
        };
        (Response::from_parts(head, as_it_comes(body, exchange)), None)
    }
}

/// Counts fields that were removed because upstreams believe them, and logs each kind once, so that nobody who misses
/// one searches for long.
#[cold]
fn note_removed(exchange: &Exchange, removed: RemovedSet) {
    for removed in removed.iter() {
        exchange.gateway().cells.field_removed(removed);
        if exchange.snapshot().rules().is_news(removed) {
            let id = exchange.id();
            let label = removed.label();
            Notice::FieldRemoved.log(&format!(
                "request {id} had a header that upstreams believe ({label}), so it was removed; [request_headers] in the \
                 configuration says which are kept. keygate_request_headers_removed_total counts them; this line comes \
                 once for each name"
            ));
        }
    }
}

fn build(
    exchange: &Exchange,
    request: CanonicalRequest<ClientBody>,
    permit: &Permit<'_>,
) -> Result<Request<RequestBody>, Rejection> {
    let snapshot = exchange.snapshot();
    let limit = permit.route().body_limit.unwrap_or(snapshot.settings().limits.body);
    let Parts { method, target, host, mut headers, version, body } = request.into_parts();
    if body.size_hint().lower() > limit {
        return Err(Rejection::BodyTooLarge);
    }
    if !permit.route().forward_authorization {
        // First, while there are few fields: to remove one of many costs more.
        headers.remove(AUTHORIZATION);
    }
    let rules = snapshot.rules();
    let removed = rules.forward(&mut headers, exchange.peer(), &host, exchange.id_value(), permit.identity());
    if !removed.is_empty() {
        note_removed(exchange, removed);
    }
    let body = RequestBody::new(body, version, limit, snapshot.settings().body_idle_timeout);
    match body.size_hint().exact() {
        // Written anew: `0010` is ten here, and could be eight there.
        Some(length) if headers.contains_key(CONTENT_LENGTH) => {
            headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
        }
        Some(_) => {}
        None => {
            // Without it a body of unknown length on a GET would be left out.
            headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
    }
    let mut request = Request::new(body);
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from(target);
    *request.headers_mut() = headers;
    Ok(request)
}
