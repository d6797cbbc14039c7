//! What the connections of one worker may hold together: places for requests over HTTP/2, and memory.
//!
//! The memory is a budget that is asked before anything is read or taken that would be held, so it is never exceeded by more than
//! [`STEP`], whatever clients do. Where it is used up, the connections go that hold the most, of the clients that hold the most
//! (the "longest queue drop" of Suter, Lakshman, Stiliadis and Choudhury, "Design considerations for supporting TCP with
//! per-flow queueing", 1998), and who asks waits. The last quarter is for clients that hold little, so that one who fills the
//! rest does not stop them.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};

use super::held::{Held, Owner};

/// What can be held beyond the budget of a thread, in bytes: the most that one look at it lets in. That is 64 KiB, a header
/// list that does not end (608 KiB), and what h2 makes of one that does (64 KiB of fields, which take up to 512 KiB until those
/// beyond the limit are dropped).
pub const STEP: usize = 3 << 19;
/// A client that holds less is never cut while there is any budget left, and may use all of it. In bytes.
const LITTLE: usize = 256 << 10;
/// The owners for each of which a part of the kept places is enough.
const OWNERS: usize = 32;
/// For so many places one request may wait.
const PLACES_OF_ONE_THAT_WAITS: usize = 8;

/// What a worker may let its clients have. Set once, when all workers have been started.
#[derive(Debug)]
pub(super) struct Allowed {
    /// Places for requests over HTTP/2.
    places: AtomicUsize,
    /// Bytes.
    memory: AtomicUsize,
}

impl Default for Allowed {
    fn default() -> Self {
        let [places, memory] = [usize::MAX; 2].map(AtomicUsize::new);
        Self { places, memory }
    }
}

impl Allowed {
    pub(super) fn set(&self, places: usize, memory: usize) {
        self.places.store(places, Ordering::Relaxed);
        self.memory.store(memory, Ordering::Relaxed);
    }
}

/// What one owner has, or all.
#[derive(Debug, Default)]
pub(super) struct Share {
    pub(super) placed: Cell<usize>,
    pub(super) waiting: Cell<usize>,
    bytes: Cell<usize>,
    /// Those of connections that must go.
    going: Cell<usize>,
}

impl Share {
    pub(super) fn bytes(&self) -> usize {
        self.bytes.get()
    }

    /// What will be left when all have gone that must.
    fn staying(&self) -> usize {
        self.bytes.get().saturating_sub(self.going.get())
    }

    fn change(&self, from: usize, to: usize, is_going: bool) {
        let cells = [Some(&self.bytes), is_going.then_some(&self.going)];
        cells.into_iter().flatten().for_each(|cell| cell.set((cell.get() + to).saturating_sub(from)));
    }
}

/// What the connections of one worker share.
#[derive(Debug, Default)]
pub(super) struct Together {
    allowed: Arc<Allowed>,
    pub(super) all: Share,
    /// Those of each owner with a connection.
    owners: RefCell<HashMap<Owner, Rc<Share>>>,
    open: RefCell<HashMap<u64, Rc<Held>>>,
    /// Those who held little when they began to wait, and the others.
    little_for_memory: Queue,
    for_memory: Queue,
    for_a_place: RefCell<VecDeque<(Rc<Held>, Rc<Waiter>)>>,
}

impl Together {
    pub(super) fn new(allowed: Arc<Allowed>) -> Rc<Self> {
        Rc::new(Self { allowed, ..Self::default() })
    }

    /// Where that of this owner is counted. Looked up once for a connection.
    pub(super) fn of(&self, owner: Owner) -> Rc<Share> {
        Rc::clone(self.owners.borrow_mut().entry(owner).or_default())
    }

    pub(super) fn join(&self, number: u64, held: &Rc<Held>) {
        self.open.borrow_mut().insert(number, Rc::clone(held));
    }

