//! What one connection of a client makes the process hold in memory.
//!
//! The worst that a connection can hold cannot be reserved for each: over HTTP/2 it is some [16 MiB](super::ledger), so a few
//! hundred good clients would have no place. So what they do hold is counted, at each change, in the connection, for its
//! owner, and for all of the thread; and [before](Held::poll_room) a connection reads or takes more, it asks the
//! [budget](super::together) of its thread.
//!
//! Requests over HTTP/2 also need a [place](Held::open): they come in one piece, a hundred on each connection, and all of them
//! before the first one runs.

use std::cell::{Cell, OnceCell};
use std::future::poll_fn;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::time::timeout;

use super::activity::Activity;
use super::together::{Queue, Share, Together, Waiter};
use crate::vocabulary::network::ClientSite;

/// The memory of an open request over HTTP/2 beside its fields and its bodies, in bytes: its task, and what its path was read
/// in.
pub const OF_ONE_PLACE: usize = 32 << 10;
/// The memory of a piece of an answer beside its bytes, while the client does not take it.
const OF_ONE_PIECE: usize = 2 << 10;
/// The memory of a connection that does nothing, in bytes, with a first buffer of 16 KiB for what comes, and some that was read
/// beyond it. Seen were 36 KiB over HTTP/1.1 and 40 KiB over HTTP/2; TLS takes some [more](OF_TLS).
pub const OF_ONE_CONNECTION: usize = 48 << 10;
/// What TLS takes beside it.
pub const OF_TLS: usize = 8 << 10;
/// The part of hyper's buffer over HTTP/1.1 that [`OF_ONE_CONNECTION`] has already.
const FIRST_BUFFER: usize = 16 << 10;
/// The bytes of answers that h2 may have and the socket not, of one connection. More wait until the client takes some.
const UNSENT: usize = 2 << 20;
/// How long a request waits for a place.
const PATIENCE: Duration = Duration::from_secs(2);

/// Those whose connections count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Owner {
    Site(ClientSite),
    /// A connection of a trusted proxy, by its number: it stands for many clients, so it is alone, and goes last.
    Proxy(u64),
}

/// What one connection holds.
#[derive(Debug)]
pub(super) struct Held {
    owner: Owner,
    together: Rc<Together>,
    /// What all connections of the owner have.
    of_owner: Rc<Share>,
    must_go: Cell<bool>,
    /// Over HTTP/1, the bytes of a head that have come, and hyper's buffer for it, beyond the first. Over HTTP/2, what h2 has not
    /// been given.
    head: Cell<usize>,
    buffer: Cell<usize>,
    /// What the [streams](super::ledger) of a connection over HTTP/2 hold.
    streams: Cell<usize>,
    /// Bytes of answers that h2 has and the socket has not.
    unsent: Cell<usize>,
    /// Tells whether it must not be cut now.
    shelter: OnceCell<Rc<Activity>>,
    /// Answers that wait until the client takes some of what it has not.
    for_unsent: Queue,
    /// The task of the connection.
    task: Rc<Waiter>,
}

impl Held {
    pub(super) fn new(owner: Owner, together: &Rc<Together>) -> Rc<Self> {
        Rc::new(Self {
            owner,
            of_owner: together.of(owner),
            together: Rc::clone(together),
            must_go: Cell::default(),
            head: Cell::default(),
            buffer: Cell::default(),
            streams: Cell::default(),
            unsent: Cell::default(),
            shelter: OnceCell::new(),
            for_unsent: Queue::default(),
            task: Rc::default(),
        })
    }

    /// Whether the connection is to be cut because of what it holds.
    pub(super) const fn must_go(&self) -> bool {
        self.must_go.get()
    }

    /// Lets the connection be cut.
    pub(super) fn order_to_go(&self) {
        self.must_go.set(true);
        self.task.wake();
    }

    pub(super) const fn is_of_a_proxy(&self) -> bool {
        matches!(self.owner, Owner::Proxy(_))
    }

    pub(super) fn of_owner(&self) -> &Share {
        &self.of_owner
    }

    /// The task that serves the connection.
    pub(super) fn task(&self) -> &Waiter {
        &self.task
    }

    /// So many bytes are held.
    pub(super) fn bytes(&self) -> usize {
        self.buffer.get() + self.streams.get() + self.unsent.get()
    }

