//! The health protocol of gRPC: one call asks a server, or one of its services, whether it serves.
//!
//! `grpc.health.v1.Health/Check` takes a message with one text, the name of the service (field 1), and gives one with one number
//! (field 1): 1 is SERVING. A message has 5 bytes before it, that it is not compressed and its length (`doc/health-checking.md` and
//! `doc/PROTOCOL-HTTP2.md` of gRPC).

use std::future::poll_fn;
use std::pin::Pin;

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, HOST, TE};
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode, Uri};
use http_body::Body;

use super::connection::Received;
use super::request_body::RequestBody;

const PATH: &str = "/grpc.health.v1.Health/Check";
/// The longest name of a service, in bytes: its length is one byte of the message.
pub(super) const LONGEST: usize = 127;
/// More than an answer has, in bytes.
const ANSWER: usize = 1 << 10;
/// What comes before a message: whether it is compressed, and its length.
const PREFIX: usize = 5;
/// Field 1, a number.
const STATUS: u8 = 0x08;
/// Field 1, a text.
const SERVICE: u8 = 0x0a;

/// The call about this service; an empty name is the server's as a whole.
pub(super) fn request(service: &str, host: &HeaderValue) -> Request<RequestBody> {
    let mut request = Request::new(RequestBody::own(message(service)));
    *request.method_mut() = Method::POST;
    *request.uri_mut() = Uri::from_static(PATH);
    let headers = request.headers_mut();
    headers.insert(HOST, host.clone());
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    headers.insert(TE, HeaderValue::from_static("trailers"));
    request
}

fn message(service: &str) -> Bytes {
    let length = u8::try_from(service.len()).unwrap_or_default();
    let mut message = BytesMut::with_capacity(PREFIX + 2 + service.len());
    message.put_u8(0);
    if service.is_empty() {
        message.put_u32(0);
    } else {
        message.put_u32(u32::from(length) + 2);
        message.put_slice(&[SERVICE, length]);
        message.put_slice(service.as_bytes());
    }
    message.freeze()
}

/// Whether the server serves.
///
/// # Errors
/// What it says instead.
pub(super) async fn judge(received: Received) -> Result<(), String> {
    let Received { head, mut incoming, .. } = received;
    if head.status != StatusCode::OK {
        return Err(format!("{PATH} was answered with {}", head.status.as_u16()));
    }
    let (mut answer, mut trailers) = (Vec::new(), None);
    while let Some(frame) = poll_fn(|cx| Pin::new(&mut incoming).poll_frame(cx)).await {
        let frame = frame.map_err(|flaw| format!("{PATH}: the answer broke off: {flaw}"))?;
        match frame.into_data() {
            Ok(data) if answer.len() + data.len() <= ANSWER => answer.extend_from_slice(&data),
            Ok(_) => return Err(format!("{PATH} was answered with more than a health status")),
            Err(frame) => trailers = frame.into_trailers().ok(),
        }
    }
    // A call that failed has its status in the head, which is then the end.
    let status = trailers.as_ref().and_then(status).or_else(|| status(&head.headers));
    match (status, answer.get(PREFIX..)) {
        (Some("0"), Some([STATUS, 1, ..])) => Ok(()),
        (Some("0"), Some([STATUS, 2, ..])) => Err(format!("{PATH} says NOT_SERVING")),
        (Some("0"), Some([STATUS, 3, ..])) => Err(format!("{PATH} does not know this service")),
        (Some("0"), _) => Err(format!("{PATH} says nothing of whether it serves")),
        (Some("5"), _) => Err(format!("{PATH} does not know this service (grpc-status 5)")),
        (Some("12"), _) => Err(format!("the server has no {PATH} (grpc-status 12)")),
        (Some(other), _) if other.len() <= 2 && other.bytes().all(|byte| byte.is_ascii_digit()) => {
            Err(format!("{PATH} was answered with grpc-status {other}"))
        }
        _ => Err(format!("{PATH} was not answered as gRPC answers")),
    }
}

fn status(headers: &HeaderMap) -> Option<&str> {
    headers.get("grpc-status")?.to_str().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_names_its_service_or_none() {
        assert_eq!(message("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(message("a.B")[..], *b"\0\0\0\0\x05\x0a\x03a.B");
        assert_eq!(message(&"x".repeat(LONGEST)).len(), PREFIX + 2 + LONGEST);
    }
}