    pub(super) fn leave(&self, number: u64) {
        let left = self.open.borrow_mut().remove(&number);
        // Somebody may have waited for what it held, and it may be the last one.
        drop(left);
    }

    /// Whether no connection is open.
    pub(super) fn is_empty(&self) -> bool {
        self.open.borrow().is_empty()
    }

    /// Has every connection look.
    pub(super) fn wake_all(&self) {
        self.open.borrow().values().for_each(|held| {
            held.task().wake();
        });
    }

    /// An owner may have no connection any more.
    pub(super) fn forget(&self, owner: Owner) {
        let mut owners = self.owners.borrow_mut();
        // The table has one, and the connection that ends.
        if owners.get(&owner).is_some_and(|share| Rc::strong_count(share) == 2) {
            owners.remove(&owner);
        }
    }
}

/// Memory.
impl Together {
    /// What is held has changed. `is_going`: by a connection that must go.
    pub(super) fn change(&self, owner: &Share, from: usize, to: usize, is_going: bool) {
        [&self.all, owner].into_iter().for_each(|share| share.change(from, to, is_going));
        if to < from {
            self.wake_next();
        }
    }

    /// Ready if this owner may hold more now, up to [`STEP`]. Else connections are told to go, and `waiter` is woken when
    /// something was given back.
    pub(super) fn poll_room(&self, owner: &Share, waiter: &Rc<Waiter>, cx: &Context<'_>) -> Poll<()> {
        if self.has_room(owner) {
            self.wake_next();
            return Poll::Ready(());
        }
        self.relieve();
        let queue = if self.is_little(owner) { &self.little_for_memory } else { &self.for_memory };
        queue.push(waiter, cx);
        Poll::Pending
    }

    fn has_room(&self, owner: &Share) -> bool {
        self.all.bytes() < if self.is_little(owner) { self.memory() } else { self.for_others() }
    }

    /// Whether an owner holds so little that it is not cut while anything is left, and that the kept quarter is for it too.
    fn is_little(&self, owner: &Share) -> bool {
        owner.bytes() < LITTLE.min(self.memory() / 16)
    }

    fn memory(&self) -> usize {
        self.allowed.memory.load(Ordering::Relaxed)
    }

    /// The part of the memory that owners can fill that hold more than a little.
    fn for_others(&self) -> usize {
        self.memory() / 4 * 3
    }

    /// Lets the next one that waits look, if there is room for it.
    pub(super) fn wake_next(&self) {
        let queues = [(&self.little_for_memory, self.memory()), (&self.for_memory, self.for_others())];
        for (queue, room) in queues {
            if self.all.bytes() < room && queue.wake_first() {
                return;
            }
        }
    }

    /// Tells connections to go, until what the others hold leaves a quarter of the budget, and an eighth more, so that not
    /// every look costs a connection.
    fn relieve(&self) {
        let enough = self.memory() / 8 * 5;
        while self.all.staying() > enough {
            let open = self.open.borrow();
            let stay =
                open.values().filter(|held| !held.must_go() && !held.is_sheltered() && held.bytes() > 0);
            let rank = |held: &&Rc<Held>| (!held.is_of_a_proxy(), held.of_owner().staying(), held.bytes());
            let large = |held: &&Rc<Held>| !self.is_little(held.of_owner());
            let largest = if self.all.bytes() < self.memory() {
                stay.filter(large).max_by_key(rank)
            } else {
                stay.max_by_key(rank)
            };
            let Some(largest) = largest else { return };
            for share in [&self.all, largest.of_owner()] {
                share.going.set(share.going.get() + largest.bytes());
            }
            largest.order_to_go();
        }
    }

    #[cfg(test)]
    pub(super) fn limit(&self, places: usize, memory: usize) {
        self.allowed.set(places, memory);
    }

    #[cfg(test)]
    pub(super) fn owners(&self) -> usize {
        self.owners.borrow().len()
    }
}

