//! One request, one answer, one record: the guard that sees to it.

use std::rc::Rc;

use http::{HeaderValue, Method, Request, StatusCode};

use super::Gateway;
use super::headers::request_id_value;
use super::route::Route;
use crate::clock::Now;
use crate::id::{KeyId, OrgId, RequestId};
use crate::key::Environment;
use crate::key::record::KeyRecord;
use crate::rejection::Rejection;
use crate::store::cache::Level;
use crate::telemetry::Record;

/// A request from its parsed head to the last byte of its answer. Writes its record when it is dropped, however it ended.
#[derive(Debug)]
pub(super) struct Exchange {
    gateway: Rc<Gateway>,
    started: Now,
    id: RequestId,
    id_value: HeaderValue,
    method: &'static str,
    route: Option<Box<str>>,
    key: Option<(KeyId, OrgId, Environment)>,
    level: Option<Level>,
    status: Option<StatusCode>,
    reason: Option<&'static str>,
    complete: bool,
}

impl Exchange {
    pub(super) fn begin<B>(gateway: &Rc<Gateway>, request: &Request<B>) -> Self {
        let started = gateway.clock.now();
        let id = RequestId::draw(&mut gateway.ids.borrow_mut(), started.wall);
        Self {
            gateway: Rc::clone(gateway),
            started,
            id,
            id_value: request_id_value(id),
            method: known_method(request.method()),
            route: None,
            key: None,
            level: None,
            status: None,
            reason: None,
            complete: false,
        }
    }

    /// When the request's head had been parsed. Everything about it is judged at this moment.
    pub(super) const fn started(&self) -> Now {
        self.started
    }

    pub(super) const fn id(&self) -> RequestId {
        self.id
    }

    pub(super) const fn id_value(&self) -> &HeaderValue {
        &self.id_value
    }

    pub(super) fn note_route(&mut self, route: Option<&Route>) {
        if self.gateway.records.is_on() {
            self.route = route.map(|route| route.id.clone());
        }
    }

    pub(super) const fn note_key(&mut self, key: &KeyRecord) {
        self.key = Some((key.id, key.org, key.environment));
    }

    pub(super) const fn note_level(&mut self, level: Level) {
        self.level = Some(level);
    }

    pub(super) const fn note_refusal(&mut self, rejection: &Rejection) {
        self.reason = Some(rejection.reason());
    }

    pub(super) const fn note_status(&mut self, status: StatusCode) {
        self.status = Some(status);
    }

    /// The answer has been handed over to its last byte.
    pub(super) const fn note_complete(&mut self) {
        self.complete = true;
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.gateway.records.is_on() {
            return;
        }
        let duration = self.gateway.clock.now().mono.saturating_duration_since(self.started.mono);
        self.gateway.records.push(Record {
            at: self.started.wall,
            request: self.id,
            method: self.method,
            route: self.route.take(),
            status: self.status,
            reason: self.reason,
            key: self.key.map(|(key, ..)| key),
            org: self.key.map(|(_, org, _)| org),
            environment: self.key.map(|(.., environment)| environment),
            level: self.level,
            duration,
            complete: self.complete,
        });
    }
}

fn known_method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::TRACE => "TRACE",
        Method::CONNECT => "CONNECT",
        _ => "_OTHER",
    }
}
