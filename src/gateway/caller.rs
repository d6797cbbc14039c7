//! The caller: what authentication makes of a request's credentials.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;

use super::headers::Identity;
use super::shares::OfOrg;
use crate::lifecycle::CallingKey;
use crate::policy::decision::Asker;
use crate::store::Found;
use crate::store::cache::Known;
use crate::vocabulary::clock::UnixMillis;
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::admission::Needs;

const MINUTE: u64 = 60_000;

/// The sender of a request.
#[derive(Debug)]
pub(super) enum Caller {
    /// A sender on a public route. `environment` is the one that its credentials name, if any.
    Anyone { environment: Option<Environment> },
    /// The holder of a valid key.
    Holder(Rc<Known<Prepared>>),
}

impl Caller {
    /// The caller as the policy sees it.
    pub(super) fn asker(&self) -> Asker<'_> {
        match self {
            Self::Anyone { environment } => Asker::Anyone { environment: *environment },
            Self::Holder(known) => {
                let key = &known.found.key;
                Asker::Holder { scopes: &key.scopes, environment: key.environment }
            }
        }
    }

    /// The key that was presented, for a part that decides on it again; `needs` is what was asked of it.
    pub(super) fn calling_key(&self, needs: Needs) -> Option<CallingKey> {
        let Self::Holder(known) = self else { return None };
        let key = &known.found.key;
        let (org, environment) = (known.found.org.id, key.environment);
        Some(CallingKey { id: key.id, org, environment, digest: known.found.digest, needs })
    }
}

/// Values that a thread derives from a key once, and uses on every request.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) identity: Identity,
    pub(super) noted: Noted,
    /// What the key's organisation has in flight on this thread; there from the first forwarded request on.
    pub(super) of_org: OnceCell<Rc<OfOrg>>,
}

impl From<&Found> for Prepared {
    fn from(found: &Found) -> Self {
        Self { identity: Identity::from(found), noted: Noted::default(), of_org: OnceCell::new() }
    }
}

/// The uses of a key that were noted in the present minute.
#[derive(Debug, Default)]
pub(super) struct Noted {
    minute: Cell<u64>,
    /// One bit for each route, by its number.
    routes: RefCell<Vec<u64>>,
    /// Whether a browser has sent the key.
    pub(super) in_browser: Cell<bool>,
}

impl Noted {
    /// Notes a use on a route; tells whether it is the first in this minute.
    pub(super) fn is_new(&self, at: UnixMillis, route: usize) -> bool {
        let minute = at.0 / MINUTE;
        let mut routes = self.routes.borrow_mut();
        if self.minute.replace(minute) != minute {
            routes.clear();
        }
        let (word, bit) = (route / 64, 1 << (route % 64));
        if routes.len() <= word {
            routes.resize(word + 1, 0);
        }
        let before = routes[word];
        routes[word] |= bit;
        before & bit == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_noted_once_a_minute_for_each_route() {
        let noted = Noted::default();
        let minute = |n: u64| UnixMillis(n * MINUTE + 17);
        assert!(noted.is_new(minute(9), 3));
        assert!(!noted.is_new(minute(9), 3));
        assert!(noted.is_new(minute(9), 130));
        assert!(!noted.is_new(minute(9), 130));
        assert!(noted.is_new(minute(10), 3), "a minute later");
    }
}