/// Places.
impl Together {
    pub(super) fn has_place(&self, owner: &Share) -> bool {
        let (own, kept) = (owner.placed.get(), self.places() / 4);
        let left = self.places().saturating_sub(self.all.placed.get());
        if own < (kept / OWNERS).max(1) { left > 0 } else { own + kept < left }
    }

    pub(super) fn left_to_wait(&self) -> usize {
        (self.places() / PLACES_OF_ONE_THAT_WAITS).saturating_sub(self.all.waiting.get())
    }

    fn places(&self) -> usize {
        self.allowed.places.load(Ordering::Relaxed)
    }

    /// Has `waiter` woken when a place is free for its owner.
    pub(super) fn wait_for_place(&self, held: &Rc<Held>, waiter: &Rc<Waiter>, cx: &Context<'_>) {
        waiter.remember(cx);
        if !waiter.is_queued.replace(true) {
            let mut waiting = self.for_a_place.borrow_mut();
            waiting.retain(|(_, waiter)| waiter.is_there());
            waiting.push_back((Rc::clone(held), Rc::clone(waiter)));
        }
    }

    /// A place was given back: the first one that could have it is woken.
    pub(super) fn offer_place(&self) {
        let mut waiting = self.for_a_place.borrow_mut();
        waiting.retain(|(_, waiter)| waiter.is_there());
        let first = waiting.iter().position(|(held, _)| self.has_place(held.of_owner()));
        if let Some((_, waiter)) = first.and_then(|n| waiting.remove(n)) {
            waiter.is_queued.set(false);
            waiter.wake();
        }
    }
}

/// A task that waits for memory or a place. Where it ends, [`leave`](Self::leave) must be called.
#[derive(Debug, Default)]
pub(super) struct Waiter {
    waker: RefCell<Option<Waker>>,
    is_queued: Cell<bool>,
}

impl Waiter {
    pub(super) fn remember(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        if waker.as_ref().is_none_or(|waker| !waker.will_wake(cx.waker())) {
            *waker = Some(cx.waker().clone());
        }
    }

    /// Wakes the task, if it is still there.
    pub(super) fn wake(&self) -> bool {
        self.waker.borrow().as_ref().inspect(|waker| waker.wake_by_ref()).is_some()
    }

    pub(super) fn leave(&self) {
        self.waker.take();
    }

    fn is_there(&self) -> bool {
        self.waker.borrow().is_some()
    }
}

/// Those who wait, in their order.
#[derive(Debug, Default)]
pub(super) struct Queue(RefCell<VecDeque<Rc<Waiter>>>);

impl Queue {
    /// Lets a task wait, unless it waits here or elsewhere already.
    pub(super) fn push(&self, waiter: &Rc<Waiter>, cx: &Context<'_>) {
        waiter.remember(cx);
        if !waiter.is_queued.replace(true) {
            self.0.borrow_mut().push_back(Rc::clone(waiter));
        }
    }

