//! A way to Redis: one connection for many callers, made when it is needed and made anew when it fails.
//!
//! A caller waits as long as its own patience allows and never longer: for the connection, the answer, or the
//! verdict of the breaker that Redis is not worth asking at the moment.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use ::redis::aio::MultiplexedConnection;
use ::redis::io::tcp::TcpSettings;
use ::redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ErrorKind, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, ServerErrorKind, Value,
};
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::timeout;

use super::Address;
use super::scripts::{Call, Reply, bytes, unexpected};
use crate::clock::Clock;
use crate::store::StoreFault;

/// Requests that may wait in a connection's queue before their senders have to.
const QUEUE: usize = 512;
/// A connection that lay idle for this long is tried out before a mutation is entrusted to it: had it been
/// closed meanwhile, nobody could say whether the mutation was carried out.
const TRUSTED_FOR: Duration = Duration::from_secs(1);
/// The oldest Redis that has read-only scripts with flags.
const OLDEST: u32 = 7;

/// Makes connections to the one Redis there is.
#[derive(Clone)]
pub(super) struct Connector {
    client: Client,
    address: Address,
    patience: Duration,
}

/// Who keygate is to Redis.
#[derive(Clone)]
pub(super) struct Credentials {
    pub(super) username: Option<String>,
    pub(super) password: Option<String>,
}

impl Connector {
    /// `patience` is how long connecting may take, up to the answer that this is a Redis for us.
    pub(super) fn new(
        address: Address,
        credentials: &Credentials,
        patience: Duration,
    ) -> Result<Self, RedisError> {
        let mut greeting = RedisConnectionInfo::default().set_db(address.database).set_skip_set_lib_name();
        if let Some(username) = &credentials.username {
            greeting = greeting.set_username(username);
        }
        if let Some(password) = &credentials.password {
            greeting = greeting.set_password(password);
        }
        // Nagle's algorithm, which the client leaves on, would hold a lookup back until the one before it is
        // answered.
        let info = ConnectionAddr::Tcp(address.host.clone(), address.port)
            .into_connection_info()?
            .set_tcp_settings(TcpSettings::default().set_nodelay(true))
            .set_redis_settings(greeting);
        Ok(Self { client: Client::open(info)?, address, patience })
    }

    /// A connection to a master that is new enough.
    pub(super) async fn connect(&self) -> Result<MultiplexedConnection, StoreFault> {
        match timeout(self.patience, self.try_connect()).await {
            Ok(Ok(connection)) => Ok(connection),
            Ok(Err(error)) if error.kind() == ErrorKind::AuthenticationFailed => {
                Err(self.fault("it refuses us: check store.username and store.password_file"))
            }
            Ok(Err(error)) => Err(self.fault(error)),
            Err(_) => Err(self.fault(format_args!("connecting took longer than {:?}", self.patience))),
        }
    }

    async fn try_connect(&self) -> Result<MultiplexedConnection, RedisError> {
        // Time-outs are the callers'; the client's own would only add a second set.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(None)
            .set_response_timeout(None)
            .set_pipeline_buffer_size(QUEUE);
        let mut connection = self.client.get_multiplexed_async_connection_with_config(&config).await?;
        let hello: Value = ::redis::cmd("HELLO").query_async(&mut connection).await?;
        check_server(hello)?;
        Ok(connection)
    }

    pub(super) fn fault(&self, cause: impl fmt::Display) -> StoreFault {
        StoreFault::failed(format_args!("Redis at {}: {cause}", self.address))
    }
}

impl fmt::Debug for Connector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connector").field("address", &self.address.to_string()).finish_non_exhaustive()
    }
}

/// Refuses what HELLO says of itself: a replica answers too, from the past.
fn check_server(hello: Value) -> Result<(), RedisError> {
    let Value::Array(fields) = hello else { return Err(unexpected()) };
    let mut fields = fields.into_iter();
    let (mut role, mut version) = (None, None);
    while let (Some(name), Some(value)) = (fields.next(), fields.next()) {
        match &bytes(name)?[..] {
            b"role" => role = Some(bytes(value)?),
            b"version" => version = String::from_utf8(bytes(value)?).ok(),
            _ => {}
        }
    }
    let refuse = |text: String| Err((ErrorKind::Client, "keygate does not use it", text).into());
    let major = version.as_deref().and_then(|version| version.split('.').next()?.parse::<u32>().ok());
    if role.as_deref() != Some(b"master") {
        refuse("it is a replica; give store.url the address of the master".to_owned())
    } else if major.is_none_or(|major| major < OLDEST) {
        refuse(format!("it is version {}; Redis {OLDEST} is needed", version.unwrap_or_default()))
    } else {
        Ok(())
    }
}

/// The connection and whether it is any use at the moment.
#[derive(Debug)]
pub(super) struct Link {
    connector: Connector,
    control: Handle,
    clock: Clock,
    slot: Mutex<Slot>,
    breaker: Mutex<Breaker>,
}

enum Slot {
    Vacant,
    /// Being made, in a task of its own: a caller that gives up must not take the connection with it.
    Coming(Coming),
    There(Opened),
}

type Coming = watch::Receiver<Option<Result<Opened, StoreFault>>>;

/// What a caller finds that wants a connection.
enum Join {
    Coming(Coming),
    There(Opened),
}

#[derive(Clone)]
struct Opened {
    connection: MultiplexedConnection,
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

/// No lock here is held over anything that can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why a call failed.
enum Failure {
    /// Redis is not there, or not itself.
    Link(StoreFault),
    /// Redis is well and said no.
    Refused(StoreFault),
}

impl Link {
    pub(super) fn new(connector: Connector, control: Handle, clock: Clock) -> Arc<Self> {
        let (slot, breaker) = (Mutex::new(Slot::Vacant), Mutex::default());
        Arc::new(Self { connector, control, clock, slot, breaker })
    }

