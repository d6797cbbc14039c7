//! TCP's side of the operator's API: named tokens, and hosts that it may be called by.
//!
//! Whoever has no valid token is told nothing: not which tokens there are, nor which commands.

use std::convert::Infallible;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::uri::Authority;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::server::{BindError, answer, failed, reply};
use super::token::{TokenName, Tokens};
use super::{Settings, TokenFileError, remote_operator};
use crate::lifecycle::Lifecycle;
use crate::telemetry::Throttle;
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::network::Server;

/// Where operators elsewhere reach the gateway.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteSettings {
    pub listen: SocketAddr,
    /// Read anew for every command, so that a token that is taken out of it is dead at once.
    pub tokens_file: PathBuf,
    /// What a client may call it by: a page that has its own name resolve to this address is none of them.
    pub allowed_hosts: Vec<Host>,
}

impl RemoteSettings {
    /// Whether the tokens can be read.
    ///
    /// # Errors
    /// What is wrong with their file.
    pub fn check(&self) -> Result<(), TokenFileError> {
        Tokens::read(&self.tokens_file).map(drop)
    }

    /// What this machine is called by itself.
    #[must_use]
    pub fn loopback_hosts() -> Vec<Host> {
        ["localhost", "127.0.0.1", "[::1]"].map(|name| Host(name.into())).to_vec()
    }
}

/// A name or an address as it stands in a Host field, without a port and in lower case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host(Box<str>);

impl Host {
    /// # Errors
    /// Anything with a port, a scheme or a path.
    pub fn parse(text: &str) -> Result<Self, InvalidHost> {
        let server = Server::parse(text).map_err(|_| InvalidHost)?;
        let authority: Authority = text.parse().map_err(|_| InvalidHost)?;
        if server.port.is_none() { Ok(Self::of(&authority)) } else { Err(InvalidHost) }
    }

    fn of(authority: &Authority) -> Self {
        Self(authority.host().to_ascii_lowercase().into())
    }
}

#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
#[error("a host is a name or an address without a port, as in \"localhost\" or \"[::1]\"")]
pub struct InvalidHost;

/// Operators at once. Further ones wait in the listen queue.
const CONNECTIONS: usize = 32;
/// Who sends nothing gives its place up after this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);

/// The bound socket.
#[derive(Debug)]
pub struct Remote {
    listener: TcpListener,
    address: SocketAddr,
    gate: Gate,
}

impl Remote {
    /// Binds, where the settings ask for it. Runs inside the control runtime.
    ///
    /// # Errors
    /// When the address is taken, or the tokens cannot be read.
    pub fn bind(settings: &Settings, clock: Clock) -> Result<Option<Self>, BindError> {
        let Some(settings) = settings.remote.clone() else { return Ok(None) };
        settings.check()?;
        let bind = || {
            let listener = std::net::TcpListener::bind(settings.listen)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((TcpListener::from_std(listener)?, address))
        };
        let (listener, address) =
            bind().map_err(|cause| BindError::Address { listen: settings.listen, cause })?;
        let gate = Gate { settings, clock, refusals: Mutex::default() };
        Ok(Some(Self { listener, address, gate }))
    }

    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves, for as long as it is polled.
    pub async fn run(self, lifecycle: Arc<Lifecycle>) {
        let (places, gate) = (Arc::new(Semaphore::new(CONNECTIONS)), Arc::new(self.gate));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let Ok((stream, peer)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let (lifecycle, gate) = (Arc::clone(&lifecycle), Arc::clone(&gate));
            let service = service_fn(move |request| {
                let (lifecycle, gate) = (Arc::clone(&lifecycle), Arc::clone(&gate));
                async move { Ok::<_, Infallible>(gate.answer(lifecycle, peer.ip().to_canonical(), request).await) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move {
                // An operator who hangs up has seen why.
                drop(connection.await);
                drop(place);
            });
        }
    }
}

/// Who is let in.
#[derive(Debug)]
struct Gate {
    settings: RemoteSettings,
    clock: Clock,
    refusals: Mutex<Throttle>,
}

impl Gate {
    async fn answer(
        &self,
        lifecycle: Arc<Lifecycle>,
        address: IpAddr,
        request: Request<Incoming>,
    ) -> Response<Full<Bytes>> {
        if !self.is_called_by(&request) {
            return reply(
                StatusCode::MISDIRECTED_REQUEST,
                &failed("this host is not in admin.allowed_hosts"),
            );
        }
        match self.find_token(&request).await {
            Some(token) => answer(lifecycle, request, move |_| remote_operator(&token, address)).await,
            None => {
                let line = || format!("the admin API refused a command from {address}: no valid token");
                self.say(line);
                let mut response = reply(StatusCode::UNAUTHORIZED, &failed("no valid token"));
                let scheme = HeaderValue::from_static("Bearer");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
                response
            }
        }
    }

    fn is_called_by(&self, request: &Request<Incoming>) -> bool {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let host = host.to_str().ok().and_then(|host| host.parse().ok());
        host.is_some_and(|authority: Authority| self.settings.allowed_hosts.contains(&Host::of(&authority)))
    }

    async fn find_token(&self, request: &Request<Incoming>) -> Option<TokenName> {
        let presented =
            request.headers().get(header::AUTHORIZATION)?.as_bytes().strip_prefix(b"Bearer ")?.to_vec();
        let (presented, path) = (zeroize::Zeroizing::new(presented), self.settings.tokens_file.clone());
        let now = self.clock.now().wall;
        let found = tokio::task::spawn_blocking(move || find(&path, &presented, now)).await;
        found.ok()?.unwrap_or_else(|error| {
            self.say(|| error.to_string());
            None
        })
    }

    /// Strangers must not fill the log.
    fn say(&self, line: impl FnOnce() -> String) {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner).log(self.clock.mono(), line);
    }
}

fn find(path: &Path, presented: &[u8], now: UnixMillis) -> Result<Option<TokenName>, TokenFileError> {
    Ok(Tokens::read(path)?.find(presented, now).cloned())
}
