//! Trailers of answers: they reach clients that accept them, without fields that are only valid in a head.

use crate::harness::{Answer, Call, Gateway, Reply, TestKey, Upstream};

/// An upstream that sends this head before a body in one chunk, and these trailers after it.
fn saying(head: &'static str, trailers: &'static str) -> Upstream {
    Upstream::with(move |_| {
        Reply::raw(&format!(
            "HTTP/1.1 200 OK\r\n{head}transfer-encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n{trailers}\r\n"
        ))
    })
}

struct World {
    gateway: Gateway,
    key: TestKey,
    live: Upstream,
}

impl World {
    fn before(live: Upstream) -> Self {
        // One worker, and so one pool of connections to the upstream.
        let server = "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1";
        let gateway = Gateway::builder().settings(server).api(&live, &Upstream::start("test")).start();
        Self { key: gateway.live_key(), gateway, live }
    }

    fn fetch(&self, fields: &[(&str, &str)]) -> Answer {
        let call = Call::get("/v1/jobs").key(&self.key.secret);
        let call = fields.iter().fold(call, |call, (name, value)| call.field(name, value));
        let answer = self.gateway.fetch(&call);
        assert_eq!((answer.status, answer.text().as_str(), answer.complete), (200, "body", true));
        answer
    }
}

const TAKES: (&str, &str) = ("te", "trailers");

fn pair(name: &str, value: &str) -> (String, String) {
    (name.to_owned(), value.to_owned())
}

#[test]
fn trailers_reach_a_client_that_accepts_them() {
    let world = World::before(saying(
        "trailer: Grpc-Status, x-sum\r\n",
        "Grpc-Status: 0\r\nx-sum: one\r\nx-sum: two\r\n",
    ));
    let answer = world.fetch(&[TAKES]);
    assert_eq!(answer.field("trailer"), Some("grpc-status, x-sum"));
    assert_eq!(answer.trailers, [pair("grpc-status", "0"), pair("x-sum", "one"), pair("x-sum", "two")]);
    let seen = world.live.only();
    assert_eq!(
        (seen.value("te"), seen.value("connection")),
        ("trailers", "te"),
        "the upstream is asked for them"
    );
    world.fetch(&[TAKES]);
    assert_eq!(world.live.connections(), 1, "an answer with trailers leaves its connection usable");
}

#[test]
fn an_http1_client_that_does_not_ask_for_trailers_gets_none() {
    let world = World::before(saying("trailer: x-sum\r\n", "x-sum: one\r\n"));
    let mut wire = world.gateway.connect();
    for _ in 0..2 {
        let answer = wire.call(&Call::get("/v1/jobs").key(&world.key.secret)).unwrap();
        assert_eq!((answer.text().as_str(), answer.complete), ("body", true));
        assert_eq!((answer.field("trailer"), answer.trailers.len()), (None, 0));
    }
    let seen = &world.live.seen()[0];
    assert!(seen.values("te").is_empty() && seen.values("connection").is_empty());
}

#[test]
fn unannounced_trailers_are_forwarded_over_http2_only() {
    let world = World::before(saying("", "x-sum: one\r\n"));
    let answer = world.fetch(&[TAKES]);
    let expected = if world.gateway.transport().is_http2() { vec![pair("x-sum", "one")] } else { Vec::new() };
    assert_eq!(answer.trailers, expected);
}

/// A client that merges trailers into the head would use these fields; each is sent in a different
/// spelling.
#[test]
fn fields_that_are_only_valid_in_a_head_are_removed_from_trailers() {
    let world = World::before(saying(
        "trailer: x-sum, Content-Length, content_type, Transfer-Encoding, Host, X-Org-Id, x_key.id, X-Request-Id, Set-Cookie, \
         Authorization, WWW-Authenticate, Location, Cache-Control, Connection, Keep-Alive, X-Forwarded-For, X-Scopes, Trailer, TE\r\n",
        "Content-Length: 9\r\ncontent_type: bad\r\nTransfer-Encoding: bad\r\nHost: bad\r\nX-Org-Id: bad\r\nx_key.id: bad\r\n\
         X-Request-Id: bad\r\nSet-Cookie: bad=1\r\nAuthorization: bad\r\nWWW-Authenticate: bad\r\nLocation: /bad\r\n\
         Cache-Control: bad\r\nConnection: x-sum\r\nKeep-Alive: bad\r\nX-Forwarded-For: bad\r\nX-Scopes: bad\r\nTrailer: bad\r\n\
         TE: bad\r\nx-sum: good\r\n",
    ));
    let answer = world.fetch(&[TAKES]);
    assert_eq!(answer.trailers, [pair("x-sum", "good")]);
    assert_eq!(answer.field("trailer"), Some("x-sum"));
    assert!(!answer.fields.iter().any(|(_, value)| value.contains("bad")), "{:#?}", answer.fields);
}

#[test]
fn a_body_whose_trailers_were_all_removed_ends_without_trailers() {
    let world = World::before(saying("trailer: set-cookie\r\n", "set-cookie: bad=1\r\n"));
    for _ in 0..2 {
        let answer = world.fetch(&[TAKES]);
        assert_eq!((answer.field("trailer"), answer.trailers.len()), (None, 0));
    }
    assert_eq!(world.live.connections(), 1);
}
