//! A request to its upstream, and back with the answer: the upstreams as one thread sees them.

use std::pin::{Pin, pin};
use std::rc::Rc;
use std::time::Duration;

use http::header::HOST;
use http::{HeaderValue, Request};
use tokio::time::{Instant, sleep};

use super::answer::Answer;
use super::endpoint::Endpoint;
use super::error::SendError;
use super::health::Health;
use super::pool::Pool;
use super::request_body::{RequestBody, Upload, UploadState};
use super::retry::{self, Retry};
use super::select::Turns;
use super::{HostField, Settings, UpstreamId};
use crate::vocabulary::clock::Clock;
use crate::vocabulary::key::Environment;

/// All upstreams, with one thread's connections to them.
#[derive(Debug)]
pub struct Upstreams {
    upstreams: Vec<Upstream>,
    clock: Clock,
}

#[derive(Debug)]
struct Upstream {
    settings: Settings,
    /// By environment.
    sides: [Rc<Side>; 2],
}

/// One environment of one upstream.
#[derive(Debug)]
struct Side {
    targets: Vec<Target>,
    turns: Turns,
    answer_timeout: Duration,
    stream_idle_timeout: Duration,
}

/// One endpoint.
#[derive(Debug)]
struct Target {
    /// The Host field, where it is not the client's.
    host: Option<HeaderValue>,
    pool: Rc<Pool>,
}

impl Upstreams {
    #[must_use]
    pub fn new(upstreams: &[Settings], health: &Health, clock: Clock) -> Self {
        let upstreams = upstreams.iter().map(|settings| Upstream::new(settings, health, &clock)).collect();
        Self { upstreams, clock }
    }

    /// Other upstreams in place of these. Upstreams that are in both keep their connections; of the others only
    /// the requests that are under way are finished.
    #[must_use]
    pub fn renew(&self, upstreams: &[Settings], health: &Health) -> Self {
        let kept = |settings: &Settings| self.upstreams.iter().find(|known| known.settings == *settings);
        let renewed = upstreams.iter().map(|settings| match kept(settings) {
            Some(known) => Upstream { settings: settings.clone(), sides: known.sides.clone() },
            None => Upstream::new(settings, health, &self.clock),
        });
        let renewed = Self { upstreams: renewed.collect(), clock: self.clock.clone() };
        for gone in self.upstreams.iter().filter(|known| !upstreams.contains(&known.settings)) {
            gone.pools().for_each(Pool::retire);
        }
        renewed
    }

    /// Sends a request to an endpoint of `upstream` for `environment`, and to no other environment.
    ///
    /// # Errors
    /// [`SendError`]. Dropping the future closes the connection it used.
    pub async fn send(
        &self,
        upstream: UpstreamId,
        environment: Environment,
        request: Request<RequestBody>,
    ) -> Result<Answer, SendError> {
        let side = &*self.upstreams[upstream.0].sides[environment as usize];
        let upload = request.body().upload();
        let delivered = {
            // Pinned here, since it holds the request and would be copied with it.
            let delivering = pin!(side.deliver(request, upload.as_deref()));
            within(side.answer_timeout, upload.as_deref(), delivering).await
        };
        // A client's failure explains whatever the upstream did next.
        if let Some(UploadState::Failed(error)) = upload.map(|upload| upload.state()) {
            return Err(SendError::Body(error));
        }
        delivered.unwrap_or(Err(SendError::TimedOut))
    }

    /// Closes the connections that have been unused for too long. To be called once a second.
    pub fn sweep(&self) {
        self.upstreams.iter().flat_map(Upstream::pools).for_each(Pool::sweep);
    }
}

impl Upstream {
    fn new(settings: &Settings, health: &Health, clock: &Clock) -> Self {
        let target = |endpoint: &Endpoint| {
            let reachable = health.find(&settings.name, endpoint).unwrap_or_default();
            Target {
                host: match settings.host {
                    HostField::Client => None,
                    HostField::Endpoint => HeaderValue::try_from(endpoint.authority()).ok(),
                },
                pool: Rc::new(Pool::new(endpoint.clone(), reachable, &settings.timeouts, clock.clone())),
            }
        };
        let side = |environment| {
            Rc::new(Side {
                targets: settings.endpoints(environment).iter().map(target).collect(),
                turns: Turns::default(),
                answer_timeout: settings.timeouts.answer,
                stream_idle_timeout: settings.timeouts.stream_idle,
            })
        };
        Self { settings: settings.clone(), sides: Environment::ALL.map(side) }
    }

    fn pools(&self) -> impl Iterator<Item = &Pool> {
        self.sides.iter().flat_map(|side| &side.targets).map(|target| &*target.pool)
    }
}

impl Side {
    /// Tries endpoints until one takes the request, and waits for the head of its answer.
    async fn deliver(
        &self,
        mut request: Request<RequestBody>,
        upload: Option<&Upload>,
    ) -> Result<Answer, SendError> {
        for at in self.turns.order(self.targets.len()) {
            let target = &self.targets[at];
            if let Some(host) = &target.host {
                request.headers_mut().insert(HOST, host.clone());
            }
            while let Some(mut lease) = target.pool.lease().await {
                let undelivered = match lease.send(request).await {
                    Ok(received) => {
                        let is_wholly_sent = upload.is_none_or(|upload| upload.state() == UploadState::Done);
                        return Ok(Answer::new(received, lease, is_wholly_sent, self.stream_idle_timeout));
                    }
                    Err(undelivered) => undelivered,
                };
                match retry::after(undelivered, lease.is_reused()) {
                    Retry::SameEndpoint(unsent) => request = *unsent,
                    Retry::NextEndpoint(unsent) => {
                        request = *unsent;
                        break;
                    }
                    Retry::Never(cause) => return Err(SendError::BrokeOff(cause)),
                }
            }
        }
        Err(SendError::Unreachable)
    }
}

/// Waits for `sending` until `timeout` has passed since the last part of the request's body was taken; `None`
/// after that.
async fn within<T>(
    timeout: Duration,
    upload: Option<&Upload>,
    mut sending: Pin<&mut impl Future<Output = T>>,
) -> Option<T> {
    let mut deadline = pin!(sleep(timeout));
    loop {
        tokio::select! {
            biased;
            sent = &mut sending => return Some(sent),
            () = &mut deadline => {
                let until = upload.map(|upload| upload.progress() + timeout).filter(|until| *until > Instant::now());
                deadline.as_mut().reset(until?);
            }
        }
    }
}
