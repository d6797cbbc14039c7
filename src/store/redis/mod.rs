//! The Redis back end: one Redis (or Valkey), for any number of gateways.
//!
//! A lookup is one script, and so is a mutation: all its checks, then all its writes, at one moment and with
//! nothing else in between. Redis 7 or newer, the master only. Everything lies under one hash tag, so that a
//! cluster keeps it in one place; `{kg}:` here, [`Settings::cell`] says otherwise:
//!
//! | key | value |
//! |--|--|
//! | `{kg}:meta` | hash: `incarnation`, `schema`, `event` (number of the last one), `replaces` (what it was accepted for) |
//! | `{kg}:k:<digest in hex>` | organisation id, key id: where the secret with this digest leads |
//! | `{kg}:id:<key id>` | sealed [`KeyRecord`] |
//! | `{kg}:org:<organisation id>` | sealed [`OrgRecord`] |
//! | `{kg}:org:<organisation id>:keys` | sorted set: the ids of its keys |
//! | `{kg}:keys`, `{kg}:orgs` | sorted sets: all ids |
//! | `{kg}:events` | stream: the newest 100,000 events, each `<number>-0` with its `subjects` and a random `mark` |
//!
//! Nothing has an expiry: under a memory limit Redis evicts what has one first, and a key that vanished would
//! be answered with 401. The record stands at its id alone, because a key may have several secrets, or none.
//!
//! **Which store it is.** `meta` names an *incarnation*, drawn when an operator makes the store. This process
//! knows the first it sees, and takes "no such key" from that one only. Any other, or none, is no store until
//! an operator accepts it: a Redis that came back empty is an incident, and not a hundred thousand
//! revocations.
//!
//! **Three ways to Redis**, each with a connection of its own: lookups, commands (mutations and lists),
//! events. None is needed to start. Each is made when it is wanted, and made again when it fails.

mod follower;
mod ledger;
mod link;
mod scripts;

use std::fmt;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ::redis::RedisError;
use thiserror::Error;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;
use zeroize::Zeroizing;

use self::ledger::{Event, Incarnation, Ledger, Mark, Position, RedisTime};
use self::link::{Connector, Credentials, Link};
use self::scripts::{Call, Reply, Scripts};
use super::events::{EventSink, encode};
use super::keeper::{Acceptance, Keeper, LinkState, Status};
use super::{Change, CommitError, Committed, Found, Lookup, Mutation, Store, StoreFault, StoreFuture};
use crate::clock::Clock;
use crate::id::{KeyId, OrgId};
use crate::key::Digest;
use crate::key::record::{KeyRecord, OrgRecord, Sealer, Stored, Versioned};

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub address: Address,
    /// The user of Redis' access control list; `None` for its default user.
    pub username: Option<String>,
    pub password_file: Option<PathBuf>,
    /// What stands in the hash tag: stores of several installations can share one Redis.
    pub cell: Cell,
    /// How long connecting may take. Nobody waits so long; a lookup gives up before.
    pub connect_timeout: Duration,
    /// How long a lookup may take, connecting included.
    pub lookup_timeout: Duration,
    /// How long a mutation, or one page of a list, may take.
    pub command_timeout: Duration,
}

impl Settings {
    /// The defaults, for the Redis at `address`.
    #[must_use]
    pub fn new(address: Address) -> Self {
        Self {
            address,
            username: None,
            password_file: None,
            cell: Cell::default(),
            connect_timeout: Duration::from_secs(1),
            lookup_timeout: Duration::from_millis(100),
            command_timeout: Duration::from_secs(1),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new(Address { host: "127.0.0.1".to_owned(), port: 6379, database: 0 })
    }
}

/// Where Redis is: `redis://host:port/database`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Address {
    host: String,
    port: u16,
    database: i64,
}

