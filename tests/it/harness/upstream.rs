//! An upstream that records every byte it receives.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex};
use std::thread;

/// One request as it was received.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// The number of its connection to the upstream, counted from 0.
    pub(crate) connection: usize,
    /// Request line and header fields, each line without its CRLF.
    pub(crate) head: Vec<String>,
    /// The body as framed on the wire: chunk sizes included.
    pub(crate) raw_body: Vec<u8>,
    /// The body itself.
    pub(crate) body: Vec<u8>,
    /// Whether the body is complete by its framing.
    pub(crate) complete: bool,
}

impl Seen {
    pub(crate) fn request_line(&self) -> &str {
        &self.head[0]
    }

    /// All values of a field, by its name in lower case.
    pub(crate) fn values(&self, name: &str) -> Vec<&str> {
        self.head[1..]
            .iter()
            .filter_map(|line| line.split_once(": "))
            .filter(|(field, _)| field.eq_ignore_ascii_case(name))
            .map(|(_, value)| value)
            .collect()
    }

    /// The value of a field that must occur exactly once.
    #[track_caller]
    pub(crate) fn value(&self, name: &str) -> &str {
        let values = self.values(name);
        assert_eq!(values.len(), 1, "{name} in {:#?}", self.head);
        values[0]
    }

    pub(crate) fn names(&self) -> Vec<String> {
        self.head[1..]
            .iter()
            .filter_map(|line| line.split_once(':'))
            .map(|(name, _)| name.to_lowercase())
            .collect()
    }
}

/// The behaviour of an upstream for a request.
pub(crate) enum Reply {
    /// Writes these bytes and waits for the next request.
    Bytes(Vec<u8>),
    /// Writes these bytes and closes.
    BytesThenClose(Vec<u8>),
    /// Runs this function with the connection, then closes it.
    Custom(Box<dyn FnOnce(&mut TcpStream) + Send>),
}

impl Reply {
    pub(crate) fn ok(body: &str) -> Self {
        Self::Bytes(
            format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            )
            .into_bytes(),
        )
    }

    /// An event stream with one event, which goes on until the client leaves.
    pub(crate) fn events() -> Self {
        Self::Custom(Box::new(|stream| {
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
            let _ = stream.write_all(format!("{head}b\r\ndata: one\n\n\r\n").as_bytes());
            let _ = stream.read(&mut [0; 1]);
        }))
    }

    pub(crate) fn raw(bytes: &str) -> Self {
        Self::Bytes(bytes.as_bytes().to_vec())
    }
}

type Behaviour = dyn Fn(&Seen) -> Reply + Send + Sync;

pub(crate) struct Upstream {
    address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    connections: Arc<AtomicUsize>,
}

impl Upstream {
    /// Answers every request with 200 and its own name as the body.
    pub(crate) fn start(name: &'static str) -> Self {
        Self::with(move |_| Reply::ok(name))
    }

    /// Answers by `behaviour` after a complete request (or after its body was interrupted).
    pub(crate) fn with(behaviour: impl Fn(&Seen) -> Reply + Send + Sync + 'static) -> Self {
        Self::at(([127, 0, 0, 1], 0).into(), behaviour)
    }

