//! Each operation of a compaction fails once, and the power is cut at each: in the copy, while the files change places, and in
//! the first changes after that. Nothing that was answered is lost.
//!
//! Both files are in memory, and are changed meanwhile; in the folder lie empty ones with their names.
//! `KEYGATE_LONG=1 cargo test --lib compaction_faults -- --nocapture` is the long form: every operation.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use fastrand::Rng;
use redb::{Builder, Database, DatabaseError};

use super::disk_faults::{self, KINDS, Kind};
use super::folder::Folder;
use super::mending::{Again, Reopened};
use super::open::{lay_out, open_on};
use super::power_cuts::{self, Client, Power, check, use_until, use_until_it_fails, write};
use super::{Embedded, Settings, again};
use crate::store::StoreFault;
use crate::store::compaction::{Compacted, NotCompacted, Occasion};
use crate::store::keeper::Keeper;
use crate::vocabulary::clock::Clock;
use crate::vocabulary::key::Pepper;
use crate::vocabulary::key::record::{RecordFormat, Sealer};

/// Operations after the change-over that fail, or at which the power is cut, too: some changes.
const AFTER: u64 = 60;

fn is_long() -> bool {
    std::env::var_os("KEYGATE_LONG").is_some()
}

fn sealer() -> Arc<Sealer> {
    Arc::new(Sealer::new(Some(Pepper::new(vec![5; 32]).unwrap())))
}

/// An empty file with the name of the store, in a folder of its own.
fn place() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = fs::canonicalize(folder.path()).unwrap().join("keygate.redb");
    write(&path, b"");
    (folder, path)
}

fn beside(path: &Path) -> PathBuf {
    path.with_extension("redb.compacting")
}

fn start(path: &Path, (database, event): (Database, u64), again: Again) -> Arc<Embedded> {
    Arc::new(
        Embedded::start(path.to_owned(), (database, event), sealer(), Some(again), Clock::system()).unwrap(),
    )
}

