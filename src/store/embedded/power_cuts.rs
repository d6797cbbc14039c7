//! What is left of the store when the power is cut: a killed process loses nothing that it has written, a machine
//! loses whatever was not synced, and of that any part may have reached the disk in any order.
//!
//! The real writer is driven on a disk that is cut at a random moment, also while it repairs what the cut before
//! left. Then a real file is made of what survived, opened as ever, and compared with what was answered.
//! `KEYGATE_LONG=1 cargo test --lib power_cuts -- --nocapture` is the long form.

use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use fastrand::Rng;
use redb::StorageBackend;
use tokio::task::JoinSet;

use super::open::{lay_out, open_on};
use super::{Embedded, OpenError, Settings};
use crate::store::answers::{Answers, KeptAnswer};
use crate::store::events::{Seq, Subject};
use crate::store::keeper::Keeper;
use crate::store::trails::Trails;
use crate::store::{Change, CommitError, KeysOf, Lookup, Mutation, Store};
use crate::vocabulary::audit::{Chain, Ends, Entry, Link, Trail};
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::id::{IdSource, KeyId, OrgId};
use crate::vocabulary::key::record::{
    Further, KeyRecord, OrgRecord, RecordFormat, Sealer, Secret, Versioned,
};
use crate::vocabulary::key::scope::ScopeSet;
use crate::vocabulary::key::{Digest, Environment, Pepper};

const ROUNDS: u64 = 20;
const LONG: u64 = 2_000;
/// After so many the disk is a new one, so that also a store's very first moments are cut short.
const ROUNDS_OF_A_DISK: u64 = 20;
/// Organisations that are changed at the same time, each by a client of its own.
const CLIENTS: usize = 6;
/// The unit that a disk writes atomically, in bytes.
const SECTOR: usize = 512;

#[tokio::test]
async fn whatever_a_power_cut_leaves_every_answered_change_is_there_and_none_is_half_there() {
    let rounds = if std::env::var_os("KEYGATE_LONG").is_some() { LONG } else { ROUNDS };
    let mut story = Story::default();
    for first in (0..rounds).step_by(usize::try_from(ROUNDS_OF_A_DISK).unwrap()) {
        story.add(&run(first..rounds.min(first + ROUNDS_OF_A_DISK)).await);
    }
    println!("{rounds} power cuts: {story:?}");
    assert!(story.answered > rounds && story.in_doubt > 0 && story.lost > 0, "{story:?} proves nothing");
}

/// The result of a run.
#[derive(Clone, Copy, Debug, Default)]
struct Story {
    answered: u64,
    /// Changes under way when the power was cut, and how many of them are there.
    in_doubt: u64,
    happened: u64,
    /// Sectors that were written and did not survive.
    lost: u64,
    /// Cuts that came while the store was being opened.
    amid_opening: u64,
}

impl Story {
    fn add(&mut self, other: &Self) {
        self.answered += other.answered;
        self.in_doubt += other.in_doubt;
        self.happened += other.happened;
        self.lost += other.lost;
        self.amid_opening += other.amid_opening;
    }
}

