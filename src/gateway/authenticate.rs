//! From the Authorization field to a known key. Every 401 looks the same to the client.

use std::rc::Rc;

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::Gateway;
use super::caller::{Caller, Prepared};
use super::exchange::Exchange;
use super::snapshot::Shapes;
use crate::policy::request::CanonicalRequest;
use crate::policy::route::Match;
use crate::store::cache::{Known, Resolved};
use crate::store::{Found, StoreFault};
use crate::vocabulary::key::admission::{Attempt, admit};
use crate::vocabulary::key::{Environment, Malformed, PresentedKey};
use crate::vocabulary::network::ClientNetwork;
use crate::vocabulary::rejection::{Rejection, Unauthenticated, Unavailable};

/// Finds out who asks.
///
/// # Errors
/// 401 without a key that is valid now, 403 `forbidden` for a key that may do nothing, 503 where the store cannot tell.
pub(super) async fn authenticate<B>(
    exchange: &mut Exchange,
    request: &CanonicalRequest<B>,
    found: Option<Match<'_>>,
) -> Result<Caller, Rejection> {
    let headers = request.headers();
    if found.is_some_and(Match::is_public) {
        return Ok(Caller::Anyone { environment: named_environment(exchange, headers) });
    }
    let key = presented_key(exchange, headers)?;
    let known = resolve(exchange, &key, found).await?;
    Ok(Caller::Holder(known))
}

/// The key of a request. Only its form has been judged.
pub(super) fn presented_key<'h>(
    exchange: &Exchange,
    headers: &'h HeaderMap,
) -> Result<PresentedKey<'h>, Rejection> {
    let token = bearer_token(headers).map_err(Rejection::Unauthenticated)?;
    let shapes = exchange.snapshot().shapes();
    let key = shapes
        .format
        .parse(token)
        .or_else(|malformed| parse_other(exchange.gateway(), shapes, token, malformed));
    key.map_err(|Malformed| Rejection::Unauthenticated(Unauthenticated::Malformed))
}

/// A key with a prefix that is not among those of this gateway is looked up while the gateway cannot be sure that it knows
/// all prefixes: before the others know which ones it accepts, and while it is cut off from the store. Then another gateway
/// may make keys with a prefix that this one has not heard of.
#[cold]
fn parse_other<'h>(
    gateway: &Gateway,
    shapes: &Shapes,
    token: &'h [u8],
    malformed: Malformed,
) -> Result<PresentedKey<'h>, Malformed> {
    if shapes.are_all() && !gateway.keys.is_cut_off() {
        Err(malformed)
    } else {
        shapes.format.parse_any(token)
    }
}

async fn resolve(
    exchange: &mut Exchange,
    key: &PresentedKey<'_>,
    found: Option<Match<'_>>,
) -> Result<Rc<Known<Prepared>>, Rejection> {
    let gateway = exchange.gateway();
    let digest = key.fingerprint();
    let (resolved, level) = match gateway.keys.find(&digest, exchange.started()) {
        Some(found) => found,
        None => gateway.keys.load(&digest, ClientNetwork::of(exchange.client())).await,
    };
    exchange.note_level(level);
    let gateway = exchange.gateway();
    gateway.cells.looked_up(level);
    let is_fenced = || match found {
        Some(found) => found.rules().any(|rule| gateway.keys.is_fenced(rule.on_partition)),
        None => gateway.keys.is_fenced(None),
    };
    let known = match resolved {
        Resolved::Known(_) | Resolved::Absent if is_fenced() => {
            return Err(Rejection::Unavailable(Unavailable::Store));
        }
        Resolved::Known(known) => known,
        Resolved::Absent => return Err(Rejection::Unauthenticated(Unauthenticated::Unknown)),
        Resolved::Unavailable(StoreFault::Exhausted) => {
            return Err(Rejection::Unavailable(Unavailable::Lookups));
        }
        Resolved::Unavailable(_) => return Err(Rejection::Unavailable(Unavailable::Store)),
    };
    exchange.note_key(&known.found);
    let Found { key: record, org, digest } = &*known.found;
    let (environment, now) = (key.environment(), exchange.started().wall);
    // The route's needs are judged by `authorize`: a limit and the 404 come in between.
    let attempt = Attempt { digest, environment, needs: None, now };
    admit(record, org, &attempt, || Some(exchange.client()))?;
    exchange.gateway().cells.authenticated();
    Ok(known)
}

/// The token behind `Bearer` (RFC 6750, section 2.1; the scheme in letters of any case, RFC 9110, section 11.1). The guard
/// has refused a second Authorization field.
fn bearer_token(headers: &HeaderMap) -> Result<&[u8], Unauthenticated> {
    let credentials = headers.get(AUTHORIZATION).ok_or(Unauthenticated::Missing)?.as_bytes();
    let (scheme, token) = credentials.split_at_checked(7).ok_or(Unauthenticated::NotBearer)?;
    if !scheme.eq_ignore_ascii_case(b"Bearer ") {
        return Err(Unauthenticated::NotBearer);
    }
    let blanks = token.iter().take_while(|byte| **byte == b' ').count();
    Ok(&token[blanks..])
}

/// The environment that a request on a public route names, if any. Such a route looks at no key. But the sender of a
/// test key means the sandbox, also where the key is mistyped or stands beside a live one.
fn named_environment(exchange: &Exchange, headers: &HeaderMap) -> Option<Environment> {
    let credentials = headers.get(AUTHORIZATION)?;
    exchange.snapshot().shapes().format.named_environment(credentials.as_bytes())
}
