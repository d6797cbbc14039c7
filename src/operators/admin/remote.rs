//! The operator's API over TCP: named tokens, and a list of hosts.
//!
//! A client without a valid token learns nothing: neither which tokens there are, nor which commands.

use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::uri::Authority;
use http::{HeaderValue, StatusCode, header};
use thiserror::Error;
use tokio::net::TcpListener;

use super::answer::{answer, failed, reply};
use super::order::Command;
use super::role::Lacking;
use super::token::{Token, TokenFileError, Tokens};
use super::{BindError, Desk, REMOTE_LIMITS, Settings, remote_operator};
use crate::lifecycle::Origin;
use crate::operators::small_server::{Answer, Request, Running, SmallServer, open_tcp};
use crate::telemetry::Event;
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::network::{CannotListen, Server};

/// How the API is served over TCP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RemoteSettings {
    pub listen: SocketAddr,
    /// Read again for every command, so that a token that is removed from it is dead at once.
    pub tokens_file: PathBuf,
    /// The hosts that a request may name. A web page whose own name resolves to this address is not among them.
    pub allowed_hosts: Vec<Host>,
}

impl RemoteSettings {
    /// Reads the tokens, to see whether they can be read.
    ///
    /// # Errors
    /// A mistake in the tokens file.
    pub fn check(&self) -> Result<(), TokenFileError> {
        Tokens::read(&self.tokens_file).map(drop)
    }

    /// The names that this machine has for itself.
    #[must_use]
    pub fn loopback_hosts() -> Vec<Host> {
        ["localhost", "127.0.0.1", "[::1]"].map(|name| Host(name.into())).to_vec()
    }
}

/// A name or an address as in a Host field, in lower case and without a port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host(Box<str>);

impl Host {
    /// # Errors
    /// When it has a port, a scheme or a path.
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

/// The bound socket.
#[derive(Debug)]
pub struct Remote {
    listener: TcpListener,
    address: SocketAddr,
    gate: Gate,
}

impl Remote {
    /// Takes the socket that is there, or binds one; `None` where the settings turn it off. Must be called inside the
    /// control runtime.
    ///
    /// # Errors
    /// When the address is in use or is not an address of this machine, or the tokens cannot be read.
    pub fn open(
        settings: &Settings,
        there: Option<StdListener>,
        clock: Clock,
    ) -> Result<Option<Self>, BindError> {
        let Some(settings) = settings.remote.clone() else { return Ok(None) };
        settings.check()?;
        let failed = |cause| CannotListen { listen: settings.listen, cause, key: "admin.listen" };
        let (listener, address) = open_tcp(settings.listen, there).map_err(failed)?;
        let gate = Gate { settings, clock };
        Ok(Some(Self { listener, address, gate }))
    }

    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts to serve. Must be called inside the control runtime.
    pub fn start(self, desk: Desk) -> Running {
        let clock = self.gate.clock.clone();
        let gate = Arc::new(self.gate);
        let server =
            SmallServer { socket: self.listener, name: "the admin API", limits: REMOTE_LIMITS, clock };
        server.start(move |address, request| {
            let (desk, gate) = (desk.clone(), Arc::clone(&gate));
            async move { gate.answer(desk, address, request).await }
        })
    }
}

impl AsFd for Remote {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

/// Admits requests that name an allowed host and have a valid token.
#[derive(Debug)]
struct Gate {
    settings: RemoteSettings,
    clock: Clock,
}

impl Gate {
    async fn answer(&self, desk: Desk, address: IpAddr, request: Request) -> Answer {
        if !self.is_called_by(&request) {
            return reply(
                StatusCode::MISDIRECTED_REQUEST,
                &failed("this host is not in admin.allowed_hosts"),
            );
        }
        match self.find_token(&request).await {
            Some(token) => answer(desk, request, |_, command| self.admit(&token, address, command)).await,
            None => {
                let line = || format!("the admin API refused a command from {address}: no valid token");
                Event::AdminStranger.log(self.clock.mono(), line);
                let mut response = reply(StatusCode::UNAUTHORIZED, &failed("no valid token"));
                let scheme = HeaderValue::from_static("Bearer");
                response.headers_mut().insert(header::WWW_AUTHENTICATE, scheme);
                response
            }
        }
    }

    /// The origin of a command, if its token is good for it.
    fn admit(&self, token: &Token, address: IpAddr, command: &Command) -> Result<Origin, Lacking> {
        token.grant.check(command).inspect_err(|lacking| {
            let name = token.name.as_str();
            let line = || format!("the admin API refused a command of {name} from {address}: {lacking}");
            Event::AdminLacking.log(self.clock.mono(), line);
        })?;
        Ok(remote_operator(token, address))
    }

    fn is_called_by(&self, request: &Request) -> bool {
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let (Some(host), None) = (hosts.next(), hosts.next()) else { return false };
        let host = host.to_str().ok().and_then(|host| host.parse().ok());
        host.is_some_and(|authority: Authority| self.settings.allowed_hosts.contains(&Host::of(&authority)))
    }

    async fn find_token(&self, request: &Request) -> Option<Token> {
        let presented =
            request.headers().get(header::AUTHORIZATION)?.as_bytes().strip_prefix(b"Bearer ")?.to_vec();
        let (presented, path) = (zeroize::Zeroizing::new(presented), self.settings.tokens_file.clone());
        let now = self.clock.now().wall;
        let found = tokio::task::spawn_blocking(move || find(&path, &presented, now)).await;
        found.ok()?.unwrap_or_else(|error| {
            Event::AdminTokens.log(self.clock.mono(), || error.to_string());
            None
        })
    }
}

fn find(path: &Path, presented: &[u8], now: UnixMillis) -> Result<Option<Token>, TokenFileError> {
    Ok(Tokens::read(path)?.find(presented, now).cloned())
}
