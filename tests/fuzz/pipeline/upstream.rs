//! Upstreams that record what reaches them, byte by byte, and answer each request with its number.

use std::cell::{Cell, RefCell};
use std::net::SocketAddr;
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::http1::{From, Message, Reader, Stop};

/// A request as an upstream has it.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    pub(crate) upstream: &'static str,
    pub(crate) is_live: bool,
    pub(crate) message: Message,
}

/// Everything that reached the upstreams since it was last emptied.
#[derive(Debug, Default)]
pub(crate) struct Recorder {
    pub(crate) received: RefCell<Vec<Received>>,
    /// What no server could make sense of.
    pub(crate) odd: RefCell<Vec<Vec<u8>>>,
    /// Grows with everything that happens at either end.
    pub(crate) progress: Cell<u64>,
}

impl Recorder {
    pub(crate) fn note(&self) {
        self.progress.set(self.progress.get() + 1);
    }

    pub(crate) fn forget(&self) {
        self.received.borrow_mut().clear();
        self.odd.borrow_mut().clear();
    }
}

/// Starts an upstream on the runtime of this thread.
pub(crate) fn start(listener: TcpListener, upstream: &'static str, is_live: bool, recorder: Rc<Recorder>) {
    tokio::task::spawn_local(async move {
        while let Ok((stream, _)) = listener.accept().await {
            recorder.note();
            tokio::task::spawn_local(serve(stream, upstream, is_live, Rc::clone(&recorder)));
        }
    });
}

pub(crate) async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port is free");
    let address = listener.local_addr().expect("it is bound");
    (listener, address)
}

async fn serve(mut stream: TcpStream, upstream: &'static str, is_live: bool, recorder: Rc<Recorder>) {
    let _ = stream.set_nodelay(true);
    let mut bytes = Vec::new();
    // The place of the request that has begun, among those received.
    let mut begun: Option<usize> = None;
    loop {
        let read = stream.read_buf(&mut bytes).await;
        recorder.note();
        if !matches!(read, Ok(length) if length > 0) {
            return;
        }
        loop {
            let (mut requests, stop, rest) = Reader::new(&bytes, From::Keygate).requests();
            let is_odd = stop == Stop::Bad;
            let left = rest.len();
            if requests.is_empty() {
                if is_odd {
                    recorder.odd.borrow_mut().push(bytes.clone());
                    return;
                }
                break;
            }
            let message = requests.swap_remove(0);
            let is_complete = message.is_complete;
            let is_head = message.start[0] == "HEAD";
            // Two at once: keygate sends a request when the one before it is answered.
            if !requests.is_empty() || is_odd || is_complete && left > 0 {
                recorder.odd.borrow_mut().push(bytes.clone());
                return;
            }
            let number = {
                let mut received = recorder.received.borrow_mut();
                let entry = Received { upstream, is_live, message };
                match begun.filter(|at| *at < received.len()) {
                    Some(at) => {
                        received[at] = entry;
                        at
                    }
                    None => {
                        received.push(entry);
                        received.len() - 1
                    }
                }
            };
            begun = Some(number);
            if !is_complete {
                break;
            }
            bytes.clear();
            begun = None;
            if stream.write_all(answer(number, is_head).as_bytes()).await.is_err() {
                return;
            }
            recorder.note();
        }
    }
}

/// Answers differ in their framing.
fn answer(number: usize, is_head: bool) -> String {
    let body = format!("answer {number}.");
    let name = format!("HTTP/1.1 200 OK\r\nx-answer: {number}\r\n");
    match (number % 2, is_head) {
        (_, true) => format!("{name}content-length: {}\r\n\r\n", body.len()),
        (0, false) => format!("{name}content-length: {}\r\n\r\n{body}", body.len()),
        (_, false) => {
            format!("{name}transfer-encoding: chunked\r\n\r\n{:x}\r\n{body}\r\n0\r\n\r\n", body.len())
        }
    }
}
