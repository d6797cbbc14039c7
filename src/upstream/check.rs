//! Checks of endpoints beside the requests, so that one that fails is known before the next request tries it, and one that is
//! back is found without a request that has to.
//!
//! One thread of the process checks for all. A check has a connection of its own, from the budget of all connections; where that is
//! used up, there is none. By default it connects and makes the handshake of TLS; with a path it also asks, and the answer's
//! status counts. Endpoints that are the only one of their list are checked only if the configuration asks for that, since they
//! are never passed over.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderValue, Request, StatusCode, Uri};
use tokio::time::{Instant, timeout};

use super::connection::Undelivered;
use super::pool::Pool;
use super::request_body::RequestBody;
use super::{Checks, Question};

impl Question {
    fn request(&self, host: &HeaderValue) -> Request<RequestBody> {
        let mut request = Request::new(RequestBody::default());
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = Uri::from(self.path.clone());
        request.headers_mut().insert(HOST, host.clone());
        request
    }

    fn judge(&self, status: StatusCode) -> Result<(), String> {
        let passes =
            if self.statuses.is_empty() { status.is_success() } else { self.statuses.contains(&status) };
        if passes {
            Ok(())
        } else {
            Err(format!("{} {} was answered with {}", self.method, self.path, status.as_u16()))
        }
    }
}

/// When one endpoint is checked.
#[derive(Debug, Default)]
pub(super) struct Schedule {
    next: Cell<Option<Instant>>,
    is_running: Cell<bool>,
}

impl Schedule {
    /// Begins a check, if it is due and the one before has ended. Returns how long there is time until the next one. To be called
    /// within the worker's `LocalSet`.
    pub(super) fn look(
        self: &Rc<Self>,
        checks: &Rc<Checks>,
        pool: &Rc<Pool>,
        host: &HeaderValue,
    ) -> Duration {
        let now = Instant::now();
        let due = self.next.get().unwrap_or(now);
        if now < due {
            return due - now;
        }
        let next = checks.interval.mul_f32(0.9 + fastrand::f32() / 5.0);
        self.next.set(Some(now + next));
        if !self.is_running.replace(true) {
            let (this, checks, pool, host) =
                (Rc::clone(self), Rc::clone(checks), Rc::clone(pool), host.clone());
            tokio::task::spawn_local(async move {
                let outcome = run(&checks, &pool, &host).await;
                // A check that began before a reload must not speak for an endpoint that has no checks any more.
                if let Some(outcome) = outcome.filter(|_| !pool.is_retired()) {
                    pool.standing().note_check(pool.endpoint(), &checks, outcome, pool.clock().mono());
                }
                this.is_running.set(false);
            });
        }
        next
    }
}

/// `None` where there is no place for a connection.
async fn run(checks: &Checks, pool: &Pool, host: &HeaderValue) -> Option<Result<(), String>> {
    let place = pool.place_at_once()?;
    let checking = async {
        let Some(question) = &checks.question else {
            return pool.reach(checks.timeout).await.map(drop).map_err(|unopened| unopened.to_string());
        };
        let mut connection = pool.connect(checks.timeout).await.map_err(|unopened| unopened.to_string())?;
        match connection.send(question.request(host)).await {
            Ok(received) => question.judge(received.head.status),
            Err(Undelivered::Unsent(_)) => Err("it closed the connection before it was asked".to_owned()),
            Err(Undelivered::BrokeOff(cause)) => Err(connection.explained(cause).to_string()),
        }
    };
    let outcome = timeout(checks.timeout, checking).await;
    drop(place);
    Some(outcome.unwrap_or_else(|_| Err(format!("it did not answer within {:?}", checks.timeout))))
}
