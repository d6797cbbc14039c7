//! The file is compacted under load: it is smaller, nothing that was answered is lost, and nobody else can open it meanwhile.
//!
//! `KEYGATE_LONG=1 cargo test --lib compaction -- --nocapture` is the long form: 300,000 changes, and what was measured.

use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use redb::TableDefinition;

use super::compaction::check_room;
use super::power_cuts::{Client, check, use_until};
use super::tables::begin_write;
use super::{Embedded, OpenError, Settings};
use crate::store::compaction::{NotCompacted, Occasion};
use crate::store::events::Subject;
use crate::store::keeper::Keeper;
use crate::store::{Mutation, Store, StoreFault};
use crate::vocabulary::audit::{Chain, Trail};
use crate::vocabulary::clock::{Clock, UnixMillis};
use crate::vocabulary::id::{IdSource, OrgId};
use crate::vocabulary::key::record::Sealer;
use crate::vocabulary::key::{Digest, Pepper};

struct Place {
    _folder: tempfile::TempDir,
    settings: Settings,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let settings = Settings { path: folder.path().join("keygate.redb") };
        Self { _folder: folder, settings }
    }

    fn sealer() -> Sealer {
        Sealer::new(Some(Pepper::new(vec![5; 32]).unwrap()))
    }

    fn open(&self) -> Result<Embedded, OpenError> {
        Embedded::open(&self.settings, Self::sealer())
    }

    fn path(&self) -> &Path {
        &self.settings.path
    }

    fn beside(&self) -> PathBuf {
        self.path().with_extension("redb.compacting")
    }

    fn on_disk(&self) -> u64 {
        fs::metadata(self.path()).unwrap().blocks() * 512
    }
}

const ROWS: u64 = 256;
/// Bytes of a batch of rows.
const BATCH: u64 = ROWS * 4096;

fn place_of(batch: u64, row: u64) -> [u8; 16] {
    ((u128::from(batch) << 64) | (u128::from(row) + 1)).to_be_bytes()
}

async fn write_rows(store: &Embedded, batch: u64) {
    let write = store.write(move |tables, _| {
        for row in 0..ROWS {
            tables.usage.insert(&place_of(batch, row), &[7; 4000][..])?;
        }
        Ok(())
    });
    write.await.unwrap();
}

/// Writes so many batches of rows, and removes them again.
async fn waste(store: &Embedded, batches: u64) {
    for batch in 0..batches {
        write_rows(store, batch).await;
    }
    for batch in 0..batches {
        let write = store.write(move |tables, _| {
            for row in 0..ROWS {
                tables.usage.remove(&place_of(batch, row))?;
            }
            Ok(())
        });
        write.await.unwrap();
    }
}

#[tokio::test]
async fn a_file_that_is_compacted_under_load_is_smaller_and_has_all_that_was_answered() {
    let place = Place::new();
    let store = Arc::new(place.open().unwrap());
    waste(&store, 16).await;
    fs::set_permissions(place.path(), fs::Permissions::from_mode(0o700)).unwrap();
    let (inode, before) = (fs::metadata(place.path()).unwrap().ino(), place.on_disk());
    let over = Arc::new(AtomicBool::new(false));
    let load = {
        let (store, over) = (Arc::clone(&store), Arc::clone(&over));
        tokio::spawn(async move {
            let mut clients: Vec<Client> = (0..6).map(Client::new).collect();
            let answered = use_until(store, &mut clients, over).await.count;
            (clients, answered)
        })
    };
    let intruder = {
        let (settings, over) = (place.settings.clone(), Arc::clone(&over));
        std::thread::spawn(move || {
            let mut tries = 0;
            while !over.load(Ordering::SeqCst) {
                match Embedded::open(&settings, Place::sealer()) {
                    Err(OpenError::InUse { .. }) => tries += 1,
                    opened => panic!("another process opened it: {opened:?}"),
                }
            }
            tries
        })
    };
    for round in 0..3 {
        let done = store.compact(Occasion::Ordered).await.unwrap();
        assert!(round > 0 || done.bytes_after < before / 3, "{done:?}");
        // Later the number of a file that is gone is given again.
        assert!(round > 0 || fs::metadata(place.path()).unwrap().ino() != inode);
        assert_eq!(fs::metadata(place.path()).unwrap().mode() & 0o777, 0o700);
    }
    over.store(true, Ordering::SeqCst);
    let (mut clients, answered) = load.await.unwrap();
    assert!(intruder.join().unwrap() > 0);
    assert!(answered > 0, "the store took changes");
    check(&store, &mut clients, 0).await;
    let store = Arc::into_inner(store).unwrap();
    drop(store);
    let store = place.open().unwrap();
    check(&store, &mut clients, 1).await;
    assert!(!place.beside().exists());
}

