//! The policy file: the routes, the access rule of each and its target.

use http::Method;

use super::file::Value;
use super::mistake::{Place, quoted, suggestion};
use super::section::Section;
use super::server::BODY;
use super::value::{choice, flag, only_true, parsed, size, text};
use super::{BROWSER_KEYS, ON_PARTITION};
use crate::policy::access::Access;
use crate::policy::pattern::Pattern;
use crate::policy::route::{Conflict, Route, RouteTable};
use crate::policy::target::{Operation, Target, UpstreamId};
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::admission::Needs;
use crate::vocabulary::key::scope::{OneOf, Scope, ScopeSet};
use crate::vocabulary::spelling::nearest;
use crate::vocabulary::upstream::Retries;

pub(super) struct Policy {
    pub(super) routes: RouteTable,
    /// All scopes of the policy.
    pub(super) scopes: ScopeSet,
}

/// `None` only if the report has the reason.
pub(super) fn read(root: &mut Section<'_>, upstreams: &[&str]) -> Option<Policy> {
    let declared = root.list("scopes", parsed(Scope::parse));
    // With a mistake in the list, a scope that seems to be missing may only be misspelt there.
    let vocabulary = declared.as_deref();
    let names = Names { upstreams, scopes: vocabulary };
    let routes = root.repeated("route", "id", |section| Rule {
        route: route(section, &names),
        place: section.place().clone(),
    });
    if routes.is_empty() && !root.given("route") {
        root.missing("route", "without a route, every request is refused; add a [[route]] section");
    }
    let asks = |rule: &Rule| matches!(&rule.route, Some(Route { access: Access::Scopes(_), .. }));
    if !root.given("scopes") && routes.iter().any(asks) {
        root.missing("scopes", "list every scope of your API, as in scopes = [\"jobs:read\"]");
    }
    let routes = compile(root, routes)?;
    Some(Policy { routes, scopes: declared.unwrap_or_default().into() })
}

/// The names that a route can refer to.
struct Names<'n> {
    upstreams: &'n [&'n str],
    /// `None` if they are not known.
    scopes: Option<&'n [Scope]>,
}

/// A route and its place; `None` if its mistakes were reported.
struct Rule {
    route: Option<Route>,
    place: Place,
}

fn route(section: &mut Section<'_>, names: &Names<'_>) -> Option<Route> {
    let id =
        section.required("id", "give the route a name for logs and metrics, as in id = \"jobs.read\"", id);
    let methods = section.required_list("methods", "list at least one method, as in [\"GET\"]", method);
    let patterns = section.required_list(
        "paths",
        "list at least one path, as in [\"/v1/jobs\"]",
        parsed(Pattern::parse),
    );
    let denies_other_methods = section.or("other_methods", false, choice(&[("deny", true)]));
    let access = access(section, names);
    let target = target(section, names);
    let forward_authorization = section.or("forward_authorization", false, flag);
    let encoded_slash = section.or("encoded_slash", false, flag);
    let websocket = section.or("websocket", false, flag);
    let retries = section.or("retry", Retries::Safe, retries);
    let on_partition = section.optional("on_partition", choice(&ON_PARTITION));
    let browser_keys = section.optional("browser_keys", choice(&BROWSER_KEYS));
    let body_limit = section.optional("body_limit", size(BODY));
    let (access, target) = (access?, target?);
    refuse_senseless(section, &access, target);
    let (id, methods, patterns) = (id?, methods?, patterns?);
    if let Target::Operation(operation) = target {
        refuse_unservable(section, operation, &methods, &patterns);
    }
    Some(Route {
        id,
        place: section.place().rule_place(),
        methods,
        patterns,
        denies_other_methods,
        access,
        target,
        forward_authorization,
        encoded_slash,
        websocket,
        retries,
        on_partition,
        browser_keys,
        body_limit,
    })
}

fn retries(value: &Value) -> Result<Retries, String> {
    flag(value).map(|allowed| if allowed { Retries::Idempotent } else { Retries::Never })
}

fn id(value: &Value) -> Result<Box<str>, String> {
    let text = text(value)?;
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    // A beginning underscore is reserved for keygate's own labels in metrics, as `_none` for requests without a route.
    let well_formed = (1..=64).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('_');
    if well_formed {
        Ok(text.into())
    } else {
        Err(format!(
            "invalid value {}; write 1 to 64 characters from a-z 0-9 . _ - that do not begin with _",
            quoted(&text)
        ))
    }
}

