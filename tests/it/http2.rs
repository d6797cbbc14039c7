//! HTTP/2 with clients: concurrent streams, limits, abuse and drain; and the HTTP/1.1 requests to upstreams that
//! result.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, channel};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Request};
use http_body_util::Full;
use hyper::body::{Body, Frame as BodyFrame};
use hyper::client::conn::http2::SendRequest;

use crate::harness::http2::{
    DATA, END_HEADERS, Frames, GOAWAY, HEADERS, PING, RESET, SETTINGS, WINDOW_UPDATE, block, connect, frame,
    get, read, runtime,
};
use crate::harness::{
    Answer, Call, Gateway, Manual, PATIENCE, Reply, TestKey, Transport, Upstream, eventually,
};

const SERVER: &str = "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\n";

fn start(live: &Upstream, settings: &str) -> Gateway {
    let test = Upstream::start("test");
    Gateway::builder()
        .transport(Transport::Http2)
        .settings(&format!("{SERVER}{settings}"))
        .api(live, &test)
        .start()
}

fn request(target: &str, key: &TestKey) -> Request<Full<Bytes>> {
    Request::get(format!("http://api.example.com{target}"))
        .header("authorization", format!("Bearer {}", key.secret))
        .body(Full::default())
        .unwrap()
}

/// Sends concurrent requests on one connection; returns the answers in the same order.
fn at_once(gateway: &Gateway, requests: Vec<Request<Full<Bytes>>>) -> Vec<Answer> {
    runtime().block_on(async {
        let sender: SendRequest<Full<Bytes>> = connect(gateway.address(), gateway.transport()).await;
        let answers: Vec<_> = requests
            .into_iter()
            .map(|request| {
                let mut sender = sender.clone();
                tokio::spawn(async move { read(sender.send_request(request).await.unwrap()).await })
            })
            .collect();
        let mut all = Vec::new();
        for answer in answers {
            all.push(tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap());
        }
        all
    })
}

#[test]
fn streams_of_one_connection_keep_their_identities_and_environments_apart() {
    // Each answer contains the identity at the upstream, and is sent after all requests have arrived.
    let echo = |name: &'static str| {
        Upstream::with(move |seen| {
            std::thread::sleep(Duration::from_millis(20));
            Reply::ok(&format!("{name} {} {}", seen.value("x-key-id"), seen.value("x-mine")))
        })
    };
    let (live, test) = (echo("live"), echo("test"));
    let gateway = Gateway::builder().transport(Transport::Http2).api(&live, &test).start();
    let keys = [gateway.live_key(), gateway.test_key(), gateway.live_key()];
    let requests = (0..60)
        .map(|n| {
            let mut request = request("/v1/jobs", &keys[n % 3]);
            request.headers_mut().insert("x-mine", HeaderValue::from(n));
            request
        })
        .collect();
    for (n, answer) in at_once(&gateway, requests).into_iter().enumerate() {
        let environment = if n % 3 == 1 { "test" } else { "live" };
        assert_eq!(answer.text(), format!("{environment} {} {n}", keys[n % 3].id()));
    }
}

#[test]
fn refusals_carry_the_envelope() {
    let live = Upstream::start("live");
    let gateway = start(&live, "");
    let (key, read_only) = (gateway.live_key(), gateway.key_with(&["jobs:read"]));
    let ids: Vec<String> = [
        (Call::get("/v1/jobs"), 401, "authentication_error"),
        (Call::post("/v1/jobs", "{}").key(&read_only.secret), 403, "authorization_error"),
        (Call::get("/v1/nothing").key(&key.secret), 404, "not_found"),
        (Call::get("/v1/../jobs").key(&key.secret), 400, "validation_error"),
        (Call::get("/v1/jobs").key(&key.secret).field("expect", "something"), 400, "validation_error"),
        (Call::get(&format!("/v1/jobs?{}", "a".repeat(9000))).key(&key.secret), 414, "validation_error"),
    ]
    .into_iter()
    .map(|(call, status, error_type)| {
        let answer = gateway.fetch(&call);
        assert_eq!(answer.status_line, format!("HTTP/2 {status}"));
        answer.refusal(status, error_type);
        answer.field("x-request-id").unwrap().to_owned()
    })
    .collect();
    assert!(ids.iter().all(|id| ids.iter().filter(|other| *other == id).count() == 1), "{ids:?}");
    let many =
        (0..101).fold(Call::get("/v1/jobs").key(&key.secret), |call, n| call.field(&format!("x-{n}"), ""));
    gateway.fetch(&many).refusal(431, "validation_error");
    assert_eq!(live.connections(), 0);
}

