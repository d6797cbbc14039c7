//! A disk that fails for a while, under load: nothing that was answered is lost, and the store is back by itself.
//!
//! The clients of [`power_cuts`](super::power_cuts) change the store while operations of its disk fail, one after the
//! other. `KEYGATE_LONG=1 cargo test --lib disk_faults -- --nocapture` is the long form: every operation.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use redb::StorageBackend;
use rustix::io::Errno;

use super::folder::OnDisk;
use super::mending::Again;
use super::open::{lay_out, open_on};
use super::power_cuts::{Client, check, use_until_it_fails};
use super::reserve::{BESIDE, RESERVE, Reserve, Room};
use super::{Embedded, again, lock};
use crate::store::events::{EventSink, Seq, Subject};
use crate::store::keeper::Keeper;
use crate::store::{CommitError, Mutation, Store, StoreFault};
use crate::vocabulary::audit::{Chain, Link, Trail};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::key::record::{RecordFormat, Sealer};
use crate::vocabulary::key::{Digest, Pepper};

/// How long after the end of its cause a fault may last.
const BACK_WITHIN: Duration = Duration::from_secs(5);
const PAGE: u64 = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Error(Errno),
    /// Half of what was to be written is written.
    Torn,
}

pub(super) const KINDS: [Kind; 5] = [
    Kind::Error(Errno::NOSPC),
    Kind::Error(Errno::IO),
    Kind::Error(Errno::ROFS),
    Kind::Error(Errno::DQUOT),
    Kind::Torn,
];

/// A disk in memory.
#[derive(Clone, Debug, Default)]
pub(super) struct Disk(Arc<Mutex<Medium>>);

#[derive(Debug, Default)]
pub(super) struct Medium {
    content: Vec<u8>,
    pub(super) operations: u64,
    /// From which operation on how many fail.
    pub(super) fault: Option<(u64, u64, Kind)>,
    /// When the last of them has failed.
    healed: Option<Instant>,
    /// The pages of the file that take room, and how many fit; 0: as many as there are.
    pages: BTreeSet<u64>,
    fit: u64,
    reserved: u64,
}

impl Disk {
    pub(super) fn medium(&self) -> std::sync::MutexGuard<'_, Medium> {
        self.0.lock().unwrap()
    }

    pub(super) fn open(&self) -> (redb::Database, Seq) {
        let (database, event) = open_on("disk".as_ref(), self.clone(), RecordFormat::CURRENT).unwrap();
        let event = event.unwrap_or_else(|| {
            lay_out(&database).unwrap();
            0
        });
        (database, event)
    }

    fn store(&self, reserve: Option<Box<dyn Reserve>>) -> Arc<Embedded> {
        let (database, event) = self.open();
        let sealer = Arc::new(Sealer::new(Some(Pepper::new(vec![5; 32]).unwrap())));
        let (disk, own) = (self.clone(), Arc::clone(&sealer));
        let reopen = Box::new(move || {
            let path = "disk".as_ref();
            let opened = open_on(path, disk.clone(), RecordFormat::CURRENT).map_err(StoreFault::failed)?;
            again::complete(path, opened.0, opened.1.unwrap(), &own)
        });
        let again = Some(Again { reopen, reserve, folder: Arc::new(OnDisk) });
        Arc::new(Embedded::start("disk".into(), (database, event), sealer, again, Clock::system()).unwrap())
    }

    /// Whether it is this very disk.
    pub(super) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Does one operation, unless it is to fail.
    pub(super) fn act<T>(
        &self,
        done: impl FnOnce(&mut Medium) -> io::Result<T>,
        torn: impl FnOnce(&mut Medium),
    ) -> io::Result<T> {
        let mut medium = self.medium();
        medium.operations += 1;
        let Some((first, left, kind)) = medium.fault.filter(|(first, ..)| medium.operations >= *first) else {
            return done(&mut medium);
        };
        medium.fault = (left > 1).then_some((first, left - 1, kind));
        medium.healed = medium.fault.is_none().then(|| Clock::system().mono());
        match kind {
            Kind::Error(error) => Err(error.into()),
            Kind::Torn => {
                torn(&mut medium);
                Err(Errno::IO.into())
            }
        }
    }
}

impl Medium {
    fn write(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        for page in offset / PAGE..(offset + data.len() as u64).div_ceil(PAGE) {
            let is_full = self.fit > 0 && self.pages.len() as u64 + self.reserved >= self.fit;
            if is_full && !self.pages.contains(&page) {
                return Err(Errno::NOSPC.into());
            }
            self.pages.insert(page);
        }
        let at = usize::try_from(offset).unwrap();
        self.content[at..at + data.len()].copy_from_slice(data);
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.medium().content.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let read = |medium: &mut Medium| {
            let at = usize::try_from(offset).unwrap();
            let bytes = medium.content.get(at..at + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
            out.copy_from_slice(bytes);
            Ok(())
        };
        self.act(read, |_| ())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let resize = |medium: &mut Medium| {
            medium.content.resize(usize::try_from(len).unwrap(), 0);
            medium.pages.retain(|page| page * PAGE < len);
            Ok(())
        };
        self.act(resize, |_| ())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.act(|_| Ok(()), |_| ())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let torn = |medium: &mut Medium| {
            let _ = medium.write(offset, &data[..data.len() / 2]);
        };
        self.act(|medium| medium.write(offset, data), torn)
    }
}

/// Room on that disk.
struct Part(Disk);

impl Reserve for Part {
    fn keep(&self) -> Room {
        let mut medium = self.0.medium();
        if medium.reserved == 0 && medium.pages.len() as u64 + (RESERVE + BESIDE) / PAGE > medium.fit {
            return Room::Full;
        }
        medium.reserved = RESERVE / PAGE;
        Room::Kept
    }