fn method(value: &Value) -> Result<Method, String> {
    const COMMON: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let text = text(value)?;
    if matches!(&*text, "CONNECT" | "TRACE") {
        return Err(format!("{text} cannot be forwarded safely; remove it"));
    }
    let token = !text.is_empty() && text.bytes().all(|b| b.is_ascii_uppercase() || b"-_".contains(&b));
    if let (true, Ok(method)) = (token, Method::from_bytes(text.as_bytes())) {
        return Ok(method);
    }
    let advice = match nearest(&text, COMMON) {
        _ if text == "*" => "there is no wildcard: list the methods".to_owned(),
        Some(near) => format!("did you mean {near:?}?"),
        None => "write it in upper case, as in \"GET\"".to_owned(),
    };
    Err(format!("{} is not a method; {advice}", quoted(&text)))
}

/// The access rule of the route: exactly one of three, of which the scopes have two keys.
fn access(section: &mut Section<'_>, names: &Names<'_>) -> Option<Access> {
    const ADVICE: &str = "list at least one scope: with an empty list, every request would be refused";
    const KEYS: [&str; 4] = ["public", "any_key", "scopes", "any_scope"];
    let public = section.optional("public", only_true);
    let any_key = section.optional("any_key", only_true);
    let all = section.filled("scopes", ADVICE, |value| scope(value, names));
    let any = section.filled("any_scope", ADVICE, |value| scope(value, names));
    let environments = Environment::ALL.map(|environment| (environment.as_str(), environment));
    let environment = section.optional("environment", choice(&environments));

    let given: Vec<&str> = KEYS.into_iter().filter(|key| section.given(key)).collect();
    match given[..] {
        [_] | ["scopes", "any_scope"] => {}
        [] => {
            section.lacks(
                "the route has no access rule; add scopes = […], any_scope = […], any_key = true or public = true",
            );
            return None;
        }
        [first, second, ..] => {
            section.wrong(second, format!("`{first}` is also set; remove one of the two"));
            return None;
        }
    }
    if let (Some(()), environment) = (public, environment) {
        return Some(Access::Public { environment: environment.unwrap_or(Environment::Live) });
    }
    any_key.map(|()| Access::AnyKey).or_else(|| needs(section, all, any).map(Access::Scopes))
}

/// The scopes that the route asks for. A list that is `None` is missing, or its mistakes were reported.
fn needs(section: &Section<'_>, all: Option<Vec<Scope>>, any: Option<Vec<Scope>>) -> Option<Needs> {
    let is_wrong = |key, list: &Option<Vec<Scope>>| section.given(key) && list.is_none();
    if is_wrong("scopes", &all) || is_wrong("any_scope", &any) {
        return None;
    }
    let needs =
        Needs { all: all.unwrap_or_default().into(), any: any.and_then(|scopes| OneOf::new(scopes.into())) };
    if let Some(scope) = needs.any.as_ref().and_then(|any| any.scopes().first_common(&needs.all)) {
        let text = format!(
            "{} is also in `scopes`, so every key that has those passes; remove it from one of the two lists",
            quoted(scope.as_str())
        );
        section.wrong("any_scope", text);
    }
    Some(needs)
}

fn scope(value: &Value, names: &Names<'_>) -> Result<Scope, String> {
    let scope = parsed(Scope::parse)(value)?;
    let Some(declared) = names.scopes else { return Ok(scope) };
    if declared.contains(&scope) {
        return Ok(scope);
    }
    let declared: Vec<&str> = declared.iter().map(Scope::as_str).collect();
    let advice = suggestion(scope.as_str(), "declared scopes", &declared);
    Err(format!("{} is not in the list `scopes` at the top of the file; {advice}", quoted(scope.as_str())))
}

