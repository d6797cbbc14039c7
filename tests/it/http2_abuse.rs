//! HTTP/2 clients that leave early: ordinary departures end no connection, however many share it; floods do, with a
//! GOAWAY that says why, a line in the log and a count.
//!
//! `KEYGATE_LONG=1 cargo test --test it http2_abuse:: -- --nocapture` sends 1,000 departures and not 300.

use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use tempfile::TempDir;

use crate::harness::http2::{
    CONTINUATION, DATA, Frame, Frames, GOAWAY, HEADERS, PING, RESET, SETTINGS, WINDOW_UPDATE, block, frame,
    get,
};
use crate::harness::metrics::{scrape, value};
use crate::harness::{
    Call, Gateway, PATIENCE, Process, Reply, Transport, Tuned, Upstream, create_key, eventually, is_long,
};

const CANCEL: [u8; 4] = 8_u32.to_be_bytes();
/// The error code of a GOAWAY, "the peer is exhibiting a behavior that might be generating excessive load" (RFC 9113,
/// section 7).
const ENHANCE_YOUR_CALM: u32 = 11;

const SETTINGS_TOML: &str = "[server]\nlisten = \"127.0.0.1:0\"\nworkers = 1\nwrite_timeout = \"1s\"\n\
                             [ops]\nlisten = \"127.0.0.1:0\"\n";

fn start(live: &Upstream) -> Gateway {
    let test = Upstream::start("test");
    Gateway::builder().transport(Transport::Http2).settings(SETTINGS_TOML).api(live, &test).start()
}

/// Answers nothing until the sender is gone.
fn holding(held: Receiver<()>) -> Upstream {
    let held = Mutex::new(held);
    Upstream::with(move |_| {
        let _ = held.lock().unwrap().recv();
        Reply::ok("live")
    })
}

/// Whether the gateway answers a ping, which shows that it has read all frames before it. Otherwise the last GOAWAY.
fn answers_ping(frames: &mut Frames) -> Result<(), Option<Frame>> {
    let mut last = None;
    if frames.try_send(&frame(PING, 0, 0, &[0; 8])).is_ok() {
        while let Some(frame) = frames.next() {
            match frame.kind {
                PING if frame.flags == 1 => return Ok(()),
                GOAWAY => last = Some(frame),
                _ => {}
            }
        }
    }
    Err(last)
}

fn error_code(goaway: &Frame) -> u32 {
    u32::from_be_bytes(goaway.payload[4..8].try_into().unwrap())
}

fn cuts(gateway: &Gateway, reason: &str) -> Option<f64> {
    let series = format!("keygate_connections_cut_total{{reason=\"{reason}\"}}");
    value(&scrape(gateway.ops_address()), &series)
}

#[test]
fn departures_from_event_streams_leave_the_others_on_the_connection_alone() {
    const STAY: u32 = 5;
    let leave = if is_long() { 1000 } else { 300 };
    let (say, words) = channel();
    let live = Upstream::of_events(words);
    let gateway = start(&live);
    let key = gateway.live_key().secret;
    let mut frames = Frames::connect(&gateway, &[]);
    for n in 0..STAY {
        frames.get(2 * n + 1, "/v1/jobs?stay", &key);
        while frames.until(DATA).unwrap().stream != 2 * n + 1 {}
    }
    for n in STAY..STAY + leave {
        let stream = 2 * n + 1;
        frames.get(stream, "/v1/jobs", &key);
        while frames.until(HEADERS).expect("the connection goes on").stream != stream {}
        frames.send(RESET, 0, stream, &CANCEL);
    }
    assert_eq!(answers_ping(&mut frames).map_err(|goaway| goaway.map(|goaway| error_code(&goaway))), Ok(()));
    for _ in 0..STAY {
        say.send("still here").unwrap();
    }
    let mut heard = Vec::new();
    while heard.len() < STAY as usize {
        let data = frames.until(DATA).expect("an event");
        if data.payload == b"still here" {
            heard.push(data.stream);
        }
    }
    heard.sort_unstable();
    assert_eq!(heard, [1, 3, 5, 7, 9]);
    assert_eq!(cuts(&gateway, "cancelled_requests"), Some(0.0));
}

