//! One client's share of the requests that are forwarded at once, so that no client can take the places of all, nor the keys
//! of one organisation together.
//!
//! A client may have as many requests in flight as there are places left for connections to upstreams, beside a quarter of
//! all places, which is kept for clients that have few (a dynamic threshold, as Choudhury and Hahne have it in "Dynamic queue
//! length thresholds for shared-memory packet switches", 1998). So one that takes what it can get has three eighths of all on one
//! thread, and on many threads up to seven sixteenths. Many that do leave the quarter, of which each can take a 32nd part, and at
//! least one place on each thread.
//!
//! The client is the key, or on a public route the site that the request comes from: a /24 of IPv4, a /48 of IPv6.
//!
//! The keys of an organisation are bounded together by the same rule, with twice as many as there are places left for keys
//! that have many in flight, and three times as many for keys that have few. So keys that take what they can get have half of
//! all and leave their sister keys a sixteenth; all keys together have nine sixteenths on one thread, and on many threads up to
//! five eighths. Less would waste the places of a gateway with one large customer; with more, little beside the kept quarter
//! would be left for all other customers.
//!
//! Where an upstream has a limit of its own, its [`Places`] are shared out by the same rule.
//!
//! Each thread lets a number of the requests of each client and organisation through by itself: a hit costs a look into a
//! table of its own, a count that the cached key has at hand, and a read of what is left. Only beyond that number do threads ask
//! one another.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::upstream::bounds::Places;
use crate::upstream::budget::Budget;
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::Digest;
use crate::vocabulary::network::ClientSite;

/// How long a request waits for others of its client to end.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks whether it may go on.
const LOOK: Duration = Duration::from_millis(20);
/// The clients for each of which a part of the kept places is enough. The same holds for organisations.
const CLIENTS: usize = 32;
/// The requests that wait. More are refused at once. Each looks under the lock at every [`LOOK`].
const WAITING: MayWait = MayWait { of_client: 128, of_org: 512, of_all: 4096 };
/// Organisations that a thread has counts of, before those are forgotten that have none of its keys.
const TIDIED: usize = 1024;

/// The sender of forwarded requests.
#[derive(Clone, Debug)]
pub(super) enum Client {
    /// A key, and what its organisation has in flight on this thread.
    Key(Digest, Rc<OfOrg>),
    Site(ClientSite),
}

impl Client {
    /// Everybody of whose share its requests are a part, the narrowest first.
    fn sharers(&self) -> impl Iterator<Item = Sharer> {
        let (first, second) = match self {
            Self::Key(digest, of_org) => (Sharer::Key(*digest), Some(Sharer::Org(of_org.org))),
            Self::Site(site) => (Sharer::Site(*site), None),
        };
        std::iter::once(first).chain(second)
    }
}

/// The requests of an organisation's keys that one thread has let through by itself.
#[derive(Debug)]
pub(super) struct OfOrg {
    org: OrgId,
    taken: Cell<usize>,
}

/// How many requests may wait.
#[derive(Clone, Copy, Debug)]
struct MayWait {
    of_client: usize,
    /// Those of one organisation's keys.
    of_org: usize,
    of_all: usize,
}

impl MayWait {
    /// A quarter of all for one organisation, half of that for one key.
    fn of(all: usize) -> Self {
        Self { of_client: (all / 8).max(1), of_org: (all / 4).max(1), of_all: all }
    }

    const fn of_one(&self, sharer: Sharer) -> usize {
        match sharer {
            Sharer::Key(_) | Sharer::Site(_) => self.of_client,
            Sharer::Org(_) => self.of_org,
        }
    }
}

/// Places that are shared out.
pub trait Room {
    fn left(&self) -> usize;
    fn at_most(&self) -> usize;

    /// Takes a place, if one is free.
    fn take(&self) -> bool;
    fn give_back(&self);
}

/// Connections take their places themselves.
impl Room for Budget {
    fn left(&self) -> usize {
        self.left()
    }

    fn at_most(&self) -> usize {
        self.at_most()
    }

    fn take(&self) -> bool {
        true
    }

    fn give_back(&self) {}
}

impl Room for Places {
    fn left(&self) -> usize {
        self.left()
    }

    fn at_most(&self) -> usize {
        self.at_most()
    }

    fn take(&self) -> bool {
        self.take()
    }

    fn give_back(&self) {
        self.give_back();
    }
}

