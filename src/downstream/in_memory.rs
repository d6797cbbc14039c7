//! A connection without a socket: the client is in the same process. So the fuzz target `pipeline` sends bytes through all
//! of keygate that a client can reach.

use std::rc::Rc;

use tokio::io::DuplexStream;

use super::connection::{self, Serving};
use super::lingering::Socket;
use super::membership::Connections;
use crate::gateway::Gateway;
use crate::vocabulary::peer::Peer;

/// Serves one connection to its end, as a worker does. Must be called within a local runtime, that of the gateway's thread.
pub async fn serve(stream: DuplexStream, peer: Peer, gateway: Rc<Gateway>, serving: &Serving) {
    let connections = Rc::new(Connections::default());
    connection::serve(stream, peer, gateway, serving, connections.join(None)).await;
}

impl Socket for DuplexStream {
    /// There is no reset in memory: what was written can still be read.
    fn reset_when_closed(&self) {}
}