#[test]
fn who_waits_for_an_answer_and_then_gives_up_is_no_abuser() {
    let (_release, held) = channel::<()>();
    let live = holding(held);
    let gateway = start(&live);
    let key = gateway.live_key().secret;
    let mut frames = Frames::connect(&gateway, &[]);
    for round in 0..3 {
        let streams = (100 * round..100 * (round + 1)).map(|n| 2 * n + 1);
        for stream in streams.clone() {
            frames.get(stream, "/v1/jobs", &key);
        }
        answers_ping(&mut frames).unwrap();
        // What is cancelled later than a second after its beginning is no abuse. There is no other sign of it.
        std::thread::sleep(Duration::from_millis(1100));
        for stream in streams {
            frames.send(RESET, 0, stream, &CANCEL);
        }
        answers_ping(&mut frames).unwrap_or_else(|_| panic!("cut in round {round}"));
    }
}

#[test]
fn who_cancels_what_it_has_just_begun_is_cut_with_a_goaway_a_log_line_and_a_count() {
    let (_release, held) = channel::<()>();
    let live = holding(held);
    let folder = TempDir::new().unwrap();
    let settings = Tuned::default().live(live.url()).settings("[ops]\nlisten = \"127.0.0.1:0\"");
    settings.builder().write(folder.path());
    let key = create_key(folder.path());
    let keygate = Process::serve(folder.path());
    let (address, ops) = (keygate.address(), keygate.ops_address());
    let mut frames = Frames::connect_to(address);
    let mut goaway = None;
    for n in 0..2000 {
        let open = frames.try_send(&get(2 * n + 1, "/things", &key)).is_ok();
        let outcome = if open { answers_ping(&mut frames) } else { Err(None) };
        if let Err(last) = outcome {
            goaway = last;
            break;
        }
        frames.try_send(&frame(RESET, 0, 2 * n + 1, &CANCEL)).unwrap();
    }
    assert_eq!(goaway.as_ref().map(error_code), Some(ENHANCE_YOUR_CALM), "{goaway:?}");
    let line = keygate.err_line("HTTP/2");
    assert!(line.contains("127.0.0.1") && line.contains("cancel"), "{line}");
    let series = "keygate_connections_cut_total{reason=\"cancelled_requests\"}";
    assert_eq!(value(&scrape(ops), series), Some(1.0));
}

#[test]
fn compressed_heads_of_thousands_of_fields_are_not_kept_in_memory() {
    // The HTTP/2 bomb, CVE-2026-49975: a byte on the wire is a field in memory.
    const CONNECTIONS: usize = 30;
    let live = Upstream::start("live");
    let folder = TempDir::new().unwrap();
    Tuned::default().live(live.url()).builder().write(folder.path());
    let keygate = Process::serve(folder.path());
    let address = keygate.address();
    // The first stream puts the field into the table of HPACK; the others name it, one byte for each (RFC 7541, section 6.1).
    let insert = [&block("/things", &[])[..], &[0x40, 1, b'x', 0]].concat();
    let many = [&block("/things", &[])[..], &[0xbe; 1800]].concat();
    let mut connections: Vec<Frames> = (0..CONNECTIONS)
        .map(|_| {
            let mut frames = Frames::connect_to(address);
            frames.send(HEADERS, 5, 1, &insert);
            while frames.until(DATA).unwrap().stream != 1 {}
            frames
        })
        .collect();
    let before = keygate.memory("VmHWM:");
    // So all of it comes at once.
    keygate.signal(Signal::STOP);
    for frames in &mut connections {
        let streams: Vec<u8> = (1..100).flat_map(|n| frame(HEADERS, 5, 2 * n + 1, &many)).collect();
        frames.try_send(&streams).unwrap();
    }
    keygate.signal(Signal::CONT);
    for frames in &mut connections {
        for _ in 1..100 {
            frames.until(DATA).expect("a refusal");
        }
    }
    let grown = keygate.memory("VmHWM:").saturating_sub(before);
    println!("{} heads of 1,800 fields: {} MiB", 99 * CONNECTIONS, grown >> 20);
    assert!(grown < 256 << 20, "{grown} bytes");
}

/// Sends until the gateway has ended the connection; returns its last GOAWAY.
fn flood(frames: &mut Frames, mut next: impl FnMut(u32) -> Vec<u8>) -> Option<Frame> {
    for n in 0..20_000 {
        // Read what it says from time to time, so that it can go on.
        let looks = frames.try_send(&next(n)).is_err() || n % 50 == 49;
        if looks && let Err(goaway) = answers_ping(frames) {
            return goaway;
        }
    }
    panic!("20,000 times, and the connection goes on");
}

