//! Sockets that a service manager has bound and passes on, as systemd does (systemd.socket(5), sd_listen_fds(3)), and those
//! of a gateway that hands over ([`take_over`](mod@super::take_over)).
//!
//! A socket of a service manager outlives the process: while there is none, connections wait in it and are not refused. Each must be the
//! address of one of the gateway's listeners. One that is not is an error: somebody expects to be served there.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use listenfd::ListenFd;
use rustix::net::sockopt::socket_acceptconn;
use thiserror::Error;

/// A listener of the gateway: the name that `FileDescriptorName=` gives its socket, and the key of its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Role {
    pub(super) name: &'static str,
    key: &'static str,
}

pub(super) const SERVER: Role = Role { name: "server", key: "server.listen" };
pub(super) const OPS: Role = Role { name: "ops", key: "ops.listen" };
pub(super) const ADMIN: Role = Role { name: "admin", key: "admin.listen" };
pub(super) const ADMIN_SOCKET: Role = Role { name: "admin-socket", key: "admin.socket" };
const ROLES: [Role; 4] = [SERVER, OPS, ADMIN, ADMIN_SOCKET];

/// Why the sockets cannot be used.
#[derive(Debug, Error)]
pub enum InheritError {
    #[error(
        "the service manager passes {0}, and nothing in the configuration listens there; make ListenStream= in the socket unit \
         the same as server.listen, ops.listen, admin.listen or admin.socket"
    )]
    Unmatched(String),
    #[error("the service manager passes {socket}, and {key} is {listen}; make them the same")]
    Elsewhere { socket: String, key: &'static str, listen: String },
    #[error(
        "file descriptor {number} of the service manager is no listening stream socket; Accept=no belongs in its unit"
    )]
    NoListener { number: usize },
    #[error("cannot use a socket of the service manager: {0}")]
    Io(#[from] io::Error),
}

/// The sockets that were passed on and that no listener has taken yet.
#[derive(Debug, Default)]
pub struct Inherited(Vec<Passed>);

#[derive(Debug)]
struct Passed {
    socket: Socket,
    name: Option<String>,
    /// Whether a service manager keeps it open.
    is_kept: bool,
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener),
}

/// The number of the first file descriptor that is passed on (`SD_LISTEN_FDS_START`).
const FIRST: usize = 3;

impl Inherited {
    /// Takes the sockets that the variables `LISTEN_FDS` and `LISTEN_PID` speak of, and removes these variables: no child may
    /// take them for its own. `names` is the content of `LISTEN_FDNAMES`. To be called once, before there are other threads.
    ///
    /// # Errors
    /// When something was passed that is no listening socket.
    pub fn from_environment(names: Option<&str>) -> Result<Self, InheritError> {
        let mut passed = ListenFd::from_env();
        let mut names = names.unwrap_or_default().split(':').map(str::to_owned);
        let sockets = (0..passed.len()).map(|n| {
            let no_listener = || InheritError::NoListener { number: FIRST + n };
            let name = names.next().filter(|name| !name.is_empty());
            let socket = if let Ok(Some(tcp)) = passed.take_tcp_listener(n) {
                let address = tcp.local_addr()?;
                Socket::Tcp(tcp, address)
            } else if let Ok(Some(unix)) = passed.take_unix_listener(n) {
                Socket::Unix(unix)
            } else {
                return Err(no_listener());
            };
            if socket.listens()? { Ok(Passed { socket, name, is_kept: true }) } else { Err(no_listener()) }
        });
        sockets.collect::<Result<_, _>>().map(Self)
    }

    /// The sockets that another gateway hands over, each with its name, and whether a service manager keeps it open.
    pub(super) fn handed_over(sockets: impl IntoIterator<Item = (String, bool, OwnedFd)>) -> Self {
        let passed = sockets.into_iter().filter_map(|(name, is_kept, socket)| {
            let is_unix = name == ADMIN_SOCKET.name;
            let socket = if is_unix {
                Socket::Unix(UnixListener::from(socket))
            } else {
                let tcp = TcpListener::from(socket);
                // A gateway hands over nothing else.
                let address = tcp.local_addr().ok()?;
                Socket::Tcp(tcp, address)
            };
            Some(Passed { socket, name: Some(name), is_kept })
        });
        Self(passed.collect())
    }

