//! A client that sends exact bytes, and a client for ordinary calls.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use super::transport::{Pipe, Transport};
use super::{PATIENCE, http2};

/// An ordinary request.
#[derive(Clone, Debug)]
pub(crate) struct Call {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Call {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self { method: method.to_owned(), target: target.to_owned(), fields: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    pub(crate) fn post(target: &str, body: impl Into<Vec<u8>>) -> Self {
        Self { body: body.into(), ..Self::new("POST", target) }
    }

    /// The handshake of a WebSocket (RFC 6455, section 1.3).
    pub(crate) fn websocket(target: &str) -> Self {
        Self::get(target)
            .field("connection", "Upgrade")
            .field("upgrade", "websocket")
            .field("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==")
            .field("sec-websocket-version", "13")
    }

    pub(crate) fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(crate) fn key(self, secret: &str) -> Self {
        self.field("authorization", &format!("Bearer {secret}"))
    }

    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = format!("{} {} HTTP/1.1\r\nhost: api.example.com\r\n", self.method, self.target);
        for (name, value) in &self.fields {
            bytes += &format!("{name}: {value}\r\n");
        }
        if !self.body.is_empty() {
            bytes += &format!("content-length: {}\r\n", self.body.len());
        }
        let mut bytes = (bytes + "\r\n").into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// Sends a call on a connection of its own and reads the answer.
#[track_caller]
pub(crate) fn fetch(address: SocketAddr, call: &Call) -> Answer {
    fetch_over(address, Transport::Http1, call)
}

/// The same where the gateway may end meanwhile: `None` without a whole answer.
pub(crate) fn try_fetch(address: SocketAddr, call: &Call) -> Option<Answer> {
    let mut wire = Wire::from(TcpStream::connect(address).ok()?);
    wire.try_send(&call.to_bytes()).ok()?;
    wire.answer_to(&call.method).filter(|answer| answer.complete)
}

/// The same over another transport. A call that HTTP/2 cannot express uses HTTP/1.1, with or without TLS as the
/// transport says.
#[track_caller]
pub(crate) fn fetch_over(address: SocketAddr, transport: Transport, call: &Call) -> Answer {
    if transport.is_http2() && http2::request(transport, call).is_some() {
        return http2::fetch(address, transport, call);
    }
    let mut wire = Wire::connect_over(address, transport);
    wire.send(&call.to_bytes());
    wire.answer_to(&call.method).unwrap_or_else(|| panic!("no answer to {call:?}"))
}

/// A connection on which the test sends each byte.
pub(crate) struct Wire {
    pipe: Pipe,
    buffer: Vec<u8>,
}

/// A plain connection that is already open.
impl From<TcpStream> for Wire {
    fn from(stream: TcpStream) -> Self {
        Self::over(Pipe::begin(stream, None))
    }
}

impl Wire {
    #[track_caller]
    pub(crate) fn connect(address: SocketAddr) -> Self {
        Self::over(Pipe::connect(address, None))
    }

    /// HTTP/1.1, within TLS if the transport has it.
    #[track_caller]
    pub(crate) fn connect_over(address: SocketAddr, transport: Transport) -> Self {
        Self::over(Pipe::connect(address, transport.has_tls().then_some("http/1.1")))
    }

    pub(crate) const fn over(pipe: Pipe) -> Self {
        Self { pipe, buffer: Vec::new() }
    }

    /// Writes bytes; a closed connection is not an error, because the peer may have answered before.
    pub(crate) fn send(&mut self, bytes: &[u8]) {
        let _ = self.pipe.write_all(bytes);
    }

    /// Writes bytes, or returns the error.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.pipe.write_all(bytes)
    }

    pub(crate) fn call(&mut self, call: &Call) -> Option<Answer> {
        self.send(&call.to_bytes());
        self.answer_to(&call.method)
    }

    /// Closes the client's side of the connection.
    pub(crate) fn finish_sending(&self) {
        let _ = self.pipe.tcp().shutdown(Shutdown::Write);
    }

    pub(crate) const fn pipe(&mut self) -> &mut Pipe {
        &mut self.pipe
    }

    pub(crate) fn stream(&self) -> &TcpStream {
        self.pipe.tcp()
    }

    /// Reads an answer to a request other than HEAD. `None` if the connection ends before its head is complete.
    pub(crate) fn answer(&mut self) -> Option<Answer> {
        self.answer_to("GET")
    }

    pub(crate) fn answer_to(&mut self, method: &str) -> Option<Answer> {
        loop {
            let mut answer = self.head()?;
            if answer.status == 100 {
                continue;
            }
            self.body(&mut answer, method);
            return Some(answer);
        }
    }

    /// Reads a head alone, an interim one too.
    pub(crate) fn head(&mut self) -> Option<Answer> {
        let end = loop {
            if let Some(at) = self.buffer.windows(4).position(|window| window == b"\r\n\r\n") {
                break at;
            }
            self.fill()?;
        };
        let head = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 4);
        let mut lines = head.split("\r\n");
        let status_line = lines.next().unwrap_or_default().to_owned();
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok())?;
        let fields = lines.filter_map(field).collect();
        let (body, trailers) = (Vec::new(), Vec::new());
        Some(Answer { status_line, status, fields, body, trailers, complete: true })
    }

