//! One client's share of the requests that are forwarded at once, so that no client can take the places of all.
//!
//! A client may have as many requests in flight as there are places left for connections to upstreams, beside a quarter of
//! all places, which is kept for clients that have few (a dynamic threshold, as Choudhury and Hahne have it in "Dynamic queue
//! length thresholds for shared-memory packet switches", 1998). So one that takes what it can get has three eighths of all on one
//! thread, and on many threads up to half. Many that do leave the quarter, of which each can take a 32nd part, and at least one
//! place on each thread.
//!
//! The client is the key, or on a public route the site that the request comes from: a /24 of IPv4, a /48 of IPv6. Each thread lets a number of each
//! client's requests through by itself: a hit costs a look into a table of its own and a read of what is left. Only
//! beyond that number do threads ask one another.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::upstream::budget::Budget;
use crate::vocabulary::key::Digest;
use crate::vocabulary::network::ClientSite;

/// How long a request waits for others of its client to end.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks whether it may go on.
const LOOK: Duration = Duration::from_millis(20);
/// The clients for each of which a part of the kept places is enough.
const CLIENTS: usize = 32;
/// The requests of one client that wait. More are refused at once.
const WAITING: usize = 128;

/// The sender of forwarded requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Client {
    Key(Digest),
    Site(ClientSite),
}

/// The shares as all threads see them.
#[derive(Debug)]
pub struct Shares {
    budget: Budget,
    /// The requests of one client that a thread forwards by itself.
    by_thread: usize,
    /// The requests of one client that a thread forwards even where only the kept places are left.
    few: usize,
    kept: usize,
    patience: Duration,
    clients: Mutex<HashMap<Client, Beyond>>,
}

/// The requests of one client beyond those that the threads let through by themselves.
#[derive(Clone, Copy, Debug, Default)]
struct Beyond {
    in_flight: usize,
    waiting: usize,
}

impl Shares {
    /// The threads forward at most a quarter of `budget` for one client by themselves.
    #[must_use]
    pub fn new(budget: Budget, threads: usize) -> Self {
        let quarter = (budget.at_most() / 4).max(1);
        Self {
            budget,
            by_thread: (quarter / threads.max(1)).max(1),
            few: (quarter / CLIENTS / threads.max(1)).max(1),
            kept: quarter,
            patience: PATIENCE,
            clients: Mutex::default(),
        }
    }

    /// Whether a client with so many requests in flight may have another one.
    fn admits(&self, taken: usize) -> bool {
        let left = self.budget.left();
        if taken < self.few { left > 0 } else { taken + self.kept < left }
    }

