//! The Redis back end: one Redis (or Valkey), for any number of gateways.
//!
//! A lookup is one script, and so is a mutation: all its checks, then all its writes, at one moment and with
//! nothing else in between. Redis 7 or newer, the master only. Everything lies under one hash tag, so that a
//! cluster keeps it in one place; `{kg}:` here, [`Settings::cell`] says otherwise:
//!
//! | key | value |
//! |--|--|
//! | `{kg}:meta` | hash: `incarnation`, `schema`, `event` (number of the last one), `format` (of [records](crate::vocabulary::key::record), which joining takes), `replaces` (what it was accepted for) |
//! | `{kg}:gateways` | set: the names of gateways that hold a lease, or held one a while ago |
//! | `{kg}:gateway:<name>` | a lease: the number of the last event that holds there; expires |
//! | `{kg}:gateway:<name>:format` | the highest format of records that this gateway can keep; expires with the lease |
//! | `{kg}:k:<digest in hex>` | organisation id, key id: where the secret with this digest leads |
//! | `{kg}:id:<key id>` | sealed [`KeyRecord`] |
//! | `{kg}:org:<organisation id>` | sealed [`OrgRecord`] |
//! | `{kg}:org:<organisation id>:keys` | sorted set: the ids of its keys |
//! | `{kg}:keys`, `{kg}:orgs` | sorted sets: all ids |
//! | `{kg}:email:<index in hex>` | the organisation that took the address |
//! | `{kg}:audit:<trail>` | stream: the entries of an audit trail, each `<number>-0` with its `mac` and its `text` |
//! | `{kg}:audit:<trail>:ends` | its checkpoint and its head, each a number (8 bytes big-endian) and a MAC (32) |
//! | `{kg}:idem:<index in hex>` | a kept answer: when it ends (8 bytes), then sealed; expires |
//! | `{kg}:used` | hash: by key id, the text of its [`Usage`](crate::vocabulary::key::usage::Usage) |
//! | `{kg}:news`, `{kg}:news:due` | hash: what the upstream is to be told, by organisation; sorted set: when |
//! | `{kg}:quota:<name>` | when its window ends, and how many there were; expires |
//! | `{kg}:events` | stream: the newest 100,000 events, each `<number>-0` with its `subjects` and a random `mark` |
//!
//! Nothing that a key's validity rests on has an expiry: under a memory limit Redis evicts what has one first,
//! and a key that vanished would be answered with 401. Kept answers and quotas have one: without an answer a
//! repeated request is carried out anew, without a count somebody gets one more try. The record stands at its id alone, because a key may have several secrets, or none.
//!
//! **Which store it is.** `meta` names an *incarnation*, drawn when an operator makes the store. This process
//! knows the first it sees, and takes "no such key" from that one only. Any other, or none, is no store until
//! an operator accepts it: a Redis that came back empty is an incident, and not a hundred thousand
//! revocations.
//!
//! **Three ways to Redis**, each with a connection of its own: lookups, commands (mutations and lists),
//! events. None is needed to start. Each is made when it is wanted, and made again when it fails.

mod answers;
mod breaker;
mod connect;
mod follower;
mod inspect;
mod ledger;
mod link;
mod mutation;
mod names;
mod outbox;
mod quotas;
mod scripts;
mod settings;
mod split;
mod tenure;
mod topology;
mod trails;
mod usage;

pub use self::settings::{
    Address, Cell, InvalidPlace, Node, OpenError, Place, Sentinels, Settings, TlsFiles,
};

