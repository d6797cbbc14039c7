//! How many operations are under way at once: for one key, for one organisation and in all, counted in requests and in
//! bytes of their bodies. A request that finds no place is refused with 429 before its body is read.
//!
//! What takes rights away has places of its own and is never refused: where one key or organisation has too many such
//! requests, its further ones wait here, each on its own connection, and nobody else does. A place among those of the
//! organisation is taken when the body has come ([`Place::begin`]): a client that sends it slowly holds up its own key alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::BODY_LEN;
use crate::lifecycle::CallingKey;
use crate::policy::target::Operation;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::network::{ClientNetwork, ClientSite};
use crate::vocabulary::rejection::Rejection;

/// When a refused client may come back. A place becomes free within milliseconds.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// A change of a key whose body is longer than this has a place among the long ones, of its organisation and of all.
const SHORT: u64 = 4 << 10;
/// Long bodies of changes that are read or carried out at once. With 64 KiB each they have 16 MiB.
const LONG_CHANGES: usize = 256;

/// Organisations that pause, before those are forgotten whose pause is over.
const TIDIED: usize = 1024;

/// What an operation does, as far as its places are concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Pool {
    /// New keys, new names.
    Making,
    /// New secrets, which end those that they replace: with one key, a thief's creations must not stand in the way of the
    /// owner's rotation.
    Rotating,
    SigningUp,
    Listing,
    /// One key.
    Reading,
    Revoking,
    /// Changes of a key that may take rights away.
    Narrowing,
    /// Those with long bodies.
    LongNarrowing,
}

/// Whose places are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Whose {
    Key(KeyId),
    Org(OrgId),
    /// For callers without a key.
    Network(ClientNetwork),
    Site(ClientSite),
    Everybodys,
}

/// Places, and bytes of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Amount {
    places: usize,
    bytes: u64,
}

impl Pool {
    const fn of(operation: Operation) -> Self {
        match operation {
            Operation::Signup => Self::SigningUp,
            Operation::CreateKey => Self::Making,
            Operation::RotateKey => Self::Rotating,
            Operation::ListKeys | Operation::ListAuditRecords => Self::Listing,
            Operation::GetOwnKey | Operation::GetKey => Self::Reading,
            Operation::RevokeKey => Self::Revoking,
            Operation::UpdateKey => Self::Narrowing,
        }
    }

    /// The most at once. A key has at most half of its organisation's.
    const fn limit(self, whose: Whose) -> Amount {
        const fn amount(places: usize, kib: u64) -> Amount {
            Amount { places, bytes: kib << 10 }
        }
        const UNLIMITED: Amount = Amount { places: usize::MAX, bytes: u64::MAX };
        match (self, whose) {
            (Self::Making, Whose::Key(_)) => amount(64, 512),
            (Self::Making, Whose::Org(_)) => amount(128, 1 << 10),
            (Self::Making, _) => amount(512, 8 << 10),
            (Self::Rotating, Whose::Key(_)) => amount(64, 256),
            (Self::Rotating, Whose::Org(_)) => amount(128, 512),
            (Self::Rotating, _) => amount(512, 4 << 10),
            (Self::SigningUp, Whose::Network(_)) => amount(64, 512),
            // Who has one site cannot keep all others from signing up.
            (Self::SigningUp, Whose::Site(_)) => amount(128, 2 << 10),
            (Self::SigningUp, _) => amount(256, 4 << 10),
            (Self::Listing, Whose::Key(_)) => amount(16, 0),
            (Self::Listing, Whose::Org(_)) => amount(32, 0),
            (Self::Listing, _) => amount(256, 0),
            (Self::Reading, Whose::Key(_)) => amount(64, 0),
            (Self::Reading, Whose::Org(_)) => amount(128, 0),
            (Self::Reading, _) => amount(1024, 0),
            (Self::Revoking, Whose::Key(_)) => amount(32, 0),
            (Self::Revoking, Whose::Org(_)) => amount(64, 0),
            (Self::Narrowing, Whose::Key(_)) => amount(8, 0),
            (Self::Narrowing, Whose::Org(_)) => amount(16, 0),
            (Self::LongNarrowing, Whose::Org(_)) => amount(4, 0),
            (Self::LongNarrowing, Whose::Everybodys) => amount(LONG_CHANGES, 0),
            (Self::Revoking | Self::Narrowing | Self::LongNarrowing, _) => UNLIMITED,
        }
    }
}

