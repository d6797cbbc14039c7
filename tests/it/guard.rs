//! The guard: a request that two parsers could interpret differently is refused, and every other request reaches
//! the upstream in one canonical form.
//!
//! The policy of these tests allows any key everything, so that only the guard can refuse a request.

use std::collections::HashSet;

use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::harness::{Call, Gateway, Seen, Upstream};

const EVERYTHING: &str = r#"
[[route]]
id = "everything"
methods = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"]
paths = ["/", "/{*rest}"]
any_key = true
upstream = "api"
"#;

/// `%2F` is data for these.
const SLASHES: &str = r#"
[[route]]
id = "objects"
methods = ["GET"]
paths = ["/objects/{name}"]
any_key = true
encoded_slash = true
upstream = "api"
[[route]]
id = "other"
methods = ["GET"]
paths = ["/other/{name}"]
any_key = true
upstream = "api"
"#;

struct World {
    live: Upstream,
    test: Upstream,
    gateway: Gateway,
    secret: String,
}

/// The outcome of a request.
#[derive(Debug)]
enum Outcome {
    /// 400 with the envelope.
    Refused,
    Passed(Box<Seen>),
}

impl World {
    fn start() -> Self {
        Self::with(EVERYTHING)
    }

    fn with(policy: &str) -> Self {
        let policy = format!("scopes = [\"a\"]\n{policy}");
        let (live, test) = (Upstream::start("live"), Upstream::start("test"));
        let gateway = Gateway::builder().policy(&policy).api(&live, &test).start();
        let secret = gateway.live_key().secret;
        Self { live, test, gateway, secret }
    }

    /// Sends a head of these lines, each ended with CRLF, and returns the outcome. `KEY` stands for the
    /// credentials.
    #[track_caller]
    fn send(&self, lines: &[&str]) -> Outcome {
        self.send_bytes(format!("{}\r\n\r\n", lines.join("\r\n")).as_bytes())
    }

    #[track_caller]
    fn send_bytes(&self, bytes: &[u8]) -> Outcome {
        self.live.forget();
        let bytes = with_key(bytes, &self.secret);
        let shown = String::from_utf8_lossy(&bytes).into_owned();
        let mut wire = self.gateway.connect();
        wire.send(&bytes);
        let answer = wire.answer().unwrap_or_else(|| panic!("no answer to {shown:?}"));
        let mut seen = self.live.seen();
        match answer.status {
            200 => {
                assert_eq!(seen.len(), 1, "{shown:?}");
                Outcome::Passed(Box::new(seen.remove(0)))
            }
            400 => {
                assert_eq!(seen.len(), 0, "{shown:?} was refused, and forwarded: {seen:#?}");
                answer.refusal(400, "validation_error");
                Outcome::Refused
            }
            status => panic!("{status} for {shown:?}: {}", answer.text()),
        }
    }

    /// Sends a request for a target of any bytes.
    #[track_caller]
    fn target(&self, target: impl AsRef<[u8]>) -> Outcome {
        let mut bytes = b"GET ".to_vec();
        bytes.extend_from_slice(target.as_ref());
        bytes.extend_from_slice(b" HTTP/1.1\r\nhost: h\r\nKEY\r\n\r\n");
        self.send_bytes(&bytes)
    }

    #[track_caller]
    fn assert_refused(&self, what: &str, lines: &[&str]) {
        match self.send(lines) {
            Outcome::Refused => {}
            Outcome::Passed(seen) => panic!("{what} passed: {:#?}", seen.head),
        }
    }

    #[track_caller]
    fn assert_nothing_reached_an_upstream(&self) {
        assert_eq!((self.live.connections(), self.test.connections()), (0, 0), "not even a connection");
    }
}

fn with_key(bytes: &[u8], secret: &str) -> Vec<u8> {
    let mark = b"KEY";
    let Some(at) = bytes.windows(mark.len()).position(|window| window == mark) else { return bytes.to_vec() };
    let mut whole = bytes[..at].to_vec();
    whole.extend_from_slice(format!("authorization: Bearer {secret}").as_bytes());
    whole.extend_from_slice(&bytes[at + mark.len()..]);
    whole
}

/// Asserts a refusal with the envelope.
#[track_caller]
fn assert_enveloped(what: &[u8], outcome: &Outcome) {
    let what = String::from_utf8_lossy(what);
    assert!(matches!(outcome, Outcome::Refused), "{what:?}: {outcome:#?}");
}

