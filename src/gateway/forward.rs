//! To the upstream and back. The request that goes up is built from the canonical one and from nothing else.

use std::pin::pin;
use std::rc::Rc;
use std::time::Duration;

use http::header::{AUTHORIZATION, CONTENT_LENGTH, TRANSFER_ENCODING};
use http::{HeaderValue, Request, Response, StatusCode, Uri, Version};
use http_body::Body;
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use tokio::time::{Instant, sleep};

use super::authorize::Permit;
use super::body::{RequestBody, ResponseBody, Upload, UploadState};
use super::exchange::Exchange;
use super::guard::{CanonicalRequest, Parts};
use super::headers::{self, Framing};
use super::tunnel::{self, Tunnel};
use crate::upstream::UpstreamId;
use crate::upstream::pool::{Lease, SendError};
use crate::vocabulary::rejection::{BadGateway, Rejection};

/// What came back: an answer's head, and the connection its body will come from.
type Answer = (Response<Incoming>, Lease<RequestBody>);

/// Sends what `permit` allows to `upstream`.
///
/// # Errors
/// 413 and 400 where the body proves to be wrong on the way, 502 and 504 where no answer comes.
pub(super) async fn forward(
    exchange: &mut Exchange,
    request: CanonicalRequest<Incoming>,
    permit: &Permit<'_>,
    upstream: UpstreamId,
) -> Result<Forwarded, Rejection> {
    let wants_tunnel = permit.route().websocket && tunnel::is_handshake(request.method(), request.headers());
    let takes_trailers = headers::takes_trailers(request.headers());
    // While the client's own fields are there to tell.
    let judged = permit.holder().map(|holder| (holder, exchange.client_address(request.headers())));
    let (mut request, upload) = build(exchange, request, permit)?;
    if wants_tunnel {
        tunnel::upgrade(request.headers_mut());
    } else if takes_trailers {
        headers::ask_for_trailers(request.headers_mut());
    }
    if let Some((holder, client)) = judged {
        exchange.enter_flight(holder, client);
    }
    exchange.note_sending(permit.environment());
    let snapshot = exchange.snapshot();
    let timeout = snapshot.upstream(upstream).timeouts.answer;
    let sending = snapshot.pool().send(upstream, permit.environment(), request);
    let answered = within(timeout, upload.as_deref(), sending).await;
    exchange.note_answered();
    if let Some(UploadState::Failed(error)) = upload.as_ref().map(|upload| upload.state()) {
        return Err(error.into());
    }
    let (mut answer, lease) = match answered {
        None => return Err(Rejection::GatewayTimeout),
        Some(Err(error)) => {
            return Err(Rejection::BadGateway(unanswered(exchange, upstream, &error)));
        }
        Some(Ok(answer)) => answer,
    };
    let snapshot = exchange.snapshot();
    snapshot.upstream_cells(upstream).answered(exchange.upstream_duration().unwrap_or_default());
    let is_switch = answer.status() == StatusCode::SWITCHING_PROTOCOLS;
    let grants_tunnel = is_switch && wants_tunnel && tunnel::is_granted(answer.headers());
    let switch = grants_tunnel.then(|| hyper::upgrade::on(&mut answer));
    let (mut head, incoming) = answer.into_parts();
    let framing = snapshot.rules().answer(&mut head.headers, exchange.id_value(), takes_trailers);
    // A 101 that nobody asked for is no answer. Dropping the lease closes the connection.
    if is_switch != grants_tunnel || framing == Framing::Unknown {
        return Err(Rejection::BadGateway(BadGateway::InvalidAnswer));
    }
    // An answer that overtakes the request's body leaves the rest of that body on the connection.
    let wholly_sent = upload.is_none_or(|upload| upload.state() == UploadState::Done);
    // hyper frames a connection's next request for the version of its last answer, and HTTP/1.0 cannot frame
    // a body of unknown length: it would be left out, and the upstream would take the request for a whole
    // one.
    let current = head.version == Version::HTTP_11;
    let reusable = wholly_sent && current && framing == Framing::Clear;
    let stream_idle = snapshot.upstream(upstream).timeouts.stream_idle;
    Ok(Forwarded { head, incoming, lease, reusable, switch, stream_idle })
}

