//! The addresses of an endpoint's name: one list for the process, looked up again and again, and followed by every thread.
//!
//! The resolver of the system says nothing of how long its answer holds, so the configuration does. A name is looked up again when its
//! greatest age is near, and as soon as its least age allows where one of its addresses could not be connected to. A
//! lookup that fails changes nothing: what is known is used for as long as it fails, because a resolver that is out of order
//! does not mean that the servers have moved.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;
use tokio::time::timeout;

use super::health::{Repeated, Standing};
use crate::dial::interleaved;
use crate::telemetry::{Event, Notice};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::upstream::ServerState;

/// The addresses of one name that are used. More are told in the log.
pub(super) const ADDRESSES: usize = 64;
/// The share of the greatest age after which a name is looked up, at least and at most: so names do not come together, and
/// the lookup has time.
const SHARES: (f32, f32) = (0.7, 0.9);
/// How long it takes at most until somebody asks again whether a lookup is due.
const LOOK: Duration = Duration::from_secs(1);

/// How old what is known of a name may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ages {
    /// Younger than this it is not looked up again, whatever happens.
    pub least: Duration,
    pub greatest: Duration,
}

impl Default for Ages {
    fn default() -> Self {
        Self { least: Duration::from_secs(1), greatest: Duration::from_secs(5) }
    }
}

/// The name of one endpoint. All threads share it.
#[derive(Debug)]
pub(super) struct Name {
    host: Box<str>,
    port: u16,
    /// The endpoint, for messages.
    shown: Box<str>,
    known: Mutex<Known>,
    /// Grows whenever the addresses change.
    version: AtomicU64,
    /// Tells that a lookup has ended.
    looked_up: Notify,
    /// Whether it is to be looked up as soon as its least age allows.
    is_wanted: AtomicBool,
    is_running: AtomicBool,
    /// Of all addresses that it ever had.
    repeated: Arc<Repeated>,
}

/// One address of a name: a server of its own.
#[derive(Clone, Debug)]
pub(super) struct Server {
    pub(super) address: SocketAddr,
    pub(super) standing: Standing,
}

#[derive(Debug, Default)]
struct Known {
    servers: Arc<[Server]>,
    /// When the last lookup ended, and the share of the greatest age that counts from then on.
    at: Option<(Instant, f32)>,
    has_failed: bool,
    is_told_failed: bool,
    /// Whether the log says that there are too many.
    is_told_many: bool,
}

/// Ends the state of being looked up, also where the thread that does it ends.
struct Running(Arc<Name>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.is_running.store(false, Ordering::Relaxed);
    }
}

impl Name {
    /// `shown` is the endpoint.
    pub(super) fn new((host, port): (&str, u16), shown: &str) -> Self {
        Self {
            host: host.into(),
            port,
            shown: shown.into(),
            known: Mutex::default(),
            version: AtomicU64::new(0),
            looked_up: Notify::new(),
            is_wanted: AtomicBool::new(false),
            is_running: AtomicBool::new(false),
            repeated: Arc::default(),
        }
    }

    pub(super) fn servers(&self) -> Arc<[Server]> {
        Arc::clone(&self.lock().servers)
    }

    /// Grows whenever the addresses change.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// One of its addresses could not be connected to, so it may have others by now.
    pub(super) fn want(&self) {
        self.is_wanted.store(true, Ordering::Relaxed);
    }

    /// How often requests of all its addresses were sent again.
    pub(super) fn repeated(&self) -> &Repeated {
        &self.repeated
    }

    /// Whether the last lookup did not fail.
    pub(super) fn is_resolved(&self) -> bool {
        !self.lock().has_failed
    }

    /// That of its best address.
    pub(super) fn state(&self) -> ServerState {
        let servers = self.servers();
        let states = servers.iter().map(|server| server.standing.state());
        states.min_by_key(|state| state.severity()).unwrap_or(ServerState::Unresolved)
    }

    /// Begins a lookup, if one is due. Returns after what time to call it again. To be called within a worker's `LocalSet`.
    pub(super) fn look(self: &Arc<Self>, ages: Ages, clock: &Clock) -> Duration {
        let left = self.left(ages, clock.mono());
        if !left.is_zero() {
            return left;
        }
        if !self.is_running.swap(true, Ordering::Relaxed) {
            let (running, clock) = (Running(Arc::clone(self)), clock.clone());
            self.is_wanted.store(false, Ordering::Relaxed);
            tokio::task::spawn_local(async move {
                let name = &running.0;
                let found = tokio::net::lookup_host((&*name.host, name.port)).await;
                name.note(found.map(Iterator::collect), clock.mono());
            });
        }
        LOOK
    }

    /// The time until the next lookup.
    fn left(&self, ages: Ages, now: Instant) -> Duration {
        let known = self.lock();
        let Some((at, share)) = known.at else { return Duration::ZERO };
        let is_wanted = known.servers.is_empty() || self.is_wanted.load(Ordering::Relaxed);
        let age = if is_wanted { ages.least } else { ages.greatest.mul_f32(share).max(ages.least) };
        (at + age).saturating_duration_since(now)
    }

    /// Waits until the first lookup has ended, if it has not, for so long at most.
    pub(super) async fn first(&self, within: Duration) {
        let mut ended = std::pin::pin!(self.looked_up.notified());
        // Listens before it looks, so that nothing is missed.
        ended.as_mut().enable();
        if self.lock().at.is_none() {
            // Whether it was in time shows in what is known.
            let _ = timeout(within, ended).await;
        }
    }

