//! What keygate itself says to callers that speak gRPC or gRPC-Web, and how long they wait.

use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::foreign_upstreams::python;
use crate::harness::http2::{DATA, END_HEADERS, END_STREAM, Frames, HEADERS, RESET, block_of};
use crate::harness::metrics::{scrape, value};
use crate::harness::{Answer, Call, Gateway, Manual, Transport, Upstream, Wire, eventually, refusing};

const POLICY: &str = r#"
scopes = ["jobs:read", "jobs:write", "keys:manage"]

[[route]]
id = "jobs.create"
methods = ["POST"]
paths = ["/acme.jobs.v1.Jobs/Create"]
scopes = ["jobs:write"]
upstream = "api"

[[route]]
id = "jobs"
methods = ["POST"]
paths = ["/acme.jobs.v1.Jobs/{*rest}"]
scopes = ["jobs:read"]
body_limit = "1KiB"
upstream = "api"

[[route]]
id = "short"
methods = ["POST"]
paths = ["/acme.jobs.v1.Short/{method}"]
any_key = true
total_timeout = "200ms"
upstream = "api"

[[route]]
id = "web"
methods = ["POST"]
paths = ["/acme.web.v1.Web/{method}"]
scopes = ["jobs:write"]
grpc_web = true
upstream = "api"

[[route]]
id = "away"
methods = ["POST"]
paths = ["/acme.away.v1.Away/{method}"]
any_key = true
upstream = "away"

[[route]]
id = "keys.create"
methods = ["POST"]
paths = ["/v1/api_keys"]
scopes = ["keys:manage"]
serve = "keys.create"
"#;

fn gateway_over(transport: Transport, live: &str, settings: &str) -> Gateway {
    let settings = format!("[ops]\nlisten = \"127.0.0.1:0\"\n{settings}");
    Gateway::builder()
        .transport(transport)
        .settings(&settings)
        .policy(POLICY)
        .upstream("api", live, &refusing())
        .upstream("away", &refusing(), &refusing())
        .start()
}

fn gateway(live: &str) -> Gateway {
    gateway_over(Transport::Http2, live, "")
}

fn spoken(media_type: &str, target: &str) -> Call {
    Call::post(target, "\0\0\0\0\0").field("content-type", media_type)
}

/// A call as gRPC clients make it.
fn call(target: &str) -> Call {
    spoken("application/grpc+proto", target).field("te", "trailers")
}

/// Asserts that this is a refusal in the words of gRPC, correct in every part, and returns its status and its message.
#[track_caller]
fn told(answer: &Answer, media_type: &str) -> (String, String) {
    assert_eq!((answer.status, answer.text().as_str()), (200, ""), "{answer:#?}");
    assert_eq!((answer.trailers.len(), answer.complete), (0, true));
    assert_eq!(answer.field("content-type"), Some(media_type));
    assert_eq!(answer.field("cache-control"), Some("no-store"));
    let id = answer.field("x-request-id").unwrap();
    assert!(keygate::vocabulary::id::RequestId::parse(id).is_ok(), "{id}");
    let field = |name| answer.field(name).unwrap().to_owned();
    (field("grpc-status"), field("grpc-message"))
}

#[track_caller]
fn assert_told(answer: &Answer, status: &str, message: &str) {
    assert_eq!(told(answer, "application/grpc"), (status.to_owned(), message.to_owned()));
}

