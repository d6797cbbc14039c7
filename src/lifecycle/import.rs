//! Importing keys from elsewhere, and exporting them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::json;
use tokio::task::JoinSet;

use super::Lifecycle;
use super::audit::Draft;
use super::error::LifecycleError;
use super::moved::{Imported, ImportedKey, MovedKey, compare, export};
use super::principal::Origin;
use super::search::{answer, find_digest};
use crate::store::unreadable::Unreadable;
use crate::store::{CommitError, KeysOf, Store, StoreFault};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Digest;
use crate::vocabulary::key::admission::{Attempt, Dead, Refusal, admit};
use crate::vocabulary::key::record::{KeyRecord, OrgRecord};

/// Lookups under way at once while keys are compared with those in the store. A store takes its commands in turn, so
/// more would wait, and delay those that requests need.
const LOOKUPS: usize = 64;
/// What is told of a line whose id or secret is taken.
const OTHERS: &str = "its id or its secret is another key's";
/// What is told of a line whose id or secret a key had that is gone.
const GONE: &str = "its id or its secret is of a key that has ended: a key that is gone does not come back";

impl Lifecycle {
    /// Imports keys, each on its own; the outcomes are in their order. A key that is in the store already, with the
    /// same fields, stays as it is, so repeating an import is safe. `rehearsal` changes nothing and returns the outcomes
    /// that an import would have; collisions between the keys are found by a [`Rehearsal`](super::Rehearsal).
    ///
    /// # Errors
    /// When the store cannot answer; then some of the keys may have been imported.
    pub async fn import_keys(
        &self,
        origin: &Origin,
        keys: Vec<MovedKey>,
        rehearsal: bool,
    ) -> Result<Vec<ImportedKey>, LifecycleError> {
        if !rehearsal {
            // The store must say what its first keys begin with.
            self.propose_prefix().await?;
        }
        let mut outcomes = Outcomes::new(keys.len(), self.orgs_of(origin, &keys).await?);
        let mut records = Vec::with_capacity(keys.len());
        let vocabulary = self.vocabulary();
        for (n, moved) in keys.iter().enumerate() {
            match self.read_moved(origin, &vocabulary, moved) {
                Ok(record) if !outcomes.orgs.contains_key(&record.org) => {
                    outcomes.refuse(n, LifecycleError::NoOrg(record.org).to_string());
                }
                Ok(record) => {
                    outcomes.judge(n, &record, self.now());
                    records.push((n, record));
                }
                Err(errors) => outcomes.refuse(n, LifecycleError::Invalid(errors).to_string()),
            }
        }
        // If the first key is there, the import was probably done before. Then all keys are looked up first, so that
        // the trail does not count keys that were there; for a new import that would only be slow.
        let done_before = !self.taken(&keys, &records[..records.len().min(1)]).await?.is_empty();
        // A secret can be in the store under an older pepper, where its new digest does not meet it.
        let has_older = self.settings.peppers.all().len() > 1;
        if rehearsal || done_before || has_older {
            records = self.settle_taken(origin, &keys, records, &mut outcomes).await?;
            records = self.refuse_gone(&keys, records, &mut outcomes).await?;
        }
        if !rehearsal {
            records = self.insert(origin, records, &mut outcomes).await?;
            records = self.settle_taken(origin, &keys, records, &mut outcomes).await?;
            records = self.refuse_gone(&keys, records, &mut outcomes).await?;
            for (n, _) in records {
                outcomes.refuse(n, OTHERS);
            }
        }
        Ok(outcomes.finish())
    }

    /// The organisations of these keys that exist for the principal.
    async fn orgs_of(
        &self,
        origin: &Origin,
        keys: &[MovedKey],
    ) -> Result<BTreeMap<OrgId, OrgRecord>, LifecycleError> {
        let named = keys.iter().filter_map(|key| key.organization_id);
        let ids: BTreeSet<OrgId> = named.filter(|id| origin.principal.reaches(*id)).collect();
        let mut orgs = BTreeMap::new();
        for id in ids {
            if let Some(org) = self.store.org(id).await? {
                orgs.insert(id, org.record);
            }
        }
        Ok(orgs)
    }

