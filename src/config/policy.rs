//! The policy file: which routes there are, who may use them and who answers.

use http::Method;

use super::ON_PARTITION;
use super::file::Value;
use super::mistake::{Place, nearest, quoted, suggestion};
use super::section::Section;
use super::server::BODY;
use super::value::{choice, flag, only_true, parsed, size, text};
use crate::api::Operation;
use crate::gateway::route::{Access, Conflict, Pattern, Route, RouteTable, Target};
use crate::upstream::UpstreamId;
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::scope::{Scope, ScopeSet};

pub(super) struct Policy {
    pub(super) routes: RouteTable,
    /// Every scope that there is.
    pub(super) scopes: ScopeSet,
}

/// `None` only where the report says why.
pub(super) fn read(root: &mut Section<'_>, upstreams: &[&str]) -> Option<Policy> {
    let declared = root.list("scopes", parsed(Scope::parse));
    // A list with a mistake in it would make every use of what it lacks another mistake.
    let vocabulary = declared.as_deref();
    let names = Names { upstreams, scopes: vocabulary };
    let routes = root.repeated("route", "id", |section| Rule {
        route: route(section, &names),
        place: section.place().clone(),
    });
    if routes.is_empty() && !root.given("route") {
        root.missing("route", "without a route every request is refused; add one under [[route]]");
    }
    let asks = |rule: &Rule| matches!(&rule.route, Some(Route { access: Access::Scopes(_), .. }));
    if !root.given("scopes") && routes.iter().any(asks) {
        root.missing("scopes", "declare every scope that there is, as in scopes = [\"jobs:read\"]");
    }
    let routes = compile(root, routes)?;
    Some(Policy { routes, scopes: declared.unwrap_or_default().into() })
}

/// What a route can refer to.
struct Names<'n> {
    upstreams: &'n [&'n str],
    /// `None` where they are not known.
    scopes: Option<&'n [Scope]>,
}

/// A route as it was read; `None` with the mistakes already reported.
struct Rule {
    route: Option<Route>,
    place: Place,
}

fn route(section: &mut Section<'_>, names: &Names<'_>) -> Option<Route> {
    let id = section.required("id", "name the route for logs and metrics, as in id = \"jobs.read\"", id);
    let methods = section.required_list("methods", "name at least one, as in [\"GET\"]", method);
    let patterns =
        section.required_list("paths", "name at least one, as in [\"/v1/jobs\"]", parsed(Pattern::parse));
    let access = access(section, names);
    let target = target(section, names);
    let forward_authorization = section.or("forward_authorization", false, flag);
    let encoded_slash = section.or("encoded_slash", false, flag);
    let websocket = section.or("websocket", false, flag);
    let on_partition = section.optional("on_partition", choice(&ON_PARTITION));
    let body_limit = section.optional("body_limit", size(BODY));
    let (access, target) = (access?, target?);
    refuse_senseless(section, &access, target);
    let (id, methods, patterns) = (id?, methods?, patterns?);
    if let Target::Operation(operation) = target {
        refuse_unservable(section, operation, &methods, &patterns);
    }
    Some(Route {
        id,
        methods,
        patterns,
        access,
        target,
        forward_authorization,
        encoded_slash,
        websocket,
        on_partition,
        body_limit,
    })
}

fn id(value: &Value) -> Result<Box<str>, String> {
    let text = text(value)?;
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._-".contains(&b);
    // What begins with an underscore is keygate's own in metrics, as `_none` for requests without a route.
    let well_formed = (1..=64).contains(&text.len()) && text.bytes().all(allowed) && !text.starts_with('_');
    if well_formed {
        Ok(text.into())
    } else {
        Err(format!(
            "{} does not do; a route's id is 1 to 64 of a-z 0-9 . _ - and does not begin with _",
            quoted(&text)
        ))
    }
}

fn method(value: &Value) -> Result<Method, String> {
    const COMMON: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"];
    let text = text(value)?;
    if matches!(&*text, "CONNECT" | "TRACE") {
        return Err(format!("{text} cannot be forwarded safely; leave it out"));
    }
    let token = !text.is_empty() && text.bytes().all(|b| b.is_ascii_uppercase() || b"-_".contains(&b));
    if let (true, Ok(method)) = (token, Method::from_bytes(text.as_bytes())) {
        return Ok(method);
    }
    let advice = nearest(&text, COMMON)
        .map_or("write it in upper case, as in \"GET\"".to_owned(), |near| format!("did you mean {near:?}?"));
    Err(format!("{} is not a method; {advice}", quoted(&text)))
}

