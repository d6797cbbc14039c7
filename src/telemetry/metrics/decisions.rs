//! Decisions about keys: found or refused, later cut, and which level of the cache answered.

use std::sync::atomic::AtomicU64;

use prometheus::proto::MetricFamily;

use super::cell::{add, read};
use super::family::{counter, counters};
use crate::vocabulary::cache_level::Level;
use crate::vocabulary::reason::Reason;

/// One thread's counts of decisions.
#[derive(Debug)]
pub(super) struct Decisions {
    authenticated: AtomicU64,
    /// By [`Reason`].
    refused: [AtomicU64; Reason::ALL.len()],
    /// By [`Reason`].
    cut: [AtomicU64; Reason::ALL.len()],
    /// By [`Level`].
    lookups: [AtomicU64; Level::ALL.len()],
}

impl Decisions {
    pub(super) const fn new() -> Self {
        Self {
            authenticated: AtomicU64::new(0),
            refused: [const { AtomicU64::new(0) }; Reason::ALL.len()],
            cut: [const { AtomicU64::new(0) }; Reason::ALL.len()],
            lookups: [const { AtomicU64::new(0) }; Level::ALL.len()],
        }
    }

    pub(super) fn authenticated(&self) {
        add(&self.authenticated, 1);
    }

    pub(super) fn refused(&self, reason: Reason) {
        add(&self.refused[reason as usize], 1);
    }

    pub(super) fn cut(&self, reason: Reason) {
        add(&self.cut[reason as usize], 1);
    }

    pub(super) fn looked_up(&self, level: Level) {
        add(&self.lookups[level as usize], 1);
    }
}

pub(super) fn families<'t>(threads: &(impl Iterator<Item = &'t Decisions> + Clone)) -> [MetricFamily; 6] {
    let sum = |cell: &dyn Fn(&Decisions) -> &AtomicU64| -> u64 {
        threads.clone().map(|decisions| read(cell(decisions))).sum()
    };
    let authenticated = ([("reason", "authenticated")], sum(&|thread| &thread.authenticated));
    let decided = Reason::ALL.into_iter().filter(|reason| reason.is_decision());
    let refused = decided
        .map(|reason| ([("reason", reason.as_str())], sum(&|thread| &thread.refused[reason as usize])));
    let unsafe_messages = Reason::ALL.into_iter().filter(|reason| reason.is_of_message());
    let unsafe_messages = unsafe_messages
        .map(|reason| ([("reason", reason.as_str())], sum(&|thread| &thread.refused[reason as usize])));
    let crowded = Reason::ALL.into_iter().filter(|reason| reason.is_of_room());
    let crowded = crowded
        .map(|reason| ([("reason", reason.as_str())], sum(&|thread| &thread.refused[reason as usize])));
    let cut = Reason::ALL.into_iter().filter_map(|reason| {
        let n = sum(&|thread| &thread.cut[reason as usize]);
        (n > 0 || CUT_REASONS.contains(&reason)).then_some(([("reason", reason.as_str())], n))
    });
    let lookups = Level::ALL
        .into_iter()
        .map(|level| ([("result", level.as_str())], sum(&|thread| &thread.lookups[level as usize])));
    [
        counters(
            "keygate_auth_decisions_total",
            "The results of authentication and authorisation.",
            std::iter::once(authenticated).chain(refused),
        ),
        counters(
            "keygate_messages_refused_total",
            "Requests refused for the message itself: malformed, ambiguous, too large, incomplete.",
            unsafe_messages,
        ),
        counters(
            "keygate_requests_crowded_total",
            "Requests answered with 503 because there was no room for them: their client had its share in flight, the connections to upstreams were used up, the limit of their upstream was reached, or HTTP/2 held too many requests.",
            crowded,
        ),
        counters(
            "keygate_answers_cut_total",
            "Answers and tunnels that were ended because their key lost its right while they lasted, or they lasted for as long as their route allows.",
            cut,
        ),
        counters(
            "keygate_cache_lookups_total",
            "Lookups of keys, by the level of the cache that answered.",
            lookups,
        ),
        counter(
            "keygate_stale_served_total",
            "Requests let through on a stale key while the store could not answer.",
            sum(&|thread| &thread.lookups[Level::Stale as usize]),
        ),
    ]
}

/// For these reasons an answer is known to be ended while it lasts, so their series begin at 0. Another
/// reason has a series once it occurs.
const CUT_REASONS: [Reason; 10] = [
    Reason::KeyUnknown,
    Reason::KeyRevoked,
    Reason::KeyDisabled,
    Reason::KeyExpired,
    Reason::KeyRotated,
    Reason::OrganisationSuspended,
    Reason::AddressNotAllowed,
    Reason::ScopeMissing,
    Reason::StoreUnavailable,
    Reason::TotalTimeout,
];
