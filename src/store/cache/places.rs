//! The places for lookups, and the queue of requests that wait for one.
//!
//! A place is kept for a fraction of a millisecond, so a request that finds none waits instead of being refused. Turns go
//! round the sites of clients, and within a site round its networks, so a thousand requests of one site delay a request
//! of another by one turn:
//!
//! - A site that has an eighth of the places gets more only while no site waits that has less.
//! - A site whose lookups mostly found no key guesses. It has at most an eighth of the places, and one turn in eight
//!   while others wait; never none, because good keys may come from there too.
//! - The queue is bounded. When it is full, a request enters instead of the last one of the site that waits with the most,
//!   unless that is its own.
//!
//! There is no clock, no lock and no task here: [`super::loads`] has them. An operation takes O(log n).

use std::collections::hash_map::Entry as Slotted;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::repute::Repute;
use crate::vocabulary::key::Digest;
use crate::vocabulary::network::{ClientNetwork, ClientSite};

/// The share of the places, and of the turns, that a guessing site may have.
const SHARE: usize = 8;

/// The places for lookups. `T` is how a waiting request is told that its turn has come.
#[derive(Debug)]
pub(super) struct Places<T> {
    size: usize,
    taken: usize,
    most_waiting: usize,
    waiting: usize,
    /// The next number of a request or a turn. The lower number comes first.
    next: u64,
    turns: usize,
    /// Sites that have a place or wait for one.
    sites: HashMap<ClientSite, Site<T>>,
    /// Sites that may have the next place, by [`Ring`]: in each the one with the lowest number is first.
    rings: [BTreeMap<u64, ClientSite>; 3],
    /// Sites that wait, by the number of their requests.
    by_waiting: BTreeSet<(usize, ClientSite)>,
    /// Requests that wait, by what they wait for.
    wanted: HashMap<Digest, BTreeMap<u64, ClientNetwork>>,
    repute: Repute,
}

/// Sites that may have the next place, in the order in which they get it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ring {
    /// Those with less than their share.
    Below,
    Above,
    /// Those that guess, with less than their share.
    Guessing,
}

#[derive(Debug)]
struct Site<T> {
    taken: usize,
    waiting: usize,
    /// Its ring and its number there. None while it may not have the next place.
    ring: Option<(Ring, u64)>,
    networks: HashMap<ClientNetwork, Line<T>>,
    /// The networks that wait, by their turns.
    turns: BTreeMap<u64, ClientNetwork>,
}

/// The waiting requests of a network; at least one.
#[derive(Debug)]
struct Line<T> {
    turn: u64,
    requests: BTreeMap<u64, (Digest, T)>,
}

/// A request in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ticket {
    network: ClientNetwork,
    number: u64,
}

impl<T> Default for Site<T> {
    fn default() -> Self {
        Self { taken: 0, waiting: 0, ring: None, networks: HashMap::new(), turns: BTreeMap::new() }
    }
}

impl<T> Places<T> {
    /// This many places, and a queue for at most `most_waiting` requests.
    pub(super) fn new(size: usize, most_waiting: usize) -> Self {
        Self {
            size,
            taken: 0,
            most_waiting,
            waiting: 0,
            next: 0,
            turns: 0,
            sites: HashMap::new(),
            rings: Default::default(),
            by_waiting: BTreeSet::new(),
            wanted: HashMap::new(),
            repute: Repute::default(),
        }
    }

    /// How many requests wait.
    pub(super) const fn waiting(&self) -> usize {
        self.waiting
    }

    /// Takes a place at once, if there is one that the network may have. While there is, nobody waits for it, because
    /// [`Places::next`] is called until it gives none.
    pub(super) fn take(&mut self, network: ClientNetwork) -> bool {
        let site = network.site();
        let own = self.sites.get(&site).map_or(0, |site| site.taken);
        if self.taken >= self.size || own >= self.share() && self.repute.is_guessing(site) {
            return false;
        }
        self.occupy(site);
        true
    }

    /// Takes a place for nobody's request, if fewer than `at_most` are taken.
    pub(super) const fn take_below(&mut self, at_most: usize) -> bool {
        let has_room = self.taken < at_most;
        if has_room {
            self.taken += 1;
        }
        has_room
    }

    /// Gives back a place of [`Places::take_below`].
    pub(super) const fn give_back(&mut self) {
        self.taken -= 1;
    }

