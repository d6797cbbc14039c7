//! keygate, its clients and its upstreams in one thread, so that "nothing more happens" can be seen: no task moves.

use std::cell::{Cell, RefCell};
use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use keygate::api::Api;
use keygate::app::{Control, KeyTools, open_store};
use keygate::config::Config;
use keygate::downstream::connection::Serving;
use keygate::downstream::in_memory;
use keygate::gateway::{Experience, Gateway, Plan, Shapes, Shared, Shares};
use keygate::lifecycle::{Lifecycle, NewKey, Origin};
use keygate::store::Store;
use keygate::store::cache::ReadThrough;
use keygate::store::measured::MeasuredStore;
use keygate::telemetry::metrics::{Metrics, State};
use keygate::telemetry::{RecordSettings, RecordWriter, RequestLog};
use keygate::upstream::budget::Budget;
use keygate::upstream::loaded::load;
use keygate::vocabulary::clock::Clock;
use keygate::vocabulary::key::scope::{Scope, ScopeSet};
use keygate::vocabulary::key::{Environment, KeyFormat, Prefix};
use keygate::vocabulary::peer::Peer;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

use super::identity::{CLIENT, Key, Keys};
use super::policy;
use super::script::Script;
use super::upstream::{Recorder, listen, start};
use super::verdict::{self, Client};

/// How often all tasks have their turn without anything moving before nothing more is expected to.
const QUIET: usize = 48;
/// How long an answer that must come may take, since a lookup has threads of its own.
const PATIENCE: Duration = Duration::from_secs(10);
/// The bytes that may be under way in each direction: more than a script sends.
const PIPE: usize = 1 << 20;
/// Scripts between two looks at the metrics.
const LOOKED_AT_AFTER: u64 = 64;

/// One gateway and what is around it.
#[derive(Debug)]
pub(crate) struct World {
    runtime: LocalRuntime,
    gateway: Rc<Gateway>,
    serving: Rc<Serving>,
    metrics: Metrics,
    recorder: Rc<Recorder>,
    keys: Keys,
    tally: Tally,
    /// The store's threads.
    _control: Control,
}

/// What the scripts so far must have counted.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    scripts: u64,
    forwarded: u64,
    answered: u64,
    /// Since the metrics were looked at.
    answers: u64,
    at_most: u64,
    /// What they said then; `None` after a script of whose requests nobody can tell how many there were.
    counted: Option<u64>,
}

/// What came out of a world so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Totals {
    pub(crate) scripts: u64,
    pub(crate) forwarded: u64,
    pub(crate) answers: u64,
}

impl World {
    /// Starts it, with a store whose file has no name any more.
    pub(crate) fn start() -> Self {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build_local(LocalOptions::default())
            .expect("a runtime starts");
        let recorder = Rc::<Recorder>::default();
        let mut upstreams = String::new();
        runtime.block_on(async {
            for name in ["api", "files"] {
                let _ = writeln!(upstreams, "[upstreams.{name}]");
                for environment in ["live", "test"] {
                    let (listener, address) = listen().await;
                    start(listener, name, environment == "live", Rc::clone(&recorder));
                    let _ = writeln!(upstreams, "{environment} = [\"http://{address}\"]");
                }
            }
        });
        let folder = TempDir::new().expect("there is room");
        let config = configuration(&folder, &upstreams);
        let (clock, control) = (Clock::system(), Control::start().expect("a thread starts"));
        let tools = KeyTools::new(&config.keys).expect("it has no secrets");
        let store =
            open_store(&config.store, tools.sealer.clone(), control.handle(), &clock).expect("it is new");
        drop(folder);
        let (store, meter) = MeasuredStore::new(store, clock.clone());
        let store: Arc<dyn Store> = store;
        let lifecycle = Arc::new(Lifecycle::new(
            Arc::clone(&store),
            tools.lifecycle(config.signup, &config.retention),
            config.scopes.clone(),
            clock.clone(),
        ));
        let keys = control.handle().block_on(make_keys(&lifecycle));
        let cache = ReadThrough::new(config.cache, 1000, store, control.handle().clone(), clock.clone());
        let budget = Budget::new(1000);
        let loaded = load(config.upstreams).expect("it names no files");
        let shared = Shared {
            plan: Arc::new(Plan::new(config.gateway, config.routes, loaded, &Experience::none(1))),
            shapes: Arc::new(Shapes { format: tools.format, only_these: None }),
            keys: cache,
            shares: Arc::new(Shares::new(budget.clone(), 1)),
            budget,
            api: Some(Api::new(lifecycle, control.handle().clone())),
            clock,
        };
        let metrics = Metrics::new(meter);
        let records =
            RecordWriter::start(&RecordSettings { format: RequestLog::Off, ..RecordSettings::default() })
                .expect("nothing starts");
        let gateway = Gateway::new(shared, Rc::new(records.sink()), metrics.cells());
        let serving = Rc::new(Serving { watchdog: config.watchdog, tls: None });
        let tally = Tally::default();
        Self { runtime, gateway, serving, metrics, recorder, keys, tally, _control: control }
    }

