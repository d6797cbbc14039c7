//! Connections to the master, wherever it is: at a fixed address, where sentinels say, or where a cluster has our slot.
//!
//! A server that is named is not yet believed to be the master. The named servers are tried in the order of
//! [`naming`](super::naming), and the first one that says itself that it is the master counts.

use std::time::Duration;

use ::redis::RedisError;
use ::redis::aio::MultiplexedConnection;
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::cluster::Cluster;
use super::connect::{Dialler, at};
use super::sentinel::Sentinel;
use super::settings::{Node, OpenError, Place};
use crate::store::StoreFault;

/// How often sentinels are asked whether the master is still the master. An old master that we can reach and they cannot
/// goes on answering us.
const LOOK: Duration = Duration::from_millis(500);
/// How often the nodes of a cluster may redirect us in a row.
const REDIRECTIONS: usize = 4;

/// Makes connections to the master.
pub(super) struct Connector {
    place: Place,
    topology: Topology,
    dialler: Dialler,
    patience: Duration,
    /// The master that was found last. A connection to any other server is not used again: an idle one would keep us at
    /// a server that was replaced.
    master: watch::Sender<Option<Node>>,
}

/// A connection to a server that was the master when it was made.
#[derive(Debug)]
pub(super) struct Connected {
    pub(super) connection: MultiplexedConnection,
    pub(super) node: Node,
}

pub(super) enum Topology {
    Fixed(Node),
    Sentinel(Sentinel),
    Cluster(Cluster),
}

impl Connector {
    /// `patience` is how long connecting may take in all, with the check that the server is fit.
    pub(super) fn new(place: Place, topology: Topology, dialler: Dialler, patience: Duration) -> Self {
        Self { place, topology, dialler, patience, master: watch::Sender::new(None) }
    }

    /// Reads the passwords and the files of TLS again, for connections that come later.
    pub(super) fn reread_files(&self) -> Result<(), OpenError> {
        if let Topology::Sentinel(sentinel) = &self.topology {
            sentinel.reread_files()?;
        }
        self.dialler.reread_files()
    }

    /// A connection to the master.
    pub(super) async fn connect(&self) -> Result<Connected, StoreFault> {
        let found = timeout(self.patience, self.find()).await;
        let slow = || {
            let hint = self.dialler.hint_at_silence();
            self.fault(format_args!("connecting took longer than {:?}{hint}", self.patience))
        };
        let connected = found.unwrap_or_else(|_| Err(slow()))?;
        self.note(&connected.node);
        Ok(connected)
    }

    async fn find(&self) -> Result<Connected, StoreFault> {
        match &self.topology {
            Topology::Fixed(node) => {
                let connection = self.dialler.dial_master(node).await?;
                Ok(Connected { connection, node: node.clone() })
            }
            Topology::Sentinel(sentinel) => {
                let named = sentinel.ask(self.patience / 4).await?;
                self.first_of(named).await
            }
            Topology::Cluster(cluster) => {
                let named = cluster.ask(&self.dialler, self.patience / 4).await?;
                self.first_of(named).await
            }
        }
    }