    /// The socket for the listener of this role, whose address is `listen`, and whether a service manager keeps it
    /// open; `None` if there is none, so that it is bound.
    ///
    /// # Errors
    /// When the socket with the name of this role listens elsewhere.
    pub(super) fn tcp(
        &mut self,
        role: Role,
        listen: SocketAddr,
    ) -> Result<Option<(TcpListener, bool)>, InheritError> {
        let fits = |passed: &Passed| matches!(&passed.socket, Socket::Tcp(_, bound) if fits(listen, *bound));
        // A port of 0 is any port, so the name alone tells.
        let by_address = |passed: &Passed| listen.port() != 0 && fits(passed);
        let passed = self.take(role, listen, fits, by_address)?;
        Ok(passed.and_then(|passed| match passed.socket {
            Socket::Tcp(tcp, _) => Some((tcp, passed.is_kept)),
            Socket::Unix(_) => None,
        }))
    }

    /// The same for the admin socket, whose path is `path`.
    ///
    /// # Errors
    /// As [`Inherited::tcp`].
    pub(super) fn unix(
        &mut self,
        role: Role,
        path: &Path,
    ) -> Result<Option<(UnixListener, bool)>, InheritError> {
        let is_at = |passed: &Passed| matches!(&passed.socket, Socket::Unix(unix) if is_at(unix, path));
        // A gateway binds its own under another name, and was asked beside this path.
        let fits = |passed: &Passed| !passed.is_kept || is_at(passed);
        let passed = self.take(role, path.display(), fits, is_at)?;
        Ok(passed.and_then(|passed| match passed.socket {
            Socket::Unix(unix) => Some((unix, passed.is_kept)),
            Socket::Tcp(..) => None,
        }))
    }

    fn take(
        &mut self,
        role: Role,
        listen: impl fmt::Display,
        fits: impl Fn(&Passed) -> bool,
        by_address: impl Fn(&Passed) -> bool,
    ) -> Result<Option<Passed>, InheritError> {
        let named = self.0.iter().position(|passed| passed.role() == Some(role));
        if let Some(number) = named {
            let passed = self.0.remove(number);
            if fits(&passed) {
                return Ok(Some(passed));
            }
            if !passed.is_kept {
                // The configuration was changed: the new address is bound.
                return Ok(None);
            }
            let (socket, key, listen) = (passed.to_string(), role.key, listen.to_string());
            return Err(InheritError::Elsewhere { socket, key, listen });
        }
        let by_address = |passed: &Passed| passed.role().is_none() && by_address(passed);
        Ok(self.0.iter().position(by_address).map(|number| self.0.remove(number)))
    }

    /// What another gateway had and this one does not listen on is closed.
    ///
    /// # Errors
    /// When a socket of a service manager is left that no listener has taken.
    pub(super) fn all_taken(self) -> Result<(), InheritError> {
        let kept = self.0.iter().filter(|passed| passed.is_kept);
        let left: Vec<String> = kept.map(ToString::to_string).collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(InheritError::Unmatched(left.join(" and ")))
    }
}

impl Passed {
    /// The role that its name gives it. Without `FileDescriptorName=` the name is that of the socket unit.
    fn role(&self) -> Option<Role> {
        ROLES.into_iter().find(|role| self.name.as_deref() == Some(role.name))
    }
}

/// `the socket 127.0.0.1:8080 (keygate.socket)`
impl fmt::Display for Passed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.socket {
            Socket::Tcp(_, address) => write!(f, "the socket {address}")?,
            Socket::Unix(unix) => {
                let address = unix.local_addr().ok();
                let path = address.as_ref().and_then(|address| address.as_pathname());
                write!(f, "the socket {}", path.unwrap_or(Path::new("without a path")).display())?;
            }
        }
        self.name.iter().try_for_each(|name| write!(f, " ({name})"))
    }
}

