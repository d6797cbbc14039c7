//! Which endpoint gets a request, and which one after it.

use std::cell::Cell;

/// The next endpoint among those of one environment of one upstream.
///
/// Requests go round in turn. An endpoint that [`health`](super::health) passes over comes after all others, so it is
/// tried only by a request that no other endpoint took.
#[derive(Debug, Default)]
pub(super) struct Turns {
    next: Cell<usize>,
}

/// The places of all endpoints, each once, in the order in which one request tries them.
#[derive(Debug)]
pub(super) struct Order {
    first: usize,
    count: usize,
    /// How many places were looked at.
    looked_at: usize,
    passed_over: Vec<usize>,
}

impl Turns {
    /// The order for the next request to one of `count` endpoints.
    pub(super) fn order(&self, count: usize) -> Order {
        let first = self.next.get();
        self.next.set(first.wrapping_add(1));
        Order { first, count, looked_at: 0, passed_over: Vec::new() }
    }
}

impl Order {
    /// The next place. `admits` tells whether an endpoint is in use; it is asked once at most about each, when its turn
    /// has come. An endpoint that is the only one is not asked about.
    pub(super) fn next(&mut self, mut admits: impl FnMut(usize) -> bool) -> Option<usize> {
        while self.looked_at < self.count {
            let at = self.first.wrapping_add(self.looked_at) % self.count;
            self.looked_at += 1;
            if self.count == 1 || admits(at) {
                return Some(at);
            }
            self.passed_over.push(at);
        }
        (!self.passed_over.is_empty()).then(|| self.passed_over.remove(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(turns: &Turns, count: usize, out: &[usize]) -> Vec<usize> {
        let mut order = turns.order(count);
        std::iter::from_fn(|| order.next(|at| !out.contains(&at))).collect()
    }

    #[test]
    fn requests_begin_with_each_endpoint_in_turn_and_try_each_once() {
        let turns = Turns::default();
        let orders: Vec<Vec<usize>> = (0..4).map(|_| order(&turns, 3, &[])).collect();
        assert_eq!(orders, [vec![0, 1, 2], vec![1, 2, 0], vec![2, 0, 1], vec![0, 1, 2]]);
    }

    #[test]
    fn what_is_passed_over_comes_last_and_the_only_endpoint_never_is() {
        let turns = Turns::default();
        let orders: Vec<Vec<usize>> = (0..3).map(|_| order(&turns, 3, &[1])).collect();
        assert_eq!(orders, [vec![0, 2, 1], vec![2, 0, 1], vec![2, 0, 1]]);
        assert_eq!(order(&turns, 2, &[0, 1]).len(), 2, "if all are, all are tried");
        assert_eq!(order(&turns, 1, &[0]), [0]);
        assert_eq!(order(&turns, 0, &[]), Vec::<usize>::new());
    }
}