    /// The first that turns out to be the master.
    async fn first_of(&self, named: Vec<Node>) -> Result<Connected, StoreFault> {
        let mut faults = Vec::new();
        for node in named {
            // A server that never answers must not keep us from asking for its successor.
            match timeout(self.patience / 2, self.confirm(node.clone())).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(fault)) => faults.push(fault),
                Err(_) => {
                    faults.push(at(&node, format_args!("it does not answer within {:?}", self.patience / 2)));
                }
            }
        }
        Err(faults.into_iter().next().unwrap_or_else(|| self.fault("no server is named as the master")))
    }

    async fn confirm(&self, mut node: Node) -> Result<Connected, StoreFault> {
        for _ in 0..=REDIRECTIONS {
            let mut connection = self.dialler.dial_master(&node).await?;
            let Topology::Cluster(cluster) = &self.topology else {
                return Ok(Connected { connection, node });
            };
            match cluster.sends_on(&node, &mut connection).await? {
                None => return Ok(Connected { connection, node }),
                Some(other) => node = other,
            }
        }
        Err(at(&node, "the nodes of the cluster redirect us in circles: their views of the cluster differ"))
    }

    /// The node that our slot is moving to, if it is moving. `node`, which has the slot, is asked.
    pub(super) async fn target(
        &self,
        node: &Node,
        connection: &mut MultiplexedConnection,
    ) -> Result<Option<Node>, RedisError> {
        match &self.topology {
            Topology::Cluster(cluster) => cluster.target(node, connection).await,
            Topology::Fixed(_) | Topology::Sentinel(_) => Ok(None),
        }
    }

    /// A connection to a master that is not ours.
    pub(super) async fn dial(&self, node: Node) -> Result<Connected, StoreFault> {
        let connection = self.dialler.dial_master(&node).await?;
        Ok(Connected { connection, node })
    }

    fn note(&self, node: &Node) {
        self.master.send_if_modified(|master| {
            let differs = master.as_ref() != Some(node);
            if differs {
                *master = Some(node.clone());
            }
            differs
        });
    }

    /// Whether this is the master that was found last.
    pub(super) fn is_current(&self, node: &Node) -> bool {
        self.master.borrow().as_ref() == Some(node)
    }

    /// Waits until another master than `node` is found, by this task or another.
    pub(super) async fn replaced(&self, node: &Node) -> StoreFault {
        let mut master = self.master.subscribe();
        let other = master.wait_for(|master| master.as_ref() != Some(node));
        let look = async {
            match &self.topology {
                Topology::Sentinel(sentinel) => self.look_after(sentinel, node).await,
                // A fixed server has no successor; the nodes of a cluster redirect a caller.
                Topology::Fixed(_) | Topology::Cluster(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = other => {}
            () = look => {}
        }
        at(node, "another server is the master now")
    }

    /// Asks the sentinels until they name another server and it says that it is the master.
    async fn look_after(&self, sentinel: &Sentinel, node: &Node) {
        loop {
            sleep(LOOK).await;
            // Silent sentinels say nothing about the master.
            let named = sentinel.ask(self.patience).await.unwrap_or_default();
            let Some(first) = named.into_iter().next().filter(|first| first != node) else { continue };
            if let Ok(Ok(connected)) = timeout(self.patience, self.confirm(first)).await {
                self.note(&connected.node);
                return;
            }
        }
    }

    /// Whether the servers that would choose another master say that it is still this one, so that it only lacks its
    /// replicas.
    pub(super) async fn vouches_for(&self, node: &Node) -> bool {
        match &self.topology {
            // There is nobody to ask.
            Topology::Fixed(_) => false,
            Topology::Sentinel(sentinel) => sentinel.mostly_names(node, self.patience).await,
            // A node that does not see a majority of the masters refuses everything: it says that the cluster is down.
            Topology::Cluster(_) => true,
        }
    }

    /// The master according to each sentinel, or each node of the cluster.
    pub(super) async fn hear(&self) -> Vec<Result<Node, StoreFault>> {
        let said = match &self.topology {
            Topology::Fixed(_) => Vec::new(),
            Topology::Sentinel(sentinel) => sentinel.hear(self.patience).await,
            Topology::Cluster(cluster) => cluster.hear(&self.dialler, self.patience).await,
        };
        said.into_iter().map(|said| said.map(|naming| naming.node)).collect()
    }

    pub(super) const fn topology(&self) -> &Topology {
        &self.topology
    }

    /// Tells of every master that is found.
    pub(super) fn master(&self) -> watch::Receiver<Option<Node>> {
        self.master.subscribe()
    }

    /// Waits until another master is found.
    pub(super) async fn changed(&self) {
        let _ = self.master.subscribe().changed().await;
    }

    /// Where Redis is, as far as it is known.
    pub(super) fn whereabouts(&self) -> String {
        match (&self.place, &*self.master.borrow()) {
            (Place::Sentinel(_) | Place::Cluster(_), Some(node)) => format!("{node} ({})", self.place),
            (place, _) => place.to_string(),
        }
    }

    pub(super) fn fault(&self, cause: impl std::fmt::Display) -> StoreFault {
        StoreFault::failed(format_args!("Redis at {}: {cause}", self.whereabouts()))
    }
}

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connector").field("place", &self.whereabouts()).finish_non_exhaustive()
    }
}
