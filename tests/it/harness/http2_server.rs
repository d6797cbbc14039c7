//! Servers of HTTP/2 on plain text, by prior knowledge: what a test makes of each request, or a translation to an upstream that
//! speaks HTTP/1.1.

use std::collections::HashMap;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{CONNECTION, CONTENT_LENGTH, HOST, TE, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderValue, Request, Response, Uri, Version};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::front::{Ending, RUNTIME, pass};

/// The beginning of every connection of HTTP/2 (RFC 9113, section 3.4).
const PREFACE: &[u8] = b"PRI ";

/// Those that translate, by the port of their upstream.
static TRANSLATORS: LazyLock<Mutex<HashMap<u16, SocketAddr>>> = LazyLock::new(Mutex::default);

/// The address of a server that translates for the upstream at this port of the machine.
pub(crate) fn translator(port: u16) -> SocketAddr {
    let start = || {
        let upstream = ([127, 0, 0, 1], port).into();
        listen(move |stream| translate_all(stream, upstream))
    };
    *TRANSLATORS.lock().unwrap().entry(port).or_insert_with(start)
}

/// Listens at a free port; `serve` gets every connection.
pub(crate) fn listen<F>(serve: impl Fn(TcpStream) -> F + Send + 'static) -> SocketAddr
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.set_nonblocking(true).unwrap();
    let address = listener.local_addr().unwrap();
    RUNTIME.spawn(async move {
        let listener = TcpListener::from_std(listener).unwrap();
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            tokio::spawn(serve(stream));
        }
    });
    address
}

async fn translate_all(near: TcpStream, upstream: SocketAddr) {
    // An upstream that is down has no server in front of it.
    let Ok(far) = TcpStream::connect(upstream).await else { return };
    let mut beginning = [0; PREFACE.len()];
    while near.peek(&mut beginning).await.is_ok_and(|count| count > 0 && count < PREFACE.len()) {
        tokio::task::yield_now().await;
    }
    if beginning != PREFACE {
        return pass(near, far, Ending::Proper).await;
    }
    let mut builder = h2::server::Builder::new();
    builder.max_header_list_size(1 << 20);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(near).await else { return };
    let unused = Unused::default();
    unused.keep(open(far).await);
    while let Some(Ok((request, respond))) = connection.accept().await {
        let unused = unused.clone();
        tokio::spawn(async move {
            let sender = match unused.take() {
                Some(sender) => sender,
                None => match TcpStream::connect(upstream).await {
                    Ok(far) => open(far).await,
                    Err(_) => return,
                },
            };
            translate(request, respond, sender, unused).await;
        });
    }
}

type Sender = http1::SendRequest<Received>;

async fn open(far: TcpStream) -> Sender {
    far.set_nodelay(true).unwrap();
    let (sender, connection) = http1::handshake(TokioIo::new(far)).await.unwrap();
    tokio::spawn(connection);
    sender
}

/// Connections to an upstream that carry nothing at the moment.
#[derive(Clone, Default)]
struct Unused(Arc<Mutex<Vec<Sender>>>);

impl Unused {
    fn take(&self) -> Option<Sender> {
        let mut all = self.0.lock().unwrap();
        while let Some(sender) = all.pop() {
            if sender.is_ready() {
                return Some(sender);
            }
        }
        None
    }

    fn keep(&self, sender: Sender) {
        self.0.lock().unwrap().push(sender);
    }
}

async fn translate(
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
    mut sender: Sender,
    unused: Unused,
) {
    if sender.ready().await.is_err() {
        return;
    }
    let answering = sender.send_request(as_http1(request));
    let answered = tokio::select! {
        answered = answering => answered,
        // Whoever asked has gone.
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return,
    };
    match answered {
        Ok(answer) => {
            if send_answer(answer, respond).await.is_some() && sender.ready().await.is_ok() {
                unused.keep(sender);
            }
        }
        Err(_) => respond.send_reset(Reason::INTERNAL_ERROR),
    }
}

fn as_http1(request: Request<RecvStream>) -> Request<Received> {
    let mut request = request.map(Received);
    *request.version_mut() = Version::HTTP_11;
    let authority = request.uri().authority().map(|authority| HeaderValue::try_from(authority.as_str()));
    if let Some(Ok(authority)) = authority {
        request.headers_mut().insert(HOST, authority);
    }
    if request.headers().contains_key(TE) {
        request.headers_mut().insert(CONNECTION, HeaderValue::from_static("te"));
    }
    if !request.body().is_end_stream() && !request.headers().contains_key(CONTENT_LENGTH) {
        request.headers_mut().insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
    }
    *request.uri_mut() = Uri::from(request.uri().path_and_query().unwrap().clone());
    request
}

/// Removes the fields that HTTP/1.1 has for one connection.
fn without_hops(headers: &mut HeaderMap) {
    let named: Vec<String> = headers
        .get_all(CONNECTION)
        .iter()
        .flat_map(|names| names.to_str().unwrap_or_default().split(','))
        .map(|name| name.trim().to_owned())
        .collect();
    let known = ["connection", "keep-alive", "transfer-encoding", "proxy-connection", "upgrade", "te"];
    for name in named.iter().map(String::as_str).chain(known) {
        headers.remove(name);
    }
}

