//! A request to its upstream, and back with the answer: the upstreams as one thread sees them.

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Context;
use std::time::Duration;

use http::Request;
use http::header::{HOST, UPGRADE};

use super::answer::Answer;
use super::bounds::Bounds;
use super::budget::Budget;
use super::connection::{Received, Undelivered};
use super::early_hints::EarlyHints;
use super::error::{BrokenOff, NoLease, SendError};
use super::health::Health;
use super::loaded::Loaded;
use super::pool::{Lease, Pool};
use super::request_body::{RequestBody, Upload, UploadState};
use super::retry::{self, Retry};
use super::select::{Candidates, Choice};
use super::servers::{Side, Target, Targets, Upstream};
use super::tls::Needs;
use super::waiting::within;
use super::{Protocol, Terms, UpstreamId};
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

/// The state that the steps of one request share.
#[derive(Debug)]
struct Sending<'r> {
    /// The servers as they are when it begins.
    targets: Rc<Targets>,
    upload: Option<&'r Upload>,
    /// Whether it may be sent again though it was sent. Once.
    is_repeatable: Cell<bool>,
    /// Whose part of the repetitions it is; `None` without a key.
    org: Option<OrgId>,
    route: usize,
    hints: Option<&'r dyn EarlyHints>,
    /// Whether the endpoint where it waits fails its checks, and another one is in use.
    is_to_leave: Cell<bool>,
    /// Whether its connection was ended for that.
    has_left: Cell<bool>,
    connect_timeout: Duration,
    needs: Needs,
    stream_idle_timeout: Duration,
    /// The place of the endpoint that has the request and has not answered it, and how many it had answered before.
    waits_at: Cell<Option<(usize, u32)>>,
    /// The place of the endpoint that was tried last.
    tried: Cell<Option<usize>>,
}

/// Whose request it is.
#[derive(Clone, Copy, Debug)]
pub struct Asking<'r> {
    /// That of its key; `None` without a key.
    pub org: Option<OrgId>,
    /// The number of its route.
    pub route: usize,
    /// Its client, if that takes early hints.
    pub hints: Option<&'r dyn EarlyHints>,
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
            gone.sides.iter().for_each(|side| side.retire());
        }
        renewed
    }

    /// Sends a request to an endpoint of `upstream` for `environment`, and to no other environment.
    ///
    /// Dropping the future closes the connection it used.
    pub async fn send(
        &self,
        (upstream, environment): (UpstreamId, Environment),
        request: Request<RequestBody>,
        asking: Asking<'_>,
        terms: &Terms,
    ) -> Sent {
        let side = &*self.upstreams[upstream.0].sides[environment as usize];
        let upload = request.body().upload();
        let is_repeatable = upload.is_none() && retry::is_repeatable(request.method(), terms.retries);
        side.repeats.note_request();
        let connect_timeout = terms.connect.unwrap_or(side.timeouts.connect);
        let mut targets = side.targets();
        if targets.is_empty() {
            targets = Box::pin(side.first_targets(connect_timeout)).await;
        }
        let sending = Sending {
            targets,
            is_repeatable: Cell::new(is_repeatable),
            org: asking.org,
            route: asking.route,
            hints: asking.hints,
            is_to_leave: Cell::new(false),
            has_left: Cell::new(false),
            connect_timeout,
            needs: side.needs(&request),
            stream_idle_timeout: terms.stream_idle.unwrap_or(side.timeouts.stream_idle),
            upload: upload.as_deref(),
            waits_at: Cell::new(None),
            tried: Cell::new(None),
        };
        let answer_timeout = terms.answer.unwrap_or(side.timeouts.answer);
        let delivered = {
            // Pinned here, since it holds the request and would be copied with it.
            let delivering = pin!(side.deliver(request, &sending));
            let look = |looks| looks_after(&sending, looks);
            within((answer_timeout, sending.upload), delivering, look).await
        };
        let outcome = match sending.upload.map(Upload::state) {
            // A client's failure explains whatever the upstream did next.
            Some(UploadState::Failed(error)) => Err(SendError::Body(error)),
            _ => delivered.unwrap_or_else(|| {
                sending
                    .waits_at
                    .get()
                    .into_iter()
                    .for_each(|(at, _)| sending.note_failure(sending.targets.at(at)));
                Err(SendError::TimedOut)
            }),
        };
        let tried = sending.tried.get().map(|at| sending.targets.at(at));
        Sent { outcome, endpoint: tried.map(|target| Arc::clone(&target.label)) }
    }

    /// Begins the checks of endpoints and the lookups of names that are due. Returns after what time to call it again. For one
    /// thread of the process, within its `LocalSet`.
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
        self.sides().for_each(|side| side.targets().pools().for_each(Pool::give_way));
    }

    /// Closes the connections that have been unused for too long, and those to addresses that names had. To be called once a
    /// second.
    pub fn sweep(&self) {
        for side in self.sides() {
            side.targets().pools().for_each(Pool::sweep);
            side.repeats.tick();
        }
    }

    fn sides(&self) -> impl Iterator<Item = &Side> {
        self.upstreams.iter().flat_map(|upstream| &upstream.sides).map(|side| &**side)
    }
}