#[test]
fn a_path_with_two_readings_is_refused_with_the_envelope() {
    let world = World::start();
    for target in [
        // 26: dot segments, plain and encoded.
        "/v1/../admin",
        "/v1/./jobs",
        "/..",
        "/.",
        "/../v1/jobs",
        "/v1/jobs/..",
        "/v1/jobs/.",
        "/v1/%2e%2e/jobs",
        "/v1/%2E%2e/jobs",
        "/v1/.%2e/jobs",
        "/v1/%2e./jobs",
        "/v1/%2e/jobs",
        "/v1/jobs/%2e%2e",
        // 27: encoded slash and backslash.
        "/v1%2fjobs",
        "/v1%2Fjobs",
        "/v1/jobs%5cx",
        "/v1/jobs%5Cx",
        "/%2f",
        "/v1/a%2f..%2fjobs",
        "/v1/..%2fjobs",
        "/v1/..%5cjobs",
        // 28: empty segments, which could be read as an authority.
        "//",
        "//v1/jobs",
        "//evil.example/v1/jobs",
        "/v1//jobs",
        "/v1/jobs//",
        "///",
        // 29: dot segments behind path parameters.
        "/v1/..;/jobs",
        "/v1/.;/jobs",
        "/v1/..;a=b/jobs",
        "/v1/..;a=b;c/jobs",
        "/v1/..%3b/jobs",
        "/v1/%2e%2e;/jobs",
        "/v1/jobs/..;",
        // 30: what RFC 3986 does not have in a path.
        "/v1\\jobs",
        "/v1/..\\jobs",
        "\\v1\\jobs",
        "/v1/jo\"bs",
        "/v1/{jobs}",
        "/v1/jo|bs",
        "/v1/jo^bs",
        "/v1/jo`bs",
        "/v1/jo<bs>",
        "/v1/[jobs]",
        "/v1/jöbs",
        "/v1/\u{ff0e}\u{ff0e}/jobs",
        // 32: encoded twice.
        "/v1/%252e%252e/jobs",
        "/v1/%252fjobs",
        "/v1/%25%32%65/jobs",
        "/v1/%2525",
        // 33: overlong UTF-8, %u, and broken escapes.
        "/v1/%c0%ae%c0%ae/jobs",
        "/v1/%c0%afjobs",
        "/v1/%e0%80%ae/jobs",
        "/v1/%f0%80%80%ae/jobs",
        "/v1/%ff",
        "/v1/%ed%a0%80",
        "/v1/%u002e%u002e/jobs",
        "/v1/%",
        "/v1/%2",
        "/v1/%2/jobs",
        "/v1/%zz",
        "/v1/%%32e/jobs",
        // 34: control characters.
        "/v1/jobs%00",
        "/v1/jobs%00.png",
        "/v1/%0d%0aX-Org-Id:%20forged",
        "/v1/%0a",
        "/v1/%09",
        "/v1/%7f",
    ] {
        match world.target(target) {
            Outcome::Refused => {}
            outcome => panic!("{target}: {outcome:#?}"),
        }
    }
    world.assert_nothing_reached_an_upstream();
}

#[test]
fn a_target_of_raw_octets_or_another_form_is_refused() {
    let world = World::start();
    for target in [
        // 30, 34
        &b"/v1/jo\tbs"[..],
        b"/v1/jo\x00bs",
        b"/v1/jo\x01bs",
        b"/v1/jo\x7fbs",
        b"/v1/jo\xffbs",
        b"/v1/\xc0\xae\xc0\xae/jobs",
        b"/v1/jo\x0bbs",
        // 36
        b"v1/jobs",
        b"*",
        b"?a=b",
        b"",
        b".",
        b"%2fv1/jobs",
        // 39
        b"ftp://h/v1/jobs",
        b"file:///v1/jobs",
        b"javascript:alert(1)",
        b"http:/v1/jobs",
        b"http:///v1/jobs",
        b"http://user@h/v1/jobs",
        b"http://user:word@h/v1/jobs",
        b"http://@h/v1/jobs",
        b"http://other/v1/jobs",
        b"http://h:81/v1/jobs",
        b"http://h/../v1/jobs",
        b"http://h//v1/jobs",
        b"h:80",
        b"h",
    ] {
        match world.target(target) {
            Outcome::Refused => {}
            outcome @ Outcome::Passed(..) => panic!("{:?}: {outcome:#?}", String::from_utf8_lossy(target)),
        }
    }
    world.assert_refused("OPTIONS *", &["OPTIONS * HTTP/1.1", "host: h", "KEY"]);
    world.assert_nothing_reached_an_upstream();
}

/// 31: a fragment has no place in a request. The parser beneath cuts it off unseen.
#[test]
fn a_fragment_is_refused() {
    let world = World::start();
    for target in [
        "/v1/jobs#fragment",
        "/v1/jobs#/../../admin",
        "/v1/jobs?a#fragment",
        "/v1/jobs#?a",
        "/#",
        "http://h/v1/jobs#@other/",
        "#",
        "#/v1/jobs",
        "/v1/../jobs#",
        "/v1#/..\r\nx",
    ] {
        assert_enveloped(target.as_bytes(), &world.target(target));
    }
    world.assert_nothing_reached_an_upstream();
}

#[test]
fn needless_percent_encoding_is_decoded_and_the_rest_has_one_spelling() {
    let world = World::start();
    for (sent, arrives) in [
        ("/", "/"),
        ("/v1/jobs", "/v1/jobs"),
        ("/v1/jobs/", "/v1/jobs/"),
        ("/v1/%6Aobs", "/v1/jobs"),
        ("/v1/%6aobs/%7e%2D%5f", "/v1/jobs/~-_"),
        ("/%76%31/x", "/v1/x"),
        ("/v1/a%c3%a9%20b", "/v1/a%C3%A9%20b"),
        ("/v1/a%3ab%40", "/v1/a%3Ab%40"),
        ("/v1/a:b@c,d=e;f!$&'()*+", "/v1/a:b@c,d=e;f!$&'()*+"),
        ("/v1/..a/.b/c../...", "/v1/..a/.b/c../..."),
        ("/v1/50%25", "/v1/50%25"),
        // 33: no Unicode normalisation.
        ("/v1/%ef%bc%8e%ef%bc%8e/x", "/v1/%EF%BC%8E%EF%BC%8E/x"),
        // 37: case is kept.
        ("/V1/Jobs", "/V1/Jobs"),
    ] {
        let Outcome::Passed(seen) = world.target(sent) else { panic!("{sent} was refused") };
        assert_eq!(seen.request_line(), format!("GET {arrives} HTTP/1.1"));
    }
}