#[tokio::test]
async fn it_is_compacted_by_itself_once_half_of_it_is_free_and_that_is_much() {
    let place = Place::new();
    let store = place.open().unwrap();
    waste(&store, 16).await;
    assert_eq!(store.compact(Occasion::ByItself).await, Err(NotCompacted::Little));
    waste(&store, 80).await;
    let done = store.compact(Occasion::ByItself).await.unwrap();
    assert!(done.bytes_before > 80 * BATCH && done.bytes_after < BATCH, "{done:?}");
    assert_eq!(place.on_disk(), done.bytes_after);
    assert_eq!(store.compact(Occasion::ByItself).await, Err(NotCompacted::Little));
}

#[tokio::test]
async fn what_cannot_be_compacted_stays_as_it_is() {
    let place = Place::new();
    fs::write(place.beside(), "of a process that was killed").unwrap();
    let store = place.open().unwrap();
    assert!(!place.beside().exists(), "a start removes what is left");
    let (one, other) = tokio::join!(store.compact(Occasion::Ordered), store.compact(Occasion::Ordered));
    assert!(one.is_ok() && other == Err(NotCompacted::Runs), "{other:?}");
    drop(store);

    let read = Embedded::open_to_read(&place.settings, Place::sealer(), Clock::system()).unwrap();
    assert_eq!(read.compact(Occasion::Ordered).await, Err(NotCompacted::ReadOnly));
    drop(read);

    let (database, _) = super::open::open_file(place.path(), Place::sealer().keeps()).unwrap();
    let transaction = begin_write(&database).unwrap();
    transaction.open_table(TableDefinition::<u64, u64>::new("of_tomorrow")).unwrap();
    transaction.commit().unwrap();
    drop(database);
    let store = place.open().unwrap();
    let refused = store.compact(Occasion::Ordered).await.unwrap_err();
    assert_eq!(refused, NotCompacted::UnknownTable("of_tomorrow".to_owned()));
    assert!(!place.beside().exists());
}