#[test]
fn each_refusal_has_the_status_of_grpc_that_says_the_same() {
    const KEY: &str = "authentication_error: Invalid or missing API key";
    let live = Upstream::start("live");
    for transport in [Transport::Http1, Transport::Http2] {
        let gateway = gateway_over(transport, &live.url(), "");
        let reads = gateway.key_with(&["jobs:read"]).secret;
        let revoked = gateway.live_key();
        gateway.revoke(&revoked);
        let (list, create) = ("/acme.jobs.v1.Jobs/List", "/acme.jobs.v1.Jobs/Create");
        let large = Call { body: vec![0; 2000], ..call(list).key(&reads) };
        for (call, status, message) in [
            (call(list), "16", KEY),
            (call(list).key("not a key"), "16", KEY),
            (call(list).key(&revoked.secret), "16", KEY),
            (call("/acme.jobs.v1.Nothing/List"), "16", KEY),
            (
                call(create).key(&reads),
                "7",
                "authorization_error: This API key lacks the required scope: jobs:write",
            ),
            (call("/acme.jobs.v1.Nothing/List").key(&reads), "12", "not_found: No such resource"),
            (large, "8", "validation_error: The request body is too large"),
            (
                call(&format!("{list}?{}", "a".repeat(9000))).key(&reads),
                "8",
                "validation_error: The request target is too long",
            ),
            (
                call("/acme.away.v1.Away/Any").key(&reads),
                "14",
                "bad_gateway: The service behind this gateway could not be reached",
            ),
        ] {
            assert_told(&gateway.fetch(&call), status, message);
        }
        let (status, message) = told(&gateway.fetch(&call("/a/../b").key(&reads)), "application/grpc");
        assert!(status == "3" && message.starts_with("validation_error: "), "{status} {message}");
        let many = (0..101).fold(call(list).key(&reads), |call, n| call.field(&format!("x-{n}"), ""));
        let answer = gateway.fetch(&many);
        if transport.is_http2() {
            assert_told(&answer, "8", "validation_error: The request header fields are too large");
        } else {
            // The parser reads no field of such a head, so nobody knows who sent it.
            answer.refusal(431, "validation_error");
        }
    }
    assert_eq!(live.seen().len(), 0);
}

#[test]
fn what_a_message_cannot_have_is_percent_encoded() {
    let gateway = gateway(&Upstream::start("live").url());
    // The message names the encoding that the path needs.
    let call = call("/acme.jobs.v1.Jobs/a{b").key(&gateway.live_key().secret);
    let json = gateway.fetch(&Call { fields: call.fields[2..].to_vec(), ..call.clone() });
    let plain = json.refusal(400, "validation_error");
    assert!(plain.contains('%'), "{plain}");
    let (status, message) = told(&gateway.fetch(&call), "application/grpc");
    assert_eq!(
        (status, message),
        ("3".to_owned(), format!("validation_error: {}", plain.replace('%', "%25")))
    );
}

#[test]
fn a_refusal_over_http2_is_one_frame_that_ends_the_stream() {
    let gateway = gateway(&Upstream::start("live").url());
    let mut frames = Frames::connect(&gateway, &[]);
    let fields = [("content-type", "application/grpc"), ("te", "trailers")];
    for stream in [1, 3] {
        let block = block_of("POST", "/acme.jobs.v1.Jobs/List", &fields);
        // Its end is there, so nothing is left to be reset.
        frames.send(HEADERS, END_HEADERS | END_STREAM, stream, &block);
    }
    let mut ended = Vec::new();
    while ended.len() < 2 {
        let frame = frames.next().unwrap();
        if frame.stream != 0 {
            assert_eq!((frame.kind, frame.flags), (HEADERS, END_HEADERS | END_STREAM), "{frame:?}");
            ended.push(frame.stream);
        }
    }
    ended.sort_unstable();
    assert_eq!(ended, [1, 3]);
}

#[test]
fn a_refusal_over_http1_has_an_empty_body_and_leaves_the_connection_open() {
    let gateway = gateway_over(Transport::Http1, &Upstream::start("live").url(), "");
    let mut wire = gateway.connect();
    for _ in 0..2 {
        let answer = wire.call(&call("/acme.jobs.v1.Jobs/List")).unwrap();
        assert_eq!(answer.field("content-length"), Some("0"));
        assert_eq!(told(&answer, "application/grpc").0, "16");
    }
}

#[test]
fn a_caller_that_should_come_back_later_is_told_when() {
    let live = Manual::start();
    let limits = format!(
        "[upstreams.api]\nlive = [\"{}\"]\ntest = [\"{}\"]\nmax_requests = 1\nmax_waiting = 0\n",
        live.url(),
        refusing()
    );
    let settings = format!("[ops]\nlisten = \"127.0.0.1:0\"\n{limits}");
    let gateway = Gateway::builder()
        .transport(Transport::Http2)
        .settings(&settings)
        .policy(POLICY)
        .upstream("away", &refusing(), &refusing())
        .start();
    let mut frames = Frames::connect(&gateway, &[]);
    let authorization = format!("Bearer {}", gateway.live_key().secret);
    let block = block_of("POST", "/acme.jobs.v1.Jobs/List", &[("authorization", &authorization)]);
    frames.send(HEADERS, END_HEADERS | END_STREAM, 1, &block);
    let mut upstream = live.accept();
    upstream.request_head().unwrap();
    let other = gateway.key_in_another_org().secret;
    let answer = gateway.fetch(&call("/acme.jobs.v1.Jobs/List").key(&other));
    assert_told(&answer, "14", "service_unavailable: Temporarily unavailable, please retry");
    let seconds: u64 = answer.field("retry-after").unwrap().parse().unwrap();
    assert_eq!(answer.field("grpc-retry-pushback-ms").unwrap(), (seconds * 1000).to_string());
}