#[test]
fn a_query_is_forwarded_unchanged_and_does_not_affect_routing() {
    let world = World::start();
    for query in [
        "",
        "a=b",
        "a=b&a=c&&=",
        "a%2Fb%2e%2e=%00&c=%zz&d=%",
        "../../admin",
        "/../..//v1//x",
        "a?b?c",
        "?",
        "http://evil.example/..;/",
        "a=%6A%6a",
        "a+b;c,d!e'f(g)*h:i@j$k",
        "a=[1]&b={2}|3\\4",
        "%c0%ae%ff",
    ] {
        let target = format!("/v1/%6Aobs?{query}");
        let Outcome::Passed(seen) = world.target(&target) else { panic!("{target} was refused") };
        assert_eq!(seen.request_line(), format!("GET /v1/jobs?{query} HTTP/1.1"));
    }
}

#[test]
fn an_encoded_slash_is_data_where_the_route_says_so_and_unsafe_elsewhere() {
    let world = World::with(SLASHES);
    for target in ["/other/a%2Fb", "/other/a%5cb", "/objects%2Fa", "/nowhere%2F", "/objects/a%2f..%2fb"] {
        assert_enveloped(target.as_bytes(), &world.target(target));
    }
    world.assert_nothing_reached_an_upstream();
    for (sent, arrives) in [("/objects/a%2fb", "/objects/a%2Fb"), ("/objects/a%5Cb%2F", "/objects/a%5Cb%2F")]
    {
        let Outcome::Passed(seen) = world.target(sent) else { panic!("{sent} was refused") };
        assert_eq!(seen.request_line(), format!("GET {arrives} HTTP/1.1"));
    }
}

#[test]
fn an_absolute_target_is_judged_by_its_path_and_gives_the_host() {
    let world = World::start();
    for (target, host, arrives) in [
        ("http://h/v1/jobs?a=b", "host: h", "/v1/jobs?a=b"),
        ("http://h/v1/%6aobs", "host: H", "/v1/jobs"),
        ("https://h/v1/jobs", "host: h", "/v1/jobs"),
        ("HTTP://h:8080/v1/jobs", "host: h:8080", "/v1/jobs"),
        ("http://h", "host: h", "/"),
        ("http://h?a=b", "host: h", "/?a=b"),
        ("http://[::1]:80/v1/jobs", "host: [::1]:80", "/v1/jobs"),
    ] {
        let line = format!("GET {target} HTTP/1.1");
        let Outcome::Passed(seen) = world.send(&[&line, host, "KEY"]) else { panic!("{target} was refused") };
        assert_eq!(seen.request_line(), format!("GET {arrives} HTTP/1.1"), "{target}");
        assert!(seen.value("host").eq_ignore_ascii_case(&host["host: ".len()..]), "{target}");
        assert_eq!(seen.value("x-forwarded-host"), seen.value("host"), "{target}");
    }
    for (target, host) in [
        ("http://h/v1/jobs", "host: other"),
        ("http://h/v1/jobs", "host: h:80"),
        ("http://h:80/v1/jobs", "host: h"),
        ("http://h/v1/jobs", "host: "),
        ("http://h@other/v1/jobs", "host: other"),
        ("http://user:word@h/v1/jobs", "host: user:word@h"),
        ("http://h:port/v1/jobs", "host: h:port"),
        ("http://h%2eexample/v1/jobs", "host: h%2eexample"),
    ] {
        world.assert_refused(target, &[&format!("GET {target} HTTP/1.1"), host, "KEY"]);
    }
}

#[test]
fn a_request_has_exactly_one_valid_host() {
    let world = World::start();
    let line = "GET /v1/jobs HTTP/1.1";
    let refused = [
        &[][..],
        &["host: h", "host: h"],
        &["host: h", "Host: other"],
        &["host: "],
        &["host:"],
        &["host: h,other"],
        &["host: h other"],
        &["host: user@h"],
        &["host: h/path"],
        &["host: h?query"],
        &["host: h#fragment"],
        &["host: http://h"],
        &["host: h:port"],
        &["host: h:99:99"],
        &["host: h:123456"],
        &["host: :80"],
        &["host: [::1"],
        &["host: [not-an-address]"],
        &["host: ::1"],
        &["host: h\\other"],
        &["host: h%00"],
        &["host: höst"],
        &["host: h;x"],
        &["x-forwarded-host: h"],
    ];
    for fields in refused {
        let mut lines = vec![line];
        lines.extend(fields);
        lines.push("KEY");
        let outcome = world.send(&lines);
        assert_enveloped(fields.join(" | ").as_bytes(), &outcome);
    }
    world.assert_nothing_reached_an_upstream();
    for host in
        ["h", "api.example.com", "API.example.com:8080", "127.0.0.1:1", "[::1]", "[::1]:80", "a_b.c-d"]
    {
        let Outcome::Passed(seen) = world.send(&[line, &format!("host: {host}"), "KEY"]) else {
            panic!("{host} was refused")
        };
        assert_eq!((seen.value("host"), seen.value("x-forwarded-host")), (host, host));
    }
}

