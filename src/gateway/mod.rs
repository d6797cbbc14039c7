//! The way of a request through its stages: [`handle`] calls `pass`, which shows them all.
//!
//! ```text
//! guard → route → authenticate → authorize → forward | serve → respond
//!   400              401, 403   400, 404, 403  413, 502–504
//! ```
//!
//! Each stage takes what only the stage before it can make: routes are found for a [`CanonicalRequest`], and nothing is
//! forwarded without a `Permit`. The first two stages are in the [`policy`](crate::policy), the others are files here. On
//! a cache hit no stage waits, takes a lock or leaves its thread, unless its client has as much in flight as it may.

mod authenticate;
mod authorize;
mod browser;
mod caller;
mod crowds;
mod cut;
mod eras;
mod event_stream;
mod exchange;
mod forward;
mod grpc;
pub mod headers;
mod in_flight;
mod operation;
mod respond;
mod response_body;
mod shares;
mod snapshot;
mod tunnel;
mod usage;

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderMap, Method, Request, Response};
use tokio::sync::Notify;

use self::authenticate::authenticate;
use self::authorize::{Permit, authorize};
use self::caller::Prepared;
use self::eras::Eras;
use self::event_stream::EventStreams;
use self::exchange::Exchange;
use self::forward::{Forwarded, forward};
use self::in_flight::InFlight;
use self::operation::serve;
use self::shares::ThreadShares;
use self::snapshot::Snapshot;
use self::usage::UsageNotes;
use crate::api::{Answer, Api};
use crate::policy::request::{CanonicalRequest, Limits};
use crate::policy::route::Route;
use crate::policy::target::Target;
use crate::store::cache::{ReadThrough, ThreadCache};
use crate::telemetry::RecordSink;
use crate::telemetry::metrics::{Cells, OTHER_METHOD, method_label};
use crate::upstream::budget::Budget;
use crate::upstream::client_body::ClientBody;
use crate::upstream::early_hints::EarlyHints;
use crate::vocabulary::browser_keys::BrowserKeys;
use crate::vocabulary::clock::{Clock, Now};
use crate::vocabulary::id::IdSource;
use crate::vocabulary::peer::Peer;
use crate::vocabulary::rejection::Rejection;

pub use self::crowds::{Crowds, SeenCrowd};
pub use self::cut::Cut;
pub use self::response_body::ResponseBody;
pub use self::shares::{Room, Shares};
pub use self::snapshot::{Experience, Plan, Shapes};
pub use self::tunnel::{Departure, Tunnel};

/// The settings of the request path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub limits: Limits,
    pub headers: headers::Settings,
    /// The handling of live keys that a browser sends, on routes that do not say otherwise.
    pub browser_keys: BrowserKeys,
    /// How long a client may pause while it sends a body.
    pub body_idle_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            headers: headers::Settings::default(),
            browser_keys: BrowserKeys::default(),
            body_idle_timeout: Duration::from_secs(30),
        }
    }
}

/// The parts that the gateways of all workers share.
#[derive(Clone, Debug)]
pub struct Shared {
    pub plan: Arc<Plan>,
    /// What keys may look like, until [`Gateway::accept`] is told of the store's prefixes.
    pub shapes: Arc<Shapes>,
    pub keys: Arc<ReadThrough>,
    pub budget: Budget,
    pub shares: Arc<Shares>,
    /// `None` at a gateway with the role of a proxy.
    pub api: Option<Api>,
    pub clock: Clock,
}

/// One worker's gateway: everything that a request needs. While its key is cached and its client has places left, a request
/// takes no lock, and of what other threads use it only reads how many places are left.
#[derive(Debug)]
pub struct Gateway {
    /// The snapshot of the requests that begin now.
    snapshot: RefCell<Rc<Snapshot>>,
    keys: ThreadCache<Prepared>,
    in_flight: InFlight,
    event_streams: Rc<EventStreams>,
    eras: Eras,
    shares: ThreadShares,
    api: Option<Api>,
    usage: UsageNotes,
    ids: RefCell<IdSource>,
    records: Rc<RecordSink>,
    cells: Arc<Cells>,
    clock: Clock,
}

