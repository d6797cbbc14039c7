//! Keys that ended long ago: [stones](crate::vocabulary::key::gone) take their place.
//!
//! Then such a key is for its organisation as if it had never been: it is in no list, and its id is unknown. But neither its id
//! nor its secrets can be taken again, by an import or by anything else, and the trail goes on telling of it for as long as its
//! records are kept. The way from a key to its descendants leads over stones as it does over records.

use std::collections::{BTreeSet, HashMap};
use std::sync::Weak;
use std::time::Duration;

use super::Lifecycle;
use super::error::LifecycleError;
use super::moved::MovedKey;
use crate::store::graves::{Buried, Leaving, Marked, Terms};
use crate::store::trails::{Held, Pace};
use crate::store::unreadable::id_of;
use crate::store::{KeysOf, StoreFault};
use crate::vocabulary::clock::AGREED;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Digest;
use crate::vocabulary::key::gone::Gone;
use crate::vocabulary::key::record::{KeyRecord, Versioned};

/// Keys that are read at once, and go at once.
const PAGE: usize = 256;
const ORGS: usize = 64;
/// The pause after each page of which keys went, so that changes need not wait.
const PAUSE: Duration = Duration::from_millis(50);
/// The most stones that lie one behind the other on the way from a key to its maker. Where they were put in turn, oldest first,
/// there is one for each page.
const STEPS: usize = 4096;

/// What has become of the keys of one organisation, or of all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Went {
    /// So many went.
    All(u64),
    /// So many went, and no more may go today, or one of them was changed meanwhile.
    Some(u64),
    Held(Held),
}

impl Lifecycle {
    /// Lets keys go that ended longer ago than they are kept, of all organisations. Ends with the last other owner of the
    /// lifecycle.
    pub(super) async fn let_ended_go(lifecycle: &Weak<Self>) {
        let mut after = None;
        loop {
            let Some(some) = lifecycle.upgrade() else { return };
            // A store that cannot answer is logged elsewhere; it is tried again tomorrow.
            let Ok(orgs) = some.list_orgs(after, ORGS).await else { return };
            drop(some);
            after = orgs.last().map(|org| org.id);
            for org in orgs {
                let Some(some) = lifecycle.upgrade() else { return };
                match some.let_ended_go_of(org.id, Pace::Daily).await {
                    Ok(Went::Held(_)) => return,
                    // Also while a gateway is too old to know stones: every key stays as it is.
                    Ok(Went::All(_) | Went::Some(_)) | Err(_) => {}
                }
            }
            if after.is_none() {
                return;
            }
        }
    }

    pub(super) async fn let_ended_go_of(&self, org: OrgId, pace: Pace) -> Result<Went, LifecycleError> {
        let (mut after, mut went) = (None, 0);
        loop {
            let page = self.store.list_keys(KeysOf::Org(org), after, PAGE).await?;
            let is_last = page.len() < PAGE;
            after = page.last().map(id_of);
            // The store judges by its own clock, which may be so far from ours.
            let old = self.now().minus(self.settings.keep_ended).minus(AGREED);
            let mut ended: Vec<_> = page.into_iter().flatten().collect();
            ended.retain(|key| key.record.ended_at().is_some_and(|end| end <= old));
            let asked = ended.len() as u64;
            if asked > 0 {
                match self.bury(ended, pace).await? {
                    Buried::Done(now) if now == asked => went += now,
                    Buried::Done(now) => return Ok(Went::Some(went + now)),
                    Buried::Held(held) => return Ok(Went::Held(held)),
                }
                tokio::time::sleep(PAUSE).await;
            }
            if is_last {
                return Ok(Went::All(went));
            }
        }
    }

    /// Lets these keys go, which are in their order, newest first.
    async fn bury(&self, keys: Vec<Versioned<KeyRecord>>, pace: Pace) -> Result<Buried, LifecycleError> {
        let maker = |key: &KeyRecord| KeyId::parse(&key.created_by).ok();
        let makers: BTreeSet<KeyId> = keys.iter().filter_map(|key| maker(&key.record)).collect();
        let mut gone = self.makers_of_gone(makers.into_iter().collect()).await?;
        let mut leaving = Vec::with_capacity(keys.len());
        // A maker comes before what it has made, and the store lets none go behind one that stays: so each stone names a maker
        // that was there when it was put, as far as that is known.
        for key in keys.into_iter().rev() {
            let maker = maker(&key.record);
            let maker = maker.map_or(maker, |id| gone.get(&id).copied().unwrap_or(maker));
            gone.insert(key.record.id, maker);
            leaving.push(Leaving { key, maker });
        }
        let terms = Terms { own: self.clock.own(), keep: self.settings.keep_ended, pace };
        Ok(self.keeper().graves().bury(leaving, terms).await?)
    }

    /// Those of these keys that are gone, each with its maker.
    async fn makers_of_gone(&self, keys: Vec<KeyId>) -> Result<HashMap<KeyId, Option<KeyId>>, StoreFault> {
        let marks = self.keeper().graves().find(keys.iter().copied().map(Gone::Key).collect()).await?;
        let gone = |(key, mark)| match mark {
            Marked::Gone { maker } => Some((key, maker)),
            Marked::No | Marked::Unproven => None,
        };
        Ok(keys.into_iter().zip(marks).filter_map(gone).collect())
    }

    /// Those of these keys that are gone, with their makers that are gone, and so on: each with the key that made it.
    pub(super) async fn lineage_of_gone(
        &self,
        keys: Vec<KeyId>,
    ) -> Result<HashMap<KeyId, KeyId>, StoreFault> {
        let (mut lineage, mut asked) = (HashMap::new(), keys);
        for _ in 0..STEPS {
            let found = self.makers_of_gone(asked).await?;
            let made = found.into_iter().filter_map(|(key, maker)| Some((key, maker?)));
            let made: Vec<(KeyId, KeyId)> = made.filter(|(key, _)| !lineage.contains_key(key)).collect();
            if made.is_empty() {
                break;
            }
            asked = made.iter().map(|(_, maker)| *maker).collect();
            lineage.extend(made);
        }
        Ok(lineage)
    }

    /// Whether a key is gone, of which keygate itself says so.
    pub(super) async fn is_gone(&self, key: KeyId) -> Result<bool, StoreFault> {
        Ok(self.makers_of_gone(vec![key]).await?.contains_key(&key))
    }

    /// Which of these keys cannot come in because what they are about is gone.
    pub(super) async fn gone_among(
        &self,
        keys: &[MovedKey],
        records: &[(usize, KeyRecord)],
    ) -> Result<Vec<bool>, LifecycleError> {
        let (mut names, mut of) = (Vec::new(), Vec::new());
        for (at, (n, record)) in records.iter().enumerate() {
            let moved = &keys[*n];
            // A secret that came as plain SHA-256 may be gone under another pepper than the one that is in force.
            let plain = [moved.sha256, moved.old_secret.as_ref().and_then(|old| old.sha256)];
            let digests = |sha256: &Digest| self.settings.peppers.digests(sha256);
            let plain = plain.iter().flatten().flat_map(digests).map(Gone::Secret);
            for name in record.names().chain(plain) {
                names.push(name);
                of.push(at);
            }
        }
        let mut gone = vec![false; records.len()];
        let marks = self.keeper().graves().find(names).await?;
        of.into_iter().zip(marks).filter(|(_, mark)| *mark != Marked::No).for_each(|(at, _)| gone[at] = true);
        Ok(gone)
    }
}