impl Address {
    /// # Errors
    /// What to write instead. The text itself is not repeated: it may hold a password.
    pub fn parse(url: &str) -> Result<Self, &'static str> {
        const FORM: &str = "write redis://host:port, as in \"redis://127.0.0.1:6379\"";
        if url.starts_with("rediss://") {
            return Err("TLS to Redis is not built yet; write redis:// and keep the way there private");
        }
        let rest = url.strip_prefix("redis://").ok_or(FORM)?;
        if rest.contains('@') {
            return Err("leave user and password out of it; write `username` and `password_file`");
        }
        let (place, database) = rest.split_once('/').unwrap_or((rest, ""));
        let place: http::uri::Authority = place.parse().map_err(|_| FORM)?;
        let database = match database {
            "" => 0,
            number => number.parse().ok().filter(|number| (0..=65_535).contains(number)).ok_or(FORM)?,
        };
        let port = match place.as_str().strip_prefix(place.host()).ok_or(FORM)? {
            "" => 6379,
            port => port[1..].parse().ok().filter(|port| *port > 0).ok_or(FORM)?,
        };
        let host = place.host().trim_start_matches('[').trim_end_matches(']');
        if host.is_empty() { Err(FORM) } else { Ok(Self { host: host.to_owned(), port, database }) }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { host, port, database } = self;
        if host.contains(':') { write!(f, "[{host}]:{port}") } else { write!(f, "{host}:{port}") }?;
        if *database == 0 { Ok(()) } else { write!(f, "/{database}") }
    }
}

/// A store's name within its Redis.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cell(Box<str>);

impl Cell {
    /// # Errors
    /// Anything but 1 to 32 lower-case letters, digits, `-` and `_`.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'_');
        if (1..=32).contains(&text.len()) && text.bytes().all(allowed) {
            Ok(Self(text.into()))
        } else {
            Err("a cell is 1 to 32 lower-case letters, digits, `-` and `_`, as in \"kg\"")
        }
    }
}

impl Default for Cell {
    fn default() -> Self {
        Self("kg".into())
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Why there is not even anything to connect with. That Redis is down is no reason.
#[derive(Debug, Error)]
pub enum OpenError {
    #[error("cannot read store.password_file {path}: {cause}")]
    Password { path: PathBuf, cause: io::Error },
    #[error("store.password_file {0} can be read by others: chmod 600 {0}")]
    Exposed(PathBuf),
    #[error("store.password_file {0} does not hold a password: write it there as text, on one line")]
    NoPassword(PathBuf),
    #[error("store.url cannot be used: {0}")]
    Url(RedisError),
}

/// The store. Nothing is asked of Redis before somebody asks for something.
pub struct Redis {
    inner: Arc<Inner>,
    follower: Mutex<Option<AbortHandle>>,
}

/// What its tasks share.
struct Inner {
    settings: Settings,
    address: Address,
    names: Names,
    scripts: Scripts,
    sealer: Sealer,
    connector: Connector,
    lookups: Arc<Link>,
    commands: Arc<Link>,
    ledger: Ledger,
    link_state: Mutex<LinkState>,
    control: Handle,
    clock: Clock,
}

impl Redis {
    /// Gets everything ready to connect. Its tasks run on `control`.
    ///
    /// # Errors
    /// [`OpenError`], whose text says what to do.
    pub fn open(settings: Settings, sealer: Sealer, control: Handle) -> Result<Self, OpenError> {
        let password = settings.password_file.as_deref().map(read_password).transpose()?;
        let credentials = Credentials {
            username: settings.username.clone(),
            password: password.map(|text| (*text).clone()),
        };
        let connector = Connector::new(settings.address.clone(), &credentials, settings.connect_timeout)
            .map_err(OpenError::Url)?;
        let clock = Clock::system();
        let link = || Link::new(connector.clone(), control.clone(), clock.clone());
        let inner = Inner {
            address: settings.address.clone(),
            names: Names(format!("{{{}}}:", settings.cell)),
            scripts: Scripts::new(),
            sealer,
            lookups: link(),
            commands: link(),
            ledger: Ledger::default(),
            link_state: Mutex::new(LinkState::Down("not connected yet".into())),
            connector,
            control,
            clock,
            settings,
        };
        Ok(Self { inner: Arc::new(inner), follower: Mutex::default() })
    }
}

fn read_password(path: &Path) -> Result<Zeroizing<String>, OpenError> {
    let failed = |cause| OpenError::Password { path: path.to_owned(), cause };
    if std::fs::metadata(path).map_err(failed)?.permissions().mode() & 0o077 != 0 {
        return Err(OpenError::Exposed(path.to_owned()));
    }
    let bytes = Zeroizing::new(std::fs::read(path).map_err(failed)?);
    match std::str::from_utf8(bytes.trim_ascii_end()) {
        Ok(text) if !text.is_empty() && !text.contains(['\n', '\r']) => Ok(Zeroizing::new(text.to_owned())),
        _ => Err(OpenError::NoPassword(path.to_owned())),
    }
}

impl Store for Redis {
    fn lookup(&self, digest: Digest) -> StoreFuture<'_, Lookup> {
        Box::pin(async move {
            match self.inner.lookup(&digest).await {
                Ok(Some(found)) => Lookup::Found(Arc::new(found)),
                Ok(None) => Lookup::Absent,
                Err(fault) => Lookup::Unavailable(fault),
            }
        })
    }

    fn key(&self, id: KeyId) -> StoreFuture<'_, Result<Option<Versioned<KeyRecord>>, StoreFault>> {
        Box::pin(self.inner.record(self.inner.names.key(id), id.to_bytes()))
    }

