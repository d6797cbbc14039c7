//! An address where nobody listens, and nobody else can begin to.

use std::net::TcpListener;

use tokio::net::TcpSocket;

use super::http2::runtime;

/// Bound, but not listening: whoever connects is refused, for as long as this lives.
pub(crate) struct ClosedPort(TcpSocket);

impl ClosedPort {
    pub(crate) fn reserve() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    /// From now on somebody listens.
    pub(crate) fn open(self) -> TcpListener {
        let listener = runtime().block_on(async { self.0.listen(16).unwrap().into_std().unwrap() });
        listener.set_nonblocking(false).unwrap();
        listener
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }
}
