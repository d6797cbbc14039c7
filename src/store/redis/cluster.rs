//! The nodes of a cluster, which name the owner of our slot.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::aio::MultiplexedConnection;
use ::redis::{ErrorKind, RedisError, ServerErrorKind, Value};

use super::connect::{Dialler, at};
use super::naming::{Naming, Said, all, ranked};
use super::scripts::{bytes, unexpected};
use super::settings::Node;
use crate::store::StoreFault;

/// Slots of a cluster.
const SLOTS: u16 = 16_384;

/// A cluster. One of its slots holds our keys.
pub(super) struct Cluster {
    seeds: Vec<Node>,
    /// The prefix of every key in our slot.
    prefix: String,
    slot: u16,
    /// The nodes of our slot, replicas included, when they were asked last. The next owner is most likely one of them.
    shard: Arc<Mutex<Vec<Node>>>,
}

impl Cluster {
    /// `prefix` begins the name of every key, and contains our hash tag `tag`.
    pub(super) fn new(seeds: &[Node], tag: &str, prefix: String) -> Self {
        Self { seeds: seeds.to_vec(), prefix, slot: slot(tag.as_bytes()), shard: Arc::default() }
    }

    /// The owners of our slot that its nodes name, best first.
    pub(super) async fn ask(&self, dialler: &Dialler, patience: Duration) -> Result<Vec<Node>, StoreFault> {
        ranked(self.hear(dialler, patience).await, "no node of the cluster")
    }

    /// The answer of each known node.
    pub(super) async fn hear(&self, dialler: &Dialler, patience: Duration) -> Vec<Said> {
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

    /// `None` if the node says that it has our slot; otherwise the node that it names.
    pub(super) async fn sends_on(
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
                // The slot is moving to another node, and this node still owns it.
                ErrorKind::Server(ServerErrorKind::Ask) => Ok(None),
                _ => Err(at(node, error)),
            },
        }
    }

    /// The node that our slot is moving to, if it is moving.
    pub(super) async fn target(
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

    /// Asks for a key of our slot that is never there.
    async fn knock(&self, connection: &mut MultiplexedConnection) -> Result<(), RedisError> {
        let place = format!("{}{NOWHERE}", self.prefix);
        ::redis::cmd("EXISTS").arg(place).query_async::<Value>(connection).await.map(drop)
    }
}

/// The name of a key that never exists. While the slot moves, its node redirects a caller that asks for it.
const NOWHERE: &str = "nowhere";

/// The node that an answer redirects us to. An answer without a host means the host that was asked.
fn redirection(error: &RedisError, from: &Node) -> Option<Node> {
    let (address, _) = error.redirect_node()?;
    let (host, port) = address.rsplit_once(':')?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    Some(Node::new(if host.is_empty() { &from.host } else { host }, port.parse().ok()?))
}

/// The nodes of a slot, the master first; none if no node has it. `asked` is the host that was asked: a node that does not
/// know its own host leaves it out.
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

/// The slot of a hash tag's keys: CRC-16 (XMODEM) of the tag, as the cluster specification has it.
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