    fn org(&self, id: OrgId) -> StoreFuture<'_, Result<Option<Versioned<OrgRecord>>, StoreFault>> {
        Box::pin(self.inner.record(self.inner.names.org(id), id.to_bytes()))
    }

    fn keys(
        &self,
        org: Option<OrgId>,
        after: Option<KeyId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Versioned<KeyRecord>>, StoreFault>> {
        let names = &self.inner.names;
        let index = org.map_or_else(|| names.keys(), |org| names.keys_of(org));
        let listed = self.inner.newest(index, names.with("id:"), after.map(|id| id.to_string()), limit);
        Box::pin(async move {
            let keys: Vec<Versioned<KeyRecord>> = listed.await?;
            if org.is_some_and(|org| keys.iter().any(|key| key.record.org != org)) {
                return Err(self.inner.fault("an organisation is said to own a key of another"));
            }
            Ok(keys)
        })
    }

    fn orgs(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Versioned<OrgRecord>>, StoreFault>> {
        let names = &self.inner.names;
        Box::pin(self.inner.newest(names.orgs(), names.with("org:"), after.map(|id| id.to_string()), limit))
    }

    /// Once it is polled it is carried out to its end, whether or not anybody still waits for the answer.
    fn commit(&self, mutation: Mutation) -> StoreFuture<'_, Result<Committed, CommitError>> {
        Box::pin(async move {
            let inner = Arc::clone(&self.inner);
            let task = self.inner.control.spawn(async move { inner.commit(&mutation).await });
            // Cancelled with its runtime, or panicked, which has said so itself.
            task.await.unwrap_or_else(|_| Err(StoreFault::failed("the mutation was broken off").into()))
        })
    }

    /// Events are followed from the first sink on.
    fn subscribe(&self, sink: Arc<dyn EventSink>) {
        if self.inner.ledger.subscribe(sink) {
            let task = self.inner.control.spawn(follower::run(Arc::clone(&self.inner)));
            *self.follower.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        }
    }

    fn keeper(&self) -> &dyn Keeper {
        self
    }
}

impl Keeper for Redis {
    fn link_state(&self) -> LinkState {
        self.inner.link_state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn status(&self) -> StoreFuture<'_, Status> {
        Box::pin(self.inner.status())
    }

    fn begin(&self) -> StoreFuture<'_, Result<bool, StoreFault>> {
        Box::pin(self.inner.begin())
    }

    fn accept(&self) -> StoreFuture<'_, Result<Acceptance, StoreFault>> {
        Box::pin(self.inner.accept())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        if let Some(follower) = self.follower.lock().unwrap_or_else(PoisonError::into_inner).take() {
            follower.abort();
        }
    }
}

impl fmt::Debug for Redis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redis").field("address", &self.inner.address.to_string()).finish_non_exhaustive()
    }
}

/// The names of everything, behind the hash tag.
struct Names(String);

impl Names {
    fn with(&self, name: impl fmt::Display) -> String {
        format!("{}{name}", self.0)
    }

    fn meta(&self) -> String {
        self.with("meta")
    }

    fn events(&self) -> String {
        self.with("events")
    }

    fn keys(&self) -> String {
        self.with("keys")
    }

    fn orgs(&self) -> String {
        self.with("orgs")
    }

    fn key(&self, id: KeyId) -> String {
        self.with(format_args!("id:{id}"))
    }

    fn org(&self, id: OrgId) -> String {
        self.with(format_args!("org:{id}"))
    }

