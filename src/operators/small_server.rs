//! A small HTTP/1.1 server, for what operators and customers look at: few clients at once, short bodies.
//!
//! It gives up clients that send nothing or take nothing of their answers, limits bodies, and stops gracefully: answers
//! under way are finished. It accepts every connection: where there is no place, a connection that waits for its client
//! makes room, of the client that has the most. So nobody can shut operators out by holding connections.

use std::collections::HashMap;
use std::convert::Infallible;
use std::hash::Hash;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::Response;
use http_body_util::{Full, Limited};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, Id, JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::paced::{Paced, Progress};
use crate::telemetry::Event;
use crate::vocabulary::clock::Clock;

/// A request whose body ends with an error at the limit.
pub(super) type Request = http::Request<Limited<Incoming>>;
pub(super) type Answer = Response<Full<Bytes>>;

/// How much a small server lets its clients take.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Connections at once.
    pub(super) connections: usize,
    /// How long a client may take to send the head of a request, or to begin the next one.
    pub(super) head_timeout: Duration,
    /// How long a client may take nothing of its answer.
    pub(super) write_timeout: Duration,
    /// The longest body of a request, in bytes.
    pub(super) body: usize,
}

/// How long accepting pauses after it failed, for instance because no descriptor was left.
const PAUSE: Duration = Duration::from_millis(50);

/// A bound socket.
pub(super) trait Socket: Send + Sync + 'static {
    type Stream: AsyncRead + AsyncWrite + Unpin + Send + 'static;
    /// The facts that the socket itself knows of a client, before the client has sent anything.
    type Client: Copy + Eq + Hash + Send + Sync + 'static;

    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Self::Client)>> + Send;
}

impl Socket for TcpListener {
    type Stream = TcpStream;
    type Client = IpAddr;

    async fn accept(&self) -> io::Result<(TcpStream, IpAddr)> {
        let (stream, address) = Self::accept(self).await?;
        Ok((stream, address.ip().to_canonical()))
    }
}

/// Takes the TCP socket that is there, or binds one, and gives its real address. Must be called inside a runtime.
///
/// # Errors
/// When the address is in use, or is not an address of this machine.
pub(super) fn open_tcp(
    listen: SocketAddr,
    there: Option<StdListener>,
) -> io::Result<(TcpListener, SocketAddr)> {
    let listener = there.map_or_else(|| StdListener::bind(listen), Ok)?;
    listener.set_nonblocking(true)?;
    let address = listener.local_addr()?;
    Ok((TcpListener::from_std(listener)?, address))
}

/// A server that is ready to start.
#[derive(Debug)]
pub(super) struct SmallServer<S> {
    pub(super) socket: S,
    /// The name of the service, for the log.
    pub(super) name: &'static str,
    pub(super) limits: Limits,
    pub(super) clock: Clock,
}

impl<S: Socket> SmallServer<S> {
    /// Serves in a task, until it is stopped. `answer` gets each request with what is known of its client. Must
    /// be called inside a runtime.
    pub(super) fn start<A, F>(self, answer: A) -> Running
    where
        A: Fn(S::Client, Request) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let (stop, stopped) = watch::channel(());
        Running { stop, task: tokio::spawn(self.run(answer, stopped)) }
    }

    async fn run<A, F>(self, answer: A, mut stopped: watch::Receiver<()>)
    where
        A: Fn(S::Client, Request) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Answer> + Send + 'static,
    {
        let Self { socket, name, limits, clock } = self;
        // Dropped with this task, which cuts the connections.
        let mut connections = JoinSet::new();
        let mut open = Open { entries: Vec::new(), at_most: limits.connections };
        loop {
            let accepted = tokio::select! {
                accepted = socket.accept() => accepted,
                Some(ended) = connections.join_next_with_id() => {
                    open.forget(ended.map_or_else(|error| error.id(), |(id, ())| id));
                    continue;
                }
                _ = stopped.changed() => break,
            };
            match accepted {
                // Without a place it is closed.
                Ok((_, client)) if !open.make_room(client) => {}
                Ok((stream, client)) => {
                    let answer = answer.clone();
                    let answer = move |request| answer(client, request);
                    let progress = Arc::new(Progress::new(clock.clone()));
                    let stream = Paced::new(stream, Arc::clone(&progress), limits.write_timeout);
                    let task = connections.spawn(serve(
                        stream,
                        answer,
                        limits,
                        stopped.clone(),
                        Arc::clone(&progress),
                    ));
                    open.entries.push(Entry { client, progress, task });
                }
                Err(error) => {
                    let line = || format!("cannot accept connections for {name}: {error}; trying again");
                    Event::CannotAccept.log_of(name, clock.mono(), line);
                    sleep(PAUSE).await;
                }
            }
        }
        drop(socket);
        while connections.join_next().await.is_some() {}
    }
}

