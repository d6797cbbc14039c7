//! The lists of keys beside those that every release keeps: by environment, and of the live ones. A mutation enters a key
//! into them. A gateway of an older release, which may run beside this one, does not; what it has left out is entered
//! when such a list is needed.

use super::Inner;
use super::reads::PAGE;
use super::scripts::Call;
use crate::store::StoreFault;
use crate::store::indexes::{Indexed, Live, Room};
use crate::store::unreadable::id_of;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::record::{KeyRecord, Versioned};

impl Inner {
    /// Enters the keys of an organisation into its lists: all of them, or from the newest on until none is missing.
    pub(super) async fn index(&self, org: OrgId, whole: bool) -> Result<(), StoreFault> {
        let mut after: Option<KeyId> = None;
        loop {
            let (all, records) = (self.names.keys_of(org), self.names.with("id:"));
            let page = self.newest::<KeyRecord>(all, records, after.map(|id| id.to_string()), PAGE).await?;
            after = page.last().map(id_of);
            let places = self.lists_of(org);
            // What cannot be read stays out of the lists of the environments.
            let call = self.writing(&self.scripts.index, places);
            let call = page.iter().flatten().fold(call, |call, Versioned { rev, record }| {
                let (name, id, indexed) =
                    (self.names.key(record.id), record.id.to_string(), Indexed::from(record));
                let call = call.arg("key").key(name).key(self.names.org(org));
                let call = call.arg(rev.to_be_bytes()).arg("").arg(id).arg("").arg("").arg("");
                self.list_key(call, org, &indexed)
            });
            let entered = self.write(&call).await?.text().map_err(|error| self.fault(error))?;
            if page.len() < PAGE || !whole && entered.as_deref() == Some("all") {
                return Ok(());
            }
        }
    }

    /// The lists by which it shows whether a key is missing.
    pub(super) fn lists_of(&self, org: OrgId) -> [String; 3] {
        let [live, test] =
            [Environment::Live, Environment::Test].map(|environment| self.names.keys_in(org, environment));
        [self.names.keys_of(org), live, test]
    }

    /// The end of a part for a key: until when it is live, and the lists that it is entered into. A key that no key has
    /// made is entered twice into the same one.
    pub(super) fn list_key<'s>(&self, call: Call<'s>, org: OrgId, key: &Indexed) -> Call<'s> {
        let (names, live) = (&self.names, self.names.live_keys(org));
        let made = key.maker.map_or_else(|| live.clone(), |maker| names.made_by(org, maker));
        let call = call.arg(until(key.live)).arg(names.keys()).arg(names.keys_of(org));
        call.arg(names.keys_in(org, key.environment)).arg(live).arg(made)
    }

    pub(super) fn room_part<'s>(&self, call: Call<'s>, org: OrgId, room: &Room) -> Call<'s> {
        let Room { now, most, maker, most_of_maker, pace } = room;
        let call = call.arg("room").key(self.names.live_keys(org)).key(self.names.made_by(org, *maker));
        let call = call.key(self.names.quota(&pace.name));
        let call = self.lists_of(org).into_iter().fold(call, Call::key);
        let call = call.arg(now.0.to_string()).arg(most.to_string()).arg(most_of_maker.to_string());
        call.arg(pace.limit.to_string()).arg(pace.window.as_millis().to_string())
    }
}

/// Until when a key is live, as the scripts read it.
fn until(live: Live) -> String {
    match live {
        Live::Revoked => String::new(),
        Live::Until(end) => end.0.to_string(),
        Live::Always => "inf".to_owned(),
    }
}