    /// Notes how a lookup ended.
    fn note(&self, found: io::Result<Vec<SocketAddr>>, now: Instant) {
        let mut known = self.lock();
        let share = SHARES.0 + fastrand::f32() * (SHARES.1 - SHARES.0);
        known.at = Some((now, share));
        match found {
            Ok(found) if !found.is_empty() => {
                self.note_found(&mut known, found, now);
                self.note_success(&mut known);
            }
            Ok(_) => self.note_failure(&mut known, &"it has no address", now),
            Err(error) => self.note_failure(&mut known, &error, now),
        }
        drop(known);
        self.looked_up.notify_waiters();
    }

    /// What stays keeps its place and its standing, so that no thread has to move anything because a resolver gave another order.
    fn note_found(&self, known: &mut Known, found: Vec<SocketAddr>, now: Instant) {
        let count = found.len();
        let mut servers: Vec<Server> =
            known.servers.iter().filter(|server| found.contains(&server.address)).cloned().collect();
        for address in interleaved(found, SocketAddr::is_ipv4) {
            if servers.len() < ADDRESSES && !servers.iter().any(|server| server.address == address) {
                servers.push(Server { address, standing: Standing::counting(&self.repeated) });
            }
        }
        let addresses = |servers: &[Server]| servers.iter().map(|server| server.address).collect::<Vec<_>>();
        if addresses(&servers) != addresses(&known.servers) {
            known.servers = servers.into();
            self.version.fetch_add(1, Ordering::Release);
        }
        let is_many = count > ADDRESSES;
        if is_many && !known.is_told_many {
            let line = || {
                format!(
                    "the name of upstream {} has {count} addresses, of which {ADDRESSES} are used; list the servers under several names",
                    self.shown
                )
            };
            Event::UpstreamAddresses.log_of(&self.shown, now, line);
        }
        known.is_told_many = is_many;
    }

    fn note_success(&self, known: &mut Known) {
        known.has_failed = false;
        if std::mem::take(&mut known.is_told_failed) {
            Notice::EndpointResolves
                .log(&format!("the name of upstream {} can be resolved again", self.shown));
        }
    }

    fn note_failure(&self, known: &mut Known, why: &dyn std::fmt::Display, now: Instant) {
        if std::mem::replace(&mut known.has_failed, true) {
            return;
        }
        let line = || {
            let consequence = match known.servers.len() {
                0 => "requests get 502 where there is no other server".to_owned(),
                1 => "the address that is known is used until it can be".to_owned(),
                count => format!("the {count} addresses that are known are used until it can be"),
            };
            format!("the name of upstream {} cannot be resolved: {why}; {consequence}", self.shown)
        };
        known.is_told_failed = Event::UpstreamUnresolved.log_of(&self.shown, now, line);
    }

    /// The data stays usable after a thread has panicked while it held the lock.
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: usize) -> SocketAddr {
        SocketAddr::from(([127, 0, 1, u8::try_from(last).unwrap()], 1))
    }

    fn name() -> Name {
        Name::new(("a.test", 1), "http://a.test:1")
    }

    fn known(name: &Name) -> Vec<SocketAddr> {
        name.servers().iter().map(|server| server.address).collect()
    }

    #[test]
    fn what_stays_keeps_its_place_and_its_standing_and_only_a_change_is_one() {
        let (name, now) = (name(), Clock::system().mono());
        name.note(Ok(vec![address(1), address(2)]), now);
        let version = name.version();
        name.note(Ok(vec![address(2), address(1)]), now);
        assert_eq!((known(&name), name.version()), (vec![address(1), address(2)], version));
        name.servers()[1].standing.suspect();
        name.note(Ok(vec![address(3), address(2)]), now);
        assert_eq!(known(&name), [address(2), address(3)]);
        assert!(name.servers()[0].standing.is_suspected() && name.version() > version);
    }

    #[test]
    fn a_lookup_that_fails_leaves_what_is_known() {
        let (name, now) = (name(), Clock::system().mono());
        let fails = || Err(io::Error::other("no"));
        name.note(fails(), now);
        assert_eq!((name.state(), name.is_resolved()), (ServerState::Unresolved, false));
        name.note(Ok(vec![address(1)]), now);
        assert_eq!((name.state(), name.is_resolved()), (ServerState::InUse, true));
        for failure in [fails(), Ok(Vec::new())] {
            name.note(failure, now);
            assert_eq!((known(&name), name.is_resolved()), (vec![address(1)], false));
        }
    }

    #[test]
    fn a_name_has_sixty_four_addresses_at_most_and_those_that_are_known_stay() {
        let (name, now) = (name(), Clock::system().mono());
        name.note(Ok((0..ADDRESSES + 6).map(address).collect()), now);
        let first = known(&name);
        assert_eq!(first.len(), ADDRESSES);
        name.note(Ok((0..ADDRESSES + 6).rev().map(address).collect()), now);
        assert_eq!(known(&name), first);
    }

    #[test]
    fn a_name_is_looked_up_within_its_greatest_age_and_sooner_only_where_it_is_wanted() {
        let (name, now) = (name(), Clock::system().mono());
        let ages = Ages::default();
        assert_eq!(name.left(ages, now), Duration::ZERO);
        name.note(Ok(vec![address(1)]), now);
        let left = name.left(ages, now);
        assert!(left > ages.least && left <= ages.greatest.mul_f32(SHARES.1), "{left:?}");
        assert_eq!(name.left(ages, now + ages.greatest), Duration::ZERO);
        name.want();
        assert_eq!(name.left(ages, now), ages.least);
    }
}