#[test]
fn a_request_line_with_more_than_one_reading_is_refused() {
    let world = World::start();
    for line in [
        "GET  /v1/jobs HTTP/1.1",
        "GET /v1/jobs  HTTP/1.1",
        "GET\t/v1/jobs\tHTTP/1.1",
        "GET /v1/jobs\tHTTP/1.1",
        " GET /v1/jobs HTTP/1.1",
        "GET /v1/jobs HTTP/1.1 ",
        "GET /v1/jobs HTTP/1.1 x",
        "GET /v1/jobs x HTTP/1.1",
        "GET /v1/jobs",
        "GET /v1/jobs ",
        "GET /v1/jobs HTTP/0.9",
        "GET /v1/jobs HTTP/1.2",
        "GET /v1/jobs HTTP/1.10",
        "GET /v1/jobs HTTP/01.1",
        "GET /v1/jobs HTTP/2.0",
        "GET /v1/jobs HTTP/2",
        "GET /v1/jobs HTTP/11",
        "GET /v1/jobs http/1.1",
        "GET /v1/jobs HTTPS/1.1",
        "GET /v1/jobs XTTP/1.1",
        "GET /v1/jobs HTTP/1,1",
        "GET HTTP/1.1",
        "/v1/jobs HTTP/1.1",
        "G\"ET /v1/jobs HTTP/1.1",
        "GE(T /v1/jobs HTTP/1.1",
        "GÉT /v1/jobs HTTP/1.1",
        "PRI * HTTP/2.0",
    ] {
        world.assert_refused(line, &[line, "host: h", "KEY"]);
    }
    world.assert_refused("CONNECT", &["CONNECT h:80 HTTP/1.1", "host: h:80", "KEY"]);
    world.assert_refused("CONNECT to a path", &["CONNECT /v1/jobs HTTP/1.1", "host: h", "KEY"]);
    // HTTP/0.9 has nothing after its line.
    let mut wire = world.gateway.connect();
    wire.send(b"GET /v1/jobs\r\n");
    assert_eq!(wire.answer().unwrap().status, 400);
    world.assert_nothing_reached_an_upstream();
}

#[test]
fn a_request_of_http_1_0_is_forwarded_as_one_of_1_1_and_needs_a_host_too() {
    let world = World::start();
    let line = "GET /v1/jobs HTTP/1.0";
    let Outcome::Passed(seen) = world.send(&[line, "host: h", "KEY"]) else { panic!("refused") };
    assert_eq!(seen.request_line(), "GET /v1/jobs HTTP/1.1");
    let Outcome::Passed(seen) = world.send(&[line, "host: h", "connection: keep-alive", "KEY"]) else {
        panic!("refused")
    };
    assert_eq!(seen.values("connection"), [""; 0]);
    world.assert_refused("1.0 without a host", &[line, "KEY"]);
    world.assert_refused(
        "1.0 with a transfer coding",
        &["POST /v1/jobs HTTP/1.0", "host: h", "transfer-encoding: chunked", "KEY", "", "0", "", ""],
    );
    // Without keep-alive, its connection ends with the answer.
    let mut wire = world.gateway.connect();
    wire.send(format!("{line}\r\nhost: h\r\nauthorization: Bearer {}\r\n\r\n", world.secret).as_bytes());
    assert_eq!(wire.answer().unwrap().status, 200);
    assert!(wire.is_closed());
}

#[test]
fn a_field_with_more_than_one_reading_is_refused() {
    let world = World::start();
    for (what, fields) in [
        ("obs-fold", &b"x-a: 1\r\n 2"[..]),
        ("obs-fold with a tab", b"x-a: 1\r\n\t2"),
        ("obs-fold of a reserved name", b"x-a: 1\r\n x-org-id: forged"),
        ("a line that begins with a blank", b" x-a: 1"),
        ("a blank before the colon", b"x-a : 1"),
        ("a tab before the colon", b"x-a\t: 1"),
        ("a blank before a framing field's colon", b"transfer-encoding : chunked"),
        ("a blank before a length's colon", b"content-length : 0"),
        ("no colon", b"x-a"),
        ("an empty name", b": 1"),
        ("a blank in a name", b"x a: 1"),
        ("a separator in a name", b"x(a): 1"),
        ("an @ in a name", b"x@a: 1"),
        ("a slash in a name", b"x/a: 1"),
        ("an octet beyond ASCII in a name", b"x-\xc3\xa9: 1"),
        ("NUL in a name", b"x\0a: 1"),
        ("NUL in a value", b"x-a: 1\x002"),
        ("a control character in a value", b"x-a: 1\x012"),
        ("DEL in a value", b"x-a: 1\x7f2"),
        ("bare CR in a value", b"x-a: 1\r2"),
        ("bare CR that hides a field", b"x-a: 1\rx-org-id: forged"),
        ("bare CR in a name", b"x\ra: 1"),
        ("CR CR LF", b"x-a: 1\r"),
    ] {
        let mut bytes = b"GET /v1/jobs HTTP/1.1\r\nhost: h\r\nKEY\r\n".to_vec();
        bytes.extend_from_slice(fields);
        bytes.extend_from_slice(b"\r\n\r\n");
        if let Outcome::Passed(seen) = world.send_bytes(&bytes) {
            panic!("{what} passed: {:#?}", seen.head);
        }
    }
    world.assert_nothing_reached_an_upstream();
}

