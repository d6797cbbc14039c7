//! The OpenAPI description is correct: it has every operation of the shipped policy that keygate serves, and no
//! other, and its lists equal those of the code. Every test of the API checks its answers against the description.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::LazyLock;

use keygate::api::DESCRIPTION;
use keygate::config::FIRSTHAND_POLICY;
use keygate::policy::target::Operation;
use keygate::vocabulary::audit::AuditKind;
use keygate::vocabulary::key::{KeyFormat, Prefix};
use keygate::vocabulary::reason::ErrorType;
use serde_json::{Value, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::harness::description::{check, description, resolve};
use crate::harness::process::keygate;
use crate::harness::{Gateway, Upstream};

static POLICY: LazyLock<DeTable<'static>> =
    LazyLock::new(|| DeTable::parse(FIRSTHAND_POLICY).unwrap().into_inner());

fn routes() -> impl Iterator<Item = &'static DeTable<'static>> {
    let routes = POLICY["route"].get_ref().as_array().unwrap();
    routes.iter().map(|route| route.get_ref().as_table().unwrap())
}

fn texts(value: &'static Spanned<DeValue<'static>>) -> Vec<&'static str> {
    let values = value.get_ref().as_array().unwrap();
    values.iter().map(|text| text.get_ref().as_str().unwrap()).collect()
}

/// By method and path: a route's id and its scopes; `None` for a public route.
type Served = BTreeMap<(String, &'static str), (&'static str, Option<Vec<&'static str>>)>;

/// The operations of the shipped policy that keygate serves.
fn served() -> Served {
    let mut served = BTreeMap::new();
    for route in routes().filter(|route| route.contains_key("serve")) {
        let scopes = match (route.get("scopes"), route.get("any_key")) {
            (Some(scopes), _) => Some(texts(scopes)),
            (None, Some(_)) => Some(Vec::new()),
            (None, None) => None,
        };
        for method in texts(&route["methods"]) {
            for path in texts(&route["paths"]) {
                let id = route["id"].get_ref().as_str().unwrap();
                served.insert((method.to_lowercase(), path), (id, scopes.clone()));
            }
        }
    }
    served
}

/// Every operation, with its path and method.
fn operations() -> impl Iterator<Item = (&'static String, &'static String, &'static Value)> {
    let paths = description()["paths"].as_object().unwrap();
    paths.iter().flat_map(|(path, methods)| {
        methods.as_object().unwrap().iter().map(move |(method, operation)| (path, method, operation))
    })
}

/// Every value in the description, at any depth.
fn values(value: &'static Value) -> Vec<&'static Value> {
    let mut all = vec![value];
    match value {
        Value::Object(fields) => all.extend(fields.values().flat_map(values)),
        Value::Array(items) => all.extend(items.iter().flat_map(values)),
        _ => {}
    }
    all
}

#[test]
fn every_route_that_keygate_serves_is_described_and_nothing_else() {
    let described: Served = operations()
        .map(|(path, method, operation)| {
            let id = operation["operationId"].as_str().unwrap();
            let scopes = operation["security"].as_array().unwrap().first().map(|needed| {
                let scopes = needed["apiKey"].as_array().unwrap().iter();
                scopes.map(|scope| scope.as_str().unwrap()).collect::<Vec<_>>()
            });
            ((method.clone(), path.as_str()), (id, scopes))
        })
        .collect();
    assert_eq!(described, served());
    let named: BTreeSet<&str> = routes().filter_map(|route| route.get("serve")?.get_ref().as_str()).collect();
    assert_eq!(named, Operation::ALL.map(Operation::name).into_iter().collect::<BTreeSet<_>>());
}

#[test]
fn the_lists_of_the_description_are_those_of_the_code() {
    let schemas = &description()["components"]["schemas"];
    let types: Vec<&str> = ErrorType::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(schemas["ErrorType"]["enum"], json!(types));
    let kinds: Vec<&str> = AuditKind::ALL.iter().map(|kind| kind.as_str()).collect();
    assert_eq!(schemas["EventType"]["enum"], json!(kinds));
    assert_eq!(schemas["Scope"]["examples"], json!(texts(&POLICY["scopes"])));
    assert_eq!(description()["info"]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn every_reference_leads_somewhere_and_every_component_is_used() {
    let used: BTreeSet<&str> =
        values(description()).iter().filter_map(|value| value.get("$ref")?.as_str()).collect();
    for value in values(description()).into_iter().filter(|value| value.get("$ref").is_some()) {
        resolve(value);
    }
    for (kind, components) in description()["components"].as_object().unwrap() {
        for name in components.as_object().unwrap().keys().filter(|_| kind != "securitySchemes") {
            let reference = format!("#/components/{kind}/{name}");
            assert!(used.contains(reference.as_str()), "nothing uses {reference}");
        }
    }
}

#[test]
fn every_example_is_valid_and_no_key_in_one_is() {
    let mut checked = 0;
    for value in values(description()) {
        if let Some(examples) = value.get("examples").and_then(Value::as_array) {
            for example in examples {
                check(value, example, "example").unwrap();
                checked += 1;
            }
        }
        let (Some(schema), Some(examples)) = (value.get("schema"), value.get("examples")) else { continue };
        for example in examples.as_object().unwrap().values() {
            check(schema, &example["value"], "example").unwrap();
            checked += 1;
        }
    }
    assert!(checked >= 25, "{checked}");
    let format = KeyFormat::new(&Prefix::default(), false);
    for (at, _) in DESCRIPTION.match_indices("fh_") {
        let key = DESCRIPTION[at..].split(|c: char| c != '_' && !c.is_ascii_alphanumeric()).next().unwrap();
        assert!(format.parse(key.as_bytes()).is_err(), "{key}");
    }
}

#[test]
fn the_admin_socket_and_the_command_line_return_the_description() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::builder().settings("[admin]\nsocket = \"keygate.sock\"").api(&live, &test).start();
    let mut socket = UnixStream::connect(gateway.folder().join("keygate.sock")).unwrap();
    socket.write_all(b"GET /v1/openapi.json HTTP/1.1\r\nhost: keygate\r\nconnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    socket.read_to_string(&mut answer).unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    assert!(head.contains("content-type: application/json"), "{head}");
    assert_eq!(body, DESCRIPTION);
    let printed = keygate(gateway.folder(), &["openapi"]).output().unwrap();
    assert!(printed.status.success());
    assert_eq!(String::from_utf8(printed.stdout).unwrap(), DESCRIPTION);
}