    /// Gives back a place of this network; `found` tells whether the lookup found a key, if it came to an answer.
    pub(super) fn end(&mut self, network: ClientNetwork, found: Option<bool>) {
        let site = network.site();
        self.taken -= 1;
        if let Some(found) = found {
            self.repute.note(site, found);
        }
        if let Some(own) = self.sites.get_mut(&site) {
            own.taken -= 1;
        }
        self.rank(site);
    }

    /// Puts a request into the queue. It may displace another one, which is returned beside the ticket.
    ///
    /// # Errors
    /// The queue is full, and no other site has more requests in it.
    pub(super) fn enter(
        &mut self,
        network: ClientNetwork,
        digest: Digest,
        request: T,
    ) -> Result<(Ticket, Option<T>), T> {
        let site = network.site();
        let own = self.sites.get(&site).map_or(0, |site| site.waiting);
        let mut displaced = None;
        if self.waiting >= self.most_waiting {
            match self.by_waiting.last() {
                Some((most, longest)) if own + 1 < *most => displaced = self.displace(*longest),
                _ => return Err(request),
            }
        }
        let (number, turn) = (self.draw(), self.draw());
        self.wanted.entry(digest).or_default().insert(number, network);
        let waits = self.sites.entry(site).or_default();
        match waits.networks.entry(network) {
            Slotted::Occupied(line) => {
                line.into_mut().requests.insert(number, (digest, request));
            }
            Slotted::Vacant(none) => {
                waits.turns.insert(turn, network);
                none.insert(Line { turn, requests: BTreeMap::from([(number, (digest, request))]) });
            }
        }
        self.waiting += 1;
        self.set_waiting(site, own + 1);
        self.rank(site);
        Ok((Ticket { network, number }, displaced))
    }

    /// Takes a free place for the request whose turn it is, and says what it waits for. [`Places::claim`] then takes it,
    /// and all that wait for the same, out of the queue.
    pub(super) fn next(&mut self) -> Option<(Digest, ClientNetwork)> {
        if self.taken >= self.size {
            return None;
        }
        let site = self.next_site()?;
        self.turns = self.turns.wrapping_add(1);
        let turn = self.draw();
        let waits = self.sites.get_mut(&site)?;
        let (_, network) = waits.turns.pop_first()?;
        waits.turns.insert(turn, network);
        let line = waits.networks.get_mut(&network)?;
        line.turn = turn;
        let (_, (digest, _)) = line.requests.first_key_value()?;
        let digest = *digest;
        if let Some((ring, number)) = waits.ring.take() {
            self.rings[ring as usize].remove(&number);
        }
        self.occupy(site);
        Some((digest, network))
    }

    /// Takes the requests that wait for this out of the queue, in the order in which they came.
    pub(super) fn claim(&mut self, digest: &Digest) -> Vec<T> {
        let wanted = self.wanted.remove(digest).unwrap_or_default();
        let tickets = wanted.into_iter().map(|(number, network)| Ticket { network, number });
        tickets.filter_map(|ticket| self.remove(ticket)).collect()
    }

    /// A request leaves the queue, if it is still there.
    pub(super) fn leave(&mut self, ticket: Ticket) {
        self.remove(ticket);
    }

    /// Empties the queue.
    pub(super) fn give_up(&mut self) -> Vec<T> {
        let mut all = Vec::with_capacity(self.waiting);
        self.sites.retain(|_, site| {
            let lines = site.networks.drain().flat_map(|(_, line)| line.requests.into_values());
            all.extend(lines.map(|(_, request)| request));
            site.turns.clear();
            (site.waiting, site.ring) = (0, None);
            site.taken > 0
        });
        self.rings = Default::default();
        self.by_waiting.clear();
        self.wanted.clear();
        self.waiting = 0;
        all
    }

    fn next_site(&self) -> Option<ClientSite> {
        let rings = if self.turns % SHARE == SHARE - 1 {
            [Ring::Guessing, Ring::Below, Ring::Above]
        } else {
            [Ring::Below, Ring::Above, Ring::Guessing]
        };
        rings.into_iter().find_map(|ring| self.rings[ring as usize].values().next().copied())
    }

    /// Takes the last request out of the queue, of the network of this site whose turn is last.
    fn displace(&mut self, site: ClientSite) -> Option<T> {
        let waits = self.sites.get(&site)?;
        let (_, network) = waits.turns.last_key_value()?;
        let (number, _) = waits.networks.get(network)?.requests.last_key_value()?;
        self.remove(Ticket { network: *network, number: *number })
    }

