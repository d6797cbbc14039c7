//! The Redis back end: one Redis (or Valkey), for any number of gateways.
//!
//! A lookup is one script, and so is a mutation: all its checks, then all its writes, with nothing in between. Needs
//! Redis 7 or newer, and uses the master only. All names have one hash tag, so that a cluster keeps them on one node;
//! it is `{kg}` by default ([`Settings::cell`]):
//!
//! | key | value |
//! |--|--|
//! | `{kg}:meta` | hash: `incarnation`, `schema`, `event` (number of the last one), `format` (of [records](crate::vocabulary::key::record), which joining takes), `replaces` (what it was accepted for), `prefixes` (their [list](crate::vocabulary::key::Prefixes)), `removing` (the prefix whose keys are counted), `peppers` (which [pepper](crate::vocabulary::key::pepper) belongs to the store), `older` (until when an operator has accepted older records, with its [proof](crate::vocabulary::key::proof)) |
//! | `{kg}:gateways` | set: the names of gateways that hold a lease, or held one a while ago |
//! | `{kg}:gateway:<name>` | a lease: the number of the last event that holds there; expires |
//! | `{kg}:gateway:<name>:format` | the highest format of records that this gateway can keep; expires with the lease |
//! | `{kg}:gateway:<name>:prefixes` | the list of prefixes that all workers of this gateway use; empty before; expires with the lease |
//! | `{kg}:gateway:<name>:peppers` | the check values of the peppers that this gateway has; expires with the lease |
//! | `{kg}:gateways:serving` | set: the names of gateways that may let keys in, with a lease or after it has lapsed |
//! | `{kg}:gateway:<name>:serves` | the number of the last event that holds at this gateway, and for how many milliseconds it may let keys in although it hears nothing more; expires then |
//! | `{kg}:k:<digest in hex>` | organisation id, key id: where the secret with this digest leads |
//! | `{kg}:id:<key id>` | sealed [`KeyRecord`] |
//! | `{kg}:org:<organisation id>` | sealed [`OrgRecord`] |
//! | `{kg}:org:<organisation id>:keys` | sorted set: the ids of its keys |
//! | `{kg}:org:<organisation id>:keys:live`, `…:keys:test` | the same for each environment |
//! | `{kg}:org:<organisation id>:live`, `…:made:<key id>` | sorted set: the ids of its keys that are not revoked, by their ends; those that one key has made |
//! | `{kg}:keys`, `{kg}:orgs` | sorted sets: all ids |
//! | `{kg}:email:<index in hex>` | the organisation that took the address |
//! | `{kg}:audit:<trail>` | stream: the entries of an audit trail, each `<number>-0` with its `mac` and its `text` |
//! | `{kg}:audit:<trail>:ends` | its checkpoint and its head, each a number (8 bytes big-endian) and a MAC (32) |
//! | `{kg}:idem:<index in hex>` | a kept answer: when it ends (8 bytes), then sealed; expires |
//! | `{kg}:used` | hash: by key id, the text of its [`Usage`](crate::vocabulary::key::usage::Usage) |
//! | `{kg}:gone:key:<3 hex digits>`, `{kg}:gone:secret:<3 hex digits>` | [stones](crate::vocabulary::key::gone) of keys that are gone, one after the other: the id, the key that made it and half of a proof; the digest of a secret and half of a proof |
//! | `{kg}:gone:today` | until when the day lasts in which keys went, and how many may still go; expires |
//! | `{kg}:news`, `{kg}:news:due` | hash: what the upstream is to be told, by organisation; sorted set: when |
//! | `{kg}:news:proofs` | hash: by organisation, the revision of its record (8 bytes) and the [proof](crate::vocabulary::key::proof) of its news |
//! | `{kg}:news:held` | sorted set: the organisations whose news have no proof; they are told when an operator accepts them |
//! | `{kg}:quota:<name>` | when its window ends, and how many there were; expires |
//! | `{kg}:events` | stream: the newest 100,000 events, each `<number>-0` with its `subjects`, a random `mark` and a proof of both |
//!
//! No data that decides whether a key is valid has an expiry: under a memory limit Redis evicts such entries first,
//! and a key that vanished would be answered with 401. Kept answers and quotas have an expiry: without the answer a
//! repeated request is carried out again, without the count somebody gets one more try. A record is stored once,
//! under its id, because a key may have several secrets, or none.
//!
//! **The identity of the store.** `meta` names an *incarnation*, drawn when an operator makes the store. This process
//! remembers the first one that it sees, and believes "no such key" only from that one. Any other, or none, is no
//! store until an operator accepts it: a Redis that came back empty is an incident, and not a hundred thousand
//! revocations.
//!
//! **Three links to Redis**, each with its own connection: lookups, commands (mutations and lists), events. None is
//! needed to start. Each connection is made when it is needed, and made anew when it fails.

