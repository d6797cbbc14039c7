//! Keys, read.

use crate::lifecycle::Lifecycle;
use crate::lifecycle::authority::Standing;
use crate::lifecycle::error::LifecycleError;
use crate::lifecycle::principal::{Origin, Principal};
use crate::store::KeysOf;
use crate::store::unreadable::{Unreadable, id_of};
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::record::KeyRecord;

/// Keys read at once while a list is put together.
const PAGE: usize = 256;

/// A part of a list of keys, newest first.
#[derive(Debug)]
pub struct KeyPage {
    pub keys: Vec<KeyRecord>,
    /// Those in between whose records cannot be read, for operators: whose they are cannot be proved.
    pub unreadable: Vec<Unreadable<KeyId>>,
    pub has_more: bool,
}

impl Lifecycle {
    /// A key that the principal may see.
    ///
    /// # Errors
    /// [`LifecycleError::NoKey`] also for a key that the principal may not see.
    pub async fn key(&self, origin: &Origin, id: KeyId) -> Result<KeyRecord, LifecycleError> {
        Ok(self.load_target(origin, id).await?.key.record)
    }

    /// At most `limit` keys that the principal may see, newest first, after the key `after`: for an operator those that
    /// are asked for, for a key those of its organisation.
    ///
    /// # Errors
    /// When the store cannot answer, or the caller may not act.
    pub async fn list_keys(
        &self,
        origin: &Origin,
        of: KeysOf,
        mut after: Option<KeyId>,
        limit: usize,
    ) -> Result<KeyPage, LifecycleError> {
        let standing = Standing::load(&self.store, origin).await?;
        let authority = standing.admit(origin, self.now())?;
        let of = match &origin.principal {
            Principal::Key(calling) if calling.environment == Environment::Test => {
                KeysOf::Environment(calling.org, Environment::Test)
            }
            Principal::Key(calling) => KeysOf::Org(calling.org),
            Principal::OperatorOf(_, orgs) => within(orgs, of)?,
            Principal::Operator(_) | Principal::Stranger | Principal::Gateway => of,
        };
        let is_operator = matches!(&origin.principal, Principal::Operator(_) | Principal::OperatorOf(..));
        let (mut keys, mut unreadable) = (Vec::new(), Vec::new());
        loop {
            let wanted = PAGE.min(limit.saturating_add(1));
            let page = self.store.list_keys(of, after, wanted).await?;
            after = page.last().map(id_of);
            let last = page.len() < wanted;
            for key in page {
                match key {
                    Ok(key) if authority.sees(&key.record) => keys.push(key.record),
                    Ok(_) => {}
                    Err(key) if is_operator => unreadable.push(key),
                    Err(_) => {}
                }
            }
            if keys.len() > limit || last {
                let has_more = keys.len() > limit;
                keys.truncate(limit);
                // What lies behind the last key is told with the next page.
                let end = keys.last().filter(|_| has_more).map(|key: &KeyRecord| key.id);
                unreadable.retain(|key| end.is_none_or(|end| key.id > end));
                return Ok(KeyPage { keys, unreadable, has_more });
            }
        }
    }
}

/// Keys of one of these organisations only: never those of all.
fn within(orgs: &[OrgId], of: KeysOf) -> Result<KeysOf, LifecycleError> {
    match (of, orgs) {
        (KeysOf::Org(org) | KeysOf::Environment(org, _), _) if orgs.contains(&org) => Ok(of),
        (KeysOf::Org(org) | KeysOf::Environment(org, _), _) => Err(LifecycleError::NoOrg(org)),
        (KeysOf::All, [org]) => Ok(KeysOf::Org(*org)),
        (KeysOf::All, _) => Err(LifecycleError::OrgUnnamed),
    }
}
