//! Records that the store has in an older state than this gateway remembers: they are written again.

use super::Lifecycle;
use super::audit::Draft;
use super::change::Decided;
use super::error::LifecycleError;
use super::keys::subjects_of;
use super::orgs::describe_org;
use super::principal::Origin;
use super::turn::Lane;
use crate::store::events::Subject;
use crate::store::keeper::Place;
use crate::store::{Change, Mutation};
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, Versioned};

const REASON: &str = "the store had an older record than a gateway remembered";

impl Lifecycle {
    /// Writes a record again as this gateway remembers it, with an audit record that says so. Nothing happens if the store
    /// has a newer one by now.
    ///
    /// # Errors
    /// When the store cannot answer.
    pub async fn restore(&self, place: Place) -> Result<(), LifecycleError> {
        let origin = Origin { reason: Some(REASON.to_owned()), ..Origin::gateway() };
        match place {
            Place::Org(org) => {
                let line = Lane::taking(&origin).of(Trail::Org(org));
                let load = async || self.store.org(org).await.map_err(LifecycleError::from);
                let decide = |found: &Option<Versioned<OrgRecord>>, _| {
                    let found = found.as_ref().filter(|_| self.keeper().is_set_back(place));
                    Ok(found.map_or(Decided::nothing(()), restore_org))
                };
                self.change(line, &origin, None, load, decide).await?;
            }
            Place::Key(key) => {
                let Some(found) = self.store.key(key).await? else { return Ok(()) };
                let line = Lane::taking(&origin).of(Trail::Org(found.record.org));
                let load = async || self.store.key(key).await.map_err(LifecycleError::from);
                let decide = |found: &Option<Versioned<KeyRecord>>, _| {
                    let found = found.as_ref().filter(|_| self.keeper().is_set_back(place));
                    Ok(found.map_or(Decided::nothing(()), |found| self.restore_key(found)))
                };
                self.change(line, &origin, None, load, decide).await?;
            }
        }
        Ok(())
    }

    fn restore_key(&self, Versioned { rev, record }: &Versioned<KeyRecord>) -> Decided<()> {
        let kind = match (record.revoked_at, record.disabled_at) {
            (Some(_), _) => AuditKind::KeyRevoked,
            (None, Some(_)) => AuditKind::KeyDisabled,
            (None, None) => AuditKind::KeyUpdated,
        };
        let draft = Draft::of_key(kind, record).after(self.describe(record));
        let mutation = Mutation {
            subjects: subjects_of(record),
            key: Some(Change::Update { rev: *rev, record: record.clone() }),
            ..Mutation::default()
        };
        Decided::commit(mutation, draft, ())
    }
}

fn restore_org(Versioned { rev, record }: &Versioned<OrgRecord>) -> Decided<()> {
    let kind = if record.suspended_at.is_some() { AuditKind::OrgSuspended } else { AuditKind::OrgResumed };
    let draft = Draft::of_org(kind, record.id).after(describe_org(record));
    let mutation = Mutation {
        subjects: vec![Subject::Org(record.id)],
        org: Some(Change::Update { rev: *rev, record: record.clone() }),
        ..Mutation::default()
    };
    Decided::commit(mutation, draft, ())
}