mod answers;
mod breaker;
mod cluster;
mod connect;
mod fill;
mod follower;
mod graves;
mod index;
mod inspect;
mod keeper;
mod ledger;
mod link;
mod login;
mod memory;
mod memory_file;
mod mutation;
mod names;
mod naming;
mod outbox;
mod peppers;
mod prefixes;
mod propagation;
mod quotas;
mod reads;
mod recounts;
mod remembered;
mod reseal;
mod scripts;
mod sentinel;
mod settings;
mod split;
mod tenure;
mod topology;
mod trails;
mod usage;
mod whole;

pub use self::fill::Filling;
pub use self::remembered::HELD_BYTES;
pub use self::settings::{
    Address, Cell, InvalidPlace, Node, OpenError, Place, Sentinels, Settings, TlsFiles,
};

use std::fmt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use self::cluster::Cluster;
use self::connect::{Dialler, Tls};
use self::ledger::{Incarnation, Ledger};
use self::link::Link;
use self::login::Login;
use self::memory::Memory;
use self::memory_file::MemoryFile;
use self::names::Names;
use self::propagation::Unresponsive;
use self::recounts::Recounts;
use self::scripts::{Call, Reply, Script, Scripts};
use self::sentinel::Sentinel;
use self::settings::read_password;
use self::tenure::Tenure;
use self::topology::{Connector, Topology};
use super::answers::Answers;
use super::events::{EventSink, Seq};
use super::finding::Finding;
use super::keeper::{Keeper, LinkState};
use super::outbox::Outbox;
use super::quotas::Quotas;
use super::trails::Trails;
use super::unreadable::Listed;
use super::usage::Usage;
use super::{
    Awaited, CommitError, Committed, Found, KeysOf, Lookup, Mutation, Propagation, Role, Store, StoreFault,
    StoreFuture,
};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::record::{KeyRecord, OrgRecord, Sealer, Versioned};
use crate::vocabulary::key::{Digest, Prefixes};

/// The store. It makes no call to Redis before it is used.
pub struct Redis {
    inner: Arc<Inner>,
    follower: Mutex<Option<AbortHandle>>,
}

/// The state that its tasks share.
struct Inner {
    settings: Settings,
    names: Names,
    scripts: Scripts,
    sealer: Sealer,
    connector: Arc<Connector>,
    lookups: Arc<Link>,
    commands: Arc<Link>,
    ledger: Ledger,
    link_state: Mutex<LinkState>,
    lease: Mutex<Option<Renewal>>,
    /// For how many milliseconds this gateway may let keys in when its lease has lapsed.
    serves_without_lease: AtomicU64,
    unresponsive: Unresponsive,
    /// Whether the lease was given up. The lock is held over every renewal, so that a late one cannot bring the lease
    /// back.
    left: tokio::sync::Mutex<bool>,
    tenure: Tenure,
    /// The prefixes of the store's keys, as they were last read.
    prefixes: watch::Sender<Option<Prefixes>>,
    /// The list that the lease is to announce, and the one that it announces.
    announcing: Mutex<String>,
    announced: watch::Sender<String>,
    /// The name of this process among the gateways.
    gateway: Box<str>,
    /// The number of replicas of the master.
    replicas: AtomicUsize,
    recounts: Recounts,
    memory: Arc<Memory>,
    memory_file: Option<MemoryFile>,
    /// Whether the log was told that the store has outgrown this gateway.
    is_outdated: AtomicBool,
    /// Whether the event link is down, and the line that says so was withheld.
    is_link_untold: AtomicBool,
    /// Whether a record of a store that says nothing of its pepper has opened.
    has_opened: AtomicBool,
    /// Whether the user may list records, as far as is known: one of them shows which pepper an older store has.
    may_look: AtomicBool,
    /// Whether the user may write down what the store says of its pepper, as far as is known.
    may_write_peppers: AtomicBool,
    /// Heartbeats in a row that found an older word about the pepper than the known one.
    older_words: AtomicUsize,
    /// The gateway of which the log was told that a new pepper waits for it.
    waits_for: Mutex<String>,
    control: Handle,
    clock: Clock,
}

