//! Random interleavings of everything that happens to keys, on the real cache and the real fence: whatever
//! comes between whatever, nobody who is told of a key's end lets it in afterwards.
//!
//! `KEYGATE_LONG=1 cargo test --lib interleavings -- --nocapture` is the long form, of a million: four minutes of
//! one core.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::ops::Range;

use fastrand::Rng;

use super::*;

/// The short form.
const INTERLEAVINGS: u64 = 4_000;
/// The long one.
const LONG: u64 = 1_000_000;
/// How many share a cache, one after the other.
const SHARING: usize = 16;
/// The steps of one interleaving, before everything is let go on.
const STEPS: usize = 24;
/// How often tasks get their turn after a step, at most.
const TURNS: usize = 4;
/// How long a process that is cut off from the store may let anybody in.
const AT_MOST_CUT_OFF: Duration = Duration::from_secs(360);
/// Keys of one interleaving, two in each organisation.
const KEYS: u64 = 4;

/// One interleaving. It meets what those before it left in the cache.
struct Interleaving<'b> {
    bench: &'b Bench,
    threads: [Rc<ThreadCache<Bare>>; 2],
    random: Rng,
    /// The first number of its keys and organisations.
    first: u64,
    digests: Vec<Digest>,
    next_digest: u64,
    /// Digests whose revocation was confirmed to whoever asked for it. No store takes that back.
    revoked: Rc<RefCell<Vec<Digest>>>,
    /// Those that this process cannot have heard of, being cut off; and since when it is.
    unheard: Vec<Digest>,
    cut_off: Rc<Cell<Option<Instant>>>,
    story: Rc<RefCell<String>>,
}

#[test]
fn no_interleaving_brings_a_key_back() {
    let wanted = if std::env::var_os("KEYGATE_LONG").is_some() { LONG } else { INTERLEAVINGS };
    let began = Clock::system().mono();
    let mut admitted = 0;
    for first in (0..wanted).step_by(SHARING) {
        admitted += run(first..wanted.min(first + SHARING as u64));
    }
    let took = Clock::system().mono() - began;
    println!("{wanted} interleavings in {took:?}, {admitted} requests let in");
    assert!(admitted > wanted, "a cache that lets nobody in proves nothing");
}

/// Runs these, and gives the number of requests that were let in.
fn run(numbers: Range<u64>) -> u64 {
    // Some have hardly a place for their lookups, and wait.
    let max_lookups = [256, 1, 2][numbers.start as usize / SHARING % 3];
    let bench = Bench::with(Settings {
        capacity: 64,
        max_lookups,
        lookup_timeout: Duration::from_secs(3600),
        ..Settings::default()
    });
    let mut revived = bench.cache.revived().unwrap();
    let threads = [(); 2].map(|()| Rc::new(ThreadCache::new(Arc::clone(&bench.cache))));
    let mut admitted = 0;
    LocalSet::new().block_on(&bench.runtime, async {
        for number in numbers {
            admitted += Interleaving::begin(&bench, &threads, number).run().await;
            while revived.try_recv().is_ok() {}
        }
    });
    admitted
}

impl<'b> Interleaving<'b> {
    fn begin(bench: &'b Bench, threads: &[Rc<ThreadCache<Bare>>; 2], number: u64) -> Self {
        let first = number * 1000;
        {
            let mut books = bench.model.books();
            // Nothing is lost that lies before this.
            books.before.clear();
            books.now = State::default();
            books.stepped = true;
        }
        let digests = (0..KEYS).map(|n| bench.model.make(first + n, first + n / 2)).collect();
        Self {
            bench,
            threads: threads.clone(),
            random: Rng::with_seed(number),
            first,
            digests,
            next_digest: first + KEYS,
            revoked: Rc::default(),
            unheard: Vec::new(),
            cut_off: Rc::default(),
            story: Rc::new(RefCell::new(format!("interleaving {number}:"))),
        }
    }

    /// Gives the number of requests that were let in.
    async fn run(mut self) -> u64 {
        let mut asking = Vec::new();
        for _ in 0..STEPS {
            self.step(&mut asking).await;
            for _ in 0..self.random.usize(..=TURNS) {
                yield_now().await;
            }
        }
        // Everything goes on to its end, and then the truth is told.
        self.bench.model.fail(false);
        self.bench.model.spare(false);
        self.rejoin();
        self.bench.model.notice();
        self.bench.model.books().stepped = false;
        while !self.bench.model.books().waiting.is_empty() || self.bench.cache.is_loading() {
            self.bench.model.step(0);
            yield_now().await;
        }
        let mut admitted = 0;
        for one in asking {
            admitted += u64::from(one.await.unwrap());
        }
        self.bench.shift.advance(Duration::from_secs(6));
        for digest in self.digests.clone() {
            let let_in = self.ask(0, digest).await.unwrap();
            assert_eq!(
                let_in,
                self.should_be_let_in(&digest),
                "in the end {digest:?}: {}",
                self.story.borrow()
            );
            admitted += u64::from(let_in);
        }
        admitted
    }

