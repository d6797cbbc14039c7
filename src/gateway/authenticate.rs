//! Who is this? From the Authorization field to a known key, or one and the same 401.

use std::rc::Rc;

use http::HeaderMap;
use http::header::AUTHORIZATION;

use super::Gateway;
use super::exchange::Exchange;
use super::guard::CanonicalRequest;
use super::headers::Identity;
use super::route::{Access, Route};
use crate::key::{Environment, PresentedKey};
use crate::rejection::{Forbidden, Rejection, Unauthenticated, Unavailable};
use crate::store::StoreFault;
use crate::store::cache::{Known, Resolved};

/// Who asks.
#[derive(Debug)]
pub(super) enum Caller {
    /// Nobody in particular, on a public route. `environment` is where the route sends them.
    Anyone { environment: Environment },
    /// The holder of a valid key.
    Holder(Rc<Known<Identity>>),
}

/// Finds out who asks.
///
/// # Errors
/// 401 for whatever is not a valid key now, 403 `forbidden` for one that may do nothing, 503 where the store cannot tell.
pub(super) async fn authenticate<B>(
    gateway: &Gateway,
    request: &CanonicalRequest<B>,
    route: Option<&Route>,
    exchange: &mut Exchange,
) -> Result<Caller, Rejection> {
    let token = bearer_token(request.headers());
    if let Some(Route { access: Access::Public { environment }, .. }) = route {
        return Ok(Caller::Anyone { environment: public_environment(gateway, token, *environment) });
    }
    let key = gateway
        .format
        .parse(token.map_err(Rejection::Unauthenticated)?)
        .map_err(|_| Rejection::Unauthenticated(Unauthenticated::Malformed))?;
    let known = resolve(gateway, &key, exchange).await?;
    Ok(Caller::Holder(known))
}

async fn resolve(
    gateway: &Gateway,
    key: &PresentedKey<'_>,
    exchange: &mut Exchange,
) -> Result<Rc<Known<Identity>>, Rejection> {
    let digest = gateway.digester.digest(key);
    let (resolved, level) = match gateway.keys.find(&digest, exchange.started()) {
        Some(found) => found,
        None => gateway.keys.load(&digest).await,
    };
    exchange.note_level(level);
    let known = match resolved {
        Resolved::Known(known) => known,
        Resolved::Absent => return Err(Rejection::Unauthenticated(Unauthenticated::Unknown)),
        Resolved::Unavailable(StoreFault::Exhausted) => {
            return Err(Rejection::Unavailable(Unavailable::Lookups));
        }
        Resolved::Unavailable(_) => return Err(Rejection::Unavailable(Unavailable::Store)),
    };
    let (record, org) = (&known.found.key, &known.found.org);
    exchange.note_key(record);
    record
        .admit(&digest, key.environment(), exchange.started().wall)
        .map_err(|dead| Rejection::Unauthenticated(Unauthenticated::Dead(dead)))?;
    if org.suspended_at.is_some() {
        return Err(Rejection::Forbidden(Forbidden::OrganisationSuspended));
    }
    Ok(known)
}

/// The token behind `Bearer` (RFC 6750, section 2.1; the scheme in any case, RFC 9110, section 11.1). That there is at most one field, the
/// guard has seen to.
fn bearer_token(headers: &HeaderMap) -> Result<&[u8], Unauthenticated> {
    let credentials = headers.get(AUTHORIZATION).ok_or(Unauthenticated::Missing)?.as_bytes();
    let (scheme, token) = credentials.split_at_checked(7).ok_or(Unauthenticated::NotBearer)?;
    if !scheme.eq_ignore_ascii_case(b"Bearer ") {
        return Err(Unauthenticated::NotBearer);
    }
    let blanks = token.iter().take_while(|byte| **byte == b' ').count();
    Ok(&token[blanks..])
}

/// A public route looks at no key. But whoever presents a test key means the sandbox, so its prefix still decides; also that of
/// a mistyped one, which is no less meant for the sandbox.
fn public_environment(
    gateway: &Gateway,
    token: Result<&[u8], Unauthenticated>,
    otherwise: Environment,
) -> Environment {
    token.ok().and_then(|token| gateway.format.named_environment(token)).unwrap_or(otherwise)
}