    fn body(&mut self, answer: &mut Answer, method: &str) {
        if method == "HEAD" || matches!(answer.status, 101 | 204 | 304) {
            return;
        }
        if answer.field("transfer-encoding") == Some("chunked") {
            answer.complete = self.chunks(answer).is_some();
        } else if let Some(length) = answer.field("content-length") {
            let length: usize = length.parse().unwrap();
            while self.buffer.len() < length && self.fill().is_some() {}
            answer.complete = self.buffer.len() >= length;
            answer.body = self.buffer.drain(..length.min(self.buffer.len())).collect();
        } else {
            while self.fill().is_some() {}
            answer.body = std::mem::take(&mut self.buffer);
        }
    }

    fn chunks(&mut self, answer: &mut Answer) -> Option<()> {
        loop {
            let size = usize::from_str_radix(&self.line()?, 16).ok()?;
            if size == 0 {
                answer.trailers = self.request_head()?.iter().filter_map(|line| field(line)).collect();
                return Some(());
            }
            while self.buffer.len() < size + 2 {
                self.fill()?;
            }
            answer.body.extend(self.buffer.drain(..size));
            self.buffer.drain(..2);
        }
    }

    /// Reads exactly this number of bytes.
    pub(crate) fn bytes(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < count {
            self.fill()?;
        }
        Some(self.buffer.drain(..count).collect())
    }

    /// Reads up to the next CRLF.
    pub(crate) fn line(&mut self) -> Option<String> {
        let end = loop {
            if let Some(at) = self.buffer.windows(2).position(|window| window == b"\r\n") {
                break at;
            }
            self.fill()?;
        };
        let line = String::from_utf8_lossy(&self.buffer[..end]).into_owned();
        self.buffer.drain(..end + 2);
        Some(line)
    }

    /// Reads the lines of a request's head, or of trailers. `None` if the connection ends before their end.
    pub(crate) fn request_head(&mut self) -> Option<Vec<String>> {
        let mut lines = Vec::new();
        loop {
            match self.line()? {
                line if line.is_empty() => return Some(lines),
                line => lines.push(line),
            }
        }
    }

    /// Reads this number of bytes.
    pub(crate) fn exactly(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.buffer.len() < length {
            self.fill()?;
        }
        Some(self.buffer.drain(..length).collect())
    }

    /// Reads one chunk of a chunked body; the last is empty.
    pub(crate) fn chunk(&mut self) -> Option<Vec<u8>> {
        let size = usize::from_str_radix(&self.line()?, 16).ok()?;
        let mut chunk = self.exactly(size + 2)?;
        chunk.truncate(size);
        Some(chunk)
    }

    /// Reads until the other side closes.
    pub(crate) fn rest(&mut self) -> Vec<u8> {
        while self.fill().is_some() {}
        std::mem::take(&mut self.buffer)
    }

    /// Waits until the other side closes or sends bytes; true if it has closed.
    pub(crate) fn is_closed(&mut self) -> bool {
        self.buffer.is_empty() && self.fill().is_none()
    }

    fn fill(&mut self) -> Option<()> {
        let mut part = [0; 16 << 10];
        match self.pipe.read(&mut part) {
            Ok(0) => None,
            Ok(n) => {
                self.buffer.extend_from_slice(&part[..n]);
                Some(())
            }
            Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {
                panic!("nothing came for {PATIENCE:?}; so far {:?}", String::from_utf8_lossy(&self.buffer))
            }
            Err(_) => None,
        }
    }
}

fn field(line: &str) -> Option<(String, String)> {
    line.split_once(": ").map(|(name, value)| (name.to_lowercase(), value.to_owned()))
}

/// An answer as it was received.
#[derive(Clone, Debug)]
pub(crate) struct Answer {
    pub(crate) status_line: String,
    pub(crate) status: u16,
    /// Names in lower case, in their order.
    pub(crate) fields: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
    /// The trailers, in the same form as the header fields.
    pub(crate) trailers: Vec<(String, String)>,
    /// Whether the body is complete by its framing.
    pub(crate) complete: bool,
}

impl Answer {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {:?}", self.text()))
    }

    /// Asserts that this is keygate's refusal with this status and type, correct in every part, and returns its
    /// message.
    #[track_caller]
    pub(crate) fn refusal(&self, status: u16, error_type: &str) -> String {
        assert_eq!(self.status, status, "{}", self.text());
        assert_eq!(self.field("content-type"), Some("application/json"));
        assert_eq!(self.field("cache-control"), Some("no-store"));
        let json = self.json();
        assert_eq!(json["error"]["type"], error_type, "{json}");
        let id = json["error"]["request_id"].as_str().unwrap();
        assert!(keygate::vocabulary::id::RequestId::parse(id).is_ok(), "{id}");
        assert_eq!(self.field("x-request-id"), Some(id));
        assert_eq!(json.as_object().unwrap().len(), 1);
        assert_eq!(json["error"].as_object().unwrap().len(), 3, "{json}");
        json["error"]["message"].as_str().unwrap().to_owned()
    }
}
