//! The master's name according to sentinels or the nodes of a cluster: all are asked at the same time, and their answers are put in order.

use std::collections::HashMap;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;

use super::connect::at;
use super::settings::Node;
use crate::store::StoreFault;

/// A master that a server names, and how new this knowledge is.
pub(super) struct Naming {
    pub(super) node: Node,
    pub(super) epoch: u64,
    /// How many servers could name a master, as far as this one knows.
    pub(super) voters: usize,
}

/// The answer of one server that was asked for the master.
pub(super) type Said = Result<Naming, StoreFault>;

/// The named masters, best first: newer knowledge before older, a master that several name before one that one names.
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

/// The named masters, best first, or why none was named. `asked` stands in the message for all that were asked, as in
/// "no sentinel".
pub(super) fn ranked(said: Vec<Said>, asked: &str) -> Result<Vec<Node>, StoreFault> {
    let (mut namings, mut faults) = (Vec::new(), Vec::new());
    for said in said {
        match said {
            Ok(naming) => namings.push(naming),
            Err(fault) => faults.push(fault.to_string()),
        }
    }
    if namings.is_empty() {
        // The same order each time: a new text would be logged as news.
        faults.sort_unstable();
        return Err(StoreFault::failed(format_args!("{asked} names a master: {}", faults.join("; "))));
    }
    Ok(rank(namings))
}

/// Every answer, or that it did not come within `patience`.
pub(super) async fn all<F>(asked: Vec<(Node, F)>, patience: Duration) -> Vec<Said>
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
}