async fn run(rounds: std::ops::Range<u64>) -> Story {
    let folder = tempfile::tempdir().unwrap();
    let sealer = Sealer::new(Some(Pepper::new(vec![5; 32]).unwrap()));
    let mut story = Story::default();
    let mut medium = Vec::new();
    let (mut last_event, mut has_opened) = (0, false);
    let mut clients: Vec<Client> =
        (0..CLIENTS).map(|n| Client::new(rounds.start * CLIENTS as u64 + n as u64)).collect();
    for round in rounds {
        let mut rng = Rng::with_seed(round);
        let moments = if rng.u8(..4) == 0 { 30 } else { 600 };
        let disk = Disk::holding(medium, 1 + rng.u64(..moments), rng.fork());
        let mut in_doubt = 0;
        match open(&disk, &sealer) {
            Some(store) => {
                has_opened = true;
                let answered = use_until_it_fails(Arc::new(store), &mut clients).await;
                story.answered += answered.count;
                last_event = last_event.max(answered.last_event);
                in_doubt = clients.iter().filter(|client| client.in_doubt.is_some()).count() as u64;
            }
            None => story.amid_opening += 1,
        }
        let (survived, lost) = disk.survivors(&mut rng);
        let path = folder.path().join("keygate.redb");
        write(&path, &survived);
        let store = match Embedded::open(&Settings { path: path.clone() }, sealer.clone()) {
            Ok(store) => store,
            // Cut while redb made the file, which is then no store yet; it is not for us to overwrite it.
            Err(OpenError::NotAStore { .. }) if !has_opened => {
                medium = Vec::new();
                continue;
            }
            Err(error) => panic!("round {round}: {error}"),
        };
        story.happened += check(&store, &mut clients, round).await;
        let event = store.status().await.events.unwrap();
        assert!(
            (last_event..=last_event + in_doubt).contains(&event),
            "round {round}: {event}, {last_event}"
        );
        last_event = event;
        story.lost += lost;
        story.in_doubt += in_doubt;
        drop(store);
        // Mostly the next cut finds the repair under way.
        medium = if rng.u8(..4) == 0 { std::fs::read(&path).unwrap() } else { survived };
    }
    story
}

/// The store on this disk; `None` if the power was cut meanwhile.
fn open(disk: &Disk, sealer: &Sealer) -> Option<Embedded> {
    let path = Path::new("disk");
    let opened = open_on(path, disk.clone(), RecordFormat::CURRENT).map_err(|error| error.to_string());
    let laid_out = opened.and_then(|(database, event)| match event {
        Some(event) => Ok((database, event)),
        None => lay_out(&database).map(|()| (database, 0)).map_err(|fault| fault.to_string()),
    });
    match laid_out {
        Ok((database, event)) => Some(
            Embedded::start(path.into(), (database, event), Arc::new(sealer.clone()), None, Clock::system())
                .unwrap(),
        ),
        Err(_) if disk.is_cut() => None,
        Err(error) => panic!("{error}"),
    }
}

pub(super) fn write(path: &Path, bytes: &[u8]) {
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(0o600).open(path).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0).unwrap();
}

pub(super) struct Answered {
    pub(super) count: u64,
    pub(super) last_event: Seq,
}

/// Every client makes one change after the other until one of them is not answered.
pub(super) async fn use_until_it_fails(store: Arc<Embedded>, clients: &mut Vec<Client>) -> Answered {
    use_until(store, clients, Arc::default()).await
}

/// The same, until somebody says so.
pub(super) async fn use_until(
    store: Arc<Embedded>,
    clients: &mut Vec<Client>,
    over: Arc<AtomicBool>,
) -> Answered {
    let mut running = JoinSet::new();
    for client in clients.drain(..) {
        running.spawn(client.work(Arc::clone(&store), Arc::clone(&over)));
    }
    let mut answered = Answered { count: 0, last_event: 0 };
    while let Some(done) = running.join_next().await {
        let (client, own) = done.unwrap();
        answered.count += own.count;
        answered.last_event = answered.last_event.max(own.last_event);
        clients.push(client);
    }
    answered
}

/// Holds the store against what the clients know. Tells how many changes in doubt have happened.
pub(super) async fn check(store: &Embedded, clients: &mut [Client], round: u64) -> u64 {
    let mut happened = 0;
    for client in &mut *clients {
        let head = store.ends(client.trail()).await.unwrap().head.number;
        let after = client.in_doubt.take().filter(|after| after.trail.len() as u64 == head);
        happened += u64::from(after.is_some());
        client.known = after.unwrap_or_else(|| std::mem::take(&mut client.known));
        client.known.check(store, client.org, round).await;
    }
    let mut all: Vec<_> = clients.iter().flat_map(|client| client.known.keys.values().cloned()).collect();
    all.sort_by_key(|key| std::cmp::Reverse(key.record.id));
    assert_eq!(
        store.keys(KeysOf::All, None, usize::MAX).await.unwrap(),
        all,
        "round {round}: the list of all keys"
    );
    happened
}

