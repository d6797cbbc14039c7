//! The caller: what authentication makes of a request's credentials.

use std::cell::OnceCell;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use super::headers::Identity;
use super::shares::OfOrg;
use crate::lifecycle::CallingKey;
use crate::policy::decision::Asker;
use crate::store::Found;
use crate::store::cache::{self, Known};
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

/// Values that are derived from a key once, and used on every request.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) common: Arc<Common>,
    /// What the key's organisation has in flight on this thread; there from the first forwarded request on.
    pub(super) of_org: OnceCell<Rc<OfOrg>>,
}

impl cache::Prepared for Prepared {
    type Common = Common;

    fn of(common: Arc<Common>) -> Self {
        Self { common, of_org: OnceCell::new() }
    }
}

/// What all threads have of a key.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) identity: Identity,
    pub(super) noted: Noted,
}

impl From<&Found> for Common {
    fn from(found: &Found) -> Self {
        Self { identity: Identity::from(found), noted: Noted::default() }
    }
}

/// The routes of one word.
const OF_A_WORD: usize = u64::BITS as usize;

/// The uses of a key that were noted in the present minute, by any thread. Where the minute begins at two threads at once, a use
/// can be noted twice, or not on this route in this minute.
#[derive(Debug, Default)]
pub(super) struct Noted {
    minute: AtomicU64,
    /// One bit for each route, by its number.
    first: AtomicU64,
    others: OnceLock<Box<[AtomicU64]>>,
    /// Whether a browser has sent the key.
    pub(super) in_browser: AtomicBool,
}

impl Noted {
    /// Notes a use on a route, of so many; tells whether it is the first in this minute.
    pub(super) fn is_new(&self, at: UnixMillis, route: usize, of: usize) -> bool {
        let minute = at.0 / MINUTE;
        if self.minute.load(Ordering::Relaxed) != minute
            && self.minute.swap(minute, Ordering::Relaxed) != minute
        {
            self.words().for_each(|word| word.store(0, Ordering::Relaxed));
        }
        // After a reload there may be more routes than at the first use. Those are noted each time.
        let Some(word) = self.word(route / OF_A_WORD, of) else { return true };
        let bit = 1 << (route % OF_A_WORD);
        // Reading first: what threads only read, their processors need not pass to each other.
        word.load(Ordering::Relaxed) & bit == 0 && word.fetch_or(bit, Ordering::Relaxed) & bit == 0
    }

    fn word(&self, number: usize, routes: usize) -> Option<&AtomicU64> {
        let Some(other) = number.checked_sub(1) else { return Some(&self.first) };
        let made = || (OF_A_WORD..routes).step_by(OF_A_WORD).map(|_| AtomicU64::new(0)).collect();
        self.others.get_or_init(made).get(other)
    }

    fn words(&self) -> impl Iterator<Item = &AtomicU64> {
        std::iter::once(&self.first).chain(self.others.get().into_iter().flatten())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_noted_once_a_minute_for_each_route() {
        let noted = Noted::default();
        let minute = |n: u64| UnixMillis(n * MINUTE + 17);
        let is_new = |at, route| noted.is_new(at, route, 140);
        assert!(is_new(minute(9), 3));
        assert!(!is_new(minute(9), 3));
        assert!(is_new(minute(9), 130) && is_new(minute(9), 139) && is_new(minute(9), 64));
        assert!(!is_new(minute(9), 130) && !is_new(minute(9), 139) && !is_new(minute(9), 64));
        assert!(is_new(minute(10), 3) && is_new(minute(10), 130), "a minute later");
        assert!(noted.is_new(minute(10), 200, 300) && noted.is_new(minute(10), 200, 300), "since a reload");
    }
}
