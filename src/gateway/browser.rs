//! Live keys that a browser sends. Whoever opens the page can read such a key, so the audit trail notes it, and where
//! the policy or the configuration says so, it is refused.
//!
//! This finds mistakes, and no attacks: a program can leave out the fields by which a browser is recognised.

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use http::HeaderMap;
use http::header::{HeaderName, ORIGIN, UPGRADE};
use serde_json::json;

use super::caller::Caller;
use super::exchange::Exchange;
use crate::lifecycle::{CallingKey, Origin, Principal, TroubleSeen};
use crate::policy::request::CanonicalRequest;
use crate::policy::route::{Match, Route};
use crate::upstream::client_body::ClientBody;
use crate::vocabulary::audit::{AuditKind, Trail};
use crate::vocabulary::browser_keys::BrowserKeys;
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::admission::Needs;
use crate::vocabulary::rejection::{Forbidden, Rejection};

/// A field that only browsers add, to requests that a page makes (Fetch Metadata). `Sec-Fetch-Mode` is none of this
/// kind: the `fetch` of Node adds it too.
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");

/// Reports a live key that a browser sent, whatever the key may do, and refuses it where that is configured.
///
/// # Errors
/// 403 `forbidden` on a route with `browser_keys = "refuse"`, its own or the general one.
pub(super) fn judge(
    exchange: &Exchange,
    request: &CanonicalRequest<ClientBody>,
    caller: &Caller,
    found: Option<Match<'_>>,
) -> Result<(), Rejection> {
    let Caller::Holder(known) = caller else { return Ok(()) };
    if known.found.key.environment != Environment::Live || !is_from_browser(request.headers()) {
        return Ok(());
    }
    let in_browser = &known.prepared.common.noted.in_browser;
    // Reading first, since other threads read it too.
    if !in_browser.load(Ordering::Relaxed)
        && !in_browser.swap(true, Ordering::Relaxed)
        && let Some(calling) = caller.calling_key(Needs::default())
    {
        report(exchange, calling, exchange.client(), found.map(|found| found.route));
    }
    let general = exchange.snapshot().settings().browser_keys;
    let refuses = |own: Option<BrowserKeys>| own.unwrap_or(general) == BrowserKeys::Refuse;
    let is_refused = match found {
        Some(found) => found.rules().any(|rule| refuses(rule.browser_keys)),
        None => refuses(None),
    };
    if is_refused { Err(Rejection::Forbidden(Forbidden::Browser)) } else { Ok(()) }
}

fn is_from_browser(headers: &HeaderMap) -> bool {
    // One pass over the few names that there are costs less than several searches. A page cannot put a key into a
    // WebSocket handshake, and some libraries of programs add an Origin there.
    headers.keys().any(|name| *name == ORIGIN || *name == SEC_FETCH_SITE) && !headers.contains_key(UPGRADE)
}

/// Called once for as long as this thread caches the key. The audit trail limits the records to one an hour. A gateway
/// with the role of a proxy cannot write to it.
#[cold]
fn report(exchange: &Exchange, calling: CallingKey, address: IpAddr, route: Option<&Route>) {
    let Some(api) = &exchange.gateway().api else { return };
    let (trail, target) = (Trail::Org(calling.org), Some(calling.id.to_string()));
    let environment = calling.environment;
    let origin = Origin::request(Principal::Key(calling), address, exchange.id());
    api.lifecycle().troubles().report(TroubleSeen {
        trail,
        kind: AuditKind::KeyInBrowser,
        environment,
        origin,
        target,
        seen: json!({ "route": route.map(|route| &*route.id) }),
    });
}
