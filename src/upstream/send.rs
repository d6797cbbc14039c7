//! A request to its upstream, and back with the answer: the upstreams as one thread sees them.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderValue, Request};

use super::answer::Answer;
use super::bounds::Bounds;
use super::budget::Budget;
use super::check::Schedule;
use super::connection::{Received, Undelivered};
use super::endpoint::Endpoint;
use super::error::{BrokenOff, SendError};
use super::health::Health;
use super::loaded::Loaded;
use super::origin::OwnHost;
use super::pool::{Lease, NoLease, Pool, Room};
use super::repeats::Repeats;
use super::request_body::{RequestBody, Upload, UploadState};
use super::retry::{self, Retry};
use super::select::{Candidates, Turns};
use super::waiting::within;
use super::{Checks, HostField, Terms, Timeouts, UpstreamId};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::id::OrgId;
use crate::vocabulary::key::Environment;
use crate::vocabulary::upstream::Repetition;

/// How long it takes at most until the endpoints of another configuration are checked.
const NOTHING_TO_CHECK: Duration = Duration::from_secs(1);

/// All upstreams, with one thread's connections to them.
#[derive(Debug)]
pub struct Upstreams {
    upstreams: Vec<Upstream>,
    budget: Budget,
    clock: Clock,
}

#[derive(Debug)]
struct Upstream {
    loaded: Loaded,
    /// By environment.
    sides: [Rc<Side>; 2],
}

/// One environment of one upstream.
#[derive(Debug)]
struct Side {
    targets: Vec<Target>,
    turns: Turns,
    repeats: Repeats,
    /// `None`: they are not checked here.
    checks: Option<Rc<Checks>>,
    timeouts: Timeouts,
}

/// One endpoint.
#[derive(Debug)]
struct Target {
    /// Its name in records.
    label: Arc<str>,
    /// The Host field, where it is not the client's.
    host: Option<OwnHost>,
    pool: Rc<Pool>,
    /// Its checks, and the Host field that they have.
    schedule: Rc<Schedule>,
    check_host: HeaderValue,
}

/// The state that the steps of one request share.
#[derive(Debug)]
struct Sending<'r> {
    upload: Option<&'r Upload>,
    /// Whether it may be sent again though it was sent. Once.
    is_repeatable: Cell<bool>,
    /// Whose part of the repetitions it is; `None` without a key.
    org: Option<OrgId>,
    /// Whether the endpoint where it waits fails its checks, and another one is in use.
    is_to_leave: Cell<bool>,
    /// Whether its connection was ended for that.
    has_left: Cell<bool>,
    connect_timeout: Duration,
    stream_idle_timeout: Duration,
    /// The place of the endpoint that has the request and has not answered it, and how many it had answered before.
    waits_at: Cell<Option<(usize, u32)>>,
    /// The place of the endpoint that was tried last.
    tried: Cell<Option<usize>>,
}

/// The end of an attempt to have a request answered.
#[derive(Debug)]
pub struct Sent {
    pub outcome: Result<Answer, SendError>,
    /// The endpoint that was tried last, by its name in records.
    pub endpoint: Option<Arc<str>>,
}

impl Upstreams {
    #[must_use]
    pub fn new(
        upstreams: &[Loaded],
        (health, bounds): (&Health, &Bounds),
        budget: Budget,
        clock: Clock,
    ) -> Self {
        let made = |loaded| Upstream::new(loaded, (health, bounds), &budget, &clock);
        let upstreams = upstreams.iter().map(made).collect();
        Self { upstreams, budget, clock }
    }

    /// Other upstreams in place of these. Upstreams that are in both, with the same content of their files, keep their
    /// connections; of the others only the requests that are under way are finished.
    #[must_use]
    pub fn renew(&self, upstreams: &[Loaded], (health, bounds): (&Health, &Bounds)) -> Self {
        let kept = |loaded: &Loaded| self.upstreams.iter().find(|known| known.loaded.is_same(loaded));
        let renewed = upstreams.iter().map(|loaded| match kept(loaded) {
            Some(known) => Upstream { loaded: known.loaded.clone(), sides: known.sides.clone() },
            None => Upstream::new(loaded, (health, bounds), &self.budget, &self.clock),
        });
        let renewed =
            Self { upstreams: renewed.collect(), budget: self.budget.clone(), clock: self.clock.clone() };
        let is_gone = |known: &&Upstream| !upstreams.iter().any(|loaded| known.loaded.is_same(loaded));
        for gone in self.upstreams.iter().filter(is_gone) {
            gone.pools().for_each(Pool::retire);
        }
        renewed
    }