#[test]
fn the_upstream_receives_http_1_1() {
    let live = Upstream::start("live");
    let gateway = start(&live, "");
    let key = gateway.live_key();
    let call = Call::get("/v1/jobs?a=b")
        .key(&key.secret)
        .field("cookie", "a=1")
        .field("cookie", "b=2")
        .field("x-org-id", "forged");
    assert_eq!(gateway.fetch(&call).text(), "live");
    let seen = live.only();
    assert_eq!(seen.request_line(), "GET /v1/jobs?a=b HTTP/1.1");
    assert_eq!(seen.value("host"), "api.example.com");
    assert_eq!(seen.value("cookie"), "a=1; b=2");
    assert_eq!(seen.value("x-org-id"), gateway.org.to_string());
    assert_eq!(seen.value("x-forwarded-proto"), "http");
    assert!(
        seen.names().iter().all(|name| !name.starts_with(':') && name != "te" && name != "authorization")
    );
}

#[test]
fn the_host_field_must_agree_with_the_authority() {
    let live = Upstream::start("live");
    let gateway = start(&live, "");
    let key = gateway.live_key();
    let with_host = |host: &str| {
        let mut request = request("/v1/jobs", &key);
        request.headers_mut().insert("host", HeaderValue::from_str(host).unwrap());
        request
    };
    let answers = at_once(
        &gateway,
        vec![with_host("api.example.com"), with_host("API.example.com"), with_host("other.example.com")],
    );
    assert_eq!(answers.iter().map(|answer| answer.status).collect::<Vec<_>>(), [200, 200, 400]);
}

#[test]
fn a_body_of_unknown_length_is_forwarded_in_chunks_without_trailers() {
    let live = Upstream::start("live");
    let gateway = start(&live, "");
    let key = gateway.live_key();
    let answer = runtime().block_on(async {
        let mut trailers = http::HeaderMap::new();
        trailers.insert("x-org-id", HeaderValue::from_static("forged"));
        let body = Pieces(
            [
                BodyFrame::data(Bytes::from_static(b"one ")),
                BodyFrame::data(Bytes::from_static(b"two")),
                BodyFrame::trailers(trailers),
            ]
            .into(),
        );
        let mut sender = connect(gateway.address(), Transport::Http2).await;
        let request = Request::post("http://api.example.com/v1/jobs")
            .header("authorization", format!("Bearer {}", key.secret))
            .header("te", "trailers")
            .body(body)
            .unwrap();
        read(sender.send_request(request).await.unwrap()).await
    });
    assert_eq!(answer.status, 200);
    let seen = live.only();
    assert_eq!((seen.value("transfer-encoding"), seen.body.as_slice()), ("chunked", &b"one two"[..]));
    assert!(
        seen.raw_body.ends_with(b"0\r\n\r\n"),
        "no trailers: {:?}",
        String::from_utf8_lossy(&seen.raw_body)
    );
    assert!(seen.values("trailer").is_empty());
}

