//! May it do this? From a caller and a route to a [`Permit`]. Nothing is forwarded or served without one.

use std::rc::Rc;

use super::Gateway;
use super::caller::{Caller, Prepared};
use super::headers::Identity;
use crate::lifecycle::CallingKey;
use crate::policy::decision::{Allowed, judge};
use crate::policy::route::{Route, Routed};
use crate::policy::target::Target;
use crate::store::cache::Known;
use crate::vocabulary::key::Environment;
use crate::vocabulary::rejection::{NotFound, Rejection};

/// The right to do one thing once. Made only by [`authorize`]; it cannot be copied.
#[derive(Debug)]
pub(super) struct Permit<'r> {
    route: &'r Route,
    environment: Environment,
    caller: Caller,
}

impl<'r> Permit<'r> {
    pub(super) const fn route(&self) -> &'r Route {
        self.route
    }

    pub(super) const fn target(&self) -> Target {
        self.route.target
    }

    pub(super) const fn caller(&self) -> &Caller {
        &self.caller
    }

    /// The side of an upstream that the request may reach.
    pub(super) const fn environment(&self) -> Environment {
        self.environment
    }

    /// The key of the caller; `None` on a public route.
    pub(super) const fn holder(&self) -> Option<&Rc<Known<Prepared>>> {
        match &self.caller {
            Caller::Anyone { .. } => None,
            Caller::Holder(known) => Some(known),
        }
    }

    /// The key that was presented and what was asked of it, for a part that decides on it again.
    pub(super) fn calling_key(&self) -> Option<CallingKey> {
        self.caller.calling_key(self.route.access.needs().cloned().unwrap_or_default())
    }

    /// The caller's identity for the upstream; `None` on a public route.
    pub(super) fn identity(&self) -> Option<&Identity> {
        self.holder().map(|known| &known.prepared.common.identity)
    }
}

/// # Errors
/// 400 for a path with two readings, 404 without a route that is served here, 403 for a key without the scope.
pub(super) fn authorize<'r>(
    gateway: &Gateway,
    routed: Routed<'r>,
    caller: Caller,
) -> Result<Permit<'r>, Rejection> {
    if let Ok(Some(found)) = routed
        && !gateway.serves(found.route)
    {
        return Err(Rejection::NotFound(NotFound::NotServedHere));
    }
    let Allowed { found, environment } = judge(routed, &caller.asker())?;
    Ok(Permit { route: found.route, environment, caller })
}