    /// Sends a request to an endpoint of `upstream` for `environment`, and to no other environment. `org` is that of its
    /// key.
    ///
    /// Dropping the future closes the connection it used.
    pub async fn send(
        &self,
        (upstream, environment): (UpstreamId, Environment),
        request: Request<RequestBody>,
        org: Option<OrgId>,
        terms: &Terms,
    ) -> Sent {
        let side = &*self.upstreams[upstream.0].sides[environment as usize];
        let upload = request.body().upload();
        let is_repeatable = upload.is_none() && retry::is_repeatable(request.method(), terms.retries);
        side.repeats.note_request();
        let sending = Sending {
            is_repeatable: Cell::new(is_repeatable),
            org,
            is_to_leave: Cell::new(false),
            has_left: Cell::new(false),
            connect_timeout: terms.connect.unwrap_or(side.timeouts.connect),
            stream_idle_timeout: terms.stream_idle.unwrap_or(side.timeouts.stream_idle),
            upload: upload.as_deref(),
            waits_at: Cell::new(None),
            tried: Cell::new(None),
        };
        let answer_timeout = terms.answer.unwrap_or(side.timeouts.answer);
        let delivered = {
            // Pinned here, since it holds the request and would be copied with it.
            let delivering = pin!(side.deliver(request, &sending));
            let look = |looks| side.looks_after(&sending, looks);
            within((answer_timeout, sending.upload), delivering, look).await
        };
        let outcome = match sending.upload.map(Upload::state) {
            // A client's failure explains whatever the upstream did next.
            Some(UploadState::Failed(error)) => Err(SendError::Body(error)),
            _ => delivered.unwrap_or_else(|| {
                sending.waits_at.get().into_iter().for_each(|(at, _)| side.suspect(&side.targets[at]));
                Err(SendError::TimedOut)
            }),
        };
        let tried = sending.tried.get().and_then(|at| side.targets.get(at));
        Sent { outcome, endpoint: tried.map(|target| Arc::clone(&target.label)) }
    }

    /// Begins the checks of endpoints that are due. Returns after what time to call it again. For one thread of the process,
    /// within its `LocalSet`.
    #[must_use]
    pub fn check(&self) -> Duration {
        let sides = self.upstreams.iter().flat_map(Upstream::sides_with_endpoints_of_their_own);
        sides
            .filter_map(|side| side.check())
            .min()
            .map_or(NOTHING_TO_CHECK, |next| next.min(NOTHING_TO_CHECK))
    }

    /// Closes the unused connections of upstreams for which a request waits that may have no further one. To be called when
    /// [`Bounds::idle`] tells so.
    pub fn give_way(&self) {
        self.upstreams.iter().flat_map(Upstream::pools).for_each(Pool::give_way);
    }

    /// Closes the connections that have been unused for too long. To be called once a second.
    pub fn sweep(&self) {
        self.upstreams.iter().flat_map(Upstream::pools).for_each(Pool::sweep);
        self.upstreams.iter().flat_map(|upstream| &upstream.sides).for_each(|side| side.repeats.tick());
    }
}

impl Upstream {
    fn new(loaded: &Loaded, (health, bounds): (&Health, &Bounds), budget: &Budget, clock: &Clock) -> Self {
        let settings = loaded.settings();
        let room = |environment| Room {
            budget: budget.clone(),
            of_upstream: bounds.of(&settings.name, environment).connections,
            idle: Arc::clone(bounds.idle()),
        };
        let target = |endpoint: &Endpoint, environment| {
            let standing = health.find(&settings.name, endpoint).unwrap_or_default();
            let of_endpoint = HeaderValue::try_from(endpoint.host_field())
                .unwrap_or(const { HeaderValue::from_static("localhost") });
            let sent = match &settings.host {
                HostField::Client => None,
                HostField::Endpoint => Some(of_endpoint.clone()),
                HostField::Named(name) => Some(name.clone()),
            };
            Target {
                label: endpoint.label().into(),
                check_host: sent.clone().unwrap_or_else(|| of_endpoint.clone()),
                host: sent.map(|sent| OwnHost { sent, of_endpoint }),
                schedule: Rc::default(),
                pool: Rc::new(Pool::new(
                    (endpoint.clone(), loaded.identity(environment)),
                    standing,
                    &settings.timeouts,
                    room(environment),
                    clock.clone(),
                )),
            }
        };
        let side = |environment| {
            let endpoints = settings.endpoints(environment);
            let checks = settings.checks.as_ref().filter(|checks| checks.concern(endpoints.len()));
            let targets: Vec<_> = endpoints.iter().map(|endpoint| target(endpoint, environment)).collect();
            if checks.is_none() {
                targets.iter().for_each(|target| target.pool.standing().forget_checks());
            }
            Rc::new(Side {
                targets,
                checks: checks.cloned().map(Rc::new),
                turns: Turns::default(),
                repeats: Repeats::default(),
                timeouts: settings.timeouts.clone(),
            })
        };
        Self { loaded: loaded.clone(), sides: Environment::ALL.map(side) }
    }