#[test]
fn head_and_expectations_are_answered() {
    let live = Upstream::with(|seen| {
        Reply::raw(match seen.request_line().split(' ').next() {
            Some("HEAD") => "HTTP/1.1 200 OK\r\ncontent-length: 12345\r\n\r\n",
            _ => "HTTP/1.1 201 Created\r\ncontent-length: 2\r\n\r\nok",
        })
    });
    let gateway = start(&live, "");
    let key = gateway.live_key();
    let head = gateway.fetch(&Call::new("HEAD", "/v1/jobs").key(&key.secret));
    assert_eq!((head.status, head.field("content-length"), head.body.len()), (200, Some("12345"), 0));
    let expecting = Call::post("/v1/jobs", "body").key(&key.secret).field("expect", "100-continue");
    assert_eq!(gateway.fetch(&expecting).text(), "ok");
    let seen = live.seen().pop().unwrap();
    assert!(seen.values("expect").is_empty() && seen.body == b"body");
}

#[test]
fn tens_of_megabytes_pass_both_ways_at_the_pace_of_the_slower_side() {
    const SIZE: usize = 24 << 20;
    let live = Upstream::with(|seen| {
        let mut answer =
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", seen.body.len()).into_bytes();
        answer.extend_from_slice(&seen.body);
        Reply::Bytes(answer)
    });
    let body: Vec<u8> = (0..SIZE as u32 / 4).flat_map(u32::to_le_bytes).collect();
    for transport in [Transport::Http2, Transport::TlsHttp2] {
        let test = Upstream::start("test");
        let gateway = Gateway::builder().transport(transport).api(&live, &test).start();
        let key = gateway.live_key();
        let answer = gateway.fetch(&Call::post("/v1/jobs", body.clone()).key(&key.secret));
        assert!(answer.complete && answer.body == body, "{transport:?}: {} bytes", answer.body.len());
    }
}

