//! TLS to upstreams: whom the gateway believes, who it is to them, and what it says when a handshake fails.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use tempfile::TempDir;

use crate::harness::front::{Ending, Front, demanding, server_config};
use crate::harness::{
    Authority, Call, Gateway, GatewayBuilder, PAUSE, Process, Reply, Tuned, Upstream, create_key, eventually,
    fetch,
};

const POLICY: &str = r#"
scopes = ["all"]

[[route]]
id = "things"
methods = ["GET", "POST"]
paths = ["/things"]
any_key = true
upstream = "api"
"#;

/// A handshake takes long on a busy machine.
const PATIENT: &str = "connect_timeout = \"20s\"";

/// A folder with an authority's certificate.
fn folder(authority: &Authority) -> TempDir {
    let folder = TempDir::new().unwrap();
    authority.write(folder.path(), "ca");
    folder
}

/// A gateway with one worker in front of this server, and the secret of a live key. `tls` are the lines of its `live_tls`.
fn before(url: &str, tls: &str, folder: TempDir) -> (Gateway, String) {
    let tls = format!("[upstreams.api.live_tls]\n{tls}\n");
    let gateway = Tuned::default().live(url).upstream(PATIENT).settings(&tls).builder().start_in(folder);
    let key = gateway.live_key().secret;
    (gateway, key)
}

fn get(gateway: &Gateway, key: &str) -> u16 {
    gateway.fetch(&Call::get("/things").key(key)).status
}

/// An upstream that closes each connection after its answer.
fn closing() -> Upstream {
    Upstream::with(|_| {
        Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok".to_vec())
    })
}

#[test]
fn requests_go_over_one_connection_to_a_server_that_proves_its_name() {
    let (authority, upstream) = (Authority::new(), Upstream::start("live"));
    let front = Front::start(server_config(&authority.issue(&["localhost"])), upstream.address());
    let url = front.url().replace("127.0.0.1", "localhost");
    let (gateway, key) = before(&url, "ca = \"ca.pem\"", folder(&authority));
    for _ in 0..5 {
        assert_eq!(gateway.fetch(&Call::post("/things", "body").key(&key)).text(), "live");
    }
    assert_eq!((upstream.connections(), upstream.seen().len()), (1, 5));
    let names: Vec<_> = front.handshakes().into_iter().map(|handshake| handshake.name).collect();
    assert_eq!(names, [Some("localhost".to_owned())]);
    assert_eq!(upstream.seen()[0].value("host"), "api.example.com");
}

#[test]
fn the_name_that_is_asked_for_and_verified_can_be_another_than_the_hosts() {
    let (authority, upstream) = (Authority::new(), Upstream::start("live"));
    let front = Front::start(server_config(&authority.issue(&["api.internal"])), upstream.address());
    let tls = "ca = \"ca.pem\"\nserver_name = \"api.internal\"";
    let (gateway, key) = before(&front.url(), tls, folder(&authority));
    assert_eq!(get(&gateway, &key), 200);
    assert_eq!(front.handshakes()[0].name.as_deref(), Some("api.internal"));
}

/// The line of the log about the one request, which is refused, to a server at `url`.
#[track_caller]
fn refused(url: &str, tls: &str, folder: &TempDir) -> String {
    refused_within(PATIENT, url, tls, folder)
}

#[track_caller]
fn refused_within(time: &str, url: &str, tls: &str, folder: &TempDir) -> String {
    let settings = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n[log]\nrequests = \"json\"\n[upstreams.api]\nlive = [\"{url}\"]\n\
         test = [\"http://127.0.0.1:9\"]\n{time}\n[upstreams.api.live_tls]\n{tls}\n"
    );
    GatewayBuilder::default().settings(&settings).policy(POLICY).write(folder.path());
    let key = create_key(folder.path());
    let process = Process::serve(folder.path());
    let answer = fetch(process.address(), &Call::get("/things").key(&key));
    let message = answer.refusal(502, "bad_gateway");
    assert_eq!(message, "No secure connection to the service behind this gateway could be made");
    assert!(process.out_line("req_").contains("\"upstream_tls\""));
    process.err_line(" upstream ")
}