/// The target of the route: exactly one of two keys.
fn target(section: &mut Section<'_>, names: &Names<'_>) -> Option<Target> {
    let upstream = section.optional("upstream", |value| {
        let name = text(value)?;
        names.upstreams.iter().position(|upstream| *upstream == name).map(UpstreamId).ok_or_else(|| {
            format!(
                "there is no upstream {}; {}",
                quoted(&name),
                suggestion(&name, "upstreams", names.upstreams)
            )
        })
    });
    let operation = section.optional("serve", |value| {
        let name = text(value)?;
        let all = Operation::ALL.map(Operation::name);
        Operation::ALL.into_iter().find(|operation| operation.name() == name).ok_or_else(|| {
            format!("there is no operation {}; {}", quoted(&name), suggestion(&name, "operations", &all))
        })
    });
    match (section.given("upstream"), section.given("serve")) {
        (true, true) => {
            section.wrong("serve", "`upstream` is also set; remove one of the two");
            None
        }
        (false, false) => {
            section.lacks("the route has no target; add upstream = \"…\" or serve = \"…\"");
            None
        }
        _ => upstream.map(Target::Upstream).or_else(|| operation.map(Target::Operation)),
    }
}

/// Reports keys that have no effect on this kind of route.
fn refuse_senseless(section: &Section<'_>, access: &Access, target: Target) {
    let public = matches!(access, Access::Public { .. });
    if section.given("environment") && !(public && matches!(target, Target::Upstream(_))) {
        let text = "only valid on a public route to an upstream; remove it";
        section.wrong("environment", text);
    }
    let Target::Operation(operation) = target else { return };
    for key in ["forward_authorization", "encoded_slash", "websocket", "retry"] {
        if section.given(key) {
            section.wrong(key, "only valid on a route to an upstream; remove it");
        }
    }
    if public && operation != Operation::Signup {
        let text = format!(
            "{} acts for the owner of a key, so the route cannot be public; write scopes = […] instead",
            operation.name()
        );
        section.wrong("public", text);
    }
}

/// Reports methods and paths that the operation does not accept.
fn refuse_unservable(section: &Section<'_>, operation: Operation, methods: &[Method], patterns: &[Pattern]) {
    let (allowed, names_key) = match operation {
        Operation::Signup | Operation::CreateKey => (&[Method::POST][..], false),
        Operation::ListKeys | Operation::GetOwnKey | Operation::ListAuditRecords => {
            (&[Method::GET, Method::HEAD][..], false)
        }
        Operation::GetKey => (&[Method::GET, Method::HEAD][..], true),
        Operation::UpdateKey => (&[Method::PATCH][..], true),
        Operation::RotateKey => (&[Method::POST][..], true),
        Operation::RevokeKey => (&[Method::POST, Method::DELETE][..], true),
    };
    let name = operation.name();
    if let Some(method) = methods.iter().find(|method| !allowed.contains(method)) {
        let allowed: Vec<&str> = allowed.iter().map(Method::as_str).collect();
        section.wrong("methods", format!("{name} does not accept {method}; write {}", allowed.join(" or ")));
    }
    for pattern in patterns.iter().map(Pattern::as_str) {
        let (parameters, rest) = (pattern.matches('{').count(), pattern.contains("{*"));
        if names_key && (parameters != 1 || rest) {
            let text = format!("{name} reads the key's id from the path; write one {{id}} in {pattern}");
            section.wrong("paths", text);
        } else if !names_key && parameters > 0 {
            section.wrong(
                "paths",
                format!("{name} reads nothing from the path; write {pattern} without braces"),
            );
        }
    }
}

/// The table of all routes. A conflict is reported at the later of the two routes.
fn compile(root: &Section<'_>, rules: Vec<Rule>) -> Option<RouteTable> {
    let complete = rules.iter().all(|rule| rule.route.is_some());
    let (routes, places): (Vec<Route>, Vec<Place>) =
        rules.into_iter().filter_map(|rule| rule.route.map(|route| (route, rule.place))).unzip();
    let ids: Vec<Box<str>> = routes.iter().map(|route| route.id.clone()).collect();
    match RouteTable::build(routes) {
        Ok(table) => complete.then_some(table),
        Err(conflicts) => {
            for conflict in conflicts {
                let (second, advice) = match &conflict {
                    Conflict::SameRequest { second, .. } => (second, "remove it from one of them"),
                    Conflict::HeadApartFromGet { second, .. } => {
                        (second, "list HEAD beside GET in one route, or remove it")
                    }
                    Conflict::SameId(id) => (id, "give each its own id"),
                };
                let at = ids.iter().rposition(|id| id == second).and_then(|n| places.get(n));
                root.wrong_at(at, &format!("route[{second}]"), format!("{conflict}; {advice}"));
            }
            None
        }
    }
}