impl Gateway {
    /// The gateway of the calling thread.
    #[must_use]
    pub fn new(shared: Shared, records: Rc<RecordSink>, cells: Arc<Cells>) -> Rc<Self> {
        let Shared { plan, shapes, keys, budget, shares, api, clock } = shared;
        Rc::new(Self {
            snapshot: RefCell::new(Rc::new(Snapshot::new(plan, shapes, &cells, budget, clock.clone()))),
            keys: ThreadCache::new(keys),
            in_flight: InFlight::default(),
            event_streams: Rc::default(),
            eras: Eras::default(),
            shares: ThreadShares::new(shares),
            api,
            usage: UsageNotes::default(),
            ids: RefCell::default(),
            records,
            cells,
            clock,
        })
    }

    /// Makes `plan` hold from the next request on. Requests under way go on with theirs.
    pub fn adopt(&self, plan: Arc<Plan>) {
        let renewed = Rc::new(self.snapshot().renew(plan, &self.cells));
        self.snapshot.replace(renewed);
    }

    /// Accepts keys of these shapes from the next request on.
    pub fn accept(&self, shapes: Arc<Shapes>) {
        let renewed = Rc::new(self.snapshot().with_shapes(shapes, &self.cells));
        self.snapshot.replace(renewed);
    }

    /// The process ends: event streams that are open now end behind their next events.
    pub fn ask_streams_to_leave(&self) {
        self.eras.begin_last();
        self.event_streams.ask();
    }

    /// Whether a request is open that had begun before [`Gateway::ask_streams_to_leave`].
    #[must_use]
    pub fn has_open_from_before(&self) -> bool {
        self.eras.has_open_from_before()
    }

    /// The process does not wait any longer for clients to come to another gateway: the same, also for event streams that
    /// begin later. When it is [over](Departure::Over), they are cut.
    pub fn dismiss_streams(&self, departure: Departure) {
        self.event_streams.dismiss(departure);
    }

    /// The limits of the requests of a connection that begins now.
    #[must_use]
    pub fn limits(&self) -> Limits {
        self.snapshot.borrow().settings().limits.clone()
    }

    /// The time, for what is dated.
    #[must_use]
    pub fn now(&self) -> Now {
        self.clock.now()
    }

    /// Where this worker counts.
    #[must_use]
    pub const fn cells(&self) -> &Arc<Cells> {
        &self.cells
    }

    /// Closes upstream connections that were unused for too long, and ends requests whose keys may no longer do what they
    /// do. To be called once a second, within the worker's runtime.
    pub fn sweep(self: &Rc<Self>) {
        self.snapshot().upstreams().sweep();
        in_flight::sweep(self);
    }

    /// Waits until connections are wanted that threads keep without use, and closes those of this thread.
    pub async fn give_way(&self, wanted: &Notify) {
        wanted.notified().await;
        self.snapshot().upstreams().give_way();
    }

    /// What tells that connections are wanted. It stays the same while the process runs.
    #[must_use]
    pub fn wanted(&self) -> Arc<Notify> {
        Arc::clone(self.snapshot().wanted())
    }

    /// See [`Upstreams::check`](crate::upstream::send::Upstreams::check).
    #[must_use]
    pub fn check_upstreams(&self) -> Duration {
        self.snapshot().upstreams().check()
    }

    /// Hands over some of the uses of keys that were noted since the last call; tells whether there are more. To be called
    /// at the end of a worker too, so that its last second counts.
    #[must_use]
    pub fn hand_over_usage(&self) -> bool {
        self.api.as_ref().is_some_and(|api| self.usage.hand_over(api.lifecycle().usage_log()))
    }

    /// Whether a route is served here. A route that is not still hides the routes beneath it: no other route gets its
    /// requests.
    const fn serves(&self, route: &Route) -> bool {
        match route.target {
            Target::Operation(_) => self.api.is_some(),
            Target::Upstream(_) => true,
        }
    }

