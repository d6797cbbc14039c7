//! The watchdog over one connection: it closes what takes too long, and ends the connection in a drain.
//!
//! hyper's own timer for request heads also runs while a kept connection is idle, and hyper has no timer for
//! a client that takes nothing of its answer. Therefore keygate has its own: it looks at what the connection
//! does, from the handshake on, and costs no timer per request.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::activity::{Activity, Phase};
use super::membership::{Member, Stage};

/// How long a client may take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long the TLS handshake may take.
    pub handshake_timeout: Duration,
    /// From a request's first byte, or from the beginning of the connection, to the end of the request's head.
    pub head_timeout: Duration,
    /// How long a connection may wait for its next request. Above the 60 seconds of common load balancers.
    pub idle_timeout: Duration,
    /// How long a client may take nothing of an answer that is ready for it.
    pub write_timeout: Duration,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_secs(300),
        }
    }
}

/// How long a new connection may wait for its first bytes once no other is accepted. Its client, which connected just
/// before that, is about to send its request.
const LAST_CALL: Duration = Duration::from_secs(1);

/// Ends a connection that takes too long, and lets it finish in a drain.
pub(super) struct Watchdog<'w> {
    activity: &'w Activity,
    settings: &'w Settings,
    member: &'w Member,
    timer: Pin<&'w mut Sleep>,
    /// Whether nothing has come yet, and nothing needs to come.
    is_last_call: bool,
}

impl<'w> Watchdog<'w> {
    /// `timer` must end no later than the first deadline; see [`first_deadline`].
    pub(super) const fn new(
        activity: &'w Activity,
        settings: &'w Settings,
        member: &'w Member,
        timer: Pin<&'w mut Sleep>,
    ) -> Self {
        Self { activity, settings, member, timer, is_last_call: false }
    }

    /// Waits for what comes before the first request; `None` when it took too long.
    pub(super) async fn until<F: Future>(&mut self, future: F) -> Option<F::Output> {
        let mut future = pin!(future);
        let outcome = poll_fn(|cx| {
            self.is_last_call = self.member.poll_stage(cx) >= Stage::Finishing;
            match future.as_mut().poll(cx) {
                Poll::Ready(output) => Poll::Ready(Some(output)),
                Poll::Pending => self.poll_too_late(cx).map(|()| None),
            }
        })
        .await;
        self.is_last_call = false;
        outcome
    }

    /// Runs the connection. When the process ends, `leave` announces it, and later `finish` lets the connection end after
    /// the requests under way. `is_over` ends it at once. `None` if it was ended here.
    pub(super) async fn watch<C: Future>(
        &mut self,
        mut connection: Pin<&mut C>,
        leave: impl Fn(),
        finish: impl Fn(Pin<&mut C>),
        is_over: impl Fn() -> bool,
    ) -> Option<C::Output> {
        // A connection that begins at a later stage is told with its first request: were it told before that, its client
        // would come back without having been served.
        let mut is_told = self.member.stage() > Stage::Serving;
        let mut is_finishing = false;
        poll_fn(|cx| {
            let stage = self.member.poll_stage(cx);
            if stage > Stage::Serving && !is_told {
                is_told = true;
                leave();
            }
            if stage >= Stage::Finishing {
                self.activity.hurry();
            }
            loop {
                if is_over() {
                    return Poll::Ready(None);
                }
                if let Poll::Ready(output) = connection.as_mut().poll(cx) {
                    return Poll::Ready(Some(output));
                }
                if is_over() {
                    return Poll::Ready(None);
                }
                // Not before that poll: a request that has come must not be lost.
                if stage >= Stage::Finishing && !is_finishing && self.activity.may_finish() {
                    is_finishing = true;
                    finish(connection.as_mut());
                    continue;
                }
                self.activity.remember(cx);
                if self.poll_too_late(cx).is_pending() {
                    return Poll::Pending;
                }
                if !self.activity.may_say_farewell() {
                    return Poll::Ready(None);
                }
                finish(connection.as_mut());
            }
        })
        .await
    }

    fn poll_too_late(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let Some(deadline) = self.deadline() else { return Poll::Pending };
            if deadline < self.timer.deadline() {
                self.timer.as_mut().reset(deadline);
            }
            if self.timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            // The timer was set for an earlier deadline of this connection. Only now is a new setting worth
            // its cost.
            if deadline <= Instant::now() {
                return Poll::Ready(());
            }
            self.timer.as_mut().reset(deadline);
        }
    }

    /// When the connection will have taken too long, if it goes on as it does.
    fn deadline(&self) -> Option<Instant> {
        let Settings { handshake_timeout, head_timeout, idle_timeout, write_timeout } = *self.settings;
        let since = self.activity.since();
        let phase = match self.activity.phase() {
            Phase::Handshake | Phase::Head if self.is_last_call => Some(since + LAST_CALL),
            Phase::Handshake => Some(since + handshake_timeout),
            Phase::Head => Some(since + head_timeout),
            // The ends of answers may still be on their way to a client that was told to finish.
            Phase::Idle if self.activity.is_told() => Some(since + idle_timeout + write_timeout),
            Phase::Idle => Some(since + idle_timeout),
            Phase::Busy => None,
        };
        let blocked = self.activity.blocked_since().map(|since| since + write_timeout);
        match (phase, blocked) {
            (Some(phase), Some(blocked)) => Some(phase.min(blocked)),
            (one, other) => one.or(other),
        }
    }
}

/// When the timer of a new connection ends at first: never after a deadline that can come.
pub(super) fn first_deadline(settings: &Settings) -> Instant {
    Instant::now() + settings.handshake_timeout.min(settings.head_timeout)
}
