//! Upstreams that answer badly, or not at all: the words for the client, the reason in the record, and a line in the log
//! that says what was wrong.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use tempfile::TempDir;

use crate::harness::{Call, ClosedPort, GatewayBuilder, Process, Reply, Upstream, create_key, fetch};

const POLICY: &str = r#"
scopes = ["all"]

[[route]]
id = "things"
methods = ["GET"]
paths = ["/things"]
any_key = true
upstream = "api"
"#;

/// A gateway in front of this upstream, and a key.
fn serve(url: &str) -> (Process, std::net::SocketAddr, String, TempDir) {
    let folder = TempDir::new().unwrap();
    let server = "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n[log]\nrequests = \"json\"";
    let builder = GatewayBuilder::default().settings(server).policy(POLICY);
    builder.upstream("api", url, "http://127.0.0.1:9").write(folder.path());
    let key = create_key(folder.path());
    let process = Process::serve(folder.path());
    let address = process.address();
    (process, address, key, folder)
}

/// The message of a request's 502, and the gateway after it.
#[track_caller]
fn refused(url: &str) -> (String, Process) {
    let (process, address, key, _folder) = serve(url);
    let answer = fetch(address, &Call::get("/things").key(&key));
    answer.refusal(502, "bad_gateway");
    (answer.json()["error"]["message"].as_str().unwrap().to_owned(), process)
}

#[test]
fn an_invalid_answer_has_its_own_words_and_reason_and_the_log_says_what_is_wrong_with_it() {
    let secret = "do-not-log-this";
    for (answer, expected) in [
        ("SSH-2.0-do-not-log-this\r\n\r\n".to_owned(), "it begins like SSH"),
        ("HTTP/1.1 2x0 OK\r\n\r\n".to_owned(), "byte 10 is 0x78 ('x') where a digit of the status belongs"),
        (
            format!("HTTP/1.1 200 OK\r\nx-token: {secret}\x01{secret}\r\n\r\n"),
            "in the value of field 1, `x-token`",
        ),
        (format!("HTTP/1.1 200 OK\r\nx-a: b\r\n{secret} x: y\r\n\r\n"), "in the name of field 2"),
        ("HTTP/1.1 200 OK\r\ncontent-length: 2, 3\r\n\r\nhi".to_owned(), "ontent-"),
        (
            "HTTP/1.1 200 OK\r\ntransfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n".to_owned(),
            "Transfer-Encoding",
        ),
        (
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
                .to_owned(),
            "it is a 101, and the request asked for no upgrade",
        ),
    ] {
        let upstream = Upstream::with(move |_| Reply::raw(&answer));
        let (message, process) = refused(&upstream.url());
        assert_eq!(message, "The service behind this gateway gave an invalid answer", "{expected}");
        let line = process.err_line("an answer that cannot be passed on");
        assert!(line.contains(expected) && line.contains("upstream api gave req_"), "{expected}: {line}");
        assert!(process.out_line("req_").contains("upstream_invalid_answer"), "{expected}");
        let (out, err) = process.end();
        assert!(!(line + &out + &err).contains("not-log"), "{expected}");
    }
}

#[test]
fn a_server_that_speaks_before_it_is_asked_is_not_called_unreachable() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let _ = stream.write_all(b"SSH-2.0-x\r\n");
            while let Ok(1..) = stream.read(&mut [0; 1024]) {}
        }
    });
    let (message, process) = refused(&url);
    assert_eq!(message, "The service behind this gateway gave an invalid answer");
    let line = process.err_line("an answer that cannot be passed on");
    assert!(line.contains("it begins like SSH"), "{line}");
}

#[test]
fn only_a_server_that_cannot_be_reached_is_called_unreachable() {
    let closed = ClosedPort::reserve();
    let (message, process) = refused(&closed.url());
    assert_eq!(message, "The service behind this gateway could not be reached");
    assert!(process.out_line("req_").contains("upstream_unreachable"));

    let silent = Upstream::with(|_| Reply::BytesThenClose(Vec::new()));
    let (message, process) = refused(&silent.url());
    assert_eq!(message, "The service behind this gateway broke off before it answered");
    assert!(process.out_line("req_").contains("upstream_broke_off"));
}

#[test]
fn an_answer_that_breaks_off_in_the_middle_leaves_a_line_that_says_why() {
    for (body, expected) in [
        ("5\r\nhello\r\nzz\r\n", "Invalid chunk size line"),
        ("5\r\nhello\r\n", "unexpected EOF during chunk size line"),
    ] {
        let answer = format!("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n{body}");
        let upstream = Upstream::with(move |_| Reply::BytesThenClose(answer.clone().into_bytes()));
        let (process, address, key, _folder) = serve(&upstream.url());
        let mut wire = crate::harness::Wire::connect(address);
        wire.send(&Call::get("/things").key(&key).to_bytes());
        assert_eq!(wire.head().unwrap().status, 200);
        let line = process.err_line("broke off in the middle of an answer");
        assert!(line.contains(expected), "{line}");
    }
}