/// All places at this gateway.
#[derive(Debug, Default)]
pub(super) struct Admissions {
    taken: Mutex<HashMap<(Pool, Whose), Amount>>,
    /// The places for which callers wait. Each key and each organisation has its own.
    waited_for: Mutex<HashMap<(Pool, Whose), Arc<Semaphore>>>,
    /// Until when organisations may make no more keys.
    paused: Mutex<HashMap<OrgId, Instant>>,
}

/// The place of an operation. It is free again when this is dropped.
#[derive(Debug)]
pub struct Place {
    admissions: Arc<Admissions>,
    holder: Holder,
    counted: Option<(Pool, u64)>,
    /// What it still needs of a place, for what waits for its places.
    lacks: Option<Lacks>,
    permits: Vec<Permit>,
}

/// The places that a request which takes rights away has not taken yet.
#[derive(Clone, Copy, Debug)]
struct Lacks {
    pool: Pool,
    /// Whether its body may be long.
    is_short: bool,
}

/// Whose request it is: the key and its organisation, or the network of a caller without a key.
#[derive(Clone, Copy, Debug)]
enum Holder {
    Key(KeyId, OrgId),
    Stranger(ClientNetwork),
}

impl Holder {
    fn of(caller: Option<&CallingKey>, address: IpAddr) -> Self {
        caller.map_or_else(
            || Self::Stranger(ClientNetwork::of(address)),
            |caller| Self::Key(caller.id, caller.org),
        )
    }

    /// Everybody in whose name the request takes a place, the narrowest first.
    fn all(self) -> [Whose; 3] {
        let (first, second) = match self {
            Self::Key(key, org) => (Whose::Key(key), Whose::Org(org)),
            Self::Stranger(network) => (Whose::Network(network), Whose::Site(network.site())),
        };
        [first, second, Whose::Everybodys]
    }
}

/// A place that was waited for.
#[derive(Debug)]
struct Permit {
    admissions: Arc<Admissions>,
    of: (Pool, Whose),
    held: Option<OwnedSemaphorePermit>,
}

impl Admissions {
    /// A place for a request whose body has this announced length, in bytes. Only what takes rights away waits.
    ///
    /// # Errors
    /// 429 where all places are taken.
    pub(super) async fn admit(
        self: &Arc<Self>,
        operation: Operation,
        caller: Option<&CallingKey>,
        address: IpAddr,
        length: Option<u64>,
    ) -> Result<Place, Rejection> {
        let (pool, holder) = (Pool::of(operation), Holder::of(caller, address));
        let bytes = if operation.takes_body() { length.unwrap_or(BODY_LEN).min(BODY_LEN) } else { 0 };
        if !operation.takes_away() {
            return self.count(pool, holder, bytes);
        }
        let [first, ..] = holder.all();
        let permits = vec![self.wait((pool, first)).await];
        let lacks = Some(Lacks { pool, is_short: true });
        let mut place = Place { admissions: Arc::clone(self), holder, counted: None, lacks, permits };
        if operation.takes_body() && length.is_some_and(|length| length > SHORT) {
            place.lengthen().await;
        }
        Ok(place)
    }

    /// An organisation has made as many keys as it may make for a while: until then its requests for further ones are
    /// refused without looking at them.
    pub(super) fn pause(&self, org: OrgId, now: Instant, pause: Duration) {
        let mut paused = lock(&self.paused);
        if paused.len() >= TIDIED {
            paused.retain(|_, until| *until > now);
        }
        paused.insert(org, now + pause);
    }

    /// # Errors
    /// 429 for a new key of an organisation that pauses.
    pub(super) fn check_pause(
        &self,
        operation: Operation,
        caller: Option<&CallingKey>,
        now: Instant,
    ) -> Result<(), Rejection> {
        let Some(caller) = caller.filter(|_| operation == Operation::CreateKey) else { return Ok(()) };
        let until = lock(&self.paused).get(&caller.org).copied();
        match until.map(|until| until.saturating_duration_since(now)) {
            Some(left) if !left.is_zero() => Err(Rejection::RateLimited(left)),
            _ => Ok(()),
        }
    }

