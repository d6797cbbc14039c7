//! The answer to a request of an operator, the same on both ways.

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt, Full};
use tokio::time::timeout;

use super::execute::execute;
use super::order::{Command, Order, UpstreamCommand};
use super::reply::Reply;
use super::role::Lacking;
use super::{COMMAND_TIMEOUT, Desk};
use crate::api::DESCRIPTION;
use crate::lifecycle::Origin;
use crate::operators::small_server::{Answer, Request};
use crate::telemetry::Event;

/// Answers an admitted request: carries its command out. `origin` makes the origin of the command from the name that
/// the operator claims, or says what the operator lacks for it.
pub(super) async fn answer(
    desk: Desk,
    request: Request,
    origin: impl FnOnce(&str, &Command) -> Result<Origin, Lacking>,
) -> Answer {
    if request.method() == Method::GET && request.uri() == "/v1/openapi.json" {
        return json(StatusCode::OK, Bytes::from_static(DESCRIPTION.as_bytes()));
    }
    if request.method() != Method::POST || request.uri() != "/v1/command" {
        return reply(StatusCode::NOT_FOUND, &failed("POST a command to /v1/command"));
    }
    let body = request.into_body().collect();
    let Ok(Ok(body)) = timeout(COMMAND_TIMEOUT, body).await else {
        return reply(StatusCode::BAD_REQUEST, &failed("the command is incomplete or too long"));
    };
    let Order { operator, reason, command } = match serde_json::from_slice(&body.to_bytes()) {
        Ok(order) => order,
        Err(error) => return reply(StatusCode::BAD_REQUEST, &failed(&format!("not a command: {error}"))),
    };
    let origin = match origin(&operator, &command) {
        Ok(origin) => origin,
        Err(lacking) => return reply(StatusCode::FORBIDDEN, &failed(&lacking.to_string())),
    };
    let origin = match origin.because(reason.as_deref()) {
        Ok(origin) => origin,
        Err(mistake) => return reply(StatusCode::OK, &failed(&mistake.to_string())),
    };
    if let Command::Upstreams(UpstreamCommand::Status) = command {
        return reply(StatusCode::OK, &Reply::Upstreams { servers: (desk.servers)() });
    }
    let lifecycle = desk.lifecycle;
    let clock = lifecycle.clock().clone();
    // A task of its own: a change goes on to its end although the operator hangs up.
    match tokio::spawn(async move { execute(&lifecycle, &origin, command).await }).await {
        Ok(answer) => reply(StatusCode::OK, &answer),
        Err(error) => {
            let line = || format!("an operator's command failed: {error}");
            Event::CommandFailed.log(clock.mono(), line);
            reply(StatusCode::INTERNAL_SERVER_ERROR, &failed("internal error, see the gateway's log"))
        }
    }
}

pub(super) fn failed(message: &str) -> Reply {
    Reply::Failed { message: message.to_owned() }
}

pub(super) fn reply(status: StatusCode, reply: &Reply) -> Answer {
    json(status, serde_json::to_vec(reply).unwrap_or_default().into())
}

fn json(status: StatusCode, body: Bytes) -> Answer {
    let mut answer = Answer::new(Full::new(body));
    *answer.status_mut() = status;
    let json = HeaderValue::from_static("application/json");
    answer.headers_mut().insert(header::CONTENT_TYPE, json);
    answer
}