    /// One for both environments where they have the same endpoints.
    fn sides_with_endpoints_of_their_own(&self) -> &[Rc<Side>] {
        let settings = self.loaded.settings();
        if settings.live == settings.test { &self.sides[..1] } else { &self.sides }
    }

    fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.sides.iter().flat_map(|side| &side.targets).map(|target| &*target.pool)
    }
}

impl Side {
    /// See [`Upstreams::check`]; `None` where endpoints are not checked.
    fn check(&self) -> Option<Duration> {
        let checks = self.checks.as_ref()?;
        let look = |target: &Target| target.schedule.look(checks, &target.pool, &target.check_host);
        self.targets.iter().map(look).min()
    }
}

impl Candidates for Side {
    fn count(&self) -> usize {
        self.targets.len()
    }

    fn in_flight(&self, at: usize) -> usize {
        self.targets[at].pool.in_flight()
    }

    fn is_in_use(&self, at: usize) -> bool {
        self.targets[at].pool.standing().is_in_use()
    }

    fn admits(&self, at: usize) -> bool {
        let pool = &self.targets[at].pool;
        pool.standing().admits(pool.clock().mono())
    }
}

impl Side {
    /// Tries endpoints until one takes the request, and waits for the head of its answer.
    async fn deliver(
        &self,
        mut request: Request<RequestBody>,
        sending: &Sending<'_>,
    ) -> Result<Answer, SendError> {
        let mut choice = self.turns.begin();
        let (mut spoke_unasked, mut unreached) = (None, SendError::Unreachable);
        let mut why = Repetition::NotSent;
        while let Some(at) = choice.next(self) {
            let target = self.turn_to(at, &mut request, why, sending);
            loop {
                let mut lease = match target.pool.lease(sending.connect_timeout).await {
                    Ok(lease) => lease,
                    Err(NoLease::Unreachable) => break,
                    Err(NoLease::NoTls) => {
                        unreached = SendError::NoTls;
                        break;
                    }
                    Err(NoLease::Crowded) => return Err(SendError::Crowded),
                    Err(NoLease::Full) => return Err(SendError::Full),
                };
                sending.waits_at.set(Some((at, target.pool.answered())));
                let answering = lease.send(request);
                let undelivered = match self.head(&lease, answering, sending).await {
                    Ok(received) => return Ok(self.answer(target, received, lease, sending)),
                    Err(undelivered) => undelivered,
                };
                sending.waits_at.set(None);
                match self.judge(undelivered, &lease, target, sending) {
                    Retry::SameEndpoint(unsent) => {
                        target.note_repetition(Repetition::NotSent);
                        request = *unsent;
                    }
                    Retry::Elsewhere(again) => {
                        (request, why) = (*again, Repetition::PassedOver);
                        break;
                    }
                    Retry::NextEndpoint(unsent) => {
                        self.suspect(target);
                        request = *unsent;
                        spoke_unasked = lease.spoke_unasked().or(spoke_unasked);
                        break;
                    }
                    Retry::OnceMore(again, cause) => {
                        // Its place is needed for the new connection.
                        drop(lease);
                        return Box::pin(self.deliver_again(at, *again, cause, sending)).await;
                    }
                    Retry::Never(cause) => {
                        self.suspect(target);
                        return Err(SendError::BrokeOff(cause));
                    }
                }
            }
        }
        Err(spoke_unasked.map_or(unreached, SendError::BrokeOff))
    }

    /// The request is for this endpoint now; `why` it left the one before, if there was one.
    fn turn_to(
        &self,
        at: usize,
        request: &mut Request<RequestBody>,
        why: Repetition,
        sending: &Sending<'_>,
    ) -> &Target {
        let target = &self.targets[at];
        if let Some(before) = sending.tried.replace(Some(at)) {
            self.targets[before].note_repetition(why);
        }
        if let Some(host) = &target.host {
            request.headers_mut().insert(HOST, host.sent.clone());
        }
        target
    }