#[test]
fn metrics_and_records_have_the_status_that_keygate_decided() {
    let settings = "[log]\nrequests_file = \"requests.jsonl\"\n";
    let gateway = gateway_over(Transport::Http2, &Upstream::start("live").url(), settings);
    let reads = gateway.key_with(&["jobs:read"]).secret;
    let answer = gateway.fetch(&call("/acme.jobs.v1.Jobs/Create").key(&reads));
    assert_eq!(told(&answer, "application/grpc").0, "7");
    let series = r#"keygate_requests_total{route="jobs.create",method="POST",code="403",environment="live"}"#;
    eventually("it is counted", || value(&scrape(gateway.ops_address()), series) == Some(1.0));
    let read = || -> Vec<Value> {
        let text = fs::read_to_string(gateway.folder().join("requests.jsonl")).unwrap_or_default();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    // Each thread hands its records over by itself, so the second one waits for the first.
    eventually("the first is recorded", || read().len() == 1);
    gateway
        .fetch(&Call::post("/acme.jobs.v1.Jobs/Create", "{}").key(&reads))
        .refusal(403, "authorization_error");
    eventually("both are recorded", || read().len() == 2);
    let [of_grpc, of_http] = &read()[..] else { panic!("two records") };
    assert_eq!(of_grpc["http.response.status_code"], 403, "{of_grpc}");
    assert_eq!(of_grpc["rpc.grpc.status_code"], 7);
    assert_eq!(
        (&of_grpc["reason"], &of_grpc["missing_scope"]),
        (&"scope_missing".into(), &"jobs:write".into())
    );
    assert_eq!(of_grpc["complete"], true);
    assert_eq!(
        (&of_http["http.response.status_code"], of_http.get("rpc.grpc.status_code")),
        (&403.into(), None)
    );
}

#[test]
fn everybody_else_gets_the_envelope() {
    let live = Upstream::start("live");
    for transport in [Transport::Http1, Transport::Http2] {
        let gateway = gateway_over(transport, &live.url(), "");
        let reads = gateway.key_with(&["jobs:read"]).secret;
        let create = "/acme.jobs.v1.Jobs/Create";
        for call in [
            Call::post(create, "{}"),
            spoken("application/json", create),
            spoken("application/grpcurl", create),
            spoken("application/json; x=application/grpc", create),
            spoken("application/grpc-web+proto", create),
            spoken("application/grpc-web-text", create),
        ] {
            gateway.fetch(&call).refusal(401, "authentication_error");
            let message = gateway.fetch(&call.key(&reads)).refusal(403, "authorization_error");
            assert_eq!(message, "This API key lacks the required scope: jobs:write");
        }
        // No call of gRPC is a GET.
        let get = Call::get(create).field("content-type", "application/grpc").key(&reads);
        gateway.fetch(&get).refusal(404, "not_found");
        // keygate's own API is no service of gRPC.
        for media_type in ["application/grpc", "application/grpc-web"] {
            let call = spoken(media_type, "/v1/api_keys");
            gateway.fetch(&call.clone().key(&reads)).refusal(403, "authorization_error");
            gateway.fetch(&call.key(&gateway.live_key().secret)).refusal(400, "validation_error");
        }
    }
}

#[test]
fn grpc_web_is_answered_in_its_own_words_where_the_route_allows_it() {
    let gateway = gateway(&Upstream::start("live").url());
    let reads = gateway.key_with(&["jobs:read"]).secret;
    for (media_type, answered) in [
        ("application/grpc-web", "application/grpc-web"),
        ("application/grpc-web+proto", "application/grpc-web"),
        ("application/grpc-web-text", "application/grpc-web-text"),
        ("Application/gRPC-Web-Text+proto; a=b", "application/grpc-web-text"),
        ("application/grpc", "application/grpc"),
    ] {
        let call = spoken(media_type, "/acme.web.v1.Web/Any").key(&reads);
        let (status, message) = told(&gateway.fetch(&call), answered);
        assert_eq!(status, "7");
        assert_eq!(message, "authorization_error: This API key lacks the required scope: jobs:write");
    }
    let call = spoken("application/json", "/acme.web.v1.Web/Any").key(&reads);
    gateway.fetch(&call).refusal(403, "authorization_error");
    let call = spoken("application/grpc-web", "/acme.web.v1.Web/Any").key(&gateway.live_key().secret);
    assert_eq!(gateway.fetch(&call).text(), "live");
}

/// Or the media type of a 401 would tell which routes there are.
#[test]
fn a_stranger_gets_the_same_answer_on_every_path() {
    let gateway = gateway(&Upstream::start("live").url());
    let targets =
        ["/acme.web.v1.Web/Any", "/acme.jobs.v1.Jobs/Create", "/v1/api_keys", "/acme.jobs.v1.Nothing/Any"];
    for target in targets {
        for media_type in ["application/grpc-web", "application/grpc-web-text+proto"] {
            gateway.fetch(&spoken(media_type, target)).refusal(401, "authentication_error");
        }
        assert_eq!(told(&gateway.fetch(&call(target)), "application/grpc").0, "16");
    }
    let key = gateway.live_key().secret;
    let call = spoken("application/grpc-web", "/acme.jobs.v1.Nothing/Any").key(&key);
    gateway.fetch(&call).refusal(404, "not_found");
}

/// A call over HTTP/2 that has reached the upstream.
fn asked(
    gateway: &Gateway,
    live: &Manual,
    target: &str,
    fields: &[(&str, &str)],
) -> (Frames, Wire, Vec<String>) {
    let authorization = format!("Bearer {}", gateway.live_key().secret);
    let all = [&[("authorization", authorization.as_str())], fields].concat();
    let mut frames = Frames::connect(gateway, &[]);
    frames.send(HEADERS, END_HEADERS | END_STREAM, 1, &block_of("POST", target, &all));
    let mut upstream = live.accept();
    let head = upstream.request_head().unwrap();
    (frames, upstream, head)
}

#[test]
fn a_call_that_lasts_longer_than_its_caller_waits_is_refused() {
    let live = Manual::start();
    for transport in [Transport::Http1, Transport::Http2] {
        let gateway = gateway_over(transport, &live.url(), "");
        let call =
            |target, timeout| call(target).field("grpc-timeout", timeout).key(&gateway.live_key().secret);
        for (target, timeout) in [
            ("/acme.jobs.v1.Jobs/List", "100m"),
            ("/acme.jobs.v1.Jobs/List", "0n"),
            // The route's own time is shorter.
            ("/acme.jobs.v1.Short/List", "1H"),
            ("/acme.jobs.v1.Short/List", "no time"),
        ] {
            let answer = gateway.fetch(&call(target, timeout));
            assert_told(&answer, "4", "gateway_timeout: The request took longer than it may");
        }
    }
}

#[test]
fn an_answer_that_has_begun_ends_when_its_caller_waits_no_longer() {
    let live = Manual::start();
    let gateway = gateway(&live.url());
    let fields = [("content-type", "application/grpc"), ("te", "trailers"), ("grpc-timeout", "3S")];
    let (mut frames, mut upstream, head) = asked(&gateway, &live, "/acme.jobs.v1.Jobs/Watch", &fields);
    assert!(head.iter().any(|line| line == "grpc-timeout: 3S"), "it goes up as it came: {head:#?}");
    upstream.send(
        b"HTTP/1.1 200 OK\r\ncontent-type: application/grpc\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n",
    );
    let head = frames.until(HEADERS).unwrap();
    if head.flags & END_STREAM == 0 {
        let end = std::iter::from_fn(|| frames.next()).find(|frame| frame.stream == 1 && frame.kind != DATA);
        assert_eq!(end.unwrap().kind, RESET);
    }
    let series = r#"keygate_answers_cut_total{reason="total_timeout"}"#;
    eventually("it is counted", || value(&scrape(gateway.ops_address()), series) == Some(1.0));
}

#[test]
fn a_timeout_that_is_none_and_that_of_another_caller_limit_nothing() {
    let live = Upstream::start("live");
    let gateway = gateway(&live.url());
    let key = gateway.live_key().secret;
    for (media_type, timeout) in [
        ("application/grpc", "1s"),
        ("application/grpc", "99999999H"),
        ("application/grpc", "100000000S"),
        ("application/grpc", "-1S"),
        ("application/grpc", ""),
        ("application/json", "0n"),
        // Its route does not allow it.
        ("application/grpc-web", "0n"),
    ] {
        let call = spoken(media_type, "/acme.jobs.v1.Jobs/List").field("grpc-timeout", timeout).key(&key);
        assert_eq!(gateway.fetch(&call).text(), "live", "{media_type} {timeout}");
        assert_eq!(live.only().value("grpc-timeout"), timeout);
        live.forget();
    }
}

#[test]
fn a_path_of_grpc_falls_under_the_rule_of_its_method_or_of_its_service() {
    let live = Upstream::start("live");
    let gateway = gateway(&live.url());
    let reads = gateway.key_with(&["jobs:read"]).secret;
    let writes = gateway.key_with(&["jobs:write"]).secret;
    for (target, passes) in [
        ("/acme.jobs.v1.Jobs/Create", [false, true]),
        ("/acme.jobs.v1.Jobs/List", [true, false]),
        ("/acme.jobs.v1.Jobs/CreateMany", [true, false]),
    ] {
        for (key, passes) in [&reads, &writes].into_iter().zip(passes) {
            live.forget();
            let answer = gateway.fetch(&call(target).key(key));
            if passes {
                assert_eq!(answer.text(), "live");
                assert_eq!(live.only().request_line(), format!("POST {target} HTTP/1.1"));
                assert_eq!(live.only().value("content-type"), "application/grpc+proto");
            } else {
                assert_eq!(told(&answer, "application/grpc").0, "7", "{target}");
            }
        }
    }
    // Some servers would take it for `Create`.
    let answer = gateway.fetch(&call("/acme.jobs.v1.Jobs/create").key(&gateway.live_key().secret));
    assert_eq!(told(&answer, "application/grpc").0, "3");
}

/// Prints the name of the status, the details and the request id of each call, as grpcio hands them to its program.
const CLIENT: &str = r#"
import grpc, json, sys
address, good, narrow = sys.argv[1:]
channel = grpc.insecure_channel(address, options=[('grpc.enable_http_proxy', 0)])
def outcome(method, key, timeout=60):
    metadata = [('authorization', 'Bearer ' + key)] if key else []
    try:
        channel.unary_unary(method)(b'', metadata=metadata, timeout=timeout)
        return ['OK', '', '']
    except grpc.RpcError as error:
        trailing = dict(error.trailing_metadata() or ())
        return [error.code().name, error.details(), trailing.get('x-request-id', '')]
print(json.dumps([
    outcome('/acme.jobs.v1.Jobs/List', None),
    outcome('/acme.jobs.v1.Jobs/Create', narrow),
    outcome('/acme.jobs.v1.Nothing/List', good),
    outcome('/acme.jobs.v1.Short/List', good),
    outcome('/acme.away.v1.Away/Any', good),
    outcome('/acme.jobs.v1.Jobs/a{b', good),
]))
"#;

#[test]
fn a_stock_client_of_python_tells_its_program_each_refusal() {
    let Some(_) = std::env::var_os("KEYGATE_TEST_PYTHON") else {
        panic!("run this suite with `bash tests/run`, which installs grpcio");
    };
    let live = Manual::start();
    let gateway = gateway(&live.url());
    let (good, narrow) = (gateway.live_key().secret, gateway.key_with(&["jobs:read"]).secret);
    let mut client: Command = python();
    let output =
        client.args(["-c", CLIENT, &gateway.address().to_string(), &good, &narrow]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    let outcomes: Vec<[String; 3]> = serde_json::from_slice(&output.stdout).unwrap();
    let expected = [
        ("UNAUTHENTICATED", "authentication_error: Invalid or missing API key"),
        ("PERMISSION_DENIED", "authorization_error: This API key lacks the required scope: jobs:write"),
        ("UNIMPLEMENTED", "not_found: No such resource"),
        ("DEADLINE_EXCEEDED", "gateway_timeout: The request took longer than it may"),
        ("UNAVAILABLE", "bad_gateway: The service behind this gateway could not be reached"),
    ];
    for ([code, details, id], expected) in outcomes.iter().zip(expected) {
        assert_eq!((code.as_str(), details.as_str()), expected);
        assert!(id.starts_with("req_"), "{id}");
    }
    let [code, details, _] = &outcomes[5];
    assert!(code == "INVALID_ARGUMENT" && details.contains('%') && !details.contains("%25"), "{outcomes:#?}");
}