    fn change(&self, part: &Cell<usize>, to: usize) {
        let from = part.replace(to);
        if from != to {
            self.together.change(&self.of_owner, from, to, self.must_go());
        }
    }

    /// Ready if the connection may read more now. Its task is woken when it may.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        self.together.poll_room(&self.of_owner, &self.task, cx)
    }

    /// Over HTTP/1, `activity` tells whether a request is under way, which is not cut.
    pub(super) fn shelter(&self, activity: &Rc<Activity>) {
        // It is called once for each connection.
        let _ = self.shelter.set(Rc::clone(activity));
    }

    pub(super) fn is_sheltered(&self) -> bool {
        self.shelter.get().is_some_and(|activity| activity.is_busy())
    }

    /// hyper reads the head of a request into a buffer that has so much room left. Where that is filled, it takes one of twice
    /// the size without asking, so that counts from here on, until the next head comes. Ready if it may be read into.
    pub(super) fn poll_buffer(&self, room: usize, cx: &Context<'_>) -> Poll<()> {
        if self.head.get() == 0 {
            self.change(&self.buffer, 0);
            return Poll::Ready(());
        }
        let grown = (2 * (self.head.get() + room)).saturating_sub(FIRST_BUFFER);
        if grown > self.buffer.get() {
            ready!(self.poll_room(cx));
            self.change(&self.buffer, grown);
        }
        Poll::Ready(())
    }

    /// How many bytes of a head hyper may have at once: of the first ones so few that it does not take a larger buffer.
    pub(super) fn head_at_once(&self) -> usize {
        if self.head.get() == 0 { FIRST_BUFFER / 2 - 1 } else { usize::MAX }
    }

    /// So many bytes of a head have come over HTTP/1.
    pub(super) fn note_head(&self, bytes: usize) {
        self.head.set(self.head.get() + bytes);
    }

    /// A head over HTTP/1 has come whole. It counts for as long as its request is under way.
    pub(super) fn end_head(&self) {
        self.head.set(0);
    }

    /// So many bytes were read over HTTP/2 and wait until h2 takes them.
    pub(super) fn note_rest(&self, bytes: usize) {
        self.change(&self.buffer, bytes);
    }

    /// So much is held by the streams of a connection over HTTP/2.
    pub(super) fn note_streams(&self, bytes: usize) {
        self.change(&self.streams, bytes);
    }

    /// A request has come over HTTP/2. It has its place until this is dropped.
    ///
    /// Its owner may have as many as there are places left on the thread beside a quarter, which is kept for owners that have
    /// few: the rule of the [shares](crate::gateway::Shares) of what is forwarded. Some more may wait, as many as there is
    /// room left to wait.
    pub(super) fn open(self: &Rc<Self>) -> OpenRequest {
        let standing = if self.together.has_place(&self.of_owner) {
            Standing::Placed
        } else if self.of_owner.waiting.get() < self.together.left_to_wait() {
            Standing::Waiting
        } else {
            Standing::Refused
        };
        self.count(standing, 1);
        OpenRequest { held: Rc::clone(self), standing: Cell::new(standing), task: Rc::default() }
    }

    /// Counts one more request, or one less, for the owner and for the thread.
    fn count(&self, standing: Standing, change: isize) {
        for share in [&*self.of_owner, &self.together.all] {
            let cell = match standing {
                Standing::Placed => &share.placed,
                Standing::Waiting => &share.waiting,
                Standing::Refused => return,
            };
            cell.set(cell.get().saturating_add_signed(change));
        }
    }

    /// Nobody serves the connection any more. What others still hold of it counts until they drop it.
    pub(super) fn leave(&self) {
        self.task.leave();
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        for part in [&self.buffer, &self.streams, &self.unsent] {
            self.change(part, 0);
        }
        self.together.forget(self.owner);
    }
}

/// Whether a request over HTTP/2 may go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    Placed,
    /// No place is free for its owner; there may be one soon.
    Waiting,
    /// Nor may it wait.
    Refused,
}

/// A request over HTTP/2.
#[derive(Debug)]
pub(super) struct OpenRequest {
    held: Rc<Held>,
    standing: Cell<Standing>,
    /// The task that waits for room for its answer.
    task: Rc<Waiter>,
}

impl OpenRequest {
    pub(super) fn has_place(&self) -> bool {
        self.standing.get() == Standing::Placed
    }