use std::fmt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use self::connect::{Credentials, Dialler, Tls};
use self::ledger::{Incarnation, Ledger};
use self::link::Link;
use self::names::Names;
use self::scripts::{Call, Meta, Reply, Script, Scripts};
use self::settings::read_password;
use self::tenure::Tenure;
use self::topology::{Cluster, Connector, Sentinel, Topology};
use super::answers::Answers;
use super::events::{EventSink, Seq};
use super::finding::Finding;
use super::keeper::{Acceptance, Keeper, Lease, LinkState, Standing, Status, Vitals};
use super::outbox::Outbox;
use super::quotas::Quotas;
use super::trails::Trails;
use super::usage::Usage;
use super::{
    CommitError, Committed, Found, LEASE, Lookup, Mutation, Propagation, Role, Store, StoreFault, StoreFuture,
};
use crate::vocabulary::audit::Trail;
use crate::vocabulary::clock::Clock;
use crate::vocabulary::id::{KeyId, OrgId};
use crate::vocabulary::key::Digest;
use crate::vocabulary::key::record::{
    BadRecord, KeyRecord, OrgRecord, RecordFormat, Sealer, Stored, Versioned,
};

/// The store. Nothing is asked of Redis before somebody asks for something.
pub struct Redis {
    inner: Arc<Inner>,
    follower: Mutex<Option<AbortHandle>>,
}

/// What its tasks share.
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
    /// Whether the lease was given up. Held over every renewal, so that none that is under way brings it back.
    left: tokio::sync::Mutex<bool>,
    tenure: Tenure,
    /// What this process is called among the gateways.
    gateway: Box<str>,
    /// Replicas that the master has.
    replicas: AtomicUsize,
    /// Whether the log was told that the store has outgrown this gateway.
    is_outdated: AtomicBool,
    control: Handle,
    clock: Clock,
}

/// The last time that this gateway's lease was renewed.
#[derive(Clone, Copy)]
struct Renewal {
    asked: Instant,
    /// How many gateways held one then.
    leases: usize,
}

impl Redis {
    /// Gets everything ready to connect. Its tasks run on `control`.
    ///
    /// # Errors
    /// [`OpenError`], whose text says what to do.
    pub fn open(settings: Settings, sealer: Sealer, control: Handle) -> Result<Self, OpenError> {
        let names = Names::new(&settings.cell);
        let connector = Arc::new(connector(&settings, &names)?);
        let clock = Clock::system();
        let link = || Link::new(Arc::clone(&connector), control.clone(), clock.clone());
        let inner = Inner {
            names,
            scripts: Scripts::new(),
            ledger: Ledger::new(sealer.keeps()),
            sealer,
            lookups: link(),
            commands: link(),
            link_state: Mutex::new(LinkState::Down("not connected yet".into())),
            lease: Mutex::default(),
            left: tokio::sync::Mutex::default(),
            tenure: Tenure::begin(clock.mono()),
            gateway: format!("{:016x}", fastrand::u64(..)).into(),
            replicas: AtomicUsize::new(0),
            is_outdated: AtomicBool::new(false),
            connector,
            control,
            clock,
            settings,
        };
        Ok(Self { inner: Arc::new(inner), follower: Mutex::default() })
    }

    /// Looks whether this Redis is fit to keep keys, and what a gateway of this role may do there. Changes nothing.
    pub async fn inspect(&self, role: Role) -> Vec<Finding> {
        inspect::inspect(&self.inner, role).await
    }
}

/// Reads the files that the settings name, and connects to nothing.
///
/// # Errors
/// [`OpenError`], whose text says what to do.
pub fn check_files(settings: &Settings) -> Result<(), OpenError> {
    connector(settings, &Names::new(&settings.cell)).map(drop)
}

fn connector(settings: &Settings, names: &Names) -> Result<Connector, OpenError> {
    let tls = settings.tls.as_ref().map(Tls::load).transpose()?;
    let ours = credentials(&settings.username, settings.password_file.as_deref(), OURS)?;
    let (topology, database) = match &settings.place {
        Place::Fixed(address) if address.encrypted && tls.is_none() => return Err(OpenError::NoAuthority),
        Place::Fixed(address) => (Topology::Fixed(address.node.clone()), address.database),
        Place::Sentinel(sentinels) => {
            let password_file = sentinels.password_file.as_deref();
            let theirs = credentials(&sentinels.username, password_file, OF_SENTINELS)?;
            let dialler = Dialler::new(&theirs, 0, tls.clone());
            (Topology::Sentinel(Sentinel::new(&sentinels.nodes, &sentinels.master, &dialler)), 0)
        }
        Place::Cluster(seeds) => {
            (Topology::Cluster(Cluster::new(seeds, settings.cell.as_str(), names.with(""))), 0)
        }
    };
    let dialler = Dialler::new(&ours, database, tls);
    Ok(Connector::new(settings.place.clone(), topology, dialler, settings.connect_timeout))
}