/// One who changes an organisation of their own.
pub(super) struct Client {
    org: OrgId,
    ids: IdSource,
    rng: Rng,
    known: Known,
    /// The state if the change that was not answered has happened.
    pub(super) in_doubt: Option<Known>,
}

/// The content of an organisation's part of the store.
#[derive(Clone, Default)]
pub(super) struct Known {
    org: Option<Versioned<OrgRecord>>,
    keys: BTreeMap<KeyId, Versioned<KeyRecord>>,
    /// Digests that open nothing any more.
    dropped: Vec<Digest>,
    trail: Vec<Entry>,
    answers: Vec<KeptAnswer>,
}

const NOW: UnixMillis = UnixMillis(1_790_000_000_000);

impl Client {
    pub(super) fn new(seed: u64) -> Self {
        let (mut ids, rng) = (IdSource::seeded(seed), Rng::with_seed(seed));
        let org = OrgId::draw(&mut ids, NOW);
        Self { org, ids, rng, known: Known::default(), in_doubt: None }
    }

    const fn trail(&self) -> Trail {
        Trail::Org(self.org)
    }

    async fn work(mut self, store: Arc<Embedded>, over: Arc<AtomicBool>) -> (Self, Answered) {
        let mut answered = Answered { count: 0, last_event: 0 };
        while !over.load(Ordering::SeqCst) {
            let (mutation, after) = self.next_change();
            match store.commit(mutation).await {
                Ok(committed) => {
                    self.known = after;
                    answered.count += 1;
                    answered.last_event = answered.last_event.max(committed.event.unwrap_or(0));
                }
                Err(CommitError::Fault(_)) => {
                    self.in_doubt = Some(after);
                    over.store(true, Ordering::SeqCst);
                }
                Err(refused) => panic!("{refused}"),
            }
        }
        (self, answered)
    }

    /// A change with its event in the trail and often an answer to be kept; and what is known once it has
    /// happened.
    fn next_change(&mut self) -> (Mutation, Known) {
        let mut after = self.known.clone();
        let mut mutation = Mutation::default();
        let key = self.rng.choice(self.known.keys.values()).cloned();
        match (key, self.rng.u8(..8)) {
            (Some(key), 0..4) => self.rotate(key, &mut mutation, &mut after),
            (Some(key), 4) => revoke(key, &mut mutation, &mut after),
            (Some(_), 5) => suspend_or_resume(&mut mutation, &mut after),
            _ => self.create(&mut mutation, &mut after),
        }
        let last = after.trail.last().map_or(Link::ORIGIN, |entry| entry.link);
        let append = Chain::default().extend(self.trail(), last, vec![b'e'; self.rng.usize(1..3000)]);
        after.trail.push(append.entry.clone());
        mutation.audit = Some(append);
        if self.rng.bool() {
            let (mut index, mut sealed) = ([0; 32], vec![0; self.rng.usize(1..600)]);
            self.rng.fill(&mut index);
            self.rng.fill(&mut sealed);
            let answer = KeptAnswer { index, sealed, made_at: NOW, ends_at: NOW.plus(DAY) };
            after.answers.push(answer.clone());
            mutation.answer = Some(answer);
        }
        (mutation, after)
    }

    fn create(&mut self, mutation: &mut Mutation, after: &mut Known) {
        if after.org.is_none() {
            let org = OrgRecord {
                id: self.org,
                name: "an organisation".to_owned(),
                created_at: NOW,
                suspended_at: None,
                pending: false,
                email: None,
                further: Further::default(),
            };
            mutation.org = Some(Change::Insert(org.clone()));
            after.org = Some(Versioned { rev: 1, record: org });
        }
        let key = KeyRecord {
            id: KeyId::draw(&mut self.ids, NOW),
            org: self.org,
            name: "a key".to_owned(),
            environment: Environment::Test,
            scopes: ScopeSet::default(),
            secrets: vec![self.secret()],
            created_at: NOW,
            created_by: "test".to_owned(),
            expires_at: None,
            disabled_at: None,
            revoked_at: None,
            allowed_addresses: Vec::new(),
            owner: None,
            note: None,
            further: Further::default(),
        };
        mutation.key = Some(Change::Insert(key.clone()));
        after.keys.insert(key.id, Versioned { rev: 1, record: key });
    }

