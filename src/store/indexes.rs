//! What the indexes of a store say of a key beside its record: its environment, for lists, and until when it is live and
//! who has made it, for the limits on new keys. A key is live until it is revoked or expires; one that is disabled can be
//! enabled again.

use crate::store::quotas::Quota;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::KeyId;
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::record::KeyRecord;

/// The entry of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Indexed {
    pub(super) environment: Environment,
    /// `None`: it was not made by a key.
    pub(super) maker: Option<KeyId>,
    pub(super) live: Live,
}

/// Until when a key is live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Live {
    Revoked,
    Until(UnixMillis),
    /// It has no end.
    Always,
}

impl From<&KeyRecord> for Indexed {
    fn from(key: &KeyRecord) -> Self {
        let live = match (key.revoked_at, key.expires_at) {
            (Some(_), _) => Live::Revoked,
            (None, Some(end)) => Live::Until(end),
            (None, None) => Live::Always,
        };
        // The name of an operator that reads like the id of a key is no key.
        let maker = KeyId::parse(&key.created_by).ok();
        Self { environment: key.environment, maker, live }
    }
}

/// The room that a new key needs in its organisation. Without it nothing is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Room {
    pub now: UnixMillis,
    /// The most live keys of the organisation.
    pub most: u32,
    /// The key that makes the new one, and the most live keys that it may have made.
    pub maker: KeyId,
    pub most_of_maker: u32,
    /// The most new keys within a window.
    pub pace: Quota,
}

/// What is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    Organisation,
    /// The part of the organisation's keys that one key may make.
    Maker,
}
