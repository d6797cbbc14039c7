//! The way of a request, in one function: [`handle`].
//!
//! ```text
//! guard → route → authenticate → authorize → forward | serve → respond
//!   400              401, 403   400, 404, 403  413, 502, 504
//! ```
//!
//! Each stage is a file and takes what only the stage before it can make: routes are found for a
//! [`guard::CanonicalRequest`], and nothing is forwarded without a `Permit`. On a cache hit no stage waits,
//! locks or leaves its thread.

mod authenticate;
mod authorize;
mod exchange;
mod forward;
pub mod guard;
pub mod headers;
mod in_flight;
mod operation;
mod respond;
mod response_body;
pub mod route;
mod snapshot;
mod tunnel;
mod usage;

use std::cell::RefCell;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;

use self::authenticate::authenticate;
use self::authorize::authorize;
use self::exchange::Exchange;
use self::forward::{Forwarded, forward};
use self::guard::CanonicalRequest;
use self::in_flight::InFlight;
use self::operation::serve;
use self::route::{Route, Target};
use self::snapshot::Snapshot;
use self::usage::{Prepared, UsageNotes};
use crate::api::{Answer, Api};
use crate::store::cache::{ReadThrough, ThreadCache};
use crate::telemetry::metrics::Cells;
use crate::telemetry::{RecordSink, Throttle};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::id::IdSource;
use crate::vocabulary::key::{Digester, KeyFormat};
use crate::vocabulary::peer::Peer;
use crate::vocabulary::rejection::{NotFound, Rejection};

pub use self::in_flight::Cut;
pub use self::response_body::ResponseBody;
pub use self::snapshot::Plan;
pub use self::tunnel::Tunnel;

/// What the request path is told by the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    pub limits: guard::Limits,
    pub headers: headers::Settings,
    /// How long a client may pause while it sends a body.
    pub body_idle_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            limits: guard::Limits::default(),
            headers: headers::Settings::default(),
            body_idle_timeout: Duration::from_secs(30),
        }
    }
}

/// What all workers' gateways have in common.
#[derive(Clone, Debug)]
pub struct Shared {
    pub plan: Arc<Plan>,
    pub format: KeyFormat,
    pub digester: Digester,
    pub keys: Arc<ReadThrough>,
    /// `None` at a gateway that only lets requests through.
    pub api: Option<Api>,
    pub clock: Clock,
}

/// One worker's gateway: everything a request needs, nothing of it shared with another thread while keys are
/// cached.
#[derive(Debug)]
pub struct Gateway {
    /// What requests that begin now are handled by.
    snapshot: RefCell<Rc<Snapshot>>,
    format: KeyFormat,
    digester: Digester,
    keys: ThreadCache<Prepared>,
    in_flight: InFlight,
    api: Option<Api>,
    usage: UsageNotes,
    ids: RefCell<IdSource>,
    records: Rc<RecordSink>,
    cells: Arc<Cells>,
    /// Upstreams that break off do so in crowds.
    broke_off: Throttle,
    clock: Clock,
}

impl Gateway {
    /// For the thread that calls it.
    #[must_use]
    pub fn new(shared: Shared, records: Rc<RecordSink>, cells: Arc<Cells>) -> Rc<Self> {
        let Shared { plan, format, digester, keys, api, clock } = shared;
        Rc::new(Self {
            snapshot: RefCell::new(Rc::new(Snapshot::new(plan, &cells, clock.clone()))),
            keys: ThreadCache::new(keys),
            in_flight: InFlight::default(),
            api,
            usage: UsageNotes::default(),
            ids: RefCell::default(),
            format,
            digester,
            records,
            cells,
            broke_off: Throttle::default(),
            clock,
        })
    }

    /// From the next request on another plan holds. Those under way go on with theirs.
    pub fn adopt(&self, plan: Arc<Plan>) {
        let renewed = Rc::new(self.snapshot().renew(plan, &self.cells));
        self.snapshot.replace(renewed);
    }

    /// The limits of the requests of a connection that begins now.
    #[must_use]
    pub fn limits(&self) -> guard::Limits {
        self.snapshot.borrow().settings().limits.clone()
    }

    /// Where this worker counts.
    #[must_use]
    pub const fn cells(&self) -> &Arc<Cells> {
        &self.cells
    }

    /// Closes upstream connections that have been unused for too long, and ends requests whose keys may no longer
    /// do what they do. To be called once a second, within the worker's runtime.
    pub fn sweep(self: &Rc<Self>) {
        self.snapshot().upstreams().sweep();
        in_flight::sweep(self);
    }

    /// Hands on some of the keys that were used since the last time; tells whether there are more. At the end of a
    /// worker, too: its last second counts.
    #[must_use]
    pub fn hand_over_usage(&self) -> bool {
        self.api.as_ref().is_some_and(|api| self.usage.hand_over(api.lifecycle().usage_log()))
    }

    /// A route that matches, unless it is not served here. It still hides what lies beneath it: no other route gets
    /// its requests.
    const fn offers<'r>(&self, route: &'r Route) -> Result<&'r Route, NotFound> {
        match (route.target, &self.api) {
            (Target::Operation(_), None) => Err(NotFound::NotServedHere),
            _ => Ok(route),
        }
    }

    fn snapshot(&self) -> Rc<Snapshot> {
        Rc::clone(&self.snapshot.borrow())
    }
}

/// Answers one request, exactly once. The answer may come with a tunnel, for which it must be sent first.
///
/// The sender of the answer must stop, and drop it, when `cut` is due: the key may no longer do what it does.
pub async fn handle(
    gateway: &Rc<Gateway>,
    peer: Rc<Peer>,
    request: Request<Incoming>,
    cut: &Cut,
) -> (Response<ResponseBody>, Option<Tunnel>) {
    let mut exchange = Exchange::begin(gateway, peer, &request, cut);
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

/// What a request that passed came to.
enum Passed {
    Forwarded(Forwarded),
    Served(Answer),
}

/// The stages in their order, which is the order of refusals: a stranger cannot map the API.
async fn pass(exchange: &mut Exchange, request: Request<Incoming>) -> Result<Passed, Rejection> {
    // The route is borrowed from it, while the exchange takes notes.
    let snapshot = Rc::clone(exchange.snapshot());
    let request = CanonicalRequest::parse(request, &snapshot.settings().limits)?;
    let found = snapshot.routes().find(&request);
    exchange.note_route(found.ok().flatten());
    let route = found.ok().flatten().map(|found| found.route);
    let route = route.ok_or(NotFound::NoRoute).and_then(|route| exchange.gateway().offers(route));
    let caller = authenticate(exchange, &request, route.ok()).await?;
    usage::watch(exchange, &request, &caller, route.ok());
    // Only now: which paths have two readings says which rules there are.
    found.map_err(Rejection::Unsafe)?;
    let permit = authorize(route, caller)?;
    usage::note(exchange, &permit);
    match permit.target() {
        Target::Upstream(upstream) => {
            forward(exchange, request, &permit, upstream).await.map(Passed::Forwarded)
        }
        Target::Operation(operation) => {
            serve(exchange, request, &permit, operation).await.map(Passed::Served)
        }
    }
}