    fn keys_of(&self, org: OrgId) -> String {
        self.with(format_args!("org:{org}:keys"))
    }

    fn digest(&self, digest: &Digest) -> String {
        let mut name = self.with("k:");
        for byte in digest.as_bytes() {
            name.extend([byte >> 4, byte & 15].map(|n| char::from(b"0123456789abcdef"[usize::from(n)])));
        }
        name
    }
}

/// Events kept in the stream.
const EVENTS_KEPT: u32 = 100_000;
/// Records of a list that are asked for at once; it bounds how long a script holds everybody else up.
const PAGE: usize = 256;
/// Where the list is read from its newest entry.
const NEWEST: &str = "+";

impl Inner {
    fn fault(&self, cause: impl fmt::Display) -> StoreFault {
        self.connector.fault(cause)
    }

    /// The state before, for whoever tells of changes.
    fn set_link_state(&self, state: LinkState) -> LinkState {
        std::mem::replace(&mut *self.link_state.lock().unwrap_or_else(PoisonError::into_inner), state)
    }

    /// Asks over the connection of the commands, and takes the answer only from our own store.
    async fn ask(&self, call: &Call<'_>) -> Result<Reply, StoreFault> {
        let reply = self.commands.run(call, self.settings.command_timeout).await?;
        self.ledger.recognise(&reply.meta, 0).map_err(|stranger| self.fault(stranger))?;
        Ok(reply)
    }

    /// `None` only where our own store, and not one that has fallen behind, has no such digest.
    async fn lookup(&self, digest: &Digest) -> Result<Option<Found>, StoreFault> {
        let last = self.ledger.position().last;
        let call = Call::new(&self.scripts.lookup, [self.names.meta(), self.names.digest(digest)])
            .arg(self.names.with(""));
        let mut reply = self.lookups.run(&call, self.settings.lookup_timeout).await?;
        self.ledger.recognise(&reply.meta, last).map_err(|stranger| self.fault(stranger))?;
        let read = |reply: &mut Reply| reply.bytes().map_err(|error| self.fault(error));
        let Some(owner) = read(&mut reply)? else { return Ok(None) };
        let (key, org) = (read(&mut reply)?, read(&mut reply)?);
        let (org_id, key_id) = self.parse_owner(&owner)?;
        let key: KeyRecord = self.promised(&key_id.to_bytes(), key)?.record;
        let org: OrgRecord = self.promised(&org_id.to_bytes(), org)?.record;
        if key.org != org.id || !key.secrets.iter().any(|secret| secret.digest == *digest) {
            return Err(self.fault("a digest leads to a key that does not have it"));
        }
        Ok(Some(Found { key, org }))
    }

    fn parse_owner(&self, owner: &[u8]) -> Result<(OrgId, KeyId), StoreFault> {
        let parts = owner.split_at_checked(OrgId::LEN).and_then(|(org, key)| {
            let (org, key) = (std::str::from_utf8(org).ok()?, std::str::from_utf8(key).ok()?);
            Some((OrgId::parse(org).ok()?, KeyId::parse(key).ok()?))
        });
        parts.ok_or_else(|| self.fault("a digest leads to nothing that keygate has written"))
    }

    async fn record<T: Stored>(
        &self,
        name: String,
        place: [u8; 16],
    ) -> Result<Option<Versioned<T>>, StoreFault> {
        let mut reply = self.ask(&Call::new(&self.scripts.read, [self.names.meta(), name])).await?;
        let bytes = reply.bytes().map_err(|error| self.fault(error))?;
        bytes.map(|bytes| self.unseal(&place, &bytes)).transpose()
    }

    fn unseal<T: Stored>(&self, place: &[u8; 16], bytes: &[u8]) -> Result<Versioned<T>, StoreFault> {
        self.sealer.open_at(place, bytes).map_err(|bad| self.fault(bad))
    }

    /// A record that something else names.
    fn promised<T: Stored>(
        &self,
        place: &[u8; 16],
        bytes: Option<Vec<u8>>,
    ) -> Result<Versioned<T>, StoreFault> {
        let bytes = bytes.ok_or_else(|| self.fault("a record that another one names is missing"))?;
        self.unseal(place, &bytes)
    }

