//! The operators' listener: `/metrics`, `/livez`, `/readyz`. It shows no secret and changes nothing.

use std::net::{SocketAddr, TcpListener as StdListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderValue, Method, StatusCode, header};
use http_body_util::Full;
use tokio::net::TcpListener;

use super::small_server::{Answer, Limits, Request, Running, SmallServer, open_tcp};
use crate::telemetry::Event;
use crate::telemetry::metrics::{Metrics, State};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::network::CannotListen;

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

/// For scrapers and probes, which send no bodies.
const LIMITS: Limits = Limits {
    connections: 32,
    head_timeout: Duration::from_secs(10),
    write_timeout: Duration::from_secs(10),
    body: 0,
};
/// The media type of Prometheus' text format, version 0.0.4.
const TEXT_FORMAT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Whether requests should be sent here: from the first answer of the store on, until the gateway begins to stop.
///
/// A gateway that has had no answer from its store knows no key, while the gateways that it would replace may still
/// know theirs. Later, a store that does not answer makes no gateway unready: known keys are served. For other keys
/// 503 is the right answer at every gateway, and a load balancer without any ready gateway would give a worse one.
#[derive(Debug, Default)]
pub struct Readiness {
    has_begun: AtomicBool,
    is_stopping: AtomicBool,
}

impl Readiness {
    /// From now on the gateway is not ready.
    pub fn stop(&self) {
        self.is_stopping.store(true, Ordering::Relaxed);
    }

    /// # Errors
    /// Why it is not ready.
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

/// The data that the listener shows.
pub struct Told {
    pub metrics: Arc<Metrics>,
    pub readiness: Arc<Readiness>,
    /// Whether the store has ever answered this process.
    pub store_has_answered: Box<dyn Fn() -> bool + Send + Sync>,
    /// The metrics that are read at each scrape.
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
    /// Takes the socket that is there, or binds one; `None` where the settings turn it off. Must be called inside the
    /// control runtime.
    ///
    /// # Errors
    /// When the address is in use, or is not an address of this machine.
    pub fn open(settings: &Settings, there: Option<StdListener>) -> Result<Option<Self>, CannotListen> {
        let Some(listen) = settings.listen else { return Ok(None) };
        let (listener, address) =
            open_tcp(listen, there).map_err(|cause| CannotListen { listen, cause, key: "ops.listen" })?;
        Ok(Some(Self { listener, address }))
    }

    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Starts to serve. Must be called inside the control runtime.
    pub fn start(self, told: Told, clock: Clock) -> Running {
        let told = Arc::new(told);
        let now = clock.clone();
        let server = SmallServer { socket: self.listener, name: "metrics and probes", limits: LIMITS, clock };
        server.start(move |_, request| std::future::ready(answer(&told, &request, now.mono())))
    }
}

fn answer(told: &Told, request: &Request, now: Instant) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
    }
    // A query changes nothing: probes and scrapers append one out of habit, as in `/readyz?verbose`.
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    match target.split_once('?').map_or(target, |(path, _)| path) {
        "/metrics" => match told.metrics.render(&(told.state)()) {
            Ok(metrics) => {
                let mut answer = Answer::new(Full::new(Bytes::from(metrics)));
                answer.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(TEXT_FORMAT));
                answer
            }
            Err(error) => {
                Event::MetricsFailed.log(now, || format!("cannot write the metrics: {error}"));
                text(StatusCode::INTERNAL_SERVER_ERROR, "see the log\n")
            }
        },
        "/livez" => text(StatusCode::OK, "alive\n"),
        "/readyz" => match told.readiness.judge(&told.store_has_answered) {
            Ok(()) => text(StatusCode::OK, "ready\n"),
            Err(why) => text(StatusCode::SERVICE_UNAVAILABLE, why),
        },
        _ => text(StatusCode::NOT_FOUND, "/metrics, /livez and /readyz are here\n"),
    }
}

fn text(status: StatusCode, text: &'static str) -> Answer {
    let mut answer = Answer::new(Full::new(Bytes::from_static(text.as_bytes())));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, plain);
    answer
}
