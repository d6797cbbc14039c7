//! The command line's side of the operator's API.

use std::io;
use std::path::Path;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::net::UnixStream;

use super::{Order, Reply};

#[derive(Debug, Error)]
pub enum ClientError {
    /// No gateway listens there.
    #[error("no gateway answers")]
    Absent,
    #[error("cannot use the admin socket: {0}")]
    Io(#[from] io::Error),
    #[error("the gateway broke off: {0}")]
    Http(#[from] hyper::Error),
    #[error("the gateway and this command do not understand each other; are they the same version? ({0})")]
    Json(#[from] serde_json::Error),
}

/// Has the gateway behind `socket` carry a command out.
///
/// # Errors
/// [`ClientError::Absent`] where no gateway runs; anything else leaves open whether the command was carried
/// out.
pub async fn call(socket: &Path, order: &Order) -> Result<Reply, ClientError> {
    let stream = UnixStream::connect(socket).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => ClientError::Absent,
        _ => ClientError::Io(error),
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let driver = tokio::spawn(connection);
    let mut request = Request::post("/v1/command").body(Full::new(Bytes::from(serde_json::to_vec(order)?)));
    if let Ok(request) = &mut request {
        request.headers_mut().insert(header::HOST, http::HeaderValue::from_static("keygate"));
    }
    let request = request.map_err(io::Error::other)?;
    let answer = sender.send_request(request).await?.into_body().collect().await?.to_bytes();
    driver.abort();
    Ok(serde_json::from_slice(&answer)?)
}
