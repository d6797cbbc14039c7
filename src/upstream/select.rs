//! Which endpoint gets a request, and which one after it.

use std::cell::Cell;

/// The next endpoint among those of one environment of one upstream.
///
/// Requests go round in turn. Health is not read: an endpoint that cannot be connected to keeps its turn, and
/// its requests go on to the next one.
#[derive(Debug, Default)]
pub(super) struct Turns {
    next: Cell<usize>,
}

impl Turns {
    /// The places of all `count` endpoints, each once, in the order in which one request tries them.
    pub(super) fn order(&self, count: usize) -> impl Iterator<Item = usize> + use<> {
        let first = self.next.get();
        self.next.set(first.wrapping_add(1));
        (0..count).map(move |n| first.wrapping_add(n) % count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_begin_with_each_endpoint_in_turn_and_try_each_once() {
        let turns = Turns::default();
        let orders: Vec<Vec<usize>> = (0..4).map(|_| turns.order(3).collect()).collect();
        assert_eq!(orders, [vec![0, 1, 2], vec![1, 2, 0], vec![2, 0, 1], vec![0, 1, 2]]);
    }
}
