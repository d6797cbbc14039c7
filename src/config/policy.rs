//! The policy file: the routes, the access rule of each and its target.

use http::Method;

use super::file::Value;
use super::mistake::{Place, quoted, suggestion};
use super::section::Section;
use super::server::BODY;
use super::upstreams::{Named, refuse_short_total, total};
use super::value::{DAY, INSTANT, choice, duration, flag, only_true, parsed, size, text};
use super::{BROWSER_KEYS, ON_PARTITION};
use crate::policy::access::Access;
use crate::policy::pattern::Pattern;
use crate::policy::route::{Clash, Conflict, Route, RouteTable};
use crate::policy::target::{Operation, Target, UpstreamId};
use crate::vocabulary::key::Environment;
use crate::vocabulary::key::admission::Needs;
use crate::vocabulary::key::scope::{OneOf, Scope, ScopeSet};
use crate::vocabulary::spelling::nearest;
use crate::vocabulary::upstream::{Retries, Terms, Total};

pub(super) struct Policy {
    pub(super) routes: RouteTable,
    /// All scopes of the policy.
    pub(super) scopes: ScopeSet,
}

/// `None` only if the report has the reason. `upstreams` is `None` if not all are known.
pub(super) fn read(root: &mut Section<'_>, upstreams: Option<&[Named]>) -> Option<Policy> {
    let declared = root.list("scopes", parsed(declared_scope));
    // With a mistake in the list, a scope that seems to be missing may only be misspelt there.
    let vocabulary = declared.as_deref();
    let names = Names { upstreams, scopes: vocabulary };
    let rules = root.repeated("route", "id", |section| rule(section, &names));
    if rules.is_empty() && !root.given("route") {
        root.missing("route", "without a route, every request is refused; add a [[route]] section");
    }
    let asks = |rule: &Rule| rule.is_right && matches!(rule.route.access, Access::Scopes(_));
    if !root.given("scopes") && rules.iter().any(asks) {
        root.missing("scopes", "list every scope of your API, as in scopes = [\"jobs:read\"]");
    }
    let routes = compile(root, rules)?;
    Some(Policy { routes, scopes: declared.unwrap_or_default().into() })
}

fn declared_scope(text: &str) -> Result<Scope, String> {
    Scope::parse(text).map_err(|error| {
        if text.contains('*') { format!("{NO_WILDCARD} the scopes") } else { error.to_string() }
    })
}

const NO_WILDCARD: &str = "there is no wildcard: list";

/// The names that a route can refer to; `None` if they are not known.
struct Names<'n> {
    upstreams: Option<&'n [Named]>,
    scopes: Option<&'n [Scope]>,
}

/// A route, and its place. One that is not right has what is right of it, to be compared with other routes.
struct Rule {
    route: Route,
    is_right: bool,
    place: Place,
}

fn rule(section: &mut Section<'_>, names: &Names<'_>) -> Rule {
    let id =
        section.required("id", "give the route a name for logs and metrics, as in id = \"jobs.read\"", id);
    let (methods, methods_are_right) =
        section.required_list("methods", "list at least one method, as in [\"GET\"]", method);
    let (patterns, patterns_are_right) = section.required_list(
        "paths",
        "list at least one path, as in [\"/v1/jobs\"]",
        parsed(Pattern::parse),
    );
    let denies_other_methods = section.or("other_methods", false, choice(&[("deny", true)]));
    let access = access(section, names);
    let target = target(section, names);
    let forward_authorization = section.or("forward_authorization", false, flag);
    let encoded_slash = section.or("encoded_slash", false, flag);
    let literal = section.or("literal", false, flag);
    let websocket = section.or("websocket", false, flag);
    let grpc_web = section.or("grpc_web", false, flag);
    let terms = terms(section);
    let on_partition = section.optional("on_partition", choice(&ON_PARTITION));
    let browser_keys = section.optional("browser_keys", choice(&BROWSER_KEYS));
    let body_limit = section.optional("body_limit", size(BODY));
    refuse_senseless(section, target);
    refuse_late_answer(section, target, names, &terms);
    if let Some(Target::Operation(operation)) = target {
        refuse_unservable(section, operation, &methods, &patterns);
    }
    let is_right =
        id.is_some() && methods_are_right && patterns_are_right && access.is_some() && target.is_some();
    let route = Route {
        id: id.unwrap_or_else(|| section.label().into()),
        place: section.place().rule_place(),
        methods,
        patterns,
        denies_other_methods,
        access: access.unwrap_or(Access::AnyKey),
        target: target.unwrap_or(Target::Upstream(UpstreamId(0))),
        forward_authorization,
        encoded_slash,
        literal,
        websocket,
        grpc_web,
        terms,
        on_partition,
        browser_keys,
        body_limit,
    };
    Rule { route, is_right, place: section.place().clone() }
}

