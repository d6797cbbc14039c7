//! One request, one answer, one record: the exchange ensures it.

use std::net::IpAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, StatusCode};

use super::Gateway;
use super::caller::Prepared;
use super::cut::Cut;
use super::headers::request_id_value;
use super::shares::{Client, Part};
use super::snapshot::Snapshot;
use crate::policy::route::{Match, RuleNumbers};
use crate::store::cache::Known;
use crate::telemetry::Record;
use crate::telemetry::metrics::{Code, Finished};
use crate::vocabulary::cache_level::Level;
use crate::vocabulary::clock::Now;
use crate::vocabulary::id::{KeyId, OrgId, RequestId};
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::record::KeyRecord;
use crate::vocabulary::peer::Peer;
use crate::vocabulary::reason::Reason;
use crate::vocabulary::rejection::{Rejection, Unavailable};

/// A request from its parsed head to the last byte of its answer. Counted and recorded when it is dropped,
/// however it ended.
#[derive(Debug)]
pub(super) struct Exchange {
    gateway: Rc<Gateway>,
    snapshot: Rc<Snapshot>,
    peer: Rc<Peer>,
    started: Now,
    id: RequestId,
    id_value: HeaderValue,
    method: &'static str,
    rules: Option<RuleNumbers>,
    key: Option<(KeyId, OrgId)>,
    environment: Option<Environment>,
    level: Option<Level>,
    upstream: Option<UpstreamTimes>,
    code: Code,
    reason: Option<Reason>,
    complete: bool,
    /// Its part of its client's share, once it is forwarded.
    part: Option<Part>,
    /// Its place among the requests in flight, once it is forwarded with a key.
    place: Option<usize>,
    cut: Cut,
}

/// When an upstream was asked, when it answered, and when the answer's head was ready for the client.
#[derive(Clone, Copy, Debug)]
struct UpstreamTimes {
    sending: Instant,
    answered: Instant,
    ready: Instant,
}

impl Exchange {
    /// `method` is a label. Boxed, since it is moved from stage to stage and then with the answer.
    pub(super) fn begin(gateway: &Rc<Gateway>, peer: Rc<Peer>, method: &'static str, cut: &Cut) -> Box<Self> {
        let started = gateway.clock.now();
        let id = RequestId::draw(&mut gateway.ids.borrow_mut(), started.wall);
        gateway.cells.begin();
        cut.begin();
        Box::new(Self {
            gateway: Rc::clone(gateway),
            snapshot: gateway.snapshot(),
            peer,
            started,
            id,
            id_value: request_id_value(id),
            method,
            rules: None,
            key: None,
            environment: None,
            level: None,
            upstream: None,
            code: Code::ClientGone,
            reason: None,
            complete: false,
            part: None,
            place: None,
            cut: cut.clone(),
        })
    }

    pub(super) fn gateway(&self) -> &Gateway {
        &self.gateway
    }

