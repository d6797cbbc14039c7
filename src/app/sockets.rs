//! The sockets of a gateway: those that a service manager passes on, and those that it binds itself.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use ipnet::IpNet;
use thiserror::Error;
use tokio::sync::watch;

use super::Addresses;
use super::inherited::{ADMIN, ADMIN_SOCKET, InheritError, Inherited, OPS, SERVER};
use super::take_over::Passed;
use crate::config::Config;
use crate::downstream::listener::Listener;
use crate::operators::{admin, ops};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::network::CannotListen;

/// Why a gateway cannot listen.
#[derive(Debug, Error)]
pub enum SocketError {
    #[error(transparent)]
    Listen(#[from] CannotListen),
    #[error(transparent)]
    Admin(#[from] admin::BindError),
    #[error(transparent)]
    Inherited(#[from] InheritError),
}

/// The open sockets.
pub(super) struct Sockets {
    pub(super) public: Listener,
    /// Where a reload puts the networks whose proxies the public socket trusts.
    pub(super) trusted_proxies: watch::Sender<Vec<IpNet>>,
    pub(super) admin_socket: Option<admin::Server>,
    pub(super) admin_remote: Option<admin::Remote>,
    pub(super) ops: Option<ops::Server>,
}

impl Sockets {
    /// Takes those that are there, and binds the others. Must be called inside the control runtime.
    pub(super) fn open(config: &Config, mut there: Inherited, clock: &Clock) -> Result<Self, SocketError> {
        let (trusted_proxies, trusted) = watch::channel(config.gateway.headers.trusted_proxies.clone());
        let settings = &config.admin;
        let public = there.tcp(SERVER, config.listener.listen)?;
        let ops = config.ops.listen.map(|listen| there.tcp(OPS, listen)).transpose()?.flatten();
        let remote = settings.remote.as_ref().map(|remote| there.tcp(ADMIN, remote.listen));
        let remote = remote.transpose()?.flatten();
        let admin =
            settings.socket.as_ref().map(|path| there.unix(ADMIN_SOCKET, path)).transpose()?.flatten();
        // Before anything is bound.
        there.all_taken()?;
        Ok(Self {
            public: Listener::open(&config.listener, public, trusted, clock.clone())?,
            trusted_proxies,
            admin_socket: admin::Server::open(settings, admin)?,
            admin_remote: admin::Remote::open(settings, remote.map(|(socket, _)| socket), clock.clone())?,
            ops: ops::Server::open(&config.ops, ops.map(|(socket, _)| socket))?,
        })
    }

    /// Duplicates of all of them, for a process that takes over.
    pub(super) fn duplicates(&self) -> io::Result<Vec<(Passed, OwnedFd)>> {
        let public = (SERVER, self.public.is_kept(), self.public.as_fd());
        let others = [
            self.ops.as_ref().map(|ops| (OPS, false, ops.as_fd())),
            self.admin_remote.as_ref().map(|remote| (ADMIN, false, remote.as_fd())),
            self.admin_socket.as_ref().map(|socket| (ADMIN_SOCKET, socket.is_kept(), socket.as_fd())),
        ];
        let all = std::iter::once(public).chain(others.into_iter().flatten());
        all.map(|(role, is_kept, socket)| {
            Ok((Passed { name: role.name.to_owned(), is_kept }, socket.try_clone_to_owned()?))
        })
        .collect()
    }

    pub(super) fn addresses(&self) -> Addresses {
        Addresses {
            public: self.public.address(),
            ops: self.ops.as_ref().map(ops::Server::address),
            admin: self.admin_remote.as_ref().map(admin::Remote::address),
        }
    }
}
