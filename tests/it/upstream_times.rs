//! How long a request may take, by what its route says: to connect, until the head of an answer, in all.

use crate::harness::manual::SWITCH;
use crate::harness::metrics::{scrape, value};
use crate::harness::{Call, Gateway, Manual, Wire, eventually, refusing};

const GOING_AWAY: &[u8] = b"\x88\x02\x03\xe9";

/// A gateway with a route `/NAME` for each of these, that has these lines of its own. `upstream` are lines of its upstream.
fn gateway(live: &str, upstream: &str, routes: &[(&str, &str)]) -> Gateway {
    let routes: String = routes
        .iter()
        .map(|(name, lines)| {
            format!(
                "[[route]]\nid = \"{name}\"\nmethods = [\"GET\", \"POST\"]\npaths = [\"/{name}\"]\nany_key = true\n\
                 upstream = \"api\"\nwebsocket = true\n{lines}\n"
            )
        })
        .collect();
    let settings = format!(
        "[ops]\nlisten = \"127.0.0.1:0\"\n[upstreams.api]\nlive = [\"{live}\"]\ntest = [\"{}\"]\n{upstream}\n",
        refusing()
    );
    Gateway::builder().policy(&format!("scopes = [\"a\"]\n{routes}")).settings(&settings).start()
}

/// A request that has reached the upstream: the client's connection and the upstream's.
fn asked(gateway: &Gateway, live: &Manual, path: &str) -> (Wire, Wire) {
    let mut client = gateway.connect();
    client.send(&Call::get(path).key(&gateway.live_key().secret).to_bytes());
    let mut upstream = live.accept();
    upstream.request_head().unwrap();
    (client, upstream)
}

#[test]
fn a_route_has_its_own_time_until_the_head_of_an_answer() {
    let live = Manual::start();
    let routes = [("patient", "answer_timeout = \"1h\""), ("quick", "")];
    let gateway = gateway(&live.url(), "answer_timeout = \"200ms\"", &routes);
    let (mut patient, mut upstream) = asked(&gateway, &live, "/patient");
    // The upstream's own time passes.
    let (mut quick, _unanswered) = asked(&gateway, &live, "/quick");
    quick.answer().unwrap().refusal(504, "gateway_timeout");
    upstream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfine");
    assert_eq!(patient.answer().unwrap().text(), "fine");
}

#[test]
fn a_route_has_its_own_time_for_connecting() {
    // The handshake of TLS is a part of connecting, and nobody answers it.
    let live = Manual::start();
    let tls = "connect_timeout = \"1h\"\nanswer_timeout = \"1h\"\n[upstreams.api.live_tls]\nverify = \"dangerously-off\"";
    let url = live.url().replace("http://", "https://");
    let gateway = gateway(&url, tls, &[("quick", "connect_timeout = \"200ms\"")]);
    gateway.fetch(&Call::get("/quick").key(&gateway.live_key().secret)).refusal(502, "bad_gateway");
}

#[test]
fn a_request_that_lasts_longer_than_its_route_allows_is_refused_or_its_answer_cut() {
    let live = Manual::start();
    let gateway = gateway(&live.url(), "", &[("limited", "total_timeout = \"1s\"")]);
    let (mut client, _unanswered) = asked(&gateway, &live, "/limited");
    let refused = client.answer().unwrap();
    assert!(refused.text().contains("The request took longer than it may"), "{}", refused.text());
    refused.refusal(504, "gateway_timeout");

    let (mut client, mut upstream) = asked(&gateway, &live, "/limited");
    upstream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf!");
    let answer = client.answer().unwrap();
    assert_eq!((answer.status, answer.complete), (200, false));
    let series = r#"keygate_answers_cut_total{reason="total_timeout"}"#;
    eventually("it is counted", || value(&scrape(gateway.ops_address()), series) == Some(1.0));
}

#[test]
fn the_time_of_one_request_is_not_that_of_the_next_one_on_its_connection() {
    let live = Manual::start();
    let gateway = gateway(&live.url(), "", &[("limited", "total_timeout = \"2s\""), ("free", "")]);
    let key = gateway.live_key().secret;
    let (mut client, mut upstream) = asked(&gateway, &live, "/limited");
    upstream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\nconnection: close\r\n\r\nfine");
    assert_eq!(client.answer().unwrap().text(), "fine");
    client.send(&Call::get("/free").key(&key).to_bytes());
    let mut upstream = live.accept();
    upstream.request_head().unwrap();
    // The time of the first one passes.
    let (mut other, _unanswered) = asked(&gateway, &live, "/limited");
    other.answer().unwrap().refusal(504, "gateway_timeout");
    upstream.send(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nfree");
    assert_eq!(client.answer().unwrap().text(), "free");
}

#[test]
fn a_route_can_last_although_its_upstream_says_for_how_long() {
    let live = Manual::start();
    let routes = [("stream", "total_timeout = \"off\""), ("limited", "")];
    let gateway = gateway(&live.url(), "total_timeout = \"300ms\"", &routes);
    let (mut stream, mut upstream) = asked(&gateway, &live, "/stream");
    upstream
        .send(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n");
    assert_eq!(stream.head().unwrap().status, 200);
    // The upstream's time passes.
    let (mut limited, _unanswered) = asked(&gateway, &live, "/limited");
    limited.answer().unwrap().refusal(504, "gateway_timeout");
    upstream.send(b"9\r\ndata: a\n\n\r\n");
    assert_eq!(stream.chunk().unwrap(), b"data: a\n\n");
}

#[test]
fn a_tunnel_that_lasts_longer_than_its_route_allows_is_told_to_leave() {
    let live = Manual::start();
    let gateway = gateway(&live.url(), "", &[("socket", "total_timeout = \"1s\"")]);
    let handshake = Call::websocket("/socket").key(&gateway.live_key().secret);
    let mut client = gateway.connect();
    client.send(&handshake.to_bytes());
    let mut upstream = live.accept();
    upstream.request_head().unwrap();
    upstream.send(SWITCH);
    assert_eq!(client.head().unwrap().status, 101);
    assert_eq!(client.exactly(4).unwrap(), GOING_AWAY);
    assert_eq!(upstream.exactly(8).unwrap()[..2], [0x88, 0x82]);
}