#[test]
fn a_server_without_the_right_certificate_gets_no_request_and_the_log_says_why() {
    let (authority, upstream) = (Authority::new(), Upstream::start("live"));
    let stranger = Authority::new().issue(&["127.0.0.1"]);
    let expired = authority.issue_with(&["127.0.0.1"], |parameters| {
        parameters.not_before = rcgen::date_time_ymd(2020, 1, 1);
        parameters.not_after = rcgen::date_time_ymd(2021, 1, 1);
    });
    for (certificate, words) in [
        (stranger, "from no authority in upstreams.api.live_tls.ca"),
        (authority.issue(&["api.internal"]), "its certificate is not for 127.0.0.1"),
        (expired, "its certificate has expired: renew it"),
    ] {
        let front = Front::start(server_config(&certificate), upstream.address());
        let line = refused(&front.url(), "ca = \"ca.pem\"", &folder(&authority));
        assert!(line.contains(&front.url()) && line.contains(words), "{words}: {line}");
    }
    let front = Front::start(server_config(&authority.issue(&["127.0.0.1"])), upstream.address());
    let line = refused(&front.url(), "", &folder(&authority));
    assert!(line.contains("from no authority that the system trusts"), "{line}");
    assert!(upstream.seen().is_empty(), "nothing was sent");
}

#[test]
fn a_server_that_speaks_no_tls_gets_no_request_and_the_log_says_what_to_look_at() {
    let authority = Authority::new();
    let plain = |answer: &'static [u8]| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.read(&mut [0; 4096]);
                let _ = stream.write_all(answer);
                if answer.is_empty() {
                    // It waits for more.
                    thread::spawn(move || stream.read_to_end(&mut Vec::new()));
                }
            }
        });
        format!("https://{address}")
    };
    for (answer, words) in [
        (&b"HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\n\r\n"[..], "it does not speak TLS"),
        (b"", "did not end the handshake of TLS within connect_timeout"),
    ] {
        // Only a server that says nothing takes all of the time.
        let time = if answer.is_empty() { "connect_timeout = \"1s\"" } else { PATIENT };
        let line = refused_within(time, &plain(answer), "ca = \"ca.pem\"", &folder(&authority));
        assert!(line.contains(words), "{line}");
    }
}

#[test]
fn a_client_certificate_is_shown_where_it_is_named_and_only_with_keys_of_that_environment() {
    let (authority, upstream) = (Authority::new(), Upstream::start("up"));
    let server = authority.issue(&["127.0.0.1"]);
    let (live, test) = (
        Front::start(demanding(&server, &authority), upstream.address()),
        Front::start(server_config(&server), upstream.address()),
    );
    let folder = folder(&authority);
    let mine = authority.issue(&["gateway"]);
    mine.write(folder.path(), "client");
    let toml = format!(
        "[upstreams.api]\nlive = [\"{}\"]\ntest = [\"{}\"]\n{PATIENT}\n[upstreams.api.live_tls]\nca = \"ca.pem\"\ncert = \"client.pem\"\n\
         key = \"client-key.pem\"\n[upstreams.api.test_tls]\nca = \"ca.pem\"\n",
        live.url(),
        test.url()
    );
    let gateway = Gateway::builder().policy(POLICY).settings(&toml).start_in(folder);
    let (live_key, test_key) = (gateway.live_key().secret, gateway.test_key().secret);
    assert_eq!((get(&gateway, &live_key), get(&gateway, &test_key)), (200, 200));
    assert_eq!(live.handshakes()[0].client.as_deref(), Some(&*mine.der));
    assert_eq!(test.handshakes()[0].client, None);
}

#[test]
fn a_server_that_demands_a_certificate_and_gets_none_answers_nothing_and_the_log_says_what_it_wants() {
    let (authority, upstream) = (Authority::new(), Upstream::start("live"));
    let front = Front::start(demanding(&authority.issue(&["127.0.0.1"]), &authority), upstream.address());
    let line = refused(&front.url(), "ca = \"ca.pem\"", &folder(&authority));
    assert!(line.contains("it demands a client certificate"), "{line}");
    assert!(upstream.seen().is_empty());
}

#[test]
fn without_verification_any_server_is_believed_and_check_warns() {
    let (authority, upstream) = (Authority::new(), Upstream::start("live"));
    let front = Front::start(server_config(&Authority::new().issue(&["elsewhere"])), upstream.address());
    let (gateway, key) = before(&front.url(), "verify = \"dangerously-off\"", folder(&authority));
    assert_eq!(get(&gateway, &key), 200);
    let check = Process::keygate(gateway.folder(), &["check"]);
    assert!(check.out_line("warning").contains("the certificates of these servers are not verified"));
}

