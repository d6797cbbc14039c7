//! Which endpoint gets a request, and which one after it.
//!
//! Of two endpoints, the next in turn and one at random, that with fewer requests in flight gets the request (M. Mitzenmacher, "The Power of Two Choices
//! in Randomized Load Balancing", IEEE Transactions on Parallel and Distributed Systems 12 (10), 2001). So an endpoint that is slow, or
//! answers nothing, gets fewer requests from the moment on at which they pile up there, and one that has just come back is
//! not flooded. Each thread counts its own requests.
//!
//! An endpoint that [`health`](super::health) passes over comes after all others, so it is tried only by a request that no
//! other endpoint took. Where more than half are passed over, those of them that are above the half are used like the
//! others: the few that are left could not bear all requests.

use std::cell::{Cell, RefCell};

use fastrand::Rng;

/// What is known of the endpoints of one environment of one upstream.
pub(super) trait Candidates {
    fn count(&self) -> usize;
    /// `None`: all have the same weight.
    fn weights(&self) -> Option<&Weights>;
    /// The requests that this thread has there.
    fn in_flight(&self, at: usize) -> usize;
    /// Whether it is not passed over.
    fn is_in_use(&self, at: usize) -> bool;
    /// Whether this request may try one that is passed over. If so, it must.
    fn admits(&self, at: usize) -> bool;
}

/// The weights of endpoints that do not all have the same.
#[derive(Debug)]
pub(super) struct Weights {
    of: Box<[u16]>,
    /// The places of the endpoints, each as often as its weight says, and spread evenly: the turns.
    slots: Box<[usize]>,
}

impl Weights {
    /// `None` where all are the same. None of them is 0.
    pub(super) fn new(weights: &[u16]) -> Option<Self> {
        let first = weights.first()?;
        if weights.iter().all(|weight| weight == first) {
            return None;
        }
        let divisor = weights.iter().fold(0, |divisor, weight| gcd(divisor, *weight)).max(1);
        let mut slots = Vec::new();
        for (at, weight) in weights.iter().enumerate() {
            let weight = weight / divisor;
            slots.extend((0..weight).map(|nth| ((f64::from(nth) + 0.5) / f64::from(weight), at)));
        }
        slots.sort_by(|one, other| one.0.total_cmp(&other.0));
        Some(Self { of: weights.into(), slots: slots.into_iter().map(|(_, at)| at).collect() })
    }

    /// Whether there are fewer requests in flight at `one` than at `other`, for what they bear.
    fn is_less(&self, one: usize, other: usize, all: &impl Candidates) -> bool {
        let load = |at, by: usize| all.in_flight(at) * usize::from(self.of[by]);
        load(one, other) < load(other, one)
    }
}

const fn gcd(one: u16, other: u16) -> u16 {
    if other == 0 { one } else { gcd(other, one % other) }
}

/// Shares requests out among the endpoints of one environment of one upstream.
#[derive(Debug, Default)]
pub(super) struct Turns {
    next: Cell<usize>,
    random: RefCell<Rng>,
}

impl Turns {
    /// For one request.
    pub(super) fn begin(&self) -> Choice<'_> {
        let turn = self.next.get();
        self.next.set(turn.wrapping_add(1));
        Choice { turn, random: &self.random, last: None, tried: Vec::new() }
    }
}

/// Chooses the endpoints for one request, one after the other.
#[derive(Debug)]
pub(super) struct Choice<'t> {
    turn: usize,
    random: &'t RefCell<Rng>,
    last: Option<usize>,
    /// Those before.
    tried: Vec<usize>,
}