impl Side {
    /// What a request needs of its connection. Where HTTP/1.1 is spoken anyway, that is not looked at.
    fn needs(&self, request: &Request<RequestBody>) -> Needs {
        if self.protocol != Protocol::Http1 && request.headers().contains_key(UPGRADE) {
            Needs::Http1
        } else {
            Needs::Nothing
        }
    }

    /// Tries endpoints until one takes the request, and waits for the head of its answer.
    async fn deliver(
        &self,
        mut request: Request<RequestBody>,
        sending: &Sending<'_>,
    ) -> Result<Answer, SendError> {
        let targets = &*sending.targets;
        let mut choice = self.turns.begin();
        let (mut spoke_unasked, mut unreached, mut why) = (None, targets.unreached(), Repetition::NotSent);
        while let Some(mut at) = choice.next(targets) {
            turn_to(at, &mut request, why, sending);
            loop {
                let leased = match targets.at(at).pool.lease_kept(sending.needs) {
                    Some(lease) => Ok(lease),
                    // Boxed, since it is rare and would make every request larger.
                    None => Box::pin(lease_new(&mut at, &mut request, &mut choice, sending)).await,
                };
                let mut lease = match leased {
                    Ok(lease) => lease,
                    Err(why) => {
                        unreached = why.ends()?.unwrap_or(unreached);
                        break;
                    }
                };
                let target = targets.at(at);
                sending.waits_at.set(Some((at, target.pool.answered())));
                let answering = lease.send(request);
                let undelivered = match self.head(&lease, answering, sending).await {
                    Ok(received) => return Ok(answer(target, received, lease, sending)),
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
                        sending.note_failure(target);
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
                        sending.note_failure(target);
                        return Err(SendError::BrokeOff(cause));
                    }
                }
            }
        }
        Err(spoke_unasked.map_or(unreached, SendError::BrokeOff))
    }

    /// Waits for the head of an answer, and passes on what comes before it. Ends the connection where the request is to leave, and
    /// not a byte of an answer has come.
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
            let polled = answering.as_mut().poll(cx);
            if let Some(client) = sending.hints {
                pass_links(lease, client, polled.is_pending().then_some(cx));
            }
            polled
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

    /// Sends a request once more, and no more than that.
    async fn deliver_again(
        &self,
        at: usize,
        request: Request<RequestBody>,
        cause: BrokenOff,
        sending: &Sending<'_>,
    ) -> Result<Answer, SendError> {
        let targets = &*sending.targets;
        sending.is_repeatable.set(false);
        targets.at(at).note_repetition(Repetition::NotAnswered);
        let mut choice = self.turns.begin();
        let Ok((at, mut lease)) = targets.lease_new(at, sending.way(), &mut choice).await else {
            return Err(SendError::BrokeOff(cause));
        };
        let target = targets.at(at);
        sending.tried.set(Some(at));
        sending.waits_at.set(Some((at, target.pool.answered())));
        let undelivered = match lease.send(request).await {
            Ok(received) => return Ok(answer(target, received, lease, sending)),
            Err(undelivered) => undelivered,
        };
        sending.note_failure(target);
        Err(SendError::BrokeOff(match undelivered {
            Undelivered::Unsent(_) => cause,
            Undelivered::BrokeOff(cause) => lease.explained(cause),
        }))
    }
}