    /// The newest records of an index, page by page.
    async fn newest<T: Listed>(
        &self,
        index: String,
        records: String,
        mut after: Option<String>,
        limit: usize,
    ) -> Result<Vec<Versioned<T>>, StoreFault> {
        let mut listed = Vec::new();
        while listed.len() < limit {
            let count = PAGE.min(limit - listed.len());
            let from = after.map_or_else(|| NEWEST.to_owned(), |id| format!("({id}"));
            let call = Call::new(&self.scripts.list, [self.names.meta(), index.clone()])
                .arg(&*records)
                .arg(from)
                .arg(count.to_string());
            let mut reply = self.ask(&call).await?;
            let before = listed.len();
            after = None;
            while !reply.is_empty() {
                let id = reply.text().map_err(|error| self.fault(error))?.unwrap_or_default();
                let bytes = reply.bytes().map_err(|error| self.fault(error))?;
                let place = T::place_of(&id).ok_or_else(|| self.fault("a list names what is no record"))?;
                listed.push(self.promised(&place, bytes)?);
                after = Some(id);
            }
            if listed.len() - before < count {
                break;
            }
        }
        Ok(listed)
    }

    async fn commit(&self, mutation: &Mutation) -> Result<Committed, CommitError> {
        let position = self.ledger.position();
        let (org_before, key_before) = self.before(mutation).await?;
        let org = mutation.org.as_ref().map(|change| self.draft(change, org_before)).transpose()?;
        let key = mutation.key.as_ref().map(|change| self.draft_key(change, key_before)).transpose()?;
        let mark = Mark::draw().map_err(|error| self.fault(error))?;
        let call = self.mutate(&position, org.as_ref(), key.as_ref(), mutation, &mark);
        let mut reply = self.commands.run(&call, self.settings.command_timeout).await?;
        let store =
            self.ledger.recognise(&reply.meta, position.last).map_err(|stranger| self.fault(stranger))?;
        let status = reply.text().map_err(|error| self.fault(error))?;
        match status.as_deref() {
            Some("done") => {}
            Some("exists") => return Err(CommitError::Exists),
            Some("missing") => return Err(CommitError::Missing),
            Some("conflict") => return Err(CommitError::Conflict),
            _ => return Err(self.fault("the store changed under the mutation: try again").into()),
        }
        let event = reply.text().map_err(|error| self.fault(error))?;
        let Some(event) = event else { return Ok(Committed { event: None }) };
        let seq = event.parse().map_err(|_| self.fault("the number of the event does not read"))?;
        let subjects = mutation.subjects.clone();
        let written = reply.text().map_err(|error| self.fault(error))?.and_then(|at| RedisTime::parse(&at));
        self.ledger.apply_own(&store, Event { seq, mark, subjects, written }).await;
        Ok(Committed { event: Some(seq) })
    }

    /// The records that are to change, as they are. What happens to them between this and the script, the
    /// script finds out.
    async fn before(&self, mutation: &Mutation) -> Result<(Option<Vec<u8>>, Option<Vec<u8>>), StoreFault> {
        let org = mutation.org.as_ref().and_then(updated).map(|org| self.names.org(org.id));
        let key = mutation.key.as_ref().and_then(updated).map(|key| self.names.key(key.id));
        if org.is_none() && key.is_none() {
            return Ok((None, None));
        }
        let wanted = (org.is_some(), key.is_some());
        let names = [Some(self.names.meta()), org, key].into_iter().flatten();
        let mut reply = self.ask(&Call::new(&self.scripts.read, names)).await?;
        let mut next = |wanted: bool| if wanted { reply.bytes() } else { Ok(None) };
        let org = next(wanted.0).map_err(|error| self.fault(error))?;
        let key = next(wanted.1).map_err(|error| self.fault(error))?;
        Ok((org, key))
    }

    fn draft<T: Listed>(&self, change: &Change<T>, before: Option<Vec<u8>>) -> Result<Draft<T>, CommitError> {
        let (record, rev, expected, before) = match change {
            Change::Insert(record) => (record, 1, ABSENT.to_vec(), None),
            Change::Update { rev, record } => {
                let stored = self.unseal::<T>(&record.place(), &before.ok_or(CommitError::Missing)?)?;
                if stored.rev != *rev {
                    return Err(CommitError::Conflict);
                }
                let next = rev.checked_add(1).ok_or_else(|| self.fault("the record has no next number"))?;
                (record, next, rev.to_be_bytes().to_vec(), Some(stored.record))
            }
        };
        let sealed = self.sealer.seal(rev, record).map_err(|bad| self.fault(bad))?;
        Ok(Draft { id: record.id(), expected, sealed, before })
    }

