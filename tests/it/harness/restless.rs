//! Clients that never rest: new and kept connections, HTTP/1.1 and HTTP/2, and event streams that come back when they end.

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::Full;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::client::Call;
use super::transport::Transport;
use super::{RedisServer, eventually, http2, is_long};

/// The pause of a client between two requests.
const PAUSE: Duration = Duration::from_millis(20);

/// The longest time that a connection may wait.
pub(crate) const PROMISED: Duration = Duration::from_millis(500);

/// How many clients there are of each kind.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kinds {
    pub(crate) new: usize,
    pub(crate) kept: usize,
    pub(crate) http2: usize,
    pub(crate) streams: usize,
}

impl Default for Kinds {
    fn default() -> Self {
        Self { new: 4, kept: 8, http2: 4, streams: 0 }
    }
}

/// The settings of a store in this Redis. On a busy machine a lookup may take longer than shipped.
pub(crate) fn store_in(redis: &RedisServer) -> String {
    let patience = if is_long() { "" } else { "lookup_timeout = \"20s\"\n" };
    format!(
        "[store]\nkind = \"redis\"\nurl = \"{}\"\nallow_without_pepper = true\n{patience}[cache]\n{patience}",
        redis.url()
    )
}

/// What the clients have seen.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) answered: usize,
    pub(crate) failed: Vec<String>,
    /// The longest time from the beginning of a connection, or of a request on a kept one, to the end of the answer.
    pub(crate) slowest: Duration,
    /// The requests that took longer than [`PROMISED`], and when they began, from the beginning of the load.
    pub(crate) slow: Vec<String>,
    /// The longest time from the beginning of a connection to the head of an event stream.
    pub(crate) slowest_stream: Duration,
    /// How long each stream lived that has ended.
    pub(crate) lived: Vec<Duration>,
}

impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lived = self.lived.clone();
        lived.sort_unstable();
        let at = |percent: usize| lived.get(lived.len() * percent / 100).copied().unwrap_or_default();
        write!(
            f,
            "{} answers, {} failed, the slowest {:?}, over {PROMISED:?}: {:?}; the slowest stream began after {:?}; {} streams \
             ended, lived {:?} (10 %), {:?} (median), {:?} (90 %)",
            self.answered,
            self.failed.len(),
            self.slowest,
            self.slow,
            self.slowest_stream,
            lived.len(),
            at(10),
            at(50),
            at(90)
        )
    }
}

/// The clients at work.
pub(crate) struct Load {
    clients: Clients,
    streams: usize,
    thread: JoinHandle<()>,
}

#[derive(Clone)]
struct Clients {
    address: SocketAddr,
    key: Arc<str>,
    begun: Instant,
    seen: Arc<Mutex<Seen>>,
    open: Arc<AtomicUsize>,
    is_over: Arc<AtomicBool>,
}

impl Load {
    pub(crate) fn begin(address: SocketAddr, key: &str, kinds: Kinds) -> Self {
        let clients = Clients {
            address,
            key: key.into(),
            begun: Instant::now(),
            seen: Arc::default(),
            open: Arc::default(),
            is_over: Arc::default(),
        };
        let all = clients.clone();
        let thread = thread::spawn(move || {
            http2::runtime().block_on(async move {
                let mut tasks = JoinSet::new();
                (0..kinds.new).for_each(|_| drop(tasks.spawn(all.clone().over_new_connections())));
                (0..kinds.kept).for_each(|_| drop(tasks.spawn(all.clone().over_kept_connections())));
                (0..kinds.http2).for_each(|_| drop(tasks.spawn(all.clone().over_http2())));
                (0..kinds.streams).for_each(|_| drop(tasks.spawn(all.clone().streaming())));
                while !all.is_over() {
                    tokio::select! {
                        Some(ended) = tasks.join_next() => ended.unwrap(),
                        () = tokio::time::sleep(PAUSE) => {}
                    }
                }
            });
        });
        Self { clients, streams: kinds.streams, thread }
    }

    /// Waits until all streams are open, and some more requests have been answered.
    #[track_caller]
    pub(crate) fn settle(&self) {
        let begun = self.answered();
        eventually("the streams are open and clients are answered", || {
            thread::sleep(PAUSE);
            self.clients.open.load(Ordering::Relaxed) == self.streams && self.answered() >= begun + 50
        });
    }

    /// Waits until it has settled, and times requests from then on: that all clients began in one moment is no part of a test.
    #[track_caller]
    pub(crate) fn begin_timing(&self) {
        self.settle();
        let mut seen = self.clients.seen.lock().unwrap();
        (seen.slowest, seen.slowest_stream) = Default::default();
        seen.slow.clear();
    }

    /// How long it has been at work.
    pub(crate) fn age(&self) -> Duration {
        self.clients.begun.elapsed()
    }

    fn answered(&self) -> usize {
        self.clients.seen.lock().unwrap().answered
    }

    pub(crate) fn end(self) -> Seen {
        self.clients.is_over.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        std::mem::take(&mut *self.clients.seen.lock().unwrap())
    }
}