    fn remove(&mut self, ticket: Ticket) -> Option<T> {
        let site = ticket.network.site();
        let waits = self.sites.get_mut(&site)?;
        let line = waits.networks.get_mut(&ticket.network)?;
        let (digest, request) = line.requests.remove(&ticket.number)?;
        if line.requests.is_empty() {
            waits.turns.remove(&line.turn);
            waits.networks.remove(&ticket.network);
        }
        let waiting = waits.waiting - 1;
        if let Slotted::Occupied(mut wanted) = self.wanted.entry(digest) {
            wanted.get_mut().remove(&ticket.number);
            if wanted.get().is_empty() {
                wanted.remove();
            }
        }
        self.waiting -= 1;
        self.set_waiting(site, waiting);
        self.rank(site);
        Some(request)
    }

    fn occupy(&mut self, site: ClientSite) {
        self.taken += 1;
        self.sites.entry(site).or_default().taken += 1;
        self.rank(site);
    }

    fn set_waiting(&mut self, site: ClientSite, waiting: usize) {
        if let Some(own) = self.sites.get_mut(&site) {
            self.by_waiting.remove(&(own.waiting, site));
            own.waiting = waiting;
        }
        if waiting > 0 {
            self.by_waiting.insert((waiting, site));
        }
    }

    /// Puts a site into the ring where it belongs, after something about it has changed: at the end, if it was not there.
    fn rank(&mut self, site: ClientSite) {
        let (share, number) = (self.share(), self.draw());
        let Some(own) = self.sites.get_mut(&site) else { return };
        let ring = match (own.taken < share, self.repute.is_guessing(site)) {
            _ if own.waiting == 0 => None,
            (true, false) => Some(Ring::Below),
            (false, false) => Some(Ring::Above),
            (true, true) => Some(Ring::Guessing),
            (false, true) => None,
        };
        if own.ring.map(|(ring, _)| ring) != ring {
            if let Some((before, number)) = own.ring.take() {
                self.rings[before as usize].remove(&number);
            }
            if let Some(ring) = ring {
                own.ring = Some((ring, number));
                self.rings[ring as usize].insert(number, site);
            }
        }
        if own.taken == 0 && own.waiting == 0 {
            self.sites.remove(&site);
        }
    }

    /// The places that a site may have while another waits that has fewer; at least one.
    fn share(&self) -> usize {
        (self.size / SHARE).max(1)
    }

