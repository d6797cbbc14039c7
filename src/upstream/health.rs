//! The state of each server (an endpoint, or an address of its name), and whether it is passed over: how attempts to connect
//! ended, in all threads together, and whether [checks](super::Checks) passed.
//!
//! # When an endpoint is passed over
//! - A request could not connect to it. It is passed over for one second, and for twice as long after each request that
//!   tried it in vain, up to 30 s. When that time is over, one request tries it; success ends the matter.
//! - It failed two checks in a row. It is in use again when it passes one.
//! - Requests of three organisations on two routes got no proper answer (none in time, a connection that broke off, 5xx), and
//!   nobody got one between them (`witnesses.rs`). It is passed over as one that cannot be connected to; a
//!   proper answer ends the matter.
//!
//! A request that timed out, or whose connection broke off before the answer, only raises a suspicion: one client can ask for
//! what its endpoint never answers. So does a request that has waited for a second in which no other one of its thread was
//! answered there, and an answer of 5xx where checks ask for a path. The next check comes sooner then, and without a path it asks
//! for an answer, whatever it be; what that check finds counts. How many endpoints may be passed over at once, `select.rs` says.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use super::Checks;
use super::endpoint::Endpoint;
use super::loaded::Loaded;
use super::names::{Name, Server};
use super::witnesses::Witnesses;
use crate::telemetry::{Event, Notice};
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::Environment;
use crate::vocabulary::upstream::{Repetition, ServerState};

/// For how long an endpoint is passed over at first, and at most.
const FIRST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(30);

/// The health of all endpoints of a configuration.
#[derive(Debug, Default)]
pub struct Health(Vec<Watched>);

#[derive(Debug)]
struct Watched {
    upstream: Box<str>,
    endpoint: Endpoint,
    label: Box<str>,
    servers: Servers,
}

/// What an endpoint leads to.
#[derive(Clone, Debug)]
pub(super) enum Servers {
    One(Standing),
    /// Those that its name has at the moment.
    Named(Arc<Name>),
}

/// One endpoint at the moment of a scrape. One with a name is all of its servers together, so that there are no more of them than
/// the configuration has.
#[derive(Clone, Copy, Debug)]
pub struct Seen<'h> {
    /// The name of its upstream.
    pub upstream: &'h str,
    /// `host:port`, or `unix:/path`.
    pub label: &'h str,
    /// The best of its servers.
    pub state: ServerState,
    /// How often a request that it had, or was to get, was sent again, by [`Repetition`].
    pub repeated: [u64; Repetition::ALL.len()],
    /// `None` for one without a name.
    pub name: Option<NameSeen>,
}

/// The name of an endpoint at the moment of a scrape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NameSeen {
    /// Whether the last lookup did not fail; true before the first.
    pub is_resolved: bool,
    /// Its addresses to which requests go, and those that are passed over.
    pub healthy: usize,
    pub unhealthy: usize,
}

/// One server at the moment of a look.
#[derive(Clone, Debug)]
pub struct ServerSeen<'h> {
    /// The name of its upstream.
    pub upstream: &'h str,
    /// `host:port`, or `unix:/path`, with the address of a name, as in `api.internal:80 at 10.0.0.5`.
    pub label: String,
    pub state: ServerState,
}

/// How often requests were sent again, by [`Repetition`].
pub(super) type Repeated = [AtomicU64; Repetition::ALL.len()];

/// The state of one endpoint; shared by all threads.
#[derive(Clone, Debug, Default)]
pub struct Standing(Arc<State>);

#[derive(Debug, Default)]
struct State {
    /// The moment from which the other times count.
    origin: OnceLock<Instant>,
    /// Whether the last attempt to connect failed.
    is_unreachable: AtomicBool,
    /// Whether the log says that it cannot be reached.
    is_told_unreachable: AtomicBool,
    unreachable: Spell,
    /// Checks that failed in a row, and that passed in a row since; whether it is passed over for that, and told.
    failed_checks: AtomicU32,
    passed_checks: AtomicU32,
    is_failing: AtomicBool,
    is_told_failing: AtomicBool,
    /// Whether a request was left without an answer since a check last had one.
    is_suspected: AtomicBool,
    /// Whether requests got no proper answer since one did, and which.
    has_witnesses: AtomicBool,
    witnesses: Mutex<Witnesses>,
    unanswering: Spell,
    is_told_unanswering: AtomicBool,
    repeated: Arc<Repeated>,
}

