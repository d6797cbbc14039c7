//! The decision: whether a request may pass. The request path asks it once the key is known; the tools ask it without a
//! key.

use super::access::Access;
use super::reading::{Ambiguity, OtherReading};
use super::request::CanonicalRequest;
use super::route::{Match, Route, RouteTable, Routed};
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::admission::Lacking;
use crate::vocabulary::key::scope::ScopeSet;
use crate::vocabulary::rejection::{NotFound, Rejection, Unauthenticated};

/// The sender of a request, as far as the policy is concerned.
#[derive(Clone, Copy, Debug)]
pub enum Asker<'a> {
    /// A sender without a key. `environment` is the one that its credentials name all the same.
    Anyone { environment: Option<Environment> },
    /// The holder of a valid key.
    Holder { scopes: &'a ScopeSet, environment: Environment },
}

/// A request that may pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed<'t> {
    pub found: Match<'t>,
    /// The side of an upstream that the request may reach.
    pub environment: Environment,
}

/// Why a request may not pass.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Denial<'t> {
    /// The sender has no key, and the request falls under no public route.
    NoKey,
    Ambiguous(Ambiguity),
    /// No rule names the request.
    NoRoute,
    MissingScope(Lacking<'t>),
}

impl From<Denial<'_>> for Rejection {
    fn from(denial: Denial<'_>) -> Self {
        match denial {
            Denial::NoKey => Self::Unauthenticated(Unauthenticated::Missing),
            Denial::Ambiguous(ambiguity) => Self::Unsafe(ambiguity.refusal()),
            Denial::NoRoute => Self::NotFound(NotFound::NoRoute),
            Denial::MissingScope(lacking) => Self::MissingScope(lacking.into()),
        }
    }
}

/// Decides on a request.
///
/// # Errors
/// The first reason in the order of refusals.
pub fn decide<'t, B>(
    routes: &'t RouteTable,
    request: &CanonicalRequest<B>,
    asker: &Asker<'_>,
) -> Result<Allowed<'t>, Denial<'t>> {
    judge(routes.find(request), asker)
}

/// The part of [`decide`] that comes after the route.
///
/// # Errors
/// The first reason in the order of refusals. A sender without a key is refused before anything shows which rules
/// there are.
pub fn judge<'t>(routed: Routed<'t>, asker: &Asker<'_>) -> Result<Allowed<'t>, Denial<'t>> {
    let routed = match routed {
        Ok(Some(found)) if !found.others.is_empty() && !satisfies_all(found, asker) => {
            Err(Ambiguity::Reading(OtherReading::Foreign))
        }
        routed => routed,
    };
    let public = match routed {
        Ok(Some(found)) => match found.route.access {
            Access::Public { environment } => Some((found, environment)),
            Access::AnyKey | Access::Scopes(_) => None,
        },
        Ok(None) | Err(_) => None,
    };
    match (public, asker) {
        (Some((found, own)), Asker::Anyone { environment }) => {
            Ok(Allowed { found, environment: environment.unwrap_or(own) })
        }
        (Some((found, _)), Asker::Holder { environment, .. }) => {
            Ok(Allowed { found, environment: *environment })
        }
        (None, Asker::Anyone { .. }) => Err(Denial::NoKey),
        (None, Asker::Holder { scopes, environment }) => {
            let found = routed.map_err(Denial::Ambiguous)?.ok_or(Denial::NoRoute)?;
            if let Some(needs) = found.route.access.needs() {
                needs.check(scopes).map_err(Denial::MissingScope)?;
            }
            Ok(Allowed { found, environment: *environment })
        }
    }
}

/// Whether a sender may do all that a request can mean to some router, and all of it has one target.
fn satisfies_all(found: Match<'_>, asker: &Asker<'_>) -> bool {
    let environment_of = |rule: &Route| match (asker, &rule.access) {
        (Asker::Anyone { environment: None }, Access::Public { environment }) => Some(*environment),
        (Asker::Anyone { environment }, _) => *environment,
        (Asker::Holder { environment, .. }, _) => Some(*environment),
    };
    let satisfies = |rule: &Route| match (&rule.access, asker) {
        (Access::Public { .. }, _) | (Access::AnyKey, Asker::Holder { .. }) => true,
        (Access::Scopes(needs), Asker::Holder { scopes, .. }) => needs.check(scopes).is_ok(),
        (Access::AnyKey | Access::Scopes(_), Asker::Anyone { .. }) => false,
    };
    let target = (found.route.target, environment_of(found.route));
    found.rules().all(|rule| (rule.target, environment_of(rule)) == target && satisfies(rule))
}

