//! The links of an upstream's interim answers (103, RFC 8297) reach clients over HTTP/2, before the answer.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

use bytes::Bytes;
use http_body_util::Full;

use crate::harness::client::Call;
use crate::harness::http2::{self, END_HEADERS, Frame, Frames, HEADERS};
use crate::harness::{Gateway, Manual, Process, Reply, Seen, Transport, Tuned, Upstream};

const HINT: &str =
    "HTTP/1.1 103 Early Hints\r\nserver: x\r\nlink: </a.css>; rel=preload\r\nset-cookie: a=b\r\n\r\n";
const FINE: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

fn in_front_of(url: impl Into<String>) -> (Gateway, String) {
    Tuned::default().live(url).start()
}

fn contains(frame: &Frame, text: &str) -> bool {
    frame.payload.windows(text.len()).any(|window| window == text.as_bytes())
}

#[test]
fn links_are_told_while_the_answer_is_waited_for_and_nothing_else_is() {
    let upstream = Manual::start();
    let (gateway, key) = in_front_of(upstream.url());
    let mut client = Frames::connect(&gateway, &[]);
    for stream in [1, 3] {
        client.get(stream, "/things", &key);
        let mut server = upstream.accept();
        server.request_head().unwrap();
        for _ in 0..2 {
            server.send(HINT.as_bytes());
            let told = client.until(HEADERS).unwrap();
            assert_eq!((told.stream, told.flags), (stream, END_HEADERS), "the stream goes on");
            assert!(contains(&told, "103") && contains(&told, "</a.css>; rel=preload"), "{told:?}");
            assert!(!contains(&told, "a=b"), "{told:?}");
        }
        server.send(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
        let answer = client.until(HEADERS).unwrap();
        assert_eq!(answer.stream, stream);
        assert!(!contains(&answer, "103"), "{answer:?}");
    }
}

/// Another implementation of HTTP/2 reads them.
#[test]
fn curl_is_told_links_before_the_answer() {
    let upstream = Manual::start();
    let (gateway, key) = in_front_of(upstream.url());
    let mut curl = Command::new("curl");
    curl.args(["-sv", "--http2-prior-knowledge", "--max-time", "60", "--noproxy", "*"]);
    curl.args([
        "-H",
        &format!("authorization: Bearer {key}"),
        &format!("http://{}/things", gateway.address()),
    ]);
    let curl = Process::start(curl);
    let mut server = upstream.accept();
    server.request_head().unwrap();
    server.send(HINT.as_bytes());
    curl.err_line("< HTTP/2 103");
    curl.err_line("< link: </a.css>; rel=preload");
    server.send(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\nconnection: close\r\n\r\nok\n");
    curl.err_line("< HTTP/2 200");
    curl.out_line("ok");
}

#[test]
fn hints_of_many_streams_disturb_no_answer_wherever_they_come() {
    const REQUESTS: usize = 64;
    let upstream = Upstream::with(|seen: &Seen| {
        let path = seen.request_line().split(' ').nth(1).unwrap().to_owned();
        Reply::Custom(Box::new(move |stream: &mut TcpStream| {
            stream.set_nodelay(true).unwrap();
            (0..3).for_each(|_| stream.write_all(HINT.as_bytes()).unwrap());
            let answer = format!(
                "HTTP/1.1 200 OK\r\nx-path: {path}\r\nconnection: close\r\ncontent-length: 2\r\n\r\nok"
            );
            let _ = stream.write_all(answer.as_bytes());
            let _ = stream.read(&mut [0; 1]);
        }))
    });
    let (gateway, key) = in_front_of(upstream.url());
    http2::runtime().block_on(async {
        let sender = http2::connect::<Full<Bytes>>(gateway.address(), Transport::Http2).await;
        let answers = (0..REQUESTS).map(|n| {
            let call = Call::get(&format!("/things/{n}")).key(&key);
            let answering =
                sender.clone().send_request(http2::request(Transport::Http2, &call).unwrap().map(Full::new));
            tokio::spawn(async move { http2::read(answering.await.unwrap()).await })
        });
        for (n, answer) in answers.collect::<Vec<_>>().into_iter().enumerate() {
            let answer = answer.await.unwrap();
            assert_eq!((answer.status, answer.text()), (200, "ok".to_owned()));
            assert_eq!(answer.field("x-path"), Some(format!("/things/{n}").as_str()));
        }
    });
}

#[test]
fn a_client_over_http1_gets_the_answer_alone() {
    let upstream = Manual::start();
    let (gateway, key) = in_front_of(upstream.url());
    let mut client = gateway.connect();
    client.send(&Call::get("/things").key(&key).to_bytes());
    let mut server = upstream.accept();
    server.request_head().unwrap();
    server.send(HINT.as_bytes());
    server.send(FINE.as_bytes());
    let answer = client.head().unwrap();
    assert_eq!((answer.status, answer.field("link")), (200, None));
}
