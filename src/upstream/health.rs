//! Which endpoints can be connected to. Passive: no probes are sent. It is how the last attempt to connect
//! ended, of any thread.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::Settings;
use super::endpoint::Endpoint;
use crate::telemetry;
use crate::vocabulary::key::Environment;

/// The health of all endpoints of a configuration.
#[derive(Debug, Default)]
pub struct Health(Vec<Watched>);

#[derive(Debug)]
struct Watched {
    upstream: Box<str>,
    endpoint: Endpoint,
    authority: Box<str>,
    reachable: Reachable,
}

/// Whether the last attempt to connect to an endpoint succeeded; shared by all threads.
#[derive(Clone, Debug)]
pub struct Reachable(Arc<AtomicBool>);

impl Default for Reachable {
    fn default() -> Self {
        Self(Arc::new(AtomicBool::new(true)))
    }
}

impl Reachable {
    /// Notes how an attempt to connect to `endpoint` ended, and logs it if the one before ended otherwise.
    pub(super) fn note(&self, endpoint: &Endpoint, failure: Option<&io::Error>) {
        let before = self.0.swap(failure.is_none(), Ordering::Relaxed);
        match failure {
            Some(error) if before => {
                telemetry::log(&format!("upstream {endpoint} cannot be reached: {error}"));
            }
            None if !before => telemetry::log(&format!("upstream {endpoint} is reachable again")),
            Some(_) | None => {}
        }
    }
}

impl Health {
    /// The health of these upstreams' endpoints. An endpoint that `before` has as well keeps what is known of
    /// it. An endpoint for both live and test keys is one.
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

    /// The state of an endpoint.
    #[must_use]
    pub fn find(&self, upstream: &str, endpoint: &Endpoint) -> Option<Reachable> {
        let watched = self.0.iter().find(|one| *one.upstream == *upstream && one.endpoint == *endpoint);
        watched.map(|watched| watched.reachable.clone())
    }

    /// Each endpoint: its upstream's name, its `host:port`, and whether it could be connected to.
    pub fn endpoints(&self) -> impl Iterator<Item = (&str, &str, bool)> {
        let read = |one: &Watched| one.reachable.0.load(Ordering::Relaxed);
        self.0.iter().map(move |one| (&*one.upstream, &*one.authority, read(one)))
    }
}