    /// Waits for the head of an answer. Ends the connection where the request is to leave, and not a byte of an answer has come.
    async fn head(
        &self,
        lease: &Lease,
        answering: impl Future<Output = Result<Received, Undelivered>>,
        sending: &Sending<'_>,
    ) -> Result<Received, Undelivered> {
        let mut answering = pin!(answering);
        poll_fn(|cx| {
            if sending.is_to_leave.take() && lease.is_waiting() && self.repeats.take(sending.org) {
                sending.has_left.set(true);
                lease.abandon();
            }
            answering.as_mut().poll(cx)
        })
        .await
    }

    /// What becomes of a request that was not delivered over this connection.
    fn judge(
        &self,
        undelivered: Undelivered,
        lease: &Lease,
        target: &Target,
        sending: &Sending<'_>,
    ) -> Retry {
        let unanswered = if sending.is_repeatable.get() { lease.unanswered() } else { None };
        let undelivered = undelivered.explained(lease);
        if sending.has_left.take() {
            sending.is_repeatable.set(false);
            return retry::left(undelivered, unanswered.as_ref());
        }
        match retry::after(undelivered, lease.is_reused(), unanswered.as_ref()) {
            Retry::OnceMore(_, cause) if !self.repeats.take(sending.org) => {
                target.note_repetition(Repetition::Withheld);
                Retry::Never(cause)
            }
            retry => retry,
        }
    }

    /// A request has waited for another second: suspects the endpoint if it has answered nothing meanwhile, and tells a request
    /// that may be sent again when it is to leave.
    fn looks_after(&self, sending: &Sending<'_>, looks: u32) {
        let Some((at, answered)) = sending.waits_at.get() else { return };
        let Target { pool, .. } = &self.targets[at];
        let is_sent = sending.upload.is_none_or(|upload| upload.state() == UploadState::Done);
        // A long poll at a server that has nothing else to answer raises few suspicions.
        if looks.is_power_of_two() && is_sent && pool.answered() == answered {
            self.suspect(&self.targets[at]);
        }
        let is_left = sending.is_repeatable.get()
            && pool.standing().is_failing()
            && (0..self.count()).any(|other| other != at && self.is_in_use(other));
        sending.is_to_leave.set(is_left);
    }

    fn answer(&self, target: &Target, mut received: Received, lease: Lease, sending: &Sending<'_>) -> Answer {
        target.pool.note_answer();
        // Any answer is a sign of life to a check that asks for nothing.
        if received.head.status.is_server_error()
            && self.checks.as_ref().is_some_and(|checks| checks.question.is_some())
        {
            target.pool.standing().suspect();
        }
        if let Some(host) = &target.host {
            host.leave_out(&mut received.head.headers);
        }
        let is_wholly_sent = sending.upload.is_none_or(|upload| upload.state() == UploadState::Done);
        Answer::new(received, lease, is_wholly_sent, sending.stream_idle_timeout)
    }

    /// A request got no answer there, or none so far. Without checks nothing would find out whether the suspicion is right.
    fn suspect(&self, target: &Target) {
        if self.checks.is_some() {
            target.pool.standing().suspect();
        }
    }

    /// Sends a request once more, and no more than that.
    async fn deliver_again(
        &self,
        at: usize,
        request: Request<RequestBody>,
        cause: BrokenOff,
        sending: &Sending<'_>,
    ) -> Result<Answer, SendError> {
        let target = &self.targets[at];
        sending.is_repeatable.set(false);
        target.note_repetition(Repetition::NotAnswered);
        let Ok(mut lease) = target.pool.lease_new(sending.connect_timeout).await else {
            return Err(SendError::BrokeOff(cause));
        };
        sending.waits_at.set(Some((at, target.pool.answered())));
        let undelivered = match lease.send(request).await {
            Ok(received) => return Ok(self.answer(target, received, lease, sending)),
            Err(undelivered) => undelivered,
        };
        self.suspect(target);
        Err(SendError::BrokeOff(match undelivered {
            Undelivered::Unsent(_) => cause,
            Undelivered::BrokeOff(cause) => lease.explained(cause),
        }))
    }
}

impl Undelivered {
    /// With the byte that is wrong, where the answer on this connection could not be read.
    fn explained(self, lease: &Lease) -> Self {
        match self {
            Self::BrokeOff(cause) => Self::BrokeOff(lease.explained(cause)),
            unsent @ Self::Unsent(_) => unsent,
        }
    }
}

impl Target {
    fn note_repetition(&self, why: Repetition) {
        self.pool.standing().note_repetition(why);
    }
}
