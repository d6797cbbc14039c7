//! One request, one answer, one record: the exchange ensures it.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, StatusCode};
use tokio::task::AbortHandle;

use super::Gateway;
use super::caller::Prepared;
use super::cut::Cut;
use super::eras::Era;
use super::grpc::Dialect;
use super::headers::request_id_value;
use super::shares::{Client, Part, ThreadShares};
use super::snapshot::Snapshot;
use crate::policy::route::{Match, Route, RuleNumbers};
use crate::store::Found;
use crate::store::cache::Known;
use crate::telemetry::Record;
use crate::telemetry::metrics::{Code, Finished};
use crate::upstream::bounds::Places;
use crate::upstream::early_hints::EarlyHints;
use crate::upstream::request_body::Upload;
use crate::vocabulary::cache_level::Level;
use crate::vocabulary::clock::Now;
use crate::vocabulary::grpc::GrpcStatus;
use crate::vocabulary::id::{KeyId, OrgId, RequestId};
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::scope::OneOf;
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
    /// The client's address: the peer's, or behind trusted proxies the one that they name.
    client: IpAddr,
    rules: Option<RuleNumbers>,
    template: usize,
    key: Option<(KeyId, OrgId)>,
    /// Of the key and the organisation, where records have them.
    names: Option<Box<[String; 2]>>,
    environment: Option<Environment>,
    level: Option<Level>,
    upstream: Option<UpstreamTimes>,
    /// The endpoint that was tried last.
    endpoint: Option<Arc<str>>,
    upload: Option<Rc<Upload>>,
    received: u64,
    sent: u64,
    code: Code,
    reason: Option<Reason>,
    missing_scope: Option<OneOf>,
    /// What its client speaks, and in which words it is refused.
    spoken: Dialect,
    dialect: Dialect,
    /// What keygate has told its client in the place of the status of a refusal.
    told: Option<GrpcStatus>,
    complete: bool,
    /// Its part of its client's share, once it is forwarded.
    part: Option<Part>,
    /// Its part of the places of an upstream that has a limit.
    part_of_upstream: Option<Box<(Rc<ThreadShares<Places>>, Part)>>,
    /// The time at which it must be over, where it has one.
    limit: Option<AbortHandle>,
    /// Its place among the requests in flight, once it is forwarded with a key.
    place: Option<usize>,
    cut: Cut,
    /// The client, if it takes early hints.
    pub(super) hints: Option<Rc<dyn EarlyHints>>,
    era: Era,
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
            client: peer.address(),
            peer,
            started,
            id,
            id_value: request_id_value(id),
            method,
            rules: None,
            template: 0,
            key: None,
            names: None,
            environment: None,
            level: None,
            upstream: None,
            endpoint: None,
            upload: None,
            received: 0,
            sent: 0,
            code: Code::ClientGone,
            reason: None,
            missing_scope: None,
            spoken: Dialect::Http,
            dialect: Dialect::Http,
            told: None,
            complete: false,
            part: None,
            part_of_upstream: None,
            limit: None,
            place: None,
            cut: cut.clone(),
            hints: None,
            era: gateway.eras.enter(),
        })
    }

    pub(super) const fn gateway(&self) -> &Rc<Gateway> {
        &self.gateway
    }

    /// The snapshot that handles the request to its end.
    pub(super) const fn snapshot(&self) -> &Rc<Snapshot> {
        &self.snapshot
    }

    pub(super) fn peer(&self) -> &Peer {
        &self.peer
    }

    /// Finds the client's address out.
    pub(super) fn note_client(&mut self, headers: &HeaderMap) {
        self.client = self.snapshot.rules().client_address(headers, &self.peer);
    }

    pub(super) const fn client(&self) -> IpAddr {
        self.client
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

    /// Finds out what its client speaks.
    pub(super) fn note_dialect(&mut self, headers: &HeaderMap) {
        if self.method == "POST" {
            self.spoken = Dialect::of(headers);
            self.dialect = self.spoken.on(None);
        }
    }

    /// It is known who asks, and `route` is the one that the request falls under.
    pub(super) fn settle_dialect(&mut self, route: Option<&Route>) {
        if self.spoken != Dialect::Http {
            self.dialect = self.spoken.on(route);
        }
    }

    pub(super) const fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// What its client is told in the place of the status of its refusal; `None` where it is told that status.
    pub(super) const fn told(&self) -> Option<GrpcStatus> {
        self.told
    }

    /// `path` is the canonical one.
    pub(super) fn note_route(&mut self, found: Option<Match<'_>>, path: &str) {
        self.rules = found.map(|found| found.numbers());
        self.template = found.map_or(0, |found| found.route.template(path));
    }

    /// The number of the route that it falls under.
    pub(super) fn route(&self) -> Option<usize> {
        self.rules.map(|rules| rules.route)
    }

    pub(super) fn note_key(&mut self, Found { key, org, .. }: &Found) {
        self.key = Some((key.id, key.org));
        self.environment = Some(key.environment);
        if self.gateway.records.has_names() {
            self.names = Some(Box::new([key.name.clone(), org.name.clone()]));
        }
    }

    pub(super) const fn note_level(&mut self, level: Level) {
        self.level = Some(level);
    }

    /// Enters the request into the list of those in flight: from now on it is ended when its key, used by this client, may
    /// no longer do what it does.
    pub(super) fn enter_flight(&mut self, holder: &Rc<Known<Prepared>>) {
        if let Some(rules) = self.rules {
            let (known, snapshot) = (Rc::clone(holder), Rc::clone(&self.snapshot));
            let place = self.gateway.in_flight.enter(known, self.client, snapshot, rules, self.cut.clone());
            self.place = Some(place);
        }
    }

    /// Ends the request after this time, if it has not ended by then.
    pub(super) fn limit(&mut self, total: Duration) {
        let cut = self.cut.clone();
        let timer = tokio::task::spawn_local(async move {
            tokio::time::sleep(total).await;
            cut.order(Rejection::Overdue);
        });
        self.limit = Some(timer.abort_handle());
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

    /// Takes a part of the client's share of the places of an upstream that has a limit.
    ///
    /// # Errors
    /// When as many requests as may be are there, or of the client, or of its organisation, and none ends in time.
    pub(super) async fn take_part_of_upstream(
        &mut self,
        shares: Rc<ThreadShares<Places>>,
        client: Client,
    ) -> Result<(), Rejection> {
        let part = match shares.part(&client) {
            Some(part) => Some(part),
            None => shares.part_beyond(client).await,
        };
        let part = part.ok_or(Rejection::Unavailable(Unavailable::Upstream))?;
        self.part_of_upstream = Some(Box::new((shares, part)));
        Ok(())
    }

    fn leave_flight(&mut self) {
        // On HTTP/1.1 the next request of the connection has the same cut.
        if let Some(limit) = self.limit.take() {
            limit.abort();
        }
        if let Some((shares, part)) = self.part_of_upstream.take().map(|part| *part) {
            shares.give_back(&part);
        }
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

    pub(super) fn note_endpoint(&mut self, endpoint: Option<Arc<str>>) {
        self.endpoint = endpoint;
    }

    /// The client sends a body.
    pub(super) fn note_upload(&mut self, upload: Option<Rc<Upload>>) {
        self.upload = upload;
    }

    /// Bytes of a body have come that no [`Upload`] counts.
    pub(super) const fn note_received(&mut self, bytes: u64) {
        self.received += bytes;
    }

    /// Bytes of a body are handed over to the client's connection.
    pub(super) const fn note_sent(&mut self, bytes: u64) {
        self.sent += bytes;
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

    /// keygate refuses it. The status is what keygate has decided, whatever the client is told in its place.
    pub(super) fn note_refusal(&mut self, rejection: &Rejection) {
        let reason = rejection.reason();
        self.code = Code::Refused(rejection.status());
        self.reason = Some(reason);
        if let Rejection::MissingScope(scope) = rejection {
            self.missing_scope = Some(scope.clone());
        }
        self.told = (self.dialect != Dialect::Http).then(|| rejection.status().into());
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
        self.gateway.eras.leave(self.era);
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
            client: self.client,
            route: self.route().map(|number| self.snapshot.recorded_route(number, self.template)),
            status: self.code.status(),
            reason: self.reason,
            missing_scope: self.missing_scope.take(),
            told: self.told,
            names: self.names.take(),
            key: self.key.map(|(key, _)| key),
            org: self.key.map(|(_, org)| org),
            environment: self.environment,
            level: self.level,
            duration,
            overhead: self.overhead(),
            upstream: self.upstream_duration(),
            endpoint: self.endpoint.take(),
            received: self.received + self.upload.as_ref().map_or(0, |upload| upload.bytes()),
            sent: self.sent,
            complete: self.complete,
        });
    }
}