#[test]
fn a_server_with_a_wrong_certificate_leaves_its_requests_to_another() {
    let (authority, upstream) = (Authority::new(), Upstream::start("live"));
    let wrong = Front::start(server_config(&authority.issue(&["elsewhere"])), upstream.address());
    let right = Front::start(server_config(&authority.issue(&["127.0.0.1"])), upstream.address());
    let tuned = Tuned::default().live(wrong.url()).live(right.url()).upstream(PATIENT);
    let tls = "[upstreams.api.live_tls]\nca = \"ca.pem\"\n[upstreams.api.check]\nenabled = false";
    let gateway = tuned.settings(tls).builder().start_in(folder(&authority));
    let key = gateway.live_key().secret;
    for _ in 0..6 {
        assert_eq!(gateway.fetch(&Call::post("/things", "body").key(&key)).status, 200);
    }
    assert_eq!((upstream.seen().len(), wrong.handshakes().len(), right.handshakes().len()), (6, 0, 1));
}

#[test]
fn sessions_go_on_within_an_environment_and_never_in_the_other() {
    let (authority, upstream) = (Authority::new(), closing());
    // One server for both, so that a session of one could go on with the other.
    let front = Front::start(server_config(&authority.issue(&["127.0.0.1"])), upstream.address());
    let toml = format!(
        "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n[upstreams.api]\nlive = [\"{}\"]\nshared = true\n{PATIENT}\n\
         [upstreams.api.live_tls]\nca = \"ca.pem\"\n",
        front.url()
    );
    let gateway = Gateway::builder().policy(POLICY).settings(&toml).start_in(folder(&authority));
    let resumed = |key: &str, count| -> Vec<bool> {
        let before = front.handshakes().len();
        for _ in 0..count {
            assert_eq!(get(&gateway, key), 200);
        }
        front.handshakes()[before..].iter().map(|handshake| handshake.is_resumed).collect()
    };
    let (live, test) = (gateway.live_key().secret, gateway.test_key().secret);
    assert_eq!(resumed(&live, 3), [false, true, true]);
    assert_eq!(resumed(&test, 3), [false, true, true]);
    assert_eq!(resumed(&live, 1), [true]);
}

/// Sends requests until `is_over`; how many there were, and those that were not answered with 200.
fn steadily(gateway: SocketAddr, key: &str, is_over: &AtomicBool) -> (usize, Vec<u16>) {
    let (mut count, mut failed) = (0, Vec::new());
    while !is_over.load(Ordering::SeqCst) {
        let status = fetch(gateway, &Call::post("/things", "body").key(key)).status;
        count += 1;
        failed.extend((status != 200).then_some(status));
        thread::sleep(PAUSE);
    }
    (count, failed)
}

#[test]
fn a_servers_certificate_and_authority_are_replaced_under_load_without_a_failed_request() {
    let (old, new) = (Authority::new(), Authority::new());
    let upstream = closing();
    let front = Front::start(server_config(&old.issue(&["127.0.0.1"])), upstream.address());
    let (mut gateway, key) = before(&front.url(), "ca = \"ca.pem\"", folder(&old));
    let (address, is_over) = (gateway.address(), AtomicBool::new(false));
    thread::scope(|scope| {
        let loads = [(); 2].map(|()| scope.spawn(|| steadily(address, &key, &is_over)));
        let answered = |more: usize| {
            let before = upstream.seen().len();
            eventually("requests are answered", || upstream.seen().len() >= before + more);
        };
        answered(20);
        // Another certificate of the same authority: the gateway needs to know nothing.
        front.renew(server_config(&old.issue(&["127.0.0.1"])));
        answered(20);
        // Another authority: first both are trusted, then the server changes, then the old one goes.
        let (first, file) = (new.pem(), gateway.folder().join("ca.pem"));
        fs::write(&file, old.pem() + &first).unwrap();
        gateway.reload().unwrap();
        answered(20);
        front.renew(server_config(&new.issue(&["127.0.0.1"])));
        answered(20);
        fs::write(&file, &first).unwrap();
        gateway.reload().unwrap();
        answered(20);
        is_over.store(true, Ordering::SeqCst);
        let outcomes = loads.map(|load| load.join().unwrap());
        let count: usize = outcomes.iter().map(|(count, _)| count).sum();
        assert!(count >= 100, "{count}");
        assert!(outcomes.iter().all(|(_, failed)| failed.is_empty()), "{outcomes:?}");
    });
}

