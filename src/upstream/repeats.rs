//! How many requests may be sent twice, so that repetition does not multiply the load of servers that are in trouble.
//!
//! A tenth of all requests, and a fiftieth for the requests of one organisation: a hostile one, whose requests are never answered,
//! cannot spend what all have. What was not sent is not counted: it costs its server nothing. Each thread counts its own
//! requests.
//!
//! Where there are few requests, a few more do no harm, and all of them may meet a server that closes its kept
//! connections: so there is a number that may be sent twice in any case.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;

use crate::vocabulary::id::OrgId;

/// The part of all requests that may be sent twice, and that of one organisation, as divisors.
const OF_ALL: u64 = 10;
const OF_ONE: u64 = 5 * OF_ALL;
/// What may be sent twice in any case, within what is [remembered](Repeats::tick).
const LEAST: u64 = 100;
const LEAST_OF_ONE: u64 = LEAST / 2;
/// The part that is forgotten each second, as a divisor.
const FORGOTTEN: u64 = 8;
/// What one request counts, so that parts of it can be forgotten.
const ONE: u64 = 1 << 16;

/// The requests of one thread to the servers of one environment of an upstream, and those of them that were sent twice.
#[derive(Debug, Default)]
pub(super) struct Repeats {
    requests: Cell<u64>,
    repeated: RefCell<Repeated>,
}

#[derive(Debug, Default)]
struct Repeated {
    all: u64,
    /// By organisation; those without a key are one.
    of: HashMap<Option<OrgId>, u64>,
}

impl Repeats {
    /// A request is sent for the first time.
    pub(super) fn note_request(&self) {
        self.requests.set(self.requests.get() + ONE);
    }

    /// Whether a request of this organisation may be sent twice. It counts then.
    pub(super) fn take(&self, org: Option<OrgId>) -> bool {
        let requests = self.requests.get();
        let mut repeated = self.repeated.borrow_mut();
        let of_one = repeated.of.get(&org).copied().unwrap_or_default();
        let is_free = repeated.all < (requests / OF_ALL).max(LEAST * ONE)
            && of_one < (requests / OF_ONE).max(LEAST_OF_ONE * ONE);
        if is_free {
            repeated.all += ONE;
            repeated.of.insert(org, of_one + ONE);
        }
        is_free
    }

    /// To be called once a second: an eighth of what was counted is forgotten.
    pub(super) fn tick(&self) {
        let left = |count: u64| count - count.div_ceil(FORGOTTEN);
        self.requests.set(left(self.requests.get()));
        let mut repeated = self.repeated.borrow_mut();
        repeated.all = left(repeated.all);
        repeated.of.values_mut().for_each(|count| *count = left(*count));
        repeated.of.retain(|_, count| *count > 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn org(number: u8) -> Option<OrgId> {
        Some(OrgId::from_bytes([number; 16]))
    }

    /// How many of a thousand the organisations may send twice, each as many as it can.
    fn taken(repeats: &Repeats, orgs: u8) -> usize {
        (0..orgs).flat_map(|number| vec![org(number); 1000]).filter(|org| repeats.take(*org)).count()
    }

    fn after(requests: usize) -> Repeats {
        let repeats = Repeats::default();
        (0..requests).for_each(|_| repeats.note_request());
        repeats
    }

    #[test]
    fn a_tenth_of_all_requests_may_be_sent_twice_and_a_fifth_of_that_for_one_organisation() {
        for (orgs, most) in [(1, 200), (3, 600), (5, 1000), (9, 1000)] {
            assert_eq!(taken(&after(10_000), orgs), most, "{orgs} organisations");
        }
    }

    #[test]
    fn where_there_are_few_requests_some_may_be_sent_twice_in_any_case() {
        assert_eq!((taken(&after(0), 1), taken(&after(0), 9)), (50, 100));
    }

    #[test]
    fn what_was_counted_is_forgotten_and_nobody_is_remembered_for_ever() {
        let repeats = after(10_000);
        assert_eq!(taken(&repeats, 9), 1000);
        assert!(!repeats.take(org(9)), "all is spent");
        (0..8).for_each(|_| repeats.tick());
        assert!(!repeats.take(org(9)), "the requests are forgotten too");
        (0..1000).for_each(|_| repeats.note_request());
        assert_eq!(taken(&repeats, 9), 100);
        (0..200).for_each(|_| repeats.tick());
        assert_eq!(repeats.requests.get(), 0);
        assert!(repeats.repeated.borrow().of.is_empty());
        assert_eq!(taken(&repeats, 1), 50);
    }
}