#[test]
fn an_answer_that_breaks_off_is_never_shown_as_whole() {
    let live = Upstream::with(|_| {
        Reply::BytesThenClose(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\npart".to_vec())
    });
    let gateway = start(&live, "");
    let key = gateway.live_key();
    let answer = gateway.fetch(&Call::get("/v1/jobs").key(&key.secret));
    assert_eq!((answer.status, answer.complete, answer.text().as_str()), (200, false, "part"));
}

#[test]
fn the_limits_are_announced_and_a_stream_beyond_them_is_refused() {
    let (release, held) = channel::<()>();
    let live = holding(held);
    let gateway = start(&live, "");
    let key = gateway.live_key();
    let mut frames = Frames::connect(&gateway, &[]);
    let settings = frames.until(SETTINGS).unwrap();
    let announced: Vec<(u16, u32)> = settings
        .payload
        .chunks(6)
        .map(|s| (u16::from_be_bytes([s[0], s[1]]), u32::from_be_bytes([s[2], s[3], s[4], s[5]])))
        .collect();
    for expected in [(3, 100), (4, 256 << 10), (6, 64 << 10)] {
        assert!(announced.contains(&expected), "{announced:?}");
    }
    // The settings were acknowledged, so the limit holds: the 101st stream is refused, the others are served.
    for n in 0..101 {
        frames.get(2 * n + 1, "/v1/jobs", &key.secret);
    }
    let refused = frames.until(RESET).unwrap();
    assert_eq!((refused.stream, refused.payload), (201, 7_u32.to_be_bytes().to_vec()), "REFUSED_STREAM");
    drop(release);
    let mut answered = 0;
    while answered < 100 {
        answered += usize::from(frames.until(HEADERS).unwrap().stream < 201);
    }
}

/// Answers nothing until the sender is gone.
fn holding(held: Receiver<()>) -> Upstream {
    let held = std::sync::Mutex::new(held);
    Upstream::with(move |_| {
        let _ = held.lock().unwrap().recv();
        Reply::ok("live")
    })
}

/// The request with this number of fields more, of this size each.
fn laden(target: &str, key: &TestKey, fields: usize, size: usize) -> Request<Full<Bytes>> {
    let mut laden = request(target, key);
    for n in 0..fields {
        let name = http::HeaderName::try_from(format!("x-large-{n}")).unwrap();
        laden.headers_mut().insert(name, HeaderValue::try_from("v".repeat(size)).unwrap());
    }
    laden
}

#[test]
fn the_size_of_a_head_has_the_same_limit_as_on_http_1_1() {
    let live = Upstream::start("live");
    let gateway = start(&live, "");
    let key = gateway.live_key();
    let allowed = [laden("/v1/jobs", &key, 20, 1000), laden("/v1/jobs", &key, 32, 1000)];
    for answer in at_once(&gateway, allowed.into()) {
        assert_eq!(answer.text(), "live");
    }
    let refused = [
        laden("/v1/jobs", &key, 33, 1000),
        laden("/v1/jobs", &key, 1, 60_000),
        laden("/v1/jobs", &key, 100, 1),
        laden("/v1/jobs", &key, 1000, 1),
    ];
    for answer in at_once(&gateway, refused.into()) {
        answer.refusal(431, "validation_error");
    }
}

#[test]
fn a_limit_above_the_usual_holds_on_http_2_too() {
    let live = Upstream::start("live");
    let gateway = start(&live, "[limits]\nhead = \"128KiB\"\nfields = 1000");
    let key = gateway.live_key();
    let requests = [laden("/v1/jobs", &key, 900, 130), laden("/v1/jobs", &key, 132, 1000)];
    let answers = at_once(&gateway, requests.into());
    assert_eq!(answers[0].text(), "live");
    answers[1].refusal(431, "validation_error");
}

#[test]
fn a_header_list_beyond_what_is_read_is_refused_and_the_connection_goes_on() {
    let live = Upstream::start("live");
    let gateway = start(&live, "");
    let key = gateway.live_key();
    let requests = [laden("/v1/jobs", &key, 70, 1000), request("/v1/jobs", &key)];
    let answers = at_once(&gateway, requests.into());
    assert_eq!([answers[0].status, answers[1].status], [431, 200]);
    assert_eq!(live.only().values("x-large-0").len(), 0);
}

/// Opens and resets streams until the connection is cut; returns their number. `seen_first`: the gateway has
/// begun to serve each of them.
fn resets_until_cut(gateway: &Gateway, key: &str, seen_first: bool) -> u32 {
    let mut frames = Frames::connect(gateway, &[]);
    for n in 0..2000 {
        let stream = 2 * n + 1;
        let (open, reset) = (get(stream, "/v1/jobs", key), frame(RESET, 0, stream, &8_u32.to_be_bytes()));
        let goes_on = if seen_first {
            frames.try_send(&open).is_ok() && answers_ping(&mut frames) && frames.try_send(&reset).is_ok()
        } else {
            // Only a few ahead of the gateway; otherwise the test would measure socket buffers.
            frames.try_send(&[open, reset].concat()).is_ok() && (n % 10 < 9 || answers_ping(&mut frames))
        };
        if !goes_on {
            return n;
        }
    }
    panic!("2000 streams were opened and reset on one connection");
}

/// An answer to a ping shows that all earlier frames were read.
fn answers_ping(frames: &mut Frames) -> bool {
    frames.send(PING, 0, 0, &[0; 8]);
    loop {
        match frames.next() {
            Some(frame) if frame.kind == PING && frame.flags == 1 => return true,
            Some(frame) if frame.kind != GOAWAY => {}
            _ => return false,
        }
    }
}

#[test]
fn a_client_that_opens_and_resets_streams_in_a_loop_is_cut_and_the_others_are_served() {
    let (_release, held) = channel::<()>();
    let live = holding(held);
    let gateway = start(&live, "");
    let key = gateway.live_key();
    for seen_first in [false, true] {
        let opened = resets_until_cut(&gateway, &key.secret, seen_first);
        println!("seen first: {seen_first}; cut after {opened} streams");
        assert!(opened < 300, "{opened}");
        assert!(!seen_first || opened > 100, "some are allowed: {opened}");
    }
    gateway.fetch(&Call::get("/v1/nothing").key(&key.secret)).refusal(404, "not_found");
}

#[test]
fn a_client_that_reads_answers_may_cancel_some_requests() {
    let live = Upstream::with(|seen| {
        if seen.request_line().contains("slow") {
            std::thread::sleep(Duration::from_millis(20));
        }
        Reply::ok("live")
    });
    let gateway = start(&live, "");
    let key = gateway.live_key();
    let mut frames = Frames::connect(&gateway, &[]);
    for n in 0..300 {
        frames.get(4 * n + 1, "/v1/jobs", &key.secret);
        frames.get(4 * n + 3, "/v1/jobs?slow", &key.secret);
        while frames.until(DATA).unwrap().stream != 4 * n + 1 {}
        frames.send(RESET, 0, 4 * n + 3, &8_u32.to_be_bytes());
    }
}

#[test]
fn a_stream_whose_client_gives_no_window_is_cut_and_the_connection_is_not() {
    let large = "x".repeat(1 << 20);
    let live = Upstream::with(move |_| Reply::ok(&large));
    let gateway = start(&live, "write_timeout = \"2s\"\nidle_timeout = \"20s\"");
    let key = gateway.live_key();
    // SETTINGS_INITIAL_WINDOW_SIZE 0.
    let mut frames = Frames::connect(&gateway, &[(4, 0)]);
    let begun = Instant::now();
    for n in 0..20 {
        frames.get(2 * n + 1, "/v1/jobs", &key.secret);
    }
    for _ in 0..20 {
        let reset = frames.until(RESET).unwrap();
        assert_eq!(reset.payload, 8_u32.to_be_bytes(), "CANCEL");
    }
    assert!(begun.elapsed() >= Duration::from_secs(2));
    // A stream with a window is served on the same connection; one that is slow but alive is not cut.
    frames.get(101, "/v1/jobs", &key.secret);
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(100));
        for stream in [0, 101] {
            frames.send(WINDOW_UPDATE, 0, stream, &20_000_u32.to_be_bytes());
        }
        let mut received = 0;
        while received < 20_000 {
            received += frames.until(DATA).expect("a slow client is served").payload.len();
        }
    }
}