    /// Whether it has no place and may not wait for one.
    pub(super) fn is_refused(&self) -> bool {
        self.standing.get() == Standing::Refused
    }

    /// Waits for a place; false if there is none in time.
    pub(super) async fn wait(&self) -> bool {
        if self.is_refused() {
            return false;
        }
        let waiter = Rc::<Waiter>::default();
        let turn = poll_fn(|cx| {
            if self.takes_place() {
                return Poll::Ready(());
            }
            self.held.together.wait_for_place(&self.held, &waiter, cx);
            Poll::Pending
        });
        let came = timeout(PATIENCE, turn).await.is_ok();
        waiter.leave();
        came
    }

    fn takes_place(&self) -> bool {
        let Held { together, of_owner, .. } = &*self.held;
        if !self.has_place() && together.has_place(of_owner) {
            self.held.count(self.standing.replace(Standing::Placed), -1);
            self.held.count(Standing::Placed, 1);
        }
        self.has_place()
    }

    /// Ready if the next piece of its answer may be taken from the upstream now. The task is woken when it may.
    pub(super) fn poll_room(&self, cx: &Context<'_>) -> Poll<()> {
        let Held { together, of_owner, unsent, for_unsent, .. } = &*self.held;
        if unsent.get() >= UNSENT {
            for_unsent.push(&self.task, cx);
            return Poll::Pending;
        }
        together.poll_room(of_owner, &self.task, cx)
    }

    /// Bytes of its answer that h2 gets now.
    pub(super) fn hand_over(&self, bytes: Bytes) -> Unsent {
        let held = Rc::clone(&self.held);
        held.change(&held.unsent, held.unsent.get() + bytes.len() + OF_ONE_PIECE);
        Unsent { bytes, held }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        self.task.leave();
        self.held.count(self.standing.get(), -1);
        if self.has_place() {
            self.held.together.offer_place();
        }
    }
}

/// Bytes of an answer that count as held until they are written or dropped.
#[derive(Debug)]
pub(super) struct Unsent {
    bytes: Bytes,
    held: Rc<Held>,
}

impl Unsent {
    fn took(&self, bytes: usize) {
        self.held.change(&self.held.unsent, self.held.unsent.get().saturating_sub(bytes));
    }
}

impl Buf for Unsent {
    fn remaining(&self) -> usize {
        self.bytes.remaining()
    }

    fn chunk(&self) -> &[u8] {
        self.bytes.chunk()
    }

    fn advance(&mut self, count: usize) {
        self.bytes.advance(count);
        self.took(count);
    }
}

impl Drop for Unsent {
    fn drop(&mut self) {
        self.took(self.bytes.len() + OF_ONE_PIECE);
        // There are more pieces than answers that wait for the client to take some, so each of these is woken.
        self.held.for_unsent.wake_first();
    }
}

#[cfg(test)]
mod tests {
    use tokio::task::yield_now;

    use super::*;
    use crate::vocabulary::network::ClientNetwork;

    const MIB: usize = 1 << 20;

    fn site(number: u8) -> Owner {
        Owner::Site(ClientNetwork::of([192, 0, number, 1].into()).site())
    }

    #[test]
    fn what_is_held_counts_until_it_is_given_back() {
        let together = Rc::<Together>::default();
        let held = Held::new(site(1), &together);
        let request = held.open();
        let mut unsent = request.hand_over(Bytes::from_static(&[0; 100]));
        let other = request.hand_over(Bytes::from_static(&[0; 50]));
        unsent.advance(30);
        assert_eq!(held.bytes(), 120 + 2 * OF_ONE_PIECE);
        drop(request);
        assert_eq!(together.all.bytes(), 120 + 2 * OF_ONE_PIECE, "h2 still has it");
        drop((unsent, other));
        held.note_streams(7);
        assert_eq!((held.bytes(), held.of_owner().bytes(), together.all.bytes()), (7, 7, 7));
        drop(held);
        assert_eq!(together.all.bytes(), 0);
    }

    #[test]
    fn a_head_over_http1_counts_with_the_buffer_that_it_will_need_until_the_next_one_comes() {
        let (held, cx) = (Held::new(site(1), &Rc::default()), Context::from_waker(std::task::Waker::noop()));
        assert!(held.poll_buffer(8 << 10, &cx).is_ready());
        assert_eq!(held.bytes(), 0, "every connection has this buffer");
        held.note_head(8 << 10);
        assert!(held.poll_buffer(16 << 10, &cx).is_ready());
        assert_eq!(held.bytes(), 32 << 10);
        held.end_head();
        assert_eq!(held.bytes(), 32 << 10, "its request waits");
        assert!(held.poll_buffer(8 << 10, &cx).is_ready());
        assert_eq!(held.bytes(), 0, "the next one comes");
    }

