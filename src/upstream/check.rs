//! Checks of endpoints beside the requests, so that one that fails is known before the next request tries it, and one that is
//! back is found without a request that has to.
//!
//! One thread of the process checks for all. A check has a connection of its own, from the budget of all connections; where that is
//! used up, there is none. By default it connects and makes the handshake of TLS; with a path it also asks, and the answer's
//! status counts. Endpoints that are the only one of their list are checked only if the configuration asks for that, since they
//! are never passed over.
//!
//! A process that was stopped, or that hangs, still lets everybody connect: the kernel does that. So after a request that got
//! no answer, or waits for it while nothing else is answered, a check without a path asks `OPTIONS *`, which concerns the
//! server and nothing in it (RFC 9110, section 9.3.7), until that is answered. Any status will do.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use http::header::HOST;
use http::uri::PathAndQuery;
use http::{HeaderValue, Method, Request, Uri};
use tokio::time::{Instant, timeout};

use super::connection::{Received, Undelivered};
use super::error::Unopened;
use super::pool::Pool;
use super::request_body::RequestBody;
use super::{Checks, Question, grpc_health};

/// With a suspicion, the next check is due after this part of the interval, as a divisor.
const SOONER: u32 = 4;
/// The shortest time for an answer of any kind: a server that answers others may let it wait for its turn. Two of them, one after
/// the other, fit into five seconds with the interval before them.
const ANY_ANSWER: Duration = Duration::from_millis(1750);

/// What one check does.
#[derive(Clone, Copy, Debug)]
enum Inquiry<'c> {
    Connects,
    /// Any answer will do.
    AsksWhetherItAnswers,
    Asks(&'c Question),
}

impl Inquiry<'_> {
    /// That it was in vain.
    fn unanswered(self, within: Duration) -> String {
        match self {
            Self::Connects => format!("it could not be connected to within {within:?}"),
            Self::AsksWhetherItAnswers => {
                format!("a request had no answer, and then OPTIONS * had none within {within:?} either")
            }
            Self::Asks(Question::Http { method, path, .. }) => {
                format!("{method} {path} had no answer within {within:?}")
            }
            Self::Asks(Question::Grpc { .. }) => {
                format!("the health protocol of gRPC had no answer within {within:?}")
            }
        }
    }
}

impl Question {
    fn request(&self, host: &HeaderValue) -> Request<RequestBody> {
        let (method, path) = match self {
            Self::Http { method, path, .. } => (method, path),
            Self::Grpc { service } => return grpc_health::request(service, host),
        };
        let mut request = Request::new(RequestBody::default());
        *request.method_mut() = method.clone();
        *request.uri_mut() = Uri::from(path.clone());
        request.headers_mut().insert(HOST, host.clone());
        request
    }

    async fn judge(&self, received: Received) -> Result<(), String> {
        let (method, path, statuses) = match self {
            Self::Http { method, path, statuses } => (method, path, statuses),
            Self::Grpc { .. } => return grpc_health::judge(received).await,
        };
        let status = received.head.status;
        let passes = if statuses.is_empty() { status.is_success() } else { statuses.contains(&status) };
        if passes { Ok(()) } else { Err(format!("{method} {path} was answered with {}", status.as_u16())) }
    }
}

/// When one endpoint is checked.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    /// When the last one began, and when the next one is due.
    times: Cell<Option<(Instant, Instant)>>,
    is_running: Cell<bool>,
}

impl Schedule {
    /// Begins a check, if it is due and the one before has ended. Returns after what time to look again: a suspicion can make
    /// the next check due sooner. To be called within the worker's `LocalSet`.
    pub(super) fn look(
        self: &Rc<Self>,
        checks: &Rc<Checks>,
        pool: &Rc<Pool>,
        host: &HeaderValue,
    ) -> Duration {
        let now = Instant::now();
        let sooner = checks.interval / SOONER;
        let standing = pool.standing();
        let is_urgent = standing.is_suspected() && !standing.is_failing();
        let due = self.times.get().map_or(now, |(began, due)| if is_urgent { began + sooner } else { due });
        if now < due {
            return sooner.min(due - now);
        }
        let next = checks.interval.mul_f32(0.9 + fastrand::f32() / 5.0);
        self.times.set(Some((now, now + next)));
        if !self.is_running.replace(true) {
            let (this, checks, pool, host) =
                (Rc::clone(self), Rc::clone(checks), Rc::clone(pool), host.clone());
            tokio::task::spawn_local(async move {
                let outcome = run(&checks, &pool, &host).await;
                // A check that began before a reload must not speak for an endpoint that has no checks any more.
                if let Some(outcome) = outcome.filter(|_| !pool.is_retired()) {
                    pool.standing().note_check(pool.shown(), &checks, outcome, pool.clock().mono());
                }
                this.is_running.set(false);
            });
        }
        sooner
    }
}

/// `None` where there is no place for a connection.
async fn run(checks: &Checks, pool: &Pool, host: &HeaderValue) -> Option<Result<(), String>> {
    let place = pool.place_at_once()?;
    let inquiry = match &checks.question {
        Some(question) => Inquiry::Asks(question),
        None if pool.standing().is_suspected() => Inquiry::AsksWhetherItAnswers,
        None => Inquiry::Connects,
    };
    let within = match inquiry {
        Inquiry::AsksWhetherItAnswers => checks.timeout.max(ANY_ANSWER),
        Inquiry::Connects | Inquiry::Asks(_) => checks.timeout,
    };
    let outcome = timeout(within, inquire(inquiry, checks.timeout, pool, host)).await;
    drop(place);
    Some(outcome.unwrap_or_else(|_| Err(inquiry.unanswered(within))))
}

async fn inquire(
    inquiry: Inquiry<'_>,
    to_connect: Duration,
    pool: &Pool,
    host: &HeaderValue,
) -> Result<(), String> {
    let unopened = |unopened: Unopened| unopened.to_string();
    let server = Question::Http {
        method: Method::OPTIONS,
        path: PathAndQuery::from_static("*"),
        statuses: Vec::new(),
    };
    let question = match inquiry {
        Inquiry::Connects => return pool.reach(to_connect).await.map(drop).map_err(unopened),
        Inquiry::AsksWhetherItAnswers => &server,
        Inquiry::Asks(question) => question,
    };
    let mut connection = pool.connect(to_connect).await.map_err(unopened)?;
    let received = match connection.send(question.request(host)).await {
        Ok(received) => received,
        Err(Undelivered::Unsent(_)) => return Err("it closed the connection before it was asked".to_owned()),
        Err(Undelivered::BrokeOff(cause)) => return Err(connection.explained(cause).to_string()),
    };
    if !matches!(inquiry, Inquiry::AsksWhetherItAnswers) {
        question.judge(received).await?;
    }
    pool.standing().clear();
    Ok(())
}