#[test]
fn a_client_that_gives_every_window_and_reads_nothing_is_cut() {
    let large = "x".repeat(64 << 20);
    let live = Upstream::with(move |_| Reply::ok(&large));
    let gateway = start(&live, "write_timeout = \"400ms\"");
    let key = gateway.live_key();
    let mut frames = Frames::connect(&gateway, &[(4, (1 << 31) - 1)]);
    frames.send(WINDOW_UPDATE, 0, 0, &(1_u32 << 30).to_be_bytes());
    let begun = Instant::now();
    frames.get(1, "/v1/jobs", &key.secret);
    let ping = frame(PING, 0, 0, &[0; 8]);
    eventually("the connection is cut", || {
        std::thread::sleep(Duration::from_millis(20));
        frames.try_send(&ping).is_err()
    });
    assert!(begun.elapsed() >= Duration::from_millis(400));
}

#[test]
fn an_idle_client_gets_a_goaway_before_the_connection_ends() {
    let live = Upstream::start("live");
    let gateway = start(&live, "idle_timeout = \"300ms\"\nhead_timeout = \"300ms\"");
    let key = gateway.live_key();
    let mut frames = Frames::connect(&gateway, &[]);
    frames.get(1, "/v1/jobs", &key.secret);
    frames.until(DATA).unwrap();
    let begun = Instant::now();
    // Pings are not requests.
    frames.send(PING, 0, 0, &[1; 8]);
    assert_eq!(frames.until(GOAWAY).unwrap().payload[4..8], [0; 4], "NO_ERROR");
    assert!(begun.elapsed() >= Duration::from_millis(250));
    while frames.next().is_some() {}
}

#[test]
fn a_client_that_begins_the_preface_and_stops_is_closed() {
    let live = Upstream::start("live");
    let gateway = start(&live, "head_timeout = \"300ms\"");
    let mut wire = gateway.connect();
    wire.send(b"PRI * HTTP/2.0\r\n\r\nSM");
    assert!(wire.is_closed());
}