    fn is_disk_full(&self) -> bool {
        let medium = self.0.medium();
        medium.pages.len() as u64 + medium.reserved >= medium.fit
    }

    fn give_up(&self) {
        self.0.medium().reserved = 0;
    }
}

/// The number up to which a gateway knows all events.
#[derive(Default)]
struct Told(AtomicU64);

impl EventSink for Told {
    fn apply(&self, seq: Seq, _: &[Subject]) {
        self.0.store(seq, Ordering::SeqCst);
    }

    fn reset(&self, seq: Seq) {
        self.0.store(seq, Ordering::SeqCst);
    }
}

async fn back(store: &Embedded, disk: &Disk) -> Duration {
    while store.status().await.trouble.is_some() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    disk.medium()
        .healed
        .map_or(Duration::ZERO, |healed| Clock::system().mono().saturating_duration_since(healed))
}

#[tokio::test]
async fn whichever_operation_of_the_disk_fails_nothing_answered_is_lost_and_the_store_is_back_by_itself() {
    let is_long = std::env::var_os("KEYGATE_LONG").is_some();
    let (stores, faults) = if is_long { (100, 60) } else { (5, 4) };
    let (mut slowest, mut answered, mut in_doubt, mut happened) = (Duration::ZERO, 0, 0, 0);
    for number in 0..stores {
        let disk = Disk::default();
        let store = disk.store(None);
        let told = Arc::new(Told::default());
        store.subscribe(told.clone());
        let mut clients: Vec<Client> = (0..6).map(|n| Client::new(number * 6 + n)).collect();
        for fault in 0..faults {
            // A change takes some twenty operations. In the long form every one of the first 240 fails once with each kind.
            let first =
                1 + if is_long { fault + number / 5 % 4 * 60 } else { (fault * 97 + number * 31) % 240 };
            let kind = KINDS[usize::try_from((number + fault * u64::from(!is_long)) % 5).unwrap()];
            {
                let mut medium = disk.medium();
                medium.fault = Some((medium.operations + first, 1 + fault % 3, kind));
                medium.healed = None;
            }
            answered += use_until_it_fails(Arc::clone(&store), &mut clients).await.count;
            in_doubt += clients.iter().filter(|client| client.in_doubt.is_some()).count();
            let took = back(&store, &disk).await;
            assert!(took < BACK_WITHIN, "{took:?} after {kind:?} of operation {first}");
            slowest = slowest.max(took);
            happened += check(&store, &mut clients, fault).await;
            let event = store.status().await.events.unwrap();
            assert_eq!(told.0.load(Ordering::SeqCst), event, "what the gateway knows after {kind:?}");
            assert_eq!(lock(&store.published).event, event);
        }
    }
    println!(
        "{} faults: back after {slowest:?} at most; {answered} changes answered, {in_doubt} in doubt, of which {happened} \
         are there",
        stores * faults
    );
    assert!(in_doubt > 0 && answered > 50, "{answered} prove nothing");
}

#[tokio::test]
async fn with_a_full_disk_rights_are_still_taken_away_and_with_room_everything_goes_on() {
    let disk = Disk::default();
    disk.medium().fit = 4 * RESERVE / PAGE;
    let store = disk.store(Some(Box::new(Part(disk.clone()))));
    let news = |number: u32| {
        let mut bytes = vec![0; 60_000];
        bytes[..4].copy_from_slice(&number.to_be_bytes());
        bytes
    };
    let chain = Chain::default();
    let trail = Trail::Operator;
    let mut last = Link::ORIGIN;
    let mut fill = async |number| {
        let append = chain.extend(trail, last, news(number));
        let link = append.entry.link;
        let mutation = Mutation { audit: Some(append), ..Mutation::default() };
        store.commit(mutation).await.map(|_| last = link)
    };
    let mut filled = 0;
    while fill(filled).await.is_ok() {
        filled += 1;
        assert!(filled < 10_000, "the disk is full at some time");
    }
    while !store.vitals().is_full.unwrap() || store.vitals().breakers[0].1 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let refused = fill(filled).await.unwrap_err().to_string();
    assert!(refused.contains("disk is full: only changes that take rights away are written"), "{refused}");
    assert_eq!(store.status().await.trouble, Some(refused));
    let mut taken = 0_u64;
    while taken < 2_000 {
        let subjects = vec![Subject::Revoked(Digest::from_bytes([u8::try_from(taken % 200).unwrap(); 32]))];
        match store.commit(Mutation { subjects, ..Mutation::default() }).await {
            Ok(_) => taken += 1,
            Err(CommitError::Fault(fault)) => panic!("{fault} after {taken}"),
            Err(refused) => panic!("{refused}"),
        }
    }
    disk.medium().fit *= 2;
    while store.vitals().is_full.unwrap() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    fill(filled).await.unwrap();
    assert_eq!(store.status().await.trouble, None);
    println!(
        "{filled} entries of 60 kB before the disk was full, {taken} changes that take rights away after it"
    );
}