    /// Has Redis run a script, all in all within `patience`.
    ///
    /// After a fault a script that writes may have been carried out, or may still be.
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
            Err(Failure::Link(fault)) => {
                admission.failed(&fault);
                Err(fault)
            }
        }
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
            // The connection may have been closed long before this call: a new one tells.
            Err(Failure::Link(_)) if call.reads_only() => {
                let mut opened = self.connection().await?;
                self.send(call, &mut opened).await
            }
            outcome => outcome,
        }
    }

    async fn send(&self, call: &Call<'_>, opened: &mut Opened) -> Result<Reply, Failure> {
        match call.send(&mut opened.connection).await {
            Ok(reply) => {
                *lock(&opened.answered) = self.now();
                Ok(reply)
            }
            Err(error) => {
                let fault = self.connector.fault(&error);
                if is_link_trouble(&error) {
                    self.close(opened);
                    Err(Failure::Link(fault))
                } else {
                    Err(Failure::Refused(fault))
                }
            }
        }
    }

    async fn still_answers(&self, opened: &mut Opened) -> bool {
        let answer = ::redis::cmd("PING").query_async::<Value>(&mut opened.connection).await;
        if answer.is_err() {
            self.close(opened);
        }
        answer.is_ok()
    }

    /// The connection, made if need be, together with whoever else waits for it.
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
            Slot::There(opened) => return Join::There(opened.clone()),
            // Unless its task ended without a word, which a panic would do.
            Slot::Coming(coming) if coming.has_changed().is_ok() => return Join::Coming(coming.clone()),
            Slot::Coming(_) | Slot::Vacant => {}
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
        let connection = self.connector.connect().await?;
        Ok(Opened { connection, answered: Arc::new(Mutex::new(self.now())) })
    }

    /// Gives up a connection. Who still waits on it may yet get an answer.
    fn close(&self, closed: &Opened) {
        self.close_if(|opened| opened.is(closed));
    }

    /// Gives up a connection that has answered nobody since. One that has is well: it was only this call that
    /// took long.
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

/// Whether an error says that this connection is of no more use, and not just that one call was refused.
pub(super) fn is_link_trouble(error: &RedisError) -> bool {
    match error.kind() {
        ErrorKind::Io
        | ErrorKind::Parse
        | ErrorKind::AuthenticationFailed
        | ErrorKind::UnexpectedReturnType => true,
        // Still starting, not the master any more, or without a master.
        ErrorKind::Server(kind) => matches!(
            kind,
            ServerErrorKind::BusyLoading | ServerErrorKind::ReadOnly | ServerErrorKind::MasterDown
        ),
        // Held up by somebody's script; asked for a password that was not needed when we connected.
        _ => matches!(error.code(), Some("BUSY" | "NOAUTH")),
    }
}

/// Failures in a row after which Redis is not asked for a while.
const FAILURES: u32 = 3;
/// For how long. Then one caller at a time tries.
const PAUSE: Duration = Duration::from_millis(250);

/// Spares callers the wait for a Redis that does not answer.
#[derive(Debug, Default)]
struct Breaker {
    failures: u32,
    last: Option<(Instant, StoreFault)>,
    probing: bool,
}

impl Breaker {
    /// Whether to ask Redis now, and if so, whether as the one that tries.
    fn admit(&mut self, now: Instant) -> Result<bool, StoreFault> {
        let Some((failed_at, fault)) = &self.last else { return Ok(false) };
        if self.failures < FAILURES {
            return Ok(false);
        }
        if self.probing || now.saturating_duration_since(*failed_at) < PAUSE {
            return Err(fault.clone());
        }
        self.probing = true;
        Ok(true)
    }

    fn fail(&mut self, now: Instant, fault: &StoreFault) {
        self.failures = self.failures.saturating_add(1);
        self.last = Some((now, fault.clone()));
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
        lock(&self.link.breaker).fail(self.link.now(), fault);
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        if self.probes {
            lock(&self.link.breaker).probing = false;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_failures_in_a_row_redis_is_spared_until_one_caller_has_found_it_well() {
        let (mut breaker, start) = (Breaker::default(), Clock::system().now().mono);
        for _ in 0..FAILURES {
            assert_eq!(breaker.admit(start), Ok(false));
            breaker.fail(start, &StoreFault::TimedOut);
        }
        assert_eq!(breaker.admit(start), Err(StoreFault::TimedOut));
        assert_eq!(breaker.admit(start + PAUSE), Ok(true), "one tries");
        assert_eq!(breaker.admit(start + PAUSE), Err(StoreFault::TimedOut), "and nobody else");
        breaker.probing = false;
        breaker.fail(start + PAUSE, &StoreFault::TimedOut);
        assert_eq!(breaker.admit(start + PAUSE), Err(StoreFault::TimedOut), "the pause begins again");
        assert_eq!(breaker.admit(start + 2 * PAUSE), Ok(true));
    }

    #[test]
    fn replicas_and_old_versions_are_refused() {
        let hello = |version: &str, role: &str| {
            let text = |text: &str| Value::BulkString(text.as_bytes().to_vec());
            check_server(Value::Array(vec![
                text("version"),
                text(version),
                text("proto"),
                Value::Int(2),
                text("role"),
                text(role),
            ]))
        };
        assert!(hello("7.0.15", "master").is_ok() && hello("8.1.0", "master").is_ok());
        for (version, role) in [("7.0.15", "replica"), ("6.2.14", "master"), ("?", "master")] {
            assert!(hello(version, role).is_err(), "{version} {role}");
        }
        assert!(check_server(Value::Nil).is_err());
    }
}