    /// At most two secrets of a key live, so the older of two is dropped; or at once both.
    fn rotate(&mut self, key: Versioned<KeyRecord>, mutation: &mut Mutation, after: &mut Known) {
        let mut record = key.record;
        let kept = self.rng.usize(..2).min(record.secrets.len());
        let dropped: Vec<Digest> = record.secrets.drain(kept..).map(|secret| secret.digest).collect();
        record.secrets.iter_mut().for_each(|secret| secret.ends_at = Some(NOW.plus(DAY)));
        record.secrets.insert(0, self.secret());
        mutation.subjects = dropped.iter().map(|digest| Subject::Digest(*digest)).collect();
        after.dropped.extend(dropped);
        update(key.rev, record, mutation, after);
    }

    fn secret(&mut self) -> Secret {
        let mut digest = [0; 32];
        self.rng.fill(&mut digest);
        Secret {
            digest: Digest::from_bytes(digest),
            last_four: "wxyz".to_owned(),
            prefix: None,
            ends_at: None,
            further: Further::default(),
        }
    }
}

const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);

fn revoke(key: Versioned<KeyRecord>, mutation: &mut Mutation, after: &mut Known) {
    mutation.subjects = key.record.secrets.iter().map(|secret| Subject::Digest(secret.digest)).collect();
    update(key.rev, KeyRecord { revoked_at: Some(NOW), ..key.record }, mutation, after);
}

fn update(rev: u64, record: KeyRecord, mutation: &mut Mutation, after: &mut Known) {
    mutation.key = Some(Change::Update { rev, record: record.clone() });
    after.keys.insert(record.id, Versioned { rev: rev + 1, record });
}

fn suspend_or_resume(mutation: &mut Mutation, after: &mut Known) {
    let Some(org) = &mut after.org else { return };
    org.record.suspended_at = if org.record.suspended_at.is_some() { None } else { Some(NOW) };
    mutation.org = Some(Change::Update { rev: org.rev, record: org.record.clone() });
    mutation.subjects = vec![Subject::Org(org.record.id)];
    org.rev += 1;
}

impl Known {
    /// The store holds exactly this of the organisation, in every table.
    async fn check(&self, store: &Embedded, org: OrgId, round: u64) {
        let trail = Trail::Org(org);
        assert_eq!(store.org(org).await.unwrap(), self.org, "round {round}");
        let listed = store.keys(KeysOf::Org(org), None, usize::MAX).await.unwrap();
        assert!(listed.iter().eq(self.keys.values().rev()), "round {round}: the list of {org}");
        for Versioned { record, .. } in self.keys.values() {
            for secret in &record.secrets {
                let Lookup::Found(found) = store.lookup(secret.digest).await else {
                    panic!("round {round}: a secret of {} opens nothing", record.id);
                };
                assert_eq!(found.key, *record, "round {round}");
            }
        }
        for digest in &self.dropped {
            assert!(matches!(store.lookup(*digest).await, Lookup::Absent), "round {round}: it came back");
        }
        let mut entries = store.entries(trail, None, usize::MAX).await.unwrap();
        entries.reverse();
        assert!(entries == self.trail, "round {round}: the trail of {org}");
        let head = entries.last().map_or(Link::ORIGIN, |entry| entry.link);
        assert_eq!(
            store.ends(trail).await.unwrap(),
            Ends { checkpoint: Link::ORIGIN, head },
            "round {round}"
        );
        for answer in &self.answers {
            let kept = store.find(answer.index, NOW).await.unwrap();
            assert!(kept.as_ref() == Some(&answer.sealed), "round {round}: a kept answer of {org}");
        }
    }
}

/// A disk that keeps what was not synced in memory, until the power is cut.
#[derive(Clone, Debug)]
pub(super) struct Disk(Arc<Mutex<Platter>>);

/// The writes and syncs up to the cut. Two disks of a machine have the same power.
#[derive(Clone, Debug)]
pub(super) struct Power(Arc<AtomicU64>);

impl Power {
    pub(super) fn new(left: u64) -> Self {
        Self(Arc::new(AtomicU64::new(left)))
    }