    /// The snapshot that handles the request to its end.
    pub(super) const fn snapshot(&self) -> &Rc<Snapshot> {
        &self.snapshot
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// The client's address: the peer's, or behind trusted proxies the one that they name.
    pub(super) fn client_address(&self, headers: &HeaderMap) -> IpAddr {
        self.snapshot.rules().client_address(headers, &self.peer)
    }

    /// When the request's head had been parsed. Everything about the request is judged at this moment.
    pub(super) const fn started(&self) -> Now {
        self.started
    }

    pub(super) const fn id(&self) -> RequestId {
        self.id
    }

    pub(super) const fn id_value(&self) -> &HeaderValue {
        &self.id_value
    }

    /// Whether the method is HEAD, so that the answer has no body whatever its fields say.
    pub(super) fn is_head(&self) -> bool {
        self.method == "HEAD"
    }

    pub(super) fn note_route(&mut self, found: Option<Match<'_>>) {
        self.rules = found.map(|found| found.numbers());
    }

    /// The number of the route that it falls under.
    pub(super) fn route(&self) -> Option<usize> {
        self.rules.map(|rules| rules.route)
    }

    pub(super) const fn note_key(&mut self, key: &KeyRecord) {
        self.key = Some((key.id, key.org));
        self.environment = Some(key.environment);
    }

    pub(super) const fn note_level(&mut self, level: Level) {
        self.level = Some(level);
    }

    /// Enters the request into the list of those in flight: from now on it is ended when its key, used by this client, may
    /// no longer do what it does.
    pub(super) fn enter_flight(&mut self, holder: &Rc<Known<Prepared>>, client: IpAddr) {
        if let Some(rules) = self.rules {
            let (known, snapshot) = (Rc::clone(holder), Rc::clone(&self.snapshot));
            let place = self.gateway.in_flight.enter(known, client, snapshot, rules, self.cut.clone());
            self.place = Some(place);
        }
    }

    /// Takes a part of the client's share of the requests that are forwarded at once.
    ///
    /// # Errors
    /// When as many requests of the client, or of its organisation, are in flight as may be, and none ends in time.
    pub(super) async fn take_part(&mut self, client: Client) -> Result<(), Rejection> {
        self.part = self.gateway.shares.part(&client);
        if self.part.is_none() {
            let gateway = Rc::clone(&self.gateway);
            self.part = Box::pin(gateway.shares.part_beyond(client)).await;
        }
        if self.part.is_none() { Err(Rejection::Unavailable(Unavailable::Share)) } else { Ok(()) }
    }

    fn leave_flight(&mut self) {
        if let Some(part) = self.part.take() {
            self.gateway.shares.give_back(&part);
        }
        if let Some(place) = self.place.take() {
            self.gateway.in_flight.leave(place);
        }
    }

    pub(super) const fn cut(&self) -> &Cut {
        &self.cut
    }

    pub(super) fn note_sending(&mut self, environment: Environment) {
        let now = self.gateway.clock.mono();
        self.environment = Some(environment);
        self.upstream = Some(UpstreamTimes { sending: now, answered: now, ready: now });
    }

    pub(super) fn note_answered(&mut self) {
        let now = self.gateway.clock.mono();
        if let Some(times) = &mut self.upstream {
            times.answered = now;
            times.ready = now;
        }
    }

    /// The time from sending the request to the head of its answer.
    pub(super) fn upstream_duration(&self) -> Option<Duration> {
        self.upstream.map(|times| times.answered.saturating_duration_since(times.sending))
    }

    /// An upstream's answer is ready for the client.
    pub(super) fn note_forwarded(&mut self, status: StatusCode) {
        self.code = Code::Upstream(status);
        self.cut.note_answered();
        if let Some(times) = &mut self.upstream {
            times.ready = self.gateway.clock.mono();
        }
    }

    /// keygate answers itself.
    pub(super) const fn note_own(&mut self, status: StatusCode) {
        self.code = Code::Own(status);
    }

    pub(super) fn note_refusal(&mut self, rejection: &Rejection) {
        let reason = rejection.reason();
        self.code = Code::Refused(rejection.status());
        self.reason = Some(reason);
        self.gateway.cells.refused(reason);
        // An answer of keygate's own is not cut.
        self.leave_flight();
    }

    /// Removes from an answer's trailers those that may not pass.
    pub(super) fn filter_trailers(&self, trailers: &mut HeaderMap) {
        self.snapshot.rules().trailers(trailers);
    }

    /// Notes that the answer was handed over to its last byte.
    pub(super) const fn note_complete(&mut self) {
        self.complete = true;
    }

    /// The part of a forwarded request's time that keygate itself took.
    fn overhead(&self) -> Option<Duration> {
        self.upstream.map(|times| {
            let before = times.sending.saturating_duration_since(self.started.mono);
            before + times.ready.saturating_duration_since(times.answered)
        })
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        self.leave_flight();
        if let Some(why) = self.cut.why() {
            let reason = why.reason();
            self.reason = Some(reason);
            self.gateway.cells.cut(reason);
        }
        let duration = self.gateway.clock.mono().saturating_duration_since(self.started.mono);
        self.gateway.cells.end();
        self.snapshot.route_cells(self.route()).finish(&Finished {
            method: self.method,
            code: self.code,
            environment: self.environment,
            duration,
            overhead: self.overhead(),
        });
        if !self.gateway.records.is_on() {
            return;
        }
        self.gateway.records.push(Record {
            at: self.started.wall,
            request: self.id,
            method: self.method,
            route: self.route().map(|number| self.snapshot.routes().routes()[number].id.clone()),
            status: self.code.status(),
            reason: self.reason,
            key: self.key.map(|(key, _)| key),
            org: self.key.map(|(_, org)| org),
            environment: self.environment,
            level: self.level,
            duration,
            overhead: self.overhead(),
            upstream: self.upstream_duration(),
            complete: self.complete,
        });
    }
}
