//! What each connection of a client makes the process hold in memory, and which connections are cut when it is too much.
//!
//! The worst that one connection can hold cannot be reserved for each: over HTTP/2 it is [43 MiB](Held::bytes) and more, so a
//! few hundred good clients would have no place. So what they do hold is counted, beside the requests and at no cost for them,
//! and looked at only where the process has grown too large. Then the connections go that hold the most, of the clients
//! that hold the most (the "longest queue drop" of Suter, Lakshman, Stiliadis and Choudhury, "Design considerations for
//! supporting TCP with per-flow queueing", 1998): whoever holds less than others loses nothing.
//!
//! Requests over HTTP/2 also need a [place](Held::open): they come in one piece, a hundred on each connection, and all of them
//! before the first one runs.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::time::{sleep, timeout};

use crate::vocabulary::network::ClientSite;

/// The memory of an open request over HTTP/2 beside its bodies, in bytes: its head, its fields, its task.
pub const OF_ONE_PLACE: usize = 32 << 10;
/// The memory that a DATA frame can keep from being freed, in bytes, however short it is: h2 gives out parts of what it
/// has read in one piece.
const OF_ONE_FRAME: usize = 16 << 10;
/// The same for all fields that the client has put into the table of HPACK: 4 KiB of entries, each of at least 32 bytes
/// (RFC 7541, section 4.1), and each a part of 8 KiB that were read.
const OF_TABLE: usize = 1 << 20;
/// The memory of a header list that has not ended, in bytes: compressed, a field is one byte on the wire.
const OF_OPEN_LIST: usize = 512 << 10;
/// The memory of a piece of an answer beside its bytes, and of its answer's head, while the client does not take them.
const OF_ONE_PIECE: usize = 2 << 10;
/// The memory of a connection that does nothing, in bytes. Seen were 36 KiB over HTTP/1.1 and 40 KiB over HTTP/2, with TLS 8 KiB
/// more.
pub const OF_ONE_CONNECTION: usize = 36 << 10;
/// A client that holds less is not cut, in bytes, unless memory is scarce.
const LEAST: usize = 2 << 20;
/// Connections that are cut at once. Then it is seen what that has brought.
const AT_ONCE: usize = 64;
/// How long a request waits for a place.
const PATIENCE: Duration = Duration::from_secs(2);
/// How often it looks for one.
const LOOK: Duration = Duration::from_millis(20);
/// The owners for each of which a part of the kept places is enough.
const OWNERS: usize = 32;
/// For so many places one request may wait.
const PLACES_OF_ONE_THAT_WAITS: usize = 8;

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
    must_go: Cell<bool>,
    /// hyper's buffer for what is read, over HTTP/1.1.
    buffer: Cell<usize>,
    /// All bytes that were read, over HTTP/2.
    read: Cell<usize>,
    /// Those read since h2 last gave the client back a part of its window, and the DATA frames among them.
    unread: Cell<usize>,
    frames: Cell<usize>,
    is_in_list: Cell<bool>,
    requests: Cell<usize>,
    /// The requests of all connections of the owner.
    of_owner: Rc<Requests>,
    /// Bytes of answers that h2 has and the socket has not.
    unsent: Cell<usize>,
}

impl Held {
    pub(super) fn new(owner: Owner, together: &Rc<Together>) -> Rc<Self> {
        Rc::new(Self {
            owner,
            of_owner: together.of(owner),
            together: Rc::clone(together),
            must_go: Cell::default(),
            buffer: Cell::default(),
            read: Cell::default(),
            unread: Cell::default(),
            frames: Cell::default(),
            is_in_list: Cell::default(),
            requests: Cell::default(),
            unsent: Cell::default(),
        })
    }

    /// Whether the connection is to be cut because of what it holds.
    pub(super) const fn must_go(&self) -> bool {
        self.must_go.get()
    }