/// RFC 9112, section 2.2, lets a server take these; then nothing of them may travel on.
#[test]
fn lines_that_end_with_a_bare_lf_and_blank_lines_before_a_request_are_refused_or_cleaned() {
    let world = World::start();
    for (what, bytes) in [
        ("bare LF throughout", &b"GET /v1/jobs HTTP/1.1\nhost: h\nKEY\nx-a: 1\n\n"[..]),
        ("a bare LF after the request line", b"GET /v1/jobs HTTP/1.1\nhost: h\r\nKEY\r\nx-a: 1\r\n\r\n"),
        ("a bare LF after a field", b"GET /v1/jobs HTTP/1.1\r\nhost: h\r\nx-a: 1\nKEY\r\n\r\n"),
        ("a bare LF at the end", b"GET /v1/jobs HTTP/1.1\r\nhost: h\r\nx-a: 1\r\nKEY\r\n\n"),
        ("a blank line before", b"\r\nGET /v1/jobs HTTP/1.1\r\nhost: h\r\nKEY\r\nx-a: 1\r\n\r\n"),
        ("a bare LF before", b"\nGET /v1/jobs HTTP/1.1\r\nhost: h\r\nKEY\r\nx-a: 1\r\n\r\n"),
    ] {
        match world.send_bytes(bytes) {
            Outcome::Refused => {}
            Outcome::Passed(seen) => {
                assert_eq!(seen.request_line(), "GET /v1/jobs HTTP/1.1", "{what}");
                assert_eq!((seen.value("host"), seen.value("x-a")), ("h", "1"), "{what}");
                assert_eq!(seen.values("authorization"), [""; 0], "{what}");
                assert!(!seen.head.iter().any(|line| line.contains('\n')), "{what}: {:#?}", seen.head);
            }
        }
    }
}

/// A second request, placed so that another parser could see it.
const SMUGGLED: &str = "GET /smuggled HTTP/1.1\r\nhost: h\r\nKEY\r\n\r\n";

/// Sends a request with these framing fields and a body that a second reading would take for another request.
/// Returns the outcome, and asserts that no upstream received the other request.
#[track_caller]
fn framed(world: &World, version: &str, fields: &[&str], body: &str) -> (u16, Vec<Seen>) {
    world.live.forget();
    let head = format!("POST /v1/jobs HTTP/{version}\r\nhost: h\r\nKEY\r\n{}\r\n\r\n", fields.join("\r\n"));
    let mut bytes = with_key(head.as_bytes(), &world.secret);
    bytes.extend(with_key(body.as_bytes(), &world.secret));
    let mut wire = world.gateway.connect();
    wire.send(&bytes);
    let answer = wire.answer().unwrap_or_else(|| panic!("no answer to {fields:?}"));
    if answer.status == 400 {
        assert!(wire.is_closed(), "after a refusal of {fields:?} nobody knows where the next request begins");
    }
    (answer.status, world.live.seen())
}

#[test]
fn a_transfer_coding_other_than_one_exact_chunked_is_refused_and_the_connection_closed() {
    let world = World::start();
    let body = format!("0\r\n\r\n{SMUGGLED}");
    for fields in [
        // 2
        &["transfer-encoding: gzip, chunked"][..],
        &["transfer-encoding: chunked, gzip"],
        &["transfer-encoding: chunked, chunked"],
        &["transfer-encoding: identity"],
        &["transfer-encoding: chunked, identity"],
        &["transfer-encoding: identity, chunked"],
        &["transfer-encoding: xchunked"],
        &["transfer-encoding: chunkedx"],
        &["transfer-encoding: chunked;q=1"],
        &["transfer-encoding: \"chunked\""],
        &["transfer-encoding: chunked,"],
        &["transfer-encoding: ,chunked"],
        &["transfer-encoding:"],
        &["transfer-encoding: \u{b}chunked"],
        &["transfer-encoding: chunked", "transfer-encoding: identity"],
        &["transfer-encoding: identity", "transfer-encoding: chunked"],
        &["transfer-encoding: chunked", "transfer-encoding: chunked"],
        &["transfer-encoding: chunked", "transfer-encoding:"],
        // 15
        &["transfer-encoding : chunked"],
        &["transfer-encoding\t: chunked"],
        &["transfer-encoding: chunked\r\n , identity"],
    ] {
        let (status, seen) = framed(&world, "1.1", fields, &body);
        assert_eq!((status, seen.len()), (400, 0), "{fields:?}: {seen:#?}");
    }
    // 3: HTTP/1.0 has no transfer codings.
    for connection in ["connection: close", "connection: keep-alive"] {
        let (status, seen) = framed(&world, "1.0", &["transfer-encoding: chunked", connection], &body);
        assert_eq!((status, seen.len()), (400, 0), "{seen:#?}");
    }
    world.assert_nothing_reached_an_upstream();
}