    fn draft_key(
        &self,
        change: &Change<KeyRecord>,
        before: Option<Vec<u8>>,
    ) -> Result<KeyDraft, CommitError> {
        let draft = self.draft(change, before)?;
        let (Change::Insert(record) | Change::Update { record, .. }) = change;
        let moved = |before: &KeyRecord| before.org != record.org || before.environment != record.environment;
        if draft.before.as_ref().is_some_and(moved) {
            return Err(CommitError::Missing);
        }
        let digests: Vec<Digest> = record.secrets.iter().map(|secret| secret.digest).collect();
        let before = draft.before.iter().flat_map(|before| &before.secrets).map(|secret| secret.digest);
        let dropped = before.filter(|digest| !digests.contains(digest)).collect();
        Ok(KeyDraft { org: record.org, key: record.id, digests, dropped, draft })
    }

    /// Everything in the order that `mutate.lua` says.
    fn mutate(
        &self,
        position: &Position,
        org: Option<&Draft<OrgRecord>>,
        key: Option<&KeyDraft>,
        mutation: &Mutation,
        mark: &Mark,
    ) -> Call<'_> {
        let names = &self.names;
        let script = if mutation.subjects.is_empty() { &self.scripts.mutate } else { &self.scripts.revoke };
        let mut keys = vec![names.meta(), names.events(), names.keys(), names.orgs()];
        keys.push(org.map_or_else(|| names.meta(), |org| names.with(format_args!("org:{}", org.id))));
        keys.push(key.map_or_else(|| names.meta(), |key| names.key(key.key)));
        keys.push(key.map_or_else(|| names.meta(), |key| names.org(key.org)));
        keys.push(key.map_or_else(|| names.meta(), |key| names.keys_of(key.org)));
        for digest in key.iter().flat_map(|key| key.digests.iter().chain(&key.dropped)) {
            keys.push(names.digest(digest));
        }
        let known = position.known.as_ref().map_or("", Incarnation::as_str);
        let call = Call::new(script, keys)
            .arg(known)
            .arg(position.last.to_string())
            .arg(position.mark.as_ref().map_or("", Mark::as_str));
        let call = match org {
            Some(org) => call.arg(&*org.expected).arg(&*org.sealed).arg(&*org.id),
            None => call.arg(UNCONCERNED).arg("").arg(""),
        };
        let call = match key {
            Some(KeyDraft { draft, org, key, digests, .. }) => call
                .arg(&*draft.expected)
                .arg(&*draft.sealed)
                .arg(&*draft.id)
                .arg(format!("{org}{key}"))
                .arg(digests.len().to_string()),
            None => call.arg(UNCONCERNED).arg("").arg("").arg("").arg("0"),
        };
        call.arg(encode(&mutation.subjects)).arg(mark.as_str()).arg(EVENTS_KEPT.to_string())
    }

    async fn status(&self) -> Status {
        let position = self.ledger.position();
        let known = position.known.as_ref().map(ToString::to_string);
        let place = format!("Redis at {}, cell {}", self.address, self.settings.cell);
        let call = Call::new(&self.scripts.watch, [self.names.meta(), self.names.events()])
            .arg(position.last.to_string());
        match self.commands.run(&call, self.settings.command_timeout).await {
            Err(fault) => {
                Status { place, trouble: Some(fault.to_string()), found: None, known, events: None }
            }
            Ok(reply) => {
                let judged = self.ledger.recognise(&reply.meta, position.last);
                let trouble = judged.err().map(|stranger| stranger.to_string());
                let (found, events) = (reply.meta.incarnation, reply.meta.event);
                Status { place, trouble, found, known, events }
            }
        }
    }

    /// Makes the store where there is nothing and nothing was known.
    async fn begin(&self) -> Result<bool, StoreFault> {
        if self.ledger.position().known.is_none() {
            let names = &self.names;
            let fresh = Incarnation::draw().map_err(|error| self.fault(error))?;
            let places = [names.meta(), names.events(), names.keys(), names.orgs()];
            let call = Call::new(&self.scripts.begin, places).arg(fresh.as_str());
            let mut reply = self.commands.run(&call, self.settings.command_timeout).await?;
            if reply.text().map_err(|error| self.fault(error))?.as_deref() == Some("begun") {
                self.ledger.recognise(&reply.meta, 0).map_err(|stranger| self.fault(stranger))?;
                return Ok(true);
            }
        }
        Ok(false)
    }

    async fn accept(&self) -> Result<Acceptance, StoreFault> {
        let known = self.ledger.position().known;
        let fresh = Incarnation::draw().map_err(|error| self.fault(error))?;
        let call = Call::new(&self.scripts.accept, [self.names.meta(), self.names.events()])
            .arg(known.as_ref().map_or("", Incarnation::as_str))
            .arg(fresh.as_str());
        let mut reply = self.commands.run(&call, self.settings.command_timeout).await?;
        let status = reply.text().map_err(|error| self.fault(error))?;
        let found = reply.meta.incarnation.clone().unwrap_or_default();
        if status.as_deref() != Some("refused") {
            self.ledger.adopt(&found, reply.meta.event.unwrap_or_default());
        }
        self.ledger.recognise(&reply.meta, 0).map_err(|stranger| self.fault(stranger))?;
        Ok(Acceptance { store: found, changed: status.as_deref() != Some("kept") })
    }
}

