//! The end of a migration: both stores are read again and compared.

use std::collections::HashMap;
use std::sync::Arc;

use super::MigrationError::{Source, Target};
use super::{MigrationError, Moved, Moving, PAGE, TRAILS, next_keys, next_orgs};
use crate::store::{KeysOf, Lookup};
use crate::vocabulary::audit::Trail;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Digest;
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, Versioned};

impl Moving {
    /// Reads both stores again completely, and compares them.
    pub(super) async fn verify(
        self: &Arc<Self>,
        moved: &mut Moved,
        tell: &mut dyn FnMut(&Moved),
    ) -> Result<(), MigrationError> {
        moved.damaged.extend(self.verify_trail(Trail::Operator).await?);
        let mut after = None;
        while let Some(orgs) = self.orgs_of_both(&mut after).await? {
            let ids: Vec<OrgId> = orgs.iter().map(|org| org.record.id).collect();
            let news = self.source.store.outbox().news(ids.clone()).await.map_err(Source)?;
            if news != self.target.store.outbox().news(ids.clone()).await.map_err(Target)? {
                return Err(differs("the news for the upstream"));
            }
            for ids in ids.chunks(TRAILS) {
                let verify = async |moving: Arc<Self>, org| moving.verify_org(org).await;
                let damaged = self.each(ids.to_vec(), verify).await?;
                moved.damaged.extend(damaged.into_iter().flatten());
                moved.verified += ids.len() as u64;
                tell(moved);
            }
        }
        self.verify_keys(moved, tell).await
    }

    /// The next organisations, if they are the same in both stores.
    async fn orgs_of_both(
        &self,
        after: &mut Option<OrgId>,
    ) -> Result<Option<Vec<Versioned<OrgRecord>>>, MigrationError> {
        let there = self.target.store.orgs(*after, PAGE).await.map_err(Target)?;
        let own = next_orgs(&self.source, after, PAGE).await.map_err(Source)?;
        if !records(own.as_deref().unwrap_or_default()).eq(records(&there)) {
            return Err(differs("the list of organisations"));
        }
        Ok(own)
    }

    /// The trail if it is damaged in both stores alike, which is reported and is no failure.
    async fn verify_trail(&self, trail: Trail) -> Result<Option<Trail>, MigrationError> {
        let verdict = self.target.verify_trail(trail, &[]).await?;
        if verdict.findings.is_empty() && self.rechains {
            return Ok(None);
        }
        let own = self.source.verify_trail(trail, &[]).await?;
        if (own.findings, own.ends, own.checked) != (verdict.findings.clone(), verdict.ends, verdict.checked)
        {
            return Err(differs(format_args!("the audit trail of {trail}")));
        }
        Ok(Some(trail).filter(|_| !verdict.findings.is_empty()))
    }

    /// Compares an organisation's list of keys and its trail.
    async fn verify_org(&self, org: OrgId) -> Result<Option<Trail>, MigrationError> {
        let (mut after, mut after_there) = (None, None);
        loop {
            let own = next_keys(&self.source, Some(org), &mut after).await.map_err(Source)?;
            let own = own.unwrap_or_default();
            let there = self.keys_there(KeysOf::Org(org), &mut after_there, own.len()).await?;
            let ids = |key: &KeyRecord| key.id;
            if !records(&own).map(ids).eq(records(&there).map(ids)) {
                return Err(differs(format_args!("the list of keys of {org}")));
            }
            if own.is_empty() {
                break;
            }
        }
        self.verify_trail(Trail::Org(org)).await
    }

    /// As many keys of the target as the source has, or one where it has no more.
    async fn keys_there(
        &self,
        of: KeysOf,
        after: &mut Option<KeyId>,
        count: usize,
    ) -> Result<Vec<Versioned<KeyRecord>>, MigrationError> {
        let there = self.target.store.keys(of, *after, count.max(1)).await.map_err(Target)?;
        *after = there.last().map(|key| key.record.id).or(*after);
        Ok(there)
    }

    /// Compares every key with its use, and checks that every secret leads to its key.
    async fn verify_keys(
        self: &Arc<Self>,
        moved: &mut Moved,
        tell: &mut dyn FnMut(&Moved),
    ) -> Result<(), MigrationError> {
        let (mut after, mut after_there) = (None, None);
        loop {
            let own = next_keys(&self.source, None, &mut after).await.map_err(Source)?.unwrap_or_default();
            let there = self.keys_there(KeysOf::All, &mut after_there, own.len()).await?;
            let own: Vec<_> = own.into_iter().map(|key| self.convert(key.record)).collect();
            if !own.iter().eq(records(&there)) {
                return Err(differs("the list of keys"));
            }
            if own.is_empty() {
                return Ok(());
            }
            let ids: Vec<KeyId> = own.iter().map(|key| key.id).collect();
            let usage = self.source.store.usage().of(ids.clone()).await.map_err(Source)?;
            if usage != self.target.store.usage().of(ids).await.map_err(Target)? {
                return Err(differs("when keys were used"));
            }
            moved.verified += own.len() as u64;
            let secrets = own.iter().flat_map(|key| key.secrets.iter().map(|secret| (secret.digest, key.id)));
            let secrets: HashMap<Digest, KeyId> = secrets.collect();
            self.each(secrets, async |moving, (digest, key)| {
                match moving.target.store.lookup(digest).await {
                    Lookup::Found(found) if found.key.id == key => Ok(()),
                    Lookup::Found(_) | Lookup::Absent => {
                        Err(differs(format_args!("where a secret of {key} leads")))
                    }
                    Lookup::Unavailable(fault) => Err(Target(fault)),
                }
            })
            .await?;
            tell(moved);
        }
    }
}

fn records<T>(listed: &[Versioned<T>]) -> impl Iterator<Item = &T> {
    listed.iter().map(|listed| &listed.record)
}

fn differs(what: impl std::fmt::Display) -> MigrationError {
    MigrationError::Differs(what.to_string())
}