    /// Inserts records, and returns those whose id or secret is taken.
    async fn insert(
        &self,
        origin: &Origin,
        records: Vec<(usize, KeyRecord)>,
        outcomes: &mut Outcomes,
    ) -> Result<Vec<(usize, KeyRecord)>, LifecycleError> {
        // The audit record comes first: if this process ends in between, the store has no key that the trail does not
        // count.
        let mut counts: BTreeMap<OrgId, u64> = BTreeMap::new();
        for (_, record) in &records {
            *counts.entry(record.org).or_default() += 1;
        }
        for (org, count) in counts {
            self.record(Trail::Org(org), origin, || {
                Draft::of_org(AuditKind::KeysImported, org).after(json!({ "keys": count }))
            })
            .await?;
        }
        let inserted = self.store.import(records.iter().map(|(_, record)| record.clone()).collect()).await?;
        let mut taken = Vec::new();
        for ((n, record), inserted) in records.into_iter().zip(inserted) {
            match inserted {
                Ok(()) => outcomes.settle(n, Imported::New),
                Err(CommitError::Exists) => taken.push((n, record)),
                Err(CommitError::Fault(fault)) => return Err(fault.into()),
                Err(error) => outcomes.refuse(n, error.to_string()),
            }
        }
        Ok(taken)
    }

    /// Sets the outcomes of keys whose id or secret is in the store already, and returns the others.
    async fn settle_taken(
        &self,
        origin: &Origin,
        keys: &[MovedKey],
        records: Vec<(usize, KeyRecord)>,
        outcomes: &mut Outcomes,
    ) -> Result<Vec<(usize, KeyRecord)>, LifecycleError> {
        let mut taken = self.taken(keys, &records).await?;
        let mut rest = Vec::new();
        for (n, record) in records {
            match taken.remove(&n) {
                // Of a key that the operator may not see nothing is told.
                Some(there) if !origin.principal.reaches(there.org) => outcomes.refuse(n, OTHERS),
                Some(there) => {
                    outcomes.settle(n, compare(&keys[n], &record, &there));
                    outcomes.judge(n, &there, self.now());
                }
                None => rest.push((n, record)),
            }
        }
        Ok(rest)
    }

    /// Refuses what must not come back, and returns the others.
    async fn refuse_gone(
        &self,
        keys: &[MovedKey],
        mut records: Vec<(usize, KeyRecord)>,
        outcomes: &mut Outcomes,
    ) -> Result<Vec<(usize, KeyRecord)>, LifecycleError> {
        let mut gone = self.gone_among(keys, &records).await?.into_iter();
        records.retain(|(n, _)| {
            let is_gone = gone.next() == Some(true);
            if is_gone {
                outcomes.refuse(*n, GONE);
            }
            !is_gone
        });
        Ok(records)
    }

    /// The keys in the store with the secrets, else the ids, of these records. Ids that were just drawn are not looked
    /// up.
    async fn taken(
        &self,
        keys: &[MovedKey],
        records: &[(usize, KeyRecord)],
    ) -> Result<BTreeMap<usize, KeyRecord>, LifecycleError> {
        let (mut looking, mut taken) = (JoinSet::new(), BTreeMap::new());
        let keep = |found: Option<(usize, Option<KeyRecord>)>, taken: &mut BTreeMap<_, _>| {
            if let Some((n, Some(there))) = found {
                taken.insert(n, there);
            }
        };
        for (n, record) in records {
            if looking.len() == LOOKUPS {
                keep(next(&mut looking).await?, &mut taken);
            }
            let (n, moved, store) = (*n, &keys[*n], Arc::clone(&self.store));
            let (id, old) = (moved.id, moved.old_secret.as_ref());
            let plain: Vec<Digest> =
                [moved.sha256, old.and_then(|old| old.sha256)].into_iter().flatten().collect();
            let digests: Vec<Digest> = record.secrets.iter().map(|secret| secret.digest).collect();
            looking
                .spawn(async move { find_either(&store, plain, digests, id).await.map(|there| (n, there)) });
        }
        while !looking.is_empty() {
            keep(next(&mut looking).await?, &mut taken);
        }
        Ok(taken)
    }

