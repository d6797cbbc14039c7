//! For tests that control each step: an upstream that a test drives byte by byte, and a gateway that accepts any
//! key.

use std::io::{self, ErrorKind};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};

use rustix::net::{AddressFamily, SocketType};

use super::client::Wire;
use super::eventually;
use super::gateway::{Gateway, GatewayBuilder};

/// The answer to [`Call::websocket`] that opens it.
pub(crate) const SWITCH: &[u8] =
    b"HTTP/1.1 101 Switching Protocols\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\
                        sec-websocket-accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

/// An upstream; the test serves its connections, byte by byte.
pub(crate) struct Manual(TcpListener);

impl Manual {
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }

    /// Waits for the next connection.
    #[track_caller]
    pub(crate) fn accept(&self) -> Wire {
        let mut accepted = None;
        eventually("the upstream is connected to", || {
            accepted = self.accepted();
            accepted.is_some()
        });
        Wire::from(accepted.unwrap())
    }

    /// Whether there is no connection besides the accepted ones.
    pub(crate) fn is_untouched(&self) -> bool {
        self.accepted().is_none()
    }

    /// A connection that waits to be accepted.
    pub(crate) fn accepted(&self) -> Option<TcpStream> {
        match self.0.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).unwrap();
                Some(stream)
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// The address of an upstream that is down. Its port stays taken until the tests end, or another test's server could get it,
/// and with it the checks that are meant for this one.
pub(crate) fn refusing() -> String {
    let socket = rustix::net::socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    rustix::net::bind(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, 0))).unwrap();
    let address = SocketAddr::try_from(rustix::net::getsockname(&socket).unwrap()).unwrap();
    std::mem::forget(socket);
    format!("http://{address}")
}

/// Closes both directions at once, as for a killed process.
pub(crate) fn hang_up(wire: &Wire) -> io::Result<()> {
    wire.stream().shutdown(Shutdown::Both)
}

/// Any valid key may send any request below /things; a body for /small has at most 1 KiB.
const OPEN_POLICY: &str = r#"
scopes = ["jobs:read", "jobs:write"]
[[route]]
id = "things"
methods = ["GET", "POST", "PUT", "PATCH", "DELETE"]
paths = ["/things", "/things/{*rest}"]
any_key = true
upstream = "api"
[[route]]
id = "small"
methods = ["POST"]
paths = ["/small"]
any_key = true
upstream = "api"
body_limit = "1KiB"
[[route]]
id = "guarded"
methods = ["POST"]
paths = ["/guarded"]
scopes = ["jobs:write"]
upstream = "api"
"#;

/// The settings of a gateway with one worker, so that all requests share its upstream connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tuned {
    live: Vec<String>,
    server: String,
    upstream: String,
    rest: String,
}

impl Tuned {
    /// Another server for live keys. Without one, and for test keys, the upstream cannot be reached.
    pub(crate) fn live(mut self, url: impl Into<String>) -> Self {
        self.live.push(url.into());
        self
    }

    /// Lines of `[server]`.
    pub(crate) fn server(mut self, toml: &str) -> Self {
        self.server = format!("{}{toml}\n", self.server);
        self
    }

    /// Lines of `[upstreams.api]`.
    pub(crate) fn upstream(mut self, toml: &str) -> Self {
        self.upstream = format!("{}{toml}\n", self.upstream);
        self
    }

    /// Other sections.
    pub(crate) fn settings(mut self, toml: &str) -> Self {
        self.rest = format!("{}{toml}\n", self.rest);
        self
    }

    pub(crate) fn builder(self) -> GatewayBuilder {
        let (server, upstream, rest) = (self.server, self.upstream, self.rest);
        let down = refusing();
        let live = if self.live.is_empty() { vec![refusing()] } else { self.live };
        Gateway::builder().policy(OPEN_POLICY).settings(&format!(
            "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\nmax_connections = 2000\n{server}\
             [upstreams.api]\nlive = {live:?}\ntest = [\"{down}\"]\n{upstream}{rest}"
        ))
    }

    /// The gateway and the secret of a live key.
    #[track_caller]
    pub(crate) fn start(self) -> (Gateway, String) {
        let gateway = self.builder().start();
        let key = gateway.live_key().secret;
        (gateway, key)
    }
}