#[test]
fn whoever_makes_keygate_reset_streams_in_a_loop_is_cut() {
    // `MadeYouReset`, CVE-2025-8671: a window of more than 2^31 - 1 is an error of its stream.
    let (_release, held) = channel::<()>();
    let live = holding(held);
    let gateway = start(&live);
    let key = gateway.live_key().secret;
    let mut frames = Frames::connect(&gateway, &[]);
    let goaway = flood(&mut frames, |n| {
        let stream = 2 * n + 1;
        [get(stream, "/v1/jobs", &key), frame(WINDOW_UPDATE, 0, stream, &0x7fff_ffff_u32.to_be_bytes())]
            .concat()
    });
    assert_eq!(goaway.as_ref().map(error_code), Some(ENHANCE_YOUR_CALM), "{goaway:?}");
    let seen = live.seen().len();
    assert!(seen < 1000, "{seen} requests reached the upstream");
}

#[test]
fn malformed_requests_in_a_loop_end_the_connection_and_some_do_not() {
    let live = Upstream::start("live");
    let gateway = start(&live);
    let key = gateway.live_key().secret;
    let malformed = |n: u32| frame(HEADERS, 5, 2 * n + 1, &block("/v1/jobs", &[("connection", "close")]));
    let mut frames = Frames::connect(&gateway, &[]);
    for n in 0..900 {
        frames.send(HEADERS, 5, 2 * n + 1, &malformed(n)[9..]);
        assert_eq!(frames.until(RESET).unwrap().stream, 2 * n + 1);
    }
    frames.get(2 * 900 + 1, "/v1/jobs", &key);
    while frames.until(DATA).unwrap().stream != 2 * 900 + 1 {}
    let goaway = flood(&mut Frames::connect(&gateway, &[]), malformed);
    assert_eq!(goaway.as_ref().map(error_code), Some(ENHANCE_YOUR_CALM), "{goaway:?}");
    eventually("it is counted", || cuts(&gateway, "streams_reset") == Some(1.0));
}

#[test]
fn a_head_that_never_ends_ends_the_connection() {
    // CVE-2024-27316.
    let live = Upstream::start("live");
    let gateway = start(&live);
    let mut frames = Frames::connect(&gateway, &[]);
    frames.send(HEADERS, 1, 1, &block("/v1/jobs", &[]));
    let field = [&[0, 1, b'x', 100][..], &[b'v'; 100]].concat();
    let part = frame(CONTINUATION, 0, 1, &field.repeat(100));
    let begun = Instant::now();
    let mut sent = 0;
    while frames.try_send(&part).is_ok() {
        sent += part.len();
        assert!(sent < 64 << 20 && begun.elapsed() < PATIENCE, "{sent} bytes of one head");
        std::thread::yield_now();
    }
    eventually("it is counted", || cuts(&gateway, "flood") == Some(1.0));
    gateway.fetch(&Call::get("/v1/nothing")).refusal(401, "authentication_error");
}

#[test]
fn a_flood_whose_acknowledgements_nobody_reads_is_cut_and_others_are_served() {
    // CVE-2019-9512 (pings) and CVE-2019-9515 (settings). No older keygate fails here: the h2 library writes each
    // acknowledgement before it reads the next frame, so it keeps one in memory, and `write_timeout` ends the connection.
    let live = Upstream::start("live");
    let gateway = start(&live);
    let key = gateway.live_key().secret;
    for part in [frame(SETTINGS, 0, 0, &[]), frame(PING, 0, 0, &[0; 8])] {
        let mut frames = Frames::connect(&gateway, &[]);
        let many = part.repeat(10_000);
        std::thread::scope(|scope| {
            let flood = scope.spawn(|| {
                let begun = Instant::now();
                while frames.try_send(&many).is_ok() && begun.elapsed() < PATIENCE {}
                begun.elapsed()
            });
            for _ in 0..20 {
                assert_eq!(gateway.fetch(&Call::get("/v1/jobs").key(&key)).text(), "live");
            }
            assert!(flood.join().unwrap() < PATIENCE, "the flood goes on");
        });
    }
}