/// The last time that this gateway's lease was renewed.
#[derive(Clone, Copy)]
struct Renewal {
    asked: Instant,
    /// The number of leases then, and of gateways whose lease had lapsed while they could let keys in.
    leases: usize,
    lapsed: usize,
}

impl Redis {
    /// Prepares the connections, and makes none. Its tasks run on `control`.
    ///
    /// # Errors
    /// [`OpenError`], whose text says what to do.
    pub fn open(settings: Settings, sealer: Sealer, control: Handle) -> Result<Self, OpenError> {
        Self::open_at(settings, sealer, control, Clock::system())
    }

    /// As [`Redis::open`], by this clock, which follows that of Redis.
    ///
    /// # Errors
    /// As [`Redis::open`].
    pub fn open_at(
        settings: Settings,
        sealer: Sealer,
        control: Handle,
        clock: Clock,
    ) -> Result<Self, OpenError> {
        let names = Names::new(&settings.cell);
        let connector = Arc::new(connector(&settings, &names)?);
        let link = |name| Link::new(name, Arc::clone(&connector), control.clone(), clock.clone());
        let inner = Inner {
            names,
            scripts: Scripts::new(),
            ledger: Ledger::new(sealer.keeps(), clock.clone()),
            sealer,
            lookups: link("lookups"),
            commands: link("commands"),
            link_state: Mutex::new(LinkState::Down("not connected yet".into())),
            lease: Mutex::default(),
            serves_without_lease: AtomicU64::default(),
            unresponsive: Unresponsive::default(),
            left: tokio::sync::Mutex::default(),
            tenure: Tenure::begin(clock.mono()),
            prefixes: watch::Sender::default(),
            announcing: Mutex::default(),
            announced: watch::Sender::default(),
            gateway: format!("{:016x}", fastrand::u64(..)).into(),
            replicas: AtomicUsize::new(0),
            recounts: Recounts::default(),
            memory: Arc::default(),
            memory_file: settings
                .memory_file
                .clone()
                .map(|path| MemoryFile::new(path, format!("{}, cell {}", settings.place, settings.cell))),
            is_outdated: AtomicBool::new(false),
            is_link_untold: AtomicBool::new(false),
            has_opened: AtomicBool::new(false),
            may_look: AtomicBool::new(true),
            may_write_peppers: AtomicBool::new(true),
            older_words: AtomicUsize::new(0),
            waits_for: Mutex::default(),
            connector,
            control,
            clock,
            settings,
        };
        Ok(Self { inner: Arc::new(inner), follower: Mutex::default() })
    }

    /// Checks whether this Redis is fit to keep keys, and whether its user has the rights that a gateway of this role
    /// needs. Changes nothing.
    pub async fn inspect(&self, role: Role) -> Vec<Finding> {
        inspect::inspect(&self.inner, role).await
    }
}

/// Reads the files that the settings name, and connects to nothing. Gives all mistakes; their texts say what to do.
#[must_use]
pub fn check_files(settings: &Settings) -> Vec<OpenError> {
    let tls = settings.tls.as_ref().and_then(|files| Tls::load(files).err());
    let wrong = |keys: [&'static str; 2], file: &Option<PathBuf>| {
        file.as_deref().and_then(|file| read_password(keys[1], file).err())
    };
    let ours = wrong(OURS, &settings.password_file);
    let theirs = match &settings.place {
        Place::Sentinel(sentinels) => wrong(OF_SENTINELS, &sentinels.password_file),
        Place::Fixed(_) | Place::Cluster(_) => None,
    };
    [tls, ours, theirs].into_iter().flatten().collect()
}