impl Socket {
    fn listens(&self) -> io::Result<bool> {
        let socket = match self {
            Self::Tcp(tcp, _) => tcp.as_fd(),
            Self::Unix(unix) => unix.as_fd(),
        };
        Ok(socket_acceptconn(socket)?)
    }
}

/// Whether a socket that is bound to `bound` is what `listen` asks for. All addresses of a machine are the same in both
/// families: `ListenStream=8080` binds `[::]:8080`, which also takes IPv4.
fn fits(listen: SocketAddr, bound: SocketAddr) -> bool {
    let same_ip = listen.ip().to_canonical() == bound.ip().to_canonical();
    let all = listen.ip().is_unspecified() && bound.ip().is_unspecified();
    (same_ip || all) && (listen.port() == bound.port() || listen.port() == 0)
}

fn is_at(unix: &UnixListener, path: &Path) -> bool {
    unix.local_addr().is_ok_and(|address| address.as_pathname() == Some(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(names: &[Option<&str>]) -> (Inherited, Vec<SocketAddr>) {
        let bind = |name: &Option<&str>| {
            let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = tcp.local_addr().unwrap();
            let socket = Socket::Tcp(tcp, address);
            (Passed { socket, name: name.map(str::to_owned), is_kept: true }, address)
        };
        let (passed, addresses) = names.iter().map(bind).unzip();
        (Inherited(passed), addresses)
    }

    #[test]
    fn a_socket_goes_to_the_listener_with_its_address() {
        let (mut inherited, addresses) = passed(&[Some("keygate.socket"), None]);
        let (ops, _) = inherited.tcp(OPS, addresses[1]).unwrap().unwrap();
        let (server, _) = inherited.tcp(SERVER, addresses[0]).unwrap().unwrap();
        assert_eq!([server.local_addr().unwrap(), ops.local_addr().unwrap()][..], addresses[..]);
        inherited.all_taken().unwrap();
    }

    #[test]
    fn a_name_tells_sockets_apart_where_the_address_does_not() {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (mut inherited, addresses) = passed(&[Some("ops"), Some("server")]);
        let (server, _) = inherited.tcp(SERVER, any).unwrap().unwrap();
        assert_eq!(server.local_addr().unwrap(), addresses[1]);
        assert!(inherited.tcp(ADMIN, any).unwrap().is_none());
        assert!(inherited.tcp(OPS, any).unwrap().is_some());
    }

    #[test]
    fn a_socket_that_nothing_listens_on_is_named() {
        let (inherited, addresses) = passed(&[Some("keygate.socket"), None]);
        let told = inherited.all_taken().unwrap_err().to_string();
        assert!(told.contains(&format!("{} (keygate.socket) and the socket {}", addresses[0], addresses[1])));
    }

    #[test]
    fn a_named_socket_at_another_address_is_refused() {
        let (mut inherited, addresses) = passed(&[Some("server")]);
        let listen = SocketAddr::from(([127, 0, 0, 1], 1));
        let told = inherited.tcp(SERVER, listen).unwrap_err().to_string();
        assert!(told.contains(&addresses[0].to_string()) && told.contains("server.listen is 127.0.0.1:1"));
    }

    #[test]
    fn a_socket_for_all_addresses_is_no_socket_for_loopback() {
        let at = |text: &str| text.parse::<SocketAddr>().unwrap();
        assert!(fits(at("0.0.0.0:80"), at("[::]:80")));
        assert!(fits(at("127.0.0.1:80"), at("[::ffff:127.0.0.1]:80")));
        assert!(!fits(at("127.0.0.1:80"), at("0.0.0.0:80")), "it would be served in plain text");
        assert!(!fits(at("127.0.0.1:80"), at("127.0.0.1:81")));
    }
}