    /// hyper reads into a buffer that has so much room.
    pub(super) fn note_buffer(&self, room: usize) {
        if room > self.buffer.get() {
            self.buffer.set(room);
        }
    }

    /// Bytes of HTTP/2 have come.
    pub(super) fn note_read(&self, bytes: usize) {
        self.read.set(self.read.get().saturating_add(bytes));
        self.unread.set(self.unread.get().saturating_add(bytes));
    }

    pub(super) fn note_data_frame(&self) {
        self.frames.set(self.frames.get().saturating_add(1));
    }

    /// A frame of a header list has begun to come.
    pub(super) fn note_list(&self, ends: bool) {
        self.is_in_list.set(!ends);
    }

    /// h2 gives the client back a part of the window of the connection: at least half of it has been read.
    pub(super) fn note_window(&self) {
        self.unread.set(0);
        self.frames.set(0);
    }

    /// A request has come over HTTP/2. It is held until this is dropped.
    ///
    /// Its owner may have as many as there are places left on the thread beside a quarter, which is kept for owners that have
    /// few: the rule of the [shares](crate::gateway::Shares) of what is forwarded. Some more may wait, as many as there is
    /// room left to wait.
    pub(super) fn open(self: &Rc<Self>) -> OpenRequest {
        self.requests.set(self.requests.get() + 1);
        let standing = self.together.standing(&self.of_owner);
        self.count(standing, 1);
        OpenRequest { held: Rc::clone(self), standing: Cell::new(standing) }
    }

    /// Counts one more request, or one less, for the owner and for the thread.
    fn count(&self, standing: Standing, change: isize) {
        for requests in [&*self.of_owner, &self.together.requests] {
            let cell = match standing {
                Standing::Placed => &requests.placed,
                Standing::Waiting => &requests.waiting,
                Standing::Refused => return,
            };
            cell.set(cell.get().saturating_add_signed(change));
        }
    }

    /// At most so many bytes are held, as far as they are worth counting.
    ///
    /// Over HTTP/2 a connection with the settings of [`http2`](super::http2) can come to 100 requests (3.2 MiB), 1 MiB of
    /// bodies in frames of 256 bytes (h2 forbids many shorter ones) that keep 32 times as much, 100 answers of 80 KiB of which
    /// the client takes nothing, a table and a header list: 43 MiB. It can come to more where short frames stand between long
    /// ones that are taken: h2 forbids fewer of them then, and each keeps the piece in which it was read. Honest clients come to
    /// some 100 KiB.
    pub(super) fn bytes(&self) -> usize {
        let requests = self.requests.get();
        let kept_by_frames = self.frames.get().saturating_mul(OF_ONE_FRAME);
        let bodies = if requests == 0 { 0 } else { self.unread.get().min(kept_by_frames) };
        let list = if self.is_in_list.get() { OF_OPEN_LIST } else { 0 };
        let table = self.read.get().min(OF_TABLE);
        self.buffer.get() + table + list + requests * OF_ONE_PLACE + bodies + self.unsent.get()
    }