#[test]
fn a_length_that_is_no_plain_number_or_not_the_only_one_is_refused() {
    let world = World::start();
    for fields in [
        // 4
        &["content-length: 0", "content-length: 5"][..],
        &["content-length: 5", "content-length: 0"],
        &["content-length: 0, 5"],
        &["content-length: 5, 5"],
        &["content-length: 5,"],
        &["content-length: ,5"],
        // 5
        &["content-length: +5"],
        &["content-length: -5"],
        &["content-length: 0x5"],
        &["content-length: 5a"],
        &["content-length: 5 5"],
        &["content-length: 5.0"],
        &["content-length: 1e1"],
        &["content-length: \"5\""],
        &["content-length: five"],
        &["content-length:"],
        &["content-length: 5;"],
        &["content-length: ٥"],
        &["content-length: 18446744073709551616"],
        &["content-length: 18446744073709551621"],
        &["content-length: 99999999999999999999999999999999"],
        &["content-length : 5"],
    ] {
        let (status, seen) = framed(&world, "1.1", fields, &format!("12345{SMUGGLED}"));
        assert_eq!((status, seen.len()), (400, 0), "{fields:?}: {seen:#?}");
    }
    world.assert_nothing_reached_an_upstream();
}

#[test]
fn the_same_length_twice_is_refused_or_arrives_once() {
    let world = World::start();
    let (status, seen) = framed(&world, "1.1", &["content-length: 5", "content-length: 5"], "12345");
    match status {
        400 => assert_eq!(seen.len(), 0),
        _ => {
            assert_eq!((status, seen.len()), (200, 1));
            assert_eq!((seen[0].value("content-length"), &seen[0].body[..]), ("5", &b"12345"[..]));
        }
    }
}

/// 1: in either order, only the coding counts and the connection ends, or the request is refused.
#[test]
fn a_length_beside_a_transfer_coding_is_refused_or_removed() {
    let world = World::start();
    for (fields, body) in [
        (["content-length: 5", "transfer-encoding: chunked"], "0\r\n\r\n"),
        (["transfer-encoding: chunked", "content-length: 5"], "0\r\n\r\n"),
        (["content-length: 600", "transfer-encoding: chunked"], "3\r\nabc\r\n0\r\n\r\n"),
        (["transfer-encoding: Chunked", "content-length: 0"], "3\r\nabc\r\n0\r\n\r\n"),
    ] {
        world.live.forget();
        let head =
            format!("POST /v1/jobs HTTP/1.1\r\nhost: h\r\nKEY\r\n{}\r\n\r\n{body}", fields.join("\r\n"));
        let mut bytes = with_key(head.as_bytes(), &world.secret);
        bytes.extend(with_key(SMUGGLED.as_bytes(), &world.secret));
        let mut wire = world.gateway.connect();
        wire.send(&bytes);
        let status = wire.answer().unwrap().status;
        assert!(wire.is_closed(), "{fields:?}");
        let seen = world.live.seen();
        assert!(!seen.iter().any(|seen| seen.request_line().contains("smuggled")), "{fields:?}: {seen:#?}");
        match status {
            400 => assert_eq!(seen.len(), 0),
            _ => {
                assert_eq!((status, seen.len()), (200, 1), "{fields:?}");
                assert_eq!(seen[0].values("content-length"), [""; 0]);
                assert_eq!(seen[0].value("transfer-encoding"), "chunked");
                assert!(seen[0].complete);
            }
        }
    }
}

#[test]
fn an_expectation_is_answered_by_keygate_and_not_forwarded() {
    let world = World::start();
    let mut wire = world.gateway.connect();
    let head =
        "POST /v1/jobs HTTP/1.1\r\nhost: h\r\nKEY\r\nexpect: 100-Continue\r\ncontent-length: 4\r\n\r\n";
    wire.send(&with_key(head.as_bytes(), &world.secret));
    assert_eq!(wire.head().unwrap().status, 100);
    wire.send(b"body");
    assert_eq!(wire.answer().unwrap().status, 200);
    let seen = world.live.only();
    assert_eq!((seen.body.as_slice(), seen.values("expect").len()), (&b"body"[..], 0));
}

#[test]
fn an_unknown_expectation_is_refused_and_its_body_is_not_read_as_a_request() {
    let world = World::start();
    for fields in [
        &["expect: 100-continued"][..],
        &["expect: x100-continue"],
        &["expect: 100-continue, 100-continue"],
        &["expect: 100-continue;x"],
        &["expect: \"100-continue\""],
        &["expect: 200-ok"],
        &["expect:"],
        &["expect: 100-continue", "expect: 100-continue"],
        &["expect: 100-continue", "expect: x"],
        &["expect : 100-continue"],
    ] {
        let length = format!("content-length: {}", with_key(SMUGGLED.as_bytes(), &world.secret).len());
        let mut lines = fields.to_vec();
        lines.push(&length);
        world.live.forget();
        let head = format!("POST /v1/jobs HTTP/1.1\r\nhost: h\r\nKEY\r\n{}\r\n\r\n", lines.join("\r\n"));
        let mut bytes = with_key(head.as_bytes(), &world.secret);
        bytes.extend(with_key(SMUGGLED.as_bytes(), &world.secret));
        let mut wire = world.gateway.connect();
        wire.send(&bytes);
        assert_eq!(wire.answer().unwrap().status, 400, "{fields:?}");
        // What follows is the body: passed over, or cut off with the connection.
        wire.send(b"GET /nothing HTTP/1.1\r\nhost: h\r\n\r\n");
        if let Some(next) = wire.answer() {
            next.refusal(401, "authentication_error");
        }
    }
    world.assert_nothing_reached_an_upstream();
}