    /// Wakes the first one that is still there, if there is one.
    pub(super) fn wake_first(&self) -> bool {
        loop {
            let Some(waiter) = self.0.borrow_mut().pop_front() else { return false };
            waiter.is_queued.set(false);
            if waiter.wake() {
                return true;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use fastrand::Rng;

    use super::super::arrivals::Arrivals;
    use super::super::frames::{self, CONTINUATION, DATA, END_HEADERS, HEADERS, RST_STREAM};
    use super::super::held::{OpenRequest, Unsent};
    use super::super::ledger::{Body, Ending, Ledger};
    use super::*;
    use crate::upstream::client_body::Followed;
    use crate::vocabulary::network::ClientNetwork;

    const MIB: usize = 1 << 20;
    const BUDGET: usize = 16 * MIB;

    fn site(number: u8) -> Owner {
        Owner::Site(ClientNetwork::of([192, 0, number, 1].into()).site())
    }

    fn joined(together: &Rc<Together>, number: u64, owner: Owner, bytes: usize) -> Rc<Held> {
        let held = Held::new(owner, together);
        together.join(number, &held);
        held.note_streams(bytes);
        held
    }

    fn limited(memory: usize) -> Rc<Together> {
        let together = Rc::<Together>::default();
        together.limit(usize::MAX, memory);
        together
    }

    fn asks(held: &Held) -> bool {
        held.poll_room(&Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn the_client_that_holds_the_most_loses_its_largest_connection_first_and_no_more_than_needed() {
        let together = limited(BUDGET);
        let many: Vec<_> = (0..10).map(|n| joined(&together, n, site(1), MIB + n as usize)).collect();
        let other = joined(&together, 99, site(2), 3 * MIB);
        assert!(!asks(&other));
        let cut: Vec<_> = many.iter().map(|held| held.must_go()).collect();
        // What is left of thirteen is ten.
        assert_eq!(cut, [[false; 6].as_slice(), &[true; 4]].concat());
        assert!(!other.must_go());
        assert!(!asks(&other), "they are still there");
        (0..10).for_each(|n| together.leave(n));
        drop(many);
        assert!(asks(&other));
    }

    #[test]
    fn a_proxy_goes_after_every_other_client_that_holds_much() {
        let together = limited(BUDGET);
        let proxy = joined(&together, 1, Owner::Proxy(1), 8 * MIB);
        let little: Vec<_> = (10..20).map(|n| joined(&together, n.into(), site(n), LITTLE - 1)).collect();
        let client = joined(&together, 2, site(1), 3 * MIB);
        assert!(!asks(&client));
        assert!(client.must_go() && proxy.must_go(), "the client alone was not enough");
        assert!(
            little.iter().all(|held| !held.must_go() && asks(held)),
            "who holds little loses nothing and reads on"
        );
    }

    #[test]
    fn where_all_is_used_up_by_those_who_hold_little_some_of_them_go() {
        let together = limited(BUDGET);
        let little: Vec<_> = (0..80).map(|n| joined(&together, n.into(), site(n), LITTLE - 1)).collect();
        assert!(!asks(&little[0]));
        assert!(little.iter().any(|held| held.must_go()));
        let left = little.iter().filter(|held| !held.must_go()).map(|held| held.bytes()).sum::<usize>();
        assert!(left <= BUDGET / 8 * 5 && left > BUDGET / 2, "{left}");
    }

    fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
    }

    /// A connection that does what it likes.
    struct Client {
        number: u64,
        held: Rc<Held>,
        ledger: Rc<Ledger>,
        arrivals: Arrivals,
        rest: Vec<u8>,
        next: u32,
        requests: Vec<(u32, OpenRequest, Option<Body>)>,
        unsent: Vec<Unsent>,
    }

    impl Client {
        fn new(together: &Rc<Together>, number: u64) -> Self {
            let owner =
                if number.is_multiple_of(5) { Owner::Proxy(number) } else { site((number % 7) as u8) };
            let held = joined(together, number, owner, 0);
            let (ledger, rest) = (Ledger::new(&held), vec![0; frames::PREFACE]);
            let (arrivals, requests, unsent) = (Arrivals::default(), Vec::new(), Vec::new());
            Self { number, held, ledger, arrivals, rest, next: 1, requests, unsent }
        }

        /// Something that a client sends.
        fn send(&mut self, rng: &mut Rng) {
            let stream = 1 + 2 * rng.u32(0..=self.next / 2);
            let sent = match rng.u8(0..8) {
                0 | 1 => {
                    self.next += 2;
                    let fields = [0x44, 1, b'/'].repeat(rng.usize(1..300));
                    frame(HEADERS, END_HEADERS * rng.u8(0..2), self.next, &fields)
                }
                2 => frame(CONTINUATION, END_HEADERS, self.next, &[0x84]),
                3 => frame(RST_STREAM, 0, stream, &[0, 0, 0, 8]),
                4 => frame(6, 0, 0, &vec![0; rng.usize(0..16_000)]),
                _ => {
                    let size = if rng.bool() { 1 } else { rng.usize(0..16 << 10) };
                    frame(DATA, 0, stream, &vec![0; size]).repeat(rng.usize(1..20))
                }
            };
            self.rest.extend(sent);
        }

        /// What h2 reads, as far as it may.
        fn read(&mut self) {
            if self.ledger.poll_room(&Context::from_waker(Waker::noop())).is_pending() {
                return;
            }
            let offered = &self.rest[..self.rest.len().min(16 << 10)];
            let (arrivals, mut taken) = (&mut self.arrivals, 0);
            self.ledger.pass(|arrived| taken = arrivals.pass(offered, arrived));
            assert!(taken > 0 || offered.is_empty());
            self.rest.drain(..taken);
            if let Some(id) = self.ledger.arrived() {
                let entry = self.ledger.begin(rng_of(id), true, &Rc::<Ending>::default());
                self.requests.push((id, self.held.open(), Some(Body(entry))));
            }
        }

        /// What the gateway does.
        fn serve(&mut self, rng: &mut Rng) {
            if self.requests.is_empty() {
                return;
            }
            let n = rng.usize(0..self.requests.len());
            let (id, request, body) = &mut self.requests[n];
            match rng.u8(0..6) {
                0 => body.iter().for_each(|body| (0..10).for_each(|_| body.took_frame())),
                1 => *body = None,
                2 => {
                    self.ledger.written(frames::Frame::parse(&[0, 0, 0, DATA, 1, 0, 0, 0, *id as u8]));
                    self.requests.swap_remove(n);
                }
                3 => self.unsent.truncate(rng.usize(0..10)),
                _ if request.poll_room(&Context::from_waker(Waker::noop())).is_ready() => {
                    self.unsent.push(request.hand_over(Bytes::from(vec![0; rng.usize(1..16 << 10)])));
                }
                _ => {}
            }
        }
    }

    fn rng_of(id: u32) -> usize {
        (id as usize * 7919) % (64 << 10)
    }

    #[test]
    fn whatever_clients_send_the_budget_holds_and_who_holds_little_gets_on() {
        for seed in 0..20 {
            let mut rng = Rng::with_seed(seed);
            let together = limited(BUDGET);
            let mut next = 60;
            let mut clients: Vec<_> = (0..next).map(|n| Client::new(&together, n)).collect();
            let good = joined(&together, u64::MAX, site(200), 100 << 10);
            let mut cut = 0;
            for step in 0..10_000 {
                let n = rng.usize(0..clients.len());
                let client = &mut clients[n];
                match rng.u8(0..3) {
                    0 => client.send(&mut rng),
                    1 => client.read(),
                    _ => client.serve(&mut rng),
                }
                let all = together.all.bytes();
                assert!(all <= BUDGET + STEP, "seed {seed}, step {step}: {all}");
                assert!(client.held.bytes() < 20 * MIB, "seed {seed}, step {step}");
                if rng.u8(0..20) == 0 {
                    let may_read = asks(&good);
                    assert!(may_read || all >= BUDGET, "seed {seed}, step {step}: {all}");
                    for client in &mut clients {
                        if client.held.must_go() {
                            together.leave(client.number);
                            *client = Client::new(&together, next);
                            (next, cut) = (next + 1, cut + 1);
                        }
                    }
                    assert!(asks(&good) && !good.must_go(), "seed {seed}, step {step}: {all}");
                }
            }
            assert!(cut > 10, "seed {seed}: {cut}");
            let sum: usize = clients.iter().map(|client| client.held.bytes()).sum();
            assert_eq!(together.all.bytes(), sum + good.bytes(), "seed {seed}");
            clients.iter().for_each(|client| together.leave(client.number));
            drop(clients);
            assert_eq!(together.all.bytes(), good.bytes(), "seed {seed}: all is given back");
        }
    }
}