    async fn step(&mut self, asking: &mut Vec<JoinHandle<bool>>) {
        let digest = self.digests[self.random.usize(..self.digests.len())];
        let model = &self.bench.model;
        match self.random.u32(..100) {
            0..32 => {
                let thread = self.random.usize(..2);
                self.tell(format_args!("ask {digest:?} at {thread}"));
                asking.push(self.ask(thread, digest));
            }
            32..64 => model.step(self.random.usize(..8)),
            64..70 => self.revoke(digest),
            70..75 => self.rotate(digest),
            75..79 => self.toggle(digest),
            79..84 => self.suspend_or_resume(),
            84..86 => self.expire(digest),
            86..88 => self.cut_off(),
            88..90 => self.rejoin(),
            90..92 => {
                let lost = self.random.usize(1..4);
                self.tell(format_args!("lose {lost}"));
                model.lose(lost);
            }
            92..95 => {
                self.tell(format_args!("notice"));
                model.notice();
            }
            95..97 => {
                let (failing, spared) = (self.random.bool(), self.random.bool());
                self.tell(format_args!("failing {failing}, spared {spared}"));
                model.fail(failing);
                model.spare(spared);
            }
            97..99 => {
                let by = self.random.u64(1..80);
                self.tell(format_args!("advance {by}"));
                self.bench.advance(by);
            }
            _ if asking.is_empty() => {}
            _ => {
                self.tell(format_args!("a client leaves"));
                asking.swap_remove(self.random.usize(..asking.len())).abort();
            }
        }
    }

    /// A request, in a task of its own. Whatever is let in must have the right to it at that moment.
    fn ask(&self, thread: usize, digest: Digest) -> JoinHandle<bool> {
        let thread = Rc::clone(&self.threads[thread]);
        let (clock, model) = (self.bench.clock.clone(), Arc::clone(&self.bench.model));
        let (revoked, story) = (Rc::clone(&self.revoked), Rc::clone(&self.story));
        let cut_off = Rc::clone(&self.cut_off);
        tokio::task::spawn_local(async move {
            let told = ask(&thread, digest, &clock, digest.leading() as u8 % 2).await;
            let let_in = !["absent", "dead", "unavailable", "exhausted"].contains(&told);
            if let_in {
                let _ = write!(story.borrow_mut(), " [{digest:?} let in: {told}]");
                assert!(!revoked.borrow().contains(&digest), "a revoked key is back: {}", story.borrow());
                let cut_off = cut_off.get().map(|since| clock.mono().saturating_duration_since(since));
                assert!(cut_off < Some(AT_MOST_CUT_OFF), "cut off, and going on: {}", story.borrow());
                // What the store has lost and nobody has noticed yet, nobody here can know of. Otherwise what
                // it says counts.
                let books = model.books();
                if books.event == books.told {
                    let alive =
                        books.now.find(&digest).is_some_and(|found| is_alive(&found, &digest, &clock));
                    assert!(alive, "a dead key is let in: {}", story.borrow());
                }
            }
            let books = model.books();
            if told == "absent" && (books.event == books.told || books.past.is_some()) {
                let alive = books.now.find(&digest).is_some_and(|found| is_alive(&found, &digest, &clock));
                // One that the store has brought back may be called what it is.
                assert!(
                    !alive || revoked.borrow().contains(&digest),
                    "a good key is called wrong: {}",
                    story.borrow()
                );
            }
            let_in
        })
    }

    fn should_be_let_in(&self, digest: &Digest) -> bool {
        let alive = |found| is_alive(&found, digest, &self.bench.clock);
        let found = self.bench.model.books().now.find(digest);
        found.is_some_and(alive) && !self.revoked.borrow().contains(digest)
    }

    /// Changes the key that the digest opens, if nothing keeps a mutation from being made: a store that has
    /// lost what its writer knows refuses it.
    fn change(
        &self,
        what: &str,
        digest: Digest,
        subjects: impl FnOnce(&KeyRecord) -> Vec<Subject>,
        change: impl FnOnce(&mut KeyRecord),
    ) -> Option<KeyRecord> {
        let found = {
            let books = self.bench.model.books();
            if !is_writable(&books) {
                return None;
            }
            books.now.find(&digest)?
        };
        self.tell(format_args!("{what} {digest:?}"));
        let id = found.key.id.to_bytes();
        self.bench.model.change(&subjects(&found.key), |state| {
            if let Some(key) = state.keys.get_mut(&id) {
                change(key);
            }
        });
        Some(found.key)
    }