#[test]
fn the_unread_body_of_a_refused_request_is_never_read_as_a_request() {
    let world = World::start();
    let smuggled = with_key(SMUGGLED.as_bytes(), &world.secret);
    for (line, expected) in [("POST /v1/../jobs HTTP/1.1", 400), ("POST /v1/jobs HTTP/1.1", 401)] {
        let head = format!("{line}\r\nhost: h\r\ncontent-length: {}\r\n\r\n", smuggled.len());
        let mut wire = world.gateway.connect();
        wire.send(&[head.as_bytes(), &smuggled].concat());
        assert_eq!(wire.answer().unwrap().status, expected);
        wire.send(b"GET /nothing HTTP/1.1\r\nhost: h\r\n\r\n");
        if let Some(next) = wire.answer() {
            next.refusal(401, "authentication_error");
        }
    }
    world.assert_nothing_reached_an_upstream();
}

#[test]
fn a_header_field_never_overrides_the_request_line() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::in_front_of(&live, &test);
    let key = gateway.key_with(&["jobs:read"]);
    // 41
    for name in ["x-original-url", "x-rewrite-url", "x-forwarded-uri", "x-original-uri", "x-forwarded-prefix"]
    {
        let denied = Call::get("/v1/billing/credits").key(&key.secret).field(name, "/v1/jobs");
        gateway.fetch(&denied).refusal(403, "authorization_error");
        live.forget();
        let allowed = Call::get("/v1/jobs").key(&key.secret).field(name, "/v1/billing/credits");
        assert_eq!(gateway.fetch(&allowed).status, 200);
        assert_eq!(live.only().values(name), [""; 0], "{name}");
    }
    // 42
    for name in ["x-http-method-override", "x-http-method", "x-method-override"] {
        let denied = Call::post("/v1/jobs", "{}").key(&key.secret).field(name, "GET");
        gateway.fetch(&denied).refusal(403, "authorization_error");
        live.forget();
        assert_eq!(gateway.fetch(&Call::get("/v1/jobs").key(&key.secret).field(name, "POST")).status, 200);
        assert_eq!(live.only().values(name), [""; 0], "{name}");
        assert!(live.only().request_line().starts_with("GET "), "{name}");
    }
}

const SECRET: &str = r#"
scopes = ["a", "b"]
[[route]]
id = "open"
methods = ["GET"]
paths = ["/open/{*rest}"]
scopes = ["a"]
upstream = "api"
[[route]]
id = "secret"
methods = ["GET"]
paths = ["/open/secret/{*rest}"]
scopes = ["b"]
upstream = "api"
"#;

/// The path as one server reads it.
type Step = fn(&[u8]) -> Vec<u8>;

/// All readings of a path, with the steps of servers combined.
fn readings(path: &[u8]) -> HashSet<Vec<u8>> {
    let steps: [Step; 5] = [
        percent_decoded,
        without_parameters,
        with_slashes_merged,
        with_dots_resolved,
        with_backslashes_as_slashes,
    ];
    let mut all = HashSet::from([path.to_vec()]);
    let mut fresh = vec![path.to_vec()];
    while let Some(path) = fresh.pop() {
        for step in steps {
            let reading = step(&path);
            if all.len() < 500 && all.insert(reading.clone()) {
                fresh.push(reading);
            }
        }
    }
    all
}