fn connector(settings: &Settings, names: &Names) -> Result<Connector, OpenError> {
    let tls = settings.tls.as_ref().map(Tls::load).transpose()?;
    // Sentinels and the nodes of a cluster are asked for a quarter of the time.
    let patience = settings.connect_timeout / 4;
    let ours = Login::open(settings.username.as_deref(), settings.password_file.clone(), OURS)?;
    let (topology, database) = match &settings.place {
        Place::Fixed(address) if address.encrypted && tls.is_none() => return Err(OpenError::NoAuthority),
        Place::Fixed(address) => (Topology::Fixed(address.node.clone()), address.database),
        Place::Sentinel(sentinels) => {
            let password_file = sentinels.password_file.clone();
            let theirs = Login::open(sentinels.username.as_deref(), password_file, OF_SENTINELS)?;
            let dialler = Dialler::new(theirs, 0, tls.clone(), patience);
            (Topology::Sentinel(Sentinel::new(&sentinels.nodes, &sentinels.master, dialler)), 0)
        }
        Place::Cluster(seeds) => {
            (Topology::Cluster(Cluster::new(seeds, settings.cell.as_str(), names.with(""))), 0)
        }
    };
    let dialler = Dialler::new(ours, database, tls, patience);
    Ok(Connector::new(settings.place.clone(), topology, dialler, settings.connect_timeout))
}

/// The configuration keys for a user's name and password.
const OURS: [&str; 2] = ["store.username", "store.password_file"];
const OF_SENTINELS: [&str; 2] = ["store.sentinel_username", "store.sentinel_password_file"];

impl Store for Redis {
    fn lookup(&self, digest: Digest) -> StoreFuture<'_, Lookup> {
        Box::pin(async move { answer(self.inner.lookup(digest).await) })
    }

    fn lookup_secret(&self, fingerprint: Digest) -> StoreFuture<'_, Lookup> {
        Box::pin(async move { answer(self.inner.lookup_secret(&fingerprint).await) })
    }

    fn spared(&self) -> Option<StoreFault> {
        self.inner.lookups.turns_away()
    }

    fn key(&self, id: KeyId) -> StoreFuture<'_, Result<Option<Versioned<KeyRecord>>, StoreFault>> {
        Box::pin(self.inner.record(self.inner.names.key(id), id.to_bytes()))
    }

    fn org(&self, id: OrgId) -> StoreFuture<'_, Result<Option<Versioned<OrgRecord>>, StoreFault>> {
        Box::pin(self.inner.record(self.inner.names.org(id), id.to_bytes()))
    }

    fn list_keys(
        &self,
        of: KeysOf,
        after: Option<KeyId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Listed<KeyRecord>>, StoreFault>> {
        Box::pin(self.inner.keys(of, after, limit))
    }

    fn list_orgs(
        &self,
        after: Option<OrgId>,
        limit: usize,
    ) -> StoreFuture<'_, Result<Vec<Listed<OrgRecord>>, StoreFault>> {
        let names = &self.inner.names;
        Box::pin(self.inner.newest(names.orgs(), names.with("org:"), after.map(|id| id.to_string()), limit))
    }

    /// Once polled, it is carried out to its end, even if the caller goes away.
    fn commit(&self, mutation: Mutation) -> StoreFuture<'_, Result<Committed, CommitError>> {
        Box::pin(async move {
            let inner = Arc::clone(&self.inner);
            let task = self.inner.control.spawn(async move { inner.commit(&mutation).await });
            // The runtime has ended, or the task panicked, which has its own message.
            task.await.unwrap_or_else(|_| Err(StoreFault::failed("the mutation was broken off").into()))
        })
    }

    fn propagation(
        &self,
        event: Seq,
        within: Duration,
        awaited: Awaited,
    ) -> StoreFuture<'_, Result<Propagation, StoreFault>> {
        Box::pin(self.inner.propagation(event, within, awaited))
    }

    /// In batches. Each script inserts its keys one by one, so that after a fault each key is there whole or not at
    /// all.
    fn import(
        &self,
        keys: Vec<KeyRecord>,
    ) -> StoreFuture<'_, Result<Vec<Result<(), CommitError>>, StoreFault>> {
        Box::pin(self.inner.import(keys))
    }

    /// Events are followed from the first sink on.
    fn subscribe(&self, sink: Arc<dyn EventSink>) {
        if self.inner.ledger.subscribe(sink) {
            self.inner.read_memory();
            self.inner.ledger.subscribe(Arc::clone(&self.inner.memory) as Arc<dyn EventSink>);
            let task = self.inner.control.spawn(follower::run(Arc::clone(&self.inner)));
            *self.follower.lock().unwrap_or_else(PoisonError::into_inner) = Some(task.abort_handle());
        }
    }

    fn keeper(&self) -> &dyn Keeper {
        self
    }

    fn trails(&self) -> &dyn Trails {
        self
    }

    fn answers(&self) -> &dyn Answers {
        self
    }

    fn usage(&self) -> &dyn Usage {
        self
    }

    fn outbox(&self) -> &dyn Outbox {
        self
    }

    fn quotas(&self) -> &dyn Quotas {
        self
    }
}