    fn count(self: &Arc<Self>, pool: Pool, holder: Holder, bytes: u64) -> Result<Place, Rejection> {
        let mut taken = lock(&self.taken);
        let fits = |whose| {
            let limit = pool.limit(whose);
            taken.get(&(pool, whose)).is_none_or(|taken| {
                taken.places < limit.places && taken.bytes.saturating_add(bytes) <= limit.bytes
            })
        };
        if !holder.all().into_iter().all(fits) {
            return Err(Rejection::RateLimited(RETRY_AFTER));
        }
        for whose in holder.all() {
            let taken = taken.entry((pool, whose)).or_insert(Amount { places: 0, bytes: 0 });
            taken.places += 1;
            taken.bytes += bytes;
        }
        drop(taken);
        let counted = Some((pool, bytes));
        Ok(Place { admissions: Arc::clone(self), holder, counted, lacks: None, permits: Vec::new() })
    }

    fn give_back(&self, pool: Pool, holder: Holder, bytes: u64) {
        let mut all = lock(&self.taken);
        for whose in holder.all() {
            if let Entry::Occupied(mut taken) = all.entry((pool, whose)) {
                taken.get_mut().places -= 1;
                taken.get_mut().bytes -= bytes;
                if taken.get().places == 0 {
                    taken.remove();
                }
            }
        }
    }

    async fn wait(self: &Arc<Self>, of: (Pool, Whose)) -> Permit {
        let places = {
            let mut all = lock(&self.waited_for);
            let places = all.entry(of).or_insert_with(|| Arc::new(Semaphore::new(of.0.limit(of.1).places)));
            Arc::clone(places)
        };
        // Made first: it tidies up also after a caller that stops waiting.
        let mut permit = Permit { admissions: Arc::clone(self), of, held: None };
        // No such semaphore is ever closed.
        permit.held = places.acquire_owned().await.ok();
        permit
    }
}

impl Place {
    /// The bytes of a body that may come before [`Place::lengthen`] is needed.
    #[must_use]
    pub fn length(&self) -> u64 {
        if self.lacks.is_some_and(|lacks| lacks.is_short) { SHORT } else { u64::MAX }
    }

    /// Waits for a place among the long ones, for more of the body.
    pub async fn lengthen(&mut self) {
        let Some(lacks) = self.lacks.as_mut().filter(|lacks| lacks.is_short) else { return };
        lacks.is_short = false;
        let [_, others @ ..] = self.holder.all();
        for whose in others {
            self.permits.push(self.admissions.wait((Pool::LongNarrowing, whose)).await);
        }
    }

    /// The request is complete: waits for the places in which it is carried out.
    pub async fn begin(&mut self) {
        let Some(Lacks { pool, .. }) = self.lacks.take() else { return };
        let [_, second, _] = self.holder.all();
        self.permits.push(self.admissions.wait((pool, second)).await);
    }

    /// Gives the place up for one among those of new keys: the request takes no right away.
    ///
    /// # Errors
    /// 429 where those are taken.
    pub(super) fn for_making(self, bytes: usize) -> Result<Self, Rejection> {
        self.admissions.count(Pool::Making, self.holder, bytes as u64)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.permits.clear();
        if let Some((pool, bytes)) = self.counted {
            self.admissions.give_back(pool, self.holder, bytes);
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        drop(self.held.take());
        let of = self.of;
        let mut all = lock(&self.admissions.waited_for);
        // Whoever waits or holds a place has a share in it.
        if all.get(&of).is_some_and(|places| Arc::strong_count(places) == 1) {
            all.remove(&of);
        }
    }
}

/// Nothing panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::Future;
    use std::net::Ipv4Addr;
    use std::pin::pin;
    use std::task::{Context, Poll, Waker};

    use super::*;
    use crate::vocabulary::clock::UnixMillis;
    use crate::vocabulary::id::IdSource;
    use crate::vocabulary::key::admission::Needs;
    use crate::vocabulary::key::{Digest, Environment};

    const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    struct Callers(IdSource);

    impl Callers {
        fn new() -> Self {
            Self(IdSource::seeded(1))
        }

        fn org(&mut self) -> OrgId {
            OrgId::draw(&mut self.0, UnixMillis(1))
        }

