//! Sentinels, which name the master.

use std::sync::Arc;
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{ErrorKind, RedisError, Value};
use tokio::sync::Mutex as AsyncMutex;

use super::connect::{Dialler, at, fields};
use super::naming::{Naming, Said, all, ranked};
use super::scripts::unexpected;
use super::settings::{Node, OpenError};
use crate::store::StoreFault;

/// The sentinels of one master.
pub(super) struct Sentinel {
    master: String,
    asked: Vec<(Node, Arc<Asked>)>,
    dialler: Dialler,
}

/// One sentinel, with the connection to it that was used last.
struct Asked {
    node: Node,
    dialler: Dialler,
    connection: AsyncMutex<Option<MultiplexedConnection>>,
}

impl Sentinel {
    pub(super) fn new(nodes: &[Node], master: &str, dialler: Dialler) -> Self {
        let asked = nodes.iter().map(|node| {
            let (dialler, connection) = (dialler.clone(), AsyncMutex::default());
            (node.clone(), Arc::new(Asked { node: node.clone(), dialler, connection }))
        });
        Self { master: master.to_owned(), asked: asked.collect(), dialler }
    }

    /// See [`Dialler::reread_files`].
    pub(super) fn reread_files(&self) -> Result<(), OpenError> {
        self.dialler.reread_files()
    }

    /// The masters that they name, best first.
    pub(super) async fn ask(&self, patience: Duration) -> Result<Vec<Node>, StoreFault> {
        ranked(self.hear(patience).await, "no sentinel")
    }

    /// Whether a majority of all sentinels names this master. Without a majority no other master can be chosen.
    pub(super) async fn mostly_names(&self, master: &Node, patience: Duration) -> bool {
        let said: Vec<Naming> = self.hear(patience).await.into_iter().flatten().collect();
        let voters = said.iter().map(|naming| naming.voters).fold(self.asked.len(), usize::max);
        said.iter().filter(|naming| naming.node == *master).count() > voters / 2
    }

    /// The answer of each of them.
    pub(super) async fn hear(&self, patience: Duration) -> Vec<Said> {
        let asked = self.asked.iter().map(|(node, asked)| {
            let (asked, master) = (Arc::clone(asked), self.master.clone());
            (node.clone(), async move { asked.master(&master).await })
        });
        all(asked.collect(), patience).await
    }
}

impl Asked {
    async fn master(&self, name: &str) -> Said {
        let mut kept = self.connection.lock().await;
        // Taken out: a caller that gives up half-way must not leave a connection with an answer still to come.
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.dialler.dial(&self.node).await?,
        };
        let mut command = ::redis::cmd("SENTINEL");
        command.arg("MASTER").arg(name);
        let answer = match command.query_async(&mut connection).await {
            // The connection may have been closed since it was used last.
            Err(error) if is_broken(&error) => {
                connection = self.dialler.dial(&self.node).await?;
                command.query_async(&mut connection).await
            }
            answer => answer,
        };
        let naming = answer.map_err(|error| self.fault(name, &error))?;
        *kept = Some(connection);
        parse_master(naming).map_err(|error| at(&self.node, error))
    }

    fn fault(&self, name: &str, error: &RedisError) -> StoreFault {
        if error.detail().is_some_and(|detail| detail.starts_with("No such master")) {
            at(&self.node, format_args!("this sentinel has no master `{name}`: check store.master_name"))
        } else {
            at(&self.node, error)
        }
    }
}

fn is_broken(error: &RedisError) -> bool {
    // A password may be required now that was not required at the connect.
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse) || error.code() == Some("NOAUTH")
}

fn parse_master(answer: Value) -> Result<Naming, RedisError> {
    let [host, port, epoch, others] = fields(answer, ["ip", "port", "config-epoch", "num-other-sentinels"])?;
    let host = host.filter(|host| !host.is_empty()).ok_or_else(unexpected)?;
    let port = port.and_then(|port| port.parse().ok()).ok_or_else(unexpected)?;
    let epoch = epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or_default();
    let voters = 1 + others.and_then(|others| others.parse().ok()).unwrap_or(0);
    Ok(Naming { node: Node::new(&host, port), epoch, voters })
}
