//! The client of the operator's API, for the command line.

use std::io;
use std::path::Path;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

use super::order::Order;
use super::reply::{Reply, Secret};

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
/// # Errors
/// [`ClientError::Absent`] where no gateway runs. When the gateway broke off, the command may have been carried out
/// or not.
pub async fn call(way: Way<'_>, order: &Order) -> Result<Reply, ClientError> {
    let body = Bytes::from(serde_json::to_vec(order)?);
    match way {
        Way::Socket(path) => {
            let stream = UnixStream::connect(path).await.map_err(connecting)?;
            let host = HeaderValue::from_static("keygate");
            send(stream, request(body, host)).await
        }
        Way::Remote { authority, token } => {
            let port = authority.port_u16().unwrap_or(80);
            // The brackets of an IPv6 address belong to URLs only.
            let host = authority.host().trim_start_matches('[').trim_end_matches(']');
            let stream = TcpStream::connect((host, port)).await.map_err(connecting)?;
            let name = HeaderValue::from_str(authority.as_str()).map_err(|_| ClientError::Absent)?;
            let mut request = request(body, name);
            request.headers_mut().insert(header::AUTHORIZATION, bearer(token)?);
            send(stream, request).await.map_err(|error| match error {
                ClientError::Misdirected(_) => ClientError::Misdirected(authority.host().to_owned()),
                error => error,
            })
        }
    }
}

fn connecting(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::Absent,
        _ => ClientError::Io(error),
    }
}

fn bearer(token: &Secret) -> Result<HeaderValue, ClientError> {
    let text = zeroize::Zeroizing::new(format!("Bearer {}", token.expose()));
    let mut value = HeaderValue::from_str(&text).map_err(|_| ClientError::Token)?;
    value.set_sensitive(true);
    Ok(value)
}

fn request(body: Bytes, host: HeaderValue) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = http::Method::POST;
    *request.uri_mut() = http::Uri::from_static("/v1/command");
    request.headers_mut().insert(header::HOST, host);
    request
}

async fn send<S>(stream: S, request: Request<Full<Bytes>>) -> Result<Reply, ClientError>
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
        _ => Ok(serde_json::from_slice(&answer)?),
    }
}