/// A time for which an endpoint is passed over. Times are milliseconds after the origin, and never 0.
#[derive(Debug, Default)]
struct Spell {
    /// When the next request may try; 0 while the endpoint is in use.
    until: AtomicU64,
    /// How many requests tried in vain.
    tries: AtomicU32,
}

impl Spell {
    /// Begins, unless it has begun before; whether it had not.
    fn begin(&self, now: u64) -> bool {
        let until = now + millis(FIRST);
        let begins = self.until.compare_exchange(0, until, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if begins {
            self.tries.store(0, Ordering::Relaxed);
        }
        begins
    }

    /// Ends; whether there was anything to end.
    fn end(&self) -> bool {
        self.is_on() && self.until.swap(0, Ordering::Relaxed) != 0
    }

    fn is_on(&self) -> bool {
        self.until.load(Ordering::Relaxed) != 0
    }

    /// Whether a request may try the endpoint. Of those that ask when the time is over, one may, and the next time
    /// begins with it.
    fn admits(&self, now: u64) -> bool {
        let until = self.until.load(Ordering::Relaxed);
        if until == 0 {
            return true;
        }
        if now < until {
            return false;
        }
        let tries = self.tries.load(Ordering::Relaxed) + 1;
        let next = now + millis(LONGEST.min(FIRST * (1 << tries.min(5))));
        let is_first = self.until.compare_exchange(until, next, Ordering::Relaxed, Ordering::Relaxed).is_ok();
        if is_first {
            self.tries.store(tries, Ordering::Relaxed);
        }
        is_first
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

impl Standing {
    /// One whose repetitions are counted beside those of others.
    pub(super) fn counting(repeated: &Arc<Repeated>) -> Self {
        Self(Arc::new(State { repeated: Arc::clone(repeated), ..State::default() }))
    }

    fn since_origin(&self, now: Instant) -> u64 {
        millis(now.saturating_duration_since(*self.0.origin.get_or_init(|| now))) + 1
    }

    /// Whether requests go here as they do to others.
    pub(super) fn is_in_use(&self) -> bool {
        !self.0.unreachable.is_on() && !self.is_failing() && !self.0.unanswering.is_on()
    }

    /// Whether it fails its checks.
    pub(super) fn is_failing(&self) -> bool {
        self.0.is_failing.load(Ordering::Relaxed)
    }

    /// Whether a request may try it though it is passed over. It must, because the next one has to wait for longer. None may
    /// while it fails its checks.
    pub(super) fn admits(&self, now: Instant) -> bool {
        if self.is_failing() {
            return false;
        }
        let now = self.since_origin(now);
        self.0.unreachable.admits(now) && self.0.unanswering.admits(now)
    }

    /// An attempt to connect was given up, because another address of the name took a connection sooner. It is passed over as if it
    /// had failed, but nothing is told: it may only have been late.
    pub(super) fn note_overtaken(&self, now: Instant) {
        self.0.unreachable.begin(self.since_origin(now));
    }

    /// Notes how an attempt to connect to this server ended, and logs it if the one before ended otherwise.
    pub(super) fn note_connecting(&self, server: &str, failure: Option<&dyn fmt::Display>, now: Instant) {
        let State { is_unreachable, is_told_unreachable, unreachable, .. } = &*self.0;
        let was_unreachable = is_unreachable.swap(failure.is_some(), Ordering::Relaxed);
        match failure {
            Some(error) => {
                unreachable.begin(self.since_origin(now));
                if !was_unreachable {
                    let line = || format!("upstream {server} cannot be reached: {error}");
                    let is_told = Event::UpstreamUnreachable.log_of(server, now, line);
                    is_told_unreachable.store(is_told, Ordering::Relaxed);
                }
            }
            None => {
                unreachable.end();
                if was_unreachable && is_told_unreachable.swap(false, Ordering::Relaxed) {
                    Notice::EndpointReachable.log(&format!("upstream {server} is reachable again"));
                }
            }
        }
    }

    /// There are no checks of it any more, so what they said does not count.
    pub(super) fn forget_checks(&self) {
        self.0.is_failing.store(false, Ordering::Relaxed);
        self.0.failed_checks.store(0, Ordering::Relaxed);
        self.0.is_suspected.store(false, Ordering::Relaxed);
    }

    /// Notes that a request got no answer there, or none so far. The next check looks whether anything is answered.
    pub(super) fn suspect(&self) {
        self.0.is_suspected.store(true, Ordering::Relaxed);
    }

    /// A request of this organisation on this route got no proper answer from this server.
    pub(super) fn note_failure(&self, server: &str, (org, route): (OrgId, usize), now: Instant) {
        let State { has_witnesses, witnesses, unanswering, is_told_unanswering, .. } = &*self.0;
        let is_enough = {
            let mut witnesses = witnesses.lock().unwrap_or_else(PoisonError::into_inner);
            has_witnesses.store(true, Ordering::Relaxed);
            witnesses.add(org, route, now)
        };
        if is_enough && unanswering.begin(self.since_origin(now)) {
            let line = || {
                format!(
                    "upstream {server} is passed over: requests of three organisations on two routes got no proper answer there, and \
                     none did since"
                )
            };
            let is_told = Event::UpstreamFailsRequests.log_of(server, now, line);
            is_told_unanswering.store(is_told, Ordering::Relaxed);
        }
    }

    /// A request got a proper answer from this server.
    pub(super) fn note_success(&self, server: &str) {
        if self.0.has_witnesses.load(Ordering::Relaxed) {
            self.acquit(server);
        }
    }

    #[cold]
    fn acquit(&self, server: &str) {
        let State { has_witnesses, witnesses, unanswering, is_told_unanswering, .. } = &*self.0;
        let mut witnesses = witnesses.lock().unwrap_or_else(PoisonError::into_inner);
        has_witnesses.store(false, Ordering::Relaxed);
        witnesses.clear();
        if unanswering.end() && is_told_unanswering.swap(false, Ordering::Relaxed) {
            Notice::EndpointAnswers.log(&format!("upstream {server} answers properly again"));
        }
    }

    /// Notes that a check had an answer.
    pub(super) fn clear(&self) {
        self.0.is_suspected.store(false, Ordering::Relaxed);
    }

    pub(super) fn is_suspected(&self) -> bool {
        self.0.is_suspected.load(Ordering::Relaxed)
    }

    /// Notes how a check ended. To be called by one thread.
    pub(super) fn note_check(
        &self,
        server: &str,
        checks: &Checks,
        outcome: Result<(), String>,
        now: Instant,
    ) {
        let State { failed_checks, passed_checks, is_failing, is_told_failing, .. } = &*self.0;
        let Err(why) = outcome else {
            failed_checks.store(0, Ordering::Relaxed);
            self.note_connecting(server, None, now);
            let passed = passed_checks.fetch_add(1, Ordering::Relaxed) + 1;
            let is_back = passed >= checks.successes && is_failing.swap(false, Ordering::Relaxed);
            if is_back && is_told_failing.swap(false, Ordering::Relaxed) {
                Notice::EndpointPasses.log(&format!("upstream {server} passes its checks again"));
            }
            return;
        };
        passed_checks.store(0, Ordering::Relaxed);
        let failed = failed_checks.fetch_add(1, Ordering::Relaxed) + 1;
        if failed >= checks.failures && !is_failing.swap(true, Ordering::Relaxed) {
            let line = || format!("upstream {server} fails its checks: {why}");
            let is_told = Event::UpstreamCheckFails.log_of(server, now, line);
            is_told_failing.store(is_told, Ordering::Relaxed);
        }
    }

    /// A request that was here, or was to be sent here, is sent again.
    pub(super) fn note_repetition(&self, why: Repetition) {
        self.0.repeated[why as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn state(&self) -> ServerState {
        if self.is_failing() {
            ServerState::FailsChecks
        } else if self.0.is_unreachable.load(Ordering::Relaxed) {
            ServerState::Unreachable
        } else if self.0.unanswering.is_on() {
            ServerState::FailsRequests
        } else if self.is_suspected() {
            ServerState::Suspected
        } else {
            ServerState::InUse
        }
    }
}

impl Health {
    /// The health of these upstreams' endpoints. An endpoint that `before` has as well keeps what is known of
    /// it. An endpoint for both live and test keys is one.
    #[must_use]
    pub fn new(upstreams: &[Loaded], before: &Self) -> Self {
        let mut all = Self::default();
        for upstream in upstreams.iter().map(Loaded::settings) {
            let endpoints = Environment::ALL.into_iter().flat_map(|one| upstream.weighted(one));
            for (endpoint, _) in endpoints {
                if all.find(&upstream.name, endpoint).is_none() {
                    all.0.push(Watched {
                        upstream: upstream.name.clone(),
                        endpoint: endpoint.clone(),
                        label: endpoint.label().into(),
                        servers: before
                            .find(&upstream.name, endpoint)
                            .unwrap_or_else(|| Servers::unknown(endpoint)),
                    });
                }
            }
        }
        all
    }

    /// What an endpoint leads to, and how it is there.
    pub(super) fn find(&self, upstream: &str, endpoint: &Endpoint) -> Option<Servers> {
        let watched = self.0.iter().find(|one| *one.upstream == *upstream && one.endpoint == *endpoint);
        watched.map(|watched| watched.servers.clone())
    }

    pub fn endpoints(&self) -> impl Iterator<Item = Seen<'_>> {
        self.0.iter().map(|Watched { upstream, label, servers, .. }| {
            let (state, repeated, name) = match servers {
                Servers::One(standing) => (standing.state(), &*standing.0.repeated, None),
                Servers::Named(name) => (name.state(), name.repeated(), Some(NameSeen::of(name))),
            };
            let repeated = repeated.each_ref().map(|count| count.load(Ordering::Relaxed));
            Seen { upstream, label, state, repeated, name }
        })
    }

    /// The servers of all endpoints, each address of a name as one. A name without an address is one too.
    #[must_use]
    pub fn servers(&self) -> Vec<ServerSeen<'_>> {
        let mut all = Vec::new();
        for Watched { upstream, label, servers, .. } in &self.0 {
            let mut add = |label, state| all.push(ServerSeen { upstream, label, state });
            match servers {
                Servers::One(standing) => add(label.to_string(), standing.state()),
                Servers::Named(name) => {
                    let servers = name.servers();
                    if servers.is_empty() {
                        add(label.to_string(), ServerState::Unresolved);
                    }
                    for Server { address, standing } in &*servers {
                        add(format!("{label} at {}", address.ip()), standing.state());
                    }
                }
            }
        }
        all
    }
}

impl Servers {
    /// Of which nothing is known yet.
    pub(super) fn unknown(endpoint: &Endpoint) -> Self {
        match endpoint.name() {
            Some(name) => Self::Named(Arc::new(Name::new(name, &endpoint.to_string()))),
            None => Self::One(Standing::default()),
        }
    }
}

impl NameSeen {
    fn of(name: &Name) -> Self {
        let servers = name.servers();
        let healthy = servers.iter().filter(|server| server.standing.state().is_healthy()).count();
        Self { is_resolved: name.is_resolved(), healthy, unhealthy: servers.len() - healthy }
    }
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;
    use crate::vocabulary::clock::Clock;

    const SECOND: Duration = Duration::from_secs(1);

    const SERVER: &str = "http://127.0.0.1:9";

    /// How many of ten requests at `now` may go there.
    fn admitted(standing: &Standing, now: Instant) -> usize {
        (0..10).filter(|_| standing.is_in_use() || standing.admits(now)).count()
    }

    #[test]
    fn what_cannot_be_connected_to_is_tried_by_one_request_at_a_time_ever_more_rarely() {
        let (standing, start) = (Standing::default(), Clock::system().mono());
        assert_eq!(admitted(&standing, start), 10);
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        standing.note_connecting(SERVER, Some(&refused), start);
        let mut now = start;
        for pause in [1, 2, 4, 8, 16, 30, 30] {
            assert_eq!(admitted(&standing, now + SECOND * pause - Duration::from_millis(1)), 0, "{pause}");
            now += SECOND * pause;
            assert_eq!(admitted(&standing, now), 1, "{pause}");
            standing.note_connecting(SERVER, Some(&refused), now);
        }
        standing.note_connecting(SERVER, None, now);
        assert_eq!(admitted(&standing, now), 10);
        standing.note_connecting(SERVER, Some(&refused), now);
        assert_eq!(admitted(&standing, now + SECOND), 1, "it begins with a second again");
    }

    #[test]
    fn two_failed_checks_pass_an_endpoint_over_until_it_passes_one_and_no_request_has_to_try_it() {
        let (standing, start, checks) = (Standing::default(), Clock::system().mono(), Checks::default());
        let check = |outcome: Result<(), &str>| {
            standing.note_check(SERVER, &checks, outcome.map_err(str::to_owned), start);
        };
        check(Err("no"));
        check(Ok(()));
        check(Err("no"));
        assert_eq!((admitted(&standing, start), standing.state().is_healthy()), (10, true));
        check(Err("no"));
        assert_eq!((admitted(&standing, start + SECOND * 60), standing.state().is_healthy()), (0, false));
        check(Ok(()));
        assert_eq!((admitted(&standing, start), standing.state().is_healthy()), (10, true));
        let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
        standing.note_connecting(SERVER, Some(&refused), start);
        check(Ok(()));
        assert_eq!(admitted(&standing, start), 10, "a check that connects ends that too");
    }
}
