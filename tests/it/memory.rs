//! Bodies are streamed: a gigabyte in each direction needs little memory.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::harness::{Call, Manual, PATIENCE, Process, Tuned, Wire, create_key, fetch};

const GIB: usize = 1 << 30;
const AT_MOST: u64 = 16 << 20;
const PART: usize = 1 << 20;

/// Reads uploads to their end, and answers downloads with a gigabyte.
fn start_upstream() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming() {
            thread::spawn(move || serve(&mut stream.unwrap()));
        }
    });
    url
}

fn serve(stream: &mut TcpStream) {
    let mut buffer = vec![0; PART];
    let mut filled = 0;
    let end = loop {
        match stream.read(&mut buffer[filled..]).unwrap() {
            0 => return,
            n => filled += n,
        }
        if let Some(at) = buffer[..filled].windows(4).position(|window| window == b"\r\n\r\n") {
            break at + 4;
        }
    };
    let head = String::from_utf8(buffer[..end].to_vec()).unwrap();
    let length: usize =
        head.lines().find_map(|line| line.strip_prefix("content-length: ")).map_or(0, |n| n.parse().unwrap());
    let came = filled - end + read_to(stream, length - (filled - end));
    if head.starts_with("GET /things/gigabyte") {
        stream
            .write_all(
                format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {GIB}\r\n\r\n").as_bytes(),
            )
            .unwrap();
        buffer.fill(b'x');
        for _ in 0..GIB / PART {
            stream.write_all(&buffer).unwrap();
        }
    } else {
        let body = came.to_string();
        let head = format!("HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-length: {}\r\n\r\n", body.len());
        stream.write_all((head + &body).as_bytes()).unwrap();
    }
}

/// Reads this number of bytes, or up to the end.
fn read_to(stream: &mut TcpStream, length: usize) -> usize {
    let mut buffer = vec![0; PART];
    let mut came = 0;
    while came < length {
        match stream.read(&mut buffer[..PART.min(length - came)]).unwrap() {
            0 => break,
            n => came += n,
        }
    }
    came
}

/// A `keygate serve` in front of `upstream` that has served some requests, and the secret of a key.
fn warm(upstream: String) -> (TempDir, Process, SocketAddr, String) {
    let folder = TempDir::new().unwrap();
    Tuned::default().live(upstream).settings("[limits]\nbody = \"2GiB\"").builder().write(folder.path());
    let key = create_key(folder.path());
    let keygate = Process::serve(folder.path());
    let address = keygate.address();
    (folder, keygate, address, key)
}

#[test]
fn a_gigabyte_up_and_a_gigabyte_down_take_less_than_16_mib() {
    let (_folder, keygate, address, key) = warm(start_upstream());
    for call in [Call::get("/things"), Call::post("/things", vec![b'x'; PART])] {
        assert_eq!(fetch(address, &call.key(&key)).status, 200);
    }
    let before = keygate.memory("VmHWM:");

    let begun = Instant::now();
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let head =
        format!("POST /things HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\nconnection: close\r\n");
    client.write_all(format!("{head}content-length: {GIB}\r\n\r\n").as_bytes()).unwrap();
    let part = vec![b'x'; PART];
    for _ in 0..GIB / PART {
        client.write_all(&part).unwrap();
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert!(answer.ends_with(&format!("\r\n\r\n{GIB}")), "{answer}");
    let up = begun.elapsed();

    let begun = Instant::now();
    let mut client = TcpStream::connect(address).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let head = "GET /things/gigabyte HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
    client.write_all(format!("{head}authorization: Bearer {key}\r\n\r\n").as_bytes()).unwrap();
    let came = read_to(&mut client, usize::MAX);
    assert!((GIB..GIB + 1024).contains(&came), "{came} bytes, head included");
    let down = begun.elapsed();

    let peak = keygate.memory("VmHWM:");
    println!("up {up:?}, down {down:?}; at most {before} resident before, {peak} after");
    assert!(peak.saturating_sub(before) < AT_MOST, "from {before} to {peak} bytes");
}

#[test]
fn fifty_transfers_that_stand_still_take_little_memory() {
    // Data that a slow reader has not read stays at its sender and in the system's buffers.
    const TRANSFERS: u64 = 50;
    let upstream = Manual::start();
    let (_folder, keygate, address, key) = warm(upstream.url());
    let mut before = 0;
    let part = vec![b'x'; PART];
    let mut held = Vec::new();
    for n in 0..TRANSFERS + 10 {
        if n == 10 {
            // The first transfer has allocated the memory that all share.
            before = keygate.memory("VmHWM:");
        }
        let mut client = Wire::connect(address);
        let framing = if n % 2 == 0 { format!("content-length: {GIB}\r\n") } else { String::new() };
        let method = if n % 2 == 0 { "POST" } else { "GET" };
        client.send(
            format!("{method} /things HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\n{framing}\r\n")
                .as_bytes(),
        );
        let mut served = upstream.accept();
        served.request_head().unwrap();
        let sender = if n % 2 == 0 { &client } else { &served };
        if n % 2 == 1 {
            sender
                .stream()
                .write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {GIB}\r\n\r\n").as_bytes())
                .unwrap();
        }
        sender.stream().set_write_timeout(Some(Duration::from_millis(20))).unwrap();
        while sender.stream().write(&part).is_ok() {}
        held.push((client, served));
    }
    let peak = keygate.memory("VmHWM:");
    println!("{} bytes for each transfer that stands still", peak.saturating_sub(before) / TRANSFERS);
    assert!(peak.saturating_sub(before) < TRANSFERS * (640 << 10), "from {before} to {peak} bytes");
}