fn percent_decoded(path: &[u8]) -> Vec<u8> {
    let mut decoded = Vec::new();
    let mut at = 0;
    while at < path.len() {
        let escape = path.get(at + 1..at + 3).filter(|_| path[at] == b'%');
        let octet = escape
            .filter(|digits| digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        decoded.push(octet.unwrap_or(path[at]));
        at += if octet.is_some() { 3 } else { 1 };
    }
    decoded
}

fn without_parameters(path: &[u8]) -> Vec<u8> {
    let cut = path.split(|byte| *byte == b'/').map(|segment| segment.split(|byte| *byte == b';').next());
    cut.map(Option::unwrap_or_default).collect::<Vec<_>>().join(&b'/')
}

fn with_slashes_merged(path: &[u8]) -> Vec<u8> {
    let mut merged = path.to_vec();
    merged.dedup_by(|a, b| *a == b'/' && *b == b'/');
    merged
}

fn with_dots_resolved(path: &[u8]) -> Vec<u8> {
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in path.split(|byte| *byte == b'/').skip(1) {
        match segment {
            b"." => {}
            b".." => drop(segments.pop()),
            _ => segments.push(segment),
        }
    }
    [&b"/"[..], &segments.join(&b'/')].concat()
}

fn with_backslashes_as_slashes(path: &[u8]) -> Vec<u8> {
    path.iter().map(|byte| if *byte == b'\\' { b'/' } else { *byte }).collect()
}

/// Whether the second rule matches the path, by any reading of it. `/open/secret` and `/open/secret/` are
/// the first rule's.
fn is_secret(path: &[u8]) -> bool {
    readings(path).iter().any(|path| {
        path.strip_prefix(b"/open/secret/").is_some_and(|rest| rest.iter().any(|byte| *byte != b'/'))
    })
}

#[test]
fn the_property_below_detects_dangerous_readings() {
    for path in [
        "/open/secret/x",
        "/open//secret/x",
        "/open/a/../secret/x",
        "/open/%73ecret/x",
        "/open/%2573ecret/x",
        "/open/secret%2Fx",
        "/open/secret;a=b/x",
        "/open/secret%3Ba/x",
        "/open/;/secret/x",
        "/open\\secret\\x",
        "/open/a%5C..%5Csecret/x",
        "/open/a/..;x/secret/x",
    ] {
        assert!(is_secret(path.as_bytes()), "{path}");
    }
    for path in ["/open/x", "/open/secrets/x", "/open/x/secret/y", "/open/secret", "/open/Secret/x"] {
        assert!(!is_secret(path.as_bytes()), "{path}");
    }
}

#[test]
fn a_protected_path_in_another_spelling_is_refused_without_its_scope() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::builder().policy(SECRET).api(&live, &test).start();
    let (a, both) = (gateway.key_with(&["a"]), gateway.key_with(&["a", "b"]));
    for target in [
        "/open/secret;a=b/x",
        "/open/secret;/x",
        "/open/secret%3Ba/x",
        "/open/secret%3b/x",
        "/open/;/secret/x",
        "/open/;a/secret/x",
        "/open/%3b/secret/x",
        "/open//secret/x",
        "/open/x/../secret/x",
        "/open/secret%2Fx",
        "/open/%2573ecret/x",
    ] {
        for key in [&a, &both] {
            let answer = gateway.fetch(&Call::get(target).key(&key.secret));
            assert_eq!(answer.status, 400, "{target}: {}", answer.text());
            answer.refusal(400, "validation_error");
        }
    }
    for target in ["/open/%73ecret/x", "/open/secret/x;y"] {
        gateway.fetch(&Call::get(target).key(&a.secret)).refusal(403, "authorization_error");
    }
    assert_eq!(live.connections(), 0);
}

/// Targets of path elements with a meaning, with a few bytes changed.
fn targets() -> impl Strategy<Value = Vec<u8>> {
    const PIECES: &[&str] = &[
        "/", "/", "open", "secret", "x", "..", ".", "/..", "/../", ";", ";", ";a=b", "%2e", "%2F", "%5c",
        "\\", "%73", "%25", "%3B", "%3b", "%00", "?", "#", "//", "%252e", "%253b", "%c0%af",
    ];
    let bases =
        ["/open/secret/x", "/open/secret/x", "/open/x/secret/y", "/open/ecret/x", "/open/x", "/secret/x", ""];
    let index = any::<prop::sample::Index>;
    let pieces = proptest::collection::vec((index(), proptest::sample::select(PIECES)), 0..4);
    let changes = proptest::collection::vec((index(), 0..3_u8, any::<u8>()), 0..2);
    (proptest::sample::select(Vec::from(bases)), pieces, changes).prop_map(|(base, pieces, changes)| {
        let mut target = base.to_owned();
        for (at, piece) in pieces {
            target.insert_str(at.index(target.len() + 1), piece);
        }
        let mut target = target.into_bytes();
        for (at, kind, byte) in changes {
            let at = at.index(target.len() + 1);
            match kind {
                0 => target.insert(at, byte),
                1 if at < target.len() => target[at] = byte,
                _ if at < target.len() => drop(target.remove(at)),
                _ => {}
            }
        }
        target
    })
}

#[test]
fn no_target_reaches_the_upstream_under_a_path_whose_rule_the_key_lacks() {
    let (live, test) = (Upstream::start("live"), Upstream::start("test"));
    let gateway = Gateway::builder().policy(SECRET).api(&live, &test).start();
    let (a, b) = (gateway.key_with(&["a"]), gateway.key_with(&["b"]));
    assert_eq!(gateway.fetch(&Call::get("/open/secret/x").key(&b.secret)).status, 200);
    gateway.fetch(&Call::get("/open/secret/x").key(&a.secret)).refusal(403, "authorization_error");
    live.forget();
    let mut runner = TestRunner::new(Config { cases: 64, failure_persistence: None, ..Config::default() });
    let passed = std::cell::Cell::new(0);
    let outcome = runner.run(&proptest::collection::vec(targets(), 16), |targets| {
        for target in targets {
            let mut bytes = b"GET ".to_vec();
            bytes.extend_from_slice(&target);
            bytes.extend_from_slice(
                format!(" HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {}\r\n\r\n", a.secret).as_bytes(),
            );
            let mut wire = gateway.connect();
            wire.send(&bytes);
            let answer = wire.answer();
            let shown = String::from_utf8_lossy(&target).into_owned();
            prop_assert!(answer.is_some(), "no answer to {:?}", shown);
            for seen in live.seen() {
                passed.set(passed.get() + 1);
                let line = seen.request_line().to_owned();
                let target = line.strip_prefix("GET ").and_then(|line| line.strip_suffix(" HTTP/1.1"));
                let path = target.and_then(|target| target.split('?').next()).unwrap_or_default();
                prop_assert!(path.starts_with("/open/"), "{:?} arrived as {}", shown, line);
                prop_assert!(!is_secret(path.as_bytes()), "{:?} arrived as {}", shown, line);
            }
            live.forget();
        }
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    assert!(passed.get() > 50, "only {} targets passed: the property says little", passed.get());
}