    fn order_to_go(&self) {
        self.must_go.set(true);
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        // The table has one, and this connection.
        if Rc::strong_count(&self.of_owner) == 2 {
            self.together.owners.borrow_mut().remove(&self.owner);
        }
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

/// A request over HTTP/2 that is held.
#[derive(Debug)]
pub(super) struct OpenRequest {
    held: Rc<Held>,
    standing: Cell<Standing>,
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
        let turn = async {
            while !self.takes_place() {
                sleep(LOOK).await;
            }
        };
        !self.is_refused() && timeout(PATIENCE, turn).await.is_ok()
    }

    fn takes_place(&self) -> bool {
        let Held { together, of_owner, .. } = &*self.held;
        if !self.has_place() && together.has_place(of_owner) {
            self.held.count(self.standing.replace(Standing::Placed), -1);
            self.held.count(Standing::Placed, 1);
        }
        self.has_place()
    }

    /// Bytes of its answer that h2 gets now.
    pub(super) fn hand_over(&self, bytes: Bytes) -> Unsent {
        let held = Rc::clone(&self.held);
        held.unsent.set(held.unsent.get() + bytes.len() + OF_ONE_PIECE);
        Unsent { bytes, held }
    }
}

impl Drop for OpenRequest {
    fn drop(&mut self) {
        let left = self.held.requests.get() - 1;
        self.held.requests.set(left);
        self.held.count(self.standing.get(), -1);
        if left == 0 {
            // No body is open, so h2 keeps none.
            self.held.note_window();
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
        self.held.unsent.set(self.held.unsent.get().saturating_sub(bytes));
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
    }
}

/// What one worker is asked to give back. Its connections look at it whenever they run: a thread with much to do comes to its
/// orders too late.
#[derive(Debug)]
pub(super) struct Asked {
    enough: AtomicUsize,
    kept: AtomicUsize,
    is_scarce: AtomicBool,
    /// Places for requests over HTTP/2.
    places: AtomicUsize,
}

impl Default for Asked {
    fn default() -> Self {
        let [enough, kept] = [0; 2].map(AtomicUsize::new);
        Self { enough, kept, is_scarce: AtomicBool::new(false), places: AtomicUsize::new(usize::MAX) }
    }
}

impl Asked {
    /// Lets clients have so many requests over HTTP/2 at once.
    pub(super) fn limit(&self, places: usize) {
        self.places.store(places, Ordering::Relaxed);
    }

    pub(super) fn ask(&self, relief: Relief) {
        self.kept.store(relief.kept, Ordering::Relaxed);
        self.is_scarce.store(relief.is_scarce, Ordering::Relaxed);
        self.enough.store(relief.enough, Ordering::Release);
    }

    /// What is asked, if something is; once.
    pub(super) fn take(&self) -> Option<Relief> {
        if self.enough.load(Ordering::Relaxed) == 0 {
            return None;
        }
        let enough = self.enough.swap(0, Ordering::Acquire);
        let is_scarce = self.is_scarce.load(Ordering::Relaxed);
        Some(Relief { enough, kept: self.kept.load(Ordering::Relaxed), is_scarce })
    }
}

/// The requests over HTTP/2 of one owner, or of all.
#[derive(Debug, Default)]
struct Requests {
    placed: Cell<usize>,
    waiting: Cell<usize>,
}

/// What the connections of one worker share.
#[derive(Debug, Default)]
pub(super) struct Together {
    pub(super) asked: Arc<Asked>,
    requests: Requests,
    /// Those of each owner with a connection.
    owners: RefCell<HashMap<Owner, Rc<Requests>>>,
}

impl Together {
    pub(super) fn new(asked: Arc<Asked>) -> Rc<Self> {
        Rc::new(Self { asked, ..Self::default() })
    }

    /// Where the requests of this owner are counted. Looked up once for a connection.
    fn of(&self, owner: Owner) -> Rc<Requests> {
        Rc::clone(self.owners.borrow_mut().entry(owner).or_default())
    }

    fn standing(&self, owner: &Requests) -> Standing {
        if self.has_place(owner) {
            Standing::Placed
        } else if owner.waiting.get() < self.left_to_wait() {
            Standing::Waiting
        } else {
            Standing::Refused
        }
    }

    fn has_place(&self, owner: &Requests) -> bool {
        let (own, kept) = (owner.placed.get(), self.places() / 4);
        let left = self.places().saturating_sub(self.requests.placed.get());
        if own < (kept / OWNERS).max(1) { left > 0 } else { own + kept < left }
    }

    fn left_to_wait(&self) -> usize {
        (self.places() / PLACES_OF_ONE_THAT_WAITS).saturating_sub(self.requests.waiting.get())
    }