impl Sending<'_> {
    /// How a new connection is to come about.
    const fn way(&self) -> (Duration, Needs) {
        (self.connect_timeout, self.needs)
    }

    /// It got no proper answer from this server. Where its client broke off, that says nothing of the server.
    fn note_failure(&self, target: &Target) {
        if matches!(self.upload.map(Upload::state), Some(UploadState::Failed(_))) {
            return;
        }
        self.targets.suspect(target);
        self.testify(target);
    }

    /// Tells whose request on which route got no proper answer.
    fn testify(&self, target: &Target) {
        if let Some(org) = self.org {
            let pool = &target.pool;
            pool.standing().note_failure(pool.shown(), (org, self.route), pool.clock().mono());
        }
    }
}

impl NoLease {
    /// Whether it says why a request was not sent, if no other server takes it.
    ///
    /// # Errors
    /// That no other server may be tried.
    const fn ends(self) -> Result<Option<SendError>, SendError> {
        match self {
            Self::Unreachable => Ok(None),
            Self::NoTls => Ok(Some(SendError::NoTls)),
            Self::Crowded => Err(SendError::Crowded),
            Self::Full => Err(SendError::Full),
        }
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

/// The request is for this server now; `why` it left the one before, if there was one.
fn turn_to(at: usize, request: &mut Request<RequestBody>, why: Repetition, sending: &Sending<'_>) {
    let target = sending.targets.at(at);
    if let Some(before) = sending.tried.replace(Some(at)) {
        sending.targets.at(before).note_repetition(why);
    }
    if let Some(host) = &target.host {
        request.headers_mut().insert(HOST, host.sent.clone());
    }
}

/// A new connection to the server at this place, or to another address of its name, for which the request is then.
async fn lease_new(
    at: &mut usize,
    request: &mut Request<RequestBody>,
    choice: &mut Choice<'_>,
    sending: &Sending<'_>,
) -> Result<Lease, NoLease> {
    let (reached, lease) = sending.targets.lease_new(*at, sending.way(), choice).await?;
    if reached != *at {
        turn_to(reached, request, Repetition::NotSent, sending);
        *at = reached;
    }
    Ok(lease)
}

/// Passes the links on that have come, while the client waits for the answer; without it they come too late.
fn pass_links(lease: &Lease, client: &dyn EarlyHints, waiting: Option<&mut Context<'_>>) {
    let Some(cx) = waiting else { return lease.forget_links() };
    let links = lease.take_links(cx);
    if !links.is_empty() {
        client.pass(links);
    }
}

/// A request has waited for another second: suspects the server if it has answered nothing meanwhile, and tells a request that may
/// be sent again when it is to leave.
fn looks_after(sending: &Sending<'_>, looks: u32) {
    let Some((at, answered)) = sending.waits_at.get() else { return };
    let targets = &*sending.targets;
    let target = targets.at(at);
    let is_sent = sending.upload.is_none_or(|upload| upload.state() == UploadState::Done);
    // A long poll at a server that has nothing else to answer raises few suspicions.
    if looks.is_power_of_two() && is_sent && target.pool.answered() == answered {
        targets.suspect(target);
    }
    let is_left = sending.is_repeatable.get()
        && target.pool.standing().is_failing()
        && (0..targets.count()).any(|other| other != at && targets.is_in_use(other));
    sending.is_to_leave.set(is_left);
}

fn answer(target: &Target, mut received: Received, lease: Lease, sending: &Sending<'_>) -> Answer {
    target.pool.note_answer();
    if received.head.status.is_server_error() {
        // Any answer is a sign of life to a check that asks for nothing.
        if sending.targets.are_asked() {
            target.pool.standing().suspect();
        }
        sending.testify(target);
    } else {
        target.pool.standing().note_success(target.pool.shown());
    }
    if let Some(host) = &target.host {
        host.leave_out(&mut received.head.headers);
    }
    let is_wholly_sent = sending.upload.is_none_or(|upload| upload.state() == UploadState::Done);
    Answer::new(received, lease, is_wholly_sent, sending.stream_idle_timeout)
}
