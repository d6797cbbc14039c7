//! The requests at each upstream that has a limit: how its places are shared out among clients.

use std::rc::Rc;
use std::sync::Arc;

use super::shares::{Shares, ThreadShares};
use crate::upstream::UpstreamId;
use crate::upstream::bounds::{Bound, Bounds, Places};
use crate::upstream::loaded::Loaded;
use crate::vocabulary::key::Environment;

/// One environment of an upstream; `None` where it has no limit.
type Crowd = Option<Arc<Shares<Places>>>;

/// The requests at all upstreams of a configuration, as all threads see them.
#[derive(Debug)]
pub struct Crowds {
    threads: usize,
    bounds: Bounds,
    /// By the number of the upstream, and by environment.
    all: Vec<(Box<str>, [Crowd; 2])>,
}

/// The requests at one upstream for one environment at the moment of a scrape.
#[derive(Clone, Copy, Debug)]
pub struct SeenCrowd<'c> {
    pub upstream: &'c str,
    pub environment: Environment,
    pub in_flight: usize,
    pub at_most: usize,
    pub waiting: usize,
}

impl Crowds {
    /// None, for a gateway with so many threads.
    pub(super) fn none(threads: usize) -> Self {
        Self { threads, bounds: Bounds::default(), all: Vec::new() }
    }

    /// Those at these upstreams. What `before` has of the same upstream is taken over.
    pub(super) fn new(upstreams: &[Loaded], before: &Self) -> Self {
        let threads = before.threads;
        let bounds = Bounds::new(upstreams, &before.bounds);
        let of = |loaded: &Loaded| {
            let name = &loaded.settings().name;
            let known = before.all.iter().find(|(known, _)| known == name).map(|(_, crowds)| crowds);
            let [live, test] = Environment::ALL.map(|one| bounds.of(name, one));
            let is_shared = live.is_shared_with(&test);
            let crowd = |bound: &Bound, environment: Environment| -> Crowd {
                let places = bound.requests.as_ref()?;
                let known = known.and_then(|known| known[environment as usize].as_ref());
                let known = known.filter(|known| known.is_like(places, bound.waiting));
                let made = || Arc::new(Shares::of_upstream(places.clone(), bound.waiting, threads));
                Some(known.map_or_else(made, Arc::clone))
            };
            let of_live = crowd(&live, Environment::Live);
            let of_test = if is_shared { of_live.clone() } else { crowd(&test, Environment::Test) };
            (name.clone(), [of_live, of_test])
        };
        let all = upstreams.iter().map(of).collect();
        Self { threads, bounds, all }
    }

    pub(super) const fn bounds(&self) -> &Bounds {
        &self.bounds
    }

    /// Those that have a limit. Where both environments have the same servers, they are one.
    pub fn seen(&self) -> impl Iterator<Item = SeenCrowd<'_>> {
        self.all.iter().flat_map(|(upstream, crowds)| {
            Environment::ALL.into_iter().filter_map(|environment| {
                let shares = crowds[environment as usize].as_ref()?;
                let (in_flight, at_most) = shares.taken();
                Some(SeenCrowd { upstream, environment, in_flight, at_most, waiting: shares.waiting() })
            })
        })
    }
}

/// One environment of an upstream, as one thread sees it.
type ThreadCrowd = Option<Rc<ThreadShares<Places>>>;

/// The requests at all upstreams, as one thread sees them.
#[derive(Debug)]
pub(super) struct ThreadCrowds(Box<[[ThreadCrowd; 2]]>);

impl ThreadCrowds {
    /// What the thread has counted `before` is taken over.
    pub(super) fn new(crowds: &Crowds, before: Option<&Self>) -> Self {
        let mut known: Vec<_> =
            before.iter().flat_map(|before| before.0.iter().flatten().flatten()).cloned().collect();
        let mut of = |crowd: &Crowd| {
            let shared = crowd.as_ref()?;
            let found = known.iter().find(|known| Arc::ptr_eq(known.shared(), shared)).map(Rc::clone);
            Some(found.unwrap_or_else(|| {
                let made = Rc::new(ThreadShares::new(Arc::clone(shared)));
                // Both environments have it, where they have the same servers.
                known.push(Rc::clone(&made));
                made
            }))
        };
        Self(crowds.all.iter().map(|(_, [live, test])| [of(live), of(test)]).collect())
    }

    pub(super) fn find(
        &self,
        upstream: UpstreamId,
        environment: Environment,
    ) -> Option<&Rc<ThreadShares<Places>>> {
        self.0[upstream.0][environment as usize].as_ref()
    }
}