fn terms(section: &mut Section<'_>) -> Terms {
    let retries = section.or("retry", Retries::Safe, retries);
    let mut time = |key| section.optional(key, duration(INSTANT..=DAY));
    let [connect, answer, stream_idle] =
        ["connect_timeout", "answer_timeout", "stream_idle_timeout"].map(&mut time);
    let total = section.optional("total_timeout", total);
    refuse_short_total(section, answer, total.unwrap_or_default());
    Terms { retries, connect, answer, stream_idle, total }
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
    const LIST: &str = "[\"GET\", \"POST\", \"PUT\", \"PATCH\", \"DELETE\"]";
    let advice = match nearest(&text, COMMON) {
        _ if text.contains('*') || ["ANY", "ALL"].iter().any(|all| text.eq_ignore_ascii_case(all)) => {
            format!("{NO_WILDCARD} the methods, as in {LIST}")
        }
        _ if text.contains([',', ' ', '|']) => format!("write each method for itself, as in {LIST}"),
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
    let (first, others) = match given[..] {
        [first] | [first @ "scopes", "any_scope"] => (first, &[][..]),
        [first, ..] => (first, &given[1..]),
        [] => {
            section.lacks(
                "the route has no access rule; add scopes = […], any_scope = […], any_key = true or public = true",
            );
            return None;
        }
    };
    for other in others {
        section.wrong(other, format!("`{first}` is also set; remove one of the two"));
    }
    if !others.is_empty() {
        return None;
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
    let scope = parsed(declared_scope)(value)?;
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
        let Some(known) = names.upstreams else { return Ok(UpstreamId(0)) };
        known.iter().position(|upstream| *upstream.name == *name).map(UpstreamId).ok_or_else(|| {
            let known: Vec<&str> = known.iter().map(|upstream| &*upstream.name).collect();
            format!("there is no upstream {}; {}", quoted(&name), suggestion(&name, "upstreams", &known))
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

/// The keys that have an effect only on a route to an upstream.
const OF_UPSTREAMS: [&str; 10] = [
    "forward_authorization",
    "encoded_slash",
    "literal",
    "websocket",
    "grpc_web",
    "retry",
    "connect_timeout",
    "answer_timeout",
    "stream_idle_timeout",
    "total_timeout",
];

/// Reports a time for the answer's head that the upstream's time for the whole of a request ends before.
fn refuse_late_answer(section: &Section<'_>, target: Option<Target>, names: &Names<'_>, terms: &Terms) {
    let (Some(Target::Upstream(id)), Some(known)) = (target, names.upstreams) else { return };
    let (Some(answer), None) = (terms.answer, terms.total) else { return };
    let Some(Named { name, settings: Some(settings) }) = known.get(id.0) else { return };
    if let Total::AtMost(total) = settings.timeouts.total
        && total < answer
    {
        let total = humantime::format_duration(total);
        section.wrong(
            "answer_timeout",
            format!(
                "has no effect: `total_timeout` of the upstream {name} ({total}) is over before; make this shorter, or give the route a \
                 `total_timeout` of its own"
            ),
        );
    }
}

/// Reports keys that have no effect on this kind of route.
fn refuse_senseless(section: &Section<'_>, target: Option<Target>) {
    let public = section.given("public");
    if section.given("environment") && !(public && matches!(target, None | Some(Target::Upstream(_)))) {
        let text = "only valid on a public route to an upstream; remove it";
        section.wrong("environment", text);
    }
    let Some(Target::Operation(operation)) = target else { return };
    for key in OF_UPSTREAMS {
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

/// The table of all routes. A conflict is reported at the later of the two routes, also if one of them has another
/// mistake.
fn compile(root: &Section<'_>, rules: Vec<Rule>) -> Option<RouteTable> {
    let are_right = rules.iter().all(|rule| rule.is_right);
    let heads: Vec<Head> = rules.iter().map(Head::of).collect();
    match RouteTable::build(rules.into_iter().map(|rule| rule.route).collect()) {
        Ok(table) => are_right.then_some(table),
        Err(conflicts) => {
            for Clash { first, second, conflict } in conflicts {
                let (Some(first), Some(second)) = (heads.get(first), heads.get(second)) else { continue };
                let advice = match &conflict {
                    Conflict::SameRequest { .. } => {
                        format!("remove it from one of them{}", any_scope(first, second))
                    }
                    Conflict::HeadApartFromGet { .. } => {
                        "list HEAD beside GET in one route, or remove it".to_owned()
                    }
                    Conflict::SameId(_) => {
                        format!(
                            "give each its own id; the other is in line {}",
                            first.place.rule_place().line
                        )
                    }
                };
                let path = format!("route[{}]", second.id);
                root.wrong_at(Some(&second.place), &path, format!("{conflict}; {advice}"));
            }
            None
        }
    }
}

/// The parts of a rule that messages about conflicts show.
struct Head {
    id: Box<str>,
    place: Place,
    /// Empty if the rule does not ask for scopes.
    scopes: Vec<Scope>,
}

impl Head {
    fn of(rule: &Rule) -> Self {
        let scopes = match &rule.route.access {
            Access::Scopes(needs) => {
                let any = needs.any.iter().flat_map(|any| any.scopes().iter());
                needs.all.iter().chain(any).cloned().collect()
            }
            Access::Public { .. } | Access::AnyKey => Vec::new(),
        };
        Self { id: rule.route.id.clone(), place: rule.place.clone(), scopes }
    }
}

/// Advice for two routes that ask for different scopes: often either of them is meant to be enough.
fn any_scope(first: &Head, second: &Head) -> String {
    if first.scopes.is_empty() || second.scopes.is_empty() {
        return String::new();
    }
    let mut scopes: Vec<&Scope> = first.scopes.iter().chain(&second.scopes).collect();
    scopes.sort_unstable();
    scopes.dedup();
    let scopes: Vec<String> = scopes.iter().map(|scope| quoted(scope.as_str())).collect();
    format!(", or write one route with any_scope = [{}] if one of them is enough", scopes.join(", "))
}