    #[test]
    fn an_answer_waits_where_its_client_takes_nothing_of_others_and_goes_on_once_it_does() {
        let (held, cx) = (Held::new(site(1), &Rc::default()), Context::from_waker(std::task::Waker::noop()));
        let request = held.open();
        let mut pieces = Vec::new();
        while request.poll_room(&cx).is_ready() {
            pieces.push(request.hand_over(Bytes::from_static(&[0; 16 << 10])));
        }
        assert!((UNSENT..UNSENT + MIB / 32).contains(&held.bytes()), "{}", held.bytes());
        drop(pieces.pop());
        assert!(request.poll_room(&cx).is_ready());
    }

    /// As many requests of the connection as get a place at once.
    fn placed(held: &Rc<Held>, at_most: usize) -> Vec<OpenRequest> {
        (0..at_most).map(|_| held.open()).take_while(OpenRequest::has_place).collect()
    }

    #[test]
    fn requests_of_many_connections_leave_places_for_the_next() {
        let together = Rc::<Together>::default();
        let connection = |n| Held::new(site(n), &together);
        assert_eq!(placed(&connection(0), 10_000).len(), 10_000, "there is no limit before one is set");
        together.limit(1000, usize::MAX);
        let mut all = Vec::new();
        for n in 0..30 {
            let more = placed(&connection(n), 100);
            // A 32nd of a quarter.
            assert!(more.len() >= 7, "{n}");
            all.extend(more);
        }
        assert!(connection(200).open().has_place(), "{} are open", all.len());
        drop(all);
        // A client has no more for having many connections.
        let all: Vec<_> = (0..20).flat_map(|_| placed(&connection(1), 100)).collect();
        assert_eq!(all.len(), 375);
        drop(all);
        assert_eq!(together.all.placed.get() + together.all.waiting.get(), 0);
        assert_eq!(together.owners(), 0);
    }

    #[tokio::test]
    async fn a_place_that_is_given_back_goes_to_the_first_that_may_have_it_and_no_other_is_woken() {
        let together = Rc::<Together>::default();
        together.limit(80, usize::MAX);
        let (one, two) = (Held::new(site(1), &together), Held::new(site(2), &together));
        let mut placed = placed(&one, 80);
        let others: Vec<_> = (0..20).map(|_| two.open()).take_while(OpenRequest::has_place).collect();
        assert_eq!((placed.len(), others.len()), (30, 15));
        // The first waits for a place of an owner that has too many.
        let (stuck, waiting) = (one.open(), two.open());
        assert!(!waiting.has_place() && !waiting.is_refused());
        let polls = Cell::new(0);
        let counted = async {
            let wait = std::pin::pin!(waiting.wait());
            let mut wait = wait;
            poll_fn(|cx| {
                polls.set(polls.get() + 1);
                wait.as_mut().poll(cx)
            })
            .await
        };
        let given = async {
            yield_now().await;
            placed.truncate(26);
            yield_now().await;
        };
        tokio::select! {
            biased;
            (came, ()) = async { tokio::join!(counted, given) } => assert!(came),
            _ = stuck.wait() => panic!("its owner has more than are left"),
        }
        assert!(waiting.has_place() && polls.get() <= 3, "{}", polls.get());
        drop((waiting, stuck));
        assert_eq!((two.of_owner.placed.get(), together.all.waiting.get()), (15, 0));
    }

    #[test]
    fn few_requests_wait_and_one_client_leaves_others_room_to_wait() {
        let together = Rc::<Together>::default();
        together.limit(80, usize::MAX);
        let open = |n: u8| -> Vec<_> {
            let held = Held::new(site(n), &together);
            (0..60).map(|_| held.open()).collect()
        };
        let (one, other) = (open(1), open(2));
        let waiting = |requests: &[OpenRequest]| {
            requests.iter().filter(|request| !request.has_place() && !request.is_refused()).count()
        };
        assert_eq!((waiting(&one), waiting(&other)), (5, 3));
    }
}
