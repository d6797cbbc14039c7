//! The client of the operator's API, for the command line.

use std::future::pending;
use std::io;
use std::path::Path;
use std::pin::pin;
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderValue, Method, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

use super::order::Order;
use super::reply::{Reply, Secret};

/// The longest time without a sign of life from a gateway.
const SILENCE: Duration = Duration::from_secs(5);
/// As much longer for each MiB of a command, such as a batch of an import: the gateway reads it first.
const SILENCE_PER_MIB: Duration = Duration::from_secs(10);
/// The pause before connecting again to a gateway that has no room for one more connection.
const RETRY: Duration = Duration::from_millis(100);
/// After this time without an answer the gateway is asked for a sign of life.
const DOUBT: Duration = Duration::from_secs(2);

/// The way to a gateway.
#[derive(Clone, Copy, Debug)]
pub enum Way<'w> {
    Socket(&'w Path),
    Remote { authority: &'w Authority, token: &'w Secret },
}

#[derive(Debug, Error)]
pub enum ClientError {
    /// No gateway listens there.
    #[error("no gateway answers")]
    Absent,
    /// There was no connection for so long.
    #[error("no connection within {} s", .0.as_secs())]
    Unreachable(Duration),
    /// It takes connections, and answered nothing for so long. The command may have been carried out or not.
    #[error("no answer within {} s", .0.as_secs())]
    Silent(Duration),
    /// The socket belongs to another user.
    #[error("the admin socket belongs to another user")]
    Forbidden,
    #[error("the gateway cannot be reached: {0}")]
    Io(#[from] io::Error),
    #[error("the gateway broke off: {0}")]
    Http(#[from] hyper::Error),
    #[error("the gateway refuses this token: it is unknown there, or it has expired")]
    Unauthorized,
    #[error("the gateway does not allow the host {0}; add it to admin.allowed_hosts")]
    Misdirected(String),
    #[error(
        "the gateway and this command do not understand each other; check that they are of one version ({0})"
    )]
    Json(#[from] serde_json::Error),
    #[error("the token has characters that cannot be sent")]
    Token,
}

/// Sends a command to the gateway, which carries it out.
///
/// A command may take long, so a gateway that has not answered yet is asked for a sign of life over a connection of its
/// own, again and again.
///
/// # Errors
/// [`ClientError::Absent`] where no gateway runs; [`ClientError::Silent`] after 5 s without a sign of life. When
/// the gateway broke off, the command may have been carried out or not.
pub async fn call(way: Way<'_>, order: &Order) -> Result<Reply, ClientError> {
    let body = Bytes::from(serde_json::to_vec(order)?);
    let mib = u32::try_from(body.len() >> 20).unwrap_or(u32::MAX);
    let silence = SILENCE.saturating_add(SILENCE_PER_MIB.saturating_mul(mib));
    let mut answer = pin!(converse(way, Method::POST, "/v1/command", body));
    loop {
        tokio::select! {
            answer = &mut answer => return Ok(serde_json::from_slice(&answer?)?),
            () = sleep(DOUBT) => {}
        }
        // A gateway that is being stopped takes no new connections and still answers the old ones: no life sign yet.
        let life = async {
            match converse(way, Method::GET, "/v1/openapi.json", Bytes::new()).await {
                Ok(_) => {}
                Err(_) => pending().await,
            }
        };
        tokio::select! {
            answer = &mut answer => return Ok(serde_json::from_slice(&answer?)?),
            life = timeout(silence.saturating_sub(DOUBT), life) => life.map_err(|_| ClientError::Silent(silence))?,
        }
    }
}

/// Sends one request over a new connection, and reads the body of the answer.
async fn converse(
    way: Way<'_>,
    method: Method,
    target: &'static str,
    body: Bytes,
) -> Result<Bytes, ClientError> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = Uri::from_static(target);
    match way {
        Way::Socket(path) => {
            // A gateway that hangs takes no more connections at some time, and nothing waits in a queue then.
            let stream = connected(connect_patiently(path)).await.map_err(|error| match error {
                ClientError::Unreachable(waited) => ClientError::Silent(waited),
                error => error,
            })?;
            request.headers_mut().insert(header::HOST, HeaderValue::from_static("keygate"));
            send(stream, request).await
        }
        Way::Remote { authority, token } => {
            let port = authority.port_u16().unwrap_or(80);
            // The brackets of an IPv6 address belong to URLs only.
            let host = authority.host().trim_start_matches('[').trim_end_matches(']');
            let stream = connected(TcpStream::connect((host, port))).await?;
            let name = HeaderValue::from_str(authority.as_str()).map_err(|_| ClientError::Absent)?;
            request.headers_mut().insert(header::HOST, name);
            request.headers_mut().insert(header::AUTHORIZATION, bearer(token)?);
            send(stream, request).await.map_err(|error| match error {
                ClientError::Misdirected(_) => ClientError::Misdirected(authority.host().to_owned()),
                error => error,
            })
        }
    }
}

/// Connects to a socket once the queue of connections that wait to be accepted has room.
async fn connect_patiently(path: &Path) -> io::Result<UnixStream> {
    loop {
        match UnixStream::connect(path).await {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(RETRY).await,
            connected => return connected,
        }
    }
}

async fn connected<S>(connecting: impl Future<Output = io::Result<S>>) -> Result<S, ClientError> {
    let connected = timeout(SILENCE, connecting).await.map_err(|_| ClientError::Unreachable(SILENCE))?;
    connected.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::Absent,
        io::ErrorKind::PermissionDenied => ClientError::Forbidden,
        _ => ClientError::Io(error),
    })
}

fn bearer(token: &Secret) -> Result<HeaderValue, ClientError> {
    let text = zeroize::Zeroizing::new(format!("Bearer {}", token.expose()));
    let mut value = HeaderValue::from_str(&text).map_err(|_| ClientError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Bytes, ClientError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let response = sender.send_request(request).await?;
    let status = response.status();
    let answer = response.into_body().collect().await?.to_bytes();
    driver.abort();
    match status {
        StatusCode::UNAUTHORIZED => Err(ClientError::Unauthorized),
        StatusCode::MISDIRECTED_REQUEST => Err(ClientError::Misdirected(String::new())),
        _ => Ok(answer),
    }
}
