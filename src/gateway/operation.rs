//! Requests for keygate's own operations: the body is read here, then the API carries the operation out on the control
//! runtime.

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http_body::Body;
use http_body_util::BodyExt;
use tokio::time::timeout;

use super::authenticate::presented_key;
use super::authorize::Permit;
use super::exchange::Exchange;
use crate::api::{self, Answer, BODY_LEN, Call, Place};
use crate::policy::request::{CanonicalRequest, Parts};
use crate::policy::target::Operation;
use crate::upstream::client_body::ClientBody;
use crate::upstream::request_body::RequestBody;
use crate::vocabulary::rejection::{FieldError, NotFound, Rejection};

/// How long the body of an operation may take in all: while it comes, it holds a place that others may want.
const BODY_TIME: Duration = Duration::from_secs(30);

/// Carries out the operation of a permitted request.
///
/// # Errors
/// 429 where too many are under way, 400 and 413 for an invalid body, and the refusals of the operation.
pub(super) async fn serve(
    exchange: &mut Exchange,
    request: CanonicalRequest<ClientBody>,
    permit: &Permit<'_>,
    operation: Operation,
) -> Result<Answer, Rejection> {
    let gateway = Rc::clone(exchange.gateway());
    let api = gateway.api.as_ref().ok_or(Rejection::NotFound(NotFound::NotServedHere))?;
    let id = permit.route().parameter(request.path()).map(str::to_owned);
    let address = exchange.client();
    let caller = permit.calling_key();
    let Parts { target, headers, version, body, .. } = request.into_parts();
    let place = api.admit(operation, caller.as_ref(), address, body.size_hint().exact()).await?;
    let mut call = Call::new(operation, place, address, exchange.id(), exchange.started().mono);
    if operation.takes_body() {
        let limit = permit.route().body_limit.unwrap_or(BODY_LEN).min(BODY_LEN);
        let idle = exchange.snapshot().settings().body_idle_timeout;
        let body = RequestBody::new(body, version, limit, idle);
        exchange.note_upload(body.upload());
        call.body = gather(body, limit, &mut call.place).await?;
    }
    call.place.begin().await;
    call.idempotency = match idempotency_key(&headers)? {
        Some(name) if caller.is_some() => {
            let presented = presented_key(exchange, &headers)?;
            api::idempotency(operation, &presented, name, target.as_str(), &call.body)?
        }
        _ => None,
    };
    call.query = target.query().map(str::to_owned);
    (call.id, call.caller) = (id, caller);
    api.serve(call).await
}

async fn gather(body: RequestBody, limit: u64, place: &mut Place) -> Result<Bytes, Rejection> {
    if body.size_hint().lower() > limit {
        return Err(Rejection::BodyTooLarge);
    }
    let mut body = pin!(body);
    let mut gathered = BytesMut::new();
    if !read_on(body.as_mut(), &mut gathered, place.length()).await? {
        // The body does not come while this waits.
        place.lengthen().await;
        read_on(body, &mut gathered, u64::MAX).await?;
    }
    Ok(gathered.freeze())
}

/// Reads until the body has ended, or more than `length` bytes are there; returns whether it has ended.
async fn read_on(
    mut body: Pin<&mut RequestBody>,
    gathered: &mut BytesMut,
    length: u64,
) -> Result<bool, Rejection> {
    let reading = async {
        while gathered.len() as u64 <= length {
            let Some(frame) = body.frame().await else { return Ok(true) };
            if let Ok(data) = frame?.into_data() {
                gathered.extend_from_slice(&data);
            }
        }
        Ok(false)
    };
    timeout(BODY_TIME, reading).await.unwrap_or(Err(Rejection::BodyStalled))
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&[u8]>, Rejection> {
    let mut keys = headers.get_all("idempotency-key").iter();
    match (keys.next(), keys.next()) {
        (None, _) => Ok(None),
        (Some(key), None) => Ok(Some(key.as_bytes())),
        (Some(_), Some(_)) => {
            Err(Rejection::Invalid([FieldError::new("Idempotency-Key", "is given twice")].into()))
        }
    }
}
