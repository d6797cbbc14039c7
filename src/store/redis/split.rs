//! A lookup while our slot moves from one node of a cluster to another.
//!
//! Then each key is at one of the two nodes, and neither node runs a script over keys of both. So each is asked for
//! what it has, at a moment of its own, and the answers are joined. The result must be no older than an answer of the
//! owner alone:
//!
//! - **The node that has `meta` is up to date.** Every change is a script that needs `meta` on its node. So a record beside
//!   `meta` is as new as `meta` says.
//! - **A record apart from `meta` cannot have changed since `meta` left.** A source that was replaced by its replica, and
//!   does not know it, still has a `meta` of its own: if both nodes have one, neither is believed.
//! - **The source is asked first, then the target.** Keys move in one direction only. A key that has left the source when it is
//!   asked is at the target when that is asked. A record that has arrived at the target beside `meta` may have changed
//!   there, so it is taken from there.
//! - **A missing key proves nothing.** It may have been lost on its way. It is never called absent.

use ::redis::RedisError;
use ::redis::aio::MultiplexedConnection;

use super::scripts::{Call, Meta, Reply};

/// How often both nodes are asked at most. Once is enough unless keys move meanwhile; twice if only the target has
/// the pointer of the digest.
const ROUNDS: usize = 4;

/// The keys of one node.
struct Half {
    meta: Meta,
    peppers: Option<Vec<u8>>,
    owner: Option<Vec<u8>>,
    key: Option<Vec<u8>>,
    org: Option<Vec<u8>>,
}

/// The answer to a lookup as the owner of the whole slot would give it; `None` if it cannot be known.
pub(super) async fn put_together(
    call: &Call<'_>,
    source: &mut MultiplexedConnection,
    target: &mut MultiplexedConnection,
) -> Result<Option<Reply>, RedisError> {
    let mut owner = Vec::new();
    for _ in 0..ROUNDS {
        let left = half(call, &owner, source).await?;
        owner = left.owner.clone().unwrap_or(owner);
        let arrived = half(call, &owner, target).await?;
        owner = arrived.owner.clone().unwrap_or(owner);
        if owner.is_empty() {
            return Ok(None);
        }
        if let Some(whole) = join(left, arrived) {
            return Ok(Some(whole));
        }
    }
    Ok(None)
}

async fn half(call: &Call<'_>, owner: &[u8], node: &mut MultiplexedConnection) -> Result<Half, RedisError> {
    let mut reply = call.send_half(owner, node).await?;
    let (peppers, owner, key, org) = (reply.bytes()?, reply.bytes()?, reply.bytes()?, reply.bytes()?);
    Ok(Half { meta: reply.meta, peppers, owner, key, org })
}

/// Both halves joined; `None` if they do not fit.
fn join(left: Half, arrived: Half) -> Option<Reply> {
    if left.owner != arrived.owner {
        return None;
    }
    let (beside_meta, apart) = match (&left.meta.incarnation, &arrived.meta.incarnation) {
        (Some(_), None) => (left, arrived),
        (None, Some(_)) => (arrived, left),
        _ => return None,
    };
    let (key, org) = (beside_meta.key.or(apart.key)?, beside_meta.org.or(apart.org)?);
    Some(Reply::of(beside_meta.meta, [beside_meta.peppers, Some(beside_meta.owner?), Some(key), Some(org)]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A half with a meta of this event, and with these records.
    fn half(event: Option<u64>, owner: &str, key: &str, org: &str) -> Half {
        let there = |text: &str| (!text.is_empty()).then(|| text.as_bytes().to_vec());
        let incarnation = event.map(|_| "store".to_owned());
        let meta = Meta { incarnation, event, ..Meta::default() };
        Half { meta, peppers: None, owner: there(owner), key: there(key), org: there(org) }
    }

    fn joined(left: Half, arrived: Half) -> Option<String> {
        let mut reply = join(left, arrived)?;
        assert_eq!(reply.text().unwrap(), None, "what the store says of its pepper");
        let mut text = || reply.text().unwrap().unwrap();
        Some([text(), text(), text()].join(" "))
    }

    #[test]
    fn what_stands_beside_the_state_of_the_store_is_preferred() {
        let whole = Some("o new org".to_owned());
        assert_eq!(joined(half(Some(1), "o", "new", ""), half(None, "o", "old", "org")), whole);
        assert_eq!(joined(half(None, "o", "old", "org"), half(Some(1), "o", "new", "")), whole);
        assert_eq!(joined(half(None, "o", "new", ""), half(Some(1), "o", "", "org")), whole);
    }

    #[test]
    fn what_is_no_whole_says_nothing() {
        for (left, arrived) in [
            (half(Some(1), "o", "key", "org"), half(Some(1), "o", "", "")),
            (half(None, "o", "key", "org"), half(None, "o", "", "")),
            (half(Some(1), "o", "key", ""), half(None, "o", "", "")),
            (half(Some(1), "o", "", ""), half(None, "o", "", "org")),
            (half(Some(1), "o", "key", ""), half(None, "another", "", "org")),
            (half(Some(1), "", "", ""), half(None, "", "", "")),
        ] {
            assert_eq!(joined(left, arrived), None);
        }
    }
}