    const fn event_streams(&self) -> &Rc<EventStreams> {
        &self.event_streams
    }

    fn snapshot(&self) -> Rc<Snapshot> {
        Rc::clone(&self.snapshot.borrow())
    }
}

/// Answers one request, exactly once. The answer may come with a tunnel, for which it must be sent first.
///
/// The sender of the answer must stop, and drop it, when `cut` is due: the key may no longer do what it does. `hints` is the client,
/// if it takes early hints.
pub async fn handle(
    gateway: &Rc<Gateway>,
    peer: Rc<Peer>,
    request: Request<ClientBody>,
    cut: &Cut,
    hints: Option<Rc<dyn EarlyHints>>,
) -> (Response<ResponseBody>, Option<Box<Tunnel>>) {
    let mut exchange = Exchange::begin(gateway, peer, method_label(request.method()), cut);
    exchange.hints = hints;
    exchange.note_dialect(request.headers());
    let passed = {
        let passing = pin!(pass(&mut exchange, request));
        cut.or_refused(passing).await
    };
    match passed {
        Ok(Passed::Forwarded(answer)) => answer.into_response(exchange),
        Ok(Passed::Served(answer)) => (respond::answer(answer, exchange), None),
        Err(rejection) => (respond::refuse(&rejection, exchange), None),
    }
}

/// Refuses what is not looked at: the parser beneath could not read it, or there is no room for it. `method` is the method,
/// where there is one, and `headers` are the fields, as far as they were read.
#[must_use]
pub fn refuse_unread(
    gateway: &Rc<Gateway>,
    peer: Rc<Peer>,
    method: Option<&Method>,
    headers: &HeaderMap,
    rejection: &Rejection,
) -> Response<ResponseBody> {
    let method = method.map_or(OTHER_METHOD, method_label);
    let mut exchange = Exchange::begin(gateway, peer, method, &Cut::default());
    exchange.note_dialect(headers);
    respond::refuse(rejection, exchange)
}

/// The outcome of a request that passed.
enum Passed {
    Forwarded(Forwarded),
    Served(Answer),
}

/// The stages in their order, which is the order of refusals: a stranger cannot map the API. The guard and [`decide`]
/// say what may happen; [`carry_out`] does it.
async fn pass(exchange: &mut Exchange, request: Request<ClientBody>) -> Result<Passed, Rejection> {
    // The permit borrows its route from it, while the exchange takes notes.
    let snapshot = Rc::clone(exchange.snapshot());
    exchange.note_client(request.headers());
    let request = CanonicalRequest::parse(request, &snapshot.settings().limits)?;
    let permit = decide(exchange, &snapshot, &request).await?;
    carry_out(exchange, request, &permit).await
}

/// Decides on a canonical request, and does nothing else: route, authenticate, authorize.
async fn decide<'s>(
    exchange: &mut Exchange,
    snapshot: &'s Snapshot,
    request: &CanonicalRequest<ClientBody>,
) -> Result<Permit<'s>, Rejection> {
    let routed = snapshot.routes().find(request);
    let found = routed.ok().flatten();
    exchange.note_route(found, request.path());
    let served = found.filter(|found| exchange.gateway().serves(found.route));
    let caller = authenticate(exchange, request, served).await?;
    exchange.settle_dialect(found.map(|found| found.route));
    browser::judge(exchange, request, &caller, served)?;
    // A path with two readings is refused only now: which paths have two shows which rules there are.
    authorize(exchange.gateway(), routed, caller)
}

/// Does what a permit allows: forward, or serve.
async fn carry_out(
    exchange: &mut Exchange,
    request: CanonicalRequest<ClientBody>,
    permit: &Permit<'_>,
) -> Result<Passed, Rejection> {
    usage::note(exchange, permit);
    match permit.target() {
        Target::Upstream(upstream) => {
            forward(exchange, request, permit, upstream).await.map(Passed::Forwarded)
        }
        Target::Operation(operation) => serve(exchange, request, permit, operation).await.map(Passed::Served),
    }
}
