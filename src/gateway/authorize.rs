//! May it do this? From a caller and a route to a [`Permit`], which alone opens the way further.

use std::rc::Rc;

use super::authenticate::Caller;
use super::headers::Identity;
use super::route::{Access, Route, Target};
use super::usage::Prepared;
use crate::lifecycle::CallingKey;
use crate::store::cache::Known;
use crate::vocabulary::key::Environment;
use crate::vocabulary::rejection::{NotFound, Rejection};

/// Leave to do one thing once. Made only by [`authorize`]; not to be copied.
#[derive(Debug)]
pub(super) struct Permit<'r> {
    route: &'r Route,
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

    /// Which side of an upstream the request may reach.
    pub(super) fn environment(&self) -> Environment {
        match &self.caller {
            Caller::Anyone { environment } => *environment,
            Caller::Holder(known) => known.found.key.environment,
        }
    }

    /// Whose key it is; nobody's on a public route.
    pub(super) const fn holder(&self) -> Option<&Rc<Known<Prepared>>> {
        match &self.caller {
            Caller::Anyone { .. } => None,
            Caller::Holder(known) => Some(known),
        }
    }

    /// The key that was presented and what was asked of it, for whoever decides on it again.
    pub(super) fn calling_key(&self) -> Option<CallingKey> {
        self.caller.calling_key(self.route.access.needs().cloned().unwrap_or_default())
    }

    /// What the upstream is told; nothing on a public route.
    pub(super) fn identity(&self) -> Option<&Identity> {
        self.holder().map(|known| &known.prepared.identity)
    }
}

/// # Errors
/// 404 where no rule is, 403 where the key lacks a scope.
pub(super) fn authorize(route: Result<&Route, NotFound>, caller: Caller) -> Result<Permit<'_>, Rejection> {
    let route = route.map_err(Rejection::NotFound)?;
    check(&route.access, &caller)?;
    Ok(Permit { route, caller })
}

fn check(access: &Access, caller: &Caller) -> Result<(), Rejection> {
    match (access, caller) {
        (Access::Public { .. }, _) | (Access::AnyKey, Caller::Holder(_)) => Ok(()),
        (Access::Scopes(needs), Caller::Holder(known)) => {
            needs.check(&known.found.key.scopes).map_err(|missing| Rejection::MissingScope(missing.clone()))
        }
        // A caller without a key comes from a public route only; should that ever change, the answer is no.
        (Access::AnyKey | Access::Scopes(_), Caller::Anyone { .. }) => {
            Err(Rejection::NotFound(NotFound::NoRoute))
        }
    }
}
