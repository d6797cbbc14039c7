//! The operators' listener: `/metrics`, `/livez`, `/readyz`. It shows no secret and changes nothing.

use std::fmt;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::pin::Pin;
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
use crate::vocabulary::text::escaped;

/// Where the operators' listener is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `None` for no listener.
    pub listen: Option<SocketAddr>,
    /// Whether a gateway stays ready that has lost its store and can let nothing through.
    pub ready_when_cut_off: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { listen: Some(SocketAddr::from(([127, 0, 0, 1], 9464))), ready_when_cut_off: false }
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

/// Whether requests should be sent here: from the first answer of the store on, until the gateway begins to stop, as long
/// as some request could be let through.
///
/// A gateway that has had no answer from its store knows no key, while the gateways that it would replace may still
/// know theirs. Later, a store that does not answer makes a gateway unready only when no route can let anything through any
/// more: until then known keys are served, and for other keys 503 is the right answer at every gateway. What an upstream
/// does never matters: its other routes and its other environment go on.
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
    fn judge(&self, health: &Health) -> Result<(), &'static str> {
        if self.is_stopping.load(Ordering::Relaxed) {
            return Err("stopping");
        }
        if !self.has_begun.load(Ordering::Relaxed) {
            if !health.store_has_answered {
                return Err("the store has not answered since the start; the log says why");
            }
            self.has_begun.store(true, Ordering::Relaxed);
        }
        health.lets_through
    }
}

/// How the gateway is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// Whether the store has ever answered this process.
    pub store_has_answered: bool,
    /// Whether some route can let a request through; why none can.
    pub lets_through: Result<(), &'static str>,
    /// Only if they were asked for.
    pub parts: Vec<Part>,
}

/// A part of the gateway, by the name that operators know, and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub name: &'static str,
    pub trouble: Option<String>,
}

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, trouble } = self;
        match trouble {
            None => write!(f, "{name}: ok"),
            // It may have words of a server in it, and each part is one line.
            Some(trouble) => write!(f, "{name}: degraded: {}", escaped(trouble)),
        }
    }
}

/// An examination of the gateway.
pub type Examination = Pin<Box<dyn Future<Output = Health> + Send>>;

/// The data that the listener shows.
pub struct Told {
    pub metrics: Arc<Metrics>,
    pub readiness: Arc<Readiness>,
    /// Examines the gateway for a probe, and if told also each of its parts.
    pub examine: Box<dyn Fn(bool) -> Examination + Send + Sync>,
    /// The metrics that are read at each scrape.
    pub state: Box<dyn Fn() -> State + Send + Sync>,
}

impl fmt::Debug for Told {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
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
        server.start(move |_, request| {
            let (told, now) = (Arc::clone(&told), now.mono());
            async move { answer(&told, &request, now).await }
        })
    }
}

impl AsFd for Server {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

async fn answer(told: &Told, request: &Request, now: Instant) -> Answer {
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        return text(StatusCode::METHOD_NOT_ALLOWED, "use GET\n");
    }
    // Any other query changes nothing: probes and scrapers append one out of habit.
    let target = request.uri().path_and_query().map_or("", |target| target.as_str());
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    match path {
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
        "/readyz" => {
            let is_verbose = query.split('&').any(|word| word.split('=').next() == Some("verbose"));
            ready(told, is_verbose).await
        }
        _ => text(StatusCode::NOT_FOUND, "/metrics, /livez and /readyz are here\n"),
    }
}

/// One line, and if wanted one more for each part of the gateway.
async fn ready(told: &Told, is_verbose: bool) -> Answer {
    let health = (told.examine)(is_verbose).await;
    let (status, mut said) = match told.readiness.judge(&health) {
        Ok(()) => (StatusCode::OK, "ready\n".to_owned()),
        Err(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {why}\n")),
    };
    said.extend(health.parts.iter().map(|part| format!("{part}\n")));
    text(status, said)
}

fn text(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let mut answer = Answer::new(Full::new(text.into()));
    *answer.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(header::CONTENT_TYPE, plain);
    answer
}