    /// At most `limit` keys of one organisation or of all, after the key `after`, in the form in which they can be
    /// imported elsewhere; those in between that cannot be read; and whether there are more. With a pepper they can be
    /// imported only under the same pepper.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn export_keys(
        &self,
        origin: &Origin,
        org: Option<OrgId>,
        after: Option<KeyId>,
        limit: usize,
    ) -> Result<(Vec<MovedKey>, Vec<Unreadable<KeyId>>, bool), LifecycleError> {
        let page = self.list_keys(origin, org.map_or(KeysOf::All, KeysOf::Org), after, limit).await?;
        let (pepper_id, now) = (self.settings.digester.pepper_id(), self.now());
        let prefixes = self.prefixes();
        let export = |key| export(key, prefixes.first(), pepper_id.as_deref(), now);
        let keys = page.keys.iter().filter_map(export);
        Ok((keys.collect(), page.unreadable, page.has_more))
    }
}

/// What has become of the keys of an import so far, in their order.
struct Outcomes {
    outcomes: Vec<Option<Imported>>,
    unusable: Vec<Option<String>>,
    orgs: BTreeMap<OrgId, OrgRecord>,
}

impl Outcomes {
    fn new(count: usize, orgs: BTreeMap<OrgId, OrgRecord>) -> Self {
        Self { outcomes: vec![None; count], unusable: vec![None; count], orgs }
    }

    fn settle(&mut self, n: usize, outcome: Imported) {
        self.outcomes[n] = Some(outcome);
    }

    fn refuse(&mut self, n: usize, reason: impl Into<String>) {
        self.settle(n, Imported::refused(reason));
    }

    /// Notes whether a key could be used by its newest secret now, if that has a shape that is accepted.
    fn judge(&mut self, n: usize, key: &KeyRecord, now: UnixMillis) {
        self.unusable[n] = why_unusable(key, self.orgs.get(&key.org), now).map(str::to_owned);
    }

    fn finish(self) -> Vec<ImportedKey> {
        let of = |(outcome, unusable): (Option<Imported>, _)| ImportedKey {
            outcome: outcome.unwrap_or(Imported::New),
            unusable,
        };
        self.outcomes.into_iter().zip(self.unusable).map(of).collect()
    }
}

fn why_unusable(key: &KeyRecord, org: Option<&OrgRecord>, now: UnixMillis) -> Option<&'static str> {
    let (Some(secret), Some(org)) = (key.secrets.first(), org) else { return Some("without a secret") };
    let attempt = Attempt { digest: &secret.digest, environment: key.environment, needs: None, now };
    // An operator asks, so no client's address counts.
    match admit(key, org, &attempt, || None).err()? {
        Refusal::Dead(Dead::Revoked) => Some("revoked"),
        Refusal::Dead(Dead::Disabled) => Some("disabled"),
        Refusal::Dead(Dead::Expired) => Some("expired"),
        Refusal::Dead(Dead::SecretEnded) => Some("replaced"),
        Refusal::OrganisationSuspended => Some("of a suspended organisation"),
        Refusal::OrganisationPending => Some("of an organisation that is not verified"),
        // These do not come up: its own environment and no address and no scope were asked for.
        Refusal::Dead(Dead::WrongEnvironment) | Refusal::Address | Refusal::MissingScope(_) => None,
    }
}

/// The next answer; a fault for a task that panicked.
async fn next<T: 'static>(looking: &mut JoinSet<Result<T, StoreFault>>) -> Result<Option<T>, StoreFault> {
    match looking.join_next().await {
        None => Ok(None),
        Some(Ok(found)) => found.map(Some),
        Some(Err(error)) => Err(StoreFault::failed(error)),
    }
}

/// The key that a secret opens, else that has a digest, else the id. `plain` is the SHA-256 of secrets, which the store looks for
/// under every pepper.
async fn find_either(
    store: &Arc<dyn Store>,
    plain: Vec<Digest>,
    digests: Vec<Digest>,
    id: Option<KeyId>,
) -> Result<Option<KeyRecord>, StoreFault> {
    for sha256 in plain {
        if let Some(found) = answer(store.lookup_secret(sha256).await)? {
            return Ok(Some(found.key.clone()));
        }
    }
    for digest in digests {
        if let Some(found) = find_digest(store, digest).await? {
            return Ok(Some(found.key.clone()));
        }
    }
    match id {
        Some(id) => Ok(store.key(id).await?.map(|key| key.record)),
        None => Ok(None),
    }
}
