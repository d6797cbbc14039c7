//! The way of a request, in one function: [`handle`].
//!
//! ```text
//! guard → route → authenticate → authorize → forward → respond
//!   400              401, 403   400, 404, 403  413, 502, 504
//! ```
//!
//! Each stage is a file and takes what only the stage before it can make: routes are found for a
//! [`guard::CanonicalRequest`], and nothing is forwarded without a `Permit`. On a cache hit no stage waits,
//! locks or leaves its thread.

mod authenticate;
mod authorize;
mod body;
mod exchange;
mod forward;
pub mod guard;
pub mod headers;
mod in_flight;
mod respond;
pub mod route;
mod tunnel;

use std::cell::RefCell;
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
use self::headers::{HeaderRules, Identity, Peer};
use self::in_flight::InFlight;
use self::route::{RouteTable, Target};
use crate::clock::Clock;
use crate::id::IdSource;
use crate::key::{Digester, KeyFormat};
use crate::metrics::Cells;
use crate::rejection::{NotFound, Rejection};
use crate::store::cache::{ReadThrough, ThreadCache};
use crate::telemetry::{RecordSink, Throttle};
use crate::upstream::{self, pool::Pool};

pub use self::body::{BodyError, RequestBody, ResponseBody};
pub use self::in_flight::Cut;
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
    pub settings: Settings,
    pub routes: Arc<RouteTable>,
    pub upstreams: Arc<[upstream::Settings]>,
    pub format: KeyFormat,
    pub digester: Digester,
    pub keys: Arc<ReadThrough>,
    pub clock: Clock,
}

/// One worker's gateway: everything a request needs, nothing of it shared with another thread while keys are
/// cached.
#[derive(Debug)]
pub struct Gateway {
    settings: Settings,
    routes: Arc<RouteTable>,
    upstreams: Arc<[upstream::Settings]>,
    format: KeyFormat,
    digester: Digester,
    rules: HeaderRules,
    keys: ThreadCache<Identity>,
    pool: Pool<RequestBody>,
    in_flight: InFlight,
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
        let Shared { settings, routes, upstreams, format, digester, keys, clock } = shared;
        Rc::new(Self {
            rules: HeaderRules::new(settings.headers.clone()),
            keys: ThreadCache::new(keys),
            pool: Pool::new(&upstreams, clock.clone()),
            in_flight: InFlight::default(),
            ids: RefCell::default(),
            settings,
            routes,
            upstreams,
            format,
            digester,
            records,
            cells,
            broke_off: Throttle::default(),
            clock,
        })
    }

    #[must_use]
    pub const fn limits(&self) -> &guard::Limits {
        &self.settings.limits
    }

    /// Closes upstream connections that have been unused for too long, and ends requests whose keys may no
    /// longer do what they do. To be called once a second, within the worker's runtime.
    pub fn sweep(self: &Rc<Self>) {
        self.pool.sweep();
        in_flight::sweep(self);
    }
}

/// Answers one request, exactly once. The answer may come with a tunnel, for which it must be sent first.
///
/// Whoever sends the answer must stop, and drop it, when `cut` is due: its key may no longer do what it does.
pub async fn handle(
    gateway: &Rc<Gateway>,
    peer: &Peer,
    request: Request<Incoming>,
    cut: &Cut,
) -> (Response<ResponseBody>, Option<Tunnel>) {
    let mut exchange = Exchange::begin(gateway, &request, cut);
    match cut.or_refused(pass(gateway, peer, request, &mut exchange)).await {
        Ok(answer) => answer.into_response(gateway, exchange),
        Err(rejection) => (respond::refuse(gateway, &rejection, exchange), None),
    }
}

/// The stages in their order, which is the order of refusals: a stranger cannot map the API.
async fn pass(
    gateway: &Gateway,
    peer: &Peer,
    request: Request<Incoming>,
    exchange: &mut Exchange,
) -> Result<Forwarded, Rejection> {
    let request = CanonicalRequest::parse(request, &gateway.settings.limits)?;
    let found = gateway.routes.find(&request);
    exchange.note_route(found.ok().flatten());
    let route = found.ok().flatten().map(|found| found.route);
    let caller = authenticate(gateway, peer, &request, route, exchange).await?;
    // Only now: which paths have two readings says which rules there are.
    found.map_err(Rejection::Unsafe)?;
    let permit = authorize(route, caller)?;
    match permit.target() {
        Target::Upstream(upstream) => forward(gateway, peer, &permit, upstream, request, exchange).await,
        Target::Operation(_) => Err(Rejection::NotFound(NotFound::NoOperation)),
    }
}