/// Content for several steps of the copy.
async fn fill(store: &Embedded) {
    for n in 0..5_u8 {
        let write = store.write(move |tables, _| {
            tables.usage.insert(&[n; 16], &vec![n; 500_000][..])?;
            Ok(())
        });
        write.await.unwrap();
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Moment {
    /// This operation of the new file, before it gets the name.
    Copy(u64),
    Rename,
    SyncOfFolder,
    /// So many operations after that.
    After(u64),
}

/// What is to be tried, if the copy takes so many operations: all in the long form.
fn moments(operations: u64) -> Vec<Moment> {
    let (copy, after) =
        if is_long() { (1, 1) } else { (usize::try_from(operations / 20).unwrap().max(1), 7) };
    let copy = (1..=operations).step_by(copy).map(Moment::Copy);
    let after = (1..=AFTER).step_by(after).map(Moment::After);
    copy.chain([Moment::Rename, Moment::SyncOfFolder]).chain(after).collect()
}

/// Two files in memory, of which one is the store.
#[derive(Debug)]
struct Faulty {
    named: Mutex<disk_faults::Disk>,
    beside: Mutex<disk_faults::Disk>,
    fault: Mutex<Option<(Moment, Kind)>>,
    /// What it took to copy the file and give the copy its name.
    operations: AtomicU64,
}

impl Faulty {
    fn named(&self) -> disk_faults::Disk {
        self.named.lock().unwrap().clone()
    }

    fn beside(&self) -> disk_faults::Disk {
        self.beside.lock().unwrap().clone()
    }

    fn reopen(&self, path: &Path) -> Result<Reopened, StoreFault> {
        let opened = open_on(path, self.named(), RecordFormat::CURRENT).map_err(StoreFault::failed)?;
        again::complete(path, opened.0, opened.1.unwrap(), &sealer())
    }

    /// From the next operation of the new file on the first so many are done, and then one fails, if it is the moment.
    fn fail_at(&self, moment: Moment, done: u64) {
        let fault = *self.fault.lock().unwrap();
        if let Some((_, kind)) = fault.filter(|(at, _)| *at == moment) {
            let beside = self.beside();
            let mut medium = beside.medium();
            medium.fault = Some((medium.operations + 1 + done, 1, kind));
        }
    }

    /// Compacts it under load, while this operation of the new file fails.
    async fn compact(
        &self,
        store: &Arc<Embedded>,
        clients: &mut Vec<Client>,
        fault: Option<(Moment, Kind)>,
    ) -> Result<Compacted, NotCompacted> {
        *self.beside.lock().unwrap() = disk_faults::Disk::default();
        *self.fault.lock().unwrap() = fault;
        if let Some((moment @ Moment::Copy(number), _)) = fault {
            self.fail_at(moment, number - 1);
        }
        let over = Arc::new(AtomicBool::new(false));
        let compact = async {
            let done = store.compact(Occasion::Ordered).await;
            // So that what fails among the first changes after it is met, too.
            for _ in 0..AFTER {
                tokio::task::yield_now().await;
            }
            over.store(true, Ordering::SeqCst);
            done
        };
        let (done, _) = tokio::join!(compact, use_until(Arc::clone(store), clients, Arc::clone(&over)));
        done
    }
}

impl Folder for Faulty {
    fn open(&self, _: &File, builder: &Builder) -> Result<Database, DatabaseError> {
        builder.create_with_backend(self.beside())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.fail_at(Moment::Rename, 0);
        let beside = self.beside();
        beside.act(|_| fs::rename(from, to), |_| ())?;
        *self.named.lock().unwrap() = beside;
        Ok(())
    }

    fn sync(&self, _: &Path) -> io::Result<()> {
        self.fail_at(Moment::SyncOfFolder, 0);
        let beside = self.beside();
        beside.act(|_| Ok(()), |_| ())?;
        self.operations.store(beside.medium().operations, Ordering::SeqCst);
        let fault = *self.fault.lock().unwrap();
        if let Some((moment @ Moment::After(number), _)) = fault {
            self.fail_at(moment, number - 1);
        }
        Ok(())
    }
}

fn faulty() -> (tempfile::TempDir, PathBuf, Arc<Faulty>, Arc<Embedded>) {
    let (kept, path) = place();
    let old = disk_faults::Disk::default();
    let folder = Arc::new(Faulty {
        named: Mutex::new(old.clone()),
        beside: Mutex::default(),
        fault: Mutex::default(),
        operations: AtomicU64::new(0),
    });
    let (own, there) = (Arc::clone(&folder), path.clone());
    let reopen = Box::new(move || own.reopen(&there));
    let store = start(&path, old.open(), Again { reopen, reserve: None, folder: folder.clone() });
    (kept, path, folder, store)
}

#[tokio::test]
async fn whichever_operation_of_a_compaction_fails_nothing_answered_is_lost_and_the_next_one_works() {
    let (_kept, _, folder, store) = faulty();
    fill(&store).await;
    folder.compact(&store, &mut vec![Client::new(0)], None).await.unwrap();
    let moments = moments(folder.operations.load(Ordering::SeqCst));
    let (mut failed, mut done) = (0, 0);
    // A store for a few of them: what the clients know is compared with all of it each time.
    for (round, moments) in moments.chunks(8).enumerate() {
        let (_kept, path, folder, store) = faulty();
        fill(&store).await;
        let mut clients: Vec<Client> = (0..3).map(Client::new).collect();
        for (n, &moment) in moments.iter().enumerate() {
            let kind = KINDS[(round + n) % KINDS.len()];
            let before = folder.named();
            match folder.compact(&store, &mut clients, Some((moment, kind))).await {
                Ok(_) => {
                    assert!(!folder.named().is(&before));
                    done += 1;
                }
                Err(NotCompacted::Uncopied(_) | NotCompacted::Fault(_)) => {
                    assert!(folder.named().is(&before), "{kind:?} at {moment:?}");
                    assert!(matches!(moment, Moment::Copy(_) | Moment::Rename), "{kind:?} at {moment:?}");
                    failed += 1;
                }
                Err(other) => panic!("{other} after {kind:?} at {moment:?}"),
            }
            assert!(!beside(&path).exists(), "{kind:?} at {moment:?}");
            while let Some(trouble) = store.status().await.trouble {
                assert!(trouble.contains("opened again"), "{trouble}");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            check(&store, &mut clients, n as u64).await;
            folder.beside().medium().fault = None;
        }
        folder.compact(&store, &mut clients, None).await.unwrap();
        check(&store, &mut clients, 0).await;
    }
    println!("{failed} compactions failed, {done} came to their end although a later operation failed");
    assert!(failed > 10 && done > 0, "{failed} and {done} prove nothing");
}

/// Which file has the name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Name {
    Old,
    /// The folder was not synced.
    Either,
    New,
}

/// Two files on a machine whose power is cut.
#[derive(Debug)]
struct Powered {
    power: Power,
    new: power_cuts::Disk,
    name: Mutex<Name>,
    at: Moment,
    /// What was left when the new file had its name.
    left: AtomicU64,
}

impl Powered {
    fn cut_at(&self, moment: Moment, left: u64) {
        if self.at == moment {
            self.power.set(left);
        }
    }
}

impl Folder for Powered {
    fn open(&self, _: &File, builder: &Builder) -> Result<Database, DatabaseError> {
        builder.create_with_backend(self.new.clone())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.cut_at(Moment::Rename, 1);
        if self.power.left() == 0 {
            return Err(io::Error::other("the power is cut"));
        }
        fs::rename(from, to)?;
        *self.name.lock().unwrap() = Name::Either;
        self.power.step()
    }

    fn sync(&self, _: &Path) -> io::Result<()> {
        self.cut_at(Moment::SyncOfFolder, 1);
        self.power.step()?;
        *self.name.lock().unwrap() = Name::New;
        self.left.store(self.power.left(), Ordering::SeqCst);
        if let Moment::After(number) = self.at {
            self.power.set(number);
        }
        Ok(())
    }
}

/// More than there are.
const NO_CUT: u64 = 1 << 40;

/// Cuts the power then. Returns how many operations it took to give the new file its name, and which file had it.
async fn cut(content: &[u8], at: Moment, seed: u64) -> (u64, Name) {
    let (_kept, path) = place();
    let mut rng = Rng::with_seed(seed);
    let power = Power::new(NO_CUT);
    let old = power_cuts::Disk::of(content.to_vec(), power.clone(), false, rng.fork());
    let new = power_cuts::Disk::of(Vec::new(), power.clone(), true, rng.fork());
    let folder = Arc::new(Powered {
        power: power.clone(),
        new: new.clone(),
        name: Mutex::new(Name::Old),
        at,
        left: AtomicU64::new(0),
    });
    let (database, event) = open_on(&path, old.clone(), RecordFormat::CURRENT).unwrap();
    let reopen = Box::new(|| Err(StoreFault::failed("the power is cut")));
    let again = Again { reopen, reserve: None, folder: folder.clone() };
    let store = start(&path, (database, event.unwrap()), again);
    let mut clients: Vec<Client> = (0..3).map(|n| Client::new(seed * 3 + n)).collect();
    if let Moment::Copy(number) = at {
        power.set(number);
    }
    let (done, answered) = tokio::join!(
        async {
            let done = store.compact(Occasion::Ordered).await;
            assert!(done.is_ok() || power.left() == 0, "{done:?}");
            if power.left() > AFTER * 2 {
                power.set(AFTER);
            }
            done
        },
        use_until_it_fails(Arc::clone(&store), &mut clients)
    );
    let operations = NO_CUT.saturating_sub(folder.left.load(Ordering::SeqCst));
    let name = *folder.name.lock().unwrap();
    assert!(done.is_err() || name != Name::Old);
    drop(store);

    let leads_to_new = name == Name::New || (name == Name::Either && rng.bool());
    let (survived, _) = if leads_to_new { &new } else { &old }.survivors(&mut rng);
    let found = path.with_file_name("found.redb");
    write(&found, &survived);
    if !leads_to_new {
        write(&beside(&found), &new.survivors(&mut rng).0);
    }
    let store = Embedded::open(&Settings { path: found.clone() }, (*sealer()).clone()).unwrap();
    assert!(!beside(&found).exists());
    let in_doubt = clients.iter().filter(|client| client.in_doubt.is_some()).count() as u64;
    check(&store, &mut clients, seed).await;
    let (event, last) = (store.status().await.events.unwrap(), answered.last_event);
    assert!((last..=last + in_doubt).contains(&event), "{at:?}: {event}, {last}");
    (operations, name)
}

#[tokio::test]
async fn wherever_the_power_is_cut_in_a_compaction_the_file_with_the_name_has_all_that_was_answered() {
    let (_kept, path) = place();
    let disk = power_cuts::Disk::of(Vec::new(), Power::new(NO_CUT), false, Rng::with_seed(0));
    let (database, _) = open_on(&path, disk.clone(), RecordFormat::CURRENT).unwrap();
    lay_out(&database).unwrap();
    let reopen = Box::new(|| Err(StoreFault::failed("it does not fail")));
    let folder = Arc::new(super::folder::OnDisk);
    let store = start(&path, (database, 0), Again { reopen, reserve: None, folder });
    fill(&store).await;
    drop(store);
    let content = disk.content();
    let (operations, _) = cut(&content, Moment::Copy(NO_CUT), 0).await;
    let (mut old, mut either, mut new) = (0, 0, 0);
    for (at, seed) in moments(operations).into_iter().zip(1..) {
        match cut(&content, at, seed).await.1 {
            Name::Old => old += 1,
            Name::Either => either += 1,
            Name::New => new += 1,
        }
    }
    println!(
        "the power was cut {old} times with the name at the old file, {either} at either, {new} at the new one"
    );
    assert!(old > 5 && either > 0 && new > 0, "{old}, {either} and {new} prove nothing");
}