    const fn draw(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    /// A network that has its site to itself.
    fn alone(number: u8) -> ClientNetwork {
        ClientNetwork::of(IpAddr::V4(Ipv4Addr::new(192, 0, number, 1)))
    }

    /// A network of one large site.
    fn among(number: u16) -> ClientNetwork {
        ClientNetwork::of(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, number, 0, 0, 0, 1)))
    }

    fn digest(number: u64) -> Digest {
        let mut bytes = [0; 32];
        bytes[..8].copy_from_slice(&number.to_le_bytes());
        Digest::from_bytes(bytes)
    }

    /// Places, and numbered requests, each for another key.
    struct Desk {
        places: Places<u64>,
        next: u64,
    }

    impl Desk {
        fn new(size: usize, most_waiting: usize) -> Self {
            Self { places: Places::new(size, most_waiting), next: 0 }
        }

        /// These requests take a place or wait for one.
        fn come(&mut self, network: ClientNetwork, count: usize) {
            for _ in 0..count {
                self.next += 1;
                if !self.places.take(network) {
                    self.places.enter(network, digest(self.next), self.next).unwrap();
                }
            }
        }

        /// One place becomes free; gives the networks whose turn comes.
        fn end(&mut self, network: ClientNetwork, found: bool) -> Vec<ClientNetwork> {
            self.places.end(network, Some(found));
            std::iter::from_fn(|| {
                let (digest, network) = self.places.next()?;
                assert_eq!(self.places.claim(&digest).len(), 1);
                Some(network)
            })
            .collect()
        }

        /// The same again and again, of whoever had his turn last.
        fn turns(&mut self, first: ClientNetwork, count: usize) -> Vec<ClientNetwork> {
            let mut turns = vec![first];
            while turns.len() <= count {
                turns.extend(self.end(*turns.last().unwrap(), true));
            }
            turns.split_off(1)
        }

        /// Lookups of this network that find no key, one after another.
        fn guess(&mut self, network: ClientNetwork, count: usize) {
            for _ in 0..count {
                assert!(self.places.take(network));
                self.end(network, false);
            }
        }
    }

    #[test]
    fn who_is_alone_has_all_places_and_the_whole_queue() {
        let mut desk = Desk::new(16, 100);
        desk.come(alone(1), 116);
        assert_eq!((desk.places.taken, desk.places.waiting()), (16, 100));
        for _ in 0..100 {
            assert_eq!(desk.end(alone(1), true), [alone(1)]);
        }
        for _ in 0..16 {
            assert!(desk.end(alone(1), true).is_empty());
        }
        assert!(desk.places.sites.is_empty(), "nothing is left of it");
    }

    #[test]
    fn turns_go_round_sites_and_within_a_site_round_its_networks() {
        let mut desk = Desk::new(1, 1000);
        desk.come(alone(1), 100);
        (0..50).for_each(|number| desk.come(among(number), 10));
        desk.come(alone(2), 10);
        let turns = desk.turns(alone(1), 12);
        let expected: Vec<_> = (0..4).flat_map(|number| [among(number), alone(2), alone(1)]).collect();
        assert_eq!(turns, expected);
    }

    #[test]
    fn a_site_with_its_share_gets_more_only_while_none_waits_that_has_less() {
        let mut desk = Desk::new(16, 1000);
        desk.come(alone(1), 50);
        desk.come(alone(2), 50);
        // The first has all sixteen. Two are an eighth.
        let turns: Vec<_> = (0..6).flat_map(|_| desk.end(alone(1), true)).collect();
        assert_eq!(turns, [2, 2, 1, 2, 1, 2].map(alone), "then both have more, and take turns");
        desk.come(alone(3), 1);
        assert_eq!(desk.end(alone(2), true), [alone(3)], "whoever comes new is next");
    }

    #[test]
    fn a_site_that_guesses_has_an_eighth_of_the_places_also_alone() {
        let mut desk = Desk::new(16, 1000);
        desk.guess(alone(1), 16);
        desk.come(alone(1), 50);
        assert_eq!((desk.places.taken, desk.places.waiting()), (2, 48));
        desk.come(alone(2), 14);
        assert_eq!(desk.places.taken, 16, "the others are free for others");
        assert_eq!(desk.end(alone(1), false), [alone(1)], "it has its share");
        assert!(desk.end(alone(2), true).is_empty(), "and not more");
        let turns: Vec<_> = (0..100).flat_map(|_| desk.end(alone(1), true)).take(47).collect();
        assert_eq!(turns, [alone(1); 47], "with good keys it has all again");
        assert!(desk.places.sites[&alone(1).site()].taken > 2);
    }

    #[test]
    fn a_site_that_guesses_has_one_turn_in_eight_while_others_wait() {
        let mut desk = Desk::new(1, 1000);
        desk.guess(alone(1), 16);
        desk.come(alone(2), 100);
        desk.come(alone(3), 100);
        desk.come(alone(1), 100);
        let turns = desk.turns(alone(2), 80);
        for eight in turns.chunks(8) {
            let of = |number| eight.iter().filter(|network| **network == alone(number)).count();
            assert_eq!(of(1), 1, "{eight:?}");
            assert!(of(2).abs_diff(of(3)) <= 1, "{eight:?}");
        }
    }

    #[test]
    fn a_full_queue_takes_a_request_only_instead_of_one_of_a_site_with_more() {
        let mut desk = Desk::new(1, 10);
        desk.come(alone(1), 1);
        desk.come(alone(1), 9);
        desk.come(alone(2), 1);
        let mut enter = |network, number| desk.places.enter(network, digest(number), number);
        assert_eq!(enter(alone(1), 100), Err(100), "the site with the most");
        let displaced = |entered: Result<(Ticket, Option<u64>), u64>| entered.map(|(_, displaced)| displaced);
        assert_eq!(displaced(enter(alone(3), 101)), Ok(Some(10)), "its last one");
        for number in 102..105 {
            assert!(displaced(enter(alone(2), number)).unwrap().is_some());
        }
        assert_eq!(enter(alone(2), 105), Err(105), "both have as many now, or nearly");
        assert_eq!(desk.places.waiting(), 10);
    }

    #[test]
    fn who_waits_for_the_same_key_has_the_same_turn() {
        let mut places = Places::new(1, 10);
        assert!(places.take(alone(9)));
        for (network, wanted, request) in
            [(alone(1), 1, "a"), (alone(2), 2, "b"), (alone(2), 1, "c"), (alone(3), 1, "d")]
        {
            places.enter(network, digest(wanted), request).unwrap();
        }
        places.end(alone(9), Some(true));
        assert_eq!(places.next(), Some((digest(1), alone(1))));
        assert_eq!(places.claim(&digest(1)), ["a", "c", "d"]);
        assert_eq!(places.next(), None, "no place is free");
        places.end(alone(1), Some(true));
        assert_eq!(places.next(), Some((digest(2), alone(2))));
        assert_eq!(places.claim(&digest(2)), ["b"]);
        assert_eq!(places.waiting(), 0);
    }

    #[test]
    fn who_leaves_is_forgotten_wherever_it_stands() {
        let mut places = Places::new(1, 10);
        assert!(places.take(alone(1)));
        let enter = |places: &mut Places<u64>, network, number| {
            places.enter(network, digest(number), number).unwrap().0
        };
        let tickets: Vec<_> = (0..4).map(|n| enter(&mut places, among(n as u16 % 2), n)).collect();
        let stays = enter(&mut places, alone(2), 9);
        for ticket in tickets.iter().chain(&tickets) {
            places.leave(*ticket);
        }
        assert_eq!(places.waiting(), 1);
        places.end(alone(1), None);
        assert_eq!(places.next(), Some((digest(9), alone(2))));
        assert_eq!(places.claim(&digest(9)), [9]);
        places.leave(stays);
        places.end(alone(2), None);
        assert!(places.sites.is_empty());
    }

    #[test]
    fn what_is_given_up_is_all_and_the_places_stay_taken() {
        let mut desk = Desk::new(4, 100);
        (0..10).for_each(|number| desk.come(alone(number), 2));
        let mut given_up = desk.places.give_up();
        given_up.sort_unstable();
        assert_eq!(given_up, (5..=20).collect::<Vec<u64>>());
        assert_eq!((desk.places.taken, desk.places.waiting()), (4, 0));
        desk.come(alone(9), 1);
        assert_eq!(desk.end(alone(0), true), [alone(9)]);
    }

    #[test]
    fn early_reloads_leave_room_for_others() {
        let mut places: Places<()> = Places::new(8, 10);
        assert!(places.take_below(2) && places.take_below(2) && !places.take_below(2));
        (0..6).for_each(|_| assert!(places.take(alone(1))));
        assert!(!places.take(alone(1)));
        places.give_back();
        assert!(places.take(alone(1)));
    }

    #[derive(Clone, Debug)]
    enum Step {
        /// A request of this network, for this key.
        Come(usize, u64),
        /// One of those that wait leaves.
        Leave(usize),
        /// One of the lookups ends, and has found a key or not.
        End(usize, bool),
        GiveUp,
    }

    fn networks() -> [ClientNetwork; 8] {
        [alone(1), alone(2), alone(3), among(1), among(2), among(3), among(4), alone(4)]
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            20 => (0..8_usize, 0..60_u64).prop_map(|(network, key)| Step::Come(network, key)),
            4 => any::<usize>().prop_map(Step::Leave),
            // The last network has no good key.
            15 => (any::<usize>(), any::<bool>()).prop_map(|(number, found)| Step::End(number, found)),
            1 => Just(Step::GiveUp),
        ]
    }

    /// The expected state of the places, kept in the simplest way.
    #[derive(Default)]
    struct Books {
        taken: Vec<ClientNetwork>,
        waiting: Vec<(Ticket, u64, u64)>,
        next: u64,
    }

    impl Books {
        fn take(&mut self, places: &mut Places<u64>, step: &Step) {
            match *step {
                Step::Come(network, key) => self.come(places, networks()[network], key),
                Step::Leave(number) if !self.waiting.is_empty() => {
                    let (ticket, ..) = self.waiting.swap_remove(number % self.waiting.len());
                    places.leave(ticket);
                }
                Step::End(number, found) if !self.taken.is_empty() => {
                    let network = self.taken.swap_remove(number % self.taken.len());
                    places.end(network, Some(found && network != alone(4)));
                }
                Step::GiveUp => {
                    assert_eq!(places.give_up().len(), self.waiting.len());
                    self.waiting.clear();
                }
                Step::Leave(_) | Step::End(..) => {}
            }
            while let Some((key, network)) = places.next() {
                let claimed = places.claim(&key);
                let (served, waiting): (Vec<_>, Vec<_>) =
                    self.waiting.iter().copied().partition(|(_, of, _)| digest(*of) == key);
                let mut served: Vec<u64> = served.into_iter().map(|(.., request)| request).collect();
                served.sort_unstable();
                assert_eq!(claimed, served, "all who wait for it, in their order");
                self.taken.push(network);
                self.waiting = waiting;
            }
        }

        fn come(&mut self, places: &mut Places<u64>, network: ClientNetwork, key: u64) {
            self.next += 1;
            if places.take(network) {
                return self.taken.push(network);
            }
            let of_site = |site| self.waiting.iter().filter(|(at, ..)| at.network.site() == site).count();
            let (own, most) = (of_site(network.site()), networks().map(|at| of_site(at.site())));
            let is_full = self.waiting.len() == places.most_waiting;
            match places.enter(network, digest(key), self.next) {
                Ok((ticket, displaced)) => {
                    assert_eq!(displaced.is_some(), is_full);
                    self.waiting.retain(|(.., request)| Some(*request) != displaced);
                    self.waiting.push((ticket, key, self.next));
                }
                Err(_) => assert!(is_full && most.into_iter().max() <= Some(own + 1)),
            }
        }

        fn check(&self, places: &Places<u64>) {
            assert_eq!((places.taken, places.waiting), (self.taken.len(), self.waiting.len()));
            assert!(places.taken <= places.size && places.waiting <= places.most_waiting);
            let mut in_rings = 0;
            for network in networks() {
                let site = network.site();
                let taken = self.taken.iter().filter(|at| at.site() == site).count();
                let waiting = self.waiting.iter().filter(|(at, ..)| at.network.site() == site).count();
                let own = places.sites.get(&site);
                assert_eq!(own.map_or((0, 0), |own| (own.taken, own.waiting)), (taken, waiting));
                assert_eq!(own.is_some(), taken + waiting > 0, "nothing is kept of who has left");
                let is_held_back = taken >= places.share() && places.repute.is_guessing(site);
                assert!(places.taken == places.size || waiting == 0 || is_held_back, "a place is idle");
                assert_eq!(places.by_waiting.contains(&(waiting, site)), waiting > 0);
                let ring = own.and_then(|own| own.ring);
                assert_eq!(ring.is_some(), waiting > 0 && !is_held_back);
                in_rings +=
                    usize::from(ring.is_some_and(|(at, n)| places.rings[at as usize].get(&n) == Some(&site)));
            }
            // Four networks are of one site.
            let of_large = places.sites.get(&among(1).site()).is_some_and(|site| site.ring.is_some());
            let rings: usize = places.rings.iter().map(BTreeMap::len).sum();
            assert_eq!(rings, in_rings - 3 * usize::from(of_large));
            assert_eq!(places.wanted.values().map(BTreeMap::len).sum::<usize>(), places.waiting);
        }
    }

    proptest! {
        #[test]
        fn whatever_happens_no_place_is_idle_and_nothing_is_forgotten_or_kept(
            size in 1..20_usize,
            most_waiting in 1..30_usize,
            steps in prop::collection::vec(step(), 0..300),
        ) {
            let (mut places, mut books) = (Places::new(size, most_waiting), Books::default());
            for step in &steps {
                books.take(&mut places, step);
                books.check(&places);
            }
        }

        #[test]
        fn no_site_gets_two_turns_while_another_waits_for_one(counts in prop::collection::vec(0..30_usize, 1..8)) {
            let mut desk = Desk::new(1, 1000);
            desk.come(alone(99), 1);
            for (number, count) in counts.iter().enumerate() {
                desk.come(alone(number as u8), *count);
            }
            let all: usize = counts.iter().sum();
            let mut served = vec![0; counts.len()];
            for turn in desk.turns(alone(99), all) {
                let number = (0..counts.len()).find(|number| alone(*number as u8) == turn).unwrap();
                served[number] += 1;
                let waits = |number: &usize| served[*number] < counts[*number];
                let least = (0..counts.len()).filter(waits).map(|number| served[number]).min();
                prop_assert!(least.is_none_or(|least| served[number] <= least + 1), "{served:?} of {counts:?}");
            }
            prop_assert_eq!(served, counts);
        }
    }
}