        fn key(&mut self, org: OrgId) -> CallingKey {
            CallingKey {
                id: KeyId::draw(&mut self.0, UnixMillis(1)),
                org,
                environment: Environment::Live,
                digest: Digest::from_bytes([1; 32]),
                needs: Needs::default(),
            }
        }
    }

    fn polled<F: Future>(future: F) -> Option<F::Output> {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        }
    }

    /// As many places as there are for this caller, up to `most`.
    fn fill(
        admissions: &Arc<Admissions>,
        operation: Operation,
        caller: &CallingKey,
        length: Option<u64>,
        most: usize,
    ) -> Vec<Place> {
        let admit = || polled(admissions.admit(operation, Some(caller), ADDRESS, length));
        (0..most).map_while(|_| admit().and_then(Result::ok)).collect()
    }

    #[test]
    fn a_key_has_half_of_its_organisations_places_and_an_organisation_a_part_of_all() {
        let (admissions, mut callers) = (Arc::<Admissions>::default(), Callers::new());
        let fill = |caller: &CallingKey| fill(&admissions, Operation::CreateKey, caller, Some(100), 1000);
        let org = callers.org();
        let (first, second, third) = (callers.key(org), callers.key(org), callers.key(org));
        let held = [fill(&first), fill(&second), fill(&third)];
        assert_eq!(held.each_ref().map(Vec::len), [64, 64, 0]);
        let others: Vec<Vec<Place>> = (0..10)
            .map(|_| {
                let org = callers.org();
                let key = callers.key(org);
                fill(&key)
            })
            .collect();
        let in_all = held.iter().chain(&others).map(Vec::len).sum::<usize>();
        assert_eq!(in_all, 512);
        let stranger = polled(admissions.admit(Operation::Signup, None, ADDRESS, Some(10))).unwrap();
        assert!(stranger.is_ok(), "those who sign up have their own");
        drop((held, others, stranger));
        assert!(lock(&admissions.taken).is_empty(), "nothing is kept of those who hold no place");
    }

    #[test]
    fn bytes_are_limited_like_places_and_an_unknown_length_counts_as_the_longest() {
        let (admissions, mut callers) = (Arc::<Admissions>::default(), Callers::new());
        let org = callers.org();
        let (first, second) = (callers.key(org), callers.key(org));
        assert_eq!(fill(&admissions, Operation::CreateKey, &first, None, 1000).len(), 8);
        assert_eq!(fill(&admissions, Operation::CreateKey, &first, Some(BODY_LEN), 1000).len(), 8);
        let held = fill(&admissions, Operation::CreateKey, &first, Some(BODY_LEN), 7);
        let small = fill(&admissions, Operation::CreateKey, &first, Some(2), 1000);
        assert_eq!((held.len(), small.len()), (7, 57), "small ones find the room that is left");
        assert_eq!(fill(&admissions, Operation::CreateKey, &second, None, 1000).len(), 8);
    }

    #[test]
    fn what_takes_rights_away_waits_for_its_own_kind_and_is_never_refused() {
        let (admissions, mut callers) = (Arc::<Admissions>::default(), Callers::new());
        let org = callers.org();
        let (thief, owner) = (callers.key(org), callers.key(org));
        let making = fill(&admissions, Operation::CreateKey, &thief, None, 1000);
        let narrowing = fill(&admissions, Operation::UpdateKey, &thief, Some(10), 1000);
        let revoking = fill(&admissions, Operation::RevokeKey, &thief, None, 1000);
        assert_eq!((making.len(), narrowing.len(), revoking.len()), (8, 8, 32));
        for operation in [Operation::UpdateKey, Operation::RevokeKey] {
            assert_eq!(fill(&admissions, operation, &owner, Some(10), 1).len(), 1, "{operation:?}");
        }
        let mut waiting = Box::pin(admissions.admit(Operation::RevokeKey, Some(&thief), ADDRESS, None));
        let mut context = Context::from_waker(Waker::noop());
        assert!(waiting.as_mut().poll(&mut context).is_pending());
        drop(revoking);
        assert!(matches!(waiting.as_mut().poll(&mut context), Poll::Ready(Ok(_))));
        drop((waiting, making, narrowing));
        assert!(lock(&admissions.waited_for).is_empty() && lock(&admissions.taken).is_empty());
    }

    #[test]
    fn slow_bodies_hold_up_their_own_key_alone() {
        let (admissions, mut callers) = (Arc::<Admissions>::default(), Callers::new());
        let org = callers.org();
        let owner = callers.key(org);
        let slow: Vec<Place> = (0..4)
            .flat_map(|_| fill(&admissions, Operation::UpdateKey, &callers.key(org), Some(10), 1000))
            .collect();
        assert_eq!(slow.len(), 4 * 8);
        let mut narrowing = fill(&admissions, Operation::UpdateKey, &owner, Some(10), 1);
        assert!(polled(narrowing[0].begin()).is_some(), "no other key's body is waited for");
        let mut begun: Vec<Place> = Vec::new();
        for mut place in slow {
            if polled(place.begin()).is_some() {
                begun.push(place);
            }
        }
        assert_eq!(begun.len(), 15, "and the organisation has 16 at once");
    }

    #[test]
    fn long_bodies_of_one_organisation_hold_up_no_other() {
        let (admissions, mut callers) = (Arc::<Admissions>::default(), Callers::new());
        let mut held = Vec::new();
        for _ in 0..16 {
            let org = callers.org();
            for _ in 0..2 {
                held.extend(fill(&admissions, Operation::UpdateKey, &callers.key(org), Some(BODY_LEN), 1000));
            }
        }
        assert_eq!(held.len(), 16 * 4);
        let org = callers.org();
        let owner = callers.key(org);
        assert_eq!(fill(&admissions, Operation::UpdateKey, &owner, Some(BODY_LEN), 1000).len(), 4);
        let mut chunked = fill(&admissions, Operation::UpdateKey, &callers.key(org), None, 1000);
        assert_eq!(chunked.len(), 8, "one whose length is not known is short at first");
        assert_eq!(chunked[0].length(), SHORT);
        assert!(polled(chunked[0].begin()).is_some());
    }

    #[test]
    fn one_site_has_half_of_the_places_for_signing_up() {
        let admissions = Arc::<Admissions>::default();
        let sign_up = |address: &str| {
            polled(admissions.admit(Operation::Signup, None, address.parse().unwrap(), Some(50))).unwrap()
        };
        let networks = (0..8).map(|n| format!("2001:db8:1:{n}::1"));
        let places: Vec<Place> = networks
            .flat_map(|network| (0..1000).map_while(|_| sign_up(&network).ok()).collect::<Vec<_>>())
            .collect();
        assert_eq!(places.len(), 128);
        assert!(sign_up("2001:db8:2::1").is_ok());
    }

    #[test]
    fn rotations_have_places_of_their_own() {
        let (admissions, mut callers) = (Arc::<Admissions>::default(), Callers::new());
        let org = callers.org();
        let (thief, owner) = (callers.key(org), callers.key(org));
        let fill = |operation, caller: &CallingKey| fill(&admissions, operation, caller, Some(22), 1000);
        let making = [fill(Operation::CreateKey, &thief), fill(Operation::CreateKey, &owner)];
        let rotating = [fill(Operation::RotateKey, &thief), fill(Operation::RotateKey, &owner)];
        assert_eq!(making.each_ref().map(Vec::len), [64, 64]);
        assert_eq!(rotating.each_ref().map(Vec::len), [64, 64]);
    }

    #[test]
    fn a_change_that_takes_nothing_away_needs_a_place_among_those_of_new_keys() {
        let (admissions, mut callers) = (Arc::<Admissions>::default(), Callers::new());
        let org = callers.org();
        let key = callers.key(org);
        let changing = fill(&admissions, Operation::UpdateKey, &key, Some(10), 1000);
        let making = fill(&admissions, Operation::CreateKey, &key, Some(10), 63);
        let moved: Vec<bool> =
            changing.into_iter().map(|place| place.for_making(10)).map(|place| place.is_ok()).collect();
        // Each that moved was dropped again.
        assert_eq!((making.len(), moved), (63, vec![true; 8]));
        let changing = fill(&admissions, Operation::UpdateKey, &key, Some(10), 1000);
        assert_eq!(changing.len(), 8, "their own places are free again");
        let last = fill(&admissions, Operation::CreateKey, &key, Some(10), 1000);
        assert_eq!(last.len(), 1);
        let refused = changing.into_iter().map(|place| place.for_making(10)).filter(Result::is_err).count();
        assert_eq!(refused, 8);
    }
}