#[test]
fn http_1_1_and_http_2_share_a_port_however_the_first_bytes_are_cut() {
    let live = Upstream::start("live");
    let gateway = start(&live, "");
    let key = gateway.live_key();
    let mut wire = gateway.connect();
    for byte in format!(
        "POST /v1/jobs HTTP/1.1\r\nhost: h\r\nauthorization: Bearer {}\r\ncontent-length: 2\r\n\r\nhi",
        key.secret
    )
    .bytes()
    {
        wire.send(&[byte]);
    }
    assert_eq!(wire.answer().unwrap().text(), "live");
    assert_eq!(live.only().body, b"hi");
    let mut split = gateway.connect();
    for byte in b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" {
        split.send(&[*byte]);
    }
    split.send(&frame(SETTINGS, 0, 0, &[]));
    assert_eq!(split.bytes(9).unwrap()[3], SETTINGS);
}

#[test]
fn a_drain_sends_a_goaway_and_lets_streams_finish() {
    let (release, held) = channel::<()>();
    let live = holding(held);
    let gateway = start(&live, "");
    let key = gateway.live_key();
    let mut frames = Frames::connect(&gateway, &[]);
    let mut idle = Frames::connect(&gateway, &[]);
    idle.until(SETTINGS).unwrap();
    frames.get(1, "/v1/jobs", &key.secret);
    eventually("the upstream has the request", || !live.seen().is_empty());
    let draining = std::thread::spawn(move || gateway.drain(PATIENCE));
    assert_eq!(frames.until(GOAWAY).unwrap().payload[4..8], [0; 4], "NO_ERROR");
    while idle.next().is_some() {}
    assert!(!draining.is_finished(), "a stream is under way");
    drop(release);
    assert_eq!(frames.until(DATA).unwrap().payload, b"live");
    while frames.next().is_some() {}
    draining.join().unwrap();
}

#[test]
fn a_cancelled_stream_ends_its_upstream_request_and_no_other() {
    let (release, held) = channel::<()>();
    let live = holding(held);
    let gateway = start(&live, "");
    let key = gateway.live_key();
    let mut frames = Frames::connect(&gateway, &[]);
    frames.get(1, "/v1/jobs", &key.secret);
    frames.get(3, "/v1/jobs", &key.secret);
    eventually("one request is with the upstream", || live.connections() == 2);
    frames.send(RESET, 0, 1, &8_u32.to_be_bytes());
    drop(release);
    let answer = frames.until(HEADERS).unwrap();
    assert_eq!(answer.stream, 3);
    assert_eq!(frames.until(DATA).unwrap().payload, b"live");
}

#[test]
fn a_body_that_is_broken_off_by_a_reset_is_never_shown_as_whole() {
    let live = Manual::start();
    let gateway = Gateway::builder()
        .transport(Transport::Http2)
        .settings(SERVER)
        .upstream("api", &live.url(), "http://127.0.0.1:9")
        .start();
    let key = gateway.live_key();
    // NO_ERROR, PROTOCOL_ERROR, CANCEL.
    for code in [0_u32, 1, 8] {
        let mut frames = Frames::connect(&gateway, &[]);
        let head = block("/v1/jobs", &[("authorization", &format!("Bearer {}", key.secret))]);
        frames.send(HEADERS, END_HEADERS, 1, &head);
        frames.send(DATA, 0, 1, b"half of it");
        let mut served = live.accept();
        served.request_head().unwrap();
        assert_eq!(served.chunk().unwrap(), b"half of it");
        frames.send(RESET, 0, 1, &code.to_be_bytes());
        assert_eq!(String::from_utf8_lossy(&served.rest()), "", "the body's end must not come for {code}");
    }
}

/// A body without a known length.
struct Pieces(VecDeque<BodyFrame<Bytes>>);

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<BodyFrame<Bytes>, Infallible>>> {
        Poll::Ready(self.0.pop_front().map(Ok))
    }
}