    /// Waits until the client may have another request in flight beyond its `own`, those that its thread has let through by
    /// then; false if it may not in time.
    async fn wait(&self, client: Client, own: impl Fn() -> usize) -> bool {
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

    fn takes(&self, client: Client, own: usize) -> bool {
        self.change(client, |beyond| {
            let is_free = self.admits(own + beyond.in_flight);
            beyond.in_flight += usize::from(is_free);
            is_free
        })
    }

    /// Changes the counts of a client, and forgets a client without any.
    fn change<T>(&self, client: Client, change: impl FnOnce(&mut Beyond) -> T) -> T {
        let mut clients = self.lock();
        let beyond = clients.entry(client).or_default();
        let changed = change(beyond);
        if beyond.in_flight + beyond.waiting == 0 {
            clients.remove(&client);
        }
        changed
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Client, Beyond>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that waits; it stops when this is dropped, also where its client leaves.
struct Waiting<'s> {
    shares: &'s Shares,
    client: Client,
}

impl<'s> Waiting<'s> {
    fn begin(shares: &'s Shares, client: Client) -> Option<Self> {
        let has_room = shares.change(client, |beyond| {
            let has_room = beyond.waiting < WAITING;
            beyond.waiting += usize::from(has_room);
            has_room
        });
        // Made only where it counts: its end is counted too.
        has_room.then(|| Self { shares, client })
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.shares.change(self.client, |beyond| beyond.waiting -= 1);
    }
}

/// The shares as one thread sees them: the requests that it has let through by itself.
#[derive(Debug)]
pub(super) struct ThreadShares {
    shared: Arc<Shares>,
    of_keys: Counts<Digest, BuildHasherDefault<Leading>>,
    of_sites: Counts<ClientSite, RandomState>,
}

/// A request's part of its client's share, to be [given back](ThreadShares::give_back).
#[derive(Debug)]
pub(super) struct Part {
    client: Client,
    is_beyond: bool,
}

impl ThreadShares {
    pub(super) fn new(shared: Arc<Shares>) -> Self {
        Self { shared, of_keys: Counts::default(), of_sites: Counts::default() }
    }

    /// A part of the client's share, where this thread can give it by itself.
    pub(super) fn part(&self, client: Client) -> Option<Part> {
        let admits = |taken| taken < self.shared.by_thread && self.shared.admits(taken);
        let is_free = match client {
            Client::Key(digest) => self.of_keys.take(digest, admits),
            Client::Site(site) => self.of_sites.take(site, admits),
        };
        is_free.then_some(Part { client, is_beyond: false })
    }

    /// Waits for a part beyond those that this thread gives by itself; `None` if none is given back in time.
    pub(super) async fn part_beyond(&self, client: Client) -> Option<Part> {
        let own = || match client {
            Client::Key(digest) => self.of_keys.of(&digest),
            Client::Site(site) => self.of_sites.of(&site),
        };
        self.shared.wait(client, own).await.then_some(Part { client, is_beyond: true })
    }

    pub(super) fn give_back(&self, part: &Part) {
        match *part {
            Part { client, is_beyond: true } => self.shared.change(client, |beyond| beyond.in_flight -= 1),
            Part { client: Client::Key(digest), .. } => self.of_keys.give_back(&digest),
            Part { client: Client::Site(site), .. } => self.of_sites.give_back(&site),
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

    const fn key(number: u8) -> Client {
        Client::Key(Digest::from_bytes([number; 32]))
    }

    fn impatient(budget: &Budget, threads: usize) -> Arc<Shares> {
        Arc::new(Shares { patience: Duration::ZERO, ..Shares::new(budget.clone(), threads) })
    }

    /// Takes as many parts for the client as there are, and the place of a connection for each.
    async fn take_all(thread: &ThreadShares, budget: &Budget, client: Client) -> Vec<(Part, Place)> {
        let mut parts = Vec::new();
        loop {
            let part = match thread.part(client) {
                Some(part) => part,
                None => match thread.part_beyond(client).await {
                    Some(part) => part,
                    None => return parts,
                },
            };
            parts.push((part, budget.place().await.unwrap()));
        }
    }

    #[tokio::test]
    async fn one_client_gets_three_eighths_and_twenty_leave_a_part_for_the_next() {
        for (clients, of_one) in [(1, 300..=300), (20, 6..=300)] {
            let budget = Budget::new(800);
            let thread = ThreadShares::new(impatient(&budget, 1));
            let mut all = Vec::new();
            for client in 0..clients {
                let parts = take_all(&thread, &budget, key(client)).await;
                assert!(of_one.contains(&parts.len()), "{} of {clients}", parts.len());
                all.push(parts);
            }
            assert!(thread.part(key(200)).is_some(), "{} places are left", budget.left());
        }
    }

    #[tokio::test]
    async fn threads_together_give_one_client_no_more() {
        let budget = Budget::new(64);
        let shared = impatient(&budget, 2);
        let mut all = Vec::new();
        for _ in 0..2 {
            let thread = ThreadShares::new(Arc::clone(&shared));
            let parts = take_all(&thread, &budget, key(1)).await;
            all.push((thread, parts));
        }
        let together: usize = all.iter().map(|(_, parts)| parts.len()).sum();
        assert!((24..=32).contains(&together), "{together}");
        assert!(all[0].0.part(key(2)).is_some());
    }

    #[tokio::test]
    async fn a_request_that_waits_goes_on_when_another_ends() {
        let budget = Budget::new(4);
        let thread = ThreadShares::new(Arc::new(Shares::new(budget.clone(), 1)));
        let first = thread.part_beyond(key(1)).await.unwrap();
        let _places = (budget.place().await, budget.place().await);
        let (second, ()) = tokio::join!(thread.part_beyond(key(1)), async {
            tokio::task::yield_now().await;
            thread.give_back(&first);
        });
        assert!(second.is_some());
    }

    #[tokio::test]
    async fn no_more_than_128_requests_of_a_client_wait() {
        let budget = Budget::new(4);
        let thread = ThreadShares::new(Arc::new(Shares::new(budget.clone(), 1)));
        let first = thread.part_beyond(key(1)).await.unwrap();
        let _places = (budget.place().await, budget.place().await);
        let mut waiting: Vec<_> = (0..2 * WAITING).map(|_| Box::pin(thread.part_beyond(key(1)))).collect();
        let mut refused = 0;
        std::future::poll_fn(|cx| {
            for one in &mut waiting {
                refused += usize::from(one.as_mut().poll(cx).is_ready());
            }
            std::task::Poll::Ready(())
        })
        .await;
        assert_eq!(refused, WAITING);
        drop(waiting);
        thread.give_back(&first);
        assert!(thread.shared.lock().is_empty());
    }

    #[tokio::test]
    async fn clients_without_requests_are_forgotten() {
        let budget = Budget::new(4);
        let shared = impatient(&budget, 1);
        let thread = ThreadShares::new(Arc::clone(&shared));
        let _places = (budget.place().await, budget.place().await);
        for number in 0..100 {
            let own = thread.part(key(number)).unwrap();
            assert!(thread.part_beyond(key(number)).await.is_none());
            thread.give_back(&own);
            let beyond = thread.part_beyond(key(number)).await.unwrap();
            thread.give_back(&beyond);
        }
        assert!(thread.of_keys.0.borrow().is_empty());
        assert!(shared.lock().is_empty());
    }
}