    fn revoke(&mut self, digest: Digest) {
        let all =
            |key: &KeyRecord| key.secrets.iter().map(|secret| Subject::Revoked(secret.digest)).collect();
        if let Some(key) = self.change("revoke", digest, all, |key| key.revoked_at = Some(UnixMillis(1))) {
            self.note_revoked(&key);
        }
    }

    fn note_revoked(&mut self, key: &KeyRecord) {
        let digests = key.secrets.iter().map(|secret| secret.digest);
        if self.cut_off.get().is_some() {
            self.unheard.extend(digests);
        } else {
            self.revoked.borrow_mut().extend(digests);
        }
    }

    /// With an overlap, or ending the secret at once and for ever.
    fn rotate(&mut self, digest: Digest) {
        let (new, overlap) = (digest_of(self.next_digest), self.random.bool());
        let ends_at = self.bench.clock.now().wall.plus(Duration::from_secs(self.random.u64(1..60)));
        let subjects = |key: &KeyRecord| {
            let ended = |digest| if overlap { Subject::Digest(digest) } else { Subject::Revoked(digest) };
            key.secrets.iter().map(|secret| ended(secret.digest)).collect()
        };
        let before = self.change(if overlap { "overlap" } else { "replace" }, digest, subjects, |key| {
            if !overlap {
                key.secrets.clear();
            }
            for secret in &mut key.secrets {
                secret.ends_at = Some(secret.ends_at.map_or(ends_at, |before| before.min(ends_at)));
            }
            key.secrets.insert(
                0,
                Secret {
                    digest: new,
                    last_four: String::new(),
                    prefix: None,
                    ends_at: None,
                    further: Further::default(),
                },
            );
        });
        if let Some(key) = before {
            self.next_digest += 1;
            self.digests.push(new);
            if !overlap {
                self.note_revoked(&key);
            }
        }
    }

    /// Disables the key, or enables it again.
    fn toggle(&self, digest: Digest) {
        self.change("toggle", digest, touched, |key| {
            key.disabled_at = if key.disabled_at.is_some() { None } else { Some(UnixMillis(1)) };
        });
    }

    /// Gives the key an end.
    fn expire(&mut self, digest: Digest) {
        let end = self.bench.clock.now().wall.plus(Duration::from_secs(self.random.u64(0..60)));
        self.change("expire", digest, touched, |key| key.expires_at = Some(end));
    }

    fn suspend_or_resume(&mut self) {
        let org = org_of(self.first + self.random.u64(..KEYS / 2)).id;
        let model = &self.bench.model;
        {
            let books = model.books();
            if !is_writable(&books) {
                return;
            }
        }
        self.tell(format_args!("suspend or resume {org}"));
        model.change(&[Subject::Org(org)], |state| {
            let org = state.orgs.get_mut(&org.to_bytes()).unwrap();
            org.suspended_at = if org.suspended_at.is_some() { None } else { Some(UnixMillis(1)) };
        });
    }

    /// Leaves this process with a server that has been replaced.
    fn cut_off(&mut self) {
        let model = &self.bench.model;
        {
            let books = model.books();
            if books.past.is_some() || books.event != books.told {
                return;
            }
        }
        let ago = Duration::from_secs(self.random.u64(0..3));
        self.tell(format_args!("cut off {ago:?} ago"));
        self.cut_off.set(Some(self.bench.clock.mono() - ago));
        model.cut_off(ago);
    }

    fn rejoin(&mut self) {
        self.tell(format_args!("rejoin"));
        self.bench.model.rejoin();
        self.cut_off.set(None);
        self.revoked.borrow_mut().append(&mut self.unheard);
    }

    fn tell(&self, what: std::fmt::Arguments<'_>) {
        let _ = write!(self.story.borrow_mut(), " {what},");
    }
}

/// A store that has lost what its writer knows takes no mutation; one that only this process does not see takes any.
fn is_writable(books: &Books) -> bool {
    !books.failing && (books.event == books.told || books.past.is_some())
}

fn touched(key: &KeyRecord) -> Vec<Subject> {
    key.secrets.iter().map(|secret| Subject::Digest(secret.digest)).collect()
}

fn is_alive(found: &Found, digest: &Digest, clock: &Clock) -> bool {
    let attempt = Attempt { digest, environment: Environment::Live, needs: None, now: clock.now().wall };
    admit(&found.key, &found.org, &attempt, || None).is_ok()
}