/// Why there is no answer. One that broke off is logged: what was sent may have been carried out.
fn unanswered(exchange: &Exchange, upstream: UpstreamId, error: &SendError) -> BadGateway {
    let SendError::BrokeOff(error) = error else { return BadGateway::Unreachable };
    let gateway = exchange.gateway();
    gateway.broke_off.log(gateway.clock.mono(), || {
        let upstream = &exchange.snapshot().upstream(upstream).name;
        format!("upstream {upstream} broke off before it answered {}: {error}", exchange.id())
    });
    BadGateway::BrokeOff
}

/// An answer that is ready to be passed on.
#[derive(Debug)]
pub(super) struct Forwarded {
    head: http::response::Parts,
    incoming: Incoming,
    lease: Lease<RequestBody>,
    reusable: bool,
    /// The upstream's side of a tunnel, once the client has this answer.
    switch: Option<OnUpgrade>,
    stream_idle: Duration,
}

impl Forwarded {
    /// The answer as the client gets it, streaming, and the tunnel that it may begin.
    pub(super) fn into_response(self, mut exchange: Exchange) -> (Response<ResponseBody>, Option<Tunnel>) {
        let Self { mut head, incoming, lease, reusable, switch, stream_idle } = self;
        head.version = Version::HTTP_11;
        // A reason phrase of the upstream's own travels as an extension, as does what belongs to its
        // connection.
        head.extensions.clear();
        if matches!(head.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED) {
            // There is no body; a length of one is forbidden beside a 204, and only confuses beside a 304.
            head.headers.remove(CONTENT_LENGTH);
        }
        exchange.note_forwarded(head.status);
        if let Some(upstream) = switch {
            tunnel::upgrade(&mut head.headers);
            let tunnel = Tunnel { upstream, lease, idle: stream_idle, exchange };
            return (Response::from_parts(head, ResponseBody::none()), Some(tunnel));
        }
        let body = ResponseBody::upstream(incoming, stream_idle, lease, reusable, exchange);
        (Response::from_parts(head, body), None)
    }
}

fn build(
    exchange: &Exchange,
    request: CanonicalRequest<Incoming>,
    permit: &Permit<'_>,
) -> Result<(Request<RequestBody>, Option<Rc<Upload>>), Rejection> {
    let snapshot = exchange.snapshot();
    let limit = permit.route().body_limit.unwrap_or(snapshot.settings().limits.body);
    let Parts { method, target, host, mut headers, body } = request.into_parts();
    if body.size_hint().lower() > limit {
        return Err(Rejection::BodyTooLarge);
    }
    snapshot.rules().forward(&mut headers, exchange.peer(), &host, exchange.id_value(), permit.identity());
    if !permit.route().forward_authorization {
        headers.remove(AUTHORIZATION);
    }
    let (body, upload) = RequestBody::new(body, limit, snapshot.settings().body_idle_timeout);
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
    Ok((request, upload))
}

/// Waits for the answer for `timeout` after the last part of the request was taken; `None` when it runs out.
async fn within(
    timeout: Duration,
    upload: Option<&Upload>,
    sending: impl Future<Output = Result<Answer, SendError>>,
) -> Option<Result<Answer, SendError>> {
    let mut sending = pin!(sending);
    let mut deadline = pin!(sleep(timeout));
    loop {
        tokio::select! {
            biased;
            answered = &mut sending => return Some(answered),
            () = &mut deadline => {
                let until = upload.map(|upload| upload.progress() + timeout).filter(|until| *until > Instant::now());
                deadline.as_mut().reset(until?);
            }
        }
    }
}
