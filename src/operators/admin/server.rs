//! The socket's side of the operator's API.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::UnixListener;

use super::{Order, Reply, Settings, TokenFileError, execute, local_operator};
use crate::api::DESCRIPTION;
use crate::lifecycle::{Lifecycle, Origin};
use crate::telemetry;

/// No command is nearly as long; the longest move a batch of keys in.
const COMMAND_LEN: usize = 16 << 20;
/// How long a command may take to arrive.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);

#[derive(Debug, Error)]
pub enum BindError {
    #[error("another gateway answers on the admin socket {0}; give each its own admin.socket")]
    InUse(PathBuf),
    #[error("{0} is there and is no socket; set admin.socket to another path")]
    NoSocket(PathBuf),
    #[error(
        "cannot listen on {listen}: {cause}; set admin.listen (KEYGATE__ADMIN__LISTEN) to an address that is free"
    )]
    Address { listen: SocketAddr, cause: io::Error },
    #[error(transparent)]
    Tokens(#[from] TokenFileError),
    #[error(
        "cannot make the admin socket {path}: {cause}; set admin.socket to a path in a folder that keygate may write to"
    )]
    Io { path: PathBuf, cause: io::Error },
}

/// The bound socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct Server {
    listener: UnixListener,
    path: PathBuf,
}

impl Server {
    /// Binds, where the settings ask for a socket. Runs inside the control runtime.
    ///
    /// # Errors
    /// [`BindError`] says what stands in the way. The socket of a process that is gone is replaced.
    pub fn bind(settings: &Settings) -> Result<Option<Self>, BindError> {
        let Some(path) = settings.socket.clone() else { return Ok(None) };
        clear(&path)?;
        let failed = |cause| BindError::Io { path: path.clone(), cause };
        // Bound under a name nobody knows yet, so that at no moment anybody else can connect.
        let fresh = path.with_extension(format!("{}.new", std::process::id()));
        let listener = UnixListener::bind(&fresh).map_err(failed)?;
        let published = std::fs::set_permissions(&fresh, std::fs::Permissions::from_mode(0o600))
            .and_then(|()| std::fs::rename(&fresh, &path));
        if let Err(cause) = published {
            let _ = std::fs::remove_file(&fresh);
            return Err(failed(cause));
        }
        Ok(Some(Self { listener, path }))
    }

    /// Serves, for as long as it is polled.
    pub async fn run(self, lifecycle: Arc<Lifecycle>) {
        loop {
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            // A change must have an author. Of a socket that is connected the system always knows it.
            let Ok(peer) = stream.peer_cred() else { continue };
            let lifecycle = Arc::clone(&lifecycle);
            let service = service_fn(move |request| {
                let lifecycle = Arc::clone(&lifecycle);
                let origin = move |claimed: &str| local_operator(claimed, peer.uid());
                async move { Ok::<_, Infallible>(answer(lifecycle, request, origin).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .serve_connection(TokioIo::new(stream), service);
            // An operator who hangs up has seen why.
            tokio::spawn(async move { drop(connection.await) });
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// Makes way for a new socket, if what is there is the socket of a process that is gone.
fn clear(path: &Path) -> Result<(), BindError> {
    let failed = |cause| BindError::Io { path: path.to_owned(), cause };
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => Err(BindError::NoSocket(path.to_owned())),
        Ok(_) if StdUnixStream::connect(path).is_ok() => Err(BindError::InUse(path.to_owned())),
        Ok(_) => std::fs::remove_file(path).map_err(failed),
    }
}

/// Carries out the command of a request that was let in; `by` says for whom, given the name that it claims.
pub(super) async fn answer(
    lifecycle: Arc<Lifecycle>,
    request: Request<Incoming>,
    origin: impl FnOnce(&str) -> Origin,
) -> Response<Full<Bytes>> {
    if request.method() == Method::GET && request.uri() == "/v1/openapi.json" {
        return json(StatusCode::OK, Bytes::from_static(DESCRIPTION.as_bytes()));
    }
    if request.method() != Method::POST || request.uri() != "/v1/command" {
        return reply(StatusCode::NOT_FOUND, &failed("POST a command to /v1/command"));
    }
    let body = Limited::new(request.into_body(), COMMAND_LEN).collect();
    let Ok(Ok(body)) = tokio::time::timeout(COMMAND_TIMEOUT, body).await else {
        return reply(StatusCode::BAD_REQUEST, &failed("the command is incomplete or too long"));
    };
    let Order { operator, command } = match serde_json::from_slice(&body.to_bytes()) {
        Ok(order) => order,
        Err(error) => return reply(StatusCode::BAD_REQUEST, &failed(&format!("not a command: {error}"))),
    };
    let origin = origin(&operator);
    // A task of its own: a change goes on to its end though the operator hangs up.
    match tokio::spawn(async move { execute(&lifecycle, &origin, command).await }).await {
        Ok(answer) => reply(StatusCode::OK, &answer),
        Err(error) => {
            telemetry::log(&format!("an operator's command failed: {error}"));
            reply(StatusCode::INTERNAL_SERVER_ERROR, &failed("internal error, see the gateway's log"))
        }
    }
}

pub(super) fn failed(message: &str) -> Reply {
    Reply::Failed { message: message.to_owned() }
}

pub(super) fn reply(status: StatusCode, reply: &Reply) -> Response<Full<Bytes>> {
    json(status, serde_json::to_vec(reply).unwrap_or_default().into())
}

fn json(status: StatusCode, body: Bytes) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(body));
    *response.status_mut() = status;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}
