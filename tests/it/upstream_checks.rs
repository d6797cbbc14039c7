//! Checks of an upstream's servers beside the requests.

use std::net::{Shutdown, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use serde_json::json;
use tempfile::TempDir;

use crate::harness::client::fetch_over;
use crate::harness::metrics::{scrape, value};
use crate::harness::process::keygate;
use crate::harness::{Call, Gateway, Process, Reply, Seen, Tuned, Upstream, eventually, refusing};

/// A check with a question, ten times a second.
const ASKS: &str = "[ops]\nlisten = \"127.0.0.1:0\"\n[upstreams.api.check]\npath = \"/healthz?quick\"\ninterval = \"100ms\"\n";
const CONNECTS: &str = "[ops]\nlisten = \"127.0.0.1:0\"\n[upstreams.api.check]\ninterval = \"100ms\"\n";

/// Answers while `is_well`. While not, it says 503, or nothing at all if it `hangs`.
fn server(name: &'static str, is_well: Arc<AtomicBool>, hangs: bool) -> Upstream {
    Upstream::with(move |_: &Seen| match (is_well.load(Ordering::SeqCst), hangs) {
        (true, _) => Reply::ok(name),
        (false, false) => Reply::raw("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"),
        (false, true) => Reply::Custom(Box::new(|stream| {
            let _ = std::io::copy(stream, &mut std::io::sink());
            let _ = stream.shutdown(Shutdown::Both);
        })),
    })
}

fn is_healthy(gateway: &Gateway, url: &str) -> bool {
    let endpoint = url.strip_prefix("http://").unwrap();
    let series = format!("keygate_upstream_healthy{{upstream=\"api\",endpoint=\"{endpoint}\"}}");
    value(&scrape(gateway.ops_address()), &series) == Some(1.0)
}

fn things(server: &Upstream) -> usize {
    server.seen().iter().filter(|seen| seen.request_line().contains("/things")).count()
}

#[test]
fn a_server_that_fails_its_checks_gets_no_request_until_it_passes_again() {
    for hangs in [false, true] {
        let is_well = Arc::new(AtomicBool::new(false));
        let (good, bad) = (Upstream::start("good"), server("back", Arc::clone(&is_well), hangs));
        let settings = format!("{ASKS}timeout = \"300ms\"\n");
        let (gateway, key) = Tuned::default().live(good.url()).live(bad.url()).settings(&settings).start();
        eventually("it fails its checks", || !is_healthy(&gateway, &bad.url()));
        assert!(is_healthy(&gateway, &good.url()));
        for _ in 0..20 {
            assert_eq!(gateway.fetch(&Call::get("/things").key(&key)).text(), "good", "hangs: {hangs}");
        }
        assert_eq!(things(&bad), 0, "hangs: {hangs}");
        let check = bad.seen().swap_remove(0);
        assert_eq!(check.request_line(), "GET /healthz?quick HTTP/1.1");
        assert_eq!(check.value("host"), bad.url().strip_prefix("http://").unwrap());

        is_well.store(true, Ordering::SeqCst);
        eventually("it passes again", || is_healthy(&gateway, &bad.url()));
        for _ in 0..10 {
            assert_eq!(gateway.fetch(&Call::get("/things").key(&key)).status, 200);
        }
        assert_eq!(things(&bad), 5, "hangs: {hangs}");
    }
}

#[test]
fn a_server_that_failed_its_checks_is_in_use_again_after_a_reload_that_ends_them() {
    let (good, bad) = (Upstream::start("good"), server("bad", Arc::default(), false));
    let (mut gateway, key) = Tuned::default().live(good.url()).live(bad.url()).settings(ASKS).start();
    eventually("it fails its checks", || !is_healthy(&gateway, &bad.url()));
    let file = gateway.folder().join("keygate.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let unchecked = text.replace("[upstreams.api.check]\n", "[upstreams.api.check]\nenabled = false\n");
    std::fs::write(&file, unchecked).unwrap();
    gateway.reload().unwrap();
    assert!(is_healthy(&gateway, &bad.url()));
    for _ in 0..4 {
        gateway.fetch(&Call::get("/things").key(&key));
    }
    assert_eq!((things(&good), things(&bad)), (2, 2));
}

#[test]
fn a_server_that_comes_back_is_found_without_a_request_that_tries_it() {
    let place = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = place.local_addr().unwrap();
    drop(place);
    let (good, url) = (Upstream::start("good"), format!("http://{address}"));
    let (gateway, _) = Tuned::default().live(good.url()).live(url.clone()).settings(CONNECTS).start();
    eventually("it cannot be connected to", || !is_healthy(&gateway, &url));
    let place = TcpListener::bind(address).unwrap();
    eventually("it can be again", || is_healthy(&gateway, &url));
    drop(place);
    assert!(is_healthy(&gateway, &good.url()));
    assert!(good.seen().is_empty(), "the check only connects");
}

/// What a server does with a request for /things/hostile.
#[derive(Clone, Copy, Debug)]
enum Provoked {
    Silence,
    End,
    Failure,
}

/// Answers everything else at once.
fn provoked(name: &'static str, by: Provoked) -> Upstream {
    Upstream::with(move |request: &Seen| match by {
        _ if !request.request_line().contains("/things/hostile") => Reply::ok(name),
        Provoked::Silence => {
            Reply::Custom(Box::new(|stream| drop(std::io::copy(stream, &mut std::io::sink()))))
        }
        Provoked::End => Reply::BytesThenClose(Vec::new()),
        Provoked::Failure => Reply::raw("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"),
    })
}

fn was_asked_whether_it_answers(server: &Upstream) -> bool {
    server.seen().iter().any(|seen| seen.request_line() == "OPTIONS * HTTP/1.1")
}

#[test]
fn one_key_that_provokes_time_outs_ends_or_failures_passes_no_server_over_that_answers_its_checks() {
    for (provoked_to, status) in [(Provoked::Silence, 504), (Provoked::End, 502), (Provoked::Failure, 503)] {
        for settings in [ASKS, CONNECTS] {
            let (one, two) = (provoked("one", provoked_to), provoked("two", provoked_to));
            let (gateway, key) = Tuned::default()
                .live(one.url())
                .live(two.url())
                .upstream("answer_timeout = \"300ms\"")
                // A busy machine may take longer than the default.
                .settings(&format!("{settings}timeout = \"10s\"\n"))
                .start();
            // Nobody else asks for anything.
            let (address, transport) = (gateway.address(), gateway.transport());
            let hostile = Call::get("/things/hostile").key(&key);
            thread::scope(|scope| {
                let ask =
                    || scope.spawn(|| assert_eq!(fetch_over(address, transport, &hostile).status, status));
                (0..12).for_each(|_| drop(ask()));
            });
            for server in [&one, &two] {
                assert!(things(server) > 0);
                if settings == CONNECTS && !matches!(provoked_to, Provoked::Failure) {
                    eventually("a check asks it", || was_asked_whether_it_answers(server));
                }
                assert!(is_healthy(&gateway, &server.url()), "{provoked_to:?}, {settings}");
            }
        }
    }
}

#[test]
fn a_server_that_answers_nothing_at_all_is_passed_over_until_it_answers_again() {
    for hangs in [false, true] {
        let is_well = Arc::new(AtomicBool::new(false));
        let bad = match hangs {
            true => server("back", Arc::clone(&is_well), true),
            false => {
                let is_well = Arc::clone(&is_well);
                Upstream::with(move |_: &Seen| match is_well.load(Ordering::SeqCst) {
                    true => Reply::ok("back"),
                    false => Reply::BytesThenClose(Vec::new()),
                })
            }
        };
        let good = Upstream::start("good");
        let (gateway, key) = Tuned::default()
            .live(good.url())
            .live(bad.url())
            .upstream("answer_timeout = \"300ms\"")
            .settings(CONNECTS)
            .start();
        let fetch = || gateway.fetch(&Call::get("/things").key(&key));
        eventually("it is passed over", || {
            let answer = fetch();
            assert!([200, 502, 504].contains(&answer.status), "{}", answer.status);
            !is_healthy(&gateway, &bad.url())
        });
        for _ in 0..20 {
            assert_eq!(fetch().text(), "good", "hangs: {hangs}");
        }

        is_well.store(true, Ordering::SeqCst);
        eventually("no request had to find out", || is_healthy(&gateway, &bad.url()));
        bad.forget();
        for _ in 0..10 {
            assert_eq!(fetch().status, 200);
        }
        assert_eq!(things(&bad), 5, "hangs: {hangs}");
        assert!(!was_asked_whether_it_answers(&bad), "the suspicion is over");
    }
}

/// A server that answers its checks, and nobody else until it is well.
fn failing(is_well: &Arc<AtomicBool>, by: Provoked) -> Upstream {
    let is_well = Arc::clone(is_well);
    Upstream::with(move |request: &Seen| {
        if is_well.load(Ordering::SeqCst) || request.request_line().starts_with("OPTIONS * ") {
            return Reply::ok("back");
        }
        match by {
            Provoked::Silence => {
                Reply::Custom(Box::new(|stream| drop(std::io::copy(stream, &mut std::io::sink()))))
            }
            Provoked::End => Reply::BytesThenClose(Vec::new()),
            Provoked::Failure => Reply::raw("HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"),
        }
    })
}

#[test]
fn what_three_organisations_find_on_two_routes_passes_a_server_over_though_it_answers_its_checks() {
    for by in [Provoked::Silence, Provoked::End, Provoked::Failure] {
        let is_well = Arc::new(AtomicBool::new(false));
        let (good, bad) = (Upstream::start("good"), failing(&is_well, by));
        let settings = format!("{CONNECTS}timeout = \"10s\"\n[admin]\nsocket = \"keygate.sock\"\n");
        let (gateway, key) = Tuned::default()
            .live(good.url())
            .live(bad.url())
            .upstream("answer_timeout = \"300ms\"")
            .settings(&settings)
            .start();
        let others = [(); 2].map(|()| gateway.key_in_another_org().secret);
        let ask = |key: &str, path: &str| gateway.fetch(&Call::post(path, "body").key(key)).status;
        for _ in 0..4 {
            for path in ["/things", "/small"] {
                for key in [&key, &others[0]] {
                    ask(key, path);
                }
            }
        }
        assert!(is_healthy(&gateway, &bad.url()), "{by:?}: two organisations are not enough");
        eventually("it is passed over", || {
            for path in ["/things", "/small"] {
                for key in [&key, &others[0], &others[1]] {
                    ask(key, path);
                }
            }
            !is_healthy(&gateway, &bad.url())
        });
        let told = keygate(gateway.folder(), &["upstreams", "status"]).output().unwrap().stdout;
        let told = String::from_utf8(told).unwrap();
        assert!(
            told.contains("requests of several organisations got no proper answer there"),
            "{by:?}: {told}"
        );
        // One tries it in each of its spells, of which the first take 1, 2 and 4 s.
        let failed = (0..30).filter(|_| ask(&key, "/things") != 200).count();
        assert!(failed <= 5, "{by:?}: {failed} of 30");
        is_well.store(true, Ordering::SeqCst);
        eventually("a request that tries it finds out", || {
            ask(&key, "/things");
            is_healthy(&gateway, &bad.url())
        });
        bad.forget();
        (0..10).for_each(|_| assert_eq!(ask(&key, "/things"), 200));
        assert_eq!(things(&bad), 5, "{by:?}");
    }
}

#[test]
fn clients_that_break_off_in_their_bodies_pass_no_server_over() {
    let (one, two) = (Upstream::start("one"), Upstream::start("two"));
    let (gateway, key) = Tuned::default().live(one.url()).live(two.url()).settings(CONNECTS).start();
    let [other, third] = [(); 2].map(|()| gateway.key_in_another_org().secret);
    for _ in 0..4 {
        for (key, path) in [(&key, "/things"), (&other, "/small"), (&third, "/things"), (&key, "/small")] {
            let mut client = gateway.connect();
            let head = format!("POST {path} HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {key}\r\n");
            client.send(format!("{head}content-length: 9\r\n\r\nbody").as_bytes());
            client.finish_sending();
            assert!(client.answer().is_none_or(|answer| answer.status == 400));
            assert!(is_healthy(&gateway, &one.url()) && is_healthy(&gateway, &two.url()));
        }
    }
}

#[test]
fn operators_are_shown_which_servers_get_requests() {
    let (good, away) = (Upstream::start("good"), refusing());
    let folder = TempDir::new().unwrap();
    let settings = format!("{CONNECTS}[admin]\nsocket = \"keygate.sock\"\n");
    Tuned::default().live(good.url()).live(away.clone()).settings(&settings).builder().write(folder.path());
    let status = |words: &[&str]| {
        let ran = keygate(folder.path(), &[&["upstreams", "status"], words].concat()).output().unwrap();
        let told = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (ran.status.code(), told(ran.stdout), told(ran.stderr))
    };
    let told = "keygate: no gateway runs here, and only a running one knows the state of upstreams\n";
    assert_eq!(status(&[]), (Some(1), String::new(), told.to_owned()));

    let gateway = Process::serve(folder.path());
    gateway.address();
    let place = |url: &str| url.strip_prefix("http://").unwrap().to_owned();
    let (good, away) = (place(&good.url()), place(&away));
    let away_line = format!("api {away}: passed over: it fails its checks; the log says why\n");
    eventually("it is known", || status(&[]).1.contains(&away_line));
    let (code, out, _) = status(&[]);
    assert!(out.starts_with(&format!("api {good}: in use\n")) && code == Some(1), "{out}");
    let out = status(&["--json"]).1;
    let lines: Vec<serde_json::Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let expected = |server: &str, state| json!({"upstream": "api", "server": server, "state": state});
    assert_eq!(lines[..2], [expected(&good, "in_use"), expected(&away, "fails_checks")]);
}

#[test]
fn a_single_server_is_not_checked_unless_the_configuration_says_what_to_ask() {
    let only = Upstream::start("only");
    let (gateway, key) = Tuned::default().live(only.url()).settings(CONNECTS).start();
    gateway.fetch(&Call::get("/things").key(&key));
    let (asked, asking) = (Upstream::start("asked"), Tuned::default());
    let (gateway, _) = asking.live(asked.url()).settings(ASKS).start();
    eventually("the other one was asked thrice", || asked.seen().len() >= 3);
    assert_eq!((only.connections(), things(&only)), (1, 1));
    assert!(is_healthy(&gateway, &asked.url()));
}