/// The holder of a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Sharer {
    Key(Digest),
    Site(ClientSite),
    Org(OrgId),
}

/// The requests that a client has in flight, and its organisation's.
#[derive(Clone, Copy, Debug)]
struct Taken {
    by_client: usize,
    by_org: Option<usize>,
}

/// The shares as all threads see them.
#[derive(Debug)]
pub struct Shares<R = Budget> {
    room: R,
    /// The requests of one organisation, or of one site, that a thread forwards by itself.
    by_thread: usize,
    /// Those that a thread forwards even where only the kept places are left.
    few: usize,
    kept: usize,
    may_wait: MayWait,
    patience: Duration,
    beyond: Mutex<AllBeyond>,
}

/// The requests beyond those that the threads let through by themselves.
#[derive(Debug, Default)]
struct AllBeyond {
    of: HashMap<Sharer, Beyond>,
    /// How many wait in all.
    waiting: usize,
}

/// Those of one holder of a share.
#[derive(Clone, Copy, Debug, Default)]
struct Beyond {
    in_flight: usize,
    waiting: usize,
}

impl Shares {
    /// Of one organisation, or of one site, all threads together forward a sixteenth of `budget` without asking one another.
    /// By so much it can exceed its share.
    #[must_use]
    pub fn new(budget: Budget, threads: usize) -> Self {
        Self::of_room(budget, WAITING, threads)
    }
}

impl Shares<Places> {
    /// The shares of an upstream's places, for which so many requests may wait.
    pub(super) fn of_upstream(places: Places, waiting: usize, threads: usize) -> Self {
        Self::of_room(places, MayWait::of(waiting), threads)
    }

    /// Whether these are the shares of these places, for which as many may wait.
    pub(super) fn is_like(&self, places: &Places, waiting: usize) -> bool {
        self.room.is_same(places) && self.may_wait.of_all == waiting
    }

    /// The requests in flight, and how many there may be.
    pub(super) fn taken(&self) -> (usize, usize) {
        (self.room.taken(), self.room.at_most())
    }

    /// The requests that wait.
    pub(super) fn waiting(&self) -> usize {
        self.lock().waiting
    }
}

impl<R: Room> Shares<R> {
    fn of_room(room: R, may_wait: MayWait, threads: usize) -> Self {
        let (quarter, sixteenth) = ((room.at_most() / 4).max(1), room.at_most() / 16);
        Self {
            room,
            by_thread: (sixteenth / threads.max(1)).max(1),
            few: (quarter / CLIENTS / threads.max(1)).max(1),
            kept: quarter,
            may_wait,
            patience: PATIENCE,
            beyond: Mutex::default(),
        }
    }

    /// Whether a client with so many requests in flight may have another one.
    fn admits(&self, taken: Taken) -> bool {
        let left = self.room.left();
        let beside_kept = left.saturating_sub(self.kept);
        let is_free = |taken, of_what_is_left: usize| {
            if taken < self.few { left > 0 } else { taken < of_what_is_left * beside_kept }
        };
        let of_org = if taken.by_client < self.few { 3 } else { 2 };
        is_free(taken.by_client, 1) && taken.by_org.is_none_or(|taken| is_free(taken, of_org))
    }

    /// Waits until the client may have another request in flight beyond its `own`, those that its thread has let through by
    /// then; false if it may not in time.
    async fn wait(&self, client: &Client, own: impl Fn() -> Taken) -> bool {
        if self.takes(client, own()) {
            return true;
        }
        let Some(_waiting) = Waiting::begin(self, client) else { return false };
        let turn = async {
            while !self.takes(client, own()) {
                sleep(LOOK).await;
            }
        };
        timeout(self.patience, turn).await.is_ok()
    }

    fn takes(&self, client: &Client, own: Taken) -> bool {
        let mut beyond = self.lock();
        let mut in_flight = client.sharers().map(|sharer| beyond.of(sharer).in_flight);
        let by_client = own.by_client + in_flight.next().unwrap_or_default();
        let by_org = own.by_org.map(|own| own + in_flight.next().unwrap_or_default());
        drop(in_flight);
        let is_free = self.admits(Taken { by_client, by_org }) && self.room.take();
        if is_free {
            beyond.change(client, |beyond| beyond.in_flight += 1);
        }
        is_free
    }
}

