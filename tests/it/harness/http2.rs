//! HTTP/2 in tests: hyper's client for valid calls, and single frames for invalid ones.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri};
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;

use super::client::{Answer, Call, Wire};
use super::transport::{HOST, Transport, client_config, server_name};
use super::{Gateway, PATIENCE};

/// Sends a call on a connection of its own and reads the answer.
#[track_caller]
pub(crate) fn fetch(address: SocketAddr, transport: Transport, call: &Call) -> Answer {
    let request = request(transport, call).unwrap();
    runtime().block_on(async {
        let answered = async {
            let mut sender = connect(address, transport).await;
            read(sender.send_request(request.map(Full::new)).await.unwrap()).await
        };
        tokio::time::timeout(PATIENCE, answered).await.unwrap()
    })
}

/// The call in HTTP/2; `None` if only HTTP/1.1 can express it.
pub(crate) fn request(transport: Transport, call: &Call) -> Option<Request<Bytes>> {
    const HTTP1_ONLY: [&str; 8] = [
        "connection",
        "keep-alive",
        "proxy-connection",
        "transfer-encoding",
        "upgrade",
        "host",
        "content-length",
        "te",
    ];
    let size: usize = call.fields.iter().map(|(name, value)| name.len() + value.len() + 32).sum();
    if size > HEADER_LIST {
        return None;
    }
    let uri: Uri = format!("{}://{HOST}{}", transport.scheme(), call.target).parse().ok()?;
    if uri.path_and_query()?.as_str() != call.target || call.method == "CONNECT" {
        return None;
    }
    let mut request = Request::new(Bytes::from(call.body.clone()));
    *request.uri_mut() = uri;
    *request.method_mut() = Method::from_bytes(call.method.as_bytes()).ok()?;
    for (name, value) in &call.fields {
        let name = HeaderName::from_bytes(name.as_bytes()).ok()?;
        let means_the_same = name == "te" && value == "trailers";
        if HTTP1_ONLY.contains(&name.as_str()) && !means_the_same {
            return None;
        }
        request.headers_mut().append(name, HeaderValue::from_bytes(value.as_bytes()).ok()?);
    }
    Some(request)
}

/// What the gateway reads of a header list on HTTP/2; this leaves room for the fields of the protocol itself.
const HEADER_LIST: usize = 60 << 10;

pub(crate) fn runtime() -> Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Opens a connection for any number of requests.
pub(crate) async fn connect<B>(address: SocketAddr, transport: Transport) -> SendRequest<B>
where
    B: Body + Send + Unpin + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
    impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let io: Box<dyn Io> = if transport.has_tls() {
        let config = client_config(&["h2"], rustls::ALL_VERSIONS);
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        Box::new(connector.connect(server_name(), stream).await.unwrap())
    } else {
        Box::new(stream)
    };
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder.max_header_list_size(1 << 20);
    let (sender, connection) = builder.handshake(TokioIo::new(io)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Reads an answer to its end, or to its interruption.
pub(crate) async fn read(response: Response<Incoming>) -> Answer {
    let (head, mut body) = response.into_parts();
    let texts = |headers: &HeaderMap| -> Vec<(String, String)> {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        headers.iter().map(|(name, value)| (name.as_str().to_owned(), text(value))).collect()
    };
    let fields = texts(&head.headers);
    let (mut bytes, mut trailers, mut complete) = (Vec::new(), Vec::new(), true);
    while let Some(frame) = body.frame().await {
        match frame.map(http_body::Frame::into_data) {
            Ok(Ok(data)) => bytes.extend_from_slice(&data),
            Ok(Err(frame)) => trailers = frame.trailers_ref().map(&texts).unwrap_or_default(),
            Err(_) => {
                complete = false;
                break;
            }
        }
    }
    let status_line = format!("HTTP/2 {}", head.status.as_u16());
    Answer { status_line, status: head.status.as_u16(), fields, body: bytes, trailers, complete }
}

/// A connection on which the test sends each frame.
pub(crate) struct Frames {
    wire: Wire,
}

/// A frame as it was received.
#[derive(Clone, Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) flags: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const RESET: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

pub(crate) const END_STREAM: u8 = 1;
const ACK: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;

impl Frames {
    /// Sends the preface and these settings.
    pub(crate) fn connect(gateway: &Gateway, settings: &[(u16, u32)]) -> Self {
        Self::over(gateway.wire("h2"), settings)
    }

    /// The same to an address, on plain text.
    pub(crate) fn connect_to(address: SocketAddr) -> Self {
        Self::over(Wire::connect(address), &[])
    }

    fn over(wire: Wire, settings: &[(u16, u32)]) -> Self {
        let mut frames = Self { wire };
        frames.wire.send(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        let payload: Vec<u8> = settings
            .iter()
            .flat_map(|(name, value)| [&name.to_be_bytes()[..], &value.to_be_bytes()].concat())
            .collect();
        frames.send(SETTINGS, 0, 0, &payload);
        frames
    }

    pub(crate) fn send(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.wire.send(&frame(kind, flags, stream, payload));
    }

    /// Sends bytes, or returns the error.
    pub(crate) fn try_send(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.wire.try_send(bytes)
    }

    /// Begins a request without a body.
    pub(crate) fn get(&mut self, stream: u32, target: &str, key: &str) {
        self.wire.send(&get(stream, target, key));
    }

    /// The next frame; settings and pings are acknowledged on the way. `None` when the connection has ended.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let head = self.wire.bytes(9)?;
        let length = usize::from(head[0]) << 16 | usize::from(head[1]) << 8 | usize::from(head[2]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        let frame = Frame { kind: head[3], flags: head[4], stream, payload: self.wire.bytes(length)? };
        if [SETTINGS, PING].contains(&frame.kind) && frame.flags & ACK == 0 {
            let payload = if frame.kind == PING { frame.payload.clone() } else { Vec::new() };
            self.send(frame.kind, ACK, 0, &payload);
        }
        Some(frame)
    }

    /// Reads until a frame of this kind arrives.
    pub(crate) fn until(&mut self, kind: u8) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if frame.kind == kind {
                return Some(frame);
            }
        }
    }
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend_from_slice(&stream.to_be_bytes());
    bytes.extend_from_slice(payload);
    bytes
}

/// A whole GET request with a key, in one HEADERS frame.
pub(crate) fn get(stream: u32, target: &str, key: &str) -> Vec<u8> {
    let authorization = format!("Bearer {key}");
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(target, &[("authorization", &authorization)]))
}

/// The header block of a GET request with these fields.
pub(crate) fn block(target: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    block_of("GET", target, fields)
}

/// The same with another method.
pub(crate) fn block_of(method: &str, target: &str, fields: &[(&str, &str)]) -> Vec<u8> {
    let pseudo = [(":method", method), (":scheme", "http"), (":authority", HOST), (":path", target)];
    // Literal fields that are not indexed (RFC 7541, section 6.2.2), in plain octets.
    let mut block = Vec::new();
    for (name, value) in pseudo.iter().chain(fields) {
        block.push(0);
        for text in [name, value] {
            block.push(u8::try_from(text.len()).ok().filter(|length| *length < 127).unwrap());
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}
