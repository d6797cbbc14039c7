//! Which endpoints can be connected to. Nobody is asked for it: it is what the last attempts to connect came
//! to, of whatever thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{Endpoint, Settings};
use crate::vocabulary::key::Environment;

/// All endpoints of a configuration.
#[derive(Debug, Default)]
pub struct Health(Vec<Watched>);

#[derive(Debug)]
struct Watched {
    upstream: Box<str>,
    endpoint: Endpoint,
    authority: Box<str>,
    reachable: Reachable,
}

/// Whether an endpoint could be connected to the last time; shared by all threads.
#[derive(Clone, Debug)]
pub struct Reachable(Arc<AtomicBool>);

impl Default for Reachable {
    fn default() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

impl Reachable {
    /// Notes how an attempt to connect ended, and gives what was noted before.
    pub fn note(&self, connected: bool) -> bool {
        self.0.swap(connected, Ordering::Relaxed)
    }
}

impl Health {
    /// Of these upstreams; what was known `before` of one of their endpoints is known still. An endpoint for
    /// live and test keys alike is one.
    #[must_use]
    pub fn new(upstreams: &[Settings], before: &Self) -> Self {
        let mut all = Self::default();
        for upstream in upstreams {
            let endpoints = Environment::ALL.into_iter().flat_map(|one| upstream.endpoints(one));
            for endpoint in endpoints {
                if all.find(&upstream.name, endpoint).is_none() {
                    all.0.push(Watched {
                        upstream: upstream.name.clone(),
                        endpoint: endpoint.clone(),
                        authority: endpoint.authority().into(),
                        reachable: before.find(&upstream.name, endpoint).unwrap_or_default(),
                    });
                }
            }
        }
        all
    }

    /// What is noted of an endpoint.
    #[must_use]
    pub fn find(&self, upstream: &str, endpoint: &Endpoint) -> Option<Reachable> {
        let watched = self.0.iter().find(|one| *one.upstream == *upstream && one.endpoint == *endpoint);
        watched.map(|watched| watched.reachable.clone())
    }

    /// Each endpoint's upstream, the endpoint as `host:port`, and whether it could be connected to.
    pub fn endpoints(&self) -> impl Iterator<Item = (&str, &str, bool)> {
        let read = |one: &Watched| one.reachable.0.load(Ordering::Relaxed);
        self.0.iter().map(move |one| (&*one.upstream, &*one.authority, read(one)))
    }
}
