//! A link to Redis: one connection for many callers, made when it is needed and made anew when it fails.
//!
//! A caller waits no longer than its own time-out, for the connection and the answer together. While the breaker is
//! open it fails at once.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::{ErrorKind, RedisError, ServerErrorKind, Value};
use tokio::runtime::Handle;
use tokio::sync::{Mutex as AsyncMutex, watch};
use tokio::time::timeout;

use super::breaker::Breaker;
use super::scripts::{Call, Reply};
use super::settings::Node;
use super::split;
use super::topology::{Connected, Connector};
use crate::store::StoreFault;
use crate::telemetry::Event;
use crate::vocabulary::clock::Clock;

/// How long a change waits for a replica.
const REPLICA_PATIENCE: Duration = Duration::from_millis(100);

/// A connection that was idle for longer than this is tested before a mutation: if it had been closed meanwhile, it
/// would be unknown whether the mutation was carried out.
const TRUSTED_FOR: Duration = Duration::from_secs(1);

/// The connection, and its breaker.
#[derive(Debug)]
pub(super) struct Link {
    /// For the log.
    name: &'static str,
    connector: Arc<Connector>,
    control: Handle,
    clock: Clock,
    slot: Mutex<Slot>,
    /// A connection to the node that our slot was moving to when it was needed last.
    target: AsyncMutex<Option<Connected>>,
    breaker: Mutex<Breaker>,
}

enum Slot {
    Vacant,
    /// Being made, in a task of its own: a caller that gives up must not take the connection with it.
    Coming(Coming),
    There(Opened),
}

type Coming = watch::Receiver<Option<Result<Opened, StoreFault>>>;

/// The state of the link for a caller that needs a connection.
enum Join {
    Coming(Coming),
    There(Opened),
}

#[derive(Clone)]
struct Opened {
    connection: MultiplexedConnection,
    node: Node,
    /// When it last answered.
    answered: Arc<Mutex<Instant>>,
}

impl Opened {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.answered, &other.answered)
    }

    fn idle(&self, now: Instant) -> Duration {
        now.saturating_duration_since(*lock(&self.answered))
    }
}

/// No code panics while it holds one of these locks.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a call failed.
enum Failure {
    /// Redis is not there, or does not work.
    Link(StoreFault),
    /// The server is no longer the master, and did nothing.
    NotMaster(StoreFault),
    /// Redis works and refused the call.
    Refused(StoreFault),
    /// The user lacks the right to read, for every call.
    Denied(StoreFault),
}

impl Link {
    pub(super) fn new(
        name: &'static str,
        connector: Arc<Connector>,
        control: Handle,
        clock: Clock,
    ) -> Arc<Self> {
        let (slot, target, breaker) = (Mutex::new(Slot::Vacant), AsyncMutex::default(), Mutex::default());
        Arc::new(Self { name, connector, control, clock, slot, target, breaker })
    }

    /// The fault with which a call fails at once now, if the breaker is open.
    pub(super) fn turns_away(&self) -> Option<StoreFault> {
        lock(&self.breaker).turns_away(self.now()).cloned()
    }

    /// Another link has found that Redis works: closes the breaker.
    pub(super) fn forgive(&self) {
        *lock(&self.breaker) = Breaker::default();
    }

    /// Runs a script, within `patience` in all.
    ///
    /// After a fault, a script that writes may have run, or may still run.
    pub(super) async fn run(
        self: &Arc<Self>,
        call: &Call<'_>,
        patience: Duration,
    ) -> Result<Reply, StoreFault> {
        let admission = Admission::ask(self)?;
        let begun = self.now();
        let outcome = match timeout(patience, self.attempt(call)).await {
            Ok(outcome) => outcome,
            Err(_) => {
                self.close_silent(begun);
                Err(Failure::Link(StoreFault::TimedOut))
            }
        };
        match outcome {
            Ok(reply) => {
                admission.answered();
                Ok(reply)
            }
            Err(Failure::Refused(fault)) => {
                admission.answered();
                Err(fault)
            }
            Err(Failure::Link(fault) | Failure::NotMaster(fault) | Failure::Denied(fault)) => {
                admission.failed(&fault);
                Err(fault)
            }
        }
    }