/// What the script takes for "not there" and for "not concerned"; anything else is the eight bytes of a
/// revision.
const ABSENT: &[u8] = b"+";
const UNCONCERNED: &[u8] = b"-";

/// A change that passed what could be checked here, ready for the script.
struct Draft<T> {
    id: String,
    expected: Vec<u8>,
    sealed: Vec<u8>,
    before: Option<T>,
}

/// The same for a key, with what follows for its digests.
struct KeyDraft {
    draft: Draft<KeyRecord>,
    org: OrgId,
    key: KeyId,
    digests: Vec<Digest>,
    /// Digests of the key that open it no longer.
    dropped: Vec<Digest>,
}

const fn updated<T>(change: &Change<T>) -> Option<&T> {
    match change {
        Change::Insert(_) => None,
        Change::Update { record, .. } => Some(record),
    }
}

/// A record that lists name by its id.
trait Listed: Stored {
    fn id(&self) -> String;
    fn place_of(id: &str) -> Option<[u8; 16]>;
}

impl Listed for KeyRecord {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn place_of(id: &str) -> Option<[u8; 16]> {
        KeyId::parse(id).ok().map(KeyId::to_bytes)
    }
}

impl Listed for OrgRecord {
    fn id(&self) -> String {
        self.id.to_string()
    }

    fn place_of(id: &str) -> Option<[u8; 16]> {
        OrgId::parse(id).ok().map(OrgId::to_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_shown_without_secrets() {
        for (url, shown) in [
            ("redis://127.0.0.1:6379", "127.0.0.1:6379"),
            ("redis://redis.internal", "redis.internal:6379"),
            ("redis://[::1]:7000/", "[::1]:7000"),
            ("redis://a:1/3", "a:1/3"),
        ] {
            assert_eq!(Address::parse(url).map(|address| address.to_string()).as_deref(), Ok(shown));
        }
        for wrong in [
            "redis://",
            "redis://:6379",
            "redis://a:",
            "redis://a:0",
            "redis://a:99999",
            "redis://a/x",
            "redis://a/-1",
            "redis://a b",
            "http://a",
            "a:6379",
            "unix:///run/redis.sock",
            "redis://:hunter2@a",
            "redis://user:hunter2@a:6379",
            "rediss://a",
        ] {
            let refusal = Address::parse(wrong).unwrap_err();
            assert!(!refusal.contains("hunter2"), "{wrong}");
        }
    }

    #[test]
    fn everything_has_one_hash_tag() {
        let names = Names("{kg}:".to_owned());
        assert_eq!(names.meta(), "{kg}:meta");
        assert_eq!(OrgId::LEN, 30, "where lookup.lua cuts a pointer in two");
        let digest = Digest::from_bytes([0xa5; 32]);
        assert_eq!(names.digest(&digest), format!("{{kg}}:k:{}", "a5".repeat(32)));
        assert!(Cell::parse("eu-1").is_ok());
        for wrong in ["", "a}", "{", "A", "a b", &"x".repeat(33)] {
            assert!(Cell::parse(wrong).is_err(), "{wrong}");
        }
    }
}