impl<R> Shares<R> {
    fn lock(&self) -> MutexGuard<'_, AllBeyond> {
        self.beyond.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AllBeyond {
    fn of(&self, sharer: Sharer) -> Beyond {
        self.of.get(&sharer).copied().unwrap_or_default()
    }

    /// Changes the counts of all of whose share the client's requests are a part, and forgets who has none.
    fn change(&mut self, client: &Client, change: impl Fn(&mut Beyond)) {
        for sharer in client.sharers() {
            let beyond = self.of.entry(sharer).or_default();
            change(beyond);
            if beyond.in_flight + beyond.waiting == 0 {
                self.of.remove(&sharer);
            }
        }
    }
}

/// A request that waits; it stops when this is dropped, also where its client leaves.
struct Waiting<'s, R> {
    shares: &'s Shares<R>,
    client: &'s Client,
}

impl<'s, R> Waiting<'s, R> {
    fn begin(shares: &'s Shares<R>, client: &'s Client) -> Option<Self> {
        let mut beyond = shares.lock();
        let has_room = beyond.waiting < shares.may_wait.of_all
            && client.sharers().all(|sharer| beyond.of(sharer).waiting < shares.may_wait.of_one(sharer));
        if has_room {
            beyond.change(client, |beyond| beyond.waiting += 1);
            beyond.waiting += 1;
        }
        // Made only where it counts: its end is counted too.
        has_room.then(|| Self { shares, client })
    }
}

impl<R> Drop for Waiting<'_, R> {
    fn drop(&mut self) {
        let mut beyond = self.shares.lock();
        beyond.change(self.client, |beyond| beyond.waiting -= 1);
        beyond.waiting -= 1;
    }
}

/// The shares as one thread sees them: the requests that it has let through by itself.
#[derive(Debug)]
pub(super) struct ThreadShares<R = Budget> {
    shared: Arc<Shares<R>>,
    of_keys: Counts<Digest, BuildHasherDefault<Leading>>,
    of_sites: Counts<ClientSite, RandomState>,
    of_orgs: RefCell<HashMap<OrgId, Rc<OfOrg>>>,
    /// How many organisations there may be before they are tidied.
    tidied: Cell<usize>,
}

/// A request's part of its client's share, to be [given back](ThreadShares::give_back).
#[derive(Debug)]
pub(super) struct Part {
    client: Client,
    is_beyond: bool,
}

impl<R: Room> ThreadShares<R> {
    pub(super) fn new(shared: Arc<Shares<R>>) -> Self {
        Self {
            shared,
            of_keys: Counts::default(),
            of_sites: Counts::default(),
            of_orgs: RefCell::default(),
            tidied: Cell::new(TIDIED),
        }
    }

    pub(super) const fn shared(&self) -> &Arc<Shares<R>> {
        &self.shared
    }

    /// What an organisation has in flight on this thread. To be kept with its keys: this takes a hash.
    pub(super) fn of_org(&self, org: OrgId) -> Rc<OfOrg> {
        let mut all = self.of_orgs.borrow_mut();
        if all.len() >= self.tidied.get() {
            all.retain(|_, of_org| Rc::strong_count(of_org) > 1);
            self.tidied.set(TIDIED.max(2 * all.len()));
        }
        Rc::clone(all.entry(org).or_insert_with(|| Rc::new(OfOrg { org, taken: Cell::new(0) })))
    }

    /// A part of the client's share, where this thread can give it by itself.
    pub(super) fn part(&self, client: &Client) -> Option<Part> {
        // No key has more than its organisation.
        let admits = |by_client: usize, by_org: Option<usize>| {
            by_org.unwrap_or(by_client) < self.shared.by_thread
                && self.shared.admits(Taken { by_client, by_org })
                && self.shared.room.take()
        };
        let is_free = match client {
            Client::Key(digest, of_org) => {
                let by_org = of_org.taken.get();
                let is_free = self.of_keys.take(*digest, |by_key| admits(by_key, Some(by_org)));
                of_org.taken.set(by_org + usize::from(is_free));
                is_free
            }
            Client::Site(site) => self.of_sites.take(*site, |by_site| admits(by_site, None)),
        };
        is_free.then(|| Part { client: client.clone(), is_beyond: false })
    }