#[test]
fn a_disk_without_room_for_the_copy_is_named_with_what_is_missing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("keygate.redb");
    check_room(&path, 1, false).unwrap();
    let refused = check_room(&path, u64::MAX, false).unwrap_err();
    assert!(matches!(refused, NotCompacted::NoRoom { needed: u64::MAX, free } if free > 0));
    let refused = check_room(&path, 3 << 20, true).unwrap_err().to_string();
    assert!(
        refused.contains("takes up to 3 MiB beside it, and 0 MiB of the disk can be used for that"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_file_that_fails_meanwhile_breaks_the_copying_off() {
    let place = Place::new();
    let store = place.open().unwrap();
    waste(&store, 4).await;
    let begun = store.compaction.begin().unwrap();
    store.compaction.break_off(&StoreFault::failed("EIO"));
    assert_eq!(store.compact(Occasion::Ordered).await, Err(NotCompacted::Runs));
    drop(begun);
    store.compact(Occasion::Ordered).await.unwrap();
}

/// What of this process is in memory, in MiB: all of it, and what it has allocated.
fn resident() -> String {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let field = |name: &str| {
        let line = status.lines().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 10
    };
    format!("{} MiB resident ({} of them allocated)", field("VmRSS:"), field("RssAnon:"))
}

/// Changes made by 64 callers at once, each of an organisation of its own. Returns the longest wait of one of them.
async fn change(store: &Arc<Embedded>, changes: u64, over: Arc<AtomicBool>) -> (u64, Duration) {
    let done = Arc::new(AtomicU64::new(0));
    let callers = (0..64).map(|caller| {
        let (store, done, over) = (Arc::clone(store), Arc::clone(&done), Arc::clone(&over));
        tokio::spawn(async move {
            let org = OrgId::draw(&mut IdSource::seeded(caller), UnixMillis(1_790_000_000_000));
            let trail = Trail::Org(org);
            let mut last = store.trails().ends(trail).await.unwrap().head;
            let mut longest = Duration::ZERO;
            while !over.load(Ordering::SeqCst) && done.fetch_add(1, Ordering::SeqCst) < changes {
                let append = Chain::default().extend(trail, last, vec![b'e'; 700]);
                last = append.entry.link;
                let mut digest = [0; 32];
                fastrand::fill(&mut digest);
                let subjects = vec![Subject::Revoked(Digest::from_bytes(digest))];
                let begun = Clock::system().mono();
                let mutation = Mutation { audit: Some(append), subjects, ..Mutation::default() };
                store.commit(mutation).await.unwrap();
                longest = longest.max(Clock::system().mono().saturating_duration_since(begun));
            }
            longest
        })
    });
    let mut longest = Duration::ZERO;
    for caller in callers.collect::<Vec<_>>() {
        longest = longest.max(caller.await.unwrap());
    }
    (done.load(Ordering::SeqCst).min(changes), longest)
}

/// What is to be done while 64 callers change the store. Returns the longest wait of a change, and of somebody else who syncs
/// 16 KiB in a file of their own on the same disk: that much is the disk's.
async fn under_load<T>(store: &Arc<Embedded>, path: &Path, act: impl Future<Output = T>) -> (String, T) {
    let over = Arc::new(AtomicBool::new(false));
    let load = {
        let (store, over) = (Arc::clone(store), Arc::clone(&over));
        tokio::spawn(async move { change(&store, u64::MAX, over).await })
    };
    let bystander = {
        let (file, over) = (fs::File::create(path.with_extension("bystander")).unwrap(), Arc::clone(&over));
        std::thread::spawn(move || {
            let mut longest = Duration::ZERO;
            while !over.load(Ordering::SeqCst) {
                file.write_all_at(&[1; 16 << 10], 0).unwrap();
                let begun = Clock::system().mono();
                file.sync_data().unwrap();
                longest = longest.max(Clock::system().mono().saturating_duration_since(begun));
                std::thread::sleep(Duration::from_millis(2));
            }
            longest
        })
    };
    let done = act.await;
    over.store(true, Ordering::SeqCst);
    let ((changes, longest), of_the_disk) = (load.await.unwrap(), bystander.join().unwrap());
    (format!("{longest:?} and {of_the_disk:?} ({changes} changes)"), done)
}

/// How long a file is closed after an error, and how long a start takes.
#[tokio::test]
async fn figures_of_a_file_that_is_opened_again() {
    if std::env::var_os("KEYGATE_LONG").is_none() {
        return;
    }
    let place = Place::new();
    let mut store = place.open().unwrap();
    let now = || Clock::system().mono();
    for (first, last) in [(0, 256), (256, 1024)] {
        for batch in first..last {
            write_rows(&store, batch).await;
        }
        let begun = now();
        store.file.fail(StoreFault::failed("an error of the disk"));
        // The writer finds it with the next order.
        assert!(store.note_time().await.is_err());
        while store.status().await.trouble.is_some() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let again = now().saturating_duration_since(begun);
        println!("{} MiB of disk: back {again:?} after an error, {}", place.on_disk() >> 20, resident());
        drop(store);
        let begun = now();
        store = place.open().unwrap();
        println!("a start takes {:?}, {}", now().saturating_duration_since(begun), resident());
    }
}

#[tokio::test]
async fn figures_of_a_large_store() {
    if std::env::var_os("KEYGATE_LONG").is_none() {
        return;
    }
    let place = Place::new();
    let store = Arc::new(place.open().unwrap());
    let mib = |bytes: u64| bytes >> 20;
    println!("empty: {}", resident());
    let begun = Clock::system().mono();
    change(&store, 300_000, Arc::default()).await;
    println!(
        "300,000 changes in {:?}: {} MiB of disk, {}",
        Clock::system().mono().saturating_duration_since(begun),
        mib(place.on_disk()),
        resident()
    );
    let trim = store.write(|tables, _| {
        let mut places = Vec::new();
        for entry in redb::ReadableTable::iter(&*tables.audit)? {
            let (place, _) = entry?;
            let (trail, number) = place.value();
            places.push((*trail, *number));
        }
        for (trail, number) in places.iter().filter(|(_, number)| u64::from_be_bytes(*number) % 16 > 0) {
            tables.audit.remove((trail, number))?;
        }
        Ok(())
    });
    trim.await.unwrap();
    println!("15 of 16 records removed: {} MiB of disk, {}", mib(place.on_disk()), resident());
    // As long as the compaction takes: a disk that others use has rare long waits.
    let (without, _) = under_load(&store, place.path(), tokio::time::sleep(Duration::from_secs(40))).await;
    let compacted = async {
        let done = store.compact(Occasion::Ordered).await.unwrap();
        println!("while it was compacted: {}", resident());
        done
    };
    let (with, done) = under_load(&store, place.path(), compacted).await;
    println!("{}; {}", done.told(), resident());
    println!(
        "the longest waits, of a change and of a file beside it: {without} before, {with} while it was compacted"
    );
    // What is changed meanwhile is in it, too.
    assert!(done.bytes_after < done.bytes_before && done.paused_ms < 500, "{done:?}");
}