#[cfg(test)]
mod tests {
    use http::{Method, Request};

    use super::*;
    use crate::policy::reading::OtherReading;
    use crate::policy::request::Limits;
    use crate::policy::route::tests::route;
    use crate::vocabulary::key::admission::Needs;
    use crate::vocabulary::key::scope::Scope;

    fn scopes(names: &[&str]) -> ScopeSet {
        names.iter().map(|name| Scope::parse(name).unwrap()).collect()
    }

    fn table() -> RouteTable {
        let with = |id, path, access| {
            let mut route = route(id, Method::GET, &[path]);
            route.access = access;
            route
        };
        RouteTable::build(vec![
            with("health", "/health", Access::Public { environment: Environment::Live }),
            with("own", "/own", Access::AnyKey),
            with("jobs", "/jobs", Access::Scopes(Needs::all(scopes(&["jobs:read"])))),
        ])
        .unwrap()
    }

    /// The route and the environment, or the denial.
    fn decided(path: &str, asker: &Asker<'_>) -> Result<(String, Environment), String> {
        let request = Request::builder().uri(path).header("host", "h").body(()).unwrap();
        let request = CanonicalRequest::parse(request, &Limits::default()).unwrap();
        match decide(&table(), &request, asker) {
            Ok(Allowed { found, environment }) => Ok((found.route.id.to_string(), environment)),
            Err(denial) => Err(format!("{denial:?}")),
        }
    }

    #[test]
    fn a_decision_needs_a_scope_set_and_an_environment_and_no_key() {
        let (held, other) = (scopes(&["jobs:read"]), scopes(&["jobs:write"]));
        let holder = |scopes| Asker::Holder { scopes, environment: Environment::Test };
        let test = |id: &str| Ok((id.to_owned(), Environment::Test));
        assert_eq!(decided("/jobs", &holder(&held)), test("jobs"));
        assert_eq!(decided("/own", &holder(&other)), test("own"));
        assert_eq!(decided("/health", &holder(&other)), test("health"), "the key names the environment");
        assert_eq!(decided("/jobs", &holder(&other)), Err("MissingScope(Scope(jobs:read))".to_owned()));
        assert_eq!(decided("/nowhere", &holder(&held)), Err("NoRoute".to_owned()));
        assert_eq!(
            decided("/jobs;x", &holder(&held)),
            Err("NoRoute".to_owned()),
            "no rule names it as it is"
        );
        let public = Asker::Anyone { environment: None };
        assert_eq!(decided("/health", &public), Ok(("health".to_owned(), Environment::Live)));
        let named = Asker::Anyone { environment: Some(Environment::Test) };
        assert_eq!(decided("/health", &named), test("health"));
        for path in ["/own", "/jobs", "/nowhere", "/a%2Fb"] {
            assert_eq!(decided(path, &public), Err("NoKey".to_owned()), "{path}: a stranger learns nothing");
        }
        assert_eq!(decided("/a%2Fb", &holder(&held)), Err("Ambiguous(EncodedSlash)".to_owned()));
    }

    #[test]
    fn every_denial_has_its_refusal() {
        let scope = Scope::parse("jobs:read").unwrap();
        for (denial, status) in [
            (Denial::NoKey, 401),
            (Denial::Ambiguous(Ambiguity::EncodedSlash), 400),
            (Denial::Ambiguous(Ambiguity::Reading(OtherReading::Slash)), 400),
            (Denial::NoRoute, 404),
            (Denial::MissingScope(Lacking::Scope(&scope)), 403),
        ] {
            assert_eq!(Rejection::from(denial).status().code(), status, "{denial:?}");
        }
    }
}