/// The keys for the name and the password of a user.
const OURS: [&str; 2] = ["username", "password_file"];
const OF_SENTINELS: [&str; 2] = ["sentinel_username", "sentinel_password_file"];

fn credentials(
    username: &Option<String>,
    password_file: Option<&Path>,
    keys: [&'static str; 2],
) -> Result<Credentials, OpenError> {
    let password = password_file.map(|file| read_password(keys[1], file)).transpose()?;
    Ok(Credentials { username: username.clone(), password, keys })
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

    fn spared(&self) -> Option<StoreFault> {
        self.inner.lookups.turns_away()
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

    fn propagation(&self, event: Seq, within: Duration) -> StoreFuture<'_, Result<Propagation, StoreFault>> {
        Box::pin(self.inner.propagation(event, within))
    }

    /// Some at a time; each script inserts its keys one by one, so that a fault finds each whole or not there.
    fn import(
        &self,
        keys: Vec<KeyRecord>,
    ) -> StoreFuture<'_, Result<Vec<Result<(), CommitError>>, StoreFault>> {
        Box::pin(self.inner.import(keys))
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

impl Keeper for Redis {
    fn link_state(&self) -> LinkState {
        self.inner.link_state()
    }

    fn vitals(&self) -> Vitals {
        self.inner.vitals()
    }

    fn leave(&self) -> StoreFuture<'_, Result<(), StoreFault>> {
        Box::pin(self.inner.leave())
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
        f.debug_struct("Redis").field("place", &self.inner.connector.whereabouts()).finish_non_exhaustive()
    }
}

/// Records of a list that are asked for at once; it bounds how long a script holds everybody else up.
const PAGE: usize = 256;
/// How long who waits for gateways lets pass before it asks again.
const PAUSE_AT_MOST: Duration = Duration::from_millis(10);
/// The format of a new store. It holds nothing yet that a later format would be needed for.
const FORMAT_OF_NEW: RecordFormat = RecordFormat::OPEN;
/// Where the list is read from its newest entry.
const NEWEST: &str = "+";

impl Inner {
    fn fault(&self, cause: impl fmt::Display) -> StoreFault {
        self.connector.fault(cause)
    }

    fn link_state(&self) -> LinkState {
        self.link_state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The state before, for whoever tells of changes.
    fn set_link_state(&self, state: LinkState) -> LinkState {
        std::mem::replace(&mut *self.link_state.lock().unwrap_or_else(PoisonError::into_inner), state)
    }

    fn note_lease(&self, renewal: Option<Renewal>) {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = renewal;
    }

    async fn leave(&self) -> Result<(), StoreFault> {
        *self.left.lock().await = true;
        self.note_lease(None);
        let names = &self.names;
        let places = [names.gateways(), names.lease(&self.gateway), names.lease_format(&self.gateway)];
        let call = Call::new(&self.scripts.leave, places).arg(&*self.gateway);
        self.commands.run(&call, self.settings.command_timeout).await.map(drop)
    }

    fn vitals(&self) -> Vitals {
        let now = self.clock.mono();
        let renewal = *self.lease.lock().unwrap_or_else(PoisonError::into_inner);
        let held = renewal.filter(|renewal| now.saturating_duration_since(renewal.asked) < LEASE);
        let links = [("lookups", &self.lookups), ("commands", &self.commands)];
        Vitals {
            standing: held.map_or(Standing::Out, |renewal| Standing::Among(renewal.leases)),
            breakers: links.map(|(name, link)| (name, link.turns_away().is_some())).to_vec(),
            is_suspect: Some(self.tenure.is_in_doubt()),
        }
    }

    /// Asks over the connection of the commands, and takes the answer only from our own store.
    async fn ask(&self, call: &Call<'_>) -> Result<Reply, StoreFault> {
        let reply = self.commands.run(call, self.settings.command_timeout).await?;
        self.ledger.recognise(&reply.meta, 0).map_err(|stranger| self.fault(stranger))?;
        Ok(reply)
    }

    /// A script that writes, with what it needs to know its store by.
    fn writing<'s>(&self, script: &'s Script, places: impl IntoIterator<Item = String>) -> Call<'s> {
        let known = self.ledger.position().known;
        let call = Call::new(script, std::iter::once(self.names.meta()).chain(places));
        call.arg(self.credentials(known.as_ref()))
    }

    /// What `ours.lua` needs: the store that is known here, and the format of records that this process can keep.
    fn credentials(&self, known: Option<&Incarnation>) -> String {
        format!("{} {}", known.map_or("", Incarnation::as_str), self.sealer.keeps())
    }

    /// Whether a script refused because this gateway, or another that holds a lease, is too old.
    fn check_age(&self, status: Option<&str>, reply: &mut Reply) -> Result<(), StoreFault> {
        match status {
            Some("outdated") => Err(StoreFault::outdated(reply.meta.format, self.sealer.keeps())),
            Some("waits") => {
                let mut next = || reply.text().map_err(|error| self.fault(error));
                let (gateway, format) = (next()?.unwrap_or_default(), next()?.unwrap_or_default());
                let text = format!(
                    "the gateway {gateway} keeps records up to format {format} only and would lose what this change \
                     writes: upgrade it, or stop it, and try again; `keygate store status` lists all gateways"
                );
                Err(StoreFault::Outdated(text.into()))
            }
            _ => Ok(()),
        }
    }

    fn bad_record(&self, bad: BadRecord) -> StoreFault {
        match bad {
            BadRecord::Newer { .. } => bad.into(),
            bad => self.fault(bad),
        }
    }

    /// Has a script write, and gives what it says beyond that it did.
    async fn write(&self, call: &Call<'_>) -> Result<Reply, StoreFault> {
        let mut reply = self.ask(call).await?;
        let status = reply.text().map_err(|error| self.fault(error))?;
        self.check_age(status.as_deref(), &mut reply)?;
        match status.as_deref() {
            Some("done") => Ok(reply),
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

    /// `None` only where our own store, and not one that has fallen behind, has no such digest.
    async fn lookup(&self, digest: &Digest) -> Result<Option<Found>, StoreFault> {
        let last = self.ledger.position().last;
        let call = Call::new(&self.scripts.lookup, [self.names.meta(), self.names.digest(digest)])
            .arg(self.names.with(""))
            .or_by_halves(&self.scripts.half);
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
        self.sealer.open_at(place, bytes).map_err(|bad| self.bad_record(bad))
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

    /// Asks again and again: what it costs is little, and only who changes something pays it.
    async fn propagation(&self, event: Seq, within: Duration) -> Result<Propagation, StoreFault> {
        let begun = self.clock.mono();
        let mut pause = Duration::from_millis(1);
        loop {
            let call = Call::new(&self.scripts.confirmed, [self.names.meta(), self.names.gateways()])
                .arg(event.to_string())
                .arg(self.names.leases());
            let mut reply = self.ask(&call).await?;
            let mut count = || -> Result<usize, StoreFault> {
                let text = reply.text().map_err(|error| self.fault(error))?;
                let count = text.and_then(|text| text.parse().ok());
                count.ok_or_else(|| self.fault("the number of gateways does not read"))
            };
            let (gateways, confirmed) = (count()?, count()?);
            let took = self.clock.mono().saturating_duration_since(begun);
            let propagation = Propagation { gateways, confirmed, took };
            if propagation.is_complete() || took >= within {
                return Ok(propagation);
            }
            tokio::time::sleep(pause.min(within.saturating_sub(took))).await;
            pause = PAUSE_AT_MOST.min(pause * 2);
        }
    }

    async fn status(&self) -> Status {
        let position = self.ledger.position();
        let known = position.known.as_ref().map(ToString::to_string);
        let keeps = self.sealer.keeps();
        let place = format!("Redis at {}, cell {}", self.connector.whereabouts(), self.settings.cell);
        let call = Call::new(&self.scripts.watch, [self.names.meta(), self.names.events()])
            .arg(position.last.to_string());
        match self.commands.run(&call, self.settings.command_timeout).await {
            Err(fault) => {
                let (trouble, gateways) = (Some(fault.to_string()), Vec::new());
                Status { place, trouble, found: None, known, events: None, format: None, keeps, gateways }
            }
            Ok(reply) => {
                let Meta { incarnation: found, event: events, format, .. } = reply.meta.clone();
                let judged = self.ledger.recognise(&reply.meta, position.last);
                let outdated = (format > keeps).then(|| StoreFault::outdated(format, keeps).to_string());
                let trouble = judged.err().map(|stranger| stranger.to_string()).or(outdated);
                // A list of gateways that cannot be read is no trouble of the store.
                let gateways = self.gateways().await.unwrap_or_default();
                let format = found.is_some().then_some(format);
                Status { place, trouble, found, known, events, format, keeps, gateways }
            }
        }
    }

    /// Who holds a lease, by their names.
    async fn gateways(&self) -> Result<Vec<Lease>, StoreFault> {
        let call = Call::new(&self.scripts.gateways, [self.names.meta(), self.names.gateways()])
            .arg(self.names.leases());
        let mut reply = self.commands.run(&call, self.settings.command_timeout).await?;
        let mut gateways = Vec::new();
        while let Some(gateway) = reply.text().map_err(|error| self.fault(error))? {
            let event = reply.text().map_err(|error| self.fault(error))?;
            let event = event.and_then(|event| event.parse().ok());
            let event = event.ok_or_else(|| self.fault("the number in a lease does not read"))?;
            let format = RecordFormat::named(reply.text().map_err(|error| self.fault(error))?.as_deref());
            let own = *gateway == *self.gateway;
            gateways.push(Lease { gateway, event, own, format });
        }
        gateways.sort_unstable_by(|one, other| one.gateway.cmp(&other.gateway));
        Ok(gateways)
    }

    /// Makes the store where there is nothing and nothing was known.
    async fn begin(&self) -> Result<bool, StoreFault> {
        if self.ledger.position().known.is_none() {
            let names = &self.names;
            let fresh = Incarnation::draw().map_err(|error| self.fault(error))?;
            let places = [names.meta(), names.events(), names.keys(), names.orgs()];
            let places =
                places.into_iter().chain([names.entries(Trail::Operator), names.used(), names.news()]);
            let call =
                Call::new(&self.scripts.begin, places).arg(fresh.as_str()).arg(FORMAT_OF_NEW.to_string());
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
            .arg(fresh.as_str())
            .arg(FORMAT_OF_NEW.to_string())
            .arg(self.sealer.keeps().to_string());
        let mut reply = self.commands.run(&call, self.settings.command_timeout).await?;
        let status = reply.text().map_err(|error| self.fault(error))?;
        if reply.meta.format > self.sealer.keeps() {
            return Err(StoreFault::outdated(reply.meta.format, self.sealer.keeps()));
        }
        let found = reply.meta.incarnation.clone().unwrap_or_default();
        if status.as_deref() != Some("refused") {
            self.ledger.adopt(&found, reply.meta.event.unwrap_or_default());
        }
        self.ledger.recognise(&reply.meta, 0).map_err(|stranger| self.fault(stranger))?;
        Ok(Acceptance { store: found, changed: status.as_deref() != Some("kept") })
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