#[test]
fn a_reload_reads_the_files_again_and_keeps_connections_only_where_they_are_the_same() {
    let (authority, upstream) = (Authority::new(), Upstream::start("live"));
    let front = Front::start(demanding(&authority.issue(&["127.0.0.1"]), &authority), upstream.address());
    let folder = folder(&authority);
    let certificates = [authority.issue(&["gateway"]), authority.issue(&["gateway"])];
    certificates[0].write(folder.path(), "client");
    let tls = "ca = \"ca.pem\"\ncert = \"client.pem\"\nkey = \"client-key.pem\"";
    let (mut gateway, key) = before(&front.url(), tls, folder);
    assert_eq!(get(&gateway, &key), 200);
    gateway.reload().unwrap();
    assert_eq!((get(&gateway, &key), front.handshakes().len()), (200, 1), "nothing has changed");
    certificates[1].write(gateway.folder(), "client");
    gateway.reload().unwrap();
    assert_eq!(get(&gateway, &key), 200);
    let shown: Vec<_> = front.handshakes().into_iter().map(|handshake| handshake.client).collect();
    assert_eq!(shown, certificates.map(|certificate| Some(certificate.der.to_vec())));
    assert!(!front.handshakes()[1].is_resumed, "a session of the old certificate does not go on");
    fs::write(gateway.folder().join("ca.pem"), "no certificate").unwrap();
    let refused = gateway.reload().unwrap_err().to_string();
    assert!(refused.contains("upstreams.api.live_tls: there is no certificate in"), "{refused}");
    assert_eq!((get(&gateway, &key), front.handshakes().len()), (200, 2), "what was in force stays");
}

#[test]
fn a_body_that_only_the_connections_end_ends_is_whole_only_if_tls_says_so() {
    let authority = Authority::new();
    let upstream =
        Upstream::with(|_| Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\n\r\nall of it, perhaps".to_vec()));
    for (ending, is_whole) in [(Ending::Proper, true), (Ending::Cut, false)] {
        let config = server_config(&authority.issue(&["127.0.0.1"]));
        let front = Front::ending(ending, config, upstream.address());
        let (gateway, key) = before(&front.url(), "ca = \"ca.pem\"", folder(&authority));
        let answer = gateway.connect().call(&Call::get("/things").key(&key));
        // The head may be lost with the rest.
        assert_eq!(answer.is_some_and(|answer| answer.complete), is_whole, "{ending:?}");
    }
}

#[test]
fn every_file_for_an_upstream_is_checked_at_its_line() {
    let authority = Authority::new();
    let folder = folder(&authority);
    authority.issue(&["gateway"]).write(folder.path(), "client");
    authority.issue(&["gateway"]).write(folder.path(), "other");
    let toml = |tls: &str| {
        format!(
            "[upstreams.api]\nlive = [\"https://127.0.0.1:9\"]\ntest = [\"http://127.0.0.1:10\"]\n\
             [upstreams.api.live_tls]\n{tls}\n"
        )
    };
    for (tls, line, words) in [
        ("ca = \"none.pem\"", ":5:6: upstreams.api.live_tls.ca: cannot read", "none.pem"),
        ("ca = \"client-key.pem\"", ":5:6: upstreams.api.live_tls.ca: there is no certificate in", ""),
        (
            "cert = \"client.pem\"\nkey = \"none.pem\"",
            ":6:7: upstreams.api.live_tls.key: cannot read",
            "none.pem",
        ),
        (
            "cert = \"client.pem\"\nkey = \"other-key.pem\"",
            ":5:8: upstreams.api.live_tls.cert: ",
            "with its own key",
        ),
    ] {
        GatewayBuilder::default().settings(&toml(tls)).policy(POLICY).write(folder.path());
        for command in ["check", "serve"] {
            let process = Process::keygate(folder.path(), &[command]);
            let told = process.err_line("upstreams.api");
            assert!(told.contains(line) && told.contains(words), "{command}: {told}");
        }
    }
}

#[test]
fn a_connection_that_ends_without_its_answer_is_told_as_over_plain_text() {
    let authority = Authority::new();
    let upstream = Upstream::with(|_| Reply::Custom(Box::new(|_: &mut TcpStream| {})));
    let front = Front::start(server_config(&authority.issue(&["127.0.0.1"])), upstream.address());
    let (gateway, key) = before(&front.url(), "ca = \"ca.pem\"", folder(&authority));
    let answer = gateway.fetch(&Call::post("/things", "body").key(&key));
    assert_eq!(
        answer.refusal(502, "bad_gateway"),
        "The service behind this gateway broke off before it answered"
    );
    assert_eq!(upstream.seen().len(), 1, "and it is not sent again");
}
