//! An address on which no process listens, and on which no other process can begin to listen.

use std::net::TcpListener;

use tokio::net::TcpSocket;

use super::http2::runtime;

/// Bound, but not listening: connections are refused as long as this value exists.
pub(crate) struct ClosedPort(TcpSocket);

impl ClosedPort {
    pub(crate) fn reserve() -> Self {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Self(socket)
    }

    /// Begins to listen.
    pub(crate) fn open(self) -> TcpListener {
        let listener = runtime().block_on(async { self.0.listen(16).unwrap().into_std().unwrap() });
        listener.set_nonblocking(false).unwrap();
        listener
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.0.local_addr().unwrap())
    }
}