    /// Sends a script to the server that this link uses now, if there is one. Returns that server and its answer. The
    /// connection stays as it was, whatever the answer.
    pub(super) async fn sound(
        &self,
        call: &Call<'_>,
        patience: Duration,
    ) -> Option<(Node, Result<Reply, RedisError>)> {
        let mut opened = match &*lock(&self.slot) {
            Slot::There(opened) if self.connector.is_current(&opened.node) => opened.clone(),
            Slot::There(_) | Slot::Coming(_) | Slot::Vacant => return None,
        };
        let said = timeout(patience, call.send(&mut opened.connection)).await.ok()?;
        Some((opened.node, said))
    }

    async fn attempt(self: &Arc<Self>, call: &Call<'_>) -> Result<Reply, Failure> {
        let mut opened = self.connection().await?;
        if !call.reads_only()
            && opened.idle(self.now()) > TRUSTED_FOR
            && !self.still_answers(&mut opened).await
        {
            opened = self.connection().await?;
        }
        match self.send(call, &mut opened).await {
            // The connection may have been closed long before this call: try a new one.
            Err(Failure::Link(_)) if call.reads_only() => {}
            Err(Failure::NotMaster(_)) => {}
            outcome => return outcome,
        }
        let mut opened = self.connection().await?;
        self.send(call, &mut opened).await
    }

    async fn send(&self, call: &Call<'_>, opened: &mut Opened) -> Result<Reply, Failure> {
        match call.send(&mut opened.connection).await {
            Ok(reply) => {
                *lock(&opened.answered) = self.now();
                if call.is_durable() {
                    self.wait_for_replica(opened).await;
                }
                Ok(reply)
            }
            Err(error) if call.has_halves() && is_split(&error) => {
                *lock(&opened.answered) = self.now();
                self.gather(call, opened, &error).await
            }
            // For writes, one script may be forbidden and the next one allowed.
            Err(error) if call.reads_only() && error.code() == Some("NOPERM") => {
                Err(Failure::Denied(self.connector.fault(&error)))
            }
            Err(error) => Err(self.failure(&error, opened)),
        }
    }

    /// Asks both the node that has our slot and the node that it is moving to.
    async fn gather(
        &self,
        call: &Call<'_>,
        opened: &mut Opened,
        refusal: &RedisError,
    ) -> Result<Reply, Failure> {
        let target = self.connector.target(&opened.node, &mut opened.connection).await;
        let target = target.map_err(|error| self.failure(&error, opened))?;
        let refused = || Failure::Refused(self.connector.fault(refusal));
        let mut at_target = self.target_at(target.ok_or_else(refused)?).await.map_err(Failure::Refused)?;
        match split::put_together(call, &mut opened.connection, &mut at_target).await {
            Ok(whole) => whole.ok_or_else(refused),
            Err(error) => {
                *self.target.lock().await = None;
                Err(self.failure(&error, opened))
            }
        }
    }

    async fn target_at(&self, node: Node) -> Result<MultiplexedConnection, StoreFault> {
        let mut target = self.target.lock().await;
        let connected = match target.take().filter(|connected| connected.node == node) {
            Some(connected) => connected,
            None => self.connector.dial(node).await?,
        };
        Ok(target.insert(connected).connection.clone())
    }

    /// Classifies an error, and closes the connection if it cannot be used any more.
    fn failure(&self, error: &RedisError, opened: &Opened) -> Failure {
        let fault = self.connector.fault(error);
        let failure = if is_elsewhere(error) {
            Failure::NotMaster(fault)
        } else if is_link_trouble(error) {
            Failure::Link(fault)
        } else {
            return Failure::Refused(fault);
        };
        self.close(opened);
        failure
    }

    /// Waits briefly until a replica has what this connection wrote. A replica that is behind must not delay a
    /// revocation for long.
    async fn wait_for_replica(&self, opened: &mut Opened) {
        let mut command = ::redis::cmd("WAIT");
        command.arg(1).arg(REPLICA_PATIENCE.as_millis().to_string());
        let reached = command.query_async::<usize>(&mut opened.connection).await;
        if !matches!(reached, Ok(1..)) {
            Event::NotReplicated.log(self.clock.mono(), || {
                format!(
                    "a change has reached no replica of Redis at {} within {REPLICA_PATIENCE:?}: should that Redis be lost \
                     now, the change is lost with it",
                    self.connector.whereabouts()
                )
            });
        }
    }

    async fn still_answers(&self, opened: &mut Opened) -> bool {
        let answer = ::redis::cmd("PING").query_async::<Value>(&mut opened.connection).await;
        if answer.is_err() {
            self.close(opened);
        }
        answer.is_ok()
    }

