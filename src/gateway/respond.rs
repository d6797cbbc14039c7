//! Answers of keygate's own. The only place where a refusal becomes bytes.

use std::time::Duration;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONNECTION, CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE};
use http::{HeaderMap, HeaderName, HeaderValue, Response};
use serde::Serialize;

use super::exchange::Exchange;
use super::grpc;
use super::response_body::ResponseBody;
use crate::api::Answer;
use crate::vocabulary::grpc::GrpcStatus;
use crate::vocabulary::id::RequestId;
use crate::vocabulary::rejection::{FieldError, Rejection};
use crate::vocabulary::text::to_json;

/// Tells how many gateways have confirmed a change.
const PROPAGATION: HeaderName = HeaderName::from_static("keygate-propagation");

#[derive(Serialize)]
struct Envelope<'e> {
    error: Error<'e>,
}

#[derive(Serialize)]
struct Error<'e> {
    r#type: &'static str,
    message: &'e str,
    request_id: RequestId,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<&'e [FieldError]>,
}

/// The answer to a refused request: the envelope and its headers, or for a gRPC caller a head with the same content.
pub(super) fn refuse(rejection: &Rejection, mut exchange: Box<Exchange>) -> Response<ResponseBody> {
    exchange.note_refusal(rejection);
    // The low bits of a request id are random.
    let after = rejection.retry_after(exchange.id().to_bytes()[15]);
    let mut response = Response::new(());
    let body = match exchange.told() {
        Some(told) => {
            tell_grpc(response.headers_mut(), rejection, told, after);
            Bytes::new()
        }
        None => {
            *response.status_mut() = rejection.status().code();
            envelope(rejection, exchange.id())
        }
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, exchange.dialect().media_type());
    // A shared cache must not give one caller's refusal to the next.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    exchange.snapshot().rules().name_answer(headers, exchange.id_value());
    if let Some(challenge) = rejection.challenge() {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
    }
    if rejection.ends_connection() {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    if let Some(after) = after {
        headers.insert(RETRY_AFTER, HeaderValue::from(after.as_millis().div_ceil(1000) as u64));
    }
    response.map(|()| ResponseBody::own(body, exchange))
}

/// The words of the envelope's `type` and `message`, where a gRPC client reads them.
fn tell_grpc(headers: &mut HeaderMap, rejection: &Rejection, told: GrpcStatus, after: Option<Duration>) {
    let message = format!("{}: {}", rejection.error_type().as_str(), rejection.message());
    grpc::tell(headers, told, &message, after);
}

/// The answer of an operation that keygate serves itself.
pub(super) fn answer(answer: Answer, mut exchange: Box<Exchange>) -> Response<ResponseBody> {
    exchange.note_own(answer.status);
    let mut response = Response::new(());
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    if !answer.body.is_empty() {
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    }
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // Numbers and plain text, which a field value may have.
    if let Some(Ok(told)) = answer.propagation.map(|told| HeaderValue::try_from(told.to_string())) {
        headers.insert(PROPAGATION, told);
    }
    exchange.snapshot().rules().name_answer(headers, exchange.id_value());
    response.map(|()| ResponseBody::own(answer.body, exchange))
}

fn envelope(rejection: &Rejection, request_id: RequestId) -> Bytes {
    let message = rejection.message();
    let details = rejection.details();
    let error = Error { r#type: rejection.error_type().as_str(), message: &message, request_id, details };
    // It has only strings, so it cannot fail to serialise.
    to_json(&Envelope { error }).unwrap_or_default().into()
}
