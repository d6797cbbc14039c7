//! Where is the master now?
//!
//! At a fixed address; where sentinels say; or where a cluster has our slot. Nobody's word is taken for it: of
//! what sentinels and nodes name, the newest and most often named first, the first server counts that is
//! itself found to be the master.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::connect::{Dialler, at, fields};
use super::scripts::{bytes, unexpected};
use super::settings::{Node, Place};
use crate::store::StoreFault;

/// How often sentinels are asked whether the master is still the master. An old one that they cannot reach,
/// but we can, goes on answering.
const LOOK: Duration = Duration::from_millis(500);
/// How often a node of a cluster may send us on to another.
const REDIRECTIONS: usize = 4;
/// Slots of a cluster.
const SLOTS: u16 = 16_384;

/// Makes connections to the master, wherever it is.
pub(super) struct Connector {
    place: Place,
    topology: Topology,
    dialler: Dialler,
    patience: Duration,
    /// The master that was found last. A connection to any other is not used again, so that no idle one keeps
    /// us with a server that was replaced.
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
    /// `patience` is how long connecting may take, up to the answer that this is a Redis for us.
    pub(super) fn new(place: Place, topology: Topology, dialler: Dialler, patience: Duration) -> Self {
        Self { place, topology, dialler, patience, master: watch::Sender::new(None) }
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
            // One that swallows everything must not keep us from asking again, who knows, about its successor.
            match timeout(self.patience / 2, self.confirm(node.clone())).await {
                Ok(Ok(connected)) => return Ok(connected),
                Ok(Err(fault)) => faults.push(fault),
                Err(_) => {
                    faults.push(at(&node, format_args!("it does not answer within {:?}", self.patience / 2)));
                }
            }
        }
        Err(faults.into_iter().next().unwrap_or_else(|| self.fault("nobody names a master")))
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
        Err(at(&node, "the nodes of the cluster send us round in circles: their views of it differ"))
    }

    /// Where our slot is on its way to, if it is; `node`, which has it, is asked.
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

    /// A connection to a master that is not taken for ours.
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

    /// Whether this is still the last master that was found.
    pub(super) fn is_current(&self, node: &Node) -> bool {
        self.master.borrow().as_ref() == Some(node)
    }

    /// Waits until another master than `node` was found, by whomever.
    pub(super) async fn replaced(&self, node: &Node) -> StoreFault {
        let mut master = self.master.subscribe();
        let other = master.wait_for(|master| master.as_ref() != Some(node));
        let look = async {
            match &self.topology {
                Topology::Sentinel(sentinel) => self.look_after(sentinel, node).await,
                // The one has no other; a cluster's nodes tell whoever asks the wrong one.
                Topology::Fixed(_) | Topology::Cluster(_) => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = other => {}
            () = look => {}
        }
        at(node, "another server is the master now")
    }

    /// Asks the sentinels until they name another master and that is one.
    async fn look_after(&self, sentinel: &Sentinel, node: &Node) {
        loop {
            sleep(LOOK).await;
            // That they do not answer says nothing about the master.
            let named = sentinel.ask(self.patience).await.unwrap_or_default();
            let Some(first) = named.into_iter().next().filter(|first| first != node) else { continue };
            if let Ok(Ok(connected)) = timeout(self.patience, self.confirm(first)).await {
                self.note(&connected.node);
                return;
            }
        }
    }

    /// Whether those who would choose another master say that it is still this one, so that it only lacks its
    /// replicas.
    pub(super) async fn vouches_for(&self, node: &Node) -> bool {
        match &self.topology {
            // Nobody who could be asked.
            Topology::Fixed(_) => false,
            Topology::Sentinel(sentinel) => sentinel.mostly_names(node, self.patience).await,
            // A node that does not see most of the masters says that the cluster is down, before anything else.
            Topology::Cluster(_) => true,
        }
    }

    /// What each of those says who are asked where the master is.
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

    /// The master that was found last, for whoever wants to know of the next.
    pub(super) fn master(&self) -> watch::Receiver<Option<Node>> {
        self.master.subscribe()
    }

    /// Waits until a master is found that was not the last one.
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

/// A master by name, and how new this knowledge is.
struct Naming {
    node: Node,
    epoch: u64,
    /// How many there are that could say it, as far as who says it knows.
    voters: usize,
}

/// What one that was asked says.
type Said = Result<Naming, StoreFault>;

/// What was named, best first: the newest knowledge before older, what several say before what one says.
fn rank(namings: impl IntoIterator<Item = Naming>) -> Vec<Node> {
    let mut by_node: HashMap<Node, (u64, usize)> = HashMap::new();
    for Naming { node, epoch, .. } in namings {
        let (newest, count) = by_node.entry(node).or_default();
        *newest = epoch.max(*newest);
        *count += 1;
    }
    let mut ranked: Vec<_> = by_node.into_iter().collect();
    ranked.sort_by(|(a, rank_a), (b, rank_b)| {
        rank_b.cmp(rank_a).then_with(|| a.to_string().cmp(&b.to_string()))
    });
    ranked.into_iter().map(|(node, _)| node).collect()
}

/// The namings among what was said, or why there is none.
fn ranked(said: Vec<Said>, whoever: &str) -> Result<Vec<Node>, StoreFault> {
    let (mut namings, mut faults) = (Vec::new(), Vec::new());
    for said in said {
        match said {
            Ok(naming) => namings.push(naming),
            Err(fault) => faults.push(fault.to_string()),
        }
    }
    if namings.is_empty() {
        // In the same order each time, because what is new is logged.
        faults.sort_unstable();
        return Err(StoreFault::failed(format_args!("{whoever} names a master: {}", faults.join("; "))));
    }
    Ok(rank(namings))
}

/// Everybody's word, or that it did not come in time.
async fn all<F>(asked: Vec<(Node, F)>, patience: Duration) -> Vec<Said>
where
    F: Future<Output = Said> + Send + 'static,
{
    let mut asking = JoinSet::new();
    for (from, naming) in asked {
        asking.spawn(async move {
            let said = timeout(patience, naming).await;
            said.unwrap_or_else(|_| Err(at(&from, "it does not answer in time")))
        });
    }
    let mut all = Vec::new();
    while let Some(said) = asking.join_next().await {
        all.extend(said);
    }
    all
}

/// The sentinels of one master.
pub(super) struct Sentinel {
    master: String,
    asked: Vec<(Node, Arc<Asked>)>,
}

/// One sentinel, with the connection to it that was used last.
struct Asked {
    node: Node,
    dialler: Dialler,
    connection: AsyncMutex<Option<MultiplexedConnection>>,
}

impl Sentinel {
    pub(super) fn new(nodes: &[Node], master: &str, dialler: &Dialler) -> Self {
        let asked = nodes.iter().map(|node| {
            let (dialler, connection) = (dialler.clone(), AsyncMutex::default());
            (node.clone(), Arc::new(Asked { node: node.clone(), dialler, connection }))
        });
        Self { master: master.to_owned(), asked: asked.collect() }
    }

    async fn ask(&self, patience: Duration) -> Result<Vec<Node>, StoreFault> {
        ranked(self.hear(patience).await, "no sentinel")
    }

    /// Whether most of all sentinels say that this is the master: without most of them no other can be chosen.
    async fn mostly_names(&self, master: &Node, patience: Duration) -> bool {
        let said: Vec<Naming> = self.hear(patience).await.into_iter().flatten().collect();
        let voters = said.iter().map(|naming| naming.voters).fold(self.asked.len(), usize::max);
        said.iter().filter(|naming| naming.node == *master).count() > voters / 2
    }

    /// What each of them says.
    async fn hear(&self, patience: Duration) -> Vec<Said> {
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
        // Taken out, so that whoever gives up half-way leaves no connection with an answer to come.
        let mut connection = match kept.take() {
            Some(connection) => connection,
            None => self.dialler.dial(&self.node).await?,
        };
        let mut command = ::redis::cmd("SENTINEL");
        command.arg("MASTER").arg(name);
        let answer = match command.query_async(&mut connection).await {
            // It may have been closed since it was used last.
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
    matches!(error.kind(), ErrorKind::Io | ErrorKind::Parse)
}

fn parse_master(answer: Value) -> Result<Naming, RedisError> {
    let [host, port, epoch, others] = fields(answer, ["ip", "port", "config-epoch", "num-other-sentinels"])?;
    let host = host.filter(|host| !host.is_empty()).ok_or_else(unexpected)?;
    let port = port.and_then(|port| port.parse().ok()).ok_or_else(unexpected)?;
    let epoch = epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or_default();
    let voters = 1 + others.and_then(|others| others.parse().ok()).unwrap_or(0);
    Ok(Naming { node: Node::new(&host, port), epoch, voters })
}

/// A cluster, of which one slot is ours.
pub(super) struct Cluster {
    seeds: Vec<Node>,
    /// What stands before the name of every key of our slot.
    prefix: String,
    slot: u16,
    /// The nodes that had our slot when we asked last, replicas too: one of them has it next, most likely.
    shard: Arc<Mutex<Vec<Node>>>,
}

impl Cluster {
    /// `prefix` is what stands before the name of every key, with our hash tag `tag`.
    pub(super) fn new(seeds: &[Node], tag: &str, prefix: String) -> Self {
        Self { seeds: seeds.to_vec(), prefix, slot: slot(tag.as_bytes()), shard: Arc::default() }
    }

    async fn ask(&self, dialler: &Dialler, patience: Duration) -> Result<Vec<Node>, StoreFault> {
        ranked(self.hear(dialler, patience).await, "no node of the cluster")
    }

    /// What each node that is known says.
    async fn hear(&self, dialler: &Dialler, patience: Duration) -> Vec<Said> {
        let mut nodes = self.shard.lock().unwrap_or_else(PoisonError::into_inner).clone();
        nodes.extend(self.seeds.iter().filter(|seed| !nodes.contains(seed)).cloned().collect::<Vec<_>>());
        let asked = nodes.into_iter().map(|node| {
            let (dialler, slot, shard, from) =
                (dialler.clone(), self.slot, Arc::clone(&self.shard), node.clone());
            let naming = async move {
                let mut connection = dialler.dial(&from).await?;
                let answer = ::redis::cmd("CLUSTER").arg("SLOTS").query_async(&mut connection).await;
                let nodes = answer.and_then(|answer| parse_slots(answer, slot, &from.host));
                let nodes = nodes.map_err(|error| at(&from, error))?;
                let Some(node) = nodes.first().cloned() else {
                    return Err(at(&from, format_args!("no node of the cluster has our slot {slot}")));
                };
                *shard.lock().unwrap_or_else(PoisonError::into_inner) = nodes;
                Ok(Naming { node, epoch: 0, voters: 1 })
            };
            (node, naming)
        });
        all(asked.collect(), patience).await
    }

    /// Whether a node has our slot, by its own account; otherwise who has.
    async fn sends_on(
        &self,
        node: &Node,
        connection: &mut MultiplexedConnection,
    ) -> Result<Option<Node>, StoreFault> {
        match self.knock(connection).await {
            Ok(()) => Ok(None),
            Err(error) => match error.kind() {
                ErrorKind::Server(ServerErrorKind::Moved) => {
                    redirection(&error, node).map(Some).ok_or_else(|| at(node, error))
                }
                // The slot is on its way to another node, and still this one's.
                ErrorKind::Server(ServerErrorKind::Ask) => Ok(None),
                _ => Err(at(node, error)),
            },
        }
    }

    async fn target(
        &self,
        node: &Node,
        connection: &mut MultiplexedConnection,
    ) -> Result<Option<Node>, RedisError> {
        match self.knock(connection).await {
            Ok(()) => Ok(None),
            Err(error) if error.kind() == ErrorKind::Server(ServerErrorKind::Ask) => {
                redirection(&error, node).map(Some).ok_or(error)
            }
            Err(error) => Err(error),
        }
    }

    async fn knock(&self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let place = format!("{}{NOWHERE}", self.prefix);
        ::redis::cmd("EXISTS").arg(place).query_async::<Value>(connection).await.map(drop)
    }
}

/// A place where nothing ever is: while the slot moves, its node sends whoever asks for it on.
const NOWHERE: &str = "nowhere";

/// Whom a node sends us to. Without a host it means its own.
fn redirection(error: &RedisError, from: &Node) -> Option<Node> {
    let (address, _) = error.redirect_node()?;
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some(Node::new(if host.is_empty() { &from.host } else { host }, port.parse().ok()?))
}

/// The nodes that have a slot, the master first; none where nobody has it. `asked` is who was asked: a node
/// that does not know its own name leaves it out.
fn parse_slots(answer: Value, slot: u16, asked: &str) -> Result<Vec<Node>, RedisError> {
    let Value::Array(ranges) = answer else { return Err(unexpected()) };
    for range in ranges {
        let Value::Array(range) = range else { return Err(unexpected()) };
        let [Value::Int(first), Value::Int(last), nodes @ ..] = &range[..] else { return Err(unexpected()) };
        if (*first..=*last).contains(&i64::from(slot)) {
            return nodes.iter().map(|node| parse_slot_node(node, asked).ok_or_else(unexpected)).collect();
        }
    }
    Ok(Vec::new())
}

fn parse_slot_node(node: &Value, asked: &str) -> Option<Node> {
    let Value::Array(node) = node else { return None };
    let [host, Value::Int(port), ..] = &node[..] else { return None };
    let host = match host {
        Value::Nil => String::new(),
        host => String::from_utf8(bytes(host.clone()).ok()?).ok()?,
    };
    let host = if host.is_empty() || host == "?" { asked } else { &host };
    Some(Node::new(host, u16::try_from(*port).ok()?))
}

/// Where in a cluster a hash tag's keys are: CRC-16 (XMODEM) of the tag.
fn slot(tag: &[u8]) -> u16 {
    let mut crc = 0_u16;
    for byte in tag {
        crc ^= u16::from(*byte) << 8;
        for _ in 0..8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
        }
    }
    crc % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn naming(node: &str, epoch: u64) -> Naming {
        Naming { node: Node::parse(node).unwrap(), epoch, voters: 1 }
    }

    #[test]
    fn newer_knowledge_comes_first_and_then_what_most_say() {
        let ranked = |namings: Vec<Naming>| rank(namings).iter().map(Node::to_string).collect::<Vec<_>>();
        assert_eq!(ranked(vec![naming("a:1", 3), naming("b:1", 4), naming("a:1", 3)]), ["b:1", "a:1"]);
        assert_eq!(ranked(vec![naming("b:1", 0), naming("a:1", 0), naming("b:1", 0)]), ["b:1", "a:1"]);
        assert_eq!(ranked(vec![naming("b:1", 1), naming("a:1", 1)]), ["a:1", "b:1"], "the same each time");
    }

    #[test]
    fn slots_are_those_of_the_cluster_specification() {
        assert_eq!(slot(b"123456789"), 0x31c3);
        assert_eq!(slot(b"foo"), 12_182);
    }

    #[test]
    fn the_owner_of_a_slot_is_read_whatever_it_says_of_its_name() {
        let node =
            |host: Value, port| Value::Array(vec![host, Value::Int(port), Value::BulkString(b"id".to_vec())]);
        let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
        let slots = Value::Array(vec![
            Value::Array(vec![Value::Int(0), Value::Int(99), node(text("a"), 1)]),
            Value::Array(vec![Value::Int(100), Value::Int(200), node(Value::Nil, 2), node(text("?"), 3)]),
        ]);
        let owner = |slot| parse_slots(slots.clone(), slot, "asked").unwrap();
        assert_eq!(owner(99), [Node::new("a", 1)]);
        assert_eq!(owner(100), [Node::new("asked", 2), Node::new("asked", 3)]);
        assert_eq!(owner(201), []);
        assert!(parse_slots(Value::Nil, 0, "asked").is_err());
    }
}