    fn places(&self) -> usize {
        self.asked.places.load(Ordering::Relaxed)
    }
}

/// How much the connections of one worker are to give back: those that hold the most are cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relief {
    /// So many bytes are enough.
    pub enough: usize,
    /// So many bytes may be held together in any case.
    pub kept: usize,
    /// Whether nobody is spared for holding little, and connections count that do nothing.
    pub is_scarce: bool,
}

/// Orders those of these connections to go that hold the most, and tells their numbers.
pub(super) fn relieve<'h>(open: impl Iterator<Item = (u64, &'h Held)>, relief: Relief) -> Vec<u64> {
    let (least, base) = if relief.is_scarce { (1, OF_ONE_CONNECTION) } else { (LEAST, 0) };
    let open = open.filter(|(_, held)| !held.must_go());
    let mut connections: Vec<_> = open.map(|(number, held)| (held.bytes() + base, number, held)).collect();
    connections.sort_unstable_by_key(|(bytes, number, _)| (*bytes, *number));
    let mut total: usize = connections.iter().map(|(bytes, ..)| bytes).sum();
    let mut owners = HashMap::<Owner, (usize, Vec<_>)>::new();
    for (bytes, number, held) in connections {
        let (sum, connections) = owners.entry(held.owner).or_default();
        *sum += bytes;
        connections.push((bytes, number, held));
    }
    let (mut given, mut gone) = (0, Vec::new());
    while given < relief.enough && total > relief.kept && gone.len() < AT_ONCE {
        let large = owners.iter_mut().filter(|(_, (sum, _))| *sum >= least);
        let largest = large.max_by_key(|(owner, (sum, _))| (matches!(owner, Owner::Site(_)), *sum));
        let Some((_, (sum, connections))) = largest else { break };
        let Some((bytes, number, held)) = connections.pop() else { break };
        held.order_to_go();
        gone.push(number);
        given += bytes;
        total -= bytes;
        *sum -= bytes;
    }
    gone
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vocabulary::network::ClientNetwork;

    const MIB: usize = 1 << 20;
    const ALL: Relief = Relief { enough: usize::MAX, kept: 0, is_scarce: false };

    fn site(number: u8) -> Owner {
        Owner::Site(ClientNetwork::of([192, 0, number, 1].into()).site())
    }

    /// A connection that holds so many bytes of an answer.
    fn holding(owner: Owner, bytes: usize) -> Rc<Held> {
        let held = Held::new(owner, &Rc::default());
        held.unsent.set(bytes);
        held
    }

    fn cut(connections: &[Rc<Held>], relief: Relief) -> Vec<u64> {
        relieve((0..).zip(connections.iter().map(|held| &**held)), relief)
    }

    #[test]
    fn the_client_that_holds_the_most_loses_its_largest_connection_first() {
        let mut open: Vec<_> = (0..20).map(|n| holding(site(1), MIB + n)).collect();
        open.push(holding(site(2), 5 * MIB));
        let relief = Relief { enough: 3 * MIB, ..ALL };
        assert_eq!(cut(&open, relief), [19, 18, 17]);
        assert_eq!(
            cut(&open, Relief { enough: 14 * MIB, ..relief }).last(),
            Some(&20),
            "only then the other"
        );
        assert!(open[20].must_go());
        assert!(cut(&open[20..], ALL).is_empty(), "it goes once");
    }

    #[test]
    fn who_holds_little_is_not_cut_and_no_more_than_needed_is() {
        let open: Vec<_> = (0..200).map(|n| holding(site(n), LEAST - 1)).collect();
        assert!(cut(&open, ALL).is_empty());
        let open: Vec<_> = (0..10).map(|_| holding(site(1), 4 * MIB)).collect();
        assert_eq!(cut(&open, Relief { kept: 25 * MIB, ..ALL }).len(), 4);
        assert!(cut(&open, Relief { enough: 0, ..ALL }).is_empty());
        let many: Vec<_> = (0..1000).map(|_| holding(site(1), 4 * MIB)).collect();
        assert_eq!(cut(&many, ALL).len(), AT_ONCE);
    }

    #[test]
    fn where_memory_is_scarce_nobody_is_spared_and_connections_that_do_nothing_count() {
        let open: Vec<_> = (0..200).map(|n| holding(site(n), LEAST - 1)).collect();
        assert_eq!(cut(&open, Relief { enough: 3 * LEAST, is_scarce: true, ..ALL }).len(), 3);
        let open: Vec<_> = (0..100).map(|n| holding(site(n), 0)).collect();
        let kept = 90 * OF_ONE_CONNECTION;
        assert_eq!(cut(&open, Relief { kept, is_scarce: true, ..ALL }).len(), 10);
    }

    #[test]
    fn a_proxy_goes_after_every_other_client_that_holds_much() {
        let open =
            [holding(Owner::Proxy(1), 30 * MIB), holding(site(1), 3 * MIB), holding(Owner::Proxy(2), MIB)];
        assert_eq!(cut(&open, ALL), [1, 0]);
    }

    #[test]
    fn what_is_held_counts_until_it_is_given_back() {
        let held = Held::new(site(1), &Rc::default());
        let request = held.open();
        assert_eq!(held.bytes(), OF_ONE_PLACE);
        let mut unsent = request.hand_over(Bytes::from_static(&[0; 100]));
        let other = request.hand_over(Bytes::from_static(&[0; 50]));
        unsent.advance(30);
        assert_eq!(held.bytes(), OF_ONE_PLACE + 120 + 2 * OF_ONE_PIECE);
        drop(request);
        assert_eq!(held.bytes(), 120 + 2 * OF_ONE_PIECE, "h2 still has it");
        drop((unsent, other));
        held.note_list(false);
        assert_eq!(held.bytes(), OF_OPEN_LIST);
        held.note_list(true);
        assert_eq!(held.bytes(), 0);
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
        together.asked.limit(1000);
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
        assert_eq!(together.requests.placed.get() + together.requests.waiting.get(), 0);
        assert!(together.owners.borrow().is_empty());
    }

    #[tokio::test]
    async fn a_request_without_a_place_waits_for_one() {
        let together = Rc::<Together>::default();
        together.asked.limit(80);
        let held = Held::new(site(1), &together);
        let mut placed = placed(&held, 80);
        assert_eq!(placed.len(), 30);
        let waiting = held.open();
        assert!(!waiting.has_place() && !waiting.is_refused());
        let (came, ()) = tokio::join!(waiting.wait(), async {
            sleep(LOOK).await;
            drop(placed.pop());
        });
        assert!(came && waiting.has_place());
        drop(waiting);
        assert_eq!((held.of_owner.placed.get(), together.requests.waiting.get()), (29, 0));
    }

    #[test]
    fn few_requests_wait_and_one_client_leaves_others_room_to_wait() {
        let together = Rc::<Together>::default();
        together.asked.limit(80);
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

    #[test]
    fn bodies_count_by_their_frames_until_they_are_read() {
        let held = Held::new(site(1), &Rc::default());
        let table = |read: usize| read.min(OF_TABLE);
        let request = held.open();
        // Requests without bodies leave nothing behind, however many there are.
        held.note_read(4 * MIB);
        assert_eq!(held.bytes(), table(4 * MIB) + OF_ONE_PLACE);
        (0..100).for_each(|_| held.note_data_frame());
        assert_eq!(held.bytes(), OF_TABLE + OF_ONE_PLACE + 100 * OF_ONE_FRAME);
        held.note_window();
        assert_eq!(held.bytes(), OF_TABLE + OF_ONE_PLACE);
        held.note_read(1000);
        held.note_data_frame();
        assert_eq!(held.bytes(), OF_TABLE + OF_ONE_PLACE + 1000);
        drop(request);
        assert_eq!(held.bytes(), OF_TABLE);
    }
}