/// Who may use the route: exactly one of three keys says it.
fn access(section: &mut Section<'_>, names: &Names<'_>) -> Option<Access> {
    const ADVICE: &str = "name at least one: an empty list would let nobody through";
    let public = section.optional("public", only_true);
    let any_key = section.optional("any_key", only_true);
    let scopes = section.filled("scopes", ADVICE, |value| scope(value, names));
    let environments = Environment::ALL.map(|environment| (environment.as_str(), environment));
    let environment = section.optional("environment", choice(&environments));

    let given: Vec<&str> =
        ["public", "any_key", "scopes"].into_iter().filter(|key| section.given(key)).collect();
    match given[..] {
        [_] => {}
        [] => {
            section.lacks("says nowhere who may use it; add scopes = […], any_key = true or public = true");
            return None;
        }
        [first, second, ..] => {
            section.wrong(second, format!("`{first}` already says who may use this route; keep one of them"));
            return None;
        }
    }
    if let (Some(()), environment) = (public, environment) {
        return Some(Access::Public { environment: environment.unwrap_or(Environment::Live) });
    }
    any_key.map(|()| Access::AnyKey).or_else(|| scopes.map(|scopes| Access::Scopes(scopes.into())))
}

fn scope(value: &Value, names: &Names<'_>) -> Result<Scope, String> {
    let scope = parsed(Scope::parse)(value)?;
    let Some(declared) = names.scopes else { return Ok(scope) };
    if declared.contains(&scope) {
        return Ok(scope);
    }
    let declared: Vec<&str> = declared.iter().map(Scope::as_str).collect();
    let advice = suggestion(scope.as_str(), "declared scopes", &declared);
    Err(format!("{} is not among the `scopes` at the top of the file; {advice}", quoted(scope.as_str())))
}

/// Who answers: exactly one of two keys says it.
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
            format!("keygate does not serve {}; {}", quoted(&name), suggestion(&name, "operations", &all))
        })
    });
    match (section.given("upstream"), section.given("serve")) {
        (true, true) => {
            section.wrong("serve", "`upstream` already says who answers on this route; keep one of them");
            None
        }
        (false, false) => {
            section.lacks("says nowhere who answers; add upstream = \"…\" or serve = \"…\"");
            None
        }
        _ => upstream.map(Target::Upstream).or_else(|| operation.map(Target::Operation)),
    }
}

/// Keys that promise what this kind of route does not do.
fn refuse_senseless(section: &Section<'_>, access: &Access, target: Target) {
    let public = matches!(access, Access::Public { .. });
    if section.given("environment") && !(public && matches!(target, Target::Upstream(_))) {
        let text = "only chooses the upstream of requests without a key, on a public route; leave it out";
        section.wrong("environment", text);
    }
    let Target::Operation(operation) = target else { return };
    for key in ["forward_authorization", "encoded_slash", "websocket"] {
        if section.given(key) {
            section.wrong(key, "only means something on the way to an upstream; leave it out");
        }
    }
    if public && operation != Operation::Signup {
        let text =
            format!("{} acts for a key's owner; ask for a scope, as in scopes = […]", operation.name());
        section.wrong("public", text);
    }
}

/// Methods and paths that the operation cannot be asked with.
fn refuse_unservable(section: &Section<'_>, operation: Operation, methods: &[Method], patterns: &[Pattern]) {
    let (allowed, names_key) = match operation {
        Operation::Signup | Operation::CreateKey => (&[Method::POST][..], false),
        Operation::ListKeys | Operation::GetOwnKey | Operation::ListAuditEvents => {
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
        section
            .wrong("methods", format!("{name} is not asked with {method}; write {}", allowed.join(" or ")));
    }
    for pattern in patterns.iter().map(Pattern::as_str) {
        let (parameters, rest) = (pattern.matches('{').count(), pattern.contains("{*"));
        if names_key && (parameters != 1 || rest) {
            let text = format!("{name} takes the key's id from the path; {pattern} needs one {{id}}");
            section.wrong("paths", text);
        } else if !names_key && parameters > 0 {
            section.wrong(
                "paths",
                format!("{name} takes nothing from the path; write {pattern} without braces"),
            );
        }
    }
}

/// The table of all routes; conflicts are reported where the later route stands.
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
                    Conflict::SameRequest { second, .. } => (second, "give the request to one of them"),
                    Conflict::HeadApartFromGet { second, .. } => {
                        (second, "name HEAD beside GET in one route, or leave it out")
                    }
                    Conflict::SameId(id) => (id, "give each a name of its own"),
                };
                let at = ids.iter().rposition(|id| id == second).and_then(|n| places.get(n));
                root.wrong_at(at, &format!("route[{second}]"), format!("{conflict}; {advice}"));
            }
            None
        }
    }
}
