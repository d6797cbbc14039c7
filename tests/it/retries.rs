//! Which requests reach a second server, or the same one twice, and how many may.

use std::collections::HashSet;
use std::io::{copy, sink};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::harness::client::fetch_over;
use crate::harness::metrics::{scrape, value};
use crate::harness::{Call, Gateway, Reply, Seen, Tuned, Upstream, eventually};

const OPS: &str = "[ops]\nlisten = \"127.0.0.1:0\"\n";

/// How often requests of this upstream's servers were sent again for this reason.
fn repeated(gateway: &Gateway, server: &Upstream, reason: &str) -> f64 {
    let endpoint = server.url();
    let endpoint = endpoint.strip_prefix("http://").unwrap();
    let series = format!(
        "keygate_upstream_retries_total{{upstream=\"api\",endpoint=\"{endpoint}\",reason=\"{reason}\"}}"
    );
    value(&scrape(gateway.ops_address()), &series).unwrap()
}

/// How often the server got a request for this path.
fn times(server: &Upstream, path: &str) -> usize {
    server.seen().iter().filter(|seen| seen.request_line().contains(path)).count()
}

#[test]
fn a_get_that_brings_its_server_down_brings_down_no_other() {
    let crashing = || {
        Upstream::with(|seen: &Seen| {
            if seen.request_line().contains("/crash") {
                Reply::BytesThenClose(Vec::new())
            } else {
                Reply::ok("fine")
            }
        })
    };
    let servers = [crashing(), crashing(), crashing()];
    let gateway =
        servers.iter().fold(Tuned::default(), |tuned, server| tuned.live(server.url())).settings(OPS);
    let (gateway, key) = gateway.start();
    // Over a new connection, and over a kept one.
    for _ in 0..2 {
        gateway.fetch(&Call::get("/things/crash").key(&key)).refusal(502, "bad_gateway");
        let met: Vec<_> = servers.iter().filter(|server| times(server, "/crash") > 0).collect();
        assert_eq!(met.len(), 1);
        assert!(times(met[0], "/crash") <= 2);
        servers.iter().for_each(Upstream::forget);
        for _ in 0..6 {
            assert_eq!(gateway.fetch(&Call::get("/things").key(&key)).status, 200);
        }
    }
}

/// A server that answers no request for `/things` while `holds`, and no check while `fails`.
fn holding(holds: &Arc<AtomicBool>, fails: &Arc<AtomicBool>) -> Upstream {
    let (holds, fails) = (Arc::clone(holds), Arc::clone(fails));
    Upstream::with(move |seen: &Seen| {
        let is_check = seen.request_line().contains("/healthz");
        if (if is_check { &fails } else { &holds }).load(Ordering::SeqCst) {
            Reply::Custom(Box::new(|stream: &mut TcpStream| drop(copy(stream, &mut sink()))))
        } else {
            Reply::ok("first")
        }
    })
}

/// The answer to a request that waits at a server when that begins to fail its checks, and how often it reached each of both.
fn left(method: &'static str) -> (u16, [usize; 2], Gateway, Upstream) {
    let [holds, fails] = [true, false].map(|is_on| Arc::new(AtomicBool::new(is_on)));
    let (first, other) = (holding(&holds, &fails), Upstream::start("other"));
    let check = "[upstreams.api.check]\npath = \"/healthz\"\ninterval = \"100ms\"\ntimeout = \"500ms\"\n";
    let (gateway, key) = Tuned::default()
        .live(first.url())
        .live(other.url())
        .upstream("answer_timeout = \"6s\"")
        .settings(&format!("{check}{OPS}"))
        .start();
    let (address, transport) = (gateway.address(), gateway.transport());
    let answers: Mutex<Vec<(String, u16)>> = Mutex::default();
    let path = thread::scope(|scope| {
        let mut number = 0;
        eventually("a request waits at the first server", || {
            number += 1;
            let path = format!("/things/{number}-");
            let (call, answers) = (Call::new(method, &path).key(&key), &answers);
            scope.spawn(move || {
                let answer = fetch_over(address, transport, &call);
                answers.lock().unwrap().push((path, answer.status));
            });
            first.seen().iter().any(|seen| seen.request_line().contains("/things"))
        });
        fails.store(true, Ordering::SeqCst);
        let seen = first.seen();
        let line = seen.iter().find(|seen| seen.request_line().contains("/things")).unwrap().request_line();
        line.split(' ').nth(1).unwrap().to_owned()
    });
    let answers = answers.into_inner().unwrap();
    let status = answers.iter().find(|(of, _)| *of == path).unwrap().1;
    let reached = [times(&first, &path), times(&other, &path)];
    let paths: HashSet<_> = answers.iter().map(|(path, _)| path).collect();
    assert!(paths.iter().all(|path| times(&first, path) + times(&other, path) <= 2));
    (status, reached, gateway, first)
}

#[test]
fn a_get_that_waits_at_a_server_which_fails_its_checks_goes_to_another_one_once() {
    let (status, reached, gateway, first) = left("GET");
    assert_eq!((status, reached), (200, [1, 1]));
    assert!(repeated(&gateway, &first, "passed_over") >= 1.0);
}

#[test]
fn a_post_that_waits_at_a_server_which_fails_its_checks_stays_there() {
    let (status, reached, gateway, first) = left("POST");
    assert_eq!((status, reached), (504, [1, 0]));
    assert_eq!(repeated(&gateway, &first, "passed_over"), 0.0);
}

#[test]
fn one_organisation_cannot_have_all_the_requests_that_may_be_sent_twice() {
    // Every request but the first one of a connection ends without an answer.
    let known: Mutex<HashSet<usize>> = Mutex::default();
    let upstream = Upstream::with(move |seen: &Seen| {
        if known.lock().unwrap().insert(seen.connection) {
            Reply::ok("fine")
        } else {
            Reply::BytesThenClose(Vec::new())
        }
    });
    let (gateway, greedy) = Tuned::default().live(upstream.url()).settings(OPS).start();
    let other = gateway.key_in_another_org().secret;
    let status = |key: &str| gateway.fetch(&Call::get("/things").key(key)).status;
    eventually("one is not sent again", || status(&greedy) == 502);
    assert!(repeated(&gateway, &upstream, "not_answered") >= 50.0);
    assert_eq!(repeated(&gateway, &upstream, "withheld"), 1.0);
    // The first one opens a connection, and the second one meets its end.
    assert_eq!([status(&other), status(&other)], [200, 200]);
}