    /// The connection. If it is being made, waits for it together with other callers.
    async fn connection(self: &Arc<Self>) -> Result<Opened, Failure> {
        let mut coming = match self.join() {
            Join::There(opened) => return Ok(opened),
            Join::Coming(coming) => coming,
        };
        let made = coming.wait_for(Option::is_some).await.ok().and_then(|made| made.clone());
        made.unwrap_or_else(|| Err(StoreFault::failed("connecting was broken off"))).map_err(Failure::Link)
    }

    fn join(self: &Arc<Self>) -> Join {
        let mut slot = lock(&self.slot);
        match &*slot {
            Slot::There(opened) if self.connector.is_current(&opened.node) => {
                return Join::There(opened.clone());
            }
            // The sender is gone if its task panicked.
            Slot::Coming(coming) if coming.has_changed().is_ok() => return Join::Coming(coming.clone()),
            Slot::There(_) | Slot::Coming(_) | Slot::Vacant => {}
        }
        let (made, coming) = watch::channel(None);
        *slot = Slot::Coming(coming.clone());
        let link = Arc::clone(self);
        self.control.spawn(async move {
            let outcome = link.open().await;
            *lock(&link.slot) = outcome.clone().map_or(Slot::Vacant, Slot::There);
            made.send_replace(Some(outcome));
        });
        Join::Coming(coming)
    }

    async fn open(&self) -> Result<Opened, StoreFault> {
        let master = self.connector.master();
        let connected = match self.connector.connect().await {
            // Another task has found the master since this one began: try that one.
            Err(_) if master.has_changed().unwrap_or(false) => self.connector.connect().await,
            connected => connected,
        };
        let Connected { connection, node } = connected?;
        Ok(Opened { connection, node, answered: Arc::new(Mutex::new(self.now())) })
    }

    /// Stops using a connection. Calls that are under way on it may still get their answers.
    fn close(&self, closed: &Opened) {
        self.close_if(|opened| opened.is(closed));
    }

    /// Stops using a connection that has given no answer since then. If it has answered another call, only this one
    /// was slow.
    fn close_silent(&self, since: Instant) {
        self.close_if(|opened| *lock(&opened.answered) <= since);
    }

    fn close_if(&self, condition: impl Fn(&Opened) -> bool) {
        let mut slot = lock(&self.slot);
        if matches!(&*slot, Slot::There(opened) if condition(opened)) {
            *slot = Slot::Vacant;
        }
    }

    fn now(&self) -> Instant {
        self.clock.now().mono
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Vacant => "Vacant",
            Self::Coming(_) => "Coming",
            Self::There(_) => "There",
        })
    }
}

/// Whether an error says that another server is the master, or has our slot. Then nothing was carried out.
fn is_elsewhere(error: &RedisError) -> bool {
    let ErrorKind::Server(kind) = error.kind() else { return false };
    matches!(kind, ServerErrorKind::ReadOnly | ServerErrorKind::Moved)
}

/// Whether an error says that some keys are at another node: before a script began, or when it came upon them.
fn is_split(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Server(ServerErrorKind::Ask | ServerErrorKind::TryAgain) => true,
        _ => error.detail().is_some_and(|detail| detail.contains("access a non local key")),
    }
}

/// Whether an error concerns the connection, and not only this call.
fn is_link_trouble(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Io
        | ErrorKind::Parse
        | ErrorKind::AuthenticationFailed
        | ErrorKind::UnexpectedReturnType => true,
        // Redis is starting, or has no master, or the cluster is down.
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::BusyLoading | ServerErrorKind::MasterDown | ServerErrorKind::ClusterDown
        ),
        // Blocked by another client's script; or a password is required now that was not required at the connect.
        _ => matches!(error.code(), Some("BUSY" | "NOAUTH")),
    }
}

/// One caller's leave to ask. A caller that goes away leaves the breaker as it was.
struct Admission<'l> {
    link: &'l Link,
    probes: bool,
}

impl<'l> Admission<'l> {
    fn ask(link: &'l Link) -> Result<Self, StoreFault> {
        let probes = lock(&link.breaker).admit(link.now())?;
        Ok(Self { link, probes })
    }

    fn answered(mut self) {
        *lock(&self.link.breaker) = Breaker::default();
        self.probes = false;
    }

    fn failed(self, fault: &StoreFault) {
        let Self { link, .. } = &self;
        let opens = lock(&link.breaker).fail(link.now(), fault);
        if opens {
            Event::BreakerOpen.log_of(link.name, link.now(), || {
                format!("Redis is spared calls for {} until one succeeds: {fault}", link.name)
            });
        }
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if self.probes {
            lock(&self.link.breaker).end_probe();
        }
    }
}