    /// The same at this address.
    pub(crate) fn at(
        address: SocketAddr,
        behaviour: impl Fn(&Seen) -> Reply + Send + Sync + 'static,
    ) -> Self {
        let behaviour: Arc<Behaviour> = Arc::new(behaviour);
        let listener = TcpListener::bind(address).unwrap();
        // Hundreds may come in one moment. The 128 that the standard library lets wait would have the rest try again after
        // a second, and some be reset.
        rustix::net::listen(&listener, 4096).unwrap();
        let address = listener.local_addr().unwrap();
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let connections = Arc::new(AtomicUsize::new(0));
        let (all_seen, counted) = (Arc::clone(&seen), Arc::clone(&connections));
        thread::spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let number = counted.fetch_add(1, Ordering::SeqCst);
                let (behaviour, seen) = (Arc::clone(&behaviour), Arc::clone(&all_seen));
                thread::spawn(move || serve_connection(stream, number, &*behaviour, &seen));
            }
        });
        Self { address, seen, connections }
    }

    /// Event streams that go on until the client leaves. Each begins with an event; for the targets with "stay" comes one
    /// more for each of the words.
    pub(crate) fn of_events(words: Receiver<&'static str>) -> Self {
        let words = Arc::new(Mutex::new(words));
        Self::with(move |seen| {
            let (stays, words) = (seen.request_line().contains("stay"), Arc::clone(&words));
            Reply::Custom(Box::new(move |stream: &mut TcpStream| {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
                stream.write_all(head.as_bytes()).unwrap();
                stream.write_all(b"7\r\n: here\n\r\n").unwrap();
                if stays {
                    let Ok(word) = words.lock().unwrap().recv() else { return };
                    let _ = stream.write_all(format!("{:x}\r\n{word}\r\n", word.len()).as_bytes());
                }
                // The client's departure ends it.
                let _ = stream.read(&mut [0; 1]);
            }))
        })
    }

    pub(crate) const fn address(&self) -> SocketAddr {
        self.address
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Every request so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    /// The only request so far.
    #[track_caller]
    pub(crate) fn only(&self) -> Seen {
        let mut seen = self.seen();
        assert_eq!(seen.len(), 1, "{seen:#?}");
        seen.remove(0)
    }

    pub(crate) fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }

    /// The number of connections that were opened to it.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }
}

fn serve_connection(mut stream: TcpStream, connection: usize, behaviour: &Behaviour, all: &Mutex<Vec<Seen>>) {
    let mut buffer = Vec::new();
    while let Some(mut seen) = read_head(&mut stream, &mut buffer, connection) {
        read_body(&mut stream, &mut buffer, &mut seen);
        all.lock().unwrap().push(seen.clone());
        if !seen.complete {
            return;
        }
        match behaviour(&seen) {
            Reply::Bytes(bytes) => {
                if stream.write_all(&bytes).is_err() {
                    return;
                }
            }
            Reply::BytesThenClose(bytes) => {
                let _ = stream.write_all(&bytes);
                return;
            }
            Reply::Custom(custom) => return custom(&mut stream),
        }
    }
}

fn read_head(stream: &mut TcpStream, buffer: &mut Vec<u8>, connection: usize) -> Option<Seen> {
    let end = loop {
        if let Some(at) = find(buffer, b"\r\n\r\n") {
            break at;
        }
        fill(stream, buffer)?;
    };
    let head = String::from_utf8_lossy(&buffer[..end]).split("\r\n").map(str::to_owned).collect();
    buffer.drain(..end + 4);
    Some(Seen { connection, head, raw_body: Vec::new(), body: Vec::new(), complete: false })
}

fn read_body(stream: &mut TcpStream, buffer: &mut Vec<u8>, seen: &mut Seen) {
    let chunked =
        seen.values("transfer-encoding").iter().any(|coding| coding.eq_ignore_ascii_case("chunked"));
    if !chunked {
        let length: usize = seen.values("content-length").first().map_or(0, |length| length.parse().unwrap());
        while buffer.len() < length {
            if fill(stream, buffer).is_none() {
                seen.raw_body = std::mem::take(buffer);
                seen.body = seen.raw_body.clone();
                return;
            }
        }
        seen.raw_body = buffer.drain(..length).collect();
        seen.body = seen.raw_body.clone();
        seen.complete = true;
        return;
    }
    loop {
        let Some(line_end) = find(buffer, b"\r\n") else {
            if fill(stream, buffer).is_none() {
                return;
            }
            continue;
        };
        let size = usize::from_str_radix(std::str::from_utf8(&buffer[..line_end]).unwrap(), 16).unwrap();
        let total = line_end + 2 + size + 2;
        while buffer.len() < total {
            if fill(stream, buffer).is_none() {
                return;
            }
        }
        seen.body.extend_from_slice(&buffer[line_end + 2..line_end + 2 + size]);
        seen.raw_body.extend(buffer.drain(..total));
        if size == 0 {
            seen.complete = true;
            return;
        }
    }
}

fn fill(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<()> {
    let mut part = [0; 16 << 10];
    match stream.read(&mut part) {
        Ok(0) | Err(_) => None,
        Ok(n) => {
            buffer.extend_from_slice(&part[..n]);
            Some(())
        }
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