    /// Sends a script, and compares what came of it with what may.
    ///
    /// # Errors
    /// What does not hold.
    pub(crate) fn check(&mut self, text: &[u8]) -> Result<(), String> {
        let script = Script::read(text, &self.keys);
        self.recorder.forget();
        if self.tally.counted.is_none() {
            let counted = Some(self.counted()?);
            self.tally = Tally { answers: 0, at_most: 0, counted, ..self.tally };
        }
        let client = self.runtime.block_on(self.run(&script));
        let received = self.recorder.received.borrow().clone();
        let odd = self.recorder.odd.borrow().clone();
        let judged = match odd.first() {
            Some(bytes) => Err(format!("an upstream got {:?}", String::from_utf8_lossy(bytes))),
            None => verdict::judge(&script, &client, &received, &self.keys),
        };
        let counted = judged.and_then(|counted| {
            self.tally.scripts += 1;
            self.tally.forwarded += received.len() as u64;
            self.tally.answered += counted.answers;
            self.tally.answers += counted.answers;
            match counted.at_most {
                Some(at_most) => self.tally.at_most += at_most,
                None => self.tally.counted = None,
            }
            if self.tally.scripts.is_multiple_of(LOOKED_AT_AFTER) { self.check_counts() } else { Ok(()) }
        });
        counted.map_err(|why| {
            let [sent, answered] = [&script.bytes(), &client.output].map(|bytes| shown(bytes));
            format!("{why}\nscript:\n{}\nsent: {sent}\nanswered: {answered}", String::from_utf8_lossy(text))
        })
    }

    pub(crate) const fn totals(&self) -> Totals {
        Totals { forwarded: self.tally.forwarded, answers: self.tally.answered, scripts: self.tally.scripts }
    }

    async fn run(&self, script: &Script) -> Client {
        let (near, far) = tokio::io::duplex(PIPE);
        let peer = Peer::new(SocketAddr::new(CLIENT.parse().expect("it is an address"), 4242));
        let (gateway, serving, recorder) =
            (Rc::clone(&self.gateway), Rc::clone(&self.serving), Rc::clone(&self.recorder));
        let connection = tokio::task::spawn_local(async move {
            in_memory::serve(far, peer, gateway, &serving).await;
            recorder.note();
        });
        let (reading, mut writing) = tokio::io::split(near);
        let heard = Rc::new(Heard::default());
        let listening =
            tokio::task::spawn_local(listen_to(reading, Rc::clone(&heard), Rc::clone(&self.recorder)));
        for piece in &script.pieces {
            if writing.write_all(piece).await.is_err() {
                break;
            }
            self.settle().await;
        }
        let begun = tokio::time::Instant::now();
        while !verdict::is_settled(script, &heard.client()) && begun.elapsed() < PATIENCE {
            tokio::time::sleep(Duration::from_millis(1)).await;
            self.settle().await;
        }
        let mut client = heard.client();
        // The client goes away, in both directions.
        listening.abort();
        let _ = listening.await;
        drop(writing);
        client.is_left = tokio::time::timeout(PATIENCE, connection).await.is_err();
        self.settle().await;
        if self.tally.scripts.is_multiple_of(LOOKED_AT_AFTER) {
            self.gateway.sweep();
        }
        client
    }

    /// Lets every task run until nothing moves.
    async fn settle(&self) {
        let (mut quiet, mut before) = (0, self.recorder.progress.get());
        while quiet < QUIET {
            tokio::task::yield_now().await;
            let now = self.recorder.progress.get();
            quiet = if now == before { quiet + 1 } else { 0 };
            before = now;
        }
    }