    pub(super) fn left(&self) -> u64 {
        self.0.load(Ordering::SeqCst)
    }

    pub(super) fn set(&self, left: u64) {
        self.0.store(left, Ordering::SeqCst);
    }

    fn on(&self) -> io::Result<()> {
        if self.left() == 0 { Err(io::Error::other("the power is cut")) } else { Ok(()) }
    }

    /// Counts an operation; an error if it is the last, whose outcome nobody learns.
    pub(super) fn step(&self) -> io::Result<()> {
        self.on()?;
        self.0.fetch_sub(1, Ordering::SeqCst);
        self.on()
    }
}

#[derive(Debug)]
pub(super) struct Platter {
    /// As it reads.
    content: Vec<u8>,
    /// As it was synced.
    synced: Vec<u8>,
    /// The operations since, in order.
    unsynced: Vec<Step>,
    power: Power,
    /// Whether its operations lead to the cut.
    counts: bool,
    rng: Rng,
}

#[derive(Debug)]
enum Step {
    Write { at: usize, data: Vec<u8> },
    Length(usize),
}

impl Disk {
    fn holding(content: Vec<u8>, left: u64, rng: Rng) -> Self {
        Self::of(content, Power::new(left), true, rng)
    }

    pub(super) fn of(content: Vec<u8>, power: Power, counts: bool, rng: Rng) -> Self {
        let synced = content.clone();
        Self(Arc::new(Mutex::new(Platter { content, synced, unsynced: Vec::new(), power, counts, rng })))
    }

    /// As it reads.
    pub(super) fn content(&self) -> Vec<u8> {
        self.0.lock().unwrap().content.clone()
    }

    fn is_cut(&self) -> bool {
        self.0.lock().unwrap().power.left() == 0
    }

    /// What is on it when the power is back, and how many sectors are not that were written.
    pub(super) fn survivors(&self, rng: &mut Rng) -> (Vec<u8>, u64) {
        let platter = self.0.lock().unwrap();
        assert_eq!(platter.power.left(), 0, "the power was not cut");
        let (mut content, mut lost) = (platter.synced.clone(), 0);
        // A cut that loses or keeps nearly everything finds other mistakes than one that takes half.
        let odds = rng.choice([0.0, 0.05, 0.5, 0.95, 1.0]).unwrap();
        for step in &platter.unsynced {
            match step {
                Step::Length(len) if rng.f64() < odds => content.resize(*len, 0),
                Step::Length(_) => {}
                Step::Write { at, data } => {
                    let parts = data.chunks(SECTOR).enumerate().map(|(n, part)| (at + n * SECTOR, part));
                    for (at, part) in parts {
                        match content.get_mut(at..at + part.len()) {
                            Some(place) if rng.f64() < odds => place.copy_from_slice(part),
                            _ => lost += 1,
                        }
                    }
                }
            }
        }
        (content, lost)
    }
}

impl Platter {
    fn powered(&self) -> io::Result<()> {
        self.power.on()
    }

    fn step(&self) -> io::Result<()> {
        if self.counts { self.power.step() } else { Ok(()) }
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        let platter = self.0.lock().unwrap();
        platter.powered()?;
        Ok(platter.content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let platter = self.0.lock().unwrap();
        platter.powered()?;
        let at = usize::try_from(offset).unwrap();
        let part = platter.content.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(part);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.powered()?;
        let len = usize::try_from(len).unwrap();
        platter.content.resize(len, 0);
        platter.unsynced.push(Step::Length(len));
        platter.step()
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.powered()?;
        // The last sync may have reached its end, though nobody is told.
        if !platter.counts || platter.power.left() > 1 || platter.rng.bool() {
            platter.synced = platter.content.clone();
            platter.unsynced.clear();
        }
        platter.step()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut platter = self.0.lock().unwrap();
        platter.powered()?;
        let at = usize::try_from(offset).unwrap();
        let place = platter.content.get_mut(at..at + data.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        place.copy_from_slice(data);
        platter.unsynced.push(Step::Write { at, data: data.to_vec() });
        platter.step()
    }
}