impl Clients {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed)
    }

    fn note(&self, kind: &str, begun: Instant, outcome: Result<u16, String>) {
        // What the end of the test interrupts has not failed.
        if self.is_over() {
            return;
        }
        let mut seen = self.seen.lock().unwrap();
        match outcome {
            Ok(200) => seen.answered += 1,
            Ok(status) => seen.failed.push(format!("{kind}: {status}")),
            Err(error) => seen.failed.push(format!("{kind}: {error}")),
        }
        let took = begun.elapsed();
        seen.slowest = seen.slowest.max(took);
        if took > PROMISED {
            seen.slow.push(format!("{kind} {took:?} at {:?}", begun.duration_since(self.begun)));
        }
    }

    fn request(&self, target: &str) -> Vec<u8> {
        Call::get(target).key(&self.key).to_bytes()
    }

    async fn over_new_connections(self) {
        while !self.is_over() {
            let begun = Instant::now();
            let asked = async {
                let mut stream = TcpStream::connect(self.address).await?;
                ask(&mut stream, &self.request("/things")).await
            };
            let outcome = asked.await.map(|(status, _)| status).map_err(|error: io::Error| error.to_string());
            self.note("new", begun, outcome);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn over_kept_connections(self) {
        let mut kept = None;
        while !self.is_over() {
            let begun = Instant::now();
            let asked = async {
                let mut stream = match kept.take() {
                    Some(stream) => stream,
                    None => TcpStream::connect(self.address).await?,
                };
                let (status, ends) = ask(&mut stream, &self.request("/things")).await?;
                Ok((status, (!ends).then_some(stream)))
            };
            let outcome = match asked.await {
                Ok((status, stream)) => {
                    kept = stream;
                    Ok(status)
                }
                Err(error) => Err(io::Error::to_string(&error)),
            };
            self.note("kept", begun, outcome);
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn over_http2(self) {
        let call = Call::get("/things").key(&self.key);
        let mut kept = None;
        while !self.is_over() {
            let begun = Instant::now();
            let mut sender = match kept.take() {
                Some(sender) => sender,
                None => http2::connect::<Full<Bytes>>(self.address, Transport::Http2).await,
            };
            // After a GOAWAY nothing is begun on the connection.
            if sender.ready().await.is_err() {
                continue;
            }
            let request = http2::request(Transport::Http2, &call).unwrap().map(Full::new);
            match sender.send_request(request).await {
                Ok(response) => {
                    let answer = http2::read(response).await;
                    let whole = if answer.complete { Ok(answer.status) } else { Err("cut".to_owned()) };
                    self.note("HTTP/2", begun, whole);
                    kept = Some(sender);
                }
                // It was not sent.
                Err(error) if error.is_canceled() => {}
                // It was sent, and not begun: the gateway said so, and a client may send it again (RFC 9113, section 8.7).
                Err(error) if is_unprocessed(&error) => {}
                Err(error) => self.note("HTTP/2", begun, Err(format!("{error:?}"))),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// An event stream, and another when it has ended. Its last event must be whole, and its end an end in order.
    async fn streaming(self) {
        while !self.is_over() {
            let begun = Instant::now();
            let read = async {
                let mut stream = TcpStream::connect(self.address).await?;
                stream.write_all(&self.request("/things/events")).await?;
                let mut text = Vec::new();
                while !contains(&text, b"\r\n\r\n") {
                    more(&mut stream, &mut text).await?;
                }
                if !contains(&text, b"200 OK") {
                    // A refusal is no stream, whose end could be waited for.
                    return Ok(text);
                }
                self.open.fetch_add(1, Ordering::Relaxed);
                {
                    let mut seen = self.seen.lock().unwrap();
                    seen.slowest_stream = seen.slowest_stream.max(begun.elapsed());
                }
                while !text.ends_with(b"\r\n0\r\n\r\n") {
                    let came = more(&mut stream, &mut text).await;
                    if let Err(error) = came {
                        self.open.fetch_sub(1, Ordering::Relaxed);
                        return Err(error);
                    }
                }
                self.open.fetch_sub(1, Ordering::Relaxed);
                Ok(text)
            };
            match read.await {
                Ok(text) if text.ends_with(b"\n\n\r\n0\r\n\r\n") => {
                    self.seen.lock().unwrap().lived.push(begun.elapsed());
                }
                Ok(text) => {
                    self.note("stream", begun, Err(String::from_utf8_lossy(&text).into_owned()));
                }
                Err(error) => self.note("stream", begun, Err(io::Error::to_string(&error))),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
}

/// Whether a GOAWAY with a lower stream, or REFUSED_STREAM, says that a request was not begun.
fn is_unprocessed(error: &hyper::Error) -> bool {
    let shown = format!("{error:?}");
    shown.contains("GoAway(b\"\", NO_ERROR, Remote)") || shown.contains("REFUSED_STREAM, Remote")
}

fn contains(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

async fn more(stream: &mut TcpStream, text: &mut Vec<u8>) -> io::Result<()> {
    match stream.read_buf(text).await? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(()),
    }
}

/// Sends a request, and reads an answer with a length: its status, and whether its connection ends with it.
async fn ask(stream: &mut TcpStream, request: &[u8]) -> io::Result<(u16, bool)> {
    stream.write_all(request).await?;
    let mut text = Vec::new();
    let end = loop {
        if let Some(end) = text.windows(4).position(|window| window == b"\r\n\r\n") {
            break end + 4;
        }
        more(stream, &mut text).await?;
    };
    let head = String::from_utf8_lossy(&text[..end]).to_lowercase();
    let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let length: usize = field("content-length:").and_then(|length| length.parse().ok()).unwrap_or(0);
    while text.len() < end + length {
        more(stream, &mut text).await?;
    }
    let status = head.get(9..12).and_then(|status| status.parse().ok());
    Ok((status.ok_or(io::ErrorKind::InvalidData)?, field("connection:") == Some("close")))
}