    /// # Errors
    /// When the metrics have counted other numbers of requests than the clients and the upstreams.
    fn check_counts(&self) -> Result<(), String> {
        let counted = self.counted()?;
        let Tally { answers, at_most, counted: before, .. } = self.tally;
        let Some(before) = before else { return Ok(()) };
        if counted < before + answers || counted > before + at_most {
            return Err(format!(
                "{} requests were counted; there were {answers} to {at_most}",
                counted - before
            ));
        }
        Ok(())
    }

    /// The number of requests that were counted since the start.
    ///
    /// # Errors
    /// When one is still in flight.
    fn counted(&self) -> Result<u64, String> {
        let text = self.metrics.render(&State::default()).map_err(|error| error.to_string())?;
        let text = String::from_utf8_lossy(&text);
        let sum = |name: &str| -> u64 {
            let lines = text.lines().filter(|line| line.split(['{', ' ']).next() == Some(name));
            lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok()).sum::<f64>() as u64
        };
        let (counted, in_flight) = (sum("keygate_requests_total"), sum("keygate_requests_in_flight"));
        if in_flight > 0 {
            return Err(format!("{in_flight} requests are in flight, and no client is there"));
        }
        Ok(counted)
    }
}

fn shown(bytes: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]))
}

/// What a client has heard so far.
#[derive(Debug, Default)]
struct Heard {
    output: RefCell<Vec<u8>>,
    is_closed: Cell<bool>,
}

impl Heard {
    fn client(&self) -> Client {
        Client { output: self.output.borrow().clone(), is_closed: self.is_closed.get(), is_left: false }
    }
}

async fn listen_to(mut stream: ReadHalf<DuplexStream>, heard: Rc<Heard>, recorder: Rc<Recorder>) {
    let mut part = vec![0; 16 << 10];
    loop {
        match stream.read(&mut part).await {
            Ok(length) if length > 0 => heard.output.borrow_mut().extend_from_slice(&part[..length]),
            _ => {
                heard.is_closed.set(true);
                recorder.note();
                return;
            }
        }
        recorder.note();
    }
}

fn configuration(folder: &TempDir, upstreams: &str) -> Config {
    let toml = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n[store]\nkind = \"embedded\"\npath = \"keygate.redb\"\n[ops]\nlisten = \
         \"off\"\n[log]\nrequests = \"off\"\n[policy]\nfile = \"policy.toml\"\n{upstreams}"
    );
    let file = folder.path().join("keygate.toml");
    fs::write(&file, toml).expect("there is room");
    fs::write(folder.path().join("policy.toml"), policy::toml()).expect("there is room");
    Config::load(&file, []).unwrap_or_else(|mistakes| panic!("{mistakes}"))
}

/// The keys by name, with their scopes, and whether they open anything.
const KEYS: [(&str, Environment, &[&str], bool); 7] = [
    ("reader", Environment::Live, &["read"], true),
    ("writer", Environment::Live, &["read", "write"], true),
    ("filer", Environment::Live, &["files"], true),
    ("admin", Environment::Live, &policy::SCOPES, true),
    ("sandbox", Environment::Test, &["read", "write", "files"], true),
    ("revoked", Environment::Live, &policy::SCOPES, false),
    ("disabled", Environment::Test, &policy::SCOPES, false),
];

async fn make_keys(lifecycle: &Lifecycle) -> Keys {
    let origin = Origin::operator("fuzz");
    lifecycle.keeper().begin().await.expect("the store works");
    let org = lifecycle.create_org(&origin, "an organisation").await.expect("the store works").id;
    let mut keys = Vec::new();
    for (name, environment, scopes, works) in KEYS {
        let set: ScopeSet = scopes.iter().map(|scope| Scope::parse(scope).expect("it is one")).collect();
        let new = NewKey { scopes: Some(set), ..NewKey::named(org, name, environment) };
        let made = lifecycle.create_key(&origin, new).await.expect("the store works");
        match name {
            "revoked" => drop(lifecycle.revoke_key(&origin, made.key.id).await.expect("the store works")),
            "disabled" => drop(lifecycle.disable_key(&origin, made.key.id).await.expect("the store works")),
            _ => {}
        }
        let is_live = environment == Environment::Live;
        let (secret, id) = (made.secret.expose().to_owned(), made.key.id.to_string());
        keys.push(Key { name, secret, id, is_live, scopes, works });
    }
    let guess = KeyFormat::new(&Prefix::default(), false).mint(Environment::Live).expect("there is chance");
    let secret = guess.expose().to_owned();
    keys.push(Key { name: "unknown", secret, id: "-".to_owned(), is_live: true, scopes: &[], works: false });
    Keys { keys, org: org.to_string() }
}