    /// Waits for a part beyond those that this thread gives by itself; `None` if none is given back in time.
    pub(super) async fn part_beyond(&self, client: Client) -> Option<Part> {
        let own = || match &client {
            Client::Key(digest, of_org) => {
                Taken { by_client: self.of_keys.of(digest), by_org: Some(of_org.taken.get()) }
            }
            Client::Site(site) => Taken { by_client: self.of_sites.of(site), by_org: None },
        };
        let is_free = self.shared.wait(&client, own).await;
        is_free.then_some(Part { client, is_beyond: true })
    }

    pub(super) fn give_back(&self, part: &Part) {
        self.shared.room.give_back();
        match &part.client {
            client if part.is_beyond => self.shared.lock().change(client, |beyond| beyond.in_flight -= 1),
            Client::Key(digest, of_org) => {
                of_org.taken.set(of_org.taken.get() - 1);
                self.of_keys.give_back(digest);
            }
            Client::Site(site) => self.of_sites.give_back(site),
        }
    }
}

/// How many requests each client has in flight.
#[derive(Debug)]
struct Counts<C, S>(RefCell<HashMap<C, usize, S>>);

impl<C, S: Default> Default for Counts<C, S> {
    fn default() -> Self {
        Self(RefCell::default())
    }
}

impl<C: Eq + Hash, S: BuildHasher> Counts<C, S> {
    /// Counts one more, if that is admitted.
    fn take(&self, client: C, admits: impl Fn(usize) -> bool) -> bool {
        let mut counts = self.0.borrow_mut();
        match counts.entry(client) {
            Entry::Vacant(none) if admits(0) => *none.insert(0) += 1,
            Entry::Occupied(mut taken) if admits(*taken.get()) => *taken.get_mut() += 1,
            Entry::Vacant(_) | Entry::Occupied(_) => return false,
        }
        true
    }

    fn of(&self, client: &C) -> usize {
        self.0.borrow().get(client).copied().unwrap_or_default()
    }

    fn give_back(&self, client: &C) {
        let mut counts = self.0.borrow_mut();
        let Some(taken) = counts.get_mut(client) else { return };
        *taken -= 1;
        if *taken == 0 {
            counts.remove(client);
        }
    }
}

/// Hashes a digest, which is uniformly distributed and chosen by nobody, by eight bytes of it.
#[derive(Default)]
struct Leading(u64);