/// The connections that are open.
struct Open<C> {
    entries: Vec<Entry<C>>,
    at_most: usize,
}

struct Entry<C> {
    client: C,
    progress: Arc<Progress>,
    task: AbortHandle,
}

impl<C: Copy + Eq + Hash> Open<C> {
    /// Makes room for a connection of `client`; false where all places are in use. Closed is, among those that wait for
    /// their clients, one of the client that has the most of these, and of those the one that has waited longest.
    fn make_room(&mut self, client: C) -> bool {
        if self.entries.len() < self.at_most {
            return true;
        }
        let mut waiting: HashMap<C, usize> = HashMap::from([(client, 1)]);
        for entry in self.entries.iter().filter(|entry| entry.progress.waits_for_client()) {
            *waiting.entry(entry.client).or_default() += 1;
        }
        let longest = self
            .entries
            .iter()
            .filter(|entry| entry.progress.waits_for_client())
            .max_by_key(|entry| (waiting.get(&entry.client).copied(), entry.progress.unmoved_for()));
        let Some(id) = longest.map(|entry| entry.task.id()) else { return false };
        for entry in self.entries.iter().filter(|entry| entry.task.id() == id) {
            entry.task.abort();
        }
        self.forget(id);
        true
    }

    fn forget(&mut self, id: Id) {
        self.entries.retain(|entry| entry.task.id() != id);
    }
}

/// Serves one connection until the client ends it, takes too long, or the server stops.
async fn serve<T, A, F>(
    stream: T,
    answer: A,
    limits: Limits,
    mut stopped: watch::Receiver<()>,
    progress: Arc<Progress>,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Answer> + Send + 'static,
{
    let service = service_fn(|request: http::Request<Incoming>| {
        let answering = answer(request.map(|body| Limited::new(body, limits.body)));
        let progress = Arc::clone(&progress);
        async move {
            progress.begin_answer();
            let answer = answering.await;
            progress.end_answer();
            Ok::<_, Infallible>(answer)
        }
    });
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits.head_timeout)
            .serve_connection(TokioIo::new(stream), service)
    );
    tokio::select! {
        // An error means that the client is gone: nobody reads what could be said about it.
        _ = connection.as_mut() => return,
        _ = stopped.changed() => connection.as_mut().graceful_shutdown(),
    }
    let _ = connection.await;
}

/// A server that runs. It stops accepting when this is dropped.
#[derive(Debug)]
pub struct Running {
    stop: watch::Sender<()>,
    task: JoinHandle<()>,
}