impl Choice<'_> {
    /// The place of the next endpoint; `None` when all were tried. The only endpoint is never passed over.
    pub(super) fn next(&mut self, all: &impl Candidates) -> Option<usize> {
        self.tried.extend(self.last.take());
        self.last = match (all.count(), &*self.tried) {
            (0, _) | (1, [_, ..]) => None,
            (1, []) => Some(0),
            (count, []) => match all.weights() {
                None => self.better_of_two(count, all),
                Some(weights) => self.better_by_weight(weights, all),
            }
            .or_else(|| self.among_all(all)),
            _ => self.among_all(all),
        };
        self.last
    }

    /// `None` where one of them is passed over.
    fn better_of_two(&self, count: usize, all: &impl Candidates) -> Option<usize> {
        let one = self.turn % count;
        let other = (one + self.random.borrow_mut().usize(1..count)) % count;
        let better = if all.in_flight(other) < all.in_flight(one) { other } else { one };
        (all.is_in_use(one) && all.is_in_use(other)).then_some(better)
    }

    /// The same, where not all have the same weight. The two may be one.
    fn better_by_weight(&self, weights: &Weights, all: &impl Candidates) -> Option<usize> {
        let slots = &weights.slots;
        let one = slots[self.turn % slots.len()];
        let other = slots[self.random.borrow_mut().usize(..slots.len())];
        let better = if weights.is_less(other, one, all) { other } else { one };
        (all.is_in_use(one) && all.is_in_use(other)).then_some(better)
    }

    /// It was tried beside another one.
    pub(super) fn skip(&mut self, at: usize) {
        self.tried.push(at);
    }

    pub(super) fn was_tried(&self, at: usize) -> bool {
        self.tried.contains(&at)
    }

    /// All endpoints, beginning with that whose turn it is.
    fn in_turn(&self, all: &impl Candidates) -> Vec<usize> {
        let count = all.count();
        let Some(Weights { slots, .. }) = all.weights() else {
            return (0..count).map(|n| self.turn.wrapping_add(n) % count).collect();
        };
        let mut order = Vec::with_capacity(count);
        for n in 0..slots.len() {
            let at = slots[self.turn.wrapping_add(n) % slots.len()];
            if !order.contains(&at) {
                order.push(at);
            }
        }
        order
    }

    /// Looks at every endpoint that was not tried.
    #[cold]
    fn among_all(&self, all: &impl Candidates) -> Option<usize> {
        let left = self.in_turn(all).into_iter().filter(|at| !self.tried.contains(at));
        let (mut used, passed_over): (Vec<_>, Vec<_>) = left.partition(|at| all.is_in_use(*at));
        if self.tried.is_empty()
            && let Some(due) = passed_over.iter().find(|at| all.admits(**at))
        {
            return Some(*due);
        }
        let above = passed_over.len().saturating_sub(all.count() / 2);
        used.extend(&passed_over[..above]);
        let is_less = |one, other| match all.weights() {
            None => all.in_flight(one) < all.in_flight(other),
            Some(weights) => weights.is_less(one, other, all),
        };
        match *used {
            [one, other, ..] if is_less(other, one) => Some(other),
            [one, ..] => Some(one),
            [] => passed_over.first().copied(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Endpoints {
        turns: Turns,
        in_flight: RefCell<Vec<usize>>,
        passed_over: Vec<usize>,
        weights: Option<Weights>,
        due: Cell<Option<usize>>,
    }

    impl Endpoints {
        fn new(count: usize, passed_over: &[usize]) -> Self {
            let in_flight = RefCell::new(vec![0; count]);
            Self { in_flight, passed_over: passed_over.to_vec(), ..Self::default() }
        }

        /// How many of so many first choices fell on each endpoint. Requests do not end.
        fn chosen(&self, requests: usize) -> Vec<usize> {
            let before = self.in_flight.borrow().clone();
            for _ in 0..requests {
                let at = self.turns.begin().next(self).unwrap();
                self.in_flight.borrow_mut()[at] += 1;
            }
            self.in_flight.borrow().iter().zip(before).map(|(now, before)| now - before).collect()
        }

        /// The endpoints in the order in which one request tries them.
        fn order(&self) -> Vec<usize> {
            let mut choice = self.turns.begin();
            std::iter::from_fn(|| choice.next(self)).collect()
        }
    }

    impl Candidates for Endpoints {
        fn count(&self) -> usize {
            self.in_flight.borrow().len()
        }

        fn weights(&self) -> Option<&Weights> {
            self.weights.as_ref()
        }

        fn in_flight(&self, at: usize) -> usize {
            self.in_flight.borrow()[at]
        }

        fn is_in_use(&self, at: usize) -> bool {
            !self.passed_over.contains(&at)
        }

        fn admits(&self, at: usize) -> bool {
            self.due.get() == Some(at) && self.due.take().is_some()
        }
    }

    #[test]
    fn requests_that_end_at_once_go_round_in_turn() {
        let endpoints = Endpoints::new(3, &[]);
        let firsts: Vec<_> = (0..7).map(|_| endpoints.turns.begin().next(&endpoints).unwrap()).collect();
        assert_eq!(firsts, [0, 1, 2, 0, 1, 2, 0]);
    }

    #[test]
    fn requests_are_shared_out_evenly_and_where_they_pile_up_there_come_fewer() {
        let even = Endpoints::new(4, &[]).chosen(1000);
        assert!(even.iter().all(|chosen| (240..=260).contains(chosen)), "{even:?}");
        let stuck = Endpoints::new(3, &[]);
        stuck.in_flight.borrow_mut()[1] = 1000;
        assert_eq!(stuck.chosen(1000)[1], 0, "of two, the other one is better");
    }

    #[test]
    fn one_request_tries_each_endpoint_once_and_what_is_passed_over_comes_last() {
        for (count, passed_over) in [(0, &[][..]), (1, &[]), (1, &[0]), (2, &[0]), (5, &[1, 3])] {
            let order = Endpoints::new(count, passed_over).order();
            let mut sorted = order.clone();
            sorted.sort_unstable();
            assert_eq!(sorted, (0..count).collect::<Vec<_>>(), "{order:?}");
            let last = &order[count - passed_over.len()..];
            assert!(last.iter().all(|at| passed_over.contains(at)), "{order:?}");
        }
        let all = Endpoints::new(3, &[0, 1, 2]).order();
        assert_eq!(all.len(), 3, "if all are passed over, all are tried");
    }

    #[test]
    fn one_that_is_passed_over_gets_the_one_request_that_may_try_it() {
        let endpoints = Endpoints::new(4, &[2]);
        endpoints.due.set(Some(2));
        assert_eq!(endpoints.chosen(400)[2], 1);
    }

    #[test]
    fn no_more_than_half_are_passed_over() {
        let chosen = Endpoints::new(4, &[0, 1, 2]).chosen(900);
        assert!(chosen.iter().all(|chosen| *chosen >= 150), "the one that is left is spared: {chosen:?}");
        assert_eq!(Endpoints::new(4, &[0, 1]).chosen(100)[..2], [0, 0]);
    }

    #[test]
    fn requests_are_shared_out_by_weight_whether_they_end_at_once_or_pile_up() {
        let weighted = |weights: &[u16], passed_over: &[usize]| {
            let weights_of = Weights::new(weights);
            Endpoints { weights: weights_of, ..Endpoints::new(weights.len(), passed_over) }
        };
        let endpoints = weighted(&[3, 1], &[]);
        let firsts: Vec<_> = (0..8).map(|_| endpoints.turns.begin().next(&endpoints).unwrap()).collect();
        assert_eq!(firsts, [0, 0, 1, 0, 0, 0, 1, 0], "spread evenly");
        for passed_over in [&[][..], &[2]] {
            let chosen = weighted(&[20, 60, 20], passed_over).chosen(1000);
            let (first, second) = (chosen[0] as f64, chosen[1] as f64);
            assert!((2.6..3.4).contains(&(second / first)), "{chosen:?} without {passed_over:?}");
        }
        assert!(Weights::new(&[7, 7]).is_none() && Weights::new(&[]).is_none());
        let mut order = weighted(&[5, 1, 9], &[1]).order();
        assert_eq!(order.pop(), Some(1), "each is tried once, and what is passed over comes last");
        order.sort_unstable();
        assert_eq!(order, [0, 2]);
    }
}
