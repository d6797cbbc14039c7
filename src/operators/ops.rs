//! The operators' listener: `/metrics`, `/livez`, `/readyz`. It tells no secret and changes nothing.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::telemetry;
use crate::telemetry::metrics::{Metrics, State};

/// Where the operators' listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `None` for no listener.
    pub listen: Option<SocketAddr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 9464))) }
    }
}

/// Scrapers and probes at once. Further ones wait in the listen queue.
const CONNECTIONS: usize = 32;
/// A scraper that sends nothing gives its place up after this time.
const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// What Prometheus' text format 0.0.4 is called.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

#[derive(Debug, Error)]
#[error(
    "cannot listen on {listen}: {cause}; set ops.listen (KEYGATE__OPS__LISTEN) to an address that is free, or to \"off\""
)]
pub struct BindError {
    listen: SocketAddr,
    cause: io::Error,
}

/// Whether requests should be sent here: from the store's first answer on, until the gateway begins to stop.
///
/// A gateway that has never heard of its store can let nobody in, and those that it would take the place of
/// may still know their keys. Later on a store that is away is no reason: known keys are served, for the
/// others 503 is the honest answer everywhere, and a balancer without any gateway left would give a worse
/// one.
#[derive(Debug, Default)]
pub struct Readiness {
    has_begun: AtomicBool,
    is_stopping: AtomicBool,
}

impl Readiness {
    /// From now on the answer is no.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// Why not.
    fn judge(&self, store_has_answered: impl FnOnce() -> bool) -> Result<(), &'static str> {
        if self.is_stopping.load(Ordering::Relaxed) {
            return Err("not ready: stopping\n");
        }
        if !self.has_begun.load(Ordering::Relaxed) {
            if !store_has_answered() {
                return Err("not ready: the store has not answered since the start; the log says why\n");
            }
            self.has_begun.store(true, Ordering::Relaxed);
        }
        Ok(())
    }
}

/// What the listener tells.
pub struct Told {
    pub metrics: Arc<Metrics>,
    pub readiness: Arc<Readiness>,
    /// Whether the store has ever answered this process.
    pub store_has_answered: Box<dyn Fn() -> bool + Send + Sync>,
    /// What is read at the moment of a scrape.
    pub state: Box<dyn Fn() -> State + Send + Sync>,
}

impl std::fmt::Debug for Told {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Told").finish_non_exhaustive()
    }
}

/// The bound socket.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Binds, where the settings ask for it. Runs inside the control runtime.
    ///
    /// # Errors
    /// When the address is taken or not this machine's.
    pub fn bind(settings: &Settings) -> Result<Option<Self>, BindError> {
        let Some(listen) = settings.listen else { return Ok(None) };
        let bind = || {
            let listener = std::net::TcpListener::bind(listen)?;
            listener.set_nonblocking(true)?;
            let address = listener.local_addr()?;
            Ok((TcpListener::from_std(listener)?, address))
        };
        let (listener, address) = bind().map_err(|cause| BindError { listen, cause })?;
        Ok(Some(Self { listener, address }))
    }

    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves, for as long as it is polled.
    pub async fn run(self, told: Arc<Told>) {
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
            let Ok((stream, _)) = self.listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            let told = Arc::clone(&told);
            let service = service_fn(move |request| {
                let answer = answer(&told, &request);
                async move { Ok::<_, Infallible>(answer) }
            });
            let connection = http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(HEAD_TIMEOUT)
                .serve_connection(TokioIo::new(stream), service);
            tokio::spawn(async move {
                // Whoever asked has gone; there is nobody to tell.
                drop(connection.await);
                drop(place);
            });
        }
    }
}

fn answer(told: &Told, request: &Request<Incoming>) -> Response<Full<Bytes>> {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "ask with GET\n");
    }
    match request.uri().path_and_query().map(|target| target.as_str()) {
        Some("/metrics") => match told.metrics.render(&(told.state)()) {
            Ok(metrics) => {
                let mut response = Response::new(Full::new(Bytes::from(metrics)));
                response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
                response
            }
            Err(error) => {
                telemetry::log(&format!("cannot write the metrics: {error}"));
                text(StatusCode::INTERNAL_SERVER_ERROR, "see the log\n")
            }
        },
        Some("/livez") => text(StatusCode::OK, "alive\n"),
        Some("/readyz") => match told.readiness.judge(&told.store_has_answered) {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        _ => text(StatusCode::NOT_FOUND, "/metrics, /livez and /readyz are here\n"),
    }
}

fn text(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, plain);
    response
}