impl Running {
    /// Accepts no more connections, lets the answers under way finish, and cuts what is not finished after `within`.
    pub async fn stop(self, within: Duration) {
        let Self { stop, mut task } = self;
        drop(stop);
        if timeout(within, &mut task).await.is_err() {
            task.abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use http::{Method, StatusCode};
    use http_body_util::BodyExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::sync::Notify;

    use super::*;

    const WITHIN: Duration = Duration::from_secs(30);

    fn server(limits: Limits) -> (SmallServer<TcpListener>, SocketAddr) {
        let (socket, address) = open_tcp(SocketAddr::from(([127, 0, 0, 1], 0)), None).unwrap();
        (SmallServer { socket, name: "a test", limits, clock: Clock::system() }, address)
    }

    const LIMITS: Limits = Limits {
        connections: 1,
        head_timeout: Duration::from_secs(20),
        write_timeout: Duration::from_secs(20),
        body: 4,
    };

    async fn connect(address: SocketAddr, sent: &str) -> TcpStream {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent.as_bytes()).await.unwrap();
        stream
    }

    async fn read(mut stream: TcpStream) -> String {
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    fn answer(status: StatusCode) -> Answer {
        let mut answer = Answer::new(Full::new(Bytes::from_static(b"said")));
        *answer.status_mut() = status;
        answer
    }

    /// Answers that are held back.
    #[derive(Clone, Default)]
    struct Gate {
        begun: Arc<Notify>,
        go_on: Arc<Notify>,
    }

    impl Gate {
        async fn answer(self) -> Answer {
            self.begun.notify_one();
            self.go_on.notified().await;
            answer(StatusCode::OK)
        }
    }

    #[tokio::test]
    async fn an_answer_under_way_is_finished_when_the_server_stops() {
        let (server, address) = server(LIMITS);
        let gate = Gate::default();
        let held = gate.clone();
        let running = server.start(move |_, _| held.clone().answer());
        let stream = connect(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        gate.begun.notified().await;
        let stopping = tokio::spawn(running.stop(WITHIN));
        gate.go_on.notify_one();
        // The end of the text is the end of the connection, although the client keeps it open.
        assert!(read(stream).await.ends_with("said"));
        stopping.await.unwrap();
        assert!(TcpStream::connect(address).await.is_err(), "nothing listens there any more");
    }

    #[tokio::test]
    async fn a_body_above_the_limit_ends_with_an_error() {
        let (server, address) = server(LIMITS);
        let running = server.start(|_, request| async {
            let read = request.into_body().collect().await;
            answer(read.map_or(StatusCode::PAYLOAD_TOO_LARGE, |_| StatusCode::OK))
        });
        for (body, status) in [("four", "200"), ("fives", "413")] {
            let length = body.len();
            let head = "POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n";
            let request = format!("{head}content-length: {length}\r\n\r\n{body}");
            let text = read(connect(address, &request).await).await;
            assert!(text.starts_with(&format!("HTTP/1.1 {status} ")), "{text}");
        }
        running.stop(WITHIN).await;
    }

    #[tokio::test]
    async fn a_connection_that_waits_for_its_client_makes_room() {
        let (server, address) = server(Limits { connections: 4, ..LIMITS });
        let gate = Gate::default();
        let held = gate.clone();
        let running = server.start(move |_, request| {
            let held = held.clone();
            async move {
                match *request.method() {
                    Method::POST => held.answer().await,
                    _ => answer(StatusCode::OK),
                }
            }
        });
        let close = |method: &str| format!("{method} / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n");
        let slow = connect(address, &close("POST")).await;
        gate.begun.notified().await;
        let mut silent = Vec::new();
        for _ in 0..20 {
            silent.push(connect(address, "").await);
            assert!(read(connect(address, &close("GET")).await).await.ends_with("said"));
        }
        gate.go_on.notify_one();
        assert!(read(slow).await.ends_with("said"), "an answer under way is not given up");
        running.stop(WITHIN).await;
    }

    #[tokio::test]
    async fn where_every_place_works_for_its_client_another_one_is_closed() {
        let (server, address) = server(LIMITS);
        let gate = Gate::default();
        let held = gate.clone();
        let running = server.start(move |_, _| held.clone().answer());
        let close = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
        let slow = connect(address, close).await;
        gate.begun.notified().await;
        let mut refused = connect(address, "").await;
        assert_eq!(refused.read(&mut [0]).await.unwrap(), 0);
        gate.go_on.notify_one();
        assert!(read(slow).await.ends_with("said"));
        running.stop(WITHIN).await;
    }

    #[tokio::test]
    async fn a_client_that_takes_nothing_of_its_answer_is_given_up() {
        let (server, address) = server(Limits { write_timeout: Duration::from_millis(50), ..LIMITS });
        // More than the buffers of both sockets take.
        let long = Bytes::from(vec![b'x'; 64 << 20]);
        let running = server.start(move |_, _| std::future::ready(Answer::new(Full::new(long.clone()))));
        let mut unread = connect(address, "GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        let closed = async { while unread.write_all(b"x").await.is_ok() {} };
        timeout(WITHIN, closed).await.unwrap();
        running.stop(WITHIN).await;
    }
}