fn answer(found: Result<Option<Found>, StoreFault>) -> Lookup {
    match found {
        Ok(Some(found)) => Lookup::Found(Arc::new(found)),
        Ok(None) => Lookup::Absent,
        Err(fault) => Lookup::Unavailable(fault),
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
        f.debug_struct("Redis").field("place", &self.inner.connector.whereabouts()).finish_non_exhaustive()
    }
}

impl Inner {
    fn fault(&self, cause: impl fmt::Display) -> StoreFault {
        self.connector.fault(cause)
    }

    fn link_state(&self) -> LinkState {
        self.link_state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the state before.
    fn set_link_state(&self, state: LinkState) -> LinkState {
        std::mem::replace(&mut *self.link_state.lock().unwrap_or_else(PoisonError::into_inner), state)
    }

    fn note_lease(&self, renewal: Option<Renewal>) {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = renewal;
    }

    /// Calls a script over the link of the commands, and accepts the answer only from our own store.
    async fn ask(&self, call: &Call<'_>) -> Result<Reply, StoreFault> {
        let reply = self.commands.run(call, self.settings.command_timeout).await?;
        self.ledger.recognise(&reply.meta, 0).map_err(|stranger| self.fault(stranger))?;
        Ok(reply)
    }

    /// The call of a script that writes, with the arguments by which it checks its store.
    fn writing<'s>(&self, script: &'s Script, places: impl IntoIterator<Item = String>) -> Call<'s> {
        let known = self.ledger.position().known;
        let call = Call::new(script, std::iter::once(self.names.meta()).chain(places));
        call.arg(self.credentials(known.as_ref()))
    }

    /// The first argument of a script that writes, for `ours.lua`: the known store, the format of records that this process
    /// can keep, and what it knows of the store's pepper.
    fn credentials(&self, known: Option<&Incarnation>) -> String {
        let (known, row) = (known.map_or("", Incarnation::as_str), self.sealer.peppers().row_name());
        format!("{known} {} {row}", self.sealer.keeps())
    }

    /// Calls a script that writes, and returns the rest of its answer.
    async fn write(&self, call: &Call<'_>) -> Result<Reply, StoreFault> {
        let mut reply = self.ask(call).await?;
        let status = reply.text().map_err(|error| self.fault(error))?;
        self.check_age(status.as_deref(), &mut reply)?;
        match status.as_deref() {
            Some("done") => Ok(reply),
            Some("peppers") => {
                self.learn(reply.text().map_err(|error| self.fault(error))?.as_deref())?;
                Err(self.changed())
            }
            Some("another") => Err(self.fault("another audit trail stands there already")),
            Some("gap") => {
                let number = reply.text().map_err(|error| self.fault(error))?.unwrap_or_default();
                Err(self.fault(format_args!("entry {number} does not follow what is there")))
            }
            _ => Err(self.changed()),
        }
    }

    fn changed(&self) -> StoreFault {
        self.fault("the store changed under the call: try again")
    }
}