/// `None` if it did not come to its end.
async fn send_answer(answer: Response<Incoming>, mut respond: SendResponse<Bytes>) -> Option<()> {
    let (mut head, mut body) = answer.into_parts();
    without_hops(&mut head.headers);
    head.version = Version::HTTP_2;
    let is_over = body.is_end_stream();
    let Ok(mut stream) = respond.send_response(Response::from_parts(head, ()), is_over) else {
        respond.send_reset(Reason::INTERNAL_ERROR);
        return None;
    };
    if is_over {
        return Some(());
    }
    loop {
        let frame = tokio::select! {
            frame = body.frame() => frame,
            _ = poll_fn(|cx| stream.poll_reset(cx)) => return None,
        };
        match frame {
            None => return stream.send_data(Bytes::new(), true).ok(),
            Some(Err(_)) => {
                stream.send_reset(Reason::INTERNAL_ERROR);
                return None;
            }
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => send_data(&mut stream, data).await?,
                Err(frame) => return stream.send_trailers(frame.into_trailers().unwrap()).ok(),
            },
        }
    }
}

/// Sends data as fast as it is taken; `None` if nobody takes it any more.
pub(crate) async fn send_data(stream: &mut SendStream<Bytes>, mut data: Bytes) -> Option<()> {
    while !data.is_empty() {
        stream.reserve_capacity(data.len());
        while stream.capacity() == 0 {
            poll_fn(|cx| stream.poll_capacity(cx)).await?.ok()?;
        }
        let part = data.split_to(data.len().min(stream.capacity()));
        stream.send_data(part, false).ok()?;
    }
    Some(())
}

/// A body of HTTP/2.
pub(crate) struct Received(pub(crate) RecvStream);

impl Body for Received {
    type Data = Bytes;
    type Error = h2::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, h2::Error>>> {
        match std::task::ready!(self.0.poll_data(cx)) {
            Some(Ok(data)) => {
                let _ = self.0.flow_control().release_capacity(data.len());
                Poll::Ready(Some(Ok(Frame::data(data))))
            }
            Some(Err(error)) => Poll::Ready(Some(Err(error))),
            None => match std::task::ready!(self.0.poll_trailers(cx)) {
                Ok(Some(trailers)) => Poll::Ready(Some(Ok(Frame::trailers(trailers)))),
                Ok(None) => Poll::Ready(None),
                Err(error) => Poll::Ready(Some(Err(error))),
            },
        }
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.0.is_end_stream() { SizeHint::with_exact(0) } else { SizeHint::default() }
    }
}

// ---- What a test makes of each request

/// A server that does what a test says with each request, and lets each connection have so many at a time.
pub(crate) struct Http2Server {
    address: SocketAddr,
    connections: Arc<AtomicUsize>,
    at_once: Arc<AtomicUsize>,
}

/// A request, and where its answer goes.
pub(crate) struct Asked {
    /// The number of its connection, from 0.
    pub(crate) connection: usize,
    /// The number of the request on it, from 0.
    pub(crate) number: usize,
    pub(crate) request: Request<RecvStream>,
    pub(crate) respond: SendResponse<Bytes>,
    /// To be told that the connection is to end, in order or at once.
    pub(crate) leave: mpsc::UnboundedSender<Leaving>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Leaving {
    InOrder,
    AtOnce,
}

impl Http2Server {
    pub(crate) fn start<F>(streams: u32, behaviour: impl Fn(Asked) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (connections, at_once) = (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default());
        let (counted, most) = (Arc::clone(&connections), Arc::clone(&at_once));
        let behaviour = Arc::new(behaviour);
        let address = listen(move |stream| {
            let number = counted.fetch_add(1, Ordering::SeqCst);
            serve(stream, streams, number, Arc::clone(&behaviour), Arc::clone(&most))
        });
        Self { address, connections, at_once }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// The connections that have come.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::SeqCst)
    }

    /// The most requests that one connection had at a time.
    pub(crate) fn at_once(&self) -> usize {
        self.at_once.load(Ordering::SeqCst)
    }
}

async fn serve<F, B>(
    stream: TcpStream,
    streams: u32,
    number: usize,
    behaviour: Arc<B>,
    most: Arc<AtomicUsize>,
) where
    F: Future<Output = ()> + Send + 'static,
    B: Fn(Asked) -> F + Send + Sync + 'static,
{
    let mut builder = h2::server::Builder::new();
    builder.max_concurrent_streams(streams);
    let Ok(mut connection) = builder.handshake::<_, Bytes>(stream).await else { return };
    let (leave, mut leaving) = mpsc::unbounded_channel();
    let (current, mut count) = (Arc::<AtomicUsize>::default(), 0);
    loop {
        let accepted = tokio::select! {
            accepted = connection.accept() => accepted,
            Some(way) = leaving.recv() => {
                match way {
                    Leaving::InOrder => connection.graceful_shutdown(),
                    Leaving::AtOnce => connection.abrupt_shutdown(Reason::NO_ERROR),
                }
                continue;
            }
        };
        let Some(Ok((request, respond))) = accepted else { return };
        most.fetch_max(current.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let asked = Asked { connection: number, number: count, request, respond, leave: leave.clone() };
        count += 1;
        let (answering, current) = (behaviour(asked), Arc::clone(&current));
        tokio::spawn(async move {
            answering.await;
            current.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

impl Asked {
    /// The body, to its end.
    pub(crate) async fn body(&mut self) -> Option<Vec<u8>> {
        let (body, mut bytes) = (self.request.body_mut(), Vec::new());
        while let Some(data) = body.data().await {
            let data = data.ok()?;
            let _ = body.flow_control().release_capacity(data.len());
            bytes.extend_from_slice(&data);
        }
        Some(bytes)
    }

    pub(crate) fn head(&mut self, fields: &[(&'static str, &'static str)]) -> Option<SendStream<Bytes>> {
        let mut answer = Response::new(());
        for (name, value) in fields {
            answer.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        self.respond.send_response(answer, false).ok()
    }

    pub(crate) async fn answer(&mut self, body: impl Into<Bytes>) -> Option<()> {
        let mut stream = self.head(&[])?;
        send_data(&mut stream, body.into()).await?;
        stream.send_data(Bytes::new(), true).ok()
    }
}