impl Hasher for Leading {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, leading: u64) {
        self.0 = leading;
    }

    fn write(&mut self, bytes: &[u8]) {
        self.0 = bytes.iter().fold(self.0, |hash, byte| hash.rotate_left(8) ^ u64::from(*byte));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upstream::budget::Place;

    impl ThreadShares {
        /// A key of this organisation.
        fn key(&self, number: u8, org: u8) -> Client {
            Client::Key(Digest::from_bytes([number; 32]), self.of_org(OrgId::from_bytes([org; 16])))
        }
    }

    fn impatient(budget: &Budget, threads: usize) -> Arc<Shares> {
        Arc::new(Shares { patience: Duration::ZERO, ..Shares::new(budget.clone(), threads) })
    }

    /// Takes as many parts for the client as there are, but `at_most` so many, and the place of a connection for each.
    async fn take(
        thread: &ThreadShares,
        budget: &Budget,
        client: &Client,
        at_most: usize,
    ) -> Vec<(Part, Place)> {
        let mut parts = Vec::new();
        while parts.len() < at_most {
            let part = match thread.part(client) {
                Some(part) => part,
                None => match thread.part_beyond(client.clone()).await {
                    Some(part) => part,
                    None => return parts,
                },
            };
            parts.push((part, budget.place().await.unwrap()));
        }
        parts
    }

    async fn take_all(thread: &ThreadShares, budget: &Budget, client: &Client) -> Vec<(Part, Place)> {
        take(thread, budget, client, usize::MAX).await
    }

    /// Lets so many requests of the client begin to wait, where there is room; tells how many are refused at once.
    async fn refused_of(waiting: &mut [impl Future<Output = Option<Part>> + Unpin]) -> usize {
        let mut refused = 0;
        std::future::poll_fn(|cx| {
            for one in &mut *waiting {
                refused += usize::from(std::pin::Pin::new(one).poll(cx).is_ready());
            }
            std::task::Poll::Ready(())
        })
        .await;
        refused
    }

    #[tokio::test]
    async fn one_client_gets_three_eighths_and_twenty_leave_a_part_for_the_next() {
        for (clients, of_one) in [(1, 300..=300), (20, 6..=300)] {
            let budget = Budget::new(800);
            let thread = ThreadShares::new(impatient(&budget, 1));
            let mut all = Vec::new();
            for number in 0..clients {
                let parts = take_all(&thread, &budget, &thread.key(number, number)).await;
                assert!(of_one.contains(&parts.len()), "{} of {clients}", parts.len());
                all.push(parts);
            }
            assert!(thread.part(&thread.key(200, 200)).is_some(), "{} places are left", budget.left());
        }
    }

    #[tokio::test]
    async fn the_keys_of_an_organisation_get_half_and_leave_other_organisations_more_than_the_kept_quarter() {
        let budget = Budget::new(800);
        let thread = ThreadShares::new(impatient(&budget, 1));
        let mut all = Vec::new();
        for number in 0..100 {
            all.extend(take_all(&thread, &budget, &thread.key(number, 0)).await);
        }
        // Nine sixteenths, where the last keys have few.
        assert!((400..=450).contains(&all.len()), "{}", all.len());
        let other = take_all(&thread, &budget, &thread.key(200, 1)).await;
        assert!((75..=100).contains(&other.len()), "{}", other.len());
        assert!(budget.left() >= 200);
    }

    #[tokio::test]
    async fn two_greedy_keys_leave_their_sisters_places() {
        let budget = Budget::new(800);
        let thread = ThreadShares::new(impatient(&budget, 1));
        let mut all = take_all(&thread, &budget, &thread.key(0, 0)).await;
        all.extend(take_all(&thread, &budget, &thread.key(1, 0)).await);
        assert_eq!(all.len(), 400);
        for number in 2..10 {
            let few = take(&thread, &budget, &thread.key(number, 0), 5).await;
            assert_eq!(few.len(), 5, "key {number}");
            all.extend(few);
        }
    }

    #[tokio::test]
    async fn where_only_the_kept_places_are_left_an_organisation_has_few_of_them() {
        let budget = Budget::new(800);
        let thread = ThreadShares::new(impatient(&budget, 1));
        let mut places = Vec::new();
        for _ in 0..700 {
            places.push(budget.place().await);
        }
        let mut all = Vec::new();
        for number in 0..100 {
            all.extend(take_all(&thread, &budget, &thread.key(number, 0)).await);
        }
        assert_eq!(all.len(), 6);
        assert_eq!(take_all(&thread, &budget, &thread.key(200, 1)).await.len(), 6);
    }

    #[tokio::test]
    async fn threads_together_give_one_client_no_more() {
        let budget = Budget::new(64);
        let shared = impatient(&budget, 2);
        let mut all = Vec::new();
        for _ in 0..2 {
            let thread = ThreadShares::new(Arc::clone(&shared));
            let parts = take_all(&thread, &budget, &thread.key(1, 1)).await;
            all.push((thread, parts));
        }
        let together: usize = all.iter().map(|(_, parts)| parts.len()).sum();
        assert!((24..=32).contains(&together), "{together}");
        assert!(all[0].0.part(&all[0].0.key(2, 2)).is_some());
    }

    #[tokio::test]
    async fn threads_together_give_one_organisation_five_eighths_at_most() {
        for threads in [2, 4, 16] {
            let budget = Budget::new(3200);
            let shared = impatient(&budget, threads);
            let mut all = Vec::new();
            for _ in 0..threads {
                let thread = ThreadShares::new(Arc::clone(&shared));
                for number in 0..100 {
                    all.extend(take_all(&thread, &budget, &thread.key(number, 0)).await);
                }
            }
            assert!((1600..=2000).contains(&all.len()), "{} on {threads} threads", all.len());
        }
    }

    #[tokio::test]
    async fn a_request_that_waits_goes_on_when_another_ends() {
        let budget = Budget::new(4);
        let thread = ThreadShares::new(Arc::new(Shares::new(budget.clone(), 1)));
        let first = thread.part_beyond(thread.key(1, 1)).await.unwrap();
        let _places = (budget.place().await, budget.place().await);
        let (second, ()) = tokio::join!(thread.part_beyond(thread.key(1, 1)), async {
            tokio::task::yield_now().await;
            thread.give_back(&first);
        });
        assert!(second.is_some());
    }

    #[tokio::test]
    async fn no_more_than_128_requests_of_a_client_wait_512_of_an_organisation_and_4096_of_all() {
        let budget = Budget::new(1);
        let thread = ThreadShares::new(Arc::new(Shares::new(budget.clone(), 1)));
        let _place = budget.place().await;
        let thread = &thread;
        for (keys, orgs, most) in [(1, 1, 128), (6, 1, 512), (6, 9, 4096)] {
            let clients = (0..orgs).flat_map(|org| (0..keys).map(move |key| thread.key(10 * org + key, org)));
            let asked = clients.flat_map(|client| vec![client; 2 * WAITING.of_client]);
            let mut waiting: Vec<_> = asked.map(|client| Box::pin(thread.part_beyond(client))).collect();
            let refused = refused_of(&mut waiting).await;
            assert_eq!(waiting.len() - refused, most, "{keys} keys of {orgs} organisations");
        }
        assert!(thread.shared.lock().of.is_empty());
        assert_eq!(thread.shared.lock().waiting, 0);
    }

    #[tokio::test]
    async fn clients_without_requests_are_forgotten() {
        let budget = Budget::new(4);
        let shared = impatient(&budget, 1);
        let thread = ThreadShares::new(Arc::clone(&shared));
        let _places = (budget.place().await, budget.place().await);
        for number in 0..100 {
            let own = thread.part(&thread.key(number, number)).unwrap();
            assert!(thread.part_beyond(thread.key(number, number)).await.is_none());
            thread.give_back(&own);
            let beyond = thread.part_beyond(thread.key(number, number)).await.unwrap();
            thread.give_back(&beyond);
        }
        assert!(thread.of_keys.0.borrow().is_empty());
        assert!(shared.lock().of.is_empty());
    }

    #[tokio::test]
    async fn organisations_without_keys_on_a_thread_are_forgotten() {
        let thread = ThreadShares::new(impatient(&Budget::new(4), 1));
        let org = |number: u128| thread.of_org(OrgId::from_bytes(number.to_be_bytes()));
        let kept = org(0);
        kept.taken.set(3);
        (1..10 * TIDIED as u128).for_each(|number| drop(org(number)));
        assert!(thread.of_orgs.borrow().len() <= TIDIED);
        assert_eq!(org(0).taken.get(), 3);
    }

    fn of_upstream(places: usize, waiting: usize) -> (Places, ThreadShares<Places>) {
        let places = Places::of(places);
        let thread = ThreadShares::new(Arc::new(Shares::of_upstream(places.clone(), waiting, 1)));
        (places, thread)
    }

    impl ThreadShares<Places> {
        fn client(&self, number: u8, org: u8) -> Client {
            Client::Key(Digest::from_bytes([number; 32]), self.of_org(OrgId::from_bytes([org; 16])))
        }
    }

    #[tokio::test]
    async fn an_upstream_with_one_place_serves_one_request_at_a_time() {
        let (places, thread) = of_upstream(1, 8);
        let part = thread.part(&thread.client(1, 1)).unwrap();
        assert!(thread.part(&thread.client(2, 2)).is_none());
        assert_eq!((places.taken(), places.left()), (1, 0));
        thread.give_back(&part);
        let part = thread.part_beyond(thread.client(2, 2)).await.unwrap();
        assert_eq!(places.taken(), 1);
        thread.give_back(&part);
        assert_eq!(places.taken(), 0);
    }

    #[tokio::test]
    async fn no_more_than_an_eighth_of_those_that_wait_for_an_upstream_are_of_one_key_a_quarter_of_one_organisation()
     {
        for (all, of_key, of_org) in [(64, 8, 16), (8, 1, 2), (1, 1, 1), (0, 0, 0)] {
            let (places, thread) = of_upstream(1, all);
            assert!(places.take());
            let thread = &thread;
            for (keys, orgs, most) in [(1, 1, of_key), (6, 1, of_org), (6, 9, all)] {
                let clients =
                    (0..orgs).flat_map(|org| (0..keys).map(move |key| thread.client(10 * org + key, org)));
                let asked = clients.flat_map(|client| vec![client; 80]);
                let mut waiting: Vec<_> = asked.map(|client| Box::pin(thread.part_beyond(client))).collect();
                let refused = refused_of(&mut waiting).await;
                assert_eq!(waiting.len() - refused, most, "{all}: {keys} keys of {orgs} organisations");
                assert_eq!(thread.shared().waiting(), most);
            }
        }
    }
}
